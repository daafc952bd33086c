"""Loading a policy, and what a forward pass says beyond log-probabilities."""

from __future__ import annotations

import copy

import pytest
import torch

from prefix_rft_lab import methods, policy
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.policy import load_policy
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import encode_problems, pad_id, pad_rows
from prefix_rft_lab.types import Row
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
    ids, probs = policy.alternatives(model, batch, 3, temperature=0.7)
    logits = model(input_ids=batch.input_ids).logits[:, :-1][batch.response_mask[:, 1:]] / 0.7
    expected = logits.softmax(-1)
    for token in range(len(ids)):
        order = expected[token].argsort(descending=True)[:3]
        assert ids[token].tolist() == order.tolist()
        assert probs[token].tolist() == pytest.approx(expected[token][order].tolist(), abs=1e-6)
    assert policy.alternatives(model, batch, 10_000)[0].shape[1] == len(tokenizer)


def test_chunks_of_logits_change_nothing(tiny, rows, monkeypatch):
    model, tokenizer = tiny
    batch = pad_rows(rows, pad_id(tokenizer))
    whole, wide = policy.response_stats(model, batch), policy.alternatives(model, batch, 4)
    monkeypatch.setattr(policy, "LOGITS_AT_ONCE", 5 * len(tokenizer))
    parts, narrow = policy.response_stats(model, batch), policy.alternatives(model, batch, 4)
    assert torch.allclose(whole.logp, parts.logp, atol=1e-6) and torch.allclose(whole.entropy, parts.entropy, atol=1e-6)
    assert torch.equal(wide[0], narrow[0])
    gradients = []
    for chunk in (5 * len(tokenizer), 2**25):
        monkeypatch.setattr(policy, "LOGITS_AT_ONCE", chunk)
        twin = copy.deepcopy(model)
        policy.response_stats(twin, batch).logp.sum().backward()
        gradients.append(twin.base_model.embed_tokens.weight.grad)
    assert torch.allclose(*gradients, atol=1e-4)


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


def test_a_model_that_changes_its_logits_is_refused(tiny, small, tmp_path):
    model = copy.deepcopy(tiny[0])
    model.config.final_logit_softcapping = 30.0
    model.save_pretrained(tmp_path)
    tiny[1].save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"changes its logits \(final_logit_softcapping = 30.0\)"):
        load_policy(small(**{"model.path": str(tmp_path)}))


def test_a_context_that_is_too_short(small):
    with pytest.raises(ConfigError, match=r"rollout.max_response_tokens = 1024 exceeds the model's context of 256"):
        load_policy(small(**{"rollout.max_response_tokens": 1000}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(small):
    with pytest.raises(ConfigError, match=r"model.device = 'cuda' but torch sees no GPU"):
        load_policy(small(**{"model.device": "cuda"}))
