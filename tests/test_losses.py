"""Token losses, their normalisation, and the published weightings."""

from __future__ import annotations

import math

import pytest
import torch

from prefix_rft_lab import losses

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


def test_normaliser_limits():
    assert losses.dr_grpo_normaliser(0, 64) == 64.0
    with pytest.raises(ValueError, match="max_response_tokens = 0"):
        losses.dr_grpo_normaliser(8, 0)
