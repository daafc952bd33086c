"""Scores of one evaluation: avg@k, unbiased pass@k, greedy pass@1, by level, and the one way to an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from prefix_rft_lab.core import columns

INTERVALS = "95% Student's t intervals over seeds and problems; where few problems differ, exact bounds of their part"
"""How every interval of the kit is made, as tables and figures say it."""

SHARE = (0.0, 1.0)
"""What a share can be."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or a difference of means, and how sure it is."""

    mean: float
    error: float
    """Standard error over seeds and problems; NaN for one number without spread."""
    freedom: float
    """Satterthwaite's degrees of freedom; NaN as above, infinite where nothing varies."""
    limits: tuple[float, float] | None = None
    """Lowest and highest value that is possible, for means of bounded scores."""
    seeds: tuple[float, float] = (0.0, np.inf)
    """Standard error of the seeds alone and its degrees of freedom."""
    rare: tuple[int, int, float, float, float] | None = None
    """Of bounded scores: problems, how many of them depart from the commonest score, that score, and the sums of what the
    others lie above and below it, each as a share of what is possible."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of that level; NaN where the spread is unknown.

        Student's t. Scores without spread are no certainty: where fewer than 5 z^2 / 2 problems (10 at 95%), and less than
        half of them, depart from the commonest score, the exact (Clopper-Pearson) limits of the departures up and down
        are joined with the seeds' error by squares (MOVER, Zou & Donner 2008), and the wider limit counts on either side.
        """
        from scipy.special import ndtri, stdtrit

        upper = (1 + level) / 2
        half = float(stdtrit(self.freedom, upper)) * self.error if self.error > 0 else self.error
        low, high = self.mean - half, self.mean + half
        if self.limits is None:
            # Nothing bounds what other seeds would give.
            return (low, high) if self.error > 0 else (float("nan"), float("nan"))
        lowest, highest = self.limits
        if self.rare is not None:
            problems, departing, common, up, down = self.rare
            if departing < 2.5 * float(ndtri(upper)) ** 2 and 2 * departing < problems:
                by_seed = float(stdtrit(self.seeds[1], upper)) * self.seeds[0] if self.seeds[0] > 0 else 0.0
                above, below = highest - common, common - lowest
                (up_low, up_high), (down_low, down_high) = (_exact(s, problems, upper) for s in (up, down))
                rise = np.hypot(above * (up_high - up / problems), below * (down / problems - down_low))
                fall = np.hypot(above * (up / problems - up_low), below * (down_high - down / problems))
                low = np.fmin(low, self.mean - np.hypot(fall, by_seed))
                high = np.fmax(high, self.mean + np.hypot(rise, by_seed))
        return float(np.clip(low, lowest, highest)), float(np.clip(high, lowest, highest))


def _exact(total: float, n: int, upper: float) -> tuple[float, float]:
    """Clopper-Pearson limits of the mean of n values in [0, 1] with that sum."""
    from scipy.special import betaincinv

    low = float(betaincinv(total, n - total + 1, 1 - upper)) if total > 0 else 0.0
    return low, float(betaincinv(total + 1, n - total, upper)) if total < n else 1.0


def estimate(a: np.ndarray, b: np.ndarray | None = None, *, bounds: tuple[float, float] | None = None) -> Estimate:
    """Mean of a (minus mean of b), (seeds, problems) tables on the same problems; NaN if a score is missing.

    The squared error is s^2 / n over the seeds' means of each side that has several, plus s^2 / P over the problems'
    (paired) means. For one problem it is the t interval of ``scipy.stats.ttest_ind(equal_var=False)``. Both parts hold
    some of what is left of a sample (the interaction of seed and problem), so the error is a little too large, never too
    small. A bootstrap over n seeds underestimates their variance by (n-1)/n and has no tails.

    ``docs/intervals.md`` has how often such an interval holds the true difference, for 2 to 10 seeds and several spreads.

    Args:
        bounds: lowest and highest score that a problem can have (:data:`SHARE`); None for what has no bounds.
    """
    sides = [a] if b is None else [a, b]
    nan = float("nan")
    if any(side.size == 0 or np.isnan(side).any() for side in sides) or len({side.shape[1] for side in sides}) > 1:
        return Estimate(nan, nan, nan)
    by_problem = a.mean(axis=0) - (0.0 if b is None else b.mean(axis=0))
    seeds = [(side.mean(axis=1).var(ddof=1) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    parts = list(seeds)
    if len(by_problem) > 1:
        parts.append((by_problem.var(ddof=1) / len(by_problem), len(by_problem) - 1))
    limits = rare = None
    if bounds is not None:
        lowest, highest = bounds if b is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
        limits = (lowest, highest)
        values, counts = np.unique(by_problem.round(12), return_counts=True)
        common = float(values[counts.argmax()])
        apart = by_problem - common
        # No problem can lie above the highest score; the part is 0 / 0 there.
        up, down = (
            float(np.clip(sign * apart, 0, None).sum() / room) if room > 0 else 0.0
            for sign, room in ((1, highest - common), (-1, common - lowest))
        )
        rare = (len(by_problem), len(by_problem) - int(counts.max()), common, up, down)
    if not parts:
        return Estimate(float(by_problem.mean()), nan, nan, limits, rare=rare)
    (error, freedom), of_seeds = _pooled(parts), _pooled(seeds)
    return Estimate(float(by_problem.mean()), error, freedom, limits, of_seeds, rare)


def _pooled(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Standard error and Satterthwaite's degrees of freedom of a sum of (variance, degrees of freedom)."""
    variance = float(sum(part for part, _ in parts))
    below = float(sum(part**2 / freedom for part, freedom in parts))
    return float(np.sqrt(variance)), variance**2 / below if below > 0 else np.inf


def over_problems(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the problems' shares of one run and its 95% interval over problems; NaN for no values."""
    found = estimate(np.asarray(values, dtype=float)[None, :], bounds=SHARE)
    return (found.mean, *found.interval())


def scores_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The shares of a summary with their intervals, as tables join them: avg, avg_low, avg_high, and so on."""
    return {
        f"{name}{end}": value
        for name in columns.SHARES
        for end, value in zip(("", "_low", "_high"), (summary[name], *summary[f"{name}_interval"]), strict=True)
    }


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is right: 1 - C(n-c, k) / C(n, k).

    In product form (Chen et al. 2021, arXiv 2107.03374), which neither overflows nor cancels.

    Raises:
        ValueError: k above n, or c outside [0, n].

    >>> pass_at_k(n=4, correct=1, k=2)
    0.5
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            f"pass@k of n = {n}, correct = {correct}, k = {k} is undefined; use 1 <= k <= n, 0 <= correct <= n"
        )
    if n - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))


def pass_curve(table: pd.DataFrame) -> pd.DataFrame:
    """Unbiased pass@k at k = 1, 2, 4, ... and the number of samples, with 95% intervals over problems.

    Args:
        table: from :func:`sample_scores`; all rows share one number of samples.

    Returns:
        one row per k: k, mean, low, high, problems.
    """
    n = int(table["k"].iloc[0])
    ks = sorted({min(2**power, n) for power in range(n.bit_length() + 1)})
    rows = [(k, *over_problems([pass_at_k(n, int(c), k) for c in table["correct"]]), len(table)) for k in ks]
    return pd.DataFrame(rows, columns=["k", "mean", "low", "high", "problems"])


def summarise(table: pd.DataFrame, *, by_level: bool = True) -> dict[str, Any]:
    """avg@k, pass@k and greedy pass@1 with intervals over problems, overall and by level, as plain values.

    Args:
        table: from :func:`sample_scores`; all rows share one k.

    Raises:
        ValueError: no problems, or mixed k.
    """
    found = [] if table.empty else sorted(table["k"].unique().tolist())
    if len(found) != 1:
        raise ValueError(f"a summary needs one k, got {found}; evaluate at least one problem, with one k")
    k = int(table["k"].iloc[0])
    out: dict[str, Any] = {"k": k, "problems": len(table)}
    for name, values in (
        ("avg", table["correct"] / k),
        ("pass", pd.Series([pass_at_k(k, int(c), k) for c in table["correct"]])),
        ("greedy", table["greedy"].dropna()),
    ):
        out[name], *out[f"{name}_interval"] = over_problems(values.tolist())
    out["tokens"] = float(table["tokens"].mean())
    out["truncated"] = float(table["truncated"].mean())
    if by_level:
        out["levels"] = {
            str(level): summarise(part, by_level=False) for level, part in table.groupby("level", sort=False) if level
        }
    return out
