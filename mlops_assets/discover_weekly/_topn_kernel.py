# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled inner loops of the exact top-N search.

What belongs here: numba functions over plain arrays, and how they are compiled. What does not: validation, threads
and data layout (`topn.py`, which alone imports this module, and only inside functions, because numba takes half a
second to import and the first compilation a few seconds more).

How a list is found
-------------------
Tracks lie in blocks of `LANES`, longest vectors first. For a user with vector u the Cauchy-Schwarz inequality bounds
every score of a block by ``|u| * (longest vector of the block) + (largest weighted bias)``. A block whose bound is
below the user's current n-th score cannot change the list and is skipped. The other blocks are scored in float32 for
four users at a time, which is fast but rounds differently from machine to machine; such a score is therefore only
compared with the n-th score *minus a bound of its own rounding error*, and what passes is scored again in float64, in
one fixed order of summation, and rounded to float32. Only that second score is ever stored or compared: the list is
a function of the user and the catalogue, not of the batch, the threads or the processor.

Why replacing the group's worst entry is exact
----------------------------------------------
Let S be the tracks seen so far and T(S) the greedy list: the best n of the union over groups of each group's best k
(walking S by descending score and passing over full groups picks exactly these). Let x be a new track of group g.

* T(S) holds k of g: they are the k best of g in S, since whoever is in T(S) outranks the rest of its group. If x is
  worse than the worst of them, y, the group's best k stay what they were. Otherwise y leaves them and x joins; the
  union loses y and gains the better x, so T(S + x) = T(S) - y + x.
* T(S) holds fewer than k of g: any further track of g in S is outside T(S) although its group had room, so T(S) is
  full and that track is worse than all of it. If T(S) is full, x enters exactly when it beats the last entry, which
  leaves; if it is not full, every group's best k are in it and x is simply added.

Either way one entry is removed (or a free slot is used) and x is inserted in order. A track worse than the last entry
of a full list never enters, so the n-th score is a valid threshold with and without the rule.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

LANES = 128  # tracks in a block: with 64 factors a block is 32 kB and stays in the first-level cache
USERS_AT_ONCE = 1024  # users that share one pass over the blocks; their vectors and lists fit the second level
_NONE = -1


def _compile(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile at import for one signature, cached on disk where there is a writable place for it."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            compiled: Callable[..., Any] = numba.njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):
            # A read-only installation without a home folder: numba has nowhere to put its cache.
            compiled = numba.njit(signature, nogil=True)(function)
        return compiled

    return decorate


def _array(dtype: Any, dimensions: int = 1, *, readonly: bool = True) -> Any:
    # A read-only parameter takes writable arrays too; the reverse fails on memory-mapped or broadcast factors.
    return types.Array(dtype, dimensions, "C", readonly=readonly)


# "contract" allows fused multiply-add and nothing else: the filter needs an error bound, not a fixed rounding.
@numba.njit(nogil=True, fastmath={"contract"})
def _accumulate(vectors, rows, block, scores):
    """Add the inner products of four users with the tracks of a block; factors come in fours."""
    r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
    for f in range(0, vectors.shape[1], 4):
        a0, a1, a2, a3 = vectors[r0, f], vectors[r0, f + 1], vectors[r0, f + 2], vectors[r0, f + 3]
        b0, b1, b2, b3 = vectors[r1, f], vectors[r1, f + 1], vectors[r1, f + 2], vectors[r1, f + 3]
        c0, c1, c2, c3 = vectors[r2, f], vectors[r2, f + 1], vectors[r2, f + 2], vectors[r2, f + 3]
        d0, d1, d2, d3 = vectors[r3, f], vectors[r3, f + 1], vectors[r3, f + 2], vectors[r3, f + 3]
        for j in range(LANES):
            w, x, y, z = block[f, j], block[f + 1, j], block[f + 2, j], block[f + 3, j]
            scores[0, j] += a0 * w + a1 * x + a2 * y + a3 * z
            scores[1, j] += b0 * w + b1 * x + b2 * y + b3 * z
            scores[2, j] += c0 * w + c1 * x + c2 * y + c3 * z
            scores[3, j] += d0 * w + d1 * x + d2 * y + d3 * z


@numba.njit(nogil=True)
def _passing(scores, limit, lanes):
    """Write the lanes whose score reaches the limit; most blocks have none, which one vector comparison tells."""
    count = np.int32(0)
    for j in range(LANES):
        count += np.int32(scores[j] >= limit)
    if count == 0:
        return 0
    found = 0
    for j in range(LANES):
        lanes[found] = j
        found += int(scores[j] >= limit)
    return found


@numba.njit(nogil=True)
def _score(vector, block, lane, weighted_bias):
    """Return the score of record: float64, four partial sums in a fixed order, rounded to float32 once."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for f in range(0, vector.shape[0], 4):
        s0 += np.float64(vector[f]) * np.float64(block[f, lane])
        s1 += np.float64(vector[f + 1]) * np.float64(block[f + 1, lane])
        s2 += np.float64(vector[f + 2]) * np.float64(block[f + 2, lane])
        s3 += np.float64(vector[f + 3]) * np.float64(block[f + 3, lane])
    return np.float32(((s0 + s1) + (s2 + s3)) + weighted_bias)


@numba.njit(nogil=True)
def _contains(indices, low, high, item):
    """Binary search in the sorted slice ``indices[low:high]``."""
    end = high
    while low < high:
        middle = (low + high) >> 1
        if indices[middle] < item:
            low = middle + 1
        else:
            high = middle
    return low < end and indices[low] == item


@numba.njit(nogil=True)
def _insert(items, scores, groups, filled, item, score, group, cap):
    """Offer a track to a list in order (score descending, then item ascending) and return the list's length."""
    free = filled
    if cap > 0 and group >= 0:
        members, last = 0, 0
        for p in range(filled):
            if groups[p] == group:
                members += 1
                last = p
        if members >= cap:
            if not (score > scores[last] or (score == scores[last] and item < items[last])):
                return filled
            free = last
    if free == items.shape[0]:
        free -= 1
    p = free
    while p > 0 and (scores[p - 1] < score or (scores[p - 1] == score and items[p - 1] > item)):
        scores[p], items[p], groups[p] = scores[p - 1], items[p - 1], groups[p - 1]
        p -= 1
    scores[p], items[p], groups[p] = score, item, group
    return max(filled, free + 1)


_SEARCH = types.void(
    _array(types.float32, 2),  # user vectors, factors padded to a multiple of four
    _array(types.float64),  # their norms
    _array(types.float32),  # their bias weights
    types.int64,  # first user
    types.int64,  # last user + 1
    _array(types.float32, 3),  # blocks (blocks, padded factors, LANES), in the order of the visit
    _array(types.int32, 2),  # item of each lane, -1 for padding
    _array(types.float32, 2),  # bias of each lane
    _array(types.int64),  # order in which the blocks are visited
    _array(types.float64, 2),  # per block: longest vector, largest bias, smallest bias, largest absolute bias
    _array(types.float64, 2),  # per visit: the same four over this block and all later ones
    types.int64,  # tracks in the catalogue
    _array(types.int32),  # group of each item, or empty
    types.int64,  # tracks a group, 0 for no limit
    _array(types.boolean, 2),  # audiences x items, or no rows
    _array(types.int32),  # audience of each user, or empty
    _array(types.int64),  # exclusions: row pointers, or empty
    _array(types.int32),  # exclusions: sorted items
    _array(types.int32, 2, readonly=False),  # found items, filled with -1
    _array(types.float32, 2, readonly=False),  # found scores, filled with nan
)


@numba.njit(nogil=True)
def _slack(norm, weight, limits, factors, threshold):
    """Bound what float32 can get wrong: factors + 8 roundings of the absolute sum, doubled, and underflow."""
    absolute = norm * limits[0] + abs(weight) * limits[3]
    return (factors + 8) * (absolute * 2.0**-23 + 2.0**-125) + abs(threshold) * 2.0**-23


@numba.njit(nogil=True)
def _hopeless(norm, weight, limits, factors, threshold):
    """Tell whether the Cauchy-Schwarz bound of the block lies below the user's n-th score."""
    # A negative weight makes the smallest bias the best one.
    bias = weight * limits[1] if weight >= 0.0 else weight * limits[2]
    return norm * limits[0] + bias + _slack(norm, weight, limits, factors, threshold) < threshold


@numba.njit(nogil=True)
def _permitted(user, item, allowed, audience_of, excluded_from, excluded):
    """Tell whether the audience may get the track and the user's exclusions do not name it."""
    if audience_of.shape[0] > 0 and not allowed[audience_of[user], item]:
        return False
    if excluded_from.shape[0] == 0:
        return True
    return not _contains(excluded, excluded_from[user], excluded_from[user + 1], item)


@numba.njit(nogil=True)
def _walk(user, catalogue, group_of, cap, allowed, audience_of, excluded_from, excluded, items, scores, groups):
    """Serve a user for whom every score is zero: the first permitted tracks, without scoring any."""
    filled = 0
    for item in range(catalogue):
        if filled == items.shape[0]:
            break
        if _permitted(user, item, allowed, audience_of, excluded_from, excluded):
            group = group_of[item] if cap > 0 else np.int32(_NONE)
            filled = _insert(items, scores, groups, filled, np.int32(item), np.float32(0.0), group, cap)


@numba.njit(nogil=True)
def _consider(
    user, found, lanes, vector, weight, block, block_items, block_biases, group_of, cap,
    allowed, audience_of, excluded_from, excluded, items, scores, groups, filled,
):  # fmt: skip
    """Offer the lanes that passed the filter to the user's list and return its length."""
    last = items.shape[0] - 1
    for c in range(found):
        lane = lanes[c]
        item = block_items[lane]
        if item < 0:
            continue
        score = _score(vector, block, lane, weight * np.float64(block_biases[lane]))
        if filled > last and (score < scores[last] or (score == scores[last] and item > items[last])):
            continue
        if _permitted(user, item, allowed, audience_of, excluded_from, excluded):
            group = group_of[item] if cap > 0 else np.int32(_NONE)
            filled = _insert(items, scores, groups, filled, item, score, group, cap)
    return filled


@numba.njit(nogil=True)
def _select(active, remaining, due, norms, weights, thresholds, start, limits, rest, factors):
    """Drop the users whom no further block can serve, and list those whom this block may."""
    kept, waiting = 0, 0
    for a in range(remaining):
        user = active[a]
        norm, weight, threshold = norms[user], np.float64(weights[user]), thresholds[user - start]
        if _hopeless(norm, weight, rest, factors, threshold):
            continue
        active[kept] = user
        kept += 1
        if not _hopeless(norm, weight, limits, factors, threshold):
            due[waiting] = user
            waiting += 1
    if waiting > 0:
        due[waiting : waiting + 3] = due[waiting - 1]  # users go in fours: the last one fills up
    return kept, waiting


@_compile(_SEARCH)
def search(
    vectors, norms, weights, first, last, blocks, lane_items, lane_biases, visits, limits, rest, catalogue, group_of,
    cap, allowed, audience_of, excluded_from, excluded, items, scores,
):  # fmt: skip
    """Fill the rows ``first:last`` of ``items`` and ``scores``."""
    factors, n = vectors.shape[1], items.shape[1]
    groups = np.empty((min(USERS_AT_ONCE, last - first), n), np.int32)
    filled = np.empty(USERS_AT_ONCE, np.int64)
    thresholds = np.empty(USERS_AT_ONCE, np.float64)
    active = np.empty(USERS_AT_ONCE, np.int64)
    due = np.empty(USERS_AT_ONCE + 3, np.int64)
    lanes = np.empty(LANES, np.int64)
    partial = np.empty((4, LANES), np.float32)
    for start in range(first, last, USERS_AT_ONCE):
        remaining = 0
        for user in range(start, min(start + USERS_AT_ONCE, last)):
            slot = user - start
            if norms[user] == 0.0 and weights[user] == 0.0:
                _walk(
                    user, catalogue, group_of, cap, allowed, audience_of, excluded_from, excluded,
                    items[user], scores[user], groups[slot],
                )  # fmt: skip
                continue
            active[remaining] = user
            remaining += 1
            filled[slot] = 0
            thresholds[slot] = -np.inf
        for visit in range(visits.shape[0]):
            b = visits[visit]
            remaining, waiting = _select(
                active, remaining, due, norms, weights, thresholds, start, limits[b], rest[visit], factors
            )
            if remaining == 0:
                break
            for four in range(0, waiting, 4):
                for q in range(4):
                    weight32 = weights[due[four + q]]
                    for j in range(LANES):
                        partial[q, j] = weight32 * lane_biases[b, j]
                _accumulate(vectors, due[four : four + 4], blocks[b], partial)
                for q in range(min(4, waiting - four)):
                    user = due[four + q]
                    slot, weight = user - start, np.float64(weights[user])
                    limit = thresholds[slot] - _slack(norms[user], weight, limits[b], factors, thresholds[slot])
                    found = _passing(partial[q], np.float32(limit), lanes)
                    if found > 0:
                        filled[slot] = _consider(
                            user, found, lanes, vectors[user], weight, blocks[b], lane_items[b], lane_biases[b],
                            group_of, cap, allowed, audience_of, excluded_from, excluded,
                            items[user], scores[user], groups[slot], filled[slot],
                        )  # fmt: skip
                        if filled[slot] == n:
                            thresholds[slot] = np.float64(scores[user, n - 1])


@_compile(types.int64(_array(types.int64), _array(types.int32)))
def first_unsorted_row(row_pointers, indices):
    """Return the first row whose indices descend somewhere, or -1."""
    for row in range(row_pointers.shape[0] - 1):
        for p in range(row_pointers[row] + 1, row_pointers[row + 1]):
            if indices[p] < indices[p - 1]:
                return row
    return _NONE
