"""What several test files share: one CPU thread, the shipped policy, and runs that take a second."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from prefix_rft_lab.config import preset
from prefix_rft_lab.policy import load_policy

SMALL = {
    "model.device": "cpu",
    "data.train_problems": 12,
    "data.eval_problems": 4,
    "rollout.problems_per_step": 2,
    "rollout.rows_per_problem": 4,
    "rollout.max_response_tokens": 48,
    "prefix.decay_steps": 4,
    "rl.steps": 4,
    "sft.steps": 3,
    "sft.batch_rows": 4,
    "evaluation.every": 2,
    "evaluation.k": 2,
    "evaluation.problems": 4,
    "evaluation.hard_tries": 2,
    "records.checkpoint_every": 2,
    "records.tokens_every": 2,
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def interruptible():
    """A shell that starts tests in the background has them ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def small():
    """``small(method="rft", **{"rl.steps": 2})``: a config of the embedded world that trains in about a second."""

    def make(**changes):
        return preset("tiny", **(SMALL | changes))

    return make


@pytest.fixture(scope="session")
def tiny(small):
    """(model, tokenizer) of the shipped policy; copy the model before training it."""
    return load_policy(small())
