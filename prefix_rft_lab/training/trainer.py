"""The training loop: rows -> rollouts -> scores -> advantages -> one update. Reads in one sitting.

    stage.rows(problem)            which rows a problem gets               prefixes.py, methods.py
      -> engine.generate           what the policy makes of them           generation/
      -> scorer.parts              rewards of a row                        rewards.py
      -> advantages                one value per row and token kind          advantages.py
      -> entropy clip              which prefix tokens are trained         entropy.py
      -> stage.losses              a loss for each kind                    methods.py, losses.py
      -> sum / normaliser          once over the optimizer window          update.py
      -> AdamW
      -> stage.replay             a second update, on problems singled out    methods.py

What is removed from the textbook algorithm: the reference model (no KL term), the critic (group means), the
second forward pass for old log-probabilities (with one update per rollout they are the detached current ones; the
engine's are only compared with them, or weigh the loss where ``rollout.importance_cap`` is set).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError

from prefix_rft_lab.algorithm import methods, prefixes
from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError, OptimConfig, RunConfig
from prefix_rft_lab.core.errors import RunDivergedError
from prefix_rft_lab.core.files import check_writable, disk_error
from prefix_rft_lab.core.registry import unversioned, with_ideas
from prefix_rft_lab.core.types import Demonstration, EncodedProblem, Problem, Row
from prefix_rft_lab.data import rewards, sources
from prefix_rft_lab.data.rewards import Scorer
from prefix_rft_lab.data.task import Task, with_task
from prefix_rft_lab.models.generation import Completion, Request, TransformersEngine, engine_for
from prefix_rft_lab.models.policy import (
    adopt_policy,
    autocast_dtype,
    device_of,
    load_policy,
    save_policy,
    trained_parameters,
)
from prefix_rft_lab.models.templates import stop_ids
from prefix_rft_lab.models.tokens import encode_problems, pad_id, step_ends
from prefix_rft_lab.runs.run import (
    Run,
    RunWriter,
    contents,
    directory_of,
    located,
    refuse_another,
    say_loaded,
    torch_state,
)
from prefix_rft_lab.runs.summary import summarise
from prefix_rft_lab.training import measure
from prefix_rft_lab.training.checkpoint import Checkpoints, Place
from prefix_rft_lab.training.evaluate import sample_scores, unsolved_scores
from prefix_rft_lab.training.records import TokenRecorder, tokenizer_id
from prefix_rft_lab.training.update import Updater, UpdateResult

log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    *,
    problems: Any = None,
    task: Task | None = None,
    model: Any = None,
    tokenizer: Any = None,
    out: str | Path = "runs",
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    fresh: bool = False,
) -> Run:
    """Train one run to its end and return what it recorded.

    A finished run with an equal config is returned as it is, and said to be; an interrupted one resumes from its newest
    checkpoint and gives the bits of an uninterrupted one. Other versions of your own ideas, or other contents of the files
    that the config names, make another run; with an idea that names no version the run is trained anew.

    Args:
        config: the run; see :func:`prefix_rft_lab.core.config.preset`.
        problems: problems in place of ``data.problems``: dicts or Problems in a list, a pandas or polars frame, a
            ``datasets.Dataset``. They are kept in ``out/problems``, in a file that is named by their content.
        task: problems with a reward and a template of their own.
        model: a model object in place of ``model.path``: a causal language model of transformers, a subclass with parts of its
            own, or one with adapters of peft. It is copied; frozen parameters stay as they are and are in no checkpoint.
        tokenizer: that of ``model``; by default that of ``model.path``.
        out: folder of all runs.
        progress: show a progress bar with step, reward, entropy, prefix ratio and time to go.
        on_step: called with each line of ``metrics.jsonl``.
        fresh: train again what was trained before, from the start; what it recorded is replaced.

    Raises:
        ConfigError: the config, model or data cannot be used; nothing was written.
        RunError: the run cannot go on; what was written is kept.
        RunDivergedError: (a :class:`RunError`) loss or weights became NaN or infinite, now or when it was trained.

    >>> from prefix_rft_lab import preset
    >>> run = train(preset("tiny", method="prefix_rft"))  # doctest: +SKIP
    >>> run.metrics  # doctest: +SKIP
    """
    config = with_ideas(with_task(config.replace(contents={}), task, problems, Path(out) / "problems"))
    methods.check(config)
    config = located(config, out)
    policy = None
    if model is not None:
        policy = adopt_policy(model, tokenizer, config)
        # Named by what it holds, beside the files.
        config = config.replace(contents={**contents(config), "model": policy_hash(policy[0])})
    path = directory_of(config, out)
    if (unknown := unversioned(config)) and os.path.isfile(path / "config.json"):  # noqa: PTH113
        log.warning(
            "%s is trained anew, since %s names no version and its code may have changed: register it with a version to "
            "keep what is trained",
            *(path, " and ".join(unknown)),
        )
    fresh = fresh or bool(unknown)
    trained = False
    if fresh or not os.path.isfile(path / "DONE.json"):  # noqa: PTH113, a name that is too long is no file
        check_writable(path)
        with torch_state(config.threads), RunWriter(config, out, fresh=fresh) as writer:
            # It may have been finished since.
            if fresh or not (path / "DONE.json").is_file():
                with Trainer(config, writer, policy) as trainer:
                    trainer.run(progress=progress, on_step=on_step)
                trained = True
    run = Run(path)
    refuse_another(run, config)
    if not trained:
        run.check()
    if run.diverged:
        raise RunDivergedError(f"{run.diverged}. What was recorded is kept in {path}; delete it to train it again")
    if not trained:
        say_loaded([run], progress)
    # A kill may strike between the last two acts of a run.
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return run


class Trainer:
    """One run in progress. :func:`train` is the way in; notebooks may also step it by hand."""

    def __init__(self, config: RunConfig, writer: RunWriter, policy: tuple[Any, Any, Any] | None = None) -> None:
        self.config = config
        self.writer = writer
        self.method = methods.check(config)
        self.device = device_of(config)
        if policy is None and "model" in config.contents:
            raise ConfigError(
                f"{writer.path} was trained from a model object, which no config names; pass it again as model="
            )
        self.model, self.saved, self.tokenizer = policy or _whole(load_policy(config))
        self.stop_ids = stop_ids(self.tokenizer)
        with ExitStack() as started:
            self.engine = engine_for(self.model, config, eos_id=self.stop_ids)
            started.callback(self.engine.close)
            self.scorer = Scorer(config.data)
            started.callback(self.scorer.close)
            self.train_problems, self.validation_problems, self.data_report = self._load_data()
            self.scorer.try_out(self.train_problems[0].problem)
            started.pop_all()
        self.updater = Updater(self.model, config, pad_id=pad_id(self.tokenizer))
        self.recorder = TokenRecorder(self.updater, self.tokenizer, config, self.train_problems, writer.path.name)
        self.checkpoints = Checkpoints(
            writer.path / "checkpoints",
            config=config,
            keep=config.records.keep_checkpoints,
            start={
                "problems": _problems_hash(self.train_problems),
                "weights": _weights_hash(self.model),
            },
        )
        self.hard: set[int] = set()
        """Indices of training problems that the base policy never solved in ``evaluation.hard_tries`` samples."""
        self.replay: list[int] = []
        """Indices of the problems that wait for the second update of a stage, oldest first."""
        self.skipped_steps = 0
        """Steps left out so far."""
        self.score_seconds = 0.0
        """Time that scoring took in the step so far."""

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.scorer.close()
        self.writer.close()

    # ------------------------------------------------------------------ data

    def _load_data(self) -> tuple[list[EncodedProblem], list[EncodedProblem], dict[str, Any]]:
        config = self.config
        problems, dropped = sources.load_problems(config.data, "train")
        train_problems, reasons = encode_problems(self.tokenizer, problems, config)
        validation, _ = encode_problems(
            self.tokenizer, sources.load_problems(config.data, "validation")[0][: config.evaluation.problems], config
        )
        dropped.update(reasons)
        if not train_problems:
            raise ConfigError(
                f"data.problems = {config.data.problems!r} leaves no training problem ({dict(dropped)}); raise "
                "rollout.max_prompt_tokens or bring other problems"
            )
        if not validation:
            raise ConfigError(
                f"data.problems = {config.data.problems!r} leaves no validation problem whose prompt fits "
                f"rollout.max_prompt_tokens = {config.rollout.max_prompt_tokens}; raise it or bring other problems"
            )
        for split in set(config.evaluation.final_splits) & set(sources.splits(config.data)):
            # Before the first step, not after the last one.
            if not encode_problems(self.tokenizer, sources.load_problems(config.data, split)[0], config)[0]:
                raise ConfigError(
                    f"data.problems = {config.data.problems!r} leaves no problem for evaluation.final_splits = {split!r} whose "
                    f"prompt fits rollout.max_prompt_tokens = {config.rollout.max_prompt_tokens}; raise it or bring others"
                )
        if config.data.expert == "self" or config.data.expert.startswith(("policy:", "run:")):
            train_problems = self._write_demonstrations(train_problems)
        with_demonstration = sum(bool(p.demonstrations) for p in train_problems)
        for stage in self.method.stages:
            if with_demonstration == 0 and stage.demonstrations != "unused":
                raise ConfigError(
                    f"method = {config.method!r} needs demonstrations and none of the {len(train_problems)} training "
                    "problems has one; bring some, or use method 'rft'"
                )
            if stage.replay is not None and stage.replay.batch(config) > with_demonstration:
                raise ConfigError(
                    f"method = {config.method!r} waits for {stage.replay.batch(config)} problems before an update, and "
                    f"{with_demonstration} have a demonstration; lower {stage.replay.setting}"
                )
            getattr(stage.rows, "check_data", lambda config, problems: None)(config, train_problems)
        report = {
            "train": len(train_problems),
            "with_demonstration": with_demonstration,
            "demonstrations": sum(len(p.demonstrations) for p in train_problems),
            "validation": len(validation),
            "dropped": dict(dropped),
            "tokenizer": tokenizer_id(self.tokenizer),
            "contents": contents(config),
            "rewards": {
                name: {"weight": weight, "version": rewards.REWARDS.entries[name].version}
                for name, weight in self.scorer.weights.items()
            },
            "solved": self.scorer.solved_from,
            "task": {"name": config.data.task, "version": config.ideas.get(f"data.task {config.data.task}", "")},
        }
        for reason, count in dropped.items():
            log.warning("%d x %s", count, reason)
        return train_problems, validation, report

    def _write_demonstrations(self, problems: list[EncodedProblem]) -> list[EncodedProblem]:
        """Demonstrations by a policy: the base policy itself (``self``), one in a directory (``policy:DIR``), or that of a
        finished run beside this one (``run:NAME``)."""
        expert = self.config.data.expert
        engine = self.engine
        if expert != "self":
            folder = expert.removeprefix("policy:")
            if expert.startswith("run:"):
                run = self.writer.path.parent / expert.removeprefix("run:")
                if not (run / "DONE.json").is_file():
                    raise ConfigError(
                        f"data.expert = {expert!r} is no finished run in {self.writer.path.parent}; train it there first"
                    )
                folder = str(run / "model")
            other = self.config.replace(**{"model.path": folder})
            model, tokenizer = load_policy(other)
            if tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise ConfigError(
                    f"data.expert = {expert!r} has another vocabulary than the policy; use a model of the same family"
                )
            engine = TransformersEngine(
                model,
                eos_id=self.stop_ids,
                max_batch_rows=self.config.rollout.max_batch_rows,
                autocast=autocast_dtype(self.config),
            )
        tries = max(self.config.data.right_within, 1)
        requests = [
            Request(
                context_ids=p.prompt_ids,
                max_new_tokens=self.config.rollout.max_response_tokens,
                key=rng.key(self.config.data.seed, "expert", p.index, *([number] if number else [])),
            )
            for p in problems
            for number in range(tries)
        ]
        written = engine.generate(requests)
        right = [True] * len(written)
        if self.config.data.right_within:
            asked = [p.problem for p in problems for _ in range(tries)]
            right = self.solved([c.token_ids for c in written], asked)

        def own(completion: Completion) -> Demonstration:
            ids = completion.token_ids
            return Demonstration(ids=ids, step_ends=step_ends(self.tokenizer, ids[:-1]))

        fit = [c if ok and not c.truncated else None for c, ok in zip(written, right, strict=True)]
        first = [next(filter(None, fit[i : i + tries]), None) for i in range(0, len(fit), tries)]
        return [
            replace(p, demonstrations=(own(c),) if p.demonstrations and c is not None else ())
            for p, c in zip(problems, first, strict=True)
        ]

    def text(self, token_ids: Sequence[int]) -> str:
        """Response ids as rewards read them."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def solved(self, responses: Sequence[Sequence[int]], problems: Sequence[Problem]) -> list[bool]:
        return [self.scorer.solved(s) for s in self.scorer.score([self.text(ids) for ids in responses], problems)]

    # ------------------------------------------------------------------ the loop

    def run(self, *, progress: bool, on_step: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Train all stages, resuming from the newest checkpoint, then evaluate and write the summary.

        A run that diverges ends here too, as one that solved nothing.
        """
        started = time.perf_counter()
        writer = self.writer
        decay, steps = self.config.prefix.decay_steps, self.config.rl.steps
        if self.method.uses_prefixes and decay is not None and decay > steps:
            log.warning(
                "prefix.decay_steps = %d is longer than the run of rl.steps = %d, so prefixes do not get as short as "
                "prefix.low = %g; leave it out to have it follow the run",
                *(decay, steps, self.config.prefix.low),
            )
        writer.start(self.data_report)
        found = self.checkpoints.newest(self.model)
        if found is None:
            self.checkpoints.rehearse(self.model, self.tokenizer)
        self._find_hard_problems()
        place = found[0] if found else Place(stage=0, step=0, global_step=0)
        self.checkpoints.forget_after(place.global_step if found else -1)
        self.scorer.timeouts_before = place.verifier_timeouts
        self.skipped_steps = place.skipped_steps
        # Without a checkpoint everything is written again, the evaluation before the first step too.
        writer.rewind(place.global_step if found else -1)
        log.info("%s: process %d trains from step %d", writer.path.name, os.getpid(), place.global_step)
        if found is None:
            self._evaluate_during(0, "base")
        diverged = None
        try:
            for line in self._train_stages(place, found[1] if found else None, started, progress):
                if on_step is not None:
                    on_step(line)
        except _DivergedError as error:
            diverged = error
        self._finish(place.seconds + time.perf_counter() - started, diverged)

    def _train_stages(
        self, place: Place, checkpoint: Path | None, started: float, progress: bool
    ) -> Iterator[dict[str, Any]]:
        """Every step from a place on, as its line of metrics once all of it is written.

        Raises:
            _DivergedError: loss or weights became NaN or infinite.
        """
        config, writer = self.config, self.writer
        sections = [stage.optimizer_section(config) for stage in self.method.stages]
        global_step = place.global_step
        bar = measure.ProgressBar(sum(section.steps for section in sections), global_step, config, progress)
        for index, (stage, section) in enumerate(zip(self.method.stages, sections, strict=True)):
            if index < place.stage:
                continue
            optimizers = self.optimizers(stage)
            first = place.step if index == place.stage else 0
            self.replay = list(place.replay) if index == place.stage else []
            if checkpoint is not None and index == place.stage:
                Checkpoints.load(checkpoint, self.model, optimizers)
                self.engine.weights_changed()
            for step in range(first, section.steps):
                line, tables = self.step(stage, optimizers, step, global_step)
                last = step + 1 == section.steps
                self._leave_out_non_finite(line, section, last=last)
                for name, table in tables.items():
                    writer.table(name, table)
                writer.metrics(line)
                global_step += 1
                evaluates = (config.evaluation.every and global_step % config.evaluation.every == 0) or last
                saves = (config.records.checkpoint_every and global_step % config.records.checkpoint_every == 0) or last
                if evaluates or saves:
                    self._refuse_broken_weights(global_step)
                if evaluates:
                    self._evaluate_during(global_step, stage.name)
                if saves:
                    self.checkpoints.save(
                        Place(
                            stage=index,
                            step=step + 1,
                            global_step=global_step,
                            seconds=place.seconds + time.perf_counter() - started,
                            verifier_timeouts=self.scorer.timeouts,
                            skipped_steps=self.skipped_steps,
                            replay=tuple(self.replay),
                        ),
                        self.model,
                        self.tokenizer,
                        optimizers,
                    )
                bar.update(line)
                yield line
        bar.close()

    def optimizers(self, stage: methods.Stage) -> dict[str, torch.optim.Optimizer]:
        """A fresh optimizer for a stage, ``main``, and one for its second update, ``replay``, if it has any."""
        sections = {"main": stage.optimizer_section(self.config)}
        if stage.replay is not None:
            sections["replay"] = stage.replay.section(self.config)
        return {
            name: torch.optim.AdamW(
                trained_parameters(self.model).values(),
                lr=section.lr,
                betas=section.betas,
                weight_decay=section.weight_decay,
            )
            for name, section in sections.items()
        }

    def step(
        self, stage: methods.Stage, optimizers: Mapping[str, torch.optim.Optimizer], step: int, global_step: int
    ) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        """One step of a stage: a line of metrics, and the token table if this step records one."""
        config = self.config
        clock, self.score_seconds = [time.perf_counter()], 0.0
        rows, drawn = self.draw(stage, step)
        clock += [time.perf_counter() - self.score_seconds, time.perf_counter()]
        # Before the update: the alternatives are those that the rows were sampled among.
        record = self.recorder.before(rows, global_step)
        clock.append(time.perf_counter())
        diagnose = config.records.diagnostics_every and global_step % config.records.diagnostics_every == 0
        result, replayed = self.learn(rows, stage, optimizers, step, diagnose=bool(diagnose))
        clock.append(time.perf_counter())
        tables = {}
        if record is not None:
            table = self.recorder.table(record, result, scored=stage.samples)
            tables[f"tokens/step-{global_step:06d}"] = table
        line: dict[str, Any] = {
            "stage": stage.name,
            "step": step,
            "global_step": global_step,
            **measure.token_metrics(result),
        }
        line |= measure.row_metrics(rows, drawn, stage, config, step, self.text)
        line |= measure.engine_gap(rows, result) | measure.own_metrics(rows, result, config)
        line |= replayed
        line |= {"lr": optimizers["main"].param_groups[0]["lr"], "verifier_timeouts": self.scorer.timeouts}
        line |= {
            f"seconds_{name}": round(end - start, 4)
            for name, start, end in zip(("rollout", "score", "record", "update"), clock, clock[1:], strict=False)
        }
        line["seconds_record"] = 0.0 if record is None else round(record.seconds, 4)
        return line, tables

    def learn(
        self,
        rows: list[Row],
        stage: methods.Stage,
        optimizers: Mapping[str, torch.optim.Optimizer],
        step: int,
        **options: Any,
    ) -> tuple[UpdateResult, dict[str, Any]]:
        """The update on scored rows and, where it is due, the second one; with what is recorded of the second.

        ``options`` are those of :meth:`prefix_rft_lab.training.update.Updater.update`.
        """
        section = stage.optimizer_section(self.config)
        result = self.updater.update(rows, stage, section, optimizers["main"], step, **options)
        replayed = self._replay(rows, stage, optimizers, step)
        self.engine.weights_changed()
        return result, replayed

    def draw(self, stage: methods.Stage, step: int) -> tuple[list[Row], list[Row]]:
        """The rows of a step, sampled and scored: those of its update, and all."""
        rows = self.rows(stage, step)
        size, found, given_up, drawn = len(by_problem(rows)), Groups(), Groups(), list[Row]()
        for again in range(1 + stage.redraws(self.config)):
            if again:
                rows = self.rows(stage, step, again=again)
                rows = [row for group in [*by_problem(rows).values()][: size - len(found)] for row in group]
            stay, sampled = self.rollout(rows, stage, step) if stage.samples else (rows, rows)
            drawn += sampled
            found |= by_problem(stay)
            given_up |= {key: group for key, group in by_problem(sampled).items() if key not in found}
            if len(found) == size:
                break
        groups = [*found.values(), *given_up.values()][:size]
        return [row for group in groups for row in group], drawn

    def rollout(self, rows: list[Row], stage: methods.Stage, step: int) -> tuple[list[Row], list[Row]]:
        """Sample and score rows that have no score yet, wave after wave, and choose: those that stay, and all that have one."""
        drawn: list[Row] = []
        for wave in sorted({row.wave for row in rows}):
            now = [row for row in rows if row.wave == wave]
            new = [row for row in now if not row.rewards]
            self.generate(new, stage, step)
            self.score_rows(new)
            drawn += now
            if stage.decide is not None:
                groups = by_problem(rows).values()
                rows = [row for group in groups for row in stage.decide(group, wave, self.config)]
        return rows, drawn

    def score_rows(self, rows: Sequence[Row]) -> None:
        """Give each row what the rewards say of its whole response."""
        if not rows:
            return
        started = time.perf_counter()
        texts, problems = [self.text(row.response_ids) for row in rows], [row.problem.problem for row in rows]
        parts = self.scorer.parts(texts, problems)
        for i, (row, score) in enumerate(zip(rows, self.scorer.total(parts), strict=True)):
            row.score, row.solved = score, self.scorer.solved(score)
            row.rewards = {name: values[i] for name, values in parts.items()}
        self.score_seconds += time.perf_counter() - started

    def rows(self, stage: methods.Stage, step: int, *, again: int = 0) -> list[Row]:
        """The rows of one step, before generation, grouped by problem; of a later draw in it where ``again`` is its number."""
        config = self.config
        pool = [p for p in self.train_problems if p.demonstrations or stage.demonstrations != "required"]
        size = config.rollout.problems_per_step if stage.samples else config.sft.batch_rows
        purpose = f"order/{stage.name}/{again}" if again else f"order/{stage.name}"
        chosen = prefixes.batch_at(pool, step, size, config.seed, purpose)
        if again:  # A problem that came before in this step is another visit.
            chosen = [replace(problem, visit=problem.visit + again * size) for problem in chosen]
        return [row for problem in chosen for row in stage.rows(problem, step, config)]

    def _replay(
        self, rows: list[Row], stage: methods.Stage, optimizers: Mapping[str, torch.optim.Optimizer], step: int
    ) -> dict[str, Any]:
        """Put problems into the stage's buffer, and make the second update once it holds a full batch."""
        replay = stage.replay
        if replay is None:
            return {}
        for group in by_problem(rows).values():
            problem = group[0].problem
            if problem.demonstrations and problem.index not in self.replay and replay.enters(group):
                self.replay.append(problem.index)
        size = replay.batch(self.config)
        line: dict[str, Any] = {"replay_loss": float("nan"), "replay_grad_norm": float("nan"), "replay_updated": 0}
        if len(self.replay) >= size:
            by_index = {problem.index: problem for problem in self.train_problems}
            newest = [by_index[self.replay.pop()] for _ in range(size)]
            again = [row for problem in newest for row in replay.stage.rows(problem, step, self.config)]
            result = self.updater.update(again, replay.stage, replay.section(self.config), optimizers["replay"], step)
            line = {"replay_loss": result.loss, "replay_grad_norm": result.grad_norm, "replay_updated": 1}
        return {**line, "replay_problems": len(self.replay)}

    def generate(self, rows: list[Row], stage: methods.Stage, step: int) -> None:
        """Let the policy finish every row that is not a demonstration."""
        config = self.config
        if not (sampled := [row for row in rows if not row.is_demonstration]):
            return
        requests = [
            Request(
                context_ids=row.problem.prompt_ids + row.prefix_ids,
                max_new_tokens=config.rollout.max_response_tokens - len(row.prefix_ids),
                key=rng.key(config.seed, f"rollout/{stage.name}", step, row.problem.index, row.row, row.problem.visit),
            )
            for row in sampled
        ]
        completions = self.engine.generate(requests, temperature=config.rollout.temperature)
        for row, completion in zip(sampled, completions, strict=True):
            row.sampled_ids = completion.token_ids
            row.engine_logp = completion.logp
            row.truncated = completion.truncated

    # ------------------------------------------------------------------ evaluation and records

    def _find_hard_problems(self) -> None:
        """Train-hard: training problems, among the first ``evaluation.problems``, that the base policy never solves."""
        config = self.config
        if config.evaluation.hard_tries == 0:
            return
        probe = self.train_problems[: config.evaluation.problems]
        table = sample_scores(
            self.engine,
            probe,
            self.solved,
            k=config.evaluation.hard_tries,
            max_tokens=config.rollout.max_response_tokens,
            temperature=1.0,
            seed=config.data.seed,
            purpose="train_hard",
            greedy=False,
        )
        self.hard = {p.index for p, correct in zip(probe, table["correct"], strict=True) if correct == 0}

    def demonstration_nll(self) -> dict[str, float]:
        """Token-mean NLL (nats) of the demonstrations of the probed training problems, all and Train-hard."""
        probe = [
            prefixes.demonstration_rows(p, 0, self.config)[0]
            for p in self.train_problems[: self.config.evaluation.problems]
            if p.demonstrations
        ]
        out = {}
        stats = self.updater.stats_without_grad(probe, temperature=1.0)
        for name, chosen in (
            ("demonstration_nll", stats),
            (
                "demonstration_nll_hard",
                [s for row, s in zip(probe, stats, strict=True) if row.problem.index in self.hard],
            ),
        ):
            out[name] = -float(torch.cat([logp for logp, _ in chosen]).mean()) if chosen else float("nan")
        return out

    def _evaluate_during(self, global_step: int, stage: str) -> None:
        config = self.config
        common: dict[str, Any] = {
            "k": config.evaluation.k,
            "max_tokens": config.rollout.max_response_tokens,
            "temperature": config.evaluation.temperature,
            "seed": config.data.seed,
        }
        table = sample_scores(self.engine, self.validation_problems, self.solved, purpose="validation", **common)
        line: dict[str, Any] = {"global_step": global_step, "stage": stage, **summarise(table)}
        hard = [p for p in self.train_problems[: config.evaluation.problems] if p.index in self.hard]
        if hard:
            hard_table = sample_scores(self.engine, hard, self.solved, purpose="hard", greedy=False, **common)
            line["hard"] = {key: v for key, v in summarise(hard_table, by_level=False).items() if "greedy" not in key}
        line["entropy"] = self._sampled_entropy()
        line |= self.demonstration_nll()
        self.writer.evaluation(line)

    def _sampled_entropy(self) -> float:
        """Mean entropy (nats) over the tokens of one sampled response a validation problem."""
        rows = [Row(problem=p, row=0) for p in self.validation_problems]
        completions = self.engine.generate(
            [
                Request(
                    context_ids=row.problem.prompt_ids,
                    max_new_tokens=self.config.rollout.max_response_tokens,
                    key=rng.key(self.config.data.seed, "validation", row.problem.index, 0),
                )
                for row in rows
            ],
            temperature=self.config.rollout.temperature,
        )
        for row, completion in zip(rows, completions, strict=True):
            row.sampled_ids = completion.token_ids
        return float(torch.cat([entropy for _, entropy in self.updater.stats_without_grad(rows)]).mean())

    def _leave_out_non_finite(self, line: dict[str, Any], section: OptimConfig, *, last: bool) -> None:
        """Count a step whose loss or gradient is NaN or infinite, by which the updater has changed nothing.

        Raises:
            _DivergedError: there were too many, or the policy itself gives NaN or infinite numbers.
        """
        replay = ("replay_loss", "replay_grad_norm") if line.get("replay_updated") else ()
        policy = [name for name in line if name.startswith(("nll_", "entropy_"))]
        found = [name for name in ("loss", "grad_norm", *replay, *policy) if not math.isfinite(line[name])]
        self.skipped_steps += bool(found)
        line["skipped_steps"] = self.skipped_steps
        if not found:
            return
        what = f"{found[0]} = {line[found[0]]}"
        mostly = last and self.skipped_steps >= max(2, (line["global_step"] + 1) / 2)
        if self.skipped_steps > section.max_skipped_steps or mostly or set(found) & set(policy):
            raise _DivergedError(what, line["global_step"], left_out=self.skipped_steps - 1)
        self._refuse_broken_weights(line["global_step"])
        log.warning(
            "%s: step %d is left out, since %s; so are at most %d (max_skipped_steps) of the run",
            *(self.writer.path.name, line["global_step"], what, section.max_skipped_steps),
        )
        line |= {name: math.nan for name, value in line.items() if isinstance(value, float) and math.isinf(value)}

    def _refuse_broken_weights(self, global_step: int) -> None:
        """Raise rather than keep weights that are NaN or infinite: a policy that fails alike in all rows has loss 0."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise _DivergedError("weights = nan", global_step)

    def _finish(self, seconds: float, diverged: _DivergedError | None) -> None:
        config = self.config
        summary: dict[str, Any] = {"method": config.method, "seed": config.seed, "splits": {}}
        for split in config.evaluation.final_splits:
            if split not in sources.splits(config.data):
                continue
            problems, _ = encode_problems(self.tokenizer, sources.load_problems(config.data, split)[0], config)
            if diverged is None:
                table = sample_scores(
                    self.engine,
                    problems,
                    self.solved,
                    k=config.evaluation.k,
                    max_tokens=config.rollout.max_response_tokens,
                    temperature=config.evaluation.temperature,
                    seed=config.data.seed,
                    purpose=f"final/{split}",
                )
            else:
                table = unsolved_scores(problems, k=config.evaluation.k)
            self.writer.table(f"evaluation/{split}", table)
            summary["splits"][split] = summarise(table)
        summary["seconds"] = round(seconds, 2)
        if diverged is not None:
            # No model is kept, and the checkpoints stay: they are of before.
            summary["diverged"] = str(diverged)
            self.writer.diverged(str(diverged), diverged.global_step)
            self.writer.finish(summary, seconds)
            return
        if config.records.save_model:
            folder = self.writer.path / "model"
            try:
                save_policy(self.saved, self.tokenizer, folder)
            except (OSError, SafetensorError) as error:
                raise disk_error(error, folder) from error
        self.writer.finish(summary, seconds)
        self.checkpoints.remove()


Groups = dict[tuple[int, ...], list[Row]]


def by_problem(rows: Sequence[Row]) -> Groups:
    """Rows in groups, by the key of their problem."""
    groups: Groups = {}
    for row in rows:
        groups.setdefault(row.problem.key, []).append(row)
    return groups


class _DivergedError(Exception):
    def __init__(self, what: str, global_step: int, left_out: int = 0) -> None:
        steps = f"; {left_out} of the steps before were left out" if left_out else ""
        super().__init__(f"{what} at step {global_step}: the run diverged; lower rl.lr or sft.lr (relift.lr){steps}")
        self.global_step = global_step


def _problems_hash(problems: Sequence[EncodedProblem]) -> str:
    """Twelve hex digits that name the training problems as the policy reads them."""
    digest = hashlib.sha256()
    for p in problems:
        digest.update(json.dumps([p.index, p.prompt_ids, p.problem.answer, [d.ids for d in p.demonstrations]]).encode())
    return digest.hexdigest()[:12]


def _whole(loaded: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    """(policy, what is saved, tokenizer): of a model that was loaded, the policy itself is saved."""
    return loaded[0], *loaded


def policy_hash(model: Any) -> str:
    """Twelve hex digits that name a model object: its class, weights, and which of them are trained."""
    told = [type(model).__name__, _weights_hash(model), list(trained_parameters(model))]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _weights_hash(model: Any) -> str:
    """Twelve hex digits that tell the weights before training from others; sums, since they may be many."""
    sums = [(name, float(parameter.detach().double().sum())) for name, parameter in model.named_parameters()]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:12]
