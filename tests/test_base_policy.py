"""The shipped base policy: small, half skilled, ignorant of ``#``; and its recipe."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from prefix_rft_lab import rng
from prefix_rft_lab.generation import Request, TransformersEngine
from prefix_rft_lab.rewards import extract_answer
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tasks.base_policy import ASSETS, _batch, build_model, build_tokenizer, pretrain
from prefix_rft_lab.tokens import prompt_ids

K = 8


@pytest.fixture(scope="module")
def problems():
    return chains.problems("validation", 256)


def behaviour(model, tokenizer, problems, config):
    """Shares by class of problem (with or without ``#``): avg@k, greedy, direct answers."""
    engine = TransformersEngine(model, eos_id=tokenizer.eos_token_id)
    prompts = [prompt_ids(tokenizer, p, config) for p in problems]
    requests = [
        Request(context_ids=ids, max_new_tokens=64, key=rng.key(0, "behaviour", i, sample))
        for i, ids in enumerate(prompts)
        for sample in range(K)
    ]

    def texts(completions):
        return [tokenizer.decode(c.token_ids, skip_special_tokens=True) for c in completions]

    sampled, greedy = texts(engine.generate(requests)), texts(engine.generate(requests[::K], greedy=True))
    found = {}
    for name, inside in (("skills", False), ("hash", True)):
        own = [i for i, p in enumerate(problems) if ("#" in p.prompt) == inside]
        # Answers are plain integers here, so equal text is equal value.
        right = [extract_answer(sampled[i * K + s]) == problems[i].answer for i in own for s in range(K)]
        best = [extract_answer(greedy[i]) == problems[i].answer for i in own]
        direct = [sampled[i * K + s].startswith("\\boxed") for i in own for s in range(K)]
        found[name] = {
            "avg": sum(right) / len(right),
            "greedy": sum(best) / len(best),
            "direct": sum(direct) / len(direct),
        }
    explained = [":" in text for text in sampled]
    found["explains hash"] = sum(explained) / len(explained)
    return found


def corpus_nll(model, tokenizer):
    """Token-mean NLL (nats) of 200 documents of another seed's corpus."""
    input_ids, targets = _batch(tokenizer, list(islice(chains.corpus(123), 200)))
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten()))


@pytest.fixture(scope="module")
def shipped(tiny, problems, small):
    return behaviour(*tiny, problems, small())


def test_size():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 5 * 2**20


def test_architecture_and_tokenizer_are_those_of_the_code(tiny):
    model, tokenizer = tiny
    fresh = build_model()
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in fresh.named_parameters()}
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.chat_template == build_tokenizer().chat_template
    assert model.config.eos_token_id == tokenizer.eos_token_id
    text = "7#3:7+3=10:10*3=11\nso 11-2=9\n\\boxed{9}"
    assert tokenizer(text)["input_ids"] == build_tokenizer()(text)["input_ids"]


def test_half_has_the_skills(shipped):
    assert 0.5 < shipped["skills"]["avg"] < 0.9
    assert shipped["skills"]["greedy"] > 0.9


def test_knows_nothing_of_hash(shipped):
    assert shipped["hash"]["avg"] < 0.15
    assert shipped["hash"]["greedy"] < 0.15
    assert shipped["explains hash"] < 0.005


def test_answers_directly_at_times(shipped):
    assert 0.05 < shipped["skills"]["direct"] < 0.4


def test_initial_weights_are_keyed_by_the_seed():
    torch.manual_seed(1)
    first = torch.cat([p.flatten() for p in build_model(0).parameters()])
    torch.manual_seed(2)
    again, other = build_model(0), build_model(1)
    assert torch.equal(first, torch.cat([p.flatten() for p in again.parameters()]))
    assert not torch.equal(first, torch.cat([p.flatten() for p in other.parameters()]))


def test_a_pretraining_batch_trains_responses_only(tiny):
    tokenizer = tiny[1]
    documents = [("7+3*2", "7+3=10\n10*2=1\n\\boxed{1}"), ("1+1-1", "\\boxed{1}")]
    input_ids, targets = _batch(tokenizer, documents)
    for row, (prompt, response) in enumerate(documents):
        trained = targets[row] != -100
        assert tokenizer.decode(targets[row][trained]) == response + "<eos>"
        assert torch.equal(input_ids[row][trained], targets[row][trained])
        start = int(trained.nonzero()[0])
        assert tokenizer.decode(input_ids[row][:start]) == f"<user>{prompt}<assistant>"


def test_a_few_steps_of_the_recipe_learn_and_repeat():
    losses = []
    first, _ = pretrain(primer_steps=6, steps=4, log=lambda step, loss: losses.append(loss))
    again, _ = pretrain(primer_steps=6, steps=4)
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_the_recipe_gives_a_policy_that_behaves_the_same(tiny, problems, small, shipped):
    """Rounding differs between machines, so behaviour is compared, not weights: 3 standard errors of avg@8 are 0.05."""
    model, tokenizer = pretrain()
    found = behaviour(model, tokenizer, problems, small())
    for name in ("skills", "hash"):
        assert found[name]["avg"] == pytest.approx(shipped[name]["avg"], abs=0.08)
        assert found[name]["direct"] == pytest.approx(shipped[name]["direct"], abs=0.08)
    assert found["skills"]["greedy"] > 0.9
    assert found["hash"]["greedy"] < 0.15
    assert found["explains hash"] < 0.005
    assert corpus_nll(model, tokenizer) == pytest.approx(corpus_nll(*tiny), abs=0.03)
