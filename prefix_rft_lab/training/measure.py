"""What a step says of itself: the columns of ``metrics.jsonl``, the token table, the progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from prefix_rft_lab.algorithm import methods
from prefix_rft_lab.core import columns
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.registry import Registry
from prefix_rft_lab.core.types import KIND_NAMES, Row, TokenKind
from prefix_rft_lab.data.answers import extract_answer
from prefix_rft_lab.training.update import UpdateResult

METRICS = {name: column.described() for name, column in columns.METRICS.items()}
"""Name of each column of ``metrics.jsonl`` -> meaning and unit."""


OWN_METRICS = Registry[Callable[[list[Row], UpdateResult, RunConfig], float]](
    "metric", "records.metrics", names=lambda config: config.records.metrics
)
"""Name (``records.metrics``) -> ``(rows, result, config) -> number``: a column of ``metrics.jsonl`` of that name, after the
update of each step."""
register = OWN_METRICS.register


def own_metrics(rows: list[Row], result: UpdateResult, config: RunConfig) -> dict[str, float]:
    """The metrics of a user's that a config asks for.

    Raises:
        ConfigError: a metric has the name of a column of the kit's, or gives something that is no number.
    """
    line = {}
    for name in config.records.metrics:
        if name in METRICS:
            raise ConfigError(
                f"records.metrics = {name!r} is the name of a column of the kit's; give yours another name"
            )
        found = OWN_METRICS.find(name)(rows, result, config)
        try:
            line[name] = float(found)
        except (TypeError, ValueError):
            raise ConfigError(f"records.metrics = {name!r} gives {found!r}; it should give a number") from None
    return line


def row_metrics(
    rows: list[Row],
    drawn: list[Row],
    stage: methods.Stage,
    config: RunConfig,
    step: int,
    text: Callable[[Sequence[int]], str],
) -> dict[str, float]:
    """What a step's rows say: lengths of those of the update; rewards and prefixes of all that were drawn."""
    plain = [row for row in drawn if not row.prefix_ids]
    hybrid = [row for row in drawn if row.is_hybrid]
    sampled = plain + hybrid
    line: dict[str, float] = {"response_tokens": _mean(len(row.response_ids) for row in rows)}
    if stage.samples:
        by_problem: dict[tuple[int, ...], list[bool]] = {}
        for row in drawn:
            if not row.prefix_ids:
                by_problem.setdefault(row.problem.key, []).append(row.solved)
        line |= {
            "reward": _mean(row.score for row in sampled),
            "reward_plain": _mean(row.score for row in plain),
            "solved_none": _mean(not any(solved) for solved in by_problem.values()),
            "solved_all": _mean(all(solved) for solved in by_problem.values()),
            "plain_tokens": _mean(len(row.response_ids) for row in plain),
            "truncated": _mean(row.truncated for row in sampled),
            "sampled_rows": len(sampled),
            "dropped_tokens": sum(len(r.sampled_ids) for r in drawn) - sum(len(r.sampled_ids) for r in rows),
            "prefix_share": sum(len(r.prefix_ids) for r in rows) / sum(len(r.response_ids) for r in rows),
        }
        names = sampled[0].rewards if sampled and len(sampled[0].rewards) > 1 else ()
        line |= {f"rewards_{name}": _mean(row.rewards[name] for row in sampled) for name in names}
    if hybrid:
        if windows := [row.ratio_window for row in hybrid if row.ratio_window]:
            line |= {"prefix_ratio_low": min(low for low, _ in windows)}
            line |= {"prefix_ratio_high": max(high for _, high in windows)}
        line |= {
            "reward_hybrid": _mean(row.score for row in hybrid),
            "answer_in_prefix": _mean(prefix_contains_answer(text(row.prefix_ids)) for row in hybrid),
            "prefix_ratio": _mean(row.prefix_ratio for row in hybrid),
            "prefix_tokens": _mean(len(row.prefix_ids) for row in hybrid),
            "hybrid_tokens": _mean(len(row.response_ids) for row in hybrid),
        }
    return line


def engine_gap(rows: list[Row], result: UpdateResult) -> dict[str, float]:
    """How far the engine that sampled a step's rows was from the trained policy before the update."""
    sampled = result.kinds != TokenKind.PREFIX
    if not sampled.any():
        return {}
    engine = torch.tensor([logp for row in rows for logp in row.engine_logp], dtype=torch.float64)
    gap = (engine - result.old_logp[sampled].cpu()).abs()
    return {"engine_gap": float(gap.mean()), "engine_gap_max": float(gap.max())}


def token_metrics(result: UpdateResult) -> dict[str, float]:
    """What a step's tokens say, by kind."""
    line: dict[str, float] = {"loss": result.loss, "grad_norm": result.grad_norm}
    line |= {f"grad_norm_{KIND_NAMES[kind]}": norm for kind, norm in result.grad_norms.items()}
    line |= {
        name: value
        for name, value in (("kl", result.kl), ("entropy_change", result.entropy_change))
        if value is not None
    }
    for kind, name in KIND_NAMES.items():
        member = result.kinds == kind
        count = int(member.sum())
        line[f"tokens_{name}"] = count
        if count:
            line[f"entropy_{name}"] = float(result.entropy[member].mean())
            line[f"nll_{name}"] = -float(result.logp[member].mean())
            line[f"advantage_{name}"] = float(result.advantages[member].mean())
            line[f"clipped_{name}"] = float(result.limited[member].float().mean())
    if result.ranked.any():
        kept = result.kept & result.ranked
        line["kept_share"] = float(kept.sum() / result.ranked.sum())
        if kept.any():
            line["kept_threshold"] = float(result.entropy[kept].min())
    return line


def _mean(values: Any) -> float:
    data = [float(value) for value in values]
    return sum(data) / len(data) if data else float("nan")


class ProgressBar:
    """A tqdm bar with what one wants to see of a run; nothing if ``shown`` is False."""

    def __init__(self, total: int, done: int, config: RunConfig, shown: bool) -> None:
        from tqdm.auto import tqdm

        # A notebook that runs headlessly has nowhere to show a bar, and would keep it as a widget for ever.
        shown = shown and "PREFIX_RFT_LAB_TICKET" not in os.environ
        self.bar = tqdm(
            total=total, initial=done, desc=f"{config.method} s{config.seed}", disable=not shown, unit="step"
        )

    def update(self, line: dict[str, Any]) -> None:
        shown = {
            "reward": line.get("reward_plain"),
            "entropy": line.get("entropy_on_policy", line.get("entropy_prefix")),
            "ratio": line.get("prefix_ratio"),
            "nll": line["loss"] if "reward" not in line else None,
        }
        self.bar.set_postfix(
            {name: f"{value:.3f}" for name, value in shown.items() if value is not None}, refresh=False
        )
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


def prefix_contains_answer(prefix_text: str) -> bool:
    """Whether a prefix already shows a closed box: the policy then only has to copy."""
    return extract_answer(prefix_text) is not None
