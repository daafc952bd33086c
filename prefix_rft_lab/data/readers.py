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
_REFUSED = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; fetch it with git lfs pull in its repository",
    b"pk\x03\x04": "is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet of Excel; save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "is packed by zstd; unpack it",
    b"<!doctype": "is a web page, not the file itself; download the raw file",
    b"<html": "is a web page, not the file itself; download the raw file",
    b"": "is not a text, parquet or Arrow file; unpack it, or save it as UTF-8 text or as parquet",
}
"""First bytes of a file in small letters -> what it is and what to do; the last are those of other binary files."""
_HEAD = 512
_GAP = re.compile(r"[\s,\ufeff]*")
_HINT = "a JSONL, JSON, parquet, CSV or TSV file"


class Dropped(Counter[str]):
    """A count of what was left out by reason, with the ids of the first few of each."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.examples: dict[str, list[str]] = {}
        self.splits: set[str] = set()
        """Splits that the rows name, also those that were left out."""

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
    reader = roles.Roles(columns, _same)
    found = {name for row in first for name in reader.cells(row)}
    if not found:
        raise ConfigError(f"{field} = {source!r} is empty; give a file with one problem per row")
    own = tuple(dict.fromkeys(str(name) for row in first for name in row))
    listed = ", ".join(own[:SHOWN_COLUMNS]) + f", and {len(own) - SHOWN_COLUMNS} more" * (len(own) > SHOWN_COLUMNS)
    wrong = {role: name for role, name in columns.items() if roles.spelling(name) not in found}
    if wrong:
        raise ConfigError(
            " and ".join(f"data.columns.{role} = {name!r}" for role, name in wrong.items())
            + f" {'is not a column' if len(wrong) == 1 else 'are not columns'} of {Path(source).name}; it has {listed}"
        )
    # The gold may be at the end of a solution.
    needed = {"problem": ["problem"], "answer": ["answer", "demonstration"]}
    missing = [role for role, by in needed.items() if not any(reader.columns(found, b) for b in by)]
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
        problems = _unfold(problems, "problems")
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
    refuse_missing(source, field)
    if files := hub.files_of(source):
        return chain.from_iterable(_file(file, f"{field} = {str(file)!r}") for file in files)
    return _hub(source, field)


def refuse_missing(source: str, field: str = "data.problems") -> None:
    """Raise where a source is neither a file nor has the form of a name on the Hub, which is not asked.

    Raises:
        ConfigError: it is neither.
    """
    if not hub.files_of(source) and not (is_hub_name(source) and not Path(source).parent.is_dir()):
        raise ConfigError(
            f"{field} = {source!r} is not a file; give the path of {_HINT}, or a data set on the Hub as "
            f"owner/name{', or chains' if field == 'data.problems' else ''}"
        )


def _file(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Rows of one file; ``name`` begins every message."""
    if path.is_dir():
        return _saved(path, name)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
        return _parquet(path, name)
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return _arrow(path, name)
    unpack = next((unpack for magic, unpack in _PACKED.items() if head.startswith(magic)), open)
    return _text(path, unpack, name)


def _text(path: Path, unpack: Callable[..., IO[Any]], name: str) -> Iterator[dict[str, Any]]:
    try:
        with unpack(path, "rb") as file:
            head = file.read(_HEAD)
        utf_16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        for magic, what in _REFUSED.items():
            if head.lower().startswith(magic) if magic else b"\0" in head and not utf_16:
                raise ConfigError(f"{name} {what}")
        with unpack(path, "rt", encoding="utf-16" if utf_16 else "utf-8-sig", newline="") as file:
            while (first := file.read(1)).isspace():
                pass
            if first in ("[", "{"):
                yield from _objects(file, first, name)
            elif first:
                yield from _table(file, first, name)
    except UnicodeError:
        raise ConfigError(f"{name} is not UTF-8 text; save it as UTF-8 text or as parquet") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        raise ConfigError(f"{name} cannot be read ({error}); fetch or save it again") from None


def _objects(file: IO[str], first: str, name: str) -> Iterator[dict[str, Any]]:
    """Records of JSON: lines, an array, or one object that holds all."""
    only: dict[str, Any] | None = None
    for number, (where, value) in enumerate(_json(file, first, name)):
        if _is_chat(value):
            value = {"messages": value}
        if not isinstance(value, dict):
            unit = where.split()[0]
            raise ConfigError(f"{name} {where} is {_kind(value)}, not an object; write one object a {unit}")
        if number == 0 and where.startswith("line"):
            # The only object of a file may hold all of its records.
            only = value
            continue
        if only is not None:
            yield only
            only = None
        yield value
    if only is not None:
        yield from _unfold(only, name)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(key), str) for key in ("role", "from"))


def _json(file: IO[str], text: str, name: str) -> Iterator[tuple[str, Any]]:
    """(where, value) of all values of a text, or of the elements of its array: ``text`` and the rest of the file.

    No more than one value and a piece of the file are held.
    """
    decode = json.JSONDecoder().raw_decode
    at, opened, line, number, size, array, whole = 0, 0, 1, 0, _CHUNK, False, False
    while True:
        start, at = at, _GAP.match(text, at).end()  # type: ignore[union-attr]
        line += text.count("\n", start, at)
        if not number and not array and not whole and text[at : at + 1] == "[":
            array, opened, at = True, at, at + 1
            continue
        if array and text[at : at + 1] == "]":
            if (text[at + 1 :] + file.read(_CHUNK)).strip():
                raise ConfigError(f"{name} goes on after its array; write one array, or one object a line")
            return
        where = f"record {number + 1}" if array else f"line {line}"
        try:
            if at == len(text):
                raise json.JSONDecodeError("the array is not closed", text, at)
            value, end = decode(text, at)
        except (ValueError, RecursionError) as error:
            reason, place = getattr(error, "msg", str(error)), getattr(error, "pos", -1)
            cut = place >= len(text) - 16 or (place >= 0 and reason.startswith("Unterminated"))
            if cut and (piece := file.read(size)):
                # A value that spans many pieces is not tried again for each.
                kept = opened if array and not number else at
                text, at, opened, size = text[kept:] + piece, at - kept, 0, size * 2
                continue
            if at == len(text) and not array:
                return
            raise ConfigError(f"{name} {where} is not JSON ({reason}); write one object a line, or one array") from None
        if array and not number and _is_message(value):
            # The array is a chat, and each line another one.
            array, whole, at = False, True, opened
            continue
        line += text.count("\n", at, end)
        at, size, number = end, _CHUNK, number + 1
        yield where, value


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def _named(record: Mapping[str, Any]) -> bool:
    return not {roles.spelling(key) for key in record}.isdisjoint(roles.NAMES["problem"])


def _unfold(whole: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Records of one object: of columns, by id, under one key, by split; else it is a record itself."""
    values = list(whole.values())
    named = _named(whole)
    lists = {key: v for key, v in whole.items() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)}
    empty = [key for key, v in whole.items() if v == [] and key.lower() in roles.SPLITS]
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
    elif lists and empty:
        raise ConfigError(f"{name} names a split {empty[0]!r} without a row; fill it or leave it out")
    elif lists and ({*map(str.lower, lists)} <= roles.SPLITS.keys() or len(lists) == 1):
        for key, found in lists.items():
            split = {"split": key} if key.lower() in roles.SPLITS else {}
            yield from (split | (row["row"] if isinstance(row.get("row"), dict) else row) for row in found)
    elif len(values) == 1 and isinstance(values[0], dict) and not _named(values[0]):
        yield from _unfold(values[0], name)
    elif values and all(isinstance(v, dict) for v in values):
        yield from ({"id": key} | record for key, record in whole.items())
    else:
        yield dict(whole)


def _table(file: IO[str], first: str, name: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    head = first + file.readline()
    delimiter = next((c for c in "\t,;|" if c in head), ",")
    what = {"\t": "TSV"}.get(delimiter, "CSV")
    rows = csv.DictReader(chain([head], file), strict=True, delimiter=delimiter)
    try:
        twice = [column for column, count in Counter(rows.fieldnames or ()).items() if count > 1]
        if twice:
            raise ConfigError(f"{name} has {twice[0]!r} twice in its first line; name each column once")
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
                yield from batch.to_pylist(maps_as_pydicts="lossy")
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
