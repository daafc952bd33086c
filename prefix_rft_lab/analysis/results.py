"""Tables of what finished runs scored: of each run, of methods (or arms) compared, of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from prefix_rft_lab.analysis import stats
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.tables import show
from prefix_rft_lab.experiments.sweeps import Plan
from prefix_rft_lab.runs.run import Run
from prefix_rft_lab.runs.summary import scores_of

_SCORED = {
    f"{metric}{end}": f"{head}{end}"
    for metric, head in (("avg", "avg@k"), ("pass", "pass@k"), ("greedy", "greedy"))
    for end in ("", "_low", "_high")
}
"""Column of a comparison -> its name in a table."""


def of_runs(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run and split of its final evaluation, 95% intervals over problems."""
    rows = []
    for run in runs:
        for split, part in run.summary["splits"].items():
            scored = {head: scores_of(part)[name] for name, head in _SCORED.items()}
            place = {"method": run.method, "seed": run.seed, "split": split, "problems": part["problems"]}
            rows.append(place | scored | {"k": part["k"], "seconds": round(run.summary["seconds"])})
    return pd.DataFrame(
        rows, columns=None if rows else ["method", "seed", "split", "problems", *_SCORED.values(), "k", "seconds"]
    )


def of_methods(runs: Sequence[Run], label: Callable[[Run], str] | None = None) -> pd.DataFrame:
    """One row per method (or label) and split, with 95% intervals over seeds and problems."""
    groups = stats.group(runs, label)
    rows = []
    for split in dict.fromkeys(split for run in runs for split in run.summary["splits"]):
        for row in stats.compare(runs, split, label=label).to_dict("records"):
            steps = max(len(run.metrics) for run in groups[row["method"]])
            rows.append([row["title"], split, row["seeds"], steps, *(row[name] for name in _SCORED), row["over"]])
    first = "method" if label is None else "arm"
    columns = [first, "split", "seeds", "steps", *_SCORED.values(), "95% t interval over"]
    return pd.DataFrame(rows, columns=columns)


def of_sweep(plan: Plan, runs: Sequence[Run]) -> str:
    """The arms of a sweep compared, as text; of a sweep without a final evaluation their last validations."""
    if any(run.summary["splits"] for run in runs):
        try:
            return show(of_methods(runs, plan.label()))
        except ConfigError as error:
            return f"not compared: {error}"
    named = {"avg": "validation avg@k", "pass": "pass@k", "greedy": "greedy"}
    last = [run.evaluations[list(named)].iloc[-1].rename(named) for run in runs]
    places = [{"arm": plan.label()(run), "seed": run.seed} for run in runs]
    return show(pd.DataFrame([place | dict(scores) for place, scores in zip(places, last, strict=True)]))
