"""From raw cells to typed values: text, numbers, whole numbers, flags, times and dates.

What belongs here: how a value is read as a type, whatever form it has. What does not: which type a column has, and what
becomes of a row with a value that cannot be read (`contracts.py`).
"""

from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

Kind = Literal["text", "number", "integer", "flag", "time", "date"]
Mask = NDArray[np.bool_]

DTYPES: dict[Kind, Any] = {
    "text": np.dtype("object"),
    "number": np.dtype("float64"),
    "integer": np.dtype("int64"),
    "flag": np.dtype("bool"),
    "time": pd.DatetimeTZDtype("ns", "UTC"),
    "date": np.dtype("datetime64[ns]"),
}
NULLABLE_DTYPES: dict[Kind, Any] = {**DTYPES, "integer": pd.Int64Dtype(), "flag": pd.BooleanDtype()}
EPOCH_UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""Nanoseconds in each unit of numbers since 1970."""
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_OFFSET = r"[T ][0-9]{2}.*([zZ]|[+-][0-9]{2}(:?[0-9]{2})?)$"
_EXACT_INTEGER = 2.0**53


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
        present = ~np.isnan(numbers) if values.dtype == np.float64 else ~values.isna().to_numpy(dtype=bool)
        return _finish_numbers(numbers, present, kind, time, values.index)
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
    # Apart: pandas gives a time without an offset the offset of the one before it (2.3, measured).
    offset = pc.fill_null(pc.match_substring_regex(text, _OFFSET), fill_value=False).to_numpy(zero_copy_only=False)
    absolute, local = _to_utc(strings.where(offset), pattern), _to_utc(strings.where(~offset), pattern)
    if kind != "date" and time.timezone != "UTC":
        local = _localise(local.tz_localize(None), time)
    return pd.DatetimeIndex(absolute.where(offset, local))


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
