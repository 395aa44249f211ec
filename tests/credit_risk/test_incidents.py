"""Incidents open once, close once and with a reason, and nothing goes on while one is open."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.credit_risk import incidents
from mlops_assets.credit_risk.batch_rules import Finding
from mlops_assets.credit_risk.incidents import Incident, acknowledge, open_incident, open_incidents, record
from mlops_assets.credit_risk.ingestion import BatchReport
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.journal import Journal

SYSTEM, PERIOD = "credit_risk", "2026-06-30"
FIRST, SECOND = f"{PERIOD}-aaaaaaaaaaaa", f"{PERIOD}-bbbbbbbbbbbb"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "operations.db") as opened:
        yield opened


def unit_shift(journal: Journal, batch: str | None = FIRST, **changes: Any) -> Incident:
    found: dict[str, Any] = {
        "system": SYSTEM,
        "period": PERIOD,
        "batch_id": batch,
        "rule": "unit_shift",
        "column": "income",
        "value": 99.7,
        "bound": "between 0.2 and 5",
        "details": "the median of income is 99.7 times that of the batches before.",
        "run_id": "run-1",
        **changes,
    }
    return open_incident(journal, **found)


def report(batch: str, *rules: str, status: str = "blocked", period: str = PERIOD, unchanged: bool = False) -> Any:
    findings = tuple(Finding(rule, None, "9 %", "at most 5 %", "block", f"{rule} is broken") for rule in rules)
    remark = Finding("quarantine_share", None, "1 %", "at most 5 %", "warn", "a remark")
    return BatchReport(batch, period, status, 10, 9, 1, 0, unchanged, (*findings, remark))  # type: ignore[arg-type]


def test_an_incident_reads_back_as_it_was_found(journal: Journal) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    incident = unit_shift(journal)
    assert (incident.system, incident.period, incident.batch_id, incident.rule) == (SYSTEM, PERIOD, FIRST, "unit_shift")
    assert (incident.value, incident.bound, incident.state, incident.fresh) == (99.7, "between 0.2 and 5", "open", True)
    assert before <= incident.opened_at <= datetime.now(UTC)
    assert open_incidents(journal) == incidents.history(journal) == [incident]


def test_the_same_finding_opens_once_whatever_was_measured_this_time(journal: Journal) -> None:
    first = unit_shift(journal)
    again = unit_shift(journal, value=101.2, run_id="run-2")
    assert (again, again.fresh) == (first, False)
    assert journal.head().number == 1


@pytest.mark.parametrize(
    "other", [{"batch_id": SECOND}, {"rule": "missing_share"}, {"column": "age"}, {"column": None}, {"system": "loans"}]
)
def test_another_batch_rule_column_or_system_is_another_incident(journal: Journal, other: dict[str, Any]) -> None:
    assert unit_shift(journal).id != unit_shift(journal, **other).id
    assert len(open_incidents(journal)) == 2


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (np.float64(2.5), 2.5),
        (np.int64(3), 3),
        (np.float32("-inf"), "-inf"),
        (datetime(2026, 6, 30, tzinfo=UTC).date(), PERIOD),
        (None, None),
        ("9 %", "9 %"),
        (True, True),
    ],
    ids=str,
)
def test_whatever_was_measured_has_a_place_in_the_journal(journal: Journal, value: Any, kept: Any) -> None:
    unit_shift(journal, value=value)
    assert open_incidents(journal)[0].value == kept


@pytest.mark.parametrize("outcome", ["waived", "resolved"])
def test_an_incident_is_closed_with_who_why_and_when(journal: Journal, outcome: str) -> None:
    incident = unit_shift(journal)
    closed = acknowledge(journal, incident.id, " Ann ", "the bank changed its currency\n", outcome)
    assert (closed.state, closed.by, closed.reason) == (outcome, "Ann", "the bank changed its currency")
    assert closed.closed_at is not None
    assert closed.closed_at >= closed.opened_at
    assert open_incidents(journal) == []
    assert incidents.history(journal) == [closed]
    assert unit_shift(journal) == closed  # found again, it stays closed
    incidents.refuse_if_open(journal)


@pytest.mark.parametrize(
    ("by", "reason", "outcome", "words"),
    [
        ("", "a reason", "waived", "the name is empty"),
        ("Ann", " \n", "waived", "the reason is empty.*say who decides it and why"),
        ("Ann", "a reason", "ignored", "'ignored' is no outcome.*use one of: waived, resolved"),
        ("Ann", "a reason", "open", "'open' is no outcome"),
    ],
)
def test_nothing_is_closed_without_a_name_a_reason_and_an_outcome(
    journal: Journal, by: str, reason: str, outcome: str, words: str
) -> None:
    incident = unit_shift(journal)
    with pytest.raises(UserError, match=words) as caught:
        acknowledge(journal, incident.id, by, reason, outcome)
    assert incident.id in str(caught.value)
    assert open_incidents(journal) == [incident]


def test_an_unknown_incident_is_answered_with_those_that_are_open(journal: Journal) -> None:
    with pytest.raises(UserError, match="no incident is open"):
        acknowledge(journal, "nothing", "Ann", "a reason")
    incident = unit_shift(journal)
    with pytest.raises(UserError, match=f"incident nothing: there is no such incident.*are open: {incident.id}"):
        acknowledge(journal, "nothing", "Ann", "a reason")


def test_an_incident_is_closed_once(journal: Journal) -> None:
    incident = unit_shift(journal)
    acknowledge(journal, incident.id, "Ann", "looked at it")
    with pytest.raises(UserError, match=r"it was waived by Ann at 20.* UTC: looked at it.*closed once"):
        acknowledge(journal, incident.id, "Bob", "me too", "resolved")
    (kept,) = incidents.history(journal)
    assert (kept.state, kept.by) == ("waived", "Ann")


def test_of_two_people_who_close_it_at_the_same_moment_one_is_told(journal: Journal) -> None:
    incident = unit_shift(journal)
    barrier = threading.Barrier(8)
    answers: list[str] = []

    def close(name: str) -> None:
        barrier.wait()
        try:
            answers.append(f"closed by {acknowledge(journal, incident.id, name, 'a reason').by}")
        except UserError:
            answers.append("told")

    people = [threading.Thread(target=close, args=[f"p{n}"]) for n in range(8)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert sorted(answer == "told" for answer in answers) == [False, *[True] * 7]
    assert f"closed by {incidents.history(journal)[0].by}" in answers


def test_nothing_goes_on_while_an_incident_is_open_and_the_message_says_what_to_do(journal: Journal) -> None:
    incidents.refuse_if_open(journal)
    incident = unit_shift(journal)
    with pytest.raises(UserError) as caught:
        incidents.refuse_if_open(journal, what="training", system="loans")
    assert str(caught.value) == (
        f"loans: no training while a data incident is open: {incident.id} (unit_shift of {FIRST}, income, found 99.7, "
        "in order would be between 0.2 and 5). Remedy: deliver the data again as they should be, or settle the "
        f"incident: mlops-assets incidents credit_risk acknowledge {incident.id} --by NAME --reason TEXT."
    )


def test_of_many_open_incidents_the_first_are_shown_and_all_are_named(journal: Journal) -> None:
    found = [unit_shift(journal, column=f"c{n}") for n in range(8)]
    with pytest.raises(UserError) as caught:
        incidents.refuse_if_open(journal)
    assert "; and 3 more" in caught.value.what
    assert all(incident.id in (caught.value.remedy or "") for incident in found)


def test_batches_under_an_incident_stay_touched_unless_it_was_waived(journal: Journal) -> None:
    waived = unit_shift(journal, FIRST)
    resolved = unit_shift(journal, SECOND)
    unit_shift(journal, None)  # of no batch
    assert incidents.touched_batches(journal) == {FIRST, SECOND}
    acknowledge(journal, waived.id, "Ann", "fine")
    acknowledge(journal, resolved.id, "Ann", "wrong", "resolved")
    assert incidents.touched_batches(journal) == {SECOND}
    unit_shift(journal, FIRST, column="age")
    assert incidents.touched_batches(journal) == {FIRST, SECOND}


# --- what an ingestion found


def test_every_blocking_finding_opens_an_incident_and_remarks_open_none(journal: Journal) -> None:
    batches = [
        report(FIRST, "unit_shift", "missing_share"),
        report("2026-06-29-cc", status="accepted", period="2026-06-29"),
    ]
    assert record(journal, SYSTEM, batches, run_id="run-1") == 2
    assert record(journal, SYSTEM, batches, run_id="run-2") == 0
    found = open_incidents(journal)
    assert [(each.rule, each.batch_id, each.details, each.run_id) for each in found] == [
        ("unit_shift", FIRST, "unit_shift is broken", "run-1"),
        ("missing_share", FIRST, "missing_share is broken", "run-1"),
    ]


def test_an_accepted_batch_resolves_the_incidents_of_those_it_replaced(journal: Journal) -> None:
    record(
        journal, SYSTEM, [report(FIRST, "unit_shift"), report("other", "unit_shift", period="2026-07-01")], run_id="1"
    )
    of_no_batch = unit_shift(journal, None)
    assert record(journal, SYSTEM, [report(SECOND, status="accepted")], run_id="run-2") == 0
    (resolved,) = [each for each in incidents.history(journal) if each.batch_id == FIRST]
    assert (resolved.state, resolved.by) == ("resolved", "run run-2")
    assert resolved.reason == f"batch {SECOND} was accepted in its place"
    assert {each.id for each in open_incidents(journal)} == {
        of_no_batch.id,
        incidents.incident_id(SYSTEM, "other", "unit_shift", None),
    }
    assert incidents.resolve_by_new_batch(journal, PERIOD, SECOND, "run-3") == []


def test_a_batch_does_not_resolve_its_own_incident(journal: Journal) -> None:
    incident = unit_shift(journal, FIRST)
    assert incidents.resolve_by_new_batch(journal, PERIOD, FIRST, "run-2") == []
    assert open_incidents(journal) == [incident]


def test_an_accepted_batch_with_a_blocking_finding_resolves_nothing(journal: Journal) -> None:
    """An old file was delivered again: its batch had been accepted once, and is an incident now."""
    unit_shift(journal, FIRST)
    assert record(journal, SYSTEM, [report(SECOND, "superseded_delivery", status="accepted")], run_id="run-2") == 1
    assert [each.rule for each in open_incidents(journal)] == ["unit_shift", "superseded_delivery"]


def test_a_batch_that_is_blocked_again_after_it_was_waived_opens_once_more(journal: Journal) -> None:
    """Other rules judged it since, or the run that waived it died before the batch was accepted."""
    batch = report(FIRST, "unit_shift", "missing_share")
    record(journal, SYSTEM, [batch], run_id="run-1")
    first, second = open_incidents(journal)
    acknowledge(journal, first.id, "Ann", "fine")
    assert record(journal, SYSTEM, [batch], run_id="run-2") == 0  # the other one still waits
    acknowledge(journal, second.id, "Ann", "fine")
    assert record(journal, SYSTEM, [batch], run_id="run-3") == 2
    assert record(journal, SYSTEM, [batch], run_id="run-4") == 0
    again = open_incidents(journal)
    assert [(each.rule, each.occurrence, each.run_id) for each in again] == [
        ("unit_shift", 2, "run-3"),
        ("missing_share", 2, "run-3"),
    ]
    assert {each.id for each in again}.isdisjoint({first.id, second.id})


def test_a_batch_that_somebody_called_wrong_stays_settled_when_it_comes_again(journal: Journal) -> None:
    batch = report(FIRST, "unit_shift", "missing_share")
    record(journal, SYSTEM, [batch], run_id="run-1")
    first, second = open_incidents(journal)
    acknowledge(journal, first.id, "Ann", "fine")
    acknowledge(journal, second.id, "Ann", "a new file is on its way", "resolved")
    assert record(journal, SYSTEM, [batch], run_id="run-2") == 0
    assert open_incidents(journal) == []


# --- freezes and requests


def test_a_freeze_holds_until_it_is_lifted(journal: Journal) -> None:
    assert incidents.frozen(journal) is None
    incidents.freeze(journal, "Ann", "audit until Friday")
    told = incidents.frozen(journal)
    assert told is not None
    assert told.startswith("by Ann since 20")
    assert told.endswith(" UTC: audit until Friday")
    with pytest.raises(UserError, match=r"frozen already, by Ann since .*: audit until Friday.*lift that freeze first"):
        incidents.freeze(journal, "Bob", "me too")
    incidents.unfreeze(journal, "Bob", "the audit is over")
    assert incidents.frozen(journal) is None
    with pytest.raises(UserError, match="not frozen"):
        incidents.unfreeze(journal, "Bob", "again")
    incidents.freeze(journal, "Cat", "again")
    assert "by Cat" in (incidents.frozen(journal) or "")


@pytest.mark.parametrize("act", [incidents.freeze, incidents.unfreeze, incidents.request_retrain])
@pytest.mark.parametrize(("by", "reason"), [("", "why"), ("who", " ")])
def test_nobody_freezes_or_asks_without_a_name_and_a_reason(journal: Journal, act: Any, by: str, reason: str) -> None:
    with pytest.raises(UserError, match="is empty"):
        act(journal, by, reason)
    assert journal.head().number == 0


def test_a_request_is_open_until_a_training_was_asked_for(journal: Journal) -> None:
    assert incidents.open_requests(journal) == []
    first = incidents.request_retrain(journal, " Ann", "new product")
    second = incidents.request_retrain(journal, "Ann", "new product")
    assert (first.by, first.reason) == ("Ann", "new product")
    assert first.id != second.id
    assert incidents.open_requests(journal) == [first, second]
    ask = incidents.note_ask(journal, trigger="T1_drift", fingerprint="f1", reason="drift", period=PERIOD)
    assert ask.requests == (first.id, second.id)
    assert incidents.open_requests(journal) == []
    third = incidents.request_retrain(journal, "Bob", "later")
    assert incidents.open_requests(journal) == [third]


def test_the_same_evidence_is_noted_once(journal: Journal) -> None:
    ask = incidents.note_ask(journal, trigger="T4_age", fingerprint="f1", reason="old", period=PERIOD)
    incidents.request_retrain(journal, "Ann", "later")
    assert incidents.note_ask(journal, trigger="T4_age", fingerprint="f1", reason="older", period=PERIOD) == ask
    assert incidents.asks(journal) == [ask]
    assert (ask.trigger, ask.fingerprint, ask.reason, ask.period, ask.requests) == ("T4_age", "f1", "old", PERIOD, ())
    assert len(incidents.open_requests(journal)) == 1
    assert journal.verify() == []
