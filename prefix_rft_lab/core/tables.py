"""Tables for people: one way from a frame to text, HTML or Markdown, and one way to write a mean with its interval."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from prefix_rft_lab.core.terminal import shown

if TYPE_CHECKING:
    import pandas as pd


def with_interval(mean: float, low: float, high: float, shape: str = ".3f") -> str:
    """``0.412 [0.380, 0.440]``; a dash where the mean is NaN."""
    return "–" if math.isnan(mean) else f"{mean:{shape}} [{low:{shape}}, {high:{shape}}]"


def show(
    frame: pd.DataFrame, as_: Literal["text", "html", "md"] = "text", *, formats: Mapping[str, str] | None = None
) -> str:
    """A frame as a table: columns ``x``, ``x_low`` and ``x_high`` are joined to ``x``, NaN is a dash.

    Args:
        as_: aligned text for a terminal, an HTML table, or a Markdown table; cells are escaped for each.
        formats: column -> format specification of its numbers, ``.3f`` if not given. Whole numbers are shown as they are.

    Raises:
        ValueError: an unknown ``as_``.

    >>> import pandas as pd
    >>> print(show(pd.DataFrame({"method": ["rft"], "seeds": [5], "avg": [0.41], "avg_low": [0.38], "avg_high": [0.44]})))
    method  seeds  avg
    rft     5      0.410 [0.380, 0.440]
    """
    names = [str(name) for name in frame.columns]
    joined = {name for name in names if {f"{name}_low", f"{name}_high"} <= set(names)}
    parts = {f"{name}_{end}" for name in joined for end in ("low", "high")}
    columns = [name for name in names if name not in parts]
    rows = []
    for values in frame.itertuples(index=False):
        row: dict[str, Any] = dict(zip(names, values, strict=True))
        cells = []
        for name in columns:
            shape = (formats or {}).get(name, ".3f")
            if name in joined:
                cells.append(with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], shape))
            elif isinstance(row[name], float):
                cells.append("–" if math.isnan(row[name]) else f"{row[name]:{shape}}")
            else:
                cells.append(str(row[name]))
        rows.append(cells)
    if as_ == "text":
        return format_table([columns, *rows])
    if as_ == "md":
        return "\n".join(markdown_table(columns, rows))
    if as_ == "html":
        lines = [("th", columns), *(("td", row) for row in rows)]
        body = "".join(f"<tr>{''.join(f'<{t}>{html.escape(c)}</{t}>' for c in row)}</tr>" for t, row in lines)
        return f"<table>{body}</table>"
    raise ValueError(f"as_ = {as_!r} is not known; use 'text', 'html' or 'md'")


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first row as head; cells are one line each, whatever they hold."""
    rows = [tuple(map(shown, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> list[str]:
    """The lines of a Markdown table; the first cell of a marked row is bold."""
    lines = [f"| {' | '.join(map(inline, columns))} |", "|" + " --- |" * len(columns)]
    for row, bold in zip(rows, marked or [False] * len(rows), strict=True):
        first, *rest = map(inline, row)
        lines.append(f"| {' | '.join([f'**{first}**' if bold else first, *rest])} |")
    return lines


def inline(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no broken table cells."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")
    for mark in ("*", "`"):
        escaped = escaped.replace(mark, f"\\{mark}")
    # Brackets are kept, intervals are written with them; an opening one before "(" would make a link.
    return " ".join(escaped.replace("](", "]\\(").split())
