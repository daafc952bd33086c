"""Credit: from one score a row to one advantage a row and token kind.

An estimator maps the scores of all rows of a step to two numbers a row: ``sampled``, the advantage of the tokens
that the policy wrote, and ``prefix``, that of the tokens copied from the demonstration. Notation of the docstrings:
s is a row's score, m8 the mean over all rows of its problem, m0 the mean over its plain rows (those without a
prefix). A group of one row has mean 0 and standard deviation 1 unless an estimator says otherwise; standard
deviations are sample ones (n - 1). Row order carries no meaning.

Sources: Dr.GRPO (arXiv 2503.20783) and GRPO (arXiv 2402.03300) for the plain estimators; the ``*_prefix`` ones are
those of the code published with Prefix-RFT (arXiv 2507.01679); LUFFY is arXiv 2504.14945.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from prefix_rft_lab.core.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAdvantages:
    """Advantages by row and token kind."""

    sampled: torch.Tensor  # (rows,) value of the tokens outside the prefix
    prefix: torch.Tensor  # (rows,) value of the prefix tokens; read only where a row has a prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistics:
    mean: torch.Tensor  # (rows,) float64, mean of the row's group
    std: torch.Tensor  # (rows,) float64, sample standard deviation of the row's group


def _statistics(
    scores: torch.Tensor, group: torch.Tensor, counted: torch.Tensor | None = None, *, lone_mean_is_own: bool = False
) -> _Statistics:
    """Mean and sample std of each row's group, over the ``counted`` rows only.

    With one counted row the std is 1 and the mean 0, or that row's own score; with none they are 1 and 0.
    """
    values, index = torch.unique(group, return_inverse=True)
    weight = torch.ones_like(scores) if counted is None else counted.to(scores.dtype)
    empty = scores.new_zeros(values.numel())
    count = empty.index_add(0, index, weight)
    mean = empty.index_add(0, index, weight * scores) / count.clamp(min=1)
    squares = empty.index_add(0, index, weight * (scores - mean[index]) ** 2)
    lone = count <= 1
    std = torch.where(lone, 1.0, (squares / (count - 1).clamp(min=1)).sqrt())
    if not lone_mean_is_own:
        mean = torch.where(lone, 0.0, mean)
    return _Statistics(mean=mean[index], std=std[index])


def _checked(scores: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:
    """Scores in float64: sums of a group are then exact, so equal scores give advantages of exactly 0."""
    if scores.ndim != 1 or any(other.shape != scores.shape for other in ids):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (scores, *ids))
        raise ValueError(f"scores and group ids have shapes {shapes}; give one entry a row in each")
    return scores.double()


def _pairs(group: torch.Tensor, prefix_group: torch.Tensor) -> torch.Tensor:
    """(rows,) id of the pair (group, prefix); all rows of a problem without a prefix share one."""
    groups, index = torch.unique(group, return_inverse=True)
    return index + groups.numel() * torch.unique(prefix_group.clamp(min=-1), return_inverse=True)[1]


def _same(value: torch.Tensor, scores: torch.Tensor) -> RowAdvantages:
    value = value.to(scores.dtype)
    return RowAdvantages(sampled=value, prefix=value)


def dr_grpo(
    scores: torch.Tensor,
    group: torch.Tensor,
    prefix_group: torch.Tensor,
    *,
    epsilon: float = 1e-6,
    rows_per_prefix: int = 1,
) -> RowAdvantages:
    """A = s - m8 on every token of the row: one advantage for the hybrid trajectory (the paper's text).

    Args:
        scores: (rows,) float.
        group: (rows,) int64, equal for rows of one problem.
        prefix_group: (rows,) int64, equal for rows that share a prefix, -1 for no prefix; not used.
        epsilon: not used.
        rows_per_prefix: not used.
    """
    exact = _checked(scores, group)
    return _same(exact - _statistics(exact, group).mean, scores)


def grpo(
    scores: torch.Tensor,
    group: torch.Tensor,
    prefix_group: torch.Tensor,
    *,
    epsilon: float = 1e-6,
    rows_per_prefix: int = 1,
    normalise_by_std: bool = True,
) -> RowAdvantages:
    """A = (s - m8) / (std + epsilon) on every token of the row; arguments as :func:`dr_grpo`."""
    return _same(luffy_joint(scores, group, normalise_by_std=normalise_by_std, epsilon=epsilon), scores)


def dr_grpo_prefix(
    scores: torch.Tensor,
    group: torch.Tensor,
    prefix_group: torch.Tensor,
    *,
    epsilon: float = 1e-6,
    rows_per_prefix: int = 1,
    lone_mean_is_own: bool = False,
    standardise: bool = False,
) -> RowAdvantages:
    """The published code's default: rows are centred within the pair (problem, prefix).

    c = s - mean of the pair (0 for one row); sampled tokens c, prefix tokens (c - m0) / rows_per_prefix. With one
    hybrid row per problem: s on its continuation, not centred, and s - m0 on its prefix.

    Args:
        scores: (rows,) float.
        group: (rows,) int64, equal for rows of one problem.
        prefix_group: (rows,) int64, equal for rows that share a prefix, -1 for no prefix.
        epsilon: for ``standardise``.
        rows_per_prefix: hybrid rows that share one prefix.
        lone_mean_is_own: the published v2: a lone row is its own mean, so 0 on the continuation and -m0 on the prefix;
            the sign of the prefix's advantage then ignores the outcome.
        standardise: the published GRPO form, c = (s - mean) / (std + epsilon): a standardised value minus a raw mean.
    """
    exact = _checked(scores, group, prefix_group)
    pair = _statistics(exact, _pairs(group, prefix_group), lone_mean_is_own=lone_mean_is_own)
    centred = exact - pair.mean
    if standardise:
        centred = centred / (pair.std + epsilon)
    plain_mean = _statistics(exact, group, prefix_group < 0, lone_mean_is_own=lone_mean_is_own).mean
    return RowAdvantages(
        sampled=centred.to(scores.dtype), prefix=((centred - plain_mean) / rows_per_prefix).to(scores.dtype)
    )


def plain_baseline(
    scores: torch.Tensor,
    group: torch.Tensor,
    prefix_group: torch.Tensor,
    *,
    epsilon: float = 1e-6,
    rows_per_prefix: int = 1,
) -> RowAdvantages:
    """A = s - m0 on every token of the row: rows with a prefix or a demonstration do not move the baseline.

    LUFFY's ``split`` without the standard deviation, and the baseline of RL with SFT loss; arguments as
    :func:`dr_grpo_prefix`.
    """
    return _same(luffy_split(scores, group, prefix_group < 0), scores)


ESTIMATORS = Registry[Callable[..., RowAdvantages]]("advantage estimator", "loss.advantage")
"""Name (``loss.advantage``) -> ``(scores, group, prefix_group, *, epsilon, rows_per_prefix) -> RowAdvantages``."""
register = ESTIMATORS.register
ESTIMATORS["dr_grpo"] = dr_grpo
ESTIMATORS["dr_grpo_prefix"] = dr_grpo_prefix
ESTIMATORS["dr_grpo_prefix_v2"] = partial(dr_grpo_prefix, lone_mean_is_own=True)
ESTIMATORS["grpo"] = grpo
ESTIMATORS["grpo_prefix"] = partial(dr_grpo_prefix, standardise=True)
ESTIMATORS["plain_baseline"] = plain_baseline


def luffy_joint(
    scores: torch.Tensor, group: torch.Tensor, *, normalise_by_std: bool = False, epsilon: float = 1e-6
) -> torch.Tensor:
    """LUFFY with one baseline for sampled and demonstration rows: A = s - m8, or (s - m8) / (std + epsilon).

    Args:
        scores: (rows,) float.
        group: (rows,) int64, equal for rows of one problem.

    Returns:
        (rows,) the value of every token of the row.
    """
    exact = _checked(scores, group)
    statistics = _statistics(exact, group)
    centred = exact - statistics.mean
    return (centred / (statistics.std + epsilon) if normalise_by_std else centred).to(scores.dtype)


def luffy_split(
    scores: torch.Tensor,
    group: torch.Tensor,
    on_policy: torch.Tensor,
    *,
    normalise_by_std: bool = False,
    epsilon: float = 1e-6,
) -> torch.Tensor:
    """LUFFY with the baseline of the sampled rows alone, applied to demonstration rows too.

    A = s - mean over on-policy rows, or that over (std + epsilon) with a std of 0 replaced by 1: without that, a
    problem that the policy always fails would give its demonstration an advantage of 1 / epsilon.

    Args:
        scores: (rows,) float.
        group: (rows,) int64, equal for rows of one problem.
        on_policy: (rows,) bool, False on demonstration rows.

    Returns:
        (rows,) the value of every token of the row.
    """
    exact = _checked(scores, group, on_policy)
    statistics = _statistics(exact, group, on_policy)
    centred = exact - statistics.mean
    std = torch.where(statistics.std == 0, 1.0, statistics.std)
    return (centred / (std + epsilon) if normalise_by_std else centred).to(scores.dtype)
