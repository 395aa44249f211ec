"""Periods and moments of a credit model: when a period begins and ends, and which one a moment lies in.

What belongs here: the arithmetic between keys of periods and moments in UTC. What does not: asset partitions
(`names.py`) and which rows belong to a period (`ingestion.py`).
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd

from mlops_assets.credit_risk.spec import Spec


def window_of(spec: Spec, first: str, last: str) -> tuple[datetime, datetime]:
    """Return the start of the first period and the end of the last one, in UTC."""
    start, end = (
        # Where clocks change at midnight, a day may have no midnight, or two.
        pd.Timestamp(day).tz_localize(spec.periods.timezone, ambiguous=True, nonexistent="shift_forward")
        for day in (first, spec.periods.shift(last, 1))
    )
    return start.tz_convert("UTC").to_pydatetime(), end.tz_convert("UTC").to_pydatetime()


def end_of(spec: Spec, as_of: datetime | str) -> datetime:
    """Return a moment in UTC: the end of the period with this key, or the moment itself."""
    if isinstance(as_of, str):
        return window_of(spec, as_of, as_of)[1]
    return as_of.replace(tzinfo=UTC) if as_of.tzinfo is None else as_of.astimezone(UTC)


def period_of(spec: Spec, moments: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the first day of the period that each moment (UTC) lies in, as a naive midnight; missing stays missing."""
    local: pd.Series[Any] = moments.dt.tz_convert(spec.periods.timezone).dt.tz_localize(None).dt.normalize()
    if spec.periods.cadence == "weekly":
        local -= pd.to_timedelta(local.dt.weekday, unit="D")
    if spec.periods.cadence == "monthly":
        local -= pd.to_timedelta(local.dt.day - 1, unit="D")
    return local


def key_of(day: date) -> str:
    """Return the key of the period whose first day this is."""
    return day.strftime("%Y-%m-%d")


def iter_periods(spec: Spec, first: str, last: str) -> Iterator[str]:
    """Yield the keys from ``first`` to ``last``, both included."""
    period = first
    while period <= last:
        yield period
        period = spec.periods.shift(period, 1)


def utc_naive(moment: datetime) -> datetime:
    """Return a moment as tables keep it: in UTC, without a zone."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
