"""What is watched while a champion serves: on records of real runs, early, once outcomes came, and after a shock."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops_assets.credit_risk import watching
from mlops_assets.credit_risk.watching import Watched
from mlops_assets.foundation import reports
from mlops_assets.foundation.errors import UserError
from mlops_assets.samples.lending import LendingWorld
from tests.credit_risk.ran_world import (
    AGE_FRACTION,
    BOOK,
    DECIDED,
    FIRST_DECIDED,
    HISTORY,
    LAST_DECIDED,
    NAME,
    ORIGINS,
    SEXES,
    TRAINED,
    WEEKS,
    Bank,
    applications_of,
    bank_folder,
    opened,
    ran,
    ran_copy,
)

__all__ = ["bank_folder", "ran", "ran_copy"]

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


def kept(bank: Bank, kind: str, period: str) -> dict[str, Any]:
    found = watching.kept(bank.root, bank.spec, kind, period)
    assert found is not None
    assert found[0] == period
    return found[1]


# --- Early ---


def test_in_the_first_period_nothing_can_be_told_of_drift_and_says_so(ran: Bank) -> None:
    record = kept(ran, "drift", FIRST_DECIDED)
    (finding,) = record["findings"]
    assert (finding["status"], record["confirmed"]) == ("not_assessed", False)
    assert f"1 batch(es) have {finding['rows_window']} rows, 500 are needed" in finding["reasons"][0]
    assert reports.read(ran.root, f"{NAME}/drift/{FIRST_DECIDED}.json") is None


def test_without_matured_loans_performance_is_not_assessed(ran: Bank) -> None:
    for week in (FIRST_DECIDED, LAST_DECIDED):
        record = kept(ran, "realised", week)
        assert (record["status"], record["rows"]) == ("not_assessed", 0)
        assert "100 with 5 bad ones are needed" in record["reasons"][0]
        assert record["waiting"] > 100
        assert ran.page("realised_performance", week)["verdict"].value == "not_assessed"


def test_records_name_the_model_that_they_are_of(ran: Bank) -> None:
    for kind in ("drift", "realised"):
        assert kept(ran, kind, LAST_DECIDED)["model"] == ran.champion.sha256
    assert kept(ran, "labels", LAST_DECIDED)["since"] == TRAINED


# --- Without drift ---


def test_a_sound_window_keeps_its_report_as_json_alone(ran: Bank) -> None:
    record = kept(ran, "drift", LAST_DECIDED)
    # Four weeks make two windows that share no batch.
    assert [len(finding["batches"]) for finding in record["findings"]] == [2, 2]
    assert not {*record["findings"][0]["batches"]} & {*record["findings"][1]["batches"]}
    assert {finding["status"] for finding in record["findings"]} == {"none"}
    shown = ran.page("drift_report", LAST_DECIDED)
    content = reports.read(ran.root, f"{NAME}/drift/{LAST_DECIDED}.json")
    assert content is not None
    json.loads(content)
    assert shown["report_json"].url == reports.link(f"{NAME}/drift/{LAST_DECIDED}.json")
    assert "report" not in shown
    assert reports.read(ran.root, f"{NAME}/drift/{LAST_DECIDED}.html") is None


def test_the_reference_is_what_came_before_training(ran: Bank) -> None:
    record = kept(ran, "drift", LAST_DECIDED)
    first = HISTORY - ran.spec.monitoring.reference_periods
    rows = sum(len(applications_of(number)) for number in range(first, HISTORY))
    assert record["findings"][-1]["rows_reference"] == pytest.approx(rows, rel=0.02)
    assert ran.page("drift_report", LAST_DECIDED)["reference_rows"].value <= rows


def test_mixes_are_of_the_latest_decisions_and_of_the_reference(ran: Bank) -> None:
    shown, record = ran.page("decision_mix", LAST_DECIDED), kept(ran, "mix", LAST_DECIDED)
    assert len(record) == 3
    tables = [value for value in shown.values() if hasattr(value, "records")]
    assert len(tables) == 3
    bins = {str(each.data["bin"]) for table in tables for each in table.records}
    assert {"accept", "refer", "reject", "utilisation"} <= bins
    run = ran.instance.get_runs(limit=1)[0].run_id
    statuses = {
        name: check.metadata["status"].value for name, check in ran.checks(run).items() if "decision_mix" in name
    }
    assert set(statuses) == {f"decision_mix:{what}_are_spread_as_before" for what in ("scores", "decisions", "reasons")}
    assert set(statuses.values()) == {"passed"}


def test_the_estimate_says_what_it_is_blind_to(ran: Bank) -> None:
    shown = ran.page("estimated_performance", LAST_DECIDED)
    assert "concept drift" in shown["blind_to"].text
    rows = {each.data["metric"]: each.data for each in shown["estimates"].records}
    assert set(rows) == {"auc", "bad_rate", "brier"}
    for row in rows.values():
        assert float(row["low"]) <= float(row["estimate"]) <= float(row["high"])
    assert shown["rows"].value + shown["unscored"].value == ran.spec.monitoring.window_rows


# --- Once outcomes have come ---


@pytest.fixture(scope="module")
def matured(bank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    """The bank 14 weeks later: the loans that it decided on have matured."""
    home = tmp_path_factory.mktemp("matured") / "bank"
    shutil.copytree(bank_folder / "ran", home)
    with opened(home) as bank:
        bank.run("ingest", *WEEKS[DECIDED:])
        bank.run("watch", WEEKS[-1])
        yield bank


def test_performance_is_assessed_once_loans_have_matured(matured: Bank) -> None:
    record = kept(matured, "realised", WEEKS[-1])
    assert record["status"] == "holds", record["reasons"]
    assert record["rows"] > 200
    assert record["bads"] > 10
    assert record["facts"]["loans"] == record["rows"]
    made = matured.log.frame(matured.log.touched(model=matured.champion.sha256))
    accepted = set(made["application_id"][made["decision"] == "accept"])
    booked = pd.concat([BOOK.outcomes(day) for day in range(7 * len(WEEKS))])
    assert record["rows"] <= len(accepted & set(booked["application_id"]))
    check = matured.checks(matured.runs[-1])["realised_performance:the_champion_has_not_decayed"]
    assert check.passed
    shown = matured.page("realised_performance", WEEKS[-1])
    assert shown["verdict"].value == "holds"
    assert shown["realised_auc"].value == pytest.approx(record["metrics"]["auc"]["value"], abs=1e-6)


def test_what_was_known_early_is_told_as_it_was(matured: Bank) -> None:
    """A watch of an earlier period, made today, knows no outcome of after it."""
    matured.run("watch", LAST_DECIDED)
    assert kept(matured, "realised", LAST_DECIDED)["status"] == "not_assessed"


def test_labels_since_the_latest_training_are_counted(matured: Bank) -> None:
    counts = kept(matured, "labels", WEEKS[-1])
    assert counts["since"] == TRAINED
    assert 0 < counts["new_bads"] < counts["new"] < counts["matured"]
    again = watching.new_labels(matured.spec, matured.warehouse, WEEKS[-1], WEEKS[-1])
    assert (again["new"], again["matured"]) == (0, counts["matured"])
    every = watching.new_labels(matured.spec, matured.warehouse, None, WEEKS[-1])
    assert every["new"] == every["matured"] == counts["matured"]


def test_curves_follow_vintages_as_far_as_all_their_loans_have_come(matured: Bank) -> None:
    shown = matured.page("vintage_curves", WEEKS[-1])
    assert shown["picture"].md_str.startswith("![Defaults by vintage](data:image/")
    assert len(shown["vintages"].records) > 5
    assert len(shown["expected"].records) > 1
    assert shown["loans"].value > 10_000


def test_a_window_older_than_the_champion_is_never_compared(matured: Bank) -> None:
    with matured.warehouse.session() as tables:
        batches = watching.batches_since(tables, matured.spec, TRAINED, WEEKS[-1])
    assert [batch.period for batch in batches] == list(WEEKS[HISTORY:])
    with matured.warehouse.session() as tables:
        assert watching.batches_since(tables, matured.spec, WEEKS[-1], WEEKS[-1]) == []


# --- After a shock ---

SHOCK = LendingWorld(
    seed=5, start=BOOK.start, days=420, applications_per_day=40, maturity_days=90, shock=7 * DECIDED - 20,
    shock_strength=3,
)  # fmt: skip


def shocked(number: int) -> pd.DataFrame:
    """A week's feed in an economy that collapsed three weeks before."""
    frame = pd.concat([SHOCK.applications(day) for day in range(7 * number, 7 * number + 7)], ignore_index=True)
    return frame.assign(
        sex=frame["sex"].map(SEXES), origin=frame["origin"].map(ORIGINS), age=frame["age"] + AGE_FRACTION
    )


@pytest.fixture(scope="module")
def drifting(bank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    """The bank after four weeks of a shock, watched after two and after four of them."""
    home = tmp_path_factory.mktemp("drifting") / "bank"
    shutil.copytree(bank_folder / "ran", home)
    with opened(home) as bank:
        for number in range(DECIDED, DECIDED + 4):
            bank.deliver(number, shocked(number))
        bank.run("daily", *WEEKS[DECIDED : DECIDED + 2])
        bank.run("daily", *WEEKS[DECIDED + 2 : DECIDED + 4])
        yield bank


def test_one_window_that_differs_is_a_remark_with_a_page_for_people(drifting: Bank) -> None:
    week = WEEKS[DECIDED + 1]
    record = kept(drifting, "drift", week)
    assert [each["status"] for each in record["findings"]] == ["none", "drifted"]
    assert record["confirmed"] is False
    check = drifting.checks(drifting.runs[0])["drift_report:applications_have_not_drifted"]
    assert check.passed
    assert check.description.startswith("Not confirmed yet (2 windows in a row are needed): ")
    shown = drifting.page("drift_report", week)
    assert shown["report"].url == reports.link(f"{NAME}/drift/{week}.html")
    page = reports.read(drifting.root, f"{NAME}/drift/{week}.html")
    assert page is not None
    assert b"<html" in page[:2_000].lower()


def test_two_windows_in_a_row_are_drift_and_stop_no_scoring(drifting: Bank) -> None:
    week = WEEKS[DECIDED + 3]
    record = kept(drifting, "drift", week)
    assert [each["status"] for each in record["findings"]] == ["drifted", "drifted"]
    assert record["confirmed"] is True
    check = drifting.checks(drifting.runs[1])["drift_report:applications_have_not_drifted"]
    assert (check.passed, check.severity.value, check.blocking) == (False, "ERROR", False)
    assert len(list(drifting.log.of_period(week))) > 200
    assert drifting.page("drift_report", week)["confirmed"].value is True


def test_confirmed_drift_asks_for_a_training_by_its_features(drifting: Bank) -> None:
    answer: Any = drifting.tick()
    (request,) = answer.run_requests
    assert request.tags["mlops_assets/trigger"] == "T1_drift"
    assert request.partition_key == WEEKS[DECIDED + 3]
    first = kept(drifting, "drift", WEEKS[DECIDED + 3])["findings"][-1]
    drifted = [column["column"] for column in first["columns"] if column["status"] == "drifted"]
    assert any(name in request.tags["mlops_assets/reason"] for name in drifted)


def test_drift_of_touched_batches_is_not_confirmed(drifting: Bank) -> None:
    record = kept(drifting, "drift", WEEKS[DECIDED + 3])
    watched = Watched.of(drifting.registry, drifting.champion)
    arguments = (drifting.spec, watched, drifting.warehouse, WEEKS[DECIDED + 3])
    assert watching.drift_of(*arguments).confirmed
    for finding in record["findings"]:
        assert not watching.drift_of(*arguments, {finding["batches"][0]}).confirmed


def test_a_rerun_of_an_earlier_watch_does_not_take_the_latest_ones_place(drifting: Bank) -> None:
    latest = kept(drifting, "drift", WEEKS[DECIDED + 3])
    drifting.run("watch", WEEKS[DECIDED])
    found = watching.kept(drifting.root, drifting.spec, "drift")
    assert found == (WEEKS[DECIDED + 3], latest)


# --- Records ---


def test_what_is_kept_comes_back_and_the_latest_up_to_a_period_counts(ran: Bank, tmp_path: Path) -> None:
    from upath import UPath

    root = UPath(tmp_path)
    assert watching.kept(root, ran.spec, "drift") is None
    frame = pd.DataFrame({"a": [1.0, np.nan]})
    watching.keep(root, ran.spec, "drift", "2024-01-01", {"n": np.int64(3), "x": np.float64(0.5), "frame": frame})
    watching.keep(root, ran.spec, "drift", "2024-01-08", {"n": 4})
    assert watching.kept(root, ran.spec, "drift") == ("2024-01-08", {"n": 4})
    first = {"n": 3, "x": 0.5, "frame": [{"a": 1.0}, {"a": None}]}
    assert watching.kept(root, ran.spec, "drift", "2024-01-07") == ("2024-01-01", first)
    assert watching.kept(root, ran.spec, "drift", "2023-12-31") is None
    assert watching.kept(root, ran.spec, "labels") is None
    assert watching.kept(root, ran.spec.model_copy(update={"name": "other"}), "drift") is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_record_is_named(ran: Bank, tmp_path: Path, content: bytes) -> None:
    from upath import UPath

    watching.keep(UPath(tmp_path), ran.spec, "mix", "2024-01-01", {})
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"2024-01-01\.json: is damaged.*materialize the period's asset again"):
        watching.kept(UPath(tmp_path), ran.spec, "mix")


@pytest.mark.parametrize("kind", ["drifts", "", "../models", "labels/x"])
def test_only_known_kinds_are_kept(ran: Bank, tmp_path: Path, kind: str) -> None:
    from upath import UPath

    with pytest.raises(ValueError, match="is no kind of record"):
        watching.keep(UPath(tmp_path), ran.spec, kind, "2024-01-01", {})
