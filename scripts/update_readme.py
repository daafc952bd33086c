"""Write the results of the README, so that no number is typed by hand: scores and claims from results/full/report.json, the
table of a pretrained model from the runs in results/gsm8k.

Prints a notice if the code has changed since the runs.

python scripts/update_readme.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from prefix_rft_lab.core.tables import with_interval

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("results", "gsm8k")
"""What is in the README between ``<!-- NAME: ... -->`` and ``<!-- end of NAME -->``."""


def table(summary: dict) -> str:
    """Markdown table of the compare tables of a summary, and who won."""
    lines = [
        "| method | seeds | test avg@8 | test pass@8 | test greedy | out-of-distribution avg@8 |",
        "|---|---|---|---|---|---|",
    ]
    ood = {row["method"]: row for row in summary["compare"]["ood"]}
    for row in summary["compare"]["test"]:
        cells = [*(scored(row, name) for name in ("avg", "pass", "greedy")), scored(ood[row["method"]], "avg")]
        lines.append(f"| {row['title']} | {row['seeds']} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {sentence}" for sentence in sentences(summary))]
    lines += budget(summary["sweeps"].get("budget", []))
    return "\n".join([*lines, *claims(summary.get("claims", []))])


def sentences(summary: dict) -> list[str]:
    """Who scored higher; of a summary that was made with a bootstrap the differences that its claims hold, by Student's t."""
    if "intervals" in summary:
        return summary["verdicts"]["test"][:5]
    out = []
    for row in summary["claims"]:
        if row["id"] in ("over_sft", "over_rft", "over_sft_then_rft"):
            sign = 1 if row["effect"] > 0 else -1
            low, high = sorted((sign * row["alone_low"], sign * row["alone_high"]))
            word = "not separated, difference" if low <= 0 else "higher by" if sign > 0 else "lower by"
            out.append(
                f"Prefix-RFT against {row['claim'].partition(' than ')[2][:-1]}: {word} {abs(row['effect']):.3f} [{low:.3f}, "
                f"{high:.3f}] avg@8 on test, over {row['seeds']} seeds × {row['problems']} problems."
            )
    return out


def scored(row: dict, name: str) -> str:
    """A score and its interval."""
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def budget(arms: list[dict]) -> list[str]:
    """Markdown table of the methods with more steps; nothing for a summary without them."""
    if not arms:
        return []
    scores: dict[str, dict[str, str]] = {}
    for row in arms:
        times, _, method = row["method"].partition(" · ")
        scores.setdefault(method, {})[times] = f"{scored(row, 'avg')}, {row['seeds']} seeds"
    columns = list(dict.fromkeys(times for by_times in scores.values() for times in by_times))
    return [
        "",
        f"| steps, times those above | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
        *(
            f"| `{method}`, test avg@8 | {' | '.join(by.get(c, '') for c in columns)} |"
            for method, by in scores.items()
        ),
    ]


def claims(judged: list[dict]) -> list[str]:
    """Markdown table of the claims and their verdicts; nothing for a summary without claims."""
    if not judged:
        return []
    every = rejudged(judged)
    judged = [row for row in every if row["verdict"] != "missing"]
    missing = len(every) - len(judged)
    counts = ", ".join(
        f"{count} {verdict}"
        for verdict in ("supported", "contradicted", "undecided", "not judged")
        if (count := sum(row["verdict"] == verdict for row in judged))
    )
    return [
        "",
        f"<details><summary>The paper's claims, put to these runs: {counts}</summary>",
        "",
        "| claim | written | paper | here | verdict (alone) |",
        "|---|---|---|---|---|",
        *(
            f"| {cell(row['claim'])} | {row['written']} | {cell(row['paper'])} | {cell(row['here'])} | {verdict(row)} |"
            for row in judged
        ),
        "",
        f"Here: effect in the claimed direction, its interval widened for all {len(every)} claims; alone: by the plain 95% "
        f"interval. Written: before the runs, or after runs of its arms had been seen. Not judged: an arm took over "
        f"another's learning rate ([tuning](prefix_rft_lab/assets/sweeps/tuning_parts.yaml)).{f' {missing} claims wait for their runs.' if missing else ''}",
        "",
        "</details>",
    ]


def rejudged(rows: list[dict]) -> list[dict]:
    """The kit's claims with the verdicts of a summary, by the rules of today: a claim that the summary does not know waits
    for its runs, and one of an arm without a learning rate of its own is not judged."""
    from prefix_rft_lab import claims

    known = {row["id"]: row for row in rows}
    out, plans = [], {}
    for claim in claims.load():
        row = known.get(claim.id, {"verdict": "missing"}) | {"written": claim.written}
        if row["verdict"] != "missing" and not all(
            claims.has_own_rates(sweep, arm, plans, "full") for sweep, arm in claim.sides
        ):
            row |= {"verdict": "not judged", "alone": "not judged", "here": ""}
        out.append(row)
    return out


def verdict(row: dict) -> str:
    """Verdict, and what the plain interval would say."""
    return (
        "not judged: borrowed learning rate" if row["verdict"] == "not judged" else f"{row['verdict']} ({row['alone']})"
    )


def cell(text: str) -> str:
    """Text in a table's cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def pretrained(folder: Path) -> str:
    """Markdown table of one run a method, and what their steps had to learn from."""
    from prefix_rft_lab.methods import METHODS
    from prefix_rft_lab.runs import load_all
    from prefix_rft_lab.stats import compare, deltas

    def points(row: dict, prefix: str = "") -> str:
        return f"{percent(*(row[n] for n in ('delta', f'{prefix}low', f'{prefix}high')), signed=True)} points"

    runs = {run.config.method: run for run in load_all(folder)}
    compared = {row["method"]: row for row in compare(list(runs.values())).to_dict("records")}
    lines = ["| | steps | right | over the base policy | cut off |", "|---|---|---|---|---|"]
    for method in ("base", "sft", "prefix_rft", "rft"):
        run = runs[method]
        score, truncated = compared[method], run.summary["splits"]["test"]["truncated"]
        rollout = run.config.rollout
        size = f"{rollout.problems_per_step} × {rollout.rows_per_problem} rows"
        if method == "sft":
            size = f"{run.config.sft.batch_rows} demonstrations"
        over = "" if method == "base" else points(score, "delta_")
        lines.append(
            f"| {METHODS[method].title} | {'' if method == 'base' else f'{len(run.metrics)} of {size}'} | "
            f"{percent(score['avg'], score['avg_low'], score['avg_high'])} | {over} | {100 * truncated:.0f}% |"
        )
    lines.append("")
    for method, title in (("rft", "RFT"), ("prefix_rft", "Prefix-RFT")):
        metrics, rollout = runs[method].metrics, runs[method].config.rollout
        rows = rollout.problems_per_step * rollout.rows_per_problem
        lines.append(
            f"{title}: {round(rows * metrics.reward.sum())} of {rows * len(metrics):,} rows were right, and "
            f"{(metrics.grad_norm > 0).sum()} of {len(metrics)} steps had a gradient."
        )
    [over] = deltas([runs["sft"], runs["prefix_rft"]], "prefix_rft").to_dict("records")
    return "\n".join([*lines, f"SFT over Prefix-RFT: {points(over)}."])


def percent(mean: float, low: float, high: float, *, signed: bool = False) -> str:
    """A share, or a signed difference in points, and its interval."""
    return f"{100 * mean:{'+' if signed else ''}.1f}{'' if signed else '%'} [{100 * low:.1f}, {100 * high:.1f}]"


def stamp(summary: dict) -> str:
    """Whether the runs were made by the code as it is."""
    sys.path.insert(0, str(ROOT))
    from prefix_rft_lab.runs.run import source_hash

    source = summary["source"]
    made = source.get("all", source["runs"])
    if made == [source_hash()]:
        return ""
    return f"The code has changed since these runs were made (source {', '.join(made)} then, {source_hash()} now)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    summary = json.loads((ROOT / "results" / "full" / "report.json").read_text(encoding="utf-8"))
    notice = stamp(summary)
    if notice:
        print(notice)
    new = text
    for name, section in zip(SECTIONS, (table(summary), pretrained(ROOT / "results" / "gsm8k")), strict=True):
        start = new.index("\n", new.index(f"<!-- {name}:")) + 1
        new = new[:start] + "\n" + section + "\n\n" + new[new.index(f"<!-- end of {name} -->") :]
    if check:
        sys.exit(
            0 if new == text else "README.md: the results differ from those in results/; run scripts/update_readme.py"
        )
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
