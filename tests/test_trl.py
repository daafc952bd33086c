"""One update of the kit and one of TRL's trainers, from the same weights on the same rows, are the same update.

TRL keeps its own code for all that follows the rollouts: group advantages, padding (prompts on the left), micro-batches,
losses, gradient accumulation, clipping of the gradient norm, and the AdamW that it builds from its own arguments. Rows
come in through ``rollout_func``, GRPOTrainer's argument for rollouts made elsewhere: it returns token ids, and any
further field (here the score) reaches the reward function. Supervised rows are a dataset of token ids.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prefix_rft_lab import ConfigError, methods, rng
from prefix_rft_lab.generation.base import Request
from prefix_rft_lab.generation.transformers_engine import TransformersEngine
from prefix_rft_lab.tasks import chains
from prefix_rft_lab.tokens import encode_problems
from prefix_rft_lab.types import Demonstration
from prefix_rft_lab.update import Updater

FREE = 1e9
"""A gradient-norm limit that never acts."""
LR, WEIGHT_DECAY, BETAS = 3e-3, 0.1, (0.9, 0.99)
EPSILON = 1e-3
"""AdamW's. Its first step is lr * g / (|g| + epsilon): with an epsilon far below the gradients that is their sign, and
an entry that rounding alone moves across 0 moves its weight by 2 lr. With one of about their size (root mean squares of
1e-4 to 2e-2 here) the step is about as smooth as the gradient, and weights can be held to rounding too."""

WHOLE, TENSOR = 1e-5, 5e-5
"""Relative tolerance of the first gradient, whole and by tensor. Either side lies a few 1e-6 from the kit's gradient in
float64, and farther in a tensor where rows with advantages of both signs cancel."""
LATER = 1e-4
"""By tensor, of what follows the first step: gradients are then taken at weights that rounding has already moved, and a
weight's change is the small difference of two float32 numbers."""


@dataclass
class Outcome:
    losses: list[float]  # of each batch of rows
    norms: list[float]  # of each batch of rows, before clipping
    gradients: list[dict[str, torch.Tensor]]  # as each optimizer step finds them, after clipping
    changes: dict[str, torch.Tensor]  # weights after the last step minus those before the first


def watched(model, optimizer, train):
    """The outcome of ``train()``, which returns (loss, gradient norm) of each batch of rows."""
    gradients = []
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, norms = zip(*train(), strict=True)
    changes = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    return Outcome(list(losses), list(norms), gradients, changes)


# ---------------------------------------------------------------- both sides


def kit(base, config, stage, batches, grad_clip=FREE):
    """The kit's updates, one call a batch of rows."""
    model = copy.deepcopy(base)
    settings = {"lr": LR, "weight_decay": WEIGHT_DECAY, "betas": BETAS}
    section = getattr(config, stage.optim).model_copy(
        update={**settings, "grad_clip": grad_clip, "warmup_fraction": 0.0, "decay": "constant"}
    )
    optimizer = torch.optim.AdamW(model.parameters(), eps=EPSILON, **settings)
    updater = Updater(model, config, pad_id=0)

    def train():
        results = [updater.update(rows, stage, section, optimizer, step) for step, rows in enumerate(batches)]
        return [(result.loss, result.grad_norm) for result in results]

    return watched(model, optimizer, train)


def arguments(folder, grad_clip):
    """What both of TRL's trainers are told; its defaults are bfloat16 and gradient checkpointing."""
    optimizer = {"adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "adam_epsilon": EPSILON, "weight_decay": WEIGHT_DECAY}
    schedule = {"learning_rate": LR, "lr_scheduler_type": "constant", "max_grad_norm": grad_clip, "num_train_epochs": 1}
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "train_sampling_strategy": "sequential"}
    records = {"output_dir": str(folder), "save_strategy": "no", "logging_steps": 1, "report_to": "none"}
    return optimizer | schedule | plain | records | {"disable_tqdm": True}


def grpo_config(config, folder, rows, accumulate, *, grad_clip=FREE, loss_type="dr_grpo", **more):
    """GRPOConfig as the kit's config has it; the rows of a process's rollout are taken in so many micro-batches per update."""
    from trl import GRPOConfig

    micro_batches = accumulate * config.loss.updates_per_rollout
    return GRPOConfig(
        **arguments(folder, grad_clip),
        per_device_train_batch_size=rows // micro_batches,
        gradient_accumulation_steps=accumulate,
        steps_per_generation=micro_batches,
        num_generations=config.rollout.rows_per_problem,
        shuffle_dataset=False,
        loss_type=loss_type,
        beta=0.0,
        epsilon=config.loss.clip_low,
        epsilon_high=config.loss.clip_high,
        delta=config.loss.dual_clip,
        temperature=config.rollout.temperature,
        max_completion_length=config.rollout.max_response_tokens,
        **more,
    )


def run(trainer, batches):
    # By default transformers spares norms and biases from weight decay; the kit spares nothing.
    trainer.get_decay_parameter_names = lambda model: [name for name, _ in model.named_parameters()]

    def train():
        trainer.train()
        steps = [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "loss" in line]
        return np.reshape(steps, (len(batches), -1, 2)).mean(1).tolist()

    return watched(trainer.model, trainer.create_optimizer(), train)


def trl_grpo(policy, config, batches, folder, accumulate, grad_clip=FREE, loss_type="dr_grpo"):
    """GRPOTrainer's updates: each optimizer step accumulates so many micro-batches."""
    from datasets import Dataset
    from trl import GRPOTrainer

    waiting = list(batches)

    def rollouts(prompts, trainer):
        rows = waiting.pop(0)
        assert prompts == [row.problem.problem.prompt for row in rows]
        prompt_ids, completion_ids = [row.problem.prompt_ids for row in rows], [row.sampled_ids for row in rows]
        scores = [row.score for row in rows]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None, "score": scores}

    def given(score, **_):
        return score

    args = grpo_config(
        config, folder, len(batches[0]), accumulate, grad_clip=grad_clip, loss_type=loss_type, scale_rewards="none"
    )
    data = Dataset.from_dict({"prompt": [r.problem.problem.prompt for rows in batches for r in rows if r.row == 0]})
    model, tokenizer = copy.deepcopy(policy)
    trainer = GRPOTrainer(model, given, args, data, processing_class=tokenizer, rollout_func=rollouts)
    outcome = run(trainer, batches)
    assert not waiting
    return outcome


def trl_sft(policy, batches, folder, micro_batch_rows, grad_clip=FREE, count_tokens=True):
    """SFTTrainer's updates; without ``count_tokens`` it averages means of micro-batches, as trainers once did."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        **arguments(folder, grad_clip),
        per_device_train_batch_size=micro_batch_rows,
        gradient_accumulation_steps=len(batches[0]) // micro_batch_rows,
        completion_only_loss=True,
        max_length=None,
    )
    parts = [(row.problem.prompt_ids, row.response_ids) for rows in batches for row in rows]
    masks = [[0] * len(prompt) + [1] * len(response) for prompt, response in parts]
    data = Dataset.from_dict({"input_ids": [prompt + response for prompt, response in parts], "completion_mask": masks})
    model, tokenizer = copy.deepcopy(policy)
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.model_accepts_loss_kwargs = count_tokens
    return run(trainer, batches)


# ---------------------------------------------------------------- rows


@pytest.fixture(scope="module")
def problems(tiny, small):
    return encode_problems(tiny[1], chains.problems("train", 8), small())[0]


def sampled(policy, config, problems):
    """Two batches of rows that the policy sampled, with keyed scores; some truncated, some groups unanimous."""
    engine = TransformersEngine(policy[0], eos_id=policy[1].eos_token_id)
    limit, size = config.rollout.max_response_tokens, config.rollout.rows_per_problem
    rows = [row for problem in problems for row in methods.RFT.rows(problem, 0, config)]
    keys = [rng.key(0, "rollout", row.problem.index, row.row) for row in rows]
    requests = [
        Request(context_ids=row.problem.prompt_ids, max_new_tokens=limit, key=key)
        for row, key in zip(rows, keys, strict=True)
    ]
    completions = engine.generate(requests, temperature=config.rollout.temperature)
    for row, completion in zip(rows, completions, strict=True):
        row.sampled_ids, row.truncated = completion.token_ids, completion.truncated
        row.score = float(rng.generator(0, "score", row.problem.index, row.row).random() < 0.5)
    assert 0 < sum(row.truncated for row in rows) < len(rows)
    spread = np.ptp(np.reshape([row.score for row in rows], (-1, size)), axis=1)
    assert 0 < spread.sum() < len(spread)
    return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


@pytest.fixture(scope="module")
def demonstrations(problems, small):
    """Two batches of four rows: two short responses, then two long ones."""
    tokens = (2, 3, 40, 40, 1, 5, 40, 20)
    cut = [
        replace(p, demonstrations=(Demonstration(ids=p.demonstration_ids[-n:]),))
        for p, n in zip(problems, tokens, strict=True)
    ]
    rows = [row for problem in cut for row in methods.SFT.rows(problem, 0, small())]
    return [rows[:4], rows[4:]]


# ---------------------------------------------------------------- comparison


def distance(a, b):
    """Relative to ``b``."""
    return float((a - b).norm() / b.norm())


def whole(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def farthest(a, b):
    return max(distance(a[name], b[name]) for name in a.keys() | b.keys())


def assert_same(ours, theirs, steps=2):
    assert len(ours.gradients) == len(theirs.gradients) == steps
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5, abs=1e-6)
    assert ours.norms == pytest.approx(theirs.norms, rel=LATER)
    assert distance(whole(ours.gradients[0]), whole(theirs.gradients[0])) < WHOLE
    assert farthest(ours.gradients[0], theirs.gradients[0]) < TENSOR
    assert max(map(farthest, ours.gradients[1:], theirs.gradients[1:])) < LATER
    assert farthest(ours.changes, theirs.changes) < LATER


def assert_different(ours, theirs):
    """By orders more than the tolerances, and not by a factor alone."""
    a, b = whole(ours.gradients[0]), whole(theirs.gradients[0])
    assert distance(a / a.norm(), b / b.norm()) > 0.05
    assert farthest(ours.changes, theirs.changes) > 0.05


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is marked as experimental


RFT = {"rollout.max_response_tokens": 24, "micro_batch_tokens": 150}


def test_rft_in_one_batch(tiny, small, problems, tmp_path):
    config = small(**RFT | {"micro_batch_tokens": 10**6})
    batches = sampled(tiny, config, problems)
    assert_same(kit(tiny[0], config, methods.RFT, batches), trl_grpo(tiny, config, batches, tmp_path, accumulate=1))


def test_rft_in_micro_batches_with_clipped_gradients(tiny, small, problems, tmp_path):
    config = small(**RFT, **{"rollout.temperature": 0.7})
    batches = sampled(tiny, config, problems)
    ours = kit(tiny[0], config, methods.RFT, batches, grad_clip=0.05)
    assert min(ours.norms) > 0.05
    assert_same(ours, trl_grpo(tiny, config, batches, tmp_path, accumulate=4, grad_clip=0.05))


def test_rft_with_two_updates_on_the_same_rollouts(tiny, small, problems, tmp_path, monkeypatch):
    """The second update is off-policy: both ratio limits and the dual clip (TRL's ``delta``) act."""
    import trl.trainer.grpo_trainer

    # TRL deals the rows out to optimizer steps at random; the kit takes them in order.
    monkeypatch.setattr(trl.trainer.grpo_trainer, "shuffle_sequence_dict", lambda rows: rows)
    clips = {"loss.clip_low": 0.05, "loss.clip_high": 0.1, "loss.dual_clip": 1.2, "loss.updates_per_rollout": 2}
    config = small(**RFT, **clips)
    batches = sampled(tiny, config, problems)
    ours = kit(tiny[0], config, methods.RFT, batches)
    assert_same(ours, trl_grpo(tiny, config, batches, tmp_path, accumulate=2), steps=4)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo"])
def test_rft_is_not_what_other_normalisers_give(tiny, small, problems, tmp_path, loss_type):
    config = small(**RFT)
    batches = sampled(tiny, config, problems)
    theirs = trl_grpo(tiny, config, batches, tmp_path, accumulate=4, loss_type=loss_type)
    assert_different(kit(tiny[0], config, methods.RFT, batches), theirs)


@pytest.mark.parametrize(("micro_batch_rows", "grad_clip"), [(2, FREE), (1, 0.3)])
def test_sft_under_gradient_accumulation(tiny, small, demonstrations, tmp_path, micro_batch_rows, grad_clip):
    """Micro-batches of few target tokens and of many: all tokens of the window weigh the same."""
    ours = kit(tiny[0], small(micro_batch_tokens=80), methods.SFT, demonstrations, grad_clip)
    assert grad_clip == FREE or min(ours.norms) > grad_clip
    assert_same(ours, trl_sft(tiny, demonstrations, tmp_path, micro_batch_rows, grad_clip))


def test_sft_is_not_a_mean_of_micro_batch_means(tiny, small, demonstrations, tmp_path):
    theirs = trl_sft(tiny, demonstrations, tmp_path, micro_batch_rows=2, count_tokens=False)
    assert_different(kit(tiny[0], small(), methods.SFT, demonstrations), theirs)


# ---------------------------------------------------------------- the trainer that draws prefixes


def settings(config, folder, accumulate, processes=1):
    """GRPOConfig of a run of the kit; each update takes its rows in so many micro-batches per process."""
    rows = config.rollout.problems_per_step * config.rollout.rows_per_problem
    return grpo_config(config, folder, rows // processes, accumulate, seed=config.seed)


def data_set(count):
    from datasets import Dataset

    problems = chains.problems("train", count)
    chats = [[{"role": "user", "content": problem.prompt}] for problem in problems]
    return Dataset.from_dict({"prompt": chats, "demonstrations": [list(p.demonstrations) for p in problems]})


def train_with_prefixes(policy, config, folder, accumulate, processes=1):
    """Train with PrefixGRPOTrainer; its outcome, and this process's rows of each generation as the kit writes them.

    Rows are told from what TRL hands to its reward function, token ids and all; only their prefixes are drawn again, by
    the kit.
    """
    from prefix_rft_lab.tools.trl import PrefixGRPOTrainer

    stage, batches = methods.METHODS[config.method].stages[0], []
    data, size = data_set(3 * config.rollout.problems_per_step), config.rollout.rows_per_problem
    known, _ = encode_problems(policy[1], chains.problems("train", len(data)), config)

    def keyed(prompts, completions, completion_ids, problem_index, **_):
        step, rows = len(batches), []
        first = trainer.accelerator.process_index * len(prompts)
        for place, (index, ids, chat) in enumerate(zip(problem_index, completion_ids, completions, strict=True), first):
            row = stage.rows(known[index], step, config)[place % size]
            assert ids[: len(row.prefix_ids)] == row.prefix_ids
            assert chat[0]["content"] == policy[1].decode(ids, skip_special_tokens=True)
            row.sampled_ids = ids[len(row.prefix_ids) :]
            assert 0 < len(row.sampled_ids) <= config.rollout.max_response_tokens - len(row.prefix_ids)
            row.score = float(rng.generator(0, "score", step, index, row.row).random() < 0.5)
            rows.append(row)
        batches.append(rows)
        return [row.score for row in rows]

    model, tokenizer = copy.deepcopy(policy)
    args = settings(config, folder, accumulate, processes)
    trainer = PrefixGRPOTrainer(model, keyed, args, data, config=config, processing_class=tokenizer)
    return run(trainer, range(3)), batches


PREFIX = {"method": "prefix_rft", "rollout.max_response_tokens": 48, "micro_batch_tokens": 150, "rl.steps": 3}
TWO = {"rollout.hybrid_rows": 2}


@pytest.mark.parametrize(
    ("accumulate", "changes"),
    [
        (1, {}),
        (4, {"rollout.temperature": 0.7, "loss.advantage": "dr_grpo_prefix", **TWO}),
        (2, {"prefix.keep": "random", "prefix.keep_fraction": 0.5, "rollout.rows_per_prefix": 2, **TWO}),
        (2, {"prefix.scope": "row", "prefix.keep": "bottom", "prefix.schedule": "uniform"}),
        (2, {"prefix.loss": "frozen"}),
        (2, {"method": "dr_po", "prefix.high": 0.4, "loss.advantage": "grpo"}),
        (4, {"method": "rft_clip", "prefix.keep": "random"}),
        (1, {"loss.updates_per_rollout": 2, "rollout.problems_per_step": 4}),
    ],
)
def test_train_with_prefixes_is_the_kits_update(tiny, small, tmp_path, monkeypatch, accumulate, changes):
    import trl.trainer.grpo_trainer

    if "loss.updates_per_rollout" in changes:
        monkeypatch.setattr(trl.trainer.grpo_trainer, "shuffle_sequence_dict", lambda rows: rows)
    config = small(**PREFIX | changes)
    theirs, batches = train_with_prefixes(tiny, config, tmp_path, accumulate)
    assert [len(rows) for rows in batches] == [4 * config.rollout.problems_per_step] * 3
    ours = kit(tiny[0], config, methods.METHODS[config.method].stages[0], batches)
    assert_same(ours, theirs, steps=3 * config.loss.updates_per_rollout)
    prefixes = [len(row.prefix_ids) for rows in batches for row in rows]
    assert (max(prefixes) > 0) == (config.method != "rft_clip")


def test_without_the_clip_or_with_another_schedule_it_is_another_update(tiny, small, tmp_path):
    config = small(**PREFIX)
    theirs, batches = train_with_prefixes(tiny, config, tmp_path, 2)
    for other in ({"prefix.keep": "all"}, {"loss.advantage": "dr_grpo_prefix"}, {"prefix.loss": "frozen"}):
        assert_different(kit(tiny[0], config.replace(**other), methods.PREFIX_RFT, batches), theirs)


WORKER = """
import pickle, sys
import torch.distributed
sys.path.insert(0, sys.argv[1])
import test_trl
from conftest import SMALL
from prefix_rft_lab.config import preset
from prefix_rft_lab.policy import load_policy
config = preset("tiny", **(SMALL | test_trl.PREFIX | test_trl.TWO))
outcome, batches = test_trl.train_with_prefixes(load_policy(config), config, sys.argv[2], accumulate=2, processes=2)
with open(f"{sys.argv[2]}/rank-{torch.distributed.get_rank()}.pickle", "wb") as file:
    pickle.dump((outcome, batches), file)
"""


@pytest.mark.slow
def test_two_processes_make_one_update(tiny, small, tmp_path):
    """The clip ranks the tokens of both, and groups lie on either side of the border."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    told = [*launch, str(worker), str(Path(__file__).parent), str(tmp_path)]
    subprocess.run(told, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    (theirs, first), (_, second) = (pickle.loads((tmp_path / f"rank-{n}.pickle").read_bytes()) for n in (0, 1))
    batches = [a + b for a, b in zip(first, second, strict=True)]
    assert [len(rows) for rows in batches] == [8] * 3
    ours = kit(tiny[0], small(**PREFIX, **TWO), methods.PREFIX_RFT, batches)
    assert ours.norms == pytest.approx(theirs.norms, rel=LATER)
    assert max(map(farthest, ours.gradients, theirs.gradients)) < LATER
    assert farthest(ours.changes, theirs.changes) < LATER


def test_the_example_trains_and_keeps_a_model(tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "train_with_trl.py"
    told = [
        "--steps",
        "1",
        "--problems-per-step",
        "2",
        "--rows",
        "4",
        "--tokens",
        "24",
        "--out",
        str(tmp_path),
        "--cpu",
    ]
    subprocess.run([sys.executable, str(script), *told], check=True, timeout=300)
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "luffy"}, "method = 'luffy'"),
        ({"method": "dynamic"}, "method = 'dynamic'"),
        ({"method": "relift"}, "method = 'relift'"),
        ({"method": "sft_then_rft"}, "method = 'sft_then_rft'"),
        ({"prefix.loss": "static"}, "prefix.loss = 'static'"),
        ({"prefix.clip_ratio": False}, "prefix.clip_ratio = False"),
        ({"prefix.scope": "micro_batch"}, "prefix.scope = 'micro_batch'"),
    ],
)
def test_what_trl_would_train_otherwise_is_refused(tiny, small, tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        train_with_prefixes(tiny, small(**PREFIX | changes), tmp_path, 2)


def test_arguments_that_hide_prefixes_are_refused(tiny, small, tmp_path):
    from prefix_rft_lab.tools.trl import PrefixGRPOTrainer

    config = small(**PREFIX)
    args = settings(config, tmp_path, 2)
    args.steps_per_generation = 3
    for more, told, data, sentence in (
        ({}, args, data_set(6), "steps_per_generation = 3 is no multiple of gradient_accumulation_steps = 2"),
        ({"rollout_func": print}, settings(config, tmp_path, 2), data_set(6), "rollout_func makes rows of its own"),
        ({}, settings(config, tmp_path, 2), data_set(6).remove_columns("demonstrations"), "has the columns ['prompt']"),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            PrefixGRPOTrainer(tiny[0], print, told, data, config=config, processing_class=tiny[1], **more)
