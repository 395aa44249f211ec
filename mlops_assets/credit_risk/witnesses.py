"""Heads of the decision log in Dagster's event log: who cuts or rewrites the one has to change the other as well.

What belongs here: noting a head, reading the noted ones, and holding the log against them. What does not: the chain
(`foundation/journal.py`), and what decisions are (`decision_log.py`).

Runs note a head with the asset's materialization. What is appended between runs, by the service and by re-scoring, is
noted in observations of the same asset. No head is noted of a log that contradicts the newest one: a forged log must
not get a witness of its own.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.journal import Head, Problem

if TYPE_CHECKING:
    from dagster import DagsterInstance

ENTRIES, HEAD = "log_entries", "log_head_sha256"
_FIRST, _PAGE = 10, 500  # mostly the newest is all that is asked for

_log = logging.getLogger("mlops_assets.service")


def witness(log: DecisionLog) -> dict[str, Any]:
    """Return the log's head as metadata."""
    head = log.head()
    return {ENTRIES: head.number, HEAD: head.sha256}


def witnesses(instance: "DagsterInstance", system: str) -> Iterator[Head]:
    """Yield every head that the event log is witness of, the newest first."""
    found = heapq.merge(_noted(instance, system, "materialization"), _noted(instance, system, "observation"))
    return (head for _, head in found)


def _noted(instance: "DagsterInstance", system: str, kind: str) -> Iterator[tuple[float, Head]]:
    """Yield the heads in events of a kind, by how long ago they were noted."""
    import dagster as dg

    fetch = instance.fetch_materializations if kind == "materialization" else instance.fetch_observations
    key, cursor, limit = dg.AssetKey([system, "decisions"]), None, _FIRST
    while True:
        page = fetch(key, limit=limit, cursor=cursor)
        for event in page.records:
            told = event.asset_materialization or event.asset_observation
            found = told.metadata if told else {}
            if ENTRIES in found and HEAD in found and found[ENTRIES].value:
                yield -event.timestamp, Head(int(str(found[ENTRIES].value)), str(found[HEAD].value))
        if not page.has_more:
            return
        cursor, limit = page.cursor, _PAGE


@dataclass(frozen=True)
class Standing:
    """How the log stands to its newest witnesses.

    Parameters
    ----------
    heads
        The newest witnesses, back to the first that agrees.
    agreed
        The number of the entry that this one vouches for; 0 where none does.
    problems
        What is wrong with the log from there on.
    """

    heads: tuple[Head, ...]
    agreed: int
    problems: tuple[Problem, ...]


def standing(log: DecisionLog, instance: "DagsterInstance", system: str) -> Standing:
    """Judge the log from the newest witness that agrees on; what is older costs nothing.

    Something that was changed before that entry, with no entry after it hashed anew, only a verification of the whole
    log finds (`Tracer.verify_log`, which the command ``replay`` does).
    """
    heads: list[Head] = []
    agreed = 0
    for head in witnesses(instance, system):
        heads.append(head)
        if _agrees(log, head):
            agreed = head.number
            break
    return Standing(tuple(heads), agreed, tuple(log.verify(heads, after_number=agreed)))


def refuse_forged(log: DecisionLog, instance: "DagsterInstance", system: str) -> Standing:
    """Return how the log stands, if nothing is wrong with it.

    Raises
    ------
    UserError
        The log is broken, or contradicts a witness: nothing may be appended to it.
    """
    found = standing(log, instance, system)
    if found.problems:
        entries_first = sorted(found.problems, key=lambda problem: problem.number is None)
        raise UserError(
            f"nothing is appended to a log that was changed: {'; '.join(map(str, entries_first[:3]))}",
            where=str(log.journal.path),
            remedy=f"restore the file from a backup; `mlops-assets replay {system} --all` tells all that is wrong.",
        )
    return found


def note(log: DecisionLog, instance: "DagsterInstance", system: str) -> Head:
    """Note the log's head, if the newest witness still agrees with the log, and return it.

    Raises
    ------
    UserError
        The newest witness contradicts the log, which gets no further one.
    """
    import dagster as dg

    newest = next(witnesses(instance, system), None)
    head = log.head()
    if newest is not None and not _agrees(log, newest):
        raise UserError(
            f"entry {newest.number} is not the one that was witnessed, with SHA-256 {newest.sha256}",
            where=str(log.journal.path),
            remedy=f"restore the file from a backup; `mlops-assets replay {system} --all` tells all that is wrong.",
        )
    if head.number and head != newest:
        key = dg.AssetKey([system, "decisions"])
        noted: dict[str, Any] = {ENTRIES: head.number, HEAD: head.sha256}
        instance.report_runless_asset_event(dg.AssetObservation(key, metadata=noted))
    return head


def _agrees(log: DecisionLog, head: Head) -> bool:
    there = log.journal.at(head.number)
    return there is not None and there.sha256 == head.sha256.lower()


class Notary:
    """Notes the heads of a log that a service appends to, again and again.

    Parameters
    ----------
    entries
        How many new entries are not left without a witness.
    seconds
        How long even a single one is.
    clock
        What tells how much time went by, in seconds.

    Notes
    -----
    Nothing is raised: a service goes on deciding without its notary, and `problem` says what is the matter.
    """

    def __init__(
        self,
        log: DecisionLog,
        instance: "DagsterInstance",
        system: str,
        *,
        entries: int = 100,
        seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._instance, self._system = log, instance, system
        self._entries, self._seconds, self._clock = entries, seconds, clock
        self._turn = threading.Lock()
        self._noted: Head | None = None
        self._since = clock()
        self.problem: str | None = None

    def look(self) -> None:
        """Note the head if enough is new, or was new for long enough; a service asks every few seconds."""
        self._attempt(always=False)

    def close(self) -> None:
        """Note the head, whatever is new."""
        self._attempt(always=True)

    def _attempt(self, *, always: bool) -> None:
        with self._turn:
            try:
                if always or self._is_time():
                    self._noted, self._since = note(self._log, self._instance, self._system), self._clock()
                    self.problem = None
            except Exception as error:  # noqa: BLE001 - whatever the event log does, decisions go on
                told = f"the decision log has no new witness: {error}"
                if told != self.problem:  # the same fault every few seconds would drown the log
                    _log.error("%s", told, extra={"fields": {"event": "fault"}})
                self.problem = told
                self._since = self._clock()

    def _is_time(self) -> bool:
        if self._noted is None:
            return True  # what the last service left behind when it was killed
        new = self._log.head().number - self._noted.number
        if not new:
            self._since = self._clock()
        return new < 0 or new >= self._entries or (new > 0 and self._clock() - self._since >= self._seconds)
