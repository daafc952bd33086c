"""Where problems come from: the embedded world, a user's file, or the Hub. Everything becomes a list of :class:`Problem`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice

import numpy as np

from prefix_rft_lab.core import hub, rng
from prefix_rft_lab.core.config import ConfigError, DataConfig
from prefix_rft_lab.core.types import Problem
from prefix_rft_lab.data import chains, readers
from prefix_rft_lab.data.answers import boxed_answer, complete_gold, golds
from prefix_rft_lab.data.readers import Candidate, Dropped, Record, Source

_GSM8K_END = re.compile(r"\n?####\s*.*\s*$")


def splits(config: DataConfig) -> tuple[str, ...]:
    """Names of the splits that the source has."""
    return chains.SPLITS if config.problems == "chains" else ("train", "validation", "test")


def load_problems(config: DataConfig, split: str) -> tuple[list[Problem], Counter[str]]:
    """Problems of one split and a count of dropped rows by reason.

    A file is cut, in a keyed order, into test, validation (``eval_problems`` each) and train problems, so no problem is in
    two splits. ``demonstration_fraction`` of the train problems keep their demonstration.

    Raises:
        ConfigError: missing, empty or malformed file, unknown column, unknown expert, or too few rows.
    """
    if config.problems == "chains":
        by_rule = chains.EXPERTS.keys() >= set(config.expert.split("+"))
        if not by_rule and config.expert != "self" and not config.expert.startswith(("policy:", "run:")):
            raise ConfigError(
                f"data.expert = {config.expert!r} is not known; use one of {', '.join([*chains.EXPERTS, 'self'])}, "
                "policy:DIRECTORY or run:NAME (several of the first joined by +)"
            )
        count = config.train_problems if split == "train" else config.eval_problems
        written = config.expert if by_rule else "thorough"
        found = chains.problems(split, count, expert=written, seed=config.seed)
        reasons = Counter[str]()
    else:
        stamps = tuple(map(hub.stamp, (config.problems, *config.test_sets)))
        rows, dropped = _read_once(config.model_dump_json(), stamps)
        reasons = Counter(dropped)
        found = cut(config, rows, dropped)[split]
    if split == "train" and config.demonstration_fraction < 1:
        found = thin_demonstrations(found, config.demonstration_fraction, config.seed)
    return found, reasons


def cut(config: DataConfig, rows: Sequence[Problem], dropped: Dropped) -> dict[str, list[Problem]]:
    """Rows by split, in a keyed order: those that the source names as test or validation are that, other held-out rows are the
    first ones.

    Raises:
        ConfigError: too few rows, or a split that is named without a row that can be used.
    """
    order = rng.generator(config.seed, "file/order").permutation(len(rows))
    rest = [rows[i] for i in order]
    named = [split for split in ("test", "validation") if split in dropped.splits]
    cuts: dict[str, list[Problem]] = {
        split: [p for p in rest if p.split == split][: config.eval_problems] for split in named
    }
    if empty := [split for split, found in cuts.items() if not found]:
        raise ConfigError(
            f"data.problems = {config.problems!r} names rows as {empty[0]}, of which none can be used ({dropped}); correct them, or "
            "leave them out"
        )
    rest = [p for p in rest if p.split not in named]
    for split in ("test", "validation"):
        if split not in named:
            cuts[split], rest = rest[: config.eval_problems], rest[config.eval_problems :]
    if not rest:
        held = (2 - len(named)) * config.eval_problems
        why = [f"{split} is named by its rows" for split in named]
        why += [f"{2 - len(named)} x data.eval_problems = {held} are held out"] if held else []
        raise ConfigError(
            f"data.problems = {config.problems!r} has {len(rows)} usable rows, but {' and '.join(why)}; lower "
            "data.eval_problems or bring more rows"
        )
    cuts["train"] = rest[: config.train_problems]
    return {split: [replace(p, split=split) for p in found] for split, found in cuts.items()}


def thin_demonstrations(problems: list[Problem], fraction: float, seed: int) -> list[Problem]:
    """Let round(fraction * n) problems keep their demonstrations, chosen by key: a smaller share is a subset of a larger one."""
    have = [i for i, p in enumerate(problems) if p.demonstrations]
    order = rng.generator(seed, "demonstration_fraction").permutation(len(have))
    keep = {have[i] for i in order[: round(fraction * len(have))]}
    return [p if i in keep else without_demonstrations(p) for i, p in enumerate(problems)]


@lru_cache(maxsize=1)
def _read_once(config: str, stamps: tuple[tuple[tuple[str, int], ...], ...]) -> tuple[list[Problem], Dropped]:
    """All splits are cuts of one reading: a large set is not read once for each."""
    return read_problems(DataConfig.model_validate_json(config))


def open_problems(config: DataConfig) -> Source:
    """``data.problems``, opened; its records can be read once."""
    return readers.open_source(config.problems, config.columns)


def read_problems(
    config: DataConfig, *, source: Source | None = None, observe: Callable[[str, Record], None] | None = None
) -> tuple[list[Problem], Dropped]:
    """Problems of ``data.problems``, and a count of what was left out by reason.

    Columns and layouts: :mod:`prefix_rft_lab.data.readers`. Of several demonstrations ``data.demonstrations`` chooses; a
    demonstration without a box gets its answer boxed at the end (a closing GSM8K line ``#### 72`` is replaced), since the
    verifier reads boxes. An answer that is one of several in the reference solution is completed
    (:func:`prefix_rft_lab.data.answers.complete_gold`).

    Args:
        source: ``data.problems``, if it is open already.
        observe: is shown the id of each row, and the row as it was read.

    Raises:
        ConfigError: a source that cannot be read, or without a usable row.
    """
    source = source or open_problems(config)
    tests = [
        record.problem
        for name in config.test_sets
        for record in readers.open_source(name, field="data.test_sets").records
        if record.problem
    ]
    leaks = Leaks(tests)
    problems: list[Problem] = []
    dropped = Dropped()
    seen: dict[str, str] = {}
    ids: set[str] = set()
    for number, record in enumerate(islice(source.records, config.max_rows)):
        name = record.id or readers.default_id(config.problems, number)
        if name in ids:
            # Tables are joined by id, so that two problems of one id would count as one.
            dropped.note("id that occurred before (problem kept, its row added to the id)", name)
            name = f"{name}#{number}"
        ids.add(name)
        dropped.splits.add(record.split)
        if observe is not None:
            observe(name, record)
        reason = _unusable(record, seen, leaks)
        if reason is not None:
            dropped.note(reason, name)
            continue
        assert record.problem is not None and record.answer is not None
        seen[_words_of(record.problem)] = record.split
        fit, lost = usable_demonstrations(
            record.demonstrations, unverified=config.unverified, max_characters=config.max_demonstration_characters
        )
        for reason in lost:
            dropped.note(reason, name)
        if record.demonstrations and not fit:
            dropped.note(NONE_LEFT, name)
        texts = choose(fit, config.demonstrations, generator=rng.generator(config.seed, "demonstrations", name))
        answer = record.answer
        for solution in (record.solution, *texts):
            answer = complete_gold(answer, solution)
        problems.append(
            Problem(
                id=name,
                prompt=record.problem,
                answer=answer,
                demonstrations=tuple(boxed_demonstration(text, golds(record.answer)[0]) for text in texts),
                level=record.level,
                split=record.split or "train",
            )
        )
    if not problems:
        raise ConfigError(
            f"data.problems = {config.problems!r} has no usable row ({dropped}); fill columns problem and answer"
        )
    return problems, dropped


def without_demonstrations(problem: Problem) -> Problem:
    return replace(problem, demonstrations=())


NONE_LEFT = "no demonstration left (problem kept)"


def _unusable(record: Record, seen: Mapping[str, str], leaks: Leaks) -> str | None:
    """Why a row cannot be used; None if it can."""
    if record.unusable:
        return record.unusable
    if record.problem is None:
        return "row without problem"
    if record.answer is None:
        return "row without answer"
    if (split := seen.get(_words_of(record.problem))) is not None:
        # Splits are cut by row: a second copy could land in another split than the first.
        return "problem that occurred before" + ", in another split" * (split != record.split)
    if record.problem in leaks:
        return "problem of a test set, or nearly"
    return None


def usable_demonstrations(
    candidates: Sequence[Candidate], *, unverified: bool, max_characters: int | None
) -> tuple[list[str], list[str]]:
    """(texts of the demonstrations that can be used, the reason of each other one)."""
    texts, lost = [], []
    for demonstration in candidates:
        if not demonstration.text:
            lost.append("empty demonstration")
        elif not demonstration.verified and not unverified:
            lost.append("demonstration that is not verified")
        elif not demonstration.finished:
            lost.append("demonstration that was cut off")
        elif max_characters is not None and len(demonstration.text) > max_characters:
            lost.append("demonstration longer than data.max_demonstration_characters")
        else:
            texts.append(demonstration.text)
    return texts, lost


def choose(texts: Sequence[str], how: str, *, generator: np.random.Generator) -> list[str]:
    """The demonstrations of a problem that are used: ``first``, ``shortest`` (in characters), ``random`` or ``all``."""
    if not texts or how == "all":
        return list(texts)
    if how == "random":
        return [texts[int(generator.integers(len(texts)))]]
    return [min(texts, key=len) if how == "shortest" else texts[0]]


class Leaks:
    """Whether a problem is one of the test problems, or nearly.

    Equal but for case, spaces, punctuation and Unicode form, or holding at least four fifths of a test problem's runs of eight
    words, and all its numbers and signs: problems of one template and other numbers are others.
    """

    WORDS = 8
    SHARE = 0.8

    def __init__(self, tests: Sequence[str]) -> None:
        self._whole: set[str] = set()
        self._runs: dict[tuple[str, ...], list[int]] = {}
        self._tests: list[tuple[int, Counter[str]]] = []
        for text in dict.fromkeys(map(_words, tests)):
            self._whole.add(" ".join(text))
            for run in (runs := self._cut(text)):
                self._runs.setdefault(run, []).append(len(self._tests))
            self._tests.append((len(runs), _figures(text)))

    def __contains__(self, problem: str) -> bool:
        if not self._whole:
            return False
        words = _words(problem)
        if " ".join(words) in self._whole:
            return True
        hits = Counter(test for run in self._cut(words) for test in self._runs.get(run, ()))
        figures = _figures(words)
        return any(
            count >= self.SHARE * (test := self._tests[i])[0] and test[1] <= figures for i, count in hits.items()
        )

    def _cut(self, words: tuple[str, ...]) -> set[tuple[str, ...]]:
        return {words[i : i + self.WORDS] for i in range(len(words) - self.WORDS + 1)}


_WORD = re.compile(
    r"\d*\.?\d+|[^\W\d]+|[+*/^=<>%|]|\((?=[-\\\d])"
    # A minus, but no hyphen between words; a factorial, but no end of an exclamation.
    r"|(?<![^\W\d]{2})-(?![^\W\d]{2})|(?<=[\d)}])!|(?<![^\W\d])(?<=[^\W\d])!"
)


def _words(text: str) -> tuple[str, ...]:
    """Words, numbers and signs, which is what copies of a problem have in common."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-").replace("\\left", "")
    return tuple(_WORD.findall(plain)) or (text,)


def _figures(words: Sequence[str]) -> Counter[str]:
    return Counter(word for word in words if not word.isalpha() or len(word) == 1)


def _words_of(text: str) -> str:
    return " ".join(_words(text))


def boxed_demonstration(demonstration: str, answer: str) -> str:
    """The demonstration as it is if it has a box, else with ``\\boxed{answer}`` at its end."""
    if boxed_answer(demonstration.rpartition("</think>")[2]) is not None:
        return demonstration
    return _GSM8K_END.sub("", demonstration) + f"\n\\boxed{{{answer}}}"
