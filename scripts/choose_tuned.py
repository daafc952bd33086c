"""Choose, for every method, the arm of the tuning sweep that scored highest on the validation split.

    prefix-rft sweep tuning --profile full --out runs
    python scripts/choose_tuned.py runs

writes prefix_rft_lab/assets/tuned.json: what was chosen, and everything that was tried. A run that diverged
counts as 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from prefix_rft_lab import sweeps

VARIANTS = {"rft_clip": "rft", "dr_po": "prefix_rft"}
"""Methods that are another with one part changed, and take over what was chosen for that."""


def tried(plan: sweeps.Plan, out: Path) -> list[dict]:
    """One entry an arm: its fields, and what each seed scored on the validation split (avg@k)."""
    if any(sweeps.state(config, out).name not in ("finished", "diverged") for config in plan.configs):
        sys.exit(f"some runs are not finished; run: prefix-rft sweep tuning --profile {plan.profile} --out {out}")
    table = sweeps.summary(plan, out).fillna({"validation_avg": 0.0})
    entries = []
    for arm, rows in table.groupby("arm", sort=False):
        departures = dict(plan.sweep.arms[arm])
        scores = [float(score) for score in rows["validation_avg"]]
        entries.append(
            {
                "method": departures.pop("method"),
                "fields": departures,
                "seeds": [int(seed) for seed in rows["seed"]],
                "scores": scores,
                "avg": sum(scores) / len(scores),
            }
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the sweep's runs")
    parser.add_argument("--profile", default="full")
    arguments = parser.parse_args()
    plan = sweeps.plan("tuning", arguments.profile)
    entries = tried(plan, arguments.out)
    config = plan.configs[0]
    chosen: dict[str, dict] = {}
    for method in dict.fromkeys(entry["method"] for entry in entries):
        best = max((entry for entry in entries if entry["method"] == method), key=lambda entry: entry["avg"])
        chosen[method] = best["fields"]
    chosen |= {variant: chosen[of] for variant, of in VARIANTS.items()}
    record = {
        "sweep": "tuning",
        "profile": arguments.profile,
        "metric": f"avg@{config.evaluation.k} of {config.evaluation.problems} validation problems",
        "fields": chosen,
        "tried": entries,
    }
    sweeps.TUNED.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for entry in entries:
        mark = "*" if chosen[entry["method"]] == entry["fields"] else " "
        print(f"{mark} {entry['method']:14} {entry['fields']} {entry['avg']:.3f}")


if __name__ == "__main__":
    main()
