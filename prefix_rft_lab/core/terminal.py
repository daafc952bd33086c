"""What a terminal is given: text from data, paths and arguments that it shows and does not obey."""

from __future__ import annotations

import logging
import warnings


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
    """Have this process print what the kit logs or warns of, as it is to be shown: on stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(Shown(form))
    kit = logging.getLogger("prefix_rft_lab")
    kit.handlers = [handler]
    kit.setLevel(level)
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: object) -> None:
        if "prefix_rft_lab" in filename:
            kit.warning("%s", message)
        else:
            usual(message, category, filename, *rest)  # type: ignore[arg-type]

    warnings.showwarning = show  # type: ignore[assignment]
