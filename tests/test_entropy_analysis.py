"""Each function on a table small enough to work out by hand; what none of them takes; and the prediction's order."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from prefix_rft_lab import entropy_analysis as analysis
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.entropy import entropy_and_logp
from prefix_rft_lab.runs import FOLLOWED, TOKEN_COLUMNS, RunError


def row(kinds, entropies, *, step=0, problem="a", number=0, kept=None, score=1.0, ids=None, advantage=0.5, **more):
    """A row of a token table: kinds as letters (p, c, o), one entropy a token."""
    names = {"p": "prefix", "c": "continuation", "o": "on_policy"}
    ids = list(range(len(kinds))) if ids is None else ids
    return pd.DataFrame(
        {
            "run": "one",
            "step": step,
            "problem": problem,
            "row": number,
            "position": range(len(kinds)),
            "token_id": ids,
            "text": [chr(97 + i) for i in ids],
            "kind": [names[letter] for letter in kinds],
            "entropy": entropies,
            "logp": [-1.0] * len(kinds),
            "kept": [True] * len(kinds) if kept is None else [mark == "1" for mark in kept],
            "advantage": advantage,
            "score": score,
            **more,
        }
    )


def table(*rows):
    return pd.concat(rows, ignore_index=True)


# Prefix of 3, continuation of 2; then a plain row.
ONE = table(row("pppcc", [0.1, 0.2, 0.6, 1.0, 0.4], kept="00111"), row("oo", [0.3, 0.5], number=1, score=0.0))


def test_entropy_by_kind():
    out = analysis.entropy_by_kind(table(ONE, row("ppp", [2.0, 4.0, 0.0], number=FOLLOWED))).set_index("kind")
    assert out["entropy"].to_dict() == pytest.approx(
        {"prefix": 0.3, "continuation": 0.7, "on_policy": 0.4, "demonstration": 2.0}
    )
    assert out["tokens"].to_dict() == {"prefix": 3, "continuation": 2, "on_policy": 2, "demonstration": 3}
    assert (out["nll"] == 1).all()
    assert out.loc["continuation", "error"] == pytest.approx(0.3)


def test_quantiles():
    out = analysis.entropy_quantiles(row("o" * 5, [0.0, 1.0, 2.0, 3.0, 4.0]), (0.25, 0.5, 0.9)).iloc[0]
    assert (out["q25"], out["q50"], out["q90"], out["mean"], out["tokens"]) == (1.0, 2.0, pytest.approx(3.6), 2.0, 5)
    with pytest.raises(ConfigError, match=r"quantiles = 50 lies outside \[0, 1\]"):
        analysis.entropy_quantiles(ONE, (50,))


def test_concentration():
    # The top 2 of 5 carry 3 + 2 of 6; ceil(0.3 * 5) = 2.
    out = analysis.concentration(row("ooooo", [0.0, 3.0, 1.0, 2.0, 0.0]), 0.3)
    assert out[["tokens", "carried"]].to_numpy().tolist() == [[5, pytest.approx(5 / 6)]]
    assert math.isnan(analysis.concentration(row("oo", [0.0, 0.0])).loc[0, "carried"])
    with pytest.raises(ConfigError, match=r"share = 20 lies outside \(0, 1\]"):
        analysis.concentration(ONE, 20)


def test_seam():
    other = row("pccc", [0.8, 2.0, 0.0, 7.0], number=2)
    out = analysis.seam(table(ONE, other), before=2, after=2).set_index("offset")
    assert out.index.tolist() == [-2, -1, 0, 1]
    assert out["entropy"].tolist() == pytest.approx([0.2, 0.7, 1.5, 0.2])
    assert out["tokens"].tolist() == [1, 2, 2, 2]
    assert out["kind"].tolist() == ["prefix", "prefix", "continuation", "continuation"]


def test_hybrid_rows():
    out = analysis.hybrid_rows(ONE, width=2)
    assert len(out) == 1
    line = out.iloc[0]
    assert line["prefix_tokens"] == 3 and line["score"] == 1
    values = ["prefix_entropy", "continuation_entropy", "before", "after", "jump"]
    assert line[values].tolist() == pytest.approx([0.3, 0.7, 0.4, 0.7, 0.3])


def test_relative_position():
    out = analysis.relative_position(row("oooo", [1.0, 2.0, 3.0, 5.0]), bins=2)
    assert out[["place", "entropy", "tokens"]].to_numpy().tolist() == [[0.25, 1.5, 2], [0.75, 4.0, 2]]
    # Prefix and continuation each run from 0 to 1, whatever comes before.
    out = analysis.relative_position(ONE, bins=1).set_index("kind")
    assert out.loc["continuation", "entropy"] == pytest.approx(0.7)


def test_forking_tokens():
    out = analysis.forking_tokens(
        table(row("ooo", [0.0, 3.0, 0.1], ids=[0, 1, 2]), row("oo", [1.0, 0.2], number=1, ids=[1, 0])),
        least=2,
        context=1,
    )
    assert out["text"].tolist() == ["b", "a"]
    assert out["entropy"].tolist() == pytest.approx([2.0, 0.1])
    assert out.loc[0, "contexts"] == ["a⟦b⟧", "⟦b⟧"], "no context across rows"
    assert analysis.forking_tokens(ONE, least=99).empty


def test_stability():
    demonstration = [
        row("pppp", [0.1] * 4, step=step, number=FOLLOWED, kept=kept)
        for step, kept in ((0, "1100"), (10, "0110"), (20, "0000"))
    ]
    # The same problem, trained at step 20 with a prefix of two tokens: the followed row comes first.
    out = analysis.clip_stability(table(*demonstration, row("pp", [0.1, 0.1], step=30, kept="10")))
    first = out[(out["step_a"] == 0) & (out["step_b"] == 10)].iloc[0]
    # One of three places in common; 2 x 2 / 4 = 1 expected in common of 3.
    assert (first["lag"], first["positions"], first["jaccard"], first["chance"]) == (
        10,
        4,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    last = out[(out["step_a"] == 0) & (out["step_b"] == 30)].iloc[0]
    assert (last["positions"], last["kept_a"], last["kept_b"], last["jaccard"]) == (2, 2, 1, 0.5)
    none = out[(out["step_a"] == 10) & (out["step_b"] == 20)].iloc[0]
    assert none["jaccard"] == 0
    with pytest.raises(RunError, match="recorded at two steps"):
        analysis.clip_stability(demonstration[0])
    # Another demonstration of the problem, which begins with the same token.
    other = row("pp", [0.1, 0.1], step=40, ids=[0, 25], kept="11")
    found = analysis.clip_stability(table(demonstration[0], other)).iloc[0]
    assert (found["positions"], found["kept_a"], found["kept_b"]) == (1, 1, 1)


def test_reward_by_prefix_entropy():
    rows = [
        row("pc", [entropy, 0.0], number=i, score=score)
        for i, (entropy, score) in enumerate([(0.1, 1.0), (0.4, 0.0), (0.2, 1.0), (0.3, 1.0)])
    ]
    out = analysis.reward_by_prefix_entropy(table(*rows), bins=2)
    assert out["score"].tolist() == [1.0, 0.5]
    assert out[["low", "high"]].to_numpy().tolist() == [[0.1, 0.2], [0.3, 0.4]]
    with pytest.raises(RunError, match="no hybrid row of the token table has a score"):
        analysis.reward_by_prefix_entropy(row("pc", [0.1, 0.1], score=np.nan))


def test_collapse():
    found = analysis.collapse([0, 10, 20], [0.8, 0.5, 0.2], [0.1, 0.3, 0.7])
    assert (found.start, found.end, found.lost, found.gained) == (0.8, 0.2, pytest.approx(0.6), pytest.approx(0.6))
    assert found.per_nat == pytest.approx(1.0)
    assert (found.half_time, found.half_resolution) == (20, 10), "0.4 was passed after step 10, and seen at step 20"
    rising = analysis.collapse([0, 1], [0.2, 0.4], [0.0, 1.0])
    assert (
        math.isnan(rising.half_time)
        and math.isnan(rising.half_resolution)
        and math.isnan(rising.per_nat)
        and rising.lost == pytest.approx(-0.2)
    )
    assert math.isnan(analysis.collapse([0, 1], [0.0, 0.0], [0.0, 0.0]).half_time)
    for arguments, sentence in (
        (([0], [1.0], [0.0]), "1 measurement of entropy"),
        (([0, 1], [1.0, math.nan], [0.0, 0.0]), "entropy is NaN at measurement 1"),
        (([1, 0], [1.0, 1.0], [0.0, 0.0]), "steps do not ascend"),
        (([0, 1], [1.0, 1.0], [0.0]), "2 steps, 2 entropies and 1 rewards"),
    ):
        with pytest.raises((RunError, ConfigError), match=sentence):
            analysis.collapse(*arguments)


def test_advantage_covariance():
    one = row("oo", [0.1, 0.1]).assign(logp=[-1.0, -3.0], advantage=[1.0, 0.0])
    # Deviations +1, -1 and +0.5, -0.5.
    assert analysis.advantage_covariance(one)["covariance"].tolist() == [0.5]
    with pytest.raises(RunError, match="has an advantage"):
        analysis.advantage_covariance(row("oo", [0.1, 0.1], advantage=np.nan))


# ---------------------------------------------------------------- the prediction of an entropy change


def entropy_change(before, after):
    """Predicted and observed change of (places, vocabulary) logits: minus the covariance of log p and its change, over all of
    the vocabulary."""
    old, new = before.double().log_softmax(-1), after.double().log_softmax(-1)
    entropy = -(old.exp() * old).sum(-1)
    predicted = -(old.exp() * (old + entropy[..., None]) * (new - old)).sum(-1)
    return predicted, -(new.exp() * new).sum(-1) - entropy


def test_entropy_change_of_two_tokens():
    # p = (3/4, 1/4), d = log-probabilities of (1/2, 1/2) minus those; H = log 4 - 3/4 log 3.
    before, after = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    predicted, observed = entropy_change(before, after)
    assert observed.item() == pytest.approx(math.log(2) - (math.log(4) - 0.75 * math.log(3)))
    # Covariance over two tokens: p q (log p - log q)(d_p - d_q).
    assert predicted.item() == pytest.approx(-3 / 16 * math.log(3) * -math.log(3), rel=1e-6)


def policy_step(eta):
    """A softmax policy over 12 tokens at 6 places, moved by eta along a policy gradient; (before, after)."""
    generator = torch.Generator().manual_seed(3)
    before = torch.randn(6, 12, generator=generator, dtype=torch.float64) * 2
    advantages = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    probs = before.softmax(-1)
    gradient = probs * (advantages - (probs * advantages).sum(-1, keepdim=True))
    return before, before + eta * gradient


def test_prediction_converges_to_the_observation():
    """The error is of second order: a hundredth where the step is a tenth, while the change itself is a tenth."""
    errors, sizes = [], []
    for eta in (1.0, 0.1, 0.01, 0.001):
        predicted, observed = entropy_change(*policy_step(eta))
        errors.append((predicted - observed).abs().max().item())
        sizes.append(observed.abs().max().item())
    for i in range(3):
        assert errors[i + 1] == pytest.approx(errors[i] / 100, rel=0.5)
        assert sizes[i + 1] == pytest.approx(sizes[i] / 10, rel=0.5)


def as_followed(before, after, k):
    """What a run records of an update."""
    targets = torch.zeros(len(before), dtype=torch.long)
    top = before.softmax(-1).topk(k)
    return row("p" * len(before), entropy_and_logp(before, targets)[1].numpy(), number=FOLLOWED).assign(
        entropy_after=entropy_and_logp(after, targets)[1].numpy(),
        top_probs=list(top.values.float().numpy()),
        top_probs_after=list(after.softmax(-1).gather(1, top.indices).float().numpy()),
    )


@pytest.mark.parametrize("k", [12, 4])
def test_estimate_from_records(k):
    before, after = policy_step(0.05)
    exact, observed = entropy_change(before, after)
    out = analysis.recorded_change(as_followed(before, after, k))
    assert out["observed"].to_numpy() == pytest.approx(observed.numpy(), abs=1e-6)
    assert out["predicted"].to_numpy() == pytest.approx(exact.numpy(), abs=1e-6 if k == 12 else 2e-3)


def test_estimate_is_exact_where_the_others_keep_their_proportions():
    before = torch.tensor([[2.0, 1.0, 0.5, 0.2, 0.1]], dtype=torch.float64)
    after = before + torch.tensor([[0.1, -0.2, 0.05, 0.05, 0.05]], dtype=torch.float64)
    exact, _ = entropy_change(before, after)
    assert analysis.recorded_change(as_followed(before, after, 2))["predicted"].to_numpy() == pytest.approx(
        exact.numpy(), abs=1e-6
    )


# ---------------------------------------------------------------- what is refused

FUNCTIONS = [
    analysis.entropy_by_kind,
    analysis.entropy_quantiles,
    analysis.concentration,
    analysis.seam,
    analysis.hybrid_rows,
    analysis.relative_position,
    analysis.forking_tokens,
    analysis.clip_stability,
    analysis.reward_by_prefix_entropy,
    analysis.recorded_change,
    analysis.advantage_covariance,
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_tables_that_nothing_can_be_said_of(function):
    for empty in (pd.DataFrame(), pd.DataFrame({name: [] for name in TOKEN_COLUMNS})):
        with pytest.raises(RunError, match=r"^the token table holds no .*; [^\n]*$"):
            function(empty)
    broken = ONE.assign(entropy=ONE["entropy"].where(ONE["position"] != 1))
    with pytest.raises(
        RunError, match="entropy is NaN at 2 of 7 tokens, first at step 0, problem 'a', row 0, position 1"
    ):
        function(broken)
    with pytest.raises(ConfigError, match="column 'entropy' is not in the table"):
        function(ONE.drop(columns="entropy"))


@pytest.mark.parametrize("function", [analysis.seam, analysis.hybrid_rows])
def test_runs_without_prefixes_are_named(function):
    with pytest.raises(RunError, match=r"holds no prefix tokens of hybrid rows; "):
        function(row("oo", [0.1, 0.2]))
    with pytest.raises(RunError, match=r"holds no hybrid rows \(a prefix and its continuation\)"):
        function(row("pp", [0.1, 0.2]))
