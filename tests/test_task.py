"""Tasks: problems, reward and template under one name, in training and evaluation, and through worker processes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from prefix_rft_lab import rewards
from prefix_rft_lab.core import registry
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import read_json
from prefix_rft_lab.experiments.evaluation_run import evaluate_policy
from prefix_rft_lab.pool import train_all
from prefix_rft_lab.rewards import REWARDS, Scorer
from prefix_rft_lab.runs.run import directory_of
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tasks.task import Task, from_verifiers, tasks, with_task
from prefix_rft_lab.trainer import train
from prefix_rft_lab.types import Problem

FRAME = pd.DataFrame(
    [
        {"problem": p.prompt, "answer": p.answer, "solution": p.demonstration}
        for p in chains.problems("train", 20, expert="thorough")
    ]
)


@pytest.fixture(autouse=True)
def _registries():
    """What a test registers is gone after it."""
    before = [(one, dict(one), dict(one.entries)) for one in (REWARDS, tasks)]
    yield
    for one, ideas, entries in before:
        one.clear()
        dict.update(one, ideas)
        one.entries = entries


def short(response, problem):
    """Half for an answer, and half for a short one."""
    return 0.5 * rewards.exact(response, problem) + 0.5 * (len(response) < 60)


@pytest.fixture
def config(small):
    return small(method="prefix_rft", **{"rl.steps": 2, "evaluation.final_splits": ["test"]})


def test_a_frame_with_a_reward_of_its_own_trains_and_is_recorded(config, tmp_path):
    rewards.register("short", version="1")(short)
    task = Task(problems=FRAME, reward={short: 1, "format": 0.25}, solved=0.5, name="brief")
    run = train(config, task=task, out=tmp_path, progress=False)
    assert run.config.data.reward == "1 * short + 0.25 * format"
    assert run.config.data.task == "brief"
    assert run.config.ideas["data.reward short"] == "1"
    assert re.fullmatch(r"[0-9a-f]{12}", run.config.ideas["data.task brief"])
    assert run.data["rewards"] == {"short": {"weight": 1, "version": "1"}, "format": {"weight": 0.25, "version": None}}
    assert run.data["solved"] == 0.5
    assert Path(run.config.data.problems).parent == tmp_path / "problems"
    parts = run.metrics["rewards_short"] + 0.25 * run.metrics["rewards_format"]
    assert run.metrics["reward"].tolist() == pytest.approx(parts.tolist())
    # Half a point solves, so a problem with a right or a short answer is solved.
    assert run.evaluation("test")["correct"].max() >= 1
    found = evaluate_policy(config, task=task, split="all", limit=3)
    assert len(found.table) == 3

    again = train(config, task=task, out=tmp_path, progress=False)
    assert again.path == run.path
    by_name = train(config.replace(**{"data.task": "brief"}), out=tmp_path, progress=False)
    assert by_name.path == run.path

    other = Task(problems=FRAME[1:], reward=task.reward, solved=0.5, name="brief")
    assert directory_of(registry.with_ideas(with_task(config, other)), tmp_path) != run.path


def test_another_version_of_a_reward_is_another_run_and_none_is_trained_anew(config, tmp_path, caplog):
    paths = []
    for version in ("1", "2"):
        rewards.register("short", version=version)(short)
        paths.append(train(config, task=Task(problems=FRAME, reward="short"), out=tmp_path, progress=False).path)
    assert len(set(paths)) == 2
    task = Task(problems=FRAME, reward=lambda response, problem: 0.5)
    first = train(config, task=task, out=tmp_path, progress=False)
    stamp = (first.path / "DONE.json").stat().st_mtime_ns
    assert (train(config, task=task, out=tmp_path, progress=False).path / "DONE.json").stat().st_mtime_ns > stamp
    assert "names no version" in caplog.text


def test_a_reward_that_fails_is_told_before_anything_is_written(config, tmp_path):
    def broken(response, problem):
        raise KeyError("units")

    with pytest.raises(RunError, match=r"reward 'broken' failed on problem .* \(KeyError: 'units'\)"):
        train(config, task=Task(problems=FRAME, reward=broken), out=tmp_path, progress=False)
    assert not list(tmp_path.glob("run/*"))


def test_a_reward_that_fails_later_keeps_the_checkpoint_and_the_run_goes_on(config, tmp_path):
    config = config.replace(**{"rl.steps": 4, "records.checkpoint_every": 1})
    calls, limit = [], 10**9

    def late(response, problem):
        calls.append(response)
        return float("nan") if len(calls) > limit else float(len(response) < 60)

    rewards.register("late", version="1")(late)
    task = Task(problems=FRAME, reward="late", name="late")

    def stop(line):
        nonlocal limit
        limit = len(calls) + 3

    with pytest.raises(RunError, match="reward 'late' returned nan for problem"):
        train(config, task=task, out=tmp_path, progress=False, on_step=stop)
    path = directory_of(registry.with_ideas(with_task(config, task, folder=tmp_path / "problems")), tmp_path)
    assert list((path / "checkpoints").glob("*"))
    limit = 10**9
    resumed = train(config, task=task, out=tmp_path, progress=False)
    assert resumed.path == path
    assert resumed.metrics["global_step"].tolist() == [0, 1, 2, 3]
    whole = train(config, task=task, out=tmp_path / "whole", progress=False)
    assert whole.metrics["loss"].tolist() == resumed.metrics["loss"].tolist()


def test_what_cannot_be_used_is_one_sentence(config, tmp_path):
    task = Task(problems=FRAME, reward="exact")
    with pytest.raises(ConfigError, match="a task brings its own; leave one out"):
        train(config, task=task, problems=FRAME, out=tmp_path)
    with pytest.raises(ConfigError, match=r"data\.task = 'nowhere' is not known"):
        train(config.replace(**{"data.task": "nowhere"}), out=tmp_path)
    with pytest.raises(ConfigError, match="reward = 3 is no reward"):
        Task(problems=FRAME, reward=3)
    with pytest.raises(ConfigError, match="has no column 'problem'"):
        train(config, task=Task(problems=FRAME.drop(columns="problem"), reward="exact"), out=tmp_path)
    here = Task(problems=FRAME, reward=short)
    with pytest.raises(ConfigError, match="short"):
        train(config.replace(**{"data.reward": "shrt"}), out=tmp_path)
    assert here.fields["data.reward"] == "short"


def test_a_taskset_of_verifiers_is_a_task(config, tmp_path):
    vf = pytest.importorskip("verifiers.v1", reason="verifiers is not installed")

    class Data(vf.TaskData):
        answer: str
        demonstrations: list[str]

    class Chain(vf.Task[Data, vf.State, vf.TaskConfig]):
        @vf.reward(weight=1.0)
        async def right(self, trace: vf.Trace) -> float:
            return float(trace.last_reply.endswith(f"{self.data.answer}}}"))

        @vf.reward(weight=0.5)
        async def short(self, trace: vf.Trace) -> float:
            return float(len(trace.last_reply) < 60)

    class Chains(vf.Taskset[Chain, vf.TasksetConfig]):
        def load(self):
            for row in FRAME.to_dict("records"):
                yield Chain(Data(prompt=row["problem"], answer=row["answer"], demonstrations=[row["solution"]]))

    taskset = Chains(vf.TasksetConfig(id="chains"))
    task = from_verifiers(taskset, name="vf-chains", solved=1.0, version="1")
    with Scorer(config.replace(**task.fields).data) as scorer:
        first = chains.problems("train", 1)[0]
        asked = [Problem(id="vf-chains-0", prompt=first.prompt, answer=first.answer)] * 2
        assert scorer.score([f"\\boxed{{{first.answer}}}", "x" * 99], asked) == [1.5, 0.0]
    run = train(config, task=task, out=tmp_path, progress=False)
    assert run.config.ideas["data.reward vf-chains"] == "1"
    assert run.metrics["reward"].max() > 0
    assert train(config, task=task, out=tmp_path, progress=False).path == run.path

    class Endless(Chains):
        INFINITE = True

    with pytest.raises(ConfigError, match=r"has no end; give taskset\.take"):
        from_verifiers(Endless(vf.TasksetConfig(id="chains")), name="endless", solved=1.0)


MODULE = """
import pandas as pd
from prefix_rft_lab import Task, rewards
from prefix_rft_lab.tasks import chains

@rewards.register("ends", version="1")
def ends(response, problem):
    return float(response.rstrip().endswith(problem.answer + "}"))

Task(
    problems=[
        {"problem": p.prompt, "answer": p.answer, "solution": p.demonstration} for p in chains.problems("train", 20)
    ],
    reward=ends,
    name="ending",
)
"""


@pytest.mark.slow
def test_a_named_task_of_a_module_reaches_worker_processes(config, tmp_path, monkeypatch):
    (tmp_path / "my_task_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        told = config.replace(**{"data.task": "ending", "imports": ["my_task_module"]})
        runs = train_all([told, told.replace(seed=1)], out=tmp_path / "runs", workers=2, progress=False)
        assert [run.config.data.reward for run in runs] == ["ends"] * 2
        assert all(run.done for run in runs)
        again = train_all([told, told.replace(seed=1)], out=tmp_path / "runs", workers=2, progress=False)
        assert [run.path for run in again] == [run.path for run in runs]
        assert read_json(runs[0].path / "data.json")["task"]["name"] == "ending"
    finally:
        sys.modules.pop("my_task_module", None)
