"""From features to the columns of a tree model: every code in a stored table, every column made by name.

What belongs here: codes of categories, special codes as columns of their own, and what stands in for a value that
training hardly had. What does not: the trees (`gbm.py`).

Categories become their rank by the bad rate in training, so a split parts safer from riskier ones. Whatever
training had in fewer rows than a leaf must hold was not learned from: such a missing value, or such a category, is
scored as the value that is riskiest for applicants on average, so that leaving a field empty does not pay.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.schema import Feature, FeatureSchema
from mlops_assets.foundation.errors import UserError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MISSING, UNKNOWN = -1, -2
"""Places of values that a table has no place for."""
_FEW = 64
_PRIOR_ROWS = 20.0
"""Rows of the average bad rate that a category's own rate is mixed with before categories are ranked."""
_CANDIDATES = 32
_PROBES = 256
_OTHER = "\0other"
"""No category is written like this."""


@dataclass(frozen=True)
class Column:
    """One column of the trees, and the feature that it belongs to."""

    name: str
    feature: str
    monotone: Literal[-1, 0, 1]


@dataclass(frozen=True)
class Encoding:
    """How one feature becomes columns: its value or code, and a column for every special code that was learned.

    Parameters
    ----------
    low, high
        The range in training, without special codes; None where training had no number.
    special, rare
        Special codes with a column of their own, and those that count as missing.
    levels
        Code of every category that training had.
    other
        Code of rare and unknown categories; None where the rare ones were too few to learn from.
    learned_missing
        Whether training had enough missing values to learn from.
    worst
        The riskiest value or code: it stands for what could not be learned.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    low: float | None = None
    high: float | None = None
    special: tuple[float, ...] = ()
    rare: tuple[float, ...] = ()
    levels: Mapping[str, int | None] = field(default_factory=dict)
    other: int | None = None
    learned_missing: bool = False
    worst: float | None = None

    def encode(self, values: "NDArray[Any]") -> tuple[list[Floats], Mask]:
        """Return the feature's columns, each (n,), and which values lie beyond all that training knew."""
        return self._numbers(values) if self.kind == "numeric" else self._categories(values)

    def _numbers(self, values: "NDArray[Any]") -> tuple[list[Floats], Mask]:
        value = np.array(values, dtype=np.float64)
        flags = [np.asarray(value == code, dtype=np.float64) for code in self.special]
        unlearned = np.isnan(value) | equals_any(value, self.rare)
        value[unlearned | equals_any(value, self.special)] = np.nan
        # Where training had no number at all, every number lies beyond it.
        low, high = (np.inf, -np.inf) if self.low is None or self.high is None else (self.low, self.high)
        beyond = (value < low) | (value > high)
        if self.worst is not None and not self.learned_missing:
            value[unlearned] = self.worst
        return [value, *flags], beyond

    def _categories(self, values: "NDArray[Any]") -> tuple[list[Floats], Mask]:
        at = places_of(values, {level: place for place, level in enumerate(self.levels)})
        worst = np.nan if self.worst is None else self.worst
        rest = worst if self.other is None else float(self.other)
        codes = [rest if code is None else float(code) for code in self.levels.values()]
        # The places of unknown and missing values count from the end.
        table = np.array([*codes, rest, np.nan if self.learned_missing else worst])
        return [table[at]], at == UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as plain JSON values."""
        return {**asdict(self), "special": list(self.special), "rare": list(self.rare)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Encoding":
        """Return the encoding that `to_dict` described."""
        return cls(**{**raw, "special": tuple(raw["special"]), "rare": tuple(raw["rare"])})


class Encoder:
    """The encodings of all features, and the columns that they make."""

    def __init__(self, columns: Sequence[Column], encodings: Sequence[Encoding]) -> None:
        self.columns, self.encodings = tuple(columns), tuple(encodings)

    def transform(self, features: pd.DataFrame) -> tuple[Floats, Mask]:
        """Return the columns (n, columns), and which values (n, features) lie beyond all that training knew.

        Raises
        ------
        UserError
            A feature is missing.
        """
        matrix = np.empty((len(features), len(self.columns)))
        beyond = np.empty((len(features), len(self.encodings)), dtype=bool)
        column = 0
        for at, encoding in enumerate(self.encodings):
            made, beyond[:, at] = encoding.encode(column_of(features, encoding.name))
            for values in made:
                matrix[:, column] = values
                column += 1
        return matrix, beyond

    def with_worst(self, matrix: Floats, margin: Callable[[Floats], Floats]) -> "Encoder":
        """Return the encoder that knows every feature's riskiest value: the one of highest mean margin.

        Parameters
        ----------
        matrix
            The columns of the training set. The candidates are up to 32 of each feature's values there, tried on up to
            256 rows, spread evenly.
        margin
            Log-odds of rows of columns.
        """
        probes = evenly(matrix, _PROBES)
        found = []
        first = {column.feature: at for at, column in reversed(list(enumerate(self.columns)))}
        for encoding in self.encodings:
            at = first[encoding.name]
            values = np.unique(matrix[:, at][~np.isnan(matrix[:, at])])
            candidates = evenly(values, _CANDIDATES)
            if not len(candidates):
                found.append(encoding)
                continue
            trials = np.tile(probes, (len(candidates), 1))
            trials[:, at] = np.repeat(candidates, len(probes))
            trials[:, at + 1 : at + 1 + len(encoding.special)] = 0.0
            means = margin(trials).reshape(len(candidates), len(probes)).mean(axis=1)
            found.append(replace(encoding, worst=float(candidates[int(np.argmax(means))])))
        return Encoder(self.columns, found)

    def to_dict(self) -> dict[str, Any]:
        """Return the encoder as plain JSON values."""
        return {
            "columns": [asdict(column) for column in self.columns],
            "features": [encoding.to_dict() for encoding in self.encodings],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Encoder":
        """Return the encoder that `to_dict` described."""
        columns = [Column(**each) for each in raw["columns"]]
        return cls(columns, [Encoding.from_dict(each) for each in raw["features"]])


def fit_encoder(schema: FeatureSchema, features: pd.DataFrame, bad: NDArray[np.int64], least: int) -> Encoder:
    """Learn the encodings from the training set.

    Parameters
    ----------
    features, bad
        Rows as `FeatureSchema.matrix` makes them, and outcomes (n,).
    least
        Rows below which a code, a category or missing values are too few to learn from: the least rows of a leaf.
    """
    encodings = [
        _numeric(feature, np.asarray(column_of(features, feature.name), dtype=np.float64), least)
        if feature.kind == "numeric"
        else _categorical(feature, column_of(features, feature.name), bad, least)
        for feature in schema.features
    ]
    columns: list[Column] = []
    for feature, encoding in zip(schema.features, encodings, strict=True):
        # LightGBM refuses some characters, and two names must not become one.
        plain = re.sub(r"[^A-Za-z0-9_]", "_", feature.name)
        columns.append(Column(f"c{len(columns)}_{plain}", feature.name, feature.monotone))
        columns += [
            Column(f"c{len(columns) + more}_{plain}_code{more}", feature.name, 0)
            for more in range(len(encoding.special))
        ]
    return Encoder(columns, encodings)


def _numeric(feature: Feature, values: Floats, least: int) -> Encoding:
    rows = {code: int((values == code).sum()) for code in sorted(feature.special)}
    special = tuple(code for code, count in rows.items() if count >= least)
    rare = tuple(code for code, count in rows.items() if count < least)
    missing = int(np.isnan(values).sum()) + sum(rows[code] for code in rare)
    plain = values[np.isfinite(values) & ~equals_any(values, rows)]
    low, high = (float(plain.min()), float(plain.max())) if len(plain) else (None, None)
    return Encoding(feature.name, "numeric", low, high, special, rare, learned_missing=missing >= least)


def _categorical(feature: Feature, values: "NDArray[Any]", bad: NDArray[np.int64], least: int) -> Encoding:
    at, distinct = pd.factorize(np.asarray(values, dtype=object), use_na_sentinel=True)
    rows = np.bincount(at[at >= 0], minlength=len(distinct))
    bads = np.bincount(at[at >= 0], weights=bad[at >= 0], minlength=len(distinct))
    rare = {str(level) for level, count in zip(distinct, rows, strict=True) if count < least}
    average = float(bad.mean())
    pools = {str(level): (b, n) for level, b, n in zip(distinct, bads, rows, strict=True) if str(level) not in rare}
    few = np.isin(distinct.astype(object), list(rare))
    if rows[few].sum() >= least:
        pools[_OTHER] = (float(bads[few].sum()), int(rows[few].sum()))
    rate = {level: (b + average * _PRIOR_ROWS) / (n + _PRIOR_ROWS) for level, (b, n) in pools.items()}
    ranked = {level: code for code, level in enumerate(sorted(rate, key=lambda level: (rate[level], level)))}
    other = ranked.pop(_OTHER, None)
    levels: dict[str, int | None] = {**ranked, **dict.fromkeys(sorted(rare), other)}
    return Encoding(
        feature.name, "categorical", levels=levels, other=other, learned_missing=int((at < 0).sum()) >= least
    )


def evenly(values: Floats, most: int) -> Floats:
    """Return up to so many of the rows, spread evenly, the first and the last among them."""
    if not len(values):
        return values
    chosen: Floats = values[np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).astype(int))]
    return chosen


def places_of(values: "NDArray[Any]", known: Mapping[str, int]) -> NDArray[np.intp]:
    """Return each category's place, (n,): `MISSING` for None and NaN, `UNKNOWN` for what is not in the table."""
    values = np.asarray(values, dtype=object)
    if len(values) <= _FEW:
        return _places_one_by_one(values, known)
    # Batches repeat few categories: each is looked up once. The sentinel -1 of a missing value picks the last entry.
    at, distinct = pd.factorize(values, use_na_sentinel=True)
    return np.append(_places_one_by_one(np.asarray(distinct, dtype=object), known), MISSING)[at]


def _places_one_by_one(values: "NDArray[Any]", known: Mapping[str, int]) -> NDArray[np.intp]:
    plain = values.copy()
    plain[pd.isna(plain)] = None
    table: dict[Any, int] = {**known, None: MISSING}
    return np.fromiter((table.get(value, UNKNOWN) for value in plain.tolist()), np.intp, len(plain))


def equals_any(values: Floats, codes: Iterable[float]) -> Mask:
    """Tell which values (n,) equal one of a few codes; NaN equals none."""
    found = np.zeros(len(values), dtype=bool)
    for code in codes:
        found |= values == code
    return found


def column_of(features: pd.DataFrame, name: str) -> "NDArray[Any]":
    """Return a feature's values by its name.

    Raises
    ------
    UserError
        There is no such column.
    """
    try:
        values: NDArray[Any] = features[name].to_numpy()
    except KeyError:
        raise UserError(
            f"feature {name!r} is missing; the columns there are {', '.join(map(repr, features.columns))}",
            where="the rows to be scored",
            remedy="give every feature that the model was trained on, by its name.",
        ) from None
    return values
