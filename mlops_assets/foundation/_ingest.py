"""One time window out of a stream of raw chunks.

What belongs here: which rows a window owns, and applying a contract to them chunk by chunk. What does not: the contract
itself (`contracts.py`), and where the chunks come from (`sources.py`).
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from mlops_assets.foundation._breaches import row_numbers
from mlops_assets.foundation._coercion import DTYPES, Mask, TimeFormat, coerce, utc

if TYPE_CHECKING:
    # The contracts' module gives this one's public names, so at run time the import goes the other way.
    from mlops_assets.foundation.contracts import Contract


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
    contract: "Contract",
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
        known = moments.set_axis(row_numbers(frame, first_row))
        yield IngestBatch(
            split.accepted,
            split.quarantined.assign(source=where, time=known.reindex(split.quarantined["row"]).to_numpy()),
            int(outside.sum()),
            where,
        )


def _moments(
    frame: pd.DataFrame, contract: "Contract", window: tuple[datetime, datetime] | None
) -> tuple["pd.Series[Any]", Mask]:
    """Return when each row happened (missing where no window owns it) and the mask of other windows' rows."""
    name = contract.time_column
    none = np.zeros(len(frame), dtype=bool)
    if name is None or name not in frame.columns:
        return pd.Series(pd.NaT, index=frame.index, dtype=DTYPES["time"]), none
    moments, _ = coerce(frame[name], "time", contract.time_of(frame))
    for rule in contract.rules:
        if rule.column == name and not rule.whole_row:
            moments = moments.where(rule.holds(moments).to_numpy(dtype=bool))
    if window is None:
        return moments, none
    start, end = map(utc, window)
    return moments, ((moments < start) | (moments >= end)).to_numpy(dtype=bool)
