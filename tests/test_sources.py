"""Readers: every file becomes the same problems, or one sentence that says what to correct."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from prefix_rft_lab.config import ConfigError, DataConfig
from prefix_rft_lab.rewards import Verifier
from prefix_rft_lab.tasks import chains, sources
from prefix_rft_lab.tasks.sources import boxed_demonstration, load_problems, read_problems, thin_demonstrations

ROWS = [
    {"id": "a", "problem": "1+1?", "answer": "2", "solution": "It is \\boxed{2}.", "level": "easy"},
    {"id": "b", "problem": "2+2?", "answer": "4", "solution": "Two and two.\n#### 4", "level": "hard"},
    {"id": "c", "problem": "3+3?", "answer": "6", "solution": None, "level": None},
]


def read_file(path, columns=None, **changes):
    return read_problems(DataConfig(problems=str(path), columns=columns or {}, **changes))


def jsonl(path, rows, **kwargs):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), **kwargs)
    return path


def many(n):
    return [{"problem": f"{i}+1?", "answer": str(i + 1), "solution": f"\\boxed{{{i + 1}}}"} for i in range(n)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_jsonl_and_parquet_give_the_same_problems(tmp_path, kind):
    path = tmp_path / f"problems.{kind}"
    if kind == "jsonl":
        jsonl(path, ROWS)
    else:
        pd.DataFrame(ROWS).to_parquet(path)
    problems, reasons = read_file(path)
    assert [(p.id, p.prompt, p.answer, p.level) for p in problems] == [
        ("a", "1+1?", "2", "easy"),
        ("b", "2+2?", "4", "hard"),
        ("c", "3+3?", "6", ""),
    ]
    assert [p.demonstration for p in problems] == ["It is \\boxed{2}.", "Two and two.\n\\boxed{4}", None]
    assert not reasons


def test_column_names_aliases_and_mapping(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"question": "1+1?", "answer": 2, "demonstration": "\\boxed{2}"}])
    ((one,), _) = read_file(path)
    assert (one.id, one.prompt, one.answer, one.demonstration) == ("a-0", "1+1?", "2", "\\boxed{2}")
    path = jsonl(tmp_path / "b.jsonl", [{"Frage": "1+1?", "Antwort": "2", "Weg": "so", "answer": "no", "nr": 7}])
    mapping = {"problem": "Frage", "answer": "Antwort", "demonstration": "Weg", "id": "nr"}
    ((one,), _) = read_file(path, mapping)
    assert (one.id, one.prompt, one.answer, one.demonstration) == ("7", "1+1?", "2", "so\n\\boxed{2}")


def test_fields_may_be_left_out_of_any_line(tmp_path):
    rows = [{"problem": "1+1?", "answer": "2"}, {"problem": "2+2?", "answer": "4", "solution": "\\boxed{4}"}]
    for order in (rows, rows[::-1]):
        problems, _ = read_file(jsonl(tmp_path / "a.jsonl", order))
        assert {p.prompt: p.demonstration for p in problems} == {"1+1?": None, "2+2?": "\\boxed{4}"}
    problems, reasons = read_file(jsonl(tmp_path / "a.jsonl", [{"problem": "3+3?"}, *rows]))
    assert (len(problems), dict(reasons)) == (2, {"row without answer": 1})


def test_rows_that_cannot_be_used_are_dropped_and_counted(tmp_path):
    rows = [
        {"problem": "", "answer": "2", "solution": "x"},
        {"problem": None, "answer": "2", "solution": "x"},
        {"problem": "1+1?", "answer": None, "solution": "x"},
        {"problem": "1+2?", "answer": "  ", "solution": "x"},
        {"problem": "1+3?", "answer": "4", "solution": "  "},
        {"problem": "1+4?", "answer": 0, "solution": None},
    ]
    problems, reasons = read_file(jsonl(tmp_path / "a.jsonl", rows))
    assert [(p.prompt, p.answer, p.demonstration) for p in problems] == [("1+3?", "4", None), ("1+4?", "0", None)]
    assert dict(reasons) == {
        "row without problem": 2,
        "row without answer": 2,
        "empty demonstration": 1,
        "no demonstration left (problem kept)": 1,
    }


@pytest.mark.parametrize("dtype", ["object", "Int64", "float64", "string"])
def test_missing_values_of_parquet_are_missing(tmp_path, dtype):
    """They come back as None, NaN or NA, by column type; none of them is an answer."""
    answers = ["2", None] if dtype in ("object", "string") else [2, None]
    frame = pd.DataFrame(
        {"problem": ["1+1?", "2+2?"], "answer": pd.array(answers, dtype=dtype), "solution": [None, "x"]}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    problems, reasons = read_file(tmp_path / "a.parquet")
    assert [p.prompt for p in problems] == ["1+1?"]
    assert problems[0].answer in ("2", "2.0")
    assert dict(reasons) == {"row without answer": 1}


def test_blank_lines_and_a_byte_order_mark_are_no_obstacle(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), "", "  ", json.dumps(ROWS[1])]), encoding="utf-8-sig")
    assert [p.id for p in read_file(path)[0]] == ["a", "b"]


def test_text_outside_ascii(tmp_path):
    row = {"problem": "Wie viel ist ½ + ½?\u2028Sag es.", "answer": "1", "solution": "∴ \\boxed{1}"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    ((one,), _) = read_file(path)
    assert (one.prompt, one.demonstration) == (row["problem"], row["solution"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; give a file with one problem per row"),
        (b"\n\n", "is empty"),
        (b'{"problem": "1+1?", "answer": "2"}\n{"problem": ', "line 2 is not JSON"),
        (b"[1, 2]\n", "record 1 is a int, not an object; write one object a record"),
        (b'{"text": "1+1?", "answer": "2"}\n', "has no column 'problem'; it has text, answer: name the right one"),
        (b'{"problem": "1+1?", "Loesung": "2"}\n', "has no column 'answer'"),
        (
            b'{"Aufgabe": "1+1?"}\n',
            "has no column 'problem' and no column 'answer'; it has Aufgabe: name the right one",
        ),
        (b'{"problem": "", "answer": "2"}\n', "has no usable row (1 x row without problem (a-0))"),
        ('{"problem": "1+1?", "answer": "2"}\n'.encode("utf-16-le"), "is not a text, parquet or Arrow file"),
        ('{"problem": "½?", "answer": "2"}\n'.encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_bad_parquet_and_bad_mapping(tmp_path):
    with pytest.raises(
        ConfigError, match=r"is not a file; give the path of a JSONL, JSON, parquet, CSV or TSV file, or a data set"
    ):
        read_file(tmp_path / "nowhere.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigError, match="is not a readable parquet file"):
        read_file(tmp_path / "a.parquet")
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(
        ConfigError, match=r"data.columns.answer = 'gold' is not a column of a.jsonl; it has id, problem"
    ):
        read_file(path, {"answer": "gold"})
    with pytest.raises(ConfigError, match=r"data.columns has the name 'prompt'; map only id, problem"):
        read_file(path, {"prompt": "problem"})


@pytest.mark.parametrize(
    ("demonstration", "expected"),
    [
        ("Half of 48 is 24.\n#### 24", "Half of 48 is 24.\n\\boxed{24}"),
        ("Half of 48 is 24.\n#### 1,024 \n", "Half of 48 is 24.\n\\boxed{24}"),
        ("Half.", "Half.\n\\boxed{24}"),
        ("So \\boxed{24}.\n#### 24", "So \\boxed{24}.\n#### 24"),
        ("So \\boxed{24", "So \\boxed{24\n\\boxed{24}"),
        ("#### 3 comes first\nthen 24", "#### 3 comes first\nthen 24\n\\boxed{24}"),
    ],
)
def test_demonstrations_end_in_a_box(demonstration, expected):
    assert boxed_demonstration(demonstration, "24") == expected


def test_splits_of_a_file_are_disjoint_and_keyed(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", many(50)))
    config = DataConfig(problems=path, eval_problems=8, train_problems=20)

    def prompts(split, **changes):
        return [p.prompt for p in load_problems(config.model_copy(update=changes), split)[0]]

    found = {split: prompts(split) for split in ("train", "validation", "test")}
    assert {split: len(p) for split, p in found.items()} == {"train": 20, "validation": 8, "test": 8}
    assert len({p for split in found.values() for p in split}) == 36
    assert found == {split: prompts(split) for split in found}
    assert prompts("train") != prompts("train", seed=1)
    assert prompts("train", train_problems=5) == found["train"][:5]
    assert prompts("train", train_problems=1000)[:20] == found["train"]
    assert all(p.split == "validation" for p in load_problems(config, "validation")[0])
    assert sources.splits(config) == ("train", "validation", "test")


def test_splits_share_one_reading_of_an_unchanged_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    config = DataConfig(problems=str(jsonl(path, [*many(20), {"problem": "?"}])), eval_problems=5)
    read = []
    monkeypatch.setattr(sources, "read_problems", lambda config: read.append(1) or read_problems(config))
    for split in sources.splits(config):
        found, reasons = load_problems(config, split)
        assert reasons == {"row without answer": 1}
        reasons["something else"] += 1
        found.clear()
    assert len(read) == 1
    os.utime(jsonl(path, many(30)), ns=(0, 0))
    assert len(load_problems(config, "train")[0]) == 20
    assert len(read) == 2


def test_a_problem_that_occurs_twice_is_in_one_split(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", many(20) + many(20)))
    config = DataConfig(problems=path, eval_problems=5, train_problems=100)
    found = {split: [p.prompt for p in load_problems(config, split)[0]] for split in sources.splits(config)}
    flat = [prompt for prompts in found.values() for prompt in prompts]
    assert len(flat) == len(set(flat)) == 20
    assert load_problems(config, "train")[1] == {"problem that occurred before": 20}


def test_too_few_rows(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", many(16)))
    with pytest.raises(ConfigError, match=r"has 16 usable rows, but 2 x data.eval_problems = 16 are held out; lower"):
        load_problems(DataConfig(problems=path, eval_problems=8), "train")


def test_fractions_are_nested_subsets_of_exact_size():
    problems = chains.problems("train", 200)
    kept = {}
    for fraction in (0.0, 0.01, 0.1, 0.333, 0.5, 1.0):
        thinned = thin_demonstrations(problems, fraction, seed=0)
        assert [p.id for p in thinned] == [p.id for p in problems]
        kept[fraction] = {p.id for p in thinned if p.demonstration is not None}
        assert len(kept[fraction]) == round(fraction * 200)
        assert all(p.demonstration in (None, q.demonstration) for p, q in zip(thinned, problems, strict=True))
    shares = sorted(kept)
    assert all(kept[a] <= kept[b] for a, b in pairwise(shares))
    other = {p.id for p in thin_demonstrations(problems, 0.5, seed=1) if p.demonstration is not None}
    assert other != kept[0.5]


def test_a_fraction_is_taken_of_the_demonstrations_that_there_are(tmp_path):
    rows = [row | {"solution": row["solution"] if i % 2 else None} for i, row in enumerate(many(40))]
    path = str(jsonl(tmp_path / "a.jsonl", rows))
    config = DataConfig(problems=path, eval_problems=1, demonstration_fraction=0.5, train_problems=38)
    whole = load_problems(config.model_copy(update={"demonstration_fraction": 1.0}), "train")[0]
    half = load_problems(config, "train")[0]
    have = sum(p.demonstration is not None for p in whole)
    assert sum(p.demonstration is not None for p in half) == round(have / 2)


def test_the_embedded_world_as_a_source():
    config = DataConfig(train_problems=30, eval_problems=7, demonstration_fraction=0.2)
    problems, reasons = load_problems(config, "train")
    assert (len(problems), sum(p.demonstration is not None for p in problems), len(reasons)) == (30, 6, 0)
    for split in ("validation", "test", "ood"):
        found = load_problems(config, split)[0]
        assert len(found) == 7
        assert all(p.demonstration is not None for p in found), "only training demonstrations are thinned"
    assert sources.splits(config) == chains.SPLITS
    with pytest.raises(ConfigError, match=r"data.expert = 'sloppy' is not known; use one of thorough.*self"):
        load_problems(DataConfig(expert="sloppy"), "train")


# ---------------------------------------------------------------- real problems


@pytest.fixture
def folder():
    """Where gsm8k_train.jsonl and math_train.jsonl lie: rows with problem, answer, solution."""
    found = os.environ.get("PREFIX_RFT_LAB_DATA")
    if not found:
        pytest.skip("PREFIX_RFT_LAB_DATA is not set: name a folder with gsm8k_train.jsonl and math_train.jsonl")
    return Path(found)


@pytest.mark.parametrize(("name", "rows"), [("gsm8k_train", 7473), ("math_train", 7500)])
def test_demonstrations_of_real_problems_verify(folder, name, rows):
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    problems, reasons = read_file(path)
    assert len(problems) + sum(reasons.values()) == rows
    assert sum(reasons.values()) <= 4, "MATH has an answer missing and three problems twice"
    first = problems[:300]
    assert all(p.demonstration is not None for p in first)
    assert not any("####" in p.demonstration for p in first)
    texts = [p.demonstration for p in first]
    with Verifier() as verifier:
        assert verifier.score_all(texts, [p.answer for p in first]) == [1.0] * 300
        assert verifier.score_all(texts, ["123456789"] * 300) == [0.0] * 300
        assert verifier.timeouts == 0


def test_splits_that_the_rows_name(tmp_path):
    rows = [row | {"split": "test" if i >= 20 else "train"} for i, row in enumerate(many(30))]
    config = DataConfig(problems=str(jsonl(tmp_path / "a.jsonl", rows)), eval_problems=8)
    found = {split: {p.prompt for p in load_problems(config, split)[0]} for split in sources.splits(config)}
    assert {split: len(prompts) for split, prompts in found.items()} == {"train": 12, "validation": 8, "test": 8}
    named = {row["problem"] for row in rows if row["split"] == "test"}
    assert found["test"] <= named
    assert not named & (found["train"] | found["validation"]), "no row of the test split is trained on"
    config = config.model_copy(update={"problems": str(jsonl(tmp_path / "b.jsonl", rows[20:]))})
    with pytest.raises(ConfigError, match=r"test is named by its rows and 1 x data.eval_problems = 8 are held out"):
        load_problems(config, "train")
