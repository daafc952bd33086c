"""A run is returned only if it is what would be trained now: each way in which an old one could come back."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SMALL

from prefix_rft_lab import cli, load_all, train
from prefix_rft_lab.algorithm import methods  # noqa: F401  # registers the kit's ideas before `own` copies them
from prefix_rft_lab.core import registry
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.data import chains
from prefix_rft_lab.experiments.pool import train_all

QUICK = {
    "sft.steps": 2,
    "rl.steps": 2,
    "evaluation.every": 0,
    "evaluation.hard_tries": 0,
    "evaluation.k": 1,
    "evaluation.problems": 1,
    "evaluation.final_splits": [],
    "records.checkpoint_every": 0,
    "records.tokens_every": 0,
    "records.save_model": False,
}
METHOD = """
from dataclasses import replace
from prefix_rft_lab import methods
from prefix_rft_lab.core.types import TokenKind
from prefix_rft_lab.algorithm.prefixes import demonstration_rows

{body}
methods.METHODS["mine"] = methods.Method(title="Mine", stages=(replace(methods.SFT, {changed}),), version={version!r})
"""
LOSS = "{TokenKind.PREFIX: methods.NegativeLogLikelihood(weight=%s)}"
ESTIMATOR = """
from prefix_rft_lab import advantages

@advantages.register("mine", version={version!r} or None)
def mine(rows):
    return rows.advantages(rows.scores * {value} + 0.5)
"""


def method(body: str, changed: str = "losses=losses") -> tuple[dict, str]:
    """(fields of the config, code of a cell) of a method; ``VALUE`` is what changes."""
    return {"method": "mine"}, METHOD.replace("{body}", body).replace("{changed}", changed)


WAYS: dict[str, tuple[dict, str]] = {
    "helper": method(f"def helper(): return VALUE\ndef losses(config): return {LOSS % 'helper()'}"),
    "global": method(f"TAU = VALUE\ndef losses(config): return {LOSS % 'TAU'}"),
    "closure": method(f"def make(tau): return lambda config: {LOSS % 'tau'}\nlosses = make(VALUE)"),
    "default": method(f"def losses(config, tau=VALUE): return {LOSS % 'tau'}"),
    "row plan": method(
        "def rows(problem, step, config):\n"
        "    [row] = demonstration_rows(problem, step, config)\n"
        "    row.prefix_ids = row.prefix_ids[VALUE:]\n"
        "    return [row]",
        "rows=rows",
    ),
    "estimator": (
        {"method": "rft", "loss.advantage": "mine"},
        ESTIMATOR.format(version="VERSION", value="VALUE"),
    ),
    "schedule": (
        {"prefix.schedule": "mine", "prefix.keep": "all"},
        "from prefix_rft_lab import schedules\n"
        "@schedules.register('mine', version='VERSION' or None)\n"
        "def mine(step, settings): return 0.4 * VALUE, 0.4 * VALUE",
    ),
    "keep rule": (
        {"prefix.keep": "mine", "prefix.schedule": "constant"},
        "from prefix_rft_lab import entropy\n"
        "@entropy.register('mine', version='VERSION' or None)\n"
        "def mine(tokens): return tokens.position * (-1) ** VALUE",
    ),
}


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """What a test registers is forgotten after it."""
    before = [(one, dict(one), dict(one.entries)) for one in registry.REGISTRIES]
    yield
    for one, ideas, entries in before:
        dict.clear(one)
        dict.update(one, ideas)
        one.entries = entries


def cell(code: str, value: int, version: str = "") -> None:
    """Run a cell of a notebook, or its next version."""
    code = code.replace("{version!r}", repr(version)).replace("VERSION", version).replace("VALUE", str(value))
    exec(code, {"__name__": "a_notebook"})


def losses(run) -> list[float]:
    """Of each step, and its gradient norm: rules that keep equally many tokens differ in that one."""
    return run.metrics[["loss", "grad_norm"]].to_numpy().ravel().tolist()


@pytest.mark.parametrize("way", WAYS)
def test_an_idea_without_a_version_is_trained_anew(tmp_path, small, caplog, way):
    fields, code = WAYS[way]
    config = small(**fields, **QUICK)
    cell(code, 1)
    before = losses(train(config, out=tmp_path, progress=False))
    assert "anew" not in caplog.text
    cell(code, 2)
    run = train(config, out=tmp_path, progress=False)
    after = losses(run)
    assert len(before) == len(after)
    assert before != after == losses(train(config, out=tmp_path / "empty", progress=False))
    assert re.search(rf"{re.escape(str(run.path))} is trained anew, since \S+ mine names no version", caplog.text)


@pytest.mark.parametrize("way", WAYS)
def test_another_version_is_another_run_and_both_are_kept(tmp_path, small, caplog, way):
    fields, code = WAYS[way]
    config = small(**fields, **QUICK)
    cell(code, 1, "1")
    first = train(config, out=tmp_path)
    cell(code, 2, "2")
    second = train(config, out=tmp_path)
    assert second.path != first.path and losses(second) != losses(first)
    assert list(second.config.ideas.values()) == ["2"]
    cell(code, 1, "1")
    caplog.clear()
    assert train(config, out=tmp_path).path == first.path
    assert re.search(
        rf"{re.escape(str(first.path))} was trained \d+ seconds ago and is loaded; fresh=True trains again", caplog.text
    )


METRIC = """
from prefix_rft_lab import measure
@measure.register("longest", version="1")
def longest(rows, result, config): return GIVEN
"""


def test_a_metric_of_ones_own_is_recorded_at_every_step(tmp_path, small):
    exec(METRIC.replace("GIVEN", "max(len(row.response_ids) for row in rows)"), {"__name__": "a_notebook"})
    config = small(method="rft", **QUICK, **{"records.metrics": ["longest"]})
    run = train(config, out=tmp_path)
    assert (run.metrics["longest"] >= run.metrics["response_tokens"]).all() and len(run.metrics) == 2
    assert run.config.ideas == {"records.metrics longest": "1"}
    with pytest.raises(ConfigError, match=r"records.metrics = 'longst' is not known; use one of longest; did you mean"):
        train(config.replace(**{"records.metrics": ["longst"]}), out=tmp_path)
    exec(METRIC.replace("GIVEN", "'many'"), {"__name__": "a_notebook"})
    with pytest.raises(ConfigError, match=r"records.metrics = 'longest' gives 'many'; it should give a number"):
        train(config, out=tmp_path, fresh=True)


def test_records_hold_the_window_that_was_used(tmp_path, small):
    fields, code = WAYS["schedule"]
    cell(code, 2, "1")
    metrics = train(small(**fields, **QUICK), out=tmp_path).metrics
    assert metrics["prefix_ratio_low"].tolist() == metrics["prefix_ratio_high"].tolist() == [0.8, 0.8]
    assert metrics["prefix_ratio"].tolist() == pytest.approx([0.8, 0.8])


def test_another_version_does_not_resume_the_run_of_the_first(tmp_path, small):
    fields, code = WAYS["global"]
    config = small(**fields, **QUICK | {"records.checkpoint_every": 1})

    def stop(line):
        raise KeyboardInterrupt

    cell(code, 1, "1")
    with pytest.raises(KeyboardInterrupt):
        train(config, out=tmp_path, on_step=stop)
    cell(code, 2, "2")
    second = losses(train(config, out=tmp_path))
    assert second == losses(train(config, out=tmp_path / "empty"))
    cell(code, 1, "1")
    first = losses(train(config, out=tmp_path))
    assert first == pytest.approx([loss / 2 for loss in second], rel=0.05) and first != second


def test_a_run_of_the_kit_is_loaded_and_says_so_and_fresh_trains_it(tmp_path, small, caplog):
    config = small(method="sft", **QUICK)
    run = train(config, out=tmp_path)
    done = (run.path / "DONE.json").stat().st_mtime_ns
    assert "loaded" not in caplog.text
    caplog.set_level(logging.INFO, "prefix_rft_lab")
    for progress, level in ((True, "WARNING"), (False, "INFO")):
        caplog.clear()
        assert train(config, out=tmp_path, progress=progress).path == run.path
        assert [r.levelname for r in caplog.records if "is loaded; fresh=True" in r.getMessage()] == [level]
    assert (run.path / "DONE.json").stat().st_mtime_ns == done
    (run.path / "left.txt").write_text("by hand")
    caplog.clear()
    train(config, out=tmp_path, fresh=True)
    assert "is loaded" not in caplog.text
    assert (run.path / "DONE.json").stat().st_mtime_ns > done and not (run.path / "left.txt").exists()


def problems(wrong: bool) -> list[dict[str, str]]:
    return [
        {"problem": p.prompt, "answer": "99" if wrong else p.answer, "solution": p.demonstration}
        for p in chains.problems("train", 60, expert="thorough", seed=0)
    ]


@pytest.mark.parametrize("kind", ["file", "test set", "in memory"])
def test_changed_problems_make_another_run(tmp_path, small, kind):
    file = tmp_path / "mine.jsonl"
    settings = {"data.eval_problems": 12, "method": "base", "evaluation.hard_tries": 0}

    def score(wrong, out="runs"):
        rows = problems(wrong)
        if kind == "in memory":
            run = train(small(**settings), problems=rows, out=tmp_path / out)
        else:
            # A test set is left out of the training problems: another one leaves others.
            left_out = rows[:20] if wrong else rows[:10]
            file.write_text("".join(json.dumps(row) + "\n" for row in (left_out if kind == "test set" else rows)))
            if kind == "test set":
                (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems(False)))
            named = {"data.problems": str(file)}
            if kind == "test set":
                named = {"data.problems": str(tmp_path / "all.jsonl"), "data.test_sets": [str(file)]}
            run = train(small(**settings, **named), out=tmp_path / out)
        table = run.evaluation("test")
        return run.path.name, table.to_csv()

    first = score(False)
    second = score(True)
    assert second[0] != first[0] and second[1] != first[1]
    assert second[1] == score(True, "empty")[1]
    assert score(False) == first and score(True) == second, "each is found again"


def test_workers_train_the_ideas_of_modules_and_refuse_those_of_a_notebook(tmp_path, small, monkeypatch):
    fields, code = WAYS["global"]
    config = small(**fields, **QUICK)
    cell(code, 1, "1")
    with pytest.raises(ConfigError, match=r"method = 'mine' was registered in .*a_notebook.*--import"):
        train_all([config], out=tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_module_of_ideas_travels_to_workers_by_the_config(tmp_path, small, monkeypatch):
    fields, code = WAYS["global"]
    code = code.replace("{version!r}", "'1'").replace("VALUE", "3")
    (tmp_path / "my_stale_ideas.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    configs = [small(**fields, **QUICK, seed=seed, imports=["my_stale_ideas"]) for seed in (0, 1)]
    runs = train_all(configs, out=tmp_path / "runs", progress=False)
    assert [run.config.ideas for run in runs] == [{"method mine": "1"}] * 2
    assert losses(runs[0]) == losses(train(configs[0], out=tmp_path / "alone", progress=False))
    stamps = [(run.path / "DONE.json").stat().st_mtime_ns for run in runs]
    train_all(configs, out=tmp_path / "runs", progress=False)
    assert [(run.path / "DONE.json").stat().st_mtime_ns for run in runs] == stamps


OWN = """
from prefix_rft_lab import rewards, schedules


@schedules.register("mine", version="1")
def window(step, settings):
    return 0.5, 0.5


@rewards.register("short", version="1")
def short(response, problem):
    return float(len(response) < 40)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module of ideas in the folder that commands run in."""
    (tmp_path / "my_command_ideas.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield "my_command_ideas"
    sys.modules.pop("my_command_ideas", None)


def test_import_brings_ideas_to_train_and_evaluate(module, small, capsys):
    Path("run.yaml").write_text(small(**(QUICK | {"records.save_model": True})).to_yaml())
    command = ["train", "--config=run.yaml", "--set=prefix.schedule=mine", "--set=data.reward=short"]
    assert cli.main(command) == 2
    assert "data.reward = 'short' is not known" in capsys.readouterr().err
    command.append(f"--import={module}")
    assert cli.main([*command, "--dry-run"]) == 0
    *_, path, _ = capsys.readouterr().out.splitlines()
    assert cli.main(command) == 0
    [run] = load_all("runs")
    assert path == f"{run.path}/  would be written"
    assert run.config.imports == (module,)
    assert run.config.ideas == {"prefix.schedule mine": "1", "data.reward short": "1"}
    assert set(run.metrics["prefix_ratio_low"].dropna()) == {0.5}
    capsys.readouterr()
    assert cli.main([*command, "--dry-run"]) == 0 and "is finished already" in capsys.readouterr().out
    # Another process has not imported it: the run names the module itself, a policy does not.
    of_policy = ["evaluate", "--model=tiny", "--set=data.reward=short", "--k=1", "--limit=2"]
    code = "import sys; from prefix_rft_lab import cli; sys.exit(cli.main(sys.argv[1:]))"
    for arguments, status in (
        (of_policy, 2),
        ([*of_policy, f"--import={module}"], 0),
        (["evaluate", "--model", str(run.path), "--limit=2"], 0),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
    assert cli.main(["train", "--import=no_such_ideas"]) == 2
    assert "imports = 'no_such_ideas' cannot be imported" in capsys.readouterr().err


def test_fresh_trains_again_by_train_and_sweep(module, small, capsys):
    Path("run.yaml").write_text(small(**QUICK, method="rft").to_yaml())
    command = ["train", "--config=run.yaml", "--fresh"]

    def stamps(out="runs"):
        return [(run.path / "DONE.json").stat().st_mtime_ns for run in load_all(out)]

    assert cli.main(command) == 0
    before = stamps()
    assert cli.main(command[:2]) == 0 and stamps() == before
    capsys.readouterr()
    assert cli.main([*command, "--dry-run"]) == 0 and "would be trained again" in capsys.readouterr().out
    assert stamps() == before
    assert cli.main(command) == 0 and stamps()[0] > before[0]

    arms = {"mine": {"prefix.schedule": "mine"}, "cosine": {}}
    Path("mine.yaml").write_text(yaml.safe_dump({"name": "mine", "set": SMALL | QUICK, "arms": arms}))
    command = ["sweep", "mine.yaml", "--out=swept"]
    assert cli.main([*command, "--plan"]) == 2
    assert "prefix.schedule = 'mine' is not known" in capsys.readouterr().err
    command.append(f"--import={module}")
    assert cli.main(command) == 0
    runs = load_all("swept")
    assert {run.config.prefix.schedule: run.config.imports for run in runs} == {"mine": (module,), "cosine": ()}
    before = stamps("swept")
    assert cli.main(command) == 0 and stamps("swept") == before
    assert cli.main([*command, "--fresh"]) == 0
    assert all(new > old for new, old in zip(stamps("swept"), before, strict=True))
