"""CHORD, HPT and SRFT as published, for comparison: losses of one update, cut into micro-batches.

CHORD as in Trinity-RFT and ms-swift; HPT and a re-implementation of SRFT as in Unify-Post-Training. What the kit's own methods use
of them (token weights, schedule, gate) is called from the library; sums and divisions, which depend there on how the rows
are cut, are here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from prefix_rft_lab import advantages, losses
from prefix_rft_lab.algorithm.methods import chord, hpt
from prefix_rft_lab.config import preset
from prefix_rft_lab.types import EncodedProblem, Problem, Row

from .aggregations import AGGREGATIONS, accumulation_scales, dr_grpo_sum, masked_mean, micro_slices

if TYPE_CHECKING:
    from .parity import Case

Outputs = dict[str, Any]

TOKEN_WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "phi": chord.phi,
    "is": lambda p: p,
    "none": None,
}


def _on_response(case: Case, name: str) -> torch.Tensor:
    """An input, 0 on padding, so that what stands there reaches no gradient."""
    return torch.where(case.tensor("response_mask"), case.tensor(name), 0.0)


def _mu(config: dict[str, Any], step: int) -> float:
    return chord.mu(step, **{name.removeprefix("mu_"): value for name, value in config.items()})


def _chord_mu(case: Case) -> Outputs:
    return {"values": [_mu(case.inputs["config"], step) for step in case.inputs["steps"]]}


def _chord_token_weight(case: Case) -> Outputs:
    logp, response = _on_response(case, "log_prob").requires_grad_(), case.tensor("response_mask")
    weight, cutoff = TOKEN_WEIGHTS[case.inputs["weighting"]], case.inputs.get("cutoff_prob", 1.0)
    weights = torch.ones_like(logp) if weight is None else weight(logp.detach().exp())
    tokens = losses.nll_tokens(logp, weight)
    if cutoff < 1 and case.inputs["weighting"] == "phi":
        tokens = weights * losses.nll_tokens(logp.clamp(max=math.log(cutoff)))
    loss = AGGREGATIONS[case.inputs["loss_agg_mode"]](tokens, response)
    (grad,) = torch.autograd.grad(loss, logp)
    return {"weights": torch.where(response, weights, 0.0), "loss": loss, "grad_log_prob": grad}


def _chord_loss(case: Case) -> Outputs:
    inputs, response = case.inputs, case.tensor("response_mask")
    logp, expert = _on_response(case, "log_prob").requires_grad_(), case.tensor("expert_mask")
    plain = losses.policy_loss_tokens(
        logp,
        _on_response(case, "old_log_prob"),
        _on_response(case, "advantages"),
        clip_low=inputs["clip_low"],
        clip_high=inputs["clip_high"],
        dual_clip=inputs["clip_ratio_c"],
    ).loss
    copied = losses.nll_tokens(logp, TOKEN_WEIGHTS[inputs["weighting"]])
    mu, sizes = _mu(inputs["config"], inputs["step"]), inputs["micro_batch_rows"]
    sides: dict[str, list[torch.Tensor]] = {"grpo": [], "sft": []}
    scales = accumulation_scales(sizes, inputs["scaling"])
    for part, scale in zip(micro_slices(len(expert), sizes), scales, strict=True):
        for side, tokens, rows, all_rows in (
            ("grpo", plain, ~expert, "usual_rows"),
            ("sft", copied, expert, "expert_rows"),
        ):
            own = rows[part]
            mean = AGGREGATIONS[inputs[f"{side}_loss_agg_mode"]](tokens[part][own], response[part][own])
            sides[side].append(int(own.sum()) / max(inputs[all_rows], 1) / scale * mean)
    grpo, sft = torch.stack(sides["grpo"]), torch.stack(sides["sft"])
    micro = (1 - mu) * grpo + mu * sft
    loss = (torch.tensor(scales) * micro).sum()
    (grad,) = torch.autograd.grad(loss, logp)
    return {
        "mu": mu,
        "micro_grpo_losses": grpo,
        "micro_sft_losses": sft,
        "micro_losses": micro,
        "micro_scales": scales,
        "loss": loss,
        "grad_log_prob": grad,
    }


def _chord_swift_loss(case: Case) -> Outputs:
    logp, mu = _on_response(case, "log_prob").requires_grad_(), _mu(case.inputs["config"], case.inputs["step"])
    policy = torch.tensor(float(case.inputs["grpo_loss"]), requires_grad=True)
    copied = masked_mean(losses.nll_tokens(logp, TOKEN_WEIGHTS[case.inputs["weighting"]]), case.tensor("response_mask"))
    loss = (1 - mu) * policy + mu * copied
    grad, of_policy = torch.autograd.grad(loss, (logp, policy))
    return {"mu": mu, "loss": loss, "grad_log_prob": grad, "grad_grpo_loss": of_policy}


def _hpt_gate(case: Case) -> Outputs:
    """By the decision of the kit's own method; the second gate is a second decision."""
    inputs = case.inputs
    solved, demonstrations, by_rl = [], [], []
    keep = [0] * len(inputs["scores"])
    for index, name in enumerate(inputs["problems"]):
        problem = EncodedProblem(problem=Problem(id=name, prompt="", answer=""), index=index, prompt_ids=[])
        rows = [
            Row(problem=problem, row=i, score=score, solved=score == 1)
            for i, (score, own) in enumerate(zip(inputs["scores"], inputs["prompt_id"], strict=True))
            if own == name
        ]
        group = [*rows, Row(problem=problem, row=len(keep), is_demonstration=True)]
        imitated, switched = (
            any(
                row.is_demonstration for row in hpt.decide(group, 0, preset("tiny", method="hpt", **{"hpt.gate": gate}))
            )
            for gate in (inputs["gate"], max(inputs["gate"], inputs["gate_off"]))
        )
        solved.append(sum(row.solved for row in rows))
        demonstrations.append(int(switched))
        by_rl.append(int(switched and not imitated))
        for row in [] if switched else rows:
            keep[row.row] = 1
    kept = torch.tensor(keep).bool()
    names = {name: i for i, name in enumerate(inputs["problems"])}
    group_of = torch.tensor([names[name] for name in inputs["prompt_id"]])
    scores = advantages.Scores(
        scores=case.tensor("scores")[kept], group=group_of[kept], prefix_group=torch.full((int(kept.sum()),), -1)
    )
    values = torch.zeros(len(keep))
    values[kept] = advantages.dr_grpo(scores).sampled
    return {
        "solved": solved,
        "keep": keep,
        "demonstration_rows": demonstrations,
        "demonstration_is_rl": by_rl,
        "advantages": values,
    }


def _entropy_term(case: Case, entropy: torch.Tensor, part: slice) -> torch.Tensor:
    return -case.inputs["entropy_coeff"] * masked_mean(entropy[part], case.tensor("response_mask")[part])


def _with_gradients(case: Case, micro: dict[str, list[torch.Tensor]], *leaves: torch.Tensor) -> Outputs:
    """Micro-batch losses over the accumulation steps, their sum, and its gradients by log-probability and entropy."""
    total = torch.stack(micro.pop("micro_losses")) / case.inputs["gradient_accumulation"]
    grads = torch.autograd.grad(total.sum(), leaves, allow_unused=True, materialize_grads=True)
    found: Outputs = {name: torch.stack(values) for name, values in micro.items()}
    found |= {"micro_losses": total, "loss": total.sum()}
    return found | dict(zip(("grad_log_prob", "grad_entropy"), grads, strict=True))


def _hpt_loss(case: Case) -> Outputs:
    inputs, response = case.inputs, case.tensor("response_mask")
    logp, entropy = (_on_response(case, name).requires_grad_() for name in ("log_prob", "entropy"))
    copied = case.tensor("demonstration_mask").any(1, keepdim=True) & response
    plain = losses.policy_loss_tokens(
        logp,
        _on_response(case, "old_log_prob"),
        _on_response(case, "advantages"),
        clip_low=inputs["clip"],
        clip_high=inputs["clip"],
        dual_clip=None,
        unclipped=torch.ones_like(response) if inputs["no_clip"] else None,
    ).loss
    aggregate = AGGREGATIONS["dr_grpo" if inputs["sum_over_width"] else "token-mean"]
    micro: dict[str, list[torch.Tensor]] = {"micro_losses": [], "micro_sft_losses": []}
    for part in micro_slices(len(response), inputs["micro_batch_rows"]):
        policy = aggregate(plain[part], (response & ~copied)[part], max_tokens=response.shape[1])
        nll = masked_mean(losses.nll_tokens(logp)[part], copied[part])
        micro["micro_sft_losses"].append(nll)
        micro["micro_losses"].append(policy + inputs["sft_loss_coef"] * nll + _entropy_term(case, entropy, part))
    return _with_gradients(case, micro, logp, entropy)


def _srft_weights(case: Case) -> Outputs:
    response = case.tensor("response_mask")
    mean = masked_row_mean(_on_response(case, "entropy"), response)
    return {"mean_entropy": mean, "sft_weight": 0.5 * (-mean).exp(), "rl_weight": 0.1 * mean.exp()}


def masked_row_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows, tokens) -> (rows,) mean under a bool mask; 0 for an empty row."""
    return torch.stack([masked_mean(one, own) for one, own in zip(values, mask, strict=True)])


def _srft_loss(case: Case) -> Outputs:
    """As re-implemented by the authors of HPT, its fault included: with the clip on, the log-probability is clamped to the limits
    of a ratio."""
    inputs, response = case.inputs, case.tensor("response_mask")
    logp, entropy = (_on_response(case, name).requires_grad_() for name in ("log_prob", "entropy"))
    demonstration = case.tensor("demonstration_mask") & response
    rows = demonstration.any(1, keepdim=True) & response
    weights = _srft_weights(case)
    right = torch.where(torch.tensor(inputs["score"]) == 1, weights["rl_weight"], -1.0)[:, None]
    old = _on_response(case, "old_log_prob")
    x = {"log_prob": logp, "ratio": (logp - old).exp(), "prob": logp.exp(), "log_ratio": logp - old}[
        inputs["score_ratio"]
    ]
    sampled = -right * x
    if not inputs["no_clip"]:
        sampled = torch.maximum(sampled, -right * logp.clamp(1 - inputs["clip"], 1 + inputs["clip"]))
    shape: losses.DemonstrationShape = "luffy" if inputs["shaping"] == "p_div_p_0.1" else inputs["shaping"]
    shaped = losses.shaped_demonstration_tokens(logp, _on_response(case, "advantages"), shape=shape)
    tokens, width = torch.where(demonstration, shaped, sampled), response.shape[1]
    nll = weights["sft_weight"][:, None] * losses.nll_tokens(logp)
    micro: dict[str, list[torch.Tensor]] = {"micro_losses": [], "micro_rl_losses": [], "micro_sft_losses": []}
    for part in micro_slices(len(response), inputs["micro_batch_rows"]):
        own = response[part]
        rl = (
            dr_grpo_sum(tokens[part], own, max_tokens=width)
            if inputs["sum_over_width"]
            else masked_mean(tokens[part], own)
        )
        sft = masked_mean(nll[part], rows[part])
        micro["micro_rl_losses"].append(rl)
        micro["micro_sft_losses"].append(sft)
        micro["micro_losses"].append(rl + sft + _entropy_term(case, entropy, part))
    return _with_gradients(case, micro, logp, entropy)


KINDS: dict[str, Callable[[Case], Outputs]] = {
    "chord_mu": _chord_mu,
    "chord_token_weight": _chord_token_weight,
    "chord_loss": _chord_loss,
    "chord_swift_loss": _chord_swift_loss,
    "hpt_gate": _hpt_gate,
    "hpt_loss": _hpt_loss,
    "srft_weights": _srft_weights,
    "srft_loss": _srft_loss,
}
"""``meta.kind`` -> outputs for a case."""
