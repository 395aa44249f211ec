"""Raw applications from their source: numbered, with the protected attributes taken out first.

What belongs here: which rows a period's delivery holds, the split of every row into protected attributes and the rest,
and the rest as canonical JSON. What does not: what a row must look like (`contracts.py`) and what becomes of it
(`ingestion.py`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import window_of
from mlops_assets.foundation.contracts import (
    SOURCE_COLUMNS,
    TIME_FORMAT,
    UNREADABLE,
    Contract,
    TimeFormat,
    coerce,
    missing_column,
)
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.foundation.sources import FilesSource, SampleSource, Source, TableSource, read

if TYPE_CHECKING:
    from mlops_assets.samples.lending import LendingWorld

PERIOD = "{period}"
LONGEST_CELL = 10_000
"""Characters of a cell that are kept; what is longer is no value, and is told by its length and hash."""

_KEPT = 1_000


@dataclass(frozen=True)
class Delivery:
    """Raw applications of one source, in a chunk.

    Parameters
    ----------
    frame
        Raw values under canonical names, without protected attributes; index 0 to n - 1.
    rows
        (n,) Numbers of the rows in the source.
    protected
        ``application_id`` and the protected attributes, raw; None where they come from elsewhere.
    owner
        The period that the source is a delivery of; None where rows are cut by their time.
    unknown_columns
        Columns of the source that nobody asked for.
    """

    frame: pd.DataFrame
    source: str
    rows: NDArray[np.int64]
    protected: pd.DataFrame | None
    owner: str | None
    unknown_columns: tuple[str, ...] = ()


def canonical_columns(spec: Spec) -> list[str]:
    """Return the columns of an application, without protected attributes."""
    names = [] if spec.data.numbered else ["application_id"]
    names += ["applicant_id", "applied_at", *spec.features]
    return [*names, "code_list_version"] if spec.data.code_list_version is not None else names


def deliveries(spec: Spec, periods: Sequence[str], warehouse: Warehouse, contract: Contract) -> Iterator[Delivery]:
    """Yield the raw applications of these periods; a source without ``{period}`` yields its other rows too.

    Raises
    ------
    UserError
        The source cannot be read, or lacks a required column.
    """
    own = canonical_columns(spec)
    named: dict[str, str] = {}
    inline = list(spec.protected_names) if protected_inline(spec) else []
    for frame, first_row, source, owner in _chunks(spec, periods, warehouse, [*own, *inline]):
        required = own if spec.data.numbered else ["application_id", *own]
        _require(contract, frame, required, source)
        used = {name.casefold() for name in _used(spec.data.applications, [*own, *inline, *_elsewhere(spec)])}
        there = frame.attrs.get(SOURCE_COLUMNS, ())
        rows = frame.index.to_numpy(dtype=np.int64) + first_row
        frame = frame.reset_index(drop=True)  # noqa: PLW2901
        if spec.data.numbered:
            named = _one_source_a_name(named, source)
            frame.insert(0, "application_id", numbered_ids(spec, source, rows))
        frame, protected = separated(spec, frame)  # noqa: PLW2901
        yield Delivery(
            frame, source, rows, protected, owner, tuple(name for name in there if name.casefold() not in used)
        )


def separated(spec: Spec, frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Return raw rows without their protected attributes, and these by application; None where they are elsewhere."""
    protected = None
    if protected_inline(spec):
        inline = spec.protected_names
        protected = frame[["application_id", *(name for name in inline if name in frame.columns)]] if inline else None
        frame = _unnamed(_without(frame, inline)) if inline else frame
    kept = [name for name in ("application_id", *canonical_columns(spec), UNREADABLE) if name in frame.columns]
    return bounded(frame.loc[:, list(dict.fromkeys(kept))]), protected


def protected_inline(spec: Spec) -> bool:
    """Tell whether the protected attributes are columns of the applications."""
    return spec.data.protected is None or isinstance(spec.data.protected, SampleSource)


def _elsewhere(spec: Spec) -> list[str]:
    """Return columns of the applications' source that are read by the outcomes' feed."""
    return [] if spec.data.outcomes is not None else ["outcome", "outcome_at"]


def _chunks(
    spec: Spec, periods: Sequence[str], warehouse: Warehouse, columns: Sequence[str]
) -> Iterator[tuple[pd.DataFrame, int, str, str | None]]:
    source = spec.data.applications
    if isinstance(source, SampleSource):
        yield from sample_days(spec, source, periods, lambda world, day: world.applications(day), "applications")
        return
    needed = list(dict.fromkeys([*columns, *_elsewhere(spec)]))
    for block, owner in by_period(source, periods):
        window = window_of(spec, periods[0], periods[-1]) if spec.data.timed and owner is None else None
        only = owner if owner is not None or spec.data.timed else periods[0]
        for frame, first_row, where in read(
            block, needed, window=window, time_column="applied_at", warehouse=warehouse, base=spec.base
        ):
            # The outcome is no part of an application: it was not known when it was made.
            yield _without(frame, _elsewhere(spec)), first_row, where, only


def by_period(
    source: FilesSource | TableSource, periods: Sequence[str]
) -> Iterator[tuple[FilesSource | TableSource, str | None]]:
    """Yield the source of each period where its path names one, or else the source of all."""
    if isinstance(source, FilesSource):
        paths = [source.path] if isinstance(source.path, str) else list(source.path)
        if any(PERIOD in path for path in paths):
            for period in periods:
                of_period = tuple(path.replace(PERIOD, period) for path in paths)
                yield source.model_copy(update={"path": of_period}), period
            return
    yield source, None


def sample_world(spec: Spec, source: Source) -> "LendingWorld":
    """Return the seeded loan book that a sample source describes."""
    from mlops_assets.samples.lending import LendingWorld

    if not isinstance(source, SampleSource):
        raise UserError(f"{source.kind} is no sample source", where=spec.name, remedy="use kind: sample.")
    if spec.periods.timezone != "UTC":
        raise UserError(
            f"the sample world's days are of UTC, not of {spec.periods.timezone}",
            where=f"{spec.name}: periods.timezone",
            remedy="set it to UTC, or read data of your own.",
        )
    settings = {"start": spec.periods.start, "maturity_days": spec.target.maturity_days, **source.parameters}
    return LendingWorld(**settings)


def sample_days(
    spec: Spec,
    source: SampleSource,
    periods: Sequence[str],
    frame_of: "Callable[[LendingWorld, int], pd.DataFrame]",
    what: str,
) -> Iterator[tuple[pd.DataFrame, int, str, str | None]]:
    """Yield what the sample world delivers on each day of these periods; nothing before its first day."""
    world = sample_world(spec, source)
    for period in periods:
        end = date.fromisoformat(spec.periods.shift(period, 1))
        for day in range((date.fromisoformat(period) - world.start).days, (end - world.start).days):
            if day >= 0:
                yield frame_of(world, day), 1, f"sample {what} of {world.date_of(day)}", period


def _require(contract: Contract, frame: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    """Raise a `UserError` that names every missing column, what is expected in the first, and what is there."""
    kinds = {column.name: column.type for column in contract.columns}
    missing = [name for name in contract.required if name in columns and name not in frame.columns]
    if not missing:
        return
    there = frame.attrs.get(SOURCE_COLUMNS) or [str(name) for name in frame.columns if name != UNREADABLE]
    error = missing_column(missing[0], list(there), where=where)
    more = f"; also missing: {', '.join(map(repr, missing[1:]))}" if len(missing) > 1 else ""
    raise UserError(f"{error.what}; a {kinds[missing[0]]} is expected{more}", where=where, remedy=error.remedy)


def _used(source: Source, names: Iterable[str]) -> set[str]:
    if isinstance(source, SampleSource):
        return set(names)
    return {source.columns.get(name, name) for name in names} | set(source.where)


def _one_source_a_name(named: Mapping[str, str], source: str) -> dict[str, str]:
    """Return which file has which name, or raise a `UserError` where two have the same: so would their rows."""
    name = PurePosixPath(source).name
    other = named.get(name, source)
    if other != source:
        raise UserError(
            f"is called {name} like {other}, so their rows would get the same ids",
            where=source,
            remedy="give the files different names, or a column application_id and leave data.numbered out.",
        )
    return {**named, name: source}


def numbered_ids(spec: Spec, source: str, rows: NDArray[np.int64]) -> list[str]:
    """Return the ids of rows that carry none: file and row.

    Raises
    ------
    UserError
        The rows are those of a table, which have no order to be counted in.
    """
    if isinstance(spec.data.applications, TableSource):
        raise UserError(
            f"rows of the table {source} cannot be numbered: a table has no order",
            where=f"{spec.name}: data.numbered",
            remedy="give the table a column application_id, and leave data.numbered out.",
        )
    name = PurePosixPath(source).name
    return [f"{name}:{row}" for row in rows.tolist()]


def _without(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return frame.drop(columns=[name for name in names if name in frame.columns])


def _unnamed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame without the texts of lines that could not be cut: a protected attribute may be in them."""
    if UNREADABLE not in frame.columns:
        return frame
    lines = [_told(line) if isinstance(line, str) else None for line in frame[UNREADABLE]]
    return frame.assign(**{UNREADABLE: pd.Series(lines, index=frame.index, dtype=object)})


def _told(text: str) -> str:
    return f"[a line of {len(text):,} characters, not shown, sha256 {_sha(text)}]"


def _sha(text: str) -> str:
    return sha256_hex(text.encode("utf-8", "surrogatepass"))


def bounded(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with cells of more than `LONGEST_CELL` characters cut, their length and hash told."""
    copy = frame.copy(deep=False)
    for name in frame.columns:
        if frame[name].dtype == object:
            values = frame[name].to_numpy()
            at = [i for i, value in enumerate(values) if isinstance(value, str) and len(value) > LONGEST_CELL]
            if at:
                cut = values.copy()
                for i in at:
                    text = values[i]
                    cut[i] = f"{text[:_KEPT]} … [{len(text):,} characters, sha256 {_sha(text)}]"
                copy[name] = cut
    return copy


def payloads(frame: pd.DataFrame) -> list[str]:
    """Return each raw row as canonical JSON; a line that could not be cut is its text alone.

    Ids are text, and a time that is not ISO 8601 text is written so, in UTC: a payload tells all by itself, without its
    source's types and formats.
    """
    frame = frame.assign(
        **{name: _id_texts(frame[name]) for name in ("application_id", "applicant_id") if name in frame}
    )
    if "applied_at" in frame.columns:
        frame = frame.assign(applied_at=_iso_times(frame))
    names = [str(name) for name in frame.columns if name != UNREADABLE]
    columns = [[_cell(value) for value in frame[name].tolist()] for name in names]
    rows: Iterable[Mapping[str, Any]] = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    if UNREADABLE in frame.columns:
        lines = frame[UNREADABLE].tolist()
        rows = (
            {"unreadable_line": _cell(line)} if isinstance(line, str) else row
            for line, row in zip(lines, rows, strict=True)
        )
    return [canonical_json(row).decode() for row in rows]


def _id_texts(raw: "pd.Series[Any]") -> "pd.Series[Any]":
    if all(value is None or isinstance(value, str) for value in raw):
        return raw
    return coerce(raw, "text")[0]


def _iso_times(frame: pd.DataFrame) -> "pd.Series[Any]":
    raw = frame["applied_at"]
    time = TimeFormat.model_validate(frame.attrs[TIME_FORMAT]) if TIME_FORMAT in frame.attrs else TimeFormat()
    if time == TimeFormat() and all(value is None or isinstance(value, str) for value in raw):
        return raw
    moments, _ = coerce(raw, "time", time)
    texts = [
        value if pd.isna(moment) else moment.isoformat() for value, moment in zip(raw.tolist(), moments, strict=True)
    ]
    return pd.Series(texts, index=frame.index, dtype=object)


def _cell(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        # Half of a UTF-16 pair is legal in a Python string, but neither in UTF-8 nor in a table.
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, datetime | date):
        return None if pd.isna(value) else value.isoformat()
    if isinstance(value, np.generic):
        return _cell(value.item())
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)
