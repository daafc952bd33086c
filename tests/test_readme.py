"""The README says what the code does: its commands, its picture and its numbers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prefix_rft_lab import preset
from prefix_rft_lab.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(start: str) -> list[str]:
    lines = (
        line.split("#")[0].strip()
        for block in re.findall(r"```[a-z]*\n(.*?)```", README, re.S)
        for line in block.splitlines()
    )
    return [line for line in lines if line.startswith(start)]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z]+)", README))
    assert {"reproduce", "lab", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("command", commands("prefix-rft"))
def test_commands_parse(command):
    words = shlex.split(command.replace("<run>", "run"))[1:]
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_links_and_pictures_exist():
    headings = re.findall(r"^#+ (.+)$", README, re.M)
    anchors = {"#" + re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert target in anchors if target.startswith("#") else (ROOT / target).exists(), target


def test_fields_that_the_readme_changes_exist():
    for name, value in (("prefix.schedule", "uniform"), ("prefix.keep_fraction", 0.5), ("prefix.keep", "random")):
        assert name in README
        preset("tiny").replace(**{name: value})


def test_results_are_those_of_the_summary():
    done = subprocess.run(
        [sys.executable, "scripts/update_readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
