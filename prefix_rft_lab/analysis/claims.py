"""What the paper says, sentence by sentence, as tests on finished runs.

``assets/claims.yaml`` holds the claims: what is compared with what (arms of the kit's sweeps), by which measure, in which
direction, and the smallest effect that matters; and whether it was written before or after runs of its arms were seen.

**Estimate.** The effect is a difference of means in the claimed direction (or a value, where nothing is compared). Its
variance has one part for the seeds of each trained side, s² / n over the means of its runs, and one for the problems, the
variance of the paired difference over P problems / P (:func:`prefix_rft_lab.runs.summary.estimate`). Its interval is Student's t
with Satterthwaite's degrees of freedom: with a handful of seeds a bootstrap over them is too narrow, the more so at the
levels needed here.

**Correction.** Bonferroni over all claims of the file, whether or not their runs exist: each interval has level
1 - 0.05 / (number of claims), so that all intervals together cover with at least 95%, and a verdict is the same wherever it
is printed and whatever else was looked at. The plain 95% interval, and the verdict that it alone would give, are beside
it (``alone``).

**Own learning rates.** A claim is judged only if every arm that it compares was tuned like the others: an arm that takes
over another's learning rate (:func:`prefix_rft_lab.experiments.sweeps.has_own_rate`) may be worse for that alone.

**Verdict**, from the corrected interval [low, high]:

    test             supported                          contradicted
    higher, lower    low > 0 and effect >= smallest     high < smallest: the effect that matters is excluded
    no_worse         low > -smallest                    high < -smallest
    within           [low, high] inside range           [low, high] outside range

and *undecided* in every other case, and wherever a trained side has one seed; *not judged* where an arm has no learning
rate of its own; *missing* if there is nothing to judge, with
the command that makes the runs. A diverged run counts as solving nothing. Claims are never judged on runs that the plan
does not hold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from prefix_rft_lab.core.config import ConfigError, Section, read_yaml, validation_sentence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from prefix_rft_lab.experiments.sweeps import Plan
    from prefix_rft_lab.runs.run import Run

FILE = Path(__file__).resolve().parents[1] / "assets" / "claims.yaml"
"""The claims of the kit."""

FINAL = ("avg", "pass", "greedy", "tokens")
"""Measures of the final evaluation: one number per problem and seed."""

_SIDE = r"^[\w.-]+ / \S.*$"

Outcome = Literal["supported", "contradicted", "undecided", "not judged", "missing"]


class Claim(Section):
    """A sentence of a paper and how it is tested."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    """Short name, unique in its file."""
    claim: str = Field(min_length=1)
    """The sentence."""
    source: str = Field(min_length=1)
    """Who says it, and where."""
    written: Literal["before", "after"]
    """Whether it was written before the runs that judge it, or after runs of its arms had been seen."""
    paper: str = Field(min_length=1)
    """The figure given there, as text."""
    test: Literal["higher", "lower", "no_worse", "within"]
    """What is tested of ``of`` (against ``than``, if given): higher or lower by ``smallest``, lower by less than
    ``smallest``, or within ``range``."""
    of: str = Field(pattern=_SIDE)
    """``<sweep> / <arm>``, the arm as the plan of the sweep labels its groups."""
    than: str | None = Field(None, pattern=_SIDE)
    """What it is compared with; nothing for a claim on a value."""
    measure: str = Field(pattern=r"^(avg|pass|greedy|tokens|(metrics|evaluations)\.[\w.]+)$")
    """``avg``, ``pass``, ``greedy`` or ``tokens`` of the evaluation ``split``; or a column of the ``metrics`` or
    ``evaluations`` of a run, as ``metrics.prefix_share``."""
    split: str = Field("test", min_length=1)
    """Evaluation of the finished run; ``many`` is the one with many samples."""
    at: Literal["mean", "last", "decline"] | None = None
    """What of a column makes a run's number: its mean over training, its last value, or the mean of its first tenth minus
    that of its last tenth."""
    per: str | None = Field(None, pattern=r"^(metrics|evaluations)\.[\w.]+$")
    """Column that the measure is divided by, each read as ``at`` says."""
    smallest: float | None = Field(None, gt=0)
    """The smallest difference that matters, in units of the measure."""
    range: tuple[float, float] | None = None
    """Lowest and highest value of ``within``."""
    reading: str = ""
    """How the sentence was turned into this test, where that is not plain."""

    @property
    def described(self) -> str:
        """What is claimed and how it is tested, as a few lines of text."""
        against = f" than {self.than}" if self.than else ""
        asked = f"{self.range[0]:g} to {self.range[1]:g}" if self.range else f"{self.smallest:g}"
        tested = f"  {self.measure} of {self.of} {self.test}{against}, {asked}. {self.reading}".rstrip()
        return f"{self.id}\n  {self.claim}\n  {self.source}: {self.paper}\n{tested}"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.test == "within") != (self.range is not None):
            raise ValueError(
                f"range = {self.range} does not fit test = {self.test!r}; give it for 'within' and only there"
            )
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range = {self.range} is empty; give the lower end first")
        if (self.test == "within") != (self.smallest is None):
            raise ValueError(
                f"smallest = {self.smallest} does not fit test = {self.test!r}; 'within' takes range instead"
            )
        if self.test == "no_worse" and self.than is None:
            raise ValueError("than is missing; test = 'no_worse' compares with something")
        if (self.measure in FINAL) != (self.at is None):
            raise ValueError(
                f"at = {self.at!r} does not fit measure = {self.measure!r}; columns of metrics and evaluations need it, "
                "final scores don't"
            )
        if self.per is not None and self.measure in FINAL:
            raise ValueError(f"per = {self.per!r} does not fit measure = {self.measure!r}; it divides recorded columns")
        return self

    @property
    def sides(self) -> list[tuple[str, str]]:
        """(sweep, arm) of what is compared."""
        return [(sweep, arm) for side in (self.of, self.than) if side for sweep, _, arm in [side.partition(" / ")]]


def load(path: str | Path | None = None) -> list[Claim]:
    """The claims of a YAML file, by default those of the kit.

    Raises:
        ConfigError: no such file, or a claim that cannot be used; the sentence names the claim, the field and the remedy.
    """
    path = FILE if path is None else path
    entries = read_yaml(path, "claims")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"claims = {str(path)!r} holds no list of claims; write '- id: ...' and so on")
    claims: list[Claim] = []
    for number, entry in enumerate(entries, start=1):
        where = f"claim {entry.get('id', number)!r}"
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            raise ConfigError(f"{where}: {validation_sentence(Claim, error, 'claim')}") from None
        if claim.id in {other.id for other in claims}:
            raise ConfigError(f"{where}: id = {claim.id!r} comes twice; give each claim a name of its own")
        claims.append(claim)
    return claims


def of_sweep(sweep: str, claims: Sequence[Claim] | None = None) -> list[Claim]:
    """The claims that compare arms of a sweep, by default of the kit's.

    Raises:
        ConfigError: there is none.
    """
    chosen = [claim for claim in (load() if claims is None else claims) if sweep in dict(claim.sides)]
    if not chosen:
        raise ConfigError(f"sweep = {sweep!r} is in no claim; see prefix-rft claims --list")
    return chosen


# ---------------------------------------------------------------------- verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the runs say of a claim; effects are in its direction (positive: as claimed)."""

    claim: Claim
    verdict: Outcome
    effect: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    """Interval corrected for all claims."""
    alone_low: float = float("nan")
    alone_high: float = float("nan")
    """Plain 95% interval."""
    alone: Outcome = "missing"
    """The verdict by the plain interval: what it would be, were this the only claim."""
    seeds: str = ""
    """Runs of each side, e.g. ``5 v 5``."""
    fewest: int = 0
    """Seeds of the trained side that has fewest."""
    problems: int = 0
    """Problems of the evaluation; 0 for recorded columns."""
    notes: tuple[str, ...] = ()
    """What to know before quoting it: missing seeds, diverged runs, several versions of the code."""

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.verdict in ("missing", "not judged"):
            return f"{self.claim.claim[:-1]}: {self.verdict}. {' '.join(self.notes)}"
        counted = f"{self.seeds} seeds" + (f", {self.problems} problems" if self.problems else "")
        return " ".join(
            [
                f"{self.claim.claim[:-1]}: {self.verdict}. {_asked(self.claim)}, here {_shown(self)} ({counted}).",
                *self.notes,
            ]
        )


def decide(claim: Claim, effect: float, low: float, high: float) -> Outcome:
    """The verdict of an effect and its interval; see the rule in the module's docstring. NaN is undecided."""
    if not (low <= effect <= high):
        return "undecided"
    if claim.range is not None:
        lowest, highest = claim.range
        if low >= lowest - _EPS and high <= highest + _EPS:
            return "supported"
        return "contradicted" if high < lowest - _EPS or low > highest + _EPS else "undecided"
    assert claim.smallest is not None
    if claim.test == "no_worse":
        if low > -claim.smallest + _EPS:
            return "supported"
        return "contradicted" if high < -claim.smallest - _EPS else "undecided"
    if low > _EPS and effect >= claim.smallest - _EPS:
        return "supported"
    return "contradicted" if high < claim.smallest - _EPS else "undecided"


_EPS = 1e-12
"""Shares of small counts are not exact in binary: 0.02 and 0.04 - 0.02 are one number."""

Results = Mapping[str, "tuple[Plan, Sequence[Run]]"]
"""Name of a sweep -> what was planned and the runs there are; one run may be of several sweeps."""


def judge(claims: Sequence[Claim], results: Results, *, tested: int | None = None) -> list[Verdict]:
    """A verdict on each claim.

    Args:
        results: a sweep that is not in it is planned for the profile of the others, and judged by their runs as far as
            they are its own too (sweeps share runs).
        tested: claims that intervals are corrected for; those of the kit's file if not given.

    Raises:
        ConfigError: results of several profiles, or one run in two folders.
    """
    found = _pool(results)
    plans = {name: plan for name, (plan, _) in results.items()}
    profiles = {plan.profile for plan in plans.values()}
    if len(profiles) > 1:
        raise ConfigError(
            f"profile = {' and '.join(map(str, profiles))} among the results; judge one profile at a time"
        )
    count = len(load()) if tested is None else tested
    return [_verdict(claim, plans, next(iter(profiles), "full"), found, count) for claim in claims]


def results(folder: str | Path, profile: str) -> dict[str, tuple[Plan, list[Run]]]:
    """The sweeps that the kit's claims speak of, planned for a profile, with their finished runs below a folder.

    Raises:
        ConfigError: an unknown profile, or no finished run.
    """
    from prefix_rft_lab.experiments import sweeps
    from prefix_rft_lab.runs.run import load_all

    plans = {name: sweeps.plan(name, profile) for name in dict.fromkeys(s for c in load() for s, _ in c.sides)}
    own = {(run.config.hash(), run.seed): run for run in load_all(folder)}
    return {
        name: (plan, [own[key] for key in ((c.hash(), c.seed) for c in plan.configs) if key in own])
        for name, plan in plans.items()
    }


def _pool(results: Results) -> dict[tuple[str, int], Run]:
    """Every finished run once, by (config hash, seed), whichever sweeps it came with."""
    found: dict[tuple[str, int], Run] = {}
    for _, runs in results.values():
        for run in runs:
            other = found.setdefault((run.config.hash(), run.seed), run)
            if other.path.resolve() != run.path.resolve():
                raise ConfigError(
                    f"run = {run.path.name!r} comes from two folders ({str(other.path.parent)!r} and "
                    f"{str(run.path.parent)!r}); give the runs of one"
                )
    return {key: run for key, run in found.items() if run.done}


class _Missing(Exception):
    """A claim that has nothing to judge it by, and why, as a sentence."""


def _verdict(
    claim: Claim, plans: dict[str, Plan], profile: str | None, found: Mapping[tuple[str, int], Run], tested: int
) -> Verdict:
    from prefix_rft_lab.runs import summary

    if borrowed := [side for side in claim.sides if not has_own_rates(*side, plans, profile)]:
        arms = " and ".join(dict.fromkeys(repr(arm) for _, arm in borrowed))
        why = (
            f"Borrowed learning rate: {arms} of the sweep was not tuned itself; declare it in a tuning sweep, run prefix-rft "
            "sweep tuning_parts --profile full, then scripts/choose_tuned.py."
        )
        return Verdict(claim=claim, verdict="not judged", alone="not judged", notes=(why,))
    try:
        sides = [_runs_of(sweep, arm, plans, profile, found) for sweep, arm in claim.sides]
        used, notes = [runs for runs, _ in sides], [note for _, notes in sides for note in notes]
        used, tables, more = _measured(claim, used)
    except _Missing as reason:
        return Verdict(claim=claim, verdict="missing", notes=(str(reason),))
    signed = [-table for table in tables] if claim.test == "lower" else tables
    estimate = summary.estimate(*signed, bounds=_bounds(claim))
    low, high = estimate.interval(1 - 0.05 / tested)
    alone_low, alone_high = estimate.interval()
    fewest = min((len(runs) for runs in used if runs[0].method != "base"), default=3)
    few = fewest == 1
    everyone = [run for runs in used for run in runs]
    if few:
        notes.append("A trained side has one seed, which says nothing of others: not decided.")
    notes += more + _cautions(everyone)
    return Verdict(
        claim=claim,
        verdict="undecided" if few else decide(claim, estimate.mean, low, high),
        effect=estimate.mean,
        low=low,
        high=high,
        alone_low=alone_low,
        alone_high=alone_high,
        alone="undecided" if few else decide(claim, estimate.mean, alone_low, alone_high),
        seeds=" v ".join(str(len(runs)) for runs in used),
        fewest=fewest,
        problems=tables[0].shape[1] if claim.measure in FINAL else 0,
        notes=tuple(notes),
    )


def has_own_rates(sweep: str, arm: str, plans: dict[str, Plan], profile: str | None) -> bool:
    """Whether an arm of a sweep was tuned itself; one that is not planned borrows nothing."""
    from prefix_rft_lab.experiments import sweeps

    if sweep not in plans:
        plans[sweep] = sweeps.plan(sweep, profile)
    plan = plans[sweep]
    return all(
        plan.sweep.tuned and sweeps.has_own_rate(run.config.method, {**plan.sweep.arms[run.arm], **run.values})
        for run in plan.runs
        if run.label == arm
    )


def _runs_of(
    sweep: str, arm: str, plans: dict[str, Plan], profile: str | None, found: Mapping[tuple[str, int], Run]
) -> tuple[list[Run], list[str]]:
    """The finished runs that the plan of a sweep has for an arm, seeds ascending, and what is short."""
    from prefix_rft_lab.experiments import sweeps

    if sweep not in plans:
        plans[sweep] = sweeps.plan(sweep, profile)
    # Where `prefix-rft claims` and `prefix-rft reproduce` look for runs.
    size = f" --profile {profile} --out reproduction/{profile}/runs" if profile else ""
    planned = [run.config for run in plans[sweep].runs if run.label == arm]
    if not planned:
        raise _Missing(f"The profile {profile} of sweep {sweep!r} has no arm {arm!r}; judge the profile full.")
    runs = [found[key] for key in sorted((c.hash(), c.seed) for c in planned) if key in found]
    if not runs:
        raise _Missing(f"No finished run of {arm!r}; make them by prefix-rft sweep {sweep}{size}.")
    if len(runs) == len(planned):
        return runs, []
    return runs, [
        f"{len(runs)} of {len(planned)} planned runs of {arm!r} are finished (prefix-rft sweep {sweep}{size})."
    ]


def _measured(claim: Claim, sides: list[list[Run]]) -> tuple[list[list[Run]], list[np.ndarray], list[str]]:
    """The runs that have the measure, their (seeds, problems) tables, and what was left out."""
    import pandas as pd

    from prefix_rft_lab.analysis import stats
    from prefix_rft_lab.core.errors import RunError

    notes: list[str] = []
    if claim.measure in FINAL:
        path = f"evaluation/{claim.split}.parquet"
        have = [[run.path for run in runs if (run.path / path).is_file()] for runs in sides]
        how = "; draw them by evaluation_run.sample_many" if claim.split == "many" else ""
        sides, notes = _having(sides, have, f"an evaluation of {claim.split!r}", how)
        side_of = {run.path: str(number) for number, runs in enumerate(sides) for run in runs}
        try:
            scores = stats.scores(
                list(itertools.chain(*sides)), claim.split, label=lambda run: side_of[run.path]
            ).query("metric == @claim.measure")
        except (ConfigError, RunError) as error:
            raise _Missing(f"Not evaluated alike: {error}.") from None
        values = scores.pivot(index=["group", "seed"], columns="problem", values="value")
        what = f"a value of {claim.measure!r}"
    else:
        numbers = {(str(i), run.seed): _number(claim, run) for i, runs in enumerate(sides) for run in runs}
        values, what = pd.Series(numbers).to_frame(), f"recorded {claim.measure!r}"
    values = values.dropna(how="all")  # a diverged run has no lengths
    have = [[run.path for run in runs if (str(i), run.seed) in values.index] for i, runs in enumerate(sides)]
    sides, more = _having(sides, have, what)
    tables = [values.loc[[(str(i), run.seed) for run in runs]].to_numpy(float) for i, runs in enumerate(sides)]
    return sides, tables, notes + more


def _having(
    sides: list[list[Run]], have: Sequence[Sequence[Path]], what: str, how: str = ""
) -> tuple[list[list[Run]], list[str]]:
    """Each side's runs that have something, by their paths, and a note where that is not all of them."""
    notes = []
    for runs, paths in zip(sides, have, strict=True):
        if not paths:
            raise _Missing(f"No run of {runs[0].title} has {what}{how}.")
        if len(paths) < len(runs):
            notes.append(f"{len(paths)} of {len(runs)} runs of {runs[0].title} have {what}.")
    return [[run for run in runs if run.path in paths] for runs, paths in zip(sides, have, strict=True)], notes


def _number(claim: Claim, run: Run) -> float:
    """What a claim measures of one run's records; NaN where they are missing."""
    value = _reading(run, claim.measure, claim.at)
    if claim.per is None:
        return value
    below = _reading(run, claim.per, claim.at)
    return value / below if below > 0 else float("nan")


def _reading(run: Run, column: str, at: str | None) -> float:
    from prefix_rft_lab.analysis import stats

    source, _, name = column.partition(".")
    frame = stats.seed_curves([run], name, "metrics" if source == "metrics" else "evaluations")
    if frame.empty:
        return float("nan")
    values = frame.iloc[:, 0].to_numpy(float)
    if at == "mean":
        return float(values.mean())
    if at == "last":
        return float(values[-1])
    tenth = max(1, len(values) // 10)
    return float(values[:tenth].mean() - values[-tenth:].mean())


def _cautions(runs: Sequence[Run]) -> list[str]:
    import json

    out = []
    diverged = sum(bool(run.diverged) for run in runs)
    if diverged:
        out.append(f"{diverged} of {len(runs)} runs diverged and count as solving nothing.")
    environments = [run.path / "env.json" for run in runs]
    sources = {json.loads(p.read_text(encoding="utf-8")).get("source") for p in environments if p.is_file()}
    if len(sources) > 1:
        out.append(
            f"The runs were made by {len(sources)} versions of the code: do not quote before training them again."
        )
    return out


def _bounds(claim: Claim) -> tuple[float, float] | None:
    """Lowest and highest score of a problem; as a claim counts it, with its sign."""
    if claim.measure not in ("avg", "pass", "greedy"):
        return None
    return (-1.0, 0.0) if claim.test == "lower" else (0.0, 1.0)


def _asked(claim: Claim) -> str:
    if claim.range is not None:
        return f"Expected {claim.range[0]:g} to {claim.range[1]:g}"
    if claim.test == "no_worse":
        return f"Expected a loss below {claim.smallest:g}"
    return f"Expected at least {claim.smallest:g}"


def _shown(verdict: Verdict) -> str:
    """Effect and corrected interval as text."""
    sign = "+" if verdict.claim.than or verdict.claim.test != "within" else ""
    places = 2 if verdict.claim.measure == "tokens" else 3
    shape = f"{sign}.{places}f"
    if math.isnan(verdict.low):
        return f"{verdict.effect:{shape}} (without spread)"
    if verdict.verdict == "undecided" and verdict.fewest <= 2:  # the interval would span nearly all that is possible
        return f"{verdict.effect:{shape}} ({'one seed' if verdict.fewest == 1 else 'two seeds decide little'})"
    return f"{verdict.effect:{shape}} [{verdict.low:{shape}}, {verdict.high:{shape}}]"


_COLUMNS = (
    *(
        "id",
        "claim",
        "source",
        "written",
        "paper",
        "here",
        "verdict",
        "alone",
        "seeds",
        "problems",
        "effect",
        "low",
        "high",
    ),
    *("alone_low", "alone_high", "test", "smallest", "lowest", "highest", "measure", "notes", "sentence"),
)


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row per verdict: id, claim, source, written, paper, here (effect and corrected interval as text), verdict, alone, seeds,
    problems, effect, low, high, alone_low, alone_high, test, smallest, lowest, highest (of ``range``), measure, notes,
    sentence."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for verdict in verdicts:
        lowest, highest = verdict.claim.range or (float("nan"), float("nan"))
        own = {name: getattr(verdict, name) for name in _COLUMNS if hasattr(verdict, name)}
        own |= {"here": "" if verdict.verdict in ("missing", "not judged") else _shown(verdict)}
        own |= {"lowest": lowest, "highest": highest, "notes": " ".join(verdict.notes)}
        rows.append(verdict.claim.model_dump() | own | {"claim": verdict.claim.claim})
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"smallest": float})


def verdict_table(results: Results, sweep: str | None = None) -> pd.DataFrame:
    """The kit's claims (those of a sweep, if given) with verdicts; columns as :func:`table`.

    Raises:
        ConfigError: as :func:`judge`; a sweep that is in no claim.
    """
    return table(judge(load() if sweep is None else of_sweep(sweep), results))
