"""Text to ids and rows to tensors. Prefixes are slices of token ids: never decoded and encoded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import Demonstration, EncodedProblem, Problem, Row, SequenceBatch, TokenKind
from prefix_rft_lab.models import templates


def check_tokenizer(tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer that cannot end a response or that cannot frame a chat.

    Raises:
        ConfigError: no end token, or no chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model.path = {where!r} has a tokenizer without eos_token; set one, responses could never end"
        )
    if not tokenizer.chat_template:
        raise ConfigError(
            f"model.path = {where!r} has a tokenizer without chat_template; save one with the tokenizer "
            "(tokenizer.chat_template = ...; tokenizer.save_pretrained(...)), or name one of the kit in model.template "
            "('none': plain text, for a base model)"
        )


def pad_id(tokenizer: Any) -> int:
    """The id that fills batches. Padding is masked by length, so the end token serves where there is no pad token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def prompt_ids(tokenizer: Any, problem: Problem, config: RunConfig) -> list[int]:
    """Ids of the chat up to the point where the assistant starts to speak."""
    return tokenizer(_prompt(tokenizer, problem, config), add_special_tokens=False)["input_ids"]


def _prompt(tokenizer: Any, problem: Problem, config: RunConfig) -> str:
    messages = [{"role": "user", "content": problem.prompt + config.model.instruction}]
    if (system := templates.system_message(config.model.system_prompt)) is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode_problems(
    tokenizer: Any, problems: Sequence[Problem], config: RunConfig
) -> tuple[list[EncodedProblem], Counter[str]]:
    """Encode problems, drop those that do not fit, and count what was dropped or cut by reason.

    A prompt longer than ``rollout.max_prompt_tokens`` drops its problem (cutting would lose the assistant
    header). A demonstration longer than ``rollout.max_response_tokens`` or empty drops the demonstration
    only: the problem stays, with its other demonstrations or with plain rows. A thought that the template opens with
    ``<think>`` is not opened again by the demonstration.
    """
    kept: list[EncodedProblem] = []
    reasons: Counter[str] = Counter()
    breaks: dict[int, bool] = {}
    for index, problem in enumerate(problems):
        prompt = _prompt(tokenizer, problem, config)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if len(ids) > config.rollout.max_prompt_tokens:
            reasons["prompt longer than rollout.max_prompt_tokens"] += 1
            continue
        demonstrations = []
        for text in problem.demonstrations:
            text = templates.without_opening(text, templates.opened_thought(prompt))
            demonstration = encode_demonstration(tokenizer, text, breaks)
            if len(demonstration.ids) == 1:
                reasons["empty demonstration (problem kept)"] += 1
            elif len(demonstration.ids) > config.rollout.max_response_tokens:
                reasons["demonstration longer than rollout.max_response_tokens (problem kept)"] += 1
            else:
                demonstrations.append(demonstration)
        kept.append(EncodedProblem(problem=problem, index=index, prompt_ids=ids, demonstrations=tuple(demonstrations)))
    return kept, reasons


def encode_demonstration(tokenizer: Any, text: str, breaks: dict[int, bool] | None = None) -> Demonstration:
    """Ids of a demonstration with its end token, and where its solution steps end; ``breaks`` as in :func:`step_ends`."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Demonstration(ids=[*ids, tokenizer.eos_token_id], step_ends=step_ends(tokenizer, ids, breaks))


def step_ends(tokenizer: Any, ids: Sequence[int], breaks: dict[int, bool] | None = None) -> tuple[int, ...]:
    """Number of tokens up to the end of each solution step of a demonstration.

    A step ends with the token that holds its line break; empty lines belong to the step before them. The last line,
    which gives the answer, is no step.

    Args:
        ids: the demonstration without its end token.
        breaks: token id -> whether it holds a line break, filled as needed; shared by many calls it saves decoding.
    """
    breaks = {} if breaks is None else breaks
    for token in set(ids) - breaks.keys():
        breaks[token] = "\n" in tokenizer.decode([token])
    ends = [n for n, token in enumerate(ids, 1) if breaks[token] and not (n < len(ids) and breaks[ids[n]])]
    while ends and not tokenizer.decode(list(ids[ends[-1] :])).strip():
        ends.pop()
    return tuple(ends)


def pad_rows(rows: Sequence[Row], fill: int, device: torch.device | str = "cpu") -> SequenceBatch:
    """Rows side by side, padded on the right; masks go by length, so ``fill`` may equal the end token."""
    sequences = [row.problem.prompt_ids + row.response_ids for row in rows]
    width = max(map(len, sequences), default=0)
    input_ids = torch.full((len(rows), width), fill, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    kinds = torch.full((len(rows), width), int(TokenKind.CONTEXT), dtype=torch.long)
    for i, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
        input_ids[i, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        attention_mask[i, : len(sequence)] = 1
        start = len(row.problem.prompt_ids)
        kinds[i, start : len(sequence)] = torch.tensor(row.kinds, dtype=torch.long)
    return SequenceBatch(
        input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), kinds=kinds.to(device)
    )
