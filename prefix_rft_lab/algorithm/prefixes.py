"""From a problem to the rows of its group: which start from the bare prompt and which from a piece of a demonstration.

A row plan is a function ``(problem, step, config) -> rows``; methods name one (:mod:`prefix_rft_lab.algorithm.methods`). Those
of the kit are a :class:`RowPlan`, which also says how many rows are plain and which settings and data make no sense.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefix_rft_lab.algorithm import schedules
from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import Demonstration, EncodedProblem, Row

Rows = Callable[[EncodedProblem, int, RunConfig], list[Row]]


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """``(problem, step, config) -> rows``, and what has to hold for it."""

    rows: Rows
    plain: Callable[[RunConfig], int] = lambda config: config.rollout.rows_per_problem
    """Rows of a problem that start from the bare prompt, where it has a demonstration."""
    check: Callable[[RunConfig], None] = lambda config: None
    """Raises :class:`ConfigError` for settings that make no sense with it."""
    check_data: Callable[[RunConfig, Sequence[EncodedProblem]], None] = lambda config, problems: None
    """Raises :class:`ConfigError` for training problems that it cannot use."""

    def __call__(self, problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
        return self.rows(problem, step, config)


def row_plan(**settings: Any) -> Callable[[Rows], RowPlan]:
    """A decorator that makes a :class:`RowPlan` of a function."""
    return lambda rows: RowPlan(rows=rows, **settings)


def plain_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows from the bare prompt."""
    return [Row(problem=problem, row=i) for i in range(config.rollout.rows_per_problem)]


def _has_hybrid_rows(config: RunConfig) -> None:
    if config.rollout.hybrid_rows == 0:
        raise ConfigError(
            f"rollout.hybrid_rows = 0 leaves method {config.method!r} without prefixes; use at least 1, or method 'rft'"
        )


@row_plan(
    plain=lambda config: config.rollout.rows_per_problem - config.rollout.hybrid_rows,
    check=_has_hybrid_rows,
)
def hybrid_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows, of which the last ``rollout.hybrid_rows`` start with a prefix of a demonstration.

    Each ``rollout.rows_per_prefix`` of them share one prefix, whose ratio (and demonstration, where there are several)
    is drawn anew at every step. Without a demonstration, or where the drawn length is 0 tokens, a row is a plain one.
    """
    rows = plain_rows(problem, step, config)
    hybrid = rows[len(rows) - config.rollout.hybrid_rows :]
    for number, start in enumerate(range(0, len(hybrid), config.rollout.rows_per_prefix)):
        _give_prefix(hybrid[start : start + config.rollout.rows_per_prefix], number, step, config)
    return rows


@row_plan(plain=lambda config: 0)
def shared_prefix_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows that all continue one prefix (the rows of DR-PO); plain rows without a demonstration."""
    rows = plain_rows(problem, step, config)
    _give_prefix(rows, 0, step, config)
    return rows


def _give_prefix(rows: list[Row], number: int, step: int, config: RunConfig) -> None:
    """Let rows of one problem start with one prefix; its key is that of the first of them."""
    problem = rows[0].problem
    if not problem.demonstrations:
        return
    draws = rng.generator(config.seed, "prefix_ratio", step, *problem.key, rows[0].row)
    settings = schedules.of_run(config)
    ratio = schedules.sample_ratio(settings, step, draws)
    ids = schedules.cut_prefix(ratio, demonstration_at(problem, step, config, number), settings)
    for row in rows:
        row.prefix_ids, row.prefix_ratio, row.prefix_number = ids, ratio, number
        row.ratio_window = schedules.ratio_window(settings, step)


def demonstration_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """One row: a whole demonstration with its end token; nothing is sampled."""
    if not problem.demonstrations:
        return []
    ids = demonstration_at(problem, step, config).ids
    return [Row(problem=problem, row=0, prefix_ids=ids, prefix_ratio=1.0, is_demonstration=True)]


@row_plan(plain=lambda config: config.rollout.rows_per_problem - 1)
def plain_and_demonstration_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows: N - 1 from the bare prompt and a whole demonstration; N from the bare prompt without a demonstration."""
    rows = plain_rows(problem, step, config)
    for demonstration in demonstration_rows(problem, step, config):
        demonstration.row = rows[-1].row
        rows[-1] = demonstration
    return rows


@row_plan()
def rows_beside_demonstration(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows from the bare prompt and, besides these, a whole demonstration where there is one."""
    rows = plain_rows(problem, step, config)
    return rows + [replace(row, row=len(rows)) for row in demonstration_rows(problem, step, config)]


def demonstration_at(problem: EncodedProblem, step: int, config: RunConfig, number: int = 0) -> Demonstration:
    """The demonstration that prefix ``number`` of a problem is cut from at a step.

    Where there are several, a keyed order of them is drawn at every step and prefixes take them in turn, so that two
    prefixes of one problem come from different demonstrations as long as these last.
    """
    count = len(problem.demonstrations)
    if count == 1:
        return problem.demonstrations[0]
    order = rng.generator(config.seed, "demonstration", step, *problem.key).permutation(count)
    return problem.demonstrations[order[number % count]]


def batch_at(pool: Sequence[EncodedProblem], step: int, size: int, seed: int, purpose: str) -> list[EncodedProblem]:
    """The problems of one step: a new keyed order every epoch, epochs joined without a gap.

    A function of the step alone, so a resumed run has no cursor to lose. A pool smaller than ``size`` comes round
    more than once within a step; ``visit`` distinguishes its groups.
    """
    chosen: list[EncodedProblem] = []
    visits: Counter[int] = Counter()
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, len(pool))
        if not chosen or place == 0:
            order = rng.generator(seed, purpose, epoch).permutation(len(pool))
        problem = pool[order[place]]
        chosen.append(replace(problem, visit=visits[problem.index]) if visits[problem.index] else problem)
        visits[problem.index] += 1
    return chosen
