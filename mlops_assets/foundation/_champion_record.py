"""One decision about the champion: what is hashed and shown of it, and whether what was read back is still that.

What belongs here: the record, and what is wrong with a single one. What does not: the history that the records form
(`_champion.py`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlops_assets.foundation._model_store import json_of
from mlops_assets.foundation.files import sha256_hex

if TYPE_CHECKING:
    import dagster as dg

CLOCK_TOLERANCE = timedelta(hours=1)
"""How far the clocks of two machines that write records may be apart."""

_TEXT, _NUMBER = (str,), (int,)
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("system", "model", "verdict", "by", "reason", "decided_at"), _TEXT),
    **dict.fromkeys(("number", "candidate"), _NUMBER),
    **dict.fromkeys(("version", "from", "to"), (*_NUMBER, type(None))),
    **dict.fromkeys(("sha256", "evidence_sha256", "previous_record_sha256"), (*_TEXT, type(None))),
}
# Only a record that has one of them carries them, so that every other record reads and hashes as it always did.
_OF_APPROVALS = ("candidate_sha256", "trained_by", "requested_by", "expires_at", "approves", "rejects")


@dataclass(frozen=True)
class ChampionRecord:
    """One decision about the champion, as it stands in the event log.

    Parameters
    ----------
    number
        Its place in the history, from 1.
    verdict
        ``promoted``, ``kept``, ``blocked`` or ``rolled_back``; where promotions are approved, ``proposed`` and
        ``rejected`` as well.
    version, sha256
        The champion after this record; None while there is none.
    candidate
        The version that was judged, proposed, approved or rejected, or rolled back to.
    from_version, to_version
        Where the pointer moved from and to; both None where it did not move, and from None for the first champion.
    evidence_sha256
        The evidence it was judged on.
    previous_record_sha256, record_sha256
        The hash of the record before, and of this one's ``text``.
    text
        The record's canonical JSON: what was hashed.
    logged_at
        When the event log received it, which is when the pointer moved; None before that.
    candidate_sha256, trained_by
        Of a proposal and of what was decided on it: the candidate's content, and who trained it, if that is known.
    requested_by
        A JSON list of the people who asked for the training, where an automation trained for them.
    expires_at
        Until when a proposal may be approved.
    approves, rejects
        The ``record_sha256`` of the proposal that this record decides on.
    """

    system: str
    model: str
    number: int
    verdict: str
    version: int | None
    sha256: str | None
    candidate: int
    from_version: int | None
    to_version: int | None
    by: str
    reason: str
    evidence_sha256: str | None
    previous_record_sha256: str | None
    decided_at: datetime
    text: str
    record_sha256: str
    logged_at: datetime | None = None
    candidate_sha256: str | None = None
    trained_by: str | None = None
    expires_at: datetime | None = None
    approves: str | None = None
    rejects: str | None = None
    requested_by: str | None = None

    @property
    def requesters(self) -> tuple[str, ...]:
        """The people who asked for the training; ValueError if they cannot be read."""
        names = json.loads(self.requested_by) if self.requested_by is not None else []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("requested_by")
        return tuple(names)

    @property
    def intact(self) -> bool:
        """Whether the text still has the hash under which it was recorded."""
        return sha256_hex(self.text.encode()) == self.record_sha256

    def metadata(self) -> "dict[str, dg.MetadataValue[Any]]":
        """Return the metadata under which the ``champion`` asset materializes this record."""
        import dagster as dg

        shown = {**_shown(self.text), "record_sha256": self.record_sha256, "record": self.text}
        plain: dict[type, Any] = {int: dg.MetadataValue.int, str: dg.MetadataValue.text}
        return {
            name: dg.MetadataValue.null() if value is None else plain[type(value)](value)
            for name, value in shown.items()
        }

    @classmethod
    def made(cls, body: Mapping[str, Any]) -> "ChampionRecord":
        """Return a new record of this content; what only approvals know is left out where it is None."""
        stated = {name: value for name, value in body.items() if value is not None or name not in _OF_APPROVALS}
        text = json_of(stated, "champion record").decode()
        return cls.read(text, sha256_hex(text.encode()), None)

    @classmethod
    def read(cls, text: str, record_sha256: str, logged_at: datetime | None) -> "ChampionRecord":
        """Return the record that ``text`` holds; ValueError, KeyError or TypeError if it holds none."""
        body = json.loads(text)
        for name, types in {**_TYPES, **{name: _TEXT for name in _OF_APPROVALS if name in body}}.items():
            if type(body[name]) not in types:
                raise TypeError(name)
        for name in {"decided_at", "expires_at"} & body.keys():
            body[name] = datetime.fromisoformat(body[name])
            if body[name].tzinfo is None:
                raise ValueError(name)
        body["from_version"], body["to_version"] = body.pop("from"), body.pop("to")
        return cls(**body, text=text, record_sha256=record_sha256, logged_at=logged_at)


def _shown(text: str) -> dict[str, Any]:
    """Return what the event shows of a record, one key a value."""
    shown: dict[str, Any] = json.loads(text)
    return shown


@dataclass(frozen=True)
class Entry:
    """One materialization of the champion asset: a record, or what is wrong with it."""

    storage_id: int
    logged_at: datetime
    record: ChampionRecord | None
    problem: str | None
    claimed_sha256: str | None

    def __str__(self) -> str:
        number = f"record {self.record.number}" if self.record else "the record"
        return f"{number} of {self.logged_at:%Y-%m-%d %H:%M:%S} UTC (event {self.storage_id})"


def misfits_of(record: ChampionRecord, previous: Entry | None) -> Iterator[str]:
    """Yield where a record does not fit its place in the history."""
    if record.previous_record_sha256 != (previous.claimed_sha256 if previous else None):
        yield f"does not follow {previous or 'the beginning'}: a record was removed, added or changed"
    if record.logged_at and abs(record.decided_at - record.logged_at) > CLOCK_TOLERANCE:
        yield f"says that it was decided at {record.decided_at}, far from when it was logged"


def entry_of(storage_id: int, logged_at: datetime, metadata: Mapping[str, Any]) -> Entry:
    """Return a materialization of the champion asset as it reads now."""
    text, claimed = metadata.get("record"), metadata.get("record_sha256")
    if not isinstance(text, str) or not isinstance(claimed, str):
        return Entry(storage_id, logged_at, None, "a materialization that carries no record", None)
    try:
        record = ChampionRecord.read(text, claimed, logged_at)
    except (ValueError, KeyError, TypeError):
        return Entry(storage_id, logged_at, None, "its record cannot be read", claimed)
    problem = None if record.intact else "its content was changed: it does not have its SHA-256 any more"
    differing = [name for name, value in _shown(text).items() if metadata.get(name) != value]
    if problem is None and differing:
        problem = f"it shows another {', '.join(differing)} than its record"
    return Entry(storage_id, logged_at, record, problem, claimed)
