"""The random streams of a world of listeners, and drawing by shares.

What belongs here: how a stream is named. What does not: what is drawn from it.
"""

from enum import IntEnum

import numpy as np

from mlops_assets.samples._listening_tables import Floats, Ints
from mlops_assets.samples._listening_world import World


class Purpose(IntEnum):
    """What a random stream is for; a number is never given to another purpose."""

    ARTISTS = 1
    TRACKS = 2
    TEXTS = 3
    LOCAL_TASTE = 4
    USERS = 5
    TASTE = 6
    FAVOURITES = 7
    ACTIVITY = 8
    EVENTS = 9
    DIRT = 10


def stream(world: World, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return the random stream with this name; PCG64 by name, since numpy's default may change."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((world.seed, int(purpose), *key))))


def pick(shares: Floats, uniform: Floats) -> Ints:
    """Draw indices with the given shares from uniform numbers."""
    bounds = np.cumsum(shares)
    return np.minimum(np.searchsorted(bounds / bounds[-1], uniform, side="right"), len(shares) - 1).astype(np.int64)
