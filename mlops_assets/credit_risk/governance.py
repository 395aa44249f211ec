"""What people decide about a credit model, from the UI's launchpad: the same functions that the command line calls.

What belongs here: one job a decision, with who and why as its configuration. What does not: whether a decision is
allowed (`foundation/_approval.py`, `incidents.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from mlops_assets.credit_risk import incidents, pipeline, settling
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.resources import Journals, ModelRegistry, Warehouse
from mlops_assets.foundation.retries import mistakes_are_final


class Person(dg.Config):
    """Who decides, and why."""

    by: str = Field(description="Your name; it goes into the history.")
    reason: str = Field(description="Why; it goes into the history.")


class OfVersion(Person):
    """A decision about a model version."""

    version: int = Field(description="The version that it is about.")


class OfIncident(Person):
    """A decision about a data incident."""

    incident: str = Field(description="The incident's id, as the check no_data_incident_is_open lists it.")
    outcome: str = Field(default="waived", description="waived: the batch counts as it is; resolved: it is replaced.")


def governance_jobs(spec: Spec) -> list[dg.JobDefinition]:
    """Return the jobs by which people approve, reject, roll back, settle incidents, freeze and ask for a training."""
    return [*_version_jobs(spec), *_operations_jobs(spec)]


def _job(spec: Spec, name: str, op: dg.OpDefinition, description: str) -> dg.JobDefinition:
    return dg.GraphDefinition(name=f"{spec.name}_{name}", node_defs=[op]).to_job(
        description=description, tags={"system": spec.name}, executor_def=dg.in_process_executor
    )


def _version_jobs(spec: Spec) -> list[dg.JobDefinition]:
    @dg.op(name=f"{spec.name}_approve_version")
    def approve(context: dg.OpExecutionContext, config: OfVersion, models: ModelRegistry) -> None:
        with mistakes_are_final():
            history = pipeline.history_of(spec, context.instance, models.open())
            record = history.approve(config.version, config.by, config.reason)
        context.log.info("Version %s serves: approved by %s.", record.version, record.by)

    @dg.op(name=f"{spec.name}_reject_version")
    def reject(context: dg.OpExecutionContext, config: OfVersion, models: ModelRegistry) -> None:
        with mistakes_are_final():
            history = pipeline.history_of(spec, context.instance, models.open())
            history.reject(config.version, config.by, config.reason)
        context.log.info("Version %s is rejected.", config.version)

    @dg.op(name=f"{spec.name}_rollback_version")
    def rollback(context: dg.OpExecutionContext, config: OfVersion, models: ModelRegistry) -> None:
        with mistakes_are_final():
            history = pipeline.history_of(spec, context.instance, models.open())
            record = history.rollback(config.version, config.by, config.reason)
        context.log.info("Version %s serves again.", record.version)

    return [
        _job(spec, "approve", approve, "Approve a proposed version: it serves from then on. Not by who trained it."),
        _job(spec, "reject", reject, "Reject a proposed version: it is not proposed again by itself."),
        _job(spec, "rollback", rollback, "Let an earlier champion serve again, after its files were verified."),
    ]


def _operations_jobs(spec: Spec) -> list[dg.JobDefinition]:
    @dg.op(name=f"{spec.name}_acknowledge")
    def acknowledge(
        context: dg.OpExecutionContext, config: OfIncident, journals: Journals, warehouse: Warehouse
    ) -> None:
        operations = journals.open(spec.name, "operations")
        with mistakes_are_final():
            settled = settling.settle(
                spec, operations, warehouse, config.incident, by=config.by, reason=config.reason,
                outcome=config.outcome,
            )  # fmt: skip
        context.log.info("%s", settled)

    def of_person(name: str, act: Callable[..., Any], told: str) -> dg.OpDefinition:
        @dg.op(name=f"{spec.name}_note_{name}")
        def asked(context: dg.OpExecutionContext, config: Person, journals: Journals) -> None:
            with mistakes_are_final():
                act(journals.open(spec.name, "operations"), by=config.by, reason=config.reason)
            context.log.info(told)

        return asked

    people: Mapping[str, tuple[Callable[..., Any], str]] = {
        "freeze": (incidents.freeze, "No training is asked for until it is lifted."),
        "unfreeze": (incidents.unfreeze, "Trainings may be asked for again."),
        "request": (incidents.request_retrain, "The sensor takes the request up at its next tick."),
    }
    return [
        _job(spec, "acknowledge_incident", acknowledge, "Settle a data incident, with the reason."),
        *(_job(spec, f"{name}_training", of_person(name, act, told), told) for name, (act, told) in people.items()),
    ]
