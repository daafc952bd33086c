"""Debian's Chromium under playwright, and a real JupyterLab with one notebook of explorers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser.lab import Lab, notebook, token_table, write_runs

CHROMIUM = os.environ.get("PREFIX_RFT_LAB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser; without Chromium the tests skip, and fail in continuous integration."""
    if CHROMIUM is None:
        reason = "no Chromium: install Debian's package chromium, or name its binary in PREFIX_RFT_LAB_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """An empty page that fails the test on a console error."""
    context = chromium.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    yield page
    problems = page.problems
    context.close()
    assert problems == []


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def lab(chromium: Any, runs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab in folders of its own."""
    with Lab(tmp_path_factory.mktemp("lab")) as server:
        token_table(500, 2000).to_parquet(server.notebooks / "long.parquet")
        token_table(5, 60).to_parquet(server.notebooks / "short.parquet")
        server.write("explorers", notebook(runs_folder))
        yield server
