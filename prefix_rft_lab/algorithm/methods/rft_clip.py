"""RFT with the entropy clip on the sampled tokens (the paper's ablation)."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, PolicyGradient, Stage
from prefix_rft_lab.core.types import TokenKind

RFT_CLIP = Stage(
    name="rft_clip",
    rows=prefixes.plain_rows,
    losses=lambda config: {TokenKind.ON_POLICY: PolicyGradient()},
    entropy_clip=frozenset({TokenKind.ON_POLICY}),
    optim="rl",
)
METHODS["rft_clip"] = Method(title="RFT + on-policy clip", stages=(RFT_CLIP,))
