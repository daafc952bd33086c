"""Random numbers keyed by what they are for.

No global generator anywhere: a draw is a function of (seed, purpose, step, problem, row), so it does not
depend on what ran before, on batching, or on whether the run was resumed.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key(seed: int, purpose: str, *parts: int | str) -> int:
    """A 128-bit integer that names one random choice; equal arguments, equal key.

    >>> key(0, "rollout", 3, 7, 1) == key(0, "rollout", 3, 7, 1)  # seed, purpose, step, problem, row
    True
    >>> key(0, "rollout", 3, 7, 1) == key(0, "rollout", 3, 7, 2)
    False
    """
    text = "\x1f".join([str(seed), purpose, *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *parts: int | str) -> np.random.Generator:
    """A NumPy generator for one keyed choice.

    >>> round(generator(0, "prefix", 3, 7, 1).random(), 4)
    0.3355
    """
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *parts)))


def uniforms(keys: list[int], count: int) -> np.ndarray:
    """One stream of uniforms in [0, 1) a key: (len(keys), count) float64."""
    if not keys:
        return np.empty((0, count))
    return np.stack([np.random.Generator(np.random.Philox(key=k)).random(count) for k in keys])
