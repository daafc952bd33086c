"""How good demonstrations are, measured before anything is trained on them.

Whoever wrote them (a rule of the embedded world, a file, a policy), they are read here exactly as a run with that config
would train on them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from prefix_rft_lab.core.config import RunConfig
from prefix_rft_lab.data import chains
from prefix_rft_lab.runs.run import RunWriter, torch_state

_EQUATION = re.compile(r"(\d+)([-+*#])(\d+)(?:[=:].*)?=(\d+)$")
_RESULT = re.compile(r"=(\d+)$")


def read(config: RunConfig, out: str | Path, *, limit: int = 256) -> pd.DataFrame:
    """The demonstrations of a config's training problems; policies that write demonstrations are asked for them.

    Args:
        config: its data fields, seed and policy decide what is written.
        out: folder of all runs, where ``data.expert = run:NAME`` finds its run.
        limit: only the first so many problems.

    Returns:
        one row per demonstration: problem (id), level, prompt, text, tokens (with the end token), right (1.0 if it
        solves the problem, else 0.0), steps (that can be checked) and right_steps; both 0 outside of the embedded world.

    Raises:
        ConfigError: data or an expert that cannot be used.
    """
    from prefix_rft_lab.training.trainer import Trainer

    with torch_state(config.threads), Trainer(config, RunWriter(config, out)) as trainer:
        found = [(p.problem, d.ids) for p in trainer.train_problems[:limit] for d in p.demonstrations]
        right = list(map(float, trainer.solved([ids for _, ids in found], [problem for problem, _ in found])))
        texts = [trainer.text(ids) for _, ids in found]
    rows = []
    for (problem, ids), text, score in zip(found, texts, right, strict=True):
        steps = checked_steps(problem.prompt, text) if config.data.problems == "chains" else []
        rows.append(
            {
                "problem": problem.id,
                "level": problem.level,
                "prompt": problem.prompt,
                "text": text,
                "tokens": len(ids),
                "right": score,
                "steps": len(steps),
                "right_steps": sum(steps),
            }
        )
    columns = ["problem", "level", "prompt", "text", "tokens", "right", "steps", "right_steps"]
    return pd.DataFrame(rows, columns=columns)


def checked_steps(prompt: str, text: str) -> list[bool]:
    """Whether each step of a solution in the embedded world is right, given what the steps before it came to.

    A step is a line that gives the result of an operation: ``7+3=10``, ``7#3:7+3=10:10*3=11`` (judged by its end), or
    ``=10`` for the next operation of the problem. Other lines, the box among them, are no steps.
    """
    start, operations = re.match(r"\d+", prompt), re.findall(r"([-+*#])(\d+)", prompt)
    value, place = int(start[0]) if start else 0, 0
    found = []
    for line in text.splitlines():
        if equation := _EQUATION.search(line):
            a, op, b, result = int(equation[1]), equation[2], int(equation[3]), int(equation[4])
        elif (bare := _RESULT.match(line)) and place < len(operations):
            a, op, b, result = value, operations[place][0], int(operations[place][1]), int(bare[1])
            place += 1
        else:
            continue
        value = result
        found.append(chains.apply(op, a, b) == result)
    return found
