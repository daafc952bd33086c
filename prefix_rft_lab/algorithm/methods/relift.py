"""ReLIFT (arXiv 2506.07527): RFT, interleaved with SFT on problems that no rollout solved."""

from __future__ import annotations

from prefix_rft_lab.algorithm import prefixes
from prefix_rft_lab.algorithm.stages import METHODS, Method, NegativeLogLikelihood, PolicyGradient, Replay, Stage
from prefix_rft_lab.core.config import OptimConfig, RunConfig
from prefix_rft_lab.core.types import TokenKind


def _relift_section(config: RunConfig) -> OptimConfig:
    lr = config.rl.lr if config.relift.lr is None else config.relift.lr
    return config.rl.model_copy(update={"lr": lr, "warmup_fraction": 0.0, "decay": "constant"})


RELIFT = Stage(
    name="relift",
    rows=prefixes.plain_rows,
    losses=lambda config: {TokenKind.ON_POLICY: PolicyGradient()},
    demonstrations="used",
    optim="rl",
    replay=Replay(
        stage=Stage(
            name="relift_sft",
            rows=prefixes.demonstration_rows,
            losses=lambda config: {
                TokenKind.PREFIX: NegativeLogLikelihood(entropy_weight=config.relift.entropy_weight)
            },
            optim="rl",
            samples=False,
            demonstrations="required",
        ),
        enters=lambda rows: not any(row.solved for row in rows),
        batch=lambda config: config.relift.batch_problems or config.rollout.problems_per_step,
        setting="relift.batch_problems",
        section=_relift_section,
    ),
)
METHODS["relift"] = Method(title="ReLIFT", stages=(RELIFT,), settings="relift")
