"""From problems to rows: lengths follow the schedule, epochs have no gap, order is a function of the step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from prefix_rft_lab import measure, prefixes, rng, schedules
from prefix_rft_lab.algorithm.methods import uft
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.tasks import sources
from prefix_rft_lab.tokens import encode_problems
from prefix_rft_lab.types import Demonstration, EncodedProblem, Problem

END = 99


def make(index, tokens):
    """A problem whose demonstration has so many tokens of its own, and the end token."""
    return EncodedProblem(
        problem=Problem(id=str(index), prompt="1+1", answer="2"),
        index=index,
        prompt_ids=[1, 2],
        demonstrations=() if tokens is None else (Demonstration(ids=[*range(100, 100 + tokens), END]),),
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


def test_the_last_token_of_the_answer_is_never_given(small):
    """Ratios are of the demonstration's own tokens: floor(0.95 x 20) of 20 and the end token, not floor(0.95 x 21)."""
    config = small(**{"prefix.schedule": "constant"})
    assert [len(row.prefix_ids) for row in hybrid(make(0, 20), 0, config)] == [19]
    assert [len(row.prefix_ids) for row in hybrid(make(0, 41), 0, config)] == [38], "39 with the end token"
    whole = small(**{"prefix.high": 1.0, "prefix.schedule": "constant"})
    for tokens in range(1, 50):
        for plan in (prefixes.hybrid_rows, prefixes.shared_prefix_rows):
            for row in plan(make(0, tokens), 0, whole):
                assert 100 + tokens - 1 not in row.prefix_ids


def test_no_prefix_of_the_embedded_world_holds_the_boxed_answer(small, tiny):
    config = small(**{"prefix.schedule": "constant", "data.train_problems": 200})
    found, _ = sources.load_problems(config.data, "train")
    encoded, _ = encode_problems(tiny[1], found, config)
    given = [tiny[1].decode(row.prefix_ids) for problem in encoded for row in hybrid(problem, 0, config)]
    assert len(given) == 200
    assert not any(measure.prefix_contains_answer(text) for text in given)


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


def test_hybrid_rows_share_prefixes_as_told(small):
    config = small(
        **{
            "rollout.rows_per_problem": 8,
            "rollout.hybrid_rows": 6,
            "rollout.rows_per_prefix": 2,
            "prefix.schedule": "uniform",
        }
    )
    rows = prefixes.hybrid_rows(POOL[0], 3, config)
    assert [row.prefix_number for row in rows[2:]] == [0, 0, 1, 1, 2, 2]
    lengths = [len(row.prefix_ids) for row in rows]
    assert lengths[:2] == [0, 0]
    assert lengths[2::2] == lengths[3::2]
    assert len(set(lengths[2::2])) == 3, "each prefix has a length of its own"
    with pytest.raises(ConfigError, match=r"rollout.hybrid_rows = 3 is not a multiple of rollout.rows_per_prefix = 2"):
        small(**{"rollout.hybrid_rows": 3, "rollout.rows_per_prefix": 2})


def test_all_rows_share_one_prefix(small):
    config = small(**{"prefix.schedule": "uniform"})
    rows = prefixes.shared_prefix_rows(POOL[0], 3, config)
    assert len({tuple(row.prefix_ids) for row in rows}) == 1 and rows[0].prefix_ids
    assert {row.prefix_number for row in rows} == {0}
    assert len({len(prefixes.shared_prefix_rows(POOL[0], step, config)[0].prefix_ids) for step in range(20)}) > 5
    assert [row.prefix_ids for row in prefixes.shared_prefix_rows(make(0, None), 3, config)] == [[]] * len(rows)


def test_the_demonstration_is_the_last_row_of_a_mixed_group(small):
    rows = prefixes.plain_and_demonstration_rows(POOL[3], 0, small())
    assert [row.row for row in rows] == [0, 1, 2, 3]
    assert [row.is_demonstration for row in rows] == [False, False, False, True]
    assert rows[-1].prefix_ids == POOL[3].demonstration_ids
    alone = prefixes.plain_and_demonstration_rows(make(0, None), 0, small())
    assert [row.is_demonstration for row in alone] == [False] * 4


def test_prefixes_of_one_problem_come_from_different_demonstrations(small):
    several = replace(
        POOL[0], demonstrations=tuple(Demonstration(ids=[*range(start, start + 40), END]) for start in (100, 200, 300))
    )
    config = small(**{"rollout.rows_per_problem": 8, "rollout.hybrid_rows": 4, "prefix.schedule": "constant"})
    firsts = set()
    for step in range(20):
        starts = [row.prefix_ids[0] for row in hybrid(several, step, config)]
        assert set(starts) == {100, 200, 300}, "each is used before one comes again"
        assert starts[3] == starts[0]
        assert starts == [row.prefix_ids[0] for row in hybrid(several, step, config)]
        firsts.add(starts[0])
        assert prefixes.demonstration_rows(several, step, config)[0].prefix_ids[0] == starts[0]
    assert firsts == {100, 200, 300}, "and the order changes from step to step"


# A demonstration of 6 lines: 5 steps that end after 3, 7, 12, 18 and 20 tokens, and the answer.
STEPS = replace(POOL[7], demonstrations=(Demonstration(ids=[*range(100, 126), END], step_ends=(3, 7, 12, 18, 20)),))


def hints(problem, config, steps):
    return [uft.hint_rows(problem, step, config) for step in steps]


def test_a_hint_is_some_of_the_first_steps_and_all_rows_share_it(small):
    config = small(**{"uft.hint_steps": 400, "rl.steps": 400})
    lengths = []
    for rows in hints(STEPS, config, range(400)):
        assert len(rows) == 4
        assert len({tuple(row.prefix_ids) for row in rows}) == 1
        lengths.append(len(rows[0].prefix_ids))
        assert rows[0].prefix_ids == STEPS.demonstration_ids[: lengths[-1]]
    assert set(lengths) == {0, 3, 7, 12, 18, 20}, "never the line with the answer"
    # Binomial(5, p): on average 5 p parts, p = 0.95 at first and 0.05 at last; four standard errors.
    parts = [(0, 3, 7, 12, 18, 20).index(length) for length in lengths]
    for part, step in ((parts[:40], 20), (parts[180:220], 200), (parts[-40:], 380)):
        p = 0.05 + 0.45 * (1 + math.cos(math.pi * step / 400))
        assert abs(np.mean(part) - 5 * p) < 4 * math.sqrt(5 * 0.25 / 40)


def test_hints_end_and_need_steps(small):
    config = small(**{"uft.low": 1.0, "uft.high": 1.0, "rl.steps": 10})
    assert uft.hint_steps(config) == 6, "six tenths of the run, as published"
    shown = [len(rows[0].prefix_ids) for rows in hints(STEPS, config, range(10))]
    assert shown == [20] * 6 + [0] * 4
    for without in (make(0, None), make(0, 40)):
        assert [row.prefix_ids for row in uft.hint_rows(without, 0, config)] == [[]] * 4
    none = config.replace(**{"uft.hint_steps": 0})
    assert uft.hint_rows(STEPS, 0, none)[0].prefix_ids == []


def test_many_steps_are_cut_into_parts_as_published(small):
    """separation[i] = round(i / 5 * 12) of 12 steps: 0, 2, 5, 7, 10, 12."""
    ends = tuple(range(2, 26, 2))
    long = replace(POOL[7], demonstrations=(Demonstration(ids=[*range(40), END], step_ends=ends),))
    config = small(**{"uft.hint_steps": 300, "rl.steps": 300})
    steps = {len(rows[0].prefix_ids) // 2 for rows in hints(long, config, range(300))}
    assert steps == {0, 2, 5, 7, 10, 12}
    few = replace(POOL[7], demonstrations=(Demonstration(ids=[*range(40), END], step_ends=(4, 9)),))
    assert {len(rows[0].prefix_ids) for rows in hints(few, config, range(300))} == {0, 4, 9}


def test_answer_in_prefix():
    assert measure.prefix_contains_answer("7+3=10\n\\boxed{10}")
    assert not measure.prefix_contains_answer("7+3=10\n\\boxed{10")
    assert not measure.prefix_contains_answer("7+3=10")
    assert not measure.prefix_contains_answer("")
