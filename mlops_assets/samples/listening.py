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
from dataclasses import dataclass
from datetime import date, timedelta
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.foundation.errors import UserError

DIRT_KINDS = ("duplicate", "negative_plays", "unknown_track", "missing_user", "future")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Objects = NDArray[np.object_]


def _words(text: str) -> Objects:
    return np.array(text.split(), dtype=object)


_BLOCK = 4_000  # users that share a random stream: a part of what "same seed, same frames" means
_WEEK_SECONDS = 7 * 86_400
_MAX_PLAYS = 400  # a user-week's cap; Sunday's last minutes stay free to tell that many equal times apart
_FIRST_UNKNOWN_TRACK, _MAX_USER = 990_000, 9_999_999
_SLOTS, _SLOT_WEEKS = 4, (208, 104, 52, 26)
_FAVOURITES, _FAVOURITE_WEEKS, _FOND = 24, 13, 5
_SHARES = np.cumsum([0.46, 0.14, 0.26, 0.14])  # favourite, fond artist, taste, anything
_SKIPS = np.array([0.04, 0.10, 0.16, 0.38, 0.22])  # the same, and the foreign taste of a shared account
_RHYTHM_STEPS = 1 << 14

MARKETS = ("US", "BR", "GB", "DE", "FR", "SE", "NO", "DK")
_MARKET_SHARES = np.array([0.28, 0.18, 0.14, 0.13, 0.10, 0.08, 0.05, 0.04])
_UTC_HOURS = np.array([0, -6, -3, 0, 1, 1, 1, 1, 1])  # by market code; code 0 is "unknown"
_REGIONS = ("US|GB", "BR", "US|GB", "DE|FR|GB", "DE|FR", "SE|NO|DK", "SE|NO|DK", "SE|NO|DK")
_MARKET_SETS = ("", *MARKETS, *_REGIONS)  # what a track's licence code stands for; code 0 is "everywhere"

# A row a genre: its name, its four sub-genres, and eight words of which sub-genre i owns the 2i-th and the next.
_GENRES = _words(
    """
    rock indie_rock garage_rock post_punk arena_rock
      jangly lofi fuzz raw angular gloomy anthem riff
    pop dance_pop synth_pop bedroom_pop ballad_pop
      chart catchy synth retro hushed bedroom ballad diva
    hiphop trap boom_bap drill cloud_rap
      808 hihat sampling vinyl sliding street hazy autotune
    electronic house techno drum_and_bass synthwave
      club four_four warehouse modular breakbeat subbass neon arp
    rnb neo_soul alt_rnb funk quiet_storm
      soulful rhodes moody falsetto slapbass horns slowjam silky
    folk indie_folk americana nordic_folk singer_songwriter
      banjo harmony pedal_steel road fiddle fjord confession nylon
    metal black_metal doom_metal metalcore power_metal
      tremolo frost sludge slow breakdown scream epic twin_guitar
    jazz bebop cool_jazz fusion_jazz vocal_jazz
      sax swing brushed trumpet odd_meter electric_piano standards crooner
    classical baroque romantic minimalism film_score
      harpsichord fugue piano nocturne repetition marimba strings cinematic
    latin reggaeton bossa_nova salsa sertanejo
      dembow perreo guitar_nylon samba clave brass accordion viola
    country outlaw_country country_pop bluegrass honky_tonk
      twang truck radio smalltown mandolin pickin barroom shuffle
    ambient drone dark_ambient sleep_music space_ambient
      sustained texture ominous cavern calm rain cosmic pads
    """
).reshape(-1, 13)
_GENRE_SHARES = np.array([0.15, 0.19, 0.17, 0.11, 0.08, 0.06, 0.05, 0.04, 0.03, 0.06, 0.04, 0.02])
_SUB_SHARES = np.array([0.36, 0.27, 0.21, 0.16])
_EXPLICIT = np.array([0.08, 0.08, 0.42, 0.05, 0.12, 0.03, 0.16, 0.01, 0.0, 0.12, 0.05, 0.0])
_WORDLESS = np.array([0.05, 0.03, 0.02, 0.35, 0.05, 0.05, 0.06, 0.5, 0.8, 0.05, 0.03, 0.9])
_MOODS = _words(
    """
    chill dark happy melancholic energetic dreamy aggressive romantic nostalgic uplifting party focus
    sleepy driving intimate rebellious warm cold summer winter night morning workout rainy
    """
)
_DECADES = np.array([f"{year}s" for year in range(1960, 2030, 10)], dtype=object)
# A row a topic.
_TOPICS = _words(
    """
    road highway engine drive mile wheel dust gas map horizon truck bridge
    heart kiss lips darling forever promise touch hold sweet honey arms tender
    money city hustle chain diamond crown block street game boss gold rich
    dance floor lights beat dj tonight bass club hands body move sweat
    tears goodbye leave broken lonely empty ghost memory regret fade cold miss
    river mountain forest snow fire wolf stone pine field harvest valley lake
    death blood throne steel sword battle demon grave thunder storm iron hell
    moon midnight smoke whiskey blue bar piano rain shadow neon cigarette velvet
    angel heaven prayer soul grace glory light silence eternal holy choir bell
    sol playa fuego corazon noche baila amor ritmo cielo luna vida fiesta
    home mama porch sunday church beer boots creek daddy town fence cotton
    star space orbit void dream machine signal drift ocean gravity wave static
    """
).reshape(-1, 12)
_COMMON_WORDS = _words(
    """
    you me we know time never always away come back down feel say want need see love day night gone tell
    one
    """
)
_ADJECTIVES = _words(
    """
    Silver Broken Golden Little Last Endless Paper Electric Hollow Crimson Quiet Distant Wild Sacred
    Plastic Velvet Burning Secret Northern Lost Second Lucid Bitter Gentle Heavy Marble Restless Empty
    Holy Final
    """
)

_GENRE_COUNT, _SUB_COUNT = len(_GENRES), 4 * len(_GENRES)
_AUDIENCES = 2 * (len(MARKETS) + 1)
_WORD_BASE = _SUB_COUNT + _GENRE_COUNT
_MOOD_BASE = _WORD_BASE + 8 * _GENRE_COUNT
_DECADE_BASE = _MOOD_BASE + len(_MOODS)
_TAG_WORDS = np.concatenate([_GENRES[:, 1:5].ravel(), _GENRES[:, 0], _GENRES[:, 5:].ravel(), _MOODS, _DECADES])
_TAG_WEIGHTS = np.array([6.0, 3.0, 3.0, 3.0, 1.5, 2.0, 2.0, 1.0, 0.7, 0.7])
_TOPIC_SIZE = _TOPICS.shape[1]
_LYRIC_WORDS = np.concatenate([_TOPICS.ravel(), _COMMON_WORDS])


class _Purpose(IntEnum):
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


@dataclass(frozen=True)
class ListeningWorld:
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

    users: int = 2_000
    weeks: int = 13
    seed: int = 7
    start: date = date(2026, 8, 24)
    tracks: int | None = None
    dirt: float = 0.001

    def __post_init__(self) -> None:
        _require_between("users", self.users, 200, 1_000_000)
        _require_between("weeks", self.weeks, 1, 5_000)
        _require_between("seed", self.seed, 0, 2**63 - 1)
        _require_between("tracks", self.back_catalogue_size, 500, 200_000)
        _require_between("dirt", self.dirt, 0.0, 0.1)
        if self.start.weekday() != 0:
            raise UserError(
                f"{self.start} is a {self.start:%A}",
                where="ListeningWorld.start",
                remedy=f"Weeks start on Monday: take {self.start - timedelta(days=self.start.weekday())}.",
            )

    @property
    def back_catalogue_size(self) -> int:
        """Number of tracks released before week 0."""
        return round(4_000 * (self.users / 2_000) ** 0.518) if self.tracks is None else self.tracks

    @property
    def new_tracks_a_week(self) -> int:
        """Number of tracks that are released in every week."""
        return max(4, round(0.006 * self.back_catalogue_size))

    @property
    def new_artists_a_week(self) -> int:
        """Number of artists whose first track comes out in a given week."""
        return max(1, round(0.15 * self.new_tracks_a_week))

    @property
    def new_users_a_week(self) -> int:
        """Number of users who join in every week from week 1 on."""
        return round(0.015 * self.users)

    def user_count(self, until_week: int) -> int:
        """Return the number of users in the directory of ``until_week``."""
        _require_week(self, until_week)
        return self.users + until_week * self.new_users_a_week

    def track_count(self, until_week: int) -> int:
        """Return the number of tracks in the catalogue of ``until_week``."""
        _require_week(self, until_week)
        return self.back_catalogue_size + (until_week + 1) * self.new_tracks_a_week

    def monday(self, week: int) -> date:
        """Return the first day of ``week``."""
        _require_week(self, week)
        return self.start + timedelta(weeks=week)

    def week_of(self, monday: date) -> int:
        """Return the index of the week that starts on ``monday``.

        Raises
        ------
        UserError
            If the day is not a Monday or lies before week 0.
        """
        week, day = divmod((monday - self.start).days, 7)
        if day or week < 0:
            raise UserError(
                f"{monday} ({monday:%A}) does not start a week of this world",
                where="ListeningWorld.week_of",
                remedy=f"Pass a Monday, {self.start} or later.",
            )
        return week

    def track_catalogue(self, until_week: int) -> pd.DataFrame:
        """Everything released up to and including a week.

        Returns
        -------
        pandas.DataFrame
            Canonical `tracks`, ``track_count(until_week)`` rows, in the order of ``track_id``: text columns and
            ``released`` (`datetime.date`) are ``object``, missing text is None, ``explicit`` is bool.
        """
        catalogue = _catalogue(self, until_week)
        frames = [_batch_texts(self, catalogue, batch) for batch in range(until_week + 2)]
        ids = _ids("t", 1, len(catalogue.artist) + 1, 6)
        artist_ids = _ids("a", 1, len(catalogue.subgenre) + 1, 5)
        markets = np.array([None, *_MARKET_SETS[1:]], dtype=object)
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
        people = [_people(self, block) for block in range(-(-count // _BLOCK))]
        names = np.array([None, *MARKETS], dtype=object)
        joined = np.concatenate([p.joined for p in people])[:count]
        return pd.DataFrame(
            {
                "user_id": _ids("u", 1, count + 1, 7),
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
        _require_between("chunk_users", chunk_users, 1, 10_000_000)
        count = self.user_count(week)
        track_ids = _ids("t", 1, self.track_count(week) + 1, 6)
        return self._chunks(week, count, chunk_users, track_ids)

    def planted(self, week: int) -> dict[str, int]:
        """Count the dirt in a week's listens, exactly, by kind (see `DIRT_KINDS`)."""
        total = np.zeros(len(DIRT_KINDS), dtype=np.int64)
        for block in range(-(-self.user_count(week) // _BLOCK)):
            plays = _play_counts(self, _people(self, block), week, block)
            kinds, _ = _dirt(self, week, block, int(plays.sum()))
            total += np.bincount(kinds + 1, minlength=len(DIRT_KINDS) + 1)[1:]
        return dict(zip(DIRT_KINDS, total.tolist(), strict=True))

    def _chunks(self, week: int, count: int, chunk_users: int, track_ids: Objects) -> Iterator[pd.DataFrame]:
        at, events = -1, None
        for low in range(0, count, chunk_users):
            high = min(low + chunk_users, count)
            parts = []
            for block in range(low // _BLOCK, -(-high // _BLOCK)):
                if events is None or block != at:
                    at, events = block, _events(self, week, block, track_ids)
                parts.append(events.of_users(low - block * _BLOCK, high - block * _BLOCK))
            if any(len(part.user) for part in parts):
                yield _listens_frame(parts)


def _require_week(world: ListeningWorld, week: int) -> None:
    if week < 0:
        raise UserError(f"week is {week}", where="ListeningWorld", remedy="Weeks are counted from 0.")
    last = min(
        (_FIRST_UNKNOWN_TRACK - 1 - world.back_catalogue_size) // world.new_tracks_a_week - 1,
        (_MAX_USER - world.users) // world.new_users_a_week,
        (date(2200, 1, 1) - world.start).days // 7,
    )
    if week > last:
        raise UserError(
            f"week {week} lies beyond week {last}, where the world runs out of ids or of dates",
            where="ListeningWorld",
            remedy="Ask for an earlier week or take a world of fewer users or tracks.",
        )


def _require_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(
            f"{name} is {value}", where="ListeningWorld", remedy=f"Choose {name} between {low:,} and {high:,}."
        )


def _stream(world: ListeningWorld, purpose: _Purpose, *key: int) -> np.random.Generator:
    """Return the random stream with this name; PCG64 by name, since numpy's default may change."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((world.seed, int(purpose), *key))))


def _ids(prefix: str, first: int, stop: int, width: int) -> Objects:
    return np.array([f"{prefix}{number:0{width}d}" for number in range(first, stop)], dtype=object)


def _pick(shares: Floats, uniform: Floats) -> Ints:
    """Draw indices with the given shares from uniform numbers."""
    bounds = np.cumsum(shares)
    return np.minimum(np.searchsorted(bounds / bounds[-1], uniform, side="right"), len(shares) - 1).astype(np.int64)


# --- Catalogue --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Catalogue:
    """The catalogue in numbers; the first five arrays have a row per artist, the others a row per track."""

    subgenre: Ints
    home: Ints  # market code
    fame: Floats
    topic: Ints
    moods: Ints  # two per artist

    artist: Ints
    appeal: Floats
    explicit: Bools
    licence: Ints  # index into _MARKET_SETS
    released: NDArray[np.datetime64]


@lru_cache(maxsize=4)
def _catalogue(world: ListeningWorld, until_week: int) -> _Catalogue:
    """Return everything released up to a week. Batch 0 is the back catalogue, batch w + 1 what week w brings."""
    _require_week(world, until_week)
    artists = [_new_artists(world, batch) for batch in range(until_week + 2)]
    subgenre, home, fame, topic, moods = (np.concatenate(column) for column in zip(*artists, strict=True))
    tracks = [_new_tracks(world, batch, subgenre, home) for batch in range(until_week + 2)]
    artist, appeal, explicit, licence, released = (np.concatenate(column) for column in zip(*tracks, strict=True))
    return _Catalogue(subgenre, home, fame, topic, moods, artist, appeal, explicit, licence, released)


def _artist_count(world: ListeningWorld, batch: int) -> int:
    """Return the number of artists known after a batch."""
    return max(96, world.back_catalogue_size // 10) + batch * world.new_artists_a_week


def _new_artists(world: ListeningWorld, batch: int) -> tuple[Ints, Ints, Floats, Ints, Ints]:
    first = _artist_count(world, batch - 1) if batch else 0
    count = _artist_count(world, batch) - first
    draw = _stream(world, _Purpose.ARTISTS, batch).random((count, 8))
    # Every sub-genre has artists even in the smallest world: half of them go round, half follow the shares.
    shares = np.outer(np.sqrt(_GENRE_SHARES), _SUB_SHARES).ravel()
    turn = (first + np.arange(count)) // 2 % _SUB_COUNT
    subgenre = np.where(np.arange(count) % 2 == 0, turn, _pick(shares, draw[:, 0]))
    genre = subgenre // 4
    home = 1 + _pick(_MARKET_SHARES, draw[:, 1])
    fame = np.maximum(draw[:, 2], 1e-5) ** -0.7
    of_genre = (genre + np.array([0, 3, 7])[(draw[:, 3] * 3).astype(np.int64)]) % len(_TOPICS)
    topic = np.where(draw[:, 4] < 0.8, of_genre, (draw[:, 5] * len(_TOPICS)).astype(np.int64))
    mood = (draw[:, 6] * len(_MOODS)).astype(np.int64)
    other = (mood + 1 + (draw[:, 7] * (len(_MOODS) - 1)).astype(np.int64)) % len(_MOODS)
    return subgenre.astype(np.int64), home, fame, topic, np.column_stack([mood, other])


def _new_tracks(
    world: ListeningWorld, batch: int, subgenre: Ints, home: Ints
) -> tuple[Ints, Floats, Bools, Ints, NDArray[np.datetime64]]:
    count = world.new_tracks_a_week if batch else world.back_catalogue_size
    known, artists = (_artist_count(world, batch - 1) if batch else 0), _artist_count(world, batch)
    rng = _stream(world, _Purpose.TRACKS, batch)
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
    return artist, appeal, rng.random(count) < _EXPLICIT[genre], licence, released


def _batch_texts(world: ListeningWorld, catalogue: _Catalogue, batch: int) -> tuple[Objects, Objects, Objects]:
    """Return titles, tags and lyrics of one batch of tracks."""
    first = 0 if not batch else world.back_catalogue_size + (batch - 1) * world.new_tracks_a_week
    rows = slice(first, world.back_catalogue_size + batch * world.new_tracks_a_week)
    artist = catalogue.artist[rows]
    rng = _stream(world, _Purpose.TEXTS, batch)
    topic, subgenre = catalogue.topic[artist], catalogue.subgenre[artist]
    tags = _tags(rng, subgenre, catalogue.moods[artist], catalogue.released[rows])
    lyrics = _lyrics(rng, subgenre // 4, topic)
    draw = rng.random((len(artist), 3))
    adjective = (draw[:, 0] * len(_ADJECTIVES)).astype(np.int64)
    noun = (draw[:, 1] * _TOPIC_SIZE).astype(np.int64)
    suffix = np.where(draw[:, 2] < 0.06, " (Live)", np.where(draw[:, 2] < 0.12, " (Remix)", ""))
    titles = [
        f"{_ADJECTIVES[a]} {_TOPICS[t, n].capitalize()}{s}"
        for a, t, n, s in zip(adjective, topic, noun, suffix, strict=True)
    ]
    return np.array(titles, dtype=object), tags, lyrics


def _tags(rng: np.random.Generator, subgenre: Ints, moods: Ints, released: NDArray[np.datetime64]) -> Objects:
    """Return 3 to 8 tokens a track out of ten candidates, two of them noise; None for 8 % of the tracks."""
    count = len(subgenre)
    draw = rng.random((count, 14))
    genre = subgenre // 4
    own_word = _WORD_BASE + 2 * subgenre
    decade = (released.astype("datetime64[Y]").astype(np.int64) + 1970 - 1960) // 10
    candidates = np.column_stack(
        [
            subgenre,
            own_word,
            own_word + 1,
            _SUB_COUNT + genre,
            _WORD_BASE + 8 * genre + (draw[:, 10] * 8).astype(np.int64),
            _MOOD_BASE + moods,
            _DECADE_BASE + np.clip(decade, 0, len(_DECADES) - 1),
            (draw[:, 11] * _MOOD_BASE).astype(np.int64),
            _MOOD_BASE + (draw[:, 12] * len(_MOODS)).astype(np.int64),
        ]
    )
    # Weighted sampling without replacement: largest u ** (1 / weight) first (Efraimidis, Spirakis 2006).
    order = np.argsort(-(draw[:, :10] ** (1 / _TAG_WEIGHTS)), axis=1, kind="stable")
    words = _TAG_WORDS[np.take_along_axis(candidates, order, axis=1)].tolist()
    lengths = rng.integers(3, 9, count).tolist()
    untagged = (draw[:, 13] < 0.08).tolist()
    texts = [
        None if missing else " ".join(list(dict.fromkeys(row))[:length])
        for row, length, missing in zip(words, lengths, untagged, strict=True)
    ]
    return np.array(texts, dtype=object)


def _lyrics(rng: np.random.Generator, genre: Ints, topic: Ints) -> Objects:
    """Return 12 to 30 words a track, half of the artist's topic; None for instrumentals and some others."""
    count, longest = len(genre), 30
    kind = rng.random((count, longest))
    word = (rng.random((count, longest)) * _TOPIC_SIZE).astype(np.int64)
    common = len(_TOPICS) * _TOPIC_SIZE + rng.integers(0, len(_COMMON_WORDS), (count, longest))
    of_topic = np.where(kind < 0.5, topic[:, None], (genre % len(_TOPICS))[:, None]) * _TOPIC_SIZE + word
    words = _LYRIC_WORDS[np.where(kind < 0.7, of_topic, common)].tolist()
    lengths = rng.integers(12, longest + 1, count).tolist()
    missing = (rng.random(count) < 1 - (1 - _WORDLESS[genre]) * 0.92).tolist()
    texts = [
        None if none else " ".join(row[:length]) for row, length, none in zip(words, lengths, missing, strict=True)
    ]
    return np.array(texts, dtype=object)


# --- Drawing tracks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wheel:
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
def _wheel(world: ListeningWorld, week: int) -> _Wheel:
    """Return the chances of all tracks in a week by fame, appeal, age, home, licence and explicit filter."""
    catalogue = _catalogue(world, week)
    order = np.lexsort((catalogue.artist, catalogue.subgenre[catalogue.artist]))
    artist = catalogue.artist[order]
    age = (np.datetime64(world.monday(week), "D") - catalogue.released[order]).astype(np.int64) / 7
    weight = catalogue.fame[artist] * catalogue.appeal[order] * (1 + 5 * np.exp(-np.maximum(age, 0) / 2))
    licence, home, clean = catalogue.licence[order], catalogue.home[artist], ~catalogue.explicit[order]
    weights = np.empty((_AUDIENCES, len(order)))
    for market in range(len(MARKETS) + 1):
        open_sets = [not s or (market > 0 and MARKETS[market - 1] in s.split("|")) for s in _MARKET_SETS]
        of_market = weight * np.where(home == market, 2.5, 1.0) * np.array(open_sets)[licence]
        weights[2 * market] = of_market * clean
        weights[2 * market + 1] = of_market
    bounds = np.concatenate([[0.0], np.cumsum(weights.ravel())])
    subgenres = np.searchsorted(catalogue.subgenre[artist], np.arange(_SUB_COUNT + 1))
    count = np.bincount(artist, minlength=len(catalogue.subgenre))
    first = np.zeros(len(count), dtype=np.int64)
    first[artist[::-1]] = np.arange(len(order))[::-1]
    return _Wheel(order, bounds, subgenres, first, first + count)


# --- Users ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _People:
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
        return 2 * self.market + self.allow_explicit


@lru_cache(maxsize=2)
def _local_genres(world: ListeningWorld) -> Floats:
    """Return the cumulative shares of the genres in every market."""
    tilt = _stream(world, _Purpose.LOCAL_TASTE).normal(0, 0.5, (len(MARKETS) + 1, _GENRE_COUNT))
    shares = np.cumsum(_GENRE_SHARES * np.exp(tilt), axis=1)
    return np.asarray(shares / shares[:, -1:])


def _people(world: ListeningWorld, block: int) -> _People:
    rng = _stream(world, _Purpose.USERS, block)
    draw = rng.random((_BLOCK, 6))
    market = np.where(draw[:, 0] < 0.012, 0, 1 + _pick(_MARKET_SHARES, draw[:, 1]))
    index = block * _BLOCK + np.arange(_BLOCK)
    later = 7 * (1 + (index - world.users) // world.new_users_a_week) + (draw[:, 2] * 7).astype(np.int64)
    earlier = -1 - np.minimum(-np.log1p(-draw[:, 2]) * 500, 4_000).astype(np.int64)
    mean = 24.5 * (max(world.users, 2_000) / 2_000) ** -0.127
    spread = 1.0
    activity = mean * np.exp(rng.normal(0, spread, _BLOCK) - spread**2 / 2) * (draw[:, 4] >= 0.015)
    genre = (draw[:, 5, None] > _local_genres(world)[market]).sum(axis=1)
    weights = np.array([0.5, 0.25, 0.15, 0.10]) * np.exp(rng.normal(0, 0.4, (_BLOCK, _SLOTS)))
    return _People(
        market=market,
        allow_explicit=draw[:, 3] < 0.8,
        joined=np.where(index < world.users, earlier, later),
        activity=activity,
        genre=np.minimum(genre, _GENRE_COUNT - 1),
        weights=weights,
        phase=rng.random((_BLOCK, _SLOTS)),
        taste_offset=(rng.random((_BLOCK, _SLOTS)) * np.array(_SLOT_WEEKS)).astype(np.int64),
        favourite_offset=rng.integers(0, _FAVOURITE_WEEKS, (_BLOCK, _FAVOURITES)),
    )


def _tastes(world: ListeningWorld, people: _People, week: int, block: int) -> tuple[Ints, Floats]:
    """Return the sub-genres in the taste slots and the cumulative weights of the slots in a week."""
    slots = np.empty((_BLOCK, _SLOTS), dtype=np.int64)
    for slot, cycle in enumerate(_SLOT_WEEKS):
        epoch = week // cycle
        now, soon = (
            _stream(world, _Purpose.TASTE, slot, number, block).random((_BLOCK, 3)) for number in (epoch, epoch + 1)
        )
        draw = np.where(((week + people.taste_offset[:, slot]) // cycle > epoch)[:, None], soon, now)
        near = people.genre + np.where(draw[:, 1] < 0.5, 1, -1)
        anywhere = (draw[:, 1] * _GENRE_COUNT).astype(np.int64)
        same, neighbour = ((1.0, 1.0), (0.6, 0.9), (0.4, 0.8), (0.2, 0.5))[slot]
        genre = np.where(draw[:, 0] < same, people.genre, np.where(draw[:, 0] < neighbour, near, anywhere))
        slots[:, slot] = 4 * (genre % _GENRE_COUNT) + _pick(_SUB_SHARES, draw[:, 2])
    swing = np.sin(2 * np.pi * (week / np.array([61, 47, 37, 29]) + people.phase))
    weights = np.cumsum(people.weights * np.exp(0.5 * swing), axis=1)
    return slots, weights / weights[:, -1:]


def _play_counts(world: ListeningWorld, people: _People, week: int, block: int) -> Ints:
    """Return every user's number of plays in a week; 0 for those who have not joined."""
    rng = _stream(world, _Purpose.ACTIVITY, week, block)
    away = rng.random(_BLOCK) < 0.06
    mood = rng.gamma(4.0, 0.25, _BLOCK)
    present = np.clip((7 * (week + 1) - people.joined) / 7, 0, 1)
    present[block * _BLOCK + np.arange(_BLOCK) >= world.user_count(week)] = 0
    return np.minimum(rng.poisson(people.activity * mood * present * ~away), _MAX_PLAYS)


# --- Listens ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Events:
    """A block's rows of a week, sorted by user."""

    user: Ints  # within the block
    user_id: Objects
    track_id: Objects
    listened_at: NDArray[np.datetime64]
    plays: Floats
    skipped: Bools

    def of_users(self, low: int, high: int) -> "_Events":
        rows = slice(*np.searchsorted(self.user, [low, high]))
        return _Events(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def _listens_frame(parts: list[_Events]) -> pd.DataFrame:
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


def _events(world: ListeningWorld, week: int, block: int, track_ids: Objects) -> _Events:
    people = _people(world, block)
    counts = _play_counts(world, people, week, block)
    user = np.repeat(np.arange(_BLOCK), counts)
    rng = _stream(world, _Purpose.EVENTS, week, block)
    track, kind = _choices(world, people, week, block, user, rng)
    order, seconds = _times(world, people, week, counts, user, track, rng)
    track, kind = track[order], kind[order]
    skipped = rng.random(len(user)) < _SKIPS[kind]
    again = rng.random(len(user))
    plays = np.where((again < 0.05) & (kind == 0) & ~skipped, 2.0 + (again < 0.01), 1.0)

    ids = np.array([*_ids("u", block * _BLOCK + 1, (block + 1) * _BLOCK + 1, 7), None], dtype=object)
    kinds, foreign = _dirt(world, week, block, len(user))
    plays[kinds == DIRT_KINDS.index("negative_plays")] = -1.0
    seconds[kinds == DIRT_KINDS.index("future")] += 52 * _WEEK_SECONDS
    names = track_ids[track]
    unknown = np.flatnonzero(kinds == DIRT_KINDS.index("unknown_track"))
    names[unknown] = [f"t{_FIRST_UNKNOWN_TRACK + number}" for number in foreign[unknown].tolist()]
    copies = np.repeat(np.arange(len(user)), 1 + (kinds == DIRT_KINDS.index("duplicate")))
    named = np.where(kinds == DIRT_KINDS.index("missing_user"), _BLOCK, user)
    monday = np.datetime64(world.monday(week), "s")
    return _Events(
        user=user[copies],
        user_id=ids[named[copies]],
        track_id=names[copies],
        listened_at=(monday + seconds[copies]).astype("datetime64[ns]"),
        plays=plays[copies],
        skipped=skipped[copies],
    )


def _choices(
    world: ListeningWorld, people: _People, week: int, block: int, user: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return track and kind of every play: 0 favourite, 1 its artist, 2 taste, 3 anything, 4 shared account."""
    slots, weights = _tastes(world, people, week, block)
    shared = rng.random(_BLOCK) < 0.015
    foreign_taste = rng.integers(0, _SUB_COUNT, _BLOCK)
    draw = rng.random((4, len(user)))
    kind = np.minimum(np.searchsorted(_SHARES, draw[0], side="right"), 3)
    kind[shared[user] & (draw[1] < 0.5)] = 4
    track = np.empty(len(user), dtype=np.int64)
    audience = people.audience[user]
    wheel = _wheel(world, week)

    liked = np.flatnonzero(kind <= 1)
    best = np.where(kind[liked] == 1, _FOND, _FAVOURITES)
    # Density falls with the rank of the favourite, as 1 / sqrt(rank).
    rank = (draw[1, liked] ** 2 * best).astype(np.int64)
    track[liked] = _favourites(world, people, week, block, slots, user[liked], rank)

    fond = np.flatnonzero(kind == 1)
    artist = _catalogue(world, week).artist[track[fond]]
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


def _favourites(
    world: ListeningWorld, people: _People, week: int, block: int, slots: Ints, user: Ints, rank: Ints
) -> Ints:
    """Return the users' favourite tracks with the given ranks.

    A favourite is drawn from a catalogue older than its epoch, so that it stays while the catalogue grows.
    """
    epoch = week // _FAVOURITE_WEEKS
    later = (week + people.favourite_offset[user, rank]) // _FAVOURITE_WEEKS - epoch
    weights = np.cumsum(people.weights, axis=1)
    weights /= weights[:, -1:]
    track = np.empty(len(user), dtype=np.int64)
    for ahead in (0, 1):
        rows = np.flatnonzero(later == ahead)
        draw = _stream(world, _Purpose.FAVOURITES, epoch + ahead, block).random((_BLOCK, _FAVOURITES, 2))
        who = user[rows]
        uniform = draw[who, rank[rows]]
        taste = slots[who, (uniform[:, :1] > weights[who, :-1]).sum(axis=1)]
        wheel = _wheel(world, _FAVOURITE_WEEKS * max(0, epoch + ahead - 1))
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
    world: ListeningWorld, people: _People, week: int, counts: Ints, user: Ints, track: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return the order of the rows by user and time, and the seconds since Monday in this order.

    A play follows its user's joining and its track's release; no two plays of a user have the same time.
    """
    usable = _WEEK_SECONDS - 2 * _MAX_PLAYS
    local = _rhythm()[rng.integers(0, _RHYTHM_STEPS, len(user))] + rng.integers(0, 40, len(user))
    seconds = (local - 3600 * _UTC_HOURS[people.market[user]]) % usable
    week_start = np.datetime64(world.monday(week), "D")
    out = (_catalogue(world, week).released[track] - week_start).astype(np.int64)
    earliest = 86_400 * np.maximum(np.maximum(people.joined[user] - 7 * week, out), 0)
    seconds = earliest + seconds * (usable - earliest) // usable
    order = np.argsort(user * _WEEK_SECONDS + seconds, kind="stable")
    rank = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    rising = np.maximum.accumulate(user * _WEEK_SECONDS + seconds[order] - rank) + rank
    return order, np.asarray(rising - user * _WEEK_SECONDS)


def _dirt(world: ListeningWorld, week: int, block: int, rows: int) -> tuple[Ints, Ints]:
    """Return each row's kind of dirt (index into `DIRT_KINDS`, -1 if clean) and a number for unknown tracks."""
    rng = _stream(world, _Purpose.DIRT, week, block)
    draw = rng.random(rows)
    foreign = rng.integers(0, 1_000_000 - _FIRST_UNKNOWN_TRACK, rows)
    kinds = np.full(rows, -1, dtype=np.int64)
    dirty = np.flatnonzero(draw < len(DIRT_KINDS) * world.dirt)
    if len(dirty):
        kinds[dirty] = np.minimum(draw[dirty] / world.dirt, len(DIRT_KINDS) - 1).astype(np.int64)
    return kinds, foreign
