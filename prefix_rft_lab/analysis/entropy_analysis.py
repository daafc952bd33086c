"""What token tables say of a policy's entropy: pure functions from tables to tables, in nats.

A token table has one row per token (:data:`prefix_rft_lab.runs.run.TOKEN_COLUMNS`); a training run records it (``run.tokens``)
and :func:`prefix_rft_lab.training.records.token_table_of` makes one of any model. An entropy belongs to a *place*: it is that of
the distribution that the token there was drawn from, or would have been. Demonstrations that are only read (row
:data:`~prefix_rft_lab.runs.run.FOLLOWED`) count as a kind of their own, ``demonstration``: they are the same text at every
step, where prefixes grow shorter as a schedule decays and so cover other places at every step.

Tables of several runs may be joined: rows are distinguished by their run. Every function refuses a table without the tokens that it speaks of, and one with NaN entropies: a mean over what is left
would hide that a policy diverged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from prefix_rft_lab.core.config import ConfigError
from prefix_rft_lab.core.errors import RunError
from prefix_rft_lab.runs.run import FOLLOWED

KINDS = ("prefix", "continuation", "on_policy", "demonstration")
"""Kinds that tables are split by; ``demonstration``: read, neither trained nor sampled."""
_ROW = ["run", "step", "problem", "row"]


def checked(table: pd.DataFrame, what: str = "tokens", columns: Sequence[str] = ()) -> pd.DataFrame:
    """The table with ``kind`` telling demonstrations that are only read from prefixes that are trained.

    Raises:
        RunError: no rows, or NaN entropies; the message says where.
        ConfigError: not a token table.
    """
    for name in (*_ROW, "position", "kind", "entropy", *columns):
        if name not in table and len(table.columns):
            raise ConfigError(f"column {name!r} is not in the table; give a token table, such as run.tokens")
    if table.empty:
        raise RunError(
            f"the token table holds no {what}; train with records.tokens_every above 0, or make a table of a model by token_table_of"
        )
    bad = table["entropy"].isna()
    if bad.any():
        first = table[bad].iloc[0]
        raise RunError(
            f"entropy is NaN at {int(bad.sum())} of {len(table)} tokens, first at step {first['step']}, problem "
            f"{str(first['problem'])!r}, row {first['row']}, position {first['position']}; leave them out by "
            "table.dropna(subset=['entropy']) and find out why the policy diverged"
        )
    kind = table["kind"].mask((table["row"] == FOLLOWED) & (table["kind"] == "prefix"), "demonstration")
    return table.assign(kind=kind)


def _only(table: pd.DataFrame, kinds: Sequence[str], what: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    table = checked(table, what, columns)
    found = table[table["kind"].isin(kinds)]
    return found if len(found) else checked(found, what)


# ---------------------------------------------------------------------- over training


def entropy_by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """Mean entropy and NLL of each kind of token at each recorded step.

    Returns:
        step, kind, tokens (count), entropy (mean, nats), error (standard error of that mean over tokens, which are not
        independent within a row: a lower bound; NaN for one token), nll (mean negative log-probability, nats).
    """
    table = checked(table, columns=["logp"])
    groups = table.groupby(["step", "kind"], sort=True)
    return groups.agg(
        tokens=("entropy", "size"), entropy=("entropy", "mean"), error=("entropy", "sem"), nll=("logp", "mean")
    ).reset_index().assign(nll=lambda out: -out["nll"])  # fmt: skip


def entropy_quantiles(table: pd.DataFrame, quantiles: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9)) -> pd.DataFrame:
    """The distribution of entropies, by kind and step.

    Args:
        quantiles: shares in [0, 1].

    Returns:
        step, kind, tokens, mean, and one column per quantile, named by its percentage (``q10``, ``q25``; nats).

    Raises:
        ConfigError: a quantile outside [0, 1].
    """
    for q in quantiles:
        if not 0 <= q <= 1:
            raise ConfigError(f"quantiles = {q} lies outside [0, 1]; give shares, e.g. 0.9")
    table = checked(table)
    groups = table.groupby(["step", "kind"], sort=True)["entropy"]
    out = groups.agg(tokens="size", mean="mean")
    return out.assign(**{f"q{100 * q:g}": groups.quantile(q) for q in quantiles}).reset_index()


def concentration(table: pd.DataFrame, share: float = 0.2) -> pd.DataFrame:
    """How much of the entropy sits in how few tokens, by kind and step.

    Args:
        share: of the tokens, those of the highest entropy, rounded up to whole tokens; in (0, 1].

    Returns:
        step, kind, tokens, carried (entropy of that share of the tokens over the entropy of all, 0 to 1; NaN where all
        of it is 0).

    Raises:
        ConfigError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share = {share} lies outside (0, 1]; give a share of the tokens, e.g. 0.2")

    def carried(entropy: pd.Series) -> float:
        top = entropy.nlargest(math.ceil(share * len(entropy)))
        return float(top.sum() / entropy.sum()) if entropy.sum() > 0 else math.nan

    groups = checked(table).groupby(["step", "kind"], sort=True)["entropy"]
    return groups.agg(tokens="size", carried=carried).reset_index()


# ---------------------------------------------------------------------- within a response


def of_hybrid_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Prefix and continuation tokens of the rows that have both.

    Raises:
        RunError: there is none.
    """
    table = _only(table, ("prefix", "continuation"), "prefix tokens of hybrid rows", ["kept", "score"])
    kinds = table.groupby(_ROW)["kind"].transform("nunique")
    found = table[kinds == 2]
    if found.empty:
        raise RunError(
            "the token table holds no hybrid rows (a prefix and its continuation); take a run of a method with prefixes, "
            "such as prefix_rft"
        )
    return found


def seam(table: pd.DataFrame, before: int = 8, after: int = 8) -> pd.DataFrame:
    """Entropy around the place where the demonstration ends and the policy goes on.

    Args:
        before: prefix tokens, offsets -before to -1.
        after: continuation tokens, offsets 0 to after - 1.

    Returns:
        offset (tokens from the first continuation token), kind, tokens (rows that reach so far), entropy (mean, nats),
        error (standard error over rows; NaN for one row).
    """
    table = of_hybrid_rows(table)
    length = table["kind"].eq("prefix").groupby([table[name] for name in _ROW]).transform("sum")
    offset = table["position"] - length
    table = table.assign(offset=offset)[(offset >= -before) & (offset < after)]
    if table.empty:
        raise ConfigError(f"before = {before} and after = {after} leave no token; give at least one above 0")
    groups = table.groupby(["offset", "kind"])["entropy"]
    return groups.agg(tokens="size", entropy="mean", error="sem").reset_index()


def hybrid_rows(table: pd.DataFrame, width: int = 4) -> pd.DataFrame:
    """One line a hybrid row: how long and how uncertain its prefix was, what happened at the seam, and its reward.

    Args:
        width: tokens on each side of the seam, or as many as there are.

    Returns:
        run, step, problem, row, prefix_tokens, prefix_entropy and continuation_entropy (means, nats), before and after (mean
        entropy of the last ``width`` prefix and first ``width`` continuation tokens, nats), jump (after - before, nats),
        score (of the row, 0 or 1).
    """
    if width < 1:
        raise ConfigError(f"width = {width} leaves no token at the seam; give at least 1")
    table = of_hybrid_rows(table).sort_values([*_ROW, "position"])
    parts = {kind: table[table["kind"] == kind].groupby(_ROW) for kind in ("prefix", "continuation")}
    out = parts["prefix"].agg(
        prefix_tokens=("entropy", "size"), prefix_entropy=("entropy", "mean"), score=("score", "first")
    )
    out["continuation_entropy"] = parts["continuation"]["entropy"].mean()
    out["before"] = parts["prefix"].tail(width).groupby(_ROW)["entropy"].mean()
    out["after"] = parts["continuation"].head(width).groupby(_ROW)["entropy"].mean()
    out["jump"] = out["after"] - out["before"]
    columns = ["prefix_tokens", "prefix_entropy", "continuation_entropy", "before", "after", "jump", "score"]
    return out[columns].reset_index()


def relative_position(table: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Entropy against the place within a row's prefix, continuation, response or demonstration, each from 0 to 1.

    Returns:
        kind, bin (0 to bins - 1), place (middle of the bin, 0 to 1), tokens, entropy (mean, nats).
    """
    if bins < 1:
        raise ConfigError(f"bins = {bins} leaves nothing to average in; give at least 1")
    table = checked(table)
    groups = table.groupby([*_ROW, "kind"])["position"]
    place = (table["position"] - groups.transform("min") + 0.5) / groups.transform("size")
    number = np.minimum((place * bins).astype(int), bins - 1)
    out = table.assign(bin=number).groupby(["kind", "bin"])["entropy"].agg(tokens="size", entropy="mean").reset_index()
    out.insert(2, "place", (out["bin"] + 0.5) / bins)
    return out


# ---------------------------------------------------------------------- which tokens


def forking_tokens(
    table: pd.DataFrame, *, least: int = 5, most: int = 20, context: int = 4, examples: int = 3
) -> pd.DataFrame:
    """Tokens at whose places the policy was least sure: where a response forks (arXiv 2506.01939).

    Args:
        least: occurrences that a token must have, so that one odd place does not lead the list.
        most: tokens given.
        context: tokens shown before an example, and half as many after it.
        examples: places shown of each token, those of the highest entropy.

    Returns:
        token_id, text, tokens (occurrences), entropy (mean, nats), highest (nats), kept (share that the clip keeps),
        contexts (list of str; the token itself is in ⟦⟧). Highest mean first, ties by id. Empty if no token occurs
        often enough.
    """
    table = checked(table, columns=["token_id", "text", "kept"]).sort_values([*_ROW, "position"]).reset_index(drop=True)
    out = table.groupby("token_id").agg(
        text=("text", "first"), tokens=("entropy", "size"), entropy=("entropy", "mean"), highest=("entropy", "max"),
        kept=("kept", "mean"),
    ).reset_index()  # fmt: skip
    out = out[out["tokens"] >= least].sort_values(["entropy", "token_id"], ascending=[False, True]).head(most)
    texts = table["text"].to_numpy(object)
    row_of = table.groupby(_ROW, sort=False).ngroup().to_numpy()
    shown = []
    for token in out["token_id"]:
        places = (
            table[table["token_id"] == token].sort_values("entropy", ascending=False, kind="stable").index[:examples]
        )
        shown.append([_context(texts, row_of, int(place), context) for place in places])
    return out.assign(contexts=pd.Series(shown, index=out.index, dtype=object)).reset_index(drop=True)


def _context(texts: np.ndarray, row_of: np.ndarray, place: int, context: int) -> str:
    start, end = max(0, place - context), min(len(texts), place + 1 + context // 2)
    own = [i for i in range(start, end) if row_of[i] == row_of[place]]
    return "".join(f"⟦{texts[i]}⟧" if i == place else str(texts[i]) for i in own)


def clip_stability(table: pd.DataFrame) -> pd.DataFrame:
    """Whether the clip keeps the same places of a demonstration at two recorded steps.

    Compares prefix tokens and followed demonstrations of the same problem on the places (position and token) that both
    steps recorded.

    Returns:
        run, problem, step_a, step_b, lag (steps), positions (compared), kept_a, kept_b (counts), jaccard (places kept at both
        steps / at either; NaN where neither keeps any), chance (the Jaccard index that sets of these sizes, chosen
        independently, would have in expectation, to first order).
    """
    table = _only(table, ("prefix", "demonstration"), "tokens of demonstrations", ["token_id", "kept"])
    parts = []
    for (run, problem), own in table.groupby(["run", "problem"], sort=True):
        # Two rows may hold the same place at one step (a followed demonstration that is also trained): one is enough.
        # The token is part of the place: a problem may have several demonstrations.
        place = ["position", "token_id"]
        kept = own.pivot_table(index="step", columns=place, values="kept", aggfunc="first", sort=True)
        seen = kept.notna().to_numpy().astype(float)
        keeps = kept.astype(float).fillna(0.0).to_numpy()
        steps = kept.index.to_numpy()
        a, b = np.triu_indices(len(steps), 1)
        common, both = (seen @ seen.T)[a, b], (keeps @ keeps.T)[a, b]
        kept_a, kept_b = (keeps @ seen.T)[a, b], (seen @ keeps.T)[a, b]
        when = {"step_a": steps[a], "step_b": steps[b], "lag": steps[b] - steps[a]}
        counts = {"positions": common.astype(int), "kept_a": kept_a.astype(int), "kept_b": kept_b.astype(int)}
        jaccard, by_chance = _ratio(both, kept_a + kept_b - both), kept_a * kept_b
        chance = _ratio(by_chance, (kept_a + kept_b) * common - by_chance)
        named = {"run": run, "problem": problem, **when, **counts, "jaccard": jaccard, "chance": chance}
        parts.append(pd.DataFrame(named))
    out = pd.concat(parts, ignore_index=True)
    out = out[out["positions"] > 0].reset_index(drop=True)
    if out.empty:
        raise RunError(
            "no demonstration was recorded at two steps; set records.followed above 0 and record at least two steps"
        )
    return out


def _ratio(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    return np.divide(up, down, out=np.full_like(up, np.nan, dtype=float), where=down > 0)


def reward_by_prefix_entropy(table: pd.DataFrame, bins: int = 4) -> pd.DataFrame:
    """How often hybrid rows are right, by the mean entropy of their prefix, in bins of nearly equal size.

    Returns:
        bin (0: the most certain prefixes), low and high (entropies of the bin, nats), rows, entropy (mean, nats),
        prefix_tokens (mean), score (mean, 0 to 1), error (standard error of the mean score; NaN for one row).

    Raises:
        RunError: no hybrid row has a score.
    """
    if bins < 1:
        raise ConfigError(f"bins = {bins} leaves nothing to average in; give at least 1")
    rows = hybrid_rows(table).dropna(subset=["score"]).sort_values("prefix_entropy", kind="stable")
    if rows.empty:
        raise RunError("no hybrid row of the token table has a score; take the table of a training run")
    sizes = [len(part) for part in np.array_split(np.arange(len(rows)), min(bins, len(rows)))]
    parts = rows.assign(bin=np.repeat(np.arange(len(sizes)), sizes)).groupby("bin")
    return parts.agg(
        low=("prefix_entropy", "min"), high=("prefix_entropy", "max"), rows=("score", "size"), entropy=("prefix_entropy", "mean"),
        prefix_tokens=("prefix_tokens", "mean"), score=("score", "mean"), error=("score", "sem"),
    ).reset_index()  # fmt: skip


# ---------------------------------------------------------------------- collapse


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """What a policy gave up in entropy for what it won in reward, from the first to the last measurement."""

    start: float
    """Entropy at first, nats."""
    end: float
    """Entropy at last, nats."""
    half_time: float
    """Steps until the first measurement at half of the start or below; NaN: never."""
    half_resolution: float
    """Steps from the measurement before it: the entropy fell to its half somewhere among them."""
    lost: float
    """start - end, nats; negative if entropy rose."""
    gained: float
    """Reward at last - at first, shares of 1."""
    per_nat: float
    """gained / lost; NaN unless entropy was lost."""


def collapse(steps: Sequence[float], entropy: Sequence[float], reward: Sequence[float]) -> Collapse:
    """Collapse diagnostics of a curve; of a run: ``collapse(e.global_step, e.entropy, e.avg)`` with its evaluations.

    Args:
        steps: (n,) ascending.
        entropy: (n,) nats.
        reward: (n,) shares of 1.

    Raises:
        RunError: fewer than two measurements.
        ConfigError: lengths that differ, steps that do not ascend, or NaN.
    """
    x, h, r = (np.asarray(values, dtype=float) for values in (steps, entropy, reward))
    if not len(x) == len(h) == len(r):
        raise ConfigError(f"{len(x)} steps, {len(h)} entropies and {len(r)} rewards; give one of each a measurement")
    if len(x) < 2:
        raise RunError(
            f"{len(x)} measurement{'s' if len(x) != 1 else ''} of entropy and reward; a change needs at least 2"
        )
    for name, values in (("steps", x), ("entropy", h), ("reward", r)):
        if np.isnan(values).any():
            raise ConfigError(f"{name} is NaN at measurement {int(np.flatnonzero(np.isnan(values))[0])}; leave it out")
    if (np.diff(x) <= 0).any():
        raise ConfigError("steps do not ascend; sort the measurements and give each step once")
    below = np.flatnonzero(h <= h[0] / 2) if h[0] > 0 else np.empty(0, int)
    at = int(below[0]) if len(below) else None  # the start lies above its half, so there is a measurement before
    lost, gained = float(h[0] - h[-1]), float(r[-1] - r[0])
    return Collapse(
        start=float(h[0]),
        end=float(h[-1]),
        half_time=math.nan if at is None else float(x[at] - x[0]),
        half_resolution=math.nan if at is None else float(x[at] - x[at - 1]),
        lost=lost,
        gained=gained,
        per_nat=gained / lost if lost > 0 else math.nan,
    )


# ---------------------------------------------------------------------- the entropy change of an update


def recorded_change(table: pd.DataFrame) -> pd.DataFrame:
    """What updates did to the entropies of followed demonstrations, against the first-order prediction.

    For a softmax policy p over a vocabulary, whose log-probabilities move by d (arXiv 2505.22617)::

        H(after) - H(before) = -Cov_{a ~ p}(log p(a), d(a)) + O(d^2)

    The entropy falls where tokens that are probable already become more probable. A table holds the probabilities of the k
    tokens most probable before the update, before and after, and the entropy of the whole vocabulary. With r the
    probability of all others, the covariance is::

        sum_k p (log p + H) d + d_rest (-H - sum_k p log p + r H),    d_rest = log(r_after / r)

    which is exact if the others keep their proportions, and nearly so where r is small (``rest``). First order in the
    size of the update: the prediction fails where a step moves a probability by much of itself.

    Returns:
        run, step, problem, position, token_id, text, entropy (before, nats), predicted and observed (change, nats), rest
        (probability outside the k).

    Raises:
        RunError: no followed demonstrations.
    """
    table = checked(table, "followed demonstrations", ["token_id", "text"])
    if "entropy_after" not in table or table["entropy_after"].notna().sum() == 0:
        raise RunError(
            "the token table holds no demonstration measured after an update; train with records.followed above 0"
        )
    own = table[table["entropy_after"].notna()].reset_index(drop=True)
    p = np.stack(own["top_probs"].to_list()).astype(float)
    q = np.stack(own["top_probs_after"].to_list()).astype(float)
    entropy = own["entropy"].to_numpy(float)[:, None]
    smallest = np.finfo(np.float32).tiny
    log_p = np.log(np.maximum(p, smallest))
    change = np.log(np.maximum(q, smallest)) - log_p
    # Float32 probabilities that sum to 1 leave a rest of rounding noise: below it there is nothing to move.
    rest, rest_after = np.maximum(1 - p.sum(1), 0), np.maximum(1 - q.sum(1), 0)
    some = (rest > 1e-6) & (rest_after > 1e-6)
    rest_change = np.where(some, np.log(np.where(some, rest_after, 1) / np.where(some, rest, 1)), 0.0)
    of_rest = -entropy[:, 0] - (p * log_p).sum(1) + rest * entropy[:, 0]
    predicted = -((p * (log_p + entropy) * change).sum(1) + rest_change * of_rest)
    out = own[["run", "step", "problem", "position", "token_id", "text", "entropy"]].astype({"entropy": float})
    observed = own["entropy_after"].to_numpy(float) - entropy[:, 0]
    return out.assign(predicted=predicted, observed=observed, rest=rest)


def advantage_covariance(table: pd.DataFrame, kind: str = "on_policy") -> pd.DataFrame:
    """Covariance of a token's log-probability and its advantage at each step (arXiv 2505.22617).

    Under policy gradient with step size eta an update moves the log-probability of a sampled token in proportion to its
    advantage, so entropy is predicted to fall by about eta times this covariance. Over tokens that the policy sampled; it
    has the sign and the course of the entropy change, not its scale: AdamW, sharing of weights between places and clipping
    are outside of the prediction.

    Returns:
        step, tokens, covariance (nats; population covariance over the step's tokens).
    """
    table = _only(table, (kind,), f"{kind} tokens", ["logp", "advantage"]).dropna(subset=["advantage"])
    if table.empty:
        raise RunError(f"no {kind} token of the table has an advantage; take the table of a run that samples")
    groups = table.groupby("step")
    covariance = groups[["logp", "advantage"]].apply(
        lambda part: float(
            np.mean((part["logp"] - part["logp"].mean()) * (part["advantage"] - part["advantage"].mean()))
        )
    )
    return pd.DataFrame({"tokens": groups.size(), "covariance": covariance}).reset_index()
