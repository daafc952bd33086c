"""Estimators: cases that can be checked on paper, invariances, limits."""

from __future__ import annotations

import math

import pytest
import torch

from prefix_rft_lab import advantages
from prefix_rft_lab.advantages import Scores, plain_baseline

# One problem, three plain rows (1, 0, 0) and one hybrid row (1): m8 = 1/2, m0 = 1/3.
SCORES = torch.tensor([1.0, 0.0, 0.0, 1.0])
GROUP = torch.zeros(4, dtype=torch.int64)
PREFIX = torch.tensor([-1, -1, -1, 0])
STD8 = math.sqrt(1 / 3)  # four deviations of 1/2: sum of squares 1, over n - 1 = 3
STD0 = math.sqrt(1 / 3)  # deviations 2/3, -1/3, -1/3: sum of squares 6/9, over 2
EPS = 1e-6


def estimator(name):
    """``(scores, group, prefix_group, **settings)`` -> advantages of the estimator of that name."""

    def estimate(scores, group, prefix, **settings):
        return advantages.ESTIMATORS[name](Scores(scores=scores, group=group, prefix_group=prefix, **settings))

    return estimate


ESTIMATORS = {name: estimator(name) for name in advantages.ESTIMATORS}
grpo = ESTIMATORS["grpo"]

BY_HAND = {
    "dr_grpo": ([0.5, -0.5, -0.5, 0.5], 0.5),
    "dr_grpo_prefix": ([2 / 3, -1 / 3, -1 / 3, 1.0], 1 - 1 / 3),
    "dr_grpo_prefix_v2": ([2 / 3, -1 / 3, -1 / 3, 0.0], -1 / 3),
    "grpo": ([v / (STD8 + EPS) for v in (0.5, -0.5, -0.5, 0.5)], 0.5 / (STD8 + EPS)),
    "grpo_prefix": (
        [v / (STD0 + EPS) for v in (2 / 3, -1 / 3, -1 / 3)] + [1 / (1 + EPS)],
        1 / (1 + EPS) - 1 / 3,
    ),
    "plain_baseline": ([2 / 3, -1 / 3, -1 / 3, 2 / 3], 2 / 3),
    "grpo_plain": ([v / (STD0 + EPS) for v in (2 / 3, -1 / 3, -1 / 3, 2 / 3)], (2 / 3) / (STD0 + EPS)),
    "maxrl": ([1.0, -1.0, -1.0, 1.0], 1.0),
}


def test_every_estimator_has_a_case_by_hand():
    assert set(BY_HAND) == set(ESTIMATORS)


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    rows = ESTIMATORS[name](SCORES, GROUP, PREFIX)
    sampled, prefix = BY_HAND[name]
    torch.testing.assert_close(rows.sampled, torch.tensor(sampled))
    assert rows.prefix[3].item() == pytest.approx(prefix, abs=1e-6)
    assert rows.sampled.dtype == rows.prefix.dtype == torch.float32


def test_two_rows_share_a_prefix():
    # Plain 1, 0: m0 = 1/2. Hybrid 1, 0 with one prefix: centred to +-1/2 in their pair, minus m0, halved.
    scores = torch.tensor([1.0, 0.0, 1.0, 0.0])
    rows = ESTIMATORS["dr_grpo_prefix"](scores, GROUP, torch.tensor([-1, -1, 7, 7]), rows_per_prefix=2)
    torch.testing.assert_close(rows.sampled, torch.tensor([0.5, -0.5, 0.5, -0.5]))
    torch.testing.assert_close(rows.prefix[2:], torch.tensor([0.0, -0.5]))


def _random_rows(seed=0, rows=48):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, generator=rng)
    group = torch.randint(0, 6, (rows,), generator=rng)
    prefix = torch.randint(-1, 3, (rows,), generator=rng)
    return scores, group, prefix


@pytest.mark.parametrize("name", ESTIMATORS)
def test_row_order_carries_no_meaning(name):
    scores, group, prefix = _random_rows()
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    rows = ESTIMATORS[name](scores, group, prefix)
    shuffled = ESTIMATORS[name](scores[order], group[order], prefix[order])
    torch.testing.assert_close(shuffled.sampled, rows.sampled[order], atol=1e-7, rtol=0)
    torch.testing.assert_close(shuffled.prefix, rows.prefix[order], atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_ids_are_names_and_groups_do_not_mix(name):
    scores, group, prefix = _random_rows(seed=2)
    rows = ESTIMATORS[name](scores, group, prefix)
    renamed = ESTIMATORS[name](scores, 1000 - 7 * group, torch.where(prefix < 0, prefix, 50 - prefix))
    torch.testing.assert_close(renamed.prefix, rows.prefix, atol=1e-7, rtol=0)
    for one in group.unique():
        alone = ESTIMATORS[name](scores[group == one], group[group == one], prefix[group == one])
        torch.testing.assert_close(alone.sampled, rows.sampled[group == one], atol=1e-7, rtol=0)
        torch.testing.assert_close(alone.prefix, rows.prefix[group == one], atol=1e-7, rtol=0)


def test_scaling_and_shifting_scores():
    scores, group, prefix = _random_rows(seed=3)
    base = ESTIMATORS["dr_grpo"](scores, group, prefix).sampled
    torch.testing.assert_close(ESTIMATORS["dr_grpo"](4 * scores + 1, group, prefix).sampled, 4 * base)
    standard = grpo(scores, group, prefix, epsilon=0.0).sampled
    torch.testing.assert_close(grpo(4 * scores + 1, group, prefix, epsilon=0.0).sampled, standard, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dr_grpo", "grpo"])
@pytest.mark.parametrize("score", [0.0, 1.0, 0.1])
def test_equal_scores_give_exact_zeros(name, score):
    rows = ESTIMATORS[name](torch.full((7,), score), torch.zeros(7, dtype=torch.int64), torch.full((7,), -1))
    assert rows.sampled.tolist() == rows.prefix.tolist() == [0.0] * 7


def test_problem_that_never_succeeds_gives_zeros_everywhere():
    for estimator in ESTIMATORS.values():
        rows = estimator(torch.zeros(4), GROUP, PREFIX)
        assert rows.sampled.abs().max() == 0 and rows.prefix.abs().max() == 0


def test_group_of_one_row():
    one, plain = torch.tensor([0.7]), torch.tensor([-1])
    for name, want in {"dr_grpo": 0.7, "dr_grpo_prefix": 0.7, "dr_grpo_prefix_v2": 0.0, "grpo": 0.7}.items():
        value = ESTIMATORS[name](one, GROUP[:1], plain).sampled.item()
        assert value == pytest.approx(want, abs=1e-5)


def test_hybrid_rows_without_plain_ones_have_no_baseline():
    rows = ESTIMATORS["dr_grpo_prefix"](torch.tensor([1.0]), GROUP[:1], torch.tensor([0]))
    assert rows.prefix.tolist() == [1.0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_empty_input(name):
    none = torch.zeros(0, dtype=torch.int64)
    rows = ESTIMATORS[name](torch.zeros(0), none, none)
    assert rows.sampled.shape == rows.prefix.shape == (0,)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one entry per row"):
        ESTIMATORS["dr_grpo"](SCORES, GROUP[:2], PREFIX)


def test_luffy_by_hand():
    # Sampled rows 1, 0, 0, 0 and a demonstration that scores 1: joint mean 2/5, mean of the sampled rows 1/4.
    scores, group = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]), torch.zeros(5, dtype=torch.int64)
    prefix = torch.tensor([-1, -1, -1, -1, 0])
    joint, split = (ESTIMATORS[name](scores, group, prefix) for name in ("dr_grpo", "plain_baseline"))
    torch.testing.assert_close(joint.sampled, torch.tensor([0.6, -0.4, -0.4, -0.4, 0.6]))
    torch.testing.assert_close(split.sampled, torch.tensor([0.75, -0.25, -0.25, -0.25, 0.75]))
    # Squares 9/16 + 3/16 = 3/4 over 3: std 1/2.
    scaled = plain_baseline(Scores(scores=scores, group=group, prefix_group=prefix, epsilon=0.0), standardise=True)
    torch.testing.assert_close(scaled.sampled, torch.tensor([1.5, -0.5, -0.5, -0.5, 1.5]))


def test_luffy_split_replaces_a_zero_std():
    # The policy always fails: its std is 0, and the demonstration's advantage is 1, not 1 / epsilon.
    scores, prefix = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([-1, -1, 0])
    rows = Scores(scores=scores, group=torch.zeros(3, dtype=torch.int64), prefix_group=prefix)
    values = plain_baseline(rows, standardise=True).sampled
    torch.testing.assert_close(values, torch.tensor([0.0, 0.0, 1.0]), atol=1e-5, rtol=0)


def test_maxrl_divides_by_the_mean():
    """Scores 1, 0, 0, 0: (1 - 1/4) / (1/4) = 3 and -1; without a right row 0; all right 0."""
    scores = advantages.Scores(
        scores=torch.tensor([1.0, 0, 0, 0, 0, 0, 1, 1]),
        group=torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]),
        prefix_group=torch.full((8,), -1),
    )
    assert advantages.maxrl(scores).sampled.tolist() == [3, -1, -1, -1, 0, 0, 0, 0]
