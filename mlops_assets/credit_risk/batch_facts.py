"""What a batch of applications looks like in a few hundred numbers, and batches taken together.

What belongs here: counts and quantiles of a batch, their JSON, and pooling. What does not: what is wrong with a batch
(`batch_rules.py`) and where the facts are kept (`batches.py`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk.spec import Spec

POINTS = 21
"""Points of a column's distribution, from the least value to the largest in steps of 5 %."""
_COMMON = 50


@dataclass(frozen=True)
class Numbers:
    """A numeric column: values, missing ones, special codes, and points of the values' distribution."""

    values: int
    missing: int
    special: int
    points: tuple[float, ...] = ()


@dataclass(frozen=True)
class Labels:
    """A category: missing values, and how often each of the most common ones occurs."""

    missing: int
    counts: Mapping[str, int] = field(default_factory=dict)
    rare: int = 0

    @property
    def values(self) -> int:
        """Values that are there."""
        return sum(self.counts.values()) + self.rare


@dataclass(frozen=True)
class BatchFacts:
    """What is known of a batch once its rows were judged.

    Parameters
    ----------
    rows
        All rows of the delivery that belong to the period.
    accepted, quarantined, copies
        Rows that met the contract, that did not, and that only repeat another one.
    rules
        Rows that broke each rule.
    numbers, labels
        The columns of the accepted rows.
    beyond
        Numbers that were read but lie outside their column's range.
    """

    period: str
    rows: int
    accepted: int
    quarantined: int = 0
    copies: int = 0
    rules: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    labels: Mapping[str, Labels] = field(default_factory=dict)
    beyond: Mapping[str, Numbers] = field(default_factory=dict)

    def readable(self, name: str) -> Numbers:
        """Return a numeric column with the values outside its range: where a unit changes, that may be all."""
        there = [part[name] for part in (self.numbers, self.beyond) if name in part]
        return pooled_numbers(there) if len(there) != 1 else there[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "BatchFacts":
        """Return the facts that `to_dict` described."""
        numbers, beyond = (
            {name: Numbers(**{**each, "points": tuple(each["points"])}) for name, each in raw.get(part, {}).items()}
            for part in ("numbers", "beyond")
        )
        labels = {name: Labels(**each) for name, each in raw["labels"].items()}
        return cls(**{**raw, "numbers": numbers, "labels": labels, "beyond": beyond})


def facts_of(
    spec: Spec,
    period: str,
    accepted: pd.DataFrame,
    *,
    rows: int | None = None,
    quarantined: int = 0,
    copies: int = 0,
    rules: Mapping[str, int] | None = None,
    beyond: Mapping[str, Sequence[float]] | None = None,
) -> BatchFacts:
    """Return the facts of a batch.

    Parameters
    ----------
    accepted
        Its typed rows that met the contract; only the columns of features are read.
    rows
        All its rows; by default those given here.
    beyond
        Values outside their range, by column.
    """
    numbers = {
        each.name: _numbers(accepted[each.name].to_numpy(dtype=np.float64), [*each.special]) for each in spec.numeric
    }
    labels = {each.name: _labels(accepted[each.name]) for each in spec.categorical}
    whole = len(accepted) + quarantined + copies if rows is None else rows
    outside = {name: _numbers(np.asarray(values, dtype=np.float64), []) for name, values in (beyond or {}).items()}
    return BatchFacts(period, whole, len(accepted), quarantined, copies, dict(rules or {}), numbers, labels, outside)


def _numbers(column: "np.ndarray[Any, np.dtype[np.float64]]", codes: Sequence[float]) -> Numbers:
    there = column[~np.isnan(column)]
    values = np.sort(there[~np.isin(there, codes)] if codes else there)
    points: tuple[float, ...] = ()
    if len(values):
        points = tuple(values[np.rint(np.linspace(0, len(values) - 1, POINTS)).astype(np.int64)].tolist())
    return Numbers(len(values), len(column) - len(there), len(there) - len(values), points)


def _labels(column: "pd.Series[Any]") -> Labels:
    counts = Counter(value for value in column if isinstance(value, str))
    common = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_COMMON])
    return Labels(len(column) - counts.total(), common, counts.total() - sum(common.values()))


def pooled_numbers(parts: Iterable[Numbers]) -> Numbers:
    """Return several batches' column as one; the points are those of the mixture, good to a step of 5 %."""
    parts = list(parts)
    known = [part for part in parts if part.values]
    points: tuple[float, ...] = ()
    if known:
        values = np.concatenate([np.asarray(part.points) for part in known])
        weights = np.repeat([part.values / POINTS for part in known], POINTS)
        order = np.argsort(values, kind="stable")
        upto = np.cumsum(weights[order])
        at = np.searchsorted(upto, np.linspace(0, 1, POINTS) * upto[-1], side="left")
        points = tuple(values[order][np.minimum(at, len(values) - 1)].tolist())
    return Numbers(
        sum(part.values for part in parts),
        sum(part.missing for part in parts),
        sum(part.special for part in parts),
        points,
    )


def pooled_labels(parts: Iterable[Labels]) -> Labels:
    """Return several batches' category as one."""
    parts = list(parts)
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    return Labels(sum(part.missing for part in parts), dict(counts), sum(part.rare for part in parts))
