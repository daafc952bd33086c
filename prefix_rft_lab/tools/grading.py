"""How right the grading is on real problems: solutions graded against their own answers, and against others'.

Each row's reference solution, given as a response, should be graded correct; the solution of another problem of the
same type with another answer should be graded wrong. Both rates are reported with every failure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.data import answers
from prefix_rft_lab.data.readers import Record, default_id, open_source
from prefix_rft_lab.data.rewards import Verifier

DRAWS = 50
"""Rows drawn at most to find another problem of the same type with another answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A response that was graded as it should not have been, or an answer that only an equal text can match."""

    check: Literal["own solution", "other solution", "gold answer"]
    category: str
    id: str
    gold: str
    answer: str | None
    """What was taken for the response's answer."""
    other: str | None = None
    """For another problem's solution, the id of that problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grading:
    """What came of grading one source."""

    source: str
    rows: int
    graded: int
    """Rows with an answer and a solution."""
    own_right: int
    """Graded rows whose own solution is graded correct."""
    own_right_as_is: int
    """The same with every answer as it is in the source, not completed."""
    others: int
    """Pairs of a graded row and the solution of another problem of its type with another answer."""
    others_wrong: int
    """Such pairs that are graded wrong."""
    left_out: dict[str, int]
    """Rows that could not be graded, by reason."""
    completed: tuple[str, ...]
    """Ids of rows whose answer was completed from the solution, which lists several."""
    failures: tuple[Failure, ...]

    @property
    def own_rate(self) -> float:
        return self.own_right / self.graded if self.graded else float("nan")

    @property
    def other_rate(self) -> float:
        return self.others_wrong / self.others if self.others else float("nan")

    def passes(self, least: float) -> bool:
        """Whether both rates are at least ``least``; a source without pairs is held to the first only."""
        return self.own_rate >= least and (self.others == 0 or self.other_rate >= least)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "own_rate": self.own_rate, "other_rate": self.other_rate}


def grade(
    source: str,
    columns: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> Grading:
    """Grade the solutions of a source.

    Args:
        source: file or Hub name, see :mod:`prefix_rft_lab.data.readers`.
        columns: maps field names to the source's own.
        seed: keys the draw of the other problems.
        limit: only the first so many rows.
        progress: called with (rows done, a line that says so) now and then.

    Raises:
        ConfigError: a source that cannot be read, or without a row that has an answer and a solution.
    """
    rows: list[tuple[str, Record]] = []
    left_out: Counter[str] = Counter()
    count = 0
    for number, record in enumerate(islice(open_source(source, columns, field="FILE").records, limit)):
        count += 1
        if record.unusable:
            left_out[record.unusable] += 1
        elif record.answer is None:
            left_out["row without answer"] += 1
        elif record.solution is None:
            left_out["row without solution"] += 1
        else:
            rows.append((record.id or default_id(source, number), record))
    if not rows:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in left_out.items())
        raise ConfigError(
            f"FILE = {source!r} has no row to grade ({reasons or 'no rows'}); give a file with answers and solutions"
        )
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, (_, record) in enumerate(rows):
        kinds[record.kind].append(i)
    golds = [answers.complete_gold(record.answer or "", record.solution) for _, record in rows]
    bare = [answers.bare(record.answer or "") for _, record in rows]
    failures: list[Failure] = []
    own_right = as_is = others = others_wrong = 0
    with Verifier() as verifier:
        for i, (name, record) in enumerate(rows):
            if progress is not None and i % 100 == 0:
                progress(i, f"{source}: {i}/{len(rows)} rows")
            solution, gold = record.solution or "", golds[i]
            if not verifier.readable(gold):
                failures.append(
                    Failure(check="gold answer", category="not read as mathematics", id=name, gold=gold, answer=None)
                )
            slow = verifier.timeouts
            as_is += bool(verifier.score(solution, record.answer or ""))
            if verifier.score(solution, gold):
                own_right += 1
            else:
                category = "took too long" if verifier.timeouts > slow else _why_wrong(solution)
                failures.append(
                    Failure(
                        check="own solution",
                        category=category,
                        id=name,
                        gold=gold,
                        answer=answers.extract_answer(solution),
                    )
                )
            j = _another(i, kinds[record.kind], bare, seed)
            if j is None:
                left_out["no other problem of its type with another answer"] += 1
                continue
            others += 1
            response = rows[j][1].solution or ""
            if not verifier.score(response, gold):
                others_wrong += 1
                continue
            answer = answers.extract_answer(response)
            failures.append(
                Failure(
                    check="other solution",
                    category=_why_right(answer or "", gold),
                    id=name,
                    gold=gold,
                    answer=answer,
                    other=rows[j][0],
                )
            )
    return Grading(
        source=source,
        rows=count,
        graded=len(rows),
        own_right=own_right,
        own_right_as_is=as_is,
        others=others,
        others_wrong=others_wrong,
        left_out=dict(left_out),
        completed=tuple(name for (name, record), gold in zip(rows, golds, strict=True) if gold != record.answer),
        failures=tuple(failures),
    )


def _another(i: int, kind: Sequence[int], bare: Sequence[str], seed: int) -> int | None:
    """A keyed draw of another row of the same kind; answers that differ in writing only are not other answers."""
    draws = rng.generator(seed, "grading/other", i).integers(len(kind), size=DRAWS)
    return next((kind[d] for d in draws if bare[kind[d]] != bare[i]), None)


def _why_wrong(solution: str) -> str:
    found = answers.final_answers(solution)
    if not found:
        return "no boxed answer in the solution"
    return "several boxes, one gold answer" if len(found) > 1 else "another value or form than the gold answer"


def _why_right(answer: str, gold: str) -> str:
    if (answers.base(answer) is None) != (answers.base(gold) is None):
        return "a base that one of the two leaves out"
    return "equal to math-verify"


def format_gradings(gradings: Sequence[Grading], *, shown: int = 20) -> str:
    """A line a source, then what was completed, left out, and failed: at most ``shown`` failures of a category."""
    from prefix_rft_lab.core.tables import format_table

    def rate(right: int, of: int) -> str:
        return f"{right}/{of} {right / of:.3%}" if of else "none"

    head = (
        "source",
        "rows",
        "graded",
        "own solution right",
        "answers as they are",
        "other solution wrong",
        "unread gold answers",
    )
    table = [head]
    lines: list[str] = []
    for grading in gradings:
        groups: dict[tuple[str, str], list[Failure]] = defaultdict(list)
        for failure in grading.failures:
            groups[failure.check, failure.category].append(failure)
        unread = sum(len(group) for (check, _), group in groups.items() if check == "gold answer")
        table.append(
            (
                grading.source,
                str(grading.rows),
                str(grading.graded),
                rate(grading.own_right, grading.graded),
                rate(grading.own_right_as_is, grading.graded),
                rate(grading.others_wrong, grading.others),
                str(unread),
            )
        )
        lines += [f"\n{grading.source}"]
        lines += [f"  not graded: {n} x {reason}" for reason, n in grading.left_out.items()]
        if grading.completed:
            lines.append(
                f"  answer completed from a solution that lists several: {len(grading.completed)} "
                f"({', '.join(grading.completed[:shown])})"
            )
        for (check, category), group in groups.items():
            lines.append(f"  {check}, {category}: {len(group)}")
            for failure in group[:shown]:
                answer = "" if failure.answer is None else f", answer {_short(failure.answer)}"
                other = "" if failure.other is None else f" of {failure.other}"
                lines.append(f"    {failure.id}: gold {_short(failure.gold)}{answer}{other}")
            if len(group) > shown:
                lines.append(f"    and {len(group) - shown} more")
    return format_table(table) + "\n" + "\n".join(lines)


def _short(text: str, characters: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 1] + "…"
