"""Loading a policy, and what a forward pass says beyond log-probabilities."""

from __future__ import annotations

import copy
import json
import math
import types

import pytest
import torch
from tokenizers_factory import save_model

from prefix_rft_lab import methods, policy
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.generation import Request, TransformersEngine
from prefix_rft_lab.policy import load_policy
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import encode_problems, pad_id, pad_rows
from prefix_rft_lab.types import Row, SequenceBatch, TokenKind
from prefix_rft_lab.update import Updater


@pytest.fixture
def rows(tiny, small):
    """A group of four rows that write the demonstration from the first tokens on."""
    problem = encode_problems(tiny[1], chains.problems("train", 1), small())[0][0]
    ids = problem.demonstration_ids
    return [Row(problem=problem, row=i, prefix_ids=ids[:i], sampled_ids=ids[i:]) for i in range(4)]


def test_alternatives_are_the_most_probable_tokens(tiny, rows):
    model, tokenizer = tiny
    batch = pad_rows(rows, pad_id(tokenizer))
    choices = policy.response_choices(model, batch, 3, temperature=0.7)
    logits = model(input_ids=batch.input_ids).logits[:, :-1][batch.response_mask[:, 1:]] / 0.7
    expected = logits.softmax(-1)
    for token in range(len(choices.ids)):
        order = expected[token].argsort(descending=True)[:3]
        assert choices.ids[token].tolist() == order.tolist()
        assert choices.probs[token].tolist() == pytest.approx(expected[token][order].tolist(), abs=1e-6)
    stats = policy.response_stats(model, batch, temperature=0.7)
    assert torch.equal(choices.logp, stats.logp) and torch.equal(choices.entropy, stats.entropy)
    assert policy.response_choices(model, batch, 10_000).ids.shape[1] == len(tokenizer)


def test_probabilities_of_tokens_that_are_named(tiny, rows):
    batch = pad_rows(rows, pad_id(tiny[1]))
    most = policy.response_choices(tiny[0], batch, 4)
    named = policy.response_choices(tiny[0], batch, ids=most.ids.flip(1))
    assert torch.equal(named.ids, most.ids.flip(1)) and torch.equal(named.probs, most.probs.flip(1))


class Head(torch.nn.Module):
    """A model whose last hidden states are given: row i of the input reads the states from i on."""

    def __init__(self, states, weight):
        super().__init__()
        self.states, self.head = states, torch.nn.Linear(*reversed(weight.shape), bias=False)
        self.head.weight = torch.nn.Parameter(weight)
        self.base_model = self

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache):
        return types.SimpleNamespace(last_hidden_state=self.states[None])


@pytest.mark.parametrize("vocab", [23, 1_000, 49_152, 151_936])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_against_float64(vocab, dtype, monkeypatch):
    """From certain to uniform, in chunks of any size, with hidden states of half precision and impossible tokens.

    States and weights are small multiples of powers of 2, so that no order of summation rounds a logit.
    """
    generator = torch.Generator().manual_seed(vocab)
    scales = 2.0 ** torch.tensor([-20, -8, -4, -2, 0, 1, 1.0, 2, 2, 3, 5, 9, 0])
    states = ((torch.randn(len(scales), 32, generator=generator) * 8).round() / 8 * scales[:, None]).to(dtype)
    weight = (torch.randn(vocab, 32, generator=generator) * 8).round() / 64
    model = Head(states, weight)
    ids = torch.randint(0, vocab, (1, len(scales)), generator=generator)
    kinds = torch.full_like(ids, TokenKind.ON_POLICY)
    kinds[0, 0] = TokenKind.CONTEXT
    batch = SequenceBatch(input_ids=ids, attention_mask=torch.ones_like(ids), kinds=kinds)
    for impossible in (False, True):
        if impossible:
            model.head.register_forward_hook(
                lambda _, __, logits: logits.index_fill(1, torch.arange(0, vocab, 3), -torch.inf)
            )
        logits = model.head(states.float())[:-1].detach()
        for temperature in (1.0, 0.6):
            exact = (logits.double() / temperature).log_softmax(-1)
            want = -(exact.exp() * exact.clamp(min=-1e300)).sum(-1)
            assert want.min() < 1e-4 and want.max() > 0.95 * math.log(vocab * (2 / 3 if impossible else 1))
            for tokens in (1, 3, 100):
                monkeypatch.setattr(policy, "LOGITS_AT_ONCE", tokens * vocab)
                found = policy.response_choices(model, batch, 2, temperature=temperature).entropy
                assert (found.double() - want).abs().max() <= 1e-6
                with torch.no_grad():
                    assert torch.equal(found, policy.response_stats(model, batch, temperature=temperature).entropy)


def test_chunks_of_logits_change_nothing(tiny, rows, monkeypatch):
    model, tokenizer = tiny
    batch = pad_rows(rows, pad_id(tokenizer))
    whole, wide = policy.response_stats(model, batch), policy.response_choices(model, batch, 4)
    monkeypatch.setattr(policy, "LOGITS_AT_ONCE", 5 * len(tokenizer))
    parts, narrow = policy.response_stats(model, batch), policy.response_choices(model, batch, 4)
    assert torch.allclose(whole.logp, parts.logp, atol=1e-6) and torch.allclose(whole.entropy, parts.entropy, atol=1e-6)
    assert torch.equal(wide.ids, narrow.ids)
    gradients = []
    for chunk in (5 * len(tokenizer), 2**25):
        monkeypatch.setattr(policy, "LOGITS_AT_ONCE", chunk)
        twin = copy.deepcopy(model)
        policy.response_stats(twin, batch).logp.sum().backward()
        gradients.append(twin.base_model.embed_tokens.weight.grad)
    assert torch.allclose(*gradients, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["tiny", "qwen2", "llama3"])
def test_layers_that_are_computed_again_change_no_bit(small, tmp_path, monkeypatch, family, dtype):
    """An update in several micro-batches, with each kind's own gradient, on logits in chunks; and sampling after it."""
    path = family
    if family != "tiny":
        path = str(tmp_path)
        save_model(tmp_path, family)
    monkeypatch.setattr(policy, "LOGITS_AT_ONCE", 2**10)
    found = []
    for again in (False, True):
        config = small(
            **{"model.path": path, "model.template": "none", "model.dtype": dtype, "activation_checkpointing": again},
            **{"micro_batch_tokens": 150},
        )
        model, tokenizer = load_policy(config)
        calls = count_calls(model)
        problem = encode_problems(tokenizer, chains.problems("train", 1), config)[0][0]
        ids = problem.demonstration_ids
        rows = [Row(problem=problem, row=i, prefix_ids=ids[: 3 * i], sampled_ids=ids[3 * i :]) for i in range(4)]
        for row in rows:
            row.score = float(row.row == 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        updater = Updater(model, config, pad_id=pad_id(tokenizer))
        result = updater.update(rows, methods.PREFIX_RFT, config.rl, optimizer, 0, diagnose=True)
        sampled = TransformersEngine(model, eos_id=-1).generate([Request(context_ids=ids[:4], max_new_tokens=9, key=1)])
        found.append((result, [p.grad for p in model.parameters()], list(model.parameters()), sampled, calls))
    (plain, *before, plain_calls), (other, *after, other_calls) = found
    assert plain.loss == other.loss and plain.grad_norm == other.grad_norm > 0
    assert plain.grad_norms == other.grad_norms and plain.kl == other.kl
    assert all(
        torch.equal(a, b) for one, two in zip(before[:2], after[:2], strict=True) for a, b in zip(one, two, strict=True)
    )
    assert before[2] == after[2]
    # With more calls comes the proof that something was computed again.
    assert other_calls["layer"] > plain_calls["layer"] and other_calls["model"] == plain_calls["model"]


def count_calls(model):
    """How often the attention of the first layer, and the whole model, are computed."""
    calls = {"layer": 0, "model": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    model.base_model.layers[0].self_attn.register_forward_hook(count("layer"))
    model.base_model.register_forward_hook(count("model"))
    return calls


def test_an_architecture_without_layers_to_compute_again(tiny, small, monkeypatch):
    monkeypatch.setattr("transformers.modeling_layers.GradientCheckpointingLayer", torch.nn.Bilinear)
    with pytest.raises(ConfigError, match=r"activation_checkpointing = true needs layers .* set it to false"):
        load_policy(small(activation_checkpointing=True))


def test_a_step_without_gradient_keeps_the_momentum(tiny, small, rows):
    """Whether rows without a gradient are left out of the backward pass must not show in the weights."""
    config = small()
    model = copy.deepcopy(tiny[0])
    updater = Updater(model, config, pad_id=pad_id(tiny[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for row, score in zip(rows, (1.0, 0.0, 0.0, 0.0), strict=True):
        row.score = score
    updater.update(rows, methods.PREFIX_RFT, config.rl, optimizer, 0)
    before = model.base_model.embed_tokens.weight.detach().clone()
    for row in rows:
        row.score = 1.0
    result = updater.update(rows, methods.PREFIX_RFT, config.rl, optimizer, 1)
    assert result.grad_norm == 0
    ranked = int(result.ranked.sum())
    assert ranked > 0 and int((result.kept & result.ranked).sum()) == ranked - int(ranked * 0.8), (
        "the clip is still told"
    )
    assert not torch.equal(before, model.base_model.embed_tokens.weight), "AdamW goes on along its momentum"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/no/such/model", r"model.path = '/no/such/model' is not there; give an existing directory"),
        ("tests/model", r"model.path = 'tests/model' is not there; give an existing directory"),
        ("tests", r"model.path = 'tests' holds no config.json; give a directory"),
    ],
)
def test_a_path_that_is_no_model(small, path, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_policy(small(**{"model.path": path}))


def test_a_context_that_is_too_short(small):
    with pytest.raises(ConfigError, match=r"rollout.max_response_tokens = 1024 exceeds the model's context of 256"):
        load_policy(small(**{"rollout.max_response_tokens": 1000}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(small):
    with pytest.raises(ConfigError, match=r"model.device = 'cuda' but torch sees no GPU"):
        load_policy(small(**{"model.device": "cuda"}))


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path, small):
    """Ids without an embedding are refused; embeddings without an id are padding."""
    save_model(tmp_path, "qwen2", extra_rows=11)
    config = small(**{"model.path": str(tmp_path), "model.template": "qwen2.5-math"})
    model, tokenizer = load_policy(config)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) + 11
    save_model(tmp_path, "qwen2", extra_rows=-1)
    with pytest.raises(ConfigError, match=r"ids reach \d+ and embeddings of \d+ tokens; save the tokenizer"):
        load_policy(config)


def test_a_model_that_brings_its_own_code_is_refused(tmp_path, small):
    save_model(tmp_path, "qwen2")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "own.py").write_text("raise SystemExit('this must never run')")
    values |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = small(**{"model.path": str(tmp_path), "model.template": "none"})
    for load in (load_policy, policy.load_model_config):
        with pytest.raises(ConfigError, match="needs code of its own repository to run, which the kit does not do"):
            load(config)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_says_what_to_do(small, monkeypatch, status):
    """The page of a gated repository answers everybody; its files do not."""
    import httpx
    from huggingface_hub import errors

    def refuse(*args, **kwargs):
        response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/owner/gated"))
        try:
            raise errors.GatedRepoError("gated", response=response)
        except errors.GatedRepoError as error:
            raise OSError("You are trying to access a gated repo.") from error

    monkeypatch.setattr(policy.hub, "answers_for", lambda *_: True)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(ConfigError, match=r"model.path = 'owner/gated' is gated; accept its terms .* hf auth login"):
        load_policy(small(**{"model.path": "owner/gated"}))


def test_a_context_can_be_stretched(tmp_path, small):
    """Qwen2.5-Math reads 4096 tokens; published work raises the rotary base and lets it read more."""
    save_model(tmp_path / "qwen", "qwen2", context=64, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    wanted = {"model.path": str(tmp_path / "qwen"), "model.template": "none", "rollout.max_response_tokens": 100}
    with pytest.raises(ConfigError, match=r"exceeds the model's context of 64 tokens; .* model.context_tokens"):
        load_policy(small(**wanted))
    before, _ = load_policy(small(**wanted | {"rollout.max_response_tokens": 30}))
    model, tokenizer = load_policy(small(**wanted, **{"model.context_tokens": 256, "model.rope_theta": 4e4}))
    ids = torch.arange(40)[None]
    assert not torch.allclose(before(ids).logits[0, -1], model(ids).logits[0, -1]), "the angles are others"
    turns = 4e4 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(model.model.rotary_emb.inv_freq, turns)
    policy.save_policy(model, tokenizer, tmp_path / "saved")
    again, _ = load_policy(small(**wanted | {"model.path": str(tmp_path / "saved")}))
    assert again.config.max_position_embeddings == 256
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_base_that_is_not_there_cannot_be_changed(tmp_path, small):
    from transformers import GPT2Config

    GPT2Config(n_layer=1, n_embd=8, n_head=2).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model.rope_theta = 40000 needs rotary embeddings with one base"):
        policy.load_model_config(small(**{"model.path": str(tmp_path), "model.rope_theta": 4e4}))
