"""One page that says what a set of runs found: the answer, who won and how surely, tables, figures, configs.

The page is one HTML file that asks nothing of the network: figures are embedded, styles are inline, there is no
script. Everything in it that comes from runs or people (titles, levels, paths) is escaped by the template engine.
Beside it are the same tables as Markdown (``report.md``), the figures with their data (``figures/``) and a small
machine-readable ``report.json``. Nothing in them depends on when or where they were written.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from PIL import Image

from prefix_rft_lab import plots
from prefix_rft_lab.algorithm.methods import METHODS
from prefix_rft_lab.analysis import claims, stats
from prefix_rft_lab.analysis.budgets import budgets
from prefix_rft_lab.core.config import ConfigError, flatten, preset
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import check_writable, write_json, write_text
from prefix_rft_lab.core.tables import Table, inline, with_interval
from prefix_rft_lab.experiments.sweeps import TUNED, Plan
from prefix_rft_lab.plots import RunFigure
from prefix_rft_lab.runs.run import Run, directory_of, source_hash
from prefix_rft_lab.runs.summary import INTERVALS

QUESTION = (
    "From one base policy: which method of post-training scores highest, and does training on prefixes of demonstrations "
    "(Prefix-RFT) beat SFT, RFT and SFT→RFT?"
)
_DETAIL_ROWS = 40
"""Rows of a figure's data that the page shows; the whole table is in figures/."""

_SPLITS = {
    "test": "problems like those trained on",
    "ood": "problems unlike those trained on (out of distribution)",
}
Sweeps = Mapping[str, tuple[Plan, Sequence[Run]]]
"""Name of a sweep -> what was planned, its runs."""


def write_report(
    folder: str | Path,
    *,
    runs: Sequence[Run],
    title: str,
    seconds: float | None = None,
    notebooks: Sequence[Path] = (),
    sweeps: Mapping[str, tuple[Plan, Sequence[Run]]] = {},
) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and ``figures/`` into a folder.

    Args:
        runs: finished or not; unfinished ones are named and left out of the final scores.
        seconds: how long the notebooks took, if known.
        notebooks: executed notebooks to name.
        sweeps: with them, the claims are judged.

    Returns:
        path of ``report.html``.

    Raises:
        ConfigError: no runs, or runs that cannot be compared; the message names the field and the remedy.
    """
    folder = Path(folder).expanduser()
    check_writable(folder, field="folder")
    if (figures_at := folder / "figures").resolve() != folder.resolve() / "figures":
        raise ConfigError(
            f"{figures_at} is a link to {figures_at.resolve()}; take it away, since a report stays in its folder"
        )
    broken = damage([*runs, *(run for _, of in sweeps.values() for run in of)])
    runs = [run for run in runs if run.path not in broken]
    sweeps = {name: (plan, [run for run in of if run.path not in broken]) for name, (plan, of) in sweeps.items()}
    if broken and not runs:
        raise ConfigError(f"no run can be read: {'; '.join(broken.values())}")
    groups = stats.group(runs)
    ordered = [run for members in groups.values() for run in members]
    finished = [run for run in ordered if run.done]
    splits, remarks = _splits(finished)
    compared = {split: stats.compare(finished, split) for split in splits}
    by_level = {split: stats.by_level(finished, split) for split in splits}
    levels = {split: table for split, table in by_level.items() if table["level"].nunique() > 1}
    verdicts = {split: _or_reason(stats.verdicts, finished, split) for split in splits}
    judged = claims.verdict_table(sweeps) if sweeps else pd.DataFrame({"verdict": []})
    arms, arm_remarks = _arms(sweeps)
    figures, undrawn = _figures(folder / "figures", ordered, finished, splits, judged, sweeps, arms)
    remarks = [f"Left out: {sentence}." for sentence in broken.values()] + _remarks(ordered) + remarks + arm_remarks
    costs = budgets(groups)
    tables = [_score_table(table, costs, f"Final scores on {split}") for split, table in compared.items()]
    tables += [_level_table(table, split) for split, table in levels.items()]
    for name, table in arms.items():
        plan, of = sweeps[name]
        spent = budgets(stats.group([run for run in of if run.done], plan.label()))
        question = plan.sweep.question or "final scores on test"
        tables.append(_score_table(table, spent, f"Sweep {name}: {question}", first="Arm"))
    made = [_method_table(groups), _data_table(ordered)]
    details = [_config_table(groups), _environment_table(ordered), _run_table(ordered), *_tuning_table()]
    context = {
        "title": title,
        "question": QUESTION,
        "answer": _or_reason(stats.answer, finished, splits[0])[0] if splits else "",
        "first": _answer_table(compared[splits[0]], costs) if splits else None,
        "plot": _plot(finished, compared[splits[0]], splits[0]) if splits else None,
        "verdicts": {split: (_SPLITS.get(split, ""), lines) for split, lines in verdicts.items()},
        "claims": _claim_table(judged[judged["verdict"] != "missing"]) if len(judged) else None,
        "waiting": list(judged.loc[judged["verdict"] == "missing", "sentence"]) if len(judged) else [],
        "remarks": remarks,
        "evidence": _evidence(compared, ordered, seconds),
        "tables": tables,
        "figures": figures,
        "undrawn": undrawn,
        "made": made,
        "details": details,
        "notebooks": [Path(path).name for path in notebooks],
    }
    write_text(folder / "report.html", _template("report.html.j2").render(**context))
    write_text(folder / "report.md", _template("report.md.j2").render(**context))
    sources = _sources([run for _, of in sweeps.values() for run in of] or ordered)
    write_json(
        folder / "report.json",
        {
            "title": title,
            "intervals": INTERVALS,
            "claims": _plain(judged),
            "sweeps": {name: _plain(table) for name, table in arms.items()},
            "verdicts": verdicts,
            "compare": {split: _plain(table) for split, table in compared.items()},
            "levels": {split: _plain(table.drop(columns="title")) for split, table in levels.items()},
            "budgets": _plain(costs.rename_axis("method").reset_index()),
            "methods": {
                name: {"config": members[0].config.hash(), "seeds": [run.seed for run in members]}
                for name, members in groups.items()
            },
            "runs": [_name(run) for run in ordered],
            "unfinished": [_name(run) for run in ordered if not run.done],
            "remarks": remarks,
            "source": {"runs": sorted(_sources(ordered)), "report": source_hash(), "all": sorted(sources)},
            "seconds": seconds,
        },
    )
    return folder / "report.html"


def damage(runs: Sequence[Run]) -> dict[Path, str]:
    """Directory -> what is wrong, of the runs whose records cannot be read."""
    found = {}
    for run in {run.path: run for run in runs}.values():
        try:
            run.check()
        except RunError as error:
            found[run.path] = str(error).replace(f"{run.path.parent.parent}/", "")
    return found


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prefix_rft_lab", "assets"),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = inline
    return environment.get_template(name)


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows that every reader of JSON takes: no NaN, no NumPy numbers."""
    return json.loads(table.to_json(orient="records", double_precision=6)) if len(table) else []


# ---------------------------------------------------------------------- what can be said


def _or_reason(say: Callable[..., Any], *arguments: Any) -> list[str]:
    try:
        said = say(*arguments)
    except ConfigError as error:
        return [f"Nothing to compare: {error}."]
    return said if isinstance(said, list) else [said]


def _splits(finished: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Splits that all finished runs were evaluated on, and what was left out."""
    named = dict.fromkeys(split for run in finished for split in run.config.evaluation.final_splits)
    count = {s: sum((run.path / "evaluation" / f"{s}.parquet").is_file() for run in finished) for s in named}
    return [split for split in named if count[split] == len(finished)], [
        f"Split {split!r} is left out: only {n} of {len(finished)} runs were evaluated on it."
        for split, n in count.items()
        if 0 < n < len(finished)
    ]


def _arms(sweeps: Sweeps) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """What every arm of each sweep scored on test, and what could not be compared."""
    found, remarks = {}, []
    for name, (plan, runs) in sweeps.items():
        finished = [run for run in runs if run.done]
        if short := len(plan.runs) - len(finished):
            remarks.append(f"Sweep {name!r}: {short} of {len(plan.runs)} runs are not finished.")
        if diverged := sum(bool(run.diverged) for run in finished):
            remarks.append(f"Sweep {name!r}: {diverged} of {len(finished)} runs diverged and count as solving nothing.")
        try:
            if finished:
                found[name] = stats.compare(finished, label=plan.label())
        except (ConfigError, RunError) as error:
            remarks.append(f"Sweep {name!r} is left out: {error}.")
    return found, remarks


def _remarks(runs: Sequence[Run]) -> list[str]:
    """What a reader should know before believing a figure."""
    out = []
    if unfinished := [_name(run) for run in runs if not run.done]:
        out.append(f"Not finished, so not in the final scores: {', '.join(unfinished)}.")
    sources = sorted(_sources(runs))
    if sources != [source_hash()]:
        out.append(
            f"The code has changed since (source hash {source_hash()} now, {', '.join(sources)} then); `make reproduce` "
            "makes the runs anew."
        )
    if len(sources) > 1:
        out.append(
            f"The runs were made by {len(sources)} versions of the code (source hashes {', '.join(sources)}); train them "
            "again with one version before quoting a difference."
        )
    timeouts = sum(stats.records(run, "metrics").get("verifier_timeouts", pd.Series([0])).iloc[-1] for run in runs)
    if timeouts:
        out.append(f"{timeouts:.0f} verifications ran out of time and counted as wrong.")
    return out


def _sources(runs: Sequence[Run]) -> set[str]:
    return {str(plots.environment(run).get("source")) for run in runs}


def _evidence(compared: dict[str, pd.DataFrame], runs: Sequence[Run], seconds: float | None) -> str:
    parts = [f"{len(runs)} runs"]
    for split, table in compared.items():
        parts.append(f"{int(table['problems'].iloc[0])} {split} problems × {int(table['k'].iloc[0])} samples")
    if seconds is not None:
        parts.append(f"notebooks executed in {_duration(seconds)}")
    # Runs may have been finished before the notebooks asked for them, so their own time is counted apart.
    trained = sum(run.summary.get("seconds", 0.0) for run in runs if run.done)
    return ", ".join([*parts, f"trained in {_duration(trained)} of one core"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


# ---------------------------------------------------------------------- tables

_BUDGET = {
    "steps": "Optimizer steps",
    "rows": "Rows sampled",
    "demonstrations": "Demonstration tokens trained",
    "seconds": "Seconds",
}
_FORMATS = {**dict.fromkeys(_BUDGET, ",.0f"), "seconds": ",.1f", "tokens": ".1f", "delta": "+.3f"}


def _with_budget(table: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Scores beside what they cost; where there are two seeds, without intervals, which would span all that is possible."""
    table = table.join(costs, on="method")
    ends = [name for name in table if str(name).endswith(("_low", "_high"))]
    table.loc[table["seeds"] == stats.FEW, ends] = float("nan")
    return table


def _answer_table(table: pd.DataFrame, costs: pd.DataFrame) -> Table:
    heads = {"title": "Method", "avg": f"avg@{int(table['k'].iloc[0])}", **_BUDGET}
    best = list(table["mean"] == table["mean"].max())
    return Table(
        frame=_with_budget(table, costs), heads=heads, formats=_FORMATS, marked=best, caption="Scores and cost"
    )


def _score_table(table: pd.DataFrame, costs: pd.DataFrame, caption: str, first: str = "Method") -> Table:
    k = int(table["k"].iloc[0])
    frame = _with_budget(table, costs)
    frame["counted"] = table["seeds"].astype(str) + table["diverged"].map(lambda n: f" ({n} diverged)" if n else "")
    frame.loc[table["seeds"] == stats.FEW, "over"] = f"none: {stats.LITTLE}"
    heads = {"title": first, "counted": "Seeds", "avg": f"avg@{k}", "pass": f"pass@{k}", "greedy": "greedy pass@1"}
    heads |= {"tokens": "Tokens", "delta": f"avg@{k} − base", "over": "Interval over", **_BUDGET}
    note = (
        f"Shares of 1 with {INTERVALS} (n = {int(table['problems'].iloc[0])} problems); differences to the base policy are "
        "paired over problems. Tokens: mean response length. The row with the highest mean is set in bold, separated or "
        "not. Budgets are means per run; FLOPs are not recorded."
    )
    best = list(table["mean"] == table["mean"].max())
    return Table(caption=caption, frame=frame, heads=heads, formats=_FORMATS, marked=best, note=note)


def _level_table(table: pd.DataFrame, split: str) -> Table:
    ends = table[["low", "high"]].where(table["seeds"] != stats.FEW)
    cells = [with_interval(*row) for row in pd.concat([table["mean"], ends], axis=1).itertuples(index=False)]
    counts = table.drop_duplicates("level").set_index("level")["problems"]
    wide = table.assign(cell=cells).pivot(index="method", columns="level", values="cell").loc[table["method"].unique()]
    wide.insert(0, "title", table.drop_duplicates("method").set_index("method")["title"])
    heads = {"title": "Method"} | {str(level): f"{level or '(none)'} (n = {n})" for level, n in counts.items()}
    caption = f"avg@{int(table['k'].iloc[0])} on {split} by level"
    return Table(caption=caption, frame=wide, heads=heads, note="n: problems of the level.")


def _claim_table(judged: pd.DataFrame) -> Table:
    frame = judged.assign(asked=[_asked(row) for row in judged.to_dict("records")])
    for name in ("here", "seeds", "notes"):
        frame[name] = frame[name].replace("", "–")
    frame["written"] += " the runs"
    counts = ", ".join(f"{n} {name}" for name, n in judged["verdict"].value_counts().items())
    note = (
        "Here: effect in the claimed direction with its interval, Student's t over seeds and problems, widened for all "
        f"{len(claims.load())} claims together (Bonferroni). Supported: the interval lies above 0 and the effect reaches "
        "what was asked; contradicted: it lies below what was asked; for ranges and losses, inside or outside. Alone: "
        "what the plain 95% interval would say. Not judged: an arm took over the learning rate of another. Written: whether "
        "claim and effect asked for were written before any run of its arms was seen."
    )
    heads = {
        "claim": "Claim",
        "verdict": "Verdict",
        "here": "Here",
        "asked": "Asked",
        "alone": "Alone",
        "seeds": "Seeds",
    }
    heads |= {"paper": "There", "source": "Source", "written": "Written", "notes": "Before quoting"}
    decided = list(judged["verdict"].isin(["supported", "contradicted"]))
    return Table(caption=f"Claims: {counts or 'none judged'}", frame=frame, heads=heads, note=note, marked=decided)


def _asked(row: Mapping[Any, Any]) -> str:
    if row["test"] == "within":
        return f"{row['lowest']:g} to {row['highest']:g}"
    return f"{'> −' if row['test'] == 'no_worse' else '≥ '}{row['smallest']:g}"


def _tuning_table() -> list[Table]:
    """What the kit's tuning tried, and chose."""
    tuned = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}
    parts = {(own["method"], str(own["part"])): own["fields"] for own in tuned.get("parts", [])}
    rows = []
    for row in tuned.get("tried", []):
        part = row.get("part") or {}
        chosen = parts.get((row["method"], str(part))) if part else tuned.get("fields", {}).get(row["method"])
        rows.append(
            {
                "Method": METHODS[row["method"]].title if row["method"] in METHODS else str(row["method"]),
                "Fields": ", ".join(f"{name} = {value}" for name, value in {**part, **row["fields"]}.items()),
                "Mean": row["avg"],
                "Each seed": ", ".join(f"{score:.3f}" for score in row.get("scores", [])) or "–",
                "Taken": "yes" if chosen == row["fields"] else "",
            }
        )
    note = f"{tuned.get('metric', 'avg@k')}, with seeds that no comparison uses; the test splits stay unread."
    taken = [row["Taken"] == "yes" for row in rows]
    frame = pd.DataFrame(rows)
    return [Table(caption="Tuning on the validation split", frame=frame, note=note, marked=taken)] if rows else []


def _method_table(groups: dict[str, list[Run]]) -> Table:
    rows = []
    for name, members in groups.items():
        seconds = [run.summary["seconds"] for run in members if run.done and "seconds" in run.summary]
        rows.append(
            {
                "Method": stats.title(name, members),
                "Seeds": ", ".join(str(run.seed) for run in members),
                "Training": _training(members[0]) or "none",
                "Seconds a run": sum(seconds) / len(seconds) if seconds else float("nan"),
                "Config": members[0].config.hash(),
            }
        )
    note = "Seconds: mean wall-clock of finished runs, evaluation during training included."
    return Table(caption="What was run", frame=pd.DataFrame(rows), formats={"Seconds a run": ".0f"}, note=note)


def _training(run: Run) -> str:
    rollout, parts = run.config.rollout, []
    for stage in METHODS[run.method].stages if run.method in METHODS else ():
        rows = f"{rollout.problems_per_step}×{rollout.rows_per_problem} rows"
        size = rows if stage.samples else f"{run.config.sft.batch_rows} demonstrations"
        parts.append(f"{stage.optimizer_section(run.config).steps} steps of {size}")
    return ", then ".join(parts)


def _config_table(groups: dict[str, list[Run]]) -> Table:
    """Every field, with the values of the methods where they differ; rows that depart from the preset are marked."""
    configs = {name: dict(flatten(members[0].config.to_dict())) for name, members in groups.items()}
    default = dict(flatten(preset("tiny").to_dict()))
    rows, marked = [], []
    for name in dict.fromkeys(name for values in configs.values() for name in values):
        if name in ("name", "method", "seed"):
            continue
        values = {method: _value(values.get(name)) for method, values in configs.items()}
        standard, different = _value(default.get(name)), list(dict.fromkeys(values.values()))
        spelled = "; ".join(f"{method}: {value}" for method, value in values.items())
        marked.append(different != [standard])
        rows.append([name, different[0] if len(different) == 1 else spelled, standard, "changed" if marked[-1] else ""])
    return Table(
        caption="Resolved configuration",
        frame=pd.DataFrame(rows, columns=["Field", "Value", "Preset tiny", "Departs"]),
        note="Fields that depart from the preset tiny are marked. Name, method and seed are left out.",
        marked=marked,
    )


def _value(value: Any) -> str:
    # A local model or data file is named, not located: a page must read the same on any machine.
    if isinstance(value, str) and PurePath(value).is_absolute():
        return f"…/{PurePath(value).name}"
    return json.dumps(value, ensure_ascii=False)


def _environment_table(runs: Sequence[Run]) -> Table:
    environments = [plots.environment(run) for run in runs]
    names = dict.fromkeys(name for values in environments for name in values)
    rows = [(name, "; ".join(dict.fromkeys(str(values.get(name)) for values in environments))) for name in names]
    return Table(caption="Environment of the runs", frame=pd.DataFrame(rows, columns=["What", "Value"]))


def _data_table(runs: Sequence[Run]) -> Table:
    """Used and dropped rows; runs of equal data share a row."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(run.data), []).append(run)
    rows = []
    for text, members in found.items():
        data = json.loads(text)
        dropped = "; ".join(f"{count} × {reason}" for reason, count in data.get("dropped", {}).items()) or "none"
        counts = [str(data.get(name, "–")) for name in ("train", "with_demonstration", "validation")]
        methods = ", ".join(dict.fromkeys(run.title for run in members))
        rows.append([f"{methods} ({len(members)} runs)", *counts, dropped])
    columns = ["Runs", "Training problems", "with demonstration", "Validation problems", "Dropped"]
    return Table(caption="Data used and dropped", frame=pd.DataFrame(rows, columns=columns))


def _run_table(runs: Sequence[Run]) -> Table:
    rows = [
        {
            "Directory": _name(run),
            "Method": run.title,
            "Seed": run.seed,
            "Source": str(plots.environment(run).get("source", "–")),
            "State": "done" if run.done else f"{len(run.metrics)} steps so far",
        }
        for run in runs
    ]
    return Table(caption="Run directories", frame=pd.DataFrame(rows), note="Relative to the folder of all runs.")


def _name(run: Run) -> str:
    return directory_of(run.config, "").as_posix()


# ---------------------------------------------------------------------- figures


def _plot(runs: Sequence[Run], table: pd.DataFrame, split: str) -> dict[str, Any]:
    """The figure of the first screen, drawn by the page itself so that it can be read at every width: percent of the axis."""
    groups, measured = {group.name: group for group in plots.groups(runs)}, stats.scores(runs, split)
    seeds = {name: stats.matrix(measured, name, "avg").mean(axis=1) for name in groups}
    drawn = table[table["seeds"] != stats.FEW]
    values = [*drawn["avg_low"], *drawn["avg_high"], *(score for own in seeds.values() for score in own)]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10

    def at(value: float) -> float:
        return round(100 * (value - low) / ((high - low) or 1), 2)

    rows = [
        {
            "title": row["title"],
            "mean": f"{row['avg']:.3f}",
            "colour": groups[row["method"]].colour,
            "at": at(row["avg"]),
            "low": at(row["avg_low"]),
            "width": 0 if row["seeds"] == stats.FEW else round(at(row["avg_high"]) - at(row["avg_low"]), 2),
            "seeds": [at(score) for score in seeds[row["method"]]],
        }
        for row in table.to_dict("records")
    ]
    k, ends = int(table["k"].iloc[0]), f"{low:g} to {high:g}"
    few = f"; {stats.LITTLE} and have no bar" if len(drawn) < len(table) else ""
    caption = f"avg@{k} on {split} from {ends}: dots are means, small dots seeds, bars 95% intervals{few}"
    return {"rows": rows, "ends": (f"{low:g}", f"{high:g}"), "caption": caption}


_Drawing = tuple[str, str, Sequence[Run], Callable[[], RunFigure]]
"""Name, title, runs that it rests on, and how it is drawn."""


def _drawings(
    runs: Sequence[Run],
    finished: Sequence[Run],
    splits: Sequence[str],
    judged: pd.DataFrame,
    sweeps: Sweeps,
    arms: Iterable[str],
) -> Iterable[_Drawing]:
    """Every figure, in the order of the page."""
    if len(judged):
        everyone = list({run.path: run for _, of in sweeps.values() for run in of}.values())
        yield "claims", "Claims and verdicts", everyone, partial(plots.verdicts, judged)
    for split in splits:
        yield (
            f"final_scores-{split}",
            f"Final scores on {split}",
            finished,
            partial(plots.final_scores, finished, split),
        )
    for name, of_runs in plots.FIGURES.items():
        yield name, _title(name), runs, partial(of_runs, runs)
        if name == "learning_curves":
            hard = partial(plots.learning_curves, runs, "hard.avg")
            yield "learning_curves-hard", "Learning curves on Train-hard", runs, hard
    for split in splits:
        yield f"pass_at_k-{split}", f"pass@k on {split}", finished, partial(plots.pass_at_k, finished, split)
    if prefixed := [run for run in runs if run.method in METHODS and METHODS[run.method].uses_prefixes]:
        first = prefixed[0]
        yield "kept_tokens", "Prefix tokens that are kept", [first], partial(plots.kept_tokens, first)
        seeds = [run for run in prefixed if run.method == first.method]
        for name, of_seeds in plots.TOKEN_FIGURES.items():
            yield name, f"{_title(name)}: {first.title}", seeds, partial(of_seeds, seeds)
        yield "schedule", "Prefix schedule", [first], partial(plots.schedule, first.config)
    for name in arms:
        plan, of = sweeps[name]
        if name != "main":  # which the figures above show already
            own = [run for run in of if run.done]
            yield f"sweep-{name}", f"Sweep {name}", own, partial(plots.final_scores, own, label=plan.label())


def _figures(folder: Path, *what: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw and save all figures; those that have nothing to show are named with the reason."""
    drawn, undrawn = [], []
    for name, title, used, draw in _drawings(*what):
        try:
            figure = draw()
        except (ConfigError, RunError) as error:
            undrawn.append(f"{title}: {error}.")
            continue
        plots.save_figure(figure, folder / name, runs=used)
        drawn.append(
            {
                "name": name,
                "title": title,
                "caption": figure.caption,
                "png": _embedded((folder / f"{name}.png").read_bytes()),
                "width": round(figure.get_figwidth() * 96),
                "height": round(figure.get_figheight() * 96),
                "data": _data_of(figure.data, name),
                "files": [(text, quote(f"figures/{name}.{ending}")) for ending, text in _FILES.items()],
            }
        )
    return drawn, undrawn


_FILES = {"csv": "data (CSV)", "pdf": "PDF", "svg": "SVG", "png": "PNG", "json": "provenance (JSON)"}


def _embedded(png: bytes) -> str:
    """A picture in base64 with 256 colours, which a chart does not miss and which makes it a third as large."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
        out, format="png", optimize=True
    )
    return base64.b64encode(out.getvalue()).decode()


def _title(name: str) -> str:
    words = name.replace("_", " ").replace("nll", "NLL")
    return words[:1].upper() + words[1:]


def _data_of(data: pd.DataFrame, name: str) -> Table:
    step = max(1, math.ceil(len(data) / _DETAIL_ROWS))
    frame = data.iloc[::step].map(
        lambda value: plots.visible(value) if isinstance(value, str) and not value.isprintable() else value
    )
    rows = f"{len(data)} rows" if step == 1 else f"every {step}th of {len(data)} rows"
    note = f"{rows}; all of them in figures/{name}.csv"
    heads = {str(column): str(column) for column in data}
    return Table(caption=f"Data of {name}", frame=frame, heads=heads, formats=dict.fromkeys(heads, ".4g"), note=note)
