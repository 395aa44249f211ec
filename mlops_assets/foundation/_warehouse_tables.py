"""A table of the warehouse as a stream of raw rows under canonical names.

What belongs here: the query. What does not: the connection (`resources.py`).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Protocol

import pandas as pd

from mlops_assets.foundation._source_blocks import TABLE_PART, Scalar, TableSource, source_columns
from mlops_assets.foundation.contracts import EPOCH_UNITS, SOURCE_COLUMNS, TimeFormat, utc

Chunk = tuple[pd.DataFrame, int, str]

_PLAIN_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_$]*$")


class Streams(Protocol):
    """What a table source needs of a warehouse."""

    def stream(self, sql: str, rows: int) -> Iterator[pd.DataFrame]:
        """Yield the rows of a query in frames of at most ``rows`` rows."""
        ...


def read_table(
    source: TableSource,
    needed: Sequence[str],
    chunk_rows: int,
    window: tuple[datetime, datetime] | None,
    time_column: str | None,
    warehouse: Streams,
) -> Iterator[Chunk]:
    """Yield the rows that meet ``where``, near the window where there is one, as `sources.read` does."""
    table = _quoted_table(source.table)
    # The outer join gives a row of nothing for an empty table, and with it the names of its columns.
    first = f"select t.* from (select 1 as one) as o left join {table} as t on 1 = 1 limit 1"
    (probe,) = warehouse.stream(first, 1)
    there = [str(name) for name in probe.columns]
    # A warehouse that folds unquoted names to upper case still finds user_id.
    folded = {name.lower(): name for name in there}
    source = source.model_copy(
        update={
            "columns": {name: folded.get(column.lower(), column) for name, column in source.columns.items()},
            "where": {folded.get(name.lower(), name): value for name, value in source.where.items()},
        }
    )
    own = {name: folded[name.lower()] for name in needed if name not in source.columns and name.lower() in folded}
    found = {**own, **source_columns(source, needed, there, source.table)}
    conditions = [_condition(name, value) for name, value in source.where.items()]
    if window is not None and time_column in found and found[time_column] in probe:
        conditions += _near(window, probe[found[time_column]], source.time)
    picked = ", ".join(f"{_quoted(found[name])} as {_quoted(name)}" for name in needed if name in found)
    sql = f"select {picked or 'null as nothing'} from {table}"
    sql += f" where {' and '.join(conditions)}" if conditions else ""
    row = 1
    for frame in _or_empty(warehouse.stream(sql, chunk_rows), [name for name in needed if name in found]):
        frame.attrs[SOURCE_COLUMNS] = there
        yield frame, row, source.table
        row += len(frame)


def _or_empty(frames: Iterable[pd.DataFrame], columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    empty = True
    for frame in frames:
        empty = False
        yield frame
    if empty:
        yield pd.DataFrame({name: pd.Series(dtype=object) for name in columns})


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted_table(name: str) -> str:
    parts = re.findall(TABLE_PART, name)
    return ".".join(part if part.startswith('"') or _PLAIN_IDENTIFIER.match(part) else _quoted(part) for part in parts)


def _literal(value: Scalar) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _condition(name: str, value: Scalar | tuple[Scalar, ...]) -> str:
    if isinstance(value, tuple):
        return f"{_quoted(name)} in ({', '.join(map(_literal, value))})"
    return f"{_quoted(name)} = {_literal(value)}"


def _near(window: tuple[datetime, datetime], example: "pd.Series[Any]", time: TimeFormat) -> list[str]:
    """Return a condition that every row of the window meets, and every row without a time.

    There is none for times kept as text: the warehouse would fail at the first one that it cannot read.
    """
    # A day on either side: which zone the warehouse takes a time without offset to be in does not matter then.
    start, end = utc(window[0]) - timedelta(days=1), utc(window[1]) + timedelta(days=1)
    if pd.api.types.is_numeric_dtype(example.dtype) and time.unit in EPOCH_UNITS:
        low, high = (str(moment.value // EPOCH_UNITS[time.unit]) for moment in (start, end))
    elif pd.api.types.is_datetime64_any_dtype(example.dtype) or isinstance(example.iloc[0], date):
        low, high = (f"cast('{moment:%Y-%m-%d %H:%M:%S}' as timestamp)" for moment in (start, end))
    else:
        return []
    name = _quoted(str(example.name))
    return [f"(({name} >= {low} and {name} < {high}) or {name} is null)"]
