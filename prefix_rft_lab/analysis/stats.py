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
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

from prefix_rft_lab.algorithm.methods import METHODS
from prefix_rft_lab.core import columns
from prefix_rft_lab.core.columns import Source
from prefix_rft_lab.core.config import ConfigError, flatten
from prefix_rft_lab.runs.run import Run, by_method
from prefix_rft_lab.runs.summary import SHARE, Estimate, estimate, pass_at_k

Label = Callable[[Run], str]
"""Names the group of a run where groups aren't methods, e.g. ``lambda run: f"keep {run.config.prefix.keep_fraction}"``."""

METRIC_NAMES = {name: columns.EVALUATIONS[name].short() for name in columns.FINAL}
"""Metric -> how it is called in sentences; the first three are shares of 1, the last a mean length in tokens."""

OVER_BOTH = "95% t intervals over seeds and problems (problems only where there is one seed)"
OVER_SEEDS = "95% t intervals over seeds"
"""How intervals were made, as figures and tables say it."""

_SHARED_FIELDS = ("data.problems", "evaluation.temperature", "rollout.max_response_tokens")
"""Config fields that must agree between the sides of a comparison: they decide what a score means."""

_SCORED = (*columns.SHARES, "reward", "reward_plain", "reward_hybrid")
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
        where not measured). Groups stand as in :func:`group`, problems as in the first run.

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
    everyone = [run for members in groups.values() for run in members]
    _refuse_unlike(everyone)
    first = everyone[0].evaluation(split)
    parts = []
    for name, members in groups.items():
        for run in members:
            table = run.evaluation(split)
            _refuse_other_problems(first, table, split)
            wide = pd.DataFrame(
                {
                    "group": name,
                    "title": title(name, members),
                    "seed": run.seed,
                    "problem": table["id"],
                    "level": table["level"].astype(str),
                    "k": table["k"],
                    "avg": table["correct"] / table["k"],
                    "pass": (table["correct"] > 0).astype(float),
                    "greedy": table["greedy"].astype(float),
                    "tokens": table["tokens"].astype(float),
                }
            )
            parts.append(wide.set_index("problem", drop=False).loc[list(first["id"])])
    keys = ["group", "title", "seed", "problem", "level", "k"]
    return pd.concat(parts).melt(keys, list(METRIC_NAMES), "metric", "value")


def matrix(table: pd.DataFrame, name: str, metric: str) -> np.ndarray:
    """(seeds, problems) of one group's rows of :func:`scores`; without the seeds that have no value (a run that diverged
    has no response lengths)."""
    own = table[(table["group"] == name) & (table["metric"] == metric)]
    return own.pivot(index="seed", columns="problem", values="value").dropna(how="all").to_numpy(float)


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


def _refuse_other_problems(first: pd.DataFrame, table: pd.DataFrame, split: str) -> None:
    ks = sorted({*first["k"], *table["k"]})
    if len(ks) != 1:
        raise ConfigError(
            f"evaluation.k = {' and '.join(map(str, ks))} among the runs; avg@k and pass@k of different k cannot be "
            "compared: evaluate all runs with one k"
        )
    if table["id"].duplicated().any():
        name = table.loc[table["id"].duplicated(), "id"].iloc[0]
        raise ConfigError(
            f"id = {name!r} comes twice among the problems of {split!r}, so that scores cannot be paired; give each "
            "problem an id of its own and evaluate again"
        )
    if set(table["id"]) != set(first["id"]):
        raise ConfigError(
            f"data.eval_problems = {len(first)} and {len(table)} problems of {split!r} among the runs, not the same "
            "ones; evaluate all runs on one set of problems"
        )


def measure(a: np.ndarray, b: np.ndarray | None = None, metric: str = "avg") -> Estimate:
    """:func:`prefix_rft_lab.runs.summary.estimate` of (seeds, problems) tables of a metric; all but lengths are shares."""
    return estimate(a, b, bounds=None if metric == "tokens" else SHARE)


two_level = measure
"""The name of before: an interval over seeds and problems, the two levels of chance."""


def _columns(found: Estimate, mean: str = "mean", prefix: str = "") -> dict[str, float]:
    low, high = found.interval()
    return {mean: found.mean, f"{prefix}low": low, f"{prefix}high": high}


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
    """
    groups, table = group(runs, label), scores(runs, split, label=label)
    metric_name(metric, 1)
    base = next((name for name, members in groups.items() if members[0].method == "base"), None)
    rows = []
    for row in _rows(groups, table):
        name = row["method"]
        row["diverged"] = sum(bool(run.diverged) for run in groups[name])
        own = {each: matrix(table, name, each) for each in METRIC_NAMES}
        row |= _columns(measure(own[metric], metric=metric))
        for each in ("avg", "pass", "greedy"):
            row |= _columns(measure(own[each]), each, f"{each}_")
        row["tokens"] = float(own["tokens"].mean()) if own["tokens"].size else float("nan")
        nothing = base is None or name == base
        other = np.empty((0, 0)) if nothing else matrix(table, str(base), metric)
        row |= _columns(measure(own[metric], other, metric), "delta", "delta_")
        rows.append(row)
    return pd.DataFrame(rows)


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


def by_level(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> pd.DataFrame:
    """One row per method and level, levels in the order of the problems.

    Returns:
        method, title, level, seeds, problems, k, mean, low, high, over.

    Raises:
        ConfigError, RunError: as :func:`compare`.
    """
    groups, table = group(runs, label), scores(runs, split, label=label)
    metric_name(metric, 1)
    parts = [
        row | {"level": level} | _columns(measure(matrix(part, row["method"], metric), metric=metric))
        for level, part in table.groupby("level", sort=False)
        for row in _rows(groups, part)
    ]
    order = list(groups)
    found = pd.DataFrame(parts).sort_values("method", key=lambda m: m.map(order.index), kind="stable")
    return found.reset_index(drop=True)


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
    table = scores(runs, split, label=label)
    metric_name(metric, 1)
    rows = []
    for row in _rows(groups, table):
        against = own.get(row["method"], row["method"])
        if against == row["method"]:
            continue
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
    groups, table = group(runs, label), scores(runs, split, label=label)
    rows = []
    for row in _rows(groups, table):
        counts = (matrix(table, row["method"], "avg") * row["k"]).round().astype(int)
        for k in range(1, row["k"] + 1):
            of_problems = np.array([pass_at_k(row["k"], correct, k) for correct in range(row["k"] + 1)])[counts]
            seeds = (run.seed for run in groups[row["method"]])
            by_seed = {f"seed_{seed}": float(v) for seed, v in zip(seeds, of_problems.mean(axis=1), strict=True)}
            named = {"method": row["method"], "title": row["title"], "k": k}
            rows.append(named | _columns(measure(of_problems)) | by_seed)
    return pd.DataFrame(rows)


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
    groups, table = group(runs, label), scores(runs, split, label=label)
    metric_name(metric, 1)
    by_run = {title(name, members): matrix(table, name, metric).mean(axis=1) for name, members in groups.items()}
    return pd.DataFrame(
        [
            [np.nan if a == b else (np.sign(np.subtract.outer(x, y)) + 1).mean() / 2 for b, y in by_run.items()]
            for a, x in by_run.items()
        ],
        index=list(by_run),
        columns=list(by_run),
    )


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
    run = Run(Path(path).parent)
    return run.metrics if source == "metrics" else run.evaluations


def seed_curves(runs: Iterable[Run], column: str, source: Source = "evaluations") -> pd.DataFrame:
    """A recorded column of several runs: index ``global_step`` (ascending), one column per seed; NaN where not recorded,
    0 for the scores and rewards of a run after it diverged.

    Args:
        column: a name of the records; dots reach into nested ones (``hard.avg``, ``levels.easy.avg``).
        source: ``metrics`` (every step) or ``evaluations`` (on the validation split).
    """
    parts, ends = {}, {}
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
            if run.diverged and column.rpartition(".")[2] in _SCORED:
                ends[run.seed] = lost = _lost(run, source)
                series = series.reindex(series.index.union(lost), fill_value=0.0)
            parts[run.seed] = series
    frame = pd.DataFrame(parts).sort_index()
    frame.index.name = "global_step"
    for seed, lost in ends.items():
        frame.loc[frame.index >= lost[0], seed] = frame.loc[frame.index >= lost[0], seed].fillna(0.0)
    return frame


def _lost(run: Run, source: Source) -> list[int]:
    """The steps whose records a run did not live to make, ascending; at least the one at which it diverged."""
    at = int(json.loads((run.path / "DIVERGED.json").read_text(encoding="utf-8"))["global_step"])
    stages = METHODS[run.method].stages if run.method in METHODS else ()
    end = sum(getattr(run.config, stage.optim).steps for stage in stages)
    if source == "metrics":
        return list(range(at, max(end, at + 1)))
    every = run.config.evaluation.every
    return sorted({*(range(every, end, every) if every else ()), max(end, at + 1)} - set(range(at + 1)))


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
    rows = []
    for values in frame.to_numpy(float):  # one value per seed
        present = values[~np.isnan(values)]
        rows.append(_columns(estimate(present[:, None])) | {"n": len(present)})
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
        rows.append(
            {
                "method": name,
                "title": title(name, members),
                "seeds": len(areas),
                **_columns(estimate(areas[:, None]), "area"),
                **{f"seed_{seed}": float(area) for seed, area in zip(frame, areas, strict=True)},
            }
        )
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
        mean, low, high (95% t interval over seeds, NaN for one), one ``seed_<n>`` column a seed.

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
        paid = [
            spent(run)[cost].reindex(frame.index, method="ffill").to_numpy(float)
            for run in members
            if run.seed in frame
        ]
        part.insert(0, "method", name)
        part.insert(1, "title", title(name, members))
        part.insert(3, "cost", np.mean(paid, axis=0))
        for seed in frame:
            part[f"seed_{seed}"] = frame[seed].to_numpy()
        parts.append(part)
    if not parts:
        raise ConfigError(f"column = {column!r} is not in the evaluations of these runs; see core.columns for names")
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
    table = scores(runs, split, label=label)
    # A metric that was not measured (greedy = NaN) leaves no ranking.
    what = f"{metric_name(metric, int(table['k'].iloc[0]))} on {split}"
    if table.loc[table["metric"] == metric, "value"].isna().any():
        raise ConfigError(f"metric = {metric!r} was not measured in all runs; use 'avg'")
    sides = {name: matrix(table, name, metric) for name in groups}
    names = {name: title(name, members) for name, members in groups.items()}
    own = {name: measure(side, metric=metric) for name, side in sides.items()}
    kinds = {name: members[0].method for name, members in groups.items()}

    def against(a: str, b: str) -> str:
        found = measure(sides[a], sides[b], metric)
        low, high = found.interval()
        if low > 0:
            relation = f"higher by {_bounds(found)}"
        elif high < 0:
            relation = f"lower by {_number(-found.mean)} [{_number(-high)}, {_number(-low)}]"
        else:
            relation = f"not separated, difference {_bounds(found, _signed)}"
        # The base policy is not trained, so it has no seeds to speak of.
        trained = [name for name in (a, b) if kinds[name] != "base"]
        counts = list(dict.fromkeys(len(groups[name]) for name in trained))
        evidence = f"{' and '.join(map(str, counts))} seed{'' if counts == [1] else 's'} × {sides[a].shape[1]} problems"
        single = " and of ".join(names[name] for name in trained if len(groups[name]) == 1)
        caveat = f"; one seed of {single}, so the interval says nothing of other seeds" if single else ""
        return (
            f"{names[a]} {_bounds(own[a])} against {names[b]} {_bounds(own[b])}: {relation} {what}, over "
            f"{evidence}{caveat}."
        )

    first, second = sorted(groups, key=lambda name: -own[name].mean)[:2]
    lead = measure(sides[first], sides[second], metric)
    relation = (
        f"ahead of the next, {names[second]}, by {_bounds(lead)}"
        if lead.interval()[0] > 0
        else f"not separated from the next, {names[second]} (difference {_bounds(lead, _signed)})"
    )
    sentences = [f"Highest mean {what}: {names[first]}, {_number(own[first].mean)}, {relation}."]
    chosen = [name for name in groups if kinds[name] == "prefix_rft"]
    base = [name for name in groups if kinds[name] == "base"]
    sentences += [against(a, b) for a in chosen for b in groups if b not in chosen]
    sentences += [against(a, b) for b in base for a in groups if a not in base and a not in chosen]
    for name, found in (("prefix_rft", chosen), ("base", base)):
        if not found and label is None:
            sentences.append(f"There is no run of {name!r} among these, so nothing is said about it.")
    return sentences


def _bounds(found: Estimate, number: Callable[[float], str] | None = None) -> str:
    mean, low, high = ((number or _number)(value) for value in (found.mean, *found.interval()))
    return f"{mean} [{low}, {high}]"


def _number(value: float) -> str:
    """Three decimals for shares, one for lengths in tokens."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{_number(abs(value))}"
