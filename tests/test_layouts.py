"""Files as people of this field publish them, one of each kind, from invented texts: read right, or refused in one sentence."""

from __future__ import annotations

import datetime
import gzip
import json
import os
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefix_rft_lab.config import ConfigError, DataConfig
from prefix_rft_lab.rewards import Verifier
from prefix_rft_lab.tasks.sources import read_problems

QUESTIONS = (
    "A kiln fires 14 tiles an hour. How many in 6 hours?",
    "Let $u=5$, $v=12$. What is $\\sqrt{u^2+v^2}$?",
    "A barge has 250 crates and unloads 92. How many remain?",
)
GOLDS = ("84", "13", "158")
WORKED = [f"We work it out. The answer is $\\boxed{{{gold}}}$." for gold in GOLDS]
THOUGHT = [f"<think>\nFirst $\\boxed{{7}}$? No.\n</think>\n\nSo $\\boxed{{{gold}}}$." for gold in GOLDS]
B = ("B", "B", "B")


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as found:
        yield found


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def rows(make):
    return [make(*parts) for parts in zip(QUESTIONS, GOLDS, WORKED, THOUGHT, strict=True)]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


PLAIN = rows(lambda q, g, s, t: {"problem": q, "answer": g, "solution": s})
CHATML = "<|im_start|>system\nReason.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ALPACA = "Below is an instruction.\n\n### Instruction:\n{}\n\n### Response: Let's think step by step."

# Name -> one row, made of question, gold, worked solution and solution with a thought.
DEMONSTRATED = {
    "chat pair of TRL": lambda q, g, s, t: {"prompt": [user(q)], "completion": [assistant(s)]},
    "preferences": lambda q, g, s, t: {"prompt": q, "chosen": s, "rejected": "no $\\boxed{0}$"},
    "preferences as chats": lambda q, g, s, t: {"chosen": [user(q), assistant(s)], "rejected": [user(q), assistant("no")]},
    "a truth value as label": lambda q, g, s, t: {"prompt": q, "completion": s, "label": True},
    "instruction and output": lambda q, g, s, t: {"instruction": q, "input": "", "output": s},
    "query, response, history": lambda q, g, s, t: {"query": q, "response": s, "history": []},
    "generated_solution": lambda q, g, s, t: {"problem": q, "generated_solution": s, "expected_answer": g, "problem_source": "m"},
    "generation": lambda q, g, s, t: {"problem": q, "generation": t, "expected_answer": g},
    "numbered solutions": lambda q, g, s, t: {"question": q, "final_answer": g, "topic": "x", "r1_solution_1": t, "r1_solution_2": s},
    "two numbered solutions": lambda q, g, s, t: {"problem": q, "answer": g, "choices": None, "solution_1": s, "solution_2": s + " "},
    "gold in an object as text": lambda q, g, s, t: {"prompt": q, "llm_response": t, "gold_standard_solution": s,
                                                     "verification_info": str({"ground_truth": g}), "score": 1.0},
    "wrong samples beside the worked solution": lambda q, g, s, t: {"question": q, "gt_cot": s, "gt": g, "code": ["x"], "pred": ["7"], "score": [False]},
    "response with its verdict": lambda q, g, s, t: {"query": q, "ref_ans": g, "resp": s, "correct": True},
    "framed input beside the question": lambda q, g, s, t: {"input": CHATML.format(q), "question": q, "answer": s, "gt_answer": g},
    "solution in an object": lambda q, g, s, t: {"passage": None, "question": q, "options": None, "label": None, "answer": g, "other": {"solution": s}},
    "gold in a message": lambda q, g, s, t: {"messages": [{**user(q), "info": {"reference_answer": g}}, assistant(f"<think>{g}?</think><answer>{g} it is.</answer>")]},
    "thought and solution tagged": lambda q, g, s, t: {"conversations": [{"from": "user", "value": q}, {"from": "assistant", "value":
        f"<|begin_of_thought|>\n$\\boxed{{7}}$?\n<|end_of_thought|>\n<|begin_of_solution|>\nSo $\\boxed{{{g}}}$.\n<|end_of_solution|>"}]},
    "single messages": lambda q, g, s, t: {"prompt": user(q), "response": assistant(s)},
    "two texts": lambda q, g, s, t: {"conversation": [q, s]},
    "turns by speaker": lambda q, g, s, t: {"conversation": [{"human": q, "assistant": s}]},
    "turns of input and output": lambda q, g, s, t: {"conversation": [{"system": "x", "input": q, "output": s}]},
    "several with rewards": lambda q, g, s, t: {"question": q, "answer": g, "responses": [s, "no $\\boxed{7}$"], "rewards": [1.0, 0.0]},
    "objects with verdicts": lambda q, g, s, t: {"question": q, "answer": g, "solutions": [
        {"solution": "no $\\boxed{7}$", "is_correct": False}, {"solution": s, "is_correct": True}]},
    "objects with scores": lambda q, g, s, t: {"question": q, "answer": g, "responses": [
        {"response": "no $\\boxed{7}$", "score": 0.0}, {"response": s, "score": 1.0}]},
    "chats with verdicts": lambda q, g, s, t: {"question": q, "answer": g, "completions": [[assistant(s)], [assistant("no $\\boxed{7}$")]], "correct": [True, False]},
    "thought of a message": lambda q, g, s, t: {"messages": [user(q), assistant(s, reasoning_content="hm $\\boxed{7}$")]},
    "thinking of a message": lambda q, g, s, t: {"messages": [user(q), assistant(s, thinking="hm $\\boxed{7}$")]},
    "reasoning alone": lambda q, g, s, t: {"question": q, "reasoning": "We add.", "answer": g},
    "reasoning and response": lambda q, g, s, t: {"question": q, "reasoning": "hm $\\boxed{7}$", "response": s},
    "reasoning_content and content": lambda q, g, s, t: {"question": q, "reasoning_content": "hm.", "content": s},
    "chain_of_thought": lambda q, g, s, t: {"question": q, "chain_of_thought": "We add.", "answer": g},
    "explanation beside a bare solution": lambda q, g, s, t: {"question": q, "solution": g, "explanation": "We add.", "correctAnswer": g},
    "responses": lambda q, g, s, t: {"prompt": q, "gt": g, "responses": [s]},
    "text in a chat template": lambda q, g, s, t: {"text": f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{s}<|im_end|>"},
    "text with INST": lambda q, g, s, t: {"text": f"<s>[INST] {q} [/INST] {s} </s>"},
    "level as a number": lambda q, g, s, t: {"problem": q, "answer": g, "solution": s, "level": 3.0, "type": "Algebra"},
    "half a character in a column that is not used": lambda q, g, s, t: {"problem": q, "answer": g, "solution": s, "note": "cut \ud83d"},
    "not a number": lambda q, g, s, t: {"problem": q, "answer": g, "solution": s, "score": float("nan")},
    "golds as labels beside several solutions": lambda q, g, s, t: {"question": q, "label": [g, g + ".0"], "solutions": [s, s]},
    "one id for all": lambda q, g, s, t: {"problem": q, "answer": g, "solution": s, "id": "a"},
    "last line says the answer": lambda q, g, s, t: {"question": q, "response": f"We add.\n**Final Answer:** {g}"},
}  # fmt: skip

BARE = {
    "chat and gold": lambda q, g, s, t: {"prompt": [{"from": "human", "value": q}], "final_answer": g},
    "messages and gold": lambda q, g, s, t: {"messages": [user(q)], "solution": g},
    "solution judged wrong": lambda q, g, s, t: {"question": q, "generated_solution": "$\\boxed{7}$", "expected_answer": g, "is_correct": False},
    "responses judged wrong": lambda q, g, s, t: {"question": q, "answer": g, "responses": ["no $\\boxed{7}$"], "rewards": [-1]},
    "framed input": lambda q, g, s, t: {"input": CHATML.format(q), "gt_answer": g, "level": 3},
    "message framed again": lambda q, g, s, t: {"prompt": [user(CHATML.format(q) + "<think>")], "reward_model": {"ground_truth": g}},
    "instruction frame": lambda q, g, s, t: {"prompt": ALPACA.format(q), "answer": g},
    "gold as a list in text": lambda q, g, s, t: {"prompt": [user(q)], "reward_model": {"ground_truth": json.dumps([g])}, "extra_info": {"index": 1}},
    "gold as a list": lambda q, g, s, t: {"prompt": [user(q)], "reward_model": {"ground_truth": [g]}},
    "golds": lambda q, g, s, t: {"question": q, "answers": [g, g + ".0"]},
    "gold as a whole number": lambda q, g, s, t: {"question": q, "answer": int(g)},
    "gold as a float": lambda q, g, s, t: {"question": q, "answer": float(g)},
    "gold in an object": lambda q, g, s, t: {"question": q, "answer": {"value": g}},
    "gold in tags": lambda q, g, s, t: {"question": q, "answer": f"<answer>{g}</answer>"},
    "gold in a box": lambda q, g, s, t: {"question": q, "answer": f"$\\boxed{{{g}}}$"},
    "gold in dollars": lambda q, g, s, t: {"question": q, "answer": f"${g}$"},
    "gold after ####": lambda q, g, s, t: {"question": q, "answer": f"#### {g}"},
    "label": lambda q, g, s, t: {"input": q, "label": g, "datasource": "x"},
    "names in camel case": lambda q, g, s, t: {"questionText": q, "correctAnswer": g},
    "names with spaces": lambda q, g, s, t: {"Question Text": q, "Correct Answer": g},
    "parts of a message": lambda q, g, s, t: {"prompt": [user([{"type": "text", "text": q}])], "answer": g},
    "no picture": lambda q, g, s, t: {"question": q, "answer": g, "image": None},
    "all in an object": lambda q, g, s, t: {"data": {"question": q, "answer": g}},
    "steps beside": lambda q, g, s, t: {"problem": q, "steps": ["a", "b"], "answer": g},
}  # fmt: skip

# Name -> row, gold (None: as usual), what the problem ends in.
PARTS = {
    "question over a table": (lambda q, g: {"question": q, "answer": g, "choices": None, "table": "a | 1"}, None, "a | 1"),
    "instruction over the input": (lambda q, g: {"instruction": "Solve.", "input": q, "output": f"$\\boxed{{{g}}}$"}, None, "Solve."),
    "body and question": (lambda q, g: {"ID": "c", "Body": "A mill.", "Question": q, "Answer": float(g)}, None, "A mill."),
    "index": (lambda q, g: {"question": q, "choices": ["1", g, "2"], "answer": 1}, "B", f"B) {GOLDS[0]}"),
    "letter and index": (lambda q, g: {"question": q, "options": ["1", g, "2"], "answer": "B", "answer_index": 1}, "B", "B) "),
    "text of the option": (lambda q, g: {"question": q, "options": ["1 x", f"{g} x"], "answer": f"{g} x"}, "B", "B) "),
    "lettered options": (lambda q, g: {"question": q, "options": ["(A) 1", f"(B) {g}"], "answer": "(B)"}, "B", "B) "),
    "labelled objects": (lambda q, g: {"question": q, "options": [{"label": "A", "text": "1"}, {"label": "B", "text": g}], "answer": "B"}, "B", "B) "),
    "texts and labels": (lambda q, g: {"question": q, "choices": {"text": ["1", g], "label": ["A", "B"]}, "answerKey": "B"}, "B", "B) "),
    "stem and choices": (lambda q, g: {"question": {"stem": q, "choices": [{"text": "1", "label": "A"}, {"text": g, "label": "B"}]}, "answerKey": "B"}, "B", "B) "),
    "a column each": (lambda q, g: {"question": q, "opa": "1", "opb": g, "opc": "2", "cop": 1, "exp": "Because."}, "B", "B) "),
    "numbered columns": (lambda q, g: {"question": q, "option1": "1", "option2": g, "answer": "2"}, "2", "2) "),
    "gold said in the solution": (lambda q, g: {"question": q, "options": ["1", g], "solution": "Because. The answer is B."}, "B", "B) "),
}  # fmt: skip


def check(path, verifier, *, demonstrated, golds=GOLDS, ends=""):
    problems, _ = read_problems(DataConfig(problems=str(path)))
    assert len(problems) == 3
    assert all(verifier.score(f"\\boxed{{{gold}}}", p.answer) for gold, p in zip(golds, problems, strict=True))
    assert all(bool(p.demonstrations) is demonstrated for p in problems) or demonstrated is None
    assert all(verifier.score(text, p.answer) for p in problems for text in p.demonstrations)
    assert all(question in p.prompt for question, p in zip(QUESTIONS, problems, strict=True))
    if ends:
        assert all(ends in p.prompt or ends.startswith("B) 84") for p in problems)
    else:
        assert [p.prompt for p in problems] == list(QUESTIONS), "the problem and nothing beside it"


@pytest.mark.parametrize("name", DEMONSTRATED)
def test_rows_with_a_solution(name, tmp_path, verifier):
    (tmp_path / "a.jsonl").write_text(lines(rows(DEMONSTRATED[name])))
    check(tmp_path / "a.jsonl", verifier, demonstrated=True)


@pytest.mark.parametrize("name", BARE)
def test_rows_without_a_solution(name, tmp_path, verifier):
    (tmp_path / "a.jsonl").write_text(lines(rows(BARE[name])))
    check(tmp_path / "a.jsonl", verifier, demonstrated=False)


@pytest.mark.parametrize("name", PARTS)
def test_problems_of_several_parts(name, tmp_path, verifier):
    make, gold, ends = PARTS[name]
    (tmp_path / "a.jsonl").write_text(lines(rows(lambda q, g, s, t: make(q, g))))
    check(tmp_path / "a.jsonl", verifier, demonstrated=None, golds=[gold] * 3 if gold else GOLDS, ends=ends)


def test_columns_of_numbers_are_no_options(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines([{"question": "a+b?", "a": 1, "b": 2, "answer": "3"}]))
    ((one,), _) = read_problems(DataConfig(problems=str(tmp_path / "a.jsonl")))
    assert (one.prompt, one.answer) == ("a+b?", "3")


def test_headings_of_a_problem_are_no_frame_and_numbered_answers_no_solutions(tmp_path):
    question = "Read this.\n### Input: 5\nDouble it."
    (tmp_path / "a.jsonl").write_text(lines([{"question": question, "gold": "10", "answer1": "10", "answer2": "12"}]))
    ((one,), _) = read_problems(DataConfig(problems=str(tmp_path / "a.jsonl")))
    assert (one.prompt, one.answer, one.demonstrations) == (question, "10", ())


CONTAINERS = {
    "chats and golds in an array": json.dumps(rows(lambda q, g, s, t: [{"from": "human", "value": q}, {"from": "assistant", "value": s, "ground_truth": {"value": g}}])),
    "a chat a line": lines(rows(lambda q, g, s, t: [user(q), assistant(s)])),
    "columns over many lines": json.dumps({key: [row[key] for row in PLAIN] for key in PLAIN[0]}, indent=2),
    "under one key beside others": json.dumps({"version": "1.0", "license": "x", "examples": PLAIN}, indent=1),
    "two keys deep": json.dumps({"data": {"train": PLAIN}}),
    "objects over many lines": "\n".join(json.dumps(row, indent=2) for row in PLAIN),
    "commas at the ends of lines": "".join(json.dumps(row) + ",\n" for row in PLAIN),
    "line ends of Windows": lines(PLAIN).replace("\n", "\r\n"),
    "array with a byte order mark": "\ufeff" + json.dumps(PLAIN),
    "array with a comma too many": json.dumps(PLAIN)[:-1] + ",]",
    "columns between bars": "".join("|".join(cells) + "\n" for cells in [PLAIN[0], *(row.values() for row in PLAIN)]),
    "spaces in the first line": "problem, answer, solution\r\n" + pd.DataFrame(PLAIN).to_csv(index=False, header=False),
    "chats and objects in CSV": pd.DataFrame(rows(lambda q, g, s, t: {"prompt": json.dumps([user(q)]), "reward_model": json.dumps({"ground_truth": g}), "response": s})).to_csv(),
    "the same in the spelling of Python": pd.DataFrame(rows(lambda q, g, s, t: {"prompt": str([user(q)]), "reward_model": str({"ground_truth": g}), "response": s})).to_csv(),
    "rows of three shapes": lines([PLAIN[0], {"messages": [user(QUESTIONS[1]), assistant(THOUGHT[1])]}, {"question": QUESTIONS[2], "answer": "Add.\n#### 158"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name, tmp_path, verifier):
    (tmp_path / "a.txt").write_text(CONTAINERS[name], encoding="utf-8", newline="")
    check(tmp_path / "a.txt", verifier, demonstrated=True)


PARQUET = {
    "map": {"prompt": QUESTIONS, "reward_model": pa.array([[("ground_truth", g)] for g in GOLDS], pa.map_(pa.string(), pa.string()))},
    "dictionary and large text": {"problem": pa.array(QUESTIONS).dictionary_encode(), "answer": pa.array(GOLDS, pa.large_string())},
    "decimal": {"problem": QUESTIONS, "answer": pa.array([Decimal(g) for g in GOLDS], pa.decimal128(10, 2))},
    "bytes": {"problem": [q.encode() for q in QUESTIONS], "answer": [g.encode() for g in GOLDS]},
    "struct and list": {"extra": [{"question": q} for q in QUESTIONS], "answer": [[g] for g in GOLDS]},
}  # fmt: skip


@pytest.mark.parametrize("name", PARQUET)
def test_types_of_parquet(name, tmp_path, verifier):
    pq.write_table(pa.table(PARQUET[name]), tmp_path / "a.parquet")
    check(tmp_path / "a.parquet", verifier, demonstrated=False)


REFUSED = {
    "header among the rows": (json.dumps([["problem", "answer"], ["1?", "1"]]), "record 1 is a list, not an object"),
    "no object": ("{}", "is empty"),
    "no rows": ("[]", "is empty"),
    "empty rows": ("[{}]", "is empty"),
    "a number": ("7", "is empty"),
    "nested too deeply": ("[" * 100_000, "record 1 is not JSON (maximum recursion depth"),
    "a number of 5000 digits": ('{"problem": "?", "answer": ' + "1" * 5000 + "}", "line 1 is not JSON (Exceeds the limit"),
    "a list in the middle": (lines(PLAIN[:2]) + "[1, 2]\n" + lines(PLAIN[2:]), "line 3 is a list, not an object"),
    "a text in the middle of an array": (json.dumps([*PLAIN[:2], "x", PLAIN[2]]), "record 3 is a text, not an object"),
    "null": (lines(PLAIN[:1]) + "null\n", "line 2 is null, not an object"),
    "cut off": (lines(PLAIN)[:-30], "line 3 is not JSON (Unterminated string"),
    "bytes that are no text": (lines(PLAIN).encode() + b'{"problem": "\xff\xfe?"}\n', "is not UTF-8 text"),
    "a web page": ("<!DOCTYPE html>\n<html></html>", "is a web page, not the file itself; download the raw file"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", "is packed by zstd; unpack it"),
    "tar": (b"data/a.jsonl" + b"\0" * 600, "is not a text, parquet or Arrow file"),
    "packed pointer": (gzip.compress(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "a column twice": ("problem,answer,answer\n?,1,2\n", "has 'answer' twice in its first line; name each column once"),
    "an empty split": (json.dumps({"train": PLAIN, "test": []}), "names a split 'test' without a row; fill it or leave it out"),
    "no golds": (lines([{"problem": q, "answer": None} for q in QUESTIONS]), "3 x row without answer (a-0)"),
    "no answer by name": (lines([{"problem": q, "answer": "N/A"} for q in QUESTIONS]), "3 x row without answer (a-0)"),
    "several turns": (lines([{"messages": [user("?"), assistant("!"), user("go"), assistant("1")]}]), "several turns of the user"),
    "gold of many fields": (lines([{"question": "?", "answer": {"value": "1", "aliases": ["1"]}}]), "gold (answer) that is an object (value, aliases)"),
    "index that is an option": (lines([{"question": "?", "choices": ["1", "0"], "answer": "0"}]), "one option and the index of another"),
    "solution without an end": (lines([{"question": "?", "answer": "First we multiply what is given. Then we see that this was asked for, and we are done with all of it here."}]),
                                "gold (answer) that is a text without an answer at its end"),
    "pictures": (lines([{"question": "?", "answer": "1", "images": ["a.png"]}]), "picture (images)"),
    "a picture in bytes": (lines([{"question": "?", "answer": "1", "decoded_image": {"bytes": "x"}}]), "picture (decoded_image)"),
    "a list before the question": (lines([{"question": "?", "context": ["a"], "answer": "1"}]), "context that is a list"),
    "half a character": (lines([{"problem": "cut \ud83d", "answer": "1"}]), "not Unicode"),
    "unknown names": (lines([{"Aufgabe": "?", "Ergebnis": "1"}]), "no column 'problem' and no column 'answer'; it has Aufgabe, Ergebnis"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_in_one_sentence(name, tmp_path):
    content, words = REFUSED[name]
    (tmp_path / "a.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_problems(DataConfig(problems=str(tmp_path / "a.jsonl")))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("golds", [[b"\xff\xfe"], [datetime.date(2020, 1, 1)]])
def test_golds_of_parquet_that_are_no_text(golds, tmp_path):
    pq.write_table(pa.table({"problem": ["?"], "answer": golds}), tmp_path / "a.parquet")
    with pytest.raises(
        ConfigError, match=r"1 x row with a gold \(answer\) (with characters that are not Unicode|that is a date)"
    ):
        read_problems(DataConfig(problems=str(tmp_path / "a.parquet")))


# ---------------------------------------------------------------- cases from outside


def test_a_folder_of_cases(verifier):
    """``files/expected.json``: file -> what must be found in it, without a column named, or that it is refused."""
    if not (folder := os.environ.get("PREFIX_RFT_LAB_CASES")):
        pytest.skip("PREFIX_RFT_LAB_CASES names no folder with files/expected.json")
    files = Path(folder) / "files"
    expected = json.loads((files / "expected.json").read_text(encoding="utf-8"))
    assert len(expected) >= 29
    for name, want in expected.items():
        if want.get("refused"):
            with pytest.raises(ConfigError) as caught:
                read_problems(DataConfig(problems=str(files / name)))
            assert len(str(caught.value)) < 600, name
            continue
        problems, _ = read_problems(DataConfig(problems=str(files / name)))
        assert (len(problems), sum(bool(p.demonstrations) for p in problems)) == (
            want["problems"],
            want["demonstrations"],
        ), name
        for problem, gold in zip(problems, want["golds"], strict=True):
            assert problem.answer.strip() == gold or verifier.score(f"\\boxed{{{gold}}}", problem.answer), name
            assert all(verifier.score(text, problem.answer) for text in problem.demonstrations), name
