"""DFT (arXiv 2508.05629): SFT whose tokens weigh by their probability, so that improbable ones pull no harder than others."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, NegativeLogLikelihood, Stage
from prefix_rft_lab.core.types import TokenKind

DFT = Stage(
    name="dft",
    rows=prefixes.demonstration_rows,
    losses=lambda config: {TokenKind.PREFIX: NegativeLogLikelihood(token_weight=lambda p: p)},
    optim="sft",  # learning rate: the kit's of SFT, not tuned
    samples=False,
    demonstrations="required",
)
METHODS["dft"] = Method(title="DFT", stages=(DFT,))
