"""Random numbers are functions of what they are for."""

from __future__ import annotations

from itertools import product

import numpy as np

from prefix_rft_lab import rng


def test_equal_keys_give_equal_bits():
    first = rng.generator(3, "rollout", 5, 7, 1).random(100)
    rng.generator(3, "rollout", 5, 7, 2).random(10)
    np.random.default_rng(0).random(10)
    assert (rng.generator(3, "rollout", 5, 7, 1).random(100) == first).all()


def test_every_part_of_a_key_matters():
    keys = {
        rng.key(seed, purpose, step, problem, row)
        for seed, purpose, step, problem, row in product(
            range(5), ("rollout", "order", "prefix_ratio"), range(10), range(10), range(4)
        )
    }
    assert len(keys) == 5 * 3 * 10 * 10 * 4
    assert all(0 <= key < 2**128 for key in keys)


def test_parts_do_not_run_into_each_other():
    variants = [(1, "a", 1, 23), (1, "a", 12, 3), (1, "a", 123), (11, "a", 23), (1, "a1", 23), (1, "a", "1", "2", "3")]
    assert len({rng.key(*parts) for parts in variants}) == len(variants)


def test_keys_are_the_same_on_every_machine_and_day():
    # Written down once: a change of these bits changes every recorded run.
    assert rng.key(0, "rollout", 1, 2, 3) == KEY
    assert rng.generator(0, "rollout", 1, 2, 3).integers(2**62, size=2).tolist() == DRAWS


KEY = 248906121909902094717331191987569393303
DRAWS = [4045910110240620775, 242894812244560588]


def test_uniforms_of_a_key_do_not_depend_on_its_company():
    keys = [rng.key(0, "rollout", i) for i in range(20)]
    together = rng.uniforms(keys, 30)
    assert together.shape == (20, 30)
    assert ((together >= 0) & (together < 1)).all()
    for i in (0, 7, 19):
        assert (rng.uniforms([keys[i]], 30)[0] == together[i]).all()
        assert (rng.uniforms([keys[i]], 4)[0] == together[i, :4]).all()
    assert (rng.uniforms(keys[::-1], 30)[::-1] == together).all()
    assert rng.uniforms([], 3).shape == (0, 3)


def test_streams_of_neighbouring_keys_are_uncorrelated():
    draws = rng.uniforms([rng.key(0, "rollout", step) for step in range(200)], 500)
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / draws.size) ** 0.5
    correlation = np.corrcoef(draws)
    off = correlation[~np.eye(200, dtype=bool)]
    # 19,900 pairs, standard deviation 1 / sqrt(500): the largest lies near 4 of them.
    assert np.abs(off).max() < 5.5 / 500**0.5
    assert abs(off.mean()) < 0.002
