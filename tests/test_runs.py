"""Claims: of all processes and machines that share a folder, one writes a run, and a dead one is no hindrance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from prefix_rft_lab import runs
from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.runs import Claim, RunClaimedError, claimed_by


def foreign(run, *, age=0.0, boot="another", text=None):
    """The claim of a process that holds no lock here."""
    path = run.with_name(f".{run.name}.claim")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "node7", "boot": boot, "pid": 12}) if text is None else text)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_one_claim_at_a_time_and_nothing_is_left(tmp_path):
    run = tmp_path / "runs" / "name" / "sft-0-s0"
    one, other = Claim(run), Claim(run)
    one.acquire()
    one.acquire()
    assert f"process {os.getpid()} on " in claimed_by(run)
    with pytest.raises(
        RunClaimedError, match=rf"is being trained by another process \(process {os.getpid()} on .*wait for"
    ):
        other.acquire()
    Claim(run.with_name("sft-0-s1")).acquire()
    one.release()
    one.release()
    assert claimed_by(run) == ""
    other.acquire()
    other.check()
    other.release()
    assert [path.name for path in run.parent.iterdir()] == [".sft-0-s1.claim"]


def test_a_run_that_was_never_started_leaves_no_folder(tmp_path):
    run = tmp_path / "runs" / "name" / "sft-0-s0"
    claim = Claim(run)
    claim.acquire()
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_killed_process_of_this_machine_is_taken_over_at_once(tmp_path):
    run = tmp_path / "sft-0-s0"
    script = f"""
import os, signal
from pathlib import Path
from prefix_rft_lab.runs import Claim
Claim(Path({str(run)!r})).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert (tmp_path / ".sft-0-s0.claim").is_file()
    assert claimed_by(run) == ""
    claim = Claim(run)
    claim.acquire()
    assert [path.name for path in tmp_path.iterdir()] == [".sft-0-s0.claim"]
    claim.release()


def test_another_machines_claim_lives_as_long_as_its_heartbeat(tmp_path):
    run = tmp_path / "sft-0-s0"
    foreign(run, age=runs.STALE_SECONDS - 60)
    assert claimed_by(run) == "process 12 on node7"
    with pytest.raises(RunClaimedError, match="process 12 on node7"):
        Claim(run).acquire()
    foreign(run, age=runs.STALE_SECONDS + 1)
    assert claimed_by(run) == ""
    claim = Claim(run)
    claim.acquire()
    assert f"process {os.getpid()} on " in claimed_by(run) and list(tmp_path.iterdir()) == [claim.path]
    claim.release()


def test_a_claim_that_says_nothing_yet_counts_by_its_age(tmp_path):
    run = tmp_path / "sft-0-s0"
    foreign(run, text="")
    assert claimed_by(run)
    foreign(run, text="", age=runs.STALE_SECONDS + 1)
    assert not claimed_by(run)


def test_a_process_that_was_taken_over_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_machine", lambda: {"host": "sleeper", "boot": "its own"})
    run = tmp_path / "sft-0-s0"
    sleeper, other = Claim(run), Claim(run)
    sleeper.acquire()
    os.utime(sleeper.path, (time.time() - runs.STALE_SECONDS - 1,) * 2)
    monkeypatch.setattr(runs, "_machine", lambda: {"host": "here", "boot": "another"})
    other.acquire()
    with pytest.raises(RunClaimedError, match="was taken over by another process, since this one was silent"):
        sleeper.check()
    sleeper.release()
    other.check()
    other.release()


@pytest.mark.parametrize("dead", [False, True])
def test_of_several_that_come_at_once_one_has_it(tmp_path, dead):
    """Four processes meet at a dead claim or at none, again and again; one that has it finds nobody else's mark."""
    run = tmp_path / "runs" / "name" / "sft-0-s0"
    script = f"""
import sys
from pathlib import Path
from prefix_rft_lab.runs import Claim, RunClaimedError
run, mark = Path({str(run)!r}), Path({str(tmp_path / "mark")!r})
print("ready", flush=True)
sys.stdin.readline()
had = 0
for _ in range(200):
    claim = Claim(run)
    try:
        claim.acquire()
    except RunClaimedError:
        continue
    mark.open("x").close()
    claim.check()
    mark.unlink()
    claim.release()
    had += 1
print(had)
"""
    if dead:
        foreign(run, age=runs.STALE_SECONDS + 1)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert sum(int(out) for out, _ in said) > 0
    assert not list(tmp_path.rglob(".*"))


def test_a_claim_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.05)
    claim = Claim(tmp_path / "sft-0-s0")
    claim.acquire()
    os.utime(claim.path, (0, 0))
    end = time.monotonic() + 30
    while claim.path.stat().st_mtime == 0:
        assert time.monotonic() < end
        time.sleep(0.02)
    claim.release()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a\0b"])
def test_a_run_stays_below_its_folder(name):
    with pytest.raises(ConfigError, match=r"leads out of the folder of all runs; use a plain name, and --out"):
        preset("tiny", name=name)
