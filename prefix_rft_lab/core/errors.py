"""Errors that users meet: one sentence that names the field, the value and the remedy."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run that cannot go on; the message says what was kept and what to do."""


class RunDivergedError(RunError):
    """Loss or weights became NaN or infinite; the run is kept as one that solved nothing."""


class RunClaimedError(RunError):
    """Another process trains the run."""
