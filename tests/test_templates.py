"""Templates frame prompts, never cut or change what stands between: prefixes stay slices of ids under all of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers_factory import save_model, small

from prefix_rft_lab import prefixes, templates
from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.generation import Request, TransformersEngine
from prefix_rft_lab.policy import load_policy, load_tokenizer
from prefix_rft_lab.templates import SYSTEM_PROMPTS, stop_ids, use_template, without_opening
from prefix_rft_lab.tokens import check_tokenizer, encode_problems, pad_id, pad_rows, prompt_ids
from prefix_rft_lab.types import Problem

SMOLLM2 = os.environ.get("PREFIX_RFT_LAB_SMOLLM2")
"""Directory that scripts/fetch_smollm2.py wrote; what needs its tokenizer is skipped where there is none."""
DATA = os.environ.get("PREFIX_RFT_LAB_DATA")
TEXT = (
    "<think>\nOkay, so 12+30. Wait -- 😀 is that   right?\n\n\n\\[ 12 + 30 = 42. \\]\n\n</think>\n\nThe total is 42.\n\n"
    "$$\n\\boxed{42}\n$$\n"
)


def texts(family):
    """Demonstrations: a hand-made one with cuts inside characters and runs of line breaks, and R1's own where there are; of
    its own world for the shipped policy, which knows no other text."""
    if family == "tiny":
        return ["so 12+3=15\nthen 15-7=8\n\\boxed{8}"]
    found = [TEXT, TEXT.removeprefix("<think>\n").replace("\n\n</think>", "")]
    if DATA:
        with (Path(DATA) / "r1_openr1_sample.jsonl").open(encoding="utf-8") as lines:
            found += [json.loads(line)["solution"][:3000] for line, _ in zip(lines, range(6), strict=False)]
    return found


def tokenizer_of(family, template):
    if family == "smollm2":
        if SMOLLM2 is None:
            pytest.skip("PREFIX_RFT_LAB_SMOLLM2 names no directory")
        return load_tokenizer(preset("tiny", **{"model.path": SMOLLM2, "model.template": template}))
    if family == "tiny":
        return load_tokenizer(preset("tiny", **{"model.template": template}))
    tokenizer = small(family)
    use_template(tokenizer, template, family)
    return tokenizer


PAIRS = [
    ("qwen2", "qwen2.5-math"),
    ("qwen2", "smollm2"),
    ("qwen2", "none"),
    ("llama3", "llama-3.1"),
    ("llama3", "none"),
    ("smollm2", "smollm2"),
    ("smollm2", "qwen2.5-math"),
    ("smollm2", "auto"),
    ("smollm2", "none"),
    ("tiny", "auto"),
    ("tiny", "none"),
]


def problem(demonstration=TEXT, prompt="What is 12+30?", **changes):
    return Problem(**{"id": "a", "prompt": prompt, "answer": "42", "demonstrations": (demonstration,), **changes})


@pytest.mark.parametrize(("family", "template"), PAIRS)
def test_contexts_are_the_templates_ids_and_a_slice(family, template):
    """Over many draws: the context is the prompt's ids, then the demonstration's own; nothing is encoded a second time."""
    tokenizer = tokenizer_of(family, template)
    config = preset(
        "tiny",
        **{"prefix.schedule": "uniform", "rollout.max_prompt_tokens": 4000, "rollout.max_response_tokens": 8000},
    )
    draws = np.random.default_rng(0)
    drifting = 0
    prompt = "12+3-7" if family == "tiny" else "What is 12+30?"
    for text in texts(family):
        (one,), _ = encode_problems(tokenizer, [problem(text, prompt)], config)
        framed = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        assert one.prompt_ids == tokenizer(framed, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert one.demonstration_ids == [*whole, stop_ids(tokenizer)[-1]]
        for step in draws.integers(0, 10_000, 40):
            row = prefixes.hybrid_rows(one, int(step), config)[-1]
            n = len(row.prefix_ids)
            assert row.prefix_ids == whole[:n]
            row.sampled_ids = [tokenizer.eos_token_id]
            batch = pad_rows([row], pad_id(tokenizer))
            assert batch.input_ids[0].tolist() == [*one.prompt_ids, *whole[:n], tokenizer.eos_token_id]
            again = tokenizer(tokenizer.decode(whole[:n]), add_special_tokens=False)["input_ids"]
            drifting += again != whole[:n]
    if family in ("qwen2", "llama3", "smollm2"):
        assert drifting, "some of the cuts would not have survived decoding and encoding"


def text_of(family, template, **model):
    config = preset("tiny", **{f"model.{name}": value for name, value in model.items()})
    tokenizer = tokenizer_of(family, template)
    return tokenizer.decode(prompt_ids(tokenizer, problem(), config))


def test_what_the_templates_write():
    assert text_of("qwen2", "qwen2.5-math") == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nWhat is 12+30?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of("qwen2", "qwen2.5-math", system_prompt="Be brief.") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 12+30?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of("llama3", "llama-3.1", system_prompt="Be brief.", instruction=" Box it.") == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is 12+30? Box it.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert text_of("qwen2", "smollm2") == "<|im_start|>user\nWhat is 12+30?<|im_end|>\n<|im_start|>assistant\n"
    assert text_of("qwen2", "none", system_prompt="Be brief.") == "Be brief.\n\nWhat is 12+30?\n"
    assert text_of("llama3", "none") == "<|begin_of_text|>What is 12+30?\n", "its tokenizer writes a first token"


def test_the_thought_and_solution_prompt_has_a_name():
    written = text_of("qwen2", "qwen2.5-math", system_prompt="luffy")
    assert f"<|im_start|>system\n{SYSTEM_PROMPTS['luffy']}<|im_end|>" in written
    assert "<think>" in written and "\\boxed{}" in written


def test_smollm2_is_framed_as_its_own_template_does():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "12+30?"}]
    own, ours = tokenizer_of("smollm2", "auto"), tokenizer_of("smollm2", "smollm2")
    assert own.chat_template != ours.chat_template
    framed = [t.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] for t in (own, ours)]
    assert framed[0] == framed[1]


@pytest.mark.parametrize(
    ("family", "template", "ends"),
    [
        ("qwen2", "qwen2.5-math", ["<|endoftext|>", "<|im_end|>"]),
        ("qwen2", "none", ["<|endoftext|>"]),
        ("llama3", "llama-3.1", ["<|end_of_text|>", "<|eot_id|>"]),
        ("llama3", "none", ["<|end_of_text|>"]),
        ("smollm2", "auto", ["<|im_end|>"]),
        ("tiny", "auto", ["<eos>"]),
    ],
)
def test_responses_end_at_the_end_token_and_at_the_end_of_the_turn(family, template, ends):
    tokenizer = tokenizer_of(family, template)
    assert tokenizer.convert_ids_to_tokens(list(stop_ids(tokenizer))) == ends


def test_the_engine_stops_at_each_of_several_ends(tiny):
    model, tokenizer = tiny
    prompt = prompt_ids(tokenizer, problem(prompt="1+2="), preset("tiny"))
    requests = [Request(context_ids=prompt, max_new_tokens=40, key=key) for key in range(12)]
    free = TransformersEngine(model, eos_id=-1).generate(requests)
    two = {tokenizer.eos_token_id, int(np.bincount([t for c in free for t in c.token_ids]).argmax())}
    for whole, cut in zip(free, TransformersEngine(model, eos_id=sorted(two)).generate(requests), strict=True):
        first = next((n for n, token in enumerate(whole.token_ids, 1) if token in two), None)
        assert cut.token_ids == whole.token_ids[:first] and cut.truncated == (first is None)


OPENING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_a_thought_is_opened_once():
    config = preset("tiny", **{"rollout.max_prompt_tokens": 999, "rollout.max_response_tokens": 999})
    plain = tokenizer_of("qwen2", "smollm2")
    opening = small("qwen2")
    opening.chat_template = OPENING
    for tokenizer, text in (
        (plain, TEXT),
        (opening, TEXT),
        (opening, TEXT.removeprefix("<think>\n")),
        (plain, "6*7=42"),
    ):
        (one,), _ = encode_problems(tokenizer, [problem(text)], config)
        said = tokenizer.decode(one.prompt_ids + one.demonstration_ids)
        assert said.count("<think>") == (text != "6*7=42")
    (once,), _ = encode_problems(opening, [problem(TEXT)], config)
    rest = TEXT.removeprefix("<think>\n")
    assert once.demonstration_ids == [*opening(rest, add_special_tokens=False)["input_ids"], stop_ids(opening)[-1]]


@pytest.mark.parametrize(
    ("demonstration", "opened", "left"),
    [
        ("<think>\nSo", None, "<think>\nSo"),
        ("<think>\nSo", "<think>\n", "So"),
        ("<think>\n\nSo", "<think>\n", "\nSo"),
        ("\n<think>So", "<think>\n", "So"),
        ("<think>\nSo", "<think>", "\nSo"),
        ("So <think>", "<think>\n", "So <think>"),
    ],
)
def test_what_is_left_of_a_demonstration(demonstration, opened, left):
    assert without_opening(demonstration, opened) == left


def test_a_vocabulary_without_the_templates_tokens_is_refused():
    with pytest.raises(
        ConfigError, match=r"'llama-3.1' needs <\|begin_of_text\|> as one token, .* 'here' splits it into \d"
    ):
        use_template(small("qwen2"), "llama-3.1", "here")
    with pytest.raises(ConfigError, match=r"'qwen2.5-math' needs <\|im_start\|> as one token"):
        load_tokenizer(preset("tiny", **{"model.template": "qwen2.5-math"}))
    with pytest.raises(ConfigError, match=r"model.template = 'chatml' cannot be used: it should be 'auto'"):
        preset("tiny", **{"model.template": "chatml"})


def test_a_base_model_is_told_of_plain_text():
    with pytest.raises(ConfigError, match=r"without chat_template; save one .* model.template \('none': plain text"):
        check_tokenizer(small("llama3"), "here")


def test_templates_need_no_more_than_their_names_say():
    names = {path.stem for path in templates.FOLDER.glob("*.jinja")}
    known = preset("tiny").model.__class__.model_fields["template"].annotation.__args__
    assert names | {"auto"} == set(known)


def test_a_saved_policy_brings_template_and_ends(tmp_path):
    folder = save_model(tmp_path / "model", "qwen2")
    model, tokenizer = load_policy(preset("tiny", **{"model.path": str(folder), "model.template": "qwen2.5-math"}))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, own = load_policy(preset("tiny", **{"model.path": str(tmp_path / "saved")}))
    assert own.chat_template == tokenizer.chat_template
    assert again.generation_config.eos_token_id == list(stop_ids(tokenizer)) == list(stop_ids(own))
    ids = torch.tensor([prompt_ids(own, problem(), preset("tiny"))])
    assert torch.equal(model(ids).logits, again(ids).logits)
