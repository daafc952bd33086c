"""RL with SFT loss: policy gradients on sampled rows, NLL on one demonstration of every problem."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, NegativeLogLikelihood, PolicyGradient, Stage
from prefix_rft_lab.core.types import TokenKind

RL_SFT_LOSS = Stage(
    name="rl_sft_loss",
    rows=prefixes.plain_and_demonstration_rows,
    losses=lambda config: {
        TokenKind.ON_POLICY: PolicyGradient(over="sampled_rows"),
        TokenKind.PREFIX: NegativeLogLikelihood(weight=config.rl_sft_loss.weight),
    },
    demonstrations="used",
    advantages=("plain_baseline",),
    optim="rl",
)
METHODS["rl_sft_loss"] = Method(title="RL with SFT loss", stages=(RL_SFT_LOSS,), settings="rl_sft_loss")
