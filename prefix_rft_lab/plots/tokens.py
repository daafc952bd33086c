"""Figures of token tables: where in a response the policy is sure, what the clip keeps, and how that changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from prefix_rft_lab.analysis import entropy_analysis as analysis
from prefix_rft_lab.analysis import stats
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.plots.base import (
    GREY,
    KIND_SHADES,
    KIND_STYLES,
    KIND_TITLES,
    OKABE_ITO,
    RunFigure,
    base_level,
    collect,
    draw_series,
    finish,
    from_zero,
    k_of,
    kit_style,
    method_handles,
    mixed,
    new_figure,
    note_of,
    nothing_recorded,
    run_name,
    stage_note,
    style_of,
    visible,
)
from prefix_rft_lab.runs.run import Run


def tokens_of(runs: Sequence[Run]) -> pd.DataFrame:
    """The token tables of runs that share a vocabulary, joined.

    Raises:
        ConfigError: no runs, or runs of different vocabularies.
        RunError: none of them recorded tokens.
    """
    if not runs:
        raise ConfigError("runs = [] holds no run; give the runs of one method")
    other = next((run for run in runs if run.tokenizer != runs[0].tokenizer), None)
    if other is not None:
        first = runs[0]
        raise ConfigError(
            f"{run_name(first)} and {run_name(other)} have different vocabularies ({first.tokenizer or 'not recorded'}, "
            f"{other.tokenizer or 'not recorded'}), so their tokens cannot be joined; give runs of one model"
        )
    parts = [table for table in (run.tokens for run in runs) if len(table)]
    if not parts:
        raise RunError(
            f"{run_name(runs[0])} recorded no tokens{' yet' if not runs[0].done else ''}; set records.tokens_every above 0 "
            "and train it"
        )
    return pd.concat(parts, ignore_index=True)


def _who(runs: Sequence[Run]) -> tuple[str, str, str]:
    """(title, how many runs, colour) of the runs of one config."""
    groups = stats.group(runs)
    if len(groups) > 1:
        raise ConfigError(f"runs of {' and '.join(groups)} in a figure of one method; give the runs of one of them")
    name, members = next(iter(groups.items()))
    return (
        stats.title(name, members),
        f"{len(members)} seed{'s' if len(members) != 1 else ''}",
        style_of(members[0], name, None)[0],
    )


def _shade(colour: str, kind: str) -> str:
    return mixed(colour, *KIND_SHADES[kind])


def _kind_handles(colour: str, kinds: Sequence[str], *, marker: str = "") -> list[Artist]:
    return [
        Line2D(
            [],
            [],
            color=_shade(colour, kind),
            ls=KIND_STYLES[kind],
            lw=1.8,
            marker=marker,
            ms=4,
            label=KIND_TITLES[kind],
        )
        for kind in kinds
    ]


# ---------------------------------------------------------------------- distribution over training


@kit_style
def entropy_quantiles(runs: Sequence[Run]) -> RunFigure:
    """How the entropies of the tokens of each kind are distributed at each recorded step, with the clip's threshold.

    Args:
        runs: of one method; seeds are pooled.
    """
    title, count, colour = _who(runs)
    table = analysis.entropy_quantiles(tokens_of(runs))
    kinds = [kind for kind in analysis.KINDS if (table["kind"] == kind).any()]
    threshold = stats.seed_curves(runs, "kept_threshold", "metrics")
    handles: list[Artist] = [
        Patch(facecolor=colour, alpha=0.2, label="10% to 90%"),
        Patch(facecolor=colour, alpha=0.45, label="25% to 75%"),
        Line2D([], [], color="black", lw=1.6, label="mean"),
        Line2D([], [], color=colour, lw=1.2, marker=".", label="median"),
    ]
    if len(threshold):
        handles.append(Line2D([], [], color=GREY, lw=0.8, label="threshold of the clip (all prefix tokens of a step)"))
    figure, grid = new_figure(
        8.5, 2.6 * math.ceil(len(kinds) / 2), title=f"Distribution of entropy over training: {title}",
        note=f"{int(table['tokens'].sum())} recorded tokens, {count}", legends=[handles], rows=math.ceil(len(kinds) / 2),
        columns=min(2, len(kinds)), sharex=True, sharey=True,
    )  # fmt: skip
    for axes, kind in zip(grid.flat, kinds, strict=False):
        own = table[table["kind"] == kind]
        axes.fill_between(own["step"], own["q10"], own["q90"], color=colour, alpha=0.2, lw=0)
        axes.fill_between(own["step"], own["q25"], own["q75"], color=colour, alpha=0.3, lw=0)
        axes.plot(own["step"], own["q50"], color=colour, lw=1.2, marker=".", ms=4)
        axes.plot(own["step"], own["mean"], color="black", lw=1.6)
        if kind == "prefix":
            for seed in threshold:
                axes.plot(threshold.index, threshold[seed], color=GREY, lw=0.8)
        axes.set_title(KIND_TITLES[kind], loc="left", fontsize=9.5)
    for axes in list(grid.flat)[len(kinds) :]:
        axes.set_visible(False)
    _label_outer(grid, "training step (all stages)", "entropy (nats)")
    from_zero([axes for axes in grid.flat if axes.get_visible()])
    exact = threshold.mean(axis=1).rename("threshold")
    data = table.merge(exact, left_on="step", right_index=True, how="left") if len(threshold) else table
    caption = (
        f"Entropy in nats of recorded tokens against training step, by kind: median, quartiles, deciles and mean"
        f"{', and the lowest entropy that the clip keeps in each update' if len(threshold) else ''}; {title}, {count}."
    )
    return finish(figure, data, caption)


def _label_outer(grid: np.ndarray, across: str, up: str) -> None:
    for column in grid.T:
        [axes for axes in column if axes.get_visible()][-1].set_xlabel(across)
        [axes for axes in column if axes.get_visible()][-1].tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel(up)


# ---------------------------------------------------------------------- within a response


@kit_style
def seam(runs: Sequence[Run], *, width: int = 4) -> RunFigure:
    """What happens to entropy where the demonstration ends: around the seam, and the jump against prefix length.

    Args:
        runs: of one method with prefixes; seeds are pooled.
        width: tokens averaged on each side for the jump.
    """
    title, count, colour = _who(runs)
    tokens = tokens_of(runs)
    around, rows = analysis.seam(tokens), analysis.hybrid_rows(tokens, width)
    kinds = ["prefix", "continuation"]
    handles = [
        *_kind_handles(colour, kinds, marker="o"),
        Line2D([], [], ls="", marker="o", mfc="white", mec=colour, label="row solved"),
        Line2D([], [], ls="", marker="x", color=GREY, label="not solved"),
    ]
    figure, grid = new_figure(
        8.5, 3.2, title=f"Entropy at the seam: {title}", legends=[handles], columns=2,
        note=f"{len(rows)} hybrid rows of {rows['step'].nunique()} recorded steps, {count}; bars: 2 standard errors",
    )  # fmt: skip
    left, right = grid[0]
    for kind in kinds:
        own = around[around["kind"] == kind]
        left.errorbar(
            own["offset"], own["entropy"], yerr=2 * own["error"].fillna(0), color=_shade(colour, kind), ls=KIND_STYLES[kind],
            marker="o", ms=4, capsize=2, lw=1.6, elinewidth=0.9,
        )  # fmt: skip
    left.axvline(-0.5, color=GREY, lw=0.9, ls=(0, (2, 2)))
    left.set(xlabel="tokens from the first continuation token", ylabel="entropy (nats)")
    left.set_title("Around the seam", loc="left", fontsize=9.5)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    from_zero([left])
    solved = rows["score"] == 1
    right.axhline(0, color=GREY, lw=0.8)
    right.scatter(
        rows["prefix_tokens"][~solved], rows["jump"][~solved], marker="x", s=16, color=GREY, alpha=0.8, lw=0.9
    )
    right.scatter(
        rows["prefix_tokens"][solved], rows["jump"][solved], s=16, facecolors="none", edgecolors=colour, alpha=0.9
    )
    right.set(xlabel="prefix length (tokens)", ylabel=f"jump: first {width} after - last {width} before (nats)")
    right.set_title("Jump against prefix length", loc="left", fontsize=9.5)
    caption = (
        f"Left: mean entropy in nats against the distance from the end of the prefix. Right: mean entropy of the first {width} "
        f"continuation tokens minus that of the last {width} prefix tokens, against the length of the prefix in tokens. "
        f"{title}, {len(rows)} hybrid rows, {count}."
    )
    data = pd.concat([around.assign(panel="around"), rows.assign(panel="jump")], ignore_index=True)
    return finish(figure, data, caption)


@kit_style
def relative_position(runs: Sequence[Run], *, bins: int = 10) -> RunFigure:
    """Mean entropy from the beginning to the end of prefixes, continuations, responses and demonstrations.

    Args:
        runs: of one method; seeds and steps are pooled.
    """
    title, count, colour = _who(runs)
    table = analysis.relative_position(tokens_of(runs), bins)
    kinds = [kind for kind in KIND_STYLES if (table["kind"] == kind).any()]
    figure, grid = new_figure(
        7.5, 3.0, title=f"Entropy along a response: {title}", legends=[_kind_handles(colour, kinds, marker="o")],
        note=f"{int(table['tokens'].sum())} recorded tokens of all recorded steps, {count}",
    )  # fmt: skip
    axes = grid[0, 0]
    for kind in kinds:
        own = table[table["kind"] == kind]
        axes.plot(
            own["place"], own["entropy"], color=_shade(colour, kind), ls=KIND_STYLES[kind], lw=1.8, marker="o", ms=4
        )
    axes.set(xlabel="place within the part of the row (0 first token, 1 last)", ylabel="entropy (nats)", xlim=(0, 1))
    from_zero([axes])
    caption = (
        f"Mean entropy in nats against the place within a prefix, continuation, response or demonstration (0 to 1), {bins} bins; "
        f"{title}, {count}."
    )
    return finish(figure, table, caption)


# ---------------------------------------------------------------------- which tokens


@kit_style
def forking_tokens(runs: Sequence[Run], *, most: int = 12, least: int = 5) -> RunFigure:
    """The tokens at whose places the policy was least sure, with how often they occurred and where.

    Args:
        runs: of one method; seeds and steps are pooled.
        most: tokens shown.
        least: occurrences that a token must have.

    Raises:
        RunError: no token occurs that often.
    """
    title, count, colour = _who(runs)
    table = analysis.forking_tokens(tokens_of(runs), most=most, least=least, examples=1)
    if table.empty:
        raise RunError(f"no token was recorded {least} times; lower least, or record more steps")
    shown = table.iloc[::-1]
    figure, grid = new_figure(
        8.5, 0.27 * len(shown) + 0.7, title=f"Forking tokens: {title}", columns=2, ratios=[1.5, 1],
        note=f"highest mean entropy among tokens that occur at least {least} times, all kinds, {count}; right: the least "
        "certain occurrence, the token in ⟦⟧",
    )  # fmt: skip
    left, right = grid[0]
    places = np.arange(len(shown))
    left.barh(places, shown["entropy"], color=colour, height=0.7)
    left.set_yticks(places, [visible(text) for text in shown["text"]], fontfamily="monospace")
    for tick in left.get_yticklabels():
        tick.set_parse_math(False)
    for place, line in zip(places, shown.to_dict("records"), strict=True):
        left.annotate(
            f"{line['entropy']:.2f}  n={line['tokens']}", (line["entropy"], place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=7.5,
        )  # fmt: skip
        right.text(
            0,
            place,
            _one_line(line["contexts"][0]),
            fontsize=7.5,
            fontfamily="monospace",
            va="center",
            parse_math=False,
        )
    left.set(xlabel="mean entropy at its place (nats)", ylim=(-0.6, len(shown) - 0.4))
    left.margins(x=0.25)
    left.grid(axis="y", visible=False)
    right.set(ylim=left.get_ylim(), xlim=(0, 1))
    right.set_axis_off()
    data = table.assign(contexts=table["contexts"].map(" | ".join))
    return finish(
        figure,
        data,
        f"Tokens by the mean entropy in nats at their places, with counts and a context each; {title}, {count}.",
    )


def _one_line(text: str) -> str:
    """A context that fits its panel, white space and unprintable characters shown."""
    marked = "".join(c if c in "⟦⟧" else visible(c) for c in text)
    return marked if len(marked) <= 40 else f"{marked[:39]}…"


@kit_style
def clip_stability(runs: Sequence[Run]) -> RunFigure:
    """How much of what the clip keeps of a demonstration at one step it keeps at another, against their distance.

    Args:
        runs: of one method with prefixes; seeds are pooled.
    """
    title, count, colour = _who(runs)
    table = analysis.clip_stability(tokens_of(runs)).dropna(subset=["jaccard"])
    if table.empty:
        raise RunError("the clip keeps no place of the demonstrations that were recorded twice; record more of them")
    table["chance"] = table["chance"].astype(float)
    mean = table.groupby("lag")[["jaccard", "chance"]].mean()
    handles: list[Artist] = [
        Line2D([], [], ls="", marker="o", ms=3, color=colour, alpha=0.4, label="a demonstration at two steps"),
        Line2D([], [], color=colour, lw=2, label="mean"),
        Line2D([], [], color=GREY, ls=(0, (4, 3)), label="sets of these sizes by chance"),
    ]
    figure, grid = new_figure(
        7.5, 3.0, title=f"What the clip keeps, from step to step: {title}", legends=[handles],
        note=f"{table[['run', 'problem']].drop_duplicates().shape[0]} demonstrations, {len(table)} pairs of recorded steps, {count}",
    )  # fmt: skip
    axes = grid[0, 0]
    axes.plot(table["lag"], table["jaccard"], ls="", marker="o", ms=3, color=colour, alpha=0.25, mew=0)
    axes.plot(mean.index, mean["jaccard"], color=colour, lw=2)
    axes.plot(mean.index, mean["chance"], color=GREY, ls=(0, (4, 3)), lw=1.2)
    axes.set(
        xlabel="distance (training steps)", ylabel="Jaccard index of the kept places\n(share of 1)", ylim=(-0.02, 1.02)
    )
    caption = (
        "Jaccard index (0 to 1) of the places of a demonstration that the clip keeps, or would keep at that step's threshold, at "
        f"two recorded steps, against their distance in steps; dashed: independent sets of the same sizes. {title}, {count}."
    )
    return finish(figure, table, caption)


@kit_style
def reward_by_prefix_entropy(runs: Sequence[Run], *, bins: int = 5) -> RunFigure:
    """Reward of hybrid rows against the mean entropy of their prefix, beside the prefixes' lengths, which go along.

    Args:
        runs: of one method with prefixes; seeds and steps are pooled.
    """
    title, count, colour = _who(runs)
    tokens = tokens_of(runs)
    table, rows = analysis.reward_by_prefix_entropy(tokens, bins), analysis.hybrid_rows(tokens)
    note = f"{len(rows)} hybrid rows in {len(table)} bins of equal size, {count}; bars: 2 standard errors"
    figure, grid = new_figure(8.5, 3.0, title=f"Reward against the prefix's entropy: {title}", note=note, columns=2)
    left, right = grid[0]
    left.errorbar(
        table["entropy"],
        table["score"],
        yerr=2 * table["error"].fillna(0),
        color=colour,
        marker="D",
        ms=5,
        lw=1.6,
        capsize=3,
    )
    left.set(xlabel="mean entropy of the prefix (nats)", ylabel="mean reward (0 to 1)", ylim=(-0.02, 1.08))
    left.set_title("Reward of the row", loc="left", fontsize=9.5)
    right.scatter(rows["prefix_entropy"], rows["prefix_tokens"], s=14, facecolors="none", edgecolors=colour, alpha=0.8)
    right.set(xlabel="mean entropy of the prefix (nats)", ylabel="prefix length (tokens)")
    right.set_title("Length of the same prefixes", loc="left", fontsize=9.5)
    from_zero([right])
    caption = (
        f"Left: mean reward (0 to 1) of hybrid rows against the mean entropy of their prefix in nats. Right: the length of these "
        f"prefixes in tokens, with which both go along. {title}, {note}."
    )
    return finish(figure, table, caption)


# ---------------------------------------------------------------------- one text under a changing policy


@kit_style
def demonstration_map(runs: Sequence[Run], problem: str | None = None) -> RunFigure:
    """The entropy at every place of one demonstration at every recorded step: one text, a panel a method.

    The colour scale is the same in all panels. A run of each method is shown, that with the lowest seed.

    Args:
        runs: that followed the same demonstrations (equal problems).
        problem: id of a followed demonstration; by default the longest.

    Raises:
        RunError: no run followed a demonstration, or not this one.
    """
    tables = {}
    for name, members in stats.group(runs).items():
        table = members[0].tokens
        table = table[table["entropy_after"].notna()]
        if len(table):
            tables[name] = (members[0], analysis.checked(table))
    if not tables:
        raise nothing_recorded(runs, "followed demonstrations (records.followed, records.tokens_every)")
    everything = pd.concat([table for _, table in tables.values()])
    ids = everything.groupby("problem", sort=True)["position"].max()
    problem = str(ids.idxmax()) if problem is None else problem
    if problem not in ids.index:
        raise RunError(f"problem = {problem!r} was not followed; these runs followed {', '.join(map(str, ids.index))}")
    everything = everything[everything["problem"] == problem]
    texts = everything.sort_values("position").drop_duplicates("position")["text"]
    top = max(float(everything["entropy"].max()), 1e-9)
    heights = [0.25 + 0.085 * table["step"].nunique() for _, table in tables.values()]
    figure, grid = new_figure(
        8.5, sum(heights) + 0.5 * len(tables) + 0.4, title="One demonstration under a changing policy", rows=len(tables),
        heights=heights, sharex=True,
        note=f"problem {visible(problem)}, {len(texts)} tokens, read before the update of every recorded step; one seed a method",
    )  # fmt: skip
    parts = []
    for axes, (name, (run, table)) in zip(grid[:, 0], tables.items(), strict=True):
        own = table[table["problem"] == problem].pivot(index="step", columns="position", values="entropy")
        image = axes.imshow(own, aspect="auto", cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
        steps = own.index.to_numpy()
        shown = np.unique(np.linspace(0, len(steps) - 1, min(5, len(steps))).astype(int))
        axes.set_yticks(shown, [str(steps[i]) for i in shown])
        axes.set_title(run.title, loc="left", fontsize=9.5, color=style_of(run, name, None)[0], pad=3)
        axes.set_ylabel("step")
        axes.grid(visible=False)
        axes.tick_params(labelbottom=axes is grid[-1, 0])
        parts.append(
            own.melt(ignore_index=False, value_name="entropy").reset_index().assign(method=name, seed=run.seed)
        )
    last = grid[-1, 0]
    if len(texts) <= 64:
        last.set_xticks(range(len(texts)), [visible(text) for text in texts], fontsize=7.5, fontfamily="monospace")
        for tick in last.get_xticklabels():
            tick.set_parse_math(False)
            tick.set_rotation(90 if max(len(visible(text)) for text in texts) > 2 else 0)
    last.set_xlabel("token of the demonstration (its entropy: how open its place was)")
    figure.colorbar(image, ax=list(grid[:, 0]), label="entropy (nats)", shrink=0.8, pad=0.015, aspect=30)
    caption = (
        f"Entropy in nats (colour, one scale) at each token of the demonstration of problem {visible(problem)} (across) at each "
        f"recorded training step (down), one panel a method ({', '.join(run.title for run, _ in tables.values())}), one seed each."
    )
    return finish(figure, pd.concat(parts, ignore_index=True), caption)


@kit_style
def surprise(runs: Sequence[Run]) -> RunFigure:
    """How surprised each policy is by the demonstrations, against how surprised it expects to be: one path a run.

    Entropy is the NLL that a policy expects of its own samples. On the line a text is as likely as if the policy had
    written it; above, the policy is surer than it is right; below, it is less sure than it could be. Followed
    demonstrations at every recorded step.
    """
    paths = []
    groups = stats.group(runs)
    for name, members in groups.items():
        for run in members:
            table = run.tokens
            table = table[table["entropy_after"].notna()]
            if len(table):
                paths.append(analysis.entropy_by_kind(table).assign(method=name, seed=run.seed))
    if not paths:
        raise nothing_recorded(runs, "followed demonstrations (records.followed, records.tokens_every)")
    data = pd.concat(paths, ignore_index=True)[["method", "seed", "step", "tokens", "entropy", "nll"]]
    names = list(dict.fromkeys(data["method"]))
    handles: list[Artist] = []
    for name in names:
        colour, marker = style_of(groups[name][0], name, None)
        label = stats.title(name, groups[name])
        handles.append(Line2D([], [], color=colour, lw=2, marker=marker, ms=5, mec="white", mew=0.6, label=label))
    handles += [
        Line2D([], [], ls="", marker="o", mfc="white", mec="black", label="before training"),
        Line2D([], [], color=GREY, lw=1, label="as surprised as it expects to be"),
    ]
    figure, grid = new_figure(
        7.5, 4.0, title="Sure, and right? Surprise at the demonstrations", legends=[handles],
        note="a point a recorded step, joined in training order; thin: seeds, thick: their mean; both axes logarithmic",
    )  # fmt: skip
    axes = grid[0, 0]
    for name in sorted(names, key=lambda name: -data.loc[data["method"] == name, "step"].max()):
        colour, marker = style_of(groups[name][0], name, None)
        own = data[data["method"] == name]
        for _, path in own.groupby("seed"):
            axes.plot(path["entropy"], path["nll"], color=colour, lw=0.8, alpha=0.35)
        mean = own.groupby("step")[["entropy", "nll"]].mean()[own.groupby("step").size() == own["seed"].nunique()]
        axes.plot(mean["entropy"], mean["nll"], color=colour, lw=1.6, alpha=0.8)
        axes.plot(
            mean["entropy"].iloc[-1:],
            mean["nll"].iloc[-1:],
            color=colour,
            ls="",
            marker=marker,
            ms=8,
            mec="white",
            zorder=6,
        )
    start = data[data["step"] == data["step"].min()]
    axes.plot(
        start["entropy"].iloc[:1], start["nll"].iloc[:1], ls="", marker="o", mfc="white", mec="black", ms=7, zorder=7
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = (float(f(data[["entropy", "nll"]].clip(lower=1e-6).to_numpy())) for f in (np.min, np.max))
    axes.plot([low, high], [low, high], color=GREY, lw=1, zorder=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set(
        xlabel="entropy: the NLL that the policy expects (nats/token)", ylabel="NLL of the demonstrations (nats/token)"
    )
    caption = (
        "Token-mean NLL of followed demonstrations against the mean entropy at the same tokens, both in nats (logarithmic), a "
        "point a recorded step, joined in training order, ending in the marker. Above the grey line the policy is surer than it "
        f"is right. {_seeds({name: groups[name] for name in names})}."
    )
    return finish(figure, data, caption)


# ---------------------------------------------------------------------- what an update does to entropy


@kit_style
def entropy_change(runs: Sequence[Run]) -> RunFigure:
    """What single updates did to the entropies of followed demonstrations, against the first-order prediction.

    A panel a method; a point a token of a followed demonstration at a recorded step.
    """
    panels = {}
    for name, members in stats.group(runs).items():
        tables = [run.tokens for run in members]
        parts = [analysis.recorded_change(table) for table in tables if table["entropy_after"].notna().any()]
        if parts:
            panels[name] = (members, pd.concat(parts, ignore_index=True))
    if not panels:
        raise nothing_recorded(runs, "followed demonstrations (records.followed, records.tokens_every)")
    columns = min(2, len(panels))
    figure, grid = new_figure(
        4.2 * columns, 3.0 * math.ceil(len(panels) / columns), title="Entropy change of an update: predicted and observed",
        note="a point a token of a followed demonstration at a recorded step; the line is prediction = observation; "
        "logarithmic beyond 0.001 nats; median error: of changes above 0.001 nats", rows=math.ceil(len(panels) / columns), columns=columns, sharex=True, sharey=True,
    )  # fmt: skip
    limit = max(float(table[["predicted", "observed"]].abs().to_numpy().max()) for _, table in panels.values()) * 1.3
    limit = max(limit, 2e-3)
    for axes, (name, (members, table)) in zip(grid.flat, panels.items(), strict=False):
        axes.plot([-limit, limit], [-limit, limit], color=GREY, lw=0.8)
        axes.scatter(
            table["predicted"],
            table["observed"],
            s=6,
            color=style_of(members[0], name, None)[0],
            alpha=0.35,
            lw=0,
            rasterized=True,
        )
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_yscale("symlog", linthresh=1e-3)
        ticks = [-1, -0.1, -0.01, 0, 0.01, 0.1, 1]
        ticks = [tick for tick in ticks if abs(tick) <= limit]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axes.set_title(f"{stats.title(name, members)}: {_agreement(table)}", loc="left", fontsize=8.5)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    _label_outer(grid, "predicted change (nats)", "observed change (nats)")
    caption = (
        "Change of the entropy in nats at tokens of followed demonstrations by the update of a recorded step, against minus the "
        "covariance of log-probability and its change under the policy before it; a panel a method "
        f"({', '.join(f'{stats.title(name, members)} n = {len(table)}' for name, (members, table) in panels.items())}); "
        f"{_seeds({name: members for name, (members, _) in panels.items()})}."
    )
    data = pd.concat([table.assign(method=name) for name, (_, table) in panels.items()], ignore_index=True)
    return finish(figure, data, caption)


def _seeds(groups: dict[str, list[Run]]) -> str:
    counts = sorted({len(members) for members in groups.values()})
    return f"{'/'.join(map(str, counts))} seed{'' if counts == [1] else 's'} a method"


def _agreement(table: pd.DataFrame) -> str:
    spread = table["observed"].var()
    if not spread or len(table) < 3:
        return f"n = {len(table)}"
    error = table["observed"] - table["predicted"]
    large = table["observed"].abs() > 1e-3
    middle = f"median error {(error[large] / table['observed'][large]).abs().median():.1%}, " if large.any() else ""
    return f"{middle}R² {1 - (error**2).mean() / spread:.2f}"


@kit_style
def advantage_covariance(runs: Sequence[Run]) -> RunFigure:
    """The covariance of log-probability and advantage, which drives entropy under policy gradient, above the entropy."""
    series = collect(runs, None, [("on_policy", "entropy_on_policy", "metrics")])
    parts = []
    for name, members in stats.group(runs).items():
        for run in members:
            table = run.tokens
            sampled = table[(table["kind"] == "on_policy") & table["advantage"].notna()]
            if len(sampled):
                parts.append(analysis.advantage_covariance(sampled).assign(method=name, seed=run.seed))
    if not parts:
        raise nothing_recorded(runs, "sampled tokens with an advantage")
    data = pd.concat(parts, ignore_index=True)
    shown = [one for one in series if one.name in set(data["method"])]
    figure, grid = new_figure(
        7.5, 4.2, title="What drives entropy: covariance of log-probability and advantage", legends=[method_handles(shown)],
        rows=2, sharex=True, note="on-policy tokens; above: recorded problems of recorded steps, thin: seeds, thick: their mean; below: all tokens of every step",
    )  # fmt: skip
    above, below = grid[:, 0]
    above.axhline(0, color=GREY, lw=0.8)
    for one in shown:
        table = data[data["method"] == one.name].pivot(index="step", columns="seed", values="covariance")
        for seed in table if len(table.columns) > 1 else ():
            above.plot(table.index, table[seed], color=one.colour, lw=0.7, alpha=0.35)
        above.plot(table.index, table.mean(axis=1), color=one.colour, lw=1.8)
        draw_series(below, one, width=1)
    above.set_ylabel("covariance (nats)")
    below.set(xlabel="training step (all stages)", ylabel="entropy (nats)")
    from_zero([below])
    caption = (
        "Above: covariance (nats) of log-probability and advantage over recorded on-policy tokens; where it is positive, "
        "policy gradient is predicted to lower entropy. Below: mean entropy of on-policy tokens in nats. Against training step; "
        f"{note_of(shown)}."
    )
    return finish(figure, data, caption)


@kit_style
def collapse(runs: Sequence[Run]) -> RunFigure:
    """What each method gave up in entropy for what it won in reward: one path a run, from the policy before training."""
    entropy = {one.name: one for one in collect(runs, None, [("", "entropy", "evaluations")], required=False)}
    score = {one.name: one for one in collect(runs, None, [("", "avg", "evaluations")], required=False)}
    both = {name: (entropy[name], score[name]) for name in entropy if name in score and entropy[name].method != "base"}
    if not both:
        raise nothing_recorded(runs, "entropies beside scores (entropy, avg)")
    paths = []
    figure, grid = new_figure(
        7.5, 3.6, title="Entropy given up for reward", legends=[method_handles([one for _, one in both.values()], base_line=True)],
        note="validation split, a point an evaluation, joined in training order; thin: seeds, thick: their mean",
    )  # fmt: skip
    axes: Axes = grid[0, 0]
    for name, (across, up) in sorted(both.items(), key=lambda item: -len(item[1][0].frame)):
        for seed in across.frame:
            frame = pd.DataFrame({"entropy": across.frame[seed], "reward": up.frame[seed]}).dropna()
            axes.plot(frame["entropy"], frame["reward"], color=across.colour, lw=0.8, alpha=0.4)
            path = frame.rename_axis("global_step").reset_index().assign(method=name, seed=str(seed))
            if len(frame) > 1:
                found = analysis.collapse(frame.index.to_list(), frame["entropy"].to_list(), frame["reward"].to_list())
                path = path.assign(**{key: getattr(found, key) for key in _COLLAPSE})
            paths.append(path)
        full = across.frame.notna().all(axis=1) & up.frame.reindex(across.frame.index).notna().all(axis=1)
        mean_x, mean_y = across.frame[full].mean(axis=1), up.frame.reindex(across.frame.index)[full].mean(axis=1)
        axes.plot(mean_x, mean_y, color=across.colour, lw=1.8, marker=across.marker, ms=4.5, mec="white", mew=0.5)
    entropy_before, score_before = base_level(runs, "entropy"), base_level(runs, "avg")
    if entropy_before is not None and score_before is not None:
        axes.plot([entropy_before], [score_before], ls="", marker="o", mfc="white", mec="black", ms=6.5, zorder=5)
        axes.axvline(entropy_before / 2, color=GREY, lw=0.9, ls=(0, (2, 2)))
        axes.annotate(
            "half the entropy", (entropy_before / 2, 0), xycoords=("data", "axes fraction"), xytext=(3, 4),
            textcoords="offset points", fontsize=7.5, color=GREY,
        )  # fmt: skip
    axes.set(xlabel="entropy of sampled responses (nats)", ylabel=f"avg@{k_of(runs)} (share of samples solved)")
    axes.set_xlim(left=0)
    from_zero([axes], share=True)
    caption = (
        f"avg@{k_of(runs)} against the mean entropy in nats of sampled validation responses, a point an evaluation, joined in the "
        f"order of training; black circle: before training; dotted: half of its entropy; {note_of(list(entropy.values()))}.{stage_note(list(entropy.values()), ticks=False)}"
    )
    return finish(figure, pd.concat(paths, ignore_index=True), caption)


_COLLAPSE = ("start", "end", "half_time", "lost", "gained", "per_nat")

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
