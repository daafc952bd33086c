"""What a method decides between the scores of a problem's rows and the update."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefix_rft_lab import methods
from prefix_rft_lab.runs.run import RunWriter
from prefix_rft_lab.trainer import Trainer, by_problem
from prefix_rft_lab.training import measure
from prefix_rft_lab.types import TokenKind


@pytest.fixture
def trainer_of(tmp_path, small):
    """``trainer_of(scores, **changes)``: a trainer whose rows score ``scores(row)``; what it samples is in ``sampled``."""
    opened = []

    def make(scores, **changes):
        config = small(**changes)
        one = Trainer(config, RunWriter(config, tmp_path))
        opened.append(one)
        one.sampled = []

        def generate(rows, stage, step):
            for row in rows:
                if not row.is_demonstration:
                    row.sampled_ids = [5, 6, 1]
                    one.sampled.append(row)

        def score(rows):
            for row in rows:
                row.score = float(scores(row))
                row.solved, row.rewards = row.score == 1, {"own": row.score}

        one.generate, one.score_rows = generate, score
        return one

    yield make
    for one in opened:
        one.__exit__()


@pytest.mark.parametrize(("gate", "right", "imitated"), [(0, 0, True), (0, 1, False), (2, 2, True), (2, 3, False)])
def test_hpt_takes_the_demonstration_or_the_rows(trainer_of, gate, right, imitated):
    one = trainer_of(lambda row: row.row < right, method="hpt", **{"hpt.gate": gate})
    rows, drawn = one.draw(methods.HPT, 0)
    metrics = measure.row_metrics(rows, drawn, methods.HPT, one.config, 0, one.text)
    assert metrics["reward"] == right / 4, "of the rows that were sampled, not of those that stay"
    assert (metrics["sampled_rows"], metrics["prefix_share"]) == (8, 1.0 if imitated else 0.0)
    assert metrics["dropped_tokens"] == (2 * 4 * 3 if imitated else 0)
    assert len(one.sampled) == 2 * 4 and len(drawn) == 2 * 5, "of two problems"
    for group in by_problem(rows).values():
        assert [row.is_demonstration for row in group] == ([True] if imitated else [False] * 4)


def test_hpt_keeps_the_rows_of_a_problem_without_demonstration(trainer_of):
    one = trainer_of(lambda row: 0, method="hpt")
    one.train_problems = [replace(problem, demonstrations=()) for problem in one.train_problems]
    assert [row.is_demonstration for row in one.draw(methods.HPT, 0)[0]] == [False] * 8


def test_problems_whose_rows_score_alike_make_room_for_others(trainer_of):
    # Of the first draw's two problems one has rows that differ; of the later draws only those of the third.
    one = trainer_of(lambda row: row.row == 0 and row.problem.key in good, method="dynamic")
    planned = [list(by_problem(one.rows(methods.DYNAMIC, 0, again=again))) for again in range(4)]
    good = {planned[0][1], planned[2][0]}
    rows, drawn = one.draw(methods.DYNAMIC, 0)
    assert list(by_problem(rows)) == [planned[0][1], planned[2][0]]
    assert list(by_problem(drawn)) == [*planned[0], planned[1][0], planned[2][0]], "one place was open each time"
    assert len(one.sampled) == len(drawn) == 4 * 4
    keys = [key for draw in planned for key in draw]
    assert len(set(keys)) == len(keys), "a problem that comes again in a step has other random numbers"


def test_problems_that_cannot_be_replaced_stay(trainer_of):
    one = trainer_of(lambda row: 0, method="dynamic", **{"dynamic.redraws": 1})
    rows, drawn = one.draw(methods.DYNAMIC, 3)
    assert list(by_problem(rows)) == list(by_problem(one.rows(methods.DYNAMIC, 3)))
    assert len(drawn) == 2 * len(rows) == 16


@pytest.mark.parametrize(
    ("right", "ratios"),
    [
        ((), [0.25, 0.25, 0.5, 1]),  # no row is right, but the demonstration
        ((0,), [0.25, 0.25, 0.5, 1]),
        ((0, 1), [0, 0, 0.5, 1]),  # 2 of 4, 2 of 6
        ((0, 4, 5, 6), [0.25, 0.25, 0.5, 1]),  # 1 of 4, 3 of 6, 4 of 7
        ((0, 1, 4, 5), [0, 0, 0, 1]),  # 2 of 4, 4 of 6, 4 of 7
        (range(8), [0, 0, 0, 0]),  # all
    ],
)
def test_trapo_lengthens_prefixes_while_rows_fail(trainer_of, right, ratios):
    one = trainer_of(lambda row: row.row in right, method="trapo", **{"rollout.rows_per_problem": 8})
    rows, drawn = one.draw(methods.TRAPO, 0)
    assert sorted(map(id, drawn)) == sorted(map(id, rows))
    for group in by_problem(rows).values():
        assert [row.prefix_ratio for row in group] == [0, 0, 0, 0, *ratios]
        whole = group[0].problem.demonstrations[0].ids
        own = len(whole) - 1  # the end token is not counted
        cuts = {0: 0, 0.25: int(0.25 * own), 0.5: int(0.5 * own), 1: len(whole)}
        assert [row.prefix_ids for row in group] == [whole[: cuts[ratio]] for ratio in (0, 0, 0, 0, *ratios)]
        assert [row.is_demonstration for row in group] == [ratio == 1 for ratio in (0, 0, 0, 0, *ratios)]
        assert len({tuple(row.prefix_ids) for row in group[4:6]}) == 1


def test_of_two_rows_with_one_prefix_trapo_trains_the_second(small, trainer_of):
    one = trainer_of(lambda row: 0, method="trapo", **{"rollout.rows_per_problem": 8})
    rows = one.draw(methods.TRAPO, 0)[0][:8]
    logp = torch.tensor([0.5, 0.05, 0.02]).log().repeat(8)
    zeros = torch.zeros(24)
    seen = methods.TokenInputs(
        **{"logp": logp, "entropy": zeros, "old_logp": logp, "advantages": zeros, "step": 0, "rows": rows},
        row_of=torch.arange(8).repeat_interleave(3),
    )
    loss = methods.TRAPO.losses(one.config)[TokenKind.PREFIX].tokens(seen, one.config).loss.view(8, 3)
    assert (loss[:5] == 0).all()
    torch.testing.assert_close(loss[5:], torch.tensor([[0.6931472, 0.5 * 2.9957323, 0.2 * 3.912023]]).expand(3, 3))


def test_rows_of_a_later_wave_are_sampled_only_if_the_method_still_wants_them(trainer_of):
    def rows_of(problem, step, config):
        return [replace(row, wave=row.row // 2) for row in methods.RFT.rows(problem, step, config)]

    def decide(rows, wave, config):
        return rows if not any(row.solved for row in rows if row.wave == wave) else [r for r in rows if r.wave <= wave]

    one = trainer_of(lambda row: row.problem.index == easy, method="rft")
    stage = replace(methods.RFT, rows=rows_of, decide=decide)
    easy = one.rows(stage, 0)[0].problem.index
    rows, drawn = one.draw(stage, 0)
    assert [(row.problem.index == easy, row.row) for row in rows] == [
        *((True, i) for i in range(2)),
        *((False, i) for i in range(4)),
    ]
    assert len(one.sampled) == len(drawn) == 6
