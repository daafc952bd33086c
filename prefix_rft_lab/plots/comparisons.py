"""Figures of sweeps: differences to a control, scores against a dose, scores against what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from prefix_rft_lab.analysis import stats
from prefix_rft_lab.analysis.stats import Label
from prefix_rft_lab.core import columns
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.plots.base import (
    GREY,
    RunFigure,
    axis_label,
    escaped,
    finish,
    kit_style,
    new_figure,
    problems_of,
    seed_counts,
    short_label,
    style_of,
)
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
    members = stats.group(runs, label)
    table = stats.deltas(runs, control, split, metric, label=label)
    if table.empty:
        raise ConfigError(f"control = {control!r} is the only one among the runs; add runs to compare with it")
    table = _grouped(table, groups or {})
    controls = list(dict.fromkeys(table["control"]))
    reference = escaped(against or " or ".join(stats.title(name, members[name]) for name in controls))
    name = stats.metric_name(metric, int(table["k"].iloc[0]))
    note = (
        f"{split} split, {int(table['problems'].iloc[0])} problems, {_counts(members)}; bars: {stats.OVER_BOTH}; filled: the interval "
        "leaves out 0"
    )
    headings = [heading for heading in dict.fromkeys(table["group"]) if heading]
    figure, grid = new_figure(
        7.5, 0.27 * (len(table) + len(headings)) + 0.75, title=f"{name} against {reference}", note=note
    )
    axes = grid[0, 0]
    axes.axvline(0, color="black", lw=1)
    place, ticks = 0, []
    heading = ""
    for row in table.to_dict("records"):
        if row["group"] != heading:
            heading = row["group"]
            ticks.append((place, heading))
            place += 1
        colour, _ = style_of(members[row["method"]][0], members[row["method"]][0].method, None)
        clear = row["low"] > 0 or row["high"] < 0
        axes.errorbar(
            [row["delta"]],
            [place],
            xerr=[[row["delta"] - row["low"]], [row["high"] - row["delta"]]],
            color=colour, marker="o", ms=6.5, lw=1.8, capsize=3, mfc=colour if clear else "white", mec=colour, mew=1.4,
        )  # fmt: skip
        ticks.append((place, row["title"]))
        place += 1
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks], parse_math=False)
    for (_, text), tick in zip(ticks, axes.get_yticklabels(), strict=True):
        if text in headings:
            tick.set_fontweight("bold")
            tick.set_color(GREY)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.4, -0.6)
    what = columns.column_of(metric).axis(int(table["k"].iloc[0]))
    axes.set_xlabel(f"difference in {what}, {reference} = 0")
    axes.grid(axis="y", visible=False)
    return finish(figure, table, f"Difference in {what} to {reference}: {note}.")


def _counts(groups: Mapping[str, Sequence[Run]]) -> str:
    seeds = [len(members) for members in groups.values()]
    return seed_counts(pd.DataFrame({"method": [members[0].method for members in groups.values()], "seeds": seeds}))


def _grouped(table: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Rows in the order of the groups, with a column ``group``; rows of no group last, under an empty heading."""
    place = {name: (at, heading) for at, (heading, names) in enumerate(groups.items()) for name in names}
    inside = {name: at for names in groups.values() for at, name in enumerate(names)}
    last = (len(groups), "")
    table = table.assign(group=[place.get(name, last)[1] for name in table["method"]])
    order = sorted(
        range(len(table)),
        key=lambda i: (place.get(table["method"][i], last)[0], inside.get(table["method"][i], i)),
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
    """A score against a dose (a fraction, a quality): a line a method with 95% bands, single seeds as dots.

    Args:
        dose: the dose that a run got, e.g. ``lambda run: run.config.data.demonstration_fraction``.
        what: what the dose is, with its unit, for the axis.
        controls: runs without a dose, one config a method: dashed level lines.
        log: whether the dose has a logarithmic axis.
        ticks: how a dose is written on the axis.
        label: tells configs of one method and one dose apart, which are then points without a line.
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
    groups = stats.group(everyone, group_of)
    table.insert(0, "name", table["method"])
    table["method"] = [keys[name][0] if name in keys else levels[name] for name in table["name"]]
    table.insert(2, "dose", [keys[name][1] if name in keys else np.nan for name in table["name"]])
    table = table.sort_values(["method", "dose"], ignore_index=True)
    methods = list(dict.fromkeys(run.method for run in runs))
    titles = {run.method: run.title for run in everyone}
    styles = {run.method: style_of(run, run.method, None) for run in everyone}
    k = int(table["k"].iloc[0])
    counts = _counts(groups)
    note = f"{split} split, {int(table['problems'].iloc[0])} problems, {counts}; dots: seeds, {'bars' if label else 'bands'}: {stats.OVER_BOTH}"
    handles = [
        Line2D([], [], color=styles[m][0], marker=styles[m][1], ms=5, lw=1.8, label=escaped(titles[m])) for m in methods
    ]
    handles += [
        Line2D([], [], color=styles[m][0], ls=(0, (4, 3)), lw=1.2, label=f"{escaped(titles[m])} (control)")
        for m in levels.values()
    ]
    name = stats.metric_name(metric, k)
    figure, grid = new_figure(7.5, 3.5, title=f"{name} against {what.partition(' (')[0]}", note=note, legends=[handles])
    axes = grid[0, 0]
    for level in levels.values():
        known = table[(table["method"] == level) & table["dose"].isna()].iloc[0]
        axes.axhspan(known["low"], known["high"], color=styles[level][0], alpha=0.08, lw=0)
        axes.axhline(known["mean"], color=styles[level][0], ls=(0, (4, 3)), lw=1.2)
    for method in methods:
        part = table[(table["method"] == method) & table["dose"].notna()]
        colour, marker = styles[method]
        if label is None:
            axes.fill_between(part["dose"], part["low"], part["high"], color=colour, alpha=0.13, lw=0)
            axes.plot(part["dose"], part["mean"], color=colour, lw=1.8, marker=marker, ms=6, mec="white", mew=0.6)
        else:
            bars = [part["mean"] - part["low"], part["high"] - part["mean"]]
            axes.errorbar(
                part["dose"], part["mean"], yerr=bars, color=colour, ls="", marker=marker, ms=6, mec="white", mew=0.6,
                lw=1.4, capsize=3,
            )  # fmt: skip
        for row in part.to_dict("records"):
            by_seed = stats.matrix(measured, row["name"], metric).mean(axis=1)
            if len(by_seed) > 1:
                axes.plot(
                    [row["dose"]] * len(by_seed), by_seed, ls="", marker="o", ms=3, color=colour, alpha=0.5, mew=0
                )
            for run, score in zip(groups[row["name"]], by_seed, strict=True):
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
    axes.set(xlabel=what + (", logarithmic" if log else ""), ylabel=columns.column_of(metric).axis(k))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    caption = f"{columns.column_of(metric).axis(k)} against {what}: {note}."
    return finish(figure, table.drop(columns="name"), caption)


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
    groups = stats.group(runs, label)
    table = stats.cost_curve(runs, column, cost, label=label)
    trained = [name for name in groups if (table["method"].eq(name) & table["cost"].gt(0)).any()]
    if not trained:
        raise ConfigError("runs were not trained, so nothing was spent; add runs of a method with steps")
    note = (
        f"validation split, {problems_of(runs)}, {_counts(groups)}; lines: means over seeds at each evaluation, bars at their "
        f"ends: {stats.OVER_SEEDS}; dashed grey: before training"
    )
    styles = {name: style_of(groups[name][0], name, label, place) for place, name in enumerate(groups)}
    handles = [
        Line2D([], [], color=styles[n][0], marker=styles[n][1], ms=5, lw=1.8, label=escaped(stats.title(n, groups[n])))
        for n in trained
    ]
    shown = short_label(column, runs)
    figure, grid = new_figure(
        7.5, 3.8, title=f"{shown} against {stats.COSTS[cost].partition(' (')[0]}", note=note, legends=[handles]
    )
    axes = grid[0, 0]
    start = table.loc[table["cost"] == 0, "mean"]
    if len(start):
        axes.axhline(float(start.mean()), color=GREY, ls=(0, (4, 3)), lw=1)
    for name in trained:
        part = table[(table["method"] == name) & (table["cost"] > 0)]
        colour, marker = styles[name]
        axes.plot(part["cost"], part["mean"], color=colour, lw=1.5, marker=marker, ms=3.5, alpha=0.9, mew=0)
        end = part.iloc[-1]
        bars = None if np.isnan(end["low"]) else [[end["mean"] - end["low"]], [end["high"] - end["mean"]]]
        axes.errorbar(
            [end["cost"]], [end["mean"]], yerr=bars, color=colour, marker=marker, ms=8, mec="white", mew=0.8, capsize=3,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set(
        xlabel=f"{stats.COSTS[cost]}, logarithmic",
        ylabel=axis_label(column, runs),
    )
    caption = f"{shown} on the validation split against {stats.COSTS[cost]}: {note}."
    return finish(figure, table, caption)


def _short(value: float) -> str:
    """``200000`` -> ``200k``."""
    power = next((p for p in ("M", "k") if value >= {"M": 1e6, "k": 1e3}[p]), "")
    return f"{value / {'M': 1e6, 'k': 1e3, '': 1}[power]:g}{power}"
