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

import re
from pathlib import Path
from typing import Any

from prefix_rft_lab.core.config import ConfigError

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

THINK = "<think>"
_SPECIAL = re.compile(r"<\|[^|<>]+\|>")
_MARK = "q7Zx"
"""Content that no template writes by itself."""


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


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's end token, and the one that closes an assistant's turn in its template."""
    ids = [int(tokenizer.eos_token_id)]
    messages = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    after = tokenizer(written.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    # Not every special token stands among the named ones (all_special_ids): Llama's <|eot_id|> does not.
    added = tokenizer.added_tokens_decoder.get(after[0]) if after else None
    if added is not None and added.special and after[0] not in ids:
        ids.append(int(after[0]))
    return tuple(ids)


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
