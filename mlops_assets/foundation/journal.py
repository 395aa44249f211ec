"""An append-only journal: every entry carries the hash of the one before it.

What belongs here: appending, looking up, streaming and verifying entries. What does not: what an entry means (each
system's modules), the chain itself (`_journal_chain.py`) and the file (`_journal_store.py`).

What the chain proves: whoever changes, removes, inserts or moves an entry has to hash all later ones again, so a head
(number and SHA-256 of the last entry) that was noted elsewhere, such as in a run's metadata, vouches for all entries
up to it. Without such a witness a journal only proves that it was not changed in part.

Appending takes a file lock, and commits are flushed to the disk. The file has to lie on a local disk: SQLite's WAL
mode does not work over a network file system.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from mlops_assets.foundation._journal_chain import (
    GENESIS,
    NO_INDEX,
    Entry,
    Head,
    Problem,
    Row,
    document_text,
    index_json,
    timestamp,
)
from mlops_assets.foundation._journal_store import Query, SqliteStore, Writing, terms_text
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json

__all__ = ["GENESIS", "Appended", "Draft", "Entry", "Head", "Journal", "Problem"]

BLOCK_ROWS = 10_000
BLOCK_BYTES = 32 << 20
_PAGE_ROWS = 500
_KNOWN_INDEXES = 20_000
# Also half a surrogate pair, which no file can hold.
_UNRECORDABLE = (TypeError, ValueError, RecursionError)


@dataclass(slots=True)  # not frozen: that would double the time to make one
class Draft:
    """What is to be appended; see `Journal.append`.

    Where `canonical` is said, the body is canonical JSON already: it is written as it is, and whoever made it vouches
    that it is.
    """

    kind: str
    body: Any
    key: str | None = None
    subject: str | None = None
    index: Mapping[str, str] = field(default_factory=dict)
    canonical: bool = False


class Appended(NamedTuple):
    """What became of many drafts: how many were appended, how many were there already, and the journal's head."""

    appended: int
    existing: int
    head: Head


class _Prepared(NamedTuple):
    kind: str
    text: str
    key: str | None
    subject: str | None
    values: Mapping[str, str]


class _Indexed(NamedTuple):
    """A combination of index values: its canonical JSON, and the numbers of the values."""

    json: str
    terms: str
    ids: tuple[int, ...]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Journal:
    """One journal in one file; threads may share it, and any number of processes may append to the same file.

    Parameters
    ----------
    path
        The file. It is made, with its folder, if it is not there; never when `read_only`.
    read_only
        Open for reading alone.
    wait_seconds
        How long to wait for another writer.
    clock
        What tells the time, in UTC.

    Raises
    ------
    UserError
        The file is missing (when `read_only`), damaged, no journal, or cannot be made or opened.

    Notes
    -----
    Times never fall: when the clock has gone back since the last entry, the entry gets the last one's time, and
    `Entry.behind_us` tells by how much the clock was behind it. All entries of one transaction have the same time.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        read_only: bool = False,
        wait_seconds: float = 60.0,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.path = Path(path).absolute()
        self._store = SqliteStore(self.path, read_only=read_only, wait_seconds=wait_seconds)
        self._clock = clock
        self._turn = threading.Lock()
        self._indexes: dict[tuple[tuple[str, str], ...], _Indexed] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; a journal that is used again opens it again."""
        self._store.close()

    def append(
        self,
        kind: str,
        body: Any,
        key: str | None = None,
        subject: str | None = None,
        index: Mapping[str, str] = NO_INDEX,
    ) -> Entry:
        """Append one entry, or return the one of this kind that has this key already.

        Parameters
        ----------
        kind
            What the entry is, such as "decision".
        body
            Its content: anything that has a JSON form.
        key
            Its name among its kind. A key is used once: a second append with it appends nothing, whatever its body.
        subject
            What it is about, such as an application's id.
        index
            Values to look it up by; few different ones a name.

        Returns
        -------
        Entry
            `fresh` tells whether this call appended it.

        Raises
        ------
        UserError
            The body has no JSON form, the disk is full, another process writes for too long, or the journal was
            changed from outside. Nothing is written then.
        """
        prepared = self._prepared(Draft(kind, body, key, subject, index))
        rows = self._append([prepared])
        if rows:
            return replace(self._entry(rows[0], dict(index)), fresh=True)
        found = self.get(kind, key or "")
        assert found is not None  # an append without rows found the key
        return found

    def append_many(self, drafts: Iterable[Draft]) -> Appended:
        """Append many entries in transactions of at most 10,000 entries or 32 MiB; memory holds one of them.

        Drafts whose key is known are passed over, so a call that was interrupted is finished by calling it again.

        Raises
        ------
        UserError
            As for `append`. Earlier transactions of the call are kept, the failed one left nothing.
        """
        appended = existing = 0
        for block in self._blocks(drafts):
            count = len(self._append(block))
            appended += count
            existing += len(block) - count
        return Appended(appended, existing, self.head())

    def get(self, kind: str, key: str) -> Entry | None:
        """Return the entry of a kind with this key, or None."""
        found = self._store.rows_by_key(kind, [key])
        return self._entry(*found[0]) if found else None

    def known(self, kind: str, keys: Iterable[str]) -> set[str]:
        """Return which of these keys a kind has."""
        return self._store.known(kind, list(dict.fromkeys(keys)))

    def names(self, kind: str, subjects: Iterable[str]) -> dict[str, list[str]]:
        """Return the keys of the entries of a kind about these subjects, the oldest first; subjects without are left.

        No content is read: it takes a fraction of what reading the entries does.
        """
        found: dict[str, list[str]] = {}
        for subject, key in self._store.names(kind, list(dict.fromkeys(subjects))):
            found.setdefault(subject, []).append(key)
        return found

    def at(self, number: int) -> Head | None:
        """Return number and SHA-256 that the entry of a number has now, or None where there is none."""
        return self._store.head_at(number)

    def read(
        self,
        kind: str | None = None,
        *,
        subject: str | None = None,
        index: Mapping[str, str] = NO_INDEX,
        since: datetime | None = None,
        until: datetime | None = None,
        after_number: int = 0,
        limit: int | None = None,
        ascending: bool = True,
    ) -> Iterator[Entry]:
        """Stream the entries that meet all conditions, as of this call, with the memory of one page.

        Parameters
        ----------
        kind, subject, index
            Exact values; an entry has to have all values of `index`.
        since, until
            since <= `Entry.at` < until; times with a zone.
        after_number
            Only entries with higher numbers.
        limit
            At most so many.
        ascending
            From the oldest on, or from the newest back.
        """
        head = self.head()
        first, last = after_number, head.number
        if since is not None:
            first = max(first, self._store.last_before(_instant(since)))
        if until is not None:
            last = min(last, self._store.last_before(_instant(until)))
        query = Query(kind, subject, tuple(sorted(index.items())))
        found = self._pages(query, first, last, _PAGE_ROWS if limit is None else min(limit, _PAGE_ROWS), ascending)
        return islice(found, limit)

    def last(
        self, kind: str | None = None, *, subject: str | None = None, index: Mapping[str, str] = NO_INDEX
    ) -> Entry | None:
        """Return the newest entry that meets all conditions, or None."""
        return next(self.read(kind, subject=subject, index=index, limit=1, ascending=False), None)

    def head(self) -> Head:
        """Return number and SHA-256 of the last entry: note them elsewhere, and they vouch for all before.

        An empty journal has the head ``Head(0, GENESIS)``.
        """
        return self._store.head() or Head(0, GENESIS)

    def verify(
        self, heads: Iterable[tuple[int, str]] = (), *, limit: int = 100, after_number: int = 0
    ) -> list[Problem]:
        """Return everything that is wrong with the journal, at most `limit` problems in full; none if it is sound.

        Every entry is hashed again, and the links, the index, the guards and the file itself are checked, as they are
        at one moment; others may append meanwhile.

        Parameters
        ----------
        heads
            Numbers and SHA-256s that were noted elsewhere. Without them, an end that was cut off together with the
            journal's own record of it, or a chain that was hashed anew from some entry on, cannot be told.
        after_number
            Read this entry, which `heads` has to witness, and those after it alone: the cost is that of what is new.
            What was done to entries before it, to the index or to the file, only a full verification finds. A journal
            that ends before it is read in full.

        Raises
        ------
        UserError
            The file cannot be read at all.
        """
        witnesses = [Head(*head) for head in heads]
        start = max(after_number, 1)
        if start > 1 and all(head.number != start for head in witnesses):
            raise ValueError(f"entry {start} is not witnessed: nothing vouches for what is before it")
        if start > 1 and self._store.last_number() < start:
            start = 1
        audit, recorded = self._store.audit(witnesses, limit, start)
        return audit.close(recorded)

    def _blocks(self, drafts: Iterable[Draft]) -> Iterator[list[_Prepared]]:
        block: list[_Prepared] = []
        size = 0
        for draft in drafts:
            prepared = self._prepared(draft)
            block.append(prepared)
            size += len(prepared.text)
            if len(block) >= BLOCK_ROWS or size >= BLOCK_BYTES:
                yield block
                block, size = [], 0
        if block:
            yield block

    def _prepared(self, draft: Draft) -> _Prepared:
        if not draft.kind:
            raise ValueError("an entry needs a kind")
        kind, key, subject = draft.kind, draft.key, draft.subject
        try:
            text = draft.body if draft.canonical else canonical_json(draft.body).decode()
            f"{kind}{key}{subject}".encode()
        except _UNRECORDABLE as error:
            raise self._unrecordable(f"{kind} {key or ''}".strip(), error) from error
        return _Prepared(kind, text, key, subject, draft.index)

    def _unrecordable(self, what: str, error: Exception) -> UserError:
        return UserError(
            f"{what} cannot be recorded: {error}",
            where=str(self.path),
            remedy="record plain numbers, text, lists and mappings; write numbers that are not finite as text.",
        )

    def _append(self, block: list[_Prepared]) -> list[Row]:
        with self._turn:
            try:
                with self._store.writing() as writing:
                    return self._write(writing, block)
            except BaseException:
                self._indexes.clear()  # numbers that the transaction gave out were taken back with it
                raise

    def _write(self, writing: Writing, block: list[_Prepared]) -> list[Row]:
        """Write those of a block whose keys are new, behind the last entry."""
        tail = writing.tail()
        at, behind = self._time(tail.at)
        known = _known(writing, block)
        number, previous = tail.number, tail.sha256
        rows: list[Row] = []
        listed: dict[_Indexed, list[int]] = {}
        for kind, text, key, subject, values in block:
            if key is not None:
                if key in known[kind]:
                    continue
                known[kind].add(key)
            number += 1
            indexed = self._indexed(writing, values)
            document = document_text(at, behind, text, indexed.json, key, kind, number, previous.hex(), subject)
            digest = hashlib.sha256(document.encode()).digest()
            rows.append(Row(number, kind, key, subject, at, behind, indexed.terms, text, previous, digest))
            listed.setdefault(indexed, []).append(number)
            previous = digest
        if rows:
            writing.write(rows, _postings(listed))
        return rows

    def _indexed(self, writing: Writing, index: Mapping[str, str]) -> _Indexed:
        values = tuple(index.items())
        found = self._indexes.get(values)
        if found is None:
            try:
                text = index_json(index)
                text.encode()
            except _UNRECORDABLE as error:
                raise self._unrecordable(f"the index values {dict(index)}", error) from error
            ids = tuple(writing.term(name, index[name]) for name in sorted(index))
            found = _Indexed(text, terms_text(ids), ids)
            if len(self._indexes) >= _KNOWN_INDEXES:
                self._indexes.clear()
            self._indexes[values] = found
        return found

    def _time(self, last: str) -> tuple[str, int]:
        now = self._clock().astimezone(UTC)
        if timestamp(now) >= last:
            return timestamp(now), 0
        behind = datetime.fromisoformat(last) - now
        return last, round(behind.total_seconds() * 1e6)

    def _pages(self, query: Query, first: int, last: int, rows: int, ascending: bool) -> Iterator[Entry]:
        while first < last:
            page = self._store.page(query, after=first, until=last, limit=rows, ascending=ascending)
            for row, index in page:
                yield self._entry(row, index)
            if len(page) < rows:
                return
            if ascending:
                first = page[-1][0].number
            else:
                last = page[-1][0].number - 1

    def _entry(self, row: Row, index: dict[str, str]) -> Entry:
        number, kind, key, subject, at, behind_us, _, text, previous, sha256 = row
        try:
            when, before, own = datetime.fromisoformat(at), previous.hex(), sha256.hex()
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"entry {number} was damaged: {error}",
                where=str(self.path),
                remedy="verify the journal to see what is wrong, and restore the file from a backup.",
            ) from error
        return Entry(number, kind, key, subject, when, behind_us, index, text, before, own)


def _postings(listed: Mapping[_Indexed, Sequence[int]]) -> dict[int, list[int]]:
    """Return the numbers of the entries that have each index value."""
    postings: dict[int, list[int]] = {}
    for indexed, numbers in listed.items():
        for term in indexed.ids:
            postings.setdefault(term, []).extend(numbers)
    return {term: sorted(numbers) for term, numbers in postings.items()}


def _known(writing: Writing, block: list[_Prepared]) -> dict[str, set[str]]:
    """Return the keys of each kind of a block that the journal has already."""
    keys: dict[str, list[str]] = {}
    for prepared in block:
        if prepared.key is not None:
            keys.setdefault(prepared.kind, []).append(prepared.key)
    return {kind: writing.known(kind, names) for kind, names in keys.items()}


def _instant(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError(f"{at} has no time zone")
    return timestamp(at.astimezone(UTC))
