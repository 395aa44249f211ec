"""Bins of a feature and their weight of evidence: what a scorecard sees instead of values.

What belongs here: cutting a feature into bins by its outcomes, and finding the bin of a value. What does not: points
and coefficients (`scorecard.py`).

Weight of evidence is ln(share of the good loans / share of the bad loans): higher is safer. Counts are raised by
one half, so that a bin without bad loans stays finite. Whatever training knows little of is judged with caution:

* `missing`, tiny `special` codes and rare categories (`other`) get the lower end of the 90 % interval of their weight
  of evidence, though no worse than the worst bin unless they are; where training had none of them, the worst bin's;
* `out_of_range`, a number below or above everything in training, gets the worst bin's;
* `other`, which unknown categories fall into too, is never better than the average applicant.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.encoding import MISSING, UNKNOWN, equals_any, places_of
from mlops_assets.credit_risk.logistic import DIGITS
from mlops_assets.credit_risk.schema import Feature
from mlops_assets.credit_risk.spec import Scorecard as Settings

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
BinKind = Literal["interval", "level", "special", "missing", "other", "out_of_range"]

_SMOOTHING = 0.5
_Z = 1.6448536269514722
"""The 95 % quantile of the normal distribution: the lower end of a 90 % interval."""


@dataclass(frozen=True)
class Bin:
    """One bin with its loans in training and its weight of evidence."""

    kind: BinKind
    label: str
    goods: int
    bads: int
    woe: float


@dataclass(frozen=True)
class FeatureBins:
    """The bins of one feature.

    Parameters
    ----------
    edges
        Ascending cuts; the interval i holds what lies above edge i - 1, up to and with edge i.
    low, high
        The range in training, without special codes; None where training had no number.
    special, levels
        Bin of each special code and of each known category.
    bins
        Intervals or groups of levels first, then special codes, `missing`, and `out_of_range` or `other`.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    edges: tuple[float, ...]
    low: float | None
    high: float | None
    special: Mapping[float, int]
    levels: Mapping[str, int]
    bins: tuple[Bin, ...]

    @property
    def information_value(self) -> float:
        """Sum over the bins of (share of good - share of bad) x weight of evidence."""
        return _information_value(self.bins)

    @property
    def woe(self) -> Floats:
        """Weight of evidence of each bin."""
        return np.array([each.woe for each in self.bins])

    def assign(self, values: "NDArray[Any]") -> tuple[Indices, NDArray[np.bool_]]:
        """Return each value's bin, and whether it lies beyond all that training knew; both (n,).

        Parameters
        ----------
        values
            (n,) float64 with NaN where missing, or objects of str or None.
        """
        if self.kind == "numeric":
            return self._assign_numbers(np.asarray(values, dtype=np.float64))
        return self._assign_levels(values)

    def _assign_numbers(self, values: Floats) -> tuple[Indices, NDArray[np.bool_]]:
        found = np.searchsorted(np.array(self.edges), values, side="left")
        if self.low is None or self.high is None:
            beyond = ~np.isnan(values)
        else:
            beyond = (values < self.low) | (values > self.high)
        for code, position in self.special.items():
            here = values == code
            found[here] = position
            beyond &= ~here
        found[beyond] = len(self.bins) - 1
        found[np.isnan(values)] = len(self.bins) - 2
        return found, beyond

    def _assign_levels(self, values: "NDArray[Any]") -> tuple[Indices, NDArray[np.bool_]]:
        found = places_of(values, self.levels)
        unknown = found == UNKNOWN
        found[unknown] = len(self.bins) - 1
        found[found == MISSING] = len(self.bins) - 2
        return found, unknown

    def to_dict(self) -> dict[str, Any]:
        """Return the bins as plain JSON values."""
        return {
            **asdict(self),
            "edges": list(self.edges),
            "special": [[code, place] for code, place in sorted(self.special.items())],
            "bins": [asdict(each) for each in self.bins],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "FeatureBins":
        """Return the bins that `to_dict` described."""
        return cls(
            **{
                **raw,
                "edges": tuple(raw["edges"]),
                "special": {float(code): place for code, place in raw["special"]},
                "bins": tuple(Bin(**each) for each in raw["bins"]),
            }
        )


@dataclass(frozen=True)
class _Group:
    """Loans that belong together while bins are made."""

    label: str
    goods: int
    bads: int

    @property
    def rows(self) -> int:
        return self.goods + self.bads


def fit_bins(feature: Feature, values: "NDArray[Any]", bad: NDArray[np.int64], settings: Settings) -> FeatureBins:
    """Cut one feature into bins.

    Parameters
    ----------
    feature
        Its kind, special codes and direction: where it has one, the weight of evidence of the intervals follows it.
    values
        (n,) as `FeatureSchema.matrix` makes them.
    bad
        (n,) 1 for a bad loan, 0 for a good one; both occur.
    """
    least = max(int(np.ceil(settings.minimum_share * len(bad))), 2)
    if feature.kind == "numeric":
        return _numeric_bins(feature, np.asarray(values, dtype=np.float64), bad, least, settings.max_bins)
    return _categorical_bins(feature, values, bad, least, settings.max_bins)


def _information_value(bins: Sequence[Bin]) -> float:
    goods, bads = sum(each.goods for each in bins), sum(each.bads for each in bins)
    return float(sum((each.goods / goods - each.bads / bads) * each.woe for each in bins))


class _Evidence:
    """Weights of evidence against the totals of one training set."""

    def __init__(self, bad: NDArray[np.int64]) -> None:
        self.bads = int(bad.sum())
        self.goods = len(bad) - self.bads
        self.worst = 0.0

    def bin(self, kind: BinKind, group: _Group) -> Bin:
        """Return a bin that has enough loans to speak for itself."""
        return Bin(kind, group.label, group.goods, group.bads, self._own(group))

    def cautious(self, kind: BinKind, group: _Group, *, at_most: float = math.inf) -> Bin:
        """Return a bin of which training may know little or nothing."""
        woe = self.worst
        if group.rows:
            own = self._own(group)
            error = math.sqrt(1.0 / (group.goods + _SMOOTHING) + 1.0 / (group.bads + _SMOOTHING))
            woe = own if own <= self.worst else max(self.worst, round(own - _Z * error, DIGITS))
        return Bin(kind, group.label, group.goods, group.bads, min(woe, max(at_most, self.worst)))

    def _own(self, group: _Group) -> float:
        goods = (group.goods + _SMOOTHING) / self.goods
        return round(math.log(goods / ((group.bads + _SMOOTHING) / self.bads)), DIGITS)


def _numeric_bins(feature: Feature, values: Floats, bad: NDArray[np.int64], least: int, most: int) -> FeatureBins:
    evidence = _Evidence(bad)
    missing = np.isnan(values)
    coded = equals_any(values, feature.special)
    plain = ~missing & ~coded & np.isfinite(values)
    edges: list[float] = []
    bins: list[Bin] = []
    if plain.any():
        edges = _cuts(values[plain], bad[plain], least, most, feature.monotone)
        inside = np.searchsorted(np.array(edges), values[plain], side="left")
        bads = np.bincount(inside, weights=bad[plain], minlength=len(edges) + 1).astype(int)
        rows = np.bincount(inside, minlength=len(edges) + 1)
        for at, label in enumerate(_interval_labels(edges)):
            bins.append(evidence.bin("interval", _Group(label, int(rows[at] - bads[at]), int(bads[at]))))
        evidence.worst = min(each.woe for each in bins)
    special = _special_bins(feature, values, bad, least, bins, evidence)
    bins.append(evidence.cautious("missing", _group("missing", bad[missing])))
    bins.append(evidence.cautious("out_of_range", _Group("out of range", 0, 0)))
    low, high = (float(values[plain].min()), float(values[plain].max())) if plain.any() else (None, None)
    return FeatureBins(feature.name, "numeric", tuple(edges), low, high, special, {}, tuple(bins))


def _group(label: str, bad: NDArray[np.int64]) -> _Group:
    bads = int(bad.sum())
    return _Group(label, len(bad) - bads, bads)


def _special_bins(
    feature: Feature, values: Floats, bad: NDArray[np.int64], least: int, bins: list[Bin], evidence: _Evidence
) -> dict[float, int]:
    """Append a bin for every special code with enough loans and one for all others; return the bin of each code."""
    places: dict[float, int] = {}
    rare: list[float] = []
    for code, meaning in sorted(feature.special.items()):
        group = _group(meaning, bad[values == code])
        if group.rows < least:
            rare.append(code)
            continue
        places[code] = len(bins)
        bins.append(evidence.bin("special", group))
    if rare:
        meanings = " or ".join(feature.special[code] for code in rare)
        places |= dict.fromkeys(rare, len(bins))
        bins.append(evidence.cautious("special", _group(meanings, bad[equals_any(values, rare)])))
    return places


def _interval_labels(edges: Sequence[float]) -> list[str]:
    if not edges:
        return ["any value"]
    shown = [f"{edge:.6g}" for edge in edges]
    between = [f"above {low} to {high}" for low, high in pairwise(shown)]
    return [f"up to {shown[0]}", *between, f"above {shown[-1]}"]


def _cuts(values: Floats, bad: NDArray[np.int64], least: int, most: int, monotone: int) -> list[float]:
    """Return ascending cuts: greedy binary splits by likelihood, then pooled where they run against the direction."""
    distinct, inverse = np.unique(values, return_inverse=True)
    rows = np.concatenate([[0], np.cumsum(np.bincount(inverse))]).astype(np.float64)
    bads = np.concatenate([[0], np.cumsum(np.bincount(inverse, weights=bad))]).astype(np.float64)
    segments = [(0, len(distinct))]
    open_splits = {segments[0]: _best_split(rows, bads, 0, len(distinct), least, monotone)}
    while len(segments) < most:
        best = max(segments, key=lambda each: (open_splits[each][0], -each[0]))
        gain, cut = open_splits[best]
        if gain <= 0.0:
            break
        segments.remove(best)
        for part in ((best[0], cut), (cut, best[1])):
            segments.append(part)
            open_splits[part] = _best_split(rows, bads, *part, least, monotone)
    cuts = sorted(end for _, end in segments)[:-1]
    if monotone:
        cuts = _pooled(rows, bads, cuts, monotone)
    # Halfway between neighbours; where a double has no room between them, the lower one itself.
    middles = [float(distinct[at - 1] / 2.0 + distinct[at] / 2.0) for at in cuts]
    return [mid if mid < distinct[at] else float(distinct[at - 1]) for mid, at in zip(middles, cuts, strict=True)]


def _best_split(rows: Floats, bads: Floats, start: int, end: int, least: int, monotone: int) -> tuple[float, int]:
    """Return the gain in log-likelihood of the best cut of a segment of distinct values, and the cut; 0 where none."""
    at = np.arange(start + 1, end)
    left, right = rows[at] - rows[start], rows[end] - rows[at]
    left_bads, right_bads = bads[at] - bads[start], bads[end] - bads[at]
    allowed = (left >= least) & (right >= least)
    if monotone:
        allowed &= monotone * (right_bads * left - left_bads * right) > 0
    if not allowed.any():
        return 0.0, start
    whole = _likelihood(rows[end] - rows[start], bads[end] - bads[start])
    gain = _likelihood(left, left_bads) + _likelihood(right, right_bads) - whole
    best = int(np.argmax(np.where(allowed, gain, -np.inf)))
    return float(gain[best]), int(at[best])


def _likelihood(rows: Any, bads: Any) -> Any:
    rate = np.clip(bads / rows, 1e-12, 1.0 - 1e-12)
    return bads * np.log(rate) + (rows - bads) * np.log(1.0 - rate)


def _pooled(rows: Floats, bads: Floats, cuts: Sequence[int], monotone: int) -> list[int]:
    """Drop cuts between neighbours whose evidence runs against the direction (pool adjacent violators).

    The evidence is that of the raised counts: bad rates in order can have weights of evidence out of order, where a
    bin is small.
    """
    kept: list[tuple[int, float, float]] = []  # end, goods, bads of each block
    start = 0
    for end in (*cuts, len(rows) - 1):
        worse = bads[end] - bads[start]
        block = (end, rows[end] - rows[start] - worse, worse)
        while kept and monotone * (_odds(*block[1:]) - _odds(*kept[-1][1:])) <= 0:
            _, more_goods, more_bads = kept.pop()
            block = (block[0], block[1] + more_goods, block[2] + more_bads)
        kept.append(block)
        start = end
    return [end for end, _, _ in kept[:-1]]


def _odds(goods: float, bads: float) -> float:
    return (bads + _SMOOTHING) / (goods + _SMOOTHING)


def _categorical_bins(
    feature: Feature, values: "NDArray[Any]", bad: NDArray[np.int64], least: int, most: int
) -> FeatureBins:
    evidence = _Evidence(bad)
    codes, distinct = pd.factorize(np.asarray(values, dtype=object), use_na_sentinel=True)
    groups = [([level], _group(str(level), bad[codes == code])) for code, level in enumerate(distinct)]
    rare = [level for levels, group in groups if group.rows < least for level in levels]
    frequent = sorted(
        (each for each in groups if each[1].rows >= least), key=lambda each: (each[1].bads / each[1].rows, each[0])
    )
    merged = _merged(frequent, most)
    bins = [evidence.bin("level", group) for _, group in merged]
    evidence.worst = min((each.woe for each in bins), default=0.0)
    levels = {level: place for place, (names, _) in enumerate(merged) for level in names}
    bins.append(evidence.cautious("missing", _group("missing", bad[codes == -1])))
    pool = _group("other", bad[np.isin(codes, [at for at, level in enumerate(distinct) if level in set(rare)])])
    bins.append(evidence.cautious("other", pool, at_most=0.0))
    levels |= dict.fromkeys(sorted(rare), len(bins) - 1)
    return FeatureBins(feature.name, "categorical", (), None, None, {}, levels, tuple(bins))


def _merged(groups: "list[tuple[list[str], _Group]]", most: int) -> "list[tuple[list[str], _Group]]":
    """Merge neighbours, in order of their bad rate, until there are at most so many; those that lose least first."""
    groups = list(groups)
    while len(groups) > most:
        losses = [_loss(one[1], other[1]) for one, other in pairwise(groups)]
        at = int(np.argmin(losses))
        (names, one), (more, other) = groups[at], groups[at + 1]
        label = f"{one.label}, {other.label}"
        groups[at : at + 2] = [([*names, *more], _Group(label, one.goods + other.goods, one.bads + other.bads))]
    return groups


def _loss(one: _Group, other: _Group) -> float:
    apart = _likelihood(one.rows, one.bads) + _likelihood(other.rows, other.bads)
    return float(apart - _likelihood(one.rows + other.rows, one.bads + other.bads))
