"""Prefix-RFT (arXiv 2507.01679): one row of a problem continues a prefix of its demonstration, and the prefix is trained where the
policy is unsure."""

from __future__ import annotations

from collections.abc import Callable

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, NegativeLogLikelihood, PolicyGradient, Stage, TokenLoss
from prefix_rft_lab.core.config import RunConfig
from prefix_rft_lab.core.registry import Registry
from prefix_rft_lab.core.types import TokenKind

PREFIX_LOSSES = Registry[Callable[[RunConfig], TokenLoss | None]]("loss of prefixes", "prefix.loss")
"""Name (``prefix.loss``) -> ``(config) -> loss`` of the prefix tokens; None trains nothing on them."""


@PREFIX_LOSSES.register("advantage")
def advantage(config: RunConfig) -> TokenLoss:
    """By the outcome of the row (the paper)."""
    return PolicyGradient(clip_ratio=config.prefix.clip_ratio)


@PREFIX_LOSSES.register("static")
def static(config: RunConfig) -> TokenLoss:
    """A weight times the NLL, whatever the outcome (the paper's ablation in the style of UFT)."""
    return NegativeLogLikelihood(weight=config.prefix.static_weight)


@PREFIX_LOSSES.register("frozen")
def frozen(config: RunConfig) -> None:
    """Nothing."""


def losses(config: RunConfig) -> dict[TokenKind, TokenLoss]:
    found: dict[TokenKind, TokenLoss] = {
        TokenKind.ON_POLICY: PolicyGradient(),
        TokenKind.CONTINUATION: PolicyGradient(),
    }
    if prefix := PREFIX_LOSSES.find(config.prefix.loss)(config):
        found[TokenKind.PREFIX] = prefix
    return found


PREFIX_RFT = Stage(
    name="prefix_rft",
    rows=prefixes.hybrid_rows,
    losses=losses,
    prefix_loss=True,
    entropy_clip=frozenset({TokenKind.PREFIX}),
    demonstrations="used",
    prefix_schedule=True,
    optim="rl",
)
METHODS["prefix_rft"] = Method(title="Prefix-RFT", stages=(PREFIX_RFT,))
