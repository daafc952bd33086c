"""Credit: from one score per row to one advantage per row and token kind.

An estimator maps the scores of all rows of a step (:class:`Scores`) to two numbers per row: ``sampled``, the advantage of the tokens
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

from prefix_rft_lab.core.config import ConfigError, RunConfig
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What an estimator sees: all rows of a step.

    Four rows of one problem, of which the last continues a prefix:

    >>> rows = Scores(
    ...     scores=torch.tensor([1.0, 0.0, 0.0, 1.0]),
    ...     group=torch.tensor([0, 0, 0, 0]),
    ...     prefix_group=torch.tensor([-1, -1, -1, 0]),
    ... )
    >>> rows.plain.tolist()
    [True, True, True, False]
    """

    scores: torch.Tensor
    """(rows,) float."""
    group: torch.Tensor
    """(rows,) int64, equal for rows of one problem."""
    prefix_group: torch.Tensor
    """(rows,) int64, equal for rows of a problem that share a prefix, -1 for no prefix."""
    rows_per_prefix: int = 1
    """Hybrid rows that share one prefix."""
    epsilon: float = 1e-6
    """Added to standard deviations."""

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or any(ids.shape != self.scores.shape for ids in (self.group, self.prefix_group)):
            shapes = ", ".join(str(tuple(one.shape)) for one in (self.scores, self.group, self.prefix_group))
            raise ValueError(f"scores and group ids have shapes {shapes}; give one entry per row in each")

    @property
    def exact(self) -> torch.Tensor:
        """Scores in float64: sums of a group are then exact, so equal scores give advantages of exactly 0."""
        return self.scores.double()

    @property
    def plain(self) -> torch.Tensor:
        """(rows,) bool: rows without a prefix."""
        return self.prefix_group < 0

    def statistics(
        self,
        group: torch.Tensor | None = None,
        counted: torch.Tensor | None = None,
        *,
        lone_mean_is_own: bool = False,
    ) -> _Statistics:
        """Mean and sample std of each row's group, the problem unless told, over the ``counted`` rows only.

        With one counted row the std is 1 and the mean 0, or that row's own score; with none they are 1 and 0.
        """
        scores = self.exact
        values, index = torch.unique(self.group if group is None else group, return_inverse=True)
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

    def advantages(self, sampled: torch.Tensor, prefix: torch.Tensor | None = None) -> RowAdvantages:
        """In the precision of the scores; one value for all tokens of a row unless the prefix has its own."""
        sampled = sampled.to(self.scores.dtype)
        return RowAdvantages(sampled=sampled, prefix=sampled if prefix is None else prefix.to(self.scores.dtype))


Estimator = Callable[[Scores], RowAdvantages]
ESTIMATORS = Registry[Estimator]("advantage estimator", "loss.advantage")
"""Name (``loss.advantage``) -> ``(rows: Scores) -> RowAdvantages``."""
register = ESTIMATORS.register


@register("dr_grpo")
def dr_grpo(rows: Scores) -> RowAdvantages:
    """A = s - m8 on every token of the row: one advantage for the hybrid trajectory (the paper's text).

    >>> group, prefix = torch.tensor([0, 0, 0, 0]), torch.tensor([-1, -1, -1, 0])
    >>> rows = Scores(scores=torch.tensor([1.0, 0.0, 0.0, 1.0]), group=group, prefix_group=prefix)
    >>> dr_grpo(rows).sampled.tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    return rows.advantages(rows.exact - rows.statistics().mean)


def dr_grpo_prefix(rows: Scores, *, lone_mean_is_own: bool = False, standardise: bool = False) -> RowAdvantages:
    """The published code's default: rows are centred within the pair (problem, prefix).

    c = s - mean of the pair (0 for one row); sampled tokens c, prefix tokens (c - m0) / rows_per_prefix. With one
    hybrid row per problem: s on its continuation, not centred, and s - m0 on its prefix.

    Args:
        lone_mean_is_own: the published v2: a lone row is its own mean, so 0 on the continuation and -m0 on the prefix;
            the sign of the prefix's advantage then ignores the outcome.
        standardise: the published GRPO form, c = (s - mean) / (std + epsilon): a standardised value minus a raw mean.

    >>> group, prefix = torch.tensor([0, 0, 0, 0]), torch.tensor([-1, -1, -1, 0])
    >>> rows = Scores(scores=torch.tensor([1.0, 0.0, 0.0, 1.0]), group=group, prefix_group=prefix)
    >>> found = dr_grpo_prefix(rows)  # the plain rows are centred on their mean 1/3, a lone hybrid row is not
    >>> found.sampled
    tensor([ 0.6667, -0.3333, -0.3333,  1.0000])
    >>> found.prefix[-1]
    tensor(0.6667)
    """
    # (rows,) id of the pair (problem, prefix); all rows of a problem without a prefix share one.
    groups, index = torch.unique(rows.group, return_inverse=True)
    pairs = index + groups.numel() * torch.unique(rows.prefix_group.clamp(min=-1), return_inverse=True)[1]
    pair = rows.statistics(pairs, lone_mean_is_own=lone_mean_is_own)
    centred = rows.exact - pair.mean
    if standardise:
        centred = centred / (pair.std + rows.epsilon)
    plain_mean = rows.statistics(counted=rows.plain, lone_mean_is_own=lone_mean_is_own).mean
    return rows.advantages(centred, (centred - plain_mean) / rows.rows_per_prefix)


ESTIMATORS["dr_grpo_prefix"] = dr_grpo_prefix
ESTIMATORS["dr_grpo_prefix_v2"] = partial(dr_grpo_prefix, lone_mean_is_own=True)


@register("grpo")
def grpo(rows: Scores) -> RowAdvantages:
    """A = (s - m8) / (std + epsilon) on every token of the row.

    >>> group, prefix = torch.tensor([0, 0, 0, 0]), torch.tensor([-1, -1, -1, 0])
    >>> rows = Scores(scores=torch.tensor([1.0, 0.0, 0.0, 1.0]), group=group, prefix_group=prefix)
    >>> grpo(rows).sampled
    tensor([ 0.8660, -0.8660, -0.8660,  0.8660])
    """
    statistics = rows.statistics()
    return rows.advantages((rows.exact - statistics.mean) / (statistics.std + rows.epsilon))


ESTIMATORS["grpo_prefix"] = partial(dr_grpo_prefix, standardise=True)


@register("maxrl")
def maxrl(rows: Scores) -> RowAdvantages:
    """A = (s - m8) / m8, 0 where no row scores (MaxRL): the gradient of the log of the success rate, under which the right rows of
    a problem weigh as much as they are rare.

    >>> group, prefix = torch.tensor([0, 0, 0, 0]), torch.tensor([-1, -1, -1, 0])
    >>> rows = Scores(scores=torch.tensor([1.0, 0.0, 0.0, 1.0]), group=group, prefix_group=prefix)
    >>> maxrl(rows).sampled.tolist()
    [1.0, -1.0, -1.0, 1.0]
    """
    mean = rows.statistics().mean
    return rows.advantages((rows.exact - mean) / torch.where(mean == 0, 1.0, mean))


@register("plain_baseline")
def plain_baseline(rows: Scores, *, standardise: bool = False) -> RowAdvantages:
    """A = s - m0 on every token of the row: rows with a prefix or a demonstration do not move the baseline.

    The baseline of RL with SFT loss, and LUFFY's ``split`` without the standard deviation.

    Args:
        standardise: LUFFY's ``split``: over (std + epsilon) of the plain rows, with a std of 0 replaced by 1: without
            that, a problem that the policy always fails would give its demonstration an advantage of 1 / epsilon.

    >>> group, prefix = torch.tensor([0, 0, 0, 0]), torch.tensor([-1, -1, -1, 0])
    >>> rows = Scores(scores=torch.tensor([1.0, 0.0, 0.0, 1.0]), group=group, prefix_group=prefix)
    >>> plain_baseline(rows).sampled
    tensor([ 0.6667, -0.3333, -0.3333,  0.6667])
    """
    statistics = rows.statistics(counted=rows.plain)
    centred = rows.exact - statistics.mean
    if standardise:
        centred = centred / (torch.where(statistics.std == 0, 1.0, statistics.std) + rows.epsilon)
    return rows.advantages(centred)


ESTIMATORS["grpo_plain"] = partial(plain_baseline, standardise=True)


def check(name: str, config: RunConfig, plain: int) -> None:
    """Refuse an estimator of the kit's whose baseline would be the mean of fewer than two rows.

    Args:
        plain: rows of a problem without a prefix or a demonstration.

    Raises:
        ConfigError: it has none.
    """
    rows = config.rollout.rows_per_problem
    baseline = plain if name in ("plain_baseline", "grpo_plain") else rows
    if ESTIMATORS.entries[name].is_kit and baseline < 2:
        raise ConfigError(
            f"rollout.rows_per_problem = {rows} leaves method {config.method!r} {max(baseline, 0)} rows for the baseline of "
            f"{name!r}; use more rows, so that there are at least 2"
        )
