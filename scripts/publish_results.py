"""Take a reproduction into the repository: report, summary, figures, executed notebooks, and the README's table.

    make reproduce PROFILE=full
    python scripts/publish_results.py reproduction/full

The report is taken as Markdown, which a repository shows; the same as one HTML page, 2 MB of embedded pictures, stays with
the reproduction. Notebooks lose what differs from machine to machine: timings,
random ids, absolute paths. Pictures are stored with 256 colours, which a chart does not miss and which makes them a third as large.
Runs themselves (weights, token tables) stay where they are; the report and the summary name their configs and sources.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CELL_FILE = re.compile(r"[^\s\"'(<>]*ipykernel_\d+/\d+\.py")
VOLATILE = ("papermill", "execution")
KEPT = ("report.md", "report.json", "figures/*.png", "notebooks/*.ipynb")


def smaller(png: bytes) -> bytes:
    """The picture with 256 colours."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(out, format="png", optimize=True)
    return out.getvalue()


def encoded_smaller(png: str) -> str:
    """The same for a picture in base64."""
    return base64.b64encode(smaller(base64.b64decode(png))).decode()


def normalise(notebook: dict[str, Any], replacements: Mapping[str, str]) -> dict[str, Any]:
    """An executed notebook without what differs from machine to machine: timings, random ids, absolute paths.

    Args:
        notebook: nbformat 4 as plain values; changed in place.
        replacements: absolute path -> what stands for it; longer paths go first.
    """
    ordered = sorted(((old, new) for old, new in replacements.items() if len(old) > 1), key=lambda pair: -len(pair[0]))

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            value = CELL_FILE.sub("[cell]", value)
            for old, new in ordered:
                value = re.sub(rf"(?<![\w.-]){re.escape(old)}(?![\w.-])", new.replace("\\", r"\\"), value)
            return value
        if isinstance(value, list):
            return [clean(item) for item in value]
        return {key: clean(item) for key, item in value.items()} if isinstance(value, dict) else value

    notebook["metadata"].pop("papermill", None)
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            if "id" in cell:
                cell["id"] = "injected-parameters"
            cell["source"] = clean(cell["source"])
        for name in VOLATILE:
            cell["metadata"].pop(name, None)
        if not tags:
            cell["metadata"].pop("tags", None)
        for output in cell.get("outputs", []):
            for key in ("text", "traceback", "evalue"):
                if key in output:
                    output[key] = clean(output[key])
            data = output.get("data", {})
            for kind in data:
                # Images are encoded; letters in them that read like a path are none.
                if not kind.startswith("image/") or kind == "image/svg+xml":
                    data[kind] = clean(data[kind])
        cells.append(cell)
    notebook["cells"] = cells
    return notebook


def places(folder: Path) -> dict[str, str]:
    """Absolute paths of this machine that notebooks of a reproduction may show, and what stands for them."""
    return {
        str(folder.absolute()): f"reproduction/{folder.name}",
        str(ROOT / "notebooks"): ".",
        str(ROOT): ".",
        str(Path.cwd()): ".",
        sys.prefix: "[python]",
        tempfile.gettempdir(): "[tmp]",
        str(Path.home()): "~",
    }


def copied(path: Path, folder: Path) -> bytes:
    """A file's contents with its pictures made smaller."""
    if path.suffix == ".png":
        return smaller(path.read_bytes())
    if path.suffix == ".ipynb":
        notebook = normalise(json.loads(path.read_text(encoding="utf-8")), places(folder))
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
    if not (folder / "report.json").is_file():
        sys.exit(f"folder = {str(folder)!r} holds no report.json; run make reproduce PROFILE=full first")
    target = ROOT / "results" / folder.name
    shutil.rmtree(target, ignore_errors=True)
    for pattern in KEPT:
        for path in sorted(folder.glob(pattern)):
            if ".partial." in path.name:
                continue
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(copied(path, folder))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
    subprocess.run([sys.executable, str(ROOT / "scripts" / "update_readme.py")], check=True)


if __name__ == "__main__":
    main()
