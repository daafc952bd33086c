"""How smoothly the explorers scrub 500 steps of 2,000 tokens, in Chromium, in JupyterLab and in a page of their own.

The explorer's own paint time should stay below 8 ms in 95 of 100 frames (a frame lasts 16.7 ms, and JupyterLab wants
its part), and fewer than 2% of frames should come late. Of three rounds the best counts. The control is a page whose
frames paint nothing: what it misses, the machine misses.

    python benchmarks/explorers.py [--steps 500] [--tokens 2000] [--rounds 3] [--without-lab]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from browser import stub
from browser.frames import MISSED, Scrub, scrub
from browser.lab import Lab, notebook, token_table, write_runs
from playwright.sync_api import Browser, Page, sync_playwright

from prefix_rft_lab import preset
from prefix_rft_lab.widgets import ScheduleExplorer, TokenExplorer

PAINT, MISSES = 8.0, 0.02


def report(where: str, name: str, result: Scrub) -> None:
    good = result.paint_p95 < PAINT and result.missed < MISSES
    print(
        f"{where:11s} {name:18s} paint median {result.paint_p50:5.2f} ms, p95 {result.paint_p95:5.2f} ms; "
        f"frames missed {100 * result.missed:4.1f}%  {'ok' if good else 'OVER the bound'}"
    )


def idle(page: Page, count: int) -> float:
    """Share of late frames of a page that paints nothing."""
    stamps = page.evaluate(
        "async (count) => { const out = []; for (let i = 0; i < count; i++) out.push(await new Promise(requestAnimationFrame)); return out; }",
        count,
    )
    return float((np.diff(stamps) > MISSED).mean())


def alone(browser: Browser, args: argparse.Namespace) -> None:
    config = preset("tiny", **{"rl.steps": args.steps, "prefix.decay_steps": args.steps})
    words = [f" word{i % 97}" for i in range(args.tokens)]
    views = {
        "Token explorer": TokenExplorer(token_table(args.steps, args.tokens)),
        "Schedule explorer": ScheduleExplorer(config, words),
    }
    for name, widget in views.items():
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        stub.show(page, widget)
        report("own page", name, scrub(page, name, count=args.steps, rounds=args.rounds))
        page.close()
    page = browser.new_page()
    print(
        f"{'own page':11s} {'empty page':18s} frames missed {100 * min(idle(page, args.steps) for _ in range(args.rounds)):4.1f}%"
    )
    page.close()


def in_lab(browser: Browser, args: argparse.Namespace, folder: Path) -> None:
    with Lab(folder / "lab") as lab:
        token_table(args.steps, args.tokens).to_parquet(lab.notebooks / "long.parquet")
        lab.write("explorers", notebook(write_runs(folder / "runs")))
        page = lab.open(browser, "explorers")
        lab.run_all(page)
        for name in ("Token explorer", "Schedule explorer"):
            view = page.get_by_role("group", name=name)
            view.wait_for(timeout=120_000)
            view.scroll_into_view_if_needed()
            report("JupyterLab", name, scrub(page, name, count=args.steps, rounds=args.rounds))
        page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-lab", action="store_true", help="only the pages without JupyterLab")
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("there is no Chromium; install Debian's package chromium")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=chromium)
        print(f"{args.steps} steps x {args.tokens} tokens, best of {args.rounds} rounds, Chromium {browser.version}")
        alone(browser, args)
        if not args.without_lab:
            in_lab(browser, args, Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
