"""The file of a journal and the connections to it.

What belongs here: making, opening and lending, and what SQLite's errors mean to a person. What does not: what is in the
file (`_journal_tables.py`, `_journal_store.py`).
"""

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from mlops_assets.foundation import files
from mlops_assets.foundation._journal_tables import APPLICATION_ID, PAGE_BYTES, make_empty
from mlops_assets.foundation.errors import UserError

_CACHE_KIB = 16_384
_CHECKPOINT_PAGES = 8_192
_IDLE_CONNECTIONS = 8
_HELD = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_CLOSED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_RESTORE = "restore the file from a backup, or move it away to begin a new journal; nothing was written."


class _Pool:
    """Open connections that nobody uses at the moment."""

    # Connections that a fork brought along: SQLite forbids to use them there, and even to close them.
    inherited: ClassVar[list[sqlite3.Connection]] = []

    def __init__(self) -> None:
        self._idle: list[sqlite3.Connection] = []
        self._lock, self._process = threading.Lock(), os.getpid()

    def take(self) -> sqlite3.Connection | None:
        with self._lock:
            self._leave_inherited()
            return self._idle.pop() if self._idle else None

    def give(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            keep = len(self._idle) < _IDLE_CONNECTIONS
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._leave_inherited()
            while self._idle:
                self._idle.pop().close()

    def _leave_inherited(self) -> None:
        if self._process != os.getpid():
            self.inherited.extend(self._idle)
            self._idle.clear()
            self._process = os.getpid()


class JournalFile:
    """A journal's file, for any number of threads and processes.

    Parameters
    ----------
    path
        The file, as an absolute path; it is made if it is not there, unless `read_only`.
    wait_seconds
        How long to wait for another writer's transaction.
    """

    def __init__(self, path: Path, *, read_only: bool, wait_seconds: float) -> None:
        self.path, self.read_only, self._wait = path, read_only, wait_seconds
        self._frozen = False  # a reader may not write beside the file, and nobody else does
        self._pool = _Pool()
        weakref.finalize(self, self._pool.close)
        with self._told():
            self._ensure()
        with self.connection():
            pass  # a file that is no journal is named now, not at the first entry

    def close(self) -> None:
        """Give the file back; the next use opens it again."""
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that nobody else uses meanwhile; after an error it is closed, which undoes its work."""
        with self._told():
            connection = self._borrow()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            if self._frozen:
                connection.close()
            else:
                self._pool.give(connection)

    def _borrow(self) -> sqlite3.Connection:
        idle = self._pool.take()
        if idle is not None:
            return idle
        try:
            return self._opened("ro" if self.read_only else "rw")
        except sqlite3.OperationalError as error:
            if _code_of(error) not in _CLOSED or not self.read_only or self._log_of_writers():
                raise
            # Even a reader keeps its locks beside the file. Where it may not, and no writer is at work, the file alone
            # is all there is; it is opened anew for every use, so that a writer who comes later is noticed.
            self._frozen = True
            return self._opened("ro&immutable=1")

    def _log_of_writers(self) -> bool:
        """Tell whether there are transactions that are not in the file itself yet."""
        log = self.path.with_name(f"{self.path.name}-wal")
        return log.exists() and log.stat().st_size > 0

    def _opened(self, mode: str) -> sqlite3.Connection:
        address = f"{self.path.as_uri()}?mode={mode}"
        # A connection changes threads, but is lent to one at a time.
        connection = sqlite3.connect(
            address, uri=True, timeout=self._wait, isolation_level=None, check_same_thread=False
        )
        try:
            self._refuse_others(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _refuse_others(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("pragma application_id").fetchone()[0]
        if found != APPLICATION_ID:
            raise UserError("the file is not a journal of this version", where=str(self.path), remedy=_RESTORE)
        if not self.read_only:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute(f"pragma wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            connection.execute(f"pragma journal_size_limit = {_CHECKPOINT_PAGES * PAGE_BYTES}")
        connection.execute(f"pragma cache_size = -{_CACHE_KIB}")

    def _ensure(self) -> None:
        """Make the file unless it is there: whole, and by one of those who come at the same time."""
        if self.path.is_file():
            return
        if self.path.exists():
            raise UserError("this is no file", where=str(self.path), remedy="name the file of a journal.")
        if self.read_only:
            raise UserError(
                "there is no journal",
                where=str(self.path),
                remedy="run the step that writes it first, look whether the folder is the right one, or restore the "
                "file from a backup.",
            )
        with TemporaryDirectory(prefix="journal-") as folder:
            empty = Path(folder) / "journal.db"
            make_empty(empty)
            files.create(self.path, empty.read_bytes())

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what SQLite says in terms of the file and what to do about it."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            code = _code_of(error)
            if code in _HELD:
                what = f"another process has been writing for more than {self._wait:g} s"
                remedy = "wait for it or end it, then run again; nothing of this transaction was written."
            elif code in _NO_ROOM:
                what = f"the disk refuses: {error}"
                remedy = (
                    "free space on the disk, then run again; what was appended before is kept, and nothing is half."
                )
            elif code in _CLOSED:
                what = f"cannot open the journal: {error}"
                remedy = (
                    "make the file and its folder readable and writable, or read a copy of all files whose names "
                    "begin with its name, in a folder of your own."
                )
            elif is_damage(error):
                what, remedy = f"the file is damaged, or no journal: {error}", _RESTORE
            else:
                raise
            raise UserError(what, where=str(self.path), remedy=remedy) from error


def is_damage(error: Exception) -> bool:
    """Tell whether an error says that the file is not what it was."""
    if isinstance(error, UnicodeDecodeError):  # SQLite's own message quoted what it could not read
        return True
    if _code_of(error) in _DAMAGED:
        return True
    return isinstance(error, sqlite3.OperationalError) and str(error).startswith(("no such", "Could not decode"))


def _code_of(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF  # the rest of the number is detail
