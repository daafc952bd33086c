"""RFT: Dr.GRPO (arXiv 2503.20783) on rows from the bare prompt."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, PolicyGradient, Stage
from prefix_rft_lab.core.types import TokenKind

RFT = Stage(
    name="rft",
    rows=prefixes.plain_rows,
    losses=lambda config: {TokenKind.ON_POLICY: PolicyGradient()},
    optim="rl",
)
METHODS["rft"] = Method(title="RFT (Dr.GRPO)", stages=(RFT,))
