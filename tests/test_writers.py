"""Mirrors of a run: each entry once, also after a kill; the run itself has the same bits, whatever becomes of them."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from accelerate.state import PartialState
from run_factory import write_run

from prefix_rft_lab import writers
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.core.files import read_lines
from prefix_rft_lab.runs.run import Run, RunWriter
from prefix_rft_lab.trainer import train
from prefix_rft_lab.writers import Mirror, Mirrors, recorded, scalars

KILLED = """
import os, signal, sys
from prefix_rft_lab.config import RunConfig
from prefix_rft_lab.trainer import train

def at_once(line):
    if line["global_step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)

train(RunConfig.load(sys.argv[1]), out=sys.argv[2], progress=False, on_step=at_once)
"""


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    PartialState._reset_state()  # as in a process that has used nothing of accelerate


def bits(run: Run) -> list[dict]:
    """Lines of metrics and evaluations without what a clock says."""
    lines = [*read_lines(run.path / "metrics.jsonl"), *read_lines(run.path / "evaluations.jsonl")]
    return [{name: v for name, v in line.items() if not name.startswith("seconds")} for line in lines]


def in_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def in_wandb(file: Path) -> Iterator:
    """The records of a ``.wandb`` file: a log of LevelDB, blocks of 32 KiB, after seven bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def history(file: Path) -> list[dict[str, float]]:
    rows = [record.history.item for record in in_wandb(file) if record.WhichOneof("record_type") == "history"]
    return [{".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row} for row in rows]


def entries_of(run: Run) -> list[tuple[int, dict[str, float]]]:
    """What a mirror should hold of a finished run."""
    found = list(recorded(run.path))
    return [*found, (found[-1][0], scalars("final", run.summary["splits"]))]


# ---------------------------------------------------------------------- entries


def test_scalars_are_the_finite_numbers_by_name():
    line = {
        "global_step": 3,
        "stage": "rl",
        "loss": 0.5,
        "entropy_prefix": float("nan"),
        "avg_interval": [0.25, 0.75],
        "levels": {"easy": {"avg": 1, "greedy_interval": [float("nan"), 1.0]}, "hard": {}},
    }
    assert scalars("train", line) == {
        "train/loss": 0.5,
        "train/avg_low": 0.25,
        "train/avg_high": 0.75,
        "train/levels/easy/avg": 1.0,
        "train/levels/easy/greedy_high": 1.0,
    }


def test_entries_come_in_the_order_in_which_a_run_writes_them(tmp_path):
    run = write_run(tmp_path, "rft")
    steps = [(step, next(iter(values)).split("/")[0]) for step, values in recorded(run.path)]
    assert len(steps) == len(run.metrics) + len(run.evaluations)
    assert steps == sorted(steps, key=lambda entry: (entry[0], entry[1] != "validation"))
    assert steps[:2] == [(0, "validation"), (0, "train")]


# ---------------------------------------------------------------------- real writers, a real run


def test_a_mirrored_run_has_the_same_bits_and_is_mirrored_once_also_after_a_kill(small, tmp_path):
    config = small(method="rft")
    mirrored = config.replace(**{"records.writers": "tensorboard+wandb", "records.project": "a project"})
    plain = train(config, out=tmp_path / "plain", progress=False)
    file = tmp_path / "config.yaml"
    file.write_text(mirrored.to_yaml())
    command = [sys.executable, "-c", KILLED, str(file), str(tmp_path / "mirrored")]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    path = tmp_path / "mirrored" / plain.path.parent.name / plain.path.name
    assert [line["global_step"] for line in read_lines(path / "metrics.jsonl")] == [0, 1, 2]
    before = in_tensorboard(path / "tensorboard")
    assert [step for step, _ in before["train/loss"]] == [0, 1, 2], "it should be there while the run goes on"

    run = train(mirrored, out=tmp_path / "mirrored", progress=False)
    assert run.path == path
    assert bits(run) == bits(plain)
    weights = [(r.path / "model" / "model.safetensors").read_bytes() for r in (run, plain)]
    assert weights[0] == weights[1]

    expected = entries_of(run)
    shown = in_tensorboard(path / "tensorboard")
    assert set(shown) == {name for _, values in expected for name in values}
    for name, points in shown.items():
        assert points == [(s, pytest.approx(v[name], rel=1e-6, abs=1e-12)) for s, v in expected if name in v], name

    [folder] = (path / "wandb").glob("offline-run-*")
    [log] = folder.glob("*.wandb")
    rows = history(log)
    assert [row["global_step"] for row in rows] == [step for step, _ in expected]
    for row, (_, values) in zip(rows, expected, strict=True):
        assert {name: v for name, v in row.items() if "/" in name} == pytest.approx(values)
    [ran] = [record.run for record in in_wandb(log) if record.WhichOneof("record_type") == "run"]
    assert (ran.project, ran.display_name) == ("a project", path.name)
    given = {item.key: json.loads(item.value_json) for item in ran.config.update}
    assert given["method"] == "rft" and given["rl"]["lr"] == config.rl.lr
    [end] = [record.exit.exit_code for record in in_wandb(log) if record.WhichOneof("record_type") == "exit"]
    assert end == 0

    # A finished run is what it is, whoever asks for it, and wherever it is to be shown.
    assert train(config, out=tmp_path / "mirrored", progress=False).path == path
    assert train(mirrored, out=tmp_path / "plain", progress=False).path == plain.path


def test_wandb_alone_holds_each_entry(tmp_path):
    run = write_run(tmp_path, "rft", **{"records.writers": "wandb"})
    [log] = run.path.glob("wandb/offline-run-*/*.wandb")
    expected = [step for step, _ in entries_of(run)]
    end = time.monotonic() + 20  # a process of wandb's writes the file
    while len(history(log)) < len(expected) and time.monotonic() < end:
        time.sleep(0.1)
    assert [row["global_step"] for row in history(log)] == expected


def test_tensorboard_holds_the_config_as_text_and_as_hyperparameters(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    hostile = "```\n---\n<script>"
    run = write_run(tmp_path, "rft", **{"records.writers": "tensorboard", "model.instruction": hostile})
    read = EventAccumulator(str(run.path / "tensorboard"))
    read.Reload()
    [text] = read.Tensors("config/text_summary")
    assert all(line.startswith("    ") for line in text.tensor_proto.string_val[0].decode().splitlines())
    started = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(started).session_start_info.hparams
    assert values["method"].string_value == "rft" and values["rl.lr"].number_value == run.config.rl.lr
    assert values["model.instruction"].string_value == hostile


def test_trackio_holds_each_entry_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio needs an environment of its own")
    from trackio.sqlite_storage import SQLiteStorage

    unfinished = write_run(tmp_path, "rft", done=False, steps=2, **{"records.writers": "trackio"})
    RunWriter(unfinished.config, tmp_path).rewind(-1)
    run = write_run(tmp_path, "rft", **{"records.writers": "trackio"})
    assert run.path == unfinished.path
    rows = SQLiteStorage.get_logs("prefix-rft", f"{run.config.name}/{run.path.name}")
    expected = entries_of(run)
    assert [row["step"] for row in rows] == [step for step, _ in expected]
    for row, (_, values) in zip(rows, expected, strict=True):
        assert {name: v for name, v in row.items() if "/" in name} == pytest.approx(values)


def test_trackio_is_written_anew_by_what_it_offers(tmp_path, monkeypatch):
    """The calls alone; with trackio installed the test above asks trackio itself."""
    calls: list = []
    names: list[str] = []

    class Api:
        def runs(self, project):
            if not names:
                raise ValueError("Project does not exist")
            return [
                types.SimpleNamespace(name=name, delete=lambda name=name: calls.append(("delete", name)))
                for name in (*names, "somebody else's")
            ]

    def init(project, name, **options):
        names.append(name)
        calls.append(("init", project, options["resume"]))
        return types.SimpleNamespace(log=lambda values, step: calls.append(step), finish=lambda: calls.append("finish"))

    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(Api=Api, init=init))
    monkeypatch.setattr(writers.metadata, "version", lambda name: "1")
    unfinished = write_run(tmp_path, "rft", done=False, steps=1, **{"records.writers": "trackio"})
    assert calls == [("init", "prefix-rft", "never"), 0, 0, "finish"]
    calls.clear()
    RunWriter(unfinished.config, tmp_path).rewind(-1)
    run = write_run(tmp_path, "rft", **{"records.writers": "trackio"})
    assert calls[:2] == [("delete", names[0]), ("init", "prefix-rft", "never")]
    assert names == [f"{run.config.name}/{run.path.name}"] * 2 and calls[-1] == "finish"


def test_any_other_tracker_of_accelerate_gets_config_and_entries(tmp_path, monkeypatch):
    from accelerate import tracking

    given: list = []

    class Aim(tracking.GeneralTracker):
        name = "aim"
        requires_logging_directory = True
        tracker = property(lambda self: self)

        def __init__(self, project, logging_dir):
            super().__init__()
            given.append((project, logging_dir))

        def start(self):
            given.append("start")

        def store_init_configuration(self, values):
            given.append(values["rl.lr"])

        def log(self, values, step):
            given.append((step, values))

        def finish(self):
            given.append("finish")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Aim)
    monkeypatch.setattr(writers.metadata, "version", lambda name: "1")
    run = write_run(tmp_path, "rft", **{"records.writers": "aim", "records.project": "mine"})
    assert given[:3] == [("mine", str(run.path / "aim")), "start", run.config.rl.lr]
    assert given[3:] == [*entries_of(run), "finish"]


# ---------------------------------------------------------------------- what a mirror holds, and what fails


@pytest.fixture
def mine(monkeypatch):
    """A writer of this test's own: (what it was given, its declaration's setter)."""
    given: list = []

    def declare(**parts):
        defaults = {"add": lambda step, values: given.append((step, values)), "close": given.append, "held": 0}
        mirror = Mirror(**{**defaults, **{k: v for k, v in parts.items() if k != "open"}})
        opened = parts.get("open", lambda config, path: mirror)
        monkeypatch.setitem(writers.WRITERS, "mine", opened)
        version = metadata.version
        monkeypatch.setattr(writers.metadata, "version", lambda name: "1" if name == "mine" else version(name))
        return given

    return declare


def test_what_a_mirror_holds_from_before_is_not_shown_again(tmp_path, mine):
    given = mine(held=3)
    run = write_run(tmp_path, "rft", **{"records.writers": "mine"})
    assert given == [*entries_of(run)[3:], True]


def test_a_writer_that_is_asked_for_late_gets_all(tmp_path, mine):
    given = mine()
    unfinished = write_run(tmp_path, "rft", done=False)
    assert given == []
    writer = RunWriter(unfinished.config.replace(**{"records.writers": "mine"}), tmp_path)
    assert writer.path == unfinished.path
    writer.finish({"splits": {"test": {"avg": 0.5}}}, 1.0)
    writer.close()
    writer.close()
    entries = list(recorded(unfinished.path))
    assert given == [*entries, (entries[-1][0], {"final/test/avg": 0.5}), True]


@pytest.mark.parametrize("where", ["open", "add", "close"])
def test_a_writer_that_fails_is_left_out_in_one_sentence(tmp_path, mine, monkeypatch, caplog, where):
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh12345678")

    def fail(*arguments):
        raise OSError(28, "No space left on device for abcdefgh12345678\nand more")

    mine(**{where: fail})
    with caplog.at_level(logging.WARNING):
        run = write_run(tmp_path / "run", "rft", **{"records.writers": "mine+tensorboard"})
    [said] = [record.getMessage() for record in caplog.records]
    assert "goes on without its writer mine, which failed (OSError: [Errno 28] No space left" in said
    assert "abcdefgh" not in said and "\n" not in said
    assert run.done and bits(run) == bits(write_run(tmp_path / "plain", "rft"))
    assert len(in_tensorboard(run.path / "tensorboard")["train/loss"]) == len(run.metrics)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_full_disk_fails_and_does_not_wait(tmp_path, monkeypatch, caplog):
    from tensorboard.summary.writer import event_file_writer

    record_writer = event_file_writer.RecordWriter.write

    def write(self, data, written=[]):  # noqa: B006
        written.append(data)
        if len(written) > 20:
            raise OSError(28, "No space left on device")
        record_writer(self, data)

    monkeypatch.setattr(event_file_writer.RecordWriter, "write", write)
    run = write_run(tmp_path, "rft", **{"records.writers": "tensorboard"})
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "without its writer tensorboard" in said and run.done


def test_an_unfinished_or_diverged_run_is_closed_as_one(tmp_path, mine):
    given = mine()
    run = write_run(tmp_path, "rft", done=False, **{"records.writers": "mine"})
    assert given[-1] is False
    (run.path / "DIVERGED.json").write_text("{}")
    (run.path / "DONE.json").write_text("{}")
    mirrors = Mirrors(run.config, run.path)
    mirrors.add("final", {})
    mirrors.close()
    assert given[-1] is False


# ---------------------------------------------------------------------- refusals and identity


def test_an_unknown_or_missing_writer_is_refused_before_work(small, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"records.writers = 'tensorbord' is not known; use tensorboard, wandb"):
        train(small(**{"records.writers": "tensorbord"}), out=tmp_path)

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(writers.metadata, "version", missing)
    for name, words in (
        ("tensorboard", r"\[tensorboard\]"),
        ("wandb", r"\[wandb\]"),
        ("trackio", "of its own"),
        ("mlflow", "mlflow"),
    ):
        with pytest.raises(ConfigError, match=rf"needs {name}, which is not installed; run: pip install .*{words}"):
            train(small(**{"records.writers": name}), out=tmp_path)
    with pytest.raises(ConfigError, match=r"records.project = 'a/b' cannot be used"):
        small(**{"records.project": "a/b"})
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_is_not_logged_in_is_refused_before_work(small, tmp_path, monkeypatch):
    import wandb

    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", (tmp_path / "stdin").open("w+"))
    try:
        with pytest.raises(
            ConfigError, match=r"wandb cannot log in \(.*\); run wandb login, or set WANDB_MODE=offline"
        ):
            RunWriter(small(**{"records.writers": "wandb"}), tmp_path / "runs")
        assert not (tmp_path / "runs").exists()
    finally:
        wandb.teardown()


def test_the_names_are_read_once_each_in_their_order(small):
    assert writers.check(small(**{"records.writers": "wandb+tensorboard+wandb"})) == ("wandb", "tensorboard")
    assert writers.check(small()) == ()
