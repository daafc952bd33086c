"""Many runs at once: long-lived worker processes, one status for all of them.

    train_all(configs), or work(jobs)
      -> worker processes        python -m prefix_rft_lab.experiments.pool: torch is imported once per worker, not once per run
      -> one request a line in   {"call": "module:function", "arguments": {...}, "log": ...}
      <- answers, a line each    {"event": "ready"} once, then {"event": ...}: done, diverged, claimed, failed
      <- metrics.jsonl           the status is read from what the runs record, workers don't report it

A worker is a fresh interpreter and not a fork: it works from scripts and notebooks alike, never imports the caller's
main module again, and can be killed without harm to the caller. It leaves as soon as its stdin closes, so that
no training goes on unseen when the caller was killed.

Several calls, on one machine or on several that share the folder, divide the runs among themselves: one that is claimed by
another (:class:`prefix_rft_lab.runs.run.Claim`) is left for later, and waited for at the end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prefix_rft_lab.algorithm import methods
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.errors import RunClaimedError, RunDivergedError, RunError
from prefix_rft_lab.core.files import check_writable, write_text
from prefix_rft_lab.core.registry import check_importable, unversioned, with_ideas
from prefix_rft_lab.core.terminal import plain_logs, shown
from prefix_rft_lab.data.task import Task, with_task
from prefix_rft_lab.runs.run import Run, claimed_by, directory_of, refuse_another, say_loaded

TICKET = "PREFIX_RFT_LAB_TICKET"
"""Environment variable of a kernel that runs a notebook without a browser: nobody sees a bar there, and it would stay in
the notebook as a widget. The notebook's last line shows the value to who started it."""

LINE_SECONDS = 10.0
"""Plain status lines come at most this often."""

TAIL_LINES = 20
"""Lines of a log that a failure carries."""

LOOK_SECONDS = 0.5
"""How often the status looks at what the runs recorded."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A run that did not finish."""

    config: RunConfig
    path: Path
    """The run's directory; it may not exist."""
    sentence: str
    log: Path | None
    """What the run printed; None if it was never started."""
    tail: str
    """The last lines of the log."""


class PoolError(RunError):
    """Some runs did not finish; the others are kept. ``failures`` says which, why, and what they printed."""

    def __init__(self, failures: Sequence[Failure], finished: int) -> None:
        self.failures = list(failures)
        lines = [
            f"{len(failures)} of {len(failures) + finished} runs did not finish; the same call keeps the other {finished} "
            "and takes these up where they stopped:"
        ]
        for failure in failures:
            where = f" (log: {failure.log})" if failure.log else ""
            lines.append(f"  {failure.config.name}/{failure.path.name}: {failure.sentence}{where}")
        super().__init__("\n".join(lines))


def train_all(
    configs: Sequence[RunConfig],
    *,
    out: str | Path = "runs",
    workers: int = 2,
    progress: bool = True,
    seconds_limit: float | None = None,
    run_seconds_limit: float | None = None,
    fresh: bool = False,
    task: Task | None = None,
) -> list[Run]:
    """Train runs in worker processes and return what they recorded, in the order of the configs.

    Finished runs are not trained again; interrupted ones resume from their newest checkpoint; runs that another process
    trains are waited for. A run that fails stops no other, except those whose demonstrations it was to write. A run that
    diverges is finished, see :attr:`prefix_rft_lab.runs.run.Run.diverged`. The longest runs start first. What a run prints
    goes to ``<out>/logs/<name>-<run>.log``, why it failed to a file beside it (:func:`failure_file`).

    Args:
        configs: the runs; equal configs are trained once.
        out: folder of all runs.
        workers: processes at most; each takes ``config.threads`` threads.
        progress: show one status of all runs: a bar in a terminal or notebook, else a line every ten seconds.
        seconds_limit: wall-clock limit of the whole call; what is not finished by then counts as failed.
        run_seconds_limit: wall-clock limit of each run, counted anew when it resumes; one that takes longer counts as
            failed.
        fresh: train again what was trained before.
        task: what all of them are trained on, as :func:`prefix_rft_lab.train` takes it.

    Raises:
        ConfigError: an unknown idea, one that only this process knows, fewer than one worker, a limit that is no
            positive number, or a folder that cannot be written; nothing was started.
        PoolError: (a :class:`RunError`) runs that failed, each with a sentence and its log; the others are finished.
        KeyboardInterrupt: as usual; all workers are ended first.
    """
    if workers < 1:
        raise ConfigError(f"workers = {workers} cannot be used: it should be at least 1")
    for name, limit in (("seconds_limit", seconds_limit), ("run_seconds_limit", run_seconds_limit)):
        if limit is not None and not limit > 0:
            raise ConfigError(f"{name} = {limit:g} cannot be used; give a positive number of seconds, or none")
    out = Path(out).expanduser()
    configs = [with_ideas(with_task(config, task, folder=out / "problems")) for config in configs]
    jobs = {directory_of(config, out): _Job(config, out, fresh) for config in configs}
    todo = [job for job in jobs.values() if not job.done]
    for job in todo:
        check_importable(job.config)
    say_loaded([Run(job.path) for job in jobs.values() if job.done], progress)
    failures = [failure for job in jobs.values() if job.done and (failure := job.refused())]
    if todo:
        check_writable(out)
        with Status(sum(job.steps for job in todo), progress) as status:
            failures += _Pool(todo, min(workers, len(todo)), status, seconds_limit, run_seconds_limit).run()
    if failures:
        raise PoolError(failures, len(jobs) - len(failures))
    return [Run(directory_of(config, out)) for config in configs]


def failure_file(run: Path) -> Path:
    """Holds why the last try of a run failed, in one sentence; it is not there while the run is tried again, or after."""
    return _log_of(run).with_suffix(".failed")


def _log_of(run: Path) -> Path:
    return run.parents[1] / "logs" / f"{run.parent.name}-{run.name}.log"


class Job:
    """A call in a worker, for one run.

    Args:
        config: of the run; the worker takes its number of threads.
        path: the run's directory.
        log: where goes what is printed.
        call: a function of a module that workers can import.
        arguments: its keyword arguments, plain values.
    """

    steps = 1
    """How much there is to do, and how much of it is done."""
    done_steps = 0
    author: Path | None = None
    """The run whose policy writes this one's demonstrations, if any."""

    def __init__(self, config: RunConfig, path: Path, log: Path, call: Callable[..., Any], arguments: dict[str, Any]):
        self.config = config
        self.path = path
        self.log = log
        self.failed = log.with_suffix(".failed")
        self.request = {"call": f"{call.__module__}:{call.__qualname__}", "arguments": arguments, "log": str(log)}
        self.started = math.nan

    @property
    def done(self) -> bool:
        return False

    @property
    def cost(self) -> float:
        """What is to be done, in a unit that all jobs share."""
        return self.steps

    def refused(self) -> Failure | None:
        """Why what is done is not what was asked for; None if it is."""
        return None

    def look(self) -> bool:
        """Whether there is something new since the last look."""
        return False

    def __str__(self) -> str:
        return f"{self.config.method} s{self.config.seed}"

    def failure(self, sentence: str, *, started: bool = True) -> Failure:
        tail = ""
        if started and self.log.is_file():
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:])
        return Failure(
            config=self.config, path=self.path, sentence=sentence, log=self.log if started else None, tail=tail
        )


class _Job(Job):
    """The training of one run: how far its records say it is."""

    def __init__(self, config: RunConfig, out: Path, fresh: bool = False) -> None:
        path = directory_of(config, out)
        arguments = {"config": config.to_dict(), "out": str(out), "fresh": fresh}
        super().__init__(config, path, _log_of(path), _train, arguments)
        self.anew = fresh or bool(unversioned(config))
        self.stages = methods.get(config.method).stages
        self.steps = sum(getattr(config, stage.optim).steps for stage in self.stages)
        self.score: str = ""
        self._offset = 0
        expert = config.data.expert
        if expert.startswith("run:"):
            self.author = path.parent / expert.removeprefix("run:")

    @property
    def done(self) -> bool:
        """Whether there is a run that counts: one with an idea that names no version never does."""
        return not self.anew and os.path.isfile(self.path / "DONE.json")  # noqa: PTH113, a name that is too long is no file

    @property
    def cost(self) -> float:
        """Rows of all steps."""
        rollout, rows = self.config.rollout, 0
        for stage in self.stages:
            a_step = (
                rollout.problems_per_step * rollout.rows_per_problem if stage.samples else self.config.sft.batch_rows
            )
            rows += getattr(self.config, stage.optim).steps * a_step
        return rows

    def refused(self) -> Failure | None:
        """The failure of a finished run that was trained under other defaults; None for a good one."""
        try:
            refuse_another(Run(self.path), self.config)
        except RunError as error:
            return self.failure(str(error), started=False)
        return None

    def look(self) -> bool:
        """Count the lines appended to ``metrics.jsonl`` since the last look; whether there were any."""
        try:
            with (self.path / "metrics.jsonl").open("rb") as file:
                if (
                    os.fstat(file.fileno()).st_size < self._offset
                ):  # a resumed run forgot what came after its checkpoint
                    self._offset = self.done_steps = 0
                file.seek(self._offset)
                # A torn last line is left for the next look.
                lines = file.read().rpartition(b"\n")[0].splitlines()
        except OSError:
            return False
        if not lines:
            return False
        self._offset += sum(len(line) + 1 for line in lines)
        self.done_steps += len(lines)
        with contextlib.suppress(ValueError):
            newest = json.loads(lines[-1])
            name = "reward" if "reward" in newest else "loss"
            self.score = f" {name} {newest.get(name, float('nan')):.2f}"
        return True

    def __str__(self) -> str:
        return f"{super().__str__()} step {self.done_steps}{self.score}"


def _train(config: dict[str, Any], out: str, fresh: bool) -> None:
    from prefix_rft_lab.training.trainer import train

    train(RunConfig.from_dict(config), out=out, progress=False, fresh=fresh)


def work(jobs: Sequence[Job], *, workers: int, status: Status) -> list[Failure]:
    """Do jobs in worker processes, those that cost most first; a job that fails stops no other.

    Returns:
        the jobs that failed.

    Raises:
        KeyboardInterrupt: as usual; all workers are ended first.
    """
    return _Pool(jobs, min(workers, len(jobs)), status).run() if jobs else []


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a worker process: this copy of the kit, and so many CPU threads."""
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    pinned = dict.fromkeys(THREAD_VARIABLES, str(threads))
    return {**os.environ, **pinned, "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false"}


class _Worker:
    """One worker process; its answers go to a queue that all workers share, None for the end of its output."""

    def __init__(self, threads: int, log: Path, answers: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]]):
        self.threads = threads
        self.job: Job | None = None
        self.ready = False
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            # -P: a file of the caller's folder must not shadow a module. A session of its own: Ctrl-C reaches only the
            # caller, which ends the worker together with the worker's children.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "prefix_rft_lab.experiments.pool"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                encoding="utf-8",
                env=worker_environment(threads),
                start_new_session=True,
            )
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    def _listen(self, answers: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # What a start-up file of the interpreter prints is no answer.
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and "event" in answer:
                    answers.put((self, answer))
        answers.put((self, None))

    def give(self, job: Job) -> None:
        self.job = job
        job.failed.unlink(missing_ok=True)
        job.started = time.monotonic() if self.ready else math.nan
        assert self.process.stdin is not None
        # A worker that is already dead says so by the end of its output.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job.request) + "\n")
            self.process.stdin.flush()

    def death(self) -> str:
        """How the process ended, in words."""
        code = self.process.wait()
        return f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with status {code}"

    def end(self, *, kill: bool = True) -> None:
        """End the process and its children; an idle one only has its input closed."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        if not kill:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
        # The group outlives its leader as long as a verifier process is in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class _Pool:
    def __init__(
        self,
        jobs: Sequence[Job],
        size: int,
        status: Status,
        seconds_limit: float | None = None,
        run_seconds_limit: float | None = None,
    ) -> None:
        # The longest first, so that none of them is the last to run alone.
        ordered = sorted(jobs, key=lambda job: -job.cost)
        self.claimed = [job for job in ordered if claimed_by(job.path)]
        """Runs that another process trains."""
        self.waiting = [job for job in ordered if job not in self.claimed]
        self.running: list[_Worker] = []
        self.finished = 0
        self.diverged = 0
        self.failures: list[Failure] = []
        self.size = size
        self.status = status
        self.seconds_limit = seconds_limit
        self.run_seconds_limit = run_seconds_limit
        self.jobs = list(jobs)
        self.answers: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self.newest = ""
        self.started = time.monotonic()
        self.log = jobs[0].log.with_name("workers.log")

    def run(self) -> list[Failure]:
        """Train all jobs; the failures. No worker is left whatever happens."""
        for job in self.jobs:
            job.look()
        try:
            self._fill()
            while self.running or self.waiting or self.claimed:
                with contextlib.suppress(queue.Empty):
                    worker, answer = self.answers.get(timeout=LOOK_SECONDS)
                    if worker in self.running:
                        self._take(worker, answer)
                self._look_elsewhere()
                self._stop_late_runs()
                self._fill()
                self._show()
                if self.seconds_limit is not None and time.monotonic() - self.started > self.seconds_limit:
                    self._out_of_time()
        finally:
            for worker in self.running:
                worker.end()
        return self.failures

    def _next(self) -> Job | None:
        """Take a job that can start now: not one that waits for the run that writes its demonstrations."""
        pending = {job.path for job in [*self.waiting, *self.claimed, *(w.job for w in self.running if w.job)]}
        failed = {failure.path for failure in self.failures}
        for job in list(self.waiting):
            if job.author in failed:
                self.waiting.remove(job)
                sentence = f"not started: {job.author.name}, which writes its demonstrations, did not finish"
                self._fail(job, sentence, started=False)
                return self._next()
            if job.author not in pending:
                self.waiting.remove(job)
                return job
        return None

    def _fill(self) -> None:
        """Give every idle worker a job, and start workers up to the pool's size."""
        for worker in [worker for worker in self.running if worker.job is None]:
            job = self._next()
            if job is None and (self.waiting or self.claimed):
                continue
            # Thread counts are fixed when an interpreter starts, so a job with another count needs another worker.
            if job is not None and job.config.threads == worker.threads:
                worker.give(job)
                continue
            self.running.remove(worker)
            worker.end(kill=False)
            if job is not None:
                self._start(job)
        while len(self.running) < self.size and (job := self._next()):
            self._start(job)

    def _start(self, job: Job) -> None:
        worker = _Worker(job.config.threads, self.log, self.answers)
        self.running.append(worker)
        worker.give(job)

    def _take(self, worker: _Worker, answer: dict[str, Any] | None) -> None:
        job = worker.job
        if job is None:
            self._drop(worker)
            return
        if answer is None:
            sentence = f"its worker {worker.death()}"
            if job.log.is_file():
                sentence += "; out of memory, or ended by hand? It resumes from its newest checkpoint"
            else:
                job.log = worker.log
                sentence += " before it could start"
            self._drop(worker)
            self._fail(job, sentence)
            return
        if answer["event"] == "ready":
            worker.ready, job.started = True, time.monotonic()
            return
        worker.job = None
        if answer["event"] == "claimed":
            self.claimed.append(job)
        elif answer["event"] == "failed":
            self._fail(job, answer["message"])
        else:
            job.look()
            job.done_steps = job.steps
            self._end(diverged=answer["event"] == "diverged")

    def _drop(self, worker: _Worker) -> None:
        self.running.remove(worker)
        worker.end()

    def _fail(self, job: Job, sentence: str, *, started: bool = True) -> None:
        self.failures.append(job.failure(sentence, started=started))
        # What cannot be written is no reason to stop a training.
        with contextlib.suppress(OSError, RunError):
            write_text(job.failed, sentence)

    def _end(self, *, diverged: bool) -> None:
        self.finished += 1
        self.diverged += diverged

    def _look_elsewhere(self) -> None:
        """What other processes have finished is finished here too; what they gave up is taken up."""
        for job in list(self.claimed):
            job.look()
            if job.done:
                self.claimed.remove(job)
                if failure := job.refused():
                    self._fail(job, failure.sentence)
                else:
                    self._end(diverged=bool(Run(job.path).diverged))
            elif not claimed_by(job.path):
                self.claimed.remove(job)
                self.waiting.append(job)

    def _stop_late_runs(self) -> None:
        for worker in list(self.running):
            if self.run_seconds_limit is None or worker.job is None:
                continue
            if time.monotonic() - worker.job.started > self.run_seconds_limit:
                self._drop(worker)
                sentence = f"stopped: it took longer than {self.run_seconds_limit:g} seconds; it resumes from its newest checkpoint"
                self._fail(worker.job, sentence)

    def _out_of_time(self) -> None:
        limit = f"the limit of {self.seconds_limit:g} seconds was reached"
        for worker in list(self.running):
            self._drop(worker)
            if worker.job is not None:
                self._fail(worker.job, f"stopped: {limit}; it resumes from its newest checkpoint")
        for job in self.claimed:
            self._fail(job, f"not finished by {claimed_by(job.path) or 'another process'}: {limit}", started=False)
        for job in self.waiting:
            self._fail(job, f"not started: {limit}", started=False)
        self.waiting, self.claimed = [], []

    def _show(self) -> None:
        for worker in self.running:
            if worker.job is not None and worker.job.look():
                self.newest = f", {worker.job}"
        text = f"{self.finished}/{len(self.jobs)} runs{self.newest}"
        for count, what in (
            (len(self.failures), "failed"),
            (self.diverged, "diverged"),
            (len(self.claimed), "trained elsewhere"),
        ):
            text += f", {count} {what}" if count else ""
        self.status.update(sum(job.done_steps for job in self.jobs), text)


class Status:
    """One line that says how far things are, wherever this process shows it.

    A tqdm bar in a terminal or notebook, else a plain line on stderr every :data:`LINE_SECONDS`; nothing if ``shown`` is
    False, or in a notebook that runs without a browser. The time to go is that of the steps since the first update.

    Args:
        total: steps in all, or None for a text without a bar.
    """

    def __init__(self, total: int | None, shown: bool = True) -> None:
        self.total = total
        self.shown = shown and TICKET not in os.environ
        self._bar: Any = None
        self._last = ("", -LINE_SECONDS)
        self._first: tuple[int, float] | None = None
        if self.shown and (sys.stderr.isatty() or in_notebook()):
            from tqdm.auto import tqdm as bar

            layout = {"bar_format": "{desc} [{elapsed}]"} if total is None else {"unit": "step"}
            self._bar = bar(total=total, dynamic_ncols=True, **layout)

    def update(self, done: int, text: str) -> None:
        if not self.shown:
            return
        before, start = self._first = self._first or (done, time.monotonic())
        text = shown(text)
        if self._bar is not None:
            self._bar.n, self._bar.initial = done, before
            if self.total is None:
                self._bar.set_description_str(text, refresh=False)
            else:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.refresh()
            return
        now = time.monotonic()
        line = text if self.total is None else f"{done}/{self.total} steps, {text}"
        if self.total is not None and done > before:
            line += f", ETA {tqdm.format_interval((now - start) * (self.total - done) / (done - before))}"
        if line == self._last[0] or now - self._last[1] < LINE_SECONDS:
            return
        self._last = (line, now)
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Status:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    shell = sys.modules.get("IPython")
    current = shell.get_ipython() if shell is not None else None
    return current is not None and hasattr(current, "kernel")


# ---------------------------------------------------------------------- the worker's side


def _requests() -> Iterator[dict[str, Any]]:
    """Requests as they come. The end of stdin ends the process at once, in the middle of a run too: nobody is left to
    answer, and the next start of the run must not meet a second writer."""
    pending: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            pending.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield pending.get()


def _serve() -> None:
    """The worker's loop. Stdout carries answers only: whatever a library prints goes to the run's log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import prefix_rft_lab.training.trainer  # noqa: F401  # before it is ready: seconds that count for no run

    def say(**answer: str) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    plain_logs("%(asctime)s %(message)s", logging.INFO)
    say(event="ready")
    for request in _requests():
        log = Path(request["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            for descriptor in (1, 2):
                os.dup2(sink.fileno(), descriptor)
        answer = {"event": "done"}
        try:
            module, _, name = request["call"].partition(":")
            getattr(importlib.import_module(module), name)(**request["arguments"])
        except RunClaimedError:
            answer = {"event": "claimed"}
        except RunDivergedError as error:
            answer = {"event": "diverged"}
            print(shown(str(error)), file=sys.stderr)
        except (ConfigError, RunError) as error:
            answer = {"event": "failed", "message": " ".join(str(error).split())}
            print(shown(answer["message"]), file=sys.stderr)
        except Exception as error:
            traceback.print_exc()
            answer = {"event": "failed", "message": " ".join(f"{type(error).__name__}: {error}".split())}
        sys.stdout.flush()
        sys.stderr.flush()
        say(**answer)


if __name__ == "__main__":
    _serve()
