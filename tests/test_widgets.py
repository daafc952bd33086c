"""Explorers from Python's side: what they take, refuse, send to the browser, and leave for readers without one."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_factory import write_run

from prefix_rft_lab import RunError, preset
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.widgets import RunExplorer, ScheduleExplorer, TokenExplorer

CONFIG = preset("tiny")


def tokens(count: int = 6, *, step: int = 0, problem: str = "p", row: int = 0, **columns) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "step": step,
            "problem": problem,
            "row": row,
            "position": range(count),
            "token_id": range(count),
            "text": [f" t{i}" for i in range(count)],
            "kind": ["prefix"] * 2 + ["continuation"] * (count - 2),
            "entropy": np.linspace(0, 1, count),
        }
    )
    return table.assign(**columns)


def displayed(widget, monkeypatch):
    """What `display(widget)` publishes."""
    import IPython.display

    outputs = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **options: outputs.append((data, options["metadata"])))
    widget._ipython_display_()
    return outputs


# ---------------------------------------------------------------------- schedule


def test_schedule_reads_back_as_a_config_and_shows_another_one():
    explorer = ScheduleExplorer(CONFIG, ["a", "b"])
    assert explorer.config == CONFIG
    explorer.low, explorer.schedule = 0.25, "linear"
    assert explorer.config == CONFIG.replace(**{"prefix.low": 0.25, "prefix.schedule": "linear"})
    other = CONFIG.replace(method="rft", seed=3, **{"prefix.alpha": 2.0, "rl.steps": 20})
    explorer.step = 140
    explorer.config = other
    assert explorer.config == other
    assert (explorer.alpha, explorer.steps, explorer.step) == (2.0, 20, 19)


def test_schedule_edits_of_the_browser_arrive():
    explorer = ScheduleExplorer(CONFIG)
    explorer.set_state({"low": 0, "decay_steps": 30, "step": 12})  # a whole number stands for a float in JSON
    assert explorer.config == CONFIG.replace(**{"prefix.low": 0.0, "prefix.decay_steps": 30})


def test_schedule_refuses_what_the_config_refuses():
    explorer = ScheduleExplorer(CONFIG)
    explorer.high = 0.01
    with pytest.raises(ConfigError, match=r"prefix\.low = 0\.05 lies above prefix\.high = 0\.01"):
        _ = explorer.config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a whole text", "is one text"),
        ([[]], r"demonstrations\[0\] = \[\] has no tokens"),
        ([["a"], "text"], r"demonstrations\[1\] = 'text' is not a list"),
        ([["a", 1]], r"demonstrations\[0\]"),
    ],
)
def test_schedule_refuses_demonstrations_that_are_not_tokens(given, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleExplorer(CONFIG, given)


def test_schedule_takes_one_demonstration_or_several():
    assert ScheduleExplorer(CONFIG, ["a", "b"]).demonstrations == [["a", "b"]]
    assert ScheduleExplorer(CONFIG, [["a"], ("b", "c")]).demonstrations == [["a"], ["b", "c"]]
    assert "38 tokens at first" in ScheduleExplorer(CONFIG, [f"t{i}" for i in range(40)]).summary()


# ---------------------------------------------------------------------- tokens


def test_tokens_arrive_as_arrays():
    table = tokens(kept=[True, False, True, True, True, True], top_ids=[[1, 2]] * 6, top_probs=[[0.75, 0.125]] * 6)
    explorer = TokenExplorer(table.assign(top_texts=[["x", "y"]] * 6, ratio=1.5, score=1.0))
    ids = np.frombuffer(explorer.text_ids, "<u2")
    assert [explorer.texts[i] for i in ids] == table["text"].tolist()
    assert np.frombuffer(explorer.entropy, "<f2").tolist() == pytest.approx(table["entropy"].tolist(), abs=1e-3)
    assert np.frombuffer(explorer.kinds, np.uint8).tolist() == [0, 0, 1, 1, 1, 1]
    assert np.frombuffer(explorer.kept, np.uint8).tolist() == [1, 0, 1, 1, 1, 1]
    assert np.frombuffer(explorer.ratio, "<f4").tolist() == [1.5] * 6
    assert np.frombuffer(explorer.top_probs, "<f2").tolist() == [0.75, 0.125] * 6
    assert [explorer.texts[i] for i in np.frombuffer(explorer.top_ids, "<u2")] == ["x", "y"] * 6
    assert explorer.rollouts == [[0, 0, 0, 0, 0, 6, 2, 1.0]]
    assert explorer.cursor == 2  # the seam


def test_older_tables_show_the_layers_they_have():
    explorer = TokenExplorer(tokens().drop(columns="token_id"))
    assert explorer.entropy and not explorer.ratio and not explorer.logp and explorer.top_k == 0
    blank = TokenExplorer(tokens(entropy=float("nan")))
    assert blank.entropy == b"" and blank.layer == "plain" and "entropy" not in blank.summary()


def test_alternatives_without_texts_are_named_by_the_table_or_by_id():
    explorer = TokenExplorer(tokens(top_ids=[[1, 99]] * 6, top_probs=[[0.5, 0.25]] * 6))
    assert [explorer.texts[i] for i in np.frombuffer(explorer.top_ids, "<u2")][:2] == [" t1", "id 99"]


def test_alternatives_of_different_number_are_padded():
    explorer = TokenExplorer(tokens(top_ids=[[1, 2]] * 5 + [[1]], top_probs=[[0.5, 0.25]] * 5 + [[0.5]]))
    assert np.isnan(np.frombuffer(explorer.top_probs, "<f2")).tolist() == [False] * 11 + [True]


def test_colour_scales_are_those_of_all_steps_and_both_sides():
    early, late = tokens(step=0), tokens(step=10, entropy=np.linspace(0, 3, 6))
    assert TokenExplorer([early.assign(run="a"), late.assign(run="b")]).scales["entropy"] == pytest.approx(3.0)
    assert TokenExplorer(pd.concat([early, late])).scales["entropy"] == pytest.approx(3.0)


def test_two_sides_and_their_names():
    both = pd.concat([tokens(run="one"), tokens(run="two")])
    assert [side["name"] for side in TokenExplorer(both).sides] == ["one", "two"]
    same = TokenExplorer([tokens(run="one"), tokens(run="one")])
    assert [side["name"] for side in same.sides] == ["one (1)", "one (2)"] and same.aligned


def test_different_tokenizers_are_said_in_a_sentence():
    named = [tokens(), tokens()]
    for table, name in zip(named, ("abc", "def"), strict=True):
        table.attrs["tokenizer"] = name
    for pair in (named, [tokens(), tokens(text=[f"u{i}" for i in range(6)])]):
        explorer = TokenExplorer(pair)
        assert not explorer.aligned and "different tokenizers" in explorer.note


def test_a_problem_that_comes_twice_in_a_step_is_two_rollouts():
    explorer = TokenExplorer(pd.concat([tokens(4), tokens(5)]))
    assert [rollout[5] for rollout in explorer.rollouts] == [4, 5]
    assert explorer.problems == ["p", "p (2)"]


def test_choice_of_problem_and_row():
    table = pd.concat([tokens(problem="a"), tokens(problem="b", row=3), tokens(problem="b", row=5, step=9)])
    explorer = TokenExplorer(table, problem="b", row=3)
    assert (explorer.problems, explorer.steps, explorer.row) == (["b"], [0, 9], 3)
    with pytest.raises(ConfigError, match=r"problem = 'c' was not recorded.* a, b"):
        TokenExplorer(table, problem="c")
    with pytest.raises(ConfigError, match=r"row = 1 is not among the recorded rows; use one of 0, 3, 5"):
        TokenExplorer(table, row=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame(), "is empty"),
        (tokens().drop(columns=["kind", "row"]), "no column row, kind"),
        (tokens(kind="other"), "kind = 'other' is not a kind"),
        ([], "holds 0 runs"),
        ([tokens(run=name) for name in "abc"], "holds 3 runs"),
        (pd.concat([tokens(run=name) for name in "abc"]), "tokens of 3 runs"),
        ("runs", "neither a run nor a table"),
    ],
)
def test_tables_that_cannot_be_shown_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        TokenExplorer([given] if isinstance(given, str) else given)


def test_more_tokens_than_a_notebook_should_carry_are_refused(monkeypatch):
    monkeypatch.setattr("prefix_rft_lab.widgets.tokens._LARGEST", 100)
    with pytest.raises(ConfigError, match="6 tokens would make a notebook"):
        TokenExplorer(tokens(top_ids=[[1]] * 6, top_probs=[[1.0]] * 6))


def test_runs_with_and_without_records(tmp_path):
    run = write_run(tmp_path, "prefix_rft", 0)
    explorer = TokenExplorer(run)
    assert explorer.sides[0]["name"] == "Prefix-RFT, seed 0" and explorer.steps == [0, 4]
    bare = write_run(tmp_path, "rft", 0, **{"records.tokens_every": 0})
    with pytest.raises(RunError, match=r"recorded no tokens; set records\.tokens_every above 0"):
        TokenExplorer(bare)
    going = write_run(tmp_path, "rft", 1, done=False, steps=2)
    assert "not finished" in TokenExplorer(going).sides[0]["name"]


def test_hostile_and_broken_texts_are_sent_as_they_are():
    texts = ["<img onerror=x>", "\x1b[31m", "\ud83d", "\ufffd", "", "你"]
    explorer = TokenExplorer(tokens(text=pd.Series(texts, dtype=object)))
    assert explorer.texts == ["<img onerror=x>", "\x1b[31m", "?", "\ufffd", "", "你"]
    json.dumps(explorer.texts).encode("utf-8")
    assert "\x1b" not in explorer.summary() and explorer.picture().png().startswith(b"\x89PNG")


def test_a_long_rollout_has_a_picture_that_says_what_it_leaves_out():
    figure = TokenExplorer(tokens(8000)).picture()
    assert "more tokens are not drawn" in figure.texts[1].get_text()
    assert figure.get_figheight() < 8


# ---------------------------------------------------------------------- runs


def test_table_has_only_the_fields_that_differ(tmp_path):
    runs = [write_run(tmp_path, "prefix_rft", 0), write_run(tmp_path, "prefix_rft", 1, **{"prefix.low": 0.3})]
    explorer = RunExplorer(runs, refresh=0)
    assert explorer.fields == ["prefix.low"]
    assert [row["fields"] for row in explorer.runs] in (
        [{"prefix.low": 0.05}, {"prefix.low": 0.3}],
        [{"prefix.low": 0.3}, {"prefix.low": 0.05}],
    )
    assert sorted(row["group"] for row in explorer.runs) == ["Prefix-RFT, low 0.05", "Prefix-RFT, low 0.3"]
    assert all("/" not in row["id"] or not Path(row["id"]).is_absolute() for row in explorer.runs)


def test_curves_are_the_records(tmp_path):
    run = write_run(tmp_path, "rft", 0)
    explorer = RunExplorer(run, refresh=0)
    metrics, evaluations = explorer.curves[explorer.runs[0]["id"]]
    values = np.frombuffer(metrics["values"], "<f4").reshape(len(metrics["names"]), -1)
    assert np.frombuffer(metrics["steps"], "<i4").tolist() == run.metrics["global_step"].tolist()
    assert values[metrics["names"].index("reward_plain")] == pytest.approx(run.metrics["reward_plain"], abs=1e-6)
    assert {"evaluations.avg", "evaluations.hard.avg"} <= set(evaluations["names"])
    assert RunExplorer(run, metric="avg", refresh=0).metric == "evaluations.avg"
    with pytest.raises(ConfigError, match=r"metric = 'reward_plane' is not recorded.*did you mean reward_plain"):
        RunExplorer(run, metric="reward_plane", refresh=0)


def wait_for(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_growing_run_is_followed_until_it_is_done(tmp_path):
    run = write_run(tmp_path, "rft", 0, done=False, steps=3)
    explorer = RunExplorer([run], refresh=0.02)
    assert explorer.live and explorer.runs[0]["steps"] == 3 and explorer.runs[0]["state"] == "running"
    line = json.dumps({"stage": "rft", "step": 3, "global_step": 3, "reward_plain": 0.75})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(line[:20])
        file.flush()
        time.sleep(0.1)
        assert explorer.runs[0]["steps"] == 3, "half a line is no step"
        file.write(line[20:] + "\n")
    wait_for(lambda: explorer.runs[0]["steps"] == 4)
    (run.path / "DONE.json").write_text("{}")
    wait_for(lambda: not explorer.live)
    assert explorer.runs[0]["state"] == "done" and not explorer._thread.is_alive()


def test_a_run_that_was_rewound_is_read_anew(tmp_path):
    run = write_run(tmp_path, "rft", 0, done=False, steps=5)
    explorer = RunExplorer([run], refresh=0)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    other = run.path / "other"
    other.write_text("".join(lines[:2]))
    other.replace(run.path / "metrics.jsonl")
    explorer.refresh()
    assert explorer.runs[0]["steps"] == 2


def test_closing_ends_the_thread(tmp_path):
    explorer = RunExplorer(tmp_path, refresh=0.02)
    assert "holds no run yet" in explorer.note and "holds no run yet" in explorer.summary()
    write_run(tmp_path, "sft", 0, done=False, steps=1)
    wait_for(lambda: len(explorer.runs) == 1)
    assert explorer.note == ""
    explorer.close()
    assert not any(thread.name == "run-explorer" and thread is explorer._thread for thread in threading.enumerate())


def test_runs_that_cannot_be_read_are_named(tmp_path):
    good, torn = write_run(tmp_path, "rft", 0), write_run(tmp_path, "rft", 1, done=False)
    with (torn.path / "metrics.jsonl").open("a") as file:
        file.write("not json\n")
    broken = tmp_path / "x" / "rft-0-s2"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text('{"nonsense": 1}')
    explorer = RunExplorer(tmp_path, refresh=0)
    assert len(explorer.runs) == 2 and good.path.name in [row["id"].split("/")[1] for row in explorer.runs]
    assert "rft-0-s2 is left out" in explorer.note and f"{torn.path.name} cannot be read further" in explorer.note


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"runs_or_folder = \[\] holds no run"):
        RunExplorer([])
    with pytest.raises(ConfigError, match="refresh = -1"):
        RunExplorer(tmp_path, refresh=-1)


# ---------------------------------------------------------------------- readers without a browser


@pytest.mark.parametrize("name", ["schedule", "tokens", "runs"])
def test_each_has_a_picture_a_text_and_a_view(name, tmp_path, monkeypatch):
    make = {
        "schedule": lambda: ScheduleExplorer(CONFIG, ["a", "b"]),
        "tokens": lambda: TokenExplorer(tokens()),
        "runs": lambda: RunExplorer(write_run(tmp_path, "rft", 0), refresh=0),
    }
    widget = make[name]()
    (picture, size), (view, _) = displayed(widget, monkeypatch)
    assert base64.b64decode(picture["image/png"]).startswith(b"\x89PNG")
    assert widget.still == [size["image/png"]["width"], size["image/png"]["height"]] and size["image/png"]["alt"]
    assert "application/vnd.jupyter.widget-view+json" in view and "image/png" not in view
    assert view["text/plain"] == widget.summary() and len(widget.summary()) > 40
    bundle, _ = widget._repr_mimebundle_()
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(bundle)


def test_scripts_stand_alone():
    for explorer in (ScheduleExplorer, TokenExplorer, RunExplorer):
        script = explorer._esm if isinstance(explorer._esm, str) else str(explorer._esm)
        assert "import " not in script.replace("important", "") and "http" not in script and "innerHTML" not in script
        assert len(script) < 64_000, "it is stored with every instance"
