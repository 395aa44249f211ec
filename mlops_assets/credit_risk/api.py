"""Decisions on credit applications over HTTP, one application a request.

What belongs here: the routes, what is told of a decision, and the app with the champion that it serves. What does not:
what every service has (foundation/serving.py), and how an application is read (`_api_applications.py`) and decided on
(`_api_decisions.py`).

An application goes the way that one of a batch goes: the same contract, the same decider, the same log. The difference
is what becomes of one that breaks a rule of the data: a batch refers it to a human, a caller is told and can mend it.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from pydantic import BaseModel, Field

from mlops_assets.credit_risk import pipeline
from mlops_assets.credit_risk._api_applications import application_model, read
from mlops_assets.credit_risk._api_decisions import Answer, Champion, Desk
from mlops_assets.credit_risk.deciding import Decider
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.policy import RULES
from mlops_assets.credit_risk.reasons import explain
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.witnesses import Notary
from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import Registry
from mlops_assets.foundation.serving import (
    ModelHolder,
    ModelIdentity,
    Refused,
    Service,
    ServiceSettings,
    create_app,
    serve,
)

if TYPE_CHECKING:
    import dagster as dg
    from fastapi import FastAPI

PATH = "/v1/credit/decisions"
RUN = "service"
"""Stands in a decision's context where the id of a run stands in that of a batch."""

GROUP = 64
"""How many applications that came at the same time are decided and written together."""

_LEAST_FREE = 64 << 20
_log = logging.getLogger("mlops_assets.service")
_DECISION_ID = re.compile(r"[0-9a-f]{32}")
_RESPONSES = {
    200: "The application was decided on before, with the same content: the decision of then.",
    409: "The application is known with another content.",
    422: "A field is unknown or protected, or the application breaks a rule of the data. Nothing was recorded.",
    503: "A data incident is open, no champion serves, or the log cannot be written. Nothing was recorded.",
}
_ABOUT = """Accept, refer or reject, with the reasons in plain words, for one application.

The same application with the same content is decided once: a second request gets the first decision, status 200 and
`repeated`. Another content under the same id is refused with 409. An application that breaks a rule of the data (a
value that is missing, cannot be read or lies outside its range) is answered with 422, the rule, the value and the bound
of every breach, and is not recorded. Protected attributes are refused by name.

A referral is a decision for a human, who is not bound by the probability."""


class Reason(BaseModel):
    """One reason for the risk of an application, the weightiest first."""

    theme: str
    text: str = Field(description="The reason in plain words.")
    features: list[str] = Field(description="The features behind it, the weightiest first.")


class DecidedBy(BaseModel):
    """What a decision was made with: enough to make it again."""

    model: str
    version: int
    sha256: str
    kind: str
    policy: str = Field(description="Version of the cut-offs and rules.")
    reasons: str = Field(description="Version of the sentences.")
    features: str = Field(description="Version of the feature schema.")


class Decision(BaseModel):
    """A decision as the log has it."""

    decision_id: str = Field(description="Under which it can be asked for again and traced.")
    application_id: str
    decision: Literal["accept", "refer", "reject"]
    rule: str = Field(description="The rule that decided.")
    rule_text: str = Field(description="The rule in plain words.")
    probability_of_default: float | None = Field(description="Calibrated, 0 to 1; null where nothing was scored.")
    points: int | None = Field(description="Points of the scorecard, higher is safer; null for a model without points.")
    reasons: list[Reason] = Field(description="What raised the risk most, at most four; empty where nothing did.")
    decided_at: datetime
    channel: str = Field(description="How the application came in: api or batch.")
    period: str = Field(description="First day of the period that it counts in.")
    decided_by: DecidedBy
    repeated: bool = Field(description="Whether the decision had been made before this request.")


def create_api(
    spec: Spec,
    champion: ModelHolder[Champion],
    log: DecisionLog,
    operations: Journal,
    settings: ServiceSettings | None = None,
    *,
    clock: Callable[[], datetime] = pipeline.now,
    notary: Notary | None = None,
) -> "FastAPI":
    """Return the app that decides on applications.

    Parameters
    ----------
    champion
        The model that serves, as `champion_holder` makes it.
    log, operations
        The journals of decisions and of incidents.
    settings
        Where the service may be reached, and its limits.
    clock
        What tells the time, in UTC.
    notary
        What notes the log's head when the service stops; while it runs, the holder's polling asks it.

    Raises
    ------
    UserError
        As `create_app`.
    """
    desk = Desk(spec, champion, log, operations, clock)

    def register(service: Service) -> None:
        _add_routes(service, spec, desk)

    def stop() -> None:
        if notary is not None:
            notary.close()
        log.journal.close()
        operations.close()

    return create_app(
        spec.name,
        register,
        settings,
        holders=[champion],
        checks={"decision log": lambda: _unfit(log.journal, notary), "incidents": lambda: _unreadable(operations)},
        on_stop=stop,
        description=spec.description,
    )


def service_of(
    spec: Spec,
    place: Environment,
    instance: "dg.DagsterInstance",
    settings: ServiceSettings | None = None,
    *,
    poll_seconds: float = 10.0,
) -> "FastAPI":
    """Return the app that serves the champion of a Dagster instance, and follows it when it changes.

    One process serves a system: what makes that an application is decided once is its order of work.

    Parameters
    ----------
    place
        Where versions and journals are.
    poll_seconds
        How often the event log is asked which version is champion.
    """
    resources: Mapping[str, Any] = place.resources()
    journals, registry = resources["journals"], resources["models"].open()
    log = DecisionLog(journals.open(spec.name, "decisions"))
    notary = Notary(log, instance, spec.name)
    champion = champion_holder(spec, instance, registry, log, poll_seconds=poll_seconds, notary=notary)
    return create_api(spec, champion, log, journals.open(spec.name, "operations"), settings, notary=notary)


def serve_system(
    spec: Spec, place: Environment, instance: "dg.DagsterInstance", *, host: str = "127.0.0.1", port: int = 8000
) -> None:
    """Serve decisions until the process is told to stop; tokens come from ``MLOPS_ASSETS_SERVICE_TOKENS``.

    Raises
    ------
    UserError
        The address cannot be listened on, or is not this machine's own and there are no tokens.
    """
    serve(service_of(spec, place, instance, ServiceSettings(host=host, port=port)))


def champion_holder(
    spec: Spec,
    instance: "dg.DagsterInstance",
    registry: Registry,
    log: DecisionLog,
    *,
    poll_seconds: float = 10.0,
    notary: Notary | None = None,
) -> ModelHolder[Champion]:
    """Return a holder of the champion in Dagster's event log: approved, unaltered, and tried out before it serves.

    It decides by the policy that was approved with it. Whenever the holder asks for the champion, it has the notary
    look whether the decision log wants a witness.
    """
    history = pipeline.history_of(spec, instance, registry)

    def identify() -> ModelIdentity | None:
        if notary is not None:
            notary.look()
        record = history.current()
        if record is None or record.version is None or record.sha256 is None:
            return None
        return ModelIdentity(str(record.version), record.sha256, record.logged_at)

    def load(wanted: ModelIdentity) -> Champion:
        version = registry.get(history.model, int(wanted.version))
        if version.sha256 != wanted.sha256:
            raise UserError(
                f"{version} has SHA-256 {version.sha256}, but {wanted.sha256} is champion",
                where=f"{spec.name}/champion",
                remedy="restore the version from a backup, or roll back to another one.",
            )
        policy = pipeline.approved_policy(spec, history, version)
        if waiting := pipeline.waiting_policy(spec, policy):
            _log.warning("%s", waiting, extra={"fields": {"event": "policy_waits"}})
        decider = pipeline.load_decider(spec, registry, version, policy.to_dict())
        _try_out(decider)
        context = pipeline.decision_context(spec, decider, version, RUN)
        return Champion(version, decider, log.context(context))

    return ModelHolder("champion", identify, load, poll_seconds=poll_seconds)


def _try_out(decider: Decider) -> None:
    """Let a new model answer once, on an application of which nothing is known: a broken one must not serve."""
    schema = decider.model.schema
    nothing = schema.matrix(pd.DataFrame([dict.fromkeys(schema.names)], dtype=object))
    explain(decider.model.score(nothing), nothing, schema, most=decider.policy.reasons)
    decider.outliers.score(nothing)


def _add_routes(service: Service, spec: Spec, desk: Desk) -> None:
    from fastapi import Request, Response

    decided = service.metrics.counter("credit_decisions", "New decisions.", ["decision", "model_version"])
    repeated = service.metrics.counter("credit_repeats", "Decisions that were asked for again.", [])
    together = service.together(desk.decide, most=GROUP)

    async def decide(body: BaseModel, request: Request, response: Response) -> Decision:
        asked = {"caller": request.state.caller, "request_id": request.state.request_id}
        answer = await together.ask(replace(read(spec, body), asked=asked))
        told = _told(answer)
        response.headers["Location"] = f"{PATH}/{told.decision_id}"
        if answer.repeated:
            response.status_code = 200
            repeated.inc()
        else:
            decided.labels(told.decision, str(told.decided_by.version)).inc()
        return told

    def decision(decision_id: str) -> Decision:
        """Return a decision as it was made, by batch or by request, whatever serves now."""
        if not _DECISION_ID.fullmatch(decision_id):
            raise Refused(404, "not_found", "There is no decision of this name.")
        return _told(desk.find(decision_id))

    decide.__doc__ = _ABOUT
    decide.__annotations__["body"] = application_model(spec)
    common: dict[str, Any] = {"tags": ["decisions"]}
    service.route(
        "POST", PATH, decide, summary="Decide on an application", status_code=201, responses=_RESPONSES, **common
    )
    missing = {404: "There is no decision of this name."}
    service.route("GET", PATH + "/{decision_id}", decision, summary="A decision", responses=missing, **common)


def _told(answer: Answer) -> Decision:
    record, context = answer.record, answer.context
    result, model = record["result"], context["model"]
    return Decision(
        decision_id=record["decision_id"],
        application_id=record["application_id"],
        decision=result["decision"],
        rule=result["rule"],
        rule_text=RULES[result["rule"]][1],
        probability_of_default=None if result["pd"] is None else float.fromhex(result["pd"]),
        points=result["points"],
        reasons=[Reason(**{name: reason[name] for name in Reason.model_fields}) for reason in result["reasons"]],
        decided_at=record["decided_at"],
        channel=record["channel"],
        period=record["period"],
        decided_by=DecidedBy(
            model=model["name"],
            version=model["version"],
            sha256=model["sha256"],
            kind=model["kind"],
            policy=context["policy"]["version"],
            reasons=context["reasons_version"],
            features=context["feature_version"],
        ),
        repeated=answer.repeated,
    )


def _unfit(journal: Journal, notary: Notary | None) -> str | None:
    """Return why nothing could be appended to a journal, or why nothing should be."""
    journal.head()
    if notary is not None and notary.problem is not None:
        return notary.problem
    for path in (journal.path, journal.path.parent):
        if not os.access(path, os.W_OK):
            return f"{path} cannot be written"
    free = shutil.disk_usage(journal.path.parent).free
    return f"the disk of {journal.path} is nearly full: {free:,} bytes are free" if free < _LEAST_FREE else None


def _unreadable(journal: Journal) -> None:
    journal.head()
