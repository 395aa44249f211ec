"""When the system runs by itself: the schedule, the deadline, and what a team's change sets off.

What belongs here: jobs, schedules, freshness policies, automation conditions and the sensor that acts on them. What
does not: what runs.
"""

from datetime import timedelta
from typing import Any

import dagster as dg

from mlops_assets.discover_weekly.names import Names
from mlops_assets.discover_weekly.spec import Spec

# What define_asset_job returns has no public type in Dagster.
Job = Any


def freshness_of(spec: Spec) -> dg.FreshnessPolicy:
    """Return when a period's playlists count as late."""
    minutes = round((spec.periods.hour + spec.periods.late_after_hours) * 60)
    days, rest = divmod(minutes, 24 * 60)
    day = f"* * {1 + days}" if spec.periods.cadence == "weekly" else f"{1 + days} * *"
    return dg.FreshnessPolicy.cron(
        deadline_cron=f"{rest % 60} {rest // 60} {day}",
        # From the first minute after the period: what was published before is about an earlier one.
        lower_bound_delta=timedelta(minutes=minutes),
        timezone=spec.periods.timezone,
    )


def on_team_change() -> "dg.AutomationCondition[Any]":
    """Ask for a model again when its own code or what it is built from has changed, and for nothing else.

    Only the latest period is asked for, once for each change, and never while something it needs is missing or being
    made; a model of another team is not touched.
    """
    condition: Any = dg.AutomationCondition
    changed = (condition.code_version_changed() | condition.any_deps_updated()).since_last_handled()
    asked: dg.AutomationCondition[Any] = (
        condition.in_latest_time_window()
        & changed
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
    ).with_label("own code or inputs have changed")
    return asked


def refresh_job(spec: Spec, selection: dg.AssetSelection) -> Job:
    """Return the job that makes one period from its listens to its published playlists."""
    return dg.define_asset_job(
        f"{spec.name}_refresh",
        selection=selection,
        description="One period, from its listens to its published playlists.",
        tags={"system": spec.name},
    )


def ingest_job(spec: Spec, names: Names) -> Job:
    """Return the job that brings many periods in one run, without training: the way to start with history."""
    up_to_features = [
        "listens", "tracks", "users", "stg_listens", "stg_tracks", "stg_users", "interactions", "track_features",
    ]  # fmt: skip
    return dg.define_asset_job(
        f"{spec.name}_ingest",
        selection=dg.AssetSelection.assets(*[names.key(asset) for asset in up_to_features]),
        description="Listens, tracks, users and features of any range of periods, without training.",
        tags={"system": spec.name},
    )


def deliver_job(spec: Spec, names: Names) -> Job:
    """Return the job that makes one period's playlists with the champion there is, without training."""
    delivered = ["batch_inputs", "playlists", "published_playlists"]
    return dg.define_asset_job(
        f"{spec.name}_deliver",
        selection=dg.AssetSelection.assets(*[names.key(asset) for asset in delivered]),
        description="One period's playlists with the champion that serves now, without training.",
        tags={"system": spec.name},
    )


def deliver_anyway(spec: Spec, refresh: Job, deliver: Job) -> dg.SensorDefinition:
    """Return the sensor that keeps Monday: when ingestion or training failed, playlists come from the last champion."""

    @dg.run_failure_sensor(
        name=f"{spec.name}_deliver_anyway",
        monitored_jobs=[refresh],
        request_job=deliver,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="After a failed refresh, makes the period's playlists with the champion and the data there are.",
    )
    def sensor(context: dg.RunFailureSensorContext) -> dg.RunRequest | dg.SkipReason:
        tags = context.dagster_run.tags
        period = tags.get("dagster/partition")
        if period is None:
            return dg.SkipReason(f"run {context.dagster_run.run_id} was about no single period")
        if tags.get("dagster/will_retry") == "true":
            return dg.SkipReason(f"run {context.dagster_run.run_id} will be tried again first")
        return dg.RunRequest(run_key=context.dagster_run.run_id, partition_key=period)

    return sensor


def schedule(spec: Spec, job: Job) -> Any:
    """Return the schedule that asks for the last completed period: every Monday, or every first of the month."""
    weekly = spec.periods.cadence == "weekly"
    return dg.build_schedule_from_partitioned_job(
        job,
        name=f"{spec.name}_every_monday" if weekly else f"{spec.name}_every_month",
        description=f"Playlists for the last completed period, at {spec.periods.hour}:00 {spec.periods.timezone}.",
        hour_of_day=spec.periods.hour,
        minute_of_hour=0,
        day_of_week=1 if weekly else None,
        day_of_month=None if weekly else 1,
    )


def team_sensor(spec: Spec, names: Names) -> dg.AutomationConditionSensorDefinition:
    """Return the sensor that acts on `on_team_change` for this system's models."""
    watched = ["collaborative_model", "content_model", "blend_model", "evaluation", "champion"]
    return dg.AutomationConditionSensorDefinition(
        f"{spec.name}_team_changes",
        target=dg.AssetSelection.assets(*[names.key(asset) for asset in watched]),
        description="Re-runs a model whose team changed it, and what follows from it; off until it is switched on.",
        default_status=dg.DefaultSensorStatus.STOPPED,
    )
