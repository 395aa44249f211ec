"""Deciding on the applications that callers send, many of them at once, and remembering each.

What belongs here: which application is new, which one repeats what was decided, which one contradicts it, and the way
of the new ones through the one decider into the one log. What does not: how a body is read (`_api_applications.py`),
how one is decided (`deciding.py`) and kept (`decision_log.py`), and HTTP (`api.py`).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from mlops_assets.credit_risk import incidents
from mlops_assets.credit_risk._api_applications import Application, broken
from mlops_assets.credit_risk.deciding import Decider, Request
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.repeats import same_content
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import key_of, period_of
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import ModelVersion
from mlops_assets.foundation.serving import Detail, ModelHolder, Refused, unavailable

CHANNEL = "api"
INCIDENT_SECONDS = 300
"""After how long a caller may ask again while people look at the data."""

_log = logging.getLogger("mlops_assets.service")


@dataclass(frozen=True)
class Champion:
    """The version that serves, with all that decides beside it and its entry in the log."""

    version: ModelVersion
    decider: Decider
    context: str


@dataclass(frozen=True)
class Answer:
    """A decision and its context as the log has them, and whether it had them before this request."""

    record: Mapping[str, Any]
    context: Mapping[str, Any]
    repeated: bool


class Desk:
    """Where applications come in one by one and decisions go out.

    One group is worked on at a time, so that no application is decided twice: the log is read before it is written.

    Parameters
    ----------
    champion
        The model; one group is decided with one model.
    log, operations
        The journals of decisions and of incidents.
    clock
        What tells the time, in UTC.
    """

    def __init__(
        self,
        spec: Spec,
        champion: ModelHolder[Champion],
        log: DecisionLog,
        operations: Journal,
        clock: Callable[[], datetime],
    ) -> None:
        self._spec, self._champion, self._log, self._operations, self._clock = spec, champion, log, operations, clock

    def decide(self, applications: Sequence[Application]) -> list[Answer | Exception]:
        """Return the decision on each, or why there is none; one that repeats another of the group gets its answer."""
        answers: dict[int, Answer | Exception] = {}
        fresh: dict[str, int] = {}
        later: list[int] = []
        for at, application in enumerate(applications):
            if application.application_id in fresh:
                later.append(at)
                continue
            known = self._known(application)
            if known is None:
                fresh[application.application_id] = at
            else:
                answers[at] = known
        made = self._decided([applications[at] for at in fresh.values()]) if fresh else []
        answers.update(zip(fresh.values(), made, strict=True))
        if later:
            answers.update(zip(later, self.decide([applications[at] for at in later]), strict=True))
        return [answers[at] for at in range(len(applications))]

    def find(self, decision_id: str) -> Answer:
        """Return a decision of the log.

        Raises
        ------
        Refused
            Status 404: there is none of this name; 503: the log cannot be read.
        """
        try:
            if not self._log.recorded([decision_id]):
                raise Refused(404, "not_found", "There is no decision of this name.")
            return self._answer(self._log.get(decision_id).body, repeated=True)
        except UserError as error:
            raise _own_fault(error) from error

    def _answer(self, record: Mapping[str, Any], *, repeated: bool) -> Answer:
        return Answer(record, self._log.context_of(record["context_sha256"]), repeated)

    def _known(self, application: Application) -> Answer | Refused | None:
        """Return the decision on this content, a refusal where another content was decided on, None where none was."""
        try:
            earlier = [entry.body for entry in self._log.find(application.application_id)]
            same = next((record for record in earlier if self._same(application, record)), None)
            if same is not None:
                return self._answer(same, repeated=True)
        except UserError as error:
            return _own_fault(error)
        if not earlier:
            return None
        problem = f"was decided on with another content: decision {earlier[-1]['decision_id']}"
        remedy = "send the content that was decided on, or give a new application an id of its own."
        message = "The application is known with another content; nothing was recorded."
        return Refused(409, "another_content", message, details=[Detail("application_id", problem, remedy)])

    def _same(self, application: Application, record: Mapping[str, Any]) -> bool:
        """Tell whether a decision was made on this content, in whatever notation it came."""
        return same_content(self._spec, [(application.row, record)], self._clock())[0]

    def _decided(self, applications: Sequence[Application]) -> list[Answer | Exception]:
        """Decide on applications that the log does not know, and record those that break no rule."""
        try:
            self._refuse_during_incident()
            champion = self._champion.get().model
            made = self._made(applications, champion)
            kept = [record for record in made if not isinstance(record, Refused)]
            answers = iter(self._appended(kept, champion))
        except Refused as refusal:
            return [refusal] * len(applications)
        except UserError as error:
            return [_own_fault(error)] * len(applications)
        return [record if isinstance(record, Refused) else next(answers) for record in made]

    def _appended(self, records: Sequence[Mapping[str, Any]], champion: Champion) -> list[Answer]:
        appended = self._log.append(records, champion.context)
        if appended < len(records):
            # Somebody else recorded the same content a moment ago, and what is in the log stands.
            stored = [self._log.get(record["decision_id"]).body for record in records]
            return [
                self._answer(there, repeated=there["received_at"] != record["received_at"])
                for there, record in zip(stored, records, strict=True)
            ]
        context = self._log.context_of(champion.context)
        return [Answer(record, context, repeated=False) for record in records]

    def _made(self, applications: Sequence[Application], champion: Champion) -> list[dict[str, Any] | Refused]:
        """Return the record of each decision, or what is wrong with the application."""
        now = self._clock()
        moment = now.isoformat()
        request = Request(
            payloads=[each.payload(moment if self._spec.data.timed else None) for each in applications],
            until=now,
            period=self._period(now),
            channel=CHANNEL,
            received_at=moment,
        )
        try:
            decided = champion.decider.decide(request)
            records = [
                {**record, "decided_at": moment, "asked": dict(each.asked)}
                for record, each in zip(champion.decider.records(decided), applications, strict=True)
            ]
        except UserError as error:
            if len(applications) == 1:
                return [_own_fault(error)]
            # One that cannot be decided on keeps no other from its decision.
            return [made for each in applications for made in self._made([each], champion)]
        return [
            broken(self._spec, decided.broken[at]) if at in decided.broken else record
            for at, record in enumerate(records)
        ]

    def _refuse_during_incident(self) -> None:
        found = incidents.open_incidents(self._operations)
        if found:
            told = ", ".join(f"{incident.id} (rule {incident.rule})" for incident in found[:3])
            message = f"A data incident is open, and nothing is decided until people have settled it: {told}."
            raise unavailable("data_incident", message, retry_after=INCIDENT_SECONDS)

    def _period(self, now: datetime) -> str:
        if not self._spec.data.timed:
            return self._spec.periods.start.isoformat()
        return key_of(period_of(self._spec, pd.Series([pd.Timestamp(now)])).iloc[0])


def _own_fault(error: UserError) -> Refused:
    """Return the answer to a fault that the caller has no part in; the log tells it, the caller is told none of it."""
    _log.error("no decision: %s", error, exc_info=error, extra={"fields": {"event": "fault"}})
    return unavailable("undecided", "No decision can be given at the moment; nothing was recorded.")
