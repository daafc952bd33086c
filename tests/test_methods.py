"""Every method's loss, and the gradient of each of its token kinds, against coefficients worked out by hand.

At the first update every ratio is 1, so the gradient of a token's loss is a number times the gradient of its
log-probability. The cases give these numbers, from scores that make them easy; the model is the shipped policy in
float64. Rewards: the plain rows score 1, 0, 0 (and 0), a demonstration scores 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch

from prefix_rft_lab import methods
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import encode_problems
from prefix_rft_lab.types import KIND_NAMES, Row, TokenKind
from prefix_rft_lab.update import Updater

PREFIX, CONTINUATION, ON_POLICY = TokenKind.PREFIX, TokenKind.CONTINUATION, TokenKind.ON_POLICY
SAMPLED = ([5, 9, 1], [7, 8, 6, 1], [11, 1], [12, 13, 14, 1])
"""Tokens of the sampled rows; 1 ends a response."""
LIMIT = 48
"""rollout.max_response_tokens of the small config: every row counts as this many tokens in a Dr.GRPO denominator."""


@pytest.fixture(scope="module")
def base(tiny):
    return copy.deepcopy(tiny[0]).double()


@pytest.fixture(scope="module")
def problem(tiny, small):
    found = next(p for p in chains.problems("train", 50) if "#" in p.prompt)
    return encode_problems(tiny[1], [found], small())[0][0]


def rows_of(stage, problem, config, scores=(1.0, 0.0, 0.0, 0.0), step=0):
    """The rows that the stage's own plan gives, with fixed tokens and scores in place of rollouts."""
    rows = stage.rows(problem, step, config)
    for wave in sorted({row.wave for row in rows}):
        for row, ids, score in zip(rows, (*SAMPLED, []), (*scores, 1.0), strict=False):
            if row.wave == wave:
                row.sampled_ids, row.score = ([], 1.0) if row.is_demonstration else (list(ids), score)
                row.solved = row.score == 1.0
        rows = rows if stage.decide is None else stage.decide(rows, wave, config)
    return rows


def token_stats(model, rows):
    """[(logp, entropy)] of the response tokens of each row, row by row."""
    found = []
    for row in rows:
        start = len(row.problem.prompt_ids)
        ids = torch.tensor([row.problem.prompt_ids + row.response_ids])
        log_probs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        at = torch.arange(start, ids.shape[1])
        found.append((log_probs[at - 1, ids[0, at]], -(log_probs.exp() * log_probs).sum(-1)[at - 1]))
    return found


class Capture(torch.optim.SGD):
    """Notes the gradient and moves nothing."""

    def step(self, closure=None):
        parameters = self.param_groups[0]["params"]
        self.gradient = torch.cat([p.grad.flatten().clone() for p in parameters])


def update(base, config, stage, rows):
    """(result, gradient) of one update."""
    model = copy.deepcopy(base)
    optimizer = Capture(model.parameters(), lr=0.0)
    section = config.rl.model_copy(update={"grad_clip": 1e9})
    result = Updater(model, config, pad_id=0).update(rows, stage, section, optimizer, 0, diagnose=True)
    return result, optimizer.gradient


def gradient_of(model, value):
    model.zero_grad()
    value.backward()
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


@dataclass
class Expected:
    """What a kind adds to the loss: ``loss`` itself, and ``surrogate`` whose gradient must be the kind's."""

    loss: torch.Tensor
    surrogate: torch.Tensor


def policy(stats, rows, kind, advantages, denominator, keep=None):
    """-A / denominator a token; at ratio 1 the loss is the sum of these numbers, the gradient theirs times d log p."""
    loss = torch.zeros(())
    surrogate = torch.zeros((), dtype=torch.float64)
    for i, (row, (logp, _), advantage) in enumerate(zip(rows, stats, advantages, strict=True)):
        for t, (token_kind, value) in enumerate(zip(row.kinds, logp, strict=True)):
            if token_kind is kind and (keep is None or keep[i][t]):
                loss = loss - advantage / denominator
                surrogate = surrogate - advantage / denominator * value
    return Expected(loss, surrogate)


def nll(stats, rows, weight=1.0, entropy_weight=0.0):
    """weight * mean over all demonstration tokens of NLL - entropy_weight * H."""
    logp = torch.cat([values[: len(row.prefix_ids)] for row, (values, _) in zip(rows, stats, strict=True)])
    entropy = torch.cat([values[: len(row.prefix_ids)] for row, (_, values) in zip(rows, stats, strict=True)])
    loss = weight * (-logp - entropy_weight * entropy).mean()
    return Expected(loss.detach(), loss)


def highest(stats, rows, kind, share):
    """Tokens of a kind that stay when int(M * (1 - share)) of lowest entropy go; True elsewhere."""
    places = [(i, t) for i, row in enumerate(rows) for t, k in enumerate(row.kinds) if k is kind]
    places.sort(key=lambda place: float(stats[place[0]][1][place[1]].detach()))
    dropped = set(places[: int(len(places) * (1 - share) + 1e-9)])
    return [[(i, t) not in dropped for t in range(len(row.response_ids))] for i, row in enumerate(rows)]


def sft(stats, rows, config):
    return {PREFIX: nll(stats, rows)}


def rft(stats, rows, config):
    return {ON_POLICY: policy(stats, rows, ON_POLICY, (0.75, -0.25, -0.25, -0.25), 4 * LIMIT)}


def rft_clip(stats, rows, config):
    keep = highest(stats, rows, ON_POLICY, 0.2)
    return {ON_POLICY: policy(stats, rows, ON_POLICY, (0.75, -0.25, -0.25, -0.25), 4 * LIMIT, keep)}


def prefix_rft(stats, rows, config):
    advantages, size = (0.75, -0.25, -0.25, -0.25), 4 * LIMIT
    found = {kind: policy(stats, rows, kind, advantages, size) for kind in (ON_POLICY, CONTINUATION)}
    if config.prefix.loss == "advantage":
        found[PREFIX] = policy(stats, rows, PREFIX, advantages, size, highest(stats, rows, PREFIX, 0.2))
    elif config.prefix.loss == "static":
        found[PREFIX] = nll(stats, rows, weight=0.001)
    return found


def dr_po(stats, rows, config):
    return {CONTINUATION: policy(stats, rows, CONTINUATION, (0.75, -0.25, -0.25, -0.25), 4 * LIMIT)}


def rl_sft_loss(stats, rows, config):
    # The baseline is the mean of the three plain rows, and theirs alone is the denominator.
    return {
        ON_POLICY: policy(stats, rows, ON_POLICY, (2 / 3, -1 / 3, -1 / 3, 9.0), 3 * LIMIT),
        PREFIX: nll(stats, rows),
    }


def luffy(stats, rows, config):
    # The demonstration scores 1, so m8 = 1/2; f(p) = p / (p + 0.1).
    probs = stats[3][0].exp()
    loss = (-0.5 * probs / (probs + 0.1)).sum() / (4 * LIMIT)
    # Its gradient, as LUFFY's paper gives it: -A * 0.1 p / (p + 0.1)^2 * d log p.
    surrogate = (-0.5 * (0.1 * probs / (probs + 0.1) ** 2).detach() * stats[3][0]).sum() / (4 * LIMIT)
    return {
        ON_POLICY: policy(stats, rows, ON_POLICY, (0.5, -0.5, -0.5, 0.5), 4 * LIMIT),
        PREFIX: Expected(loss.detach(), surrogate),
    }


def relift_sft(stats, rows, config):
    return {PREFIX: nll(stats, rows, entropy_weight=0.001)}


def uft(stats, rows, config):
    # Mean 1/4, deviations 3/4 and three times -1/4: sample std 1/2. Token mean over the 13 sampled tokens.
    advantages = [value / (0.5 + 1e-6) for value in (0.75, -0.25, -0.25, -0.25)]
    return {
        CONTINUATION: policy(stats, rows, CONTINUATION, advantages, 13),
        PREFIX: nll(stats, rows, weight=0.001),
    }


def dft(stats, rows, config):
    # The gradient of a token is -p / n times that of its log-probability; p itself has none.
    [(logp, _)] = stats
    loss = -(logp.exp().detach() * logp).mean()
    return {PREFIX: Expected(loss.detach(), loss)}


def hpt(stats, rows, config):
    # One of four rows is right: more than none, not more than one.
    assert [row.is_demonstration for row in rows] == ([True] if config.hpt.gate else [False] * 4)
    return {PREFIX: nll(stats, rows, weight=config.hpt.weight)} if config.hpt.gate else rft(stats, rows, config)


def chord(stats, rows, config):
    # Plain scores 1, 0, 0, 0: mean 1/4, sample deviation 1/2. Token mean over the 13 sampled tokens; update() is at step 0.
    share = config.chord.phi_mu if "phi" in config.method else 0.9
    advantages = [(1 - share) * value / (0.5 + 1e-6) for value in (0.75, -0.25, -0.25, -0.25)]
    p = stats[4][0].exp().detach()
    weight = p * (1 - p) if "phi" in config.method else 1.0
    loss = -share * (weight * stats[4][0]).mean()
    return {ON_POLICY: policy(stats, rows, ON_POLICY, [*advantages, 0.0], 13), PREFIX: Expected(loss.detach(), loss)}


def trapo(stats, rows, config):
    # One of one right: the second row is plain. One of two, and of three: half a demonstration, then the whole, which is right.
    assert [row.prefix_ratio for row in rows] == [0, 0, 0.5, 1]
    advantages, size = (0.5, -0.5, -0.5, 0.5), 4 * LIMIT
    logp = torch.cat([logp[: len(row.prefix_ids)] for row, (logp, _) in zip(rows, stats, strict=True)])
    weight = (logp.exp().detach() / 0.1).clamp(max=1)
    assert 0 < (weight < 1).sum() < len(weight)
    loss = -(weight * logp).sum() / size
    found = {kind: policy(stats, rows, kind, advantages, size) for kind in (ON_POLICY, CONTINUATION)}
    return {**found, PREFIX: Expected(loss.detach(), loss)}


def stage_of(name):
    return METHODS[name].stages[0]


CASES = {
    "sft": (stage_of("sft"), {}, sft),
    "rft": (stage_of("rft"), {}, rft),
    "rft_clip": (stage_of("rft_clip"), {}, rft_clip),
    "prefix_rft": (stage_of("prefix_rft"), {}, prefix_rft),
    "prefix_rft static": (stage_of("prefix_rft"), {"prefix.loss": "static"}, prefix_rft),
    "prefix_rft frozen": (stage_of("prefix_rft"), {"prefix.loss": "frozen"}, prefix_rft),
    "dr_po": (stage_of("dr_po"), {}, dr_po),
    "rl_sft_loss": (stage_of("rl_sft_loss"), {}, rl_sft_loss),
    "luffy": (stage_of("luffy"), {}, luffy),
    "relift": (stage_of("relift"), {}, rft),
    "relift sft": (stage_of("relift").replay.stage, {}, relift_sft),
    "uft": (stage_of("uft"), {"uft.low": 0.95, "rl.steps": 100}, uft),
    "dft": (stage_of("dft"), {}, dft),
    "hpt": (stage_of("hpt"), {}, hpt),
    "hpt imitates": (stage_of("hpt"), {"hpt.gate": 1, "hpt.weight": 0.3}, hpt),
    "dynamic": (stage_of("dynamic"), {}, rft),
    "trapo": (stage_of("trapo"), {}, trapo),
    "chord_mu": (stage_of("chord_mu"), {"method": "chord_mu"}, chord),
    "chord_phi": (stage_of("chord_phi"), {"method": "chord_phi"}, chord),
}


def test_every_stage_has_a_case():
    stages = {stage.name for method in METHODS.values() for stage in method.stages}
    assert {stage.name for stage, _, _ in CASES.values()} == stages | {"relift_sft"}


@pytest.mark.parametrize("tokens", [60, 100_000])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_of_each_kind_by_hand(base, small, problem, name, tokens):
    stage, changes, by_hand = CASES[name]
    config = small(micro_batch_tokens=tokens, **changes)
    assert (config.rollout.rows_per_problem, config.rollout.max_response_tokens) == (4, LIMIT)
    rows = rows_of(stage, problem, config)
    model = copy.deepcopy(base)
    expected = by_hand(token_stats(model, rows), rows, config)
    result, gradient = update(base, config, stage, rows)
    assert result.loss == pytest.approx(float(sum(part.loss for part in expected.values())), rel=1e-6, abs=1e-12)

    parts = {}
    for kind in expected:
        parts[kind] = gradient_of(model, by_hand(token_stats(model, rows), rows, config)[kind].surrogate)
        assert parts[kind].norm() > 0
        # The stage with this kind alone must have the kind's gradient, and so says the diagnosis of the whole.
        alone = replace(stage, losses=lambda config, kind=kind: {kind: stage.losses(config)[kind]})
        _, own = update(base, config, alone, rows)
        assert (own - parts[kind]).norm() <= 1e-6 * parts[kind].norm(), KIND_NAMES[kind]
        assert result.grad_norms[kind] == pytest.approx(float(parts[kind].norm()), rel=1e-6)
    whole = sum(parts.values())
    assert (gradient - whole).norm() <= 1e-6 * whole.norm()
    assert {kind for kind, norm in result.grad_norms.items() if norm > 0} == set(expected), "no other kind is trained"


def test_frozen_prefixes_still_count_in_the_denominator(base, small, problem):
    """4 rows * 48 tokens, whatever the prefix does: the gradients of the sampled tokens are those of Prefix-RFT."""
    stage = stage_of("prefix_rft")
    rows = rows_of(stage, problem, small())
    trained, _ = update(base, small(), stage, rows)
    frozen, _ = update(base, small(**{"prefix.loss": "frozen"}), stage, rows)
    for kind in (ON_POLICY, CONTINUATION):
        assert frozen.grad_norms[kind] == pytest.approx(trained.grad_norms[kind], rel=1e-9)
    assert PREFIX in trained.grad_norms and PREFIX not in frozen.grad_norms


def test_diagnosis_changes_no_bit(tiny, small, problem):
    config, stage = small(micro_batch_tokens=70), stage_of("prefix_rft")

    def weights(diagnose):
        model = copy.deepcopy(tiny[0])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        result = Updater(model, config, pad_id=0).update(
            rows_of(stage, problem, config), stage, config.rl, optimizer, 0, diagnose=diagnose
        )
        return result, torch.cat([p.flatten() for p in model.parameters()])

    (plain, before), (diagnosed, after) = weights(False), weights(True)
    assert torch.equal(before, after)
    assert plain.grad_norm == diagnosed.grad_norm
    assert (plain.kl, plain.grad_norms) == (None, {})
    assert diagnosed.kl > 0 and diagnosed.entropy_change != 0


def test_kl_is_that_of_the_samples_before_and_after(base, small, problem):
    """mean of r - 1 - log r over the sampled tokens, r = new / old."""
    config, stage = small(), stage_of("prefix_rft")
    rows = rows_of(stage, problem, config)
    model = copy.deepcopy(base)
    section = config.rl.model_copy(update={"grad_clip": 1e9, "lr": 0.3})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    result = Updater(model, config, pad_id=0).update(rows, stage, section, optimizer, 0, diagnose=True)
    with torch.no_grad():
        before, after = token_stats(base, rows), token_stats(model, rows)
    at = [len(row.prefix_ids) for row in rows]
    ratio = torch.cat([(a[0] - b[0])[n:] for a, b, n in zip(after, before, at, strict=True)])
    assert result.kl == pytest.approx(float((ratio.exp() - 1 - ratio).mean()), rel=1e-5)
    change = torch.cat([(a[1] - b[1])[n:] for a, b, n in zip(after, before, at, strict=True)])
    assert result.entropy_change == pytest.approx(float(change.mean()), rel=1e-4)


# ---------------------------------------------------------------- published normalisation


def test_micro_batch_normalisation_is_the_published_one(base, small, tiny):
    """RFT: sum / max_response_tokens in each micro-batch, weighted by its share of the rows. SFT: mean of the means."""
    problems = encode_problems(tiny[1], chains.problems("train", 5), small())[0]
    config = small(**{"loss.normalise": "micro_batch", "micro_batch_tokens": 100})
    for name in ("rft", "sft"):
        stage = stage_of(name)
        rows = [row for one in problems for row in rows_of(stage, one, config)]
        updater = Updater(base, config, pad_id=0)
        batches = updater.micro_batches(rows)
        assert len({len(batch) for batch in batches}) > 1, "equal micro-batches would hide the fault"
        result, gradient = update(base, config, stage, rows)
        model = copy.deepcopy(base)
        stats = token_stats(model, rows)
        if name == "rft":
            advantages = [0.75, -0.25, -0.25, -0.25] * len(problems)
            sums = [sum(-advantages[i] * stats[i][0].sum() for i in batch) for batch in batches]
            loss = sum(s / LIMIT * len(batch) / len(rows) for s, batch in zip(sums, batches, strict=True))
        else:
            loss = sum(-torch.cat([stats[i][0] for i in batch]).mean() for batch in batches) / len(batches)
            assert result.loss == pytest.approx(float(loss.detach()), rel=1e-6)
        expected = gradient_of(model, loss)
        assert (gradient - expected).norm() <= 1e-6 * expected.norm()
        _, once = update(base, small(micro_batch_tokens=100), stage, rows)
        assert (gradient - once).norm() > 0.01 * once.norm(), "and it is not the loss of the window"


# ---------------------------------------------------------------- settings that make no sense


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "prefix_sft"}, "method = 'prefix_sft' is not known; use one of base, sft, rft"),
        ({"method": "rft", "prefix.loss": "static"}, "prefix.loss = 'static' has no meaning for method 'rft'"),
        ({"method": "dr_po", "prefix.loss": "frozen"}, "or use method 'prefix_rft'"),
        ({"method": "uft", "loss.advantage": "grpo_prefix"}, "method 'uft', which is defined with 'grpo'"),
        ({"rollout.hybrid_rows": 0}, "rollout.hybrid_rows = 0 leaves method 'prefix_rft' without prefixes"),
        ({"method": "luffy", "rollout.rows_per_problem": 1}, "so that there are at least 2"),
        ({"method": "rl_sft_loss", "rollout.rows_per_problem": 2}, "1 rows for the baseline of 'plain_baseline'"),
        ({"method": "dr_po", "loss.advantage": "plain_baseline"}, "0 rows for the baseline of 'plain_baseline'"),
        ({"method": "trapo", "rollout.rows_per_problem": 3}, "rows_per_problem = 3 is too few for method 'trapo'"),
        ({"method": "hpt", "hpt.gate": 4}, "hpt.gate = 4 is not below rollout.rows_per_problem = 4, so every"),
        ({"method": "luffy", "loss.advantage": "dr_grpo_prefix_v2"}, "defined with 'dr_grpo' or 'grpo' or 'plain_base"),
        ({"loss.updates_per_rollout": 3}, "more than rollout.problems_per_step = 2"),
        ({"prefix.high": 0.0, "prefix.low": 0.0}, "prefix.high = 0 leaves method 'prefix_rft' without prefixes"),
        ({"method": "uft", "uft.hint_steps": 0}, "uft.hint_steps = 0 leaves method 'uft' without hints"),
        ({"uft.low": 0.9, "uft.high": 0.5}, "uft.low = 0.9 lies above uft.high = 0.5"),
        ({"prefix.schedule": "uniform", "prefix.delay_steps": 5}, "no meaning with prefix.schedule = 'uniform'"),
    ],
)
def test_settings_without_meaning_are_refused(small, changes, words):
    with pytest.raises(ConfigError) as caught:
        methods.check(small(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_estimator_that_is_not_known_is_refused(small, monkeypatch):
    stage = replace(stage_of("rft"), advantages=("median",))
    monkeypatch.setitem(METHODS, "mine", methods.Method(title="Mine", stages=(stage,)))
    with pytest.raises(ConfigError, match=r"loss.advantage = 'median' is not known; use one of dr_grpo, "):
        methods.check(small(method="mine"))
    with pytest.raises(ConfigError, match=r"loss.advantage = 'gae' is not known; use one of dr_grpo, "):
        methods.check(small(method="rft", **{"loss.advantage": "gae"}))


def test_luffy_has_no_clip_where_the_policy_has_moved(base, small, problem):
    """In the second window ratios are not 1: sampled tokens are trained on -A r whatever r, demonstrations on f(p) alone."""
    stage = stage_of("luffy")
    changes = {"loss.updates_per_rollout": 2, "loss.clip_low": 0.001, "loss.clip_high": 0.001, "loss.dual_clip": 1.001}
    config = small(**changes)
    rows = rows_of(stage, problem, config) + rows_of(stage, replace(problem, visit=1), config)
    model = copy.deepcopy(base)
    with torch.no_grad():
        old = [logp for logp, _ in token_stats(model, rows[4:])]
    gradients = []

    class Step(torch.optim.SGD):
        def step(self, closure=None):
            gradients.append(torch.cat([p.grad.flatten().clone() for p in self.param_groups[0]["params"]]))
            if len(gradients) == 2:
                self.before_second = [p.detach().clone() for p in self.param_groups[0]["params"]]
            super().step()

    optimizer = Step(model.parameters(), lr=2.0)
    section = config.rl.model_copy(update={"grad_clip": 1e9, "lr": 2.0})
    result = Updater(model, config, pad_id=0).update(rows, stage, section, optimizer, 0)
    moved = copy.deepcopy(base)
    with torch.no_grad():
        for parameter, value in zip(moved.parameters(), optimizer.before_second, strict=True):
            parameter.copy_(value)
    stats = token_stats(moved, rows[4:])
    ratios = [(logp - before).exp() for (logp, _), before in zip(stats[:3], old[:3], strict=True)]
    assert max(float((ratio.detach() - 1).abs().max()) for ratio in ratios) > 0.01, "else nothing could be clipped"
    loss = sum(-a * ratio.sum() for a, ratio in zip((0.5, -0.5, -0.5), ratios, strict=True))
    probs = stats[3][0].exp()
    loss = (loss - 0.5 * (probs / (probs + 0.1)).sum()) / (4 * LIMIT)
    expected = gradient_of(moved, loss)
    assert (gradients[1] - expected).norm() <= 1e-6 * expected.norm()
    assert not result.limited.any()


def test_the_share_of_imitation_moves_with_the_steps(base, small, problem):
    """CHORD-mu at step 2 of a decay over 4: mu = 0.05 + 0.85 / 2, so both sides' gradients are those of step 0 times a ratio."""
    config, stage = small(method="chord_mu"), stage_of("chord_mu")
    rows, norms = rows_of(stage, problem, config), []
    for step in (0, 2, 4):
        optimizer = Capture((model := copy.deepcopy(base)).parameters(), lr=0.0)
        result = Updater(model, config, pad_id=0).update(rows, stage, config.rl, optimizer, step, diagnose=True)
        norms.append(result.grad_norms)
    assert config.rl.steps == 4
    for step, share in enumerate((0.9, 0.475, 0.05)):
        assert norms[step][PREFIX] == pytest.approx(norms[0][PREFIX] * share / 0.9, rel=1e-6)
        assert norms[step][ON_POLICY] == pytest.approx(norms[0][ON_POLICY] * (1 - share) / 0.1, rel=1e-6)


def test_every_method_accepts_the_presets(small):
    for name in METHODS:
        assert methods.check(small(method=name)) is METHODS[name]


# ---------------------------------------------------------------- a method of your own


def test_rows_of_another_declaration_train_as_declared(base, small, problem):
    """Imitation with a quarter of the weight on the first half: a loss that no built-in method has."""

    class HalfWeighted(methods.NegativeLogLikelihood):
        def tokens(self, inputs, config):
            found = super().tokens(inputs, config)
            weight = torch.ones_like(found.loss)
            weight[: len(weight) // 2] = 0.25
            return methods.TokenLosses(loss=found.loss * weight, clipped=found.clipped)

    stage = replace(stage_of("sft"), name="mine", losses=lambda config: {PREFIX: HalfWeighted()})
    config = small()
    rows: list[Row] = rows_of(stage, problem, config)
    result, _ = update(base, config, stage, rows)
    logp = token_stats(base, rows)[0][0].detach()
    half = len(logp) // 2
    assert result.loss == pytest.approx(-float(logp[:half].sum() / 4 + logp[half:].sum()) / len(logp), rel=1e-6)
