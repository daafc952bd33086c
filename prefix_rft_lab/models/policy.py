"""Loading a policy, and one forward pass of it over a batch of rows."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint

from prefix_rft_lab.algorithm.entropy import entropy_and_logp, log_probs_and_entropy
from prefix_rft_lab.core import hub
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import SequenceBatch, TokenStats
from prefix_rft_lab.data.base_policy import ASSETS
from prefix_rft_lab.models.templates import keep_messages, part_replies, stop_ids, use_template
from prefix_rft_lab.models.tokens import check_tokenizer

TRAINED = "trained.safetensors"
"""What a checkpoint keeps of a policy with frozen parameters."""
LOGITS_AT_ONCE = 2**25
"""Logits computed together at most (128 MiB in float32); larger batches go in chunks that are recomputed backward."""


def device_of(config: RunConfig) -> torch.device:
    """The device that ``model.device`` asks for.

    Raises:
        ConfigError: ``cuda`` where there is none.
    """
    available = torch.cuda.is_available()
    if config.model.device == "cuda" and not available:
        raise ConfigError("model.device = 'cuda' but torch sees no GPU; use 'auto' or 'cpu', or install a CUDA build")
    return torch.device("cuda" if available and config.model.device != "cpu" else "cpu")


def autocast_dtype(config: RunConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.model.dtype == "bfloat16" else None


def load_tokenizer(config: RunConfig) -> Any:
    """The tokenizer of ``model.path``, with the template that ``model.template`` asks for.

    Raises:
        ConfigError: no such model, no end token, no chat template, or one that the vocabulary does not know.
    """
    path, options = _location(config)
    return _tokenizer(path, config, options)


def _tokenizer(path: str, config: RunConfig, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = _loaded(AutoTokenizer, path, **options)
    use_template(tokenizer, config.model.template, path)
    _fit(tokenizer, config, path)
    return tokenizer


def _fit(tokenizer: Any, config: RunConfig, where: str) -> None:
    """Refuse a tokenizer that cannot serve; let its template keep all messages, and no token hold prompt and reply."""
    check_tokenizer(tokenizer, where)
    keep_messages(tokenizer, where, system=config.model.system_prompt is not None)
    part_replies(tokenizer)


def _location(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Where the policy lies, and ``local_files_only`` where the Hub does not answer for it."""
    path = str(ASSETS) if config.model.path == "tiny" else config.model.path
    local = Path(path).expanduser()
    if local.exists() and not (local / "config.json").is_file():
        raise ConfigError(f"model.path = {path!r} holds no config.json; give a directory in Hugging Face format")
    inside_a_folder = "/" in path and local.parent.is_dir()
    if not local.exists() and (inside_a_folder or path.count("/") > 1 or path.startswith((".", "~"))):
        raise ConfigError(f"model.path = {path!r} is not there; give an existing directory in Hugging Face format")
    if local.exists():
        return str(local), {}
    return path, {"local_files_only": not hub.answers_for(path, "model", "model.path")}


def load_model_config(config: RunConfig) -> Any:
    """The transformers config of ``model.path``, with ``model.context_tokens`` and ``model.rope_theta`` put in; no weights.

    Raises:
        ConfigError: no such model, or one without rotary embeddings whose base is to change.
    """
    path, options = _location(config)
    return _model_config(path, config, options)


def _model_config(path: str, config: RunConfig, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return with_overrides(_loaded(AutoConfig, path, **options), config, path)


def with_overrides(found: Any, config: RunConfig, path: str) -> Any:
    """A transformers config with ``model.context_tokens`` and ``model.rope_theta`` put in, in place.

    Raises:
        ConfigError: no rotary embeddings whose base could change.
    """
    if config.model.context_tokens is not None:
        found.max_position_embeddings = config.model.context_tokens
    if config.model.rope_theta is not None:
        if "rope_theta" not in (getattr(found, "rope_parameters", None) or {}):
            raise ConfigError(
                f"model.rope_theta = {config.model.rope_theta:g} needs rotary embeddings with one base, and model.path = "
                f"{path!r} has none; leave it out"
            )
        found.rope_parameters = {**found.rope_parameters, "rope_theta": config.model.rope_theta}
    return found


def _loaded(factory: Any, path: str, **options: Any) -> Any:
    try:
        # Left open, the question whether to run a repository's own code would be asked on the terminal.
        with _no_progress_bar():
            return factory.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"model.path = {path!r} needs code of its own repository to run, which the kit does not do; use a model whose "
                "architecture transformers knows, such as a Llama or Qwen2"
            ) from error
        if hub.is_gated(error):
            raise ConfigError(hub.gated(path, "model.path")) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if options.get("local_files_only"):
            reason = f"{hub.why_not()}, and it is not in the local cache"
        raise ConfigError(
            f"model.path = {path!r} could not be loaded ({reason}); give a local directory in Hugging Face format, or "
            "a Hub name with a network or a filled cache"
        ) from error


def refuse_short_context(found: Any, config: RunConfig) -> None:
    """Raise where the rows of a run are longer than the context of a transformers config.

    Raises:
        ConfigError: they are.
    """
    context = getattr(found, "max_position_embeddings", None)
    needed = config.rollout.row_tokens
    if context is not None and needed > context:
        raise ConfigError(
            f"rollout.max_prompt_tokens + rollout.max_response_tokens = {needed} exceeds the model's context of "
            f"{context} tokens; lower one of them, or set model.context_tokens (and model.rope_theta to stretch it)"
        )


def load_policy(config: RunConfig) -> tuple[Any, Any]:
    """(model, tokenizer) of ``model.path``, float32 weights on the config's device, dropout off.

    Raises:
        ConfigError: no such model, no end token, no chat template, a context that is too short, or a tokenizer that is
            not the model's.
    """
    from transformers import AutoModelForCausalLM

    path, options = _location(config)
    tokenizer = _tokenizer(path, config, options)
    model_config = _model_config(path, config, options)
    model, found = _loaded(
        AutoModelForCausalLM, path, config=model_config, dtype=torch.float32, output_loading_info=True, **options
    )
    refuse_missing(found, path)
    return _ready(model, tokenizer, config, path), tokenizer


NEEDED = ("device", "config", "base_model", "get_input_embeddings", "get_output_embeddings", "save_pretrained")
"""What training asks of a model object beside its forward pass: a transformers causal language model has it all."""


def adopt_policy(model: Any, tokenizer: Any, config: RunConfig) -> tuple[Any, Any, Any]:
    """(policy, what is saved in the end, tokenizer) of a model object, which is copied and stays as it is.

    Adapters of peft are trained inside the model that they were put on; saved are the adapters.

    Args:
        tokenizer: None takes that of ``model.path``.

    Raises:
        ConfigError: it lacks something of :data:`NEEDED`, has parameters that are not float32, or none that is trained; or as
            :func:`load_policy`.
    """
    whole = copy.deepcopy(model)
    policy = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    kind = type(model).__name__
    missing = [name for name in NEEDED if not hasattr(policy, name)]
    if missing or not isinstance(policy, torch.nn.Module):
        raise ConfigError(
            f"model = {kind} has no {' and no '.join(missing) or 'parameters'}; give a causal language model of transformers, a "
            "subclass, or one with adapters of peft"
        )
    kinds = {str(p.dtype).removeprefix("torch.") for p in policy.parameters()}
    if kinds != {"float32"}:
        raise ConfigError(f"model = {kind} has parameters in {', '.join(sorted(kinds))}; pass model.float()")
    if config.rollout.engine != "transformers":
        raise ConfigError(
            f"rollout.engine = {config.rollout.engine!r} samples from files of weights, and model = {kind} is an object; use "
            "'transformers'"
        )
    if not any(p.requires_grad for p in policy.parameters()):
        raise ConfigError(f"model = {kind} has no parameter that is trained; set requires_grad on those that should be")
    tokenizer = load_tokenizer(config) if tokenizer is None else copy.deepcopy(tokenizer)
    _fit(tokenizer, config, kind)
    return _ready(policy, tokenizer, config, kind), whole, tokenizer


def _ready(model: Any, tokenizer: Any, config: RunConfig, path: str) -> Any:
    """A model that fits its tokenizer and the run, on the run's device."""
    highest, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        # The other way round is common: embeddings are padded to a round number.
        raise ConfigError(
            f"model.path = {path!r} has a tokenizer whose ids reach {highest} and embeddings of {rows} tokens; save the "
            "tokenizer that the model was trained with beside it, or resize the embeddings"
        )
    refuse_short_context(model.config, config)
    fix_rotary_table(model, config.rollout.row_tokens)
    _keep_what_can_be_saved(model)
    if len(stops := stop_ids(tokenizer)) > 1 and model.generation_config is not None:
        # The saved model then ends where it ended in training, whoever generates with it.
        model.generation_config.eos_token_id = list(stops)
    if config.activation_checkpointing:
        recompute_layers(model, path)
    return model.to(device_of(config)).eval()


def refuse_missing(found: Mapping[str, Any], path: str) -> None:
    """Raise where weights are not in the file of a model: they would be random ones, others at every start.

    Raises:
        ConfigError: some are; ``found`` is the loading info of transformers.
    """
    if missing := sorted(found["missing_keys"]):
        others = sorted(found["unexpected_keys"])
        instead = f" (it holds {others[0]} instead)" if others else ""
        raise ConfigError(
            f"model.path = {path!r} holds no weights for {missing[0]}"
            f"{f' and {len(missing) - 1} other tensors' if missing[1:] else ''}{instead}; save the plain model, without the "
            "wrapper of torch.compile, DDP or PEFT, and with its head"
        )


def fix_rotary_table(model: Any, row_tokens: int) -> None:
    """Let a model with two rotary tables (longrope: Phi-3) use one for all rows of a run: the long one where the longest row,
    of ``row_tokens``, needs it.

    Its own code takes the table of the longest row in the batch, so that a row's log-probabilities would hang on its company
    and change in the middle of decoding. vLLM chooses by its maximum length, as is done here.
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) != "longrope":
            continue
        if row_tokens > module.config.rope_parameters["original_max_position_embeddings"]:
            # Forwards look at the type by name: under another name the table stays.
            places = torch.tensor([[row_tokens - 1]], device=module.inv_freq.device)
            module(torch.empty(0, device=places.device), places)
        module.rope_type = "longrope, one table"


def _keep_what_can_be_saved(model: Any) -> None:
    """A generation config that transformers would refuse to write, common in the wild, keeps its token ids only."""
    from transformers import GenerationConfig

    if model.generation_config is None:
        return
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(model.generation_config, name) for name in ids})


def recompute_layers(model: Any, path: str) -> Sequence[torch.nn.Module]:
    """Let every layer of a model keep only its input for the backward pass, and be computed again there (activation
    checkpointing, arXiv 1604.06174); returns the layers.

    The layers are those that transformers would checkpoint. Its own switch works in training mode only, which is also that
    of dropout, and a policy here stays in evaluation mode.

    Raises:
        ConfigError: the architecture names no such layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"activation_checkpointing = true needs layers that can be computed again, and transformers names none in "
            f"model.path = {path!r}; set it to false"
        )
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)
    return layers


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Nothing in a layer is random: dropout is off.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def trained_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter of those that are not frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """What a checkpoint keeps: the policy; of one with frozen parameters those that are trained, by name."""
    trained = trained_parameters(model)
    if len(trained) == len(dict(model.named_parameters())):
        save_policy(model, tokenizer, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().cpu().contiguous() for name, p in trained.items()}, folder / TRAINED)


def save_policy(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights, config and tokenizer in Hugging Face format, without a progress bar for each."""
    with _no_progress_bar():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def read_weights(model: Any, folder: Path) -> None:
    """Put the weights that :func:`save_weights` wrote back into the model, to the bit.

    transformers reads them, since it writes the tensors of some architectures under other names (GPT-NeoX) and in other
    shapes (mixtures of experts) than the model has.

    Raises:
        ConfigError: some are missing, or they cannot be read.
    """
    if (folder / TRAINED).is_file():
        kept = load_file(folder / TRAINED)
        with torch.no_grad():
            for name, parameter in trained_parameters(model).items():
                parameter.copy_(kept[name])
        return
    saved, found = _loaded(type(model), str(folder), config=model.config, dtype=model.dtype, output_loading_info=True)
    refuse_missing(found, str(folder))
    weights = dict(saved.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChoices:
    """What the policy made of the place of every response token, flat, in row-major order; no gradient."""

    logp: torch.Tensor  # (tokens,) float32 log-probability of the token, nats
    entropy: torch.Tensor  # (tokens,) float32 entropy over the whole vocabulary, nats
    ids: torch.Tensor  # (tokens, k) int64 tokens that could have been there
    probs: torch.Tensor  # (tokens, k) float32 their probabilities


def head_of(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """From the base model's last states, (tokens, hidden), to logits, (tokens, vocab), as the model itself gets there.

    Mostly this is a product with the output embeddings. Some models do more (a layer before it, a scale or a soft cap after
    it); which ones is found by comparing on random states once, not by a list of names.
    """
    if model not in _HEADS:
        _HEADS[model] = not _is_product(model)
    return partial(_own_head, model) if _HEADS[model] else model.get_output_embeddings()


_HEADS: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""Model -> whether its head is more than a product."""


def _is_product(model: Any) -> bool:
    head = model.get_output_embeddings()
    states = torch.randn(4, head.weight.shape[1], generator=torch.Generator().manual_seed(0)).to(head.weight)
    with torch.no_grad():
        # Logits of about 10: a soft cap leaves small ones as they are.
        states *= 10 / head(states).float().std().clamp(min=1e-6)
        product = head(states)
        try:
            own = _own_head(model, states)
        except (
            AttributeError,
            TypeError,
            RuntimeError,
        ):  # a forward that is built otherwise; the proof looks at it whole
            return True
    return own.shape != product.shape or torch.allclose(own, product, rtol=1e-4, atol=1e-4)


def _own_head(model: Any, states: torch.Tensor) -> torch.Tensor:
    """The model's own forward, where its base model has given these states."""
    name = model.base_model_prefix
    base = model._modules[name]
    ids = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)
    model._modules[name] = _Given(base, states[None])
    try:
        return model(input_ids=ids, use_cache=False).logits[0]
    finally:
        model._modules[name] = base


class _Given:
    """Stands where a base model stands, and gives states that are known."""

    def __init__(self, base: Any, states: torch.Tensor) -> None:
        self.base = base
        self.last_hidden_state = states

    def __call__(self, *_: Any, **__: Any) -> _Given:
        return self

    def __getitem__(self, place: int) -> torch.Tensor | None:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, name: str) -> Any:
        # As an output it has nothing but the states; as a module it is the base model.
        return getattr(self.base, name, None)


def response_stats(
    model: Any, batch: SequenceBatch, *, temperature: float = 1.0, autocast: torch.dtype | None = None
) -> TokenStats:
    """Log-probability and entropy of every response token of a batch, flat in row-major order.

    The vocabulary projection is computed at response tokens only, in chunks of :data:`LOGITS_AT_ONCE` logits.

    Args:
        batch: rows padded on the right; causal attention keeps the padding out of sight.
        temperature: divides the logits, as in sampling.
        autocast: arithmetic of the forward pass, None for float32.
    """

    def stats(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return entropy_and_logp(logits, targets, temperature)

    logp, entropy = _over_logits(model, batch, stats, autocast=autocast)
    return TokenStats(logp=logp, entropy=entropy)


def response_choices(
    model: Any,
    batch: SequenceBatch,
    k: int = 0,
    *,
    ids: torch.Tensor | None = None,
    temperature: float = 1.0,
    autocast: torch.dtype | None = None,
) -> TokenChoices:
    """:func:`response_stats` without a gradient, and what else could have been there, from the same logits.

    Args:
        k: the most probable tokens are given, this many or the vocabulary, most probable first.
        ids: (tokens, k) int64: give the probabilities of these tokens instead.
    """

    def choices(logits: torch.Tensor, targets: torch.Tensor, *wanted: torch.Tensor) -> tuple[torch.Tensor, ...]:
        log_probs, entropy = log_probs_and_entropy(logits, temperature)
        chosen = wanted[0] if wanted else log_probs.topk(min(k, log_probs.shape[-1]), dim=-1).indices
        logp = log_probs.gather(-1, targets[:, None]).squeeze(-1)
        return logp, entropy, chosen, log_probs.gather(-1, chosen).exp()

    with torch.no_grad():
        columns = () if ids is None else (ids.to(batch.input_ids.device),)
        logp, entropy, chosen, probs = _over_logits(model, batch, choices, *columns, autocast=autocast)
    return TokenChoices(logp=logp, entropy=entropy, ids=chosen, probs=probs)


def _over_logits(
    model: Any,
    batch: SequenceBatch,
    function: Callable[..., tuple[torch.Tensor, ...]],
    *columns: torch.Tensor,
    autocast: torch.dtype | None,
) -> tuple[torch.Tensor, ...]:
    """``function(logits, targets, *columns)`` over the response tokens, joined over chunks of :data:`LOGITS_AT_ONCE`.

    Logits are (tokens, vocab); with a gradient several chunks are computed again backward, not kept.
    """
    device = batch.input_ids.device
    head = head_of(model)
    table = model.get_output_embeddings().weight

    def project(states: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            logits = head(states if autocast else states.to(table.dtype))
        return function(logits, *rest)

    with torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    # The token at place t is predicted at place t - 1.
    mask = batch.response_mask[:, 1:]
    inputs = (hidden[:, :-1][mask], batch.input_ids[:, 1:][mask], *columns)
    chunk = max(1, LOGITS_AT_ONCE // table.shape[0])
    if len(inputs[0]) <= chunk:
        return project(*inputs)
    parts = [
        checkpoint(project, *part, use_reentrant=False) if torch.is_grad_enabled() else project(*part)
        for part in zip(*(column.split(chunk) for column in inputs), strict=True)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
