"""Token tables of any model on any text, without training: ``prefix-rft tokens``.

Columns and units are in :data:`prefix_rft_lab.runs.run.TOKEN_COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import EncodedProblem, Row
from prefix_rft_lab.models import policy
from prefix_rft_lab.models.generation import Request, TransformersEngine
from prefix_rft_lab.models.templates import stop_ids
from prefix_rft_lab.models.tokens import pad_id
from prefix_rft_lab.runs.run import torch_state
from prefix_rft_lab.training.records import (
    TokenTexts,
    demonstration_row,
    in_order,
    measure_rows,
    token_columns,
    tokenizer_id,
)
from prefix_rft_lab.training.update import Updater


def token_table_of(
    model: Any,
    tokenizer: Any,
    problems: Sequence[EncodedProblem],
    config: RunConfig,
    *,
    demonstrations: bool = True,
    samples: int = 0,
    temperature: float = 1.0,
    top_k: int = 5,
    seed: int = 0,
    max_tokens: int | None = None,
    step: int = 0,
    run: str = "",
    score: bool = True,
) -> pd.DataFrame:
    """The token table of a model on some problems, without training.

    Demonstrations are read as they are (row :data:`FOLLOWED`, kind prefix); samples are rows 0, 1, ... (kind on_policy).
    Ratios are 1, advantages NaN, and every token is kept: there is no update.

    Args:
        problems: of :func:`prefix_rft_lab.models.tokens.encode_problems`.
        config: response length, arithmetic, batch sizes.
        samples: responses sampled for each problem, with keyed seeds: equal arguments, equal responses.
        temperature: of sampling, and of log-probabilities, entropies and alternatives.
        top_k: alternatives of each token.
        max_tokens: longest sampled response; by default ``rollout.max_response_tokens`` of the config.
        step: what to call the state of the model, such as its checkpoint's step.
        run: what to call the model.
        score: verify the samples against the problems' answers; otherwise scores are NaN.

    Raises:
        ConfigError: nothing to read: no problem has a demonstration and nothing is sampled; or a value that cannot be
            used.
    """
    for name, value, lowest in (("samples", samples, 0), ("top_k", top_k, 1)):
        if value < lowest:
            raise ConfigError(f"{name} = {value} cannot be used; give at least {lowest}")
    if not temperature > 0:
        raise ConfigError(f"temperature = {temperature} cannot divide logits; give a value above 0")
    rows = [demonstration_row(p) for p in problems if demonstrations and p.demonstration_ids is not None]
    sampled = [Row(problem=p, row=i) for p in problems for i in range(samples)]
    if not rows and not sampled:
        missing = (
            f"none of the {len(problems)} problems has a demonstration"
            if demonstrations
            else "no demonstration is read"
        )
        raise ConfigError(
            f"samples = 0 and {missing}, which leaves no token; sample at least 1 response, or read demonstrations"
        )
    updater = Updater(model, config, pad_id=pad_id(tokenizer))
    if sampled:
        engine = TransformersEngine(
            model,
            eos_id=stop_ids(tokenizer),
            max_batch_rows=config.rollout.max_batch_rows,
            autocast=updater.autocast,
        )
        requests = [
            Request(
                context_ids=row.problem.prompt_ids,
                max_new_tokens=max_tokens or config.rollout.max_response_tokens,
                key=rng.key(seed, "tokens", row.problem.index, row.row),
            )
            for row in sampled
        ]
        for row, completion in zip(sampled, engine.generate(requests, temperature=temperature), strict=True):
            row.sampled_ids, row.truncated = completion.token_ids, completion.truncated
    scores = [np.nan] * len(rows) + (_scores(tokenizer, sampled, config) if score else [np.nan] * len(sampled))
    rows += sampled
    order = sorted(range(len(rows)), key=lambda i: (rows[i].problem.index, rows[i].row))
    rows, scores = [rows[i] for i in order], [scores[i] for i in order]
    table = in_order(
        token_columns(
            rows,
            measure_rows(updater, rows, top_k, temperature=temperature),
            TokenTexts(tokenizer),
            run=run,
            step=step,
            temperature=temperature,
            scores=scores,
        )
    )
    table.attrs["tokenizer"] = tokenizer_id(tokenizer)
    return table


def _scores(tokenizer: Any, rows: Sequence[Row], config: RunConfig) -> list[float]:
    from prefix_rft_lab.data.rewards import Scorer

    if not rows:
        return []
    with Scorer(config.data) as scorer:
        texts = [tokenizer.decode(row.response_ids, skip_special_tokens=True) for row in rows]
        return scorer.score(texts, [row.problem.problem for row in rows])


def steps_of(models: Sequence[str], steps: Sequence[int] | None = None) -> list[int]:
    """A step for each of several checkpoints of one run: the given ones; else the numbers that their names end in, or
    0, 1, 2, ... where a name ends in none.

    Raises:
        ConfigError: not one step per model, or a step twice.
    """
    if steps is None:
        endings = [Path(model).name.rpartition("-")[2].rpartition("_")[2] for model in models]
        steps = [int(e) for e in endings] if all(e.isdigit() for e in endings) else list(range(len(models)))
    if len(steps) != len(models) or len(set(steps)) < len(steps):
        raise ConfigError(
            f"steps = {', '.join(map(str, steps))} for {len(models)} model{'s' if len(models) != 1 else ''}; give each "
            "model a step of its own"
        )
    return list(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What came of :func:`read_tokens`."""

    table: pd.DataFrame
    dropped: dict[str, int]
    """Problems or demonstrations left out, by reason."""


def read_tokens(
    models: Sequence[str],
    *,
    problems: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    steps: Sequence[int] | None = None,
    demonstrations: bool = True,
    samples: int = 0,
    temperature: float = 1.0,
    top_k: int = 5,
    seed: int = 0,
    max_tokens: int | None = None,
    changes: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Reading:
    """:func:`token_table_of` one model, or of several checkpoints with one vocabulary, on the problems of a file.

    Args:
        models: ``tiny``, directories in Hugging Face format, Hub names, or directories of finished runs. A run brings its
            config; another model reads what :func:`prefix_rft_lab.experiments.evaluation_run.config_for` lets it.
        problems: JSONL, parquet or CSV file, a Hub name, or ``chains`` (the default, unless the first model is a run on a file).
        split: of the problems; by default as ``prefix-rft evaluate``.
        limit: only the first so many problems.
        steps: what to call the checkpoints; see :func:`steps_of`.
        max_tokens: longest sampled response; by default the config's, at most 512 where none was trained with.
        changes: dotted config fields and values on top.
        out: a ``.parquet`` file for the table.

    Raises:
        ConfigError: models, problems or values that cannot be used, or models with different vocabularies.
        RunError: the disk is full.
    """
    from prefix_rft_lab.core.files import file_to_write, write_table
    from prefix_rft_lab.experiments.evaluation_run import config_for, default_split, is_run, problems_of
    from prefix_rft_lab.models.tokens import encode_problems

    out = None if out is None else file_to_write(out, suffix=".parquet")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit} leaves no problem; give at least 1")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens = {max_tokens} leaves nothing to sample; give at least 1")
    if not models:
        raise ConfigError("models = [] names no model; give at least one")
    numbers = steps_of(models, steps)
    tables: list[pd.DataFrame] = []
    dropped: dict[str, int] = {}
    for model_name, step in zip(models, numbers, strict=True):
        own = is_run(Path(model_name).expanduser())
        given = {**({} if problems is None else {"data.problems": problems}), **(changes or {})}
        config = config_for(model_name, changes=given)
        with torch_state(config.threads):
            found, reasons = problems_of(config, split or default_split(model_name, config))
            model, tokenizer = policy.load_policy(config)
            encoded, more = encode_problems(tokenizer, found[:limit], config)
            dropped = {**reasons, **more}
            if not encoded:
                raise ConfigError(
                    f"data.problems = {config.data.problems!r} leaves no problem ({dropped}); raise rollout.max_prompt_tokens"
                )
            sampled = config.rollout.max_response_tokens if own or model_name == "tiny" else 512
            tables.append(
                token_table_of(
                    model,
                    tokenizer,
                    encoded,
                    config,
                    demonstrations=demonstrations,
                    samples=samples,
                    temperature=temperature,
                    top_k=top_k,
                    seed=seed,
                    max_tokens=min(max_tokens or sampled, config.rollout.max_response_tokens),
                    step=step,
                    run=Path(models[0]).name,
                )
            )
        if tables[-1].attrs["tokenizer"] != tables[0].attrs["tokenizer"]:
            raise ConfigError(
                f"model = {model_name!r} has another vocabulary than {models[0]!r}; make a table of each by itself"
            )
    table = pd.concat(tables, ignore_index=True)
    table.attrs["tokenizer"] = tables[0].attrs["tokenizer"]
    if out is not None:
        write_table(out, table)
    return Reading(table=table, dropped=dropped)


def format_reading(reading: Reading, most: int = 10) -> str:
    """A reading in a few lines: what was left out, entropy by kind, and where the model was least sure.

    Token texts come from a model: control characters are shown as escapes.
    """
    from prefix_rft_lab.analysis import entropy_analysis as analysis
    from prefix_rft_lab.core.tables import show

    table = reading.table
    lines = [f"left out: {count} x {reason}" for reason, count in reading.dropped.items()]
    heads = {"step": "step", "kind": "kind", "tokens": "tokens", "entropy": "entropy (nats)", "nll": "NLL (nats)"}
    kinds = show(analysis.entropy_by_kind(table), heads=heads, formats={"entropy": ".4f", "nll": ".4f"})
    problems, temperature = table["problem"].nunique(), table["temperature"].iloc[0]
    lines += [f"{problems} problems, {len(table)} tokens, temperature {temperature:g}", kinds]
    if table["score"].notna().any():
        scores = table.drop_duplicates(["step", "problem", "row"])["score"].dropna()
        lines.append(f"{scores.mean():.3f} of {len(scores)} samples right")
    forks = analysis.forking_tokens(table, most=most, examples=1)
    if len(forks):
        forks = forks.assign(text=forks["text"].map(_plain), least=forks["contexts"].str[0].map(_plain))
        heads = {"text": "token", "token_id": "id", "tokens": "tokens", "entropy": "entropy (nats)"}
        lines += ["", show(forks, heads=heads | {"least": "least certain"})]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    return shown if shown.strip() == shown and shown else f"'{shown}'"
