"""Every assertion can fail, says why, and calls nothing passed that was not assessed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from mlops_assets.credit_risk import checks, incidents, monitoring
from mlops_assets.credit_risk.batch_rules import Finding
from mlops_assets.credit_risk.decision_batch import BatchDecisions
from mlops_assets.credit_risk.ingestion import BatchReport, IngestReport, ingest_period
from mlops_assets.credit_risk.monitoring import DriftFinding, drift_verdict, pooled
from mlops_assets.credit_risk.names import Names
from mlops_assets.credit_risk.outcomes_feed import OutcomesReport
from mlops_assets.credit_risk.performance import Realised
from mlops_assets.credit_risk.replaying import ReplaySummary
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.screening import Screened
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.watching import Drift
from mlops_assets.foundation.journal import Journal, Problem
from mlops_assets.foundation.resources import ObjectStore, Warehouse
from mlops_assets.foundation.risk import RiskProfile
from tests.credit_risk.feeds import DAYS, applications, feed_spec, write

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

BLOCK = Finding("median_ratio", "income", "100", "no factor between units", "block", "income: a change of unit")
WARN = Finding("copies", "application_id", "2 %", "at most 1 %", "warn", "some rows repeat another")
QUARANTINE = Finding("quarantine_share", None, "9 %", "at most 5 %", "block", "9 % of the rows are in quarantine")


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return feed_spec(tmp_path / "feed")


@pytest.fixture
def names(spec: Spec) -> Names:
    return Names(spec)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "operations.db")


def batch(*findings: Finding, rows: int = 100, quarantined: int = 0, period: str = DAYS[0], **over: Any) -> BatchReport:
    blocked = any(found.severity == "block" for found in findings)
    values: dict[str, Any] = {
        "batch_id": f"{period}-0", "period": period, "status": "blocked" if blocked else "accepted", "rows": rows,
        "accepted": rows - quarantined, "quarantined": quarantined, "copies": 0, "unchanged": False,
        "findings": findings,
    }  # fmt: skip
    return BatchReport(**{**values, **over})


def told(results: Iterator[dg.AssetCheckResult]) -> dict[str, dg.AssetCheckResult]:
    return {str(result.check_name): result for result in results}


def status(result: dg.AssetCheckResult) -> str:
    """What a result says in its metadata, which agrees with whether it passed and with how loud it is."""
    found = str(result.metadata["status"].value)
    assert result.passed is (found == "passed")
    if found == "not_assessed":
        assert result.severity == dg.AssetCheckSeverity.WARN
        assert str(result.description).startswith("Not assessed: ")
    return found


# --- Applications ---


@pytest.fixture
def ingested(spec: Spec, tmp_path: Path) -> tuple[Warehouse, ObjectStore]:
    """Three days of applications in a warehouse."""
    for day in DAYS[:3]:
        write(tmp_path / "feed", day, applications(day))
    warehouse = Warehouse(database=str(tmp_path / "warehouse.duckdb"))
    ingest_period(spec, DAYS[:3], warehouse)
    return warehouse, ObjectStore(root=str(tmp_path / "store"))


def judged(
    spec: Spec, ingested: tuple[Warehouse, ObjectStore], journal: Journal, *batches: BatchReport, last: int = 3
) -> dict[str, dg.AssetCheckResult]:
    report = IngestReport(batches=list(batches))
    return told(checks.applications_results(spec, Names(spec), DAYS[:last], report, journal, *ingested))


def test_sound_applications_pass_every_check(spec: Spec, ingested: Any, journal: Journal) -> None:
    found = judged(spec, ingested, journal, batch(WARN))
    first = judged(spec, ingested, journal, batch(WARN), last=1)
    assert {name: status(result) for name, result in found.items()} == {
        "few_rows_in_quarantine": "passed", "batches_are_sound": "passed", "no_data_incident_is_open": "passed",
        "applications_match_profile": "passed",
    }  # fmt: skip
    assert found["batches_are_sound"].metadata["remarks"].value == 1
    assert status(first["applications_match_profile"]) == "not_assessed", "nothing came before the first period"


def test_a_blocked_batch_fails_and_says_what_was_found(spec: Spec, ingested: Any, journal: Journal) -> None:
    found = judged(spec, ingested, journal, batch(), batch(BLOCK, WARN, period=DAYS[1]))
    sound = found["batches_are_sound"]
    assert (status(sound), sound.severity) == ("failed", dg.AssetCheckSeverity.ERROR)
    assert sound.description == f"{DAYS[1]}: income: a change of unit"
    assert [row.data["severity"] for row in sound.metadata["findings"].records] == ["block", "warn"]
    assert status(found["few_rows_in_quarantine"]) == "passed"


def test_many_rows_in_quarantine_fail_where_the_batch_rule_calls_them_many(
    spec: Spec, ingested: Any, journal: Journal
) -> None:
    many = batch(QUARANTINE, quarantined=9, period=DAYS[1])
    found = judged(spec, ingested, journal, batch(quarantined=1), many)["few_rows_in_quarantine"]
    assert status(found) == "failed"
    assert f"the most of one period are 9.00%, of {DAYS[1]}" in str(found.description)
    # One of two rows is more than a twentieth, and says nothing.
    few = judged(spec, ingested, journal, batch(rows=2, quarantined=1))["few_rows_in_quarantine"]
    assert status(few) == "passed"


def test_no_applications_are_not_assessed(spec: Spec, ingested: Any, journal: Journal) -> None:
    found = judged(spec, ingested, journal, batch(rows=0))
    assert status(found["few_rows_in_quarantine"]) == "not_assessed"


def test_an_open_incident_fails_every_ingestion_until_it_is_settled(
    spec: Spec, ingested: Any, journal: Journal
) -> None:
    opened = incidents.open_incident(journal, system=spec.name, period=DAYS[0], batch_id="b", rule="row_count")
    found = judged(spec, ingested, journal, batch(period=DAYS[2]))["no_data_incident_is_open"]
    assert status(found) == "failed"
    assert opened.command in str(found.description)
    assert [row.data["incident"] for row in found.metadata["incidents"].records] == [opened.id]
    incidents.acknowledge(journal, opened.id, by="mary", reason="a holiday")
    assert status(judged(spec, ingested, journal, batch())["no_data_incident_is_open"]) == "passed"


def test_a_profile_that_moved_is_told_by_column(
    spec: Spec, ingested: tuple[Warehouse, ObjectStore], journal: Journal, tmp_path: Path
) -> None:
    write(tmp_path / "feed", DAYS[3], applications(DAYS[3], purpose="car", income=None))
    ingest_period(spec, [DAYS[3]], ingested[0])
    judged(spec, ingested, journal, batch())
    report = IngestReport(batches=[batch(period=DAYS[3])])
    results = told(checks.applications_results(spec, Names(spec), [DAYS[3]], report, journal, *ingested))
    found = results["applications_match_profile"]
    assert status(found) == "failed"
    assert found.metadata["reference"].value == f"{DAYS[0]} to {DAYS[2]}"


@pytest.mark.parametrize(("level", "severity"), [("low", "WARN"), ("medium", "ERROR"), ("high", "ERROR")])
def test_a_failure_is_as_loud_as_the_risk(
    spec: Spec, ingested: Any, journal: Journal, level: Any, severity: str
) -> None:
    at = spec.model_copy(update={"risk": RiskProfile(data=level, algorithm="high", output="high")})
    found = judged(at, ingested, journal, batch(BLOCK))["batches_are_sound"]
    assert (found.passed, found.severity.value) == (False, severity)


def test_pages_of_ingested_tables_show_counts_and_never_values(spec: Spec) -> None:
    example = {"source": "f.csv", "row": 7, "rule": "income_at_least", "column": "income", "value": "-31337",
               "bound": "1000"}  # fmt: skip
    report = IngestReport(batches=[batch(quarantined=1)], examples=[example], protected_unreadable={"sex": 2, "age": 1})
    shown = checks.ingestion_metadata(spec, report, opened=0)
    assert set(shown) == {
        "applications", "accepted_applications", "quarantined_applications", "protected_attributes",
    }  # fmt: skip
    (row,) = shown["quarantined_applications"]["examples"].records
    assert row.data == {"source": "f.csv", "row": 7, "rule": "income_at_least", "column": "income", "bound": "1000"}
    assert "31337" not in str(shown)
    assert shown["protected_attributes"]["unreadable_values"] == 3
    assert "sex" not in str(shown["protected_attributes"])


# --- Outcomes and outliers ---


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (OutcomesReport(), "not_assessed"),
        (OutcomesReport(accepted_by_period={DAYS[0]: 900}, loans=900), "passed"),
        # Of three hundred loans, one may contradict itself by chance although that is more than one in a thousand.
        (OutcomesReport(accepted_by_period={DAYS[0]: 298}, conflicts=1, loans=299), "passed"),
        (OutcomesReport(accepted_by_period={DAYS[0]: 900}, conflicts=12, loans=912), "failed"),
        (OutcomesReport(accepted_by_period={DAYS[0]: 900}, too_early=12, loans=912), "failed"),
    ],
)
def test_outcomes_that_contradict_fail_beyond_chance(
    spec: Spec, names: Names, report: OutcomesReport, expected: str
) -> None:
    (result,) = checks.outcomes_results(spec, names, report)
    assert status(result) == expected


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (Screened(), "not_assessed", "there is no champion"),
        (Screened(rows=3, flagged=3, model="m version 1"), "not_assessed", "3 applications are too few"),
        (Screened(rows=1_000, flagged=5, model="m version 1"), "passed", "5 of 1000 applications"),
        (Screened(rows=1_000, flagged=400, model="m version 1"), "failed", "(40.00%)"),
    ],
)
def test_many_outliers_are_told(spec: Spec, names: Names, found: Screened, expected: str, words: str) -> None:
    (result,) = checks.outlier_results(spec, names, found)
    assert status(result) == expected
    assert words in str(result.description)


# --- Decisions ---


def decided(
    spec: Spec, *, problems: tuple[Problem, ...] = (), replayed: ReplaySummary | None = None, **over: Any
) -> dict[str, str]:
    made = BatchDecisions("b", applications=10, decided=8, known=2, **over)
    summary = replayed or ReplaySummary(compared=10)
    return {
        name: status(result)
        for name, result in told(checks.decision_results(spec, Names(spec), made, problems, summary)).items()
    }


def test_decisions_in_order_pass(spec: Spec) -> None:
    assert set(decided(spec).values()) == {"passed"}


@pytest.mark.parametrize(
    ("over", "check", "expected"),
    [
        ({"missing": 1}, "every_application_is_decided", "failed"),
        ({"doubled": 1}, "every_application_is_decided", "failed"),
        ({"without_reason": 1}, "every_rejection_has_a_reason", "failed"),
        ({"problems": (Problem(3, "is not what it was"),)}, "the_log_is_unbroken", "failed"),
        ({"replayed": ReplaySummary(compared=10, different=1)}, "decisions_replay", "failed"),
        ({"replayed": ReplaySummary()}, "decisions_replay", "not_assessed"),
    ],
)
def test_each_check_on_decisions_can_fail_by_itself(
    spec: Spec, over: dict[str, Any], check: str, expected: str
) -> None:
    found = decided(spec, **over)
    assert found.pop(check) == expected
    assert set(found.values()) == {"passed"}


# --- Watch ---


@pytest.fixture
def finding(spec: Spec) -> DriftFinding:
    """A finding on applications like the reference."""
    frame = pd.concat([applications(day, 300) for day in DAYS[:2]], ignore_index=True)
    schema = FeatureSchema.of(spec)
    typed = schema.matrix(frame.infer_objects())
    window = pooled([monitoring.Batch(DAYS[2], "b", typed.iloc[:250].reset_index(drop=True))], 200)
    return drift_verdict(typed, window, schema, spec.monitoring.bounds)


@pytest.mark.parametrize(
    ("last", "confirmed", "expected", "words"),
    [
        ("none", False, "passed", "250 applications are like the reference"),
        ("drifted", False, "passed", "Not confirmed yet (2 windows in a row are needed): income moved"),
        ("drifted", True, "failed", "income moved"),
        ("not_assessed", False, "not_assessed", "income moved"),
    ],
)
def test_drift_fails_once_it_is_confirmed(
    spec: Spec, names: Names, finding: DriftFinding, last: Any, expected: str, words: str, *, confirmed: bool
) -> None:
    assert finding.status == "none"
    told_of = () if last == "none" else ("income moved",)
    found = Drift((replace(finding, status=last, reasons=told_of),), confirmed, 600, None)
    (result,) = checks.drift_results(spec, names, found)
    assert status(result) == expected
    assert words in str(result.description)


def test_a_spread_that_moved_fails_and_too_little_is_not_assessed(spec: Spec, names: Names) -> None:
    rng = np.random.default_rng(3)
    before, same, moved = (rng.beta(2, 8, 3_000), rng.beta(2, 8, 2_000), rng.beta(8, 2, 2_000))
    decisions, themes = ["accept"] * 900 + ["reject"] * 100, ["income"] * 500 + ["debts"] * 500
    found = [
        monitoring.score_mix(before, moved),
        monitoring.decision_mix(decisions, decisions),
        monitoring.reason_mix(themes, themes[:3]),
    ]
    statuses = {name: status(result) for name, result in told(checks.mix_results(spec, names, found)).items()}
    assert statuses == {
        "scores_are_spread_as_before": "failed", "decisions_are_spread_as_before": "passed",
        "reasons_are_spread_as_before": "not_assessed",
    }  # fmt: skip
    found[0] = monitoring.score_mix(before, same)
    assert status(next(checks.mix_results(spec, names, found))) == "passed"


@pytest.mark.parametrize(
    ("verdict", "expected"), [("holds", "passed"), ("decayed", "failed"), ("not_assessed", "not_assessed")]
)
def test_a_decayed_champion_fails(spec: Spec, names: Names, verdict: Any, expected: str) -> None:
    found = Realised(verdict, ("AUC 0.55",), 10, 2, 3, 1, {}, None, None, None, None, {})
    (result,) = checks.realised_results(spec, names, found)
    assert status(result) == expected
    assert "AUC 0.55" in str(result.description)
