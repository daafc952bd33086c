"""Tables for people: the same frame as text, HTML and Markdown."""

import pandas as pd
import pytest

from prefix_rft_lab.core.tables import format_table, markdown_table, show, with_interval

FRAME = pd.DataFrame(
    {
        "method": ["rft", "a|<b>"],
        "seeds": [5, 1],
        "avg@k": [0.5, float("nan")],
        "avg@k_low": [0.25, float("nan")],
        "avg@k_high": [0.75, float("nan")],
        "seconds": [12.3456, float("nan")],
    }
)


def test_intervals_are_joined_and_nan_is_a_dash():
    assert show(FRAME, formats={"seconds": ".0f"}).splitlines() == [
        "method  seeds  avg@k                 seconds",
        "rft     5      0.500 [0.250, 0.750]  12",
        "a|<b>   1      –                     –",
    ]


def test_markdown_and_html_hold_the_same_cells_escaped():
    assert show(FRAME, "md").splitlines() == [
        "| method | seeds | avg@k | seconds |",
        "| --- | --- | --- | --- |",
        "| rft | 5 | 0.500 [0.250, 0.750] | 12.346 |",
        "| a\\|&lt;b&gt; | 1 | – | – |",
    ]
    assert show(FRAME, "html") == (
        "<table><tr><th>method</th><th>seeds</th><th>avg@k</th><th>seconds</th></tr>"
        "<tr><td>rft</td><td>5</td><td>0.500 [0.250, 0.750]</td><td>12.346</td></tr>"
        "<tr><td>a|&lt;b&gt;</td><td>1</td><td>–</td><td>–</td></tr></table>"
    )


def test_a_column_with_one_end_only_is_not_joined():
    assert show(pd.DataFrame({"x": [1.0], "x_low": [0.5]})).splitlines() == ["x      x_low", "1.000  0.500"]


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="as_ = 'latex' is not known"):
        show(FRAME, "latex")


def test_text_from_data_stays_on_one_line():
    assert format_table([("a", "b"), ("x\ny", "1")]).splitlines() == ["a     b", "x\\ny  1"]


def test_marked_rows_are_bold():
    assert markdown_table(["a", "b"], [["1", "2"], ["3", "4"]], [False, True])[-2:] == ["| 1 | 2 |", "| **3** | 4 |"]


def test_signed_interval():
    assert with_interval(0.1, -0.05, 0.25, "+.2f") == "+0.10 [-0.05, +0.25]"
