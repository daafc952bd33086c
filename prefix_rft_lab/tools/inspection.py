"""What a source of problems holds, what is left out of it and why, before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase as fnmatch
from typing import Any

import numpy as np

from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import Problem
from prefix_rft_lab.data import sources
from prefix_rft_lab.data.answers import golds
from prefix_rft_lab.data.rewards import Verifier

QUANTILES = {"10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found; counts are of rows, problems or demonstrations as each docstring says."""

    source: str
    used: dict[str, dict[str, int]]
    """Role -> column -> rows in which it was taken for that."""
    columns: tuple[str, ...]
    rows: int
    """Rows read."""
    problems: int
    """Problems that can be used."""
    demonstrated: int
    """Of them, problems with a demonstration."""
    offered: dict[int, int]
    """Demonstrations in a row -> rows, before anything is left out."""
    left_out: dict[str, int]
    """Rows, demonstrations or problems left out, by reason."""
    examples: dict[str, list[str]]
    """Ids of the first few of each reason."""
    completed: list[str]
    """Ids of problems whose answer was completed from a solution that lists several."""
    unread: list[str] | None
    """Ids of problems whose answer only an equal text can match; None if that was not tried."""
    wrong: list[str] | None
    """Ids of problems with a demonstration that is graded wrong; None if that was not tried."""
    levels: dict[str, int]
    """Level -> problems."""
    lengths: dict[str, dict[str, float]]
    """Text -> quantile -> length, in characters or, with a tokenizer, tokens."""
    first: Problem

    @property
    def unused(self) -> list[str]:
        """Columns that were taken for nothing."""
        taken = [part for by in self.used.values() for name in by for part in name.split("+")]
        return [name for name in self.columns if not any(fnmatch(name, t) or t.startswith(f"{name}.") for t in taken)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(
    config: RunConfig,
    *,
    problems: Any = None,
    tokenizer: Any = None,
    verify: bool = True,
    progress: Callable[[int, str], None] | None = None,
) -> Inspection:
    """Read ``data.problems`` as a training would and say what came of it.

    Args:
        config: where the problems are and what is left out (``data``, ``rollout`` lengths with a tokenizer).
        problems: problems in place of ``data.problems``, as :func:`prefix_rft_lab.train` takes them.
        tokenizer: counts lengths in tokens, and leaves out what is too long as a training would.
        verify: whether each answer is read and each demonstration graded (about a millisecond each).
        progress: called with (problems done, a line that says so) now and then.

    Raises:
        ConfigError: a source that cannot be read or has no usable row.
    """
    from prefix_rft_lab.models.tokens import encode_problems

    config = sources.with_problems(config, problems)
    if config.data.problems == "chains":
        raise ConfigError("data.problems = 'chains' is the embedded world; give a file or a data set on the Hub")
    offered: Counter[int] = Counter()
    opened = sources.open_problems(config.data)
    problems, dropped = sources.read_problems(
        config.data, source=opened, observe=lambda record: offered.update([len(record.demonstrations)])
    )
    left_out = Counter(dropped)
    lengths = {
        "problem, characters": _quantiles([len(p.prompt) for p in problems]),
        "demonstration, characters": _quantiles([len(text) for p in problems for text in p.demonstrations]),
    }
    if tokenizer is not None:
        encoded, reasons = encode_problems(tokenizer, problems, config)
        left_out.update(reasons)
        lengths |= {
            "prompt, tokens": _quantiles([len(e.prompt_ids) for e in encoded]),
            "demonstration, tokens": _quantiles([len(d.ids) for e in encoded for d in e.demonstrations]),
        }
        problems = [e.problem if e.demonstrations else sources.without_demonstrations(e.problem) for e in encoded]
        if not problems:
            raise ConfigError(f"data.problems = {config.data.problems!r} leaves no problem ({dict(left_out)})")
    unread, wrong = _graded(problems, progress) if verify else (None, None)
    return Inspection(
        source=config.data.problems,
        used={role: dict(columns) for role, columns in opened.roles.used.items()},
        columns=opened.columns,
        rows=offered.total(),
        problems=len(problems),
        demonstrated=sum(bool(p.demonstrations) for p in problems),
        offered=dict(sorted(offered.items())),
        left_out=dict(left_out),
        examples=dropped.examples,
        completed=[p.id for p in problems if len(golds(p.answer)) > 1],
        unread=unread,
        wrong=wrong,
        levels=dict(sorted(Counter(p.level for p in problems if p.level).items())),
        lengths={name: found for name, found in lengths.items() if found},
        first=problems[0],
    )


def _graded(problems: Sequence[Problem], progress: Callable[[int, str], None] | None) -> tuple[list[str], list[str]]:
    unread, wrong = [], []
    with Verifier() as verifier:
        for i, problem in enumerate(problems):
            if progress is not None and i % 100 == 0:
                progress(i, f"{i}/{len(problems)} answers read")
            if not verifier.readable(problem.answer):
                unread.append(problem.id)
            texts = problem.demonstrations
            if not all(verifier.score_all(texts, [problem.answer] * len(texts))):
                wrong.append(problem.id)
    return unread, wrong


def _quantiles(lengths: Sequence[int]) -> dict[str, float]:
    return {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()} if lengths else {}


def format_inspection(found: Inspection, *, shown: int = 5, characters: int = 300) -> str:
    """The inspection as text, with the beginning of the first problem."""
    from prefix_rft_lab.core.tables import format_table

    def ids(names: Sequence[str]) -> str:
        more = ", ..." if len(names) > shown else ""
        return f" ({', '.join(names[:shown])}{more})" if names else ""

    lines = [
        f"{found.source}: columns {', '.join(found.columns)}",
        *(f"{role} from " + ", ".join(f"{c} ({n})" for c, n in by.items()) for role, by in found.used.items()),
        "columns not used: " + (", ".join(found.unused) or "none"),
        f"{found.rows} rows, {found.problems} problems that can be used, {found.demonstrated} with a demonstration",
        "demonstrations in a row: " + ", ".join(f"{n} in {rows} rows" for n, rows in found.offered.items()),
    ]
    for reason, count in found.left_out.items():
        names = found.examples.get(reason, [])
        lines.append(
            f"left out: {count} x {reason}" + (f" ({', '.join(names)}{', ...' * (count > len(names))})" * bool(names))
        )
    lines.append(f"answers completed from a solution that lists several: {len(found.completed)}{ids(found.completed)}")
    if found.unread is not None and found.wrong is not None:
        lines.append(f"answers that only an equal text can match: {len(found.unread)}{ids(found.unread)}")
        lines.append(f"problems with a demonstration that is graded wrong: {len(found.wrong)}{ids(found.wrong)}")
    if found.levels:
        lines.append("levels: " + ", ".join(f"{level} {count}" for level, count in found.levels.items()))
    head = ("length", *QUANTILES)
    lines += [
        "",
        format_table([head, *((name, *(f"{v:.0f}" for v in q.values())) for name, q in found.lengths.items())]),
    ]
    first = found.first
    lines += ["", f"first problem {first.id}, answer {first.answer}", _cut(first.prompt, characters)]
    if first.demonstration is not None:
        lines += ["its demonstration", _cut(first.demonstration, characters)]
    return "\n".join(lines)


def _cut(text: str, characters: int) -> str:
    return "\n".join(f"  {line}" for line in (text[:characters] + "..." * (len(text) > characters)).splitlines())
