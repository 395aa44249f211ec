"""From a user's history to thirty tracks: the rules, the sources and the ladder when the best source is missing.

What belongs here: pure functions from frames to one shard of playlists. What does not: the search itself (topn.py),
reading and writing shards (foundation/batch.py), Dagster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mlops_assets.discover_weekly.spec import PlaylistRules

if TYPE_CHECKING:
    from mlops_assets.discover_weekly.blend import BlendModel

PLAYLIST_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("period", pa.string()),
        ("rank", pa.int32()),
        ("track_id", pa.string()),
        ("score", pa.float32()),
        ("source", pa.string()),
        ("model_version", pa.int32()),
        ("run_id", pa.string()),
    ]
)
SOURCES = ("blend", "fold_in", "content", "popular", "last_week")
_EVERYWHERE = ""


@dataclass(frozen=True)
class Catalogue:
    """The tracks that may be recommended, in the order of their ids.

    Attributes
    ----------
    track_ids : (tracks,) str
    artists : (tracks,) int32
        Artist code; -1 for a track without an artist, which no cap binds.
    audiences : (audiences, tracks) bool
        Which audience may get which track.
    audience_codes
        (market, allow_explicit) to the row of ``audiences``.
    popular : (audiences, tracks) int32
        Allowed tracks of each audience from the most played on, -1 where they end.
    """

    track_ids: NDArray[Any]
    artists: NDArray[np.int32]
    audiences: NDArray[np.bool_]
    audience_codes: Mapping[tuple[str, bool], int]
    popular: NDArray[np.int32]

    def audience_of(self, users: pd.DataFrame) -> NDArray[np.int32]:
        """Return the audience row of every user; an unknown market counts as no market."""
        markets = users["market"].fillna(_EVERYWHERE)
        explicit = ~users["allow_explicit"].eq(other=False).astype(bool)
        codes = self.audience_codes
        return np.array(
            [
                codes.get((market, allowed), codes[_EVERYWHERE, allowed])
                for market, allowed in zip(markets, explicit, strict=True)
            ],
            dtype=np.int32,
        )


def build_catalogue(
    tracks: pd.DataFrame, markets: Sequence[str], plays: pd.DataFrame, *, released_before: str
) -> Catalogue:
    """Build the catalogue of one period.

    Parameters
    ----------
    tracks
        Track features; tracks released on or after ``released_before`` are left out.
    markets
        Markets that users live in. Users without a market get only what is available everywhere.
    plays
        Columns market (missing for none), track_id, plays: what popularity is counted from.
    released_before
        First day after the period, YYYY-MM-DD.
    """
    released = pd.to_datetime(tracks["released"], errors="coerce")
    out = tracks[released.isna() | (released < pd.Timestamp(released_before))].sort_values("track_id")
    out = out.reset_index(drop=True)
    artists, _ = pd.factorize(out["artist_id"], use_na_sentinel=True)
    where = out["markets"].fillna(_EVERYWHERE).astype(str)
    sets = {text: frozenset(text.split("|")) for text in where.unique() if text != _EVERYWHERE}
    explicit = out["explicit"].eq(other=True).to_numpy(dtype=bool)
    names = [_EVERYWHERE, *sorted({market for market in markets if market})]
    codes: dict[tuple[str, bool], int] = {}
    rows: list[NDArray[np.bool_]] = []
    for market in names:
        available = where.map(lambda text, market=market: text == _EVERYWHERE or market in sets[text])
        for allowed in (True, False):
            codes[market, allowed] = len(rows)
            rows.append(available.to_numpy(dtype=bool) & (~explicit | allowed))
    audiences = np.array(rows, dtype=bool).reshape(len(rows), len(out))
    track_ids = out["track_id"].to_numpy(dtype=object)
    popular = _popular(pd.Index(track_ids), audiences, codes, plays)
    return Catalogue(track_ids, artists.astype(np.int32), audiences, codes, popular)


def _popular(
    track_ids: "pd.Index[Any]",
    audiences: NDArray[np.bool_],
    codes: Mapping[tuple[str, bool], int],
    plays: pd.DataFrame,
) -> NDArray[np.int32]:
    """Order each audience's tracks by plays in its market; a market with few plays leans on all markets."""
    totals = np.zeros(len(track_ids))
    at = track_ids.get_indexer(pd.Index(plays["track_id"]))
    known = at >= 0
    np.add.at(totals, at[known], plays["plays"].to_numpy(dtype=float)[known])
    market_of = plays["market"].fillna(_EVERYWHERE).to_numpy()
    popular = np.full(audiences.shape, -1, dtype=np.int32)
    share = totals / max(totals.sum(), 1.0)
    for (market, _allowed), row in codes.items():
        local = np.zeros(len(track_ids))
        here = known & (market_of == market) if market else known
        np.add.at(local, at[here], plays["plays"].to_numpy(dtype=float)[here])
        prior = 1_000.0  # plays' worth of the whole world, so that a tiny market is not ruled by chance
        score = (local + prior * share) / (local.sum() + prior)
        allowed = np.flatnonzero(audiences[row])
        order = allowed[np.lexsort((allowed, -score[allowed]))]
        popular[row, : len(order)] = order
    return popular


@dataclass(frozen=True)
class ShardResult:
    """Playlists of one shard and how many rows each source gave."""

    table: pa.Table
    sources: Mapping[str, int]
    short: int


class Recommender:
    """Everything that is the same for all shards of a batch: loaded once, read by all threads.

    Parameters
    ----------
    model
        The champion, or None when there has never been one: then everybody gets popular tracks.
    trained_until
        The last period that the champion learned from; users with later listens are folded in.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        tracks: pd.DataFrame,
        model: "BlendModel | None",
        rules: PlaylistRules,
        *,
        trained_until: str,
    ) -> None:
        from mlops_assets.discover_weekly.topn import TopN

        self.catalogue, self.model, self.rules, self.trained_until = catalogue, model, rules, trained_until
        self._index = pd.Index(catalogue.track_ids)
        self._search = None
        if model is not None and len(catalogue.track_ids):
            features = tracks.set_index("track_id").reindex(catalogue.track_ids).reset_index()
            self._items = model.place(features)
            self._search = TopN(
                self._items.vectors,
                item_bias=self._items.bias,
                groups=catalogue.artists,
                audiences=catalogue.audiences & self._items.placed,
            )

    def recommend(
        self, users: pd.DataFrame, recent: pd.DataFrame, *, period: str, model_version: int, run_id: str
    ) -> ShardResult:
        """Make the playlists of one shard.

        Parameters
        ----------
        users
            user_id, market, allow_explicit, tracks (lists of ids), confidences (lists), last_period.
        recent
            user_id, track_id of the playlists that must not be repeated.
        """
        history, exclude = self._history(users), self._excluded(users, recent)
        audience = self.catalogue.audience_of(users)
        items = np.full((len(users), self.rules.length), -1, dtype=np.int32)
        scores = np.full(items.shape, np.nan, dtype=np.float32)
        source = np.full(items.shape, SOURCES.index("popular"), dtype=np.int8)
        if self._search is not None and self.model is not None and len(users):
            vectors = self.model.user_vectors(history, self._items)
            found = self._search.search(
                vectors.vectors,
                self.rules.length,
                exclude=exclude,
                audience=audience,
                per_group=self.rules.per_artist,
                bias_weight=vectors.bias_weight,
            )
            usable = np.flatnonzero(vectors.usable)
            items[usable], scores[usable] = found.items[usable], found.scores[usable]
            source[items >= 0] = np.broadcast_to(self._user_source(users, history)[:, None], items.shape)[items >= 0]
        self._fill_with_popular(items, exclude, audience)
        return self._table(users, items, scores, source, period, model_version, run_id)

    def reissue(
        self, users: pd.DataFrame, previous: pd.DataFrame, recent: pd.DataFrame, *, period: str, run_id: str
    ) -> ShardResult:
        """Give every user of a failed shard last period's list again.

        What the user may not get any more (withdrawn, or explicit since the filter is on) is left out; gaps, and the
        lists of those who had none, are filled with popular tracks.

        Parameters
        ----------
        users, recent
            As for `recommend`.
        previous
            user_id, rank, track_id, model_version of the last published period.
        """
        exclude = self._excluded(users, recent)
        audience = self.catalogue.audience_of(users)
        items = np.full((len(users), self.rules.length), -1, dtype=np.int32)
        source = np.full(items.shape, SOURCES.index("popular"), dtype=np.int8)
        versions = np.zeros(items.shape, dtype=np.int32)
        ordered = previous.sort_values(["user_id", "rank"])
        who = pd.Index(users["user_id"]).get_indexer(ordered["user_id"])
        what = self._index.get_indexer(ordered["track_id"])
        kept = np.flatnonzero((who >= 0) & (what >= 0))
        kept = kept[self.catalogue.audiences[audience[who[kept]], what[kept]]]
        place = pd.Series(who[kept]).groupby(who[kept]).cumcount().to_numpy(dtype=np.intp)
        kept, place = kept[place < self.rules.length], place[place < self.rules.length]
        at = who[kept], place
        items[at], source[at] = what[kept], SOURCES.index("last_week")
        versions[at] = ordered["model_version"].to_numpy(dtype=np.int32)[kept]
        self._fill_with_popular(items, exclude, audience)
        scores = np.full(items.shape, np.nan, dtype=np.float32)
        return self._table(users, items, scores, source, period, versions, run_id)

    def _history(self, users: pd.DataFrame) -> Any:
        """Return confidences on the catalogue, CSR (users, tracks); what was only skipped is not in it."""
        values = np.concatenate([*users["confidences"], np.array([], dtype=float)]).astype(np.float32)
        rows, columns = self._heard(users)
        heard = (columns >= 0) & (values > 0)
        return self._matrix(len(users), rows[heard], columns[heard], values[heard])

    def _excluded(self, users: pd.DataFrame, recent: pd.DataFrame) -> Any:
        """Return what each user must not get, CSR (users, tracks): the known, the skipped and the recently listed."""
        rows, columns = self._heard(users)
        known = columns >= 0
        who = pd.Index(users["user_id"]).get_indexer(recent["user_id"])
        what = self._index.get_indexer(recent["track_id"])
        again = (who >= 0) & (what >= 0)
        rows, columns = np.concatenate([rows[known], who[again]]), np.concatenate([columns[known], what[again]])
        return self._matrix(len(users), rows, columns, np.ones(len(rows), dtype=np.float32))

    def _heard(self, users: pd.DataFrame) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        lengths = users["tracks"].map(len).to_numpy(dtype=np.int64)
        ids = np.concatenate([*users["tracks"], np.array([], dtype=object)])
        return np.repeat(np.arange(len(users)), lengths), self._index.get_indexer(ids)

    def _matrix(
        self, users: int, rows: NDArray[np.intp], columns: NDArray[np.intp], values: NDArray[np.float32]
    ) -> Any:
        from scipy.sparse import csr_matrix

        matrix = csr_matrix((values, (rows, columns)), shape=(users, len(self._index)), dtype=np.float32)
        matrix.sum_duplicates()
        matrix.sort_indices()
        return matrix

    def _user_source(self, users: pd.DataFrame, history: Any) -> NDArray[np.int8]:
        late = users["last_period"].fillna("").to_numpy(dtype=str) > self.trained_until
        source = np.where(late, SOURCES.index("fold_in"), SOURCES.index("blend")).astype(np.int8)
        trained = np.asarray(history[:, ~self._items.cold].getnnz(axis=1))
        source[trained == 0] = SOURCES.index("content")
        return source

    def _fill_with_popular(self, items: NDArray[np.int32], exclude: Any, audience: NDArray[np.int32]) -> None:
        """Fill what is still empty, user by user, with the most played allowed tracks."""
        artists, cap = self.catalogue.artists, self.rules.per_artist
        for user in np.flatnonzero((items < 0).any(axis=1)):
            row = items[user]
            filled = int((row >= 0).sum())
            chosen = row[:filled].tolist()
            taken = {*chosen, *exclude.indices[exclude.indptr[user] : exclude.indptr[user + 1]].tolist()}
            by_artist: dict[int, int] = {}
            for track in chosen:
                by_artist[artists[track]] = by_artist.get(artists[track], 0) + 1
            for track in self.catalogue.popular[audience[user]]:
                if track < 0 or filled == len(row):
                    break
                artist = artists[track]
                if track in taken or (artist >= 0 and by_artist.get(artist, 0) >= cap):
                    continue
                row[filled] = track
                by_artist[artist] = by_artist.get(artist, 0) + 1
                filled += 1

    def _table(
        self,
        users: pd.DataFrame,
        items: NDArray[np.int32],
        scores: NDArray[np.float32],
        source: NDArray[np.int8],
        period: str,
        model_version: "int | NDArray[np.int32]",
        run_id: str,
    ) -> ShardResult:
        """Put a shard's rows together in the published schema; a score of nan becomes missing."""
        there = items >= 0
        rank = np.broadcast_to(np.arange(1, items.shape[1] + 1, dtype=np.int32), items.shape)[there]
        user_ids = np.repeat(users["user_id"].to_numpy(dtype=object), there.sum(axis=1))
        sources = source[there]
        rows = np.zeros(len(rank), dtype=np.int64)
        table = pa.table(
            [
                pa.array(user_ids, pa.string()),
                pa.array([period], pa.string()).take(pa.array(rows)),
                pa.array(rank, pa.int32()),
                pa.array(self.catalogue.track_ids[items[there]], pa.string()),
                pa.array(scores[there], pa.float32(), from_pandas=True),
                pa.DictionaryArray.from_arrays(pa.array(sources), pa.array(SOURCES)).cast(pa.string()),
                pa.array(np.broadcast_to(np.asarray(model_version, dtype=np.int32), items.shape)[there]),
                pa.array([run_id], pa.string()).take(pa.array(rows)),
            ],
            schema=PLAYLIST_SCHEMA,
        )
        counts = {name: int((sources == code).sum()) for code, name in enumerate(SOURCES)}
        return ShardResult(table, counts, int((there.sum(axis=1) < items.shape[1]).sum()))
