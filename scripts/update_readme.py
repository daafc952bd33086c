"""Write the results table of the README from results/full/summary.json, so that no number is typed by hand.

python scripts/update_readme.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:", "<!-- end of results -->"


def table(summary: dict) -> str:
    """Markdown table of the compare tables of a summary, and who won."""
    lines = [
        "| method | seeds | test avg@8 | test pass@8 | test greedy | out-of-distribution avg@8 |",
        "|---|---|---|---|---|---|",
    ]
    ood = {row["method"]: row for row in summary["compare"]["ood"]}
    for row in summary["compare"]["test"]:
        cells = [f"{row[m]:.3f} [{row[f'{m}_low']:.3f}, {row[f'{m}_high']:.3f}]" for m in ("avg", "pass", "greedy")]
        other = ood[row["method"]]
        cells.append(f"{other['mean']:.3f} [{other['low']:.3f}, {other['high']:.3f}]")
        lines.append(f"| {row['title']} | {row['seeds']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in summary["verdicts"]["test"][:5])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    summary = json.loads((ROOT / "results" / "full" / "summary.json").read_text(encoding="utf-8"))
    start = text.index("\n", text.index(BEGIN)) + 1
    new = text[:start] + "\n" + table(summary) + "\n\n" + text[text.index(END) :]
    if check:
        sys.exit(
            0
            if new == text
            else "README.md: the results differ from results/full/summary.json; run scripts/update_readme.py"
        )
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
