"""What people and runs have to settle before anything else goes on: data incidents, freezes, requests to train.

What belongs here: incidents in the journal `operations`, and what is open of them. What does not: which finding is one
(`batch_rules.py`), what settling one means for its batch (`settling.py`), and what people say about training
(`_training_requests.py`, re-exported here).

Everything is an entry of its own and nothing is changed: an incident is closed by a second entry with its name, of
which the journal takes only one, so two people cannot both close it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets.credit_risk._training_requests import (
    FINGERPRINT_TAG,
    NotedAsk,
    RetrainRequest,
    ask_tags,
    asks,
    freeze,
    frozen,
    note_ask,
    note_training,
    open_requests,
    request_retrain,
    said,
    unfreeze,
)
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.journal import Entry, Journal

if TYPE_CHECKING:
    from mlops_assets.credit_risk.batch_rules import Finding
    from mlops_assets.credit_risk.ingestion import BatchReport

__all__ = [
    "FINGERPRINT_TAG",
    "OUTCOMES",
    "Incident",
    "NotedAsk",
    "RetrainRequest",
    "State",
    "acknowledge",
    "ask_tags",
    "asks",
    "freeze",
    "frozen",
    "history",
    "incident_id",
    "note_ask",
    "note_training",
    "open_incident",
    "open_incidents",
    "open_requests",
    "record",
    "refuse_if_open",
    "request_retrain",
    "resolve_by_new_batch",
    "touched_batches",
    "unfreeze",
]

State = Literal["open", "waived", "resolved"]
OUTCOMES: tuple[State, ...] = ("waived", "resolved")

_INCIDENT, _CLOSED = "incident", "incident_closed"
_SHOWN = 5


@dataclass(frozen=True)
class Incident:
    """A finding on a batch because of which nothing is scored and nothing is trained until somebody settles it.

    Parameters
    ----------
    id
        Made of system, batch, rule, column and occurrence: the same finding has the same id.
    value, bound
        What was found and what would have been in order.
    details
        The finding in a sentence.
    run_id
        The run that found it.
    occurrence
        1, and more where the same finding was opened again after it had been waived.
    state
        ``open``, ``waived`` (the data are right as they are) or ``resolved`` (they were, or will be, replaced).
    by, reason, closed_at
        Who closed it, why and when; None while it is open.
    fresh
        True on what the very call that returned it has opened.
    """

    id: str
    system: str
    period: str
    batch_id: str | None
    rule: str
    column: str | None
    value: Any
    bound: Any
    details: str
    run_id: str | None
    occurrence: int
    opened_at: datetime
    state: State = "open"
    by: str | None = None
    reason: str | None = None
    closed_at: datetime | None = None
    fresh: bool = field(default=False, compare=False)

    @property
    def command(self) -> str:
        """The command that closes it."""
        return f"mlops-assets incidents {self.system} acknowledge {self.id} --by NAME --reason TEXT"

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.batch_id or self.period, self.column) if part)
        found = "" if self.value is None else f", found {self.value}"
        bound = "" if self.bound is None else f", in order would be {self.bound}"
        return f"{self.id} ({self.rule} of {place}{found}{bound})"


def incident_id(system: str, batch_id: str | None, rule: str, column: str | None, occurrence: int = 1) -> str:
    """Return the id of a finding."""
    return sha256_hex(canonical_json([system, batch_id, rule, column, occurrence]))[:12]


def open_incident(
    journal: Journal,
    *,
    system: str,
    period: str,
    batch_id: str | None,
    rule: str,
    column: str | None = None,
    value: Any = None,
    bound: Any = None,
    details: str = "",
    run_id: str | None = None,
    occurrence: int = 1,
) -> Incident:
    """Open an incident; the same finding opens once, and stays closed once it was closed.

    Returns
    -------
    Incident
        As it stands: found again after somebody waived it, it is waived. `fresh` tells whether this call opened it.
    """
    body = {
        "system": system,
        "period": period,
        "batch_id": batch_id,
        "rule": rule,
        "column": column,
        "value": _plain(value),
        "bound": _plain(bound),
        "details": details,
        "run_id": run_id,
        "occurrence": occurrence,
    }
    index = {"rule": rule, **({} if batch_id is None else {"batch_id": batch_id})}
    entry = journal.append(_INCIDENT, body, incident_id(system, batch_id, rule, column, occurrence), period, index)
    return _incident(entry, None if entry.fresh else journal.get(_CLOSED, str(entry.key)))


def record(journal: Journal, system: str, batches: Iterable["BatchReport"], *, run_id: str) -> int:
    """Open an incident for every blocking finding of an ingestion, and resolve those of batches that it replaced.

    A batch that is blocked although all its incidents were waived was judged by other rules since, or the run that
    waived it died half-way: its findings open once more.

    Returns
    -------
    int
        How many incidents were opened.
    """
    opened = 0
    for batch in batches:
        found = [_found(journal, system, batch, finding, run_id, 1) for finding in batch.blocked]
        for occurrence in count(2):
            if batch.status != "blocked" or not found or any(each.state != "waived" for each in found):
                break
            found = [_found(journal, system, batch, finding, run_id, occurrence) for finding in batch.blocked]
        opened += sum(each.fresh for each in found)
        if batch.status == "accepted" and not found:
            resolve_by_new_batch(journal, batch.period, batch.batch_id, run_id)
    return opened


def _found(
    journal: Journal, system: str, batch: "BatchReport", finding: "Finding", run_id: str, occurrence: int
) -> Incident:
    return open_incident(
        journal,
        system=system,
        period=batch.period,
        batch_id=batch.batch_id,
        rule=finding.rule,
        column=finding.column,
        value=finding.value,
        bound=finding.bound,
        details=finding.message,
        run_id=run_id,
        occurrence=occurrence,
    )


def history(journal: Journal) -> list[Incident]:
    """Return all incidents, in the order in which they were opened."""
    closings = {entry.key: entry for entry in journal.read(_CLOSED)}
    return [_incident(entry, closings.get(entry.key)) for entry in journal.read(_INCIDENT)]


def open_incidents(journal: Journal) -> list[Incident]:
    """Return the incidents that nobody has closed, the oldest first."""
    return [incident for incident in history(journal) if incident.state == "open"]


def touched_batches(journal: Journal) -> set[str]:
    """Return the batches that are or were under an incident, unless it was waived."""
    return {each.batch_id for each in history(journal) if each.batch_id is not None and each.state != "waived"}


def acknowledge(journal: Journal, incident: str, by: str, reason: str, outcome: str = "waived") -> Incident:
    """Close an incident, for good.

    Parameters
    ----------
    incident
        Its id.
    outcome
        ``waived``: the data are right as they are. ``resolved``: they are wrong, and are replaced.

    Raises
    ------
    UserError
        There is no such incident, it is closed already, the outcome is neither, or name or reason is empty.
    """
    where = f"incident {incident}"
    if outcome not in OUTCOMES:
        raise UserError(f"{outcome!r} is no outcome", where=where, remedy=f"use one of: {', '.join(OUTCOMES)}.")
    by, reason = said(by, reason, where)
    opened = journal.get(_INCIDENT, incident)
    if opened is None:
        ids = ", ".join(each.id for each in open_incidents(journal))
        remedy = f"name one of those that are open: {ids}." if ids else "no incident is open; nothing is to be done."
        raise UserError("there is no such incident", where=where, remedy=remedy)
    closing = _close(journal, _incident(opened, None), outcome, by, reason, None)
    closed = _incident(opened, closing)
    if not closing.fresh:
        raise UserError(
            f"it was {closed.state} by {closed.by} at {closing.at:%Y-%m-%d %H:%M} UTC: {closed.reason}",
            where=where,
            remedy="an incident is closed once; to have the batch judged again, deliver it again with other content.",
        )
    return closed


def resolve_by_new_batch(journal: Journal, period: str, batch_id: str, run_id: str) -> list[Incident]:
    """Resolve the open incidents of the other batches of a period, which an accepted batch has replaced.

    Returns
    -------
    list of Incident
        Those that this call closed.
    """
    resolved = []
    for incident in open_incidents(journal):
        if incident.period == period and incident.batch_id not in (None, batch_id):
            reason = f"batch {batch_id} was accepted in its place"
            closing = _close(journal, incident, "resolved", f"run {run_id}", reason, batch_id)
            if closing.fresh:
                resolved.append(_incident_closed(incident, closing))
    return resolved


def refuse_if_open(journal: Journal, what: str = "scoring", system: str | None = None) -> None:
    """Refuse to go on while an incident is open.

    Parameters
    ----------
    what
        What is not done meanwhile.
    system
        Named in the message; by default the incident's own.

    Raises
    ------
    UserError
        Incidents are open; it lists them, and the command that closes one.
    """
    found = open_incidents(journal)
    if not found:
        return
    shown = "; ".join(map(str, found[:_SHOWN])) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    others = f", and likewise {', '.join(each.id for each in found[1:])}" if len(found) > 1 else ""
    raise UserError(
        f"no {what} while a data incident is open: {shown}",
        where=system or found[0].system,
        remedy=f"deliver the data again as they should be, or settle the incident: {found[0].command}{others}.",
    )


def _close(journal: Journal, incident: Incident, outcome: str, by: str, reason: str, replaced_by: str | None) -> Entry:
    body = {"outcome": outcome, "by": by, "reason": reason, "replaced_by": replaced_by}
    return journal.append(_CLOSED, body, incident.id, incident.period)


def _incident(opened: Entry, closing: Entry | None) -> Incident:
    incident = Incident(id=str(opened.key), opened_at=opened.at, fresh=opened.fresh, **opened.body)
    return incident if closing is None else _incident_closed(incident, closing)


def _incident_closed(incident: Incident, closing: Entry) -> Incident:
    body = closing.body
    return replace(incident, state=body["outcome"], by=body["by"], reason=body["reason"], closed_at=closing.at)


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: what is not finite or no plain value becomes text."""
    item = getattr(value, "item", None)
    plain = item() if callable(item) else value
    if plain is None or isinstance(plain, bool | int | str):
        return plain
    return plain if isinstance(plain, float) and math.isfinite(plain) else str(plain)
