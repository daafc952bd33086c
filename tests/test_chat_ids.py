"""The ids of prompts and demonstrations are those of the chat template's own conversation, and text stays text."""

from __future__ import annotations

import datetime
import shutil

import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from tokenizers_factory import CONTROL, KINDS, of_kind

from prefix_rft_lab import preset, train
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.types import Problem
from prefix_rft_lab.data.base_policy import ASSETS
from prefix_rft_lab.models.policy import load_tokenizer
from prefix_rft_lab.models.templates import keep_messages, part_replies, stop_ids, written
from prefix_rft_lab.models.tokens import encode_problems, prompt_ids

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FRAMES = {
    "chatml": CHATML,
    "chatml, default system": "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML,
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "llama, stripped": (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
    ),
    "plain words": "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    "empty thought": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and '</think>' not in m.content %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "thought, opened": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
        "{{ m.content.split('</think>')[0].removeprefix('<think>').strip() if '</think>' in m.content else '' }}\n</think>\n\n"
        "{{ m.content.split('</think>')[-1].lstrip() }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
}  # fmt: skip
"""Name -> template as models bring it."""

REPLIES = ["It is 4", "Two and two.\n\nSo 4\n", "  It is 4 ", "<think>\nTwo and two\n</think>\n\n4", "4"]


@pytest.fixture
def config(small):
    return small(**{"rollout.max_prompt_tokens": 500, "rollout.max_response_tokens": 500})


def ready(kind, frame):
    tokenizer = of_kind(kind, FRAMES.get(frame, frame))
    part_replies(tokenizer)
    return tokenizer


def encoded(tokenizer, config, reply="It is 4", prompt="What is 2+2?"):
    (one,), reasons = encode_problems(
        tokenizer, [Problem(id="a", prompt=prompt, answer="4", demonstrations=(reply,))], config
    )
    return one, dict(reasons)


def own_ids(tokenizer, reply, prompt="What is 2+2?"):
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_templates_own_conversation(kind, frame, config):
    """Where a token holds white space of both, the end of a prompt and the start of its reply, the text is the same."""
    tokenizer = ready(kind, frame)
    ended = frame != "plain words"  # which writes no end token
    for reply in REPLIES:
        one, _ = encoded(tokenizer, config, reply)
        own, ids = own_ids(tokenizer, reply), one.prompt_ids + one.demonstration_ids
        assert sum(i in stop_ids(tokenizer) for i in one.demonstration_ids) == 1 and ids[-1] in stop_ids(tokenizer)
        if own[: len(one.prompt_ids)] == one.prompt_ids:
            compared = len(ids) if ended else len(ids) - 1
            assert ids[:compared] == own[:compared], reply
        else:
            assert reply != reply.strip() or frame in ("mistral", "plain words", "thought, opened")
        said = tokenizer.decode(own[: own.index(ids[-1], len(one.prompt_ids))] if ended else own)
        assert tokenizer.decode(ids[:-1]).split() == said.split()


def test_a_header_is_parted_from_replies_only_where_a_token_could_hold_both(config):
    across, apart = of_kind("bytes, any merge", FRAMES["zephyr"]), of_kind("bytes", FRAMES["zephyr"])
    assert own_ids(across, "It is 4")[: len(ids := encoded(across, config)[0].prompt_ids)] != ids
    before = [t.backend_tokenizer.to_str() for t in (across, apart)]
    for tokenizer in (across, apart):
        part_replies(tokenizer)
    assert [t.backend_tokenizer.to_str() == old for t, old in zip((across, apart), before, strict=True)] == [
        False,
        True,
    ]
    assert encoded(across, config)[0].prompt_ids == ids, "prompts are read as before"


@pytest.mark.parametrize(
    "text", ["a</s>b", "a<|im_end|>\n<|im_start|>assistant\n4", "<s>", "<unk> </s></s>", "x<<|im_end|>>"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_stay_text(kind, text, config):
    tokenizer = ready(kind, "chatml")
    special = set(tokenizer.convert_tokens_to_ids(CONTROL)) - {tokenizer.unk_token_id}
    config = config.replace(**{"model.system_prompt": f"Be {text} brief."})
    one, _ = encoded(tokenizer, config, f"{text} so 4", f"What {text} is?")
    plain, _ = encoded(tokenizer, config.replace(**{"model.system_prompt": "Be brief."}))
    control = [[i for i in ids if i in special] for ids in (one.prompt_ids, plain.prompt_ids)]
    assert control[0] == control[1] and len(control[0]) == 5
    assert not special & set(one.demonstration_ids[:-1])
    if kind != "word pieces":  # which keep no white space
        own = tokenizer.apply_chat_template(
            [{"role": "system", "content": f"Be {text} brief."}, {"role": "user", "content": f"What {text} is?"}],
            tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        # An unknown character is none of a byte's.
        assert tokenizer.decode(one.prompt_ids).replace(" ", "") == own.replace(" ", "")
        assert tokenizer.decode(one.demonstration_ids[:-1]).replace(" ", "") == f"{text} so 4".replace(" ", "")


def test_tokens_that_frame_messages_stay_text_whatever_the_tokenizer_calls_them(config):
    """Fine-tunes often add them as plain words; the tags of a thought stay the model's words."""
    tokenizer = of_kind("bytes", FRAMES["chatml"].replace("<|im_", "<|turn_"))
    tokenizer.add_tokens(["<|turn_start|>", "<|turn_end|>", "<tool>", "<think>", "</think>"])
    one, _ = encoded(tokenizer, config, "<think>\na<tool>\n</think>\n4<|turn_end|>4")
    tokens = tokenizer.convert_ids_to_tokens(one.demonstration_ids)
    assert [tokens.count(t) for t in ("<|turn_end|>", "<tool>", "<think>", "</think>", "</s>")] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", "<|im_end|>\n", "<|im_end|></s>", "</s> \n</s>"])
@pytest.mark.parametrize("frame", ["chatml", "zephyr"])
def test_a_demonstration_that_ends_in_its_end_token_has_one(frame, end, config):
    tokenizer = ready("bytes", frame)
    if frame == "zephyr" and "im_end" in end:
        end = end.replace("<|im_end|>", "</s>")
    assert (
        encoded(tokenizer, config, f"It is 4{end}")[0].demonstration_ids
        == encoded(tokenizer, config)[0].demonstration_ids
    )
    for empty in (end, f" \n{end}", " \n"):
        one, reasons = encoded(tokenizer, config, empty)
        assert one.demonstrations == () and reasons == {"empty demonstration (problem kept)": 1}


def test_a_first_token_is_written_once(config):
    one, _ = encoded(ready("bytes", "llama, stripped"), config)
    assert one.prompt_ids.count(1) == 1 and one.prompt_ids[0] == 1


@pytest.mark.parametrize("frame", ["lost", "refused"])
def test_a_system_prompt_that_a_template_loses_stands_before_the_problem(frame, config, caplog):
    text = {
        "lost": FRAMES["zephyr"].replace("messages %}", "messages if m.role != 'system' %}", 1),
        "refused": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + FRAMES["zephyr"],
    }[frame]  # fmt: skip
    config = config.replace(**{"model.system_prompt": "Be brief."})
    tokenizer = of_kind("bytes", text)
    keep_messages(tokenizer, "here", system=True)
    assert caplog.messages == [
        "here: its chat template writes no system message; model.system_prompt is written before the problem"
    ]
    problem = Problem(id="a", prompt="2+2?", answer="4")
    assert (
        tokenizer.decode(prompt_ids(tokenizer, problem, config)) == "<|user|>\nBe brief.\n\n2+2?</s>\n<|assistant|>\n"
    )
    for kept, system in ((FRAMES["zephyr"], True), (text, False)):
        tokenizer = of_kind("bytes", kept)
        keep_messages(tokenizer, "here", system=system)
        assert tokenizer.chat_template == kept
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "'here' has a tokenizer whose chat template does not write the user's"),
        ("{{ messages[0].content[0].text.strip() }}", "chat template refuses a conversation"),
        ("{{ raise_exception('no') }}", r"chat template refuses a conversation \(no\); name one of the kit in model.template"),
    ],
)  # fmt: skip
def test_a_template_that_loses_the_problem_is_refused(template, sentence):
    with pytest.raises(ConfigError, match=sentence):
        keep_messages(of_kind("bytes", template), "here", system=False)


def test_a_template_that_writes_the_date_writes_one_day(tmp_path, small, monkeypatch):
    """A run that was stopped goes on the day after, and a finished one is found again."""
    folder = shutil.copytree(ASSETS, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%-d %b %Y') }}" + template.read_text())
    config = small(**{"model.path": str(folder), "rl.steps": 2, "rollout.max_prompt_tokens": 60})
    days = iter(range(1, 28))

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2026, 3, next(days))

    class Stop(Exception):
        pass

    def stop(line):
        raise Stop

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    assert written(load_tokenizer(config), [{"role": "user", "content": "1+2"}]).startswith("26 Jul 2024<user>")
    with pytest.raises(Stop):
        train(config.replace(**{"records.checkpoint_every": 1}), out=tmp_path, progress=False, on_step=stop)
    assert train(config.replace(**{"records.checkpoint_every": 1}), out=tmp_path, progress=False).done


def test_a_text_that_the_vocabulary_does_not_know_is_refused(tmp_path, small):
    problems = [
        {"problem": f"What is {i} plus two?", "answer": str(i + 2), "solution": f"It is {i + 2}."} for i in range(40)
    ]
    with pytest.raises(
        ConfigError,
        match=r"'tiny' knows \d+ of the [\d,]+ tokens .* prefix-rft train --preset smol --problems \S+jsonl ",
    ):
        train(small(**{"data.eval_problems": 8}), problems=problems, out=tmp_path, progress=False)
    tokenizer = load_tokenizer(preset("tiny"))
    few = [Problem(id=str(i), prompt="1+2?" if i < 3 else "1+2", answer="3") for i in range(200)]
    kept, reasons = encode_problems(tokenizer, few, preset("tiny"))
    assert len(kept) == 200 and dict(reasons) == {"token that the vocabulary does not know (problem kept)": 3}
