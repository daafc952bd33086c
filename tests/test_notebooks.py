"""Every notebook of the repository, executed headlessly in the smoke profile, and what they must look like at rest."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from prefix_rft_lab import demonstrations, entropy_analysis, stats, sweeps
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.experiments.profiles import PROFILES
from prefix_rft_lab.notebooks import parameters_of, reproduce
from prefix_rft_lab.runs import FOLLOWED, Run
from prefix_rft_lab.trainer import train

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import publish_results

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
MAIN_METHODS = ("base", "sft", "rft", "sft_then_rft", "prefix_rft")


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the main job leaves, in the smoke profile."""
    return reproduce("smoke", tmp_path_factory.mktemp("reproduction"), progress=False).parent


@pytest.fixture(scope="module")
def main_runs(reproduction: Path):
    """The runs of the main comparison."""
    return sweeps.finished(sweeps.plan("main", "smoke"), reproduction / "runs")


def test_the_sequence_is_complete():
    assert NAMES == [
        "01_build_prefixes",
        "02_train",
        "03_entropy_and_loss",
        "04_demo_quality",
        "05_data_fraction",
        "06_components",
        "07_methods",
        "08_your_own_idea",
        "10_the_step_again",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_source_is_clean(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "commit notebooks without outputs"
    assert all(len(cell.source.splitlines()) <= 25 for cell in code)
    assert code[-1].source == f'notebooks.finish(experiment.out, "{name}")'
    assert {"profile", "out"} <= parameters_of(FOLDER / f"{name}.ipynb").keys()
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in ("**Claim.**", "**Control", "**Needs.**", "## Limits"):
        assert part in prose


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_executed_notebook(reproduction, name):
    path = reproduction / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    counts = [cell.execution_count for cell in code]
    assert counts == sorted(counts) and None not in counts, "every cell was executed, in order"
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not any(re.search(r"Warning\b", output.get("text", "")) for output in outputs)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    # Where it was run, its parameters name the folder; what is published names none.
    text = publish_results.copied(path, reproduction).decode()
    assert str(Path.home()) + "/" not in text and str(reproduction) not in text, "no paths of this machine"


@pytest.mark.slow
def test_what_the_main_job_leaves(reproduction, main_runs):
    assert {run.method for run in main_runs} == set(MAIN_METHODS)
    for name in PROFILES["smoke"].sweeps:
        planned = sweeps.plan(name, "smoke").configs
        assert {sweeps.state(config, reproduction / "runs").name for config in planned} == {"finished"}
    assert (reproduction / "report.html").stat().st_size > 10_000
    assert len(list((reproduction / "figures").glob("*.pdf"))) >= 8
    summary = json.loads((reproduction / "report.json").read_text())
    assert summary["verdicts"]["test"] and summary["verdicts"]["ood"]
    for run in main_runs:
        assert run.done and run.summary["splits"].keys() == {"test", "ood"}
        if run.method != "base":
            assert len(run.metrics) == sum(
                getattr(run.config, stage).steps
                for stage in {"sft": ["sft"], "sft_then_rft": ["sft", "rl"]}.get(run.method, ["rl"])
            )


@pytest.mark.slow
def test_claim_of_notebook_1_at_smoke_size(main_runs):
    """Where it holds for sure: prefixes are as long as the schedule says, and hybrid rows carry the demonstration."""
    run = next(run for run in main_runs if run.method == "prefix_rft")
    metrics = run.metrics
    assert (metrics["prefix_ratio"].between(metrics["prefix_ratio_low"], metrics["prefix_ratio_high"])).all()
    assert metrics["prefix_ratio_low"].is_monotonic_decreasing
    tokens = run.tokens
    hybrid = (
        tokens[tokens["kind"] == "prefix"].groupby(["step", "problem", "row"])["position"].agg(["min", "max", "size"])
    )
    assert (hybrid["min"] == 0).all() and (hybrid["max"] + 1 == hybrid["size"]).all()


@pytest.mark.slow
def test_claim_of_notebook_3_at_smoke_size(main_runs):
    """Where it holds for sure: a few SFT steps lower the NLL of the demonstrations, and the clip keeps a fifth."""
    runs = {run.method: run for run in main_runs}
    nll = runs["sft"].evaluations["demonstration_nll"]
    assert nll.iloc[-1] < nll.iloc[0]
    kept = runs["prefix_rft"].metrics
    expected = (kept["tokens_prefix"] - (kept["tokens_prefix"] * 0.8).astype(int)) / kept["tokens_prefix"]
    assert kept["kept_share"].to_list() == pytest.approx(expected.to_list(), abs=1e-6)
    # All methods start from one policy, so they read a followed demonstration alike at first.
    trained = [run for method, run in runs.items() if method != "base"]
    read = [run.tokens[(run.tokens["row"] == FOLLOWED) & (run.tokens["step"] == 0)] for run in trained]
    for table in read[1:]:
        assert table["entropy"].to_numpy() == pytest.approx(read[0]["entropy"].to_numpy(), abs=1e-5)
    # And what an update does to their entropies is what its covariance says, as long as its step is small: SFT's learning
    # rate is ten times theirs.
    for method in ("rft", "prefix_rft"):
        change = entropy_analysis.recorded_change(runs[method].tokens)
        large = change[change["observed"].abs() > 1e-3]
        assert len(large) > 20
        assert ((large["predicted"] > 0) == (large["observed"] > 0)).mean() > 0.9
        assert (large["predicted"] / large["observed"] - 1).abs().median() < 0.25


def arms_of(name: str, reproduction: Path, **values) -> dict[str, Run]:
    """The first run of each arm of a sweep."""
    plan = sweeps.plan(name, "smoke").select(**values)
    found = zip(plan.runs, sweeps.finished(plan, reproduction / "runs"), strict=True)
    return {planned.arm: run for planned, run in reversed(list(found))}


@pytest.mark.slow
def test_claim_of_notebook_4_at_smoke_size(reproduction):
    """Where it holds for sure: who writes how long and how well, and that all methods read the same texts."""
    by_method = [arms_of("demo_quality", reproduction, method=method) for method in ("prefix_rft", "sft")]
    read = {arm: demonstrations.read(run.config, reproduction / "runs") for arm, run in by_method[0].items()}
    assert read["terse"]["tokens"].mean() < read["thorough"]["tokens"].mean()
    right = {arm: table["right"].mean() for arm, table in read.items()}
    assert right["thorough"] == right["terse"] == 1 > max(right["weaker expert"], right["self-generated"])
    for arm, table in read.items():
        first = [arms[arm].evaluations["demonstration_nll"].iloc[0] for arms in by_method]
        assert first[0] == pytest.approx(first[1]), f"{arm}: one set of demonstrations for all methods"
        assert len(table)


@pytest.mark.slow
def test_claim_of_notebook_5_at_smoke_size(reproduction, main_runs):
    """Where it holds for sure: how much each arm had, and that the control used no demonstration."""

    def counted(run: Run) -> tuple[int, int]:
        data = json.loads((run.path / "data.json").read_text())
        return data["train"], data["with_demonstration"]

    shares = arms_of("demonstration_fraction", reproduction, method="sft")
    assert {arm: counted(run) for arm, run in shares.items()} == {"100%": (64, 64), "10%": (64, 6)}
    fewer = arms_of("problem_fraction", reproduction, method="rft")
    assert {arm: counted(run) for arm, run in fewer.items()} == {"100%": (1024, 1024), "1%": (10, 10)}
    control = next(run for run in main_runs if run.method == "rft")
    assert (control.metrics["tokens_prefix"] == 0).all()


@pytest.mark.slow
def test_claim_of_notebook_6_at_smoke_size(reproduction):
    """Where it holds for sure: each arm changes the part that it names."""
    arms = arms_of("components", reproduction)
    first = {arm: run.metrics.iloc[0] for arm, run in arms.items()}
    assert first["keep bottom 20%"]["kept_threshold"] < first["prefix_rft"]["kept_threshold"]
    assert first["keep bottom 20%"]["kept_share"] == pytest.approx(first["prefix_rft"]["kept_share"], abs=0.02)
    assert (arms["uniform schedule"].metrics["prefix_ratio_low"] == 0.05).all()
    assert first["prefix_rft"]["grad_norm_prefix"] > 0
    assert not first["frozen prefix"].get("grad_norm_prefix", 0.0) > 0
    assert (arms["rft"].metrics["tokens_prefix"] == 0).all()


@pytest.mark.slow
def test_claim_of_notebook_8_at_smoke_size(reproduction):
    """Where it holds for sure: all arms begin with the same rollouts, and each is paid by its own weights."""
    runs = [Run(path.parent) for path in (reproduction / "runs" / "own-idea").glob("*/DONE.json")]
    assert len(runs) == 4
    assert len({run.metrics["rewards_lines"].iloc[0] for run in runs}) == 1
    weights = {run.path: run.data["rewards"]["lines"]["weight"] for run in runs}
    assert sorted(weights.values()) == [0, 0, 0, 0.5]
    for run in runs:
        paid = run.metrics["rewards_exact"] + weights[run.path] * run.metrics["rewards_lines"]
        assert run.metrics["reward"].to_list() == pytest.approx(paid.to_list())


def test_without_kept_tokens_no_prefix_token_has_an_advantage(small, tmp_path):
    run = train(small(**{"prefix.keep_fraction": 0.0}), out=tmp_path)
    assert (run.metrics["kept_share"] == 0).all()
    prefix = run.tokens.query("kind == 'prefix' and row != @FOLLOWED")
    assert len(prefix) and (prefix["advantage"] == 0).all()


@pytest.mark.slow
def test_claim_of_notebook_7_at_smoke_size(reproduction):
    """Where it holds for sure: what is paid for, and how much was sampled."""
    arms = arms_of("methods", reproduction)
    paid = {arm: stats.spent(run).iloc[-1] for arm, run in arms.items()}
    assert paid["base"].sum() == 0
    assert paid["sft"]["sampled"] == 0 < paid["sft"]["trained"]
    assert paid["rft"]["trained"] == paid["rft"]["sampled"] > 0
    assert paid["prefix_rft"]["sampled"] < paid["prefix_rft"]["trained"]
    profile = PROFILES["smoke"]
    for run in arms.values():
        table = run.evaluation("many")
        assert (table["k"] == profile.many_samples).all() and len(table) == profile.many_problems
        assert table["id"].to_list() == run.evaluation("test")["id"].to_list()[: len(table)]


def test_profiles_differ_in_size_only():
    allowed = {"rl.steps", "sft.steps", "rollout.problems_per_step"}
    for profile in PROFILES.values():
        assert all(
            name in allowed or name.split(".")[0] in ("data", "evaluation", "records") for name in profile.changes
        )
    assert len(PROFILES["quick"].seeds) >= 2 and len(PROFILES["full"].seeds) >= 5
    configs = sweeps.plan("main", "quick").configs
    assert {config.method for config in configs} == set(MAIN_METHODS)
    assert sum(config.method == "base" for config in configs) == 1
    assert len({(config.method, config.seed) for config in configs}) == len(configs)
    with pytest.raises(ConfigError, match=r"profile = 'huge' .* smoke, quick, full"):
        sweeps.plan("main", "huge")


RESULTS = FOLDER.parent / "results" / "full"


PUBLISHED = [name for name in NAMES if (RESULTS / "notebooks" / f"{name}.ipynb").is_file()]


def test_what_is_not_published_is_named():
    """The README says which notebooks have not been run in the full profile."""
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    missing = [name for name in NAMES if name not in PUBLISHED]
    assert {"01_build_prefixes", "02_train", "03_entropy_and_loss"} <= set(PUBLISHED)
    for name in missing:
        assert re.search(rf"not run in the full profile yet:[^;]*{name}", readme), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_committed_notebooks_are_whole(name):
    """What a reader on GitHub sees: executed to the end, in order, without an error or a path, below 1 MB."""
    path = RESULTS / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    source = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    own = [cell.source for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    assert own == [cell.source for cell in source.cells], "the notebook changed since: publish the results again"
    assert path.stat().st_size < 1_000_000 and '"/' not in "".join(own)


def test_committed_results_separate_base_and_methods():
    """The claims of notebook 2, on the summary of the full profile."""
    summary = json.loads((RESULTS / "report.json").read_text())
    rows = {row["method"]: row for row in summary["compare"]["test"]}
    assert set(rows) == set(MAIN_METHODS)
    base = rows.pop("base")
    assert all(
        row["seeds"] >= 5 and row["delta_low"] > 0 and row["avg_low"] > base["avg_high"] for row in rows.values()
    )
    assert all(rows["rft"]["avg_high"] < rows[name]["avg_low"] for name in ("sft", "sft_then_rft", "prefix_rft"))
