"""What every engine takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One row to generate."""

    context_ids: list[int]
    """Prompt, then prefix if any."""
    max_new_tokens: int
    key: int
    """Random key of the row (:func:`prefix_rft_lab.core.rng.key`): its samples depend on nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the policy made of a request."""

    token_ids: list[int]
    """Sampled ids, up to and including the end token if it came."""
    logp: list[float]
    """Log-probability of each sampled token at the sampling temperature (greedy: at 1), nats."""
    truncated: bool
    """True if ``max_new_tokens`` ran out before the end token."""


class Engine(Protocol):
    """Samples completions under the current policy."""

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, greedy: bool = False
    ) -> list[Completion]:
        """One completion a request, in the order given. With ``greedy`` the keys and the temperature play no part
        in the choice of tokens."""
        ...

    def weights_changed(self) -> None:
        """Say that the policy was updated since the last rows: the next ones are sampled from what it is then."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it generates nothing afterwards."""
        ...
