"""Evaluation of one policy outside of a training run: avg@k, pass@k and greedy pass@1, written as tables.

The random keys are those of a run's final evaluation, so that the saved weights of a run give the figures of its
summary again, and two policies are compared on the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from prefix_rft_lab.config import ConfigError, RunConfig, preset
from prefix_rft_lab.runs import Run, environment, write_json, write_table
from prefix_rft_lab.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came of an evaluation."""

    config: RunConfig
    split: str
    table: pd.DataFrame
    """One row a problem, as :func:`prefix_rft_lab.evaluate.sample_scores` gives it."""
    summary: dict[str, Any]
    """As :func:`prefix_rft_lab.evaluate.summarise` gives it: overall and by level, with intervals over problems."""
    dropped: dict[str, int]
    """Problems or demonstrations left out, by reason."""
    paths: tuple[Path, ...]
    """The files written."""


def config_for(model: str, *, base: RunConfig | None = None, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """The config that a policy is evaluated under.

    Args:
        model: ``tiny``, a directory in Hugging Face format, a Hub name, or the directory of a finished run, which brings
            its own config and saved weights.
        base: where the other fields come from if ``model`` is no run; the preset ``tiny`` by default.
        changes: dotted fields and values on top.

    Raises:
        ConfigError: a run without saved weights, or a field that cannot be used.
    """
    path = Path(model).expanduser()
    if is_run(path):
        config = Run(path).config
        if not (path / "model" / "config.json").is_file():
            raise ConfigError(
                f"model = {model!r} is a run without saved weights; train it to its end, with records.save_model = true"
            )
        config = config.replace(**{"model.path": str(path / "model")})
    else:
        config = (base or preset("tiny")).replace(**{"model.path": model})
    return config.replace(**changes) if changes else config


def is_run(path: Path) -> bool:
    """Whether a directory is a run; a model's directory has a config.json too."""
    return (path / "config.json").is_file() and (path / "env.json").is_file()


def default_split(model: str, config: RunConfig) -> str:
    """The split that is evaluated if none is named: ``test`` of the embedded world and of a file that the evaluated run
    was trained on; of any other file all problems."""
    path = Path(model).expanduser()
    trained_on = Run(path).config.data.problems if is_run(path) else "chains"
    return "test" if config.data.problems in ("chains", trained_on) else "all"


def evaluate_policy(
    config: RunConfig, *, split: str = "test", limit: int | None = None, out: str | Path | None = None
) -> Evaluation:
    """Sample every problem of a split ``evaluation.k`` times and once greedily, and score the answers.

    Args:
        config: policy, problems, lengths, ``evaluation.k`` and ``evaluation.temperature``; see :func:`config_for`.
        split: ``test``, ``validation``, ``train`` or (embedded world) ``ood``, or ``all``: every row of a file, with none
            held out; see :func:`default_split`.
        limit: only the first so many problems.
        out: a ``.parquet`` file for the table; the summary goes beside it as ``.json``.

    Raises:
        ConfigError: problems, split, model or ``out`` that cannot be used; nothing was generated.
        RunError: the disk is full.
    """
    import torch

    from prefix_rft_lab.evaluate import sample_scores, summarise
    from prefix_rft_lab.generation import TransformersEngine
    from prefix_rft_lab.policy import autocast_dtype, load_policy
    from prefix_rft_lab.rewards import Verifier
    from prefix_rft_lab.tokens import encode_problems

    if out is not None and Path(out).suffix != ".parquet":
        raise ConfigError(f"out = {str(out)!r} does not end in .parquet; the summary is written beside it as .json")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit} leaves no problem; give at least 1")
    torch.set_num_threads(config.threads)
    problems, dropped = problems_of(config, split)
    model, tokenizer = load_policy(config)
    encoded, reasons = encode_problems(tokenizer, problems[:limit], config)
    dropped = {**dropped, **{reason: n for reason, n in reasons.items() if not reason.startswith("demonstration")}}
    if not encoded:
        raise ConfigError(
            f"data.problems = {config.data.problems!r} leaves no problem ({dropped}); raise rollout.max_prompt_tokens"
        )
    engine = TransformersEngine(
        model,
        eos_id=int(tokenizer.eos_token_id),
        max_batch_rows=config.rollout.max_batch_rows,
        autocast=autocast_dtype(config),
    )
    with Verifier() as verifier:
        table = sample_scores(
            engine,
            encoded,
            lambda responses, golds: verifier.score_all(
                [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in responses], golds
            ),
            k=config.evaluation.k,
            max_tokens=config.rollout.max_response_tokens,
            temperature=config.evaluation.temperature,
            seed=config.data.seed,
            purpose=f"final/{split}",
        )
    summary = summarise(table)
    paths = () if out is None else _write(Path(out), config, split, table, summary, dropped)
    return Evaluation(config=config, split=split, table=table, summary=summary, dropped=dropped, paths=paths)


def problems_of(config: RunConfig, split: str) -> tuple[list[Problem], dict[str, int]]:
    """Problems of a split, or of ``all`` of a file with none held out, and dropped rows by reason.

    Raises:
        ConfigError: an unknown split, or a file that cannot be used.
    """
    from prefix_rft_lab.tasks import sources

    known = sources.splits(config.data)
    if split == "all" and config.data.problems != "chains":
        problems, reasons = sources.read_file(Path(config.data.problems), config.data.columns)
    elif split in known:
        problems, reasons = sources.load_problems(config.data, split)
    else:
        names = [*known, *(["all"] if config.data.problems != "chains" else [])]
        raise ConfigError(
            f"split = {split!r} is not a split of {config.data.problems!r}; use one of {', '.join(names)}"
        )
    return problems, dict(reasons)


def _write(
    out: Path, config: RunConfig, split: str, table: pd.DataFrame, summary: dict[str, Any], dropped: dict[str, int]
) -> tuple[Path, Path]:
    write_table(out, table)
    beside = out.with_suffix(".json")
    write_json(
        beside,
        {
            "model": config.model.path,
            "problems": config.data.problems,
            "split": split,
            "temperature": config.evaluation.temperature,
            "summary": summary,
            "dropped": dropped,
            "config": config.to_dict(),
            "environment": environment(config.threads),
        },
    )
    return out, beside


def format_summary(summary: Mapping[str, Any]) -> str:
    """A small table: overall and each level, with 95% intervals over problems."""
    k = summary["k"]
    rows = [("level", "problems", f"avg@{k}", f"pass@{k}", "greedy", "tokens", "truncated")]
    for name, part in [("all", summary), *summary.get("levels", {}).items()]:
        cells = [
            f"{part[key]:.3f} [{low:.3f}, {high:.3f}]"
            for key in ("avg", "pass", "greedy")
            for low, high in [part[f"{key}_interval"]]
        ]
        rows.append((name, str(part["problems"]), *cells, f"{part['tokens']:.1f}", f"{part['truncated']:.1%}"))
    return format_table(rows)


def format_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns, the first row as head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
