"""Many samples of many finished runs: kept, resumed, and refused in one sentence."""

from __future__ import annotations

import json

import pytest

from prefix_rft_lab import pool, stats
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.evaluation_run import sample_all
from prefix_rft_lab.runs import Run, RunError
from prefix_rft_lab.trainer import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small) -> list[Run]:
    out = tmp_path_factory.mktemp("runs")
    return [train(small(method=method, **{"sft.steps": 1}), out=out) for method in ("base", "sft")]


@pytest.mark.slow
def test_runs_are_sampled_once_and_alike(runs):
    assert sample_all(runs, k=4, problems=3, progress=False) == runs
    tables = [run.evaluation("many") for run in runs]
    for run, table in zip(runs, tables, strict=True):
        assert table.columns.to_list() == run.evaluation("test").columns.to_list()
        assert (table["k"] == 4).all() and table["id"].to_list() == run.evaluation("test")["id"].to_list()[:3]
    curve = stats.pass_curve(runs, "many")
    assert curve.groupby("method")["k"].max().to_dict() == {"base": 4, "sft": 4}
    paths = [run.path / "evaluation" / "many.parquet" for run in runs]
    before = [path.stat().st_mtime_ns for path in paths]
    sample_all(runs, k=4, problems=3, progress=False)
    sample_all(runs, k=4, problems=2, split="ood", progress=False)
    assert [path.stat().st_mtime_ns for path in paths] == before, "what is there is kept, other splits have their own"
    assert runs[0].evaluation("many_ood")["id"].to_list() == runs[0].evaluation("ood")["id"].to_list()[:2]
    sample_all(runs[:1], k=2, problems=3, workers=1, progress=False)
    assert (runs[0].evaluation("many")["k"] == 2).all(), "another size is sampled anew"
    # The keys are those of the final evaluation, which took two samples.
    final = runs[0].evaluation("test")["correct"].to_list()[:3]
    assert runs[0].evaluation("many")["correct"].to_list() == final


@pytest.mark.slow
def test_one_that_fails_stops_no_other(runs, tmp_path, small):
    broken = train(small(method="base"), out=tmp_path)
    (broken.path / "model" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"model.safetensors is damaged"):
        sample_all([broken, runs[1]], k=3, problems=2, workers=1, progress=False)
    # An older run kept no hashes, so that a worker finds it first.
    done = json.loads((broken.path / "DONE.json").read_text())
    (broken.path / "DONE.json").write_text(json.dumps({**done, "files": {}}))
    with pytest.raises(RunError, match=r"1 of 2 runs were not sampled") as caught:
        sample_all([broken, runs[1]], k=3, problems=2, workers=1, progress=False)
    assert broken.path.name in str(caught.value) and "not started" not in str(caught.value)
    assert (runs[1].evaluation("many")["k"] == 3).all()


def test_what_cannot_be_sampled_is_refused_before_anything_starts(runs, tmp_path, small, monkeypatch):
    monkeypatch.setattr(pool, "_Worker", None)
    with pytest.raises(ConfigError, match="k = 0 cannot be used"):
        sample_all(runs, k=0, problems=1)
    bare = train(small(method="base", **{"records.save_model": False}), out=tmp_path)
    with pytest.raises(ConfigError, match="is a run without saved weights"):
        sample_all([bare], k=1, problems=1)
    (bare.path / "DONE.json").unlink()
    with pytest.raises(ConfigError, match="is not finished"):
        sample_all([bare], k=1, problems=1)
