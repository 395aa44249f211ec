"""The entries of a journal, what is hashed of them, and what is wrong with a chain of them.

What belongs here: the record, its SHA-256, and the judgement of entries read in order. What does not: where they are
kept (`_journal_store.py`) and how they are written and looked up (`journal.py`).

An entry's SHA-256 is that of the canonical JSON of all its other fields, with the entry before it among them:
anybody can compute it again from `Entry.document` with nothing but a JSON library.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from json.encoder import encode_basestring
from types import MappingProxyType
from typing import Any, NamedTuple

from mlops_assets.foundation.files import sha256_hex

GENESIS = "0" * 64
"""What the first entry follows."""

NO_INDEX: Mapping[str, str] = MappingProxyType({})


class Head(NamedTuple):
    """The last entry of a journal at some moment; kept outside of it, it witnesses all entries up to it."""

    number: int
    sha256: str


@dataclass(frozen=True)
class Problem:
    """What is wrong with one entry; `number` is None where it is the file as a whole."""

    number: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.number is None else f"entry {self.number} {self.what}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it stands in the journal.

    Parameters
    ----------
    number
        Its place, from 1, without gaps.
    kind, key, subject
        What it is; its name among its kind, if it has one; what it is about.
    at
        When it was written (UTC); never before the entry before it.
    behind_us
        Microseconds by which the writer's clock was behind `at`: 0 unless the clock had gone back.
    index
        The values it can be looked up by.
    text
        Its content as canonical JSON; `body` is what that says.
    previous_sha256, sha256
        The hash of the entry before it, and its own.
    fresh
        True on what the very call that returned it has appended.
    """

    number: int
    kind: str
    key: str | None
    subject: str | None
    at: datetime
    behind_us: int
    index: Mapping[str, str]
    text: str
    previous_sha256: str
    sha256: str
    fresh: bool = field(default=False, compare=False)

    @property
    def body(self) -> Any:
        """The content."""
        return json.loads(self.text)

    @property
    def head(self) -> Head:
        """The witness that this entry is of the journal up to it."""
        return Head(self.number, self.sha256)

    @property
    def intact(self) -> bool:
        """Whether the entry still has its SHA-256; whether it still has its place, only `Journal.verify` can tell."""
        row = Row(
            self.number, self.kind, self.key, self.subject, timestamp(self.at), self.behind_us, "", self.text,
            bytes.fromhex(self.previous_sha256), b"",
        )  # fmt: skip
        return sha256_of_row(row, index_json(self.index)) == self.sha256

    def document(self) -> dict[str, Any]:
        """Return what was hashed: the SHA-256 of this as canonical JSON is `sha256`."""
        return {
            "number": self.number,
            "kind": self.kind,
            "key": self.key,
            "subject": self.subject,
            "at": timestamp(self.at),
            "behind_us": self.behind_us,
            "index": dict(self.index),
            "body": self.body,
            "previous_sha256": self.previous_sha256,
        }


class Row(NamedTuple):
    """An entry as a store keeps it: `terms` are the numbers of its index values, hashes are bytes."""

    number: int
    kind: str
    key: str | None
    subject: str | None
    at: str
    behind_us: int
    terms: str
    text: str
    previous: bytes
    sha256: bytes


def timestamp(at: datetime) -> str:
    """Return a time as entries hold it; equally long for all times, so that text sorts as time does."""
    return at.isoformat(timespec="microseconds")


def _quoted(text: str | None) -> str:
    return "null" if text is None else encode_basestring(text)


def index_json(index: Mapping[str, str]) -> str:
    """Return the canonical JSON of an entry's index values."""
    return "{" + ",".join(f"{_quoted(name)}:{_quoted(index[name])}" for name in sorted(index)) + "}"


def document_text(
    at: str,
    behind_us: int,
    text: str,
    index: str,
    key: str | None,
    kind: str,
    number: int,
    previous: str,
    subject: str | None,
) -> str:
    """Return the canonical JSON of what is hashed, put together from its parts.

    The body is canonical JSON already, and parsing it to write it again would cost ten times as much as the hash.
    """
    return (
        f'{{"at":{_quoted(at)},"behind_us":{behind_us},"body":{text},"index":{index},"key":{_quoted(key)},'
        f'"kind":{_quoted(kind)},"number":{number},"previous_sha256":"{previous}","subject":{_quoted(subject)}}}'
    )


def sha256_of_row(row: Row, index: str, *, number: int | None = None, previous: bytes | None = None) -> str:
    """Return the SHA-256 that a row's content gives, or would give in another place."""
    place = row.number if number is None else number
    link = (row.previous if previous is None else previous).hex()
    text = document_text(row.at, row.behind_us, row.text, index, row.key, row.kind, place, link, row.subject)
    # What was read from a damaged file may be no UTF-8: its bytes were kept as surrogates, and go back as they were.
    return sha256_hex(text.encode("utf-8", "surrogateescape"))


class _Seen(NamedTuple):
    """A row that was read, with what its content hashes to now, and the hashes that may count as its own."""

    row: Row
    values: str
    actual: str
    own: tuple[str, ...]

    @property
    def number(self) -> int:
        return self.row.number

    @property
    def sound(self) -> bool:
        return self.actual == self.row.sha256.hex()


class ChainAudit:
    """Judge the entries of a journal one by one, in order; memory does not grow with their number.

    Parameters
    ----------
    heads
        Witnesses from outside.
    limit
        How many problems are told in full; the others are counted.
    start
        The first entry that will be seen; a later one than the first has to be among `heads`, for what it follows is
        not seen.
    """

    def __init__(self, heads: Iterable[Head], limit: int, start: int = 1) -> None:
        self._start = start
        self._witnessed: dict[int, set[str]] = {}
        for number, sha256 in heads:
            if number >= start:
                self._witnessed.setdefault(number, set()).add(sha256.lower())
        self._agreed, self._parted = start - 1, False
        self._limit, self._more = limit, 0
        self._problems: list[Problem] = []
        self._suspects: list[tuple[int, _Seen]] = []
        # The two entries before the one to be judged, and that one: it is judged when its successor is known.
        self._second: _Seen | None = None
        self._first: _Seen | None = None
        self._open: _Seen | None = None

    def add(self, number: int | None, what: str) -> None:
        """Note a problem."""
        if len(self._problems) < self._limit:
            self._problems.append(Problem(number, what))
        else:
            self._more += 1

    def see(self, row: Row, values: str) -> None:
        """Take the next row, with the canonical JSON of its index values."""
        try:
            actual = sha256_of_row(row, values)
            seen = _Seen(row, values, actual, (row.sha256.hex(),))
        except (AttributeError, TypeError, ValueError):
            self.add(row.number, "cannot be read: its fields are no longer of their kinds")
            seen = _Seen(row._replace(previous=b"", sha256=b""), values, "", ())
        self._judge(seen)
        self._second, self._first, self._open = self._first, self._open, seen

    def close(self, recorded: Head | None) -> list[Problem]:
        """Return all that is wrong, given what the journal itself recorded as its last entry."""
        self._judge(None)
        last = self._open
        self._judge_tail(last, recorded)
        end = last.number if last else 0
        for number in sorted(self._witnessed):
            if number > end:
                self.add(number, f"is missing: it was witnessed, and the journal now ends with entry {end}")
        self._name_moved()
        if self._more:
            self._problems.append(Problem(None, f"and {self._more:,} more problems"))
        return self._problems

    def _judge(self, following: _Seen | None) -> None:
        seen, before = self._open, self._first
        if seen is None:
            return
        expected = before.number + 1 if before and before.number > 0 else self._start
        if seen.number > expected:
            many = f", and so are those up to {seen.number - 1}" if seen.number - 1 > expected else ""
            self.add(expected, f"is missing: it was removed{many}")
        elif seen.number < 1:
            self.add(seen.number, "was inserted: the first entry has number 1")
        elif seen.own and not self._follows(seen, before):
            self._judge_link(seen, before)
        if not seen.sound and seen.own:
            self._judge_content(seen, before, following)
        self._judge_witnesses(seen)

    def _judge_witnesses(self, seen: _Seen) -> None:
        """Hold an entry against its witnesses; the first that disagrees bounds the place of the change."""
        witnessed, own = self._witnessed.get(seen.number, set()), seen.row.sha256.hex()
        agrees = own in witnessed
        # Two witnesses that differ tell of a journal that was hashed anew between them.
        for other in sorted(witnessed - {own}):
            where = ""
            if not agrees and not self._parted:
                self._parted = True
                where = f": something between entry {self._agreed + 1} and this one was changed"
            self.add(seen.number, f"is not the one that was witnessed, with SHA-256 {other}{where}")
        if agrees:
            self._agreed, self._parted = seen.number, False

    def _follows(self, seen: _Seen, before: _Seen | None) -> bool:
        link = seen.row.previous.hex()
        if before is None or before.number < 1:
            return link == GENESIS or (seen.number == self._start > 1)
        return link in before.own or not before.own  # of one that cannot be read nothing more is said

    def _judge_link(self, seen: _Seen, before: _Seen | None) -> None:
        if before is None or before.number < 1:
            if seen.sound:
                self.add(seen.number, "does not begin the journal: what it follows was removed")
            return
        first = GENESIS if self._start == 1 else before.row.previous.hex()
        earlier = self._second.own if self._second else (first,)
        if seen.row.previous.hex() in earlier:
            self.add(before.number, f"was inserted: the entry after it follows the one before it ({seen.number} now)")
        elif seen.sound:
            self.add(before.number, f"is not the one that entry {seen.number} follows: it was replaced or reordered")

    def _judge_content(self, seen: _Seen, before: _Seen | None, following: _Seen | None) -> None:
        stored = seen.row.sha256.hex()
        own = before.own if before else (GENESIS,)
        if any(sha256_of_row(seen.row, seen.values, previous=bytes.fromhex(link)) == stored for link in own):
            self.add(seen.number, "had its link to the entry before it changed")
        elif following and following.row.previous.hex() == seen.actual:
            self.add(seen.number, "had its SHA-256 changed: its content is the one that the next entry follows")
            self._open = seen._replace(own=(seen.actual, stored))
        else:
            if len(self._problems) < self._limit:
                self._suspects.append((len(self._problems), seen))
            self.add(seen.number, "was changed: its content does not have its SHA-256 any more")

    def _judge_tail(self, last: _Seen | None, recorded: Head | None) -> None:
        end = last.number if last else 0
        if recorded is None:
            self.add(None, "the journal's record of its last entry was removed")
        elif recorded.number > end:
            self.add(end + 1, f"is missing: the journal recorded entry {recorded.number} as its last")
        elif recorded.number < end:
            self.add(recorded.number + 1, f"was inserted: the journal recorded entry {recorded.number} as its last")
        elif last and recorded.sha256 != last.row.sha256.hex():
            self.add(end, "is not the one that the journal recorded as its last")

    def _name_moved(self) -> None:
        """Say of changed entries which only have another's number that they were moved."""
        numbers = {seen.number for _, seen in self._suspects}
        for position, seen in self._suspects:
            stored, number = seen.row.sha256.hex(), seen.number
            for other in sorted({*numbers, number - 1, number + 1} - {number}):
                if sha256_of_row(seen.row, seen.values, number=other) == stored:
                    self._problems[position] = Problem(number, f"was moved: it was written as entry {other}")
