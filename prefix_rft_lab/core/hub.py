"""Whether the Hub answers, asked once: downloads try again and again, for the better part of a minute without a network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.files import ends

SECONDS = 5.0
"""Longest wait for an answer; without one only the local cache is used."""
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def answers_for(name: str, kind: Literal["model", "dataset"], field: str) -> bool:
    """Whether the Hub can be asked for a repository; False where only the local cache can have it.

    Raises:
        ConfigError: the Hub answers that there is no such repository, or that it is gated; ``field`` named it.
    """
    from huggingface_hub import HfApi, errors

    what = {"model": "model", "dataset": "data set"}[kind]
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        ask(name, timeout=SECONDS)
    except errors.GatedRepoError:
        raise ConfigError(gated(name, field)) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"{field} = {name!r} is neither here nor a {what} that the Hub shows you; correct the name, or log in with hf "
            "auth login if it is private"
        ) from None
    except errors.HfHubHTTPError as error:
        raise ConfigError(
            f"{field} = {name!r}: the Hub answered with an error ({str(error).splitlines()[0]}); try again, or give a "
            "local path"
        ) from None
    except Exception:
        # No network, a time-out, offline by a variable, no name of a repository: the local cache has the last word.
        return False
    return True


def files_of(source: str) -> list[Path]:
    """The local files or folders that a source of problems names, by a path or a pattern; none for the Hub."""
    path = Path(source).expanduser()
    return [path] if path.exists() else sorted(path.parent.glob(path.name)) if "*" in path.name else []


def stamp(source: str) -> tuple[tuple[str, int], ...]:
    """Files of a source, also those in its folder, with the time when each was last written, in nanoseconds."""
    files = (inner for file in files_of(source) for inner in (sorted(file.rglob("*")) if file.is_dir() else [file]))
    return tuple((str(file), file.stat().st_mtime_ns) for file in files if file.is_file())


def fingerprint(source: str, *, deep: bool = True) -> str:
    """Twelve hex digits of what the local files of a source hold (of a large file its size, beginning and end), whatever the path;
    "" where there are none: a name on the Hub or in the kit. Of a folder also what is in its folders, if ``deep``."""
    files = [Path(file) for file, _ in stamp(source)]
    digest = hashlib.sha256()
    for file in files if deep else (file for file in files if Path(source).expanduser() in (file, file.parent)):
        digest.update(ends(file))
    return digest.hexdigest()[:12] if files else ""


def gated(name: str, field: str) -> str:
    """What to do about a repository whose licence is to be accepted first."""
    return f"{field} = {name!r} is gated; accept its terms on its page on the Hub, then log in with hf auth login"


def is_gated(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so: a gated repository shows its page to all and its files to some."""
    from huggingface_hub import errors

    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError) or status in (401, 403):
            return True
        error = error.__cause__ or error.__context__
    return False


def why_not() -> str:
    """Why the Hub did not answer, for a message."""
    if switched := switched_off():
        return f"the network is switched off by {' and '.join(switched)}"
    return "the Hub cannot be reached"


def switched_off() -> list[str]:
    """The variables that are set and keep libraries off the network."""
    return [name for name in OFFLINE_VARIABLES if os.environ.get(name, "0").upper() not in ("", "0", "FALSE", "NO")]


@contextmanager
def datasets_offline(off: bool) -> Iterator[None]:
    """Keep ``datasets`` off the network, which it would try five times before it looks into its cache."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = off or before
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
