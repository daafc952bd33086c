"""The command ``prefix-rft``: the library's functions with arguments from a shell. No logic of its own.

A command is a function: its parameters are the options, its docstring is the help. Exit status: 0 done; 1 a run, a check or a
comparison failed; 2 an argument or config cannot be used; 130 interrupted. Nothing heavy is imported before a command needs
it, so that ``--help`` answers at once: ``lab`` loads its names when they are used.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import MutuallyExclusive

import prefix_rft_lab as lab

if TYPE_CHECKING:
    from prefix_rft_lab.experiments.evaluation_run import Evaluation

RESUMES = "interrupted; what was recorded is kept, and the same command goes on from the newest checkpoint"


def _default(value: Any) -> str | None:
    """A default as help shows it: what is off or empty needs no word."""
    return None if value in (None, ()) or value is False else str(value)


app = App(
    name="prefix-rft",
    help="""Train, evaluate and compare policies with Prefix-RFT (arXiv 2507.01679) and its relatives.

    examples:
      prefix-rft doctor
      prefix-rft train --method prefix_rft --seeds 0,1
      prefix-rft reproduce
    """,
    help_epilogue="--debug, with any command: show the traceback of an error",
    help_format="plaintext",
    version=lambda: f"prefix-rft {lab.__version__}",
    default_parameter=Parameter(negative="", show_default=_default),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def _one_of() -> Parameter:
    """Options of which one at most is given."""
    return Parameter(group=("Parameters", Group(validator=MutuallyExclusive())))


_START, _SEEDS, _INSTEAD = _one_of(), _one_of(), _one_of()
_SET = "change one field of the config, e.g. prefix.low=0.1; the value is YAML; may be repeated"
_COLUMN = (
    "field=name: the file's own name for problem, answer, demonstration, id, ..., or a.b in an object; may be repeated"
)
Changes = Annotated[Sequence[str], Parameter(name="--set", help=_SET)]
Columns = Annotated[Sequence[str], Parameter(name="--column", help=_COLUMN)]
_IMPORT = "module with ideas of your own (methods, rewards, schedules, ...), e.g. my_ideas; may be repeated"
Imports = Annotated[Sequence[str], Parameter(name="--import", help=_IMPORT)]
_FRESH = "train again, from the start, what was trained before; to resume after an interruption, leave it out"
Fresh = Annotated[bool, Parameter(help=_FRESH)]
Out = Annotated[str, Parameter(help="folder of all runs")]
Reproduction = Annotated[str, Parameter(help="parent of the profile's folder")]
Workers = Annotated[int, Parameter(help="runs trained at a time")]
Profile = Annotated[str, Parameter(help="smoke, quick or full")]
Limit = Annotated[int | None, Parameter(help="only the first problems, so many")]


def say(text: str = "", *, end: str = "\n", flush: bool = False, to: str = "stdout") -> None:
    """Print text that may come from data, paths or arguments: a terminal shows it and does not obey it."""
    from prefix_rft_lab.core.terminal import shown

    print(shown(text, keep="\n"), end=end, flush=flush, file=getattr(sys, to))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; a failure is one sentence on stderr (``--debug``: a traceback)."""
    from prefix_rft_lab.core.terminal import plain_logs

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what this console has no character for
    plain_logs()
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    try:
        found = app(words, exit_on_error=False, print_error=False)
        return (found or 0) if words else 2
    except KeyboardInterrupt:
        say(f"\nprefix-rft: {RESUMES}", to="stderr")
        return 130
    except BrokenPipeError:
        # Whoever read our output has left (``| head``); the interpreter must not try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        status = _status(error)
        if status is None or "--debug" in given:
            traceback.print_exc()
            return status or 1
        say(f"prefix-rft: {error}", to="stderr")
        return status


def _status(error: Exception) -> int | None:
    """The exit status of an error that is the user's to mend; None for one that is ours."""
    if isinstance(error, CycloptsError | lab.ConfigError):
        return 2
    return 1 if isinstance(error, (ValueError, OSError, lab.RunError)) else None


def _given(**fields: Any) -> dict[str, Any]:
    """What was given, by dotted field (``a__b`` is ``a.b``)."""
    return {name.replace("__", "."): value for name, value in fields.items() if value is not None}


def _changed(changes: Sequence[str], columns: Sequence[str] = ()) -> dict[str, Any]:
    """Fields that ``--set`` and ``--column`` give."""
    named = lab.config.pairs_of(columns, "--column", "answer=gold")
    return ({"data.columns": named} if named else {}) | lab.config.changes_of(changes)


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise lab.ConfigError(
            f"{option} {text!r} is not understood; write whole numbers, e.g. {option} 0,1,2"
        ) from None


# ---------------------------------------------------------------------- commands


@app.command
def doctor() -> int:
    """Check this machine: versions, threads, memory, verifier, kernel.

    Asks nothing of the network. Exit status 1 if something required doesn't fit.

    examples:
      prefix-rft doctor
    """
    checks = lab.doctor.check_all()
    say(lab.doctor.format_checks(checks))
    return 0 if lab.doctor.healthy(checks) else 1


@app.command
def train(
    *,
    preset: Annotated[str, _START] = "tiny",
    config: Annotated[str | None, _START] = None,
    method: str | None = None,
    seed: Annotated[int | None, _SEEDS] = None,
    seeds: Annotated[str | None, _SEEDS] = None,
    model: str | None = None,
    problems: str | None = None,
    columns: Columns = (),
    steps: int | None = None,
    out: Out = "runs",
    changes: Changes = (),
    imports: Imports = (),
    workers: Workers = 1,
    fresh: Fresh = False,
    dry_run: Annotated[bool, _INSTEAD] = False,
    plan: Annotated[bool, _INSTEAD] = False,
    flops: float | None = None,
    response_tokens: int | None = None,
) -> int:
    """Train one or more methods with one or more seeds.

    Several runs end with a table that compares the methods over their seeds.
    A finished run is not trained again, an interrupted one resumes from its newest checkpoint.

    examples:
      prefix-rft train --method rft --steps 50
      prefix-rft train --method prefix_rft --seeds 0,1,2 --workers 2
      prefix-rft train --method all --seeds 0,1,2 --workers 2
      prefix-rft train --preset smol --problems mine.jsonl --set rollout.max_response_tokens=256
      prefix-rft train --config run.yaml --set prefix.keep_fraction=0.5 --dry-run
      prefix-rft train --import my_ideas --method mine --seeds 0,1,2
      prefix-rft train --preset paper-7b --plan

    Args:
        preset: where the config starts: tiny, smol, paper-1.5b, paper-7b or llama-8b
        config: a YAML or JSON config to start from instead of a preset
        method: one or several of base, sft, rft, prefix_rft, ..., or all (default: the config's)
        seed: seed of the run (default: the config's)
        seeds: several seeds, one run each, e.g. 0,1,2
        model: policy to start from: tiny, a directory, or a Hub name
        problems: JSONL, parquet or CSV file, or Hub name, of problems, or chains
        steps: optimizer steps of each stage of the method
        dry_run: print the config and where the run would be, train nothing
        plan: print rows, tokens, memory, time and disk of the run, load and train nothing
        flops: with --plan: FLOP/s to estimate times with, e.g. 4e14 (default: measured here, or a GPU's if it does not fit)
        response_tokens: with --plan: mean length of a response to estimate times with (default: the longest allowed)
    """
    from prefix_rft_lab.runs.run import directory_of

    if workers < 1:
        raise lab.ConfigError(f"--workers {workers} cannot be used; give at least 1")
    for option, value in (("--flops", flops), ("--response-tokens", response_tokens)):
        if value is not None and not plan:
            raise lab.ConfigError(f"{option} {value:g} has no meaning without --plan; add it, or leave {option} out")
    lab.registry.load(imports)
    base = lab.RunConfig.load(config) if config else lab.preset(preset)
    fields = _given(seed=seed, model__path=model, data__problems=problems) | _changed(changes, columns)
    numbers = None if seeds is None else _whole_numbers("--seeds", seeds)
    configs = lab.sweeps.configs(base, method=method, seeds=numbers, steps=steps, changes=fields)
    if plan:
        say(lab.plan_text.plans(configs, flops, response_tokens))
        return 0
    say(lab.config.show_config(configs[0], base, config or f"preset {preset}"))
    if len(configs) > 1:
        names, each = (dict.fromkeys(str(getattr(c, field)) for c in configs) for field in ("method", "seed"))
        say(f"# {len(configs)} runs: method {', '.join(names)}; seed {', '.join(each)}")
    say(flush=True)
    if dry_run:
        for one in configs:
            path = directory_of(one, out)
            state = "is finished already" if (path / "DONE.json").is_file() else "would resume"
            say(f"{path}/  {'would be written' if not path.exists() else 'would be trained again' if fresh else state}")
        say("config.json env.json data.json metrics.jsonl evaluations.jsonl tokens/ evaluation/ summary.json", end="")
        say(f"{' model/' if configs[0].records.save_model else ''} DONE.json")
        return 0
    return _train(configs, out, workers, fresh)


def _train(configs: Sequence[lab.RunConfig], out: str, workers: int, fresh: bool) -> int:
    from prefix_rft_lab.analysis import results
    from prefix_rft_lab.core.tables import show
    from prefix_rft_lab.experiments.pool import train_all

    if len(configs) == 1:
        runs = [lab.train(configs[0], out=out, progress=sys.stderr.isatty(), fresh=fresh)]
    else:
        runs = train_all(configs, out=out, workers=workers, fresh=fresh)
    for run in runs:
        say(f"run {run.path}{f'  {run.diverged}' if run.diverged else ''}")
    say(show(results.of_runs(runs)))
    if len(runs) > 1:
        say(f"\n{show(results.of_methods(runs))}")
    return 1 if any(run.diverged for run in runs) else 0


@app.command
def sweep(
    source: str | None = None,
    /,
    *,
    profile: str | None = None,
    seeds: str | None = None,
    out: Out = "runs",
    columns: Columns = (),
    changes: Changes = (),
    imports: Imports = (),
    workers: Workers = 2,
    fresh: Fresh = False,
    run_limit: float | None = None,
    time_limit: float | None = None,
    plan: bool = False,
    list: bool = False,
) -> int:
    """Train all runs of a file and compare its arms.

    Finished runs are not trained again, interrupted ones resume, those that fail or diverge stop no other. The same
    command on several machines that share the folder divides the runs among them. Exit status 1 if a run failed.

    examples:
      prefix-rft sweep --list
      prefix-rft sweep demo_quality --profile quick --plan
      prefix-rft sweep demo_quality --profile quick --workers 2
      prefix-rft sweep mine.yaml --seeds 0,1,2 --set rl.steps=50 --run-limit 3600

    Args:
        source: a YAML file, or the name of a sweep of the kit
        profile: smoke, quick, full or one of the file (default: the file as it is)
        seeds: seeds in place of the file's, e.g. 0,1,2
        run_limit: a run that takes longer, in seconds, is stopped and counts as failed
        time_limit: limit of the whole command in seconds
        plan: print the runs and the state of each, train nothing
        list: print the sweeps of the kit
    """
    from prefix_rft_lab.analysis import results
    from prefix_rft_lab.core.tables import show
    from prefix_rft_lab.runs.run import directory_of

    if list:
        say(show(lab.sweeps.kit()))
        return 0
    if source is None:
        raise lab.ConfigError(f"no sweep is given; name a YAML file, or one of {', '.join(lab.sweeps.names())}")
    lab.registry.load(imports)
    numbers = None if seeds is None else _whole_numbers("--seeds", seeds)
    planned = lab.sweeps.plan(source, profile, seeds=numbers, **_changed(changes, columns))
    if plan:
        say(show(lab.sweeps.states(planned, out)))
        return 0
    say(f"{planned.sweep.name}: {planned.sweep.question or 'no question'} {len(planned.runs)} runs", flush=True)
    failed = False
    try:
        lab.sweeps.run(
            planned, out=out, workers=workers, run_seconds_limit=run_limit, seconds_limit=time_limit, fresh=fresh
        )
    except lab.pool.PoolError as error:
        failed = True
        say(f"prefix-rft: {error}", to="stderr")
        for failure in error.failures:
            if failure.tail:
                say(f"\nthe end of {failure.log}:\n{failure.tail}", to="stderr")
    runs = lab.sweeps.finished(planned, out)
    if runs:
        say(results.of_sweep(planned, runs))
    for run in runs:
        if run.diverged:
            say(f"{planned.label()(run)}, seed {run.seed} counts as solving nothing: {run.diverged}")
    folders = dict.fromkeys(str(directory_of(config, out).parent) for config in planned.configs)
    say(f"runs     {', '.join(folders)} ({len(runs)} of {len(planned.runs)} finished)")
    say(f"logs     {Path(out) / 'logs'}")
    say(f"written  {planned.folder(out) / 'summary.csv'}")
    return 1 if failed else 0


@app.command
def evaluate(
    *,
    model: str,
    preset: str | None = None,
    problems: str | None = None,
    columns: Columns = (),
    split: str | None = None,
    benchmark: str | None = None,
    benchmark_dir: str | None = None,
    k: int | None = None,
    temperature: float | None = None,
    limit: Limit = None,
    out: str | None = None,
    changes: Changes = (),
    imports: Imports = (),
) -> None:
    """Evaluate a policy: avg@k, pass@k, greedy.

    Overall and by level, with 95% intervals over problems. The keys are those of a run's final evaluation, so the
    directory of a run gives the figures of its summary again.

    examples:
      prefix-rft evaluate --model tiny --split ood --k 8
      prefix-rft evaluate --model runs/tiny/prefix_rft-1234-s0 --out evaluation.parquet
      prefix-rft evaluate --model path/to/model --problems mine.jsonl --limit 100
      prefix-rft evaluate --model path/to/model --benchmark paper --temperature 0.6 --out benchmarks/model
      prefix-rft evaluate --model path/to/model --benchmark aime24,math500 --benchmark-dir data --k 64

    Args:
        model: tiny, a directory, a Hub name, or a finished run
        preset: as in train (default: a run's own config; else tiny, with lengths that the model's context allows)
        problems: JSONL, parquet or CSV file, Hub name, or chains (default: the config's)
        split: test, validation, train, ood (chains), or all of a file (default test; of a new file all)
        benchmark: aime24, aime25, amc23, math500, minerva, olympiadbench, gsm8k, NAME=FILE, by commas; paper: the first six
        benchmark_dir: folder of benchmark files (default: the Hub)
        k: samples of each problem (default: the config's evaluation.k, or the benchmark's)
        temperature: sampling temperature (default: the config's)
        out: .parquet file for a row per problem, and the summary beside it; with --benchmark a folder; goes on if interrupted
    """
    from prefix_rft_lab.data.benchmarks import locate
    from prefix_rft_lab.experiments import evaluation_run as runs
    from prefix_rft_lab.experiments.pool import Status

    if benchmark and (problems or split):
        raise lab.ConfigError("--benchmark brings its own problems; leave out --problems and --split")
    if benchmark and k is not None and k < 1:
        raise lab.ConfigError(f"--k {k} samples nothing; give at least 1")
    if benchmark_dir and not benchmark:
        raise lab.ConfigError("--benchmark-dir needs --benchmark, e.g. --benchmark paper")
    lab.registry.load(imports)
    fields = _given(
        data__problems=problems, evaluation__k=None if benchmark else k, evaluation__temperature=temperature
    )
    config = runs.config_for(
        model,
        base=lab.preset(preset) if preset else None,
        changes=fields | _changed(changes, () if benchmark else columns),
    )
    heat = f"temperature {config.evaluation.temperature:g}"

    def report(found: Evaluation) -> None:
        for line in (*found.remarks, *(f"written {path}" for path in found.paths)):
            say(f"{found.split}: {line}", flush=True)

    if benchmark:
        sources = locate(benchmark, benchmark_dir)
        named = lab.config.pairs_of(columns, "--column", "answer=gold")
        with Status(None) as status:
            each = runs.evaluate_benchmarks(
                config, sources, columns=named, k=k, limit=limit, out=out, report=report, progress=status.update
            )
        say(f"{model}, {heat}\n{runs.format_benchmarks(each)}")
        return
    split = split or runs.default_split(model, config)
    with Status(None) as status:
        found = runs.evaluate_policy(config, split=split, limit=limit, out=out, progress=status.update)
    written = [f"written {path}" for path in found.paths]
    lines = [f"{model} on {split} of {config.data.problems}, {heat}", *found.remarks]
    say("\n".join([*lines, runs.format_summary(found.summary), *written]))


@app.command
def data(
    what: Literal["inspect"],
    source: str,
    /,
    *,
    columns: Columns = (),
    rows: int | None = None,
    test_sets: Annotated[Sequence[str], Parameter(name="--test-set")] = (),
    preset: str = "tiny",
    model: str | None = None,
    quick: bool = False,
    out: str | None = None,
    changes: Changes = (),
) -> None:
    """Look at a set of problems: what it holds, what is left out, and why.

    Reads it as a training would: the same fields of the config choose columns, demonstrations and test sets.

    examples:
      prefix-rft data inspect math_train.jsonl --test-set math500.jsonl
      prefix-rft data inspect open-r1/OpenR1-Math-220k --rows 1000 --set data.demonstrations=shortest
      prefix-rft data inspect mine.csv --column problem=question --column answer=gold --model models/smollm2-135m

    Args:
        what: inspect: read, count and check
        source: JSONL, parquet or CSV file, or Hub name
        rows: only the first rows, so many
        test_sets: leave out problems that are in this file; may be repeated
        preset: where the config starts
        model: count tokens with this model's tokenizer
        quick: do not read the answers and grade the demonstrations
        out: write what was found to this .json file
    """
    from prefix_rft_lab.core.files import file_to_write, write_json
    from prefix_rft_lab.experiments.pool import Status
    from prefix_rft_lab.tools.inspection import format_inspection, inspect

    written = file_to_write(out, field="--out") if out else None
    fields = _given(data__problems=source, data__max_rows=rows, data__test_sets=test_sets or None)
    config = lab.preset(preset).replace(**(fields | _changed(changes, columns)))
    tokenizer = None
    if model is not None:
        tokenizer = lab.policy.load_tokenizer(config.replace(**{"model.path": model}))
    with Status(None) as status:
        found = inspect(config, tokenizer=tokenizer, verify=not quick, progress=status.update)
    say(format_inspection(found))
    if written:
        write_json(written, found.to_dict())
        say(f"\nwritten {written}")


@app.command
def grading(
    sources: Sequence[str],
    /,
    *,
    columns: Columns = (),
    limit: int | None = None,
    seed: int = 0,
    least: float = 0.9995,
    out: str | None = None,
) -> int:
    """Grade the solutions of real problems: how right is the grading?

    Each row's own solution, given as the response, should be graded correct, and the solution of another problem of
    the same type with another answer wrong. Prints both rates and every failure; exit status 1 below --least.

    examples:
      prefix-rft grading math_train.jsonl gsm8k_train.jsonl
      prefix-rft grading mine.csv --column answer=gold --limit 500 --out grading.json

    Args:
        sources: JSONL, parquet or CSV files, or Hub names, with solutions
        limit: only the first rows of each, so many
        seed: seed of the other problems
        least: rate that both must reach
        out: write figures and all failures to this .json file
    """
    from prefix_rft_lab.core.files import file_to_write, write_json
    from prefix_rft_lab.experiments.pool import Status
    from prefix_rft_lab.tools.inspection import format_gradings, grade

    written = file_to_write(out, field="--out") if out else None
    if limit is not None and limit < 1:
        raise lab.ConfigError(f"--limit {limit} leaves no row; give at least 1")
    if not 0 <= least <= 1:
        raise lab.ConfigError(f"--least {least:g} is no rate; give a number from 0 to 1")
    found = []
    named = lab.config.pairs_of(columns, "--column", "answer=gold")
    for source in sources:
        with Status(None) as status:
            found.append(grade(source, named, seed=seed, limit=limit, progress=status.update))
    say(format_gradings(found))
    if written:
        write_json(written, [grading.to_dict() for grading in found])
        say(f"\nwritten {written}")
    low = [grading.source for grading in found if not grading.passes(least)]
    if low:
        say(f"\nbelow {least:.2%}: {', '.join(low)}")
    return 1 if low else 0


@app.command
def tokens(
    *,
    models: Annotated[Sequence[str], Parameter(name="--model")],
    problems: str | None = None,
    columns: Columns = (),
    split: str | None = None,
    limit: Limit = 20,
    sample: int = 0,
    no_demonstrations: bool = False,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int = 5,
    seed: int = 0,
    steps: str | None = None,
    out: str | None = None,
    changes: Changes = (),
) -> None:
    """Make the token table of any model, without training.

    Demonstrations are read as they are, responses are sampled on request: entropy over the full vocabulary,
    log-probability and the most probable alternatives of every token, as a training run records them.

    examples:
      prefix-rft tokens --model tiny --out tokens.parquet
      prefix-rft tokens --model path/to/model --problems mine.jsonl --sample 4 --temperature 0.7 --limit 50
      prefix-rft tokens --model run/checkpoint-100 --model run/checkpoint-200 --problems mine.jsonl --out t.parquet

    Args:
        models: tiny, a directory, a Hub name, or a finished run; repeat it for checkpoints of one model
        problems: JSONL, parquet or CSV file, Hub name, or chains (default: the run's, or chains)
        split: as in evaluate (default: test of chains and of a run's own file, else all)
        sample: responses sampled per problem
        no_demonstrations: leave the demonstrations out
        max_tokens: longest sampled response (default: the run's, or 512)
        temperature: of sampling and of entropies
        top_k: alternatives of each token
        seed: of the samples
        steps: steps of the models, e.g. 100,200 (default: the numbers that their names end in, or 0, 1, ...)
        out: write the table to this .parquet file
    """
    from prefix_rft_lab.tools.reading import format_reading, read_tokens

    reading = read_tokens(
        models,
        problems=problems,
        split=split,
        limit=limit,
        steps=None if steps is None else _whole_numbers("--steps", steps),
        demonstrations=not no_demonstrations,
        samples=sample,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        max_tokens=max_tokens,
        changes=_changed(changes, columns),
        out=out,
    )
    say(format_reading(reading))
    if out:
        say(f"written {out}")


@app.command
def reproduce(
    *,
    profile: Profile = "quick",
    out: Reproduction = "reproduction",
    workers: Workers = 2,
    notebooks: str | None = None,
    only: str | None = None,
    sweeps: str | None = None,
) -> None:
    """Run the notebooks and write the report.

    smoke takes seconds and shows that everything connects, quick gives a first answer, full is the one to quote.
    Finished runs are kept: the same command after an interruption goes on where it stopped.

    examples:
      prefix-rft reproduce
      prefix-rft reproduce --profile smoke --out /tmp/smoke

    Args:
        notebooks: folder of the notebooks (default: of the repository)
        only: numbers of the notebooks to run, e.g. 01,02 (default: those of the profile)
        sweeps: sweeps to train and report, by commas (default: those of the profile)
    """
    chosen = sweeps.split(",") if sweeps else None
    lab.notebooks.reproduce(
        profile, out, workers, notebooks=notebooks, only=only.split(",") if only else None, sweeps=chosen
    )


@app.command
def claims(
    *, profile: Profile = "full", out: Reproduction = "reproduction", sweep: str | None = None, list: bool = False
) -> None:
    """Judge the claims of the paper by the finished runs of a profile.

    Prints the effect here with its interval, corrected for all claims, the paper's figure and the verdict.
    A claim without runs says which command makes them.

    examples:
      prefix-rft claims --list
      prefix-rft claims --profile full --out reproduction

    Args:
        sweep: only the claims that compare the arms of this sweep
        list: only say what is claimed and how it is tested
    """
    chosen = lab.claims.of_sweep(sweep) if sweep else lab.claims.load()
    if list:
        for claim in chosen:
            say(claim.described)
        return
    results = lab.claims.results(Path(out).expanduser() / profile / "runs", profile)
    for verdict in lab.claims.judge(chosen, results):
        say(f"{verdict.claim.id}: {verdict.sentence}\n  There: {verdict.claim.paper}. Alone: {verdict.alone}.")


@app.command
def report(folder: Path, /, *, title: str | None = None) -> None:
    """Write a report of the finished runs below a folder.

    examples:
      prefix-rft report runs
      prefix-rft report reproduction/quick

    Args:
        folder: folder with runs; the report is written into it
        title: title of the report
    """
    from prefix_rft_lab.report import write_report

    folder = folder.expanduser()
    path = write_report(folder, runs=lab.load_all(folder), title=title or f"Runs in {folder.name}")
    say(f"report {path.absolute()}\n       {path.absolute().as_uri()}")


@app.command
def push(
    run: str,
    /,
    *,
    repo: str | None = None,
    private: bool = False,
    license: str | None = None,
    dry_run: str | None = None,
) -> None:
    """Upload the model of a finished run to the Hub, with a card.

    The card says method, base model, departures of the config, scores with intervals and the source they came from.

    examples:
      prefix-rft push runs/tiny/prefix_rft-1234-s0 --repo owner/name --private
      prefix-rft push runs/tiny/prefix_rft-1234-s0 --dry-run upload

    Args:
        run: directory of a finished run
        repo: repository, as owner/name; created if it is not there
        private: only its owner sees it
        license: licence of the model, e.g. apache-2.0 (default: none is stated)
        dry_run: write what would be uploaded into this folder, upload nothing
    """
    found = lab.load(run)
    if dry_run:
        say(f"written {lab.publishing.write_folder(found, dry_run, repo=repo, license=license)}")
        return
    if repo is None:
        raise lab.ConfigError("--repo is missing; give owner/name, or --dry-run DIR to look at what would be uploaded")
    say(f"pushed {lab.publishing.push(found, repo, private=private, license=license)}")


if __name__ == "__main__":
    raise SystemExit(main())
