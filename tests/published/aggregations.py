"""How the published code turns token losses into one number: a division inside each micro-batch.

Each of these depends on how a window was cut. The kit divides once (:func:`prefix_rft_lab.losses.dr_grpo_normaliser`);
these are kept to compare with, and to show what goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum under a bool mask, scalar; what lies outside does not count even if it is infinite."""
    return torch.where(mask.bool(), values, 0.0).sum()


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean under a bool mask, scalar; 0 for an empty one.

    The published code adds 1e-8 to the count; in float32 that changes no count but that of an empty mask.
    """
    return masked_sum(values, mask) / mask.bool().sum().clamp(min=1)


def token_mean(loss: torch.Tensor, mask: torch.Tensor, *, max_tokens: int | None = None) -> torch.Tensor:
    """Mean over all tokens of the array: long rows weigh more.

    Args:
        loss: (rows, tokens).
        mask: (rows, tokens) bool, the response.
        max_tokens: not used.
    """
    return masked_mean(loss, mask)


def seq_mean_token_sum(loss: torch.Tensor, mask: torch.Tensor, *, max_tokens: int | None = None) -> torch.Tensor:
    """Mean over rows of the row's sum; arguments as :func:`token_mean`."""
    return masked_sum(loss, mask) / max(loss.shape[0], 1)


def seq_mean_token_mean(loss: torch.Tensor, mask: torch.Tensor, *, max_tokens: int | None = None) -> torch.Tensor:
    """Mean over rows of the row's token mean; rows without a token count as 0. Arguments as :func:`token_mean`."""
    sums = torch.where(mask.bool(), loss, 0.0).sum(-1)
    return (sums / mask.bool().sum(-1).clamp(min=1)).sum() / max(loss.shape[0], 1)


def dr_grpo_sum(loss: torch.Tensor, mask: torch.Tensor, *, max_tokens: int | None = None) -> torch.Tensor:
    """Sum over all tokens of the array over ``max_tokens``, not over the rows: scales with the micro-batch."""
    if max_tokens is None or max_tokens < 1:
        raise ValueError(f"max_tokens = {max_tokens} cannot divide the dr_grpo loss; give the response limit in tokens")
    return masked_sum(loss, mask) / max_tokens


AGGREGATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "token-mean": token_mean,
    "seq-mean-token-sum": seq_mean_token_sum,
    "seq-mean-token-mean": seq_mean_token_mean,
    "dr_grpo": dr_grpo_sum,
}
"""Published name -> ``(loss (rows, tokens), mask (rows, tokens), *, max_tokens) -> scalar``, for one micro-batch."""


def micro_slices(rows: int, micro_batch_rows: int | Sequence[int]) -> list[slice]:
    """Consecutive micro-batches of the given size (the last may be smaller) or of the given sizes."""
    if isinstance(micro_batch_rows, int):
        if micro_batch_rows < 1:
            raise ValueError(f"micro_batch_rows = {micro_batch_rows} cuts no micro-batch; use at least 1")
        return [slice(start, min(start + micro_batch_rows, rows)) for start in range(0, rows, micro_batch_rows)]
    if sum(micro_batch_rows) != rows:
        raise ValueError(f"micro_batch_rows = {list(micro_batch_rows)} does not add up to {rows} rows; correct it")
    ends = [sum(micro_batch_rows[: i + 1]) for i in range(len(micro_batch_rows))]
    return [slice(end - size, end) for size, end in zip(micro_batch_rows, ends, strict=True)]


def accumulation_scales(micro_batch_rows: Sequence[int], scaling: Literal["by_rows", "equal"]) -> list[float]:
    """What the published code multiplies micro-batch losses by before it adds their gradients.

    ``by_rows``: rows / all rows; ``equal``: 1 / number of micro-batches. Neither makes the result independent of
    the cut, because the losses are already divided inside each micro-batch.
    """
    if scaling == "by_rows":
        return [rows / sum(micro_batch_rows) for rows in micro_batch_rows]
    if scaling == "equal":
        return [1 / len(micro_batch_rows)] * len(micro_batch_rows)
    raise ValueError(f"scaling = {scaling!r} is not known; use by_rows or equal")


def global_token_mean(nll: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The SFT objective: sum of NLL over the number of targets of the whole optimizer window.

    Args:
        nll: (rows, tokens), nats.
        mask: (rows, tokens) bool, the targets.
    """
    return masked_mean(nll, mask)


def micro_means(
    nll: torch.Tensor, mask: torch.Tensor, micro_batch_rows: int | Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token mean and target count of each micro-batch, (micro_batches,) each; arguments as the others here."""
    slices = micro_slices(nll.shape[0], micro_batch_rows)
    if not slices:
        return nll.sum()[None], torch.zeros(1, dtype=torch.int64, device=mask.device)
    means = torch.stack([masked_mean(nll[part], mask[part]) for part in slices])
    return means, torch.stack([mask[part].bool().sum() for part in slices])


def mean_of_micro_means(nll: torch.Tensor, mask: torch.Tensor, micro_batch_rows: int | Sequence[int]) -> torch.Tensor:
    """A fault, for comparison: the average of micro-batch token means (arXiv 2604.23747).

    Tokens of a micro-batch with few targets weigh too much. Arguments as :func:`global_token_mean`, and the rows
    of a micro-batch (or a list of them).
    """
    return micro_means(nll, mask, micro_batch_rows)[0].mean()


def summed_micro_means(nll: torch.Tensor, mask: torch.Tensor, micro_batch_rows: int | Sequence[int]) -> torch.Tensor:
    """A second fault, for comparison: micro-batch means are back-propagated at full weight.

    This is the sum that the gradient belongs to: larger than :func:`mean_of_micro_means` by the number of
    micro-batches, although the trainer that does it reports the mean.
    """
    return micro_means(nll, mask, micro_batch_rows)[0].sum()


def sequence_mean(nll: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over rows of the row's token mean, for comparison: tokens of short rows weigh more."""
    return seq_mean_token_mean(nll, mask)
