"""Figures of configs and of curves over training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from prefix_rft_lab.algorithm import schedules
from prefix_rft_lab.analysis import stats
from prefix_rft_lab.analysis.entropy_analysis import nll_and_reward
from prefix_rft_lab.analysis.stats import Label
from prefix_rft_lab.core import columns, rng
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.plots.base import (
    GREY,
    KIND_SHADES,
    KIND_STYLES,
    KIND_TITLES,
    OKABE_ITO,
    RunFigure,
    Series,
    axis_label,
    base_level,
    capitalised,
    collect,
    draw_series,
    finish,
    from_zero,
    hard_count,
    k_of,
    kit_style,
    long_first,
    mark_stages,
    method_handles,
    mixed,
    new_figure,
    note_of,
    nothing_recorded,
    problems_of,
    running_mean,
    short_label,
    smoothing_width,
    stage_note,
    style_of,
    table_of,
)
from prefix_rft_lab.runs.run import Run

# ---------------------------------------------------------------------- figures of single configs


@kit_style
def schedule(config: RunConfig, *, samples: bool = True) -> RunFigure:
    """The window that prefix ratios are drawn from, step by step, its mean, and drawn ratios.

    Args:
        config: gives the schedule (``config.prefix``) and the number of steps (``config.rl.steps``).
        samples: show the ratio that each of four problems would draw at every step, with the run's own keys.
    """
    prefix = schedules.of_run(config)
    steps = np.arange(max(config.rl.steps, 1))
    window = np.array([schedules.ratio_window(prefix, int(step)) for step in steps])
    mean = np.array([schedules.mean_ratio(prefix, int(step)) for step in steps])
    note = (
        f"{prefix.schedule} schedule, window [{prefix.low:g}, {prefix.high:g}], decay over "
        f"{prefix.decay_steps} steps, Beta({prefix.alpha:g}, {prefix.beta:g})"
    )
    handles: list[Artist] = [
        Patch(facecolor=OKABE_ITO["sky"], alpha=0.3, label="window"),
        Line2D([], [], color=OKABE_ITO["blue"], label="expected ratio"),
    ]
    data = pd.DataFrame({"step": steps, "low": window[:, 0], "high": window[:, 1], "mean": mean})
    draws = np.empty((0, len(steps)))
    if samples:
        draws = np.array(
            [
                [schedules.sample_ratio(prefix, int(step), _ratio_draws(config, int(step), problem)) for step in steps]
                for problem in range(4)
            ]
        )
        data = data.assign(**{f"drawn_{problem}": row for problem, row in enumerate(draws)})
        handles.append(
            Line2D([], [], ls="", marker=".", color=GREY, label=f"drawn ratios ({len(draws)} problems a step)")
        )
    figure, grid = new_figure(7.5, 3.2, title="Prefix ratio over training", note=note, legends=[handles])
    axes = grid[0, 0]
    axes.fill_between(steps, window[:, 0], window[:, 1], color=OKABE_ITO["sky"], alpha=0.3, lw=0)
    axes.plot(steps, mean, color=OKABE_ITO["blue"], lw=2)
    for row in draws:
        axes.plot(steps, row, ls="", marker=".", ms=2.5, color=GREY, alpha=0.6, mew=0)
    axes.set(xlabel="RL step", ylabel="prefix ratio\n(share of the demonstration)", ylim=(-0.02, 1.02))
    caption = f"Prefix ratio (share of the demonstration's tokens, 0 to 1) against RL step: {note}."
    return finish(figure, data, caption)


@kit_style
def prefix_lengths(config: RunConfig, demonstration_tokens: Sequence[int]) -> RunFigure:
    """How many tokens of the demonstrations become prefixes at each step.

    Args:
        demonstration_tokens: lengths of the demonstrations in tokens, without the end token; at most 200 of them, evenly chosen, are drawn.

    Raises:
        ConfigError: no demonstrations.
    """
    lengths = [int(n) for n in demonstration_tokens if n > 0]
    if not lengths:
        raise ConfigError("demonstration_tokens = [] holds no length above 0; give the lengths of some demonstrations")
    chosen = [lengths[i] for i in np.unique(np.linspace(0, len(lengths) - 1, min(200, len(lengths))).astype(int))]
    # A few demonstrations are each drawn several times, or chance would show more than the schedule.
    rounds = math.ceil(200 / len(chosen))
    prefix = schedules.of_run(config)
    count = max(config.rl.steps, 1)
    steps = np.unique(np.linspace(0, count - 1, min(60, count)).astype(int))
    table = np.array(
        [
            [
                schedules.prefix_length(
                    schedules.sample_ratio(prefix, int(step), _ratio_draws(config, int(step), i)),
                    n,
                    config.prefix.min_tokens,
                )
                for i, n in enumerate(chosen * rounds)
            ]
            for step in steps
        ]
    )
    quantiles = np.percentile(table, [10, 25, 50, 75, 90], axis=1)
    data = pd.DataFrame(
        {"step": steps, **{f"p{p}": row for p, row in zip((10, 25, 50, 75, 90), quantiles, strict=True)}}
    ).assign(mean=table.mean(axis=1), demonstration_mean=float(np.mean(chosen)))
    note = f"{len(chosen)} demonstrations of {min(chosen)} to {max(chosen)} tokens, {len(chosen) * rounds} draws at each of {len(steps)} steps"
    handles = [
        Patch(facecolor=OKABE_ITO["sky"], alpha=0.25, label="10% to 90%"),
        Patch(facecolor=OKABE_ITO["sky"], alpha=0.6, label="25% to 75%"),
        Line2D([], [], color=OKABE_ITO["blue"], lw=2, label="median prefix"),
        Line2D([], [], color=GREY, ls="--", label="mean demonstration"),
    ]
    figure, grid = new_figure(7.5, 3.2, title="Prefix length over training", note=note, legends=[handles])
    axes = grid[0, 0]
    axes.fill_between(steps, quantiles[0], quantiles[4], color=OKABE_ITO["sky"], alpha=0.25, lw=0)
    axes.fill_between(steps, quantiles[1], quantiles[3], color=OKABE_ITO["sky"], alpha=0.45, lw=0)
    axes.plot(steps, quantiles[2], color=OKABE_ITO["blue"], lw=2)
    axes.axhline(np.mean(chosen), color=GREY, ls="--", lw=1)
    axes.set(xlabel="RL step", ylabel="prefix length (tokens)")
    axes.set_ylim(bottom=0)
    return finish(figure, data, f"Prefix length in tokens against RL step: {note}.")


def _ratio_draws(config: RunConfig, step: int, problem: int) -> np.random.Generator:
    # The key of the first hybrid row, as prefixes.hybrid_rows draws it.
    row = config.rollout.rows_per_problem - max(config.rollout.hybrid_rows, 1)
    return rng.generator(config.seed, "prefix_ratio", step, problem, row)


# ---------------------------------------------------------------------- curves over training


@kit_style
def learning_curves(runs: Sequence[Run], metric: str = "avg", *, label: Label | None = None) -> RunFigure:
    """An evaluation column (``avg``, ``pass``, ``greedy``, ``hard.avg``, ``tokens``...) on the validation split over
    training steps, with the base policy's level."""
    name = metric.rpartition(".")[2]
    shown = short_label(metric, runs)
    if metric.startswith("hard."):
        tries = "/".join(str(n) for n in sorted({run.config.evaluation.hard_tries for run in runs}))
        return _evaluation_figure(
            runs,
            metric,
            label,
            title=f"{shown} on Train-hard over training",
            where=f"{hard_count(runs)} of the training split that the base policy never solved in {tries} tries",
        )
    return _evaluation_figure(
        runs, metric, label, title=capitalised(f"{shown} over training", only=name not in columns.SHARES)
    )


@kit_style
def policy_entropy(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Mean entropy (nats) of sampled validation responses over training, every method on one axis."""
    return _evaluation_figure(runs, "entropy", label, title="Policy entropy over training")


@kit_style
def _evaluation_figure(
    runs: Sequence[Run], column: str, label: Label | None, *, title: str, where: str = ""
) -> RunFigure:
    series = collect(runs, label, [("", column, "evaluations")])
    what = axis_label(column, runs)
    where = where or f"validation split, {problems_of(runs)}"
    figure, grid = new_figure(
        7.5,
        3.6,
        title=title,
        note=note_of(series, where),
        legends=[method_handles(series, base_line=True)],
    )
    axes = grid[0, 0]
    name = column.rpartition(".")[2]
    base = base_level(runs, column)
    if base is not None:
        axes.axhline(base, color=GREY, ls=(0, (4, 3)), lw=1)
    for one in long_first(series):
        if one.method != "base":
            draw_series(axes, one, marker=True)
            mark_stages(axes, [one], text=False)
    axes.set(xlabel="training step (all stages)", ylabel=what)
    from_zero([axes], share=name in columns.SHARES)
    caption = (
        f"{capitalised(what, only=name not in columns.SHARES)} against training step; {note_of(series, where)}. "
        f"Dashed grey: the policy before training.{stage_note(series)}"
    )
    return finish(figure, table_of(series), caption)


@kit_style
def entropy_dynamics(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """The signature figure: entropy by token kind over training, a panel a method, above the prefix-ratio window.

    Entropies are of the training rows (nats over the full vocabulary, before each update); a method without tokens of
    a kind has no line for it.
    """
    kinds = [(kind, f"entropy_{kind}", "metrics") for kind in KIND_STYLES if kind != "demonstration"]
    series = collect(runs, label, kinds)
    names = list(dict.fromkeys(one.name for one in series))
    windows = {
        name: members
        for name, members in stats.group(runs, label).items()
        if any("prefix_ratio_low" in stats.records(run, "metrics") for run in members)
    }
    width = smoothing_width(series)
    # The method with several kinds of token is what one comes to see.
    heights = [2.3 if sum(one.name == name for one in series) > 2 else 1.25 for name in names]
    heights += [1.1] if windows else []
    shown_kinds = [kind for kind in KIND_STYLES if any(one.kind == kind for one in series)]
    handles: list[Artist] = [
        Line2D([], [], color="black", ls=KIND_STYLES[kind], lw=1.8, label=KIND_TITLES[kind]) for kind in shown_kinds
    ]
    if windows:
        handles.append(Patch(facecolor=GREY, alpha=0.25, label="prefix-ratio window"))
    figure, grid = new_figure(
        7.5,
        sum(heights) + 0.2,
        title="Entropy by token kind over training",
        note=note_of(series, "tokens of the training rows", width),
        legends=[handles],
        rows=len(names) + bool(windows),
        heights=heights,
        sharex=True,
    )
    # A rare huge value at a single step would flatten everything else; the means are always inside.
    top = max(
        max(float(running_mean(one.frame.mean(axis=1), width).max()), float(np.nanpercentile(one.frame, 99.5)))
        for one in series
    )
    for axes, name in zip(grid[:, 0], names, strict=False):
        own = [one for one in series if one.name == name]
        for one in own:
            shade = mixed(one.colour, *KIND_SHADES[one.kind]) if len({o.kind for o in own}) > 2 else one.colour
            draw_series(axes, Series(**{**one.__dict__, "colour": shade}), width=width, thin=0.18)
        mark_stages(axes, own)
        axes.set_ylim(0, top * 1.12 if top > 0 else 1)
        axes.set_ylabel("entropy (nats)")
        axes.set_title(f"{own[0].title} ({own[0].seeds})", loc="left", fontsize=9.5, color=own[0].colour, pad=3)
    parts = [table_of(series, width)]
    if windows:
        axes = grid[-1, 0]
        for name, members in windows.items():
            colour, _ = style_of(members[0], name, label)
            low, high, mean = (
                stats.seed_curves(members, column, "metrics").mean(axis=1)
                for column in ("prefix_ratio_low", "prefix_ratio_high", "prefix_ratio")
            )
            axes.fill_between(low.index, low, high, color=colour, alpha=0.22, lw=0)
            axes.plot(mean.index, mean, color=colour, lw=0.9)
            parts.append(
                pd.DataFrame(
                    {
                        "method": name,
                        "series": "prefix_ratio",
                        "global_step": low.index,
                        "mean": mean.reindex(low.index).to_numpy(),
                        "low": low.to_numpy(),
                        "high": high.to_numpy(),
                    }
                )
            )
        axes.set(ylim=(0, 1), ylabel="prefix ratio")
        axes.set_title("Window of prefix ratios, and the mean ratio drawn", loc="left", fontsize=9.5, pad=3)
    grid[-1, 0].set_xlabel("training step (all stages)")
    caption = (
        f"Mean entropy in nats of the training rows' tokens by kind, one panel a method, against training step"
        f"{', above the window of prefix ratios (0 to 1) on the same axis' if windows else ''}. {note_of(series, '', width)}."
    )
    return finish(figure, pd.concat(parts, ignore_index=True), caption)


@kit_style
def rewards(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Mean reward of training rows without and with a prefix, and how often the prefix already shows the answer."""
    columns = [
        ("on_policy", "reward_plain", "metrics"),
        ("continuation", "reward_hybrid", "metrics"),
        ("prefix", "answer_in_prefix", "metrics"),
    ]
    series = collect(runs, label, columns)
    panels = {"on_policy": "Rows without a prefix", "continuation": "Rows with a prefix"}
    if not any(one.kind == "continuation" for one in series):
        del panels["continuation"]
    width = smoothing_width(series)
    handles = method_handles(series)
    extra: list[Artist] = [
        Line2D([], [], color="black", ls=KIND_STYLES["prefix"], label="answer already in the prefix")
    ]
    figure, grid = new_figure(
        8.5 if len(panels) == 2 else 6,
        3.1,
        title="Training reward",
        note=note_of(series, "mean score of a step's rows", width),
        legends=[handles, extra] if len(panels) == 2 else [handles],
        columns=len(panels),
        sharex=True,
        sharey=True,
    )
    for axes, (kind, name) in zip(grid[0], panels.items(), strict=True):
        for one in long_first(series):
            if one.kind == kind or (kind == "continuation" and one.kind == "prefix"):
                style = KIND_STYLES["prefix"] if one.kind == "prefix" else "-"
                draw_series(axes, one, width=width, style=style)
        axes.set_title(name, loc="left", fontsize=9.5)
        axes.set(xlabel="training step (all stages)", ylim=(-0.02, 1.02))
    grid[0, 0].set_ylabel("mean reward (0 to 1)")
    caption = (
        "Mean reward (0 to 1) of training rows without "
        f"{'and with ' if len(panels) == 2 else ''}a prefix against training step. {note_of(series, '', width)}."
    )
    return finish(figure, table_of(series, width), caption)


@kit_style
def lengths(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Response length in tokens: on validation problems, and of training rows without and with a prefix."""
    evaluated = collect(runs, label, [("", "tokens", "evaluations")], required=False)
    trained = collect(
        runs,
        label,
        [
            ("on_policy", "plain_tokens", "metrics"),
            ("continuation", "hybrid_tokens", "metrics"),
            ("prefix", "prefix_tokens", "metrics"),
        ],
        required=False,
    )
    if not evaluated and not trained:
        raise nothing_recorded(runs, "response lengths")
    width = smoothing_width(trained)
    kinds: list[Artist] = [
        Line2D([], [], color="black", ls=KIND_STYLES[kind], label=text)
        for kind, text in (
            ("on_policy", "rows without a prefix"),
            ("continuation", "rows with a prefix (prefix included)"),
            ("prefix", "the prefix alone"),
        )
        if any(one.kind == kind for one in trained)
    ]
    panels = [(title, part) for title, part in (("Validation", evaluated), ("Training rows", trained)) if part]
    figure, grid = new_figure(
        8.5 if len(panels) == 2 else 6,
        3.1,
        title="Response length",
        note=note_of(evaluated or trained, "", width if trained else 1),
        legends=[method_handles(evaluated or trained, base_line=bool(evaluated)), kinds],
        columns=len(panels),
        sharex=True,
        sharey=True,
    )
    for axes, (title, part) in zip(grid[0], panels, strict=True):
        for one in long_first(part):
            if one.method != "base":
                draw_series(axes, one, width=width if part is trained else 1, marker=part is evaluated)
        base = base_level(runs, "tokens") if part is evaluated else None
        if base is not None:
            axes.axhline(base, color=GREY, ls=(0, (4, 3)), lw=1)
        axes.set_title(title, loc="left", fontsize=9.5)
        axes.set_xlabel("training step (all stages)")
    from_zero(list(grid[0]))
    grid[0, 0].set_ylabel("length (tokens)")
    caption = f"Mean response length in tokens against training step. {note_of(evaluated or trained, '', width)}."
    data = pd.concat([table_of(part, width if part is trained else 1) for _, part in panels], ignore_index=True)
    return finish(figure, data, caption)


@kit_style
def loss(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """The loss of every update, supervised stages (NLL) apart from policy-gradient stages: their units differ."""
    series = collect(runs, label, [("", "loss", "metrics")])
    parts: dict[str, list[Series]] = {"supervised": [], "policy": []}
    for one in series:
        members = stats.group(runs, label)[one.name]
        reward = stats.seed_curves(members, "reward", "metrics").reindex(
            index=one.frame.index, columns=one.frame.columns
        )
        for kind, kept in (("supervised", reward.isna()), ("policy", reward.notna())):
            frame = one.frame.where(kept).dropna(how="all")
            if not frame.empty:
                parts[kind].append(Series(**{**one.__dict__, "frame": frame, "column": f"loss ({kind})"}))
    panels = [
        (title, unit, parts[kind])
        for kind, title, unit in (
            ("supervised", "Supervised stages", "NLL (nats/token)"),
            ("policy", "Policy-gradient stages", "surrogate loss (sum / rows × max. tokens)"),
        )
        if parts[kind]
    ]
    width = smoothing_width(series)
    figure, grid = new_figure(
        8.5 if len(panels) == 2 else 6,
        3.1,
        title="Loss",
        note=note_of(series, "", width),
        legends=[method_handles(series)],
        columns=len(panels),
    )
    for axes, (title, unit, part) in zip(grid[0], panels, strict=True):
        for one in long_first(part):
            draw_series(axes, one, width=width, breaks=True)
        axes.set_title(title, loc="left", fontsize=9.5)
        axes.set(xlabel="training step (all stages)", ylabel=unit)
        if unit.startswith("NLL"):
            axes.set_ylim(bottom=0)
        else:
            axes.axhline(0, color=GREY, lw=0.8)
    caption = (
        "Loss of each update against training step; supervised stages in nats per token, policy-gradient stages as the "
        f"clipped surrogate, which isn't meant to fall. {note_of(series, '', width)}."
    )
    return finish(figure, table_of([one for *_, part in panels for one in part], width), caption)


@kit_style
def gradient_norm(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Global gradient norm before clipping, on a logarithmic axis, with the clip of the configs."""
    series = collect(runs, label, [("", "grad_norm", "metrics")])
    width = smoothing_width(series)
    figure, grid = new_figure(
        7.5,
        3.2,
        title="Gradient norm",
        note=note_of(series, "before clipping", width),
        legends=[method_handles(series)],
    )
    axes = grid[0, 0]
    positive = False
    for one in long_first(series):
        # Exactly zero where every group scores alike: no gradient, and no place on a logarithmic axis.
        shown = Series(**{**one.__dict__, "frame": one.frame.where(one.frame > 0)})
        if shown.frame.notna().any(axis=None):
            positive = True
            draw_series(axes, shown, width=width)
            mark_stages(axes, [one], text=False)
    if positive:
        axes.set_yscale("log")
    axes.set(xlabel="training step (all stages)", ylabel="global L2 norm (before clipping)")
    clips = sorted({run.config.rl.grad_clip for run in runs} | {run.config.sft.grad_clip for run in runs})
    lowest, highest = axes.get_ylim()
    for clip in clips:
        if lowest < clip < highest:
            axes.axhline(clip, color=GREY, ls=(0, (4, 3)), lw=1)
            axes.annotate(
                f"clip {clip:g}", (1, clip), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                textcoords="offset points", fontsize=7.5, color=GREY, ha="right",
            )  # fmt: skip
    caption = (
        "Global gradient norm (logarithmic) before clipping against training step; updates without any gradient are left "
        f"out. {note_of(series, '', width)}.{stage_note(series)}"
    )
    return finish(figure, table_of(series, width), caption)


@kit_style
def gradient_by_kind(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """How much of an update each token kind makes: the gradient norm of its loss alone, and its share of the tokens.

    One panel a method that trains demonstration tokens beside sampled ones; norms before clipping, logarithmic, at the steps
    that ``records.diagnostics_every`` chose. The paper reports a doubled norm from prefixes that are 5 to 10% of the tokens.
    """
    kinds = [(kind, f"grad_norm_{kind}", "metrics") for kind in KIND_STYLES if kind != "demonstration"]
    found = [
        Series(**{**one.__dict__, "frame": one.frame.where(one.frame > 0).dropna(how="all")})
        for one in collect(runs, label, kinds)
    ]
    prefixes = {one.name: one.frame.index for one in found if one.kind == "prefix"}
    beside = {
        one.name
        for one in found
        if one.kind != "prefix" and len(one.frame.index.intersection(prefixes.get(one.name, [])))
    }
    series = [one for one in found if one.name in beside and len(one.frame)]
    if not series:
        raise nothing_recorded(runs, "gradient norms of prefixes beside those of sampled tokens (grad_norm_<kind>)")
    names = list(dict.fromkeys(one.name for one in series))
    groups = stats.group(runs, label)
    shown_kinds = [kind for kind in KIND_STYLES if any(one.kind == kind for one in series)]
    figure, grid = new_figure(
        7.5,
        1.9 * len(names) + 0.3,
        title="Gradient norm by token kind",
        note=note_of(series, "each kind's loss alone, before clipping"),
        legends=[[Line2D([], [], color="black", ls=KIND_STYLES[k], lw=1.8, label=KIND_TITLES[k]) for k in shown_kinds]],
        rows=len(names),
        sharex=True,
    )
    for axes, name in zip(grid[:, 0], names, strict=True):
        own = [one for one in series if one.name == name]
        for one in own:
            shade = mixed(one.colour, *KIND_SHADES[one.kind]) if len(own) > 2 else one.colour
            draw_series(axes, Series(**{**one.__dict__, "colour": shade}), marker=True)
        share = stats.seed_curves(groups[name], "prefix_share", "metrics").mean(axis=1).mean()
        axes.set_yscale("log")
        axes.set_ylabel("L2 norm")
        axes.set_title(
            f"{own[0].title} ({own[0].seeds}); {share:.0%} of the tokens are of a demonstration",
            loc="left", fontsize=9.5, color=own[0].colour, pad=3,
        )  # fmt: skip
    grid[-1, 0].set_xlabel("training step (all stages)")
    caption = (
        "Gradient norm (logarithmic) of the loss of one token kind alone, before clipping, against training step; steps where a "
        f"kind has no gradient are left out. {note_of(series)}."
    )
    return finish(figure, table_of(series), caption)


@kit_style
def nll_against_reward(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """How well a policy imitates against how well it solves: NLL of the training demonstrations and avg@k, a point an
    evaluation, joined in the order of training.

    All: validation score against NLL of the probed training demonstrations. Train-hard: both on the training problems
    that the base policy never solved.
    """
    parts = [
        _imitation(run).assign(method=name, seed=run.seed)
        for name, members in stats.group(runs, label).items()
        for run in members
        if run.method != "base"
    ]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if table.empty:
        raise nothing_recorded(runs, "demonstration NLLs beside scores (demonstration_nll, avg)")
    panels = {
        name: table[table["problems"] == key]
        for key, name in (("all", "All problems"), ("train_hard", "Train-hard"))
        if (table["problems"] == key).any()
    }
    scored = collect(runs, label, [("", "avg", "evaluations"), ("", "hard.avg", "evaluations")])
    looks = {one.name: one for one in reversed(scored) if (table["method"] == one.name).any()}
    everyone = list(reversed(looks.values()))
    handles = [
        *method_handles(everyone),
        Line2D([], [], ls="", marker="o", mfc="white", mec="black", label="before training"),
    ]
    figure, grid = new_figure(
        8.5 if len(panels) == 2 else 6,
        3.4,
        title="Imitating and solving: demonstration NLL against score",
        note=note_of(everyone, "a point an evaluation, joined in training order; logarithmic x"),
        legends=[handles],
        columns=len(panels),
        sharey=True,
    )
    k = k_of(runs)
    for axes, (name, part) in zip(grid[0], panels.items(), strict=True):
        for one in long_first(everyone):
            own = part[part["method"] == one.name]
            x, y = (own.pivot(index="global_step", columns="seed", values=column) for column in ("nll", "reward"))
            if len(x.columns) > 1:
                for seed in x.columns:
                    axes.plot(x[seed], y[seed], color=one.colour, lw=0.8, alpha=0.35)
            # Seeds that are still running would bend the mean: it ends where the first one ends.
            full = x.notna().all(axis=1) & y.notna().all(axis=1)
            mean_x, mean_y = x[full].mean(axis=1), y[full].mean(axis=1)
            axes.plot(
                mean_x,
                mean_y,
                color=one.colour,
                lw=1.8,
                marker=one.marker,
                ms=4.5,
                mec="white",
                mew=0.5,
            )
            if len(mean_x):
                axes.plot(
                    mean_x.iloc[:1], mean_y.iloc[:1], ls="", marker="o", mfc="white", mec="black", ms=6.5, zorder=5
                )
        axes.set_xscale("log")
        lowest, highest = axes.get_xlim()
        # 1, 2, 5 would run into each other over more than two decades.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 100 * lowest else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{name} ({hard_count(runs)})" if name == "Train-hard" else name, loc="left", fontsize=9.5)
        axes.set_xlabel("NLL of the demonstrations (nats/token)")
    from_zero(list(grid[0]), share=True)
    grid[0, 0].set_ylabel(f"avg@{k} (share of samples solved)")
    caption = (
        f"avg@{k} against the token-mean NLL (nats, logarithmic) of training demonstrations, a point an evaluation, joined "
        f"in the order of training. {note_of(everyone, problems_of(runs))}.{stage_note(everyone, ticks=False)}"
    )
    return finish(figure, table.rename(columns={"nll": "demonstration_nll", "reward": "avg"}), caption)


def _imitation(run: Run) -> pd.DataFrame:
    """:func:`entropy_analysis.nll_and_reward` of a run; empty where it recorded none."""
    try:
        return nll_and_reward(run.evaluations)
    except RunError:
        return pd.DataFrame()
