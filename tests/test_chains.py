"""The embedded world: right answers, experts with their stated errors, splits that share nothing."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from prefix_rft_lab.config import preset
from prefix_rft_lab.rewards import Verifier, boxed_answer
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tasks.base_policy import EOS, build_tokenizer
from prefix_rft_lab.tokens import prompt_ids

STEP = re.compile(r"(\d+)([+\-*#])(\d+)=(\d+)")
OPERATIONS = re.compile(r"([+\-*#])(\d)")


def right(op, a, b):
    """The world's arithmetic, written a second time."""
    return {"+": a + b, "-": a - b, "*": a * b, "#": (a + b) * b}[op] % 19


def parse(prompt):
    assert re.fullmatch(r"\d+([+\-*#]\d)+", prompt)
    return int(re.match(r"\d+", prompt)[0]), [(op, int(b)) for op, b in OPERATIONS.findall(prompt)]


def check_demonstration(problem, text):
    """Wrong operations of a demonstration that shows its steps: each goes on from the line before it."""
    value, operations = parse(problem.prompt)
    *lines, box = text.split("\n")
    assert len(lines) == len(operations)
    wrong = 0
    for line, (op, operand) in zip(lines, operations, strict=True):
        if op == "#":
            named, addition, product = line.split(":")
            assert named == f"{value}#{operand}"
            a, plus, b, total = STEP.fullmatch(addition).groups()
            assert (int(a), plus, int(b)) == (value, "+", operand)
            assert int(total) == right("+", value, operand)
            left, times, factor, result = STEP.fullmatch(product).groups()
            assert (left, times, int(factor)) == (total, "*", operand)
        else:
            a, sign, b, result = STEP.fullmatch(line).groups()
            assert (int(a), sign, int(b)) == (value, op, operand)
        assert 0 <= int(result) < 19
        wrong += int(result) != right(op, value, operand)
        value = int(result)
    return wrong, value, int(boxed_answer(box))


def within_binomial(count, n, p):
    """Four standard deviations: a fixed seed passes or fails for good."""
    return abs(count - n * p) <= 4 * (n * p * (1 - p)) ** 0.5


def test_hand_computed_answers():
    # 7+3 = 10, 10#1 = 11*1 = 11, 11-9 = 2, 2*4 = 8
    assert chains.Chain(7, (("+", 3), ("#", 1), ("-", 9), ("*", 4))).answer == 8
    # 2-5 = -3 = 16; 16#9 = 25*9 = 6*9 = 54 = 16
    assert chains.Chain(2, (("-", 5), ("#", 9))).answer == 16
    assert str(chains.Chain(7, (("#", 3), ("*", 2)))) == "7#3*2"
    assert chains.Chain(7, (("#", 3), ("#", 2))).repeats_hash
    assert not chains.Chain(7, (("#", 3), ("*", 2), ("#", 2))).repeats_hash
    with pytest.raises(ValueError, match="operator = '/'"):
        chains.apply("/", 1, 2)


@pytest.mark.parametrize("split", chains.SPLITS)
def test_answers_by_independent_arithmetic(split):
    for problem in chains.problems(split, 200):
        value, operations = parse(problem.prompt)
        for op, operand in operations:
            value = right(op, value, operand)
        assert problem.answer == str(value)


def test_thorough_expert_is_right_in_every_line_and_verifies():
    problems = chains.problems("train", 300)
    for problem in problems:
        assert check_demonstration(problem, problem.demonstration) == (0, int(problem.answer), int(problem.answer))
    with Verifier() as verifier:
        assert set(verifier.score_all([p.demonstration for p in problems], [p.answer for p in problems])) == {1.0}


def test_terse_expert_shows_results_only():
    for problem in chains.problems("train", 200, expert="terse"):
        value, operations = parse(problem.prompt)
        *lines, box = problem.demonstration.split("\n")
        for line, (op, operand) in zip(lines, operations, strict=True):
            value = right(op, value, operand)
            assert line == f"={value}"
        assert box == f"\\boxed{{{problem.answer}}}"


def test_verbose_expert_says_the_same_in_more_words():
    short, long = chains.problems("train", 200), chains.problems("train", 200, expert="verbose")
    for a, b in zip(short, long, strict=True):
        assert (a.prompt, a.answer) == (b.prompt, b.answer)
        *lines, box = b.demonstration.split("\n")
        assert all(line.startswith("check ") for line in lines[1::2])
        assert all(line.startswith(("so ", "then ", "now ")) for line in lines[::2])
        without_words = [line.split(" ", 1)[1] for line in lines[::2]]
        assert "\n".join([*without_words, box]) == a.demonstration
        for line in lines[1::2]:
            a_, op, b_, result = STEP.fullmatch(line.removeprefix("check ")).groups()
            assert int(result) == right(op, int(a_), int(b_))


@pytest.mark.parametrize(("expert", "rate"), [("noisy10", 0.1), ("noisy30", 0.3)])
def test_noisy_experts_slip_at_their_rate(expert, rate):
    problems = chains.problems("train", 600, expert=expert)
    checked = [check_demonstration(p, p.demonstration) for p in problems]
    operations = sum(len(parse(p.prompt)[1]) for p in problems)
    assert within_binomial(sum(wrong for wrong, _, _ in checked), operations, rate)
    assert all(last == box for _, last, box in checked), "the answer follows from the last line"


def test_wrong_expert_has_right_lines_and_a_wrong_box():
    problems = chains.problems("train", 150, expert="wrong")
    for problem in problems:
        wrong, last, box = check_demonstration(problem, problem.demonstration)
        assert (wrong, last) == (0, int(problem.answer))
        assert box != int(problem.answer)
    with Verifier() as verifier:
        assert set(verifier.score_all([p.demonstration for p in problems], [p.answer for p in problems])) == {0.0}


def test_splits_and_corpus_share_no_problem():
    texts = {split: {p.prompt for p in chains.problems(split, 240)} for split in chains.SPLITS}
    texts["train of another seed"] = {p.prompt for p in chains.problems("train", 240, seed=1)}
    assert all(len(prompts) == 240 for prompts in texts.values())
    texts["corpus"] = {prompt for prompt, _ in islice(chains.corpus(0), 4000)}
    texts["primer"] = {prompt for prompt, _ in islice(chains.primer(0), 2000)}
    related = {"train": "train", "train of another seed": "train", "corpus": "corpus", "primer": "corpus"}
    names = list(texts)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if related.get(a, a) != related.get(b, b):
                assert not texts[a] & texts[b], (a, b)
    assert texts["train"] != texts["train of another seed"]


@pytest.mark.parametrize("split", chains.SPLITS)
def test_a_longer_list_starts_with_the_shorter_one(split):
    assert chains.problems(split, 50)[:10] == chains.problems(split, 10)
    assert chains.problems(split, 0) == []


def test_an_expert_changes_demonstrations_only():
    a, b = chains.problems("train", 50), chains.problems("train", 50, expert="noisy30")
    assert [(p.id, p.prompt, p.answer) for p in a] == [(p.id, p.prompt, p.answer) for p in b]
    assert [p.demonstration for p in a] != [p.demonstration for p in b]


def test_levels_are_what_they_say():
    lengths = {"easy": {2}, "medium": {3}, "hard": {4}, "longer": {5}, "repeated": {3, 4}}
    for split in chains.SPLITS:
        problems = chains.problems(split, 120)
        levels = ("longer", "repeated") if split == "ood" else ("easy", "medium", "hard")
        for problem in problems:
            assert len(parse(problem.prompt)[1]) in lengths[problem.level]
            assert bool(re.search(r"#\d#", problem.prompt)) == (problem.level == "repeated")
        assert {level: sum(p.level == level for p in problems) for level in levels} == dict.fromkeys(
            levels, 120 // len(levels)
        )
        assert [p.id for p in problems[:2]] == [f"{split}-0", f"{split}-1"]


def test_corpus_teaches_skills_with_slips_and_nothing_about_hash():
    direct = hashes = lucky = others = slips = 0
    documents = list(islice(chains.corpus(0), 3000))
    for _, response in documents:
        *lines, box = response.split("\n")
        assert ":" not in response
        assert boxed_answer(box) is not None
        direct += not lines
        for line in lines:
            a, op, b, result = STEP.fullmatch(line.split(" ")[-1]).groups()
            hit = int(result) == right(op, int(a), int(b))
            if op == "#":
                hashes, lucky = hashes + 1, lucky + hit
            else:
                others, slips = others + 1, slips + (not hit)
    assert within_binomial(direct, len(documents), chains.DIRECT)
    assert within_binomial(lucky, hashes, 1 / 19)
    assert within_binomial(slips, others, chains.SLIP * 18 / 19)
    for prompt, response in islice(chains.primer(0), 500):
        assert "#" not in prompt
        assert all(int(r) == right(op, int(a), int(b)) for a, op, b, r in STEP.findall(response))


def test_tokenizer_round_trip_is_exact():
    tokenizer = build_tokenizer()
    texts = [p.demonstration for e in chains.EXPERTS for p in chains.problems("train", 60, expert=e)]
    texts += [p.prompt for p in chains.problems("ood", 60)]
    texts += [response for _, response in islice(chains.corpus(1), 200)]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
        assert "".join(tokenizer.decode([i]) for i in ids) == text
    assert len(tokenizer("18*9=10", add_special_tokens=False)["input_ids"]) == 5, "a number is one token"
    assert tokenizer(EOS, add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_chat_template_frames_the_problem():
    tokenizer, problem = build_tokenizer(), chains.problems("train", 1)[0]
    ids = prompt_ids(tokenizer, problem, preset("tiny"))
    assert tokenizer.decode(ids) == f"<user>{problem.prompt}<assistant>"
    assert ids[0] == tokenizer.convert_tokens_to_ids("<user>")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<assistant>")
    assert tokenizer.unk_token_id not in ids


def test_unknown_split_and_expert_name_the_known_ones():
    with pytest.raises(ValueError, match=r"split = 'dev' is not known; use one of train, validation, test, ood"):
        chains.problems("dev", 1)
    with pytest.raises(ValueError, match=r"data.expert = 'sloppy' is not known; use one of thorough, terse"):
        chains.problems("train", 1, expert="sloppy")
