"""The catalogue of a world of listeners in numbers: its artists and tracks, and the chance of each to be played.

What belongs here: who releases what and when, fame, licences, and drawing tracks by weight. What does not: titles,
tags and lyrics (`_listening_texts`), and who listens.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mlops_assets.samples import _listening_draws as draws
from mlops_assets.samples._listening_tables import (
    EXPLICIT,
    GENRE_SHARES,
    MARKET_SETS,
    MARKET_SHARES,
    MARKETS,
    MOODS,
    SUB_COUNT,
    SUB_SHARES,
    TOPICS,
    Bools,
    Floats,
    Ints,
)
from mlops_assets.samples._listening_world import World, require_week

_AUDIENCES = 2 * (len(MARKETS) + 1)


@dataclass(frozen=True)
class Catalogue:
    """The catalogue in numbers; the first five arrays have a row per artist, the others a row per track."""

    subgenre: Ints
    home: Ints  # market code
    fame: Floats
    topic: Ints
    moods: Ints  # two per artist

    artist: Ints
    appeal: Floats
    explicit: Bools
    licence: Ints  # index into MARKET_SETS
    released: NDArray[np.datetime64]


@lru_cache(maxsize=4)
def catalogue_of(world: World, until_week: int) -> Catalogue:
    """Return everything released up to a week. Batch 0 is the back catalogue, batch w + 1 what week w brings."""
    require_week(world, until_week)
    artists = [_new_artists(world, batch) for batch in range(until_week + 2)]
    subgenre, home, fame, topic, moods = (np.concatenate(column) for column in zip(*artists, strict=True))
    tracks = [_new_tracks(world, batch, subgenre, home) for batch in range(until_week + 2)]
    artist, appeal, explicit, licence, released = (np.concatenate(column) for column in zip(*tracks, strict=True))
    return Catalogue(subgenre, home, fame, topic, moods, artist, appeal, explicit, licence, released)


def _artist_count(world: World, batch: int) -> int:
    """Return the number of artists known after a batch."""
    return max(96, world.back_catalogue_size // 10) + batch * world.new_artists_a_week


def _new_artists(world: World, batch: int) -> tuple[Ints, Ints, Floats, Ints, Ints]:
    first = _artist_count(world, batch - 1) if batch else 0
    count = _artist_count(world, batch) - first
    draw = draws.stream(world, draws.Purpose.ARTISTS, batch).random((count, 8))
    # Every sub-genre has artists even in the smallest world: half of them go round, half follow the shares.
    shares = np.outer(np.sqrt(GENRE_SHARES), SUB_SHARES).ravel()
    turn = (first + np.arange(count)) // 2 % SUB_COUNT
    subgenre = np.where(np.arange(count) % 2 == 0, turn, draws.pick(shares, draw[:, 0]))
    genre = subgenre // 4
    home = 1 + draws.pick(MARKET_SHARES, draw[:, 1])
    fame = np.maximum(draw[:, 2], 1e-5) ** -0.7
    of_genre = (genre + np.array([0, 3, 7])[(draw[:, 3] * 3).astype(np.int64)]) % len(TOPICS)
    topic = np.where(draw[:, 4] < 0.8, of_genre, (draw[:, 5] * len(TOPICS)).astype(np.int64))
    mood = (draw[:, 6] * len(MOODS)).astype(np.int64)
    other = (mood + 1 + (draw[:, 7] * (len(MOODS) - 1)).astype(np.int64)) % len(MOODS)
    return subgenre.astype(np.int64), home, fame, topic, np.column_stack([mood, other])


def _new_tracks(
    world: World, batch: int, subgenre: Ints, home: Ints
) -> tuple[Ints, Floats, Bools, Ints, NDArray[np.datetime64]]:
    count = world.new_tracks_a_week if batch else world.back_catalogue_size
    known, artists = (_artist_count(world, batch - 1) if batch else 0), _artist_count(world, batch)
    rng = draws.stream(world, draws.Purpose.TRACKS, batch)
    draw = rng.random((count, 7))
    debut = np.arange(known, artists)
    # The back catalogue has debutants only; of a week's releases beyond the debuts a quarter are theirs.
    of_debutant = known + (draw[:, 0] ** 1.5 * (artists - known)).astype(np.int64)
    of_known = (draw[:, 0] * known).astype(np.int64)
    artist = np.where((draw[:, 1] < 0.25) | (known == 0), of_debutant, of_known)
    artist[: len(debut)] = debut
    artist = rng.permutation(artist)
    genre = subgenre[artist] // 4
    region_only = np.where(draw[:, 2] < 0.5, home[artist], home[artist] + len(MARKETS))
    licence = np.where(draw[:, 3] < 0.12, region_only, 0)
    start = np.datetime64(world.start, "D")
    if batch:
        day = np.where(draw[:, 5] < 0.7, 4, (draw[:, 6] * 7).astype(np.int64))  # Friday is release day
        released = start + (7 * (batch - 1) + day)
    else:
        age = np.minimum(-np.log1p(-draw[:, 5]) * 365 * 6, 365 * 60).astype(np.int64)
        released = start - 1 - age
    appeal = np.maximum(draw[:, 4], 1e-5) ** -0.7
    return artist, appeal, rng.random(count) < EXPLICIT[genre], licence, released


@dataclass(frozen=True)
class Wheel:
    """Cumulative weights of all tracks by sub-genre and artist, one audience after the other."""

    order: Ints  # place -> track
    bounds: Floats  # _AUDIENCES * tracks + 1
    subgenres: Ints  # first place of a sub-genre; one more at the end
    artists_first: Ints
    artists_stop: Ints

    def spin(self, audience: Ints, low: Ints, high: Ints, uniform: Floats) -> Ints:
        """Draw tracks from places ``low`` to ``high``, or from all if none of those is open to the audience."""
        size = len(self.order)
        base = audience * size
        at, to = base + low, base + high
        floor, ceiling = self.bounds[at], self.bounds[to]
        closed = np.flatnonzero(ceiling <= floor)
        if len(closed):
            floor[closed], ceiling[closed] = self.bounds[base[closed]], self.bounds[base[closed] + size]
        target = np.minimum(floor + uniform * (ceiling - floor), np.nextafter(ceiling, 0.0))
        drawn: Ints = self.order[np.searchsorted(self.bounds, target, side="right") - 1 - base]
        return drawn


@lru_cache(maxsize=8)
def wheel_of(world: World, week: int) -> Wheel:
    """Return the chances of all tracks in a week by fame, appeal, age, home, licence and explicit filter."""
    catalogue = catalogue_of(world, week)
    order = np.lexsort((catalogue.artist, catalogue.subgenre[catalogue.artist]))
    artist = catalogue.artist[order]
    age = (np.datetime64(world.monday(week), "D") - catalogue.released[order]).astype(np.int64) / 7
    weight = catalogue.fame[artist] * catalogue.appeal[order] * (1 + 5 * np.exp(-np.maximum(age, 0) / 2))
    licence, home, clean = catalogue.licence[order], catalogue.home[artist], ~catalogue.explicit[order]
    weights = np.empty((_AUDIENCES, len(order)))
    for market in range(len(MARKETS) + 1):
        open_sets = [not s or (market > 0 and MARKETS[market - 1] in s.split("|")) for s in MARKET_SETS]
        of_market = weight * np.where(home == market, 2.5, 1.0) * np.array(open_sets)[licence]
        weights[2 * market] = of_market * clean
        weights[2 * market + 1] = of_market
    bounds = np.concatenate([[0.0], np.cumsum(weights.ravel())])
    subgenres = np.searchsorted(catalogue.subgenre[artist], np.arange(SUB_COUNT + 1))
    count = np.bincount(artist, minlength=len(catalogue.subgenre))
    first = np.zeros(len(count), dtype=np.int64)
    first[artist[::-1]] = np.arange(len(order))[::-1]
    return Wheel(order, bounds, subgenres, first, first + count)
