"""Figures of token tables: where in a response the policy is sure, what the clip keeps, and how that changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from prefix_rft_lab.analysis import entropy_analysis as analysis
from prefix_rft_lab.analysis import stats
from prefix_rft_lab.analysis.stats import Label
from prefix_rft_lab.core.columns import EVALUATIONS, METRICS
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.plots import base
from prefix_rft_lab.plots.base import GREY, KIND_STYLES, KIND_TITLES, OKABE_ITO, Group, RunFigure, kit_style
from prefix_rft_lab.runs.run import Run

STEP = METRICS["global_step"].label
Parts = list[tuple[Group, pd.DataFrame]]
"""Groups, and a table of each."""


def tokens_of(runs: Sequence[Run]) -> pd.DataFrame:
    """The token tables of runs that share a vocabulary, joined.

    Raises:
        ConfigError: runs of different vocabularies.
        RunError: none of them recorded tokens.
    """
    other = next((run for run in runs if run.tokenizer != runs[0].tokenizer), None)
    if other is not None:
        first = runs[0]
        raise ConfigError(
            f"{base.run_name(first)} and {base.run_name(other)} have different vocabularies ({first.tokenizer or 'not recorded'}, "
            f"{other.tokenizer or 'not recorded'}), so their tokens cannot be joined; give runs of one model"
        )
    parts = [table for table in (run.tokens for run in runs) if len(table)]
    if not parts:
        raise RunError(
            f"{base.run_name(runs[0])} recorded no tokens{' yet' if not runs[0].done else ''}; set records.tokens_every above 0 "
            "and train it"
        )
    return pd.concat(parts, ignore_index=True)


def _each(runs: Sequence[Run], label: Label | None, of: Callable[[pd.DataFrame], pd.DataFrame]) -> Parts:
    """What a function says of the tokens of each group, its seeds together."""
    return [(group, of(tokens_of(group.runs))) for group in base.groups(runs, label)]


def _followed(runs: Sequence[Run], label: Label | None, of: Callable[[pd.DataFrame], pd.DataFrame]) -> Parts:
    """What a function says of the followed demonstrations of each run, joined by group with a column ``seed``; groups
    without any are left out."""
    out = []
    for group in base.groups(runs, label):
        tables = [(run.seed, run.tokens) for run in group.runs]
        tables = [(seed, table[table["entropy_after"].notna()]) for seed, table in tables]
        parts = [of(table).assign(seed=seed) for seed, table in tables if len(table)]
        if parts:
            out.append((group, pd.concat(parts, ignore_index=True).assign(method=group.name)))
    if not out:
        raise base.nothing_recorded(runs, "followed demonstrations (records.followed, records.tokens_every)")
    return out


def _joined(parts: Parts) -> pd.DataFrame:
    """The numbers of a figure; who they are of where there are several groups."""
    if len(parts) == 1:
        return parts[0][1]
    return pd.concat([table.assign(method=group.name) for group, table in parts], ignore_index=True)


def _frame(
    parts: Parts,
    title: str,
    height: float,
    note: str,
    legend: Sequence[Artist] = (),
    *,
    width: float = 8.5,
    **shape: Any,
) -> tuple[RunFigure, np.ndarray]:
    """A row of panels for each group, named in the title where there is one."""
    shape = {"rows": len(parts), "sharex": "col", "sharey": "col", **shape}
    alone = f": {parts[0][0].title}" if len(parts) == 1 else ""
    return base.new_figure(
        width, height, title=f"{title}{alone}", note=f"{note}, {_seeds(parts)}", legend=legend, **shape
    )


def _seeds(parts: Parts) -> str:
    return parts[0][0].seeds if len(parts) == 1 else base.seeds_of([group for group, _ in parts])


def _who(parts: Parts) -> str:
    return f"{', '.join(group.title for group, _ in parts)}, {_seeds(parts)}"


def _named(axes: Axes, group: Group, parts: Parts, text: str = "") -> None:
    """A panel's title: the group too where there are several."""
    if len(parts) == 1:
        base.panel_title(axes, text)
    else:
        base.panel_title(axes, ": ".join(filter(None, (group.title, text))), color=group.colour)


def _shades(parts: Parts, kinds: Sequence[str]) -> list[Artist]:
    return base.kind_handles(kinds, colour=parts[0][0].colour if len(parts) == 1 else "")


@dataclass(frozen=True, slots=True)
class Card:
    """A panel that every group has in its row: what it draws of the group's table, and its axes."""

    draw: Callable[[Axes, Group, pd.DataFrame], object]
    across: str
    up: str = ""
    title: str = ""
    zero: bool = False
    """Whether y begins at 0."""


def _rows(
    parts: Parts, cards: Sequence[Card], title: str, *, note: str, caption: str, height: float = 3.0, **frame: Any
) -> RunFigure:
    """A row of cards for each group."""
    figure, grid = _frame(parts, title, height * len(parts), note, columns=len(cards), **frame)
    for row, (group, table) in zip(grid, parts, strict=True):
        for axes, card in zip(row, cards, strict=True):
            card.draw(axes, group, table)
            axes.set_ylabel(card.up)
            _named(axes, group, parts, card.title)
    for column, card in zip(grid.T, cards, strict=True):
        column[-1].set_xlabel(card.across)
        if card.zero:
            base.from_zero(list(column))
    return base.finish(figure, _joined(parts), f"{caption} {_who(parts)}; {note}.")


def _outer(grid: np.ndarray, across: str, up: str, count: int) -> None:
    """Labels outside of a grid whose first panels are used."""
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < count)
        if place < count <= place + grid.shape[1]:
            axes.set_xlabel(across)
            axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel(up)


def _named_ticks(axis: Axis, texts: Sequence[str] | pd.Series) -> None:
    """Token texts as ticks 0, 1, ...; they are data, so a dollar sign isn't mathematics."""
    axis.set_ticks(range(len(texts)), [base.visible(text) for text in texts], fontfamily="monospace")
    for label in axis.get_ticklabels():
        label.set_parse_math(False)


def _beside(axes: Axes, text: str, x: float, y: float) -> None:
    """A small word to the right of a bar's end."""
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5)


# ---------------------------------------------------------------------- distribution over training


@kit_style
def entropy_quantiles(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """How the entropies of the tokens of each kind are distributed at each recorded step, with the clip's threshold.

    Args:
        runs: seeds are pooled.
    """
    parts = _each(runs, label, analysis.entropy_quantiles)
    panels = [(g, kind, t) for g, t in parts for kind in analysis.KINDS if (t["kind"] == kind).any()]
    thresholds = {group.name: stats.seed_curves(group.runs, "kept_threshold", "metrics") for group, _ in parts}
    colour = parts[0][0].colour if len(parts) == 1 else GREY
    clipped = any(len(threshold) for threshold in thresholds.values())
    legend: list[Artist] = [
        Patch(facecolor=colour, alpha=0.2, label="10% to 90%"),
        Patch(facecolor=colour, alpha=0.45, label="25% to 75%"),
        Line2D([], [], color="black", lw=1.6, label="mean"),
        Line2D([], [], color=colour, lw=1.2, marker=".", label="median"),
    ]
    if clipped:
        legend.append(Line2D([], [], color=GREY, lw=0.8, label="threshold of the clip (all prefix tokens of a step)"))
    rows, note = math.ceil(len(panels) / 2), f"{sum(int(t['tokens'].sum()) for _, t in parts)} recorded tokens"
    figure, grid = _frame(
        parts, "Distribution of entropy over training", 2.6 * rows, note, legend, rows=rows,
        columns=min(2, len(panels)), sharex=True, sharey=True,
    )  # fmt: skip
    for axes, (group, kind, table) in zip(grid.flat, panels, strict=False):
        own = table[table["kind"] == kind]
        axes.fill_between(own["step"], own["q10"], own["q90"], color=group.colour, alpha=0.2, lw=0)
        axes.fill_between(own["step"], own["q25"], own["q75"], color=group.colour, alpha=0.3, lw=0)
        axes.plot(own["step"], own["q50"], color=group.colour, lw=1.2, marker=".", ms=4)
        axes.plot(own["step"], own["mean"], color="black", lw=1.6)
        if kind == "prefix":
            for seed in thresholds[group.name]:
                threshold = thresholds[group.name][seed]
                axes.plot(threshold.index, threshold, color=GREY, lw=0.8)
        _named(axes, group, parts, KIND_TITLES[kind])
    _outer(grid, STEP, "entropy (nats)", len(panels))
    base.from_zero(list(grid.flat)[: len(panels)])
    exact = {name: frame.mean(axis=1).rename("threshold") for name, frame in thresholds.items() if len(frame)}
    with_threshold = [
        (g, t.merge(exact[g.name], left_on="step", right_index=True, how="left") if g.name in exact else t)
        for g, t in parts
    ]
    caption = (
        f"Entropy in nats of recorded tokens against training step, by kind: median, quartiles, deciles and mean"
        f"{', and the lowest entropy that the clip keeps in each update' if clipped else ''}; {_who(parts)}."
    )
    return base.finish(figure, _joined(with_threshold), caption)


# ---------------------------------------------------------------------- within a response


@kit_style
def seam(runs: Sequence[Run], *, width: int = 4, label: Label | None = None) -> RunFigure:
    """What happens to entropy where the demonstration ends: around the seam, and the jump against prefix length.

    Args:
        runs: of methods with prefixes; seeds are pooled.
        width: tokens averaged on each side for the jump.
    """

    def tables(tokens: pd.DataFrame) -> pd.DataFrame:
        both = {"around": analysis.seam(tokens), "jump": analysis.hybrid_rows(tokens, width)}
        return pd.concat([table.assign(panel=name) for name, table in both.items()], ignore_index=True)

    parts = _each(runs, label, tables)

    def around(axes: Axes, group: Group, table: pd.DataFrame) -> None:
        for kind in ("prefix", "continuation"):
            own = table[(table["panel"] == "around") & (table["kind"] == kind)]
            axes.errorbar(
                own["offset"], own["entropy"], yerr=2 * own["error"].fillna(0), color=base.shade(group.colour, kind),
                ls=KIND_STYLES[kind], marker="o", ms=4, capsize=2, lw=1.6, elinewidth=0.9,
            )  # fmt: skip
        axes.axvline(-0.5, color=GREY, lw=0.9, ls=(0, (2, 2)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    def jumps(axes: Axes, group: Group, table: pd.DataFrame) -> None:
        axes.axhline(0, color=GREY, lw=0.8)
        for solved, look in ((False, {"marker": "x", "color": GREY, "lw": 0.9, "alpha": 0.8}), (True, _ring(group))):
            own = table[(table["panel"] == "jump") & ((table["score"] == 1) == solved)]
            axes.scatter(own["prefix_tokens"], own["jump"], s=16, **look)

    jump = f"jump: first {width} after - last {width} before (nats)"
    cards = [
        Card(around, "tokens from the first continuation token", "entropy (nats)", "Around the seam", zero=True),
        Card(jumps, "prefix length (tokens)", jump, "Jump against prefix length"),
    ]
    legend = [
        *_shades(parts, ["prefix", "continuation"]),
        Line2D([], [], ls="", marker="o", mfc="white", mec=parts[0][0].colour, label="row solved"),
        Line2D([], [], ls="", marker="x", color=GREY, label="not solved"),
    ]
    rows = pd.concat([table[table["panel"] == "jump"] for _, table in parts])
    note = f"{len(rows)} hybrid rows of {rows['step'].nunique()} recorded steps, bars: 2 standard errors"
    caption = (
        f"Left: mean entropy in nats against the distance from the end of the prefix. Right: mean entropy of the first {width} "
        f"continuation tokens minus that of the last {width} prefix tokens, against the length of the prefix in tokens."
    )
    return _rows(parts, cards, "Entropy at the seam", note=note, caption=caption, height=3.2, legend=legend)


def _ring(group: Group) -> dict[str, Any]:
    return {"facecolors": "none", "edgecolors": group.colour, "alpha": 0.9}


@kit_style
def relative_position(runs: Sequence[Run], *, bins: int = 10, label: Label | None = None) -> RunFigure:
    """Mean entropy from the beginning to the end of prefixes, continuations, responses and demonstrations.

    Args:
        runs: seeds and steps are pooled.
    """
    parts = _each(runs, label, lambda tokens: analysis.relative_position(tokens, bins))
    kinds = [kind for kind in KIND_STYLES if any((table["kind"] == kind).any() for _, table in parts)]
    note = f"{sum(int(table['tokens'].sum()) for _, table in parts)} recorded tokens of all recorded steps"

    def along(axes: Axes, group: Group, table: pd.DataFrame) -> None:
        for kind in kinds:
            own, look = table[table["kind"] == kind], {"color": base.shade(group.colour, kind), "ls": KIND_STYLES[kind]}
            axes.plot(own["place"], own["entropy"], lw=1.8, marker="o", ms=4, **look)
        axes.set_xlim(0, 1)

    cards = [Card(along, "place within the part of the row (0 first token, 1 last)", "entropy (nats)", zero=True)]
    caption = f"Mean entropy in nats against the place within a prefix, continuation, response or demonstration (0 to 1), {bins} bins;"
    return _rows(
        parts, cards, "Entropy along a response", note=note, caption=caption, legend=_shades(parts, kinds), width=7.5
    )


# ---------------------------------------------------------------------- which tokens


@kit_style
def forking_tokens(runs: Sequence[Run], *, most: int = 12, least: int = 5, label: Label | None = None) -> RunFigure:
    """The tokens at whose places the policy was least sure, with how often they occurred and where.

    Args:
        runs: seeds and steps are pooled.
        most: tokens shown.
        least: occurrences that a token must have.

    Raises:
        RunError: no token occurs that often.
    """
    parts = _each(runs, label, lambda tokens: analysis.forking_tokens(tokens, most=most, least=least, examples=1))
    if any(table.empty for _, table in parts):
        raise RunError(f"no token was recorded {least} times; lower least, or record more steps")

    def bars(axes: Axes, group: Group, table: pd.DataFrame) -> None:
        shown = table.iloc[::-1]
        axes.barh(range(len(shown)), shown["entropy"], color=group.colour, height=0.7)
        _named_ticks(axes.yaxis, shown["text"])
        for place, line in enumerate(shown.to_dict("records")):
            _beside(axes, f"{line['entropy']:.2f}  n={line['tokens']}", line["entropy"], place)
        axes.margins(x=0.25)
        axes.grid(axis="y", visible=False)

    def contexts(axes: Axes, _: Group, table: pd.DataFrame) -> None:
        look: dict[str, Any] = {"fontsize": 7.5, "fontfamily": "monospace", "va": "center", "parse_math": False}
        for place, examples in enumerate(table["contexts"].iloc[::-1]):
            axes.text(0, place, _one_line(examples), **look)
        axes.set(xlim=(0, 1), ylim=(-0.6, len(table) - 0.4))
        axes.set_axis_off()

    cards = [Card(bars, "mean entropy at its place (nats)"), Card(contexts, "")]
    parts = [(group, table.assign(contexts=table["contexts"].map(" | ".join))) for group, table in parts]
    note = f"highest mean entropy among tokens that occur at least {least} times, all kinds; right: the least certain occurrence, the token in ⟦⟧"
    caption = "Tokens by the mean entropy in nats at their places, with counts and a context each;"
    height = 0.27 * max(len(table) for _, table in parts) + 0.7
    return _rows(
        parts, cards, "Forking tokens", note=note, caption=caption, height=height, width_ratios=[1.5, 1], sharey="row"
    )


def _one_line(text: str) -> str:
    """A context that fits its panel, white space and unprintable characters shown."""
    marked = "".join(c if c in "⟦⟧" else base.visible(c) for c in text)
    return marked if len(marked) <= 40 else f"{marked[:39]}…"


@kit_style
def clip_stability(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """How much of what the clip keeps of a demonstration at one step it keeps at another, against their distance.

    Args:
        runs: of methods with prefixes; seeds are pooled.
    """
    parts = _each(runs, label, lambda tokens: analysis.clip_stability(tokens).dropna(subset=["jaccard"]))
    if any(table.empty for _, table in parts):
        raise RunError("the clip keeps no place of the demonstrations that were recorded twice; record more of them")
    parts = [(group, table.astype({"chance": float})) for group, table in parts]
    colour = parts[0][0].colour if len(parts) == 1 else GREY
    legend: list[Artist] = [
        Line2D([], [], ls="", marker="o", ms=3, color=colour, alpha=0.4, label="a demonstration at two steps"),
        Line2D([], [], color=colour, lw=2, label="mean"),
        Line2D([], [], color=GREY, ls=(0, (4, 3)), label="sets of these sizes by chance"),
    ]
    count = sum(len(table[["run", "problem"]].drop_duplicates()) for _, table in parts)
    note = f"{count} demonstrations, {sum(len(table) for _, table in parts)} pairs of recorded steps"

    def pairs(axes: Axes, group: Group, table: pd.DataFrame) -> None:
        mean = table.groupby("lag")[["jaccard", "chance"]].mean()
        axes.plot(table["lag"], table["jaccard"], ls="", marker="o", ms=3, color=group.colour, alpha=0.25, mew=0)
        axes.plot(mean.index, mean["jaccard"], color=group.colour, lw=2)
        axes.plot(mean.index, mean["chance"], color=GREY, ls=(0, (4, 3)), lw=1.2)
        axes.set_ylim(-0.02, 1.02)

    cards = [Card(pairs, "distance (training steps)", "Jaccard index of the kept places\n(share of 1)")]
    title = "What the clip keeps, from step to step"
    caption = (
        "Jaccard index (0 to 1) of the places of a demonstration that the clip keeps, or would keep at that step's threshold, at "
        "two recorded steps, against their distance in steps; dashed: independent sets of the same sizes."
    )
    return _rows(parts, cards, title, note=note, caption=caption, legend=legend, width=7.5)


@kit_style
def reward_by_prefix_entropy(runs: Sequence[Run], *, bins: int = 5, label: Label | None = None) -> RunFigure:
    """Reward of hybrid rows against the mean entropy of their prefix, beside the prefixes' lengths, which go along.

    Args:
        runs: of methods with prefixes; seeds and steps are pooled.
    """
    parts = _each(runs, label, lambda tokens: analysis.reward_by_prefix_entropy(tokens, bins))
    rows = {group.name: table for group, table in _each(runs, label, analysis.hybrid_rows)}

    def rewards(axes: Axes, group: Group, table: pd.DataFrame) -> None:
        look: dict[str, Any] = {"color": group.colour, "marker": group.marker, "ms": 5, "lw": 1.6, "capsize": 3}
        axes.errorbar(table["entropy"], table["score"], yerr=2 * table["error"].fillna(0), **look)
        axes.set_ylim(-0.02, 1.08)

    def lengths(axes: Axes, group: Group, _: pd.DataFrame) -> None:
        own = rows[group.name]
        axes.scatter(own["prefix_entropy"], own["prefix_tokens"], s=14, **_ring(group))

    across = "mean entropy of the prefix (nats)"
    cards = [
        Card(rewards, across, "mean reward (0 to 1)", "Reward of the row"),
        Card(lengths, across, "prefix length (tokens)", "Length of the same prefixes", zero=True),
    ]
    note = f"{sum(map(len, rows.values()))} hybrid rows in bins of equal size, {bins} at most; bars: 2 standard errors"
    caption = (
        "Left: mean reward (0 to 1) of hybrid rows against the mean entropy of their prefix in nats. Right: the length of these "
        "prefixes in tokens, with which both go along."
    )
    return _rows(parts, cards, "Reward against the prefix's entropy", note=note, caption=caption)


# ---------------------------------------------------------------------- one text under a changing policy


@kit_style
def demonstration_map(runs: Sequence[Run], problem: str | None = None, *, label: Label | None = None) -> RunFigure:
    """The entropy at every place of one demonstration at every recorded step: one text, a panel per method.

    The colour scale is the same in all panels. A run of each method is shown, that with the lowest seed.

    Args:
        runs: that followed the same demonstrations (equal problems).
        problem: id of a followed demonstration; by default the longest.

    Raises:
        RunError: no run followed a demonstration, or not this one.
    """
    first = [group.runs[0] for group in base.groups(runs, label)]
    parts = _followed(first, label, analysis.checked)
    everything = pd.concat([table for _, table in parts])
    ids = everything.groupby("problem", sort=True)["position"].max()
    problem = str(ids.idxmax()) if problem is None else problem
    if problem not in ids.index:
        raise RunError(f"problem = {problem!r} was not followed; these runs followed {', '.join(map(str, ids.index))}")
    everything = everything[everything["problem"] == problem]
    texts = everything.sort_values("position").drop_duplicates("position")["text"]
    top = max(float(everything["entropy"].max()), 1e-9)
    heights = [0.25 + 0.085 * table["step"].nunique() for _, table in parts]
    figure, grid = base.new_figure(
        8.5, sum(heights) + 0.5 * len(parts) + 0.4, title="One demonstration under a changing policy", rows=len(parts),
        height_ratios=heights, sharex=True,
        note=f"problem {base.visible(problem)}, {len(texts)} tokens, read before the update of every recorded step; one seed each",
    )  # fmt: skip
    data = []
    for axes, (group, table) in zip(grid[:, 0], parts, strict=True):
        own = table[table["problem"] == problem].pivot(index="step", columns="position", values="entropy")
        image = axes.imshow(own, aspect="auto", cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
        steps = own.index.to_numpy()
        shown = np.unique(np.linspace(0, len(steps) - 1, min(5, len(steps))).astype(int))
        axes.set_yticks(shown, [str(steps[i]) for i in shown])
        base.panel_title(axes, group.title, color=group.colour, pad=3)
        axes.set_ylabel("step")
        axes.grid(visible=False)
        axes.tick_params(labelbottom=axes is grid[-1, 0])
        long = own.melt(ignore_index=False, value_name="entropy").reset_index()
        data.append(long.assign(method=group.name, seed=group.runs[0].seed))
    last = grid[-1, 0]
    if len(texts) <= 64:
        _named_ticks(last.xaxis, texts)
        last.tick_params(
            axis="x", labelsize=7.5, rotation=90 if max(len(base.visible(text)) for text in texts) > 2 else 0
        )
    last.set_xlabel("token of the demonstration (its entropy: how open its place was)")
    figure.colorbar(image, ax=list(grid[:, 0]), label="entropy (nats)", shrink=0.8, pad=0.015, aspect=30)
    caption = (
        f"Entropy in nats (colour, one scale) at each token of the demonstration of problem {base.visible(problem)} (across) at each "
        f"recorded training step (down), one panel each ({', '.join(group.title for group, _ in parts)}), one seed each."
    )
    return base.finish(figure, pd.concat(data, ignore_index=True), caption)


@kit_style
def surprise(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """How surprised each policy is by the demonstrations, against how surprised it expects to be: one path per run.

    Entropy is the NLL that a policy expects of its own samples. On the line a text is as likely as if the policy had
    written it; above, the policy is surer than it is right; below, it is less sure than it could be. Followed
    demonstrations at every recorded step.
    """
    parts = _followed(runs, label, analysis.entropy_by_kind)
    data = pd.concat([table for _, table in parts], ignore_index=True)
    data = data[["method", "seed", "step", "tokens", "entropy", "nll"]]
    among = [group for group, _ in parts]
    legend = [
        *base.method_handles(among, marker=True),
        Line2D([], [], **base.BEFORE),  # type: ignore[arg-type]
        Line2D([], [], color=GREY, lw=1, label="as surprised as it expects to be"),
    ]
    figure, grid = base.new_figure(
        7.5, 4.0, title="Sure, and right? Surprise at the demonstrations", legend=legend,
        note="a point per recorded step, joined in training order; thin: seeds, thick: their mean; both axes logarithmic",
    )  # fmt: skip
    axes = grid[0, 0]
    base.draw_paths(axes, data, among, "entropy", "nll", at="step", ends=True)
    axes.set_xscale("log")
    axes.set_yscale("log")
    measured = data[["entropy", "nll"]].clip(lower=1e-6).to_numpy()
    ends = [float(measured.min()), float(measured.max())]
    axes.plot(ends, ends, color=GREY, lw=1, zorder=1)
    for axis in (axes.xaxis, axes.yaxis):
        base.log_ticks(axis, 1, 3)
    axes.set_xlabel("entropy: the NLL that the policy expects (nats/token)")
    axes.set_ylabel(EVALUATIONS["demonstration_nll"].axis())
    caption = (
        "Token-mean NLL of followed demonstrations against the mean entropy at the same tokens, both in nats (logarithmic), a "
        "point per recorded step, joined in training order, ending in the marker. Above the grey line the policy is surer than "
        f"it is right. {base.seeds_of(among)}."
    )
    return base.finish(figure, data, caption)


# ---------------------------------------------------------------------- what an update does to entropy


@kit_style
def entropy_change(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """What single updates did to the entropies of followed demonstrations, against the first-order prediction.

    A panel per method; a point per token of a followed demonstration at a recorded step.
    """
    parts = _followed(runs, label, analysis.recorded_change)
    columns, rows = min(2, len(parts)), math.ceil(len(parts) / 2)
    figure, grid = base.new_figure(
        4.2 * columns, 3.0 * rows, title="Entropy change of an update: predicted and observed",
        note="a point per token of a followed demonstration at a recorded step; the line is prediction = observation; "
        "logarithmic beyond 0.001 nats; median error: of changes above 0.001 nats; R²: of the changes as they are, so that "
        "the few largest decide it, whatever the many small ones do", rows=rows, columns=columns, sharex=True, sharey=True,
    )  # fmt: skip
    limit = max(2e-3, *(float(table[["predicted", "observed"]].abs().to_numpy().max()) * 1.3 for _, table in parts))
    for axes, (group, table) in zip(grid.flat, parts, strict=False):
        axes.plot([-limit, limit], [-limit, limit], color=GREY, lw=0.8)
        axes.scatter(table["predicted"], table["observed"], s=6, color=group.colour, alpha=0.35, lw=0, rasterized=True)
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_yscale("symlog", linthresh=1e-3)
        ticks = [tick for tick in (-1, -0.1, -0.01, 0, 0.01, 0.1, 1) if abs(tick) <= limit]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        base.panel_title(axes, f"{group.title}: {_agreement(table)}", fontsize=8.5)
    _outer(grid, "predicted change (nats)", "observed change (nats)", len(parts))
    caption = (
        "Change of the entropy in nats at tokens of followed demonstrations by the update of a recorded step, against minus the "
        "covariance of log-probability and its change under the policy before it; one panel each "
        f"({', '.join(f'{group.title} n = {len(table)}' for group, table in parts)}); {base.seeds_of([g for g, _ in parts])}."
    )
    return base.finish(figure, pd.concat([table for _, table in parts], ignore_index=True), caption)


def _agreement(table: pd.DataFrame) -> str:
    spread = table["observed"].var()
    if not spread or len(table) < 3:
        return f"n = {len(table)}"
    error = table["observed"] - table["predicted"]
    large = table["observed"].abs() > 1e-3
    middle = f"median error {(error[large] / table['observed'][large]).abs().median():.1%}, " if large.any() else ""
    return f"{middle}R² {1 - (error**2).mean() / spread:.2f}"


@kit_style
def advantage_covariance(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """The covariance of log-probability and advantage, which drives entropy under policy gradient, above the entropy."""
    lines = base.lines_of(runs, {"on_policy": "entropy_on_policy"}, label)
    parts = []
    for group in base.groups(runs, label):
        for run in group.runs:
            table = run.tokens
            sampled = table[(table["kind"] == "on_policy") & table["advantage"].notna()]
            if len(sampled):
                parts.append(analysis.advantage_covariance(sampled).assign(method=group.name, seed=run.seed))
    if not parts:
        raise base.nothing_recorded(runs, "sampled tokens with an advantage")
    data = pd.concat(parts, ignore_index=True)
    lines = [line for line in lines if line.group.name in set(data["method"])]
    figure, grid = base.new_figure(
        7.5, 4.2, title="What drives entropy: covariance of log-probability and advantage",
        legend=base.method_handles(base.groups_of(lines)), rows=2, sharex=True,
        note="on-policy tokens; above: recorded problems of recorded steps, thin: seeds, thick: their mean; below: all tokens of every step",
    )  # fmt: skip
    above, below = grid[:, 0]
    above.axhline(0, color=GREY, lw=0.8)
    for line in lines:
        table = data[data["method"] == line.group.name].pivot(index="step", columns="seed", values="covariance")
        for seed in table if len(table.columns) > 1 else ():
            above.plot(table.index, table[seed], color=line.group.colour, lw=0.7, alpha=0.35)
        above.plot(table.index, table.mean(axis=1), color=line.group.colour, lw=1.8)
        base.draw_line(below, line)
    above.set_ylabel("covariance (nats)")
    below.set(xlabel=STEP, ylabel="entropy (nats)")
    base.from_zero([below])
    caption = (
        "Above: covariance (nats) of log-probability and advantage over recorded on-policy tokens; where it is positive, "
        "policy gradient is predicted to lower entropy. Below: mean entropy of on-policy tokens in nats. Against training step; "
        f"{base.note_of(lines)}."
    )
    return base.finish(figure, data, caption)


@kit_style
def collapse(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """What each method gave up in entropy for what it won in reward: one path per run, from the policy before training."""
    lines = base.lines_of(runs, {"": "evaluations.entropy"}, label)
    paths = []
    table = base.beside(runs, label, "evaluations.entropy", "evaluations.avg").rename(
        columns={"x": "entropy", "y": "reward"}
    )
    for _, path in table.groupby(["method", "seed"], sort=False):
        steps, entropy, reward = (path[name].to_list() for name in ("global_step", "entropy", "reward"))
        paths.append(path.assign(**asdict(analysis.collapse(steps, entropy, reward)) if len(path) > 1 else {}))
    if not paths:
        raise base.nothing_recorded(runs, "entropies beside scores (entropy, avg)")
    data = pd.concat(paths, ignore_index=True)
    among = [group for group in base.groups_of(lines) if group.name in set(data["method"])]
    figure, grid = base.new_figure(
        7.5, 3.6, title="Entropy given up for reward",
        legend=[*base.method_handles(among, marker=True), Line2D([], [], **base.BEFORE)],  # type: ignore[arg-type]
        note="validation split, a point per evaluation, joined in training order; thin: seeds, thick: their mean",
    )  # fmt: skip
    axes = grid[0, 0]
    base.draw_paths(axes, data, among, "entropy", "reward")
    before = base.base_level(runs, "entropy")
    if before is not None:
        axes.axvline(before / 2, color=GREY, lw=0.9, ls=(0, (2, 2)))
        axes.annotate(
            "half the entropy", (before / 2, 0), xycoords=("data", "axes fraction"), xytext=(3, 4),
            textcoords="offset points", fontsize=7.5, color=GREY,
        )  # fmt: skip
    score = EVALUATIONS["avg"]
    axes.set(xlabel="entropy of sampled responses (nats)", ylabel=score.axis(base.k_of(runs)))
    axes.set_xlim(left=0)
    base.from_zero([axes], share=True)
    caption = (
        f"{score.short(base.k_of(runs))} against the mean entropy in nats of sampled validation responses, a point per evaluation, "
        "joined in the order of training; black circle: before training; dotted: half of its entropy; "
        f"{base.note_of(lines)}.{base.stage_note(base.groups_of(lines), ticks=False)}"
    )
    return base.finish(figure, data, caption)


# ---------------------------------------------------------------------- what the clip keeps


@kit_style
def kept_tokens(run: Run, *, most: int = 12) -> RunFigure:
    """Which prefix tokens the entropy clip keeps: entropy against place in the prefix, and the texts kept most.

    Args:
        run: one that recorded token tables (``records.tokens_every``) of a method with prefixes.
        most: number of token texts in the right panel.

    Raises:
        RunError: the run recorded no prefix tokens of hybrid rows.
    """
    table = analysis.of_hybrid_rows(tokens_of([run]))
    table = table[table["kind"] == "prefix"].copy()
    size = table.groupby(["step", "problem", "row"])["position"].transform("max")
    table["place"] = np.where(size > 0, table["position"] / size.clip(lower=1), 0.0)
    steps = table["step"].nunique()
    note = f"{len(table)} prefix tokens of {steps} recorded steps, seed {run.seed}; {table['kept'].mean():.0%} kept"
    looks = {False: ("x", OKABE_ITO["sky"]), True: ("o", OKABE_ITO["vermilion"])}
    words = {True: "kept: trained with the advantage", False: "clipped: advantage 0"}
    legend = [
        Line2D([], [], ls="", marker=looks[k][0], ms=5, color=looks[k][1], label=text) for k, text in words.items()
    ]
    figure, grid = base.new_figure(
        9, 3.6, title=f"Prefix tokens kept by the entropy clip: {run.title}", note=note, legend=legend, columns=2,
        width_ratios=[1.5, 1],
    )  # fmt: skip
    left, right = grid[0]
    for kept, (marker, colour) in looks.items():
        part = table[table["kept"] == kept]
        left.scatter(part["place"], part["entropy"], s=11, marker=marker, color=colour, alpha=0.7, lw=0.8)
    left.set(xlabel="place in the prefix (0 first token, 1 last)", ylabel="entropy before the token (nats)")
    left.set_ylim(bottom=-0.02 * max(float(table["entropy"].max()), 1e-9))
    texts = table.groupby("text", sort=True)["kept"].agg(kept="sum", seen="size").reset_index()
    texts = texts.sort_values(["kept", "seen", "text"], ascending=[False, True, True])
    top = texts[texts["kept"] > 0].head(most).iloc[::-1]
    places = np.arange(len(top))
    right.barh(places, top["seen"], color=looks[False][1], alpha=0.45, height=0.72)
    right.barh(places, top["kept"], color=looks[True][1], height=0.72)
    _named_ticks(right.yaxis, top["text"])
    for place, (kept, seen) in enumerate(zip(top["kept"], top["seen"], strict=True)):
        _beside(right, f"{kept}/{seen}", seen, place)
    right.margins(x=0.16)
    right.grid(axis="y", visible=False)
    right.set(xlabel="prefix tokens (kept / seen)")
    base.panel_title(right, "Kept most often")
    base.panel_title(left, "Every recorded prefix token")
    right.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    caption = f"Left: entropy in nats against place in the prefix, kept and clipped tokens. Right: the texts kept most. {note}."
    data = table[["step", "problem", "row", "position", "place", "text", "entropy", "kept"]].reset_index(drop=True)
    return base.finish(figure, data, caption)
