"""A door to TRL: Prefix-RFT (arXiv 2507.01679) on GRPOTrainer, with its PEFT, DeepSpeed, FSDP and vLLM.

TRL keeps the model, the optimizer, sampling, the policy loss and all processes; the kit gives what makes the method: which
rows start with a prefix and how long it is, one advantage per row and token kind, and the entropy clip.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from prefix_rft_lab.algorithm import entropy as clip
from prefix_rft_lab.algorithm import methods
from prefix_rft_lab.algorithm.advantages import ESTIMATORS, Scores
from prefix_rft_lab.core import rng
from prefix_rft_lab.core.config import ConfigError, RunConfig
from prefix_rft_lab.core.types import Demonstration, EncodedProblem, Problem, Row, TokenKind
from prefix_rft_lab.models.templates import opened_thought, without_opening
from prefix_rft_lab.models.tokens import step_ends

INDEX = "problem_index"
"""Column that the trainer adds to its data set: the problem's part of every random key."""


class PrefixGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose rows, advantages and entropy clip are those of ``config.method``.

    Rewards judge the whole response, prefix included; evaluation has no prefixes. ``args.scale_rewards`` is not read:
    advantages come from ``loss.advantage``. A step of the schedule is one generation.

    Args:
        train_dataset: column ``prompt``, and ``demonstrations`` (per problem a list of texts, perhaps empty).
        config: read are ``method``, ``prefix``, ``loss.advantage``, ``rollout.hybrid_rows`` and ``rollout.rows_per_prefix``;
            rows per problem, longest response, seed and steps are those of ``args``.
        more: further arguments of GRPOTrainer.

    Raises:
        ConfigError: a method or an argument with which TRL would make another update than the kit.
    """

    def __init__(self, model: Any, reward_funcs: Any, args: Any, train_dataset: Any, *, config: RunConfig, **more: Any):
        limits = {"rollout.rows_per_problem": args.num_generations, "seed": args.seed}
        self.kit = config.replace(**limits, **{"rollout.max_response_tokens": args.max_completion_length})
        self.stage = _checked(self.kit, args, train_dataset, more)
        data = train_dataset.add_column(INDEX, list(range(len(train_dataset))))
        self.examples: list[dict[str, Any]] = []
        super().__init__(model, reward_funcs, args, data, **more)

    def _rows(self, prompts: list[list[int]]) -> list[Row]:
        """The rows of this process before generation, in the order of its prompts."""
        updates = self.args.steps_per_generation * self.num_iterations / self.args.gradient_accumulation_steps
        self.kit = self.kit.replace(**{"rl.steps": max(int(self.state.max_steps / updates), 1)})
        self.kit_step = int(self.state.global_step / updates)
        groups: dict[int, list[Row]] = {}
        for example, ids in zip(self.examples, prompts, strict=True):
            if (index := example[INDEX]) not in groups:
                encoded = [self._demonstration(ids, text) for text in example["demonstrations"] or []]
                fit = tuple(d for d in encoded if 1 < len(d.ids) <= self.max_completion_length)
                named = Problem(id=str(index), prompt="", answer="")
                problem = EncodedProblem(problem=named, index=index, prompt_ids=list(ids), demonstrations=fit)
                groups[index] = self.stage.rows(problem, self.kit_step, self.kit)
        first = self.accelerator.process_index * len(prompts)
        return [groups[e[INDEX]][i % self.num_generations] for i, e in enumerate(self.examples, first)]

    def _demonstration(self, prompt: list[int], text: str) -> Demonstration:
        """The ids that follow a prompt's; alone only where a token would hold the end of the one and the start of the other."""
        tokenizer, before = self._tokenizer, self._tokenizer.decode(prompt)
        text = without_opening(text, opened_thought(before))
        whole, alone = (tokenizer(x, add_special_tokens=False)["input_ids"] for x in (before + text, text))
        ids = whole[len(prompt) :] if whole[: len(prompt)] == list(prompt) else alone
        return Demonstration(ids=[*ids, tokenizer.eos_token_id], step_ends=step_ends(tokenizer, ids))

    def _generate_single_turn(self, prompt_ids: Any, images: Any, fields: Any, num_generations: int, *more: Any) -> Any:
        if not self.examples:
            return super()._generate_single_turn(prompt_ids, images, fields, num_generations, *more)
        self.drawn = rows = self._rows(prompt_ids)
        starts = [list(ids) + row.prefix_ids for ids, row in zip(prompt_ids, rows, strict=True)]
        # Rows of a group differ in their prefix, so each is a prompt of its own.
        sampled, logps = super()._generate_single_turn(starts, images, fields, 1, *more)
        for row, ids in zip(rows, sampled, strict=True):
            row.sampled_ids = list(ids)[: self.max_completion_length - len(row.prefix_ids)]
        if logps is not None:  # NaN is TRL's word for a token without an importance ratio.
            whole = [[float("nan")] * len(row.prefix_ids) + list(v) for row, v in zip(rows, logps, strict=True)]
            logps = [v[: self.max_completion_length] for v in whole]
        return [row.response_ids for row in rows], logps

    def _calculate_rewards(self, *args: Any) -> Any:
        self.rewards = super()._calculate_rewards(*args)  # (rows of all processes, rewards)
        return self.rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.examples = inputs if self.model.training else []
        output = super()._generate_and_score_completions(inputs)
        if not self.examples:
            return output
        rows, kinds = self.drawn, torch.zeros_like(output["completion_mask"])
        scores = (self.rewards * self.reward_weights.to(kinds.device)).nansum(1).cpu()
        prefix = torch.tensor(gather_object([row.prefix_number if row.prefix_ids else -1 for row in rows]))
        scored = ~self.rewards.isnan().all(1).cpu()  # TRL leaves rows out that no reward function judged.
        group, shared = torch.arange(len(scores)) // self.num_generations, self.kit.rollout.rows_per_prefix
        estimate, by_row = ESTIMATORS[self.stage.estimator(self.kit)], torch.zeros(len(scores), 2)
        seen = {"scores": scores[scored], "group": group[scored], "prefix_group": prefix[scored]}
        found = estimate(Scores(**seen, rows_per_prefix=shared))
        by_row[scored] = torch.stack([found.sampled, found.prefix], 1)
        mine = by_row[self.accelerator.process_index * len(rows) :][: len(rows)].to(kinds.device)
        for i, row in enumerate(rows):
            kinds[i, : len(row.response_ids)] = torch.tensor(row.kinds)
        trained, ranked = (
            sum((kinds == kind for kind in chosen(self.kit)), torch.zeros_like(kinds, dtype=torch.bool))
            for chosen in (self.stage.losses, self.stage.ranked)
        )
        values = torch.where(kinds == TokenKind.PREFIX, mine[:, 1:], mine[:, :1]) * trained  # (rows, tokens)
        number = torch.tensor([row.problem.index * self.num_generations + row.row for row in rows])
        for name, member in (("hybrid", prefix >= 0), ("plain", prefix < 0)):
            self._metrics["train"][f"reward_{name}"].append(scores[scored & member].mean().item())
        return output | {"advantages": values, "values": values, "ranked": ranked, "number": number}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        start, size = self._step % self.args.steps_per_generation, self.args.gradient_accumulation_steps
        if self.model.training and start % size == 0 and self.kit.prefix.keep != "all":
            self._clip(self._buffered_inputs[start : start + size])
        return inputs

    def _clip(self, window: list[dict[str, Any]]) -> None:
        """Advantage 0 for the ranked tokens of least entropy in an optimizer window of all processes."""
        names = ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask", "ranked", "number")
        prompt, response, *masks, ranked, number = (torch.cat([batch[name] for batch in window]) for name in names)
        chosen, settings = ranked.any(1).nonzero().squeeze(1), self.kit.prefix
        if (most := max(gather_object([len(chosen)]))) == 0:
            return
        # As many rows on every process: sharded models run their forward passes together.
        index = torch.nn.functional.pad(chosen, (0, most - len(chosen)))
        ids, mask = torch.cat([prompt, response], 1)[index], torch.cat(masks, 1)[index]
        options = {"batch_size": self.args.per_device_train_batch_size, "compute_entropy": True}
        with torch.no_grad():
            logp, entropy = self._get_per_token_logps_and_entropies(self.model, ids, mask, ranked.shape[1], **options)[
                :2
            ]
        place = torch.arange(ranked.shape[1], device=entropy.device).expand_as(entropy)
        facts = torch.stack([entropy.float(), logp.float(), place], 1)  # (rows, 3, tokens)
        own = {int(number[i]): fact[:, ranked[i]].tolist() for i, fact in zip(chosen, facts, strict=False)}
        found = dict(sorted(gather_object(list(own.items()))))  # Ties go by problem and row.
        counts = [len(values[0]) for values in found.values()]
        keys = [(self.kit_step, *divmod(n, self.num_generations)) for n in found]
        draws = [rng.generator(self.kit.seed, "clip", *k).random(n) for k, n in zip(keys, counts, strict=True)]
        order = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        seen = torch.cat([torch.tensor(values) for values in found.values()], 1)
        uniforms = torch.cat([torch.from_numpy(d) for d in draws])
        seen_by_rule = clip.RankInputs(entropy=seen[0], logp=seen[1], position=seen[2].long(), uniforms=uniforms)
        stays = clip.clip_mask(
            clip.KEEP_RULES.find(settings.keep)(seen_by_rule),
            torch.ones_like(order, dtype=torch.bool),
            settings.keep_fraction,
            group=order if settings.scope == "row" else None,
        )
        kept, dropped = dict(zip(found, stays.split(counts), strict=True)), torch.zeros_like(ranked)
        for i in chosen:
            dropped[i, ranked[i]] = ~kept[int(number[i])].to(ranked.device)
        for batch, part in zip(window, dropped.split([len(batch["ranked"]) for batch in window]), strict=True):
            batch["advantages"] = batch["values"].masked_fill(part, 0.0)


def _checked(config: RunConfig, args: Any, data: Any, more: dict[str, Any]) -> methods.Stage:
    """The stage that TRL can train."""
    stages, prefix, columns = methods.check(config).stages, config.prefix, getattr(data, "column_names", None) or ()
    losses = [loss for stage in stages for _, loss in stage.each_loss(config)]
    own = [name for name in ("rollout_func", "tools", "environment_factory") if more.get(name)]
    unfit = (
        len(stages) != 1
        or any(stage.replay or stage.decide for stage in stages)
        or any(loss != methods.PolicyGradient() for loss in losses)
    )
    uneven = args.steps_per_generation % args.gradient_accumulation_steps
    missing = not (hasattr(data, "add_column") and {"prompt", "demonstrations"} <= set(columns))
    refusals = {
        f"method = {config.method!r} with prefix.loss = {prefix.loss!r} and prefix.clip_ratio = {prefix.clip_ratio} has losses, "
        "or decisions on rows, that TRL does not know; use prefix_rft or dr_po with clipped policy gradients, or the kit's own train": unfit,
        f"prefix.scope = {prefix.scope!r} has no meaning in TRL; use 'update' or 'row'": prefix.scope == "micro_batch",
        f"steps_per_generation = {args.steps_per_generation} is no multiple of gradient_accumulation_steps = "
        f"{args.gradient_accumulation_steps}, so an update would mix generations; change one of them": uneven,
        f"{' and '.join(own)} makes rows of its own, which would have no prefix; leave it out": own,
        f"train_dataset has the columns {list(columns)}; give a datasets.Dataset with 'prompt' and 'demonstrations', per problem a "
        "list of texts": missing,
    }  # fmt: skip
    for sentence, applies in refusals.items():
        if applies:
            raise ConfigError(sentence)
    return stages[0]
