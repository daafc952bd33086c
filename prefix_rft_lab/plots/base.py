"""What all figures share: colours and line styles, series of runs, the frame of a figure, and how it is saved."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from prefix_rft_lab.algorithm.methods import METHODS
from prefix_rft_lab.analysis import stats
from prefix_rft_lab.analysis.stats import Label
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
    ("#8c564b", ">"),
    ("#004d4d", "h"),
    ("#c2185b", "p"),
    ("#5c6bc0", "X"),
    ("#33691e", "d"),
    ("#4e342e", "8"),
    ("#00838f", "H"),
    ("#ad1457", "<"),
)
"""Colours and markers of methods without one of their own, in turn."""
_ARM_COLOURS = ("#3b1fd1", "#7f0019", "#bf19f2", "#197f00", "#cc8c66", "#591959", "#bf0099", "#004026")
_ARM_MARKERS = ("v", "P", "X", "<", "*", ">", "h", "p")
ARM_STYLES = tuple(
    (colour, _ARM_MARKERS[(place + turn) % len(_ARM_MARKERS)])
    for turn in range(len(_ARM_MARKERS))
    for place, colour in enumerate(_ARM_COLOURS)
)
"""Colours and markers of groups that are not methods (variants of one, arms of a sweep), in turn: never a method's."""

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
        """The figure as PNG of 256 colours, since a notebook holds many: by octree, as median cut would repaint thin lines."""
        full, small = io.BytesIO(), io.BytesIO()
        self.savefig(full, format="png", dpi=dpi, facecolor="white")
        Image.open(full).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
            small, format="png", optimize=True
        )
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
                "source": run.environment.get("source"),
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


# ---------------------------------------------------------------------- groups and their lines


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one config under one name, and how every figure shows them."""

    name: str
    title: str
    """As text of a figure: dollar signs are themselves, not mathematics."""
    method: str
    runs: tuple[Run, ...]
    """Seeds ascending."""
    colour: str
    marker: str

    @property
    def seeds(self) -> str:
        """``3 seeds``."""
        return counted(len(self.runs))

    @property
    def later_stages(self) -> list[tuple[int, str]]:
        """First global step of every stage after the first and the stage's name, from the run that got furthest."""
        table = max((stats.records(run, "metrics") for run in self.runs), key=len)
        if table.empty or "stage" not in table:
            return []
        changes = table[table["stage"].ne(table["stage"].shift())].iloc[1:]
        return list(zip(changes["global_step"].astype(int), changes["stage"].astype(str), strict=True))


def method_looks() -> dict[str, tuple[str, str]]:
    """Colour and marker of every method that is known now."""
    others = [name for name in METHODS if name not in METHOD_STYLES]
    return METHOD_STYLES | dict(zip(others, (*SPARE_STYLES, *ARM_STYLES), strict=False))


def groups(runs: Sequence[Run], label: Label | None = None) -> list[Group]:
    """The groups of :func:`prefix_rft_lab.analysis.stats.group`, each with its look.

    A group that bears a method's name or title has that method's look; others have one of :data:`ARM_STYLES`, by their
    place in ``label.names`` (so that some arms of a sweep look as they do among all), or else among the groups here.
    """
    found, methods = stats.group(runs, label), method_looks()
    looks = {
        name: methods[own[0].method]
        for name, own in found.items()
        if name in (own[0].method, own[0].title) and own[0].method in methods
    }
    named = {*METHODS, *(method.title for method in METHODS.values())}
    arms = [name for name in getattr(label, "names", ()) if name not in named]
    arms = [name for name in dict.fromkeys((*arms, *found)) if name not in looks]
    looks |= dict(zip(arms, itertools.cycle(ARM_STYLES), strict=False))
    return [
        Group(name, escaped(stats.title(name, own)), own[0].method, tuple(own), *looks[name])
        for name, own in found.items()
    ]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure: a recorded column of a group."""

    group: Group
    kind: str
    """Its style: a token kind, or empty."""
    column: str
    frame: pd.DataFrame
    """Index global_step, one column per seed."""


def lines_of(
    runs: Sequence[Run],
    columns: Mapping[str, str],
    label: Label | None = None,
    keep: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> list[Line]:
    """Recorded columns (style -> name, as :func:`prefix_rft_lab.analysis.stats.curves` takes it) of every group; groups
    and columns without values are left out.

    Args:
        keep: changes the long table before it is drawn.
    """
    table = stats.curves(runs, list(columns.values()), label=label)
    table = keep(table) if keep else table
    out = []
    for group in groups(runs, label):
        for kind, column in columns.items():
            own = table[(table["group"] == group.name) & (table["column"] == column)]
            if len(own):
                frame = own.pivot(index="step", columns="seed", values="value").rename_axis(index="global_step")
                out.append(Line(group, kind, column.removeprefix("evaluations."), frame))
    return out


def groups_of(lines: Sequence[Line]) -> list[Group]:
    return list({line.group.name: line.group for line in lines}.values())


def nothing_recorded(runs: Sequence[Run], what: str) -> RunError:
    names = ", ".join(run_name(run) for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
    return RunError(f"{names} recorded no {what} yet; draw this again when training has recorded some")


def mixed(colour: str, other: str, share: float) -> str:
    one, two = to_rgb(colour), to_rgb(other)
    return to_hex(tuple(np.add(np.multiply(1 - share, one), np.multiply(share, two))))


def shade(colour: str, kind: str) -> str:
    return mixed(colour, *KIND_SHADES[kind]) if kind else colour


def escaped(text: str) -> str:
    """Dollar signs as themselves, not as mathematics."""
    return text.replace("$", r"\$")


def smoothing_width(lines: Sequence[Line]) -> int:
    """Steps of the running mean: about a twentieth of the longest curve, odd, 1 (none) for short ones."""
    longest = max((len(line.frame) for line in lines), default=0)
    return 1 if longest < 40 else longest // 20 // 2 * 2 + 1


def full_mean(frame: pd.DataFrame, width: int = 1) -> pd.Series:
    """Mean over seeds where as many seeds reported as ever do, since a curve must not bend because a seed is behind; NaN
    where fewer than ``width`` steps lie around a step, since a mean over a cut window is of other steps than it says. A
    curve shorter than two windows is not smoothed."""
    count = frame.notna().sum(axis=1)
    mean = frame.mean(axis=1)[count == count.max()]
    return mean.rolling(width, center=True).mean() if len(mean) >= 2 * width else mean


def draw_line(
    axes: Axes, line: Line, *, width: int = 1, colour: str = "", breaks: bool = False, **options: Any
) -> None:
    """Seeds (or their band) and mean of one line.

    Args:
        width: steps of the running mean.
        breaks: no line across steps without a value.
    """
    frame, shown = line.frame, full_mean(line.frame, width)
    colour = colour or line.group.colour
    if breaks and len(shown):
        full = np.arange(shown.index.min(), shown.index.max() + 1)
        shown, frame = shown.reindex(full), frame.reindex(full)
    if len(frame.columns) > MANY_SEEDS:
        table = stats.summarise_curve(frame).set_index("global_step")
        axes.fill_between(table.index, table["low"], table["high"], color=colour, alpha=0.18, lw=0)
    elif len(frame.columns) > 1 or width > 1:
        for seed in frame.columns:
            axes.plot(frame.index, frame[seed], color=colour, ls="-", lw=0.7, alpha=0.3)
    axes.plot(shown.index, shown, color=colour, ls=KIND_STYLES.get(line.kind, "-"), lw=1.8, **options)


def long_first(lines: Sequence[Line]) -> list[Line]:
    """Drawing order: SFT is bit for bit the first stage of SFT→RFT, so the shorter line goes on top to be seen."""
    return sorted(lines, key=lambda line: (-len(line.frame), -len(line.group.later_stages)))


def beside(runs: Sequence[Run], label: Label | None, x: str, y: str) -> pd.DataFrame:
    """Two recorded columns of the runs that were trained, where both are known: method (the group's name), seed, global_step,
    x, y."""
    trained = [run for run in runs if run.method != "base"]
    table = stats.curves(trained, [x, y], label=label) if trained else stats.curves(runs, [], label=label)
    wide = (
        table.pivot(index=["group", "seed", "step"], columns="column", values="value").reindex(columns=[x, y]).dropna()
    )
    order = {group: place for place, group in enumerate(dict.fromkeys(table["group"]))}
    wide = wide.reset_index().sort_values("group", key=lambda names: names.map(order), kind="stable")
    return wide.rename(columns={"group": "method", "step": "global_step", x: "x", y: "y"}).reset_index(drop=True)


def draw_paths(
    axes: Axes,
    table: pd.DataFrame,
    among: Sequence[Group],
    x: str,
    y: str,
    at: str = "global_step",
    *,
    ends: bool = False,
) -> None:
    """One measurement against another, joined in the order of training: thin the seeds, thick their mean as far as all of
    them have come, from the black circle (the policy before training).

    Args:
        table: group's name as ``method``, ``seed``, and the columns ``at``, x and y.
        ends: the group's marker is drawn at the end, not at every measurement.
    """
    marks: dict[str, Any] = {"ms": 8, "markevery": [-1], "zorder": 6} if ends else {"ms": 4.5}
    last = table.groupby("method")[at].max()
    for group in sorted(among, key=lambda group: -last[group.name]):
        own = table[table["method"] == group.name]
        if own["seed"].nunique() > 1:
            for _, path in own.groupby("seed"):
                axes.plot(path[x], path[y], color=group.colour, lw=0.8, alpha=0.35)
        steps = own.groupby(at)
        mean = steps[[x, y]].mean()[steps.size() == own["seed"].nunique()]
        axes.plot(mean[x], mean[y], color=group.colour, lw=1.8, marker=group.marker, mec="white", mew=0.5, **marks)
    start = table[table[at] == table[at].min()]
    axes.plot(start[x].iloc[:1], start[y].iloc[:1], ls="", marker="o", mfc="white", mec="black", ms=6.5, zorder=5)


def from_zero(panels: Sequence[Axes], *, share: bool = False) -> None:
    """Let y start at 0, or at what lies below, after everything is drawn; shares of 1 end at 1 at most."""
    top = max(*(axes.dataLim.y1 for axes in panels), 0.1 if share else 1e-9, 0) * 1.08
    low = min(*(axes.dataLim.y0 for axes in panels), -0.02 * top if share else 0, 0)
    for axes in panels:
        axes.set_ylim(low, min(top, 1.02) if share else top)


def log_ticks(axis: Axis, *at: float, text: Callable[[float], str] = "{:g}".format) -> None:
    """Plain numbers at these multiples of the powers of ten, in place of 10^x."""
    axis.set_major_locator(LogLocator(subs=at))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def mark_stages(axes: Axes, line: Line, *, text: bool) -> None:
    """A vertical mark where a later stage begins, named if the group has the panel to itself."""
    for step, stage in line.group.later_stages:
        mean = full_mean(line.frame)
        if text:
            axes.axvline(step, color=GREY, lw=0.9, ls=(0, (2, 2)))
            axes.annotate(
                f"{stage} begins", (step, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                textcoords="offset points", va="top", fontsize=7.5, color=GREY,
            )  # fmt: skip
        elif len(mean):
            height = float(np.interp(step, mean.index.to_numpy(float), mean.to_numpy(float)))
            axes.plot([step], [height], marker="|", ms=13, mew=1.6, color=line.group.colour)


def base_level(runs: Sequence[Run], name: str) -> float | None:
    """The policy before training: the evaluations at step 0, which all runs of one start share."""
    frames = [stats.seed_curves([run], name) for run in runs]
    values = [frame.loc[0].to_numpy(float)[0] for frame in frames if 0 in frame.index]
    return float(np.mean(values)) if values else None


def level(axes: Axes, height: float | None, **options: Any) -> None:
    """A dashed grey line at a height, if there is one."""
    if height is not None:
        axes.axhline(height, **{"color": GREY, "ls": (0, (4, 3)), "lw": 1, **options})


# ---------------------------------------------------------------------- words


def method_handles(among: Sequence[Group], *, marker: bool = False) -> list[Artist]:
    """A legend's entries of groups."""
    return [
        Line2D(
            [], [], color=g.colour, lw=2, label=g.title, marker=g.marker if marker else "", ms=5, mec="white", mew=0.6
        )
        for g in among
    ]


BEFORE = {"marker": "o", "mfc": "white", "mec": "black", "ls": "", "label": "before training"}


def kind_handles(kinds: Collection[str], words: Mapping[str, str] = KIND_TITLES, colour: str = "") -> list[Artist]:
    """A legend's entries of token kinds, in one order; in shades of a colour where one method has the panel."""
    return [
        Line2D([], [], color=shade(colour, k) if colour else "black", ls=style, lw=1.8, label=words[k])
        for k, style in KIND_STYLES.items()
        if k in kinds
    ]


def counted(*counts: int, what: str = "seed") -> str:
    """``3 seeds``, ``1/3 seeds``."""
    several = sorted(set(counts))
    return f"{'/'.join(map(str, several))} {what}{'' if several == [1] else 's'}"


def interval(
    axes: Axes, row: Any, at: float, group: Group, mean: str = "mean", *, upright: bool = False, **look: Any
) -> None:
    """A row's mean with its interval, lying at a height or upright at a place."""
    bars = [[row[mean] - row["low"]], [row["high"] - row[mean]]]
    # A cross has nothing to fill.
    edge = {"mec": group.colour, "mew": 2} if group.marker == "x" else {"mec": "white", "mew": 0.8}
    look = {"color": group.colour, "marker": group.marker, "ms": 7, "lw": 1.8, "capsize": 3, **edge, **look}
    look |= {"yerr" if upright else "xerr": bars}
    axes.errorbar(*((at, row[mean]) if upright else (row[mean], at)), **look)


def seeds_of(among: Sequence[Group]) -> str:
    """How many seeds each group has; the base policy is not trained, so it has none to speak of."""
    counts = [len(group.runs) for group in among if group.method != "base"]
    return f"{counted(*counts)} {_unit(among)}" if counts else "base policy only"


def _unit(among: Sequence[Group]) -> str:
    return "per method" if all(group.name == group.method for group in among) else "each"


def note_of(lines: Sequence[Line], what: str = "", width: int = 1) -> str:
    """n, and how the lines were made."""
    trained = {line.group.title: len(line.frame.columns) for line in lines if line.group.method != "base"}
    parts = [what] if what else []
    if len(set(trained.values())) == 1:
        parts.append(f"{counted(*trained.values())} {_unit(groups_of(lines))}")
    elif trained:
        parts.append("seeds: " + ", ".join(f"{title} {count}" for title, count in trained.items()))
    most = max(trained.values(), default=0)
    smoothed = f"running mean of {width} steps" if width > 1 else ""
    if most > MANY_SEEDS:
        parts.append(f"line: mean{f' ({smoothed})' if smoothed else ''}, band: {stats.OVER_SEEDS}")
    elif most > 1:
        parts.append(f"thin: seeds, thick: their mean{f' ({smoothed})' if smoothed else ''}")
    elif smoothed:
        parts.append(f"thin: raw, thick: {smoothed}")
    return ", ".join(parts)


def stage_note(among: Sequence[Group], *, ticks: bool = True) -> str:
    """What a reader must know of runs with several stages."""
    note = " Vertical tick on a line: its next stage begins." if ticks and any(g.later_stages for g in among) else ""
    if {"sft", "sft_then_rft"} <= {group.method for group in among}:
        note += " SFT and the first stage of SFT→RFT are the same training, so their lines coincide there."
    return note


def k_of(runs: Sequence[Run]) -> str:
    return "/".join(str(k) for k in sorted({run.config.evaluation.k for run in runs}))


def problems_of(runs: Sequence[Run], part: str = "") -> str:
    """``64 problems``, as the evaluations over training say it, of a part of them (``hard``); empty without any."""
    names = f"{part}.problems" if part else "problems"
    counts = {int(n) for run in runs for n in stats.seed_curves([run], names).to_numpy(float).flat if n == n}
    return counted(*counts, what="problem") if counts else ""


def table_of(lines: Sequence[Line], width: int = 1) -> pd.DataFrame:
    """The numbers of a figure's lines: one row per step, mean and interval over seeds, and every seed."""
    parts = []
    for line in lines:
        table = stats.summarise_curve(line.frame)
        table.insert(0, "method", line.group.name)
        table.insert(1, "series", line.column)
        if width > 1:
            table["shown"] = full_mean(line.frame, width).reindex(line.frame.index).to_numpy()
        parts.append(table.assign(**{f"seed_{seed}": line.frame[seed].to_numpy() for seed in line.frame}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


# ---------------------------------------------------------------------- the frame of a figure


def new_figure(
    width: float,
    height: float,
    *,
    title: str,
    note: str,
    legend: Sequence[Artist] = (),
    rows: int = 1,
    columns: int = 1,
    **shape: Any,
) -> tuple[RunFigure, np.ndarray]:
    """A figure with title, note and legend in a head of its own above the panels, so that nothing covers data.

    Args:
        width, height: of the panels, inches; the head comes on top.
        legend: entries, in as many columns as fit.
        shape: passed to ``Figure.subplots``: height_ratios, width_ratios, sharex, sharey.
    """
    lines = textwrap.wrap(note, max(20, int(width * 15.5)))
    # About 0.062 inch per letter and 0.6 inch per handle.
    widest = max((0.6 + 0.062 * len(str(handle.get_label())) for handle in legend), default=1.0)
    across = max(1, min(len(legend), int(width / widest)))
    below = 0.36 + 0.165 * len(lines)
    head = below + 0.05 + 0.19 * math.ceil(len(legend) / across)
    total = height + head
    figure = RunFigure(figsize=(width, total), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.0, 0.0, 1.0, height / total), w_pad=0.06, h_pad=0.05)  # type: ignore[call-arg]
    left = 0.08 / width
    figure.text(left, 1 - 0.09 / total, escaped(title.replace(r"\$", "$")), fontsize=12, fontweight="bold", va="top")
    figure.text(left, 1 - 0.34 / total, "\n".join(lines), fontsize=8.5, color=GREY, va="top", linespacing=1.35)
    if legend:
        # Not loc="outside ...", which knows nothing of the layout's rect and would lie on the title.
        figure.legend(
            handles=list(legend), loc="upper left", ncols=across, frameon=False, fontsize=8.5, borderpad=0, handlelength=2.4,
            borderaxespad=0, columnspacing=1.4, labelspacing=0.3, bbox_to_anchor=(left, 1 - (below + 0.03) / total),
        ).set_in_layout(False)  # fmt: skip
    grid = figure.subplots(rows, columns, squeeze=False, **shape)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#d9d9d9", lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5, length=3)
        axes.xaxis.label.set_size(9)
        axes.yaxis.label.set_size(9)
    return figure, grid


def panel_title(axes: Axes, text: str, **options: Any) -> None:
    axes.set_title(text, loc="left", **{"fontsize": 9.5, **options})


def finish(figure: RunFigure, data: pd.DataFrame, caption: str) -> RunFigure:
    """Fix the layout once, so that saving twice gives the same bytes, and attach what the figure shows."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.data = data
    figure.caption = " ".join(caption.replace(r"\$", "$").replace(". .", ".").split())
    return figure
