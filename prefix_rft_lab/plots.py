"""Every figure of the kit, drawn from what runs recorded.

Each function takes runs (finished, running or interrupted) and returns a :class:`RunFigure`: a Matplotlib figure made
without pyplot, since pyplot keeps a global list of figures that breaks when widgets call back from another thread. It
shows itself in notebooks, carries the numbers it draws in ``figure.data`` and a sentence for readers in
``figure.caption``. :func:`save_figure` writes all of it beside a record of where it came from.

How to read them all: one colour and one marker a method; line style tells the kind of token (dotted prefix, dashed
continuation, solid on-policy); thin lines are single seeds and the thick one is their mean, a band (95% bootstrap over
seeds) replaces the thin lines above five seeds. Where a step-by-step curve is smoothed, the raw one lies beneath it and
the note under the title gives the width. A missing column is a missing line, never a made-up zero.
"""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from prefix_rft_lab import rng, schedules, stats
from prefix_rft_lab.config import ConfigError, RunConfig
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.runs import Run, RunError, directory_of, write_text
from prefix_rft_lab.stats import Label

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

_METHOD_STYLES = {
    "base": ("#595959", "x"),
    "sft": (OKABE_ITO["orange"], "s"),
    "rft": (OKABE_ITO["blue"], "o"),
    "sft_then_rft": (OKABE_ITO["green"], "^"),
    "prefix_rft": (OKABE_ITO["vermilion"], "D"),
}
_SPARE_STYLES = (
    (OKABE_ITO["purple"], "v"),
    (OKABE_ITO["sky"], "P"),
    (OKABE_ITO["black"], "*"),
    (OKABE_ITO["yellow"], "<"),
    (OKABE_ITO["blue"], ">"),
    (OKABE_ITO["green"], "h"),
    (OKABE_ITO["orange"], "p"),
    (OKABE_ITO["vermilion"], "X"),
)

KIND_STYLES: dict[str, Any] = {"on_policy": "-", "continuation": (0, (5, 1.6)), "prefix": (0, (1.2, 1.2))}
"""Token kind -> line style."""
_KIND_SHADES = {"on_policy": ("#000000", 0.6), "continuation": ("#000000", 0.2), "prefix": ("#ffffff", 0.15)}
"""Token kind -> what a method's colour is mixed with where three kinds share a panel."""
_KIND_TITLES = {
    "on_policy": "on-policy (no prefix)",
    "continuation": "continuation (after a prefix)",
    "prefix": "prefix (demonstration)",
}
_GREY = "#595959"
_SCORES = ("avg", "pass", "greedy")
_MANY_SEEDS = 5
"""Above this number a band replaces the single seeds."""

_COLUMN_LABELS = {
    "avg": "avg@{k} (share of samples solved)",
    "pass": "pass@{k} (share of problems solved in {k} tries)",
    "greedy": "greedy pass@1 (share of problems solved)",
    "tokens": "response length (tokens)",
    "truncated": "share of samples cut off",
    "entropy": "entropy (nats)",
    "demonstration_nll": "NLL of the demonstrations (nats/token)",
}


class RunFigure(Figure):
    """A figure that shows itself in notebooks and knows what it draws."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)
        self.data = pd.DataFrame()
        """The numbers drawn."""
        self.caption = ""
        """What the axes show and how many runs and problems it rests on; also the alternative text."""

    def png(self, dpi: float = 144) -> bytes:
        """The figure as PNG."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        return buffer.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        # Drawn at twice the size it is shown in, so that it stays sharp on dense screens.
        return self.png(), {"width": round(self.get_figwidth() * 72), "alt": self.caption}

    def __repr__(self) -> str:
        return f"<figure: {self.caption}>"


# ---------------------------------------------------------------------- figures of single configs


def schedule(config: RunConfig, *, samples: bool = True) -> RunFigure:
    """The window that prefix ratios are drawn from, step by step, its mean, and drawn ratios.

    Args:
        config: gives the schedule (``config.prefix``) and the number of steps (``config.rl.steps``).
        samples: show the ratio that each of four problems would draw at every step, with the run's own keys.
    """
    steps = np.arange(max(config.rl.steps, 1))
    window = np.array([schedules.ratio_window(config.prefix, int(step)) for step in steps])
    mean = np.array([schedules.mean_ratio(config.prefix, int(step)) for step in steps])
    note = (
        f"{config.prefix.schedule} schedule, window [{config.prefix.low:g}, {config.prefix.high:g}], decay over "
        f"{config.prefix.decay_steps} steps, Beta({config.prefix.alpha:g}, {config.prefix.beta:g})"
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
                [
                    schedules.sample_ratio(config.prefix, int(step), _ratio_draws(config, int(step), problem))
                    for step in steps
                ]
                for problem in range(4)
            ]
        )
        data = data.assign(**{f"drawn_{problem}": row for problem, row in enumerate(draws)})
        handles.append(
            Line2D([], [], ls="", marker=".", color=_GREY, label=f"drawn ratios ({len(draws)} problems a step)")
        )
    figure, grid = _figure(7.5, 3.2, title="Prefix ratio over training", note=note, legends=[handles])
    axes = grid[0, 0]
    axes.fill_between(steps, window[:, 0], window[:, 1], color=OKABE_ITO["sky"], alpha=0.3, lw=0)
    axes.plot(steps, mean, color=OKABE_ITO["blue"], lw=2)
    for row in draws:
        axes.plot(steps, row, ls="", marker=".", ms=2.5, color=_GREY, alpha=0.6, mew=0)
    axes.set(xlabel="RL step", ylabel="prefix ratio\n(share of the demonstration)", ylim=(-0.02, 1.02))
    caption = f"Prefix ratio (share of the demonstration's tokens, 0 to 1) against RL step: {note}."
    return _finish(figure, data, caption)


def prefix_lengths(config: RunConfig, demonstration_tokens: Sequence[int]) -> RunFigure:
    """How many tokens of the demonstrations become prefixes at each step.

    Args:
        demonstration_tokens: lengths of the demonstrations in tokens; at most 200 of them, evenly chosen, are drawn.

    Raises:
        ConfigError: no demonstrations.
    """
    lengths = [int(n) for n in demonstration_tokens if n > 0]
    if not lengths:
        raise ConfigError("demonstration_tokens = [] holds no length above 0; give the lengths of some demonstrations")
    chosen = [lengths[i] for i in np.unique(np.linspace(0, len(lengths) - 1, min(200, len(lengths))).astype(int))]
    # A few demonstrations are each drawn several times, or chance would show more than the schedule.
    rounds = math.ceil(200 / len(chosen))
    count = max(config.rl.steps, 1)
    steps = np.unique(np.linspace(0, count - 1, min(60, count)).astype(int))
    table = np.array(
        [
            [
                schedules.prefix_length(
                    schedules.sample_ratio(config.prefix, int(step), _ratio_draws(config, int(step), i)),
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
        Line2D([], [], color=_GREY, ls="--", label="mean demonstration"),
    ]
    figure, grid = _figure(7.5, 3.2, title="Prefix length over training", note=note, legends=[handles])
    axes = grid[0, 0]
    axes.fill_between(steps, quantiles[0], quantiles[4], color=OKABE_ITO["sky"], alpha=0.25, lw=0)
    axes.fill_between(steps, quantiles[1], quantiles[3], color=OKABE_ITO["sky"], alpha=0.45, lw=0)
    axes.plot(steps, quantiles[2], color=OKABE_ITO["blue"], lw=2)
    axes.axhline(np.mean(chosen), color=_GREY, ls="--", lw=1)
    axes.set(xlabel="RL step", ylabel="prefix length (tokens)")
    axes.set_ylim(bottom=0)
    return _finish(figure, data, f"Prefix length in tokens against RL step: {note}.")


def _ratio_draws(config: RunConfig, step: int, problem: int) -> np.random.Generator:
    # The key of the first hybrid row, as prefixes.hybrid_rows draws it.
    row = config.rollout.rows_per_problem - max(config.rollout.hybrid_rows, 1)
    return rng.generator(config.seed, "prefix_ratio", step, problem, row)


# ---------------------------------------------------------------------- curves over training


def learning_curves(runs: Sequence[Run], metric: str = "avg", *, label: Label | None = None) -> RunFigure:
    """An evaluation column (``avg``, ``pass``, ``greedy``, ``hard.avg``, ``tokens``...) on the validation split over
    training steps, with the base policy's level."""
    name = metric.rpartition(".")[2]
    shown = _short(name, runs) if name in _COLUMN_LABELS else metric
    if metric.startswith("hard."):
        tries = "/".join(str(n) for n in sorted({run.config.evaluation.hard_tries for run in runs}))
        return _evaluation_figure(
            runs,
            metric,
            label,
            title=f"{shown} on Train-hard over training",
            where=f"{_hard_count(runs)} of the training split that the base policy never solved in {tries} tries",
        )
    return _evaluation_figure(runs, metric, label, title=_plain(f"{shown} over training", only=name not in _SCORES))


def policy_entropy(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Mean entropy (nats) of sampled validation responses over training, every method on one axis."""
    return _evaluation_figure(runs, "entropy", label, title="Policy entropy over training")


def _evaluation_figure(
    runs: Sequence[Run], column: str, label: Label | None, *, title: str, where: str = ""
) -> RunFigure:
    series = _collect(runs, label, [("", column, "evaluations")])
    what = _axis_label(column, runs)
    where = where or f"validation split, {_problems(runs)}"
    figure, grid = _figure(
        7.5,
        3.6,
        title=title,
        note=_note(series, where),
        legends=[_method_handles(series, base_line=True)],
    )
    axes = grid[0, 0]
    name = column.rpartition(".")[2]
    base = _base_level(runs, column)
    if base is not None:
        axes.axhline(base, color=_GREY, ls=(0, (4, 3)), lw=1)
    for one in _long_first(series):
        if one.method != "base":
            _draw(axes, one, marker=True)
            _mark_stages(axes, [one], text=False)
    axes.set(xlabel="training step (all stages)", ylabel=what)
    _from_zero([axes], share=name in _SCORES)
    caption = (
        f"{_plain(what, only=name not in _SCORES)} against training step; {_note(series, where)}. "
        f"Dashed grey: the policy before training.{_stage_note(series)}"
    )
    return _finish(figure, _table(series), caption)


def entropy_dynamics(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """The signature figure: entropy by token kind over training, a panel a method, above the prefix-ratio window.

    Entropies are of the training rows (nats over the full vocabulary, before each update); a method without tokens of
    a kind has no line for it.
    """
    kinds = [(kind, f"entropy_{kind}", "metrics") for kind in KIND_STYLES]
    series = _collect(runs, label, kinds)
    names = list(dict.fromkeys(one.name for one in series))
    windows = {
        name: members
        for name, members in stats.group(runs, label).items()
        if any("prefix_ratio_low" in stats.records(run, "metrics") for run in members)
    }
    width = _window(series)
    # The method with several kinds of token is what one comes to see.
    heights = [2.3 if sum(one.name == name for one in series) > 2 else 1.25 for name in names]
    heights += [1.1] if windows else []
    shown_kinds = [kind for kind in KIND_STYLES if any(one.kind == kind for one in series)]
    handles: list[Artist] = [
        Line2D([], [], color="black", ls=KIND_STYLES[kind], lw=1.8, label=_KIND_TITLES[kind]) for kind in shown_kinds
    ]
    if windows:
        handles.append(Patch(facecolor=_GREY, alpha=0.25, label="prefix-ratio window"))
    figure, grid = _figure(
        7.5,
        sum(heights) + 0.2,
        title="Entropy by token kind over training",
        note=_note(series, "tokens of the training rows", width),
        legends=[handles],
        rows=len(names) + bool(windows),
        heights=heights,
        sharex=True,
    )
    # A rare huge value at a single step would flatten everything else; the means are always inside.
    top = max(
        max(float(_smooth(one.frame.mean(axis=1), width).max()), float(np.nanpercentile(one.frame, 99.5)))
        for one in series
    )
    for axes, name in zip(grid[:, 0], names, strict=False):
        own = [one for one in series if one.name == name]
        for one in own:
            shade = _mix(one.colour, *_KIND_SHADES[one.kind]) if len({o.kind for o in own}) > 2 else one.colour
            _draw(axes, _Series(**{**one.__dict__, "colour": shade}), width=width, thin=0.18)
        _mark_stages(axes, own)
        axes.set_ylim(0, top * 1.12 if top > 0 else 1)
        axes.set_ylabel("entropy (nats)")
        axes.set_title(f"{own[0].title} ({own[0].seeds})", loc="left", fontsize=9.5, color=own[0].colour, pad=3)
    parts = [_table(series, width)]
    if windows:
        axes = grid[-1, 0]
        for name, members in windows.items():
            colour, _ = _style(members[0], name, label)
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
        f"{', above the window of prefix ratios (0 to 1) on the same axis' if windows else ''}. {_note(series, '', width)}."
    )
    return _finish(figure, pd.concat(parts, ignore_index=True), caption)


def rewards(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Mean reward of training rows without and with a prefix, and how often the prefix already shows the answer."""
    columns = [
        ("on_policy", "reward_plain", "metrics"),
        ("continuation", "reward_hybrid", "metrics"),
        ("prefix", "answer_in_prefix", "metrics"),
    ]
    series = _collect(runs, label, columns)
    panels = {"on_policy": "Rows without a prefix", "continuation": "Rows with a prefix"}
    if not any(one.kind == "continuation" for one in series):
        del panels["continuation"]
    width = _window(series)
    handles = _method_handles(series)
    extra: list[Artist] = [
        Line2D([], [], color="black", ls=KIND_STYLES["prefix"], label="answer already in the prefix")
    ]
    figure, grid = _figure(
        8.5 if len(panels) == 2 else 6,
        3.1,
        title="Training reward",
        note=_note(series, "mean score of a step's rows", width),
        legends=[handles, extra] if len(panels) == 2 else [handles],
        columns=len(panels),
        sharex=True,
        sharey=True,
    )
    for axes, (kind, name) in zip(grid[0], panels.items(), strict=True):
        for one in _long_first(series):
            if one.kind == kind or (kind == "continuation" and one.kind == "prefix"):
                style = KIND_STYLES["prefix"] if one.kind == "prefix" else "-"
                _draw(axes, one, width=width, style=style)
        axes.set_title(name, loc="left", fontsize=9.5)
        axes.set(xlabel="training step (all stages)", ylim=(-0.02, 1.02))
    grid[0, 0].set_ylabel("mean reward (0 to 1)")
    caption = (
        "Mean reward (0 to 1) of training rows without "
        f"{'and with ' if len(panels) == 2 else ''}a prefix against training step. {_note(series, '', width)}."
    )
    return _finish(figure, _table(series, width), caption)


def lengths(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Response length in tokens: on validation problems, and of training rows without and with a prefix."""
    evaluated = _collect(runs, label, [("", "tokens", "evaluations")], required=False)
    trained = _collect(
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
        raise _nothing(runs, "response lengths")
    width = _window(trained)
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
    figure, grid = _figure(
        8.5 if len(panels) == 2 else 6,
        3.1,
        title="Response length",
        note=_note(evaluated or trained, "", width if trained else 1),
        legends=[_method_handles(evaluated or trained, base_line=bool(evaluated)), kinds],
        columns=len(panels),
        sharex=True,
        sharey=True,
    )
    for axes, (title, part) in zip(grid[0], panels, strict=True):
        for one in _long_first(part):
            if one.method != "base":
                _draw(axes, one, width=width if part is trained else 1, marker=part is evaluated)
        base = _base_level(runs, "tokens") if part is evaluated else None
        if base is not None:
            axes.axhline(base, color=_GREY, ls=(0, (4, 3)), lw=1)
        axes.set_title(title, loc="left", fontsize=9.5)
        axes.set_xlabel("training step (all stages)")
    _from_zero(list(grid[0]))
    grid[0, 0].set_ylabel("length (tokens)")
    caption = f"Mean response length in tokens against training step. {_note(evaluated or trained, '', width)}."
    data = pd.concat([_table(part, width if part is trained else 1) for _, part in panels], ignore_index=True)
    return _finish(figure, data, caption)


def loss(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """The loss of every update, supervised stages (NLL) apart from policy-gradient stages: their units differ."""
    series = _collect(runs, label, [("", "loss", "metrics")])
    parts: dict[str, list[_Series]] = {"supervised": [], "policy": []}
    for one in series:
        members = stats.group(runs, label)[one.name]
        reward = stats.seed_curves(members, "reward", "metrics").reindex(
            index=one.frame.index, columns=one.frame.columns
        )
        for kind, kept in (("supervised", reward.isna()), ("policy", reward.notna())):
            frame = one.frame.where(kept).dropna(how="all")
            if not frame.empty:
                parts[kind].append(_Series(**{**one.__dict__, "frame": frame, "column": f"loss ({kind})"}))
    panels = [
        (title, unit, parts[kind])
        for kind, title, unit in (
            ("supervised", "Supervised stages", "NLL (nats/token)"),
            ("policy", "Policy-gradient stages", "surrogate loss (sum / rows × max. tokens)"),
        )
        if parts[kind]
    ]
    width = _window(series)
    figure, grid = _figure(
        8.5 if len(panels) == 2 else 6,
        3.1,
        title="Loss",
        note=_note(series, "", width),
        legends=[_method_handles(series)],
        columns=len(panels),
    )
    for axes, (title, unit, part) in zip(grid[0], panels, strict=True):
        for one in _long_first(part):
            _draw(axes, one, width=width, breaks=True)
        axes.set_title(title, loc="left", fontsize=9.5)
        axes.set(xlabel="training step (all stages)", ylabel=unit)
        if unit.startswith("NLL"):
            axes.set_ylim(bottom=0)
        else:
            axes.axhline(0, color=_GREY, lw=0.8)
    caption = (
        "Loss of each update against training step; supervised stages in nats per token, policy-gradient stages as the "
        f"clipped surrogate, which isn't meant to fall. {_note(series, '', width)}."
    )
    return _finish(figure, _table([one for *_, part in panels for one in part], width), caption)


def gradient_norm(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Global gradient norm before clipping, on a logarithmic axis, with the clip of the configs."""
    series = _collect(runs, label, [("", "grad_norm", "metrics")])
    width = _window(series)
    figure, grid = _figure(
        7.5, 3.2, title="Gradient norm", note=_note(series, "before clipping", width), legends=[_method_handles(series)]
    )
    axes = grid[0, 0]
    positive = False
    for one in _long_first(series):
        # Exactly zero where every group scores alike: no gradient, and no place on a logarithmic axis.
        shown = _Series(**{**one.__dict__, "frame": one.frame.where(one.frame > 0)})
        if shown.frame.notna().any(axis=None):
            positive = True
            _draw(axes, shown, width=width)
            _mark_stages(axes, [one], text=False)
    if positive:
        axes.set_yscale("log")
    axes.set(xlabel="training step (all stages)", ylabel="global L2 norm (before clipping)")
    clips = sorted({run.config.rl.grad_clip for run in runs} | {run.config.sft.grad_clip for run in runs})
    lowest, highest = axes.get_ylim()
    for clip in clips:
        if lowest < clip < highest:
            axes.axhline(clip, color=_GREY, ls=(0, (4, 3)), lw=1)
            axes.annotate(
                f"clip {clip:g}", (1, clip), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                textcoords="offset points", fontsize=7.5, color=_GREY, ha="right",
            )  # fmt: skip
    caption = (
        "Global gradient norm (logarithmic) before clipping against training step; updates without any gradient are left "
        f"out. {_note(series, '', width)}.{_stage_note(series)}"
    )
    return _finish(figure, _table(series, width), caption)


def nll_against_reward(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """How well a policy imitates against how well it solves: NLL of the training demonstrations and avg@k, a point an
    evaluation, joined in the order of training.

    All: validation score against NLL of the probed training demonstrations. Train-hard: both on the training problems
    that the base policy never solved.
    """
    wanted = {
        "All problems": ("demonstration_nll", "avg"),
        "Train-hard": ("demonstration_nll_hard", "hard.avg"),
    }
    panels = {}
    for name, (across, up) in wanted.items():
        nll = {one.name: one for one in _collect(runs, label, [("", across, "evaluations")], required=False)}
        score = {one.name: one for one in _collect(runs, label, [("", up, "evaluations")], required=False)}
        both = {key: (nll[key], score[key]) for key in nll if key in score and nll[key].method != "base"}
        if both:
            panels[name] = both
    if not panels:
        raise _nothing(runs, "demonstration NLLs beside scores (demonstration_nll, avg)")
    everyone = [pair[1] for pair in next(iter(panels.values())).values()]
    handles = [
        *_method_handles(everyone),
        Line2D([], [], ls="", marker="o", mfc="white", mec="black", label="before training"),
    ]
    figure, grid = _figure(
        8.5 if len(panels) == 2 else 6,
        3.4,
        title="Imitating and solving: demonstration NLL against score",
        note=_note(everyone, "a point an evaluation, joined in training order; logarithmic x"),
        legends=[handles],
        columns=len(panels),
        sharey=True,
    )
    k = _k(runs)
    rows = []
    for axes, (name, both) in zip(grid[0], panels.items(), strict=True):
        for nll_series, score_series in _pairs(both):
            steps = nll_series.frame.index.intersection(score_series.frame.index)
            x, y = nll_series.frame.loc[steps], score_series.frame.loc[steps]
            if len(x.columns) > 1:
                for seed in x.columns:
                    axes.plot(x[seed], y[seed], color=score_series.colour, lw=0.8, alpha=0.35)
            # Seeds that are still running would bend the mean: it ends where the first one ends.
            full = x.notna().all(axis=1) & y.notna().all(axis=1)
            mean_x, mean_y = x[full].mean(axis=1), y[full].mean(axis=1)
            axes.plot(
                mean_x,
                mean_y,
                color=score_series.colour,
                lw=1.8,
                marker=score_series.marker,
                ms=4.5,
                mec="white",
                mew=0.5,
            )
            if len(mean_x):
                axes.plot(
                    mean_x.iloc[:1], mean_y.iloc[:1], ls="", marker="o", mfc="white", mec="black", ms=6.5, zorder=5
                )
            rows += [
                {
                    "panel": name,
                    "method": score_series.name,
                    "seed": seed,
                    "global_step": step,
                    "demonstration_nll": x.loc[step, seed],
                    "avg": y.loc[step, seed],
                }
                for seed in x.columns
                for step in steps
            ]
        axes.set_xscale("log")
        lowest, highest = axes.get_xlim()
        # 1, 2, 5 would run into each other over more than two decades.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 100 * lowest else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{name} ({_hard_count(runs)})" if name == "Train-hard" else name, loc="left", fontsize=9.5)
        axes.set_xlabel("NLL of the demonstrations (nats/token)")
    _from_zero(list(grid[0]), share=True)
    grid[0, 0].set_ylabel(f"avg@{k} (share of samples solved)")
    caption = (
        f"avg@{k} against the token-mean NLL (nats, logarithmic) of training demonstrations, a point an evaluation, joined "
        f"in the order of training. {_note(everyone, _problems(runs))}.{_stage_note(everyone, ticks=False)}"
    )
    return _finish(figure, pd.DataFrame(rows), caption)


def _pairs(both: Mapping[str, tuple[_Series, _Series]]) -> list[tuple[_Series, _Series]]:
    return sorted(both.values(), key=lambda pair: -len(pair[0].frame))


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
        raise RunError(f"{_name(run)} recorded no tokens; set records.tokens_every above 0 and train it")
    rows = ["step", "problem", "row"]
    hybrid = table.groupby(rows)["kind"].transform(lambda kinds: (kinds == "continuation").any())
    table = table[hybrid & (table["kind"] == "prefix")].copy()
    if table.empty:
        raise RunError(f"{_name(run)} recorded no prefix tokens; take a run of a method with prefixes (prefix_rft)")
    size = table.groupby(rows)["position"].transform("max")
    table["place"] = np.where(size > 0, table["position"] / size.clip(lower=1), 0.0)
    steps = table["step"].nunique()
    note = f"{len(table)} prefix tokens of {steps} recorded steps, seed {run.seed}; {table['kept'].mean():.0%} kept"
    colours = {True: OKABE_ITO["vermilion"], False: OKABE_ITO["sky"]}
    handles: list[Artist] = [
        Line2D([], [], ls="", marker="o", ms=5, color=colours[True], label="kept: trained with the advantage"),
        Line2D([], [], ls="", marker="x", ms=5, color=colours[False], label="clipped: advantage 0"),
    ]
    figure, grid = _figure(
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
    return _finish(figure, data, caption)


_MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def visible(text: str) -> str:
    """A token's text with its white space shown, and what the figure font cannot draw as escapes."""
    shown = "".join(
        _MARKS.get(c) or (c if c.isprintable() and ord(c) < 0x250 else c.encode("unicode_escape").decode())
        for c in text
    )
    return shown if len(shown) <= 24 else f"{shown[:23]}…"


# ---------------------------------------------------------------------- final scores


def final_scores(
    runs: Sequence[Run], split: str = "test", metric: str = "avg", *, label: Label | None = None
) -> RunFigure:
    """Final score of every method with its 95% interval, single seeds as dots."""
    groups = stats.group(runs, label)
    table = stats.compare(runs, split, metric, label=label)
    measured = stats.scores(groups, split)
    name = stats.metric_name(metric, int(table["k"].iloc[0]))
    note = (
        f"{split} split, {int(table['problems'].iloc[0])} problems, {_seed_counts(table)}; bars: 95% bootstrap over "
        "seeds and problems (problems only where there is one seed)"
    )
    figure, grid = _figure(7.5, 0.52 * len(table) + 0.75, title=f"Final {name} on {split}", note=note)
    axes = grid[0, 0]
    data = table[["method", "title", "seeds", "problems", "mean", "low", "high", "resampled"]].copy()
    for place, row in enumerate(table.to_dict("records")):
        method = row["method"]
        colour, marker = _style(groups[method][0], method, label, place)
        own = measured[method]
        seeds = own.values[metric].mean(axis=1)
        if len(seeds) > 1:
            # Fixed offsets: dots of equal scores stay apart without chance.
            offset = np.linspace(-0.2, 0.2, len(seeds))
            axes.plot(seeds, place + offset, ls="", marker="o", ms=4, color=colour, alpha=0.6, mew=0)
        thin = marker == "x"
        axes.errorbar(
            [row["mean"]],
            [place],
            xerr=[[row["mean"] - row["low"]], [row["high"] - row["mean"]]],
            color=colour, marker=marker, ms=7, lw=1.8, capsize=4, mec=colour if thin else "white", mew=2 if thin else 0.8,
        )  # fmt: skip
        axes.annotate(
            f"{row['mean']:.1f}" if metric == "tokens" else f"{row['mean']:.3f}",
            (row["high"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        for seed, score in zip(own.seeds, seeds, strict=True):
            data.loc[data["method"] == method, f"seed_{seed}"] = float(score)
    axes.set_yticks(range(len(table)), list(table["title"]), parse_math=False)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel(_COLUMN_LABELS[metric].format(k=int(table["k"].iloc[0])))
    axes.grid(axis="y", visible=False)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0), high + 0.06 * (high - min(low, 0)))
    return _finish(figure, data, f"{name} of every method: {note}.")


def pass_at_k(runs: Sequence[Run], split: str = "test", *, label: Label | None = None) -> RunFigure:
    """Unbiased pass@k for k = 1 to the number of samples, with 95% bands."""
    groups = stats.group(runs, label)
    table = stats.pass_curve(runs, split, label=label)
    scores = stats.scores(groups, split)
    problems = next(iter(scores.values())).problems
    seeds = pd.DataFrame({"seeds": [len(members) for members in groups.values()], "method": list(groups)})
    note = f"{split} split, {problems} problems, {_seed_counts(seeds)}; bands: 95% bootstrap over seeds and problems"
    handles = []
    for place, (name, members) in enumerate(groups.items()):
        colour, marker = _style(members[0], name, label, place)
        handles.append(
            Line2D([], [], color=colour, marker=marker, ms=5, lw=1.8, label=_escape(stats.title(name, members)))
        )
    figure, grid = _figure(7.5, 3.4, title=f"pass@k on {split}", note=note, legends=[handles])
    axes = grid[0, 0]
    for place, (name, members) in enumerate(groups.items()):
        colour, marker = _style(members[0], name, label, place)
        part = table[table["method"] == name]
        axes.fill_between(part["k"], part["low"], part["high"], color=colour, alpha=0.13, lw=0)
        axes.plot(part["k"], part["mean"], color=colour, lw=1.8, marker=marker, ms=4.5)
    most = int(table["k"].max())
    if most > 2:
        axes.set_xscale("log", base=2)
        ticks = [2**i for i in range(int(math.log2(most)) + 1)]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
    axes.set(
        xlabel="k (samples a problem, logarithmic)", ylabel="pass@k (share of problems solved)", ylim=(-0.02, 1.02)
    )
    caption = f"Unbiased pass@k (share of problems solved in k tries) against k: {note}."
    return _finish(figure, table, caption)


# ---------------------------------------------------------------------- saving


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
    stem = Path(path_stem)
    if stem.suffix in (".pdf", ".svg", ".png", ".csv", ".json"):
        stem = stem.with_suffix("")
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Appended, not with_suffix: a stem like "keep-0.2" has a dot of its own.
    paths = {ending: stem.with_name(f"{stem.name}.{ending}") for ending in ("pdf", "svg", "png", "csv", "json")}
    with mpl.rc_context({"svg.hashsalt": "prefix_rft_lab", "pdf.fonttype": 42}):
        figure.savefig(paths["pdf"], metadata={"CreationDate": None, "ModDate": None}, facecolor="white")
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None}, facecolor="white")
        figure.savefig(paths["png"], dpi=144, facecolor="white")
    write_text(paths["svg"], _stable_ids(svg.getvalue()))
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
    import prefix_rft_lab

    return {
        "caption": getattr(figure, "caption", ""),
        "runs": [
            {
                "run": _name(run),
                "method": run.method,
                "seed": run.seed,
                "config": run.config.hash(),
                "source": environment(run).get("source"),
                "done": run.done,
            }
            for run in sorted(runs, key=_name)
        ],
        "versions": {
            "prefix_rft_lab": prefix_rft_lab.__version__,
            "matplotlib": mpl.__version__,
            "numpy": np.__version__,
            "pandas": pd.__version__,
        },
    }


def environment(run: Run) -> dict[str, Any]:
    """The versions and machine of a run as it recorded them; empty if it recorded none."""
    path = run.path / "env.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _name(run: Run) -> str:
    """A run's directory relative to the folder of all runs."""
    return directory_of(run.config, "").as_posix()


# ---------------------------------------------------------------------- shared parts


def _stage_note(series: Sequence[_Series], *, ticks: bool = True) -> str:
    """What a reader must know of runs with several stages."""
    note = " Vertical tick on a line: its next stage begins." if ticks and any(one.boundaries for one in series) else ""
    if {"sft", "sft_then_rft"} <= {one.method for one in series}:
        note += " SFT and the first stage of SFT→RFT are the same training, so their lines coincide there."
    return note


@dataclass(frozen=True, slots=False)
class _Series:
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


def _collect(
    runs: Sequence[Run],
    label: Label | None,
    columns: Sequence[tuple[str, str, Any]],
    *,
    required: bool = True,
) -> list[_Series]:
    """The recorded columns (kind, name, source) of every group; groups and columns without values are left out."""
    out = []
    for place, (name, members) in enumerate(stats.group(runs, label).items()):
        colour, marker = _style(members[0], name, label, place)
        boundaries = _boundaries(members)
        for kind, column, source in columns:
            frame = stats.seed_curves(members, column, source)
            if not frame.empty:
                out.append(
                    _Series(
                        name=name,
                        title=_escape(stats.title(name, members)),
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
        raise _nothing(runs, " or ".join(column for _, column, _ in columns))
    return out


def _nothing(runs: Sequence[Run], what: str) -> RunError:
    names = ", ".join(_name(run) for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
    return RunError(f"{names} recorded no {what} yet; draw this again when training has recorded some")


def _boundaries(members: Sequence[Run]) -> tuple[tuple[int, str], ...]:
    """First global step of every stage after the first, from the run that got furthest."""
    tables = [stats.records(run, "metrics") for run in members]
    table = max(tables, key=len)
    if table.empty or "stage" not in table:
        return ()
    changes = table[table["stage"].ne(table["stage"].shift())].iloc[1:]
    return tuple(zip(changes["global_step"].astype(int), changes["stage"].astype(str), strict=True))


def _style(run: Run, name: str, label: Label | None, place: int = 0) -> tuple[str, str]:
    """(colour, marker) of a group: fixed for known methods, in turn for the others."""
    if label is None and name in _METHOD_STYLES:
        return _METHOD_STYLES[name]
    if label is None and name in METHODS:
        place = [m for m in METHODS if m not in _METHOD_STYLES].index(name)
    elif label is not None:
        every = (*list(_METHOD_STYLES.values())[1:], *_SPARE_STYLES)
        return every[place % len(every)]
    return _SPARE_STYLES[place % len(_SPARE_STYLES)]


def _mix(colour: str, other: str, share: float) -> str:
    one, two = to_rgb(colour), to_rgb(other)
    return to_hex(tuple(np.add(np.multiply(1 - share, one), np.multiply(share, two))))


def _escape(text: str) -> str:
    """Dollar signs as themselves, not as mathematics."""
    return text.replace("$", r"\$")


def _window(series: Sequence[_Series]) -> int:
    """Steps of the running mean: about a twentieth of the longest curve, odd, 1 (none) for short ones."""
    longest = max((len(one.frame) for one in series), default=0)
    return 1 if longest < 40 else longest // 20 // 2 * 2 + 1


def _smooth(mean: pd.Series, width: int) -> pd.Series:
    return mean if width <= 1 else mean.rolling(width, center=True, min_periods=1).mean()


def _full_mean(frame: pd.DataFrame) -> pd.Series:
    """Mean over seeds where as many seeds reported as ever do: a curve must not bend because a seed is behind."""
    count = frame.notna().sum(axis=1)
    return frame.mean(axis=1)[count == count.max()]


def _draw(
    axes: Axes,
    one: _Series,
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
    mean = _full_mean(frame)
    shown = _smooth(mean, width)
    if breaks and len(shown):
        # Steps of another stage lie between: no line across them.
        full = np.arange(shown.index.min(), shown.index.max() + 1)
        shown, frame = shown.reindex(full), frame.reindex(full)
    if len(frame.columns) > _MANY_SEEDS:
        table = stats.summarise_curve(frame).set_index("global_step")
        axes.fill_between(table.index, table["low"], table["high"], color=one.colour, alpha=0.18, lw=0)
    elif len(frame.columns) > 1 or width > 1:
        for seed in frame.columns:
            axes.plot(frame.index, frame[seed], color=one.colour, ls="-", lw=0.7, alpha=thin)
    options: dict[str, Any] = {"marker": one.marker, "ms": 5, "mec": "white", "mew": 0.6} if marker else {}
    axes.plot(shown.index, shown, color=one.colour, ls=style, lw=1.8, **options)


def _long_first(series: Sequence[_Series]) -> list[_Series]:
    """Drawing order: SFT is bit for bit the first stage of SFT→RFT, so the shorter line goes on top to be seen."""
    return sorted(series, key=lambda one: (-len(one.frame), -len(one.boundaries)))


def _from_zero(panels: Sequence[Axes], *, share: bool = False) -> None:
    """Let y start at 0, after everything is drawn; shares of 1 end at 1 at most."""
    top = max(max(axes.dataLim.y1 for axes in panels), 0.1 if share else 1e-9) * 1.08
    for axes in panels:
        axes.set_ylim(-0.02 * top if share else 0.0, min(top, 1.02) if share else top)


def _mark_stages(axes: Axes, own: Sequence[_Series], *, text: bool = True) -> None:
    """A vertical mark where a later stage begins, named if it has the panel to itself."""
    for step, stage in own[0].boundaries if own else ():
        if text:
            axes.axvline(step, color=_GREY, lw=0.9, ls=(0, (2, 2)))
            axes.annotate(
                f"{stage} begins", (step, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                textcoords="offset points", va="top", fontsize=7.5, color=_GREY,
            )  # fmt: skip
        else:
            mean = _full_mean(own[0].frame)
            if len(mean):
                height = float(np.interp(step, mean.index.to_numpy(float), mean.to_numpy(float)))
                axes.plot([step], [height], marker="|", ms=13, mew=1.6, color=own[0].colour)


def _base_level(runs: Sequence[Run], column: str) -> float | None:
    """The policy before training: the evaluations at step 0, which all runs of one start share."""
    values = []
    for run in runs:
        frame = stats.seed_curves([run], column, "evaluations")
        if 0 in frame.index:
            values.append(float(frame.to_numpy(float)[frame.index.get_loc(0), 0]))
    return float(np.mean(values)) if values else None


def _method_handles(series: Sequence[_Series], *, base_line: bool = False) -> list[Artist]:
    handles: list[Artist] = []
    seen = set()
    for one in series:
        if one.name not in seen and not (base_line and one.method == "base"):
            seen.add(one.name)
            marker: dict[str, Any] = {"marker": one.marker, "ms": 5, "mec": "white", "mew": 0.6} if base_line else {}
            handles.append(Line2D([], [], color=one.colour, lw=2, label=one.title, **marker))
    if base_line:
        handles.append(Line2D([], [], color=_GREY, ls=(0, (4, 3)), lw=1, label="before training"))
    return handles


def _note(series: Sequence[_Series], what: str = "", width: int = 1) -> str:
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
    if most > _MANY_SEEDS:
        parts.append(f"line: mean{f' ({smoothed})' if smoothed else ''}, band: 95% bootstrap over seeds")
    elif most > 1:
        parts.append(f"thin: seeds, thick: their mean{f' ({smoothed})' if smoothed else ''}")
    elif smoothed:
        parts.append(f"thin: raw, thick: {smoothed}")
    return ", ".join(parts)


def _seed_counts(table: pd.DataFrame) -> str:
    counts = sorted({int(n) for n in table.loc[table["method"] != "base", "seeds"]})
    if not counts:
        return "base policy only"
    return f"{'/'.join(map(str, counts))} seed{'' if counts == [1] else 's'} a method"


def _k(runs: Sequence[Run]) -> str:
    return "/".join(str(k) for k in sorted({run.config.evaluation.k for run in runs}))


def _problems(runs: Sequence[Run]) -> str:
    counts = sorted(
        {
            int(n)
            for run in runs
            for n in stats.records(run, "evaluations").get("problems", pd.Series(dtype=float)).dropna()
        }
    )
    return f"{'/'.join(map(str, counts))} problems" if counts else ""


def _hard_count(runs: Sequence[Run]) -> str:
    counts = sorted(
        {
            int(value["problems"])
            for run in runs
            for value in stats.records(run, "evaluations").get("hard", pd.Series(dtype=object))
            if isinstance(value, Mapping)
        }
    )
    return f"{'/'.join(map(str, counts))} problems"


def _short(name: str, runs: Sequence[Run]) -> str:
    return _COLUMN_LABELS[name].format(k=_k(runs)).partition(" (")[0]


def _axis_label(column: str, runs: Sequence[Run]) -> str:
    name = column.rpartition(".")[2]
    return _COLUMN_LABELS.get(name, name).format(k=_k(runs))


def _plain(text: str, *, only: bool = True) -> str:
    """With a capital, unless it starts with a symbol such as avg@8."""
    return text[:1].upper() + text[1:] if only else text


def _table(series: Sequence[_Series], width: int = 1) -> pd.DataFrame:
    """The numbers of a figure's lines: a row a step, mean and interval over seeds, and every seed."""
    parts = []
    for one in series:
        table = stats.summarise_curve(one.frame)
        table.insert(0, "method", one.name)
        table.insert(1, "series", one.column)
        if width > 1:
            table["shown"] = _smooth(_full_mean(one.frame), width).reindex(one.frame.index).to_numpy()
        for seed in one.frame.columns:
            table[f"seed_{seed}"] = one.frame[seed].to_numpy()
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _figure(
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
        figure.text(left, 1 - (0.34 + 0.165 * i) / total, line, fontsize=8.5, color=_GREY, va="top")
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


def _finish(figure: RunFigure, data: pd.DataFrame, caption: str) -> RunFigure:
    """Fix the layout once, so that saving twice gives the same bytes, and attach what the figure shows."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.data = data
    figure.caption = " ".join(caption.replace(r"\$", "$").replace(". .", ".").split())
    return figure


DrawRuns = Callable[[Sequence[Run]], RunFigure]
FIGURES: dict[str, DrawRuns] = {
    "learning_curves": learning_curves,
    "entropy_dynamics": entropy_dynamics,
    "policy_entropy": policy_entropy,
    "rewards": rewards,
    "nll_against_reward": nll_against_reward,
    "lengths": lengths,
    "loss": loss,
    "gradient_norm": gradient_norm,
}
"""Figures that need nothing but runs, in the order of a report."""
