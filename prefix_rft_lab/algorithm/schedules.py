"""How long prefixes are: a window of ratios that opens over training, a draw from it, a number of tokens.

Prefix-RFT (arXiv 2507.01679, section 3) draws, for every hybrid row,

    ratio = low_t + (high - low_t) * Beta(alpha, beta)

and lets ``low_t`` fall on a half cosine, so that early prefixes give most of the demonstration away and late ones
leave most of it to the policy. With the paper's numbers the mean ratio goes 0.95 -> 0.725 -> 0.5. Everything here
is a function of (config, step); nothing counts steps for itself, so a resumed run cannot be off by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from prefix_rft_lab.core.config import PrefixConfig, RunConfig


def cosine(step: int, *, init: float, target: float, n_steps: int, warmup_ratio: float = 0.0) -> float:
    """Half cosine from ``init`` to ``target``, after a linear rise from 0 to ``init``.

    With w = int(n_steps * warmup_ratio) and u = step - w::

        init * step / w                                        step < w
        target + (1 + cos(pi u / n_steps)) / 2 * (init-target) 0 <= u <= n_steps
        target                                                 u > n_steps

    The decay takes ``n_steps`` after the warm-up, so it ends at w + n_steps. ``init < target`` gives a rise.

    Args:
        step: steps done so far; the first step of a run is 0.
    """
    warmup = _warmup_steps(n_steps, warmup_ratio)
    if step < warmup:
        return init * step / warmup
    decayed = step - warmup
    if decayed > n_steps:
        return target
    return target + (1 + math.cos(math.pi * decayed / n_steps)) / 2 * (init - target)


def linear(step: int, *, init: float, target: float, n_steps: int, warmup_ratio: float = 0.0) -> float:
    """Straight line from ``init`` to ``target``; warm-up and length as in :func:`cosine`."""
    warmup = _warmup_steps(n_steps, warmup_ratio)
    if step < warmup:
        return init * step / warmup
    decayed = step - warmup
    if decayed >= n_steps:
        return target
    return target + (1 - decayed / n_steps) * (init - target)


SCHEDULES: dict[str, Callable[..., float]] = {"cosine": cosine, "linear": linear}
"""Name -> schedule ``(step, *, init, target, n_steps, warmup_ratio) -> value``."""


def _warmup_steps(n_steps: int, warmup_ratio: float) -> int:
    if n_steps < 1:
        raise ValueError(f"n_steps = {n_steps} leaves no steps to decay over; use at least 1")
    return int(n_steps * warmup_ratio)


def ordered_window(a: float, b: float) -> tuple[float, float]:
    """(low, high) of two ends in either order; a schedule may cross the other end."""
    return min(a, b), max(a, b)


def window_mean(low: float, high: float, alpha: float, beta: float) -> float:
    """Mean of low + (high-low) * Beta(alpha, beta): low + (high-low) * alpha / (alpha+beta)."""
    return low + (high - low) * alpha / (alpha + beta)


def window_variance(low: float, high: float, alpha: float, beta: float) -> float:
    """Variance of low + (high-low) * Beta(alpha, beta): (high-low)^2 ab / ((a+b)^2 (a+b+1))."""
    total = alpha + beta
    return (high - low) ** 2 * alpha * beta / (total**2 * (total + 1))


def sample_window(low: float, high: float, alpha: float, beta: float, rng: np.random.Generator) -> float:
    """One draw of low + (high-low) * Beta(alpha, beta), never outside [low, high]."""
    # low + (high - low) can round to just above high, and a ratio above 1 is an error further on.
    return min(max(low + (high - low) * float(rng.beta(alpha, beta)), low), high)


def of_run(config: RunConfig) -> PrefixConfig:
    """The ``prefix`` section of a run with the length of its decay, which follows ``rl.steps`` where it is not set."""
    section = config.prefix
    if section.decay_steps is not None:
        return section
    steps = int((config.rl.steps - section.delay_steps) / (1 + section.warmup_ratio))
    return section.model_copy(update={"decay_steps": max(steps, 1)})


def ratio_window(config: PrefixConfig, step: int) -> tuple[float, float]:
    """The window (low, high) that prefix ratios are drawn from at ``step``, fractions of the demonstration.

    ``config`` has a length of the decay: see :func:`of_run`.

    ``cosine`` and ``linear`` move the lower end from ``config.high`` to ``config.low`` over ``decay_steps``,
    after ``delay_steps`` of a closed window and a warm-up of ``warmup_ratio * decay_steps`` steps; ``uniform`` is
    [low, high] from the start; ``constant`` is [high, high].
    """
    if config.schedule == "uniform":
        return config.low, config.high
    if config.schedule == "constant" or step < config.delay_steps:
        return config.high, config.high
    if config.decay_steps is None:
        raise ValueError("prefix.decay_steps is not set; take schedules.of_run(config)")
    moving = SCHEDULES[config.schedule](
        step - config.delay_steps,
        init=config.high,
        target=config.low,
        n_steps=config.decay_steps,
        warmup_ratio=config.warmup_ratio,
    )
    return ordered_window(moving, config.high)


def mean_ratio(config: PrefixConfig, step: int) -> float:
    """Expected prefix ratio at ``step`` (closed form)."""
    return window_mean(*ratio_window(config, step), config.alpha, config.beta)


def ratio_variance(config: PrefixConfig, step: int) -> float:
    """Variance of the prefix ratio at ``step`` (closed form)."""
    return window_variance(*ratio_window(config, step), config.alpha, config.beta)


def sample_ratio(config: PrefixConfig, step: int, rng: np.random.Generator) -> float:
    """Draw the prefix ratio of one hybrid row; ``rng`` is keyed by (seed, purpose, step, problem, row)."""
    return sample_window(*ratio_window(config, step), config.alpha, config.beta, rng)


def hint_steps(config: RunConfig) -> int:
    """UFT's T_hint: training steps with hints, ``uft.hint_steps`` or six tenths of ``rl.steps``."""
    return round(0.6 * config.rl.steps) if config.uft.hint_steps is None else config.uft.hint_steps


def prefix_length(ratio: float, demonstration_tokens: int, min_tokens: int = 0) -> int:
    """Tokens of the demonstration that become the prefix (arXiv 2507.01679, section 3).

    0 if the ratio or the demonstration is empty, else min(max(floor(ratio * n), min_tokens), n - 1): at least one
    token is always left to the policy, whatever the minimum. The product is taken in double precision, as in the
    published code.

    Args:
        ratio: fraction of the demonstration, in [0, 1].
        demonstration_tokens: n, its length in tokens, without the end token.
        min_tokens: least prefix length, in tokens.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"prefix ratio = {ratio} lies outside [0, 1]; give a fraction of the demonstration")
    if demonstration_tokens < 0 or min_tokens < 0:
        raise ValueError(
            f"demonstration_tokens = {demonstration_tokens}, min_tokens = {min_tokens}: "
            "a number of tokens is negative; use 0 or more"
        )
    if ratio == 0 or demonstration_tokens == 0:
        return 0
    return min(max(math.floor(ratio * demonstration_tokens), min_tokens), demonstration_tokens - 1)
