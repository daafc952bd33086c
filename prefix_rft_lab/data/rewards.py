"""Rewards: math-verify behind a boundary that a hanging verification cannot cross.

math-verify parses with SymPy, which can run for minutes on a hostile expression, and its own time limit
works by a signal that reaches only a main thread. Verification therefore happens in one long-lived child
process; a request that takes too long kills the child, scores 0 and is counted, and the next request starts a new
one. Answers are cached by (answer text, gold), since rollouts of a group repeat themselves.
"""

from __future__ import annotations

import json
import logging
import re
import select
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefix_rft_lab.data import answers
from prefix_rft_lab.data.answers import boxed_answer, extract_answer

__all__ = ["Verifier", "boxed_answer", "extract_answer", "parse", "readable", "verify"]


def parse(answer: str) -> list[Any]:
    """What math-verify makes of an answer without box: SymPy expressions, and its text."""
    from math_verify import LatexExtractionConfig
    from math_verify import parse as read

    def with_config(config: Any) -> list[Any]:
        # The child is killed from outside, so math-verify's own signal-based limits are switched off.
        return read(f"\\boxed{{{answer}}}", extraction_config=[config], parsing_timeout=None)

    usual = LatexExtractionConfig()
    found = with_config(usual)
    if any(not isinstance(item, str) for item in found) or not re.search(r"[A-Za-z]\}?\s*\Z", answer):
        return found
    # Letters at the end are taken off as units, so that nothing sensible is left of "a + b + c".
    return with_config(replace(usual, normalization_config=replace(usual.normalization_config, units=False)))


def verify(answer: str, gold: str) -> bool:
    """Whether ``answer`` and ``gold`` (both without box) are the same, as math-verify sees it once both are normalised."""
    from math_verify import verify as compare

    def same(left: str, right: str) -> bool:
        # "1 < x < 2" is the interval (1, 2).
        return bool(compare(parse(right), parse(left), timeout_seconds=None, allow_set_relation_comp=True))

    if answers.contradict(answer, gold):
        return False
    answer, gold = answers.normalise(answer), answers.normalise(gold)
    if sides := answers.numeric_sides(answer):
        if not same(*sides):
            return False
        answer = sides[-1]
    if same(answer, gold):
        return True
    if "\\cup" in gold and answers.union(answer) != answer:
        return same(answers.union(answer), gold)
    plain = answers.without_percent(answer), answers.without_percent(gold)
    # "4.2%" for "4.2": the percent sign is a unit when one of the two leaves it out.
    return [plain[0] == answer, plain[1] == gold].count(True) == 1 and same(*plain)


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
            [sys.executable, "-m", "prefix_rft_lab.data.rewards"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        # Importing SymPy takes seconds and must not count against the first pair.
        if self._exchange(("1", "1"), 120) is not True:
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
