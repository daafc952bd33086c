"""Prefix-RFT in TRL: the kit's prefixes, advantages and entropy clip in GRPOTrainer (``prefix_rft_lab.tools.trl``).

One GPU, several, or the embedded world on a CPU:

    python scripts/train_with_trl.py --model Qwen/Qwen2.5-Math-1.5B --problems Elliott/Openr1-Math-46k-8192 --tokens 8192
    accelerate launch --num_processes 8 scripts/train_with_trl.py --model ... --problems ... --vllm
    python scripts/train_with_trl.py --cpu --steps 2
"""

from __future__ import annotations

import argparse
from typing import Any

from datasets import Dataset
from trl import GRPOConfig

from prefix_rft_lab import preset
from prefix_rft_lab.data.rewards import Verifier
from prefix_rft_lab.data.sources import load_problems
from prefix_rft_lab.models.policy import load_policy
from prefix_rft_lab.tools.trl import PrefixGRPOTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a directory, a name on the Hub, or tiny (%(default)s)")
    parser.add_argument("--problems", default="chains", help="what data.problems takes (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (%(default)s)")
    parser.add_argument("--problems-per-step", type=int, default=8, help="of all processes together (%(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows per problem, one of them with a prefix (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="longest response, prefix included (%(default)s)")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows of one forward pass per process (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-6, help="learning rate (%(default)s)")
    parser.add_argument("--out", default="runs/trl", help="where the trained model goes (%(default)s)")
    parser.add_argument("--vllm", action="store_true", help="sample with vLLM")
    parser.add_argument("--cpu", action="store_true", help="in float32 on a CPU")
    given = parser.parse_args()
    config = preset(
        "tiny",
        method="prefix_rft",
        **{
            "model.path": given.model,
            "data.problems": given.problems,
            "rollout.rows_per_problem": given.rows,
            "rollout.max_response_tokens": given.tokens,
        },
    )
    problems, dropped = load_problems(config.data, "train")
    print(f"{len(problems)} problems; left out: {dict(dropped)}")
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": p.prompt + config.model.instruction}] for p in problems],
            "answer": [p.answer for p in problems],
            "demonstrations": [list(p.demonstrations) for p in problems],
        }
    )
    verifier = Verifier()

    def right(completions: Any, answer: list[str], **_: Any) -> list[float]:
        return verifier.score_all([chat[0]["content"] for chat in completions], answer)

    args = GRPOConfig(
        output_dir=given.out,
        max_steps=given.steps,
        learning_rate=given.lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=given.micro_batch,
        generation_batch_size=given.problems_per_step * given.rows,
        num_generations=given.rows,
        max_completion_length=given.tokens,
        loss_type="dr_grpo",
        delta=config.loss.dual_clip,
        beta=0.0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_vllm=given.vllm,
        use_cpu=given.cpu,
        bf16=not given.cpu,
    )
    # One update per generation, as in the paper.
    args.gradient_accumulation_steps = args.steps_per_generation
    model, tokenizer = load_policy(config)
    trainer = PrefixGRPOTrainer(model, right, args, data, config=config, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(given.out)
    verifier.close()


if __name__ == "__main__":
    main()
