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
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefix_rft_lab import methods
from prefix_rft_lab.config import PRESETS, ConfigError, RunConfig, preset, validation_sentence
from prefix_rft_lab.experiments import PROFILES
from prefix_rft_lab.pool import train_all
from prefix_rft_lab.runs import Run, directory_of

FOLDER = Path(__file__).parent / "assets" / "sweeps"
"""The sweeps of the kit."""

TUNED = Path(__file__).parent / "assets" / "tuned.json"
"""Fields that the kit's tuning sweep chose, by method."""


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class SweepProfile(_Part):
    """How much of a sweep is run."""

    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """Seeds in place of the sweep's."""
    arms: tuple[str, ...] | None = Field(None, min_length=1)
    """Arms that are run; all if not given."""
    grid: dict[str, tuple[Any, ...]] = {}
    """Values in place of the grid's, by field."""
    set: dict[str, Any] = {}
    """Dotted fields on top of the sweep's ``set``."""


class Sweep(_Part):
    """A file of runs."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    """Name of the sweep."""
    question: str = ""
    """What it is for, in one sentence."""
    preset: str = "tiny"
    """Preset that all runs start from."""
    folder: str | None = Field(None, min_length=1, pattern=r"^([\w.-]|\{profile\})+$")
    """Folder of the runs below ``out`` (``{profile}`` stands for the profile's name); sweeps with one folder share equal
    runs. The sweep's name if not given."""
    tuned: bool = False
    """Whether every method gets the fields that the kit's tuning chose for it; ``set`` and the arms go over them."""
    set: dict[str, Any] = {}
    """Dotted fields and values of every run."""
    arms: dict[str, dict[str, Any]] = Field(default={"": {}}, min_length=1)
    """Name -> dotted fields and values: what is compared."""
    grid: dict[str, tuple[Any, ...]] = {}
    """Dotted field -> values; every combination is run, for every arm."""
    experts: dict[str, dict[str, Any]] = {}
    """Name -> dotted fields of a run (seed 0) that is trained first; ``data.expert: run:<name>`` in an arm has its policy
    write the demonstrations."""
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """Seeds of every combination; if not given, those of the profile, and 0 without one. The method ``base`` is not
    trained and takes the first only."""
    profiles: dict[str, SweepProfile] = {}
    """Name of a profile -> what it changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One run of a sweep before it is trained."""

    arm: str
    values: Mapping[str, Any]
    """Its place in the grid."""
    config: RunConfig

    @property
    def label(self) -> str:
        """What names its group: the arm and the values of the grid; all seeds share it."""
        return " · ".join(filter(None, [self.arm, *(str(value) for value in self.values.values())]))


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
        """Names the group of a run in this sweep, as :mod:`prefix_rft_lab.stats` takes it.

        Args:
            by: what of a planned run makes its group's name.
        """
        names = {(planned.config.hash(), planned.config.seed): by(planned) for planned in self.runs}

        def named(run: Run) -> str:
            key = (run.config.hash(), run.seed)
            if key not in names:
                raise ConfigError(f"run = {str(run.path)!r} is not of sweep {self.sweep.name!r}; leave it out")
            return names[key]

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
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"sweep = {where!r} is not valid YAML ({str(error).splitlines()[0]}); correct it"
            ) from None
        if not isinstance(values, dict):
            raise ConfigError(f"sweep = {where!r} holds no mapping; write 'name:', 'arms:' and 'seeds:'")
    try:
        sweep = Sweep.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {validation_sentence(Sweep, error, 'sweep')}") from None
    for field, entries in [*sweep.grid.items(), *(g for p in sweep.profiles.values() for g in p.grid.items())]:
        if not entries:
            raise ConfigError(f"{where}: grid.{field} = [] leaves nothing to run; give it values or take it out")
    for name, chosen in sweep.profiles.items():
        for arm in chosen.arms or ():
            if arm not in sweep.arms:
                raise ConfigError(
                    f"{where}: profiles.{name}.arms = {arm!r} is no arm; the arms are {', '.join(sweep.arms)}"
                )
    return sweep


def names() -> list[str]:
    """The sweeps of the kit."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def tuned_fields(method: str) -> dict[str, Any]:
    """Dotted fields that the kit's tuning chose for a method; none for a method that was not tuned."""
    if not TUNED.is_file():
        return {}
    return dict(json.loads(TUNED.read_text(encoding="utf-8"))["fields"].get(method, {}))


def plan(source: str | Path | Mapping[str, Any] | Sweep, profile: str | None = None, **changes: Any) -> Plan:
    """All runs of a sweep, every config checked before anything is trained.

    Args:
        source: as :func:`load` takes it.
        profile: ``smoke``, ``quick``, ``full`` (their sizes apply first) or a profile of the file's own; None for the file
            as it stands.
        **changes: dotted fields and values on top of everything.

    Raises:
        ConfigError: an unknown profile, preset, method or field, or a value that cannot be used.
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
    seeds = chosen.seeds or sweep.seeds or (PROFILES[profile].seeds if profile in PROFILES else (0,))
    folder = (sweep.folder or sweep.name).replace("{profile}", profile or "default")

    def config_of(departures: Mapping[str, Any], seed: int) -> RunConfig:
        method = departures.get("method", sweep.set.get("method", preset(sweep.preset).method))
        methods.get(method)
        tuned = tuned_fields(method) if sweep.tuned else {}
        fields = {"name": folder, **tuned, **sizes, **sweep.set, **chosen.set, **departures, **changes, "seed": seed}
        config = preset(sweep.preset, **fields)
        methods.check(config)
        return config

    experts = {name: config_of(fields, 0) for name, fields in sweep.experts.items()}
    runs: dict[tuple[str, int], Planned] = {}
    used: set[str] = set()
    for arm in chosen.arms or sweep.arms:
        for combination in itertools.product(*grid.values()):
            values = dict(zip(grid, combination, strict=True))
            departures = {**sweep.arms[arm], **values}
            author = str(departures.get("data.expert", "")).removeprefix("run:")
            if author in experts:
                used.add(author)
                departures["data.expert"] = f"run:{directory_of(experts[author], '').name}"
            method = departures.get("method", sweep.set.get("method"))
            for seed in seeds[:1] if method == "base" else seeds:
                planned = Planned(arm=arm, values=values, config=config_of(departures, seed))
                other = runs.setdefault((planned.config.hash(), seed), planned)
                if other.label != planned.label:
                    raise ConfigError(
                        f"arms {other.label!r} and {planned.label!r} of sweep {sweep.name!r} are the same config; take one "
                        "of them out"
                    )
    return Plan(
        sweep=sweep, profile=profile, runs=tuple(runs.values()), experts=tuple(experts[name] for name in sorted(used))
    )


def run(sweep: Plan, *, out: str | Path, workers: int = 2, progress: bool = True) -> list[Run]:
    """Train what is not finished yet, the experts first, and return the runs in the order of the plan.

    Args:
        sweep: what :func:`plan` gave.
        out: folder of all runs.
        workers: runs trained at the same time.
        progress: show one status of all runs.

    Raises:
        PoolError: some runs did not finish; the others did.
    """
    for configs in (sweep.experts, sweep.configs):
        runs = train_all(configs, out=out, workers=workers, progress=progress) if configs else []
    return runs
