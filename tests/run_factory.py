"""Run directories made by hand, through the trainer's own writer but without training: fast, with chosen scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefix_rft_lab.config import RunConfig, preset
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.runs.run import FOLLOWED, Run, RunWriter
from prefix_rft_lab.runs.summary import summarise
from prefix_rft_lab.schedules import of_run, ratio_window

SMALL: dict[str, Any] = {
    "rl.steps": 8,
    "sft.steps": 4,
    "prefix.decay_steps": 8,
    "evaluation.every": 4,
    "evaluation.k": 4,
    "data.eval_problems": 6,
    "evaluation.problems": 6,
    "records.tokens_every": 4,
}


def final_table(
    counts: Sequence[int], *, k: int = 4, levels: Sequence[str] = ("easy", "hard"), split: str = "test"
) -> pd.DataFrame:
    """A final evaluation with so many right answers a problem."""
    return pd.DataFrame(
        [
            {
                "id": f"{split}-{i}",
                "split": split,
                "level": levels[i % len(levels)],
                "k": k,
                "correct": int(count),
                "greedy": float(count * 2 > k),
                "tokens": 10.0 + count,
                "truncated": 0.0,
            }
            for i, count in enumerate(counts)
        ]
    )


def write_run(
    out: Path,
    method: str = "prefix_rft",
    seed: int = 0,
    *,
    counts: Sequence[int] = (0, 1, 2, 3, 4, 2),
    splits: Sequence[str] = ("test",),
    levels: Sequence[str] = ("easy", "hard"),
    done: bool = True,
    steps: int | None = None,
    texts: Sequence[str] = (" now", "+", "7", "\n", "$x_1$", "<b>"),
    **changes: Any,
) -> Run:
    """Write a run and return it.

    Args:
        counts: right answers of each final problem, of ``evaluation.k``.
        done: whether it is finished; an unfinished one has no final evaluation.
        steps: training steps recorded; all of them by default.
        texts: token texts of the token tables, in turn.
        **changes: config fields over the small ones of this module.
    """
    config = preset("tiny", method=method, seed=seed, **{**SMALL, **changes})
    writer = RunWriter(config, out)
    writer.start(
        {
            "train": 64,
            "with_demonstration": 60,
            "demonstrations": 60,
            "validation": 6,
            "dropped": {"prompt too long": 3},
        }
    )
    _train(writer, config, steps, texts)
    if done:
        summary: dict[str, Any] = {"method": method, "seed": seed, "splits": {}, "seconds": 1.5}
        for split in splits:
            table = final_table(counts, k=config.evaluation.k, levels=levels, split=split)
            writer.table(f"evaluation/{split}", table)
            summary["splits"][split] = summarise(table)
        writer.finish(summary, 1.5)
    writer.close()
    return Run(writer.path)


def _train(writer: RunWriter, config: RunConfig, steps: int | None, texts: Sequence[str]) -> None:
    draws = np.random.default_rng([config.seed, len(config.method)])
    _evaluate(writer, config, 0, "base", draws)
    global_step = 0
    for stage in METHODS[config.method].stages:
        section = getattr(config, stage.optim)
        for step in range(section.steps):
            if steps is not None and global_step >= steps:
                return
            hybrid = stage.name == "prefix_rft"
            line: dict[str, Any] = {
                "stage": stage.name,
                "step": step,
                "global_step": global_step,
                "loss": 1 / (1 + step) if not stage.samples else float(draws.normal(0, 0.01)),
                "grad_norm": 0.0 if step == 1 else float(draws.uniform(0.01, 3)),
                "response_tokens": 20.0,
                "lr": section.lr,
                "verifier_timeouts": 0,
            }
            kinds = (
                ("on_policy", "continuation", "prefix") if hybrid else ("on_policy",) if stage.samples else ("prefix",)
            )
            line |= {f"entropy_{kind}": float(draws.uniform(0.1, 0.5)) for kind in kinds}
            line |= {f"grad_norm_{kind}": float(draws.uniform(0.01, 1)) for kind in kinds if global_step % 2 == 0}
            line |= {f"tokens_{kind}": 40 + place for place, kind in enumerate(kinds)}
            line |= {"seconds_rollout": 0.5 * stage.samples, "seconds_score": 0.0, "seconds_update": 0.25}
            line |= {"prefix_share": 0.125 + 0.001 * (config.seed - 1)} if hybrid else {}
            if stage.samples:
                line |= {"reward": 0.5, "reward_plain": float(draws.uniform(0.2, 0.8)), "plain_tokens": 20.0}
            if hybrid:
                low, high = ratio_window(of_run(config), step)
                line |= {
                    "reward_hybrid": float(draws.uniform(0.5, 1)),
                    "answer_in_prefix": 0.1,
                    "prefix_ratio_low": low,
                    "prefix_ratio_high": high,
                    "prefix_ratio": (low + high) / 2,
                    "prefix_tokens": 12.0,
                    "hybrid_tokens": 24.0,
                }
            writer.metrics(line)
            if config.records.tokens_every and global_step % config.records.tokens_every == 0:
                writer.table(
                    f"tokens/step-{global_step:06d}", _tokens(writer.path.name, global_step, hybrid, draws, texts)
                )
            global_step += 1
            if config.evaluation.every and global_step % config.evaluation.every == 0:
                _evaluate(writer, config, global_step, stage.name, draws)


def _evaluate(writer: RunWriter, config: RunConfig, global_step: int, stage: str, draws: np.random.Generator) -> None:
    # Before training all runs are one policy.
    own = draws if global_step else np.random.default_rng(0)
    counts = own.integers(0, config.evaluation.k + 1, size=6)
    line = {"global_step": global_step, "stage": stage, **summarise(final_table(counts, k=config.evaluation.k))}
    line["hard"] = {"k": config.evaluation.k, "problems": 3, "avg": float(own.uniform(0, 0.5))}
    line |= {
        "entropy": 0.3,
        "demonstration_nll": 2 / (1 + global_step),
        "demonstration_nll_hard": 3 / (1 + global_step),
    }
    writer.evaluation(line)


def _tokens(run: str, step: int, hybrid: bool, draws: np.random.Generator, texts: Sequence[str]) -> pd.DataFrame:
    rows = []
    mixed = ["prefix"] * 6 + ["continuation"] * 2
    for problem, row, kinds in (
        ("train-0", 0, ["on_policy"] * 5),
        ("train-0", 1, mixed if hybrid else ["prefix"] * 6),
        ("train-1", 1, mixed if hybrid else ["on_policy"] * 4),
        ("train-2", FOLLOWED, ["prefix"] * 8),
    ):
        score = float(draws.integers(2))
        for position, kind in enumerate(kinds):
            followed = row == FOLLOWED
            probs = draws.dirichlet([1.0, 1.0, 1.0, 1.0])[:3]
            after = probs * draws.uniform(0.9, 1.0, 3)
            rows.append(
                {
                    "run": run,
                    "step": step,
                    "problem": problem,
                    "row": row,
                    "position": position,
                    "token_id": position,
                    "text": texts[position % len(texts)],
                    "kind": kind,
                    "entropy": float(draws.uniform(0, 2)),
                    "temperature": 1.0,
                    "logp": -float(draws.uniform(0, 1)),
                    "old_logp": -0.5,
                    "ratio": 1.0,
                    "advantage": np.nan if followed else float(draws.normal()),
                    "kept": kind != "prefix" or position < 2 + step % 3,
                    "score": np.nan if followed else score,
                    "top_ids": [0, 1, 2],
                    "top_probs": probs,
                    "top_texts": [texts[i % len(texts)] for i in range(3)],
                    "entropy_after": float(draws.uniform(0, 2)) if followed else np.nan,
                    "top_probs_after": after if followed else None,
                }
            )
    return pd.DataFrame(rows)
