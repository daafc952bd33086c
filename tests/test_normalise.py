"""However an answer is typed, and whatever comes after its number: many kinds, and properties that generated answers have."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefix_rft_lab import answers
from prefix_rft_lab.rewards import Verifier

# Answer, gold, whether they are the same.
CASES = [
    ("7√3", r"7\sqrt{3}", 1),
    ("∛8", "2", 1),
    ("５/８", r"\frac58", 1),
    ("3·10^4", "30000", 1),
    ("3 x 10^4", "30000", 1),
    ("−4", "-4", 1),
    ("x ∈ [2, 3)", "[2,3)", 1),
    ("½", "0.5", 1),
    ("2½", r"\frac52", 1),
    ("x²+1", "x^2+1", 1),
    ("2^(1/3)", r"\sqrt[3]{2}", 1),
    (r"\mathbf{12}", "12", 1),
    (r"\textbf{12}", "12", 1),
    (r"\large 12", "12", 1),
    ("`12`", "12", 1),
    ("_12_", "12", 1),
    ("*12*", "12", 1),
    (r"\text{Answer: } 12", "12", 1),
    ("Answer: 12", "12", 1),
    ("x = 12", "12", 1),
    ("12.", "12", 1),
    (r"12 \,", "12", 1),
    (r"0.\dot{3}", r"\frac13", 1),
    ("0.1666...", r"\frac16", 1),
    ("0.(3)", r"\frac13", 1),
    ("0.1(6)", r"\frac16", 1),
    (r"2.\overline{18}", r"\frac{24}{11}", 1),
    ("0.999...", "1", 1),
    ("0.333", r"\frac13", 0),
    (r"0.\overline{4}", r"\frac49", 1),
    (r"0.\overline{4}", "0.4", 0),
    ("1.3e-4", r"1.3 \times 10^{-4}", 1),
    ("2.5E6", "2500000", 1),
    ("1.38e-23", "1.38e-24", 0),
    ("np.sqrt(2)/2", r"\frac{\sqrt2}{2}", 1),
    ("exp(2)", "e^2", 1),
    ("ln(3)", r"\ln 3", 1),
    ("-2./3", "-2/3", 1),
    ("math.pi/4", r"\frac{\pi}{4}", 1),
    (r"2 \text{ hours } 30 \text{ minutes}", r"2.5 \text{ hours}", 1),
    (r"1\text{ ft }6\text{ in}", r"18\text{ inches}", 1),
    (r"1\text{ ft }6\text{ in}", r"1\text{ ft }8\text{ in}", 0),
    ("5 lb 3 oz", "5 lb 4 oz", 0),
    (r"60\text{ mph}", r"60\text{ km/h}", 0),
    (r"9.8\ \text{m/s}^2", r"9.8\text{ m/s}", 0),
    (r"9.8\,\mathrm{m\,s^{-2}}", r"9.8\text{ m/s}^2", 1),
    (r"3\text{ L}", r"3000\text{ mL}", 1),
    (r"5\text{ dm}", r"50\text{ cm}", 1),
    (r"3\text{ N}", r"3\text{ J}", 0),
    (r"20\text{ Hz}", "20", 1),
    (r"\$5\text{ per hour}", r"\$5\text{ per day}", 0),
    ("40 cents", r"\$0.40", 1),
    ("€12", r"\$12", 0),
    ("12 euros", "€12", 1),
    ("clockwise", "counterclockwise", 0),
    ("30° clockwise", "30° counterclockwise", 0),
    ("5 m above", "5 m below", 0),
    ("convergent", "divergent", 0),
    ("converges", "diverges", 0),
    ("increasing", "decreasing", 0),
    ("true", "false", 0),
    ("True", "true", 1),
    ("yes", "no", 0),
    ("Yes", "yes", 1),
    ("2 more", "2 fewer", 0),
    ("rational", "irrational", 0),
    ("possible", "impossible", 0),
    (r"8\%\text{ profit}", r"8\%\text{ loss}", 0),
    ("5 km northeast", "5 km northwest", 0),
    ("3 dB gain", "3 dB loss", 0),
    (r"12\text{ hot}", r"12\text{ cold}", 0),
    ("5 wins", "5 losses", 0),
    ("concave up", "concave down", 0),
    ("even", "odd", 0),
    ("at most 5", "at least 5", 0),
    ("maximum 4", "minimum 4", 0),
    (r"4 \text{ credit}", r"4\text{ debit}", 0),
    ("3 hotter", "3 colder", 0),
    ("10 taller", "10 shorter", 0),
    ("3 thousand", "3000", 1),
    ("2.5 million", "2500000", 1),
    ("7 billion", "7 million", 0),
    ("2 dozen", "24", 1),
    ("3 hundred", "300", 1),
    ("10:15 a.m.", "10:15 p.m.", 0),
    ("14:30", "2:30 p.m.", 1),
    ("2:30 PM", "2:30 pm", 1),
    ("noon", "12:00 p.m.", 1),
    ("midnight", "12:00 a.m.", 1),
    ("3:05", "3:50", 0),
    ("11:59 PM", "23:59", 1),
    ("not 8", "8", 0),
    ("8 is wrong", "8", 0),
    ("anything but 8", "8", 0),
    ("8?", "8", 0),
    ("8 or 9", "8", 0),
    ("about 8", "8", 1),
    ("8 or more", "8", 0),
    ("more than 8", "8", 0),
    ("less than 8", "8", 0),
    ("8, maybe", "8", 0),
    ("at least 8", "8", 0),
    ("2^{100}", "2^{101}", 0),
    ("3^{-40}", "3^{-41}", 0),
    ("10^{-15}", "0", 0),
    ("100!", "101!", 0),
    ("100!", r"99! \cdot 100", 1),
    ("2^{1000000}", "4^{500000}", 1),
    ("9^{9^9}", "9^{9^8}", 0),
    (r"\binom{100}{50}", r"\binom{100}{49}", 0),
    (r"\binom{10}{3}", "120", 1),
    ("1+10^{-30}", "1", 0),
    (r"\frac{1}{10^{25}}", r"\frac{1}{10^{26}}", 0),
    ("1.0000001", "1", 0),
    ("x^2+y^2+1=0", "x^2+y^2+2=0", 0),
    ("x^2=-1", "x^2=-4", 0),
    ("y=2x+1", "2x-y+1=0", 1),
    ("y=2x+1", "y=2x+2", 0),
    ("x^2+1=0", "2x^2+2=0", 1),
    (r"2\pi r", r"2\pi rh", 0),
    (r"\frac{1}{2}mv^2", r"\frac{1}{2}mv", 0),
    ("abc", "ab", 0),
    ("f'(x)", "f(x)", 0),
    ("f''", "f'", 0),
    ("y'=2y", "y=2y", 0),
    ("A^T", "A", 0),
    (r"\bar{x}", "x", 0),
    ("x_1", "x_2", 0),
    (r"\sin^2 x", r"\sin x^2", 0),
    (r"\log_2 8", "3", 1),
    (r"\log_3 8", r"\log_2 8", 0),
    ("|x|", "x", 0),
    (r"\lfloor x \rfloor", "x", 0),
    (r"\sqrt[3]{5}", r"\sqrt{5}", 0),
    ("1011_2", "1011_3", 0),
    (r"3 \mod 7", r"3 \pmod{5}", 0),
    ("C_1 e^x + C_2", "C_1 e^x", 0),
    (r"\infty", r"-\infty", 0),
    (r"x \to 0^+", r"x\to 0^-", 0),
    ("3+4i", "3-4i", 0),
    (r"5 \hat{i} + 3 \hat{j}", r"5 \hat{i} - 3 \hat{j}", 0),
    ("[1,2)", "(1,2]", 0),
    (r"\{1,2\}", "(1,2)", 0),
    ("n(n+1)/2", r"\frac{n^2+n}{2}", 1),
    ("x>2", r"x\ge 2", 0),
    (r"x\neq 3", "x=3", 0),
    ("0.12", "0.1204", 0),
    ("3.14", r"\pi", 0),
]


@pytest.fixture(scope="module")
def verifier():
    with Verifier() as found:
        yield found


@pytest.mark.parametrize("part", range(5))
def test_answers_of_every_kind(verifier, part):
    slow = verifier.timeouts
    wrong = [c for c in CASES[part::5] if verifier.score(f"So it is $\\boxed{{{c[0]}}}$.", c[1]) != c[2]]
    assert not wrong
    assert verifier.timeouts == slow


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.tuples(st.integers(-999, 999), st.integers(2, 999)).map(lambda p: f"\\frac{{{p[0]}}}{{{p[1]}}}"),
    st.tuples(st.integers(0, 999), st.integers(1, 9999)).map(lambda p: f"{p[0]}.{p[1]:04d}"),
    st.tuples(st.integers(1, 99), st.integers(2, 99)).map(lambda p: f"{p[0]}\\sqrt{{{p[1]}}}"),
    st.tuples(st.integers(1, 99), st.integers(-30, 30)).map(lambda p: f"{p[0]} \\cdot 10^{{{p[1]}}}"),
    st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda p: f"{p[0]}x^2+{p[1]}"),
)
WAYS = [
    lambda a: f"${a}$",
    lambda a: f"{{{a}}}",
    lambda a: f" {a} .",
    lambda a: rf"\mathbf{{{a}}}",
    lambda a: rf"\boxed{{{a}}}",
    lambda a: rf"\text{{The answer is }}{a}",
    lambda a: rf"\displaystyle {a}",
    lambda a: a.replace(r"\frac", r"\dfrac"),
    lambda a: a.replace(r"\cdot", "×"),
    lambda a: a.replace("-", "−"),
    lambda a: a.replace(" ", "\u2009"),
    lambda a: a.replace("x^2", "x²"),
    lambda a: a.replace(r"\sqrt", "√") if r"\sqrt" in a else a,
]
"""Ways to type an answer that change nothing."""
USUAL = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@USUAL
@given(number=NUMBERS, ways=st.lists(st.sampled_from(WAYS), min_size=1, max_size=3, unique=True))
def test_what_is_right_stays_right_however_it_is_typed(verifier, number, ways):
    typed = number
    for way in ways:
        typed = way(typed)
    assert verifier.score(f"\\boxed{{{typed}}}", number) == 1.0
    assert verifier.score(f"\\boxed{{{number}}}", typed) == 1.0


@USUAL
@given(number=st.integers(-999, 999), other=st.integers(-999, 999), way=st.sampled_from(WAYS))
def test_what_is_wrong_stays_wrong_however_it_is_typed(verifier, number, other, way):
    assert verifier.score(f"\\boxed{{{way(str(number))}}}", str(other)) == float(number == other)


@USUAL
@given(number=NUMBERS)
def test_normalising_twice_changes_nothing(number):
    once = answers.normalise(number)
    assert answers.normalise(once) == once


@settings(USUAL, max_examples=300)
@given(
    st.text(
        st.sampled_from(list("0123456789 .,;:{}()[]\\^_$%'/-+=<>|&~abextπ√°½²'\x00\u202e")) | st.characters(),
        max_size=80,
    )
)
def test_any_text_is_read_fast_and_without_an_exception(text):
    long = text * (1900 // max(len(text), 1))
    start = time.monotonic()
    for one in (text, long):
        answers.final_answers(one), answers.golds(one), answers.bare(one), answers.complete_gold(one, one)
        answers.quantities(answers.normalise(one)), answers.clock(one), answers.numeric_sides(one)
    assert time.monotonic() - start < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math500.jsonl", "gsm8k_train.jsonl", "math_train.jsonl"])
def test_anothers_answer_stays_wrong_on_real_problems(verifier, name):
    """Each answer against its own gold, and against that of the next problem with another one."""
    folder = os.environ.get("PREFIX_RFT_LAB_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"PREFIX_RFT_LAB_DATA names no folder with {name}")
    rows = [json.loads(line) for line in (Path(folder) / name).read_text().split("\n") if line][:600]
    golds = [str(row["answer"]).rpartition("####")[2].strip() for row in rows]
    bare = [answers.bare(gold) for gold in golds]
    assert [g for g in golds if verifier.score(f"\\boxed{{{g}}}", g) != 1.0] == []
    pairs = [(g, o) for g, o, b, c in zip(golds, golds[1:], bare, bare[1:], strict=False) if b != c]
    assert [(g, o) for g, o in pairs if verifier.score(f"\\boxed{{{o}}}", g) != 0.0] == []
