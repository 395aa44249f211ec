"""Assertions about applications, outcomes, decisions and their watch, as asset checks.

What belongs here: check specs, their results and the metadata that explains them; severities follow the risk profile.
What does not: how anything is computed, and any row-level personal data.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd

from mlops_assets.credit_risk import incidents, pipeline
from mlops_assets.credit_risk.batches import profile_of
from mlops_assets.credit_risk.decision_batch import BatchDecisions
from mlops_assets.credit_risk.ingestion import IngestReport
from mlops_assets.credit_risk.monitoring import Mix
from mlops_assets.credit_risk.names import Names
from mlops_assets.credit_risk.outcomes_feed import OutcomesReport
from mlops_assets.credit_risk.performance import Realised
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.screening import Screened
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.tracing import ReplaySummary
from mlops_assets.credit_risk.watching import Drift
from mlops_assets.foundation import metadata as md
from mlops_assets.foundation.checks import outcome, profile_outcome, shown_share
from mlops_assets.foundation.journal import Journal, Problem
from mlops_assets.foundation.profiling import ProfileStore, check
from mlops_assets.foundation.registry import ChampionHistory
from mlops_assets.foundation.resources import ObjectStore, Warehouse
from mlops_assets.foundation.risk import Axis

ANY_TIME = datetime(9999, 1, 1, tzinfo=UTC)
"""The rule against times in the future is described without a clock; it is judged with one."""

_PROFILED_PERIODS = 400


def _specs(
    spec: Spec, names: Names, asset: str, axis: Axis, described: Mapping[str, str], *, blocking: bool = True
) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            name, asset=names.key(asset), description=text, blocking=blocking and spec.risk.blocking(axis)
        )
        for name, text in described.items()
    ]


# --- Applications ---


def applications_specs(spec: Spec, names: Names) -> list[dg.AssetCheckSpec]:
    """Return the checks that ingestion makes on its own rows and batches."""
    blocking = {
        "few_rows_in_quarantine": f"At most {spec.checks.quarantine_share:.1%} of a batch's rows break the contract.",
        "batches_are_sound": "Row counts, missing shares, medians, duplicates and code lists are as usual.",
        "no_data_incident_is_open": "Nothing is wrong with the data that nobody has settled.",
    }
    watching = {"applications_match_profile": "Counts, types, missing values and ranges look like the periods before."}
    return [
        *_specs(spec, names, "applications", "data", blocking),
        # The batch rules decide what an incident is; a profile that moved is for a human to look at.
        *_specs(spec, names, "applications", "data", watching, blocking=False),
    ]


def applications_results(
    spec: Spec, names: Names, periods: Sequence[str], report: IngestReport, operations: Journal, warehouse: Warehouse,
    store: ObjectStore,
) -> Iterator[dg.AssetCheckResult]:  # fmt: skip
    """Judge what an ingestion brought."""
    key, bound = names.key("applications"), spec.checks.quarantine_share
    shares = {batch.period: batch.quarantined / batch.rows for batch in report.batches if batch.rows}
    worst = max(shares, key=lambda period: shares[period], default=None)
    # The batch rule knows how many rows it takes before a share means anything; this check follows it.
    failing = [batch for batch in report.blocked if any(found.rule.startswith("quarantine") for found in batch.blocked)]
    status = "not_assessed" if worst is None else "failed" if failing else "passed"
    told = (
        f"{report.quarantined_rows} of {report.rows} rows are in {spec.name}.quarantined_applications; "
        f"the most of one period are {shares[worst]:.2%}, of {worst}."
        if worst is not None
        else "there are no applications."
    )
    shown = shown_share(shares.get(worst, 0.0) if worst else 0.0, bound, report.rules)
    yield outcome(spec.risk, "data", "few_rows_in_quarantine", key, status, told, shown)
    yield _sound(spec, key, report)
    yield _settled(spec, key, operations)
    yield _profiled(spec, names, periods, warehouse, store)


def _sound(spec: Spec, key: dg.AssetKey, report: IngestReport) -> dg.AssetCheckResult:
    rows = [
        {"period": period, "rule": found.rule, "column": found.column, "value": found.value, "bound": found.bound,
         "severity": found.severity, "message": found.message}
        for period, found in report.findings
    ]  # fmt: skip
    columns = ["period", "rule", "column", "value", "bound", "severity", "message"]
    table = pd.DataFrame(rows, columns=pd.Index(columns)).sort_values(["severity", "period"]).astype(str)
    blocked = [f"{batch.period}: {found.message}" for batch in report.blocked for found in batch.blocked]
    warned = sum(found.severity == "warn" for _, found in report.findings)
    status = "failed" if blocked else "passed"
    told = "; ".join(blocked[:3]) or f"{len(report.batches)} batch(es), {warned} remark(s)."
    return outcome(
        spec.risk, "data", "batches_are_sound", key, status, told,
        {"findings": md.table(table), "blocked_batches": len(report.blocked), "remarks": warned},
    )  # fmt: skip


def _settled(spec: Spec, key: dg.AssetKey, operations: Journal) -> dg.AssetCheckResult:
    found = incidents.open_incidents(operations)
    table = pd.DataFrame(
        [(each.id, each.period, each.rule, each.column or "", str(each.opened_at)) for each in found],
        columns=["incident", "period", "rule", "column", "opened"],
    )
    told = (
        f"{len(found)} open: scoring and training wait. Settle the first with: {found[0].command}"
        if found
        else "No data incident is open."
    )
    status = "failed" if found else "passed"
    shown = {"incidents": md.table(table), "open": len(found)}
    return outcome(spec.risk, "data", "no_data_incident_is_open", key, status, told, shown)


def _profiled(
    spec: Spec, names: Names, periods: Sequence[str], warehouse: Warehouse, store: ObjectStore
) -> dg.AssetCheckResult:
    """Profile these periods, keep the profiles, and compare the last one with those before it."""
    name, key, last = "applications_match_profile", names.key("applications"), periods[-1]
    profiles, dataset = ProfileStore(store.path("profiles")), f"{spec.name}/applications"
    # Of a long history only what can be a reference is profiled.
    for period in periods[-(spec.checks.reference_periods + 1) :]:
        profiles.save(dataset, period, profile_of(spec, warehouse, period))
    earlier = [each for each in profiles.partitions(dataset)[-_PROFILED_PERIODS:] if each < last]
    earlier = earlier[-spec.checks.reference_periods :]
    current = profiles.load(dataset, last)
    if not earlier:
        reason = f"{last} is the first period that was profiled; there is nothing to compare it with."
        return outcome(spec.risk, "data", name, key, "not_assessed", reason, {"profile": md.table(current.table())})
    findings = check(current, profiles.reference(dataset, earlier))
    return profile_outcome(spec.risk, name, key, last, f"{earlier[0]} to {earlier[-1]}", list(findings), current)


def ingestion_metadata(spec: Spec, report: IngestReport, opened: int) -> dict[str, dict[str, Any]]:
    """Return what the pages of the ingested tables show; quarantined values stay in their table."""
    examples = pd.DataFrame(report.examples)
    shown = [name for name in ("source", "row", "rule", "column", "bound") if name in examples.columns]
    batches = pd.DataFrame(
        [(each.period, each.batch_id, each.status, each.rows, each.quarantined) for each in report.batches[-20:]],
        columns=["period", "batch", "status", "rows", "quarantined"],
    )
    return {
        "applications": {
            "rows": report.rows, "copies": report.copies, "rows_of_other_periods": report.outside,
            "rows_without_a_usable_time": report.timeless_rows, "incidents_opened": opened,
            "batches": md.table(batches),
            **({"columns_that_nobody_asked_for": ", ".join(report.unknown_columns)} if report.unknown_columns else {}),
        },
        "accepted_applications": {"dagster/row_count": report.accepted_rows},
        "quarantined_applications": {
            "dagster/row_count": report.quarantined_rows,
            **({"examples": md.table(examples[shown])} if len(examples) else {}),
        },
        "protected_attributes": {
            "attributes": len(spec.protected),
            "unreadable_values": sum(report.protected_unreadable.values()),
            **({"missing_columns": ", ".join(report.protected_missing)} if report.protected_missing else {}),
        },
    }  # fmt: skip


# --- Outcomes and outliers ---


def outcomes_specs(spec: Spec, names: Names) -> list[dg.AssetCheckSpec]:
    """Return the check on the outcomes feed."""
    text = f"At most {spec.training.conflict_share:.2%} of the loans have outcomes that contradict each other."
    return _specs(spec, names, "outcomes", "data", {"outcomes_do_not_contradict": text})


def outcomes_results(spec: Spec, names: Names, report: OutcomesReport) -> Iterator[dg.AssetCheckResult]:
    """Judge what the outcomes feed brought."""
    status = (
        "not_assessed"
        if not report.rows
        else "passed"
        if not report.contradicts(spec.training.conflict_share)
        else "failed"
    )
    told = (
        f"{report.conflicts} of {report.loans} loans have contradicting outcomes; both sides are in quarantine."
        if report.rows
        else "no outcome came in."
    )
    shown = {"conflicts": report.conflicts, "share": report.conflict_share, "bound": spec.training.conflict_share}
    yield outcome(spec.risk, "data", "outcomes_do_not_contradict", names.key("outcomes"), status, told, shown)


def outcomes_metadata(report: OutcomesReport) -> dict[str, Any]:
    """Return what the outcomes' page shows."""
    rules = pd.DataFrame({"rule": list(report.rules), "rows": list(report.rules.values())})
    return {
        "dagster/row_count": report.accepted, "rows": report.rows, "quarantined_rows": report.quarantined,
        "unknown_applications": report.unknown, "rules": md.table(rules),
    }  # fmt: skip


def outlier_specs(spec: Spec, names: Names) -> list[dg.AssetCheckSpec]:
    """Return the check on outlier flags."""
    text = f"Far fewer applications than {_outlier_bound(spec):.0%} are unlike those of the training set."
    return _specs(spec, names, "outlier_flags", "data", {"few_outliers": text}, blocking=False)


def _outlier_bound(spec: Spec) -> float:
    return min(10 * spec.outliers.share, 0.5)


def outlier_results(spec: Spec, names: Names, found: Screened) -> Iterator[dg.AssetCheckResult]:
    """Judge the share of flagged applications, knowing how many there are."""
    bound, key = _outlier_bound(spec), names.key("outlier_flags")
    if found.model is None or found.rows < spec.checks.minimum_batch:
        why = (
            "there is no champion whose training set could be compared with."
            if found.model is None
            else (f"{found.rows} applications are too few.")
        )
        yield outcome(spec.risk, "data", "few_outliers", key, "not_assessed", why, {"rows": found.rows})
        return
    told = f"{found.flagged} of {found.rows} applications are flagged for review ({found.share:.2%})."
    status = "passed" if found.share <= bound else "failed"
    shown = {"share": found.share, "bound": bound, "flagged": found.flagged}
    yield outcome(spec.risk, "data", "few_outliers", key, status, told, shown)


def outlier_metadata(found: Screened) -> dict[str, Any]:
    """Return what the outlier flags' page shows: counts by main feature."""
    table = pd.DataFrame(found.features.most_common(20), columns=["main_feature", "flagged"])
    return {
        "dagster/row_count": found.rows, "flagged": found.flagged, "share": round(found.share, 5),
        "by_feature": md.table(table), "model": found.model or "none yet",
    }  # fmt: skip


# --- Decisions ---


def decision_specs(spec: Spec, names: Names) -> list[dg.AssetCheckSpec]:
    """Return the checks on what was decided."""
    described = {
        "every_application_is_decided": "Every application of the batch has exactly one decision.",
        "every_rejection_has_a_reason": "Whoever is rejected is told at least one specific reason.",
        "the_log_is_unbroken": "The log's hash chain holds, and the event log's newest witnesses agree with it.",
        "decisions_replay": "A sample of the decisions, made again from its record, is the same byte for byte.",
    }
    settled = {"the_policy_is_approved": "The spec's cut-offs and rules are those approved with the champion."}
    return [
        *_specs(spec, names, "decisions", "output", described),
        # The approved policy decides whatever the spec says, so nothing has to wait for this.
        *_specs(spec, names, "decisions", "output", settled, blocking=False),
    ]


def policy_result(
    spec: Spec, names: Names, history: ChampionHistory, decided_by: DecisionPolicy
) -> dg.AssetCheckResult:
    """Judge whether the spec's policy is the one that was approved."""
    record, waiting = history.current(), pipeline.waiting_policy(spec, decided_by)
    status = "failed" if waiting else "passed"
    told = waiting or f"decisions are made by the approved policy, {decided_by.version}."
    if not history.approval_required:
        told = f"nobody has to approve: decisions are made by the spec's policy, {decided_by.version}."
    elif record is None or pipeline.policy_by(history, record) is None:
        status, told = "not_assessed", "the evidence that was approved names no policy: the spec's decides."
    shown = {"decided_by": decided_by.version, "spec": DecisionPolicy.of(spec).version}
    return outcome(spec.risk, "output", "the_policy_is_approved", names.key("decisions"), status, told, shown)


def decision_results(
    spec: Spec, names: Names, made: BatchDecisions, problems: Sequence[Problem], replayed: ReplaySummary
) -> Iterator[dg.AssetCheckResult]:
    """Judge what was decided."""
    key = names.key("decisions")
    yield outcome(
        spec.risk, "output", "every_application_is_decided", key,
        "failed" if made.missing or made.doubled else "passed",
        f"of {made.applications} applications {made.missing} have no decision in the log, {made.doubled} have several "
        f"on the same content ({made.known} had theirs before).",
        {
            "applications": made.applications, "decided": made.decided, "decided_before": made.known,
            "missing": made.missing, "doubled": made.doubled,
        },
    )  # fmt: skip
    yield outcome(
        spec.risk, "output", "every_rejection_has_a_reason", key, "failed" if made.without_reason else "passed",
        f"{made.without_reason} of {made.decisions['reject']} rejections have no reason.",
        {"rejections": made.decisions["reject"], "without_reason": made.without_reason},
    )  # fmt: skip
    told = "; ".join(str(problem) for problem in problems[:3]) or "Every entry follows from the one before it."
    yield outcome(
        spec.risk, "output", "the_log_is_unbroken", key, "failed" if problems else "passed", told,
        {"problems": len(problems)},
    )  # fmt: skip
    status = "failed" if replayed.different else "passed" if replayed.compared else "not_assessed"
    yield outcome(
        spec.risk, "output", "decisions_replay", key, status,
        f"{replayed.equal} of {replayed.compared} decisions are byte-equal." if replayed.compared else "no decisions.",
        {"compared": replayed.compared, "differing": replayed.different},
    )  # fmt: skip


# --- Watch ---


def drift_specs(spec: Spec, names: Names) -> list[dg.AssetCheckSpec]:
    """Return the check on drift; drift stops no scoring: what is wrong with data is an incident's matter."""
    text = f"Applications come from where those before training came from, or {spec.monitoring.confirm} windows differ."
    return _specs(spec, names, "drift_report", "data", {"applications_have_not_drifted": text}, blocking=False)


def drift_results(spec: Spec, names: Names, found: Drift) -> Iterator[dg.AssetCheckResult]:
    """Judge the latest windows: one that differs is a remark, several in a row are drift."""
    last = found.last
    status = "failed" if found.confirmed else "not_assessed" if last.status == "not_assessed" else "passed"
    words = "; ".join(last.reasons[:3]) or f"{last.rows_window} applications are like the reference."
    if last.status == "drifted" and not found.confirmed:
        words = f"Not confirmed yet ({spec.monitoring.confirm} windows in a row are needed): {words}"
    shown = {"columns": md.table(last.table()), "weighted_share": last.weighted_share, "confirmed": found.confirmed}
    key = names.key("drift_report")
    yield outcome(spec.risk, "data", "applications_have_not_drifted", key, status, words, shown)


def mix_specs(spec: Spec, names: Names) -> list[dg.AssetCheckSpec]:
    """Return the checks on the spread of scores, decisions and reasons."""
    described = {
        f"{subject}_are_spread_as_before": f"The {subject} of the latest decisions are spread as on the reference."
        for subject in ("scores", "decisions", "reasons")
    }
    return _specs(spec, names, "decision_mix", "output", described, blocking=False)


def mix_results(spec: Spec, names: Names, found: Sequence[Mix]) -> Iterator[dg.AssetCheckResult]:
    """Judge the spread of scores, decisions and reasons."""
    for subject, mix in zip(("scores", "decisions", "reasons"), found, strict=True):
        status = {"none": "passed", "warn": "passed", "act": "failed"}.get(mix.status, "not_assessed")
        yield outcome(
            spec.risk, "output", f"{subject}_are_spread_as_before", names.key("decision_mix"), status, mix.reason,
            {"table": md.table(mix.table()), "verdict": mix.status},
        )  # fmt: skip


def realised_specs(spec: Spec, names: Names) -> list[dg.AssetCheckSpec]:
    """Return the check on how the champion's decisions turned out."""
    described = {"the_champion_has_not_decayed": "Matured loans turn out as the champion foresaw."}
    return _specs(spec, names, "realised_performance", "algorithm", described, blocking=False)


def realised_results(spec: Spec, names: Names, found: Realised) -> Iterator[dg.AssetCheckResult]:
    """Judge the realised performance."""
    status = {"holds": "passed", "decayed": "failed"}.get(found.status, "not_assessed")
    shown = {"metrics": md.table(found.table()), "loans": found.rows, "bads": found.bads}
    key = names.key("realised_performance")
    told = "; ".join(found.reasons)
    yield outcome(spec.risk, "algorithm", "the_champion_has_not_decayed", key, status, told, shown)
