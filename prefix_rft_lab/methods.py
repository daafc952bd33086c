"""Every method as a declaration: which rows a problem gets, and what each kind of token contributes to the loss.

A method is a sequence of stages. A stage names a row plan, a loss for each token kind, the kinds that the entropy
clip acts on, and the section of the config with its optimizer. The trainer knows none of them by name: it sums

    loss = sum over kinds of  sum_t loss_kind(t) / normaliser_kind(window)

where a normaliser is one number known before the first pass over the optimizer window. To add a method, add an
entry to :data:`METHODS` (``METHODS["mine"] = Method(...)`` works from a notebook too).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from prefix_rft_lab import losses, prefixes
from prefix_rft_lab.config import ConfigError, RunConfig
from prefix_rft_lab.types import EncodedProblem, Row, TokenKind


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInputs:
    """What a token loss sees of the tokens of one kind; all (tokens,)."""

    logp: torch.Tensor  # float32, nats, differentiable
    old_logp: torch.Tensor  # float32, nats, of the policy before the step; no gradient
    advantages: torch.Tensor  # float32, after the entropy clip; no gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Sizes of one optimizer window, known before the first pass."""

    rows: int
    tokens: Mapping[TokenKind, int]
    """Response tokens of each kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLosses:
    """Loss of each token, and what the clip did to it; all (tokens,)."""

    loss: torch.Tensor
    clipped: torch.Tensor  # bool


class TokenLoss(Protocol):
    """The loss of one token kind."""

    @property
    def needs_advantage(self) -> bool:
        """Whether a token with advantage 0 has no gradient."""
        ...

    def tokens(self, inputs: TokenInputs, config: RunConfig) -> TokenLosses: ...

    def normaliser(self, kind: TokenKind, window: Window, config: RunConfig) -> float: ...


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """PPO's clipped surrogate on the advantages, summed over the window and divided by rows * max_response_tokens
    (Dr.GRPO, arXiv 2503.20783)."""

    clip_ratio: Callable[[RunConfig], bool] = lambda config: True
    """Whether the ratio limits apply; prefix tokens ask ``prefix.clip_ratio``."""
    needs_advantage: bool = True

    def tokens(self, inputs: TokenInputs, config: RunConfig) -> TokenLosses:
        unclipped = None if self.clip_ratio(config) else torch.ones_like(inputs.logp, dtype=torch.bool)
        terms = losses.policy_loss_tokens(
            inputs.logp,
            inputs.old_logp,
            inputs.advantages,
            clip_low=config.loss.clip_low,
            clip_high=config.loss.clip_high,
            dual_clip=config.loss.dual_clip,
            unclipped=unclipped,
        )
        return TokenLosses(loss=terms.loss, clipped=terms.clipped | terms.dual_clipped)

    def normaliser(self, kind: TokenKind, window: Window, config: RunConfig) -> float:
        return losses.dr_grpo_normaliser(window.rows, config.rollout.max_response_tokens)


@dataclass(frozen=True, slots=True)
class NegativeLogLikelihood:
    """``weight`` times the token-mean NLL over the whole optimizer window, never a mean of micro-batch means
    (arXiv 2604.23747)."""

    weight: float = 1.0
    needs_advantage: bool = False

    def tokens(self, inputs: TokenInputs, config: RunConfig) -> TokenLosses:
        return TokenLosses(
            loss=self.weight * losses.nll_tokens(inputs.logp), clipped=torch.zeros_like(inputs.logp, dtype=torch.bool)
        )

    def normaliser(self, kind: TokenKind, window: Window, config: RunConfig) -> float:
        return float(max(window.tokens.get(kind, 0), 1))


RowPlan = Callable[[EncodedProblem, int, RunConfig], list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One phase of training with its own optimizer."""

    name: str
    rows: RowPlan
    losses: Mapping[TokenKind, TokenLoss]
    """Token kinds that are missing here carry no gradient but still count in the Dr.GRPO denominator."""
    entropy_clip: frozenset[TokenKind] = field(default_factory=frozenset)
    """Kinds whose lowest-entropy tokens get advantage 0 (``prefix.keep``, ``prefix.keep_fraction``)."""
    optim: Literal["rl", "sft"]
    """Section of the config that holds steps, learning rate and batch size."""
    needs_demonstrations: bool = False
    """Draw only from problems with a demonstration."""

    @property
    def samples(self) -> bool:
        """Whether the policy generates anything in this stage (then every row is scored)."""
        return self.rows is not prefixes.demonstration_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A named sequence of stages; each starts from the weights of the one before with a fresh optimizer."""

    title: str
    stages: tuple[Stage, ...]
    uses_prefixes: bool = False


SFT = Stage(
    name="sft",
    rows=prefixes.demonstration_rows,
    losses={TokenKind.PREFIX: NegativeLogLikelihood()},
    optim="sft",
    needs_demonstrations=True,
)
RFT = Stage(
    name="rft",
    rows=prefixes.plain_rows,
    losses={TokenKind.ON_POLICY: PolicyGradient()},
    optim="rl",
)
PREFIX_RFT = Stage(
    name="prefix_rft",
    rows=prefixes.hybrid_rows,
    losses={
        TokenKind.ON_POLICY: PolicyGradient(),
        TokenKind.CONTINUATION: PolicyGradient(),
        TokenKind.PREFIX: PolicyGradient(clip_ratio=lambda config: config.prefix.clip_ratio),
    },
    entropy_clip=frozenset({TokenKind.PREFIX}),
    optim="rl",
)

METHODS: dict[str, Method] = {
    "base": Method(title="Base policy", stages=()),
    "sft": Method(title="SFT", stages=(SFT,)),
    "rft": Method(title="RFT (Dr.GRPO)", stages=(RFT,)),
    "sft_then_rft": Method(title="SFT→RFT", stages=(SFT, RFT)),
    "prefix_rft": Method(title="Prefix-RFT", stages=(PREFIX_RFT,), uses_prefixes=True),
}
"""Name (``config.method``) -> method."""


def get(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: an unknown name; the message lists the known ones.
    """
    if name not in METHODS:
        raise ConfigError(f"method = {name!r} is not known; use one of {', '.join(METHODS)}")
    return METHODS[name]
