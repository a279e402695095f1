"""One tree of random numbers per run.

Every component draws from a stream named by a path such as ``("device", "sampler")``. A stream
depends on the run seed and its own name only, so adding a component never shifts another one.
"""

from __future__ import annotations

import zlib

import numpy as np


def sequence(seed: int, *path: str | int) -> np.random.SeedSequence:
    """Seed sequence of the component ``path`` in the tree of run seed ``seed`` (>= 0).

    Text parts enter as their CRC-32, integers (batch numbers, board numbers) as they are.
    """
    key = tuple(zlib.crc32(p.encode()) if isinstance(p, str) else p for p in path)
    return np.random.SeedSequence(entropy=seed, spawn_key=key)


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """NumPy generator of the component ``path``."""
    return np.random.Generator(np.random.PCG64(sequence(seed, *path)))


def word(seed: int, *path: str | int) -> int:
    """A 63-bit integer seed for libraries that take one (stim)."""
    return int(sequence(seed, *path).generate_state(1, np.uint64)[0] >> 1)
