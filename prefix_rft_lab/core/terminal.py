"""What a terminal is given: text from data, paths and arguments that it shows and does not obey."""

from __future__ import annotations

import logging
import warnings
from typing import Any


def shown(text: str, *, keep: str = "") -> str:
    """Text that a terminal shows and does not obey: control characters, bidirectional overrides and half surrogate pairs
    as escapes, but for those in ``keep``."""
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )


class Shown(logging.Formatter):
    """A log's lines as :func:`shown` has them."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record), keep="\n")


def plain_logs(form: str = "%(message)s", level: int = logging.WARNING) -> None:
    """Have this process print what is logged, and what the kit warns of, as it is to be shown: on stderr, a line each."""
    handler = logging.lastResort
    assert handler is not None
    handler.setFormatter(Shown(form))
    handler.setLevel(level)
    kit = logging.getLogger("prefix_rft_lab")
    kit.setLevel(level)
    warnings.showwarning = _warn  # type: ignore[assignment]


_usual = warnings.showwarning


def _warn(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
    if "prefix_rft_lab" in filename:
        logging.getLogger("prefix_rft_lab").warning("%s", message)
    else:
        _usual(message, category, filename, *rest)
