"""Try to break the kit, and say what broke: one table of what was tried, survived, lost and wrong.

python scripts/endure.py [--seconds 1800] [--seed 0] [--write]

kills       a run is killed at random moments by each signal; it resumes to the bits of one that was left alone
full disk   the file system fills up at random moments; what was there stays whole, and the run goes on once there is room
damage      each file of a finished and of an interrupted run is damaged in turn, and read by every command
answers     generated hostile answers are graded: fast, without an exception, and none is right by accident
commands    generated hostile command lines: one sentence and an exit status

Survived is: the right result, or one sentence that says what is wrong. Lost: the work or the command did not come to an end.
Wrong: another result without a word, or a control character printed. Each case is keyed by seed, area and number.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import io
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import prefix_rft_lab.report
import prefix_rft_lab.tools.publishing
import prefix_rft_lab.tools.reading
import prefix_rft_lab.training.trainer  # noqa: F401  # a fork has all imports behind it
from prefix_rft_lab import answers, cli
from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import flatten, preset
from prefix_rft_lab.rewards import Verifier

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "endurance.md"
TRAIN = ["train", "--method=prefix_rft", "--steps=16"] + [
    f"--set={field}={value}"
    for field, value in {
        **{"data.train_problems": 48, "data.eval_problems": 6, "evaluation.problems": 6, "evaluation.hard_tries": 1},
        **{"evaluation.every": 4, "evaluation.k": 2, "rollout.max_response_tokens": 32, "records.tokens_every": 4},
        **{"records.checkpoint_every": 2, "rollout.problems_per_step": 4, "evaluation.final_splits": "[test]"},
    }.items()
]
SHARES = {"kills": 0.3, "full disk": 0.15, "damage": 0.3, "answers": 0.1, "commands": 0.15}
"""Area -> part of the time."""
LIMIT = 600.0
"""Seconds after which a command is taken not to end."""
Case = Iterator[tuple[str, str]]
"""(outcome, what was tried): survived, lost, wrong or traceback."""


def command(
    *arguments: str, kill: tuple[int, Callable[[float], bool]] | None = None, encoding: str = "utf-8"
) -> tuple[int | None, str]:
    """Exit status of a command of the kit in a process of its own, and what it printed; None if it did not end."""
    with tempfile.TemporaryFile() as printed:
        process = os.fork()
        if process == 0:
            os.setpgid(0, 0)
            for descriptor in (1, 2):
                os.dup2(printed.fileno(), descriptor)
            for name in ("stdout", "stderr"):
                raw = open(1, "wb", 0, closefd=False)  # noqa: SIM115
                setattr(sys, name, io.TextIOWrapper(raw, encoding, write_through=True))
            try:
                status = cli.main(list(arguments))
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
                status = 70
            sys.stdout.flush()
            os._exit(status or 0)
        started = time.monotonic()
        while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0) and time.monotonic() - started < LIMIT:
            time.sleep(0.005)
            if kill and kill[1](time.monotonic() - started):
                os.kill(process, kill[0])
                kill = None
        if ended == (0, 0):
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
        printed.seek(0)
        text = printed.read().decode(encoding, "replace")
    return (None if ended == (0, 0) else os.waitstatus_to_exitcode(ended[1])), text


def state(folder: Path) -> dict[str, str]:
    """File of a folder -> hash of what it holds, without what tells only when and how fast."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("DONE.json", "env.json")):
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            content = re.sub(rb'"seconds\w*": [\d.e-]+,?', b"", content)
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def judged(found: tuple[int | None, str], right: Callable[[], bool] = lambda: True) -> str:
    """What a command came to."""
    status, text = found
    if "Traceback (most recent call last)" in text or status == 70:
        return "traceback"
    if any(not c.isprintable() and c not in "\n\r\t" for c in text):
        return "wrong"
    if status is None or status < 0:
        return "lost"
    if status == 0:
        return "survived" if right() else "wrong"
    return "survived" if status in (1, 2, 130) and text.strip() else "wrong"


class Whole:
    """A run that was left alone, what it left, how long it took, and one that was interrupted."""

    def __init__(self, folder: Path) -> None:
        started = time.monotonic()
        found = command(*TRAIN, f"--out={folder / 'whole'}")
        assert found[0] == 0, found[1]
        self.seconds = time.monotonic() - started
        self.out = folder / "whole"
        [self.run] = (self.out / "tiny").iterdir()
        self.state = state(self.out)
        self.part = folder / "part"
        at = f"tiny/{self.run.name}/checkpoints/step-000004"
        command(*TRAIN, f"--out={self.part}", kill=(signal.SIGKILL, lambda seconds: (self.part / at).is_dir()))

    def resumed(self, out: Path) -> bool:
        return state(out) == self.state


def kills(whole: Whole, folder: Path, draw: np.random.Generator) -> Case:
    for number in itertools.count():
        out, sign = folder / str(number), (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3]
        times = int(draw.integers(1, 4))
        moments = [float(draw.uniform(0.02, 1.0)) * whole.seconds for _ in range(times)]
        outcome = "survived"
        for moment in moments:
            found = command(*TRAIN, f"--out={out}", kill=(sign, lambda seconds, moment=moment: seconds > moment))
            if "Traceback" in found[1]:
                outcome = "traceback"
        if outcome == "survived":
            found = command(*TRAIN, f"--out={out}")
            outcome = "lost" if found[0] != 0 else judged(found, lambda out=out: whole.resumed(out))
        yield outcome, f"{sign.name} after {', '.join(f'{m:.2f}' for m in moments)} s"
        shutil.rmtree(out)


def small_disk(place: Path, size: int) -> bool:
    """Mount a file system of so many bytes for this process; whether that is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, mounts = 0x10000000, 0x00020000
    if libc.unshare(mounts if os.getuid() == 0 else user | mounts):
        return False
    libc.mount(b"none", b"/", None, 0x44000, None)  # private: nobody else sees it
    return libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={size}".encode()) == 0


def full_disk(whole: Whole, folder: Path, draw: np.random.Generator) -> Case:
    disk = folder / "disk"
    disk.mkdir()
    if not small_disk(disk, 96 * 2**20):
        return
    others = {
        "report": ["report", str(disk / "runs")],
        "push": ["push", str(disk / "runs" / "tiny" / whole.run.name), f"--dry-run={disk / 'push'}"],
        "evaluate": ["evaluate", "--model=tiny", "--limit=2", "--k=1", f"--out={disk / 'e.parquet'}"],
        "tokens": ["tokens", "--model=tiny", "--limit=2", f"--out={disk / 't.parquet'}"],
    }
    for number in itertools.count():
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        name = ["train", *others][number % 5] if number % 2 else "train"
        left = int(draw.choice([0, 4096, 40_000, 400_000, 2_000_000]))
        if name == "train":
            moment = float(draw.uniform(0.1, 0.9)) * whole.seconds
            filler = os.fork()
            if filler == 0:
                time.sleep(moment)
                fill(disk, left)
                os._exit(0)
            found = command(*TRAIN, f"--out={disk}")
            os.waitpid(filler, 0)
            ended = judged(found, lambda: (disk / "ballast").unlink() or whole.resumed(disk))
            if found[0] and ended == "survived":
                (disk / "ballast").unlink(missing_ok=True)
                ended = "survived" if "space" in found[1] else "wrong"
                again = command(*TRAIN, f"--out={disk}")
                ended = ended if again[0] == 0 and whole.resumed(disk) else "lost" if again[0] else "wrong"
            yield ended, f"train, {left} bytes left after {moment:.2f} s: {found[1].strip()[-200:]}"
        else:
            shutil.copytree(whole.out, disk / "runs")
            before = state(disk / "runs" / "tiny")
            fill(disk, left)
            found = command(*others[name])
            same = state(disk / "runs" / "tiny") == before
            yield judged(found) if same else "lost", f"{name}, {left} bytes left: {found[1].strip()[-200:]}"


def fill(disk: Path, left: int) -> None:
    with contextlib.suppress(OSError), (disk / "ballast").open("ab") as file:
        file.write(b"0" * max(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - left, 0))


def put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path, bytes], object]] = {
    "gone": lambda path, was: path.unlink(),
    "empty": lambda path, was: put(path, b""),
    "half": lambda path, was: put(path, was[: len(was) // 2]),
    "one bit": lambda path, was: put(
        path, was[: len(was) // 2] + bytes([was[len(was) // 2] ^ 1]) + was[len(was) // 2 + 1 :]
    ),
    "another shape": lambda path, was: put(path, b"[1, 2]\n"),
    "other names": lambda path, was: put(path, b'{"a": {"b": [null, "x"]}}\n'),
    "torn inside": lambda path, was: put(path, was[: len(was) // 3] + b"\n" + was[len(was) // 3 :]),
    "pointer": lambda path, was: put(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    "no text": lambda path, was: put(path, b"\xff\xfe\x00\n\x1b[2J\n"),
    "a folder": lambda path, was: (path.unlink(), path.mkdir()),
    "a link to itself": lambda path, was: (path.unlink(), path.symlink_to(path.name)),
}
STRAY = (
    "checkpoints/step-x",
    "checkpoints/step-000099",
    "tokens/step-x.parquet",
    "evaluation/x.parquet",
    "model/x.safetensors",
)
"""Folders that may lie in a run."""


def damage(whole: Whole, folder: Path, draw: np.random.Generator) -> Case:
    def readers(out: Path) -> dict[str, list[str]]:
        run = str(out / "tiny" / whole.run.name)
        return {
            "train": [*TRAIN, f"--out={out}"],
            "report": ["report", str(out)],
            "push": ["push", run, f"--dry-run={out / 'push'}"],
            "evaluate": ["evaluate", f"--model={run}", "--limit=3"],
            "tokens": ["tokens", f"--model={run}", "--limit=3"],
        }

    def outcome(out: Path, reader: str) -> tuple[tuple[int | None, str], str]:
        found = command(*readers(out)[reader])
        made = [out / "report.md"] if reader == "report" else sorted((out / "push").rglob("*")) * (reader == "push")
        text = found[1] + "".join(path.read_text(errors="replace") for path in made if path.is_file())
        return found, re.sub(
            r"Loading weights.*|[\d.]+ ?s(econds)?\b|  \d+$", "", text.replace(str(out), ""), flags=re.M
        )

    cases = [
        (base, path.relative_to(base).as_posix(), kind, reader)
        for base, names in ((whole.out, list(readers(folder))), (whole.part, ["train", "report"]))
        for path in [
            *sorted(p for p in base.rglob("*") if p.is_file()),
            *(next((base / "tiny").iterdir()) / s for s in STRAY),
        ]
        for kind in (DAMAGE if path.is_file() else ["a stray folder"])
        for reader in names
    ]
    intact: dict[tuple[Path, str], str] = {}
    for number in draw.permutation(len(cases)):
        base, name, kind, reader = cases[number]
        out = folder / "copy"
        if (base, reader) not in intact:
            shutil.copytree(base, out)
            intact[base, reader] = outcome(out, reader)[1]
            shutil.rmtree(out)
        shutil.copytree(base, out)
        path = out / name
        DAMAGE[kind](path, path.read_bytes()) if kind in DAMAGE else path.mkdir(parents=True)
        found, text = outcome(out, reader)
        if base == whole.part and reader == "train":
            right = whole.resumed(out)
        else:
            right = text == intact[base, reader] or path.name in text.replace(intact[base, reader], "")
        yield (
            judged(found, lambda right=right: right),
            f"{base.name}/{name}, {kind}, {reader}: {found[1].strip()[-300:]}",
        )
        shutil.rmtree(out)


# fmt: off
PIECES = [
    *r"\frac \sqrt \boxed \boxed{ \text{ \left( \right) \pm \cdot \ldots \begin{matrix} \end{matrix} \overline{ \$ \% \pi".split(),  # noqa: SIM905
    *"{}()[]^_,.;:=<>-+*/!'|&$#~\\\x00\n\u202e\ud800½√°×²…exi19 ",
    *"0.5 1,000 10^10^10 1e999 99!!! hours 5:30 p.m. million and or not is the answer km/h percent north 0.333... ####".split(),  # noqa: SIM905
    *("9" * 60, "a" * 60, "{" * 60, "(" * 60, "," * 60, " " * 60, "\\frac" * 20),
]
VALUES = [
    *"0 -1 1e308 -1e308 nan inf 1e-320 99999999999999999999 null true [] {} [[[]]] '' ~ x ../x \x1b[2J \u202e \udc80 é 日本".split(),  # noqa: SIM905
    *("[" * 3000, "{a: &a [x, x], b: [*a, *a]}", "!!python/object:os.system x", "n" * 300, "1" * 5000, "- a\n- b", "=", " "),
]
# fmt: on


def hostile_answers(whole: Whole, folder: Path, draw: np.random.Generator) -> Case:
    with Verifier() as verifier:
        verifier.score(r"\boxed{1}", "2")
        for number in itertools.count():
            chosen = [PIECES[i] for i in draw.integers(len(PIECES), size=int(draw.integers(1, 8)))]
            text = "".join(chosen) * (1 if number % 2 else 1900 // len("".join(chosen)))
            started, slow = time.monotonic(), verifier.timeouts
            try:
                for read in (answers.normalise, answers.final_answers, answers.bare, answers.golds, answers.clock):
                    read(text)
                answers.quantities(answers.normalise(text)), answers.complete_gold("7", text)
                fast = time.monotonic() - started < 2
                got = verifier.score(f"\\boxed{{{text}}}", "8675309"), verifier.score("\\boxed{8675309}", text)
                own = verifier.score(f"{text}\n\nSo it is this number: $\\boxed{{8675309}}$.", "8675309")
                done = time.monotonic() - started < 4 * verifier.time_limit or verifier.timeouts > slow
                outcome = "lost" if not (fast and done) else "survived" if (*got, own) == (0, 0, 1) else "wrong"
            except Exception:
                outcome = "traceback"
            yield outcome, f"answer {text[:200]!r}"


def hostile_commands(whole: Whole, folder: Path, draw: np.random.Generator) -> Case:
    (folder / "file").write_text("")
    (folder / "torn.jsonl").write_bytes(b'{"problem": "\xff\x1b[2J", "answer": [1]}\n{"problem": 3}\n{"pro')
    (folder / "odd.jsonl").write_text(
        '{"problem": "a\\ud800 \\u202e", "answer": "\\u001b[2J", "solution": "1", "id": "\\u001b]0;x"}\n'
    )
    fields = [name for name, _ in flatten(preset("tiny").to_dict())]
    bad = [
        *VALUES,
        "/proc/none/x",
        str(folder / "file" / "x"),
        str(folder / "file"),
        "~nobody/x",
        str(whole.run / "metrics.jsonl"),
    ]
    files = [str(folder / "torn.jsonl"), str(folder / "odd.jsonl"), str(whole.run / "metrics.jsonl"), str(folder), *bad]

    def one(values: list[str]) -> str:
        return values[int(draw.integers(len(values)))]

    small = [*TRAIN, "--steps=1", "--set=evaluation.every=0", "--set=records.tokens_every=1"]
    tiny = ["--model=tiny", "--limit=1"]
    options = {  # command -> its options that are given a hostile value
        ("train", "--plan"): "steps seed seeds method problems model flops set",
        ("sweep", "demo_quality", "--plan"): "seeds profile out set workers run-limit",
        ("evaluate", *tiny, "--k=1"): "out split k temperature problems",
        ("tokens", *tiny): "out steps top-k sample problems seed",
        ("data", "inspect", files[1]): "rows column out test-set",
        ("grading", files[1]): "limit least out column",
        ("claims",): "out profile sweep",
        ("reproduce", f"--out={folder / 'file' / 'x'}"): "profile only sweeps notebooks",
        ("push", str(whole.run)): "dry-run repo",
    }
    makers: list[Callable[[], list[str]]] = [
        lambda: ["train", "--dry-run", f"--set={one(fields)}={one(bad)}"],
        lambda: [*small, f"--set={one(fields)}={one(VALUES[:22])}", f"--out={folder / 'runs'}"],
        lambda: [*small, f"--out={one(bad)}/x"],
        lambda: [one(["sweep", "report", "grading", "push"]), one(files)],
        lambda: [one(bad), one(bad)],
        *(lambda c=c, o=o: [*c, f"--{one(o.split())}={one(files)}"] for c, o in options.items()),
    ]
    os.chdir(folder)
    for number in itertools.count():
        arguments = makers[number % len(makers)]()
        found = command(*arguments, encoding=("utf-8", "ascii", "cp1252")[number % 3])
        shown = " ".join(a if len(a) < 60 else f"{a[:50]}..." for a in arguments if a not in TRAIN)
        yield judged(found), f"{shown!r}: {found[1].strip()[-300:]}"


AREAS = {
    "kills": kills,
    "full disk": full_disk,
    "damage": damage,
    "answers": hostile_answers,
    "commands": hostile_commands,
}


def endure(seconds: float, seed: int = 0, only: str | None = None) -> dict[str, Counter[str]]:
    """Area -> how many cases came to what; failures are printed when they happen."""
    tallies: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="endure-") as place, contextlib.chdir(place):
        whole = Whole(Path(place))
        for area in [only] if only else AREAS:
            folder = Path(place) / area.replace(" ", "-")
            folder.mkdir()
            tally = tallies[area] = Counter()
            end = time.monotonic() + (1 if only else SHARES[area]) * seconds
            for number, (outcome, what) in enumerate(AREAS[area](whole, folder, rng.generator(seed, "endure", area))):
                tally[outcome] += 1
                if outcome != "survived" or os.environ.get("V"):
                    print(
                        f"{area} {number}: {outcome}: {what.encode('ascii', 'backslashreplace').decode()}", flush=True
                    )
                if time.monotonic() > end:
                    break
            (folder / "disk").is_mount() and ctypes.CDLL(None).umount(str(folder / "disk").encode())
    return tallies


def table(tallies: dict[str, Counter[str]]) -> str:
    lines = ["| | tried | survived | lost | wrong | tracebacks |", "|---|---|---|---|---|---|"]
    for area, tally in tallies.items():
        cells = [tally.total(), *(tally[outcome] for outcome in ("survived", "lost", "wrong", "traceback"))]
        lines.append(f"| {area} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(AREAS), help="one area, with all of the time")
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCUMENT.name}")
    options = parser.parse_args()
    tallies = endure(options.seconds, options.seed, options.only)
    print(table(tallies))
    if options.write:
        about = (__doc__ or "").partition("[--write]")[2].strip()
        head = f"# What it withstands\n\n`make endure` tries to break the kit; here for {options.seconds:g} seconds, seed {options.seed}."
        DOCUMENT.write_text(f"{head}\n\n{table(tallies)}\n\n```\n{about}\n```\n", encoding="utf-8")
    return int(any(tally.total() > tally["survived"] for tally in tallies.values()))


if __name__ == "__main__":
    raise SystemExit(main())
