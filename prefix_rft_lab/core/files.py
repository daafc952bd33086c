"""Files written whole or not at all, and lines appended so that a kill loses nothing before them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
from pathlib import Path
from typing import Any

import pandas as pd

from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.errors import RunError


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, in UTF-8; what has no place there (half a surrogate pair) is written as an escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: to a temporary name, flushed to disk, then renamed. A symbolic link at the path is
    replaced, what it points to stays.

    Raises:
        RunError: the disk is full; the message names the file and what is safe.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def _temporary(path: Path) -> Path:
    """A name beside a file that no other process takes, on this machine or one that shares the folder."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")


def ends(path: Path) -> bytes:
    """What tells a file from another without reading all of a large one: its size, its first and its last 4 MiB."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(2**22)
        file.seek(max(size - 2**22, 0))
        return f"{size} ".encode() + first + file.read()


def disk_error(error: Exception, path: Path) -> Exception:
    """An out-of-space error as a :class:`RunError` with a remedy; any other error as it is."""
    # safetensors and torch report a full disk as errors of their own, torch as a file that is shorter than written.
    words = ("No space left", "PytorchStreamWriter", "inline_container")
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and not any(w in str(error) for w in words):
        return error
    return RunError(
        f"no space left on the disk of {path}; what was written before is kept: free some space and start the same run "
        "again, it resumes from its last checkpoint"
    )


def check_writable(folder: str | Path, *, field: str = "out", name: str = "probe") -> None:
    """See that a folder can be made and a file in it, and leave nothing behind.

    Raises:
        ConfigError: they cannot; the message names ``field``.
    """
    folder = Path(folder).expanduser()
    made: list[Path] = []
    try:
        made = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(folder / name)
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no name of a file system"
        raise ConfigError(f"{field} = {str(folder)!r} cannot be written ({reason}); choose another folder") from None
    finally:
        for path in made:
            with contextlib.suppress(OSError, ValueError):
                path.rmdir()


def file_to_write(path: str | Path, *, suffix: str = "", field: str = "out") -> Path:
    """The path of a file to be written, ``~`` expanded, found to be writable before any work.

    Raises:
        ConfigError: another suffix, a folder, or a place that cannot be written.
    """
    path = Path(path).expanduser()
    if suffix and path.suffix != suffix:
        raise ConfigError(f"{field} = {str(path)!r} does not end in {suffix}; give the name of a {suffix} file")
    check_writable(path.parent, field=field, name=path.name)
    if path.is_dir():
        raise ConfigError(f"{field} = {str(path)!r} is a folder; give the name of a file")
    return path


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=True) + "\n")


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a parquet file whole or not at all; errors as :func:`write_text`."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(temporary, index=False, compression="zstd")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line; readers ignore a torn last line."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, allow_nan=True) + "\n")
    except OSError as error:
        raise disk_error(error, path) from error


def read_lines(path: Path, *, cut: bool = False) -> list[dict[str, Any]]:
    """The JSON lines of a file; nothing for a missing file, and no torn last line.

    Args:
        cut: end before the first damaged line instead of refusing it.

    Raises:
        RunError: a line is no mapping in JSON.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_mapping(line))
        except ValueError as error:
            if cut:
                break
            raise damaged(path, f"line {number}: {error}") from None
    return found


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """The mapping in a JSON file that a run or sweep wrote; empty for a missing file, if nothing in it is ``needed``.

    Raises:
        RunError: it cannot be read, is no mapping in JSON, or lacks one of the ``needed`` names.
    """
    try:
        found = _mapping(path.read_bytes())
    except FileNotFoundError:
        found = {}
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None
    if missing := [name for name in needed if name not in found]:
        raise damaged(path, f"it holds no {' and no '.join(map(repr, missing))}")
    return found


def _mapping(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds {type(found).__name__} in place of a mapping")
    return found


def read_table(path: Path) -> pd.DataFrame:
    """The table in a parquet file that a run wrote.

    Raises:
        FileNotFoundError: there is none.
        RunError: it cannot be read.
    """
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise damaged(path, str(error).splitlines()[0]) from None


def damaged(path: Path, cause: object, what: str = "the folder of its run, to train it again") -> RunError:
    """What to say of a file that is not as it was written; ``what`` may be deleted to have it written again."""
    return RunError(f"{path} is damaged ({cause}); restore it from a copy, or delete {what}")
