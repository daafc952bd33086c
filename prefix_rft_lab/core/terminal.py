"""What a terminal is given: text from data, paths and arguments that it shows and does not obey."""

from __future__ import annotations


def shown(text: str, *, keep: str = "") -> str:
    """Text that a terminal shows and does not obey: control characters, bidirectional overrides and half surrogate pairs
    as escapes, but for those in ``keep``."""
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )
