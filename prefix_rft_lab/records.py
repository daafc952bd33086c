"""Token records: a table with one row a token, of a training run or of any model on any text.

While training, two things are recorded at every ``records.tokens_every``-th step:

* *trained rows*: all rows of some problems of the step and a hybrid row of each other, as the update saw them;
* *followed demonstrations*: the whole demonstrations of a few fixed problems (row :data:`FOLLOWED`, kind prefix), taught
  to nobody here but read by the policy before and after the update. They are the same text at every step, so they show
  how the policy changes, and they hold what the first-order prediction of an entropy change is checked with.

Columns and units are in :data:`prefix_rft_lab.runs.TOKEN_COLUMNS`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from prefix_rft_lab import policy, rng
from prefix_rft_lab.config import ConfigError, RunConfig
from prefix_rft_lab.generation import Request, TransformersEngine
from prefix_rft_lab.policy import TokenChoices
from prefix_rft_lab.runs import FOLLOWED, TOKEN_COLUMNS, torch_state
from prefix_rft_lab.templates import stop_ids
from prefix_rft_lab.tokens import pad_id, pad_rows
from prefix_rft_lab.types import KIND_NAMES, EncodedProblem, Row
from prefix_rft_lab.update import Updater, UpdateResult

# ---------------------------------------------------------------------- tokens as text


def tokenizer_id(tokenizer: Any) -> str:
    """Twelve hex digits that name a vocabulary: equal ids of two tables are the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary).encode("utf-8", "surrogatepass")).hexdigest()[:12]


class TokenTexts:
    """The text of each token id, told apart where decoding cannot: half a UTF-8 character reads ``<0xE2>``.

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
    # Rows of a group stand side by side and start again at row 0.
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
                self.followed.append(_demonstration(problem))

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
                kept=_would_keep(started.followed.entropy, result, self.config.prefix.keep),
            )
            part["row"] = FOLLOWED
            part["entropy_after"] = after.entropy.numpy()
            part["top_probs_after"] = list(after.probs.numpy())
            parts.append(part)
        table = _in_order(pd.concat(parts, ignore_index=True))
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


def _would_keep(entropy: torch.Tensor, result: UpdateResult, keep: str) -> torch.Tensor:
    """(tokens,) bool: on which side of the update's own threshold tokens lie that were not in it; True without one."""
    ranked = result.entropy[result.kept & result.ranked].cpu()
    if not len(ranked) or keep not in ("top", "bottom"):
        return torch.ones_like(entropy, dtype=torch.bool)
    return entropy >= ranked.min() if keep == "top" else entropy <= ranked.max()


def _part(choices: TokenChoices, where: slice) -> TokenChoices:
    return TokenChoices(
        logp=choices.logp[where], entropy=choices.entropy[where], ids=choices.ids[where], probs=choices.probs[where]
    )


def _demonstration(problem: EncodedProblem) -> Row:
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
    """One row a response token, with the columns of :data:`prefix_rft_lab.runs.TOKEN_COLUMNS`.

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


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """All columns, in the order of the schema."""
    return table.reindex(columns=list(TOKEN_COLUMNS))


# ---------------------------------------------------------------------- any model, any text


def token_table_of(
    model: Any,
    tokenizer: Any,
    problems: Sequence[EncodedProblem],
    config: RunConfig,
    *,
    demonstrations: bool = True,
    samples: int = 0,
    temperature: float = 1.0,
    top_k: int = 5,
    seed: int = 0,
    max_tokens: int | None = None,
    step: int = 0,
    run: str = "",
    score: bool = True,
) -> pd.DataFrame:
    """The token table of a model on some problems, without training.

    Demonstrations are read as they are (row :data:`FOLLOWED`, kind prefix); samples are rows 0, 1, ... (kind on_policy).
    Ratios are 1, advantages NaN, and every token is kept: there is no update.

    Args:
        problems: of :func:`prefix_rft_lab.tokens.encode_problems`.
        config: response length, arithmetic, batch sizes.
        samples: responses sampled for each problem, with keyed seeds: equal arguments, equal responses.
        temperature: of sampling, and of log-probabilities, entropies and alternatives.
        top_k: alternatives of each token.
        max_tokens: longest sampled response; by default ``rollout.max_response_tokens`` of the config.
        step: what to call the state of the model, such as its checkpoint's step.
        run: what to call the model.
        score: verify the samples against the problems' answers; otherwise scores are NaN.

    Raises:
        ConfigError: nothing to read: no problem has a demonstration and nothing is sampled; or a value that cannot be
            used.
    """
    for name, value, lowest in (("samples", samples, 0), ("top_k", top_k, 1)):
        if value < lowest:
            raise ConfigError(f"{name} = {value} cannot be used; give at least {lowest}")
    if not temperature > 0:
        raise ConfigError(f"temperature = {temperature} cannot divide logits; give a value above 0")
    rows = [_demonstration(p) for p in problems if demonstrations and p.demonstration_ids is not None]
    sampled = [Row(problem=p, row=i) for p in problems for i in range(samples)]
    if not rows and not sampled:
        missing = (
            f"none of the {len(problems)} problems has a demonstration"
            if demonstrations
            else "no demonstration is read"
        )
        raise ConfigError(
            f"samples = 0 and {missing}, which leaves no token; sample at least 1 response, or read demonstrations"
        )
    updater = Updater(model, config, pad_id=pad_id(tokenizer))
    if sampled:
        engine = TransformersEngine(
            model,
            eos_id=stop_ids(tokenizer),
            max_batch_rows=config.rollout.max_batch_rows,
            autocast=updater.autocast,
        )
        requests = [
            Request(
                context_ids=row.problem.prompt_ids,
                max_new_tokens=max_tokens or config.rollout.max_response_tokens,
                key=rng.key(seed, "tokens", row.problem.index, row.row),
            )
            for row in sampled
        ]
        for row, completion in zip(sampled, engine.generate(requests, temperature=temperature), strict=True):
            row.sampled_ids, row.truncated = completion.token_ids, completion.truncated
    scores = [np.nan] * len(rows) + (_scores(tokenizer, sampled) if score else [np.nan] * len(sampled))
    rows += sampled
    order = sorted(range(len(rows)), key=lambda i: (rows[i].problem.index, rows[i].row))
    rows, scores = [rows[i] for i in order], [scores[i] for i in order]
    table = _in_order(
        token_columns(
            rows,
            measure_rows(updater, rows, top_k, temperature=temperature),
            TokenTexts(tokenizer),
            run=run,
            step=step,
            temperature=temperature,
            scores=scores,
        )
    )
    table.attrs["tokenizer"] = tokenizer_id(tokenizer)
    return table


def _scores(tokenizer: Any, rows: Sequence[Row]) -> list[float]:
    from prefix_rft_lab.rewards import Verifier

    if not rows:
        return []
    with Verifier() as verifier:
        texts = [tokenizer.decode(row.response_ids, skip_special_tokens=True) for row in rows]
        return verifier.score_all(texts, [row.problem.problem.answer for row in rows])


def steps_of(models: Sequence[str], steps: Sequence[int] | None = None) -> list[int]:
    """A step for each of several checkpoints of one run: the given ones; else the numbers that their names end in, or
    0, 1, 2, ... where a name ends in none.

    Raises:
        ConfigError: not one step a model, or a step twice.
    """
    if steps is None:
        endings = [Path(model).name.rpartition("-")[2].rpartition("_")[2] for model in models]
        steps = [int(e) for e in endings] if all(e.isdigit() for e in endings) else list(range(len(models)))
    if len(steps) != len(models) or len(set(steps)) < len(steps):
        raise ConfigError(
            f"steps = {', '.join(map(str, steps))} for {len(models)} model{'s' if len(models) != 1 else ''}; give each "
            "model a step of its own"
        )
    return list(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What came of :func:`read_tokens`."""

    table: pd.DataFrame
    dropped: dict[str, int]
    """Problems or demonstrations left out, by reason."""


def read_tokens(
    models: Sequence[str],
    *,
    problems: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    steps: Sequence[int] | None = None,
    demonstrations: bool = True,
    samples: int = 0,
    temperature: float = 1.0,
    top_k: int = 5,
    seed: int = 0,
    max_tokens: int | None = None,
    changes: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Reading:
    """:func:`token_table_of` one model, or of several checkpoints with one vocabulary, on the problems of a file.

    Args:
        models: ``tiny``, directories in Hugging Face format, Hub names, or directories of finished runs. A run brings its
            config; another model reads what :func:`prefix_rft_lab.evaluation_run.config_for` lets it.
        problems: JSONL, parquet or CSV file, a Hub name, or ``chains`` (the default, unless the first model is a run on a file).
        split: of the problems; by default as ``prefix-rft evaluate``.
        limit: only the first so many problems.
        steps: what to call the checkpoints; see :func:`steps_of`.
        max_tokens: longest sampled response; by default the config's, at most 512 where none was trained with.
        changes: dotted config fields and values on top.
        out: a ``.parquet`` file for the table.

    Raises:
        ConfigError: models, problems or values that cannot be used, or models with different vocabularies.
        RunError: the disk is full.
    """
    from prefix_rft_lab.evaluation_run import config_for, default_split, is_run, problems_of
    from prefix_rft_lab.runs import write_table
    from prefix_rft_lab.tokens import encode_problems

    if out is not None and Path(out).suffix != ".parquet":
        raise ConfigError(f"out = {str(out)!r} does not end in .parquet; give the name of a parquet file")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit} leaves no problem; give at least 1")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens = {max_tokens} leaves nothing to sample; give at least 1")
    if not models:
        raise ConfigError("models = [] names no model; give at least one")
    numbers = steps_of(models, steps)
    tables: list[pd.DataFrame] = []
    dropped: dict[str, int] = {}
    for model_name, step in zip(models, numbers, strict=True):
        own = is_run(Path(model_name).expanduser())
        given = {**({} if problems is None else {"data.problems": problems}), **(changes or {})}
        config = config_for(model_name, changes=given)
        with torch_state(config.threads):
            found, reasons = problems_of(config, split or default_split(model_name, config))
            model, tokenizer = policy.load_policy(config)
            encoded, more = encode_problems(tokenizer, found[:limit], config)
            dropped = {**reasons, **more}
            if not encoded:
                raise ConfigError(
                    f"data.problems = {config.data.problems!r} leaves no problem ({dropped}); raise rollout.max_prompt_tokens"
                )
            sampled = config.rollout.max_response_tokens if own or model_name == "tiny" else 512
            tables.append(
                token_table_of(
                    model,
                    tokenizer,
                    encoded,
                    config,
                    demonstrations=demonstrations,
                    samples=samples,
                    temperature=temperature,
                    top_k=top_k,
                    seed=seed,
                    max_tokens=min(max_tokens or sampled, config.rollout.max_response_tokens),
                    step=step,
                    run=Path(models[0]).name,
                )
            )
        if tables[-1].attrs["tokenizer"] != tables[0].attrs["tokenizer"]:
            raise ConfigError(
                f"model = {model_name!r} has another vocabulary than {models[0]!r}; make a table of each by itself"
            )
    table = pd.concat(tables, ignore_index=True)
    table.attrs["tokenizer"] = tables[0].attrs["tokenizer"]
    if out is not None:
        write_table(Path(out), table)
    return Reading(table=table, dropped=dropped)


def format_reading(reading: Reading, most: int = 10) -> str:
    """A reading in a few lines: what was left out, entropy by kind, and where the model was least sure.

    Token texts come from a model: control characters are shown as escapes.
    """
    from prefix_rft_lab import entropy_analysis as analysis
    from prefix_rft_lab.evaluation_run import format_table

    table = reading.table
    lines = [f"left out: {count} x {reason}" for reason, count in reading.dropped.items()]
    rows = [("step", "kind", "tokens", "entropy (nats)", "NLL (nats)")]
    rows += [
        (str(line["step"]), line["kind"], str(line["tokens"]), f"{line['entropy']:.4f}", f"{line['nll']:.4f}")
        for line in analysis.entropy_by_kind(table).to_dict("records")
    ]
    problems, temperature = table["problem"].nunique(), table["temperature"].iloc[0]
    lines += [f"{problems} problems, {len(table)} tokens, temperature {temperature:g}", format_table(rows)]
    if table["score"].notna().any():
        scores = table.drop_duplicates(["step", "problem", "row"])["score"].dropna()
        lines.append(f"{scores.mean():.3f} of {len(scores)} samples right")
    forks = analysis.forking_tokens(table, most=most, examples=1)
    if len(forks):
        rows = [("token", "id", "tokens", "entropy (nats)", "least certain")]
        rows += [
            (_plain(f["text"]), str(f["token_id"]), str(f["tokens"]), f"{f['entropy']:.3f}", _plain(f["contexts"][0]))
            for f in forks.to_dict("records")
        ]
        lines += ["", format_table(rows)]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    return shown if shown.strip() == shown and shown else f"'{shown}'"
