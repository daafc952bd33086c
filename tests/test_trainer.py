"""Whole runs: the same bits twice, whatever interrupted them; failures in one sentence that keep what was done."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prefix_rft_lab import checkpoint, measure, methods, stats, trainer
from prefix_rft_lab.checkpoint import Checkpoints, Place
from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.core.errors import RunDivergedError, RunError
from prefix_rft_lab.core.files import ends, read_lines
from prefix_rft_lab.data import rewards
from prefix_rft_lab.experiments.profiles import PROFILES
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.rewards import Verifier, extract_answer
from prefix_rft_lab.runs.run import FOLLOWED, Run, RunWriter, directory_of
from prefix_rft_lab.tasks.base_policy import ASSETS
from prefix_rft_lab.trainer import Trainer
from prefix_rft_lab.training.update import Updater
from prefix_rft_lab.types import KIND_NAMES


class TextVerifier:
    """Scores by equal text, which suffices for the embedded world and starts no process."""

    timeouts = 0

    def score_all(self, texts, golds):
        return [float(extract_answer(text) == gold) for text, gold in zip(texts, golds, strict=True)]

    def close(self):
        pass


@pytest.fixture(autouse=True)
def _text_verifier(monkeypatch):
    monkeypatch.setattr(rewards, "Verifier", TextVerifier)


BUSY: dict[str, Any] = {"relift.batch_problems": 2}
"""ReLIFT's buffer fills within the few steps of these runs; other methods do not read it."""


class Stop(Exception):
    pass


def stop_after(steps):
    def on_step(line):
        if line["global_step"] + 1 == steps:
            raise Stop

    return on_step


def train(config, out, **kwargs):
    return trainer.train(config, out=out, progress=False, **kwargs)


def lines_of(path):
    """JSON lines without wall-clock times, as text, so that NaN equals NaN."""
    return [
        json.dumps({k: v for k, v in line.items() if not k.startswith("seconds_")}, sort_keys=True)
        for line in read_lines(path)
    ]


def assert_same_run(run, other):
    assert run.done
    assert other.done
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert lines_of(run.path / name) == lines_of(other.path / name), name
    # The directory's name, which settings that change no bit are part of, stands in every row.
    tokens = [one.tokens.drop(columns="run") for one in (run, other)]
    pd.testing.assert_frame_equal(*tokens, check_exact=True)
    for split in ("test", "ood"):
        pd.testing.assert_frame_equal(run.evaluation(split), other.evaluation(split), check_exact=True)
    a, b = (load_file(r.path / "model" / "model.safetensors") for r in (run, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {k: v for k, v in run.summary.items() if k != "seconds"} == {
        k: v for k, v in other.summary.items() if k != "seconds"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small):
    """``whole(method)``: the uninterrupted run of a method, trained once."""
    runs = {}

    def get(method):
        if method not in runs:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(rewards, "Verifier", TextVerifier)
                runs[method] = train(small(method=method, **BUSY), tmp_path_factory.mktemp(method))
        return runs[method]

    return get


# ---------------------------------------------------------------- determinism


def torch_settings():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize(
    "set_to",
    [
        torch.no_grad,
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_num_threads(2),
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["grad off", "float64", "threads", "precision", "inference mode", "autocast"],
)
def test_what_the_caller_set_in_torch_changes_no_run_and_outlives_it(tmp_path, small, whole, set_to):
    with contextlib.ExitStack() as undone:
        undone.callback(torch.set_num_threads, 1)
        undone.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        undone.callback(torch.set_default_dtype, torch.get_default_dtype())
        undone.enter_context(set_to() or contextlib.nullcontext())
        before = torch_settings()
        run = train(small(method="prefix_rft", **BUSY), tmp_path)
        assert torch_settings() == before
    assert_same_run(run, whole("prefix_rft"))


@pytest.mark.parametrize("method", ["sft_then_rft", "prefix_rft"])
def test_the_same_seed_gives_the_same_bits(tmp_path, small, whole, method):
    torch.manual_seed(17)
    assert_same_run(train(small(method=method, **BUSY), tmp_path), whole(method))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_the_smoke_profile(tmp_path, method):
    config = preset("tiny", method=method, **PROFILES["smoke"].changes)
    run = train(config, tmp_path)
    assert run.done
    assert len(run.metrics) == sum(stage.optimizer_section(config).steps for stage in METHODS[method].stages)
    if METHODS[method].stages:
        assert run.metrics["grad_norm"].max() > 0
    assert set(run.summary["splits"]) == {"test", "ood"}


def test_another_seed_gives_other_rollouts_and_another_order(tmp_path, small, whole):
    first, other = whole("prefix_rft"), train(small(seed=1), tmp_path)
    assert other.path.name != first.path.name
    a, b = first.tokens, other.tokens
    assert a["problem"].unique().tolist() != b["problem"].unique().tolist()
    assert a["token_id"].tolist() != b["token_id"].tolist()
    assert first.metrics["prefix_ratio"].tolist() != other.metrics["prefix_ratio"].tolist()
    assert first.evaluations["avg"][0] == other.evaluations["avg"][0], "the policy before training has no seed"


def test_a_problem_drawn_twice_in_a_step_is_sampled_twice(tmp_path, small):
    config = small(method="rft", **{"data.train_problems": 1, "rollout.problems_per_step": 2})
    with Trainer(config, RunWriter(config, tmp_path)) as one:
        stage = methods.RFT
        rows = one.rows(stage, 0)
        one.generate(rows, stage, 0)
    assert [row.problem.index for row in rows] == [0] * 8
    assert len({tuple(row.sampled_ids) for row in rows[:4]} & {tuple(row.sampled_ids) for row in rows[4:]}) < 4
    assert [r.sampled_ids for r in rows[:4]] != [r.sampled_ids for r in rows[4:]]


# ---------------------------------------------------------------- interruption

INTERRUPTIONS = [
    ("prefix_rft", 1),  # before the first checkpoint
    ("prefix_rft", 3),  # between two checkpoints
    ("prefix_rft", 4),  # all steps done, final evaluation missing
    ("sft_then_rft", 3),  # at the border between the stages
    ("sft_then_rft", 4),  # at a checkpoint of the second stage
    ("sft_then_rft", 5),  # inside the second stage
]


@pytest.mark.parametrize(("method", "steps"), INTERRUPTIONS)
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, small, whole, method, steps):
    config = small(method=method)
    with pytest.raises(Stop):
        train(config, tmp_path, on_step=stop_after(steps))
    path = directory_of(config, tmp_path)
    assert not Run(path).done
    assert len(Run(path).metrics) == steps
    seen = []
    run = train(config, tmp_path, on_step=lambda line: seen.append(line["global_step"]))
    assert_same_run(run, whole(method))
    done = max((s for s in (0, 2, 3, 4, 6, 7) if s <= steps and (s != 3 or method == "sft_then_rft")), default=0)
    assert seen == list(range(done, len(run.metrics))), "only what the newest checkpoint lacks is done again"
    assert not (path / "checkpoints").exists()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "base"])
def test_a_run_stopped_after_every_single_step_gives_the_same_bits(tmp_path, small, whole, method):
    config = small(method=method, **{**BUSY, "records.checkpoint_every": 1})
    total = len(whole(method).metrics)
    for steps in range(1, total):
        with pytest.raises(Stop):
            train(config, tmp_path, on_step=stop_after(steps))
        assert len(Run(directory_of(config, tmp_path)).metrics) == steps
    seen = []
    assert_same_run(train(config, tmp_path, on_step=seen.append), whole(method))
    assert len(seen) == 1, "nothing was done twice"


def test_the_second_updates_of_relift_happen_and_its_buffer_outlives_a_step(whole):
    """Otherwise the test above would say nothing of them."""
    metrics = whole("relift").metrics
    assert metrics["replay_updated"].sum() >= 1
    assert (metrics["replay_problems"] > 0).any()
    assert metrics["replay_loss"].notna().tolist() == (metrics["replay_updated"] == 1).tolist()


KILLED_AT_RANDOM = """
import json, os, signal, sys, time
from pathlib import Path

import torch
import transformers

from prefix_rft_lab import rng, trainer
from prefix_rft_lab.data import rewards
from prefix_rft_lab.config import RunConfig
from prefix_rft_lab.core.files import read_lines
from prefix_rft_lab.runs.run import directory_of

sys.path.insert(0, sys.argv[3])
from test_trainer import TextVerifier

rewards.Verifier = TextVerifier
config, out = RunConfig.load(sys.argv[1]), sys.argv[2]
draws = rng.generator(0, "kill")
torch.set_num_threads(1)

def done():
    return len(read_lines(directory_of(config, out) / "metrics.jsonl"))

def train():
    # A fork has all imports behind it, so that most of its life is training.
    process = os.fork()
    if process == 0:
        trainer.train(config, out=out, progress=False)
        os._exit(0)
    return process

steps = []
for number in range(20):
    before, process = done(), train()
    if number % 4:
        # Of four kills one strikes anywhere from the start on, three after the first new step.
        while done() <= before and os.waitpid(process, os.WNOHANG) == (0, 0):
            before = min(before, done())
            time.sleep(0.01)
    time.sleep(draws.uniform(0.0, 0.6))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "it ended before it was killed: the run is too short"
    steps.append(done())
_, status = os.waitpid(train(), 0)
assert status == 0
print(json.dumps(steps))
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_in_the_same_bits(tmp_path, small):
    """SIGKILL, wherever it strikes: in a rollout, an update, an evaluation, a checkpoint."""
    config = small(
        method="relift",
        **{
            **BUSY,
            "rl.steps": 200,
            "evaluation.every": 20,
            "records.checkpoint_every": 1,
            "records.tokens_every": 10,
            "rollout.max_response_tokens": 32,
        },
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_RANDOM, tmp_path / "config.yaml", tmp_path / "killed", Path(__file__).parent],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert killed.returncode == 0, killed.stderr
    steps = json.loads(killed.stdout)
    assert len(steps) == 20
    assert len(set(steps)) >= 5, f"the kills must strike at different places, but the steps were {steps}"
    assert_same_run(Run(directory_of(config, tmp_path / "killed")), train(config, tmp_path / "whole"))


KILLED = """
import json, os, signal, sys
from pathlib import Path
from prefix_rft_lab import checkpoint, trainer
from prefix_rft_lab.config import RunConfig

flush, calls = checkpoint._flush, []

def die_at_the_second(folder):
    calls.append(folder)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(folder)

checkpoint._flush = die_at_the_second
trainer.train(RunConfig.load(sys.argv[1]), out=sys.argv[2], progress=False)
"""


def test_a_killed_process_resumes_to_the_same_bits(tmp_path, small, monkeypatch):
    """Killed by SIGKILL while it writes its second checkpoint; here with the real verifier."""
    monkeypatch.setattr(rewards, "Verifier", Verifier)
    config = small()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "config.yaml", tmp_path / "killed"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    path = directory_of(config, tmp_path / "killed")
    assert [p.name for p in (path / "checkpoints").glob("step-*")] == ["step-000002"]
    assert len(read_lines(path / "metrics.jsonl")) == 4
    assert_same_run(train(config, tmp_path / "killed"), train(config, tmp_path / "whole"))
    assert not (path / "checkpoints").exists()


def interrupted(config, out, steps):
    with pytest.raises(Stop):
        train(config, out, on_step=stop_after(steps))
    return directory_of(config, out)


@pytest.mark.parametrize("damage", ["no optimizer", "empty state", "one bit", "cut"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, small, whole, damage):
    config = small()
    newest = interrupted(config, tmp_path, 4) / "checkpoints" / "step-000004"
    weights = newest / "model" / "model.safetensors"
    if damage == "no optimizer":
        (newest / "optimizers.pt").unlink()
    elif damage == "empty state":
        (newest / "state.json").write_text("")
    elif damage == "cut":
        os.truncate(weights, weights.stat().st_size // 2)
    else:
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    seen = []
    with pytest.warns(UserWarning, match=r"step-000004 is skipped: .*an older one is used"):
        run = train(config, tmp_path, on_step=lambda line: seen.append(line["global_step"]))
    assert seen == [2, 3]
    assert_same_run(run, whole("prefix_rft"))


def test_a_torn_last_line_is_forgotten(tmp_path, small, whole):
    config = small()
    path = interrupted(config, tmp_path, 3)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        with (path / name).open("a") as file:
            file.write('{"stage": "prefix_rft", "st')
    assert len(Run(path).metrics) == 3
    assert len(Run(path).evaluations) == 2
    assert_same_run(train(config, tmp_path), whole("prefix_rft"))


@pytest.mark.parametrize(
    "lost", ["metrics.jsonl", "evaluations.jsonl", "tokens/step-000000.parquet", "a line", "a bit"]
)
def test_a_run_whose_records_are_lost_makes_those_steps_again(tmp_path, small, whole, lost):
    path = interrupted(small(), tmp_path, 3)
    assert (path / "checkpoints" / "step-000002").is_dir()
    if lost == "a line":
        text = (path / "metrics.jsonl").read_text()
        (path / "metrics.jsonl").write_text(text[:40] + "\n" + text[40:])
    elif lost == "a bit":
        table = path / "tokens" / "step-000000.parquet"
        content = bytearray(table.read_bytes())
        content[len(content) // 2] ^= 1
        table.write_bytes(content)
    else:
        (path / lost).unlink()
    run = train(small(), tmp_path)
    assert run.metrics["global_step"].tolist() == [0, 1, 2, 3]
    assert_same_run(run, whole("prefix_rft"))


def test_a_finished_run_is_returned_without_work(whole, monkeypatch):
    run = whole("prefix_rft")
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}

    def refuse(*args):
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr(trainer, "Trainer", refuse)
    again = train(run.config, run.path.parent.parent)
    assert again.path == run.path
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_checkpoints_are_bounded_and_gone_at_the_end(tmp_path, small):
    config = small(**{"records.checkpoint_every": 1, "records.keep_checkpoints": 2})
    folder = directory_of(config, tmp_path) / "checkpoints"
    seen = []
    train(config, tmp_path, on_step=lambda line: seen.append(sorted(p.name for p in folder.iterdir())))
    assert seen == [
        ["step-000001"],
        ["step-000001", "step-000002"],
        ["step-000002", "step-000003"],
        ["step-000003", "step-000004"],
    ]
    assert not folder.exists()


def moved(tiny):
    """(a copy of the shipped policy after one step, tokenizer, its two optimizers)."""
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=lr) for name, lr in (("main", 0.1), ("replay", 0.01))}
    for optimizer in optimizers.values():
        model(input_ids=torch.tensor([[4, 5, 6]])).logits.sum().backward()
        optimizer.step()
    return model, tokenizer, optimizers


@pytest.fixture
def written(tmp_path, tiny, small):
    """(folder of one checkpoint, its config, model, optimizers, place)."""
    model, tokenizer, optimizers = moved(tiny)
    place = Place(stage=1, step=4, global_step=12, seconds=3.5, replay=(7, 3))
    Checkpoints(tmp_path / "checkpoints", config=small(), keep=2).save(place, model, tokenizer, optimizers)
    return tmp_path / "checkpoints", small(), model, optimizers, place


def test_a_checkpoint_holds_weights_moments_and_place(written, tiny):
    folder, config, model, optimizers, place = written
    other = copy.deepcopy(tiny[0])
    fresh = {name: torch.optim.AdamW(other.parameters(), lr=0.5) for name in optimizers}
    store = Checkpoints(folder, config=config, keep=2)
    found, path = store.newest(other)
    store.load(path, other, fresh)
    assert found == place
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for name, optimizer in optimizers.items():
        for a, b in zip(optimizer.state.values(), fresh[name].state.values(), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in ("exp_avg", "exp_avg_sq", "step"))


def test_a_checkpoint_is_a_model_that_transformers_loads(written, tiny):
    folder, _, model, _, _ = written
    path = folder / "step-000012" / "model"
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(path).get_vocab() == tiny[1].get_vocab()


def test_a_checkpoint_of_another_config_says_what_differs(written, small, tiny):
    folder, *_ = written
    other = small(**{"rl.lr": 0.5, "prefix.keep": "all"})
    with pytest.raises(
        RunError, match=r"step-000012 belongs to another config: prefix.keep 'top' there, 'all' here, rl.lr"
    ):
        Checkpoints(folder, config=other, keep=2).newest(tiny[0])


def test_a_checkpoint_of_another_model_says_what_differs(written):
    folder, config, *_ = written
    with pytest.raises(RunError, match=r"belongs to another model: .*there, .*here.* and \d+ more; start this run in"):
        Checkpoints(folder, config=config, keep=2).newest(torch.nn.Linear(3, 2))


def write_state(folder, change):
    """Change a checkpoint's state.json as somebody would who also knows of its hash."""
    path = folder / "state.json"
    state = json.loads(path.read_text())
    del state["digest"]
    change(state)
    path.write_text(json.dumps({**state, "digest": checkpoint._digest_of(state)}))


def test_a_checkpoint_of_another_start_says_what_differs(written, tiny):
    folder, config, *_ = written
    with pytest.raises(RunError, match=r"belongs to another start: problems None there, 'abc' here"):
        Checkpoints(folder, config=config, keep=2, start={"problems": "abc"}).newest(tiny[0])


def test_a_checkpoint_with_hashes_of_whole_files_is_used(written, tiny):
    """As versions before wrote them; a file that is gone is noticed."""
    folder, config, _, _, place = written
    old = lambda state: state.update(files=dict.fromkeys(state.pop("ends"), "ab"))  # noqa: E731
    write_state(folder / "step-000012", old)
    assert Checkpoints(folder, config=config, keep=2).newest(tiny[0]) == (place, folder / "step-000012")
    (folder / "step-000012" / "optimizers.pt").unlink()
    with pytest.warns(UserWarning, match=r"step-000012 is skipped"):
        assert Checkpoints(folder, config=config, keep=2).newest(tiny[0]) is None


def test_of_a_large_file_the_size_and_the_ends_are_read(tmp_path):
    large = tmp_path / "large"
    large.write_bytes(b"a" + bytes(2**24) + b"z")
    assert ends(large) == b"16777218 a" + bytes(2**22 - 1) + bytes(2**22 - 1) + b"z"
    large.write_bytes(b"short")
    assert ends(large) == b"5 shortshort"


@pytest.mark.parametrize("damage", ["place", "no files", "a list", "nothing in it"])
def test_a_damaged_state_is_skipped(written, tiny, damage):
    folder, config, *_ = written
    path = folder / "step-000012" / "state.json"
    state = json.loads(path.read_text())
    if damage == "place":
        state["place"]["step"] = 5
    elif damage == "no files":
        state["ends"] = {}
    path.write_text(json.dumps([state] if damage == "a list" else {} if damage == "nothing in it" else state))
    with pytest.warns(UserWarning, match=r"step-000012 is skipped"):
        assert Checkpoints(folder, config=config, keep=2).newest(tiny[0]) is None


def test_damaged_checkpoints_do_not_outlive_new_ones(tmp_path, small, whole):
    """They are newer by their number, and would push out what a run that begins again writes."""
    config = small(**{"records.keep_checkpoints": 1, "records.checkpoint_every": 1})
    folder = interrupted(config, tmp_path, 3) / "checkpoints"
    (folder / "step-000003" / "state.json").write_text("")
    kept = []
    with pytest.warns(UserWarning, match="step-000003 is skipped"):
        run = train(config, tmp_path, on_step=lambda line: kept.append([p.name for p in folder.iterdir()]))
    assert kept[0] == ["step-000001"]
    assert_same_run(run, whole("prefix_rft"))


def test_a_checkpoint_of_other_versions_says_so_and_is_used(written, tiny):
    folder, config, _, _, place = written
    write_state(folder / "step-000012", lambda state: state["versions"].update(torch="1.0"))
    with pytest.warns(
        UserWarning, match=rf"other versions \(torch '1.0' there, '{re.escape(torch.__version__)}' here\)"
    ):
        found = Checkpoints(folder, config=config, keep=2).newest(tiny[0])
    assert found is not None and found[0] == place


def test_what_a_killed_process_left_is_cleared_away(written, tiny):
    folder, config, model, optimizers, place = written
    left = folder / ".tmp-1"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    Checkpoints(folder, config=config, keep=2).save(place, model, tiny[1], optimizers)
    assert not left.exists()


# ---------------------------------------------------------------- a full disk


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def append_without_space(original):
    def opened(self, mode="r", *args, **kwargs):
        if "a" in mode:
            no_space()
        return original(self, mode, *args, **kwargs)

    return opened


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


# What the libraries really raise on a full disk.
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def saving(refused, original=PreTrainedModel.save_pretrained):
    def save(self, folder, *args, **kwargs):
        if refused(Path(folder)):
            raise SAFETENSORS
        return original(self, folder, *args, **kwargs)

    return save


FULL = {
    "weights of a checkpoint": (PreTrainedModel, "save_pretrained", saving(lambda path: "checkpoints" in path.parts)),
    "optimizer of a checkpoint": (torch, "save", raising(TORCH)),
    "line of metrics": (Path, "open", append_without_space(Path.open)),
    "token table": (pd.DataFrame, "to_parquet", no_space),
    "whole text file": (os, "fsync", no_space),
    "final weights": (PreTrainedModel, "save_pretrained", saving(lambda path: "checkpoints" not in path.parts)),
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_keeps_what_was_done_and_the_run_resumes(tmp_path, small, whole, where):
    config = small()

    with pytest.MonkeyPatch.context() as patch:

        def fill(line):
            if line["global_step"] == 1:
                patch.setattr(*FULL[where])

        with pytest.raises(RunError) as caught:
            train(config, tmp_path, on_step=fill)
    assert "no space left on the disk of" in str(caught.value)
    assert "free some space and start the same run again" in str(caught.value)
    assert "\n" not in str(caught.value)
    path = directory_of(config, tmp_path)
    assert not Run(path).done
    assert len(Run(path).metrics) >= 2
    assert list(path.rglob("*tmp*")) == []
    seen = []
    assert_same_run(train(config, tmp_path, on_step=lambda line: seen.append(line)), whole("prefix_rft"))
    assert len(seen) <= 2, "the first two steps were kept"


def test_other_errors_of_the_disk_are_not_disguised(tmp_path, small):
    config = small(**{"records.tokens_every": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", raising(PermissionError(errno.EACCES, "Permission denied")))
        with pytest.raises(PermissionError):
            train(config, tmp_path)


def test_too_little_space_at_the_start_is_refused(tmp_path, small, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(RunError, match=r"lies on a disk with 1 MiB free and the run needs at least 64 MiB; free some"):
        train(small(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- refusals


def test_weights_that_are_no_numbers_are_never_kept(tmp_path, small):
    """A broken policy fails alike in all rows: loss and gradient are 0, and only the second update shows it."""
    config = small(method="relift", **{"relift.batch_problems": 1, "relift.lr": 1e30, "records.checkpoint_every": 1})
    with pytest.raises(RunError, match=r"at step \d: the run diverged; lower rl.lr or sft.lr \(relift.lr\)"):
        train(config, tmp_path)
    path = directory_of(config, tmp_path)
    assert Run(path).diverged and not (path / "model").exists()
    for file in path.rglob("*.safetensors"):
        assert all(torch.isfinite(weight).all() for weight in load_file(file).values())


def test_problems_that_changed_resume_no_run_of_the_others(tmp_path, small):
    rows = [
        {"problem": f"{a}+3", "answer": str(a + 3), "solution": f"{a}+3={a + 3}\n\\boxed{{{a + 3}}}"}
        for a in range(1, 15)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small(**{"data.problems": str(file), "data.eval_problems": 2, "records.checkpoint_every": 1})
    with pytest.raises(Stop):
        train(config, tmp_path, on_step=stop_after(2))
    interrupted = directory_of(config, tmp_path)
    file.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    run = train(config, tmp_path)
    assert run.path != interrupted and run.path == directory_of(config, tmp_path)
    empty = train(config, tmp_path / "empty")
    assert run.metrics["loss"].tolist() == empty.metrics["loss"].tolist()
    file.unlink()
    assert directory_of(config, tmp_path) == interrupted, "what is not there says nothing against a run"


@pytest.mark.parametrize("out", ["file/runs", "n" * 300])
def test_a_folder_that_cannot_be_written_is_found_before_any_work(tmp_path, small, monkeypatch, out):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(trainer, "load_policy", None)
    with pytest.raises(ConfigError, match="cannot be written"):
        train(small(), tmp_path / out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "relift", "relift.batch_problems": 100}, "waits for 100 problems before an update, and 12 have"),
        ({"method": "uft", "data.problems": "one line"}, "no demonstration has more than one line"),
    ],
)
def test_methods_that_the_data_cannot_feed_say_so(tmp_path, small, changes, words):
    rows = [{"problem": f"{a}+3", "answer": str(a + 3), "solution": f"\\boxed{{{a + 3}}}"} for a in range(1, 15)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "data.problems" in changes:
        changes = changes | {"data.problems": str(tmp_path / "mine.jsonl"), "data.eval_problems": 2}
    with pytest.raises(ConfigError) as caught:
        train(small(**changes), tmp_path / "runs")
    assert words in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_diverged_run_is_refused_and_its_records_kept(tmp_path, small):
    config = small(method="sft", **{"sft.lr": 1e30, "sft.warmup_fraction": 0.0, "evaluation.every": 0})
    with pytest.raises(
        RunError, match=r"(loss|grad_norm) = (nan|inf) at step \d: the run diverged; lower rl.lr or sft.lr"
    ):
        train(config, tmp_path)
    run = Run(directory_of(config, tmp_path))
    assert len(run.metrics) >= 1
    assert run.metrics["loss"].notna().all()


@pytest.fixture
def infinite_gradients(monkeypatch):
    """Steps of a stage at which a gradient is infinite; set what they are."""
    steps: set[int] = set()
    update = Updater.update

    def updated(self, rows, stage, section, optimizer, step, **options):
        before = [parameter.detach().clone() for parameter in self.model.parameters()]
        hook = next(self.model.parameters()).register_hook(lambda g: g + (torch.inf if step in steps else 0.0))
        result = update(self, rows, stage, section, optimizer, step, **options)
        hook.remove()
        same = all(torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True))
        assert same == (step in steps)
        return result

    monkeypatch.setattr(Updater, "update", updated)
    return steps


def test_steps_without_a_finite_gradient_are_left_out_and_counted(tmp_path, small, infinite_gradients, caplog):
    infinite_gradients |= {1, 2}
    config = small(method="sft", **{"sft.steps": 5, "records.checkpoint_every": 1})
    run = train(config, tmp_path / "whole")
    assert run.metrics["skipped_steps"].tolist() == [0, 1, 2, 2, 2]
    assert run.metrics["grad_norm"].isna().tolist() == [False, True, True, False, False]
    assert sum("is left out, since grad_norm = " in message for message in caplog.messages) == 2
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", on_step=stop_after(2))
    again = train(config, tmp_path / "parts")
    assert again.metrics["skipped_steps"].tolist() == [0, 1, 2, 2, 2]
    assert (again.path / "model/model.safetensors").read_bytes() == (run.path / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(("allowed", "step"), [(2, 3), (0, 1)])
def test_too_many_steps_to_leave_out_end_the_run(tmp_path, small, infinite_gradients, allowed, step):
    infinite_gradients |= {1, 2, 3}
    config = small(method="sft", **{"sft.steps": 5, "sft.max_skipped_steps": allowed, "records.checkpoint_every": 1})
    words = f".*; {allowed} of the steps before were left out" if allowed else ""
    if allowed:  # counted over a resume too
        with pytest.raises(Stop):
            train(config, tmp_path, on_step=stop_after(2))
    with pytest.raises(RunDivergedError, match=rf"grad_norm = (nan|inf) at step {step}: the run diverged{words}"):
        train(config, tmp_path)
    assert len(Run(directory_of(config, tmp_path)).metrics) == step


def test_a_diverged_run_is_a_finished_one_that_solved_nothing(tmp_path, small):
    config = small(method="sft", **{"sft.lr": 1e30, "sft.warmup_fraction": 0.0, "evaluation.every": 0})
    sentences = []
    for _ in range(2):
        with pytest.raises(RunDivergedError, match="delete it to train it again") as caught:
            train(config, tmp_path)
        sentences.append(str(caught.value))
    run, sound = Run(directory_of(config, tmp_path)), train(small(method="base"), tmp_path)
    assert sentences[0] == sentences[1] and str(run.path) in sentences[0]
    assert run.done and sound.diverged == ""
    assert run.diverged == run.summary["diverged"] and sentences[0].startswith(run.diverged)
    assert json.loads((run.path / "DIVERGED.json").read_text())["global_step"] == len(run.metrics)
    for split in ("test", "ood"):
        table, like = run.evaluation(split), sound.evaluation(split)
        assert table["id"].tolist() == like["id"].tolist() and table.columns.tolist() == like.columns.tolist()
        assert (table["correct"] == 0).all() and (table["greedy"] == 0).all() and table["tokens"].isna().all()
        assert run.summary["splits"][split]["avg"] == run.summary["splits"][split]["pass"] == 0
    compared = stats.compare([run, sound]).set_index("method")
    assert compared.loc["sft", "avg"] == 0 and compared.loc["sft", "delta"] == -compared.loc["base", "avg"]


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("base", "rft", "rft_clip", "dynamic")])
def test_methods_that_need_demonstrations_say_so(tmp_path, small, method):
    with pytest.raises(ConfigError, match=rf"method = '{method}' needs demonstrations and none of the 12 training"):
        train(small(method=method, **{"data.demonstration_fraction": 0.0}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout.max_prompt_tokens": 2}, "leaves no training problem"),
        ({"rollout.max_response_tokens": 240}, "exceeds the model's context of 256 tokens; lower one of them"),
        ({"data.expert": "sloppy"}, "data.expert = 'sloppy' is not known"),
        ({"data.problems": "nowhere.jsonl"}, "data.problems = 'nowhere.jsonl' is not a file"),
        ({"model.path": "tests"}, "holds no config.json"),
    ],
)
def test_configs_that_cannot_run_leave_nothing_behind(tmp_path, small, changes, words):
    (tmp_path / "tests").mkdir()
    if "model.path" in changes:
        changes = {"model.path": str(tmp_path / "tests")}
    with pytest.raises(ConfigError) as caught:
        train(small(**changes), tmp_path / "runs")
    assert words in str(caught.value)
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- what a run records


def test_the_base_method_only_evaluates(tmp_path, small, tiny):
    run = train(small(method="base"), tmp_path)
    assert run.done
    assert run.metrics.empty
    assert run.evaluations["global_step"].tolist() == [0]
    assert set(run.summary["splits"]) == {"test", "ood"}
    assert len(run.evaluation("test")) == 4
    weights = load_file(run.path / "model" / "model.safetensors")
    assert all(torch.equal(p, weights[name]) for name, p in tiny[0].named_parameters() if name in weights)


def test_a_decay_longer_than_the_run_is_said(tmp_path, small, caplog):
    train(small(**{"rl.steps": 1, "prefix.decay_steps": 500, "evaluation.hard_tries": 0}), tmp_path)
    assert "prefix.decay_steps = 500 is longer than the run of rl.steps = 1, so prefixes do not get as" in caplog.text
    caplog.clear()
    train(small(**{"rl.steps": 1, "prefix.decay_steps": None, "evaluation.hard_tries": 0}), tmp_path)
    train(small(method="rft", **{"rl.steps": 1, "prefix.decay_steps": 500, "evaluation.hard_tries": 0}), tmp_path)
    assert "decay_steps" not in caplog.text


def test_rft_needs_no_demonstrations(tmp_path, small):
    config = small(method="rft", **{"data.demonstration_fraction": 0.0, "rl.steps": 2})
    run = train(config, tmp_path)
    assert len(run.metrics) == 2
    assert json.loads((run.path / "data.json").read_text())["demonstrations"] == 0
    assert run.evaluations["demonstration_nll"].isna().all()


def test_a_fraction_of_the_demonstrations(tmp_path, small):
    config = small(**{"data.demonstration_fraction": 0.25, "rl.steps": 3, "rollout.problems_per_step": 12})
    run = train(config, tmp_path)
    assert json.loads((run.path / "data.json").read_text())["demonstrations"] == 3
    with Trainer(config, RunWriter(config, tmp_path)) as one:
        rows = one.rows(methods.PREFIX_RFT, 0)
    # Every problem once a step; those without a demonstration get plain rows, none is left out.
    assert len(rows) == 12 * 4
    assert sum(row.is_hybrid for row in rows) == 3


def test_demonstrations_by_the_policy_itself(tmp_path, small):
    def demonstrations(**changes):
        config = small(**changes)
        with Trainer(config, RunWriter(config, tmp_path)) as one:
            return [p.demonstration_ids for p in one.train_problems], int(one.tokenizer.eos_token_id)

    own, eos = demonstrations(**{"data.expert": "self"})
    assert sum(ids is not None for ids in own) >= 6
    assert all(ids[-1] == eos and eos not in ids[:-1] for ids in own if ids is not None)
    assert own != demonstrations()[0]
    assert demonstrations(seed=5, **{"data.expert": "self"})[0] == own, "seeds share their data"
    assert demonstrations(**{"data.expert": "self", "data.seed": 1})[0] != own
    assert demonstrations(**{"data.expert": f"policy:{ASSETS}"})[0] == own
    run = train(small(**{"data.expert": "self", "rl.steps": 2}), tmp_path)
    assert run.done


def test_of_a_policy_s_own_answers_the_first_right_one_is_taken(tmp_path, small):
    def written(tries):
        config = small(**{"data.expert": "self", "data.right_within": tries})
        with Trainer(config, RunWriter(config, tmp_path)) as one:
            ids = [p.demonstration_ids for p in one.train_problems]
            given = [p.problem for p in one.train_problems]
            return ids, [d is not None and one.solved([d], [p])[0] for d, p in zip(ids, given, strict=True)]

    (any_ids, right), (once, once_right), (often, often_right) = written(0), written(1), written(16)
    assert 0 < sum(right) < len(right), "else there is nothing to choose"
    assert once == [ids if ok else None for ids, ok in zip(any_ids, right, strict=True)] and once_right == right
    assert [ids for ids, ok in zip(often, right, strict=True) if ok] == [ids for ids in once if ids is not None]
    assert sum(often_right) > sum(right) and often_right == [ids is not None for ids in often]


def test_every_metric_is_documented_and_every_documented_metric_occurs(whole):
    names = {name.replace("<kind>", kind) for name in measure.METRICS for kind in KIND_NAMES.values()}
    names.remove("rewards_<name>")  # only where several are weighed
    columns = {method: set(whole(method).metrics.columns) for method in methods.METHODS if method != "base"}
    assert set().union(*columns.values()) == names
    assert columns["prefix_rft"] == {name for name in names if not name.startswith("replay")}
    assert all(measure.METRICS.values())


def test_metrics_agree_with_the_token_table(whole):
    run = whole("prefix_rft")
    tokens, metrics = run.tokens, run.metrics.set_index("global_step")
    tokens = tokens[tokens["row"] != FOLLOWED]
    assert sorted(tokens["step"].unique()) == [0, 2]
    for step, table in tokens.groupby("step"):
        line = metrics.loc[step]
        for kind, part in table.groupby("kind"):
            assert len(part) == line[f"tokens_{kind}"]
            assert part["entropy"].mean() == pytest.approx(line[f"entropy_{kind}"], rel=1e-5)
            assert -part["logp"].mean() == pytest.approx(line[f"nll_{kind}"], rel=1e-5)
        rows = table.groupby(["problem", "row"]).first()
        assert rows["score"].mean() == pytest.approx(line["reward"])
        prefix = table[table["kind"] == "prefix"]
        assert prefix["kept"].mean() == pytest.approx(line["kept_share"])
        assert (prefix.loc[~prefix["kept"], "advantage"] == 0).all()
        assert len(prefix) / len(table) == pytest.approx(line["prefix_share"])


def test_files_of_a_run(whole, small):
    run = whole("sft_then_rft")
    assert run.config == small(method="sft_then_rft", **BUSY)
    assert run.metrics["stage"].tolist() == ["sft"] * 3 + ["rft"] * 4
    assert run.metrics["step"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert run.metrics["global_step"].tolist() == list(range(7))
    assert run.evaluations["global_step"].tolist() == [0, 2, 3, 4, 6, 7]
    assert run.evaluations["stage"].tolist() == ["base", "sft", "sft", "rft", "rft", "rft"]
    assert json.loads((run.path / "data.json").read_text()) == {
        "train": 12,
        "with_demonstration": 12,
        "demonstrations": 12,
        "validation": 4,
        "dropped": {},
        "tokenizer": run.tokenizer,
        "contents": {},
        "rewards": {"math_verify": {"weight": 1.0, "version": None}},
        "solved": 1.0,
        "task": {"name": "", "version": ""},
    }
    assert len(run.tokenizer) == 12
    assert json.loads((run.path / "DONE.json").read_text())["config"] == run.config.hash()
    assert list(run.path.rglob("*.tmp")) == []


def test_the_final_weights_are_those_that_were_evaluated(tmp_path, whole, small):
    """A base run from the saved model repeats the final evaluation of the run that wrote it."""
    run = whole("prefix_rft")
    again = train(small(method="base", **{"model.path": str(run.path / "model")}), tmp_path)
    for split in ("test", "ood"):
        pd.testing.assert_frame_equal(again.evaluation(split), run.evaluation(split))
    moved = train(small(method="base"), tmp_path)
    assert not moved.evaluation("test").equals(run.evaluation("test")), "training changed the policy"


def test_evaluation_only_before_and_after(tmp_path, small):
    run = train(small(method="rft", **{"evaluation.every": 0, "evaluation.hard_tries": 0, "rl.steps": 3}), tmp_path)
    assert run.evaluations["global_step"].tolist() == [0, 3]
    assert "hard" not in run.evaluations or run.evaluations["hard"].isna().all()


def test_a_finished_run_of_other_defaults_is_not_passed_off_as_this_one(tmp_path, small):
    config = small(method="base")
    run = train(config, tmp_path)
    path = run.path / "config.json"
    text = path.read_text()
    written = json.loads(text)
    written["loss"]["dual_clip"] = 2.5
    path.write_text(json.dumps(written))
    (run.path / "DONE.json").write_text(json.dumps({"config": run.config.hash()}))  # as runs before hashes were kept
    with pytest.raises(
        RunError, match=r"trained with loss\.dual_clip = 2\.5, which was the default then; it is 3\.0 now"
    ):
        train(config, tmp_path)
    del written["loss"]["dual_clip"]
    path.write_text(json.dumps(written))
    assert train(config, tmp_path).path == run.path, "a field that did not exist then has its default"
