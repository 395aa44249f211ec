"""Where a journal's entries are kept: one SQLite file in WAL mode.

What belongs here: transactions and look-ups. What does not: the tables (`_journal_tables.py`), the file
(`_journal_file.py`), hashes and what follows what (`_journal_chain.py`). No SQL is known outside of these modules;
another database would come as another class with the public methods of `SqliteStore`.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from mlops_assets.foundation._journal_chain import ChainAudit, Head, Row, index_json
from mlops_assets.foundation._journal_file import JournalFile, is_damage
from mlops_assets.foundation._journal_tables import index_problems, schema_problems
from mlops_assets.foundation.errors import UserError

_KNOWN_TERMS = 50_000
_LOOKUP_KEYS = 500
_LARGEST = 2**63 - 1

_COLUMNS = "e.number, e.kind, e.key, e.subject, e.at, e.behind_us, e.terms, e.body, e.previous_sha256, e.sha256"


class Tail(NamedTuple):
    """What the next entry follows."""

    number: int
    sha256: bytes
    at: str


class Query(NamedTuple):
    """Which entries are asked for; `terms` are (name, value)."""

    kind: str | None
    subject: str | None
    terms: tuple[tuple[str, str], ...]


class SqliteStore:
    """The entries of one journal in one file, for any number of threads and processes.

    Parameters
    ----------
    path
        The file; it is made if it is not there, unless `read_only`.
    wait_seconds
        How long to wait for another writer's transaction.
    """

    def __init__(self, path: Path, *, read_only: bool, wait_seconds: float) -> None:
        self.path = path
        self._file = JournalFile(path, read_only=read_only, wait_seconds=wait_seconds)
        self._terms: dict[int, tuple[str, str]] = {}

    def close(self) -> None:
        """Give the file back; the next use opens it again."""
        self._file.close()

    @contextmanager
    def writing(self) -> Iterator["Writing"]:
        """Open the one transaction that may write now; all of it is there at its end, or nothing."""
        if self._file.read_only:
            raise UserError(
                "this journal was opened for reading", where=str(self.path), remedy="open it without `read_only`."
            )
        with self._file.connection() as connection:
            connection.execute("begin immediate")
            yield Writing(self, connection)
            connection.execute("commit")

    def head(self) -> Head | None:
        """Return what the journal recorded as its last entry; None if that record is gone."""
        with self._file.connection() as connection:
            return _recorded(connection)

    def head_at(self, number: int) -> Head | None:
        """Return number and SHA-256 of an entry as they stand."""
        with self._file.connection() as connection:
            found = connection.execute("select sha256 from entries where number = ?", [number]).fetchone()
            return Head(number, bytes(found[0]).hex()) if found else None

    def last_number(self) -> int:
        """Return the highest number of an entry, whatever the journal recorded as its last; 0 where there is none."""
        with self._file.connection() as connection:
            return connection.execute("select max(number) from entries").fetchone()[0] or 0

    def rows_by_key(self, kind: str, keys: Sequence[str]) -> list[tuple[Row, dict[str, str]]]:
        """Return the entries of a kind with these keys, and their index values."""
        with self._file.connection() as connection:
            return list(self._by_key(connection, kind, keys))

    def known(self, kind: str, keys: Sequence[str]) -> set[str]:
        """Return which of these keys a kind has."""
        with self._file.connection() as connection:
            return _known_keys(connection, kind, keys)

    def names(self, kind: str, subjects: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield subject and key of the entries of a kind about these subjects, the oldest first for each."""
        with self._file.connection() as connection:
            for some in _portions(subjects):
                sql = (
                    "select subject, key from entries indexed by entry_subject "
                    f"where subject in ({_marks(some)}) and kind = ? and key is not null order by number"
                )
                yield from connection.execute(sql, [*some, kind]).fetchall()

    def page(
        self, query: Query, *, after: int, until: int, limit: int, ascending: bool
    ) -> list[tuple[Row, dict[str, str]]]:
        """Return the first `limit` entries with after < number <= until, from the chosen end."""
        with self._file.connection() as connection:
            terms = [_term_id(connection, term) for term in query.terms]
            if None in terms:
                return []
            sql, parameters = _selection(query, terms, after=after, until=until, ascending=ascending)
            found = connection.execute(f"{sql} limit {limit}", parameters).fetchall()
            return [self._with_index(connection, Row(*row)) for row in found]

    def last_before(self, at: str) -> int:
        """Return the number of the last entry written before a time; times never fall, so halving finds it."""
        with self._file.connection() as connection:
            head = _recorded(connection)
            low, high = 0, head.number if head else 0
            while low < high:
                middle = (low + high + 1) // 2
                found = connection.execute("select at from entries where number = ?", [middle]).fetchone()
                low, high = (middle, high) if found and found[0] < at else (low, middle - 1)
            return low

    def audit(self, heads: Iterable[Head], limit: int, start: int = 1) -> tuple[ChainAudit, Head | None]:
        """Judge the file as it is at one moment: the chain, and unless it is read from a later start, all else too."""
        audit = ChainAudit(heads, limit, start)
        with self._file.connection() as connection:
            connection.text_factory = _lenient
            try:
                connection.execute("begin")
                recorded = _recorded(connection)
                for what in schema_problems(connection):
                    audit.add(None, what)
                postings = self._audit_entries(connection, audit, start)
                if start == 1:
                    for number, what in index_problems(connection, postings):
                        audit.add(number, what)
                    for (what,) in connection.execute("pragma integrity_check(20)"):
                        if what != "ok":
                            audit.add(None, f"the file is damaged: {what}")
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not is_damage(error):
                    raise
                audit.add(None, f"the file is damaged: {error}")
                recorded = None
            finally:
                connection.text_factory = str
                with suppress(sqlite3.Error):
                    connection.execute("rollback")
        return audit, recorded

    def _audit_entries(self, connection: sqlite3.Connection, audit: ChainAudit, start: int) -> int:
        postings = 0
        values = _Values(connection)
        # An entry that was numbered below the first one is read as well.
        chosen = f"where e.number >= {start}" if start > 1 else ""
        for raw in connection.execute(f"select {_COLUMNS} from entries e {chosen} order by e.number"):
            row = Row(*raw)
            ids = _ids_of(row.terms)
            index = dict(found for term in ids if (found := values.of(term)))
            if len(index) != len(ids) or row.terms != terms_text(ids) or list(index) != sorted(index):
                audit.add(row.number, "had its index values changed")
            postings += len(ids)
            audit.see(row, index_json(index))
        return postings

    def _with_index(self, connection: sqlite3.Connection, row: Row) -> tuple[Row, dict[str, str]]:
        index: dict[str, str] = {}
        for term in _ids_of(row.terms):
            found = self._terms.get(term)
            if found is None:
                found = connection.execute("select name, value from terms where id = ?", [term]).fetchone()
                if found is None:  # `verify` tells
                    continue
                if len(self._terms) >= _KNOWN_TERMS:
                    self._terms.clear()
                self._terms[term] = found
            index[found[0]] = found[1]
        return row, index

    def _by_key(
        self, connection: sqlite3.Connection, kind: str, keys: Sequence[str]
    ) -> Iterator[tuple[Row, dict[str, str]]]:
        for some in _portions(keys):
            sql = (
                f"select {_COLUMNS} from entries e indexed by entry_key where e.kind = ? and e.key in ({_marks(some)})"
            )
            for row in connection.execute(sql, [kind, *some]).fetchall():
                yield self._with_index(connection, Row(*row))


class Writing:
    """One transaction that may write."""

    def __init__(self, store: SqliteStore, connection: sqlite3.Connection) -> None:
        self._store, self._connection = store, connection

    def tail(self) -> Tail:
        """Return what the next entry follows.

        Raises
        ------
        UserError
            The last entry is not the one that the journal recorded as its last: somebody has been at the file.
        """
        recorded = _recorded(self._connection)
        last = self._connection.execute(
            "select number, sha256, at from entries order by number desc limit 1"
        ).fetchone() or (0, bytes(32), "")
        if recorded is None or recorded != Head(last[0], last[1].hex()):
            told = f"recorded entry {recorded.number} as its last" if recorded else "lost the record of its last entry"
            raise UserError(
                f"the journal was changed from outside: it {told}, and ends with entry {last[0]}",
                where=str(self._store.path),
                remedy="verify it to see what is wrong, and restore the file from a backup; nothing was appended.",
            )
        return Tail(*last)

    def known(self, kind: str, keys: Sequence[str]) -> set[str]:
        """Return which of these keys a kind has."""
        return _known_keys(self._connection, kind, keys)

    def term(self, name: str, value: str) -> int:
        """Return the number of an index value; a new value gets one."""
        found = _term_id(self._connection, (name, value))
        if found is None:
            found = self._connection.execute("insert into terms (name, value) values (?, ?)", [name, value]).lastrowid
        return found  # type: ignore[return-value]  # an insert has a row id

    def write(self, rows: Sequence[Row], postings: Mapping[int, Sequence[int]]) -> None:
        """Add rows that follow the tail, and under which index values they can be found."""
        execute = self._connection.execute
        self._connection.executemany("insert into entries values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        for term in sorted(postings):
            # One statement a value: half the time of one a row.
            execute("insert into entry_index select ?, value from json_each(?)", [term, terms_text(postings[term])])
        last = rows[-1]
        execute("update last_entry set number = ?, sha256 = ?", [last.number, last.sha256])


class _Values:
    """Index values by their number, as an audit meets them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[int, tuple[str, str] | None] = {}

    def of(self, term: int) -> tuple[str, str] | None:
        if term not in self._known:
            if len(self._known) >= _KNOWN_TERMS:
                self._known.clear()
            sql = "select name, value from terms where id = ?"
            self._known[term] = self._connection.execute(sql, [term]).fetchone()
        return self._known[term]


def _lenient(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _recorded(connection: sqlite3.Connection) -> Head | None:
    found = connection.execute("select number, sha256 from last_entry").fetchone()
    return Head(found[0], found[1].hex()) if found else None


def _term_id(connection: sqlite3.Connection, term: tuple[str, str]) -> int | None:
    found = connection.execute("select id from terms where name = ? and value = ?", term).fetchone()
    return found[0] if found else None


def _known_keys(connection: sqlite3.Connection, kind: str, keys: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for some in _portions(keys):
        sql = f"select key from entries indexed by entry_key where kind = ? and key in ({_marks(some)})"
        known.update(key for (key,) in connection.execute(sql, [kind, *some]))
    return known


def _portions(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[first : first + _LOOKUP_KEYS] for first in range(0, len(keys), _LOOKUP_KEYS))


def _marks(keys: Sequence[str]) -> str:
    return ",".join("?" * len(keys))


def terms_text(ids: Iterable[int]) -> str:
    """Return the numbers of an entry's index values as its row holds them."""
    return f"[{','.join(map(str, ids))}]"


def _ids_of(terms: str) -> list[int]:
    try:
        ids = [int(part) for part in terms[1:-1].split(",") if part]
    except (TypeError, ValueError):  # damaged, as `verify` tells
        return []
    return ids if all(0 < term <= _LARGEST for term in ids) else []


def _selection(
    query: Query, terms: Sequence[int | None], *, after: int, until: int, ascending: bool
) -> tuple[str, list[Any]]:
    """Return the statement for a query: the subject leads, else the index values, else the kind, else the numbers.

    Which index leads is said, because SQLite knows nothing of how rare a value is and would read the whole journal.
    """
    where: list[str] = []
    parameters: list[Any] = []
    source, number = "entries e", "e.number"
    if query.subject is not None:
        source += " indexed by entry_subject"
        where.append("e.subject = ?")
        parameters.append(query.subject)
        for term in terms:
            where.append("exists (select 1 from entry_index i where i.term = ? and i.number = e.number)")
            parameters.append(term)
    elif terms:
        number = "i0.number"
        source = " cross join ".join([*(f"entry_index i{place}" for place in range(len(terms))), "entries e"])
        for place, term in enumerate(terms):
            where += [f"i{place}.term = ?", f"i{place}.number = {number}"]
            parameters.append(term)
        where.append(f"e.number = {number}")
    elif query.kind is not None:
        source += " indexed by entry_kind"
    if query.kind is not None:
        where.append("e.kind = ?")
        parameters.append(query.kind)
    where += [f"{number} > ?", f"{number} <= ?"]
    order = f"{number} {'asc' if ascending else 'desc'}"
    sql = f"select {_COLUMNS} from {source} where {' and '.join(where)} order by {order}"
    return sql, [*parameters, after, until]
