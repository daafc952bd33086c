"""The policy before training."""

from __future__ import annotations

from prefix_rft_lab.algorithm.stages import METHODS, Method

METHODS["base"] = Method(title="Base policy", stages=())
