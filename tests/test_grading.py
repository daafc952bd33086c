"""The measure of the grading: hand-made files with known figures, and the real files where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prefix_rft_lab import cli
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.grading import format_gradings, grade

ROWS = [
    {"id": "a", "problem": "1+1?", "answer": "2", "solution": r"It is $\boxed{2}$.", "type": "sums"},
    {"id": "b", "problem": "x^2=4?", "answer": "-2", "solution": r"$\boxed{2}$ or $\boxed{-2}$.", "type": "roots"},
    {
        "id": "c",
        "problem": "x^2=9?",
        "answer": "3",
        "solution": r"$\boxed{9}$, so I say $\boxed{-3}$.",
        "type": "roots",
    },
    {"id": "d", "problem": "2+2?", "answer": "4", "solution": "Four.", "type": "sums"},
    {"id": "e", "problem": "x=5?", "answer": "x=5", "solution": r"$\boxed{x=5}$", "type": "lone"},
    {"id": "f", "problem": "5?", "answer": "5", "solution": r"$\boxed{5}$", "type": "lone"},
    {"id": "g", "problem": "?", "answer": None, "solution": "Five.", "type": "lone"},
    {"id": "h", "problem": "??", "answer": "5", "solution": None, "type": "lone"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_figures_and_failures_by_hand(file):
    found = grade(str(file))
    assert (found.rows, found.graded) == (8, 6)
    assert found.own_right == 4, "a, b (completed), e and f"
    assert found.own_right_as_is == 3, "b lists two answers where the file has one"
    assert found.completed == ("b",)
    assert found.left_out == {
        "row without answer": 1,
        "row without solution": 1,
        "no other problem of its type with another answer": 2,
    }, "x = 5 and 5 are one answer, so e and f have no other"
    assert (found.others, found.others_wrong) == (4, 4)
    own = [(f.id, f.category, f.answer) for f in found.failures if f.check == "own solution"]
    assert own == [
        ("c", "another value or form than the gold answer", "-3"),
        ("d", "no boxed answer in the solution", None),
    ]
    assert found.own_rate == 4 / 6
    assert not found.passes(0.99)
    assert found.passes(0.5)
    text = format_gradings([found])
    assert "4/6 66.667%" in text
    assert "3/6 50.000%" in text
    assert "c: gold 3, answer -3" in text


def test_a_wrong_answer_that_is_graded_right_is_a_failure(tmp_path):
    rows = [
        {"id": "a", "problem": "1?", "answer": "1_6", "solution": r"$\boxed{1_6}$", "type": "t"},
        {"id": "b", "problem": "2?", "answer": "1", "solution": r"$\boxed{1}$", "type": "t"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = grade(str(path))
    assert (found.others, found.others_wrong) == (2, 0)
    assert [(f.check, f.category, f.other) for f in found.failures] == [
        ("other solution", "a base that one of the two leaves out", "b"),
        ("other solution", "a base that one of the two leaves out", "a"),
    ]


def test_command(file, tmp_path, capsys):
    out = tmp_path / "grading.json"
    assert cli.main(["grading", str(file), "--out", str(out)]) == 1
    assert "below 99.95%" in capsys.readouterr().out
    [read] = json.loads(out.read_text())
    assert read["own_right"] == 4
    assert cli.main(["grading", str(file), "--least", "0.5"]) == 0
    assert cli.main(["grading", str(file), "--limit", "2", "--column", "answer=answer", "--least", "0.5"]) == 0
    capsys.readouterr()
    for arguments, words in (
        (["--limit", "0"], "--limit 0 leaves no row"),
        (["--least", "2"], "--least 2 is no rate"),
        (["--column", "answer"], "--column 'answer' is not understood"),
        (
            ["--column", "answer=gold"],
            "data.columns.answer = 'gold' is not a column of problems.jsonl; it has id, problem",
        ),
        (["--column", "gold=answer"], "data.columns has the name 'gold'; map only id, problem"),
    ):
        assert cli.main(["grading", str(file), *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_file_without_solutions_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "1?", "answer": "1"}\n')
    with pytest.raises(ConfigError, match="has no row to grade \\(1 x row without solution\\)"):
        grade(str(path))


# ---------------------------------------------------------------- real problems


@pytest.fixture
def folder():
    """Where math_train.jsonl, math500.jsonl and gsm8k_train.jsonl lie: rows with problem, answer, solution."""
    found = os.environ.get("PREFIX_RFT_LAB_DATA")
    if not found:
        pytest.skip(
            "PREFIX_RFT_LAB_DATA is not set: name a folder with math_train.jsonl, math500.jsonl, gsm8k_train.jsonl"
        )
    return Path(found)


@pytest.mark.parametrize(("name", "limit"), [("math500", None), ("math_train", 400), ("gsm8k_train", 800)])
def test_real_solutions_are_graded_right(folder, name, limit):
    """A part that takes seconds; ``prefix-rft grading`` does the whole."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = grade(str(path), limit=limit)
    assert found.passes(0.9995), format_gradings([found])
    assert found.graded == found.rows
    assert not [f for f in found.failures if f.check == "gold answer"]


def test_solutions_that_list_several_answers_are_completed(folder):
    path = folder / "math_train.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    from prefix_rft_lab.answers import complete_gold
    from prefix_rft_lab.tasks.readers import open_source

    records = [r for r in open_source(str(path)).records if r.answer]
    lists = [r for r in records if complete_gold(r.answer, r.solution) != r.answer]
    assert len(lists) == 13
    assert "train/precalculus/1149.json" in {r.id for r in lists}, "30 or 150 degrees, of which the file keeps 150"
