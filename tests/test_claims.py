"""Claims: what the file may say, what it does say, and verdicts worked out by hand."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import yaml
from run_factory import SMALL, write_run
from scipy import stats as scipy_stats

from prefix_rft_lab import claims, cli, plots, stats, sweeps
from prefix_rft_lab.config import ConfigError, flatten, preset

PLAIN = {
    "id": "a",
    "claim": "A is higher than B.",
    "source": "here",
    "written": "before",
    "paper": "2 against 1",
    "test": "higher",
    "of": "methods / prefix_rft",
    "than": "methods / rft",
    "measure": "avg",
    "smallest": 0.02,
}


def write(path, *entries):
    path.write_text(yaml.safe_dump(list(entries), allow_unicode=True), encoding="utf-8")
    return path


# ---------------------------------------------------------------------- the file


def test_every_arm_that_the_kit_claims_something_of_is_planned():
    plans = {name: sweeps.plan(name, "full") for name in sweeps.names() if not name.startswith("tuning")}
    for claim in claims.load():
        for sweep, arm in claim.sides:
            seeds = [planned.config.seed for planned in plans[sweep].runs if planned.label == arm]
            assert len(seeds) >= (1 if arm == "base" else 3), (claim.id, sweep, arm)


def test_claims_of_a_sweep():
    ids = [claim.id for claim in claims.of_sweep("demonstration_fraction")]
    assert ids == ["tenth_of_demonstrations", "hundredth_of_demonstrations_over_rft"]
    with pytest.raises(ConfigError, match="sweep = 'nothing' is in no claim"):
        claims.of_sweep("nothing")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mesure": "avg"}, r"claim 'a': mesure = 'avg' is not a field of the claim; did you mean measure or source\?"),
        ({"smallest": None}, r"claim 'a': smallest = None does not fit test = 'higher'"),
        ({"smallest": float("nan")}, r"claim 'a': smallest = nan cannot be used"),
        ({"smallest": 0}, r"claim 'a': smallest = 0 cannot be used"),
        ({"range": [0, 1]}, r"claim 'a': range = \(0.0, 1.0\) does not fit test = 'higher'"),
        ({"test": "within", "smallest": None, "range": [2, 1]}, r"range = \(2.0, 1.0\) is empty"),
        ({"test": "within", "range": [1, 2]}, r"smallest = 0.02 does not fit test = 'within'"),
        ({"test": "no_worse", "than": None}, r"than is missing"),
        ({"measure": "metrics.reward"}, r"at = None does not fit measure = 'metrics.reward'"),
        ({"at": "last"}, r"at = 'last' does not fit measure = 'avg'"),
        ({"per": "metrics.reward"}, r"per = 'metrics.reward' does not fit measure = 'avg'"),
        ({"measure": "<script>"}, r"measure = '<script>' cannot be used"),
        ({"of": "methods"}, r"of = 'methods' cannot be used"),
        ({"test": "better"}, r"test = 'better' cannot be used"),
        ({"written": "later"}, r"written = 'later' cannot be used"),
        ({"claim": ""}, r"claim = '' cannot be used"),
    ],
)
def test_a_claim_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        claims.load(write(tmp_path / "claims.yaml", PLAIN | changes))
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_no_claims_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a file"):
        claims.load(tmp_path / "none.yaml")
    for text in ("", "a: 1", "- 1", "[]"):
        (tmp_path / "claims.yaml").write_text(text)
        with pytest.raises(ConfigError, match="holds no list of claims"):
            claims.load(tmp_path / "claims.yaml")
    (tmp_path / "claims.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        claims.load(tmp_path / "claims.yaml")
    with pytest.raises(ConfigError, match="claim 'a': id = 'a' comes twice"):
        claims.load(write(tmp_path / "claims.yaml", PLAIN, copy.deepcopy(PLAIN)))
    with pytest.raises(ConfigError, match="claim 1: id is missing"):
        claims.load(write(tmp_path / "claims.yaml", {key: PLAIN[key] for key in PLAIN if key != "id"}))


# ---------------------------------------------------------------------- the rule


def claim(**changes):
    return claims.Claim.model_validate(PLAIN | changes)


WITHIN = {"test": "within", "smallest": None, "range": [0.05, 0.1]}


@pytest.mark.parametrize(
    ("changes", "effect", "low", "high", "verdict"),
    [
        ({}, 0.05, 0.01, 0.09, "supported"),
        ({}, 0.02, 0.01, 0.03, "supported"),  # exactly the smallest effect
        ({}, 0.04 - 0.02, 0.01, 0.03, "supported"),
        ({}, 0.019, 0.01, 0.03, "undecided"),  # surely above 0, yet the estimate does not matter
        ({}, 0.05, 0.0, 0.1, "undecided"),  # touches 0
        ({}, -0.03, -0.08, 0.019, "contradicted"),
        ({}, -0.03, -0.08, 0.02, "undecided"),  # touches the smallest effect
        ({}, 0.01, 0.005, 0.015, "contradicted"),  # surely above 0, surely too small to matter
        ({}, float("nan"), float("nan"), float("nan"), "undecided"),
        ({}, 0.5, float("nan"), float("nan"), "undecided"),
        ({"test": "no_worse"}, -0.01, -0.019, 0.0, "supported"),
        ({"test": "no_worse"}, -0.01, -0.02, 0.0, "undecided"),
        ({"test": "no_worse"}, -0.05, -0.08, -0.021, "contradicted"),
        ({"test": "no_worse"}, -0.05, -0.08, -0.02, "undecided"),
        (WITHIN, 0.07, 0.05, 0.1, "supported"),
        (WITHIN, 0.07, 0.049, 0.1, "undecided"),
        (WITHIN, 0.2, 0.11, 0.3, "contradicted"),
        (WITHIN, 0.2, 0.1, 0.3, "undecided"),
        (WITHIN, 0.01, 0.0, 0.049, "contradicted"),
    ],
)
def test_rule(changes, effect, low, high, verdict):
    assert claims.decide(claim(**changes), effect, low, high) == verdict


# ---------------------------------------------------------------------- verdicts on runs


FIELDS = SMALL | {field: dict(flatten(preset("tiny").to_dict()))[field] for field in ("rl.lr", "sft.lr")}
COUNTS = {
    "prefix_rft": [(3, 4, 3, 4, 3, 4), (4, 4, 3, 4, 4, 4), (4, 3, 4, 4, 3, 4)],
    "rft": [(1, 0, 1, 1, 0, 1), (0, 1, 0, 1, 1, 1), (1, 1, 0, 0, 1, 0)],
    "sft": [(3, 4, 3, 4, 3, 4), (4, 3, 4, 4, 4, 4), (4, 4, 3, 4, 3, 4)],
}


def sweep_of(*methods, name="methods", seeds=(0, 1, 2)):
    arms = {method: {"method": method} for method in methods}
    return sweeps.plan(
        {"name": name, "folder": "tiny", "tuned": True, "set": FIELDS, "arms": arms, "seeds": list(seeds)}
    )


def runs_of(out, *methods, seeds=(0, 1, 2), **more):
    return [write_run(out, method, seed, counts=COUNTS[method][seed], **more) for method in methods for seed in seeds]


def test_a_verdict_by_hand(tmp_path):
    results = {"methods": (sweep_of("prefix_rft", "rft"), runs_of(tmp_path, "prefix_rft", "rft"))}
    (verdict,) = claims.judge([claim()], results, tested=4)
    a, b = (np.array(COUNTS[method]) / 4 for method in ("prefix_rft", "rft"))
    parts = [
        (a.mean(1).var(ddof=1) / 3, 2),
        (b.mean(1).var(ddof=1) / 3, 2),
        ((a.mean(0) - b.mean(0)).var(ddof=1) / 6, 5),
    ]
    variance = sum(v for v, _ in parts)
    freedom = variance**2 / sum(v**2 / n for v, n in parts)
    half = scipy_stats.t.ppf(1 - 0.05 / 4 / 2, freedom) * math.sqrt(variance)
    assert verdict.effect == pytest.approx(a.mean() - b.mean())
    assert (verdict.low, verdict.high) == pytest.approx((verdict.effect - half, verdict.effect + half))
    assert verdict.alone_low > verdict.low
    assert (verdict.verdict, verdict.seeds, verdict.problems, verdict.notes) == ("supported", "3 v 3", 6, ())
    assert verdict.sentence.startswith("A is higher than B: supported. Expected at least 0.02, here +0.")
    lower = claims.judge([claim(test="lower")], results, tested=4)[0]
    assert (lower.verdict, lower.effect, lower.low) == (
        "contradicted",
        pytest.approx(-verdict.effect),
        pytest.approx(-verdict.high),
    )
    # Another sweep that shares these runs, and runs of no sweep, change nothing.
    stranger = write_run(tmp_path, "rft", 0, **{"rl.lr": 0.1})
    both = results | {"main": (sweep_of("rft", name="main"), [*results["methods"][1], stranger])}
    assert claims.judge([claim()], both, tested=4) == [verdict]
    # More claims, wider intervals; by default those of the kit's file count.
    assert claims.judge([claim()], results)[0].low < verdict.low


def test_what_is_not_there_is_missing_and_named(tmp_path):
    plan = sweep_of("prefix_rft", "rft")
    runs = runs_of(tmp_path, "prefix_rft")
    (verdict,) = claims.judge([claim()], {"methods": (plan, runs)})
    assert verdict.verdict == "missing" and "prefix-rft sweep methods" in verdict.sentence
    one = claims.judge([claim()], {"methods": (plan, [*runs, *runs_of(tmp_path, "rft", seeds=(0, 1))])})[0]
    assert one.seeds == "3 v 2" and "2 of 3 planned runs of 'rft' are finished" in one.sentence
    unfinished = write_run(tmp_path, "rft", 2, done=False)
    assert claims.judge([claim()], {"methods": (plan, [*runs, unfinished])})[0].verdict == "missing"
    absent = claims.judge([claim(than="methods / luffy")], {"methods": (plan, runs)})[0]
    assert absent.verdict == "missing" and "no arm 'luffy'" in absent.sentence
    many = claims.judge([claim(split="many")], {"methods": (plan, [*runs, *runs_of(tmp_path, "rft")])})[0]
    assert many.verdict == "missing" and "evaluation of 'many'" in many.sentence
    assert {v.verdict for v in claims.judge(claims.load(), {})} == {"missing", "not judged"}
    with pytest.raises(ConfigError, match="comes from two folders"):
        claims.judge([claim()], {"methods": (plan, [*runs, *runs_of(tmp_path / "b", "prefix_rft")])})


def test_one_seed_decides_nothing(tmp_path):
    plan = sweep_of("prefix_rft", "rft", seeds=(0,))
    runs = runs_of(tmp_path, "prefix_rft", "rft", seeds=(0,))
    (verdict,) = claims.judge([claim()], {"methods": (plan, runs)}, tested=1)
    assert verdict.verdict == verdict.alone == "undecided" and "one seed" in verdict.sentence
    assert claims.table([verdict]).loc[0, "here"].endswith("(one seed)")


def test_two_seeds_that_decide_nothing_have_no_interval_in_words(tmp_path):
    runs = runs_of(tmp_path, "prefix_rft", "sft", seeds=(0, 1))
    plan = sweep_of("prefix_rft", "sft", seeds=(0, 1))
    (verdict,) = claims.judge([claim(than="methods / sft")], {"methods": (plan, runs)}, tested=1)
    assert verdict.verdict == "undecided" and verdict.low < 0 < verdict.high
    assert claims.table([verdict]).loc[0, "here"] == f"{verdict.effect:+.3f} (two seeds decide little)"


def test_an_arm_without_a_learning_rate_of_its_own_is_not_judged(tmp_path):
    arms = {"prefix_rft": {"method": "prefix_rft"}, "rft": {"method": "rft"}, "frozen": {"prefix.loss": "frozen"}}
    arms |= {"dr_po": {"method": "dr_po"}, "fewer": {"method": "rft", "data.demonstration_fraction": 0.5}}
    plan = sweep_of("prefix_rft", "rft")
    full = {"name": "methods", "folder": "tiny", "tuned": True, "set": FIELDS, "arms": arms, "seeds": [0, 1, 2]}
    runs = runs_of(tmp_path, "prefix_rft", "rft")

    def verdict_on(of, values):
        results = {"methods": (sweeps.plan(values), runs)}
        return claims.judge([claim(of=f"methods / {of}", than="methods / rft")], results)[0]

    # They take Prefix-RFT's rate over; nothing is shown of them, whatever they scored, and what to do is said.
    for arm in ("frozen", "dr_po"):
        verdict = verdict_on(arm, full)
        assert (verdict.verdict, verdict.alone) == ("not judged", "not judged") and math.isnan(verdict.effect)
        assert f"not judged. Borrowed learning rate: {arm!r}" in verdict.sentence
        assert claims.table([verdict]).loc[0, "here"] == ""
    assert verdict_on("prefix_rft", full).verdict == "supported"
    # Other data are no other method.
    assert verdict_on("fewer", full).verdict == "missing"
    # Where nothing was tuned, nothing is judged.
    assert verdict_on("prefix_rft", full | {"tuned": False}).verdict == "not judged"
    assert claims.judge([claim()], {"methods": (plan, runs)})[0].verdict == "supported"


def test_every_arm_that_is_judged_is_in_a_tuning_sweep():
    """Four learning rates each."""
    rates: dict[tuple, set] = {}
    for name in ("tuning", "tuning_parts"):
        plan = sweeps.plan(name, "full")
        for run in plan.runs:
            part = sweeps.part_of({**plan.sweep.arms[run.arm], **run.values})
            rates.setdefault((run.config.method, str(part)), set()).add((run.config.rl.lr, run.config.sft.lr))
    for each in claims.load():
        for sweep, arm in each.sides:
            plan = sweeps.plan(sweep, "full")
            run = next(run for run in plan.runs if run.label == arm)
            part = sweeps.part_of({**plan.sweep.arms[run.arm], **run.values})
            if run.config.method != "base":
                assert len(rates[run.config.method, str(part)]) == 4, (each.id, arm)


def test_no_spread_decides_nothing(tmp_path):
    # All problems solved by both: "fewer" is neither shown nor excluded.
    runs = [write_run(tmp_path, m, s, counts=(4,) * 48) for m in ("sft", "rft") for s in (0, 1, 2)]
    plan = sweep_of("sft", "rft")
    many = claim(test="lower", of="methods / sft", than="methods / rft", measure="pass")
    (verdict,) = claims.judge([many], {"methods": (plan, runs)}, tested=36)
    part = 1 - (0.025 / 36) ** (1 / 48)
    assert (verdict.effect, verdict.low, verdict.high) == pytest.approx((0, -part, part))
    assert (verdict.verdict, verdict.alone) == ("undecided", "undecided")


def test_several_versions_of_the_code_are_marked(tmp_path):
    runs = runs_of(tmp_path, "prefix_rft", "rft")
    path = runs[0].path / "env.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source": "other"}))
    (verdict,) = claims.judge([claim()], {"methods": (sweep_of("prefix_rft", "rft"), runs)}, tested=1)
    assert "2 versions of the code" in verdict.sentence


def test_recorded_columns(tmp_path):
    results = {"methods": (sweep_of("prefix_rft"), runs_of(tmp_path, "prefix_rft"))}
    share = claim(**WITHIN, measure="metrics.prefix_share", at="mean", than=None)
    (verdict,) = claims.judge([share], results)
    # Three seeds at 0.124, 0.125 and 0.126.
    half = scipy_stats.t.ppf(1 - 0.05 / len(claims.load()) / 2, 2) * 0.001 / math.sqrt(3)
    assert verdict.problems == 0
    assert (verdict.effect, verdict.low, verdict.high) == pytest.approx((0.125, 0.125 - half, 0.125 + half))
    assert verdict.verdict == "contradicted" and verdict.seeds == "3"
    ratio = claim(**WITHIN, measure="metrics.grad_norm_prefix", per="metrics.grad_norm_on_policy", at="mean", than=None)
    frames = [run.metrics for run in results["methods"][1]]
    by_hand = np.mean([f["grad_norm_prefix"].mean() / f["grad_norm_on_policy"].mean() for f in frames])
    assert claims.judge([ratio], results)[0].effect == pytest.approx(by_hand)
    decline = claim(measure="metrics.prefix_ratio", at="decline", than=None)
    by_hand = np.mean([f["prefix_ratio"].iloc[0] - f["prefix_ratio"].iloc[-1] for f in frames])
    assert claims.judge([decline], results)[0].effect == pytest.approx(by_hand)
    none = claim(**WITHIN, measure="metrics.nothing", at="last", than=None)
    assert "No run of Prefix-RFT has recorded" in claims.judge([none], results)[0].sentence


def test_table_is_whole_and_keeps_hostile_text(tmp_path):
    hostile = claim(claim="<img src=x> | `a`.", paper="$1$")
    results = {"methods": (sweep_of("prefix_rft", "rft"), runs_of(tmp_path, "prefix_rft", "rft"))}
    table = claims.table(claims.judge([hostile], results))
    assert table.loc[0, "claim"] == "<img src=x> | `a`." and table.loc[0, "verdict"] == "supported"
    assert len(claims.verdict_table(results)) == len(claims.load())
    assert len(claims.verdict_table(results, "components")) == len(claims.of_sweep("components"))


# ---------------------------------------------------------------------- the estimate


def test_estimate_of_one_problem_is_welch():
    a, b = np.array([[0.1], [0.4], [0.3]]), np.array([[0.2], [0.9], [0.8], [0.1]])
    for level in (0.95, 0.9986):
        welch = scipy_stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False).confidence_interval(level)
        assert stats.estimate(a, b).interval(level) == pytest.approx((welch.low, welch.high))


def test_estimate_at_the_edges():
    assert all(map(math.isnan, stats.estimate(np.zeros((3, 4)), np.zeros((3, 4))).interval()))
    assert all(map(math.isnan, stats.estimate(np.array([[1.0]])).interval()))
    assert math.isnan(stats.estimate(np.array([[np.nan], [1.0]])).mean)
    assert math.isnan(stats.estimate(np.zeros((0, 3))).mean)


# ---------------------------------------------------------------------- divergence, pictures, the command


def test_a_diverged_run_counts_with_what_it_scored(tmp_path):
    runs = runs_of(tmp_path, "prefix_rft", "rft")
    path = runs[0].path / "evaluation" / "test.parquet"
    table = runs[0].evaluation("test").assign(correct=0, greedy=0.0, tokens=float("nan"))
    table.to_parquet(path)
    (runs[0].path / "DIVERGED.json").write_text(json.dumps({"sentence": "loss = nan at step 3", "global_step": 3}))
    results = {"methods": (sweep_of("prefix_rft", "rft"), runs)}
    (verdict,) = claims.judge([claim()], results)
    others = np.array(COUNTS["prefix_rft"][1:]) / 4
    assert verdict.effect == pytest.approx(others.mean() * 2 / 3 - np.mean(COUNTS["rft"]) / 4)
    assert verdict.verdict == "undecided" and "1 of 6 runs diverged" in verdict.sentence
    (lengths,) = claims.judge([claim(measure="tokens", smallest=1.0)], results)
    assert lengths.seeds == "2 v 3" and "2 of 3 runs of Prefix-RFT have a value of 'tokens'" in lengths.sentence
    row = stats.compare(runs).set_index("method").loc["prefix_rft"]
    assert row["diverged"] == 1
    assert row["seeds"] == 3 and row["tokens"] == pytest.approx(10 + np.mean(COUNTS["prefix_rft"][1:]))


def test_figure_of_verdicts(tmp_path):
    results = {"methods": (sweep_of("prefix_rft", "rft", "sft"), runs_of(tmp_path, "prefix_rft", "rft", "sft"))}
    share = claim(**WITHIN, measure="metrics.prefix_share", at="mean", than=None)
    hostile = claim(claim="$x_1$ <b> beats.", than="methods / sft")
    table = claims.table(claims.judge([claim(), hostile, share, claim(than="methods / luffy")], results))
    figure = plots.verdicts(table)
    assert list(figure.data["verdict"]) == ["supported", "undecided", "contradicted"]  # the missing one is not drawn
    assert figure.data["scaled_effect"].tolist() == pytest.approx(
        [table.loc[0, "effect"] / 0.02, table.loc[1, "effect"] / 0.02, (0.125 - 0.075) / 0.025]
    )
    assert "1 supported, 1 contradicted, 1 undecided" in figure.caption
    assert figure.png(50)
    with pytest.raises(ConfigError, match="no judged claim"):
        plots.verdicts(table.iloc[3:])


def test_command(tmp_path, capsys):
    assert cli.main(["claims", "--list", "--sweep", "problem_fraction"]) == 0
    printed = capsys.readouterr().out
    assert "tenth_of_problems" in printed and "no_worse than problem_fraction / 100% · prefix_rft, 0.03" in printed
    plan = sweeps.plan("main", "smoke")
    for planned in plan.runs:
        config = planned.config
        changes = {
            "name": config.name,
            **{
                field: value
                for field, value in dict(flatten(config.to_dict())).items()
                if field not in ("name", "method", "seed")
            },
        }
        write_run(tmp_path / "smoke" / "runs", config.method, config.seed, counts=(1, 2, 0, 2), **changes)
    assert cli.main(["claims", "--profile", "smoke", "--out", str(tmp_path), "--sweep", "methods"]) == 0
    printed = capsys.readouterr().out
    assert "over_rft: Prefix-RFT scores higher than RFT: undecided." in printed and "(1 v 1 seeds" in printed
    assert "prefix-rft sweep methods --profile smoke" in printed
    assert cli.main(["claims", "--profile", "nothing"]) == 2
