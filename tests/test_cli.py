"""The command line: help at once, one sentence for a bad value, and the same figures as the library."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from run_factory import write_run
from tokenizers_factory import save_model

from prefix_rft_lab import cli, sweeps
from prefix_rft_lab.analysis import results
from prefix_rft_lab.cli import main
from prefix_rft_lab.config import ConfigError, RunConfig, changes_of, preset
from prefix_rft_lab.core.tables import show
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.runs import RunError, load_all
from prefix_rft_lab.tools import doctor

COMMANDS = (
    "doctor",
    "train",
    "sweep",
    "evaluate",
    "data",
    "grading",
    "tokens",
    "reproduce",
    "claims",
    "report",
    "push",
)
SMALL = [
    f"--set={pair}"
    for pair in (
        "rollout.problems_per_step=2",
        "rollout.rows_per_problem=4",
        "rollout.max_response_tokens=48",
        "data.train_problems=16",
        "data.eval_problems=4",
        "evaluation.problems=4",
        "evaluation.k=2",
        "evaluation.hard_tries=0",
        "evaluation.every=0",
    )
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run, what the command printed) of two steps of rft."""
    out = tmp_path_factory.mktemp("cli") / "runs"
    found = subprocess.run(
        [sys.executable, "-m", "prefix_rft_lab", "train", "--method=rft", "--steps=2", "--out", str(out), *SMALL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    [run] = load_all(out)
    return run, found


# ---------------------------------------------------------------------- help and errors


def test_help_of_every_command_has_examples_and_loads_nothing_heavy():
    script = """
import sys
from prefix_rft_lab.cli import main
for name in sys.argv[1:]:
    assert main([*name.split(), "--help"]) == 0
print(sorted({"torch", "pandas", "transformers", "matplotlib", "pydantic"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", script, "", *COMMANDS], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert found.stdout.count("examples:\n  prefix-rft") == 1 + len(COMMANDS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("prefix-rft 0.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--method=rtf"], "method = 'rtf' is not known"),
        (["train", "--preset=tony"], "preset = 'tony' is not known"),
        (["train", "--set", "prefix.lo=0.1"], "prefix.lo = 0.1 is not a field of the config; did you mean prefix.low"),
        (["train", "--set", "prefix.low"], "--set 'prefix.low' is not understood"),
        (["train", "--set", "rl.lr=fast"], "rl.lr = 'fast' cannot be used"),
        (["train", "--steps=-1"], "rl.steps = -1 cannot be used"),
        (["train", "--seeds=0,x"], "--seeds '0,x' is not understood"),
        (["train", "--workers=0"], "--workers 0 cannot be used"),
        (["train", "--steps=x"], 'Invalid value for --steps: unable to convert "x" into int.'),
        (["train", "--step=1"], "Unknown option: --step. Did you mean --steps?"),
        (["train", "--preset=tiny", "--config=x.yaml"], "Mutually exclusive arguments: {--preset, --config}"),
        (["train", "--seed=1", "--seeds=1,2"], "Mutually exclusive arguments: {--seed, --seeds}"),
        (["train", "--plan", "--dry-run"], "Mutually exclusive arguments: {--dry-run, --plan}"),
        (["tarin"], 'Unknown command "tarin". Did you mean "train"?'),
        (["evaluate"], 'Command "evaluate" parameter --model requires an argument.'),
        (["data", "inspct", "x.jsonl"], 'Invalid value "inspct" for WHAT. Choose from: "inspect".'),
        (["train", "--config=nowhere.yaml"], "config = 'nowhere.yaml' is not a file"),
        (["train", "--problems=nowhere.jsonl"], "data.problems = 'nowhere.jsonl' is not a file"),
        (["evaluate", "--model=tiny", "--split=tset"], "split = 'tset' is not a split of 'chains'"),
        (["evaluate", "--model=tiny", "--split=all"], "split = 'all' is not a split of 'chains'"),
        (["evaluate", "--model=tiny", "--k=0"], "evaluation.k = 0 cannot be used"),
        (["evaluate", "--model=tiny", "--limit=0"], "limit = 0 leaves no problem"),
        (["evaluate", "--model=tiny", "--out=table.csv"], "out = 'table.csv' does not end in .parquet"),
        (["report", "nowhere"], "runs = 'nowhere' holds no finished run"),
        (["reproduce", "--profile=quik"], "profile = 'quik' is not known"),
    ],
)
def test_a_bad_value_gives_one_sentence_and_status_2(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.startswith("prefix-rft: ") and shown.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_no_command_is_help_and_status_2(capsys):
    assert cli.main([]) == 2
    assert "Commands" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "traceback"),
    [
        (RunError("the run diverged"), 1, False),
        (ValueError("bad file"), 1, False),
        (KeyboardInterrupt(), 130, False),
        (TypeError("a mistake of ours"), 1, True),
    ],
)
def test_exit_status_tells_whose_error_it_was(monkeypatch, capsys, error, status, traceback):
    def fail():
        raise error

    monkeypatch.setattr(doctor, "check_all", fail)
    assert cli.main(["doctor"]) == status
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == traceback
    assert str(error) in shown and (status != 130 or "goes on from the newest checkpoint" in shown)
    if not traceback and status == 1:
        assert cli.main(["doctor", "--debug"]) == cli.main(["--debug", "doctor"]) == 1
        assert capsys.readouterr().err.count("Traceback") == 2


# ---------------------------------------------------------------------- train


def test_dry_run_marks_departures_and_writes_nothing(capsys, tmp_path):
    changes = ["--set=rl.lr=3e-5", "--set=evaluation.final_splits=[test]", "--set=prefix.low=0.05"]
    arguments = [
        "train",
        "--method=sft_then_rft",
        "--steps=7",
        "--seeds=3,4",
        "--dry-run",
        "--out",
        str(tmp_path / "r"),
    ]
    assert cli.main([*arguments, *changes]) == 0
    lines = capsys.readouterr().out.splitlines()
    marked = [line.strip() for line in lines if "# preset tiny has" in line]
    assert marked == [
        "method: sft_then_rft  # preset tiny has 'prefix_rft'",
        "seed: 3  # preset tiny has 0",
        "steps: 7  # preset tiny has 150",
        "lr: 3.0e-05  # preset tiny has 0.0003",
        "steps: 7  # preset tiny has 60",
        "final_splits:  # preset tiny has ['test', 'ood']",
    ]
    wanted = preset(
        "tiny",
        method="sft_then_rft",
        **{"rl.steps": 7, "sft.steps": 7, "rl.lr": 3e-5, "evaluation.final_splits": ["test"]},
    )
    shown = "".join(
        f"{line}\n" for line in lines[: next(i for i, line in enumerate(lines) if line.startswith("# 2 runs: method"))]
    )
    (tmp_path / "shown.yaml").write_text(shown)
    assert RunConfig.load(tmp_path / "shown.yaml") == wanted.replace(seed=3), "what is shown is a config"
    assert sum("would be written" in line for line in lines) == 2
    assert not (tmp_path / "r").exists()


def test_steps_set_only_the_sections_that_the_method_uses():
    base = preset("tiny")
    [config] = sweeps.configs(base, method="rft", steps=9)
    assert config == base.replace(method="rft", **{"rl.steps": 9})


def test_several_methods_and_seeds_are_one_run_each_and_the_base_policy_is_one():
    configs = sweeps.configs(preset("tiny"), method="base,rft,luffy", seeds=[3, 4], steps=2)
    assert [(c.method, c.seed) for c in configs] == [("base", 3), ("rft", 3), ("rft", 4), ("luffy", 3), ("luffy", 4)]
    assert {c.rl.steps for c in configs} == {2}
    assert [c.method for c in sweeps.configs(preset("tiny"), method="all")] == list(METHODS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method=rft,lufy"], "method = 'lufy' is not known; use one of base, sft"),
        (["--method=rft", "--set=prefix.loss=static"], "prefix.loss = 'static' has no meaning for method 'rft'"),
        (["--set=loss.advantage=grpo_v9"], "loss.advantage = 'grpo_v9' is not known; use one of dr_grpo,"),
        (["--set=prefix.schedule=cosin"], "prefix.schedule = 'cosin' is not known; use one of cosine"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, capsys, arguments, words):
    assert cli.main(["train", *arguments, "--out", str(tmp_path / "runs")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_methods_are_compared_over_seeds(tmp_path):
    runs = [write_run(tmp_path, m, s, counts=(s, 1, 2, 3, 4, 2)) for m, s in (("base", 0), ("rft", 0), ("rft", 1))]
    head, *lines = show(results.of_methods(runs)).splitlines()
    assert head.split() == [
        "method",
        "split",
        "seeds",
        "steps",
        "avg@k",
        "pass@k",
        "greedy",
        "95%",
        "t",
        "interval",
        "over",
    ]
    tests = [line for line in lines if " test " in line]
    assert [line.split(" test ")[0].strip() for line in tests] == ["Base policy", "RFT (Dr.GRPO)"]
    assert tests[1].split(" test ")[1].split()[0] == "2" and tests[1].endswith("seeds and problems")
    average = sum(run.evaluation("test")["correct"].sum() / run.evaluation("test")["k"].sum() for run in runs[1:]) / 2
    assert f"{average:.3f} [" in tests[1]


@pytest.mark.slow
def test_train_says_where_the_run_is_and_what_came_of_it(trained):
    run, found = trained
    assert len(run.metrics) == 2
    assert f"run {run.path}" in found.stdout
    part = run.summary["splits"]["test"]
    low, high = part["avg_interval"]
    [line] = [line for line in found.stdout.splitlines() if line.startswith("rft ") and " test " in line]
    assert f"{part['avg']:.3f} [{low:.3f}, {high:.3f}]" in line
    assert found.stderr.count("\n") < 3, f"a log is no place for bars: {found.stderr}"


# ---------------------------------------------------------------------- evaluate, report


@pytest.mark.slow
def test_evaluating_a_run_gives_its_summary_again(trained, tmp_path, capsys):
    run, _ = trained
    out = tmp_path / "deep" / "evaluation.parquet"
    assert cli.main(["evaluate", "--model", str(run.path), "--out", str(out)]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["summary"] == run.summary["splits"]["test"]
    pd.testing.assert_frame_equal(pd.read_parquet(out), run.evaluation("test"))
    shown = capsys.readouterr().out
    assert "avg@2" in shown and "pass@2" in shown and "easy" in shown and f"written {out}" in shown


@pytest.mark.slow
def test_evaluating_on_a_file_takes_all_its_rows_or_some(tmp_path, capsys):
    rows = [{"problem": f"{a}+3", "answer": str(a + 3), "level": "easy" if a < 4 else "hard"} for a in range(1, 7)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["evaluate", "--model=tiny", "--problems", str(tmp_path / "mine.jsonl"), "--k=3", "--temperature=0.5"]
    assert cli.main([*common, "--out", str(tmp_path / "a.parquet")]) == 0
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert len(table) == 6 and set(table["k"]) == {3} and set(table["level"]) == {"easy", "hard"}
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["split"] == "all" and written["temperature"] == 0.5
    assert written["summary"]["avg"] == pytest.approx(table["correct"].sum() / 18)
    capsys.readouterr()
    assert cli.main([*common, "--limit=2"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["all", "2"]


def test_a_run_is_not_evaluated_on_what_it_was_trained_on_unless_asked(tmp_path):
    from prefix_rft_lab.evaluation_run import config_for, default_split

    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    config = preset("tiny", **{"data.problems": "mine.jsonl", "model.instruction": "Box it."})
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    (run / "env.json").write_text("{}")
    assert cli.main(["evaluate", "--model", str(run)]) == 2, "no saved weights"
    (run / "model" / "config.json").write_text("{}")
    own = config_for(str(run))
    assert own.model.instruction == "Box it." and own.model.path == str(run / "model")
    assert default_split(str(run), own) == "test"
    assert default_split(str(run), config_for(str(run), changes={"data.problems": "other.jsonl"})) == "all"
    assert default_split("tiny", config_for("tiny")) == "test"


@pytest.mark.parametrize(
    ("context", "given", "prompts", "responses"),
    [
        (512, {}, 128, 384),
        (131_072, {}, 1024, 8192),
        (4096, {"rollout.max_response_tokens": 4000}, 96, 4000),
        (4096, {"rollout.max_prompt_tokens": 3000}, 3000, 1096),
        (512, {"rollout.max_prompt_tokens": 20, "rollout.max_response_tokens": 30}, 20, 30),
        (512, {"model.context_tokens": 2048}, 512, 1536),
    ],
)
def test_a_model_that_no_preset_knows_is_given_the_room_of_its_context(tmp_path, context, given, prompts, responses):
    from prefix_rft_lab.evaluation_run import config_for

    save_model(tmp_path, "qwen2", context=context)
    rollout = config_for(str(tmp_path), changes=given).rollout
    assert (rollout.max_prompt_tokens, rollout.max_response_tokens) == (prompts, responses)
    assert rollout.max_batch_rows == 2**18 // (prompts + responses)
    assert config_for(str(tmp_path), changes={**given, "rollout.max_batch_rows": 3}).rollout.max_batch_rows == 3
    assert config_for(str(tmp_path), base=preset("smol")).rollout == preset("smol").rollout
    assert config_for("tiny").rollout == preset("tiny").rollout


def test_problems_of_any_length_are_evaluated_without_a_preset(tmp_path, capsys):
    save_model(tmp_path / "model", "qwen2", context=400)
    problems = tmp_path / "mine.jsonl"
    problems.write_text(json.dumps({"problem": "What is 1 + 1? " * 4, "answer": "2"}) + "\n")
    assert (
        cli.main(
            [
                "evaluate",
                "--model",
                str(tmp_path / "model"),
                "--problems",
                str(problems),
                "--k=1",
                "--set=model.template=none",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "left out" not in out and out.splitlines()[2].split()[:2] == ["all", "1"]
    assert cli.main(["evaluate", "--model", str(tmp_path / "none"), "--problems", str(problems)]) == 2
    assert "is not there; give an existing directory" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["[" * 5000, "{a: &a [x, x], b: [*a, *a]}", "clip: !!python/object:os.system x"])
def test_a_hostile_value_is_refused_in_one_sentence(value):
    with pytest.raises(ConfigError, match="has a value that is not YAML"):
        changes_of([f"data.columns={value}"])


def test_a_number_that_float32_does_not_bear_is_refused():
    with pytest.raises(ConfigError, match=r"clip_high = 1e\+308 is larger than 1e\+30"):
        preset("tiny", **{"loss.clip_high": 1e308})


def test_what_comes_from_outside_is_escaped_where_it_is_printed(capsys):
    assert main(["report", "/no/\x1b[2J\u202e\udc80"]) == 2
    printed = capsys.readouterr().err
    assert "\\x1b[2J" in printed and printed.strip().isprintable()


def test_a_console_without_the_character_shows_a_substitute():
    script = "from prefix_rft_lab.cli import main, say; main(['claims', '--list']); say('SFT\u2192RFT')"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"}
    )
    assert found.stdout.splitlines()[-1] == rb"SFT\u2192RFT"
