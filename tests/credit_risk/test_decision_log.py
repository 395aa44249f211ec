"""The log holds every decision once, finds it by what touched it, and shows it as a table."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.credit_risk.decision_log import COLUMNS, FIELDS, DecisionLog
from mlops_assets.foundation import journal as journal_module
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.journal import Journal

OLD: dict[str, Any] = {
    "model": {"name": "credit_risk.pd_model", "version": 3, "sha256": "03" * 32, "kind": "scorecard"},
    "policy": {"version": "p1", "accept_below": 0.1},
    "run_id": "run-1",
}
NEW: dict[str, Any] = {**OLD, "model": {**OLD["model"], "version": 4, "sha256": "04" * 32}, "run_id": "run-2"}
RULES = {"accept": "below_the_cut", "refer": "in_the_band", "reject": "above_the_cut"}


def decision(number: int, answer: str = "accept", **changes: Any) -> dict[str, Any]:
    payload = {"application_id": f"a{number}", "income": 1000.5 + number, "purpose": "car"}
    return {
        "decision_id": f"d{number:04d}",
        "application_id": f"a{number}",
        "period": "2026-06-30",
        "batch_id": "2026-06-30-aaaaaaaaaaaa",
        "channel": "batch",
        "received_at": "2026-06-30T10:00:00+00:00",
        "decided_at": "2026-06-30T12:00:00+00:00",
        "payload": payload,
        "payload_sha256": sha256_hex(canonical_json(payload)),
        "source": {"file": "applications.csv", "row": number},
        "flags": {"outlier": None},
        "features": {"income": (1000.5 + number).hex(), "purpose": "car", "age": None},
        "result": result(answer),
        **changes,
    }


def result(answer: str = "accept", pd: float | None = 0.0625) -> dict[str, Any]:
    told = {"theme": "income", "text": "Income is low.", "features": ["income"], "contribution": (0.5).hex()}
    return {
        "pd": None if pd is None else pd.hex(),
        "margin": None if pd is None else (-2.5).hex(),
        "points": None if pd is None else 612,
        "decision": answer,
        "rule": "quarantined" if pd is None else RULES[answer],
        "reasons": [] if answer == "accept" or pd is None else [told, {**told, "theme": "payments"}],
    }


@pytest.fixture
def log(tmp_path: Path) -> Iterator[DecisionLog]:
    with Journal(tmp_path / "decisions.db") as journal:
        yield DecisionLog(journal)


def ids(entries: Any) -> list[str]:
    return [entry.body["decision_id"] for entry in entries]


def test_a_decision_reads_back_bit_for_bit_with_its_context(log: DecisionLog) -> None:
    made = decision(1, "reject")
    context = log.context(OLD)
    assert log.append([made], context) == 1
    entry = log.get("d0001")
    assert entry.body == {**made, "context_sha256": context}
    assert float.fromhex(entry.body["result"]["pd"]) == 0.0625
    assert log.context_of(context) == OLD
    assert entry.subject == "a1"
    assert log.verify([log.head()]) == []


def test_a_context_is_kept_once_and_named_by_its_content(log: DecisionLog) -> None:
    first = log.context(OLD)
    assert first == sha256_hex(canonical_json(OLD))
    assert log.context(json.loads(json.dumps(OLD))) == first
    assert log.context(NEW) != first
    assert log.head().number == 2


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({}, "does not name its model and policy: 'model' is missing"),
        ({"model": {"sha256": "x", "version": 1}}, "'policy' is missing"),
        ({"model": {"version": 1}, "policy": {"version": 1}}, "'sha256' is missing"),
        ({"model": {"sha256": "x"}, "policy": {"version": 1}}, "'version' is missing"),
        ({"model": None, "policy": {"version": 1}}, "does not name its model and policy"),
        ({**OLD, "extra": float("nan")}, "the context cannot be recorded"),
        ({**OLD, "extra": {1, 2}}, "the context cannot be recorded"),
    ],
)
def test_a_context_that_cannot_be_found_by_or_kept_is_refused(log: DecisionLog, context: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        log.context(context)
    assert log.head().number == 0


def test_a_decision_stands_however_often_it_is_made(log: DecisionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BLOCK_ROWS", 3)
    context = log.context(OLD)
    assert log.append((decision(n) for n in range(7)), context) == 7
    again = [decision(n, "reject") for n in range(5, 9)]
    assert log.append(again, log.context(NEW)) == 2
    assert log.get("d0006").body["result"]["decision"] == "accept"
    assert log.recorded(["d0000", "d0008", "d0009"]) == {"d0000", "d0008"}
    assert log.verify() == []


def test_a_decision_without_a_recorded_context_is_refused(log: DecisionLog) -> None:
    with pytest.raises(UserError, match=r"decisions\.db: no context has the SHA-256 ff.*record the context"):
        log.append([decision(1)], "ff" * 32)
    assert log.head().number == 0


@pytest.mark.parametrize("field", FIELDS)
def test_a_decision_that_does_not_say_everything_is_refused(log: DecisionLog, field: str) -> None:
    made = decision(1)
    del made[field]
    with pytest.raises(UserError, match=f"a decision lacks {field}"):
        log.append([decision(0), made], log.context(OLD))
    assert log.recorded(["d0000"]) == set()


def test_an_unknown_decision_is_named(log: DecisionLog) -> None:
    with pytest.raises(UserError, match=r"there is no decision 'd7'.*look it up by the application's id"):
        log.get("d7")


@pytest.fixture
def filled(log: DecisionLog) -> DecisionLog:
    """Six decisions: two batches, two models, three answers, one by the API, one that was never scored."""
    later = {"period": "2026-07-01", "batch_id": "2026-07-01-bbbbbbbbbbbb"}
    old, new = log.context(OLD), log.context(NEW)
    log.append([decision(1), decision(2, "reject"), decision(3, "refer", result=result("refer", None))], old)
    log.append([decision(4, **later), decision(5, "reject", **later)], new)
    log.append([decision(6, "refer", channel="api", batch_id=None, source=None, application_id="a1")], new)
    return log


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"model": "03" * 32}, ["d0001", "d0002", "d0003"]),
        ({"model": "04" * 32}, ["d0004", "d0005", "d0006"]),
        ({"model": "05" * 32}, []),
        ({"batch": "2026-07-01-bbbbbbbbbbbb"}, ["d0004", "d0005"]),
        ({"rule": "quarantined"}, ["d0003"]),
        ({"policy": "p1"}, [f"d000{n}" for n in range(1, 7)]),
        ({"decision": "reject"}, ["d0002", "d0005"]),
        ({"channel": "api"}, ["d0006"]),
        ({"model": "04" * 32, "decision": "reject"}, ["d0005"]),
        ({"model": "03" * 32, "batch": "2026-07-01-bbbbbbbbbbbb"}, []),
    ],
)
def test_decisions_are_found_by_what_touched_them(filled: DecisionLog, asked: dict[str, str], found: list[str]) -> None:
    assert ids(filled.touched(**asked)) == found


def test_decisions_are_found_by_application_and_period(filled: DecisionLog) -> None:
    assert ids(filled.find("a1")) == ["d0001", "d0006"]
    assert filled.find("nobody") == []
    assert ids(filled.of_period("2026-07-01")) == ["d0004", "d0005"]
    with pytest.raises(ValueError, match="name what"):
        filled.touched()


def test_decisions_are_found_by_when_they_were_recorded(tmp_path: Path) -> None:
    noon = datetime(2026, 6, 30, 12, tzinfo=UTC)
    times = iter([noon, *(noon + timedelta(hours=n) for n in range(4))])
    log = DecisionLog(Journal(tmp_path / "d.db", clock=times.__next__))
    context = log.context(OLD)
    for n in range(4):
        log.append([decision(n)], context)
    assert ids(log.between(noon + timedelta(hours=1), noon + timedelta(hours=3))) == ["d0001", "d0002"]


def test_a_table_has_a_row_a_decision_with_its_types(filled: DecisionLog) -> None:
    table = filled.frame(filled.touched(policy="p1"))
    assert tuple(table.columns) == COLUMNS
    assert table["decision_id"].tolist() == [f"d000{n}" for n in range(1, 7)]
    assert table["pd"].tolist()[:2] == [0.0625, 0.0625]
    assert table["pd"].isna().tolist() == [False, False, True, False, False, False]
    assert table["points"].isna().sum() == 1
    assert table.loc[1, ["decision", "rule", "theme"]].tolist() == ["reject", "above_the_cut", "income"]
    assert table["theme"].tolist() == [None, "income", None, None, "income", "income"]
    assert table["model_version"].tolist() == ["3", "3", "3", "4", "4", "4"]
    assert table["batch_id"].tolist()[-1] is None
    empty = filled.frame([])
    assert tuple(empty.columns) == COLUMNS
    assert empty.dtypes.to_dict() == table.dtypes.to_dict()
    assert (table["pd"].dtype, table["margin"].dtype, str(table["points"].dtype)) == ("float64", "float64", "Int64")


def test_what_is_decided_again_lies_beside_what_stands(filled: DecisionLog) -> None:
    context = filled.context({**OLD, "run_id": "run-3"})
    touched = list(filled.touched(model="04" * 32))
    again = [
        {"decision_id": "d0004", "features": touched[0].body["features"], "result": result("reject", 0.5)},
        {"decision_id": "d0005", "features": touched[1].body["features"], "result": result("reject", 0.25)},
    ]
    assert filled.rescore(again, context, "version 4 was rolled back") == 2
    assert filled.rescore(again, context, "once more") == 0
    assert filled.get("d0004").body["result"]["decision"] == "accept"
    (entry,) = filled.rescored("d0004")
    assert entry.body["original_sha256"] == filled.get("d0004").sha256
    assert (entry.body["reason"], entry.body["context_sha256"]) == ("version 4 was rolled back", context)
    assert filled.rescored("d0006") == []
    assert ids(filled.find("a4")) == ["d0004"]
    assert ids(filled.touched(model="03" * 32)) == ["d0001", "d0002", "d0003"]
    table = filled.comparison([entry, *filled.rescored("d0005")])
    assert table["changed"].tolist() == [True, False]
    assert table.loc[0, ["decision_before", "decision_after", "pd_before", "pd_after"]].tolist() == [
        "accept", "reject", 0.0625, 0.5,
    ]  # fmt: skip
    assert table["model_version_before"].tolist() == ["4", "4"]
    assert table["model_version_after"].tolist() == ["3", "3"]
    assert filled.frame(filled.rescored("d0005"))["pd"].tolist() == [0.25]
    assert len(filled.comparison([])) == 0
    assert filled.verify([filled.head()]) == []
    assert filled.rescore(again[:1], filled.context(NEW), "in yet another context") == 1
    assert len(filled.rescored("d0004")) == 2


def test_what_was_never_decided_cannot_be_decided_again(filled: DecisionLog) -> None:
    context = filled.context(OLD)
    before = filled.head()
    with pytest.raises(UserError, match="there is no decision 'd9'"):
        filled.rescore([{"decision_id": "d9", "features": {}, "result": result()}], context, "why")
    assert filled.head() == before


def test_an_entry_that_another_hand_appended_is_found(filled: DecisionLog) -> None:
    """Whoever appends by the journal itself makes a sound chain, and decisions that fit nothing."""
    body = {**decision(8), "context_sha256": filled.context(OLD)}
    filled.journal.append("decision", body, "d0008", "a8", {"model_sha256": "04" * 32})
    filled.journal.append("decision", {**body, "context_sha256": "ee" * 32}, "d0009", "a8")
    first, second = filled.head().number - 1, filled.head().number
    assert filled.journal.verify() == []
    assert [(problem.number, problem.what) for problem in filled.verify()] == [
        (first, "is listed under other values than it holds"),
        (second, f"refers to the context {'ee' * 32}, which is not there"),
    ]
    assert len(filled.verify(limit=1)) == 1


def test_a_changed_decision_and_a_cut_log_are_found(filled: DecisionLog, tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    head = filled.head()
    filled.journal.close()
    with closing(sqlite3.connect(filled.journal.path)) as connection:
        connection.execute("drop trigger no_update_of_entries")
        connection.execute("update entries set body = replace(body, 'reject', 'accept') where number = 4")
        connection.commit()
    assert {problem.number for problem in filled.verify()} == {4, None}  # and the guard that is gone
    assert {problem.number for problem in filled.verify([(head.number + 5, head.sha256)])} == {4, head.number + 5, None}


def test_drafts_hold_no_more_than_one_transaction(log: DecisionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions are taken from their source as they are written: a million need no million in memory."""
    monkeypatch.setattr(journal_module, "BLOCK_ROWS", 10)
    written: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for n in range(35):
            written.append(log.head().number)
            yield decision(n)

    context = log.context(OLD)
    log.append(source(), context)
    assert [n - at for at, n in zip(written, range(1, 36), strict=True)] == [n % 10 for n in range(35)]
