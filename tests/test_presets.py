"""The presets of real models hold the published values, and each trains: here small random models of the same families."""

from __future__ import annotations

import inspect
import json
import re

import pytest
from tokenizers_factory import save_model, small
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft_lab import config as configs
from prefix_rft_lab.config import PRESETS, RunConfig, flatten, preset
from prefix_rft_lab.planning import cache_bytes_per_token, model_size
from prefix_rft_lab.templates import SYSTEM_PROMPTS, use_template
from prefix_rft_lab.trainer import train

PAPER = ("paper-1.5b", "paper-7b", "llama-8b")
PUBLISHED = {
    "data.problems": "Elliott/Openr1-Math-46k-8192",
    "rollout.problems_per_step": 128,
    "rollout.rows_per_problem": 8,
    "rollout.hybrid_rows": 1,
    "rollout.max_response_tokens": 8192,
    "rollout.temperature": 1.0,
    "prefix.schedule": "cosine",
    "prefix.high": 0.95,
    "prefix.low": 0.05,
    "prefix.decay_steps": 500,
    "prefix.keep": "top",
    "prefix.keep_fraction": 0.2,
    "loss.advantage": "dr_grpo",
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.2,
    "loss.dual_clip": 3.0,
    "rl.lr": 1e-6,
    "rl.decay": "constant",
    "rl.warmup_fraction": 0.0,
    "rl.weight_decay": 0.01,
    "rl.grad_clip": 1.0,
    "sft.lr": 5e-5,
    "sft.decay": "cosine",
    "sft.warmup_fraction": 0.1,
    "model.dtype": "bfloat16",
}
"""The values of the paper and of what was published with it, written down a second time."""


@pytest.mark.parametrize("name", PAPER)
def test_published_values(name):
    values = dict(flatten(preset(name).to_dict()))
    assert {field: values[field] for field in PUBLISHED} == PUBLISHED
    assert preset(name).name == name
    assert RunConfig.from_dict(preset(name).to_dict()) == preset(name)


def test_the_models_of_the_paper():
    fields = ("path", "template", "context_tokens", "rope_theta")
    found = {name: tuple(getattr(preset(name).model, field) for field in fields) for name in PAPER}
    assert found == {
        "paper-1.5b": ("Qwen/Qwen2.5-Math-1.5B", "qwen2.5-math", 16384, 40000.0),
        "paper-7b": ("Qwen/Qwen2.5-Math-7B", "qwen2.5-math", 16384, 40000.0),
        "llama-8b": ("meta-llama/Llama-3.1-8B", "none", None, None),
    }


def test_rows_of_the_papers_size_are_sampled_by_vllm():
    assert {preset(name).rollout.engine for name in PAPER} == {"vllm"}
    for name in PAPER:
        found = model_size(preset(name))
        config = preset(name)
        longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
        # The comment at the preset: so many of the longest rows fit.
        rows = config.vllm.cache_gib * 2**30 / cache_bytes_per_token(found, 2) / longest
        assert int(rows) == {"paper-1.5b": 65, "paper-7b": 32, "llama-8b": 14}[name]


def test_three_epochs_of_demonstrations():
    config = preset("paper-7b")
    assert config.sft.steps == round(3 * config.data.train_problems / config.sft.batch_rows)


@pytest.mark.parametrize("function", [configs._paper, configs._qwen_math, configs._llama_8b])
def test_every_value_names_its_source(function):
    lines = inspect.getsource(function).splitlines()
    values = [line for line in lines if re.match(r'\s+"\w+": (?!\{$)', line)]
    assert len(values) >= 4
    for line in values:
        assert re.search(r"# .*\b(paper|code|LUFFY|kit)\b", line), line


def problems(folder):
    """A file in the layout of Openr1-Math-46k-8192."""
    path = folder / "problems.jsonl"
    with path.open("w") as file:
        for i in range(24):
            thought = f"<think>\nAdd {i} and {i + 1}.\n\n</think>\n\nThe sum is \\boxed{{{2 * i + 1}}}."
            row = {
                "data_source": "sums",
                "prompt": [
                    {"role": "system", "content": "of the data set"},
                    {"role": "user", "content": f"What is {i} + {i + 1}?"},
                ],
                "target": [{"role": "assistant", "content": thought}],
                "reward_model": {"ground_truth": str(2 * i + 1), "style": "rule"},
                "extra_info": {"index": i, "split": "train"},
            }
            file.write(json.dumps(row) + "\n")
    return path


FAMILY = {"smol": "llama3", "paper-1.5b": "qwen2", "paper-7b": "qwen2", "llama-8b": "llama3"}


@pytest.mark.parametrize(("name", "method"), [*((name, "prefix_rft") for name in FAMILY), ("paper-7b", "sft")])
def test_two_steps(name, method, tmp_path):
    """Lengths and numbers are cut down to a test's; arithmetic, template, prompts and method stay the preset's."""
    tied = {"tie_word_embeddings": name in ("smol", "paper-1.5b")}
    # SmolLM2 is a Llama that speaks ChatML.
    folder = save_model(tmp_path / "base", FAMILY[name], tokens_of="qwen2" if name == "smol" else "", **tied)
    if name == "smol":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = small_template()
        tokenizer.save_pretrained(folder)
    config = preset(
        name,
        **{
            "method": method,
            "model.path": str(folder),
            "model.device": "cpu",
            "data.problems": str(problems(tmp_path)),
            "data.train_problems": 16,
            "data.eval_problems": 3,
            # vLLM has tests of its own; it is optional, and on a CPU it knows no heads of 16 numbers.
            "rollout.engine": "transformers",
            "rollout.problems_per_step": 3,
            "rollout.max_prompt_tokens": 440,
            "rollout.max_response_tokens": 72,
            "rl.steps": 2,
            "sft.steps": 2,
            "sft.batch_rows": 4,
            "evaluation.every": 0,
            "evaluation.k": 1,
            "evaluation.problems": 2,
            "evaluation.hard_tries": 0,
            "records.tokens_every": 1,
            "threads": 1,
        },
    )
    run = train(config, out=tmp_path / "runs", progress=False)
    assert run.done and len(run.metrics) == 2
    assert run.metrics["loss"].notna().all()
    if method == "prefix_rft":
        assert (run.metrics["prefix_tokens"] > 0).all()
    loaded = AutoModelForCausalLM.from_pretrained(run.path / "model")
    own = AutoTokenizer.from_pretrained(run.path / "model")
    assert loaded.config.model_type == ("qwen2" if FAMILY[name] == "qwen2" else "llama")
    assert loaded.config.max_position_embeddings == (config.model.context_tokens or 512)
    messages = [{"role": "system", "content": SYSTEM_PROMPTS["luffy"]}, {"role": "user", "content": "What is 1 + 2?"}]
    ids = own.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert loaded.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]


def small_template():
    tokenizer = small("qwen2")
    use_template(tokenizer, "smollm2", "here")
    return tokenizer.chat_template


def test_every_preset_is_tried():
    assert set(PRESETS) == {"tiny", *FAMILY}
