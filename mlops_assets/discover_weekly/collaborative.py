"""Taste from listening alone: implicit ALS, folding users in, and the search for its hyper-parameters.

What belongs here: fitting, storing and applying the collaborative model. What does not: tags and lyrics
(`content.py`), and how the two are mixed (`blend.py`).

Model: Hu, Koren, Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008. User factors are not
stored: given the item factors they follow from a user's plays in closed form.
"""

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_assets.discover_weekly.evaluation import top_n
from mlops_assets.discover_weekly.interactions import (
    Ids,
    Interactions,
    Weighting,
    positions,
)
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath, atomic_writer, read_bytes, write_atomic

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Vectors = NDArray[np.float32]

ARRAYS_FILE, PARAMS_FILE = "collaborative.npz", "collaborative.json"
_USERS_AT_ONCE = 8192
# implicit spreads one call over all cores, and the number of BLAS threads is a setting of the whole process.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class CollaborativeParams:
    """Hyper-parameters of implicit ALS.

    Parameters
    ----------
    factors
        Length of a vector.
    regularization
        Penalty on squared factors. It is not scaled by the amount of data, so search it on data of the size in use.
    alpha
        Weight of a play against an absent one, which has weight 1.
    iterations
        Rounds of alternating least squares.
    weighting
        What a confidence counts: binary (1), log (log(1 + confidence)) or linear.
    seed
        Seed of the initial factors.
    """

    factors: int = 64
    regularization: float = 40.0
    alpha: float = 10.0
    iterations: int = 15
    weighting: Weighting = "binary"
    seed: int = 7


class UserVectors(NamedTuple):
    """Vectors of users, float32 (users, factors), and which of them are usable: the others are zero."""

    vectors: Vectors
    usable: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CollaborativeModel:
    """Item factors of the tracks that somebody plays.

    Parameters
    ----------
    track_ids
        Ascending ids, shape (tracks,).
    item_factors
        float32 (tracks, factors).
    support
        int32 (tracks,): users that the factors of a track were learned from, at least 1.
    params
        What it was fitted with; folding a user in needs them again.
    """

    track_ids: Ids
    item_factors: Vectors
    support: NDArray[np.int32]
    params: CollaborativeParams

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything the model consists of; the same in memory and after save and load."""
        digest = hashlib.sha256(json.dumps(asdict(self.params), sort_keys=True).encode())
        for array in (self.track_ids, self.item_factors, self.support):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def on_catalogue(self, track_ids: Ids) -> tuple[Vectors, NDArray[np.int32]]:
        """Return item factors (tracks, factors) and support (tracks,) in the order of a catalogue; 0 where unknown."""
        where = positions(track_ids, self.track_ids)
        factors = np.zeros((len(track_ids), self.params.factors), dtype=np.float32)
        support = np.zeros(len(track_ids), dtype=np.int32)
        factors[where >= 0] = self.item_factors[where[where >= 0]]
        support[where >= 0] = self.support[where[where >= 0]]
        return factors, support

    def recommend(self, histories: Interactions, n: int) -> NDArray[np.int32]:
        """List every user's best ``n`` tracks that are not in the history; int32 (users, n), padded with -1."""
        factors, support = self.on_catalogue(histories.track_ids)
        fold = FoldIn(factors, self.params.regularization, self.params.alpha)
        users = fold(histories.weights(self.params.weighting))
        lists = top_n(factors, users.vectors, n, histories.matrix, placed=support > 0)
        lists[~users.usable] = -1
        return lists

    def save(self, folder: AnyPath) -> list[str]:
        """Write the model's files, npz without pickle and JSON, and return their names."""
        save_arrays(
            folder / ARRAYS_FILE, track_ids=self.track_ids, item_factors=self.item_factors, support=self.support
        )
        write_atomic(folder / PARAMS_FILE, json.dumps(asdict(self.params), indent=1, sort_keys=True).encode())
        return [ARRAYS_FILE, PARAMS_FILE]

    @classmethod
    def load(cls, folder: AnyPath) -> "CollaborativeModel":
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        UserError
            A file is missing, or the files do not fit together.
        """
        arrays = load_arrays(folder / ARRAYS_FILE, ("track_ids", "item_factors", "support"))
        params = CollaborativeParams(**json.loads(read_bytes(folder / PARAMS_FILE)))
        model = cls(arrays["track_ids"], arrays["item_factors"], arrays["support"], params)
        if model.item_factors.shape != (len(model.track_ids), params.factors):
            raise UserError(
                f"factors of shape {model.item_factors.shape} for {len(model.track_ids)} tracks and "
                f"{params.factors} factors",
                where=str(folder),
                remedy="the files are of different models; load the version again from its registry.",
            )
        return model


def fit(interactions: Interactions, params: CollaborativeParams) -> CollaborativeModel:
    """Learn item factors.

    Bit-identical when repeated, and for any number of threads. Tracks without a positive confidence are left out of
    the model: there is nothing to learn about them here.

    Raises
    ------
    UserError
        There is no positive confidence at all, or the factors did not stay finite.
    """
    from implicit.cpu.als import AlternatingLeastSquares

    support = interactions.support()
    played = np.flatnonzero(support)
    if not len(played):
        raise UserError(
            "no user likes any track", where="interactions", remedy="train on a period that holds interactions."
        )
    weights = interactions.weights(params.weighting)[:, played]
    with single_threaded_blas():
        # A fitted instance would start from its old factors, without a check of their shape.
        model = AlternatingLeastSquares(
            factors=params.factors,
            regularization=params.regularization,
            alpha=params.alpha,
            iterations=params.iterations,
            random_state=params.seed,
        )
        model.fit(weights, show_progress=False)
    factors = np.array(model.item_factors, dtype=np.float32)
    if not np.isfinite(factors).all():
        raise UserError(
            "the factors did not stay finite",
            where=f"collaborative model with {params}",
            remedy="use a larger regularization, a smaller alpha, or the weighting binary or log.",
        )
    return CollaborativeModel(interactions.track_ids[played], factors, support[played], params)


class FoldIn:
    """The half-step of ALS for given item factors: users' vectors from their plays, without training.

    With Y the item factors, C the diagonal of the user's weights (1 where not played) and p the indicator of what
    was played, solves (Y'Y + Y'(C - I)Y + regularization I) x = Y'C p; the weight of a play is alpha times its entry.
    A user's vector does not depend on who else is in the batch.

    Parameters
    ----------
    item_factors
        float32 (tracks, factors); copied, so a read-only array will do.
    regularization, alpha
        As the item factors were trained.
    absent
        Mask (tracks,) of the tracks that count as not liked where they were not played; all by default.
    """

    def __init__(
        self, item_factors: Vectors, regularization: float, alpha: float, absent: NDArray[np.bool_] | None = None
    ) -> None:
        from implicit.cpu.als import AlternatingLeastSquares

        with single_threaded_blas():
            self._model = AlternatingLeastSquares(
                factors=item_factors.shape[1], regularization=regularization, alpha=alpha
            )
            self._model.item_factors = np.array(item_factors, dtype=np.float32)
            counted = item_factors if absent is None else item_factors[absent]
            # implicit caches Y'Y under this name; its own would count every row.
            self._model._YtY = np.asarray(counted.T @ counted, dtype=np.float32)  # noqa: SLF001

    def __call__(self, weights: "csr_matrix") -> UserVectors:
        """Fold in the rows of a CSR matrix (users, tracks) of positive weights.

        Rows without an entry, or with none that has a vector, get a zero vector and are reported as not usable.
        """
        from scipy.sparse import csr_matrix

        users = weights.shape[0]
        vectors = np.zeros((users, self._model.item_factors.shape[1]), dtype=np.float32)
        if weights.nnz:
            weights = csr_matrix(weights, dtype=np.float32)
            with single_threaded_blas():
                for start in range(0, users, _USERS_AT_ONCE):
                    part = weights[start : start + _USERS_AT_ONCE]
                    vectors[start : start + _USERS_AT_ONCE] = self._model.recalculate_user(
                        np.arange(part.shape[0]), part
                    )
        vectors[np.diff(weights.indptr) == 0] = 0
        return UserVectors(vectors, (vectors != 0).any(axis=1))


def fold_in(item_factors: Vectors, regularization: float, alpha: float, weights: "csr_matrix") -> UserVectors:
    """Fold users in once; see :class:`FoldIn`, which is to be kept where there is more than one batch."""
    return FoldIn(item_factors, regularization, alpha)(weights)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep BLAS to one thread: implicit brings its own, and sums must not depend on how many there are."""
    from threadpoolctl import threadpool_limits

    with _ONE_AT_A_TIME, threadpool_limits(1, "blas"):
        yield


def save_arrays(path: AnyPath, **arrays: NDArray[Any]) -> None:
    """Write arrays as one npz file, atomically; the same arrays always give the same bytes."""
    with atomic_writer(path) as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def load_arrays(path: AnyPath, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Read the named arrays of an npz file; pickled content is refused.

    Raises
    ------
    UserError
        The file is missing, is not an npz file without pickle, or lacks one of the arrays.
    """
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read the arrays {', '.join(names)}: {error}",
            where=str(path),
            remedy="load the model's version again from its registry.",
        ) from error
