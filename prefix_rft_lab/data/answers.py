"""Answers as text: which part of a response is its final answer, and what a gold answer accepts.

Everything here is text in, text out, and linear in its input; whether two answers are the same is math-verify's
business (:mod:`prefix_rft_lab.data.rewards`). Strictness comes first: a response states *one* answer, which is its last box
together with the boxes that it is listed with ("3 or 7"). So a list of guesses is a list, and no list equals a
single gold answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ANSWER_CHARACTERS = 2000
"""A longer answer is no answer; text before and after it may have any length."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?:(?P<open>\{)|(?P<bare>[-+]?\w+(?:[./]\w+)*))?")
_GSM8K = re.compile(r"^####[ \t]*(\S.*?)\s*\Z", re.MULTILINE)
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
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[()\[\],;:! ]|\\q?quad\b|\\\\|[$~&*{}]")
_LABEL = re.compile(r"\b[A-Za-z]\w{0,2}(?:\([a-z]\))?\s*(?:=|\\in\b|:)")


def boxed_answer(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` with balanced braces, or None."""
    boxes = _boxes(text)
    return boxes[-1][2] if boxes else None


def final_answers(text: str) -> list[str]:
    """The boxes that state the final answer, in order and each once; empty when there is none.

    These are the last box and those before it that it is listed with: between them lies nothing but "and", "or",
    punctuation and labels such as ``k =``, or the rest of one sentence that says "and" or "or". Earlier boxes are
    work, or answers that were taken back. Without any box a closing line ``#### 72``, as GSM8K writes it, counts.
    """
    boxes = _boxes(text)
    if not boxes:
        closing = None if _BOX.search(text) else _GSM8K.search(text[-ANSWER_CHARACTERS:])
        return [closing[1]] if closing else []
    found = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if box[1] > found[0][0] or not _lists(text[box[1] : found[0][0]]):
            break
        found.insert(0, box)
    return list(dict.fromkeys(content for _, _, content in found))


def extract_answer(text: str) -> str | None:
    """What a response answers, as one text: its final boxes with commas between them; None when there is none."""
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
        box = _content(text, match)
        if box is None:
            break
        found.insert(0, (match.start(), *box))
        if found[-1][1] - found[0][0] > 2 * ANSWER_CHARACTERS:
            break
    return found


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
    if words <= _LISTING:
        return True
    one_sentence = not re.search(r"[.?!:;]\s|\n\s*\n|=", plain.strip())
    return one_sentence and bool(words & {"and", "or"}) and not words & _DERIVING


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text).replace("\\dfrac", "\\frac").rstrip(".")


# ---------------------------------------------------------------------- what math-verify is given

_END = re.compile(r"(?:(?<!\\right)(?<!\\left)[.,;:\s]|\\[,;:! ])+\Z")
_THOUSANDS = re.compile(r"(?<![\d.,\\])\d{1,3}(?:(?:,\\!\s*|\\[,! ]|\{,\}|~)\d{3})+(?!\d)")
_SPACED_NUMBER = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_MIXED_NUMBER = re.compile(r"([-+]?\d+) +(\d+)/(\d+)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")
_TEXT_LIST = re.compile(r"\s*,?\s*\\(?:text|mbox|mathrm)\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}\s*")
_TEXT_NUMBER = re.compile(r"\\text(?:bf|it|rm)?\s*\{\s*\(?\s*([-+]?[\d.,]+)\s*\)?\s*\}")
_ABOUT = re.compile(r"\A(?:\\approx|\\sim)(?![a-zA-Z])\s*")
_PHANTOM = re.compile(r"\\phantom\s*(?:\{[^{}]*\}|\S)")
_SHORT_FRACTION = re.compile(r"\\([dt]?frac)\s*(\\[a-zA-Z]+)\s*(\d)")
_GROUPS = re.compile(
    r"(?<=[)\]}])\s*(?:,|;|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)+\s*(?=\(|\[|\\left|\\\{)"
)


def normalise(answer: str) -> str:
    """An answer as math-verify reads it best: no closing full stop, plain thousands, fractions for mixed numbers."""
    text = answer.strip()
    while match := _BOX.match(text):
        box = _content(text, match)
        if box is None or box[0] != len(text):
            break
        text = box[1]
    if number := _TEXT_NUMBER.fullmatch(text):
        text = number[1]
    text = _TEXT_LIST.sub(", ", _ABOUT.sub("", _END.sub("", text)))
    text = _SHORT_FRACTION.sub(r"\\\1{\2}{\3}", _PHANTOM.sub("", text))
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    if (named := _UNIT_WORD.search(text)) and _unit_name(named[1]):
        text = text[: named.start()]
    if _SPACED_NUMBER.fullmatch(text):
        text = text.replace(" ", "")
    if mixed := _MIXED_NUMBER.fullmatch(text):
        text = rf"{mixed[1]}\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    return _REPEATING.sub(_fraction, text)


def bare(answer: str) -> str:
    """What is left of an answer without units, signs, labels, braces and spaces: equal for equal answers written alike."""
    text = _LABEL.sub("", re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "", normalise(answer)), count=1)
    text = re.sub(r"\\[dtc]?frac|\\left|\\right|\\[,;:! %$]|[{}$%\s]", "", _WRAPPED.sub("", text)).lstrip("0")
    return text or _squeeze(answer)


def union(answer: str) -> str:
    """Intervals that are listed (``(0,1), (2,3)``) as their union."""
    return _GROUPS.sub(r" \\cup ", answer)


def without_percent(answer: str) -> str:
    return re.sub(r"\s*(?:\\?%|\\text\s*\{\s*percent\s*\}|percent\b)", "", answer)


def _fraction(match: re.Match[str]) -> str:
    """A repeating decimal ``a.b\\overline{c}`` as the fraction ``(abc - ab) / (9..90..0)``."""
    whole, lead, period = match[1] or "0", match[2], match[3]
    top = int(whole + lead + period) - int(whole + lead)
    return rf"\frac{{{top}}}{{{'9' * len(period)}{'0' * len(lead)}}}"


# ---------------------------------------------------------------------- what math-verify overlooks

_UNITS = {
    name: canonical
    for canonical, names in {
        "millimetre": "mm millimeter millimetre",
        "centimetre": "cm centimeter centimetre",
        "metre": "m meter metre",
        "kilometre": "km kilometer kilometre",
        "inch": "in inch inche",
        "foot": "ft foot feet",
        "yard": "yd yard",
        "mile": "mi mile",
        "second": "s sec second",
        "minute": "min minute",
        "hour": "h hr hour",
        "day": "day",
        "week": "week",
        "month": "month",
        "year": "yr year",
        "milligram": "mg milligram",
        "gram": "g gram",
        "kilogram": "kg kilogram",
        "pound": "lb pound",
        "ounce": "oz ounce",
        "dollar": "dollar usd",
        "cent": "cent",
        "euro": "euro",
        "degree": "deg degree",
        "radian": "rad radian",
        "millilitre": "ml milliliter millilitre",
        "litre": "l liter litre",
        "gallon": "gal gallon",
        "a.m.": "a.m am",
        "p.m.": "p.m pm",
    }.items()
    for name in names.split()
}
_UNIT = re.compile(r"[\d})\s]\s*(?:square|sq\.?|cubic|cu\.?)?\s*([A-Za-z]+(?:\.[A-Za-z])?)\.?\s*(?:\^\s*\{?\d\}?)?\Z")
_UNIT_WORD = re.compile(r"(?<=[\d}])\s*(?:square\s|cubic\s)?\s*([A-Za-z]{4,})\Z")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?\Z")
_BASE = re.compile(r"[-+]?[0-9A-Z]+_\{?(\d+)\}?")


def unit(answer: str) -> str | None:
    """The unit of a quantity, by its full name, if it ends in (or is money written with) one that is known."""
    text = answer.strip()
    if re.match(r"[-+]?\\?\$\s*\d", text) and not text.endswith("$"):
        return "dollar"
    if _DEGREES.search(text):
        return "degree"
    match = _UNIT.search(_SPACING.sub(" ", _WRAPPED.sub(r" \1 ", text)).rstrip())
    if match is None:
        return None
    return _unit_name(match[1])


def _unit_name(word: str) -> str | None:
    return _UNITS.get(word.lower()) or _UNITS.get(word.lower().removesuffix("s"))


def base(answer: str) -> str | None:
    """The base of a numeral with one, as ``28_9``."""
    match = _BASE.fullmatch(answer.strip().rstrip("."))
    return match[1] if match else None


def contradict(answer: str, gold: str) -> bool:
    """Whether the answers name different units or different bases, which math-verify takes off before it compares."""
    return any(None not in (a := name(answer), g := name(gold)) and a != g for name in (unit, base))


def numeric_sides(answer: str) -> tuple[str, str] | None:
    """First and last side of an equation between numbers (``2 + 5 = 7``), of which math-verify reads the last alone."""
    sides = re.split(r"(?<![<>!\\])=", answer)
    bare = re.sub(r"\\(?:[a-zA-Z]+|.)", "", answer)
    return (sides[0], sides[-1]) if len(sides) > 1 and all(sides) and not re.search(r"[A-Za-z]", bare) else None
