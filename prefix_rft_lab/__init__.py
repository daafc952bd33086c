"""prefix_rft_lab: an interactive research kit for Prefix-RFT (arXiv 2507.01679)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefix_rft_lab.config import ConfigError, RunConfig, preset
    from prefix_rft_lab.runs import Run, RunError, load, load_all
    from prefix_rft_lab.trainer import train

__version__ = "0.1.0"
__all__ = ["ConfigError", "Run", "RunConfig", "RunError", "load", "load_all", "preset", "train"]

_HOMES = {
    "ConfigError": "config",
    "RunConfig": "config",
    "preset": "config",
    "Run": "runs",
    "RunError": "runs",
    "load": "runs",
    "load_all": "runs",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that reading a run or verifying an answer does not import torch.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"prefix_rft_lab.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
