"""Rewards: boxes, equivalences, and a verifier that nothing in a response can stop or slow down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

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
        (r"\boxed 7", "7"),
        ("", None),
    ],
)
def test_boxes(text, answer):
    assert boxed_answer(text) == answer
    assert extract_answer(text) == answer


def test_a_response_of_any_length_is_read_but_not_an_answer():
    assert extract_answer(r"\boxed{7}" + " then text" * 100_000) == "7"
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


# Answer, gold, whether they are the same: what math-verify is asked, and what stands before and after it.
HARD = {
    "several answers": [
        ("5, -3", "-3, 5", 1),
        (r"5 \text{ or } -3", "-3, 5", 1),
        (r"k=5 \text{ or } k=-3", "5, -3", 1),
        (r"\pm 3", "3, -3", 1),
        (r"6, 8\text{, and }10", "6,8,10", 1),
        ("$69$,$84$", "84, 69", 1),
        (r"2, -6-4\sqrt{2}", r"$a=2$, $a=-6-4 \sqrt{2}$", 1),
        ("f(x)=x, f(x)=-x", "$f(x)=-x$,$f(x)=x$", 1),
        ("5, 7", "7", 0),
        (r"5 \text{ or } 7", "7", 0),
        (r"7\text{ or maybe }5", "7", 0),
        (r"\pm 3", "3", 0),
        ("3", r"\pm 3", 0),
        ("1,2", "1,2,3", 0),
        ("1,2,3", "1,2", 0),
        ("$5$ $7$", "7", 0),
        ("7 5", "7", 0),
        ("7 (or 5)", "7", 0),
    ],
    "units": [
        (r"5 \text{ cm}", "5", 1),
        ("5", r"5\text{ cm}", 1),
        (r"5 \mathrm{~km/h}", "5", 1),
        ("5 centimeters", r"5\text{ cm}", 1),
        (r"15\text{ square units}", "15", 1),
        (r"\$1{,}250.50", "1250.5", 1),
        (r"30\text{ degrees}", r"30^\circ", 1),
        ("8:34", r"8\!:\!34 \text{ p.m.}", 1),
        (r"5\text{ m}", r"5\text{ cm}", 0),
        (r"50 \text{ cents}", r"\$50", 0),
        (r"36^\circ", r"\$36", 0),
        (r"8:34 \text{ a.m.}", r"8:34 \text{ p.m.}", 0),
        (r"\frac{\pi}{6}", r"30^\circ", 0),
    ],
    "intervals": [
        ("[1,2]", r"\left[1,2\right]", 1),
        (r"x \in [1,2]", "[1,2]", 1),
        (r"1 \le x \le 2", "[1,2]", 1),
        ("x > 3", r"(3,\infty)", 1),
        (r"(1,\infty)\cup(-\infty,0)", r"(-\infty,0)\cup(1,\infty)", 1),
        (r"(-\infty,0) \text{ or } (1,\infty)", r"(-\infty,0)\cup(1,\infty)", 1),
        (r"(-\infty, 0) \cup\{1\}", r"$(-\infty, 0) \cup\{1\}$.", 1),
        ("(1,2)", "[1,2]", 0),
        ("[1,2)", "[1,2]", 0),
        ("1 < x < 2", "(1,2]", 0),
        ("x > 3", "x < 3", 0),
        (r"(-\infty,0)", r"(-\infty,0)\cup(1,\infty)", 0),
        (r"(-\infty,0]\cup(1,\infty)", r"(-\infty,0)\cup(1,\infty)", 0),
    ],
    "sets and tuples": [
        (r"\{5,-3\}", "-3, 5", 1),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", 1),
        ("(8,38), (-2,18)", "(-2,18), (8,38)", 1),
        (r"\{(1,2,3),(4,5,6)\}", "(4,5,6),(1,2,3)", 1),
        (r"\emptyset", r"\emptyset", 1),
        (r"\{5,-3\}", "5", 0),
        ("(2,1)", "(1,2)", 0),
        ("(8,38)", "(-2,18), (8,38)", 0),
        ("(-2,18), (8,38)", "(8,38)", 0),
        ("(3,2),(-3,2),(3,-2)", "$(3,2),(-3,2),(3,-2),(-3,-2)$", 0),
    ],
    "matrices": [
        (r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", 1),
        (r"\begin{pmatrix} 1/2 \\ -1/3 \end{pmatrix}", r"\begin{pmatrix} \frac12 \\ -\frac13 \end{pmatrix}", 1),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", 0),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}", 0),
        (
            r"\begin{pmatrix} 1 & -1 \\ 1 & 1 \end{pmatrix}",
            r"\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}",
            1,
        ),
    ],
    "fractions and numbers": [
        (r"1\frac12", "3/2", 1),
        ("1 1/2", r"\frac{3}{2}", 1),
        (r"15\frac{39}{40}", r"\frac{639}{40}", 1),
        (".5", r"\frac12", 1),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", 1),
        (r"0.1\overline{6}", r"\frac16", 1),
        (r"1\,000", "1000", 1),
        (r"11,\! 111,\! 111,\! 100", "11111111100", 1),
        ("10 000", "10000", 1),
        (r"6 \times 10^5", "600000", 1),
        ("113.", "113", 1),
        ("073", "73", 1),
        ("2+5=7", "7", 1),
        ("0.33", r"\frac13", 0),
        ("1, 200", "1200", 0),
        ("1,000", "1", 0),
        ("5=7", "7", 0),
        ("3:4", "4:3", 0),
        ("28_9", "28_8", 0),
    ],
    "percent": [
        (r"50\%", "50", 1),
        (r"50\%", "0.5", 1),
        (r"50\text{ percent}", r"50\%", 1),
        (r"4.2 \%", "4.2", 1),
        ("4.2", r"4.2\%", 1),
        ("0.5", "50", 0),
        (r"4.2\%", "4.3", 0),
        (r"5\%", "50", 0),
    ],
    "text": [
        (r"\text{(A)}", "A", 1),
        (r"\textbf{(113) }", "113", 1),
        (r"\textbf{(73)}", "073", 1),
        (r"\textbf{(073)}", "73", 1),
        (r"\mathrm{D}", "D", 1),
        ("evelyn", r"\text{Evelyn}", 1),
        (r"\text{(E)},", "E", 1),
        (r"240\text{ ways.}", "240", 1),
        (r"\text{even}", r"\text{odd}", 0),
        (r"\text{B}", "A", 0),
        (r"\text{7 or 5}", "7", 0),
    ],
    "expressions": [
        ("x^2+2x+1", "(x+1)^2", 1),
        ("f(x)=x+1", "x+1", 1),
        ("b + a + c", "a + b + c", 1),
        (r"-\ln 2", r"\ln\frac12", 1),
        ("4i+3", "3+4i", 1),
        ("q - p", "p - q", 0),
        ("3-4i", "3+4i", 0),
    ],
}


@pytest.mark.parametrize("kind", HARD)
def test_grading_where_it_is_hard(verifier, kind):
    wrong = [
        (answer, gold, score)
        for answer, gold, score in HARD[kind]
        if verifier.score(f"So the answer is $\\boxed{{{answer}}}$, as was asked.", gold) != score
    ]
    assert not wrong
    same = [gold for _, gold, _ in HARD[kind] if verifier.score(f"\\boxed{{{gold}}}", gold) != 1.0]
    assert not same


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        # Guesses do not win, in whatever order and words.
        (r"\boxed{3} or \boxed{7}", "7", 0),
        (r"\boxed{7} or \boxed{3}", "7", 0),
        (r"$\boxed{3}$. Or maybe $\boxed{7}$.", "7", 0),
        (r"\boxed{3}, \boxed{5}, \boxed{7}", "7", 0),
        ("\\boxed{3}\n\n\\boxed{7}", "7", 0),
        (r"It is \boxed{3} if the speed is constant, and otherwise \boxed{7}.", "7", 0),
        # All answers, in any order, in one box or several.
        (r"$k = \boxed{5}$ or $k = \boxed{-3}$", "5, -3", 1),
        (r"$k = \boxed{-3}$ or $k = \boxed{5}$", "5, -3", 1),
        (r"\boxed{5, -3}", "5, -3", 1),
        (r"$k = \boxed{5}$", "5, -3", 0),
        (r"$k = \boxed{5}$ or $k = \boxed{-3}$ or $k = \boxed{4}$", "5, -3", 0),
        (r"$\boxed{(-\infty,0)}$ and $\boxed{(1,\infty)}$", r"(-\infty,0)\cup(1,\infty)", 1),
        # One answer twice, and work that is boxed.
        (r"$\boxed{15\frac{39}{40}}$, or $\boxed{\frac{639}{40}}$ inches", r"\frac{639}{40}", 1),
        (r"$\log_2 4 = \boxed{2}$, so the answer is $\boxed{4}$", "4", 1),
        # A completed gold accepts the answer and the list, nothing between.
        (r"$\boxed{-3}$", r"\boxed{-3} \boxed{5, -3}", 1),
        (r"$\boxed{-3}$ and $\boxed{5}$", r"\boxed{-3} \boxed{5, -3}", 1),
        (r"$\boxed{5}$", r"\boxed{-3} \boxed{5, -3}", 0),
        (r"$\boxed{-3}$ or $\boxed{6}$", r"\boxed{-3} \boxed{5, -3}", 0),
        # GSM8K.
        ("She sold 48/2 = <<48/2=24>>24.\n#### 24", "24", 1),
        ("It costs $70,000.\n#### 70,000", "70000", 1),
        ("She sold 24 or 25.\n#### 25", "24", 0),
    ],
)
def test_responses_with_several_boxes(verifier, text, gold, score):
    assert verifier.score(text, gold) == score


# Kind: answer, gold, whether they are the same.
KINDS = {
    "typed": [
        ("3√7", r"3\sqrt{7}", 1),
        ("sqrt(7)/2", r"\frac{\sqrt{7}}{2}", 1),
        ("60°", r"60^\circ", 1),
        ("pi/6", r"\frac{\pi}{6}", 1),
        ("10^-5", "0.00001", 1),
        ("3*x**2", "3x^2", 1),
        ("**9**", "9", 1),
        (r"\boldsymbol{9}", "9", 1),
        (r"{\bf 9}", "9", 1),
        (r"\textcolor{red}{9}", "9", 1),
        (r"\text{The answer is }9", "9", 1),
        ("7e5", "700000", 1),
        ("7e5", "7e6", 0),
        (r"6.4 \times 10^{8}", "6.4e8", 1),
        ("-0.5", "-1./2", 1),
        (r"\arcsin(3/7)", "np.arcsin(3/7)", 1),
        (r"2+5\mathrm{i}", "2+5i", 1),
        (r"\frac{3\pm\sqrt{2}}{4}", r"\frac{3-\sqrt{2}}{4}, \frac{3+\sqrt{2}}{4}", 1),
        (r"0.272727\ldots", r"\frac{3}{11}", 1),
        ("(D)", r"\text{D.}", 1),
        (r"x<-1 \text{ or } x>5", r"(-\infty,-1)\cup(5,\infty)", 1),
    ],
    "words": [
        (r"2\text{ hours }15\text{ minutes}", r"2\text{ hours }45\text{ minutes}", 0),
        (r"2\text{ hours }15\text{ minutes}", r"135\text{ minutes}", 1),
        ("2", r"2\text{ hours }45\text{ minutes}", 0),
        (r"10\text{ m/s}", r"36\text{ km/h}", 1),
        (r"10\text{ m/s}", r"10\text{ km/h}", 0),
        (r"8\text{ km east}", r"8\text{ km west}", 0),
        (r"15\%\text{ decrease}", r"15\%\text{ increase}", 0),
        (r"9\text{ is not the answer}", "9", 0),
        (r"9\text{ (or 4)}", "9", 0),
        (r"4\text{ million}", "4000000", 1),
        (r"4\text{ million}", r"4\text{ billion}", 0),
        (r"4:20\text{ p.m.}", r"2:10\text{ p.m.}", 0),
        (r"7:00\text{ a.m.}", r"7\text{ a.m.}", 1),
        (r"4\text{ red and }1\text{ blue}", r"1\text{ red and }4\text{ blue}", 0),
        (r"9\text{ ways}", "9", 1),
        ("£8", "8", 1),
    ],
    "mathematics": [
        ("2^{-80}", "2^{-81}", 0),
        ("10^{-20}x", "10^{-21}x", 0),
        ("1-3^{-50}", "1-3^{-51}", 0),
        ("0.00000012", "0.00000013", 0),
        (r"\pi r", r"\pi r h", 0),
        ("7", "7xy", 0),
        ("x^2+4=0", "x^2+9=0", 0),
        ("3x^2+12=0", "x^2+4=0", 1),
        ("g(x)=3x", "g'(x)=3x", 0),
        ("6'", "6''", 0),
        (r"\{2,4,20\}", r"\{2,4,\ldots,20\}", 0),
        ("3,6,9", r"3,6,9,\ldots", 0),
        ("Leo", "Elo", 0),
        ("TTH", "THT", 0),
        ("3xy", "3yx", 1),
        (r"\sin 20^\circ", r"\cos 70^\circ", 1),
        (r"\sin 20^\circ", r"\cos 71^\circ", 0),
        (r"10^{10^{10}}", "7", 0),
        (r"4^{10^{9}}", r"2^{2\cdot 10^{9}}", 1),
        (r"4^{10^{9}}", r"2^{2\cdot 10^{9}+1}", 0),
        ("10!!!!", "8", 0),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_are_easily_confused(verifier, kind):
    slow = verifier.timeouts
    wrong = [case for case in KINDS[kind] if verifier.score(f"So it is $\\boxed{{{case[0]}}}$.", case[1]) != case[2]]
    assert not wrong
    assert verifier.timeouts == slow


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        (r"so $\boxed\frac34$.", "3/4", 1),
        (r"\boxed{8}, where I used \boxed as asked.", "8", 1),
        (r"\boxed{3} is wrong and the right value is \boxed{8}.", "8", 1),
        (r"\boxed{8}, not \boxed{3}.", "8", 1),
        (r"\boxed{3} is not the answer.", "3", 0),
        (r"\boxed{8}, or to be precise \boxed{", "8", 0),
    ],
)
def test_boxes_that_are_named_or_rejected(verifier, text, gold, score):
    assert verifier.score(text, gold) == score


TYPED_ANEW = {
    "dollars": "${}$",
    "braces": "{{{}}}",
    "bold": r"\mathbf{{{}}}",
    "markdown": "**{}**",
    "spaces": "  {} ",
    "stop": "{}.",
    "label": r"\text{{The answer is }}{}",
    "box": r"\boxed{{{}}}",
}


@pytest.mark.parametrize("way", TYPED_ANEW)
def test_what_is_right_stays_right_in_other_type(verifier, way):
    """Every pair of numbers and expressions keeps its grade when the answer is typed in another way."""
    pairs = [case for kind in ("fractions and numbers", "expressions") for case in HARD[kind]]
    moved = [
        (answer, gold)
        for answer, gold, right in pairs
        if right and verifier.score(f"\\boxed{{{TYPED_ANEW[way].format(answer)}}}", gold) != 1.0
    ]
    assert not moved


@pytest.mark.parametrize("name", ["math_train.jsonl", "gsm8k_train.jsonl"])
def test_own_answers_are_right_and_others_wrong_on_real_problems(name):
    folder = os.environ.get("PREFIX_RFT_LAB_DATA")
    if not folder:
        pytest.skip("PREFIX_RFT_LAB_DATA names no folder with math_train.jsonl and gsm8k_train.jsonl")
    from prefix_rft_lab.tools.inspection import grade

    found = grade(str(Path(folder) / name), limit=300)
    assert found.own_right == found.graded
    assert found.others_wrong == found.others


def test_handed_cases(verifier):
    folder = os.environ.get("PREFIX_RFT_LAB_CASES")
    if not folder:
        pytest.skip("PREFIX_RFT_LAB_CASES names no folder with grading.jsonl")
    cases = [json.loads(line) for line in (Path(folder) / "grading.jsonl").read_text().splitlines() if line.strip()]
    assert [c["id"] for c in cases if verifier.score(c["response"], c["gold"]) != c["expected"]] == []


def test_golds_that_cannot_be_read_are_told(verifier):
    for gold in ("7", r"\frac{1}{2}", "a + b + c", r"\text{Evelyn}", r"\boxed{-3} \boxed{5, -3}"):
        assert verifier.readable(gold), gold
    for gold in ("", r"\begin{tabular}", "?"):
        assert not verifier.readable(gold), gold


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
    assert verifier.score("\\boxed{7}" + "}" * 1_000_000, "7") == 1.0
    assert verifier.score(r"\boxed{7}", "7" * 1_000_000) == 0.0


def test_a_hang_ends_at_the_limit_is_counted_and_the_next_pair_works():
    with Verifier(time_limit=1.0) as verifier:
        assert verifier.score(r"\boxed{2/4}", "1/2") == 1.0
        first = verifier._process
        assert verifier.score(r"\boxed{\sum_{k=1}^{3000000} \sin(k^2)}", "8") == 0.0
        assert verifier.timeouts == 1
        assert first.poll() is not None, "the hanging child is gone"
        assert verifier.score(r"\boxed{3/6}", "1/2") == 1.0
        assert verifier.score(r"\boxed{\sum_{k=1}^{3000000} \sin(k^2)}", "8") == 0.0
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
