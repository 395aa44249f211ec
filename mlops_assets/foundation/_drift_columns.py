"""Two samples of one column: guards, distance, sampling noise and probability of the difference.

What belongs here: the statistics of a single column. What does not: verdicts over a batch, reports.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.foundation._cells import Cells, read_cells

ColumnKind = Literal["num", "cat"]

OTHER = "(other)"

# Evidently adds up over a set of labels, whose order is another one in every process.
_DIGITS = 9

_EXPECTED = 10.0
_DISCRETE_VALUES = 10
_RARE_SHARE = 0.9


@dataclass(frozen=True)
class Sample:
    """One side of a column: its values (numbers, or labels as text) without the missing ones.

    ``empty`` tells that the only problem is that no cell holds a value.
    """

    values: NDArray[Any]
    rows: int
    problem: str | None = None
    empty: bool = False

    @property
    def missing(self) -> int:
        """Number of cells without a value; an infinite number is no value."""
        return self.rows - len(self.values)


@dataclass(frozen=True)
class Difference:
    """How far two samples are apart and how far chance alone would bring them.

    ``distance`` and ``noise`` are in the unit of ``method``: for ``wasserstein`` in standard deviations of the
    reference, for ``jensenshannon`` the Jensen-Shannon distance with natural logarithms, 0 to 0.83. Larger is
    further for both. ``gap`` is the largest difference of the two cumulative distributions, for numbers only.
    """

    method: str
    distance: float
    noise: float
    p_value: float
    gap: float | None = None

    @property
    def effect(self) -> float:
        """The distance with the part that sampling noise explains taken out."""
        if self.distance <= self.noise:
            return 0.0
        return self.distance * float(np.sqrt(1.0 - (self.noise / self.distance) ** 2))


@dataclass(frozen=True)
class Compared:
    """A column's two sides with the difference of their values, or the reason why there is none."""

    column: str
    kind: ColumnKind
    reference: Sample
    current: Sample
    outcome: Difference | str
    chance_missing: float | None


@contextmanager
def evidently_warnings() -> Iterator[None]:
    """Silence what Evidently and its web framework say about their own dependencies."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="numpy.core is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", module="litestar", category=DeprecationWarning)
        yield


def _no_number(cells: Cells) -> str | None:
    if count := sum(cells.label_counts):
        return f"{count:,} of {cells.rows:,} cells are text in a column of numbers, such as {cells.labels[0]!r}"
    if cells.datetimes:
        return "it holds datetimes, which move by themselves; derive a number such as the hour or an age"
    if cells.others:
        return f"{cells.others:,} of {cells.rows:,} cells are neither number nor text"
    return None


def _numbers(series: "pd.Series[Any]") -> Sample:
    cells = read_cells(series)
    values = cells.values[np.isfinite(cells.values)].astype(np.float64)
    if cells.true or cells.false:
        values = np.concatenate([values, np.repeat([1.0, 0.0], [cells.true, cells.false])])
    return Sample(values, cells.rows, _no_number(cells))


def _label(value: Any) -> str:
    # One missing cell turns whole numbers into floats: 1 and 1.0 are the same category.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _labels(series: "pd.Series[Any]") -> Sample:
    present = series.dropna()
    try:
        codes, uniques = pd.factorize(present)
    except TypeError:
        return Sample(np.empty(0, dtype=object), len(series), "it holds lists or other values that are no category")
    names = np.array([_label(value) for value in uniques], dtype=object)
    return Sample(names[codes] if len(names) else np.empty(0, dtype=object), len(series))


def read_sample(frame: pd.DataFrame, column: str, kind: ColumnKind) -> Sample:
    """Read one side of a column; what makes it unusable is in ``problem``, never an exception."""
    found = [position for position, name in enumerate(frame.columns) if str(name) == column]
    if len(found) != 1:
        problem = "more than one column has this name" if found else "the column is missing"
        return Sample(np.empty(0), len(frame), problem)
    if len(frame) == 0:
        return Sample(np.empty(0), 0, "there are no rows")
    series = frame.iloc[:, found[0]]
    sample = _numbers(series) if kind == "num" else _labels(series)
    if sample.problem is None and not len(sample.values):
        return Sample(sample.values, sample.rows, f"all {sample.rows:,} cells are missing", empty=True)
    return sample


def _chance(table: NDArray[np.int64]) -> float:
    """Return the probability of a table of counts, one row a sample, where both have one distribution."""
    from scipy import stats

    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return 1.0
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    if table.shape[1] == 2 and expected.min() < _EXPECTED:
        return float(stats.fisher_exact(table)[1])
    return float(stats.chi2_contingency(table)[1])


def chance_of_missing(reference: Sample, current: Sample) -> float | None:
    """Return the probability of the two shares of missing cells under one share; None where none is missing."""
    if not reference.missing and not current.missing:
        return None
    sides = [[side.missing, len(side.values)] for side in (reference, current)]
    return _chance(np.array(sides, dtype=np.int64))


def _codes(reference: NDArray[Any], current: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    codes, names = pd.factorize(np.concatenate([reference, current]))
    return codes, np.asarray(names, dtype=object)


def pool_rare(reference: NDArray[Any], current: NDArray[Any], most: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Turn categories that are too rare to be judged by themselves into ``OTHER``, on both sides alike.

    Which are rare is decided on both samples together: deciding on the reference alone would find new rare
    categories in every batch. A category that the reference never had stays by itself once it is frequent.
    """
    codes, names = _codes(reference, current)
    counts = np.bincount(codes, minlength=len(names))
    smaller = min(len(reference), len(current)) / len(codes)
    order = np.argsort(-counts, kind="stable")
    kept = [i for i in order[:most] if counts[i] * smaller >= _EXPECTED]
    rest = counts.sum() - counts[kept].sum()
    while len(kept) > 1 and 0 < rest * smaller < _EXPECTED:
        rest += counts[kept.pop()]
    pooled = np.full(len(names), OTHER, dtype=object)
    pooled[kept] = names[kept]
    return pooled[codes[: len(reference)]], pooled[codes[len(reference) :]]


def _counts(reference: NDArray[Any], current: NDArray[Any]) -> NDArray[np.int64]:
    codes, names = _codes(reference, current)
    sides = (codes[: len(reference)], codes[len(reference) :])
    return np.array([np.bincount(side, minlength=len(names)) for side in sides], dtype=np.int64)


def _distance(method: str, reference: NDArray[Any], current: NDArray[Any]) -> float:
    with evidently_warnings():
        from evidently.legacy.calculations.stattests import jensenshannon_stat_test, wasserstein_stat_test
        from evidently.legacy.core import ColumnType
    test, kind = (
        (wasserstein_stat_test, ColumnType.Numerical)
        if method == "wasserstein"
        else (jensenshannon_stat_test, ColumnType.Categorical)
    )
    result = test(pd.Series(reference), pd.Series(current), kind, None)
    return round(float(result.drift_score), _DIGITS)


def _inverse_sizes(reference: NDArray[Any], current: NDArray[Any]) -> float:
    return 1 / len(reference) + 1 / len(current)


def compare_categories(reference: NDArray[Any], current: NDArray[Any], most: int) -> Difference | str:
    """Compare two samples of labels, or say why they cannot be compared.

    The noise follows from the chi-square approximation of the divergence: with B categories and no drift, its
    expectation is (B - 1) / 8 (1 / n + 1 / m).
    """
    if len(_codes(reference, current)[1]) == 1:
        return Difference("jensenshannon", 0.0, 0.0, 1.0)
    before, now = pool_rare(reference, current, most)
    if np.mean(np.concatenate([before, now]) == OTHER) > _RARE_SHARE:
        return "nearly every category is too rare to be compared, as of an identifier or free text"
    counts = _counts(before, now)
    noise = np.sqrt((counts.shape[1] - 1) / 8 * _inverse_sizes(before, now))
    return Difference("jensenshannon", _distance("jensenshannon", before, now), float(noise), _chance(counts))


def _wasserstein_noise(standardised: NDArray[np.float64], inverse_sizes: float) -> float:
    """Return the expected Wasserstein distance of two samples of one distribution.

    It is sqrt(2 / pi) times the integral of sqrt(F (1 - F)) times sqrt(1 / n + 1 / m), as the difference of two
    empirical distribution functions is nearly normal at every point.
    """
    ordered = np.sort(standardised)
    share = np.arange(1, len(ordered)) / len(ordered)
    integral = float(np.sum(np.sqrt(share * (1 - share)) * np.diff(ordered)))
    return float(np.sqrt(2 / np.pi * inverse_sizes) * integral)


def compare_numbers(reference: NDArray[np.float64], current: NDArray[np.float64], most: int) -> Difference | str:
    """Compare two samples of numbers, or say why they cannot be compared.

    The probability is that of the Kolmogorov-Smirnov test, or of the chi-square test where there are few values.
    """
    from scipy import stats

    with np.errstate(over="ignore", invalid="ignore"):
        deviation = float(np.std(reference))
        if deviation == 0.0:
            names = np.array(["another value", "the usual value"], dtype=object)
            sides = [names[(side == reference[0]).astype(np.int64)] for side in (reference, current)]
            return compare_categories(sides[0], sides[1], most)
        # Evidently never divides by less than 0.001, which would hide any drift of small numbers.
        before, now = (reference - reference.mean()) / deviation, (current - reference.mean()) / deviation
    if not (np.isfinite(before).all() and np.isfinite(now).all()):
        return "its numbers are too large to compute with"
    gap = stats.ks_2samp(before, now, method="asymp")
    p_value = float(gap.pvalue)
    together = np.concatenate([before, now])
    if len(np.unique(together)) <= _DISCRETE_VALUES:
        table = _counts(*pool_rare(before, now, most))
        p_value = _chance(table) if table.shape[1] > 1 else p_value
    noise = _wasserstein_noise(together, _inverse_sizes(before, now))
    distance = _distance("wasserstein", before, now)
    return Difference("wasserstein", distance, noise, p_value, float(gap.statistic))
