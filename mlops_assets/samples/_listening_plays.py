"""The plays of a week in a world of listeners: which track, at what time, skipped or not, and the dirt on them.

What belongs here: what is drawn per play. What does not: who listens (`_listening_people`) and what there is to
play (`_listening_catalogue`).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.samples import _listening_draws as draws
from mlops_assets.samples._listening_catalogue import catalogue_of, wheel_of
from mlops_assets.samples._listening_people import (
    BLOCK,
    FAVOURITE_WEEKS,
    FAVOURITES,
    MAX_PLAYS,
    People,
    people_of,
    play_counts,
    tastes,
)
from mlops_assets.samples._listening_tables import SUB_COUNT, UTC_HOURS, Bools, Floats, Ints, Objects
from mlops_assets.samples._listening_world import FIRST_UNKNOWN_TRACK, World, numbered

DIRT_KINDS = ("duplicate", "negative_plays", "unknown_track", "missing_user", "future")

_WEEK_SECONDS = 7 * 86_400
_FOND = 5
_SHARES = np.cumsum([0.46, 0.14, 0.26, 0.14])  # favourite, fond artist, taste, anything
_SKIPS = np.array([0.04, 0.10, 0.16, 0.38, 0.22])  # the same, and the foreign taste of a shared account
_RHYTHM_STEPS = 1 << 14


@dataclass(frozen=True)
class Events:
    """A block's rows of a week, sorted by user."""

    user: Ints  # within the block
    user_id: Objects
    track_id: Objects
    listened_at: NDArray[np.datetime64]
    plays: Floats
    skipped: Bools

    def of_users(self, low: int, high: int) -> "Events":
        """Return the rows of the users ``low`` to ``high`` (exclusive) of the block."""
        rows = slice(*np.searchsorted(self.user, [low, high]))
        return Events(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def listens_frame(parts: list[Events]) -> pd.DataFrame:
    """Return the rows of all parts as canonical `listens`."""

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    return pd.DataFrame(
        {
            "user_id": joined("user_id"),
            "track_id": joined("track_id"),
            "listened_at": pd.Series(joined("listened_at")).dt.tz_localize("UTC"),
            "plays": joined("plays"),
            "skipped": joined("skipped"),
        }
    )


def events_of(world: World, week: int, block: int, track_ids: Objects) -> Events:
    """Return what the users of a block play in a week, with its dirt."""
    people = people_of(world, block)
    counts = play_counts(world, people, week, block)
    user = np.repeat(np.arange(BLOCK), counts)
    rng = draws.stream(world, draws.Purpose.EVENTS, week, block)
    track, kind = _choices(world, people, week, block, user, rng)
    order, seconds = _times(world, people, week, counts, user, track, rng)
    track, kind = track[order], kind[order]
    skipped = rng.random(len(user)) < _SKIPS[kind]
    again = rng.random(len(user))
    plays = np.where((again < 0.05) & (kind == 0) & ~skipped, 2.0 + (again < 0.01), 1.0)

    ids = np.array([*numbered("u", block * BLOCK + 1, (block + 1) * BLOCK + 1, 7), None], dtype=object)
    kinds, foreign = dirt_of(world, week, block, len(user))
    plays[kinds == DIRT_KINDS.index("negative_plays")] = -1.0
    seconds[kinds == DIRT_KINDS.index("future")] += 52 * _WEEK_SECONDS
    names = track_ids[track]
    unknown = np.flatnonzero(kinds == DIRT_KINDS.index("unknown_track"))
    names[unknown] = [f"t{FIRST_UNKNOWN_TRACK + number}" for number in foreign[unknown].tolist()]
    copies = np.repeat(np.arange(len(user)), 1 + (kinds == DIRT_KINDS.index("duplicate")))
    named = np.where(kinds == DIRT_KINDS.index("missing_user"), BLOCK, user)
    monday = np.datetime64(world.monday(week), "s")
    return Events(
        user=user[copies],
        user_id=ids[named[copies]],
        track_id=names[copies],
        listened_at=(monday + seconds[copies]).astype("datetime64[ns]"),
        plays=plays[copies],
        skipped=skipped[copies],
    )


def _choices(
    world: World, people: People, week: int, block: int, user: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return track and kind of every play: 0 favourite, 1 its artist, 2 taste, 3 anything, 4 shared account."""
    slots, weights = tastes(world, people, week, block)
    shared = rng.random(BLOCK) < 0.015
    foreign_taste = rng.integers(0, SUB_COUNT, BLOCK)
    draw = rng.random((4, len(user)))
    kind = np.minimum(np.searchsorted(_SHARES, draw[0], side="right"), 3)
    kind[shared[user] & (draw[1] < 0.5)] = 4
    track = np.empty(len(user), dtype=np.int64)
    audience = people.audience[user]
    wheel = wheel_of(world, week)

    liked = np.flatnonzero(kind <= 1)
    best = np.where(kind[liked] == 1, _FOND, FAVOURITES)
    # Density falls with the rank of the favourite, as 1 / sqrt(rank).
    rank = (draw[1, liked] ** 2 * best).astype(np.int64)
    track[liked] = _favourites(world, people, week, block, slots, user[liked], rank)

    fond = np.flatnonzero(kind == 1)
    artist = catalogue_of(world, week).artist[track[fond]]
    track[fond] = wheel.spin(audience[fond], wheel.artists_first[artist], wheel.artists_stop[artist], draw[2, fond])

    rest = np.flatnonzero(kind >= 2)
    who = user[rest]
    slot = (draw[3, rest, None] > weights[who, :-1]).sum(axis=1)
    taste = np.where(kind[rest] == 4, foreign_taste[who], slots[who, slot])
    anything = kind[rest] == 3
    low = np.where(anything, 0, wheel.subgenres[taste])
    high = np.where(anything, len(wheel.order), wheel.subgenres[taste + 1])
    track[rest] = wheel.spin(audience[rest], low, high, draw[2, rest])
    return track, kind


def _favourites(world: World, people: People, week: int, block: int, slots: Ints, user: Ints, rank: Ints) -> Ints:
    """Return the users' favourite tracks with the given ranks.

    A favourite is drawn from a catalogue older than its epoch, so that it stays while the catalogue grows.
    """
    epoch = week // FAVOURITE_WEEKS
    later = (week + people.favourite_offset[user, rank]) // FAVOURITE_WEEKS - epoch
    weights = np.cumsum(people.weights, axis=1)
    weights /= weights[:, -1:]
    track = np.empty(len(user), dtype=np.int64)
    for ahead in (0, 1):
        rows = np.flatnonzero(later == ahead)
        draw = draws.stream(world, draws.Purpose.FAVOURITES, epoch + ahead, block).random((BLOCK, FAVOURITES, 2))
        who = user[rows]
        uniform = draw[who, rank[rows]]
        taste = slots[who, (uniform[:, :1] > weights[who, :-1]).sum(axis=1)]
        wheel = wheel_of(world, FAVOURITE_WEEKS * max(0, epoch + ahead - 1))
        track[rows] = wheel.spin(
            people.audience[who], wheel.subgenres[taste], wheel.subgenres[taste + 1], uniform[:, 1]
        )
    return track


@lru_cache(maxsize=1)
def _rhythm() -> Ints:
    """Return quantiles of the local second of the week: evenings, weekends, and little sleep on Friday."""
    hour = np.arange(168) % 24
    day = np.array([1.0, 1.0, 1.02, 1.05, 1.2, 1.15, 0.95])[np.arange(168) // 24]
    daily = 0.15 + np.exp(-(((hour - 8) / 2.0) ** 2)) * 0.8 + np.exp(-(((hour - 18.5) / 4.0) ** 2)) * 1.2
    shares = np.concatenate([[0.0], np.cumsum(day * daily)])
    quantiles = (np.arange(_RHYTHM_STEPS) + 0.5) / _RHYTHM_STEPS
    seconds: Ints = np.interp(quantiles, shares / shares[-1], np.arange(169) * 3600.0).astype(np.int64)
    return seconds


def _times(
    world: World, people: People, week: int, counts: Ints, user: Ints, track: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return the order of the rows by user and time, and the seconds since Monday in this order.

    A play follows its user's joining and its track's release; no two plays of a user have the same time.
    """
    usable = _WEEK_SECONDS - 2 * MAX_PLAYS
    local = _rhythm()[rng.integers(0, _RHYTHM_STEPS, len(user))] + rng.integers(0, 40, len(user))
    seconds = (local - 3600 * UTC_HOURS[people.market[user]]) % usable
    week_start = np.datetime64(world.monday(week), "D")
    out = (catalogue_of(world, week).released[track] - week_start).astype(np.int64)
    earliest = 86_400 * np.maximum(np.maximum(people.joined[user] - 7 * week, out), 0)
    seconds = earliest + seconds * (usable - earliest) // usable
    order = np.argsort(user * _WEEK_SECONDS + seconds, kind="stable")
    rank = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    rising = np.maximum.accumulate(user * _WEEK_SECONDS + seconds[order] - rank) + rank
    return order, np.asarray(rising - user * _WEEK_SECONDS)


def dirt_of(world: World, week: int, block: int, rows: int) -> tuple[Ints, Ints]:
    """Return each row's kind of dirt (index into `DIRT_KINDS`, -1 if clean) and a number for unknown tracks."""
    rng = draws.stream(world, draws.Purpose.DIRT, week, block)
    draw = rng.random(rows)
    foreign = rng.integers(0, 1_000_000 - FIRST_UNKNOWN_TRACK, rows)
    kinds = np.full(rows, -1, dtype=np.int64)
    dirty = np.flatnonzero(draw < len(DIRT_KINDS) * world.dirt)
    if len(dirty):
        kinds[dirty] = np.minimum(draw[dirty] / world.dirt, len(DIRT_KINDS) - 1).astype(np.int64)
    return kinds, foreign
