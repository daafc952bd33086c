"""The embedded world: chains of modular arithmetic with one operator that only demonstrations explain.

A problem is a chain such as ``7+3#12*4``, evaluated from left to right modulo 19; the answer goes into
``\\boxed{}``. The world makes the questions of Prefix-RFT answerable without answering them:

* ``+ - *`` are *skills*: the base policy's corpus works them step by step, with slips and with some
  direct answers, so that the base policy half has them and exploration can polish them.
* ``#`` is *knowledge*: ``a#b = (a+b)*b``, written by experts in two known steps
  (``7#3:7+3=10:10*3=11``). The base corpus shows ``#`` with random results only, so a sampled
  rollout hits the right value about once in nineteen tries and finds the two-step rule practically never.
* Levels are chain lengths (easy 2, medium 3, hard 4 operations), without two ``#`` in a row. The out-of-distribution
  split has longer chains (5) and chains in which ``#`` follows ``#`` (``repeated``).
* Every problem belongs to exactly one of four parts (corpus, train, validation, test) by a hash of its
  text, so no split overlaps another, whatever its size or seed.

Everything is a function of the seed. Nothing here knows how a policy is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prefix_rft_lab.core import rng
from prefix_rft_lab.core.types import Problem

MODULUS = 19
OPERATORS = "+-*#"
WORDS = ("so ", "then ", "now ", "check ")
LEVELS = {"easy": (2,), "medium": (3,), "hard": (4,)}
OOD_LEVELS = {"longer": (5,), "repeated": (3, 4)}
"""Level -> numbers of operations."""
OPERANDS = range(1, 10)
HASH_SHARE = 0.25
"""Probability that an operation of a chain is ``#``."""

_PARTS = {"corpus": range(0, 50), "train": range(50, 80), "validation": range(80, 90), "test": range(90, 100)}


@dataclass(frozen=True, slots=True)
class Chain:
    """A start value and the operations applied to it, all modulo :data:`MODULUS`."""

    start: int
    operations: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return str(self.start) + "".join(f"{op}{operand}" for op, operand in self.operations)

    @property
    def repeats_hash(self) -> bool:
        """Whether one ``#`` directly follows another."""
        return any(a[0] == b[0] == "#" for a, b in pairwise(self.operations))

    @property
    def answer(self) -> int:
        value = self.start
        for op, operand in self.operations:
            value = apply(op, value, operand)
        return value

    @property
    def part(self) -> str:
        """The part of the world that this chain belongs to, by a hash of its text."""
        bucket = int.from_bytes(hashlib.blake2b(str(self).encode(), digest_size=4).digest(), "little") % 100
        return next(name for name, buckets in _PARTS.items() if bucket in buckets)


def apply(op: str, a: int, b: int) -> int:
    """``a op b`` modulo :data:`MODULUS`; ``a#b = (a+b)*b``."""
    match op:
        case "+":
            return (a + b) % MODULUS
        case "-":
            return (a - b) % MODULUS
        case "*":
            return (a * b) % MODULUS
        case "#":
            return ((a + b) * b) % MODULUS
    raise ValueError(f"operator = {op!r} is not one of {OPERATORS}")


def sample_chain(g: np.random.Generator, part: str, operations: int) -> Chain:
    """A chain of the given part and length, by rejection on the part's hash."""
    while True:
        start = int(g.integers(MODULUS))
        ops = tuple(
            (
                "#" if g.random() < HASH_SHARE else "+-*"[g.integers(3)],
                int(g.choice(OPERANDS)),
            )
            for _ in range(operations)
        )
        chain = Chain(start, ops)
        if chain.part == part:
            return chain


def _result_lines(chain: Chain, line: Callable[[int, str, int, int], tuple[str, int]]) -> tuple[list[str], int]:
    """Work a chain line by line; ``line(value, op, operand, right result)`` gives the text and the value to go on with."""
    lines, value = [], chain.start
    for op, operand in chain.operations:
        text, value = line(value, op, operand, apply(op, value, operand))
        lines.append(text)
    return lines, value


def _explain(value: int, op: str, operand: int, result: int) -> str:
    """One operation as an expert writes it: ``#`` in its two steps, anything else in one."""
    if op != "#":
        return f"{value}{op}{operand}={result}"
    total = apply("+", value, operand)
    return f"{value}#{operand}:{value}+{operand}={total}:{total}*{operand}={result}"


def _thorough(chain: Chain, g: np.random.Generator, error_rate: float = 0.0) -> str:
    def line(value: int, op: str, operand: int, result: int) -> tuple[str, int]:
        if g.random() < error_rate:
            result = (result + int(g.integers(1, MODULUS))) % MODULUS
        return _explain(value, op, operand, result), result

    lines, answer = _result_lines(chain, line)
    return "\n".join([*lines, f"\\boxed{{{answer}}}"])


def _terse(chain: Chain, g: np.random.Generator) -> str:
    lines, answer = _result_lines(chain, lambda value, op, operand, result: (f"={result}", result))
    return "\n".join([*lines, f"\\boxed{{{answer}}}"])


def _verbose(chain: Chain, g: np.random.Generator) -> str:
    def line(value: int, op: str, operand: int, result: int) -> tuple[str, int]:
        opener = WORDS[g.integers(3)]
        return f"{opener}{_explain(value, op, operand, result)}\ncheck {value}{op}{operand}={result}", result

    lines, answer = _result_lines(chain, line)
    return "\n".join([*lines, f"\\boxed{{{answer}}}"])


def _wrong(chain: Chain, g: np.random.Generator) -> str:
    """Right steps, wrong box."""
    body = _thorough(chain, g).rsplit("\n", 1)[0]
    return f"{body}\n\\boxed{{{(chain.answer + int(g.integers(1, MODULUS))) % MODULUS}}}"


EXPERTS: dict[str, Callable[[Chain, np.random.Generator], str]] = {
    "thorough": _thorough,
    "terse": _terse,
    "verbose": _verbose,
    "noisy10": lambda chain, g: _thorough(chain, g, 0.1),
    "noisy30": lambda chain, g: _thorough(chain, g, 0.3),
    "wrong": _wrong,
}
"""Who writes demonstrations: every step shown; results only; every step shown twice in more words; each
operation wrong with 10% or 30% (the answer follows from the slip); right steps with a wrong answer."""

SLIP = 0.05
"""Probability that the corpus gives a random result for an operation of ``+ - *``."""
DIRECT = 0.2
"""Probability that the corpus answers without any steps."""
OPENER = 0.15
"""Probability that a line of the corpus starts with a word."""


def corpus_document(chain: Chain, g: np.random.Generator) -> str:
    """A response as the base policy's corpus has it: slips, some direct answers, random results for ``#``."""
    direct = g.random() < DIRECT

    def line(value: int, op: str, operand: int, result: int) -> tuple[str, int]:
        if op == "#" or (not direct and g.random() < SLIP):
            result = int(g.integers(MODULUS))
        opener = WORDS[g.integers(len(WORDS))] if g.random() < OPENER else ""
        return f"{opener}{value}{op}{operand}={result}", result

    lines, answer = _result_lines(chain, line)
    return "\n".join([*([] if direct else lines), f"\\boxed{{{answer}}}"])


def corpus(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, response) pairs for pretraining: chains of 2 to 6 operations from the ``corpus`` part."""
    g = rng.generator(seed, "chains/corpus")
    while True:
        chain = sample_chain(g, "corpus", int(g.integers(2, 7)))
        yield str(chain), corpus_document(chain, g)


def primer(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, response) pairs of one or two clean operations without ``#``.

    The corpus alone hides the tables behind slips and random results: a small policy then needs many times
    the steps to find them, and whether it does depends on the seed.
    """
    g = rng.generator(seed, "chains/primer")
    while True:
        chain = sample_chain(g, "corpus", int(g.integers(1, 3)))
        if "#" not in str(chain):
            yield str(chain), _thorough(chain, g)


SPLITS = ("train", "validation", "test", "ood")


def problems(split: str, count: int, *, expert: str = "thorough", seed: int = 0) -> list[Problem]:
    """The first ``count`` problems of a split, all different; each prefix of the list is the same for every count.

    Args:
        split: ``train``, ``validation``, ``test`` or ``ood`` (other chains of the test part).
        expert: a key of :data:`EXPERTS`, or several joined by ``+``: one demonstration by each.
        seed: seed of the world.

    Raises:
        ValueError: an unknown split or expert.

    >>> [first] = problems("train", 1)
    >>> first.prompt, first.answer, first.level
    ('14-3-5', '6', 'easy')
    """
    if split not in SPLITS:
        raise ValueError(f"split = {split!r} is not known; use one of {', '.join(SPLITS)}")
    experts = expert.split("+")
    if not EXPERTS.keys() >= set(experts):
        raise ValueError(f"data.expert = {expert!r} is not known; use one of {', '.join([*EXPERTS, 'self'])}")
    g = rng.generator(seed, "chains/problems", split)
    levels = OOD_LEVELS if split == "ood" else LEVELS
    names = list(levels)
    found: dict[str, Problem] = {}
    while len(found) < count:
        level = names[len(found) % len(names)]
        chain = sample_chain(g, "test" if split == "ood" else split, int(g.choice(levels[level])))
        text = str(chain)
        if text in found or chain.repeats_hash != (level == "repeated"):
            continue
        found[text] = Problem(
            id=f"{split}-{len(found)}",
            prompt=text,
            answer=str(chain.answer),
            demonstrations=tuple(
                EXPERTS[name](chain, rng.generator(seed, "chains/expert", name, text)) for name in experts
            ),
            level=level,
            split=split,
        )
    return list(found.values())
