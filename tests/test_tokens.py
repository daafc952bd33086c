"""Text to ids and back: prefixes are slices of ids, padding goes by length, nothing is cut in silence."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefix_rft_lab import prefixes
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import check_tokenizer, encode_problems, pad_id, pad_rows, prompt_ids, step_ends
from prefix_rft_lab.types import EncodedProblem, Problem, Row, TokenKind

DEMONSTRATION = (
    "The total is 12+30 = 42 😀, therefore\n\n\nthe answer is 42.\n\n\nSo the total number is ∞\n\\boxed{42}"
)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def bpe(*, eos="<eos>", template=TEMPLATE, pad=None):
    """A byte-level BPE trained on a few sentences, without a pad token unless asked for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["The the therefore total answer number is\n\n\n", "So\n\n\n"] * 50, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False
    )
    fast.chat_template = template
    return fast


@pytest.fixture(scope="module")
def tokenizer():
    return bpe()


@pytest.fixture
def config(small):
    return small(**{"rollout.max_prompt_tokens": 100, "rollout.max_response_tokens": 100})


def problem(demonstration=DEMONSTRATION, prompt="12+30", **changes):
    demonstrations = () if demonstration is None else (demonstration,)
    return Problem(**{"id": "a", "prompt": prompt, "answer": "42", "demonstrations": demonstrations, **changes})


def encoded(prompt, index=0):
    return EncodedProblem(problem=problem(), index=index, prompt_ids=prompt)


def test_prefixes_are_slices_of_the_demonstrations_own_ids(tokenizer, config):
    (one,), _ = encode_problems(tokenizer, [problem()], config)
    whole = tokenizer(DEMONSTRATION, add_special_tokens=False)["input_ids"]
    assert one.demonstration_ids == [*whole, tokenizer.eos_token_id]
    # A cut inside a character, or between line ends that are one token at the end of a text: decoding and encoding
    # gives another number of tokens.
    again = [
        tokenizer(tokenizer.decode(whole[:n]), add_special_tokens=False)["input_ids"] for n in range(len(whole) + 1)
    ]
    drifting = [n for n, ids in enumerate(again) if len(ids) != n]
    assert len(drifting) >= 3
    lengths = set()
    for step in range(300):
        (row,) = prefixes.hybrid_rows(one, step, config.replace(**{"prefix.schedule": "uniform"}))[-1:]
        n = len(row.prefix_ids)
        assert row.prefix_ids == one.demonstration_ids[:n]
        assert n <= len(whole), "the end token is never given away"
        lengths.add(n)
        row.sampled_ids = [5, 6, tokenizer.eos_token_id]
        batch = pad_rows([row], pad_id(tokenizer))
        start = len(one.prompt_ids)
        assert batch.input_ids[0, start : start + n].tolist() == whole[:n]
    assert lengths & set(drifting), "such cuts were among those drawn"


def test_kinds_of_rows():
    p, prefix, sampled = TokenKind.PREFIX, TokenKind.CONTINUATION, TokenKind.ON_POLICY
    one = encoded([1, 2])
    plain = Row(problem=one, row=0, sampled_ids=[5, 9])
    hybrid = Row(problem=one, row=1, prefix_ids=[3, 4], sampled_ids=[6])
    demonstration = Row(problem=one, row=0, prefix_ids=[3, 4, 9], is_demonstration=True)
    assert (plain.kinds, plain.is_hybrid, plain.response_ids) == ([sampled, sampled], False, [5, 9])
    assert (hybrid.kinds, hybrid.is_hybrid, hybrid.response_ids) == ([p, p, prefix], True, [3, 4, 6])
    assert (demonstration.kinds, demonstration.is_hybrid) == ([p, p, p], False)
    assert Row(problem=one, row=0).kinds == []


@pytest.mark.parametrize("fill", [9, 0, 7])
def test_padding_goes_by_length_so_the_end_token_may_fill(fill):
    one, two = encoded([1, 2]), encoded([1, 2, 4])
    rows = [
        Row(problem=one, row=0, prefix_ids=[3], sampled_ids=[9]),
        Row(problem=two, row=0, sampled_ids=[5, 9, 6, 9]),  # an end token in the middle stays too
        Row(problem=one, row=1),
    ]
    batch = pad_rows(rows, fill)
    assert batch.input_ids.tolist() == [
        [1, 2, 3, 9, fill, fill, fill],
        [1, 2, 4, 5, 9, 6, 9],
        [1, 2, fill, fill, fill, fill, fill],
    ]
    assert batch.attention_mask.tolist() == [[1] * 4 + [0] * 3, [1] * 7, [1] * 2 + [0] * 5]
    assert batch.kinds.tolist() == [[0, 0, 1, 2, 0, 0, 0], [0, 0, 0, 3, 3, 3, 3], [0] * 7]
    assert batch.response_mask.sum(1).tolist() == [2, 4, 0]
    assert batch.input_ids.dtype == torch.int64


def test_no_rows():
    batch = pad_rows([], 0)
    assert batch.input_ids.shape == batch.kinds.shape == (0, 0)


def test_pad_falls_back_to_the_end_token(tokenizer):
    assert pad_id(tokenizer) == tokenizer.eos_token_id
    padded = bpe(pad="<pad>")
    assert pad_id(padded) == padded.convert_tokens_to_ids("<pad>") != padded.eos_token_id


def test_long_prompts_are_dropped_and_counted_never_cut(tokenizer, config):
    short, long = problem(), problem(prompt="the total " * 300, id="b")
    kept, reasons = encode_problems(tokenizer, [long, short, long, short], config)
    assert [p.problem.id for p in kept] == ["a", "a"]
    assert [p.index for p in kept] == [1, 3], "the index names the place in the source"
    assert dict(reasons) == {"prompt longer than rollout.max_prompt_tokens": 2}
    length = len(kept[0].prompt_ids)
    exact = config.replace(**{"rollout.max_prompt_tokens": length})
    assert len(encode_problems(tokenizer, [short], exact)[0]) == 1
    less = config.replace(**{"rollout.max_prompt_tokens": length - 1})
    assert encode_problems(tokenizer, [short], less)[0] == []


def test_demonstrations_empty_one_token_and_too_long(tokenizer, config):
    whole = len(tokenizer(DEMONSTRATION, add_special_tokens=False)["input_ids"])
    fits = config.replace(**{"rollout.max_response_tokens": whole + 1})
    given = [problem(""), problem("t"), problem(DEMONSTRATION), problem(DEMONSTRATION + "!"), problem(None)]
    kept, reasons = encode_problems(tokenizer, given, fits)
    lengths = [p.demonstration_ids and len(p.demonstration_ids) for p in kept]
    assert lengths == [None, 2, whole + 1, None, None]
    assert dict(reasons) == {
        "empty demonstration (problem kept)": 1,
        "demonstration longer than rollout.max_response_tokens (problem kept)": 1,
    }
    assert all(p.demonstration_ids[-1] == tokenizer.eos_token_id for p in kept if p.demonstration_ids)
    one_token = kept[1]
    for step in range(20):
        assert len(prefixes.hybrid_rows(one_token, step, fits)[-1].prefix_ids) <= 1
    assert [len(row.prefix_ids) for row in prefixes.hybrid_rows(kept[0], 0, fits)] == [0] * 4


def test_steps_end_with_their_lines_and_the_answer_is_none(tokenizer):
    def steps(text):
        """The steps as texts."""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = step_ends(tokenizer, ids)
        return [tokenizer.decode(ids[a:b]) for a, b in zip((0, *ends), ends, strict=False)]

    assert steps("first\nsecond\n\\boxed{1}") == ["first\n", "second\n"]
    assert steps("So\n\n\nthe answer\n\\boxed{1}") == ["So\n\n\n", "the answer\n"], "empty lines are no steps"
    assert steps("only \\boxed{1}") == []
    assert steps("a\n\\boxed{1}\n\n") == ["a\n"], "line breaks after the answer end no step"
    assert steps("") == []


def test_several_demonstrations_of_a_problem(tokenizer, config):
    several = problem(demonstrations=("one\n\\boxed{42}", "", "two\n\\boxed{42}"))
    (kept,), reasons = encode_problems(tokenizer, [several], config)
    assert [tokenizer.decode(d.ids[:-1]) for d in kept.demonstrations] == ["one\n\\boxed{42}", "two\n\\boxed{42}"]
    assert [tokenizer.decode(d.ids[: d.step_ends[0]]) for d in kept.demonstrations] == ["one\n", "two\n"]
    assert dict(reasons) == {"empty demonstration (problem kept)": 1}
    assert kept.demonstration_ids == kept.demonstrations[0].ids


def test_instruction_and_system_prompt(tokenizer, config):
    config = config.replace(**{"model.system_prompt": "Be brief.", "model.instruction": " Box it."})
    ids = prompt_ids(tokenizer, problem(), config)
    assert tokenizer.decode(ids) == "<system>Be brief.<user>12+30 Box it.<assistant>"


def test_tokenizers_that_cannot_serve_are_refused(tokenizer):
    check_tokenizer(tokenizer, "here")
    with pytest.raises(ConfigError, match=r"model.path = 'here' has a tokenizer without eos_token; set one"):
        check_tokenizer(bpe(eos=None), "here")
    with pytest.raises(ConfigError, match=r"model.path = 'here' has a tokenizer without chat_template; save one"):
        check_tokenizer(bpe(template=None), "here")


def test_rows_that_sample_never_see_the_demonstration(tiny, small):
    _, tokenizer = tiny
    kept, _ = encode_problems(tokenizer, chains.problems("train", 20), small())
    for one in kept:
        for row in prefixes.plain_rows(one, 0, small()):
            assert row.prefix_ids == []
        assert tokenizer.decode(one.prompt_ids) == f"<user>{one.problem.prompt}<assistant>"
