"""From problems to rows: lengths follow the schedule, epochs have no gap, order is a function of the step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefix_rft_lab import prefixes, rng, schedules
from prefix_rft_lab.types import Demonstration, EncodedProblem, Problem


def make(index, tokens):
    return EncodedProblem(
        problem=Problem(id=str(index), prompt="1+1", answer="2"),
        index=index,
        prompt_ids=[1, 2],
        demonstrations=() if tokens is None else (Demonstration(ids=list(range(100, 100 + tokens))),),
    )


POOL = [make(i, 40) for i in range(60)]


def hybrid(problem, step, config):
    return [row for row in prefixes.hybrid_rows(problem, step, config) if row.is_hybrid]


def test_last_rows_of_a_group_are_hybrid(small):
    config = small(**{"rollout.rows_per_problem": 8, "rollout.hybrid_rows": 3, "prefix.schedule": "constant"})
    rows = prefixes.hybrid_rows(POOL[0], 0, config)
    assert [row.row for row in rows] == list(range(8))
    assert [len(row.prefix_ids) for row in rows] == [0] * 5 + [math.floor(0.95 * 40)] * 3
    assert [row.prefix_ratio for row in rows] == [0] * 5 + [0.95] * 3
    for none in (0, 8):
        changed = config.replace(**{"rollout.hybrid_rows": none})
        assert sum(row.is_hybrid for row in prefixes.hybrid_rows(POOL[0], 0, changed)) == none


@pytest.mark.parametrize("schedule", ["cosine", "linear", "uniform"])
def test_ratios_follow_the_window(small, schedule):
    config = small(**{"prefix.schedule": schedule, "prefix.decay_steps": 10})
    for step in (0, 3, 5, 10, 99):
        low, high = schedules.ratio_window(config.prefix, step)
        drawn = [row.prefix_ratio for problem in POOL for row in hybrid(problem, step, config)]
        assert all(low <= ratio <= high for ratio in drawn)
        assert len(drawn) == len(POOL)
        if high > low:
            # Uniform on the window: mean within four standard errors, spread over both halves.
            assert abs(np.mean(drawn) - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * len(drawn))
            assert min(drawn) < (low + high) / 2 < max(drawn)
        else:
            assert set(drawn) == {high}
    assert schedules.ratio_window(config.prefix, 0)[0] == (0.05 if schedule == "uniform" else 0.95)


def test_length_is_the_floor_of_ratio_times_tokens(small):
    config = small(**{"prefix.schedule": "uniform"})
    for step in range(20):
        for problem in POOL[:10]:
            for row in hybrid(problem, step, config):
                assert len(row.prefix_ids) == min(math.floor(row.prefix_ratio * 40), 39)
                assert row.prefix_ids == problem.demonstration_ids[: len(row.prefix_ids)]


def test_least_length_and_the_token_that_is_left_out(small):
    config = small(**{"prefix.high": 0.1, "prefix.low": 0.0, "prefix.min_tokens": 7, "prefix.schedule": "uniform"})
    assert {len(row.prefix_ids) for p in POOL for row in hybrid(p, 0, config)} == {7}
    assert [len(row.prefix_ids) for row in hybrid(make(0, 5), 0, config)] == [4]
    whole = small(**{"prefix.high": 1.0, "prefix.schedule": "constant"})
    assert [len(row.prefix_ids) for row in hybrid(make(0, 5), 0, whole)] == [4]
    none = small(**{"prefix.high": 0.0, "prefix.low": 0.0, "prefix.min_tokens": 7})
    assert hybrid(make(0, 40), 0, none) == []


def test_without_demonstration_all_rows_are_plain(small):
    config = small()
    for problem in (make(0, None), make(0, 0)):
        rows = prefixes.hybrid_rows(problem, 0, config)
        assert len(rows) == config.rollout.rows_per_problem
        assert [row.prefix_ids for row in rows] == [[]] * len(rows)
    assert prefixes.demonstration_rows(make(0, None), 0, config) == []


def test_a_demonstration_row_is_the_whole_demonstration(small):
    (row,) = prefixes.demonstration_rows(POOL[3], 5, small())
    assert row.prefix_ids == POOL[3].demonstration_ids
    assert (row.is_demonstration, row.is_hybrid, row.prefix_ratio) == (True, False, 1.0)


def test_draws_are_keyed_by_seed_step_problem_and_row(small):
    config = small(**{"prefix.schedule": "uniform", "rollout.hybrid_rows": 2})

    def draws(config, step, problem):
        return [row.prefix_ratio for row in hybrid(problem, step, config)]

    base = draws(config, 3, POOL[1])
    assert base == draws(config, 3, POOL[1])
    assert len({*base, *draws(config, 4, POOL[1]), *draws(config, 3, POOL[2])}) == 6
    assert not set(base) & set(draws(config.replace(seed=1), 3, POOL[1]))


@pytest.mark.parametrize(("pool", "size"), [(60, 7), (60, 60), (10, 24), (3, 1), (1, 4)])
def test_every_epoch_brings_each_problem_once(pool, size):
    problems = POOL[:pool]
    steps = math.ceil(4 * pool / size)
    stream = [p.index for step in range(steps) for p in prefixes.batch_at(problems, step, size, 0, "order")]
    assert len(stream) == steps * size
    epochs = [stream[i : i + pool] for i in range(0, 4 * pool, pool)]
    assert all(sorted(epoch) == list(range(pool)) for epoch in epochs)
    if pool >= 10:
        assert len({tuple(epoch) for epoch in epochs}) == 4, "a new order every epoch"


def test_a_batch_is_a_function_of_the_step_alone():
    later = [p.index for p in prefixes.batch_at(POOL, 11, 7, 0, "order")]
    for step in range(11):
        prefixes.batch_at(POOL, step, 7, 0, "order")
    rng.generator(0, "order", 1).random(5)
    assert [p.index for p in prefixes.batch_at(POOL, 11, 7, 0, "order")] == later
    assert [p.index for p in prefixes.batch_at(POOL, 11, 7, 1, "order")] != later
    assert [p.index for p in prefixes.batch_at(POOL, 11, 7, 0, "other")] != later


def test_answer_in_prefix():
    assert prefixes.prefix_contains_answer("7+3=10\n\\boxed{10}")
    assert not prefixes.prefix_contains_answer("7+3=10\n\\boxed{10")
    assert not prefixes.prefix_contains_answer("7+3=10")
    assert not prefixes.prefix_contains_answer("")
