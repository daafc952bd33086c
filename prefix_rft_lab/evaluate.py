"""Evaluation: avg@k, unbiased pass@k, greedy pass@1, by level, with bootstrap intervals over problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from prefix_rft_lab import rng
from prefix_rft_lab.generation import Engine, Request
from prefix_rft_lab.types import EncodedProblem

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int
    """What was resampled: problems, or seeds."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples is right: 1 - C(n-c, k) / C(n, k).

    In product form (Chen et al. 2021, arXiv 2107.03374), which neither overflows nor cancels.

    Raises:
        ValueError: k above n, or c outside [0, n].
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            f"pass@k of n = {n}, correct = {correct}, k = {k} is undefined; use 1 <= k <= n, 0 <= correct <= n"
        )
    if n - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean and 95% percentile interval from resampling the values with replacement; NaN for no values."""
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    picks = rng.generator(seed, "bootstrap").integers(len(data), size=(resamples, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def sample_scores(
    engine: Engine,
    problems: Sequence[EncodedProblem],
    score: Callable[[Sequence[list[int]], Sequence[str]], list[float]],
    *,
    k: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    purpose: str,
    greedy: bool = True,
) -> pd.DataFrame:
    """Sample every problem k times, and once greedily.

    Args:
        score: scores responses (lists of ids) against golds, 0 or 1.
        purpose: names the random keys, e.g. ``"validation"``; the same purpose gives every policy the same keys.

    Returns:
        one row a problem: id, split, level, k, correct (of k), greedy (0/1 or NaN), tokens (mean length),
        truncated (share of samples).
    """
    requests = [
        Request(context_ids=p.prompt_ids, max_new_tokens=max_tokens, key=rng.key(seed, purpose, p.index, sample))
        for p in problems
        for sample in range(k)
    ]
    completions = engine.generate(requests, temperature=temperature)
    scores = score([c.token_ids for c in completions], [p.problem.answer for p in problems for _ in range(k)])
    greedy_scores: list[float] = [float("nan")] * len(problems)
    if greedy:
        firsts = requests[::k]
        best = engine.generate(firsts, greedy=True)
        greedy_scores = score([c.token_ids for c in best], [p.problem.answer for p in problems])
    rows: list[dict[str, Any]] = []
    for i, problem in enumerate(problems):
        own = slice(i * k, (i + 1) * k)
        rows.append(
            {
                "id": problem.problem.id,
                "split": problem.problem.split,
                "level": problem.problem.level,
                "k": k,
                "correct": int(sum(scores[own])),
                "greedy": greedy_scores[i],
                "tokens": float(np.mean([len(c.token_ids) for c in completions[own]])),
                "truncated": float(np.mean([c.truncated for c in completions[own]])),
            }
        )
    return pd.DataFrame(rows)


def unsolved_scores(problems: Sequence[EncodedProblem], *, k: int) -> pd.DataFrame:
    """The table of :func:`sample_scores` for a policy that is no more: nothing solved, and no lengths."""
    nan = float("nan")
    return pd.DataFrame(
        [
            {
                "id": problem.problem.id,
                "split": problem.problem.split,
                "level": problem.problem.level,
                "k": k,
                "correct": 0,
                "greedy": 0.0,
                "tokens": nan,
                "truncated": nan,
            }
            for problem in problems
        ]
    )


def pass_curve(table: pd.DataFrame) -> pd.DataFrame:
    """Unbiased pass@k at k = 1, 2, 4, ... and the number of samples, with 95% intervals over problems.

    Args:
        table: from :func:`sample_scores`; all rows share one number of samples.

    Returns:
        one row a k: k, mean, low, high, problems.
    """
    n = int(table["k"].iloc[0])
    ks = sorted({min(2**power, n) for power in range(n.bit_length() + 1)})
    intervals = {k: bootstrap([pass_at_k(n, int(c), k) for c in table["correct"]]) for k in ks}
    return pd.DataFrame(
        [{"k": k, "mean": i.mean, "low": i.low, "high": i.high, "problems": i.n} for k, i in intervals.items()]
    )


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
        interval = bootstrap(values.tolist())
        out[name] = interval.mean
        out[f"{name}_interval"] = [interval.low, interval.high]
    out["tokens"] = float(table["tokens"].mean())
    out["truncated"] = float(table["truncated"].mean())
    if by_level:
        out["levels"] = {
            str(level): summarise(part, by_level=False) for level, part in table.groupby("level", sort=False) if level
        }
    return out
