"""Sweeps: many runs declared in one file, and which of them answer which question.

    name: demo_quality
    question: Does it matter who wrote the demonstrations?
    preset: tiny
    set: {sft.steps: 60}                    # dotted fields of every run
    arms:                                   # what is compared: a name -> its departures
      thorough: {}
      terse: {data.expert: terse}
    grid: {method: [prefix_rft, sft]}       # crossed with the arms
    seeds: [0, 1, 2]
    profiles:                               # sizes: fewer seeds or arms, other fields
      quick: {seeds: [0, 1], arms: [thorough]}

A run belongs to an arm and to one value of each field of the grid. The sweeps of the kit lie in ``assets/sweeps``; they
share one folder of runs, so that a run which two questions need is trained once.

    <out>/<folder>/<run>/                  the runs (prefix_rft_lab.runs.run)
    <out>/logs/                            what they printed, and why the last try of a run failed (.failed)
    <out>/sweeps/<name>-<profile>/
        summary.csv                        one row per run: its place and its scores; the same bytes whatever interrupted it
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
from pydantic import Field, ValidationError, model_validator

from prefix_rft_lab.algorithm import methods
from prefix_rft_lab.core import columns, registry
from prefix_rft_lab.core.config import (
    PRESETS,
    ConfigError,
    RunConfig,
    Section,
    preset,
    read_mapping,
    validation_sentence,
)
from prefix_rft_lab.core.files import write_text
from prefix_rft_lab.data.task import with_task
from prefix_rft_lab.experiments.pool import PoolError, failure_file, train_all
from prefix_rft_lab.experiments.profiles import PROFILES
from prefix_rft_lab.runs import writers
from prefix_rft_lab.runs.run import Run, claimed_by, directory_of

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "sweeps"
"""The sweeps of the kit."""

TUNED = Path(__file__).resolve().parents[1] / "assets" / "tuned.json"
"""Fields that the kit's tuning sweep chose, by method."""

METRICS = columns.FINAL
"""Columns of the summary for each split: three shares of 1, and the mean response length in tokens."""

_CHOSEN = ("name", "seed")
"""Fields of a config that a sweep sets itself, from ``folder`` and ``seeds``."""

_OWN_FOLDERS = ("logs", "sweeps")


class SweepProfile(Section):
    """How much of a sweep is run."""

    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """Seeds in place of the sweep's."""
    arms: tuple[str, ...] | None = Field(None, min_length=1)
    """Arms that are run; all if not given."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Values in place of the grid's, by field."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted fields on top of the sweep's ``set``."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        _refuse_twice("seeds", self.seeds)
        _refuse_twice("arms", self.arms)
        _refuse_chosen("set", self.set)
        _refuse_grid(self.grid)
        return self


class Sweep(Section):
    """A file of runs."""

    name: str = Field(max_length=64, pattern=r"^\w[\w.-]*$")
    """Name of the sweep."""
    question: str = ""
    """What it is for, in one sentence."""
    preset: str = "tiny"
    """Preset that all runs start from."""
    folder: str | None = Field(None, max_length=64, pattern=r"^(\w|\{profile\})([\w.-]|\{profile\})*$")
    """Folder of the runs below ``out`` (``{profile}`` stands for the profile's name); sweeps with one folder share equal
    runs. The sweep's name if not given."""
    tuned: bool = False
    """Whether every method gets the fields that the kit's tuning chose for it; ``set`` and the arms go over them."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted fields and values of every run."""
    arms: dict[str, dict[str, Any]] = Field(default={"": {}}, min_length=1)
    """Name -> dotted fields and values: what is compared."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted field -> values; every combination is run, for every arm."""
    experts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name -> dotted fields of a run (seed 0) that is trained first; ``data.expert: run:<name>`` in an arm has its policy
    write the demonstrations."""
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """Seeds of every combination; if not given, those of the profile, and 0 without one. The method ``base`` is not
    trained and takes the first only."""
    profiles: dict[str, SweepProfile] = Field(default_factory=dict)
    """Name of a profile -> what it changes."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        _refuse_twice("seeds", self.seeds)
        _refuse_grid(self.grid)
        for part, fields in [
            ("set", self.set),
            *((f"arms.{name}", fields) for name, fields in self.arms.items()),
            *((f"experts.{name}", fields) for name, fields in self.experts.items()),
        ]:
            _refuse_chosen(part, fields)
        if self.folder in _OWN_FOLDERS:
            raise ValueError(f"folder = {self.folder!r} is where logs and summaries lie; choose another name")
        for name, chosen in self.profiles.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"profiles = {name!r} is no plain name; use letters, digits, '.', '-' and '_'")
            for arm in chosen.arms or ():
                if arm not in self.arms:
                    raise ValueError(f"profiles.{name}.arms = {arm!r} is no arm; the arms are {', '.join(self.arms)}")
            for field in chosen.grid:
                if field not in self.grid:
                    raise ValueError(
                        f"profiles.{name}.grid = {field!r} is not in the grid, which has {', '.join(self.grid) or 'nothing'}; "
                        "put it into set, or into the grid"
                    )
        for (name, fields), field in itertools.product(self.arms.items(), self.grid):
            if field in fields:
                raise ValueError(
                    f"grid.{field} would go over {field} = {fields[field]!r} of arm {name!r}; take one of them out"
                )
        return self


def _refuse_twice(field: str, values: Collection[Any] | None) -> None:
    for value in values or ():
        if list(values or ()).count(value) > 1:
            raise ValueError(f"{field} = {list(values or ())!r} has {value!r} twice; give each once")


def _refuse_chosen(part: str, fields: Mapping[str, Any]) -> None:
    for field in _CHOSEN:
        if field in fields:
            raise ValueError(
                f"{part}.{field} = {fields[field]!r} cannot be used: a sweep takes it from "
                f"{'seeds' if field == 'seed' else 'folder'}; give it there"
            )


def _refuse_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    _refuse_chosen("grid", grid)
    for field, values in grid.items():
        if not values:
            raise ValueError(f"grid.{field} = [] leaves nothing to run; give it values or take it out")
        _refuse_twice(f"grid.{field}", values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One run of a sweep before it is trained."""

    arm: str
    values: Mapping[str, Any]
    """Its place in the grid."""
    config: RunConfig

    @property
    def label(self) -> str:
        """What names its group: the arm and the values of the grid, or else the method; all seeds share it."""
        parts = [self.arm, *(str(value) for value in self.values.values())]
        return " · ".join(filter(None, parts)) or self.config.method


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All runs of a sweep at one size."""

    sweep: Sweep
    profile: str | None
    runs: tuple[Planned, ...]
    experts: tuple[RunConfig, ...] = ()
    """Runs whose policies write demonstrations of others, and which are trained first."""

    @property
    def configs(self) -> list[RunConfig]:
        return [planned.config for planned in self.runs]

    @property
    def fields(self) -> list[str]:
        """Fields of the grid."""
        return list(dict.fromkeys(field for planned in self.runs for field in planned.values))

    def folder(self, out: str | Path) -> Path:
        """Where its record and its summary lie."""
        return Path(out).expanduser() / "sweeps" / f"{self.sweep.name}-{self.profile or 'default'}"

    def select(self, arm: str | Sequence[str] | None = None, **values: Any) -> Plan:
        """The runs of some arms, and of some values of the grid, e.g. ``plan.select("terse", method="sft")``.

        Raises:
            ConfigError: there is none.
        """
        arms = None if arm is None else [arm] if isinstance(arm, str) else list(arm)
        chosen = tuple(
            planned
            for planned in self.runs
            if (arms is None or planned.arm in arms)
            and all(planned.values.get(field, getattr(planned.config, field, None)) == v for field, v in values.items())
        )
        if not chosen:
            raise ConfigError(
                f"arm = {arm!r} with {values or 'any value'} is no run of sweep {self.sweep.name!r}; its arms are "
                f"{', '.join(dict.fromkeys(planned.arm for planned in self.runs))}"
            )
        return replace(self, runs=chosen)

    def label(self, by: Callable[[Planned], str] = lambda planned: planned.label) -> Callable[[Run], str]:
        """Names the group of a run in this sweep, as :mod:`prefix_rft_lab.analysis.stats` takes it.

        Args:
            by: what of a planned run makes its group's name.
        """
        names = {(planned.config.hash(), planned.config.seed): by(planned) for planned in self.runs}

        def named(run: Run) -> str:
            key = (run.config.hash(), run.seed)
            if key not in names:
                raise ConfigError(f"run = {str(run.path)!r} is not of sweep {self.sweep.name!r}; leave it out")
            return names[key]

        # All of them, in the sweep's order, so that an arm looks the same in every figure, whichever arms it shows.
        named.names = tuple(dict.fromkeys(names.values()))  # type: ignore[attr-defined]
        return named


def load(source: str | Path | Mapping[str, Any]) -> Sweep:
    """A sweep from a YAML file, from the kit by its name, or from plain values.

    Raises:
        ConfigError: no such file or sweep, an unknown key, an empty grid; the sentence names it.
    """
    if isinstance(source, Mapping):
        values, where = dict(source), "sweep"
    else:
        path = Path(source)
        own = FOLDER / f"{source}.yaml"
        if not path.is_file() and own.is_file():
            path = own
        if not path.is_file():
            raise ConfigError(
                f"sweep = {str(source)!r} is no file and no sweep of the kit; give the path of a YAML file, or one of "
                f"{', '.join(names())}"
            )
        where = str(path)
        values = read_mapping(path, "sweep")
    try:
        return Sweep.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {validation_sentence(Sweep, error, 'sweep')}") from None


def names() -> list[str]:
    """The sweeps of the kit."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def part_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What an arm changes in its method: neither the method, nor its learning rates, nor the data that it gets."""
    return {f: v for f, v in fields.items() if f != "method" and not f.startswith("data.") and not f.endswith(".lr")}


def tuned_fields(method: str, departures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Dotted fields that the kit's tuning chose for a method with a part changed; those of the method if that was not tuned
    itself, none for a method that was not tuned.

    Args:
        departures: dotted fields of the arm.
    """
    if not TUNED.is_file():
        return {}
    record = json.loads(TUNED.read_text(encoding="utf-8"))
    part = part_of(departures or {})
    own = [entry["fields"] for entry in record.get("parts", ()) if (entry["method"], entry["part"]) == (method, part)]
    return dict(own[0] if own else record["fields"].get(method, {}))


def has_own_rate(method: str, departures: Mapping[str, Any]) -> bool:
    """Whether the tuning tried learning rates with this method and these parts of it, in place of taking over those of
    another arm. The base policy is not trained, and needs none; fewer or other data keep the rate of their method."""
    if method == "base":
        return True
    tried = json.loads(TUNED.read_text(encoding="utf-8"))["tried"] if TUNED.is_file() else ()
    wanted = (method, part_of(departures))
    return any((entry["method"], entry.get("part", {})) == wanted for entry in tried)


def plan(
    source: str | Path | Mapping[str, Any] | Sweep,
    profile: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
    **changes: Any,
) -> Plan:
    """All runs of a sweep, every config checked before anything is trained.

    Args:
        source: as :func:`load` takes it.
        profile: ``smoke``, ``quick``, ``full`` (their sizes apply first) or a profile of the file's own; None for the file
            as it is.
        seeds: seeds in place of the sweep's.
        **changes: dotted fields and values on top of everything.

    Raises:
        ConfigError: an unknown profile, preset, method or field, a value that cannot be used, or two arms with one config.
    """
    sweep = source if isinstance(source, Sweep) else load(source)
    if sweep.preset not in PRESETS:
        raise ConfigError(f"preset = {sweep.preset!r} is not known; use one of {', '.join(PRESETS)}")
    if profile is not None and profile not in PROFILES and profile not in sweep.profiles:
        raise ConfigError(
            f"profile = {profile!r} is not known; use one of {', '.join(dict.fromkeys([*PROFILES, *sweep.profiles]))}"
        )
    chosen = sweep.profiles.get(profile or "", SweepProfile())
    sizes = PROFILES[profile].changes if profile in PROFILES and sweep.preset == "tiny" else {}
    grid = {**sweep.grid, **chosen.grid}
    if seeds is None:
        seeds = chosen.seeds or sweep.seeds or (PROFILES[profile].seeds if profile in PROFILES else (0,))
    folder = (sweep.folder or sweep.name).replace("{profile}", profile or "default")
    try:
        if not seeds:
            raise ValueError("seeds = [] leaves nothing to run; give at least one")
        _refuse_twice("seeds", seeds)
        _refuse_chosen("set", changes)
    except ValueError as error:
        raise ConfigError(str(error)) from None

    def config_of(arm: str, departures: Mapping[str, Any], seed: int) -> RunConfig:
        for field, value in departures.items():
            if field in changes and changes[field] != value:
                raise ConfigError(
                    f"{field} = {changes[field]!r} would go over {value!r}, which {arm!r} of sweep {sweep.name!r} stands for; "
                    "leave it, or edit the sweep"
                )
        asked = {**sweep.set, **chosen.set, **departures, **changes}
        method = asked.get("method", preset(sweep.preset).method)
        registry.load(asked.get("imports", ()))
        methods.get(method)
        # What goes over the preset, each layer over those before it.
        layers = {
            "folder": {"name": folder},
            "tuning": tuned_fields(method, departures) if sweep.tuned else {},
            "size of the profile": sizes,
            "sweep, its profile, arm and grid, call": asked,
            "seed": {"seed": seed},
        }
        config = preset(sweep.preset, **{f: v for layer in layers.values() for f, v in layer.items()})
        config = registry.with_ideas(with_task(config))
        methods.check(config)
        writers.check(config)
        return config

    experts = {name: config_of(name, fields, 0) for name, fields in sweep.experts.items()}
    runs: dict[tuple[str, int], Planned] = {}
    hashes: dict[str, str] = {}
    used: set[str] = set()
    for arm in chosen.arms or sweep.arms:
        for combination in itertools.product(*grid.values()):
            values = dict(zip(grid, combination, strict=True))
            departures = {**sweep.arms[arm], **values}
            author = _author(departures, sweep)
            if author:
                used.add(author)
                departures["data.expert"] = f"run:{directory_of(experts[author], '').name}"
            for seed in seeds:
                planned = Planned(arm=arm, values=values, config=config_of(arm, departures, seed))
                if planned.config.method == "base" and seed != seeds[0]:
                    continue
                other = runs.setdefault((planned.config.hash(), seed), planned)
                if other is not planned:
                    raise ConfigError(
                        f"arms {other.label!r} and {planned.label!r} of sweep {sweep.name!r} are the same config; take one "
                        "of them out"
                    )
                if hashes.setdefault(planned.label, planned.config.hash()) != planned.config.hash():
                    raise ConfigError(
                        f"two configs of sweep {sweep.name!r} are called {planned.label!r}; give an arm another name"
                    )
    for name in used:
        if not experts[name].records.save_model:
            raise ConfigError(
                f"records.save_model = False leaves no policy of expert {name!r}; set it to true in experts.{name}"
            )
    return Plan(
        sweep=sweep, profile=profile, runs=tuple(runs.values()), experts=tuple(experts[name] for name in sorted(used))
    )


def configs(
    base: RunConfig,
    *,
    method: str | None = None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[RunConfig]:
    """One config for each method and seed, without a file.

    Args:
        base: where all start.
        method: names of methods, by commas, or ``all``; by default the method of ``base``.
        seeds: by default the seed of ``base``; the base policy is not trained and takes the first only.
        steps: optimizer steps of each stage of the methods.
        changes: dotted fields and values on top of everything.

    Raises:
        ConfigError: a value that cannot be used.
    """
    changed = dict(changes or {})
    registry.load(changed.get("imports", base.imports))
    given = method or changed.pop("method", base.method)
    chosen = list(methods.METHODS) if given == "all" else list(dict.fromkeys(given.split(",")))
    if steps is not None:
        stages = [stage for name in chosen for stage in methods.get(name).stages]
        changed = {f"{stage.optim}.steps": steps for stage in stages} | changed
    found = [base.replace(**{**changed, "method": name}) for name in chosen]
    for config in found:
        methods.check(config)
        writers.check(config)
    return [
        config.replace(seed=seed)
        for config in map(registry.with_ideas, found)
        for seed in list(dict.fromkeys(seeds or [config.seed]))[: None if methods.get(config.method).stages else 1]
    ]


def _author(departures: Mapping[str, Any], sweep: Sweep) -> str:
    """The expert of the sweep that writes the demonstrations of an arm, or nothing."""
    prefix, _, name = str(departures.get("data.expert", "")).partition(":")
    # The name of a directory is a run that the sweep did not train.
    if prefix != "run" or re.search(r"-[0-9a-f]{12}-s\d+$", name):
        return ""
    if name not in sweep.experts:
        raise ConfigError(
            f"data.expert = 'run:{name}' is no expert of sweep {sweep.name!r}; its experts are "
            f"{', '.join(sweep.experts) or 'none'}"
        )
    return name


def run(sweep: Plan, **options: Any) -> list[Run]:
    """Train what is not finished yet and return the runs in the order of the plan; options as :func:`run_all` takes them."""
    [runs] = run_all([sweep], **options)
    return runs


def run_all(
    plans: Sequence[Plan],
    *,
    out: str | Path,
    workers: int = 2,
    progress: bool = True,
    run_seconds_limit: float | None = None,
    seconds_limit: float | None = None,
    fresh: bool = False,
) -> list[list[Run]]:
    """Train several sweeps under one status, runs that they share once, and return the runs of each in its order.

    At the end, also one that failed or was interrupted, the summary of each is written. Calls on one folder, from one
    machine or several, divide the runs among themselves.

    Args:
        plans: what :func:`plan` gave.
        out: folder of all runs.
        workers: runs trained at the same time.
        progress: show one status of all runs.
        run_seconds_limit: wall-clock limit of each run; one that takes longer counts as failed and keeps its checkpoint.
        seconds_limit: wall-clock limit of the whole call.
        fresh: train again, from the start, what was trained before.

    Raises:
        ConfigError: a folder that cannot be written, fewer than one worker, a limit that is no positive number.
        PoolError: some runs did not finish; the others did.
    """
    configs = [config for each in plans for config in (*each.experts, *each.configs)]
    try:
        train_all(
            configs,
            out=out,
            workers=workers,
            progress=progress,
            seconds_limit=seconds_limit,
            run_seconds_limit=run_seconds_limit,
            fresh=fresh,
        )
    except (PoolError, KeyboardInterrupt):
        _write_summaries(plans, out)
        raise
    _write_summaries(plans, out)
    return [[Run(directory_of(config, out)) for config in each.configs] for each in plans]


# ---------------------------------------------------------------------- the state of a sweep

StateName = Literal["finished", "diverged", "running", "failed", "interrupted", "waiting"]


@dataclass(frozen=True, slots=True)
class State:
    """The state of a run."""

    name: StateName
    detail: str = ""
    """Why it failed or diverged, or who trains it."""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


def state(config: RunConfig, out: str | Path) -> State:
    """The state of a config's run in a folder, as its files say."""
    path = directory_of(config, out)
    if (path / "DONE.json").is_file():
        diverged = Run(path).diverged
        return State("diverged", diverged) if diverged else State("finished")
    if holder := claimed_by(path):
        return State("running", holder)
    with contextlib.suppress(FileNotFoundError):
        return State("failed", failure_file(path).read_text(encoding="utf-8"))
    return State("interrupted") if (path / "config.json").is_file() else State("waiting")


def states(sweep: Plan, out: str | Path) -> pd.DataFrame:
    """One row per run, experts first: arm, the fields of the grid, seed, directory and state (:func:`state`) in words."""
    places = [dict.fromkeys(["arm", *sweep.fields], "") | {"arm": "(expert)"} for _ in sweep.experts]
    places += [{"arm": planned.arm} | {f: str(v) for f, v in planned.values.items()} for planned in sweep.runs]
    return pd.DataFrame(
        [
            place | {"seed": c.seed, "directory": str(directory_of(c, out)), "state": str(state(c, out))}
            for place, c in zip(places, [*sweep.experts, *sweep.configs], strict=True)
        ]
    )


def kit() -> pd.DataFrame:
    """One row per sweep of the kit: its name, how many runs it has in each profile, and its question."""
    rows = []
    for name in names():
        sweep = load(name)
        counts = {f"runs, {profile}": len(plan(sweep, profile).runs) for profile in PROFILES}
        rows.append({"sweep": name, **counts, "question": sweep.question})
    return pd.DataFrame(rows)


def finished(sweep: Plan, out: str | Path) -> list[Run]:
    """Its finished runs in the order of the plan, diverged ones among them."""
    paths = [directory_of(config, out) for config in sweep.configs]
    return [Run(path) for path in paths if (path / "DONE.json").is_file()]


def summary(sweep: Plan, out: str | Path) -> pd.DataFrame:
    """One row per run in the order of the plan.

    Returns:
        arm; the fields of the grid; seed, method, run (its directory in the folder of all runs), config (its hash),
        diverged (a sentence, or empty); ``<split>_<metric>`` of the final evaluation (:data:`METRICS`), and
        ``validation_<metric>`` of the last evaluation during training; NaN where a run is not finished or did not measure it.
        A run that diverged solved nothing, and has no validation.
    """
    rows = []
    for planned in sweep.runs:
        config = planned.config
        path = directory_of(config, out)
        row: dict[str, Any] = {
            "arm": planned.arm,
            **planned.values,
            "seed": config.seed,
            "method": config.method,
            "run": path.relative_to(Path(out).expanduser()).as_posix(),
            "config": config.hash(),
            "diverged": "",
        }
        if (path / "DONE.json").is_file():
            one = Run(path)
            row["diverged"] = one.diverged
            for split, scores in one.summary["splits"].items():
                row |= {f"{split}_{metric}": scores[metric] for metric in METRICS}
            evaluations = one.evaluations
            if len(evaluations) and not one.diverged:
                last = evaluations.iloc[-1]
                row |= {f"validation_{metric}": last.get(metric) for metric in METRICS}
        rows.append(row)
    return pd.DataFrame(rows)


def _write_summaries(plans: Sequence[Plan], out: str | Path) -> None:
    for each in plans:
        write_text(each.folder(out) / "summary.csv", summary(each, out).to_csv(index=False, lineterminator="\n"))
