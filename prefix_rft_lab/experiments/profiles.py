"""What ``make reproduce`` trains, at three sizes.

A profile changes how much is run, never how a method works: smoke shows that everything connects (its numbers mean
nothing), quick gives a first answer in minutes, full is the one to quote.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefix_rft_lab.core.config import ConfigError

SWEEPS = ("main", "demo_quality", "demonstration_fraction", "problem_fraction", "components", "methods", "budget")
"""The sweeps that answer a question; the kit's others only serve them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How much of an experiment is run."""

    seeds: tuple[int, ...]
    changes: dict[str, Any]
    """Dotted config fields and values, over the preset ``tiny``."""
    sweeps: tuple[str, ...]
    """Sweeps of the kit (:mod:`prefix_rft_lab.experiments.sweeps`) that a reproduction trains; the first is the main comparison."""
    notebooks: tuple[str, ...] | None = None
    """Numbers of the notebooks that a reproduction runs, e.g. ``("01", "02")``; None for all."""
    many_samples: int = 256
    """Samples of each problem where pass@k is followed to large k (:func:`prefix_rft_lab.experiments.evaluation_run.sample_all`)."""
    many_problems: int = 48
    """Test problems sampled so often."""


PROFILES = {
    "smoke": Profile(
        seeds=(0,),
        changes={
            "rl.steps": 4,
            "sft.steps": 3,
            "rollout.problems_per_step": 4,
            "data.train_problems": 64,
            "data.eval_problems": 12,
            "evaluation.problems": 12,
            "evaluation.every": 2,
            "evaluation.k": 2,
            "evaluation.hard_tries": 4,
            "records.tokens_every": 2,
            "records.checkpoint_every": 2,
        },
        sweeps=SWEEPS,
        many_samples=8,
        many_problems=6,
    ),
    "quick": Profile(
        seeds=(0, 1),
        changes={},
        many_samples=64,
        many_problems=48,
        sweeps=("main", "demo_quality", "demonstration_fraction", "problem_fraction"),
        notebooks=("01", "02", "03", "04", "05"),
    ),
    "full": Profile(
        seeds=(0, 1, 2, 3, 4),
        changes={
            "rl.steps": 200,
            "sft.steps": 80,
        },
        sweeps=SWEEPS,
    ),
}


def profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in PROFILES:
        raise ConfigError(f"profile = {name!r} is not known; use one of {', '.join(PROFILES)}")
    return PROFILES[name]
