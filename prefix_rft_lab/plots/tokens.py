"""Figures of token tables: where in a response the policy is sure, what the clip keeps, and how that changes."""

from __future__ import annotations

import numpy as np
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from prefix_rft_lab.plots.base import OKABE_ITO, RunFigure, finish, new_figure, run_name, visible
from prefix_rft_lab.runs import Run, RunError

# ---------------------------------------------------------------------- tokens of one run


def kept_tokens(run: Run, *, most: int = 12) -> RunFigure:
    """Which prefix tokens the entropy clip keeps: entropy against place in the prefix, and the texts kept most.

    Args:
        run: one that recorded token tables (``records.tokens_every``) of a method with prefixes.
        most: number of token texts in the right panel.

    Raises:
        RunError: the run recorded no prefix tokens of hybrid rows.
    """
    table = run.tokens
    if table.empty:
        raise RunError(f"{run_name(run)} recorded no tokens; set records.tokens_every above 0 and train it")
    rows = ["step", "problem", "row"]
    hybrid = table.groupby(rows)["kind"].transform(lambda kinds: (kinds == "continuation").any())
    table = table[hybrid & (table["kind"] == "prefix")].copy()
    if table.empty:
        raise RunError(f"{run_name(run)} recorded no prefix tokens; take a run of a method with prefixes (prefix_rft)")
    size = table.groupby(rows)["position"].transform("max")
    table["place"] = np.where(size > 0, table["position"] / size.clip(lower=1), 0.0)
    steps = table["step"].nunique()
    note = f"{len(table)} prefix tokens of {steps} recorded steps, seed {run.seed}; {table['kept'].mean():.0%} kept"
    colours = {True: OKABE_ITO["vermilion"], False: OKABE_ITO["sky"]}
    handles: list[Artist] = [
        Line2D([], [], ls="", marker="o", ms=5, color=colours[True], label="kept: trained with the advantage"),
        Line2D([], [], ls="", marker="x", ms=5, color=colours[False], label="clipped: advantage 0"),
    ]
    figure, grid = new_figure(
        9, 3.6, title=f"Prefix tokens kept by the entropy clip: {run.title}", note=note, legends=[handles], columns=2,
        ratios=[1.5, 1],
    )  # fmt: skip
    left, right = grid[0]
    for kept, marker in ((False, "x"), (True, "o")):
        part = table[table["kept"] == kept]
        left.scatter(part["place"], part["entropy"], s=11, marker=marker, color=colours[kept], alpha=0.7, lw=0.8)
    left.set(xlabel="place in the prefix (0 first token, 1 last)", ylabel="entropy before the token (nats)")
    left.set_ylim(bottom=-0.02 * max(float(table["entropy"].max()), 1e-9))
    texts = (
        table.groupby("text", sort=True)["kept"]
        .agg(kept="sum", seen="size")
        .reset_index()
        .sort_values(["kept", "seen", "text"], ascending=[False, True, True])
    )
    top = texts[texts["kept"] > 0].head(most).iloc[::-1]
    places = np.arange(len(top))
    right.barh(places, top["seen"], color=colours[False], alpha=0.45, height=0.72)
    right.barh(places, top["kept"], color=colours[True], height=0.72)
    right.set_yticks(places, [visible(text) for text in top["text"]], fontfamily="monospace")
    for tick in right.get_yticklabels():
        # Token texts are data: a dollar sign isn't mathematics.
        tick.set_parse_math(False)
    for place, (kept, seen) in enumerate(zip(top["kept"], top["seen"], strict=True)):
        right.annotate(
            f"{kept}/{seen}", (seen, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    right.margins(x=0.16)
    right.grid(axis="y", visible=False)
    right.set(xlabel="prefix tokens (kept / seen)")
    right.set_title("Kept most often", loc="left", fontsize=9.5)
    left.set_title("Every recorded prefix token", loc="left", fontsize=9.5)
    right.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    caption = f"Left: entropy in nats against place in the prefix, kept and clipped tokens. Right: the texts kept most. {note}."
    data = table[["step", "problem", "row", "position", "place", "text", "entropy", "kept"]].reset_index(drop=True)
    return finish(figure, data, caption)
