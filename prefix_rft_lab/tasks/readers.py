"""Rows of problem sets, from files or the Hub, as :class:`Record`: one at a time, so that a large set streams.

A *source* is the path of a JSONL, parquet or CSV file (``train-*.parquet`` for several), or a data set on the Hub as ``owner/name``,
``owner/name:config`` or ``owner/name:config:split``. Known layouts are recognised by their columns (:data:`LAYOUTS`);
any other takes columns by name, through a mapping where the names differ.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from prefix_rft_lab import hub
from prefix_rft_lab.answers import boxed_answer, extract_answer
from prefix_rft_lab.config import ConfigError

FIELDS = ("id", "problem", "answer", "demonstration", "level")
ALIASES = {
    "id": ("id", "unique_id", "uuid"),
    "problem": ("problem", "question", "prompt"),
    "answer": ("answer", "final_answer"),
    "demonstration": ("demonstration", "solution"),
}
PEEK_ROWS = 1000
"""Rows whose columns are taken for those of a file: JSON lines may leave out a field that has no value."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+){0,2}")
_NO_ANSWER = frozenset({"proof", "notfound", "not found"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worked solution that may become a demonstration."""

    text: str
    verified: bool = True
    """False where the data set says that its answer is not the gold answer, or that nobody could tell."""
    finished: bool = True
    """False where the data set says that it was cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row, before anything is chosen or dropped."""

    id: str | None
    problem: str | None
    answer: str | None
    solution: str | None
    """The reference solution, as it is in the file; None where there is none."""
    demonstrations: tuple[Candidate, ...]
    level: str
    kind: str
    """Type of the problem (``Algebra``), else the set that it comes from; empty if the row says neither."""


class Dropped(Counter[str]):
    """A count of what was left out by reason, with the ids of the first few of each."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.examples: dict[str, list[str]] = {}

    def note(self, reason: str, id: str) -> None:
        self[reason] += 1
        if self[reason] <= 3:
            self.examples.setdefault(reason, []).append(id)


# ---------------------------------------------------------------------- layouts


@dataclass(frozen=True, slots=True)
class Layout:
    """A known set of columns and how a row of it reads."""

    name: str
    fits: Callable[[Sequence[Mapping[str, Any]], Mapping[str, None]], bool]
    """Whether the first rows, and all their columns, are of this layout."""
    read: Callable[[Mapping[str, Any]], Record]


def _openr1(row: Mapping[str, Any]) -> Record:
    """OpenR1-Math-220k: several generations a row, with lists of what is known about each."""
    generations = row["generations"] if isinstance(row["generations"], (list, tuple)) else []

    def of(name: str, i: int) -> Any:
        values = row.get(name)
        return values[i] if isinstance(values, (list, tuple)) and i < len(values) else None

    answer = answer_of(row.get("answer"))
    return Record(
        id=text_of(row.get("uuid")),
        problem=text_of(row.get("problem")),
        answer=None if answer is None or answer.lower() in _NO_ANSWER else answer,
        solution=text_of(row.get("solution")),
        demonstrations=tuple(
            Candidate(
                text=text,
                verified=of("correctness_math_verify", i) is True or of("correctness_llama", i) is True,
                finished=of("is_reasoning_complete", i) is not False and of("finish_reasons", i) != "length",
            )
            for i, generation in enumerate(generations)
            if (text := text_of(generation)) is not None
        ),
        level="",
        kind=text_of(row.get("problem_type")) or text_of(row.get("source")) or "",
    )


def _openr1_46k(row: Mapping[str, Any]) -> Record:
    """Openr1-Math-46k-8192: chat messages; its demonstrations were verified when the set was made."""
    said = [message["content"] for message in row["prompt"] or () if message["role"] == "user"]
    target = [message["content"] for message in row["target"] or ()]
    extra = row.get("extra_info") or {}
    index = extra.get("index")
    text = text_of(target[0]) if target else None
    return Record(
        id=None if index is None else f"{extra.get('split', 'row')}-{index}",
        problem=text_of(said[-1]) if said else None,
        answer=answer_of((row["reward_model"] or {}).get("ground_truth")),
        solution=None,
        demonstrations=() if text is None else (Candidate(text=text),),
        level="",
        kind=text_of(row.get("data_source")) or "",
    )


def _gsm8k(row: Mapping[str, Any]) -> Record:
    """GSM8K as on the Hub: the answer column holds the solution, closed by ``#### 72``."""
    solution = text_of(row["answer"])
    parts = (solution or "").rpartition("####")
    return Record(
        id=None,
        problem=text_of(row["question"]),
        answer=text_of(parts[2]) if parts[1] else None,
        solution=solution,
        demonstrations=() if solution is None else (Candidate(text=solution),),
        level="",
        kind="gsm8k",
    )


def _math(row: Mapping[str, Any]) -> Record:
    """Hendrycks MATH: no answer column, the answer is the solution's last box."""
    solution = text_of(row["solution"])
    return Record(
        id=text_of(row.get("unique_id")),
        problem=text_of(row["problem"]),
        answer=text_of(boxed_answer(solution)) if solution else None,
        solution=solution,
        demonstrations=() if solution is None else (Candidate(text=solution),),
        level=text_of(row.get("level")) or "",
        kind=text_of(row.get("type")) or text_of(row.get("subject")) or "",
    )


LAYOUTS = (
    Layout("OpenR1-Math-220k", lambda rows, names: {"problem", "answer", "generations"} <= names.keys(), _openr1),
    Layout(
        "Openr1-Math-46k-8192", lambda rows, names: {"prompt", "target", "reward_model"} <= names.keys(), _openr1_46k
    ),
    Layout(
        "GSM8K",
        lambda rows, names: (
            {"question", "answer"} <= names.keys()
            and not {"solution", "demonstration"} & names.keys()
            and "####" in str(rows[0].get("answer"))
        ),
        _gsm8k,
    ),
    Layout(
        "MATH",
        lambda rows, names: {"problem", "solution"} <= names.keys() and "answer" not in names,
        _math,
    ),
)
"""Layouts in the order in which they are tried."""


def _by_name(names: Mapping[str, str | None]) -> Callable[[Mapping[str, Any]], Record]:
    def read(row: Mapping[str, Any]) -> Record:
        def value(field: str) -> Any:
            column = names[field]
            # A column that none of the first rows had.
            return row.get(column) if column else next((row[a] for a in _aliases(field) if a in row), None)

        written = value("demonstration")
        texts = [text_of(text) for text in (written if isinstance(written, (list, tuple)) else [written])]
        given = [text for text in texts if text is not None]
        return Record(
            id=text_of(value("id")),
            problem=text_of(value("problem")),
            answer=answer_of(value("answer")),
            solution=given[0] if given else None,
            # An empty text is kept, so that its loss is reported.
            demonstrations=tuple(Candidate(text=text) for text in given)
            or (() if written is None else (Candidate(text=""),)),
            level=text_of(value("level")) or "",
            kind=next(
                (text for name in ("type", "subject", "subfield", "source") if (text := text_of(row.get(name)))), ""
            ),
        )

    return read


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: the layout and columns that were found, and its records, to be read once."""

    name: str
    layout: str
    columns: tuple[str, ...]
    records: Iterator[Record]


def open_source(source: str, columns: Mapping[str, str] | None = None, *, field: str = "data.problems") -> Source:
    """Open a file or a data set on the Hub.

    Args:
        source: see the module's docstring.
        columns: maps names of :data:`FIELDS` to the source's own; with any, layouts are not guessed.
        field: the config field (or argument) that named the source, for messages.

    Raises:
        ConfigError: missing, empty or malformed, unreachable, or without a required column. Malformed lines further down
            raise when they are read.
    """
    columns = columns or {}
    for name in columns:
        if name not in FIELDS:
            raise ConfigError(f"data.columns has the name {name!r}; map only {', '.join(FIELDS)}")
    rows = _rows(source, field)
    first = list(islice(rows, PEEK_ROWS))
    if not first:
        raise ConfigError(f"{field} = {source!r} is empty; give a file with one problem a row")
    names = dict.fromkeys(name for row in first for name in row)
    layout = None if columns else next((x for x in LAYOUTS if x.fits(first, names)), None)
    read = layout.read if layout else _by_name(_resolve(names, columns, source, field))
    records = (read(row) for row in chain(first, rows))
    return Source(source, layout.name if layout else "columns by name", tuple(names), records)


def default_id(source: str, number: int) -> str:
    """Id of a row that has none of its own."""
    return f"{Path(source).stem}-{number}"


def is_hub_name(source: str) -> bool:
    return (
        not Path(source).exists()
        and _HUB_NAME.fullmatch(source) is not None
        and Path(source).suffix[1:] not in _READERS
    )


def stamp(source: str) -> tuple[int, ...]:
    """When the files of a source were last written; empty for the Hub."""
    return tuple(file.stat().st_mtime_ns for file in _files(source))


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    return [path] if path.is_file() else sorted(path.parent.glob(path.name)) if "*" in path.name else []


def _rows(source: str, field: str) -> Iterator[dict[str, Any]]:
    if files := _files(source):
        return chain.from_iterable(_READERS.get(file.suffix.lower().lstrip("."), _jsonl)(file, field) for file in files)
    if is_hub_name(source) and not Path(source).parent.is_dir():
        return _hub(source, field)
    raise ConfigError(
        f"{field} = {source!r} is not a file; give the path of a JSONL, parquet or CSV file, or a data set on the Hub as "
        f"owner/name{', or chains' if field == 'data.problems' else ''}"
    )


def _jsonl(path: Path, field: str) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ConfigError(
                        f"{field} = {str(path)!r} line {number} is not JSON ({error.msg}); write one object a line"
                    ) from None
                if not isinstance(record, dict):
                    raise ConfigError(
                        f"{field} = {str(path)!r} line {number} is not an object; write one object a line"
                    )
                yield record
    except UnicodeDecodeError:
        raise ConfigError(f"{field} = {str(path)!r} is not UTF-8 text; save it as UTF-8 JSONL or as parquet") from None


def _csv(path: Path, field: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            for row in rows:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"{field} = {str(path)!r} line {rows.line_num} does not have {len(rows.fieldnames or ())} cells, as "
                        "the first line does; quote cells that hold commas or line breaks"
                    )
                # An empty cell is a missing value.
                yield {name: cell or None for name, cell in row.items()}
    except csv.Error as error:
        raise ConfigError(f"{field} = {str(path)!r} is not readable CSV ({error}); correct it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{field} = {str(path)!r} is not UTF-8 text; save it as UTF-8 CSV or as parquet") from None


def _parquet(path: Path, field: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except Exception as error:
        raise ConfigError(f"{field} = {str(path)!r} is not a readable parquet file ({error}); correct it") from error


_READERS: dict[str, Callable[[Path, str], Iterator[dict[str, Any]]]] = {
    "jsonl": _jsonl,
    "json": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}


def text_of(value: Any) -> str | None:
    """A cell as stripped text; None for a missing or empty one."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    return str(value).strip() or None


def answer_of(value: Any) -> str | None:
    """A cell as a gold answer: a list, or boxes, as one answer with commas."""
    text = text_of(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)
    return None if text is None else extract_answer(text) or text


def _aliases(field: str) -> tuple[str, ...]:
    return ALIASES.get(field, (field,))


def _resolve(found: Mapping[str, Any], mapping: Mapping[str, str], source: str, field: str) -> dict[str, str | None]:
    names: dict[str, str | None] = {}
    for name in FIELDS:
        if name in mapping:
            if mapping[name] not in found:
                raise ConfigError(
                    f"data.columns.{name} = {mapping[name]!r} is not a column of {Path(source).name}; it has "
                    f"{', '.join(found)}"
                )
            names[name] = mapping[name]
        else:
            names[name] = next((alias for alias in _aliases(name) if alias in found), None)
    for name in ("problem", "answer"):
        if names[name] is None:
            raise ConfigError(
                f"{field} = {source!r} has no column {name!r}; it has {', '.join(found)}: name the right one in "
                f"data.columns.{name}"
            )
    return names


# ---------------------------------------------------------------------- the Hub

DEFAULT_CONFIGS = {"openai/gsm8k": "main"}
"""Configs taken of data sets that have several, where the source names none."""


def _hub(source: str, field: str) -> Iterator[dict[str, Any]]:
    """Rows of a data set on the Hub, streamed; of the local cache where the Hub does not answer."""
    name, config, split = [*source.split(":"), "", ""][:3]
    config = config or DEFAULT_CONFIGS.get(name, "")
    reached = hub.answers_for(name, "dataset", field)
    import datasets

    with hub.datasets_offline(not reached):
        try:
            found = datasets.load_dataset(name, config or None, streaming=reached)
        except Exception as error:
            if not reached:
                switched = hub.switched_off()
                raise ConfigError(
                    f"{field} = {source!r} is not a file, {hub.why_not()}, and the data set is not in the local cache; give "
                    "the path of a JSONL, parquet or CSV file (hf download NAME --repo-type dataset --local-dir DIR fetches "
                    f"one where there is a network){', or unset ' + ' and '.join(switched) if switched else ''}"
                ) from None
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(
                f"{field} = {source!r} could not be opened ({reason}); give owner/name:config:split"
            ) from error
    splits = list(found)
    chosen = split or ("train" if "train" in splits else splits[0])
    if chosen not in splits:
        raise ConfigError(f"{field} = {source!r} has no split {chosen!r}; it has {', '.join(splits)}")
    return iter(found[chosen])
