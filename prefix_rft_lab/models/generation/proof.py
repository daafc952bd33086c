"""A model proves itself before the first step: what is sampled and read must be what its own forward pass says.

Architectures differ in masks, rotary tables, caches and heads, and nothing in a run's figures would show that one of them is
sampled or read wrongly. So every engine first samples two rows, a short and the longest one, and their log-probabilities
are compared with ``model(ids).logits`` of each row alone, in float32.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import EncodedProblem, Problem, Row
from prefix_rft_lab.models.generation.base import Completion, Engine, Request
from prefix_rft_lab.models.policy import response_stats
from prefix_rft_lab.models.tokens import pad_rows

TOKENS = 8
"""Tokens sampled for each row."""

BOUND = 0.002
"""Mean gap of a row's log-probabilities, nats per token, up to which two float32 computations are the same. Rounding gives
1e-6 to 1e-5, a mask or a head that is left out 0.01 and more."""


def prove(model: Any, engine: Engine, config: RunConfig, *, bound: float = BOUND) -> None:
    """Compare the log-probabilities of an engine, and of the update's batches, with the model's own.

    Args:
        engine: one that samples from ``model``.
        config: the run; its longest row is the longest here, so that windows and rotary tables are reached.
        bound: what the engine's arithmetic allows, nats per token.

    Raises:
        ConfigError: they differ, or the engine cannot sample from such a model.
    """
    longest = config.rollout.row_tokens
    tokens = min(TOKENS, max(1, longest // 2))
    lengths = (max(1, longest - tokens), min(3, longest - tokens))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    requests = []
    for i, length in enumerate(lengths):
        draws = rng.uniforms([rng.key(0, "proof", i)], length)[0]
        ids = [int(u * vocabulary) for u in draws]
        requests.append(Request(context_ids=ids, max_new_tokens=tokens, key=rng.key(0, "proof", i)))
    try:
        rows = engine.generate(requests)
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a foreign architecture fails in many ways
        lines = str(error).strip().splitlines()
        raise _refused(config, f"it fails with {type(error).__name__}{f': {lines[0]}' if lines else ''}") from error
    own = [own_logp(model, request, row) for request, row in zip(requests, rows, strict=True)]
    nothing = Problem(id="", prompt="", answer="")
    batch = pad_rows(
        [
            Row(
                problem=EncodedProblem(problem=nothing, index=0, prompt_ids=request.context_ids),
                row=0,
                sampled_ids=row.token_ids,
            )
            for request, row in zip(requests, rows, strict=True)
        ],
        fill=0,
        device=model.device,
    )
    with torch.no_grad():
        together = response_stats(model, batch).logp.cpu().split([len(row.token_ids) for row in rows])
    for row, expected, read in zip(rows, own, together, strict=True):
        for what, found, allowed in (
            ("sampled", torch.tensor(row.logp), bound),
            ("read in a batch", read, BOUND),
        ):
            gap = float((found - expected).abs().mean())
            if not gap <= allowed:  # NaN is not fine either
                raise _refused(
                    config, f"log-probabilities of tokens {what} lie {gap:.2g} nats from those of its own forward pass"
                )


def own_logp(model: Any, request: Request, completion: Completion) -> torch.Tensor:
    """(tokens,) log-probabilities of a completion by ``model(ids).logits``, of this row alone, nats, on the CPU."""
    ids = torch.tensor([request.context_ids + completion.token_ids], device=model.device)
    count = len(completion.token_ids)
    # All logits of a long row would take gigabytes.
    kept = {"logits_to_keep": count + 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, **kept).logits[0, -count - 1 : -1]
    logp = torch.log_softmax(logits.float(), dim=-1)
    return logp.gather(-1, ids[0, len(request.context_ids) :, None])[:, 0].cpu()


def _refused(config: RunConfig, why: str) -> ConfigError:
    return ConfigError(
        f"model.path = {config.model.path!r} cannot be used with rollout.engine = {config.rollout.engine!r}: {why}; use a model "
        "such as a Llama or Qwen2"
    )
