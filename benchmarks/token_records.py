"""What recording tokens costs a training run: both sides of each ratio are measured in one run of the trainer.

Trains some steps of a method and records at every one of them. Time: the seconds that a record takes (forward passes,
table, file) over the seconds of the step without it, divided by ``records.tokens_every``, which is the average over a
run. Size: bytes of the files over the tokens in them, and per step of the run.

    python benchmarks/token_records.py [--model tiny] [--problems chains] [--method prefix_rft] [--steps 12]
        [--preset tiny] [--set records.tokens_every=10]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml

from prefix_rft_lab import preset
from prefix_rft_lab.runs.run import RunWriter
from prefix_rft_lab.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--model")
    parser.add_argument("--problems")
    parser.add_argument("--method", default="prefix_rft")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    args = parser.parse_args()
    changes = {field: yaml.safe_load(value) for field, _, value in (item.partition("=") for item in args.set)}
    given = {"model.path": args.model, "data.problems": args.problems}
    config = preset(args.preset, method=args.method, **{k: v for k, v in given.items() if v is not None}, **changes)
    every = config.records.tokens_every
    recording = config.replace(**{"records.tokens_every": 1})
    torch.set_num_threads(config.threads)
    steps, records, tokens, size = [], [], 0, 0
    with tempfile.TemporaryDirectory() as out, Trainer(recording, RunWriter(recording, out)) as trainer:
        stage = trainer.method.stages[-1]
        optimizers = trainer.optimizers(stage)
        for step in range(args.steps + 1):
            started = time.perf_counter()
            line, tables = trainer.step(stage, optimizers, step, step)
            own = time.perf_counter() - started - line["seconds_record"]
            started = time.perf_counter()
            for name, table in tables.items():
                trainer.writer.table(name, table)
            record = line["seconds_record"] + time.perf_counter() - started
            if step:  # the first step warms up
                steps.append(own)
                records.append(record)
        for path in Path(out).rglob("step-*.parquet"):
            size += path.stat().st_size
        tokens = sum(len(table) for table in _tables(out))
    ratio = statistics.mean(records) / statistics.mean(steps)
    print(f"{args.method}, preset {args.preset}, {config.threads} thread(s), {args.steps} steps, each recorded")
    print(f"a step          mean {statistics.mean(steps):8.3f} s (min {min(steps):.3f}, max {max(steps):.3f})")
    print(f"its record      mean {statistics.mean(records):8.3f} s (min {min(records):.3f}, max {max(records):.3f})")
    print(
        f"share of time   {ratio / every:8.2%} on average at records.tokens_every = {every}; {ratio:.1%} if every step"
    )
    count = args.steps + 1
    print(
        f"size            {size / tokens:8.1f} bytes per token, {tokens / count:.0f} tokens and {size / count / 1024:.0f} KiB per record"
    )
    print(f"bound           {2 * config.records.most_tokens} tokens a record (2 x records.most_tokens)")


def _tables(out: str) -> list:
    import pandas as pd

    return [pd.read_parquet(path, columns=["token_id"]) for path in Path(out).rglob("step-*.parquet")]


if __name__ == "__main__":
    main()
