"""The nouns of the kit: problems, demonstrations, rows, groups. Ids in, ids out; text only at the edges."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import torch


class TokenKind(IntEnum):
    """Where a token of a sequence came from; losses, the entropy clip and all plots go by it."""

    CONTEXT = 0
    """Prompt or padding: never in a loss."""
    PREFIX = 1
    """Copied from a demonstration: the prefix of a hybrid row, or the whole of a demonstration row."""
    CONTINUATION = 2
    """Sampled by the policy after a prefix."""
    ON_POLICY = 3
    """Sampled by the policy from the bare prompt."""


KIND_NAMES: dict[TokenKind, str] = {kind: kind.name.lower() for kind in TokenKind if kind is not TokenKind.CONTEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem with a verifiable answer and, perhaps, demonstrations.

    >>> problem = Problem(id="1", prompt="What is 2 + 3?", answer="5", demonstrations=("2 + 3 is 5.",))
    >>> problem.demonstration
    '2 + 3 is 5.'
    """

    id: str
    prompt: str
    """What the policy is asked, without chat template."""
    answer: str
    """The gold answer, as the verifier reads it."""
    demonstrations: tuple[str, ...] = ()
    """Worked solutions that end in the answer."""
    level: str = ""
    split: str = "train"

    @property
    def demonstration(self) -> str | None:
        """The first demonstration, None where there is none."""
        return self.demonstrations[0] if self.demonstrations else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A demonstration as token ids."""

    ids: list[int]
    """The whole text, closed by the end token."""
    step_ends: tuple[int, ...] = ()
    """Tokens up to the end of each solution step: a line is a step, and the last line, which gives the answer, is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedProblem:
    """A problem as token ids."""

    problem: Problem
    index: int
    """Position in the source: the ``problem`` part of every random key."""
    prompt_ids: list[int]
    demonstrations: tuple[Demonstration, ...] = ()
    visit: int = 0
    """How often the problem came before within the same step: an epoch may end inside it, a small pool come round."""

    @property
    def key(self) -> tuple[int, ...]:
        """The ``problem`` part of a random key; a second visit within a step draws anew."""
        return (self.index, self.visit) if self.visit else (self.index,)

    @property
    def demonstration_ids(self) -> list[int] | None:
        """Ids of the first demonstration, closed by the end token; None where there is none."""
        return self.demonstrations[0].ids if self.demonstrations else None


@dataclass(slots=True, kw_only=True)
class Row:
    """One row of a group, before and after generation."""

    problem: EncodedProblem
    row: int
    """Number within its group: the ``row`` part of the random key."""
    wave: int = 0
    """Rows of a later wave are sampled when those of the waves before have scores, if the method still wants them."""
    prefix_ids: list[int] = field(default_factory=list)
    prefix_number: int = 0
    """Rows of a group with a prefix and equal numbers share that prefix."""
    prefix_ratio: float = 0.0
    ratio_window: tuple[float, float] | None = None
    """The window that the ratio was drawn from; None where none was."""
    sampled_ids: list[int] = field(default_factory=list)
    """What the policy generated, up to and including the end token."""
    engine_logp: list[float] = field(default_factory=list)
    """The engine's log-probability of each sampled token at the sampling temperature, nats; empty where none told it."""
    is_demonstration: bool = False
    """The whole response is the demonstration; nothing is sampled."""
    truncated: bool = False
    """Ran out of tokens before an end token."""
    score: float = 0.0
    """Reward of the whole response: by default 1.0 if the verifier accepts it, else 0.0."""
    solved: bool = False
    """Whether the score is one of a solved problem (``data.solved``)."""
    rewards: dict[str, float] = field(default_factory=dict)
    """What each reward said, by name, before its weight."""

    @property
    def is_hybrid(self) -> bool:
        return bool(self.prefix_ids) and not self.is_demonstration

    @property
    def response_ids(self) -> list[int]:
        return self.prefix_ids + self.sampled_ids

    @property
    def kinds(self) -> list[TokenKind]:
        """The kind of each response token."""
        sampled = TokenKind.CONTINUATION if self.is_hybrid else TokenKind.ON_POLICY
        return [TokenKind.PREFIX] * len(self.prefix_ids) + [sampled] * len(self.sampled_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBatch:
    """Rows padded on the right for a forward pass."""

    input_ids: torch.Tensor  # (rows, width) int64: prompt, response, padding
    attention_mask: torch.Tensor  # (rows, width) int64: 1 on prompt and response
    kinds: torch.Tensor  # (rows, width) int64 TokenKind of the token at that place

    @property
    def response_mask(self) -> torch.Tensor:
        """(rows, width) bool: the tokens that losses and entropies speak of."""
        return self.kinds != TokenKind.CONTEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStats:
    """What one forward pass says of the response tokens, flat, in row-major order."""

    logp: torch.Tensor  # (tokens,) float32 log-probability of the token, nats
    entropy: torch.Tensor  # (tokens,) float32 entropy of the next-token distribution at its place, nats
