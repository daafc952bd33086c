"""The page stands alone, says who won, and shows hostile text as text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from run_factory import SMALL, write_run

from prefix_rft_lab import plots, report, stats, sweeps
from prefix_rft_lab.analysis.budgets import budgets
from prefix_rft_lab.config import ConfigError, preset
from prefix_rft_lab.report import write_report
from prefix_rft_lab.runs import Run


@pytest.fixture
def quick(monkeypatch):
    """Figures as PNG only: subsetting the fonts of PDFs takes most of a report's time."""

    def save(figure, stem, *, runs):
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_name(f"{stem.name}.png").write_bytes(figure.png(50))

    monkeypatch.setattr(plots, "save_figure", save)


HOSTILE = "</script></title><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements, attributes, text; and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    counts = {"base": 0, "rft": 1, "prefix_rft": 2}
    return [
        write_run(
            out,
            method,
            seed,
            counts=(2 + count, count, 1, 2, 0, count),
            splits=("test", "ood"),
            levels=("easy", HOSTILE),
        )
        for method, count in counts.items()
        for seed in ((0,) if method == "base" else (0, 1))
    ]


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    written = write_report(
        out, runs=runs, title=f"Who won {HOSTILE}", seconds=75.0, notebooks=[Path("/x/02_train.ipynb")]
    )
    assert written == out / "report.html"
    return out


@pytest.fixture(scope="module")
def page(folder):
    return Page(folder / "report.html")


def test_the_page_asks_nothing_of_the_network(page):
    assert not page.open
    assert not page.all("script") and not page.all("link") and not page.all("iframe") and not page.all("base")
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                # A link loads nothing; it leads into the page or to a file of a figure beside it.
                allowed = ("#", "figures/") if tag == "a" else ("data:image/png;base64,",)
                assert str(value).startswith(allowed), (tag, name, str(value)[:60])
    styles = re.findall(r"<style>(.*?)</style>", page.source, re.S)
    assert styles and not any("url(" in style or "@import" in style for style in styles)
    assert "http://" not in page.source and "https://" not in page.source


def test_hostile_text_stays_text(page, folder):
    assert len(page.all("title")) == 1
    assert all(attributes["src"].startswith("data:") for attributes in page.all("img"))
    assert page.text.count(HOSTILE) >= 3  # title, heading, the level's column
    markdown = (folder / "report.md").read_text()
    assert "<img" not in markdown and "&lt;img" in markdown


def test_the_verdict_comes_before_tables_and_figures(page, runs):
    lines = stats.verdicts(runs)
    assert all(line in page.text for line in lines)
    places = [
        page.source.index(part) for part in ("which method of post-training", "Highest mean", "<table", "<figure")
    ]
    assert places == sorted(places)


def test_the_answer_comes_first_with_a_figure_a_table_and_what_it_cost(page, runs):
    first = page.source[page.source.index("<h1") : page.source.index("<h2")]
    assert stats.answer(runs) in page.text and first.count("<table>") == 1 and first.count('class="plot"') == 1
    assert first.count('class="dot"') == 3 and first.count('class="seed"') == 1 + 2 + 2
    budget = budgets(stats.group(runs))
    # 8 steps of 16 problems x 8 rows, all sampled; 42 prefix tokens a step; half a second of rollouts, a quarter of updates.
    assert budget.loc["prefix_rft"].to_dict() == {"steps": 8, "rows": 8 * 128, "demonstrations": 8 * 42, "seconds": 6}
    assert budget.loc["base"].tolist() == [0, 0, 0, 0]
    for caption in ("Scores and cost", "Final scores on test", "Final scores on ood"):
        table = page.source[page.source.index(f"<caption>{caption}") :]
        heads = re.findall(r'<th scope="col">(.*?)</th>', table[: table.index("</thead>")])
        assert heads[-4:] == ["Optimizer steps", "Rows sampled", "Demonstration tokens trained", "Seconds"]


def test_two_seeds_have_no_interval_in_any_table(page, folder):
    assert "two seeds decide little" in page.text[: page.text.index("Rests on")]
    rows = re.findall(r'<th scope="row">(?:RFT|Prefix-RFT).*?</tr>', page.source)
    scores = [row for row in rows if "0." in row]
    assert len(scores) >= 8 and not any(re.search(r"\[[-+\d]", row) for row in scores)
    assert "none: two seeds decide little" in (folder / "report.md").read_text()


def test_the_page_is_accessible(page):
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("img") and all(len(attributes["alt"]) > 40 for attributes in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")} <= set(ids)
    assert "prefers-color-scheme: dark" in page.source and "width=device-width" in page.source


def test_tables_carry_n_scores_config_and_drops(page):
    for words in (
        "n = 6 problems",
        "95% Student's t intervals",
        "1 min 15 s",
        "3 × prompt too long",
        "rl.steps",
        "02_train.ipynb",
    ):
        assert words in page.text, words
    assert "/x/02_train" not in page.source
    assert page.text.count("changed") >= 4


def test_no_path_of_this_machine_anywhere(folder, runs):
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(runs[0].path.parent.parent).encode() not in path.read_bytes(), path
            assert str(folder).encode() not in path.read_bytes(), path


def test_summary_is_small_strict_json(folder, runs):
    text = (folder / "report.json").read_text()
    assert len(text) < 40_000 and "NaN" not in text
    summary = json.loads(text)
    table = {row["method"]: row for row in summary["compare"]["test"]}
    assert table["prefix_rft"]["mean"] == pytest.approx(
        stats.compare(runs).set_index("method").loc["prefix_rft", "mean"], abs=1e-6
    )
    assert table["base"]["delta"] is None
    assert summary["methods"]["rft"]["seeds"] == [0, 1]
    assert summary["verdicts"]["test"] == stats.verdicts(runs)
    assert len(summary["source"]["runs"]) == 1 and summary["seconds"] == 75.0


def test_markdown_has_the_same_tables(folder, page):
    markdown = (folder / "report.md").read_text()
    for caption in ("Final scores on test", "Final scores on ood", "Resolved configuration", "Run directories"):
        assert f"## {caption}" in markdown and caption in page.text
    widths = [line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert min(widths) >= 3


def test_figures_are_saved_beside_it(folder, page):
    stems = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {
        "entropy_dynamics",
        "final_scores-test",
        "final_scores-ood",
        "learning_curves",
        "kept_tokens",
        "seam",
        "collapse",
    } <= stems
    assert len(page.all("img")) == len(stems)
    for ending in ("pdf", "svg", "csv", "json"):
        assert {path.stem for path in (folder / "figures").glob(f"*.{ending}")} == stems


def test_every_figure_links_to_its_files(folder):
    page = Page(folder / "report.html")
    links = [unquote(link["href"]) for link in page.all("a") if not link["href"].startswith("#")]
    assert len(set(links)) == len(links) == 5 * len(page.all("figure")) > 100
    assert all((folder / link).is_file() for link in links)


def test_equal_runs_give_an_equal_report(quick, runs, tmp_path):
    for place, given in (("a", runs), ("b", runs[::-1])):
        write_report(tmp_path / place, runs=given, title="Equal", seconds=75.0)
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_unfinished_runs_are_named_and_left_out(quick, tmp_path):
    runs = [write_run(tmp_path / "r", "rft"), write_run(tmp_path / "r", "prefix_rft", done=False, steps=3)]
    page = Page(write_report(tmp_path / "out", runs=runs, title="Half way"))
    assert "Not finished, so not in the final scores: tiny/prefix_rft-" in page.text
    assert "is the only one among the runs" in page.text
    assert "3 steps so far" in page.text


def test_a_report_before_any_run_is_finished(quick, tmp_path):
    runs = [write_run(tmp_path / "r", "rft", done=False, steps=2)]
    assert "no verdict yet" in Page(write_report(tmp_path / "out", runs=runs, title="Early")).text


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match=r"runs = \[\]"):
        write_report(tmp_path, runs=[], title="None")
    mixed = [write_run(tmp_path, "rft"), write_run(tmp_path, "rft", 1, **{"rl.lr": 0.1})]
    with pytest.raises(ConfigError, match=r"rl.lr = 0.0003 and 0.1"):
        write_report(tmp_path / "out", runs=mixed, title="Mixed")
    assert not (tmp_path / "out").exists()


def test_claims_tuning_and_sweeps_stand_in_it(quick, monkeypatch, tmp_path):
    fields = SMALL | {"rl.lr": preset("tiny").rl.lr, "sft.lr": preset("tiny").sft.lr}
    arms = {"prefix_rft": {"method": "prefix_rft"}, "rft": {"method": "rft"}, HOSTILE: {"method": "sft"}}
    plan = sweeps.plan(
        {"name": "methods", "folder": "tiny", "tuned": True, "set": fields, "arms": arms, "seeds": [0, 1]}
    )
    given = [write_run(tmp_path / "r", planned.config.method, planned.config.seed) for planned in plan.runs]
    tuned = {
        "metric": "avg@8 of 256 validation problems",
        "fields": {"rft": {"rl.lr": 0.1}},
        "tried": [
            {"method": "rft", "fields": {"rl.lr": lr}, "avg": 0.25, "scores": [0.2, 0.3], "seeds": [7, 8]}
            for lr in (0.1, 0.2)
        ],
    }
    (tmp_path / "tuned.json").write_text(json.dumps(tuned))
    monkeypatch.setattr(report, "TUNED", tmp_path / "tuned.json")
    out = tmp_path / "out"
    page = Page(write_report(out, runs=given, title="All", sweeps={"methods": (plan, given)}))
    places = [page.source.index(part) for part in ("<h1", "Highest mean", "Claims: ", "Tuning on the validation split")]
    assert places == sorted(places) and not page.open
    assert HOSTILE in page.text and "Sweep methods" in page.text and "rl.lr = 0.1" in page.text
    # What waits for runs is one folded line.
    waiting = [line for line in page.text.splitlines() if "claims wait for their runs" in line]
    assert len(waiting) == 1 and "missing" not in page.source[places[2] : page.source.index("claims wait")]
    assert "0.200, 0.300" in page.text and "avg@8 of 256 validation problems" in page.text
    assert {"figure-claims", "figure-sweep-methods"} <= {a.get("id") for a in page.all("figure")}
    summary = json.loads((out / "report.json").read_text())
    assert len(summary["claims"]) == 36 and summary["claims"][0]["id"] == "over_rft"
    assert {row["method"] for row in summary["sweeps"]["methods"]} == set(arms)
    markdown = (out / "report.md").read_text()
    assert "Prefix-RFT scores higher than RFT." in markdown and "<img" not in markdown


def test_a_report_into_the_folder_of_a_run_leaves_the_run_whole(quick, tmp_path):
    run = write_run(tmp_path, "sft")
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    write_report(run.path, runs=[run], title="x")
    assert {path: path.read_bytes() for path in files} == files
    run.check()


def test_a_run_that_is_damaged_is_named_and_stops_no_report(quick, tmp_path):
    good = [write_run(tmp_path, method) for method in ("base", "sft")]
    bad = [write_run(tmp_path, "rft", seed) for seed in range(3)]
    (bad[0].path / "env.json").write_text("[]")
    (bad[1].path / "config.json").write_text("{")
    (bad[2].path / "metrics.jsonl").unlink()
    page = Page(write_report(tmp_path / "report", runs=[Run(run.path) for run in (*good, *bad)], title="x"))
    for run, name in zip(bad, ("env.json", "config.json", "metrics.jsonl"), strict=True):
        assert f"Left out: tiny/{run.path.name}/{name} is damaged (" in page.text
    summary = json.loads((tmp_path / "report" / "report.json").read_text())
    assert sorted(summary["methods"]) == ["base", "sft"]
    assert str(tmp_path) not in page.source
    with pytest.raises(ConfigError, match=r"no run can be read: tiny/rft-.*config\.json is damaged"):
        write_report(tmp_path / "report", runs=[Run(bad[1].path)], title="x")


def test_a_report_stays_in_its_folder(tmp_path):
    run = write_run(tmp_path / "runs", "sft")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "page").write_text("mine")
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.html").symlink_to(tmp_path / "elsewhere" / "page")
    (folder / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ConfigError, match=r"figures is a link to .*elsewhere; take it away, since a report stays in its"
    ):
        write_report(folder, runs=[run], title="x")
    (folder / "figures").unlink()
    (folder / "figures").mkdir()
    (folder / "figures" / "loss.png").symlink_to(tmp_path / "elsewhere" / "page")
    write_report(folder, runs=[run], title="x")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["page"]
    assert (tmp_path / "elsewhere" / "page").read_text() == "mine"
