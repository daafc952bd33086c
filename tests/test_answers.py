"""Answers as text: which boxes count, what a gold accepts, and what is put right before math-verify compares."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from prefix_rft_lab import answers
from prefix_rft_lab.answers import complete_gold, extract_answer, final_answers, golds, normalise, quantities


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # One box, however it is written.
        (r"so $\boxed{7}$.", ["7"]),
        (r"so $\boxed 7$.", ["7"]),
        (r"so $\boxed {17}$.", ["17"]),
        (r"\fbox{3} is not it, but \framebox{204} minutes", ["204"]),
        (r"\boxed{\boxed{3}}", ["3"]),
        (r"\boxedx{3}", []),
        # Text after the box, of any length.
        (r"$24-13=\boxed{11}$. [asy]" + "draw((0,0)--(1,1)); " * 500 + "[/asy]", ["11"]),
        # Answers that are listed.
        (r"$k = \boxed{5}$ or $k = \boxed{-3}$.", ["5", "-3"]),
        (r"$\boxed{(-2,18)}$ and $\boxed{(8,38)}$.", ["(-2,18)", "(8,38)"]),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", ["1", "2", "3"]),
        ("\\[\n\\boxed{1}, \\quad\n\\boxed{2}\n\\]", ["1", "2"]),
        (r"\boxed{3} \text{ or } \boxed{7}", ["3", "7"]),
        (r"\boxed{3}. Or maybe \boxed{7}!", ["3", "7"]),
        ("\\boxed{3}\n\n\\boxed{7}", ["3", "7"]),
        (r"\boxed{3}\boxed{7}", ["3", "7"]),
        (r"\( \boxed{10} \) km/h and the speed of the river is \( \boxed{4} \) km/h.", ["10", "4"]),
        (r"\boxed{7} or \boxed{7}", ["7"]),
        # Earlier boxes that are work, another part, or taken back.
        (r"$\log_2 4 = \boxed{2}$, so $\log_2(4^2) = \log_2(2^4) = \boxed{4}$", ["4"]),
        (
            r"The area is $\boxed{144}$. Since XY cuts it in half, the ratio is $5:7$. Our answer is $\boxed{12}$.",
            ["12"],
        ),
        (r"This angle is $\boxed{60^\circ}.$ Then the third angle is $\boxed{75^\circ}.$", [r"75^\circ"]),
        ("I get \\boxed{5}.\n\n**Final Answer**\n\\boxed{6}", ["6"]),
        # GSM8K's closing line, only where there is no box and only at the end.
        ("Half of 48 is <<48/2=24>>24.\n#### 24", ["24"]),
        ("A lot.\n#### 70,000 \n", ["70,000"]),
        ("#### 24\nis what I think", []),
        ("so \\boxed{3}\n#### 24", ["3"]),
        ("so \\boxed{3\n#### 24", []),
        ("the answer is 7", []),
        ("", []),
    ],
)
def test_final_answers(text, found):
    assert final_answers(text) == found
    assert extract_answer(text) == (", ".join(found) if found else None)


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed{1}", "\\boxed{1} or ", "\\boxed{\\boxed{1}} and", "}", "$ and ", "#### "]
)
def test_long_hostile_texts_end(unit):
    """A quadratic scan of these would take minutes."""
    text = unit * (400_000 // len(unit))
    assert extract_answer(f"{text} so it is \\boxed{{7}}") == "7"
    assert extract_answer(f"\\boxed{{7}}{text}") != ""


def test_too_long_an_answer_is_none():
    assert extract_answer("\\boxed{" + "1" * 1900 + "}") == "1" * 1900
    assert extract_answer("\\boxed{" + "1" * 2100 + "}") is None
    guesses = extract_answer(" or ".join(f"\\boxed{{{i}}}" for i in range(1000)))
    assert guesses is None or guesses.count(",") > 100, "a list of guesses stays one, however long"


@pytest.mark.parametrize(
    ("answer", "solution", "accepted"),
    [
        ("-3", r"$k = \boxed{5}$ or $k = \boxed{-3}$.", ["-3", "5, -3"]),
        ("10", r"$\boxed{10}$ and $\boxed{4}$", ["10", "10, 4"]),
        (r"\dfrac{1}{2}", r"$\boxed{1}$ and $\boxed{ \frac{1}{2} }$", [r"\dfrac{1}{2}", r"1, \frac{1}{2}"]),
        ("5, -3", r"$\boxed{5}$ or $\boxed{-3}$", ["5, -3"]),
        ("-3", r"so $\boxed{-3}$", ["-3"]),
        ("-3", r"$\boxed{5}$ or $\boxed{7}$", ["-3"]),
        ("-3", None, ["-3"]),
        ("12", r"The area is $\boxed{144}$. Half of that root is $\boxed{12}$.", ["12"]),
    ],
)
def test_a_gold_is_completed_only_by_a_list_that_holds_it(answer, solution, accepted):
    gold = complete_gold(answer, solution)
    assert golds(gold) == accepted
    assert complete_gold(gold, solution) == gold, "completing twice changes nothing"


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("7.", "7"),
        (r"7\,", "7"),
        (r"\text{(E)},", r"\text{(E)}"),
        (r"\left(1,2\right.", r"(1,2\right."),
        (r"1{,}008{,}016", "1008016"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        (r"1\,000", "1000"),
        ("12 345 678", "12345678"),
        ("1, 200", "1, 200"),
        ("(1,200)", "(1,200)"),
        ("5 7", "5 7"),
        ("1 1/2", r"1\frac{1}{2}"),
        (r"0.\overline{3}", r"\frac{3}{9}"),
        (r"1.2\overline{45}", r"\frac{1233}{990}"),
        (r"2, 3, \text{ and } 4", "2, 3, and 4"),
        ("２√３", r"2\sqrt{3}"),
        ("1.5e-3", r"1.5\cdot 10^{-3}"),
        ("10^-7", "10^{-7}"),
        ("3, 6, ..., 15", "3, 6, 9, 12, 15"),
        (r"0.1\dot{6}", r"\frac{15}{90}"),
        (r"\approx 8.24", "8.24"),
        (r"\frac\pi 2", r"\frac{\pi}{2}"),
        (r"\boxed{3}", "3"),
    ],
)
def test_normalised(answer, plain):
    assert normalise(answer) == plain


@pytest.mark.parametrize(
    ("answer", "dimensions", "size"),
    [
        (r"5\text{ cm}", {"length": 1}, Fraction(1, 100)),
        ("5 centimeters", {"length": 1}, Fraction(1, 100)),
        (r"15\mbox{ cm}^2", {"length": 2}, Fraction(1, 10_000)),
        (r"32\text{ square meters}", {"length": 2}, 1),
        (r"\$36", {"money": 1}, 1),
        (r"382 \text{ dollars}", {"money": 1}, 1),
        (r"30^{\circ}", {"angle": 1}, 1),
        ("5 km/h", {"length": 1, "time": -1}, Fraction(1000, 3600)),
        (r"\frac{11}{15}\text{ days}", {"time": 1}, 86_400),
        ("$36$", None, None),
        (r"14\text{ right triangles}", None, None),
        ("x^2", None, None),
        (r"\pi r^2 h", None, None),
    ],
)
def test_units(answer, dimensions, size):
    (quantity,) = quantities(normalise(answer))
    assert quantity.unit() == (None if dimensions is None else (tuple(sorted(dimensions.items())), size))


@pytest.mark.parametrize(
    "unit", [" ", "\\,", ",", ".", "1,", "\\text{", "(", "{", "9", "e", "'", "\\ldots", "^", "$", "-", "and "]
)
def test_long_hostile_answers_are_normalised_in_linear_time(unit):
    text = "x" + unit * (1900 // len(unit)) + "y"
    start = time.monotonic()
    answers.bare(text), quantities(normalise(text)), final_answers(f"\\boxed{{{text}}}")
    assert time.monotonic() - start < 2.0


def test_bare_answers_tell_writing_from_value():
    for same in (("4", "x=4"), ("120", r"120^\circ"), (r"10\%", "10"), ("049", "49"), (r"\tfrac32", r"\frac{3}{2}")):
        assert answers.bare(same[0]) == answers.bare(same[1]), same
    for other in (
        ("4", "5"),
        ("12", "12_5"),
        ("(1,2)", "(2,1)"),
        (r"\text{even}", r"\text{odd}"),
        ("0", "1"),
        ("-4", "4"),
    ):
        assert answers.bare(other[0]) != answers.bare(other[1]), other
