"""A file, Parquet or delimited text, as a stream of tables.

What belongs here: the choice of the reader, and Parquet. What does not: delimited text (`_delimited_text.py`), and what
a block makes of the rows (`sources.py`).
"""

from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa
from upath import UPath

from mlops_assets.foundation._delimited_text import Choose, Part, text_tables
from mlops_assets.foundation._source_blocks import FilesSource
from mlops_assets.foundation._source_paths import format_of, storage_errors
from mlops_assets.foundation.errors import UserError


def tables_of(path: UPath, source: FilesSource, choose: Choose, chunk_rows: int) -> Iterator[Part]:
    """Yield the chunks of a file, each with the columns there and the number of its first row."""
    form = format_of(path, source)
    if form == "parquet":
        return _parquet_tables(path, choose, chunk_rows)
    return text_tables(path, source, choose, chunk_rows, tabs=form == "tsv")


def _parquet_tables(path: UPath, choose: Choose, chunk_rows: int) -> Iterator[Part]:
    import pyarrow.parquet as pq

    with storage_errors(str(path)), closing(path.open("rb")) as handle:
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
