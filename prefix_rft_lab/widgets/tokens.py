"""Read a rollout token by token: entropy, advantage, ratio and the clip as colours, over steps and for two runs."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.patches import Rectangle

from prefix_rft_lab import plots
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.runs.run import Run
from prefix_rft_lab.widgets.base import Explorer, script, style

_KINDS = ("prefix", "continuation", "on_policy")
_NEEDED = ("step", "problem", "row", "position", "text", "kind")
_UNKNOWN = 2
_LARGEST = 64 * 2**20
"""Most bytes of arrays that one explorer sends and stores."""


class TokenExplorer(Explorer):
    """A rollout as text, coloured by what the update saw of each token.

    Args:
        runs_or_tables: a run or its table of tokens (``run.tokens``), or two of them, shown side by side on the same
            problem and row. A table with the tokens of two runs is shown as two.
        problem: show only this problem; all recorded ones by default.
        row: the row that is shown first; the last one (of a group with a prefix: the hybrid row) by default.

    Raises:
        RunError: a run recorded no tokens.
        ConfigError: a table that is empty or lacks a column, more than two runs, a problem that none recorded, or more
            tokens than a notebook should carry (64 MiB of arrays).
    """

    _esm = script("tokens")
    _css = style("tokens")
    # The arrays, little endian, one value per token; an empty one was not recorded.
    text_ids = traitlets.Bytes(help="index into texts").tag(sync=True)
    kinds = traitlets.Bytes(help="uint8: prefix, continuation, on_policy").tag(sync=True)
    kept = traitlets.Bytes(help="uint8: clipped, kept, not recorded").tag(sync=True)
    entropy = traitlets.Bytes(help="float16, nats").tag(sync=True)
    logp = traitlets.Bytes(help="float16, nats").tag(sync=True)
    advantage = traitlets.Bytes(help="float16, after the clip").tag(sync=True)
    ratio = traitlets.Bytes(help="float32, new over old probability").tag(sync=True)
    top_ids = traitlets.Bytes(help="top_k indices into texts").tag(sync=True)
    top_probs = traitlets.Bytes(help="float16, top_k probabilities").tag(sync=True)
    top_k = traitlets.Int(help="alternatives of each token").tag(sync=True)
    index_type = traitlets.Unicode("uint16").tag(sync=True)
    texts: traitlets.List = traitlets.List(help="distinct token texts").tag(sync=True)
    sides: traitlets.List = traitlets.List(help="name, first token and tokens of each run").tag(sync=True)
    rollouts: traitlets.List = traitlets.List(
        help="[side, step, problem, row, first token, tokens, prefix tokens, score] of each rollout"
    ).tag(sync=True)
    problems: traitlets.List = traitlets.List(help="names of the problems").tag(sync=True)
    steps: traitlets.List = traitlets.List(help="recorded steps").tag(sync=True)
    scales: traitlets.Dict = traitlets.Dict(help="upper ends of the colour scales, over all steps").tag(sync=True)
    aligned = traitlets.Bool(True, help="whether both sides count tokens alike").tag(sync=True)
    note = traitlets.Unicode(help="a sentence above the text").tag(sync=True)
    # What is shown; Python may set it and reads what was chosen.
    step = traitlets.Int(help="training step").tag(sync=True)
    problem = traitlets.Unicode(help="the problem that was chosen; empty: the first one of each step").tag(sync=True)
    row = traitlets.Int(help="row of its group").tag(sync=True)
    layer = traitlets.Unicode("entropy", help="entropy, nll, advantage, ratio, kept or plain").tag(sync=True)
    cursor = traitlets.Int(0, help="the token that is inspected, from 0").tag(sync=True)
    threshold = traitlets.Float(-1.0, help="tokens from this entropy on are outlined, nats; below 0: none").tag(
        sync=True
    )
    spaces = traitlets.Bool(True, help="whether spaces are drawn as dots").tag(sync=True)

    def __init__(
        self,
        runs_or_tables: Run | pd.DataFrame | Sequence[Run | pd.DataFrame],
        *,
        problem: str | None = None,
        row: int | None = None,
    ) -> None:
        sides = _sides(runs_or_tables)
        if problem is not None:
            sides = _only(sides, problem)
        aligned, note = _aligned(sides)
        arrays, values = _packed(sides)
        rollouts = values["rollouts"]
        newest = [r for r in rollouts if r[0] == 0 and r[1] == max(r[1] for r in rollouts if r[0] == 0)]
        group = [r for r in newest if r[2] == newest[0][2]]
        chosen = next((r for r in group if r[3] == row), group[-1])
        if row is not None and not any(r[3] == row for r in rollouts):
            have = ", ".join(map(str, sorted({r[3] for r in rollouts})))
            raise ConfigError(f"row = {row} is not among the recorded rows; use one of {have}")
        super().__init__(
            **arrays,
            **values,
            aligned=aligned,
            note=note,
            step=chosen[1],
            problem=problem or "",
            row=chosen[3] if row is None else row,
            layer="entropy" if arrays["entropy"] else "plain",
            # The first token of the policy's own.
            cursor=chosen[6] if chosen[6] < chosen[5] else 0,
        )

    def _shown(self) -> tuple[list[Any], pd.DataFrame]:
        """The first side's rollout at the chosen step, and its tokens."""
        here = [r for r in self.rollouts if r[0] == 0 and r[1] == self.step] or [r for r in self.rollouts if r[0] == 0]
        same = [r for r in here if self.problems[r[2]] == self.problem] or [r for r in here if r[2] == here[0][2]]
        rollout = next((r for r in same if r[3] == self.row), same[-1])
        part = slice(rollout[4], rollout[4] + rollout[5])
        entropy = np.frombuffer(self.entropy, "<f2")[part] if self.entropy else np.full(rollout[5], np.nan)
        frame = pd.DataFrame(
            {
                "text": [
                    self.texts[i] for i in np.frombuffer(self.text_ids, f"<u{np.dtype(self.index_type).itemsize}")[part]
                ],
                "kind": [_KINDS[kind] for kind in np.frombuffer(self.kinds, np.uint8)[part]],
                "entropy": entropy.astype(float),
            }
        )
        return rollout, frame

    def summary(self) -> str:
        rollout, frame = self._shown()
        names = " and ".join(side["name"] for side in self.sides)
        where = f"step {rollout[1]}, problem {self.problems[rollout[2]]}, row {rollout[3]}"
        mean = frame["entropy"].mean()
        entropy = "" if np.isnan(mean) else f", mean entropy {mean:.3f} nats"
        text = "".join(plots.visible(text) for text in frame["text"])
        return (
            f"Tokens of {names}: {len(self.rollouts)} rollouts at {len(self.steps)} steps. {where}: "
            f"{rollout[6]} prefix + {rollout[5] - rollout[6]} own tokens{entropy}. {textwrap.shorten(text, 400, placeholder='…')}"
        )

    def picture(self) -> plots.RunFigure:
        rollout, frame = self._shown()
        return _picture(
            frame,
            title=f"Tokens of {self.sides[0]['name']}",
            note=f"step {rollout[1]}, {self.problems[rollout[2]]}, row {rollout[3]}: {rollout[6]} prefix + "
            f"{rollout[5] - rollout[6]} own tokens",
            prefix=rollout[6],
            highest=self.scales.get("entropy", 1.0),
        )


# ---------------------------------------------------------------------- reading tables


@dataclass(frozen=True, slots=True)
class _Side:
    name: str
    tokens: pd.DataFrame = None  # type: ignore[assignment]
    tokenizer: str = ""
    """Hash of the tokenizer; empty if unknown."""


def _sides(given: Any) -> list[_Side]:
    items = [given] if isinstance(given, (Run, pd.DataFrame)) else list(given)
    if len(items) not in (1, 2):
        raise ConfigError(f"runs_or_tables holds {len(items)} runs; give one, or two to compare")
    sides = [side for i, item in enumerate(items) for side in _read(item, i)]
    if len(sides) > 2:
        raise ConfigError(f"runs_or_tables holds the tokens of {len(sides)} runs; choose one, or two to compare")
    if len(sides) == 2 and sides[0].name == sides[1].name:
        sides = [_Side(f"{side.name} ({i})", side.tokens, side.tokenizer) for i, side in enumerate(sides, 1)]
    return sides


def _read(item: Any, place: int) -> list[_Side]:
    if isinstance(item, Run):
        table = item.tokens
        if table.empty:
            raise RunError(f"{item.path} recorded no tokens; set records.tokens_every above 0 and train it")
        name = f"{item.title}, seed {item.seed}" + ("" if item.done else " (not finished)")
        return [_Side(name, _checked(table), str(getattr(item, "tokenizer", "") or ""))]
    if not isinstance(item, pd.DataFrame):
        raise ConfigError(
            f"runs_or_tables[{place}] = {item!r:.60} is neither a run nor a table of tokens; give run or run.tokens"
        )
    table = _checked(item)
    tokenizer = str(item.attrs.get("tokenizer", ""))
    names = list(dict.fromkeys(table["run"].astype(str))) if "run" in table else []
    if len(names) > 1:
        return [_Side(name, table[table["run"].astype(str) == name], tokenizer) for name in names]
    return [_Side(names[0] if names else f"table {place + 1}", table, tokenizer)]


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise ConfigError("the table of tokens is empty; record some with records.tokens_every, or choose another run")
    missing = [name for name in _NEEDED if name not in table]
    if missing:
        raise ConfigError(f"the table of tokens has no column {', '.join(missing)}; give run.tokens, or add it")
    unknown = sorted(set(table["kind"]) - set(_KINDS), key=str)
    if unknown:
        raise ConfigError(f"kind = {unknown[0]!r} is not a kind of token; use one of {', '.join(_KINDS)}")
    return table


def _only(sides: list[_Side], problem: str) -> list[_Side]:
    known = list(dict.fromkeys(str(name) for side in sides for name in side.tokens["problem"].unique()))
    if problem not in known:
        close = difflib.get_close_matches(problem, known, n=3, cutoff=0.4) or known[:5]
        raise ConfigError(f"problem = {problem!r} was not recorded; choose one that was, such as {', '.join(close)}")
    chosen = [_Side(s.name, s.tokens[s.tokens["problem"].astype(str) == problem], s.tokenizer) for s in sides]
    for side in chosen:
        if side.tokens.empty:
            raise ConfigError(
                f"problem = {problem!r} was not recorded by {side.name}; choose one that both runs recorded"
            )
    return chosen


def _aligned(sides: list[_Side]) -> tuple[bool, str]:
    """Whether token numbers mean the same on both sides, and a sentence if not."""
    if len(sides) < 2:
        return True, ""
    one, two = sides
    differ = bool(one.tokenizer and two.tokenizer and one.tokenizer != two.tokenizer)
    if not differ and all("token_id" in side.tokens for side in sides):
        # No hash is needed to see that one id means two texts.
        first, second = (side.tokens.drop_duplicates("token_id").set_index("token_id")["text"] for side in sides)
        shared = first.index.intersection(second.index)
        differ = bool((first[shared] != second[shared]).any())
    if not differ:
        return True, ""
    return False, (
        f"{one.name} and {two.name} have different tokenizers: their texts can be compared, their tokens not one by one, "
        "so each side has a cursor of its own, and entropies are of different vocabularies."
    )


# ---------------------------------------------------------------------- packing


def _packed(sides: list[_Side]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Byte arrays and plain values of the traits."""
    table = pd.concat([side.tokens.assign(_side=i) for i, side in enumerate(sides)], ignore_index=True)
    # Stable: a problem that comes twice in a step keeps the order of its tokens and starts again at position 0.
    table = table.sort_values(["_side", "step", "problem", "row"], kind="stable", ignore_index=True)
    count = len(table)
    k = min(len(table["top_probs"].iloc[0]), 10) if "top_probs" in table and "top_ids" in table else 0
    if count * (16 + 6 * k) > _LARGEST:
        raise ConfigError(
            f"{count} tokens would make a notebook of more than {_LARGEST // 2**20} MiB; give problem=, or the tokens of fewer steps"
        )
    texts = [_text(value) for value in table["text"]]
    alternatives, probabilities = _alternatives(table, k)
    codes, distinct = pd.factorize(np.array([*texts, *alternatives], dtype=object))
    index_type = "uint16" if len(distinct) < 2**16 else "uint32"
    codes = codes.astype(f"<u{np.dtype(index_type).itemsize}")
    columns = {name: _numbers(table, name) for name in ("entropy", "logp", "advantage", "ratio")}
    kept = (
        table["kept"].map({True: 1, False: 0}).fillna(_UNKNOWN) if "kept" in table else pd.Series(_UNKNOWN, table.index)
    )
    arrays = {
        "text_ids": codes[:count].tobytes(),
        "kinds": table["kind"].map(_KINDS.index).to_numpy(np.uint8).tobytes(),
        "kept": kept.to_numpy(np.uint8).tobytes(),
        "top_ids": codes[count:].tobytes(),
        "top_probs": probabilities.astype("<f2").tobytes(),
        **{
            name: b"" if values is None else values.astype("<f4" if name == "ratio" else "<f2").tobytes()
            for name, values in columns.items()
        },
    }
    rollouts, problems = _rollouts(table)
    starts = [int((table["_side"] == i).to_numpy().argmax()) for i in range(len(sides))]
    values = {
        "top_k": k,
        "index_type": index_type,
        "texts": list(distinct),
        "rollouts": rollouts,
        "problems": problems,
        "steps": sorted({rollout[1] for rollout in rollouts}),
        "sides": [
            {"name": side.name, "start": start, "count": len(side.tokens)}
            for side, start in zip(sides, starts, strict=True)
        ],
        "scales": _scales(columns),
    }
    return arrays, values


def _text(value: Any) -> str:
    # Half a surrogate pair cannot be sent as UTF-8.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


def _alternatives(table: pd.DataFrame, k: int) -> tuple[list[str], np.ndarray]:
    """Texts and probabilities (nan where there are fewer) of k alternatives per token."""
    if not k:
        return [], np.empty(0)
    if "top_texts" in table:
        texts = table["top_texts"]
    else:
        known = dict(zip(table["token_id"], table["text"], strict=True)) if "token_id" in table else {}
        texts = table["top_ids"].map(lambda ids: [known.get(i, f"id {i}") for i in ids])
    flat: list[str] = []
    for row in texts:
        row = list(row)[:k]
        flat += [*map(_text, row), *[""] * (k - len(row))]
    probabilities = np.full((len(table), k), np.nan)
    for i, row in enumerate(table["top_probs"]):
        probabilities[i, : min(len(row), k)] = row[:k]
    return flat, probabilities.ravel()


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray | None:
    """A column as floats; None where nothing was recorded."""
    if name not in table:
        return None
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
    return None if np.isnan(values).all() else values


def _scales(columns: dict[str, np.ndarray | None]) -> dict[str, float]:
    """Upper ends of the colour scales: one for all steps and sides, or colours would change their meaning."""

    def top(values: np.ndarray | None, least: float) -> float:
        finite = np.array([]) if values is None else values[np.isfinite(values)]
        highest = float(np.quantile(finite, 0.995)) if len(finite) else 0.0
        return max(float(np.ceil(highest * 10 - 1e-9)) / 10, least)

    logp, advantage, ratio = columns["logp"], columns["advantage"], columns["ratio"]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "entropy": top(columns["entropy"], 0.1),
            "nll": top(None if logp is None else -logp, 0.1),
            "advantage": top(None if advantage is None else np.abs(advantage), 0.1),
            "ratio": top(None if ratio is None else np.abs(np.log2(ratio)), 0.2),
        }


def _rollouts(table: pd.DataFrame) -> tuple[list[list[Any]], list[str]]:
    keys = table[["_side", "step", "problem", "row"]]
    position = table["position"].to_numpy()
    new = (keys != keys.shift()).any(axis=1).to_numpy() | np.r_[True, position[1:] <= position[:-1]]
    starts = np.flatnonzero(new)
    ends = np.r_[starts[1:], len(table)]
    prefix = np.r_[0, np.cumsum(table["kind"].eq("prefix"))]
    score = _numbers(table, "score")
    problems: dict[str, int] = {}
    seen: dict[tuple[Any, ...], int] = {}
    out = []
    for start, end in zip(starts, ends, strict=True):
        side, step, problem, row = keys.iloc[start]
        again = seen[side, step, problem, row] = seen.get((side, step, problem, row), 0) + 1
        name = f"{problem}" if again == 1 else f"{problem} ({again})"
        value = None if score is None or np.isnan(score[start]) else float(score[start])
        given = int(prefix[end] - prefix[start])
        place = problems.setdefault(name, len(problems))
        out.append([int(side), int(step), place, int(row), int(start), int(end - start), given, value])
    return out, list(problems)


# ---------------------------------------------------------------------- the still picture

_COLUMNS, _LINES = 100, 24


def _heat() -> ListedColormap:
    """Cividis from light to dark that sinks into the page at its low end, as in the live view on a light theme."""
    t = np.linspace(0, 1, 64)
    share = (0.1 + 0.9 * np.minimum(2.2 * t, 1))[:, None]
    return ListedColormap(1 - share + share * colormaps["cividis"](1 - t)[:, :3])


@plots.kit_style
def _picture(frame: pd.DataFrame, *, title: str, note: str, prefix: int, highest: float) -> plots.RunFigure:
    """The text on a grid of letters, each token on a field of its entropy."""
    places: list[tuple[int, int]] = []
    shown = [plots.visible(text) for text in frame["text"]]
    column = line = 0
    for text, raw in zip(shown, frame["text"], strict=True):
        if column and column + len(text) > _COLUMNS:
            column, line = 0, line + 1
        places.append((column, line))
        column += len(text)
        if "\n" in raw:
            column, line = 0, line + 1
    inside = sum(place[1] < _LINES for place in places)
    lines = min(max(place[1] for place in places) + 1, _LINES)
    height = 0.26 * lines + 0.95
    figure = plots.RunFigure(figsize=(9, height))
    figure.text(0.01, 1 - 0.06 / height, title.replace("$", r"\$"), fontsize=12, fontweight="bold", va="top")
    more = f"; {len(frame) - inside} more tokens are not drawn" if inside < len(frame) else ""
    figure.text(0.01, 1 - 0.32 / height, f"{note}{more}".replace("$", r"\$"), fontsize=8.5, color="#595959", va="top")
    axes = figure.add_axes((0.01, 0.42 / height, 0.98, (0.26 * lines) / height))
    axes.set(xlim=(0, _COLUMNS), ylim=(lines, 0))
    axes.axis("off")
    # DejaVu Sans Mono advances by 0.602 of its size: a letter fills a column.
    letters = 0.98 * 9 * 72 / _COLUMNS / 0.602
    colours = ScalarMappable(PowerNorm(0.5, 0, highest), _heat())
    for i in range(inside):
        (x, y), text, entropy = places[i], shown[i], frame["entropy"].iloc[i]
        ink = "black"
        if not np.isnan(entropy):
            red, green, blue, _ = colours.to_rgba(entropy)
            axes.add_patch(Rectangle((x + 0.06, y + 0.1), len(text) - 0.12, 0.74, color=(red, green, blue), lw=0))
            ink = "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45 else "black"
        if i < prefix:
            axes.plot([x + 0.1, x + len(text) - 0.1], [y + 0.03] * 2, color="#595959", lw=1, ls=(0, (1.2, 1.2)))
        if i == prefix and prefix > 0:
            axes.plot([x, x], [y + 0.02, y + 0.92], color=plots.OKABE_ITO["vermilion"], lw=2.5)
        axes.text(x, y + 0.49, text, family="monospace", fontsize=letters, color=ink, va="center", parse_math=False)
    scale = figure.add_axes((0.01, 0.25 / height, 0.3, 0.1 / height))
    figure.colorbar(colours, cax=scale, orientation="horizontal")
    scale.tick_params(labelsize=7, length=2, pad=1)
    figure.text(
        0.33, 0.25 / height, "entropy (nats); dotted line above: prefix; bar: the seam", fontsize=8, va="bottom"
    )
    figure.data, figure.caption = frame, f"{title}, {note}. Each token on a colour of its entropy in nats."
    return figure
