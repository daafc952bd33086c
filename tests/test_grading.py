"""The measure of the grading: hand-made files with known figures, and the real files where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prefix_rft_lab import cli
from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.grading import UNSTATED, format_gradings, format_inspection, grade, inspect
from prefix_rft_lab.rewards import Verifier

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
    assert (found.rows, found.graded) == (8, 5)
    assert found.own_right == 4, "a, b (completed), e and f"
    assert found.own_right_as_is == 3, "b lists two answers where the file has one"
    assert found.completed == ("b",)
    assert found.not_graded == {
        UNSTATED: 1,
        "row without answer": 1,
        "row without solution": 1,
        "no other problem of its type with another answer": 3,
    }, "x = 5 and 5 are one answer, so e and f have no other; a has d, which states none"
    assert (found.others, found.others_wrong) == (2, 2)
    own = [(f.id, f.category, f.answer) for f in found.failures if f.check == "own solution"]
    assert own == [("c", "another value or form than the gold answer", "-3")]
    assert found.closed == ["d"], "what states no answer can be no failure of the grading"
    assert found.own_rate == 4 / 5
    assert not found.passes(0.99)
    assert found.passes(0.5)
    text = format_gradings([found])
    assert "4/5 80.000%" in text
    assert "3/5 60.000%" in text
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


# ---------------------------------------------------------------- one reading


def test_both_commands_show_one_reading(file, capsys):
    """Figures and failures of the one are those of the other; what is closed with the gold is no success of the grading."""
    inspected = inspect(preset("tiny", **{"data.problems": str(file)}))
    assert inspected == grade(str(file))
    for text in (format_inspection(inspected), format_gradings([inspected])):
        for line in (
            "own solution graded right: 4/5 80.000%",
            f"not graded: 1 x {UNSTATED} (d)",
            "own solution, another value or form than the gold answer: 1",
            "c: gold 3, answer -3",
        ):
            assert line in text
    assert "demonstrations closed with the gold answer: 1 (d)" in format_inspection(inspected)


def test_a_pair_that_runs_out_of_time_is_neither_right_nor_wrong(file, monkeypatch):
    def score(self, text, gold):
        self.timeouts += gold == "x=5"
        return float(gold != "x=5" and r"\boxed{-" not in text)

    monkeypatch.setattr(Verifier, "score", score)
    found = grade(str(file))
    assert (found.graded, found.own_right, found.own_late, found.wrong) == (5, 2, 1, ["b", "c"])
    assert found.own_rate == 2 / 4
    assert "ran out of time, counted as neither: 1 own, 0 of others" in format_gradings([found])


def test_what_a_training_takes_and_leaves(tmp_path):
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1), "split": "test" if i < 5 else "train"} for i in range(30)]
    rows.append(rows[7] | {"problem": "2 + 1 ?", "split": "test"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = preset(
        "tiny", **{"data.problems": str(tmp_path / "a.jsonl"), "data.eval_problems": 4, "data.train_problems": 9}
    )
    found = inspect(config, verify=False)
    assert found.taken == {"train": 9, "validation": 4, "test": 4, "left": 13}
    assert "a training takes train 9, validation 4, test 4 and leaves 13" in format_inspection(found)
    assert found.left_out == {"problem that occurred before": 1}
    few = inspect(config.replace(**{"data.eval_problems": 25}), verify=False)
    assert (few.taken, "1 x data.eval_problems = 25 are held out" in few.refusal) == ({}, True)
    assert "warning: a training refuses this" in format_inspection(few)


def test_a_copy_in_another_split_and_a_split_that_is_lost(tmp_path):
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1), "split": "train"} for i in range(9)]
    rows.append({"problem": "3 + 1", "answer": "4", "split": "test"})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = preset("tiny", **{"data.problems": str(tmp_path / "a.jsonl"), "data.eval_problems": 2})
    found = inspect(config, verify=False)
    assert found.left_out == {"problem that occurred before, in another split": 1}
    assert (
        "names rows as test, of which none can be used (1 x problem that occurred before, in another" in found.refusal
    )


def test_columns_that_are_rich_in_text_are_named(tmp_path):
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1), "note": "n", "hint_long": "Add one. " * 9} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect(preset("tiny", **{"data.problems": str(tmp_path / "a.jsonl")}), verify=False)
    assert found.unused == {"note": 1.0, "hint_long": 81.0}
    text = format_inspection(found)
    assert (
        "warning: column hint_long is not used, but holds 81 characters of text per row; --column FIELD=hint_long"
        in text
    )
    assert "column note" not in text


def test_examples_are_what_the_policy_reads(tiny, tmp_path):
    rows = [{"problem": f"{i}+1=", "answer": str(i + 1), "solution": f"\\boxed{{{i + 1}}}"} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect(preset("tiny", **{"data.problems": str(tmp_path / "a.jsonl")}), tokenizer=tiny[1], verify=False)
    assert found.unknown == 0
    assert len(found.shown) == 3
    title, text = found.shown[1]
    assert title == "a-1, answer 2"
    assert "1+1=" in text
    assert text.rstrip().endswith(tiny[1].eos_token)
    assert text.index("1+1=") < text.index("\\boxed{2}")
    assert "tokens that the vocabulary does not know: 0.00%" in format_inspection(found)
