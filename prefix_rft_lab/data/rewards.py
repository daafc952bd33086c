"""Rewards: what a response is worth. The kit's own and a user's, by name, as numbers, with a time limit each.

``data.reward`` names one, or several with weights, ``"math_verify + 0.2 * format"``::

    @rewards.register("exact", version="1")
    def exact(response: str, problem: Problem) -> float: ...

A reward may be a coroutine (``async def``: the rows of a step run together), take all rows at once (``batch=True``: lists in,
a list out), or be a class that is made once per run, called like a function, and closed by its ``close``, if it has one.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any

from prefix_rft_lab.core.config import ConfigError, DataConfig
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.core.registry import Entry, Registry, V
from prefix_rft_lab.core.types import Problem
from prefix_rft_lab.data.answers import boxed_answer, extract_answer, golds
from prefix_rft_lab.data.verifier import Verifier, parse, readable, verify

__all__ = [
    "REWARDS",
    "Reward",
    "Scorer",
    "Verifier",
    "boxed_answer",
    "extract_answer",
    "parse",
    "readable",
    "register",
    "verify",
]

log = logging.getLogger(__name__)

HANGING = 8
"""Calls of a reward that may run on after their time limit: a thread cannot be ended, and each takes processor time."""
_TERM = re.compile(r"(?:([0-9.eE-]+)\s*\*\s*)?([^+*]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward and what it promises."""

    function: Callable[..., Any]
    batch: bool = False
    """Whether it takes the responses and problems of all rows, and returns a list."""
    low: float = 0.0
    high: float = 1.0
    """Its range."""
    time_limit: float | None = 60.0
    """Seconds for one call; a row that takes longer scores ``low`` and is counted. None: it limits itself."""

    def __getattr__(self, name: str) -> Any:
        # By this the registry distinguishes two ideas of one name.
        if name == "__qualname__":
            return self.function.__qualname__
        raise AttributeError(name)


class Rewards(Registry[Reward]):
    """Name -> reward."""

    def register(self, name: str, version: str | None = None, **promises: Any) -> Callable[[V], V]:
        """A decorator that puts a reward under a name; ``promises`` are fields of :class:`Reward`.

        Raises:
            ConfigError: a name that ``data.reward`` cannot hold, or that of another reward.
        """
        if not _TERM.fullmatch(name) or name != name.strip():
            raise ConfigError(
                f"reward {name!r} cannot be written in data.reward; use a name without +, * and outer spaces"
            )
        module = sys._getframe(1).f_globals.get("__name__", "__main__")

        def put(function: V) -> V:
            self._put(name, Reward(function=function, **promises), Entry(module=module, version=version))  # type: ignore[arg-type]
            return function

        return put


def weights_of(config: DataConfig) -> dict[str, float]:
    """Weight of each reward in ``data.reward``.

    Raises:
        ConfigError: it is not understood.
    """
    found: dict[str, float] = {}
    for term in config.reward.split("+"):
        match = _TERM.fullmatch(term.strip())
        try:
            weight = float(match[1] or 1) if match else math.nan
        except ValueError:
            weight = math.nan
        if match is None or not math.isfinite(weight) or match[2].strip() in found:
            raise ConfigError(
                f"data.reward = {config.reward!r} is not understood; write a name, or names with weights: 'exact + 0.5 * format'"
            )
        found[match[2].strip()] = weight
    return found


REWARDS = Rewards("reward", "data.reward", lambda config: weights_of(config.data))
"""All there are: the kit's, and those that a user registers."""
register = REWARDS.register


class Scorer:
    """The rewards of a config at work: made once, asked for the rows of each step, closed at the end.

    Raises:
        ConfigError: a reward that is not known, or a ``data.solved`` that no response can reach.
    """

    def __init__(self, config: DataConfig) -> None:
        self.weights = weights_of(config)
        self._rewards = {name: REWARDS.find(name) for name in self.weights}
        ends = [[w * r.low, w * r.high] for w, r in zip(self.weights.values(), self._rewards.values(), strict=True)]
        self.most = sum(map(max, ends))
        """The highest score that a response can have."""
        self.solved_from = self.most if config.solved is None else config.solved
        if not self.solved_from <= self.most or (config.solved is None and math.isinf(self.most)):
            raise ConfigError(
                f"data.solved = {config.solved} cannot be reached or told from data.reward = {config.reward!r}, whose highest score "
                f"is {self.most:g}; give the score from which a response counts as solved"
            )
        self._late = dict.fromkeys(self.weights, 0)
        self.timeouts_before = 0
        self._calls: dict[str, Any] = {
            name: reward.function() if inspect.isclass(reward.function) else reward.function
            for name, reward in self._rewards.items()
        }

    @property
    def timeouts(self) -> int:
        """Rows (of math-verify: pairs of answers) that ran out of time since the start of the run."""
        inner = sum(getattr(call, "timeouts", 0) for call in self._calls.values())
        return self.timeouts_before + sum(self._late.values()) + inner

    def parts(self, responses: Sequence[str], problems: Sequence[Problem]) -> dict[str, list[float]]:
        """What each reward says of each response.

        Raises:
            RunError: a reward that fails, returns NaN, infinite or not a number, or another count, or leaves its range.
        """
        return {name: self._ask(name, list(responses), list(problems)) for name in self.weights}

    def total(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sum per response."""
        return [
            sum(w * v for w, v in zip(self.weights.values(), row, strict=True))
            for row in zip(*(parts[name] for name in self.weights), strict=True)
        ]

    def score(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[float]:
        return self.total(self.parts(responses, problems))

    def solved(self, score: float) -> bool:
        """Whether a score counts as solved (``data.solved``)."""
        return score >= self.solved_from - 1e-9

    def try_out(self, problem: Problem) -> None:
        """Ask a user's rewards once, before anything is lost by one that fails.

        Raises:
            RunError: as :meth:`parts`.
        """
        for name in self.weights:
            if not REWARDS.entries[name].is_kit:
                self._ask(name, [problem.demonstration or problem.answer], [problem])

    def unread(self, problems: Sequence[Problem]) -> list[str]:
        """Ids of problems whose gold answer a reward cannot read, so that only an equal text is right."""
        readers = [call.readable for call in self._calls.values() if hasattr(call, "readable")]
        return [p.id for p in problems if not all(readable(p.answer) for readable in readers)]

    def close(self) -> None:
        for call in self._calls.values():
            getattr(call, "close", lambda: None)()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, name: str, responses: list[str], problems: list[Problem]) -> list[float]:
        reward, call, late = self._rewards[name], self._calls[name], self._late[name]
        if not responses:
            return []
        found: Sequence[Any]
        if reward.batch:
            found = self._within(name, len(responses), problems[0], call, responses, problems)
            if isinstance(found, (str, Mapping)) or not hasattr(found, "__len__") or len(found) != len(responses):
                told = f"{len(found)} values" if hasattr(found, "__len__") else repr(found)
                raise RunError(
                    f"reward {name!r} returned {told} for {len(responses)} responses; return a list with one float each"
                )
        elif inspect.iscoroutinefunction(call):
            found = asyncio_run(self._together(name, call, responses, problems))
        else:
            found = [self._within(name, 1, p, call, r, p) for r, p in zip(responses, problems, strict=True)]
        if (count := self._late[name] - late) > 0:
            log.warning("reward %r ran out of its %g s on %d of %d rows, which score %g", name, reward.time_limit, count,
                        len(responses), reward.low)  # fmt: skip
        return [self._number(name, value, problem) for value, problem in zip(found, problems, strict=True)]

    def _number(self, name: str, value: Any, problem: Problem) -> float:
        reward = self._rewards[name]
        try:
            number = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not reward.low <= number <= reward.high:
            raise RunError(
                f"reward {name!r} returned {value!r} for problem {problem.id!r}; return a float from {reward.low:g} to "
                f"{reward.high:g}, or register the reward with its range (low=..., high=...)"
            )
        return number

    def _within(self, name: str, rows: int, problem: Problem, call: Callable[..., Any], *asked: Any) -> Any:
        """What a call returns within its time limit; else the lowest value, for as many rows."""
        reward, box = self._rewards[name], list[Any]()

        def run() -> None:
            try:
                box.append(call(*asked))
            except Exception as error:
                box.append(_failure(name, problem, error))

        if reward.time_limit is None:
            run()
        else:
            thread = Thread(target=run, daemon=True)
            thread.start()
            thread.join(reward.time_limit)
        if not box:
            self._count(name, rows)
            return [reward.low] * rows if reward.batch else reward.low
        if isinstance(box[0], RunError):
            raise box[0]
        return box[0]

    def _count(self, name: str, rows: int) -> None:
        self._late[name] += rows
        if (
            not self._rewards[name].batch
            and self._late[name] > HANGING
            and not inspect.iscoroutinefunction(self._calls[name])
        ):
            raise RunError(
                f"reward {name!r} ran out of its {self._rewards[name].time_limit:g} s {self._late[name]} times, and these calls still "
                "run; make it faster, give it a time limit of its own, or raise time_limit where it is registered"
            )

    async def _together(self, name: str, call: Any, responses: list[str], problems: list[Problem]) -> list[Any]:
        async def one(response: str, problem: Problem) -> Any:
            try:
                return await asyncio.wait_for(call(response, problem), self._rewards[name].time_limit)
            except TimeoutError:
                self._count(name, 1)
                return self._rewards[name].low
            except Exception as error:
                raise _failure(name, problem, error) from error

        return await asyncio.gather(*(one(r, p) for r, p in zip(responses, problems, strict=True)))


def asyncio_run(work: Any) -> Any:
    """Run a coroutine to its end in a thread of its own: that of a notebook has a loop that runs already."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(asyncio.run(work))
        except RunError as error:
            box.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if isinstance(box[0], RunError):
        raise box[0]
    return box[0]


def _failure(name: str, problem: Problem, error: Exception) -> RunError:
    return RunError(
        f"reward {name!r} failed on problem {problem.id!r} ({type(error).__name__}: {error}); mend it and train again: what was "
        "recorded and the checkpoints are kept"
    )


# ---------------------------------------------------------------------- the kit's own


@register("math_verify", batch=True, time_limit=None)
class MathVerify:
    """1 if math-verify accepts the final answer, else 0; seconds are limited per pair of answers (:class:`Verifier`)."""

    def __init__(self) -> None:
        self.verifier = Verifier()

    def __call__(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[float]:
        return self.verifier.score_all(responses, [problem.answer for problem in problems])

    @property
    def timeouts(self) -> int:
        return self.verifier.timeouts

    def readable(self, gold: str) -> bool:
        return self.verifier.readable(gold)

    def close(self) -> None:
        self.verifier.close()


@register("exact")
def exact(response: str, problem: Problem) -> float:
    """1 if the final answer is, to the letter, one that the gold accepts.

    >>> exact("It is \\\\boxed{Paris}.", Problem(id="1", prompt="The capital of France?", answer="Paris"))
    1.0
    """
    return float((extract_answer(response) or "").strip() in {gold.strip() for gold in golds(problem.answer)} - {""})


@register("numeric")
def numeric(response: str, problem: Problem, tolerance: float = 1e-3) -> float:
    """1 if the final answer is a number within ``tolerance`` of the gold, relative to the gold (to 1 where that is below 1).

    >>> pi = Problem(id="1", prompt="What is pi?", answer="3.14159")
    >>> numeric("About \\\\boxed{3.14}.", pi), numeric("About \\\\boxed{3}.", pi)
    (1.0, 0.0)
    """
    try:
        answer, gold = (float(str(text).replace(",", "")) for text in (extract_answer(response), problem.answer))
    except ValueError:
        return 0.0
    return float(abs(answer - gold) <= tolerance * max(1.0, abs(gold)))


@register("choice")
def choice(response: str, problem: Problem) -> float:
    """1 if the last option that the response names, a letter A to Z alone or in parentheses, is the gold's."""
    text = extract_answer(response) or response
    letters = re.findall(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z])", text)
    gold = re.findall(r"[A-Z]", problem.answer.upper())[:1]
    return float(letters[-1:] == gold != [])


@register("format")
def format_reward(response: str, problem: Problem) -> float:
    """1 if the response gives one boxed answer, after its thought where it has one (``<think>`` that is closed)."""
    before, end, after = response.rpartition("</think>")
    closed = response.count("<think>") <= response.count("</think>") <= 1
    return float(closed and boxed_answer(after if end else response) is not None and boxed_answer(before) is None)
