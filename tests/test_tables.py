"""Tables for people: the same frame as text, HTML and Markdown."""

import subprocess
import sys

import pandas as pd
import pytest

from prefix_rft_lab.core.tables import Table, format_table, show, with_interval

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
    assert show(FRAME, "html").splitlines() == [
        "<table>",
        '<thead><tr><th scope="col">method</th><th scope="col">seeds</th><th scope="col">avg@k</th>'
        '<th scope="col">seconds</th></tr></thead>',
        "<tbody>",
        '<tr><th scope="row">rft</th><td>5</td><td>0.500 [0.250, 0.750]</td><td>12.346</td></tr>',
        '<tr><th scope="row">a|&lt;b&gt;</th><td>1</td><td>–</td><td>–</td></tr>',
        "</tbody>",
        "</table>",
    ]


def test_a_column_with_one_end_only_is_not_joined():
    assert show(pd.DataFrame({"x": [1.0], "x_low": [0.5]})).splitlines() == ["x      x_low", "1.000  0.500"]


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="as_ = 'latex' is not known"):
        show(FRAME, "latex")


def test_text_from_data_stays_on_one_line():
    assert format_table([("a", "b"), ("x\ny", "1")]).splitlines() == ["a     b", "x\\ny  1"]


def test_a_table_is_a_list_of_columns_with_heads_and_marked_rows():
    table = Table(frame=FRAME, heads={"seeds": "Seeds", "avg@k": "Score"}, marked=[False, True], caption="<Who>")
    assert table.show("md").splitlines()[-2:] == ["| 5 | 0.500 [0.250, 0.750] |", "| **1** | – |"]
    assert table.show().splitlines()[0] == "Seeds  Score"
    html = table.show("html")
    assert "<caption>&lt;Who&gt;</caption>" in html
    assert html.count('<tr class="marked">') == 1 and '<tr class="marked"><th scope="row">1</th><td>–</td></tr>' in html


def test_signed_interval():
    assert with_interval(0.1, -0.05, 0.25, "+.2f") == "+0.10 [-0.05, +0.25]"
    assert with_interval(0.1, float("nan"), float("nan"), "+.2f") == "+0.10"


def test_log_lines_and_warnings_are_shown_not_obeyed():
    script = (
        "import logging, warnings\n"
        "from prefix_rft_lab.core.terminal import plain_logs\n"
        "plain_logs()\n"
        "logging.getLogger('prefix_rft_lab.x').warning('%s', 'a\\x1b[2J\\u202e')\n"
        "warnings.warn_explicit('b\\x07', UserWarning, '/prefix_rft_lab/x.py', 1)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert found.stderr == "a\\x1b[2J\\u202e\nb\\x07\n"
