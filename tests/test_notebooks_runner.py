"""Headless notebooks: parameters are checked, and only a notebook that ran to its end counts as run."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from prefix_rft_lab import notebooks, sweeps
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.experiments.profiles import PROFILES
from prefix_rft_lab.notebooks import Parameter, check_parameters, experiment_parameters, parameters_of, run_notebook
from prefix_rft_lab.pool import PoolError
from prefix_rft_lab.runs import RunError

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import publish_results

PARAMETERS = """\
profile: str = "quick"  # how much is run
out: str = ""  # folder of runs and figures
seeds: int = 2  # number of seeds, in [1, 5]
rate: float = 0.5  # a share
mode: str = "a#b"  # how, one of: a#b, slow, fast
"""

CHECK = """\
from prefix_rft_lab.notebooks import experiment_parameters, finish
experiment = experiment_parameters(profile=profile, out=out, seeds=seeds, rate=rate, mode=mode)
"""


def write(folder: Path, *cells: str, name: str = "07_small", parameters: str = PARAMETERS) -> Path:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook.cells = [nbformat.v4.new_markdown_cell("# Small"), first, *map(nbformat.v4.new_code_cell, cells)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


FINISH = 'finish(experiment.out, "07_small")'


# ---------------------------------------------------------------------- parameters, without a kernel


def test_parameters_are_read_with_type_default_and_help(tmp_path):
    found = parameters_of(write(tmp_path))
    assert found["seeds"] == Parameter(int, 2, "number of seeds, in [1, 5]")
    assert found["mode"].default == "a#b"
    assert list(found) == ["profile", "out", "seeds", "rate", "mode"]


@pytest.mark.parametrize(
    "line",
    ["seeds = 2", "seeds: int = two", "seeds: list = []", "seeds: int = (\n 2)", "import os", 'seeds: int = "2"'],
)
def test_lines_that_are_not_plain_are_refused(tmp_path, line):
    with pytest.raises(ConfigError, match=r"seeds|import os"):
        parameters_of(write(tmp_path, parameters=line))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"seed": 3}, "seed = 3 is not a parameter of x; did you mean seeds?"),
        ({"zzz": 3}, "known are profile, out, seeds, rate, mode"),
        ({"seeds": "3"}, "seeds = '3' is a str; give int, such as 2"),
        ({"seeds": True}, "seeds = True is a bool"),
        ({"seeds": 9}, r"seeds = 9 is out of range; choose it in \[1, 5\]"),
        ({"mode": "b"}, "mode = 'b' is not known; use one of a#b, slow, fast"),
        ({"profile": "quik"}, "profile = 'quik' is not known; use one of smoke, quick, full"),
    ],
)
def test_values_that_cannot_be_used_are_named(tmp_path, given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_parameters(notebooks._declared(PARAMETERS, "x"), given, "x")


def test_good_values_pass_and_defaults_fill_in(tmp_path):
    values = check_parameters(notebooks._declared(PARAMETERS, "x"), {"rate": 1, "out": tmp_path, "mode": "slow"})
    assert values == {"profile": "quick", "out": str(tmp_path), "seeds": 2, "rate": 1.0, "mode": "slow"}
    assert isinstance(values["rate"], float)


def test_outside_a_kernel_the_standard_parameters_hold(tmp_path, capsys):
    experiment = experiment_parameters(profile="smoke", out=str(tmp_path), seeds=3)
    assert experiment.runs == tmp_path / "runs"
    assert "profile = 'smoke'  (default 'quick')" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="profile = 'smok'"):
        experiment_parameters(profile="smok", out="")


def test_normalise_leaves_images_and_takes_paths_out():
    notebook = {
        "metadata": {"papermill": {"input_path": "/home/me/x"}, "kernelspec": {"name": "python3"}},
        "cells": [
            {
                "cell_type": "code",
                "id": "b1",
                "metadata": {"papermill": {"duration": 1.0}, "execution": {}, "tags": []},
                "source": "1",
                "outputs": [
                    {"output_type": "stream", "text": ["/home/me/x/runs\n", "/home/men /etc/home/me\n"]},
                    {"output_type": "display_data", "data": {"image/png": "A/home/me", "text/plain": "/home/me/a"}},
                ],
            }
        ],
    }
    clean = publish_results.normalise(notebook, {"/home/me": "~", "/home/me/x": "."})
    assert clean["metadata"] == {"kernelspec": {"name": "python3"}}
    assert clean["cells"][0]["metadata"] == {}
    assert clean["cells"][0]["outputs"][0]["text"] == ["./runs\n", "/home/men /etc/home/me\n"]
    assert clean["cells"][0]["outputs"][1]["data"] == {"image/png": "A/home/me", "text/plain": "~/a"}


# ---------------------------------------------------------------------- running


def test_a_good_notebook_runs_in_this_interpreter_and_leaves_no_paths(tmp_path):
    path = write(
        tmp_path / "books",
        CHECK,
        "import os, sys\nimport matplotlib.pyplot as plt\nprint(sys.prefix, os.environ['OMP_NUM_THREADS'], experiment.runs)\n"
        "plt.plot([1, 2]); plt.show()",
        f"(experiment.out / 'where.txt').write_text(sys.executable + ' ' + os.getcwd())\n{FINISH}",
    )
    out = tmp_path / "out"
    executed = run_notebook(path, out / "notebooks" / path.name, {"out": out, "seeds": 3}, progress=False)
    text = publish_results.copied(executed, out).decode()
    assert (out / "where.txt").read_text() == f"{sys.executable} {path.parent}"
    assert str(tmp_path) not in text and sys.prefix not in text and "papermill" not in text and "/tmp" not in text
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "seeds = 3  (default 2)" in printed
    assert "rate = 0.5\n" in printed, "an unchanged value is not marked"
    assert "[python] 1 reproduction/out/runs" in printed
    assert any("image/png" in o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", []))
    assert json.loads((out / "notebooks" / "07_small.done.json").read_text())["ticket"]
    assert not list((out / "notebooks").glob("*.partial.ipynb"))


def test_an_error_names_notebook_cell_and_error_and_keeps_what_ran(tmp_path):
    path = write(tmp_path, CHECK, "x = 1\n1 / 0", FINISH)
    (tmp_path / "notebooks").mkdir()
    stale = tmp_path / "notebooks" / "07_small.done.json"
    stale.write_text("{}")
    with pytest.raises(RunError, match=r"07_small.ipynb failed at cell 'x = 1': ZeroDivisionError: division by zero"):
        run_notebook(path, tmp_path / "out.ipynb", {"out": str(tmp_path)}, progress=False)
    assert not stale.exists(), "a sign of an earlier success must not survive"
    assert "division by zero" in (tmp_path / "out.partial.ipynb").read_text()
    assert not (tmp_path / "out.ipynb").exists()


def test_leaving_by_sys_exit_is_not_success(tmp_path):
    path = write(tmp_path, CHECK, "import sys\nsys.exit(0)", FINISH)
    with pytest.raises(RunError, match="stopped at cell 'import sys' without an error and without finish"):
        run_notebook(path, tmp_path / "out.ipynb", {"out": str(tmp_path)}, progress=False)


def test_the_time_limit_ends_kernel_and_notebook(tmp_path):
    path = write(tmp_path, CHECK, "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(300)", FINISH)
    started = time.monotonic()
    with pytest.raises(RunError, match="stopped at cell 'import os, time': it took longer than 12 seconds"):
        run_notebook(path, tmp_path / "out.ipynb", {"out": str(tmp_path)}, seconds_limit=12, progress=False)
    assert time.monotonic() - started < 60
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_killed_kernel_is_not_success(tmp_path):
    path = write(tmp_path, CHECK, "import os\nos.kill(os.getpid(), 9)", FINISH)
    with pytest.raises(RunError, match="lost its kernel at cell 'import os'"):
        run_notebook(path, tmp_path / "out.ipynb", {"out": str(tmp_path)}, progress=False)


def test_bad_parameters_start_no_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "_execute", None)
    path = write(tmp_path, CHECK, FINISH)
    with pytest.raises(ConfigError, match=r"seed = 1 is not a parameter of 07_small.ipynb; did you mean seeds"):
        run_notebook(path, tmp_path / "o.ipynb", {"out": str(tmp_path), "seed": 1})
    with pytest.raises(ConfigError, match="out is not given"):
        run_notebook(path, tmp_path / "o.ipynb", {})
    with pytest.raises(ConfigError, match="is not a notebook"):
        run_notebook(Path(__file__), tmp_path / "o.ipynb", {})


def test_the_callers_interrupt_ends_the_kernel(interruptible, tmp_path):
    path = write(tmp_path, CHECK, "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(300)", FINISH)

    def interrupt() -> None:
        until = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < until:
            time.sleep(0.1)
        if (tmp_path / "pid").exists():
            os.kill(os.getpid(), 2)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_notebook(path, tmp_path / "out.ipynb", {"out": str(tmp_path)}, progress=False)
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


# ---------------------------------------------------------------------- all of them

SWEEP = """\
name: main
set: {rl.steps: 2, rollout.problems_per_step: 2, data.train_problems: 16, data.eval_problems: 4, evaluation.problems: 4,
      evaluation.k: 2, evaluation.hard_tries: 0, evaluation.every: 0, records.save_model: false}
arms: {rft: {method: rft}, lost: {method: rft, model.path: LOST}}
profiles: {smoke: {arms: [rft]}, full: {seeds: [0]}}
"""


def test_reproduce_runs_the_notebooks_in_order_and_reports(tmp_path, monkeypatch, capsys):
    parameters = 'profile: str = "quick"\nout: str = ""\nworkers: int = 2  # in [1, 8]\n'
    check = CHECK.replace("seeds=seeds, rate=rate, mode=mode", "workers=workers")
    (tmp_path / "main.yaml").write_text(SWEEP.replace("LOST", str(tmp_path / "lost")))
    monkeypatch.setattr(sweeps, "FOLDER", tmp_path)
    small = replace(PROFILES["smoke"], changes={}, sweeps=("main",), notebooks=("01", "02"))
    monkeypatch.setitem(PROFILES, "smoke", small)
    monkeypatch.setitem(PROFILES, "full", replace(small, notebooks=None))
    books = tmp_path / "books"
    found = "from prefix_rft_lab import load_all\nassert len(load_all(experiment.runs)) == 1"
    write(books, check, found, 'finish(experiment.out, "02_b")', name="02_b", parameters=parameters)
    write(books, check, "finish(experiment.out, '01_a')", name="01_a", parameters=parameters)
    write(books, "1 / 0", name="03_not_of_this_profile")
    write(books, "1 / 0", name="notes")
    calls = []

    def write_report(folder, *, runs, title, seconds=None, notebooks=(), sweeps=None):
        calls.append((runs, [path.name for path in notebooks], sweeps))
        (folder / "report.html").write_text(title)
        return folder / "report.html"

    fake = types.ModuleType("prefix_rft_lab.report")
    fake.write_report = write_report
    monkeypatch.setitem(sys.modules, "prefix_rft_lab.report", fake)
    monkeypatch.setattr("prefix_rft_lab.report", fake, raising=False)
    report = notebooks.reproduce("smoke", tmp_path / "out", 1, notebooks=books)
    assert report == tmp_path / "out" / "smoke" / "report.html"
    [(runs, executed, given)] = calls
    assert executed == ["01_a.ipynb", "02_b.ipynb"]
    assert [run.method for run in runs] == ["rft"]
    assert given["main"][0].sweep.name == "main" and given["main"][1] == runs
    shown = capsys.readouterr()
    assert report.as_uri() in shown.out and "01_a.ipynb" in shown.out and "0/1 runs" in shown.err
    write(tmp_path / "first", check, "1 / 0", name="01_a", parameters=parameters)
    # A run that fails shows before any notebook is run.
    with pytest.raises(PoolError, match="1 of 2 runs did not finish"):
        notebooks.reproduce("full", tmp_path / "out", 1, notebooks=tmp_path / "first", progress=False)
    assert len(calls) == 1 and not (tmp_path / "out" / "full" / "notebooks").exists()
    # A part of it: one notebook, and one sweep.
    notebooks.reproduce("smoke", tmp_path / "out", 1, notebooks=books, only=["01"], sweeps=["main"], progress=False)
    assert calls[-1][1] == ["01_a.ipynb"] and list(calls[-1][2]) == ["main"]
    with pytest.raises(ConfigError, match="only = '07' is no notebook; the numbers are 01, 02, 03"):
        notebooks.reproduce("smoke", tmp_path / "out", notebooks=books, only=["07"])
    with pytest.raises(ConfigError, match="sweep = 'none' is no file and no sweep of the kit"):
        notebooks.reproduce("smoke", tmp_path / "out", notebooks=books, sweeps=["none"])
    with pytest.raises(ConfigError, match="holds no numbered notebooks"):
        notebooks.reproduce("smoke", tmp_path / "out", notebooks=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="profile = 'smok' is not known"):
        notebooks.reproduce("smok", tmp_path / "out", notebooks=books)
