"""The command ``prefix-rft``: the library's functions with arguments from a shell. No logic of its own.

Exit status: 0 done; 1 a run, a check or a comparison failed; 2 an argument or config cannot be used; 130 interrupted.
Nothing heavy is imported before a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefix_rft_lab.core.config import RunConfig
    from prefix_rft_lab.experiments.sweeps import Plan
    from prefix_rft_lab.runs.run import Run

RESUMES = "interrupted; what was recorded is kept, and the same command goes on from the newest checkpoint"


def say(text: str = "", *, end: str = "\n", flush: bool = False, to: str = "stdout") -> None:
    """Print text that may come from data, paths or arguments: a terminal shows it and does not obey it."""
    from prefix_rft_lab.core.terminal import shown

    print(shown(text, keep="\n"), end=end, flush=flush, file=getattr(sys, to))


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        from prefix_rft_lab.core.terminal import shown

        super()._print_message(shown(message, keep="\n") if message else message, file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; a failure is one sentence on stderr (``--debug``: a traceback)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what this console has no character for
    args = parser().parse_args(arguments)
    try:
        return args.command(args)
    except KeyboardInterrupt:
        say(f"\nprefix-rft: {RESUMES}", to="stderr")
        return 130
    except BrokenPipeError:
        # Whoever read our output has left (``| head``); the interpreter must not try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        status = _status(error)
        if status is None or args.debug:
            traceback.print_exc()
            return status or 1
        say(f"prefix-rft: {error}", to="stderr")
        return status


def _status(error: Exception) -> int | None:
    """The exit status of an error that is the user's to mend; None for one that is ours."""
    from prefix_rft_lab.core.config import ConfigError
    from prefix_rft_lab.core.errors import RunError

    if isinstance(error, ConfigError):
        return 2
    return 1 if isinstance(error, (ValueError, OSError, RunError)) else None


# ---------------------------------------------------------------------- arguments


def parser() -> argparse.ArgumentParser:
    from prefix_rft_lab.core.versions import __version__

    top = _Parser(
        prog="prefix-rft",
        description="Train, evaluate and compare policies with Prefix-RFT (arXiv 2507.01679) and its relatives.",
        epilog=_examples(
            "prefix-rft doctor", "prefix-rft train --method prefix_rft --seeds 0,1", "prefix-rft reproduce"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"prefix-rft {__version__}")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text.partition(".")[0],
            description=text,
            epilog=_examples(*examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
        return sub

    add(
        "doctor",
        _doctor,
        "Check this machine: versions, threads, memory, verifier, kernel.\n"
        "Asks nothing of the network. Exit status 1 if something required doesn't fit.",
        "prefix-rft doctor",
    )
    _add_train(
        add(
            "train",
            _train,
            "Train one or more methods with one or more seeds.\n"
            "Several runs end with a table that compares the methods over their seeds.\n"
            "A finished run is not trained again, an interrupted one resumes from its newest checkpoint.",
            "prefix-rft train --method rft --steps 50",
            "prefix-rft train --method prefix_rft --seeds 0,1,2 --workers 2",
            "prefix-rft train --method all --seeds 0,1,2 --workers 2",
            "prefix-rft train --preset smol --problems mine.jsonl --model path/to/model --set rollout.max_response_tokens=256",
            "prefix-rft train --config run.yaml --set prefix.keep_fraction=0.5 --dry-run",
            "prefix-rft train --preset paper-7b --plan",
        )
    )
    _add_sweep(
        add(
            "sweep",
            _sweep,
            "Train all runs of a file and compare its arms.\n"
            "Finished runs are not trained again, interrupted ones resume, those that fail or diverge stop no other. The same\n"
            "command on several machines that share the folder divides the runs among them.\n"
            "Exit status 1 if a run failed.",
            "prefix-rft sweep --list",
            "prefix-rft sweep demo_quality --profile quick --plan",
            "prefix-rft sweep demo_quality --profile quick --workers 2",
            "prefix-rft sweep mine.yaml --seeds 0,1,2 --set rl.steps=50 --run-limit 3600",
        )
    )
    _add_evaluate(
        add(
            "evaluate",
            _evaluate,
            "Evaluate a policy: avg@k, pass@k, greedy.\n"
            "Overall and by level, with 95% intervals over problems. The keys are those of a run's final evaluation, so the\n"
            "directory of a run gives the figures of its summary again.",
            "prefix-rft evaluate --model tiny --split ood --k 8",
            "prefix-rft evaluate --model runs/tiny/prefix_rft-1234-s0 --out evaluation.parquet",
            "prefix-rft evaluate --model path/to/model --problems mine.jsonl --limit 100",
            "prefix-rft evaluate --model path/to/model --benchmark paper --temperature 0.6 --out benchmarks/model",
            "prefix-rft evaluate --model path/to/model --benchmark aime24,math500 --benchmark-dir data --k 64",
        )
    )
    _add_data(
        add(
            "data",
            _data,
            "Look at a set of problems: what it holds, what is left out, and why.\n"
            "Reads it as a training would: the same fields of the config choose columns, demonstrations and test sets.",
            "prefix-rft data inspect math_train.jsonl --test-set math500.jsonl",
            "prefix-rft data inspect open-r1/OpenR1-Math-220k --rows 1000 --set data.demonstrations=shortest",
            "prefix-rft data inspect mine.csv --column problem=question --column answer=gold --model models/smollm2-135m",
        )
    )
    _add_grading(
        add(
            "grading",
            _grading,
            "Grade the solutions of real problems: how right is the grading?\n"
            "Each row's own solution, given as the response, should be graded correct, and the solution of another problem of\n"
            "the same type with another answer wrong. Prints both rates and every failure; exit status 1 below --least.",
            "prefix-rft grading math_train.jsonl gsm8k_train.jsonl",
            "prefix-rft grading mine.csv --column answer=gold --limit 500 --out grading.json",
        )
    )
    _add_tokens(
        add(
            "tokens",
            _tokens,
            "Make the token table of any model, without training.\n"
            "Demonstrations are read as they are, responses are sampled on request: entropy over the full vocabulary,\n"
            "log-probability and the most probable alternatives of every token, as a training run records them.",
            "prefix-rft tokens --model tiny --out tokens.parquet",
            "prefix-rft tokens --model path/to/model --problems mine.jsonl --sample 4 --temperature 0.7 --limit 50",
            "prefix-rft tokens --model run/checkpoint-100 --model run/checkpoint-200 --problems mine.jsonl --out t.parquet",
        )
    )
    _add_reproduce(
        add(
            "reproduce",
            _reproduce,
            "Run the notebooks and write the report.\n"
            "smoke takes seconds and shows that everything connects, quick gives a first answer, full is the one to quote.\n"
            "Finished runs are kept: the same command after an interruption goes on where it stopped.",
            "prefix-rft reproduce",
            "prefix-rft reproduce --profile smoke --out /tmp/smoke",
        )
    )
    listed = add(
        "claims",
        _claims,
        "Judge the claims of the paper by the finished runs of a profile.\n"
        "Prints the effect here with its interval, corrected for all claims, the paper's figure and the verdict.\n"
        "A claim without runs says which command makes them.",
        "prefix-rft claims --list",
        "prefix-rft claims --profile full --out reproduction",
    )
    listed.add_argument("--profile", default="full", help="smoke, quick or full (default %(default)s)")
    listed.add_argument("--out", default="reproduction", help="parent of the profile's folder (default %(default)s)")
    listed.add_argument("--sweep", metavar="NAME", help="only the claims that compare its arms")
    listed.add_argument("--list", action="store_true", help="only say what is claimed and how it is tested")
    report = add(
        "report",
        _report,
        "Write a report of the finished runs below a folder.",
        "prefix-rft report runs",
        "prefix-rft report reproduction/quick",
    )
    report.add_argument("folder", metavar="FOLDER", help="folder with runs; the report is written into it")
    report.add_argument("--title", help="title of the report")
    push = add(
        "push",
        _push,
        "Upload the model of a finished run to the Hub, with a card.\n"
        "The card says method, base model, departures of the config, scores with intervals and the source they came from.",
        "prefix-rft push runs/tiny/prefix_rft-1234-s0 --repo owner/name --private",
        "prefix-rft push runs/tiny/prefix_rft-1234-s0 --dry-run upload",
    )
    push.add_argument("run", metavar="RUN", help="directory of a finished run")
    push.add_argument("--repo", metavar="OWNER/NAME", help="repository; created if it is not there")
    push.add_argument("--private", action="store_true", help="only its owner sees it")
    push.add_argument("--license", metavar="ID", help="licence of the model, e.g. apache-2.0 (default: none is stated)")
    push.add_argument("--dry-run", metavar="DIR", help="write what would be uploaded into this folder, upload nothing")
    return top


def _examples(*lines: str) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def _add_train(sub: argparse.ArgumentParser) -> None:
    base = sub.add_mutually_exclusive_group()
    base.add_argument(
        "--preset",
        default="tiny",
        help="where the config starts: tiny, smol, paper-1.5b, paper-7b or llama-8b (default %(default)s)",
    )
    base.add_argument("--config", metavar="FILE", help="a YAML or JSON config to start from instead of a preset")
    sub.add_argument(
        "--method",
        metavar="NAME,NAME",
        help="one or several of base, sft, rft, prefix_rft, ..., or all (default: the config's)",
    )
    seeds = sub.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, metavar="N", help="seed of the run (default: the config's)")
    seeds.add_argument("--seeds", metavar="N,N", help="several seeds, one run each")
    sub.add_argument("--model", metavar="DIR", help="policy to start from: tiny, a directory, or a Hub name")
    sub.add_argument(
        "--problems", metavar="FILE", help="JSONL, parquet or CSV file, or Hub name, of problems, or chains"
    )
    sub.add_argument("--steps", type=int, metavar="N", help="optimizer steps of each stage of the method")
    sub.add_argument("--out", default="runs", help="folder of all runs (default %(default)s)")
    _add_set(sub)
    sub.add_argument("--workers", type=int, default=1, metavar="N", help="runs trained at a time (default %(default)s)")
    instead = sub.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run", action="store_true", help="print the config and where the run would be, train nothing"
    )
    instead.add_argument(
        "--plan",
        action="store_true",
        help="print rows, tokens, memory, time and disk of the run, load and train nothing",
    )
    sub.add_argument(
        "--flops",
        type=float,
        metavar="RATE",
        help="with --plan: FLOP/s that times are estimated with, e.g. 4e14 (default: measured here, or that of a GPU where the "
        "run does not fit)",
    )
    sub.add_argument(
        "--response-tokens",
        type=int,
        metavar="N",
        help="with --plan: mean length of a response that times are estimated with (default: the longest allowed)",
    )


def _add_sweep(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", nargs="?", metavar="FILE", help="a YAML file, or the name of a sweep of the kit")
    sub.add_argument("--profile", help="smoke, quick, full or one of the file (default: the file as it stands)")
    sub.add_argument("--seeds", metavar="N,N", help="seeds in place of the file's")
    sub.add_argument("--out", default="runs", help="folder of all runs (default %(default)s)")
    _add_set(sub)
    sub.add_argument("--workers", type=int, default=2, metavar="N", help="runs trained at a time (default %(default)s)")
    sub.add_argument(
        "--run-limit", type=float, metavar="SECONDS", help="a run that takes longer is stopped and counts as failed"
    )
    sub.add_argument("--time-limit", type=float, metavar="SECONDS", help="limit of the whole command")
    sub.add_argument("--plan", action="store_true", help="print the runs and how each stands, train nothing")
    sub.add_argument("--list", action="store_true", help="print the sweeps of the kit")


def _add_evaluate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", required=True, metavar="MODEL", help="tiny, a directory, a Hub name, or a finished run")
    sub.add_argument(
        "--preset",
        help="config for lengths, template and instruction, as in train (default tiny, with lengths that a model's context allows; a run has its own)",
    )
    sub.add_argument(
        "--problems", metavar="FILE", help="JSONL, parquet or CSV file, Hub name, or chains (default: the config's)"
    )
    sub.add_argument(
        "--split", help="test, validation, train, ood (chains), or all of a file (default test; of a new file all)"
    )
    sub.add_argument(
        "--benchmark",
        metavar="NAMES",
        help="aime24, aime25, amc23, math500, minerva, olympiadbench, gsm8k, or paper for the first six; by commas, each "
        "also NAME=FILE",
    )
    sub.add_argument("--benchmark-dir", metavar="DIR", help="folder of benchmark files (default: the Hub)")
    sub.add_argument(
        "--k", type=int, help="samples of each problem (default: the config's evaluation.k, or the benchmark's)"
    )
    sub.add_argument("--temperature", type=float, help="sampling temperature (default: the config's)")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    sub.add_argument(
        "--out",
        metavar="FILE.parquet",
        help="write a row a problem here and the summary beside it as .json; a folder with --benchmark; an interrupted "
        "evaluation goes on where it stopped",
    )
    _add_set(sub)


def _add_data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("what", choices=["inspect"], help="inspect: read, count and check")
    sub.add_argument("source", metavar="FILE", help="JSONL, parquet or CSV file, or Hub name")
    _add_columns(sub)
    sub.add_argument("--rows", type=int, metavar="N", help="only the first N rows")
    sub.add_argument(
        "--test-set", action="append", metavar="FILE", help="leave out problems that are in this one; may be repeated"
    )
    sub.add_argument("--preset", default="tiny", help="where the config starts (default %(default)s)")
    sub.add_argument("--model", metavar="DIR", help="count tokens with this model's tokenizer")
    sub.add_argument("--quick", action="store_true", help="do not read the answers and grade the demonstrations")
    sub.add_argument("--out", metavar="FILE.json", help="write what was found here")
    _add_set(sub)


def _add_grading(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "sources", nargs="+", metavar="FILE", help="JSONL, parquet or CSV file, or Hub name, with solutions"
    )
    _add_columns(sub)
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N rows of each")
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the other problems (default %(default)s)"
    )
    sub.add_argument(
        "--least", type=float, default=0.9995, metavar="RATE", help="rate that both must reach (default %(default)s)"
    )
    sub.add_argument("--out", metavar="FILE.json", help="write figures and all failures here")


def _add_columns(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        dest="columns",
        help="the file's own name for problem, answer, demonstration, id or level; may be repeated",
    )


def _add_tokens(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="MODEL",
        help="tiny, a directory, a Hub name, or a finished run; repeat it for checkpoints of one model",
    )
    sub.add_argument(
        "--problems",
        metavar="FILE",
        help="JSONL, parquet or CSV file, Hub name, or chains (default: the run's, or chains)",
    )
    sub.add_argument("--split", help="as in evaluate (default: test of chains and of a run's own file, else all)")
    sub.add_argument(
        "--limit", type=int, default=20, metavar="N", help="only the first N problems (default %(default)s)"
    )
    sub.add_argument(
        "--sample", type=int, default=0, metavar="N", help="responses sampled a problem (default %(default)s)"
    )
    sub.add_argument("--no-demonstrations", action="store_true", help="leave the demonstrations out")
    sub.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest sampled response (default: the run's, or 512)"
    )
    sub.add_argument(
        "--temperature", type=float, default=1.0, help="of sampling and of entropies (default %(default)s)"
    )
    sub.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="alternatives of each token (default %(default)s)"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (default %(default)s)")
    sub.add_argument(
        "--steps",
        metavar="N,N",
        help="steps of the models (default: the numbers that their names end in, or 0, 1, ...)",
    )
    sub.add_argument("--out", metavar="FILE.parquet", help="write the table here")
    _add_set(sub)


def _add_reproduce(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--profile", default="quick", help="smoke, quick or full (default %(default)s)")
    sub.add_argument("--out", default="reproduction", help="parent of the profile's folder (default %(default)s)")
    sub.add_argument("--workers", type=int, default=2, metavar="N", help="runs trained at a time (default %(default)s)")
    sub.add_argument("--notebooks", metavar="DIR", help="folder of the notebooks (default: of the repository)")
    sub.add_argument("--only", metavar="01,02", help="numbers of the notebooks to run (default: those of the profile)")
    sub.add_argument("--sweeps", metavar="A,B", help="sweeps to train and report (default: those of the profile)")


def _add_set(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="changes",
        help="change one field of the config, e.g. prefix.low=0.1; the value is YAML; may be repeated",
    )


def changes_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Dotted fields and values of ``field=value`` pairs.

    Raises:
        ConfigError: a pair without ``=``, or a value that is not YAML.
    """
    from prefix_rft_lab.core.config import ConfigError, parse_yaml

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {pair!r} is not understood; write --set field=value, e.g. --set prefix.low=0.1")
        try:
            found[name.strip()] = parse_yaml(value)
        except ValueError as error:
            raise ConfigError(f"--set {pair[:200]!r} has a value that is not YAML ({error}); quote it") from None
    return found


# ---------------------------------------------------------------------- commands


def _doctor(args: argparse.Namespace) -> int:
    from prefix_rft_lab.tools import doctor

    checks = doctor.check_all()
    say(doctor.format_checks(checks))
    return 0 if doctor.healthy(checks) else 1


def train_configs(args: argparse.Namespace) -> tuple[RunConfig, list[RunConfig]]:
    """(the config that the arguments start from, one config a method and seed).

    Raises:
        ConfigError: an argument that cannot be used.
    """
    from prefix_rft_lab.algorithm import methods
    from prefix_rft_lab.core.config import RunConfig, preset
    from prefix_rft_lab.runs import writers

    base = RunConfig.load(args.config) if args.config else preset(args.preset)
    changes: dict[str, Any] = {
        field: value
        for field, value in (
            ("seed", args.seed),
            ("model.path", args.model),
            ("data.problems", args.problems),
        )
        if value is not None
    }
    changed = changes_of(args.changes)
    given = args.method or changed.pop("method", base.method)
    names = list(methods.METHODS) if given == "all" else list(dict.fromkeys(given.split(",")))
    if args.steps is not None:
        for stage in (stage for name in names for stage in methods.get(name).stages):
            changes[f"{stage.optim}.steps"] = args.steps
    configs = [base.replace(**{**changes, **changed, "method": name}) for name in names]
    for config in configs:
        methods.check(config)
        writers.check(config)
    if args.seeds is None:
        return base, configs
    seeds = _whole_numbers("--seeds", args.seeds)
    # The base policy is not trained: it is the same with every seed.
    return base, [
        config.replace(seed=seed)
        for config in configs
        for seed in (seeds[:1] if not methods.get(config.method).stages else dict.fromkeys(seeds))
    ]


def _whole_numbers(option: str, text: str) -> list[int]:
    from prefix_rft_lab.core.config import ConfigError

    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not understood; write whole numbers, e.g. {option} 0,1,2") from None


def show_config(config: RunConfig, base: RunConfig, whose: str) -> str:
    """The config as YAML; fields that depart from ``base`` say what they were."""
    from prefix_rft_lab.core.config import flatten

    before, now = dict(flatten(base.to_dict())), dict(flatten(config.to_dict()))
    lines: list[str] = []
    path: list[str] = []
    for line in config.to_yaml().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        path[depth:] = [line.strip().partition(":")[0]]
        dotted = ".".join(path)
        changed = not line.lstrip().startswith("-") and dotted in now and now[dotted] != before.get(dotted)
        lines.append(f"{line}  # {whose} has {before.get(dotted)!r}" if changed else line)
    return "\n".join(lines)


def _train(args: argparse.Namespace) -> int:
    from prefix_rft_lab.core.config import ConfigError
    from prefix_rft_lab.runs.run import directory_of

    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers} cannot be used; give at least 1")
    for option, value in (("--flops", args.flops), ("--response-tokens", args.response_tokens)):
        if value is not None and not args.plan:
            raise ConfigError(f"{option} {value:g} has no meaning without --plan; add it, or leave {option} out")
    base, configs = train_configs(args)
    if args.plan:
        say(_plans(configs, args.flops, args.response_tokens))
        return 0
    whose = args.config or f"preset {args.preset}"
    say(show_config(configs[0], base, whose))
    if len(configs) > 1:
        names, seeds = (dict.fromkeys(str(getattr(c, field)) for c in configs) for field in ("method", "seed"))
        say(f"# {len(configs)} runs: method {', '.join(names)}; seed {', '.join(seeds)}")
    say(flush=True)
    if args.dry_run:
        for config in configs:
            path = directory_of(config, args.out)
            state = "is finished already" if (path / "DONE.json").is_file() else "would resume" if path.exists() else ""
            say(f"{path}/  {state or 'would be written'}")
        say("config.json env.json data.json metrics.jsonl evaluations.jsonl tokens/ evaluation/ summary.json", end="")
        say(f"{' model/' if configs[0].records.save_model else ''} DONE.json")
        return 0
    runs = _trained(args, configs)
    for run in runs:
        say(f"run {run.path}{f'  {run.diverged}' if run.diverged else ''}")
    say(results(runs))
    if len(runs) > 1:
        say(f"\n{comparison(runs)}")
    return 1 if any(run.diverged for run in runs) else 0


def _plans(configs: Sequence[RunConfig], flops: float | None, response_tokens: int | None) -> str:
    """What each method would be; its seeds are alike."""
    from prefix_rft_lab.core.config import ConfigError
    from prefix_rft_lab.experiments.pool import quiet
    from prefix_rft_lab.tools import plan_text, planning

    if flops is not None and not 0 < flops < float("inf"):
        raise ConfigError(f"--flops {flops:g} is no rate; give FLOP/s above 0, e.g. 4e14")
    quiet()
    texts = []
    for method in dict.fromkeys(config.method for config in configs):
        alike = [config for config in configs if config.method == method]
        found = planning.plan(alike[0], response_tokens=response_tokens)
        rate = planning.Throughput(flops=flops, source="given by --flops") if flops else planning.throughput_for(found)
        many = f"\n{len(alike)} seeds: as many runs like this one" if len(alike) > 1 else ""
        texts.append(plan_text.format_plan(found, rate) + many)
    return "\n\n\n".join(texts)


def _trained(args: argparse.Namespace, configs: Sequence[RunConfig]) -> list[Run]:
    if len(configs) == 1:
        from prefix_rft_lab.experiments.pool import quiet
        from prefix_rft_lab.training.trainer import train

        quiet()
        return [train(configs[0], out=args.out, progress=sys.stderr.isatty())]
    from prefix_rft_lab.experiments.pool import train_all

    return train_all(configs, out=args.out, workers=args.workers)


_SCORED = {
    f"{metric}{end}": f"{head}{end}"
    for metric, head in (("avg", "avg@k"), ("pass", "pass@k"), ("greedy", "greedy"))
    for end in ("", "_low", "_high")
}
"""Column of a comparison -> its name in a table."""


def results(runs: Sequence[Run]) -> str:
    """A line for each run and split of its final evaluation, 95% intervals over problems."""
    import pandas as pd

    from prefix_rft_lab.core.tables import show

    rows = []
    for run in runs:
        for split, part in run.summary["splits"].items():
            ends = {
                f"{n}{end}": v
                for n in ("avg", "pass", "greedy")
                for end, v in zip(("_low", "_high"), part[f"{n}_interval"], strict=True)
            }
            scored = {head: (part | ends)[name] for name, head in _SCORED.items()}
            seconds = f"{run.summary['seconds']:.0f}"
            rows.append([run.method, run.seed, split, part["problems"], *scored.values(), part["k"], seconds])
    return show(pd.DataFrame(rows, columns=["method", "seed", "split", "problems", *_SCORED.values(), "k", "seconds"]))


def comparison(runs: Sequence[Run], label: Callable[[Run], str] | None = None) -> str:
    """A line for each method (or label) and split, with 95% intervals over seeds and problems."""
    import pandas as pd

    from prefix_rft_lab.analysis import stats
    from prefix_rft_lab.core.tables import show

    groups = stats.group(runs, label)
    rows = []
    for split in dict.fromkeys(split for run in runs for split in run.summary["splits"]):
        for row in stats.compare(runs, split, label=label).to_dict("records"):
            steps = max(len(run.metrics) for run in groups[row["method"]])
            rows.append([row["title"], split, row["seeds"], steps, *(row[name] for name in _SCORED), row["over"]])
    first = "method" if label is None else "arm"
    columns = [first, "split", "seeds", "steps", *_SCORED.values(), "95% t interval over"]
    return show(pd.DataFrame(rows, columns=columns))


def _sweep(args: argparse.Namespace) -> int:
    from prefix_rft_lab.core.config import ConfigError
    from prefix_rft_lab.core.tables import format_table
    from prefix_rft_lab.experiments import sweeps
    from prefix_rft_lab.experiments.pool import PoolError

    if args.list:
        say(format_table(_kit_sweeps()))
        return 0
    if args.source is None:
        raise ConfigError(f"no sweep is given; name a YAML file, or one of {', '.join(sweeps.names())}")
    seeds = None if args.seeds is None else _whole_numbers("--seeds", args.seeds)
    plan = sweeps.plan(args.source, args.profile, seeds=seeds, **changes_of(args.changes))
    if args.plan:
        say(format_table(_planned(plan, args.out)))
        return 0
    say(f"{plan.sweep.name}: {plan.sweep.question or 'no question'} {len(plan.runs)} runs", flush=True)
    failures = []
    try:
        sweeps.run(
            plan,
            out=args.out,
            workers=args.workers,
            run_seconds_limit=args.run_limit,
            seconds_limit=args.time_limit,
        )
    except PoolError as error:
        failures = error.failures
        say(f"prefix-rft: {error}", to="stderr")
        for failure in failures:
            if failure.tail:
                say(f"\nthe end of {failure.log}:\n{failure.tail}", to="stderr")
    runs = sweeps.finished(plan, args.out)
    if runs:
        say(_sweep_table(plan, runs))
    for run in runs:
        if run.diverged:
            say(f"{plan.label()(run)}, seed {run.seed} counts as solving nothing: {run.diverged}")
    folders = dict.fromkeys(str(sweeps.directory_of(config, args.out).parent) for config in plan.configs)
    say(f"runs     {', '.join(folders)} ({len(runs)} of {len(plan.runs)} finished)")
    say(f"logs     {Path(args.out) / 'logs'}")
    for name in ("sweep.json", "summary.csv", "seconds.csv"):
        say(f"{'written' if name == 'sweep.json' else '':8} {plan.folder(args.out) / name}")
    return 1 if failures else 0


def _kit_sweeps() -> list[tuple[str, ...]]:
    from prefix_rft_lab.experiments import sweeps
    from prefix_rft_lab.experiments.profiles import PROFILES

    rows = [("sweep", *(f"runs, {profile}" for profile in PROFILES), "question")]
    for name in sweeps.names():
        sweep = sweeps.load(name)
        counts = [str(len(sweeps.plan(sweep, profile).runs)) for profile in PROFILES]
        rows.append((name, *counts, sweep.question))
    return rows


def _planned(plan: Plan, out: str) -> list[tuple[str, ...]]:
    from prefix_rft_lab.experiments import sweeps

    failed = sweeps.failures(plan, out)
    rows: list[tuple[str, ...]] = [("arm", *plan.fields, "seed", "directory", "state")]
    places = [("(expert)", *("" for _ in plan.fields)) for _ in plan.experts]
    places += [(planned.arm, *(str(value) for value in planned.values.values())) for planned in plan.runs]
    for place, config in zip(places, [*plan.experts, *plan.configs], strict=True):
        state = sweeps.state(config, out, failed)
        rows.append((*place, str(config.seed), str(sweeps.directory_of(config, out)), str(state)))
    return rows


def _sweep_table(plan: Plan, runs: Sequence[Run]) -> str:
    """The arms compared; of a sweep without a final evaluation their last validations."""
    from prefix_rft_lab.core.config import ConfigError
    from prefix_rft_lab.core.tables import format_table

    if any(run.summary["splits"] for run in runs):
        try:
            return comparison(runs, plan.label())
        except ConfigError as error:
            return f"not compared: {error}"
    rows: list[tuple[str, ...]] = [("arm", "seed", "validation avg@k", "pass@k", "greedy")]
    for run in runs:
        last = run.evaluations.iloc[-1]
        rows.append((plan.label()(run), str(run.seed), *(f"{last[name]:.3f}" for name in ("avg", "pass", "greedy"))))
    return format_table(rows)


def _evaluate(args: argparse.Namespace) -> int:
    from prefix_rft_lab.core.config import ConfigError, preset
    from prefix_rft_lab.experiments.evaluation_run import config_for, default_split, evaluate_policy, format_summary

    if args.benchmark:
        return _evaluate_benchmarks(args)
    if args.benchmark_dir:
        raise ConfigError("--benchmark-dir needs --benchmark, e.g. --benchmark paper")
    changes = {
        field: value
        for field, value in (
            ("data.problems", args.problems),
            ("evaluation.k", args.k),
            ("evaluation.temperature", args.temperature),
        )
        if value is not None
    }
    base = preset(args.preset) if args.preset else None
    config = config_for(args.model, base=base, changes={**changes, **changes_of(args.changes)})
    from prefix_rft_lab.experiments.pool import Status, quiet

    quiet()
    split = args.split or default_split(args.model, config)
    with Status(None) as status:
        found = evaluate_policy(config, split=split, limit=args.limit, out=args.out, progress=status.update)
    say(f"{args.model} on {split} of {config.data.problems}, temperature {config.evaluation.temperature:g}")
    for reason, count in found.dropped.items():
        say(f"left out: {count} x {reason}")
    if found.unread:
        say(f"{len(found.unread)} gold answers only an equal text can match ({', '.join(found.unread)})")
    say(format_summary(found.summary))
    for path in found.paths:
        say(f"written {path}")
    return 0


def columns_of(pairs: Sequence[str]) -> dict[str, str]:
    """Field and column names of ``field=name`` pairs.

    Raises:
        ConfigError: a pair without ``=``.
    """
    from prefix_rft_lab.core.config import ConfigError

    found = {}
    for pair in pairs:
        field, equals, name = pair.partition("=")
        if not equals or not field or not name:
            raise ConfigError(
                f"--column {pair!r} is not understood; write --column field=name, e.g. --column answer=gold"
            )
        found[field] = name
    return found


def _evaluate_benchmarks(args: argparse.Namespace) -> int:
    from prefix_rft_lab.core.config import ConfigError, preset
    from prefix_rft_lab.data.benchmarks import locate
    from prefix_rft_lab.experiments.evaluation_run import Evaluation, config_for, evaluate_benchmarks, format_benchmarks
    from prefix_rft_lab.experiments.pool import Status, quiet

    if args.problems or args.split:
        raise ConfigError("--benchmark brings its own problems; leave out --problems and --split")
    if args.k is not None and args.k < 1:
        raise ConfigError(f"--k {args.k} samples nothing; give at least 1")
    changes = {} if args.temperature is None else {"evaluation.temperature": args.temperature}
    base = preset(args.preset) if args.preset else None
    config = config_for(args.model, base=base, changes={**changes, **changes_of(args.changes)})
    sources = locate(args.benchmark, args.benchmark_dir)

    def report(found: Evaluation) -> None:
        for reason, count in found.dropped.items():
            say(f"{found.split}: left out {count} x {reason}")
        if found.unread:
            say(
                f"{found.split}: {len(found.unread)} gold answers only an equal text can match ({', '.join(found.unread)})"
            )
        for path in found.paths:
            say(f"written {path}", flush=True)

    quiet()
    with Status(None) as status:
        found = evaluate_benchmarks(
            config, sources, k=args.k, limit=args.limit, out=args.out, report=report, progress=status.update
        )
    say(f"{args.model}, temperature {config.evaluation.temperature:g}")
    say(format_benchmarks(found))
    return 0


def _data(args: argparse.Namespace) -> int:
    from prefix_rft_lab.core.config import preset
    from prefix_rft_lab.core.files import file_to_write, write_json
    from prefix_rft_lab.experiments.pool import Status, quiet
    from prefix_rft_lab.tools.inspection import format_inspection, inspect

    out = file_to_write(args.out, field="--out") if args.out else None
    changes = {"data.problems": args.source, "data.columns": columns_of(args.columns), "data.max_rows": args.rows}
    if args.test_set:
        changes["data.test_sets"] = args.test_set
    config = preset(args.preset).replace(**{**changes, **changes_of(args.changes)})
    tokenizer = None
    if args.model is not None:
        from prefix_rft_lab.models.policy import load_tokenizer

        quiet()
        tokenizer = load_tokenizer(config.replace(**{"model.path": args.model}))
    with Status(None) as status:
        found = inspect(config, tokenizer=tokenizer, verify=not args.quick, progress=status.update)
    say(format_inspection(found))
    if out:
        write_json(out, found.to_dict())
        say(f"\nwritten {out}")
    return 0


def _grading(args: argparse.Namespace) -> int:
    from prefix_rft_lab.core.config import ConfigError
    from prefix_rft_lab.core.files import file_to_write, write_json
    from prefix_rft_lab.experiments.pool import Status
    from prefix_rft_lab.tools.grading import format_gradings, grade

    out = file_to_write(args.out, field="--out") if args.out else None
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit} leaves no row; give at least 1")
    if not 0 <= args.least <= 1:
        raise ConfigError(f"--least {args.least:g} is no rate; give a number from 0 to 1")
    found = []
    columns = columns_of(args.columns)
    for source in args.sources:
        with Status(None) as status:
            found.append(grade(source, columns, seed=args.seed, limit=args.limit, progress=status.update))
    say(format_gradings(found))
    if out:
        write_json(out, [grading.to_dict() for grading in found])
        say(f"\nwritten {out}")
    low = [grading.source for grading in found if not grading.passes(args.least)]
    if low:
        say(f"\nbelow {args.least:.2%}: {', '.join(low)}")
    return 1 if low else 0


def _tokens(args: argparse.Namespace) -> int:
    from prefix_rft_lab.experiments.pool import quiet
    from prefix_rft_lab.tools.reading import format_reading, read_tokens

    quiet()
    reading = read_tokens(
        args.model,
        problems=args.problems,
        split=args.split,
        limit=args.limit,
        steps=None if args.steps is None else _whole_numbers("--steps", args.steps),
        demonstrations=not args.no_demonstrations,
        samples=args.sample,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
        max_tokens=args.max_tokens,
        changes=changes_of(args.changes),
        out=args.out,
    )
    say(format_reading(reading))
    if args.out:
        say(f"written {args.out}")
    return 0


def _reproduce(args: argparse.Namespace) -> int:
    from prefix_rft_lab.reproduce.notebooks import reproduce

    reproduce(
        args.profile,
        args.out,
        args.workers,
        notebooks=args.notebooks,
        only=args.only and args.only.split(","),
        sweeps=args.sweeps and args.sweeps.split(","),
    )
    return 0


def _claims(args: argparse.Namespace) -> int:
    from prefix_rft_lab.analysis import claims

    chosen = claims.of_sweep(args.sweep) if args.sweep else claims.load()
    if args.list:
        for claim in chosen:
            against = f" than {claim.than}" if claim.than else ""
            asked = f"{claim.range[0]:g} to {claim.range[1]:g}" if claim.range else f"{claim.smallest:g}"
            say(f"{claim.id}\n  {claim.claim}\n  {claim.source}: {claim.paper}")
            say(f"  {claim.measure} of {claim.of} {claim.test}{against}, {asked}. {claim.reading}".rstrip())
        return 0
    results = claims.results(Path(args.out).expanduser() / args.profile / "runs", args.profile)
    for verdict in claims.judge(chosen, results):
        say(f"{verdict.claim.id}: {verdict.sentence}\n  There: {verdict.claim.paper}. Alone: {verdict.alone}.")
    return 0


def _report(args: argparse.Namespace) -> int:
    from prefix_rft_lab import report
    from prefix_rft_lab.runs.run import load_all

    args.folder = str(Path(args.folder).expanduser())
    runs = load_all(args.folder)
    path = report.write_report(Path(args.folder), runs=runs, title=args.title or f"Runs in {Path(args.folder).name}")
    say(f"report {path.absolute()}\n       {path.absolute().as_uri()}")
    return 0


def _push(args: argparse.Namespace) -> int:
    from prefix_rft_lab.core.config import ConfigError
    from prefix_rft_lab.experiments.pool import quiet
    from prefix_rft_lab.runs.run import load
    from prefix_rft_lab.tools import publishing

    quiet()
    run = load(args.run)
    if args.dry_run:
        say(f"written {publishing.write_folder(run, args.dry_run, repo=args.repo, license=args.license)}")
        return 0
    if args.repo is None:
        raise ConfigError("--repo is missing; give owner/name, or --dry-run DIR to look at what would be uploaded")
    say(f"pushed {publishing.push(run, args.repo, private=args.private, license=args.license)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
