"""Model objects in training: a head or adapters put on by hand, frozen parameters, and what is no model."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.lab.again import Replay
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.models.policy import TRAINED
from prefix_rft_lab.runs.run import Run
from prefix_rft_lab.trainer import train


class Scaled(nn.Module):
    """A part of your own: a scale of the last hidden state, 1 at first."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.scale = norm, nn.Parameter(torch.ones(norm.weight.shape[0]))

    def forward(self, hidden):
        return self.norm(hidden) * self.scale


def with_a_part(tiny):
    """The tiny policy, all frozen but a new part."""
    model = copy.deepcopy(tiny[0]).requires_grad_(False)
    model.model.norm = Scaled(model.model.norm)
    model.model.norm.scale.requires_grad_(True)
    return model


def with_adapters(tiny):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(copy.deepcopy(tiny[0]), settings)


def kept(run):
    return sorted(path.name for path in (run.path / "model").iterdir() if path.suffix == ".safetensors")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "base"])
def test_every_method_trains_the_part_that_is_not_frozen(tiny, small, tmp_path, method):
    model = with_a_part(tiny)
    config = small(method=method, **{"rl.steps": 2, "sft.steps": 2, "relift.batch_problems": 1, "rl.lr": 1e-2})
    run = train(config, model=model, tokenizer=tiny[1], out=tmp_path, progress=False)
    saved = load_file(run.path / "model" / "model.safetensors")
    moved = {
        name for name, value in model.state_dict().items() if name in saved and not torch.equal(value, saved[name])
    }
    assert moved == {"model.norm.scale"}
    assert torch.equal(model.model.norm.scale, torch.ones_like(model.model.norm.scale)), (
        "the object itself is as it was"
    )


def test_adapters_are_trained_and_saved_alone(tiny, small, tmp_path):
    from peft import PeftModel

    model = with_adapters(tiny)
    config = small(method="prefix_rft", **{"rl.lr": 1e-2})
    run = train(config, model=model, tokenizer=tiny[1], out=tmp_path, progress=False)
    assert kept(run) == ["adapter_model.safetensors"]
    saved = load_file(run.path / "model" / "adapter_model.safetensors")
    assert all("lora" in name for name in saved)
    assert any(value.abs().max() > 0 for name, value in saved.items() if "lora_B" in name)
    # What was trained is what is loaded again.
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny[0]), run.path / "model")
    ids = torch.arange(4, 12)[None]
    base = tiny[0](input_ids=ids).logits
    assert not torch.allclose(loaded(input_ids=ids).logits, base)
    with loaded.disable_adapter():
        assert torch.equal(loaded(input_ids=ids).logits, base), "what was frozen stayed frozen"


def test_a_resumed_run_has_the_bits_of_a_whole_one_and_its_checkpoints_hold_what_is_trained(tiny, small, tmp_path):
    class Stop(Exception):
        pass

    def stop(line):
        if line["global_step"] == 2:
            raise Stop

    model, config = with_adapters(tiny), small(method="prefix_rft", **{"rl.lr": 1e-2})
    told = {"model": model, "tokenizer": tiny[1], "progress": False}
    with pytest.raises(Stop):
        train(config, out=tmp_path / "halves", on_step=stop, **told)
    (weights,) = (tmp_path / "halves").rglob(TRAINED)
    assert all("lora" in name for name in load_file(weights))
    assert not list((tmp_path / "halves").rglob("model.safetensors"))
    halves, whole = train(config, out=tmp_path / "halves", **told), train(config, out=tmp_path / "whole", **told)
    assert halves.metrics["loss"].tolist() == whole.metrics["loss"].tolist()
    a, b = (load_file(run.path / "model" / "adapter_model.safetensors") for run in (halves, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_another_object_is_another_run(tiny, small, tmp_path):
    config = small(method="rft", **{"rl.steps": 1})
    whole = AutoModelForCausalLM.from_pretrained(tiny[0].config._name_or_path, dtype=torch.float32)
    other = copy.deepcopy(whole)
    with torch.no_grad():
        other.model.norm.weight += 0.01
    frozen = copy.deepcopy(whole)
    frozen.model.norm.weight.requires_grad_(False)
    told = {"tokenizer": tiny[1], "out": tmp_path, "progress": False}
    paths = [train(config, model=model, **told).path for model in (whole, whole, other, frozen)]
    assert paths[0] == paths[1]
    assert len(set(paths)) == 3
    by_path = train(config, out=tmp_path, progress=False)
    assert by_path.path not in paths
    assert by_path.metrics["loss"].tolist() == Run(paths[0]).metrics["loss"].tolist()
    with pytest.raises((ConfigError, RunError), match="was trained from a model object"):
        Replay(Run(paths[0]))


def test_what_cannot_be_trained_is_one_sentence(tiny, small, tmp_path):
    config = small(method="rft")
    model = copy.deepcopy(tiny[0])
    for given, changes, sentence in (
        (nn.Linear(2, 2), {}, "model = Linear has no device and no config and no base_model"),
        (copy.deepcopy(model).half(), {}, "has parameters in float16; pass model.float()"),
        (copy.deepcopy(model).requires_grad_(False), {}, "has no parameter that is trained; set requires_grad"),
        (model, {"rollout.engine": "vllm"}, "rollout.engine = 'vllm' samples from files of weights"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            train(config.replace(**changes), model=given, tokenizer=tiny[1], out=tmp_path)
    assert not list(tmp_path.iterdir())
