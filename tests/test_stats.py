"""Intervals against exact enumeration of every resample, pairing, refusals, sentences."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from run_factory import write_run

from prefix_rft_lab import stats
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.evaluate import pass_at_k
from prefix_rft_lab.runs import RunError


def exact_percentiles(table: np.ndarray) -> tuple[float, float]:
    """2.5% and 97.5% of the mean over all equally likely draws of seeds and of problems."""
    seeds, problems = table.shape
    means = [
        table[np.ix_(rows, columns)].mean()
        for rows in itertools.product(range(seeds), repeat=seeds)
        for columns in itertools.product(range(problems), repeat=problems)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def test_one_seed_and_two_problems_resample_to_three_values():
    # Means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the 95% interval is everything.
    interval = stats.two_level(np.array([[0.0, 1.0]]))
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.5, 0.0, 1.0, 2)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_interval_agrees_with_enumerating_every_resample(seeds):
    table = np.random.default_rng(seeds).random((seeds, 4))
    low, high = exact_percentiles(table)
    interval = stats.two_level(table)
    # 2000 resamples of a range of about 1: percentiles are off by a few thousandths.
    assert interval.mean == pytest.approx(table.mean())
    assert interval.low == pytest.approx(low, abs=0.02)
    assert interval.high == pytest.approx(high, abs=0.02)


def test_standard_error_of_problems_is_that_of_the_mean():
    table = np.random.default_rng(0).normal(size=(1, 400))
    interval = stats.two_level(table)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * table.std() / math.sqrt(400), rel=0.06)


def test_spread_over_seeds_widens_the_interval():
    same = np.tile(np.linspace(0, 1, 50), (5, 1))
    spread = same + np.linspace(-0.3, 0.3, 5)[:, None]
    width = [i.high - i.low for i in (stats.two_level(same), stats.two_level(spread))]
    assert stats.two_level(same).mean == pytest.approx(stats.two_level(spread).mean)
    assert width[1] > 1.5 * width[0]


def test_a_constant_shift_is_certain_when_problems_are_paired():
    b = np.random.default_rng(1).random((1, 30))
    delta = stats.two_level_delta(b + 0.25, b)
    assert (delta.mean, delta.low, delta.high) == pytest.approx((0.25, 0.25, 0.25))


def test_pairing_is_tighter_than_the_sides_alone():
    b = np.random.default_rng(2).random((1, 60))
    a = np.clip(b + 0.1, 0, 1)
    delta, alone = stats.two_level_delta(a, b), stats.two_level(a)
    assert delta.high - delta.low < 0.3 * (alone.high - alone.low)
    assert delta.low > 0


def test_seeds_of_two_sides_are_drawn_apart():
    # Equal tables of seeds that differ: were the seeds drawn together, the difference would be exactly 0.
    table = np.array([[0.0, 0.0], [1.0, 1.0]])
    delta = stats.two_level_delta(table, table)
    assert (delta.mean, delta.low, delta.high) == (0.0, -1.0, 1.0)


def test_missing_scores_give_nan_not_zero():
    interval = stats.two_level(np.array([[np.nan, 1.0]]))
    assert math.isnan(interval.mean) and interval.n == 0


def test_compare_gives_hand_computed_means_in_method_order(tmp_path):
    runs = [
        write_run(tmp_path, "prefix_rft", 1, counts=(4, 4, 4, 4, 0, 0)),
        write_run(tmp_path, "prefix_rft", 0, counts=(2, 2, 2, 2, 0, 0)),
        write_run(tmp_path, "base", 0, counts=(1, 0, 0, 0, 0, 0)),
    ]
    table = stats.compare(runs).set_index("method")
    assert list(table.index) == ["base", "prefix_rft"]
    ours = table.loc["prefix_rft"]
    assert ours["mean"] == ours["avg"] == pytest.approx((16 + 8) / (2 * 24))
    assert ours["pass"] == pytest.approx(4 / 6)
    assert ours["greedy"] == pytest.approx((4 + 0) / 12)
    assert ours["tokens"] == pytest.approx(10 + 24 / 12)
    assert ours["delta"] == pytest.approx(0.5 - 1 / 24)
    assert ours["low"] <= ours["mean"] <= ours["high"]
    assert (ours["seeds"], ours["problems"], ours["k"]) == (2, 6, 4)
    assert (ours["resampled"], table.loc["base", "resampled"]) == ("seeds and problems", "problems")
    assert math.isnan(table.loc["base", "delta"])


def test_equal_runs_give_equal_figures_in_any_order(tmp_path):
    runs = [write_run(tmp_path, m, s, counts=(s, 1, 2, 3, 4, 0)) for m in ("base", "rft") for s in range(2)]
    assert stats.compare(runs).equals(stats.compare(runs[::-1]))
    assert stats.verdicts(runs) == stats.verdicts(runs[::-1])


def test_without_base_the_difference_is_unknown_and_said_so(tmp_path):
    runs = [write_run(tmp_path, m) for m in ("rft", "prefix_rft")]
    assert stats.compare(runs)["delta"].isna().all()
    assert stats.verdicts(runs)[-1] == "There is no run of 'base' among these, so nothing is said about it."


def test_problems_are_aligned_by_id_not_by_row(tmp_path):
    a, b = (
        write_run(tmp_path, "rft", counts=(0, 1, 2, 3, 4, 4)),
        write_run(tmp_path, "prefix_rft", counts=(0, 1, 2, 3, 4, 4)),
    )
    path = b.path / "evaluation" / "test.parquet"
    b.evaluation("test").iloc[::-1].to_parquet(path)
    delta = stats.paired_delta([b], [a])
    assert (delta.mean, delta.low, delta.high) == (0.0, 0.0, 0.0)


def test_by_level_splits_the_problems(tmp_path):
    table = stats.by_level([write_run(tmp_path, counts=(4, 0, 4, 0, 4, 0))])
    assert table[["level", "problems", "mean"]].values.tolist() == [["easy", 3, 1.0], ["hard", 3, 0.0]]


def test_pass_curve_is_the_unbiased_estimate(tmp_path):
    counts = (0, 1, 2, 3, 4, 2)
    table = stats.pass_curve([write_run(tmp_path, counts=counts)])
    assert list(table["k"]) == [1, 2, 3, 4]
    for k, mean in zip(table["k"], table["mean"], strict=True):
        assert mean == pytest.approx(np.mean([pass_at_k(4, c, k) for c in counts]))


def test_curve_over_seeds_counts_those_that_got_there(tmp_path):
    runs = [write_run(tmp_path, "rft", 0), write_run(tmp_path, "rft", 1, done=False, steps=5)]
    table = stats.curve(runs, "reward_plain", "metrics").set_index("global_step")
    both = [run.metrics.set_index("global_step")["reward_plain"] for run in runs]
    assert table.loc[2, "mean"] == pytest.approx((both[0][2] + both[1][2]) / 2)
    assert table.loc[2, ["low", "high"]].tolist() == pytest.approx(sorted([both[0][2], both[1][2]]))
    assert table.loc[7, "mean"] == pytest.approx(both[0][7])
    assert table["n"].tolist() == [2] * 5 + [1] * 3
    assert table.loc[[5, 6, 7], ["low", "high"]].isna().all(axis=None)


def test_curve_reaches_nested_records_and_refuses_unknown_ones(tmp_path):
    run = write_run(tmp_path)
    assert stats.curve([run], "hard.avg")["mean"].iloc[0] == run.evaluations["hard"].iloc[0]["avg"]
    with pytest.raises(ConfigError, match=r"column = 'nothing' is not in the evaluations"):
        stats.curve([run], "nothing")


def test_records_of_a_growing_run_are_read_again(tmp_path):
    run = write_run(tmp_path, "rft", done=False, steps=3)
    assert len(stats.records(run, "metrics")) == 3
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"global_step": 3, "reward_plain": 0.5}\n{"global_step": 4, "rew')
    assert len(stats.records(run, "metrics")) == 4


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ((4,) * 6, (0,) * 6, "higher by 1.000 [1.000, 1.000] avg@4 on test"),
        ((0,) * 6, (4,) * 6, "lower by 1.000 [1.000, 1.000] avg@4 on test"),
        ((0, 1, 2, 3, 4, 2), (2, 1, 2, 3, 2, 2), "not separated, difference +0.000 ["),
    ],
)
def test_verdicts_say_it_whichever_way_it_went(tmp_path, ours, theirs, words):
    runs = [write_run(tmp_path, "prefix_rft", s, counts=ours) for s in (0, 1)]
    runs += [write_run(tmp_path, "rft", s, counts=theirs) for s in (0, 1)]
    found = [line for line in stats.verdicts(runs) if line.startswith("Prefix-RFT")]
    assert len(found) == 1
    assert f"against RFT (Dr.GRPO) {np.mean(theirs) / 4:.3f}" in found[0]
    assert words in found[0]
    assert found[0].endswith("over 2 seeds × 6 problems.")


def test_the_first_verdict_names_the_winner_even_if_it_is_another_method(tmp_path):
    runs = [write_run(tmp_path, "sft_then_rft", counts=(4,) * 6), write_run(tmp_path, "prefix_rft", counts=(1,) * 6)]
    first = stats.verdicts(runs)[0]
    assert first == (
        "Highest mean avg@4 on test: SFT→RFT, 1.000, ahead of the next, Prefix-RFT, by 0.750 [0.750, 0.750]."
    )


def test_one_seed_is_said(tmp_path):
    runs = [write_run(tmp_path, "base"), write_run(tmp_path, "sft"), *(write_run(tmp_path, "rft", s) for s in (0, 1))]
    by_start = {line.partition(" ")[0]: line for line in stats.verdicts(runs)}
    assert "over 1 seed × 6 problems; one seed of SFT, so only problems" in by_start["SFT"]
    assert by_start["RFT"].endswith("over 2 seeds × 6 problems.")


def refusals(out: Path):
    write_run(out, "rft", 0)
    yield [], r"runs = \[\] holds nothing"
    yield (
        [write_run(out, "rft", 0), write_run(out, "rft", 1, **{"rl.lr": 0.5})],
        r"rl.lr = 0.0003 and 0.5 among the runs of 'rft'; compare runs of one config",
    )
    yield [write_run(out, "rft", 0), write_run(out, "rft", 0)], r"seed = 0 comes twice among the runs of 'rft'"
    yield (
        [write_run(out, "rft", 0), write_run(out, "sft", 0, **{"evaluation.k": 5})],
        r"evaluation.k = 4 and 5 among the runs",
    )
    yield (
        [write_run(out, "rft", 0), write_run(out, "sft", 0, counts=(1, 2))],
        r"data.eval_problems = 2 and 6 problems of 'test' among the runs",
    )
    yield (
        [write_run(out, "rft", 0), write_run(out, "sft", 0, **{"evaluation.temperature": 0.6})],
        r"evaluation.temperature = 0.6 and 1.0 among the runs",
    )


def test_runs_that_cannot_be_compared_are_refused_in_one_sentence(tmp_path):
    for i, (runs, words) in enumerate(refusals(tmp_path)):
        with pytest.raises(ConfigError, match=words) as caught:
            stats.compare(runs)
        assert "\n" not in str(caught.value), i


def test_other_refusals(tmp_path):
    run = write_run(tmp_path)
    with pytest.raises(ConfigError, match=r"metric = 'best' is not known; use one of avg, pass"):
        stats.compare([run], metric="best")
    with pytest.raises(ConfigError, match=r"method = 'prefix_rft' is the only one"):
        stats.verdicts([run])
    with pytest.raises(ConfigError, match=r"runs_b = \[\] holds no run"):
        stats.paired_delta([run], [])
    with pytest.raises(RunError, match=r"no evaluation of 'ood'"):
        stats.compare([run], "ood")


def test_labels_tell_configs_of_one_method_apart(tmp_path):
    runs = [
        write_run(tmp_path, seed=s, counts=(keep, 1, 2, 3, 4, 0), **{"prefix.keep_fraction": keep / 4})
        for keep in (4, 1)
        for s in (1, 0)
    ]
    table = stats.compare(runs, label=lambda run: f"keep {run.config.prefix.keep_fraction}")
    assert list(table["method"]) == list(table["title"]) == ["keep 1.0", "keep 0.25"]
    assert list(table["seeds"]) == [2, 2]
    delta = stats.paired_delta(runs[:2], runs[2:])
    assert delta.mean == pytest.approx(3 / 24)


def test_costs_are_the_tokens_of_the_steps_so_far(tmp_path):
    run = write_run(tmp_path, "prefix_rft")  # 40 + 41 sampled tokens and 42 of prefixes a step
    paid = stats.spent(run)
    assert paid.index.to_list() == list(range(9))
    assert paid["sampled"].to_list() == [81.0 * step for step in range(9)]
    assert paid["trained"].iloc[-1] == 8 * 123 and paid["tokens"].iloc[-1] == 8 * 204
    assert stats.spent(write_run(tmp_path, "base")).to_numpy().tolist() == [[0.0] * 4]
    assert stats.spent(write_run(tmp_path, "sft"))["sampled"].iloc[-1] == 0


def test_areas_and_probabilities_of_improvement(tmp_path):
    rft = [write_run(tmp_path, "rft", seed, counts=counts) for seed, counts in enumerate([(1,) * 6, (3,) * 6])]
    sft = [write_run(tmp_path, "sft", seed, counts=counts) for seed, counts in enumerate([(1,) * 6, (2,) * 6])]
    table = stats.improvement([*rft, *sft])
    # Pairs of RFT and SFT: 1-1 is a tie, 1-2 lost, 3-1 and 3-2 won.
    assert table.loc["RFT (Dr.GRPO)", "SFT"] == 2.5 / 4
    assert table.loc["SFT", "RFT (Dr.GRPO)"] == 1.5 / 4
    areas = stats.area_under_curve([*rft, *sft])
    curve = stats.seed_curves(rft, "avg")
    assert curve.index.to_list() == [0, 4, 8]
    for seed in (0, 1):
        first, middle, last = curve[seed]
        expected = ((first + middle) / 2 + (middle + last) / 2) / 2
        row = areas[areas["method"] == "rft"].iloc[0]
        assert row[f"seed_{seed}"] == pytest.approx(expected)
    assert stats.area_under_curve([write_run(tmp_path, "base")]).empty


# ---------------------------------------------------------------------- against SciPy


def test_iqm_leaves_out_the_outer_quarters():
    # Eight cells: the mean of the middle four, (2 + 3 + 4 + 5) / 4.
    assert stats.iqm(np.array([[0.0, 1, 2, 3], [4, 5, 6, 100]])).mean == 3.5
    # One problem: the bootstrap of its seeds, as SciPy makes it.
    column = np.random.default_rng(0).random((9, 1))
    found = stats.iqm(column)
    expected = scipy.stats.bootstrap(
        (column[:, 0],),
        lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=4000,
        method="percentile",
        rng=0,
    ).confidence_interval
    assert found.mean == pytest.approx(scipy.stats.trim_mean(column[:, 0], 0.25))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert stats.iqm(np.array([[0.5, 0.5], [0.5, 0.5]])) == stats.Interval(0.5, 0.5, 0.5, 2)
    assert math.isnan(stats.iqm(np.array([[np.nan, 1.0]])).mean)


def test_probability_of_improvement_is_mann_whitney():
    draws = np.random.default_rng(1)
    a, b = draws.integers(0, 5, 7) / 5, draws.integers(0, 4, 6) / 5
    expected = scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert stats.probability_of_improvement(a, b).mean == pytest.approx(expected)
    # 3 beats both, 1 ties with one and beats the other: (1 + 1 + 1/2 + 1) / 4.
    assert stats.probability_of_improvement([3, 1], [1, 0]).mean == 0.875
    assert stats.probability_of_improvement([2, 3], [0, 1]) == stats.Interval(1.0, 1.0, 1.0, 2)
    assert math.isnan(stats.probability_of_improvement([], [1.0]).mean)
