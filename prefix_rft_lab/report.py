"""One page that says what a set of runs found: the question, who won and how surely, tables, figures, configs.

The page is one HTML file that asks nothing of the network: figures are embedded, styles are inline, there is no
script. Everything in it that comes from runs or people (titles, levels, paths) is escaped by the template engine.
Beside it stand the same tables as Markdown (``report.md``), the figures with their data (``figures/``) and a small
machine-readable ``report.json``. Nothing in them depends on when or where they were written.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from prefix_rft_lab.core.config import ConfigError, flatten, preset
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import check_writable, write_json, write_text
from prefix_rft_lab.core.tables import inline, markdown_table, with_interval
from prefix_rft_lab.experiments.sweeps import TUNED, Plan
from prefix_rft_lab.plots import RunFigure
from prefix_rft_lab.runs.run import Run, directory_of, source_hash
from prefix_rft_lab.runs.summary import INTERVALS

QUESTION = (
    "From one base policy, one set of problems and one evaluation: which method of post-training scores highest, and "
    "does training on prefixes of demonstrations (Prefix-RFT) beat SFT, RFT and SFT→RFT?"
)
_DETAIL_ROWS = 40
"""Rows of a figure's data that the page shows; the whole table is in figures/."""

_SPLITS = {
    "test": "problems like those trained on",
    "ood": "problems unlike those trained on (out of distribution)",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text: the first column names the row."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: list[bool] = field(default_factory=list)
    """Rows to set apart; empty for none."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure of the report."""

    name: str
    title: str
    caption: str
    png: str
    """Base64."""
    width: int
    height: int
    """CSS pixels."""
    data: Table
    files: list[tuple[str, str]]
    """(what it is, path relative to the page)."""


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
        sweeps: name -> (what was planned, its runs); with them, the claims are judged and stand first.

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
    remarks = [f"Left out: {sentence}." for sentence in broken.values()] + _remarks(ordered) + remarks

    verdicts, scores, levels, compared = {}, {}, {}, {}
    for split in splits:
        compared[split] = stats.compare(finished, split)
        scores[split] = _score_table(compared[split], split)
        by_level = stats.by_level(finished, split)
        if by_level["level"].nunique() > 1:
            levels[split] = _level_table(by_level, split, int(compared[split]["k"].iloc[0]))
        try:
            verdicts[split] = stats.verdicts(finished, split)
        except ConfigError as error:
            verdicts[split] = [f"Nothing to compare: {error}."]

    judged = claims.verdict_table(sweeps) if sweeps else pd.DataFrame()
    if len(judged):  # what is known first
        judged = judged.sort_values("verdict", key=lambda v: v == "missing", kind="stable", ignore_index=True)
    arms, arm_tables, arm_remarks = _arms(sweeps)
    remarks += arm_remarks
    first, more = _sweep_drawings(judged, sweeps, arms)
    figures, missing = _figures(folder / "figures", ordered, finished, splits, first, more)
    configs = _config_table(groups)
    context = {
        "title": title,
        "question": QUESTION,
        "verdicts": {split: (_SPLITS.get(split, ""), lines) for split, lines in verdicts.items()},
        "claims": _claim_table(judged) if len(judged) else None,
        "tuning": _tuning_table(),
        "sweeps": arm_tables,
        "remarks": remarks,
        "evidence": _evidence(compared, ordered, seconds),
        "scores": scores,
        "levels": levels,
        "figures": figures,
        "missing": missing,
        "methods": _method_table(groups),
        "configs": configs,
        "environment": _environment_table(ordered),
        "data": _data_table(ordered),
        "runs": _run_table(ordered),
        "notebooks": [Path(path).name for path in notebooks],
    }
    write_text(folder / "report.html", _template().render(**context))
    write_text(folder / "report.md", _markdown(context))
    write_json(
        folder / "report.json",
        _plain_values(
            {
                "title": title,
                "intervals": INTERVALS,
                "claims": judged.to_dict("records"),
                "sweeps": {name: table.to_dict("records") for name, table in arms.items()},
                "verdicts": verdicts,
                "compare": {split: table.to_dict("records") for split, table in compared.items()},
                "levels": {
                    split: stats.by_level(finished, split).drop(columns="title").to_dict("records") for split in levels
                },
                "methods": {
                    name: {"config": members[0].config.hash(), "seeds": [run.seed for run in members]}
                    for name, members in groups.items()
                },
                "runs": [_name(run) for run in ordered],
                "unfinished": [_name(run) for run in ordered if not run.done],
                "remarks": remarks,
                "source": {
                    "runs": sorted({str(plots.environment(run).get("source")) for run in ordered}),
                    "report": source_hash(),
                    "all": sorted(_sources([run for _, of in sweeps.values() for run in of] or ordered)),
                },
                "seconds": seconds,
            }
        ),
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


# ---------------------------------------------------------------------- what can be said


def _splits(finished: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Splits that all finished runs were evaluated on, and what was left out."""
    have = {id(run): {path.stem for path in (run.path / "evaluation").glob("*.parquet")} for run in finished}
    named = dict.fromkeys(split for run in finished for split in run.config.evaluation.final_splits)
    kept, remarks = [], []
    for split in named:
        count = sum(split in have[id(run)] for run in finished)
        if count == len(finished):
            kept.append(split)
        elif count:
            remarks.append(f"Split {split!r} is left out: only {count} of {len(finished)} runs were evaluated on it.")
    return kept, remarks


def _remarks(runs: Sequence[Run]) -> list[str]:
    """What a reader should know before believing a figure."""
    out = []
    unfinished = [_name(run) for run in runs if not run.done]
    if unfinished:
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
    seeds = {len({run.seed for run in runs if run.method == name}) for name in {run.method for run in runs} - {"base"}}
    if seeds and min(seeds) < 3:
        out.append(
            f"{'A single seed' if min(seeds) == 1 else 'Two seeds'} a method say little about how training varies: "
            "intervals are too narrow for conclusions about a method."
        )
    budgets = {name: _steps(name, runs) for name in dict.fromkeys(run.method for run in runs) if name in METHODS}
    stages = {text for text in budgets.values() if text}
    if len(stages) > 1:
        spelled = "; ".join(f"{METHODS[name].title}: {text}" for name, text in budgets.items() if text)
        out.append(f"Budgets differ by method ({spelled}).")
    timeouts = sum(_last(run, "verifier_timeouts") for run in runs)
    if timeouts:
        out.append(f"{timeouts:.0f} verifications ran out of time and counted as wrong.")
    return out


def _sources(runs: Sequence[Run]) -> set[str]:
    return {str(plots.environment(run).get("source")) for run in runs}


def _steps(method: str, runs: Sequence[Run]) -> str:
    config = next(run for run in runs if run.method == method).config
    parts = []
    for stage in METHODS[method].stages:
        steps = getattr(config, stage.optim).steps
        size = (
            f"{config.rollout.problems_per_step}×{config.rollout.rows_per_problem} rows"
            if stage.samples
            else f"{config.sft.batch_rows} demonstrations"
        )
        parts.append(f"{steps} steps of {size}")
    return ", then ".join(parts)


def _last(run: Run, column: str) -> float:
    metrics = stats.records(run, "metrics")
    return float(metrics[column].iloc[-1]) if column in metrics and len(metrics) else 0.0


def _evidence(compared: dict[str, pd.DataFrame], runs: Sequence[Run], seconds: float | None) -> str:
    parts = [f"{len(runs)} runs"]
    parts += [
        f"{int(table['problems'].iloc[0])} {split} problems × {int(table['k'].iloc[0])} samples"
        for split, table in compared.items()
    ]
    if seconds is not None:
        parts.append(f"notebooks executed in {_duration(seconds)}")
    # Runs may have been finished before the notebooks asked for them, so their own time is told apart.
    parts.append(
        f"trained in {_duration(sum(run.summary.get('seconds', 0.0) for run in runs if run.done))} of one core"
    )
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


# ---------------------------------------------------------------------- tables


def _claim_table(judged: pd.DataFrame) -> Table:
    rows = judged.to_dict("records")
    counts = ", ".join(f"{n} {name}" for name, n in judged["verdict"].value_counts().items())
    return Table(
        caption=f"Claims: {counts}",
        columns=["Claim", "Verdict", "Here", "Asked", "Alone", "Seeds", "There", "Source", "Written", "Before quoting"],
        rows=[
            [
                row["claim"],
                row["verdict"],
                row["here"] or "–",
                _asked(row),
                row["alone"],
                row["seeds"] or "–",
                row["paper"],
                row["source"],
                f"{row['written']} the runs",
                row["notes"] or "–",
            ]
            for row in rows
        ],
        note=(
            "Here: effect in the claimed direction with its interval, Student's t over seeds and problems, widened for all "
            f"{len(claims.load())} claims together (Bonferroni). Supported: the interval lies above 0 and the effect reaches "
            "what was asked; contradicted: it lies below what was asked; for ranges and losses, inside or outside. Alone: "
            "what the plain 95% interval would say. Not judged: an arm took over the learning rate of another. Written: whether "
            "claim and effect asked for were written before any run of its arms was seen."
        ),
        marked=[row["verdict"] in ("supported", "contradicted") for row in rows],
    )


def _asked(row: Mapping[Any, Any]) -> str:
    if row["test"] == "within":
        return f"{row['lowest']:g} to {row['highest']:g}"
    return f"{'> −' if row['test'] == 'no_worse' else '≥ '}{row['smallest']:g}"


def _tuning_table() -> Table | None:
    """What the kit's tuning tried, and chose."""
    if not TUNED.is_file():
        return None
    tuned = json.loads(TUNED.read_text(encoding="utf-8"))
    chosen, tried = tuned.get("fields", {}), tuned.get("tried", [])
    if not tried:
        return None
    parts = {(own["method"], str(own["part"])): own["fields"] for own in tuned.get("parts", [])}
    taken = [
        (parts.get((row["method"], str(row["part"]))) if row.get("part") else chosen.get(row["method"]))
        == row["fields"]
        for row in tried
    ]
    return Table(
        caption="Tuning on the validation split",
        columns=["Method", "Fields", "Mean", "Each seed", "Taken"],
        rows=[
            [
                METHODS[row["method"]].title if row["method"] in METHODS else str(row["method"]),
                ", ".join(f"{name} = {value}" for name, value in {**row.get("part", {}), **row["fields"]}.items()),
                f"{row['avg']:.3f}",
                ", ".join(f"{score:.3f}" for score in row.get("scores", [])) or "–",
                "yes" if yes else "",
            ]
            for row, yes in zip(tried, taken, strict=True)
        ],
        note=f"{tuned.get('metric', 'avg@k')}, with seeds that no comparison uses; the test splits stay unread.",
        marked=taken,
    )


def _arms(
    sweeps: Mapping[str, tuple[Plan, Sequence[Run]]],
) -> tuple[dict[str, pd.DataFrame], list[Table], list[str]]:
    """What every arm of each sweep scored on test, as data and as text, and what could not be compared."""
    found, tables, remarks = {}, [], []
    for name, (plan, runs) in sweeps.items():
        finished = [run for run in runs if run.done]
        short = len(plan.runs) - len(finished)
        if short:
            remarks.append(f"Sweep {name!r}: {short} of {len(plan.runs)} runs are not finished.")
        diverged = sum(bool(run.diverged) for run in finished)
        if diverged:
            remarks.append(f"Sweep {name!r}: {diverged} of {len(finished)} runs diverged and count as solving nothing.")
        if not finished:
            continue
        try:
            found[name] = stats.compare(finished, label=plan.label())
        except (ConfigError, RunError) as error:
            remarks.append(f"Sweep {name!r} is left out: {error}.")
            continue
        table = _score_table(found[name], "test")
        caption = f"Sweep {name}: {plan.sweep.question or 'final scores on test'}"
        tables.append(replace(table, caption=caption, columns=["Arm", *table.columns[1:]]))
    return found, tables, remarks


def _score_table(table: pd.DataFrame, split: str) -> Table:
    k = int(table["k"].iloc[0])
    best = table["mean"].max()
    return Table(
        caption=f"Final scores on {split}",
        columns=[
            "Method",
            "Seeds",
            f"avg@{k}",
            f"pass@{k}",
            "greedy pass@1",
            "Tokens",
            f"avg@{k} − base",
            "Interval over",
        ],
        rows=[
            [
                row["title"],
                f"{row['seeds']} ({row['diverged']} diverged)" if row["diverged"] else str(row["seeds"]),
                with_interval(row["avg"], row["avg_low"], row["avg_high"]),
                with_interval(row["pass"], row["pass_low"], row["pass_high"]),
                with_interval(row["greedy"], row["greedy_low"], row["greedy_high"]),
                "–" if math.isnan(row["tokens"]) else f"{row['tokens']:.1f}",
                with_interval(row["delta"], row["delta_low"], row["delta_high"], "+.3f"),
                row["over"],
            ]
            for row in table.to_dict("records")
        ],
        note=(
            f"Shares of 1 with {INTERVALS} (n = "
            f"{int(table['problems'].iloc[0])} problems); differences to the base policy are paired over problems. "
            "Tokens: mean response length. The row with the highest mean is set in bold, separated or not."
        ),
        marked=[bool(row["mean"] == best) for row in table.to_dict("records")],
    )


def _level_table(table: pd.DataFrame, split: str, k: int) -> Table:
    levels = list(dict.fromkeys(table["level"]))
    counts = table.drop_duplicates("level").set_index("level")["problems"]
    cells = {
        (row["method"], row["level"]): with_interval(row["mean"], row["low"], row["high"])
        for row in table.to_dict("records")
    }
    methods = table.drop_duplicates("method")
    return Table(
        caption=f"avg@{k} on {split} by level",
        columns=["Method", *(f"{level or '(none)'} (n = {counts[level]})" for level in levels)],
        rows=[
            [str(title), *(cells[method, level] for level in levels)]
            for method, title in zip(methods["method"], methods["title"], strict=True)
        ],
        note="n: problems of the level.",
    )


def _method_table(groups: dict[str, list[Run]]) -> Table:
    return Table(
        caption="What was run",
        columns=["Method", "Seeds", "Training", "Seconds a run", "Config"],
        rows=[
            [
                stats.title(name, members),
                ", ".join(str(run.seed) for run in members),
                (_steps(name, members) if name in METHODS else "") or "none",
                _mean_seconds(members),
                members[0].config.hash(),
            ]
            for name, members in groups.items()
        ],
        note="Seconds: mean wall-clock of finished runs, evaluation during training included.",
    )


def _mean_seconds(members: Sequence[Run]) -> str:
    seconds = [run.summary["seconds"] for run in members if run.done and "seconds" in run.summary]
    return f"{sum(seconds) / len(seconds):.0f}" if seconds else "–"


def _config_table(groups: dict[str, list[Run]]) -> Table:
    """Every field, with the values of the methods where they differ; rows that depart from the preset are marked."""
    configs = {name: dict(flatten(members[0].config.to_dict())) for name, members in groups.items()}
    default = dict(flatten(preset("tiny").to_dict()))
    fields = list(dict.fromkeys(name for values in configs.values() for name in values))
    rows, marked = [], []
    for name in fields:
        if name in ("name", "method", "seed"):
            continue
        values = {method: _value(values.get(name)) for method, values in configs.items()}
        standard = _value(default.get(name))
        shown = (
            next(iter(values.values()))
            if len(set(values.values())) == 1
            else "; ".join(f"{method}: {value}" for method, value in values.items())
        )
        departs = any(value != standard for value in values.values())
        rows.append([name, shown, standard, "changed" if departs else ""])
        marked.append(departs)
    return Table(
        caption="Resolved configuration",
        columns=["Field", "Value", "Preset tiny", "Departs"],
        rows=rows,
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
    names = list(dict.fromkeys(name for values in environments for name in values))
    rows = []
    for name in names:
        values = list(dict.fromkeys(str(values.get(name)) for values in environments))
        rows.append([name, "; ".join(values)])
    return Table(caption="Environment of the runs", columns=["What", "Value"], rows=rows)


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
    return Table(
        caption="Data used and dropped",
        columns=["Runs", "Training problems", "with demonstration", "Validation problems", "Dropped"],
        rows=rows,
    )


def _run_table(runs: Sequence[Run]) -> Table:
    return Table(
        caption="Run directories",
        columns=["Directory", "Method", "Seed", "Source", "State"],
        rows=[
            [
                _name(run),
                run.title,
                str(run.seed),
                str(plots.environment(run).get("source", "–")),
                "done" if run.done else f"{len(run.metrics)} steps so far",
            ]
            for run in runs
        ],
        note="Relative to the folder of all runs.",
    )


def _name(run: Run) -> str:
    return directory_of(run.config, "").as_posix()


# ---------------------------------------------------------------------- figures


_Drawing = tuple[str, str, Sequence[Run], Callable[[], RunFigure]]
"""Name, title, runs that it rests on, and how it is drawn."""


def _sweep_drawings(
    judged: pd.DataFrame, sweeps: Mapping[str, tuple[Plan, Sequence[Run]]], arms: Mapping[str, pd.DataFrame]
) -> tuple[list[_Drawing], list[_Drawing]]:
    """The figure of all claims, and one of each sweep that the main comparison does not show already."""
    everyone = list({run.path: run for _, runs in sweeps.values() for run in runs}.values())
    first: list[_Drawing] = []
    if len(judged):
        first.append(("claims", "Claims and verdicts", everyone, partial(plots.verdicts, judged)))
    more: list[_Drawing] = []
    for name in arms:
        plan, runs = sweeps[name]
        finished = [run for run in runs if run.done]
        if name != "main":
            draw = partial(plots.final_scores, finished, label=plan.label())
            more.append((f"sweep-{name}", f"Sweep {name}", finished, draw))
    return first, more


def _figures(
    folder: Path,
    runs: Sequence[Run],
    finished: Sequence[Run],
    splits: Sequence[str],
    first: Sequence[_Drawing] = (),
    more: Sequence[_Drawing] = (),
) -> tuple[list[Drawn], list[str]]:
    """Draw and save all figures; those that have nothing to show are named with the reason."""
    drawings: list[_Drawing] = [*first]

    def add(name: str, title: str, used: Sequence[Run], draw: Callable[[], RunFigure]) -> None:
        drawings.append((name, title, used, draw))

    for split in splits:
        add(f"final_scores-{split}", f"Final scores on {split}", finished, partial(plots.final_scores, finished, split))
    for name, of_runs in plots.FIGURES.items():
        add(name, _title(name), runs, partial(of_runs, runs))
        if name == "learning_curves":
            hard = partial(plots.learning_curves, runs, "hard.avg")
            add("learning_curves-hard", "Learning curves on Train-hard", runs, hard)
    for split in splits:
        add(f"pass_at_k-{split}", f"pass@k on {split}", finished, partial(plots.pass_at_k, finished, split))
    prefixed = [run for run in runs if run.method in METHODS and METHODS[run.method].uses_prefixes]
    if prefixed:
        add("kept_tokens", "Prefix tokens that are kept", prefixed[:1], partial(plots.kept_tokens, prefixed[0]))
        seeds = [run for run in prefixed if run.method == prefixed[0].method]
        for name, of_seeds in plots.TOKEN_FIGURES.items():
            add(name, f"{_title(name)}: {prefixed[0].title}", seeds, partial(of_seeds, seeds))
        add("schedule", "Prefix schedule", prefixed[:1], partial(plots.schedule, prefixed[0].config))

    drawings += more
    drawn, missing = [], []
    for name, title, used, draw in drawings:
        try:
            figure = draw()
        except (ConfigError, RunError) as error:
            missing.append(f"{title}: {error}.")
            continue
        plots.save_figure(figure, folder / name, runs=used)
        png = (folder / f"{name}.png").read_bytes()
        drawn.append(
            Drawn(
                name=name,
                title=title,
                caption=figure.caption,
                png=_embedded(png),
                width=round(figure.get_figwidth() * 96),
                height=round(figure.get_figheight() * 96),
                data=_data_of(figure, name),
                files=[(what, quote(f"figures/{name}.{ending}")) for ending, what in _FORMATS.items()],
            )
        )
    return drawn, missing


def _embedded(png: bytes) -> str:
    """A picture in base64 with 256 colours, which a chart does not miss and which makes it a third as large."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
        out, format="png", optimize=True
    )
    return base64.b64encode(out.getvalue()).decode()


_FORMATS = {"csv": "data (CSV)", "pdf": "PDF", "svg": "SVG", "png": "PNG", "json": "provenance (JSON)"}


def _title(name: str) -> str:
    words = name.replace("_", " ").replace("nll", "NLL")
    return words[:1].upper() + words[1:]


def _data_of(figure: RunFigure, name: str) -> Table:
    data = figure.data
    step = max(1, math.ceil(len(data) / _DETAIL_ROWS))
    shown = data.iloc[::step]
    note = f"{len(data)} rows" if step == 1 else f"every {step}th of {len(data)} rows"
    return Table(
        caption=f"Data of {name}",
        columns=[str(column) for column in data.columns],
        rows=[[_cell(value) for value in row] for row in shown.itertuples(index=False)],
        note=f"{note}; all of them in figures/{name}.csv",
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return plots.visible(value) if isinstance(value, str) and not value.isprintable() else str(value)


# ---------------------------------------------------------------------- writing


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prefix_rft_lab", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _markdown(context: dict[str, Any]) -> str:
    out = [f"# {inline(context['title'])}", "", context["question"], "", f"Rests on {context['evidence']}.", ""]
    if context["claims"]:
        table = context["claims"]
        out += [
            f"## {inline(table.caption)}",
            "",
            *markdown_table(table.columns, table.rows, table.marked),
            "",
            inline(table.note),
            "",
        ]
    for split, (_, lines) in context["verdicts"].items():
        out += [f"## On {inline(split)}", "", *(f"- {inline(line)}" for line in lines), ""]
    if context["remarks"]:
        out += ["## Before quoting", "", *(f"- {inline(line)}" for line in context["remarks"]), ""]
    tables: Iterable[Table] = [
        *filter(None, [context["tuning"]]),
        *context["scores"].values(),
        *context["levels"].values(),
        *context["sweeps"],
        *(context[name] for name in ("methods", "configs", "environment", "data", "runs")),
    ]
    for table in tables:
        out += [f"## {inline(table.caption)}", "", *markdown_table(table.columns, table.rows, table.marked), ""]
        if table.note:
            out += [inline(table.note), ""]
    out += ["## Figures", ""]
    out += [f"- [{figure.title}](figures/{figure.name}.png): {inline(figure.caption)}" for figure in context["figures"]]
    out += [f"- Not drawn. {inline(line)}" for line in context["missing"]]
    if context["notebooks"]:
        out += ["", "## Notebooks", "", *(f"- {inline(name)}" for name in context["notebooks"])]
    return "\n".join(out) + "\n"


def _plain_values(value: Any) -> Any:
    """JSON that every reader takes: no NaN, no NumPy numbers."""
    if isinstance(value, dict):
        return {str(key): _plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
