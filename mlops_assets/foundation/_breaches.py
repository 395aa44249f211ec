"""The rows that broke a rule: which, why, and what they held.

What belongs here: gathering breaches and writing them out as quarantined rows. What does not: judging rows
(`contracts.py`).
"""

import json
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.foundation._coercion import Mask

UNREADABLE = "__unreadable_line__"
"""Reserved raw column: the text of a line that its reader could not cut into fields, missing elsewhere."""

QUARANTINE_COLUMNS = ("row", "rule", "column", "value", "bound", "raw")

_VALUE_CHARACTERS = 500
_NOTHING = pd.DataFrame({name: [] for name in QUARANTINE_COLUMNS}, dtype=object).astype({"row": "int64"})


class Breaches:
    """Which row broke which rule, gathered column by column and written out once."""

    def __init__(self, frame: pd.DataFrame, first_row: int) -> None:
        self._frame = frame
        self._found: list[tuple[str, str, str, NDArray[np.intp]]] = []
        self._numbers = row_numbers(frame, first_row)
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
            return _NOTHING.copy()
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


def row_numbers(frame: pd.DataFrame, first_row: int) -> "pd.Index[Any]":
    """Return the number of each row in its source: the index, or the position where the index counts nothing."""
    if pd.api.types.is_integer_dtype(frame.index.dtype) and frame.index.is_unique:
        return frame.index.rename(None) + first_row
    return pd.RangeIndex(first_row, first_row + len(frame))


def _rows_as_json(frame: pd.DataFrame) -> list[str]:
    names = [name for name in frame.columns if name != UNREADABLE]
    columns = [[_cell(value) for value in frame[name]] for name in names]
    rows: list[dict[str, Any]] = [dict(zip(map(str, names), row, strict=True)) for row in zip(*columns, strict=True)]
    if UNREADABLE in frame.columns:
        rows = [
            {"line": line} if isinstance(line, str) else row for line, row in zip(frame[UNREADABLE], rows, strict=True)
        ]
    return [_storable(json.dumps(row, ensure_ascii=False)) for row in rows]


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
