"""Tables for people: one way from a frame to text, HTML or Markdown, and one way to write a mean with its interval."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prefix_rft_lab.core.terminal import shown

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["text", "html", "md"]


def with_interval(mean: float, low: float, high: float, shape: str = ".3f") -> str:
    """``0.412 [0.380, 0.440]``; the mean alone where the interval is NaN, a dash where the mean is."""
    if math.isnan(mean):
        return "–"
    return f"{mean:{shape}}" if math.isnan(low) else f"{mean:{shape}} [{low:{shape}}, {high:{shape}}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A frame and how people read it; columns ``x``, ``x_low`` and ``x_high`` are joined to ``x``, NaN is a dash."""

    frame: pd.DataFrame
    heads: Mapping[str, str] = field(default_factory=dict)
    """Column -> its head, of the columns that are shown, in order; all under their own names if empty."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Column -> format specification of its numbers, ``.3f`` if not given. Whole numbers are shown as they are."""
    marked: Sequence[bool] = ()
    """Rows to set apart; empty for none."""
    caption: str = ""
    note: str = ""

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows as plain text."""
        names = [str(name) for name in self.frame.columns]
        joined = {n for n in names if {f"{n}_low", f"{n}_high"} <= set(names) and f"{n}_low" not in self.heads}
        ends = {f"{name}_{end}" for name in joined for end in ("low", "high")}
        heads = self.heads or {name: name for name in names if name not in ends}

        def cell(row: Mapping[str, Any], name: str) -> str:
            value, shape = row[name], self.formats.get(name, ".3f")
            if name in joined and not isinstance(value, str):
                return with_interval(value, row[f"{name}_low"], row[f"{name}_high"], shape)
            if not isinstance(value, float):
                return str(value)
            return "–" if math.isnan(value) else f"{value:{shape}}"

        rows = (dict(zip(names, values, strict=True)) for values in self.frame.itertuples(index=False))
        return list(heads.values()), [[cell(row, name) for name in heads] for row in rows]

    def show(self, as_: Form = "text") -> str:
        """As :func:`show`."""
        heads, rows = self.cells()
        if as_ == "text":
            return format_table([heads, *rows])
        marked = self.marked or [False] * len(rows)
        if as_ == "md":
            first = ["| " + " | ".join(map(inline, heads)) + " |", "|" + " --- |" * len(heads)]
            return "\n".join([*first, *(_markdown(row, bold) for row, bold in zip(rows, marked, strict=True))])
        if as_ == "html":
            body = "\n".join(_html(row, bold) for row, bold in zip(rows, marked, strict=True))
            caption = f"<caption>{html.escape(self.caption)}</caption>\n" if self.caption else ""
            head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
            return f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        raise ValueError(f"as_ = {as_!r} is not known; use 'text', 'html' or 'md'")


def _markdown(cells: Sequence[str], bold: bool) -> str:
    first, *rest = map(inline, cells)
    return "| " + " | ".join([f"**{first}**" if bold else first, *rest]) + " |"


def _html(cells: Sequence[str], marked: bool) -> str:
    first, *rest = map(html.escape, cells)
    row = f'<th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr class="marked">{row}</tr>' if marked else f"<tr>{row}</tr>"


def show(
    frame: pd.DataFrame,
    as_: Form = "text",
    *,
    heads: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None,
) -> str:
    """A frame as a table: aligned text for a terminal, HTML, or Markdown; cells are escaped for each.

    Args:
        heads, formats: as in :class:`Table`.

    Raises:
        ValueError: an unknown ``as_``.

    >>> import pandas as pd
    >>> print(show(pd.DataFrame({"method": ["rft"], "seeds": [5], "avg": [0.41], "avg_low": [0.38], "avg_high": [0.44]})))
    method  seeds  avg
    rft     5      0.410 [0.380, 0.440]
    """
    return Table(frame=frame, heads=heads or {}, formats=formats or {}).show(as_)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first row as head; cells are one line each, whatever they hold."""
    rows = [tuple(map(shown, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def inline(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no broken table cells."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")
    for mark in ("*", "`"):
        escaped = escaped.replace(mark, f"\\{mark}")
    # Brackets are kept, intervals are written with them; an opening one before "(" would make a link.
    return " ".join(escaped.replace("](", "]\\(").split())
