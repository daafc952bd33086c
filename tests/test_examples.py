"""The examples of the docstrings are what the code gives."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "prefix_rft_lab").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
FIRST = (
    "core.config.preset",
    "core.config.RunConfig.replace",
    "core.rng.key",
    "core.types.Problem",
    "algorithm.schedules.ratio_window",
    "algorithm.schedules.prefix_length",
    "algorithm.schedules.sample_ratio",
    "algorithm.advantages.dr_grpo",
    "algorithm.advantages.dr_grpo_prefix",
    "algorithm.entropy.clip_mask",
    "algorithm.losses.nll_tokens",
    "algorithm.losses.policy_loss_tokens",
    "data.answers.extract_answer",
    "data.rewards.exact",
    "data.task.Task",
    "data.verifier.verify",
    "runs.run.load",
    "runs.run.load_all",
    "analysis.stats.compare",
    "training.trainer.train",
)
"""What a user calls first."""


def examples(module: str) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(import_module(module)) if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_say(module, monkeypatch):
    monkeypatch.chdir(ROOT)  # results/gsm8k
    runner = doctest.DocTestRunner()
    for test in examples(module):
        runner.run(test)
    assert runner.tries and not runner.failures


def test_what_a_user_calls_first_has_an_example():
    found = {test.name.removeprefix("prefix_rft_lab.") for module in MODULES for test in examples(module)}
    assert set(FIRST) <= found
