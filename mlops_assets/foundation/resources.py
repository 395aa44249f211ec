"""What assets talk to: tables, objects, model versions and journals.

What belongs here: the resources behind the names `warehouse`, `store`, `models` and `journals`, which hide where an
asset runs. What does not: the choice between them (environment.py) and the meaning of any table.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field
from upath import UPath

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.journal import Journal

_JOURNAL_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LOCK_WORDS = ("could not set lock", "conflicting lock", "being used by another process")


class ObjectStore(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Snapshots, model files, shards and reports: a folder here, a bucket in production."""

    root: str = Field(description="Folder or URL (s3://bucket/prefix) that everything is stored under.")

    def path(self, *parts: str) -> UPath:
        """Return the path of an object below the root."""
        return UPath(self.root).joinpath(*parts)


class Tables:
    """One open connection to the warehouse, inside one transaction.

    Names are ``schema.table``; column types are DuckDB's and Snowflake's common names.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Run one statement."""
        self.connection.execute(sql, list(parameters))

    def query(self, sql: str, parameters: Sequence[object] = ()) -> pd.DataFrame:
        """Return the rows of a query that fits in memory."""
        return self.connection.execute(sql, list(parameters)).df()  # type: ignore[no-any-return]

    def reader(self, sql: str, parameters: Sequence[object] = (), *, rows: int = 100_000) -> pa.RecordBatchReader:
        """Return a query's rows as a stream of batches of at most ``rows``; it tells its columns even without rows."""
        return self.connection.sql(sql, params=list(parameters)).to_arrow_reader(rows)

    def exists(self, table: str) -> bool:
        """Tell whether a table or view is there."""
        schema, name = table.split(".")
        found = self.connection.execute(
            "select count(*) from information_schema.tables where table_schema = ? and table_name = ?",
            [schema, name],
        ).fetchone()
        return bool(found and found[0])

    def ensure(self, table: str, columns: Mapping[str, str]) -> None:
        """Create the table with these columns and types unless it is there."""
        self.execute(f"create schema if not exists {table.split('.', maxsplit=1)[0]}")
        body = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        self.execute(f"create table if not exists {table} ({body})")

    def append(self, table: str, frame: pd.DataFrame) -> None:
        """Add the rows of a frame; columns are matched by name."""
        if frame.empty:
            return
        self.connection.register("incoming_rows", frame)
        try:
            names = ", ".join(f'"{name}"' for name in frame.columns)
            self.execute(f"insert into {table} ({names}) select {names} from incoming_rows")
        finally:
            self.connection.unregister("incoming_rows")


class Warehouse(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The tables of every system: one DuckDB file in the embedded environment.

    DuckDB lets one process at a time open a file for writing; a second one waits here for its turn.
    """

    database: str = Field(description="Path of the DuckDB file.")
    wait_seconds: float = Field(default=1800.0, description="How long to wait for another process's lock.")
    memory_limit: str = Field(default="", description="DuckDB's memory limit, such as 4GB; empty for its own.")

    @contextmanager
    def session(self) -> Iterator[Tables]:
        """Open the warehouse for one transaction: all that is written in it is there at its end, or nothing.

        Raises
        ------
        UserError
            Another process has held the file for longer than ``wait_seconds``.
        """
        connection = self._connect()
        try:
            connection.execute("set preserve_insertion_order = true")
            if self.memory_limit:
                connection.execute(f"set memory_limit = '{self.memory_limit}'")
            connection.execute("begin")
            yield Tables(connection)
            connection.execute("commit")
        finally:
            connection.close()

    def query(self, sql: str, parameters: Sequence[object] = ()) -> pd.DataFrame:
        """Return the rows of one query."""
        with self.session() as tables:
            return tables.query(sql, parameters)

    def stream(self, sql: str, rows: int) -> Iterator[pd.DataFrame]:
        """Yield the rows of one query as frames of at most ``rows`` rows."""
        with self.session() as tables:
            for batch in tables.reader(sql, rows=rows):
                yield batch.to_pandas()

    def replace(self, table: str, columns: Mapping[str, str], frames: Iterable[pd.DataFrame]) -> int:
        """Replace a whole table by these frames in one transaction; returns the number of rows."""
        count = 0
        with self.session() as tables:
            tables.ensure(table, columns)
            tables.execute(f"delete from {table}")
            for frame in frames:
                tables.append(table, frame)
                count += len(frame)
        return count

    def _connect(self) -> Any:
        import duckdb

        Path(self.database).parent.mkdir(parents=True, exist_ok=True)
        deadline, pause = time.monotonic() + self.wait_seconds, 0.05
        while True:
            try:
                return duckdb.connect(self.database)
            except duckdb.IOException as error:
                busy = any(word in str(error).lower() for word in _LOCK_WORDS)
                if not busy or time.monotonic() > deadline:
                    raise UserError(
                        f"cannot open the warehouse: {str(error).splitlines()[0]}",
                        where=self.database,
                        remedy="close the process that holds the file, or point MLOPS_ASSETS_HOME to another folder.",
                    ) from error
                time.sleep(pause)
                pause = min(pause * 1.6, 2.0)


class ModelRegistry(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Model versions and their evidence: MLflow for the records, the object store for the files."""

    tracking_uri: str = Field(description="MLflow's tracking and registry URI, such as sqlite:///mlflow.db.")
    root: str = Field(description="Folder or URL that the files of the versions are stored under.")

    def open(self) -> Any:
        """Return the `Registry` that these settings describe."""
        from mlops_assets.foundation.registry import Registry

        return Registry(self.tracking_uri, UPath(self.root))


class Journals(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The append-only journals of every system: one file each, on a disk of this machine."""

    root: str = Field(description="Folder that the journals are kept in, one folder a system.")

    def open(self, system: str, name: str, *, read_only: bool = False) -> Journal:
        """Open a journal; one that is not there is made, unless it is only to be read.

        Raises
        ------
        UserError
            The root is no folder of this machine, a name is none that a file may have, or as for `Journal`.
        """
        if "://" in self.root:
            raise UserError(
                "a journal needs the locks of a disk of this machine",
                where=self.root,
                remedy="name a local folder as the root of the journals, and back it up to the object store.",
            )
        for part in (system, name):
            if not _JOURNAL_NAME.fullmatch(part):
                raise UserError(
                    f"{part!r} cannot name a journal",
                    where=self.root,
                    remedy="use lower-case letters, digits and _, beginning with a letter.",
                )
        return Journal(Path(self.root) / system / f"{name}.db", read_only=read_only)
