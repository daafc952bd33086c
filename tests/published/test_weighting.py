"""The published weightings of prefix tokens by hand."""

from __future__ import annotations

import pytest
import torch

from prefix_rft_lab.advantages import RowAdvantages
from prefix_rft_lab.entropy import clip_mask
from published.weighting import TRANSFORMS, WeightingInputs, apply_transforms, token_advantages


def _batch(**changes):
    # Row 0: three prefix tokens and one sampled; row 1: two sampled and padding.
    values = {
        "advantages": torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0]]),
        "logp": torch.tensor([[0.5, 0.1, 0.9, 0.5], [0.5, 0.5, 1.0, 1.0]]).log(),
        "old_logp": torch.tensor([[0.4, 0.2, 0.9, 0.5], [0.5, 0.5, 1.0, 1.0]]).log(),
        "response_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "prefix_mask": torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]),
        "entropy": torch.tensor([[0.3, 0.9, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        "mask_ratio": 0.8,
    }
    return WeightingInputs(**(values | changes))


def _advantages(name, **changes):
    return apply_transforms([name], _batch(**changes)).advantages.tolist()


def test_entropy_weightings_by_hand():
    # int(3 * 0.8) = 2 of three go: entropies .3 and .1.
    assert _advantages("entropy") == [[0, 2, 0, 4], [5, 6, 0, 0]]
    assert _advantages("entropy_low") == [[1, 0, 3, 0], [0, 0, 0, 0]]
    assert _advantages("identity") == [[1, 2, 3, 4], [5, 6, 0, 0]]


def test_entropy_weighting_is_the_clip():
    batch = _batch()
    stay = clip_mask(batch.entropy, batch.prefix_mask.bool(), 0.2) | ~batch.prefix_mask.bool()
    assert torch.equal(apply_transforms(["entropy"], batch).advantages, batch.advantages * stay)


def test_random_weighting_reads_a_percentage():
    uniforms = torch.tensor([[0.5, 0.2, 0.9, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert _advantages("random", uniforms=uniforms, mask_ratio=67.0) == [[0, 0, 3, 4], [5, 6, 0, 0]]
    assert _advantages("random", uniforms=uniforms, mask_ratio=0.8) == [[1, 2, 3, 4], [5, 6, 0, 0]]


def test_ratio_weightings_by_hand():
    ratio = (apply_transforms(["luffy"], _batch()).logp - _batch().old_logp).exp()
    torch.testing.assert_close(ratio[0, :3], torch.tensor([0.5 / 0.6, 0.1 / 0.2, 0.9 / 1.0]))
    ratio = (apply_transforms(["importance_sampling"], _batch()).logp - _batch().old_logp).exp()
    torch.testing.assert_close(ratio[0], torch.tensor([0.5, 0.1, 0.9, 1.0]))


def test_length_on_zeroes_the_sampled_part_of_full_rows():
    assert _advantages("length_on") == [[1, 2, 3, 0], [5, 6, 0, 0]]


def test_position_by_hand():
    # Window [0.2, 0.6]: f(0.2) = 2/0.8 = 2.5, f(0.4) = 2*0.2/0.32 = 1.25, f(0.7) = 0 -> 0.001.
    # w = 0.4, 0.8, 1000, mean 333.733...
    relpos = torch.tensor([[0.2, 0.4, 0.7, -1.0], [-1.0, -1.0, 0.0, 0.0]])
    got = _advantages("position", prefix_relpos=relpos, window_low=0.2, window_high=0.6)
    mean = (0.4 + 0.8 + 1000) / 3
    assert got[0] == pytest.approx([0.4 / mean, 2 * 0.8 / mean, 3 * 1000 / mean, 4], rel=1e-5)
    assert got[1] == [5, 6, 0, 0]
    closed = _advantages("position", prefix_relpos=relpos, window_low=0.7, window_high=0.7)
    assert closed[0] == pytest.approx([1, 2, 3, 4])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_without_a_prefix_nothing_changes(name):
    batch = _batch(prefix_mask=torch.zeros(2, 4))
    assert apply_transforms([name], batch) is batch


def test_transforms_apply_left_to_right():
    both = apply_transforms(["entropy", "length_on"], _batch()).advantages
    assert both.tolist() == [[0, 2, 0, 0], [5, 6, 0, 0]]


def test_missing_inputs_and_unknown_transforms_are_named():
    with pytest.raises(ValueError, match="uniforms is missing"):
        apply_transforms(["random"], _batch())
    with pytest.raises(ValueError, match="entropie"):
        apply_transforms(["entropie"], _batch())


def test_token_advantages_by_hand_and_under_padding():
    rows = RowAdvantages(sampled=torch.tensor([1.0, 2.0]), prefix=torch.tensor([10.0, 20.0]))
    response = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    prefix = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0]])
    want = torch.tensor([[1.0, 1.0, 1.0, 0.0], [20.0, 2.0, 0.0, 0.0]])
    assert torch.equal(token_advantages(rows, response, prefix), want)
    wide = torch.nn.functional.pad(response, (0, 3)), torch.nn.functional.pad(prefix, (0, 3))
    assert torch.equal(token_advantages(rows, *wide)[:, :4], want)
