"""One update: what it computes, and everything that it must not depend on.

The reference in this file goes row by row with plain autograd over ``model(...).logits`` and the formulas of the
method; both sides work in float64, so that they agree to rounding or not at all.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from prefix_rft_lab import methods, rng, update
from prefix_rft_lab.config import OptimConfig
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import encode_problems
from prefix_rft_lab.types import KIND_NAMES, Row, TokenKind
from prefix_rft_lab.update import Updater

OWN = {stage.name: stage for method in methods.METHODS.values() for stage in method.stages}
STAGES = OWN | {stage.replay.stage.name: stage.replay.stage for stage in OWN.values() if stage.replay}
"""Every stage of every method, the second updates too."""
FREE = 1e9
"""A gradient-norm limit that never acts."""


class Recorder(torch.optim.Optimizer):
    """Plain gradient descent that notes the gradient of every step."""

    def __init__(self, model):
        super().__init__(list(model.parameters()), {"lr": 0.0})
        self.gradients = []

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        self.gradients.append(torch.cat([g.flatten() for g in grads]))
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter -= self.param_groups[0]["lr"] * grad


@pytest.fixture(scope="module")
def base(tiny):
    return copy.deepcopy(tiny[0]).double()


@pytest.fixture(scope="module")
def problems(tiny, small):
    """Those with ``#`` first: in their demonstrations there is something to learn."""
    found = sorted(chains.problems("train", 8), key=lambda p: "#" not in p.prompt)
    return encode_problems(tiny[1], found, small())[0]


@pytest.fixture(scope="module")
def problems_without(problems):
    return [replace(p, demonstrations=()) for p in problems]


def rows_for(stage, problems, config, *, scores=None, eos=1):
    """Rows of a stage with keyed random tokens and scores in place of rollouts."""
    rows = [row for problem in problems for row in stage.rows(problem, 1, config)]
    for i, row in enumerate(rows):
        if row.is_demonstration:
            row.score = 1.0
            continue
        draws = rng.generator(0, "rows", row.problem.index, row.row)
        length = int(draws.integers(1, 12))
        row.sampled_ids = [*draws.integers(4, 36, size=length).tolist(), eos]
        row.score = float(draws.random() < 0.5) if scores is None else float(scores[i])
    return rows


def run(base, config, stage, rows, *, step=1, lr=0.0):
    """(result, gradients of each optimizer window, model afterwards)."""
    model = copy.deepcopy(base)
    optimizer = Recorder(model)
    section = getattr(config, stage.optim).model_copy(
        update={"grad_clip": FREE, "lr": lr, "warmup_fraction": 0.0, "decay": "constant"}
    )
    result = Updater(model, config, pad_id=0).update(rows, stage, section, optimizer, step)
    return result, optimizer.gradients, model


def same(a, b, tolerance=1e-6):
    scale = b.norm()
    assert scale > 0
    assert (a - b).norm() <= tolerance * scale


# ---------------------------------------------------------------- the reference


def token_stats(model, row, temperature):
    """(logp, entropy) of the response tokens of one row, alone and without padding."""
    ids = torch.tensor([row.problem.prompt_ids + row.response_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0] / temperature
    log_probs = logits.log_softmax(-1)
    start = len(row.problem.prompt_ids)
    at = torch.arange(start, ids.shape[1])
    return log_probs[at - 1, ids[0, at]], -(log_probs.exp() * log_probs).sum(-1)[at - 1]


def reference_advantages(rows):
    """s - m8 of each row; groups are found by problem, not by position."""
    groups = {}
    for row in rows:
        groups.setdefault(row.problem.index, []).append(row.score)
    return [row.score - sum(groups[row.problem.index]) / len(groups[row.problem.index]) for row in rows]


def kept_prefix_tokens(entropies, rows, config):
    """For each row, which prefix tokens keep their advantage: ranked over all rows, or within each."""
    ranked = [(float(e), i, t) for i, row in enumerate(rows) for t, e in enumerate(entropies[i][: len(row.prefix_ids)])]
    kept = [[True] * len(row.response_ids) for row in rows]
    scopes = (
        [ranked] if config.prefix.scope == "update" else [[r for r in ranked if r[1] == i] for i in range(len(rows))]
    )
    for scope in scopes:
        for _, i, t in sorted(scope)[: int(len(scope) * 0.8)]:
            kept[i][t] = False
    return kept


def surrogate(logp, old, advantage, config, *, limited):
    ratio = (logp - old).exp()
    if not limited:
        return -advantage * ratio
    loss = torch.maximum(
        -advantage * ratio, -advantage * ratio.clamp(1 - config.loss.clip_low, 1 + config.loss.clip_high)
    )
    return torch.minimum(loss, -advantage * config.loss.dual_clip * torch.ones_like(loss)) if advantage < 0 else loss


def reference(model, rows, config, method, *, old=None, advantages=None):
    """(loss, gradient) of one optimizer window."""
    stats = [token_stats(model, row, config.rollout.temperature) for row in rows]
    loss = torch.zeros((), dtype=torch.float64)
    if method == "sft":
        tokens = sum(len(row.response_ids) for row in rows)
        loss = sum(-logp.sum() for logp, _ in stats) / tokens
    else:
        values = reference_advantages(rows) if advantages is None else advantages
        kept = kept_prefix_tokens([e.detach() for _, e in stats], rows, config)
        for i, (row, (logp, _)) in enumerate(zip(rows, stats, strict=True)):
            before = logp.detach() if old is None else old[i]
            for t in range(len(row.response_ids)):
                prefix = t < len(row.prefix_ids)
                if prefix and method == "frozen":
                    continue
                advantage = values[i] if kept[i][t] else 0.0
                limited = config.prefix.clip_ratio if prefix else True
                loss = loss + surrogate(logp[t], before[t], advantage, config, limited=limited)
        loss = loss / (len(rows) * config.rollout.max_response_tokens)
    if config.loss.entropy_bonus and method != "sft":
        sampled = [e[len(row.prefix_ids) :] for row, (_, e) in zip(rows, stats, strict=True)]
        loss = loss - config.loss.entropy_bonus * torch.cat(sampled).mean()
    model.zero_grad()
    if loss.requires_grad:
        loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return float(loss.detach()), torch.cat([g.flatten() for g in grads])


# ---------------------------------------------------------------- comparison with the reference


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("name", "scope"), [("sft", "update"), ("rft", "update"), ("prefix_rft", "update"), ("prefix_rft", "row")]
)
def test_equals_the_reference(base, small, problems, name, scope, temperature):
    config = small(**{"prefix.scope": scope, "rollout.temperature": temperature, "micro_batch_tokens": 100})
    rows = rows_for(STAGES[name], problems[:3], config)
    result, (gradient,), _ = run(base, config, STAGES[name], rows)
    # SFT samples nothing, so no sampling temperature is its.
    seen = config.replace(**{"rollout.temperature": 1.0}) if name == "sft" else config
    loss, expected = reference(copy.deepcopy(base), rows, seen, name)
    assert result.loss == pytest.approx(loss, rel=1e-6, abs=1e-12)
    same(gradient, expected)
    assert result.grad_norm == pytest.approx(float(expected.norm()), rel=1e-6)


def test_two_short_rows_by_hand(base, small, problems):
    """Scores 1 and 0: A = +1/2 and -1/2; at the first update each token's gradient is -A d log p / (2 * 48)."""
    config = small(**{"rollout.rows_per_problem": 2})
    rows = [
        Row(problem=problems[0], row=0, sampled_ids=[5, 1], score=1.0),
        Row(problem=problems[0], row=1, sampled_ids=[7, 8, 1], score=0.0),
    ]
    result, (gradient,), _ = run(base, config, methods.RFT, rows)
    model = copy.deepcopy(base)
    total = sum(a * token_stats(model, row, 1.0)[0].sum() for a, row in zip((-0.5 / 96, 0.5 / 96), rows, strict=True))
    (-total).backward()
    same(-gradient, torch.cat([p.grad.flatten() for p in model.parameters()]))
    # The ratio is 1, so the loss is the sum of -A: (-2/2 + 3/2) / 96.
    assert result.loss == pytest.approx(0.5 / 96, rel=1e-6)
    assert result.advantages.tolist() == [0.5, 0.5, -0.5, -0.5, -0.5]


def test_statistics_are_in_row_order(base, small, problems):
    config = small(**{"micro_batch_tokens": 60})
    rows = rows_for(methods.PREFIX_RFT, problems[:3], config)
    result, _, _ = run(base, config, methods.PREFIX_RFT, rows)
    stats = [token_stats(base, row, 1.0) for row in rows]
    expected = torch.cat([logp for logp, _ in stats]).float()
    torch.testing.assert_close(result.logp, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.entropy, torch.cat([e for _, e in stats]).float(), rtol=1e-5, atol=1e-6)
    assert result.kinds.tolist() == [int(kind) for row in rows for kind in row.kinds]
    values = [a for row, a in zip(rows, reference_advantages(rows), strict=True) for _ in row.response_ids]
    assert result.advantages.tolist() == pytest.approx(values)


# ---------------------------------------------------------------- invariances


HINTS = {"uft.low": 0.95, "rl.steps": 400}
"""With these, UFT shows hints at the step that the tests are at."""


@pytest.mark.parametrize("name", STAGES)
def test_independent_of_micro_batches(base, small, problems, name):
    whole = small(**{"micro_batch_tokens": 100_000, **HINTS})
    rows = rows_for(STAGES[name], problems[:4], whole)
    expected, (gradient,), _ = run(base, whole, STAGES[name], rows)
    missing = STAGES[name].losses(whole).keys() - {TokenKind(int(kind)) for kind in expected.kinds.unique()}
    # A problem whose hint or prefix is drawn empty has plain rows, so that kind may be missing; no other may.
    assert missing <= {TokenKind.ON_POLICY}
    for tokens in (1, 70, 110):
        config = whole.replace(micro_batch_tokens=tokens)
        assert len(Updater(base, config, pad_id=0).micro_batches(rows)) > 1
        result, (other,), _ = run(base, config, STAGES[name], rows)
        same(other, gradient)
        assert result.loss == pytest.approx(expected.loss, rel=1e-6, abs=1e-12)
        assert torch.equal(result.kept, expected.kept)


def test_micro_batches_hold_every_row_once_within_the_limit(base, small, problems):
    config = small(**{"micro_batch_tokens": 90})
    rows = rows_for(methods.PREFIX_RFT, problems, config)
    batches = Updater(base, config, pad_id=0).micro_batches(rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    for batch in batches:
        width = max(len(rows[i].problem.prompt_ids) + len(rows[i].response_ids) for i in batch)
        assert len(batch) * width <= 90 or len(batch) == 1


@pytest.mark.parametrize("name", STAGES)
def test_independent_of_padding(base, small, problems, name, monkeypatch):
    config = small(**{"micro_batch_tokens": 200, **HINTS})
    rows = rows_for(STAGES[name], problems[:3], config)
    expected, (gradient,), _ = run(base, config, STAGES[name], rows)
    narrow = update.pad_rows

    def wide(rows, fill, device="cpu"):
        batch = narrow(rows, fill, device)
        pad = (0, 17)
        return replace(
            batch,
            input_ids=torch.nn.functional.pad(batch.input_ids, pad, value=7),
            attention_mask=torch.nn.functional.pad(batch.attention_mask, pad),
            kinds=torch.nn.functional.pad(batch.kinds, pad),
        )

    monkeypatch.setattr(update, "pad_rows", wide)
    result, (other,), _ = run(base, config, STAGES[name], rows)
    same(other, gradient)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", STAGES)
def test_independent_of_the_order_of_rows(base, small, problems, name):
    config = small(**{"micro_batch_tokens": 200, **HINTS})
    rows = rows_for(STAGES[name], problems[:4], config)
    expected, (gradient,), _ = run(base, config, STAGES[name], rows)
    shuffled = [rows[i] for i in rng.generator(0, "shuffle").permutation(len(rows))]
    assert shuffled != rows
    result, (other,), _ = run(base, config, STAGES[name], shuffled)
    same(other, gradient)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6, abs=1e-12)


VARIANTS = {
    "static prefixes": {"prefix.loss": "static"},
    "prefixes shared by two": {
        "rollout.hybrid_rows": 2,
        "rollout.rows_per_prefix": 2,
        "loss.advantage": "dr_grpo_prefix",
    },
    "entropy bonus": {"loss.entropy_bonus": 0.1},
    "random clip": {"prefix.keep": "random", "prefix.keep_fraction": 0.5},
    "grpo_prefix": {"loss.advantage": "grpo_prefix"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_independent_of_micro_batches_and_order(base, small, problems, name):
    config = small(**{"micro_batch_tokens": 100_000, **VARIANTS[name]})
    again = [*problems[:3], replace(problems[0], visit=1)]
    rows = rows_for(methods.PREFIX_RFT, again, config)
    expected, (gradient,), _ = run(base, config, methods.PREFIX_RFT, rows)
    _, (cut,), _ = run(base, config.replace(micro_batch_tokens=80), methods.PREFIX_RFT, rows)
    same(cut, gradient)
    result, (other,), _ = run(base, config, methods.PREFIX_RFT, rows[::-1])
    same(other, gradient)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6, abs=1e-12)


def test_a_problem_that_comes_twice_is_two_groups(base, small, problems):
    config = small()
    again = replace(problems[0], visit=1)
    rows = rows_for(methods.RFT, [problems[0], again], config, scores=[1, 0, 0, 0, 1, 1, 1, 0])
    result, _, _ = run(base, config, methods.RFT, rows)
    by_row, start = [], 0
    for row in rows:
        by_row.append(float(result.advantages[start]))
        start += len(row.response_ids)
    assert by_row == [0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75]


# ---------------------------------------------------------------- entropy clip


@pytest.mark.parametrize("scope", ["update", "row", "micro_batch"])
def test_the_clip_drops_exactly_its_share_of_the_prefix_tokens(base, small, problems, scope):
    config = small(**{"prefix.scope": scope, "micro_batch_tokens": 150})
    rows = rows_for(methods.PREFIX_RFT, problems, config)
    result, _, _ = run(base, config, methods.PREFIX_RFT, rows)
    prefix = result.kinds == TokenKind.PREFIX
    assert torch.equal(result.ranked, prefix)
    assert result.kept[~prefix].all()
    counts = [len(row.response_ids) for row in rows]
    row_of = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
    if scope == "update":
        groups = [prefix]
    elif scope == "row":
        groups = [prefix & (row_of == i) for i in range(len(rows))]
    else:
        batches = Updater(base, config, pad_id=0).micro_batches(rows)
        assert len(batches) > 2
        groups = [prefix & torch.isin(row_of, torch.tensor(batch)) for batch in batches]
    for group in groups:
        if not group.any():
            continue
        kept, dropped = group & result.kept, group & ~result.kept
        assert int(dropped.sum()) == int(int(group.sum()) * 0.8)
        if kept.any() and dropped.any():
            assert result.entropy[kept].min() >= result.entropy[dropped].max()


def test_dropped_tokens_lose_their_gradient_and_nothing_else(base, small, problems):
    """Against a loss with the kept tokens alone and the same denominator; keep = all trains them all."""
    config = small()
    rows = rows_for(methods.PREFIX_RFT, problems[:2], config, scores=[0, 0, 0, 1, 1, 0, 0, 1])
    clipped, (gradient,), _ = run(base, config, methods.PREFIX_RFT, rows)
    model = copy.deepcopy(base)
    logp = torch.cat([token_stats(model, row, 1.0)[0] for row in rows])
    values = torch.where(clipped.kept, clipped.advantages, 0.0)
    (-(values * logp).sum() / (len(rows) * 48)).backward()
    same(gradient, torch.cat([p.grad.flatten() for p in model.parameters()]))
    everything = config.replace(**{"prefix.keep": "all"})
    full, (other,), _ = run(base, everything, methods.PREFIX_RFT, rows)
    assert full.kept.all()
    assert (other - gradient).norm() > 0.01 * gradient.norm()


@pytest.mark.parametrize(("keep", "sign"), [("top", 1), ("bottom", -1)])
def test_which_share_is_kept(base, small, problems, keep, sign):
    config = small(**{"prefix.keep": keep, "prefix.keep_fraction": 0.5})
    result, _, _ = run(base, config, methods.PREFIX_RFT, rows_for(methods.PREFIX_RFT, problems, config))
    kept, dropped = result.ranked & result.kept, result.ranked & ~result.kept
    assert (sign * result.entropy[kept]).min() >= (sign * result.entropy[dropped]).max()


def test_random_share_is_keyed_by_seed_and_step(base, small, problems):
    config = small(**{"prefix.keep": "random", "prefix.keep_fraction": 0.5})
    rows = rows_for(methods.PREFIX_RFT, problems, config)

    def kept(config, step, tokens=4096):
        changed = config.replace(micro_batch_tokens=tokens)
        return run(base, changed, methods.PREFIX_RFT, rows, step=step)[0].kept

    first = kept(config, 1)
    assert torch.equal(first, kept(config, 1, tokens=100))
    assert not torch.equal(first, kept(config, 2))
    assert not torch.equal(first, kept(config.replace(seed=1), 1))


# ---------------------------------------------------------------- several updates on one rollout


@pytest.mark.parametrize("limited", [True, False])
def test_second_window_uses_ratios_and_the_prefix_clip_can_be_switched_off(base, small, problems, limited):
    config = small(
        **{
            "loss.updates_per_rollout": 2,
            "prefix.clip_ratio": limited,
            "loss.clip_high": 0.01,
            "micro_batch_tokens": 150,
        }
    )
    # The same problem twice, so that the first window moves what the second one is about.
    again = replace(problems[0], visit=1)
    rows = rows_for(methods.PREFIX_RFT, [problems[0], again], config, scores=[0, 0, 0, 1, 0, 0, 1, 1])
    values = [-0.25, -0.25, -0.25, 0.75, -0.5, -0.5, 0.5, 0.5]
    model = copy.deepcopy(base)
    with torch.no_grad():
        old = [token_stats(model, row, 1.0)[0] for row in rows]
    lr = 2.0
    result, gradients, _ = run(base, config, methods.PREFIX_RFT, rows, lr=lr)
    assert len(gradients) == 2
    for part, gradient in zip((slice(0, 4), slice(4, 8)), gradients, strict=True):
        _, expected = reference(model, rows[part], config, "prefix_rft", old=old[part], advantages=values[part])
        same(gradient, expected)
        with torch.no_grad():
            at = 0
            for parameter in model.parameters():
                parameter -= lr * expected[at : at + parameter.numel()].view_as(parameter)
                at += parameter.numel()
    first = sum(len(row.response_ids) for row in rows[:4])
    assert not result.limited[:first].any(), "at the first window every ratio is 1"
    prefix = result.kinds == TokenKind.PREFIX
    assert result.limited[first:][~prefix[first:]].any()
    assert bool(result.limited[first:][prefix[first:]].any()) == limited


def test_first_update_has_ratio_one_with_and_without_old_logp(base, small, problems):
    """With one window the old log-probabilities are the current ones; with several they cost a forward pass."""
    config = small()
    rows = rows_for(methods.PREFIX_RFT, problems[:4], config)
    result, _, _ = run(base, config, methods.PREFIX_RFT, rows)
    assert not result.limited.any()
    values = torch.where(result.kept, result.advantages, 0.0)
    assert result.loss == pytest.approx(-float(values.sum()) / (len(rows) * 48), rel=1e-5)
    cut = config.replace(**{"loss.updates_per_rollout": 2})
    both, (first, _), _ = run(base, cut, methods.PREFIX_RFT, rows)
    _, (alone,), _ = run(base, config, methods.PREFIX_RFT, rows[: len(rows) // 2])
    same(first, alone)
    assert not both.limited.any(), "with lr 0 the second window's ratios are 1 too"


@pytest.mark.parametrize(("windows", "found"), [(2, [12, 8]), (3, [8, 8, 4]), (50, [4] * 5)])
def test_windows_leave_the_rows_of_a_problem_together(base, small, problems, windows, found):
    config = small(**{"loss.updates_per_rollout": windows})
    rows = rows_for(methods.RFT, problems[:5], config, scores=[1, 0, 0, 1] * 5)
    assert [len(window) for window in update._cut(rows, windows)] == found
    result, gradients, _ = run(base, config, methods.RFT, rows)
    assert len(gradients) == len(found)
    assert len(result.kinds) == sum(len(row.response_ids) for row in rows)


@pytest.mark.parametrize("name", ["sft", "relift_sft"])
def test_a_supervised_update_is_one_update(base, small, problems, name):
    rows = rows_for(STAGES[name], problems[:4], small())
    _, gradients, _ = run(base, small(**{"loss.updates_per_rollout": 2}), STAGES[name], rows)
    assert len(gradients) == 1


# ---------------------------------------------------------------- denominators, kinds, degenerate steps


def test_kinds_without_a_loss_carry_no_gradient_but_count(base, small, problems):
    config = small()
    frozen = config.replace(**{"prefix.loss": "frozen"})
    rows = rows_for(methods.PREFIX_RFT, problems[:3], config)
    result, (gradient,), _ = run(base, frozen, methods.PREFIX_RFT, rows)
    loss, expected = reference(copy.deepcopy(base), rows, config, "frozen")
    same(gradient, expected)
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert not result.ranked.any()
    assert result.kept.all()


def test_nll_is_the_token_mean_of_the_whole_window(base, small, problems):
    config = small(**{"micro_batch_tokens": 1})
    rows = rows_for(methods.SFT, problems, config)
    lengths = {len(row.response_ids) for row in rows}
    assert len(lengths) > 1, "with equal lengths a mean of means would pass too"
    result, _, _ = run(base, config, methods.SFT, rows)
    assert result.loss == pytest.approx(-float(result.logp.double().mean()), rel=1e-6)
    assert not result.ranked.any()
    assert (result.kinds == TokenKind.PREFIX).all()
    assert (result.advantages == 0).all()


def test_problems_without_demonstrations_make_prefix_rft_plain_rft(base, small, problems_without):
    config = small()
    rows = rows_for(methods.PREFIX_RFT, problems_without[:3], config)
    assert len(rows) == 3 * config.rollout.rows_per_problem
    result, (gradient,), _ = run(base, config, methods.PREFIX_RFT, rows)
    _, (expected,), _ = run(base, config, methods.RFT, rows_for(methods.RFT, problems_without[:3], config))
    same(gradient, expected, 1e-12)
    assert (result.kinds == TokenKind.ON_POLICY).all()


@pytest.mark.parametrize("score", [0.0, 1.0])
@pytest.mark.parametrize("name", ["rft", "prefix_rft"])
def test_equal_scores_give_no_gradient(base, small, problems, name, score):
    config = small()
    rows = rows_for(STAGES[name], problems[:2], config, scores=[score] * 8)
    result, (gradient,), _ = run(base, config, STAGES[name], rows)
    assert gradient.abs().max() == 0
    assert (result.loss, result.grad_norm) == (0, 0)
    assert (result.advantages == 0).all()


@pytest.mark.parametrize("tokens", [60, 100_000])
def test_entropy_bonus_raises_the_entropy_of_sampled_tokens(base, small, problems, tokens):
    config = small(**{"loss.entropy_bonus": 0.1, "micro_batch_tokens": tokens})
    rows = rows_for(methods.PREFIX_RFT, problems[:2], config, scores=[0] * 8)
    result, (gradient,), model = run(base, config, methods.PREFIX_RFT, rows, lr=0.5)
    loss, expected = reference(copy.deepcopy(base), rows, config, "prefix_rft")
    same(gradient, expected)
    assert result.loss == pytest.approx(loss, rel=1e-6)

    def entropy(model):
        parts = [token_stats(model, row, 1.0)[1][len(row.prefix_ids) :] for row in rows]
        return float(torch.cat(parts).detach().mean())

    assert entropy(model) > entropy(base)
    assert result.loss == pytest.approx(-0.1 * entropy(base), rel=1e-5)


def test_descending_the_loss_raises_what_was_rewarded(base, small, problems):
    config = small()
    rows = rows_for(methods.RFT, problems[:1], config, scores=[1, 0, 0, 0])
    _, _, model = run(base, config, methods.RFT, rows, lr=0.5)
    change = [float((token_stats(model, r, 1.0)[0] - token_stats(base, r, 1.0)[0]).detach().sum()) for r in rows]
    assert change[0] > 0
    assert change[0] > max(change[1:])


def test_every_estimator_reaches_the_tokens(base, small, problems):
    """Scores 1, 0, 0 and 1 with the prefix: m8 = 1/2, m0 = 1/3."""
    expected = {
        "dr_grpo": ([0.5, -0.5, -0.5], 0.5, 0.5),
        "dr_grpo_prefix": ([2 / 3, -1 / 3, -1 / 3], 1.0, 2 / 3),
        "dr_grpo_prefix_v2": ([2 / 3, -1 / 3, -1 / 3], 0.0, -1 / 3),
    }
    for name, (plain, continuation, prefix) in expected.items():
        config = small(**{"loss.advantage": name})
        rows = rows_for(methods.PREFIX_RFT, problems[:1], config, scores=[1, 0, 0, 1])
        result, _, _ = run(base, config, methods.PREFIX_RFT, rows)
        at = np.cumsum([0, *[len(row.response_ids) for row in rows]])
        assert [float(result.advantages[i]) for i in at[:3]] == pytest.approx(plain)
        last = result.advantages[at[3] :]
        kinds = result.kinds[at[3] :]
        assert last[kinds == TokenKind.PREFIX].tolist() == pytest.approx([prefix] * len(rows[3].prefix_ids))
        assert last[kinds == TokenKind.CONTINUATION].tolist() == pytest.approx(
            [continuation] * len(rows[3].sampled_ids)
        )


def test_gradient_norm_is_limited_after_it_was_noted(base, small, problems):
    config = small()
    rows = rows_for(methods.SFT, problems[:2], config)
    _, (free,), _ = run(base, config, methods.SFT, rows)
    model = copy.deepcopy(base)
    optimizer = Recorder(model)
    section = config.sft.model_copy(update={"grad_clip": 0.01})
    result = Updater(model, config, pad_id=0).update(rows, methods.SFT, section, optimizer, 0)
    assert result.grad_norm == pytest.approx(float(free.norm()), rel=1e-6)
    assert float(optimizer.gradients[0].norm()) == pytest.approx(0.01, rel=1e-3)
    same(optimizer.gradients[0] / 0.01 * free.norm(), free, 1e-3)


@pytest.mark.parametrize(("fraction", "warmup"), [(0.4, 4), (0.0, 0), (0.05, 1), (1.0, 10)])
def test_learning_rate_warms_up_and_decays(fraction, warmup):
    """After the warm-up it is that of transformers; the first steps rise to the peak and waste none at 0."""
    section = OptimConfig(steps=10, lr=2.0, warmup_fraction=fraction, decay="cosine")
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = get_cosine_schedule_with_warmup(theirs, warmup, 10)
    for step in range(10):
        wanted = schedule.get_last_lr()[0] if step >= warmup else 2.0 * (step + 1) / warmup
        assert update.learning_rate(section, step) == pytest.approx(wanted)
        theirs.step()
        schedule.step()
    constant = section.model_copy(update={"decay": "constant"})
    assert [update.learning_rate(constant, step) for step in range(warmup, 10)] == [2.0] * (10 - warmup)


def test_the_learning_rate_of_a_step_reaches_the_optimizer(base, small, problems):
    config = small()
    rows = rows_for(methods.SFT, problems[:1], config)
    section = config.sft.model_copy(update={"steps": 10, "lr": 2.0, "warmup_fraction": 0.4})
    optimizer = Recorder(copy.deepcopy(base))
    Updater(copy.deepcopy(base), config, pad_id=0).update(rows, methods.SFT, section, optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == update.learning_rate(section, 1) == 1.0


def test_names_of_kinds_cover_all_response_tokens():
    assert set(KIND_NAMES) == set(TokenKind) - {TokenKind.CONTEXT}


# ---------------------------------------------------------------- importance weights


def test_importance_weights_by_hand(base, small, problems):
    """Weights 1/2, 1, 3 -> 2, 4 -> 2 and 1/4 on five sampled tokens; A = +1/2 and -1/2, normaliser 2 * 48."""
    config = small(**{"rollout.rows_per_problem": 2, "rollout.importance_cap": 2.0})
    rows = [
        Row(problem=problems[0], row=0, sampled_ids=[5, 1], score=1.0),
        Row(problem=problems[0], row=1, sampled_ids=[7, 8, 1], score=0.0),
    ]
    ratios = [[0.5, 1.0], [3.0, 4.0, 0.25]]
    model = copy.deepcopy(base)
    total = torch.zeros((), dtype=torch.float64)
    for row, ratio, a in zip(rows, ratios, (0.5, -0.5), strict=True):
        logp = token_stats(model, row, 1.0)[0]
        row.engine_logp = (logp.detach() - torch.tensor(ratio, dtype=torch.float64).log()).tolist()
        total = total - (a * torch.tensor([min(r, 2.0) for r in ratio], dtype=torch.float64) * logp).sum() / 96
    total.backward()
    result, (gradient,), _ = run(base, config, methods.RFT, rows)
    same(gradient, torch.cat([p.grad.flatten() for p in model.parameters()]))
    # The ratio of the update itself is 1, so the loss is the sum of -A w: (-1.5 + 4.25) / 2 / 96.
    assert result.loss == pytest.approx(2.75 / 2 / 96, rel=1e-6)


def test_prefix_tokens_have_no_importance_weight(base, small, problems):
    config = small(**{"prefix.keep": "all"})
    rows = rows_for(methods.PREFIX_RFT, problems[:3], config)
    plain, (whole,), _ = run(base, config, methods.PREFIX_RFT, rows)
    for row, (logp, _) in zip(rows, [token_stats(base, row, 1.0) for row in rows], strict=True):
        row.engine_logp = logp.detach()[len(row.prefix_ids) :].tolist()
    weighted = config.replace(**{"rollout.importance_cap": 2.0})
    result, (gradient,), _ = run(base, weighted, methods.PREFIX_RFT, rows)
    same(gradient, whole)
    assert result.loss == pytest.approx(plain.loss, rel=1e-5)
    # An engine that was sure of what it sampled: weights of about e^-40, and only the prefixes are left.
    for row in rows:
        row.engine_logp = [logp + 40 for logp in row.engine_logp]
    _, (rest,), _ = run(base, weighted, methods.PREFIX_RFT, rows)
    assert (result.kinds == TokenKind.PREFIX).any()
    model = copy.deepcopy(base)
    values = reference_advantages(rows)
    only = sum(
        -a * token_stats(model, row, 1.0)[0][: len(row.prefix_ids)].sum()
        for row, a in zip(rows, values, strict=True)
        if row.prefix_ids
    ) / (len(rows) * config.rollout.max_response_tokens)
    only.backward()
    same(rest, torch.cat([p.grad.flatten() for p in model.parameters()]))


def test_several_losses_of_a_kind_add_up_each_over_its_own_normaliser(base, small, problems):
    config = small(method="prefix_rft")
    surrogate, nll = methods.PREFIX_RFT.losses(config)[TokenKind.PREFIX], methods.NegativeLogLikelihood(weight=0.25)

    def stage(*given):
        return replace(methods.PREFIX_RFT, losses=lambda _: {TokenKind.PREFIX: given[0] if len(given) == 1 else given})

    rows = rows_for(methods.PREFIX_RFT, problems, config)
    both, [gradient], _ = run(base, config, stage(surrogate, nll), rows)
    alone = [run(base, config, stage(one), rows) for one in (surrogate, nll)]
    same(gradient, alone[0][1][0] + alone[1][1][0], 1e-5)
    assert both.loss == pytest.approx(alone[0][0].loss + alone[1][0].loss, rel=1e-5)
    # A token whose advantage is 0 still has the gradient of its NLL.
    idle = rows_for(methods.PREFIX_RFT, problems, config, scores=[1.0] * len(rows))
    assert run(base, config, stage(surrogate, nll), idle)[1][0].norm() > 0
