"""What a table must look like, and what becomes of the rows that do not.

What belongs here: columns, contracts, and the split of a raw frame into accepted and quarantined rows; also the public
names of reading values (`_coercion.py`), of rules (`_rules.py`) and of cutting a stream of chunks to one time window
(`_ingest.py`). What does not: where the raw rows come from (`sources`), and the contracts of any one system.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from mlops_assets.foundation._breaches import QUARANTINE_COLUMNS, UNREADABLE, Breaches
from mlops_assets.foundation._coercion import DTYPES, EPOCH_UNITS, NULLABLE_DTYPES, Kind, Mask, TimeFormat, coerce, utc
from mlops_assets.foundation._ingest import IngestBatch, TimeSlice, ingest, time_slice
from mlops_assets.foundation._rules import (
    Rule,
    between,
    matches,
    max_length,
    not_after,
    not_before,
    on_text,
    one_line,
)
from mlops_assets.foundation.errors import UserError

__all__ = [
    "EPOCH_UNITS",
    "QUARANTINE_COLUMNS",
    "SOURCE_COLUMNS",
    "TIME_FORMAT",
    "UNREADABLE",
    "Column",
    "ColumnRow",
    "Contract",
    "IngestBatch",
    "Kind",
    "Mask",
    "Rule",
    "Split",
    "TimeFormat",
    "TimeSlice",
    "between",
    "closest",
    "coerce",
    "ingest",
    "matches",
    "max_length",
    "missing_column",
    "not_after",
    "not_before",
    "on_text",
    "one_line",
    "refuse_duplicates",
    "time_slice",
    "utc",
]

TIME_FORMAT = "time_format"
SOURCE_COLUMNS = "source_columns"

# Rule name and bound of a value that cannot be read as its column's type.
_TYPE_RULES: dict[Kind, tuple[str, str]] = {
    "text": ("not_text", "text"),
    "number": ("not_a_number", "a finite number such as 12.5"),
    "integer": ("not_an_integer", "a whole number below 2^53"),
    "flag": ("not_a_flag", "0, 1, true, false, yes or no"),
    "time": ("not_a_time", "a time"),
    "date": ("not_a_date", "a date such as 2026-11-16, 2026-11 or 2026"),
}


@dataclass(frozen=True)
class Column:
    """One typed column of a contract.

    Parameters
    ----------
    type
        ``text`` (object of str, surrounding white space removed, blank is missing), ``number`` (float64,
        finite), ``integer``, ``flag`` (bool), ``time`` (datetime64[ns, UTC]) or ``date`` (datetime64[ns] at
        midnight, no zone).
    required
        Whether the column itself must be there.
    nullable
        Whether single values may be missing.
    default
        Stands in for a missing value and for a missing optional column.
    """

    name: str
    type: Kind
    description: str = ""
    required: bool = True
    nullable: bool = False
    default: Any = None

    @property
    def dtype(self) -> Any:
        """Dtype of the accepted column."""
        return (NULLABLE_DTYPES if self.nullable and self.default is None else DTYPES)[self.type]


class Split(NamedTuple):
    """The rows that met a contract, and a row for every broken rule of the others."""

    accepted: pd.DataFrame
    quarantined: pd.DataFrame


class ColumnRow(NamedTuple):
    """One column of a contract as plain text, for a table of the schema."""

    name: str
    type: str
    nullable: bool
    description: str
    constraints: tuple[str, ...]


@dataclass(frozen=True)
class Contract:
    """What a table must look like.

    A raw frame may say of itself how its times are written (``attrs[TIME_FORMAT]``, the fields of `TimeFormat`) and
    which columns its source has (``attrs[SOURCE_COLUMNS]``); `sources.read` sets both.

    Parameters
    ----------
    name
        The table, for messages.
    columns, rules
        Typed columns in the order of the accepted frame, and the conditions on their values.
    unique
        Columns whose values occur once; the first row that meets all else is kept.
    time_column
        The column that says when a row happened, by which `ingest` cuts to a window.
    time
        How the values of ``time`` columns are written, where the frame does not say it.
    """

    name: str
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    unique: tuple[str, ...] = ()
    time_column: str | None = None
    time: TimeFormat = field(default_factory=TimeFormat)

    def __post_init__(self) -> None:
        blamed = {rule.column for rule in self.rules} | set(self.unique) | ({self.time_column} - {None})
        if len(set(self.names)) != len(self.names) or not blamed <= set(self.names):
            msg = f"contract {self.name}: {self.names} repeat, or rules name other columns: {blamed}"
            raise ValueError(msg)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the columns that a source must have."""
        return tuple(column.name for column in self.columns if column.required)

    def with_required(self, name: str) -> "Contract":
        """Return this contract with column ``name`` required in the table and in every row."""
        columns = (
            Column(each.name, each.type, each.description) if each.name == name else each for each in self.columns
        )
        return replace(self, columns=tuple(columns))

    def with_rule(self, rule: Rule) -> Self:
        """Return this contract with a rule in the place of the one of its name."""
        return replace(self, rules=tuple(rule if each.name == rule.name else each for each in self.rules))

    def schema(self) -> Any:
        """Return the pandera ``DataFrameSchema`` that every accepted frame satisfies."""
        import pandera.pandas as pandera

        by_column = [(rule.column, check) for rule, check in _checks(self.rules, ignore_na=True) if not rule.whole_row]
        return pandera.DataFrameSchema(
            {
                column.name: pandera.Column(
                    column.dtype,
                    checks=[check for name, check in by_column if name == column.name],
                    nullable=column.nullable and column.default is None,
                    unique=column.name in self.unique,
                    description=column.description or None,
                )
                for column in self.columns
            },
            checks=[check for rule, check in _checks(self.rules, ignore_na=False) if rule.whole_row],
            name=self.name,
            strict=True,
            ordered=True,
        )

    def _prove(self, accepted: pd.DataFrame) -> None:
        """Prove what is left to prove once the rules were judged row by row: names, order, types, missing values."""
        if tuple(accepted.columns) != self.names:
            raise ValueError(f"contract {self.name}: {list(accepted.columns)} were made of {list(self.names)}")
        for column, dtype in zip(self.columns, accepted.dtypes.tolist(), strict=True):
            missing = not (column.nullable and column.default is None) and _missing(accepted[column.name]).any()
            if dtype != column.dtype or missing:
                gaps = ", some of them missing" if missing else ""
                raise ValueError(f"contract {self.name}: {column.name} became {dtype}{gaps}")

    def check_columns(self, frame: pd.DataFrame, *, where: str) -> None:
        """Raise a `UserError` that names a required column that is absent, or one that occurs twice."""
        names = [str(name) for name in frame.columns]
        refuse_duplicates(names, where=where)
        for name in self.required:
            if name not in names:
                there = frame.attrs.get(SOURCE_COLUMNS) or [name for name in names if name != UNREADABLE]
                raise missing_column(name, there, where=where)

    def time_of(self, frame: pd.DataFrame) -> TimeFormat:
        """Return how the times of a raw frame are written."""
        said = frame.attrs.get(TIME_FORMAT)
        return TimeFormat.model_validate(said) if said else self.time

    def split(
        self, frame: pd.DataFrame, *, where: str, first_row: int = 0, seen: dict[str, set[Any]] | None = None
    ) -> Split:
        """Split a raw frame into the rows that meet the contract and those that do not; none is lost.

        Parameters
        ----------
        frame
            Raw rows, canonical column names; further columns only show up in ``raw``.
        where
            File or table, for messages.
        first_row
            Number in the source of the row with index 0; a row's number is ``first_row`` plus its index.
        seen
            Values of the ``unique`` columns that earlier chunks of the same table had; added to.

        Returns
        -------
        Split
            ``accepted`` has exactly the contract's columns and dtypes. ``quarantined`` has a row for every
            broken rule: ``row`` int64, and as text ``rule``, ``column``, ``value`` (its first 500 characters),
            ``bound``, ``raw`` (the whole raw row as JSON).

        Raises
        ------
        UserError
            A required column is absent, or a column name occurs twice.
        """
        self.check_columns(frame, where=where)
        breaches = Breaches(frame, first_row)
        typed, exempt, time = {}, {}, self.time_of(frame)
        for column in self.columns:
            typed[column.name], exempt[column.name] = _typed(frame, column, time, breaches)
        readable = ~breaches.any
        result = pd.DataFrame(typed, columns=list(self.names), index=frame.index, copy=False)
        for rule in self.rules:
            # Called as they are: what pandera puts around a rule costs a single row ten times the rule.
            held = np.asarray(rule.holds(result if rule.whole_row else typed[rule.column]), dtype=bool)
            # A rule over several columns says nothing about a row that lacks one, or has one nobody can read.
            judged = readable if rule.whole_row else ~exempt[rule.column]
            breaches.add(rule.name, rule.column, rule.bound, ~held & judged)
        for name in self.unique:
            earlier = None if seen is None else seen.setdefault(name, set())
            repeated = _repeated(result[name], ~breaches.any, earlier)
            breaches.add(f"unique_{name}", name, f"one row for each {name}", repeated)
        # Either way a copy: what is done to the accepted rows is not done to the raw ones.
        result = result[~breaches.any] if breaches.any.any() else result.copy()
        other = {column.name: column.dtype for column in self.columns if typed[column.name].dtype != column.dtype}
        if other:
            result = result.astype(other)
        result.index = breaches.kept()
        self._prove(result)
        return Split(result, breaches.table())

    def table_schema(self) -> list[ColumnRow]:
        """Return the columns as plain rows, for a table of the schema."""
        rows = []
        for column in self.columns:
            words = [] if column.required else ["optional"]
            words += ["unique"] if column.name in self.unique else []
            words += [f"default {column.default}"] if column.default is not None else []
            words += [f"{rule.name}: {rule.bound}" for rule in self.rules if rule.column == column.name]
            nullable = column.nullable and column.default is None
            rows.append(ColumnRow(column.name, column.type, nullable, column.description, tuple(words)))
        return rows

    def describe(self) -> str:
        """Return the contract as a Markdown list."""
        return "\n".join(
            f"- **{row.name}** ({row.type}{', may be missing' if row.nullable else ''})"
            + (f": {row.description}" if row.description else "")
            + (f" [{'; '.join(row.constraints)}]" if row.constraints else "")
            for row in self.table_schema()
        )


def _checks(rules: Iterable[Rule], *, ignore_na: bool) -> list[tuple[Rule, Any]]:
    import pandera.pandas as pandera

    return [(rule, pandera.Check(rule.holds, name=rule.name, error=rule.bound, ignore_na=ignore_na)) for rule in rules]


def _typed(frame: pd.DataFrame, column: Column, time: TimeFormat, breaches: Breaches) -> tuple["pd.Series[Any]", Mask]:
    """Return a column of the frame as its type, and the mask of values that no rule can judge."""
    if column.name in frame.columns:
        values, unusable = coerce(frame[column.name], column.type, time)
    else:
        dtype = NULLABLE_DTYPES[column.type] if column.default is None else column.dtype
        values = pd.Series([column.default] * len(frame), index=frame.index, dtype=dtype)
        unusable = np.zeros(len(frame), dtype=bool)
    rule, bound = _TYPE_RULES[column.type]
    bound = time.bound if column.type == "time" else bound
    breaches.add(rule, column.name, bound, unusable & ~breaches.unreadable)
    missing = _missing(values)
    if column.default is not None:
        # The default stands in, so nothing is missing any more; an unusable value is refused already.
        values = values.fillna(column.default) if missing.any() else values
        return values, unusable | breaches.unreadable
    if not column.nullable:
        breaches.add("missing", column.name, "a value", missing & ~unusable & ~breaches.unreadable)
    return values, missing


def _missing(values: "pd.Series[Any]") -> Mask:
    if values.dtype == np.float64:
        gaps: Mask = np.isnan(values.to_numpy())
        return gaps
    return values.isna().to_numpy(dtype=bool)


def _repeated(values: "pd.Series[Any]", candidates: Mask, seen: set[Any] | None) -> Mask:
    chosen = values[candidates]
    repeated = chosen.duplicated(keep="first").to_numpy(dtype=bool)
    if seen is not None:
        repeated |= np.fromiter((value in seen for value in chosen), dtype=bool, count=len(chosen))
        seen.update(chosen[~repeated])
    result = np.zeros(len(values), dtype=bool)
    result[np.flatnonzero(candidates)[repeated]] = True
    return result


def refuse_duplicates(names: Iterable[str], *, where: str) -> None:
    """Raise a `UserError` if a column name occurs twice in ``where``."""
    names = list(names)
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(
            f"column names occur twice: {', '.join(map(repr, twice))}",
            where=where,
            remedy="rename one of them in the source; which one is meant cannot be guessed.",
        )


def closest(name: str, there: Iterable[str]) -> str | None:
    """Return the name ``there`` that is most like ``name``, case and punctuation aside; None if none is like it."""
    folded = {re.sub(r"[^a-z0-9]", "", other.lower()): other for other in there}
    close = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", name.lower()), folded, n=1, cutoff=0.5)
    return folded[close[0]] if close else None


def missing_column(name: str, there: Collection[str], *, where: str, source_name: str | None = None) -> UserError:
    """Return the error for a column that a table should have: what is there, the nearest name, the remedy."""
    mapped = f"{source_name!r} (mapped to {name!r})" if source_name not in (None, name) else repr(name)
    guess = closest(source_name or name, there)
    return UserError(
        f"column {mapped} is missing; the columns there are {', '.join(map(repr, there)) or 'none'}"
        + (f"; did you mean {guess!r}?" if guess else ""),
        where=where,
        remedy=f"map it in the spec: columns: {{{name}: {guess or '<its name in the source>'}}}.",
    )
