"""The published aggregations by hand, and what a division inside each micro-batch does."""

from __future__ import annotations

import math

import pytest
import torch

from prefix_rft_lab import losses
from published import aggregations

LOSS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 100.0, 100.0]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("token-mean", 10 / 4),
        ("seq-mean-token-sum", (6 + 4) / 2),
        ("seq-mean-token-mean", (2 + 4) / 2),
        ("dr_grpo", 10 / 8),  # over max_tokens, not over rows
    ],
)
def test_aggregations_by_hand(mode, want):
    aggregate = aggregations.AGGREGATIONS[mode]
    assert aggregate(LOSS, MASK, max_tokens=8).item() == pytest.approx(want)
    wide = torch.nn.functional.pad(LOSS, (0, 2), value=math.nan), torch.nn.functional.pad(MASK, (0, 2))
    assert aggregate(*wide, max_tokens=8).item() == pytest.approx(want)
    assert aggregate(LOSS.flip(0), MASK.flip(0), max_tokens=8).item() == pytest.approx(want)


@pytest.mark.parametrize("mode", aggregations.AGGREGATIONS)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_empty_masks_give_zero(mode, shape):
    loss = torch.ones(shape, requires_grad=True)
    value = aggregations.AGGREGATIONS[mode](loss, torch.zeros(shape, dtype=torch.bool), max_tokens=8)
    assert value.item() == 0
    value.backward()
    assert torch.equal(loss.grad, torch.zeros(shape))


def test_dr_grpo_needs_its_divisor():
    with pytest.raises(ValueError, match="max_tokens = None"):
        aggregations.AGGREGATIONS["dr_grpo"](LOSS, MASK)


def test_one_division_is_independent_of_the_cut():
    rng = torch.Generator().manual_seed(3)
    token_losses = torch.randn(12, 10, generator=rng, dtype=torch.float64)
    mask = torch.rand(12, 10, generator=rng) < 0.6
    normaliser = losses.dr_grpo_normaliser(12, 10)
    assert normaliser == 120.0
    whole = aggregations.masked_sum(token_losses, mask) / normaliser

    def cut(rows, aggregate):
        return sum(aggregate(token_losses[part], mask[part]) for part in aggregations.micro_slices(12, rows))

    for rows in (1, 3, 5, 12, [1, 7, 4]):
        once = cut(rows, aggregations.masked_sum) / normaliser
        torch.testing.assert_close(once, whole, atol=1e-14, rtol=0)
    # The published aggregation of each micro-batch does depend on it.
    token_mean = aggregations.AGGREGATIONS["token-mean"]
    assert abs(cut(5, token_mean) / 3 - token_mean(token_losses, mask)) > 1e-3


def test_sft_aggregations_by_hand():
    # Rows of 4, 1 and 1 targets with NLL 1, 2 and 6; micro-batches of rows {0, 1} and {2}.
    nll = torch.tensor([[1.0] * 4, [2.0, 9.0, 9.0, 9.0], [6.0, 9.0, 9.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert aggregations.global_token_mean(nll, mask).item() == pytest.approx(12 / 6)
    means, counts = aggregations.micro_means(nll, mask, 2)
    assert means.tolist() == pytest.approx([6 / 5, 6.0]) and counts.tolist() == [5, 1]
    assert aggregations.mean_of_micro_means(nll, mask, 2).item() == pytest.approx(3.6)
    assert aggregations.summed_micro_means(nll, mask, 2).item() == pytest.approx(7.2)
    assert aggregations.sequence_mean(nll, mask).item() == pytest.approx(3.0)
    # The lone target of the second micro-batch weighs five times one of the first.
    (grad,) = torch.autograd.grad(aggregations.mean_of_micro_means(nll, mask, 2), nll)
    assert (grad[2, 0] / grad[0, 0]).item() == pytest.approx(5.0)


def test_sft_aggregations_without_a_target():
    nll, none = torch.ones(3, 2), torch.zeros(3, 2)
    values = [aggregations.global_token_mean(nll, none), aggregations.sequence_mean(nll, none)]
    values += [aggregations.mean_of_micro_means(nll, none, 2), aggregations.summed_micro_means(nll[:0], none[:0], 2)]
    assert [value.item() for value in values] == [0, 0, 0, 0]


def test_micro_slices():
    assert [(part.start, part.stop) for part in aggregations.micro_slices(5, 2)] == [(0, 2), (2, 4), (4, 5)]
    assert [(part.start, part.stop) for part in aggregations.micro_slices(5, [1, 4])] == [(0, 1), (1, 5)]
    for bad in (0, [2, 2]):
        with pytest.raises(ValueError, match="micro_batch_rows"):
            aggregations.micro_slices(5, bad)


def test_accumulation_scales():
    assert aggregations.accumulation_scales([6, 2], "by_rows") == [0.75, 0.25]
    assert aggregations.accumulation_scales([6, 2], "equal") == [0.5, 0.5]
    with pytest.raises(ValueError, match="scaling"):
        aggregations.accumulation_scales([6, 2], "none")
