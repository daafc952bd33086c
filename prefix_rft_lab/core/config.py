"""The configuration of a run: frozen, typed, and the same in Python, YAML and JSON.

A run is a :class:`RunConfig`. Each field carries its unit and range in the docstring under it; bad values
raise :class:`ConfigError` with one sentence that names the field, the value and the remedy, before any work
starts. ``preset("tiny", method="prefix_rft", seed=0)`` gives a complete config; dotted names change single
fields: ``preset("tiny", **{"prefix.keep_fraction": 0.5})``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class ConfigError(ValueError):
    """A value that cannot be used; the message names the field, the value and the remedy."""


class Section(BaseModel):
    """A frozen part of a file, in which unknown keys, NaN and infinite numbers are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        for name, value in self:
            if isinstance(value, float) and abs(value) > LARGEST:
                raise ValueError(
                    f"{name} = {value:g} is larger than {LARGEST:g}, which float32 arithmetic bears; lower it"
                )
        return self


LARGEST = 1e30
"""Largest number in a config: products with it stay within float32."""


class PrefixConfig(Section):
    """How long prefixes are, and which of their tokens are trained (Prefix-RFT, arXiv 2507.01679)."""

    schedule: str = "cosine"
    """A name of :data:`prefix_rft_lab.algorithm.schedules.SCHEDULES`. How the lower end of the ratio window moves: ``cosine`` or ``linear`` from ``high`` to ``low`` over
    ``decay_steps``; ``uniform`` keeps the window at [low, high] from the start (the paper's ablation);
    ``constant`` always gives ``high``."""
    high: float = Field(0.95, ge=0, le=1)
    """Upper end of the prefix-ratio window, fraction of the demonstration, in [0, 1]."""
    low: float = Field(0.05, ge=0, le=1)
    """Lower end of the window after the decay, in [0, high]."""
    decay_steps: int | None = Field(None, ge=1)
    """Steps over which the lower end falls from ``high`` to ``low``; all of rl.steps after the delay and the warm-up if not
    given."""
    delay_steps: int = Field(0, ge=0)
    """Steps during which the window stays closed at ``high`` before the decay starts."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """Length of a linear rise of the lower end from 0, as a fraction of ``decay_steps``, before the decay."""
    alpha: float = Field(1.0, gt=0)
    """First shape parameter of the Beta distribution over the window; Beta(1, 1) is uniform."""
    beta: float = Field(1.0, gt=0)
    """Second shape parameter of the Beta distribution over the window."""
    sampler: str = "beta"
    """How a ratio is drawn from the window, a name of :data:`prefix_rft_lab.algorithm.schedules.SAMPLERS`."""
    unit: str = "token"
    """Where prefixes are cut, a name of :data:`prefix_rft_lab.algorithm.schedules.UNITS`: after any ``token``, or after the last
    whole ``step`` (line) of the solution that the ratio reaches."""
    min_tokens: int = Field(0, ge=0)
    """Least number of prefix tokens, unless the demonstration is shorter; one token is always left out."""
    keep_fraction: float = Field(0.2, ge=0, le=1)
    """Share of the prefix tokens that is trained, in [0, 1]; the others get advantage 0 but still count in
    the denominators."""
    keep: str = "top"
    """A name of :data:`prefix_rft_lab.algorithm.entropy.KEEP_RULES`. Which share is kept: the highest-entropy tokens (``top``, the paper), the lowest, a random choice, or all."""
    scope: Literal["update", "row", "micro_batch"] = "update"
    """The set of tokens that is ranked: all prefix tokens of the optimizer window (``update``: the result
    does not depend on micro-batching), one row, or one micro-batch (the published code)."""
    clip_ratio: bool = True
    """Whether PPO clipping applies to prefix tokens; ``False`` trains them on the unclipped surrogate."""
    loss: str = "advantage"
    """A name of :data:`prefix_rft_lab.algorithm.methods.PREFIX_LOSSES`. What trains the prefix tokens of Prefix-RFT: their advantage (the paper), ``static_weight`` times the NLL
    whatever the outcome (its ablation in the style of UFT), or nothing (``frozen``)."""
    static_weight: float = Field(0.001, ge=0)
    """Weight of the token-mean NLL of the prefix tokens where ``loss`` is ``static``."""

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.low > self.high:
            raise ValueError(
                f"prefix.low = {self.low} lies above prefix.high = {self.high}; lower it or raise prefix.high"
            )
        return self


class RolloutConfig(Section):
    """How many rows are generated, and how."""

    problems_per_step: int = Field(24, ge=1)
    """Problems in one step."""
    rows_per_problem: int = Field(8, ge=1)
    """Rows (rollouts) of one problem: N in the paper; hybrid rows are counted in."""
    hybrid_rows: int = Field(1, ge=0)
    """Rows of each problem that start with a prefix, for methods that use prefixes, in [0, rows_per_problem]."""
    rows_per_prefix: int = Field(1, ge=1)
    """Hybrid rows that share one prefix; hybrid_rows must be a multiple of it. With 1 every hybrid row draws its own
    ratio, and its own demonstration where a problem has several."""
    max_prompt_tokens: int = Field(32, ge=1)
    """Longest prompt in tokens; problems with a longer one are dropped and counted."""
    max_response_tokens: int = Field(64, ge=2)
    """Longest response in tokens, prefix included."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of training rollouts; log-probabilities and entropies are taken at it too."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates the rows: the trained model itself, or vLLM on a copy of its weights (see ``vllm``). Demonstrations
    that another policy writes (``data.expert``) are always generated by that policy itself."""
    max_batch_rows: int = Field(2048, ge=1)
    """Rows generated together at most; bounds the memory of the key-value cache, never changes a sample's seed."""
    importance_cap: float | None = Field(None, gt=0)
    """Truncated importance sampling: the loss of each sampled token is weighted by min(p_trainer / p_engine, this), with
    the probabilities of the policy before the update; None weighs nothing. Prefixes and demonstrations are not sampled
    by the engine and have no weight."""

    @property
    def row_tokens(self) -> int:
        """Tokens of a row at most, prompt and response."""
        return self.max_prompt_tokens + self.max_response_tokens

    @model_validator(mode="after")
    def _hybrid(self) -> Self:
        if self.hybrid_rows % self.rows_per_prefix:
            raise ValueError(
                f"rollout.hybrid_rows = {self.hybrid_rows} is not a multiple of rollout.rows_per_prefix = "
                f"{self.rows_per_prefix}; change one of them"
            )
        if self.hybrid_rows > self.rows_per_problem:
            raise ValueError(
                f"rollout.hybrid_rows = {self.hybrid_rows} is more than rollout.rows_per_problem = "
                f"{self.rows_per_problem}; lower it"
            )
        return self


class VllmConfig(Section):
    """The vLLM engine (``rollout.engine = vllm``)."""

    cache_gib: float = Field(1.0, gt=0)
    """Memory of the key-value cache, GiB; rows that do not fit wait. It is taken at the start, beside a copy of the weights."""
    max_gap: float | None = Field(None, gt=0)
    """Largest mean distance, nats per token, between log-probabilities of the engine and of the trained model on the first rows
    after new weights; above it the run stops, since the engine samples from stale weights. 0.002 in float32 and 0.1 in
    bfloat16 if not given."""
    sleep: bool = False
    """Whether the engine gives its memory back between rollouts (GPU only)."""


class LossConfig(Section):
    """The policy-gradient loss (Prefix-RFT, arXiv 2507.01679; Dr.GRPO, arXiv 2503.20783; PPO, arXiv 1707.06347)."""

    advantage: str = "dr_grpo"
    """Advantage estimator, a name of :data:`prefix_rft_lab.algorithm.advantages.ESTIMATORS`; ``dr_grpo`` is the paper's text,
    ``dr_grpo_prefix`` the published code, ``plain_baseline`` LUFFY's variant with the baseline of the sampled rows."""
    clip_low: float = Field(0.2, ge=0, le=1)
    """Ratios below 1 - clip_low are clipped."""
    clip_high: float = Field(0.2, ge=0)
    """Ratios above 1 + clip_high are clipped ("clip higher": 0.28)."""
    dual_clip: float = Field(3.0, gt=1)
    """Bound on the loss of tokens with a negative advantage: -A * dual_clip."""
    normalise: Literal["window", "micro_batch"] = "window"
    """``window`` divides the sum over the whole optimizer window once. ``micro_batch`` is what published code does: each
    micro-batch is divided on its own (policy gradients by max_response_tokens and not by rows, NLL by its own tokens),
    so that the result depends on ``micro_batch_tokens``; kept to show what that costs."""
    entropy_bonus: float = Field(0.0, ge=0)
    """Weight of the mean entropy (nats) of the sampled tokens, subtracted from the loss."""
    updates_per_rollout: int = Field(1, ge=1)
    """Optimizer windows that the problems of a rollout step are cut into, the rows of a problem together. With 1 the old
    log-probabilities are the current ones and need no extra forward pass."""


class DemonstrationLossConfig(Section):
    """RL with SFT loss: policy gradients on sampled rows, NLL on one demonstration of every problem."""

    weight: float = Field(1.0, ge=0)
    """Weight of the token-mean NLL of the demonstrations."""


class LuffyConfig(Section):
    """LUFFY (arXiv 2504.14945): the demonstration is one more row of the group."""

    shape: Literal["luffy", "none"] = "luffy"
    """What takes the place of the ratio on demonstration tokens: p / (p + gamma), or p itself."""
    gamma: float = Field(0.1, gt=0)
    """Constant of the policy shaping."""


class ReliftConfig(Section):
    """ReLIFT (arXiv 2506.07527): RFT, interleaved with SFT on problems that no rollout solved."""

    batch_problems: int | None = Field(None, ge=1)
    """Buffered problems that make one SFT update; rollout.problems_per_step if not given."""
    lr: float | None = Field(None, gt=0)
    """Learning rate of the SFT updates; rl.lr if not given, as published (both 1e-6)."""
    entropy_weight: float = Field(0.001, ge=0)
    """Weight of the mean entropy (nats) of the demonstration tokens, subtracted from their NLL."""


class UftConfig(Section):
    """UFT (arXiv 2505.16984): all rows of a problem continue one hint, the first steps of a demonstration."""

    hint_steps: int | None = Field(None, ge=0)
    """Training steps with hints (T_hint); six tenths of rl.steps if not given, as published (300 of 500)."""
    parts: int = Field(5, ge=1)
    """Parts that the solution steps of a demonstration are cut into at most; a hint is some of the first."""
    low: float = Field(0.05, ge=0, le=1)
    """Probability of each part at the end of the hints."""
    high: float = Field(0.95, ge=0, le=1)
    """Probability of each part at the start; falls to ``low`` on a half cosine."""
    nll_weight: float = Field(0.001, ge=0)
    """Weight of the token-mean NLL of the hint tokens."""

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"uft.low = {self.low} lies above uft.high = {self.high}; lower it or raise uft.high")
        return self


class HptConfig(Section):
    """HPT (arXiv 2509.04419): a problem is imitated where few of its rows are right, and reinforced elsewhere."""

    gate: int = Field(0, ge=0)
    """Right rows of a problem up to which its demonstration takes their place, below rollout.rows_per_problem."""
    weight: float = Field(1.0, ge=0)
    """Weight of the token-mean NLL of the demonstrations, over the window. (Published: 1, or 0.3, times a number that depends on
    how the window is cut into micro-batches: some 0.08 to 0.25 of this one.)"""


class ChordConfig(Section):
    """CHORD (arXiv 2508.11408): (1 - mu) x policy gradients + mu x NLL of demonstrations."""

    peak: float = Field(0.9, ge=0, le=1)
    """CHORD-mu: mu at the end of its warm-up; falls on a half cosine."""
    valley: float = Field(0.05, ge=0, le=1)
    """CHORD-mu: mu after the decay."""
    warmup_steps: int = Field(0, ge=0)
    """CHORD-mu: steps in which mu rises from 0 to its peak."""
    decay_steps: int | None = Field(None, ge=0)
    """CHORD-mu: steps of the decay; all of rl.steps after the warm-up if not given (published: 200)."""
    phi_mu: float = Field(0.1, ge=0, le=1)
    """CHORD-phi: mu, at all steps."""


class DynamicConfig(Section):
    """Dynamic sampling (DAPO, arXiv 2503.14476): problems whose rows all score alike make room for others."""

    redraws: int = Field(3, ge=1)
    """How often a step draws other problems at most."""


class OptimConfig(Section):
    """AdamW and the length of one stage."""

    steps: int = Field(ge=0)
    """Optimizer steps of the stage (rollout steps for RL stages)."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    warmup_fraction: float = Field(0.0, ge=0, le=1)
    """Linear warm-up to the peak, as a fraction of ``steps``, rounded up to whole steps."""
    decay: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine to zero over the steps that are left."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW moment decay rates, each in [0, 1)."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    max_skipped_steps: int = Field(10, ge=0)
    """Steps of a run that may be left out because their gradient norm is NaN or infinite; one more ends it as diverged, and
    so does half of all steps, or more, at the end of a stage."""
    batch_rows: int = Field(64, ge=1)
    """Demonstrations in one step of a supervised stage; RL stages take rollout.problems_per_step instead."""


class DataConfig(Section):
    """Where the problems and the demonstrations come from."""

    problems: str = "chains"
    """``chains`` (the embedded world), the path of a JSONL, parquet or CSV file with columns problem, answer, solution, or
    a data set on the Hub: ``owner/name``, ``owner/name:config`` or ``owner/name:config:split``."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps ``id``, ``problem``, ``answer``, ``demonstration``, ``level``, ``split``, ``type``, ``options`` to the file's own
    columns, whatever their case; ``reward_model.ground_truth`` is a field of an object. The others go by their usual names."""
    max_rows: int | None = Field(None, ge=1)
    """Rows read of the source at most; None reads all."""
    test_sets: tuple[str, ...] = ()
    """Files or Hub names whose problems are left out of ``problems``, so that no test problem is trained on."""
    demonstrations: Literal["first", "shortest", "random", "all"] = "first"
    """Which of several demonstrations of a problem are used; ``shortest`` counts characters."""
    unverified: bool = False
    """Whether demonstrations that the data set does not call verified are used too."""
    max_demonstration_characters: int | None = Field(None, ge=1)
    """Longer demonstrations are left out before one is chosen; None leaves none out. (Tokens are limited by
    rollout.max_response_tokens, after the choice.)"""
    train_problems: int = Field(1024, ge=1)
    """Training problems taken from the source: of a file the first in a keyed order, after those that are held out."""
    eval_problems: int = Field(256, ge=1)
    """Problems of each evaluation split; with a file, they are held out from it before the training problems."""
    expert: str = "thorough"
    """Who wrote the demonstrations of the embedded world: thorough, terse, verbose, noisy10, noisy30, wrong; or a policy:
    ``self`` (the one that is trained, before), ``policy:DIRECTORY``, or ``run:NAME`` (a finished run in the same folder).
    Several names joined by ``+`` give every problem one demonstration of each."""
    right_within: int = Field(0, ge=0)
    """Samples of each problem, where a policy writes the demonstrations, of which the first right one is taken, or none; 0 takes
    the first sample, right or wrong."""
    demonstration_fraction: float = Field(1.0, ge=0, le=1)
    """Share of the training problems that keep their demonstration, in [0, 1]."""
    reward: str = "math_verify"
    """What responses are scored by: a name of :data:`prefix_rft_lab.data.rewards.REWARDS`, or several with weights,
    ``math_verify + 0.2 * format``."""
    solved: float | None = None
    """Score from which a response counts as solved, in pass@k, Train-hard and shares of solved problems; the highest possible
    one if not given."""
    task: str = ""
    """A task of your own (:class:`prefix_rft_lab.data.task.Task`), which brings problems, reward and template."""
    seed: int = Field(0, ge=0)
    """Keys the problems, how a file is split, the choice of demonstrations and the samples of evaluations; separate from
    the run's seed, so that seeds share all of these."""


class ModelConfig(Section):
    """The policy that training starts from."""

    path: str = "tiny"
    """``tiny`` (the base policy that ships with the kit), a directory in Hugging Face format, or a Hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward passes; master weights and AdamW are float32 in either case."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy lives; ``auto`` takes a GPU where there is one."""
    template: Literal["auto", "qwen2.5-math", "llama-3.1", "smollm2", "none"] = "auto"
    """How messages are framed: ``auto`` by the tokenizer's own chat template, ``none`` as plain text (base models), or a
    template of the kit (:mod:`prefix_rft_lab.models.templates`)."""
    system_prompt: str | None = None
    """System message put before every problem, if any; ``luffy`` asks for a thought in ``<think>`` tags and a solution."""
    instruction: str = ""
    """Text appended to every problem, e.g. how to give the answer."""
    context_tokens: int | None = Field(None, ge=1)
    """Longest sequence in tokens that the policy is used for, where that is not what its own config says."""
    rope_theta: float | None = Field(None, gt=0)
    """Base of the rotary embedding, where it is not the model's own: a larger one stretches the context."""


class EvalConfig(Section):
    """Evaluation during and after training."""

    every: int = Field(50, ge=0)
    """Steps between evaluations on the validation split; 0 evaluates only before and after each stage."""
    k: int = Field(8, ge=1)
    """Samples of each problem: avg@k and pass@k."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of the evaluation."""
    problems: int = Field(96, ge=1)
    """Validation problems used during training (the final evaluation uses all data.eval_problems)."""
    hard_tries: int = Field(16, ge=0)
    """Samples of the base policy that a training problem must all fail to count as Train-hard; 0 leaves it out."""
    final_splits: tuple[str, ...] = ("test", "ood")
    """Splits evaluated once, after the last step, as far as the source has them."""


class RecordConfig(Section):
    """What a run writes."""

    checkpoint_every: int = Field(50, ge=0)
    """Steps between checkpoints; 0 writes none before the end of a stage."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    tokens_every: int = Field(10, ge=0)
    """Steps between token tables; 0 writes none."""
    diagnostics_every: int = Field(25, ge=0)
    """Steps between the diagnostics that cost extra work: gradient norm by token kind, KL between the policies before
    and after the update; 0 measures none. They never change what is trained."""
    token_problems: int = Field(2, ge=1)
    """Problems of a step whose rows are all recorded; of the others, one hybrid row each."""
    followed: int = Field(4, ge=0)
    """Demonstrations, of the first training problems that have one, that are read (not trained) in every token table."""
    most_tokens: int = Field(16384, ge=1)
    """Tokens in one token table at most of the rows of the step, and as many of followed demonstrations; whole rows."""
    top_k: int = Field(5, ge=1)
    """Alternatives recorded for each token."""
    metrics: tuple[str, ...] = ()
    """Metrics of your own that are recorded at every step, names of :data:`prefix_rft_lab.training.measure.OWN_METRICS`."""
    save_model: bool = True
    """Whether the final weights are written in Hugging Face format."""
    writers: str = "none"
    """Where else metrics, evaluations and config are shown (:data:`prefix_rft_lab.runs.writers.WRITERS`): ``tensorboard``,
    ``wandb``, ``trackio`` or another tracker of accelerate, several joined by ``+``, or ``none``. The run's own directory
    stays what counts."""
    project: str = Field("prefix-rft", pattern=r"^[^/\\#?%:]+$")
    """Project that a tracker shows the run in."""


SHOWN_ELSEWHERE = ("records.writers", "records.project", "imports")
"""Fields that say where else a run is shown, or where its ideas are found: they name no run and change none of its bits."""


class RunConfig(Section):
    """One run: a method, on problems, from a policy, with a seed."""

    name: str = "run"
    """Name of the experiment; runs are written to <out>/<name>/."""
    method: str = "prefix_rft"
    """A name of :data:`prefix_rft_lab.algorithm.methods.METHODS`."""
    seed: int = Field(0, ge=0)
    """Keys every random choice of the run."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    vllm: VllmConfig = VllmConfig()
    prefix: PrefixConfig = PrefixConfig()
    loss: LossConfig = LossConfig()
    rl_sft_loss: DemonstrationLossConfig = DemonstrationLossConfig()
    luffy: LuffyConfig = LuffyConfig()
    relift: ReliftConfig = ReliftConfig()
    uft: UftConfig = UftConfig()
    hpt: HptConfig = HptConfig()
    chord: ChordConfig = ChordConfig()
    dynamic: DynamicConfig = DynamicConfig()
    rl: OptimConfig = OptimConfig(steps=150, lr=1e-6)
    sft: OptimConfig = OptimConfig(steps=60, lr=5e-5, warmup_fraction=0.1, decay="cosine")
    evaluation: EvalConfig = EvalConfig()
    records: RecordConfig = RecordConfig()
    micro_batch_tokens: int = Field(4096, ge=1)
    """Padded tokens of one forward and backward pass; changes memory and time, never the result beyond rounding
    (where neither ``loss.normalise`` nor ``prefix.scope`` is ``micro_batch``)."""
    activation_checkpointing: bool = False
    """Whether a layer keeps only its input for the backward pass and is computed again there: the memory of one layer's
    activations instead of all, for a third more work in an update; never changes the result."""
    threads: int = Field(1, ge=1)
    """CPU threads of the run; a different number may change the last bits of a result."""
    imports: tuple[str, ...] = ()
    """Modules that register ideas of your own (:mod:`prefix_rft_lab.core.registry`)."""
    ideas: dict[str, str] = Field(default_factory=dict)
    """Filled in by a run: the versions of your own ideas that it uses."""
    contents: dict[str, str] = Field(default_factory=dict)
    """Filled in by a run whose files were trained on before with other contents: what they hold now."""

    @model_validator(mode="after")
    def _below_out(self) -> Self:
        path = PurePath(self.name)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in self.name:
            raise ValueError(f"name = {self.name!r} leads out of the folder of all runs; use a plain name, and --out")
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Build from nested plain values; raises :class:`ConfigError` naming field, value and remedy."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(validation_sentence(cls, error)) from None

    @classmethod
    def load(cls, path: str | Path) -> RunConfig:
        """Read a YAML or JSON file (JSON is YAML)."""
        values = read_mapping(path, "config")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values that :meth:`from_dict` reads back to an equal config."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with dotted fields changed: ``config.replace(**{"prefix.low": 0.1, "seed": 3})``.

        >>> preset("tiny").replace(**{"prefix.keep_fraction": 0.5}).prefix.keep_fraction
        0.5
        """
        return self.from_dict(_with_changes(self.to_dict(), changes))

    def departures(self) -> dict[str, Any]:
        """Dotted fields and values that differ from the defaults, without :data:`SHOWN_ELSEWHERE`.

        >>> sorted(set(preset("tiny", method="rft").departures()) - set(preset("tiny").departures()))
        ['method']
        """
        defaults = identity(type(self)().to_dict())
        return {n: v for n, v in identity(self.to_dict()).items() if n not in defaults or defaults[n] != v}

    def hash(self) -> str:
        """Twelve hex digits that name everything but the run's name and seed, and where else it is shown.

        Only departures from the defaults are hashed, so that a field which a later version adds makes no stranger of a
        finished run. That a default was changed since, :func:`prefix_rft_lab.training.trainer.train` finds by the whole config.
        """
        values = {name: value for name, value in self.departures().items() if name not in ("name", "seed")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of nested plain values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def pairs_of(texts: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Names and values of ``name=value`` texts, as command lines have them.

    Args:
        option: what gave them, for the sentence of an error.
        example: of a text that can be used.

    Raises:
        ConfigError: a text without ``=`` or without a name.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(
                f"{option} {text[:200]!r} is not understood; write {option} name=value, e.g. {option} {example}"
            )
        found[name.strip()] = value
    return found


def changes_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Dotted fields and values of ``field=value`` pairs; a value is YAML.

    Raises:
        ConfigError: a pair without ``=``, or a value that is not YAML.
    """
    found: dict[str, Any] = {}
    for name, value in pairs_of(pairs, "--set", "prefix.low=0.1").items():
        try:
            found[name] = parse_yaml(value)
        except ValueError as error:
            raise ConfigError(
                f"--set '{name[:100]}={value[:100]}' has a value that is not YAML ({error}); quote it"
            ) from None
    return found


def show_config(config: RunConfig, base: RunConfig, whose: str) -> str:
    """The config as YAML; fields that depart from ``base`` say what they were."""
    before, now = dict(flatten(base.to_dict())), dict(flatten(config.to_dict()))
    lines: list[str] = []
    path: list[str] = []
    for line in config.to_yaml().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        path[depth:] = [line.strip().partition(":")[0]]
        dotted = ".".join(path)
        changed = not line.lstrip().startswith("-") and dotted in now and now[dotted] != before.get(dotted)
        lines.append(f"{line}  # {whose} has {before.get(dotted)!r}" if changed else line)
    return "\n".join(lines)


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted fields of a config's nested plain values, without :data:`SHOWN_ELSEWHERE`: equal ones make equal runs."""
    return {name: value for name, value in flatten(values) if name not in SHOWN_ELSEWHERE}


def _with_changes(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    known = list(dict.fromkeys([*(name for name, _ in flatten(values)), *values]))
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        node: Any = values
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or (last not in node and path != ["data", "columns"]):
            close = difflib.get_close_matches(dotted, known, n=3, cutoff=0.5)
            remedy = f"did you mean {' or '.join(close)}?" if close else f"known fields are {', '.join(known)}"
            raise ConfigError(f"{dotted} = {value!r} is not a field of the config; {remedy}")
        node[last] = value
    return values


def read_mapping(path: str | Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, as :func:`read_yaml` reads it.

    Raises:
        ConfigError: as there, or no mapping.
    """
    values = read_yaml(path, what)
    if not isinstance(values, dict):
        raise ConfigError(f"{what} = {str(path)!r} holds no mapping; write 'field: value' lines")
    return values


def read_yaml(path: str | Path, what: str) -> Any:
    """What a YAML or JSON file holds; ``what`` names the file's part in sentences, e.g. ``config``.

    Raises:
        ConfigError: no such file, not YAML, or a key that is written twice in one mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{what} = {str(path)!r} is not a file; give the path of a YAML or JSON {what}")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{what} = {str(path)!r} is not valid YAML ({_first_words(error)}); correct it") from None


def parse_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        ValueError: not YAML, nested too deeply, a key that is written twice, or an alias, by which a short text can hold
            thousands of millions of values.
    """
    try:
        return yaml.load(text, _UniqueKeys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(_first_words(error)) from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that is written twice is an error: the first value would be lost without a word."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                problem="an alias; write the value out", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, key.value) in seen and isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is written twice, again in line {key.start_mark.line + 1}"
                )
            if isinstance(key.value, str):
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _first_words(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    words = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{words}, line {mark.line + 1}" if mark is not None else str(words)


def validation_sentence(model: type[BaseModel], error: ValidationError, what: str = "config") -> str:
    """The first problem of a pydantic error as one sentence: field, value, remedy.

    Args:
        model: what was validated; its fields are offered in place of one that is unknown.
        what: what the fields are of, in words.
    """
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or what
    value, context = first.get("input"), first.get("ctx", {})
    if first["type"] == "value_error":
        return str(context["error"])
    if first["type"] == "extra_forbidden":
        known = list(_part_at(model, first["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(close)}?" if close else f"known names are {', '.join(known)}"
        return f"{field} = {value!r} is not a field of the {what}; {remedy}"
    if first["type"] == "missing":
        return f"{field} is missing; give it a value"
    message = re.sub(r"^(Input|Value|String|Tuple|Dictionary|List) ", "", first["msg"])
    text = repr(value)
    return f"{field} = {text if len(text) < 200 else f'{text[:200]}…'} cannot be used: it {message}"


def _part_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The model at a path of fields and keys of mappings."""
    node: Any = model
    for part in path:
        node = node.model_fields[part].annotation if hasattr(node, "model_fields") else get_args(node)[-1]
    return node


def _tiny() -> dict[str, Any]:
    """The embedded world on 2 CPU cores: under a minute per run."""
    return {
        "name": "tiny",
        "rollout": {"problems_per_step": 16, "max_prompt_tokens": 24, "max_response_tokens": 96},
        "rl": {"steps": 150, "lr": 3e-4},
        "sft": {"steps": 60, "lr": 1e-3, "warmup_fraction": 0.1, "decay": "cosine"},
    }


def _smol() -> dict[str, Any]:
    """SmolLM2-135M on grade-school problems, on a CPU: minutes per step."""
    return {
        "name": "smol",
        "model": {
            "path": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "instruction": "\nSolve step by step. Put the final answer in \\boxed{}.",
        },
        "data": {"problems": "gsm8k_train.jsonl", "train_problems": 512, "eval_problems": 64},
        "rollout": {
            "problems_per_step": 4,
            "max_prompt_tokens": 256,
            "max_response_tokens": 192,
            "max_batch_rows": 64,
        },
        "rl": {"steps": 100, "lr": 5e-6},
        "sft": {"steps": 50, "lr": 2e-5, "batch_rows": 16, "warmup_fraction": 0.1, "decay": "cosine"},
        "evaluation": {"every": 0, "k": 4, "problems": 16, "hard_tries": 0},
        "records": {"checkpoint_every": 10},
        "micro_batch_tokens": 2048,
        "threads": 2,
    }


def _paper() -> dict[str, Any]:
    """What the presets of the paper's models share.

    Sources, value by value: *paper*, the text of arXiv 2507.01679; *code*, what was published with it, defaults of its
    trainer included; *LUFFY*, the appendix and code of arXiv 2504.14945, whose data and setting the paper takes over.
    *kit* marks what none of them says.
    """
    return {
        "model": {
            "dtype": "bfloat16",  # code: weights and AdamW in float32, arithmetic in bfloat16
            "system_prompt": "luffy",  # LUFFY: the format of thought and solution; the wording is the kit's
        },
        "data": {
            "problems": "Elliott/Openr1-Math-46k-8192",  # paper, LUFFY: OpenR1-Math, R1's demonstration within 8192 tokens
            "train_problems": 46_000,  # paper: all of them (what is held out for validation is less)
            "eval_problems": 256,  # kit; the paper's figures are of benchmarks: evaluate --benchmark paper
        },
        "rollout": {
            "problems_per_step": 128,  # paper
            "rows_per_problem": 8,  # paper: N
            "hybrid_rows": 1,  # paper: one of the N
            "max_prompt_tokens": 1024,  # LUFFY: longest prompt of its runs
            "max_response_tokens": 8192,  # paper
            "temperature": 1.0,  # paper
            "engine": "vllm",  # LUFFY: its code samples rows with vLLM
            "max_batch_rows": 128,  # kit: rows that vLLM decodes at a time; its cache bounds their memory
        },
        "vllm": {
            "cache_gib": 16.0,  # kit: 32 rows of the 7B model at their longest, 14 of the 8B one; what does not fit waits
            "sleep": False,  # kit: it would free weights and cache during updates; not tried on a GPU yet
        },
        "prefix": {
            "schedule": "cosine",  # paper
            "high": 0.95,  # paper
            "low": 0.05,  # paper
            "decay_steps": 500,  # paper
            "keep": "top",  # paper
            "keep_fraction": 0.2,  # paper
            "scope": "update",  # paper's text; the code ranks within a micro-batch
        },
        "loss": {
            "advantage": "dr_grpo",  # paper's text; the code has dr_grpo_prefix
            "clip_low": 0.2,  # code
            "clip_high": 0.2,  # code
            "dual_clip": 3.0,  # code
            "entropy_bonus": 0.0,  # kit; the code's default is 0.001
            "updates_per_rollout": 1,  # kit: one update per rollout, as the method's description has it
        },
        "rl": {
            "steps": 500,  # LUFFY; as long as the decay
            "lr": 1e-6,  # paper
            "decay": "constant",  # paper
            "weight_decay": 0.01,  # code
            "betas": [0.9, 0.999],  # code: the default of AdamW
            "grad_clip": 1.0,  # code
        },
        "sft": {
            "steps": 1078,  # LUFFY: three epochs, here of 46,000 demonstrations in batches of 128
            "lr": 5e-5,  # paper
            "warmup_fraction": 0.1,  # paper
            "decay": "cosine",  # paper
            "weight_decay": 0.01,  # code, of RL
            "grad_clip": 1.0,  # code, of RL
            "batch_rows": 128,  # kit: as many demonstrations as RL has problems
        },
        "evaluation": {
            "every": 50,  # kit, as all of this section; the paper's figures are of benchmarks
            "k": 4,  # kit
            "problems": 64,  # kit
            "hard_tries": 8,  # kit
            "final_splits": ["test"],  # kit
        },
        "records": {
            "checkpoint_every": 50,  # kit
            "keep_checkpoints": 1,  # kit: a checkpoint is as large as the training state
            "diagnostics_every": 0,  # kit: they hold a gradient for each kind of token, 28 GiB each at 7B
        },
        "micro_batch_tokens": 9216,  # kit: one longest row; changes memory, not the result
        "activation_checkpointing": True,  # kit: without it one longest row of the 7B model keeps 63 GiB
        "threads": 8,  # kit
    }


def _qwen_math(size: str) -> dict[str, Any]:
    values = _paper()
    values["model"] |= {
        "path": f"Qwen/Qwen2.5-Math-{size}",  # paper
        "template": "qwen2.5-math",  # LUFFY: the model's own chat format, under its own system prompt
        "context_tokens": 16_384,  # LUFFY: the model reads 4096 as it comes
        "rope_theta": 40_000,  # LUFFY: 10,000 as it comes
    }
    return values | {"name": f"paper-{size.lower()}"}


def _paper_15b() -> dict[str, Any]:
    """Qwen2.5-Math-1.5B as in the paper."""
    return _qwen_math("1.5B")


def _paper_7b() -> dict[str, Any]:
    """Qwen2.5-Math-7B as in the paper."""
    return _qwen_math("7B")


def _llama_8b() -> dict[str, Any]:
    """Llama-3.1-8B as in the paper."""
    values = _paper()
    values["model"] |= {
        "system_prompt": None,  # LUFFY: none that asks for a thought
        "path": "meta-llama/Llama-3.1-8B",  # paper
        "template": "none",  # LUFFY: a simplified prompt that asks for no thought in tags; plain text is the kit's
        "instruction": "\nThink step by step, then give the final answer in \\boxed{}.",  # kit
    }
    return values | {"name": "llama-8b"}


PRESETS = {"tiny": _tiny, "smol": _smol, "paper-1.5b": _paper_15b, "paper-7b": _paper_7b, "llama-8b": _llama_8b}
"""Name -> function that gives the preset's departures from the defaults."""


def preset(name: str = "tiny", /, **changes: Any) -> RunConfig:
    """A complete config: the preset with dotted fields changed.

    Args:
        name: a key of :data:`PRESETS`.
        **changes: dotted field names and values, e.g. ``method="rft"``, ``seed=1``, ``**{"prefix.low": 0.1}``.

    Raises:
        ConfigError: an unknown preset or field, or a value that cannot be used.

    >>> config = preset("tiny", method="rft", seed=1, **{"rl.steps": 20})
    >>> config.method, config.seed, config.rl.steps
    ('rft', 1, 20)
    >>> preset("tiny", **{"prefix.lo": 0.1})
    Traceback (most recent call last):
    prefix_rft_lab.core.config.ConfigError: prefix.lo = 0.1 is not a field of the config; did you mean prefix.low or prefix.loss or prefix?
    """
    if name not in PRESETS:
        raise ConfigError(f"preset = {name!r} is not known; use one of {', '.join(PRESETS)}")
    config = RunConfig.from_dict(PRESETS[name]())
    return config.replace(**changes) if changes else config
