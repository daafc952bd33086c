"""Losses of single tokens, and the one division that turns their sum into the loss of an update.

Every loss here is elementwise. The trainer adds the token losses of all micro-batches (and processes) of an
optimizer window and divides the sum by one number known before the first pass (:func:`dr_grpo_normaliser`): the
result cannot depend on how the window was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

DemonstrationShape = Literal["luffy", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTerms:
    """What the policy loss says of each token; all of one shape."""

    loss: torch.Tensor  # float, carries the gradient
    clipped: torch.Tensor  # bool, the ratio limit is what counts (never on unclipped tokens)
    dual_clipped: torch.Tensor  # bool, the bound for negative advantages is what counts (never on unclipped tokens)


def policy_loss_tokens(
    logp: torch.Tensor,
    old_logp: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = 3.0,
    unclipped: torch.Tensor | None = None,
) -> PolicyTerms:
    """PPO's clipped surrogate with a dual clip, token by token.

    With r = exp(logp - old_logp)::

        l1 = -A r
        l2 = -A clamp(r, 1 - clip_low, 1 + clip_high)
        lc = max(l1, l2)
        l  = min(lc, -A dual_clip) if A < 0 else lc
        l  = l1 on unclipped tokens

    PPO: arXiv 1707.06347, eq. 7; dual clip: arXiv 1912.09729, eq. 5; separate limits ("clip higher"): DAPO,
    arXiv 2503.14476. At the first update r = 1, so the gradient of a prefix token is that of A-weighted SFT.

    Args:
        logp: any shape, nats, differentiable.
        old_logp: same shape, the trainer's own log-probability before the update; no gradient.
        advantages: same shape; no gradient.
        clip_low: ratios below 1 - clip_low are clipped.
        clip_high: ratios above 1 + clip_high are clipped.
        dual_clip: bound of the loss of tokens with A < 0, in units of -A; None for no bound.
        unclipped: bool, same shape: tokens without any clipping; None for no such token.

    A ratio of 2 is limited to 1.2; one of 1 is not:

    >>> logp, old = torch.tensor([0.5, 0.1]).log(), torch.tensor([0.25, 0.1]).log()
    >>> found = policy_loss_tokens(logp, old, torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.2)
    >>> found.loss, found.clipped.tolist()
    (tensor([-1.2000,  1.0000]), [True, False])
    """
    ratio = (logp - old_logp).exp()
    plain = -advantages * ratio
    limited = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    clipped = limited > plain
    loss = torch.maximum(plain, limited)
    if dual_clip is None:
        dual_clipped = torch.zeros_like(clipped)
    else:
        bound = -advantages * dual_clip
        negative = advantages < 0
        dual_clipped = (loss > bound) & negative
        loss = torch.where(negative, torch.minimum(loss, bound), loss)
    if unclipped is not None:
        unclipped = unclipped.bool()
        loss = torch.where(unclipped, plain, loss)
        clipped, dual_clipped = clipped & ~unclipped, dual_clipped & ~unclipped
    return PolicyTerms(loss=loss, clipped=clipped, dual_clipped=dual_clipped)


def nll_tokens(logp: torch.Tensor, token_weight: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """Negative log-likelihood, nats: -log p(token), times ``token_weight(p)``, which is held constant. Any shape.

    >>> nll_tokens(torch.tensor([0.5, 0.25]).log())
    tensor([0.6931, 1.3863])
    """
    return -logp if token_weight is None else -logp * token_weight(logp.detach().exp())


def demonstration_ratio(
    logp: torch.Tensor,
    *,
    shape: DemonstrationShape = "luffy",
    gamma: float = 0.1,
    demonstration_probs: torch.Tensor | None = None,
) -> torch.Tensor:
    """What takes the place of the importance ratio on tokens that another policy wrote. Any shape.

    ``luffy``: f(p) = p / (p + gamma) (LUFFY, arXiv 2504.14945, policy shaping); ``none``: p. With the author's
    probabilities q given: p / (q + 1e-6), and no shaping.
    """
    probs = logp.exp()
    if demonstration_probs is not None:
        return probs / (demonstration_probs + 1e-6)
    if shape == "luffy":
        return probs / (probs + gamma)
    if shape == "none":
        return probs
    raise ValueError(f"shape = {shape!r} is not known; use luffy or none")


def shaped_demonstration_tokens(
    logp: torch.Tensor,
    advantages: torch.Tensor,
    *,
    shape: DemonstrationShape = "luffy",
    gamma: float = 0.1,
    demonstration_probs: torch.Tensor | None = None,
) -> torch.Tensor:
    """LUFFY's loss of a demonstration token: -A g with g of :func:`demonstration_ratio`; no old log-prob, no clip.

    For ``luffy`` its gradient is -A gamma p / (p + gamma)^2 * grad log p: largest at p = gamma, small where the
    policy is already sure and where the token is hopeless.

    Args:
        logp: any shape, nats, differentiable; the gradient goes through g.
        advantages: same shape.
        shape: ``luffy`` or ``none``.
        gamma: LUFFY's constant.
        demonstration_probs: same shape, q, the author's probabilities; replaces the shaping.
    """
    return -advantages * demonstration_ratio(logp, shape=shape, gamma=gamma, demonstration_probs=demonstration_probs)


def importance_weights(logp: torch.Tensor, engine_logp: torch.Tensor, cap: float) -> torch.Tensor:
    """min(p_trainer / p_engine, cap) of sampled tokens, without a gradient. Any shape.

    Corrects for an engine that samples under slightly other probabilities than the trainer computes (truncated importance
    sampling: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy RL Training).

    Args:
        logp: the trainer's log-probabilities before the update, nats.
        engine_logp: same shape, those that the tokens were sampled under.
        cap: largest weight, which bounds the variance.
    """
    return (logp.detach() - engine_logp).exp().clamp(max=cap)


def dr_grpo_normaliser(rows: int, max_response_tokens: int) -> float:
    """What the sum of all token losses of an optimizer window is divided by, once: rows * max_response_tokens.

    Dr.GRPO (arXiv 2503.20783): a constant in place of the response lengths, so that long responses are not favoured.
    Dividing once matters: a mean taken inside each micro-batch weighs tokens by the company they keep, and the loss
    then depends on packing and on the number of processes.

    Args:
        rows: rows of the whole window, over all micro-batches and processes; an empty window counts as one row, so
            that its loss is 0 and not 0 / 0.
        max_response_tokens: the limit on response tokens, prefix included.
    """
    if rows < 0 or max_response_tokens < 1:
        raise ValueError(
            f"rows = {rows}, max_response_tokens = {max_response_tokens} give no normaliser; "
            "use rows >= 0 and max_response_tokens >= 1"
        )
    return float(max(rows, 1) * max_response_tokens)
