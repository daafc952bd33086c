"""Compare runs: a table with what differs between their configs, and any recorded metric, live while they train."""

from __future__ import annotations

import difflib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import traitlets

from prefix_rft_lab import plots
from prefix_rft_lab.algorithm.methods import METHODS
from prefix_rft_lab.analysis import stats
from prefix_rft_lab.core import columns
from prefix_rft_lab.core.config import ConfigError, flatten
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.runs.run import Run, load_all
from prefix_rft_lab.widgets.base import Explorer, script, style

_MOST_POINTS = 1000
"""Points of one curve that are sent; of longer ones every n-th step."""
_QUIET = 60.0
"""Seconds without a new line after which a run that is not finished counts as stopped."""
_PLACES = {"step", "global_step", "stage", "k", "problems"}
"""Names in records that say where or of how much a figure is, and are none themselves."""


class RunExplorer(Explorer):
    """A sortable table of runs and an overlay of any metric that they recorded.

    While runs are training, a thread reads what they append every ``refresh`` seconds; it ends with :meth:`close`, or
    when all of a given list of runs are finished. A folder is watched for new runs, too.

    Args:
        runs_or_folder: runs, finished or not, or a folder that holds some or will.
        metric: a name of :data:`prefix_rft_lab.core.columns.METRICS`, or of an evaluation on the validation split:
            ``evaluations.avg``, ``evaluations.hard.avg``; a name that only evaluations have needs no prefix.
        refresh: seconds between looks at the files; 0 looks once.

    Raises:
        ConfigError: no runs in a list, or a metric that no run can record.
    """

    _esm = script("runs")
    _css = style("runs")
    runs: traitlets.List = traitlets.List(help="what the table shows of each run").tag(sync=True)
    fields: traitlets.List = traitlets.List(help="config fields that differ").tag(sync=True)
    metrics: traitlets.List = traitlets.List(help="metrics that some run recorded").tag(sync=True)
    curves: traitlets.Dict = traitlets.Dict(
        help="run -> tables of names, steps (int32) and values (float32, names x steps)"
    ).tag(sync=True)
    metric = traitlets.Unicode("reward_plain", help="the metric that is drawn").tag(sync=True)
    smoothing = traitlets.Int(1, help="steps of the running mean; 1 is none").tag(sync=True)
    step = traitlets.Int(-1, help="the step that is read off; -1 is the last").tag(sync=True)
    hidden: traitlets.List = traitlets.List(help="runs that are not drawn").tag(sync=True)
    sort: traitlets.List = traitlets.List(["run", 1], help="column, and 1 or -1").tag(sync=True)
    note = traitlets.Unicode(help="a sentence about runs that cannot be read").tag(sync=True)
    live = traitlets.Bool(False, help="whether the files are being followed").tag(sync=True)

    def __init__(
        self, runs_or_folder: Sequence[Run] | Run | str | Path, *, metric: str = "reward_plain", refresh: float = 2.0
    ) -> None:
        self._stop = threading.Event()  # first: a widget that is refused is closed, too
        self._thread: threading.Thread | None = None
        if not refresh >= 0:
            raise ConfigError(f"refresh = {refresh!r} is not a number of seconds; use 0 or more")
        self._folder = Path(runs_or_folder) if isinstance(runs_or_folder, (str, Path)) else None
        given = [runs_or_folder] if isinstance(runs_or_folder, Run) else runs_or_folder
        self._given: list[Run] = [] if self._folder else list(given)  # type: ignore[arg-type]
        if self._folder is None and not self._given:
            raise ConfigError("runs_or_folder = [] holds no run; give runs, or the folder that they are written to")
        self._watched: dict[Path, _Watched] = {}
        self._lock = threading.Lock()
        super().__init__()
        self.refresh()
        self.metric = self._known(metric)
        longest = max((row["steps"] for row in self.runs), default=0)
        # About a twentieth of the longest curve, as in figures.
        self.smoothing = 1 if longest < 40 else min(longest // 20 // 2 * 2 + 1, 51)
        if refresh > 0 and not self._finished():
            self.live = True
            self._thread = threading.Thread(target=self._follow, args=(refresh,), daemon=True, name="run-explorer")
            self._thread.start()

    # ------------------------------------------------------------------ reading

    def refresh(self) -> None:
        """Read what runs have appended since the last look."""
        with self._lock:
            problems = []
            changed = False
            for run in self._found():
                if run.path not in self._watched:
                    try:
                        self._watched[run.path] = _Watched(run, dict(flatten(run.config.to_dict())))
                        changed = True
                    except RunError as error:
                        problems.append(f"{run.path.name} is left out: {error}")
            for watched in self._watched.values():
                try:
                    changed |= watched.read()
                except (OSError, ValueError) as error:
                    problems.append(f"{watched.run.path.name} cannot be read further: {error}")
            self._show(changed, "; ".join(problems))

    def _found(self) -> list[Run]:
        if self._folder is None:
            return self._given
        try:
            return load_all(self._folder, done=False)
        except ConfigError:
            return []

    def _show(self, changed: bool, note: str) -> None:
        ordered = sorted(self._watched.values(), key=_Watched.order)
        names = _names(ordered)
        differing = _differing(ordered)
        looks = _looks(ordered, names)
        rows = []
        for watched, name in zip(ordered, names, strict=True):
            colour, mark = looks[name]
            rows.append(
                {
                    "id": watched.id,
                    "group": name,
                    "seed": watched.run.seed,
                    "colour": colour,
                    "marker": mark,
                    "steps": watched.steps,
                    "total": watched.total,
                    "state": watched.state(),
                    "fields": {key: _cell(watched.config.get(key)) for key in differing},
                }
            )
        note = note or (
            "" if ordered or self._folder is None else f"{self._folder.name or self._folder} holds no run yet."
        )
        with self.hold_sync():
            # Equal values send nothing.
            self.note = note
            self.fields = differing
            self.runs = rows
            if changed:
                self.metrics = _metrics(ordered)
                self.curves = {watched.id: watched.tables() for watched in ordered}

    def _known(self, metric: str) -> str:
        recorded = [one["name"] for one in self.metrics]
        for name in (metric, f"evaluations.{metric}"):
            if name in recorded:
                return name
        known = [name for name in columns.names("metrics") if name not in _PLACES]
        known += [f"evaluations.{name}" for name in columns.EVALUATIONS]
        for name in (metric, f"evaluations.{metric}"):
            if name in known:
                return name
        close = difflib.get_close_matches(metric, [*recorded, *known], n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else "see core.columns for names"
        raise ConfigError(f"metric = {metric!r} is not recorded by any run; {remedy}")

    # ------------------------------------------------------------------ following

    def _finished(self) -> bool:
        return self._folder is None and all(run.done for run in self._given)

    def _follow(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            finished = self._finished()  # before reading: nothing is written after DONE.json
            self.refresh()
            if finished:
                break
        if not self._stop.is_set():
            self.live = False

    def close(self) -> None:
        """Stop following the files, and remove the view."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        super().close()

    # ------------------------------------------------------------------ for readers without it

    def _curves(self) -> dict[str, tuple[str, pd.DataFrame]]:
        """Group -> colour, and the metric by step, one column per seed."""
        nested = self.metric.startswith("evaluations.")
        source, column = ("evaluations", self.metric[12:]) if nested else ("metrics", self.metric)
        groups: dict[str, tuple[str, list[Run]]] = {}
        runs = {watched.id: watched.run for watched in self._watched.values()}
        for row in self.runs:
            if row["id"] not in self.hidden:
                groups.setdefault(row["group"], (row["colour"], []))[1].append(runs[row["id"]])
        return {
            name: (colour, frame)
            for name, (colour, members) in groups.items()
            if not (frame := stats.seed_curves(members, column, source)).empty  # type: ignore[arg-type]
        }

    def summary(self) -> str:
        if not self.runs:
            return f"Runs: {self.note or 'none yet'}"
        done = sum(row["state"] == "done" for row in self.runs)
        lasts = []
        for name, (_, frame) in self._curves().items():
            ends = frame.apply(lambda column: column.dropna().iloc[-1])
            lasts.append(f"{name} {ends.mean():.3f} ({len(ends)} seed{'s' if len(ends) != 1 else ''})")
        return f"{len(self.runs)} runs, {done} finished. Last {self.metric}: {', '.join(lasts) or 'not recorded yet'}"

    @plots.kit_style
    def picture(self) -> plots.RunFigure:
        figure = plots.RunFigure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#d9d9d9", lw=0.6)
        parts = []
        for name, (colour, frame) in self._curves().items():
            axes.plot(frame.index, frame.mean(axis=1), color=colour, lw=1.8, label=name.replace("$", r"\$"))
            axes.fill_between(frame.index, frame.min(axis=1), frame.max(axis=1), color=colour, alpha=0.18, lw=0)
            parts.append(frame.assign(group=name))
        if parts:
            axes.legend(frameon=False, fontsize=8.5)
        else:
            axes.text(0.5, 0.5, self.summary().replace("$", r"\$"), transform=axes.transAxes, ha="center", wrap=True)
        axes.set(xlabel="training step (of all stages)", ylabel=self.metric)
        figure.data = pd.concat(parts) if parts else pd.DataFrame()
        figure.caption = f"{self.metric} against training step; line: mean over seeds, band: lowest to highest seed."
        return figure


# ---------------------------------------------------------------------- one run


@dataclass(slots=True)
class _Tail:
    """The JSON lines of a file that grows; reads only what is new."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    offset: int = 0
    inode: int = 0

    def read(self) -> bool:
        """Whether there was something new."""
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return False
        if state.st_ino != self.inode or state.st_size < self.offset:
            # A resumed run wrote the file anew.
            self.lines, self.offset, self.inode = [], 0, state.st_ino
        if state.st_size == self.offset:
            return False
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        end = data.rfind(b"\n") + 1  # the last line may still be being written
        lines = (json.loads(line) for line in data[:end].splitlines())
        self.lines += [line for line in lines if isinstance(line, dict)]
        self.offset += end
        return end > 0


@dataclass(slots=True)
class _Watched:
    run: Run
    config: dict[str, Any]
    """Flat."""
    metrics: _Tail = field(init=False)
    evaluations: _Tail = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = _Tail(self.run.path / "metrics.jsonl")
        self.evaluations = _Tail(self.run.path / "evaluations.jsonl")

    @property
    def id(self) -> str:
        return f"{self.run.path.parent.name}/{self.run.path.name}"

    def order(self) -> tuple[Any, ...]:
        names = list(METHODS)
        place = names.index(self.run.method) if self.run.method in names else len(names)
        return place, self.run.config.hash(), self.run.seed, self.id

    def read(self) -> bool:
        return bool(self.metrics.read() | self.evaluations.read())

    @property
    def steps(self) -> int:
        return len(self.metrics.lines)

    @property
    def total(self) -> int:
        method = METHODS.get(self.run.method)
        if method is None:
            return self.steps
        return sum(getattr(self.run.config, stage.optim).steps for stage in method.stages)

    def state(self) -> str:
        if self.run.done:
            return "done"
        path = self.metrics.path if self.metrics.path.is_file() else self.run.path / "config.json"
        quiet = time.time() - path.stat().st_mtime > _QUIET
        return "stopped" if quiet else "running"

    def tables(self) -> list[dict[str, Any]]:
        return [_table(self.metrics.lines, ""), _table(self.evaluations.lines, "evaluations.")]


def _table(lines: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    """Numbers of the records as arrays; nested ones under dotted names."""
    every = -(-len(lines) // _MOST_POINTS) or 1
    # Counted from the end, so that the newest line is always there.
    lines = lines[::-1][::every][::-1]
    flat = [dict(flatten(line)) for line in lines]
    names = list(dict.fromkeys(name for one in flat for name, value in one.items() if _is_number(name, value)))
    values = np.array([[_value(one.get(name)) for one in flat] for name in names], dtype="<f4")
    return {
        "names": [f"{prefix}{name}" for name in names],
        "steps": np.array([one.get("global_step", i) for i, one in enumerate(flat)], dtype="<i4").tobytes(),
        "values": values.tobytes(),
    }


def _is_number(name: str, value: Any) -> bool:
    return name.rpartition(".")[2] not in _PLACES and isinstance(value, (int, float))


def _value(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


# ---------------------------------------------------------------------- several runs


def _differing(watched: Sequence[_Watched]) -> list[str]:
    """Config fields that are not the same everywhere; name, method and seed have columns of their own."""
    names = dict.fromkeys(name for one in watched for name in one.config)
    own = ("name", "method", "seed")
    return [n for n in names if n not in own and len({json.dumps(one.config.get(n)) for one in watched}) > 1]


def _names(watched: Sequence[_Watched]) -> list[str]:
    """The method's title; with what differs, where a method comes with several configs."""
    out = []
    for one in watched:
        same = [other for other in watched if other.run.method == one.run.method]
        fields = _differing(same) if len({other.run.config.hash() for other in same}) > 1 else []
        parts = [f"{name.rpartition('.')[2]} {_cell(one.config.get(name))}" for name in fields[:3]]
        out.append(", ".join([one.run.title, *parts]))
    # What is left of equal names is distinguished by the config's hash.
    hashes: dict[str, set[str]] = {}
    for one, name in zip(watched, out, strict=True):
        hashes.setdefault(name, set()).add(one.run.config.hash())
    return [
        name if len(hashes[name]) == 1 else f"{name} [{one.run.config.hash()[:4]}]"
        for one, name in zip(watched, out, strict=True)
    ]


def _looks(watched: Sequence[_Watched], names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each group: a method's own where the group bears its title alone, others for its variants."""
    out: dict[str, tuple[str, str]] = {}
    methods, arms = plots.method_looks(), iter(plots.ARM_STYLES * len(names))
    for one, name in zip(watched, names, strict=True):
        if name not in out:
            out[name] = methods[one.run.method] if name == one.run.title and one.run.method in methods else next(arms)
    return out


def _cell(value: Any) -> Any:
    """A config value as a table shows it: numbers and short texts as they are."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "none"
    return value if isinstance(value, (int, float)) else str(value).encode("utf-8", "replace").decode()


def _metrics(watched: Sequence[_Watched]) -> list[dict[str, str]]:
    names: dict[str, None] = {}
    for one in watched:
        for table in one.tables():
            names |= dict.fromkeys(table["names"])
    order = list(columns.names("metrics"))
    out = []
    for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
        source: columns.Source = "evaluations" if name.startswith("evaluations.") else "metrics"
        title = name.removeprefix("evaluations.")
        out.append({"name": name, "title": title, "source": source, "meaning": _meaning(title, source)})
    return out


def _meaning(name: str, source: columns.Source) -> str:
    group = name.rpartition(".")[0] if source == "evaluations" else ""
    text = columns.column_of(name, source).described()
    return f"{text} ({group.replace('.', ' ')})" if group else text
