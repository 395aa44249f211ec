"""Delimited text of any encoding and separator, in chunks, with the lines that cannot be cut in their places.

What belongs here: from a file's bytes to tables of text. What does not: which files (`_source_paths.py`), which columns
(the caller chooses them), and what the values mean.
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from mlops_assets.foundation._source_blocks import FilesSource
from mlops_assets.foundation._source_paths import storage_errors
from mlops_assets.foundation.contracts import UNREADABLE
from mlops_assets.foundation.errors import UserError

# From the columns there to those to be read; a piece of a file with the columns there and the number of its first row.
Choose = Callable[[Sequence[str]], list[str]]
Part = tuple[pa.Table, Sequence[str], int]

_BLOCK_BYTES = 4 << 20
_HEAD_BYTES = 1 << 20
_PENDING_LINES = 100_000
# Stands for a separator of several characters, such as the :: of MovieLens 1M: pyarrow splits at one byte only.
_UNIT_SEPARATOR = "\x1f"
# A last record of our own behind the file's: it does not come out where an open quote runs to the end.
_END = "\x1e\x04\x1e"


def text_tables(path: UPath, source: FilesSource, choose: Choose, chunk_rows: int, *, tabs: bool) -> Iterator[Part]:
    """Yield the chunks of a text file, all columns of type string."""
    separator = (source.separator or ("\t" if tabs else ",")).replace("\\t", "\t")
    quote = source.quote if source.quote is not None else ("" if tabs or separator == "\t" else '"')
    with storage_errors(str(path)), closing(path.open("rb")) as raw:
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

    def tables(self, names: Sequence[str] | None, choose: Choose, chunk_rows: int) -> Iterator[Part]:
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
