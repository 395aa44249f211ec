"""Who plays what: a sparse matrix of confidences together with its ids, and the ways to hold a part of it back.

What belongs here: the matrix, its weightings and its splits. What does not: how a confidence comes from plays, skips
and weeks, and any model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Weighting = Literal["binary", "log", "linear"]
Ids = NDArray[np.str_]

_COLUMNS = ("user_id", "track_id", "confidence")


@dataclass(frozen=True, eq=False)
class Interactions:
    """Confidences of users in tracks.

    A stored zero means *heard, but not liked* (every play was skipped): such a track is never recommended to the user,
    and it is no positive example either.

    Parameters
    ----------
    matrix
        Confidences, float32, shape (users, tracks), column indices sorted within each row, no duplicates.
    user_ids
        Ascending ids of the rows.
    track_ids
        Ascending ids of the columns: the catalogue, which may hold tracks that nobody has played.
    """

    matrix: "csr_matrix"
    user_ids: Ids
    track_ids: Ids

    @property
    def n_users(self) -> int:
        """Number of users, those without any track included."""
        return len(self.user_ids)

    @property
    def n_tracks(self) -> int:
        """Number of tracks in the catalogue, played or not."""
        return len(self.track_ids)

    def positives(self) -> "csr_matrix":
        """Return the matrix without its stored zeros: what users like."""
        positive = self.matrix.copy()
        positive.eliminate_zeros()
        return positive

    def weights(self, weighting: Weighting) -> "csr_matrix":
        """Return what a model learns from: positive entries only, as 1, log(1 + confidence) or the confidence."""
        return weighted(self.matrix, weighting)

    def support(self) -> NDArray[np.int32]:
        """Count, for each track, the users with a positive confidence in it; shape (tracks,)."""
        liked = self.matrix.indices[self.matrix.data > 0]
        return np.bincount(liked, minlength=self.n_tracks).astype(np.int32)

    def rows(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Interactions":
        """Return the users at these positions (or under this mask), on the same catalogue."""
        return replace(self, matrix=self.matrix[rows], user_ids=self.user_ids[rows])

    def on_catalogue(self, track_ids: Ids) -> "Interactions":
        """Return the same confidences on another catalogue, which must hold every track that occurs here.

        Raises
        ------
        UserError
            A track with a stored confidence is missing from ``track_ids``, or these are not ascending and unique.
        """
        _ascending(track_ids, "track_ids")
        where = positions(self.track_ids, track_ids)
        lost = np.unique(self.matrix.indices[where[self.matrix.indices] < 0])
        if len(lost):
            raise UserError(
                f"{len(lost)} played tracks are not in the catalogue, the first is {str(self.track_ids[lost[0]])!r}",
                where="track_ids",
                remedy="add the tracks to the catalogue, or leave these plays out on purpose before this step.",
            )
        # Both catalogues ascend, so the column order within a row survives the renaming.
        matrix = _csr(self.matrix.data, where[self.matrix.indices], self.matrix.indptr, (self.n_users, len(track_ids)))
        return replace(self, matrix=matrix, track_ids=track_ids)


def weighted(confidences: "csr_matrix", weighting: Weighting) -> "csr_matrix":
    """Return the positive entries of a CSR matrix as 1, log(1 + confidence) or the confidence itself.

    Raises
    ------
    UserError
        The weighting is unknown.
    """
    result = confidences.copy()
    result.eliminate_zeros()
    if weighting == "binary":
        result.data = np.ones_like(result.data)
    elif weighting == "log":
        result.data = np.log1p(result.data)
    elif weighting != "linear":
        raise UserError(f"unknown weighting {weighting!r}", where="weighting", remedy="use binary, log or linear.")
    return result


class Split(NamedTuple):
    """Interactions to learn from, and those held back; both have the same users and the same catalogue.

    ``left_out`` counts the pairs that are in neither part, by reason.
    """

    train: Interactions
    held_out: Interactions
    left_out: dict[str, int]


def from_frame(
    frame: pd.DataFrame, *, user_ids: Sequence[str] | Ids | None = None, track_ids: Sequence[str] | Ids | None = None
) -> Interactions:
    """Build interactions from a frame with one row per user and track.

    Parameters
    ----------
    frame
        Columns user_id, track_id (strings) and confidence (finite, 0 or more).
    user_ids, track_ids
        Users and catalogue to lay the matrix out on, in any order; those of the frame by default.

    Raises
    ------
    UserError
        A column is missing, a pair occurs twice, a confidence is missing, infinite or negative, or an id of the frame
        is not among those given.
    """
    missing = [name for name in _COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(
            f"columns {missing} are missing", where="interactions", remedy=f"give a frame with the columns {_COLUMNS}."
        )
    confidence = frame["confidence"].to_numpy(dtype=np.float32, na_value=np.nan)
    bad = np.flatnonzero(~(np.isfinite(confidence) & (confidence >= 0)))
    if len(bad):
        row = frame.iloc[bad[0]]
        raise UserError(
            f"{len(bad)} confidences are missing, infinite or negative; the first is {row['confidence']!r} "
            f"of user {row['user_id']!r} and track {row['track_id']!r}",
            where="interactions.confidence",
            remedy="confidence is a sum of decayed plays: finite and 0 or more.",
        )
    users, rows = _lay_out(frame["user_id"], user_ids, "user_id")
    tracks, columns = _lay_out(frame["track_id"], track_ids, "track_id")
    order = np.lexsort((columns, rows))
    rows, columns, confidence = rows[order], columns[order], confidence[order]
    twice = np.flatnonzero((rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1]))
    if len(twice):
        raise UserError(
            f"{len(twice)} pairs occur more than once; the first is user {str(users[rows[twice[0]]])!r} and track "
            f"{str(tracks[columns[twice[0]]])!r}",
            where="interactions",
            remedy="add their confidences up before this step.",
        )
    indptr = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(users)))))
    return Interactions(_csr(confidence, columns, indptr, (len(users), len(tracks))), users, tracks)


def positions(ids: Ids, catalogue: Ids) -> NDArray[np.int64]:
    """Find ids in an ascending catalogue; shape of ``ids``, -1 where the catalogue does not have the id."""
    if not len(catalogue):
        return np.full(len(ids), -1, dtype=np.int64)
    found = np.minimum(np.searchsorted(catalogue, ids), len(catalogue) - 1)
    return np.where(catalogue[found] == ids, found, -1).astype(np.int64)


def split_stratified(interactions: Interactions, share: float = 0.2, seed: int = 42, min_items: int = 1) -> Split:
    """Hold back a random share of each user's liked tracks.

    Each user's tracks are put in random order; the first round((1 - share) * n) of them, at least one, are for
    training. Users with fewer than ``min_items`` liked tracks keep all of them. Stored zeros stay in the training part.

    Parameters
    ----------
    share
        Share to hold back, above 0 and below 1.
    seed
        Seed of the order. The legacy generator is used on purpose: numpy keeps its stream fixed for ever.

    Raises
    ------
    UserError
        The share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UserError(f"cannot hold back a share of {share}", where="share", remedy="use a share such as 0.2.")
    matrix = interactions.matrix
    rows = np.repeat(np.arange(interactions.n_users), np.diff(matrix.indptr))
    liked = np.flatnonzero(matrix.data > 0)
    draws = np.random.RandomState(seed).random_sample(len(liked))
    order = np.lexsort((draws, rows[liked]))
    count = np.bincount(rows[liked], minlength=interactions.n_users)
    start = np.cumsum(count) - count
    rank = np.empty(len(liked), dtype=np.int64)
    rank[order] = np.arange(len(liked)) - start[rows[liked][order]]
    keep = np.maximum(np.round((1 - share) * count), 1)
    keep[count < min_items] = count[count < min_items]
    held = np.zeros(matrix.nnz, dtype=bool)
    held[liked] = rank >= keep[rows[liked]]
    return Split(_masked(interactions, ~held), _masked(interactions, held), {})


def split_time(earlier: pd.DataFrame, later: pd.DataFrame) -> Split:
    """Learn from an earlier period and hold back what known users newly liked in a later one.

    Both frames are as for :func:`from_frame`. Only users of the earlier frame are kept. The catalogue is that of both
    periods: a track which first appears later is held out too, because a listener does not care whether the model
    could have known it. ``left_out`` tells how many later pairs are of unknown users, not new to their user, or not
    liked.
    """
    users = np.unique(_strings(earlier["user_id"]))
    unknown = positions(_strings(later["user_id"]), users) < 0
    known = later.loc[~unknown]
    catalogue = np.unique(np.concatenate((_strings(earlier["track_id"]), _strings(known["track_id"]))))
    train = from_frame(earlier, track_ids=catalogue)
    after = from_frame(known, user_ids=users, track_ids=catalogue)
    liked = after.matrix.data > 0
    rows = np.repeat(np.arange(after.n_users), np.diff(after.matrix.indptr))
    heard = contains(train.matrix, rows, after.matrix.indices)
    left_out = {
        "user unknown in the earlier period": int(unknown.sum()),
        "not new to the user": int(heard.sum()),
        "new but not liked": int((~heard & ~liked).sum()),
    }
    return Split(train, _masked(after, liked & ~heard), left_out)


def contains(matrix: "csr_matrix", rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell for each (row, column) whether the matrix stores it, zeros included; shape of ``rows``."""
    width = np.int64(max(matrix.shape[1], 1))
    stored = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr)) * width + matrix.indices
    if not len(stored):
        return np.zeros(np.shape(rows), dtype=bool)
    if not matrix.has_sorted_indices:
        stored = np.sort(stored)
    wanted = np.asarray(rows, dtype=np.int64) * width + columns
    found = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
    return np.asarray(stored[found] == wanted)


def _strings(values: "pd.Series[str] | pd.Index[str] | Sequence[str] | Ids") -> Ids:
    return np.asarray(values, dtype=np.str_)


def _ascending(ids: Ids, where: str) -> None:
    if len(ids) > 1 and not (ids[1:] > ids[:-1]).all():
        raise UserError("ids are not ascending and unique", where=where, remedy="pass numpy.unique of them.")


def _lay_out(column: "pd.Series[str]", wanted: Sequence[str] | Ids | None, name: str) -> tuple[Ids, NDArray[np.int64]]:
    """Ascending ids of one axis, and the place of each row of the frame on it."""
    if column.isna().any():
        raise UserError(
            f"{int(column.isna().sum())} rows have no {name}",
            where=f"interactions.{name}",
            remedy="quarantine these rows before this step.",
        )
    # Factorising first turns a million string comparisons into one per distinct id.
    codes, distinct = pd.factorize(column)
    labels = _strings(distinct)
    ids = np.unique(labels if wanted is None else _strings(wanted))
    place = positions(labels, ids)
    if (place < 0).any():
        raise UserError(
            f"{int((place < 0).sum())} ids are not among those given, the first is {str(labels[place < 0][0])!r}",
            where=f"interactions.{name}",
            remedy=f"add them to the {name}s of the matrix, or leave their rows out before this step.",
        )
    return ids, place[codes]


def _csr(
    data: NDArray[np.float32], indices: NDArray[np.int64], indptr: NDArray[np.int64], shape: tuple[int, int]
) -> "csr_matrix":
    from scipy.sparse import csr_matrix

    return csr_matrix((data, indices, indptr), shape=shape, dtype=np.float32)


def _masked(interactions: Interactions, keep: NDArray[np.bool_]) -> Interactions:
    matrix = interactions.matrix
    indptr = np.concatenate(([0], np.cumsum(keep)))[matrix.indptr]
    return replace(interactions, matrix=_csr(matrix.data[keep], matrix.indices[keep], indptr, matrix.shape))
