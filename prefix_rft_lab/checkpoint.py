"""Checkpoints: weights, optimizer and place in the run, written whole or not at all.

Random choices are keyed by step (:mod:`prefix_rft_lab.rng`) and problem orders are functions of the step, so these
three are the whole state: a resumed run gives the bits of the uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prefix_rft_lab.runs import disk_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a run a checkpoint was taken."""

    stage: int
    """Index of the stage in the method's sequence."""
    step: int
    """Steps of that stage that are done."""
    global_step: int
    """Steps of all stages that are done."""
    seconds: float = 0.0
    """Training time so far."""
    verifier_timeouts: int = 0
    """Verifications that ran out of time so far."""


class Checkpoints:
    """The bounded set of checkpoints of one run.

    Args:
        folder: ``<run>/checkpoints``.
        config_hash: hash of the run's config; a checkpoint of another config is not loaded.
        keep: newest checkpoints kept.
    """

    def __init__(self, folder: Path, *, config_hash: str, keep: int) -> None:
        self.folder = folder
        self.config_hash = config_hash
        self.keep = keep

    def save(self, place: Place, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Write one checkpoint, then forget the oldest beyond ``keep``.

        Raises:
            RunError: the disk is full; earlier checkpoints are kept.
        """
        final = self.folder / f"step-{place.global_step:06d}"
        temporary = self.folder / f".tmp-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
            save_file(weights, temporary / "weights.safetensors")
            torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
            state = {
                **asdict(place),
                "config": self.config_hash,
                "files": {p.name: _digest(p) for p in sorted(temporary.iterdir())},
            }
            (temporary / "state.json").write_text(json.dumps(state))
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
        return sorted(self.folder.glob("step-*"))

    def newest(self) -> tuple[Place, Path] | None:
        """The newest checkpoint that is whole and of this config; damaged ones are skipped with a warning."""
        for path in reversed(self._all()):
            try:
                state = json.loads((path / "state.json").read_text())
                if state.pop("config") != self.config_hash:
                    raise ValueError("it belongs to another config")
                for name, digest in state.pop("files").items():
                    if _digest(path / name) != digest:
                        raise ValueError(f"{name} does not match its hash")
                return Place(**state), path
            except (OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(f"checkpoint {path} is skipped: {error}; an older one is used", stacklevel=2)
        return None

    @staticmethod
    def load(path: Path, model: Any, optimizer: torch.optim.Optimizer | None) -> None:
        """Put a checkpoint's weights, and its optimizer state if asked for, in place."""
        weights = load_file(path / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        if optimizer is not None:
            optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))

    def remove(self) -> None:
        """Drop all checkpoints of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(folder: Path) -> None:
    """Force a folder's files to disk, so that the rename cannot come before the contents."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
