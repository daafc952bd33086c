"""Claims: what the file may say, what it does say, and verdicts worked out by hand."""

from __future__ import annotations

import pytest
import yaml

from prefix_rft_lab import claims, sweeps
from prefix_rft_lab.config import ConfigError

PLAIN = {
    "id": "a",
    "claim": "A is higher than B.",
    "source": "here",
    "paper": "2 against 1",
    "test": "higher",
    "of": "methods / prefix_rft",
    "than": "methods / rft",
    "measure": "avg",
    "smallest": 0.02,
}


def write(path, *entries):
    path.write_text(yaml.safe_dump(list(entries), allow_unicode=True), encoding="utf-8")
    return path


# ---------------------------------------------------------------------- the file


def test_every_arm_that_the_kit_claims_something_of_is_planned():
    plans = {name: sweeps.plan(name, "full") for name in sweeps.names() if name != "tuning"}
    for claim in claims.load():
        for sweep, arm in claim.sides:
            seeds = [planned.config.seed for planned in plans[sweep].runs if planned.label == arm]
            assert seeds == ([0] if arm == "base" else [0, 1, 2, 3, 4]), (claim.id, sweep, arm)


def test_claims_of_a_sweep():
    ids = [claim.id for claim in claims.of_sweep("demonstration_fraction")]
    assert ids == ["tenth_of_demonstrations", "hundredth_of_demonstrations_over_rft"]
    with pytest.raises(ConfigError, match="sweep = 'nothing' is in no claim"):
        claims.of_sweep("nothing")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mesure": "avg"}, r"claim 'a': mesure = 'avg' is not a field of a claim; did you mean measure or source\?"),
        ({"smallest": None}, r"claim 'a': smallest = None does not fit test = 'higher'"),
        ({"smallest": float("nan")}, r"claim 'a': smallest = nan cannot be used"),
        ({"smallest": 0}, r"claim 'a': smallest = 0 cannot be used"),
        ({"range": [0, 1]}, r"claim 'a': range = \(0.0, 1.0\) does not fit test = 'higher'"),
        ({"test": "within", "smallest": None, "range": [2, 1]}, r"range = \(2.0, 1.0\) is empty"),
        ({"test": "within", "range": [1, 2]}, r"smallest = 0.02 does not fit test = 'within'"),
        ({"test": "no_worse", "than": None}, r"than is missing"),
        ({"measure": "metrics.reward"}, r"at = None does not fit measure = 'metrics.reward'"),
        ({"at": "last"}, r"at = 'last' does not fit measure = 'avg'"),
        ({"per": "metrics.reward"}, r"per = 'metrics.reward' does not fit measure = 'avg'"),
        ({"measure": "<script>"}, r"measure = '<script>' cannot be used"),
        ({"of": "methods"}, r"of = 'methods' cannot be used"),
        ({"test": "better"}, r"test = 'better' cannot be used"),
        ({"claim": ""}, r"claim = '' cannot be used"),
    ],
)
def test_a_claim_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        claims.load(write(tmp_path / "claims.yaml", PLAIN | changes))
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_no_claims_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a file"):
        claims.load(tmp_path / "none.yaml")
    for text in ("", "a: 1", "- 1", "[]"):
        (tmp_path / "claims.yaml").write_text(text)
        with pytest.raises(ConfigError, match="holds no list of claims"):
            claims.load(tmp_path / "claims.yaml")
    (tmp_path / "claims.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        claims.load(tmp_path / "claims.yaml")
    with pytest.raises(ConfigError, match="claim 'a': id = 'a' comes twice"):
        claims.load(write(tmp_path / "claims.yaml", PLAIN, PLAIN))
    with pytest.raises(ConfigError, match="claim 1: id is missing"):
        claims.load(write(tmp_path / "claims.yaml", {key: PLAIN[key] for key in PLAIN if key != "id"}))
