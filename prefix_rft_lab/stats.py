"""Who scored higher, by how much, and how sure that is: statistics over finished runs.

Every run of a comparison answers the same evaluation problems, k times each, so scores form a table

    score[seed, problem]        of each method, problems shared by all methods and seeds

with two sources of chance: which seeds were trained and which problems were drawn. Intervals are 95% percentile
intervals of a two-level bootstrap: every resample draws problems with replacement (the same draw for all seeds and
methods, since they share their problems) and, within each method, seeds with replacement (a draw of its own for each
method, since the runs of two methods have nothing in common but the number of their seed). A method with one seed has
its problems resampled only: such an interval says nothing about other seeds, and every table and sentence says so.
Few seeds also make an interval somewhat too narrow (a bootstrap over n seeds underestimates their variance by a factor
of (n-1)/n), and no interval is corrected for the number of comparisons made; :mod:`prefix_rft_lab.claims` corrects its own,
and takes them from :func:`estimate`.

Nothing here draws from a global generator: equal runs give equal figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from prefix_rft_lab import rng
from prefix_rft_lab.config import ConfigError, flatten
from prefix_rft_lab.evaluate import RESAMPLES, Interval, pass_at_k
from prefix_rft_lab.runs import Run, by_method

Label = Callable[[Run], str]
"""Names the group of a run where groups aren't methods, e.g. ``lambda run: f"keep {run.config.prefix.keep_fraction}"``."""

METRIC_NAMES = {
    "avg": "avg@k",
    "pass": "pass@k",
    "greedy": "greedy pass@1",
    "tokens": "response tokens",
}
"""Metric -> how it is called in sentences; the first three are shares of 1, the last a mean length in tokens."""

_SHARED_FIELDS = ("data.problems", "evaluation.temperature", "rollout.max_response_tokens")
"""Config fields that must agree between the sides of a comparison: they decide what a score means."""


def metric_name(metric: str, k: int) -> str:
    """``avg`` and 8 -> ``avg@8``.

    Raises:
        ConfigError: an unknown metric.
    """
    if metric not in METRIC_NAMES:
        raise ConfigError(f"metric = {metric!r} is not known; use one of {', '.join(METRIC_NAMES)}")
    return METRIC_NAMES[metric].replace("@k", f"@{k}")


# ---------------------------------------------------------------------- groups of runs


def group(runs: Sequence[Run], label: Label | None = None) -> dict[str, list[Run]]:
    """Runs of one config under one name, seeds ascending: by method in the order of METHODS, or by ``label``.

    Raises:
        ConfigError: no runs; two configs, or one seed twice, under one name.
    """
    if not runs:
        raise ConfigError("runs = [] holds nothing to compare; train a run first, or read a folder with runs.load_all")
    groups: dict[str, list[Run]]
    if label is None:
        groups = by_method(runs)
    else:
        groups = {}
        for run in sorted(runs, key=lambda run: run.seed):
            groups.setdefault(label(run), []).append(run)
        # Sorting by seed came first so that each group is ascending; the groups stand as the caller listed them.
        groups = {name: groups[name] for name in dict.fromkeys(label(run) for run in runs)}
    for name, members in groups.items():
        _refuse_mixed(name, members)
    return groups


def _refuse_mixed(name: str, members: Sequence[Run]) -> None:
    first = members[0]
    for other in members[1:]:
        if other.config.hash() != first.config.hash():
            mine, theirs = dict(flatten(first.config.to_dict())), dict(flatten(other.config.to_dict()))
            field = next(f for f in {**mine, **theirs} if f not in ("name", "seed") and mine.get(f) != theirs.get(f))
            raise ConfigError(
                f"{field} = {mine.get(field)!r} and {theirs.get(field)!r} among the runs of {name!r}; compare runs of "
                "one config, or give label= a function that names them apart"
            )
    seeds = [run.seed for run in members]
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise ConfigError(f"seed = {seed} comes twice among the runs of {name!r}; give each run once")


def title(name: str, members: Sequence[Run]) -> str:
    """How a group is printed: the method's title, or the label it was given."""
    return members[0].title if members[0].method == name else name


# ---------------------------------------------------------------------- scores


@dataclass(frozen=True, slots=True)
class Scores:
    """What one group scored on a split."""

    values: Mapping[str, np.ndarray]
    """Metric -> (seeds, problems) float64; NaN where a metric was not measured."""
    counts: np.ndarray  # (seeds, problems) int64: right answers among k
    k: int
    levels: np.ndarray  # (problems,) str
    seeds: tuple[int, ...]

    @property
    def problems(self) -> int:
        return len(self.levels)

    def only(self, member: np.ndarray) -> Scores:
        """The same for some of the problems; ``member`` is (problems,) bool."""
        values = {metric: table[:, member] for metric, table in self.values.items()}
        return Scores(values, self.counts[:, member], self.k, self.levels[member], self.seeds)


def scores(groups: Mapping[str, Sequence[Run]], split: str) -> dict[str, Scores]:
    """Final evaluations of all groups, aligned on their common problems.

    Raises:
        ConfigError: the runs were not evaluated alike (k, problems, temperature, response length).
        RunError: a run has no evaluation of this split.
    """
    everyone = [run for members in groups.values() for run in members]
    _refuse_unlike(everyone)
    tables = {id(run): run.evaluation(split) for run in everyone}
    first = tables[id(everyone[0])]
    for run in everyone:
        table = tables[id(run)]
        ks = sorted({*first["k"], *table["k"]})
        if len(ks) != 1:
            raise ConfigError(
                f"evaluation.k = {' and '.join(map(str, ks))} among the runs; avg@k and pass@k of different k cannot be "
                "compared: evaluate all runs with one k"
            )
        if set(table["id"]) != set(first["id"]) or len(table) != len(first):
            raise ConfigError(
                f"data.eval_problems = {len(first)} and {len(table)} problems of {split!r} among the runs, not the same "
                "ones; evaluate all runs on one set of problems"
            )
    order = list(first["id"])
    out = {}
    for name, members in groups.items():
        aligned = [tables[id(run)].set_index("id").loc[order] for run in members]
        k = int(first["k"].iloc[0])
        counts = np.stack([table["correct"].to_numpy(np.int64) for table in aligned])
        values = {
            "avg": counts / k,
            "pass": (counts > 0).astype(float),
            "greedy": np.stack([table["greedy"].to_numpy(float) for table in aligned]),
            "tokens": np.stack([table["tokens"].to_numpy(float) for table in aligned]),
        }
        levels = np.asarray(aligned[0]["level"].astype(str), dtype=object)
        out[name] = Scores(values, counts, k, levels, tuple(run.seed for run in members))
    return out


def _refuse_unlike(everyone: Sequence[Run]) -> None:
    first = dict(flatten(everyone[0].config.to_dict()))
    for run in everyone[1:]:
        other = dict(flatten(run.config.to_dict()))
        for field in _SHARED_FIELDS:
            if other[field] != first[field]:
                raise ConfigError(
                    f"{field} = {first[field]!r} and {other[field]!r} among the runs ({everyone[0].method} and "
                    f"{run.method}); compare runs that were evaluated alike"
                )


# ---------------------------------------------------------------------- the bootstrap


@lru_cache(maxsize=16)
def _weights(count: int, purpose: str, *parts: str) -> np.ndarray:
    """(RESAMPLES, count): how often each of ``count`` things was drawn, over ``count``; one thing is always drawn."""
    if count == 1:
        return np.ones((RESAMPLES, 1))
    draws = rng.generator(0, purpose, *parts)
    return draws.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def _resampled(table: np.ndarray, side: str) -> np.ndarray:
    """(RESAMPLES,) means of a (seeds, problems) table, seeds drawn for this side, problems shared by all sides."""
    seeds, problems = table.shape
    over_seeds = _weights(seeds, "statistics/seeds", side) @ table
    return np.einsum("rp,rp->r", over_seeds, _weights(problems, "statistics/problems"))


def _interval(mean: float, resampled: np.ndarray, n: int) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(mean, float(low), float(high), n)


def two_level(table: np.ndarray, side: str = "") -> Interval:
    """Mean of a (seeds, problems) table and its two-level interval; NaN if a score is missing.

    Args:
        side: names the draw of seeds; sides that are compared have different names.
    """
    if table.size == 0 or np.isnan(table).any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    return _interval(float(table.mean()), _resampled(table, side), table.shape[1])


def two_level_delta(a: np.ndarray, b: np.ndarray, sides: tuple[str, str] = ("a", "b")) -> Interval:
    """Mean of a - mean of b, two (seeds, problems) tables on the same problems, and its two-level paired interval."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} problems cannot be paired; give tables of the same problems")
    if np.isnan(a).any() or np.isnan(b).any() or a.size == 0 or b.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    resampled = _resampled(a, sides[0]) - _resampled(b, sides[1])
    return _interval(float(a.mean() - b.mean()), resampled, a.shape[1])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or a difference of means, with its standard error."""

    mean: float
    error: float
    """Standard error; NaN for one number without spread."""
    freedom: float
    """Satterthwaite's degrees of freedom; NaN as above, infinite where nothing varies."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's t interval of that level; NaN where there is no standard error."""
        if not self.error > 0:
            return (self.mean, self.mean) if self.error == 0 else (float("nan"), float("nan"))
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half


def estimate(a: np.ndarray, b: np.ndarray | None = None) -> Estimate:
    """Mean of a (minus mean of b), (seeds, problems) tables on the same problems, by variances in place of resampling.

    The squared error is s^2 / n over the seeds' means of each side that has several, plus s^2 / P over the problems'
    (paired) means. For one problem it is the t interval of ``scipy.stats.ttest_ind(equal_var=False)``. Both parts hold
    some of what is left of a sample (the interaction of seed and problem), so the error is a little too large, never too
    small. A bootstrap over n seeds underestimates their variance by (n-1)/n and has no tails: at the levels that many
    comparisons need, its intervals are too narrow.
    """
    sides = [a] if b is None else [a, b]
    if any(side.size == 0 or np.isnan(side).any() for side in sides) or len({side.shape[1] for side in sides}) > 1:
        return Estimate(float("nan"), float("nan"), float("nan"))
    by_problem = a.mean(axis=0) - (0.0 if b is None else b.mean(axis=0))
    parts = [(side.mean(axis=1).var(ddof=1) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    if len(by_problem) > 1:
        parts.append((by_problem.var(ddof=1) / len(by_problem), len(by_problem) - 1))
    if not parts:
        return Estimate(float(by_problem.mean()), float("nan"), float("nan"))
    variance = sum(part for part, _ in parts)
    below = sum(part**2 / freedom for part, freedom in parts)
    return Estimate(float(by_problem.mean()), float(np.sqrt(variance)), variance**2 / below if below > 0 else np.inf)


def iqm(table: np.ndarray, side: str = "") -> Interval:
    """Interquartile mean of the runs' scores: of all (seed, problem) cells, the lowest and highest quarter left out.

    As in rliable (Agarwal et al. 2021, arXiv 2108.13264): ``scipy.stats.trim_mean(cells, 0.25)``, seeds drawn anew within
    each problem (stratified), so that the interval speaks of seeds on these problems.
    """
    from scipy.stats import trim_mean

    if table.size == 0 or np.isnan(table).any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    seeds, problems = table.shape
    draws = rng.generator(0, "statistics/iqm", side)
    columns = np.arange(problems)
    resampled = np.array(
        [
            trim_mean(table[draws.integers(seeds, size=(seeds, problems)), columns], 0.25, axis=None)
            for _ in range(RESAMPLES)
        ]
    )
    return _interval(float(trim_mean(table, 0.25, axis=None)), resampled, problems)


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> Interval:
    """P(a run of a scores higher than a run of b), a tie counting half, with a 95% bootstrap over the runs of both.

    Args:
        a, b: one score a run.
    """
    mine, theirs = np.asarray(a, float), np.asarray(b, float)
    if mine.size == 0 or theirs.size == 0 or np.isnan(mine).any() or np.isnan(theirs).any():
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    wins = (np.sign(mine[:, None] - theirs[None, :]) + 1) / 2
    left, right = (_weights(n, "statistics/seeds", side) for n, side in ((len(mine), "a"), (len(theirs), "b")))
    resampled = np.einsum("ra,ab,rb->r", left, wins, right)
    return _interval(float(wins.mean()), resampled, min(len(mine), len(theirs)))


def paired_delta(runs_a: Sequence[Run], runs_b: Sequence[Run], split: str = "test", metric: str = "avg") -> Interval:
    """How much higher ``runs_a`` score than ``runs_b`` (their difference, paired over problems), two-level.

    Each side is one config with one or more seeds; the sides may be one method under two configs.

    Raises:
        ConfigError: an empty side, a side of several configs, or sides that were not evaluated alike.
    """
    groups: dict[str, list[Run]] = {}
    for side, runs in (("a", runs_a), ("b", runs_b)):
        if not runs:
            raise ConfigError(f"runs_{side} = [] holds no run; give the runs of one method and config")
        _refuse_mixed(f"runs_{side}", runs)
        groups[side] = sorted(runs, key=lambda run: run.seed)
    both = scores(groups, split)
    metric_name(metric, both["a"].k)
    return two_level_delta(both["a"].values[metric], both["b"].values[metric])


# ---------------------------------------------------------------------- tables


def compare(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> pd.DataFrame:
    """One row a method (or label): what it scored on a split, with 95% intervals, and its difference to the base.

    Returns:
        method, title, seeds (number of runs), diverged (how many of them did; they count with what they scored), problems,
        k; ``mean``, ``low``, ``high`` of the chosen metric; the same as ``avg``, ``avg_low``, ``avg_high`` and so on for
        avg@k, pass@k and greedy pass@1 (shares of 1, NaN where not measured); ``tokens`` (mean response length); ``delta``, ``delta_low``, ``delta_high`` (metric minus that
        of the base policy, paired over problems; NaN without runs of ``base``); ``resampled`` (what the intervals
        speak of: ``seeds and problems``, or ``problems`` where there is one seed).

    Raises:
        ConfigError: no runs, mixed configs, or runs that were not evaluated alike.
        RunError: a run has no evaluation of this split.
    """
    groups = group(runs, label)
    measured = scores(groups, split)
    metric_name(metric, 1)
    base = next((name for name, members in groups.items() if members[0].method == "base"), None)
    rows = []
    for name, members in groups.items():
        own = measured[name]
        row: dict[str, Any] = {
            "method": name,
            "title": title(name, members),
            "seeds": len(members),
            "diverged": sum(bool(run.diverged) for run in members),
            "problems": own.problems,
            "k": own.k,
        }
        row |= _columns("", two_level(own.values[metric], name), "mean")
        for other in ("avg", "pass", "greedy"):
            row |= _columns(f"{other}_", two_level(own.values[other], name), other)
        # A diverged run has no lengths; the mean is that of the others.
        lengths = own.values["tokens"]
        row["tokens"] = float(np.nanmean(lengths)) if not np.isnan(lengths).all() else float("nan")
        difference = Interval(float("nan"), float("nan"), float("nan"), 0)
        if base is not None and name != base:
            difference = two_level_delta(own.values[metric], measured[base].values[metric], (name, base))
        row |= _columns("delta_", difference, "delta")
        row["resampled"] = _resampled_what(len(members))
        rows.append(row)
    return pd.DataFrame(rows)


def by_level(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> pd.DataFrame:
    """One row a method and level, levels in the order of the problems.

    Returns:
        method, title, level, seeds, problems, mean, low, high, resampled.

    Raises:
        ConfigError, RunError: as :func:`compare`.
    """
    groups = group(runs, label)
    metric_name(metric, 1)
    rows = []
    for name, own in scores(groups, split).items():
        for level in dict.fromkeys(own.levels):
            part = own.only(own.levels == level)
            rows.append(
                {
                    "method": name,
                    "title": title(name, groups[name]),
                    "level": level,
                    "seeds": len(own.seeds),
                    "problems": part.problems,
                    **_columns("", two_level(part.values[metric], name), "mean"),
                    "resampled": _resampled_what(len(own.seeds)),
                }
            )
    return pd.DataFrame(rows)


def deltas(
    runs: Sequence[Run],
    control: str | Mapping[str, str],
    split: str = "test",
    metric: str = "avg",
    *,
    label: Label | None = None,
) -> pd.DataFrame:
    """One row a method (or label) but the control: its difference to the control, paired over problems.

    Args:
        control: name of the group that is taken off; or of each group its own, and groups that are not named have none.

    Returns:
        method, title, control, seeds, problems, k; ``delta``, ``low``, ``high`` (two-level 95%); resampled.

    Raises:
        ConfigError: no such control, or as :func:`compare`.
        RunError: as :func:`compare`.
    """
    groups = group(runs, label)
    own = dict.fromkeys(groups, control) if isinstance(control, str) else dict(control)
    for name in own.values():
        if name not in groups:
            raise ConfigError(f"control = {name!r} is not among the runs; they are {', '.join(groups)}")
    measured = scores(groups, split)
    metric_name(metric, 1)
    rows = []
    for name, members in groups.items():
        if name not in own or own[name] == name:
            continue
        both = measured[name].values[metric], measured[own[name]].values[metric]
        rows.append(
            {
                "method": name,
                "title": title(name, members),
                "control": own[name],
                "seeds": len(members),
                "problems": measured[name].problems,
                "k": measured[name].k,
                **_columns("", two_level_delta(*both, (name, own[name])), "delta"),
                "resampled": _resampled_what(min(len(members), len(groups[own[name]]))),
            }
        )
    return pd.DataFrame(rows)


def pass_curve(runs: Sequence[Run], split: str = "test", *, label: Label | None = None) -> pd.DataFrame:
    """Unbiased pass@k of every method for k = 1 to the number of samples K.

    Returns:
        method, title, k, mean, low, high, one ``seed_<n>`` column a seed.

    Raises:
        ConfigError, RunError: as :func:`compare`.
    """
    groups = group(runs, label)
    rows = []
    for name, own in scores(groups, split).items():
        for k in range(1, own.k + 1):
            by_count = np.array([pass_at_k(own.k, correct, k) for correct in range(own.k + 1)])
            table = by_count[own.counts]
            seeds = {f"seed_{seed}": float(mean) for seed, mean in zip(own.seeds, table.mean(axis=1), strict=True)}
            interval = _columns("", two_level(table, name), "mean")
            rows.append({"method": name, "title": title(name, groups[name]), "k": k, **interval, **seeds})
    return pd.DataFrame(rows)


def _columns(prefix: str, interval: Interval, mean: str) -> dict[str, float]:
    return {mean: interval.mean, f"{prefix}low": interval.low, f"{prefix}high": interval.high}


def _resampled_what(seeds: int) -> str:
    return "seeds and problems" if seeds > 1 else "problems"


# ---------------------------------------------------------------------- curves


Source = Literal["metrics", "evaluations"]


def records(run: Run, source: Source) -> pd.DataFrame:
    """``run.metrics`` or ``run.evaluations``, parsed again only when the file has grown; don't change what it returns."""
    path = run.path / f"{source}.jsonl"
    if not path.is_file():
        return pd.DataFrame()
    state = path.stat()
    return _parsed(str(path), source, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=128)
def _parsed(path: str, source: Source, size: int, changed: int) -> pd.DataFrame:
    run = Run(Path(path).parent)
    return run.metrics if source == "metrics" else run.evaluations


def seed_curves(runs: Iterable[Run], column: str, source: Source = "evaluations") -> pd.DataFrame:
    """A recorded column of several runs: index ``global_step`` (ascending), one column a seed; NaN where not recorded.

    Args:
        column: a name of the records; dots reach into nested ones (``hard.avg``, ``levels.easy.avg``).
        source: ``metrics`` (every step) or ``evaluations`` (on the validation split).
    """
    parts = {}
    for run in runs:
        table = records(run, source)
        first, *path = column.split(".")
        if first not in table:
            continue
        values = table[first]
        for part in path:
            values = values.map(lambda value, part=part: value.get(part) if isinstance(value, dict) else None)
        series = pd.Series(pd.to_numeric(values).to_numpy(float), index=table["global_step"].to_numpy(int)).dropna()
        if len(series):
            parts[run.seed] = series
    frame = pd.DataFrame(parts).sort_index()
    frame.index.name = "global_step"
    return frame


def curve(runs: Sequence[Run], column: str, source: Source = "evaluations") -> pd.DataFrame:
    """Mean over seeds of a recorded column, step by step; the runs are of one config.

    Returns:
        global_step; mean; low, high (95% bootstrap over seeds, NaN for a single seed); n (seeds that recorded the
        column at this step: fewer towards the end while some are still running).

    Raises:
        ConfigError: no runs, several configs, or a column that none of them recorded.
    """
    if not runs:
        raise ConfigError("runs = [] holds no curve; give the runs of one method and config")
    _refuse_mixed("runs", runs)
    frame = seed_curves(runs, column, source)
    if frame.empty:
        raise ConfigError(f"column = {column!r} is not in the {source} of these runs; see measure.METRICS for names")
    return summarise_curve(frame)


def summarise_curve(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of :func:`curve` from those of :func:`seed_curves`."""
    values = frame.to_numpy(float)  # (steps, seeds)
    present = ~np.isnan(values)
    n = present.sum(axis=1)
    filled = np.where(present, values, 0.0)
    out = pd.DataFrame({"global_step": frame.index.to_numpy(), "mean": filled.sum(axis=1) / np.maximum(n, 1)})
    out["low"], out["high"], out["n"] = np.nan, np.nan, n
    if values.shape[1] > 1:
        weights = _weights(values.shape[1], "statistics/curve")
        drawn = weights @ present.T.astype(float)  # (resamples, steps)
        means = np.divide(weights @ filled.T, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
        several = n > 1
        low, high = np.nanpercentile(means[:, several], [2.5, 97.5], axis=0)
        out.loc[several, "low"], out.loc[several, "high"] = low, high
    return out


def area_under_curve(runs: Sequence[Run], column: str = "avg", *, label: Label | None = None) -> pd.DataFrame:
    """Mean height of an evaluation column over training (trapezoids over steps): quick learning counts, not the end alone.

    Returns:
        one row a method: method, title, seeds; ``area`` (mean over seeds, in the column's unit), low, high (95% bootstrap
        over seeds; equal to the area for one seed); one ``seed_<n>`` column a seed. Methods without steps are left out.

    Raises:
        ConfigError: no runs, or mixed configs.
    """
    rows = []
    for name, members in group(runs, label).items():
        frame = seed_curves(members, column).dropna()
        if len(frame) < 2:
            continue
        steps = frame.index.to_numpy(float)
        areas = np.trapezoid(frame.to_numpy(float), steps, axis=0) / (steps[-1] - steps[0])
        interval = two_level(areas[:, None], name)
        rows.append(
            {
                "method": name,
                "title": title(name, members),
                "seeds": len(areas),
                **_columns("", interval, "area"),
                **{f"seed_{seed}": float(area) for seed, area in zip(frame, areas, strict=True)},
            }
        )
    return pd.DataFrame(rows)


def improvement(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> pd.DataFrame:
    """Probability that a run of the row's method scores higher than one of the column's, over all pairs of seeds.

    Each is :func:`probability_of_improvement`, without its interval.

    Returns:
        square, index and columns are titles of methods (or labels); NaN on the diagonal.

    Raises:
        ConfigError, RunError: as :func:`compare`.
    """
    groups = group(runs, label)
    metric_name(metric, 1)
    means = {name: own.values[metric].mean(axis=1) for name, own in scores(groups, split).items()}
    titles = [title(name, members) for name, members in groups.items()]
    table = [
        [float("nan") if a == b else probability_of_improvement(x, y).mean for b, y in means.items()]
        for a, x in means.items()
    ]
    return pd.DataFrame(table, index=titles, columns=titles)


# ---------------------------------------------------------------------- what a run cost

COSTS = {
    "tokens": "tokens sampled and trained",
    "sampled": "tokens sampled",
    "trained": "tokens trained",
    "seconds": "wall time (seconds)",
}
"""Cost -> how axes call it."""


def spent(run: Run) -> pd.DataFrame:
    """What training had cost after each step, as the run recorded it.

    Sampled tokens are those that the policy generated; trained tokens all that went through a forward and backward pass,
    demonstrations and prefixes among them. Not counted: evaluations, token records, and the demonstrations of ReLIFT's
    second updates (``replay_updated`` says how many there were); seconds hold the latter.

    Returns:
        index global_step (steps done, from 0), columns of :data:`COSTS`; a single row of zeros for an untrained policy.
    """
    table = records(run, "metrics")
    columns = dict.fromkeys(COSTS, 0.0)
    if table.empty:
        return pd.DataFrame([columns], index=pd.Index([0], name="global_step"))

    def column(name: str) -> pd.Series:
        return table[name].fillna(0) if name in table else pd.Series(0.0, index=table.index)

    # Tokens of demonstrations are all of the kind prefix, in supervised stages too.
    sampled = column("tokens_on_policy") + column("tokens_continuation")
    trained = sampled + column("tokens_prefix")
    seconds = column("seconds_rollout") + column("seconds_score") + column("seconds_update")
    steps = pd.DataFrame({"tokens": sampled + trained, "sampled": sampled, "trained": trained, "seconds": seconds})
    steps.index = pd.Index(table["global_step"].to_numpy(int) + 1, name="global_step")
    start = pd.DataFrame([columns], index=pd.Index([0], name="global_step"))
    return pd.concat([start, steps.cumsum()])


def cost_curve(
    runs: Sequence[Run], column: str = "avg", cost: str = "tokens", *, label: Label | None = None
) -> pd.DataFrame:
    """A column of the evaluations against what training had cost by then.

    Returns:
        one row a method and evaluation that all its seeds recorded: method, title, global_step, cost (mean over seeds),
        mean, low, high (95% bootstrap over seeds, NaN for one), one ``seed_<n>`` column a seed.

    Raises:
        ConfigError: an unknown cost, no runs, or mixed configs.
    """
    if cost not in COSTS:
        raise ConfigError(f"cost = {cost!r} is not known; use one of {', '.join(COSTS)}")
    parts = []
    for name, members in group(runs, label).items():
        frame = seed_curves(members, column).dropna()
        if frame.empty:
            continue
        part = summarise_curve(frame).drop(columns="n")
        paid = [spent(run)[cost].reindex(frame.index).to_numpy(float) for run in members if run.seed in frame]
        part.insert(0, "method", name)
        part.insert(1, "title", title(name, members))
        part.insert(3, "cost", np.mean(paid, axis=0))
        for seed in frame:
            part[f"seed_{seed}"] = frame[seed].to_numpy()
        parts.append(part)
    if not parts:
        raise ConfigError(f"column = {column!r} is not in the evaluations of these runs; see measure.METRICS for names")
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------------- sentences


def verdicts(runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None) -> list[str]:
    """Plain sentences: who scored highest, Prefix-RFT against every other method, every method against the base.

    A difference is called higher or lower only if its 95% interval leaves out 0.

    Raises:
        ConfigError: nothing to compare, mixed configs, or runs that were not evaluated alike.
        RunError: a run has no evaluation of this split.
    """
    groups = group(runs, label)
    if len(groups) < 2:
        only = next(iter(groups))
        raise ConfigError(f"method = {only!r} is the only one among the runs; add runs of another method to compare")
    measured = scores(groups, split)
    # A metric that was not measured (greedy = NaN) leaves no ranking.
    name_of_metric = metric_name(metric, next(iter(measured.values())).k)
    if any(np.isnan(own.values[metric]).any() for own in measured.values()):
        raise ConfigError(f"metric = {metric!r} was not measured in all runs; use 'avg'")

    def against(a: str, b: str) -> str:
        return _sentence(groups, measured, a, b, metric, f"{name_of_metric} on {split}")

    ranked = sorted(groups, key=lambda name: -measured[name].values[metric].mean())
    sentences = [f"Highest mean {name_of_metric} on {split}: {_ranking(groups, measured, ranked, metric)}"]
    chosen = [name for name, members in groups.items() if members[0].method == "prefix_rft"]
    base = [name for name, members in groups.items() if members[0].method == "base"]
    sentences += [against(a, b) for a in chosen for b in groups if b not in chosen]
    sentences += [against(a, b) for b in base for a in groups if a not in base and a not in chosen]
    for name, found in (("prefix_rft", chosen), ("base", base)):
        if not found and label is None:
            sentences.append(f"There is no run of {name!r} among these, so nothing is said about it.")
    return sentences


def _ranking(
    groups: Mapping[str, Sequence[Run]], measured: Mapping[str, Scores], ranked: Sequence[str], metric: str
) -> str:
    first, second = ranked[:2]
    delta = two_level_delta(measured[first].values[metric], measured[second].values[metric], (first, second))
    winner, next_one = title(first, groups[first]), title(second, groups[second])
    if delta.low > 0:
        relation = (
            f"ahead of the next, {next_one}, by {_number(delta.mean)} [{_number(delta.low)}, {_number(delta.high)}]"
        )
    else:
        relation = (
            f"not separated from the next, {next_one} (difference {_signed(delta.mean)} "
            f"[{_signed(delta.low)}, {_signed(delta.high)}])"
        )
    return f"{winner}, {_number(float(measured[first].values[metric].mean()))}, {relation}."


def _sentence(
    groups: Mapping[str, Sequence[Run]], measured: Mapping[str, Scores], a: str, b: str, metric: str, what: str
) -> str:
    left, right = measured[a], measured[b]
    delta = two_level_delta(left.values[metric], right.values[metric], (a, b))
    mine, theirs = (two_level(own.values[metric], name) for own, name in ((left, a), (right, b)))
    low, high = delta.low, delta.high
    if low > 0:
        relation = f"higher by {_number(delta.mean)} [{_number(low)}, {_number(high)}]"
    elif high < 0:
        relation = f"lower by {_number(-delta.mean)} [{_number(-high)}, {_number(-low)}]"
    else:
        relation = f"not separated, difference {_signed(delta.mean)} [{_signed(low)}, {_signed(high)}]"
    return (
        f"{title(a, groups[a])} {_bounds(mine)} against {title(b, groups[b])} {_bounds(theirs)}: {relation} {what}, over "
        f"{_evidence(groups, a, b)} × {left.problems} problems{_caveat(groups, a, b)}."
    )


def _evidence(groups: Mapping[str, Sequence[Run]], a: str, b: str) -> str:
    # The base policy is not trained, so it has no seeds to speak of.
    counts = list(dict.fromkeys(len(groups[name]) for name in (a, b) if groups[name][0].method != "base"))
    return f"{' and '.join(map(str, counts))} seed{'' if counts == [1] else 's'}"


def _caveat(groups: Mapping[str, Sequence[Run]], a: str, b: str) -> str:
    single = [title(n, groups[n]) for n in (a, b) if len(groups[n]) == 1 and groups[n][0].method != "base"]
    if not single:
        return ""
    return f"; one seed of {' and of '.join(single)}, so only problems are resampled there"


def _bounds(interval: Interval) -> str:
    return f"{_number(interval.mean)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float) -> str:
    """Three decimals for shares, one for lengths in tokens."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{_number(abs(value))}"
