"""The first screen of a report, as a reader sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_factory import write_run

from prefix_rft_lab import plots
from prefix_rft_lab.report import write_report


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_answer_table_and_figure_stand_on_the_first_screen(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    monkeypatch.setattr(plots, "FIGURES", {})
    monkeypatch.setattr(plots, "TOKEN_FIGURES", {})
    methods = ("base", "sft", "rft", "sft_then_rft", "prefix_rft", "luffy", "relift", "uft")
    runs = [write_run(tmp_path, m, s) for m in methods for s in ((0,) if m == "base" else (0, 1, 2))]
    page.set_viewport_size({"width": width, "height": height})
    page.goto(write_report(tmp_path / "report", runs=runs, title="First").as_uri())
    for part in (".answer", ".first table", ".plot"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, part
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Labels can be read, and every mark lies on its track.
    assert page.locator(".plot .row").first.evaluate("e => parseFloat(getComputedStyle(e).fontSize)") >= 12
    for mark in page.locator(".track i").all():
        box, track = mark.bounding_box(), mark.locator("xpath=..").bounding_box()
        assert track["x"] - 6 <= box["x"] and box["x"] + box["width"] <= track["x"] + track["width"] + 6
