"""Token losses, their normalisation, and the published weightings."""

from __future__ import annotations

import math

import pytest
import torch

from prefix_rft_lab import losses
from prefix_rft_lab.entropy import clip_mask
from prefix_rft_lab.weighting import TRANSFORMS, WeightingInputs, apply_transforms

LIMITS = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}


def _terms(ratio, advantage, **changes):
    logp = torch.tensor(ratio).log().requires_grad_()
    terms = losses.policy_loss_tokens(logp, torch.zeros(len(ratio)), torch.tensor(advantage), **(LIMITS | changes))
    (grad,) = torch.autograd.grad(terms.loss.sum(), logp)
    return terms, grad


def test_policy_loss_by_hand():
    #        ratio  A    l1    l2 (limits 0.8, 1.28)   loss             gradient: -A r, or 0 where a limit counts
    cases = [
        (1.0, 2.0, -2.0, -2.0, False, False),  # first update: -A
        (1.5, 2.0, -2.56, 0.0, True, False),  # above 1.28: -2 * 1.28
        (0.5, 2.0, -1.0, -1.0, False, False),  # below 0.8, but worse than the limit: not clipped
        (0.5, -1.0, 0.8, 0.0, True, False),  # max(0.5, 0.8)
        (1.5, -1.0, 1.5, 1.5, False, False),  # max(1.5, 1.28)
        (4.0, -1.0, 3.0, 0.0, False, True),  # dual clip: min(4, 3)
        (4.0, 0.0, 0.0, 0.0, False, False),
    ]
    ratio, advantage, loss, gradient, clipped, dual = map(list, zip(*cases, strict=True))
    terms, grad = _terms(ratio, advantage)
    torch.testing.assert_close(terms.loss, torch.tensor(loss))
    torch.testing.assert_close(grad, torch.tensor(gradient))
    assert terms.clipped.tolist() == clipped
    assert terms.dual_clipped.tolist() == dual


def test_unclipped_tokens_and_no_dual_clip():
    ratio, advantage = [1.5, 4.0, 1.5, 4.0], [2.0, -1.0, 2.0, -1.0]
    terms, grad = _terms(ratio, advantage, unclipped=torch.tensor([True, True, False, False]))
    torch.testing.assert_close(terms.loss, torch.tensor([-3.0, 4.0, -2.56, 3.0]))
    torch.testing.assert_close(grad, torch.tensor([-3.0, 4.0, 0.0, 0.0]))
    assert terms.clipped.tolist() == [False, False, True, False]
    assert terms.dual_clipped.tolist() == [False, False, False, True]
    free, _ = _terms(ratio, advantage, dual_clip=None)
    torch.testing.assert_close(free.loss, torch.tensor([-2.56, 4.0, -2.56, 4.0]))
    assert not free.dual_clipped.any()


def test_first_update_is_advantage_weighted_sft():
    logp = (-3 * torch.rand(4, 6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    advantages = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    policy = losses.policy_loss_tokens(logp, logp.detach(), advantages, **LIMITS).loss.sum()
    weighted = (advantages * losses.nll_tokens(logp)).sum()
    (a,), (b,) = torch.autograd.grad(policy, logp), torch.autograd.grad(weighted, logp)
    torch.testing.assert_close(a, b)


def test_luffy_shaping_value_and_gradient():
    # f(0.1) = 1/2; d(-A f)/d log p = -A gamma p / (p + gamma)^2, largest at p = gamma, where it is -A / 4.
    logp = torch.tensor([0.001, 0.05, 0.1, 0.5, 1.0], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([1.0, -2.0, 3.0, 0.5, 1.0], dtype=torch.float64)
    loss = losses.shaped_demonstration_tokens(logp, advantages)
    assert loss[2].item() == pytest.approx(-1.5)
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    p = logp.detach().exp()
    torch.testing.assert_close(grad, -advantages * 0.1 * p / (p + 0.1) ** 2)
    assert grad[2].item() == pytest.approx(-0.75)
    assert torch.autograd.gradcheck(lambda x: losses.shaped_demonstration_tokens(x, advantages), (logp,))


def test_other_demonstration_shapes():
    logp, one = torch.tensor([0.25]).log(), torch.ones(1)
    assert losses.shaped_demonstration_tokens(logp, one, shape="none").item() == pytest.approx(-0.25)
    shaped = losses.shaped_demonstration_tokens(logp, one, demonstration_probs=torch.tensor([0.5]))
    assert shaped.item() == pytest.approx(-0.25 / (0.5 + 1e-6))
    assert losses.demonstration_ratio(logp, gamma=0.75).item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="cubic"):
        losses.shaped_demonstration_tokens(logp, one, shape="cubic")


def test_impossible_demonstration_token_has_no_gradient():
    logp = torch.tensor([-math.inf]).requires_grad_()
    loss = losses.shaped_demonstration_tokens(logp, torch.ones(1))
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    assert loss.item() == 0 and grad.item() == 0


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
    aggregate = losses.AGGREGATIONS[mode]
    assert aggregate(LOSS, MASK, max_tokens=8).item() == pytest.approx(want)
    wide = torch.nn.functional.pad(LOSS, (0, 2), value=math.nan), torch.nn.functional.pad(MASK, (0, 2))
    assert aggregate(*wide, max_tokens=8).item() == pytest.approx(want)
    assert aggregate(LOSS.flip(0), MASK.flip(0), max_tokens=8).item() == pytest.approx(want)


@pytest.mark.parametrize("mode", losses.AGGREGATIONS)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_empty_masks_give_zero(mode, shape):
    loss = torch.ones(shape, requires_grad=True)
    value = losses.AGGREGATIONS[mode](loss, torch.zeros(shape, dtype=torch.bool), max_tokens=8)
    assert value.item() == 0
    value.backward()
    assert torch.equal(loss.grad, torch.zeros(shape))


def test_dr_grpo_needs_its_divisor():
    with pytest.raises(ValueError, match="max_tokens = None"):
        losses.AGGREGATIONS["dr_grpo"](LOSS, MASK)


def test_one_division_is_independent_of_the_cut():
    rng = torch.Generator().manual_seed(3)
    token_losses = torch.randn(12, 10, generator=rng, dtype=torch.float64)
    mask = torch.rand(12, 10, generator=rng) < 0.6
    normaliser = losses.dr_grpo_normaliser(12, 10)
    assert normaliser == 120.0
    whole = losses.masked_sum(token_losses, mask) / normaliser

    def cut(rows, aggregate):
        return sum(aggregate(token_losses[part], mask[part]) for part in losses.micro_slices(12, rows))

    for rows in (1, 3, 5, 12, [1, 7, 4]):
        once = cut(rows, losses.masked_sum) / normaliser
        torch.testing.assert_close(once, whole, atol=1e-14, rtol=0)
    # The published aggregation of each micro-batch does depend on it.
    token_mean = losses.AGGREGATIONS["token-mean"]
    assert abs(cut(5, token_mean) / 3 - token_mean(token_losses, mask)) > 1e-3


def test_normaliser_limits():
    assert losses.dr_grpo_normaliser(0, 64) == 64.0
    with pytest.raises(ValueError, match="max_response_tokens = 0"):
        losses.dr_grpo_normaliser(8, 0)


def test_sft_aggregations_by_hand():
    # Rows of 4, 1 and 1 targets with NLL 1, 2 and 6; micro-batches of rows {0, 1} and {2}.
    nll = torch.tensor([[1.0] * 4, [2.0, 9.0, 9.0, 9.0], [6.0, 9.0, 9.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert losses.global_token_mean(nll, mask).item() == pytest.approx(12 / 6)
    means, counts = losses.micro_means(nll, mask, 2)
    assert means.tolist() == pytest.approx([6 / 5, 6.0]) and counts.tolist() == [5, 1]
    assert losses.mean_of_micro_means(nll, mask, 2).item() == pytest.approx(3.6)
    assert losses.summed_micro_means(nll, mask, 2).item() == pytest.approx(7.2)
    assert losses.sequence_mean(nll, mask).item() == pytest.approx(3.0)
    # The lone target of the second micro-batch weighs five times one of the first.
    (grad,) = torch.autograd.grad(losses.mean_of_micro_means(nll, mask, 2), nll)
    assert (grad[2, 0] / grad[0, 0]).item() == pytest.approx(5.0)


def test_sft_aggregations_without_a_target():
    nll, none = torch.ones(3, 2), torch.zeros(3, 2)
    values = [losses.global_token_mean(nll, none), losses.sequence_mean(nll, none)]
    values += [losses.mean_of_micro_means(nll, none, 2), losses.summed_micro_means(nll[:0], none[:0], 2)]
    assert [value.item() for value in values] == [0, 0, 0, 0]


def test_micro_slices():
    assert [(part.start, part.stop) for part in losses.micro_slices(5, 2)] == [(0, 2), (2, 4), (4, 5)]
    assert [(part.start, part.stop) for part in losses.micro_slices(5, [1, 4])] == [(0, 1), (1, 5)]
    for bad in (0, [2, 2]):
        with pytest.raises(ValueError, match="micro_batch_rows"):
            losses.micro_slices(5, bad)


def test_accumulation_scales():
    assert losses.accumulation_scales([6, 2], "by_rows") == [0.75, 0.25]
    assert losses.accumulation_scales([6, 2], "equal") == [0.5, 0.5]
    with pytest.raises(ValueError, match="scaling"):
        losses.accumulation_scales([6, 2], "none")


def _batch(**changes):
    # Row 0: three prefix tokens and one sampled; row 1: two sampled and padding.
    values = {
        "advantages": torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0]]),
        "logp": torch.tensor([[0.5, 0.1, 0.9, 0.5], [0.5, 0.5, 1.0, 1.0]]).log(),
        "old_logp": torch.tensor([[0.4, 0.2, 0.9, 0.5], [0.5, 0.5, 1.0, 1.0]]).log(),
        "response_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "prefix_mask": torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]),
        "entropy": torch.tensor([[0.3, 0.9, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        "mask_ratio": 0.8,
    }
    return WeightingInputs(**(values | changes))


def _advantages(name, **changes):
    return apply_transforms([name], _batch(**changes)).advantages.tolist()


def test_entropy_weightings_by_hand():
    # int(3 * 0.8) = 2 of three go: entropies .3 and .1.
    assert _advantages("entropy") == [[0, 2, 0, 4], [5, 6, 0, 0]]
    assert _advantages("entropy_low") == [[1, 0, 3, 0], [0, 0, 0, 0]]
    assert _advantages("identity") == [[1, 2, 3, 4], [5, 6, 0, 0]]


def test_entropy_weighting_is_the_clip():
    batch = _batch()
    stay = clip_mask(batch.entropy, batch.prefix_mask.bool(), 0.2) | ~batch.prefix_mask.bool()
    assert torch.equal(apply_transforms(["entropy"], batch).advantages, batch.advantages * stay)


def test_random_weighting_reads_a_percentage():
    uniforms = torch.tensor([[0.5, 0.2, 0.9, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert _advantages("random", uniforms=uniforms, mask_ratio=67.0) == [[0, 0, 3, 4], [5, 6, 0, 0]]
    assert _advantages("random", uniforms=uniforms, mask_ratio=0.8) == [[1, 2, 3, 4], [5, 6, 0, 0]]


def test_ratio_weightings_by_hand():
    ratio = (apply_transforms(["luffy"], _batch()).logp - _batch().old_logp).exp()
    torch.testing.assert_close(ratio[0, :3], torch.tensor([0.5 / 0.6, 0.1 / 0.2, 0.9 / 1.0]))
    ratio = (apply_transforms(["importance_sampling"], _batch()).logp - _batch().old_logp).exp()
    torch.testing.assert_close(ratio[0], torch.tensor([0.5, 0.1, 0.9, 1.0]))


def test_length_on_zeroes_the_sampled_part_of_full_rows():
    assert _advantages("length_on") == [[1, 2, 3, 0], [5, 6, 0, 0]]


def test_position_by_hand():
    # Window [0.2, 0.6]: f(0.2) = 2/0.8 = 2.5, f(0.4) = 2*0.2/0.32 = 1.25, f(0.7) = 0 -> 0.001.
    # w = 0.4, 0.8, 1000, mean 333.733...
    relpos = torch.tensor([[0.2, 0.4, 0.7, -1.0], [-1.0, -1.0, 0.0, 0.0]])
    got = _advantages("position", prefix_relpos=relpos, window_low=0.2, window_high=0.6)
    mean = (0.4 + 0.8 + 1000) / 3
    assert got[0] == pytest.approx([0.4 / mean, 2 * 0.8 / mean, 3 * 1000 / mean, 4], rel=1e-5)
    assert got[1] == [5, 6, 0, 0]
    closed = _advantages("position", prefix_relpos=relpos, window_low=0.7, window_high=0.7)
    assert closed[0] == pytest.approx([1, 2, 3, 4])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_without_a_prefix_nothing_changes(name):
    batch = _batch(prefix_mask=torch.zeros(2, 4))
    assert apply_transforms([name], batch) is batch


def test_transforms_apply_left_to_right():
    both = apply_transforms(["entropy", "length_on"], _batch()).advantages
    assert both.tolist() == [[0, 2, 0, 0], [5, 6, 0, 0]]


def test_missing_inputs_and_unknown_transforms_are_named():
    with pytest.raises(ValueError, match="uniforms is missing"):
        apply_transforms(["random"], _batch())
    with pytest.raises(ValueError, match="entropie"):
        apply_transforms(["entropie"], _batch())
