"""The population stability index on the fixed bins of a reference that can be kept, hashed and checked.

What belongs here: bins (with one for missing cells, one for each code that is no quantity, and one for what the
reference never had), the index with bounds that know the sample sizes, and the reference as JSON. What does not:
distances between two frames (``drift``) and verdicts over a batch.

The index is the sum over the bins of (p - q) ln(p / q). Without drift, the index divided by (1/n + 1/m) is about
chi-square with B - 1 degrees of freedom (Yurdakul and Naranjo, Statistical properties of the population stability
index), so the usual bounds of 0.10 and 0.25 mean nothing in a small sample: here they hold only where they lie above
what chance gives.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_assets.foundation._drift_columns import read_sample
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath, canonical_json, read_bytes, sha256_hex, write_atomic

PsiStatus = Literal["none", "warn", "act", "not_assessed"]
Kind = Literal["numeric", "categorical"]

MISSING, OTHER, BELOW, ABOVE = "(missing)", "(other)", "(below)", "(above)"

_FORMAT = "psi-reference/1"
_QUANTILES = 10
_MOST_LEVELS = 30
_LEAST_SHARE = 0.005
_REBUILD = "build the reference again from the training snapshot; nothing is compared until then."

Counts = NDArray[np.int64]


class ColumnLike(Protocol):
    """What the bins need to know of a column; the features of a system's schema have it."""

    @property
    def name(self) -> str:
        """Name of the column."""

    @property
    def kind(self) -> Kind:
        """Whether it holds numbers or categories."""

    @property
    def special(self) -> Mapping[float, str]:
        """Codes that are no quantity; each has a bin of its own."""


@dataclass(frozen=True)
class Column:
    """A column of a table without a schema, such as a score or a decision."""

    name: str
    kind: Kind = "numeric"
    special: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PsiBounds:
    """When an index counts: large enough to matter, and too large for chance.

    Parameters
    ----------
    warn, act
        Least indices that matter.
    level
        Probability under no drift of an index above the bound that the sample sizes give.
    false_alarms
        Largest probability after the adjustment for the number of columns.
    minimum_rows
        Fewer rows on either side: not assessed.
    """

    warn: float = 0.10
    act: float = 0.25
    level: float = 0.001
    false_alarms: float = 0.002
    minimum_rows: int = 50

    def at_least(self, least: float, bins: int, inverse_sizes: float) -> float:
        """Return the larger of ``least`` and what chance exceeds with probability ``level``."""
        from scipy import stats

        return max(least, float(stats.chi2.isf(self.level, bins - 1)) * inverse_sizes) if bins > 1 else least


_DEFAULT_BOUNDS = PsiBounds()


@dataclass(frozen=True)
class Index:
    """The index of two sets of counts; ``chance`` is the probability of one as large without drift."""

    value: float
    bins: int
    chance: float
    inverse_sizes: float
    parts: NDArray[np.float64]


@dataclass(frozen=True)
class ColumnPsi:
    """What was found in one column.

    ``warn`` and ``act`` are the bounds that held for these sample sizes, ``chance`` is adjusted for the number of
    columns (Benjamini-Hochberg), ``bin`` is the one that moved most, with its shares before and now.
    """

    column: str
    status: PsiStatus
    value: float | None = None
    warn: float | None = None
    act: float | None = None
    chance: float | None = None
    bins: int | None = None
    bin: str | None = None
    share_reference: float | None = None
    share_current: float | None = None
    reason: str = "no difference beyond the bounds and chance"


def index(reference: ArrayLike, current: ArrayLike) -> Index:
    """Return the population stability index of two sets of counts over the same bins.

    Shares are shrunk by one row towards both samples together, so that an empty bin gives a finite part, and one that
    is rare on both sides a small one. Bins that are empty on both sides do not count.

    Parameters
    ----------
    reference, current
        (bins,) Rows in each bin; each side has at least one row.
    """
    from scipy import stats

    before, now = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    m, n = before.sum(), now.sum()
    together = (before + now) / (m + n)
    used = together > 0
    q = (before[used] + together[used]) / (m + 1)
    p = (now[used] + together[used]) / (n + 1)
    parts = np.zeros(len(before))
    parts[used] = (p - q) * np.log(p / q)
    value, bins, inverse_sizes = float(parts.sum()), int(used.sum()), float(1 / n + 1 / m)
    chance = float(stats.chi2.sf(value / inverse_sizes, bins - 1)) if bins > 1 else 1.0
    return Index(value, bins, chance, inverse_sizes, parts)


@dataclass(frozen=True)
class Bins:
    """The fixed bins of one column with the rows of the reference in each.

    A number falls into ``[low, uppers[0]]``, ``(uppers[0], uppers[1]]`` and so on, or below or above all of them; a
    category into its own bin or that of all others. ``counts`` follow ``labels``.
    """

    column: str
    kind: Kind
    special: tuple[float, ...]
    low: float | None
    uppers: tuple[float, ...]
    levels: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the bins, in the order of the counts."""
        if self.kind == "categorical":
            return (MISSING, *self.levels, OTHER)
        ends = [f"<= {upper:g}" for upper in self.uppers]
        return (MISSING, *(f"code {code:g}" for code in self.special), BELOW, *ends, ABOVE)

    @property
    def rows(self) -> int:
        """Rows of the reference."""
        return sum(self.counts)

    def count(self, frame: pd.DataFrame) -> Counts | str:
        """Return the rows of a frame in each bin, or why they cannot be counted."""
        values = _values(frame, self.column, self.kind)
        return values if isinstance(values, str) else self.place(values, len(frame))

    def place(self, values: NDArray[Any], rows: int) -> Counts:
        """Return the number of values in each bin; of ``rows``, those without a value are missing."""
        if self.kind == "categorical":
            known = pd.Index(self.levels, dtype=object).get_indexer(pd.Index(values, dtype=object))
            counted = np.bincount(np.where(known < 0, len(self.levels), known), minlength=len(self.levels) + 1)
            return np.array([rows - len(values), *counted], dtype=np.int64)
        codes = [np.count_nonzero(values == code) for code in self.special]
        rest = values[~np.isin(values, self.special)]
        below = np.count_nonzero(rest < self.low) if self.low is not None else 0
        inside = np.bincount(np.searchsorted(self.uppers, rest, side="left"), minlength=len(self.uppers) + 1)
        inside[0] -= below
        return np.array([rows - len(values), *codes, below, *inside], dtype=np.int64)


def _values(frame: pd.DataFrame, column: str, kind: Kind) -> NDArray[Any] | str:
    """Return the values that are there, of numbers the finite ones, or why the column cannot be read."""
    sample = read_sample(frame, column, "num" if kind == "numeric" else "cat")
    return sample.values if sample.problem is None or sample.empty else sample.problem


def _bins(frame: pd.DataFrame, column: ColumnLike) -> Bins:
    values = _values(frame, column.name, column.kind)
    if isinstance(values, str):
        raise UserError(
            values, where=f"column {column.name!r} of the reference", remedy="make the reference of typed rows."
        )
    low: float | None = None
    special: tuple[float, ...] = ()
    uppers: tuple[float, ...] = ()
    levels: tuple[str, ...] = ()
    if column.kind == "categorical":
        counts = pd.Series(values, dtype=object).value_counts()
        often = sorted(counts[counts >= _LEAST_SHARE * len(frame)].items(), key=lambda each: (-each[1], str(each[0])))
        levels = tuple(str(name) for name, _ in often[:_MOST_LEVELS])
    else:
        special = tuple(sorted(float(code) for code in column.special))
        quantities = values[~np.isin(values, special)]
        if len(quantities):
            shares = np.arange(1, _QUANTILES + 1) / _QUANTILES
            # Quantiles that are values of the column: a value that many rows share becomes a bin of its own.
            uppers = tuple(np.unique(np.quantile(quantities, shares, method="inverted_cdf")).tolist())
            low = float(quantities.min())
    bins = Bins(column.name, column.kind, special, low, uppers, levels, ())
    return replace(bins, counts=tuple(bins.place(values, len(frame)).tolist()))


@dataclass(frozen=True)
class Reference:
    """What later batches are compared with: the bins of every column, and nothing of a single row."""

    columns: tuple[Bins, ...]

    @classmethod
    def of(cls, frame: pd.DataFrame, columns: Sequence[ColumnLike]) -> "Reference":
        """Make the reference of some rows.

        Parameters
        ----------
        frame
            Typed rows: numbers with codes as they are, categories as text; further columns are left alone.
        columns
            The columns to compare, such as the features of a schema.

        Raises
        ------
        UserError
            There are no rows or columns, or a column is missing, doubled or of the wrong kind.
        """
        if not len(frame) or not columns:
            what = "rows" if columns else "columns"
            raise UserError(f"there are no {what}", where="the reference", remedy="give it some of both.")
        return cls(tuple(_bins(frame, column) for column in columns))

    @property
    def sha256(self) -> str:
        """The hash of the content, which names this reference."""
        return sha256_hex(canonical_json(self._body()))

    def _body(self) -> dict[str, Any]:
        return {"format": _FORMAT, "columns": [_to_dict(bins) for bins in self.columns]}

    def to_json(self) -> bytes:
        """Return the reference with its hash as JSON; equal references give equal bytes."""
        return canonical_json({**self._body(), "sha256": self.sha256})

    @classmethod
    def from_json(cls, text: bytes | str, *, where: str = "reference", sha256: str | None = None) -> "Reference":
        """Read what `to_json` wrote.

        Parameters
        ----------
        where
            Name of the place, for errors.
        sha256
            The hash that was recorded elsewhere; without it, the one inside alone is checked.

        Raises
        ------
        UserError
            The text is damaged, changed, something else, or another reference than the recorded one.
        """
        try:
            raw = json.loads(text)
            if raw["format"] != _FORMAT:
                raise UserError(f"unknown format {raw['format']!r}", where=where, remedy=_REBUILD)
            read = cls(tuple(_from_dict(each) for each in raw["columns"]))
            stated = raw["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError("holds no reference, or a damaged one", where=where, remedy=_REBUILD) from error
        if read.sha256 != stated or (sha256 is not None and stated != sha256):
            recorded = stated if sha256 is None else sha256
            raise UserError(
                f"the reference was changed: SHA-256 {read.sha256}, recorded was {recorded}",
                where=where,
                remedy=_REBUILD,
            )
        return read

    def save(self, path: AnyPath) -> str:
        """Write the reference atomically and return its hash."""
        write_atomic(path, self.to_json())
        return self.sha256

    @classmethod
    def load(cls, path: AnyPath, *, sha256: str | None = None) -> "Reference":
        """Read what `save` wrote.

        Raises
        ------
        UserError
            The file is missing, or as for `from_json`.
        """
        try:
            content = read_bytes(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError("the reference is missing", where=str(path), remedy=_REBUILD) from error
        return cls.from_json(content, where=str(path), sha256=sha256)

    def compare(self, current: pd.DataFrame, *, bounds: PsiBounds = _DEFAULT_BOUNDS) -> tuple[ColumnPsi, ...]:
        """Compare a batch with the reference, column by column.

        An index counts only above both its bound and the one that the sample sizes give, and only where its
        probability under no drift, adjusted for the number of columns, is small. What cannot be compared is
        ``not_assessed`` with the reason.
        """
        found = [self._index_of(bins, current, bounds) for bins in self.columns]
        chances = iter(_adjusted([each[0].chance for each in found if not isinstance(each, str)]))
        return tuple(
            ColumnPsi(bins.column, "not_assessed", reason=each)
            if isinstance(each, str)
            else _judge(bins, *each, next(chances), bounds)
            for bins, each in zip(self.columns, found, strict=True)
        )

    @staticmethod
    def _index_of(bins: Bins, current: pd.DataFrame, bounds: PsiBounds) -> tuple[Index, Counts] | str:
        for side, rows in (("batch", len(current)), ("reference", bins.rows)):
            if rows < bounds.minimum_rows:
                return f"the {side} has {rows} rows, {bounds.minimum_rows} are needed"
        counted = bins.count(current)
        return f"in the batch, {counted}" if isinstance(counted, str) else (index(bins.counts, counted), counted)


def _to_dict(bins: Bins) -> dict[str, Any]:
    return {
        "column": bins.column, "kind": bins.kind, "special": list(bins.special), "low": bins.low,
        "uppers": list(bins.uppers), "levels": list(bins.levels), "counts": list(bins.counts),
    }  # fmt: skip


def _from_dict(raw: Mapping[str, Any]) -> Bins:
    tuples = {name: tuple(raw[name]) for name in ("special", "uppers", "levels", "counts")}
    bins = Bins(raw["column"], raw["kind"], low=raw["low"], **tuples)
    if len(bins.counts) != len(bins.labels):
        raise ValueError(f"{bins.column}: {len(bins.counts)} counts for {len(bins.labels)} bins")
    return bins


def _adjusted(chances: Sequence[float]) -> list[float]:
    from scipy import stats

    return [float(p) for p in stats.false_discovery_control(chances)] if chances else []


def _judge(bins: Bins, found: Index, counted: Counts, chance: float, bounds: PsiBounds) -> ColumnPsi:
    warn, act = (bounds.at_least(least, found.bins, found.inverse_sizes) for least in (bounds.warn, bounds.act))
    at = int(np.argmax(found.parts))
    before, now = bins.counts[at] / bins.rows, float(counted[at] / counted.sum())
    beyond = chance <= bounds.false_alarms
    status: PsiStatus = "act" if beyond and found.value > act else "warn" if beyond and found.value > warn else "none"
    reason = ColumnPsi.reason
    if status != "none":
        bound = act if status == "act" else warn
        reason = (
            f"index {found.value:.3g} (bound {bound:.3g}); bin {bins.labels[at]} went from {before:.1%} to {now:.1%}"
        )
    return ColumnPsi(
        bins.column, status, found.value, warn, act, chance, found.bins, bins.labels[at], before, now, reason
    )
