"""Answers as text: which part of a response is its final answer, and what a gold answer accepts.

Everything here is text in, text out, and linear in its input; whether two answers are the same is math-verify's
business (:mod:`prefix_rft_lab.data.rewards`). Strictness comes first: a response states *one* answer, which is its last box
together with the boxes that it is listed with ("3 or 7"). So a list of guesses is a list, and no list equals a
single gold answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import prod

ANSWER_CHARACTERS = 2000
"""A longer answer is no answer; text before and after it may have any length."""

_BOX = re.compile(
    r"\\(?:boxed|fbox|framebox)(?![A-Za-z])[ \t]{0,20}\n?[ \t]{0,20}(?:(?P<open>\{)"
    r"|(?P<bare>\\[dt]?frac ?(?:\{[^{}]{1,99}\}|\w) ?(?:\{[^{}]{1,99}\}|\w)|\\sqrt ?(?:\{[^{}]{1,99}\}|\w)|\\pi(?![a-z])"
    r"|[-+]?\d{1,99}(?:[./]\d{1,99}){0,9}|[A-Za-z](?=[ \t]*(?:[.$\n]|\\[)\]]|\Z))))?"
)
_GSM8K = re.compile(r"^####[ \t]*(\S[^\n]*)\Z", re.MULTILINE)
_GAP_CHARACTERS = 160
_LISTING = frozenset(
    [
        "and",
        "or",
        "also",
        "either",
        "both",
        "maybe",
        "perhaps",
        "possibly",
        "alternatively",
        "else",
        "otherwise",
        "even",
        "just",
    ]
)
_DERIVING = frozenset(
    ["so", "thus", "hence", "then", "therefore", "because", "since", "gives", "giving", "implies", "means"]
)
_REJECTING = frozenset(
    ["not", "wrong", "incorrect", "false", "mistaken", "mistake", "rejected", "isn't", "wasn't", "discarded"]
)
_REJECTED_AFTER = re.compile(
    r"[\s$.,)\\\]]{0,9}(?:(?:which|that|it|this|but|and|,) ){0,3}(?:"
    r"(?:is|was) (?:clearly |obviously |therefore )?(?:wrong|incorrect|false|mistaken)(?![a-z])"
    r"|(?:is not|isn't|was not|wasn't|cannot be|can't be) (?:the (?:right |correct |final )?(?:answer|value|result)|right|correct)(?![a-z]))"
)
_REJECTED_BEFORE = re.compile(
    r"(?:\bnot|\brather than|\binstead of|n't|\bnever)(?: equal to| simply| just)?[\s$:(\\]{0,9}\Z"
)
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[()\[\],;:! ]|\\q?quad\b|\\\\|[$~&*{}]")
_LABEL = re.compile(r"\b[A-Za-z]\w{0,2}(?:\([a-z]\))?\s*(?:=|\\in\b|:)")


def boxed_answer(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` with balanced braces, or None.

    >>> boxed_answer("The answer is $\\\\boxed{12}$.")
    '12'
    """
    boxes = _boxes(text)
    return boxes[-1][2] if boxes else None


def final_answers(text: str) -> list[str]:
    """The boxes that state the final answer, in order and each once; empty when there is none.

    These are the last box and those before it that it is listed with: between them lies nothing but "and", "or",
    punctuation and labels such as ``k =``, or the rest of one sentence that says "and" or "or". Earlier boxes are
    work, or answers that were taken back. Without any box a closing line ``#### 72``, as GSM8K writes it, counts.
    """
    boxes = [box for box in _boxes(text) if not _rejected(text, box)]
    if not boxes:
        closing = (
            None
            if any(match["open"] or match["bare"] for match in _BOX.finditer(text))
            else _GSM8K.search(text[-ANSWER_CHARACTERS:].rstrip())
        )
        return [closing[1]] if closing else []
    found = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if box[1] > found[0][0] or not _lists(text[box[1] : found[0][0]]):
            break
        found.insert(0, box)
    return list(dict.fromkeys(content for _, _, content in found))


def extract_answer(text: str) -> str | None:
    """What a response answers, as one text: its final boxes with commas between them; None when there is none.

    >>> extract_answer("So $x = \\\\boxed{3}$ or $x = \\\\boxed{-1}$.")
    '3, -1'
    >>> extract_answer("I do not know.") is None
    True
    """
    return joined(final_answers(text))


def joined(answers: Sequence[str]) -> str | None:
    """Listed answers as one; None for none, or for more text than an answer has."""
    text = ", ".join(answers)
    return text if answers and len(text) <= ANSWER_CHARACTERS else None


def complete_gold(answer: str, solution: str | None) -> str:
    """The gold answer, completed where it is one of several that the reference solution gives.

    Collections keep one box of a solution as its answer. Where the solution lists several ("``$k = \\boxed{5}$ or
    $k = \\boxed{-3}$``", answer ``-3``), the answer alone and the whole list are accepted, nothing else.
    """
    answers = final_answers(solution or "")
    if len(answers) < 2 or _squeeze(answer) not in map(_squeeze, answers):
        return answer
    return f"\\boxed{{{answer}}} \\boxed{{{', '.join(answers)}}}"


def golds(gold: str) -> list[str]:
    """What a gold answer accepts: its boxes if it has any, as :func:`complete_gold` writes them, else itself."""
    return [content for _, _, content in _boxes(gold)] or [gold]


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of the boxes at the end of a text; none if its last box is not closed or too long.

    Only as many are read, from the end, as could belong to a final answer, so that the time stays linear.
    """
    found: list[tuple[int, int, str]] = []
    for match in reversed(list(_BOX.finditer(text))):
        if found and found[0][0] - match.end() > ANSWER_CHARACTERS:
            break
        if not match["open"] and not match["bare"]:
            continue  # The command is only named.
        box = _content(text, match)
        if box is None:
            break
        found.insert(0, (match.start(), *box))
        if found[-1][1] - found[0][0] > 2 * ANSWER_CHARACTERS:
            break
    named = ("", "...", r"\\ldots", r"\\dots", r"\\cdots")  # "in \\boxed{}, as asked"
    return [box for box in found if box[2] not in named] or found


def _rejected(text: str, box: tuple[int, int, str]) -> bool:
    """Whether the text around a box says that it is not the answer."""
    before = _REJECTED_BEFORE.search(text[max(0, box[0] - 40) : box[0]])
    return bool(before or _REJECTED_AFTER.match(text[box[1] : box[1] + 60]))


def _content(text: str, match: re.Match[str]) -> tuple[int, str] | None:
    if match["bare"]:
        return match.end(), match["bare"]
    if not match["open"]:
        return None
    depth = 0
    for position in range(match.end() - 1, min(len(text), match.end() + ANSWER_CHARACTERS)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return position + 1, text[match.end() : position].strip()
    return None


def _lists(gap: str) -> bool:
    """Whether the text between two boxes lists them, rather than leading from one to the other."""
    if len(gap) > _GAP_CHARACTERS:
        return False
    plain = _LABEL.sub(" ", _SPACING.sub(" ", _WRAPPED.sub(r" \1 ", gap)))
    words = {word.lower() for word in re.findall(r"[^\s.,;:()?!-]+", plain)}
    if words & _REJECTING:
        return False
    if words <= _LISTING:
        return True
    one_sentence = not re.search(r"[.?!:;]\s|\n\s*\n|=", plain.strip())
    return one_sentence and bool(words & {"and", "or"}) and not words & _DERIVING


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text).replace("\\dfrac", "\\frac").rstrip(".")


# ---------------------------------------------------------------------- how an answer is typed

_GREEK = {c: f"\\{unicodedata.name(c).split()[-1].lower()} " for c in "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩ"}
_SIGNS = str.maketrans(
    {
        **{c: t for c, t in _GREEK.items() if c not in "ΓΔΘΛΞΠΣΦΨΩ"},
        **{c: "\\" + t[1:].capitalize() for c, t in _GREEK.items() if c in "ΓΔΘΛΞΠΣΦΨΩ"},
        **dict.fromkeys("−–—‐‑‒﹣－", "-"),
        **dict.fromkeys("°º˚", r"^\circ "),
        **dict.fromkeys("·⋅∙•∗", r"\cdot "),
        **dict.fromkeys("’‘′´`ʹ", "'"),
        **dict.fromkeys('″”“"', "''"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **{
            "×": r"\cdot ",
            "÷": "/",
            "∕": "/",
            "⁄": "/",
            "π": r"\pi ",
            "ϕ": r"\phi ",
            "λ": r"\lambda ",
            "∞": r"\infty ",
        },
        **{
            "√": r"\sqrt ",
            "∛": r"\sqrt[3]",
            "∜": r"\sqrt[4]",
            "≤": r"\le ",
            "⩽": r"\le ",
            "≥": r"\ge ",
            "⩾": r"\ge ",
            "≠": r"\ne ",
            "±": r"\pm ",
            "∓": r"\mp ",
        },
        **{
            "≈": r"\approx ",
            "∪": r"\cup ",
            "∩": r"\cap ",
            "∅": r"\emptyset ",
            "∈": r"\in ",
            "∨": r"\lor ",
            "∧": r"\land ",
        },
        **{"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}"},
        **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": "(", "⟩": ")", "∣": "|"},
    }
)
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋"

_FUNCTIONS = "arcsin|arccos|arctan|sinh?|cosh?|tanh?|cot|sec|csc|ln|log|exp"
_NAMES = "alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|omega|phi|rho|pi|infty"
_TRIG = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_CIRC = r"\^ ?(?:\{ ?(?:\\circ|o|\\degree) ?\}|\\circ(?![A-Za-z])|\\degree|o(?![A-Za-z]))"

_CURRENCIES = {"€": "euro", "£": "sterling", "¥": "yen", "₹": "rupee", "₽": "rouble", "₩": "won"}

_Replacement = str | Callable[[re.Match[str]], str]
_ROWS: list[tuple[str, _Replacement, str]] = [
    # Pattern, replacement, why. In this order; runs of spaces are one space by now, so that nothing backtracks.
    (r"\\(?:dfrac|tfrac|cfrac)(?![a-z])", r"\\frac", "sizes of a fraction"),
    (r"\\(?:text|math)?color ?\{[^{}]*\}", "", "a colour"),
    (r"\\(?:bold(?:symbol)?|bm|pmb|emph|underline|math(?:bf|it|sf|tt|normal)) ?(?=[\\{\dA-Za-z])", "", "a font"),
    (
        r"\\(?:bf|it|rm|sf|tt|em|(?:display|text|script)style|bfseries|[lL]arge|LARGE|[hH]uge|small)(?![A-Za-z])",
        "",
        "a font or size",
    ),
    (r"\\(?:math|operator)(?:rm|name) ?\{ ?([ei]) ?\}", r"\1", "upright e and i"),
    (
        r"\\(?:mbox|hbox|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathop|operatorname\*?) ?\{",
        r"\\text{",
        "words",
    ),
    (r"\\text \{", r"\\text{", "words"),
    (r"\\text\{ ?,? ?(and|or) ?,? ?\}", r" \1 ", "lists"),
    (r"\\text\{([^A-Za-z{}]*)\}", r"\1", "text without a letter"),
    (r"\\text\{([^{}]*(?<![\w^^.-])-?\d[^{}]*)\}", r" \1 ", "text with a number in it"),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])(?!\.)", "", "sizes of brackets"),
    (r"(?<!\\)\\!", "", "spacing"),
    (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-z])|~", " ", "spacing"),
    (r"\\phantom ?(?:\{[^{}]*\}|\S)", "", "nothing visible"),
    (r"\A ?\\(?:approx|sim)(?![a-z]) ?", "", "about"),
    (r"\\(?:times|ast)(?![A-Za-z])", r"\\cdot", "one sign of multiplication"),
    (r"\\(?:varnothing|O(?![a-z]))|\\\{ ?\\\}", r"\\emptyset", "the empty set"),
    (r"\\(?:leqslant|leqq|leq)(?![a-z])|<=", r"\\le ", "comparisons"),
    (r"\\(?:geqslant|geqq|geq)(?![a-z])|>=", r"\\ge ", "comparisons"),
    (r"\\neq(?![a-z])|!=", r"\\ne ", "comparisons"),
    (r"\\(?:vee)(?![a-z])", r"\\lor", "or"),
    (r"\\(?:wedge)(?![a-z])", r"\\land", "and"),
    (r"\\sqrt ?\[(\d)\] ?(\d{1,30})(?![\d.])", r"\\sqrt[\1]{\2}", "roots of a number"),
    (r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\cdot ", "multiplication in plain text"),
    (r" or (more|less|fewer|greater)(?![A-Za-z])", r"\\text{ than or \1 }", "a bound"),
    (r"(?<![A-Za-z\\])(?:np|numpy|math|sympy|sp)\.(?=[a-z\\])", "", "Python's modules"),
    (r"(?<![A-Za-z\\])a(sin|cos|tan)(?=\()", r"arc\1", "Python's names"),
    (r"\*\*", "^", "Python's power"),
    (r"\*", r"\\cdot ", "multiplication in plain text"),
    (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?= ?[\\({{^]| ?\d)", r"\\\1", "functions in plain text"),
    (rf"(?<![A-Za-z\\])({_NAMES})(?![A-Za-z])", r"\\\1 ", "names in plain text"),
    (r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty ", "infinity in plain text"),
    (
        r"(?<![A-Za-z0-9\\_.])(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})[eE]([-+]?\d{1,4})(?![\d_A-Za-z.])",
        r"\1\\cdot 10^{\2}",
        "e-notation",
    ),
    (r"(?<=\d)\.(?= ?[/)*}]|\Z)", "", "a point without decimals"),
    (_CIRC + r" ?(?:\\text\{ ?)?([CF])(?![A-Za-z]) ?\}?", r"\\text{ celsius\1}", "temperatures"),
    (_CIRC, r"^\\circ ", "degrees"),
    (r"\^ ?([-+]?\d+)(?![\d.])", r"^{\1}", "a power in plain text"),
    (r"\^ ?\{? ?((?:\\prime ?)+)\}?", lambda m: "'" * m[1].count("prime"), "primes"),
    (r"\\(?:[lcd]?dots[cmbio]?)(?![a-z])|\.\.\.+", r"\\ldots ", "dots"),
    (r"\\text\{([^{}]*)\} ?\^ ?\{? ?(-?\d) ?\}?", r"\\text{\1^\2}", "powers of a unit"),
    (r"\\frac ?\{ ?\\text\{([^{}]*)\} ?\} ?\{ ?\\text\{([^{}]*)\} ?\}", r"\\text{\1/\2}", "rates"),
    (r"\} ?/ ?\\text\{", "/", "rates"),
    (r"(?<=\d) ?''", r"\\text{ inch}", "inches"),
    (r"(?<=\d) ?'", r"\\text{ foot}", "feet"),
    (r"(?<=[A-Za-z])('+)(?![A-Za-z'])", lambda m: f"_{{{'p' * len(m[1])}}}", "a derivative is another function"),
    (r"\\?([€£¥₹₽₩])|\\(euro|pounds)(?![a-z])", lambda m: rf"\text{{ {_CURRENCIES.get(m[1], m[2])} }}", "money"),
    (r"\\\$", r"\\text{ dollar }", "money"),
    (r"\\?%", r"\\text{ percent }", "percent"),
    (r"\( ?(?:or|and) ([^()]*)\)", r", \1", "a second answer in brackets"),
    (
        r"\A\\\{ ?[A-Za-z](?: ?\\in ?\\mathbb ?\{?R\}?)? ?(?:\\mid|\\vert|\||:|\\colon)(?![a-z])(.*(?:[<>]|\\[lg]e(?![a-z])|\\ne(?![a-z])).*)\\\}\Z",
        r"\1",
        "a set by its condition",
    ),
]
"""How an answer may be typed, and the one way in which it is compared."""
_TYPED = [(re.compile(pattern), replacement) for pattern, replacement, _ in _ROWS]

_THOUSANDS = re.compile(r"(?<![\d.,\\])\d{1,3}(?:(?:,\\! ?|\\[,! ]|\{,\}|~)\d{3})+(?!\d)")
_SPACED_NUMBER = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_MIXED_NUMBER = re.compile(r"([-+]?\d+) +(\d+)/(\d+)")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar|dot) ?\{? ?(\d+) ?\}?|\((\d+)\))")
_RECURRING = re.compile(r"(?<![\d.])(\d{0,30})\.(\d{1,60}) ?\\ldots")
_SHORT_FRACTION = re.compile(r"\\frac ?(\\[a-zA-Z]+) ?(\d)")
_PROGRESSION = re.compile(r"(?<![\d.])(-?\d{1,6}(?: ?, ?-?\d{1,6}){1,30}) ?, ?\\ldots ?(?:, ?(-?\d{1,6})(?![\d.]))?")
_CHOICE = re.compile(r"\(? ?(?:\\text\{ ?)?\(? ?([A-Z]) ?[).:]? ?\}? ?[).]?")
_NAME = re.compile(r"[A-Z][A-Za-z]+")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-z])")
_GROUPS = re.compile(r"(?<=[)\]}]) ?,? ?(?=[(\[]|\\\{)")


def normalise(answer: str) -> str:
    """An answer as it is compared: one way of typing, one space at most, words in ``\\text{}``."""
    text = " ".join(answer.translate(_SIGNS).split())
    text = re.sub(f"[{_RAISED}]+", lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = re.sub(f"[{_LOWERED}]+", lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = re.sub(
        "[½⅓⅔¼¾⅕-⅞]", lambda m: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m[0]).split("⁄")), text
    )
    text = " ".join(unicodedata.normalize("NFKC", text).translate(_SIGNS).split())
    text = _unwrap(re.sub(r"(?<=[*$})\]_ ])\.\Z", "", text))
    if re.match(r"[-+]?\$ ?\d", text) and text.count("$") == 1:
        text = text.replace("$", r"\$")
    text = re.sub(r"(?<!\\)\$", "", text)
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    if choice := _CHOICE.fullmatch(text):
        return rf"\text{{{choice[1]}}}"
    text = _rooted(text)
    for pattern, replacement in _TYPED:
        text = pattern.sub(replacement, text)
    text = re.sub(_CIRC, r"\\text{ degree }" if not _TRIG.search(text) else r"^\\circ ", text)
    text = re.sub(r"(\d+(?:\.\d+)?|[a-z]|\\[a-z]+) ?\^\\circ", r"(\1 \\cdot \\frac{\\pi}{180})", text)
    text = re.sub(r"\\text\{ degree \}(?= ?[-+*/)}]| ?\\cdot)", "", text)
    text = _unwrap(_MARKED.sub(_marked, _closed(" ".join(text.split()))))
    text = _REPEATING.sub(lambda m: _fraction(m[1], m[2], m[3] or m[4]), _RECURRING.sub(_recurring, text))
    text = _PROGRESSION.sub(_terms, _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text))
    text = text.replace(r"\ldots", "D_{dots}")
    if _RELATION.search(text) and all(map(_RELATION.search, re.split(r"(?<![A-Za-z])(?:and|or)(?![A-Za-z])", text))):
        text = re.sub(r" ?(?<![A-Za-z])or(?![A-Za-z])", r" \\lor", text)
        text = re.sub(r" ?(?<![A-Za-z])and(?![A-Za-z])", r" \\land", text)
    parts = _elements(text := _one_number(_closed(text)))
    signed = [_signed(part) for part in parts]
    return text if signed == parts else ", ".join(signed)


def bare(answer: str) -> str:
    """What is left of an answer without units, signs, labels, braces and spaces: equal for equal answers written alike."""
    text = _LABEL.sub("", re.sub(_CIRC, "", normalise(answer)), count=1)
    text = re.sub(r"\\text\{ (?:degree|percent|dollar) ?\}|\\frac|[{}$% ]", "", text)
    text = re.sub(r"(?<=[\d)])\\text.*|\\text(?=[a-z]+\Z)", "", text).lstrip("0")
    return text or _squeeze(answer)


def _closed(text: str) -> str:
    """Without the spacing and stops at its ends."""
    text = text.strip(" ,;:")
    while text.endswith(".") and not text.endswith("\\right."):
        text = text[:-1].rstrip(" ,;:")
    return text


def _unwrap(text: str) -> str:
    """Without what encloses all of it: braces, dollar signs, bold type, another box."""
    while True:
        inner = text.strip()
        for left, right in (
            ("**", "**"),
            ("$$", "$$"),
            ("$", "$"),
            (r"\(", r"\)"),
            (r"\[", r"\]"),
            ("__", "__"),
            ("*", "*"),
            ("_", "_"),
        ):
            if (
                len(inner) > len(left + right)
                and inner.startswith(left)
                and inner.endswith(right)
                and left not in inner[len(left) : -len(right)]
            ):
                inner = inner[len(left) : -len(right)].strip()
        if (match := _BOX.match(inner)) and (box := _content(inner, match)) and box[0] == len(inner):
            inner = box[1]
        elif inner.startswith("{") and _closing(inner, 0) == len(inner) - 1:
            inner = inner[1:-1]
        if inner == text:
            return text
        text = inner


def _closing(text: str, start: int) -> int:
    """Where the bracket at ``start`` is closed; -1 if it is not."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "{(") - (text[position] in "})")
        if depth == 0:
            return position
    return -1


def _rooted(text: str) -> str:
    """Arguments of roots and powers in braces: ``sqrt(2)``, ``√5`` and ``x^(1/2)``."""
    text = re.sub(r"(?<![A-Za-z])\\?sqrt ?(?=[\d(])", lambda m: r"\sqrt ", text)
    text = re.sub(r"\\sqrt (\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    for opening in (r"\sqrt (", "^(", "^ ("):
        while (start := text.find(opening)) >= 0:
            bracket = start + len(opening) - 1
            end = _closing(text, bracket)
            if end < 0:
                break
            text = text[:start] + opening[:-1].rstrip() + "{" + text[bracket + 1 : end] + "}" + text[end + 1 :]
    return text


def _elements(text: str) -> list[str]:
    """The parts of a text between its commas outside of all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _signed(element: str) -> str:
    """An element with plus-minus as the two that it stands for; a name as one word, not as a product of letters."""
    if _NAME.fullmatch(element):
        return rf"\text{{{element}}}"
    if "\\pm" not in element and "\\mp" not in element:
        return element
    signs = [("+", "-"), ("-", "+")]
    return ", ".join(
        re.sub(r"\\pm(?![a-z]) ?", p, re.sub(r"\\mp(?![a-z]) ?", m, element)).lstrip("+") for p, m in signs
    )


def _fraction(whole: str, lead: str, period: str) -> str:
    """A repeating decimal ``a.b\\overline{c}`` as the fraction ``(abc - ab) / (9..90..0)``."""
    top = int((whole or "0") + lead + period) - int((whole or "0") + lead)
    return rf"\frac{{{top}}}{{{'9' * len(period)}{'0' * len(lead)}}}"


def _recurring(match: re.Match[str]) -> str:
    """``0.333...``: decimals that end in one period three times, or in one of several digits twice."""
    digits = match[2]
    for n in range(1, len(digits) // 2 + 1):
        times = 3 if n == 1 else 2
        if digits.endswith(digits[-n:] * times):
            return _fraction(match[1], digits[: -n * times], digits[-n:])
    return match[0]


def _terms(match: re.Match[str]) -> str:
    """All terms of an arithmetic progression with dots, or its first two if it does not end."""
    first = [int(n) for n in match[1].split(",")]
    step, last = first[1] - first[0], match[2]
    if step == 0 or any(b - a != step for a, b in pairwise(first)):
        return match[0]
    if last is None:
        return f"{first[0]}, {first[1]}, \\ldots "
    count, rest = divmod(int(last) - first[0], step)
    if rest or not len(first) <= count < 1000:
        return match[0]
    return ", ".join(str(first[0] + i * step) for i in range(count + 1))


# ---------------------------------------------------------------------- quantities: numbers and the words with them

_UNITS = {
    name: (dimension, Fraction(factor))
    for dimension, units in {
        "length": "1/1000 mm millimeter millimetre|1/100 cm centimeter centimetre|1 m meter metre|1000 km kilometer kilometre|1/10 dm decimeter decimetre"
        "|254/10000 in inch inche|3048/10000 ft foot feet|9144/10000 yd yard|1609344/1000 mi mile",
        "time": "1/1000 ms millisecond|1 s sec second|60 min minute|3600 h hr hour|86400 day|604800 week",
        "month": "1 month|12 yr year",
        "mass": "1/1000 mg milligram|1 g gram|1000 kg kilogram|1000000 tonne|45359237/100000 lb pound|28349523125/1000000000 oz ounce",
        "money": "1 dollar usd|1/100 cent",
        "euro": "1 euro eur",
        "sterling": "1 sterling gbp",
        "yen": "1 yen",
        "rupee": "1 rupee rs",
        "angle": "1 deg degree",
        "radian": "1 rad radian",
        "celsius": "1 celsiusc celsius",
        "fahrenheit": "1 celsiusf fahrenheit",
        "volume": "1/1000 ml milliliter millilitre|1 l liter litre|3785411784/1000000000 gal gallon",
        "percent": "1 percent percentage",
        "power": "1 watt|1000 kw kilowatt",
        "energy": "1 joule|1000 kj kilojoule|3600000 kwh",
        "force": "1 newton|1000 kn kilonewton",
        "frequency": "1 hz hertz|1000 khz kilohertz",
        "voltage": "1 volt|1000 kv kilovolt",
    }.items()
    for unit in units.split("|")
    for factor, *names in [unit.split()]
    for name in names
}
_RATES = {"mph": "mile/hour", "kmph": "km/hour", "kph": "km/hour", "kmh": "km/hour", "fps": "foot/second"}
_MAGNITUDES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_EXCLUSIVE = [
    frozenset(group.split())
    for group in (
        "north south east west northeast northwest southeast southwest northward southward eastward westward",
        "increase decrease increased decreased increasing decreasing more less fewer gain loss profit rise fall up down"
        " higher lower greater smaller faster slower",
        "left right",
        "hot cold hotter colder warmer cooler warm cool",
        "wins losses draws",
        "credit debit",
        "taller shorter longer",
        "heavier lighter",
        "older younger",
        "wider narrower",
        "deeper shallower",
        "horizontal vertical",
        "parallel perpendicular",
        "acute obtuse",
        "above below",
        "before after early late earlier later",
        "clockwise counterclockwise anticlockwise",
        "odd even",
        "positive negative",
        "heads tails",
        "minimum maximum",
        "inside outside",
        "forward forwards backward backwards",
        "male female boys girls men women",
        "january february march april may june july august september october november december",
        "monday tuesday wednesday thursday friday saturday sunday",
        "red blue green yellow white black orange purple pink brown gray",
    )
]
_ALIKE = {"increased": "increase", "increasing": "increase", "decreased": "decrease", "decreasing": "decrease"}
_ALIKE |= {"fewer": "less", "rise": "increase", "fall": "decrease", "backwards": "backward", "forwards": "forward"}
_ALIKE |= {"northward": "north", "southward": "south", "eastward": "east", "westward": "west"}
_ALIKE |= {"anticlockwise": "counterclockwise", "earlier": "early", "later": "late"}
_HEDGES = frozenset(
    [
        "not",
        "never",
        "no",
        "isn't",
        "isn't",
        "isnt",
        "aren't",
        "cannot",
        "wrong",
        "incorrect",
        "false",
        "or",
        "maybe",
        "perhaps",
        "possibly",
        "except",
        "unless",
        "than",
    ]
)
_SMALL_WORDS = "is|are|the|of|per|to|by|and|or|not|no|red|men|boys|way|ways|box|cat|cats|dog|dogs|out|all|day|days|cm|mm|km|kg|ml|ft|mph|kmph|kph|hours?|hr|hrs|mins?|secs?|yd|yr|yrs|mi|lbs?|oz|inch|gal|sq|usd|eur|am|pm|rs|up|down|more|less|new"
_UNIT_NAMES = "|".join(sorted(_UNITS, key=len, reverse=True))
_MARKED = re.compile(
    r"\\text\{[^{}]*\}|\\(?:begin|end) ?\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]_|"
    rf"(?<![A-Za-z{{_])(?P<rate>(?<=[\d}} ])(?:{_UNIT_NAMES})(?:/| per )(?:{_UNIT_NAMES})(?![A-Za-z]))|"
    rf"(?<![A-Za-z{{_])(?P<word>(?:(?:(?<=\d)|(?<=[ (}},]))(?:{_SMALL_WORDS}|in(?=\Z|\.))|(?:(?<=[ ,:}}])|\A)[A-Za-z']{{4,}}|\A(?:The|An?)|(?:(?<=\d)|(?<=\}}))(?:{'|'.join(n for n in _UNITS if len(n) > 3)})s?)(?![A-Za-z(_^])\.?(?:\^\{{?\d\}}?)?)"
)


def _marked(match: re.Match[str]) -> str:
    """Words that are typed as they are, in ``\\text{}``."""
    word = match["rate"] or match["word"]
    if word is None or word.strip(".") in ("and", "or"):
        return match[0]
    return rf"\text{{ {re.sub('[{}]', '', word)} }}"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and the words with it: ``3`` and ``hours``."""

    value: str
    words: tuple[str, ...]

    def unit(self) -> tuple[tuple[tuple[str, int], ...], Fraction] | None:
        """Dimensions with their powers, and the size in base units; None without a known unit."""
        powers: Counter[str] = Counter()
        size, sign, power = Fraction(1), 1, 1
        text = " ".join(_RATES.get(word, word) for word in self.words)
        for word in re.findall(r"/|[a-z.]+(?:\^-?\d)?", text):
            name, _, raised = word.rstrip(".").partition("^")
            if name in ("per", "/"):
                sign = -1
            elif name in ("square", "sq", "cubic", "cu"):
                power = 2 if name.startswith("s") else 3
            elif known := _UNITS.get(name) or _UNITS.get(name.removesuffix("s")):
                times = sign * int(raised or power)
                powers[known[0]] += times
                size *= known[1] ** times
                sign, power = (sign if times > 0 else 1), 1
        return (tuple(sorted((d, n) for d, n in powers.items() if n)), size) if powers else None


def _one_number(text: str) -> str:
    """``12 345`` without its space, and ``1 1/2`` as a mixed number."""
    if _SPACED_NUMBER.fullmatch(text):
        text = text.replace(" ", "")
    if mixed := _MIXED_NUMBER.fullmatch(text):
        text = rf"{mixed[1]}\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    return text


def _value(text: str) -> str:
    """A value without the commas, stops, labels' signs and "and" around it; listed by commas, thousands without."""
    text = re.sub(r",? ?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]) ?", ", ", text.strip()).lstrip(" ,;:=").rstrip(" ,.;:=")
    text = _one_number(text)
    return re.sub(r"\A[-+]?\d{1,3}(?:,\d{3})+(?!\d|,)", lambda m: m[0].replace(",", ""), text)


def quantities(text: str) -> list[Quantity]:
    """The numbers of a normalised answer with the words at them; one without a value for words alone."""
    values, words = [""], [list[str]()]
    depth, closed = 0, False
    for match in re.finditer(r"\\text\{([^{}]*)\}|\\begin|\\end|\\[A-Za-z]+|\\.|.", text):
        token = match[0]
        depth += (token in ("{", "(", "[", r"\{", r"\begin")) - (token in ("}", ")", "]", r"\}", r"\end"))
        if match[1] is not None and depth <= 0:
            words[-1] += re.findall(r"[a-z'.]+(?:\^-?\d)?|/|\?", match[1].lower())
            closed = bool(_value(values[-1]))
            continue
        if closed and token not in " ,.;:=":
            values.append("")
            words.append([])
            closed = False
        values[-1] += token
    found = []
    for value, names in zip(map(_value, values), words, strict=True):
        times = prod(_MAGNITUDES.get(name, _MAGNITUDES.get(name.removesuffix("s"), 1)) for name in names)
        value = rf"{value} \cdot {times}" if times > 1 and value else value
        plain = (name.rstrip(".") for name in names)
        found.append(Quantity(value, tuple(_ALIKE.get(name, name) for name in plain)))
    return [q for q in found if q.value or q.words]


def contradict(answer: Quantity, gold: Quantity, *, strictly: bool = False) -> bool:
    """Whether the words of two quantities say different things; ``strictly``, whether they merely share none."""
    a, g = set(answer.words), set(gold.words)
    if a & _HEDGES != g & _HEDGES or ("?" in a) != ("?" in g):
        return True
    units = answer.unit() or gold.unit()
    symbols = frozenset() if units else frozenset(word for word in a | g if len(word) == 1)  # N against J
    if any(a & group and g & group and a & group != g & group for group in (*_EXCLUSIVE, symbols)):
        return True
    return strictly and bool(a) and bool(g) and not a & g and (answer.unit() is None or gold.unit() is None)


_CLOCK = re.compile(r"(\d{1,2})(?: ?: ?(\d\d))?(?: ?: ?(\d\d))? ?(?:([ap]) ?\.? ?m)?\.?")


def clock(text: str) -> tuple[int, int, int, str | None] | None:
    """Hour, minute, second and half of the day of a clock time; None for anything else."""
    plain = " ".join(re.sub(r"\\text|[{}]", " ", text.lower()).split())
    for name, twelve in (("noon", "12 pm"), ("midnight", "12 am")):
        plain = twelve if plain in (name, f"12 {name}", f"12:00 {name}") else plain
    match = _CLOCK.fullmatch(plain)
    if match is None or not (match[2] or match[4]):
        return None
    hour, minute, second = (int(match[i] or 0) for i in (1, 2, 3))
    return hour % 12, minute, second, match[4] or ("p" if 12 < hour < 24 else None)


# ---------------------------------------------------------------------- what math-verify overlooks

_BASE = re.compile(r"[-+]?[0-9A-Z]+_\{?(\d+)\}?")


def union(answer: str) -> str:
    """Intervals that are listed (``(0,1), (2,3)``) as their union."""
    return _GROUPS.sub(r" \\cup ", answer)


def base(answer: str) -> str | None:
    """The base of a numeral with one, as ``28_9``."""
    match = _BASE.fullmatch(answer.strip().rstrip("."))
    return match[1] if match else None


def numeric_sides(answer: str) -> tuple[str, str] | None:
    """First and last side of an equation between numbers (``2 + 5 = 7``), of which math-verify reads the last alone."""
    sides = re.split(r"(?<![<>!\\])=", answer)
    bare = re.sub(r"\\(?:frac|sqrt|cdot|pi|left|right|[^A-Za-z])", "", answer)
    return (sides[0], sides[-1]) if len(sides) > 1 and all(sides) and not re.search(r"[A-Za-z]", bare) else None


def exact(value: str) -> str:
    """Decimals as fractions, which lose nothing."""
    return re.sub(
        r"(?<![\d.])(\d*)\.(\d+)(?![\d.])", lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{1{'0' * len(m[2])}}}", value
    )


def significant_digits(value: str) -> int | None:
    """The digits that a decimal is given to; None where there is no decimal."""
    found = re.findall(r"(?<![\d.])\d*\.\d+", value)
    return max(len(number.replace(".", "").lstrip("0")) for number in found) if found else None
