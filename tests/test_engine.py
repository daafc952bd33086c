"""The transformers engine: the tokens of ``model.generate``, whatever else is in the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from prefix_rft_lab import rng
from prefix_rft_lab.generation import Request, TransformersEngine
from prefix_rft_lab.models.generation import transformers_engine
from prefix_rft_lab.models.generation.transformers_engine import RaggedCache
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import prompt_ids

EOS = 96


def qwen(attention="sdpa", vocab=97):
    """Random Qwen2: grouped queries, biases on query, key and value, an untied head."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=False,
        attn_implementation=attention,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def models(tiny, small):
    """Name -> (model, end token, contexts of different lengths)."""
    model, tokenizer = tiny
    prompts = [prompt_ids(tokenizer, p, small()) for split in ("train", "ood") for p in chains.problems(split, 6)]
    demonstration = tokenizer(chains.problems("train", 1)[0].demonstration, add_special_tokens=False)["input_ids"]
    contexts = [*prompts, prompts[0] + demonstration[:9], prompts[0] + demonstration[:2]]
    draws = np.random.default_rng(0)
    ragged = [draws.integers(1, EOS, size=n).tolist() for n in (1, 30, 7, 2, 19, 12)]
    return {
        "tiny": (model, tokenizer.eos_token_id, contexts),
        "qwen2": (qwen(), EOS, ragged),
        "qwen2-eager": (qwen("eager"), EOS, ragged),
    }


NAMES = ("tiny", "qwen2", "qwen2-eager")


def requests_of(contexts, *, tokens=24, copies=1, purpose="test"):
    return [
        Request(context_ids=c, max_new_tokens=tokens, key=rng.key(0, purpose, i, copy))
        for i, c in enumerate(contexts)
        for copy in range(copies)
    ]


class Watch:
    """Shapes (rows, tokens) of every forward pass of a model."""

    def __init__(self, model):
        self.shapes = []
        self.handle = model.base_model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.shapes.append(tuple(kwargs["input_ids"].shape))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_generate(models, name):
    model, eos, contexts = models[name]
    found = TransformersEngine(model, eos_id=eos).generate(requests_of(contexts), greedy=True)
    for context, completion in zip(contexts, found, strict=True):
        expected = model.generate(
            torch.tensor([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=eos,
            pad_token_id=0,
        )
        assert completion.token_ids == expected[0, len(context) :].tolist()
        assert completion.truncated == (eos not in completion.token_ids)
    if name == "tiny":
        assert any(not c.truncated for c in found)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", NAMES)
def test_logp_equals_a_teacher_forced_pass(models, name, temperature):
    model, eos, contexts = models[name]
    found = TransformersEngine(model, eos_id=eos).generate(requests_of(contexts, copies=2), temperature=temperature)
    for request, completion in zip(requests_of(contexts, copies=2), found, strict=True):
        ids = torch.tensor([request.context_ids + completion.token_ids])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
        logp = (logits.double() / temperature).log_softmax(-1)
        start = len(request.context_ids)
        expected = [float(logp[start + i - 1, token]) for i, token in enumerate(completion.token_ids)]
        assert completion.logp == pytest.approx(expected, abs=1e-4)


def test_bfloat16_arithmetic(models):
    """Rows that outgrow the cache's room; log-probabilities near those of float32."""
    model, eos, contexts = models["tiny"]
    requests = requests_of(contexts, tokens=40)
    found = TransformersEngine(model, eos_id=eos, autocast=torch.bfloat16).generate(requests)
    assert max(len(c.token_ids) for c in found) > 16
    gaps = []
    for request, completion in zip(requests, found, strict=True):
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([request.context_ids + completion.token_ids])).logits[0].log_softmax(-1)
        start = len(request.context_ids) - 1
        gaps += [abs(float(logp[start + i, t]) - completion.logp[i]) for i, t in enumerate(completion.token_ids)]
    assert 0 < np.mean(gaps) < 0.02


@pytest.mark.parametrize("name", ["tiny", "qwen2"])
def test_a_rows_sample_does_not_depend_on_its_company(models, name):
    model, eos, contexts = models[name]
    requests = requests_of(contexts, copies=3)
    together = [c.token_ids for c in TransformersEngine(model, eos_id=eos).generate(requests)]
    alone = [TransformersEngine(model, eos_id=eos).generate([r])[0].token_ids for r in requests]
    backwards = TransformersEngine(model, eos_id=eos).generate(requests[::-1])[::-1]
    in_parts = TransformersEngine(model, eos_id=eos, max_batch_rows=4).generate(requests)
    assert together == alone
    assert together == [c.token_ids for c in backwards]
    assert together == [c.token_ids for c in in_parts]


def test_copies_of_a_context_differ_by_key_and_repeat_by_key(models):
    model, eos, contexts = models["qwen2"]
    requests = requests_of(contexts[:1], copies=16)
    found = [tuple(c.token_ids) for c in TransformersEngine(model, eos_id=eos).generate(requests + requests[:1])]
    assert len(set(found[:16])) == 16
    assert found[16] == found[0]


def test_limits_of_rows_are_kept(models):
    model, _, contexts = models["qwen2"]
    limits = [3, 1, 10, 2, 0, 5]
    requests = [Request(context_ids=c, max_new_tokens=n, key=n) for c, n in zip(contexts, limits, strict=True)]
    for greedy in (True, False):
        found = TransformersEngine(model, eos_id=-1).generate(requests, greedy=greedy)
        assert [len(c.token_ids) for c in found] == limits
        assert [len(c.logp) for c in found] == limits
        assert all(c.truncated for c in found)
    longer = [Request(context_ids=c, max_new_tokens=12, key=n) for c, n in zip(contexts, limits, strict=True)]
    for short, long in zip(found, TransformersEngine(model, eos_id=-1).generate(longer), strict=True):
        assert long.token_ids[: len(short.token_ids)] == short.token_ids, "a limit cuts, it does not change the sample"


def test_the_end_token_ends_a_row_and_is_part_of_it(models):
    model, _, contexts = models["qwen2"]
    request = requests_of(contexts[:1], tokens=12)
    free = TransformersEngine(model, eos_id=-1).generate(request, greedy=True)[0].token_ids
    end = free[4]
    stopped = TransformersEngine(model, eos_id=end).generate(request, greedy=True)[0]
    assert stopped.token_ids == free[: free.index(end) + 1]
    assert not stopped.truncated
    last = Request(context_ids=contexts[0], max_new_tokens=free.index(end) + 1, key=0)
    assert not TransformersEngine(model, eos_id=end).generate([last], greedy=True)[0].truncated


def test_finished_rows_leave_the_batch(models):
    model, _, contexts = models["qwen2"]
    requests = [Request(context_ids=contexts[i % 6], max_new_tokens=i + 1, key=i) for i in range(8)]
    with Watch(model) as watch:
        TransformersEngine(model, eos_id=-1).generate(requests)
    # After token i + 1 a row with that limit is done; the last forward serves the longest row alone.
    assert [rows for rows, _ in watch.shapes[1:]] == [7, 6, 5, 4, 3, 2, 1]
    assert {tokens for _, tokens in watch.shapes[1:]} == {1}


def test_each_distinct_context_is_prefilled_once(models):
    model, eos, contexts = models["qwen2"]
    engine = TransformersEngine(model, eos_id=eos)
    with Watch(model) as watch:
        engine.generate(requests_of(contexts, tokens=1, copies=8))
    assert watch.shapes == [(len(contexts), max(map(len, contexts)))]
    with Watch(model) as watch:
        TransformersEngine(model, eos_id=eos, max_batch_rows=12).generate(requests_of(contexts[:2], tokens=1, copies=8))
    assert [rows for rows, _ in watch.shapes] == [2, 1]


def chi_square_limit(degrees):
    """Upper 1e-4 quantile of chi-square (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.719 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_first_tokens_follow_the_softmax(models, temperature):
    model, tokens = models["qwen2"][0], 4000
    context = models["qwen2"][2][2]
    requests = [Request(context_ids=context, max_new_tokens=1, key=rng.key(0, "chi", i)) for i in range(tokens)]
    found = TransformersEngine(model, eos_id=EOS).generate(requests, temperature=temperature)
    counts = np.bincount([c.token_ids[0] for c in found], minlength=97)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
    expected = torch.softmax(logits / temperature, 0).numpy() * tokens
    # Rare tokens share one cell, so that every cell expects at least five.
    order = np.argsort(-expected)
    common = [i for i in order if expected[i] >= 5]
    rare = [i for i in order if expected[i] < 5]
    observed_cells = [*counts[common], counts[rare].sum()]
    expected_cells = [*expected[common], expected[rare].sum()]
    cells = [(o, e) for o, e in zip(observed_cells, expected_cells, strict=True) if e > 0.5]
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    assert len(cells) > 3
    assert statistic < chi_square_limit(len(cells) - 1)


def test_low_temperature_becomes_greedy(models):
    model, eos, contexts = models["qwen2"]
    engine = TransformersEngine(model, eos_id=eos)
    cold = engine.generate(requests_of(contexts), temperature=1e-4)
    assert [c.token_ids for c in cold] == [c.token_ids for c in engine.generate(requests_of(contexts), greedy=True)]


def test_greedy_does_not_look_at_keys_or_temperature(models):
    model, eos, contexts = models["qwen2"]
    engine = TransformersEngine(model, eos_id=eos)
    a = engine.generate(requests_of(contexts), greedy=True)
    b = engine.generate(requests_of(contexts, purpose="other"), temperature=3.0, greedy=True)
    assert [c.token_ids for c in a] == [c.token_ids for c in b]


def test_new_weights_are_used_at_once_and_the_mode_is_restored(models):
    model, eos, contexts = qwen(), EOS, models["qwen2"][2]
    engine = TransformersEngine(model, eos_id=eos)
    before = engine.generate(requests_of(contexts))
    model.train()
    assert [c.token_ids for c in engine.generate(requests_of(contexts))] == [c.token_ids for c in before]
    assert model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert [c.token_ids for c in engine.generate(requests_of(contexts))] != [c.token_ids for c in before]


def test_no_global_generator_is_touched(models):
    model, eos, contexts = models["qwen2"]
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    TransformersEngine(model, eos_id=eos).generate(requests_of(contexts))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_nothing_to_do(models):
    assert TransformersEngine(models["qwen2"][0], eos_id=EOS).generate([]) == []


class Copies(TorchDispatchMode):
    """Copies of a matrix of weights in another precision, and the largest tensor of four dimensions that was copied so."""

    def __init__(self):
        super().__init__()
        self.weights, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.weights += isinstance(args[0], torch.nn.Parameter)
            self.largest = max(self.largest, args[0].numel() if args[0].dim() == 4 else 0)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["tiny", "qwen2"])
def test_half_precision_copies_neither_weights_nor_cache_for_every_token(models, name):
    model, _, contexts = models[name]
    engine = TransformersEngine(model, eos_id=-1, autocast=torch.bfloat16)
    found = []
    for tokens in (3, 30):
        with Copies() as copies:
            engine.generate([Request(context_ids=contexts[0][:4], max_new_tokens=tokens, key=i) for i in range(5)])
        found.append((copies.weights, copies.largest))
    assert found[0] == found[1] and found[0][0] > 0


def test_half_precision_keeps_the_cache_in_it(models):
    """Rotated keys and the biased values of a Qwen2 come out of autocast in different precisions."""
    for model, eos, contexts in models.values():
        engine = TransformersEngine(model, eos_id=eos, autocast=torch.bfloat16)
        for context, found in zip(contexts, engine.generate(requests_of(contexts), greedy=True), strict=True):
            ids = torch.tensor([context + found.token_ids])
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(ids).logits[0, len(context) - 1 : -1]
            logp = logits.float().log_softmax(-1).gather(-1, ids[0, len(context) :, None])[:, 0]
            assert (logp - torch.tensor(found.logp)).abs().mean() < 0.05


def test_contexts_are_prefilled_in_parts_and_held_once(tiny, monkeypatch):
    """Whatever the parts, the rows are the same; and beside the cache only one part of the contexts stands in memory."""
    model, _ = tiny
    lengths = [40, 3, 40, 17, 3, 28, 5, 40]
    rows = [
        Request(context_ids=[2 + (i + j) % 30 for j in range(n)], max_new_tokens=6, key=i)
        for i, n in enumerate(lengths)
        for _ in range(3)
    ]
    parts = []
    load = RaggedCache.load

    def measured(self, layers, into, contexts):
        parts.append(layers[0].keys.shape[0] * layers[0].keys.shape[2])
        load(self, layers, into, contexts)
        assert layers == [], "the prefilled layers are let go"

    monkeypatch.setattr(RaggedCache, "load", measured)
    whole = TransformersEngine(model, eos_id=1).generate(rows)
    assert parts == [8 * 40], "copies of a context are computed once"
    monkeypatch.setattr(transformers_engine, "PREFILLED_TOKENS", 60)
    cut = TransformersEngine(model, eos_id=1).generate(rows)
    assert len(parts) > 4 and max(parts[1:]) <= 60
    assert [c.token_ids for c in cut] == [c.token_ids for c in whole]
    for a, b in zip(cut, whole, strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-5)


def test_the_memory_of_a_prefill_in_bfloat16(tiny):
    """The cache, one part of the contexts in float32, and one layer of it twice: never all rows in float32."""
    from torch.distributed._tools.mem_tracker import MemTracker

    model, _ = tiny
    rows = [Request(context_ids=[2 + (7 * i) % 30 for i in range(200)], max_new_tokens=1, key=k) for k in range(256)]
    engine = TransformersEngine(model, eos_id=-1, autocast=torch.bfloat16)
    cache = RaggedCache(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        tracker = MemTracker()
        with tracker:
            engine._prefill(rows, cache)
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    held = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    layers = len(cache.keys)
    assert held < peak < held * (1 + 1.5 / layers)
