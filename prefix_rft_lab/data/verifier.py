"""math-verify behind a boundary that a hanging verification cannot cross.

math-verify parses with SymPy, which can run for minutes on a hostile expression, and its own time limit
works by a signal that reaches only a main thread. Verification therefore happens in one long-lived child
process; a request that takes too long kills the child, scores 0 and is counted, and the next request starts a new
one. Answers are cached by (answer text, gold), since rollouts of a group repeat themselves.
"""

from __future__ import annotations

import json
import logging
import math
import re
import select
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from prefix_rft_lab.data import answers
from prefix_rft_lab.data.answers import Quantity, boxed_answer, extract_answer

__all__ = ["Verifier", "boxed_answer", "extract_answer", "parse", "readable", "verify"]

DIGITS = 6
"""Significant digits to which a decimal is compared with a number that no decimal of its length equals."""
_SET, _PAIR = re.compile(r"\\\{[^(){}\[\]]*\\\}"), re.compile(r"[(\[][^(){}\[\]]*[)\]]")
"""One set, whose elements have no order, and one pair or interval, whose ends have one."""
LARGE = 100_000
"""Decimal digits of an integer that is still worked out; a larger one is compared by its logarithm."""


def parse(answer: str) -> list[Any]:
    """What math-verify makes of an answer without box: SymPy expressions, and its text."""
    from math_verify import LatexExtractionConfig
    from math_verify import parse as read

    usual = LatexExtractionConfig()
    # Letters at the end are factors: units are words, and those are taken off before. The child is killed from
    # outside, so math-verify's own signal-based limits are switched off.
    config = replace(usual, normalization_config=replace(usual.normalization_config, units=False))
    return read(f"\\boxed{{{answers.exact(answer)}}}", extraction_config=[config], parsing_timeout=None)


def verify(answer: str, gold: str) -> bool:
    """Whether ``answer`` and ``gold`` (both without box) are the same: the words by :mod:`prefix_rft_lab.data.answers`,
    the mathematics by math-verify, with exact comparisons in place of its rounded ones.

    >>> verify("1/2", "0.5"), verify("3 hours 20 minutes", "200 minutes"), verify("3", "4")
    (True, True, False)
    """
    if None not in (bases := [answers.base(answer), answers.base(gold)]) and bases[0] != bases[1]:
        return False
    answer, gold = answers.normalise(answer), answers.normalise(gold)
    if answer == gold and answer:
        return True
    times = answers.clock(answer), answers.clock(gold)
    if times[0] and times[1] and (times[0][3] or times[1][3]):
        return times[0][:3] == times[1][:3] and (None in (times[0][3], times[1][3]) or times[0][3] == times[1][3])
    mine, theirs = answers.quantities(answer), answers.quantities(gold)
    if not any(q.value for q in mine) or not any(q.value for q in theirs):
        return _same_words(mine, theirs, answer, gold)
    if len(mine) == len(theirs) == 1:
        return _same_quantity(mine[0], theirs[0])
    if len(mine) == len(theirs):
        # Of several quantities each has to be met, in any order.
        left = list(theirs)
        for quantity in mine:
            met = next(
                (q for q in left if not answers.contradict(quantity, q, strictly=True) and _same_quantity(quantity, q)),
                None,
            )
            if met is None:
                return False
            left.remove(met)
        return True
    units = [q.unit() for q in mine + theirs]
    if None not in units and len({u[0] for u in units if u}) == 1:
        # "3 hours 20 minutes" is "200 minutes".
        totals = [
            r" + ".join(
                rf"({q.value}) \cdot \frac{{{u[1].numerator}}}{{{u[1].denominator}}}" for q in side if (u := q.unit())
            )
            for side in (mine, theirs)
        ]
        return _same(*totals)
    return False


def _same_words(mine: list[Quantity], theirs: list[Quantity], answer: str, gold: str) -> bool:
    """Answers of words alone, as a list in any order."""

    def words(text: str) -> list[str]:
        plain = re.sub(r"\\text|\\[,;:! ]|[{}()\\$]", " ", text).casefold()
        plain = re.sub(r"\A ?(?:the )?(?:\w+ )?(?:answer|result|solution)(?: is|:) ?", "", " ".join(plain.split()))
        return sorted("".join(re.findall(r"\w+", part)) for part in re.split(r",| and | or ", plain) if part.strip())

    return words(answer) == words(gold) != []


def _same_quantity(answer: Quantity, gold: Quantity) -> bool:
    if answers.contradict(answer, gold) or not answer.value or not gold.value:
        return False
    units = answer.unit(), gold.unit()
    left, right = answer.value, gold.value
    if {bool(_SET.fullmatch(left)), bool(_SET.fullmatch(right))} == {True, False} and (
        _PAIR.fullmatch(left) or _PAIR.fullmatch(right)
    ):
        return False
    if sides := answers.numeric_sides(left):
        if not _same(*sides):
            return False
        left = sides[-1]
    percent = [bool(u and u[0] == (("percent", 1),)) for u in units]
    if units[0] and units[1] and units[0] != units[1]:
        if units[0][0] != units[1][0]:
            return False
        scale = units[0][1] / units[1][1]
        return _same(rf"({left}) \cdot \frac{{{scale.numerator}}}{{{scale.denominator}}}", right)
    if percent[0] != percent[1] and None in units:
        # "50%" is 50 where the other leaves the sign out, or one half.
        hundredth = [
            rf"\frac{{{value}}}{{100}}" if p else value for value, p in zip((left, right), percent, strict=True)
        ]
        return _same(left, right) or _same(*hundredth)
    if _same(left, right):
        return True
    if "\\cup" in right and answers.union(left) != left:
        return _same(answers.union(left), right)
    # "5 m": in an answer to a plain number a letter after a space is a unit.
    metres = re.fullmatch(r"(-?[\d./]+) [mgshlL]", left)
    return bool(metres and re.fullmatch(r"-?[\d./]+", right) and _same(metres[1], right))


def _same(answer: str, gold: str) -> bool:
    """Whether two values without words are the same."""
    _make_exact()
    from math_verify import verify as compare

    given = [answers.significant_digits(text) for text in (answer, gold)]
    digits = 0 if given == [None, None] else max(DIGITS, given[1] or 0)
    found = [_region(text) or parse(text) for text in (gold, answer)]
    # "1 < x < 2" is the interval (1, 2).
    return bool(compare(*found, float_rounding=digits, timeout_seconds=None, allow_set_relation_comp=True))


def _region(text: str) -> list[Any]:
    """What inequalities with "or" or "and" describe, as a set; empty for anything else."""
    from sympy import Intersection, Union

    def as_set(part: str) -> Any:
        return next(found for found in parse(part) if not isinstance(found, str)).as_set()

    if "\\lor" not in text and "\\land" not in text:
        return []
    return [Union(*(Intersection(*map(as_set, part.split("\\land"))) for part in text.split("\\lor")))]


def _make_exact() -> None:
    """math-verify's comparisons of numbers, equations and names, which round, replaced by exact ones."""
    from math_verify import grader

    grader.sympy_numeric_eq = _same_number
    grader.sympy_symbolic_eq = _same_expression
    grader.sympy_solve_and_compare = _same_solutions
    grader.sympy_compare_symbols = _same_symbol


def _same_number(gold: Any, answer: Any, digits: int, precision: int) -> bool:
    """Exactly equal; or, where one was a decimal, equal to ``digits`` significant digits, unless the gold is an integer."""
    from sympy import Abs, I, Integer, MatrixBase

    if isinstance(gold, MatrixBase) or isinstance(answer, MatrixBase):
        pairs = zip(gold.doit().flat(), answer.doit().flat(), strict=True)
        return bool(gold.shape == answer.shape) and all(_same_number(g, a, digits, precision) for g, a in pairs)
    if gold == answer:
        return True
    if max(_digits(gold), _digits(answer)) > LARGE:
        from sympy import expand_log

        return bool(expand_log(_logarithm(gold) - _logarithm(answer), force=True) == 0)
    imaginary = {s: I for s in gold.free_symbols | answer.free_symbols if s.name == "i"}
    if any(s.name not in "i" for s in gold.free_symbols | answer.free_symbols):
        return bool((gold - answer).expand() == 0)
    gold, answer = (value.doit().subs(imaginary).doit() for value in (gold, answer))
    if gold.is_Rational and answer.is_Rational and not digits:
        return bool(gold == answer)
    g, a = gold.evalf(60), answer.evalf(60)
    if digits and not gold.is_Integer and g.is_real and a.is_real:
        return bool(_rounded(g, digits) == _rounded(a, digits))
    if gold.is_Rational and answer.is_Rational:
        return bool(gold == answer)
    if not bool(Abs(g - a) <= Abs(g) * 10 ** Integer(-40)):
        return False
    return bool((gold - answer).equals(0) is not False)


def _same_expression(gold: Any, answer: Any) -> bool:
    """Whether the difference of two expressions is simplified to zero."""
    from sympy import MatrixBase, simplify

    if not isinstance(gold, MatrixBase) and max(_digits(gold), _digits(answer)) > LARGE:
        return False
    difference = simplify(gold - answer)
    return bool(difference.is_zero_matrix if isinstance(difference, MatrixBase) else difference.is_zero)


def _rounded(number: Any, digits: int) -> str:
    return f"{Decimal(str(number)):.{digits - 1}e}"


def _digits(value: Any) -> float:
    """A bound of the decimal digits of a number and of what it is made of, without working it out."""
    from sympy import factorial

    inner = max((_digits(argument) for argument in value.args), default=0.0)
    if value.is_Integer:
        return value.p.bit_length() / 3
    if inner > LARGE:
        return inner
    if isinstance(value, factorial) and value.args[0].is_number:
        n = abs(float(value.args[0].doit())) if inner < 9 else 10.0**9
        return max(inner, n * math.log10(n + 10))
    if value.is_Pow and value.exp.is_number and value.base.is_number:
        return max(inner, _digits(value.base) * (abs(float(value.exp.doit())) if _digits(value.exp) < 9 else 10.0**9))
    return inner


def _logarithm(value: Any) -> Any:
    """The logarithm of a positive number that is too large to be worked out, symbolically."""
    from sympy import Function, factorial, log

    if value.is_Mul:
        return sum(map(_logarithm, value.args))
    if value.is_Pow:
        return (value.exp.doit() if _digits(value.exp) <= LARGE else value.exp) * _logarithm(value.base)
    if isinstance(value, factorial) and _digits(value) > LARGE:
        return Function("log_factorial")(value.args[0])
    return Function("log_sum")(value) if _digits(value) > LARGE else log(value)


def _same_solutions(gold: Any, answer: Any, digits: int, precision: int) -> bool:
    """Whether two equations are multiples of each other, or have the same solutions, complex ones included."""
    from sympy import Dummy, Eq, simplify, solve

    if not (isinstance(gold, Eq) and isinstance(answer, Eq)):
        ratio = simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
        if ratio.is_number:
            return bool(
                ratio.is_positive
                if gold.func is answer.func
                else ratio.is_negative and gold.func is answer.reversed.func
            )
        solved = [relation.as_set() for relation in (gold, answer)]
        return bool(solved[0] == solved[1]) and not solved[0].is_empty
    symbols = {s: Dummy(s.name) for s in gold.free_symbols | answer.free_symbols}
    left, right = ((relation.lhs - relation.rhs).subs(symbols) for relation in (gold, answer))
    ratio = simplify(left / right)
    if ratio.is_number:
        return bool(ratio.is_nonzero)
    if gold.free_symbols != answer.free_symbols:
        return False
    solved = [set(map(str, solve(side, *symbols.values(), dict=True))) for side in (left, right)]
    return bool(solved[0]) and solved[0] == solved[1]


def _same_symbol(gold: Any, answer: Any) -> bool:
    """Whether two names are the same, whatever their case; a name is not the product of its letters."""
    names = ["e" if str(value) == "E" else str(value) for value in (gold, answer)]
    return names[0].lower() == names[1].lower() if max(map(len, names)) > 1 else names[0] == names[1]


def readable(gold: str) -> bool:
    """Whether math-verify makes more than a text of a gold answer (of each that it accepts)."""
    return all(
        any(not isinstance(found, str) for found in parse(answers.normalise(text))) for text in answers.golds(gold)
    )


def _serve() -> None:
    """The child's loop: one JSON list a line in (answer and gold, or a gold alone), one JSON boolean a line out."""
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            right = verify(*request) if len(request) == 2 else readable(*request)
        except Exception:
            # Whatever the verifier cannot read is not the gold answer.
            right = False
        print(json.dumps(right), flush=True)


class Verifier:
    """Scores responses 0 or 1, with a time limit and a cache.

    Args:
        time_limit: seconds for one pair of answer and gold; beyond it the pair scores 0.
        cache_size: pairs remembered, the least recently used forgotten first.
    """

    def __init__(self, *, time_limit: float = 5.0, cache_size: int = 100_000) -> None:
        self.time_limit = time_limit
        self.cache_size = cache_size
        self.timeouts = 0
        """Pairs that ran out of time since the start."""
        self._cache: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._process: subprocess.Popen[str] | None = None

    def score(self, text: str, gold: str) -> float:
        """1.0 if the final answer of ``text`` is one that ``gold`` accepts, else 0.0.

        Several boxes that are listed together are one answer, a list, unless all of them say the same.
        """
        boxes = answers.final_answers(text)
        answer = answers.joined(boxes)
        if answer is None:
            return 0.0
        return float(
            any(
                self._same(answer, accepted) or (len(boxes) > 1 and all(self._same(box, accepted) for box in boxes))
                for accepted in answers.golds(gold)
            )
        )

    def readable(self, gold: str) -> bool:
        """Whether math-verify can read a gold answer as mathematics; else only an equal text is graded correct."""
        return self._ask((gold,))

    def _same(self, answer: str, gold: str) -> bool:
        if answer == gold:
            return True
        if len(gold) > answers.ANSWER_CHARACTERS:
            return False
        pair = (answer, gold)
        if pair in self._cache:
            self._cache.move_to_end(pair)
            return self._cache[pair]
        result = self._ask(pair)
        self._cache[pair] = result
        if len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return result

    def score_all(self, texts: Sequence[str], golds: Sequence[str]) -> list[float]:
        return [self.score(text, gold) for text, gold in zip(texts, golds, strict=True)]

    def _ask(self, request: tuple[str, ...]) -> bool:
        if self._process is None or self._process.poll() is not None:
            self._start()
        right = self._exchange(request, self.time_limit)
        if right is None:
            self.timeouts += 1
            self.close()
        return right or False

    def _exchange(self, request: tuple[str, ...], seconds: float) -> bool | None:
        """The child's word on a request; None if it took too long or died over it."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        deadline = time.monotonic() + seconds
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            while select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                line = self._process.stdout.readline()
                if not line:
                    return None
                if line.strip() in ("true", "false"):
                    return line.strip() == "true"
                # Something that an import printed.
        except OSError:
            pass
        return None

    def _start(self) -> None:
        # A fresh interpreter, not a fork: threads of torch do not survive one, and a script's main module stays out.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prefix_rft_lab.data.verifier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # Importing SymPy takes seconds and must not count against the first pair.
        if self._exchange(("2/4", "1/2"), 120) is not True:
            self.close()
            raise RuntimeError(
                "the verifier process did not start; run 'python -m prefix_rft_lab doctor' to see whether math-verify imports"
            )

    def close(self) -> None:
        """End the child process; a later score starts a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    _serve()
