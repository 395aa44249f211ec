"""When the system runs by itself, and what people do in it: jobs, schedule, the retraining sensor, and their requests.

What belongs here: what starts which run. What does not: whether to train again (`retraining.py`), and what runs.
"""

import json
from collections.abc import Sequence
from typing import Any

import dagster as dg

from mlops_assets.credit_risk import evidence, incidents, pipeline
from mlops_assets.credit_risk.names import Names
from mlops_assets.credit_risk.retraining import Ask, decide
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.resources import Journals, ModelRegistry, ObjectStore

# What define_asset_job returns has no public type in Dagster.
Job = Any

DATA = ("applications", "accepted_applications", "quarantined_applications", "protected_attributes", "outcomes")
MODEL = (
    "training_set", "scorecard", "gbm", "evaluation", "bias_report", "explanations", "model_card", "champion",
)  # fmt: skip
DECISIONS = ("outlier_flags", "decisions")
WATCH = ("drift_report", "decision_mix", "estimated_performance", "realised_performance", "vintage_curves")
REVIEW = ("weak_slices", "likely_label_errors", "slice_experiment")


def jobs_of(spec: Spec, names: Names) -> list[Job]:
    """Return the jobs over the system's assets."""

    def job(name: str, assets: Sequence[str], description: str) -> Job:
        return dg.define_asset_job(
            f"{spec.name}_{name}",
            selection=dg.AssetSelection.assets(*[names.key(asset) for asset in assets]),
            description=description,
            tags={"system": spec.name},
        )

    return [
        job("ingest", DATA, "Applications, outcomes and protected attributes of any range of periods."),
        job(
            "train",
            MODEL,
            "A candidate as of a period's end, from its training set to its proposal; nothing serves it.",
        ),
        job("daily", (*DATA, *DECISIONS, *WATCH), "A period's applications, decided and watched."),
        job("watch", WATCH, "Drift, mixes and performance as of a period, without ingesting or deciding."),
        job("review", REVIEW, "Where the model is worst, which labels look wrong, and what mending them would do."),
    ]


def schedule(spec: Spec, daily: Job) -> Any:
    """Return the schedule that asks for the last completed period."""
    cadence = spec.periods.cadence
    return dg.build_schedule_from_partitioned_job(
        daily,
        name=f"{spec.name}_every_{ {'daily': 'day', 'weekly': 'week', 'monthly': 'month'}[cadence] }",
        description=f"Decisions for the last completed period, at {spec.periods.hour}:00 {spec.periods.timezone}.",
        hour_of_day=spec.periods.hour,
        minute_of_hour=0,
        day_of_week=1 if cadence == "weekly" else None,
        day_of_month=1 if cadence == "monthly" else None,
    )


def retraining_sensor(spec: Spec, train: Job) -> dg.SensorDefinition:
    """Return the sensor that weighs the evidence and asks for a training, or says by which rule it does not."""

    @dg.sensor(
        name=f"{spec.name}_retrain",
        job=train,
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Trains a candidate when drift is confirmed, the champion has decayed, there is much to learn, it "
        "is old, or a person asks; never while a data incident is open. A candidate only becomes a proposal.",
    )
    def retrain(
        context: dg.SensorEvaluationContext, models: ModelRegistry, store: ObjectStore, journals: Journals
    ) -> dg.SensorResult:
        period = evidence.latest_period(spec, store.path())
        operations = journals.open(spec.name, "operations")
        if period is None:
            return dg.SensorResult(skip_reason=_unwatched(spec, len(incidents.open_requests(operations))))
        facts = evidence.collect(
            spec, context.instance, models.open(), store.path(), operations, period, job=f"{spec.name}_train"
        )
        answer = decide(facts, spec.retraining, spec.monitoring)
        if not isinstance(answer, Ask):
            if answer.alert:
                context.log.warning("%s", answer.text)
            return dg.SensorResult(skip_reason=answer.text)
        tags = incidents.ask_tags(trigger=answer.trigger, fingerprint=answer.fingerprint, reason=answer.reason)
        requesters = sorted({asked.by for asked in incidents.open_requests(operations)})
        if requesters:
            # The sensor trains for them: none of them may approve what comes of it.
            tags[pipeline.REQUESTED_TAG] = json.dumps(requesters)
        request = dg.RunRequest(
            run_key=_run_key(context.instance, answer),
            partition_key=period,
            tags={**tags, pipeline.PERSON_TAG: f"sensor {spec.name}_retrain"},
        )
        return dg.SensorResult(run_requests=[request], cursor=answer.fingerprint)

    return retrain


def _unwatched(spec: Spec, requests: int) -> str:
    waiting = f" {requests} request(s) to train wait for that." if requests else ""
    how = f"run {spec.name}_daily or {spec.name}_watch"
    return f"T0_nothing_asks: Nothing has been watched yet, so that nothing is known to train for: {how}.{waiting}"


def _run_key(instance: dg.DagsterInstance, answer: Ask) -> str:
    """Return the run's key; evidence that asks again, since a run for it never came to train, needs another one."""
    tries = instance.get_runs_count(dg.RunsFilter(tags={incidents.FINGERPRINT_TAG: answer.fingerprint}))
    return f"{answer.run_key}:{tries + 1}" if tries else answer.run_key
