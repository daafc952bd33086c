"""What the paper says, sentence by sentence, as tests on finished runs.

``assets/claims.yaml`` holds the claims: what is compared with what (arms of the kit's sweeps), by which measure, in which
direction, and the smallest effect that matters. They were written before the runs that judge them.

**Estimate.** The effect is a difference of means in the claimed direction (or a value, where nothing is compared). Its
variance has one part for the seeds of each trained side, s² / n over the means of its runs, and one for the problems, the
variance of the paired difference over P problems / P (:func:`prefix_rft_lab.stats.estimate`). Its interval is Student's t
with Satterthwaite's degrees of freedom: with a handful of seeds a bootstrap over them is too narrow, the more so at the
levels needed here.

**Correction.** Bonferroni over all claims of the file, whether or not their runs exist: each interval has level
1 - 0.05 / (number of claims), so that all intervals together cover with at least 95%, and a verdict is the same wherever it
is printed and whatever else was looked at. The plain 95% interval, and the verdict that it alone would give, stand beside
it (``alone``).

**Verdict**, from the corrected interval [low, high]:

    test             supported                          contradicted
    higher, lower    low > 0 and effect >= smallest     high < smallest: the effect that matters is excluded
    no_worse         low > -smallest                    high < -smallest
    within           [low, high] inside range           [low, high] outside range

and *undecided* in every other case, and wherever a trained side has one seed; *missing* if there is nothing to judge, with
the command that makes the runs. A diverged run counts with what it scored. Claims are never judged on runs that the plan
does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefix_rft_lab.config import ConfigError, _sentence

if TYPE_CHECKING:
    pass

FILE = Path(__file__).parent / "assets" / "claims.yaml"
"""The claims of the kit."""

FINAL = ("avg", "pass", "greedy", "tokens")
"""Measures of the final evaluation: a number a problem and seed."""

_SIDE = r"^[\w.-]+ / \S.*$"

Outcome = Literal["supported", "contradicted", "undecided", "missing"]


class Claim(BaseModel):
    """A sentence of a paper and how it is tested."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    """Short name, unique in its file."""
    claim: str = Field(min_length=1)
    """The sentence."""
    source: str = Field(min_length=1)
    """Who says it, and where."""
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
    path = FILE if path is None else Path(path)
    if not path.is_file():
        raise ConfigError(f"claims = {str(path)!r} is not a file; give the path of a YAML file")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"claims = {str(path)!r} is not valid YAML ({str(error).splitlines()[0]}); correct it"
        ) from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"claims = {str(path)!r} holds no list of claims; write '- id: ...' and so on")
    claims: list[Claim] = []
    for number, entry in enumerate(entries, start=1):
        where = f"claim {entry.get('id', number)!r}"
        try:
            claim = Claim.model_validate(entry)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_sentence(Claim, error, 'a claim')}") from None
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
