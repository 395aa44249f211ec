"""The texts of the tracks in a world of listeners: titles, tags and lyrics.

What belongs here: words, drawn by genre, mood and topic. What does not: what the tracks are (`_listening_catalogue`).
"""

import numpy as np
from numpy.typing import NDArray

from mlops_assets.samples import _listening_draws as draws
from mlops_assets.samples._listening_catalogue import Catalogue
from mlops_assets.samples._listening_tables import (
    ADJECTIVES,
    COMMON_WORDS,
    DECADES,
    GENRE_COUNT,
    GENRES,
    MOODS,
    SUB_COUNT,
    TOPICS,
    WORDLESS,
    Ints,
    Objects,
)
from mlops_assets.samples._listening_world import World

_WORD_BASE = SUB_COUNT + GENRE_COUNT
_MOOD_BASE = _WORD_BASE + 8 * GENRE_COUNT
_DECADE_BASE = _MOOD_BASE + len(MOODS)
_TAG_WORDS = np.concatenate([GENRES[:, 1:5].ravel(), GENRES[:, 0], GENRES[:, 5:].ravel(), MOODS, DECADES])
_TAG_WEIGHTS = np.array([6.0, 3.0, 3.0, 3.0, 1.5, 2.0, 2.0, 1.0, 0.7, 0.7])
_TOPIC_SIZE = TOPICS.shape[1]
_LYRIC_WORDS = np.concatenate([TOPICS.ravel(), COMMON_WORDS])


def texts_of(world: World, catalogue: Catalogue, batch: int) -> tuple[Objects, Objects, Objects]:
    """Return titles, tags and lyrics of one batch of tracks."""
    first = 0 if not batch else world.back_catalogue_size + (batch - 1) * world.new_tracks_a_week
    rows = slice(first, world.back_catalogue_size + batch * world.new_tracks_a_week)
    artist = catalogue.artist[rows]
    rng = draws.stream(world, draws.Purpose.TEXTS, batch)
    topic, subgenre = catalogue.topic[artist], catalogue.subgenre[artist]
    tags = _tags(rng, subgenre, catalogue.moods[artist], catalogue.released[rows])
    lyrics = _lyrics(rng, subgenre // 4, topic)
    draw = rng.random((len(artist), 3))
    adjective = (draw[:, 0] * len(ADJECTIVES)).astype(np.int64)
    noun = (draw[:, 1] * _TOPIC_SIZE).astype(np.int64)
    suffix = np.where(draw[:, 2] < 0.06, " (Live)", np.where(draw[:, 2] < 0.12, " (Remix)", ""))
    titles = [
        f"{ADJECTIVES[a]} {TOPICS[t, n].capitalize()}{s}"
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
            SUB_COUNT + genre,
            _WORD_BASE + 8 * genre + (draw[:, 10] * 8).astype(np.int64),
            _MOOD_BASE + moods,
            _DECADE_BASE + np.clip(decade, 0, len(DECADES) - 1),
            (draw[:, 11] * _MOOD_BASE).astype(np.int64),
            _MOOD_BASE + (draw[:, 12] * len(MOODS)).astype(np.int64),
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
    common = len(TOPICS) * _TOPIC_SIZE + rng.integers(0, len(COMMON_WORDS), (count, longest))
    of_topic = np.where(kind < 0.5, topic[:, None], (genre % len(TOPICS))[:, None]) * _TOPIC_SIZE + word
    words = _LYRIC_WORDS[np.where(kind < 0.7, of_topic, common)].tolist()
    lengths = rng.integers(12, longest + 1, count).tolist()
    missing = (rng.random(count) < 1 - (1 - WORDLESS[genre]) * 0.92).tolist()
    texts = [
        None if none else " ".join(row[:length]) for row, length, none in zip(words, lengths, missing, strict=True)
    ]
    return np.array(texts, dtype=object)
