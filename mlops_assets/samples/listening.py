"""A seeded world of listeners, artists and tracks: the data of Discover Weekly's embedded environment.

What belongs here: how the world works, and the canonical frames `tracks`, `users` and `listens` it yields, week
by week. What does not: reading real feeds, cleaning them, or any model.

The world. Artists belong to one of 48 sub-genres of 12 genres and to a home market; popularity is Zipf-like per
artist and per track. A listener has a home genre and four taste slots (sub-genres, weighted) whose weights swing
slowly and whose contents are renewed, the main one every four years, the least every half year. A play is of a
favourite (46 %; 24 a listener, each renewed every 13 weeks), of an artist of the five best favourites (14 %), of
something popular or new in the taste (26 %), or of anything (14 %). In one week of 67 a listener's account is
shared and half of the plays are of a foreign sub-genre.

Dirt. Each of the five kinds in `DIRT_KINDS` befalls a share ``dirt`` of the clean events, never two the same one:

* ``duplicate``: the event is followed by an exact copy (the only rows that are added; the others are altered);
* ``negative_plays``: ``plays`` is -1;
* ``unknown_track``: ``track_id`` is between t990000 and t999999, which no catalogue holds;
* ``missing_user``: ``user_id`` is None;
* ``future``: ``listened_at`` is 364 days ahead.

Random numbers come from streams named by (seed, purpose, week or epoch, block of users) and from nothing else, so
a frame depends neither on the chunk size nor on what was asked before. Strings are ordinary Python objects in
``object`` columns, shared between rows.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from mlops_assets.samples._listening_catalogue import catalogue_of
from mlops_assets.samples._listening_people import BLOCK, people_of, play_counts
from mlops_assets.samples._listening_plays import DIRT_KINDS, dirt_of, events_of, listens_frame
from mlops_assets.samples._listening_tables import MARKET_SETS, MARKETS, Objects
from mlops_assets.samples._listening_texts import texts_of
from mlops_assets.samples._listening_world import World, numbered, require_between

__all__ = ["DIRT_KINDS", "MARKETS", "ListeningWorld"]


class ListeningWorld(World):
    """A small streaming service, reproducible from its seed, for any number of weeks.

    Parameters
    ----------
    users
        Users in the directory in week 0 (200 to 1,000,000); every later week about 1.5 % of this number join.
    weeks
        Planned horizon, for whoever loops over the world; any week from 0 on can be generated.
    seed
        Names the world; not negative.
    start
        The Monday of week 0.
    tracks
        Tracks released before week 0 (500 to 200,000). By default 4,000 at 2,000 users and about 100,000 at
        1,000,000. Every week from week 0 on brings new ones, about 0.6 % of this number, some by new artists.
    dirt
        Share of the events that each kind of dirt befalls (0 to 0.1); 0 switches dirt off.

    Raises
    ------
    UserError
        If a parameter is outside its bounds or ``start`` is not a Monday.

    Notes
    -----
    A user-week has 22 listens on average up to 2,000 users and fewer in larger worlds (10 at 1,000,000), where casual
    listeners prevail. About 1.5 % of the users never listen.
    """

    def track_catalogue(self, until_week: int) -> pd.DataFrame:
        """Everything released up to and including a week.

        Returns
        -------
        pandas.DataFrame
            Canonical `tracks`, ``track_count(until_week)`` rows, in the order of ``track_id``: text columns and
            ``released`` (`datetime.date`) are ``object``, missing text is None, ``explicit`` is bool.
        """
        catalogue = catalogue_of(self, until_week)
        frames = [texts_of(self, catalogue, batch) for batch in range(until_week + 2)]
        ids = numbered("t", 1, len(catalogue.artist) + 1, 6)
        artist_ids = numbered("a", 1, len(catalogue.subgenre) + 1, 5)
        markets = np.array([None, *MARKET_SETS[1:]], dtype=object)
        return pd.DataFrame(
            {
                "track_id": ids,
                "artist_id": artist_ids[catalogue.artist],
                "title": np.concatenate([titles for titles, _, _ in frames]),
                "tags": np.concatenate([tags for _, tags, _ in frames]),
                "lyrics": np.concatenate([lyrics for _, _, lyrics in frames]),
                "explicit": catalogue.explicit,
                "released": catalogue.released.astype(object),
                "markets": markets[catalogue.licence],
            }
        )

    def user_directory(self, until_week: int) -> pd.DataFrame:
        """Everybody who joined up to and including a week, also those who never listen.

        Returns
        -------
        pandas.DataFrame
            Canonical `users`, ``user_count(until_week)`` rows, in the order of ``user_id``: ``market`` is ``object``
            with None where unknown, ``allow_explicit`` bool, ``joined`` (`datetime.date`) ``object``.
        """
        count = self.user_count(until_week)
        people = [people_of(self, block) for block in range(-(-count // BLOCK))]
        names = np.array([None, *MARKETS], dtype=object)
        joined = np.concatenate([p.joined for p in people])[:count]
        return pd.DataFrame(
            {
                "user_id": numbered("u", 1, count + 1, 7),
                "market": names[np.concatenate([p.market for p in people])[:count]],
                "allow_explicit": np.concatenate([p.allow_explicit for p in people])[:count],
                "joined": (np.datetime64(self.start, "D") + joined).astype(object),
            }
        )

    def listens(self, week: int, *, chunk_users: int = 20_000) -> Iterator[pd.DataFrame]:
        """Yield a week's listens in chunks of users; memory is bounded by the chunk.

        Parameters
        ----------
        week
            Week index, 0 or later.
        chunk_users
            Users of the directory a chunk covers. Only where the cuts are depends on it; chunks without rows are
            left out.

        Yields
        ------
        pandas.DataFrame
            Canonical `listens`, sorted by user and time: ``user_id`` and ``track_id`` are ``object``, ``listened_at``
            is ``datetime64[ns, UTC]`` in whole seconds, ``plays`` float, ``skipped`` bool.
        """
        require_between("chunk_users", chunk_users, 1, 10_000_000)
        count = self.user_count(week)
        track_ids = numbered("t", 1, self.track_count(week) + 1, 6)
        return self._chunks(week, count, chunk_users, track_ids)

    def planted(self, week: int) -> dict[str, int]:
        """Count the dirt in a week's listens, exactly, by kind (see `DIRT_KINDS`)."""
        total = np.zeros(len(DIRT_KINDS), dtype=np.int64)
        for block in range(-(-self.user_count(week) // BLOCK)):
            plays = play_counts(self, people_of(self, block), week, block)
            kinds, _ = dirt_of(self, week, block, int(plays.sum()))
            total += np.bincount(kinds + 1, minlength=len(DIRT_KINDS) + 1)[1:]
        return dict(zip(DIRT_KINDS, total.tolist(), strict=True))

    def _chunks(self, week: int, count: int, chunk_users: int, track_ids: Objects) -> Iterator[pd.DataFrame]:
        at, events = -1, None
        for low in range(0, count, chunk_users):
            high = min(low + chunk_users, count)
            parts = []
            for block in range(low // BLOCK, -(-high // BLOCK)):
                if events is None or block != at:
                    at, events = block, events_of(self, week, block, track_ids)
                parts.append(events.of_users(low - block * BLOCK, high - block * BLOCK))
            if any(len(part.user) for part in parts):
                yield listens_frame(parts)
