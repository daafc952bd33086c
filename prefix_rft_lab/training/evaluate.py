"""Evaluation: a policy samples, the rewards of a config judge; one row per problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prefix_rft_lab.core import rng
from prefix_rft_lab.core.types import EncodedProblem, Problem
from prefix_rft_lab.models.generation import Engine, Request


def sample_scores(
    engine: Engine,
    problems: Sequence[EncodedProblem],
    solved: Callable[[Sequence[list[int]], Sequence[Problem]], list[bool]],
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
        solved: whether responses (lists of ids) solve their problems.
        purpose: names the random keys, e.g. ``"validation"``; the same purpose gives every policy the same keys.

    Returns:
        one row per problem: id, split, level, k, correct (of k), greedy (0/1 or NaN), tokens (mean length),
        truncated (share of samples).
    """
    requests = [
        Request(context_ids=p.prompt_ids, max_new_tokens=max_tokens, key=rng.key(seed, purpose, p.index, sample))
        for p in problems
        for sample in range(k)
    ]
    completions = engine.generate(requests, temperature=temperature)
    right = solved([c.token_ids for c in completions], [p.problem for p in problems for _ in range(k)])
    greedy_scores: list[float] = [float("nan")] * len(problems)
    if greedy:
        firsts = requests[::k]
        best = engine.generate(firsts, greedy=True)
        greedy_scores = list(map(float, solved([c.token_ids for c in best], [p.problem for p in problems])))
    rows: list[dict[str, Any]] = []
    for i, problem in enumerate(problems):
        own = slice(i * k, (i + 1) * k)
        rows.append(
            {
                "id": problem.problem.id,
                "split": problem.problem.split,
                "level": problem.problem.level,
                "k": k,
                "correct": int(sum(right[own])),
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
