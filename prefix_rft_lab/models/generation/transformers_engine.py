"""Batched sampling with a transformers model: all rows in one batch, each distinct context prefilled once.

What is removed from ``model.generate``: logits processors, stopping criteria, left padding and a key-value cache that is
copied for every token. Rows are ragged: every row's keys start at column 0, its own length says where the next ones go, so
nothing is computed for padding and a row can leave the batch the moment it ends. A row's randomness is one keyed stream of
uniforms turned into tokens by the inverse of the cumulative distribution; it does not depend on which other rows share its
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from prefix_rft_lab.core import rng
from prefix_rft_lab.models.generation.base import Completion, Request
from prefix_rft_lab.models.policy import head_of

SHRINK_AT = 0.9
"""The batch is compacted once fewer than this share of its rows is still running: copying the cache for every
single row that ends would cost more than the row."""
GROW = 16
"""Columns by which the key-value cache grows: room for the longest possible row would mostly be copied unused."""


PREFILLED_TOKENS = 2**15
"""Tokens, padding included, that are prefilled together at most, unless a single context is longer."""


def _parts(contexts: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Contexts in parts of :data:`PREFILLED_TOKENS`; in several, those of similar length together."""
    if len(contexts) * max(map(len, contexts)) > PREFILLED_TOKENS:
        contexts = sorted(contexts, key=len)
    part: list[tuple[int, ...]] = []
    for context in contexts:
        if part and (len(part) + 1) * max(len(context), len(part[-1])) > PREFILLED_TOKENS:
            yield part
            part = []
        part.append(context)
    yield part


class RaggedCache(Cache):
    """Keys and values, grown in blocks, with a write position for each row.

    ``columns[i]`` is where row i's next key goes; ``width`` bounds the columns that attention reads. Under autocast, keys and
    values are kept in its precision, which is the one that attention would round all of them to for every token.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__(layers=[])
        self.dtype = dtype
        self.keys: list[torch.Tensor] = []  # one a layer: (rows, heads, capacity, head_dim)
        self.values: list[torch.Tensor] = []
        self.columns = torch.empty(0, dtype=torch.long)  # (rows,)
        self.rows = torch.empty(0, dtype=torch.long)  # (rows,) 0, 1, 2, ...
        self.width = 0

    def start(self, lengths: torch.Tensor) -> None:
        """Begin with rows of some lengths, (rows,) int64, whose keys and values :meth:`load` fills in."""
        self.columns = lengths
        self.rows = torch.arange(len(lengths), device=lengths.device)

    def load(self, layers: list[Any], rows: torch.Tensor, contexts: torch.Tensor) -> None:
        """Copy the prefilled layers of some contexts, each with keys and values (contexts, heads, width, head_dim), to rows.

        ``layers`` is emptied, so that only one layer is in memory twice.
        """
        for number in range(len(layers)):
            layer = layers.pop(0)
            for tensors, found in ((self.keys, layer.keys), (self.values, layer.values)):
                if len(tensors) == number:
                    shape = (len(self.rows), found.shape[1], int(self.columns.max()), found.shape[3])
                    tensors.append(found.new_zeros(shape, dtype=self.dtype))
                tensors[number][rows, :, : found.shape[2]] = found.to(tensors[number].dtype)[contexts]

    def select(self, rows: torch.Tensor) -> None:
        """Keep only the given rows, (kept,) int64, and the columns that they use."""
        self.columns = self.columns[rows]
        self.rows = torch.arange(len(rows), device=rows.device)
        width = int(self.columns.max())
        self._each(lambda tensor: tensor[rows, :, :width])

    def make_room(self) -> None:
        """Let every row write one more column."""
        self.width = int(self.columns.max()) + 1
        missing = self.width - self.keys[0].shape[2]
        if missing > 0:
            room = (0, 0, 0, missing + GROW)
            self._each(lambda tensor: torch.nn.functional.pad(tensor, room))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change keys and values layer by layer: only one is in memory twice."""
        for tensors in (self.keys, self.values):
            for number, tensor in enumerate(tensors):
                tensors[number] = change(tensor)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one new column of each row, (rows, heads, 1, head_dim), and return all columns up to ``width``."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.rows, :, self.columns] = key_states[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.columns] = value_states[:, :, 0].to(values.dtype)
        return keys[:, :, : self.width], values[:, :, : self.width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.width


class TransformersEngine:
    """Samples from a causal language model that lives in this process.

    Args:
        model: a transformers causal language model; it is put into eval mode for the length of a call.
        eos_id: the id that ends a response, or several.
        max_batch_rows: rows decoded together at most.
        autocast: arithmetic of the forward passes, or None for the weights' own.
    """

    def __init__(
        self,
        model: Any,
        *,
        eos_id: int | Sequence[int],
        max_batch_rows: int = 2048,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.eos_ids = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
        self.max_batch_rows = max_batch_rows
        self.autocast = autocast

    def generate(
        self, requests: Sequence[Request], *, temperature: float = 1.0, greedy: bool = False
    ) -> list[Completion]:
        """See :class:`prefix_rft_lab.models.generation.base.Engine`."""
        temperature = 1.0 if greedy else temperature
        completions: list[Completion] = []
        was_training = self.model.training
        self.model.eval()
        device = self.model.device
        try:
            with (
                # In inference mode autocast would copy all weights again for every token.
                torch.inference_mode() if self.autocast is None else torch.no_grad(),
                torch.autocast(device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None),
            ):
                for start in range(0, len(requests), self.max_batch_rows):
                    batch = requests[start : start + self.max_batch_rows]
                    completions += self._generate_batch(batch, temperature, greedy)
        finally:
            self.model.train(was_training)
        return completions

    def weights_changed(self) -> None:
        """Nothing to do: the model itself generates."""

    def close(self) -> None:
        """Nothing to free: the model is the caller's."""

    def _prefill(self, requests: Sequence[Request], cache: RaggedCache) -> torch.Tensor:
        """Fill the cache from the contexts, each distinct one computed once; returns (rows, vocab) next-token logits."""
        device = self.model.device
        distinct: dict[tuple[int, ...], list[int]] = {}
        for row, request in enumerate(requests):
            distinct.setdefault(tuple(request.context_ids), []).append(row)
        cache.start(torch.tensor([len(r.context_ids) for r in requests], device=device))
        logits: torch.Tensor | None = None
        for contexts in _parts(list(distinct)):
            lengths = torch.tensor([len(c) for c in contexts], device=device)
            # Right padding: causal attention keeps it out of sight of every real token.
            ids = torch.zeros((len(contexts), int(lengths.max())), dtype=torch.long, device=device)
            for i, context in enumerate(contexts):
                ids[i, : len(context)] = torch.tensor(context, device=device)
            # Without the model's config no layer cuts its keys to a sliding window, whose end is another one in every row.
            output = self.model.base_model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True)
            last = output.last_hidden_state[torch.arange(len(contexts), device=device), lengths - 1]
            rows = torch.tensor([row for c in contexts for row in distinct[c]], device=device)
            index = torch.tensor([i for i, c in enumerate(contexts) for _ in distinct[c]], device=device)
            cache.load(output.past_key_values.layers, rows, index)
            found = head_of(self.model)(last)
            if logits is None:
                logits = found.new_empty((len(requests), found.shape[-1]))
            logits[rows] = found[index]
        assert logits is not None
        return logits

    def _attention_mask(self, cache: RaggedCache) -> torch.Tensor | dict[str, torch.Tensor]:
        """(rows, 1, 1, width), True where a row's new token looks: at what was written, in layers with a sliding window at its
        last columns only. A model with several kinds of layers gets one mask for each; eager attention adds it to the scores.
        """
        config = self.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        places = torch.arange(cache.width, device=cache.columns.device)
        written = places <= cache.columns[:, None]  # (rows, width) bool
        near = written if window is None else written & (places > cache.columns[:, None] - window)

        def shaped(mask: torch.Tensor) -> torch.Tensor:
            mask = mask[:, None, None, :]
            if self.model.config._attn_implementation != "eager":
                return mask
            bound = torch.finfo(self.model.dtype).min
            return torch.zeros_like(mask, dtype=self.model.dtype).masked_fill_(~mask, bound)

        if "sliding_attention" in kinds:
            return {kind: shaped(near if kind == "sliding_attention" else written) for kind in kinds}
        # Without kinds (Mistral), a window is that of all layers.
        return shaped(written if kinds else near)

    def _generate_batch(self, requests: Sequence[Request], temperature: float, greedy: bool) -> list[Completion]:
        device = self.model.device
        limits = np.array([r.max_new_tokens for r in requests])
        longest = int(limits.max())
        uniforms = None if greedy else rng.uniforms([r.key for r in requests], longest)
        tokens = np.zeros((len(requests), longest), dtype=np.int64)
        logps = np.zeros((len(requests), longest), dtype=np.float64)
        counts = np.zeros(len(requests), dtype=np.int64)
        ended = np.zeros(len(requests), dtype=bool)

        cache = RaggedCache(self.autocast)
        logits = self._prefill(requests, cache)
        rows = np.arange(len(requests))  # request of each row still in the batch
        running = limits > 0  # ... and whether it still runs
        for step in range(longest):
            chosen, logp = _choose(logits, None if uniforms is None else uniforms[rows, step], temperature)
            chosen_np = chosen.cpu().numpy()
            live = rows[running]
            tokens[live, step] = chosen_np[running]
            logps[live, step] = logp.cpu().numpy()[running]
            counts[live] = step + 1
            ended[live] = np.isin(chosen_np[running], self.eos_ids)
            running = ~ended[rows] & (step + 1 < limits[rows])
            if not running.any():
                break
            if running.mean() < SHRINK_AT:
                keep = torch.from_numpy(np.flatnonzero(running)).to(device)
                cache.select(keep)
                chosen, rows, running = chosen[keep], rows[running], np.ones(int(running.sum()), dtype=bool)
            # Rows that ended but are still in the batch go on writing behind their end, where nobody reads.
            cache.make_room()
            output = self.model.base_model(
                input_ids=chosen[:, None],
                attention_mask=self._attention_mask(cache),
                position_ids=cache.columns[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            cache.columns = cache.columns + 1
            logits = head_of(self.model)(output.last_hidden_state[:, 0])
        return [
            Completion(
                token_ids=tokens[i, : counts[i]].tolist(),
                logp=logps[i, : counts[i]].tolist(),
                truncated=not bool(ended[i]),
            )
            for i in range(len(requests))
        ]


def _choose(logits: torch.Tensor, uniforms: np.ndarray | None, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Next tokens (rows,) and their log-probabilities (rows,) from logits (rows, vocab); greedy without uniforms."""
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    if uniforms is None:
        chosen = logp.argmax(dim=-1)
    else:
        # float64: in float32 the cumulative sum over a large vocabulary would move the tail's boundaries.
        cumulative = logp.double().exp().cumsum(dim=-1)
        u = torch.from_numpy(uniforms).to(logits.device)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, u, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return chosen, logp.gather(-1, chosen[:, None])[:, 0]
