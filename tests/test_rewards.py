"""Rewards: the kit's by hand, several with weights, slow and failing ones, and what a bad one is told."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest

from prefix_rft_lab import rewards
from prefix_rft_lab.core.config import ConfigError, DataConfig
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.rewards import REWARDS, Scorer, weights_of
from prefix_rft_lab.types import Problem


def problem(answer="12", id="p0"):
    return Problem(id=id, prompt="?", answer=answer)


def scorer(reward, solved=None):
    return Scorer(DataConfig(reward=reward, solved=solved))


@pytest.fixture
def register(monkeypatch):
    """``rewards.register`` for one test."""
    before = dict(REWARDS), dict(REWARDS.entries)
    yield rewards.register
    for now, then in zip((REWARDS, REWARDS.entries), before, strict=True):
        now.clear()
        dict.update(now, then)


@pytest.mark.parametrize(
    ("reward", "response", "answer", "value"),
    [
        ("exact", r"so \boxed{ 12 }", "12", 1),
        ("exact", r"so \boxed{12.0}", "12", 0),
        ("exact", "so 12", "12", 0),
        ("exact", "nothing", "", 0),
        ("numeric", r"\boxed{12.011}", "12", 1),
        ("numeric", r"\boxed{12.013}", "12", 0),
        ("numeric", r"\boxed{1,000}", "1000", 1),
        ("numeric", r"\boxed{0.0009}", "0", 1),
        ("numeric", r"\boxed{nan}", "0", 0),
        ("numeric", r"\boxed{twelve}", "12", 0),
        ("choice", "A or B? The answer is (B).", "B", 1),
        ("choice", r"B, no: \boxed{\text{(C)}}", "(c)", 1),
        ("choice", r"B, no: \boxed{C}", "B", 0),
        ("choice", "Because", "B", 0),
        ("format", r"<think>\n7?</think> \boxed{8}", "12", 1),
        ("format", r"\boxed{8}", "12", 1),
        ("format", r"<think>\boxed{8}", "12", 0),
        ("format", r"<think>\boxed{7}</think>\boxed{8}", "12", 0),
        ("format", "8", "12", 0),
    ],
)
def test_rewards_of_the_kit(reward, response, answer, value):
    with scorer(reward) as one:
        assert one.score([response], [problem(answer)]) == [value]


def test_math_verify_is_the_default_and_limits_itself():
    with Scorer(DataConfig()) as one:
        assert one.weights == {"math_verify": 1.0}
        texts = [r"\boxed{\frac{24}{2}}", r"\boxed{13}", r"\boxed{\sum_{k=1}^{3000000} \sin(k^2)}"]
        assert one.score(texts, [problem()] * 3) == [1, 0, 0]
        assert one.timeouts == 1
        assert one.unread([problem(), problem("?", "p1")]) == ["p1"]


def test_several_with_weights_are_each_kept_and_summed():
    with scorer("exact + 0.5*format + -2 * choice") as one:
        parts = one.parts([r"\boxed{12}", r"\boxed{B}"], [problem(), problem("B")])
        assert parts == {"exact": [1, 1], "format": [1, 1], "choice": [0, 1]}
        assert one.total(parts) == [1.5, -0.5]
        assert one.most == 1.5
        assert [one.solved(value) for value in (1.5, 1.49)] == [True, False]
    assert scorer("exact + 0.5 * format", solved=1.0).solved(1.0)


@pytest.mark.parametrize("reward", ["", "exact +", "two * exact", "exact + exact", "nan * exact", "1 * 2 * exact"])
def test_what_is_no_sum_of_rewards(reward):
    with pytest.raises(ConfigError, match="is not understood"):
        weights_of(DataConfig(reward=reward))


def test_a_name_that_is_not_known_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"data\.reward = 'exat' is not known; .*did you mean 'exact'"):
        scorer("exat")


def test_a_range_of_its_own_needs_a_word_on_what_is_solved(register):
    @register("open", high=math.inf, low=-math.inf)
    def open_range(response, problem):
        return float(len(response))

    with pytest.raises(ConfigError, match="give the score from which a response counts as solved"):
        scorer("open")
    with pytest.raises(ConfigError, match=r"data\.solved = 2\.0 cannot be reached"):
        scorer("exact", solved=2.0)
    one = scorer("open", solved=3.0)
    assert [one.solved(value) for value in one.score(["abc", "ab"], [problem()] * 2)] == [True, False]


@pytest.mark.parametrize("bad", [math.nan, None, "1", 1.5, -0.1, [1.0], math.inf])
@pytest.mark.parametrize("form", ["plain", "batch", "coroutine"])
def test_no_number_of_the_range_is_one_sentence(register, bad, form):
    def value(p):
        return bad if p.id == "p1" else np.float32(0.5)

    if form == "coroutine":

        @register("mine")
        async def mine(response, problem):
            return value(problem)

    elif form == "batch":

        @register("mine", batch=True)
        def mine(responses, problems):
            return [value(problem) for problem in problems]

    else:

        @register("mine")
        def mine(response, problem):
            return value(problem)

    one = scorer("mine")
    assert one.score(["a"], [problem()]) == [0.5]
    with pytest.raises(RunError) as caught:
        one.score(["a", "b"], [problem(), problem(id="p1")])
    assert str(caught.value).startswith(f"reward 'mine' returned {bad!r} for problem 'p1'; return a float from 0 to 1")


@pytest.mark.parametrize(
    ("found", "told"), [([0.5], "1 values"), (0.5, "0.5"), (None, "None"), ({"a": 1, "b": 2}, "2 values")]
)
def test_a_batch_of_another_count(register, found, told):
    @register("mine", batch=True)
    def mine(responses, problems):
        return found

    with pytest.raises(RunError, match=f"reward 'mine' returned {told} for 2 responses; return a list"):
        scorer("mine").score(["a", "b"], [problem()] * 2)


@pytest.mark.parametrize("form", ["plain", "coroutine"])
def test_one_that_raises_names_the_problem(register, form):
    if form == "plain":

        @register("mine")
        def mine(response, problem):
            return 1 / 0

    else:

        @register("mine")
        async def mine(response, problem):
            return 1 / 0

    with pytest.raises(RunError, match=r"reward 'mine' failed on problem 'p0' \(ZeroDivisionError: division by zero\)"):
        scorer("mine").score(["a"], [problem()])


@pytest.mark.parametrize("form", ["plain", "batch", "coroutine"])
def test_a_slow_one_scores_lowest_and_is_counted(register, caplog, form):
    if form == "plain":

        @register("mine", low=-1, time_limit=0.2)
        def mine(response, problem):
            time.sleep(0.5 if response == "b" else 0)
            return 1.0

    elif form == "batch":

        @register("mine", low=-1, time_limit=0.2, batch=True)
        def mine(responses, problems):
            time.sleep(0.5 if "b" in responses else 0)
            return [1.0] * len(responses)

    else:

        @register("mine", low=-1, time_limit=0.2)
        async def mine(response, problem):
            await asyncio.sleep(0.5 if response == "b" else 0)
            return 1.0

    one = scorer("mine")
    assert one.score(["a"], [problem()]) == [1.0]
    late = 2 if form == "batch" else 1
    assert one.score(["a", "b"], [problem()] * 2) == ([-1, -1] if form == "batch" else [1.0, -1])
    assert one.timeouts == late
    assert f"reward 'mine' ran out of its 0.2 s on {late} of 2 rows" in caplog.text


def test_calls_that_hang_by_the_dozen_end_the_run(register):
    @register("mine", time_limit=0.01)
    def mine(response, problem):
        time.sleep(1)
        return 1.0

    with pytest.raises(RunError, match=r"ran out of its 0\.01 s 9 times, and these calls still run"):
        scorer("mine").score(["a"] * 12, [problem()] * 12)


def test_coroutines_run_together(register):
    @register("mine")
    async def mine(response, problem):
        await asyncio.sleep(0.2)
        return 1.0

    started = time.perf_counter()

    async def notebook():  # whose loop runs already
        return scorer("mine").score(["a"] * 20, [problem()] * 20)

    assert asyncio.run(notebook()) == [1.0] * 20
    assert time.perf_counter() - started < 2


def test_a_class_is_made_once_and_closed(register):
    made = []

    @register("mine")
    class Mine:
        def __init__(self):
            made.append("made")

        def __call__(self, response, problem):
            return 1.0

        def close(self):
            made.append("closed")

    with scorer("mine") as one:
        one.score(["a", "b"], [problem()] * 2)
    assert made == ["made", "closed"]


def test_two_of_one_name_and_names_that_a_config_cannot_hold(register):
    with pytest.raises(ConfigError, match="reward 'exact' is the name of another idea, of the kit"):
        register("exact")(lambda response, problem: 1.0)
    with pytest.raises(ConfigError, match=r"reward 'a\+b' cannot be written in data\.reward"):
        register("a+b")
