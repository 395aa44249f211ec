"""What became of loans counts when it was known and old enough; a training set is of no person twice."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk import slices
from mlops_assets.credit_risk.batches import set_batch_status
from mlops_assets.credit_risk.ingestion import ingest_period
from mlops_assets.credit_risk.labels import Matured, matured_labels, reference_rows, training_tables
from mlops_assets.credit_risk.outcomes_feed import OutcomesReport, ingest_outcomes
from mlops_assets.credit_risk.sample_spec import default_spec
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec, Training
from mlops_assets.credit_risk.windows import iter_periods
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.foundation.snapshots import SnapshotStore
from tests.credit_risk.feeds import DAYS, NOW, applications, feed_spec, table, with_cells, write

Known = tuple[str, str | None, str | None]


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    return tmp_path / "feed"


@pytest.fixture
def spec(feed: Path) -> Spec:
    """Applications and outcomes in a file a day; loans mature after thirty days."""
    return feed_spec(feed, data={"outcomes": {"kind": "files", "path": str(feed / "outcomes-{period}.csv")}})


def tell(feed: Path, period: str, *outcomes: Known) -> None:
    feed.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(outcomes, columns=["application_id", "outcome", "outcome_at"])
    frame.to_csv(feed / f"outcomes-{period}.csv", index=False)


@pytest.fixture
def hear(spec: Spec, feed: Path, warehouse: Warehouse) -> Callable[..., OutcomesReport]:
    """Deliver outcomes for a period and take them in."""

    def outcomes(period: str, *told: Known, by: Spec = spec, now: datetime = NOW) -> OutcomesReport:
        tell(feed, period, *told)
        return ingest_outcomes(by, [period], warehouse, now=now)

    return outcomes


Hear = Callable[..., OutcomesReport]


def apply(spec: Spec, feed: Path, warehouse: Warehouse, *days: str, rows: int = 6, **columns: Any) -> None:
    for day in days:
        write(feed, day, applications(day, rows, **columns))
    ingest_period(spec, days, warehouse, now=NOW)


def matured(spec: Spec, warehouse: Warehouse, as_of: Any) -> Matured:
    with warehouse.session() as tables:
        return matured_labels(tables, spec, as_of)


def bads(found: Matured) -> dict[str, int]:
    return dict(zip(found.frame["application_id"].str[-4:], found.frame["bad"], strict=True))


# --- The feed of outcomes ---


def test_outcomes_are_kept_by_the_period_in_which_they_were_told(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    apply(spec, feed, warehouse, DAYS[0])
    report = hear("2024-04-10", (f"{DAYS[0]}-0001", "paid", "2024-04-10T08:00:00Z"),
                  (f"{DAYS[0]}-0002", "default", "2024-04-09T08:00:00Z"))  # fmt: skip
    assert (report.accepted, report.quarantined, report.rows, report.loans, report.conflicts) == (2, 0, 2, 2, 0)
    kept = table(warehouse, spec, "outcomes")
    assert kept["outcome"].tolist() == ["paid", "default"]
    assert set(kept["period"]) == {pd.Timestamp("2024-04-10")}
    before = table(warehouse, spec, "outcomes")
    ingest_outcomes(spec, ["2024-04-10"], warehouse, now=NOW)
    pd.testing.assert_frame_equal(table(warehouse, spec, "outcomes"), before)
    hear("2024-04-10", (f"{DAYS[0]}-0003", "paid", "2024-04-10T08:00:00Z"))
    assert table(warehouse, spec, "outcomes")["application_id"].tolist() == [f"{DAYS[0]}-0003"]


def test_a_loan_that_one_delivery_calls_good_and_bad_is_refused_on_both_sides(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    apply(spec, feed, warehouse, DAYS[0])
    one = f"{DAYS[0]}-0001"
    report = hear("2024-04-10", (one, "paid", "2024-04-10"), (one, "default", "2024-04-10"),
                  (f"{DAYS[0]}-0002", "paid", "2024-04-10"), (f"{DAYS[0]}-0002", "paid", "2024-04-10"))  # fmt: skip
    assert (report.conflicts, report.quarantined, report.accepted, report.copies, report.loans) == (1, 2, 1, 1, 2)
    assert report.rows == 4
    assert report.conflict_share == 0.5
    refused = table(warehouse, spec, "quarantined_outcomes").sort_values("row")
    assert refused["row"].tolist() == [2, 3]
    assert refused["value"].tolist() == ["paid", "default"]
    assert set(refused["rule"]) == {"one_outcome"}
    assert set(refused["bound"]) == {"either good or bad for each application_id"}
    assert json.loads(refused["raw"].iloc[0])["application_id"] == one
    found = matured(spec, warehouse, "2024-04-10")
    assert bads(found) == {"0002": 0}
    assert (found.counts.contradictory, found.counts.conflict_share) == (1, 0.5)


def test_one_contradiction_in_a_small_delivery_is_chance_and_several_are_not() -> None:
    assert not OutcomesReport(conflicts=1, loans=20).contradicts(0.001)
    assert OutcomesReport(conflicts=2, loans=20).contradicts(0.001)
    assert not OutcomesReport().contradicts(0.001)


def test_an_outcome_from_before_its_application_is_refused_with_the_time(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    apply(spec, feed, warehouse, DAYS[0])
    report = hear("2024-04-10", (f"{DAYS[0]}-0001", "default", "2024-03-04T07:59:59Z"))
    assert (report.too_early, report.accepted, report.conflict_share) == (1, 0, 1.0)
    (refused,) = table(warehouse, spec, "quarantined_outcomes").to_dict("records")
    assert (refused["rule"], refused["column"]) == ("outcome_not_before_application", "outcome_at")
    assert refused["value"] == "2024-03-04T07:59:59Z"
    assert refused["bound"] == "from 2024-03-04T08:00:00Z, when it was applied for"
    assert matured(spec, warehouse, "2024-04-10").counts.too_early == 1


def test_an_outcome_of_an_unknown_application_waits_for_it(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    report = hear("2024-04-10", (f"{DAYS[0]}-0001", "default", "2024-04-01"), ("nobody", "paid", "2024-04-01"))
    assert (report.unknown, report.accepted) == (2, 2)
    found = matured(spec, warehouse, "2024-04-10")
    assert (found.counts.unknown_ids, len(found.frame)) == (2, 0)
    apply(spec, feed, warehouse, DAYS[0])
    found = matured(spec, warehouse, "2024-04-10")
    assert (found.counts.unknown_ids, bads(found)) == (1, {"0001": 1})


def test_an_early_outcome_that_was_taken_in_before_its_application_does_not_count_either(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    hear("2024-04-10", (f"{DAYS[0]}-0001", "default", "2024-03-01"))
    apply(spec, feed, warehouse, DAYS[0])
    found = matured(spec, warehouse, "2024-04-10")
    assert (found.counts.too_early, found.counts.bad) == (1, 0)


def test_an_unknown_word_is_refused_and_the_known_ones_are_told(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    report = hear("2024-04-10", ("a", "Current", "2024-04-01"), ("b", None, "2024-04-01"), ("c", "paid", "soon"),
                  ("d", "paid", "2026-01-01"))  # fmt: skip
    assert (report.quarantined, report.accepted) == (4, 0)
    found = {row["rule"]: row for row in table(warehouse, spec, "quarantined_outcomes").to_dict("records")}
    assert (found["outcome_known"]["value"], found["outcome_known"]["bound"]) == ("Current", "one of default, paid")
    assert set(found) == {"outcome_known", "missing", "not_a_time", "outcome_at_not_after"}
    assert report.examples[0]["column"] in {"outcome", "outcome_at"}


def test_a_feed_without_outcomes_says_which_column_it_misses(spec: Spec, feed: Path, warehouse: Warehouse) -> None:
    feed.mkdir()
    (feed / "outcomes-2024-04-10.csv").write_text("application_id,result\na,paid\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"column 'outcome' is missing; the columns there are 'application_id', 'result'"
    ):
        ingest_outcomes(spec, ["2024-04-10"], warehouse)


def test_one_file_of_all_outcomes_is_cut_by_when_they_were_known(feed: Path, warehouse: Warehouse) -> None:
    apply(feed_spec(feed), feed, warehouse, DAYS[0])
    path = feed / "outcomes-all.csv"
    spec = feed_spec(feed, data={"outcomes": {"kind": "files", "path": str(path)}})
    told = [(f"{DAYS[0]}-000{number}", "paid", f"2024-04-1{number}T00:00:00Z") for number in range(1, 5)]
    tell(feed, "all", *told, (f"{DAYS[0]}-0005", "paid", None), ("nobody", "paid", None), ("x", "paid", "never"))
    report = ingest_outcomes(spec, ["2024-04-12", "2024-04-13"], warehouse, now=NOW)
    assert (report.accepted_by_period, report.outside) == ({"2024-04-12": 1, "2024-04-13": 1}, 3)
    assert report.quarantined_by_period["no period"] == 1
    # One without a time was known when its application was.
    report = ingest_outcomes(spec, [DAYS[0]], warehouse, now=NOW)
    assert (report.accepted, report.unknown) == (1, 1)
    assert len(table(warehouse, spec, "quarantined_outcomes")) == 1


def test_an_outcome_may_be_a_column_of_the_applications(feed: Path, warehouse: Warehouse) -> None:
    spec = feed_spec(feed, target={"bad": ["2"], "good": ["1"], "maturity_days": 0})
    frame = applications(DAYS[0], 6).assign(outcome=["1", "2", None, "1", "7", "1"], outcome_at="2024-04-10")
    write(feed, DAYS[0], frame, "a,line,that,nobody,can,cut,into,its,columns,and,more,than,that")
    ingest_period(spec, [DAYS[0]], warehouse, now=NOW)
    report = ingest_outcomes(spec, [DAYS[0]], warehouse, now=NOW)
    assert (report.accepted, report.waiting, report.rules) == (4, 1, {"outcome_known": 1})
    assert bads(matured(spec, warehouse, "2024-04-09")) == {}
    assert bads(matured(spec, warehouse, "2024-04-10")) == {"0001": 0, "0002": 1, "0004": 0, "0006": 0}


def test_loans_without_times_and_ids_mature_at_once(feed: Path, warehouse: Warehouse) -> None:
    frame = applications("2024-03-01", 40).drop(columns=["application_id", "applicant_id", "applied_at"])
    path = write(feed, "loans", frame.assign(outcome=[1, 2] * 20))
    over: Any = {"applications": {"path": str(path)}, "timed": False, "numbered": True}
    spec = feed_spec(feed, data=over, target={"bad": ["2"], "good": ["1"]})
    ingest_period(spec, ["2024-03-01"], warehouse, now=NOW)
    assert ingest_outcomes(spec, ["2024-03-01"], warehouse, now=NOW).accepted == 40
    with warehouse.session() as tables:
        cut, facts = training_tables(tables, spec, "2024-03-01")
        timed = feed_spec(feed, data=over, target={"bad": ["2"], "good": ["1"]}, training={"split": "time"})
        with pytest.raises(UserError, match="without times cannot be cut by time"):
            training_tables(tables, timed, "2024-03-01")
    assert facts["split"] == "stratified"
    assert {name: (len(part), int(part["bad"].sum())) for name, part in cut.items()} == {
        "train": (24, 12), "calibrate": (8, 4), "test": (8, 4),
    }  # fmt: skip
    assert cut["train"]["applied_at"].isna().all()


# --- What counts at a moment ---


def test_only_an_old_loan_is_good_or_bad(spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear) -> None:
    apply(spec, feed, warehouse, DAYS[0])
    hear("2024-03-20", (f"{DAYS[0]}-0001", "default", "2024-03-20"))
    found = matured(spec, warehouse, "2024-04-02")
    assert (found.counts.not_matured, found.counts.early_outcomes, len(found.frame)) == (6, 1, 0)
    # The loan of 8:00 is thirty days old at 8:00, the one of 9:01 is not.
    found = matured(spec, warehouse, datetime(2024, 4, 3, 8, 0, tzinfo=UTC))
    assert (bads(found), found.counts.not_matured, found.counts.without_outcome) == ({"0001": 1}, 5, 0)
    found = matured(spec, warehouse, "2024-04-03")
    assert (found.counts.not_matured, found.counts.without_outcome) == (0, 5)
    assert found.counts.accepted_share == pytest.approx(1 / 6)


def test_what_was_not_known_yet_does_not_count_yet(spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear) -> None:
    apply(spec, feed, warehouse, DAYS[0])
    one = f"{DAYS[0]}-0001"
    hear("2024-04-10", (one, "paid", "2024-04-10T12:00:00Z"))
    # It happened in April, but was told in May only.
    hear("2024-05-20", (f"{DAYS[0]}-0002", "default", "2024-04-01"))
    report = hear("2024-06-01", (one, "default", "2024-06-01T00:00:00Z"))
    assert report.updated == 1
    assert bads(matured(spec, warehouse, datetime(2024, 4, 10, 11, tzinfo=UTC))) == {}
    assert bads(matured(spec, warehouse, datetime(2024, 4, 10, 12))) == {"0001": 0}  # noqa: DTZ001 - taken as UTC
    assert bads(matured(spec, warehouse, "2024-05-19")) == {"0001": 0}
    assert bads(matured(spec, warehouse, "2024-05-20")) == {"0001": 0, "0002": 1}
    assert bads(matured(spec, warehouse, "2024-05-31")) == {"0001": 0, "0002": 1}
    # What turned bad after the window was not bad within it.
    assert bads(matured(spec, warehouse, "2024-06-01")) == {"0001": 0, "0002": 1}


def test_a_loan_is_bad_only_if_it_turned_bad_within_the_window(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    apply(spec, feed, warehouse, DAYS[0])
    one, two, three = (f"{DAYS[0]}-000{number}" for number in (1, 2, 3))
    hear("2024-04-02", (one, "default", "2024-04-02"))  # the last day but one
    hear("2025-01-10", (two, "default", "2025-01-10"), (three, "paid", "2025-01-10"))
    old = matured(spec, warehouse, "2025-02-01")
    assert bads(old) == {"0001": 1, "0002": 0, "0003": 0}
    assert old.counts.after_window == 2
    # However long a loan has been seen for, its window is the same: before the later outcomes nothing was known.
    assert bads(matured(spec, warehouse, "2025-01-09")) == {"0001": 1}


def test_a_torn_delivery_takes_no_outcome_away_and_a_correction_keeps_what_it_replaces(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    apply(spec, feed, warehouse, DAYS[0])
    known = [(f"{DAYS[0]}-000{number}", "paid", "2024-04-02") for number in range(1, 7)]
    hear("2024-04-02", *known)
    with pytest.raises(UserError, match=r"6 of the 6 outcomes of 2024-04-02 are missing.*checks\.outcomes_lost"):
        hear("2024-04-02")
    assert len(bads(matured(spec, warehouse, "2024-06-01"))) == 6
    hear("2024-04-02", *known[1:], (known[0][0], "default", "2024-04-01"))
    kept = warehouse.query(f"select application_id, outcome from {spec.name}.replaced_outcomes")
    assert kept.to_dict("records") == [{"application_id": known[0][0], "outcome": "paid"}]
    hear("2024-04-02", *known[1:], (known[0][0], "default", "2024-04-01"))
    assert len(warehouse.query(f"select * from {spec.name}.replaced_outcomes")) == 1


def test_two_deliveries_that_disagree_about_the_same_moment_contradict_each_other(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    apply(spec, feed, warehouse, DAYS[0])
    one = f"{DAYS[0]}-0001"
    hear("2024-04-10", (one, "paid", "2024-04-09"))
    hear("2024-04-11", (one, "default", "2024-04-09"))
    assert bads(matured(spec, warehouse, "2024-04-10")) == {"0001": 0}
    found = matured(spec, warehouse, "2024-04-11")
    assert (bads(found), found.counts.contradictory) == ({}, 1)


def test_neither_good_nor_bad_is_counted_and_left_out(feed: Path, warehouse: Warehouse) -> None:
    spec = feed_spec(
        feed,
        data={"outcomes": {"kind": "files", "path": str(feed / "outcomes-{period}.csv")}},
        target={"indeterminate": ["sold"]},
    )
    apply(spec, feed, warehouse, DAYS[0])
    tell(feed, "2024-04-10", (f"{DAYS[0]}-0001", "sold", "2024-04-10"), (f"{DAYS[0]}-0002", "paid", "2024-04-10"))
    ingest_outcomes(spec, ["2024-04-10"], warehouse, now=NOW)
    found = matured(spec, warehouse, "2024-04-10")
    assert (bads(found), found.counts.indeterminate, found.counts.conflict_share) == ({"0002": 0}, 1, 0.0)


def test_blocked_batches_and_disputed_ids_teach_nothing(
    spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear
) -> None:
    apply(spec, feed, warehouse, DAYS[0], rows=60)
    write(feed, DAYS[1], with_cells(applications(DAYS[1], 60), {(0, "application_id"): f"{DAYS[0]}-0001"}))
    ingest_period(spec, [DAYS[1]], warehouse, now=NOW)
    told = [(f"{day}-000{number}", "paid", "2024-05-01") for day in DAYS[:2] for number in (1, 2, 3)]
    hear("2024-05-01", *told)
    found = matured(spec, warehouse, "2024-05-01")
    assert (found.counts.disputed, found.counts.good, found.counts.unknown_ids) == (1, 4, 1)
    with warehouse.session() as tables:
        set_batch_status(tables, spec, table_of(warehouse, spec, DAYS[1]), "blocked")
    found = matured(spec, warehouse, "2024-05-01")
    assert (found.counts.disputed, found.counts.good, found.counts.unknown_ids) == (0, 3, 3)


def table_of(warehouse: Warehouse, spec: Spec, period: str) -> str:
    batches = table(warehouse, spec, "batches")
    return str(batches[batches["period"] == pd.Timestamp(period)]["batch_id"].iloc[0])


def test_history_reaches_back_as_far_as_it_is_told_to(feed: Path, warehouse: Warehouse, hear: Hear) -> None:
    path = {"kind": "files", "path": str(feed / "outcomes-{period}.csv")}
    spec = feed_spec(feed, data={"outcomes": path}, training={"history_periods": 40}, target={"maturity_days": 1})
    apply(spec, feed, warehouse, *DAYS[:2])
    hear("2024-04-12", *[(f"{day}-0001", "paid", "2024-04-12") for day in DAYS[:2]], by=spec)
    assert matured(spec, warehouse, "2024-04-12").counts.applications == 12
    assert matured(spec, warehouse, "2024-04-13").counts.applications == 6


def test_before_anything_came_there_is_nothing(spec: Spec, warehouse: Warehouse) -> None:
    found = matured(spec, warehouse, "2024-04-10")
    assert (len(found.frame), found.counts.applications, found.counts.accepted_share) == (0, 0, 0.0)
    with warehouse.session() as tables:
        assert reference_rows(tables, spec, "2024-04-10").empty
        with pytest.raises(UserError, match="0 good loans have matured, 4 are needed"):
            training_tables(tables, spec, "2024-04-10")


# --- The training set ---


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, Warehouse]:
    """The sample world for four months in whole, with loans that mature after thirty days."""
    home = tmp_path_factory.mktemp("book")
    base = default_spec()
    spec = base.model_copy(
        update={
            "target": base.target.model_copy(update={"maturity_days": 30}),
            "training": base.training.model_copy(update={"minimum_goods": 100, "minimum_bads": 20}),
        }
    )
    warehouse = Warehouse(database=str(home / "book.duckdb"))
    days = list(iter_periods(spec, "2023-09-01", "2023-12-15"))
    ingest_period(spec, days, warehouse, now=NOW)
    ingest_outcomes(spec, days, warehouse, now=NOW)
    return spec, warehouse


def cut_of(book: tuple[Spec, Warehouse], **training: Any) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    spec, warehouse = book
    spec = spec.model_copy(update={"training": spec.training.model_copy(update=training)})
    with warehouse.session() as tables:
        return training_tables(tables, spec, "2023-12-10")


@pytest.mark.parametrize("split", ["auto", "stratified"])
def test_a_training_set_has_typed_features_and_no_protected_attribute(
    book: tuple[Spec, Warehouse], tmp_path: Path, split: str
) -> None:
    spec, warehouse = book
    cut, facts = cut_of(book, split=split)
    assert list(cut) == ["train", "calibrate", "test"]
    for part in cut.values():
        expected = ["application_id", "applicant_id", "applied_at", *FeatureSchema.of(spec).names, "bad", "batch_id"]
        assert list(part.columns) == expected
        assert not set(part.columns) & {*spec.protected_names, "outcome", "outcome_at"}
        assert part["bad"].dtype == np.int8
        assert set(part["bad"]) == {0, 1}
        FeatureSchema.of(spec).matrix(part)
    ids = pd.concat([part["application_id"] for part in cut.values()])
    assert ids.is_unique
    assert len(ids) + facts["left_out_same_person"] + facts["left_out_copies"] == facts["good"] + facts["bad"]
    batches = set(table(warehouse, spec, "current_batches")["batch_id"])
    assert {batch for part in cut.values() for batch in part["batch_id"]} <= batches
    store = SnapshotStore(tmp_path)
    saved = store.save("loans/training_set", cut, facts)
    again, facts_again = cut_of(book, split=split)
    assert store.save("loans/training_set", again, facts_again).sha256 == saved.sha256
    assert saved.read("train")["bad"].dtype == np.int8


def test_a_cut_by_time_is_a_cut_by_time_of_whole_people(book: tuple[Spec, Warehouse]) -> None:
    cut, facts = cut_of(book)
    assert facts["split"] == "time"
    train, calibrate, test = (cut[name] for name in slices.SLICES)
    assert train["applied_at"].max() < calibrate["applied_at"].min()
    assert calibrate["applied_at"].max() < test["applied_at"].min()
    assert pd.Timestamp(facts["test_from"]) == test["applied_at"].min()
    assert test["applied_at"].max() < pd.Timestamp("2023-11-11")
    rows = sum(map(len, cut.values()))
    assert abs(len(test) / rows - 0.2) < 0.02
    assert abs(len(calibrate) / rows - 0.2) < 0.02
    people = [set(part["applicant_id"]) for part in (train, calibrate, test)]
    assert not people[0] & people[1] | people[1] & people[2] | people[0] & people[2]


def test_a_stratified_cut_keeps_people_together_and_the_share_of_bads_everywhere(
    book: tuple[Spec, Warehouse],
) -> None:
    cut, facts = cut_of(book, split="stratified")
    shares = [part["bad"].mean() for part in cut.values()]
    assert max(shares) - min(shares) < 0.02
    people = [set(part["applicant_id"]) for part in cut.values()]
    assert not people[0] & people[1] | people[1] & people[2] | people[0] & people[2]
    assert facts["left_out_same_person"] == 0
    other, _ = cut_of(book, split="stratified", seed=8)
    assert set(other["test"]["application_id"]) != set(cut["test"]["application_id"])


def test_facts_count_everything_that_is_not_in_the_set(book: tuple[Spec, Warehouse]) -> None:
    _, facts = cut_of(book)
    states = [
        "not_matured",
        "without_outcome",
        "indeterminate",
        "contradictory",
        "too_early",
        "disputed",
        "good",
        "bad",
    ]
    assert sum(facts[name] for name in states) == facts["applications"]
    assert 0.5 < facts["accepted_share"] < 0.9
    assert facts["as_of"] == "2023-12-11T00:00:00+00:00"
    assert facts["batches"] > 60
    json.dumps(facts)


def test_reference_rows_are_the_accepted_applications_of_the_last_periods(book: tuple[Spec, Warehouse]) -> None:
    spec, warehouse = book
    spec = spec.model_copy(update={"monitoring": spec.monitoring.model_copy(update={"reference_periods": 10})})
    with warehouse.session() as tables:
        rows = reference_rows(tables, spec, "2023-11-10")
    assert (rows["period"].min(), rows["period"].max()) == (pd.Timestamp("2023-11-01"), pd.Timestamp("2023-11-10"))
    assert list(rows.columns) == ["batch_id", "period", "application_id", "applied_at", *spec.features]
    FeatureSchema.of(spec).matrix(rows)


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"minimum_bads": 5_000}, r"bad loans have matured, 5000 are needed.*lower training\.minimum_bads; what"),
        ({"minimum_goods": 50_000}, r"good loans have matured, 50000 are needed \(\d+ of \d+ applications are younger"),
        ({"test_share": 0.001, "minimum_goods": 1_000}, "the slice 'test' has"),
    ],
)  # fmt: skip
def test_too_little_to_learn_from_is_told_with_numbers_and_remedy(
    book: tuple[Spec, Warehouse], training: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told) as error:
        cut_of(book, **training)
    assert error.value.where == "credit_risk/training_set[2023-12-10]"


def test_too_many_contradictions_forbid_training(spec: Spec, feed: Path, warehouse: Warehouse, hear: Hear) -> None:
    apply(spec, feed, warehouse, DAYS[0], rows=60)
    loans = [(f"{DAYS[0]}-{number:04d}", "default" if number % 3 else "paid", "2024-05-01") for number in range(1, 61)]
    hear("2024-05-01", *loans, *[(f"{DAYS[0]}-000{number}", "paid", "2024-05-01") for number in (1, 2)])
    told = (
        r"3\.33 % of the outcomes contradict each other \(2 loans\) or are from before their application \(0\): more "
        r"than chance makes of 0\.1 %\. Remedy: look at loans\.quarantined_outcomes"
    )
    with warehouse.session() as tables, pytest.raises(UserError, match=told):
        training_tables(tables, spec, "2024-05-01")


# --- Cutting ---

SCHEMA = FeatureSchema.of(feed_spec(Path()))


def loans(rows: int, *, people: Sequence[Any] | None = None, seed: int = 1, times: int = 10_000) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "application_id": [f"a{number:04d}" for number in range(rows)],
            "applicant_id": pd.Series(people if people is not None else [None] * rows, dtype=object),
            "applied_at": pd.Timestamp("2024-01-01") + pd.to_timedelta(draws.integers(0, times, rows), unit="h"),
            "income": draws.normal(100, 10, rows),
            "amount": draws.normal(100, 10, rows),
            "months_late": draws.integers(0, 50, rows).astype(float),
            "purpose": draws.choice(np.array(["car", "home"], dtype=object), rows),
            "branch": draws.choice(np.array(["north", "south"], dtype=object), rows),
            "bad": (draws.random(rows) < 0.2).astype(np.int8),
        }
    )


@given(rows=st.integers(12, 150), people=st.integers(2, 60), seed=st.integers(0, 200), times=st.integers(6, 400))
@settings(max_examples=40, deadline=None)
def test_no_person_and_no_content_is_in_two_slices(rows: int, people: int, seed: int, times: int) -> None:
    draws = np.random.default_rng(seed)
    frame = loans(rows, people=[f"p{number}" for number in draws.integers(0, people, rows)], seed=seed, times=times)
    copied = draws.integers(0, rows, 4)
    features = list(SCHEMA.names)
    frame.loc[copied, features] = frame.loc[copied[0], features].to_numpy()
    cuts = [slices.stratified(frame, SCHEMA, Training())]
    if frame["applied_at"].nunique() > 5:
        cuts.append(slices.by_time(frame, SCHEMA, Training(), where="test"))
    for cut in cuts:
        parts = list(cut.slices.values())
        assert sum(map(len, parts)) + cut.same_person + cut.copies == rows
        for one, other in ((0, 1), (1, 2), (0, 2)):
            assert not set(parts[one]["applicant_id"]) & set(parts[other]["applicant_id"])
            assert not set(slices.contents(parts[one], SCHEMA)[0]) & set(slices.contents(parts[other], SCHEMA)[0])
    shuffled = slices.stratified(frame.sample(frac=1.0, random_state=seed).reset_index(drop=True), SCHEMA, Training())
    for name in slices.SLICES:
        assert set(shuffled.slices[name]["application_id"]) == set(cuts[0].slices[name]["application_id"])


def test_people_without_a_file_look_alike_and_are_no_copies_of_each_other() -> None:
    frame = loans(300)
    frame.loc[:150, ["income", "amount"]] = np.nan
    frame.loc[:150, "months_late"] = -9.0
    frame.loc[:150, ["purpose", "branch"]] = ["car", "north"]
    cut = slices.by_time(frame, SCHEMA, Training(), where="test")
    assert cut.copies == 0
    assert sum(map(len, cut.slices.values())) == 300
    sizes = [len(part) for part in slices.stratified(frame, SCHEMA, Training()).slices.values()]
    assert max(abs(size - wanted) for size, wanted in zip(sizes, (180, 60, 60), strict=True)) <= 2


def test_equal_times_stay_together() -> None:
    frame = loans(200)
    months = pd.to_datetime(["2024-01-01", "2024-02-01", "2024-03-01", "2024-04-01"]).repeat(50)
    cut = slices.by_time(frame.assign(applied_at=months), SCHEMA, Training(), where="test")
    assert [part["applied_at"].nunique() for part in cut.slices.values()] == [2, 1, 1]


def test_too_few_times_to_cut_by_are_told() -> None:
    frame = loans(20).assign(applied_at=[pd.Timestamp("2024-01-01") + timedelta(days=at % 2) for at in range(20)])
    with pytest.raises(UserError, match=r"too few different times \(2\).*set training.split to stratified"):
        slices.by_time(frame, SCHEMA, Training(), where="loans/training_set[x]")
