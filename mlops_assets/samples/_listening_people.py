"""The listeners of a world: who they are, what they like in a week, and how much they play in it.

What belongs here: what is drawn per user. What does not: which track is played and when (`_listening_plays`).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mlops_assets.samples import _listening_draws as draws
from mlops_assets.samples._listening_tables import (
    GENRE_COUNT,
    GENRE_SHARES,
    MARKET_SHARES,
    MARKETS,
    SUB_SHARES,
    Bools,
    Floats,
    Ints,
)
from mlops_assets.samples._listening_world import World

BLOCK = 4_000  # users that share a random stream: a part of what "same seed, same frames" means
MAX_PLAYS = 400  # a user-week's cap; Sunday's last minutes stay free to tell that many equal times apart
FAVOURITES, FAVOURITE_WEEKS = 24, 13
_SLOTS, _SLOT_WEEKS = 4, (208, 104, 52, 26)


@dataclass(frozen=True)
class People:
    """What never changes about the users of a block, one row each."""

    market: Ints
    allow_explicit: Bools
    joined: Ints  # days since the start of week 0
    activity: Floats  # plays a week
    genre: Ints
    weights: Floats  # of the taste slots
    phase: Floats
    taste_offset: Ints  # weeks by which a slot is ahead in its cycle
    favourite_offset: Ints

    @property
    def audience(self) -> Ints:
        """A code of market and explicit filter, from 0."""
        return 2 * self.market + self.allow_explicit


@lru_cache(maxsize=2)
def _local_genres(world: World) -> Floats:
    """Return the cumulative shares of the genres in every market."""
    tilt = draws.stream(world, draws.Purpose.LOCAL_TASTE).normal(0, 0.5, (len(MARKETS) + 1, GENRE_COUNT))
    shares = np.cumsum(GENRE_SHARES * np.exp(tilt), axis=1)
    return np.asarray(shares / shares[:, -1:])


def people_of(world: World, block: int) -> People:
    """Return the users of a block, also those who join later."""
    rng = draws.stream(world, draws.Purpose.USERS, block)
    draw = rng.random((BLOCK, 6))
    market = np.where(draw[:, 0] < 0.012, 0, 1 + draws.pick(MARKET_SHARES, draw[:, 1]))
    index = block * BLOCK + np.arange(BLOCK)
    later = 7 * (1 + (index - world.users) // world.new_users_a_week) + (draw[:, 2] * 7).astype(np.int64)
    earlier = -1 - np.minimum(-np.log1p(-draw[:, 2]) * 500, 4_000).astype(np.int64)
    mean = 24.5 * (max(world.users, 2_000) / 2_000) ** -0.127
    spread = 1.0
    activity = mean * np.exp(rng.normal(0, spread, BLOCK) - spread**2 / 2) * (draw[:, 4] >= 0.015)
    genre = (draw[:, 5, None] > _local_genres(world)[market]).sum(axis=1)
    weights = np.array([0.5, 0.25, 0.15, 0.10]) * np.exp(rng.normal(0, 0.4, (BLOCK, _SLOTS)))
    return People(
        market=market,
        allow_explicit=draw[:, 3] < 0.8,
        joined=np.where(index < world.users, earlier, later),
        activity=activity,
        genre=np.minimum(genre, GENRE_COUNT - 1),
        weights=weights,
        phase=rng.random((BLOCK, _SLOTS)),
        taste_offset=(rng.random((BLOCK, _SLOTS)) * np.array(_SLOT_WEEKS)).astype(np.int64),
        favourite_offset=rng.integers(0, FAVOURITE_WEEKS, (BLOCK, FAVOURITES)),
    )


def tastes(world: World, people: People, week: int, block: int) -> tuple[Ints, Floats]:
    """Return the sub-genres in the taste slots and the cumulative weights of the slots in a week."""
    slots = np.empty((BLOCK, _SLOTS), dtype=np.int64)
    for slot, cycle in enumerate(_SLOT_WEEKS):
        epoch = week // cycle
        now, soon = (
            draws.stream(world, draws.Purpose.TASTE, slot, number, block).random((BLOCK, 3))
            for number in (epoch, epoch + 1)
        )
        draw = np.where(((week + people.taste_offset[:, slot]) // cycle > epoch)[:, None], soon, now)
        near = people.genre + np.where(draw[:, 1] < 0.5, 1, -1)
        anywhere = (draw[:, 1] * GENRE_COUNT).astype(np.int64)
        same, neighbour = ((1.0, 1.0), (0.6, 0.9), (0.4, 0.8), (0.2, 0.5))[slot]
        genre = np.where(draw[:, 0] < same, people.genre, np.where(draw[:, 0] < neighbour, near, anywhere))
        slots[:, slot] = 4 * (genre % GENRE_COUNT) + draws.pick(SUB_SHARES, draw[:, 2])
    swing = np.sin(2 * np.pi * (week / np.array([61, 47, 37, 29]) + people.phase))
    weights = np.cumsum(people.weights * np.exp(0.5 * swing), axis=1)
    return slots, weights / weights[:, -1:]


def play_counts(world: World, people: People, week: int, block: int) -> Ints:
    """Return every user's number of plays in a week; 0 for those who have not joined."""
    rng = draws.stream(world, draws.Purpose.ACTIVITY, week, block)
    away = rng.random(BLOCK) < 0.06
    mood = rng.gamma(4.0, 0.25, BLOCK)
    present = np.clip((7 * (week + 1) - people.joined) / 7, 0, 1)
    present[block * BLOCK + np.arange(BLOCK) >= world.user_count(week)] = 0
    return np.minimum(rng.poisson(people.activity * mood * present * ~away), MAX_PLAYS)
