"""Prefix-ratio windows, the draw from them, and prefix lengths."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from prefix_rft_lab import methods, schedules
from prefix_rft_lab.config import ConfigError, PrefixConfig, preset
from prefix_rft_lab.core.types import Demonstration
from prefix_rft_lab.rng import generator

PAPER = PrefixConfig(decay_steps=500)  # cosine, 0.95 -> 0.05 over 500 steps


def test_cosine_by_hand():
    # Half way the cosine is 0: (0.95 + 0.05) / 2. A third of the way it is 1/2: 0.05 + 0.75 * 0.9.
    def value(step):
        return schedules.cosine(step, init=0.95, target=0.05, n_steps=300)

    assert value(0) == pytest.approx(0.95, abs=1e-15)
    assert value(100) == pytest.approx(0.725, abs=1e-15)
    assert value(150) == pytest.approx(0.5, abs=1e-15)
    assert value(300) == pytest.approx(0.05, abs=1e-15)
    assert value(301) == value(10**6) == 0.05


def test_warmup_comes_before_the_whole_decay():
    # int(10 * 0.25) = 2 steps of rise from 0, then 10 of decay: it ends at step 12.
    for schedule in (schedules.cosine, schedules.linear):
        values = [schedule(step, init=0.8, target=0.2, n_steps=10, warmup_ratio=0.25) for step in range(14)]
        assert values[:3] == pytest.approx([0.0, 0.4, 0.8])
        assert values[7] == pytest.approx(0.5)
        assert values[11] > 0.2
        assert values[12] == values[13] == pytest.approx(0.2)


def test_linear_by_hand_and_rising():
    assert schedules.linear(3, init=0.0, target=1.0, n_steps=4) == 0.75
    assert schedules.linear(4, init=0.0, target=1.0, n_steps=4) == 1.0
    assert schedules.cosine(1, init=0.0, target=1.0, n_steps=2) == pytest.approx(0.5)


def test_mean_ratio_of_the_paper():
    # 0.95 at the start; low 0.5 half way: (0.5 + 0.95) / 2; low 0.05 at the end: (0.05 + 0.95) / 2.
    means = [schedules.mean_ratio(PAPER, step) for step in (0, 250, 500, 4000)]
    assert means == pytest.approx([0.95, 0.725, 0.5, 0.5])
    # A uniform of width 0.9 has variance 0.81 / 12; a closed window has none.
    assert schedules.ratio_variance(PAPER, 500) == pytest.approx(0.0675)
    assert schedules.ratio_variance(PAPER, 0) == 0


def test_a_decay_that_is_not_set_follows_the_run():
    for steps in (10, 150, 500):
        config = preset("tiny", **{"rl.steps": steps})
        assert config.prefix.decay_steps is None
        assert schedules.of_run(config).decay_steps == steps
        assert schedules.mean_ratio(schedules.of_run(config), steps) == pytest.approx(0.5)
    # 20 steps of delay leave 180, of which int(180 / 1.1) decay after a warm-up of a tenth of that.
    config = preset("tiny", **{"rl.steps": 200, "prefix.delay_steps": 20, "prefix.warmup_ratio": 0.1})
    decay = schedules.of_run(config).decay_steps
    assert decay == 163 and 20 + int(0.1 * decay) + decay <= 200
    assert schedules.of_run(preset("tiny", **{"prefix.decay_steps": 7})).decay_steps == 7
    assert schedules.of_run(preset("tiny", **{"rl.steps": 0})).decay_steps == 1
    with pytest.raises(ValueError, match=r"prefix\.decay_steps is not set"):
        schedules.ratio_window(PrefixConfig(), 3)


def test_window_kinds():
    assert schedules.ratio_window(PAPER, 0) == (0.95, 0.95)
    uniform, constant = PrefixConfig(schedule="uniform"), PrefixConfig(schedule="constant", high=0.6, low=0.1)
    for step in (0, 7, 10_000):
        assert schedules.ratio_window(uniform, step) == (0.05, 0.95)
        assert schedules.ratio_window(constant, step) == (0.6, 0.6)
    line = PrefixConfig(schedule="linear", high=0.9, low=0.1, decay_steps=8)
    assert schedules.ratio_window(line, 2) == pytest.approx((0.7, 0.9))


def test_delay_shifts_the_schedule():
    late = PrefixConfig(decay_steps=500, delay_steps=40)
    assert schedules.ratio_window(late, 39) == (0.95, 0.95)
    for step in (0, 1, 250, 499, 500, 900):
        assert schedules.ratio_window(late, 40 + step) == schedules.ratio_window(PAPER, step)


def test_warmup_opens_the_window_from_zero():
    config = PrefixConfig(decay_steps=100, warmup_ratio=0.1)
    assert schedules.ratio_window(config, 0) == (0.0, 0.95)
    assert schedules.ratio_window(config, 5) == pytest.approx((0.475, 0.95))
    assert schedules.ratio_window(config, 10) == pytest.approx((0.95, 0.95))


def test_ends_are_ordered():
    # A value of the moving end above the fixed one swaps their parts.
    assert schedules.ordered_window(0.8, 0.4) == (0.4, 0.8) == schedules.ordered_window(0.4, 0.8)


@pytest.mark.parametrize("shape", [(1.0, 1.0), (2.0, 5.0), (0.5, 0.5)])
def test_draws_have_the_closed_form_moments(shape):
    config = PrefixConfig(decay_steps=500, alpha=shape[0], beta=shape[1])
    rng = generator(0, "test", str(shape))
    draws = np.array([schedules.sample_ratio(config, 300, rng) for _ in range(20_000)])
    low, high = schedules.ratio_window(config, 300)
    assert low <= draws.min() and draws.max() <= high
    mean, variance = schedules.mean_ratio(config, 300), schedules.ratio_variance(config, 300)
    assert abs(draws.mean() - mean) < 5 * math.sqrt(variance / len(draws))
    spread = (draws - mean) ** 2
    assert abs(spread.mean() - variance) < 5 * spread.std() / math.sqrt(len(draws))


def test_draw_depends_on_its_key_only():
    first = schedules.sample_ratio(PAPER, 300, generator(3, "ratio", 300, 1, 0))
    assert first == schedules.sample_ratio(PAPER, 300, generator(3, "ratio", 300, 1, 0))
    assert first != schedules.sample_ratio(PAPER, 300, generator(4, "ratio", 300, 1, 0))


@pytest.mark.parametrize(
    ("ratio", "tokens", "least", "length"),
    [
        (0.5, 9, 0, 4),  # floor(4.5)
        (1.0, 9, 0, 8),  # one token is left out
        (0.01, 9, 0, 0),
        (0.01, 9, 3, 3),
        (0.01, 9, 30, 8),  # the minimum never wins over leaving one out
        (0.95, 1, 5, 0),
        (0.0, 9, 5, 0),  # no prefix at all, whatever the minimum
        (0.5, 0, 5, 0),
        (0.29, 100, 0, 28),  # 0.29 * 100 is 28.999999999999996 in double precision
    ],
)
def test_prefix_length_by_hand(ratio, tokens, least, length):
    assert schedules.prefix_length(ratio, tokens, least) == length


def test_prefix_length_always_leaves_a_token():
    for tokens in range(1, 40):
        for ratio in np.linspace(0, 1, 23):
            assert 0 <= schedules.prefix_length(float(ratio), tokens, 4) < tokens


# ---------------------------------------------------------------- schedules, samplers and units of your own


@pytest.fixture
def own(monkeypatch):
    """Registers an idea of this test's only."""

    def put(registry, name, idea):
        monkeypatch.setitem(registry, name, idea)

    return put


def test_a_schedule_of_ones_own_gives_the_window(own):
    own(schedules.SCHEDULES, "steps", lambda step, settings: (settings.low, 0.5 if step < 3 else settings.high))
    config = preset("tiny", **{"prefix.schedule": "steps", "rl.steps": 5})
    windows = [schedules.ratio_window(schedules.of_run(config), step) for step in range(5)]
    assert windows == [(0.05, 0.5)] * 3 + [(0.05, 0.95)] * 2
    schedules.check(config)


@pytest.mark.parametrize(
    "window", [(0.2, 1.2), (-0.1, 0.5), (0.6, 0.5), (math.nan, 0.5), (0.1, math.inf), None, 0.5, (0.1, 0.2, 0.3), "ab"]
)
def test_a_schedule_that_gives_no_window_is_refused_before_the_run(own, window):
    own(schedules.SCHEDULES, "mine", lambda step, settings: window if step == 3 else (0, 1))
    config = preset("tiny", **{"prefix.schedule": "mine"})
    words = (
        f"prefix.schedule = 'mine' gives {window!r} at step 3; it should give (low, high) with 0 <= low <= high <= 1"
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        methods.check(config)
    methods.check(config.replace(**{"rl.steps": 3}))
    methods.check(config.replace(method="rft")), "no prefixes, no window"


def test_an_unknown_schedule_sampler_unit_or_rule_names_the_nearest():
    for field, name, near in (
        ("schedule", "cosin", "cosine"),
        ("sampler", "betta", "beta"),
        ("unit", "tokens", "token"),
        ("keep", "tops", "top"),
    ):
        with pytest.raises(ConfigError, match=rf"prefix.{field} = '{name}' is not known; .*; did you mean '{near}'\?"):
            methods.check(preset("tiny", **{f"prefix.{field}": name}))


def test_a_sampler_of_ones_own_draws_within_the_window(own):
    own(schedules.SAMPLERS, "middle", lambda low, high, settings, rng: (low + high) / 2)
    config = schedules.of_run(preset("tiny", **{"prefix.sampler": "middle", "prefix.schedule": "uniform"}))
    assert schedules.sample_ratio(config, 0, generator(0, "x")) == pytest.approx(0.5)
    own(schedules.SAMPLERS, "middle", lambda low, high, settings, rng: 0.99)
    with pytest.raises(
        ConfigError, match=r"prefix.sampler = 'middle' gives 0.99 at step 0; it should lie in \[0.05, 0.95\]"
    ):
        schedules.sample_ratio(config, 0, generator(0, "x"))


def test_prefixes_are_cut_in_their_unit(own):
    demonstration = Demonstration(ids=list(range(11)), step_ends=(2, 5, 7))
    cut = {
        unit: [
            len(schedules.cut_prefix(ratio, demonstration, PrefixConfig(unit=unit)))
            for ratio in (0.0, 0.1, 0.2, 0.49, 0.5, 0.69, 0.7, 1.0)
        ]
        for unit in ("token", "step")
    }
    assert cut == {"token": [0, 1, 2, 4, 5, 6, 7, 9], "step": [0, 0, 2, 2, 5, 5, 7, 7]}
    own(schedules.UNITS, "half", lambda tokens, demonstration: tokens // 2)
    assert schedules.cut_prefix(0.5, demonstration, PrefixConfig(unit="half")) == [0, 1]
    own(schedules.UNITS, "more", lambda tokens, demonstration: tokens + 1)
    with pytest.raises(ConfigError, match=r"prefix.unit = 'more' gives 6 of 5 tokens; it should give 0 to 5"):
        schedules.cut_prefix(0.5, demonstration, PrefixConfig(unit="more"))
