"""What people say about training: freezes and requests, and what was asked for on their account.

What belongs here: these records in the journal `operations`, and what is open of them. What does not: data incidents
(`incidents.py`, which re-exports this), and whether to train (`retraining.py`).

What asks for a training travels in the tags of the run that it asks for, and that run notes it when it begins to train.
Whoever asks cannot note it: a run that was never launched, or never came to train, would count as the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.journal import Entry, Journal

TRIGGER_TAG, FINGERPRINT_TAG, REASON_TAG = (f"mlops_assets/{name}" for name in ("trigger", "fingerprint", "reason"))

_FREEZE, _REQUEST, _ASK = "freeze", "retrain_request", "retrain_ask"


@dataclass(frozen=True)
class RetrainRequest:
    """A person's request to train."""

    id: str
    by: str
    reason: str
    at: datetime


@dataclass(frozen=True)
class NotedAsk:
    """A training that was asked for, and the people's requests that it answers."""

    trigger: str
    fingerprint: str
    reason: str
    period: str
    requests: tuple[str, ...]
    at: datetime


def freeze(journal: Journal, by: str, reason: str) -> None:
    """Let no training be asked for until it is lifted.

    Raises
    ------
    UserError
        It is frozen already, or name or reason is empty.
    """
    by, reason = said(by, reason, "freeze")
    already = frozen(journal)
    if already is not None:
        raise UserError(f"training is frozen already, {already}", where="freeze", remedy="lift that freeze first.")
    journal.append(_FREEZE, {"frozen": True, "by": by, "reason": reason})


def unfreeze(journal: Journal, by: str, reason: str) -> None:
    """Lift a freeze.

    Raises
    ------
    UserError
        Nothing is frozen, or name or reason is empty.
    """
    by, reason = said(by, reason, "unfreeze")
    if frozen(journal) is None:
        raise UserError("training is not frozen", where="unfreeze", remedy="nothing is to be done.")
    journal.append(_FREEZE, {"frozen": False, "by": by, "reason": reason})


def frozen(journal: Journal) -> str | None:
    """Return by whom, since when and why no training may be asked for; None if it may."""
    last = journal.last(_FREEZE)
    if last is None or not last.body["frozen"]:
        return None
    return f"by {last.body['by']} since {last.at:%Y-%m-%d %H:%M} UTC: {last.body['reason']}"


def request_retrain(journal: Journal, by: str, reason: str) -> RetrainRequest:
    """Ask for a training, as a person.

    Raises
    ------
    UserError
        Name or reason is empty.
    """
    by, reason = said(by, reason, "request to train")
    return _request(journal.append(_REQUEST, {"by": by, "reason": reason}))


def open_requests(journal: Journal) -> list[RetrainRequest]:
    """Return the requests that no training has answered, the oldest first."""
    answered = {request for ask in asks(journal) for request in ask.requests}
    found = [_request(entry) for entry in journal.read(_REQUEST)]
    return [request for request in found if request.id not in answered]


def note_ask(journal: Journal, *, trigger: str, fingerprint: str, reason: str, period: str) -> NotedAsk:
    """Note that a training was asked for, which answers every request that is open, whatever the trigger.

    The same fingerprint is noted once.
    """
    body = {
        "trigger": trigger,
        "reason": reason,
        "period": period,
        "requests": [request.id for request in open_requests(journal)],
    }
    return _ask(journal.append(_ASK, body, fingerprint, period))


def ask_tags(*, trigger: str, fingerprint: str, reason: str) -> dict[str, str]:
    """Return the tags of a run by which it knows what asked for it."""
    return {TRIGGER_TAG: trigger, FINGERPRINT_TAG: fingerprint, REASON_TAG: reason}


def note_training(journal: Journal, tags: Mapping[str, str], period: str) -> NotedAsk | None:
    """Note what asked for the run with these tags, as it begins to train; None where a person launched it."""
    if FINGERPRINT_TAG not in tags:
        return None
    trigger, reason = tags.get(TRIGGER_TAG, "unknown"), tags.get(REASON_TAG, "")
    return note_ask(journal, trigger=trigger, fingerprint=tags[FINGERPRINT_TAG], reason=reason, period=period)


def asks(journal: Journal) -> list[NotedAsk]:
    """Return the trainings that were asked for, the oldest first."""
    return [_ask(entry) for entry in journal.read(_ASK)]


def _request(entry: Entry) -> RetrainRequest:
    return RetrainRequest(f"request-{entry.number}", entry.body["by"], entry.body["reason"], entry.at)


def _ask(entry: Entry) -> NotedAsk:
    body = entry.body
    return NotedAsk(body["trigger"], str(entry.key), body["reason"], body["period"], tuple(body["requests"]), entry.at)


def said(by: str, reason: str, where: str) -> tuple[str, str]:
    """Return who and why, without which nothing is settled."""
    for what, text in (("name", by), ("reason", reason)):
        if not text.strip():
            raise UserError(
                f"the {what} is empty",
                where=where,
                remedy="say who decides it and why; both are kept for whoever asks later.",
            )
    return by.strip(), reason.strip()
