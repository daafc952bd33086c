"""Figures of configs, and of curves over training: each a declaration of its panels, drawn by :func:`figure`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from prefix_rft_lab.algorithm import schedules
from prefix_rft_lab.analysis import stats
from prefix_rft_lab.analysis.stats import Label
from prefix_rft_lab.core import rng
from prefix_rft_lab.core.columns import EVALUATIONS, METRICS, SHARES, column_of
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import KIND_NAMES
from prefix_rft_lab.plots import base
from prefix_rft_lab.plots.base import GREY, KIND_TITLES, OKABE_ITO, Group, Line, RunFigure, kit_style
from prefix_rft_lab.runs.run import Run

STEP = METRICS["global_step"].label
KINDS = tuple(reversed(KIND_NAMES.values()))


# ---------------------------------------------------------------------- a figure is a list of panels


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: recorded columns against training step."""

    columns: str | Mapping[str, str] = field(default_factory=dict)
    """A recorded column, as :func:`prefix_rft_lab.analysis.stats.curves` takes it (``grad_norm``, ``evaluations.avg``); or
    several: line style (a token kind; empty for a solid line) -> column."""
    _: KW_ONLY
    title: str = ""
    y: str = ""
    """Label of the y axis; if empty, label and unit of the first column."""
    scale: Literal["zero", "share", "log", "free"] = "zero"
    """How y runs: from 0; from 0 to 1 at most; logarithmic, without values of 0; free, with a line at 0."""
    keep: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    """Transformation of the long table (group, seed, step, kind, column, value) before it is drawn."""
    points: bool = False
    """Markers at the values and no running mean; always so for evaluations."""
    words: Mapping[str, str] = field(default_factory=lambda: KIND_TITLES)
    """Line style -> what the legend calls it."""
    each: bool = False
    """A panel of this kind for every group, one below the other."""
    say: Callable[[Group], str] = lambda group: f" ({group.seeds})"
    """What is written behind a group's title where ``each`` has a panel."""
    draw: Callable[[Axes, Sequence[Group]], pd.DataFrame | None] | None = None
    """Draws what is no line of a column, last; may return rows for ``figure.data``."""
    legend: Artist | None = None
    """Entry for what ``draw`` draws."""

    @property
    def lines(self) -> Mapping[str, str]:
        return {"": self.columns} if isinstance(self.columns, str) else self.columns

    @property
    def evaluated(self) -> bool:
        return any(name.startswith("evaluations.") for name in self.lines.values())

    @property
    def marked(self) -> bool:
        return self.evaluated or self.points

    def label(self, runs: Sequence[Run]) -> str:
        """Of the y axis."""
        first = next(iter(self.lines.values()), "")
        name = first.removeprefix("evaluations.")
        return self.y or column_of(name, "evaluations" if self.evaluated else "metrics").axis(base.k_of(runs))


@kit_style
def figure(
    runs: Sequence[Run],
    panels: Sequence[Panel],
    *,
    title: str,
    label: Label | None = None,
    note: str = "",
    caption: str = "",
) -> RunFigure:
    """Draw recorded columns over training: the figures of the kit are calls of this, and so are your own.

    Panels are drawn side by side, or one below the other where one is drawn for each group; those without values are left out.

    Args:
        note: what the numbers are of, the first words of the line under the title.
        caption: what the figure shows; the y axes against training step if empty.

    Raises:
        ConfigError: no runs, or configs that ``label`` does not name apart.
        RunError: nothing is recorded yet.

    For example the learning rate and the KL of each step, of two variants::

        plots.figure(runs, [plots.Panel("lr"), plots.Panel("kl", scale="log")], title="Step sizes",
                     label=lambda run: run.config.prefix.schedule)
    """
    among = base.groups(runs, label)
    recorded = [(panel, base.lines_of(runs, panel.lines, label, panel.keep) if panel.lines else []) for panel in panels]
    everything = [line for _, lines in recorded for line in lines]
    if not everything:
        names = (name.removeprefix("evaluations.") for panel in panels for name in panel.lines.values())
        raise base.nothing_recorded(runs, " or ".join(dict.fromkeys(names)))
    by_group = any(panel.each for panel in panels)
    found: list[tuple[Panel, list[Line]]] = []
    for panel, lines in recorded:
        if panel.each:
            for group in base.groups_of(lines):
                own = replace(panel, title=group.title + panel.say(group))
                found.append((own, [line for line in lines if line.group is group]))
        elif lines or not panel.lines:
            found.append((panel, lines))
    evaluated = any(panel.evaluated for panel, _ in found)
    width = base.smoothing_width([line for panel, lines in found for line in lines if not panel.marked])
    drawable = {group.name for group in base.groups_of(everything) if not (evaluated and group.method == "base")}
    shown = [group for group in among if group.name in drawable]
    legend = [] if by_group else base.method_handles(shown, marker=evaluated)
    if evaluated:
        legend.append(Line2D([], [], color=GREY, ls=(0, (4, 3)), lw=1, label="before training"))
    for panel in panels:
        kinds = {line.kind for other, lines in found if other.words is panel.words for line in lines} - {""}
        named = {handle.get_label() for handle in legend}
        legend += [handle for handle in base.kind_handles(kinds, panel.words) if handle.get_label() not in named]
        legend += [panel.legend] if panel.legend and any(other.draw is panel.draw for other, _ in found) else []
    note = base.note_of(everything, note, width)
    shape: dict[str, Any] = {"columns": len(found)}
    size = (8.5 if len(found) > 1 else 7.5, 3.3)
    if by_group:
        heights = [2.3 if len(lines) > 2 else 1.4 if lines else 1.1 for _, lines in found]
        size, shape = (7.5, sum(heights)), {"rows": len(found), "height_ratios": heights}
    drawn, grid = base.new_figure(*size, title=title, note=note, legend=legend, sharex=True, **shape)
    parts = []
    for axes, (panel, lines) in zip(grid.flat, found, strict=True):
        base.level(axes, base.base_level(runs, next(iter(panel.lines.values()))[12:]) if panel.evaluated else None)
        smooth = 1 if panel.marked else width
        for line in base.long_first(lines):
            if not (panel.evaluated and line.group.method == "base"):
                _line(axes, line, panel, smooth, shaded=by_group and len(lines) > 2)
        if by_group and lines:
            base.mark_stages(axes, lines[0], text=True)
        colour = lines[0].group.colour if panel.each else "black"
        base.panel_title(axes, panel.title, color=colour, pad=3)
        axes.set_ylabel(panel.label(runs))
        base.level(axes, 0 if panel.scale == "free" else None, ls="-", lw=0.8)
        table = base.table_of(lines, smooth)
        parts.append(table.assign(panel=panel.title) if len(found) > 1 and not by_group else table)
        extra = panel.draw(axes, among) if panel.draw else None
        parts += [] if extra is None else [extra]
    for scale in ("zero", "share"):
        same = [axes for axes, (panel, lines) in zip(grid.flat, found, strict=True) if panel.scale == scale and lines]
        base.from_zero(same, share=scale == "share")
    if by_group and panels[0].scale == "zero":
        _cut_peaks(grid, found, width)
    for axes in grid[-1]:
        axes.set_xlabel(STEP)
    caption = caption or "; ".join(dict.fromkeys(panel.label(runs) for panel, _ in found))
    before = " Dashed grey: the policy before training." if evaluated else ""
    stages = base.stage_note(base.groups_of(everything), ticks=not by_group)
    return base.finish(
        drawn, pd.concat(parts, ignore_index=True), f"{caption}, against training step; {note}.{before}{stages}"
    )


def _line(axes: Axes, line: Line, panel: Panel, width: int, *, shaded: bool) -> None:
    if panel.scale == "log":
        # Exactly 0 where every group scores alike: no gradient, and no place on a logarithmic axis.
        line = replace(line, frame=line.frame.where(line.frame > 0))
        if line.frame.isna().all(axis=None):
            return
        axes.set_yscale("log")
    marker: dict[str, Any] = {"marker": line.group.marker, "ms": 5, "mec": "white", "mew": 0.6} if panel.marked else {}
    colour = base.shade(line.group.colour, line.kind if shaded else "")
    base.draw_line(axes, line, width=width, colour=colour, breaks=panel.keep is not None and not panel.marked, **marker)
    if not panel.each and (panel.marked or panel.scale == "log"):
        base.mark_stages(axes, line, text=False)


def _cut_peaks(grid: np.ndarray, found: Sequence[tuple[Panel, list[Line]]], width: int) -> None:
    """A rare huge value at a single step would flatten everything else; the means are always inside."""
    frames = [line.frame for _, lines in found for line in lines]
    means = [base.full_mean(frame, width).max() for frame in frames]
    top = max(*means, *(float(np.nanpercentile(frame, 99.5)) for frame in frames)) * 1.12
    for axes, (panel, _) in zip(grid.flat, found, strict=True):
        if panel.each:
            axes.set_ylim(0, top if top > 0 else 1)


# ---------------------------------------------------------------------- curves over training


def learning_curves(runs: Sequence[Run], metric: str = "avg", *, label: Label | None = None) -> RunFigure:
    """An evaluation column (``avg``, ``pass``, ``greedy``, ``hard.avg``, ``tokens``...) on the validation split over
    training steps, with the base policy's level."""
    shown, where = column_of(metric).short(base.k_of(runs)), f"validation split, {base.problems_of(runs)}"
    if metric.startswith("hard."):
        tries = "/".join(str(n) for n in sorted({run.config.evaluation.hard_tries for run in runs}))
        shown += " on Train-hard"
        where = (
            f"{base.problems_of(runs, 'hard')} of the training split that the base policy never solved in {tries} tries"
        )
    scale: Literal["share", "zero"] = "share" if metric.rpartition(".")[2] in SHARES else "zero"
    panel = Panel(f"evaluations.{metric}", scale=scale)
    return figure(runs, [panel], title=f"{_capital(shown)} over training", label=label, note=where)


def _capital(text: str) -> str:
    """With a capital, unless it is a symbol such as avg@8."""
    return text if "@" in text else text[:1].upper() + text[1:]


def policy_entropy(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Mean entropy (nats) of sampled validation responses over training, every method on one axis."""
    panel = Panel("evaluations.entropy")
    where = f"validation split, {base.problems_of(runs)}"
    return figure(runs, [panel], title="Policy entropy over training", label=label, note=where)


def entropy_dynamics(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """The signature figure: entropy by token kind over training, a panel per method, above the prefix-ratio window.

    Entropies are of the training rows (nats over the full vocabulary, before each update); a method without tokens of
    a kind has no line for it.
    """
    panels = [Panel({kind: f"entropy_{kind}" for kind in KINDS}, each=True)]
    if any("prefix_ratio_low" in stats.records(run, "metrics") for run in runs):
        window = Patch(facecolor=GREY, alpha=0.25, label="prefix-ratio window")
        title = "Window of prefix ratios, and the mean ratio drawn"
        panels.append(Panel(title=title, y="prefix ratio", draw=_windows, legend=window))
    caption = "Mean entropy in nats of the training rows' tokens by kind, one panel per method"
    caption += ", above the window of prefix ratios (0 to 1) on the same axis" if len(panels) == 2 else ""
    title = "Entropy by token kind over training"
    return figure(runs, panels, title=title, label=label, note="tokens of the training rows", caption=caption)


def _windows(axes: Axes, among: Sequence[Group]) -> pd.DataFrame:
    parts = []
    for group in among:
        names = ("prefix_ratio_low", "prefix_ratio_high", "prefix_ratio")
        frames = [stats.seed_curves(group.runs, name, "metrics") for name in names]
        if frames[0].empty:
            continue
        low, high, mean = (frame.mean(axis=1) for frame in frames)
        axes.fill_between(low.index, low, high, color=group.colour, alpha=0.22, lw=0)
        axes.plot(mean.index, mean, color=group.colour, lw=0.9)
        table = pd.DataFrame({"mean": mean.reindex(low.index), "low": low, "high": high}).reset_index()
        parts.append(table.assign(method=group.name, series="prefix_ratio"))
    axes.set_ylim(0, 1)
    return pd.concat(parts)


def rewards(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Mean reward of training rows without and with a prefix, and how often the prefix already shows the answer."""
    shown = {"prefix": "answer already in the prefix"}
    panels = [
        Panel("reward_plain", title="Rows without a prefix", scale="share"),
        Panel(
            {"": "reward_hybrid", "prefix": "answer_in_prefix"}, title="Rows with a prefix", scale="share", words=shown
        ),
    ]
    return figure(runs, panels, title="Training reward", label=label, note="mean score of a step's rows")


def lengths(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Response length in tokens: on validation problems, and of training rows without and with a prefix."""
    names = ("rows without a prefix", "rows with a prefix (prefix included)", "the prefix alone")
    columns = ("plain_tokens", "hybrid_tokens", "prefix_tokens")
    panels = [
        Panel("evaluations.tokens", title="Validation"),
        Panel(
            dict(zip(KINDS, columns, strict=True)), title="Training rows", words=dict(zip(KINDS, names, strict=True))
        ),
    ]
    return figure(runs, panels, title="Response length", label=label, caption="Mean response length in tokens")


def loss(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """The loss of every update, supervised stages (NLL) apart from policy-gradient stages: their units differ."""

    def part(sampled: bool) -> Callable[[pd.DataFrame], pd.DataFrame]:
        """Steps that sampled rows, or the others."""
        rewarded = stats.curves(runs, ["reward"], label=label).set_index(["group", "seed", "step"]).index
        return lambda table: table[table.set_index(["group", "seed", "step"]).index.isin(rewarded) == sampled]

    panels = [
        Panel("loss", title="Supervised stages", y="NLL (nats/token)", keep=part(False)),
        Panel(
            "loss",
            title="Policy-gradient stages",
            y="surrogate loss (sum / rows × max. tokens)",
            keep=part(True),
            scale="free",
        ),
    ]
    caption = (
        "Loss of each update; supervised stages in nats per token, policy-gradient stages as the clipped surrogate, which "
        "isn't meant to fall"
    )
    return figure(runs, panels, title="Loss", label=label, caption=caption)


def gradient_norm(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """Global gradient norm before clipping, on a logarithmic axis, with the clip of the configs."""

    def clips(axes: Axes, among: Sequence[Group]) -> None:
        lowest, highest = axes.get_ylim()
        for clip in sorted({run.config.rl.grad_clip for run in runs} | {run.config.sft.grad_clip for run in runs}):
            if lowest < clip < highest:
                base.level(axes, clip)
                axes.annotate(
                    f"clip {clip:g}", (1, clip), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                    textcoords="offset points", fontsize=7.5, color=GREY, ha="right",
                )  # fmt: skip

    caption = "Global gradient norm (logarithmic) before clipping, updates without any gradient left out"
    panel = Panel("grad_norm", scale="log", draw=clips)
    return figure(runs, [panel], title="Gradient norm", label=label, note="before clipping", caption=caption)


def gradient_by_kind(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """How much of an update each token kind makes: the gradient norm of its loss alone, and its share of the tokens.

    One panel per method that trains demonstration tokens beside sampled ones; norms before clipping, logarithmic, at the steps
    that ``records.diagnostics_every`` chose. The paper reports a doubled norm from prefixes that are 5 to 10% of the tokens.
    """

    def trained_beside(table: pd.DataFrame) -> pd.DataFrame:
        table = table[table["value"] > 0]
        prefixes = table.loc[table["kind"] == "prefix", ["group", "step"]].drop_duplicates()
        both = table[table["kind"] != "prefix"].merge(prefixes, on=["group", "step"])["group"]
        return table[table["group"].isin(both)]

    def say(group: Group) -> str:
        share = stats.seed_curves(group.runs, "prefix_share", "metrics").mean(axis=1).mean()
        return f" ({group.seeds}); {share:.0%} of the tokens are of a demonstration"

    columns = {kind: f"grad_norm_{kind}" for kind in KINDS}
    if trained_beside(stats.curves(runs, list(columns.values()), label=label)).empty:
        raise base.nothing_recorded(
            runs, "gradient norms of prefixes beside those of sampled tokens (grad_norm_<kind>)"
        )
    panel = Panel(columns, scale="log", keep=trained_beside, points=True, each=True, say=say)
    caption = (
        "Gradient norm (logarithmic) of the loss of one token kind alone, before clipping, steps where a kind has no "
        "gradient left out"
    )
    note = "each kind's loss alone, before clipping"
    return figure(runs, [panel], title="Gradient norm by token kind", label=label, note=note, caption=caption)


@kit_style
def nll_against_reward(runs: Sequence[Run], *, label: Label | None = None) -> RunFigure:
    """How well a policy imitates against how well it solves: NLL of the training demonstrations and avg@k, a point per
    evaluation, joined in the order of training.

    All: validation score against NLL of the probed training demonstrations. Train-hard: both on the training problems
    that the base policy never solved.
    """
    names = {"all": ("demonstration_nll", "avg"), "train_hard": ("demonstration_nll_hard", "hard.avg")}
    parts = [
        base.beside(runs, label, *(f"evaluations.{n}" for n in pair)).assign(problems=k) for k, pair in names.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    if table.empty:
        raise base.nothing_recorded(runs, "demonstration NLLs beside scores (demonstration_nll, avg)")
    table = table.rename(columns={"x": "demonstration_nll", "y": "avg"})
    panels = {"all": "All problems", "train_hard": f"Train-hard ({base.problems_of(runs, 'hard')})"}
    panels = {key: name for key, name in panels.items() if (table["problems"] == key).any()}
    lines = base.lines_of(runs, {"": "evaluations.avg", "hard": "evaluations.hard.avg"}, label)
    lines = [line for line in lines if (table["method"] == line.group.name).any()]
    everyone = base.groups_of(lines)
    drawn, grid = base.new_figure(
        8.5 if len(panels) == 2 else 6,
        3.4,
        title="Imitating and solving: demonstration NLL against score",
        note=base.note_of(lines, "a point per evaluation, joined in training order; logarithmic x"),
        legend=[*base.method_handles(everyone), Line2D([], [], **base.BEFORE)],  # type: ignore[arg-type]
        columns=len(panels),
        sharey=True,
    )
    for axes, (key, name) in zip(grid[0], panels.items(), strict=True):
        own = table[table["problems"] == key]
        base.draw_paths(axes, own, [g for g in everyone if (own["method"] == g.name).any()], "demonstration_nll", "avg")
        axes.set_xscale("log")
        lowest, highest = axes.get_xlim()
        # 1, 2, 5 would run into each other over more than two decades.
        base.log_ticks(axes.xaxis, 1, 2, 5) if highest < 100 * lowest else base.log_ticks(axes.xaxis, 1)
        base.panel_title(axes, name)
        axes.set_xlabel(EVALUATIONS["demonstration_nll"].axis())
    base.from_zero(list(grid[0]), share=True)
    score = EVALUATIONS["avg"].axis(base.k_of(runs))
    grid[0, 0].set_ylabel(score)
    caption = (
        f"{score} against the token-mean NLL (nats, logarithmic) of training demonstrations, a point per evaluation, joined "
        f"in the order of training. {base.note_of(lines, base.problems_of(runs))}.{base.stage_note(everyone, ticks=False)}"
    )
    return base.finish(drawn, table, caption)


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
    low, high = np.array([schedules.ratio_window(prefix, int(step)) for step in steps]).T
    mean = [schedules.mean_ratio(prefix, int(step)) for step in steps]
    note = (
        f"{prefix.schedule} schedule, window [{prefix.low:g}, {prefix.high:g}], decay over "
        f"{prefix.decay_steps} steps, Beta({prefix.alpha:g}, {prefix.beta:g})"
    )
    legend: list[Artist] = [
        Patch(facecolor=OKABE_ITO["sky"], alpha=0.3, label="window"),
        Line2D([], [], color=OKABE_ITO["blue"], label="expected ratio"),
    ]
    draws = {f"drawn_{n}": [_ratio(config, int(step), n) for step in steps] for n in range(4 if samples else 0)}
    if draws:
        text = f"drawn ratios ({len(draws)} problems per step)"
        legend.append(Line2D([], [], ls="", marker=".", color=GREY, label=text))
    drawn, grid = base.new_figure(7.5, 3.2, title="Prefix ratio over training", note=note, legend=legend)
    axes = grid[0, 0]
    axes.fill_between(steps, low, high, color=OKABE_ITO["sky"], alpha=0.3, lw=0)
    axes.plot(steps, mean, color=OKABE_ITO["blue"], lw=2)
    for row in draws.values():
        axes.plot(steps, row, ls="", marker=".", ms=2.5, color=GREY, alpha=0.6, mew=0)
    axes.set(xlabel="RL step", ylabel="prefix ratio\n(share of the demonstration)", ylim=(-0.02, 1.02))
    data = pd.DataFrame({"step": steps, "low": low, "high": high, "mean": mean, **draws})
    return base.finish(
        drawn, data, f"Prefix ratio (share of the demonstration's tokens, 0 to 1) against RL step: {note}."
    )


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
    count = max(config.rl.steps, 1)
    steps = np.unique(np.linspace(0, count - 1, min(60, count)).astype(int))
    least = config.prefix.min_tokens
    ratios = [[_ratio(config, int(step), i) for i in range(len(chosen) * rounds)] for step in steps]
    table = np.array(
        [[schedules.prefix_length(r, n, least) for r, n in zip(row, chosen * rounds, strict=True)] for row in ratios]
    )
    shares = (10, 25, 50, 75, 90)
    data = pd.DataFrame(np.percentile(table, shares, axis=1).T, columns=[f"p{p}" for p in shares])
    data.insert(0, "step", steps)
    data = data.assign(mean=table.mean(axis=1), demonstration_mean=float(np.mean(chosen)))
    note = f"{len(chosen)} demonstrations of {min(chosen)} to {max(chosen)} tokens, {len(chosen) * rounds} draws at each of {len(steps)} steps"
    legend = [
        Patch(facecolor=OKABE_ITO["sky"], alpha=0.25, label="10% to 90%"),
        Patch(facecolor=OKABE_ITO["sky"], alpha=0.6, label="25% to 75%"),
        Line2D([], [], color=OKABE_ITO["blue"], lw=2, label="median prefix"),
        Line2D([], [], color=GREY, ls="--", label="mean demonstration"),
    ]
    drawn, grid = base.new_figure(7.5, 3.2, title="Prefix length over training", note=note, legend=legend)
    axes = grid[0, 0]
    axes.fill_between(steps, data["p10"], data["p90"], color=OKABE_ITO["sky"], alpha=0.25, lw=0)
    axes.fill_between(steps, data["p25"], data["p75"], color=OKABE_ITO["sky"], alpha=0.45, lw=0)
    axes.plot(steps, data["p50"], color=OKABE_ITO["blue"], lw=2)
    base.level(axes, float(np.mean(chosen)), ls="--")
    axes.set(xlabel="RL step", ylabel="prefix length (tokens)")
    axes.set_ylim(bottom=0)
    return base.finish(drawn, data, f"Prefix length in tokens against RL step: {note}.")


def _ratio(config: RunConfig, step: int, problem: int) -> float:
    """Drawn with the key of the first hybrid row, as ``prefixes.hybrid_rows`` draws it."""
    row = config.rollout.rows_per_problem - max(config.rollout.hybrid_rows, 1)
    draws = rng.generator(config.seed, "prefix_ratio", step, problem, row)
    return schedules.sample_ratio(schedules.of_run(config), step, draws)
