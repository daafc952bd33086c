"""Who scored higher, by how much, and how sure that is: statistics over finished runs.

Every run of a comparison answers the same evaluation problems, k times each. :func:`scores` holds them as one long table,
one row per group, seed, problem and metric; every other table of scores is a groupby over it. There are two sources of
chance: which seeds were trained and which problems were drawn.

There is one way to an interval, :func:`prefix_rft_lab.runs.summary.estimate`: variances over seeds and over (paired) problems
add up, Student's t with Satterthwaite's degrees of freedom, and exact bounds where few problems differ. A group with one
seed has an interval over problems only: it says nothing of other seeds, and every table and sentence says so. Curves have
intervals over seeds alone. No interval here is corrected for the number of comparisons; :mod:`prefix_rft_lab.analysis.claims`
corrects its own.

A run that diverged solves nothing from there on: its final scores, and its curves of scores and rewards, are 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

from prefix_rft_lab.algorithm.methods import METHODS
from prefix_rft_lab.core import columns as recorded
from prefix_rft_lab.core.columns import Source
from prefix_rft_lab.core.config import ConfigError, flatten
from prefix_rft_lab.core.types import KIND_NAMES
from prefix_rft_lab.runs.run import Run, by_method
from prefix_rft_lab.runs.summary import SHARE, Estimate, estimate, pass_at_k

Label = Callable[[Run], str]
"""Names the group of a run where groups aren't methods, e.g. ``lambda run: f"keep {run.config.prefix.keep_fraction}"``."""

METRIC_NAMES = {name: recorded.EVALUATIONS[name].short() for name in recorded.FINAL}
"""Metric -> how it is called in sentences; the first three are shares of 1, the last a mean length in tokens."""

OVER_BOTH = "95% t intervals over seeds and problems (problems only where there is one seed)"
OVER_SEEDS = "95% t intervals over seeds"
"""How intervals were made, as figures and tables say it."""

FEW = 2
"""Seeds of which an interval has one degree of freedom, so that it spans all that is possible."""
LITTLE = "two seeds decide little"

_SHARED_FIELDS = ("data.problems", "evaluation.temperature", "rollout.max_response_tokens")
"""Config fields that must agree between the sides of a comparison: they decide what a score means."""

_SCORED = (*recorded.SHARES, "reward", "reward_plain", "reward_hybrid")
"""Recorded columns that are 0 for a policy that diverged."""


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
    else:  # in the order in which the caller listed them
        groups = {label(run): [] for run in runs}
        for run in sorted(runs, key=lambda run: run.seed):
            groups[label(run)].append(run)
    for name, members in groups.items():
        _refuse_mixed(name, members)
    return groups


def _refuse_mixed(name: str, members: Sequence[Run]) -> None:
    for other in members[1:]:
        if other.config.hash() != members[0].config.hash():
            raise ConfigError(
                f"{_difference(members[0], other)} among the runs of {name!r}; compare runs of one config, or give "
                "label= a function that names them apart"
            )
    seeds = [run.seed for run in members]
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ConfigError(f"seed = {repeated[0]} comes twice among the runs of {name!r}; give each run once")


def _difference(first: Run, other: Run, fields: Sequence[str] = ()) -> str:
    """The first config field that differs, with both values; "" if none of the given ones does (all but name and seed)."""
    mine, theirs = (dict(flatten(run.config.to_dict())) for run in (first, other))
    for field in fields or dict.fromkeys([*mine, *theirs]):
        if field not in ("name", "seed") and mine.get(field) != theirs.get(field):
            return f"{field} = {mine.get(field)!r} and {theirs.get(field)!r}"
    return ""


def title(name: str, members: Sequence[Run]) -> str:
    """How a group is printed: the method's title, or the label it was given."""
    return members[0].title if members[0].method == name else name


# ---------------------------------------------------------------------- scores


@dataclass(frozen=True, slots=True)
class Side:
    """The scores of one group."""

    values: dict[str, np.ndarray]
    """Metric -> :func:`matrix`."""
    problems: int


@overload
def scores(runs: Sequence[Run], split: str = "test", *, label: Label | None = None) -> pd.DataFrame: ...
@overload
def scores(runs: Mapping[str, Sequence[Run]], split: str = "test") -> dict[str, Side]: ...
def scores(
    runs: Sequence[Run] | Mapping[str, Sequence[Run]], split: str = "test", *, label: Label | None = None
) -> pd.DataFrame | dict[str, Side]:
    """Final evaluations of all runs as one long table; of the groups that :func:`group` made, by group.

    Returns:
        group, title, seed, problem, level, k, metric (a name of :data:`METRIC_NAMES`), value (share of 1, or tokens; NaN
        where not measured). Groups are in the order of :func:`group`.

    Raises:
        ConfigError: the runs were not evaluated alike (k, problems, temperature, response length), or a problem's id
            comes twice.
        RunError: a run has no evaluation of this split.
    """
    if isinstance(runs, Mapping):
        names = {run.path: name for name, members in runs.items() for run in members}
        table = scores([r for members in runs.values() for r in members], split, label=lambda run: names[run.path])
        size = table["problem"].nunique()
        return {name: Side({m: matrix(table, name, m) for m in METRIC_NAMES}, size) for name in runs}
    groups = group(runs, label)
    everyone = [(name, run) for name, members in groups.items() for run in members]
    first, parts = everyone[0][1], []
    for name, run in everyone:
        if different := _difference(first, run, _SHARED_FIELDS):
            raise ConfigError(
                f"{different} among the runs ({first.method} and {run.method}); compare runs that were evaluated alike"
            )
        part = run.evaluation(split).rename(columns={"id": "problem"})
        parts.append(part.assign(group=name, title=title(name, groups[name]), seed=run.seed))
    table = pd.concat(parts)
    _refuse_other_problems(table, split)
    table["level"] = table["level"].astype(str)
    values = {"avg": table["correct"] / table["k"], "pass": table["correct"] > 0}
    table[list(METRIC_NAMES)] = table.assign(**values)[list(METRIC_NAMES)].astype(float)
    return table.melt(["group", "title", "seed", "problem", "level", "k"], list(METRIC_NAMES), "metric", "value")


def _refuse_other_problems(table: pd.DataFrame, split: str) -> None:
    if table["k"].nunique() > 1:
        raise ConfigError(
            f"evaluation.k = {' and '.join(map(str, sorted(table['k'].unique())))} among the runs; avg@k and pass@k of "
            "different k cannot be compared: evaluate all runs with one k"
        )
    runs = table.groupby(["group", "seed"], sort=False)["problem"]
    if (twice := table[table.duplicated(["group", "seed", "problem"])]).size:
        raise ConfigError(
            f"id = {twice['problem'].iloc[0]!r} comes twice among the problems of {split!r}, so that scores cannot be "
            "paired; give each problem an id of its own and evaluate again"
        )
    if len(sets := runs.agg(frozenset).unique()) > 1:
        raise ConfigError(
            f"data.eval_problems = {len(sets[0])} and {len(sets[1])} problems of {split!r} among the runs, not the same "
            "ones; evaluate all runs on one set of problems"
        )


def matrix(table: pd.DataFrame, name: str, metric: str) -> np.ndarray:
    """(seeds, problems) of one group's rows of :func:`scores`; without the seeds that have no value (a run that diverged
    has no response lengths)."""
    own = table[(table["group"] == name) & (table["metric"] == metric)]
    return own.pivot(index="seed", columns="problem", values="value").dropna(how="all").to_numpy(float)


def measure(a: np.ndarray, b: np.ndarray | None = None, metric: str = "avg") -> Estimate:
    """:func:`prefix_rft_lab.runs.summary.estimate` of (seeds, problems) tables of a metric; all but lengths are shares."""
    return estimate(a, b, bounds=None if metric == "tokens" else SHARE)


two_level = measure
"""The name of before: an interval over seeds and problems, the two levels of chance."""


def _columns(found: Estimate, mean: str = "mean", prefix: str = "") -> dict[str, float]:
    return {mean: found.mean} | dict(zip((f"{prefix}low", f"{prefix}high"), found.interval(), strict=True))


def _scored(
    runs: Sequence[Run], split: str, label: Label | None, metric: str = "avg"
) -> tuple[dict[str, list[Run]], pd.DataFrame]:
    """The groups of a comparison and their scores, once the metric is known."""
    groups, table = group(runs, label), scores(runs, split, label=label)
    metric_name(metric, 1)
    return groups, table


def _rows(groups: Mapping[str, Sequence[Run]], table: pd.DataFrame) -> list[dict[str, Any]]:
    """What every table of scores says of its groups."""
    return [
        {
            "method": name,
            "title": part["title"].iloc[0],
            "seeds": len(groups[str(name)]),
            "problems": part["problem"].nunique(),
            "k": int(part["k"].iloc[0]),
            "over": _over(len(groups[str(name)])),
        }
        for name, part in table.groupby("group", sort=False)
    ]


def _over(seeds: int) -> str:
    return "seeds and problems" if seeds > 1 else "problems"


# ---------------------------------------------------------------------- tables


def compare(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> pd.DataFrame:
    """One row per method (or label): what it scored on a split, with 95% intervals, and its difference to the base.

    Returns:
        method, title, seeds (number of runs), diverged (how many of them did; they solved nothing), problems, k; ``mean``,
        ``low``, ``high`` of the chosen metric; the same as ``avg``, ``avg_low``, ``avg_high`` and so on for avg@k, pass@k
        and greedy pass@1 (shares of 1, NaN where not measured); ``tokens`` (mean response length); ``delta``,
        ``delta_low``, ``delta_high`` (metric minus that of the base policy, paired over problems; NaN without runs of
        ``base``); ``over`` (what the intervals speak of: ``seeds and problems``, or ``problems`` where there is one seed).

    Raises:
        ConfigError: no runs, mixed configs, or runs that were not evaluated alike.
        RunError: a run has no evaluation of this split.

    >>> from prefix_rft_lab import load_all
    >>> compare(load_all("results/gsm8k"))[["method", "problems", "mean", "low", "high"]].round(3)
           method  problems   mean    low   high
    0        base       256  0.002  0.000  0.018
    1         sft       256  0.021  0.009  0.034
    2         rft       256  0.000  0.000  0.014
    3  prefix_rft       256  0.012  0.002  0.034
    """
    groups, table = _scored(runs, split, label, metric)
    base = next((name for name, members in groups.items() if members[0].method == "base"), None)
    rows = []
    for row in _rows(groups, table):
        name = row["method"]
        own = {each: matrix(table, name, each) for each in METRIC_NAMES}
        row["diverged"] = sum(bool(run.diverged) for run in groups[name])
        row |= _columns(measure(own[metric], metric=metric))
        for each in ("avg", "pass", "greedy"):
            row |= _columns(measure(own[each]), each, f"{each}_")
        row["tokens"] = float(own["tokens"].mean()) if own["tokens"].size else float("nan")
        other = np.empty((0, 0)) if base in (None, name) else matrix(table, str(base), metric)
        rows.append(row | _columns(measure(own[metric], other, metric), "delta", "delta_"))
    return pd.DataFrame(rows)


def by_level(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> pd.DataFrame:
    """One row per method and level, levels in the order of the problems.

    Returns:
        method, title, level, seeds, problems, k, mean, low, high, over.

    Raises:
        ConfigError, RunError: as :func:`compare`.
    """
    groups, table = _scored(runs, split, label, metric)
    rows: list[dict[str, Any]] = [
        row | {"level": level} | _columns(measure(matrix(part, str(row["method"]), metric), metric=metric))
        for level, part in table.groupby("level", sort=False)
        for row in _rows(groups, part)
    ]
    rows.sort(key=lambda row: list(groups).index(row["method"]))
    return pd.DataFrame(rows)


def deltas(
    runs: Sequence[Run],
    control: str | Mapping[str, str],
    split: str = "test",
    metric: str = "avg",
    *,
    label: Label | None = None,
) -> pd.DataFrame:
    """One row per method (or label) but the control: its difference to the control, paired over problems.

    Args:
        control: name of the group that is taken off; or of each group its own, and groups that are not named have none.

    Returns:
        method, title, control, seeds, problems, k; ``delta``, ``low``, ``high`` (95%); over.

    Raises:
        ConfigError: no such control, or as :func:`compare`.
        RunError: as :func:`compare`.
    """
    groups = group(runs, label)
    own = dict.fromkeys(groups, control) if isinstance(control, str) else dict(control)
    for name in own.values():
        if name not in groups:
            raise ConfigError(f"control = {name!r} is not among the runs; they are {', '.join(groups)}")
    groups, table = _scored(runs, split, label, metric)
    rows = []
    for row in _rows(groups, table):
        against = own.get(row["method"], row["method"])
        if against != row["method"]:
            own_scores, others = (matrix(table, name, metric) for name in (row["method"], against))
            row |= {"control": against, "over": _over(min(row["seeds"], len(groups[against])))}
            rows.append(row | _columns(measure(own_scores, others, metric), "delta"))
    return pd.DataFrame(rows)


def pass_curve(runs: Sequence[Run], split: str = "test", *, label: Label | None = None) -> pd.DataFrame:
    """Unbiased pass@k of every method for k = 1 to the number of samples K.

    Returns:
        method, title, k, mean, low, high, one ``seed_<n>`` column per seed.

    Raises:
        ConfigError, RunError: as :func:`compare`.
    """
    groups, table = _scored(runs, split, label)
    rows = []
    for row in _rows(groups, table):
        counts = (matrix(table, row["method"], "avg") * row["k"]).round().astype(int)
        for k in range(1, row["k"] + 1):
            of_problems = np.array([pass_at_k(row["k"], correct, k) for correct in range(row["k"] + 1)])[counts]
            named = {"method": row["method"], "title": row["title"], "k": k} | _columns(measure(of_problems))
            rows.append(named | _by_seed([run.seed for run in groups[row["method"]]], of_problems.mean(axis=1)))
    return pd.DataFrame(rows)


def _by_seed(seeds: Iterable[Any], values: Iterable[Any]) -> dict[str, Any]:
    return {f"seed_{seed}": value for seed, value in zip(seeds, values, strict=True)}


def improvement(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> pd.DataFrame:
    """Probability that a run of the row's method scores higher than one of the column's, over all pairs of seeds; a tie
    counts half (the Mann-Whitney statistic over its largest value).

    Returns:
        square, index and columns are titles of methods (or labels); NaN on the diagonal.

    Raises:
        ConfigError, RunError: as :func:`compare`.
    """
    groups, table = _scored(runs, split, label, metric)
    by_run = {title(name, members): matrix(table, name, metric).mean(axis=1) for name, members in groups.items()}
    found = [
        [np.nan if a == b else (np.sign(np.subtract.outer(x, y)) + 1).mean() / 2 for b, y in by_run.items()]
        for a, x in by_run.items()
    ]
    return pd.DataFrame(found, list(by_run), list(by_run))


# ---------------------------------------------------------------------- curves


def records(run: Run, source: Source) -> pd.DataFrame:
    """``run.metrics`` or ``run.evaluations``, parsed again only when the file has grown; don't change what it returns."""
    path = run.path / f"{source}.jsonl"
    if not path.is_file():
        return pd.DataFrame()
    state = path.stat()
    return _parsed(str(path), source, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=128)
def _parsed(path: str, source: Source, size: int, changed: int) -> pd.DataFrame:
    return getattr(Run(Path(path).parent), source)


def seed_curves(runs: Iterable[Run], column: str, source: Source = "evaluations") -> pd.DataFrame:
    """A recorded column of several runs: index ``global_step`` (ascending), one column per seed; NaN where not recorded,
    0 for the scores and rewards of a run after it diverged.

    Args:
        column: a name of the records; dots reach into nested ones (``hard.avg``, ``levels.easy.avg``).
        source: ``metrics`` (every step) or ``evaluations`` (on the validation split).
    """
    parts, lost = {}, {}
    first, *path = column.split(".")

    def inner(value: Any) -> Any:
        return reduce(lambda found, part: found.get(part) if isinstance(found, dict) else None, path, value)

    for run in runs:
        table = records(run, source)
        if first in table:
            values = pd.to_numeric(table[first].map(inner) if path else table[first]).to_numpy(float)
            series = pd.Series(values, index=table["global_step"].to_numpy(int)).dropna()
            if len(series):
                parts[run.seed] = series
                if run.diverged and column.rpartition(".")[2] in _SCORED:
                    lost[run.seed] = _lost(run, source)
    frame = pd.DataFrame(parts).sort_index()
    for seed, steps in lost.items():
        frame = frame.reindex(frame.index.union(steps))
        frame.loc[steps[0] :, seed] = frame.loc[steps[0] :, seed].fillna(0.0)
    return frame.rename_axis("global_step")


def curves(runs: Sequence[Run], columns: Sequence[str] | None = None, *, label: Label | None = None) -> pd.DataFrame:
    """Recorded columns of all groups as one long table.

    Args:
        columns: names of ``metrics`` (``reward_plain``), or of evaluations behind ``evaluations.``
            (``evaluations.hard.avg``); all that :mod:`prefix_rft_lab.core.columns` knows if not given.

    Returns:
        group, seed, step (global_step), kind (of token; empty where a column is not of one), column, value; rows without
        a value are left out.

    Raises:
        ConfigError: no runs, or mixed configs.
    """
    known = [name for name in recorded.names("metrics") if name not in ("stage", "step", "global_step")]
    known += [f"evaluations.{name}" for name in recorded.EVALUATIONS]
    parts = []
    for name, members in group(runs, label).items():
        for column in known if columns is None else columns:
            source: Source = "evaluations" if column.startswith("evaluations.") else "metrics"
            frame = seed_curves(members, column.removeprefix("evaluations."), source)
            kind = next((kind for kind in KIND_NAMES.values() if column.endswith(f"_{kind}")), "")
            table = frame.melt(var_name="seed", ignore_index=False).dropna().rename_axis("step").reset_index()
            parts.append(table.assign(group=name, kind=kind, column=column))
    return pd.concat(parts, ignore_index=True)[["group", "seed", "step", "kind", "column", "value"]]


def _lost(run: Run, source: Source) -> list[int]:
    """The steps whose records a run did not live to make, ascending; at least the one at which it diverged."""
    at = int(json.loads((run.path / "DIVERGED.json").read_text(encoding="utf-8"))["global_step"])
    stages = METHODS[run.method].stages if run.method in METHODS else ()
    end = max(sum(getattr(run.config, stage.optim).steps for stage in stages), at + 1)
    if source == "metrics":
        return list(range(at, end))
    every = run.config.evaluation.every
    return sorted({*(range(every, end, every) if every else ()), end} - set(range(at + 1)))


def curve(runs: Sequence[Run], column: str, source: Source = "evaluations") -> pd.DataFrame:
    """Mean over seeds of a recorded column, step by step; the runs are of one config.

    Returns:
        global_step; mean; low, high (95% t interval over seeds, NaN for a single seed); n (seeds that recorded the
        column at this step: fewer towards the end while some are still running).

    Raises:
        ConfigError: no runs, several configs, or a column that none of them recorded.
    """
    if not runs:
        raise ConfigError("runs = [] holds no curve; give the runs of one method and config")
    _refuse_mixed("runs", runs)
    frame = seed_curves(runs, column, source)
    if frame.empty:
        raise ConfigError(f"column = {column!r} is not in the {source} of these runs; see core.columns for names")
    return summarise_curve(frame)


def summarise_curve(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of :func:`curve` from those of :func:`seed_curves`."""
    present = [values[~np.isnan(values)] for values in frame.to_numpy(float)]  # one value per seed
    rows = [_columns(estimate(values[:, None])) | {"n": len(values)} for values in present]
    out = pd.DataFrame(rows, columns=["mean", "low", "high", "n"])
    out.insert(0, "global_step", frame.index.to_numpy())
    return out


def area_under_curve(runs: Sequence[Run], column: str = "avg", *, label: Label | None = None) -> pd.DataFrame:
    """Mean height of an evaluation column over training (trapezoids over steps): quick learning counts, not the end alone.

    Returns:
        one row per method: method, title, seeds; ``area`` (mean over seeds, in the column's unit), low, high (95% t interval
        over seeds, NaN for one); one ``seed_<n>`` column per seed. Methods without steps are left out.

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
        row = {"method": name, "title": title(name, members), "seeds": len(areas)}
        rows.append(row | _columns(estimate(areas[:, None]), "area") | _by_seed(frame, areas))
    return pd.DataFrame(rows)


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

    Sampled tokens are those that the policy generated, for rows outside of updates too; trained tokens all that went through a
    forward and backward pass, demonstrations and prefixes among them. Not counted: evaluations, token records, and the demonstrations of ReLIFT's
    second updates (``replay_updated`` says how many there were); seconds hold the latter.

    Returns:
        index global_step (steps done, from 0), columns of :data:`COSTS`; a single row of zeros for an untrained policy.
    """
    table = records(run, "metrics")
    steps = table["global_step"] + 1 if len(table) else pd.Series(dtype=int)

    def total(*names: str) -> pd.Series:
        return sum((table[name].fillna(0) for name in names if name in table), pd.Series(0.0, index=table.index))

    # Tokens of demonstrations are all of the kind prefix, in supervised stages too.
    taken, demonstrations = total("tokens_on_policy", "tokens_continuation"), total("tokens_prefix")
    sampled = taken + total("dropped_tokens")
    seconds = total("seconds_rollout", "seconds_score", "seconds_update")
    trained = taken + demonstrations
    costs = {"tokens": sampled + trained, "sampled": sampled, "trained": trained}
    paid = pd.DataFrame(costs | {"seconds": seconds}).set_axis(steps.astype(int)).cumsum()
    return pd.concat([pd.DataFrame(0.0, [0], list(COSTS)), paid]).rename_axis("global_step")


def cost_curve(
    runs: Sequence[Run], column: str = "avg", cost: str = "tokens", *, label: Label | None = None
) -> pd.DataFrame:
    """A column of the evaluations against what training had cost by then.

    Returns:
        one row per method and evaluation that all its seeds recorded: method, title, global_step, cost (mean over seeds),
        mean, low, high (95% t interval over seeds, NaN for one), one ``seed_<n>`` column per seed.

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
        paid = [spent(run)[cost].reindex(frame.index, method="ffill") for run in members if run.seed in frame]
        part = summarise_curve(frame).drop(columns="n").assign(**_by_seed(frame, frame.to_numpy().T))
        part.insert(0, "method", name)
        part.insert(1, "title", title(name, members))
        part.insert(3, "cost", np.mean(paid, axis=0))
        parts.append(part)
    if not parts:
        raise ConfigError(f"column = {column!r} is not in the evaluations of these runs; see core.columns for names")
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------------- sentences


def verdicts(runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None) -> list[str]:
    """Plain sentences: who scored highest, Prefix-RFT against every other method, every method against the base.

    A difference is called higher or lower only if its 95% interval leaves out 0. Of two seeds the scores are given, not an
    interval that spans all that is possible.

    Raises:
        ConfigError: nothing to compare, mixed configs, or runs that were not evaluated alike.
        RunError: a run has no evaluation of this split.
    """
    groups = group(runs, label)
    if len(groups) < 2:
        only = next(iter(groups))
        raise ConfigError(f"method = {only!r} is the only one among the runs; add runs of another method to compare")
    groups, table = _scored(runs, split, label, metric)
    # A metric that was not measured (greedy = NaN) leaves no ranking.
    if table.loc[table["metric"] == metric, "value"].isna().any():
        raise ConfigError(f"metric = {metric!r} was not measured in all runs; use 'avg'")
    sides = {name: matrix(table, name, metric) for name in groups}
    own = {name: measure(side, metric=metric) for name, side in sides.items()}
    names = {name: title(name, members) for name, members in groups.items()}
    what = f"{metric_name(metric, int(table['k'].iloc[0]))} on {split}"
    chosen, base = (
        [name for name, members in groups.items() if members[0].method == kind] for kind in ("prefix_rft", "base")
    )

    def scored(name: str) -> str:
        if name in base or len(sides[name]) != FEW:
            return _bounds(own[name])
        return f"{_number(own[name].mean)} (seeds {', '.join(map(_number, sides[name].mean(axis=1)))})"

    def difference(a: str, b: str) -> tuple[str, str]:
        found = measure(sides[a], sides[b], metric)
        low, high = found.interval()
        if low > 0:
            return "higher", f"by {_bounds(found)}"
        if high < 0:
            return "lower", f"by {_number(-found.mean)} [{_number(-high)}, {_number(-low)}]"
        few = any(len(sides[name]) == FEW for name in (a, b) if name not in base)
        if few:
            return f"not separated ({LITTLE})", f"difference {_signed(found.mean)}"
        return "not separated", f"difference {_bounds(found, _signed)}"

    def against(a: str, b: str) -> str:
        # The base policy is not trained, so it has no seeds to speak of.
        trained = [name for name in (a, b) if name not in base]
        counts = list(dict.fromkeys(len(groups[name]) for name in trained))
        evidence = f"{' and '.join(map(str, counts))} seed{'' if counts == [1] else 's'} × {sides[a].shape[1]} problems"
        single = " and of ".join(names[name] for name in trained if len(groups[name]) == 1)
        caveat = f"; one seed of {single}, so the interval says nothing of other seeds" if single else ""
        relation, amount = difference(a, b)
        relation += f" {amount}" if amount.startswith("by") else f", {amount}"
        return f"{names[a]} {scored(a)} against {names[b]} {scored(b)}: {relation} {what}, over {evidence}{caveat}."

    first, second = sorted(groups, key=lambda name: -own[name].mean)[:2]
    relation, amount = difference(first, second)
    ahead = f"ahead of the next, {names[second]}, {amount}"
    lead = ahead if relation == "higher" else f"{relation} from the next, {names[second]} ({amount})"
    pairs = [(a, b) for a in chosen for b in groups if b not in chosen]
    pairs += [(a, b) for b in base for a in groups if a not in [*base, *chosen]]
    missing = [kind for kind, found in (("prefix_rft", chosen), ("base", base)) if not found and label is None]
    return [
        f"Highest mean {what}: {names[first]}, {_number(own[first].mean)}, {lead}.",
        *(against(a, b) for a, b in pairs),
        *(f"There is no run of {kind!r} among these, so nothing is said about it." for kind in missing),
    ]


def answer(runs: Sequence[Run], split: str = "test", metric: str = "avg") -> str:
    """Who scored highest, and whether Prefix-RFT scored higher than the other methods, as one sentence.

    Raises:
        ConfigError, RunError: as :func:`verdicts`.
    """
    table = compare(runs, split, metric).set_index("method", drop=False).sort_values("mean", ascending=False)
    if len(table) < 2:
        return verdicts(runs, split, metric)[0]  # which says what is missing
    first, ours = table.iloc[0], "prefix_rft" if "prefix_rft" in table.index else table.index[0]
    apart = deltas(runs, ours, split, metric)
    sides = {"higher than": apart["high"] < 0, "lower than": apart["low"] > 0}
    sides["not separated from"] = ~(sides["higher than"] | sides["lower than"])
    said = [f"{words} {_listed(apart.loc[of, 'title'])}" for words, of in sides.items() if of.any()]
    who = "it" if ours == first["method"] else f"{table['title'][ours]}, {_number(table['mean'][ours])},"
    seeds = table["seeds"].drop("base", errors="ignore")
    one = seeds.index[seeds == 1]
    of = "" if len(one) == len(seeds) else f" of {_listed(table.loc[one, 'title'])}"
    limits = [f"one seed{of} says nothing of others"] if len(one) else []
    limits += [LITTLE] if (seeds == FEW).any() else []
    what = f"{metric_name(metric, int(first['k']))} on {split}"
    best = f"Highest mean {what}: {first['title']}, {_number(first['mean'])}"
    return "; ".join([best, f"{who} is {', '.join(said)}", *limits]) + "."


def _listed(names: Iterable[str]) -> str:
    *most, last = [*names] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _bounds(found: Estimate, number: Callable[[float], str] | None = None) -> str:
    mean, low, high = ((number or _number)(value) for value in (found.mean, *found.interval()))
    return f"{mean} [{low}, {high}]"


def _number(value: float) -> str:
    """Three decimals for shares, one for lengths in tokens."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{_number(abs(value))}"
