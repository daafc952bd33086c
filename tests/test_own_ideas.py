"""One idea of each kind from a user's own module, with no edit to the package: it trains, is swept by two workers, goes on after
a kill, and is compared."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from prefix_rft_lab import stats, sweeps
from prefix_rft_lab.core.files import read_lines
from prefix_rft_lab.core.registry import REGISTRIES, with_ideas
from prefix_rft_lab.pool import train_all
from prefix_rft_lab.runs.run import directory_of
from prefix_rft_lab.tasks.task import with_task
from prefix_rft_lab.trainer import train

MODULE = """
from dataclasses import replace

from prefix_rft_lab import Task, methods, rewards
from prefix_rft_lab.advantages import ESTIMATORS, RowAdvantages
from prefix_rft_lab.entropy import KEEP_RULES
from prefix_rft_lab.prefixes import plain_rows, hybrid_rows
from prefix_rft_lab.schedules import SAMPLERS, SCHEDULES, UNITS
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.types import TokenKind


@SCHEDULES.register("stairs", version="1")
def stairs(step, settings):
    return settings.high - min(step, 3) / 3 * (settings.high - settings.low), settings.high


@SAMPLERS.register("middle", version="1")
def middle(low, high, settings, rng):
    return (low + high) / 2


@UNITS.register("pairs", version="1")
def pairs(tokens, demonstration):
    return tokens - tokens % 2


@KEEP_RULES.register("late", version="1")
def late(tokens):
    return -tokens.entropy.abs()


@ESTIMATORS.register("raw", version="1")
def raw(scores):
    return RowAdvantages(sampled=scores.scores - 0.5, prefix=scores.scores - 0.5)


@rewards.register("tidy", version="1")
def tidy(response, problem):
    return float(response.count("boxed") == 1)


class Half(methods.PolicyGradient):
    def tokens(self, inputs, config):
        found = super().tokens(inputs, config)
        return methods.TokenLosses(loss=0.5 * found.loss, clipped=found.clipped)


def every_other_rows(problem, step, config):
    return hybrid_rows(problem, step, config) if step % 2 else plain_rows(problem, step, config)


methods.METHODS["mine"] = methods.Method(
    title="Mine",
    version="1",
    stages=(
        replace(
            methods.PREFIX_RFT,
            name="mine",
            rows=every_other_rows,
            losses=lambda config: methods.PREFIX_RFT.losses(config) | {TokenKind.PREFIX: Half()},
        ),
    ),
)

Task(
    problems=[
        {"problem": p.prompt, "answer": p.answer, "solution": p.demonstration} for p in chains.problems("train", 24)
    ],
    reward={"exact": 1, tidy: 0.25},
    solved=1.0,
    instruction="",
    name="own-chains",
)
"""

IDEAS = {
    "method": "mine",
    "prefix.schedule": "stairs",
    "prefix.sampler": "middle",
    "prefix.unit": "pairs",
    "prefix.keep": "late",
    "loss.advantage": "raw",
    "data.task": "own-chains",
    "imports": ["my_own_ideas"],
}


@pytest.fixture
def ideas(tmp_path, monkeypatch, small):
    """``ideas(**changes)``: a config with one idea of each kind, from a module in the folder that tests run in."""
    (tmp_path / "my_own_ideas.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = [(one, dict(one), dict(one.entries)) for one in REGISTRIES]
    yield lambda **changes: small(**(IDEAS | {"rl.steps": 6, "records.checkpoint_every": 1} | changes))
    sys.modules.pop("my_own_ideas", None)
    for one, known, entries in before:
        one.clear()
        dict.update(one, known)
        one.entries = entries


@pytest.mark.slow
def test_one_of_each_trains_and_is_recorded_as_it_was_used(ideas, tmp_path):
    run = train(ideas(), out=tmp_path / "runs", progress=False)
    named = {name.partition(" ")[0] for name in run.config.ideas}
    assert named == {*IDEAS, "data.reward"} - {"imports"}
    windows = run.metrics.set_index("step")[["prefix_ratio_low", "prefix_ratio_high"]].dropna()
    assert windows.loc[[1, 3, 5], "prefix_ratio_low"].tolist() == pytest.approx([0.65, 0.05, 0.05])
    prefixes = run.tokens.query("kind == 'prefix' and row >= 0").groupby(["step", "problem", "row"]).size()
    assert (prefixes % 2 == 0).all()
    paid = run.metrics["rewards_exact"] + 0.25 * run.metrics["rewards_tidy"]
    assert run.metrics["reward"].tolist() == pytest.approx(paid.tolist())
    assert train(ideas(), out=tmp_path / "runs", progress=False).path == run.path


@pytest.mark.slow
def test_two_workers_train_and_compare(ideas, tmp_path):
    kit = {"method": "prefix_rft", "prefix.schedule": "cosine", "prefix.keep": "top", "loss.advantage": "dr_grpo"}
    configs = [ideas(seed=seed, **changes) for changes in ({}, kit) for seed in (0, 1, 2)]
    runs = train_all(configs, out=tmp_path / "runs", workers=2, progress=False)
    assert [run.method for run in runs] == ["mine"] * 3 + ["prefix_rft"] * 3
    assert all(run.config.data.reward == "1 * exact + 0.25 * tidy" for run in runs)
    table = stats.deltas(runs, "prefix_rft", "test")
    assert table["method"].tolist() == ["mine"] and table["seeds"].tolist() == [3]
    assert table["low"].item() <= table["delta"].item() <= table["high"].item()
    alone = train(configs[0], out=tmp_path / "alone", progress=False)
    assert alone.metrics["loss"].tolist() == runs[0].metrics["loss"].tolist()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bits_of_a_whole_one(ideas, tmp_path):
    config, out = ideas(), tmp_path / "runs"
    code = (
        "import sys; from prefix_rft_lab.config import RunConfig; from prefix_rft_lab.trainer import train; "
        "train(RunConfig.load(sys.argv[1]), out=sys.argv[2], progress=False)"
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    path = directory_of(with_ideas(with_task(config, folder=out / "problems")), out)
    process = subprocess.Popen([sys.executable, "-c", code, "config.yaml", str(out)], env=dict(os.environ))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (path / "metrics.jsonl").is_file() and len(read_lines(path / "metrics.jsonl", cut=True)) >= 2:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL, "killed before its end"
    resumed, whole = (train(config, out=folder, progress=False) for folder in (out, tmp_path / "whole"))
    assert resumed.path == path
    assert resumed.metrics["loss"].tolist() == whole.metrics["loss"].tolist()
    assert resumed.evaluation("test").equals(whole.evaluation("test"))


@pytest.mark.slow
def test_each_idea_with_another_version_is_another_run(ideas, tmp_path):
    first = directory_of(with_ideas(with_task(ideas())), tmp_path)
    seen = {first}
    for line in [line for line in MODULE.splitlines() if 'version="1"' in line]:
        (tmp_path / "my_own_ideas.py").write_text(MODULE.replace(line, line.replace('"1"', '"2"')))
        importlib.reload(sys.modules["my_own_ideas"])
        seen.add(directory_of(with_ideas(with_task(ideas())), tmp_path))
    assert len(seen) == 1 + MODULE.count('version="1"')
    (tmp_path / "my_own_ideas.py").write_text(MODULE.replace('"train", 24', '"train", 25'))
    importlib.reload(sys.modules["my_own_ideas"])
    assert directory_of(with_ideas(with_task(ideas())), tmp_path) not in seen, "other problems"


SWEEP = """
name: own
question: Does it run?
preset: tiny
seeds: [0, 1]
set: {imports: [my_own_ideas], data.task: own-chains, rl.steps: 2, data.train_problems: 12, data.eval_problems: 4,
  rollout.problems_per_step: 2, rollout.rows_per_problem: 4, evaluation.every: 0, evaluation.k: 2,
  evaluation.problems: 4, evaluation.hard_tries: 0, evaluation.final_splits: [test], prefix.decay_steps: 2}
arms:
  mine: {method: mine, prefix.schedule: stairs}
  kit: {method: prefix_rft}
"""


@pytest.mark.slow
def test_a_sweep_takes_them_by_name(ideas, tmp_path):
    (tmp_path / "own.yaml").write_text(SWEEP)
    runs = sweeps.run(sweeps.plan("own.yaml", "smoke"), out=tmp_path / "runs", workers=2)
    assert [run.method for run in runs] == ["mine"] * 2 + ["prefix_rft"] * 2
    assert {run.config.data.reward for run in runs} == {"1 * exact + 0.25 * tidy"}
    assert {run.config.prefix.schedule for run in runs} == {"stairs", "cosine"}
    found = sweeps.finished(sweeps.plan("own.yaml", "smoke"), tmp_path / "runs")
    assert [run.path for run in found] == [run.path for run in runs]
