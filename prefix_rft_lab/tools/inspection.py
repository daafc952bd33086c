"""What a source of problems holds, what is left out of it and why, and how right its solutions are graded: one reading.

Each row's own solution, given as a response, should be graded correct; the solution of another problem of the same type with
another answer should be graded wrong. ``prefix-rft data inspect`` and ``prefix-rft grading`` show one :class:`Inspection`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import EncodedProblem, Problem
from prefix_rft_lab.data import answers, sources
from prefix_rft_lab.data.readers import Dropped, Record
from prefix_rft_lab.data.rewards import Verifier
from prefix_rft_lab.data.task import with_task

QUANTILES = {"10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "longest": 1.0}
DRAWS = 50
"""Rows drawn at most to find another problem of the same type with another answer."""
RICH = 40
"""Characters per row, in the mean, from which on a column that was not used may be a part of the problem or a demonstration."""
EXAMPLES = 3
UNSTATED = "solution that states no answer (closed with the gold to train on)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A response that was graded as it should not have been, or an answer that only an equal text can match."""

    check: Literal["own solution", "other solution", "gold answer"]
    category: str
    id: str
    gold: str
    answer: str | None = None
    """What was taken for the response's answer."""
    other: str | None = None
    """For another problem's solution, the id of that problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """What came of grading solutions. A pair that ran out of time is neither right nor wrong."""

    graded: int = 0
    """Rows with an answer and a solution that states one."""
    own_right: int = 0
    """Graded rows whose own solution is graded correct."""
    own_right_as_is: int = 0
    """The same with every answer as it is in the source, not completed."""
    others: int = 0
    """Pairs of a graded row and the solution of another problem of its type with another answer."""
    others_wrong: int = 0
    """Such pairs that are graded wrong."""
    own_late: int = 0
    """Graded rows whose own solution ran out of time."""
    others_late: int = 0
    """Such pairs that ran out of time."""
    not_graded: dict[str, int] = field(default_factory=dict)
    """Rows that could not be graded, by reason."""
    completed: tuple[str, ...] = ()
    """Ids of rows whose answer was completed from the solution, which lists several."""
    failures: tuple[Failure, ...] = ()

    @property
    def own_rate(self) -> float:
        """Right ones of the rows that were graded in time."""
        return _rate(self.own_right, self.graded - self.own_late)

    @property
    def other_rate(self) -> float:
        return _rate(self.others_wrong, self.others - self.others_late)

    @property
    def unread(self) -> list[str]:
        """Ids of rows whose answer only an equal text can match."""
        return [failure.id for failure in self.failures if failure.check == "gold answer"]

    @property
    def wrong(self) -> list[str]:
        """Ids of rows whose own solution is graded wrong."""
        return [failure.id for failure in self.failures if failure.check == "own solution"]

    def passes(self, least: float) -> bool:
        """Whether both rates are at least ``least``; a source without pairs is held to the first only."""
        return self.own_rate >= least and (self.others == self.others_late or self.other_rate >= least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection(Graded):
    """What was found; counts are of rows, problems or demonstrations as each docstring says."""

    source: str
    used: dict[str, dict[str, int]]
    """Role -> column -> rows in which it was taken for that; ``framed`` are problems that a chat template had framed."""
    columns: tuple[str, ...]
    unused: dict[str, float]
    """Column that was taken for nothing -> characters of text in it per row, in the mean."""
    rows: int
    """Rows read."""
    problems: int
    """Problems that can be used."""
    demonstrated: int
    """Of them, problems with a demonstration."""
    closed: list[str]
    """Ids of problems with a demonstration that was closed with the gold answer, since it has no box of its own."""
    offered: dict[int, int]
    """Demonstrations in a row -> rows, before anything is left out."""
    taken: dict[str, int]
    """Split -> problems that a training takes, and those that it leaves; empty where it refuses."""
    refusal: str
    """Why a training refuses what is left; empty if it does not."""
    left_out: dict[str, int]
    """Rows, demonstrations or problems left out, by reason."""
    examples: dict[str, list[str]]
    """Ids of the first few of each reason."""
    levels: dict[str, int]
    """Level -> problems."""
    lengths: dict[str, dict[str, float]]
    """Text -> quantile -> length, in characters or, with a tokenizer, tokens."""
    unknown: float | None
    """Share of tokens that the vocabulary does not know; None without a tokenizer."""
    shown: tuple[tuple[str, str], ...]
    """(id and answer, the whole text as the policy reads it: with a tokenizer decoded ids) of the first problems."""

    def to_dict(self) -> dict[str, Any]:
        rates = {name: getattr(self, name) for name in ("own_rate", "other_rate", "unread", "wrong")}
        return asdict(self) | rates


def inspect(
    config: RunConfig,
    *,
    problems: Any = None,
    tokenizer: Any = None,
    verify: bool = True,
    seed: int = 0,
    progress: Callable[[int, str], None] | None = None,
) -> Inspection:
    """Read ``data.problems`` as a training would and say what came of it.

    Args:
        config: where the problems are and what is left out (``data``, ``rollout`` lengths with a tokenizer).
        problems: problems in place of ``data.problems``, as :func:`prefix_rft_lab.train` takes them.
        tokenizer: counts lengths in tokens, and leaves out what is too long as a training would.
        verify: whether answers are read and solutions graded (a few milliseconds per row).
        seed: keys the draw of the other problems whose solutions are graded.
        progress: called with (rows graded, a line that says so) now and then.

    Raises:
        ConfigError: a source that cannot be read or has no usable row.
    """
    config = with_task(config, problems=problems)
    if config.data.problems == "chains":
        raise ConfigError("data.problems = 'chains' is the embedded world; give a file or a data set on the Hub")
    records: dict[str, Record] = {}
    opened = sources.open_problems(config.data)
    found, dropped = sources.read_problems(config.data, source=opened, observe=records.__setitem__)
    lengths = {
        "problem, characters": _quantiles([len(p.prompt) for p in found]),
        "demonstration, characters": _quantiles([len(text) for p in found for text in p.demonstrations]),
    }
    left_out, unknown, encoded = Counter(dropped), None, None
    if tokenizer is not None:
        encoded, reasons, unknown = _encoded(tokenizer, found, config)
        left_out.update(reasons)
        lengths |= {
            "prompt, tokens": _quantiles([len(e.prompt_ids) for e in encoded]),
            "demonstration, tokens": _quantiles([len(d.ids) for e in encoded for d in e.demonstrations]),
        }
    taken, refusal = _taken(config, found, dropped, encoded)
    if encoded is not None:
        found = [e.problem if e.demonstrations else sources.without_demonstrations(e.problem) for e in encoded]
    if not found:
        raise ConfigError(f"data.problems = {config.data.problems!r} leaves no problem ({dict(left_out)})")
    own = {p.id: {candidate.text for candidate in records[p.id].demonstrations} for p in found}
    graded, skipped = _grade(records, seed, progress) if verify else ({}, Dropped())
    width = max(len(records), 1)
    return Inspection(
        source=config.data.problems,
        used={role: dict(columns) for role, columns in opened.roles.used.items()},
        columns=opened.columns,
        unused={name: opened.roles.characters[name] / width for name in opened.columns if not _used(name, opened.roles.used)},
        rows=len(records),
        problems=len(found),
        demonstrated=sum(bool(p.demonstrations) for p in found),
        closed=[p.id for p in found if not own[p.id].issuperset(p.demonstrations)],
        offered=dict(sorted(Counter(len(record.demonstrations) for record in records.values()).items())),
        taken=taken,
        refusal=refusal,
        left_out=dict(left_out),
        examples=dropped.examples | skipped.examples,
        levels=dict(sorted(Counter(p.level for p in found if p.level).items())),
        lengths={name: quantiles for name, quantiles in lengths.items() if quantiles},
        unknown=unknown,
        shown=tuple(_shown(tokenizer, encoded, found)),
        **graded,
    )  # fmt: skip


def grade(
    source: str,
    columns: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    limit: int | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> Inspection:
    """:func:`inspect` a source with everything else as it is by default, to see how right it is graded.

    Args:
        source: file or Hub name, see :mod:`prefix_rft_lab.data.readers`.
        columns: maps field names to the source's own.
        seed: keys the draw of the other problems.
        limit: only the first so many rows.
        progress: called with (rows done, a line that says so) now and then.

    Raises:
        ConfigError: a source that cannot be read, or without a row that has an answer and a solution that states one.
    """
    fields = {"data.problems": source, "data.columns": dict(columns or {}), "data.max_rows": limit}
    found = inspect(RunConfig().replace(**fields), seed=seed, progress=progress)
    if not found.graded:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in found.not_graded.items())
        raise ConfigError(f"FILE = {source!r} has no row to grade ({reasons}); give a file with answers and solutions")
    return found


def _encoded(
    tokenizer: Any, problems: Sequence[Problem], config: RunConfig
) -> tuple[list[EncodedProblem], Counter[str], float]:
    from prefix_rft_lab.models.tokens import encode_problems

    encoded, reasons = encode_problems(tokenizer, problems, config)
    ids = Counter(i for e in encoded for part in (e.prompt_ids, *(d.ids for d in e.demonstrations)) for i in part)
    return encoded, reasons, _rate(ids[tokenizer.unk_token_id], ids.total())


def _taken(
    config: RunConfig, problems: Sequence[Problem], dropped: Dropped, encoded: Sequence[EncodedProblem] | None
) -> tuple[dict[str, int], str]:
    """How many problems of each split a training takes and leaves, or why it refuses."""
    fit = {p.id for p in problems} if encoded is None else {e.problem.id for e in encoded}
    try:
        cuts = sources.cut(config.data, problems, dropped)
    except ConfigError as error:
        return {}, str(error)
    taken = {split: sum(p.id in fit for p in cuts[split]) for split in ("train", "validation", "test")}
    return taken | {"left": len(fit) - sum(taken.values())}, ""


def _used(column: str, used: Mapping[str, Mapping[str, int]]) -> bool:
    parts = (part for columns in used.values() for name in columns for part in name.split("+"))
    return any(fnmatchcase(column, part) or part.startswith(f"{column}.") for part in parts)


def _shown(
    tokenizer: Any, encoded: Sequence[EncodedProblem] | None, problems: Sequence[Problem]
) -> Iterator[tuple[str, str]]:
    for i, problem in enumerate(problems[:EXAMPLES]):
        if encoded is None:
            text = "\n".join([problem.prompt, *problem.demonstrations[:1]])
        else:
            text = tokenizer.decode(
                [*encoded[i].prompt_ids, *(j for d in encoded[i].demonstrations[:1] for j in d.ids)]
            )
        yield f"{problem.id}, answer {problem.answer}", text


def _grade(
    records: Mapping[str, Record], seed: int, progress: Callable[[int, str], None] | None
) -> tuple[dict[str, Any], Dropped]:
    """The fields of :class:`Graded`, and the rows that could not be graded."""
    skipped = Dropped()
    rows: list[tuple[str, str, str, str]] = []  # id, gold, completed gold, solution
    kinds: dict[str, list[int]] = defaultdict(list)
    kind: list[str] = []
    golds: dict[str, str] = {}
    for name, record in records.items():
        answer, solution = record.answer, record.solution
        lacks = "answer" if answer is None else "solution" if solution is None else ""
        if answer is not None and not record.unusable:
            golds[name] = answers.complete_gold(answer, solution)
        if record.unusable or answer is None or solution is None:
            skipped.note(record.unusable or f"row without {lacks}", name)
        elif not answers.final_answers(solution):
            skipped.note(UNSTATED, name)
        else:
            kinds[record.kind].append(len(rows))
            kind.append(record.kind)
            rows.append((name, answer, golds[name], solution))
    bare = [answers.bare(answer) for _, answer, _, _ in rows]
    failures: list[Failure] = []
    count: Counter[str] = Counter(graded=len(rows))
    with Verifier() as verifier:

        def late(name: str, response: str, gold: str) -> bool | None:
            """Whether a response is right; None, and counted, if that took too long."""
            before = verifier.timeouts
            right = bool(verifier.score(response, gold))
            count[name] += not right and verifier.timeouts > before
            return None if not right and verifier.timeouts > before else right

        for name, gold in golds.items():
            if not verifier.readable(gold):
                failures.append(Failure(check="gold answer", category="not read as mathematics", id=name, gold=gold))
        for i, (name, answer, gold, solution) in enumerate(rows):
            if progress is not None and i % 100 == 0:
                progress(i, f"{i}/{len(rows)} rows graded")
            own = late("own_late", solution, gold)
            count["own_right"] += own is True
            count["own_right_as_is"] += bool(verifier.score(solution, answer))
            if own is False:
                said = answers.extract_answer(solution)
                failures.append(
                    Failure(check="own solution", category=_why_wrong(solution), id=name, gold=gold, answer=said)
                )
            j = _another(i, kinds[kind[i]], bare, seed)
            if j is None:
                skipped.note("no other problem of its type with another answer", name)
                continue
            count["others"] += 1
            other = late("others_late", rows[j][3], gold)
            count["others_wrong"] += other is False
            if other:
                said = answers.extract_answer(rows[j][3])
                category = _why_right(said or "", gold)
                failures.append(
                    Failure(
                        check="other solution", category=category, id=name, gold=gold, answer=said, other=rows[j][0]
                    )
                )
    completed = tuple(name for name, answer, gold, _ in rows if gold != answer)
    return {**count, "not_graded": dict(skipped), "completed": completed, "failures": tuple(failures)}, skipped


def _another(i: int, kind: Sequence[int], bare: Sequence[str], seed: int) -> int | None:
    """A keyed draw of another row of the same kind; answers that differ in writing only are not other answers."""
    draws = rng.generator(seed, "grading/other", i).integers(len(kind), size=DRAWS)
    return next((kind[d] for d in draws if bare[kind[d]] != bare[i]), None)


def _why_wrong(solution: str) -> str:
    several = len(answers.final_answers(solution)) > 1
    return "several boxes, one gold answer" if several else "another value or form than the gold answer"


def _why_right(answer: str, gold: str) -> str:
    one_has_a_base = (answers.base(answer) is None) != (answers.base(gold) is None)
    return "a base that one of the two leaves out" if one_has_a_base else "equal to math-verify"


def _rate(count: int, of: int) -> float:
    return count / of if of else float("nan")


def _quantiles(lengths: Sequence[int]) -> dict[str, float]:
    return {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()} if lengths else {}


def _percent(right: int, of: int) -> str:
    return f"{right}/{of} {right / of:.3%}" if of else "none"


def _ids(names: Sequence[str], shown: int = 5) -> str:
    return f" ({', '.join(names[:shown])}{', ...' * (len(names) > shown)})" if names else ""


def format_inspection(found: Inspection) -> str:
    """The inspection as text, with the first problems whole."""
    from prefix_rft_lab.core.tables import format_table

    taken = ", ".join(f"{split} {count}" for split, count in found.taken.items() if split != "left")
    lines = [
        f"{found.source}: columns {', '.join(found.columns)}",
        *(f"{role} from " + ", ".join(f"{c} ({n})" for c, n in by.items()) for role, by in found.used.items()),
        "columns not used: " + (", ".join(found.unused) or "none"),
        *(
            f"warning: column {name} is not used, but holds {mean:.0f} characters of text per row; --column FIELD={name} if it is "
            "the problem or a demonstration"
            for name, mean in found.unused.items()
            if mean >= RICH
        ),
        f"{found.rows} rows, {found.problems} problems that can be used, {found.demonstrated} with a demonstration",
        f"a training takes {taken} and leaves {found.taken['left']} (data.train_problems, data.eval_problems)"
        if found.taken
        else f"warning: a training refuses this: {found.refusal}",
        "demonstrations in a row: " + ", ".join(f"{n} in {rows} rows" for n, rows in found.offered.items()),
        f"demonstrations closed with the gold answer: {len(found.closed)}{_ids(found.closed)}",
        *(
            f"left out: {count} x {reason}{_ids(found.examples.get(reason, []))}"
            for reason, count in found.left_out.items()
        ),
    ]
    if found.unknown is not None:
        lines.append(f"tokens that the vocabulary does not know: {found.unknown:.2%}")
    lines += _grades(found) if found.graded or found.not_graded else []
    if found.levels:
        lines.append("levels: " + ", ".join(f"{level} {count}" for level, count in found.levels.items()))
    head = ("length", *QUANTILES)
    rows = [(name, *(f"{v:.0f}" for v in quantiles.values())) for name, quantiles in found.lengths.items()]
    lines += ["", format_table([head, *rows])]
    for title, text in found.shown:
        lines += ["", f"problem {title}", *(f"  {line}" for line in text.splitlines())]
    return "\n".join(lines)


def _grades(found: Inspection, shown: int = 5) -> Iterator[str]:
    """What was graded, not graded and failed: at most ``shown`` failures of a category."""
    yield f"own solution graded right: {_percent(found.own_right, found.graded - found.own_late)}"
    yield f"solution of another problem graded wrong: {_percent(found.others_wrong, found.others - found.others_late)}"
    if found.own_late or found.others_late:
        yield f"ran out of time, counted as neither: {found.own_late} own, {found.others_late} of others"
    for reason, count in found.not_graded.items():
        yield f"not graded: {count} x {reason}{_ids(found.examples.get(reason, []))}"
    yield f"answers completed from a solution that lists several: {len(found.completed)}{_ids(found.completed, shown)}"
    groups: dict[str, list[Failure]] = defaultdict(list)
    for failure in found.failures:
        groups[f"{failure.check}, {failure.category}"].append(failure)
    for category, group in groups.items():
        yield f"{category}: {len(group)}"
        for failure in group[:shown]:
            answer = "" if failure.answer is None else f", answer {_short(failure.answer)}"
            other = "" if failure.other is None else f" of {failure.other}"
            yield f"  {failure.id}: gold {_short(failure.gold)}{answer}{other}"
        if len(group) > shown:
            yield f"  and {len(group) - shown} more"


def format_gradings(gradings: Sequence[Inspection], *, shown: int = 20) -> str:
    """A line per source, then of each what was graded, not graded and failed: at most ``shown`` failures of a category."""
    from prefix_rft_lab.core.tables import format_table

    head = ("source", "rows", "graded", "own solution right", "answers as they are", "other solution wrong", "unread gold answers")  # fmt: skip
    table: list[tuple[str, ...]] = [head]
    for found in gradings:
        right = [
            (found.own_right, found.graded - found.own_late),
            (found.own_right_as_is, found.graded - found.own_late),
        ]
        right.append((found.others_wrong, found.others - found.others_late))
        table.append((found.source, str(found.rows), str(found.graded), *(_percent(*r) for r in right), str(len(found.unread))))  # fmt: skip
    lines = [
        line for found in gradings for line in ("", found.source, *(f"  {line}" for line in _grades(found, shown)))
    ]
    return "\n".join([format_table(table), *lines])


def _short(text: str, characters: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 1] + "…"
