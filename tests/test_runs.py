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


def foreign(run, number=0, *, age=0.0, boot="another", text=None):
    """The claim of a process that holds no lock here."""
    path = run.with_name(f".{run.name}.claim-{number}")
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
    assert [path.name for path in run.parent.iterdir()] == [".sft-0-s1.claim-0"]


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
    assert (tmp_path / ".sft-0-s0.claim-0").is_file()
    assert claimed_by(run) == ""
    claim = Claim(run)
    claim.acquire()
    assert [path.name for path in tmp_path.iterdir()] == [".sft-0-s0.claim-1"]
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
    assert claim.path is not None and claim.path.name.endswith("claim-1")
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
    assert sleeper.path is not None
    os.utime(sleeper.path, (time.time() - runs.STALE_SECONDS - 1,) * 2)
    monkeypatch.setattr(runs, "_machine", lambda: {"host": "here", "boot": "another"})
    other.acquire()
    with pytest.raises(RunClaimedError, match="was taken over by another process, since this one was silent"):
        sleeper.check()
    sleeper.release()
    other.check()
    other.release()


def test_of_two_that_come_at_once_to_different_numbers_not_both_stay(tmp_path, monkeypatch):
    run = tmp_path / "sft-0-s0"
    original, late = runs._claims, []

    def claims(path):
        # Between the count and the creation another one appears, which had counted more than we did.
        found = original(path)
        if not late:
            late.append(foreign(path, 3))
        return found

    monkeypatch.setattr(runs, "_claims", claims)
    with pytest.raises(RunClaimedError):
        Claim(run).acquire()
    assert [path.name for path in tmp_path.iterdir()] == [".sft-0-s0.claim-3"]


def test_a_claim_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.05)
    claim = Claim(tmp_path / "sft-0-s0")
    claim.acquire()
    assert claim.path is not None
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
