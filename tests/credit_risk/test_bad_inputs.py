"""One test for each thing that goes wrong with data: what is shown names column, row and remedy; nothing is guessed.

Feeds are files as a sender would write them, and everything behind them is real: warehouse, journal, training set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from upath import UPath

from mlops_assets.credit_risk import incidents, models
from mlops_assets.credit_risk.batch_rules import Finding
from mlops_assets.credit_risk.batches import profile_of
from mlops_assets.credit_risk.bias import Attribute, bias_report
from mlops_assets.credit_risk.ingestion import IngestReport, ingest_period
from mlops_assets.credit_risk.labels import training_tables
from mlops_assets.credit_risk.outcomes_feed import ingest_outcomes
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.training import train_scorecard
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import sha256_hex
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.profiling import ProfileStore
from mlops_assets.foundation.registry import Registry
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.foundation.snapshots import SnapshotStore
from tests.credit_risk.feeds import (
    DAYS,
    NOW,
    applications,
    feed_spec,
    quarantine,
    rules_of,
    table,
    with_cells,
    write,
)
from tests.credit_risk.small_loans import small_loans, small_spec

TODAY = DAYS[3]
# A line that cannot be cut may hold a protected attribute, so it is told by its length and hash.
HIDDEN = f"[a line of 11 characters, not shown, sha256 {sha256_hex(b'half,a,line')}]"


@dataclass
class Bank:
    """A system with three ordinary days behind it, and what it says about today's delivery."""

    spec: Spec
    feed: Path
    warehouse: Warehouse
    journal: Journal

    def deliver(self, frame: pd.DataFrame, *lines: str, day: str = TODAY) -> IngestReport:
        """Write a day's file, take it in, and record its incidents."""
        write(self.feed, day, frame, *lines)
        report = ingest_period(self.spec, [day], self.warehouse, run_id="run", now=NOW)
        incidents.record(self.journal, self.spec.name, report.batches, run_id="run")
        return report

    def blocked(self, report: IngestReport) -> Finding:
        """Return the first finding of a blocked batch, after proving that it stops everything else."""
        (batch,) = report.blocked
        assert batch.status == "blocked"
        assert batch.batch_id not in set(table(self.warehouse, self.spec, "current_batches")["batch_id"])
        for what in ("scoring", "training"):
            with pytest.raises(UserError, match=batch.period):
                incidents.refuse_if_open(self.journal, what, self.spec.name)
        return batch.blocked[0]

    def accepted(self, report: IngestReport) -> pd.DataFrame:
        """Return the day's current rows, after proving that nothing stands in their way."""
        assert report.blocked == []
        incidents.refuse_if_open(self.journal, "scoring", self.spec.name)
        rows = table(self.warehouse, self.spec, "current_applications")
        return rows[rows["batch_id"] == report.batches[0].batch_id].sort_values("row", ignore_index=True)


MakeBank = Callable[..., Bank]


@pytest.fixture
def make_bank(tmp_path: Path, warehouse: Warehouse) -> MakeBank:
    def build(**over: Any) -> Bank:
        feed = tmp_path / "feed"
        outcomes = {"kind": "files", "path": str(feed / "outcomes.csv")}
        bank = Bank(
            feed_spec(feed, **{**over, "data": {"outcomes": outcomes, **over.get("data", {})}}),
            feed,
            warehouse,
            Journal(tmp_path / "operations.db"),
        )
        for day in DAYS[:3]:
            write(feed, day, applications(day).assign(code_list_version="2024-1"))
        report = ingest_period(bank.spec, DAYS[:3], warehouse, now=NOW)
        assert [batch.accepted for batch in report.batches] == [60, 60, 60]
        assert report.findings == []
        return bank

    return build


@pytest.fixture
def bank(make_bank: MakeBank) -> Bank:
    return make_bank()


def today(rows: int = 60, **columns: Any) -> pd.DataFrame:
    return applications(TODAY, rows, **columns)


# --- Columns ---


def test_column_missing(bank: Bank) -> None:
    before = table(bank.warehouse, bank.spec, "batches")
    told = (
        r"2024-03-07\.csv: column 'income' is missing; the columns there are 'application_id', .*; a number is expected"
        r"; also missing: 'purpose'\. Remedy: map it in the spec: columns: \{income: "
    )
    with pytest.raises(UserError, match=told):
        bank.deliver(today().drop(columns=["income", "purpose"]))
    # Nothing was written: what came before goes on counting.
    pd.testing.assert_frame_equal(table(bank.warehouse, bank.spec, "batches"), before)


def test_column_renamed(bank: Bank) -> None:
    with pytest.raises(UserError, match=r"did you mean 'Income_EUR'\?.*Remedy: .*columns: \{income: Income_EUR\}"):
        bank.deliver(today().rename(columns={"income": "Income_EUR"}))


def test_column_extra(bank: Bank) -> None:
    report = bank.deliver(today().assign(bonus=1))
    assert report.unknown_columns == ("bonus",)
    assert "bonus" not in bank.accepted(report)


def test_columns_reordered(bank: Bank) -> None:
    frame = today()
    rows = bank.accepted(bank.deliver(frame[sorted(frame.columns, reverse=True)]))
    assert rows["income"].tolist() == [float(value) for value in frame["income"]]
    assert rows["purpose"].tolist() == frame["purpose"].tolist()


def test_column_twice(bank: Bank) -> None:
    path = write(bank.feed, TODAY, today())
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([header + ",income", *(line + ",1" for line in lines)]), encoding="utf-8")
    with pytest.raises(UserError, match=r"column names occur twice: 'income'\. Remedy: rename one of them"):
        ingest_period(bank.spec, [TODAY], bank.warehouse, now=NOW)


# --- Values ---


def test_number_as_text(bank: Bank) -> None:
    rows = bank.accepted(bank.deliver(with_cells(today(), {(4, "income"): "N/A"})))
    assert len(rows) == 59
    assert rules_of(bank.warehouse, bank.spec) == {
        "not_a_number": [(6, "income", "N/A", "a finite number such as 12.5")]
    }  # fmt: skip


def test_many_numbers_as_text(bank: Bank) -> None:
    finding = bank.blocked(bank.deliver(today(income=["N/A"] * 20 + [20_000] * 40)))
    assert (finding.rule, finding.value) == ("quarantine_share", "33.3 % (20 of 60)")
    assert finding.message.endswith("most often broken: not_a_number (20).")


def test_all_null_column(bank: Bank) -> None:
    finding = bank.blocked(bank.deliver(today(amount=None)))
    assert (finding.rule, finding.column) == ("null_share", "amount")
    assert finding.message == (
        "amount is missing in 100 % (60 of 60) of the rows; 0 % are usual. Deliver the column again with its values."
    )


def test_null_surge(bank: Bank) -> None:
    finding = bank.blocked(bank.deliver(today(branch=[None] * 30 + ["north"] * 30)))
    assert (finding.column, finding.value, finding.bound) == ("branch", "50 % (30 of 60)", "at most 10 %")


def test_duplicate_rows(bank: Bank) -> None:
    report = bank.deliver(pd.concat([today(), today().iloc[[7]]]))
    assert (len(bank.accepted(report)), report.copies, report.quarantined_rows) == (60, 1, 0)


def test_duplicate_application_id(bank: Bank) -> None:
    report = bank.deliver(with_cells(today(), {(1, "application_id"): f"{TODAY}-0001"}))
    assert len(bank.accepted(report)) == 58
    found = rules_of(bank.warehouse, bank.spec)["one_application_one_content"]
    assert [(row, column, value) for row, column, value, _ in found] == [
        (2, "application_id", f"{TODAY}-0001"), (3, "application_id", f"{TODAY}-0001"),
    ]  # fmt: skip


def test_no_duplicate_across_train_and_test(make_bank: MakeBank) -> None:
    bank = make_bank(training={"minimum_goods": 10, "minimum_bads": 5})
    twin = today().assign(**{name: applications(DAYS[0])[name] for name in bank.spec.features})
    bank.deliver(twin)
    cut, facts = learn(bank, every_third_bad())
    assert facts["left_out_copies"] > 0
    contents = {name: set(map(tuple, part[list(bank.spec.features)].to_numpy())) for name, part in cut.items()}
    assert not contents["train"] & contents["test"] | contents["calibrate"] & contents["test"]


def test_impossible_values(bank: Bank) -> None:
    cells = {(0, "income"): -20_000, (1, "income"): "inf", (2, "months_late"): 500, (3, "age"): 200}
    report = bank.deliver(with_cells(today(), cells))
    assert len(bank.accepted(report)) == 57
    assert rules_of(bank.warehouse, bank.spec) == {
        "income_in_range": [(2, "income", "-20000", "1000 to 500,000")],
        "income_over_amount_in_range": [(2, "income", "-20000", "income / amount: 0.05 to 1000")],
        "not_a_number": [(3, "income", "inf", "a finite number such as 12.5")],
        "months_late_in_range": [(4, "months_late", "500", "0 to 120, or -9 (no file)")],
    }
    # An age is protected: it decides nothing, and a wrong one is unknown and shown nowhere.
    assert report.protected_unreadable == {"age": 1}


def test_unseen_category(bank: Bank) -> None:
    report = bank.deliver(with_cells(today(), {(0, "purpose"): "crypto"}))
    assert "crypto" in set(bank.accepted(report)["purpose"])


def test_many_unseen_categories(bank: Bank) -> None:
    finding = bank.blocked(bank.deliver(today(purpose=["Car"] * 30 + ["home"] * 30)))
    assert finding.message == (
        "purpose: 50 % (30 of 60) of the values are of no known category, such as 'Car'; they are scored as 'other'. "
        "Check whether the code list has changed."
    )


def test_unit_shift_on_all_rows(make_bank: MakeBank) -> None:
    # A range wide enough for both units, so that every single row looks right.
    wide = [{"name": "income", "theme": "money", "low": 0, "high": 1e9, "nullable": False},
            {"name": "amount", "theme": "money"}, {"name": "months_late", "theme": "history"}]  # fmt: skip
    bank = make_bank(numeric=wide, ratios=[])
    frame = today()
    finding = bank.blocked(bank.deliver(frame.assign(income=[float(value) * 100 for value in frame["income"]])))
    assert (finding.rule, finding.column) == ("median_ratio", "income")
    assert "a change of unit by 100 is suspected. Ask the sender for currency and unit" in finding.message
    assert bank.accepted(bank.deliver(frame))["income"].max() < 1e6


def test_unit_shift_beyond_the_range(bank: Bank) -> None:
    frame = today()
    report = bank.deliver(frame.assign(income=[float(value) * 100 for value in frame["income"]]))
    bank.blocked(report)
    messages = {finding.rule: finding.message for finding in report.batches[0].blocked}
    assert "most often broken: income_in_range" in messages["quarantine_share"]
    assert "one cause, not" in messages["systematic_cause"]
    assert "a change of unit by 100 is suspected" in messages["median_ratio"]


def test_unit_shift_on_a_few_rows(bank: Bank) -> None:
    frame = today()
    cells = {(at, "income"): float(frame["income"][at]) * 100 for at in (5, 25, 45)}
    report = bank.deliver(with_cells(frame, cells))
    assert len(bank.accepted(report)) == 57
    refused = quarantine(bank.warehouse, bank.spec)
    assert set(refused["row"]) == {7, 27, 47}
    assert set(refused["rule"]) <= {"income_in_range", "income_over_amount_in_range"}


def test_decimal_comma_and_other_clocks(bank: Bank) -> None:
    cells = {
        (0, "income"): "21.234,56",
        (1, "applied_at"): "07/03/2024 10:00",
        (2, "applied_at"): "2024-03-07T23:30:00-05:00",
        (3, "applied_at"): "2024-03-07T10:00:00+09:00",
    }
    rows = bank.accepted(bank.deliver(with_cells(today(), cells)))
    assert rules_of(bank.warehouse, bank.spec) == {
        "not_a_number": [(2, "income", "21.234,56", "a finite number such as 12.5")],
        "not_a_time": [(3, "applied_at", "07/03/2024 10:00", "a time such as 2026-11-16T08:30:00Z")],
        # Half past eleven in the evening of New York is the next day in UTC.
        "applied_at_not_after": [(4, "applied_at", "2024-03-08T04:30:00+00:00", "until 2024-03-08T00:00:00+00:00")],
    }
    assert rows["applied_at"][0] == pd.Timestamp("2024-03-07T01:00:00")


def test_injected_texts(bank: Bank) -> None:
    cells = {
        (0, "purpose"): "<img src=x onerror=alert(1)>",
        (1, "branch"): '=HYPERLINK("x")',
        (2, "applicant_id"): "x\ny",
        (3, "purpose"): "'; drop table batches; --",
    }
    rows = bank.accepted(bank.deliver(with_cells(today(), cells)))
    found = rules_of(bank.warehouse, bank.spec)
    assert {rule: [(row, column) for row, column, *_ in broken] for rule, broken in found.items()} == {
        "purpose_not_plain": [(2, "purpose")],
        "branch_not_plain": [(3, "branch")],
        "applicant_id_not_one_line": [(4, "applicant_id")],
        "applicant_id_not_plain": [(4, "applicant_id")],
    }
    # What is short and plain is a text and nothing else: an unknown category.
    assert rows["purpose"][0] == "'; drop table batches; --"


def test_endless_text(make_bank: MakeBank) -> None:
    bank = make_bank()
    endless = with_cells(today(), {(2, "purpose"): "A" * 10_000_000})
    with pytest.raises(UserError, match="has a record longer than 4 MiB, or a quotation mark that is never closed"):
        bank.deliver(endless)
    # A format without such a limit delivers it: the row is refused, and only its beginning is kept.
    (bank.feed / f"{TODAY}.csv").unlink()
    endless.astype(str).to_parquet(bank.feed / f"{TODAY}.parquet")
    applications = {"kind": "files", "path": str(bank.feed / "{period}.parquet")}
    bank.spec = feed_spec(bank.feed, data={"applications": applications})
    report = ingest_period(bank.spec, [TODAY], bank.warehouse, now=NOW)
    assert len(bank.accepted(report)) == 59
    (broken,) = rules_of(bank.warehouse, bank.spec)["purpose_not_one_line"]
    assert (broken[0], broken[1], broken[3]) == (3, "purpose", "one line of at most 200 characters")
    (raw,) = quarantine(bank.warehouse, bank.spec)["raw"]
    assert "10,000,000 characters, sha256" in raw
    assert table(bank.warehouse, bank.spec, "raw_applications")["payload"].str.len().max() < 5_000


def test_code_list_changed(make_bank: MakeBank) -> None:
    bank = make_bank(data={"code_list_version": "2024-1"})
    report = bank.deliver(today().assign(code_list_version="2025-1"))
    messages = {finding.rule: finding.message for finding in report.batches[0].blocked}
    bank.blocked(report)
    assert messages["code_list_version"] == (
        "100 % (60 of 60) of the rows state another version of the code lists than 2024-1: codes may have changed "
        "their meaning. Review the new lists, then set data.code_list_version and train again."
    )


# --- Deliveries ---


def test_future_and_stale_rows(bank: Bank) -> None:
    cells = {(0, "applied_at"): "2031-01-01T00:00:00Z", (1, "applied_at"): "2024-03-01T10:00:00Z"}
    assert len(bank.accepted(bank.deliver(with_cells(today(), cells)))) == 58
    assert rules_of(bank.warehouse, bank.spec) == {
        "applied_at_not_after": [(2, "applied_at", "2031-01-01T00:00:00Z", "until 2025-06-01T00:00:00+00:00")],
        "of_this_period": [(3, "applied_at", "2024-03-01T10:00:00+00:00", "from 2024-03-07T00:00:00+00:00")],
    }


def test_empty_batch(bank: Bank) -> None:
    report = bank.deliver(today(0))
    assert bank.accepted(report).empty
    (finding,) = report.batches[0].findings
    assert (finding.rule, finding.severity) == ("no_applications", "warn")
    assert finding.message.startswith("no applications on 2024-03-07; 60 are usual for a period. Check the delivery")


def test_no_file(bank: Bank) -> None:
    with pytest.raises(UserError, match=r"2024-03-08\.csv: no file matches this path\. Remedy: correct `path`"):
        ingest_period(bank.spec, ["2024-03-08"], bank.warehouse, now=NOW)


def test_one_row(make_bank: MakeBank) -> None:
    small = make_bank(checks={"minimum_rows": 0.0})
    report = small.deliver(today(1))
    assert len(small.accepted(report)) == 1
    assert report.findings == []


def test_same_file_twice(bank: Bank) -> None:
    finding = bank.blocked(bank.deliver(applications(DAYS[2]).assign(code_list_version="2024-1")))
    assert finding.rule == "same_delivery"
    assert f"byte for byte, those of {DAYS[2]}" in finding.message
    assert finding.message.endswith("Deliver the file of this period.")
    # The right file settles it.
    assert len(bank.accepted(bank.deliver(today()))) == 60


def test_truncated_file(bank: Bank) -> None:
    finding = bank.blocked(bank.deliver(today(6)))
    assert (finding.rule, finding.value, finding.bound) == ("row_count", "6", "at least 12")


def test_line_that_is_no_row(bank: Bank) -> None:
    report = bank.deliver(today(), "half,a,line")
    assert len(bank.accepted(report)) == 60
    assert rules_of(bank.warehouse, bank.spec)["unreadable_line"] == [
        (62, None, HIDDEN, "as many fields as the source has columns")
    ]


# --- Outcomes ---


def every_third_bad(*more: tuple[str, str, str]) -> pd.DataFrame:
    told = [
        (f"{day}-{number:04d}", "default" if number % 3 == 0 else "paid", "2024-05-01T00:00:00Z")
        for day in DAYS
        for number in range(1, 61)
    ]
    return pd.DataFrame([*told, *more], columns=["application_id", "outcome", "outcome_at"])


def learn(bank: Bank, outcomes: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    # Within the window of thirty days of all of them.
    known = outcomes.replace("2024-05-01T00:00:00Z", "2024-04-02T00:00:00Z")
    known.to_csv(bank.feed / "outcomes.csv", index=False)
    ingest_outcomes(bank.spec, ["2024-04-02"], bank.warehouse, now=NOW)
    with bank.warehouse.session() as tables:
        return training_tables(tables, bank.spec, "2024-05-01")


def test_label_leakage(bank: Bank) -> None:
    """An outcome is no part of an application, so it cannot be learned from, whatever its column is called."""
    bank.deliver(today().assign(outcome="default", outcome_at="2024-05-01"))
    cut, _ = learn(bank, every_third_bad())
    assert not {"outcome", "outcome_at"} & {name for part in cut.values() for name in part.columns}
    with pytest.raises(UserError, match="'outcome' is a column of the system's own"):
        feed_spec(bank.feed, categorical=[{"name": "outcome", "theme": "money"}])


def test_single_class_labels(bank: Bank) -> None:
    good = every_third_bad().assign(outcome="paid")
    told = (
        r"0 bad loans have matured, 2 are needed.*Remedy: train when more have matured, or lower training.minimum_bads"
    )
    with pytest.raises(UserError, match=told):
        learn(bank, good)


def test_label_conflict_and_label_before_its_application(bank: Bank) -> None:
    more = [(f"{DAYS[0]}-000{number}", "default", "2024-05-01T00:00:00Z") for number in (1, 2)]
    outcomes = with_cells(every_third_bad(*more), {(9, "outcome_at"): "2024-02-01T00:00:00Z"})
    outcomes.to_csv(bank.feed / "outcomes.csv", index=False)
    report = ingest_outcomes(bank.spec, ["2024-02-01", "2024-05-01"], bank.warehouse, now=NOW)
    assert (report.conflicts, report.too_early) == (2, 1)
    refused = table(bank.warehouse, bank.spec, "quarantined_outcomes")
    assert sorted(refused["row"]) == [2, 3, 11, 242, 243]
    told = (
        r"contradict each other \(2 loans\) or are from before their application \(1\).*Remedy: look at loans\.quarant"
    )
    with bank.warehouse.session() as tables, pytest.raises(UserError, match=told):
        training_tables(tables, bank.spec, "2024-05-01")


def test_protected_group_missing(make_bank: MakeBank) -> None:
    bank = make_bank(checks={"maximum_rows": 100.0})
    report = bank.deliver(today(400).drop(columns="sex"))
    rows = bank.accepted(report)
    assert report.protected_missing == ("sex",)
    people = table(bank.warehouse, bank.spec, "protected_attributes")
    decided = rows[["application_id"]].assign(decision="accept", pd=0.1, y=np.arange(400) % 2.0)
    found = bias_report(decided, people, [Attribute("sex")]).attributes[0]
    # Nobody's group is known, which is no equality of groups.
    assert (found.status, found.lowest) == ("not_assessed", None)
    assert found.reason.startswith("every value is unknown")


def test_one_protected_group_only(make_bank: MakeBank) -> None:
    bank = make_bank(checks={"maximum_rows": 100.0})
    rows = bank.accepted(bank.deliver(today(400, sex="female")))
    decided = rows[["application_id"]].assign(decision="accept", pd=0.1, y=np.arange(400) % 2.0)
    found = bias_report(decided, table(bank.warehouse, bank.spec, "protected_attributes"), [Attribute("sex")])
    assert found.attributes[0].status == "not_assessed"
    assert "there is nothing to compare" in found.attributes[0].reason


# --- What was stored ---


def test_reference_profile_lost_or_corrupt(bank: Bank, tmp_path: Path) -> None:
    store, dataset = ProfileStore(UPath(tmp_path / "profiles")), "loans/applications"
    path = store.save(dataset, DAYS[0], profile_of(bank.spec, bank.warehouse, DAYS[0]))
    assert store.load(dataset, DAYS[0]).rows == 60
    path.write_bytes(path.read_bytes()[:-40])
    told = (
        r"this is no profile, or a damaged one.*Remedy: .*materialize the profile of this partition again from its data"
    )
    with pytest.raises(UserError, match=told):
        store.reference(dataset, [DAYS[0]])
    path.unlink()
    with pytest.raises(
        UserError, match=r"there is no profile of partition '2024-03-04'.*Remedy: materialize the profile"
    ):
        store.reference(dataset, [DAYS[0]])


def test_model_file_altered(tmp_path: Path) -> None:
    spec, frame = small_spec(), small_loans()
    registry = Registry(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "models")
    cut = {"train": frame.iloc[:1_200], "calibrate": frame.iloc[1_200:1_600]}
    snapshot = SnapshotStore(tmp_path / "snapshots").save("small/training_set", cut, {"as_of": "2024-03-31"})
    version = train_scorecard(spec, snapshot, registry, {"trained_by": "anna", "run_id": "run-1"})
    models.load(registry.fetch(version))
    (stored,) = (tmp_path / "models").rglob(models.MODEL_FILE)
    stored.write_bytes(stored.read_bytes().replace(b"income", b"amount", 1))
    with pytest.raises(
        UserError, match=r"model\.json: a file of small\.pd_model version 1 is broken: expected SHA-256"
    ):
        registry.fetch(version)


def test_an_open_incident_is_settled_by_a_person_or_by_a_sound_delivery(bank: Bank) -> None:
    bank.blocked(bank.deliver(today(amount=None)))
    (incident,) = incidents.open_incidents(bank.journal)
    assert (incident.period, incident.rule, incident.column) == (TODAY, "null_share", "amount")
    incidents.acknowledge(bank.journal, incident.id, by="Ada", reason="the amount is not asked for any more")
    incidents.refuse_if_open(bank.journal, "training", bank.spec.name)
    assert np.isnan(table(bank.warehouse, bank.spec, "accepted_applications")["amount"]).any()
