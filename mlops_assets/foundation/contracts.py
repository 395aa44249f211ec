"""What a table must look like, and what becomes of the rows that do not.

What belongs here: typed columns, row rules, the split of a raw frame into accepted and quarantined rows, and
the cut of a stream of chunks to one time window. What does not: where the raw rows come from (`sources`), and
the contracts of any one system.
"""

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mlops_assets.foundation.errors import UserError

Kind = Literal["text", "number", "integer", "flag", "time", "date"]
Mask = NDArray[np.bool_]

UNREADABLE = "__unreadable_line__"
"""Reserved raw column: the text of a line that its reader could not cut into fields, missing elsewhere."""

TIME_FORMAT = "time_format"
SOURCE_COLUMNS = "source_columns"

QUARANTINE_COLUMNS = ("row", "rule", "column", "value", "bound", "raw")

_DTYPES: dict[Kind, Any] = {
    "text": np.dtype("object"),
    "number": np.dtype("float64"),
    "integer": np.dtype("int64"),
    "flag": np.dtype("bool"),
    "time": pd.DatetimeTZDtype("ns", "UTC"),
    "date": np.dtype("datetime64[ns]"),
}
_NULLABLE_DTYPES: dict[Kind, Any] = {**_DTYPES, "integer": pd.Int64Dtype(), "flag": pd.BooleanDtype()}
# Rule name and bound of a value that cannot be read as its column's type.
_TYPE_RULES: dict[Kind, tuple[str, str]] = {
    "text": ("not_text", "text"),
    "number": ("not_a_number", "a finite number such as 12.5"),
    "integer": ("not_an_integer", "a whole number below 2^53"),
    "flag": ("not_a_flag", "0, 1, true, false, yes or no"),
    "time": ("not_a_time", "a time"),
    "date": ("not_a_date", "a date such as 2026-11-16, 2026-11 or 2026"),
}
EPOCH_UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""Nanoseconds in each unit of numbers since 1970."""
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_OFFSET = r"[0-9]{2}:[0-9]{2}.*([zZ]|[+-][0-9]{2}(:?[0-9]{2})?)$"
_EXACT_INTEGER = 2.0**53
_VALUE_CHARACTERS = 500


class TimeFormat(BaseModel):
    """How the times of a source are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit: str = Field(
        default="iso",
        description="`iso` for ISO 8601 text or real timestamps; `s`, `ms`, `us` or `ns` for numbers "
        "since 1970; else a strftime format such as `%d/%m/%Y %H:%M`.",
    )
    timezone: str = Field(
        default="UTC",
        description="IANA name of the zone of times that carry no offset, such as Europe/Stockholm.",
    )

    @field_validator("unit")
    @classmethod
    def _known_unit(cls, value: str) -> str:
        if value != "iso" and value not in EPOCH_UNITS and "%" not in value:
            msg = f"unknown time unit {value!r}; use iso, s, ms, us, ns or a strftime format such as %d/%m/%Y"
            raise ValueError(msg)
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            msg = f"unknown time zone {value!r}; use an IANA name such as Europe/Stockholm"
            raise ValueError(msg) from error
        return value

    @property
    def bound(self) -> str:
        """What a value must look like, in words."""
        if self.unit == "iso":
            return "a time such as 2026-11-16T08:30:00Z"
        if self.unit in EPOCH_UNITS:
            return f"a number of {self.unit} since 1970"
        return f"a time written as {self.unit}"


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
        return (_NULLABLE_DTYPES if self.nullable and self.default is None else _DTYPES)[self.type]


@dataclass(frozen=True)
class Rule:
    """One named condition that every accepted row meets.

    Parameters
    ----------
    name
        Snake case, says what broke or what must hold; shown with every quarantined row.
    column
        The column to blame.
    holds
        Vectorised: takes the typed column (the whole typed frame where ``whole_row``), returns a boolean
        series. A missing value is never judged by a column rule: that is the column's ``nullable``.
    bound
        The limit in words, such as ``0 to 1000000``.
    """

    name: str
    column: str
    holds: Callable[[Any], Any]
    bound: str
    whole_row: bool = False


def between(column: str, low: float, high: float, *, name: str | None = None) -> Rule:
    """Require ``low <= value <= high``."""
    bound = f"{low:g} to {high:g}"
    return Rule(name or f"{column}_in_range", column, lambda values: values.between(low, high), bound)


def not_before(column: str, moment: datetime, *, name: str | None = None) -> Rule:
    """Require a time at or after ``moment``; a moment without a zone is UTC."""
    limit = utc(moment)
    bound = f"from {limit.isoformat()}"
    return Rule(name or f"{column}_not_before", column, lambda values: _aware(values) >= limit, bound)


def not_after(column: str, moment: datetime, *, name: str | None = None) -> Rule:
    """Require a time at or before ``moment``; a moment without a zone is UTC."""
    limit = utc(moment)
    bound = f"until {limit.isoformat()}"
    return Rule(name or f"{column}_not_after", column, lambda values: _aware(values) <= limit, bound)


def max_length(column: str, characters: int, *, name: str | None = None) -> Rule:
    """Require text of at most ``characters`` characters."""
    return Rule(
        name or f"{column}_too_long",
        column,
        lambda values: _on_text(values, lambda text: pc.less_equal(pc.utf8_length(text), characters)),
        f"at most {characters} characters",
    )


def matches(column: str, pattern: str, *, bound: str, name: str | None = None) -> Rule:
    """Require text in which the RE2 ``pattern`` is found; ``bound`` says it in words."""
    return Rule(
        name or f"{column}_pattern",
        column,
        lambda values: _on_text(values, lambda text: pc.match_substring_regex(text, pattern)),
        bound,
    )


def one_line(column: str, characters: int, *, name: str | None = None) -> Rule:
    """Require at most ``characters`` characters and no line break, the mark of a quote that was never closed."""

    def holds(text: Any) -> Any:
        broken = pc.or_(pc.match_substring(text, "\n"), pc.match_substring(text, "\r"))
        return pc.and_not(pc.less_equal(pc.utf8_length(text), characters), broken)

    bound = f"one line of at most {characters} characters"
    return Rule(name or f"{column}_not_one_line", column, lambda values: _on_text(values, holds), bound)


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
            checks=[check for rule, check in self._checks if rule.whole_row],
            name=self.name,
            strict=True,
            ordered=True,
        )

    @cached_property
    def _checks(self) -> list[tuple[Rule, Any]]:
        return _checks(self.rules, ignore_na=False)

    @cached_property
    def _structure(self) -> Any:
        # The rules were judged row by row already; left to prove: names, order, dtypes, missing values.
        return replace(self, rules=(), unique=()).schema()

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
        breaches = _Breaches(frame, first_row)
        typed, exempt, time = {}, {}, self.time_of(frame)
        for column in self.columns:
            typed[column.name], exempt[column.name] = _typed(frame, column, time, breaches)
        readable = ~breaches.any
        result = pd.DataFrame(typed, columns=list(self.names), index=frame.index, copy=False)
        for rule, check in self._checks:
            subject = result if rule.whole_row else result[rule.column]
            held = np.asarray(check(subject).check_output, dtype=bool)
            # A rule over several columns says nothing about a row that lacks one, or has one nobody can read.
            judged = readable if rule.whole_row else ~exempt[rule.column]
            breaches.add(rule.name, rule.column, rule.bound, ~held & judged)
        for name in self.unique:
            earlier = None if seen is None else seen.setdefault(name, set())
            repeated = _repeated(result[name], ~breaches.any, earlier)
            breaches.add(f"unique_{name}", name, f"one row for each {name}", repeated)
        if breaches.any.any():
            result = result[~breaches.any]
        dtypes = {column.name: column.dtype for column in self.columns}
        result = result.astype({name: dtype for name, dtype in dtypes.items() if result[name].dtype != dtype})
        result.index = breaches.kept()
        # Not a copy, and without the accessor that pandera leaves on it, which refers back to the frame.
        result = self._structure.validate(result, inplace=True)
        vars(result).pop("pandera", None)
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


def _typed(
    frame: pd.DataFrame, column: Column, time: TimeFormat, breaches: "_Breaches"
) -> tuple["pd.Series[Any]", Mask]:
    """Return a column of the frame as its type, and the mask of values that no rule can judge."""
    if column.name in frame.columns:
        values, unusable = coerce(frame[column.name], column.type, time)
    else:
        dtype = _NULLABLE_DTYPES[column.type] if column.default is None else column.dtype
        values = pd.Series([column.default] * len(frame), index=frame.index, dtype=dtype)
        unusable = np.zeros(len(frame), dtype=bool)
    rule, bound = _TYPE_RULES[column.type]
    bound = time.bound if column.type == "time" else bound
    breaches.add(rule, column.name, bound, unusable & ~breaches.unreadable)
    missing = values.isna().to_numpy(dtype=bool)
    if column.default is not None:
        # The default stands in, so nothing is missing any more; an unusable value is refused already.
        values = values.fillna(column.default) if missing.any() else values
        return values, unusable | breaches.unreadable
    if not column.nullable:
        breaches.add("missing", column.name, "a value", missing & ~unusable & ~breaches.unreadable)
    return values, missing


class _Breaches:
    """Which row broke which rule, gathered column by column and written out once."""

    def __init__(self, frame: pd.DataFrame, first_row: int) -> None:
        self._frame = frame
        self._found: list[tuple[str, str, str, NDArray[np.intp]]] = []
        self._numbers = _row_numbers(frame, first_row)
        self.any: Mask = np.zeros(len(frame), dtype=bool)
        self.unreadable: Mask = np.zeros(len(frame), dtype=bool)
        if UNREADABLE in frame.columns:
            self.unreadable = frame[UNREADABLE].notna().to_numpy(dtype=bool)
            bound = "as many fields as the source has columns"
            self.add("unreadable_line", UNREADABLE, bound, self.unreadable)

    def add(self, rule: str, column: str, bound: str, broken: Mask) -> None:
        if broken.any():
            self.any |= broken
            self._found.append((rule, column, bound, np.flatnonzero(broken)))

    def kept(self) -> "pd.Index[Any]":
        return self._numbers[~self.any] if self.any.any() else self._numbers

    def table(self) -> pd.DataFrame:
        if not self._found:
            empty = {name: pd.Series(dtype="object") for name in QUARANTINE_COLUMNS}
            return pd.DataFrame(empty).astype({"row": "int64"})
        positions = np.flatnonzero(self.any)
        raw = np.empty(len(self._frame), dtype=object)
        raw[positions] = _rows_as_json(self._frame.iloc[positions])
        parts = [
            pd.DataFrame(
                {
                    "row": self._numbers.to_numpy(dtype=np.int64)[at],
                    "rule": rule,
                    "column": None if column == UNREADABLE else column,
                    "value": self._values(column, at),
                    "bound": bound,
                    "raw": raw[at],
                }
            ).astype({"column": object, "value": object})
            for rule, column, bound, at in self._found
        ]
        return pd.concat(parts, ignore_index=True).sort_values("row", kind="stable", ignore_index=True)

    def _values(self, column: str, at: NDArray[np.intp]) -> list[str | None]:
        if column not in self._frame.columns:
            return [None] * len(at)
        texts = [_cell(value) for value in self._frame[column].iloc[at]]
        return [None if text is None else _storable(str(text))[:_VALUE_CHARACTERS] for text in texts]


def _repeated(values: "pd.Series[Any]", candidates: Mask, seen: set[Any] | None) -> Mask:
    chosen = values[candidates]
    repeated = chosen.duplicated(keep="first").to_numpy(dtype=bool)
    if seen is not None:
        repeated |= np.fromiter((value in seen for value in chosen), dtype=bool, count=len(chosen))
        seen.update(chosen[~repeated])
    result = np.zeros(len(values), dtype=bool)
    result[np.flatnonzero(candidates)[repeated]] = True
    return result


def _rows_as_json(frame: pd.DataFrame) -> list[str]:
    names = [name for name in frame.columns if name != UNREADABLE]
    columns = [[_cell(value) for value in frame[name]] for name in names]
    rows: list[dict[str, Any]] = [dict(zip(map(str, names), row, strict=True)) for row in zip(*columns, strict=True)]
    if UNREADABLE in frame.columns:
        rows = [
            {"line": line} if isinstance(line, str) else row for line, row in zip(frame[UNREADABLE], rows, strict=True)
        ]
    return [_storable(json.dumps(row, ensure_ascii=False)) for row in rows]


def _row_numbers(frame: pd.DataFrame, first_row: int) -> "pd.Index[Any]":
    """Return the number of each row in its source: the index, or the position where the index counts nothing."""
    if pd.api.types.is_integer_dtype(frame.index.dtype) and frame.index.is_unique:
        return frame.index.rename(None) + first_row
    return pd.RangeIndex(first_row, first_row + len(frame))


def _cell(value: Any) -> str | int | float | bool | None:
    if isinstance(value, str):
        return value
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int) or (isinstance(value, float) and np.isfinite(value)):
        return value
    return str(value)


def _storable(text: str) -> str:
    # Half of a UTF-16 pair is legal in a Python string and fatal in Parquet.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


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


# ---- raw values to typed values


def utc(moment: datetime) -> pd.Timestamp:
    """Return a moment as a UTC timestamp; one without a zone is taken as UTC."""
    stamp = pd.Timestamp(moment)
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")


def coerce(values: "pd.Series[Any]", kind: Kind, time: TimeFormat | None = None) -> tuple["pd.Series[Any]", Mask]:
    """Read raw values as a type.

    Returns
    -------
    tuple
        The typed series (missing where nothing usable is there) and the mask of values that are there but
        cannot be read as ``kind``. Text that is blank is missing for every kind.
    """
    time = time or TimeFormat()
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    if kind == "text":
        return _to_text(values)
    if kind in ("time", "date") and pd.api.types.is_datetime64_any_dtype(values.dtype):
        return _finish_times(pd.DatetimeIndex(values), kind, ~values.isna().to_numpy(dtype=bool), time, values.index)
    numeric = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    if numeric and (kind in ("number", "integer") or (kind == "time" and time.unit in EPOCH_UNITS)):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        return _finish_numbers(numbers, ~values.isna().to_numpy(dtype=bool), kind, time, values.index)
    text, odd, _ = _arrow_text(values)
    present = np.asarray(pc.is_valid(text)) | odd
    if kind == "flag":
        typed, bad = _to_flags(text, values.index)
        return typed, bad | odd
    if kind in ("number", "integer") or (kind == "time" and time.unit in EPOCH_UNITS):
        return _finish_numbers(_parse_numbers(text), present, kind, time, values.index)
    return _finish_times(_parse_times(text, kind, time), kind, present, time, values.index)


def _arrow_text(values: "pd.Series[Any]") -> tuple[Any, Mask, bool]:
    """Return trimmed text with blanks as null, the mask of values no text stands for, and if nothing changed."""
    odd = np.zeros(len(values), dtype=bool)
    clean = values.dtype == object
    try:
        text = pa.array(values, type=pa.string(), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeError, OverflowError):
        pieces = [_as_text(value) for value in values]
        odd = np.fromiter((piece is Ellipsis for piece in pieces), dtype=bool, count=len(pieces))
        text = pa.array([None if piece is Ellipsis else piece for piece in pieces], type=pa.string())
        clean = False
    if isinstance(text, pa.ChunkedArray):
        text = text.combine_chunks()
    trimmed = pc.utf8_trim_whitespace(text)
    blank = pc.equal(pc.binary_length(trimmed), 0)
    if pc.any(blank).as_py():
        return pc.if_else(blank, None, trimmed), odd, False
    return trimmed, odd, clean and bool(trimmed.equals(text))


def _as_text(value: Any) -> Any:
    """Return the text of a scalar, None for a missing one, Ellipsis for no text at all (a list, broken bytes)."""
    if not pd.api.types.is_scalar(value):
        return ...
    if pd.isna(value):
        return None
    if isinstance(value, float | np.floating):
        return str(int(value)) if np.isfinite(value) and value == np.floor(value) else str(float(value))
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        text.encode("utf-8")
    except UnicodeError:
        return ...
    return text


def _to_text(values: "pd.Series[Any]") -> tuple["pd.Series[Any]", Mask]:
    if pd.api.types.is_integer_dtype(values.dtype):
        values = values.astype("Int64").astype("string").astype(object)
    text, odd, clean = _arrow_text(values)
    if not clean:
        return pd.Series(text.to_numpy(zero_copy_only=False), index=values.index, dtype=object), odd
    if text.null_count == 0:
        return values, odd
    objects = values.to_numpy(copy=True)
    objects[np.asarray(pc.is_null(text))] = None
    return pd.Series(objects, index=values.index, dtype=object), odd


def _to_flags(text: Any, index: "pd.Index[Any]") -> tuple["pd.Series[Any]", Mask]:
    found = pc.index_in(pc.utf8_lower(text), value_set=pa.array(list(_FLAGS)))
    at = found.fill_null(-1).to_numpy(zero_copy_only=False)
    present = np.asarray(pc.is_valid(text))
    words = np.array([*_FLAGS.values(), False])
    flags = pd.array(words[at], dtype="boolean")
    flags[at < 0] = pd.NA
    return pd.Series(flags, index=index), present & (at < 0)


def _parse_numbers(text: Any) -> NDArray[np.float64]:
    try:
        numbers = pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        plain = pc.replace_substring_regex(text, r"^\+", "")
        numbers = pc.cast(pc.if_else(pc.match_substring_regex(text, _NUMBER), plain, None), pa.float64())
    return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)


def _finish_numbers(
    numbers: NDArray[np.float64], present: Mask, kind: Kind, time: TimeFormat, index: "pd.Index[Any]"
) -> tuple["pd.Series[Any]", Mask]:
    usable = np.isfinite(numbers)
    if kind == "integer":
        usable &= (np.floor(numbers) == numbers) & (np.abs(numbers) < _EXACT_INTEGER)
        whole = pd.array(np.where(usable, numbers, 0).astype(np.int64), dtype="Int64")
        whole[~usable] = pd.NA
        return pd.Series(whole, index=index), present & ~usable
    if kind == "time":
        factor = EPOCH_UNITS[time.unit]
        usable &= np.abs(numbers) < pd.Timestamp.max.value / factor
        safe = np.where(usable, numbers, 0)
        whole_units = np.floor(safe)
        # Whole units and their rest apart: a float64 holds no nanoseconds since 1970.
        rest = np.rint((safe - whole_units) * factor).astype(np.int64)
        nanoseconds = whole_units.astype(np.int64) * factor + rest
        stamps = pd.DatetimeIndex(nanoseconds.astype("datetime64[ns]"), tz="UTC").where(usable)
        return pd.Series(stamps, index=index), present & ~usable
    return pd.Series(np.where(usable, numbers, np.nan), index=index), present & ~usable


# Times are worked on as an index: a series remembers its `.dt` in a cycle, which keeps every chunk in memory until
# the garbage collector happens to run.


def _parse_times(text: Any, kind: Kind, time: TimeFormat) -> pd.DatetimeIndex:
    iso = time.unit == "iso" or kind == "date"
    if iso:
        # The likelier cast first: a cast that fails costs as much as one that succeeds.
        zoned = pc.any(pc.match_substring_regex(text.slice(0, 100), _OFFSET)).as_py()
        for zone in ("UTC", None) if zoned else (None, "UTC"):
            try:
                return pd.DatetimeIndex(np.asarray(pc.cast(text, pa.timestamp("ns", zone)))).tz_localize(zone)
            except pa.ArrowInvalid:
                continue
        # pandas reads "today" as now and "2026" as New Year's Day; only a date may be that short.
        start = r"^[0-9]{4}" if kind == "date" else r"^[0-9]{4}-?[0-9]{2}-?[0-9]{2}"
        text = pc.if_else(pc.match_substring_regex(text, start), text, None)
    pattern = "ISO8601" if iso else time.unit
    strings = pd.Index(text.to_numpy(zero_copy_only=False), dtype=object)
    if kind == "date" or time.timezone == "UTC":
        return _to_utc(strings, pattern)
    offset = pc.fill_null(pc.match_substring_regex(text, _OFFSET), fill_value=False).to_numpy(zero_copy_only=False)
    absolute = _to_utc(strings.where(offset), pattern)
    naive = _to_utc(strings.where(~offset), pattern).tz_localize(None)
    return pd.DatetimeIndex(absolute.where(offset, _localise(naive, time)))


def _to_utc(strings: "pd.Index[Any]", pattern: str) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(pd.to_datetime(strings, format=pattern, errors="coerce", utc=True))


def _localise(naive: pd.DatetimeIndex, time: TimeFormat) -> pd.DatetimeIndex:
    # The hour that a clock change repeats is taken as summer time, the one it skips as the moment after.
    first = np.ones(len(naive), dtype=bool)
    zoned = naive.tz_localize(time.timezone, ambiguous=first, nonexistent="shift_forward")
    return zoned.tz_convert("UTC")


def _finish_times(
    stamps: pd.DatetimeIndex, kind: Kind, present: Mask, time: TimeFormat, index: "pd.Index[Any]"
) -> tuple["pd.Series[Any]", Mask]:
    low, high = pd.Timestamp.min.tz_localize("UTC"), pd.Timestamp.max.tz_localize("UTC")
    if stamps.tz is not None:
        stamps = stamps.tz_convert("UTC")
    elif kind == "date" or time.timezone == "UTC":
        stamps = stamps.tz_localize("UTC")
    else:
        stamps = _localise(stamps, time)
    if stamps.unit != "ns":
        # Microseconds reach far beyond 2262, nanoseconds do not: a year 9999 is a wrong value, not a crash.
        reachable = (stamps > low.as_unit("us")) & (stamps < high.as_unit("us"))
        stamps = pd.DatetimeIndex(stamps.where(reachable)).as_unit("ns")
    if kind == "date":
        stamps = stamps.tz_localize(None).normalize()
    return pd.Series(stamps, index=index), present & stamps.isna()


def _aware(values: "pd.Series[Any]") -> "pd.Series[Any]":
    return values if isinstance(values.dtype, pd.DatetimeTZDtype) else values.dt.tz_localize("UTC")


def _on_text(values: "pd.Series[Any]", test: Callable[[Any], Any]) -> "pd.Series[Any]":
    held = test(pa.array(values, type=pa.string(), from_pandas=True))
    return pd.Series(pc.fill_null(held, fill_value=True).to_numpy(zero_copy_only=False), index=values.index)


# ---- one window out of a stream of chunks


class TimeSlice(NamedTuple):
    """The rows of a window, the rows of other windows, and the rows that have no usable time."""

    inside: pd.DataFrame
    outside: pd.DataFrame
    untimed: pd.DataFrame


def time_slice(
    frame: pd.DataFrame, start: datetime, end: datetime, *, column: str, time: TimeFormat | None = None
) -> TimeSlice:
    """Separate the rows with ``start <= column < end`` from the others; the index is kept.

    ``column`` may be typed or raw (then ``time`` says how it is written).
    """
    moments, _ = coerce(frame[column], "time", time)
    untimed = moments.isna()
    inside = (moments >= utc(start)) & (moments < utc(end))
    return TimeSlice(frame[inside], frame[~inside & ~untimed], frame[untimed])


class IngestBatch(NamedTuple):
    """What one chunk of ``source`` brought: accepted and quarantined rows, and how many are of other windows.

    ``quarantined`` has the columns of `Split` and ``source`` (file or table) and ``time`` (UTC; missing where
    the row has no usable time, so that no window owns it).
    """

    accepted: pd.DataFrame
    quarantined: pd.DataFrame
    outside: int
    source: str


def ingest(
    chunks: Iterable[tuple[pd.DataFrame, int, str]],
    contract: Contract,
    window: tuple[datetime, datetime] | None = None,
) -> Iterator[IngestBatch]:
    """Apply a contract to a stream of raw chunks, cut to one time window.

    With a window ``(start, end)`` a row of another window is counted and left to it, whatever else is wrong
    with it. Rows that no window would own (no readable time, a time that breaks a rule such as "not in the
    future") are quarantined here. For every chunk, accepted + distinct quarantined + outside rows are its rows.

    Raises
    ------
    UserError
        As `Contract.split`; also if there is a window and the table has no time column.
    """
    seen: dict[str, set[Any]] = {}
    name = contract.time_column
    if window is not None and name is not None:
        contract = contract.with_required(name)
    for frame, first_row, where in chunks:
        contract.check_columns(frame, where=where)
        moments, outside = _moments(frame, contract, window)
        split = contract.split(frame[~outside], where=where, first_row=first_row, seen=seen)
        known = moments.set_axis(_row_numbers(frame, first_row))
        yield IngestBatch(
            split.accepted,
            split.quarantined.assign(source=where, time=known.reindex(split.quarantined["row"]).to_numpy()),
            int(outside.sum()),
            where,
        )


def _moments(
    frame: pd.DataFrame, contract: Contract, window: tuple[datetime, datetime] | None
) -> tuple["pd.Series[Any]", Mask]:
    """Return when each row happened (missing where no window owns it) and the mask of other windows' rows."""
    name = contract.time_column
    none = np.zeros(len(frame), dtype=bool)
    if name is None or name not in frame.columns:
        return pd.Series(pd.NaT, index=frame.index, dtype=_DTYPES["time"]), none
    moments, _ = coerce(frame[name], "time", contract.time_of(frame))
    for rule in contract.rules:
        if rule.column == name and not rule.whole_row:
            moments = moments.where(rule.holds(moments).to_numpy(dtype=bool))
    if window is None:
        return moments, none
    start, end = map(utc, window)
    return moments, ((moments < start) | (moments >= end)).to_numpy(dtype=bool)
