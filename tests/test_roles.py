"""Rows of the field's well-known sets, by their columns on the Hub, and of every shape that a cell has: invented texts."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from prefix_rft_lab.tasks.roles import Roles, Unusable, end_of, gold_of, text_of, turns

THOUGHT = "<think>\nPerhaps $\\boxed{7}$?\n</think>\n\nSo $\\boxed{12}$."
CHAT = [{"role": "user", "content": "5+7?"}, {"role": "assistant", "content": THOUGHT}]
GSM8K = "Add them: <<5+7=12>>12.\n#### 12"


def same(answer: str, gold: str) -> bool:
    return float(answer) == float(gold)


def read(row, **mapping):
    return Roles(mapping, same).read(row)


# Set -> a row, its problem, gold, demonstrations that may be used.
SETS = {
    "OpenR1-Math-220k": (
        {"problem": "5+7?", "solution": "12.", "answer": "12", "problem_type": "Algebra", "source": "mill", "uuid": "u",
         "is_reasoning_complete": [True, True], "generations": [THOUGHT, "no"], "correctness_math_verify": [True, False],
         "correctness_llama": None, "finish_reasons": None, "correctness_count": 1, "messages": CHAT},
        "5+7?", "12", [THOUGHT],
    ),
    "Openr1-Math-46k-8192": (
        {"data_source": "mill", "prompt": [{"role": "system", "content": "Think."}, CHAT[0]], "target": [CHAT[1]],
         "ability": "math", "reward_model": {"ground_truth": "12", "style": "rule"},
         "extra_info": {"index": 3, "split": "default"}},
        "5+7?", "12", [THOUGHT],
    ),
    "DAPO-Math-17k": (
        {"data_source": "mill", "prompt": [CHAT[0]], "ability": "MATH", "extra_info": {"index": "9a-b"},
         "reward_model": {"ground_truth": "12", "style": "rule-lighteval/MATH_v2"}},
        "5+7?", "12", [],
    ),
    "DAPO-Math-17k-Processed": (
        {"prompt": "5+7?", "solution": "12", "data_source": "mill", "source_prompt": [CHAT[0]], "ability": "MATH",
         "reward_model": {"ground_truth": "12", "style": "rule"}, "extra_info": {"index": "9a-b"}},
        "5+7?", "12", [],
    ),
    "DeepScaleR": ({"problem": "5+7?", "answer": "12", "solution": "Add: $\\boxed{12}$."}, "5+7?", "12", ["Add: $\\boxed{12}$."]),
    "MetaMathQA": (
        {"type": "GSM_Rephrased", "query": "What is 5+7?", "original_question": "5+7?",
         "response": "Add.\n#### 12\nThe answer is: 12"},
        "What is 5+7?", "12", ["Add.\n#### 12\nThe answer is: 12"],
    ),
    "NuminaMath-CoT": (
        {"source": "mill", "problem": "5+7?", "solution": "It is $\\boxed{12}$.",
         "messages": [CHAT[0], {"role": "assistant", "content": "It is $\\boxed{12}$."}]},
        "5+7?", "12", ["It is $\\boxed{12}$."],
    ),
    "Big-Math": ({"problem": "5+7?", "answer": "12", "source": "mill", "domain": ["Algebra"], "llama8b_solve_rate": 0.3},
                 "5+7?", "12", []),
    "s1K": (
        {"solution": "12", "question": "5+7?", "cot_type": "math", "source_type": "mill", "metadata": "{'a': 1}", "cot": None,
         "thinking_trajectories": ["Five and seven."], "attempt": "So 12."},
        "5+7?", "12", ["<think>\nFive and seven.\n</think>\n\nSo 12."],
    ),
    "s1K-1.1": (
        {"solution": "12", "question": "5+7?", "deepseek_thinking_trajectory": "Hm.", "deepseek_attempt": "$\\boxed{11}$",
         "deepseek_grade": "No"},
        "5+7?", "12", [],
    ),
    "LIMO": ({"question": "5+7?", "solution": "Add.\n\n**Final Answer**\n\\boxed{12}", "answer": "12"},
             "5+7?", "12", ["Add.\n\n**Final Answer**\n\\boxed{12}"]),
    "OpenThoughts": (
        {"system": "Think.", "conversations": [{"from": "user", "value": "5+7?"}, {"from": "assistant", "value": THOUGHT}]},
        "5+7?", "12", [THOUGHT],
    ),
    "OpenThoughts metadata": (
        {"problem": "5+7?", "deepseek_reasoning": "Hm.", "deepseek_solution": "So $\\boxed{12}$.",
         "ground_truth_solution": "$\\boxed{12}$", "domain": "math", "source": "mill", "test_cases": None},
        "5+7?", "12", ["<think>\nHm.\n</think>\n\nSo $\\boxed{12}$."],
    ),
    "GSM8K": ({"question": "5+7?", "answer": GSM8K}, "5+7?", "12", [GSM8K]),
    "GSM8K by verl": (
        {"data_source": "openai/gsm8k", "prompt": [CHAT[0]], "reward_model": {"style": "rule", "ground_truth": "12"},
         "extra_info": {"split": "train", "index": 0, "answer": GSM8K, "question": "5+7?"}},
        "5+7?", "12", [GSM8K],
    ),
    "MATH": ({"problem": "5+7?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{12}$."},
             "5+7?", "12", ["It is $\\boxed{12}$."]),
    "MATH-500": ({"problem": "5+7?", "solution": "It is $\\boxed{12}$.", "answer": "12", "subject": "Algebra", "level": 2,
                  "unique_id": "test/1.json"}, "5+7?", "12", ["It is $\\boxed{12}$."]),
    "AIME 2024": ({"ID": "2024-I-1", "Problem": "5+7?", "Solution": "It is 012.", "Answer": 12}, "5+7?", "12", ["It is 012."]),
    "MMLU": ({"question": "5+7?", "subject": "sums", "choices": ["11", "12", "1", "0"], "answer": 1},
             "5+7?\nA) 11\nB) 12\nC) 1\nD) 0", "B", []),
    "ARC": ({"id": "q", "question": "5+7?", "choices": {"text": ["11", "12"], "label": ["1", "2"]}, "answerKey": "2"},
            "5+7?\n1) 11\n2) 12", "2", []),
    "AQuA": ({"question": "5+7?", "options": ["A)11", "B)12"], "rationale": "Add. Option B.", "correct": "B"},
             "5+7?\nA) 11\nB) 12", "B", ["Add. Option B."]),
    "MathQA": ({"Problem": "5+7?", "Rationale": "Add.", "options": "a ) 11 , b ) 12 , c ) none", "correct": "b"},
               "5+7?\nA) 11\nB) 12\nC) none", "B", ["Add."]),
    "SVAMP": ({"ID": "c", "Body": "A cart holds 5.", "Question": "And 7 more?", "Equation": "(5+7)", "Answer": "12.0",
               "Type": "Addition", "question_concat": "A cart holds 5. And 7 more?"}, "A cart holds 5. And 7 more?", "12.0", []),
    "ASDiv": ({"body": "A cart holds 5 sacks.", "question": "And 7 more?", "solution_type": "Addition", "answer": "12 (sacks)",
               "formula": "5+7=12"}, "A cart holds 5 sacks. And 7 more?", "12", []),
    "OlympiadBench": ({"id": 1, "question": "Find it.", "solution": ["Add: 12."], "final_answer": ["12"], "context": "Let $a=5$.",
                       "image_1": None, "subfield": "Algebra"}, "Let $a=5$.\nFind it.", "12", ["Add: 12."]),
    "TRL": ({"prompt": [CHAT[0]], "completion": [CHAT[1]]}, "5+7?", "12", [THOUGHT]),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_well_known_sets(name):
    row, problem, gold, demonstrations = SETS[name]
    record = read(row)
    assert not record.unusable
    assert (record.problem, record.answer) == (problem, gold)
    assert [c.text for c in record.demonstrations if c.verified and c.finished] == demonstrations
    # A row in text, as a table holds it, reads alike.
    as_text = {key: json.dumps(value) if isinstance(value, (list, dict)) and key != "extra_info" and key != "reward_model"
               else value for key, value in row.items()}  # fmt: skip
    assert read(as_text).problem == problem
    assert read({key.upper(): value for key, value in row.items()}).answer == gold


def test_names_by_mapping_with_dots_and_any_case():
    row = {"Frage": "1?", "x": {"Gold": 3}, "answer": "4", "solution": "$\\boxed{4}$", "Weg": "so"}
    assert read(row, problem="frage").answer == "4", "the other roles keep their names"
    record = read(row, problem="frage", answer="X.gold", demonstration="WEG")
    assert (record.problem, record.answer, [c.text for c in record.demonstrations]) == ("1?", "3", ["so"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (84.0, "84"), (0.625, "0.625"), (7, "7"), (True, "True"), (Decimal("1.50"), "1.50"), (b" 4 ", "4"), (float("nan"), None),
        ("", None), (" ", None), (None, None),
    ],
)  # fmt: skip
def test_text_is_a_string_or_a_number(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["a"], "a list"), ({"a": 1, "b": 2}, "an object (a, b)"), (b"\xff\xfe", "not Unicode"), ("cut \ud83d", "not Unicode"),
        (object(), "a object"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(value, words):
    with pytest.raises(Unusable) as caught:
        text_of(value, "gold")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("It is $\\boxed{5}$.", "5"),
        ("<think>\\boxed{7}</think><answer> 5 </answer>", "5"),
        ("<answer>\\boxed{5}</answer>", "5"),
        ("So.\n#### 5", "5"),
        ("So.\n#### 5\nThe answer is: 5", "5"),
        ("Hence the final answer is $\\frac{1}{2}$.", "\\frac{1}{2}"),
        ("The answer is not known to me.\nStop.", None),
        ("Five.", None),
        (None, None),
    ],
)
def test_the_gold_at_the_end_of_a_solution(solution, answer):
    assert end_of(solution) == answer


def test_lists_of_golds():
    assert gold_of(["1\n", "1.0\n"], same) == "\\boxed{1} \\boxed{1.0}", "spellings of one answer"
    assert gold_of([2, 9], same) == "2, 9", "an answer with two parts"
    assert gold_of(["3"], same) == gold_of('["3"]', same) == "3"
    assert gold_of({"value": 4}, same) == "4"
    for value in ({"numbers": [1], "target": 3}, [[1, 2], [3]], "x" * 3000):
        with pytest.raises(Unusable):
            gold_of(value, same)


def test_rows_that_cannot_be_read_say_why():
    twice = [*CHAT, {"role": "user", "content": "Sure?"}]
    for row, words in (
        (
            {"question": "?", "answer": {"numbers": [2], "target": 3}},
            "gold (answer) that is an object (numbers, target)",
        ),
        ({"messages": twice, "answer": "1"}, "chat with several turns of the user"),
        ({"prompt": [{"role": "tool", "content": "x"}], "answer": "1"}, "chat with a message of 'tool'"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}, "picture or other part"),
        ({"question": ["a", "b"], "answer": "1"}, "problem (question) that is a list"),
        ({"question": "?", "image": b"x", "answer": "1"}, "picture (image)"),
        ({"question": "?", "options": ["1", "0"], "answer": "0"}, "one option and the index of another"),
        ({"question": "?", "answer": "1", "solution": "\ud83d"}, "not Unicode"),
    ):
        assert words in read(row).unusable, row


@pytest.mark.parametrize(
    "value",
    [
        CHAT,
        json.dumps(CHAT),
        str(CHAT),
        {"role": ["user", "assistant"], "content": ["5+7?", THOUGHT]},
        [{"from": "human", "value": "5+7?"}, {"from": "gpt", "value": THOUGHT}],
        [{"role": "user", "content": [{"type": "text", "text": "5+7?"}]}, {"role": "assistant", "content": THOUGHT}],
        {"user": "5+7?", "assistant": THOUGHT},
        ["5+7?", THOUGHT],
    ],
)
def test_every_form_of_a_chat(value):
    assert turns(value, pair=True) == [("user", "5+7?"), ("assistant", THOUGHT)]
    record = read({"messages": value})
    assert (record.problem, record.answer, record.solution) == ("5+7?", "12", THOUGHT)


@pytest.mark.parametrize(
    "framed",
    [
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\n5+7?<|im_end|>\n<|im_start|>assistant\n",
        "<|start_header_id|>user<|end_header_id|>\n\n5+7?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<start_of_turn>user\n5+7?<end_of_turn>\n<start_of_turn>model\n",
        "<|user|>\n5+7?<|end|>\n<|assistant|>\n",
        "<｜User｜>5+7?<｜Assistant｜>",
        "<s>[INST] 5+7? [/INST]",
        "A conversation between User and Assistant. They talk.\nUser: 5+7?\nAssistant: <think>",
    ],
)
def test_a_framed_prompt_is_its_user_turn(framed):
    reader = Roles({}, same)
    assert reader.read({"prompt": framed, "answer": "12"}).problem == "5+7?"
    assert reader.used["framed"] == {"prompt": 1}


def test_verdicts_stand_beside_several_solutions():
    row = {
        "question": "?",
        "answer": "4",
        "responses": ["\\boxed{4}", "\\boxed{5}", "4, or"],
        "score": [1.0, 0.0, None],
    }
    assert [c.verified for c in read(row).demonstrations] == [True, False, False]
    row = {
        "question": "?",
        "answer": "4",
        "solutions": [{"text": "a 4", "correct": True}, {"text": "b 5", "correct": False}],
    }
    assert [(c.text, c.verified) for c in read(row).demonstrations] == [("a 4", True), ("b 5", False)]
    assert read({"question": "?", "answer": "4", "solution": "It is 4", "score": 0.1}).demonstrations[0].verified


def test_options_that_the_problem_has_already_are_not_written_twice():
    row = {
        "question": "Which? (A) 11 (B) 12",
        "options": {"A": "11", "B": "12", "C": None},
        "label": "B",
        "answer": None,
    }
    assert (read(row).problem, read(row).answer) == (row["question"], "B")
    columns = {"question": "Which?", "A": "11", "B": "12", "answer": "b"}
    assert (read(columns).problem, read(columns).answer) == ("Which?\nA) 11\nB) 12", "B")
    assert read({"question": "a+b?", "a": 1, "b": 2, "answer": "3.5"}).problem == "a+b?", (
        "columns of numbers are no options"
    )
