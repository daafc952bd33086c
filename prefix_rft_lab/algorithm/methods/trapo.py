"""TRAPO (arXiv 2512.17636): the more rows of a problem fail, the longer the prefix of the next, and prefixes are imitated.

Of N = 8 rows 4 start from the prompt; then 2 with a quarter of the demonstration where fewer than 2 were right, 1 with half of it
where fewer than 4 were, and the whole of it where fewer than 7 were; any other row is plain too. A prefix token has the
gradient -min(1, p / 0.1) of its log-probability whatever the outcome; of two rows with one prefix the second alone
trains it. As published the policy gradient is unclipped and A = s - mean. Published cuts prefer the end of a paragraph; here
``prefix.unit`` says where a prefix is cut. Learning rate: the kit's of RFT, not tuned (published: 1e-6, as RFT's of the presets).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from prefix_rft_lab.algorithm import losses, prefixes, schedules
from prefix_rft_lab.algorithm.stages import METHODS, Method, PolicyGradient, Stage, TokenInputs, TokenLosses
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import EncodedProblem, Row, TokenKind


def _check(config: RunConfig) -> None:
    if (rows := config.rollout.rows_per_problem) < 4:
        raise ConfigError(
            f"rollout.rows_per_problem = {rows} is too few for method 'trapo', whose rows have four lengths of prefix; use at least 4"
        )


@prefixes.row_plan(plain=lambda config: config.rollout.rows_per_problem // 2, check=_check)
def lengthening_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows in four waves: plain, N // 4 with a quarter, one with half, and one with the whole of a demonstration."""
    rows = prefixes.plain_rows(problem, step, config)
    if not problem.demonstrations:
        return rows
    demonstration = prefixes.demonstration_at(problem, step, config)
    for wave, ratio, hybrid in ((1, 0.25, rows[-2 - len(rows) // 4 : -2]), (2, 0.5, rows[-2:-1])):
        for row in hybrid:
            row.wave, row.prefix_number, row.prefix_ratio = wave, wave - 1, ratio
            row.prefix_ids = schedules.cut_prefix(ratio, demonstration, config.prefix)
    rows[-1].wave, rows[-1].prefix_number, rows[-1].prefix_ratio = 3, 2, 1.0
    rows[-1].prefix_ids, rows[-1].is_demonstration = demonstration.ids, True
    return rows


def decide(rows: list[Row], wave: int, config: RunConfig) -> list[Row]:
    """All rows; those of the next wave are plain where enough were right."""
    count, right = len(rows), sum(row.solved for row in rows if row.wave <= wave)
    if wave == 3 or right < (count // 4, count // 2, count - 1)[wave]:
        return rows
    plain: dict[str, Any] = {"prefix_ids": [], "prefix_ratio": 0.0, "prefix_number": 0, "is_demonstration": False}
    return [replace(row, **plain) if row.wave == wave + 1 else row for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedImitation(PolicyGradient):
    """The NLL of prefixes with tokens of probability below 0.1 held back, over what policy gradients are divided by."""

    needs_advantage: bool = False

    def tokens(self, inputs: TokenInputs, config: RunConfig) -> TokenLosses:
        loss = losses.nll_tokens(inputs.logp, lambda p: (p / 0.1).clamp(max=1))
        trains = inputs.of_rows(lambda row: row.row >= config.rollout.rows_per_problem - 3)
        return TokenLosses(loss=loss * trains, clipped=torch.zeros_like(trains, dtype=torch.bool))


TRAPO = Stage(
    name="trapo",
    rows=lengthening_rows,
    losses=lambda config: {
        TokenKind.ON_POLICY: PolicyGradient(clip_ratio=False),
        TokenKind.CONTINUATION: PolicyGradient(clip_ratio=False),
        TokenKind.PREFIX: BoundedImitation(),
    },
    decide=decide,
    demonstrations="used",
    advantages=("dr_grpo",),
    optim="rl",
)
METHODS["trapo"] = Method(title="TRAPO", stages=(TRAPO,))
