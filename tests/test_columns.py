"""One schema of recorded columns: what others read of it."""

from __future__ import annotations

import pytest

from prefix_rft_lab import stats, sweeps
from prefix_rft_lab.core import columns
from prefix_rft_lab.training import measure


@pytest.mark.parametrize(
    ("name", "source", "axis"),
    [
        ("avg", "evaluations", "avg@8 (share of samples solved)"),
        ("hard.pass", "evaluations", "pass@8 (share of problems solved in 8 tries)"),
        ("levels.easy.tokens", "evaluations", "response length (tokens)"),
        ("grad_norm", "metrics", "global L2 norm (before clipping)"),
        ("grad_norm_prefix", "metrics", "L2 norm"),
        ("entropy_on_policy", "metrics", "entropy (nats)"),
        ("entropy", "evaluations", "entropy (nats)"),
        ("a user's {own}", "metrics", "a user's {own}"),
    ],
)
def test_axes_name_the_column_and_its_unit(name: str, source: columns.Source, axis: str) -> None:
    assert columns.column_of(name, source).axis(8) == axis


def test_statistics_sweeps_and_records_read_the_same_schema() -> None:
    assert stats.METRIC_NAMES["avg"] == "avg@k" and list(stats.METRIC_NAMES) == list(sweeps.METRICS)
    assert measure.METRICS["kept_threshold"] == "lowest entropy of a kept prefix token, nats"
    assert list(measure.METRICS) == list(columns.METRICS)
    assert {"nll_prefix", "tokens_on_policy", "loss"} <= set(columns.names("metrics"))
    assert not any("<" in name for name in columns.names("metrics"))
    for column in (*columns.METRICS.values(), *columns.EVALUATIONS.values()):
        assert column.meaning and format(7 if column.format == "d" else 0.5, column.format)
