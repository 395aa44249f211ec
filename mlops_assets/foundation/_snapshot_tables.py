"""How a table of a snapshot becomes a Parquet file whose bytes depend on its content only.

What belongs here: frames, Arrow tables and streams of batches, checked and written once. What does not: where the file
ends up, and what makes several of them a snapshot (`snapshots.py`).
"""

import hashlib
import io
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import pandas as pd
import pyarrow as pa

from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError

Source: TypeAlias = pa.Table | pd.DataFrame | Iterable[pa.RecordBatch]
"""What a table is made from; a stream of batches is read once and never held as a whole."""


@dataclass(frozen=True)
class TableInfo:
    """A table of a snapshot: its rows, its file's name, SHA-256 and bytes, and its columns as [name, Arrow type]."""

    rows: int
    sha256: str
    size: int
    file: str
    schema: list[list[str]]


class _SourceFailedError(Exception):
    """Carries an I/O error of a table's source past the writer, which would call it a full disk."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class _HashingSink(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, sink: IO[bytes]) -> None:
        self.digest, self.size, self._sink = hashlib.sha256(), 0, sink

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        self._sink.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


def stage(staging: Path, name: str, table: str, source: Source | Callable[[], Source]) -> TableInfo:
    """Write one table of the snapshot ``name`` into the folder ``staging``."""
    where = f"snapshot {name}, table {table!r}"
    try:
        schema, batches = _opened(where, source() if callable(source) else source)
        with files.atomic_writer(staging / f"{table}.parquet") as handle:
            sink = _HashingSink(handle)
            rows = files.write_parquet(typing.cast("IO[bytes]", sink), schema, _checked(where, schema, batches))
    except _SourceFailedError as failed:
        raise failed.error from None
    return TableInfo(rows, sink.digest.hexdigest(), sink.size, f"{table}.parquet", files.columns_of(schema))


def _opened(where: str, source: Any) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    if isinstance(source, pd.DataFrame):
        table = _from_pandas(where, source)
        return table.schema, table.to_batches()
    if isinstance(source, pa.Table):
        return source.schema.remove_metadata(), source.to_batches()
    if isinstance(source, pa.RecordBatchReader):
        return source.schema.remove_metadata(), source
    if not isinstance(source, Iterable) or isinstance(source, str | bytes | Mapping):
        raise UserError(
            f"cannot save a {type(source).__name__}",
            where=where,
            remedy="give a DataFrame, a pyarrow Table or RecordBatchReader, or an iterable of record batches.",
        )
    batches = iter(source)
    first = next(batches, None)
    if first is None:
        raise UserError(
            "the stream is empty, so its columns are unknown",
            where=where,
            remedy="give a pyarrow RecordBatchReader (or a function that returns one), which knows its columns.",
        )
    if not isinstance(first, pa.RecordBatch):
        raise UserError(f"the stream gives {type(first).__name__}", where=where, remedy="give pyarrow.RecordBatch.")

    def stream() -> Iterator[pa.RecordBatch]:
        yield first
        yield from batches

    return first.schema.remove_metadata(), stream()


def _checked(where: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        for number, batch in enumerate(batches):
            if not batch.schema.equals(schema, check_metadata=False):
                found = ", ".join(f"{column.name} {column.type}" for column in batch.schema)
                raise UserError(
                    f"batch {number} has other columns than the first: {found}",
                    where=where,
                    remedy="cast every batch to one schema.",
                )
            yield batch
    except OSError as error:
        raise _SourceFailedError(error) from error


def _from_pandas(where: str, frame: pd.DataFrame) -> pa.Table:
    index = frame.index
    if index.nlevels > 1 or index.name is not None or not pd.api.types.is_integer_dtype(index.dtype):
        raise UserError(
            f"the frame has the index {list(index.names)}, which is not stored",
            where=where,
            remedy="turn it into a column with reset_index(), or drop it with reset_index(drop=True).",
        )
    columns = list(frame.columns)
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) < len(columns):
        raise UserError(f"column names must be different texts, found {columns}", where=where, remedy="rename them.")
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise UserError(
            f"cannot store: {' '.join(str(part) for part in error.args)}",
            where=where,
            remedy="give each column values of one type, for example with astype.",
        ) from error
    # Arrow has no type for pandas' own dtypes (Int64, string): keep their names, but not pandas' version.
    own = {str(name) for name, dtype in frame.dtypes.items() if _needs_pandas(dtype)}
    if not own:
        return table.replace_schema_metadata(None)
    described = json.loads(table.schema.metadata[b"pandas"])["columns"]
    kept = {"index_columns": [], "column_indexes": [], "columns": [c for c in described if c["name"] in own]}
    return table.replace_schema_metadata({"pandas": files.canonical_json(kept)})


def _needs_pandas(dtype: Any) -> bool:
    natively = isinstance(dtype, pd.CategoricalDtype | pd.DatetimeTZDtype)
    return isinstance(dtype, pd.api.extensions.ExtensionDtype) and not natively
