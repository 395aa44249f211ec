"""How good a set of playlists is: accuracy for each user, and what accuracy does not see.

What belongs here: definitions, vectorised over users, in terms of arrays. What does not: who is compared with whom
(`evaluation.py`). Lists are int32 arrays of shape (users, n), best first, padded with -1; a list that is shorter than k
simply misses the places it does not fill. ``relevant`` is a CSR matrix (users, tracks) whose positive entries are what
the user liked in the held-out part.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_assets.discover_weekly.interactions import contains

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Lists = NDArray[np.int32]
PerUser = NDArray[np.float64]

ACCURACY = ("precision", "recall", "ndcg", "map", "hit_rate")


class Interval(NamedTuple):
    """A mean with the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float


def hits(lists: Lists, relevant: "csr_matrix") -> NDArray[np.bool_]:
    """Mark the places that hold a relevant track; shape of ``lists``."""
    rows = np.broadcast_to(np.arange(len(lists))[:, None], lists.shape)
    liked = relevant.copy()
    liked.eliminate_zeros()
    return (lists >= 0) & contains(liked, rows, np.maximum(lists, 0))


def accuracy(lists: Lists, relevant: "csr_matrix", k: int) -> dict[str, PerUser]:
    """Measure the first ``k`` places of each list with binary relevance.

    With r relevant tracks of the user, hit(j) in {0, 1} at place j = 1..k:

    * precision: hits / k, also where the list or r is shorter than k
    * recall: hits / r
    * ndcg: sum of hit(j) / log2(j + 1), divided by the same sum for min(k, r) hits at the top
    * map: sum of hit(j) * precision at j, divided by **min(k, r)** (some packages divide by r)
    * hit_rate: 1 if there is any hit

    Returns
    -------
    dict
        Metric name to float64 values of shape (users,); NaN for a user without a relevant track (not assessed).
    """
    at_k = hits(lists[:, :k], relevant).astype(np.float64)
    places = np.arange(1, at_k.shape[1] + 1)
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    n_relevant = np.diff(relevant.indptr) if not (relevant.data <= 0).any() else _positive_rows(relevant)
    r = np.where(n_relevant > 0, n_relevant, np.nan)
    best = np.minimum(r, k)
    ideal = np.where(n_relevant > 0, np.cumsum(discount)[np.clip(n_relevant, 1, k) - 1], np.nan)
    found = at_k.sum(axis=1)
    precision_at = np.cumsum(at_k, axis=1) / places
    return {
        "precision": np.where(n_relevant > 0, found / k, np.nan),
        "recall": found / r,
        "ndcg": (at_k @ discount[: at_k.shape[1]]) / ideal,
        "map": (at_k * precision_at).sum(axis=1) / best,
        "hit_rate": np.where(n_relevant > 0, (found > 0).astype(np.float64), np.nan),
    }


def exposure(lists: Lists, n_tracks: int) -> NDArray[np.int64]:
    """Count how often each track is recommended; shape (tracks,)."""
    return np.bincount(lists[lists >= 0].ravel(), minlength=n_tracks)


def coverage(lists: Lists, n_tracks: int) -> float:
    """Share of the catalogue that is recommended to at least one user, 0..1."""
    return float((exposure(lists, n_tracks) > 0).mean()) if n_tracks else float("nan")


def gini(counts: NDArray[np.integer] | NDArray[np.floating]) -> float:
    """Gini coefficient of non-negative amounts: 0 all equal, towards 1 all with one.

    With the amounts x ascending, sum((2i - n - 1) x_i) / (n sum(x)), i = 1..n. NaN if nothing was counted.
    """
    x = np.sort(np.asarray(counts, dtype=np.float64))
    if not len(x) or x.sum() == 0:
        return float("nan")
    ranks = 2 * np.arange(1, len(x) + 1) - len(x) - 1
    return float((ranks * x).sum() / (len(x) * x.sum()))


def novelty(lists: Lists, support: NDArray[np.integer], n_users: int) -> PerUser:
    """Mean self-information of a list in bits, -log2(share of users who play the track); shape (users,).

    A track that nobody plays counts as if one user did, so that the value stays finite.
    """
    information = -np.log2(np.maximum(support, 1) / max(n_users, 1))
    return _mean_over_list(lists, information)


def mean_popularity(lists: Lists, support: NDArray[np.integer]) -> PerUser:
    """Mean number of listeners of the tracks in a list (average recommendation popularity); shape (users,)."""
    return _mean_over_list(lists, support.astype(np.float64))


def cold_share(lists: Lists, support: NDArray[np.integer]) -> PerUser:
    """Share of a list taken by tracks that nobody has played; shape (users,)."""
    return _mean_over_list(lists, (support == 0).astype(np.float64))


def intra_list_diversity(lists: Lists, vectors: "NDArray[np.floating] | csr_matrix") -> PerUser:
    """Mean of 1 - cosine over the pairs of a list; shape (users,), NaN below two tracks with a vector.

    Parameters
    ----------
    vectors
        Dense or CSR, shape (tracks, anything): factors, or tag features. Tracks with a zero vector are not assessed.
    """
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    unit = normalize(vectors)
    has_vector = np.asarray(abs(unit).sum(axis=1)).ravel() > 0
    used = (lists >= 0) & has_vector[np.maximum(lists, 0)]
    rows, places = np.nonzero(used)
    chosen = csr_matrix((np.ones(len(rows)), (rows, lists[rows, places])), shape=(len(lists), unit.shape[0]))
    total = chosen @ unit
    squared = total.multiply(total).sum(axis=1) if hasattr(total, "multiply") else (total**2).sum(axis=1)
    m = used.sum(axis=1).astype(np.float64)
    pairs = np.where(m > 1, m * (m - 1), np.nan)
    # The square of a sum of unit vectors is m plus twice the sum of all pairwise cosines.
    return np.asarray(1.0 - (np.asarray(squared).ravel() - m) / pairs)


def artists_per_list(lists: Lists, artists: NDArray[np.integer]) -> PerUser:
    """Count the different artists in a list; shape (users,). ``artists`` are codes a track, -1 unknown (left out)."""
    codes = np.where(lists >= 0, artists[np.maximum(lists, 0)], -1)
    codes = np.sort(codes, axis=1)
    first = np.ones(codes.shape, dtype=bool)
    first[:, 1:] = codes[:, 1:] != codes[:, :-1]
    return np.asarray((first & (codes >= 0)).sum(axis=1), dtype=np.float64)


def artist_exposure(lists: Lists, artists: NDArray[np.integer]) -> NDArray[np.int64]:
    """Count how often each artist is recommended; shape (artists,). Tracks of unknown artists (-1) are not counted."""
    codes = artists[lists[lists >= 0]]
    return np.bincount(codes[codes >= 0], minlength=int(artists.max(initial=-1)) + 1)


def repeats(lists: Lists, previous: "csr_matrix") -> PerUser:
    """Share of a list that the user's previous lists (CSR, users x tracks) held already; shape (users,)."""
    rows = np.broadcast_to(np.arange(len(lists))[:, None], lists.shape)
    again = (lists >= 0) & contains(previous, rows, np.maximum(lists, 0))
    length = (lists >= 0).sum(axis=1)
    return np.asarray(again.sum(axis=1) / np.where(length > 0, length, np.nan))


def bootstrap(per_user: PerUser, seed: int = 0, n: int = 1000, level: float = 0.95) -> Interval:
    """Mean over users with a percentile bootstrap interval over users.

    Users with NaN (not assessed) are left out. Without any assessed user all three numbers are NaN.
    """
    values = per_user[~np.isnan(per_user)]
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    # One replicate at a time: memory stays at one vector, whatever the number of users.
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(n)])
    tail = (1 - level) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(values.mean()), float(low), float(high))


def paired_bootstrap(a: PerUser, b: PerUser, seed: int = 0, n: int = 1000, level: float = 0.95) -> Interval:
    """Mean of a - b over the same users with its interval; it excludes 0 where the difference is real.

    Raises
    ------
    ValueError
        The two do not have the same users.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired values need the same users: {a.shape} and {b.shape}")
    return bootstrap(a - b, seed, n, level)


def _positive_rows(matrix: "csr_matrix") -> NDArray[np.int64]:
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return np.bincount(rows[matrix.data > 0], minlength=matrix.shape[0])


def _mean_over_list(lists: Lists, value: NDArray[np.float64]) -> PerUser:
    used = lists >= 0
    length = used.sum(axis=1)
    total = np.where(used, value[np.maximum(lists, 0)], 0.0).sum(axis=1)
    return np.asarray(total / np.where(length > 0, length, np.nan))
