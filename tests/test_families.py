"""Small random models of the families that people train: each is sampled and read as its own forward pass says, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import prefix_rft_lab
from prefix_rft_lab import train
from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.types import EncodedProblem, Problem, Row
from prefix_rft_lab.models import policy
from prefix_rft_lab.models.generation import Request, TransformersEngine, engine_for
from prefix_rft_lab.models.policy import load_policy
from prefix_rft_lab.models.tokens import pad_rows
from prefix_rft_lab.training import checkpoint
from prefix_rft_lab.training.checkpoint import Checkpoints

TINY = Path(prefix_rft_lab.__file__).parent / "assets" / "tiny"
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SHAPE = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    **ENDS,
}
WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SERVED = {
    "llama": ("Llama", SHAPE),
    "llama, untied": ("Llama", SHAPE | {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2", SHAPE),
    "qwen2, windows": ("Qwen2", SHAPE | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3", SHAPE),
    "mistral": ("Mistral", SHAPE | {"sliding_window": None}),
    "mistral, windows": ("Mistral", SHAPE | {"sliding_window": 6}),
    "gemma": ("Gemma", SHAPE),
    "gemma2": ("Gemma2", SHAPE | WINDOW | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3", SHAPE | WINDOW | {"query_pre_attn_scalar": 8}),
    "phi3": ("Phi3", SHAPE),
    "phi3, windows": ("Phi3", SHAPE | {"sliding_window": 6}),
    "phi3, longrope": ("Phi3", SHAPE | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "olmo2": ("Olmo2", SHAPE),
    "olmo3, windows": ("Olmo3", SHAPE | WINDOW),
    "gpt_neox": ("GPTNeoX", SHAPE),
    "gpt2": ("GPT2", ENDS | {"vocab_size": 37, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "smollm3": ("SmolLM3", SHAPE),
    "granite": ("Granite", SHAPE | {"logits_scaling": 4.0}),
    "cohere": ("Cohere", SHAPE | {"logit_scale": 0.25}),
    "modernbert decoder": (
        "ModernBertDecoder",
        SHAPE | WINDOW | {"global_attn_every_n_layers": 2, "local_attention": 12},
    ),
    "qwen3 moe": ("Qwen3Moe", SHAPE | EXPERTS),
    "mixtral": ("Mixtral", SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOss",
        SHAPE
        | WINDOW
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}
REFUSED = {
    "bloom": ("Bloom", ENDS | {"vocab_size": 37, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon, alibi": ("Falcon", ENDS | {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2,
                                        "num_attention_heads": 4, "alibi": True}),
    "opt": ("OPT", ENDS | {"vocab_size": 37, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                           "num_attention_heads": 4, "max_position_embeddings": 256, "word_embed_proj_dim": 32}),
    "mamba": ("Mamba", ENDS | {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "falcon h1": ("FalconH1", SHAPE | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "lm_head_multiplier": 0.5}),
}  # fmt: skip


def saved(folder, name):
    """A random model of a family beside the tokenizer of the shipped one; head and masks matter in it."""
    family, settings = (SERVED | REFUSED)[name]
    torch.manual_seed(0)
    kind = "ForCausalLM" if hasattr(transformers, f"{family}ForCausalLM") else "LMHeadModel"
    config = getattr(transformers, f"{family}TextConfig", getattr(transformers, f"{family}Config"))(**settings)
    model = getattr(transformers, f"{family}{kind}")(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    shutil.copytree(TINY, folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", SERVED)
def test_a_family_is_sampled_read_and_kept_as_it_is(tmp_path, small, name):
    path = saved(tmp_path / "model", name)
    config = small(**{"model.path": path, "rollout.max_response_tokens": 30})
    model, tokenizer = load_policy(config)
    engine_for(model, config, eos_id=1)
    contexts = [[2, 5, 3], [4 + (7 * i) % 30 for i in range(20)], [9]]
    requests = [Request(context_ids=c, max_new_tokens=20, key=rng.key(0, "t", i)) for i, c in enumerate(contexts)]
    rows = TransformersEngine(model, eos_id=-1).generate(requests)
    problems = [EncodedProblem(problem=Problem(id="", prompt="", answer=""), index=0, prompt_ids=c) for c in contexts]
    batch = pad_rows([Row(problem=p, row=0, sampled_ids=r.token_ids) for p, r in zip(problems, rows, strict=True)], 0)
    with torch.no_grad():
        read = policy.response_stats(model, batch).logp.split([20] * 3)
    for context, row, together in zip(contexts, rows, read, strict=True):
        ids = torch.tensor([context + row.token_ids])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
        own = logp.gather(-1, ids[0, len(context) :, None])[:, 0]
        assert own.std() > 0.1
        assert torch.allclose(own, torch.tensor(row.logp), atol=2e-4)
        assert torch.allclose(own, together, atol=2e-4)
    # Written, changed, read back: the bits that were written.
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    store = Checkpoints(tmp_path / "checkpoints", config=config, keep=1)
    store.rehearse(model, tokenizer)
    policy.save_policy(model, tokenizer, tmp_path / "kept")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    policy.read_weights(model, tmp_path / "kept")
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_the_engine_cannot_sample_from_is_refused(tmp_path, small, name):
    config = small(**{"model.path": saved(tmp_path / "model", name)})
    model, _ = load_policy(config)
    with pytest.raises(ConfigError, match=r"cannot be used with rollout.engine = 'transformers'"):
        engine_for(model, config, eos_id=1)


def test_a_mask_that_forgets_the_window_is_found_out(tmp_path, small, monkeypatch):
    config = small(**{"model.path": saved(tmp_path / "model", "mistral, windows")})
    model, _ = load_policy(config)
    mask = TransformersEngine._attention_mask

    def blind(self, cache):
        monkeypatch.setattr(model.config, "sliding_window", None)
        return mask(self, cache)

    monkeypatch.setattr(TransformersEngine, "_attention_mask", blind)
    with pytest.raises(
        ConfigError, match=r"log-probabilities of tokens sampled lie \d.* nats from those of its own forward"
    ):
        engine_for(model, config, eos_id=1)


def test_weights_that_are_not_in_the_file_are_named(tmp_path, small):
    path = saved(tmp_path / "model", "llama, untied")
    file = tmp_path / "model" / "model.safetensors"
    whole = load_file(file)
    for change, sentence in (
        (lambda name: f"_orig_mod.{name}", r"no weights for lm_head.weight and 20 other tensors \(it holds _orig_mod"),
        (
            lambda name: name if name != "lm_head.weight" else None,
            r"no weights for lm_head.weight; save the plain model",
        ),
    ):
        kept = {change(name): tensor for name, tensor in whole.items() if change(name)}
        save_file(kept, file, metadata={"format": "pt"})
        with pytest.raises(ConfigError, match=sentence):
            load_policy(small(**{"model.path": path}))
    file.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ConfigError, match="could not be loaded"):
        load_policy(small(**{"model.path": path}))


def test_a_generation_config_that_cannot_be_written_loses_no_weights(tmp_path, small):
    path = saved(tmp_path / "model", "llama")
    settings = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 1}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    model, tokenizer = load_policy(small(**{"model.path": path}))
    policy.save_policy(model, tokenizer, tmp_path / "kept")
    found = json.loads((tmp_path / "kept" / "generation_config.json").read_text())
    assert found["eos_token_id"] == 1 and "temperature" not in found


def test_a_model_that_comes_back_as_another_is_refused_before_the_first_step(tmp_path, small, monkeypatch):
    def forgetful(model, tokenizer, folder):
        with torch.no_grad():
            before = model.lm_head.weight.clone()
            model.lm_head.weight.mul_(2)
            policy.save_policy(model, tokenizer, folder)
            model.lm_head.weight.copy_(before)

    monkeypatch.setattr(checkpoint, "save_weights", forgetful)
    config = small(**{"model.path": saved(tmp_path / "model", "llama, untied")})
    with pytest.raises(
        ConfigError, match=r"cannot be saved and read again \(lm_head.weight comes back with other numbers"
    ):
        train(config, out=tmp_path / "runs", progress=False)
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
