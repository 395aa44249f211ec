"""Exact top-N by inner product for all users, with the playlist's rules inside the search.

What belongs here: the layout of the catalogue, the checks of what comes in, and the threads. What does not: the inner
loops (`_topn_kernel`), how the factors are trained, and what becomes of users without a vector.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_FACTORS_AT_ONCE = 4  # the kernel reads factors in fours
_SHELL = 8  # blocks of similar vector length, within which tracks are ordered by bias
_LEAST_USERS_A_TASK, _MOST_USERS_A_TASK = 64, 1024
_LARGEST = 1e37  # beyond it an inner product may overflow float32


@dataclass(frozen=True)
class TopNResult:
    """The lists of a search, best first.

    Attributes
    ----------
    items
        int32 (users, n): item indices, -1 where fewer than n items are allowed.
    scores
        float32 (users, n): their scores, nan where `items` is -1.
    """

    items: NDArray[np.int32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class _Layout:
    """The catalogue as the kernel reads it: blocks of items, longest vectors first."""

    blocks: NDArray[np.float32]
    items: NDArray[np.int32]
    biases: NDArray[np.float32]
    limits: NDArray[np.float64]


class TopN:
    """Exact top-N by inner product, with the playlist's rules inside the search.

    The score of user u and item i is ``user_u . item_i + bias_weight_u * item_bias_i``, summed in float64 and
    rounded to float32 once. Lists are ordered by score descending, ties by item index ascending, and equal those
    of scoring every item. A user's list depends neither on the other users of the call nor on the number of threads.

    Blocks of items that the Cauchy-Schwarz inequality excludes are never scored, so the cost depends on the vectors:
    with trained factors, whose lengths follow popularity, few are scored; with vectors of equal length, all.

    Parameters
    ----------
    item_vectors
        float32 (items, factors), finite.
    item_bias
        float32 (items,), finite: a score that all users share, such as popularity.
    groups
        int32 (items,): the artist's code, which `per_group` limits; negative codes (no artist) are never limited.
    audiences
        bool (audiences, items): True where that audience may get the item.

    Raises
    ------
    UserError
        For a wrong type or shape and for values that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> catalogue = TopN(np.array([[1, 0], [0, 1], [2, 0]], dtype=np.float32))
    >>> catalogue.search(np.array([[1, 0.5]], dtype=np.float32), n=2).items
    array([[2, 0]], dtype=int32)
    """

    def __init__(
        self,
        item_vectors: NDArray[np.float32],
        *,
        item_bias: NDArray[np.float32] | None = None,
        groups: NDArray[np.int32] | None = None,
        audiences: NDArray[np.bool_] | None = None,
    ) -> None:
        vectors = _checked(item_vectors, "item_vectors", np.float32, (None, None))
        self._norms = _norms(vectors, "item_vectors")
        self.items, self.factors = vectors.shape
        self._has_bias, self._has_groups, self._has_audiences = (
            given is not None for given in (item_bias, groups, audiences)
        )
        bias = np.zeros(self.items, np.float32) if item_bias is None else item_bias
        bias = _finite(_checked(bias, "item_bias", np.float32, (self.items,)), "item_bias")
        none = np.empty(0, np.int32)
        self._groups = none if groups is None else _checked(groups, "groups", np.int32, (self.items,))
        nobody = np.empty((0, 0), np.bool_)
        self._audiences = (
            nobody if audiences is None else _checked(audiences, "audiences", np.bool_, (None, self.items))
        )
        self._layout = _lay_out(vectors, self._norms, bias, by_bias=self._has_bias)

    def search(
        self,
        user_vectors: NDArray[np.float32],
        n: int,
        *,
        exclude: "csr_matrix | None" = None,
        audience: NDArray[np.int32] | None = None,
        per_group: int | None = None,
        bias_weight: NDArray[np.float32] | None = None,
        threads: int | None = None,
    ) -> TopNResult:
        """Find every user's best n items.

        Memory: the result, one copy of the exclusions' row pointers (and of their indices where these are int64) and
        less than a megabyte a thread (for n = 30); never users x items.

        Parameters
        ----------
        user_vectors
            float32 (users, factors), finite. A zero vector scores all items alike, so the lowest indices win.
        n
            Length of the lists. Where fewer items are allowed, the list ends with -1 and nan.
        exclude
            CSR (users, items) with sorted indices: stored entries are never returned, whatever their value.
        audience
            int32 (users,): row of `audiences`; required exactly if the catalogue has audiences.
        per_group
            At most this many items of a group: going down the scores, an item is taken if its group has room.
        bias_weight
            float32 (users,), of either sign; 1 for everybody if the catalogue has a bias and this is not given.
        threads
            Threads to use; all cores that this process may use if not given.

        Raises
        ------
        UserError
            For a wrong type or shape, values that are not finite, unsorted or unknown exclusions and audiences, and
            rules that the catalogue was not told about.
        """
        vectors = _checked(user_vectors, "user_vectors", np.float32, (None, self.factors))
        users = vectors.shape[0]
        norms = _norms(vectors, "user_vectors")
        _whole(n, "n", 0)
        workers = _available_cores() if threads is None else _whole(threads, "threads", 1)
        cap = self._cap(per_group)
        weights = self._weights(bias_weight, users)
        self._reject_overflow(norms, weights)
        audience_of = self._audience(audience, users)

        from mlops_assets.discover_weekly import _topn_kernel as kernel

        row_pointers, excluded = _exclusions(exclude, users, self.items, kernel)
        length = min(n, self.items)
        items = np.full((users, length), -1, np.int32)
        scores = np.full((users, length), np.nan, np.float32)
        if users and length:
            padding = -self.factors % _FACTORS_AT_ONCE
            padded = np.pad(vectors, ((0, 0), (0, padding))) if padding else vectors
            visits, rest = self._visits(norms, weights)
            layout = self._layout
            arguments: tuple[Any, ...] = (
                layout.blocks, layout.items, layout.biases, visits, layout.limits, rest, self.items, self._groups, cap,
                self._audiences, audience_of, row_pointers, excluded, items, scores,
            )  # fmt: skip

            def task(bounds: tuple[int, int]) -> None:
                kernel.search(padded, norms, weights, *bounds, *arguments)

            _run(task, _tasks(users, workers), workers)
        if length < n:
            items = np.pad(items, ((0, 0), (0, n - length)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, n - length)), constant_values=np.nan)
        return TopNResult(items, scores)

    def _cap(self, per_group: int | None) -> int:
        if per_group is None:
            return 0
        if not self._has_groups:
            raise UserError(
                "per_group needs the groups of the items", where="per_group", remedy="Give groups to TopN(...)"
            )
        return _whole(per_group, "per_group", 1)

    def _weights(self, bias_weight: NDArray[np.float32] | None, users: int) -> NDArray[np.float32]:
        if bias_weight is None:
            return np.full(users, 1.0 if self._has_bias else 0.0, np.float32)
        if not self._has_bias:
            raise UserError(
                "bias_weight needs a bias of the items", where="bias_weight", remedy="Give item_bias to TopN(...)"
            )
        return _finite(_checked(bias_weight, "bias_weight", np.float32, (users,)), "bias_weight")

    def _audience(self, audience: NDArray[np.int32] | None, users: int) -> NDArray[np.int32]:
        if audience is None and not self._has_audiences:
            return np.empty(0, np.int32)
        if audience is None or not self._has_audiences:
            raise UserError(
                "audience (of the users) and audiences (of the items) belong together",
                where="audience",
                remedy="Give both or none; without the other one no rule can be applied",
            )
        codes = _checked(audience, "audience", np.int32, (users,))
        wrong = np.flatnonzero((codes < 0) | (codes >= self._audiences.shape[0]))
        if wrong.size:
            raise UserError(
                f"audience {codes[wrong[0]]} does not exist, there are {self._audiences.shape[0]}",
                where=f"audience[{wrong[0]}]",
                remedy="Use the row of audiences that this user belongs to, counted from 0",
            )
        return codes

    def _reject_overflow(self, norms: NDArray[np.float64], weights: NDArray[np.float32]) -> None:
        limits = self._layout.limits
        if not norms.size or not limits.size:
            return
        largest = norms * limits[:, 0].max() + np.abs(weights.astype(np.float64)) * limits[:, 3].max()
        user = int(np.argmax(largest))
        if largest[user] > _LARGEST:
            raise UserError(
                f"scores up to {largest[user]:.1e} do not fit float32",
                where=f"user_vectors[{user}]",
                remedy="Scale the vectors down; the order of the items does not change",
            )

    def _visits(
        self, norms: NDArray[np.float64], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Order the blocks by their mean bound, and bound what is left from each one on."""
        limits = self._layout.limits
        if self._has_bias:
            up, down = np.maximum(weights, 0).mean(dtype=float), np.minimum(weights, 0).mean(dtype=float)
            mean_bound = norms.mean() * limits[:, 0] + up * limits[:, 1] + down * limits[:, 2]
            visits = np.argsort(-mean_bound, kind="stable")
        else:
            visits = np.arange(limits.shape[0])
        backwards = limits[visits[::-1]]
        rest = np.maximum.accumulate(backwards)
        rest[:, 2] = np.minimum.accumulate(backwards[:, 2])
        return visits.astype(np.int64), np.ascontiguousarray(rest[::-1])


def _lay_out(
    vectors: NDArray[np.float32], norms: NDArray[np.float64], bias: NDArray[np.float32], *, by_bias: bool
) -> _Layout:
    from mlops_assets.discover_weekly._topn_kernel import LANES

    count, factors = vectors.shape
    order = np.argsort(-norms, kind="stable")
    if by_bias:
        # Blocks narrow in length and in bias have tight bounds; the length alone would mix all biases in a block.
        shell = np.arange(count) // (_SHELL * LANES)
        order = order[np.lexsort((-bias[order], shell))]
    block_count = math.ceil(count / LANES)
    blocks = np.zeros((block_count, factors + -factors % _FACTORS_AT_ONCE, LANES), np.float32)
    items = np.full((block_count, LANES), -1, np.int32)
    biases = np.zeros((block_count, LANES), np.float32)
    limits = np.empty((block_count, 4))
    for block in range(block_count):
        members = order[block * LANES : (block + 1) * LANES]
        size, shared = members.size, bias[members]
        blocks[block, :factors, :size] = vectors[members].T
        items[block, :size] = members
        biases[block, :size] = shared
        limits[block] = norms[members].max(), shared.max(), shared.min(), np.abs(shared).max()
    return _Layout(blocks, items, biases, limits)


def _checked(array: Any, name: str, dtype: Any, shape: Sequence[int | None]) -> NDArray[Any]:
    """Return the array, contiguous, if it has the type and the shape (None: any size)."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(
            f"expected an array of {np.dtype(dtype).name}, found {found}",
            where=name,
            remedy=f"Convert it with numpy.asarray(..., dtype='{np.dtype(dtype).name}')",
        )
    fits = array.ndim == len(shape) and all(
        size is None or size == found for size, found in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(
            f"expected the shape ({wanted}), found {array.shape}",
            where=name,
            remedy="Build it from the same users, items and factors as the other arrays",
        )
    return np.ascontiguousarray(array)


def _finite(values: NDArray[Any], name: str) -> NDArray[Any]:
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise UserError(
            f"{values[wrong[0]]} is not a finite number",
            where=f"{name}[{wrong[0]}]",
            remedy="Leave such rows out or repair what computed them",
        )
    return values


def _norms(vectors: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    """Euclidean lengths in float64, where the square of no finite float32 overflows: NaN and inf stay visible."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return _finite(norms, name)


def _whole(value: int, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(
            f"expected a whole number of at least {least}, found {value!r}",
            where=name,
            remedy=f"Choose {name} >= {least}",
        )
    return int(value)


def _exclusions(
    exclude: Any, users: int, items: int, kernel: ModuleType
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Row pointers and sorted item indices of the exclusions; both empty if there are none."""
    if exclude is None:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    if getattr(exclude, "format", None) != "csr" or exclude.shape != (users, items):
        found = f"{getattr(exclude, 'format', type(exclude).__name__)} of {getattr(exclude, 'shape', 'no shape')}"
        raise UserError(
            f"expected a CSR matrix of ({users}, {items}), found {found}",
            where="exclude",
            remedy="Build scipy.sparse.csr_matrix(..., shape=(users, items)) with one row a user of this call",
        )
    pointers = np.ascontiguousarray(exclude.indptr, np.int64)
    if pointers[0] != 0 or (np.diff(pointers) < 0).any() or pointers[-1] > exclude.indices.size:
        raise UserError(
            "the row pointers do not ascend from 0 to the number of entries",
            where="exclude",
            remedy="Build the matrix from (data, (rows, columns)) and let scipy compute them",
        )
    if exclude.indices.size and (exclude.indices.min() < 0 or exclude.indices.max() >= items):
        wrong = int(np.flatnonzero((exclude.indices < 0) | (exclude.indices >= items))[0])
        raise UserError(
            f"item {exclude.indices[wrong]} is outside the catalogue of {items}",
            where=f"exclude, row {np.searchsorted(pointers, wrong, side='right') - 1}",
            remedy="Use the item indices of this catalogue",
        )
    indices = np.ascontiguousarray(exclude.indices, np.int32)
    row = int(kernel.first_unsorted_row(pointers, indices))
    if row >= 0:
        raise UserError(
            "the items of a row are not in ascending order",
            where=f"exclude, row {row}",
            remedy="Call exclude.sort_indices() first",
        )
    return pointers, indices


def _available_cores() -> int:
    # Containers and job schedulers often allow fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(users: int, workers: int) -> list[tuple[int, int]]:
    """Split the users so that every thread gets several tasks (slow ones even out), but none too small to pay."""
    size = max(_LEAST_USERS_A_TASK, min(_MOST_USERS_A_TASK, math.ceil(users / (4 * workers))))
    return [(first, min(first + size, users)) for first in range(0, users, size)]


def _run(task: Any, tasks: list[tuple[int, int]], workers: int) -> None:
    if workers == 1 or len(tasks) == 1:
        for bounds in tasks:
            task(bounds)
        return
    with ThreadPoolExecutor(min(workers, len(tasks)), thread_name_prefix="topn") as pool:
        for _ in pool.map(task, tasks):
            pass
