"""The vLLM engine, by real vLLM on the CPU: the tokens and log-probabilities of the transformers engine, from new weights."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from transformers import LlamaConfig, LlamaForCausalLM

from prefix_rft_lab import preset, rng, train
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.core.versions import VLLM_VERSION, installed_vllm
from prefix_rft_lab.evaluation_run import config_for, evaluate_policy
from prefix_rft_lab.generation import Request, TransformersEngine, engine_for, vllm_engine
from prefix_rft_lab.generation.vllm_engine import VllmEngine
from prefix_rft_lab.runs import RunError
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import prompt_ids

if installed_vllm() == ("", "") and "CI" not in os.environ:
    pytest.skip("vLLM is not installed; run: make vllm", allow_module_level=True)

VLLM = {"rollout.engine": "vllm", "rollout.max_batch_rows": 512, "vllm.cache_gib": 0.25}
TOLERANCE = 5e-5
"""Nats by which log-probabilities of the two engines may differ in float32, token by token."""


@pytest.fixture(scope="module")
def config():
    return preset("tiny", **(SMALL | VLLM))


@pytest.fixture(scope="module")
def model(tiny):
    return copy.deepcopy(tiny[0])


@pytest.fixture(scope="module")
def eos(tiny):
    return int(tiny[1].eos_token_id)


@pytest.fixture
def engine(model, config, eos):
    """An engine in this process; every test starts its own, since only one can be open, and runs start theirs."""
    engine = engine_for(model, config, eos_id=eos)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def requests(tiny, config):
    """Prompts, and prompts with a prefix, four rows each."""
    problems = [p for split in ("train", "ood") for p in chains.problems(split, 6)]
    contexts = [prompt_ids(tiny[1], p, config) for p in problems]
    prefix = tiny[1](problems[0].demonstration, add_special_tokens=False)["input_ids"]
    contexts += [contexts[0] + prefix[:9], contexts[0] + prefix[:2]]
    return [
        Request(context_ids=c, max_new_tokens=24, key=rng.key(0, "test", i, copy))
        for i, c in enumerate(contexts)
        for copy in range(4)
    ]


def tokens(found):
    return [c.token_ids for c in found]


def gaps(model, found, requests, temperature=1.0):
    """Distance of a teacher-forced pass of the model from what the engine said, nats, one a sampled token."""
    out = []
    for request, completion in zip(requests, found, strict=True):
        with torch.no_grad():
            ids = torch.tensor([request.context_ids + completion.token_ids])
            logp = (model(input_ids=ids).logits[0].double() / temperature).log_softmax(-1)
        start = len(request.context_ids)
        out += [
            abs(float(logp[start + i - 1, token]) - said)
            for i, (token, said) in enumerate(zip(completion.token_ids, completion.logp, strict=True))
        ]
    return out


def test_greedy_equals_the_transformers_engine(engine, model, eos, requests):
    found = engine.generate(requests, greedy=True)
    expected = TransformersEngine(model, eos_id=eos).generate(requests, temperature=3.0, greedy=True)
    assert tokens(found) == tokens(expected)
    assert [c.truncated for c in found] == [c.truncated for c in expected]
    assert {c.truncated for c in found} == {True, False}
    for a, b in zip(found, expected, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_rows(engine, model, requests, temperature):
    """Their log-probabilities are the model's at the temperature; seeds repeat them, alone and in any company."""
    found = engine.generate(requests, temperature=temperature)
    assert max(gaps(model, found, requests, temperature)) < TOLERANCE
    assert len({tuple(ids) for ids in tokens(found)}) > len(requests) // 4, "copies of a context differ by key"
    assert tokens(engine.generate(requests, temperature=temperature)) == tokens(found)
    assert tokens(engine.generate(requests[::-1], temperature=temperature)[::-1]) == tokens(found)
    assert [tokens(engine.generate([r], temperature=temperature))[0] for r in requests[:6]] == tokens(found)[:6]


def test_samples_follow_the_softmax(engine, model, requests):
    """First tokens of 2000 keys against the probabilities: each frequency within four standard errors."""
    context, draws = requests[0].context_ids, 2000
    many = [Request(context_ids=context, max_new_tokens=1, key=rng.key(0, "softmax", i)) for i in range(draws)]
    counts = torch.bincount(torch.tensor([ids[0] for ids in tokens(engine.generate(many))]), minlength=8)
    with torch.no_grad():
        probs = model(input_ids=torch.tensor([context])).logits[0, -1].double().softmax(-1)
    for token in probs.topk(5).indices.tolist():
        error = float((probs[token] * (1 - probs[token]) / draws) ** 0.5)
        assert abs(float(counts[token]) / draws - float(probs[token])) < 4 * error + 1e-3


def test_more_prompts_than_one_pass_takes(engine, model):
    """600 distinct prompts of 16 to 24 tokens: more than 4096 together, and more rows than run at the same time."""
    draws = np.random.default_rng(0)
    rows = [
        Request(context_ids=draws.integers(2, 37, size=int(n)).tolist(), max_new_tokens=3, key=i)
        for i, n in enumerate(draws.integers(16, 25, size=600))
    ]
    found = engine.generate(rows)
    assert max(gaps(model, found, rows)) < TOLERANCE
    assert tokens(engine.generate(rows[::-1])[::-1]) == tokens(found)


def test_limits_and_end_tokens(model, config, requests):
    """A row of no tokens, and rows cut where their limit says, which changes no sample."""
    limits = [3, 1, 10, 2, 0, 5]
    engine = VllmEngine(model, config, eos_id=-1)
    try:
        cut = [
            Request(context_ids=r.context_ids, max_new_tokens=n, key=n) for r, n in zip(requests, limits, strict=False)
        ]
        long = [Request(context_ids=r.context_ids, max_new_tokens=12, key=r.key) for r in cut]
        found = engine.generate(cut)
        assert [len(c.token_ids) for c in found] == [len(c.logp) for c in found] == limits
        assert all(c.truncated for c in found)
        for a, b in zip(tokens(found), tokens(engine.generate(long)), strict=True):
            assert b[: len(a)] == a
        assert engine.generate([]) == []
        assert engine.generate([Request(context_ids=[3], max_new_tokens=0, key=0)])[0].token_ids == []
    finally:
        engine.close()


def test_new_weights_are_used_once_they_are_announced(engine, model, requests):
    before = tokens(engine.generate(requests))
    saved = copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        engine.weights_changed()
        found = engine.generate(requests)
        assert tokens(found) != before
        assert max(gaps(model, found, requests)) < TOLERANCE
    finally:
        model.load_state_dict(saved)
    engine.weights_changed()
    assert tokens(engine.generate(requests)) == before


def test_an_untied_head_and_other_shapes():
    """A random Llama with a head of its own, grouped queries and head_dim 32."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, num_hidden_layers=2, initializer_range=0.2, **shape)).eval()
    assert not model.config.tie_word_embeddings
    engine = VllmEngine(model, preset("tiny", **(SMALL | VLLM)), eos_id=96)
    rows = [Request(context_ids=[5, i + 1, 7], max_new_tokens=20, key=i) for i in range(8)]
    try:
        assert max(gaps(model, engine.generate(rows), rows)) < TOLERANCE
    finally:
        engine.close()


def test_nothing_global_changes(engine, requests):
    torch.manual_seed(5)
    state, threads, preload = torch.get_rng_state(), torch.get_num_threads(), os.environ.get("LD_PRELOAD")
    engine.generate(requests[:4])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads == 1
    assert os.environ.get("LD_PRELOAD") == preload
    assert type(torch.set_num_threads).__name__ == "builtin_function_or_method"


# ---------------------------------------------------------------- runs


class Stop(Exception):
    pass


def test_a_run_trains_on_what_vllm_samples_and_resumes_to_the_same_bits(tmp_path, config):
    one = train(config, out=tmp_path / "whole", progress=False)
    assert one.metrics["engine_gap"].max() < 1e-5 and one.metrics["engine_gap_max"].max() < TOLERANCE

    def stop(line):
        if line["global_step"] == 2:
            raise Stop

    with pytest.raises(Stop):
        train(config, out=tmp_path / "parts", progress=False, on_step=stop)
    two = train(config, out=tmp_path / "parts", progress=False)
    timed = [name for name in one.metrics if name.startswith("seconds")]
    assert one.metrics.drop(columns=timed).equals(two.metrics.drop(columns=timed))
    weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in (one, two)]
    assert weights[0] == weights[1]
    # The saved weights, evaluated by either engine, give the figures of the run's own end.
    again = evaluate_policy(config_for(str(one.path)))
    assert again.config.rollout.engine == "vllm"
    assert again.table["correct"].tolist() == one.evaluation("test")["correct"].tolist()
    plain = evaluate_policy(config_for(str(one.path), changes={"rollout.engine": "transformers"}))
    assert plain.table["greedy"].tolist() == again.table["greedy"].tolist()


@pytest.mark.parametrize("changes", [{"method": "rft", "rollout.importance_cap": 2.0}, {"method": "sft_then_rft"}])
def test_other_methods_train(tmp_path, config, changes):
    run = train(config.replace(**{"rl.steps": 3, "sft.steps": 2, **changes}), out=tmp_path, progress=False)
    assert run.done
    assert run.metrics["engine_gap"].dropna().max() < 1e-5


def test_the_first_look_of_notebook_2(tmp_path):
    """The notebook's own cells up to it, with ``engine`` set as papermill would."""
    folder = Path(__file__).resolve().parents[1] / "notebooks"
    cells = json.loads((folder / "02_train.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    last = next(i for i, source in enumerate(sources) if "first-look" in source)
    given = f"profile, out, engine = 'smoke', {str(tmp_path / 'out')!r}, 'vllm'"
    script = "\n".join([sources[0], given, *sources[1 : last + 1], "print(first.config.rollout.engine, first.done)"])
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.splitlines()[-1] == "vllm True"


def test_bfloat16(model, config, eos, requests):
    """Arithmetic of both differs by more than in float32, and the check of stale weights allows for that."""
    found = VllmEngine(model, config.replace(**{"model.dtype": "bfloat16"}), eos_id=eos)
    try:
        mean = np.mean(gaps(model, found.generate(requests), requests))
        assert TOLERANCE < mean < vllm_engine.MAX_GAP["bfloat16"] / 4
    finally:
        found.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sync_that_does_not_arrive_stops_the_run(tmp_path, config, monkeypatch, dtype):
    """From the third push on nothing is sent: the rows of the step after would be those of a policy one step older, at a
    learning rate that no log-probability shows."""
    push, pushed = VllmEngine._push_weights, []

    def sabotaged(self):
        if not self._fresh:
            pushed.append(len(pushed))
            if len(pushed) > 2:
                return True
        return push(self)

    monkeypatch.setattr(VllmEngine, "_push_weights", sabotaged)
    lr = {"float32": 1e-6, "bfloat16": 1e-4}[dtype]  # smaller ones are often none in bfloat16
    with pytest.raises(RunError, match=r"weights are not those of the trained model, .* use rollout.engine = 'transf"):
        train(
            config.replace(**{"rl.lr": lr, "model.dtype": dtype, "evaluation.every": 0}), out=tmp_path, progress=False
        )
    assert len(pushed) == 3


def test_a_change_that_nobody_announces_is_noticed(model, config, eos, requests):
    """The smallest one: the last bit of one number, of each kind of tensor."""
    engine = VllmEngine(model, config, eos_id=eos)
    try:
        engine.generate(requests[:2])
        for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"):
            weights = model.get_parameter(name).data.view(-1)
            before = weights[7].clone()
            weights[7] = torch.nextafter(before, torch.tensor(9.0))
            with pytest.raises(RunError, match="vLLM's weights are not those of the trained model"):
                engine.generate(requests[:2])
            weights[7] = before
            engine.generate(requests[:2])
    finally:
        engine.close()


def test_a_head_that_is_not_sent_is_noticed(model, config, eos, requests, monkeypatch):
    """The CPU backend packs the head; without its own tensor a tied one stays what it was."""
    weights = VllmEngine._weights
    engine = VllmEngine(model, config, eos_id=eos)
    monkeypatch.setattr(
        VllmEngine, "_weights", lambda self: ((n, t) for n, t in weights(self) if n != "lm_head.weight")
    )
    try:
        with pytest.raises(RunError, match="weights are not those of the trained model"):
            engine.generate(requests[:8])
    finally:
        engine.close()


def test_a_saved_model_loads_in_vllm_by_itself(tmp_path, config):
    """In a process of its own, which must end, and leave no other behind."""
    run = train(config.replace(**{"rl.steps": 1, "rollout.engine": "transformers"}), out=tmp_path, progress=False)
    script = (
        "import sys; from vllm import LLM, SamplingParams\n"
        "llm = LLM(model=sys.argv[1], dtype='float32', max_model_len=96, enforce_eager=True, "
        "kv_cache_memory_bytes=2**27)\n"
        "print('said', llm.generate(['1+2'], SamplingParams(max_tokens=4, temperature=0))[0].outputs[0].token_ids)\n"
    )
    env = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-c", script, str(run.path / "model")]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "said [" in found.stdout


def test_a_run_on_the_command_line_ends_and_leaves_no_process(tmp_path):
    changes = {"rl.steps": 1, "evaluation.every": 0, "evaluation.hard_tries": 0, **VLLM}
    sets = [part for name, value in (SMALL | changes).items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "prefix_rft_lab", "train", "--method", "rft", "--out", str(tmp_path), *sets]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    shown = process.communicate(timeout=240)[0]
    assert process.returncode == 0, shown[-2000:]
    time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


# ---------------------------------------------------------------- refusals


def test_a_missing_or_another_vllm_is_refused(tiny, config, eos, monkeypatch):
    for found, sentence in (
        (("", ""), r"vLLM is not installed; run `make vllm`, or use rollout.engine = 'transformers'"),
        (("vllm", "0.9.1"), rf"needs vLLM {VLLM_VERSION} and finds vllm 0.9.1; install that, or use"),
    ):
        monkeypatch.setattr(vllm_engine, "installed_vllm", lambda found=found: found)
        with pytest.raises(ConfigError, match=sentence):
            engine_for(tiny[0], config, eos_id=eos)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vllm.cache_gib": 0.00001}, r"cache.*; raise vllm.cache_gib = 1e-05, or use rollout.engine = 'transformers'"),
        ({"vllm.cache_gib": 100_000.0}, r"vailable memory.*; lower vllm.cache_gib = 100000, or use rollout"),
        ({"vllm.sleep": True}, r"vllm.sleep = True frees the memory of a GPU"),
        ({"rollout.max_response_tokens": 4000}, r"max_model_len.*; use rollout.engine = 'transformers'"),
    ],
)
def test_what_does_not_fit_is_refused_and_another_engine_can_start(model, config, eos, requests, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        engine_for(model, config.replace(**changes), eos_id=eos)
    engine = engine_for(model, config, eos_id=eos)
    try:
        assert len(engine.generate(requests[:2])) == 2
    finally:
        engine.close()


def test_an_unknown_size_of_heads_is_refused(config):
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, num_hidden_layers=1, **shape))
    with pytest.raises(
        ConfigError, match=r"knows attention heads of 32, 64, .* head_dim = 16; use rollout.engine = 't"
    ):
        engine_for(model, config, eos_id=96)


def test_a_second_engine_in_the_process_is_refused(engine, model, config, eos):
    with pytest.raises(ConfigError, match="another vLLM engine is open in this process"):
        engine_for(model, config, eos_id=eos)
