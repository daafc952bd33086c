"""Figures of sweeps: differences to a control, scores against a dose, scores against what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from prefix_rft_lab.analysis import stats
from prefix_rft_lab.analysis.stats import Label
from prefix_rft_lab.core import columns
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.plots import base
from prefix_rft_lab.plots.base import GREY, Group, RunFigure, kit_style
from prefix_rft_lab.runs.run import Run


@kit_style
def forest(
    runs: Sequence[Run],
    control: str | Mapping[str, str],
    split: str = "test",
    metric: str = "avg",
    *,
    label: Label | None = None,
    against: str = "",
    groups: Mapping[str, Sequence[str]] | None = None,
) -> RunFigure:
    """How much every method (or label) differs from a control, with 95% intervals; filled where they leave out 0.

    Args:
        control: name of the group that is taken off, or of each group its own.
        against: how the control is called; its title if not given.
        groups: heading -> names below it, in the order of the figure; names that are not among the runs are left out, and
            names in no group come last.

    Raises:
        ConfigError, RunError: as :func:`prefix_rft_lab.analysis.stats.deltas`.
    """
    among = {group.name: group for group in base.groups(runs, label)}
    table = stats.deltas(runs, control, split, metric, label=label)
    if table.empty:
        raise ConfigError(f"control = {control!r} is the only one among the runs; add runs to compare with it")
    table = _grouped(table, groups or {})
    k, column = int(table["k"].iloc[0]), columns.column_of(metric)
    reference = base.escaped(against) or " or ".join(among[name].title for name in dict.fromkeys(table["control"]))
    note = (
        f"{split} split, {int(table['problems'].iloc[0])} problems, {base.seeds_of([*among.values()])}; bars: {stats.OVER_BOTH}; "
        "filled: the interval leaves out 0"
    )
    headings = [heading for heading in dict.fromkeys(table["group"]) if heading]
    height = 0.27 * (len(table) + len(headings)) + 0.75
    figure, grid = base.new_figure(7.5, height, title=f"{column.short(k)} against {reference}", note=note)
    axes = grid[0, 0]
    axes.axvline(0, color="black", lw=1)
    ticks, heading = [], ""
    for row in table.to_dict("records"):
        if row["group"] != heading:
            heading = row["group"]
            ticks.append(heading)
        group, clear = among[row["method"]], row["low"] > 0 or row["high"] < 0
        look: dict[str, Any] = {"mfc": group.colour if clear else "white", "mec": group.colour, "mew": 1.4, "ms": 6.5}
        base.interval(axes, row, len(ticks), group, mean="delta", **look)
        ticks.append(row["title"])
    axes.set_yticks(range(len(ticks)), ticks, parse_math=False)
    for text, tick in zip(ticks, axes.get_yticklabels(), strict=True):
        if text in headings:
            tick.set_fontweight("bold")
            tick.set_color(GREY)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(ticks) - 0.4, -0.6)
    axes.set_xlabel(f"difference in {column.axis(k)}, {reference} = 0")
    axes.grid(axis="y", visible=False)
    return base.finish(figure, table, f"Difference in {column.axis(k)} to {reference}: {note}.")


def _grouped(table: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Rows in the order of the groups, with a column ``group``; rows of no group last, under an empty heading."""
    place = {name: (at, heading) for at, (heading, names) in enumerate(groups.items()) for name in names}
    inside = {name: at for names in groups.values() for at, name in enumerate(names)}
    last = (len(groups), "")
    table = table.assign(group=[place.get(name, last)[1] for name in table["method"]])
    order = sorted(
        range(len(table)), key=lambda i: (place.get(table["method"][i], last)[0], inside.get(table["method"][i], i))
    )
    return table.iloc[order].reset_index(drop=True)


@kit_style
def dose_response(
    runs: Sequence[Run],
    dose: Callable[[Run], float],
    split: str = "test",
    metric: str = "avg",
    *,
    what: str,
    controls: Sequence[Run] = (),
    log: bool = True,
    ticks: Callable[[float], str] = "{:g}".format,
    label: Label | None = None,
    names: Callable[[Run], str] | None = None,
) -> RunFigure:
    """A score against a dose (a fraction, a quality): one line per method with 95% bands, single seeds as dots.

    Args:
        dose: the dose that a run got, e.g. ``lambda run: run.config.data.demonstration_fraction``.
        what: what the dose is, with its unit, for the axis.
        controls: runs without a dose, one config per method: dashed level lines.
        log: whether the dose has a logarithmic axis.
        ticks: how a dose is written on the axis.
        label: distinguishes configs of one method and one dose, which are then points without a line.
        names: a word for a run's dose, written at its place.

    Raises:
        ConfigError: no runs, a dose that is not above 0 on a logarithmic axis, or runs that were not evaluated alike.
        RunError: a run has no evaluation of this split.
    """
    if log and (low := min((dose(run) for run in runs), default=1.0)) <= 0:
        raise ConfigError(f"dose = {low:g} has no place on a logarithmic axis; give it as a control, or use log=False")
    own = label or (lambda run: f"{run.title}, {dose(run):.6g}")
    keys = {own(run): (run.method, dose(run)) for run in runs}
    levels = {f"{run.title} (control)": run.method for run in controls}
    inside = {id(run) for run in runs}

    def group_of(run: Run) -> str:
        return own(run) if id(run) in inside else f"{run.title} (control)"

    everyone = [*runs, *controls]
    table = stats.compare(everyone, split, metric, label=group_of)
    measured = stats.scores(everyone, split, label=group_of)
    members = {group.name: group for group in base.groups(everyone, group_of)}
    table.insert(0, "name", table["method"])
    table["method"] = [keys[name][0] if name in keys else levels[name] for name in table["name"]]
    table.insert(2, "dose", [keys[name][1] if name in keys else np.nan for name in table["name"]])
    table = table.sort_values(["method", "dose"], ignore_index=True)
    # A line is a method here, so that it has the method's look.
    looks = {run.method: base.method_looks().get(run.method, base.ARM_STYLES[0]) for run in everyone}
    lines = {
        run.method: Group(run.method, base.escaped(run.title), run.method, (), *looks[run.method]) for run in everyone
    }
    methods = [lines[method] for method in dict.fromkeys(run.method for run in runs)]
    k, column = int(table["k"].iloc[0]), columns.column_of(metric)
    bars = "bars" if label else "bands"
    note = f"{split} split, {int(table['problems'].iloc[0])} problems, {base.seeds_of([*members.values()])}; dots: seeds, {bars}: {stats.OVER_BOTH}"
    legend = base.method_handles(methods, marker=True)
    legend += [
        Line2D([], [], color=lines[m].colour, ls=(0, (4, 3)), lw=1.2, label=f"{lines[m].title} (control)")
        for m in levels.values()
    ]
    title = f"{column.short(k)} against {what.partition(' (')[0]}"
    figure, grid = base.new_figure(7.5, 3.5, title=title, note=note, legend=legend)
    axes = grid[0, 0]
    for method in levels.values():
        known = table[(table["method"] == method) & table["dose"].isna()].iloc[0]
        axes.axhspan(known["low"], known["high"], color=lines[method].colour, alpha=0.08, lw=0)
        base.level(axes, known["mean"], color=lines[method].colour, lw=1.2)
    for group in methods:
        part = table[(table["method"] == group.name) & table["dose"].notna()]
        if label is None:
            axes.fill_between(part["dose"], part["low"], part["high"], color=group.colour, alpha=0.13, lw=0)
            axes.plot(
                part["dose"], part["mean"], color=group.colour, lw=1.8, marker=group.marker, ms=6, mec="white", mew=0.6
            )
        for row in part.to_dict("records"):
            if label is not None:
                base.interval(axes, row, row["dose"], group, upright=True, ms=6, lw=1.4)
            seeds = stats.matrix(measured, row["name"], metric).mean(axis=1)
            if len(seeds) > 1:
                axes.plot(
                    [row["dose"]] * len(seeds), seeds, ls="", marker="o", ms=3, color=group.colour, alpha=0.5, mew=0
                )
            for run, score in zip(members[row["name"]].runs, seeds, strict=True):
                table.loc[table["name"] == row["name"], f"seed_{run.seed}"] = float(score)
    doses = sorted(table["dose"].dropna().unique())
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if names is None:
        axes.set_xticks(doses, [ticks(value) for value in doses])
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: ticks(value)))
        words: dict[float, dict[str, None]] = {}
        for run in runs:
            words.setdefault(dose(run), {})[names(run)] = None
        for value, these in words.items():
            axes.annotate(
                ", ".join(these), (value, 0.02), xycoords=("data", "axes fraction"), xytext=(-3, 0),
                textcoords="offset points", rotation=90, fontsize=7.5, color=GREY, ha="right", va="bottom",
                parse_math=False,
            )  # fmt: skip
    axes.set(xlabel=what + (", logarithmic" if log else ""), ylabel=column.axis(k))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    caption = f"{column.axis(k)} against {what}: {note}."
    return base.finish(figure, table.drop(columns="name"), caption)


@kit_style
def score_against_cost(
    runs: Sequence[Run], column: str = "avg", cost: str = "tokens", *, label: Label | None = None
) -> RunFigure:
    """A column of the evaluations on the validation split against what training had cost: read upwards at one cost.

    Args:
        column: as :func:`prefix_rft_lab.plots.learning_curves` takes it.
        cost: a name of :data:`prefix_rft_lab.analysis.stats.COSTS`.

    Raises:
        ConfigError: as :func:`prefix_rft_lab.analysis.stats.cost_curve`.
    """
    table = stats.cost_curve(runs, column, cost, label=label)
    trained = [g for g in base.groups(runs, label) if (table["method"].eq(g.name) & table["cost"].gt(0)).any()]
    if not trained:
        raise ConfigError("runs were not trained, so nothing was spent; add runs of a method with steps")
    note = (
        f"validation split, {base.problems_of(runs)}, {base.seeds_of(trained)}; lines: means over seeds at each evaluation, bars at their "
        f"ends: {stats.OVER_SEEDS}; dashed grey: before training"
    )
    shown = columns.column_of(column)
    title = f"{shown.short(base.k_of(runs))} against {stats.COSTS[cost].partition(' (')[0]}"
    figure, grid = base.new_figure(7.5, 3.8, title=title, note=note, legend=base.method_handles(trained, marker=True))
    axes = grid[0, 0]
    start = table.loc[table["cost"] == 0, "mean"]
    base.level(axes, float(start.mean()) if len(start) else None)
    for group in trained:
        part = table[(table["method"] == group.name) & (table["cost"] > 0)]
        axes.plot(part["cost"], part["mean"], color=group.colour, lw=1.5, marker=group.marker, ms=3.5, alpha=0.9, mew=0)
        end = part.iloc[-1].fillna({"low": part["mean"].iloc[-1], "high": part["mean"].iloc[-1]})
        base.interval(axes, end.to_dict(), end["cost"], group, upright=True, ms=8)
    axes.set_xscale("log")
    base.log_ticks(axes.xaxis, 1, 2, 5, text=_short)
    axes.set(xlabel=f"{stats.COSTS[cost]}, logarithmic", ylabel=shown.axis(base.k_of(runs)))
    caption = f"{shown.short(base.k_of(runs))} on the validation split against {stats.COSTS[cost]}: {note}."
    return base.finish(figure, table, caption)


def _short(value: float) -> str:
    """``200000`` -> ``200k``."""
    power = next((p for p in ("M", "k") if value >= {"M": 1e6, "k": 1e3}[p]), "")
    return f"{value / {'M': 1e6, 'k': 1e3, '': 1}[power]:g}{power}"
