"""What is held against which bound, and the verdict on stored evidence: no gate is passed by being absent."""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from mlops_assets.credit_risk import judgement, judging
from mlops_assets.credit_risk.evaluation import Against
from mlops_assets.credit_risk.metrics import Estimate
from mlops_assets.credit_risk.models import model_name
from mlops_assets.credit_risk.sample_spec import default_spec
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ChampionHistory, ChampionRecord, GateResult, ModelVersion
from mlops_assets.foundation.risk import RiskProfile
from mlops_assets.foundation.snapshots import SnapshotStore
from tests.credit_risk.ran_world import OFFICER, TRAINED, Bank, bank_folder, opened, ran

__all__ = ["bank_folder", "ran"]

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

SPEC = default_spec()
CALM = GateResult("incident", "passed", 0.0, 0.0, None, "no data incident is open")
ALARM = GateResult("incident", "failed", 1.0, 0.0, None, "open data incidents: i-1")
OF_THE_MODEL = (
    "accuracy", "interval_coverage", "monitoring", "calibration", "bias_report", "explanations", "model_card",
)  # fmt: skip


def estimate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value, value if low is None else low, value if high is None else high, 1_000)


UNKNOWN = Estimate.unknown(12, "12 loans are too few")


# --- Held against bounds ---


@pytest.mark.parametrize(
    ("found", "above", "status"),
    [(estimate(0.61), True, "passed"), (estimate(0.59), True, "failed"), (estimate(0.59), False, "passed"),
     (estimate(0.61), False, "failed"), (UNKNOWN, True, "not_assessed"), (UNKNOWN, False, "not_assessed")],
)  # fmt: skip
def test_an_estimate_is_held_against_its_bound_and_what_is_unknown_has_not_passed(
    found: Estimate, status: str, *, above: bool
) -> None:
    gate = judging.held("accuracy", found, 0.6, "AUC", above=above)
    assert (gate.status, gate.bound, gate.value) == (status, 0.6, found.value)
    assert gate.reason.startswith("AUC: ")


@pytest.mark.parametrize(
    ("value", "above", "status"),
    [
        (1.0, True, "passed"),
        (1.0, False, "passed"),
        (0.9, True, "failed"),
        (1.1, False, "failed"),
        (math.nan, True, "failed"),
        (math.nan, False, "failed"),
    ],
)
def test_a_plain_number_that_is_none_never_passes(value: float, status: str, *, above: bool) -> None:
    assert judging.plain("accuracy", value, 1.0, "x", above=above).status == status


def _grades(held: int, missed: int, thin: int = 0) -> Any:
    counted = [True] * held + [False] * missed
    grades = [SimpleNamespace(covered=each, p_holm=0.5, name=str(at)) for at, each in enumerate(counted)]
    grades += [SimpleNamespace(covered=None, p_holm=None, name=f"thin{at}") for at in range(thin)]
    return SimpleNamespace(grades=grades, level=0.95, coverage=estimate(0.9, 0.5, 1.0))


@pytest.mark.parametrize(
    ("held", "missed", "status"),
    [(8, 0, "passed"), (7, 1, "passed"), (6, 2, "passed"), (5, 3, "failed"), (0, 8, "failed"), (1, 0, "passed"),
     (0, 1, "passed"), (0, 0, "not_assessed")],
)  # fmt: skip
def test_coverage_allows_what_chance_allows_and_needs_grades(held: int, missed: int, status: str) -> None:
    gate = judging._coverage_gate(SPEC, _grades(held, missed, thin=2))
    assert gate.status == status
    if status != "not_assessed":
        assert f"{held} of {held + missed} grades" in gate.reason


def _against(**over: Any) -> Against:
    swap = SimpleNamespace(flips=estimate(0.03), gain=estimate(0.0, -0.1, 0.1), table=pd.DataFrame)
    values: dict[str, Any] = {
        "auc": estimate(0.002, -0.001, 0.005), "brier": estimate(-0.01), "stability": estimate(0.0, -0.2, 0.2),
        "champion_stability": estimate(0.5), "swap": swap, "segments": {"purpose": {"car": estimate(0.0, -0.1, 0.1)}},
        "shadow": SimpleNamespace(psi=estimate(0.02), bound=0.05),
    }  # fmt: skip
    return Against(**{**values, **over})


def _status(gates: list[GateResult]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for gate in gates:
        found.setdefault(gate.gate, set()).add(gate.status)
    return found


def test_a_candidate_that_is_as_good_passes_beside_the_champion() -> None:
    gates = judging.comparison_gates(SPEC, _against())
    assert {status for statuses in _status(gates).values() for status in statuses} == {"passed"}


@pytest.mark.parametrize(
    ("over", "gate", "status"),
    [
        ({"auc": estimate(-0.02, -0.03, -0.01)}, "champion_comparison", "failed"),
        ({"auc": UNKNOWN}, "champion_comparison", "not_assessed"),
        ({"auc": estimate(0.08, 0.06, 0.10)}, "accuracy", "failed"),  # too good to be true
        ({"brier": estimate(0.05, 0.04, 0.06)}, "champion_comparison", "failed"),
        ({"stability": estimate(-0.2, -0.3, -0.1)}, "champion_comparison", "failed"),
        ({"segments": {"purpose": {"car": estimate(-0.1, -0.2, -0.05)}}}, "champion_comparison", "failed"),
        ({"shadow": None}, "shadow", "not_assessed"),
        ({"shadow": SimpleNamespace(psi=estimate(0.3), bound=0.05)}, "shadow", "failed"),
        ({"shadow": SimpleNamespace(psi=UNKNOWN, bound=None)}, "shadow", "not_assessed"),
    ],
)
def test_each_comparison_can_hold_a_candidate_back(over: dict[str, Any], gate: str, status: str) -> None:
    assert status in _status(judging.comparison_gates(SPEC, _against(**over)))[gate]


def test_a_noisy_segment_or_stability_says_nothing_either_way() -> None:
    over = {"segments": {"purpose": {"car": UNKNOWN, "other": estimate(-0.1, -0.3, 0.1)}}, "stability": UNKNOWN}
    assert _status(judging.comparison_gates(SPEC, _against(**over)))["champion_comparison"] == {"passed"}


@pytest.mark.parametrize(("low", "status"), [(0.01, "passed"), (-0.01, "failed"), (None, "failed")])
def test_many_decisions_may_flip_only_where_it_is_proven_to_be_for_the_better(low: float | None, status: str) -> None:
    gain = UNKNOWN if low is None else estimate(0.05, low, 0.1)
    swap = SimpleNamespace(flips=estimate(0.4), gain=gain, table=pd.DataFrame)
    gates = judging.comparison_gates(SPEC, _against(swap=swap))
    (found,) = [gate for gate in gates if "flip" in gate.reason]
    assert found.status == status


@pytest.mark.parametrize(
    ("last", "status"),
    [("2024-09-30T10:00:00", "passed"), ("2024-08-25T00:00:00", "passed"), ("2024-08-01T00:00:00", "failed"),
     (None, "not_assessed")],
)  # fmt: skip
def test_outcomes_have_to_come_in_for_a_model_to_be_watched(last: str | None, status: str) -> None:
    snapshot: Any = SimpleNamespace(metadata={"as_of": "2024-10-01T00:00:00+00:00", "last_outcome_at": last})
    assert judging.watch_gate(SPEC, snapshot).status == status


def test_gates_come_back_from_evidence_as_they_were() -> None:
    gates = [GateResult("accuracy", "passed", 0.7, 0.6, (0.6, 0.8), "AUC"), GateResult("shadow", "not_assessed")]
    assert judging.read_gates([gate.as_row() for gate in gates]) == gates


def test_a_page_lists_first_what_did_not_pass() -> None:
    gates = [
        GateResult("a", "passed"),
        GateResult("b", "not_assessed"),
        GateResult("c", "failed", 1.0, 2.0, (0.5, 1.5)),
    ]
    table = judging.gates_table(gates)
    assert table["gate"].tolist() == ["c", "b", "a"]
    assert table["interval"].tolist() == ["0.5000 to 1.5000", "", ""]
    assert list(judging.gates_table([]).columns) == list(table.columns)


# --- Which gates a verdict needs ---


def test_the_highest_profile_needs_every_gate_of_the_model_incident_and_approval() -> None:
    assert set(judging.required_gates(SPEC, champion=False)) == {*OF_THE_MODEL, "incident", "approval"}
    assert set(judging.required_gates(SPEC, champion=True)) == {
        *OF_THE_MODEL, "champion_comparison", "shadow", "incident", "approval",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "needed"),
    [
        (RiskProfile("low", "low", "low"), {"accuracy", "champion_comparison"}),
        (RiskProfile("high", "low", "low"), {"accuracy", "champion_comparison", "incident"}),
        (
            RiskProfile("low", "medium", "medium"),
            {"accuracy", "champion_comparison", "interval_coverage", "monitoring", "shadow"},
        ),
        (RiskProfile("low", "low", "high"), {"accuracy", "champion_comparison", "shadow", "approval"}),
    ],
)
def test_a_lower_profile_needs_less(profile: RiskProfile, needed: set[str]) -> None:
    spec = SPEC.model_copy(update={"risk": profile})
    assert set(judging.required_gates(spec, champion=True)) == needed


# --- The verdict on stored evidence ---


class Court:
    """A registry with the bank's candidates and their evidence, and an event log of one's own."""

    def __init__(self, bank: Bank, instance: dg.DagsterInstance, spec: Spec) -> None:
        self.spec, self.registry = spec, bank.registry
        required = "approval" in {gate.name for gate in spec.risk.required_gates()}
        self.history = ChampionHistory(instance, spec.name, self.registry, model_name(spec), approval_required=required)
        self.instance = instance
        shown = bank.page("model_card", TRAINED)
        self.candidate = self.version(int(shown["candidate"].text.rsplit(" ", 1)[-1]))
        self.other = self.version(3 - self.candidate.version)
        self.evidence: Mapping[str, Any] = self.registry.evidence(self.candidate, shown["evidence_sha256"].text)

    def version(self, number: int) -> ModelVersion:
        return self.registry.get(model_name(self.spec), number)

    def decided(
        self, version: ModelVersion, evidence: Mapping[str, Any], incident: GateResult = CALM
    ) -> tuple[ChampionRecord, list[GateResult]]:
        """Judge a candidate on this evidence, as if it were about it, and log the record, as the asset does."""
        digest = self.registry.attach_evidence(version, {**evidence, "candidate": version.as_part()})
        record, gates = judging.decide_champion(
            self.spec, self.history, version, digest, incident=incident, by="run of a test"
        )
        key = dg.AssetKey([self.spec.name, "champion"])
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=record.metadata()))
        return record, gates

    def verdict(
        self, version: ModelVersion, evidence: Mapping[str, Any], incident: GateResult = CALM
    ) -> ChampionRecord:
        return self.decided(version, evidence, incident)[0]

    def crown(self, version: ModelVersion) -> None:
        """Have a version proposed on good evidence and approved."""
        record = self.verdict(version, {**self.evidence, "champion": None})
        assert record.verdict == "proposed", record.reason
        self.history.approve(version.version, OFFICER, "read")


def with_gate(evidence: Mapping[str, Any], gate: str, status: str | None) -> dict[str, Any]:
    """Evidence in which one result of a gate has another status, or all its results are missing."""
    rows = [dict(row) for row in evidence["gates"]]
    if status is None:
        rows = [row for row in rows if row["gate"] != gate]
    else:
        next(row for row in rows if row["gate"] == gate)["status"] = status
    return {**evidence, "gates": rows}


def beside(evidence: Mapping[str, Any], champion: ModelVersion, *gates: GateResult) -> dict[str, Any]:
    """Evidence of an evaluation beside a champion, with the gates that this adds."""
    added = gates or (GateResult("champion_comparison", "passed", 0.01, -0.005, (0.0, 0.02), "AUC gained"),
                      GateResult("shadow", "passed", 0.02, 0.1, None, "PSI"))  # fmt: skip
    rows = [*evidence["gates"], *(gate.as_row() for gate in added)]
    return {**evidence, "gates": rows, "champion": champion.as_part()}


@pytest.fixture(scope="module")
def own(bank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    home = tmp_path_factory.mktemp("court") / "bank"
    shutil.copytree(bank_folder / "proposed", home)
    with opened(home) as bank:
        yield bank


@pytest.fixture
def court(own: Bank) -> Iterator[Court]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Court(own, instance, own.spec)


def test_good_evidence_makes_a_proposal_and_no_champion(court: Court) -> None:
    record = court.verdict(court.candidate, court.evidence)
    assert (record.verdict, record.to_version, court.history.current()) == ("proposed", None, None)
    assert record.trained_by == "grace"
    assert record.expires_at is not None
    assert (record.expires_at - record.decided_at).days in {13, 14}


@pytest.mark.parametrize("status", ["failed", "not_assessed", None])
@pytest.mark.parametrize("gate", OF_THE_MODEL)
def test_every_gate_of_the_model_blocks_when_it_failed_was_not_assessed_or_is_missing(
    court: Court, gate: str, status: str | None
) -> None:
    record = court.verdict(court.candidate, with_gate(court.evidence, gate, status))
    assert record.verdict == "blocked"
    assert gate in record.reason
    assert court.history.open_proposal() is None


def test_an_open_incident_blocks_whatever_the_evidence_says(court: Court) -> None:
    record, gates = court.decided(court.candidate, court.evidence, ALARM)
    assert record.verdict == "blocked"
    assert "open data incidents: i-1" in record.reason
    assert ALARM in gates


def test_a_better_candidate_is_proposed_beside_the_champion(court: Court) -> None:
    court.crown(court.other)
    record = court.verdict(court.candidate, beside(court.evidence, court.other))
    assert (record.verdict, record.version) == ("proposed", court.other.version)


@pytest.mark.parametrize("gate", ["shadow", "champion_comparison"])
def test_beside_a_champion_shadow_and_comparison_are_needed(court: Court, gate: str) -> None:
    court.crown(court.other)
    whole = beside(court.evidence, court.other)
    record = court.verdict(court.candidate, with_gate(whole, gate, None))
    assert record.verdict in {"blocked", "kept"}
    assert record.to_version is None
    assert court.verdict(court.candidate, with_gate(whole, gate, "not_assessed")).verdict == "blocked"


def test_a_candidate_that_is_no_better_keeps_the_champion(court: Court) -> None:
    court.crown(court.other)
    worse = GateResult("champion_comparison", "failed", -0.02, -0.005, (-0.03, -0.01), "AUC lost")
    better = GateResult("champion_comparison", "passed", 0.0, 0.02, None, "Brier")
    shadow = GateResult("shadow", "passed", 0.02, 0.1, None, "PSI")
    record, gates = court.decided(court.candidate, beside(court.evidence, court.other, better, worse, shadow))
    assert (record.verdict, record.version) == ("kept", court.other.version)
    # All comparisons are one gate, and one that failed is enough.
    (whole,) = [gate for gate in gates if gate.gate == "champion_comparison"]
    assert (whole.status, whole.reason) == ("failed", "AUC lost")


@pytest.mark.parametrize("then", ["no champion", "another champion"])
def test_an_evaluation_beside_another_champion_is_refused(court: Court, then: str) -> None:
    court.crown(court.other)
    stranger = replace(court.other, sha256="f" * 64)
    evidence = court.evidence if then == "no champion" else beside(court.evidence, stranger)
    record = court.verdict(court.candidate, evidence)
    assert record.verdict == "blocked"
    assert "evaluate again" in record.reason


def test_the_champions_own_content_is_kept(court: Court) -> None:
    court.crown(court.candidate)
    record = court.verdict(court.candidate, court.evidence)
    assert (record.verdict, record.version) == ("kept", court.candidate.version)


def test_what_was_rejected_or_rolled_back_from_does_not_come_back_by_itself(court: Court) -> None:
    assert court.verdict(court.candidate, court.evidence).verdict == "proposed"
    court.history.reject(court.candidate.version, "mary", "unfair to the young")
    record = court.verdict(court.candidate, court.evidence)
    assert record.verdict == "kept"
    assert "unfair to the young" in record.reason


def test_evidence_of_another_version_is_refused(court: Court) -> None:
    digest = court.registry.attach_evidence(court.candidate, dict(court.evidence))
    with pytest.raises(UserError, match="evidence"):
        judging.decide_champion(court.spec, court.history, court.other, digest, incident=CALM, by="run")
    # Also where somebody has put it with that version.
    stored = court.registry.attach_evidence(court.other, dict(court.evidence))
    with pytest.raises(UserError, match=r"is about \w+, not about .* version"):
        judging.decide_champion(court.spec, court.history, court.other, stored, incident=CALM, by="run")


def test_at_low_risk_of_the_output_a_good_candidate_serves_at_once(own: Bank) -> None:
    spec = own.spec.model_copy(update={"risk": RiskProfile("high", "high", "low")})
    with dg.DagsterInstance.ephemeral() as instance:
        court = Court(own, instance, spec)
        record = court.verdict(court.candidate, court.evidence)
        assert (record.verdict, record.to_version) == ("promoted", court.candidate.version)
        current = court.history.current()
        assert current is not None
        assert current.version == court.candidate.version
        # The other gates stand as before.
        assert court.verdict(court.other, court.evidence, ALARM).verdict == "blocked"


def test_at_low_risk_of_the_data_an_incident_is_a_remark(own: Bank) -> None:
    spec = own.spec.model_copy(update={"risk": RiskProfile("low", "high", "high")})
    with dg.DagsterInstance.ephemeral() as instance:
        court = Court(own, instance, spec)
        record = court.verdict(court.candidate, court.evidence, ALARM)
        assert record.verdict == "proposed"
        assert "open data incidents: i-1" in record.reason


# --- Evidence as it was stored ---


def test_evidence_is_plain_json_with_every_number_that_the_verdict_rests_on(own: Bank) -> None:
    found = own.evidence("evaluation", TRAINED)
    assert {"gates", "metrics", "contestants", "grades", "profit", "calibration", "bounds", "choice"} <= set(found)
    assert found["champion"] is None
    assert set(found["contestants"]) == {"scorecard", "gbm"}
    whole = own.evidence("model_card", TRAINED)
    parts = {name: own.page(name, TRAINED)["evidence_sha256"].value for name in whole["evidence"]}
    assert whole["evidence"] == parts
    assert {row["gate"] for row in whole["gates"]} == set(OF_THE_MODEL)


def test_training_once_more_gives_the_same_bytes_and_another_seed_does_not(own: Bank) -> None:
    version = own.registry.get(own.history.model, 1)
    store = SnapshotStore(own.resources["store"].path("snapshots"))
    snapshot = store.load(version.tags["training_set"])
    assert judging.reproducible(own.spec, snapshot, version).status == "passed"
    other = own.with_spec(training={"seed": 8}).spec
    gate = judging.reproducible(other, snapshot, version)
    assert gate.status == "failed"
    assert "other bytes in" in gate.reason


def test_an_incident_is_named_in_its_gate(own: Bank, tmp_path: Path) -> None:
    from mlops_assets.credit_risk import incidents
    from mlops_assets.foundation.journal import Journal

    journal = Journal(tmp_path / "operations.db")
    assert judgement.incident_gate(journal).status == "passed"
    opened_now = incidents.open_incident(journal, system="bank", period=TRAINED, batch_id="b", rule="row_count")
    gate = judgement.incident_gate(journal)
    assert (gate.status, gate.value) == ("failed", 1.0)
    assert opened_now.id in gate.reason


def test_only_finite_numbers_are_plotted() -> None:
    assert judgement.finite({"a": 1.0, "b": None, "c": math.inf, "d": float(np.float64("nan"))}) == {"a": 1.0}
