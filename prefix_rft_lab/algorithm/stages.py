"""What a method is made of: losses by token kind, stages, and the check of a config against them.

A method is a sequence of stages. A stage names a row plan, a loss for each token kind, the kinds that the entropy
clip acts on, and the section of the config with its optimizer. The trainer knows none of them by name: it sums

    loss = sum over kinds of  sum_t loss_kind(t) / normaliser_kind(window)

where a normaliser is one number known before the first pass over the optimizer window. The kit's methods are in
:mod:`prefix_rft_lab.algorithm.methods`, one file each; ``METHODS["mine"] = Method(...)`` adds yours (notebook 02 does so).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch

from prefix_rft_lab.algorithm import advantages, losses, schedules
from prefix_rft_lab.algorithm.advantages import ESTIMATORS
from prefix_rft_lab.core.config import ConfigError, LossConfig, OptimConfig, RunConfig
from prefix_rft_lab.core.registry import Registry, used
from prefix_rft_lab.core.types import EncodedProblem, Row, TokenKind

# ---------------------------------------------------------------------- losses by token


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInputs:
    """What a token loss sees of the tokens of one kind; all (tokens,)."""

    logp: torch.Tensor  # float32, nats, differentiable
    entropy: torch.Tensor  # float32, nats, of the distribution that the token was drawn from; differentiable
    old_logp: torch.Tensor  # float32, nats, of the policy before the step; no gradient
    advantages: torch.Tensor  # float32, after the entropy clip; no gradient
    step: int  # of the stage, for coefficients that move
    rows: Sequence[Row]  # of the optimizer window
    row_of: torch.Tensor  # (tokens,) int64, the row of each token

    def of_rows(self, fact: Callable[[Row], float]) -> torch.Tensor:
        """(tokens,) float32, a fact of each token's row."""
        return torch.tensor([float(fact(row)) for row in self.rows], device=self.logp.device)[self.row_of]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Sizes of one optimizer window, known before the first pass."""

    rows: int
    sampled_rows: int
    """Rows of which the policy wrote at least a part."""
    tokens: Mapping[TokenKind, int]
    """Response tokens of each kind."""
    micro: Window | None = None
    """Sizes of the micro-batch that a loss is taken in, where ``loss.normalise`` is ``micro_batch``; else None."""
    micro_batches: int = 1
    """Micro-batches that the window is cut into."""

    @property
    def sampled_tokens(self) -> int:
        return sum(count for kind, count in self.tokens.items() if kind is not TokenKind.PREFIX)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _PolicyNormaliser:
    """What losses weighted by advantages are divided by."""

    over: Literal["rows", "sampled_rows", "sampled_tokens"] = "rows"
    """``rows``: rows * max_response_tokens (Dr.GRPO, arXiv 2503.20783); ``sampled_rows``: the same without rows that
    are demonstrations; ``sampled_tokens``: the number of sampled tokens (GRPO's token mean)."""

    def normaliser(self, kind: TokenKind, window: Window, config: RunConfig) -> float:
        if window.micro is None:
            return self._size(window, config)
        # As published: over max_response_tokens and not over rows; micro-batches weigh by their share of the rows.
        size = config.rollout.max_response_tokens if self.over != "sampled_tokens" else self._size(window.micro, config)
        return size * window.rows / max(window.micro.rows, 1)

    def _size(self, window: Window, config: RunConfig) -> float:
        if self.over == "sampled_tokens":
            return float(max(window.sampled_tokens, 1))
        rows = window.rows if self.over == "rows" else window.sampled_rows
        return losses.dr_grpo_normaliser(rows, config.rollout.max_response_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradient(_PolicyNormaliser):
    """PPO's clipped surrogate on the advantages."""

    clip_ratio: bool = True
    """Whether the ratio limits apply."""
    needs_advantage: bool = True

    def tokens(self, inputs: TokenInputs, config: RunConfig) -> TokenLosses:
        unclipped = None if self.clip_ratio else torch.ones_like(inputs.logp, dtype=torch.bool)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedDemonstration(_PolicyNormaliser):
    """LUFFY's loss of demonstration tokens: -A f(p), gradient through f, no old log-prob, no clip (arXiv 2504.14945)."""

    needs_advantage: bool = True

    def tokens(self, inputs: TokenInputs, config: RunConfig) -> TokenLosses:
        loss = losses.shaped_demonstration_tokens(
            inputs.logp, inputs.advantages, shape=config.luffy.shape, gamma=config.luffy.gamma
        )
        return TokenLosses(loss=loss, clipped=torch.zeros_like(loss, dtype=torch.bool))


@dataclass(frozen=True, slots=True, kw_only=True)
class NegativeLogLikelihood:
    """``weight`` times the token-mean of NLL - ``entropy_weight`` * H over the whole optimizer window, never a mean of
    micro-batch means (arXiv 2604.23747).

    At temperature 1 in a stage that samples nothing; beside samples, all log-probabilities are at rollout.temperature.
    """

    weight: float = 1.0
    entropy_weight: float = 0.0
    """Weight of the entropy (nats) that is taken off the NLL."""
    token_weight: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Factor of a token's NLL by its probability, held constant."""
    needs_advantage: bool = False

    def tokens(self, inputs: TokenInputs, config: RunConfig) -> TokenLosses:
        loss = losses.nll_tokens(inputs.logp, self.token_weight)
        if self.entropy_weight:
            loss = loss - self.entropy_weight * inputs.entropy
        return TokenLosses(loss=self.weight * loss, clipped=torch.zeros_like(loss, dtype=torch.bool))

    def normaliser(self, kind: TokenKind, window: Window, config: RunConfig) -> float:
        if window.micro is None:
            return float(max(window.tokens.get(kind, 0), 1))
        # As published: the mean of the micro-batches' token means.
        return float(max(window.micro.tokens.get(kind, 0), 1)) * window.micro_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class ByStep:
    """Another loss times a coefficient that moves with the steps of the stage."""

    loss: TokenLoss
    coefficient: Callable[[int, RunConfig], float]

    @property
    def needs_advantage(self) -> bool:
        return self.loss.needs_advantage

    def tokens(self, inputs: TokenInputs, config: RunConfig) -> TokenLosses:
        found = self.loss.tokens(inputs, config)
        return replace(found, loss=self.coefficient(inputs.step, config) * found.loss)

    def normaliser(self, kind: TokenKind, window: Window, config: RunConfig) -> float:
        return self.loss.normaliser(kind, window, config)


# ---------------------------------------------------------------------- stages and methods


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One phase of training with its own optimizer."""

    name: str
    """Also keys its random choices: stages of one name, in whatever method, draw the same problems, prefixes and
    samples as long as their policies are the same."""
    rows: Callable[[EncodedProblem, int, RunConfig], list[Row]]
    """``(problem, step, config) -> rows``; a :class:`~prefix_rft_lab.algorithm.prefixes.RowPlan` brings checks of its own."""
    losses: Callable[[RunConfig], Mapping[TokenKind, TokenLoss | tuple[TokenLoss, ...]]]
    """The loss of each kind, or several, each over its own normaliser. Token kinds that are missing in it carry no gradient but
    still count in the Dr.GRPO denominator."""
    optim: Literal["rl", "sft"]
    """Section of the config that holds steps, learning rate and batch size."""
    samples: bool = True
    """Whether the policy generates anything in this stage (then every row is scored)."""
    demonstrations: Literal["unused", "used", "required"] = "unused"
    """``used``: demonstrations take part, in rows or in a second update, where a problem has one; ``required``: only
    problems with one are drawn."""
    prefix_schedule: bool = False
    """Whether prefix ratios are drawn from the window that ``prefix`` describes."""
    entropy_clip: frozenset[TokenKind] = field(default_factory=frozenset)
    """Kinds whose lowest-entropy tokens get advantage 0 (``prefix.keep``, ``prefix.keep_fraction``)."""
    prefix_loss: bool = False
    """Whether ``losses`` obeys ``prefix.loss``."""
    advantages: tuple[str, ...] = ()
    """Estimators that the stage makes sense with, its own first; none named: any that ``loss.advantage`` names."""
    replay: Replay | None = None
    """A second update on problems that the rollouts of this stage single out."""
    decide: Callable[[list[Row], int, RunConfig], list[Row]] | None = None
    """``(rows of a problem, wave, config) -> rows`` that stay once those of a wave (``Row.wave``) are scored: for the update,
    and of later waves for being sampled at all. A problem of which none stays makes room for another."""
    redraws: Callable[[RunConfig], int] = lambda config: 0
    """How often a step draws other problems in place of those that were given up; those that it cannot replace stay."""

    def ranked(self, config: RunConfig) -> frozenset[TokenKind]:
        """Kinds that the entropy clip acts on under a config: it takes advantages away, so without one in the loss of a kind
        there is nothing to take."""
        return frozenset(
            kind for kind, loss in self.each_loss(config) if kind in self.entropy_clip and loss.needs_advantage
        )

    def each_loss(self, config: RunConfig) -> Iterator[tuple[TokenKind, TokenLoss]]:
        """Every loss with the kind of token that it is of."""
        for kind, given in self.losses(config).items():
            for loss in given if isinstance(given, tuple) else (given,):
                yield kind, loss

    def optimizer_section(self, config: RunConfig) -> OptimConfig:
        return config.sft if self.optim == "sft" else config.rl

    def estimator(self, config: RunConfig) -> str:
        """Name of the advantage estimator: ``loss.advantage`` where the stage makes sense with it, else its own."""
        chosen = config.loss.advantage
        return chosen if not self.advantages or chosen in self.advantages else self.advantages[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A buffer of problems beside a stage; whenever it holds a full batch, the newest are popped for one update.

    At most one such update follows each step of the stage; it has an optimizer of its own.
    """

    stage: Stage
    """Rows and losses of the update."""
    enters: Callable[[Sequence[Row]], bool]
    """Whether the rows of a problem put it into the buffer; a problem is in it once."""
    batch: Callable[[RunConfig], int]
    """Problems that one update takes."""
    setting: str
    """Field of the config that says so."""
    section: Callable[[RunConfig], OptimConfig]
    """Learning rate and all else of its optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A named sequence of stages; each starts from the weights of the one before with a fresh optimizer."""

    title: str
    stages: tuple[Stage, ...]
    settings: str = ""
    """Section of the config that this method, and perhaps a variant of it, alone reads; "" for none."""
    version: str = ""
    """What you call this state of a method of your own; name another one whenever its code, or anything that the code
    reads, changed. It is part of the run's identity; a run of a method without one is trained anew each time."""

    @property
    def uses_prefixes(self) -> bool:
        """Whether prefix ratios are drawn from the schedule."""
        return any(stage.prefix_schedule for stage in self.stages)

    def uses(self, config: RunConfig) -> Iterator[tuple[Registry[Any], str]]:
        """Ideas that it uses by name: the estimators of its stages."""
        yield from ((ESTIMATORS, stage.estimator(config)) for stage in self.stages if stage.samples)


METHODS = Registry[Method]("method", "method")
"""Name (``config.method``) -> method. The paper's two other ablations, static and frozen prefixes, are ``prefix_rft``
with ``prefix.loss``."""
register, get = METHODS.register, METHODS.find


def check(config: RunConfig) -> Method:
    """The method of a config, once its settings make sense for it.

    Raises:
        ConfigError: an unknown method, or a setting that the method cannot obey.
    """
    used(config)
    method = get(config.method)
    for stage in method.stages:
        _check_stage(stage, config)
    if config.prefix.loss != "advantage" and not any(stage.prefix_loss for stage in method.stages):
        raise ConfigError(
            f"prefix.loss = {config.prefix.loss!r} has no meaning for method {config.method!r}, which does not train "
            "prefixes by it; leave it at 'advantage' or use method 'prefix_rft'"
        )
    return method


def _check_stage(stage: Stage, config: RunConfig) -> None:
    rollout, name = config.rollout, f"method {config.method!r}"
    if not stage.samples:
        return
    for known in stage.advantages:
        ESTIMATORS.find(known)
    default = LossConfig().advantage
    if stage.estimator(config) != config.loss.advantage != default:
        raise ConfigError(
            f"loss.advantage = {config.loss.advantage!r} has no meaning for {name}, which is defined with "
            f"{' or '.join(map(repr, stage.advantages))}; leave it at {default!r}"
        )
    if config.loss.updates_per_rollout > rollout.problems_per_step:
        raise ConfigError(
            f"loss.updates_per_rollout = {config.loss.updates_per_rollout} is more than rollout.problems_per_step = "
            f"{rollout.problems_per_step}, and the rows of a problem stay together; lower it"
        )
    plain = getattr(stage.rows, "plain", lambda config: rollout.rows_per_problem)
    advantages.check(stage.estimator(config), config, plain(config))
    getattr(stage.rows, "check", lambda config: None)(config)
    if stage.prefix_schedule and config.prefix.high == 0:
        raise ConfigError(f"prefix.high = 0 leaves {name} without prefixes; raise it, or use method 'rft'")
    if stage.prefix_schedule:
        schedules.check(config)
