"""Text to ids and rows to tensors. Prefixes are slices of token ids: never decoded and encoded again."""

from __future__ import annotations

import shlex
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
    chat = _Chat(tokenizer, config)
    return chat.ids(templates.written(tokenizer, chat.messages(problem.prompt)))


CUT = "\ufdd0"
"""Where a text is encoded in two parts: a noncharacter of Unicode, which no text may hold."""

UNKNOWN = 16
UNKNOWN_SHARE = 0.01
"""More unknown tokens than both of these (a number, and a share of all tokens) are another language than the policy's."""


class _Chat:
    """Problems and demonstrations as ids, which are those of the tokenizer's own chat template.

    A special token in a text stays text: it is encoded in two parts.
    """

    def __init__(self, tokenizer: Any, config: RunConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.closing, self.end = templates.closing(tokenizer)
        self.ends = tuple(tokenizer.convert_ids_to_tokens(list(templates.stop_ids(tokenizer))))
        self.special = templates.special_tokens(tokenizer)
        added = tokenizer.added_tokens_decoder.values()
        self.lead = next((token.content for token in added if token.special and not token.rstrip), "")
        self.breaks: dict[int, bool] = {}

    def messages(self, prompt: str) -> list[dict[str, str]]:
        messages = [{"role": "user", "content": self._text(prompt + self.config.model.instruction)}]
        if (system := templates.system_message(self.config.model.system_prompt)) is not None:
            messages.insert(0, {"role": "system", "content": self._text(system)})
        return messages

    def _text(self, text: str) -> str:
        return self.special.sub(lambda found: found[0][0] + CUT + found[0][1:], text.replace(CUT, ""))

    def ids(self, text: str) -> list[int]:
        """Ids of a text that comes first."""
        first, *others = text.split(CUT)
        ids = self.tokenizer(first, add_special_tokens=False)["input_ids"]
        return ids + [i for other in others for i in self._later(other)]

    def _later(self, text: str) -> list[int]:
        """Ids of a text that does not come first: some tokenizers write a space before one that does."""
        return self.tokenizer(self.lead + text, add_special_tokens=False)["input_ids"][bool(self.lead) :]

    def demonstration(self, problem: Problem, prompt: str, ids: list[int], text: str) -> Demonstration | None:
        """The ids that follow a prompt and its ids, with one end token; None if there is no text."""
        while (left := text.rstrip()).endswith(self.ends):
            text = left.removesuffix(next(end for end in self.ends if left.endswith(end)))
        text = self._text(text)
        if not text.strip():
            return None
        reply = self._reply(problem, prompt, text)
        whole = self.ids(prompt + reply)
        if whole[: len(ids)] == ids:
            own = whole[len(ids) :]
        else:  # the last token of the prompt would hold the first characters too
            own = [i for part in reply.split(CUT) for i in self._later(part)]
        return Demonstration(ids=[*own, self.end], step_ends=step_ends(self.tokenizer, own, self.breaks))

    def _reply(self, problem: Problem, prompt: str, text: str) -> str:
        """A demonstration as the template writes it after the prompt (some strip white space, or write an empty thought);
        as it is where the template leaves some of it out, as many do with a thought."""
        plain = templates.without_opening(text, templates.opened_thought(prompt))
        reply = {"role": "assistant", "content": text}
        chat = templates.written(self.tokenizer, [*self.messages(problem.prompt), reply])
        if not (chat.startswith(prompt) and chat.endswith(self.closing)):
            return plain
        framed = chat.removeprefix(prompt).removesuffix(self.closing)
        return framed if "".join(framed.split()).endswith("".join(plain.split())) else plain


def encode_problems(
    tokenizer: Any, problems: Sequence[Problem], config: RunConfig
) -> tuple[list[EncodedProblem], Counter[str]]:
    """Encode problems, drop those that do not fit, and count what was dropped or cut by reason.

    Ids are those of the tokenizer's chat template, special tokens in a text stay text, and a demonstration ends in one end
    token, that of the template. A prompt longer than ``rollout.max_prompt_tokens`` drops its problem (cutting would lose the
    assistant header). A demonstration longer than ``rollout.max_response_tokens`` or empty drops the demonstration
    only: the problem stays, with its other demonstrations or with plain rows. A thought that the template opens with
    ``<think>`` is not opened again by the demonstration.

    Raises:
        ConfigError: the template refuses a problem, or the vocabulary does not know the text.
    """
    kept: list[EncodedProblem] = []
    reasons: Counter[str] = Counter()
    chat = _Chat(tokenizer, config)
    # What the template itself writes does not count.
    framed = chat.ids(templates.written(tokenizer, chat.messages(""))).count(tokenizer.unk_token_id)
    tokens = unknown = 0
    for index, problem in enumerate(problems):
        prompt = templates.written(tokenizer, chat.messages(problem.prompt))
        ids = chat.ids(prompt)
        if len(ids) > config.rollout.max_prompt_tokens:
            reasons["prompt longer than rollout.max_prompt_tokens"] += 1
            continue
        demonstrations = []
        for text in problem.demonstrations:
            demonstration = chat.demonstration(problem, prompt, ids, text)
            if demonstration is None:
                reasons["empty demonstration (problem kept)"] += 1
            elif len(demonstration.ids) > config.rollout.max_response_tokens:
                reasons["demonstration longer than rollout.max_response_tokens (problem kept)"] += 1
            else:
                demonstrations.append(demonstration)
        kept.append(EncodedProblem(problem=problem, index=index, prompt_ids=ids, demonstrations=tuple(demonstrations)))
        unknown -= framed
        for some in (ids, *(demonstration.ids for demonstration in demonstrations)):
            tokens, unknown = tokens + len(some), unknown + some.count(tokenizer.unk_token_id)
    if unknown > UNKNOWN and unknown > UNKNOWN_SHARE * tokens:
        raise ConfigError(
            f"model.path = {config.model.path!r} knows {tokens - unknown:,} of the {tokens:,} tokens of data.problems = "
            f"{config.data.problems!r}, and the others would all be {tokenizer.unk_token}; use a model of such text: prefix-rft "
            f"train --preset smol --problems {shlex.quote(config.data.problems)} (without a network: --model DIR, as "
            "scripts/fetch_smollm2.py writes it)"
        )
    if unknown > 0:
        reasons["token that the vocabulary does not know (problem kept)"] = unknown
    return kept, reasons


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
