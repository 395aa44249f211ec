"""Named conditions on the values of a column or on whole rows, and the common ones ready-made.

What belongs here: conditions that any table may need. What does not: when they are judged, and on which rows
(`contracts.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlops_assets.foundation._coercion import utc


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
        lambda values: on_text(values, lambda text: pc.less_equal(pc.utf8_length(text), characters)),
        f"at most {characters} characters",
    )


def matches(column: str, pattern: str, *, bound: str, name: str | None = None) -> Rule:
    """Require text in which the RE2 ``pattern`` is found; ``bound`` says it in words."""
    return Rule(
        name or f"{column}_pattern",
        column,
        lambda values: on_text(values, lambda text: pc.match_substring_regex(text, pattern)),
        bound,
    )


def one_line(column: str, characters: int, *, name: str | None = None) -> Rule:
    """Require at most ``characters`` characters and no line break, the mark of a quote that was never closed."""

    def holds(text: Any) -> Any:
        broken = pc.or_(pc.match_substring(text, "\n"), pc.match_substring(text, "\r"))
        return pc.and_not(pc.less_equal(pc.utf8_length(text), characters), broken)

    bound = f"one line of at most {characters} characters"
    return Rule(name or f"{column}_not_one_line", column, lambda values: on_text(values, holds), bound)


def _aware(values: "pd.Series[Any]") -> "pd.Series[Any]":
    return values if isinstance(values.dtype, pd.DatetimeTZDtype) else values.dt.tz_localize("UTC")


def on_text(values: "pd.Series[Any]", test: Callable[[Any], Any]) -> "pd.Series[Any]":
    """Return what a test on an Arrow array of text says of each value; a missing one holds."""
    held = test(pa.array(values, type=pa.string(), from_pandas=True))
    return pd.Series(pc.fill_null(held, fill_value=True).to_numpy(zero_copy_only=False), index=values.index)
