"""A JupyterLab server of its own, and pages in it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from run_factory import write_run

HOSTILE = '</script><img src=x onerror="window.hacked=1"><b>bold</b>\x1b[31mred\u202egnp.exe'
"""Markup, a terminal's escape, and a character that turns the reading order round."""

READY = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  if (!panel?.context?.isReady || !panel.sessionContext?.isReady) return false;
  const kernel = panel.sessionContext.session?.kernel;
  return kernel ? kernel.status === "idle" : panel.sessionContext.kernelPreference?.shouldStart === false;
}"""


class Lab:
    """``with Lab(folder) as lab``: a server on loopback whose settings and state stay in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir(parents=True)
        self.token = secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment = {**os.environ, "HOME": str(folder), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            self.environment[f"JUPYTER_{name}"] = str(folder / name.lower())
        self.environment["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")
        # Otherwise a notification asks whether to fetch news, and covers what is looked at.
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Lab:
        self.log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
                "--expose-app-in-browser", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                "--LabApp.news_url=None", "--LabApp.extension_manager=readonly",
            ],
            cwd=self.notebooks, env=self.environment, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/api/status?token={self.token}", timeout=5):
                    return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError((self.folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        # It shuts its kernels down on SIGTERM.
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def write(self, name: str, content: nbformat.NotebookNode) -> Path:
        path = self.notebooks / f"{name}.ipynb"
        nbformat.write(content, path)
        return path

    def trust(self, name: str) -> None:
        """Sign a notebook, as its author's machine would."""
        subprocess.run(
            [sys.executable, "-m", "jupyter", "trust", f"{name}.ipynb"], cwd=self.notebooks, env=self.environment,
            check=True, capture_output=True,
        )  # fmt: skip

    def open(self, browser: Any, name: str, *, width: int = 1280) -> Any:
        """A page with the notebook; ``page.problems`` and ``page.elsewhere`` record console errors and other hosts."""
        context = browser.new_context(viewport={"width": width, "height": 1000}, reduced_motion="reduce")
        page = context.new_page()
        page.problems, page.elsewhere = [], []

        def route(route: Any) -> None:
            url = route.request.url
            if url.startswith((f"{self.address}/", "data:", "blob:")):
                route.continue_()
            else:
                page.elsewhere.append(url)
                route.abort()

        context.route("**/*", route)
        page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(f"{self.address}/doc/tree/{name}.ipynb?token={self.token}&reset")
        page.wait_for_function("() => window.jupyterapp", timeout=60_000)
        page.evaluate("() => window.jupyterapp.restored")
        page.wait_for_function(READY, timeout=60_000)
        return page

    @staticmethod
    def run_all(page: Any) -> None:
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")

    @staticmethod
    def theme(page: Any, name: str) -> None:
        page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })", name)
        light = str(name == "JupyterLab Light").lower()
        page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light && !document.getElementById('jupyterlab-splash')"
            " && [...document.querySelectorAll('.prefix-explorer')].every(e => e.classList.contains('dark') === (light === 'false'))",
            arg=light,
        )  # fmt: skip


def write_runs(folder: Path) -> Path:
    """A method with two seeds, another with one, and one that is still being written."""
    write_run(folder, "prefix_rft", 0)
    write_run(folder, "prefix_rft", 1)
    write_run(folder, "rft", 0)
    write_run(folder, "sft", 0, done=False, steps=2)
    return folder


def token_table(steps: int, tokens: int, *, seed: int = 0, run: str = "long") -> pd.DataFrame:
    """A table with every column, one rollout a step, with hostile, empty and half characters among its texts."""
    draws = np.random.default_rng(seed)
    words = np.array(
        [" the", " of", "\n", " 12", "+", "ing", " (x", "\ufffd", "", "你", " integral", "\t", HOSTILE], dtype=object
    )
    count = steps * tokens
    ids = draws.integers(0, len(words), count) * (draws.random(count) < 0.9)
    position = np.tile(np.arange(tokens), steps)
    entropy = draws.gamma(0.5, 0.8, count) * np.repeat(np.linspace(1.5, 0.5, steps), tokens)
    entropy[::97] = np.nan
    top = np.stack([ids, (ids + 1) % len(words), (ids + 2) % len(words)], axis=1)
    prefix = position < tokens // 3
    return pd.DataFrame(
        {
            "run": run,
            "step": np.repeat(np.arange(steps), tokens),
            "problem": "train-0",
            "row": 7,
            "position": position,
            "token_id": ids,
            "text": words[ids],
            "kind": np.where(prefix, "prefix", "continuation"),
            "entropy": entropy,
            "temperature": 1.0,
            "logp": -draws.gamma(0.5, 1.0, count),
            "ratio": np.exp(draws.normal(0, 0.1, count)),
            "advantage": np.where(prefix & (draws.random(count) < 0.8), 0.0, 0.5),
            "kept": ~prefix | (draws.random(count) < 0.2),
            "score": 1.0,
            "top_ids": list(top),
            "top_probs": list(np.tile([0.7, 0.2, 0.1], (count, 1))),
            "top_texts": list(words[top]),
        }
    )


def notebook(runs: Path, table: str = "long.parquet") -> nbformat.NotebookNode:
    """One explorer a cell; what Python hears of them is written to ``heard.json``."""
    cells = [
        f"""import json
from pathlib import Path
import pandas as pd
from prefix_rft_lab import load_all, preset
from prefix_rft_lab.widgets import RunExplorer, ScheduleExplorer, TokenExplorer
folder = Path({str(runs)!r})
config = preset("tiny", **{{"rl.steps": 500, "prefix.decay_steps": 400}})
heard = {{}}
def listen(name, widget, *traits):
    def write(change):
        heard[f"{{name}}.{{change['name']}}"] = change["new"]
        Path("heard.json").write_text(json.dumps(heard))
    widget.observe(write, list(traits))""",
        """schedule = ScheduleExplorer(config, [[f" word{i % 7}" for i in range(2000)], ["2", "+", "3", "\\n", "5"]], step=100)
listen("schedule", schedule, "step", "low", "high", "decay_steps")
schedule""",
        f"""tokens = TokenExplorer(pd.read_parquet({table!r}))
listen("tokens", tokens, "step", "cursor", "layer")
tokens""",
        """runs = RunExplorer(folder, refresh=0.5)
listen("runs", runs, "step", "metric", "sort")
runs""",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def heard(lab: Lab) -> dict[str, Any]:
    """What the notebook's Python was told by its widgets so far."""
    path = lab.notebooks / "heard.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
