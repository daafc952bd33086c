"""Claims: of all processes and machines that share a folder, one writes a run, and a dead one is no hindrance."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from run_factory import write_run

from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.core import files
from prefix_rft_lab.core.errors import RunClaimedError, RunError
from prefix_rft_lab.runs import run as runs
from prefix_rft_lab.runs.run import Claim, Run, RunWriter, claimed_by


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
from prefix_rft_lab.runs.run import Claim
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
from prefix_rft_lab.core.errors import RunClaimedError
from prefix_rft_lab.runs.run import Claim
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


DAMAGE = {
    "nothing": b"",
    "half": b'{"a": [1, ',
    "another shape": b"[1, 2]",
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
}
RECORDS = ("config.json", "env.json", "data.json", "metrics.jsonl", "evaluations.jsonl", "evaluation/test.parquet")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_file_is_named_with_cause_and_remedy(tmp_path, name, damage):
    run = write_run(tmp_path, "sft")
    text = DAMAGE[damage]
    (run.path / name).write_bytes(text + b"\n" + text + b"\n" if name.endswith("l") else text)
    run = Run(run.path)
    with pytest.raises(RunError) as caught:
        run.check()
    sentence = str(caught.value)
    assert sentence.startswith(f"{run.path / name} is damaged (") and "\n" not in sentence
    assert sentence.endswith("restore it from a copy, or delete the folder of its run, to train it again")


def test_a_damaged_record_of_divergence_is_named(tmp_path):
    run = write_run(tmp_path, "sft")
    (run.path / "DIVERGED.json").write_text('{"step": 3}')
    with pytest.raises(RunError, match=r"DIVERGED\.json is damaged \(it holds no 'sentence'\)"):
        run.check()


def test_metrics_that_a_finished_run_did_not_record_are_noticed(tmp_path):
    run = write_run(tmp_path, "sft")
    path = run.path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged \(it is not what the finished run recorded\)"):
        run.check()


def test_one_bit_of_any_file_of_a_finished_run_is_noticed(tmp_path):
    whole = write_run(tmp_path / "whole", "sft", splits=("test", "ood"))
    names = [path.relative_to(whole.path) for path in sorted(whole.path.rglob("*")) if path.is_file()]
    assert {name.suffix for name in names} == {".json", ".jsonl", ".parquet"}
    for name in names:
        path = shutil.copytree(whole.path, tmp_path / f"{name.stem}{name.suffix}" / "run") / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        run = Run(tmp_path / f"{name.stem}{name.suffix}" / "run")
        if name.name == "summary.json":
            assert run.summary == whole.summary, "it is made again"
        else:
            with pytest.raises(RunError, match=r"is damaged \("):
                run.check()


def test_what_stands_in_the_place_of_a_file_or_folder_is_found_at_the_start(tmp_path):
    run = write_run(tmp_path, "sft", done=False)
    shutil.rmtree(run.path / "tokens")
    for name, cause in (
        ("metrics.jsonl", "it is no file"),
        ("DONE.json", "it is no file"),
        ("tokens", "it is no folder"),
    ):
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).mkdir() if "." in name else (run.path / name).write_text("")
        with (
            pytest.raises(RunError, match=f"{name} is damaged \\({cause}\\)"),
            RunWriter(run.config, tmp_path) as writer,
        ):
            writer.start({})
        (run.path / name).rmdir() if "." in name else (run.path / name).unlink()


@pytest.mark.parametrize("left", [None, *DAMAGE.values(), b'{"title": "a report", "compare": {}}'])
def test_a_lost_summary_is_made_again_from_the_evaluation(tmp_path, left):
    run = write_run(tmp_path, "sft", splits=("test", "ood"))
    before = run.summary
    (run.path / "summary.json").unlink()
    if left is not None:
        (run.path / "summary.json").write_bytes(left)
    assert run.summary == before


def test_tables_and_folders_of_another_name_are_no_token_tables(tmp_path):
    run = write_run(tmp_path, "sft")
    before = run.tokens
    (run.path / "tokens" / "step-x.parquet").write_bytes(b"")
    assert run.tokens.equals(before)
    run.token_tables()[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(RunError, match=r"step-000000\.parquet is damaged"):
        _ = run.tokens


def test_a_file_is_written_whole_in_place_of_a_link(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_text(tmp_path / "link", "new \ud800")
    assert (tmp_path / "target").read_text() == "mine"
    assert (tmp_path / "link").read_text() == "new \\ud800" and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("folder", ["file/below", "n" * 300, "a\0b", "a\ud800b/\udfff", "/proc/no"])
def test_a_folder_that_cannot_be_written_is_found_and_nothing_left(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^out = .* cannot be written \(.*\); choose another folder$"):
        files.check_writable(tmp_path / "new" / ".." / folder)
    files.check_writable(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_to_write_is_found_writable(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.file_to_write("~/new/x.parquet", suffix=".parquet") == tmp_path / "new" / "x.parquet"
    assert list(tmp_path.iterdir()) == []
    for path, sentence in (
        (tmp_path / "x.csv", r"does not end in \.parquet; give the name of a \.parquet file"),
        (tmp_path / "d.parquet", "is a folder; give the name of a file"),
        (tmp_path / ("n" * 260 + ".parquet"), r"cannot be written \(File name too long\)"),
    ):
        (tmp_path / "d.parquet").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=sentence):
            files.file_to_write(path, suffix=".parquet")
