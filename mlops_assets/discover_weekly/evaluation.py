"""Who recommends best: a candidate against baselines and champion, on the same users and the same held-out plays.

What belongs here: the protocol, the ranking that all contestants share, and the baselines. What does not: definitions
of metrics (`metrics.py`), and whether a result is good enough (the gates of the risk profile).

A contestant is a function (histories, n) -> int32 (users, n): the best n tracks for each user, as positions in the
catalogue ``histories.track_ids``, best first, -1 where it has no more to say, and nothing that is in the history.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.discover_weekly import metrics
from mlops_assets.discover_weekly.interactions import Interactions, Weighting, contains
from mlops_assets.discover_weekly.metrics import Interval, Lists, PerUser, bootstrap, paired_bootstrap
from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Scorer = Callable[[Interactions, int], Lists]

CANDIDATE, CHAMPION = "candidate", "champion"
_COLUMNS = ("metric", "k", "mean", "low", "high")
_TRACKS_AT_ONCE = 1024
_SCORES_AT_ONCE = 1 << 24


def top_n(
    item_vectors: NDArray[np.float32],
    user_vectors: NDArray[np.float32],
    n: int,
    exclude: "csr_matrix",
    *,
    placed: NDArray[np.bool_] | None = None,
    item_bias: NDArray[np.float32] | None = None,
    bias_weight: NDArray[np.float32] | None = None,
) -> Lists:
    """Rank by inner product plus bias_weight * item_bias, ties by position; int32 (users, n), padded with -1.

    Parameters
    ----------
    exclude
        CSR (users, tracks): stored entries are never listed.
    placed
        Mask (tracks,) of the tracks that may be listed; all by default.
    """
    from mlops_assets.discover_weekly.topn import TopN

    everyone = np.zeros(len(user_vectors), dtype=np.int32)
    search = TopN(
        np.ascontiguousarray(item_vectors, dtype=np.float32),
        item_bias=item_bias,
        audiences=None if placed is None else placed[None, :],
    )
    found = search.search(
        np.ascontiguousarray(user_vectors, dtype=np.float32),
        n,
        exclude=exclude,
        audience=None if placed is None else everyone,
        bias_weight=bias_weight,
    )
    return found.items


class Popular:
    """Baseline: the tracks with most listeners that the user does not have yet."""

    def __init__(self, train: Interactions) -> None:
        self._support, self._track_ids = train.support(), train.track_ids

    def __call__(self, histories: Interactions, n: int) -> Lists:
        """List the most popular tracks; ties by track id."""
        _same_catalogue(self._track_ids, histories)
        ones = np.ones((histories.n_users, 1), dtype=np.float32)
        return top_n(self._support[:, None].astype(np.float32), ones, n, histories.matrix, placed=self._support > 0)


class ItemItem:
    """Baseline: item-item collaborative filtering by cosine similarity.

    A track's score is the sum over the user's tracks of weight times similarity. Each track keeps its ``neighbours``
    most similar tracks, itself among them. Memory is bounded by the neighbours kept and a chunk of 1,024 tracks.

    Parameters
    ----------
    neighbours
        Similarities kept for each track (K).
    weighting
        What a confidence counts.
    """

    def __init__(self, train: Interactions, neighbours: int = 400, weighting: Weighting = "log") -> None:
        from scipy.sparse import vstack
        from sklearn.preprocessing import normalize

        self._weighting: Weighting = weighting
        self._track_ids = train.track_ids
        unit = normalize(train.weights(weighting).astype(np.float64), axis=0).tocsc()
        by_track = unit.T.tocsr()
        parts = [
            _largest(by_track[start : start + _TRACKS_AT_ONCE] @ unit, neighbours)
            for start in range(0, train.n_tracks, _TRACKS_AT_ONCE)
        ]
        self._similarity = vstack(parts, format="csr")

    def __call__(self, histories: Interactions, n: int) -> Lists:
        """List the tracks most similar to the user's own; tracks without any similarity are not listed."""
        _same_catalogue(self._track_ids, histories)
        weights = histories.weights(self._weighting).astype(np.float64)
        lists = np.full((histories.n_users, n), -1, dtype=np.int32)
        step = max(1, _SCORES_AT_ONCE // max(histories.n_tracks, 1))
        for start in range(0, histories.n_users, step):
            scores = (weights[start : start + step] @ self._similarity).toarray()
            seen = histories.matrix[start : start + step]
            scores[np.repeat(np.arange(len(scores)), np.diff(seen.indptr)), seen.indices] = 0
            lists[start : start + step] = _best_of(scores, n)
        return lists


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What each contestant reached, and how far the candidate is from the others.

    ``table``: contestant, metric, k, mean, low, high (no interval where a metric has one value for all users).
    ``differences``: against, metric, k, mean, low, high of candidate minus the other, paired by user.
    ``protocol``: how it was measured, in plain values.
    """

    table: pd.DataFrame = field(repr=False)
    differences: pd.DataFrame = field(repr=False)
    protocol: dict[str, Any]

    def value(self, contestant: str, metric: str, k: int) -> Interval:
        """Return one row of ``table``."""
        return _row(self.table, contestant=contestant, metric=metric, k=k)

    def difference(self, against: str, metric: str, k: int) -> Interval:
        """Return one row of ``differences``: candidate minus ``against``."""
        return _row(self.differences, against=against, metric=metric, k=k)

    def verdict(self, against: str, metric: str = "ndcg", k: int = 10) -> str:
        """Say ``better``, ``worse`` or ``no difference``: by whether the interval of the difference excludes 0."""
        difference = self.difference(against, metric, k)
        if difference.low > 0:
            return "better"
        return "worse" if difference.high < 0 else "no difference"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what was not assessed is None."""
        return {
            "protocol": self.protocol,
            "metrics": _plain(self.table),
            "differences": _plain(self.differences),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Evaluation":
        """Rebuild what :meth:`to_dict` gave."""
        table = pd.DataFrame(stored["metrics"], columns=["contestant", *_COLUMNS])
        differences = pd.DataFrame(stored["differences"], columns=["against", *_COLUMNS])
        for frame in (table, differences):
            frame[["mean", "low", "high"]] = frame[["mean", "low", "high"]].astype(float)
        return cls(table, differences, dict(stored["protocol"]))


def evaluate(
    candidate: Scorer,
    histories: Interactions,
    held_out: Interactions,
    *,
    baselines: Mapping[str, Scorer] | None = None,
    champion: Scorer | None = None,
    tracks: pd.DataFrame | None = None,
    previous: "csr_matrix | None" = None,
    ks: Sequence[int] = (10, 30),
    seed: int = 0,
    resamples: int = 1000,
) -> Evaluation:
    """Compare a candidate with baselines and champion.

    Protocol: every user with at least one held-out liked track is judged, each contestant on the same users; the whole
    catalogue is ranked, without what the history holds; relevance is binary; held-out tracks that no model can know
    stay in the denominators. Values are means over users with percentile bootstrap intervals over users (95 %);
    differences are paired by user. Coverage, Gini and exposure are of all lists together and have no interval.
    Popularity, novelty and cold tracks are by the listeners in ``histories``, all of them.

    Parameters
    ----------
    histories, held_out
        The two parts of a split: same users, same catalogue.
    baselines
        Contestants by name; :class:`Popular` and :class:`ItemItem` of ``histories`` by default.
    tracks
        track_id with artist_id and tags, for artist metrics and intra-list diversity; not assessed where absent.
    previous
        CSR (users, tracks) of earlier lists of the same users, for repeats.
    ks
        List lengths to judge.

    Raises
    ------
    UserError
        The two parts do not fit together, nobody has a held-out track, or a contestant lists what the user has.
    """
    users = _judged_users(histories, held_out)
    seen, relevant = histories.rows(users), held_out.rows(users).positives()
    if baselines is None:
        baselines = {"popular": Popular(histories), "item_item": ItemItem(histories)}
    contestants = {CANDIDATE: candidate, **baselines} | ({} if champion is None else {CHAMPION: champion})
    measure = _Measure(histories, relevant, tracks, None if previous is None else previous[users])
    per_user: dict[tuple[str, str, int], PerUser] = {}
    rows: list[dict[str, Any]] = []
    for name, contestant in contestants.items():
        lists = _checked(contestant(seen, max(ks)), seen, name)
        for k in ks:
            for metric, values in measure.users(lists[:, :k], k).items():
                per_user[name, metric, k] = values
                interval = bootstrap(values, seed, resamples)
                rows.append({"contestant": name, "metric": metric, "k": k, **interval._asdict()})
            for metric, value in measure.together(lists[:, :k]).items():
                rows.append(
                    {"contestant": name, "metric": metric, "k": k, "mean": value, "low": np.nan, "high": np.nan}
                )
    differences = [
        {
            "against": name, "metric": metric, "k": k,
            **paired_bootstrap(per_user[CANDIDATE, metric, k], values, seed, resamples)._asdict(),
        }
        for (name, metric, k), values in per_user.items()
        if name != CANDIDATE
    ]  # fmt: skip
    protocol = {
        "users": len(users),
        "held_out_tracks": int(relevant.nnz),
        "of_which_nobody_had_played": int((histories.support()[relevant.indices] == 0).sum()),
        "catalogue": histories.n_tracks,
        "relevance": "binary",
        "map": "average precision over min(k, relevant)",
        "interval": f"95 % percentile bootstrap over users, {resamples} resamples, seed {seed}",
        "contestants": list(contestants),
    }
    return Evaluation(
        pd.DataFrame(rows, columns=["contestant", *_COLUMNS]),
        pd.DataFrame(differences, columns=["against", *_COLUMNS]),
        protocol,
    )


class _Measure:
    """All metrics of one contestant's lists."""

    def __init__(
        self,
        histories: Interactions,
        relevant: "csr_matrix",
        tracks: pd.DataFrame | None,
        previous: "csr_matrix | None",
    ) -> None:
        self.relevant, self.previous = relevant, previous
        self.support, self.n_users, self.n_tracks = histories.support(), histories.n_users, histories.n_tracks
        self.artists: NDArray[np.int64] | None = None
        self.tags: csr_matrix | None = None
        if tracks is not None:
            described = tracks.set_index("track_id").reindex(histories.track_ids)
            if "artist_id" in described and described["artist_id"].notna().any():
                self.artists = pd.factorize(described["artist_id"])[0].astype(np.int64)
            if "tags" in described and described["tags"].fillna("").str.strip().any():
                self.tags = _bag(described["tags"])

    def users(self, lists: Lists, k: int) -> dict[str, PerUser]:
        values = metrics.accuracy(lists, self.relevant, k)
        values["novelty"] = metrics.novelty(lists, self.support, self.n_users)
        values["mean_popularity"] = metrics.mean_popularity(lists, self.support)
        values["cold_share"] = metrics.cold_share(lists, self.support)
        if self.tags is not None:
            values["intra_list_diversity"] = metrics.intra_list_diversity(lists, self.tags)
        if self.artists is not None:
            values["artists_per_list"] = metrics.artists_per_list(lists, self.artists)
        if self.previous is not None:
            values["repeats"] = metrics.repeats(lists, self.previous)
        return values

    def together(self, lists: Lists) -> dict[str, float]:
        values = {
            "coverage": metrics.coverage(lists, self.n_tracks),
            "popularity_gini": metrics.gini(metrics.exposure(lists, self.n_tracks)),
            "full_lists": float((lists >= 0).all(axis=1).mean()),
        }
        if self.artists is not None:
            shown = metrics.artist_exposure(lists, self.artists)
            values["artist_coverage"] = float((shown > 0).mean())
            values["artist_gini"] = metrics.gini(shown)
        return values


def _judged_users(histories: Interactions, held_out: Interactions) -> NDArray[np.int64]:
    if not (
        np.array_equal(histories.user_ids, held_out.user_ids)
        and np.array_equal(histories.track_ids, held_out.track_ids)
    ):
        raise UserError(
            "histories and held-out plays have different users or another catalogue",
            where="evaluation",
            remedy="build both with the same user_ids and track_ids.",
        )
    users = np.flatnonzero(np.diff(held_out.positives().indptr) > 0)
    if not len(users):
        raise UserError(
            "no user has a held-out track", where="evaluation", remedy="hold back a larger share or a longer period."
        )
    return users


def _checked(lists: Lists, seen: Interactions, name: str) -> Lists:
    rows = np.broadcast_to(np.arange(len(lists))[:, None], lists.shape)
    known = (lists >= 0) & contains(seen.matrix, rows, np.maximum(lists, 0))
    if known.any():
        user, place = np.argwhere(known)[0]
        raise UserError(
            f"{int(known.sum())} recommended tracks are in the user's history; the first is "
            f"{str(seen.track_ids[lists[user, place]])!r} for user {str(seen.user_ids[user])!r}",
            where=f"evaluation of {name}",
            remedy="a contestant must leave out what the history holds.",
        )
    return lists


def _same_catalogue(track_ids: NDArray[np.str_], histories: Interactions) -> None:
    if not np.array_equal(track_ids, histories.track_ids):
        raise UserError(
            "the baseline was fitted on another catalogue",
            where="evaluation",
            remedy="lay the histories out on its catalogue with Interactions.on_catalogue.",
        )


def _largest(block: "csr_matrix", keep: int) -> "csr_matrix":
    """Keep the ``keep`` largest entries of each row, ties by column."""
    from scipy.sparse import csr_matrix

    block = block.tocsr()
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    order = np.lexsort((block.indices, -block.data, rows))
    rank = np.arange(block.nnz) - block.indptr[rows]
    order = order[rank < keep]
    return csr_matrix((block.data[order], (rows[order], block.indices[order])), shape=block.shape)


def _best_of(scores: NDArray[np.float64], n: int) -> Lists:
    """Positions of the ``n`` largest positive scores of each row, ties by position; padded with -1."""
    width = min(n, scores.shape[1])
    # Of the scores that tie with the n-th, a partition keeps any; the threshold brings all of them back.
    threshold = -np.partition(-scores, width - 1, axis=1)[:, width - 1]
    lists = np.full((len(scores), n), -1, dtype=np.int32)
    rows, columns = np.nonzero((scores >= threshold[:, None]) & (scores > 0))
    order = np.lexsort((columns, -scores[rows, columns], rows))
    start = np.searchsorted(rows, np.arange(len(scores)))
    rank = np.arange(len(rows)) - start[rows]
    kept = rank < n
    lists[rows[kept], rank[kept]] = columns[order][kept]
    return lists


def _bag(tags: "pd.Series[str]") -> "csr_matrix":
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(analyzer=str.split, binary=True, dtype=np.float64).fit_transform(tags.fillna(""))


def _row(frame: pd.DataFrame, **keys: object) -> Interval:
    chosen = frame.loc[np.logical_and.reduce([frame[name] == value for name, value in keys.items()])]
    if chosen.empty:
        raise UserError(
            f"nothing was measured for {keys}",
            where="evaluation",
            remedy=f"measured are {frame.drop_duplicates(list(keys))[list(keys)].to_dict('records')[:40]}.",
        )
    return Interval(*(float(chosen.iloc[0][name]) for name in ("mean", "low", "high")))


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
