r"""Chat templates of the kit, for tokenizers that bring none or another one, and what a template says of its ends.

A template is Jinja text that frames messages (``assets/templates``). :func:`use_template` puts it into the tokenizer once,
when the policy is loaded, so that prompts, evaluations and the saved model all speak through the same one. Differences
from what the models' own tokenizers ship, for which the kit's templates stand in:

* ``qwen2.5-math``: without the part on tools; the system message is the same where none is given.
* ``llama-3.1``: without the dates that the original writes into every system message, and so without a system message
  where none is given; a prompt must not depend on the day.
* ``smollm2``: no system message where none is given (the original introduces its makers).
* ``none``: plain text for base models: the messages between empty lines, then a line break. A first token (BOS) is
  written where the tokenizer writes one by itself.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import pre_tokenizers

from prefix_rft_lab.core.config import ConfigError

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "templates"

SYSTEM_PROMPTS = {
    "luffy": (
        "Solve the problem in two parts, a thought and a solution.\n\n"
        "Write the thought first, as <think>\\n{thought} </think>\\n: examine the problem, explore ways to solve it, check "
        "each step, and correct what turns out to be wrong.\n\n"
        "After </think>\\n write the solution: the finished reasoning, short and complete, as it follows from the thought, "
        "with the final answer in \\boxed{}."
    ),
}
"""Name -> system message. ``luffy`` asks for the format that LUFFY (arXiv 2504.14945) and Prefix-RFT train on, R1's thought
between ``<think>`` tags and then the solution, in the kit's own words; give another text to ask in others."""

THINK, THOUGHT = "<think>", "</think>"
_SPECIAL = re.compile(r"<\|[^|<>]+\|>")
_MARK = "q7Zx"
"""Content that no template writes by itself."""

DATE = datetime(2024, 7, 26)
"""The day that every prompt speaks of whose template writes the date, Llama 3.1's own where it is told none: the same run on
another day is the same run."""

_SYSTEM_IN_USER_TURN = (
    "{% if messages[0]['role'] == 'system' %}{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' "
    "+ messages[1]['content']}] + messages[2:] %}{% endif %}"
)


def written(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the tokenizer's template writes it; without a reply it ends where the assistant starts to speak.

    Raises:
        ConfigError: the template refuses it.
    """
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=messages[-1]["role"] != "assistant",
            strftime_now=DATE.strftime,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer's chat template refuses a conversation ({error}); name one of the kit in model.template ('none': "
            "plain text)"
        ) from None


def keep_messages(tokenizer: Any, where: str, *, system: bool) -> None:
    """Refuse a template that loses the problem; let one that loses or refuses a system message write it before the problem.

    Raises:
        ConfigError: the user's message is not in what the template writes. ``where`` names the tokenizer.
    """
    user = {"role": "user", "content": f"{_MARK}u"}
    if user["content"] not in written(tokenizer, [user]):
        raise ConfigError(
            f"model.path = {where!r} has a tokenizer whose chat template does not write the user's message; name one of the "
            "kit in model.template ('none': plain text)"
        )
    if "strftime_now" in tokenizer.get_chat_template():
        log.warning("%s: its chat template writes the date; every prompt speaks of %s", where, f"{DATE:%d %B %Y}")
    if not system:
        return
    given = {"role": "system", "content": f"{_MARK}s"}
    with contextlib.suppress(ConfigError):
        if all(message["content"] in written(tokenizer, [given, user]) for message in (given, user)):
            return
    tokenizer.chat_template = _SYSTEM_IN_USER_TURN + tokenizer.get_chat_template()
    log.warning(
        "%s: its chat template writes no system message; model.system_prompt is written before the problem", where
    )


def use_template(tokenizer: Any, name: str, where: str) -> None:
    """Let a tokenizer speak through a template of the kit from now on; ``auto`` keeps its own.

    Raises:
        ConfigError: a special token of the template is no single id of the vocabulary. ``where`` names the tokenizer.
    """
    if name == "auto":
        return
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    for token in dict.fromkeys(_SPECIAL.findall(text)):
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ConfigError(
                f"model.template = {name!r} needs {token} as one token, and the vocabulary of model.path = {where!r} splits "
                f"it into {len(ids)}; use 'auto', or 'none' for a base model"
            )
    if name == "none" and tokenizer.bos_token_id in tokenizer("")["input_ids"]:
        text = "{{ bos_token }}" + text
    tokenizer.chat_template = text


def part_replies(tokenizer: Any) -> None:
    """Let no token hold the end of the assistant's header and the start of its reply.

    A reply is sampled after the ids of the prompt. A vocabulary with tokens across that place, as one without a boundary at
    line breaks has, would read the conversation as other ids than it was written in.
    """
    prompt = written(tokenizer, [{"role": "user", "content": _MARK}])
    header = prompt.rpartition(_MARK)[2]
    for token in tokenizer.added_tokens_decoder.values():
        header = header.rpartition(token.content)[2] if token.content.strip() else header
    if not header.strip():
        return
    last = tokenizer.convert_ids_to_tokens(tokenizer(prompt, add_special_tokens=False)["input_ids"])[-1][-1]
    if re.search(rf"{re.escape(last)}[A-Za-z0-9]", "\0".join(tokenizer.get_vocab())):
        words = tokenizer.backend_tokenizer
        parts = [pre_tokenizers.Split(header.lstrip(), "merged_with_previous")]
        words.pre_tokenizer = pre_tokenizers.Sequence(parts + [words.pre_tokenizer] * (words.pre_tokenizer is not None))


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's end token, and the one that closes an assistant's turn in its template."""
    return tuple(dict.fromkeys((int(tokenizer.eos_token_id), closing(tokenizer)[1])))


def closing(tokenizer: Any) -> tuple[str, int]:
    """What the template writes after an assistant's words, from the id that ends the turn on, and this id; where it writes no
    such id, all that it writes, and the tokenizer's end token."""
    messages = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
    after = written(tokenizer, messages).rpartition(_MARK)[2]
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
    # Not every special token is among the named ones (all_special_ids): Llama's <|eot_id|> does not.
    added = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    if added is not None and added.special:
        return after.lstrip(), int(ids[0])
    return after, int(tokenizer.eos_token_id)


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """What a text may not turn into a control token: the special tokens, and others by which the template frames messages.

    The tags of a thought are words of the model, whatever its tokenizer calls them.
    """
    chat = written(tokenizer, [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}])
    added = tokenizer.added_tokens_decoder.values()
    found = {t.content for t in added if t.special or (t.content in chat and t.content.strip())}
    found = (found | set(tokenizer.all_special_tokens)) - {THINK, THOUGHT}
    return re.compile("|".join(re.escape(text) for text in sorted(found, key=len, reverse=True)))


def opened_thought(prompt: str) -> str | None:
    """What the template has opened of a thought at the end of a prompt: ``<think>`` and the space after it; None if nothing."""
    end = prompt.rstrip()
    return prompt[len(end) - len(THINK) :] if end.endswith(THINK) else None


def without_opening(demonstration: str, opened: str | None) -> str:
    """A demonstration as it goes on after the prompt: a thought that the template has opened is not opened again."""
    text = demonstration.lstrip()
    if opened is None or not text.startswith(THINK):
        return demonstration
    return text[len(THINK) :].removeprefix(opened[len(THINK) :])


def system_message(name: str | None) -> str | None:
    """The text of ``model.system_prompt``: that of a name of :data:`SYSTEM_PROMPTS`, or the value itself."""
    return None if name is None else SYSTEM_PROMPTS.get(name, name)
