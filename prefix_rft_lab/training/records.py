"""Token records: a table with one row per token, of a training run or of any model on any text.

While training, two things are recorded at every ``records.tokens_every``-th step:

* *trained rows*: all rows of some problems of the step and a hybrid row of each other, as the update saw them;
* *followed demonstrations*: the whole demonstrations of a few fixed problems (row :data:`FOLLOWED`, kind prefix), taught
  to nobody here but read by the policy before and after the update. They are the same text at every step, so they show
  how the policy changes, and they hold what the first-order prediction of an entropy change is checked with.

Columns and units are in :data:`prefix_rft_lab.runs.run.TOKEN_COLUMNS`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from prefix_rft_lab.algorithm.entropy import KEEP_RULES, RankInputs
from prefix_rft_lab.core.config import RunConfig
from prefix_rft_lab.core.types import KIND_NAMES, EncodedProblem, Row
from prefix_rft_lab.models import policy
from prefix_rft_lab.models.policy import TokenChoices
from prefix_rft_lab.models.tokens import pad_rows
from prefix_rft_lab.runs.run import FOLLOWED, TOKEN_COLUMNS
from prefix_rft_lab.training.update import Updater, UpdateResult

# ---------------------------------------------------------------------- tokens as text


def tokenizer_id(tokenizer: Any) -> str:
    """Twelve hex digits that name a vocabulary: equal ids of two tables are the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode("utf-8", "surrogatepass")).hexdigest()[:12]


class TokenTexts:
    """The text of each token id, distinguished where decoding cannot: half a UTF-8 character reads ``<0xE2>``.

    A leading space that decoding a single SentencePiece token would lose is kept. Texts are for reading; the way back to
    the token is its id.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        text = self._known.get(token_id)
        if text is None:
            text = self._known[token_id] = self._read(token_id)
        return text

    def _read(self, token_id: int) -> str:
        text = str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if "\ufffd" in text and isinstance(piece, str):
            codes = _bytes_of_symbols()
            if all(symbol in codes for symbol in piece):
                return bytes(codes[symbol] for symbol in piece).decode("utf-8", "prefix_rft_lab.bytes")
            return piece
        if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" "):
            return f" {text}"
        return text


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("prefix_rft_lab.bytes", _show_bytes)


@lru_cache(maxsize=1)
def _bytes_of_symbols() -> dict[str, int]:
    """Symbol of a byte-level BPE vocabulary -> byte: printable bytes stand for themselves, the others follow from U+0100
    (GPT-2; Radford et al., 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


# ---------------------------------------------------------------------- measuring


def measure_rows(
    updater: Updater, rows: Sequence[Row], k: int, *, temperature: float, ids: torch.Tensor | None = None
) -> TokenChoices:
    """What the policy makes of every response token of some rows, on the CPU, in row order; no gradient.

    Args:
        updater: gives the model and how rows are batched.
        k: alternatives of each token.
        temperature: divides the logits.
        ids: (tokens, k) int64 alternatives whose probabilities are wanted, instead of the k most probable ones.
    """
    counts = [len(row.response_ids) for row in rows]
    wanted = [None] * len(rows) if ids is None else list(ids.split(counts))
    found: list[tuple[torch.Tensor, ...]] = [()] * len(rows)
    for indices in updater.micro_batches(rows):
        choices = policy.response_choices(
            updater.model,
            pad_rows([rows[i] for i in indices], updater.pad_id, updater.device),
            k,
            ids=None if ids is None else torch.cat([wanted[i] for i in indices]),  # type: ignore[misc]
            temperature=temperature,
            autocast=updater.autocast,
        )
        columns = (choices.logp, choices.entropy, choices.ids, choices.probs)
        parts = zip(*(column.cpu().split([counts[i] for i in indices]) for column in columns), strict=True)
        for i, part in zip(indices, parts, strict=True):
            found[i] = part
    logp, entropy, chosen, probs = (torch.cat(column) for column in zip(*found, strict=True))
    return TokenChoices(logp=logp, entropy=entropy, ids=chosen, probs=probs)


def chosen_rows(rows: Sequence[Row], problems: int, most: int) -> list[int]:
    """Places, ascending, of the rows of a step that are recorded: all of its first ``problems`` problems, and one hybrid
    row of every other problem, since there are few of them and they are what one asks about.

    Whole rows while they fit ``most`` tokens, hybrid rows first. A problem that comes round twice in a step is recorded
    once.
    """
    # Rows of a group follow each other and start again at row 0.
    group = np.cumsum([row.row == 0 for row in rows]).tolist()
    first: dict[int, int] = {}
    for number, row in zip(group, rows, strict=True):
        first.setdefault(row.problem.index, number)
    groups = list(first.values())
    whole, others = set(groups[:problems]), set(groups[problems:])
    order = [i for i, number in enumerate(group) if number in whole]
    for i, number in enumerate(group):
        if number in others and rows[i].is_hybrid:
            order.append(i)
            others.remove(number)
    order.sort(key=lambda i: not rows[i].prefix_ids)
    places, used = [], 0
    for i in order:
        if used + len(rows[i].response_ids) <= most:
            places.append(i)
            used += len(rows[i].response_ids)
    return sorted(places)


@dataclass(slots=True, kw_only=True)
class _Started:
    """What was measured before an update."""

    rows: list[Row]
    places: list[int]
    trained: TokenChoices | None
    followed: TokenChoices | None
    global_step: int
    seconds: float = 0.0


@dataclass(slots=True)
class TokenRecorder:
    """Records tokens of a training run around each update that is to be recorded.

    Args:
        updater: the run's.
        tokenizer: the run's.
        problems: the training problems; the first ``records.followed`` demonstrations among them are followed.
        run: name of the run's directory.
    """

    updater: Updater
    tokenizer: Any
    config: RunConfig
    problems: Sequence[EncodedProblem]
    run: str
    texts: TokenTexts = field(init=False)
    followed: list[Row] = field(init=False)
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        self.texts = TokenTexts(self.tokenizer)
        self.identity = tokenizer_id(self.tokenizer)
        settings = self.config.records
        have = [p for p in self.problems if p.demonstration_ids is not None][: settings.followed]
        self.followed = []
        room = settings.most_tokens
        for problem in have:
            assert problem.demonstration_ids is not None
            room -= len(problem.demonstration_ids)
            if room >= 0:
                self.followed.append(demonstration_row(problem))

    def before(self, rows: list[Row], global_step: int) -> _Started | None:
        """Measure what an update is about to change; None at steps that are not recorded or have nothing that fits."""
        settings = self.config.records
        if not settings.tokens_every or global_step % settings.tokens_every:
            return None
        started = time.perf_counter()
        places = chosen_rows(rows, settings.token_problems, settings.most_tokens)
        if not places and not self.followed:
            return None
        # One forward pass for both: rows of similar length share a batch.
        measured = self._measure([rows[i] for i in places] + self.followed)
        split = sum(len(rows[i].response_ids) for i in places)
        return _Started(
            rows=rows,
            places=places,
            trained=_part(measured, slice(None, split)) if places else None,
            followed=_part(measured, slice(split, None)) if self.followed else None,
            global_step=global_step,
            seconds=time.perf_counter() - started,
        )

    def table(self, started: _Started, result: UpdateResult, *, scored: bool) -> pd.DataFrame:
        """The token table of a step, after its update.

        Args:
            started: of :meth:`before`.
            result: what the update saw and did.
            scored: whether rows have scores and advantages; a supervised stage has none.
        """
        since = time.perf_counter()
        parts = []
        if started.trained is not None:
            rows = [started.rows[i] for i in started.places]
            starts = np.concatenate([[0], np.cumsum([len(row.response_ids) for row in started.rows])])
            at = torch.from_numpy(np.concatenate([np.arange(starts[i], starts[i + 1]) for i in started.places]))
            # As the loss used them: a second forward pass may differ in its last bits.
            seen = {name: getattr(result, name).cpu()[at] for name in ("entropy", "logp", "old_logp", "kept")}
            advantages = result.advantages.cpu()[at] * seen["kept"] if scored else None
            scores = [row.score for row in rows] if scored else None
            parts.append(self._part(rows, started.trained, started.global_step, advantages, scores, **seen))
        if started.followed is not None:
            after = self._measure(self.followed, started.followed.ids)
            part = self._part(
                self.followed,
                started.followed,
                started.global_step,
                None,
                None,
                kept=_would_keep(self.followed, started.followed, result, self.config.prefix.keep),
            )
            part["row"] = FOLLOWED
            part["entropy_after"] = after.entropy.numpy()
            part["top_probs_after"] = list(after.probs.numpy())
            parts.append(part)
        table = in_order(pd.concat(parts, ignore_index=True))
        table.attrs["tokenizer"] = self.identity
        started.seconds += time.perf_counter() - since
        return table

    def _measure(self, rows: Sequence[Row], ids: torch.Tensor | None = None) -> TokenChoices:
        return measure_rows(
            self.updater, rows, self.config.records.top_k, temperature=self.config.rollout.temperature, ids=ids
        )

    def _part(
        self,
        rows: Sequence[Row],
        choices: TokenChoices,
        step: int,
        advantages: torch.Tensor | None,
        scores: Sequence[float] | None,
        **seen: torch.Tensor,
    ) -> pd.DataFrame:
        return token_columns(
            rows,
            choices,
            self.texts,
            run=self.run,
            step=step,
            temperature=self.config.rollout.temperature,
            advantages=advantages,
            scores=scores,
            **seen,
        )


def _would_keep(rows: Sequence[Row], choices: TokenChoices, result: UpdateResult, keep: str) -> torch.Tensor:
    """(tokens,) bool: on which side of the update's own threshold tokens lie that were not in it; True without one, and
    where the rule is random."""
    ranked = result.rank[result.kept & result.ranked].cpu()
    position = torch.cat([torch.arange(len(row.response_ids)) for row in rows])
    values = KEEP_RULES.find(keep)(
        RankInputs(
            entropy=choices.entropy, logp=choices.logp, position=position, uniforms=torch.ones_like(choices.entropy)
        )
    )
    if not len(ranked) or values is None:
        return torch.ones_like(position, dtype=torch.bool)
    return values >= ranked.min()


def _part(choices: TokenChoices, where: slice) -> TokenChoices:
    return TokenChoices(
        logp=choices.logp[where], entropy=choices.entropy[where], ids=choices.ids[where], probs=choices.probs[where]
    )


def demonstration_row(problem: EncodedProblem) -> Row:
    assert problem.demonstration_ids is not None
    return Row(
        problem=problem, row=FOLLOWED, prefix_ids=problem.demonstration_ids, prefix_ratio=1.0, is_demonstration=True
    )


def token_columns(
    rows: Sequence[Row],
    choices: TokenChoices,
    texts: TokenTexts,
    *,
    run: str,
    step: int,
    temperature: float,
    advantages: torch.Tensor | None = None,
    scores: Sequence[float] | None = None,
    entropy: torch.Tensor | None = None,
    logp: torch.Tensor | None = None,
    old_logp: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
) -> pd.DataFrame:
    """One row a response token, with the columns of :data:`prefix_rft_lab.runs.run.TOKEN_COLUMNS`.

    Args:
        choices: of these rows' tokens, in that order. ``entropy``, ``logp`` and the others, (tokens,) each, take its
            place where an update saw other values; without one the ratio is 1 and nothing is clipped.
        scores: one a row; NaN by default, as ``advantages`` are.
    """
    counts = [len(row.response_ids) for row in rows]
    ids = [token for row in rows for token in row.response_ids]
    entropy = choices.entropy if entropy is None else entropy
    logp = choices.logp if logp is None else logp
    old_logp = logp if old_logp is None else old_logp

    def of_row(values: Any, kind: Any) -> np.ndarray:
        return np.repeat(np.asarray(values, dtype=kind), counts)

    def single(values: torch.Tensor) -> np.ndarray:
        return values.detach().float().cpu().numpy()

    return pd.DataFrame(
        {
            "run": run,
            "step": np.full(len(ids), step, dtype=np.int64),
            "problem": of_row([row.problem.problem.id for row in rows], object),
            "row": of_row([row.row for row in rows], np.int64),
            "position": np.concatenate([np.arange(count) for count in counts]),
            "token_id": np.asarray(ids, dtype=np.int64),
            "text": [texts(token) for token in ids],
            "kind": [KIND_NAMES[kind] for row in rows for kind in row.kinds],
            "entropy": single(entropy),
            "temperature": np.full(len(ids), temperature),
            "logp": single(logp),
            "old_logp": single(old_logp),
            "ratio": single((logp - old_logp).exp()),
            "advantage": np.full(len(ids), np.nan, np.float32) if advantages is None else single(advantages),
            "kept": np.ones(len(ids), bool) if kept is None else kept.cpu().numpy(),
            "score": of_row(np.full(len(rows), np.nan) if scores is None else scores, np.float32),
            "top_ids": list(choices.ids.numpy()),
            "top_probs": list(choices.probs.numpy()),
            "top_texts": [[texts(token) for token in line] for line in choices.ids.tolist()],
        }
    )


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """All columns, in the order of the schema."""
    return table.reindex(columns=list(TOKEN_COLUMNS))
