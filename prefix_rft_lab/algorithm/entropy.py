"""Entropy of the policy at each token, and the clip that trains the prefix only where the policy is unsure.

Prefix-RFT (arXiv 2507.01679, section 3) sets the advantage of the lowest-entropy prefix tokens to 0: a demonstration
is long, and most of its tokens teach nothing but its style. Which tokens are ranked together is the caller's choice
(``group``): the whole optimizer window, a row, or a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.registry import Registry


def log_probs_and_entropy(logits: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a whole vocabulary and their entropy in nats, without a gradient.

    With z = (logits - max) / temperature and s = sum e^z: log p = z - log s and H = log s - (sum e^z z) / s. Nothing in
    that sum is rounded to the size of log V, so H agrees with float64 arithmetic to 1e-6 nats for any vocabulary, where
    -sum p log p over float32 log-probabilities carries the rounding of log s into every term. A logit of -inf is a
    token that cannot be drawn; a NaN gives NaN.

    Args:
        logits: (..., vocab); half precision is computed in float32, float64 stays.
        temperature: divides the logits, above 0.

    Returns:
        log-probabilities (..., vocab) and entropy (...,), float32 or float64.
    """
    logits = logits.detach()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    z = logits - logits.amax(-1, keepdim=True)
    if temperature != 1.0:
        z.div_(temperature)
    weights = z.exp()
    total = _sum(weights)
    # 0 * -inf is NaN and the limit is 0; a NaN among the logits is in the total and stays.
    mean = _sum(weights.mul_(z).nan_to_num_(nan=0.0)) / total
    log_total = total.log()
    return z.sub_(log_total.to(z.dtype)[..., None]), (log_total - mean).to(z.dtype)


def _sum(values: torch.Tensor, block: int = 256) -> torch.Tensor:
    """(..., vocab) -> (...) float64: summed in blocks, and the blocks in float64, without a float64 copy of the values.

    A float32 sum over 150,000 tokens alone would be off by 1e-6.
    """
    blocks, rest = divmod(values.shape[-1], block)
    whole = values[..., : blocks * block].unflatten(-1, (blocks, block)).sum(-1)
    return whole.sum(-1, dtype=torch.float64) + values[..., values.shape[-1] - rest :].sum(-1, dtype=torch.float64)


class _LogpAndEntropy(torch.autograd.Function):
    """Written out because autograd would keep three tensors of the size of the logits; this keeps one.

    With p = softmax(x / T), y the target, H the entropy::

        T d logp_y / dx = onehot(y) - p
        T d H / dx      = -p (log p + H)
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        log_probs, entropy = log_probs_and_entropy(logits, temperature)
        logp = log_probs.gather(-1, targets[..., None]).squeeze(-1)
        ctx.save_for_backward(log_probs, targets, entropy)
        ctx.temperature = temperature
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None]:
        grad_logp, grad_entropy = grads
        if grad_logp is None and grad_entropy is None:
            return None, None, None
        log_probs, targets, entropy = ctx.saved_tensors
        probs = log_probs.exp()
        if grad_entropy is None:
            grad = probs.mul_(-grad_logp[..., None])  # type: ignore[index]
        else:
            # Times p before anything else: 0 times the most negative number is 0, 0 times -inf is not.
            grad = log_probs.clamp(min=torch.finfo(log_probs.dtype).min).add_(entropy[..., None]).mul_(probs)
            grad = grad.mul_(-grad_entropy[..., None])
            if grad_logp is not None:
                grad = grad.sub_(probs.mul_(grad_logp[..., None]))
        if grad_logp is not None:
            grad.scatter_add_(-1, targets[..., None], grad_logp[..., None].to(grad.dtype))
        if ctx.temperature != 1.0:
            grad.div_(ctx.temperature)
        return grad, None, None


def entropy_and_logp(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of the targets and entropy of the distributions they were drawn from, in nats.

    With p = softmax(logits / temperature): logp = log p[target], H = -sum p log p, where p log p = 0 at p = 0. This
    is the entropy of the whole distribution, not the mean NLL of what was drawn. Computed in float32 (float64 for
    float64 logits) as :func:`log_probs_and_entropy` does, differentiable once; a logit of -inf is a token that cannot
    be drawn and gives no NaN.

    Args:
        logits: (..., vocab) next-token logits.
        targets: (...,) int64 ids of the tokens at those places.
        temperature: sampling temperature, above 0.

    Returns:
        (logp, entropy), each (...,).

    >>> logp, entropy = entropy_and_logp(torch.zeros(1, 4), torch.tensor([2]))
    >>> logp, entropy  # log 1/4, and log 4
    (tensor([-1.3863]), tensor([1.3863]))
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logp, entropy = _LogpAndEntropy.apply(logits, targets, temperature)
    return logp, entropy


def dropped_count(m: int, mask_ratio: float) -> int:
    """How many of ``m`` ranked tokens are dropped: int(m * mask_ratio), the product in double precision.

    The published rule to the letter, rounding included: int(100 * 0.29) is 28.
    """
    return int(m * mask_ratio)


def mask_ratio_of(keep_fraction: float) -> float:
    """1 - keep_fraction as a person would write it.

    In binary 1 - 0.8 is 0.19999999999999996, and int(5 * that) is 0 where int(5 * 0.2) is 1. Rounding to 12
    decimals gives the double that 0.2 is written as, hence the count of the published mask ratio. Fractions with
    more decimals (1/3) are left alone: rounding would move them by more than the subtraction did.
    """
    complement = 1 - keep_fraction
    written = round(complement, 12)
    return written if abs(written - complement) < 1e-15 else complement


def drop_lowest(
    values: torch.Tensor, member: torch.Tensor, dropped: Callable[[int], int], group: torch.Tensor | None = None
) -> torch.Tensor:
    """Of the m member tokens of each group, all but the ``dropped(m)`` with the lowest values.

    Ties are broken by position, earlier tokens first to go, so the result is a function of its arguments.

    Args:
        values: what is ranked, any shape.
        member: bool, same shape; tokens outside are never in the result.
        dropped: number to drop, of the number of members in a group.
        group: integer ids, same shape; None ranks all members together.

    Returns:
        bool, same shape: the members that stay.
    """
    place = member.reshape(-1).bool().nonzero().squeeze(1)
    order = values.detach().reshape(-1)[place].argsort(stable=True)
    stay = torch.ones(place.numel(), dtype=torch.bool, device=member.device)
    if group is None:
        stay[order[: dropped(place.numel())]] = False
    else:
        _, index, counts = torch.unique(group.reshape(-1)[place], return_inverse=True, return_counts=True)
        order = order[index[order].argsort(stable=True)]
        limits = torch.tensor([dropped(m) for m in counts.tolist()], dtype=torch.int64, device=member.device)
        rank = torch.arange(place.numel(), device=member.device) - (counts.cumsum(0) - counts)[index[order]]
        stay[order] = rank >= limits[index[order]]
    kept = torch.zeros(member.numel(), dtype=torch.bool, device=member.device)
    kept[place] = stay
    return kept.reshape(member.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInputs:
    """What a keep rule sees of the tokens that are ranked, in whatever order; all of one shape."""

    entropy: torch.Tensor
    """float, nats, of the current policy."""
    logp: torch.Tensor
    """float, nats, log-probability of the token under the current policy."""
    position: torch.Tensor
    """int64, place in the response, from 0."""
    uniforms: torch.Tensor
    """float64 in [0, 1), keyed by token."""


KeepRule = Callable[[RankInputs], "torch.Tensor | None"]
KEEP_RULES = Registry[KeepRule]("keep rule", "prefix.keep")
"""Name (``prefix.keep``) -> what tokens are ranked by: those with the lowest values lose their advantage; None keeps all."""
register = KEEP_RULES.register


@register("top")
def top(tokens: RankInputs) -> torch.Tensor:
    """Keeps the tokens of highest entropy (the paper)."""
    return tokens.entropy


@register("bottom")
def bottom(tokens: RankInputs) -> torch.Tensor:
    """Keeps the tokens of lowest entropy."""
    return -tokens.entropy


@register("random")
def random(tokens: RankInputs) -> torch.Tensor:
    """Keeps tokens at random."""
    return tokens.uniforms


@register("all")
def keep_all(tokens: RankInputs) -> None:
    """Keeps all tokens, whatever the fraction."""


def clip_mask(
    values: torch.Tensor | None, prefix: torch.Tensor, keep_fraction: float, *, group: torch.Tensor | None = None
) -> torch.Tensor:
    """The prefix tokens that keep their advantage (arXiv 2507.01679, section 3).

    Of the M prefix tokens that are ranked together, exactly int(M * (1 - keep_fraction)) are dropped: those with the
    lowest values. See :func:`mask_ratio_of` for 1 - keep_fraction. Ties go by position. Dropped tokens still count in
    denominators, so only advantages may be multiplied by this mask.

    Args:
        values: (tokens,) or any shape, of a rule of :data:`KEEP_RULES`, e.g. the entropy; None keeps all.
        prefix: bool, same shape, True on prefix tokens.
        keep_fraction: share that stays, in [0, 1].
        group: integer ids, same shape: tokens with equal ids are ranked together; None ranks all together.

    Returns:
        bool, same shape: True on the prefix tokens that stay, False on everything else.

    Raises:
        ConfigError: the rule gave another shape, or NaN on a prefix token.

    Of four prefix tokens the two of highest entropy stay; the last token is none of the prefix:

    >>> entropy = torch.tensor([0.1, 2.0, 0.5, 1.0, 9.0])
    >>> clip_mask(entropy, torch.tensor([True, True, True, True, False]), keep_fraction=0.5).tolist()
    [False, True, False, True, False]
    """
    if values is None:
        return prefix.bool().clone()
    if values.shape != prefix.shape or bool(values[prefix.bool()].isnan().any()):
        raise ConfigError(
            f"prefix.keep ranks {tuple(prefix.shape)} tokens by values of shape {tuple(values.shape)}, which should be as "
            "many and not NaN; correct the rule"
        )
    return drop_lowest(values, prefix, partial(dropped_count, mask_ratio=mask_ratio_of(keep_fraction)), group)
