"""Engines turn contexts of token ids into sampled token ids; they know nothing of methods or rewards."""

from __future__ import annotations

from prefix_rft_lab.generation.base import Completion, Engine, Request
from prefix_rft_lab.generation.transformers_engine import TransformersEngine

__all__ = ["Completion", "Engine", "Request", "TransformersEngine"]
