"""Take a reproduction into the repository: report, summary, figures, executed notebooks, and the README's table.

    make reproduce PROFILE=full
    python scripts/publish_results.py reproduction/full

The report is taken as Markdown, which a repository shows; the same as one HTML page, 2 MB of embedded pictures, stays with
the reproduction. Pictures are stored with 256 colours, which a chart does not miss and which makes them a third as large.
Runs themselves (weights, token tables) stay where they are; the report and the summary name their configs and sources.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("report.md", "summary.json", "figures/*.png", "notebooks/*.ipynb")


def smaller(png: bytes) -> bytes:
    """The picture with 256 colours."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(out, format="png", optimize=True)
    return out.getvalue()


def encoded_smaller(png: str) -> str:
    """The same for a picture in base64."""
    return base64.b64encode(smaller(base64.b64decode(png))).decode()


def copied(path: Path) -> bytes:
    """A file's contents with its pictures made smaller."""
    if path.suffix == ".png":
        return smaller(path.read_bytes())
    if path.suffix == ".ipynb":
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                png = output.get("data", {}).get("image/png")
                if png:
                    output["data"]["image/png"] = encoded_smaller(png)
        return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
    return path.read_bytes()


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
            copy.write_bytes(copied(path))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "update_readme.py")], check=True)


if __name__ == "__main__":
    main()
