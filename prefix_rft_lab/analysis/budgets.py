"""What a comparison cost each side: optimizer steps, rows sampled, demonstration tokens trained, seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from prefix_rft_lab.algorithm.methods import METHODS, Stage
from prefix_rft_lab.analysis import stats
from prefix_rft_lab.core.config import RunConfig
from prefix_rft_lab.core.types import Demonstration, EncodedProblem, Problem, Row
from prefix_rft_lab.runs.run import Run


def budgets(groups: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """What each group's training took, mean over its runs; as far as they got.

    Returns:
        index: name of the group; steps (optimizer steps, second updates included), rows (sampled; in records that do not
        say, as if every problem had a demonstration), demonstrations (tokens of demonstrations and prefixes trained on, without
        those of second updates, which are not recorded), seconds (rollouts, scoring, updates).
    """
    found: dict[str, list[dict[str, float]]] = {}
    for name, run in ((name, run) for name, members in groups.items() for run in members):
        steps, paid = stats.records(run, "metrics"), stats.spent(run).iloc[-1]
        done: Mapping[Any, int] = steps["stage"].value_counts().to_dict() if len(steps) else {}
        own = {"steps": float(steps["replay_updated"].sum()) if "replay_updated" in steps else 0.0, "rows": 0.0}
        for stage in METHODS[run.method].stages if run.method in METHODS else ():
            plain, hybrid, _ = rows_of_step(stage, run.config)
            updates = min(run.config.loss.updates_per_rollout, run.config.rollout.problems_per_step)
            own["steps"] += done.get(stage.name, 0) * (updates if stage.samples else 1)
            own["rows"] += done.get(stage.name, 0) * (plain + hybrid)
        if "sampled_rows" in steps:
            own["rows"] = float(steps["sampled_rows"].sum())
        dropped = float(steps["dropped_tokens"].sum()) if "dropped_tokens" in steps else 0.0
        own |= {"demonstrations": paid["trained"] + dropped - paid["sampled"], "seconds": paid["seconds"]}
        found.setdefault(name, []).append(own)
    return pd.DataFrame({name: pd.DataFrame(own).mean() for name, own in found.items()}).T


def rows_of_step(stage: Stage, config: RunConfig) -> tuple[int, int, int]:
    """Rows of a step that are sampled from the prompt alone, that continue a prefix (at most), and that are demonstrations;
    where every problem has a demonstration."""
    problems = config.rollout.problems_per_step if stage.samples else config.sft.batch_rows
    rows = _rows_of_a_problem(stage, config, stage.optimizer_section(config).steps)
    demonstrations = problems * sum(row.is_demonstration for row in rows)
    hybrid = problems * sum(row.is_hybrid for row in rows)
    return problems * len(rows) - demonstrations - hybrid, hybrid, demonstrations


def _rows_of_a_problem(stage: Stage, config: RunConfig, steps: int) -> list[Row]:
    """The row plan's own answer for a made-up problem with a long demonstration, at the step with the most prefixes."""
    length = config.rollout.max_response_tokens
    parts = config.uft.parts
    demonstration = Demonstration(
        ids=[0] * length, step_ends=tuple(sorted({length * (i + 1) // (parts + 1) for i in range(parts)}))
    )
    problem = EncodedProblem(
        problem=Problem(id="", prompt="", answer=""), index=0, prompt_ids=[0], demonstrations=(demonstration,)
    )
    tried = (stage.rows(problem, step, config) for step in range(0, max(steps, 1), max(steps // 16, 1)))
    return max(tried, key=lambda rows: sum(row.is_hybrid for row in rows))
