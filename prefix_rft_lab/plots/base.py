"""What all figures share: colours and line styles, series of runs, the frame of a figure, and how it is saved."""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from prefix_rft_lab.algorithm.methods import METHODS
from prefix_rft_lab.analysis import stats
from prefix_rft_lab.analysis.stats import Label
from prefix_rft_lab.core.columns import Source, column_of
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import write_bytes, write_text
from prefix_rft_lab.core.versions import __version__
from prefix_rft_lab.runs.run import Run, directory_of

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
"""Eight colours that stay apart under colour blindness (Okabe and Ito, 2008)."""

METHOD_STYLES = {
    "base": ("#595959", "x"),
    "sft": (OKABE_ITO["orange"], "s"),
    "rft": (OKABE_ITO["blue"], "o"),
    "sft_then_rft": (OKABE_ITO["green"], "^"),
    "prefix_rft": (OKABE_ITO["vermilion"], "D"),
}
"""Method -> colour and marker, everywhere."""
SPARE_STYLES = (
    (OKABE_ITO["purple"], "v"),
    (OKABE_ITO["sky"], "P"),
    (OKABE_ITO["black"], "*"),
    ("#a39500", "<"),  # their yellow, dark enough for words
    (OKABE_ITO["blue"], ">"),
    (OKABE_ITO["green"], "h"),
    (OKABE_ITO["orange"], "p"),
    (OKABE_ITO["vermilion"], "X"),
)
"""Colours and markers of methods and labels without one of their own, in turn."""

KIND_STYLES: dict[str, Any] = {
    "on_policy": "-",
    "continuation": (0, (5, 1.6)),
    "prefix": (0, (1.2, 1.2)),
    "demonstration": (0, (5, 1.5, 1, 1.5)),
}
"""Token kind -> line style; ``demonstration`` is read, neither trained nor sampled."""
KIND_SHADES = {
    "on_policy": ("#000000", 0.6),
    "continuation": ("#000000", 0.2),
    "prefix": ("#ffffff", 0.15),
    "demonstration": ("#595959", 0.7),
}
"""Token kind -> what a method's colour is mixed with where three kinds share a panel."""
KIND_TITLES = {
    "on_policy": "on-policy (no prefix)",
    "continuation": "continuation (after a prefix)",
    "prefix": "prefix (demonstration)",
    "demonstration": "whole demonstration (only read)",
}
GREY = "#595959"
MANY_SEEDS = 5
"""Above this number a band replaces the single seeds."""

kit_style = matplotlib.style.context("default")
"""Decorates what draws or saves: Matplotlib's defaults, whatever style or ``text.usetex`` the caller has set."""


class RunFigure(Figure):
    """A figure that shows itself in notebooks and knows what it draws."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)
        self.data = pd.DataFrame()
        """The numbers drawn."""
        self.caption = ""
        """What the axes show and how many runs and problems it rests on; also the alternative text."""

    @kit_style
    def png(self, dpi: float = 144) -> bytes:
        """The figure as PNG, in 128 colours, which a chart does not miss: a notebook holds many and stays small."""
        full, small = io.BytesIO(), io.BytesIO()
        self.savefig(full, format="png", dpi=dpi, facecolor="white")
        Image.open(full).convert("RGB").quantize(128).save(small, format="png", optimize=True)
        return small.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        # Drawn larger than it is shown, so that it stays sharp on dense screens.
        return self.png(120), {"width": round(self.get_figwidth() * 72), "alt": self.caption}

    def __repr__(self) -> str:
        return f"<figure: {self.caption}>"


_MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def visible(text: str) -> str:
    """A token's text with its white space shown, and what the figure font cannot draw as escapes."""
    shown = "".join(
        _MARKS.get(c) or (c if c.isprintable() and ord(c) < 0x250 else c.encode("unicode_escape").decode())
        for c in text
    )
    return shown if len(shown) <= 24 else f"{shown[:23]}…"


# ---------------------------------------------------------------------- saving


@kit_style
def save_figure(
    figure: Figure, path_stem: str | Path, *, data: pd.DataFrame | None = None, runs: Sequence[Run] = ()
) -> list[Path]:
    """Write PDF, SVG, PNG, the numbers as CSV, and where it all came from as JSON; equal inputs give equal files.

    Args:
        path_stem: path without ending: ``figures/entropy`` gives figures/entropy.pdf and so on. An ending that is one
            of these formats is dropped.
        data: what the figure shows; by default ``figure.data``.
        runs: what it was drawn from.

    Returns:
        the files, in the order above.
    """
    stem = Path(path_stem).expanduser()
    if stem.suffix in (".pdf", ".svg", ".png", ".csv", ".json"):
        stem = stem.with_suffix("")
    # Appended, not with_suffix: a stem like "keep-0.2" has a dot of its own.
    paths = {ending: stem.with_name(f"{stem.name}.{ending}") for ending in ("pdf", "svg", "png", "csv", "json")}
    with mpl.rc_context({"svg.hashsalt": "prefix_rft_lab", "pdf.fonttype": 42}):
        pdf, svg, png = io.BytesIO(), io.StringIO(), io.BytesIO()
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "ModDate": None}, facecolor="white")
        figure.savefig(svg, format="svg", metadata={"Date": None}, facecolor="white")
        figure.savefig(png, format="png", dpi=144, facecolor="white")
    write_bytes(paths["pdf"], pdf.getvalue())
    write_text(paths["svg"], _stable_ids(svg.getvalue()))
    write_bytes(paths["png"], png.getvalue())
    table = data if data is not None else getattr(figure, "data", pd.DataFrame())
    write_text(paths["csv"], table.to_csv(index=False) if len(table.columns) else "")
    write_text(paths["json"], json.dumps(provenance(figure, runs), indent=2, ensure_ascii=False) + "\n")
    return list(paths.values())


def _stable_ids(svg: str) -> str:
    """An SVG whose generated ids are numbered as they come: Matplotlib's depend on where objects lie in memory."""
    found = re.findall(r'\bid="([A-Za-z]?[0-9a-f]{10})"', svg)
    names = {old: f"id{number}" for number, old in enumerate(dict.fromkeys(found))}
    return re.sub(r"(?<=[\"#])[A-Za-z]?[0-9a-f]{10}(?=[\")])", lambda match: names.get(match[0], match[0]), svg)


def provenance(figure: Figure, runs: Sequence[Run]) -> dict[str, Any]:
    """Which runs, configs, seeds and versions a figure rests on, without any path of this machine."""
    return {
        "caption": getattr(figure, "caption", ""),
        "runs": [
            {
                "run": run_name(run),
                "method": run.method,
                "seed": run.seed,
                "config": run.config.hash(),
                "source": environment(run).get("source"),
                "done": run.done,
            }
            for run in sorted(runs, key=run_name)
        ],
        "versions": {
            "prefix_rft_lab": __version__,
            "matplotlib": mpl.__version__,
            "numpy": np.__version__,
            "pandas": pd.__version__,
        },
    }


def environment(run: Run) -> dict[str, Any]:
    """The versions and machine of a run as it recorded them; empty if it recorded none."""
    return run.environment


def run_name(run: Run) -> str:
    """A run's directory relative to the folder of all runs."""
    return directory_of(run.config, "").as_posix()


# ---------------------------------------------------------------------- shared parts


def stage_note(series: Sequence[Series], *, ticks: bool = True) -> str:
    """What a reader must know of runs with several stages."""
    note = " Vertical tick on a line: its next stage begins." if ticks and any(one.boundaries for one in series) else ""
    if {"sft", "sft_then_rft"} <= {one.method for one in series}:
        note += " SFT and the first stage of SFT→RFT are the same training, so their lines coincide there."
    return note


@dataclass(frozen=True, slots=False)
class Series:
    """One line of a figure: a recorded column of one group of runs."""

    name: str
    """Key of the group."""
    title: str
    method: str
    colour: str
    marker: str
    kind: str
    """Which of the figure's line styles; a token kind, or empty."""
    column: str
    frame: pd.DataFrame = field(repr=False)
    """Index global_step, one column a seed."""
    boundaries: tuple[tuple[int, str], ...] = ()
    """First steps of later stages, and the stages' names."""

    @property
    def seeds(self) -> str:
        count = len(self.frame.columns)
        return f"{count} seed{'s' if count != 1 else ''}"


def collect(
    runs: Sequence[Run],
    label: Label | None,
    columns: Sequence[tuple[str, str, Any]],
    *,
    required: bool = True,
) -> list[Series]:
    """The recorded columns (kind, name, source) of every group; groups and columns without values are left out."""
    out = []
    for place, (name, members) in enumerate(stats.group(runs, label).items()):
        colour, marker = style_of(members[0], name, label, place)
        boundaries = stage_starts(members)
        for kind, column, source in columns:
            frame = stats.seed_curves(members, column, source)
            if not frame.empty:
                out.append(
                    Series(
                        name=name,
                        title=escaped(stats.title(name, members)),
                        method=members[0].method,
                        colour=colour,
                        marker=marker,
                        kind=kind,
                        column=column,
                        frame=frame,
                        boundaries=boundaries,
                    )
                )
    if required and not out:
        raise nothing_recorded(runs, " or ".join(column for _, column, _ in columns))
    return out


def nothing_recorded(runs: Sequence[Run], what: str) -> RunError:
    names = ", ".join(run_name(run) for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
    return RunError(f"{names} recorded no {what} yet; draw this again when training has recorded some")


def stage_starts(members: Sequence[Run]) -> tuple[tuple[int, str], ...]:
    """First global step of every stage after the first, from the run that got furthest."""
    tables = [stats.records(run, "metrics") for run in members]
    table = max(tables, key=len)
    if table.empty or "stage" not in table:
        return ()
    changes = table[table["stage"].ne(table["stage"].shift())].iloc[1:]
    return tuple(zip(changes["global_step"].astype(int), changes["stage"].astype(str), strict=True))


def style_of(run: Run, name: str, label: Label | None, place: int = 0) -> tuple[str, str]:
    """(colour, marker) of a group: fixed for known methods, in turn for the others."""
    if label is not None and name == run.title and run.method in METHODS:
        # A label that is a method's own title: the colour that it has elsewhere.
        label, name = None, run.method
    if label is None and name in METHOD_STYLES:
        return METHOD_STYLES[name]
    if label is None and name in METHODS:
        place = [m for m in METHODS if m not in METHOD_STYLES].index(name)
    elif label is not None:
        every = (*list(METHOD_STYLES.values())[1:], *SPARE_STYLES)
        return every[place % len(every)]
    return SPARE_STYLES[place % len(SPARE_STYLES)]


def mixed(colour: str, other: str, share: float) -> str:
    one, two = to_rgb(colour), to_rgb(other)
    return to_hex(tuple(np.add(np.multiply(1 - share, one), np.multiply(share, two))))


def escaped(text: str) -> str:
    """Dollar signs as themselves, not as mathematics."""
    return text.replace("$", r"\$")


def smoothing_width(series: Sequence[Series]) -> int:
    """Steps of the running mean: about a twentieth of the longest curve, odd, 1 (none) for short ones."""
    longest = max((len(one.frame) for one in series), default=0)
    return 1 if longest < 40 else longest // 20 // 2 * 2 + 1


def running_mean(mean: pd.Series, width: int) -> pd.Series:
    return mean if width <= 1 else mean.rolling(width, center=True, min_periods=1).mean()


def full_mean(frame: pd.DataFrame) -> pd.Series:
    """Mean over seeds where as many seeds reported as ever do: a curve must not bend because a seed is behind."""
    count = frame.notna().sum(axis=1)
    return frame.mean(axis=1)[count == count.max()]


def draw_series(
    axes: Axes,
    one: Series,
    *,
    width: int = 1,
    style: Any = None,
    marker: bool = False,
    breaks: bool = False,
    thin: float = 0.3,
) -> None:
    """Seeds (or their band) and mean of one line."""
    style = style if style is not None else KIND_STYLES.get(one.kind, "-")
    frame = one.frame
    mean = full_mean(frame)
    shown = running_mean(mean, width)
    if breaks and len(shown):
        # Steps of another stage lie between: no line across them.
        full = np.arange(shown.index.min(), shown.index.max() + 1)
        shown, frame = shown.reindex(full), frame.reindex(full)
    if len(frame.columns) > MANY_SEEDS:
        table = stats.summarise_curve(frame).set_index("global_step")
        axes.fill_between(table.index, table["low"], table["high"], color=one.colour, alpha=0.18, lw=0)
    elif len(frame.columns) > 1 or width > 1:
        for seed in frame.columns:
            axes.plot(frame.index, frame[seed], color=one.colour, ls="-", lw=0.7, alpha=thin)
    options: dict[str, Any] = {"marker": one.marker, "ms": 5, "mec": "white", "mew": 0.6} if marker else {}
    axes.plot(shown.index, shown, color=one.colour, ls=style, lw=1.8, **options)


def long_first(series: Sequence[Series]) -> list[Series]:
    """Drawing order: SFT is bit for bit the first stage of SFT→RFT, so the shorter line goes on top to be seen."""
    return sorted(series, key=lambda one: (-len(one.frame), -len(one.boundaries)))


def from_zero(panels: Sequence[Axes], *, share: bool = False) -> None:
    """Let y start at 0, after everything is drawn; shares of 1 end at 1 at most."""
    top = max(max(axes.dataLim.y1 for axes in panels), 0.1 if share else 1e-9) * 1.08
    for axes in panels:
        axes.set_ylim(-0.02 * top if share else 0.0, min(top, 1.02) if share else top)


def mark_stages(axes: Axes, own: Sequence[Series], *, text: bool = True) -> None:
    """A vertical mark where a later stage begins, named if it has the panel to itself."""
    for step, stage in own[0].boundaries if own else ():
        if text:
            axes.axvline(step, color=GREY, lw=0.9, ls=(0, (2, 2)))
            axes.annotate(
                f"{stage} begins", (step, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                textcoords="offset points", va="top", fontsize=7.5, color=GREY,
            )  # fmt: skip
        else:
            mean = full_mean(own[0].frame)
            if len(mean):
                height = float(np.interp(step, mean.index.to_numpy(float), mean.to_numpy(float)))
                axes.plot([step], [height], marker="|", ms=13, mew=1.6, color=own[0].colour)


def base_level(runs: Sequence[Run], column: str) -> float | None:
    """The policy before training: the evaluations at step 0, which all runs of one start share."""
    values = []
    for run in runs:
        frame = stats.seed_curves([run], column, "evaluations")
        if 0 in frame.index:
            values.append(float(frame.to_numpy(float)[frame.index.get_loc(0), 0]))
    return float(np.mean(values)) if values else None


def method_handles(series: Sequence[Series], *, base_line: bool = False) -> list[Artist]:
    handles: list[Artist] = []
    seen = set()
    for one in series:
        if one.name not in seen and not (base_line and one.method == "base"):
            seen.add(one.name)
            marker: dict[str, Any] = {"marker": one.marker, "ms": 5, "mec": "white", "mew": 0.6} if base_line else {}
            handles.append(Line2D([], [], color=one.colour, lw=2, label=one.title, **marker))
    if base_line:
        handles.append(Line2D([], [], color=GREY, ls=(0, (4, 3)), lw=1, label="before training"))
    return handles


def note_of(series: Sequence[Series], what: str = "", width: int = 1) -> str:
    """n, and how the lines were made."""
    trained = {one.name: len(one.frame.columns) for one in series if one.method != "base"}
    counts = sorted(set(trained.values()))
    parts = [what] if what else []
    if len(counts) == 1:
        parts.append(f"{counts[0]} seed{'s' if counts[0] != 1 else ''} a method")
    elif counts:
        titles = {one.name: one.title for one in series}
        parts.append("seeds: " + ", ".join(f"{titles[name]} {count}" for name, count in trained.items()))
    most = max(counts, default=0)
    smoothed = f"running mean of {width} steps" if width > 1 else ""
    if most > MANY_SEEDS:
        parts.append(f"line: mean{f' ({smoothed})' if smoothed else ''}, band: {stats.OVER_SEEDS}")
    elif most > 1:
        parts.append(f"thin: seeds, thick: their mean{f' ({smoothed})' if smoothed else ''}")
    elif smoothed:
        parts.append(f"thin: raw, thick: {smoothed}")
    return ", ".join(parts)


def seed_counts(table: pd.DataFrame) -> str:
    counts = sorted({int(n) for n in table.loc[table["method"] != "base", "seeds"]})
    if not counts:
        return "base policy only"
    return f"{'/'.join(map(str, counts))} seed{'' if counts == [1] else 's'} a method"


def k_of(runs: Sequence[Run]) -> str:
    return "/".join(str(k) for k in sorted({run.config.evaluation.k for run in runs}))


def problems_of(runs: Sequence[Run]) -> str:
    counts = sorted(
        {
            int(n)
            for run in runs
            for n in stats.records(run, "evaluations").get("problems", pd.Series(dtype=float)).dropna()
        }
    )
    return f"{'/'.join(map(str, counts))} problems" if counts else ""


def hard_count(runs: Sequence[Run]) -> str:
    counts = sorted(
        {
            int(value["problems"])
            for run in runs
            for value in stats.records(run, "evaluations").get("hard", pd.Series(dtype=object))
            if isinstance(value, Mapping)
        }
    )
    return f"{'/'.join(map(str, counts))} problems"


def short_label(name: str, runs: Sequence[Run]) -> str:
    return column_of(name).short(k_of(runs))


def axis_label(name: str, runs: Sequence[Run], source: Source = "evaluations") -> str:
    return column_of(name, source).axis(k_of(runs))


def capitalised(text: str, *, only: bool = True) -> str:
    """With a capital, unless it starts with a symbol such as avg@8."""
    return text[:1].upper() + text[1:] if only else text


def table_of(series: Sequence[Series], width: int = 1) -> pd.DataFrame:
    """The numbers of a figure's lines: a row a step, mean and interval over seeds, and every seed."""
    parts = []
    for one in series:
        table = stats.summarise_curve(one.frame)
        table.insert(0, "method", one.name)
        table.insert(1, "series", one.column)
        if width > 1:
            table["shown"] = running_mean(full_mean(one.frame), width).reindex(one.frame.index).to_numpy()
        for seed in one.frame.columns:
            table[f"seed_{seed}"] = one.frame[seed].to_numpy()
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def new_figure(
    width: float,
    height: float,
    *,
    title: str,
    note: str,
    legends: Sequence[Sequence[Artist]] = (),
    rows: int = 1,
    columns: int = 1,
    heights: Sequence[float] | None = None,
    ratios: Sequence[float] | None = None,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[RunFigure, np.ndarray]:
    """A figure with title, note and legends in a head of its own above the panels, so that nothing covers data.

    Args:
        width, height: of the panels, inches; the head comes on top.
    """
    lines = textwrap.wrap(note, max(20, int(width * 15.5)))
    packed = [pack for handles in legends for pack in _pack(handles, width)]
    head = 0.34 + 0.165 * len(lines) + 0.24 * len(packed) + 0.06
    figure = RunFigure(figsize=(width, height + head), layout="constrained")
    total = height + head
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, 0.0, 1.0, height / total), w_pad=0.06, h_pad=0.05)  # type: ignore[call-arg]
    left = 0.08 / width
    figure.text(left, 1 - 0.09 / total, _escape_once(title), fontsize=12, fontweight="bold", va="top")
    for i, line in enumerate(lines):
        figure.text(left, 1 - (0.34 + 0.165 * i) / total, line, fontsize=8.5, color=GREY, va="top")
    for i, handles in enumerate(packed):
        legend = figure.legend(
            handles=list(handles), loc="upper left", ncols=len(handles), frameon=False, fontsize=8.5, borderpad=0,
            borderaxespad=0, handlelength=2.4, columnspacing=1.4,
            bbox_to_anchor=(left, 1 - (0.40 + 0.165 * len(lines) + 0.24 * i) / total),
        )  # fmt: skip
        legend.set_in_layout(False)
    grid = figure.subplots(
        rows, columns, squeeze=False, sharex=sharex, sharey=sharey,
        height_ratios=list(heights) if heights else None, width_ratios=list(ratios) if ratios else None,
    )  # fmt: skip
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#d9d9d9", lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5, length=3)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
    return figure, grid


def _pack(handles: Sequence[Artist], width: float) -> list[list[Artist]]:
    """Legend entries in rows that fit the width (about 0.066 inch a letter and 0.65 inch a handle)."""
    rows: list[list[Artist]] = []
    used = math.inf
    for handle in handles:
        size = 0.65 + 0.066 * len(str(handle.get_label()))
        if used + size > width - 0.1:
            rows.append([])
            used = 0.0
        rows[-1].append(handle)
        used += size
    return rows


def _escape_once(text: str) -> str:
    return text.replace(r"\$", "$").replace("$", r"\$")


def finish(figure: RunFigure, data: pd.DataFrame, caption: str) -> RunFigure:
    """Fix the layout once, so that saving twice gives the same bytes, and attach what the figure shows."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.data = data
    figure.caption = " ".join(caption.replace(r"\$", "$").replace(". .", ".").split())
    return figure
