"""A short part of ``make endure``: nothing lost, nothing wrong, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_what_is_tried_in_a_minute_breaks_nothing():
    found = subprocess.run(
        [sys.executable, "scripts/endure.py", "--seconds", "60", "--seed", "1"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    assert [line.split(" | ")[0] for line in found.stdout.splitlines()[-5:]] == [
        f"| {area}" for area in ("kills", "full disk", "damage", "answers", "commands")
    ]
