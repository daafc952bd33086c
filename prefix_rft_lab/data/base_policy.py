"""The base policy of the embedded world: its tokenizer, its architecture and the recipe that pretrains it.

A Llama of two layers and 0.23M parameters over a vocabulary in which every number is one token. It is
pretrained on the corpus of :mod:`prefix_rft_lab.data.chains`, so it half has the arithmetic and knows nothing of
``#``. The weights in ``prefix_rft_lab/assets/tiny`` were made by ``python -m prefix_rft_lab.data.base_policy``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefix_rft_lab.core import rng
from prefix_rft_lab.data import chains

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "tiny"
PAD, EOS, USER, ASSISTANT = "<pad>", "<eos>", "<user>", "<assistant>"
PRIMER_STEPS, PRIMER_BATCH = 800, 96
STEPS, BATCH, LR = 700, 64, 3e-3
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a number, operator, word or piece of ``\\boxed{}``; decoding gives back the text to the character."""
    specials = [PAD, EOS, USER, ASSISTANT]
    pieces = ["\n", "=", ":", *chains.OPERATORS, "\\boxed{", "}", *chains.WORDS, *map(str, range(chains.MODULUS))]
    vocabulary = {piece: i for i, piece in enumerate([*specials, *pieces, "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|\d+|[a-z]+ |<[a-z]+>|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token="<unk>",
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(seed: int = 0) -> LlamaForCausalLM:
    """The untrained policy; a head of 32 channels is one that serving engines know too."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    draws = torch.Generator().manual_seed(rng.key(seed, "base_policy/weights") % 2**63)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.normal_(0.0, config.initializer_range, generator=draws)
            else:
                parameter.fill_(1.0)
            assert "bias" not in name
    return model


def pretrain(
    *,
    primer_steps: int = PRIMER_STEPS,
    steps: int = STEPS,
    seed: int = 0,
    log: Callable[[int, float], None] | None = None,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Pretrain the base policy, first on clean single operations, then on the corpus; a minute or two on a CPU core.

    Args:
        primer_steps: optimizer steps of :data:`PRIMER_BATCH` short documents.
        steps: optimizer steps of :data:`BATCH` documents of the corpus.
        seed: seed of weights and corpus.
        log: called with (step, loss in nats per response token) every 100 steps.
    """
    tokenizer = build_tokenizer()
    model = build_model(seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * max(0.02, 1 - step / (primer_steps + steps))
    )
    total = primer_steps + steps
    primer, corpus = chains.primer(seed), chains.corpus(seed)
    for step in range(total):
        documents = islice(primer, PRIMER_BATCH) if step < primer_steps else islice(corpus, BATCH)
        input_ids, targets = _batch(tokenizer, list(documents))
        logits = model(input_ids=input_ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if log is not None and (step % 100 == 0 or step == total - 1):
            log(step, loss.item())
    return model.eval(), tokenizer


def _batch(tokenizer: Any, documents: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(documents, width) input ids and targets; targets are -100 on prompts and padding."""
    prompts = tokenizer([f"{USER}{prompt}{ASSISTANT}" for prompt, _ in documents], add_special_tokens=False)
    responses = tokenizer([response + EOS for _, response in documents], add_special_tokens=False)
    pairs = list(zip(prompts["input_ids"], responses["input_ids"], strict=True))
    width = max(len(p) + len(r) for p, r in pairs)
    input_ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
    targets = torch.full((len(pairs), width), -100)
    for i, (prompt, response) in enumerate(pairs):
        input_ids[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        targets[i, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    return input_ids, targets


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the embedded world's base policy.")
    parser.add_argument("--out", type=Path, default=ASSETS, help="directory to write (default: the package's own)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, tokenizer = pretrain(
        steps=args.steps, seed=args.seed, log=lambda step, loss: print(f"step {step:5d}  loss {loss:.4f}", flush=True)
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
