"""Turn a knob of a training step that has been, and see what would have become of every token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from prefix_rft_lab import plots
from prefix_rft_lab.core.config import ConfigError, flatten
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.widgets.base import Explorer, script, style

if TYPE_CHECKING:
    from prefix_rft_lab.lab.again import Outcome, Step

KNOBS: dict[str, tuple[Any, ...]] = {
    "method": ("prefix_rft", "rft", "luffy", "rl_sft_loss", "dr_po"),
    "prefix.keep": ("top", "bottom", "random"),
    "prefix.keep_fraction": (0.0, 0.05, 0.2, 0.5, 1.0),
    "prefix.scope": ("update", "row"),
    "prefix.high": (0.1, 0.3, 0.5, 0.95),
    "loss.advantage": ("dr_grpo_prefix", "dr_grpo", "grpo"),
    "loss.clip_high": (0.1, 0.2, 0.28),
    "rl.lr": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "rl.weight_decay": (0.0, 0.01, 0.1),
    "sft.lr": (1e-4, 3e-4, 1e-3, 3e-3),
    "luffy.gamma": (0.03, 0.1, 0.5),
    "relift.batch_problems": (2, 8, 16),
    "uft.nll_weight": (0.0, 0.001, 0.01, 0.1),
}
"""Config fields that the explorer turns, and the values that it offers beside the run's own."""


class StepExplorer(Explorer):
    """A training step with knobs: its tokens are coloured by what another setting would have made of them.

    Single moves are performed beforehand, so that a saved notebook works without a kernel; with one, knobs combine, rows can be
    muted and scores changed, each in well under a second with the embedded model.

    Args:
        step: of :func:`prefix_rft_lab.again`.
        knobs: config field -> values offered, in place of :data:`KNOBS`.
        precomputed: most moves that are performed beforehand.
        effects: rows of the step whose own effect is measured beforehand (:meth:`Step.effects`), the hybrid ones first.

    Raises:
        ConfigError: a knob that the config does not have.
    """

    _esm = script("step")
    _css = style("step")
    # One value per token of the step's rows, the followed demonstrations and the held-out answers.
    texts: traitlets.List = traitlets.List(help="text of each token").tag(sync=True)
    kinds: traitlets.List = traitlets.List(help="kind of each token").tag(sync=True)
    base = traitlets.Bytes(help="float32: logp, carried over, rows, really, advantage, kept of each token").tag(
        sync=True
    )
    rows: traitlets.List = traitlets.List(
        help="where, problem, row, first token, tokens, prefix tokens, score, prompt"
    ).tag(sync=True)
    knobs: traitlets.List = traitlets.List(help="field, values, the run's own value, why it is idle").tag(sync=True)
    results: traitlets.Dict = traitlets.Dict(help="move -> float32 change of log p after the step otherwise").tag(
        sync=True
    )
    effects: traitlets.Dict = traitlets.Dict(
        help="place of a row -> its effect on held-out answers, nats per token"
    ).tag(sync=True)
    titles: traitlets.Dict = traitlets.Dict(help="title, note and sentence above the text").tag(sync=True)
    move = traitlets.Unicode("{}", help="the changes that are asked for, as JSON").tag(sync=True)
    answer: traitlets.Dict = traitlets.Dict(
        help="the newest move that Python performed: move, change, anew, error"
    ).tag(sync=True)
    where = traitlets.Unicode("step", help="step, followed or held out").tag(sync=True)
    row = traitlets.Int(0, help="place of the row that is shown, within rows").tag(sync=True)
    layer = traitlets.Unicode("otherwise", help="otherwise, really, carried_over or rows_did").tag(sync=True)
    cursor = traitlets.Int(0, help="the token that is inspected, from 0").tag(sync=True)

    def __init__(
        self,
        step: Step,
        *,
        knobs: Mapping[str, Sequence[Any]] | None = None,
        precomputed: int = 50,
        effects: int = 16,
    ) -> None:
        self._step = step
        table = step.table()
        read = [*step.rows, *step.replay.read]
        starts = np.concatenate([[0], np.cumsum([len(row.response_ids) for row in read])]).tolist()
        tokenizer = step.replay.trainer.tokenizer
        wheres = table["where"].to_numpy()
        rows = [
            {
                "where": str(wheres[starts[i]]),
                "problem": row.problem.problem.id,
                "row": i if i < len(step.rows) else i - len(step.rows),
                "start": starts[i],
                "count": starts[i + 1] - starts[i],
                "prefix": len(row.prefix_ids),
                "score": row.score if i < len(step.rows) and step.stage.samples else None,
                "prompt": tokenizer.decode(row.problem.prompt_ids, skip_special_tokens=True),
            }
            for i, row in enumerate(read)
            if starts[i + 1] > starts[i]
        ]
        columns = table[["logp", "carried_over", "rows_did", "really", "advantage", "kept"]]
        offered = self._offered(knobs or KNOBS, given=knobs is not None)
        moves = [{k["field"]: v} for k in offered if not k["idle"] for v in k["values"] if v != k["own"]]
        results = {}
        for one in moves[:precomputed]:
            try:
                results[_key(one)] = self._change(step.otherwise(**_arguments(one))).tobytes()
            except (ConfigError, RunError):
                # Not every value goes with the run's others; asking for it says why.
                continue
        super().__init__(
            texts=table["text"].tolist(),
            kinds=table["kind"].tolist(),
            base=columns.to_numpy(np.float32).T.tobytes(),
            rows=rows,
            knobs=offered,
            results=results,
            effects=self._effects(effects),
            titles={"title": f"Step {step.number} again", "note": step.note, "sentence": step.sentence()},
            row=next((i for i, row in enumerate(rows) if 0 < row["prefix"] < row["count"]), 0),
        )
        self.observe(self._perform, "move")

    def _offered(self, knobs: Mapping[str, Sequence[Any]], *, given: bool) -> list[dict[str, Any]]:
        config = self._step.replay.config
        own = dict(flatten(config.to_dict()))
        out = []
        for field, values in knobs.items():
            if field not in own:
                raise ConfigError(
                    f"knob {field!r} is no field of the config; use one like {', '.join(list(KNOBS)[1:4])}"
                )
            idle = "" if field == "method" else self._step.idle(field)
            # Of the kit's own list, what belongs to other methods and stages is left out.
            if given or not any(word in idle for word in ("belongs to", "samples nothing", "draws no prefix")):
                every = [*values, *([] if own[field] in values else [own[field]])]
                every = sorted(every) if all(isinstance(v, int | float) for v in every) else every
                out.append({"field": field, "values": every, "own": own[field], "idle": idle})
        return out

    def _effects(self, most: int) -> dict[str, float]:
        step = self._step
        order = sorted(range(len(step.rows)), key=lambda i: not step.rows[i].is_hybrid)
        found = step.effects(order[:most])
        if "held_out" not in found:
            return {}
        return {str(row): value for row, value in zip(found["row"], found["held_out"].tolist(), strict=True)}

    def _change(self, other: Outcome) -> np.ndarray:
        """(tokens,) float32 change of log p of the tokens that the step really had; NaN for rows sampled anew."""
        return self._step.change(other).astype(np.float32)

    def _perform(self, change: Any) -> None:
        move = change["new"]
        try:
            asked = json.loads(move)
            other = self._step.otherwise(**_arguments(asked))
        except (ConfigError, RunError, ValueError, TypeError) as error:
            self.answer = {"move": move, "error": str(error)}
            return
        self.answer = {"move": move, "change": self._change(other).tobytes(), "error": ""}

    def summary(self) -> str:
        return self.titles["sentence"]

    def picture(self) -> plots.RunFigure:
        asked = json.loads(self.move)
        return plots.update_effect(
            self._step, self._step.otherwise(**_arguments(asked)) if asked else None, name=self.move
        )


def _key(move: Mapping[str, Any]) -> str:
    """A move as the browser writes it: JSON with sorted fields and no spaces."""
    return json.dumps(dict(sorted(move.items())), separators=(",", ":"))


def _arguments(move: Mapping[str, Any]) -> dict[str, Any]:
    """A move as arguments of :meth:`Step.otherwise`: JSON has no integers as keys."""
    out = dict(move)
    if "scores" in out:
        out["scores"] = {int(row): float(score) for row, score in out["scores"].items()}
    return out
