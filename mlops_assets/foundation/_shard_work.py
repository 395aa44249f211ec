"""How the rows of one shard come about: tries, pauses, the fallback, and columns that fit the other shards'.

What belongs here: what is done for a single shard in memory. What does not: which shards there are, what is recorded of
them, and where their rows are stored (`batch.py`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError

Columns = Sequence[Sequence[str]]
Compute = Callable[[int], pa.Table]
Fallback = Callable[[int, Exception], pa.Table]


@dataclass(frozen=True)
class ShardWork:
    """How one shard is tried."""

    compute: Compute
    fallback: Fallback | None
    attempts: int
    schema: pa.Schema | None
    wanted: Columns | None
    pause: float

    def compute_shard(self, shard: int) -> tuple[pa.Table | None, Exception | None, int]:
        """Return the rows, or else the last error, and the number of tries."""
        tried = 0
        while True:
            tried += 1
            try:
                return self._conform(self.compute(shard)), None, tried
            except UserError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a shard raises is recorded, and the others go on
                _stop_if_full(shard, error)
                allowed = self.attempts if isinstance(error, OSError) else min(2, self.attempts)
                if tried >= allowed:
                    return None, error, tried
                if isinstance(error, OSError):
                    time.sleep(self.pause * 2 ** (tried - 1))

    def fall_back(self, shard: int, error: Exception) -> tuple[pa.Table | None, Exception | None]:
        """Return the fallback's rows, or else its error; neither where there is no fallback."""
        if self.fallback is None:
            return None, None
        try:
            table = self._conform(self.fallback(shard, error))
        except UserError:
            raise
        except Exception as second:  # noqa: BLE001 - as above
            _stop_if_full(shard, second)
            return None, second
        if self.wanted is not None and files.columns_of(table.schema) != self.wanted:
            return None, ValueError(
                f"columns {spelled(files.columns_of(table.schema))} instead of {spelled(self.wanted)}"
            )
        return table, None

    def _conform(self, table: pa.Table) -> pa.Table:
        if not isinstance(table, pa.Table):
            raise UserError(
                f"a shard's rows came as {type(table).__name__}",
                where="the function given to Ledger.run",
                remedy="return a pyarrow.Table, for example pa.Table.from_pandas(frame, preserve_index=False).",
            )
        if self.schema is None:
            return table
        if set(table.column_names) != set(self.schema.names):
            raise ValueError(f"columns {table.column_names} instead of {self.schema.names}")
        return table.select(self.schema.names).cast(self.schema)


def spelled(columns: Columns) -> str:
    """Return columns in words, for a message."""
    return ", ".join(f"{name} {kind}" for name, kind in columns)


def _stop_if_full(shard: int, error: Exception) -> None:
    # Every later shard would fail the same way and fall back: a mended disk is better than an old result for all.
    if files.is_full_or_read_only(error):
        raise UserError(
            f"cannot write: {error}", where=f"shard {shard}", remedy="make room, then run again."
        ) from error
