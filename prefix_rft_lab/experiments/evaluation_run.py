"""Evaluation of one policy outside of a training run: avg@k, pass@k and greedy pass@1, written as tables.

The random keys are those of a run's final evaluation, so that the saved weights of a run give the figures of its
summary again, and two policies are compared on the same keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from prefix_rft_lab.core.config import ConfigError, RunConfig, preset
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.files import (
    append_line,
    check_writable,
    file_to_write,
    read_json,
    read_lines,
    read_table,
    write_json,
    write_table,
    write_text,
)
from prefix_rft_lab.core.registry import with_ideas
from prefix_rft_lab.core.tables import show, with_interval
from prefix_rft_lab.core.types import EncodedProblem, Problem
from prefix_rft_lab.data.task import Task, with_task
from prefix_rft_lab.runs.run import Run, environment, torch_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came of an evaluation."""

    config: RunConfig
    split: str
    table: pd.DataFrame
    """One row per problem, as :func:`prefix_rft_lab.training.evaluate.sample_scores` gives it."""
    summary: dict[str, Any]
    """As :func:`prefix_rft_lab.runs.summary.summarise` gives it: overall and by level, with intervals over problems."""
    dropped: dict[str, int]
    """Problems or demonstrations left out, by reason."""
    paths: tuple[Path, ...]
    """The files written."""
    unread: tuple[str, ...] = ()
    """Ids of problems whose gold answer math-verify cannot read, so that only an equal text is right (of files only)."""

    @property
    def remarks(self) -> list[str]:
        """What a reader of its figures should know, a sentence each."""
        lines = [f"left out: {count} x {reason}" for reason, count in self.dropped.items()]
        if self.unread:
            lines.append(f"{len(self.unread)} gold answers only an equal text can match ({', '.join(self.unread)})")
        return lines


BATCH_TOKENS = 2**18
"""Tokens of the rows that are decoded together, at most, of a model that no preset knows."""


def config_for(model: str, *, base: RunConfig | None = None, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """The config that a policy is evaluated under.

    Args:
        model: ``tiny``, a directory in Hugging Face format, a Hub name, or the directory of a finished run, which brings
            its own config and saved weights.
        base: where the other fields come from if ``model`` is no run. By default the preset ``tiny``, and for any other
            model prompts and responses as long as its context allows, up to those of the paper's presets.
        changes: dotted fields and values on top.

    Raises:
        ConfigError: a run without saved weights, no such model, or a field that cannot be used.
        RunError: a run that is damaged.
    """
    changes = dict(changes or {})
    path = Path(model).expanduser()
    if is_run(path):
        config = (run := Run(path)).config
        run.check(model=True)
        if not (path / "model" / "config.json").is_file():
            raise ConfigError(
                f"model = {model!r} is a run without saved weights; train it to its end, with records.save_model = true"
            )
        config = config.replace(**{"model.path": str(path / "model")})
    else:
        config = (base or preset("tiny")).replace(**{"model.path": model})
        if base is None and model != "tiny":
            changes = _lengths(config.replace(**changes), changes) | changes
    return config.replace(**changes) if changes else config


def _lengths(config: RunConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths for a model that no preset knows; those that are ``given`` leave the others what is left of its context."""
    from prefix_rft_lab.models.policy import load_model_config

    most = preset("paper-7b").rollout
    context = getattr(load_model_config(config), "max_position_embeddings", None) or most.row_tokens
    prompt, response = "rollout.max_prompt_tokens", "rollout.max_response_tokens"
    prompts, responses = config.rollout.max_prompt_tokens, config.rollout.max_response_tokens
    if prompt not in given:
        prompts = min(most.max_prompt_tokens, context // 4)
    if response not in given:
        responses = max(2, min(most.max_response_tokens, context - prompts))
    elif prompt not in given:
        prompts = max(1, min(prompts, context - responses))
    rows = max(1, BATCH_TOKENS // (prompts + responses))
    return {prompt: prompts, response: responses, "rollout.max_batch_rows": rows}


def is_run(path: Path) -> bool:
    """Whether a directory is a run; a model's directory has a config.json too."""
    return (path / "config.json").is_file() and (path / "env.json").is_file()


def default_split(model: str, config: RunConfig) -> str:
    """The split that is evaluated if none is named: ``test`` of the embedded world and of a file that the evaluated run
    was trained on; of any other file all problems."""
    path = Path(model).expanduser()
    trained_on = Run(path).config.data.problems if is_run(path) else "chains"
    return "test" if config.data.problems in ("chains", trained_on) else "all"


def evaluate_policy(
    config: RunConfig,
    *,
    problems: Any = None,
    task: Task | None = None,
    split: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> Evaluation:
    """Sample every problem of a split ``evaluation.k`` times and once greedily, and score the answers.

    Args:
        config: policy, problems, lengths, ``evaluation.k`` and ``evaluation.temperature``; see :func:`config_for`.
        problems: problems in place of ``data.problems``, as :func:`prefix_rft_lab.train` takes them.
        task: problems with a reward and a template of their own.
        split: ``test``, ``validation``, ``train`` or (embedded world) ``ood``, or ``all``: every row of a file, with none
            held out; see :func:`default_split`. By default ``all`` of ``problems``, else ``test``.
        limit: only the first so many problems.
        out: a ``.parquet`` file for the table; the summary goes beside it as ``.json``. While it is sampled, each full batch
            is kept in a hidden file beside it, so that an interrupted evaluation goes on where it stopped.
        progress: called with (problems done, a line that says so) before each batch.

    Raises:
        ConfigError: problems, split, model or ``out`` that cannot be used; nothing was generated.
        RunError: the disk is full.
    """
    out = None if out is None else file_to_write(out, suffix=".parquet")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit} leaves no problem; give at least 1")
    split = split or ("test" if problems is None and task is None else "all")
    config = with_ideas(with_task(config, task, problems, None if out is None else Path(out).parent / "problems"))
    chosen, dropped = problems_of(config, split)
    with torch_state(config.threads), _Sampler(config, progress) as sampler:
        return sampler.evaluate(
            config,
            chosen[:limit],
            dropped,
            split=split,
            purpose=f"final/{split}",
            out=out,
        )


def evaluate_benchmarks(
    config: RunConfig,
    sources: Mapping[str, str],
    *,
    columns: Mapping[str, str] | None = None,
    k: int | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    report: Callable[[Evaluation], None] | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> list[Evaluation]:
    """Evaluate one policy on several benchmarks.

    Args:
        config: policy, lengths, temperature; see :func:`config_for`.
        sources: name of a benchmark -> file or Hub name; see :func:`prefix_rft_lab.data.benchmarks.locate`.
        columns: maps roles to the files' own columns, as ``data.columns``; by default those are found by their usual names.
        k: samples of each problem; each benchmark's own number by default.
        limit: only the first so many problems of each.
        out: a folder; every benchmark gets ``<name>.parquet`` and ``<name>.json``. One that is already there from the same
            policy, settings, problems and code is not sampled again, and an interrupted one goes on.
        report: called with each evaluation when it is done.
        progress: as :func:`evaluate_policy`.

    Raises:
        ConfigError: a source, model or ``out`` that cannot be used; nothing was generated.
        RunError: the disk is full.
    """
    from prefix_rft_lab.data.benchmarks import BENCHMARKS
    from prefix_rft_lab.data.sources import read_problems

    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit} leaves no problem; give at least 1")
    config = with_ideas(config)
    if out is not None and (out := Path(out).expanduser()).is_file():
        raise ConfigError(f"out = {str(out)!r} is a file; benchmarks are written into a folder")
    if out is not None:
        check_writable(out)
    todo = []
    # All are read before anything is sampled: a wrong name must not come to light after hours.
    for name, source in sources.items():
        own = config.replace(
            **{
                "data.problems": source,
                "data.columns": dict(columns or {}),
                "data.test_sets": [],
                "data.max_rows": None,
                "evaluation.k": k or BENCHMARKS[name].k,
            }
        )
        problems, left_out = read_problems(own.data)
        todo.append((name, own, [replace(problem, split=name) for problem in problems[:limit]], left_out))
    found = []
    with torch_state(config.threads), _Sampler(config, progress) as sampler:
        for name, own, problems, dropped in todo:
            path = None if out is None else Path(out) / f"{name}.parquet"
            purpose = f"benchmark/{name}"
            done = sampler.evaluate(own, problems, dropped, split=name, purpose=purpose, out=path, again=False)
            found.append(done)
            if report is not None:
                report(done)
    return found


def many(split: str = "test") -> str:
    """Name of the table of a run whose policy was sampled many times: ``run.evaluation(many("ood"))``."""
    return "many" if split == "test" else f"many_{split}"


def sample_many(
    run: Run, *, k: int, problems: int, split: str = "test", progress: Callable[[int, str], None] | None = None
) -> Evaluation:
    """Sample a finished run's policy many times into ``<run>/evaluation/<many(split)>.parquet``; an interrupted call
    goes on.

    The keys are those of the run's final evaluation, so that its samples are the first of these.

    Args:
        k: samples of each problem.
        problems: only the first so many problems of the split.

    Raises:
        ConfigError, RunError: as :func:`config_for` and :func:`evaluate_policy`.
    """
    config = config_for(str(run.path), changes={"evaluation.k": k})
    return evaluate_policy(
        config, split=split, limit=problems, out=run.path / "evaluation" / f"{many(split)}.parquet", progress=progress
    )


def sample_all(
    runs: Sequence[Run], *, k: int, problems: int, split: str = "test", workers: int = 2, progress: bool = True
) -> list[Run]:
    """:func:`sample_many` of several runs, in worker processes.

    A table of this size that is there already is kept, and one that was interrupted goes on; a run that fails stops no
    other.

    Args:
        workers: processes at most; each takes ``config.threads`` threads of its runs.
        progress: show how many runs are done.

    Returns:
        the runs, as they were given; ``run.evaluation(many(split))`` and ``stats.pass_curve(runs, many(split))`` read the tables.

    Raises:
        ConfigError: a run that is not finished, or without saved weights; k, problems or workers below 1.
        RunError: runs that could not be sampled, and why; the tables of the others are finished.
    """
    from prefix_rft_lab.experiments.pool import Job, Status, work

    for name, value in (("k", k), ("problems", problems), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name} = {value} cannot be used: it should be at least 1")
    for run in runs:
        if not run.done:
            raise ConfigError(f"run = {str(run.path)!r} is not finished; train it to its end first")
        config_for(str(run.path))  # refuses one without saved weights
    size: dict[str, Any] = {"k": k, "problems": problems, "split": split}
    todo = [run for run in {run.path: run for run in runs}.values() if not _has_many(run, **size)]
    jobs = [
        Job(
            run.config,
            run.path,
            run.path.absolute().parents[1] / "logs" / f"{run.config.name}-{run.path.name}-{many(split)}.log",
            _sample,
            {"run": str(run.path), **size},
        )
        for run in todo
    ]
    with Status(None, progress and bool(todo)) as status:
        failures = work(jobs, workers=workers, status=status)
    if failures:
        raise RunError(
            f"{len(failures)} of {len(todo)} runs were not sampled; the same call keeps the others and goes on with these:\n  "
            + "\n  ".join(f"{failure.path.name}: {failure.sentence}" for failure in failures)
        )
    return list(runs)


def _sample(run: str, **size: Any) -> None:
    sample_many(Run(run), **size)


def _has_many(run: Run, *, k: int, problems: int, split: str) -> bool:
    """Whether :func:`sample_many` has finished for a run at this size."""
    beside = run.path / "evaluation" / f"{many(split)}.json"
    try:
        found = read_json(beside, "summary")["summary"]
        read_table(beside.with_suffix(".parquet"))
        return (found["k"], found["problems"]) == (k, min(problems, run.config.data.eval_problems))
    except (FileNotFoundError, RunError, KeyError, TypeError):
        return False  # not there, or damaged: it is sampled again


class _Sampler:
    """One policy and its rewards, for one evaluation or several."""

    def __init__(self, config: RunConfig, progress: Callable[[int, str], None] | None) -> None:
        from prefix_rft_lab.data.rewards import Scorer
        from prefix_rft_lab.models.generation import engine_for
        from prefix_rft_lab.models.policy import load_policy
        from prefix_rft_lab.models.templates import stop_ids

        model, self.tokenizer = load_policy(config)
        self.engine = engine_for(model, config, eos_id=stop_ids(self.tokenizer))
        self.scorer = Scorer(config.data)
        self.progress = progress

    def __enter__(self) -> _Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.scorer.close()

    def solved(self, responses: Sequence[list[int]], problems: Sequence[Problem]) -> list[bool]:
        texts = [self.tokenizer.decode(list(ids), skip_special_tokens=True) for ids in responses]
        return [self.scorer.solved(score) for score in self.scorer.score(texts, problems)]

    def evaluate(
        self,
        config: RunConfig,
        problems: Sequence[Problem],
        dropped: Mapping[str, int],
        *,
        split: str,
        purpose: str,
        out: Path | None,
        again: bool = True,
    ) -> Evaluation:
        """Sample and score problems; see :func:`evaluate_policy`. Without ``again`` equal results in ``out`` are taken over."""
        from prefix_rft_lab.models.tokens import encode_problems
        from prefix_rft_lab.runs.summary import summarise

        encoded, reasons = encode_problems(self.tokenizer, problems, config)
        # What became of demonstrations does not matter here.
        left_out = {reason: n for reason, n in {**dropped, **reasons}.items() if "demonstration" not in reason}
        if not encoded:
            raise ConfigError(
                f"data.problems = {config.data.problems!r} leaves no problem ({left_out}); raise rollout.max_prompt_tokens"
            )
        key = _key(config, split, [e.problem for e in encoded])
        if out is not None and not again and (table := _finished(out, key)) is not None:
            paths: tuple[Path, ...] = (out, out.with_suffix(".json"))
        else:
            table = self._table(config, encoded, purpose, None if out is None else _Parts(out, key))
            paths = () if out is None else _write(out, config, split, table, left_out, key)
            if out is not None:
                _Parts(out, key).path.unlink(missing_ok=True)
        unread = [] if config.data.problems == "chains" else self.scorer.unread([p.problem for p in encoded])
        return Evaluation(
            config=config,
            split=split,
            table=table,
            summary=summarise(table),
            dropped=left_out,
            paths=paths,
            unread=tuple(unread),
        )

    def _table(
        self, config: RunConfig, encoded: Sequence[EncodedProblem], purpose: str, parts: _Parts | None
    ) -> pd.DataFrame:
        """The rows of all problems, sampled a full batch at a time; each batch is kept in ``parts`` as it comes."""
        from prefix_rft_lab.training.evaluate import sample_scores

        k = config.evaluation.k
        size = max(1, config.rollout.max_batch_rows // k)
        tables = [] if parts is None else parts.read()
        for start in range(size * len(tables), len(encoded), size):
            if self.progress is not None:
                self.progress(start, f"{purpose.partition('/')[2]}: {start}/{len(encoded)} problems, {k} samples each")
            table = sample_scores(
                self.engine,
                encoded[start : start + size],
                self.solved,
                k=k,
                max_tokens=config.rollout.max_response_tokens,
                temperature=config.evaluation.temperature,
                seed=config.data.seed,
                purpose=purpose,
            )
            tables.append(table)
            if parts is not None and start + size < len(encoded):
                parts.append(table)
        return pd.concat(tables, ignore_index=True)


class _Parts:
    """What an interrupted evaluation has sampled: a file beside its ``out``, one line per batch, headed by a key."""

    def __init__(self, out: Path, key: str) -> None:
        self.path = out.with_name(f".{out.stem}.parts.jsonl")
        self.key = key

    def read(self) -> list[pd.DataFrame]:
        """The batches of an evaluation with this key; those of another are forgotten."""
        head = {"key": self.key}
        lines = read_lines(self.path, cut=True)
        kept = lines if lines[:1] == [head] else [head]
        # Written again, so that no torn last line is left before the next one.
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        return [pd.DataFrame(line["rows"]) for line in kept[1:]]

    def append(self, table: pd.DataFrame) -> None:
        append_line(self.path, {"rows": table.to_dict(orient="records")})


def _key(config: RunConfig, split: str, problems: Sequence[Problem]) -> str:
    """Names all that a table depends on: settings, problems, weights, code."""
    weights = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in Path(config.model.path).expanduser().glob("*")
        if path.is_file()
    )
    asked = [(problem.id, problem.prompt, problem.answer, problem.level) for problem in problems]
    settings = [config.model, config.rollout, config.evaluation.k, config.evaluation.temperature, config.data.seed]
    settings += [config.data.reward, config.data.solved, config.ideas]
    known = [environment(config.threads), split, [str(setting) for setting in settings], weights, asked]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _finished(out: Path, key: str) -> pd.DataFrame | None:
    """The table of an equal evaluation that is there already."""
    try:
        return read_table(out) if read_json(out.with_suffix(".json")).get("key") == key else None
    except (FileNotFoundError, RunError):
        return None  # not there, or damaged: it is sampled again


def problems_of(config: RunConfig, split: str) -> tuple[list[Problem], dict[str, int]]:
    """Problems of a split, or of ``all`` of a file with none held out, and dropped rows by reason.

    Raises:
        ConfigError: an unknown split, or a file that cannot be used.
    """
    from prefix_rft_lab.data import sources

    known = sources.splits(config.data)
    reasons: Mapping[str, int]
    if split == "all" and config.data.problems != "chains":
        problems, reasons = sources.read_problems(config.data)
    elif split in known:
        problems, reasons = sources.load_problems(config.data, split)
    else:
        names = [*known, *(["all"] if config.data.problems != "chains" else [])]
        raise ConfigError(
            f"split = {split!r} is not a split of {config.data.problems!r}; use one of {', '.join(names)}"
        )
    return problems, dict(reasons)


def _write(
    out: Path, config: RunConfig, split: str, table: pd.DataFrame, dropped: dict[str, int], key: str
) -> tuple[Path, Path]:
    from prefix_rft_lab.runs.summary import pass_curve, summarise

    write_table(out, table)
    beside = out.with_suffix(".json")
    write_json(
        beside,
        {
            "model": config.model.path,
            "problems": config.data.problems,
            "split": split,
            "temperature": config.evaluation.temperature,
            "summary": summarise(table),
            "pass_curve": pass_curve(table).to_dict(orient="records"),
            "dropped": dropped,
            "key": key,
            "config": config.to_dict(),
            "environment": environment(config.threads),
        },
    )
    return out, beside


_SHAPES = {"tokens": ".1f", "truncated": ".1%"}


def _scores(part: Mapping[str, Any], k: int | str) -> dict[str, Any]:
    """A summary as the cells of a table, with 95% intervals over problems."""
    row = {"problems": part["problems"]}
    for name, head in (("avg", f"avg@{k}"), ("pass", f"pass@{k}"), ("greedy", "greedy")):
        row |= {head: part[name], **dict(zip((f"{head}_low", f"{head}_high"), part[f"{name}_interval"], strict=True))}
    return row | {name: part[name] for name in _SHAPES}


def format_summary(summary: Mapping[str, Any]) -> str:
    """A small table: overall and each level, with 95% intervals over problems."""
    parts = {"all": summary, **summary.get("levels", {})}
    rows = [{"level": name} | _scores(part, summary["k"]) for name, part in parts.items()]
    return show(pd.DataFrame(rows), formats=_SHAPES)


def format_benchmarks(evaluations: Sequence[Evaluation]) -> str:
    """A line for each benchmark, with 95% intervals over problems, and the mean over benchmarks; pass@k below."""
    from prefix_rft_lab.data.benchmarks import BENCHMARKS
    from prefix_rft_lab.runs.summary import pass_curve

    rows = [
        {"benchmark": BENCHMARKS[found.split].title, "problems": 0, "samples": found.summary["k"]}
        | _scores(found.summary, "k")
        for found in evaluations
    ]
    if len(rows) > 1:
        means = {head: sum(row[head] for row in rows) / len(rows) for head in ("avg@k", "pass@k", "greedy")}
        rows.append(dict.fromkeys(["problems", "samples", *_SHAPES], "") | {"benchmark": "mean"} | means)
    text = show(pd.DataFrame(rows), formats=_SHAPES)
    curves = {BENCHMARKS[found.split].title: pass_curve(found.table) for found in evaluations if found.summary["k"] > 1}
    if curves:
        text += "\n\npass@k, unbiased\n" + "\n".join(
            f"{title}: "
            + ", ".join(
                f"{k} {with_interval(mean, low, high)}"
                for k, mean, low, high in zip(*(curve[c] for c in ("k", "mean", "low", "high")), strict=True)
            )
            for title, curve in curves.items()
        )
    for found in evaluations:
        if len(levels := dict(sorted(found.summary.get("levels", {}).items()))) > 1:
            text += (
                f"\n\n{BENCHMARKS[found.split].title} by level\n{format_summary({**found.summary, 'levels': levels})}"
            )
    return text
