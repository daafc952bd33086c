"""What is measured of demonstrations before training: answers, lengths and steps."""

from __future__ import annotations

import pytest

from prefix_rft_lab import demonstrations
from prefix_rft_lab.config import ConfigError


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7+3=10\n10#4:10+4=14:14*4=18\n\\boxed{18}", [True, True]),
        ("7+3=11\n11#4:11+4=15:15*4=3\n\\boxed{3}", [False, True]),  # the second follows from the slip
        ("7+3=10\n10#4=18\n\\boxed{18}", [True, True]),
        ("7+3=10\n10#4:10+4=14:14*4=17\n\\boxed{17}", [True, False]),
        ("=10\n=18\n\\boxed{18}", [True, True]),
        ("=11\n=3\n\\boxed{18}", [False, True]),
        ("so 7+3=10\ncheck 7+3=10\nthen 10#4:10+4=14:14*4=18\ncheck 10#4=18\n\\boxed{18}", [True] * 4),
        ("\\boxed{18}", []),
        ("=10\n=18\n=3", [True, True]),  # no third operation that it could be the result of
        ("", []),
    ],
)
def test_steps_are_judged_by_what_came_before(text, steps):
    assert demonstrations.checked_steps("7+3#4", text) == steps


def test_quality_is_what_the_authors_are_declared_to_be(small, tmp_path):
    tables = {
        expert: demonstrations.read(small(**{"data.expert": expert, "data.train_problems": 60}), tmp_path)
        for expert in ("thorough", "terse", "verbose", "noisy30", "wrong", "self")
    }
    assert list(tmp_path.iterdir()) == [], "reading leaves nothing"
    right = {name: table["right"].mean() for name, table in tables.items()}
    assert right["thorough"] == right["terse"] == right["verbose"] == 1
    assert right["wrong"] == 0 < right["noisy30"] < 0.8
    steps = {name: table["right_steps"].sum() / table["steps"].sum() for name, table in tables.items()}
    assert steps["thorough"] == steps["terse"] == steps["verbose"] == steps["wrong"] == 1
    assert 0.55 < steps["noisy30"] < 0.85
    assert right["self"] < 0.7 and steps["self"] < 0.9
    length = {name: table["tokens"].mean() for name, table in tables.items()}
    assert length["terse"] < length["thorough"] < length["verbose"]


def test_a_run_that_is_not_there_is_named(small, tmp_path):
    with pytest.raises(ConfigError, match=r"data.expert = 'run:nobody' is no finished run"):
        demonstrations.read(small(**{"data.expert": "run:nobody"}), tmp_path)
