"""The recorded cases pass, and a wrong number, kind or file fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from prefix_rft_lab import losses
from published import parity, rivals
from published.assembly import assemble_published
from published.parity import KINDS, NOT_COMPARED, format_results, passed, run_parity

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(GOLDEN.glob("*.json"))


def _copy(name, folder, change=None):
    case = json.loads((GOLDEN / name).read_text())
    if change:
        change(case)
    (folder / name).write_text(json.dumps(case))
    return run_parity(folder)


def test_golden_folder_passes_in_full():
    results = run_parity(GOLDEN)
    assert passed(results), format_results(results)
    assert {result.kind for result in results} == set(KINDS) - set(rivals.KINDS)  # these: test_rivals.py
    assert sum(result.cases for result in results) == len(CASES) > 0
    assert all(0 <= result.worst < 0.5 for result in results)


def test_every_recorded_number_is_compared():
    def numbers(value):
        if isinstance(value, dict):
            return sum(numbers(item) for key, item in value.items() if key not in NOT_COMPARED)
        return sum(numbers(item) for item in value) if isinstance(value, list) else 1

    recorded = sum(numbers(json.loads(path.read_text())["outputs"]) for path in CASES)
    assert sum(result.values for result in run_parity(GOLDEN)) == recorded


def _add_to_first_number(container, key):
    """Add 0.01 to a number, or to the first one compared in nested lists and mappings."""
    value = container[key]
    if isinstance(value, list):
        _add_to_first_number(value, 0)
    elif isinstance(value, dict):
        _add_to_first_number(value, next(name for name in value if name not in NOT_COMPARED))
    else:
        container[key] += 0.01


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_output_of_every_case_matters(path, tmp_path):
    """Changing one number of any recorded output makes the case fail."""
    for name in json.loads(path.read_text())["outputs"]:
        results = _copy(path.name, tmp_path, lambda case, name=name: _add_to_first_number(case["outputs"], name))
        assert not passed(results), name


def test_tampered_case_names_the_field(tmp_path):
    def change(case):
        case["outputs"]["loss"] *= 1.01

    results = _copy("policy_loss_token_mean_01.json", tmp_path, change)
    assert not passed(results)
    text = format_results(results)
    assert "FAIL" in text and "policy_loss_token_mean_01: loss is off" in text


def test_wrong_library_fails(tmp_path, monkeypatch):
    """The comparison runs the library: breaking the library breaks it."""
    assert passed(_copy("policy_loss_dr_grpo_02.json", tmp_path))
    real = losses.policy_loss_tokens
    monkeypatch.setattr(losses, "policy_loss_tokens", lambda *a, **k: real(*a, **(k | {"clip_high": 0.5})))
    assert not passed(run_parity(tmp_path))


def test_random_choice_must_leave_other_values_alone(tmp_path, monkeypatch):
    real = parity.apply_transforms

    def careless(names, batch):
        after = real(names, batch)
        after.advantages[..., -1] += 1
        return after

    monkeypatch.setattr(parity, "apply_transforms", careless)
    results = _copy("reshape_random_02.json", tmp_path)
    assert not passed(results) and "changed more" in format_results(results)


def test_biased_sampler_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(parity.schedules, "sample_window", lambda low, high, a, b, rng: low + 0.4 * (high - low))
    results = _copy("schedule_window_01.json", tmp_path)
    assert not passed(results) and "standard errors" in format_results(results)


def test_unknown_kind_fails(tmp_path):
    results = _copy("policy_loss_token_mean_01.json", tmp_path, lambda case: case["meta"].update(kind="astrology"))
    assert not passed(results)
    assert "kind = 'astrology' is not known" in format_results(results)


def test_output_that_is_not_computed_fails(tmp_path):
    results = _copy("schedule_linear_01.json", tmp_path, lambda case: case["outputs"].update(slope=[1.0]))
    assert not passed(results) and "slope is recorded but not computed" in format_results(results)


def test_case_without_outputs_fails(tmp_path):
    assert not passed(_copy("schedule_linear_01.json", tmp_path, lambda case: case["outputs"].clear()))


def test_shape_and_nan_fail(tmp_path):
    results = _copy("schedule_linear_01.json", tmp_path, lambda case: case["outputs"]["values"].pop())
    assert not passed(results) and "shape" in format_results(results)
    change = lambda case: case["outputs"]["values"].__setitem__(0, float("nan"))  # noqa: E731
    assert not passed(_copy("schedule_linear_01.json", tmp_path, change))


def test_missing_input_fails_in_one_line(tmp_path):
    results = _copy("schedule_linear_01.json", tmp_path, lambda case: case["inputs"].pop("steps"))
    assert not passed(results) and "KeyError: 'steps'" in format_results(results)


@pytest.mark.parametrize("text", ["{", "[]", '{"meta": {}}', '{"meta": {}, "inputs": {}, "outputs": {}}'])
def test_malformed_file_fails_without_hiding_the_others(text, tmp_path):
    shutil.copy(GOLDEN / "schedule_linear_01.json", tmp_path)
    (tmp_path / "broken.json").write_text(text)
    results = run_parity(tmp_path)
    assert not passed(results)
    assert [result.kind for result in results if result.ok] == ["schedule"]
    assert "broken.json" in format_results(results)


def test_empty_or_missing_folder_fails(tmp_path):
    for folder, words in ((tmp_path, "holds no"), (tmp_path / "nowhere", "is not a folder")):
        results = run_parity(folder)
        assert not passed(results) and words in format_results(results)
    assert not passed([])


def test_assembly_where_padding_is_the_end_token():
    # Prompt 5, prefix 6; continuation 7 and then padding with id 0, which is also the end token: the first
    # padding place counts as the end. The second row was cut before any end.
    batch = assemble_published(
        torch.tensor([[0, 5, 6], [0, 0, 5]]),
        torch.tensor([[7, 0, 0], [7, 8, 9]]),
        [1, 1],
        [4, 0],
        pad_id=0,
        eos_id=0,
        max_response_len=3,
    )
    assert batch.prompts.tolist() == [[5], [5]]
    assert batch.responses.tolist() == [[6, 7, 0], [7, 8, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert batch.prefix_mask.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert batch.prefix_relpos.tolist() == [[0.25, -1, -1], [-1, -1, -1]]


def test_parity_passes_on_the_recorded_cases_and_fails_on_what_it_does_not_know(tmp_path, capsys):
    name = "advantage_dr_grpo_01.json"
    case = json.loads((GOLDEN / name).read_text())
    (tmp_path / name).write_text(json.dumps(case))
    assert parity.main(str(tmp_path)) == 0
    assert "parity ok" in capsys.readouterr().out
    (tmp_path / "other.json").write_text(json.dumps({**case, "meta": {**case["meta"], "kind": "horoscope"}}))
    assert parity.main(str(tmp_path)) == 1
    assert "horoscope" in capsys.readouterr().out
    (tmp_path / "other.json").unlink()
    case["outputs"]["advantages"][0][0] += 1.0
    (tmp_path / name).write_text(json.dumps(case))
    assert parity.main(str(tmp_path)) == 1
    assert parity.main(str(tmp_path / "nowhere")) == 1
