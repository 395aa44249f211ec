"""Every application that is delivered is in a batch, once; protected attributes are nowhere but in their own table."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk.batches import profile_of, set_batch_status
from mlops_assets.credit_risk.contracts import applications_contract
from mlops_assets.credit_risk.ingestion import IngestReport, ingest_period, quarantined_rows
from mlops_assets.credit_risk.sample_spec import default_spec
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import end_of
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import sha256_hex
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.samples.lending import LendingWorld
from tests.credit_risk.feeds import DAYS, NOW, applications, feed_spec, history, rules_of, table, with_cells, write

TABLES = (
    "batches", "batch_facts", "raw_applications", "accepted_applications", "quarantined_applications",
    "protected_attributes",
)  # fmt: skip


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    return tmp_path / "feed"


@pytest.fixture
def spec(feed: Path) -> Spec:
    return feed_spec(feed)


@pytest.fixture
def take(spec: Spec, warehouse: Warehouse) -> Callable[..., IngestReport]:
    def ingest(*periods: str, by: Spec = spec, now: datetime = NOW) -> IngestReport:
        return ingest_period(by, periods, warehouse, run_id="run-1", now=now)

    return ingest


Take = Callable[..., IngestReport]


def everything(warehouse: Warehouse, spec: Spec, *but: str) -> dict[str, pd.DataFrame]:
    return {name: table(warehouse, spec, name) for name in TABLES if name not in but}


def same(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame]) -> None:
    for name, frame in one.items():
        pd.testing.assert_frame_equal(frame, other[name], obj=name)


# --- What is written ---


def test_a_day_becomes_a_batch_with_its_rows_raw_typed_and_apart(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    raw = applications(DAYS[0], 5)
    path = write(feed, DAYS[0], with_cells(raw, {(3, "income"): "N/A"}))
    report = take(DAYS[0])
    (batch,) = report.batches
    assert (batch.rows, batch.accepted, batch.quarantined, batch.copies) == (5, 4, 1, 0)
    assert (batch.status, batch.unchanged) == ("accepted", False)
    (kept,) = table(warehouse, spec, "batches").to_dict("records")
    assert kept["batch_id"] == batch.batch_id == f"{DAYS[0]}-{kept['sha256'][:12]}"
    assert (kept["rows"], kept["status"], kept["run_id"], kept["source"]) == (5, "accepted", "run-1", str(path))
    assert kept["received_at"] == pd.Timestamp(NOW).tz_localize(None)
    accepted = table(warehouse, spec, "current_applications").sort_values("row")
    assert accepted["application_id"].tolist() == [raw["application_id"][at] for at in (0, 1, 2, 4)]
    assert accepted["row"].tolist() == [2, 3, 4, 6]
    assert accepted["income"].tolist() == [float(raw["income"][at]) for at in (0, 1, 2, 4)]
    (refused,) = table(warehouse, spec, "quarantined_applications").to_dict("records")
    assert (refused["row"], refused["rule"], refused["column"], refused["value"]) == (
        5,
        "not_a_number",
        "income",
        "N/A",
    )
    assert json.loads(refused["raw"])["income"] == "N/A"
    assert quarantined_rows_of(warehouse, spec, batch.batch_id)[0]["application_id"] == raw["application_id"][3]
    protected = table(warehouse, spec, "protected_attributes")
    assert protected["application_id"].tolist() == raw["application_id"].tolist()
    assert protected["age"].tolist() == [float(age) for age in raw["age"]]


def quarantined_rows_of(warehouse: Warehouse, spec: Spec, batch_id: str) -> list[dict[str, object]]:
    with warehouse.session() as tables:
        return quarantined_rows(tables, spec, batch_id)


def test_the_fingerprint_is_that_of_the_sorted_payloads(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    frame = applications(DAYS[0], 8)
    write(feed, DAYS[0], frame)
    first = take(DAYS[0])
    payloads = sorted(table(warehouse, spec, "raw_applications")["payload"])
    assert table(warehouse, spec, "batches")["sha256"].tolist() == [sha256_hex("\n".join(payloads).encode())]
    before = everything(warehouse, spec)
    write(feed, DAYS[0], frame.iloc[::-1])
    again = take(DAYS[0], now=NOW.replace(day=2))
    assert [batch.batch_id for batch in again.batches] == [batch.batch_id for batch in first.batches]
    assert again.batches[0].unchanged
    same(everything(warehouse, spec), before)


def test_a_range_and_its_days_one_by_one_give_the_same_tables(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take, tmp_path: Path
) -> None:
    history(spec, feed, DAYS)
    spoilt = with_cells(applications(DAYS[1]), {(0, "application_id"): f"{DAYS[0]}-0001", (1, "income"): "x"})
    write(feed, DAYS[1], spoilt)
    other = Warehouse(database=str(tmp_path / "other.duckdb"))
    for day in DAYS:
        ingest_period(spec, [day], other, run_id="run-1", now=NOW)
    report = take(*DAYS)
    assert report.rules == {"known_application_id": 1, "not_a_number": 1}
    same(everything(warehouse, spec), everything(other, spec))


def test_a_payload_tells_what_the_contract_read_from_the_source(feed: Path, warehouse: Warehouse, take: Take) -> None:
    # The service and replays have nothing but the payload, and the table of a file in another format no time format.
    spec = feed_spec(feed, data={"applications": {"time": {"unit": "%d/%m/%Y %H:%M", "timezone": "Europe/Stockholm"}}})
    frame = applications(DAYS[0], 30)
    times = pd.to_datetime(frame["applied_at"])
    frame["applied_at"] = [f"{time:%d/%m/%Y %H:%M}" for time in times]
    frame = with_cells(frame, {(3, "applied_at"): "2024-03-04T10:00:00Z", (4, "months_late"): "none"})
    write(feed, DAYS[0], frame)
    take(DAYS[0], by=spec)
    raw = table(warehouse, spec, "raw_applications").sort_values("row")
    payloads = pd.DataFrame([json.loads(text) for text in raw["payload"]], dtype=object)
    assert payloads["applied_at"].iloc[0] == "2024-03-04T07:00:00+00:00"
    # What the format forbids stays as it came, and stays refused.
    assert rules_of(warehouse, spec) == {"not_a_time": [(5, "applied_at", "2024-03-04T10:00:00Z",
                                                        "a time written as %d/%m/%Y %H:%M")]}  # fmt: skip
    split = applications_contract(spec, end_of(spec, DAYS[0])).split(payloads.drop(index=3), where="payloads")
    accepted = table(warehouse, spec, "accepted_applications").sort_values("row")
    for name in spec.features:
        assert split.accepted[name].tolist() == accepted[name].tolist()
    assert split.accepted["applied_at"].dt.tz_localize(None).tolist() == accepted["applied_at"].tolist()
    assert [sha256_hex(text.encode()) for text in raw["payload"].drop(raw.index[3])] == accepted[
        "payload_sha256"
    ].tolist()


# --- Deliveries that come again, late or twice ---


def test_other_content_is_a_new_batch_that_becomes_current_and_the_old_one_stays(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 10))
    (old,) = take(DAYS[0]).batches
    write(feed, DAYS[0], applications(DAYS[0], 10, amount=5_000))
    (new,) = take(DAYS[0], now=NOW.replace(day=2)).batches
    assert new.status == "accepted"
    assert table(warehouse, spec, "current_batches")["batch_id"].tolist() == [new.batch_id]
    assert set(table(warehouse, spec, "current_applications")["amount"]) == {5_000.0}
    kept = table(warehouse, spec, "accepted_applications").groupby("batch_id").size()
    assert kept.to_dict() == {old.batch_id: 10, new.batch_id: 10}
    assert len(table(warehouse, spec, "raw_applications")) == 20


def test_an_old_file_that_comes_again_does_not_replace_the_newer_one(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 10))
    (old,) = take(DAYS[0]).batches
    write(feed, DAYS[0], applications(DAYS[0], 10, amount=5_000))
    (new,) = take(DAYS[0], now=NOW.replace(day=2)).batches
    write(feed, DAYS[0], applications(DAYS[0], 10))
    report = take(DAYS[0], now=NOW.replace(day=3))
    assert [finding.rule for finding in report.blocked[0].blocked] == ["superseded_delivery"]
    assert f"equals batch {old.batch_id}, which batch {new.batch_id} has replaced" in report.findings[0][1].message
    assert table(warehouse, spec, "current_batches")["batch_id"].tolist() == [new.batch_id]
    with warehouse.session() as tables:
        set_batch_status(tables, spec, new.batch_id, "blocked")
    assert table(warehouse, spec, "current_batches")["batch_id"].tolist() == [old.batch_id]
    assert take(DAYS[0]).blocked == []


def test_the_same_file_for_another_day_is_refused_as_such_and_as_stale(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 30))
    (first,) = take(DAYS[0]).batches
    write(feed, DAYS[1], applications(DAYS[0], 30))
    (batch,) = take(DAYS[1]).batches
    assert batch.status == "blocked"
    messages = {finding.rule: finding.message for finding in batch.blocked}
    assert first.batch_id in messages["same_delivery"]
    assert "byte for byte, those of 2024-03-04" in messages["same_delivery"]
    assert "100 % (30 of 30) of the rows are of other periods than 2024-03-05" in messages["stale_delivery"]
    assert (batch.accepted, batch.quarantined, batch.copies) == (0, 30, 0)
    assert table(warehouse, spec, "current_batches")["period"].dt.strftime("%Y-%m-%d").tolist() == [DAYS[0]]
    assert len(table(warehouse, spec, "raw_applications")) == 60


def test_rows_of_another_day_in_a_file_are_in_quarantine_with_their_time(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    times = ("2024-03-04T23:59:59Z", "2024-03-06T00:00:00Z", "2024-03-05T23:59:59Z", "2024-03-05T00:00:00Z",
             "2024-03-06T00:00:01Z")  # fmt: skip
    cells = {(at, "applied_at"): time for at, time in enumerate(times)}
    frame = with_cells(applications(DAYS[1], 60), cells)
    write(feed, DAYS[1], frame)
    report = take(DAYS[1])
    assert report.batches[0].accepted == 57
    assert rules_of(warehouse, spec) == {
        "of_this_period": [
            (2, "applied_at", "2024-03-04T23:59:59+00:00", "from 2024-03-05T00:00:00+00:00"),
            (3, "applied_at", "2024-03-06T00:00:00+00:00", "until 2024-03-06T00:00:00+00:00"),
        ],
        "applied_at_not_after": [(6, "applied_at", "2024-03-06T00:00:01+00:00", "until 2024-03-06T00:00:00+00:00")],
    }


def test_a_smaller_delivery_does_not_silently_replace_a_whole_one(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 60))
    (whole,) = take(DAYS[0]).batches
    for rows in (5, 0):
        write(feed, DAYS[0], applications(DAYS[0], rows))
        (part,) = take(DAYS[0], now=NOW.replace(day=2)).batches
        assert [finding.rule for finding in part.blocked] == ["rows_lost"]
        assert "would replace the 60 that 2024-03-04 has" in part.blocked[0].message
    assert table(warehouse, spec, "current_batches")["batch_id"].tolist() == [whole.batch_id]


def test_a_blocked_batch_is_kept_but_counts_only_once_somebody_accepted_it(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 40, purpose="yacht"))
    (batch,) = take(DAYS[0]).batches
    assert batch.status == "blocked"
    assert len(table(warehouse, spec, "accepted_applications")) == 40
    assert table(warehouse, spec, "current_applications").empty
    assert take(DAYS[0]).batches[0].blocked == batch.blocked
    with warehouse.session() as tables:
        set_batch_status(tables, spec, batch.batch_id, "accepted")
        with pytest.raises(UserError, match="there is no batch '2024-03-04-nothing'"):
            set_batch_status(tables, spec, "2024-03-04-nothing", "accepted")
    assert len(table(warehouse, spec, "current_applications")) == 40
    (again,) = take(DAYS[0]).batches
    assert (again.status, again.unchanged, again.blocked) == ("accepted", True, ())
    assert [finding.severity for finding in again.findings] == ["warn"]


def test_a_delivery_is_judged_anew_when_the_contract_has_changed(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 40, income=900, amount=1_000).assign(rating=7))
    (batch,) = take(DAYS[0]).batches
    assert (batch.status, batch.accepted) == ("blocked", 0)
    wider = [{**each, "low": 500} if each["name"] == "income" else each for each in numbers(spec)]
    other = feed_spec(feed, numeric=[*wider, {"name": "rating", "theme": "money"}])
    (judged,) = take(DAYS[0], by=other).batches
    assert (judged.batch_id, judged.status, judged.accepted) == (judged.batch_id, "accepted", 40)
    assert judged.batch_id != batch.batch_id  # the rating is part of the content now
    loose = feed_spec(feed, numeric=wider)
    (again,) = take(DAYS[0], by=loose).batches
    assert (again.batch_id, again.status, again.unchanged, again.accepted) == (batch.batch_id, "accepted", False, 40)
    assert len(table(warehouse, spec, "raw_applications")) == 80
    assert set(table(warehouse, other, "accepted_applications")["rating"].dropna()) == {7.0}
    assert table(warehouse, spec, "quarantined_applications").empty


def numbers(spec: Spec) -> list[dict[str, Any]]:
    return [each.model_dump(mode="json") for each in spec.numeric]


# --- Ids that occur twice ---


def test_an_exact_copy_is_counted_and_dropped_and_a_contradiction_refuses_both(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    frame = applications(DAYS[0], 60)
    copies, other = frame.iloc[[4, 4]], with_cells(frame.iloc[[7]], {(0, "amount"): 1234.5})
    write(feed, DAYS[0], pd.concat([frame, copies, other]))
    (batch,) = take(DAYS[0]).batches
    assert (batch.rows, batch.accepted, batch.quarantined, batch.copies) == (63, 59, 2, 2)
    ids = table(warehouse, spec, "current_applications")["application_id"]
    assert ids.is_unique
    assert frame["application_id"][4] in set(ids)
    assert frame["application_id"][7] not in set(ids)
    found = rules_of(warehouse, spec)["one_application_one_content"]
    assert [(row, value) for row, _, value, _ in found] == [(9, f"{DAYS[0]}-0008"), (64, f"{DAYS[0]}-0008")]
    assert found[0][3] == "one content for each application_id"


def test_a_wrong_row_and_its_correction_under_one_id_are_both_refused(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    frame = applications(DAYS[0], 60)
    write(feed, DAYS[0], pd.concat([frame, with_cells(frame.iloc[[0]], {(0, "income"): 600_000})]))
    (batch,) = take(DAYS[0]).batches
    assert (batch.accepted, batch.quarantined) == (59, 2)
    assert sorted(rules_of(warehouse, spec)) == ["income_in_range", "one_application_one_content"]


def test_an_id_of_an_earlier_day_is_refused_with_the_day_that_has_it(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    history(spec, feed, DAYS[:1])
    write(feed, DAYS[1], with_cells(applications(DAYS[1]), {(0, "application_id"): f"{DAYS[0]}-0001"}))
    take(*DAYS[:2])
    assert rules_of(warehouse, spec) == {
        "known_application_id": [
            (2, "application_id", "2024-03-04-0001",
             "an application_id that 2024-03-04 has not accepted with other content"),
        ]
    }  # fmt: skip
    assert table(warehouse, spec, "current_applications")["application_id"].is_unique


# --- Protected attributes ---

SECRETS = ("sex-of-a-person", "77.125")


def assert_nowhere_but_in_their_table(warehouse: Warehouse, spec: Spec) -> None:
    kept = {name: table(warehouse, spec, name) for name in TABLES if name != "protected_attributes"}
    assert "raw_applications" in kept
    for name, frame in kept.items():
        text = frame.to_json()
        assert not [secret for secret in SECRETS if secret in text], name
        assert not {"sex", "age"} & set(frame.columns)


def test_protected_values_are_in_their_own_table_and_nowhere_else(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take, caplog: pytest.LogCaptureFixture
) -> None:
    frame = applications(DAYS[0], 40, sex=SECRETS[0], age=SECRETS[1])
    frame = pd.concat([frame, with_cells(frame.iloc[[3]], {(0, "amount"): 77}), frame.iloc[[5]]])
    spoilt = with_cells(frame, {(0, "income"): "N/A", (1, "applied_at"): "never", (2, "application_id"): None})
    # A line with a field too many is nobody's row, but what is in it is somebody's age.
    write(feed, DAYS[0], spoilt, f"x,y,2024-03-04T10:00:00Z,1,2,3,car,north,{SECRETS[0]},{SECRETS[1]},surplus")
    with caplog.at_level(logging.DEBUG):
        report = take(DAYS[0])
    assert report.quarantined_rows == 6
    assert report.rules["unreadable_line"] == 1
    assert_nowhere_but_in_their_table(warehouse, spec)
    assert not [secret for secret in SECRETS if secret in caplog.text or secret in str(report)]
    protected = table(warehouse, spec, "protected_attributes")
    assert set(protected["sex"]) == {SECRETS[0]}
    assert set(protected["age"]) == {77.125}
    (line,) = [row["raw"] for row in table(warehouse, spec, "quarantined_applications").to_dict("records")
               if row["rule"] == "unreadable_line"]  # fmt: skip
    assert json.loads(line)["unreadable_line"].startswith("[a line of ")


def test_a_protected_value_that_cannot_be_is_unknown_counted_and_not_told(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    frame = applications(DAYS[0], 6)
    ages = {(0, "age"): 200, (1, "age"): "abc", (2, "age"): None, (3, "age"): -1, (4, "sex"): "x" * 300}
    write(feed, DAYS[0], with_cells(frame, ages))
    report = take(DAYS[0])
    assert report.protected_unreadable == {"age": 3, "sex": 1}
    assert report.quarantined_rows == 0
    protected = table(warehouse, spec, "protected_attributes")
    assert protected["age"].isna().tolist() == [True, True, True, True, False, False]
    assert protected["sex"].isna().tolist() == [False, False, False, False, True, False]
    assert "200" not in str(report)


def test_a_feed_without_protected_attributes_says_so(spec: Spec, feed: Path, warehouse: Warehouse, take: Take) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 6).drop(columns="age"))
    assert take(DAYS[0]).protected_missing == ("age",)
    assert table(warehouse, spec, "protected_attributes")["age"].isna().all()


def test_protected_attributes_may_come_in_a_file_of_their_own(feed: Path, warehouse: Warehouse, take: Take) -> None:
    whole = applications(DAYS[0], 6, sex=SECRETS[0])
    write(feed, DAYS[0], whole.drop(columns=["sex", "age"]), "a,line,too,long,for,this,table,north,by,far")
    people = feed / "people.csv"
    whole[["application_id", "sex", "age"]].iloc[:4].to_csv(people, index=False)
    spec = feed_spec(feed, data={"protected": {"kind": "files", "path": str(people)}})
    take(DAYS[0], by=spec)
    assert_nowhere_but_in_their_table(warehouse, spec)
    assert len(table(warehouse, spec, "protected_attributes")) == 4
    # The applications' own lines hold nothing protected, so they are shown as they came.
    (line,) = table(warehouse, spec, "quarantined_applications")["raw"]
    assert json.loads(line) == {"unreadable_line": "a,line,too,long,for,this,table,north,by,far"}


# --- Other sources ---


def test_one_file_of_many_days_is_cut_by_time_and_rows_without_one_belong_to_none(
    feed: Path, warehouse: Warehouse, take: Take
) -> None:
    frames = [applications(day, 60) for day in DAYS[:3]]
    whole = with_cells(
        pd.concat(frames), {(0, "applied_at"): "soon", (70, "applied_at"): "2031-01-01T00:00:00Z", (80, "income"): "x"}
    )
    path = write(feed, "all", whole)
    spec = feed_spec(feed, data={"applications": {"path": str(path)}})
    report = take(DAYS[1], by=spec)
    assert (report.rows, report.accepted_rows, report.quarantined_rows) == (59, 58, 1)
    assert (report.outside, report.timeless_rows) == (119, 2)
    refused = table(warehouse, spec, "quarantined_applications")
    unowned = refused[refused["batch_id"].isna()]
    assert sorted(unowned["rule"]) == ["applied_at_not_after", "not_a_time"]
    take(DAYS[0], by=spec)
    take(DAYS[1], DAYS[2], by=spec)
    refused = table(warehouse, spec, "quarantined_applications")
    assert refused["batch_id"].isna().sum() == 2
    assert len(table(warehouse, spec, "current_applications")) == 177


def test_periods_with_others_between_them_leave_those_alone(feed: Path, warehouse: Warehouse, take: Take) -> None:
    path = write(feed, "all", pd.concat([applications(day, 10) for day in DAYS]))
    spec = feed_spec(feed, data={"applications": {"path": str(path)}})
    report = take(DAYS[0], DAYS[2], by=spec)
    assert (report.rows, report.outside) == (20, 20)
    periods = table(warehouse, spec, "current_applications")["period"].dt.strftime("%Y-%m-%d")
    assert set(periods) == {DAYS[0], DAYS[2]}


def test_a_file_in_which_most_times_cannot_be_read_blocks(feed: Path, warehouse: Warehouse, take: Take) -> None:
    whole = pd.concat([applications(day, 20) for day in DAYS[:2]])
    path = write(feed, "all", whole.assign(applied_at=[text.replace("-", ".") for text in whole["applied_at"]]))
    spec = feed_spec(feed, data={"applications": {"path": str(path)}})
    report = take(*DAYS[:2], by=spec)
    assert [(batch.period, batch.rows) for batch in report.batches] == [(DAYS[0], 0), (DAYS[1], 0)]
    (finding,) = report.batches[1].blocked
    assert finding.rule == "rows_without_time"
    assert "100 % (40 of 40) of the source's rows have no readable time" in finding.message


def test_a_table_of_the_warehouse_is_read_by_its_window(feed: Path, warehouse: Warehouse, take: Take) -> None:
    frame = pd.concat([applications(day, 20) for day in DAYS[:3]]).infer_objects()
    frame["applied_at"] = pd.to_datetime(frame["applied_at"]).dt.tz_localize(None)
    frame["applicant_id"] = 1.0
    frame = frame.rename(columns={"income": "INCOME"}).assign(NOTES="call back")
    with warehouse.session() as tables:
        tables.execute("create schema raw")
        tables.connection.register("frame", frame)
        tables.execute("create table raw.requests as select * from frame")
    spec = feed_spec(feed, data={"applications": {"kind": "table", "table": "raw.requests"}})
    report = take(DAYS[1], by=spec)
    assert (report.rows, report.accepted_rows) == (20, 20)
    payload = json.loads(table(warehouse, spec, "raw_applications")["payload"][0])
    assert payload["applied_at"] == "2024-03-05T08:00:00+00:00"
    assert payload["applicant_id"] == "1"
    assert report.unknown_columns == ("NOTES",)
    assert isinstance(payload["income"], float)


def test_rows_without_ids_are_named_by_file_and_row(feed: Path, warehouse: Warehouse, take: Take) -> None:
    frame = applications("2024-03-01", 8).drop(columns=["application_id", "applicant_id", "applied_at"])
    path = write(feed, "requests", pd.concat([frame, frame.iloc[[0]]]))
    over: Any = {"applications": {"path": str(path)}, "timed": False, "numbered": True}
    spec = feed_spec(feed, data=over)
    report = take("2024-03-01", by=spec)
    assert (report.accepted_rows, report.copies) == (9, 0)
    ids = table(warehouse, spec, "accepted_applications")["application_id"]
    assert sorted(ids, key=lambda text: int(text.partition(":")[2])) == [f"requests.csv:{row}" for row in range(2, 11)]
    assert table(warehouse, spec, "accepted_applications")["applied_at"].isna().all()
    assert len(table(warehouse, spec, "protected_attributes")) == 9
    with pytest.raises(UserError, match=r"all of the first period, not of 2024-03-02.*Remedy: materialize 2024-03-01"):
        take("2024-03-02", by=spec)


def test_files_of_one_name_cannot_name_their_rows(feed: Path, warehouse: Warehouse, take: Take) -> None:
    for part in ("north", "south"):
        write(feed / part, "requests", applications("2024-03-01", 2))
    over: Any = {"applications": {"path": str(feed / "*" / "requests.csv")}, "timed": False, "numbered": True}
    with pytest.raises(UserError, match=r"south/requests\.csv: is called requests\.csv like .*north/requests\.csv"):
        take("2024-03-01", by=feed_spec(feed, data=over))


def test_rows_of_a_table_cannot_be_named_by_their_place(feed: Path, warehouse: Warehouse, take: Take) -> None:
    with warehouse.session() as tables:
        tables.execute("create schema raw")
        tables.connection.register("frame", applications(DAYS[0], 3).infer_objects())
        tables.execute("create table raw.requests as select * from frame")
    over: Any = {"applications": {"kind": "table", "table": "raw.requests"}, "numbered": True}
    with pytest.raises(UserError, match="a table has no order"):
        take(DAYS[0], by=feed_spec(feed, data=over))


@pytest.mark.parametrize(("cadence", "start", "period"), [("weekly", "2024-03-04", "2024-03-04"),
                                                        ("monthly", "2024-03-01", "2024-03-01")])  # fmt: skip
def test_weeks_and_months_own_the_days_in_them(
    feed: Path, warehouse: Warehouse, take: Take, cadence: str, start: str, period: str
) -> None:
    path = write(feed, "all", pd.concat([applications(day, 10) for day in ("2024-02-29", *DAYS, "2024-04-01")]))
    spec = feed_spec(
        feed, periods={"start": start, "cadence": cadence}, data={"applications": {"path": str(path)}}
    )  # fmt: skip
    report = take(period, by=spec)
    assert (report.rows, report.outside) == (40, 20)
    assert set(table(warehouse, spec, "current_applications")["period"]) == {pd.Timestamp(period)}


def test_a_period_begins_at_the_local_midnight(feed: Path, warehouse: Warehouse, take: Take) -> None:
    frame = with_cells(applications(DAYS[0], 3), {(0, "applied_at"): "2024-03-03T23:00:00Z",
                                                 (1, "applied_at"): "2024-03-04T22:59:59Z",
                                                 (2, "applied_at"): "2024-03-04T23:00:00Z"})  # fmt: skip
    path = write(feed, "all", frame)
    spec = feed_spec(feed, periods={"timezone": "Europe/Stockholm"}, data={"applications": {"path": str(path)}})
    report = take(DAYS[0], by=spec)
    assert (report.accepted_rows, report.outside) == (2, 1)


def test_columns_that_nobody_asked_for_are_named(spec: Spec, feed: Path, warehouse: Warehouse, take: Take) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 5).assign(notes="call back", rating=1))
    assert take(DAYS[0]).unknown_columns == ("notes", "rating")
    assert "call back" not in table(warehouse, spec, "raw_applications").to_json()


def test_an_outcome_beside_the_application_is_no_part_of_it(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    write(feed, DAYS[0], applications(DAYS[0], 5).assign(outcome="default", outcome_at="2024-06-01"))
    (batch,) = take(DAYS[0]).batches
    assert take(DAYS[0]).unknown_columns == ()
    assert "default" not in table(warehouse, spec, "raw_applications")["payload"].str.cat()
    write(feed, DAYS[0], applications(DAYS[0], 5).assign(outcome="paid", outcome_at="2024-07-01"))
    assert take(DAYS[0]).batches[0].batch_id == batch.batch_id


def test_nothing_is_written_when_a_file_of_the_range_is_missing(
    spec: Spec, feed: Path, warehouse: Warehouse, take: Take
) -> None:
    history(spec, feed, DAYS[:1])
    with pytest.raises(UserError, match=r"2024-03-05\.csv: no file matches this path"):
        take(*DAYS[:2])
    with warehouse.session() as tables:
        assert not tables.exists("loans.batches")


def test_a_profile_is_of_the_current_rows_of_a_period(spec: Spec, feed: Path, warehouse: Warehouse, take: Take) -> None:
    history(spec, feed, DAYS[:2])
    take(*DAYS[:2])
    write(feed, DAYS[0], applications(DAYS[0], 50))
    take(DAYS[0], now=NOW.replace(day=2))
    found = profile_of(spec, warehouse, DAYS[0])
    assert (found.rows, found.columns) == (50, spec.features)


# --- The sample world ---


def test_the_dirt_of_the_sample_world_is_found_and_its_days_are_accepted(warehouse: Warehouse) -> None:
    spec = default_spec()
    days = ["2023-09-01", "2023-09-02", "2023-09-03"]
    world = LendingWorld(start=spec.periods.start, dirt=0.01, applications_per_day=200)
    dirty = spec.model_copy(
        update={"data": spec.data.model_copy(update={"applications": spec.data.applications.model_copy(
            update={"dirt": 0.01, "applications_per_day": 200})})}
    )  # fmt: skip
    report = ingest_period(dirty, days, warehouse, now=datetime(2026, 1, 1, tzinfo=UTC))
    raw = sum(len(world.applications(day)) for day in range(3))
    assert report.rows == raw == report.accepted_rows + report.quarantined_rows + report.copies
    assert set(report.rules) >= {"missing", "not_a_number", "annual_income_in_range", "applied_at_not_after"}
    assert report.copies > 0
    assert report.protected_unreadable["age"] > 0


def test_a_clean_sample_day_has_nothing_to_tell(warehouse: Warehouse) -> None:
    spec = default_spec()
    report = ingest_period(spec, ["2023-09-03"], warehouse, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert (report.batches[0].status, report.findings) == ("accepted", [])


def test_the_sample_world_lives_in_utc(warehouse: Warehouse) -> None:
    spec = default_spec()
    abroad = spec.model_copy(update={"periods": spec.periods.model_copy(update={"timezone": "Asia/Tokyo"})})
    with pytest.raises(UserError, match=r"of UTC, not of Asia/Tokyo\. Remedy: set it to UTC"):
        ingest_period(abroad, ["2023-09-03"], warehouse)


# --- Whatever is delivered ---

_CELL = st.sampled_from([None, "", "N/A", "1.234,56", -1, "inf", "2024-03-04", "x" * 300, "2024-03-04-0002"])
_SPOILT = st.dictionaries(
    st.tuples(st.integers(0, 11), st.sampled_from(["application_id", "applied_at", "income", "amount", "purpose"])),
    _CELL,
    max_size=8,
)


@given(cells=_SPOILT, doubled=st.lists(st.integers(0, 11), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_is_lost_counted_twice_or_shows_who_it_is_of(
    tmp_path_factory: pytest.TempPathFactory, cells: dict[tuple[int, str], Any], doubled: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    spec, warehouse = feed_spec(folder), Warehouse(database=str(folder / "any.duckdb"))
    frame = with_cells(applications(DAYS[0], 12, sex=SECRETS[0], age=SECRETS[1]), cells)
    frame = pd.concat([frame, frame.iloc[doubled]])
    write(folder, DAYS[0], frame)
    report = ingest_period(spec, [DAYS[0]], warehouse, now=NOW)
    assert report.rows == len(frame) == report.accepted_rows + report.quarantined_rows + report.copies
    accepted = table(warehouse, spec, "accepted_applications")
    refused = table(warehouse, spec, "quarantined_applications")
    assert len(accepted) == report.accepted_rows
    assert accepted["application_id"].is_unique
    assert not set(accepted["row"]) & set(refused["row"])
    assert refused[["rule", "bound", "raw"]].notna().all().all()
    assert len(table(warehouse, spec, "raw_applications")) == len(frame)
    assert_nowhere_but_in_their_table(warehouse, spec)
    write(folder, DAYS[0], frame.sample(frac=1.0, random_state=seed))
    other = Warehouse(database=str(folder / "other.duckdb"))
    again = ingest_period(spec, [DAYS[0]], other, now=NOW)
    assert again.batches[0].batch_id == report.batches[0].batch_id
    assert (again.accepted_rows, again.copies, again.rules) == (report.accepted_rows, report.copies, report.rules)
    key = ["application_id", "payload_sha256"]
    there = table(other, spec, "accepted_applications")[key]
    assert sorted(map(tuple, there.to_numpy())) == sorted(map(tuple, accepted[key].to_numpy()))
