"""CHORD (arXiv 2508.11408): policy gradients and the NLL of a demonstration in one loss, (1 - mu) to mu, each a token mean.

CHORD-mu moves mu from imitation to reinforcement; CHORD-phi holds it and weighs tokens by p (1 - p), so that neither what the
policy is sure of nor what it finds absurd pulls. Published, demonstrations come from problems of their own; here from
the step's, which is a fair stand-in, since their loss is a token mean. Token means are over the window, not over
micro-batches. Learning rate: the kit's of RFT, not tuned (published: 1e-6, as RFT's of the presets).
"""

from __future__ import annotations

from functools import partial

import torch

from prefix_rft_lab.algorithm import prefixes, schedules
from prefix_rft_lab.algorithm.stages import METHODS, ByStep, Method, NegativeLogLikelihood, PolicyGradient, Stage
from prefix_rft_lab.core.config import RunConfig
from prefix_rft_lab.core.types import TokenKind


def mu(step: int, *, peak: float, valley: float, decay_steps: int, warmup_steps: int = 0) -> float:
    """The share of the NLL at a step: from 0 to ``peak`` in a line, to ``valley`` on a half cosine; at once where
    ``decay_steps`` is 0."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    if step >= warmup_steps + decay_steps:
        return valley
    return schedules.cosine(step - warmup_steps, init=peak, target=valley, n_steps=decay_steps)


def phi(p: torch.Tensor) -> torch.Tensor:
    """The weight of a token that the policy gives probability p."""
    return p * (1 - p)


def mu_of(step: int, config: RunConfig) -> float:
    chord = config.chord
    rest = max(config.rl.steps - chord.warmup_steps, 0)
    decay = rest if chord.decay_steps is None else chord.decay_steps
    return mu(step, peak=chord.peak, valley=chord.valley, decay_steps=decay, warmup_steps=chord.warmup_steps)


_stage = partial(
    Stage,
    rows=prefixes.rows_beside_demonstration,
    demonstrations="used",
    advantages=("grpo_plain",),
    optim="rl",
)
CHORD_MU = _stage(
    name="chord_mu",
    losses=lambda config: {
        TokenKind.ON_POLICY: ByStep(
            loss=PolicyGradient(over="sampled_tokens"), coefficient=lambda step, config: 1 - mu_of(step, config)
        ),
        TokenKind.PREFIX: ByStep(loss=NegativeLogLikelihood(), coefficient=mu_of),
    },
)
CHORD_PHI = _stage(
    name="chord_phi",
    losses=lambda config: {
        TokenKind.ON_POLICY: ByStep(
            loss=PolicyGradient(over="sampled_tokens"), coefficient=lambda step, config: 1 - config.chord.phi_mu
        ),
        TokenKind.PREFIX: NegativeLogLikelihood(weight=config.chord.phi_mu, token_weight=phi),
    },
)
METHODS["chord_mu"] = Method(title="CHORD-µ", stages=(CHORD_MU,), settings="chord")
METHODS["chord_phi"] = Method(title="CHORD-φ", stages=(CHORD_PHI,), settings="chord")
