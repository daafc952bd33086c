"""Every figure draws from every kind of run folder, carries its data, and is saved to equal bytes."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from run_factory import SMALL, write_run

from prefix_rft_lab import plots
from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.runs import RunError

METHODS = ("base", "sft", "rft", "sft_then_rft", "prefix_rft")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return [write_run(out, m, s, counts=(s, 1, 2, 3, 4, 2)) for m in METHODS for s in ((0,) if m == "base" else (0, 1))]


@pytest.fixture(autouse=True)
def no_warnings():
    """A missing glyph or an empty axis is a fault of the figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


def all_figures(runs):
    yield from (draw(runs) for draw in plots.FIGURES.values())
    yield from (draw([r for r in runs if r.method == "prefix_rft"]) for draw in plots.TOKEN_FIGURES.values())
    yield plots.learning_curves(runs, "hard.avg")
    yield plots.learning_curves(runs, "levels.easy.avg")
    yield plots.final_scores(runs)
    yield plots.final_scores(runs, metric="tokens")
    yield plots.pass_at_k(runs)
    yield plots.forest(runs, "prefix_rft", groups={"imitation": ["sft", "absent"]})
    yield plots.score_against_cost(runs)
    yield plots.dose_response(
        [run for run in runs if run.method == "sft"],
        lambda run: run.config.data.demonstration_fraction,
        what="problems with a demonstration (share)",
        controls=[run for run in runs if run.method in ("base", "rft")],
    )
    yield plots.kept_tokens(next(run for run in runs if run.method == "prefix_rft"))
    yield plots.schedule(runs[-1].config)
    yield plots.schedule(runs[-1].config, samples=False)
    yield plots.prefix_lengths(runs[-1].config, [10, 20, 30])


@pytest.fixture(scope="module")
def drawn(runs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        return list(all_figures(runs))


def test_all_figures_draw_and_say_what_they_show(drawn):
    for figure in drawn:
        png, metadata = figure._repr_png_()
        assert png.startswith(b"\x89PNG")
        assert metadata["alt"] == figure.caption and len(figure.caption) > 30
        assert len(figure.data)
        panels = [
            axes for axes in figure.axes if axes.get_visible() and axes.axison and axes.get_label() != "<colorbar>"
        ]
        assert all(axes.get_xlabel() for axes in panels[-1:])


@pytest.mark.parametrize("style", [{"axes.facecolor": "black", "text.color": "white"}, {"text.usetex": True}])
def test_the_style_of_the_caller_changes_no_figure(runs, tmp_path, style):
    for draw in (plots.learning_curves, plots.final_scores, plots.demonstration_map):
        plain = draw(runs)
        with matplotlib.rc_context({**matplotlib.style.library["dark_background"], **style}):
            styled = draw(runs)
            assert styled.png() == plain.png()
            files = plots.save_figure(styled, tmp_path / "styled")
        for one, other in zip(files, plots.save_figure(plain, tmp_path / "plain"), strict=True):
            assert one.read_bytes() == other.read_bytes()


def test_axes_speak_of_units(drawn):
    units = {"nats", "tokens", "share", "0 to 1", "norm", "loss", "ratio", "steps", "samples"}
    for figure in drawn:
        labels = [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel()) if text]
        assert any(unit in label for unit in units for label in labels), labels


def test_titles_give_n(runs):
    for name, draw in plots.FIGURES.items():
        assert ("one seed each" if name == "demonstration_map" else "2 seeds per method") in draw(runs).caption, name
    for name, draw in plots.TOKEN_FIGURES.items():
        assert "2 seeds" in draw([run for run in runs if run.method == "prefix_rft"]).caption, name


def test_entropy_figure_has_a_panel_a_method_and_the_window_below(runs):
    figure = plots.entropy_dynamics(runs)
    titles = [axes.get_title("left") or axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:4] == ["SFT (2 seeds)", "RFT (Dr.GRPO) (2 seeds)", "SFT→RFT (2 seeds)", "Prefix-RFT (2 seeds)"]
    assert "ratios" in titles[4]
    kinds = figure.data.groupby("method")["series"].unique().map(set)
    assert kinds["sft"] == {"entropy_prefix"}
    assert kinds["prefix_rft"] == {"entropy_prefix", "entropy_continuation", "entropy_on_policy", "prefix_ratio"}
    assert any("rft begins" in text.get_text() for text in figure.axes[2].texts)


def test_data_is_what_was_recorded(runs):
    data = plots.rewards(runs).data
    row = data[(data["method"] == "rft") & (data["series"] == "reward_plain") & (data["global_step"] == 3)].iloc[0]
    for run in runs:
        if run.method == "rft":
            assert row[f"seed_{run.seed}"] == run.metrics.set_index("global_step").loc[3, "reward_plain"]


def test_imitation_and_score_stand_beside_each_other(runs):
    data = plots.nll_against_reward(runs).data.set_index(["problems", "method", "seed", "global_step"])
    for run in runs:
        if run.method == "sft":
            for line in run.evaluations.to_dict("records"):
                at = (run.method, run.seed, line["global_step"])
                assert data.loc[("all", *at)].to_list() == [line["demonstration_nll"], line["avg"]]
                assert data.loc[("train_hard", *at)].to_list() == [line["demonstration_nll_hard"], line["hard"]["avg"]]
    assert set(data.index.get_level_values("method")) == {"sft", "rft", "sft_then_rft", "prefix_rft"}


def test_many_seeds_become_a_band(tmp_path):
    few = [write_run(tmp_path, "rft", seed) for seed in range(5)]
    many = [*few, write_run(tmp_path, "rft", 5)]
    counts = [(len(f.axes[0].lines), len(f.axes[0].collections)) for f in map(plots.policy_entropy, (few, many))]
    # Base level + five seeds + mean; base level + mean and a band.
    assert counts == [(7, 0), (2, 1)]


def test_a_running_mean_shows_the_raw_line_and_its_width(tmp_path):
    run = write_run(tmp_path, "rft", **{"rl.steps": 60, "records.tokens_every": 0})
    figure = plots.rewards([run])
    assert "thin: raw, thick: running mean of 3 steps" in figure.caption
    assert len(figure.axes[0].lines) == 2
    raw = figure.data["seed_0"]
    assert figure.data["shown"].iloc[10] == pytest.approx(raw.iloc[9:12].mean())


def test_a_curve_shorter_than_two_windows_is_not_smoothed(tmp_path):
    sizes = {"rft": 60, "prefix_rft": 5}
    runs = [write_run(tmp_path, m, **{"rl.steps": n, "records.tokens_every": 0}) for m, n in sizes.items()]
    data = plots.rewards(runs).data
    short = data[(data["method"] == "prefix_rft") & (data["series"] == "reward_plain")]
    assert short["shown"].to_list() == short["seed_0"].to_list() and len(short) == 5


def test_a_mean_over_seeds_stops_where_one_seed_is_behind(tmp_path):
    runs = [write_run(tmp_path, "rft", 0), write_run(tmp_path, "rft", 1, done=False, steps=5)]
    data = plots.rewards(runs).data
    assert data["n"].tolist() == [2] * 5 + [1] * 3
    mean = plots.rewards(runs).axes[0].lines[-1]
    assert max(mean.get_xdata()) == 4


def test_unfinished_runs_are_drawn(tmp_path):
    runs = [write_run(tmp_path, "prefix_rft", done=False, steps=3), write_run(tmp_path, "rft", done=False, steps=0)]
    for draw in plots.FIGURES.values():
        assert len(draw(runs).data)


def test_runs_without_anything_to_draw_give_one_sentence(tmp_path):
    empty = write_run(tmp_path, "rft", done=False, steps=0)
    (empty.path / "evaluations.jsonl").unlink()
    for draw in plots.FIGURES.values():
        with pytest.raises(ConfigError, match=r"runs = \[\] holds nothing"):
            draw([])
        with pytest.raises(RunError, match=r"recorded no .* yet") as caught:
            draw([empty])
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(RunError, match=r"recorded no tokens yet; set records.tokens_every above 0"):
        plots.kept_tokens(empty)
    with pytest.raises(RunError, match=r"holds no hybrid rows .*; take a run of a method with prefixes"):
        plots.kept_tokens(write_run(tmp_path, "sft"))
    for draw in plots.TOKEN_FIGURES.values():
        with pytest.raises(ConfigError, match=r"runs = \[\] holds nothing"):
            draw([])
        with pytest.raises(RunError, match=r"recorded no tokens yet; set records.tokens_every above 0"):
            draw([empty])
    with pytest.raises(ConfigError, match=r"demonstration_tokens = \[\]"):
        plots.prefix_lengths(empty.config, [])
    with pytest.raises(ConfigError, match=r"runs = \[\]"):
        plots.final_scores([])


def test_token_figures_are_of_rows_with_prefixes_and_one_vocabulary(runs, tmp_path):
    mixed = [run for run in runs if run.method in ("rft", "prefix_rft")]
    for draw in (plots.seam, plots.reward_by_prefix_entropy):
        with pytest.raises(RunError, match="holds no hybrid rows"):
            draw(mixed)
    assert len(plots.relative_position(mixed).axes) == 2
    two = [write_run(tmp_path, "prefix_rft", seed) for seed in (0, 1)]
    for run, name in zip(two, ("aaa", "bbb"), strict=True):
        (run.path / "data.json").write_text(json.dumps({"tokenizer": name}))
    with pytest.raises(
        ConfigError, match=r"have different vocabularies \(aaa, bbb\), so their tokens cannot be joined"
    ):
        plots.seam(two)
    with pytest.raises(RunError, match="problem = 'x' was not followed; these runs followed train-2"):
        plots.demonstration_map(runs, "x")


def test_entropies_that_are_nan_are_refused(tmp_path):
    run = write_run(tmp_path)
    path = next((run.path / "tokens").glob("*.parquet"))
    pd.read_parquet(path).assign(entropy=float("nan")).to_parquet(path)
    for draw in (*plots.TOKEN_FIGURES.values(), plots.demonstration_map, plots.entropy_change):
        with pytest.raises(RunError, match="entropy is NaN at"):
            draw([run])


def kept(run):
    return f"${run.config.prefix.keep_fraction}$"


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    out = tmp_path_factory.mktemp("variants")
    return [write_run(out, seed=seed, **{"prefix.keep_fraction": keep}) for keep in (0.2, 1.0) for seed in (0, 1)]


@pytest.mark.parametrize(
    "name", [*plots.FIGURES, *plots.TOKEN_FIGURES, "final_scores", "pass_at_k", "score_against_cost"]
)
def test_every_figure_compares_variants_of_one_method_by_label(variants, name):
    draw = getattr(plots, name)
    with pytest.raises(ConfigError, match=r"prefix.keep_fraction = 0.2 and 1.0 among the runs"):
        draw(variants)
    figure = draw(variants, label=kept)
    assert set(figure.data["method"]) == {"$0.2$", "$1.0$"}
    assert len(figure.png()) > 1000


def test_a_group_has_one_look_in_all_figures_and_never_that_of_a_method(runs, variants):
    everyone = [*variants, *(run for run in runs if run.method == "rft")]

    def label(run):
        return kept(run) if run.method == "prefix_rft" else run.title

    looks = {group.name: (group.colour, group.marker) for group in plots.groups(everyone, label)}
    assert looks["RFT (Dr.GRPO)"] == plots.METHOD_STYLES["rft"]
    assert looks["$0.2$"] != looks["$1.0$"]
    label.names = ("$0.2$", "$1.0$")  # as labels of a sweep have
    assert {group.name: (group.colour, group.marker) for group in plots.groups(variants[2:], label)}["$1.0$"] == looks[
        "$1.0$"
    ]
    methods = dict(plots.method_looks())
    assert len({*methods.values()}) == len(methods) >= 11 and len({colour for colour, _ in methods.values()}) == len(
        methods
    )
    assert not {colour for colour, _ in methods.values()} & {colour for colour, _ in plots.ARM_STYLES}
    assert len({*plots.ARM_STYLES}) == len(plots.ARM_STYLES) == 64


def test_a_figure_is_declared_from_outside(variants, runs):
    panels = [
        plots.Panel(columns="lr", title="Learning rate"),
        plots.Panel(
            columns={"prefix": "tokens_prefix"}, y="tokens", keep=lambda table: table[table["step"] > 2], scale="log"
        ),
    ]
    figure = plots.figure(variants, panels, title="Steps", label=kept, note="every step")
    lr, tokens = figure.axes
    assert lr.get_ylabel() == "learning rate" and tokens.get_ylabel() == "tokens" and tokens.get_yscale() == "log"
    own = figure.data[figure.data["series"] == "tokens_prefix"]
    assert own["global_step"].min() == 3 and set(own["method"]) == {"$0.2$", "$1.0$"}
    assert own["mean"].to_list() == [42.0] * len(own)
    assert "2 seeds each" in figure.caption and "learning rate; tokens, against training step" in figure.caption
    below = plots.Panel("loss", keep=lambda table: table.assign(value=-1 - table["value"].abs()))
    assert plots.figure(runs, [below], title="Below 0").axes[0].get_ylim()[0] <= -2, "no value lies outside of the axis"
    with pytest.raises(RunError, match="recorded no kl or replay_loss yet"):
        plots.figure(runs, [plots.Panel(columns="kl"), plots.Panel(columns="replay_loss")], title="Nothing")


def test_the_figures_of_the_readme_draw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [write_run(tmp_path, **{"prefix.schedule": schedule}) for schedule in ("cosine", "uniform")]
    names = {"plots": plots, "run": runs[0], "other": runs[1]}
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    drawn = [ast.unparse(node) for block in blocks for node in ast.parse(block).body]
    drawn = [line for line in drawn if line.startswith(("plots.", "panels = "))]
    assert sum("[run, other]" in line for line in drawn) >= 3
    for line in drawn:
        exec(line, names)
    assert (tmp_path / "figures" / "surprise.pdf").is_file()


def test_png_keeps_the_colours_of_groups(runs):
    """Median cut gave a thin line another method's colour."""
    for figure in (plots.demonstration_map(runs), plots.entropy_dynamics(runs)):
        pixels = np.unique(np.asarray(Image.open(io.BytesIO(figure.png())).convert("RGB")).reshape(-1, 3), axis=0)
        for method in ("sft", "rft", "sft_then_rft", "prefix_rft"):
            colour = 255 * np.array(to_rgb(plots.METHOD_STYLES[method][0]))
            assert np.abs(pixels - colour).max(axis=1).min() <= 8, method


def test_a_running_mean_is_never_over_a_cut_window(tmp_path):
    run = write_run(tmp_path, "rft", **{"rl.steps": 60, "records.tokens_every": 0})
    shown = plots.rewards([run]).data["shown"]
    assert shown.isna().to_list() == [True] + [False] * 58 + [True]


def test_hostile_token_texts_stay_text(tmp_path):
    run = write_run(tmp_path, texts=(r"$\frac{", "<script>", "\x00", "漢字", "\u202e", " a b"))
    figure = plots.kept_tokens(run)
    figure.png()
    assert r"$\frac{" in [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    for figure in (plots.forking_tokens([run], least=1), plots.demonstration_map([run])):
        figure.png()
        labels = [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_xticklabels()]]
        assert not any("\u202e" in label or "\x00" in label for label in labels)
    assert plots.visible(" a\n漢\x00") == "␣a⏎\\u6f22\\x00"


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "uniform"])
def test_schedule_figure_matches_the_schedule(kind):
    config = preset("tiny", **{**SMALL, "prefix.schedule": kind})
    data = plots.schedule(config).data
    assert len(data) == config.rl.steps
    drawn = data.filter(like="drawn_")
    assert (drawn.ge(data["low"], axis=0) & drawn.le(data["high"], axis=0)).all(axis=None)


def test_saving_twice_gives_equal_bytes_and_no_paths(runs, tmp_path):
    some = [run for run in runs if run.method in ("rft", "prefix_rft")]
    files = [
        plots.save_figure(plots.entropy_dynamics(some), tmp_path / place / "entropy-0.2", runs=some)
        for place in ("a", "b")
    ]
    assert [path.name for path in files[0]] == [f"entropy-0.2.{e}" for e in ("pdf", "svg", "png", "csv", "json")]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
        assert str(runs[0].path.parent).encode() not in first.read_bytes()
    record = json.loads(files[0][4].read_text())
    assert {entry["run"].split("/")[0] for entry in record["runs"]} == {"tiny"}
    assert {(entry["method"], entry["seed"]) for entry in record["runs"]} == {(r.method, r.seed) for r in some}
    assert all(len(entry["config"]) == len(entry["source"]) == 12 for entry in record["runs"])
    assert len(pd.read_csv(files[0][3])) == len(plots.entropy_dynamics(some).data)


def test_saved_data_can_be_given(tmp_path):
    figure = plots.schedule(preset("tiny", **SMALL))
    paths = plots.save_figure(figure, tmp_path / "s.png", data=pd.DataFrame({"x": [1]}))
    assert paths[3].read_text() == "x\n1\n" and paths[3].name == "s.csv"


def test_no_figure_needs_pyplot():
    code = (
        "import sys; from prefix_rft_lab import plots; from prefix_rft_lab.config import preset;"
        "plots.schedule(preset('tiny'))._repr_png_(); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gradients_by_kind_are_of_methods_that_train_demonstrations_beside_samples(runs):
    figure = plots.gradient_by_kind(runs)
    assert set(figure.data["method"]) == {"prefix_rft"}, "SFT→RFT trains both, but never in one step"
    assert len(figure.axes) == 1
    with pytest.raises(RunError, match="recorded no gradient norms of prefixes beside those of sampled tokens"):
        plots.gradient_by_kind([run for run in runs if run.method == "rft"])


def test_forest_draws_differences_in_groups(runs):
    figure = plots.forest(runs, "rft", groups={"imitation": ["sft_then_rft", "sft"]})
    assert figure.data["method"].to_list() == ["sft_then_rft", "sft", "base", "prefix_rft"]
    assert figure.data["group"].to_list() == ["imitation", "imitation", "", ""]
    means = {run.method: run.summary["splits"]["test"]["avg"] for run in runs}
    assert figure.data["delta"][1] == pytest.approx(means["sft"] - means["rft"])
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks == ["imitation", "SFT→RFT", "SFT", "", "Base policy", "Prefix-RFT"]
    own = plots.forest(runs, {"sft": "rft", "prefix_rft": "base"}, against="its own")
    assert own.data[["method", "control"]].to_numpy().tolist() == [["sft", "rft"], ["prefix_rft", "base"]]
    assert "its own = 0" in own.axes[0].get_xlabel()
    with pytest.raises(ConfigError, match=r"control = 'luffy' is not among the runs; they are base, sft"):
        plots.forest(runs, "luffy")
    with pytest.raises(ConfigError, match=r"control = 'sft' is the only one"):
        plots.forest([run for run in runs if run.method == "sft"], "sft")


def test_doses_become_a_line_a_method_and_controls_levels(tmp_path):
    doses = {0.1: (0, 0, 1, 1, 0, 0), 1.0: (4, 4, 4, 4, 4, 2)}
    runs = [
        write_run(tmp_path, "sft", s, counts=c, **{"data.demonstration_fraction": d})
        for d, c in doses.items()
        for s in (0, 1)
    ]
    rft = [write_run(tmp_path, "rft", counts=(2,) * 6)]
    what = "problems with a demonstration (share)"
    share = lambda run: run.config.data.demonstration_fraction  # noqa: E731
    data = plots.dose_response(runs, share, what=what, controls=rft).data
    assert data["mean"].to_list() == pytest.approx([0.5, 2 / 24, 22 / 24])
    assert data["dose"].to_list()[1:] == [0.1, 1.0] and data["dose"].isna()[0]
    assert (data["low"] <= data["mean"]).all() and (data["mean"] <= data["high"]).all()
    named = plots.dose_response(
        runs, share, what=what, label=lambda run: f"{share(run)}", names=lambda run: "a $_$", log=False
    )
    assert "a $_$" in [text.get_text() for text in named.axes[0].texts]
    with pytest.raises(ConfigError, match="dose = 0 has no place on a logarithmic axis"):
        plots.dose_response(runs, lambda run: 0.0, what=what)


def test_scores_against_cost_start_before_training(runs):
    data = plots.score_against_cost(runs, cost="seconds").data
    sft = data[data["method"] == "sft"]
    assert sft["cost"].to_list() == [0.0, 1.0]
    rft = data[data["method"] == "rft"]
    assert rft["cost"].to_list() == [0.0, 3.0, 6.0]
    with pytest.raises(ConfigError, match="cost = 'joules' is not known"):
        plots.score_against_cost(runs, cost="joules")
    with pytest.raises(ConfigError, match="nothing was spent"):
        plots.score_against_cost([run for run in runs if run.method == "base"])
