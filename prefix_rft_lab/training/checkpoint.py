"""Checkpoints: weights, optimizers and place in the run, written whole or not at all.

Random choices are keyed by step (:mod:`prefix_rft_lab.core.rng`), and problem orders and learning rates are functions of the
step, so these three are the whole state: a resumed run gives the bits of the uninterrupted one. The weights are a model
directory in Hugging Face format, so that a checkpoint can be evaluated, served or trained from like any model.

    <run>/checkpoints/step-000050/
        model/           weights, config and tokenizer
        optimizers.pt    state of every optimizer by name
        state.json       place in the run, config, versions, hashes of every file's size and ends and of the run's records
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from prefix_rft_lab.core.config import ConfigError, RunConfig, identity
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import disk_error, ends
from prefix_rft_lab.models.policy import read_weights, save_weights
from prefix_rft_lab.runs.run import environment

VERSIONS = ("source", "python", "torch", "transformers", "tokenizers", "numpy", "threads", "gpu")
"""What the bits of a run may depend on besides its config (:func:`prefix_rft_lab.runs.run.environment`)."""

RECORDS = ("metrics.jsonl", "evaluations.jsonl", "tokens/step-*.parquet")
"""Files of a run that grow with its steps; a checkpoint knows what they held."""

Optimizers = Mapping[str, torch.optim.Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a run a checkpoint was taken."""

    stage: int
    """Index of the stage in the method's sequence."""
    step: int
    """Steps of that stage that are done: the data cursor, the schedules and all random keys go by it."""
    global_step: int
    """Steps of all stages that are done."""
    seconds: float = 0.0
    """Training time so far."""
    verifier_timeouts: int = 0
    """Verifications that ran out of time so far."""
    skipped_steps: int = 0
    """Steps left out so far."""
    replay: tuple[int, ...] = ()
    """Indices of the problems in the stage's replay buffer, oldest first."""


class Checkpoints:
    """The bounded set of checkpoints of one run.

    Args:
        folder: ``<run>/checkpoints``.
        config: the run's; a checkpoint of another one is refused.
        keep: newest checkpoints kept.
        start: hashes of what else the run starts from (problems, weights); a checkpoint of a run that started from
            anything else is refused.
    """

    def __init__(self, folder: Path, *, config: RunConfig, keep: int, start: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.config = config
        self.keep = keep
        self.start = dict(start or {})
        found = environment(config.threads)
        self.versions = {name: found[name] for name in VERSIONS}

    def save(self, place: Place, model: Any, tokenizer: Any, optimizers: Optimizers) -> None:
        """Write one checkpoint, then forget the oldest beyond ``keep``.

        Raises:
            RunError: the disk is full; earlier checkpoints are kept.
        """
        final = self.folder / f"step-{place.global_step:06d}"
        temporary = self.folder / f".tmp-{os.getpid()}"
        for left in self.folder.glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)  # by a process that was killed: only one trains a run
        run = self.folder.parent
        records = [path for pattern in RECORDS for path in sorted(run.glob(pattern))]
        try:
            temporary.mkdir(parents=True)
            save_weights(model, tokenizer, temporary / "model")
            torch.save({name: one.state_dict() for name, one in optimizers.items()}, temporary / "optimizers.pt")
            state = {
                "place": asdict(place),
                "config": self.config.to_dict(),
                "versions": self.versions,
                "weights": _shapes(model),
                "start": self.start,
                "ends": {str(p.relative_to(temporary)): _digest(p) for p in _files(temporary)},
                "records": {str(p.relative_to(run)): (p.stat().st_size, _start(p)) for p in records},
            }
            (temporary / "state.json").write_text(json.dumps({**state, "digest": _digest_of(state)}))
            _flush(temporary)
            if final.exists():
                shutil.rmtree(final)
            temporary.replace(final)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise disk_error(error, final) from error
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.name[5:].isdecimal())

    def newest(self, model: Any, *, until: int | None = None) -> tuple[Place, Path] | None:
        """The newest checkpoint that is whole, with all that the run had recorded by then; others are skipped with a warning
        that names them.

        Args:
            until: of those that were taken after at most so many steps.

        Raises:
            RunError: it was written for another config or another model; the message says what differs.
        """
        for path in reversed(self._all()):
            if until is not None and _number(path) > until:
                continue
            try:
                state = json.loads((path / "state.json").read_text())
                if state.pop("digest") != _digest_of(state):
                    raise ValueError("state.json does not match its hash")
                # Earlier versions wrote "files", hashes of whole files.
                for name, digest in state["ends" if "ends" in state else "files"].items():
                    if _digest(path / name) != digest and "ends" in state:
                        raise ValueError(f"{name} does not match its hash")
                for name, (size, digest) in state.get("records", {}).items():
                    if _start(self.folder.parent / name, size) != digest:
                        raise ValueError(f"{name} is not what the run had recorded by then")
                place = Place(**{**state["place"], "replay": tuple(state["place"]["replay"])})
                config, weights, versions = state["config"], state["weights"], state["versions"]
                # Fields that were added since have their defaults; what only an earlier version wrote is not compared.
                config = RunConfig.from_dict(config).to_dict()
                start = {name: value for name, value in state["start"].items() if name in self.start}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"it has no {error}" if isinstance(error, KeyError) else error
                warnings.warn(f"checkpoint {path} is skipped: {reason}; an older one is used", stacklevel=2)
                continue
            self._refuse_another(path, "config", identity(config), identity(self.config.to_dict()))
            self._refuse_another(path, "model", weights, _shapes(model))
            self._refuse_another(path, "start", start, self.start)
            changed = _differences(versions, self.versions)
            if changed:
                warnings.warn(
                    f"checkpoint {path} was written by other versions ({changed}): the run goes on from it, but not to the "
                    "bits of an uninterrupted one",
                    stacklevel=2,
                )
            return place, path
        return None

    @staticmethod
    def _refuse_another(path: Path, what: str, its: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        different = _differences(its, ours)
        if different:
            raise RunError(
                f"checkpoint {path} belongs to another {what}: {different}; start this run in another --out, or delete "
                f"{path.parent} to begin again"
            )

    @staticmethod
    def load(path: Path, model: Any, optimizers: Optimizers) -> None:
        """Put a checkpoint's weights and the state of the named optimizers in place."""
        read_weights(model, path / "model")
        states = torch.load(path / "optimizers.pt", map_location="cpu", weights_only=True)
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(states[name])

    def rehearse(self, model: Any, tokenizer: Any) -> None:
        """Write the weights and read them back once, before work is lost that could not be kept.

        Raises:
            ConfigError: the model cannot be written, or comes back as another one.
            RunError: the disk is full.
        """
        folder = self.folder / f".tmp-{os.getpid()}"
        before = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
        try:
            save_weights(model, tokenizer, folder)
            read_weights(model, folder)
        except (OSError, SafetensorError) as error:
            raise disk_error(error, folder) from error
        except (KeyError, ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise self._unkept(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for name, parameter in model.named_parameters():
            if not torch.equal(before[name], parameter.cpu()):
                raise self._unkept(f"{name} comes back with other numbers")

    def _unkept(self, reason: str) -> ConfigError:
        return ConfigError(
            f"model.path = {self.config.model.path!r} cannot be saved and read again ({reason}); use a model whose architecture "
            "transformers can save, such as a Llama or Qwen2"
        )

    def forget_after(self, global_step: int) -> None:
        """Drop the checkpoints of later steps, damaged ones all: they would outlive the new ones."""
        for path in self._all():
            if _number(path) > global_step:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Drop all checkpoints of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _number(path: Path) -> int:
    """Steps of all stages that were done when a checkpoint was taken, by its name."""
    return int(path.name.removeprefix("step-"))


def _shapes(model: Any) -> dict[str, list[int]]:
    """What tells one architecture from another: the shape of every parameter."""
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def _differences(its: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """``name there -> here`` of what is not equal, the first few; empty if all is."""
    names = [name for name in {**its, **ours} if its.get(name) != ours.get(name)]
    shown = [f"{name} {its.get(name)!r} there, {ours.get(name)!r} here" for name in names[:4]]
    return ", ".join(shown + ([f"and {len(names) - 4} more"] if len(names) > 4 else []))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    """The rename comes after the contents, so that only a damage to the disk is left: all of a large file would be read
    for minutes, at every save."""
    return hashlib.sha256(ends(path)).hexdigest()


def _start(path: Path, size: int = -1) -> str:
    """SHA-256 of a file, or of its first bytes."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


def _digest_of(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flush(folder: Path) -> None:
    """Force a folder's files to disk, so that the rename cannot come before the contents."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
