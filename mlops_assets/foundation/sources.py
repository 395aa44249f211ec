"""Where raw rows come from: files here or on S3, a table of the warehouse, or a seeded sample.

What belongs here: the YAML source blocks and the readers that turn a block into chunks of raw rows under canonical
column names, in bounded memory. What does not: what a value must look like (`contracts`), and the sample worlds.
"""

import bz2
import codecs
import csv
import gzip
import io
import logging
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from upath import UPath

from mlops_assets.foundation.contracts import (
    EPOCH_UNITS,
    SOURCE_COLUMNS,
    TIME_FORMAT,
    UNREADABLE,
    Mask,
    TimeFormat,
    closest,
    missing_column,
    refuse_duplicates,
    utc,
)
from mlops_assets.foundation.errors import UserError

Chunk = tuple[pd.DataFrame, int, str]
Format = Literal["csv", "tsv", "parquet"]
Scalar = bool | int | float | str

# From the columns there to those to be read; a piece of a file with the columns there and the number of its first row.
_Choose = Callable[[Sequence[str]], list[str]]
_Part = tuple[pa.Table, Sequence[str], int]

_log = logging.getLogger(__name__)

_SUFFIXES: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_TABLE_PART = r'"(?:[^"]|"")+"|[^."]+'
_PLAIN_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_$]*$")
_BLOCK_BYTES = 4 << 20
_HEAD_BYTES = 1 << 20
_PENDING_LINES = 100_000
# Stands for a separator of several characters, such as the :: of MovieLens 1M: pyarrow splits at one byte only.
_UNIT_SEPARATOR = "\x1f"
# A last record of our own behind the file's: it does not come out where an open quote runs to the end.
_END = "\x1e\x04\x1e"


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lookup(_Block):
    """Replace the codes in a column by the names that another file holds; a code it lacks stays as it is."""

    column: str = Field(description="Canonical column whose values are codes.")
    path: str = Field(description="Delimited text file that holds the names.")
    key: str = Field(description="Its column of codes.")
    value: str = Field(description="Its column of names.")
    format: Literal["csv", "tsv"] | None = Field(default=None, description="Inferred from the suffix when absent.")
    separator: str | None = Field(default=None, description="Between two values of a line.")
    encoding: str = Field(default="utf-8", description="Encoding of the file.")


class Aggregate(_Block):
    """Make one row of all rows of a key: their texts joined by spaces, the most frequent first."""

    by: str = Field(description="Canonical column that is the key.")
    join: str = Field(description="Canonical column of texts; spaces inside a text become underscores.")
    top: int | None = Field(default=None, ge=1, description="At most this many texts for each key.")


class FilesSource(_Block):
    """Delimited text or Parquet files, on this machine or on S3."""

    kind: Literal["files"] = "files"
    path: str | tuple[str, ...] = Field(
        description="One or more paths or patterns (`*`, `**`, `?`), local or s3://; ${VAR} and ${VAR:-default} are "
        "taken from the environment. A relative path starts at the spec file's folder."
    )
    format: Format | None = Field(
        default=None, description="Inferred from the suffix when absent; .dat and .txt need it."
    )
    separator: str | None = Field(default=None, description="Between two values of a line; comma for csv, tab for tsv.")
    quote: str | None = Field(
        default=None, max_length=1, description='Quotation mark; `"` for csv, none (an empty text) for tsv when absent.'
    )
    encoding: str = Field(
        default="utf-8", description="Encoding of text files, such as utf-8, latin-1, cp1252, utf-16."
    )
    header: bool = Field(default=True, description="Whether the first line of a text file holds the column names.")
    names: tuple[str, ...] = Field(default=(), description="Column names of text files without a header.")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the file system, such as endpoint_url; ${VAR} is replaced."
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Canonical column: column of the source, where the names differ."
    )
    time: TimeFormat = Field(default_factory=TimeFormat, description="How times are written.")
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        default_factory=dict, description="Keep only rows in which this column of the source has this value."
    )
    lookups: tuple[Lookup, ...] = Field(default=(), description="Codes to be replaced by names from another file.")
    aggregate: Aggregate | None = Field(default=None, description="Many rows of a key joined into one.")
    replace: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Canonical column: texts to be replaced in its values, in order."
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError as error:
            msg = f"unknown encoding {value!r}; use utf-8, latin-1, cp1252 or utf-16"
            raise ValueError(msg) from error
        return value

    @model_validator(mode="after")
    def _names_belong_to_headless_files(self) -> "FilesSource":
        if self.header == bool(self.names):
            msg = "`names` goes with `header: false`, and only with it"
            raise ValueError(msg)
        return self


class TableSource(_Block):
    """A table or view of the warehouse."""

    kind: Literal["table"] = "table"
    table: str = Field(
        pattern=rf"^(?:{_TABLE_PART})(?:\.(?:{_TABLE_PART}))*$",
        description="Name such as schema.table; a part with a dot in it, or whose case matters, in double quotes.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Canonical column: column of the table, where the names differ."
    )
    time: TimeFormat = Field(default_factory=TimeFormat, description="How times are written.")
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        default_factory=dict, description="Keep only rows in which this column of the table has this value."
    )


class SampleSource(BaseModel):
    """The seeded sample world of a system; further settings go to its generator."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["sample"] = "sample"

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings for the generator."""
        return dict(self.model_extra or {})


Source = Annotated[FilesSource | TableSource | SampleSource, Field(discriminator="kind")]


class Streams(Protocol):
    """What a table source needs of a warehouse."""

    def stream(self, sql: str, rows: int) -> Iterator[pd.DataFrame]:
        """Yield the rows of a query in frames of at most ``rows`` rows."""
        ...


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
    _check_mapping(source, columns_needed)
    if isinstance(source, TableSource):
        if warehouse is None:
            msg = "a table source needs a warehouse"
            raise ValueError(msg)
        chunks = _read_table(source, columns_needed, chunk_rows, window, time_column, warehouse)
    else:
        chunks = _read_files(source, columns_needed, chunk_rows, base or Path())
    for frame, first_row, where in chunks:
        frame.attrs[TIME_FORMAT] = source.time.model_dump()
        yield frame, first_row, where


def _check_mapping(source: FilesSource | TableSource, needed: Sequence[str]) -> None:
    block: list[str] = list(source.columns)
    if isinstance(source, FilesSource):
        block += [lookup.column for lookup in source.lookups] + list(source.replace)
        block += [source.aggregate.by, source.aggregate.join] if source.aggregate else []
    for name in block:
        if name not in needed:
            guess = closest(name, needed)
            raise UserError(
                f"column {name!r} is no column of this table" + (f"; did you mean {guess!r}?" if guess else ""),
                where=f"source {source.table if isinstance(source, TableSource) else source.path}",
                remedy=f"use one of {', '.join(needed)}.",
            )


def _source_columns(
    source: FilesSource | TableSource, needed: Sequence[str], there: Sequence[str], where: str
) -> dict[str, str]:
    """Return canonical column: source column for all that can be had; a mapped column must be there."""
    refuse_duplicates(there, where=where)
    for name in source.where:
        if name not in there:
            raise missing_column(name, there, where=f"{where}, `where`")
    found = {}
    for name in needed:
        wanted = source.columns.get(name, name)
        if wanted in there:
            found[name] = wanted
        elif name in source.columns:
            raise missing_column(name, there, where=where, source_name=wanted)
    return found


# ---- files: from raw chunks under source names to canonical rows


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
            found.update(_source_columns(source, needed, there, str(path)))
            return sorted({*found.values(), *source.where})

        for table, there, first_row in _tables(path, source, choose, chunk_rows):
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


# ---- paths


def expand(text: str, *, where: str) -> str:
    """Replace ``${VAR}`` and ``${VAR:-default}`` by the environment's values."""

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name) or default
        if found is None:
            raise UserError(
                f"environment variable {name} is not set",
                where=where,
                remedy=f"set it, or give a default: ${{{name}:-default}}.",
            )
        return found

    return _VARIABLE.sub(value, text)


def resolve(source: FilesSource, base: Path | UPath) -> list[UPath]:
    """Return the files of a source, sorted within each pattern.

    Raises
    ------
    UserError
        A pattern matches no file, or its storage cannot be reached.
    """
    options = {
        key: expand(value, where=f"storage_options.{key}") if isinstance(value, str) else value
        for key, value in source.storage_options.items()
    }
    files: list[UPath] = []
    for raw in [source.path] if isinstance(source.path, str) else source.path:
        pattern = expand(raw, where=f"path {raw}")
        root = UPath(pattern, **options) if "://" in pattern else UPath(base) / Path(pattern).expanduser()
        with _storage_errors(str(root)):
            # A listing that the file system remembers does not show what has come since.
            root.fs.invalidate_cache()
            found = _matching(root)
        if not found:
            raise UserError(
                "no file matches this path",
                where=str(root),
                remedy="correct `path`; a relative path starts at the spec file's folder, and a folder needs a "
                "pattern such as folder/*.parquet.",
            )
        files += [path for path in found if path not in files]
    return files


def _matching(root: UPath) -> list[UPath]:
    try:
        # Not `is_file`: that calls an unreachable store, or a refused key, no file.
        if root.fs.info(root.path)["type"] == "file":
            return [root]
    except FileNotFoundError:
        pass
    if not any(mark in str(root) for mark in "*?["):
        return []
    parts = root.parts
    first = next(at for at, part in enumerate(parts) if any(mark in part for mark in "*?["))
    folder = root
    for _ in parts[first:]:
        folder = folder.parent
    pattern = "/".join(parts[first:])
    return sorted((path for path in folder.glob(pattern) if path.is_file()), key=str)


@contextmanager
def _storage_errors(where: str) -> Iterator[None]:
    """Turn what storage says into a message that names the file and the remedy."""
    remedy = "check that the file is there and may be read."
    if "://" in where:
        remedy = (
            "check bucket and key, credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role), "
            "region and endpoint (`storage_options`)."
        )
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot be read: {error}", where=where, remedy=remedy) from error
    except Exception as error:
        # botocore's errors share no base class with OSError, and importing it costs a third of a second.
        if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore"):
            raise UserError(f"cannot be read: {error}", where=where, remedy=remedy) from error
        raise


def _format_of(path: UPath, source: FilesSource) -> Format:
    if source.format is not None:
        return source.format
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")
    if last in _SUFFIXES:
        return _SUFFIXES[last]
    if source.separator is not None:
        return "csv"
    raise UserError(
        f"the format of a {last or 'suffixless'} file is unknown",
        where=str(path),
        remedy="give `format: csv`, `tsv` or `parquet`, and `separator` where it is another one.",
    )


# ---- Parquet


def _parquet_tables(path: UPath, choose: _Choose, chunk_rows: int) -> Iterator[_Part]:
    import pyarrow.parquet as pq

    with _storage_errors(str(path)), closing(path.open("rb")) as handle:
        try:
            file = pq.ParquetFile(handle)
            there = file.schema_arrow.names
            columns = choose(there)
            row = 1
            for batch in file.iter_batches(batch_size=chunk_rows, columns=columns):
                yield pa.Table.from_batches([batch]), there, row
                row += batch.num_rows
            if row == 1:
                yield file.schema_arrow.empty_table().select(columns), there, row
        except pa.ArrowInvalid as error:
            raise UserError(
                f"is no readable Parquet file: {error}", where=str(path), remedy="write it anew, or correct `format`."
            ) from error


# ---- delimited text


def _tables(path: UPath, source: FilesSource, choose: _Choose, chunk_rows: int) -> Iterator[_Part]:
    form = _format_of(path, source)
    if form == "parquet":
        return _parquet_tables(path, choose, chunk_rows)
    return _text_tables(path, source, choose, chunk_rows, tabs=form == "tsv")


def _text_tables(path: UPath, source: FilesSource, choose: _Choose, chunk_rows: int, *, tabs: bool) -> Iterator[_Part]:
    separator = (source.separator or ("\t" if tabs else ",")).replace("\\t", "\t")
    quote = source.quote if source.quote is not None else ("" if tabs or separator == "\t" else '"')
    with _storage_errors(str(path)), closing(path.open("rb")) as raw:
        stream = _Utf8(_decompressed(raw, path), path, source.encoding, separator)
        yield from _DelimitedText(path, stream, stream.separator, quote).tables(
            None if source.header else source.names, choose, chunk_rows
        )


def _decompressed(raw: Any, path: UPath) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".bz2":
        return bz2.BZ2File(raw)
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".zst":
        return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return raw


class _Utf8(io.RawIOBase):
    """A file's bytes as UTF-8 without byte order mark, with the separator as one byte; knows where it stands."""

    def __init__(self, raw: Any, path: UPath, encoding: str, separator: str) -> None:
        super().__init__()
        self._raw, self._path, self._encoding = raw, path, codecs.lookup(encoding).name
        # A byte order mark is no part of the first column's name.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig" if self._encoding == "utf-8" else encoding)()
        self._long = separator if len(separator) > 1 or not separator.isascii() else ""
        self.separator, self.written = _UNIT_SEPARATOR if self._long else separator, separator
        self._bytes = self._lines = 0
        self._carry, self._ahead, self._ended = "", b"", False
        self.end = b""

    def readable(self) -> bool:
        return True

    def put_back(self, data: bytes) -> None:
        """Have ``data`` read again before what follows."""
        self._ahead = data + self._ahead

    def read(self, size: int = -1) -> bytes:
        size = size if size > 0 else _HEAD_BYTES
        # Always as much as was asked for: the parser takes a short block without a line end for a record too long.
        while len(self._ahead) < size and not self._ended:
            self._ahead += self._next(size)
        if self._ended:
            self._ahead, self.end = self._ahead + self.end, b""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data

    def _next(self, size: int) -> bytes:
        try:
            data = self._raw.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise UserError(
                f"cannot be decompressed: {error}", where=str(self._path), remedy="fetch or write the file anew."
            ) from error
        self._ended = not data
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self._undecodable(error, pending) from error
        self._bytes += len(data)
        self._lines += data.count(b"\n")
        if "\x00" in text:
            raise UserError(
                f"holds a zero byte near line {self._lines + 1}",
                where=str(self._path),
                remedy="give the right `format`, or `encoding: utf-16` if it is text of that encoding.",
            )
        if self._long:
            text = self._joined(text)
        return text.encode("utf-8")

    def _joined(self, text: str) -> str:
        text = (self._carry + text).replace(self._long, _UNIT_SEPARATOR)
        # What may be the first half of a separator waits for the other half.
        tails = range(min(len(self._long) - 1, len(text)), 0, -1)
        kept = 0 if self._ended else next((n for n in tails if self._long.startswith(text[-n:])), 0)
        text, self._carry = (text[:-kept], text[-kept:]) if kept else (text, "")
        return text

    def _undecodable(self, error: UnicodeDecodeError, pending: int) -> UserError:
        data = error.object
        before = self._lines + data[: error.start].count(b"\n")
        value = f"0x{data[error.start]:02x}" if error.start < len(data) else "end of file"
        return UserError(
            f"is not {self._encoding}: byte {self._bytes - pending + error.start} ({value}, line {before + 1})",
            where=str(self._path),
            remedy=f"give its encoding; `encoding: {_fitting_encoding(data)}` fits these bytes.",
        )


def _fitting_encoding(data: bytes) -> str:
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    for encoding in ("utf-8", "cp1252"):
        # cp1252 differs from latin-1 only in these bytes, which are control characters there.
        if encoding == "cp1252" and not re.search(rb"[\x80-\x9f]", data):
            break
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


class _DelimitedText:
    """Cuts a UTF-8 stream into chunks of records, with the lines that cannot be cut in their places."""

    def __init__(self, path: UPath, stream: _Utf8, separator: str, quote: str) -> None:
        self._path, self._stream, self._separator, self._quote = path, stream, separator, quote
        self._bad: list[tuple[int, str]] = []
        self._overflow = False

    def tables(self, names: Sequence[str] | None, choose: _Choose, chunk_rows: int) -> Iterator[_Part]:
        first_row = 1 if names else 2
        there = list(names) if names else self._header()
        # No column would mean all of them to the parser.
        columns = choose(there) or list(there[:1])
        self._stream.end = f"\n{self._stream.separator.join([_END] * len(there))}\n".encode()
        cursor = 0
        for batch in self._without_end(self._batches(there, columns)):
            for start in range(0, batch.num_rows, chunk_rows):
                table = pa.Table.from_batches([batch.slice(start, chunk_rows)])
                table = self._with_bad_lines(table, cursor)
                yield table, there, first_row + cursor
                cursor += table.num_rows
        if self._bad or cursor == 0:
            empty = pa.schema([(name, pa.string()) for name in columns]).empty_table()
            yield self._with_bad_lines(empty, cursor, at_end=True), there, first_row + cursor

    def _header(self) -> list[str]:
        head = self._stream.read(_HEAD_BYTES)
        while len(head) < _HEAD_BYTES and (more := self._stream.read(_HEAD_BYTES)):
            head += more
        text = head.decode("utf-8", "ignore")
        lines = io.StringIO(text, newline="")
        if self._quote:
            reader = csv.reader(lines, delimiter=self._separator, quotechar=self._quote)
        else:
            reader = csv.reader(lines, delimiter=self._separator, quoting=csv.QUOTE_NONE)
        names = next((record for record in reader if record), None)
        if names is None:
            raise UserError("is empty", where=str(self._path), remedy="give a file with a header line and rows.")
        self._stream.put_back(head[len(text[: lines.tell()].encode("utf-8")) :])
        return [name.strip() or f"column {at}" for at, name in enumerate(names, start=1)]

    def _batches(self, there: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        import pyarrow.csv as pa_csv

        # Names of our own: a chosen column is found by its place, whatever odd names the others have.
        try:
            reader = pa_csv.open_csv(
                pa.PythonFile(self._stream, mode="r"),
                read_options=pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, column_names=list(there)),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self._separator,
                    quote_char=self._quote or False,
                    newlines_in_values=bool(self._quote),
                    invalid_row_handler=self._set_apart,
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=list(columns),
                    column_types=dict.fromkeys(columns, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
            yield from reader
        except pa.ArrowInvalid as error:
            raise self._broken(error) from error

    def _without_end(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Take the end mark off again; where it is no row of its own, an open quote has swallowed it."""
        rows, held = 0, None
        for batch in batches:
            if held is not None:
                yield held
            if batch.num_rows:
                rows, held = rows + batch.num_rows, batch
        if held is None or held[0][-1].as_py() != _END:
            raise UserError(
                f"a quotation mark is opened in record {rows + len(self._bad)} or later and never closed",
                where=str(self._path),
                remedy="close it, or give `quote: ''` if the file has no quoted values.",
            )
        yield held.slice(0, held.num_rows - 1)

    def _set_apart(self, row: Any) -> str:
        # An exception in this callback would be swallowed by pyarrow; it is raised where the parser gives up.
        self._overflow = len(self._bad) >= _PENDING_LINES
        self._bad.append((row.number - 1, row.text.replace(self._stream.separator, self._stream.written)))
        return "error" if self._overflow else "skip"

    def _with_bad_lines(self, table: pa.Table, cursor: int, *, at_end: bool = False) -> pa.Table:
        end, taken = cursor + table.num_rows, 0
        while taken < len(self._bad) and (at_end or self._bad[taken][0] < end):
            end, taken = end + 1, taken + 1
        if not taken:
            return table
        bad, self._bad = self._bad[:taken], self._bad[taken:]
        at = np.array([number for number, _ in bad]) - cursor
        order = np.full(end - cursor, -1)
        good = np.setdiff1d(np.arange(end - cursor), at)
        order[good] = np.arange(len(good))
        lines = np.full(end - cursor, None, dtype=object)
        lines[at] = [text for _, text in bad]
        whole = table.take(pa.array(order, mask=order < 0))
        return whole.append_column(UNREADABLE, pa.array(lines, type=pa.string()))

    def _broken(self, error: pa.ArrowInvalid) -> UserError:
        what = f"cannot be read as delimited text: {error}"
        if self._overflow:
            what = f"has over {_PENDING_LINES:,} lines that do not have as many values as the first one"
        elif "straddl" in str(error):
            what = f"has a record longer than {_BLOCK_BYTES >> 20} MiB, or a quotation mark that is never closed"
        return UserError(what, where=str(self._path), remedy="correct `separator`, `quote` or the file.")


# ---- tables of the warehouse


def _read_table(
    source: TableSource,
    needed: Sequence[str],
    chunk_rows: int,
    window: tuple[datetime, datetime] | None,
    time_column: str | None,
    warehouse: Streams,
) -> Iterator[Chunk]:
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
    found = {**own, **_source_columns(source, needed, there, source.table)}
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
    parts = re.findall(_TABLE_PART, name)
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
