"""SFT: the token-mean NLL of demonstrations over the whole optimizer window."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, NegativeLogLikelihood, Stage
from prefix_rft_lab.core.types import TokenKind

SFT = Stage(
    name="sft",
    rows=prefixes.demonstration_rows,
    losses=lambda config: {TokenKind.PREFIX: NegativeLogLikelihood()},
    optim="sft",
    samples=False,
    demonstrations="required",
)
METHODS["sft"] = Method(title="SFT", stages=(SFT,))
