"""Choose, for every method and variant, the arm of the tuning sweeps that scored highest on the validation split.

    prefix-rft sweep tuning --profile full --out runs
    prefix-rft sweep tuning_parts --profile full --out runs
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


def tried(plan: sweeps.Plan, out: Path) -> list[dict]:
    """One entry per arm: its method, the part that is changed, its learning rates, and what each seed scored on the
    validation split (avg@k)."""
    if any(sweeps.state(config, out).name not in ("finished", "diverged") for config in plan.configs):
        sys.exit(
            f"some runs are not finished; run: prefix-rft sweep {plan.sweep.name} --profile {plan.profile} --out {out}"
        )
    table = sweeps.summary(plan, out).fillna({"validation_avg": 0.0})
    entries = []
    for (arm, *values), rows in table.groupby(["arm", *plan.fields], sort=False):
        departures = {**plan.sweep.arms[arm], **dict(zip(plan.fields, values, strict=True))}
        scores = [float(score) for score in rows["validation_avg"]]
        entries.append(
            {
                "method": str(rows["method"].iloc[0]),
                "part": sweeps.part_of(departures),
                "fields": {field: value for field, value in departures.items() if field.endswith(".lr")},
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
    plans = [sweeps.plan(name, arguments.profile) for name in ("tuning", "tuning_parts")]
    entries = [entry for plan in plans for entry in tried(plan, arguments.out)]
    config = plans[0].configs[0]
    best: list[dict] = []
    for entry in sorted(entries, key=lambda entry: -entry["avg"]):
        if all(of(entry) != of(other) for other in best):
            best.append(entry)
    record = {
        "sweep": "tuning",
        "profile": arguments.profile,
        "metric": f"avg@{config.evaluation.k} of {config.evaluation.problems} validation problems",
        "fields": {entry["method"]: entry["fields"] for entry in best if not entry["part"]},
        "parts": [{name: entry[name] for name in ("method", "part", "fields")} for entry in best if entry["part"]],
        "tried": entries,
    }
    sweeps.TUNED.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for entry in entries:
        mark = "*" if entry in best else " "
        print(f"{mark} {entry['method']:14} {entry['part'] or ''} {entry['fields']} {entry['avg']:.3f}")


def of(entry: dict) -> tuple[str, dict]:
    """What is tuned."""
    return entry["method"], entry["part"]


if __name__ == "__main__":
    main()
