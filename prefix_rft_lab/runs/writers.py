"""Where people look: a run's figures shown in TensorBoard, Weights & Biases, trackio, or another tracker that accelerate knows.

The run's directory is what counts; a writer mirrors it. Each line of ``metrics.jsonl`` and ``evaluations.jsonl`` and the
final scores become one entry of scalars at their ``global_step``, in the order in which they were written, so that a
mirror is a function of the directory: a resumed run shows each entry once. What cannot tell how many entries it holds is
rewritten from the directory when a process takes the run up, or begins another run there (the trackers that this module
has no function for); what can (wandb online) gets those that it lacks.

A writer that fails is left out from then on, in one sentence, and the run goes on. One that is missing is refused before
work starts. Nothing but figures and config is shown: no code, no console output, no state of a git repository.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from prefix_rft_lab.core.config import ConfigError, RunConfig, flatten
from prefix_rft_lab.core.files import read_lines, write_text

log = logging.getLogger(__name__)

FINISH_SECONDS = 120.0
"""Longest wait for uploads at the end of a run; what did not go through by then stays on the disk."""

Scalars = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """An open writer."""

    add: Callable[[int, Scalars], None]
    """Takes ``global_step`` and the scalars of one entry."""
    close: Callable[[bool], None]
    """Takes whether the run came to its end, undiverged."""
    held: int = 0
    """Entries that it has from before, the first ones of the run."""


# ---------------------------------------------------------------------- the writers


def _tracker(kind: str, /, *place: str, **options: Any) -> Any:
    """One of accelerate's trackers, started."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # without it some trackers refuse to log that they started
    tracker = LOGGER_TYPE_TO_CLASS[kind](*place, **options)
    tracker.start()
    return tracker


def _mirror(tracker: Any) -> Mirror:
    return Mirror(add=lambda step, values: tracker.log(values, step=step), close=lambda done: tracker.finish())


def _fields(config: RunConfig) -> dict[str, bool | int | float | str]:
    return {n: v if isinstance(v, bool | int | float | str) else json.dumps(v) for n, v in flatten(config.to_dict())}


def _tensorboard(config: RunConfig, path: Path) -> Mirror:
    """Into ``<run>/tensorboard``, written anew; a TensorBoard that has it open forgets what it read (``purge_step``)."""
    from torch.utils.tensorboard.summary import hparams

    shutil.rmtree(path / "tensorboard", ignore_errors=True)
    tracker = _tracker("tensorboard", "tensorboard", str(path), purge_step=0)
    # Four spaces make a block of code of any text.
    tracker.writer.add_text("config", "\n".join(f"    {line}" for line in config.to_yaml().splitlines()), 0)
    for summary in hparams(_fields(config), {f"validation/{name}": 0.0 for name in ("avg", "pass", "greedy")}):
        # store_init_configuration would make a second run of it, in a folder below.
        tracker.writer.file_writer.add_summary(summary)
    return _mirror(tracker)


def _wandb(config: RunConfig, path: Path) -> Mirror:
    """Resumed by its id where wandb is online; offline, one folder ``<run>/wandb/offline-run-*`` that is written anew.

    The id is the run's name and a random ending, kept in the run's directory: a run that was deleted and is trained again
    is another one to wandb, which overwrites nothing.
    """
    import wandb

    file = path / "wandb" / "id"
    if not file.is_file():
        write_text(file, f"{re.sub(r'[^A-Za-z0-9_-]', '-', path.name)}-{secrets.token_hex(4)}")
    name = file.read_text(encoding="utf-8")
    before = list((path / "wandb").glob(f"offline-run-*-{name}"))
    settings = wandb.Settings(
        console="off", disable_git=True, disable_code=True, save_code=False, finish_timeout=FINISH_SECONDS
    )
    place = {"id": name, "name": path.name, "group": config.name, "dir": str(path), "config": config.to_dict()}
    run = _tracker("wandb", config.records.project, **place, resume="allow", reinit="create_new", settings=settings).run
    run.define_metric("*", step_metric="global_step")
    if run.offline:
        for folder in before:
            shutil.rmtree(folder, ignore_errors=True)
    return Mirror(
        # wandb's own step counts entries: two of them can have one global_step, and it takes no step twice.
        add=lambda step, values: run.log({**values, "global_step": step}),
        close=lambda done: run.finish(exit_code=0 if done else 1),
        held=run.step,
    )


def _wandb_ready() -> str:
    """What keeps wandb from working, with the remedy; empty if nothing does."""
    import wandb

    if wandb.setup().settings.mode != "online":
        return ""
    remedy = "run wandb login, or set WANDB_MODE=offline and run wandb sync later"
    try:
        return "" if wandb.login() else f"is not logged in; {remedy}"
    except Exception as error:
        return f"cannot log in ({str(error).splitlines()[0] if str(error) else type(error).__name__}); {remedy}"


def _trackio(config: RunConfig, path: Path) -> Mirror:
    """Into trackio's own store on this machine (``TRACKIO_DIR``), where ``trackio show`` looks, written anew."""
    import trackio

    name = f"{config.name}/{path.name}"
    try:
        before = [run for run in trackio.Api().runs(config.records.project) if run.name == name]
    except ValueError:
        before = []  # there is no such project yet
    for run in before:
        run.delete()
    options = {"resume": "never", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    return _mirror(
        _tracker("trackio", config.records.project, name=name, group=config.name, config=_fields(config), **options)
    )


WRITERS: dict[str, Callable[[RunConfig, Path], Mirror]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""Name in ``records.writers`` -> what opens it for a run and its directory, so that a resumed run stays one run there."""


def _other(name: str, config: RunConfig, path: Path) -> Mirror:
    """Any other tracker of accelerate, below the run's directory where it asks for a folder."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    folder = {"logging_dir": str(path / name)} if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory else {}
    tracker = _tracker(name, config.records.project, **folder)
    tracker.store_init_configuration(_fields(config))
    return _mirror(tracker)


def check(config: RunConfig) -> tuple[str, ...]:
    """The names in ``records.writers``.

    Raises:
        ConfigError: one is unknown, or its package is not installed.
    """
    given = config.records.writers
    names = () if given == "none" else tuple(dict.fromkeys(given.split("+")))
    for name in names:
        if name not in WRITERS:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS as KNOWN

            if name not in KNOWN:
                known = ", ".join(dict.fromkeys([*WRITERS, *KNOWN]))
                raise ConfigError(
                    f"records.writers = {given!r} is not known; use {known}, several joined by +, or none"
                )
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            how = f"-c constraints.txt -e '.[{name}]'" if name in WRITERS else name
            if name == "trackio":
                how = (
                    "-e '.[trackio]', in an environment of its own, without constraints.txt (it wants an older pillow)"
                )
            raise ConfigError(
                f"records.writers = {given!r} needs {name}, which is not installed; run: pip install {how}"
            ) from None
    return names


# ---------------------------------------------------------------------- entries


def scalars(part: str, line: Mapping[str, Any]) -> Scalars:
    """The finite numbers of a line by name, ``part/name``; ``x_interval`` becomes ``x_low`` and ``x_high``.

    A NaN says that a step has no such figure (no hybrid row, no second update), and leaves a gap.
    """
    found: dict[str, Any] = {}
    for name, value in flatten(line):
        name = f"{part}/{name.replace('.', '/')}"
        if name.endswith("_interval"):
            found |= dict(zip((f"{name[:-9]}_low", f"{name[:-9]}_high"), value, strict=True))
        else:
            found[name] = value
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value) and not name.endswith("/global_step")
    }


def recorded(path: Path) -> Iterator[tuple[int, Scalars]]:
    """(``global_step``, scalars) of each line that a run's directory holds, in the order of writing.

    An evaluation with ``global_step`` n comes before the step n that starts from the same weights.
    """
    parts = (("validation", "evaluations.jsonl"), ("train", "metrics.jsonl"))
    lines = [(part, line) for part, name in parts for line in read_lines(path / name, cut=True)]
    for part, line in sorted(lines, key=lambda item: item[1]["global_step"]):
        yield line["global_step"], scalars(part, line)


class Mirrors:
    """The writers of one run, opened with its first entry.

    Args:
        config: the run's; ``records.writers`` names the writers.
        path: the run's directory.

    Raises:
        ConfigError: a writer is unknown, not installed or not ready.
    """

    def __init__(self, config: RunConfig, path: Path) -> None:
        self.config = config
        self.path = path
        self._waiting = check(config)
        if "wandb" in self._waiting and (reason := _wandb_ready()):
            raise ConfigError(f"records.writers = {config.records.writers!r}: wandb {_without_secrets(reason)}")
        self._open: dict[str, Mirror] = {}
        self._entries = 0
        self._step = 0

    def add(self, part: str, line: Mapping[str, Any]) -> None:
        """Show a line that the run's directory holds by now; the first call shows all that it holds.

        Args:
            part: ``train``, ``validation``, or ``final``, whose line has no ``global_step``: it is the last one's.
            line: plain values, nested.
        """
        if not self._waiting and not self._open:
            return
        opening, self._waiting = self._waiting, ()
        for name in opening:
            self._guarded(name, self._start, name)
        entries = list(recorded(self.path)) if opening else []
        if not opening or part == "final":
            step = max((step for step, _ in entries), default=self._step) if part == "final" else line["global_step"]
            entries.append((step, scalars(part, line)))
        for self._step, values in entries:
            for name, mirror in list(self._open.items()):
                if self._entries >= mirror.held:
                    self._guarded(name, mirror.add, self._step, values)
            self._entries += 1

    def close(self) -> None:
        """Flush and close; free to call again."""
        done = (self.path / "DONE.json").is_file() and not (self.path / "DIVERGED.json").is_file()
        for name, mirror in list(self._open.items()):
            self._guarded(name, mirror.close, done)
        self._open = {}

    def _start(self, name: str) -> None:
        opened = WRITERS[name](self.config, self.path) if name in WRITERS else _other(name, self.config, self.path)
        self._open[name] = opened

    def _guarded(self, name: str, act: Callable[..., None], *arguments: Any) -> None:
        """Call into code that is not ours, and do without it from its first failure on."""
        try:
            act(*arguments)
        except Exception as error:
            words = _without_secrets(f"{type(error).__name__}: {error}".splitlines()[0])
            log.warning(
                "%s: the run goes on without its writer %s, which failed (%s); the run's directory has everything",
                self.path.name,
                name,
                words,
            )
            mirror = self._open.pop(name, None)
            if mirror is not None and act is not mirror.close:
                try:
                    mirror.close(False)
                except Exception as again:
                    log.debug("%s: closing %s failed too (%s)", self.path.name, name, type(again).__name__)


def _without_secrets(text: str) -> str:
    """The text without the value of any environment variable whose name says that it is secret."""
    for name, value in os.environ.items():
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name.upper()) and len(value) >= 8:
            text = text.replace(value, "***")
    return text
