"""Figures of final scores."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from prefix_rft_lab.analysis import stats
from prefix_rft_lab.analysis.stats import Label
from prefix_rft_lab.core.columns import column_of
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.plots import base
from prefix_rft_lab.plots.base import OKABE_ITO, RunFigure, kit_style
from prefix_rft_lab.runs.run import Run

# ---------------------------------------------------------------------- final scores


@kit_style
def final_scores(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> RunFigure:
    """Final score of every method with its 95% interval, single seeds as dots."""
    among = {group.name: group for group in base.groups(runs, label)}
    table = stats.compare(runs, split, metric, label=label)
    measured = stats.scores(runs, split, label=label)
    k, column = int(table["k"].iloc[0]), column_of(metric)
    note = f"{split} split, {int(table['problems'].iloc[0])} problems, {base.seeds_of([*among.values()])}; bars: {stats.OVER_BOTH}"
    figure, grid = base.new_figure(
        7.5, 0.52 * len(table) + 0.75, title=f"Final {column.short(k)} on {split}", note=note
    )
    axes = grid[0, 0]
    data = table[["method", "title", "seeds", "problems", "mean", "low", "high", "over"]].copy()
    for place, row in enumerate(table.to_dict("records")):
        group = among[row["method"]]
        seeds = stats.matrix(measured, group.name, metric).mean(axis=1)
        if len(seeds) > 1:
            # Fixed offsets: dots of equal scores stay apart without chance.
            dots = place + np.linspace(-0.2, 0.2, len(seeds))
            axes.plot(seeds, dots, ls="", marker="o", ms=4, color=group.colour, alpha=0.6, mew=0)
        base.interval(axes, row, place, group, capsize=4)
        text = f"{row['mean']:{column.format}}"
        at: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(text, (row["high"], place), **at)
        for run, score in zip(group.runs, seeds, strict=True):
            data.loc[data["method"] == group.name, f"seed_{run.seed}"] = float(score)
    axes.set_yticks(range(len(table)), list(table["title"]), parse_math=False)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel(column.axis(k))
    axes.grid(axis="y", visible=False)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0), high + 0.06 * (high - min(low, 0)))
    return base.finish(figure, data, f"{column.short(k)} of each: {note}.")


VERDICT_STYLES = {
    "supported": (OKABE_ITO["blue"], "o"),
    "contradicted": (OKABE_ITO["vermilion"], "X"),
    "undecided": ("#595959", "s"),
}
"""Verdict -> colour and marker."""


@kit_style
def verdicts(table: pd.DataFrame) -> RunFigure:
    """Every judged claim: effect in the claimed direction over the smallest that matters, with its corrected interval.

    Divided by the smallest effect (by the half width of the range, around its middle, where a range was claimed), claims
    in shares, tokens and nats share an axis. Thick: the plain 95% interval.

    Args:
        table: of :func:`prefix_rft_lab.analysis.claims.verdict_table`.

    Claims that are not judged, since their arms were not tuned, are counted in the caption.

    Raises:
        ConfigError: every claim is missing.
    """
    shown = table[(table["verdict"] != "missing") & table["effect"].notna()].reset_index(drop=True)
    borrowed = int((table["verdict"] == "not judged").sum())
    if shown.empty and not borrowed:
        raise ConfigError("table = no judged claim; train the runs that the missing ones name")
    note = "1: the smallest effect that matters; thin: interval corrected for all claims, thick: plain 95%"
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="", ms=7, mec="white", label=name)
        for name, (colour, marker) in VERDICT_STYLES.items()
        if (shown["verdict"] == name).any()
    ]
    figure, grid = base.new_figure(
        9.5, 0.34 * max(len(shown), 1) + 0.9, title="Claims and what the runs say", note=note, legend=handles
    )
    axes = grid[0, 0]
    ranged = shown["lowest"].notna()
    centre = ((shown["lowest"] + shown["highest"]) / 2).where(ranged, 0.0)
    scale = ((shown["highest"] - shown["lowest"]) / 2).where(ranged, shown["smallest"])
    data = shown[["id", "claim", "verdict", "effect", "low", "high", "alone_low", "alone_high"]].copy()
    for column in ("effect", "low", "high", "alone_low", "alone_high"):
        data[f"scaled_{column}"] = (shown[column] - centre) / scale
    # A claim of no loss ends at -1; one of a range lies within -1 and 1.
    edges = [
        (-1.0, 1.0) if inside else (-1.0,) if test == "no_worse" else (1.0,)
        for inside, test in zip(ranged, shown["test"], strict=True)
    ]
    axes.axvline(0, color="#595959", lw=0.8)
    for place, row in enumerate(data.to_dict("records")):
        colour, marker = VERDICT_STYLES[str(row["verdict"])]
        for edge in edges[place]:
            axes.plot([edge, edge], [place - 0.42, place + 0.42], color="black", lw=1.4)
        axes.plot([row["scaled_low"], row["scaled_high"]], [place, place], color=colour, lw=1.2)
        axes.plot([row["scaled_alone_low"], row["scaled_alone_high"]], [place, place], color=colour, lw=3.2, alpha=0.55)
        axes.plot([row["scaled_effect"]], [place], ls="", marker=marker, ms=7, color=colour, mec="white", mew=0.8)
    # Far beyond the smallest effect, how far says little.
    axes.set_xscale("symlog", linthresh=2, linscale=1.5)
    axes.xaxis.set_major_formatter("{x:g}")
    # Claims differ at their end, so they are wrapped and not cut.
    names = ["\n".join(textwrap.wrap(text, 58, break_on_hyphens=False)) for text in shown["claim"]]
    axes.set_yticks(range(len(shown)), names, parse_math=False, fontsize=8)
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    axes.set_xlabel("effect as claimed / smallest effect that matters")
    axes.grid(axis="y", visible=False)
    counts = ", ".join(f"{int((shown['verdict'] == name).sum())} {name}" for name in VERDICT_STYLES)
    counts += f", {borrowed} not judged" * bool(borrowed)
    return base.finish(figure, data, f"Claims: {counts}; {note}. The black bar is what a claim has to pass.")


@kit_style
def pass_at_k(runs: Sequence[Run], split: str = "test", *, label: Label | None = None) -> RunFigure:
    """Unbiased pass@k for k = 1 to the number of samples, with 95% bands."""
    among = base.groups(runs, label)
    table = stats.pass_curve(runs, split, label=label)
    problems = stats.scores(runs, split, label=label)["problem"].nunique()
    # A table of many samples (evaluation_run.sample_all) names no split of its own.
    where = among[0].runs[0].evaluation(split)["split"].iloc[0]
    note = f"{where} split, {problems} problems, {base.seeds_of(among)}; bands: {stats.OVER_BOTH}"
    legend = base.method_handles(among, marker=True)
    figure, grid = base.new_figure(7.5, 3.4, title=f"pass@k on {where}", note=note, legend=legend)
    axes = grid[0, 0]
    for group in among:
        part = table[table["method"] == group.name]
        axes.fill_between(part["k"], part["low"], part["high"], color=group.colour, alpha=0.13, lw=0)
        doubled = [place for place, k in enumerate(part["k"]) if int(k).bit_count() == 1]
        axes.plot(part["k"], part["mean"], color=group.colour, lw=1.8, marker=group.marker, ms=4.5, markevery=doubled)
    most = int(table["k"].max())
    if most > 2:
        axes.set_xscale("log", base=2)
        ticks = [2**i for i in range(int(math.log2(most)) + 1)]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
    axes.set(
        xlabel="k (samples per problem, logarithmic)", ylabel="pass@k (share of problems solved)", ylim=(-0.02, 1.02)
    )
    caption = f"Unbiased pass@k (share of problems solved in k tries) against k: {note}."
    return base.finish(figure, table, caption)
