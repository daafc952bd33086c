"""Tables of scores and their intervals, pairing, curves, divergence, refusals, sentences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from run_factory import write_run

from prefix_rft_lab import stats
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.runs import RunError
from prefix_rft_lab.runs.summary import pass_at_k


def test_spread_over_seeds_widens_the_interval():
    same = np.tile(np.linspace(0, 1, 50), (5, 1))
    spread = same + np.linspace(-0.3, 0.3, 5)[:, None]
    found = [stats.estimate(same), stats.estimate(spread)]
    width = [one.interval()[1] - one.interval()[0] for one in found]
    assert found[0].mean == pytest.approx(found[1].mean)
    assert width[1] > 1.5 * width[0]


def test_pairing_is_tighter_than_the_sides_alone():
    draws = np.random.default_rng(2)
    b = draws.random((1, 60)) * 0.8
    a = b + draws.uniform(0.05, 0.15, (1, 60))
    delta, alone = stats.measure(a, b).interval(), stats.measure(a).interval()
    assert delta[1] - delta[0] < 0.3 * (alone[1] - alone[0])
    assert delta[0] > 0


def test_problems_that_come_twice_are_refused(tmp_path):
    run = write_run(tmp_path)
    path = run.path / "evaluation" / "test.parquet"
    table = run.evaluation("test")
    table.loc[1, "id"] = "test-0"
    table.to_parquet(path)
    with pytest.raises(ConfigError, match="id = 'test-0' comes twice among the problems of 'test'"):
        stats.compare([run])


def test_scores_are_one_long_table(tmp_path):
    runs = [write_run(tmp_path, m, s, counts=(s, 1, 2, 3, 4, 0)) for m in ("rft", "sft") for s in (0, 1)]
    table = stats.scores(runs)
    assert list(table) == ["group", "title", "seed", "problem", "level", "k", "metric", "value"]
    assert len(table) == 4 * 6 * 4
    own = table.query("group == 'rft' and metric == 'avg' and problem == 'test-0'")
    assert own.set_index("seed")["value"].to_dict() == {0: 0.0, 1: 0.25}
    assert stats.matrix(table, "sft", "tokens").tolist() == [[10 + s, 11, 12, 13, 14, 10] for s in (0, 1)]


def test_scores_of_groups_are_tables_by_group(tmp_path):
    runs = [write_run(tmp_path, m, s, counts=(s, 1, 2, 3, 4, 0)) for m in ("rft", "sft") for s in (0, 1)]
    found = stats.scores(stats.group(runs), "test")
    assert list(found) == ["sft", "rft"]
    assert found["rft"].problems == 6
    assert found["rft"].values["avg"].tolist() == [[s / 4, 0.25, 0.5, 0.75, 1, 0] for s in (0, 1)]
    assert stats.two_level(found["rft"].values["avg"]).mean == pytest.approx(stats.compare(runs)["mean"][1])


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
    assert (ours["over"], table.loc["base", "over"]) == ("seeds and problems", "problems")
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
    (row,) = stats.deltas([a, b], "rft").to_dict("records")
    assert row["delta"] == 0.0


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
    # Two seeds: t of 97.5% with one degree of freedom is 12.706, the error half their distance.
    half = 12.7062047 * abs(both[0][2] - both[1][2]) / 2
    mean = table.loc[2, "mean"]
    assert table.loc[2, ["low", "high"]].tolist() == pytest.approx([mean - half, mean + half])
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
        ((4,) * 6, (0,) * 6, "higher by 1.000 [0.081, 1.000] avg@4 on test"),
        ((0,) * 6, (4,) * 6, "lower by 1.000 [0.081, 1.000] avg@4 on test"),
        (
            (0, 1, 2, 3, 4, 2),
            (2, 1, 2, 3, 2, 2),
            "not separated (two seeds decide little), difference +0.000 avg@4 on test, over",
        ),
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
    # Six problems without spread: the part that could come out otherwise is up to 1 - 0.025^(1/6), by up to 2.
    least = 1 - 2 * (1 - 0.025 ** (1 / 6))
    assert least == pytest.approx(0.081, abs=5e-4)


def test_the_first_verdict_names_the_winner_even_if_it_is_another_method(tmp_path):
    runs = [write_run(tmp_path, "sft_then_rft", counts=(4,) * 40), write_run(tmp_path, "prefix_rft", counts=(1,) * 40)]
    # 40 problems without spread: up to 1 - 0.025^(1/40) of them could lie 1.75 lower, or 0.25 higher.
    part = 1 - 0.025 ** (1 / 40)
    low, high = 0.75 - 1.75 * part, 0.75 + 0.25 * part
    first = stats.verdicts(runs)[0]
    assert first == (
        f"Highest mean avg@4 on test: SFT→RFT, 1.000, ahead of the next, Prefix-RFT, by 0.750 [{low:.3f}, {high:.3f}]."
    )


def test_one_seed_is_said(tmp_path):
    runs = [write_run(tmp_path, "base"), write_run(tmp_path, "sft"), *(write_run(tmp_path, "rft", s) for s in (0, 1))]
    by_start = {line.partition(" ")[0]: line for line in stats.verdicts(runs)}
    assert "over 1 seed × 6 problems; one seed of SFT, so the interval says nothing of other seeds" in by_start["SFT"]
    assert by_start["RFT"].endswith("over 2 seeds × 6 problems.")


def test_the_answer_is_one_sentence_and_says_how_few_seeds_there_are(tmp_path):
    made = {"base": (0,), "sft": (4,), "rft": (1, 1), "prefix_rft": (3, 3, 3)}
    runs = [write_run(tmp_path, m, s, counts=(c,) * 40) for m, own in made.items() for s, c in enumerate(own)]
    assert stats.answer(runs) == (
        "Highest mean avg@4 on test: SFT, 1.000; Prefix-RFT, 0.750, is higher than Base policy and RFT (Dr.GRPO), lower "
        "than SFT; one seed of SFT says nothing of others; two seeds decide little."
    )
    assert stats.answer(runs[:1] + runs[4:]) == (
        "Highest mean avg@4 on test: Prefix-RFT, 0.750; it is higher than Base policy."
    )


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
    (row,) = stats.deltas(runs, "keep 0.25", label=lambda run: f"keep {run.config.prefix.keep_fraction}").to_dict(
        "records"
    )
    assert row["delta"] == pytest.approx(3 / 24)


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


# ---------------------------------------------------------------------- divergence


def test_a_run_that_diverged_counts_as_0_from_there_on(tmp_path):
    whole = write_run(tmp_path, "rft", 0)
    lost = write_run(tmp_path, "rft", 1, steps=6)
    lines = (lost.path / "evaluations.jsonl").read_text().splitlines()
    (lost.path / "evaluations.jsonl").write_text("\n".join(lines[:2]) + "\n")  # steps 0 and 4; it diverged before 8
    (lost.path / "DIVERGED.json").write_text(json.dumps({"sentence": "loss = nan at step 6", "global_step": 6}))
    frame = stats.seed_curves([whole, lost], "avg")
    kept = lost.evaluations["avg"].tolist()
    assert frame[1].to_dict() == {0: kept[0], 4: kept[1], 8: 0.0}
    areas = stats.area_under_curve([whole, lost]).iloc[0]
    assert areas["seed_1"] == pytest.approx(((kept[0] + kept[1]) / 2 + kept[1] / 2) / 2)
    ours = frame[0].tolist()
    assert areas["seed_0"] == pytest.approx(((ours[0] + ours[1]) / 2 + (ours[1] + ours[2]) / 2) / 2)
    # Alone it ends at 0 as well; rewards do, and what is no score stays unknown.
    assert stats.seed_curves([lost], "avg")[1].to_dict() == {0: kept[0], 4: kept[1], 8: 0.0}
    assert stats.seed_curves([lost], "reward", "metrics")[1].tolist() == [0.5] * 6 + [0.0] * 2
    assert stats.seed_curves([lost], "loss", "metrics").index.to_list() == list(range(6))
    assert len(stats.cost_curve([whole, lost]).dropna(subset="cost")) == 3


# ---------------------------------------------------------------------- against SciPy


def test_probability_of_improvement_is_mann_whitney(tmp_path):
    a, b = (0, 3, 1, 4, 2), (1, 1, 3)
    runs = [
        write_run(tmp_path, m, s, counts=(c,) * 6) for m, own in (("rft", a), ("sft", b)) for s, c in enumerate(own)
    ]
    expected = scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert stats.improvement(runs).loc["RFT (Dr.GRPO)", "SFT"] == pytest.approx(expected)
