"""Benchmarks: where they are found, their own numbers of samples, and evaluations that go on where they stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from prefix_rft_lab import cli, evaluate, evaluation_run
from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.evaluation_run import evaluate_benchmarks, evaluate_policy, format_benchmarks
from prefix_rft_lab.tasks.benchmarks import BENCHMARKS, PAPER, locate
from prefix_rft_lab.tasks.sources import read_problems

CONFIG = preset(
    "tiny",
    **{"model.device": "cpu", "rollout.max_batch_rows": 8, "rollout.max_response_tokens": 24, "evaluation.k": 4},
)


def write(path: Path, rows: int) -> str:
    lines = [
        {"problem": f"{i}+3", "answer": str(i + 3), "level": "2" if i % 2 else "1", "id": f"{path.stem}-{i}"}
        for i in range(1, rows + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_where_benchmarks_are(tmp_path):
    assert locate("paper") == {name: BENCHMARKS[name].hub for name in PAPER}
    assert locate("gsm8k, aime24=mine.jsonl") == {"gsm8k": "openai/gsm8k:main:test", "aime24": "mine.jsonl"}
    for name in ("aime2024.jsonl", "amc23_40.parquet", "MATH-500.csv", "aime24.txt"):
        (tmp_path / name).touch()
    assert locate("aime24,amc23,math500", str(tmp_path)) == {
        "aime24": str(tmp_path / "aime2024.jsonl"),
        "amc23": str(tmp_path / "amc23_40.parquet"),
        "math500": str(tmp_path / "MATH-500.csv"),
    }
    with pytest.raises(ConfigError, match=r"benchmark 'minerva' is not in .*; put minerva\* \(JSONL, parquet or CSV\)"):
        locate("minerva", str(tmp_path))
    with pytest.raises(ConfigError, match="benchmark 'aime26' is not known; use aime24, aime25, amc23"):
        locate("aime24,aime26")
    assert {name: b.k for name, b in BENCHMARKS.items() if b.k > 1} == {"aime24": 32, "aime25": 32, "amc23": 32}


def test_each_benchmark_with_its_own_number_of_samples(tmp_path):
    sources = {"aime24": write(tmp_path / "a.jsonl", 3), "math500": write(tmp_path / "m.jsonl", 4)}
    small, large = evaluate_benchmarks(CONFIG, sources, out=tmp_path / "out")
    assert (small.summary["k"], small.summary["problems"]) == (32, 3)
    assert (large.summary["k"], large.summary["problems"]) == (1, 4)
    assert set(large.summary["levels"]) == {"1", "2"}
    written = json.loads((tmp_path / "out" / "aime24.json").read_text())
    assert written["summary"] == small.summary
    assert [point["k"] for point in written["pass_curve"]] == [1, 2, 4, 8, 16, 32]
    assert written["pass_curve"][-1]["mean"] == small.summary["pass"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "math500.parquet"), large.table)
    text = format_benchmarks([small, large])
    for words in ("AIME 2024", "MATH-500", "mean", "pass@k, unbiased", "MATH-500 by level"):
        assert words in text


def test_an_interrupted_evaluation_goes_on_to_the_same_table(tmp_path, monkeypatch):
    source = {"aime24": write(tmp_path / "a.jsonl", 7)}
    whole = evaluate_benchmarks(CONFIG, source, k=4)[0].table
    sampled = []
    real = evaluate.sample_scores

    def stopping(engine, problems, *args, **kwargs):
        if len(sampled) == 2:
            raise KeyboardInterrupt
        sampled.append([p.problem.id for p in problems])
        return real(engine, problems, *args, **kwargs)

    monkeypatch.setattr(evaluate, "sample_scores", stopping)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmarks(CONFIG, source, k=4, out=out)
    [parts] = out.iterdir()
    with parts.open("a") as file:
        file.write('{"rows": [{"id": "torn')
    sampled.clear()
    monkeypatch.setattr(evaluate, "sample_scores", lambda *a, **k: sampled.append(len(a[1])) or real(*a, **k))
    [found] = evaluate_benchmarks(CONFIG, source, k=4, out=out)
    assert sampled == [2, 1], "4 of 7 problems were there"
    pd.testing.assert_frame_equal(found.table, whole)
    assert sorted(path.name for path in out.iterdir()) == ["aime24.json", "aime24.parquet"]


def test_what_is_there_is_taken_over_only_if_nothing_changed(tmp_path, monkeypatch):
    source = {"math500": write(tmp_path / "a.jsonl", 3)}
    out = tmp_path / "out"
    [first] = evaluate_benchmarks(CONFIG, source, out=out)
    sampled = []
    real = evaluate.sample_scores
    monkeypatch.setattr(evaluate, "sample_scores", lambda *a, **k: sampled.append(k["k"]) or real(*a, **k))
    [again] = evaluate_benchmarks(CONFIG, source, out=out)
    assert not sampled
    pd.testing.assert_frame_equal(again.table, first.table)
    evaluate_benchmarks(CONFIG, source, k=2, out=out)
    assert sampled == [2]
    evaluate_benchmarks(CONFIG.replace(**{"evaluation.temperature": 0.6}), source, k=2, out=out)
    assert sampled == [2, 2]
    write(tmp_path / "a.jsonl", 2)
    evaluate_benchmarks(CONFIG.replace(**{"evaluation.temperature": 0.6}), source, k=2, out=out)
    assert sampled == [2, 2, 2]
    monkeypatch.setattr(evaluation_run, "environment", lambda threads: {"source": "other code"})
    evaluate_benchmarks(CONFIG.replace(**{"evaluation.temperature": 0.6}), source, k=2, out=out)
    assert sampled == [2, 2, 2, 2]


def test_batches_change_no_figure(tmp_path):
    """A batch is as many problems as fit; the whole at once gives the same."""
    config = CONFIG.replace(**{"data.problems": write(tmp_path / "a.jsonl", 7)})
    small = evaluate_policy(config, split="all")
    whole = evaluate_policy(config.replace(**{"rollout.max_batch_rows": 2048}), split="all")
    pd.testing.assert_frame_equal(small.table, whole.table)


def test_answers_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answer": "\\\\begin{tabular}"}\n')
    [found] = evaluate_benchmarks(CONFIG, {"math500": str(path)})
    assert found.unread == ("a-1",)


def test_command(tmp_path, capsys):
    write(tmp_path / "aime24.jsonl", 2)
    common = ["evaluate", "--model=tiny", "--benchmark=aime24", "--benchmark-dir", str(tmp_path)]
    small = ["--k=2", "--set=rollout.max_response_tokens=16"]
    assert cli.main([*common, *small, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "AIME 2024  2         2" in shown and f"written {tmp_path / 'out' / 'aime24.parquet'}" in shown
    for arguments, words in (
        ([*common, "--problems=x.jsonl"], "--benchmark brings its own problems"),
        ([*common, "--k=0"], "--k 0 samples nothing"),
        ([*common, *small, "--out", str(tmp_path / "aime24.jsonl")], "is a file; benchmarks are written into a folder"),
        (["evaluate", "--model=tiny", "--benchmark-dir=x"], "--benchmark-dir needs --benchmark"),
        (["evaluate", "--model=tiny", "--benchmark=aime25", "--benchmark-dir", str(tmp_path)], "is not in"),
    ):
        assert cli.main(arguments) == 2
        assert words in capsys.readouterr().err


def test_columns_are_named_alike_for_every_command(tmp_path, capsys):
    """``--column`` of a benchmark, of an evaluation, of a training, of a table of tokens and of an inspection."""
    rows = [{"Aufgabe": f"{i}+1=", "x": {"Ergebnis": i + 1}, "answer": "no"} for i in range(4)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ["--column=problem=aufgabe", "--column=answer=x.ergebnis"]
    small = ["--set=rollout.max_response_tokens=8", "--limit=2"]
    path = ["--problems", str(file)]
    out = ["--out", str(tmp_path / "out")]
    for arguments in (
        ["evaluate", "--model=tiny", f"--benchmark=aime24={file}", "--k=1", *small, *out],
        ["evaluate", "--model=tiny", *path, "--k=1", "--split=all", *small],
        ["tokens", "--model=tiny", *path, "--sample=1", *small, "--max-tokens=8"],
        ["train", *path, "--set=data.eval_problems=1", "--dry-run"],
        ["data", "inspect", str(file), "--quick"],
    ):
        assert cli.main([*arguments, *named]) == 0, (arguments, capsys.readouterr())
    assert "problem from Aufgabe (4)\nanswer from x.Ergebnis (4)" in capsys.readouterr().out
    assert list(pd.read_parquet(tmp_path / "out" / "aime24.parquet")["id"]) == ["mine-0", "mine-1"]
    assert cli.main(["evaluate", "--model=tiny", f"--benchmark=aime24={file}", "--column=answer=nowhere"]) == 2
    assert (
        "data.columns.answer = 'nowhere' is not a column of mine.jsonl; it has Aufgabe, x, answer"
        in capsys.readouterr().err
    )


def test_real_files_are_found_and_read():
    folder = os.environ.get("PREFIX_RFT_LAB_DATA")
    if not folder:
        pytest.skip("PREFIX_RFT_LAB_DATA is not set: name a folder with aime2024.jsonl, amc23_40.jsonl, math500.jsonl")
    rows = {"aime24": 30, "amc23": 40, "math500": 500, "olympiadbench": 675}
    for name, source in locate(",".join(rows), folder).items():
        problems, dropped = read_problems(CONFIG.data.model_copy(update={"problems": source}))
        assert (
            len(problems) + sum(n for reason, n in dropped.items() if "row" in reason or "before" in reason)
            == rows[name]
        )
        assert len(problems) >= rows[name] - 1
