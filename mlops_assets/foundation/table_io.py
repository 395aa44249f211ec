"""Frames as tables of the warehouse, replaced whole or not at all.

What belongs here: the transaction around Dagster's own DuckDB IO manager. What does not: which assets use it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def table_io_manager(database: str) -> Any:
    """Return an IO manager that keeps frames as tables of a DuckDB file.

    Dagster's own deletes a table's rows and inserts the new ones as two transactions: a run that is killed between
    them, or a frame that does not fit, leaves the table empty. Here both are one transaction.
    """
    from dagster_duckdb.io_manager import DuckDbClient
    from dagster_duckdb_pandas import DuckDBPandasIOManager

    class OneTransaction(DuckDbClient):  # type: ignore[misc]
        @staticmethod
        @contextmanager
        def connect(context: Any, table_slice: Any) -> Iterator[Any]:
            Path(context.resource_config["database"]).parent.mkdir(parents=True, exist_ok=True)
            with DuckDbClient.connect(context, table_slice) as connection:
                try:
                    connection.execute("begin")
                    yield connection
                    connection.execute("commit")
                finally:
                    # Also when the step failed: an open connection would keep the file locked, and roll nothing back.
                    connection.close()

        @staticmethod
        def delete_table_slice(context: Any, table_slice: Any, connection: Any) -> None:
            # A statement on a table that is not there would spoil the whole transaction.
            there = connection.execute(
                "select 1 from information_schema.tables where lower(table_schema) = ? and lower(table_name) = ?",
                [table_slice.schema.lower(), table_slice.table.lower()],
            ).fetchone()
            if there:
                DuckDbClient.delete_table_slice(context, table_slice, connection)

    class TableIOManager(DuckDBPandasIOManager):  # type: ignore[misc]
        """Keeps a frame as the table of its asset key, replaced in one transaction."""

        def create_io_manager(self, context: Any) -> Any:
            manager = super().create_io_manager(context)
            manager._db_client = OneTransaction()  # noqa: SLF001 - it takes no client of another class
            return manager

    return TableIOManager(database=database)
