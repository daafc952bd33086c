"""prefix_rft_lab: an interactive research kit for Prefix-RFT (arXiv 2507.01679).

Layers, lowest first; each imports only from those before it (``tests/test_layers.py``)::

    core        configuration, types, keyed randomness, errors, files
    algorithm   schedules, prefixes, advantages, entropy clip, losses, methods: pure functions
    data        problems, the embedded world, answers and the verifier
    runs        run directories
    models      tokenizers, templates, the policy, engines
    training    one run: the loop, an update, records, checkpoints, evaluation
    experiments many runs: sweeps, profiles, a pool of processes
    lab         a finished run's steps again, otherwise
    analysis    statistics, token tables, claims
    plots, widgets, report    what people look at
    tools       commands beside training
    reproduce   notebooks, headless
    cli         the command line
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prefix_rft_lab.core.versions import __version__

if TYPE_CHECKING:
    from prefix_rft_lab.algorithm import methods
    from prefix_rft_lab.analysis import claims, entropy_analysis, stats
    from prefix_rft_lab.core.config import ConfigError, RunConfig, preset
    from prefix_rft_lab.core.errors import RunError
    from prefix_rft_lab.data import rewards
    from prefix_rft_lab.data.task import Task
    from prefix_rft_lab.experiments import sweeps
    from prefix_rft_lab.lab.again import again
    from prefix_rft_lab.runs.run import Run, load, load_all
    from prefix_rft_lab.training.trainer import train

__all__ = [
    "ConfigError",
    "Run",
    "RunConfig",
    "RunError",
    "Task",
    "__version__",
    "again",
    "claims",
    "entropy_analysis",
    "load",
    "load_all",
    "methods",
    "preset",
    "rewards",
    "stats",
    "sweeps",
    "train",
]

_HOMES = {
    "ConfigError": "core.config",
    "RunConfig": "core.config",
    "preset": "core.config",
    "RunError": "core.errors",
    "Run": "runs.run",
    "load": "runs.run",
    "load_all": "runs.run",
    "train": "training.trainer",
    "Task": "data.task",
    "again": "lab.again",
}

_LAYERS = {
    "core": "config types rng hub registry",
    "algorithm": "schedules prefixes advantages entropy losses stages methods",
    "data": "answers rewards verifier task",
    "runs": "writers",
    "models": "policy tokens templates generation",
    "training": "trainer update measure checkpoint evaluate",
    "experiments": "sweeps pool evaluation_run",
    "analysis": "stats entropy_analysis claims",
    "tools": "doctor planning plan_text demonstrations publishing",
    "reproduce": "notebooks",
}
_LONG = {name: f"{layer}.{name}" for layer, names in _LAYERS.items() for name in names.split()}
_LONG |= {
    "tasks": "data",
    "tasks.inspection": "tools.inspection",
    "grading": "tools.inspection",
    "records": "tools.reading",
}
"""Short path of a module, ``stats``, -> the folder that it lies in, ``analysis.stats``: both name one module."""


class _ShortPaths(MetaPathFinder, Loader):
    """Lets ``prefix_rft_lab.stats`` name ``prefix_rft_lab.analysis.stats``."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if _long(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(_long(spec.name))
        # The import system names a module by the path that it was asked for; it keeps its own.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def _long(name: str) -> str:
    """Path of a module from its short path; "" for any other name."""
    package, _, short = name.partition(".")
    first, _, below = short.partition(".")
    if package != __name__ or (first not in _LONG and short not in _LONG):
        return ""
    return f"{__name__}.{_LONG.get(short) or _LONG[first] + '.' + below}"


# Before the finders of installed packages, which would look for a file of that name.
sys.meta_path.insert(0, _ShortPaths())


def __getattr__(name: str) -> Any:
    # Lazy, so that reading a run or verifying an answer does not import torch.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _LONG:
        return import_module(f"{__name__}.{_LONG[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
