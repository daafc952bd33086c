"""Rows of problem sets from files, the Hub or memory, one at a time, and the records that :mod:`.roles` makes of them.

A *source* is a path (``train-*.parquet`` for several), or a data set on the Hub as ``owner/name``, ``owner/name:config`` or
``owner/name:config:split``. What a file is, its content says, not its ending: JSON lines, an array, an object of columns,
of records by id or with the records under one key; a table with commas, tabs or semicolons; parquet; Arrow; a folder written by
``datasets``; each of the texts may be packed by gzip, bzip2 or xz.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import json
import lzma
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from prefix_rft_lab.core import hub
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.data import roles
from prefix_rft_lab.data.roles import Candidate, Record

__all__ = ["Candidate", "Dropped", "Record", "Source", "default_id", "is_hub_name", "keep", "open_source"]

PEEK_ROWS = 1000
"""Rows whose columns are taken for those of a file: JSON lines may leave out a field that has no value."""
SHOWN_COLUMNS = 20
_CHUNK = 1 << 20
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+){0,2}")
_FILE_ENDINGS = frozenset(["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "gz", "bz2", "xz"])
_PACKED: dict[bytes, Callable[..., IO[Any]]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_HINT = "a JSONL, JSON, parquet, CSV or TSV file"


class Dropped(Counter[str]):
    """A count of what was left out by reason, with the ids of the first few of each."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.examples: dict[str, list[str]] = {}

    def note(self, reason: str, id: str) -> None:
        self[reason] += 1
        if self[reason] <= 3:
            self.examples.setdefault(reason, []).append(id)

    def __str__(self) -> str:
        """Every reason with its count and the first example."""
        return ", ".join(f"{n} x {reason} ({self.examples[reason][0]})" for reason, n in self.items()) or "no rows"


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: its columns, and its records, to be read once."""

    name: str
    columns: tuple[str, ...]
    records: Iterator[Record]
    roles: roles.Roles
    """Which columns were taken for what, as far as the records were read."""


def open_source(source: str, columns: Mapping[str, str] | None = None, *, field: str = "data.problems") -> Source:
    """Open a file or a data set on the Hub.

    Args:
        source: see the module's docstring.
        columns: maps names of :data:`.roles.FIELDS` to the source's own, ``reward_model.ground_truth`` for a field of an object.
        field: the config field (or argument) that named the source, for messages.

    Raises:
        ConfigError: missing, empty or malformed, unreachable, or without a required column. Malformed lines further down
            raise when they are read.
    """
    return _source(source, _rows(source, field), columns or {}, field)


def _source(source: str, rows: Iterator[dict[str, Any]], columns: Mapping[str, str], field: str) -> Source:
    for name in columns:
        if name not in roles.FIELDS:
            raise ConfigError(f"data.columns has the name {name!r}; map only {', '.join(roles.FIELDS)}")
    first = list(islice(rows, PEEK_ROWS))
    if not first:
        raise ConfigError(f"{field} = {source!r} is empty; give a file with one problem a row")
    found = {name: path for row in first for name, path, _ in roles.flat(row)}
    reader = roles.Roles(columns, _same)
    own = tuple(dict.fromkeys(str(name) for row in first for name in row))
    listed = ", ".join(own[:SHOWN_COLUMNS]) + f", and {len(own) - SHOWN_COLUMNS} more" * (len(own) > SHOWN_COLUMNS)
    wrong = {role: name for role, name in columns.items() if roles.spelling(name) not in found}
    if wrong:
        raise ConfigError(
            " and ".join(f"data.columns.{role} = {name!r}" for role, name in wrong.items())
            + f" {'is not a column' if len(wrong) == 1 else 'are not columns'} of {Path(source).name}; it has {listed}"
        )
    # The gold may stand at the end of a solution.
    needed = {"problem": ["problem"], "answer": ["answer", "demonstration"]}
    missing = [
        role
        for role, by in needed.items()
        if not found.keys() & {n.split("+")[-1] for b in by for n in reader.names(b)}
    ]
    if missing:
        raise ConfigError(
            f"{field} = {source!r} has no column {' and no column '.join(map(repr, missing))}; it has {listed}: name the right "
            f"one in {' and '.join(f'data.columns.{role}' for role in missing)} (--column {missing[0]}=NAME)"
        )
    return Source(source, own, map(reader.read, chain(first, rows)), reader)


@lru_cache(maxsize=100_000)
def _same(answer: str, gold: str) -> bool:
    """Whether two golds are one, as the grading sees it."""
    return bool(_verifier().score(f"\\boxed{{{answer}}}", gold))


@lru_cache(maxsize=1)
def _verifier() -> Any:
    import atexit

    from prefix_rft_lab.data.rewards import Verifier

    verifier = Verifier()
    atexit.register(verifier.close)
    return verifier


def default_id(source: str, number: int) -> str:
    """Id of a row that has none of its own."""
    return f"{Path(source).stem}-{number}"


def is_hub_name(source: str) -> bool:
    return (
        not Path(source).exists()
        and _HUB_NAME.fullmatch(source) is not None
        and Path(source).suffix[1:] not in _FILE_ENDINGS
    )


# ---------------------------------------------------------------------- memory


def keep(problems: Any, folder: str | Path) -> str:
    """Write problems that are given in Python as JSON lines, and return the path: its name is made of their content, so that
    equal problems are one source and others another.

    Args:
        problems: an iterable of mappings or :class:`prefix_rft_lab.types.Problem`, a pandas or polars frame, an Arrow table, a
            ``datasets.Dataset`` (of several splits the one for training), or a path or Hub name, which is returned.
        folder: where the file is written.

    Raises:
        ConfigError: what holds no problems, and an element that is none.
    """
    if isinstance(problems, (str, Path)):
        return str(problems)
    lines = [
        json.dumps({str(key): cell for key, cell in row.items() if not roles.is_missing(cell)}, default=_plain) + "\n"
        for row in _given(problems)
    ]
    name = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    path = Path(folder) / f"{name}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(path)
    return str(path)


def _given(problems: Any) -> Iterator[Mapping[str, Any]]:
    """Rows of what is given in Python, known by what it can do, so that none of these libraries is imported."""
    if isinstance(problems, Mapping) and any(hasattr(found, "column_names") for found in problems.values()):
        problems = problems.get("train") or next(iter(problems.values()))
    if hasattr(problems, "itertuples"):
        problems = problems.to_dict("records")
    elif hasattr(problems, "iter_rows"):
        problems = problems.iter_rows(named=True)
    elif hasattr(problems, "to_batches"):
        problems = problems.to_pylist()
    elif isinstance(problems, Mapping):
        problems = _unfold(problems)
    if not isinstance(problems, Iterable):
        raise ConfigError(
            f"problems is {_kind(problems)}; give dicts or Problems in a list, a pandas or polars frame, a datasets.Dataset, a path, "
            "or the name of a data set on the Hub"
        )
    for number, row in enumerate(problems, 1):
        found = asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
        if not isinstance(found, Mapping):
            raise ConfigError(f"problems holds {_kind(row)} as number {number}; give dicts or Problems")
        yield found


def _plain(value: Any) -> Any:
    """A value that JSON does not know, as one that it knows; what is neither a text nor a number stays an object, so that it is
    never read as text."""
    if roles.is_missing(value):
        return None
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": len(value)}
    return str(value) if isinstance(value, Decimal) else {type(value).__name__: None}


# ---------------------------------------------------------------------- containers


def _rows(source: str, field: str) -> Iterator[dict[str, Any]]:
    if files := hub.files_of(source):
        return chain.from_iterable(_file(file, f"{field} = {str(file)!r}") for file in files)
    if is_hub_name(source) and not Path(source).parent.is_dir():
        return _hub(source, field)
    raise ConfigError(
        f"{field} = {source!r} is not a file; give the path of {_HINT}, or a data set on the Hub as "
        f"owner/name{', or chains' if field == 'data.problems' else ''}"
    )


def _file(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Rows of one file; ``name`` begins every message."""
    if path.is_dir():
        return _saved(path, name)
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise ConfigError(
            f"{name} is a Git LFS pointer, not the file itself; fetch it with git lfs pull in its repository"
        )
    if head.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
        return _parquet(path, name)
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return _arrow(path, name)
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ConfigError(f"{name} is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV")
    unpack = next((unpack for magic, unpack in _PACKED.items() if head.startswith(magic)), open)
    return _text(path, unpack, name)


def _text(path: Path, unpack: Callable[..., IO[Any]], name: str) -> Iterator[dict[str, Any]]:
    try:
        with unpack(path, "rb") as file:
            start = file.read(2)
        encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with unpack(path, "rt", encoding=encoding, newline="") as file:
            while (first := file.read(1)).isspace():
                pass
        json_ending = ".json" in path.name.lower()
        with unpack(path, "rt", encoding=encoding, newline="") as file:
            if first == "[":
                yield from _array(file, name)
            elif first == "{" or json_ending:
                yield from _objects(file, name)
            elif first:
                yield from _table(file, name)
    except UnicodeError:
        raise ConfigError(f"{name} is not UTF-8 text; save it as UTF-8 text or as parquet") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        raise ConfigError(f"{name} cannot be read ({error}); fetch or save it again") from None


def _array(file: IO[str], name: str) -> Iterator[dict[str, Any]]:
    """Elements of an array, of which no more than one and a piece of the file are held."""
    decoder = json.JSONDecoder()
    text, at, number, size = "", 0, 0, _CHUNK
    space = re.compile(r"[\s,\ufeff]*")
    opened = False
    while True:
        at = space.match(text, at).end()  # type: ignore[union-attr]
        if at < len(text) and not opened:
            opened, at = True, at + 1
            continue
        if at < len(text) and text[at] == "]":
            if (text[at + 1 :] + file.read(_CHUNK)).strip():
                raise ConfigError(f"{name} goes on after its array; write one array, or one object a line")
            return
        try:
            if at == len(text):
                raise json.JSONDecodeError("the array is not closed", text, at)
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            piece = file.read(size)
            if not piece or (error.pos < len(text) - 16 and not error.msg.startswith("Unterminated")):
                raise ConfigError(f"{name} record {number + 1} is not JSON ({error.msg}); correct it") from None
            # An element that spans many pieces is not tried again for each.
            text, at, size = text[at:] + piece, 0, size * 2
            continue
        size = _CHUNK
        number += 1
        if not isinstance(value, dict):
            raise ConfigError(f"{name} record {number} is {_kind(value)}, not an object; write one object a record")
        yield value


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def _objects(file: IO[str], name: str) -> Iterator[dict[str, Any]]:
    """JSON lines, or one object that holds all records."""
    only: dict[str, Any] | None = None
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == 1 and (whole := _whole("".join([line, *file]))) is not None:
                yield from _unfold(whole)
                return
            raise ConfigError(f"{name} line {number} is not JSON ({error.msg}); write one object a line") from None
        if not isinstance(record, dict):
            raise ConfigError(f"{name} line {number} is {_kind(record)}, not an object; write one object a line")
        if number == 1:
            # The only line of a file may hold all of its records.
            only = record
            continue
        if only is not None:
            yield only
            only = None
        yield record
    if only is not None:
        yield from _unfold(only)


def _whole(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _unfold(whole: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records of one object: of columns, by id, under one key, by split; else it is a record itself."""
    values = list(whole.values())
    named = {roles.spelling(key) for key in whole} & {*roles.NAMES["problem"]}
    lists = {key: v for key, v in whole.items() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)}
    if {"columns", "data"} <= whole.keys() and lists.keys().isdisjoint(["data"]):
        yield from (dict(zip(whole["columns"], cells, strict=True)) for cells in whole["data"])
    elif named and all(isinstance(v, list) for v in values) and len({*map(len, values)}) == 1 and len(values) > 1:
        yield from (dict(zip(whole, cells, strict=True)) for cells in zip(*values, strict=True))
    elif (
        named and all(isinstance(v, dict) for v in values) and len({tuple(v) for v in values}) == 1 and len(values) > 1
    ):
        yield from ({key: column[index] for key, column in whole.items()} for index in values[0])
    elif named:
        yield dict(whole)
    elif lists and ({*map(str.lower, lists)} <= roles.SPLITS.keys() or len(lists) == 1):
        for key, found in lists.items():
            split = {"split": key} if key.lower() in roles.SPLITS else {}
            yield from (split | (row["row"] if isinstance(row.get("row"), dict) else row) for row in found)
    elif values and all(isinstance(v, dict) for v in values):
        yield from ({"id": key} | record for key, record in whole.items())
    else:
        yield dict(whole)


def _table(file: IO[str], name: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    head = file.readline()
    while not head.strip():
        head = file.readline()
    delimiter = max("\t,;", key=lambda c: (head.count(c) > 0) * (3 - "\t,;".index(c)))
    what = {"\t": "TSV"}.get(delimiter, "CSV")
    rows = csv.DictReader(chain([head], file), strict=True, delimiter=delimiter)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise ConfigError(
                    f"{name} line {rows.line_num} does not have {len(rows.fieldnames or ())} cells, as the first line does; "
                    "quote cells that hold commas or line breaks"
                )
            # An empty cell is a missing value.
            yield {key: cell or None for key, cell in row.items()}
    except csv.Error as error:
        raise ConfigError(f"{name} is not readable {what} ({error}); correct it") from None


def _parquet(path: Path, name: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except Exception as error:
        raise ConfigError(f"{name} is not a readable parquet file ({error}); correct it") from error


def _arrow(path: Path, name: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            stream = pa.ipc.open_file(file) if file.read(6) == b"ARROW1" else pa.ipc.open_stream(path.open("rb"))
            batches = (
                map(stream.get_batch, range(stream.num_record_batches)) if hasattr(stream, "get_batch") else stream
            )
            for batch in batches:
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{name} is not a readable Arrow file ({error}); correct it") from error


def _saved(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """A folder that ``save_to_disk`` wrote; of several splits the one for training."""
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        path = path / ("train" if "train" in splits else splits[0])
    if not (path / "state.json").is_file():
        raise ConfigError(
            f"{name} is a folder that save_to_disk did not write; give {_HINT}, or DIR/*.parquet for several"
        )
    files = json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
    return chain.from_iterable(_arrow(path / file["filename"], name) for file in files)


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
                    f"the path of {_HINT} (hf download NAME --repo-type dataset --local-dir DIR fetches "
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
