"""The step again: nothing changed gives the recorded bits; a changed knob gives those of a run whose config changes there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefix_rft_lab import ConfigError, RunError, plots, preset, train
from prefix_rft_lab.lab.again import Step, again
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.runs.run import Run, RunWriter
from prefix_rft_lab.training.trainer import Trainer
from prefix_rft_lab.widgets import StepExplorer

SMALL = {
    "rl.steps": 5,
    "sft.steps": 3,
    "rollout.problems_per_step": 4,
    "sft.batch_rows": 16,
    "data.train_problems": 64,
    "data.eval_problems": 12,
    "evaluation.problems": 12,
    "evaluation.every": 0,
    "evaluation.k": 1,
    "evaluation.hard_tries": 0,
    "records.tokens_every": 0,
    "records.checkpoint_every": 0,
    "relift.batch_problems": 4,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A finished run of each method, trained when it is asked for."""
    out = tmp_path_factory.mktemp("runs")

    class Runs(dict):
        def __missing__(self, method: str) -> Run:
            changes = {k: v for k, v in SMALL.items() if k != "relift.batch_problems" or method == "relift"}
            self[method] = train(preset("tiny", method=method, **changes), out=out, progress=False)
            return self[method]

    return Runs()


def equal(weights: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "base"])
def test_nothing_changed_gives_the_recorded_bits(runs, method):
    run = runs[method]
    last = len(run.metrics) - 1
    step = run.again(last)
    assert step.exact, step.note
    assert set(step.replay.differences.values()) == {0.0}
    assert sorted(step.replay.differences) == list(range(last + 1))
    final = load_file(run.path / "model" / "model.safetensors")
    names = [name for name, _ in step.replay.trainer.model.named_parameters()]
    for name, ours in zip(names, step.really.state.weights, strict=True):
        assert name not in final or torch.equal(ours, final[name]), name
    assert "to the bit" in step.note


def by_hand(step: Step, changes: dict) -> list[torch.Tensor]:
    """Weights after the step by a trainer of its own, whose config changes there, every row sampled."""
    config, changed = step.replay.config, step.replay.config.replace(**changes)
    with Trainer(config, RunWriter(config, step.replay.run.path.parent / "by-hand")) as hand:
        hand.config = hand.updater.config = hand.recorder.config = changed
        optimizers = hand.optimizers(step.stage)
        with torch.no_grad():
            for parameter, value in zip(hand.model.parameters(), step.state.weights, strict=True):
                parameter.copy_(value)
        for name, one in optimizers.items():
            groups = [(group["betas"], group["weight_decay"]) for group in one.param_groups]
            one.load_state_dict(copy.deepcopy(step.state.optimizers[name]))
            for group, (betas, decay) in zip(one.param_groups, groups, strict=True):
                group["betas"], group["weight_decay"] = betas, decay
        hand.replay = list(step.state.place.replay)
        hand.engine.weights_changed()
        hand.step(step.stage, optimizers, step.place.step, step.number)
        return [p.detach().clone() for p in hand.model.parameters()]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("prefix_rft", {"prefix.keep": "bottom"}),
        ("prefix_rft", {"prefix.keep_fraction": 1.0}),
        ("prefix_rft", {"prefix.low": 0.0, "prefix.high": 0.3}),
        ("prefix_rft", {"rl.betas": [0.5, 0.9]}),
        ("prefix_rft", {"rl.lr": 1e-3}),
        ("luffy", {"luffy.gamma": 0.5}),
        ("uft", {"uft.nll_weight": 0.1}),
        ("sft", {"sft.lr": 3e-3}),
    ],
)
def test_a_changed_knob_is_a_run_that_changes_there(runs, method, changes):
    step = runs[method].again(1)
    other = step.otherwise(**changes)
    assert equal(other.state.weights, by_hand(step, changes))
    assert not equal(other.state.weights, step.really.state.weights)


def test_steps_that_follow_are_those_of_the_run(runs):
    run = runs["prefix_rft"]
    assert equal(run.again(1).otherwise(then=3).state.weights, run.again(4).really.state.weights)


def test_a_muted_row_and_a_changed_score(runs):
    step = runs["prefix_rft"].again(2)
    ones = step.otherwise(weights=[1.0] * len(step.rows))
    assert equal(ones.state.weights, step.really.state.weights)
    trained = step.effects()["row"].tolist()
    assert trained
    muted = step.otherwise(without=trained[:1])
    assert not equal(muted.state.weights, step.really.state.weights)
    # Muted rows stay in baselines: the others' advantages are as they were.
    assert torch.equal(muted.result.advantages, step.really.result.advantages)
    flipped = step.otherwise(scores={trained[0]: 1.0 - step.rows[trained[0]].score})
    assert not torch.equal(flipped.result.advantages, step.really.result.advantages)
    all_muted = step.otherwise(without=range(len(step.rows)))
    assert equal(all_muted.state.weights, step.momentum.state.weights)
    assert all_muted.result.grad_norm == 0


def test_another_methods_stage(runs):
    step = runs["prefix_rft"].again(2)
    other = step.otherwise(method="rft")
    assert not any(row.is_hybrid for row in other.rows)
    assert {row.problem.index for row in other.rows} == {row.problem.index for row in step.rows}
    with pytest.raises(ConfigError, match=r"method = 'sft' has no stage like"):
        step.otherwise(method="sft")


def test_table(runs):
    step = runs["prefix_rft"].again(3)
    other = step.otherwise(**{"prefix.keep": "bottom"})
    table = step.table(other)
    assert list(table["where"].unique()) == ["step", "followed", "held out"]
    assert table["kept"][table["where"] == "step"].isin([0.0, 1.0]).all()
    assert table["kept"][table["where"] != "step"].isna().all()
    both = table.dropna(subset=["carried_over", "rows_did", "really"])
    np.testing.assert_allclose(both["carried_over"] + both["rows_did"], both["really"], atol=1e-9)
    tokens = sum(len(row.response_ids) for row in step.rows + step.replay.read)
    assert len(table) == tokens
    for column in ("carried_over", "rows_did", "really", "otherwise"):
        found = table[column].dropna().abs()
        assert len(found) and found.min() >= 8 * np.finfo(np.float32).eps
    # Rows that were sampled anew have nothing that really happened to them.
    anew = step.table(step.otherwise(**{"prefix.low": 0.0, "prefix.high": 0.3}))
    assert anew["entropy_really"].isna().any()
    assert anew["entropy_otherwise"].notna().all()


def test_what_an_update_did(runs):
    step = runs["prefix_rft"].again(3)
    found = step.what().set_index("tokens_of")
    table = step.table()
    held_out = table[table["where"] == "held out"]
    assert found["tokens"].sum() == len(table)
    assert found.loc["held-out right answers", "change"] == pytest.approx(held_out["really"].fillna(0).mean())
    assert "nats per token" in step.sentence()


def test_idle_knobs_say_why(runs):
    step = runs["prefix_rft"].again(3)
    assert "ratio that is 1" in step.idle("loss.clip_high")
    assert "another stage" in step.idle("sft.lr")
    assert "does not act" in step.idle("evaluation.k")
    assert "belongs to method" in step.idle("luffy.gamma")
    assert step.idle("prefix.keep") == step.idle("rl.lr") == ""
    assert equal(step.otherwise(**{"loss.clip_high": 0.5}).state.weights, step.really.state.weights)
    assert "no entropy clip" in runs["rft"].again(1).idle("prefix.keep")


@pytest.mark.parametrize(
    ("error", "words", "ask"),
    [
        (RunError, "recorded the steps 0 to 4", lambda run: run.again(5)),
        (
            ConfigError,
            r"row 99 is not there: step 1 has the rows 0 to 31",
            lambda run: run.again(1).otherwise(without=[99]),
        ),
        (ConfigError, "then = 9 goes beyond", lambda run: run.again(1).otherwise(then=9)),
        (ConfigError, "does not act within a step", lambda run: run.again(1).otherwise(**{"evaluation.k": 4})),
        (ConfigError, "weights has 2 numbers", lambda run: run.again(1).otherwise(weights=[1, 1])),
        (ConfigError, "rollout.rows_per", lambda run: run.again(1).otherwise(**{"rollout.rows_per_problem": 4})),
        (ConfigError, "prefix.kept", lambda run: run.again(1).otherwise(**{"prefix.kept": 4})),
    ],
)
def test_what_a_step_cannot_have(runs, error, words, ask):
    with pytest.raises(error, match=words):
        ask(runs["prefix_rft"])


def test_a_run_that_is_not_replayed_exactly_says_by_how_much(runs, tmp_path):
    import json
    import shutil

    path = tmp_path / "changed"
    shutil.copytree(runs["rft"].path, path)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines[1]["grad_norm"] *= 1.5
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    step = again(Run(path), 2)
    assert not step.exact
    assert "differ by up to 0.33 of the recorded" in step.note


def test_explorer_of_a_step(runs):
    step = runs["prefix_rft"].again(3)
    explorer = StepExplorer(step, knobs={"prefix.keep": ("top", "bottom"), "loss.clip_high": (0.5,)}, effects=1)
    assert list(explorer.results) == ['{"prefix.keep":"bottom"}']
    offered = {knob["field"]: knob for knob in explorer.knobs}
    assert offered["prefix.keep"]["own"] == "top"
    assert "ratio that is 1" in offered["loss.clip_high"]["idle"]
    beforehand = np.frombuffer(explorer.results['{"prefix.keep":"bottom"}'], np.float32)
    np.testing.assert_array_equal(
        beforehand, step.change(step.otherwise(**{"prefix.keep": "bottom"})).astype(np.float32)
    )
    assert len(beforehand) == len(explorer.texts) == sum(row["count"] for row in explorer.rows)
    # What the browser asks for.
    explorer.move = '{"prefix.keep":"random","scores":{"0":1},"without":[1]}'
    other = step.otherwise(without=[1], scores={0: 1.0}, **{"prefix.keep": "random"})
    np.testing.assert_array_equal(
        np.frombuffer(explorer.answer["change"], np.float32), step.change(other).astype(np.float32)
    )
    explorer.move = '{"without":[99]}'
    assert "row 99 is not there" in explorer.answer["error"]
    assert explorer.summary() == step.sentence()
    explorer.move = '{"prefix.keep":"bottom"}'
    assert set(explorer.picture().data) >= {"change", "carried_over", "otherwise"}
    with pytest.raises(ConfigError, match=r"knob 'prefix.kept' is no field"):
        StepExplorer(step, knobs={"prefix.kept": (1,)})


def test_update_effect_draws_what_the_step_did(runs):
    step = runs["prefix_rft"].again(2)
    figure = plots.update_effect(step)
    assert figure.data["change"].tolist() == step.what()["change"].tolist()
    assert "nats per token" in figure.caption


def test_an_interrupted_run_is_taken_up_at_its_checkpoints(tmp_path):
    def stop(line):
        if line["global_step"] == 4:
            raise KeyboardInterrupt

    config = preset(
        "tiny", method="prefix_rft", **(SMALL | {"records.checkpoint_every": 2, "records.keep_checkpoints": 2})
    )
    config = config.replace(**{"rl.steps": 8, "relift.batch_problems": None})
    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path, progress=False, on_step=stop)
    run = Run(next(tmp_path.glob("tiny/*")))
    (run.path / "checkpoints" / "step-x").mkdir()
    step = run.again(4)
    assert step.exact and list(step.replay.differences) == [4]
    assert equal(step.state.weights, again(run, 4, every=3).state.weights)
    # A damaged checkpoint is skipped, for the older one.
    (run.path / "checkpoints" / "step-000004" / "optimizers.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"step-000004 is skipped: optimizers.pt"):
        older = again(run, 4, every=5)
    assert older.exact and list(older.replay.differences) == [2, 3, 4]
    assert equal(older.state.weights, step.state.weights)
