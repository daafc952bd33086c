"""Entropy from logits, and the clip."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from prefix_rft_lab import entropy as clip
from prefix_rft_lab.config import ConfigError
from prefix_rft_lab.entropy import drop_lowest, dropped_count, entropy_and_logp, mask_ratio_of

INF = math.inf


def test_by_hand():
    # Uniform over 4: ln 4. Half, quarter, quarter: 0.5 ln 2 + 2 * 0.25 ln 4 = 1.5 ln 2.
    logits = torch.stack([torch.zeros(4), torch.tensor([math.log(2), 0.0, 0.0, -INF])])
    logp, entropy = entropy_and_logp(logits, torch.tensor([3, 0]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(4), 1.5 * math.log(2)]))
    torch.testing.assert_close(logp, torch.tensor([-math.log(4), -math.log(2)]))


def test_temperature_divides_logits():
    logits = torch.tensor([[2.0, 0.0]])
    logp, entropy = entropy_and_logp(logits, torch.tensor([0]), temperature=2.0)
    same_logp, same_entropy = entropy_and_logp(logits / 2, torch.tensor([0]))
    assert torch.equal(logp, same_logp) and torch.equal(entropy, same_entropy)


def test_against_float64_reference():
    rng = np.random.Generator(np.random.Philox(0))
    logits = rng.normal(size=(200, 50)) * rng.choice([0.01, 1.0, 20.0], size=(200, 1))
    targets = rng.integers(0, 50, size=200)
    shifted = logits - logits.max(1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    want_entropy = -(np.exp(log_probs) * log_probs).sum(1)
    logp, entropy = entropy_and_logp(torch.from_numpy(logits).float(), torch.from_numpy(targets))
    assert logp.dtype == entropy.dtype == torch.float32
    np.testing.assert_allclose(logp.numpy(), log_probs[np.arange(200), targets], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(entropy.numpy(), want_entropy, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits = torch.linspace(-3, 3, 12).reshape(2, 6).to(dtype)
    targets = torch.tensor([0, 5])
    for got, want in zip(entropy_and_logp(logits, targets), entropy_and_logp(logits.float(), targets), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want)


def test_entropy_is_not_the_mean_nll():
    # Of the token drawn the log-probability says -ln 0.9; the entropy does not depend on the draw.
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    _, entropy = entropy_and_logp(logits, torch.tensor([0, 1]))
    assert entropy[0] == entropy[1]
    assert entropy[0].item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-6)


def test_extreme_logits_give_numbers_and_gradients():
    logits = torch.tensor([[0.0, -INF, -INF], [1e4, -1e4, 0.0], [0.0, 0.0, -INF], [-1e30, 0.0, 0.0]])
    logits.requires_grad_()
    logp, entropy = entropy_and_logp(logits, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(logp, torch.tensor([0.0, 0.0, -math.log(2), -math.log(2)]))
    torch.testing.assert_close(entropy, torch.tensor([0.0, 0.0, math.log(2), math.log(2)]))
    (grad,) = torch.autograd.grad((logp + 5 * entropy).sum(), logits)
    assert torch.isfinite(grad).all()


def test_impossible_target_is_minus_infinity_not_nan():
    logp, entropy = entropy_and_logp(torch.tensor([[0.0, -INF]]), torch.tensor([1]))
    assert logp.item() == -INF and entropy.item() == 0


def test_gradients_against_finite_differences():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x: entropy_and_logp(x, targets), (logits,))
    assert torch.autograd.gradcheck(lambda x: entropy_and_logp(x, targets, 0.7)[0], (logits,))
    assert torch.autograd.gradcheck(lambda x: entropy_and_logp(x, targets, 0.7)[1], (logits,))


def test_gradient_against_autograd_with_impossible_tokens():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    logits[:, 2] = -INF
    targets, upstream = torch.tensor([0, 1, 3, 5]), torch.tensor([0.3, -2.0, 1.0, 0.0])
    ours = logits.clone().requires_grad_()
    logp, entropy = entropy_and_logp(ours, targets)
    (upstream * logp - 0.5 * entropy).sum().backward()
    reference = logits.clone().requires_grad_()
    log_probs = reference.log_softmax(-1)
    possible = log_probs[:, [0, 1, 3, 4, 5]]
    want = upstream * log_probs[torch.arange(4), targets] + 0.5 * (possible.exp() * possible).sum(-1)
    want.sum().backward()
    torch.testing.assert_close(ours.grad, reference.grad)


def test_any_leading_shape_and_no_tokens():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2))
    targets = torch.zeros(2, 3, dtype=torch.int64)
    logp, entropy = entropy_and_logp(logits, targets)
    flat_logp, flat_entropy = entropy_and_logp(logits.reshape(6, 5), targets.reshape(6))
    assert torch.equal(logp.reshape(6), flat_logp) and torch.equal(entropy.reshape(6), flat_entropy)
    none = torch.zeros(0, 5, requires_grad=True)
    logp, entropy = entropy_and_logp(none, torch.zeros(0, dtype=torch.int64))
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + entropy.sum()).backward()


def test_mask_ratio_is_the_decimal_complement():
    assert 1 - 0.8 != 0.2  # what the rounding is for
    for percent in range(101):
        assert mask_ratio_of(percent / 100) == (100 - percent) / 100
    assert dropped_count(3, mask_ratio_of(2 / 3)) == 1  # 0.333333333333 would drop none
    assert dropped_count(3, mask_ratio_of(1 / 3)) == 2


def test_dropped_count_by_hand():
    assert [dropped_count(m, 0.8) for m in (0, 1, 2, 3, 5, 18, 26)] == [0, 0, 1, 2, 4, 14, 20]
    assert dropped_count(5, mask_ratio_of(0.8)) == 1
    assert dropped_count(100, 0.29) == 28  # the published product rounds down here


def clip_mask(entropy, prefix, keep_fraction, keep="top", group=None, uniforms=None):
    """The mask under a rule of that name."""
    uniforms = torch.zeros_like(entropy) if uniforms is None else uniforms
    inputs = clip.RankInputs(
        entropy=entropy, logp=-entropy, position=torch.arange(entropy.numel()).view_as(entropy), uniforms=uniforms
    )
    return clip.clip_mask(clip.KEEP_RULES.find(keep)(inputs), prefix, keep_fraction, group=group)


def _tokens(n, seed=0, prefix_share=0.6):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=rng), torch.rand(n, generator=rng) < prefix_share


@pytest.mark.parametrize("keep", ["top", "bottom", "random"])
def test_exact_counts_on_a_grid(keep):
    for n in (0, 1, 2, 3, 5, 10, 37, 100):
        for keep_fraction in (0.0, 0.05, 0.2, 0.25, 0.5, 0.8, 0.9, 1.0):
            entropy, prefix = _tokens(n, seed=n)
            stay = clip_mask(entropy, prefix, keep_fraction, keep=keep, uniforms=_tokens(n, seed=n + 1)[0])
            m = int(prefix.sum())
            # keep_fraction as the decimal it is written as: exact arithmetic, no binary rounding.
            dropped = math.floor(m * (1 - Fraction(str(keep_fraction))))
            assert stay.dtype == torch.bool
            assert int(stay.sum()) == m - dropped
            assert not (stay & ~prefix).any()


def test_which_tokens_stay():
    # Prefix tokens at 1..5 with entropies .5 .1 .9 .3 .7; keep 0.4 drops int(5 * 0.6) = 3.
    entropy = torch.tensor([9.0, 0.5, 0.1, 0.9, 0.3, 0.7])
    prefix = torch.tensor([False, True, True, True, True, True])
    uniforms = torch.tensor([0.0, 0.6, 0.5, 0.1, 0.2, 0.3])
    assert clip_mask(entropy, prefix, 0.4).nonzero().flatten().tolist() == [3, 5]
    assert clip_mask(entropy, prefix, 0.4, keep="bottom").nonzero().flatten().tolist() == [2, 4]
    assert clip_mask(entropy, prefix, 0.4, keep="random", uniforms=uniforms).nonzero().flatten().tolist() == [1, 2]
    assert torch.equal(clip_mask(entropy, prefix, 0.4, keep="all"), prefix)


def test_every_ranking_by_comparison():
    entropy, prefix = _tokens(60, seed=5)
    stay = clip_mask(entropy, prefix, 0.3)
    assert entropy[stay].min() > entropy[prefix & ~stay].max()
    stay = clip_mask(entropy, prefix, 0.3, keep="bottom")
    assert entropy[stay].max() < entropy[prefix & ~stay].min()


def test_ties_go_by_position():
    entropy, prefix = torch.zeros(50), torch.ones(50, dtype=torch.bool)
    for keep in ("top", "bottom"):
        assert clip_mask(entropy, prefix, 0.2, keep=keep).nonzero().flatten().tolist() == list(range(40, 50))
    group = torch.arange(50) % 2
    stay = clip_mask(entropy, prefix, 0.2, group=group)
    assert stay.nonzero().flatten().tolist() == list(range(40, 50))


def test_single_prefix_token_stays_unless_all_go():
    entropy, prefix = torch.tensor([0.1]), torch.tensor([True])
    assert clip_mask(entropy, prefix, 0.2).tolist() == [True]
    assert clip_mask(entropy, prefix, 0.0).tolist() == [False]


def test_no_prefix_token():
    entropy = torch.rand(6, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(6, dtype=torch.bool)
    for group in (None, torch.arange(6)):
        assert not clip_mask(entropy, none, 0.2, group=group).any()


@pytest.mark.parametrize("keep", ["top", "bottom", "random"])
def test_groups_rank_apart(keep):
    entropy, prefix = _tokens(200, seed=6)
    uniforms = _tokens(200, seed=7)[0]
    group = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(8)) * 11 - 40
    together = clip_mask(entropy, prefix, 0.35, keep=keep, group=group, uniforms=uniforms)
    for one in group.unique():
        part = group == one
        alone = clip_mask(entropy[part], prefix[part], 0.35, keep=keep, uniforms=uniforms[part])
        assert torch.equal(together[part], alone)


def test_shape_and_cut_do_not_matter():
    entropy, prefix = _tokens(48, seed=9)
    flat = clip_mask(entropy, prefix, 0.2)
    assert torch.equal(clip_mask(entropy.reshape(6, 8), prefix.reshape(6, 8), 0.2), flat.reshape(6, 8))
    # Padding is outside the prefix and changes nothing, whatever its entropy.
    padded = torch.cat([entropy, torch.full((10,), -5.0)]), torch.cat([prefix, torch.zeros(10, dtype=torch.bool)])
    assert torch.equal(clip_mask(*padded, 0.2)[:48], flat)


def test_mask_carries_no_gradient():
    entropy = torch.rand(8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert not clip_mask(entropy, torch.ones(8, dtype=torch.bool), 0.5).requires_grad


def test_rules_are_known_by_name_and_give_a_number_for_each_token():
    entropy, prefix = _tokens(4)
    with pytest.raises(
        ConfigError, match=r"prefix.keep = 'topp' is not known; use one of top, .* did you mean 'top'\?"
    ):
        clip_mask(entropy, prefix, 0.2, keep="topp")
    for values in (entropy[:3], torch.full((4,), float("nan"))):
        with pytest.raises(ConfigError, match="as many and not NaN; correct the rule"):
            clip.clip_mask(values, torch.ones(4, dtype=torch.bool), 0.2)


def test_drop_lowest_takes_any_count():
    values = torch.tensor([3.0, 1.0, 2.0])
    everyone = torch.ones(3, dtype=torch.bool)
    assert drop_lowest(values, everyone, lambda m: 1).tolist() == [True, False, True]
    assert drop_lowest(values, everyone, lambda m: m).tolist() == [False] * 3
