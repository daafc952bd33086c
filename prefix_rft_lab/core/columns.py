"""Every column that runs record, once: name, meaning, unit, label and format. Records, statistics, figures, explorers and tables
read it here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from prefix_rft_lab.core.types import KIND_NAMES

Source = Literal["metrics", "evaluations"]
"""Which records of a run: ``metrics`` (every step), ``evaluations`` (on the validation split)."""


class Column(NamedTuple):
    """What a recorded number is, and how people read it."""

    meaning: str
    """In one clause, without the unit."""
    unit: str = ""
    """Of the number; empty for names, counts and plain shares that the meaning explains."""
    label: str = ""
    """Short name for axes and titles; ``{k}`` stands for the samples per problem. The meaning if empty."""
    format: str = ".3f"
    """Format specification of a number in text."""

    def described(self) -> str:
        """Meaning and unit, for a reader who knows k."""
        return f"{self.meaning}, {self.unit}" if self.unit and self.unit not in self.meaning else self.meaning

    def short(self, k: object = "k") -> str:
        """The label, e.g. ``avg@8``."""
        return (self.label or self.meaning).format(k=k)

    def axis(self, k: object = "k") -> str:
        """The label with its unit, e.g. ``avg@8 (share of samples solved)``."""
        return f"{self.short(k)} ({self.unit.format(k=k)})" if self.unit else self.short(k)


METRICS: dict[str, Column] = {
    "stage": Column("name of the stage"),
    "step": Column("step of the stage, from 0", format="d"),
    "global_step": Column("step of the run, from 0", label="training step (all stages)", format="d"),
    "loss": Column("loss of the update (sum of the kinds' losses, each over its normaliser)", label="loss"),
    "reward": Column("mean score of all rows", "0 to 1", "mean reward"),
    "reward_plain": Column("mean score of the rows without prefix", "0 to 1", "mean reward"),
    "reward_hybrid": Column("mean score of the rows with prefix", "0 to 1", "mean reward"),
    "rewards_<name>": Column("mean of one reward, before its weight (where data.reward names several)"),
    "solved_none": Column("share of problems that no plain row solves"),
    "solved_all": Column("share of problems that all plain rows solve"),
    "answer_in_prefix": Column("share of hybrid rows whose prefix already shows the boxed answer"),
    "prefix_ratio_low": Column("lower end of the ratio window", label="prefix ratio"),
    "prefix_ratio_high": Column("upper end of the ratio window", label="prefix ratio"),
    "prefix_ratio": Column("mean drawn ratio of the hybrid rows", label="prefix ratio"),
    "prefix_tokens": Column("mean prefix length of the hybrid rows", "tokens", "prefix length", ".1f"),
    "prefix_share": Column("prefix and demonstration tokens / response tokens of the step"),
    "kept_share": Column("prefix tokens that keep their advantage / prefix tokens"),
    "kept_threshold": Column("lowest entropy of a kept prefix token", "nats"),
    "entropy_<kind>": Column(
        "mean entropy of the tokens of a kind (prefix, continuation, on_policy)", "nats", "entropy"
    ),
    "nll_<kind>": Column("mean negative log-likelihood of the tokens of a kind", "nats", "NLL"),
    "advantage_<kind>": Column("mean advantage of the tokens of a kind, before the clip"),
    "clipped_<kind>": Column("share of tokens of a kind whose ratio was clipped"),
    "tokens_<kind>": Column("number of tokens of a kind", format="d"),
    "sampled_rows": Column("rows that the policy sampled", format="d"),
    "dropped_tokens": Column("sampled tokens of rows that the update does not take", format="d"),
    "response_tokens": Column("mean response length, prefix included", "tokens", "length", ".1f"),
    "plain_tokens": Column("mean response length of plain rows", "tokens", "length", ".1f"),
    "hybrid_tokens": Column("mean response length of hybrid rows, prefix included", "tokens", "length", ".1f"),
    "truncated": Column("share of sampled rows that ran out of tokens"),
    "engine_gap": Column(
        "mean distance of the engine's and the trainer's log-probabilities of the sampled tokens", "nats"
    ),
    "engine_gap_max": Column("largest such distance", "nats"),
    "grad_norm": Column("global gradient norm before clipping", label="global L2 norm (before clipping)"),
    "grad_norm_<kind>": Column(
        "gradient norm of the loss of one kind alone, before clipping (every records.diagnostics_every steps)",
        label="L2 norm",
    ),
    "kl": Column("KL from the policy before the step to the one after it, nats per sampled token (as above)"),
    "entropy_change": Column("mean entropy of the sampled tokens after the step minus before, nats (as above)"),
    "replay_loss": Column("loss of the second update of the step, NaN without one (ReLIFT)"),
    "replay_grad_norm": Column("its gradient norm before clipping, NaN without one (ReLIFT)"),
    "replay_updated": Column("1 if the step had a second update, else 0 (ReLIFT)", format="d"),
    "replay_problems": Column("problems that wait in the buffer after the step (ReLIFT)", format="d"),
    "lr": Column("learning rate", format=".2g"),
    "skipped_steps": Column("steps left out so far, whose loss or gradient was NaN or infinite", format="d"),
    "verifier_timeouts": Column("scores that ran out of time so far", format="d"),
    "seconds_rollout": Column("seconds generating"),
    "seconds_score": Column("seconds scoring"),
    "seconds_record": Column("seconds recording tokens; 0 in steps that are not recorded"),
    "seconds_update": Column("seconds in forward, backward and optimizer"),
}
"""Columns of ``metrics.jsonl``, a line per training step; ``<kind>`` stands for a kind of token."""

EVALUATIONS: dict[str, Column] = {
    "avg": Column("mean share of solved samples, of k per problem", "share of samples solved", "avg@{k}"),
    "pass": Column("share of problems solved in k tries", "share of problems solved in {k} tries", "pass@{k}"),
    "greedy": Column("share of problems solved by the greedy answer", "share of problems solved", "greedy pass@1"),
    "tokens": Column("mean response length", "tokens", "response length", ".1f"),
    "truncated": Column("share of samples cut off"),
    "entropy": Column("mean entropy of sampled tokens", "nats", "entropy"),
    "demonstration_nll": Column(
        "negative log-likelihood of the demonstrations", "nats/token", "NLL of the demonstrations"
    ),
    "demonstration_nll_hard": Column(
        "negative log-likelihood of the demonstrations of Train-hard",
        "nats/token",
        "NLL of Train-hard's demonstrations",
    ),
}
"""Columns of ``evaluations.jsonl``, a line per evaluation, and of its groups (``hard.avg``, ``levels.easy.avg``)."""

SHARES = ("avg", "pass", "greedy")
"""Scores of an evaluation, shares of 1."""
FINAL = (*SHARES, "tokens")
"""Columns that a final evaluation measures of every problem."""

_OF: Mapping[str, Mapping[str, Column]] = {"metrics": METRICS, "evaluations": EVALUATIONS}


def names(source: Source) -> Iterator[str]:
    """Names as they are recorded, with each kind of token."""
    for name in _OF[source]:
        if "<name>" not in name:
            yield from (name.replace("<kind>", kind) for kind in KIND_NAMES.values()) if "<kind>" in name else (name,)


def column_of(name: str, source: Source = "evaluations") -> Column:
    """A recorded column; of a column that only a user's own code records, the name stands for its meaning.

    >>> column_of("hard.avg").axis(8)
    'avg@8 (share of samples solved)'
    >>> column_of("entropy_prefix", "metrics").axis()
    'entropy (nats)'
    """
    last = name.rpartition(".")[2] if source == "evaluations" else name
    for kind in KIND_NAMES.values() if source == "metrics" else ():
        last = f"{last.removesuffix(kind)}<kind>" if f"{last.removesuffix(kind)}<kind>" in METRICS else last
    return _OF[source].get(last) or Column(name.replace("{", "{{").replace("}", "}}"))
