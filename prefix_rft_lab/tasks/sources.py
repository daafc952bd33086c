"""Where problems come from: the embedded world, or a user's file. Everything becomes a list of :class:`Problem`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefix_rft_lab import rng
from prefix_rft_lab.config import ConfigError, DataConfig
from prefix_rft_lab.rewards import boxed_answer
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.types import Problem

FIELDS = ("id", "problem", "answer", "demonstration", "level")
_ALIASES = {"demonstration": ("demonstration", "solution"), "problem": ("problem", "question", "prompt")}
_GSM8K_END = re.compile(r"\n?####\s*.*\s*$")


def splits(config: DataConfig) -> tuple[str, ...]:
    """Names of the splits that the source has."""
    return chains.SPLITS if config.problems == "chains" else ("train", "validation", "test")


def load_problems(config: DataConfig, split: str) -> tuple[list[Problem], Counter[str]]:
    """Problems of one split and a count of dropped rows by reason.

    A file is cut, in a keyed order, into test, validation (``eval_problems`` each) and train problems, so no problem is in
    two splits. ``demonstration_fraction`` of the train problems keep their demonstration.

    Raises:
        ConfigError: missing, empty or malformed file, unknown column, unknown expert, or too few rows.
    """
    if config.problems == "chains":
        by_rule = chains.EXPERTS.keys() >= set(config.expert.split("+"))
        if not by_rule and config.expert != "self" and not config.expert.startswith("policy:"):
            raise ConfigError(
                f"data.expert = {config.expert!r} is not known; use one of {', '.join([*chains.EXPERTS, 'self'])} "
                "or policy:DIRECTORY (several of the first joined by +)"
            )
        count = config.train_problems if split == "train" else config.eval_problems
        written = config.expert if by_rule else "thorough"
        found = chains.problems(split, count, expert=written, seed=config.seed)
        reasons: Counter[str] = Counter()
    else:
        rows, reasons = read_file(Path(config.problems), config.columns)
        order = rng.generator(config.seed, "file/order").permutation(len(rows))
        rows = [rows[i] for i in order]
        held = config.eval_problems
        cuts = {"test": rows[:held], "validation": rows[held : 2 * held]}
        train = rows[2 * held :][: config.train_problems]
        if not train:
            raise ConfigError(
                f"data.problems = {config.problems!r} has {len(rows)} usable rows, but 2 x data.eval_problems = {2 * held} "
                "are held out; lower data.eval_problems or bring more rows"
            )
        found = [replace(p, split=split) for p in cuts.get(split, train)]
    if split == "train" and config.demonstration_fraction < 1:
        found = thin_demonstrations(found, config.demonstration_fraction, config.seed)
    return found, reasons


def thin_demonstrations(problems: list[Problem], fraction: float, seed: int) -> list[Problem]:
    """Let round(fraction * n) problems keep their demonstrations, chosen by key: a smaller share is a subset of a larger one."""
    have = [i for i, p in enumerate(problems) if p.demonstrations]
    order = rng.generator(seed, "demonstration_fraction").permutation(len(have))
    keep = {have[i] for i in order[: round(fraction * len(have))]}
    return [p if i in keep else replace(p, demonstrations=()) for i, p in enumerate(problems)]


def read_file(path: Path, columns: dict[str, str] | None = None) -> tuple[list[Problem], Counter[str]]:
    """Problems of a JSONL or parquet file, and a count of dropped rows by reason.

    Columns ``problem`` (or ``question``) and ``answer`` are required, ``demonstration`` (or ``solution``), ``id`` and
    ``level`` optional; ``columns`` maps these names to the file's own. A demonstration without a box gets its
    answer boxed at the end (a closing GSM8K line ``#### 72`` is replaced), since the verifier reads boxes.

    Raises:
        ConfigError: the file is missing, empty, malformed, or lacks a required column.
    """
    for name in columns or {}:
        if name not in FIELDS:
            raise ConfigError(f"data.columns has the name {name!r}; map only {', '.join(FIELDS)}")
    if not path.is_file():
        raise ConfigError(
            f"data.problems = {str(path)!r} is not a file; give the path of a JSONL or parquet file, or 'chains'"
        )
    problems: list[Problem] = []
    reasons: Counter[str] = Counter()
    records = list(_records(path))
    if not records:
        raise ConfigError(f"data.problems = {str(path)!r} is empty; give a file with one problem a row")
    # JSON lines may leave out a field that has no value, the first line too.
    names = _columns(dict.fromkeys(name for record in records for name in record), columns or {}, path)
    seen: set[str] = set()
    for number, record in enumerate(records):
        values = {field: None if column is None else record.get(column) for field, column in names.items()}
        text, answer = _text(values["problem"]), _text(values["answer"])
        if text is None:
            reasons["row without problem"] += 1
            continue
        if answer is None:
            reasons["row without answer"] += 1
            continue
        if text in seen:
            # Splits are cut by row: a second copy could land in another split than the first.
            reasons["problem that occurred before"] += 1
            continue
        seen.add(text)
        demonstration = _text(values["demonstration"])
        if demonstration is None and values["demonstration"] is not None:
            reasons["empty demonstration (problem kept)"] += 1
        problems.append(
            Problem(
                id=_text(values["id"]) or f"{path.stem}-{number}",
                prompt=text,
                answer=answer,
                demonstrations=() if demonstration is None else (boxed_demonstration(demonstration, answer),),
                level=_text(values["level"]) or "",
            )
        )
    if not problems:
        raise ConfigError(
            f"data.problems = {str(path)!r} has no usable row ({_reasons(reasons)}); fill columns problem and answer"
        )
    return problems, reasons


def boxed_demonstration(demonstration: str, answer: str) -> str:
    """The demonstration as it is if it has a box, else with ``\\boxed{answer}`` at its end."""
    if boxed_answer(demonstration) is not None:
        return demonstration
    return _GSM8K_END.sub("", demonstration) + f"\n\\boxed{{{answer}}}"


def _reasons(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "no rows"


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    text = str(value).strip()
    return text or None


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pandas as pd

        try:
            frame = pd.read_parquet(path)
        except Exception as error:
            raise ConfigError(
                f"data.problems = {str(path)!r} is not a readable parquet file ({error}); correct it"
            ) from error
        # Missing values come as NaN, NaT or NA, by column type; here they are None.
        yield from frame.astype(object).where(frame.notna(), None).to_dict(orient="records")  # type: ignore[misc]
        return
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ConfigError(
                        f"data.problems = {str(path)!r} line {number} is not JSON ({error.msg}); write one object a line"
                    ) from None
                if not isinstance(record, dict):
                    raise ConfigError(
                        f"data.problems = {str(path)!r} line {number} is not an object; write one object a line"
                    )
                yield record
    except UnicodeDecodeError:
        raise ConfigError(
            f"data.problems = {str(path)!r} is not UTF-8 text; save it as UTF-8 JSONL or as parquet"
        ) from None


def _columns(record: Mapping[str, Any], mapping: dict[str, str], path: Path) -> dict[str, str | None]:
    names: dict[str, str | None] = {}
    for field in FIELDS:
        if field in mapping:
            if mapping[field] not in record:
                raise ConfigError(
                    f"data.columns.{field} = {mapping[field]!r} is not a column of {path.name}; it has {', '.join(record)}"
                )
            names[field] = mapping[field]
        else:
            names[field] = next((alias for alias in _ALIASES.get(field, (field,)) if alias in record), None)
    for field in ("problem", "answer"):
        if names[field] is None:
            raise ConfigError(
                f"data.problems = {str(path)!r} has no column {field!r}; it has {', '.join(record)}: name the right one in "
                f"data.columns.{field}"
            )
    return names
