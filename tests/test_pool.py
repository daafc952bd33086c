"""Runs in worker processes: one that fails, is killed or interrupted harms no other and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from run_factory import write_run

from prefix_rft_lab import pool
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.core.files import read_lines
from prefix_rft_lab.pool import PoolError, Status, train_all
from prefix_rft_lab.runs.run import Claim, claimed_by, directory_of
from prefix_rft_lab.trainer import train

QUICK = {"rl.steps": 2, "evaluation.every": 0, "evaluation.hard_tries": 0, "records.save_model": False}
LONG = QUICK | {"rl.steps": 24, "records.checkpoint_every": 4, "records.tokens_every": 0}
SECONDS = 90
"""Patience of these tests; on an idle machine everything takes a few seconds."""


def learned(path: Path) -> list[dict]:
    """The metrics of a run without its timings."""
    lines = read_lines(path / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("seconds_")} for line in lines]


def until(condition, what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that init hasn't collected yet runs no more.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def workers(monkeypatch):
    """The worker processes as they are started."""
    started: list[subprocess.Popen] = []
    original = pool._Worker.__init__

    def init(self, *args):
        original(self, *args)
        started.append(self.process)

    monkeypatch.setattr(pool._Worker, "__init__", init)
    return started


@pytest.mark.slow
def test_a_failing_run_neither_hides_nor_stops_the_others(small, tmp_path, workers, monkeypatch, capsys):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\nif 'prefix_rft_lab.pool' in sys.orig_argv: print('noise before the first answer')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "empty").mkdir()
    bad = small(method="rft", **QUICK, **{"model.path": str(tmp_path / "empty")})
    good = [small(method="rft", seed=seed, **QUICK) for seed in (0, 1)]
    with pytest.raises(PoolError) as caught:
        train_all([bad, *good], out=tmp_path / "runs", workers=1)
    assert len(workers) == 1, "a failing run costs no worker"
    [failure] = caught.value.failures
    text = str(caught.value)
    assert text.startswith("1 of 3 runs did not finish") and directory_of(bad, "").name in text
    assert "holds no config.json" in failure.sentence and str(failure.log) in text
    assert "holds no config.json" in failure.tail
    assert not directory_of(bad, tmp_path / "runs").exists()
    assert "0/6 steps, 0/3 runs" in capsys.readouterr().err

    workers.clear()
    found = train_all([good[1], good[0], good[1]], out=tmp_path / "runs", progress=False)
    assert [run.seed for run in found] == [1, 0, 1]
    assert not workers, "finished runs start no worker"
    alone = train(good[0], out=tmp_path / "alone", progress=False)
    assert learned(found[1].path) == learned(alone.path), "a worker trains to the same bits as this process"


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_run_resumes(small, tmp_path, workers):
    long, short = small(method="rft", **LONG), small(method="rft", seed=1, **QUICK)
    path = directory_of(long, tmp_path)

    def kill() -> None:
        until(lambda: (path / "checkpoints").is_dir() and any((path / "checkpoints").glob("step-*")), "a checkpoint")
        workers[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(PoolError) as caught:
        train_all([long, short], out=tmp_path, workers=1, progress=False)
    thread.join()
    [failure] = caught.value.failures
    assert failure.config == long and "was killed by signal 9" in failure.sentence
    assert (directory_of(short, tmp_path) / "DONE.json").is_file()
    kept = max(int(p.name.removeprefix("step-")) for p in (path / "checkpoints").glob("step-*"))
    before = read_lines(path / "metrics.jsonl")
    [run] = train_all([long], out=tmp_path, progress=False)
    after = read_lines(run.path / "metrics.jsonl")
    assert [line["global_step"] for line in after] == list(range(24))
    assert after[:kept] == before[:kept], "steps before the checkpoint, with their timings, are not run again"


@pytest.mark.slow
def test_an_interrupt_ends_all_workers(interruptible, small, tmp_path, workers):
    configs = [small(method="rft", seed=seed, **LONG | {"rl.steps": 4000}) for seed in (0, 1)]

    def interrupt() -> None:
        until(lambda: any((directory_of(c, tmp_path) / "metrics.jsonl").is_file() for c in configs), "a step")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train_all(configs, out=tmp_path, workers=2, progress=False)
    thread.join()
    assert len(workers) == 2
    assert all(process.poll() is not None for process in workers)


@pytest.mark.slow
def test_workers_leave_when_their_caller_is_killed(small, tmp_path):
    config = small(method="rft", **LONG | {"rl.steps": 4000})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    script = f"""
from prefix_rft_lab import pool, RunConfig
give = pool._Worker.give
def told(self, job):
    print(self.process.pid, flush=True)
    give(self, job)
pool._Worker.give = told
pool.train_all([RunConfig.load({str(tmp_path / "config.yaml")!r})], out={str(tmp_path)!r}, progress=False)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        worker = int(caller.stdout.readline())
        until(lambda: (directory_of(config, tmp_path) / "metrics.jsonl").is_file(), "a step")
        assert alive(worker)
        caller.kill()
    until(lambda: not alive(worker), "the end of the worker")


def test_the_time_limit_stops_what_runs_and_starts_no_more(small, tmp_path, workers):
    configs = [small(method="rft", seed=seed, **QUICK) for seed in (0, 1)]
    with pytest.raises(PoolError) as caught:
        train_all(configs, out=tmp_path, workers=1, progress=False, seconds_limit=0.1)
    assert [failure.sentence.partition(":")[0] for failure in caught.value.failures] == ["stopped", "not started"]
    assert [process.poll() is not None for process in workers] == [True]


def test_what_cannot_be_used_starts_no_worker(small, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_Worker", None)
    with pytest.raises(ConfigError, match="workers = 0"):
        train_all([small()], out=tmp_path, workers=0)
    with pytest.raises(ConfigError, match="method = 'rtf' is not known"):
        train_all([small(method="rtf")], out=tmp_path)
    assert train_all([], out=tmp_path) == []


def test_a_finished_run_of_other_defaults_fails_and_hides_no_other(small, tmp_path):
    changed, good = (write_run(tmp_path, "rft", seed) for seed in (0, 1))
    values = changed.config.to_dict()
    values["rl"]["grad_clip"] = 7.0
    (changed.path / "config.json").write_text(json.dumps(values))
    configs = [changed.config.replace(**{"rl.grad_clip": 1.0}), good.config]
    with pytest.raises(PoolError, match=r"was trained with rl.grad_clip = 7.0, which was the default then"):
        train_all(configs, out=tmp_path, progress=False)


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_waited_for(small, tmp_path):
    config, other = small(method="rft", **QUICK), small(method="rft", seed=1, **QUICK)
    claim = Claim(directory_of(config, tmp_path))
    claim.acquire()

    def train_elsewhere() -> None:
        until(lambda: (directory_of(other, tmp_path) / "DONE.json").is_file(), "the other run")
        claim.release()

    thread = threading.Thread(target=train_elsewhere)
    thread.start()
    found = train_all([config, other], out=tmp_path, workers=1, progress=False)
    thread.join()
    assert [run.done for run in found] == [True, True], "what another process gave up is taken up"


def test_what_another_process_does_not_finish_in_time_is_said(small, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_Worker", None)
    config = small(method="rft", **QUICK)
    claim = Claim(directory_of(config, tmp_path))
    claim.acquire()
    with pytest.raises(PoolError) as caught:
        train_all([config], out=tmp_path, progress=False, seconds_limit=1)
    [failure] = caught.value.failures
    assert failure.sentence == f"not finished by {claimed_by(claim.run)}: the limit of 1 seconds was reached"
    claim.release()


def test_what_takes_longest_starts_first(small, tmp_path):
    one = pool._Job(small(method="sft_then_rft"), tmp_path)  # 3 steps of 4 rows, then 4 of 8 rows
    assert one.cost == 3 * 4 + 4 * 8
    jobs = [pool._Job(small(method="sft", seed=seed), tmp_path) for seed in range(2)] + [one]
    assert pool._Pool(jobs, 2, Status(None, False)).waiting == [one, *jobs[:2]]


def test_the_time_to_go_is_that_of_the_steps_that_are_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(pool.time, "monotonic", lambda: clock[0])
    status = Status(7)
    status.update(2, "0/1 runs")
    clock[0] = 60.0
    status.update(4, "0/1 runs")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["2/7 steps, 0/1 runs", "4/7 steps, 0/1 runs, ETA 01:30"], "two steps took a minute, three are left"


def test_progress_counts_appended_lines_and_forgets_rewound_ones(small, tmp_path):
    job = pool._Job(small(method="sft_then_rft"), tmp_path)
    assert job.steps == 3 + 4 and not job.look()
    job.path.mkdir(parents=True)
    metrics = job.path / "metrics.jsonl"
    metrics.write_text('{"loss": 2.5}\n{"reward": 0.25}\n{"rew')
    assert job.look() and job.done_steps == 2
    assert str(job).endswith("step 2 reward 0.25")
    assert not job.look(), "the torn line is no step yet"
    metrics.write_text('{"loss": 2.5}\n')
    assert job.look() and job.done_steps == 1


def test_plain_status_lines_are_rare_and_none_is_shown_without_a_browser(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(pool.time, "monotonic", lambda: clock[0])
    status = Status(30)
    for second in range(25):
        clock[0] = float(second)
        status.update(second, f"second {second}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["0/30 steps, second 0", "10/30 steps, second 10, ETA 00:20", "20/30 steps, second 20, ETA 00:10"]
    monkeypatch.setenv(pool.TICKET, "1")
    with Status(10) as status:
        status.update(3, "now")
    assert capsys.readouterr().err == ""
    monkeypatch.delenv(pool.TICKET)
    with Status(10, shown=False) as status:
        status.update(3, "now")
    assert capsys.readouterr().err == ""
