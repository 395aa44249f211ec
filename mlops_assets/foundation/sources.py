"""Where raw rows come from: files here or on S3, a table of the warehouse, or a seeded sample.

What belongs here: reading a source in chunks of raw rows under canonical column names, in bounded memory, and what a
block of files makes of them (lookups, replacements, joined rows). What does not: the blocks (`_source_blocks.py`),
finding and opening files (`_source_paths.py`, `_file_tables.py`, `_delimited_text.py`), queries
(`_warehouse_tables.py`), what a value must look like (`contracts`), and the sample worlds.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from mlops_assets.foundation._file_tables import tables_of
from mlops_assets.foundation._source_blocks import (
    Aggregate,
    FilesSource,
    Format,
    Lookup,
    SampleSource,
    Scalar,
    Source,
    TableSource,
    check_mapping,
    source_columns,
)
from mlops_assets.foundation._source_paths import expand, resolve
from mlops_assets.foundation._warehouse_tables import Chunk, Streams, read_table
from mlops_assets.foundation.contracts import SOURCE_COLUMNS, TIME_FORMAT, UNREADABLE, Mask, missing_column
from mlops_assets.foundation.errors import UserError

__all__ = [
    "Aggregate",
    "Chunk",
    "FilesSource",
    "Format",
    "Lookup",
    "SampleSource",
    "Scalar",
    "Source",
    "Streams",
    "TableSource",
    "expand",
    "read",
    "resolve",
]

_log = logging.getLogger(__name__)


def read(
    source: FilesSource | TableSource,
    columns_needed: Sequence[str],
    *,
    chunk_rows: int = 200_000,
    window: tuple[datetime, datetime] | None = None,
    time_column: str | None = None,
    warehouse: Streams | None = None,
    base: Path | UPath | None = None,
) -> Iterator[Chunk]:
    """Read a source in chunks of raw rows, in memory that does not grow with its size.

    Parameters
    ----------
    columns_needed
        Canonical columns to read; one that the source has not is left out, unless the block maps it.
    window, time_column
        Lets a table send only rows near ``(start, end)`` or without a time; exact cutting is up to
        `contracts.ingest`. Files are read whole.
    base
        Folder that relative paths start from.

    Yields
    ------
    tuple
        Raw rows, the number in the source of the row with index 0, and the file or table. Values of text files are
        text, missing where empty. Row numbers are those a spreadsheet shows: the first row is 1, or 2 below a
        header; empty lines are not counted. A line that cannot be cut into fields is a row whose only value is its
        text, in the column ``contracts.UNREADABLE``.

    Raises
    ------
    UserError
        The source cannot be found, opened or decoded, or lacks a column that the block names.
    """
    check_mapping(source, columns_needed)
    if isinstance(source, TableSource):
        if warehouse is None:
            msg = "a table source needs a warehouse"
            raise ValueError(msg)
        chunks = read_table(source, columns_needed, chunk_rows, window, time_column, warehouse)
    else:
        chunks = _read_files(source, columns_needed, chunk_rows, base or Path())
    for frame, first_row, where in chunks:
        frame.attrs[TIME_FORMAT] = source.time.model_dump()
        yield frame, first_row, where


def _read_files(source: FilesSource, needed: Sequence[str], chunk_rows: int, base: Path | UPath) -> Iterator[Chunk]:
    if source.aggregate is not None:
        needed = [source.aggregate.by, source.aggregate.join]
    chunks = _canonical_chunks(source, needed, chunk_rows, base)
    chunks = _looked_up(chunks, source, chunk_rows, base)
    if source.aggregate is not None:
        chunks = _aggregated(chunks, source.aggregate, chunk_rows, f"{source.path}, joined by {source.aggregate.by}")
    for frame, first_row, where in chunks:
        for column, texts in source.replace.items():
            if column in frame.columns:
                frame[column] = _replaced(frame[column], texts)
        yield frame, first_row, where


def _canonical_chunks(
    source: FilesSource, needed: Sequence[str], chunk_rows: int, base: Path | UPath
) -> Iterator[Chunk]:
    for path in resolve(source, base):
        found: dict[str, str] = {}

        def choose(there: Sequence[str], path: UPath = path, found: dict[str, str] = found) -> list[str]:
            found.update(source_columns(source, needed, there, str(path)))
            return sorted({*found.values(), *source.where})

        for table, there, first_row in tables_of(path, source, choose, chunk_rows):
            frame = _canonical_frame(table, found)
            if source.where:
                frame = frame[_kept(table, source.where)]
            frame.attrs[SOURCE_COLUMNS] = list(there)
            yield frame, first_row, str(path)


def _canonical_frame(table: pa.Table, found: Mapping[str, str]) -> pd.DataFrame:
    columns = {name: _to_pandas(table[source]) for name, source in found.items()}
    if UNREADABLE in table.column_names:
        columns[UNREADABLE] = _to_pandas(table[UNREADABLE])
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows), copy=False)


def _to_pandas(values: pa.ChunkedArray) -> "pd.Series[Any]":
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_list(values.type) and pa.types.is_string(values.type.value_type):
        # A list of tags is the same as tags in one text.
        return pd.Series(
            [None if v is None else " ".join(t.replace(" ", "_") for t in v if t) for v in values.to_pylist()]
        )
    # Integers with gaps would become floats, and an id 7 the text 7.0.
    integers = {pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype()}
    integers |= {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype(), pa.bool_(): pd.BooleanDtype()}
    series: pd.Series[Any] = values.to_pandas(types_mapper=integers.get if values.null_count else None)
    return series


def _equal(values: pa.ChunkedArray, wanted: Scalar | tuple[Scalar, ...]) -> Mask:
    texts = [_as_text(each) for each in (wanted if isinstance(wanted, tuple) else (wanted,))]
    kept = pc.is_in(pc.cast(values, pa.string()), value_set=pa.array(texts, type=pa.string()))
    return np.asarray(kept, dtype=bool)


def _kept(table: pa.Table, where: Mapping[str, Scalar | tuple[Scalar, ...]]) -> Mask:
    kept = np.logical_and.reduce([_equal(table[name], value) for name, value in where.items()])
    if UNREADABLE in table.column_names:
        kept |= np.asarray(pc.is_valid(table[UNREADABLE]), dtype=bool)
    return np.asarray(kept, dtype=bool)


def _as_text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _replaced(values: "pd.Series[Any]", texts: Mapping[str, str]) -> "pd.Series[Any]":
    text = pa.array(values.astype(object), type=pa.string(), from_pandas=True)
    for old, new in texts.items():
        text = pc.replace_substring(text, old, new)
    return pd.Series(text.to_numpy(zero_copy_only=False), index=values.index, dtype=object)


def _looked_up(chunks: Iterator[Chunk], source: FilesSource, chunk_rows: int, base: Path | UPath) -> Iterator[Chunk]:
    tables = [(lookup, _names_of(lookup, source, chunk_rows, base)) for lookup in source.lookups]
    for frame, first_row, where in chunks:
        for lookup, names in tables:
            if lookup.column in frame.columns:
                codes = frame[lookup.column]
                found = codes.map(names)
                unknown = codes[found.isna() & codes.notna()]
                if len(unknown):
                    example = unknown.iloc[0]
                    _log.warning("%s: %d codes are not in %s, such as %r", where, len(unknown), lookup.path, example)
                frame[lookup.column] = found.fillna(codes)
        yield frame, first_row, where


def _names_of(lookup: Lookup, source: FilesSource, chunk_rows: int, base: Path | UPath) -> dict[str, str]:
    block = FilesSource(
        path=lookup.path,
        format=lookup.format,
        separator=lookup.separator,
        encoding=lookup.encoding,
        storage_options=source.storage_options,
        columns={"key": lookup.key, "value": lookup.value},
    )
    names: dict[str, str] = {}
    for frame, first_row, where in _canonical_chunks(block, ["key", "value"], chunk_rows, base):
        if UNREADABLE in frame.columns and frame[UNREADABLE].notna().any():
            at = int(np.flatnonzero(frame[UNREADABLE].notna())[0])
            raise UserError(
                f"row {first_row + at} cannot be read: {str(frame[UNREADABLE].iloc[at])[:80]!r}",
                where=where,
                remedy="correct the line, or the separator or quote of the lookup.",
            )
        names.update(zip(frame["key"], frame["value"], strict=True))
    return names


def _aggregated(chunks: Iterator[Chunk], rule: Aggregate, chunk_rows: int, where: str) -> Iterator[Chunk]:
    """Join the texts of each key; memory grows with the number of distinct (key, text) pairs, not of rows."""
    counts: dict[Any, Counter[str]] = {}
    there: list[str] = []
    for frame, first_row, file in chunks:
        there = frame.attrs[SOURCE_COLUMNS]
        for name in (rule.by, rule.join):
            if name not in frame.columns:
                raise missing_column(name, there, where=file)
        readable = frame
        if UNREADABLE in frame.columns:
            yield frame[frame[UNREADABLE].notna()], first_row, file
            readable = frame[frame[UNREADABLE].isna()]
        sizes = readable.groupby([rule.by, rule.join], dropna=False, sort=False).size().reset_index(name="size")
        for key, text, size in zip(sizes[rule.by], sizes[rule.join], sizes["size"], strict=True):
            tally = counts.setdefault(None if pd.isna(key) else key, Counter())
            if not pd.isna(text):
                tally["_".join(str(text).split())] += int(size)
    keys = list(counts)
    for start in range(0, len(keys), chunk_rows):
        part = keys[start : start + chunk_rows]
        texts = [_most_frequent(counts[key], rule.top) for key in part]
        joined = pd.DataFrame({rule.by: part, rule.join: texts}, dtype=object)
        joined.attrs[SOURCE_COLUMNS] = there
        yield joined, start + 1, where


def _most_frequent(tally: Counter[str], top: int | None) -> str | None:
    ranked = sorted(tally, key=lambda text: (-tally[text], text))[:top]
    return " ".join(ranked) or None
