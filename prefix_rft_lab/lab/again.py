"""Any training step of a run again: exactly, or otherwise.

::

    step = run.again(120)                                  # the state before step 120, by replay from the run's directory
    step.exact                                             # True: the recorded gradient norms, to the bit
    other = step.otherwise(**{"prefix.keep": "bottom"})    # or without=[17], scores={17: 1.0}, method="rft", then=9
    step.table(other)                                      # one row per token: before, carried over, rows, otherwise

Randomness is keyed by (seed, purpose, step, problem, row), so a run's config and data are enough to perform it again. A
replay holds every step against the gradient norm that the run recorded: with one update per rollout the loss follows from
the scores alone, and would not tell one set of weights from another.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from prefix_rft_lab.algorithm import methods
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import read_lines
from prefix_rft_lab.core.types import KIND_NAMES, Row
from prefix_rft_lab.data import sources
from prefix_rft_lab.models.tokens import encode_problems
from prefix_rft_lab.runs.run import Run, RunWriter, environment, torch_state
from prefix_rft_lab.training.checkpoint import VERSIONS, Checkpoints, Place
from prefix_rft_lab.training.records import TokenTexts, demonstration_row
from prefix_rft_lab.training.trainer import Trainer
from prefix_rft_lab.training.update import UpdateResult

Reading = list[tuple[torch.Tensor, torch.Tensor]]
"""(logp, entropy) of the response tokens of each row, nats."""

HELD_OUT = -2
"""Row number of a validation problem's demonstration that the verifier accepts; nobody trains on it."""

KEEPS_SAMPLES = ("loss", "rl", "sft", "micro_batch_tokens")
"""Fields and sections of a config that act on the update alone: contexts and samples of the rows stay."""

ACTS = ("prefix", "rollout", *KEEPS_SAMPLES, "seed")
"""Those that can change what a step does to the policy, besides the sections that methods declare as theirs."""

RATIO_ONLY = ("loss.clip_low", "loss.clip_high", "loss.dual_clip", "prefix.clip_ratio")
"""Limits of the ratio, which is 1 where a rollout has one update."""

MEMORY = 2**28
"""Bytes of outcomes that a step remembers, so that a move that is made twice is instant."""

CLIP_ONLY = ("prefix.keep", "prefix.keep_fraction", "prefix.scope")
"""Settings of the entropy clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a step depends on besides config, code, threads and machine: three times the weights."""

    place: Place
    """Where it lies in the run, with the replay buffer."""
    weights: list[torch.Tensor]
    optimizers: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one performance of a step did."""

    rows: list[Row]
    result: UpdateResult
    state: State
    """After the step, and after the steps that were asked for with ``then``."""
    before: Reading
    """Of the rows, then of what is read besides, under the policy before the step."""
    after: Reading


class Replay:
    """A run whose steps can be performed again. A state per ``every`` steps stays in memory.

    Args:
        run: a finished, diverged or interrupted run.
        every: steps between the states that are kept; each is three times the weights.
        held_out: validation demonstrations, right ones, that are read besides the rows.

    Raises:
        ConfigError: the run's model or data cannot be loaded any more.
        RunError: the run recorded no step.
    """

    def __init__(self, run: Run, *, every: int = 10, held_out: int = 16) -> None:
        self.run, self.every = run, every
        self.config = run.config.replace(**{"records.writers": "none"})
        self.recorded: dict[int, dict[str, Any]] = {
            line["global_step"]: line for line in read_lines(run.path / "metrics.jsonl")
        }
        if not self.recorded:
            raise RunError(f"{run.path} recorded no training step; train it first")
        self.differences: dict[int, float] = {}
        """Step -> relative difference of its gradient norm from the recorded one, of the steps that were replayed."""
        self._folder = tempfile.TemporaryDirectory()
        with torch_state(self.config.threads):
            # A writer that is never started claims and writes nothing.
            self.trainer = Trainer(self.config, RunWriter(self.config, self._folder.name))
            self.checkpoints = Checkpoints(
                run.path / "checkpoints", config=run.config, keep=0, start=self.trainer.checkpoints.start
            )
            self.read = [*self.trainer.recorder.followed, *self._held_out(held_out)]
            self.samples: dict[int, list[Row]] = {}
            self._enter(0)
            self.states = {0: self._take(self.place(0))}

    def close(self) -> None:
        """Free the model and the verifier's process."""
        self.trainer.__exit__()
        self._folder.cleanup()

    def _held_out(self, most: int) -> list[Row]:
        t = self.trainer
        problems, _ = encode_problems(
            t.tokenizer, sources.load_problems(self.config.data, "validation")[0], self.config
        )
        found = [p for p in problems if p.demonstrations]
        rows = [replace(demonstration_row(p), row=HELD_OUT) for p in found[: 2 * most]]
        # An expert may be wrong.
        right = t.solved([row.prefix_ids for row in rows], [row.problem.problem for row in rows])
        return [row for row, solved in zip(rows, right, strict=True) if solved][:most]

    # ---------------------------------------------------------------- states

    def place(self, step: int) -> Place:
        """Where a step of the run begins.

        Raises:
            RunError: the run recorded no such step.
        """
        if step not in self.recorded:
            last = max(self.recorded)
            raise RunError(f"step = {step!r} is not in {self.run.path}, which recorded the steps 0 to {last}")
        left = step
        for index, stage in enumerate(self.trainer.method.stages):
            steps = stage.optimizer_section(self.config).steps
            if left < steps:
                return Place(stage=index, step=left, global_step=step)
            left -= steps
        raise RunError(f"step = {step!r} is beyond the stages of {self.run.path}; its config.json was changed")

    def _enter(self, stage: int) -> None:
        self.stage = stage
        self.optimizers = self.trainer.optimizers(self.trainer.method.stages[stage])
        self.trainer.replay = []

    def _reach(self, step: int) -> None:
        """Go on to a step, which may open the next stage."""
        if self.place(step).stage != self.stage:
            self._enter(self.place(step).stage)

    def _take(self, place: Place) -> State:
        weights = [p.detach().clone() for p in self.trainer.model.parameters()]
        moments = copy.deepcopy({name: one.state_dict() for name, one in self.optimizers.items()})
        return State(place=replace(place, replay=tuple(self.trainer.replay)), weights=weights, optimizers=moments)

    def _put(self, state: State) -> None:
        if state.place.stage != self.stage:
            self._enter(state.place.stage)
        with torch.no_grad():
            for parameter, value in zip(self.trainer.model.parameters(), state.weights, strict=True):
                parameter.copy_(value)
        for name, one in self.optimizers.items():
            # It keeps and changes the tensors that it is given.
            one.load_state_dict(copy.deepcopy(state.optimizers[name]))
        self.trainer.replay = list(state.place.replay)
        self.trainer.engine.weights_changed()

    def state(self, step: int) -> State:
        """The state before a step: the nearest one that is kept or in a checkpoint, then the steps from there on again."""
        self._read_checkpoints(step)
        start = max(known for known in self.states if known <= step)
        self._put(self.states[start])
        for current in range(start, step + 1):
            self._reach(current)
            if current == step or current % self.every == 0:
                self.states[current] = self._take(self.place(current))
            if current < step:
                self.difference(current, self.learn(self.sampled(current), self.place(current)))
        return self.states[step]

    def _read_checkpoints(self, step: int) -> None:
        """Take the newest whole checkpoint up to a step, if it is nearer than any state that is kept."""
        found = self.checkpoints.newest(self.trainer.model, until=step)
        if found is None or found[0].global_step <= max(known for known in self.states if known <= step):
            return
        place, path = found
        if place.stage != self.stage:
            self._enter(place.stage)
        Checkpoints.load(path, self.trainer.model, self.optimizers)
        self.trainer.replay = list(place.replay)
        self._reach(place.global_step)
        self.states[place.global_step] = self._take(self.place(place.global_step))

    def difference(self, step: int, result: UpdateResult) -> float:
        """Relative difference of a step's gradient norm from the recorded one; 0 where the bits are equal."""
        recorded = float(self.recorded[step]["grad_norm"])
        same = result.grad_norm == recorded or (np.isnan(result.grad_norm) and np.isnan(recorded))
        self.differences[step] = 0.0 if same else abs(result.grad_norm - recorded) / max(abs(recorded), 1e-30)
        return self.differences[step]

    def changed(self) -> str:
        """What bits may depend on and is not as it was when the run was trained; "" if all is."""
        its, ours = self.run.environment, environment(self.config.threads)
        return ", ".join(
            f"{name} {its.get(name)} there, {ours[name]} here" for name in VERSIONS if its.get(name) != ours[name]
        )

    # ---------------------------------------------------------------- one step

    def sampled(self, step: int, *, keep: bool = True) -> list[Row]:
        """The scored rows of a step under the present policy; ``keep`` is for those of the run itself."""
        if keep and step in self.samples:
            return self.samples[step]
        place = self.place(step)
        stage = self.trainer.method.stages[place.stage]
        rows = self.trainer.draw(stage, place.step)[0]
        if keep:
            self.samples[step] = rows
        return rows

    def learn(self, rows: list[Row], place: Place, stage: methods.Stage | None = None, **options: Any) -> UpdateResult:
        """The update of a step, and the second one where it is due."""
        stage = stage or self.trainer.method.stages[place.stage]
        return self.trainer.learn(rows, stage, self.optimizers, place.step, **options)[0]

    @contextmanager
    def using(self, config: RunConfig, stage: methods.Stage) -> Iterator[None]:
        """The trainer under another config. A state that was put back brought its own betas and decay with it."""
        t = self.trainer
        sections = {"main": stage.optimizer_section(config)}
        if stage.replay:
            sections["replay"] = stage.replay.section(config)
        for name, section in sections.items():
            for group in self.optimizers[name].param_groups:
                group["betas"], group["weight_decay"] = section.betas, section.weight_decay
        t.config = t.updater.config = config
        try:
            yield
        finally:
            t.config = t.updater.config = self.config


@dataclass(kw_only=True)
class Step:
    """One step of a run: the state before it, its rows, and what it really did. Made by :func:`again`."""

    replay: Replay
    place: Place
    state: State
    rows: list[Row]
    """The step's rows in the order of the update; ``without`` and ``scores`` go by their places here."""
    before: Reading
    _memory: dict[str, Outcome] = field(default_factory=dict, repr=False)

    @property
    def number(self) -> int:
        """Steps of all stages before this one."""
        return self.place.global_step

    @property
    def stage(self) -> methods.Stage:
        return self.replay.trainer.method.stages[self.place.stage]

    @cached_property
    def really(self) -> Outcome:
        """The step as the run performed it."""
        outcome = self.otherwise()
        self.replay.difference(self.number, outcome.result)
        return outcome

    @cached_property
    def momentum(self) -> Outcome:
        """The step with every row muted: what the optimizer's moments and weight decay carry over from earlier steps."""
        return self.otherwise(without=range(len(self.rows)))

    @property
    def exact(self) -> bool:
        """Whether this step, and every step that was replayed before it, has the recorded gradient norm to the bit."""
        return bool(self.really) and not any(self.replay.differences.get(k) for k in range(self.number + 1))

    @property
    def note(self) -> str:
        """One sentence on how exact the replay is."""
        if self.exact:
            return f"Step {self.number} again: the recorded gradient norms, to the bit."
        worst = max(self.replay.differences[k] for k in range(self.number + 1) if k in self.replay.differences)
        changed = (
            self.replay.changed() or "nothing that a run records, so look at the processor, or at the method's code"
        )
        return f"Step {self.number} again, not exactly: gradient norms differ by up to {worst:.2g} of the recorded ones (changed: {changed})."

    def idle(self, name: str) -> str:
        """Why a config field cannot change this step, in one sentence; "" if it can."""
        config, stage = self.replay.config, self.stage
        section = name.partition(".")[0]
        if section not in _acting():
            return f"{name} does not act within a step"
        if section in ("rl", "sft") and stage.optim != section:
            return f"{name} belongs to another stage than {stage.name!r}"
        if name.endswith(".steps") or name == "prefix.decay_steps":
            return ""
        if not stage.samples and section in ("prefix", "rollout", "loss"):
            return f"stage {stage.name!r} samples nothing"
        if name in RATIO_ONLY and config.loss.updates_per_rollout == 1:
            return f"{name} limits a ratio that is 1, since a rollout has one update"
        if name in CLIP_ONLY and not stage.ranked(config):
            return f"stage {stage.name!r} has no entropy clip"
        if section == "prefix" and name not in CLIP_ONLY and not stage.prefix_schedule:
            return f"stage {stage.name!r} draws no prefix"
        if name in CLIP_ONLY and not self.really.result.ranked.any():
            return "no token of this step is in the entropy clip's scope"
        if section not in ACTS and section != self.replay.trainer.method.settings:
            return f"{name} belongs to method {section!r}"
        return ""

    def otherwise(
        self,
        *,
        without: Iterable[int] = (),
        scores: Mapping[int, float] | None = None,
        weights: Sequence[float] | torch.Tensor | None = None,
        method: str = "",
        then: int = 0,
        **changes: Any,
    ) -> Outcome:
        """The step with something changed. Rows whose context is the same keep their sample; others are sampled anew.

        Args:
            without: places in ``rows`` that are muted: their token losses count 0, while baselines, ranks and denominators
                stay. An entropy bonus and the second update of ReLIFT are not muted.
            scores: place in ``rows`` -> another score.
            weights: (rows,) factors of the token losses.
            method: the stage of another method that uses the same section of the config.
            then: so many steps of the run as it was follow, on rows sampled anew. Effects grow over steps.
            changes: dotted config fields and values.

        Raises:
            ConfigError: a field, a row or a method that this step cannot have; the message says which it can.
        """
        replay, rows, before = self.replay, self.rows, self.before
        if method not in ("", replay.config.method):
            changes = {"method": method, **changes}
        config = replay.config.replace(**changes)
        stage = self._stage_of(config)
        for name in changes:
            if name != "method" and name.partition(".")[0] not in (acting := _acting()):
                raise ConfigError(
                    f"{name} = {changes[name]!r} does not act within a step; change one of {', '.join(acting)}"
                )
        muted, other_scores = list(without), dict(scores or {})
        for number in (*muted, *other_scores):
            if not 0 <= number < len(rows):
                raise ConfigError(f"row {number} is not there: step {self.number} has the rows 0 to {len(rows) - 1}")
        if not 0 <= then <= max(replay.recorded) - self.number:
            most = max(replay.recorded) - self.number
            raise ConfigError(f"then = {then} goes beyond the run; at most {most} steps follow step {self.number}")
        key = repr(
            (muted, other_scores, None if weights is None else list(map(float, weights)), then, sorted(changes.items()))
        )
        if key in self._memory:
            return self._memory[key]
        with torch_state(replay.config.threads):
            replay._put(self.state)
            with replay.using(config, stage):
                if any(name.partition(".")[0] not in KEEPS_SAMPLES for name in changes):
                    rows = self._resampled(config, stage)
                    before = replay.trainer.updater.stats_without_grad(rows + replay.read)
                solved = replay.trainer.scorer.solved
                given = [float(other_scores.get(i, row.score)) for i, row in enumerate(rows)]
                rows = [replace(row, score=s, solved=solved(s)) for row, s in zip(rows, given, strict=True)]
                factors = None if weights is None else torch.as_tensor(weights, dtype=torch.float32).clone()
                if muted:
                    factors = torch.ones(len(rows)) if factors is None else factors
                    factors[muted] = 0.0
                if factors is not None and len(factors) != len(rows):
                    raise ConfigError(f"weights has {len(factors)} numbers; the step has {len(rows)} rows")
                result = replay.learn(rows, self.place, stage, row_weights=factors)
            for step in range(self.number + 1, self.number + 1 + then):
                replay._reach(step)
                replay.learn(replay.sampled(step, keep=False), replay.place(step))
            after = replay.trainer.updater.stats_without_grad(rows + replay.read)
            place = replace(
                self.place, step=self.place.step + 1 + then, global_step=self.number + 1 + then, stage=replay.stage
            )
            outcome = Outcome(rows=rows, result=result, state=replay._take(place), before=before, after=after)
        if (len(self._memory) + 1) * 3 * sum(w.nbytes for w in outcome.state.weights) < MEMORY:
            self._memory[key] = outcome
        return outcome

    def _stage_of(self, config: RunConfig) -> methods.Stage:
        own = self.stage
        if config.method == self.replay.config.method:
            methods.check(config)
            return own
        stages = methods.check(config).stages
        fitting = [stage for stage in stages if stage.optim == own.optim and stage.samples == own.samples]
        if not fitting:
            raise ConfigError(
                f"method = {config.method!r} has no stage like {own.name!r} of {self.replay.config.method!r}; take a method whose "
                f"stage is trained by the section {own.optim!r}"
            )
        # Under the stage's own name, which keys the samples.
        return replace(fitting[-1], name=own.name, replay=None)

    def _resampled(self, config: RunConfig, stage: methods.Stage) -> list[Row]:
        """The rows of the same problems under a config; a row whose context and sampling are unchanged keeps its sample."""

        def sampling(c: RunConfig) -> tuple[Any, ...]:
            return (c.seed, c.rollout.temperature, c.rollout.max_response_tokens)

        same = {_context(row): row for row in self.rows} if sampling(config) == sampling(self.replay.config) else {}
        problems = {row.problem.key: row.problem for row in self.rows}.values()
        rows = [row for problem in problems for row in stage.rows(problem, self.place.step, config)]
        fixed = stage.decide is None and config.method == self.replay.config.method
        if len(rows) != len(self.rows) and fixed:
            raise ConfigError(
                f"the change gives {len(rows)} rows in place of {len(self.rows)}; a step otherwise keeps its rows, so leave "
                "rollout.rows_per_problem and rollout.rows_per_prefix as they are"
            )
        rows = [replace(same[_context(r)], prefix_number=r.prefix_number) if _context(r) in same else r for r in rows]
        return self.replay.trainer.rollout(rows, stage, self.place.step)[0] if stage.samples else rows

    def table(self, other: Outcome | None = None) -> pd.DataFrame:
        """One row per token of the step's rows, the followed demonstrations and held-out right answers.

        ``logp`` and ``entropy`` (nats) are before the step; ``carried_over`` is the change of logp by momentum alone, ``rows_did`` what
        the rows added to it, ``really`` their sum, ``otherwise`` the change in ``other``, ``entropy_really`` and
        ``entropy_otherwise`` the entropies after. Changes below what float32 reads are NaN, and so is ``really`` of a row that was
        sampled anew.
        """
        other = other or self.really
        read = self.replay.read
        shown, own = other.rows + read, len(other.rows)
        counts = [len(row.response_ids) for row in shown]
        texts = TokenTexts(self.replay.trainer.tokenizer)
        ids = [token for row in shown for token in row.response_ids]

        def of_row(values: Iterable[Any]) -> np.ndarray:
            return np.repeat(np.array(list(values), dtype=object), counts)

        frame = pd.DataFrame(
            {
                "where": of_row(["step"] * own + ["held out" if r.row == HELD_OUT else "followed" for r in read]),
                "problem": of_row(r.problem.problem.id for r in shown),
                "row": of_row([*range(own), *range(len(read))]).astype(int),
                "position": np.concatenate([np.arange(n) for n in counts]),
                "text": [texts(token) for token in ids],
                "kind": [KIND_NAMES[kind] for row in shown for kind in row.kinds],
                "score": of_row([r.score for r in other.rows] + [np.nan] * len(read)).astype(float),
            }
        )
        for name, values in (("advantage", other.result.advantages), ("kept", other.result.kept)):
            frame[name] = np.concatenate([values.cpu().numpy().astype(float), np.full(sum(counts[own:]), np.nan)])
        before, after = _joined(other.before), _joined(other.after)
        frame["logp"], frame["entropy"] = before
        really, momentum = self._aligned(self.really, shown), self._aligned(self.momentum, shown)
        # Float32 reads a log-probability to a few units in the last place of the largest logit.
        floor = 8 * float(np.finfo(np.float32).eps) * np.maximum(np.abs(before[0]), 1.0)
        for column, change in (
            ("carried_over", momentum[0] - before[0]),
            ("rows_did", really[0] - momentum[0]),
            ("really", really[0] - before[0]),
            ("otherwise", after[0] - before[0]),
        ):
            frame[column] = np.where(np.abs(change) < floor, np.nan, change)
        frame["entropy_really"], frame["entropy_otherwise"] = really[1], after[1]
        return frame

    def _aligned(self, outcome: Outcome, shown: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
        """(logp, entropy) after an outcome of rows that it may not have; NaN for those."""

        def name(row: Row) -> tuple[Any, ...]:
            return (*_context(row), *row.sampled_ids)

        known = {name(row): one for row, one in zip(outcome.rows + self.replay.read, outcome.after, strict=True)}
        return _joined([known.get(name(r), (torch.full((len(r.response_ids),), torch.nan),) * 2) for r in shown])

    def effects(self, rows: Iterable[int] | None = None) -> pd.DataFrame:
        """What each row did: the step really, less the step without it. One row per row of the step.

        ``step`` (the row's own tokens), ``followed`` and ``held_out`` are changes of the mean log-probability, nats per token. One
        update is performed for each; ``rows`` names the places that are asked about, by default all whose tokens have a gradient.
        """
        starts = np.concatenate([[0], np.cumsum([len(row.response_ids) for row in self.rows])])
        if rows is None:
            advantages = (self.really.result.advantages * self.really.result.kept).cpu().numpy()
            trained = [bool(advantages[a:b].any()) for a, b in itertools.pairwise(starts)]
            rows = [i for i, has in enumerate(trained) if has or not self.stage.samples]
        whole = _joined(self.really.after)[0]
        where = np.repeat(
            ["step"] * len(self.rows) + ["held_out" if r.row == HELD_OUT else "followed" for r in self.replay.read],
            [len(row.response_ids) for row in self.rows + self.replay.read],
        )
        lines = []
        for i in rows:
            effect = whole - _joined(self.otherwise(without=[i]).after)[0]
            row = self.rows[i]
            line = {"row": i, "problem": row.problem.problem.id, "score": row.score, "hybrid": row.is_hybrid}
            line["step"] = float(effect[starts[i] : starts[i + 1]].mean())
            lines.append(
                line
                | {
                    name: float(effect[where == name].mean())
                    for name in ("followed", "held_out")
                    if (where == name).any()
                }
            )
        return pd.DataFrame(lines)

    def change(self, other: Outcome) -> np.ndarray:
        """(tokens,) change of the log-probability (nats) by a step otherwise, of the tokens that the step really had, then of what
        is read besides. NaN for rows that were sampled anew."""
        return self._aligned(other, self.rows + self.replay.read)[0] - _joined(self.before)[0]

    def what(self, other: Outcome | None = None) -> pd.DataFrame:
        """What the update did, in nats per token: one row for right rows, wrong rows, followed demonstrations and held-out answers.

        ``change`` is that of the mean log-probability, ``carried_over`` the part that momentum alone would have made, and
        ``otherwise`` the change by ``other``, of rows that were not sampled anew.
        """
        table = self.table()
        own = table["score"].map(lambda score: "right rows" if score == 1 else "wrong rows")
        if not self.stage.samples:
            own[:] = "trained demonstrations"
        names = {"followed": "followed demonstrations", "held out": "held-out right answers"}
        group = table["where"].map(names).where(table["where"] != "step", own)
        changes = table[["really", "carried_over"]].fillna(0.0)
        if other is not None:
            changes["otherwise"] = self.change(other)
        found = changes.groupby(group).mean().rename(columns={"really": "change"}).rename_axis("tokens_of")
        return found.assign(tokens=changes.groupby(group).size()).reset_index()

    def sentence(self) -> str:
        """What the update did, in one sentence."""
        parts = [
            f"{line.tokens_of} {line.change:+.2g} (of which carried over {line.carried_over:+.2g})"
            for line in self.what().itertuples()
        ]
        return (
            f"Step {self.number} changed the mean log-probability, in nats per token, of " + ", of ".join(parts) + "."
        )


def _acting() -> list[str]:
    """Fields and sections that can change what a step does, those of every method among them."""
    return [*ACTS, *dict.fromkeys(method.settings for method in methods.METHODS.values() if method.settings)]


def _context(row: Row) -> tuple[Any, ...]:
    """What a row starts from: with equal settings of sampling, and one policy, what it becomes."""
    return (row.problem.key, row.row, tuple(row.prefix_ids), row.is_demonstration)


def _joined(reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """(logp, entropy) of all tokens, float64."""
    logp, entropy = zip(*reading, strict=True)
    return torch.cat(logp).double().cpu().numpy(), torch.cat(entropy).double().cpu().numpy()


_open: dict[Path, Replay] = {}


def again(run: Run, step: int, *, every: int = 10, held_out: int = 16) -> Step:
    """A training step of a run again. The run is replayed in memory; its directory is only read.

    The replay of the run that was asked about last stays open, so that going from step to step is quick.

    Args:
        run: a run of :func:`prefix_rft_lab.load` or :func:`prefix_rft_lab.train`.
        step: number of the step in the whole run (``global_step``), from 0.
        every: steps between the states that are kept in memory.
        held_out: held-out right answers that are read besides the rows.

    Raises:
        RunError: the run has no such step.
        ConfigError: its model or data cannot be loaded any more.
    """
    path = run.path.resolve()
    if path not in _open or _open[path].every != every:
        for old in _open.values():
            old.close()
        _open.clear()
        _open[path] = Replay(run, every=every, held_out=held_out)
    replay = _open[path]
    place = replay.place(step)
    with torch_state(replay.config.threads):
        state = replay.state(step)
        replay._put(state)
        rows = replay.sampled(step)
        before = replay.trainer.updater.stats_without_grad(rows + replay.read)
    return Step(replay=replay, place=place, state=state, rows=rows, before=before)
