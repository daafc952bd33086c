"""How long prefixes are: a window of ratios that opens over training, a draw from it, a number of tokens.

Prefix-RFT (arXiv 2507.01679, section 3) draws, for every hybrid row,

    ratio = low_t + (high - low_t) * Beta(alpha, beta)

and lets ``low_t`` fall on a half cosine, so that early prefixes give most of the demonstration away and late ones
leave most of it to the policy. With the paper's numbers the mean ratio goes 0.95 -> 0.725 -> 0.5. Schedules of the
window, samplers of ratios and units of prefixes are open: :data:`SCHEDULES`, :data:`SAMPLERS`, :data:`UNITS`. Everything here is a function of (config, step); nothing counts steps for itself, so a resumed run cannot be off by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from prefix_rft_lab.core.config import ConfigError, PrefixConfig, RunConfig
from prefix_rft_lab.core.registry import Registry
from prefix_rft_lab.core.types import Demonstration


def cosine(step: int, *, init: float, target: float, n_steps: int, warmup_ratio: float = 0.0) -> float:
    """Half cosine from ``init`` to ``target``, after a linear rise from 0 to ``init``.

    With w = int(n_steps * warmup_ratio) and u = step - w::

        init * step / w                                        step < w
        target + (1 + cos(pi u / n_steps)) / 2 * (init-target) 0 <= u <= n_steps
        target                                                 u > n_steps

    The decay takes ``n_steps`` after the warm-up, so it ends at w + n_steps. ``init < target`` gives a rise.

    Args:
        step: steps done so far; the first step of a run is 0.

    >>> [round(cosine(step, init=0.95, target=0.05, n_steps=100), 3) for step in (0, 50, 100, 150)]
    [0.95, 0.5, 0.05, 0.05]
    """
    warmup = int(n_steps * warmup_ratio)
    if step < warmup:
        return init * step / warmup
    decayed = step - warmup
    if decayed > n_steps:
        return target
    return target + (1 + math.cos(math.pi * decayed / n_steps)) / 2 * (init - target)


def linear(step: int, *, init: float, target: float, n_steps: int, warmup_ratio: float = 0.0) -> float:
    """Straight line from ``init`` to ``target``; warm-up and length as in :func:`cosine`."""
    warmup = int(n_steps * warmup_ratio)
    if step < warmup:
        return init * step / warmup
    decayed = step - warmup
    if decayed >= n_steps:
        return target
    return target + (1 - decayed / n_steps) * (init - target)


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
    """The ``prefix`` section of a run with the length of its decay, which follows ``rl.steps`` where it is not set.

    >>> from prefix_rft_lab import preset
    >>> of_run(preset("tiny", **{"rl.steps": 80})).decay_steps
    80
    """
    section = config.prefix
    if section.decay_steps is not None:
        return section
    steps = int((config.rl.steps - section.delay_steps) / (1 + section.warmup_ratio))
    return section.model_copy(update={"decay_steps": max(steps, 1)})


Schedule = Callable[[int, PrefixConfig], tuple[float, float]]
SCHEDULES = Registry[Schedule]("prefix schedule", "prefix.schedule")
"""Name (``prefix.schedule``) -> ``(step, settings) -> (low, high)``: the window of ratios at a step of the stage, fractions of
the demonstration; ``settings`` is the ``prefix`` section with a length of the decay."""
register = SCHEDULES.register


@register("cosine")
def cosine_window(step: int, settings: PrefixConfig) -> tuple[float, float]:
    """[moving, high], where the lower end falls from ``high`` to ``low`` on a half cosine over ``decay_steps``, after
    ``delay_steps`` of a closed window and a warm-up of ``warmup_ratio * decay_steps`` steps."""
    return _moving(cosine, step, settings)


@register("linear")
def linear_window(step: int, settings: PrefixConfig) -> tuple[float, float]:
    """As ``cosine``, on a straight line."""
    return _moving(linear, step, settings)


@register("uniform")
def uniform_window(step: int, settings: PrefixConfig) -> tuple[float, float]:
    """[low, high] from the start (the paper's ablation)."""
    return settings.low, settings.high


@register("constant")
def constant_window(step: int, settings: PrefixConfig) -> tuple[float, float]:
    """[high, high]: always the same ratio."""
    return settings.high, settings.high


def _moving(curve: Callable[..., float], step: int, settings: PrefixConfig) -> tuple[float, float]:
    if settings.decay_steps is None:
        raise ValueError("prefix.decay_steps is not set; take schedules.of_run(config)")
    if step < settings.delay_steps:
        return settings.high, settings.high
    moving = curve(
        step - settings.delay_steps,
        init=settings.high,
        target=settings.low,
        n_steps=settings.decay_steps,
        warmup_ratio=settings.warmup_ratio,
    )
    # Rounding may carry it past the end of the range.
    return ordered_window(min(max(moving, 0.0), 1.0), settings.high)


def ratio_window(config: PrefixConfig, step: int) -> tuple[float, float]:
    """The window (low, high) that prefix ratios are drawn from at ``step``, fractions of the demonstration.

    ``config`` has a length of the decay: see :func:`of_run`.

    Raises:
        ConfigError: the schedule gives no window: 0 <= low <= high <= 1.

    >>> from prefix_rft_lab import preset
    >>> settings = of_run(preset("tiny", **{"rl.steps": 100}))
    >>> [tuple(round(end, 3) for end in ratio_window(settings, step)) for step in (0, 50, 100)]
    [(0.95, 0.95), (0.5, 0.95), (0.05, 0.95)]
    """
    found = SCHEDULES.find(config.schedule)(step, config)
    try:
        low, high = (float(end) for end in found)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 <= low <= high <= 1:
        raise ConfigError(
            f"prefix.schedule = {config.schedule!r} gives {found!r} at step {step}; it should give (low, high) with "
            "0 <= low <= high <= 1"
        )
    return low, high


def check(config: RunConfig) -> None:
    """Try the schedule at every step, before any work is lost.

    Raises:
        ConfigError: it gives no window at some step, or a setting has no meaning with it.
    """
    settings = of_run(config)
    for step in range(config.rl.steps):
        ratio_window(settings, step)
    for name in ("delay_steps", "warmup_ratio"):
        if getattr(settings, name) and settings.schedule in ("uniform", "constant"):
            raise ConfigError(
                f"prefix.{name} = {getattr(settings, name)} has no meaning with prefix.schedule = {settings.schedule!r}, "
                "which does not move; leave it at 0, or use cosine or linear"
            )


def mean_ratio(config: PrefixConfig, step: int) -> float:
    """Expected prefix ratio at ``step`` (closed form).

    >>> from prefix_rft_lab import preset
    >>> settings = of_run(preset("tiny", **{"rl.steps": 100}))
    >>> [round(mean_ratio(settings, step), 3) for step in (0, 50, 100)]
    [0.95, 0.725, 0.5]
    """
    return window_mean(*ratio_window(config, step), config.alpha, config.beta)


def ratio_variance(config: PrefixConfig, step: int) -> float:
    """Variance of the prefix ratio at ``step`` (closed form)."""
    return window_variance(*ratio_window(config, step), config.alpha, config.beta)


Sampler = Callable[[float, float, PrefixConfig, np.random.Generator], float]
SAMPLERS = Registry[Sampler]("sampler of prefix ratios", "prefix.sampler")
"""Name (``prefix.sampler``) -> ``(low, high, settings, rng) -> ratio`` in [low, high]."""


@SAMPLERS.register("beta")
def beta(low: float, high: float, settings: PrefixConfig, rng: np.random.Generator) -> float:
    """low + (high - low) * Beta(alpha, beta); the means and variances of this module are of it."""
    return sample_window(low, high, settings.alpha, settings.beta, rng)


def sample_ratio(config: PrefixConfig, step: int, rng: np.random.Generator) -> float:
    """Draw the prefix ratio of one hybrid row; ``rng`` is keyed by (seed, purpose, step, problem, row).

    Raises:
        ConfigError: the sampler leaves the window.

    >>> from prefix_rft_lab import preset
    >>> from prefix_rft_lab.core import rng
    >>> settings = of_run(preset("tiny", **{"rl.steps": 100}))
    >>> round(sample_ratio(settings, 50, rng.generator(0, "prefix", 50, 7, 0)), 4)
    0.8252
    """
    low, high = ratio_window(config, step)
    ratio = float(SAMPLERS.find(config.sampler)(low, high, config, rng))
    if not low <= ratio <= high:
        raise ConfigError(
            f"prefix.sampler = {config.sampler!r} gives {ratio} at step {step}; it should lie in [{low:g}, {high:g}]"
        )
    return ratio


def prefix_length(ratio: float, demonstration_tokens: int, min_tokens: int = 0) -> int:
    """Tokens of the demonstration that become the prefix (arXiv 2507.01679, section 3).

    0 if the ratio or the demonstration is empty, else min(max(floor(ratio * n), min_tokens), n - 1): at least one
    token is always left to the policy, whatever the minimum. The product is taken in double precision, as in the
    published code.

    Args:
        ratio: fraction of the demonstration, in [0, 1].
        demonstration_tokens: n, its length in tokens, without the end token.
        min_tokens: least prefix length, in tokens.

    >>> prefix_length(0.5, 9), prefix_length(1.0, 9), prefix_length(0.05, 9, min_tokens=2)
    (4, 8, 2)
    """
    if ratio == 0 or demonstration_tokens == 0:
        return 0
    return min(max(math.floor(ratio * demonstration_tokens), min_tokens), demonstration_tokens - 1)


Unit = Callable[[int, Demonstration], int]
UNITS = Registry[Unit]("unit of prefixes", "prefix.unit")
"""Name (``prefix.unit``) -> ``(tokens, demonstration) -> tokens``: where a prefix of so many tokens is cut, at most there."""


@UNITS.register("token")
def whole_tokens(tokens: int, demonstration: Demonstration) -> int:
    """Cut where it falls."""
    return tokens


@UNITS.register("step")
def whole_steps(tokens: int, demonstration: Demonstration) -> int:
    """Cut after the last solution step (a line) that fits."""
    return max((end for end in demonstration.step_ends if end <= tokens), default=0)


def cut_prefix(ratio: float, demonstration: Demonstration, settings: PrefixConfig) -> list[int]:
    """The ids of the demonstration that become the prefix, without its end token: counted in, a ratio below 1 could give the
    whole answer away.

    Raises:
        ConfigError: the unit cuts elsewhere than within the drawn prefix.
    """
    most = prefix_length(ratio, len(demonstration.ids) - 1, settings.min_tokens)
    length = UNITS.find(settings.unit)(most, demonstration)
    if not 0 <= length <= most:
        raise ConfigError(
            f"prefix.unit = {settings.unit!r} gives {length} of {most} tokens; it should give 0 to {most}"
        )
    return demonstration.ids[:length]
