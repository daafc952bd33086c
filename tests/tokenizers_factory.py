"""Small byte-level tokenizers of the families that real models use, trained on this repository's own text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
# Words, numbers of one digit (Qwen) or up to three (Llama), signs with the line breaks after them, spaces.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FAMILIES = {
    "qwen2": (WORDS + r"\p{N}" + SIGNS, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|endoftext|>", None),
    "llama3": (
        WORDS + r"\p{N}{1,3}" + SIGNS,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        "<|begin_of_text|>",
    ),
}


@cache
def _tokenizer(family: str) -> Tokenizer:
    pattern, special, _, bos = FAMILIES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([(ROOT / "README.md").read_text(), "\n\n\n **\n\n ))\n\n" * 20], trainer)
    # Behind the words, as in the real ones: their ids are the highest.
    tokenizer.add_special_tokens(list(special))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def small(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a family, without a chat template, as base models have it."""
    _, _, eos, bos = FAMILIES[family]
    tokenizer = Tokenizer.from_str(_tokenizer(family).to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, clean_up_tokenization_spaces=False
    )


CONTROL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
KINDS = {
    "metaspace, first": (models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(prepend_scheme="first")),
    "metaspace, always": (models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(prepend_scheme="always")),
    "bytes": (models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "bytes, a space before": (models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "bytes, any merge": (models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "word pieces": (models.WordPiece(unk_token="<unk>"), pre_tokenizers.BertPreTokenizer()),
    "unigrams": (models.Unigram(), pre_tokenizers.Metaspace(prepend_scheme="first")),
}
"""How tokenizers part texts and where they write a space -> model and pre-tokenizer."""


@cache
def _kind(name: str) -> str:
    """A tokenizer of 600 tokens, trained on a chat as well, so that tokens go where the kind lets them."""
    model, parts = KINDS[name]
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = parts
    tokenizer.decoder = {"metaspace": decoders.Metaspace(), "unigrams": decoders.Metaspace(), "word pieces": decoders.WordPiece()}.get(
        name.partition(",")[0], decoders.ByteLevel()
    )  # fmt: skip
    kinds = {"WordPiece": trainers.WordPieceTrainer, "Unigram": trainers.UnigramTrainer, "BPE": trainers.BpeTrainer}
    options = {"vocab_size": 600, "special_tokens": CONTROL, "show_progress": False}
    if isinstance(parts, pre_tokenizers.ByteLevel):
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    if type(model).__name__ == "Unigram":
        options["unk_token"] = "<unk>"
    trainer = kinds[type(model).__name__](**options)
    chat = ["user\nWhat is 2+2? [INST] <|user|>\n", "<|assistant|>\nIt is 4", "assistant\nIt is 4.\n\nSo 4"] * 50
    tokenizer.train_from_iterator([*(ROOT / "README.md").read_text().splitlines(True), *chat], trainer)
    return tokenizer.to_str()


def of_kind(name: str, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of :data:`KINDS` that speaks through a chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_kind(name)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def save_model(
    folder: Path, family: str, *, tokens_of: str = "", context: int = 512, extra_rows: int = 37, **changes
) -> Path:
    """A randomly initialised model of two layers with its tokenizer, its embeddings padded beyond the vocabulary."""
    tokenizer = small(tokens_of or family)
    common = {
        "vocab_size": len(tokenizer) + extra_rows,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    } | changes
    torch.manual_seed(0)
    kinds = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "llama3": (LlamaForCausalLM, LlamaConfig)}
    model_kind, config_kind = kinds[family]
    model = model_kind(config_kind(**common))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
