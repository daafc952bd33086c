"""Layouts of the known sets, files of every kind, the Hub with and without a network, and what is chosen or left out."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pytest

from prefix_rft_lab import cli, hub, rng, train
from prefix_rft_lab.config import ConfigError, DataConfig, preset
from prefix_rft_lab.evaluation_run import evaluate_policy
from prefix_rft_lab.policy import load_policy, load_tokenizer
from prefix_rft_lab.tasks import chains, readers
from prefix_rft_lab.tasks.inspection import format_inspection, inspect
from prefix_rft_lab.tasks.readers import Candidate, open_source
from prefix_rft_lab.tasks.sources import Leaks, choose, read_problems, usable_demonstrations

OPENR1 = [
    {
        "problem": "x^2=4?",
        "solution": "It is 2 or -2.",
        "answer": "2, -2",
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": "u-0",
        "is_reasoning_complete": [True, True, False, True],
        "generations": [
            "<think>\nlong way\n</think>\n\\boxed{2} and \\boxed{-2}",
            "<think>\nwrong\n</think>\n\\boxed{2}",
            "<think>\nnever ends",
            "<think>\nbrief\n</think>\n\\boxed{2, -2}",
        ],
        "correctness_math_verify": [True, False, True, False],
        "correctness_llama": [None, False, None, True],
        "finish_reasons": ["stop", "stop", "length", "stop"],
        "correctness_count": 2,
        "messages": [],
    },
    {
        "problem": "Prove it.",
        "solution": "Trivial.",
        "answer": "proof",
        "uuid": "u-1",
        "generations": ["<think>\n</think>"],
        "correctness_math_verify": [False],
        "correctness_llama": None,
        "finish_reasons": None,
        "is_reasoning_complete": [True],
    },
    {
        "problem": "1+1?",
        "solution": "2",
        "answer": "2",
        "uuid": "u-2",
        "generations": ["<think>\n</think>\\boxed{3}"],
        "correctness_math_verify": [False],
        "correctness_llama": None,
        "finish_reasons": None,
        "is_reasoning_complete": [True],
    },
]
OPENR1_46K = [
    {
        "data_source": "openr1",
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
        "target": [{"role": "assistant", "content": "<think>\nsum\n</think>\n\\boxed{2}"}],
        "ability": "math",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 7, "split": "default"},
    },
    {
        "data_source": "openr1",
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+2?"}],
        "target": None,
        "ability": "math",
        "reward_model": {"ground_truth": "3", "style": "rule"},
        "extra_info": {"index": 8, "split": "default"},
    },
]
GSM8K = [
    {"question": "Half of 48?", "answer": "48/2 = <<48/2=24>>24\n#### 24"},
    {"question": "A house?", "answer": "It is $70,000\n#### 70,000"},
]
MATH = [
    {"problem": "1/2+1/2?", "solution": "It is $\\boxed{1}$.", "level": "Level 1", "type": "Algebra"},
    {"problem": "Say.", "solution": "Nothing.", "level": "Level 5", "type": "Algebra"},
]


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(source, **changes):
    return read_problems(DataConfig(problems=str(source), **changes))


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_openr1_220k(tmp_path, kind):
    source = write(tmp_path / f"a.{kind}", OPENR1)
    first, proof, _ = list(open_source(source).records)
    assert (first.id, first.answer, first.kind) == ("u-0", "2, -2", "Algebra")
    assert [(c.verified, c.finished) for c in first.demonstrations] == [
        (True, True),
        (False, True),
        (True, False),
        (True, True),
    ], "verified by either judge; cut off by either sign"
    assert proof.answer is None
    problems, dropped = read(source, demonstrations="all")
    assert [p.id for p in problems] == ["u-0", "u-2"]
    assert problems[0].demonstrations == (OPENR1[0]["generations"][0], OPENR1[0]["generations"][3])
    assert problems[1].demonstrations == ()
    assert dropped == {
        "row without answer": 1,
        "demonstration that is not verified": 2,
        "demonstration that was cut off": 1,
        "no demonstration left (problem kept)": 1,
    }
    assert dropped.examples["row without answer"] == ["u-1"]
    assert dropped.examples["demonstration that is not verified"] == ["u-0", "u-2"]


def test_choice_among_several_demonstrations(tmp_path):
    source = write(tmp_path / "a.jsonl", OPENR1)
    generations = OPENR1[0]["generations"]

    def chosen(**changes):
        return read(source, **changes)[0][0].demonstrations

    assert chosen() == (generations[0],)
    assert chosen(demonstrations="shortest") == (generations[3],)
    assert chosen(demonstrations="shortest", unverified=True) == (generations[1],)
    assert chosen(demonstrations="all", max_demonstration_characters=40) == (generations[3],)
    assert len(chosen(demonstrations="all", unverified=True)) == 3, "what was cut off is never used"
    draws = {chosen(demonstrations="random", seed=seed) for seed in range(20)}
    assert draws == {(generations[0],), (generations[3],)}
    assert chosen(demonstrations="random", seed=3) == chosen(demonstrations="random", seed=3)


def test_choose_by_hand():
    texts = ["abc", "a", "ab", "z"]
    one = rng.generator(0, "test")
    assert choose(texts, "first", generator=one) == ["abc"]
    assert choose(texts, "shortest", generator=one) == ["a"], "of equals the first"
    assert choose(texts, "all", generator=one) == texts
    for how in ("first", "shortest", "random", "all"):
        assert choose([], how, generator=one) == []
    drawn = Counter(choose(texts, "random", generator=rng.generator(0, "test", i))[0] for i in range(4000))
    assert all(850 < drawn[text] < 1150 for text in texts), drawn


def test_reasons_by_hand():
    candidates = [
        Candidate(text="good"),
        Candidate(text=""),
        Candidate(text="unverified", verified=False),
        Candidate(text="cut", finished=False),
        Candidate(text="x" * 11),
    ]
    assert usable_demonstrations(candidates, unverified=False, max_characters=10) == (
        ["good"],
        [
            "empty demonstration",
            "demonstration that is not verified",
            "demonstration that was cut off",
            "demonstration longer than data.max_demonstration_characters",
        ],
    )
    assert usable_demonstrations(candidates, unverified=True, max_characters=None)[0] == [
        "good",
        "unverified",
        "x" * 11,
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_openr1_46k(tmp_path, kind):
    source = write(tmp_path / f"a.{kind}", OPENR1_46K)
    problems, dropped = read(source)
    assert [(p.id, p.prompt, p.answer) for p in problems] == [("default-7", "1+1?", "2"), ("default-8", "1+2?", "3")]
    assert [p.demonstration for p in problems] == ["<think>\nsum\n</think>\n\\boxed{2}", None]
    assert not dropped


def test_gsm8k_as_on_the_hub(tmp_path):
    source = write(tmp_path / "train.parquet", GSM8K)
    problems, _ = read(source)
    assert [(p.id, p.answer) for p in problems] == [("train-0", "24"), ("train-1", "70,000")]
    assert problems[0].demonstration == "48/2 = <<48/2=24>>24\n\\boxed{24}"


def test_math_takes_its_answer_from_the_box(tmp_path):
    source = write(tmp_path / "a.jsonl", MATH)
    ((one,), dropped) = read(source)
    assert (one.answer, one.level, one.demonstration) == ("1", "Level 1", "It is $\\boxed{1}$.")
    assert dropped == {"row without answer": 1}


def test_several_demonstrations_in_a_list(tmp_path):
    rows = [{"problem": "1+1?", "answer": "2", "solution": ["\\boxed{2}", " ", "So 2."]}]
    ((one,), _) = read(write(tmp_path / "a.jsonl", rows), demonstrations="all")
    assert one.demonstrations == ("\\boxed{2}", "So 2.\n\\boxed{2}")


def test_an_answer_that_is_one_of_several_is_completed(tmp_path):
    rows = [{"problem": "x^2=4?", "answer": "-2", "solution": "$x = \\boxed{2}$ or $x = \\boxed{-2}$"}]
    ((one,), _) = read(write(tmp_path / "a.jsonl", rows))
    assert one.answer == "\\boxed{-2} \\boxed{2, -2}"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (["1", "2"], "1, 2"),
        (["$5$"], "$5$"),
        ([], None),
        (r"\boxed{5}", "5"),
        (r"$x = \boxed{1}$ or $x = \boxed{2}$", "1, 2"),
        ("It is 20 + 4.\n#### 24", "24"),
        (7, "7"),
        (True, "True"),
    ],
)
def test_answers_of_every_form(tmp_path, answer, gold):
    source = write(tmp_path / "a.jsonl", [{"problem": "?", "final_answer": answer}])
    assert [record.answer for record in open_source(source).records] == [gold]


# ---------------------------------------------------------------- files


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        out = csv.writer(file)
        out.writerow(["problem", "answer", "solution"])
        out.writerow(["What is 1,000 +\n1?", "1,001", 'He said "1,001".'])
        out.writerow(["1+1?", "", "x"])
        out.writerow(["½?", "0.5", "y" * 200_000])
    problems, dropped = read(path)
    assert [(p.prompt, p.answer) for p in problems] == [("What is 1,000 +\n1?", "1,001"), ("½?", "0.5")]
    assert problems[0].demonstration == 'He said "1,001".\n\\boxed{1,001}'
    assert dropped == {"row without answer": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"problem,answer\n", "is empty"),
        (b"problem,answer\n1+1?\n", "line 2 does not have 2 cells"),
        (b"problem,answer\n1,000+1?,1001\n", "line 2 does not have 2 cells"),
        (b'problem,answer\n"1+1?,2\n', "is not readable CSV"),
        ("problem,answer\n½?,2\n".encode("latin-1"), "is not UTF-8 text; save it as UTF-8 text"),
    ],
)
def test_bad_csv_is_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_files_by_a_pattern(tmp_path):
    for i in range(3):
        write(tmp_path / f"train-{i}.parquet", [{"problem": f"{i}+1?", "answer": str(i + 1)}])
    write(tmp_path / "test-0.parquet", [{"problem": "9+1?", "answer": "10"}])
    assert [p.prompt for p in read(tmp_path / "train-*.parquet")[0]] == ["0+1?", "1+1?", "2+1?"]
    with pytest.raises(ConfigError, match="is not a file"):
        read(tmp_path / "nowhere-*.parquet")


def test_rows_stream(tmp_path):
    """No more of a file is read than is asked for, beyond what decides on its columns."""
    path = tmp_path / "a.jsonl"
    good = "".join(json.dumps({"problem": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(readers.PEEK_ROWS))
    path.write_text(good + "not JSON\n")
    problems, _ = read(path, max_rows=10)
    assert len(problems) == 10
    with pytest.raises(ConfigError, match=f"line {readers.PEEK_ROWS + 1} is not JSON"):
        read(path)


def test_a_column_that_first_occurs_late_is_read(tmp_path):
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(readers.PEEK_ROWS)]
    rows.append({"problem": "late?", "answer": "1", "solution": "\\boxed{1}"})
    assert read(write(tmp_path / "a.jsonl", rows))[0][-1].demonstration == "\\boxed{1}"


# ---------------------------------------------------------------- leaks


def test_leaks_by_hand():
    test = "A bag holds three red and five blue balls. Two balls are drawn; what is the chance that both are red?"
    leaks = Leaks([test, "What is 1 + 1?"])
    assert test in leaks
    assert "what is 1+1" in leaks, "case, spaces and punctuation do not matter"
    assert f"Think first. {test} Give a fraction." in leaks, "a quotation"
    assert "What is 1 + 2?" not in leaks
    assert "A bag holds three red and five blue balls. How many balls is that in all?" not in leaks
    assert "anything" not in Leaks([])


def test_test_sets_are_left_out(tmp_path):
    rows = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(5)]
    source = write(tmp_path / "a.jsonl", rows)
    held = write(tmp_path / "test.jsonl", [{"problem": "What is 3+1?", "answer": "4"}])
    problems, dropped = read(source, test_sets=(held,))
    assert [p.answer for p in problems] == ["1", "2", "3", "5"]
    assert dropped == {"problem of a test set, or nearly": 1}
    with pytest.raises(ConfigError, match=r"data.test_sets = 'nowhere.jsonl' is not a file; give"):
        read(source, test_sets=("nowhere.jsonl",))


# ---------------------------------------------------------------- the Hub


@pytest.fixture
def no_network(monkeypatch):
    """Every look-up of a name fails, as without a network, and is counted."""
    asked = []

    def fail(*args, **kwargs):
        asked.append(args)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in hub.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return asked


def test_an_uncached_name_without_a_network_is_refused_at_once(no_network):
    with pytest.raises(ConfigError) as caught:
        read("owner/name")
    assert "the Hub cannot be reached, and the data set is not in the local cache; give the path" in str(caught.value)
    for load in (load_policy, load_tokenizer):
        with pytest.raises(
            ConfigError, match=r"the Hub cannot be reached, and it is not in the local cache\); give a local"
        ):
            load(preset("tiny", **{"model.path": "owner/name"}))
    assert 1 <= len(no_network) <= 6, "asked once each; downloads would ask five times a file and wait in between"


def test_offline_by_a_variable_names_it(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"switched off by HF_HUB_OFFLINE, .* or unset HF_HUB_OFFLINE"):
        read("owner/name")


def test_a_cached_set_is_read_without_a_network(no_network, tmp_path, monkeypatch):
    import datasets

    write(tmp_path / "rows.jsonl", GSM8K)
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "build"))
    [made] = (tmp_path / "build" / "json").glob("*/*/*/")
    # The place and the file names that a set of this name has in the cache.
    there = tmp_path / "cache" / "owner___sums" / "default" / "0.0.0" / "0"
    shutil.copytree(made, there)
    (there / "json-train.arrow").rename(there / "sums-train.arrow")
    info = json.loads((there / "dataset_info.json").read_text())
    (there / "dataset_info.json").write_text(json.dumps(info | {"config_name": "default", "dataset_name": "sums"}))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert [p.answer for p in read("owner/sums")[0]] == ["24", "70,000"]
    with pytest.raises(ConfigError, match=r"'owner/sums:default:test' has no split 'test'; it has train"):
        read("owner/sums:default:test")


class _Response:
    """As much of an HTTP response as the Hub's errors look at."""

    def __init__(self, status):
        self.status_code = status
        self.headers = {}
        self.request = None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("GatedRepoError", "is gated; accept its terms on its page"),
        ("RepositoryNotFoundError", "is neither here nor a data set that the Hub shows you; correct the name"),
        ("HfHubHTTPError", "the Hub answered with an error (busy); try again"),
    ],
)
def test_refusals_of_the_hub(monkeypatch, name, words):
    from huggingface_hub import HfApi, errors

    def refuse(self, repository, timeout):
        raise getattr(errors, name)("busy", response=_Response(503))

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    with pytest.raises(ConfigError) as caught:
        read("owner/name")
    assert words in str(caught.value)


def test_rows_of_the_hub_stream(monkeypatch):
    import datasets

    asked = []

    def load(name, config, streaming):
        asked.append((name, config, streaming))
        return {"test": iter([]), "train": iter(GSM8K)}

    monkeypatch.setattr(hub, "answers_for", lambda *args: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [p.answer for p in read("openai/gsm8k")[0]] == ["24", "70,000"]
    assert [p.id for p in read("owner/sums:socratic")[0]] == ["sums:socratic-0", "sums:socratic-1"]
    assert asked == [("openai/gsm8k", "main", True), ("owner/sums", "socratic", True)]
    with pytest.raises(ConfigError, match="has no split 'dev'; it has test, train"):
        read("owner/sums:main:dev")


# ---------------------------------------------------------------- data inspect


def test_inspection_by_hand(tmp_path):
    rows = [
        {"problem": "1+1?", "answer": "2", "solution": "\\boxed{2}", "level": "easy"},
        {"problem": "x^2=4?", "answer": "-2", "solution": "\\boxed{2} or \\boxed{-2}", "level": "hard"},
        {"problem": "1+3?", "answer": "4", "solution": "\\boxed{5}", "level": "easy"},
        {"problem": "1+4?", "answer": "\\begin{tabular}", "solution": None, "level": "easy"},
        {"problem": "1+1?", "answer": "2"},
    ]
    source = write(tmp_path / "a.jsonl", rows)
    found = inspect(preset("tiny", **{"data.problems": source}))
    assert (found.rows, found.problems, found.demonstrated) == (5, 4, 3)
    assert found.offered == {0: 2, 1: 3}
    assert found.left_out == {"problem that occurred before": 1}
    assert found.levels == {"easy": 3, "hard": 1}
    assert (found.completed, found.unread, found.wrong) == (("a-1",), ["a-3"], ["a-2"])
    assert found.lengths["problem, characters"]["longest"] == 6
    text = format_inspection(found)
    assert "5 rows, 4 problems that can be used, 3 with a demonstration" in text
    assert "problem from problem (5)" in text
    assert "demonstration from solution (3)" in text
    assert "columns not used: none" in text
    assert inspect(preset("tiny"), problems=[{"Question": "?", "gt": 1, "hint": "x"}]).unused == {"hint": 1.0}
    assert "left out: 1 x problem that occurred before (a-4)" in text
    assert "own solution, another value or form than the gold answer: 1\n  a-2: gold 4, answer 5" in text


def test_inspection_in_tokens(tiny, tmp_path):
    rows = [{"problem": f"{i}+1=", "answer": str(i + 1), "solution": f"\\boxed{{{i + 1}}}"} for i in range(4)]
    rows.append({"problem": "1+" * 60 + "1=", "answer": "61", "solution": "\\boxed{61}"})
    config = preset("tiny", **{"data.problems": write(tmp_path / "a.jsonl", rows)})
    found = inspect(config, tokenizer=tiny[1], verify=False)
    assert found.problems == 4
    assert found.left_out == {"prompt longer than rollout.max_prompt_tokens": 1}
    assert found.lengths["prompt, tokens"]["longest"] <= config.rollout.max_prompt_tokens
    assert (found.graded, found.not_graded) == (0, {})


def test_data_inspect_command(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", OPENR1)
    held = write(tmp_path / "test.jsonl", [{"problem": "1+1?", "answer": "2"}])
    out = tmp_path / "found.json"
    arguments = ["data", "inspect", source, "--test-set", held, "--out", str(out), "--set=data.demonstrations=shortest"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "left out: 1 x problem of a test set, or nearly (u-2)" in shown
    assert json.loads(out.read_text())["problems"] == 1
    assert cli.main(["data", "inspect", source, "--rows", "1", "--quick"]) == 0
    assert "1 rows, 1 problems" in capsys.readouterr().out
    assert cli.main(["data", "inspect", "chains"]) == 2
    assert "is the embedded world; give a file" in capsys.readouterr().err
    assert cli.main(["data", "inspect", source, "--column", "answer=gold"]) == 2
    assert "is not a column of a.jsonl; it has problem, solution, answer" in capsys.readouterr().err
    assert cli.main(["data", "inspect", source, "--rows", "0"]) == 2
    assert "data.max_rows = 0 cannot be used" in capsys.readouterr().err


# ---------------------------------------------------------------- containers

RECORDS = [
    {"id": f"r{i}", "problem": f'{i}+1, or "½"?', "answer": str(i + 1), "solution": f"\\boxed{{{i + 1}}}"}
    for i in range(5)
]


def _lines(records):
    return "".join(json.dumps(r) + "\n" for r in records)


def _columns(records):
    return {name: [r[name] for r in records] for name in records[0]}


CONTAINERS = {
    "lines": _lines(RECORDS),
    "lines without an end": _lines(RECORDS).rstrip(),
    "array": json.dumps(RECORDS, indent=1),
    "array on one line": json.dumps(RECORDS, ensure_ascii=False),
    "columns": json.dumps(_columns(RECORDS)),
    "columns by index, as pandas writes": pd.DataFrame(RECORDS).to_json(),
    "columns, index and data": pd.DataFrame(RECORDS).to_json(orient="split"),
    "table with a schema": pd.DataFrame(RECORDS).to_json(orient="table", index=False),
    "by id": json.dumps({r["id"]: {k: v for k, v in r.items() if k != "id"} for r in RECORDS}, indent=2),
    "under one key": json.dumps({"version": 2, "data": RECORDS}),
    "rows of the Hub's viewer": json.dumps({"features": [], "rows": [{"row_idx": i, "row": r} for i, r in enumerate(RECORDS)]}),
    "commas": pd.DataFrame(RECORDS).to_csv(index=False),
    "tabs": pd.DataFrame(RECORDS).to_csv(index=False, sep="\t"),
    "semicolons": pd.DataFrame(RECORDS).to_csv(index=False, sep=";"),
}  # fmt: skip


@pytest.mark.parametrize("packed", ["", "gzip", "bz2", "lzma", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_known_by_its_content(tmp_path, name, packed):
    content = CONTAINERS[name].encode(packed if "utf" in packed else "utf-8")
    path = tmp_path / "problems.txt"
    path.write_bytes(content if "utf" in packed or not packed else importlib.import_module(packed).compress(content))
    problems, dropped = read(path)
    assert [(p.id, p.prompt, p.answer, p.demonstration) for p in problems] == [
        (r["id"], r["problem"], r["answer"], r["solution"]) for r in RECORDS
    ]
    assert not dropped


def test_arrow_folders_and_files(tmp_path):
    import datasets

    saved = datasets.Dataset.from_list(RECORDS)
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"test": saved.select([0]), "train": saved}).save_to_disk(tmp_path / "several")
    shard = next((tmp_path / "one").glob("*.arrow"))
    expected = read(write(tmp_path / "a.jsonl", RECORDS))[0]
    assert read(tmp_path / "one")[0] == read(tmp_path / "several")[0] == expected, (
        "of several splits the one to train on"
    )
    assert read(shard)[0] == expected[: len(read(shard)[0])] != []
    with pytest.raises(ConfigError, match="is a folder that save_to_disk did not write"):
        read(tmp_path)


def test_an_array_is_read_element_by_element(tmp_path, monkeypatch):
    """A file of one line is not held: pieces of 40 characters cut every record, and are enough."""
    monkeypatch.setattr(readers, "_CHUNK", 40)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS))
    assert len(read(path)[0]) == 5
    path.write_text(json.dumps(RECORDS * 400)[:-1] + ", oops]")
    assert len(read(path, max_rows=3)[0]) == 3, "what comes later was not read"


def test_rows_that_the_file_names_as_splits(tmp_path):
    source = tmp_path / "a.json"
    source.write_text(json.dumps({"train": RECORDS[:3], "test": RECORDS[3:]}))
    assert [p.split for p in read(source)[0]] == ["train"] * 3 + ["test"] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "is a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
        ("PK\x03\x04", "is a zip archive or a spreadsheet"),
        (_lines(RECORDS) + "[1]\n", "line 6 is a list, not an object"),
        (_lines(RECORDS) + "7\n", "line 6 is a int, not an object"),
        (json.dumps([*RECORDS, "x"]), "record 6 is a text, not an object"),
        (json.dumps(RECORDS)[:-5], "record 5 is not JSON"),
        (json.dumps(RECORDS)[:-1], "record 6 is not JSON (the array is not closed)"),
        (json.dumps(RECORDS) * 2, "goes on after its array"),
        (json.dumps([{str(i): 1 for i in range(900)}]), "and 880 more"),
    ],
)  # fmt: skip
def test_bad_containers_are_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_rows_left_out_are_counted_with_an_example(tmp_path):
    rows = [{"problem": f"{i}?", "answer": {"numbers": [i], "target": 1}} for i in range(3)] + [{"problem": None}]
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path / "a.jsonl", rows))
    assert (
        "3 x row with a gold (answer) that is an object (numbers, target) (a-0), 1 x row without problem (a-3)"
        in str(caught.value)
    )


def test_ids_that_restart_are_made_unique(tmp_path):
    rows = [{"idx": i % 2, "problem": f"{i}?", "answer": "1"} for i in range(4)]
    problems, dropped = read(write(tmp_path / "a.jsonl", rows))
    assert [p.id for p in problems] == ["0", "1", "0#2", "1#3"]
    assert dropped == {"id that occurred before (problem kept, its row added to the id)": 2}


@pytest.mark.parametrize(
    ("one", "other", "copies"),
    [
        ("What is 1 + 1?", "what is 1+1", True),
        ("Find x\N{SUPERSCRIPT TWO} \N{MINUS SIGN} 1.", "find X2-1", True),
        ("A 9-kilometer-long walk.", "A 9-kilometer long walk", True),
        ("Solve x^2-1=0.", "Solve x^2+1=0.", False),
        ("What is $88 \\div 4 \\div 2$?", "What is $88 \\div (4 \\div 2)$?", False),
        ("Compute 1.5+2", "Compute 1+5*2", False),
        ("What is 20!", "What is 20?", False),
        ("How many of the red balls that lie in the big box are there if it holds 12 of them?",
         "How many of the red balls that lie in the big box are there if it holds 13 of them?", False),
        ("?", "??", False),
    ],
)  # fmt: skip
def test_copies_by_hand(one, other, copies):
    assert (one in Leaks([other])) is (other in Leaks([one])) is copies


def test_the_content_of_a_file_names_it(tmp_path):
    one = hub.fingerprint(write(tmp_path / "a.jsonl", RECORDS))
    assert len(one) == 12
    assert one == hub.fingerprint(write(tmp_path / "b.jsonl", RECORDS)), "wherever it lies"
    write(tmp_path / "a.jsonl", RECORDS[1:])
    assert one != hub.fingerprint(str(tmp_path / "a.jsonl"))
    assert hub.fingerprint(str(tmp_path / "*.jsonl")) not in ("", one)
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    write(folder / "a.jsonl", RECORDS)
    before = hub.fingerprint(str(tmp_path / "saved"))
    write(folder / "a.jsonl", RECORDS[1:])
    assert hub.fingerprint(str(tmp_path / "saved")) not in ("", before), "of a folder all that is in it"
    assert hub.fingerprint("owner/name") == hub.fingerprint("chains") == ""


# ---------------------------------------------------------------- in memory


def _frames():
    import datasets
    import pyarrow as pa

    expected = read_problems_of(RECORDS)
    return {
        "list": RECORDS,
        "generator": (r for r in RECORDS),
        "tuple of Problems": tuple(expected),
        "columns": _columns(RECORDS),
        "pandas": pd.DataFrame(RECORDS),
        "pandas with a missing cell": pd.DataFrame([*RECORDS, {"problem": None}]),
        "numpy answers": [r | {"answer": np.int64(r["answer"]), "solution": r["solution"].encode()} for r in RECORDS],
        "Arrow": pa.Table.from_pylist(RECORDS),
        "Dataset": datasets.Dataset.from_list(RECORDS),
        "DatasetDict": datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS[:1]), "train": datasets.Dataset.from_list(RECORDS)}),
    }  # fmt: skip


def read_problems_of(given):
    from tempfile import mkdtemp

    return read(readers.keep(given, mkdtemp()))[0]


@pytest.mark.parametrize("name", ["list", "generator", "tuple of Problems", "columns", "pandas", "pandas with a missing cell",
                                  "numpy answers", "Arrow", "Dataset", "DatasetDict"])  # fmt: skip
def test_problems_in_python_are_read_as_from_a_file(tmp_path, name):
    assert read_problems_of(_frames()[name]) == read(write(tmp_path / "a.jsonl", RECORDS))[0]


def test_a_polars_frame(tmp_path):
    assert read_problems_of(polars.DataFrame(RECORDS)) == read(write(tmp_path / "a.jsonl", RECORDS))[0]


def test_content_names_what_is_kept(tmp_path):
    one = readers.keep(RECORDS, tmp_path)
    assert one == readers.keep(pd.DataFrame(RECORDS), tmp_path), "equal problems, equal source"
    assert one != readers.keep(RECORDS[:4], tmp_path)
    assert readers.keep(tmp_path / "a.jsonl", tmp_path) == str(tmp_path / "a.jsonl")
    assert len(list(tmp_path.iterdir())) == 2, "nothing temporary is left"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (7, "problems is a int; give dicts or Problems in a list"),
        ([{"problem": "?", "answer": "1"}, "x"], "problems holds a text as number 2; give dicts or Problems"),
        ([], "is empty"),
        ([{"problem": "?", "answer": object()}], "1 x row with a gold (answer) that is an object (object)"),
    ],
)
def test_what_is_no_problem_is_refused_in_one_sentence(tmp_path, given, words):
    with pytest.raises(ConfigError) as caught:
        read(readers.keep(given, tmp_path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_training_gives_the_same_bits_from_wherever_problems_come(tmp_path):
    import datasets

    found = chains.problems("train", 60, expert="thorough", seed=0)
    rows = [{"problem": p.prompt, "answer": p.answer, "solution": p.demonstration} for p in found]
    config = preset("tiny", **{"rl.steps": 2, "data.eval_problems": 8, "evaluation.hard_tries": 0, "evaluation.k": 1})
    path = write(tmp_path / "p.jsonl", rows)
    runs = [
        train(config.replace(**{"data.problems": path}), out=tmp_path / "file", progress=False),
        *(
            train(config, problems=given, out=tmp_path / name, progress=False)
            for name, given in {
                "list": rows,
                "frame": pd.DataFrame(rows),
                "polars": polars.DataFrame(rows),
                "set": datasets.Dataset.from_list(rows),
            }.items()
        ),
    ]
    assert len({(run.path / "model" / "model.safetensors").read_bytes() for run in runs}) == 1
    assert runs[1].path.name == train(config, problems=rows, out=tmp_path / "list", progress=False).path.name
    other = train(config, problems=rows[1:], out=tmp_path / "list", progress=False)
    assert other.path != runs[1].path, "other problems are another run"


def test_inspect_and_evaluate_take_problems():
    config = preset("tiny", **{"evaluation.k": 1})
    assert inspect(config, problems=RECORDS).problems == 5
    rows = [{"problem": p.prompt, "answer": p.answer} for p in chains.problems("test", 3)]
    assert evaluate_policy(config, problems=rows).summary["problems"] == 3
