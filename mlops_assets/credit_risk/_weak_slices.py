"""Slices of applications on which a model is worse than on the rest, beyond chance.

What belongs here: cutting features into values, trying values and pairs of them, and the tests. What does not: what is
done about a slice (`_slice_experiment.py`), and protected groups (`bias.py`).

A risky slice has a higher log loss under a perfect model too, and a slice of people who are much alike a lower AUC. So
every measure is held against what the PDs themselves foresee for the slice, and what is left is compared with the rest:
a level that is off everywhere is not found in every slice. Of the very many slices that are tried, the share of false
ones among those called beyond chance is held below a level (Benjamini and Hochberg 1995).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk import metrics
from mlops_assets.credit_risk.encoding import equals_any
from mlops_assets.credit_risk.metrics import Estimate, Floats, Minimum, Terms
from mlops_assets.credit_risk.schema import Feature, FeatureSchema
from mlops_assets.foundation import plots

Measure = Literal["calibration", "order", "log loss"]

_RANK = re.compile(r"^\d+: ")
_ROWS = 20
_SHOWN = 10
_LARGEST = 0.5
_SAME = 0.8
_EPS = 1e-9
_Z = 1.959963984540054
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class WeakSlice:
    """A slice, and how the model does on it and on the rest.

    Parameters
    ----------
    conditions
        Feature to the value that its applications have, one or two of them.
    bad_rate, mean_pd
        Of the slice.
    gap, gap_rest
        Bad rate less mean PD.
    auc, auc_foreseen, auc_rest
        Order within the slice, what it would be on average if every PD were right, and order within the rest.
    log_loss, log_loss_rest
        Mean log loss, in nats.
    excess, excess_rest
        Log loss less what the PDs foresee.
    weak_in
        The measure that is least likely by chance.
    p_value, q_value
        Its probability under chance alone, and the same for as many slices as were tried.
    rows
        Positions of the slice's applications.
    """

    conditions: Mapping[str, str]
    bads: int
    share: float
    bad_rate: float
    mean_pd: float
    gap: Estimate
    gap_rest: float
    auc: Estimate
    auc_foreseen: float
    auc_rest: float
    log_loss: float
    log_loss_rest: float
    excess: float
    excess_rest: float
    weak_in: Measure
    p_value: float
    q_value: float
    rows: NDArray[np.int64] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The slice in words."""
        return " & ".join(f"{feature} = {value}" for feature, value in self.conditions.items())


@dataclass(frozen=True)
class WeakSlices:
    """What a search for weak slices found.

    Parameters
    ----------
    rows
        Applications that were searched.
    tried, tested
        Slices that were looked at, and those large enough to be tested.
    level
        Largest share of false ones among those called beyond chance.
    slices
        The weakest first; also those that chance explains.
    whole
        AUC of all applications.
    """

    rows: int
    tried: int
    tested: int
    level: float
    slices: tuple[WeakSlice, ...]
    whole: Estimate

    @property
    def found(self) -> tuple[WeakSlice, ...]:
        """The slices that are weak beyond chance."""
        return tuple(each for each in self.slices if each.q_value <= self.level)

    def table(self) -> pd.DataFrame:
        """Return at most 20 rows for a page, the weakest first; counts and means alone."""
        rows = [
            {
                "slice": each.name,
                "weak_in": each.weak_in,
                "beyond_chance": each.q_value <= self.level,
                "n": len(each.rows),
                "bads": each.bads,
                "bad_rate": each.bad_rate,
                "mean_pd": each.mean_pd,
                **dict(zip(("gap", "gap_low", "gap_high"), each.gap.number(), strict=True)),
                "gap_rest": each.gap_rest,
                **dict(zip(("auc", "auc_low", "auc_high"), each.auc.number(), strict=True)),
                "auc_foreseen": each.auc_foreseen,
                "auc_rest": each.auc_rest,
                "log_loss": each.log_loss,
                "log_loss_rest": each.log_loss_rest,
                "p_value": each.p_value,
                "q_value": each.q_value,
            }
            for each in self.slices[:_ROWS]
        ]
        return pd.DataFrame(rows, columns=_COLUMNS)

    def picture(self) -> bytes:
        """Return how far PDs are off on the weakest slices, a PNG of at most 30 kB."""
        drawn = {each.name: each.gap.number() for each in self.slices[:_SHOWN] if each.gap.assessed}
        return plots.intervals(drawn, title="Weakest slices", axis="bad rate less mean PD, 95 % interval", bound=0.0)

    def facts(self) -> dict[str, float | int | str]:
        """Return the numbers of the search, for a page."""
        shown: dict[str, float | int | str] = {"rows": self.rows, "slices_tried": self.tried}
        shown |= {"slices_tested": self.tested, "slices_found": len(self.found)}
        if self.whole.value is not None:
            shown["auc"] = round(self.whole.value, 6)
        return shown


_COLUMNS = [
    "slice", "weak_in", "beyond_chance", "n", "bads", "bad_rate", "mean_pd", "gap", "gap_low", "gap_high", "gap_rest",
    "auc", "auc_low", "auc_high", "auc_foreseen", "auc_rest", "log_loss", "log_loss_rest", "p_value", "q_value",
]  # fmt: skip


def weak_slices(
    frame: pd.DataFrame,
    y: ArrayLike,
    predicted: ArrayLike,
    schema: FeatureSchema,
    *,
    minimum: Minimum | None = None,
    quantiles: int = 4,
    level: float = 0.05,
    pairs: bool = True,
) -> WeakSlices:
    """Search single values and pairs of values for slices on which a model is worse than on the rest.

    Parameters
    ----------
    frame
        The features.
    y, predicted
        Outcomes (1 bad) and PDs, shape (n,).
    minimum
        Rows, bads and goods that a slice needs; no slice is larger than half of all.
    quantiles
        Parts that a number is cut into; special codes and missing values are parts of their own.
    level
        Largest share of false ones among those called beyond chance.
    pairs
        Whether values are tried two at a time as well.

    Returns
    -------
    WeakSlices
        A pair is listed where it is less likely by chance than either of its values alone, and of slices that are
        nearly the same applications only the weakest.
    """
    least = minimum or Minimum()
    search = _Search(np.asarray(y, dtype=np.float64), np.asarray(predicted, dtype=np.float64), least)
    parts = {feature.name: parts_of(frame[feature.name], feature, quantiles) for feature in schema.features}
    tests: dict[tuple[tuple[str, str], ...], _Test] = {}
    tried = 0
    for names in [*((name,) for name in parts), *(combinations(parts, 2) if pairs else ())]:
        for values, rows in _cells([parts[name] for name in names]):
            tried += 1
            if search.large_enough(rows):
                tests[tuple(zip(names, values, strict=True))] = search.test(rows)
    listed = _listed(tests, level)
    slices = tuple(search.told(dict(each), tests[each], adjusted) for each, adjusted in listed)
    return WeakSlices(len(frame), tried, len(tests), level, slices, search.auc)


def parts_of(values: "pd.Series[Any]", feature: Feature, quantiles: int = 4) -> NDArray[np.object_]:
    """Name the part of a feature's values that each row is in, (n,): a category, a special code, or a range."""
    if feature.kind == "categorical":
        return metrics.segment_labels(values, quantiles).to_numpy(dtype=object)
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    coded = equals_any(numbers, feature.special)
    labels = metrics.segment_labels(np.where(coded, np.nan, numbers), quantiles).to_numpy(dtype=object)
    named = np.array([_RANK.sub("", str(label)) for label in labels], dtype=object)
    for code, meaning in feature.special.items():
        named[numbers == code] = meaning
    return named


@dataclass(frozen=True)
class _Test:
    """One slice and the probability under chance alone of what each measure shows on it."""

    rows: NDArray[np.int64]
    p_values: Mapping[Measure, float]
    auc: Estimate
    auc_foreseen: float

    @property
    def worst(self) -> Measure:
        return min(self.p_values, key=lambda measure: self.p_values[measure])


class _Search:
    """Outcomes and PDs, and the sums that slices are made of."""

    def __init__(self, y: Floats, predicted: Floats, least: Minimum) -> None:
        self.y, self.predicted, self.least, self.terms = y, predicted, least, Terms(least)
        inside = np.clip(predicted, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
        logit = np.log(inside / (1 - inside))
        self.loss = -np.where(y == 1, np.log(inside), np.log1p(-inside))
        # Two measures with their variance if every PD is right.
        self.gap = y - predicted, predicted * (1 - predicted)
        self.excess = (inside - y) * logit, inside * (1 - inside) * logit**2
        self.auc, self.foreseen = metrics.auc(y, predicted, terms=self.terms), foreseen_auc(predicted)

    def large_enough(self, rows: NDArray[np.int64]) -> bool:
        bads = int(self.y[rows].sum())
        few = self.least.lacking_rank(len(rows), bads, len(rows) - bads)
        return few is None and len(rows) <= _LARGEST * len(self.y)

    def test(self, rows: NDArray[np.int64]) -> _Test:
        from scipy.special import ndtr

        area = metrics.auc(self.y[rows], self.predicted[rows], terms=self.terms)
        foreseen = foreseen_auc(self.predicted[rows])
        found: dict[Measure, float] = {
            "calibration": float(2 * ndtr(-abs(self._distance(self.gap, rows)))),
            "log loss": float(ndtr(-self._distance(self.excess, rows))),
            "order": self._below(area, foreseen),
        }
        return _Test(rows, found, area, foreseen)

    def _below(self, area: Estimate, foreseen: float) -> float:
        """Return the probability by chance of an AUC this far below the foreseen one, next to what all fall short."""
        from scipy.special import logit, ndtr

        if not (area.assessed and self.auc.assessed):
            return 1.0
        (a, a_low, a_high), (b, b_low, b_high) = (
            logit(np.clip(each.number(), _EPS, 1 - _EPS)) for each in (area, self.auc)
        )
        short = (a - logit(foreseen)) - (b - logit(self.foreseen))
        error = float(np.hypot(a_high - a_low, b_high - b_low)) / (2 * _Z)
        return float(ndtr(short / error)) if error > 0 else 1.0

    def _distance(self, measure: tuple[Floats, Floats], rows: NDArray[np.int64]) -> float:
        """Return how far the mean over the slice lies above that of the rest, in standard errors."""
        value, variance = measure
        n, rest = len(rows), len(value) - len(rows)
        inside, spread = value[rows].sum(), variance[rows].sum()
        error = np.sqrt(spread / n**2 + (variance.sum() - spread) / rest**2)
        return float((inside / n - (value.sum() - inside) / rest) / error) if error > 0 else 0.0

    def told(self, conditions: Mapping[str, str], test: _Test, adjusted: float) -> WeakSlice:
        """Return everything about a slice that is listed."""
        inside = np.zeros(len(self.y), dtype=bool)
        inside[test.rows] = True
        gap, excess = self.gap[0], self.excess[0]
        return WeakSlice(
            conditions=conditions,
            bads=int(self.y[inside].sum()),
            share=float(inside.mean()),
            bad_rate=float(self.y[inside].mean()),
            mean_pd=float(self.predicted[inside].mean()),
            gap=_mean(gap[inside]),
            gap_rest=float(gap[~inside].mean()),
            auc=test.auc,
            auc_foreseen=test.auc_foreseen,
            auc_rest=metrics.auc(self.y[~inside], self.predicted[~inside], terms=self.terms).number()[0],
            log_loss=float(self.loss[inside].mean()),
            log_loss_rest=float(self.loss[~inside].mean()),
            excess=float(excess[inside].mean()),
            excess_rest=float(excess[~inside].mean()),
            weak_in=test.worst,
            p_value=test.p_values[test.worst],
            q_value=adjusted,
            rows=test.rows,
        )


def _mean(values: Floats) -> Estimate:
    """Return a mean with its normal interval: slices are large enough, and a bootstrap of each would take minutes."""
    value, half = float(values.mean()), _Z * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    return Estimate(value, value - half, value + half, len(values))


def foreseen_auc(predicted: Floats) -> float:
    """Return the AUC that PDs have on average if every one of them is right, shape (n,); a pair of equals counts half.

    It is the chance that a pair is in order over all pairs of a bad and a good, each weighted by how likely it is.
    """
    order = np.argsort(predicted, kind="stable")
    score = predicted[order]
    starts = np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]]))
    bads, goods = np.add.reduceat(score, starts), np.add.reduceat(1 - score, starts)
    # Nobody is a pair with himself.
    himself = float((score * (1 - score)).sum())
    ordered = float(bads @ (np.cumsum(goods) - goods / 2)) - himself / 2
    pairs = float(bads.sum() * goods.sum()) - himself
    return float(np.clip(ordered / pairs, _EPS, 1 - _EPS)) if pairs > 0 else 0.5


def _cells(parts: Sequence[NDArray[np.object_]]) -> Iterator[tuple[tuple[str, ...], NDArray[np.int64]]]:
    """Yield each combination of values that occurs, with the positions of its rows."""
    codes, names = zip(*(pd.factorize(values, sort=True) for values in parts), strict=True)
    flat = np.ravel_multi_index(codes, [len(each) for each in names])
    order = np.argsort(flat, kind="stable")
    cells, starts = np.unique(flat[order], return_index=True)
    for cell, rows in zip(cells, np.split(order, starts[1:]), strict=True):
        at = np.unravel_index(cell, [len(each) for each in names])
        yield tuple(str(each[place]) for each, place in zip(names, at, strict=True)), rows


def _listed(tests: Mapping[tuple[tuple[str, str], ...], _Test], level: float) -> list[Any]:
    """Return the slices to list, the weakest first, each with its probability adjusted for all that were tested."""
    if not tests:
        return []
    from scipy import stats

    every = [(each, measure, p) for each, test in tests.items() for measure, p in test.p_values.items()]
    adjusted = stats.false_discovery_control([p for *_, p in every])
    of_slice = {(each, measure): float(q) for (each, measure, _), q in zip(every, adjusted, strict=True)}
    ranked = sorted(tests, key=lambda each: (tests[each].p_values[tests[each].worst], -len(tests[each].rows), each))
    kept: list[tuple[tuple[str, str], ...]] = []
    for each in ranked:
        worst, q = tests[each].worst, of_slice[each, tests[each].worst]
        if len(kept) >= _ROWS and q > level:
            break
        alone = [tests[one,].p_values[worst] for one in each if len(each) > 1 and (one,) in tests]
        if all(tests[each].p_values[worst] < p for p in alone) and not _repeats(tests, each, kept):
            kept.append(each)
    return [(each, of_slice[each, tests[each].worst]) for each in kept]


def _repeats(
    tests: Mapping[tuple[tuple[str, str], ...], _Test],
    each: tuple[tuple[str, str], ...],
    kept: Sequence[tuple[tuple[str, str], ...]],
) -> bool:
    """Whether a slice is nearly the same applications as one that is listed already."""
    rows = tests[each].rows
    for other in kept:
        shared = len(np.intersect1d(rows, tests[other].rows, assume_unique=True))
        if shared >= _SAME * (len(rows) + len(tests[other].rows) - shared):
            return True
    return False
