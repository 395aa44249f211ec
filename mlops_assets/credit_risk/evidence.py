"""What speaks for a training and against it, collected from records, journal, registry and event log.

What belongs here: collecting facts. What does not: weighing them (`retraining.py`). Only records that runs have left
are read, never the warehouse: a sensor must not wait for its lock.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd

from mlops_assets.credit_risk import incidents, pipeline, watching
from mlops_assets.credit_risk.models import model_name
from mlops_assets.credit_risk.monitoring import DriftFinding
from mlops_assets.credit_risk.retraining import Evidence
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import end_of
from mlops_assets.foundation.files import AnyPath
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import ChampionHistory, Registry

if TYPE_CHECKING:
    import dagster as dg


def latest_period(spec: Spec, root: AnyPath) -> str | None:
    """Return the latest period that was watched."""
    found = [kept[0] for kind in watching.KINDS if (kept := watching.kept(root, spec, kind)) is not None]
    return max(found, default=None)


def collect(
    spec: Spec,
    instance: "dg.DagsterInstance",
    registry: Registry,
    root: AnyPath,
    operations: Journal,
    period: str,
    *,
    job: str,
    now: datetime | None = None,
) -> Evidence:
    """Return all that is known as of a period.

    Parameters
    ----------
    job
        The job whose runs are trainings.
    """
    history = pipeline.history_of(spec, instance, registry)
    champion = history.champion() if history.current() is not None else None
    latest = registry.latest(model_name(spec))
    drift = watching.kept(root, spec, "drift", period)
    realised = watching.kept(root, spec, "realised", period)
    labels = watching.kept(root, spec, "labels", period)
    asks = incidents.asks(operations)
    request = incidents.open_requests(operations)
    frozen = incidents.frozen(operations)
    of_champion = {} if champion is None or realised is None else realised[1]
    return Evidence(
        as_of=period,
        now=now or datetime.now(UTC),
        champion=None if champion is None else champion.sha256,
        trained_until=None if champion is None else end_of(spec, champion.tags["period"]),
        learned_until=None if latest is None else end_of(spec, latest.tags["period"]),
        incidents=[incident.id for incident in incidents.open_incidents(operations)],
        touched=incidents.touched_batches(operations),
        windows=_windows(drift[1] if drift else {}, None if champion is None else champion.tags["period"]),
        decay=of_champion.get("status", "not_assessed"),
        decay_facts=of_champion.get("facts", {}),
        decay_reason="; ".join(of_champion.get("reasons", [])),
        new_outcomes=labels[1]["new"] if labels else 0,
        new_bads=labels[1]["new_bads"] if labels else 0,
        request=request[0].id if request else None,
        frozen=frozen,
        in_flight=_in_flight(instance, job),
        attempts=_attempts(instance, job),
        rejections=_rejections(history),
        asked=[ask.fingerprint for ask in asks],
    )


def _windows(record: "dict[str, object]", as_of: str | None) -> list[DriftFinding]:
    """Return the windows that lie after the champion's training; older ones were held against another reference."""
    raw = record.get("findings", [])
    found = [DriftFinding.from_dict(each) for each in raw] if isinstance(raw, list) else []
    return [each for each in found if as_of is None or (each.first or "") > as_of]


def _in_flight(instance: "dg.DagsterInstance", job: str) -> list[str]:
    import dagster as dg

    alive = [
        dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING,
    ]  # fmt: skip
    return [run.run_id for run in instance.get_runs(dg.RunsFilter(job_name=job, statuses=alive))]


def _attempts(instance: "dg.DagsterInstance", job: str) -> list[datetime]:
    """Return when trainings were started, by whom ever and whatever came of them."""
    import dagster as dg

    records = instance.get_run_records(dg.RunsFilter(job_name=job), limit=100)
    return [pd.Timestamp(record.create_timestamp).tz_convert("UTC").to_pydatetime() for record in records]


def _rejections(history: ChampionHistory) -> list[datetime]:
    """Return when candidates were rejected since one was last promoted."""
    found: list[datetime] = []
    for record in history.records():
        if record.verdict == "promoted":
            found = []
        elif record.verdict == "rejected" and record.logged_at is not None:
            found.append(record.logged_at)
    return found
