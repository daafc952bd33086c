"""How the published code puts prompts, prefixes and continuations together, for comparison.

The kit itself keeps lengths and masks by length (:mod:`prefix_rft_lab.types`). This routine finds prompts by looking
for padding and responses by looking for an end token, generates past the limit and cuts afterwards; where the two ids
are one, it counts the first padding place as the end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedBatch:
    """Rows side by side: prompts padded on the left, responses on the right."""

    prompts: torch.Tensor  # (rows, prompt_width) int64, without the prefix
    responses: torch.Tensor  # (rows, response_width) int64, prefix and continuation
    input_ids: torch.Tensor  # (rows, prompt_width + response_width) int64
    attention_mask: torch.Tensor  # (rows, prompt_width + response_width) int64
    position_ids: torch.Tensor  # (rows, prompt_width + response_width) int64, count on over right padding
    prefix_mask: torch.Tensor  # (rows, response_width) int64
    prefix_relpos: torch.Tensor  # (rows, response_width) float32: (0, 1] on the prefix, -1 after it, 0 on padding


def assemble_published(
    prompts: torch.Tensor,
    generated: torch.Tensor,
    raw_prompt_len: Sequence[int],
    demo_len: Sequence[int],
    *,
    pad_id: int,
    eos_id: int,
    max_response_len: int,
) -> PublishedBatch:
    """Move the prefix from the generator's prompt to the response.

    Args:
        prompts: (rows, width) int64, prompt and prefix, padded on the left.
        generated: (rows, width) int64, continuation, padded on the right.
        raw_prompt_len: prompt tokens before the prefix, a row.
        demo_len: tokens of the whole demonstration, a row; 0 for none.
        pad_id: padding id.
        eos_id: end-token id.
        max_response_len: tokens that prefix and continuation together are cut to.
    """
    contexts = [row[row != pad_id] for row in prompts]
    raw = [context[:length] for context, length in zip(contexts, raw_prompt_len, strict=True)]
    prefixes = [context[length:] for context, length in zip(contexts, raw_prompt_len, strict=True)]
    joined = [torch.cat([prefix, row])[:max_response_len] for prefix, row in zip(prefixes, generated, strict=True)]

    left = _padded(raw, pad_id, left=True)
    responses = _padded(joined, pad_id, left=False)
    column = torch.arange(responses.shape[1])[None]

    ended = (responses == eos_id).long().cumsum(1)
    response_mask = (ended - (responses == eos_id).long()) == 0
    prompt_mask = left != pad_id
    prompt_position = (prompt_mask.long().cumsum(1) - 1).clamp(min=0)
    last = prompt_position[:, -1:] if left.shape[1] else torch.full((left.shape[0], 1), -1)

    prefix_mask = column < torch.tensor([prefix.numel() for prefix in prefixes])[:, None]
    relpos = (column + 1).float() / torch.as_tensor(demo_len).clamp(min=1).float()[:, None]
    relpos = torch.where(response_mask, torch.where(prefix_mask, relpos, -1.0), 0.0)
    return PublishedBatch(
        prompts=left,
        responses=responses,
        input_ids=torch.cat([left, responses], 1),
        attention_mask=torch.cat([prompt_mask, response_mask], 1).long(),
        position_ids=torch.cat([prompt_position, last + 1 + column], 1),
        prefix_mask=prefix_mask.long(),
        prefix_relpos=relpos,
    )


def _padded(rows: Sequence[torch.Tensor], pad_id: int, *, left: bool) -> torch.Tensor:
    """(rows, longest) int64."""
    width = max((row.numel() for row in rows), default=0)
    out = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    for i, row in enumerate(rows):
        place = slice(width - row.numel(), width) if left else slice(0, row.numel())
        out[i, place] = row
    return out
