"""What speaks for a training and against it, collected from records, journal, registry and event log.

What belongs here: collecting facts. What does not: weighing them (`retraining.py`). Only records that runs have left
are read, never the warehouse: a sensor must not wait for its lock.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

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
    serving = None if champion is None else champion.sha256
    of_champion = _about(realised, "model", serving)
    # What was counted before the latest training says nothing of what there is to learn since.
    counted = _about(labels, "since", None if latest is None else latest.tags["period"])
    return Evidence(
        as_of=period,
        now=now or datetime.now(UTC),
        champion=serving,
        trained_until=None if champion is None else end_of(spec, champion.tags["period"]),
        learned_until=None if latest is None else end_of(spec, latest.tags["period"]),
        incidents=[incident.id for incident in incidents.open_incidents(operations)],
        touched=incidents.touched_batches(operations),
        windows=[DriftFinding.from_dict(each) for each in _about(drift, "model", serving).get("findings", [])],
        decay=of_champion.get("status", "not_assessed"),
        decay_facts=of_champion.get("facts", {}),
        decay_reason="; ".join(of_champion.get("reasons", [])),
        new_outcomes=counted.get("new", 0),
        new_bads=counted.get("new_bads", 0),
        request=request[0].id if request else None,
        frozen=frozen,
        in_flight=_in_flight(instance, job, spec),
        attempts=_attempts(instance, job),
        rejections=_rejections(history),
        asked=[ask.fingerprint for ask in asks],
    )


def _about(kept: tuple[str, Mapping[str, Any]] | None, name: str, value: str | None) -> Mapping[str, Any]:
    """Return a record that is about this model (or counts from this training), else nothing.

    Until something is watched again, the latest record is of the champion before: held against another reference.
    """
    return kept[1] if kept is not None and name in kept[1] and kept[1][name] == value else {}


def _in_flight(instance: "dg.DagsterInstance", job: str, spec: Spec) -> list[str]:
    """Return the runs that train, or will: those of the job, and of the assets when somebody picked them by hand."""
    import dagster as dg

    alive = [
        dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING,
    ]  # fmt: skip
    trained = {dg.AssetKey([spec.name, asset]) for asset in ("training_set", "scorecard", "gbm")}
    runs = instance.get_runs(dg.RunsFilter(statuses=alive))
    return [run.run_id for run in runs if run.job_name == job or trained & (run.asset_selection or frozenset())]


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
