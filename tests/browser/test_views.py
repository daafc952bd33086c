"""The explorers in a page of their own: what each control does, and what odd data look like."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import yaml
from run_factory import write_run
from traitlets import TraitError

from browser import stub
from browser.checks import faint, nameless
from browser.lab import HOSTILE, token_table
from prefix_rft_lab import preset, schedules, train
from prefix_rft_lab.cli import app
from prefix_rft_lab.widgets import RunExplorer, ScheduleExplorer, StepExplorer, TokenExplorer
from prefix_rft_lab.widgets.schedule import FIELDS

CONFIG = preset("tiny")
WORDS = [" a", "+", "\n", "b", "=", " c", "7", "\\boxed{"]


def settle(page) -> None:
    """Until what was asked for is painted."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


# ---------------------------------------------------------------------- schedule

GRID = [
    {"schedule": kind, "high": 0.95, "low": 0.05, "decay_steps": decay, "delay_steps": delay, "warmup_ratio": warmup, "alpha": a, "beta": b, "min_tokens": least}
    for kind in ("cosine", "linear", "uniform", "constant")
    for decay, delay, warmup in ((1, 0, 0.0), (40, 0, 0.0), (33, 5, 0.3))
    for a, b, least in ((1.0, 1.0, 0), (0.5, 3.0, 4))
]  # fmt: skip


def test_formulas_are_those_of_python(page):
    stub.show(page, ScheduleExplorer(CONFIG))
    got = page.evaluate(
        """(grid) => { const f = window.module.formulas; return grid.map((config) => Array.from({ length: 60 }, (_, step) => {
          const [low, high] = f.ratioWindow(config, step);
          return [low, high, f.meanRatio(config, step), f.prefixLength(low, 37, config.min_tokens), f.prefixLength(high, 37, config.min_tokens)];
        })); }""",
        GRID,
    )
    for fields, rows in zip(GRID, got, strict=True):
        config = schedules.of_run(CONFIG.replace(**{f"prefix.{name}": value for name, value in fields.items()}))
        for step, (low, high, mean, shortest, longest) in enumerate(rows):
            window = schedules.ratio_window(config, step)
            assert (low, high) == pytest.approx(window, abs=1e-12)
            assert mean == pytest.approx(schedules.mean_ratio(config, step), abs=1e-12)
            for length, ratio in ((shortest, window[0]), (longest, window[1])):
                # At a whole number of tokens the last bit of a cosine may decide.
                if abs(ratio * 37 - round(ratio * 37)) > 1e-9:
                    assert length == schedules.prefix_length(ratio, 37, config.min_tokens)


def test_a_schedule_of_yours_is_drawn_from_values_of_python(page, monkeypatch):
    monkeypatch.setattr(schedules.SCHEDULES, "entries", dict(schedules.SCHEDULES.entries))

    @schedules.register("steps of ten", version="1")
    def steps_of_ten(step, settings):
        return (0.1 if step >= 10 else 0.6), settings.high

    config = CONFIG.replace(**{"rl.steps": 20, "prefix.schedule": "steps of ten", "prefix.high": 0.8})
    explorer = ScheduleExplorer(config)
    assert explorer.windows["steps of ten"][9:11] == [(0.6, 0.8), (0.1, 0.8)]
    stub.show(page, explorer)
    read = "() => window.module.formulas.ratioWindow({ schedule: window.model.get('schedule'), windows: window.model.get('windows') }, 10)"
    assert page.evaluate(read) == [0.1, 0.8]
    assert "steps of ten" in page.get_by_label("Schedule", exact=True).inner_text()
    # An edited setting is computed anew.
    explorer.high = 0.9
    assert explorer.windows["steps of ten"][0] == (0.6, 0.9)
    assert explorer.config.prefix.high == 0.9
    with pytest.raises(TraitError, match="is not one of cosine"):
        explorer.schedule = "no such"


def test_beta_distribution_against_closed_forms(page):
    stub.show(page, ScheduleExplorer(CONFIG))
    values = [0.001, 0.1, 0.3, 0.5, 0.9, 0.999]
    got = page.evaluate(
        "(xs) => xs.map((x) => [[1, 1], [2, 1], [1, 3], [2, 2], [0.5, 0.5]].map(([a, b]) => window.module.formulas.betaCdf(x, a, b)))",
        values,
    )
    for x, row in zip(values, got, strict=True):
        closed = [x, x**2, 1 - (1 - x) ** 3, 3 * x**2 - 2 * x**3, 2 / math.pi * math.asin(math.sqrt(x))]
        assert row == pytest.approx(closed, abs=1e-10)
    back = page.evaluate(
        "(xs) => xs.map((x) => window.module.formulas.betaQuantile(window.module.formulas.betaCdf(x, 0.5, 3), 0.5, 3))",
        values,
    )
    assert back == pytest.approx(values, abs=1e-9)


def test_probability_of_being_given_is_that_of_drawn_lengths(page):
    import numpy as np

    config = CONFIG.replace(**{"prefix.alpha": 2.0, "prefix.beta": 0.7, "prefix.min_tokens": 3})
    explorer = ScheduleExplorer(config)
    stub.show(page, explorer)
    fields = {name: getattr(explorer, name) for name in FIELDS}
    got = page.evaluate("(config) => [...window.module.formulas.givenProbabilities(config, 90, 20)]", fields)
    rng = np.random.default_rng(0)
    lengths = np.array(
        [
            schedules.prefix_length(schedules.sample_ratio(schedules.of_run(config), 90, rng), 20, 3)
            for _ in range(40_000)
        ]
    )
    assert got == pytest.approx([(lengths > i).mean() for i in range(20)], abs=0.01)


def test_edits_reach_the_model_and_bad_ones_say_why(page):
    stub.show(page, ScheduleExplorer(CONFIG, WORDS))
    number = page.get_by_role("spinbutton", name="Low, number")
    number.fill("0.3")
    number.press("Enter")
    assert page.evaluate("() => window.model.get('low')") == 0.3
    settle(page)  # the next frame writes 0.3 into the field
    number.fill("0.99")
    number.press("Enter")
    page.get_by_text("Low = 0.99 lies above high = 0.95; raise high first.").wait_for()
    assert page.evaluate("() => window.model.get('low')") == 0.3
    page.get_by_role("combobox", name="Schedule", exact=True).select_option("uniform")
    page.evaluate("() => window.model.set('low', 0.45)")  # as Python does
    settle(page)
    assert page.get_by_role("spinbutton", name="Low, number").input_value() == "0.45"
    page.get_by_text("Step 0: ratios 0.45 to 0.95").wait_for()


def test_copied_text_makes_the_same_config(page):
    edited = CONFIG.replace(**{"prefix.schedule": "linear", "prefix.low": 0.125, "prefix.decay_steps": 60})
    explorer = ScheduleExplorer(CONFIG, WORDS)
    stub.show(page, explorer)
    page.evaluate(
        "() => { for (const [k, v] of [['schedule', 'linear'], ['low', 0.125], ['decay_steps', 60]]) window.model.set(k, v); }"
    )
    page.get_by_text("Use this schedule").click()
    text = page.get_by_role("textbox", name="Schedule as config")
    settle(page)
    fields = yaml.safe_load(text.input_value())["prefix"]
    assert CONFIG.replace(**{f"prefix.{name}": value for name, value in fields.items()}) == edited
    page.get_by_role("radio", name="command line").check()
    settle(page)
    _, given, _ = app.parse_args(["train", *text.input_value().split()], exit_on_error=False)
    assert given.arguments["changes"] == ["prefix.schedule=linear", "prefix.low=0.125", "prefix.decay_steps=60"]
    page.get_by_role("radio", name="Python").check()
    settle(page)
    assert eval(text.input_value(), {"config": CONFIG}) == edited
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as config").click()
    page.get_by_text("Copied.").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == text.input_value()


# ---------------------------------------------------------------------- tokens


def test_layers_of_a_full_table_and_of_an_old_one(page):
    full = token_table(2, 40)
    stub.show(page, TokenExplorer(full))
    names = ["Entropy", "Surprise (−log p)", "Advantage", "Ratio π/π_old", "Kept by the clip", "Text only"]
    for name in names:
        page.get_by_role("radio", name=name).check()
        settle(page)
        assert page.get_by_role("img", name="Legend").count() == 1
    stub.show(page, TokenExplorer(full.drop(columns=["ratio", "logp", "top_texts", "top_probs"])))
    assert page.get_by_role("radio", name="Ratio π/π_old").count() == 0
    page.get_by_text("not recorded").wait_for()


def test_colours_of_a_step_do_not_depend_on_the_other_steps_shown(page):
    table = token_table(3, 30)
    stub.show(page, TokenExplorer(table))
    legend = "() => document.querySelector('canvas.scale').toDataURL()"
    before = page.evaluate(legend)
    page.get_by_role("slider", name="Training step").press("Home")
    settle(page)
    assert page.evaluate("() => window.model.get('step')") == 0 and page.evaluate(legend) == before


def test_hover_focus_and_outline_show_the_token(page):
    table = token_table(1, 30).assign(text=[f"w{i}" for i in range(30)], entropy=[i / 10 for i in range(30)])
    stub.show(page, TokenExplorer(table))
    cursor = page.get_by_role("slider", name="Token cursor")
    cursor.press("Home")
    settle(page)
    assert cursor.get_attribute("aria-valuetext").startswith("token 1 of 30, w0; kind prefix, entropy 0 nats")
    box = cursor.bounding_box()
    page.mouse.move(box["x"] + 36, box["y"] + 12)
    page.get_by_text("2 of 30", exact=True).wait_for()
    page.evaluate("() => window.model.set('threshold', 2.0)")
    page.get_by_text("2.00 nats: 10 of 30 (33%)").or_(page.get_by_text("2 nats: 10 of 30 (33%)")).wait_for()


def test_two_runs_share_a_cursor_unless_their_tokenizers_differ(page):
    one, two = token_table(1, 30, run="one"), token_table(1, 30, run="two", seed=1)
    stub.show(page, TokenExplorer([one, two]))
    page.get_by_role("slider", name="Token cursor, one").press("End")
    settle(page)
    assert page.get_by_role("slider", name="Token cursor, two").get_attribute("aria-valuenow") == "30"
    stub.show(page, TokenExplorer([one, two.assign(text=two["text"] + "!")]))
    page.get_by_text("one and two have different tokenizers").wait_for()
    page.get_by_role("slider", name="Token cursor, one").press("End")
    settle(page)
    assert page.get_by_role("slider", name="Token cursor, two").get_attribute("aria-valuenow") != "30"


def test_a_step_or_problem_that_one_run_lacks_is_said(page):
    one = token_table(2, 20, run="one")
    two = token_table(1, 20, run="two").assign(problem="train-9")
    stub.show(page, TokenExplorer([one, two]))
    page.get_by_text("two recorded no tokens at step 1; it did at 0.").wait_for()
    page.evaluate("() => window.model.set('step', 0)")
    page.get_by_text("two did not record train-0 at step 0; train-9 is shown.").wait_for()


def test_odd_texts_are_visible_and_harmless(page):
    texts = [HOSTILE, "\x1b[2J", "\u202eabc", "", "\ufffd", "\t", "x" * 5000, "\n\n\n"]
    table = token_table(1, len(texts)).assign(text=texts, entropy=float("nan"), problem=HOSTILE, run=HOSTILE)
    stub.show(page, TokenExplorer(table))
    cursor = page.get_by_role("slider", name="Token cursor")
    heard = []
    cursor.press("Home")
    for _ in texts:
        settle(page)
        heard.append(cursor.get_attribute("aria-valuetext"))
        cursor.press("ArrowRight")
    assert "<img·src=x" in heard[0] and "␛[2J" in heard[1] and "‹202E›abc" in heard[2] and ", ∅;" in heard[3]
    assert "\ufffd" in heard[4] and "⇥" in heard[5] and len(heard[6]) < 400 and "⏎⏎⏎" in heard[7]
    assert page.locator(".prefix-explorer img, .prefix-explorer script").count() == 0
    assert page.evaluate("() => window.hacked") is None


def test_8000_tokens_do_not_freeze(page):
    stub.show(page, TokenExplorer(token_table(1, 8000)))
    page.evaluate("() => { window.paints.length = 0; }")
    cursor = page.get_by_role("slider", name="Token cursor")
    for key in ("End", "PageUp", "ArrowUp", "Home"):
        cursor.press(key)
        settle(page)
    assert max(page.evaluate("() => window.paints")) < 100


# ---------------------------------------------------------------------- runs


def test_table_sorts_and_hides(page, tmp_path):
    runs = [write_run(tmp_path, "prefix_rft", seed) for seed in (0, 1)] + [write_run(tmp_path, "rft", 0)]
    stub.show(page, RunExplorer(runs, refresh=0))
    first = page.locator("tbody tr").first
    page.get_by_role("button", name="last").click()
    settle(page)
    values = [float(cell.inner_text()) for cell in page.locator("tbody td[data-column=last]").all()]
    assert values == sorted(values)
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("last")
    page.get_by_role("button", name="last").press("Enter")
    settle(page)
    values = [float(cell.inner_text()) for cell in page.locator("tbody td[data-column=last]").all()]
    assert values == sorted(values, reverse=True)
    label = first.locator("input").get_attribute("aria-label")
    page.get_by_role("checkbox", name=label).uncheck()
    settle(page)
    assert len(page.evaluate("() => window.model.get('hidden')")) == 1
    assert "(not" not in page.locator(".readout").inner_text()


def test_readout_is_mean_and_range_over_seeds(page, tmp_path):
    runs = [write_run(tmp_path, "rft", seed) for seed in (0, 1, 2)]
    stub.show(page, RunExplorer(runs, refresh=0))
    page.get_by_role("slider", name="Training step").press("Home")
    settle(page)
    values = pd.Series([run.metrics["reward_plain"].iloc[0] for run in runs])
    text = page.locator(".readout").inner_text()
    assert f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f}, 3 seeds)" in text


def test_nothing_recorded_is_said(page, tmp_path):
    stub.show(page, RunExplorer(tmp_path, refresh=0))
    page.get_by_text("holds no run yet").wait_for()
    run = write_run(tmp_path, "sft", 0, done=False, steps=1)
    stub.show(page, RunExplorer(run, refresh=0))
    page.get_by_role("combobox", name="Metric").get_by_text("reward_plain").wait_for(state="attached")
    settle(page)


# ---------------------------------------------------------------------- all


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["schedule", "tokens", "runs"])
def test_names_contrast_and_end(page, tmp_path, name, dark):
    widget = {
        "schedule": lambda: ScheduleExplorer(CONFIG, WORDS, overlays={"other": CONFIG}),
        "tokens": lambda: TokenExplorer([token_table(2, 50, run="a"), token_table(2, 50, run="b")]),
        "runs": lambda: RunExplorer(
            [write_run(tmp_path, "rft", 0), write_run(tmp_path, "rft", 1, **{"prefix.low": 0.2})], refresh=0
        ),
    }[name]()
    stub.show(page, widget, dark=dark)
    assert page.locator(".prefix-explorer.dark").count() == dark
    assert nameless(page) == [] and faint(page) == []
    # A view that is removed listens to nothing any more.
    page.evaluate("() => window.dispose()")
    assert page.evaluate("() => Object.values(window.model.handlers).flat().length") == 0


# ---------------------------------------------------------------------- step


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    changes = {"rl.steps": 3, "rollout.problems_per_step": 4, "evaluation.every": 0, "evaluation.k": 1}
    changes |= {
        "evaluation.hard_tries": 0,
        "data.train_problems": 32,
        "data.eval_problems": 12,
        "evaluation.problems": 12,
    }
    config = preset("tiny", method="prefix_rft", **changes)
    return train(config, out=tmp_path_factory.mktemp("runs"), progress=False).again(1)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_knob_of_a_step_is_turned(page, step, dark):
    explorer = StepExplorer(step, knobs={"prefix.keep": ("top", "bottom"), "loss.clip_high": (0.5,)}, effects=2)
    stub.show(page, explorer, dark=dark)
    keep = page.get_by_label("prefix.keep")
    keep.select_option(label="bottom")
    settle(page)
    assert page.evaluate("window.model.get('move')") == '{"prefix.keep":"bottom"}'
    told = page.locator("table tbody").inner_text()
    assert "held-out right answers" in told
    # It was performed beforehand, so its column is there without Python.
    assert "—" not in told
    assert page.get_by_label("loss.clip_high").is_disabled()
    page.get_by_label("Mute this row").check()
    settle(page)
    muted = explorer.rows[explorer.row]["row"]
    assert page.evaluate("JSON.parse(window.model.get('move')).without") == [muted]
    assert "Performing" in page.get_by_role("status").inner_text()
    # Python's answer arrives.
    explorer.move = page.evaluate("window.model.get('move')")
    page.evaluate(
        """([move, change]) => { const bytes = Uint8Array.from(atob(change), (c) => c.charCodeAt(0));
        window.model.set("answer", { move, change: new DataView(bytes.buffer), error: "" }); }""",
        [explorer.answer["move"], stub.plain(explorer.answer["change"])["$bytes"]],
    )
    settle(page)
    assert page.locator("p[role=status]").text_content() == ""
    assert "—" not in page.locator("table tbody").inner_text()
    page.get_by_role("button", name="As it was").click()
    assert page.evaluate("window.model.get('move')") == "{}"
    assert not nameless(page)
    assert not faint(page)
