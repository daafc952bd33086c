"""The algorithm on one page and the kit's own training, side by side."""

from __future__ import annotations

import ast
import importlib.util
import io
import tokenize
from pathlib import Path

import pytest

from prefix_rft_lab.core.config import preset
from prefix_rft_lab.training.trainer import train

PAGE = Path(__file__).parent.parent / "prefix_rft.py"
STEPS = 12


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("prefix_rft_page", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_and_kit_train_alike(page, tmp_path, monkeypatch):
    # What is not training is left out; the decay is that of a whole run, so that the prefixes are those of one.
    changes = {
        "model.device": "cpu",
        "rl.steps": STEPS,
        "prefix.decay_steps": page.STEPS,
        "evaluation.every": 0,
        "evaluation.hard_tries": 0,
        "evaluation.k": 1,
        "evaluation.problems": 4,
        "evaluation.final_splits": (),
        "records.tokens_every": 0,
        "records.diagnostics_every": 0,
        "records.save_model": False,
    }
    config = preset("tiny", method="prefix_rft", **changes)
    recorded = []
    train(config, out=tmp_path, progress=False, on_step=recorded.append)
    lines = list(page.train(config, STEPS))
    assert len(recorded) == len(lines) == STEPS
    for ours, kit in zip(lines, recorded, strict=True):
        assert ours["reward"] == pytest.approx(kit["reward"], abs=1e-12)
        assert ours["prefix_tokens"] == pytest.approx(kit["prefix_tokens"], abs=1e-12)
        assert ours["loss"] == pytest.approx(kit["loss"], abs=1e-7)
        assert ours["grad_norm"] == pytest.approx(
            kit["grad_norm"], rel=1e-4
        )  # float32 rounding; other math is off by 1e-1
    assert len({line["loss"] for line in lines}) > 1


def test_page_has_the_numbers_of_the_preset(page):
    config = preset("tiny", method="prefix_rft")
    rollout, prefix = config.rollout, config.prefix
    assert (config.seed, config.rl.steps, rollout.max_response_tokens) == (page.SEED, page.STEPS, page.LONGEST)
    assert (rollout.problems_per_step, rollout.rows_per_problem) == (page.PROBLEMS, page.ROWS)
    assert (prefix.high, prefix.low, prefix.keep_fraction) == (page.HIGH, page.LOW, page.KEEP)
    assert page.CLIP == config.loss.clip_low == config.loss.clip_high
    assert (config.rl.lr, config.rl.weight_decay, config.rl.grad_clip) == (page.LR, page.WEIGHT_DECAY, page.GRAD_CLIP)


def test_page_is_a_page_and_uses_no_method_code():
    source = PAGE.read_text(encoding="utf-8")
    tree = ast.parse(source)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith(("prefix_rft_lab.algorithm", "prefix_rft_lab.training")) for name in imported)
    documented = (ast.Module, ast.FunctionDef)
    docs = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    comments = {n for doc in docs for n in range(doc.lineno, doc.end_lineno + 1)}
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {n for t in tokens if t.type not in ignored for n in range(t.start[0], t.end[0] + 1)} - comments
    assert len(code) <= 100
