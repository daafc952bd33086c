"""Take a reproduction into the repository: report, summary, figures, executed notebooks, and the README's table.

    make reproduce PROFILE=full
    python scripts/publish_results.py reproduction/full

Runs themselves (weights, token tables) stay where they are; the report and the summary name their configs and sources.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("report.html", "report.md", "summary.json", "figures/*.png", "figures/*.csv", "notebooks/*.ipynb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `make reproduce` left, e.g. reproduction/full")
    folder = parser.parse_args().folder
    if not (folder / "summary.json").is_file():
        sys.exit(f"folder = {str(folder)!r} holds no summary.json; run make reproduce PROFILE=full first")
    target = ROOT / "results" / folder.name
    shutil.rmtree(target, ignore_errors=True)
    for pattern in KEPT:
        for path in sorted(folder.glob(pattern)):
            if ".partial." in path.name:
                continue
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "update_readme.py")], check=True)


if __name__ == "__main__":
    main()
