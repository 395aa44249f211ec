"""What whylogs needs to know about one column of one chunk, whatever its dtype.

What belongs here: turning cells into numbers, labels and tallies, and adding them to whylogs' own metrics.
The metrics are fed directly because whylogs' data frame path fails on datetime and string columns under
numpy 2 and visits every float in Python. What does not: profiles, their storage and the rules on them.
"""

import hashlib
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FREQUENT_LG_SIZE = 6
_FREQUENT_LABELS_A_CHUNK = 1000


def _no_numbers() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass
class Cells:
    """The cells of one column in one chunk, by what they are; datetimes and durations are in seconds."""

    rows: int
    nulls: int = 0
    nans: int = 0
    values: NDArray[np.int64] | NDArray[np.float64] = field(default_factory=_no_numbers)
    true: int = 0
    false: int = 0
    labels: Sequence[str] = ()
    label_counts: Sequence[int] = ()
    datetimes: int = 0
    durations: int = 0
    others: int = 0


def _temporal(cells: Cells, present: "pd.Series[Any]") -> Cells:
    if pd.api.types.is_timedelta64_dtype(present.dtype):
        cells.values = present.dt.total_seconds().to_numpy(dtype=np.float64)
        cells.durations = len(present)
        return cells
    moments = pd.to_datetime(present, utc=True).dt.tz_localize(None).to_numpy()
    cells.values = moments.astype("datetime64[us]").astype(np.int64) / 1e6
    cells.datetimes = len(present)
    return cells


def _labels(cells: Cells, present: "pd.Series[Any]") -> Cells:
    codes, uniques = pd.factorize(present)
    cells.labels = [str(value) for value in uniques]
    cells.label_counts = np.bincount(codes, minlength=len(uniques)).tolist()
    return cells


def _categories(cells: Cells, series: "pd.Series[Any]") -> Cells:
    codes = series.cat.codes.to_numpy()
    counts = np.bincount(codes[codes >= 0], minlength=len(series.cat.categories))
    used = np.flatnonzero(counts)
    cells.labels = [str(value) for value in series.cat.categories[used]]
    cells.label_counts = counts[used].tolist()
    return cells


def _seconds_or_number(value: Any) -> float | None:
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return (aware - _EPOCH).total_seconds()
    if isinstance(value, date):
        return float((value - _EPOCH.date()).days * 86_400)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, numbers.Real | Decimal):
        try:
            return float(value)
        except OverflowError:
            return None
    return None


def _mixed(cells: Cells, present: "pd.Series[Any]") -> Cells:
    texts: list[str] = []
    values: list[float] = []
    for value in present.to_numpy(dtype=object):
        if isinstance(value, str | pd.Period | pd.Interval):
            texts.append(str(value))
        elif isinstance(value, bool | np.bool_):
            cells.true += bool(value)
            cells.false += not value
        elif (number := _seconds_or_number(value)) is not None:
            values.append(number)
            cells.datetimes += isinstance(value, date)
            cells.durations += isinstance(value, timedelta)
        else:
            cells.others += 1
    cells.values = np.asarray(values, dtype=np.float64)
    return _labels(cells, pd.Series(texts, dtype=object))


def _numeric(cells: Cells, present: "pd.Series[Any]") -> Cells:
    dtype, api = present.dtype, pd.api.types
    if api.is_bool_dtype(dtype):
        cells.true = int(present.sum())
        cells.false = len(present) - cells.true
    elif api.is_complex_dtype(dtype):
        cells.others = len(present)
    elif api.is_integer_dtype(dtype) and str(dtype).lower() != "uint64":
        cells.values = present.to_numpy(dtype=np.int64)
    else:
        cells.values = present.to_numpy(dtype=np.float64)
        cells.nans = cells.nulls if isinstance(dtype, np.dtype) else 0
    return cells


def read_cells(series: "pd.Series[Any]") -> Cells:
    """Sort the cells of a column by what they are: missing, number, boolean, text, datetime and so on."""
    dtype, api = series.dtype, pd.api.types
    present = series[series.notna()]
    cells = Cells(rows=len(series), nulls=len(series) - len(present))
    if isinstance(dtype, pd.CategoricalDtype):
        plain = dtype.categories.dtype
        if api.is_numeric_dtype(plain) or api.is_datetime64_any_dtype(plain):
            return _mixed(cells, present.astype(object))
        return _categories(cells, series)
    if api.is_numeric_dtype(dtype):
        return _numeric(cells, present)
    if api.is_datetime64_any_dtype(dtype) or api.is_timedelta64_dtype(dtype):
        return _temporal(cells, present)
    if isinstance(dtype, pd.StringDtype) or api.infer_dtype(present, skipna=True) == "string":
        return _labels(cells, present)
    return _mixed(cells, present)


def _add(component: Any, amount: int) -> None:
    component.set(component.value + int(amount))


class ColumnLog:
    """Whylogs' metrics of one column, fed chunk by chunk.

    Labels enter the sketch of frequent values only as hashes: a profile holds no text of the data.
    """

    def __init__(self) -> None:
        from whylogs.core.metrics.column_metrics import ColumnCountsMetric, TypeCountersMetric
        from whylogs.core.metrics.metrics import (
            CardinalityMetric,
            DistributionMetric,
            FrequentItemsMetric,
            MetricConfig,
        )

        config = MetricConfig(fi_lg_max_k=_FREQUENT_LG_SIZE)
        self.counts = ColumnCountsMetric.zero(config)
        self.types = TypeCountersMetric.zero(config)
        self.distribution = DistributionMetric.zero(config)
        self.cardinality = CardinalityMetric.zero(config)
        self.frequent = FrequentItemsMetric.zero(config)
        self.datetimes = 0
        self.durations = 0

    def add(self, cells: Cells) -> None:
        """Add one chunk of the column."""
        finite = cells.values[np.isfinite(cells.values)] if cells.values.dtype.kind == "f" else cells.values
        _add(self.counts.n, cells.rows)
        _add(self.counts.null, cells.nulls)
        _add(self.counts.nan, cells.nans)
        _add(self.counts.inf, len(cells.values) - len(finite))
        _add(self.counts.true, cells.true)
        numeric = self.types.integral if cells.values.dtype.kind == "i" else self.types.fractional
        _add(numeric, len(cells.values))
        _add(self.types.boolean, cells.true + cells.false)
        _add(self.types.string, sum(cells.label_counts))
        _add(self.types.object, cells.others)
        self.datetimes += cells.datetimes
        self.durations += cells.durations
        self._add_numbers(finite)
        if cells.true or cells.false:
            self._add_numbers(np.repeat(np.array([1, 0], dtype=np.int64), [cells.true, cells.false]))
        self._add_labels(cells)

    def _add_numbers(self, values: NDArray[Any]) -> None:
        from whylogs.core.preprocessing import NumpyView, PreprocessedColumn

        if not len(values):
            return
        column = PreprocessedColumn()
        column.len = len(values)
        column.numpy = NumpyView(ints=values) if values.dtype.kind == "i" else NumpyView(floats=values)
        with np.errstate(over="ignore", invalid="ignore"):
            self.distribution.columnar_update(column)
        self.cardinality.columnar_update(column)

    def _add_labels(self, cells: Cells) -> None:
        if not cells.labels:
            return
        self.cardinality.hll.value.update_str_list(list(cells.labels))
        most = np.argsort(np.asarray(cells.label_counts), kind="stable")[::-1][:_FREQUENT_LABELS_A_CHUNK]
        for i in most:
            label = cells.labels[i].encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(label, digest_size=8).hexdigest()
            self.frequent.frequent_strings.value.update(digest, int(cells.label_counts[i]))

    def view(self) -> Any:
        """Return the column as whylogs' ``ColumnProfileView``."""
        from whylogs.core.view.column_profile_view import ColumnProfileView

        metrics = (self.counts, self.types, self.distribution, self.cardinality, self.frequent)
        return ColumnProfileView(metrics={metric.namespace: metric for metric in metrics})
