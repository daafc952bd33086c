"""Published ways to change advantages and log-probabilities of prefix tokens before the loss.

They act on one micro-batch, padded, the way the published code has it, so that its variants can be run and compared
number by number. The kit's own trainer needs only :func:`prefix_rft_lab.entropy.clip_mask`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from prefix_rft_lab.advantages import RowAdvantages
from prefix_rft_lab.entropy import drop_lowest, dropped_count

from .aggregations import masked_mean

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightingInputs:
    """A micro-batch; every tensor is (rows, tokens), padded on the right."""

    advantages: torch.Tensor
    logp: torch.Tensor
    """Current policy, nats, differentiable."""
    old_logp: torch.Tensor
    """Before the update, nats."""
    response_mask: torch.Tensor
    """bool: the response without padding."""
    prefix_mask: torch.Tensor
    """bool: the prefix tokens in it."""
    entropy: torch.Tensor | None = None
    """Of the current policy, nats; for ``entropy`` and ``entropy_low``."""
    mask_ratio: float | None = None
    """Share of the prefix tokens that is dropped, in [0, 1]; ``random`` reads it as a percentage."""
    uniforms: torch.Tensor | None = None
    """Uniform draws keyed by token; for ``random``."""
    prefix_relpos: torch.Tensor | None = None
    """Position from 1 over demonstration length on prefix tokens; for ``position``."""
    window_low: float | None = None
    """Mean lower end of the prefix-ratio window; for ``position``."""
    window_high: float | None = None
    """Mean upper end of the prefix-ratio window; for ``position``."""


def identity(batch: WeightingInputs) -> WeightingInputs:
    """Nothing changes."""
    return batch


def entropy(batch: WeightingInputs) -> WeightingInputs:
    """The int(N * mask_ratio) of N prefix tokens with the lowest entropy get advantage 0; others stay."""
    low = batch.prefix_mask.bool() & ~_high_entropy(batch)
    return replace(batch, advantages=torch.where(low, 0.0, batch.advantages))


def entropy_low(batch: WeightingInputs) -> WeightingInputs:
    """Only the int(N * mask_ratio) prefix tokens with the lowest entropy keep theirs; all else is 0.

    "All else" takes in the tokens outside prefixes, as published.
    """
    low = batch.prefix_mask.bool() & ~_high_entropy(batch)
    return replace(batch, advantages=torch.where(low, batch.advantages, 0.0))


def random(batch: WeightingInputs) -> WeightingInputs:
    """int(N * mask_ratio / 100) prefix tokens, chosen uniformly, get advantage 0.

    As published the number is read as a percentage, although ``entropy`` reads it as a fraction: 0.8 drops 0.8%.
    """
    uniforms, mask_ratio = _given(batch.uniforms, "uniforms"), _given(batch.mask_ratio, "mask_ratio")
    stay = drop_lowest(uniforms, batch.prefix_mask, lambda n: int(n * mask_ratio / 100))
    return replace(batch, advantages=torch.where(batch.prefix_mask.bool() & ~stay, 0.0, batch.advantages))


def luffy(batch: WeightingInputs) -> WeightingInputs:
    """log p becomes log p + old - log(p + 0.1) on prefix tokens, so that the ratio becomes p / (p + 0.1)."""
    shaped = batch.logp + batch.old_logp - (batch.logp.exp() + 0.1).log()
    return replace(batch, logp=torch.where(batch.prefix_mask.bool(), shaped, batch.logp))


def importance_sampling(batch: WeightingInputs) -> WeightingInputs:
    """log p becomes log p + old on prefix tokens, so that the ratio becomes p."""
    return replace(batch, logp=torch.where(batch.prefix_mask.bool(), batch.logp + batch.old_logp, batch.logp))


def length_on(batch: WeightingInputs) -> WeightingInputs:
    """In rows that fill the whole width, tokens outside the prefix get advantage 0."""
    response, width = batch.response_mask.bool(), batch.response_mask.shape[1]
    full = response.sum(1, keepdim=True) == width
    return replace(batch, advantages=torch.where(full & response & ~batch.prefix_mask.bool(), 0.0, batch.advantages))


def position(batch: WeightingInputs) -> WeightingInputs:
    """Advantages of prefix tokens times w: positions that few prefixes reach weigh more.

    With x the relative position and [a, b] the window::

        f = 2 / (a+b)              x <= a
            2 (b-x) / (b^2-a^2)    a < x <= b
            0                      x > b
        w = 1 / max(f, 0.001), over the mean of w on prefix tokens
    """
    a, b = _given(batch.window_low, "window_low"), _given(batch.window_high, "window_high")
    x = _given(batch.prefix_relpos, "prefix_relpos")
    if not 0 <= a <= b or b == 0:
        raise ValueError(f"window_low = {a}, window_high = {b} is no window of ratios; use 0 <= low <= high, high > 0")
    # A closed window has no falling part, only an edge; the condition a < x <= b is then never met.
    falling = 2 * (b - x) / (b * b - a * a) if b > a else torch.zeros_like(x)
    f = torch.where(x <= a, 2 / (a + b), torch.where(x <= b, falling, 0.0))
    weight = 1 / f.clamp(min=0.001)
    weight = weight / masked_mean(weight, batch.prefix_mask)
    return replace(batch, advantages=torch.where(batch.prefix_mask.bool(), batch.advantages * weight, batch.advantages))


TRANSFORMS: dict[str, Callable[[WeightingInputs], WeightingInputs]] = {
    "identity": identity,
    "entropy": entropy,
    "entropy_low": entropy_low,
    "random": random,
    "luffy": luffy,
    "importance_sampling": importance_sampling,
    "length_on": length_on,
    "position": position,
}
"""Published name -> transform of a micro-batch that has at least one prefix token."""


def apply_transforms(names: Sequence[str], batch: WeightingInputs) -> WeightingInputs:
    """Apply transforms left to right; without a prefix token nothing is changed, whatever is listed."""
    for name in names:
        if name not in TRANSFORMS:
            raise ValueError(f"transform = {name!r} is not known; use one of {', '.join(TRANSFORMS)}")
    if batch.prefix_mask.bool().any():
        for name in names:
            batch = TRANSFORMS[name](batch)
    return batch


def token_advantages(rows: RowAdvantages, response_mask: torch.Tensor, prefix_mask: torch.Tensor) -> torch.Tensor:
    """Spread row values over padded tokens.

    Args:
        rows: values a row.
        response_mask: (rows, tokens) bool, the response without padding.
        prefix_mask: (rows, tokens) bool, the prefix tokens in it.

    Returns:
        (rows, tokens), 0 outside the response.
    """
    values = torch.where(prefix_mask.bool(), rows.prefix[:, None], rows.sampled[:, None])
    return torch.where(response_mask.bool(), values, 0.0)


def _high_entropy(batch: WeightingInputs) -> torch.Tensor:
    """bool (rows, tokens): the prefix tokens outside the lowest int(N * mask_ratio)."""
    count = partial(dropped_count, mask_ratio=_given(batch.mask_ratio, "mask_ratio"))
    return drop_lowest(_given(batch.entropy, "entropy"), batch.prefix_mask, count)


def _given(value: _T | None, name: str) -> _T:
    if value is None:
        raise ValueError(f"{name} is missing; this transform needs it")
    return value
