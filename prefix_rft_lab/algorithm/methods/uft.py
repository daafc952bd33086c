"""UFT (arXiv 2505.16984): all rows of a problem continue one hint, the first solution steps of a demonstration."""

from __future__ import annotations

from collections.abc import Sequence

from prefix_rft_lab.algorithm import prefixes, schedules
from prefix_rft_lab.algorithm.stages import METHODS, Method, NegativeLogLikelihood, PolicyGradient, Stage
from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import EncodedProblem, Row, TokenKind


def hint_steps(config: RunConfig) -> int:
    """UFT's T_hint: training steps with hints, ``uft.hint_steps`` or six tenths of ``rl.steps``."""
    return round(0.6 * config.rl.steps) if config.uft.hint_steps is None else config.uft.hint_steps


def _check(config: RunConfig) -> None:
    if config.uft.hint_steps == 0:
        raise ConfigError(
            f"uft.hint_steps = 0 leaves method {config.method!r} without hints; raise it, or use method 'rft'"
        )


def _check_data(config: RunConfig, problems: Sequence[EncodedProblem]) -> None:
    if not any(d.step_ends for p in problems for d in p.demonstrations):
        raise ConfigError(
            f"method = {config.method!r} shows solution steps, which are lines, and no demonstration has more than one line; "
            "bring others, or use method 'prefix_rft'"
        )


@prefixes.row_plan(plain=lambda config: 0, check=_check, check_data=_check_data)
def hint_rows(problem: EncodedProblem, step: int, config: RunConfig) -> list[Row]:
    """N rows that all continue one hint: the first solution steps of a demonstration (UFT, arXiv 2505.16984).

    The S steps are cut into K = min(``uft.parts``, S) parts; of them the first Binomial(K, p_t) are shown, where p_t falls
    from ``uft.high`` to ``uft.low`` on a half cosine over T_hint steps; after that, and without steps, rows are plain.
    The line with the answer is no step, so the answer is always left to the policy. Published code counts training
    steps from 1, and so does p_t here. A hint is context to the loss, but it takes its length off
    ``rollout.max_response_tokens`` like a prefix does: all methods have one budget for a solution.
    """
    rows = prefixes.plain_rows(problem, step, config)
    last = hint_steps(config)
    if not problem.demonstrations or step + 1 > last:
        return rows
    demonstration = prefixes.demonstration_at(problem, step, config)
    ends = demonstration.step_ends
    parts = min(config.uft.parts, len(ends))
    if parts == 0:
        return rows
    probability = schedules.cosine(step + 1, init=config.uft.high, target=config.uft.low, n_steps=last)
    shown = int(rng.generator(config.seed, "hint", step, *problem.key).binomial(parts, probability))
    steps = round(shown / parts * len(ends))
    length = ends[steps - 1] if steps else 0
    for row in rows:
        row.prefix_ids, row.prefix_ratio = demonstration.ids[:length], length / (len(demonstration.ids) - 1)
    return rows


UFT = Stage(
    name="uft",
    rows=hint_rows,
    losses=lambda config: {
        TokenKind.ON_POLICY: PolicyGradient(over="sampled_tokens"),
        TokenKind.CONTINUATION: PolicyGradient(over="sampled_tokens"),
        TokenKind.PREFIX: NegativeLogLikelihood(weight=config.uft.nll_weight),
    },
    demonstrations="used",
    advantages=("grpo",),
    optim="rl",
)
METHODS["uft"] = Method(title="UFT", stages=(UFT,), settings="uft")
