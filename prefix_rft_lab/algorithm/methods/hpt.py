"""HPT (arXiv 2509.04419): a problem that few of its rows solve is imitated, any other is reinforced, in one update.

With ``hpt.gate`` 0 it is the rule of SuperRL and DyME too: the demonstration where no row is right. As in the published code the
policy gradient is unclipped and its advantages are not divided by a deviation; unlike there, neither side's weight depends
on how the window is cut, and there is no entropy bonus on demonstrations.
"""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, NegativeLogLikelihood, PolicyGradient, Stage
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import Row, TokenKind


def imitates(right: int, gate: int) -> bool:
    """Whether a problem with so many right rows is imitated."""
    return right <= gate


def decide(rows: list[Row], wave: int, config: RunConfig) -> list[Row]:
    """The demonstration alone, or the sampled rows; those too where there is no demonstration."""
    sampled = [row for row in rows if not row.is_demonstration]
    demonstration = [row for row in rows if row.is_demonstration]
    return demonstration if demonstration and imitates(sum(r.solved for r in sampled), config.hpt.gate) else sampled


def _check(config: RunConfig) -> None:
    if config.hpt.gate >= config.rollout.rows_per_problem:
        raise ConfigError(
            f"hpt.gate = {config.hpt.gate} is not below rollout.rows_per_problem = {config.rollout.rows_per_problem}, so every "
            "problem would be imitated; lower it, or use method 'sft'"
        )


HPT = Stage(
    name="hpt",
    rows=prefixes.RowPlan(rows=prefixes.rows_beside_demonstration, check=_check),
    losses=lambda config: {
        TokenKind.ON_POLICY: PolicyGradient(clip_ratio=False, over="sampled_rows"),
        TokenKind.PREFIX: NegativeLogLikelihood(weight=config.hpt.weight),
    },
    decide=decide,
    demonstrations="used",
    advantages=("dr_grpo", "grpo"),
    optim="rl",  # learning rate: the kit's of RFT, not tuned (published: 5e-6, five times that of its baselines)
)
METHODS["hpt"] = Method(title="HPT", stages=(HPT,), settings="hpt")
