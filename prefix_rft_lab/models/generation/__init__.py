"""Engines turn contexts of token ids into sampled token ids; they know nothing of methods or rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefix_rft_lab.core.config import RunConfig
from prefix_rft_lab.models.generation.base import Completion, Engine, Request
from prefix_rft_lab.models.generation.proof import prove
from prefix_rft_lab.models.generation.transformers_engine import TransformersEngine
from prefix_rft_lab.models.policy import autocast_dtype

__all__ = ["Completion", "Engine", "Request", "TransformersEngine", "engine_for"]


def engine_for(model: Any, config: RunConfig, *, eos_id: int | Sequence[int]) -> Engine:
    """The engine that ``rollout.engine`` names, for a model that it samples from; close it in the end.

    Raises:
        ConfigError: vLLM is asked for, and is missing, of another version, or does not start; or the engine does not
            sample from this model as its own forward pass would (:mod:`prefix_rft_lab.models.generation.proof`).
    """
    if config.rollout.engine == "vllm":
        from prefix_rft_lab.models.generation.vllm_engine import VllmEngine

        engine = VllmEngine(model, config, eos_id=eos_id)
        try:
            prove(model, engine, config, bound=engine.bound)
        except BaseException:
            engine.close()
            raise
        engine.weights_changed()
        return engine
    # In float32, whatever the run's arithmetic: rounding would hide what the proof looks for.
    prove(model, TransformersEngine(model, eos_id=-1), config)
    return TransformersEngine(
        model, eos_id=eos_id, max_batch_rows=config.rollout.max_batch_rows, autocast=autocast_dtype(config)
    )
