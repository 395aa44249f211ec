"""Frames on their way into temporary tables.

What belongs here: putting raw frames below each other, reading their ids, and writing them with declared texts. What
does not: what the rows mean (`_staging.py`, `outcomes_feed.py`, `protected.py`).
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk.contracts import TEXT_CHARACTERS
from mlops_assets.foundation.contracts import coerce
from mlops_assets.foundation.resources import Tables


def together(frames: Sequence[pd.DataFrame], numbers: Collection[str]) -> pd.DataFrame:
    """Return frames below each other; a column that one lacks is missing there."""
    if len(frames) == 1:
        return frames[0]
    names = list(dict.fromkeys(str(name) for frame in frames for name in frame.columns))
    parts: dict[str, Any] = {name: [] for name in names}
    for frame in frames:
        for name in names:
            there = name in frame.columns
            parts[name].append(frame[name].to_numpy(dtype=object) if there else np.full(len(frame), None, dtype=object))
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    together = pd.DataFrame({name: _compact(each) if name in numbers else each for name, each in whole.items()})
    together.attrs = frames[0].attrs
    return together


def _compact(values: "np.ndarray[Any, np.dtype[np.object_]]") -> Any:
    """Return plain numbers as such: reading them one by one as text takes a hundred times as long."""
    kinds = set(map(type, values))
    if kinds <= {int, float, type(None)} and kinds - {type(None)}:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return values


def ids_of(frame: pd.DataFrame) -> "pd.Series[Any]":
    """Return the ids of raw rows as text, none longer than an id may be."""
    ids, _ = coerce(frame["application_id"], "text")
    return ids.map(lambda value: value[:TEXT_CHARACTERS] if isinstance(value, str) else None)


def append_texts(tables: Tables, table: str, frame: pd.DataFrame) -> None:
    """Add rows; texts are declared as such, for a column of nothing has no type that could be guessed."""
    texts = [name for name in frame.columns if frame[name].dtype == object]
    tables.append(table, frame.astype(dict.fromkeys(texts, pd.StringDtype())))
