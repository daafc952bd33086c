"""A plan is right: counts are those of the real models, and bytes are those of real tensors after a real update."""

from __future__ import annotations

import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers_factory import save_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5Config

from prefix_rft_lab import cli, planning, trainer
from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.data.rewards import Scorer
from prefix_rft_lab.generation.transformers_engine import RaggedCache
from prefix_rft_lab.methods import METHODS
from prefix_rft_lab.models import generation
from prefix_rft_lab.models.generation import Request, TransformersEngine
from prefix_rft_lab.plan_text import format_plan
from prefix_rft_lab.planning import GROWTH, PHASES, Throughput, cache_bytes_per_token, model_size, plan
from prefix_rft_lab.policy import autocast_dtype, load_policy
from prefix_rft_lab.runs.run import RunWriter
from prefix_rft_lab.trainer import Trainer
from prefix_rft_lab.types import TokenKind

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
RATE = Throughput(flops=4e14, source="given")


def part(found, name):
    [one] = [part for part in found.parts if part.name == name]
    return one


# ---------------------------------------------------------------- the models of the presets


def score_all(monkeypatch, score):
    """Let the i-th of some rows score ``score(i)``."""
    monkeypatch.setattr(Scorer, "total", lambda self, parts: [float(score(i)) for i, _ in enumerate(*parts.values())])


@pytest.mark.parametrize(
    ("name", "parameters", "cache"),
    [
        ("paper-1.5b", 1_543_714_304, 28_672),
        ("paper-7b", 7_615_616_512, 57_344),
        ("llama-8b", 8_030_261_248, 131_072),
        ("smol", 134_515_008, 23_040),
    ],
)
def test_known_models_are_counted_without_a_network(monkeypatch, name, parameters, cache):
    def answers_for(*_):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("prefix_rft_lab.hub.answers_for", answers_for)
    found = model_size(preset(name))
    assert found.parameters == parameters
    assert cache_bytes_per_token(found, 2) == cache
    # Qwen2.5-Math-7B and Llama have a head apart from the embedding, which is looked up and not multiplied with.
    assert found.multiplied == parameters - (0 if name in ("paper-1.5b", "smol") else found.head)


def test_sums_of_the_7b_model_by_hand():
    config = preset("paper-7b")
    found = plan(config)
    n = 7_615_616_512
    assert part(found, "weights").bytes == part(found, "gradients").bytes == 4 * n
    assert part(found, "AdamW").bytes == 8 * n
    assert part(found, "vLLM's weights").bytes == 2 * n
    assert part(found, "vLLM's cache").bytes == config.vllm.cache_gib * 2**30
    assert part(found, "logits").bytes == (2**25 // 152_064) * 152_064 * 14
    # q, k, v, o, gate, up, down, and the head, in two bytes; sines and cosines, which all rows share as well, in four.
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18_944
    assert part(found, "weights in bfloat16").bytes == 2 * (28 * layer + 152_064 * 3584) + 2 * 9216 * 128 * 4
    assert part(found, "weights in bfloat16").phases == ("update",), "vLLM samples from weights of its own"
    assert found.checkpoint_bytes == 12 * n and found.model_bytes == 4 * n
    [stage] = found.stages
    assert (stage.rows, stage.plain, stage.hybrid, stage.demonstrations) == (1024, 896, 128, 0)
    assert (stage.steps, stage.updates, stage.micro_batches, stage.read) == (500, 1, 1024, 128)
    forward = 2 * (n - 152_064 * 3584) * 9216 + 2 * 28 * 3584 * 9216**2
    assert stage.sampling_flops == 1024 * forward
    assert stage.update_flops == (4 * 1024 + 128) * forward
    # What goes from layer to layer is float32; the final norm keeps its input and two like it.
    assert found.model.input_bytes == pytest.approx((28 + 3) * 3584 * 4, rel=0.01)
    assert part(found, "activations").bytes == round(9216 * (found.model.input_bytes + found.model.kept_bytes / 28))
    assert found.peak_bytes == max(sum(p.bytes for p in found.parts if phase in p.phases) for phase in PHASES)


def test_cards_by_hand():
    found = plan(preset("tiny", **{"records.diagnostics_every": 0}))
    gib = 2**30
    whole = planning.Part(name="a", sum="", bytes=40 * gib, phases=PHASES, sharded=True)
    each = planning.Part(name="b", sum="", bytes=8 * gib, phases=("update",))
    found = replace(found, parts=(whole, each))
    assert found.peak_bytes == 48 * gib
    assert found.cards(80) == 1, "48 of 72"
    assert found.cards(40) == 2, "28 of 36 are left for 40"
    assert found.cards(24) == 3, "13.6 of 21.6 are left for 40"
    assert found.cards(8) is None, "8 do not fit 7.2, however many"


# ---------------------------------------------------------------- real tensors


@pytest.mark.parametrize("method", ["prefix_rft", "relift"])
def test_bytes_are_those_of_a_real_trainer(tmp_path, small, monkeypatch, method):
    config = small(method=method, **{"relift.batch_problems": 1, "model.dtype": "bfloat16"})
    found = plan(config)
    # Every rollout fails, so that the buffer of ReLIFT fills.
    score_all(monkeypatch, lambda i: i == 1)
    with RunWriter(config, tmp_path) as writer, Trainer(config, writer) as one:
        [stage] = METHODS[method].stages
        optimizers = one.optimizers(stage)
        one.step(stage, optimizers, 0, 0)
        parameters = list(one.model.parameters())
        states = [state for o in optimizers.values() for state in o.state.values()]
        moments = [t for state in states for name, t in state.items() if name != "step"]
        assert len(optimizers) == (2 if method == "relift" else 1)
        assert sum(p.nbytes for p in parameters) == part(found, "weights").bytes
        assert sum(p.grad.nbytes for p in parameters) == part(found, "gradients").bytes
        assert sum(t.nbytes for t in moments) == part(found, "AdamW").bytes
        one.checkpoints.save(trainer.Place(stage=0, step=1, global_step=1), one.model, one.tokenizer, optimizers)
        [folder] = one.checkpoints.folder.glob("step-*")
    written = [*folder.glob("model/*.safetensors"), folder / "optimizers.pt"]
    assert sum(path.stat().st_size for path in written) == pytest.approx(found.checkpoint_bytes, rel=0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_a_real_forward_pass_keeps(tiny, small, dtype):
    model, _ = tiny
    config = small(**{"model.dtype": dtype})
    found = model_size(config)
    length = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    low = autocast_dtype(config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=low is not None),
    ):
        pack(model.base_model(input_ids=torch.zeros(3, length, dtype=torch.long), use_cache=False).last_hidden_state)
    total = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)
    weights = found.copied_bytes - 2 * found.head if low else 0
    assert total == pytest.approx(3 * length * found.kept_bytes + weights, rel=0.01)


class Held(TorchDispatchMode):
    """Bytes of the tensors that were made while it is on and are still there: now, and at most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        for tensor in tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.known:
                self.known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.freed, storage._cdata)
        return made

    def freed(self, key):
        self.now -= self.known.pop(key)


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_of_layers_computed_again_are_those_of_a_real_backward_pass(small, dtype):
    config = small(**{"model.dtype": dtype, "activation_checkpointing": True})
    found = plan(config)
    tokens = 64 * config.rollout.row_tokens
    kept = tokens * (found.model.input_bytes + found.model.kept_bytes / found.model.layers)
    model, _ = load_policy(config)
    ids = torch.zeros(64, config.rollout.row_tokens, dtype=torch.long)
    with Held() as held:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast_dtype(config) is not None):
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        weights = found.model.copied_bytes - 2 * found.model.head if autocast_dtype(config) is not None else 0
        assert held.now == pytest.approx(tokens * found.model.input_bytes, rel=0.02)
        assert held.most < kept + weights
        states.sum().backward()
    gradients = sum(p.grad.nbytes for p in model.base_model.parameters())
    # Kernels of a backward pass hold gradients of activations too, which the plan does not count.
    assert held.most - gradients == pytest.approx(kept, rel=0.1)


def test_layers_computed_again_cost_a_forward_pass_more():
    with_, without = (plan(preset("paper-1.5b", activation_checkpointing=again)) for again in (True, False))
    [more], [less] = with_.stages, without.stages
    forward = less.sampling_flops / less.sampled
    assert more.update_flops - less.update_flops == pytest.approx(1024 * forward)
    assert more.sampling_flops == less.sampling_flops
    assert with_.cards(80) == 1 and without.cards(80) == 2, "the 1.5B model fits one card so"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_that_of_the_real_engine(tiny, small, monkeypatch, dtype):
    model, _ = tiny
    config = small(**{"model.dtype": dtype, "rollout.max_batch_rows": 5})
    grown = []
    make_room = RaggedCache.make_room

    def measured(self):
        make_room(self)
        grown.append(sum(tensor.nbytes for tensor in self.keys + self.values))

    monkeypatch.setattr(RaggedCache, "make_room", measured)
    rollout = config.rollout
    engine = TransformersEngine(model, eos_id=-1, max_batch_rows=5, autocast=autocast_dtype(config))
    context = [1] * rollout.max_prompt_tokens
    engine.generate([Request(context_ids=context, max_new_tokens=rollout.max_response_tokens, key=i) for i in range(5)])
    planned = part(plan(config), "key-value cache").bytes
    if dtype == "bfloat16":
        assert part(plan(config), "weights in bfloat16").phases == ("sampling", "update")
    columns = rollout.max_prompt_tokens + rollout.max_response_tokens + GROWTH
    assert max(grown) <= planned and max(grown) % (planned // columns) == 0
    assert max(grown) >= planned * (1 - (GROWTH + 1) / columns)


def test_a_plan_holds_what_prefills_and_checks_take(small):
    config = preset("paper-7b", **{"rollout.engine": "transformers"})
    found = plan(config)
    model, tokens = found.model, planning.PREFILLED_TOKENS
    assert tokens > config.rollout.row_tokens
    layer = model.kept_bytes / model.layers
    assert part(found, "prefill").bytes == tokens * (2 * 28 * 4 * 128 * 4 + layer)
    checked = part(plan(config.replace(**{"rollout.engine": "vllm"})), "check of vLLM")
    chunk = 2**25 // 152_064
    assert checked.bytes == pytest.approx(chunk * 152_064 * 12 + config.rollout.row_tokens * layer)
    assert checked.phases == ("sampling",)


def test_a_plan_of_problems_that_are_not_there_says_so(small, tmp_path):
    with pytest.raises(ConfigError, match=r"data.problems = '.*nowhere.jsonl' is not a file; give the path"):
        plan(small(**{"data.problems": str(tmp_path / "nowhere.jsonl")}))
    assert plan(small(**{"data.problems": "owner/name"})).steps == 4, "the Hub is not asked"


def test_diagnostics_hold_a_gradient_for_each_kind(tmp_path, small, monkeypatch):
    config = small(micro_batch_tokens=64)
    found = plan(config)
    with RunWriter(config, tmp_path) as writer, Trainer(config, writer) as one:
        [stage] = METHODS["prefix_rft"].stages
        held = {}
        add = one.updater._add_gradient

        def counted(total, loss):
            add(total, loss)
            held[id(total)] = sum(tensor.nbytes for tensor in total)

        monkeypatch.setattr(one.updater, "_add_gradient", counted)
        score_all(monkeypatch, lambda i: i % 2)
        one.step(stage, one.optimizers(stage), 0, 0)
    # One more is on its way to its sum.
    assert part(found, "diagnostics").bytes == sum(held.values()) + part(found, "weights").bytes
    assert len(held) == 3


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_those_of_the_trainer(tmp_path, small, method):
    config = small(method=method)
    found = plan(config)
    assert found.evaluation_rows > 0
    if not found.stages:
        assert not any(part.name in ("gradients", "AdamW", "activations") for part in found.parts)
        return
    with RunWriter(config, tmp_path) as writer, Trainer(config, writer) as one:
        for planned, stage in zip(found.stages, METHODS[method].stages, strict=True):
            rows = one.rows(stage, 0)
            assert planned.rows == len(rows)
            assert planned.demonstrations == sum(row.is_demonstration for row in rows)
            assert planned.hybrid >= sum(row.is_hybrid for row in rows)
            assert planned.steps == stage.optimizer_section(config).steps


def test_rows_outside_steps_are_those_that_a_run_samples(tmp_path, small, monkeypatch):
    config = small(method="rft", **{"evaluation.hard_tries": 1})
    asked = []
    generate = TransformersEngine.generate

    def counted(self, requests, **options):
        asked.append(len(requests))
        return generate(self, requests, **options)

    monkeypatch.setattr(TransformersEngine, "generate", counted)
    monkeypatch.setattr(generation, "prove", lambda *_, **__: None)
    # No row is right: all probed problems are hard, which is the most that can be.
    score_all(monkeypatch, lambda i: 0)
    trainer.train(config, out=tmp_path, progress=False)
    found = plan(config)
    [stage] = found.stages
    assert sum(asked) == found.evaluation_rows + stage.steps * stage.sampled


def test_what_several_updates_and_a_replay_read():
    changes = {"loss.updates_per_rollout": 4, "relift.batch_problems": 7}
    [stage] = plan(preset("tiny", method="relift", **changes)).stages
    assert (stage.updates, stage.rows, stage.replay, stage.read) == (4, 128, 7, 128)
    assert stage.update_flops == pytest.approx(stage.sampling_flops / 128 * (3 * (128 + 7) + 128))
    [stage] = plan(preset("tiny", method="rft_clip")).stages
    assert stage.read == 128
    # The clip takes advantages away; where prefixes are trained without one it ranks nothing.
    for loss, read in (("advantage", 16), ("static", 0), ("frozen", 0)):
        [stage] = plan(preset("tiny", **{"prefix.loss": loss})).stages
        assert stage.read == read
    assert TokenKind.ON_POLICY in METHODS["rft_clip"].stages[0].entropy_clip


def test_sleep_frees_vllm_during_updates():
    awake, asleep = (plan(preset("paper-1.5b", **{"vllm.sleep": sleep})) for sleep in (False, True))
    freed = part(awake, "vLLM's weights").bytes + part(awake, "vLLM's cache").bytes
    assert awake.bytes_in("update") - asleep.bytes_in("update") == freed
    assert awake.bytes_in("sampling") == asleep.bytes_in("sampling")


# ---------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("name", "method"), [("tiny", method) for method in METHODS] + [("paper-7b", "relift"), ("llama-8b", "uft")]
)
def test_a_plan_is_readable(name, method):
    found = plan(preset(name, method=method, **{"data.demonstration_fraction": 0.5}))
    text = format_plan(found, RATE)
    assert max(map(len, text.splitlines())) <= 120, max(text.splitlines(), key=len)
    for phase in PHASES[: 3 if found.stages else 1]:
        [line] = re.findall(rf"^{phase} +(.*) GiB$", text, re.M)
        terms, total = line.split(" = ")
        assert sum(map(float, terms.split(" + "))) == pytest.approx(float(total), rel=0.05, abs=0.1)


def test_tokens_of_a_response_change_the_time_alone():
    config = preset("tiny")
    short, long = plan(config, response_tokens=10), plan(config)
    assert short.flops < long.flops and short.parts == long.parts and short.stages[0].rows == long.stages[0].rows
    with pytest.raises(ConfigError, match="response_tokens = 97 lies outside 1 to "):
        plan(config, response_tokens=97)


def test_products_are_measured_here():
    found = planning.throughput_for(plan(preset("tiny", **{"model.device": "cpu"})))
    assert found.flops > 1e7 and "just measured" in found.source
    threads = torch.get_num_threads()
    planning.measured_throughput(preset("tiny", threads=2), seconds=0.01)
    assert torch.get_num_threads() == threads
    config = preset("paper-7b", **{"micro_batch_tokens": 10**9, "data.train_problems": 1})
    assert planning.throughput_for(plan(config)) == planning.ASSUMED, "it does not fit this machine"


def test_the_readme_shows_what_the_command_prints(capsys):
    [(command, shown)] = re.findall(
        r"```\n\$ prefix-rft (train --preset paper-7b --plan[^\n]*)\n(.*?)```", README, re.S
    )
    assert cli.main(command.split()) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in shown.splitlines() if line.strip() not in ("", "...")]
    assert len(lines) > 10
    places = [printed.index(line) for line in lines]
    assert places == sorted(places)


def test_a_directory_is_read_from_its_config_alone(tmp_path, capsys):
    folder = save_model(tmp_path / "base", "qwen2", context=256)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    out = tmp_path / "runs"
    changes = {"model.context_tokens": 4096, "model.rope_theta": 40_000, "rollout.max_response_tokens": 2048}
    sets = [f"--set={name}={value}" for name, value in changes.items()]
    assert (
        cli.main(["train", "--model", str(folder), *sets, "--plan", "--flops=1e12", "--seeds=0,1", f"--out={out}"]) == 0
    )
    printed = capsys.readouterr().out
    assert f"{folder}: " in printed and "2 seeds: as many runs like this one" in printed
    assert not out.exists(), "nothing is written"


def test_weights_that_are_there_count_alike(tmp_path):
    folder = save_model(tmp_path / "base", "llama3", tie_word_embeddings=True)
    config = preset("tiny", **{"model.path": str(folder), "model.device": "cpu", "model.template": "llama-3.1"})
    model, _ = load_policy(config)
    assert model_size(config).parameters == sum(p.numel() for p in model.parameters())


def test_an_architecture_that_cannot_be_traced_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("shapes depend on values")

    folder = save_model(tmp_path / "base", "llama3")
    monkeypatch.setattr(planning, "_saved_bytes", refuse)
    found = plan(preset("tiny", **{"model.path": str(folder), "model.dtype": "bfloat16"}))
    text = format_plan(found, RATE)
    assert part(found, "activations").bytes is None
    assert "not known: this architecture cannot be traced" in text
    assert re.search(r"^update .* \+ \? = .* GiB at least$", text, re.M)
    assert "yes (activations left out)" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=no/such-model"], "model.path = 'no/such-model' could not be loaded"),
        (["--flops=0"], "--flops 0 is no rate"),
        (["--flops=nan"], "--flops nan is no rate"),
        (["--response-tokens=0"], "response_tokens = 0 lies outside"),
        (["--set=rollout.max_response_tokens=9999"], "exceeds the model's context of 256 tokens"),
        (["--method=lufy"], "method = 'lufy' is not known"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, words):
    assert cli.main(["train", "--plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_options_of_a_plan_without_one_are_refused(capsys):
    assert cli.main(["train", "--flops=1e12"]) == 2
    assert "--flops 1e+12 has no meaning without --plan" in capsys.readouterr().err


def test_no_causal_language_model(tmp_path):
    T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path / "t5")
    with pytest.raises(ConfigError, match="is no causal language model that transformers can build"):
        model_size(preset("tiny", **{"model.path": str(tmp_path / "t5")}))
