"""Rewards: math-verify behind a boundary that a hanging verification cannot cross.

math-verify parses with SymPy, which can run for minutes on a hostile expression, and its own time limit
works by a signal that reaches only a main thread. Verification therefore happens in one long-lived child
process; a request that takes too long kills the child, scores 0 and is counted, and the next request starts a new
one. Answers are cached by (answer text, gold), since rollouts of a group repeat themselves.
"""

from __future__ import annotations

import json
import logging
import select
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

ANSWER_CHARACTERS = 2000
"""Only this much of the end of a response is read for an answer; a longer answer is no answer."""


def boxed_answer(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` with balanced braces, or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for position in range(begin - 1, len(text)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return text[begin:position].strip()
    return None


def extract_answer(text: str) -> str | None:
    """The part of a response that is verified: its last box, as text; None when there is no closed box."""
    return boxed_answer(text[-ANSWER_CHARACTERS:])


def verify(answer: str, gold: str) -> bool:
    """Whether math-verify holds ``answer`` and ``gold`` (both without box) for the same."""
    from math_verify import LatexExtractionConfig, parse
    from math_verify import verify as same

    def read(text: str) -> list[Any]:
        # The child is killed from outside, so math-verify's own signal-based limits are switched off.
        config = [LatexExtractionConfig()]
        return parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None)

    return bool(same(read(gold), read(answer), timeout_seconds=None))


def _serve() -> None:
    """The child's loop: one JSON pair a line in, one JSON boolean a line out."""
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        try:
            right = verify(answer, gold)
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
        self._cache: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._process: subprocess.Popen[str] | None = None

    def score(self, text: str, gold: str) -> float:
        """1.0 if the last box of ``text`` equals ``gold``, else 0.0."""
        answer = extract_answer(text)
        if answer is None:
            return 0.0
        if answer == gold:
            return 1.0
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

    def _ask(self, pair: tuple[str, str]) -> float:
        if self._process is None or self._process.poll() is not None:
            self._start()
        right = self._exchange(pair, self.time_limit)
        if right is None:
            self.timeouts += 1
            self.close()
        return float(right or False)

    def _exchange(self, pair: tuple[str, str], seconds: float) -> bool | None:
        """The child's word on a pair; None if it took too long or died over it."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        deadline = time.monotonic() + seconds
        try:
            self._process.stdin.write(json.dumps(pair) + "\n")
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
            [sys.executable, "-m", "prefix_rft_lab.rewards"],
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
