"""From a row of any layout to a :class:`Record`: which column is the problem, the gold answer, a demonstration.

:data:`NAMES` is the whole of what is known about layouts. Of each role the first column that has a value in this row is
taken; case does not matter, ``reward_model.ground_truth`` is a field of an object, ``a + b`` a thought and the solution after it.
Text is only ever a string or a number. What cannot be read as such leaves the row out, with a reason (:class:`Unusable`).
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from itertools import chain, product
from typing import Any

from prefix_rft_lab.data.answers import ANSWER_CHARACTERS, extract_answer

_TABLE = {
    "id": "id unique_id uuid problem_id question_id qid idx index extra_info.index",
    "problem": """problem question.problem question.stem question query prompt input problem_text question_text
        problem_statement instruction messages conversations conversation dialogue chosen extra_info.question question_concat
        *.problem *.question""",
    "answer": """reward_model.ground_truth gold gold_answer ground_truth gt answer answers final_answer expected_answer
        reference_answer ref_ans correct_answer gt_answer ground_truth_answer correct correct_option answer_key cop label
        target expected *.ground_truth *.reference_answer *.answer""",
    "demonstration": """demonstrations demonstration generations responses resps
        deepseek_reasoning/reasoning/reasoning_content/thinking+deepseek_solution/solution/response/output/content
        deepseek_thinking_trajectory/thinking_trajectories+deepseek_attempt/attempt
        messages conversations conversation dialogue chosen target solution solutions reference_solution
        ground_truth_solution gold_standard_solution generated_solution r1_solution rationale cot gt_cot chain_of_thought
        response resp llm_response generation completion completions output explanation exp analysis reasoning answer
        *.solution *.answer""",
    "level": "level *.level",
    "split": "split *.split",
    "type": "type problem_type subject subfield category source data_source",
    "options": "options choices *.options *.choices",
    "before": "context passage background body table",
}


def spelling(name: Any) -> str:
    """A column's name as it is compared: without case, spaces, hyphens and underscores, so that ``answerKey`` is ``answer_key``."""
    return re.sub(r"[\s_-]", "", str(name)).lower()


def _expanded(names: str) -> Iterator[str]:
    for name in names.split():
        yield from map("+".join, product(*(part.split("/") for part in spelling(name).split("+"))))


NAMES = {role: tuple(_expanded(names)) for role, names in _TABLE.items()}
"""Role -> its usual columns as they are compared, the surest first."""
_SOLUTIONS = {*NAMES["demonstration"]} - {*NAMES["answer"]}
FIELDS = ("id", "problem", "answer", "demonstration", "level", "split", "type", "options")
"""Roles that ``data.columns`` and ``--column`` may map to a column."""
CHATS = ("messages", "conversations", "conversation", "dialogue", "chosen")
"""Columns in which two texts are a problem and its solution."""
REFERENCES = tuple(
    _expanded("solution reference_solution ground_truth_solution gold_standard_solution rationale gt_cot cot")
)
"""Columns of demonstrations that are written by who wrote the problem: the gold is looked for at their end first."""
VERDICTS = re.compile(
    r"correctness\w*|(?:is)?correct|verified|verdicts?|scores?|rewards?|deepseekgrade|solutionisvalid|label"
)
_COMPLETE = re.compile(r"isreasoningcomplete")
_CUT = re.compile(r"finishreasons?|truncated")
_NUMBERED = re.compile(r"(.*[a-z])[1-9]")
_PICTURE = re.compile(r"(?:decoded|question|problem)?images?\d*")
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SPLITS |= {"test": "test", "testing": "test"}
_SPEAKERS = {"system": "system", "developer": "system"} | dict.fromkeys(("user", "human"), "user")
_SPEAKERS |= dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant")
_SPEAKERS |= {"input": "user", "instruction": "user", "output": "assistant", "response": "assistant"}
_SPEAKERS |= {"[inst]": "user", "[/inst]": "assistant"}
_SPOKEN = {"role", "from", "content", "value", *_SPEAKERS}
_FRAMES = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<\|im_start\|>(\w+)\s(.*?)(?=<\|im_end\|>|<\|im_start\|>|\Z)",
        r"<\|start_header_id\|>(\w+)<\|end_header_id\|>(.*?)(?=<\|eot_id\|>|<\|start_header_id\|>|\Z)",
        r"<start_of_turn>(\w+)\s(.*?)(?=<end_of_turn>|<start_of_turn>|\Z)",
        r"<\|(user|assistant|system)\|>(.*?)(?=<\|end\|>|</s>|<\|(?:user|assistant|system)\|>|\Z)",
        r"<｜(User|Assistant)｜>(.*?)(?=<｜|\Z)",
        r"(\[/?INST\])(.*?)(?=\[/?INST\]|</s>|\Z)",
        r"\n?### ?(Instruction|Input|Response|User|Human|Assistant):(.*?)(?=\n### ?|\Z)",
        r"(?:(?<=\n)|(?<=\. )|\A)(User|Human|Assistant):(.*?)(?=\n\s*(?:User|Human|Assistant):|\Z)",
    )
)
_PLAIN_FRAME = re.compile(r"\n\s*(?:Assistant|### ?(?:Response|Assistant)):[^\n]*(?:\n\s*<think>\s*)?\Z")
_STRUCTURE = re.compile(r"""\A(?:\[\s*[{"']|\{\s*["'])""")
_NO_ANSWER = frozenset({"proof", "notfound", "not found", "n/a", "nan", "null"})
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_SAID = re.compile(
    r"(?:(?:^|[.\s])(?:the|my) (?:final |correct )?answer is:?|\n\W*(?:final )?answer:)[ \t*]*(\S[^\n]*)\s*\Z",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^####[ \t]*(\S[^\n]*)$", re.MULTILINE)
_NAMED_NUMBER = re.compile(r"([-+]?[\d.,/]*\d) \([A-Za-z][A-Za-z .]*\)")
_LETTER = re.compile(r"(?:option\s+)?\(?([A-Z])\)?[.:)]?", re.IGNORECASE)
_OPTIONS = re.compile(r"\(?\b([A-Za-z])\s*[).:]\s*(.*?)(?=[\s,]*\(?\b[A-Za-z]\s*[).:]|[\s,]*\Z)", re.DOTALL)
_OPTION = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*(.+)", re.DOTALL)
_OPTION_COLUMN = re.compile(r"(option|choice|op)?([a-e1-5])")
_WORDS_OF_A_GOLD = 20
"""A longer gold that is no option is a solution whose answer is not marked: nothing that a response can equal."""


class Unusable(ValueError):
    """A row that cannot be read rightly; its text is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worked solution that may become a demonstration."""

    text: str
    verified: bool = True
    """False where the data set says that its answer is not the gold answer, or that nobody could tell."""
    finished: bool = True
    """False where the data set says that it was cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row, before anything is chosen or dropped."""

    id: str | None = None
    problem: str | None = None
    """The whole problem: context, question and lettered options."""
    answer: str | None = None
    """The gold answer; several spellings of it as boxes (:func:`prefix_rft_lab.data.answers.golds`)."""
    solution: str | None = None
    """The reference solution, as it is in the file; None where there is none."""
    demonstrations: tuple[Candidate, ...] = ()
    level: str = ""
    kind: str = ""
    """Type of the problem (``Algebra``), else the set that it comes from; empty if the row says neither."""
    split: str = ""
    """``train``, ``validation`` or ``test`` where the row says so."""
    unusable: str = ""
    """Why the row cannot be read; empty if it can."""


# ---------------------------------------------------------------------- cells


def text_of(value: Any, what: str = "cell") -> str | None:
    """A cell as stripped text; None for a missing or empty one.

    Raises:
        Unusable: neither a string nor a number, bytes that are not UTF-8, or half a character.
    """
    if is_missing(value):
        return None
    if isinstance(value, float):
        # Files have whole numbers as floats where another row has none.
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, (int, Decimal)):
        return str(value)
    try:
        text = bytes(value).decode() if isinstance(value, (bytes, bytearray)) else value
        if isinstance(text, str):
            text.encode()
            return text.strip() or None
    except UnicodeError:
        raise Unusable(f"{what} with characters that are not Unicode") from None
    raise Unusable(f"{what} that is {_shape(value)}")


def is_missing(value: Any) -> bool:
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and value != value)
        or (isinstance(value, (Mapping, list, tuple, str, bytes)) and not value)
    )


def _shape(value: Any) -> str:
    if isinstance(value, Mapping):
        keys = list(map(str, value))
        return f"an object ({', '.join(keys[:4])}{', ...' * (len(keys) > 4)})"
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"


def structure(value: Any) -> Any:
    """Lists and objects as such, also where a table holds them as text."""
    if isinstance(value, str) and _STRUCTURE.match(value):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return value


def turns(value: Any, *, pair: bool = False, framed: bool = False) -> list[tuple[str, str]] | None:
    """(``system``, ``user`` or ``assistant``, text) of each message of a chat; None for what is no chat.

    A chat is a list of messages (role and content, from and value, content as a text or as parts), one message, an object of
    lists, an object by role, with ``pair`` two texts, with ``framed`` a text in which a chat template has framed the turns.
    """
    value = structure(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(m, Mapping) and _by_role(m) for m in value):
        value = [{"role": role, "content": text} for m in value for role, text in m.items()]
    if framed and isinstance(value, str):
        for frame in _FRAMES if _PLAIN_FRAME.search(value) else _FRAMES[:-2]:
            if found := frame.findall(value):
                return [(_speaker(role), text.strip()) for role, text in found]
        return None
    if isinstance(value, Mapping):
        role = value.get("role", value.get("from"))
        if isinstance(role, (list, tuple)):
            said = value.get("content", value.get("value"))
            value = [{"role": r, "content": c} for r, c in zip(role, said, strict=True)]
        elif isinstance(role, str):
            value = [value]
        elif _by_role(value):
            value = [{"role": key, "content": text} for key, text in value.items()]
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if pair and len(value) == 2 and all(isinstance(text, str) for text in value):
        return [("user", value[0]), ("assistant", value[1])]
    if not all(isinstance(m, Mapping) and isinstance(m.get("role", m.get("from")), str) for m in value):
        return None
    return [(_speaker(m.get("role", m.get("from"))), _content(m)) for m in value]


def _by_role(message: Mapping[str, Any]) -> bool:
    return bool(message) and all(str(key).lower() in _SPEAKERS for key in message)


def _speaker(role: str) -> str:
    if role.lower() not in _SPEAKERS:
        raise Unusable(f"chat with a message of {role!r}")
    return _SPEAKERS[role.lower()]


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content", message.get("value"))
    parts = content if isinstance(content, (list, tuple)) else [content]
    texts = [text_of(part.get("text") if isinstance(part, Mapping) else part, "part of a chat") for part in parts]
    if any(isinstance(part, Mapping) and not str(part.get("type", "text")).endswith("text") for part in parts):
        raise Unusable("chat with a picture or other part that is no text")
    thought = text_of(message.get("reasoning_content", message.get("thinking")), "thought of a chat")
    said = "\n".join(text for text in texts if text)
    return f"<think>\n{thought}\n</think>\n\n{said}" if thought else said


def _one_turn(chat: Sequence[tuple[str, str]], speaker: str) -> str | None:
    said = [text for role, text in chat if role == speaker and text]
    if len(said) > 1:
        raise Unusable(f"chat with several turns of the {speaker}")
    return text_of(said[0]) if said else None


# ---------------------------------------------------------------------- answers


def end_of(solution: str | None) -> str | None:
    """The answer at the end of a solution: ``<answer>``, boxes, ``The answer is``, ``#### 72``; what is thought is not looked at."""
    text = (solution or "").rpartition("</think>")[2]
    if tagged := _TAGGED.findall(text):
        return extract_answer(tagged[-1]) or tagged[-1].strip() or None
    if boxed := extract_answer(text):
        return boxed
    if said := _SAID.search(text[-ANSWER_CHARACTERS:]):
        return said[1].rstrip().removesuffix(".").strip("$* ") or None
    hashes = _HASHES.findall(text[-ANSWER_CHARACTERS:])
    return hashes[-1].strip() if hashes else None


def _answer_alone(text: str) -> bool:
    """Whether a solution is nothing but an answer: some columns of that name hold ``$34$``."""
    words = re.sub(r"\\[A-Za-z]+|</?answer>", "", text[:101])
    return len(text) <= 100 and any(c.isdigit() for c in text) and not re.search(r"[A-Za-z]{2}|\n", words)


def gold_of(value: Any, same: Callable[[str, str], bool], what: str = "gold") -> str | None:
    """A cell as gold answer: of a list of equal spellings each is accepted, other lists are one answer with commas.

    Raises:
        Unusable: what cannot be graded.
    """
    value = structure(value)
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("value", "content", "text"):
        return gold_of(next(iter(value.values())), same, what)
    texts = []
    for item in value if isinstance(value, (list, tuple)) else [value]:
        text = text_of(item, what)
        if text is not None:
            found = end_of(text) or text
            if len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+|\$[^$]*\$", "", found))) > _WORDS_OF_A_GOLD:
                raise Unusable(f"{what} that is a text without an answer at its end")
            texts.append(named[1] if (named := _NAMED_NUMBER.fullmatch(found)) else found)
    texts = list(dict.fromkeys(texts))
    if len(texts) > 1 and all(same(text, texts[0]) for text in texts[1:]):
        return " ".join(f"\\boxed{{{text}}}" for text in texts)
    gold = ", ".join(texts)
    if len(gold) > ANSWER_CHARACTERS:
        raise Unusable(f"{what} of more than {ANSWER_CHARACTERS} characters")
    return gold or None


def _label(gold: Any, options: Mapping[str, str]) -> str | None:
    """The label of the option that a gold names by label, text or index (from 0); None if it names none."""
    text = text_of(gold) or ""
    if text in options:
        return text
    if (match := _LETTER.fullmatch(text)) and match[1].upper() in options:
        return match[1].upper()
    by_text = next((label for label, option in options.items() if option == text), None)
    by_index = list(options)[int(text)] if text.isdecimal() and int(text) < len(options) else None
    if not isinstance(gold, str):
        return by_index or by_text
    if by_text and by_index and by_text != by_index:
        raise Unusable("gold that is one option and the index of another")
    return by_text or by_index


# ---------------------------------------------------------------------- rows


def flat(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str, Any]]:
    """(compared name, name, value) of every column and every field of an object in it."""
    for name, value in row.items():
        path = f"{before}{name}"
        yield spelling(path), path, value
        if isinstance(inner := structure(value), Mapping):
            yield from flat(inner, f"{path}.")


@dataclass(slots=True)
class Roles:
    """Reads rows; remembers which columns were taken for what."""

    mapping: Mapping[str, str]
    same: Callable[[str, str], bool]
    """Whether two answers are one."""
    used: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Role -> column, as the file spells it -> rows."""
    characters: Counter[str] = field(default_factory=Counter)
    """Column -> characters of the texts in it, of those rows that were read."""
    _own: dict[str, str] = field(default_factory=dict)

    _known: dict[tuple[str, ...], list[tuple[str, ...]]] = field(default_factory=dict)

    def columns(self, cells: Iterable[str], role: str) -> list[tuple[str, ...]]:
        """Those of some columns that can hold a role, the surest first; two where it is a thought and the solution after it."""
        key = (role, *cells)
        if key not in self._known:
            names = (spelling(self.mapping[role]),) if role in self.mapping else NAMES[role]
            self._known[key] = [
                found
                for name in names
                for found in product(*([c for c in key[1:] if fnmatchcase(c, part)] for part in name.split("+")))
            ]
        return self._known[key]

    def read(self, row: Mapping[str, Any]) -> Record:
        """A row as record; ``record.unusable`` says why it could not be read."""
        cells = self.cells(row)
        for name, value in row.items():
            texts = value if isinstance(value, (list, tuple)) else [value]
            self.characters[str(name)] += sum(len(text) for text in texts if isinstance(text, str))
        id: str | None = None
        try:
            id = self._id(cells)
            return self._record(cells, id)
        except Unusable as error:
            return Record(id=id, unusable=f"row with a {error}")

    def cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Compared name -> value of every column and field, ``solution_1`` and so on as one list, and of what messages say beside
        their words."""
        cells: dict[str, Any] = {}
        numbered: dict[str, list[Any]] = defaultdict(list)
        for name, path, value in flat(row):
            cells.setdefault(name, value)
            self._own.setdefault(name, path)
            if (base := _NUMBERED.fullmatch(name)) and base[1] in _SOLUTIONS and not is_missing(value):
                numbered[base[1]].append(value)
                self._own.setdefault(base[1], f"{path[:-1]}*")
            if name in CHATS and isinstance(chat := structure(value), (list, tuple)):
                for key, inner, cell in chain.from_iterable(flat(m) for m in chat if isinstance(m, Mapping)):
                    if key not in _SPOKEN:
                        cells.setdefault(key, cell)
                        self._own.setdefault(key, f"{path}.{inner}")
            elif name == "text" and (framed := turns(value, framed=True)):
                cells.setdefault(CHATS[0], [{"role": role, "content": text} for role, text in framed])
                self._own.setdefault(CHATS[0], path)
        return numbered | cells

    def _each(self, cells: Mapping[str, Any], role: str) -> Iterator[tuple[str, Any]]:
        """(compared name, value) of the columns of a role that have a value in this row, the surest first."""
        for (name,) in self.columns(cells, role):
            if not is_missing(value := cells[name]):
                yield name, value

    def _take(self, role: str, name: str) -> None:
        self.used[role]["+".join(self._own.get(part, part) for part in name.split("+"))] += 1

    def _plain(self, cells: Mapping[str, Any], role: str) -> str | None:
        """The first column of a role that is a text or a number."""
        for name, value in self._each(cells, role):
            if isinstance(value, (str, int, float, bytes)) and (text := text_of(value, f"{role} ({name})")):
                self._take(role, name)
                return text
        return None

    def _id(self, cells: Mapping[str, Any]) -> str | None:
        id = self._plain(cells, "id")
        if id is not None and id == text_of(cells.get("extrainfo.index")) and "extra_info.index" in self.used["id"]:
            split = cells.get("extrainfo.split")
            return f"{split if isinstance(split, str) else 'row'}-{id}"
        return id

    def _record(self, cells: Mapping[str, Any], id: str | None) -> Record:
        if picture := next((n for n in cells if _PICTURE.fullmatch(n) and not is_missing(cells[n])), None):
            raise Unusable(f"picture ({self._own.get(picture, picture)})")
        problem = self._problem(cells)
        options = self._options(cells)
        found = self._demonstrations(cells)
        reference = next((t for n in REFERENCES if (t := self._text(cells.get(n), n)) and not _answer_alone(t)), None)
        solution = reference or next((c.text for c in found if c.verified and c.text), None)
        answer = self._gold(cells, options, solution, bool(found))
        bare = _squeezed(answer)
        found = [c for c in found if not c.text or _squeezed(c.text) != bare]
        if (
            problem
            and options
            and not all(
                re.search(rf"\b{re.escape(letter)}\s*[).:}}]\s*\$?{re.escape(text)}", problem)
                for letter, text in options.items()
            )
        ):
            problem += "".join(f"\n{letter}) {text}" for letter, text in options.items())
        return Record(
            id=id,
            problem=problem,
            answer=answer,
            solution=None if solution is None or _squeezed(solution) == bare else solution,
            demonstrations=tuple(found),
            level=self._plain(cells, "level") or "",
            kind=self._plain(cells, "type") or "",
            split=SPLITS.get((self._plain(cells, "split") or "").lower(), ""),
        )

    def _problem(self, cells: Mapping[str, Any]) -> str | None:
        for name, value in self._each(cells, "problem"):
            said: Any = value
            while (chat := turns(said, pair=name in CHATS, framed=True)) is not None:
                # A message of a chat may be framed once more.
                if isinstance(said, str) and structure(said) is said:
                    self._take("framed", name)
                said = _one_turn(chat, "user")
            if text := text_of(said, f"problem ({self._own[name]})"):
                self._take("problem", name)
                before = [*NAMES["before"], *(["instruction"] if name == "input" else [])]
                for part in before:
                    said = text_of(cells.get(part), part) if part != name else None
                    if said and said not in text:
                        self._take("problem", part)
                        text = f"{said}{' ' if part == 'body' else chr(10)}{text}"
                return text
        return None

    def _options(self, cells: Mapping[str, Any]) -> dict[str, str]:
        """Label -> text of the options; the labels are letters where the row gives none."""
        labels: Sequence[Any] = ()
        name, options = next(self._each(cells, "options"), ("", None))
        options = structure(options)
        if isinstance(options, Mapping) and isinstance(options.get("text"), (list, tuple)):
            options, labels = options["text"], options.get("label") or ()
        elif isinstance(options, Mapping):
            labels, options = list(options), list(options.values())
        elif isinstance(options, str):
            cut = _OPTIONS.findall(options)
            labels, options = [label.upper() for label, _ in cut], [text for _, text in cut]
            if len(cut) < 2 or labels != [chr(ord("A") + i) for i in range(len(cut))]:
                raise Unusable("options in one text that does not letter them")
        elif options is None:
            found = [m for n in cells if (m := _OPTION_COLUMN.fullmatch(n)) and not is_missing(cells[n])]
            gold = next((str(value).strip() for _, value in self._each(cells, "answer")), "")
            named = all(m[1] for m in found) and gold.isdecimal()
            columns = {m[2].upper(): cells[m[0]] for m in found}
            if not ({"A", "B"} <= columns.keys() or {"1", "2"} <= columns.keys()) or not (
                named or _LETTER.fullmatch(gold)
            ):
                return {}
            labels, options, name = list(columns), list(columns.values()), "+".join(m[0] for m in found)
        self._take("options", name)
        found_options: dict[str, str] = {}
        for i, item in enumerate(options):
            label = chr(ord("A") + i) if i >= len(labels) else str(labels[i]).strip("() .")
            if isinstance(item, Mapping):
                item = next((item[key] for key in ("text", "content", "value", "option") if key in item), item)
            if (text := text_of(item, "option")) is not None:
                own = _OPTION.fullmatch(text)
                found_options[label] = own[2].strip() if own and own[1] == label else text
        return found_options

    def _gold(
        self, cells: Mapping[str, Any], options: Mapping[str, str], solution: str | None, judged: bool
    ) -> str | None:
        for name, value in self._each(cells, "answer"):
            # A truth value beside a solution is a verdict on it.
            if turns(value) is not None or (
                isinstance(value, bool) and (name == "correct" or (name == "label" and judged))
            ):
                continue
            if isinstance(value, str) and value.strip().lower() in _NO_ANSWER:
                return None
            answer = _label(value, options) if options and isinstance(value, (str, int)) else None
            answer = answer or gold_of(value, self.same, f"gold ({self._own.get(name, name)})")
            if answer:
                self._take("answer", name)
                return (_label(answer, options) if options else None) or answer
        for name, text in [*((name, self._text(cells.get(name), name)) for name in REFERENCES), ("", solution)]:
            alone = gold_of(text, self.same) if name and text and _answer_alone(text) else None
            if answer := end_of(text) or alone:
                self._take("answer", name if alone else "the end of the solution")
                return (_label(answer, options) if options else None) or answer
        return None

    def _text(self, value: Any, name: str) -> str | None:
        """A worked solution in a cell; of several the first."""
        return next((c.text for c in self._candidates(value, name, {}) if c.text), None)

    def _demonstrations(self, cells: Mapping[str, Any]) -> list[Candidate]:
        blank = False
        for names in self.columns(cells, "demonstration"):
            if any(is_missing(cells[name]) for name in names):
                continue
            name = "+".join(names)
            value, *rest = (structure(cells[name]) for name in names)
            if rest:
                pairs = zip(*(v if isinstance(v, (list, tuple)) else [v] for v in (value, *rest)), strict=False)
                texts = [(text_of(thought, name), text_of(said, name)) for thought, said in pairs]
                joined = [f"<think>\n{thought}\n</think>\n\n{said}" for thought, said in texts if thought and said]
                value = joined if isinstance(rest[0], (list, tuple)) else "".join(joined)
            mapped = "demonstration" in self.mapping
            if not mapped and name in NAMES["answer"] and turns(value) is None:
                # The column of the answer may hold the solution that ends in it, as in GSM8K.
                worked = isinstance(value, str) and end_of(value) is not None and not _answer_alone(value)
                if not worked or _squeezed(value) == _squeezed(f"\\boxed{{{end_of(value)}}}"):
                    continue
            found = [c for c in self._candidates(value, name, cells) if c.text]
            alone = isinstance(value, str) and _answer_alone(value) and extract_answer(value) is None
            if found and (mapped or not alone):
                self._take("demonstration", name)
                return found
            blank = blank or (isinstance(value, str) and not found)
        # An empty text is kept, so that its loss is reported.
        return [Candidate(text="")] if blank else []

    def _candidates(self, value: Any, name: str, cells: Mapping[str, Any]) -> Iterator[Candidate]:
        value = structure(value)
        if (chat := turns(value, pair=name in CHATS, framed=False)) is not None:
            value = _one_turn(chat, "assistant")
        several = isinstance(value, (list, tuple))
        for i, item in enumerate(value if several else [value]):
            about, index = cells, i if several else None
            if (chat := turns(item)) is not None:
                item = _one_turn(chat, "assistant")
            elif isinstance(item, Mapping):
                about, index = {spelling(key): cell for key, cell in item.items()}, None
                item = next((about[n] for n in (*NAMES["demonstration"], "text", "content") if n in about), item)
                item = _one_turn(chat, "assistant") if (chat := turns(item)) is not None else item
            verdicts = [_verdict(mark) for mark in _marks(about, VERDICTS, index, own=about is not cells)]
            yield Candidate(
                text=text_of(item, f"demonstration ({name})") or "",
                verified=not verdicts or True in verdicts,
                finished=False not in _marks(about, _COMPLETE, index)
                and not {"length", True} & set(_marks(about, _CUT, index)),
            )


def _marks(cells: Mapping[str, Any], columns: re.Pattern[str], index: int | None, own: bool = False) -> list[Any]:
    """What some columns say of one of several solutions, or (without an index) of the only one, or of what is its ``own``."""
    found = {name: structure(cell) for name, cell in cells.items() if columns.fullmatch(name)}
    if index is None:
        # A number beside one solution is more often a rate or a difficulty than a verdict, and a text as label a gold.
        return [
            mark
            for name, mark in found.items()
            if isinstance(mark, bool)
            or (own and isinstance(mark, (int, float)))
            or (isinstance(mark, str) and name != "label" and (mark == "length" or _verdict(mark) is not None))
        ]
    marks = [mark for name, mark in found.items() if isinstance(mark, (list, tuple)) and name != "label"]
    return [mark[index] if index < len(mark) else None for mark in marks]


def _verdict(value: Any) -> bool | None:
    """A cell as verdict; None if it is none."""
    if isinstance(value, str):
        return {"yes": True, "true": True, "correct": True, "no": False, "false": False, "incorrect": False}.get(
            value.strip().lower()
        )
    return value >= 0.5 if isinstance(value, (bool, int, float)) else None


def _squeezed(text: str | None) -> str:
    return re.sub(r"[\s$]", "", text or "").rstrip(".")
