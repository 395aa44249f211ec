"""Assertions about listens, interactions and playlists, as asset checks.

What belongs here: check specs, their results and the metadata that explains them; severities follow the risk profile.
What does not: how a profile, a drift or a rule is computed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

from mlops_assets.discover_weekly import rules
from mlops_assets.discover_weekly.ingestion import IngestReport
from mlops_assets.discover_weekly.names import Names
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation import metadata as md
from mlops_assets.foundation.checks import outcome, profile_outcome, shown_share
from mlops_assets.foundation.drift import DriftResult, measure
from mlops_assets.foundation.profiling import Finding, Profile, ProfileStore, check, profile
from mlops_assets.foundation.resources import ObjectStore, Warehouse

_SAMPLE = 50_000

LISTENS = "extract('hour' from listened_at) as hour, extract('dow' from listened_at) as weekday, plays, skipped"
INTERACTIONS = "plays, skips, market, explicit, date_diff('day', released, period) as track_age_days"
# Dates without times have no hour: what is all missing would only be noise.
LISTENS_UNTIMED = "plays, skipped"


def listens_specs(spec: Spec, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks that ingestion makes on its own rows."""
    described = {
        "few_rows_in_quarantine": f"At most {spec.checks.quarantine_share:.1%} of the rows break the contract.",
        "listens_match_profile": "Counts, types, missing values and ranges look like the periods before.",
        "listens_have_not_drifted": "Hours, plays and skips are distributed as in the periods before.",
    }
    return [
        dg.AssetCheckSpec(name, asset=key, description=text, blocking=spec.risk.blocking("data"))
        for name, text in described.items()
    ]


def listens_results(
    spec: Spec, periods: Sequence[str], report: IngestReport, warehouse: Warehouse, store: ObjectStore
) -> Iterator[dg.AssetCheckResult]:
    """Judge what an ingestion brought; the last period is compared with those before it."""
    key = dg.AssetKey([spec.name, "listens"])
    (worst, share), bound = report.worst_period, spec.checks.quarantine_share
    yield outcome(
        spec.risk,
        "data",
        "few_rows_in_quarantine",
        key,
        "passed" if share <= bound else "failed",
        f"{report.quarantined_rows} rows are in {spec.name}.quarantined_rows, {report.accepted_rows} are accepted; "
        f"the most of one period are {share:.2%}, of {worst}.",
        shown_share(share, bound, report.rules),
    )
    columns = LISTENS if spec.data.timed else LISTENS_UNTIMED
    yield from compared(spec, "listens", f"{spec.name}.listens", columns, periods, warehouse, store)


def compared(
    spec: Spec, dataset: str, table: str, columns: str, periods: Sequence[str], warehouse: Warehouse, store: ObjectStore
) -> Iterator[dg.AssetCheckResult]:
    """Profile these periods, keep the profiles, and compare the last one with the periods before it."""
    key, last = dg.AssetKey([spec.name, dataset]), periods[-1]
    profiles = ProfileStore(store.path("profiles"))
    for period in periods:
        profiles.save(f"{spec.name}/{dataset}", period, _profile_of(table, columns, period, warehouse))
    earlier = [name for name in profiles.partitions(f"{spec.name}/{dataset}") if name < last]
    earlier = earlier[-spec.checks.reference_periods :]
    current = profiles.load(f"{spec.name}/{dataset}", last)
    if not earlier:
        reason = f"{last} is the first period that was profiled; there is nothing to compare it with."
        for name in (f"{dataset}_match_profile", f"{dataset}_have_not_drifted"):
            yield outcome(spec.risk, "data", name, key, "not_assessed", reason, {"profile": md.table(current.table())})
        return
    findings = check(current, profiles.reference(f"{spec.name}/{dataset}", earlier))
    yield _profile_outcome(spec, dataset, key, last, earlier, findings, current)
    drift = measure(_sample(table, columns, earlier, warehouse), _sample(table, columns, [last], warehouse))
    yield _drift_outcome(spec, dataset, key, last, earlier, drift)


def _profile_of(table: str, columns: str, period: str, warehouse: Warehouse) -> Profile:
    sql = f"select {columns} from {table} where period = cast('{period}' as date)"
    return profile(warehouse.stream(sql, rows=200_000))


def _sample(table: str, columns: str, periods: Sequence[str], warehouse: Warehouse) -> pd.DataFrame:
    among = ", ".join(f"cast('{period}' as date)" for period in periods)
    return warehouse.query(
        f"select {columns} from {table} where period in ({among}) "
        f"order by md5(user_id || track_id || cast(period as varchar)) limit {_SAMPLE}"
    )


def _profile_outcome(
    spec: Spec,
    dataset: str,
    key: dg.AssetKey,
    last: str,
    earlier: Sequence[str],
    findings: Sequence[Finding],
    current: Profile,
) -> dg.AssetCheckResult:
    name, reference = f"{dataset}_match_profile", f"{earlier[0]} to {earlier[-1]}"
    return profile_outcome(spec.risk, name, key, last, reference, list(findings), current)


def _drift_outcome(
    spec: Spec, dataset: str, key: dg.AssetKey, last: str, earlier: Sequence[str], drift: DriftResult
) -> dg.AssetCheckResult:
    status = {"none": "passed", "drifted": "failed"}.get(drift.status, "not_assessed")
    words = "; ".join(drift.reasons) or f"{last} is distributed like {earlier[0]} to {earlier[-1]}."
    return outcome(
        spec.risk,
        "data",
        f"{dataset}_have_not_drifted",
        key,
        status,
        words,
        {
            "columns": md.table(drift.table()),
            "drifted_share": float(drift.drifted_share),
            "reference": f"{earlier[0]} to {earlier[-1]}",
        },
    )


def interactions_checks(spec: Spec, names: Names) -> list[dg.AssetChecksDefinition]:
    """Return the checks on what dbt made of the listens."""
    key = names.key("interactions")
    described = {
        "interactions_match_profile": "Counts and ranges look like the periods before.",
        "interactions_have_not_drifted": "Plays, skips, markets and ages of tracks are distributed as before.",
        "interactions_are_of_known_tracks": "Every track that was played is in the catalogue.",
        "interactions_are_of_known_users": "Everybody who listened is owed a playlist: the list of users is complete.",
    }
    specs = [
        dg.AssetCheckSpec(
            name,
            asset=key,
            description=text,
            blocking=spec.risk.blocking("data"),
            additional_deps=[names.key("stg_tracks"), names.key("stg_users")],
        )
        for name, text in described.items()
    ]

    @dg.multi_asset_check(name=f"{spec.name}__interactions_checks", specs=specs)
    def checks_of_interactions(
        context: dg.AssetCheckExecutionContext, warehouse: Warehouse, store: ObjectStore
    ) -> Iterator[dg.AssetCheckResult]:
        periods = periods_of_run(spec, context.run.tags)
        if not periods:
            reason = "the run names no period."
            yield from (outcome(spec.risk, "data", item.name, key, "not_assessed", reason, {}) for item in specs)
            return
        joined = (
            f"(select interactions.*, market, explicit, released from {spec.name}.interactions as interactions "
            f"left join {spec.name}.stg_users using (user_id) left join {spec.name}.stg_tracks using (track_id))"
        )
        yield from compared(spec, "interactions", joined, INTERACTIONS, periods, warehouse, store)
        yield _known_tracks(spec, key, periods, warehouse)
        yield _known_users(spec, key, periods, warehouse)

    return [checks_of_interactions]


def periods_of_run(spec: Spec, tags: Mapping[str, str]) -> list[str]:
    """Return the periods that a run was launched for, from its tags."""
    from mlops_assets.discover_weekly.ingestion import iter_periods

    if "dagster/partition" in tags:
        return [tags["dagster/partition"]]
    first, last = tags.get("dagster/asset_partition_range_start"), tags.get("dagster/asset_partition_range_end")
    return list(iter_periods(spec, first, last)) if first and last else []


def _known_tracks(spec: Spec, key: dg.AssetKey, periods: Sequence[str], warehouse: Warehouse) -> dg.AssetCheckResult:
    unknown = warehouse.query(
        f"select track_id, cast(sum(plays + skips) as bigint) as listens from {spec.name}.interactions "
        f"anti join {spec.name}.stg_tracks using (track_id) "
        "where period between cast(? as date) and cast(? as date) group by 1 order by 2 desc, 1",
        [periods[0], periods[-1]],
    )
    words = (
        f"{len(unknown)} tracks ({int(unknown['listens'].sum())} listens) are not in the catalogue: "
        "they are learned from, but not recommended until the catalogue has them."
        if len(unknown)
        else "Every track that was played is in the catalogue."
    )
    status = "failed" if len(unknown) else "passed"
    return outcome(
        spec.risk,
        "data",
        "interactions_are_of_known_tracks",
        key,
        status,
        words,
        {"unknown_tracks": len(unknown), "most_played": md.table(unknown)},
    )


def _known_users(spec: Spec, key: dg.AssetKey, periods: Sequence[str], warehouse: Warehouse) -> dg.AssetCheckResult:
    found = warehouse.query(
        "select count(*) as listeners, count(*) filter (users.user_id is null) as unknown "
        f"from (select distinct user_id from {spec.name}.interactions "
        "where period between cast(? as date) and cast(? as date)) as heard "
        f"left join {spec.name}.stg_users as users using (user_id)",
        [periods[0], periods[-1]],
    )
    listeners, unknown = int(found["listeners"].iloc[0]), int(found["unknown"].iloc[0])
    words = f"{unknown} of {listeners} listeners are not among the users: they get no playlist until they are."
    status = "failed" if unknown else "passed" if listeners else "not_assessed"
    name = "interactions_are_of_known_users"
    return outcome(spec.risk, "data", name, key, status, words, {"listeners": listeners, "unknown_users": unknown})


def ingestion_metadata(report: IngestReport) -> dict[str, Any]:
    """Return what an ingestion's page shows."""
    shown: dict[str, Any] = {
        "accepted_rows": report.accepted_rows,
        "quarantined_rows": report.quarantined_rows,
        "duplicates": report.duplicates,
        "rows_of_other_periods": report.outside,
        "rows_without_a_usable_time": report.timeless_rows,
    }
    if report.examples:
        shown["quarantined_examples"] = md.table(pd.DataFrame(report.examples))
    return shown


def dimension_metadata(frame: pd.DataFrame, refused: pd.DataFrame) -> dict[str, Any]:
    """Return what the page of tracks or users shows."""
    missing = frame.isna().mean().rename_axis("column").reset_index(name="share")
    shown: dict[str, Any] = {
        "dagster/row_count": len(frame),
        "quarantined_rows": int(refused["row"].nunique()) if len(refused) else 0,
        "missing": md.table(missing),
    }
    if len(refused):
        shown["quarantined_examples"] = md.table(
            refused[["source", "row", "rule", "column", "value", "bound"]].head(10)
        )
    return shown


def playlist_specs(spec: Spec, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks on every published row."""
    blocking = spec.risk.blocking("output")
    return [
        dg.AssetCheckSpec(name, asset=key, description=text, blocking=blocking) for name, text in rules.RULES.items()
    ]


def playlist_results(spec: Spec, findings: rules.Findings, catalogue: int) -> Iterator[dg.AssetCheckResult]:
    """Turn what was found on the rows into check results."""
    key = dg.AssetKey([spec.name, "playlists"])
    coverage, bound = findings.coverage(catalogue), spec.playlist.minimum_coverage
    for name in rules.RULES:
        shown: dict[str, Any] = {"broken": findings.broken[name], "rows": findings.rows, "users": findings.users}
        status, words = "passed", f"Holds for {findings.rows:,} rows of {findings.served:,} users."
        if name == "catalogue_coverage":
            shown |= {"coverage": coverage, "bound": bound}
            status = "passed" if coverage >= bound else "failed"
            words = f"{len(findings.tracks):,} of {catalogue:,} tracks are shown ({coverage:.1%}; bound {bound:.1%})."
        elif findings.broken[name]:
            status, words = (
                "failed",
                f"Broken {findings.broken[name]:,} times, such as: {'; '.join(findings.examples[name])}.",
            )
        elif not findings.users:
            status, words = "not_assessed", "there are no users."
        yield outcome(spec.risk, "output", name, key, status, words, shown)
