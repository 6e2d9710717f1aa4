"""Random numbers that are a function of the seed and of what they are for.

The global random state is neither read nor changed.
"""

from enum import IntEnum

import numpy as np
import torch

FIXED_SEED = 0  # for what must not depend on the user's seed


class Stream(IntEnum):
    """One stream for each purpose, so that none depends on what another has drawn."""

    LIMIT = 0
    VALIDATION = 1
    ORDER = 2
    AUGMENT = 3
    DEPTHS = 4
    BRANCHES = 5
    WEIGHTS = 6
    SAMPLE = 7


def seed_sequence(seed: int, stream: Stream, *places: int) -> np.random.SeedSequence:
    """Return the seed of a stream; `places`, such as the epoch, part it into streams of their own."""
    return np.random.SeedSequence(seed, spawn_key=(stream, *places))


def torch_generator(seed: int, stream: Stream, *places: int) -> torch.Generator:
    """Return a generator on the CPU for a stream, see `seed_sequence`."""
    state = int(seed_sequence(seed, stream, *places).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)
