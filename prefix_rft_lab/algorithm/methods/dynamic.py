"""Dynamic sampling (DAPO, arXiv 2503.14476) with RFT's loss: problems whose rows all score alike, which teach nothing, make room
for others. A control: it cures empty groups without a demonstration."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, PolicyGradient, Stage
from prefix_rft_lab.core.config import RunConfig
from prefix_rft_lab.core.types import Row, TokenKind


def decide(rows: list[Row], wave: int, config: RunConfig) -> list[Row]:
    """All rows, or none where they score alike."""
    return rows if len({row.score for row in rows}) > 1 else []


DYNAMIC = Stage(
    name="dynamic",
    rows=prefixes.plain_rows,
    losses=lambda config: {TokenKind.ON_POLICY: PolicyGradient()},
    decide=decide,
    redraws=lambda config: config.dynamic.redraws,
    optim="rl",  # learning rate: the kit's of RFT, not tuned
)
METHODS["dynamic"] = Method(title="RFT + dynamic sampling", stages=(DYNAMIC,), settings="dynamic")
