"""LUFFY (arXiv 2504.14945): the demonstration is one more row of the group."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, PolicyGradient, ShapedDemonstration, Stage
from prefix_rft_lab.core.types import TokenKind

LUFFY = Stage(
    name="luffy",
    rows=prefixes.plain_and_demonstration_rows,
    losses=lambda config: {
        TokenKind.ON_POLICY: PolicyGradient(clip_ratio=False),
        TokenKind.PREFIX: ShapedDemonstration(),
    },
    demonstrations="used",
    advantages=("dr_grpo", "grpo", "plain_baseline"),
    optim="rl",
)
METHODS["luffy"] = Method(title="LUFFY", stages=(LUFFY,), settings="luffy")
