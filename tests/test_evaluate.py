"""Evaluation: unbiased pass@k, intervals over problems, summaries by level."""

from __future__ import annotations

import re
import sys
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from prefix_rft_lab import rng
from prefix_rft_lab.generation import Completion
from prefix_rft_lab.runs.summary import SHARE, estimate, over_problems, pass_at_k, pass_curve, summarise
from prefix_rft_lab.training.evaluate import sample_scores
from prefix_rft_lab.types import EncodedProblem, Problem

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import interval_coverage


def table(correct, *, k=4, level="", greedy=1.0):
    return pd.DataFrame(
        {
            "id": [str(i) for i in range(len(correct))],
            "split": "test",
            "level": level,
            "k": k,
            "correct": correct,
            "greedy": greedy,
            "tokens": 10.0,
            "truncated": 0.25,
        }
    )


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n in range(1, 8):
        for correct in range(n + 1):
            samples = [1] * correct + [0] * (n - correct)
            for k in range(1, n + 1):
                subsets = [any(chosen) for chosen in combinations(samples, k)]
                assert pass_at_k(n, correct, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_of_many_samples():
    assert pass_at_k(2048, 3, 1024) == pytest.approx(1 - comb(2045, 1024) / comb(2048, 1024))
    assert pass_at_k(100_000, 1, 1000) == pytest.approx(0.01)
    assert pass_at_k(100_000, 0, 1000) == 0.0
    assert pass_at_k(8, 8, 1) == 1.0


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0), (0, 0, 0)])
def test_impossible_counts_are_refused(n, correct, k):
    with pytest.raises(ValueError, match=f"n = {n}, correct = {correct}, k = {k} is undefined"):
        pass_at_k(n, correct, k)


def test_pass_at_k_is_unbiased():
    """Over keyed draws of n = 6 samples with p = 0.3, the mean estimate of pass@3 is 1 - 0.7^3."""
    correct = rng.generator(0, "test").binomial(6, 0.3, size=20_000)
    estimates = [pass_at_k(6, int(c), 3) for c in correct]
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - (1 - 0.7**3)) < 4 * error


# ---------------------------------------------------------------------- intervals


def test_estimate_of_one_seed_is_students_t_over_problems():
    values = rng.generator(0, "test").random(50)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert over_problems(values.tolist()) == pytest.approx((values.mean(), expected.low, expected.high))


def test_without_spread_the_interval_is_exact_not_a_point():
    # 48 of 48: the part of others is at most 1 - 0.025^(1/48), as scipy's Clopper-Pearson interval says.
    exact = scipy.stats.binomtest(48, 48).proportion_ci(0.95, "exact")
    assert over_problems([1.0] * 48) == pytest.approx((1.0, exact.low, 1.0))
    both = estimate(np.ones((5, 48)), np.ones((1, 48)), bounds=SHARE)
    part = 1 - 0.025 ** (1 / 48)
    assert (both.mean, *both.interval()) == pytest.approx((0, -part, part))
    # The stricter the level, the wider; more problems, the narrower.
    assert both.interval(1 - 0.05 / 36)[1] == pytest.approx(1 - (0.025 / 36) ** (1 / 48))
    assert estimate(np.ones((1, 480)), np.ones((1, 480)), bounds=SHARE).interval()[1] < part / 9
    # What has no bounds has no interval without spread.
    assert np.isnan(estimate(np.ones((3, 4))).interval()).all()


@pytest.mark.parametrize("solved", [1, 3, 9, 55])
def test_where_few_problems_differ_the_limits_are_exact(solved):
    values = [1.0] * solved + [0.0] * (60 - solved)
    exact = scipy.stats.binomtest(solved, 60).proportion_ci(0.95, "exact")
    mean, low, high = over_problems(values)
    assert mean == pytest.approx(solved / 60)
    assert low <= exact.low + 1e-9 and high >= exact.high - 1e-9
    assert (high == pytest.approx(exact.high)) if solved < 10 else (low == pytest.approx(exact.low))


def test_where_many_problems_differ_it_is_students_t():
    values = np.array([1.0] * 25 + [0.0] * 35)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert over_problems(values.tolist())[1:] == pytest.approx((expected.low, expected.high))


def test_repeated_values_narrow_the_interval():
    values = rng.generator(0, "test").random(50).tolist()
    (_, a, b), (_, c, d) = over_problems(values), over_problems(values * 16)
    assert (d - c) == pytest.approx((b - a) / 4, rel=0.05)


def test_interval_of_nothing():
    assert np.isnan(over_problems([])).all()


def test_95_percent_intervals_cover_95_percent():
    """The simulation of docs/intervals.md, made again: 1500 draws measure 95% to within 0.6 points (one standard error).
    Where little varies an interval is a little wide."""
    page = interval_coverage.page()
    assert page == interval_coverage.DOCUMENT.read_text(encoding="utf-8")
    shown = [float(cell) for cell in re.findall(r"(\d+\.\d)% (?=\|)", page)]
    assert len(shown) == len(interval_coverage.CASES) * len(interval_coverage.SEEDS)
    assert min(shown) >= 93 and max(shown) <= 99


def test_summary_by_hand():
    both = pd.concat([table([4, 0], level="easy"), table([2, 0], level="hard", greedy=0.0)], ignore_index=True)
    summary = summarise(both)
    assert (summary["k"], summary["problems"]) == (4, 4)
    assert summary["avg"] == pytest.approx(6 / 16)
    assert summary["pass"] == pytest.approx(2 / 4)
    assert summary["greedy"] == pytest.approx(2 / 4)
    assert (summary["tokens"], summary["truncated"]) == (10.0, 0.25)
    assert list(summary["levels"]) == ["easy", "hard"]
    assert summary["levels"]["easy"]["avg"] == pytest.approx(4 / 8)
    assert summary["levels"]["hard"]["avg"] == pytest.approx(2 / 8)
    assert summary["levels"]["hard"]["greedy"] == 0.0
    assert "levels" not in summary["levels"]["easy"]
    low, high = summary["avg_interval"]
    assert low <= summary["avg"] <= high


def test_problems_without_level_or_greedy_sample():
    summary = summarise(table([1, 2], greedy=float("nan")))
    assert summary["levels"] == {}
    assert np.isnan(summary["greedy"])


def test_mixed_k_and_no_problems_are_refused():
    with pytest.raises(ValueError, match=r"one k, got \[4, 8\]"):
        summarise(pd.concat([table([1]), table([1], k=8)]))
    for empty in (pd.DataFrame(), table([])):
        with pytest.raises(ValueError, match="evaluate at least one problem"):
            summarise(empty)


class Echo:
    """An engine that answers with its request's place and notes what it was asked."""

    def __init__(self):
        self.calls = []

    def generate(self, requests, *, temperature=1.0, greedy=False):
        self.calls.append((list(requests), temperature, greedy))
        return [
            Completion(token_ids=[*r.context_ids, i % 2, 0][: 2 + i % 2], logp=[], truncated=i % 4 == 0)
            for i, r in enumerate(requests)
        ]


def test_sampling_counts_each_problems_own_samples():
    problems = [
        EncodedProblem(
            problem=Problem(id=f"p{i}", prompt="", answer=str(i), level="easy", split="test"),
            index=i,
            prompt_ids=[i],
        )
        for i in range(3)
    ]
    engine = Echo()
    seen = []

    def solved(responses, problems):
        golds = [problem.answer for problem in problems]
        seen.append(golds)
        assert all(response[0] == int(gold) for response, gold in zip(responses, golds, strict=True))
        return [int(gold) > 0 and response[1] == 1 for response, gold in zip(responses, golds, strict=True)]

    found = sample_scores(engine, problems, solved, k=4, max_tokens=9, temperature=0.6, seed=3, purpose="validation")
    assert found["id"].tolist() == ["p0", "p1", "p2"]
    assert found["correct"].tolist() == [0, 2, 2]
    assert found["tokens"].tolist() == [2.5] * 3
    assert found["truncated"].tolist() == [0.25] * 3
    # Greedily each is asked once, in order: of three requests the second answers 1.
    assert found["greedy"].tolist() == [0.0, 1.0, 0.0]
    (sampled, temperature, greedy), (best, _, greedy_too) = engine.calls
    assert (temperature, greedy, greedy_too) == (0.6, False, True)
    assert len({r.key for r in sampled}) == 12
    assert sampled[5].key == rng.key(3, "validation", 1, 1)
    assert [r.context_ids for r in best] == [[0], [1], [2]]
    assert {r.max_new_tokens for r in sampled} == {9}
    assert seen == [["0"] * 4 + ["1"] * 4 + ["2"] * 4, ["0", "1", "2"]]


def test_pass_curve_by_hand():
    curve = pass_curve(table([0, 1, 4, 2], k=4))
    assert curve["k"].tolist() == [1, 2, 4]
    assert curve["mean"].tolist() == pytest.approx([7 / 16, (0 + 1 / 2 + 1 + 5 / 6) / 4, 3 / 4])
    assert (curve["low"] <= curve["mean"]).all() and (curve["mean"] <= curve["high"]).all()
    assert set(curve["problems"]) == {4}
    assert pass_curve(table([3, 0], k=6))["k"].tolist() == [1, 2, 4, 6]
    assert pass_curve(table([1], k=1))["k"].tolist() == [1]
    assert pass_curve(table([1000, 0], k=2048))["k"].tolist() == [2**power for power in range(12)]
