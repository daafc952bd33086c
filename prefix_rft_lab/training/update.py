"""One update: advantages, entropy clip, token losses, gradient, optimizer step.

Everything is flat over the response tokens of an optimizer window and divided once by numbers known before the first
pass, so the result depends neither on how the window is cut into micro-batches, nor on padding, nor on row order,
beyond rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from prefix_rft_lab.algorithm import advantages as credit
from prefix_rft_lab.algorithm import entropy as clip
from prefix_rft_lab.algorithm import losses, methods
from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import OptimConfig, RunConfig
from prefix_rft_lab.core.types import KIND_NAMES, Row, TokenKind, TokenStats
from prefix_rft_lab.models.policy import autocast_dtype, response_stats, trained_parameters
from prefix_rft_lab.models.tokens import pad_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one step's update saw and did; tokens are the response tokens of all rows, in row order."""

    loss: float
    grad_norm: float
    """Before clipping; the mean over optimizer windows."""
    kinds: torch.Tensor  # (tokens,) int64 TokenKind
    entropy: torch.Tensor  # (tokens,) nats
    logp: torch.Tensor  # (tokens,) nats
    old_logp: torch.Tensor  # (tokens,) nats, of the policy before the step: what ratios are taken against
    advantages: torch.Tensor  # (tokens,) before the entropy clip
    ranked: torch.Tensor  # (tokens,) bool, in the entropy clip's scope
    rank: torch.Tensor  # (tokens,) what the entropy clip ranks by, lowest first to go; 0 where nothing is ranked
    kept: torch.Tensor  # (tokens,) bool, False where the entropy clip took the advantage away
    limited: torch.Tensor  # (tokens,) bool, where the ratio clip acted
    grad_norms: dict[TokenKind, float] = field(default_factory=dict)
    """Gradient norm of each kind's loss alone, before clipping; empty unless asked for."""
    kl: float | None = None
    """KL from the policy before the step to the one after it, mean over sampled tokens, nats; None unless asked for."""
    entropy_change: float | None = None
    """Mean entropy of the sampled tokens after the step minus before, nats; None unless asked for."""


class Updater:
    """Updates a model on the rows of a step.

    Args:
        model: a causal language model with float32 weights.
        config: the run.
        pad_id: fills batches.
    """

    def __init__(self, model: Any, config: RunConfig, *, pad_id: int) -> None:
        self.model = model
        self.config = config
        self.pad_id = pad_id
        self.device = model.device
        self.autocast = autocast_dtype(config)

    def update(
        self,
        rows: list[Row],
        stage: methods.Stage,
        section: OptimConfig,
        optimizer: torch.optim.Optimizer,
        step: int,
        *,
        diagnose: bool = False,
        row_weights: torch.Tensor | None = None,
    ) -> UpdateResult:
        """Credit, clip, loss, gradient and optimizer step(s) for the rows of a step; a window whose loss or gradient is NaN or
        infinite changes nothing.

        The rows are cut into ``loss.updates_per_rollout`` optimizer windows; each is cut into micro-batches of
        rows of similar length, which change memory and time only.

        Args:
            diagnose: also measure the gradient norm of each token kind, which holds one more gradient a kind in memory,
                and how far the policy moved, which costs one more forward pass. The update is the same to the bit.
            row_weights: (rows,) factors of the token losses of each row. A row of weight 0 still counts in baselines, in the
                entropy clip and in denominators. None, like weights of 1, changes no bit.
        """
        windows = _cut(rows, self.config.loss.updates_per_rollout) if stage.samples else [rows]
        row_advantages = self._advantages(rows, stage)
        old: list[torch.Tensor] | None = None
        entropy: torch.Tensor | None = None
        if len(windows) > 1:
            before = [self.stats_without_grad(window) for window in windows]
            old = [torch.cat([logp for logp, _ in window]) for window in before]
            entropy = torch.cat([entropy for window in before for _, entropy in window])
        results = []
        start = 0
        for number, window in enumerate(windows):
            part = {kind: values[start : start + len(window)] for kind, values in row_advantages.items()}
            of_rows = None if row_weights is None else row_weights[start : start + len(window)]
            start += len(window)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(section, step)
            results.append(
                self._update_window(
                    window,
                    part,
                    stage,
                    section,
                    optimizer,
                    step,
                    old_logp=None if old is None else old[number],
                    diagnose=diagnose,
                    row_weights=of_rows,
                )
            )
        result = results[0] if len(results) == 1 else _merge(results)
        if not (diagnose and stage.samples):
            return result
        return self._movement(rows, result, result.entropy if entropy is None else entropy.to(self.device))

    def _movement(self, rows: Sequence[Row], result: UpdateResult, entropy: torch.Tensor) -> UpdateResult:
        """The result with how far the step moved the policy, measured on its own samples.

        ``entropy``, (tokens,) nats, is that of the policy before the step.

        KL(old || new) is estimated without bias by the mean of r - 1 - log r with r = new / old, which is never negative
        (J. Schulman, Approximating KL divergence, 2020).
        """
        after = self.stats_without_grad(rows)
        sampled = result.kinds != TokenKind.PREFIX
        if not sampled.any():
            return result
        log_ratio = (torch.cat([logp for logp, _ in after]).to(self.device) - result.old_logp)[sampled]
        change = torch.cat([entropy for _, entropy in after]).to(self.device) - entropy
        return replace(
            result,
            kl=float((log_ratio.exp() - 1 - log_ratio).mean()),
            entropy_change=float(change[sampled].mean()),
        )

    def _advantages(self, rows: list[Row], stage: methods.Stage) -> dict[TokenKind, torch.Tensor]:
        """(rows,) advantage for each token kind; zeros where nothing is scored."""
        if not stage.samples:
            zeros = torch.zeros(len(rows))
            return dict.fromkeys(KIND_NAMES, zeros)
        places: dict[tuple[int, ...], int] = {}
        group = torch.tensor([places.setdefault(row.problem.key, len(places)) for row in rows])
        prefix_group = torch.tensor([row.prefix_number if row.prefix_ids else -1 for row in rows])
        scores = torch.tensor([row.score for row in rows], dtype=torch.float32)
        shared = self.config.rollout.rows_per_prefix
        rows_of_step = credit.Scores(scores=scores, group=group, prefix_group=prefix_group, rows_per_prefix=shared)
        values = credit.ESTIMATORS.find(stage.estimator(self.config))(rows_of_step)
        return {
            TokenKind.ON_POLICY: values.sampled,
            TokenKind.CONTINUATION: values.sampled,
            TokenKind.PREFIX: values.prefix,
        }

    def micro_batches(self, rows: Sequence[Row]) -> list[list[int]]:
        """Indices of rows for each forward pass: similar lengths together, at most ``micro_batch_tokens`` padded."""
        lengths = [len(row.problem.prompt_ids) + len(row.response_ids) for row in rows]
        batches: list[list[int]] = []
        for i in sorted(range(len(rows)), key=lambda i: lengths[i]):
            # Sorted ascending, so row i is the widest of its batch so far.
            if batches and (len(batches[-1]) + 1) * lengths[i] <= self.config.micro_batch_tokens:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def stats_without_grad(
        self, rows: Sequence[Row], *, temperature: float | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(logp, entropy) of the response tokens of each row, in row order; at ``rollout.temperature`` unless told."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = [(torch.empty(0), torch.empty(0))] * len(rows)
        with torch.no_grad():
            for indices in self.micro_batches(rows):
                stats = self._forward([rows[i] for i in indices], temperature)
                counts = [len(rows[i].response_ids) for i in indices]
                for i, logp, entropy in zip(
                    indices, stats.logp.split(counts), stats.entropy.split(counts), strict=True
                ):
                    found[i] = (logp, entropy)
        return found

    def _forward(self, rows: Sequence[Row], temperature: float | None) -> TokenStats:
        batch = pad_rows(rows, self.pad_id, self.device)
        if temperature is None:
            temperature = self.config.rollout.temperature
        return response_stats(self.model, batch, temperature=temperature, autocast=self.autocast)

    def _update_window(
        self,
        rows: list[Row],
        row_advantages: dict[TokenKind, torch.Tensor],
        stage: methods.Stage,
        section: OptimConfig,
        optimizer: torch.optim.Optimizer,
        step: int,
        *,
        old_logp: torch.Tensor | None,
        diagnose: bool,
        row_weights: torch.Tensor | None,
    ) -> UpdateResult:
        """One optimizer step in three passes over the window's tokens: measure, clip, train."""
        window = self._laid_out(rows, row_advantages, stage)
        first = self._measure(window)
        if window.ranked.any():
            self._clip(window, step)
        optimizer.zero_grad(set_to_none=True)
        gradients: dict[TokenKind, list[torch.Tensor]] | None = {} if diagnose else None
        total = self._train(window, stage, step, first, old_logp, row_weights, gradients)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), section.grad_clip))
        if math.isfinite(norm) and math.isfinite(total):  # or the moments would be lost for good
            optimizer.step()
        columns = ("entropy", "logp", "kinds", "rank", "kept", "ranked", "limited")
        return UpdateResult(
            loss=total,
            grad_norm=norm,
            old_logp=window.logp if old_logp is None else old_logp,
            advantages=window.values,
            grad_norms={kind: _norm(gradient) for kind, gradient in (gradients or {}).items()},
            **{name: getattr(window, name) for name in columns},
        )

    def _laid_out(
        self, rows: list[Row], row_advantages: dict[TokenKind, torch.Tensor], stage: methods.Stage
    ) -> _WindowTokens:
        """The tokens of a window, its rows in micro-batches.

        Rows whose tokens can have no gradient (groups that all score the same) are measured but not trained: the backward
        pass is two thirds of the work.
        """
        config = self.config
        kinds = torch.tensor([k for row in rows for k in row.kinds], device=self.device)
        row_of = _row_of(rows).to(self.device)
        values = torch.zeros(len(kinds), device=self.device)
        for kind, by_row in row_advantages.items():
            values = torch.where(kinds == kind, by_row.to(self.device)[row_of], values)
        ranked = torch.zeros_like(kinds, dtype=torch.bool)
        for kind in stage.ranked(config):
            ranked |= kinds == kind
        trained = self._has_gradient(kinds, values, stage)
        if "micro_batch" in (config.prefix.scope, config.loss.normalise):
            # Published code cuts all rows into micro-batches, whether they have a gradient or not.
            trained = torch.ones_like(trained)
        offsets = np.concatenate([[0], np.cumsum([len(row.response_ids) for row in rows])])
        active = [i for i in range(len(rows)) if trained[offsets[i] : offsets[i + 1]].any()]
        batches = [[active[i] for i in part] for part in self.micro_batches([rows[i] for i in active])]
        places = [np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in indices]) for indices in batches]
        return _WindowTokens(
            rows=rows,
            # What was not sampled has no sampling temperature: SFT is at 1.
            temperature=None if stage.samples else 1.0,
            kinds=kinds,
            row_of=row_of,
            values=values,
            ranked=ranked,
            offsets=offsets,
            batches=batches,
            places=[torch.from_numpy(place).to(self.device) for place in places],
            idle=sorted(set(range(len(rows))) - set(active)),
            logp=torch.zeros_like(values),
            entropy=torch.zeros_like(values),
            rank=torch.zeros_like(values),
            kept=torch.ones_like(ranked),
            limited=torch.zeros_like(ranked),
        )

    def _measure(self, window: _WindowTokens) -> TokenStats | None:
        """First pass: log-probabilities and entropies of rows that are not trained, and of all that the clip ranks, since it
        ranks the tokens of the whole window. A single micro-batch needs no pass for that beside its own, which is returned."""
        rows, starts = window.rows, window.offsets
        chosen = list(window.idle)
        single = len(window.batches) == 1
        if not single:
            spans = ((i, slice(starts[i], starts[i + 1])) for batch in window.batches for i in batch)
            chosen += sorted(i for i, span in spans if window.ranked[span].any())
        for part in (chosen[: len(window.idle)], chosen[len(window.idle) :]):
            measured = self.stats_without_grad([rows[i] for i in part], temperature=window.temperature)
            for i, (logp, entropy) in zip(part, measured, strict=True):
                window.logp[starts[i] : starts[i + 1]] = logp
                window.entropy[starts[i] : starts[i + 1]] = entropy
        return self._pass(window, 0) if single else None

    def _pass(self, window: _WindowTokens, number: int) -> TokenStats:
        """The forward pass of a micro-batch, with a gradient."""
        stats = self._forward([window.rows[i] for i in window.batches[number]], window.temperature)
        window.logp[window.places[number]] = stats.logp.detach().float()
        window.entropy[window.places[number]] = stats.entropy.detach().float()
        return stats

    def _train(
        self,
        window: _WindowTokens,
        stage: methods.Stage,
        step: int,
        first: TokenStats | None,
        old_logp: torch.Tensor | None,
        row_weights: torch.Tensor | None,
        gradients: dict[TokenKind, list[torch.Tensor]] | None,
    ) -> float:
        """Third pass: the loss of each micro-batch, over the window's normalisers, and its gradient; the sum of the losses.

        Args:
            first: the forward pass of the only micro-batch, where it is made already.
            gradients: takes the gradient of each kind's loss alone, if given.
        """
        config, rows, kinds = self.config, window.rows, window.kinds
        token_losses = list(stage.each_loss(config))
        sizes = _window(rows, kinds, len(window.batches))
        cap, total = config.rollout.importance_cap, 0.0
        sampled_under = None if cap is None else _engine_logp(rows, kinds)
        for number, (indices, place) in enumerate(zip(window.batches, window.places, strict=True)):
            stats = first or self._pass(window, number)
            inputs = {
                "logp": stats.logp,
                "entropy": stats.entropy,
                "old_logp": stats.logp.detach() if old_logp is None else old_logp[place],
                "advantages": torch.where(window.kept, window.values, 0.0)[place],
                "row_of": window.row_of[place],
            }
            if config.loss.normalise == "micro_batch":
                sizes = replace(sizes, micro=_window([rows[i] for i in indices], kinds[place], 1))
            weights = torch.ones_like(inputs["old_logp"])
            sampled = kinds[place] != TokenKind.PREFIX
            if cap is not None and sampled_under is not None:
                ratios = losses.importance_weights(inputs["old_logp"][sampled], sampled_under[place][sampled], cap)
                weights[sampled] = ratios.to(weights.dtype)
            if row_weights is not None:
                weights = weights * row_weights.to(weights)[window.row_of[place]]
            loss = stats.logp.new_zeros(())
            for kind, token_loss in token_losses:
                member = kinds[place] == kind
                if not member.any():
                    continue
                seen = methods.TokenInputs(
                    **{name: value[member] for name, value in inputs.items()}, step=step, rows=rows
                )
                terms = token_loss.tokens(seen, config)
                part = (terms.loss * weights[member]).sum() / token_loss.normaliser(kind, sizes, config)
                window.limited[place[member]] |= terms.clipped
                loss = loss + part
                if gradients is not None:
                    self._add_gradient(gradients.setdefault(kind, []), part)
            if config.loss.entropy_bonus and stage.samples and sampled.any():
                loss = loss - config.loss.entropy_bonus * stats.entropy[sampled].sum() / sizes.sampled_tokens
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
        if not window.batches:
            # No row has a gradient, as when every group scores alike: still a step, on gradients of 0.
            for parameter in trained_parameters(self.model).values():
                parameter.grad = torch.zeros_like(parameter)
        return total

    def _add_gradient(self, total: list[torch.Tensor], loss: torch.Tensor) -> None:
        """Add the gradient of ``loss`` to ``total``, one tensor a parameter, and leave the graph for the backward pass."""
        if not loss.requires_grad:
            return
        parameters = list(trained_parameters(self.model).values())
        found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        if not total:
            total.extend(found)
        else:
            for place, gradient in enumerate(found):
                total[place] += gradient

    def _has_gradient(self, kinds: torch.Tensor, values: torch.Tensor, stage: methods.Stage) -> torch.Tensor:
        """(tokens,) bool on the CPU: tokens that may contribute to the gradient, before the entropy clip."""
        trained = torch.zeros_like(kinds, dtype=torch.bool)
        for kind, token_loss in stage.each_loss(self.config):
            trained |= (kinds == kind) & (values != 0 if token_loss.needs_advantage else True)
        if self.config.loss.entropy_bonus and stage.samples:
            trained |= kinds != TokenKind.PREFIX
        return trained.cpu()

    def _clip(self, window: _WindowTokens, step: int) -> None:
        """Second pass: what the entropy clip ranks by, and whose advantage it takes away."""
        settings, rows, device = self.config.prefix, window.rows, self.device
        group: torch.Tensor | None = None
        if settings.scope == "row":
            group = window.row_of
        elif settings.scope == "micro_batch":
            group = torch.zeros_like(window.kinds)
            for number, place in enumerate(window.places, 1):
                group[place] = number
        draws = [
            rng.generator(self.config.seed, "clip", step, *row.problem.key, row.row).random(len(row.response_ids))
            for row in rows
        ]
        values = clip.KEEP_RULES.find(settings.keep)(
            clip.RankInputs(
                entropy=window.entropy,
                logp=window.logp,
                position=torch.cat([torch.arange(len(row.response_ids)) for row in rows]).to(device),
                uniforms=torch.from_numpy(np.concatenate(draws)).to(device),
            )
        )
        # Rows of a problem share contexts, so sampled tokens tie; ties go by problem and row, whatever the order of rows.
        by_name = sorted(range(len(rows)), key=lambda i: (rows[i].problem.key, rows[i].row))
        rank = torch.empty(len(rows), dtype=torch.long)
        rank[by_name] = torch.arange(len(rows))
        order = rank[_row_of(rows)].argsort(stable=True).to(device)
        stays = torch.empty_like(window.ranked)
        stays[order] = clip.clip_mask(
            None if values is None else values[order],
            window.ranked[order],
            settings.keep_fraction,
            group=None if group is None else group[order],
        )
        window.kept = ~window.ranked | stays
        if values is not None:
            window.rank = values


@dataclass(slots=True, kw_only=True)
class _WindowTokens:
    """An optimizer window while it is worked on; tensors are (tokens,), flat over its response tokens in row order."""

    rows: list[Row]
    temperature: float | None
    kinds: torch.Tensor
    row_of: torch.Tensor
    values: torch.Tensor  # advantages before the clip
    ranked: torch.Tensor
    offsets: np.ndarray  # (rows + 1,) where the tokens of each row begin
    batches: list[list[int]]  # rows of each micro-batch
    places: list[torch.Tensor]  # tokens of each micro-batch
    idle: list[int]  # rows without a gradient
    logp: torch.Tensor
    entropy: torch.Tensor
    rank: torch.Tensor
    kept: torch.Tensor
    limited: torch.Tensor


def _engine_logp(rows: Sequence[Row], kinds: torch.Tensor) -> torch.Tensor:
    """(tokens,) the engine's log-probability of each sampled token, 0 on the others."""
    found = torch.zeros(len(kinds), device=kinds.device, dtype=torch.float64)
    values = [logp for row in rows for logp in row.engine_logp]
    found[kinds != TokenKind.PREFIX] = torch.tensor(values, device=kinds.device, dtype=torch.float64)
    return found


def _row_of(rows: Sequence[Row]) -> torch.Tensor:
    """(tokens,) int64: the row of each response token."""
    return torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row.response_ids) for row in rows]))


def _window(rows: Sequence[Row], kinds: torch.Tensor, micro_batches: int) -> methods.Window:
    """Sizes of some rows, of whose response tokens ``kinds`` speaks."""
    return methods.Window(
        rows=len(rows),
        sampled_rows=sum(not row.is_demonstration for row in rows),
        tokens={kind: int((kinds == kind).sum()) for kind in KIND_NAMES},
        micro_batches=micro_batches,
    )


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return (
        float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))) if tensors else 0.0
    )


def _cut(rows: list[Row], parts: int) -> list[list[Row]]:
    """Rows in ``parts`` consecutive windows of about equal size that leave the rows of a problem together."""
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.problem.key)]
    return [
        [row for i in part for row in groups[i]]
        for part in np.array_split(np.arange(len(groups)), min(parts, len(groups)))
    ]


def learning_rate(section: OptimConfig, step: int) -> float:
    """Learning rate of a stage's step, from 0: a linear warm-up that reaches the peak, then a constant or half a cosine
    that would reach 0 after the last step."""
    warmup = math.ceil(section.warmup_fraction * section.steps - 1e-9)
    if step < warmup:
        return section.lr * (step + 1) / warmup
    if section.decay == "constant":
        return section.lr
    return section.lr * (1 + math.cos(math.pi * (step - warmup) / max(section.steps - warmup, 1))) / 2


def _merge(results: list[UpdateResult]) -> UpdateResult:
    """One result of several windows."""
    columns = ("kinds", "entropy", "logp", "old_logp", "advantages", "ranked", "rank", "kept", "limited")
    tokens: dict[str, Any] = {name: torch.cat([getattr(r, name) for r in results]) for name in columns}
    kinds = dict.fromkeys(kind for result in results for kind in result.grad_norms)
    return UpdateResult(
        loss=float(np.mean([r.loss for r in results])),
        grad_norm=float(np.mean([r.grad_norm for r in results])),
        grad_norms={kind: float(np.mean([r.grad_norms.get(kind, 0.0) for r in results])) for kind in kinds},
        **tokens,
    )
