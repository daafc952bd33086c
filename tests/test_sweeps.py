"""Sweeps: what a file means, what is refused, and that a sweep ends alike whatever interrupts it or shares its folder."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import SMALL
from run_factory import write_run

from prefix_rft_lab import cli, sweeps
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.core.files import write_json, write_text
from prefix_rft_lab.experiments.pool import failure_file
from prefix_rft_lab.experiments.profiles import PROFILES
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.runs.run import Run, directory_of

ARMS = {"sft": {"method": "sft"}, "rft": {"method": "rft"}}
SECONDS = 120
"""Patience of these tests; on an idle machine everything takes a few seconds."""


def plan(profile=None, *, changes=None, **values):
    return sweeps.plan({"name": "mine", "arms": ARMS, **values}, profile, **(changes or {}))


# ---------------------------------------------------------------------- what a file means


@pytest.mark.parametrize("profile", [None, *PROFILES])
@pytest.mark.parametrize("name", sweeps.names())
def test_every_sweep_of_the_kit_can_be_planned(name, profile):
    found = sweeps.plan(name, profile)
    assert found.sweep.name == name and found.sweep.question.endswith("?")
    assert len({directory_of(config, "") for config in found.configs}) == len(found.configs) > 1


def test_profiles_name_sweeps_of_the_kit_and_share_their_runs():
    for name, profile in PROFILES.items():
        assert profile.sweeps[0] == "main"
        plans = [sweeps.plan(sweep, name) for sweep in profile.sweeps]
        paths = [directory_of(config, "") for each in plans for config in each.configs]
        assert {path.parent.name for path in paths} == {name}
        assert len(set(paths)) < len(paths), "a run that two questions need is one run"


def test_arms_grid_and_seeds_are_crossed():
    found = plan(
        set={"rl.steps": 7},
        arms={"a": {"prefix.low": 0.1}, "b": {}},
        grid={"prefix.keep": ["top", "all"]},
        seeds=[3, 5],
    )
    assert [(p.label, p.config.seed, p.config.rl.steps) for p in found.runs] == [
        (label, seed, 7) for label in ("a · top", "a · all", "b · top", "b · all") for seed in (3, 5)
    ]
    assert [p.config.prefix.low for p in found.runs[:2]] == [0.1, 0.1]
    assert found.fields == ["prefix.keep"]
    assert len(found.select("a", **{"prefix.keep": "all"}).runs) == 2


def test_changes_and_seeds_of_the_call_go_over_the_files():
    found = plan(seeds=[0, 1, 2], changes={"rl.steps": 9})
    assert {config.rl.steps for config in found.configs} == {9} and len(found.runs) == 6
    own = sweeps.plan({"name": "mine", "arms": ARMS, "seeds": [0, 1]}, seeds=[4])
    assert [config.seed for config in own.configs] == [4, 4]
    base = plan(arms={"base": {"method": "base"}, "sft": {"method": "sft"}}, seeds=[1, 2])
    assert [(c.method, c.seed) for c in base.configs] == [("base", 1), ("sft", 1), ("sft", 2)], "base has no seed"
    assert plan(arms={"": {}}).runs[0].label == "prefix_rft"


def test_profiles_change_sizes_arms_and_seeds():
    values = {"profiles": {"mine": {"arms": ["sft"], "seeds": [7], "set": {"sft.steps": 2}}}, "folder": "x-{profile}"}
    [one] = plan("mine", **values).configs
    assert (one.method, one.seed, one.sft.steps, one.name) == ("sft", 7, 2, "x-mine")
    assert {config.rl.steps for config in plan("smoke", **values).configs} == {4}
    assert {config.name for config in plan(**values).configs} == {"x-default"}


def test_experts_are_planned_where_they_are_needed():
    values = {"experts": {"a": {"method": "sft"}, "b": {"method": "rft"}}}
    arms = {"sft": {"method": "sft"}, "taught": {"method": "sft", "data.expert": "run:a"}}
    found = plan(arms=arms, **values)
    [expert] = found.experts
    assert expert.method == "sft" and expert.seed == 0
    assert found.configs[1].data.expert == f"run:{directory_of(expert, '').name}"
    own = "run:sft-0123456789ab-s3"
    assert plan(arms={"x": {"data.expert": own}}).configs[0].data.expert == own


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "../x"}, r"name = '../x' cannot be used"),
        ({"name": ".."}, r"name = '..' cannot be used"),
        ({"folder": "../x"}, r"folder = '../x' cannot be used"),
        ({"folder": "logs"}, r"folder = 'logs' is where logs and summaries lie; choose another"),
        ({"profiles": {"../x": {}}}, r"profiles = '../x' is no plain name"),
        ({"arm": {}}, r"arm = {} is not a field of the sweep; did you mean arms"),
        (
            {"profiles": {"quick": {"arm": []}}},
            r"profiles.quick.arm = \[\] is not a field of the sweep; did you mean arms",
        ),
        ({"arms": {}}, r"arms = {} cannot be used: it should have at least 1 item"),
        ({"arms": {1: {}}}, r"arms.1.\[key\] = 1 cannot be used: it should be a valid string"),
        ({"seeds": []}, r"seeds = \[\] cannot be used: it should have at least 1 item"),
        ({"seeds": [0, 1, 0]}, r"seeds = \[0, 1, 0\] has 0 twice; give each once"),
        ({"seeds": [-1]}, r"seed = -1 cannot be used"),
        ({"seeds": ["x"]}, r"seeds.0 = 'x' cannot be used: it should be a valid integer"),
        ({"grid": {"rl.lr": []}}, r"grid.rl.lr = \[\] leaves nothing to run"),
        ({"grid": {"rl.lr": [1, 1]}}, r"grid.rl.lr = \[1, 1\] has 1 twice"),
        ({"grid": {"method": ["sft"]}}, r"grid.method would go over method = 'sft' of arm 'sft'"),
        ({"grid": {"seed": [1]}}, r"grid.seed = .* a sweep takes it from seeds; give it there"),
        ({"set": {"name": "x"}}, r"set.name = 'x' .* a sweep takes it from folder"),
        (
            {"profiles": {"quick": {"grid": {"rl.lr": [1]}}}},
            r"profiles.quick.grid = 'rl.lr' is not in the grid, which has nothing",
        ),
        ({"profiles": {"quick": {"grid": {"rl.lr": []}}}}, r"grid.rl.lr = \[\] leaves nothing to run"),
        ({"profiles": {"quick": {"arms": ["rtf"]}}}, r"profiles.quick.arms = 'rtf' is no arm; the arms are sft, rft"),
        ({"profiles": {"quick": {"seeds": [1, 1]}}}, r"seeds = \[1, 1\] has 1 twice"),
        ({"preset": "huge"}, r"preset = 'huge' is not known; use one of tiny"),
        ({"arms": {"a": {"method": "rtf"}}}, r"method = 'rtf' is not known"),
        (
            {"arms": {"a": {"prefix.kep": "all"}}},
            r"prefix.kep = 'all' is not a field of the config; did you mean prefix.keep",
        ),
        (
            {"arms": {"a": {"prefix.keep": "al"}}},
            r"prefix.keep = 'al' is not known; use one of top, bottom, random, all; did you mean 'all'",
        ),
        ({"arms": {"a": {}, "b": {"prefix.keep": "top"}}}, r"arms 'a' and 'b' of sweep 'mine' are the same config"),
        (
            {"arms": {"a": {}}, "grid": {"model.instruction": ["None", None], "prefix.low": [0.1]}},
            r"model.instruction = None cannot be used",
        ),
        ({"arms": {"a": {}}, "grid": {"model.system_prompt": ["None", None]}}, r"two configs .* are called 'a · None'"),
        (
            {"arms": {"a": {"data.expert": "run:me"}}},
            r"data.expert = 'run:me' is no expert of sweep 'mine'; its experts are none",
        ),
        (
            {"experts": {"e": {"records.save_model": False}}, "arms": {"a": {"data.expert": "run:e"}}},
            r"records.save_model = False leaves no policy of expert 'e'",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(values, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        plan(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"profile": "quik"}, r"profile = 'quik' is not known; use one of smoke, quick, full"),
        ({"seeds": []}, r"seeds = \[\] leaves nothing to run"),
        ({"seeds": [1, 1]}, r"seeds = \[1, 1\] has 1 twice"),
        ({"changes": {"seed": 1}}, r"set.seed = 1 cannot be used: a sweep takes it from seeds"),
        ({"changes": {"name": "../x"}}, r"set.name = '../x' cannot be used"),
        ({"changes": {"rl.step": 1}}, r"rl.step = 1 is not a field of the config; did you mean rl.steps"),
        ({"changes": {"method": "rft"}}, r"method = 'rft' would go over 'sft', which 'sft' of sweep 'mine' stands for"),
    ],
)
def test_a_call_that_cannot_be_used_is_refused_in_one_sentence(call, sentence):
    values = {"name": "mine", "arms": ARMS}
    with pytest.raises(ConfigError, match=sentence):
        sweeps.plan(values, call.get("profile"), seeds=call.get("seeds"), **call.get("changes", {}))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [x", r"is not valid YAML \(.*line \d+\)"),
        ("name: x\narms:\n  a: {}\n  b: {}\n  a: {}\n", r"is not valid YAML \('a' is written twice, again in line 5\)"),
        ("name: x\nname: y\n", r"'name' is written twice, again in line 2"),
        ("when: 2001-99-99\n", r"is not valid YAML"),
        ("- 1\n", r"holds no mapping"),
        ("", r"holds no mapping"),
        ("name: x\nseeds: 3\n", r"seeds = 3 cannot be used"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, sentence):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        sweeps.load(tmp_path / "mine.yaml")


def test_bytes_and_names_that_are_no_sweep_are_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        sweeps.load(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"sweep = 'mian' is no file and no sweep of the kit; .* components, .*main"):
        sweeps.load("mian")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": 0}, r"workers = 0 cannot be used"),
        ({"run_seconds_limit": 0}, r"run_seconds_limit = 0 cannot be used; give a positive number"),
        ({"seconds_limit": -1}, r"seconds_limit = -1 cannot be used"),
        ({"seconds_limit": float("nan")}, r"seconds_limit = nan cannot be used"),
        ({"out": "file/below"}, r"out = .*below' cannot be written \(Not a directory\); choose another folder"),
    ],
)
def test_what_cannot_be_run_trains_and_writes_nothing(tmp_path, options, sentence):
    (tmp_path / "file").touch()
    out = tmp_path / options.pop("out", "runs")
    with pytest.raises(ConfigError, match=sentence):
        sweeps.run(plan(), out=out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------------- how it stands


@pytest.fixture
def half_done(tmp_path):
    """(plan, folder): one run finished, one interrupted, one failed, one diverged, one not begun."""
    from run_factory import SMALL as FACTORY

    arms = {
        "a": {"method": "sft"},
        "b": {"method": "rft"},
        "c": {"method": "luffy"},
        "d": {"method": "uft"},
        "e": {"method": "relift"},
    }
    found = plan(arms=arms, set=FACTORY)
    out = tmp_path / "runs"
    write_run(out, "sft", name="mine", splits=("test", "ood"))
    write_run(out, "rft", name="mine", done=False, steps=3)
    wild = write_run(out, "uft", name="mine", counts=[0] * 6)
    write_json(wild.path / "DIVERGED.json", {"sentence": "loss = nan at step 2: the run diverged", "global_step": 2})
    write_text(failure_file(directory_of(found.configs[2], out)), "no <model>, there")
    return found, out


def test_every_state_of_a_run_is_told(half_done):
    found, out = half_done
    states = [sweeps.state(config, out) for config in found.configs]
    assert [state.name for state in states] == ["finished", "interrupted", "failed", "diverged", "waiting"]
    assert states[2].detail == "no <model>, there" and str(states[3]).startswith("diverged: loss = nan")


def test_the_plan_is_printed_with_states_and_trains_nothing(half_done, tmp_path, capsys):
    found, out = half_done
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(found.sweep.model_dump(mode="json"), sort_keys=False))
    before = sorted(out.rglob("*"))
    assert cli.main(["sweep", str(tmp_path / "mine.yaml"), "--out", str(out), "--plan"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["arm", "seed", "directory", "state"]
    assert [line.split()[3].rstrip(":") for line in lines] == [
        "finished",
        "interrupted",
        "failed",
        "diverged",
        "waiting",
    ]
    assert sorted(out.rglob("*")) == before


def test_the_summary_has_a_row_a_run(half_done):
    found, out = half_done
    table = sweeps.summary(found, out).set_index("arm")
    assert table.loc["a", "test_avg"] == Run(directory_of(found.configs[0], out)).summary["splits"]["test"]["avg"]
    assert table.loc["a", "validation_avg"] == Run(directory_of(found.configs[0], out)).evaluations["avg"].iloc[-1]
    assert table.loc[["b", "c", "e"], "test_avg"].isna().all()
    assert (
        table.loc["d", "test_avg"] == 0
        and table.loc["d", "diverged"]
        and table.loc[["d"], "validation_avg"].isna().all()
    )
    assert table["config"].tolist() == [config.hash() for config in found.configs]


def test_the_kits_sweeps_are_listed(capsys):
    assert cli.main(["sweep", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sweeps.names()
    assert cli.main(["sweep"]) == 2
    assert f"no sweep is given; name a YAML file, or one of {', '.join(sweeps.names())}" in capsys.readouterr().err


# ---------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A sweep of several methods, an author of demonstrations, and an arm that diverges, in seconds."""
    values = {
        "name": "several",
        "set": {**SMALL, "rl.steps": 6, "records.checkpoint_every": 1},
        "experts": {"student": {"method": "sft"}},
        "arms": {
            "base": {"method": "base"},
            "sft then rft": {"method": "sft_then_rft"},
            "prefix_rft": {},
            "relift": {"method": "relift", "relift.batch_problems": 2},
            "taught": {"method": "sft", "data.expert": "run:student"},
            "wild": {"method": "sft", "sft.lr": 1e30, "sft.warmup_fraction": 0.0},
        },
        "seeds": [1],
    }
    path = tmp_path_factory.mktemp("sweep") / "several.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def together(file, tmp_path_factory):
    """(folder, (status, stdout, stderr) of each): two commands that run one sweep in one folder at the same time."""
    out = tmp_path_factory.mktemp("together") / "runs"
    command = [sys.executable, "-m", "prefix_rft_lab", "sweep", str(file), "--out", str(out), "--workers=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=SECONDS) for process in processes]
    return out, [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


@pytest.mark.slow
def test_two_sweeps_in_one_folder_divide_the_runs_and_end_alike(together, file):
    out, [one, other] = together
    assert (one[0], other[0]) == (0, 0), one[2] + other[2]
    assert one[1] == other[1]
    assert "wild, seed 1 counts as solving nothing: " in one[1] and "6 of 6 finished" in one[1]
    found = sweeps.plan(file)
    runs = [directory_of(config, out) for config in (*found.experts, *found.configs)]
    trained = [
        line for log in (out / "logs").iterdir() for line in log.read_text().splitlines() if " trains from " in line
    ]
    assert sorted(line.split()[2].rstrip(":") for line in trained) == sorted(path.name for path in runs)
    assert all(line.endswith("step 0") for line in trained)
    assert len({line.split()[4] for line in trained}) == 2, "both had a part"
    assert not list(out.rglob(".*.claim*"))


@pytest.mark.slow
def test_a_sweep_killed_ten_times_ends_in_the_same_bits(together, file, tmp_path):
    out, found = tmp_path / "runs", sweeps.plan(file)
    seed = random.randrange(10**6)
    draws = random.Random(seed)
    kills = 0
    for _ in range(40):
        if kills == 10:
            break
        before = size(out)
        process = multiprocessing.get_context("fork").Process(target=quiet_run, args=(found, out))
        process.start()
        end = time.monotonic() + SECONDS
        # From the first sign of work on; some kills strike in the middle of a write, a start or an evaluation.
        while process.is_alive() and size(out) == before:
            assert time.monotonic() < end, "nothing happens"
            time.sleep(0.02)
        # Ten of these together are well below what the sweep takes.
        process.join(draws.uniform(0, 0.5))
        if not process.is_alive():
            break
        kill_all(process.pid)
        process.join()
        kills += 1
    assert kills == 10, "the sweep was over before it was killed often enough"
    sweeps.run(found, out=out, progress=False)
    whole = together[0]
    for config in found.configs:
        assert sweeps.state(config, out).name == ("diverged" if config.sft.lr > 1 else "finished")
    name = found.folder("") / "summary.csv"
    assert (out / name).read_bytes() == (whole / name).read_bytes(), f"seed {seed}"
    resumed = [
        line for log in (out / "logs").iterdir() for line in log.read_text().splitlines() if " trains from " in line
    ]
    assert len(resumed) > len(found.configs) + len(found.experts)


def quiet_run(found, out):
    os.setsid()
    with contextlib.redirect_stderr(None):
        sweeps.run(found, out=out, progress=False)
    os._exit(0)


def size(folder: Path) -> int:
    """Bytes that the runs of a folder recorded and said."""
    return sum(path.stat().st_size for name in ("metrics.jsonl", "*-s1.log", "*-s0.log") for path in folder.rglob(name))


def kill_all(leader: int) -> None:
    """Kill a process and its children, which lead groups of their own, at once."""
    children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
    for group in (leader, *map(int, children)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@pytest.mark.slow
def test_a_run_that_fails_or_takes_too_long_hides_no_other(file, tmp_path, capsys):
    values = yaml.safe_load(file.read_text())
    values["set"] |= {"evaluation.every": 0, "evaluation.hard_tries": 0, "records.tokens_every": 0}
    values["experts"] = {"gone": {"method": "sft", "model.path": str(tmp_path / "nowhere")}}
    values["arms"] = {
        "long": {"method": "rft", "rl.steps": 4000},
        "taught": {"method": "sft", "data.expert": "run:gone"},
        "sft": {"method": "sft"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    arguments = ["sweep", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "runs"), "--workers=1", "--run-limit=15"]
    assert cli.main(arguments) == 1
    shown = capsys.readouterr()
    assert "3 of 4 runs did not finish; the same call keeps the other 1" in shown.err
    assert "stopped: it took longer than 15 seconds; it resumes from its newest checkpoint" in shown.err
    assert "which writes its demonstrations, did not finish" in shown.err
    assert "nowhere' is not there" in shown.err and "the end of " in shown.err
    assert [line.split()[0] for line in shown.out.splitlines() if " test " in line] == ["SFT"]
    assert "(1 of 3 finished)" in shown.out
    found = sweeps.plan(tmp_path / "mine.yaml")
    states = [sweeps.state(config, tmp_path / "runs") for config in found.configs]
    assert [state.name for state in states] == ["failed", "failed", "finished"]
    assert states[0].detail.startswith("stopped: it took longer than 15 seconds")
    assert any((directory_of(found.configs[0], tmp_path / "runs") / "checkpoints").iterdir()), "its checkpoint is kept"


def test_the_methods_of_the_kit_are_all_in_a_sweep():
    arms = {planned.config.method for name in sweeps.names() for planned in sweeps.plan(name, "full").runs}
    rivals = {"dft", "hpt", "dynamic", "chord_mu", "chord_phi", "trapo"}  # not tuned, and in no published comparison
    assert arms >= set(METHODS) - {"dr_po", "rft_clip"} - rivals and not arms & rivals
