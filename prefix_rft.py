"""Prefix-RFT on one page (arXiv 2507.01679, section 3), on the embedded world: ``python prefix_rft.py``.

A problem x comes with a demonstration y* of n tokens. Per step and problem, N - 1 rows are sampled from x alone, and one
hybrid row continues a prefix of y*. All are scored by the verifier and trained by one policy loss:

    1. prefixes   L = floor(ratio * n), ratio ~ U[low_t, high], low_t falls from high to low on a half cosine
    2. rollouts   y ~ pi( . | x) or y = y*[:L] + pi( . | x, y*[:L]), and one reward R(x, y) in {0, 1} per row
    3. credit     A = R - mean of the problem's N rewards (Dr.GRPO, arXiv 2503.20783), on every token of the row
    4. entropy    of all M prefix tokens of the step, the int(M (1 - keep)) with the lowest entropy get A = 0
       clip
    5. loss       PPO's clipped surrogate (arXiv 1707.06347, eq. 7), summed over tokens, / (rows * longest response)
    6. step       gradient norm clipped, AdamW

Only the world, the model, its sampler, keyed random numbers and the verifier are the kit's; nothing of its method code is.
``tests/test_prefix_rft.py`` holds this page against ``train(preset("tiny", method="prefix_rft"))``, step by step.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import RunConfig, preset
from prefix_rft_lab.data.rewards import Verifier
from prefix_rft_lab.data.sources import load_problems
from prefix_rft_lab.models.generation import Request, TransformersEngine
from prefix_rft_lab.models.policy import load_policy
from prefix_rft_lab.models.tokens import encode_problems

SEED, STEPS, PROBLEMS, ROWS = 0, 150, 16, 8  # P problems per step, N rows per problem
LONGEST = 96  # response tokens, prefix included
HIGH, LOW, KEEP = 0.95, 0.05, 0.2  # the paper's
CLIP, LR, WEIGHT_DECAY, GRAD_CLIP = 0.2, 3e-4, 0.01, 1.0


def prefix_of(problem: Any, step: int) -> list[int]:
    """1. Prefixes: the first L tokens of the demonstration, sliced as ids, without its end token."""
    if not problem.demonstrations:
        return []
    tokens = problem.demonstrations[0].ids[:-1]
    low = LOW + (HIGH - LOW) * (1 + math.cos(math.pi * step / STEPS)) / 2
    draw = rng.generator(SEED, "prefix_ratio", step, *problem.key, ROWS - 1).beta(1.0, 1.0)  # Beta(1, 1) is uniform
    return tokens[: min(math.floor((low + (HIGH - low) * draw) * len(tokens)), len(tokens) - 1)]


def token_stats(model: Any, prompt: list[int], response: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy (nats) of each response token, (tokens,) each."""
    logits = model(input_ids=torch.tensor([prompt + response], device=model.device), use_cache=False).logits[0]
    log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)  # the token at place t is predicted at t - 1
    targets = torch.tensor(response, device=model.device)
    return log_probs.gather(-1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)


def train(config: RunConfig, steps: int = STEPS) -> Iterator[dict[str, float]]:
    """Yield loss, gradient norm, reward and mean prefix tokens of each step; ``config`` says where model and data are."""
    model, tokenizer = load_policy(config)
    problems, _ = encode_problems(tokenizer, load_problems(config.data, "train")[0], config)
    engine = TransformersEngine(model, eos_id=tokenizer.eos_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    with Verifier() as verifier:
        for step in range(steps):
            epoch, first = divmod(step * PROBLEMS, len(problems))  # PROBLEMS divides the pool
            order = rng.generator(SEED, "order/prefix_rft", epoch).permutation(len(problems))
            batch = [problems[i] for i in order[first : first + PROBLEMS]]

            # 1. and 2. Prefixes, rollouts and rewards: the last row of each problem is the hybrid one.
            rows = [(p, i, prefix_of(p, step) if i == ROWS - 1 else []) for p in batch for i in range(ROWS)]
            requests = [
                Request(
                    context_ids=p.prompt_ids + prefix,
                    max_new_tokens=LONGEST - len(prefix),
                    key=rng.key(SEED, "rollout/prefix_rft", step, p.index, i, p.visit),
                )
                for p, i, prefix in rows
            ]
            sampled = engine.generate(requests)
            responses = [prefix + new.token_ids for (_, _, prefix), new in zip(rows, sampled, strict=True)]
            texts = [tokenizer.decode(response, skip_special_tokens=True) for response in responses]
            rewards = torch.tensor(verifier.score_all(texts, [p.problem.answer for p, _, _ in rows]))

            # 3. Credit: one advantage for the whole row, prefix and continuation.
            groups = rewards.view(PROBLEMS, ROWS).double()
            advantages = (groups - groups.mean(1, keepdim=True)).float().flatten()

            # 4. Entropy clip: rank the prefix tokens of the whole step under the policy before the update.
            with torch.no_grad():
                entropies = [
                    token_stats(model, p.prompt_ids, responses[r])[1][: len(prefix)].cpu() if prefix else torch.empty(0)
                    for r, (p, _, prefix) in enumerate(rows)
                ]
            flat = torch.cat(entropies)
            kept = torch.ones(len(flat))
            kept[flat.argsort(stable=True)[: int(len(flat) * (1 - KEEP))]] = 0
            masks = kept.split([len(entropy) for entropy in entropies])

            # 5. Loss: divided once by a constant; dropped tokens count in it too, so no response length is favoured.
            optimizer.zero_grad()
            total = 0.0
            for (p, _, prefix), response, advantage, mask in zip(rows, responses, advantages, masks, strict=True):
                if advantage == 0:
                    continue  # no gradient
                logp, _ = token_stats(model, p.prompt_ids, response)
                credit = advantage * torch.cat([mask, torch.ones(len(response) - len(prefix))]).to(logp.device)
                ratio = (logp - logp.detach()).exp()  # 1: one update per rollout, and no correction on the prefix
                surrogate = torch.minimum(credit * ratio, credit * ratio.clamp(1 - CLIP, 1 + CLIP))
                loss = -surrogate.sum() / (len(rows) * LONGEST)
                loss.backward()
                total += float(loss.detach())

            # 6. Step.
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP))
            optimizer.step()
            lengths = [len(prefix) for _, _, prefix in rows if prefix]
            yield {
                "loss": total,
                "grad_norm": norm,
                "reward": float(rewards.mean()),
                "prefix_tokens": sum(lengths) / max(len(lengths), 1),
            }


if __name__ == "__main__":
    for number, line in enumerate(train(preset("tiny", method="prefix_rft"))):
        print(f"step {number:3d}  " + "  ".join(f"{name} {value:.4f}" for name, value in line.items()))
