"""What a run would be, before it is: rows, tokens, memory, time and disk, from its config alone.

No weights are loaded and no problem is read. The model is built without memory (fake tensors), so that parameters are
counted and the tensors that a backward pass keeps are measured, of any architecture whose shapes depend on no values; only
what a kernel holds while it works is a formula. Sizes are bounds: every row is as long as the config allows, and every row
has a gradient.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves

from prefix_rft_lab.algorithm import methods
from prefix_rft_lab.analysis.budgets import rows_of_step
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import TokenKind
from prefix_rft_lab.data import sources
from prefix_rft_lab.data.readers import refuse_missing
from prefix_rft_lab.models.generation.transformers_engine import PREFILLED_TOKENS
from prefix_rft_lab.models.policy import (
    LOGITS_AT_ONCE,
    autocast_dtype,
    device_of,
    load_model_config,
    recompute_layers,
    refuse_short_context,
    with_overrides,
)
from prefix_rft_lab.runs.run import torch_state

_FIELDS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "tie_word_embeddings", "max_position_embeddings"),
)
MODELS: dict[str, dict[str, Any]] = {
    name: dict(zip(_FIELDS, figures, strict=True))
    for name, figures in {
        "Qwen/Qwen2.5-Math-1.5B": ("qwen2", 1536, 8960, 28, 12, 2, 151_936, True, 4096),
        "Qwen/Qwen2.5-Math-7B": ("qwen2", 3584, 18_944, 28, 28, 4, 152_064, False, 4096),
        "meta-llama/Llama-3.1-8B": ("llama", 4096, 14_336, 32, 32, 8, 128_256, False, 131_072),
        "HuggingFaceTB/SmolLM2-135M": ("llama", 576, 1536, 30, 9, 3, 49_152, True, 8192),
        "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 576, 1536, 30, 9, 3, 49_152, True, 8192),
    }.items()
}
"""Hub name -> what the sizes of the presets' models depend on: figures of the ``config.json`` that each repository shows."""

CARDS = (24, 40, 80)
"""Common GPUs by memory, GiB (their makers write GB)."""
ROOM = 0.9
"""Share of a GPU's memory that a run may take: its context and the gaps between tensors need some too."""

MASTER_BYTES = 4
"""Bytes of a parameter, of its gradient and of each of AdamW's two moments: float32, whatever ``model.dtype`` is."""
MOMENTS = 2
LOGIT_COPIES = 3
"""float32 tensors of the size of the logits that are in memory at once while log-probabilities and entropies are taken
(:mod:`prefix_rft_lab.algorithm.entropy`), or their gradient; with bfloat16 the logits themselves come on top."""
CHOICE_BYTES = 32
"""Bytes of a logit while a next token is drawn: float32 twice, and float64 three times for the cumulative sum."""
GROWTH = 16
"""Columns that the cache of the transformers engine may hold beyond its longest row."""

Phase = Literal["sampling", "update", "AdamW step"]
PHASES: tuple[Phase, ...] = ("sampling", "update", "AdamW step")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """A model by its sizes; nothing of it was loaded."""

    path: str
    parameters: int
    """Distinct parameters; tied ones count once."""
    multiplied: int
    """Parameters that a token is multiplied with: all but an input embedding that is not the head too."""
    head: int
    """Parameters of the vocabulary projection."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    """Rows of the vocabulary projection, padding included."""
    cache_bytes: int
    """Bytes that one token takes in the key-value cache of the transformers engine."""
    kept_bytes: float | None
    """Bytes that one token of a row takes between forward and backward pass: what autograd saves, logits left out; None
    where the architecture cannot be traced."""
    input_bytes: float | None
    """What stays of :attr:`kept_bytes` where layers are computed again (``activation_checkpointing``): their inputs."""
    copied_bytes: int
    """Bytes of the weights that autocast copies into ``model.dtype``, the head's included; 0 in float32."""

    def forward_flops(self, tokens: int) -> float:
        """Floating-point operations of the forward pass of one row: 2 a parameter and token, and causal attention,
        2 x layers x heads x head_dim x tokens^2."""
        return 2.0 * self.multiplied * tokens + 2.0 * self.layers * self.heads * self.head_dim * tokens**2


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of the method; rows are those of problems with a demonstration."""

    name: str
    steps: int
    problems: int
    """Problems of a step."""
    plain: int
    """Rows of a step that are sampled from the bare prompt."""
    hybrid: int
    """Rows of a step that continue a prefix or hint, at most."""
    demonstrations: int
    """Rows of a step that are demonstrations: nothing is sampled."""
    updates: int
    """Optimizer updates of a step."""
    replay: int
    """Rows of a second update after a step, which comes at most once; 0 for methods without one."""
    micro_batches: int
    """Forward and backward passes of an update, where all rows are as long as allowed."""
    read: int
    """Rows read without a gradient before the update: those whose tokens the entropy clip ranks, and all where a rollout
    makes several updates."""
    sampling_flops: float
    """Of one step, at most."""
    update_flops: float
    """Of one step, at most."""

    @property
    def rows(self) -> int:
        return self.plain + self.hybrid + self.demonstrations

    @property
    def sampled(self) -> int:
        return self.plain + self.hybrid


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that takes memory."""

    name: str
    sum: str
    """How the bytes come about."""
    bytes: float | None
    """None where it cannot be told."""
    phases: tuple[Phase, ...]
    """When it is held."""
    sharded: bool = False
    """Whether FSDP would divide it among GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What :func:`plan` found. Bytes are of one device, FLOPs of the whole run unless a stage says otherwise."""

    config: RunConfig
    model: ModelSize
    stages: tuple[StagePlan, ...]
    parts: tuple[Part, ...]
    response_tokens: int
    """Length of every response that FLOPs are counted for, tokens."""
    evaluation_rows: int
    """Rows sampled outside training steps: evaluations, and demonstrations that a policy writes; at most."""
    evaluation_flops: float
    checkpoint_bytes: int
    """Weights and optimizers of one checkpoint."""
    model_bytes: int
    """Final weights; 0 where none are kept."""

    @property
    def longest(self) -> int:
        """Tokens of a row at most, prompt and response."""
        return self.config.rollout.row_tokens

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def sampling_flops(self) -> float:
        return sum(stage.steps * stage.sampling_flops for stage in self.stages)

    @property
    def update_flops(self) -> float:
        return sum(stage.steps * stage.update_flops for stage in self.stages)

    @property
    def flops(self) -> float:
        return self.sampling_flops + self.update_flops + self.evaluation_flops

    def bytes_in(self, phase: Phase, cards: int = 1) -> float:
        """Bytes held on each of some GPUs in a phase, if weights, gradients and optimizer were sharded over them; parts
        that cannot be told are left out."""
        held = [part for part in self.parts if phase in part.phases]
        return sum((part.bytes or 0) / (cards if part.sharded else 1) for part in held)

    @property
    def peak_bytes(self) -> float:
        """Bytes at once at most."""
        return max(self.bytes_in(phase) for phase in PHASES)

    def cards(self, gib: float) -> int | None:
        """GPUs of so many GiB that the run needs at least; None where no number is enough. More than one needs FSDP."""
        usable = gib * 2**30 * ROOM
        needed = 1
        for phase in PHASES:
            whole = self.bytes_in(phase)
            shared = sum(part.bytes or 0 for part in self.parts if part.sharded and phase in part.phases)
            left = usable - (whole - shared)
            if left <= 0:
                return None
            needed = max(needed, math.ceil(shared / left))
        return needed


def plan(config: RunConfig, *, response_tokens: int | None = None) -> RunPlan:
    """What a run would be; nothing is loaded but the model's config, and nothing is written.

    The Hub is asked only for a model that is neither in :data:`MODELS` nor a directory.

    Args:
        response_tokens: length of every response that FLOPs are counted for; ``rollout.max_response_tokens`` if not given.
            Rows, memory and disk are bounds and do not depend on it.

    Raises:
        ConfigError: settings that the method cannot obey, no such model or file of problems, a context that is too short, or
            more response tokens than allowed.
    """
    method = methods.check(config)
    rollout = config.rollout
    tokens = rollout.max_response_tokens if response_tokens is None else response_tokens
    if not 1 <= tokens <= rollout.max_response_tokens:
        raise ConfigError(
            f"response_tokens = {tokens} lies outside 1 to rollout.max_response_tokens = {rollout.max_response_tokens}; "
            "give a length in between"
        )
    if config.data.problems != "chains":
        refuse_missing(config.data.problems)
    model = model_size(config)
    stages = tuple(_stage_plan(stage, config, model, tokens) for stage in method.stages)
    evaluated, at_once = _generated(config, stages)
    optimizers = max((2 if stage.replay is not None else 1 for stage in method.stages), default=0)
    return RunPlan(
        config=config,
        model=model,
        stages=stages,
        parts=tuple(_parts(config, model, method, stages, optimizers, min(at_once, rollout.max_batch_rows))),
        response_tokens=tokens,
        evaluation_rows=evaluated,
        evaluation_flops=evaluated * model.forward_flops(rollout.max_prompt_tokens + tokens),
        checkpoint_bytes=MASTER_BYTES * (1 + MOMENTS * optimizers) * model.parameters,
        model_bytes=MASTER_BYTES * model.parameters * config.records.save_model,
    )


# ---------------------------------------------------------------------- the model


def model_size(config: RunConfig) -> ModelSize:
    """Sizes of ``model.path``: a directory, a name of :data:`MODELS`, or a Hub name with a network or a filled cache.

    Raises:
        ConfigError: no such model, one that is no causal language model, or rows longer than its context.
    """
    found = _architecture(config)
    refuse_short_context(found, config)
    settings = found.to_json_string(use_diff=False)
    return _traced(
        config.model.path, settings, config.rollout.row_tokens, config.model.dtype, config.activation_checkpointing
    )


def _architecture(config: RunConfig) -> Any:
    from transformers import AutoConfig

    path = config.model.path
    if path in MODELS and not Path(path).expanduser().exists():
        return with_overrides(AutoConfig.for_model(**MODELS[path]), config, path)
    return load_model_config(config)


@lru_cache(maxsize=16)
def _traced(path: str, settings: str, length: int, dtype: str, recomputed: bool) -> ModelSize:
    from torch._subclasses.fake_tensor import FakeTensorMode

    # What cannot be traced is said in the plan.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    from transformers import AutoConfig, AutoModelForCausalLM

    found = AutoConfig.for_model(**json.loads(settings))
    fake = FakeTensorMode()
    with fake:
        try:
            model = AutoModelForCausalLM.from_config(found, dtype=torch.float32).eval()
        except ValueError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"model.path = {path!r} is no causal language model that transformers can build ({reason}); use one, such as "
                "a Llama or Qwen2"
            ) from None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    text = found.get_text_config()
    heads = text.num_attention_heads
    low = dtype == "bfloat16"
    width = 2 if low else MASTER_BYTES
    kept, inputs, copied = None, None, width * parameters if low else 0
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    cache = 2 * text.num_hidden_layers * kv_heads * head_dim * width
    with fake, torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        try:
            one = _saved_bytes(model, 1, length)
            # What does not grow with the rows is copies of weights.
            fixed = 2 * one - _saved_bytes(model, 2, length)
            cache = _cache_bytes(model, width)
            if recomputed:
                layers = recompute_layers(model, path)
                inputs = (_saved_bytes(model, 2, length, layers) - _saved_bytes(model, 1, length, layers)) / length
            kept, copied = (one - fixed) / length, (fixed + 2 * head.numel()) * low
        except ConfigError:
            raise
        except Exception:
            # Code whose shapes depend on values (experts that tokens choose) has no size before it runs.
            pass
    return ModelSize(
        path=path,
        parameters=parameters,
        multiplied=parameters - (0 if embedding is head else embedding.numel()),
        head=head.numel(),
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=head.shape[0],
        cache_bytes=cache,
        kept_bytes=kept,
        input_bytes=inputs,
        copied_bytes=copied,
    )


def _saved_bytes(model: Any, rows: int, length: int, recomputed: Sequence[torch.nn.Module] = ()) -> int:
    """Bytes of the tensors that a forward pass keeps, each storage once, parameters left out: what autograd saves, and of
    layers that are computed again what they are given."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    def given(layer: torch.nn.Module, args: Any, kwargs: Any) -> None:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                pack(leaf)

    hooks = [layer.register_forward_pre_hook(given, with_kwargs=True) for layer in recomputed]
    # A look at values, which fake tensors have none of, finds that no row holds several sequences; without it attention
    # would be given a mask, and masked kernels keep more.
    with (
        mock.patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.enable_grad(),
    ):
        # The last states are among what is saved, or the logits would need them anyway.
        states = model.base_model(input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=False)
        pack(states.last_hidden_state)
    for hook in hooks:
        hook.remove()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)


def _cache_bytes(model: Any, width: int, tokens: int = 8) -> int:
    """Bytes of one token in the cache that a prefill makes, at ``width`` bytes a number."""
    with torch.no_grad():
        made = model.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    return width * sum(layer.keys.numel() + layer.values.numel() for layer in made.layers) // tokens


# ---------------------------------------------------------------------- rows and FLOPs


def _stage_plan(stage: methods.Stage, config: RunConfig, model: ModelSize, tokens: int) -> StagePlan:
    problems = config.rollout.problems_per_step if stage.samples else config.sft.batch_rows
    plain, hybrid, demonstrations = rows_of_step(stage, config)
    rows = plain + hybrid + demonstrations
    updates = min(config.loss.updates_per_rollout, problems) if stage.samples else 1
    batches = math.ceil(math.ceil(problems / updates) * (rows // problems) / rows_at_once(config))
    replay = stage.replay.batch(config) if stage.replay is not None else 0
    forward = model.forward_flops(config.rollout.max_prompt_tokens + tokens)
    clipped = stage.ranked(config)
    ranked = hybrid * (TokenKind.PREFIX in clipped) + plain * (TokenKind.ON_POLICY in clipped)
    read = (ranked if batches > 1 else 0) + (rows if updates > 1 else 0)
    return StagePlan(
        name=stage.name,
        steps=stage.optimizer_section(config).steps,
        problems=problems,
        plain=plain,
        hybrid=hybrid,
        demonstrations=demonstrations,
        updates=updates,
        replay=replay,
        read=read,
        micro_batches=batches,
        sampling_flops=(plain + hybrid) * forward,
        update_flops=(passes(config) * (rows + replay) + read) * forward,
    )


def passes(config: RunConfig) -> int:
    """What training a row costs, in forward passes: one, a backward pass of two, and a second one where layers are computed
    again."""
    return 4 if config.activation_checkpointing else 3


def rows_at_once(config: RunConfig) -> int:
    """Longest rows in one micro-batch."""
    return max(1, config.micro_batch_tokens // config.rollout.row_tokens)


def _generated(config: RunConfig, stages: tuple[StagePlan, ...]) -> tuple[int, int]:
    """(rows sampled outside training steps, most rows that are asked for at once anywhere), both at most."""
    evaluation, data = config.evaluation, config.data
    ends = [sum(stage.steps for stage in stages[: i + 1]) for i in range(len(stages))]
    during = set(ends) - {0}
    if evaluation.every and ends:
        during |= set(range(evaluation.every, ends[-1] + 1, evaluation.every))
    validation = min(evaluation.problems, data.eval_problems)
    probed = min(evaluation.problems, data.train_problems) if evaluation.hard_tries else 0
    # k samples and a greedy one, one more for the entropy; of the hard problems no greedy one.
    rows = (1 + len(during)) * (
        validation * (evaluation.k + 2) + probed * evaluation.k
    ) + probed * evaluation.hard_tries
    final = len(set(evaluation.final_splits) & set(sources.splits(data))) * data.eval_problems
    rows += final * (evaluation.k + 1)
    writes = data.expert == "self" or data.expert.startswith(("policy:", "run:"))
    written = data.train_problems * max(data.right_within, 1) if writes else 0
    at_once = [*(stage.sampled for stage in stages), max(validation, probed) * evaluation.k, written]
    at_once += [probed * evaluation.hard_tries, data.eval_problems * evaluation.k if final else 0]
    return rows + written, max(at_once)


# ---------------------------------------------------------------------- memory


def _parts(
    config: RunConfig,
    model: ModelSize,
    method: methods.Method,
    stages: tuple[StagePlan, ...],
    optimizers: int,
    rows: int,
) -> Iterator[Part]:
    count, low = model.parameters, autocast_dtype(config) is not None
    each = f"{short(count)} x {MASTER_BYTES} B (float32)"
    yield Part(name="weights", sum=each, bytes=MASTER_BYTES * count, phases=PHASES, sharded=True)
    if optimizers:
        # They stay from one update to the next: gradients are dropped where the next update starts.
        yield Part(name="gradients", sum=each, bytes=MASTER_BYTES * count, phases=PHASES, sharded=True)
        sets = "" if optimizers == 1 else f"{optimizers} optimizers x "
        yield Part(
            name="AdamW",
            sum=f"{sets}{short(count)} x {MOMENTS} moments x {MASTER_BYTES} B (float32)",
            bytes=optimizers * MOMENTS * MASTER_BYTES * count,
            phases=PHASES,
            sharded=True,
        )
    yield from _engine_parts(config, model, rows)
    if low:
        yield Part(
            name="weights in bfloat16",
            sum=f"{short(model.copied_bytes / 2)} x 2 B that autocast copies for a pass",
            bytes=model.copied_bytes,
            phases=("update",) if config.rollout.engine == "vllm" else ("sampling", "update"),
        )
    if not stages:
        return
    longest = config.rollout.row_tokens
    most = max(max(math.ceil(s.problems / s.updates) * (s.rows // s.problems), s.replay) for s in stages)
    tokens = min(max(config.micro_batch_tokens, longest), most * longest)
    if model.kept_bytes is None:
        yield Part(
            name="activations", sum="not known: this architecture cannot be traced", bytes=None, phases=("update",)
        )
    else:
        kept, layer = model.kept_bytes, model.kept_bytes / model.layers
        counted = f"{model.layers} layers x {layer:,.0f} B (traced; none recomputed)"
        if model.input_bytes is not None:
            kept = model.input_bytes + layer
            counted = f"({model.input_bytes:,.0f} B layers' inputs + {layer:,.0f} B one layer; traced)"
        yield Part(
            name="activations", sum=f"{tokens:,} tokens x {counted}", bytes=round(tokens * kept), phases=("update",)
        )
    chunk = min(tokens, max(1, LOGITS_AT_ONCE // model.vocab))
    width = LOGIT_COPIES * 4 + 2 * low
    yield Part(
        name="logits",
        sum=f"{chunk:,} tokens (a chunk) x {model.vocab:,} x {width} B",
        bytes=chunk * model.vocab * width,
        phases=("update",),
    )
    if config.records.diagnostics_every:
        kinds = max(len(stage.losses(config)) for stage in method.stages)
        kept = kinds + any(stage.micro_batches > 1 for stage in stages)
        yield Part(
            name="diagnostics",
            sum=f"{kept} gradients x {each}, every {config.records.diagnostics_every} steps",
            bytes=kept * MASTER_BYTES * count,
            phases=("update", "AdamW step"),
            sharded=True,
        )
    if config.model.device != "cpu":
        yield Part(
            name="square roots",
            sum=f"{each}, which AdamW makes at once on a GPU",
            bytes=MASTER_BYTES * count,
            phases=("AdamW step",),
            sharded=True,
        )


def _engine_parts(config: RunConfig, model: ModelSize, rows: int) -> Iterator[Part]:
    rollout = config.rollout
    longest = rollout.row_tokens
    if rollout.engine == "vllm":
        width = 2 if autocast_dtype(config) is not None else 4
        token = cache_bytes_per_token(model, width)
        held: tuple[Phase, ...] = ("sampling",) if config.vllm.sleep else PHASES
        yield Part(
            name="vLLM's weights",
            sum=f"{short(model.parameters)} x {width} B ({config.model.dtype})",
            bytes=width * model.parameters,
            phases=held,
        )
        size = config.vllm.cache_gib * 2**30
        yield Part(
            name="vLLM's cache",
            sum=f"vllm.cache_gib: {size // token:,.0f} tokens x {token:,} B, {size / token / longest:.1f} of the longest rows",
            bytes=size,
            phases=held,
        )
        read, chunk = longest, min(longest, max(1, LOGITS_AT_ONCE // model.vocab))
        yield Part(
            name="check of vLLM",
            sum=f"{chunk:,} tokens (a chunk) x {model.vocab:,} x {LOGIT_COPIES * 4} B, and one layer of the longest row",
            bytes=chunk * model.vocab * LOGIT_COPIES * 4 + read * (model.kept_bytes or 0) / model.layers,
            phases=("sampling",),
        )
        return
    read = max(longest, min(rows * longest, PREFILLED_TOKENS))
    layer = (model.kept_bytes or 0) / model.layers
    yield Part(
        name="prefill",
        sum=f"{read:,} tokens x ({cache_bytes_per_token(model, 4):,} B of keys and values + {layer:,.0f} B one layer)",
        bytes=read * (cache_bytes_per_token(model, 4) + layer),
        phases=("sampling",),
    )
    yield Part(
        name="key-value cache",
        sum=f"{rows:,} rows x ({longest:,} + {GROWTH}) tokens x {model.cache_bytes:,} B",
        bytes=rows * (longest + GROWTH) * model.cache_bytes,
        phases=("sampling",),
    )
    yield Part(
        name="next tokens",
        sum=f"{rows:,} rows x {model.vocab:,} x {CHOICE_BYTES} B",
        bytes=rows * model.vocab * CHOICE_BYTES,
        phases=("sampling",),
    )


def cache_bytes_per_token(model: ModelSize, width: int) -> int:
    """Bytes of one token's keys and values at ``width`` bytes a number: 2 x layers x kv_heads x head_dim x width."""
    return 2 * model.layers * model.kv_heads * model.head_dim * width


# ---------------------------------------------------------------------- time


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast a device multiplies."""

    flops: float
    """FLOP/s."""
    source: str
    """Where the figure is from."""


ASSUMED = Throughput(flops=4e14, source="assumed: four tenths of an H100's peak in bfloat16, 9.9e14")


def measured_throughput(config: RunConfig, seconds: float = 1.0) -> Throughput:
    """FLOP/s of the fastest of many products of square matrices, on the run's device, in its arithmetic, on its threads.

    Raises:
        ConfigError: ``model.device`` is not there.
    """
    device, dtype = device_of(config), autocast_dtype(config) or torch.float32
    size = 8192 if device.type == "cuda" else 1024
    with torch_state(config.threads):
        matrix = torch.ones(size, size, device=device, dtype=dtype)
        (matrix @ matrix)[0, 0].item()
        shortest, end = math.inf, time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            (matrix @ matrix)[0, 0].item()  # waits for the device
            shortest = min(shortest, time.perf_counter() - start)
    where = "the GPU" if device.type == "cuda" else f"{config.threads} thread{'s' if config.threads > 1 else ''} here"
    return Throughput(
        flops=2 * size**3 / shortest, source=f"that of {config.model.dtype} products on {where}, just measured"
    )


def throughput_for(found: RunPlan) -> Throughput:
    """Measured where the run fits the memory of its device here, else :data:`ASSUMED`."""
    from prefix_rft_lab.tools.doctor import available_memory

    if found.config.model.device == "cuda" and not torch.cuda.is_available():
        return ASSUMED
    device = device_of(found.config)
    if device.type == "cuda":
        memory: int | None = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = available_memory()
    return measured_throughput(found.config) if memory is not None and found.peak_bytes <= memory else ASSUMED


def short(number: float) -> str:
    """Three digits: 7.62e9, 512, 84.3e3."""
    if number < 1000:
        return f"{number:.3g}"
    power = 3 * int(math.log10(number) // 3)
    return f"{number / 10**power:.3g}e{power}"
