"""Agreement with the published implementations, function by function, on recorded cases.

    make parity                    the cases of tests/golden
    make parity CASES=DIR          those of another folder

A case is a JSON file with ``meta``, ``inputs`` and ``outputs``; ``meta.kind`` picks a function here that calls the
library on the inputs. No formula stands in this file: what is compared is what the trainer uses, and for variants that
only the published code has, the modules beside this one.
Every recorded output is compared at the case's own tolerance, |got - want| <= atol + rtol |want|, except those of
:data:`NOT_COMPARED`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefix_rft_lab import advantages, losses, rng, schedules
from prefix_rft_lab.entropy import dropped_count, entropy_and_logp

from . import aggregations, rivals
from .assembly import assemble_published
from .weighting import WeightingInputs, apply_transforms, token_advantages

NO_PREFIX = "0000-0000-0000-0000"
"""The prefix id of rows without a prefix."""

NOT_COMPARED = frozenset({"n_samples", "sample_mean", "sample_var", "sample_min", "sample_max", "sample_deciles"})
"""Outputs that describe one Monte-Carlo run of the published sampler; ours is tested against the closed forms."""

Outputs = dict[str, Any]


class PropertyError(AssertionError):
    """A property that no recorded number states does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One file."""

    name: str
    meta: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    def tensor(self, name: str) -> torch.Tensor:
        """An input as float32, a mask as bool."""
        value = torch.tensor(self.inputs[name])
        return value.bool() if name.endswith("_mask") else value.float()

    def optional(self, name: str) -> torch.Tensor | None:
        return None if self.inputs.get(name) is None else self.tensor(name)


@dataclass(slots=True, kw_only=True)
class KindResult:
    """What came of all cases of one kind."""

    kind: str
    cases: int = 0
    fields: int = 0
    """Recorded outputs compared, over all cases."""
    values: int = 0
    """Numbers in them."""
    worst: float = 0.0
    """Largest error as a multiple of what the case allows; above 1 is a failure."""
    failures: list[str] = field(default_factory=list)
    """One sentence each."""

    @property
    def ok(self) -> bool:
        return not self.failures and self.fields > 0


def _schedule(case: Case) -> Outputs:
    config = {**case.inputs["config"], "type": case.meta["variant"]}
    return {"values": [_scheduled(config, step) for step in case.inputs["steps"]]}


def _scheduled(config: dict[str, Any], step: int) -> float:
    """Value of a schedule written as {type, init, target, ...}; ``const`` and ``cosine_decay`` are other names."""
    name = config["type"].removesuffix("_decay")
    if name in ("const", "constant"):
        return config["init"]
    arguments = {key: value for key, value in config.items() if key != "type"}
    return getattr(schedules, name)(step, **arguments)


def _window(case: Case, step: int) -> tuple[float, float]:
    return schedules.ordered_window(
        _scheduled(case.inputs["low_schedule"], step), _scheduled(case.inputs["high_schedule"], step)
    )


def _prefix_ratio_window(case: Case) -> Outputs:
    windows = [_window(case, step) for step in case.inputs["steps"]]
    moments = []
    for recorded in case.outputs.get("moments", []):
        low, high = _window(case, recorded["step"])
        shape = (case.inputs["alpha"], case.inputs["beta"])
        mean, variance = schedules.window_mean(low, high, *shape), schedules.window_variance(low, high, *shape)
        generator = rng.generator(0, "parity-ratio", case.name, recorded["step"])
        draws = np.array([schedules.sample_window(low, high, *shape, generator) for _ in range(4000)])
        _check_moments(draws, low, high, mean, variance)
        moments.append({"step": recorded["step"], "low": low, "high": high, "exact_mean": mean, "exact_var": variance})
    outputs: Outputs = {"low": [low for low, _ in windows], "high": [high for _, high in windows]}
    return outputs | ({"moments": moments} if "moments" in case.outputs else {})


def _check_moments(draws: np.ndarray, low: float, high: float, mean: float, variance: float) -> None:
    """Raise unless draws lie in the window with mean and variance within five standard errors."""
    if draws.min() < low or draws.max() > high:
        raise PropertyError(f"a sampled ratio lies outside the window [{low}, {high}]")
    squares = (draws - mean) ** 2
    for name, sample, expected in (("mean", draws, mean), ("variance", squares, variance)):
        allowed = 5 * float(sample.std()) / math.sqrt(len(draws)) + 1e-12
        if abs(float(sample.mean()) - expected) > allowed:
            raise PropertyError(f"the sampled {name} {sample.mean()} is more than 5 standard errors from {expected}")


def _prefix_length(case: Case) -> Outputs:
    lists = (case.inputs[name] for name in ("ratio", "demo_len", "min_prefix_len"))
    return {"prefix_len": [schedules.prefix_length(*values) for values in zip(*lists, strict=True)]}


def _codes(names: Sequence[str]) -> torch.Tensor:
    """(rows,) int64 numbers for names, -1 for no prefix."""
    known = {name: i for i, name in enumerate(sorted(set(names)))}
    return torch.tensor([-1 if name == NO_PREFIX else known[name] for name in names], dtype=torch.int64)


def _advantage(case: Case) -> Outputs:
    name = case.meta["variant"]
    if name == "grpo" and not case.inputs.get("normalise_by_std", True):
        name = "dr_grpo"
    scores = advantages.Scores(
        scores=case.tensor("token_level_rewards").sum(1),
        group=_codes(case.inputs["prompt_id"]),
        prefix_group=_codes(case.inputs["prefix_id"]),
        epsilon=case.inputs["epsilon"],
        rows_per_prefix=case.inputs["num_rollouts_per_prefix"],
    )
    rows = advantages.ESTIMATORS[name](scores)
    return {"advantages": token_advantages(rows, case.tensor("response_mask"), case.tensor("prefix_mask"))}


def _luffy_advantage(case: Case) -> Outputs:
    on_policy, standardise = torch.tensor(case.inputs["is_on_policy"]).bool(), case.inputs["normalise_by_std"]
    scores = advantages.Scores(
        scores=case.tensor("token_level_rewards").sum(1),
        group=_codes(case.inputs["prompt_id"]),
        prefix_group=torch.where(on_policy, -1, 0),
        epsilon=case.inputs["epsilon"],
    )
    if case.meta["variant"] == "joint":
        rows = (advantages.grpo if standardise else advantages.dr_grpo)(scores)
    else:
        rows = advantages.plain_baseline(scores, standardise=standardise)
    response = case.tensor("response_mask")
    return {"advantages": token_advantages(rows, response, torch.zeros_like(response))}


def _mask_ratio(case: Case) -> float | None:
    schedule = case.inputs.get("mask_ratio_schedule")
    return _scheduled(schedule, case.inputs["global_step"]) if schedule else case.inputs.get("mask_ratio")


def _weighting_inputs(case: Case, logp: torch.Tensor) -> WeightingInputs:
    return WeightingInputs(
        advantages=case.tensor("advantages"),
        logp=logp,
        old_logp=case.tensor("old_log_prob"),
        response_mask=case.tensor("response_mask"),
        prefix_mask=case.tensor("prefix_mask"),
        entropy=case.optional("entropy"),
        mask_ratio=_mask_ratio(case),
        prefix_relpos=case.optional("prefix_relpos"),
        window_low=case.inputs.get("window_low"),
        window_high=case.inputs.get("window_high"),
    )


def _token_weighting(case: Case) -> Outputs:
    if case.meta["variant"] == "random":
        return _random_weighting(case)
    batch = _weighting_inputs(case, case.tensor("log_prob"))
    weighted = apply_transforms(case.inputs["transforms"], batch)
    outputs: Outputs = {"advantages": weighted.advantages, "log_prob": weighted.logp}
    if batch.mask_ratio is not None:
        prefix_tokens = int(batch.prefix_mask.sum())
        outputs["mask_ratio"], outputs["n_prefix_tokens"] = batch.mask_ratio, prefix_tokens
        outputs["n_dropped"] = dropped_count(prefix_tokens, batch.mask_ratio)
    return outputs


def _random_weighting(case: Case) -> Outputs:
    """Count the zeroed tokens of one row for each recorded number; the choice itself is free."""
    zeroed = []
    pairs = zip(case.inputs["n_prefix_tokens"], case.inputs["mask_ratio"], strict=True)
    for index, (prefix_tokens, mask_ratio) in enumerate(pairs):
        # Three sampled tokens follow the prefix, to see that they stay.
        width = prefix_tokens + 3
        before = torch.arange(1, width + 1, dtype=torch.float32)[None]
        prefix = torch.arange(width)[None] < prefix_tokens
        uniforms = torch.from_numpy(rng.generator(0, "parity-random", case.name, index).random((1, width)))
        batch = WeightingInputs(
            advantages=before,
            logp=-before,
            old_logp=-before,
            response_mask=torch.ones_like(prefix),
            prefix_mask=prefix,
            mask_ratio=mask_ratio,
            uniforms=uniforms,
        )
        after = apply_transforms(["random"], batch)
        gone = after.advantages == 0
        changed = ~torch.where(gone, prefix, after.advantages == before)
        if bool(changed.any()) or not torch.equal(after.logp, batch.logp):
            raise PropertyError("random weighting changed more than the advantages of prefix tokens it zeroed")
        zeroed.append(int(gone.sum()))
    return {"n_zeroed": zeroed}


def _policy_terms(
    case: Case, batch: WeightingInputs, *, clip_low: float, clip_high: float, clipped_prefix: bool
) -> losses.PolicyTerms:
    return losses.policy_loss_tokens(
        batch.logp,
        batch.old_logp,
        batch.advantages,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=case.inputs["clip_ratio_c"],
        unclipped=None if clipped_prefix else batch.prefix_mask,
    )


def _policy_loss_of(case: Case, batch: WeightingInputs) -> torch.Tensor:
    inputs = case.inputs
    terms = _policy_terms(
        case, batch, clip_low=inputs["clip_low"], clip_high=inputs["clip_high"], clipped_prefix=inputs["enable_clip"]
    )
    aggregate = aggregations.AGGREGATIONS[inputs["loss_agg_mode"]]
    return aggregate(terms.loss, batch.response_mask, max_tokens=inputs.get("max_tokens"))


def _policy_metrics(case: Case, batch: WeightingInputs) -> Outputs:
    """The published metrics count prefix tokens as clipped even where ``enable_clip`` is off."""
    inputs, response = case.inputs, batch.response_mask
    terms = _policy_terms(case, batch, clip_low=inputs["clip_low"], clip_high=inputs["clip_high"], clipped_prefix=True)
    prefix_clip = prefix_dual_clip = torch.tensor(0.0)
    if inputs["enable_clip"]:
        prefix_terms = _policy_terms(
            case,
            batch,
            clip_low=inputs.get("prefix_clip_low", inputs["clip_low"]),
            clip_high=inputs.get("prefix_clip_high", inputs["clip_high"]),
            clipped_prefix=True,
        )
        prefix_clip = aggregations.masked_mean(prefix_terms.clipped.float(), batch.prefix_mask)
        prefix_dual_clip = aggregations.masked_mean(prefix_terms.dual_clipped.float(), response)
    return {
        "clip_fraction": aggregations.masked_mean(terms.clipped.float(), response),
        "dual_clip_fraction": aggregations.masked_mean(terms.dual_clipped.float(), response),
        "mean_old_minus_new_log_prob": aggregations.masked_mean(batch.old_logp - batch.logp, response),
        "prefix_clip_fraction": prefix_clip,
        "prefix_dual_clip_fraction": prefix_dual_clip,
    }


def _policy_loss(case: Case) -> Outputs:
    logp = case.tensor("log_prob").requires_grad_()
    batch = _weighting_inputs(case, logp)
    loss = _policy_loss_of(case, batch)
    (grad,) = torch.autograd.grad(loss, logp)
    return {"loss": loss, "grad_log_prob": grad} | _policy_metrics(case, batch)


def _actor_step(case: Case) -> Outputs:
    logp = case.tensor("log_prob").requires_grad_()
    batch = apply_transforms(case.inputs["transforms"], _weighting_inputs(case, logp))
    loss = _policy_loss_of(case, batch)
    (grad,) = torch.autograd.grad(loss, logp)
    outputs = {"loss": loss, "grad_log_prob": grad, "advantages": batch.advantages, "log_prob": batch.logp}
    return outputs | _policy_metrics(case, batch)


def _rows(batch: WeightingInputs, part: slice) -> WeightingInputs:
    return WeightingInputs(
        advantages=batch.advantages[part],
        logp=batch.logp[part],
        old_logp=batch.old_logp[part],
        response_mask=batch.response_mask[part],
        prefix_mask=batch.prefix_mask[part],
        entropy=None if batch.entropy is None else batch.entropy[part],
        mask_ratio=batch.mask_ratio,
    )


def _accumulation(case: Case) -> Outputs:
    logp = case.tensor("log_prob").requires_grad_()
    batch = _weighting_inputs(case, logp)
    sizes = case.inputs["micro_batch_rows"]
    scales = aggregations.accumulation_scales(sizes, case.inputs["scaling"])
    parts = [
        apply_transforms(["entropy"], _rows(batch, part)) for part in aggregations.micro_slices(logp.shape[0], sizes)
    ]
    micro_losses = [_policy_loss_of(case, part) for part in parts]
    scaled = torch.stack([loss * scale for loss, scale in zip(micro_losses, scales, strict=True)]).sum()
    (grad,) = torch.autograd.grad(scaled, logp)
    whole = apply_transforms(["entropy"], batch)
    whole_loss = _policy_loss_of(case, whole)
    (whole_grad,) = torch.autograd.grad(whole_loss, logp)
    return {
        "micro_losses": torch.stack(micro_losses),
        "micro_scales": scales,
        "advantages": torch.cat([part.advantages for part in parts]),
        "grad_log_prob": grad,
        "whole_batch_loss": whole_loss,
        "whole_batch_advantages": whole.advantages,
        "whole_batch_grad_log_prob": whole_grad,
    }


def _luffy_loss(case: Case) -> Outputs:
    inputs = case.inputs
    logp, old_logp = case.tensor("log_prob").requires_grad_(), case.tensor("old_log_prob")
    response, off = case.tensor("response_mask"), case.tensor("off_policy_mask")
    values, probs = case.tensor("advantages"), case.optional("demo_probs")
    shape: losses.DemonstrationShape = "luffy" if inputs["shaping"] == "p_div_p_0.1" else inputs["shaping"]
    terms = losses.policy_loss_tokens(
        logp,
        old_logp,
        values,
        clip_low=inputs["clip"],
        clip_high=inputs["clip"],
        dual_clip=None,
        unclipped=torch.ones_like(response) if inputs["no_clip"] else None,
    )
    demonstration = losses.shaped_demonstration_tokens(logp, values, shape=shape, demonstration_probs=probs)
    tokens = torch.where(off, demonstration, terms.loss)
    aggregate = aggregations.AGGREGATIONS["dr_grpo" if inputs["sum_over_width"] else "token-mean"]
    loss = aggregate(tokens, response, max_tokens=response.shape[1])
    (grad,) = torch.autograd.grad(loss, logp)
    stand_in = losses.demonstration_ratio(logp, shape=shape, demonstration_probs=probs)
    off, on = off & response, response & ~off
    return {
        "loss": loss,
        "grad_log_prob": grad,
        "off_policy_loss_token_mean": aggregations.masked_mean(tokens, off),
        "on_policy_loss_token_mean": aggregations.masked_mean(tokens, on),
        "mean_prob_off": aggregations.masked_mean(logp.exp(), off),
        "mean_old_prob_on": aggregations.masked_mean(old_logp.exp(), on),
        "mean_off_ratio": aggregations.masked_mean(stand_in, off),
        "mean_old_minus_new_log_prob": aggregations.masked_mean(old_logp - logp, response),
        "clip_fraction": aggregations.masked_mean(terms.clipped.float(), response),
    }


def _sft_aggregation(case: Case) -> Outputs:
    logits = case.tensor("bigram_logits").requires_grad_()
    ids, rows = torch.tensor(case.inputs["input_ids"]), case.inputs["micro_batch_rows"]
    logp, _ = entropy_and_logp(logits[ids[:, :-1]], ids[:, 1:])
    nll, targets = losses.nll_tokens(logp), case.tensor("loss_mask")[:, :-1]
    objectives = {
        "global_token_mean": aggregations.global_token_mean(nll, targets),
        "mean_of_micro_means": aggregations.mean_of_micro_means(nll, targets, rows),
        "sequence_mean": aggregations.sequence_mean(nll, targets),
        "summed_micro_means": aggregations.summed_micro_means(nll, targets, rows),
    }
    means, counts = aggregations.micro_means(nll, targets, rows)
    outputs: Outputs = {"micro_means": means, "micro_token_counts": counts}
    for name, objective in objectives.items():
        outputs[f"{name}_loss"] = objective
        (outputs[f"{name}_grad"],) = torch.autograd.grad(objective, logits, retain_graph=True)
    outputs["summed_micro_means_loss_reported"] = objectives["mean_of_micro_means"]
    return outputs


def _response_assembly(case: Case) -> Outputs:
    inputs = case.inputs
    batch = assemble_published(
        torch.tensor(inputs["prompts"]),
        torch.tensor(inputs["generated"]),
        inputs["raw_prompt_len"],
        inputs["demo_len"],
        pad_id=inputs["pad_id"],
        eos_id=inputs["eos_id"],
        max_response_len=inputs["max_response_len"],
    )
    names = ("prompts", "responses", "input_ids", "attention_mask", "position_ids", "prefix_mask", "prefix_relpos")
    return {name: getattr(batch, name) for name in names}


KINDS: dict[str, Callable[[Case], Outputs]] = {
    "schedule": _schedule,
    "prefix_ratio_window": _prefix_ratio_window,
    "prefix_length": _prefix_length,
    "advantage": _advantage,
    "token_weighting": _token_weighting,
    "policy_loss": _policy_loss,
    "actor_step": _actor_step,
    "accumulation": _accumulation,
    "sft_aggregation": _sft_aggregation,
    "luffy_loss": _luffy_loss,
    "luffy_advantage": _luffy_advantage,
    "response_assembly": _response_assembly,
    **rivals.KINDS,
}
"""``meta.kind`` -> the library's outputs for a case."""


def run_parity(folder: Path) -> list[KindResult]:
    """Compare the library with every ``*.json`` case of a folder, one result a kind.

    What cannot be read or is not known is a result that failed, under the name of the kind or file; an empty or
    missing folder gives one failed result.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        what = "holds no *.json cases" if folder.is_dir() else "is not a folder"
        sentence = f"cases = {str(folder)!r} {what}; give a folder with recorded cases"
        return [KindResult(kind="no cases", failures=[sentence])]
    results: dict[str, KindResult] = {}
    for path in paths:
        try:
            case = _read(path)
        except (OSError, ValueError) as error:
            results[path.name] = KindResult(kind=path.name, cases=1, failures=[str(error)])
            continue
        kind = str(case.meta["kind"])
        result = results.setdefault(kind, KindResult(kind=kind))
        result.cases += 1
        if kind not in KINDS:
            result.failures.append(f"{case.name}: kind = {kind!r} is not known; known are {', '.join(KINDS)}")
            continue
        try:
            _compare_case(case, KINDS[kind](case), result)
        except Exception as error:
            # One broken case must not hide the others.
            result.failures.append(f"{case.name}: {type(error).__name__}: {error}")
    order = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(results.values(), key=lambda result: (order.get(result.kind, len(order)), result.kind))


def passed(results: Sequence[KindResult]) -> bool:
    """Whether there are results and all are ok."""
    return bool(results) and all(result.ok for result in results)


def format_results(results: Sequence[KindResult]) -> str:
    """One line a kind, then one line a failure, then the verdict."""
    lines = [
        f"{result.kind:<20} {result.cases:>3} cases {result.fields:>4} fields {result.values:>6} values  "
        f"worst error {result.worst:.3f} of tolerance  {'ok' if result.ok else 'FAIL'}"
        for result in results
    ]
    lines += [f"  {result.kind}: {failure}" for result in results for failure in result.failures]
    good = sum(result.ok for result in results)
    lines.append(f"parity {'ok' if passed(results) else 'FAIL'}: {good} of {len(results)} kinds agree")
    return "\n".join(lines)


def _read(path: Path) -> Case:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON ({error}); restore the file") from None
    sections = ("meta", "inputs", "outputs")
    if not isinstance(content, dict) or any(not isinstance(content.get(name), dict) for name in sections):
        raise ValueError(f"{path.name} lacks one of the mappings meta, inputs, outputs; restore the file")
    if "kind" not in content["meta"]:
        raise ValueError(f"{path.name} names no meta.kind; restore the file")
    return Case(name=path.stem, **{name: content[name] for name in sections})


def _compare_case(case: Case, got: Outputs, result: KindResult) -> None:
    tolerance = case.meta["tolerance"]
    compared = 0
    for name, want, have in _leaves(case.outputs, got):
        compared += 1
        if have is None:
            result.failures.append(f"{case.name}: {name} is recorded but not computed")
            continue
        a = np.asarray(have.detach() if isinstance(have, torch.Tensor) else have, dtype=np.float64)
        b = np.asarray(want, dtype=np.float64)
        if a.shape != b.shape:
            result.failures.append(f"{case.name}: {name} has shape {a.shape}, recorded is {b.shape}")
            continue
        error, allowed = np.abs(a - b), tolerance["atol"] + tolerance["rtol"] * np.abs(b)
        # Where nothing is allowed an error is infinitely many times the tolerance, and no error is 0 times it.
        share = np.where(error == 0, 0.0, np.divide(error, allowed, out=np.full_like(b, np.inf), where=allowed > 0))
        share = np.where(np.isnan(share), np.inf, share)
        worst = float(share.max(initial=0.0))
        result.values += b.size
        result.worst = max(result.worst, worst)
        if worst > 1:
            result.failures.append(f"{case.name}: {name} is off by up to {worst:.3g} times the tolerance")
    result.fields += compared
    if compared == 0:
        result.failures.append(f"{case.name}: no output is recorded, so nothing was compared")


def _leaves(want: Any, got: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, recorded, computed or None) of every recorded output, into mappings and lists of mappings."""
    if isinstance(want, dict):
        for key, value in want.items():
            if key not in NOT_COMPARED:
                inner = got.get(key) if isinstance(got, dict) else None
                yield from _leaves(value, inner, f"{name}.{key}" if name else key)
    elif isinstance(want, list) and want and isinstance(want[0], dict):
        for i, value in enumerate(want):
            inner = got[i] if isinstance(got, list) and i < len(got) else None
            yield from _leaves(value, inner, f"{name}[{i}]")
    else:
        yield name, want, got


def main(folder: str = str(Path(__file__).parents[1] / "golden")) -> int:
    """Print how the cases of a folder fare; 0 if all agree, else 1."""
    results = run_parity(Path(folder))
    print(format_results(results))
    return 0 if passed(results) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
