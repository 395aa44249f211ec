"""The random numbers of a loan book: streams by name, numbers by person, and drawing by shares.

What belongs here: how a random number is named. What does not: what it stands for.
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mlops_assets.samples._lending_tables import Floats, Ints
from mlops_assets.samples._lending_world import World


class Purpose(IntEnum):
    """What a random stream is for; a number is never given to another purpose."""

    MACRO = 1
    NEW_COUNT = 2
    RETURNING = 3
    PERSON = 4
    APPLICATION = 5
    DIRT = 6
    UNIT_ERROR = 7
    OUTCOMES = 8
    FRAME = 9


def stream(world: World, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return the random stream with this name; PCG64 by name, since numpy's default may change."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((world.seed, int(purpose), *key))))


@lru_cache(maxsize=16)
def _salts(seed: int, traits: int) -> NDArray[np.uint64]:
    names = [np.random.SeedSequence((seed, int(Purpose.PERSON), trait)) for trait in range(traits)]
    return np.array([name.generate_state(1, np.uint64)[0] for name in names], dtype=np.uint64)


def traits_of(world: World, persons: Ints, traits: int) -> Floats:
    """Return uniform numbers of persons, which are theirs on whatever day they are asked for.

    Whoever comes back two years later has to be found without drawing everybody in between. A number is therefore
    the SplitMix64 hash (Steele, Lea and Flood 2014) of the person's number, salted by seed and trait.

    Returns
    -------
    numpy.ndarray
        Persons times traits, in [0, 1).
    """
    mixed = (persons.astype(np.uint64) + np.uint64(1))[:, None] * np.uint64(0x9E3779B97F4A7C15) + _salts(
        world.seed, traits
    )
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed >> np.uint64(11)) * 2.0**-53)


def normals(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Return two independent standard normals from two uniform numbers (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log1p(-first))
    return radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)


def pick(shares: Floats, uniform: Floats) -> Ints:
    """Draw indices with the given shares, one set for all or one a row, from uniform numbers."""
    bounds = np.cumsum(shares, axis=-1)
    if shares.ndim == 1:
        drawn = np.searchsorted(bounds / bounds[-1], uniform, side="right")
    else:
        drawn = (uniform[:, None] * bounds[:, -1:] >= bounds).sum(axis=1)
    return np.asarray(np.minimum(drawn, shares.shape[-1] - 1), dtype=np.int64)


def counts(mean: Floats, uniform: Floats, most: int) -> Ints:
    """Draw Poisson counts up to ``most`` by inversion: one uniform number each, whatever the mean."""
    term = np.exp(-mean)
    bound = term.copy()
    drawn = np.zeros(len(mean), dtype=np.int64)
    for number in range(1, most + 1):
        above = uniform >= bound
        if not above.any():
            break
        drawn += above
        term = term * mean / number
        bound += term
    return drawn
