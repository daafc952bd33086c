"""Run directories: everything that a run leaves, written so that a kill loses nothing, read as DataFrames.

    <out>/<name>/<method>-<config hash>-s<seed>/
        config.json        resolved config
        env.json           versions, machine, threads
        data.json          rows used and dropped, by reason; which vocabulary the token ids are of
        metrics.jsonl      one line per training step, while running
        evaluations.jsonl  one line per evaluation on the validation split
        tokens/            step-000025.parquet: one row per token (TOKEN_COLUMNS) of some rows of that step
        evaluation/        <split>.parquet: one row per problem, after the last step
        summary.json       final figures with intervals
        checkpoints/       newest states, for resuming
        model/             final weights in Hugging Face format
        DIVERGED.json      what became NaN or infinite, and at which step; such a run is finished and solved nothing
        DONE.json          written last: a run without it is not finished
        tensorboard/ wandb/    mirrors, where records.writers asks for them
    <out>/<name>/.<run>.claim    while a process trains the run

Plots, reports and widgets read these files and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from prefix_rft_lab.core import hub
from prefix_rft_lab.core.config import ConfigError, RunConfig, identity
from prefix_rft_lab.core.errors import RunClaimedError, RunError
from prefix_rft_lab.core.files import (
    _temporary,
    append_line,
    damaged,
    ends,
    read_json,
    read_lines,
    read_table,
    write_json,
    write_table,
    write_text,
)
from prefix_rft_lab.core.versions import __version__

log = logging.getLogger(__name__)

FOLLOWED = -1
"""``row`` of a token table's demonstrations that are read and not trained: the same text at every step."""

TOKEN_COLUMNS = {
    "run": "name of the run's directory, or of the model",
    "step": "step of the run (global_step), from 0; the state before its update",
    "problem": "id of the problem",
    "row": "number of the row within its group, from 0; FOLLOWED for a demonstration that is only read",
    "position": "place in the response, from 0, tokens",
    "token_id": "id in the tokenizer's vocabulary",
    "text": "the token as text; bytes that are no whole character as <0xE2>",
    "kind": "prefix (copied from a demonstration), continuation (sampled after one) or on_policy",
    "entropy": "entropy of the next-token distribution at its place, nats, over the full vocabulary",
    "temperature": "divides the logits before log-probabilities and entropies are taken",
    "logp": "log-probability of the token in the update's forward pass, nats",
    "old_logp": "log-probability under the policy that the update started from, nats",
    "ratio": "exp(logp - old_logp), as the loss used it",
    "advantage": "after the entropy clip; NaN where there is none (a demonstration that is only read)",
    "kept": "False where the entropy clip takes the advantage away, or would (a demonstration that is only read)",
    "score": "of the whole response, 0 or 1; NaN where nothing was scored",
    "top_ids": "ids of the most probable tokens at that place",
    "top_probs": "their probabilities",
    "top_texts": "their texts",
    "entropy_after": "entropy after the update, nats; demonstrations that are only read, else NaN",
    "top_probs_after": "probabilities of top_ids after the update; demonstrations that are only read, else None",
}
"""Column of a token table -> meaning and unit."""


def directory_of(config: RunConfig, out: str | Path) -> Path:
    """Where the run of a config is written; equal configs, equal directory, as long as the files that they name hold what
    they held (:func:`located`)."""
    return _place(located(config, out), out)


def located(config: RunConfig, out: str | Path) -> RunConfig:
    """The config with the ``contents`` of its files, if a run of it was trained on other contents: that one is another run."""
    data = _place(config, out) / "data.json"
    if config.contents or not os.path.isfile(data):  # noqa: PTH113, a name that is too long is no file
        return config
    recorded, found = read_json(data).get("contents", {}), contents(config)
    same = all(found.get(name, digest) == digest for name, digest in recorded.items())
    return config if same else config.replace(contents=found)


def _place(config: RunConfig, out: str | Path) -> Path:
    return Path(out).expanduser() / config.name / f"{config.method}-{config.hash()}-s{config.seed}"


def say_loaded(runs: Sequence[Run], shown: bool) -> None:
    """Say in one line that finished runs are loaded and not trained: since when, and how to train them again.

    A warning, so that it is seen without any set-up; only for the log where ``shown`` is False, or in a notebook that runs
    headlessly.
    """
    if not runs:
        return
    ages = sorted(time.time() - (run.path / "DONE.json").stat().st_mtime for run in runs)
    where = f"{runs[0].path} was" if len(runs) == 1 else f"{len(runs)} runs in {runs[0].path.parents[1]} were"
    log.log(
        logging.WARNING if shown and "PREFIX_RFT_LAB_TICKET" not in os.environ else logging.INFO,
        *(
            "%s trained %s ago and %s loaded; fresh=True trains again",
            where,
            " to ".join(dict.fromkeys([_age(ages[0]), _age(ages[-1])])),
        ),
        "is" if len(runs) == 1 else "are",
    )


def _age(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def environment(threads: int) -> dict[str, Any]:
    """What a figure may depend on besides the config: versions, machine, threads."""
    from importlib.metadata import version

    import torch

    names = ("torch", "transformers", "tokenizers", "numpy", "pandas", "math-verify", "accelerate", "datasets")
    return {
        "prefix_rft_lab": __version__,
        "source": source_hash(),
        "python": platform.python_version(),
        "platform": " ".join([platform.system(), *platform.libc_ver()]),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: version(name) for name in names},
    }


@contextlib.contextmanager
def torch_state(threads: int) -> Iterator[None]:
    """PyTorch as a run needs it, whatever the caller has set, and the caller's settings again afterwards: gradients and
    no autocast, float32 on the CPU in full precision, so many CPU threads, and a global random state that stays."""
    import torch

    settings: list[tuple[Any, Any, Any]] = [
        (torch.set_num_threads, threads, torch.get_num_threads()),
        (torch.set_default_dtype, torch.float32, torch.get_default_dtype()),
        (torch.set_float32_matmul_precision, "highest", torch.get_float32_matmul_precision()),
    ]
    if (device := torch.get_default_device()).type != "cpu":
        settings.append((torch.set_default_device, None, device))
    try:
        for set_to, ours, _ in settings:
            set_to(ours)
        with contextlib.ExitStack() as within:
            for context in (torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng()):
                within.enter_context(context)
            for kind in ("cpu", "cuda"):
                within.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for set_to, _, before in settings:
            set_to(before)


COMPUTES = ("core", "algorithm", "data", "runs", "models", "training", "assets/tiny", "assets/templates")
"""Folders of the package that can change what a run computes; the layers above them start or read runs."""


def source_hash() -> str:
    """Twelve hex digits of the code and weights that a run's figures depend on: a figure made by other code shows."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for folder in COMPUTES for path in (root / folder).rglob("*")):
        if path.suffix in (".py", ".json", ".jinja", ".safetensors"):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


KEPT = ("*.json", "*.jsonl", "tokens/*.parquet", "evaluation/*.parquet", "model/**/*")
"""Files of a finished run whose hashes are in ``DONE.json``."""


class Run:
    """What a run recorded. Works on finished, running and interrupted runs; nothing here needs a model."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise ConfigError(f"run = {str(path)!r} holds no config.json; give the directory of a run")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {'done' if self.done else f'{len(self.metrics)} steps so far'})"

    @cached_property
    def config(self) -> RunConfig:
        path = self.path / "config.json"
        try:
            return RunConfig.from_dict(read_json(path, "method"))
        except ConfigError as error:
            raise damaged(path, error) from None

    @property
    def method(self) -> str:
        return self.config.method

    @property
    def title(self) -> str:
        """The method's name as figures print it."""
        from prefix_rft_lab.algorithm.methods import METHODS

        return METHODS[self.method].title if self.method in METHODS else self.method

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def done(self) -> bool:
        return (self.path / "DONE.json").is_file()

    @property
    def diverged(self) -> str:
        """What became NaN or infinite, at which step, and the remedy; empty for a run that did not diverge."""
        path = self.path / "DIVERGED.json"
        return str(read_json(path, "sentence")["sentence"]) if self.done and path.is_file() else ""

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and machine (:func:`environment`); empty if it recorded none."""
        return read_json(self.path / "env.json")

    @property
    def data(self) -> dict[str, Any]:
        """Rows used and dropped, vocabulary, contents of files; empty if it recorded none."""
        return read_json(self.path / "data.json")

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a training step; units in :data:`prefix_rft_lab.core.columns.METRICS`."""
        return pd.DataFrame(read_lines(self.path / "metrics.jsonl"))

    @property
    def evaluations(self) -> pd.DataFrame:
        """One row an evaluation on the validation split, ``global_step`` 0 is the policy before training."""
        return pd.DataFrame(read_lines(self.path / "evaluations.jsonl"))

    @property
    def tokens(self) -> pd.DataFrame:
        """One row a recorded token, of all steps recorded so far; columns and units in :data:`TOKEN_COLUMNS`.

        Without token records it is empty, with all columns. Columns that an older run did not write are NaN.
        """
        parts = []
        for path in self.token_tables():
            # A run that is being written, and goes back to a checkpoint, takes tables away.
            with contextlib.suppress(FileNotFoundError):
                parts.append(read_table(path))
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({name: [] for name in TOKEN_COLUMNS})
        table = table.reindex(columns=list(dict.fromkeys([*TOKEN_COLUMNS, *table.columns])))
        if table["run"].isna().all():
            table["run"] = pd.Series(self.path.name, index=table.index, dtype=object)
        table.attrs = {"tokenizer": self.tokenizer}
        return table

    def token_tables(self) -> list[Path]:
        """The token tables written so far, by step."""
        return sorted(p for p in (self.path / "tokens").glob("step-*.parquet") if p.stem[5:].isdecimal())

    @property
    def tokenizer(self) -> str:
        """Names the vocabulary that token ids are of (:func:`prefix_rft_lab.training.records.tokenizer_id`); "" for older runs."""
        return str(self.data.get("tokenizer", ""))

    @property
    def summary(self) -> dict[str, Any]:
        """Final figures. Where ``summary.json`` is damaged they are made again from the tables of the evaluation.

        Raises:
            RunError: the run is not finished, or these are damaged too.
        """
        path = self.path / "summary.json"
        if not self.done:
            raise RunError(f"{self.path} has no summary yet; train it to the end first (the same command resumes it)")
        with contextlib.suppress(RunError):
            found = read_json(path, "splits", "seconds", "method", "seed")
            if isinstance(found["splits"], dict) and digest_of(path) == self._files().get(path.name, digest_of(path)):
                return found
        from prefix_rft_lab.runs.summary import summarise

        log.warning("%s is damaged; its figures are taken from the tables in evaluation/", path)
        seconds = read_json(self.path / "DONE.json", "seconds")["seconds"]
        splits = [
            s for s in self.config.evaluation.final_splits if (self.path / "evaluation" / f"{s}.parquet").is_file()
        ]
        found = {"method": self.method, "seed": self.seed, "splits": {s: summarise(self.evaluation(s)) for s in splits}}
        return found | {"seconds": round(seconds, 2)} | ({"diverged": self.diverged} if self.diverged else {})

    def evaluation(self, split: str) -> pd.DataFrame:
        """Final evaluation of a split, one row per problem."""
        path = self.path / "evaluation" / f"{split}.parquet"
        if not path.is_file():
            have = sorted(p.stem for p in path.parent.glob("*.parquet"))
            raise RunError(f"{self.path} has no evaluation of {split!r}; it has {', '.join(have) or 'none'}")
        return read_table(path)

    def again(self, step: int, **options: Any) -> Any:
        """A training step again, to be looked at or performed otherwise: :func:`prefix_rft_lab.lab.again.again`."""
        import prefix_rft_lab

        return prefix_rft_lab.again(self, step, **options)

    def _files(self) -> dict[str, str]:
        """File of a finished run -> SHA-256 of what was written; an older one kept that of its metrics alone."""
        found = read_json(self.path / "DONE.json", "config")
        files = found.get("files", {"metrics.jsonl": found["metrics"]} if found.get("metrics") else {})
        return files if isinstance(files, dict) else {}

    def check(self, *, model: bool = False) -> None:
        """Read all that the run recorded, and compare it with the hashes that a finished run keeps.

        Args:
            model: look at the weights too, which are large.

        Raises:
            RunError: something is damaged; the message names the file.
        """
        _ = (self.config, self.done and self.summary, self.diverged, self.environment, self.data)
        for name in ("metrics", "evaluations"):
            read_lines(self.path / f"{name}.jsonl")
        for path in (self.path / "evaluation").glob("*.parquet"):
            if path.is_file():
                read_table(path)
        for name, digest in (self._files() if self.done else {}).items():
            path = self.path / name
            # A summary that is damaged is made again; large folders may be taken away whole.
            left_out = name == "summary.json" or (name.startswith("model/") and not model)
            if not left_out and path.parent.is_dir() and digest_of(path) != digest:
                raise damaged(path, "it is not what the finished run recorded" if path.exists() else "it is gone")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, of a large one of its size and ends; empty where there is none that can be read."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(ends(path) if path.stat().st_size > 2**26 else path.read_bytes()).hexdigest()
    return ""


def load(path: str | Path) -> Run:
    """The run in a directory.

    >>> run = load("results/gsm8k/base-1b827e5b5a6e-s0")
    >>> run.method, run.summary["splits"]["test"]["problems"]
    ('base', 256)
    """
    return Run(path)


def load_all(folder: str | Path, *, done: bool = True) -> list[Run]:
    """All runs below a folder, by path; ``done=False`` includes unfinished ones.

    Raises:
        ConfigError: there is none.

    >>> [run.method for run in load_all("results/gsm8k")]
    ['base', 'prefix_rft', 'rft', 'sft']
    """
    found = [Run(p.parent) for p in sorted(Path(folder).glob("**/config.json")) if p.parent.name.rpartition("-s")[1]]
    found = [run for run in found if run.done or not done]
    if not found:
        raise ConfigError(f"runs = {str(folder)!r} holds no {'finished ' if done else ''}run; train one into it first")
    return found


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs grouped by method, in the order of :data:`prefix_rft_lab.algorithm.methods.METHODS`, seeds ascending."""
    from prefix_rft_lab.algorithm.methods import METHODS

    order = {name: i for i, name in enumerate(METHODS)}
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda r: (order.get(r.method, len(order)), r.method, r.seed)):
        groups.setdefault(run.method, []).append(run)
    return groups


HEARTBEAT_SECONDS = 10.0
"""How often a claim says that its process lives."""

STALE_SECONDS = 120.0
"""A claim of another machine that was silent for so long is taken over."""


class Claim:
    """The right of one process to write a run, among all processes and machines that share its folder.

    A claim is a file beside the run, ``.<run>.claim``, with machine and process in it, put there whole and locked by the
    operating system: on one machine a claim lives as long as its lock. That of another machine, whose locks may not
    reach here, lives as long as its heartbeat: the file's time of change against the clock of the same file server. A
    dead claim is replaced; should its process wake up, it notices that the file is no longer its own, and stops.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = _claim_file(run)
        self._file: TextIO | None = None
        self._made: list[Path] = []
        self._over = threading.Event()

    def acquire(self) -> None:
        """Raises :class:`RunClaimedError` if a living process has the run; free to call again."""
        if self._file is not None:
            return
        folder = self.run.parent
        self._made = [p for p in (folder, *folder.parents) if not p.exists()]
        with _one_at_a_time(folder):
            if holder := claimed_by(self.run):
                self._leave_no_folder()
                raise RunClaimedError(
                    f"{self.run} is being trained by another process ({holder}); wait for it, or use another --out"
                )
            temporary = _temporary(self.path)
            self._file = temporary.open("w", encoding="utf-8")
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.write(json.dumps(_machine() | {"pid": os.getpid()}))
            self._file.flush()
            temporary.replace(self.path)
        self._over.clear()
        threading.Thread(target=self._beat, args=(self._file, self._over), daemon=True).start()

    @staticmethod
    def _beat(file: TextIO, over: threading.Event) -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                os.utime(file.fileno())

    @property
    def _lost(self) -> bool:
        """Whether the claim was taken away, e.g. while this machine slept."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            return not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        return True

    def check(self) -> None:
        """Raises :class:`RunClaimedError` if the run was taken over."""
        if self._file is not None and self._lost:
            raise RunClaimedError(
                f"{self.run} was taken over by another process, since this one was silent for {STALE_SECONDS:g} seconds"
            )

    def release(self) -> None:
        """Let other processes in again; free to call again."""
        if self._file is None:
            return
        self._over.set()
        if not self._lost:
            with _one_at_a_time(self.run.parent):
                self.path.unlink()
                if not self.run.exists():
                    self._leave_no_folder()
        self._file.close()
        self._file = None

    def _leave_no_folder(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes of this machine look at claims and replace them one after the other.

    Two machines without common locks may replace a dead claim at once: the later one has it, and the other stops before
    it records a step (:meth:`Claim.check`).
    """
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(FileNotFoundError):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except FileExistsError:
                    if folder.exists():
                        raise
                    continue  # it was there, and is gone again
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Who gave up takes its empty folder away, and with it the lock.
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    break
        yield


def _claim_file(run: Path) -> Path:
    return run.with_name(f".{run.name}.claim")


def claimed_by(run: Path) -> str:
    """Machine and process that train a run, in words; empty if none does."""
    path = _claim_file(run)
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            owner = json.loads(file.read())
        except ValueError:
            owner = {}
        if _lives(file.fileno(), owner, path):
            return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown machine')}"
    return ""


def _lives(descriptor: int, owner: Mapping[str, Any], path: Path) -> bool:
    if owner.get("boot") == _machine()["boot"]:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:
            pass  # A file system without locks.
    probe = _temporary(path)
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink(missing_ok=True)
    return now - os.fstat(descriptor).st_mtime < STALE_SECONDS


@lru_cache(maxsize=1)
def _machine() -> dict[str, str]:
    """The machine's name, and what tells one start of it from another."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"host": platform.node(), "boot": boot.read_text().strip() if boot.is_file() else platform.node()}


def contents(config: RunConfig) -> dict[str, str]:
    """Files and folders of this machine that a config names -> twelve hex digits of what they hold; of a large file its
    size, beginning and end."""
    found = {}
    named = dict.fromkeys((config.model.path, config.data.expert), False)
    for value, deep in (named | dict.fromkeys((config.data.problems, *config.data.test_sets), True)).items():
        with contextlib.suppress(OSError, ValueError):
            if digest := hub.fingerprint(value.removeprefix("policy:"), deep=deep):
                found[value] = digest
    return found


def refuse_another(run: Run, config: RunConfig) -> None:
    """A finished run is found by a hash of its config's departures from the defaults: refuse one that was trained under other
    defaults.

    Raises:
        RunError: it is another run.
    """
    before, after = (identity(c.to_dict()) for c in (run.config, config))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise RunError(
                f"{run.path} was trained with {name} = {before.get(name)!r}, which was the default then; it is "
                f"{after.get(name)!r} now: set it, or delete the run to train it again"
            )


class RunWriter:
    """The writing side of a run directory, used by the trainer only. As a context it holds the claim on the run.

    Raises:
        ConfigError: ``records.writers`` names one that is unknown, not installed or not ready.

    Args:
        fresh: whether what an earlier run left there is taken away when this one starts.
    """

    def __init__(self, config: RunConfig, out: str | Path, *, fresh: bool = False) -> None:
        from prefix_rft_lab.runs.writers import Mirrors

        self.config = located(config, out)
        self.fresh = fresh
        self.path = directory_of(self.config, out)
        self._claim = Claim(self.path)
        self._mirrors = Mirrors(config, self.path)

    def __enter__(self) -> RunWriter:
        self._claim.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, data: dict[str, Any]) -> None:
        """Create the directory, keep other processes out of it, and write what is known before the first step.

        Raises:
            RunError: another process trains this run, or the disk is nearly full.
        """
        self.check_space()
        self._claim.acquire()
        if self.fresh:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if path.suffix in (".json", ".jsonl") and not path.is_file():
                raise damaged(path, "it is no file")
            if path.name in ("tokens", "evaluation", "checkpoints", "model") and not path.is_dir():
                raise damaged(path, "it is no folder")
        (self.path / "DIVERGED.json").unlink(missing_ok=True)
        write_json(self.path / "config.json", self.config.to_dict())
        write_json(self.path / "env.json", environment(self.config.threads))
        write_json(self.path / "data.json", data)

    def close(self) -> None:
        """Close the mirrors and let other processes in again; free to call again."""
        try:
            self._mirrors.close()
        finally:
            self._claim.release()

    def check_space(self, needed: int = 64 * 2**20) -> None:
        """Refuse to start with less than ``needed`` bytes free."""
        existing = next(p for p in [self.path, *self.path.absolute().parents] if p.exists())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise RunError(
                f"out = {str(self.path)!r} lies on a disk with {free / 2**20:.0f} MiB free and the run needs at least "
                f"{needed / 2**20:.0f} MiB; free some space or choose another --out"
            )

    def rewind(self, global_step: int) -> None:
        """Forget everything after ``global_step`` steps: a resumed run writes it again."""
        for name, kept in (("metrics.jsonl", global_step - 1), ("evaluations.jsonl", global_step)):
            lines = [
                line for line in read_lines(self.path / name, cut=True) if line.get("global_step", kept + 1) <= kept
            ]
            if (self.path / name).is_file():
                write_text(self.path / name, "".join(json.dumps(line) + "\n" for line in lines))
        for path in Run(self.path).token_tables():
            if int(path.stem.removeprefix("step-")) >= global_step:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def metrics(self, line: dict[str, Any]) -> None:
        self._claim.check()
        append_line(self.path / "metrics.jsonl", line)
        self._mirrors.add("train", line)

    def evaluation(self, line: dict[str, Any]) -> None:
        append_line(self.path / "evaluations.jsonl", line)
        self._mirrors.add("validation", line)

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Write ``<name>.parquet`` whole or not at all."""
        write_table(self.path / f"{name}.parquet", frame)

    def diverged(self, sentence: str, global_step: int) -> None:
        """Say that the run diverged; :meth:`finish` follows."""
        write_json(self.path / "DIVERGED.json", {"sentence": sentence, "global_step": global_step})

    def finish(self, summary: dict[str, Any], seconds: float) -> None:
        """Write the summary, then ``DONE.json`` with hashes of config and files: the run is complete."""
        self._claim.check()
        write_json(self.path / "summary.json", summary)
        self._mirrors.add("final", summary["splits"])
        files = [p for pattern in KEPT for p in sorted(self.path.glob(pattern)) if p.is_file()]
        write_json(
            self.path / "DONE.json",
            {
                "config": self.config.hash(),
                "files": {path.relative_to(self.path).as_posix(): digest_of(path) for path in files},
                "seconds": round(seconds, 3),
            },
        )
