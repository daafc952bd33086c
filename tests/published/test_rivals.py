"""The published losses of CHORD, HPT and SRFT on cases worked out by hand, with probabilities of 1/2 and ratios of 1."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from published import parity, rivals

LN2 = math.log(2)
HALF = -LN2
MU = {"mu_warmup_steps": 2, "mu_decay_steps": 4, "mu_peak": 0.8, "mu_valley": 0.2}
CONSTANT = {"mu_warmup_steps": 0, "mu_decay_steps": 0, "mu_peak": 0.4, "mu_valley": 0.4}
CHORD = {
    # Two plain rows of one token with A = 1 and -1/2, then a demonstration of p = 1/2; the 9s stand on padding.
    **{"log_prob": [[HALF, 9], [HALF, 9], [HALF, 9]], "old_log_prob": [[HALF, 0], [HALF, 0], [0, 0]]},
    **{"advantages": [[1, 9], [-0.5, 9], [0, 9]], "response_mask": [[1, 0], [1, 0], [1, 0]], "expert_mask": [0, 0, 1]},
    **{"step": 5, "config": CONSTANT, "weighting": "none", "clip_low": 0.2, "clip_high": 0.2, "clip_ratio_c": 3.0},
    **{"grpo_loss_agg_mode": "token-mean", "sft_loss_agg_mode": "token-mean", "usual_rows": 2, "expert_rows": 1},
}
CHORD_GRAD = [[-0.6 / 2, 0], [0.6 * 0.5 / 2, 0], [-0.4, 0]]
ROWS = {
    # A sampled row with A = 1/2 and a demonstration, one token each, p = 1/2, entropies ln 2 and 0.
    **{"log_prob": [[HALF, 9], [HALF, 9]], "old_log_prob": [[HALF, 0], [9, 9]], "advantages": [[0.5, 9], [2, 9]]},
    **{"response_mask": [[1, 0], [1, 0]], "demonstration_mask": [[0, 0], [1, 0]], "entropy": [[LN2, 9], [0, 9]]},
    **{"entropy_coeff": 0.1, "clip": 0.2, "no_clip": True, "sum_over_width": True, "gradient_accumulation": 2},
}
F = 0.5 / 0.6  # p / (p + 0.1)
CASES = {
    "chord_mu": ({"config": MU, "steps": [0, 1, 2, 4, 6, 9]}, {"values": [0, 0.4, 0.8, 0.5, 0.2, 0.2]}),
    "chord_token_weight": (
        {"log_prob": [[HALF, 2 * HALF, 9]], "response_mask": [[1, 1, 0]], "weighting": "phi", "cutoff_prob": 1.0}
        | {"loss_agg_mode": "token-mean"},
        {"weights": [[0.25, 0.1875, 0]], "loss": (0.25 + 0.375) * LN2 / 2, "grad_log_prob": [[-0.125, -0.09375, 0]]},
    ),
    "chord_token_weight cut": (
        {"log_prob": [[HALF, 2 * HALF]], "response_mask": [[1, 1]], "weighting": "phi", "cutoff_prob": 0.3}
        | {"loss_agg_mode": "seq-mean-token-mean"},
        {"loss": (-0.25 * math.log(0.3) + 0.375 * LN2) / 2, "grad_log_prob": [[0, -0.09375]]},
    ),
    "chord_loss": (
        {**CHORD, "micro_batch_rows": [3], "scaling": "by_rows"},
        {"mu": 0.4, "loss": -0.15 + 0.4 * LN2, "micro_grpo_losses": [-0.25], "grad_log_prob": CHORD_GRAD},
    ),
    "chord_loss in two": (
        {**CHORD, "micro_batch_rows": [1, 2], "scaling": "by_rows"},
        {"micro_grpo_losses": [-1.5, 0.375], "micro_sft_losses": [0, 1.5 * LN2], "micro_scales": [1 / 3, 2 / 3]}
        | {"micro_losses": [-0.9, 0.225 + 0.6 * LN2], "loss": -0.15 + 0.4 * LN2, "grad_log_prob": CHORD_GRAD},
    ),
    "chord_swift_loss": (
        {"grpo_loss": 2.0, "log_prob": [[HALF, HALF]], "response_mask": [[1, 1]], "step": 3, "config": CONSTANT}
        | {"weighting": "phi"},
        {"mu": 0.4, "loss": 1.2 + 0.1 * LN2, "grad_log_prob": [[-0.05, -0.05]], "grad_grpo_loss": 0.6},
    ),
    "hpt_gate": (
        {"scores": [1, 0.999, 0, 0, 1, 1], "prompt_id": ["a", "a", "b", "b", "c", "c"], "problems": ["a", "b", "c"]}
        | {"gate": 0, "gate_off": 1},
        {"solved": [1, 0, 2], "keep": [0, 0, 0, 0, 1, 1], "demonstration_rows": [1, 1, 0]}
        | {"demonstration_is_rl": [1, 0, 0], "advantages": [0, 0, 0, 0, 0, 0]},
    ),
    "hpt_gate of none": (
        {"scores": [0, 0], "prompt_id": ["a", "a"], "problems": ["a"], "gate": 0, "gate_off": 0},
        {"solved": [0], "keep": [0, 0], "demonstration_rows": [1], "demonstration_is_rl": [0], "advantages": [0, 0]},
    ),
    "hpt_loss": (
        {**ROWS, "sft_loss_coef": 0.3, "micro_batch_rows": [1, 1]},
        {"micro_losses": [(-0.25 - 0.1 * LN2) / 2, 0.15 * LN2], "micro_sft_losses": [0, LN2]}
        | {"grad_log_prob": [[-0.125, 0], [-0.15, 0]], "grad_entropy": [[-0.05, 0], [-0.05, 0]]},
    ),
    "srft_weights": (
        {"entropy": [[LN2, LN2], [0, 9]], "response_mask": [[1, 1], [1, 0]]},
        {"mean_entropy": [LN2, 0], "sft_weight": [0.25, 0.5], "rl_weight": [0.2, 0.1]},
    ),
    "srft_loss": (
        {**ROWS, "score": [1, 1], "score_ratio": "log_prob", "shaping": "p_div_p_0.1", "micro_batch_rows": [2]},
        # The right row pulls by 0.1 e^h = 0.2; the demonstration's NLL weighs 1/2. Its shaped part: -2 f, f' = 0.1 p / (p + 0.1)^2.
        {"micro_rl_losses": [(0.2 * LN2 - 2 * F) / 2], "micro_sft_losses": [LN2 / 2]}
        | {"loss": ((0.2 * LN2 - 2 * F) / 2 + LN2 / 2 - 0.1 * LN2 / 2) / 2}
        | {"grad_log_prob": [[-0.05, 0], [(-2 * 0.05 / 0.36 / 2 - 0.5) / 2, 0]]},
    ),
    "srft_loss of a wrong row": (
        # It is pushed down at weight 1, whatever its advantage; with the clip the clamped log-probability has no gradient.
        {
            **ROWS,
            "score": [0, 1],
            "score_ratio": "log_prob",
            "shaping": "none",
            "micro_batch_rows": [2],
            "no_clip": False,
        },
        {"micro_rl_losses": [(0.8 - 1) / 2], "grad_log_prob": [[0, 0], [(-1 / 2 - 0.5) / 2, 0]]},
    ),
}


def results_of(name, folder, outputs):
    inputs, _ = CASES[name]
    meta = {"kind": name.partition(" ")[0], "variant": "", "tolerance": {"atol": 1e-6, "rtol": 1e-5}}
    (folder / "case.json").write_text(json.dumps({"meta": meta, "inputs": inputs, "outputs": outputs}))
    return parity.run_parity(folder)


def test_every_kind_has_a_case_by_hand():
    assert {name.partition(" ")[0] for name in CASES} == set(rivals.KINDS)


@pytest.mark.parametrize("name", CASES)
def test_by_hand(tmp_path, name):
    _, outputs = CASES[name]
    results = results_of(name, tmp_path, outputs)
    assert parity.passed(results), parity.format_results(results)
    for field, value in outputs.items():
        wrong = (torch.tensor(value, dtype=torch.float64) + 0.01).tolist()
        assert not parity.passed(results_of(name, tmp_path, {**outputs, field: wrong})), field


def test_recorded_cases_of_another_folder_pass():
    if not (folder := os.environ.get("PREFIX_RFT_LAB_GOLDEN")):
        pytest.skip("PREFIX_RFT_LAB_GOLDEN names no folder with recorded cases of these kinds")
    results = parity.run_parity(folder)
    assert parity.passed(results), parity.format_results(results)
    assert {result.kind for result in results} >= set(rivals.KINDS)
