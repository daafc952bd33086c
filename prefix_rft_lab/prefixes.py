"""From a problem to the rows of its group: which start from the bare prompt and which from a piece of a demonstration.

A row plan is a function ``(problem, step, config) -> rows``; methods name one (:mod:`prefix_rft_lab.methods`).
"""

from __future__ import annotations

from collections.abc import Sequence

from prefix_rft_lab import rng, schedules
from prefix_rft_lab.config import RunConfig
from prefix_rft_lab.types import EncodedProblem, Row


def plain_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows from the bare prompt."""
    return [Row(problem=problem, row=i) for i in range(config.rollout.rows_per_problem)]


def hybrid_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows, of which the last ``rollout.hybrid_rows`` start with a prefix of the demonstration.

    Each hybrid row draws its own ratio at this step. Without a demonstration, or where the drawn length is 0
    tokens, the row is a plain one.
    """
    rows = plain_rows(problem, step, config)
    demonstration = problem.demonstration_ids
    if demonstration is None or config.rollout.hybrid_rows == 0:
        return rows
    for row in rows[-config.rollout.hybrid_rows :]:
        draws = rng.generator(config.seed, "prefix_ratio", step, problem.index, row.row)
        row.prefix_ratio = schedules.sample_ratio(config.prefix, step, draws)
        length = schedules.prefix_length(row.prefix_ratio, len(demonstration), config.prefix.min_tokens)
        row.prefix_ids = demonstration[:length]
    return rows


def demonstration_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """One row: the whole demonstration with its end token; nothing is sampled."""
    if problem.demonstration_ids is None:
        return []
    return [Row(problem=problem, row=0, prefix_ids=problem.demonstration_ids, prefix_ratio=1.0, is_demonstration=True)]


def batch_at(pool: Sequence[EncodedProblem], step: int, size: int, seed: int, purpose: str) -> list[EncodedProblem]:
    """The problems of one step: a new keyed order every epoch, epochs joined without a gap.

    A function of the step alone, so a resumed run has no cursor to lose. A pool smaller than ``size`` comes round
    more than once within a step.
    """
    chosen: list[EncodedProblem] = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, len(pool))
        if not chosen or place == 0:
            order = rng.generator(seed, purpose, epoch).permutation(len(pool))
        chosen.append(pool[order[place]])
    return chosen


def prefix_contains_answer(prefix_text: str) -> bool:
    """Whether a prefix already shows a closed box: the policy then only has to copy."""
    from prefix_rft_lab.rewards import extract_answer

    return extract_answer(prefix_text) is not None
