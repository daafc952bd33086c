"""Rewards: boxes, equivalences, and a verifier that nothing in a response can stop or slow down."""

from __future__ import annotations

import pytest

from prefix_rft_lab import rewards
from prefix_rft_lab.rewards import Verifier, boxed_answer, extract_answer


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as found:
        yield found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{1} then \boxed{2} end", "2"),
        (r"\boxed{1} then \boxed{2", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{\boxed{3}}", "3"),
        ("no box, 7", None),
        (r"\boxed 7", None),
        ("", None),
    ],
)
def test_boxes(text, answer):
    assert boxed_answer(text) == answer
    assert extract_answer(text) == answer


def test_only_the_end_of_a_response_is_read():
    assert extract_answer(r"\boxed{7}" + " " * rewards.ANSWER_CHARACTERS) is None
    assert extract_answer("x" * 1_000_000 + r"\boxed{7}") == "7"
    assert extract_answer(r"\boxed{" + "1" * 1_000_000 + "}") is None


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("7", "7", 1.0),
        ("1/2", "0.5", 1.0),
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"\dfrac12", "1/2", 1.0),
        ("1,000", "1000", 1.0),
        ("72.0", "72", 1.0),
        ("(1, 2)", "(1,2)", 1.0),
        ("x+1", "1+x", 1.0),
        ("7", "8", 0.0),
        ("(2, 1)", "(1, 2)", 0.0),
        ("-7", "7", 0.0),
        ("", "7", 0.0),
        ("gibberish", "7", 0.0),
    ],
)
def test_equivalence(verifier, answer, gold, score):
    assert verifier.score(f"so \\boxed{{{answer}}}", gold) == score


def test_no_box_scores_zero_even_if_the_number_is_there(verifier):
    assert verifier.score("the answer is 7", "7") == 0.0
    assert verifier.score(r"\boxed{7", "7") == 0.0


HOSTILE = [
    "a\nb",
    "7\n",
    "\x00",
    "7\x00",
    '"',
    "'; import os",
    "\\",
    "\\n",
    "\u2028",
    "\ud800",
    "😀" * 50,
    "}{",
    "\\frac{1}{0}",
    "\\sqrt{",
    "$$$$",
    "__import__('os').system('true')",
    "(" * 20 + ")" * 20,
]


def test_hostile_answers_neither_stop_the_child_nor_mix_up_replies(verifier):
    verifier.score(r"\boxed{1/2}", "0.25")
    child = verifier._process
    for text in HOSTILE:
        verifier.score(f"\\boxed{{{text}}}", "8")
        assert verifier._exchange(("0.5", "1/2"), 60) is True, repr(text)
        assert verifier._exchange(("0.5", "1/3"), 60) is False, repr(text)
    assert verifier._process is child, "none of them took the child down"
    assert verifier.score(f"{'x' * 1_000_000}\\boxed{{2/4}}", "1/2") == 1.0
    assert verifier.score("\\boxed{7}" + "}" * 1_000_000, "7") == 0.0
    assert verifier.score(r"\boxed{7}", "7" * 1_000_000) == 0.0


def test_a_hang_ends_at_the_limit_is_counted_and_the_next_pair_works():
    with Verifier(time_limit=1.0) as verifier:
        assert verifier.score(r"\boxed{2/4}", "1/2") == 1.0
        first = verifier._process
        assert verifier.score(r"\boxed{10!!!!}", "8") == 0.0
        assert verifier.timeouts == 1
        assert first.poll() is not None, "the hanging child is gone"
        assert verifier.score(r"\boxed{3/6}", "1/2") == 1.0
        assert verifier.score(r"\boxed{10!!!!}", "8") == 0.0
        assert verifier.timeouts == 1, "the second time the cache answers"


def test_cache_asks_the_child_once(monkeypatch):
    asked = []

    def exchange(self, pair, seconds):
        asked.append(pair)
        return pair[0] == "2/4"

    monkeypatch.setattr(Verifier, "_start", lambda self: None)
    monkeypatch.setattr(Verifier, "_exchange", exchange)
    verifier = Verifier(cache_size=2)
    texts = [r"\boxed{2/4}", r"x \boxed{2/4}", r"\boxed{9}", r"\boxed{2/4}"]
    assert verifier.score_all(texts, ["1/2"] * 4) == [1, 1, 0, 1]
    assert asked == [("2/4", "1/2"), ("9", "1/2")]
    verifier.score(r"\boxed{2/4}", "0.5")
    assert asked[-1] == ("2/4", "0.5"), "another gold is another pair"
    # Two pairs are remembered, so the least recently used, ("9", "1/2"), is forgotten.
    verifier.score(r"\boxed{2/4}", "1/2")
    assert len(asked) == 3
    verifier.score(r"\boxed{9}", "1/2")
    assert len(asked) == 4
    assert verifier.score(r"\boxed{1/2}", "1/2") == 1.0
    assert len(asked) == 4, "equal texts need no child"


def test_a_child_killed_between_calls_is_replaced(verifier):
    assert verifier.score(r"\boxed{4/8}", "1/2") == 1.0
    before, timeouts = verifier._process, verifier.timeouts
    before.kill()
    before.wait()
    assert verifier.score(r"\boxed{5/10}", "1/2") == 1.0
    assert verifier._process is not before
    assert verifier.timeouts == timeouts


def test_a_child_that_dies_over_a_pair_scores_zero(verifier, monkeypatch):
    verifier.score(r"\boxed{6/12}", "1/2")
    dying = verifier._process
    monkeypatch.setattr(dying, "poll", lambda: None)
    dying.kill()
    dying.wait()
    assert verifier.score(r"\boxed{7/14}", "1/2") == 0.0
    assert verifier.score(r"\boxed{8/16}", "1/2") == 1.0


def test_close_twice_and_before_the_first_pair():
    verifier = Verifier()
    verifier.close()
    verifier.close()
    assert verifier.score(r"\boxed{7}", "7") == 1.0, "equal texts start no child"
    assert verifier._process is None
