"""Every figure of the kit, drawn from what runs recorded.

Each function takes runs (finished, running or interrupted) and returns a :class:`RunFigure`: a Matplotlib figure made
without pyplot, since pyplot keeps a global list of figures that breaks when widgets call back from another thread. It
shows itself in notebooks, carries the numbers it draws in ``figure.data`` and a sentence for readers in
``figure.caption``. :func:`save_figure` writes all of it beside a record of where it came from.

How to read them all: one colour and one marker per method, in all figures, and others for its variants; line style tells the kind of token (dotted prefix, dashed
continuation, solid on-policy); thin lines are single seeds and the thick one is their mean, a band (95% t interval over
seeds) replaces the thin lines above five seeds. Where a step-by-step curve is smoothed, the raw one lies beneath it and
the note under the title gives the width. A missing column is a missing line, never a made-up zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefix_rft_lab.plots.base import (
    ARM_STYLES,
    KIND_STYLES,
    METHOD_STYLES,
    OKABE_ITO,
    SPARE_STYLES,
    Group,
    RunFigure,
    environment,
    groups,
    kit_style,
    method_looks,
    provenance,
    save_figure,
    visible,
)
from prefix_rft_lab.plots.comparisons import dose_response, forest, score_against_cost
from prefix_rft_lab.plots.scores import final_scores, pass_at_k, verdicts
from prefix_rft_lab.plots.steps import update_effect
from prefix_rft_lab.plots.tokens import (
    advantage_covariance,
    clip_stability,
    collapse,
    demonstration_map,
    entropy_change,
    entropy_quantiles,
    forking_tokens,
    kept_tokens,
    relative_position,
    reward_by_prefix_entropy,
    seam,
    surprise,
)
from prefix_rft_lab.plots.training import (
    Panel,
    entropy_dynamics,
    figure,
    gradient_by_kind,
    gradient_norm,
    learning_curves,
    lengths,
    loss,
    nll_against_reward,
    policy_entropy,
    prefix_lengths,
    rewards,
    schedule,
)
from prefix_rft_lab.runs.run import Run

__all__ = [
    "ARM_STYLES", "FIGURES", "KIND_STYLES", "METHOD_STYLES", "OKABE_ITO", "SPARE_STYLES", "TOKEN_FIGURES", "Group",
    "Panel", "RunFigure", "advantage_covariance", "clip_stability", "collapse", "demonstration_map",
    "dose_response", "entropy_change", "entropy_dynamics", "entropy_quantiles", "environment", "figure",
    "final_scores", "forest", "forking_tokens", "gradient_by_kind", "gradient_norm", "groups", "kept_tokens",
    "kit_style", "learning_curves", "lengths", "loss", "method_looks", "nll_against_reward", "pass_at_k", "policy_entropy",
    "prefix_lengths", "provenance", "relative_position", "reward_by_prefix_entropy", "rewards", "save_figure",
    "schedule", "score_against_cost", "seam", "surprise", "update_effect", "verdicts",
    "visible",
]  # fmt: skip

DrawRuns = Callable[[Sequence[Run]], RunFigure]
FIGURES: dict[str, DrawRuns] = {
    "learning_curves": learning_curves,
    "entropy_dynamics": entropy_dynamics,
    "policy_entropy": policy_entropy,
    "rewards": rewards,
    "nll_against_reward": nll_against_reward,
    "lengths": lengths,
    "loss": loss,
    "gradient_norm": gradient_norm,
    "gradient_by_kind": gradient_by_kind,
    "collapse": collapse,
    "demonstration_map": demonstration_map,
    "surprise": surprise,
    "entropy_change": entropy_change,
    "advantage_covariance": advantage_covariance,
}
"""Figures that need nothing but runs of any methods, in the order of a report."""

TOKEN_FIGURES: dict[str, DrawRuns] = {
    "entropy_quantiles": entropy_quantiles,
    "seam": seam,
    "relative_position": relative_position,
    "forking_tokens": forking_tokens,
    "clip_stability": clip_stability,
    "reward_by_prefix_entropy": reward_by_prefix_entropy,
}
"""Figures of the token tables of one method with prefixes, all its seeds together."""
