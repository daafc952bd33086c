"""Rollouts of one step: the kit's engines against `model.generate` on the same rows, in one run.

All sample at temperature 1 with the same limits from the same weights; they draw different random numbers, so
lengths differ a little and the ratio is of tokens per second. Rounds alternate between them. vLLM takes part where it is
installed, with its weights pushed before every round.

    python benchmarks/rollouts.py [--model tiny] [--problems chains] [--rounds 7] [--set rollout.max_response_tokens=64]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
import yaml

from prefix_rft_lab import prefixes, preset, rng
from prefix_rft_lab.core.versions import installed_vllm
from prefix_rft_lab.generation import Request, engine_for
from prefix_rft_lab.policy import load_policy
from prefix_rft_lab.tasks import sources
from prefix_rft_lab.tokens import encode_problems, pad_id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", default="chains")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    args = parser.parse_args()
    changes = {field: yaml.safe_load(value) for field, _, value in (item.partition("=") for item in args.set)}
    config = preset("tiny", **{"model.path": args.model, "data.problems": args.problems, **changes})
    torch.set_num_threads(config.threads)
    model, tokenizer = load_policy(config)
    problems, _ = encode_problems(tokenizer, sources.load_problems(config.data, "train")[0], config)
    chosen = prefixes.batch_at(problems, 0, config.rollout.problems_per_step, 0, "benchmark")
    rows = [row for problem in chosen for row in prefixes.hybrid_rows(problem, config.rl.steps // 2, config)]
    contexts = [row.problem.prompt_ids + row.prefix_ids for row in rows]
    limit = config.rollout.max_response_tokens
    requests = [
        Request(context_ids=ids, max_new_tokens=limit - len(row.prefix_ids), key=rng.key(0, "benchmark", i))
        for i, (row, ids) in enumerate(zip(rows, contexts, strict=True))
    ]
    engine = engine_for(model, config.replace(**{"rollout.engine": "transformers"}), eos_id=tokenizer.eos_token_id)
    # The kit keeps float32 weights and computes in bfloat16; model.generate is at its best on weights that are bfloat16.
    plain = model if config.model.dtype == "float32" else copy.deepcopy(model).to(torch.bfloat16)

    width, fill = max(map(len, contexts)), pad_id(tokenizer)
    input_ids = torch.tensor([[fill] * (width - len(ids)) + ids for ids in contexts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in contexts])

    def ours() -> int:
        return sum(len(c.token_ids) for c in engine.generate(requests))

    def theirs() -> int:
        out = plain.generate(
            input_ids=input_ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=limit, pad_token_id=fill
        )[:, width:]
        ended = (out == tokenizer.eos_token_id).long()
        return int((ended.cumsum(1) - ended == 0).sum())

    ways = {"engine": ours, "model.generate": theirs}
    vllm = None
    if installed_vllm() != ("", ""):
        vllm = engine_for(model, config.replace(**{"rollout.engine": "vllm"}), eos_id=tokenizer.eos_token_id)

        def by_vllm() -> int:
            vllm.weights_changed()
            return sum(len(c.token_ids) for c in vllm.generate(requests))

        ways["vllm"] = by_vllm
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(args.rounds + 1):
        for name, generate in ways.items():
            start = time.perf_counter()
            tokens = generate()
            if round_number:  # the first round warms up
                speeds[name].append(tokens / (time.perf_counter() - start))
    print(f"{len(rows)} rows, {config.model.dtype}, {config.threads} thread(s), {args.rounds} rounds")
    for name, values in speeds.items():
        print(
            f"{name:15s} median {statistics.median(values):8.0f} tokens/s (min {min(values):.0f}, max {max(values):.0f})"
        )
    for name in [name for name in ways if name != "model.generate"]:
        ratios = [a / b for a, b in zip(speeds[name], speeds["model.generate"], strict=True)]
        print(
            f"{name} / model.generate: median {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})"
        )
    if vllm is not None:
        vllm.close()


if __name__ == "__main__":
    main()
