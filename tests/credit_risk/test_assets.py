"""What the assets do across runs: incidents that hold, reruns that change nothing, systems apart, secrets that stay."""

import re
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import pandas as pd
import pytest

from mlops_assets.credit_risk import incidents, watching
from mlops_assets.credit_risk.names import Names
from mlops_assets.definitions import build_defs
from mlops_assets.foundation import reports
from mlops_assets.foundation.errors import UserError
from tests.credit_risk.ran_world import (
    AGE_FRACTION,
    BOOK,
    DECIDED,
    FIRST_DECIDED,
    HISTORY,
    LAST_DECIDED,
    NAME,
    NEXT,
    OFFICER,
    ORIGINS,
    SEXES,
    TRAINED,
    TRAINER,
    WEEKS,
    Bank,
    applications_of,
    bank_folder,
    failure,
    opened,
    proposed,
    ran,
    ran_copy,
    spec_at,
)

__all__ = ["bank_folder", "proposed", "ran", "ran_copy"]

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

AFTER = WEEKS[DECIDED + 1]


def in_hundredths(number: int) -> pd.DataFrame:
    """A week whose incomes are counted in hundredths."""
    frame = applications_of(number).copy()
    frame["annual_income"] = [value * 100 if isinstance(value, int) else value for value in frame["annual_income"]]
    return frame


def current(bank: Bank, period: str) -> str | None:
    found = bank.warehouse.query(
        f"select batch_id from {bank.spec.name}.current_batches where period = cast('{period}' as date)"
    )
    return str(found["batch_id"].iloc[0]) if len(found) else None


def fails(bank: Bank, job: str, *periods: str) -> str:
    """Run a job that has to fail, and return what it says."""
    with pytest.raises(UserError) as caught:
        bank.run(job, *periods)
    return str(caught.value)


# --- A data incident holds across runs ---


@pytest.fixture(scope="module")
def stopped_folder(bank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank after a week whose feed counted income in hundredths."""
    home = tmp_path_factory.mktemp("stopped") / "bank"
    shutil.copytree(bank_folder / "ran", home)
    with opened(home) as bank:
        before = bank.log.head()
        bank.deliver(DECIDED, in_hundredths(DECIDED))
        told = fails(bank, "daily", NEXT)
        (home / "told.txt").write_text(told, encoding="utf-8")
        assert bank.log.head() == before, "a batch that was blocked was decided on"
        assert set(bank.told[-1].failures) == {f"{NAME}__ingestion"}
    return home


@pytest.fixture
def stopped(stopped_folder: Path, tmp_path: Path) -> Iterator[Bank]:
    shutil.copytree(stopped_folder, tmp_path / "stopped")
    with opened(tmp_path / "stopped") as bank:
        yield bank


def test_a_unit_error_stops_its_own_run_and_is_named(stopped: Bank) -> None:
    told = (stopped.home / "told.txt").read_text(encoding="utf-8")
    assert "batches_are_sound" in told
    opened_now = incidents.open_incidents(stopped.operations)
    assert {each.period for each in opened_now} == {NEXT}
    assert "annual_income" in {each.column for each in opened_now} or "quarantine" in str(opened_now)
    assert current(stopped, NEXT) is None
    found = stopped.checks(stopped.instance.get_runs(limit=1)[0].run_id)
    for name in ("batches_are_sound", "no_data_incident_is_open"):
        check = found[f"applications:{name}"]
        assert (check.passed, check.severity.value, check.blocking) == (False, "ERROR", True)


@pytest.mark.parametrize(
    ("assets", "period", "what"),
    [
        (("decisions",), NEXT, "scoring"),
        (("decisions",), LAST_DECIDED, "scoring"),
        (("outlier_flags", "decisions"), AFTER, "scoring"),
        (("training_set",), TRAINED, "training"),
        (("training_set",), NEXT, "training"),
    ],
)
def test_later_runs_of_single_assets_fail_with_the_incident_and_the_remedy(
    stopped: Bank, assets: tuple[str, ...], period: str, what: str
) -> None:
    before = stopped.log.head()
    told = failure(stopped.materialize(*assets, period=period))
    first = incidents.open_incidents(stopped.operations)[0]
    assert f"{NAME}: no {what} while a data incident is open: {first.id}" in told
    assert f"mlops-assets incidents {NAME} acknowledge {first.id} --by NAME --reason TEXT" in told
    assert stopped.log.head() == before


def test_a_sound_next_period_waits_too_and_its_data_are_kept(stopped: Bank) -> None:
    told = fails(stopped, "daily", AFTER)
    assert "no_data_incident_is_open" in told
    assert current(stopped, AFTER) is not None
    assert list(stopped.log.of_period(AFTER)) == []


def test_a_candidate_of_before_is_blocked_while_an_incident_is_open(stopped: Bank) -> None:
    """Its evidence is as good as ever; what is wrong is wrong now."""
    assert stopped.materialize("champion", period=TRAINED).success
    assert stopped.history.records()[-1].verdict == "kept"
    gates = stopped.page("champion", TRAINED)["gates"].records
    (incident,) = [each.data for each in gates if each.data["gate"] == "incident"]
    assert incident["status"] == "failed"
    assert incidents.open_incidents(stopped.operations)[0].id in str(incident["reason"])


def test_waiving_every_incident_lets_the_batch_count(stopped: Bank) -> None:
    before = len(list(stopped.log.of_period(NEXT)))
    for each in incidents.open_incidents(stopped.operations):
        assert current(stopped, NEXT) is None
        assert stopped.launch(
            "acknowledge_incident", incident=each.id, by="mary", reason="incomes are in cents from now on"
        ).success
    batch = current(stopped, NEXT)
    assert batch is not None
    assert batch.startswith(NEXT)
    assert incidents.touched_batches(stopped.operations) == set()
    assert stopped.materialize("outlier_flags", "decisions", period=NEXT).success
    made = list(stopped.log.of_period(NEXT))
    assert (before, len(made)) == (0, len(applications_of(DECIDED).drop_duplicates()))
    # Every income beyond what an income can be went to a human, none was turned down for it.
    rules = stopped.log.frame(made)["rule"].value_counts()
    assert rules.idxmax() in {"quarantined", "out_of_range"}


def test_an_incident_that_is_settled_as_resolved_leaves_the_batch_blocked(stopped: Bank) -> None:
    for each in incidents.open_incidents(stopped.operations):
        assert stopped.launch(
            "acknowledge_incident", incident=each.id, by="mary", reason="a new file comes", outcome="resolved"
        ).success
    assert current(stopped, NEXT) is None
    told = failure(stopped.materialize("decisions", period=NEXT))
    assert f"no batch of applications was accepted for {NEXT}" in told
    assert f"materialize {NAME}/applications of this period" in told


def test_an_outcome_that_is_none_is_refused_on_the_launchpad(stopped: Bank) -> None:
    incident = incidents.open_incidents(stopped.operations)[0].id
    told = failure(stopped.launch("acknowledge_incident", incident=incident, by="m", reason="r", outcome="ignored"))
    assert "'ignored' is no outcome" in told
    assert incidents.open_incidents(stopped.operations)[0].id == incident


def test_the_corrected_delivery_resolves_the_incident_and_is_decided_in_the_same_run(stopped: Bank) -> None:
    blocked = {each.batch_id for each in incidents.open_incidents(stopped.operations)}
    stopped.deliver(DECIDED)
    stopped.run("daily", NEXT)
    assert {each.state for each in incidents.history(stopped.operations)} == {"resolved"}
    assert current(stopped, NEXT) not in {None, *blocked}
    made = stopped.log.frame(stopped.log.of_period(NEXT))
    assert set(made["batch_id"]) == {current(stopped, NEXT)}
    # Both deliveries are kept; a drift of the first one would be no evidence.
    batches = stopped.warehouse.query(f"select batch_id from {NAME}.batches where period = cast('{NEXT}' as date)")
    assert blocked < set(batches["batch_id"])
    assert incidents.touched_batches(stopped.operations) == blocked
    stopped.run("daily", AFTER)


def test_the_faulty_delivery_again_after_the_corrected_one_is_stopped_again(stopped: Bank) -> None:
    stopped.deliver(DECIDED)
    stopped.run("ingest", NEXT)
    good = current(stopped, NEXT)
    stopped.deliver(DECIDED, in_hundredths(DECIDED))
    with pytest.raises(UserError):
        stopped.run("ingest", NEXT)
    assert current(stopped, NEXT) == good


# --- Reruns ---


def test_a_rerun_decides_nothing_twice_and_changes_no_table(ran_copy: Bank) -> None:
    made, batches = list(ran_copy.log.of_period(LAST_DECIDED)), current(ran_copy, LAST_DECIDED)
    records = watching.kept(ran_copy.root, ran_copy.spec, "drift", LAST_DECIDED)
    ran_copy.run("daily", LAST_DECIDED)
    assert [each.sha256 for each in ran_copy.log.of_period(LAST_DECIDED)] == [each.sha256 for each in made]
    assert current(ran_copy, LAST_DECIDED) == batches
    assert watching.kept(ran_copy.root, ran_copy.spec, "drift", LAST_DECIDED) == records
    shown = ran_copy.page("decisions", LAST_DECIDED)
    assert shown["decided"].value == 0
    assert shown["decided_before"].value == shown["dagster/row_count"].value > 0


def test_a_range_is_decided_period_by_period_in_one_run(ran: Bank) -> None:
    made = {week: ran.log.frame(ran.log.of_period(week)) for week in WEEKS[HISTORY:DECIDED]}
    for number, week in enumerate(WEEKS[HISTORY:DECIDED], start=HISTORY):
        # Of rows that repeat another one word for word there is one decision.
        assert len(made[week]) == len(applications_of(number).drop_duplicates()), week
        assert made[week]["decision_id"].is_unique
    assert {model for frame in made.values() for model in frame["model_version"]} == {str(ran.serving())}


def test_two_years_of_runs_leave_one_head_a_run_as_witness(ran: Bank) -> None:
    shown = ran.page("decisions", LAST_DECIDED)
    heads = [(shown["log_entries"].value, shown["log_head_sha256"].value)]
    assert ran.log.verify(heads) == []
    assert ran.log.verify([(heads[0][0], "0" * 64)]) != []


def test_every_check_ran_and_what_could_not_be_assessed_says_so(ran: Bank) -> None:
    runs = ran.instance.get_runs(dg.RunsFilter(job_name=f"{NAME}_daily"))
    expected = {f"{key.asset_key.path[-1]}:{key.name}" for key in ran.defs().resolve_asset_graph().asset_check_keys}
    for run in runs:
        found = ran.checks(run.run_id)
        assert set(found) == expected
        bad = {name for name, check in found.items() if not check.passed}
        assert all(found[name].description.startswith("Not assessed: ") for name in bad), bad
        assert "realised_performance:the_champion_has_not_decayed" in bad


# --- Pages ---


def test_the_candidates_pages_show_what_they_rest_on(ran: Bank) -> None:
    judged = ("evaluation", "bias_report", "explanations", "model_card")
    pages = {asset: ran.page(asset, TRAINED) for asset in ("training_set", "scorecard", "gbm", *judged)}
    assert pages["training_set"]["rows"].value > 3_000
    assert pages["scorecard"]["kind"].text == "scorecard"
    assert pages["gbm"]["kind"].text == "gbm"
    for asset in judged:
        assert pages[asset]["gates_failed"].value == 0
        assert pages[asset]["candidate"].text == f"{NAME}.pd_model version {ran.serving()}"
        assert len(pages[asset]["evidence_sha256"].text) == 64
    assert {"auc", "scorecard_auc", "gbm_auc"} <= set(pages["evaluation"])


def test_the_cards_link_leads_to_the_card(ran: Bank) -> None:
    shown = ran.page("model_card", TRAINED)
    content = reports.read(ran.root, shown["path"].text)
    assert content is not None
    assert shown["read"].url == reports.link(shown["path"].text)
    assert b"<html" in content.lower()


def test_a_verdicts_page_carries_gates_and_risk_profile(ran: Bank) -> None:
    shown = ran.page("champion", TRAINED)
    gates = {each.data["gate"] for each in shown["gates"].records}
    needed = {gate.name for gate in ran.spec.risk.required_gates() if gate.axis == "algorithm"}
    assert needed - gates == {"champion_comparison"}, "there was no champion to compare with"
    assert "incident" in gates
    assert {each.data["axis"] for each in shown["risk_profile"].records} == {"data", "algorithm", "output"}
    assert shown["verdict"].value == "proposed"


def test_the_review_says_where_the_model_is_worst_and_changes_nothing(ran_copy: Bank) -> None:
    before = len(ran_copy.history.records()), ran_copy.serving()
    ran_copy.run("review", TRAINED)
    tables = {"weak_slices": "slices", "likely_label_errors": "by_slice", "slice_experiment": "effects"}
    for asset, table in tables.items():
        shown = ran_copy.page(asset, TRAINED)
        assert shown[table].schema.columns
        assert any(isinstance(value.value, int) for name, value in shown.items() if name != table), asset
        assert not re.search(r"A24\d{4}-\d{5}|P\d{9}", str(shown)), asset
    assert (len(ran_copy.history.records()), ran_copy.serving()) == before


def test_weak_slices_need_a_champion(proposed: Bank) -> None:
    assert "there is no champion yet" in failure(proposed.materialize("weak_slices", period=TRAINED))
    assert proposed.materialize("likely_label_errors", period=TRAINED).success


# --- Secrets ---


def _numbers(value: float) -> list[bytes]:
    return [struct.pack("<d", value), struct.pack(">d", value)]


def _ages() -> list[float]:
    ages = {age for number in range(HISTORY, DECIDED) for age in applications_of(number)["age"]}
    return sorted(age for age in ages if isinstance(age, float))


def _readings(path: Path) -> Iterator[bytes]:
    """Yield what a file holds, as it lies there and as those who know its format read it."""
    content = path.read_bytes()
    yield content
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
        yield frame.to_csv().encode()
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            for name in arrays.files:
                yield arrays[name].tobytes()
    elif content.startswith(b"SQLite format 3"):
        yield from _sqlite(path)


def _sqlite(path: Path) -> Iterator[bytes]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
            for row in connection.execute(f'select * from "{table}"'):
                for value in row:
                    if isinstance(value, bytes):
                        yield value
                        try:
                            yield zlib.decompress(value)
                        except zlib.error:
                            continue
                    elif isinstance(value, str | float):
                        yield str(value).encode()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def contents(bank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Everything below the bank's home but the warehouse, read in every way that its formats know."""
    home = tmp_path_factory.mktemp("contents") / "place"
    shutil.copytree(bank_folder / "ran" / "place", home)
    return {
        path.relative_to(home).as_posix(): list(_readings(path))
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.suffix != ".duckdb"
    }


def _holding(contents: dict[str, list[bytes]], *needles: bytes) -> set[str]:
    return {name for name, parts in contents.items() if any(needle in part for part in parts for needle in needles)}


def test_the_search_finds_what_is_there(contents: dict[str, list[bytes]]) -> None:
    """A value of a feature is in all that this test is about to clear: tables of the store, log, journal, event log."""
    found = _holding(contents, b"debt_consolidation")
    kinds = {"store/snapshots", "store/models", "journals/bank/decisions.db", "dagster/history", "store/reports"}
    assert {kind for kind in kinds if any(name.startswith(kind) for name in found)} == kinds
    assert any(name.endswith(".parquet") for name in found)
    assert _holding(contents, b"A241007-00001") >= {"journals/bank/decisions.db"}


def test_no_protected_value_is_anywhere_but_in_its_table_and_in_the_report_on_groups(
    ran: Bank, contents: dict[str, list[bytes]]
) -> None:
    groups = [name.encode() for name in (*SEXES.values(), *ORIGINS.values())]
    named = _holding(contents, *groups)
    evidence = {each.stem for each in (ran.place.home / "store" / "models").rglob("evidence/*.json")}
    reported = {ran.page(asset, TRAINED)["evidence_sha256"].text for asset in ("bias_report", "model_card")}
    rest = {name for name in named if not any(digest in name for digest in reported & evidence)}
    # What the bias report says of groups: counts and shares, on its own page, the card and the verdict.
    rest -= {name for name in rest if name.startswith("store/reports/bank/cards/")}
    in_events = {name for name in rest if name.startswith("dagster/history/")}
    assert rest == in_events, rest - in_events
    _only_in_events_of(ran, groups, {"bias_report", "model_card", "champion"})


def _only_in_events_of(bank: Bank, needles: list[bytes], assets: set[str]) -> None:
    for key in bank.instance.all_asset_keys():
        for record in bank.instance.fetch_materializations(key, limit=1_000).records:
            text = str(record.asset_materialization).encode()
            if any(needle in text for needle in needles):
                assert key.path[-1] in assets, key
    for run in bank.instance.get_runs():
        for entry in bank.instance.all_logs(run.run_id):
            if entry.step_key not in {f"{bank.spec.name}__{asset}" for asset in assets}:
                assert not any(needle in str(entry).encode() for needle in needles), entry


def test_no_age_of_anybody_is_anywhere_but_in_its_table(contents: dict[str, list[bytes]]) -> None:
    fraction = f"{AGE_FRACTION:.5f}".removeprefix("0").encode()
    needles = [fraction, *(each for age in _ages()[:40] for each in _numbers(age))]
    assert _holding(contents, *needles) == set()


def test_no_other_table_of_the_warehouse_holds_a_protected_value(bank_folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(bank_folder / "ran" / "place" / "warehouse.duckdb", tmp_path / "copy.duckdb"))
    holding = set()
    with duckdb.connect(str(path), read_only=True) as connection:
        tables = connection.execute(
            "select table_schema || '.' || table_name from information_schema.tables where table_type = 'BASE TABLE'"
        ).fetchall()
        for (table,) in tables:
            text = connection.execute(f"select * from {table}").df().to_csv()
            if "originzulu" in text or "sexzulu" in text or f"{AGE_FRACTION:.5f}".removeprefix("0") in text:
                holding.add(table)
    assert holding == {f"{NAME}.protected_attributes"}


def test_no_person_and_no_application_is_on_any_page(ran: Bank) -> None:
    """Not in metadata, not in checks, not in any message of a run."""
    ids = re.compile(r"A24\d{4}-\d{5}|P\d{9}")
    assert ids.search("A241007-00001")
    assert ids.search(str(applications_of(HISTORY)["applicant_id"].iloc[0]))
    for run in ran.instance.get_runs():
        for entry in ran.instance.all_logs(run.run_id):
            assert not ids.search(str(entry)), entry


def test_no_console_log_names_anybody(contents: dict[str, list[bytes]]) -> None:
    consoles = [name for name in contents if "/console/" in name]
    assert len(consoles) >= 4
    text = b"".join(part for name in consoles for part in contents[name])
    assert not re.search(rb"A24\d{4}-\d{5}|P\d{9}|zulu", text)


# --- Several systems in one code location ---


@pytest.fixture
def two(ran_copy: Bank) -> tuple[Bank, Bank]:
    """Two lenders on one feed, in one code location."""
    other = spec_at(ran_copy.home, name="branch")
    return ran_copy, Bank(ran_copy.home, ran_copy.instance, other)


def _state(bank: Bank) -> dict[str, Any]:
    tables = bank.warehouse.query(
        "select table_name from information_schema.tables where table_schema = ? and table_type = 'BASE TABLE'",
        [bank.spec.name],
    )["table_name"]
    rows = {
        table: bank.warehouse.query(f"select count(*) as n from {bank.spec.name}.{table}")["n"].iloc[0]
        for table in tables
    }
    return {
        "rows": rows, "log": bank.log.head(), "operations": bank.operations.head(), "serving": bank.serving(),
        "records": len(bank.history.records()), "versions": len(bank.registry.versions(bank.history.model)),
    }  # fmt: skip


def test_two_systems_in_one_location_touch_nothing_of_each_other(two: tuple[Bank, Bank]) -> None:
    first, second = two
    location = build_defs(first.place, [first.spec, second.spec])
    dg.Definitions.validate_loadable(location)
    before = _state(first)
    job = location.resolve_job_def("branch_ingest")
    done = job.execute_in_process(
        instance=first.instance, raise_on_error=False,
        tags={"dagster/asset_partition_range_start": WEEKS[0], "dagster/asset_partition_range_end": WEEKS[9]},
    )  # fmt: skip
    assert done.success
    assert second.serving() is None
    told = failure(second.materialize("decisions", period=FIRST_DECIDED))
    assert "branch/champion: there is no champion yet" in told
    # An incident and a freeze of the one are none of the other.
    incidents.open_incident(second.operations, system="branch", period=WEEKS[0], batch_id=None, rule="row_count")
    incidents.freeze(second.operations, by="mary", reason="audit")
    assert _state(first) == before
    assert incidents.open_incidents(first.operations) == []
    assert first.materialize("decisions", period=FIRST_DECIDED).success
    assert _state(second)["rows"]["batches"] == 10
    with pytest.raises(UserError, match="there is no champion yet to roll back from"):
        second.history.rollback(1, OFFICER, "it is another bank's")


# --- Applications without times ---

UNTIMED = {
    "name": "untimed",
    "data": {
        "timed": False,
        "numbered": True,
        "applications": {"kind": "files", "path": "loans.csv"},
        "outcomes": None,
    },
    "periods": {"cadence": "daily", "start": "2024-01-01", "end": None},
    "target": {"bad": ["default"], "good": ["paid"], "maturity_days": 0},
    "training": {"minimum_goods": 100, "minimum_bads": 40},
    "gates": {
        "calibration_error": 0.1,
        "overfit_gap": 0.2,
        "grade_level": 1e-4,
        "minimum_group": 20,
        "minimum_group_outcomes": 2,
    },
}


def _untimed_loans(folder: Path) -> None:
    """All that is known of the book's loans in one table, without ids and without times."""
    booked = pd.concat([BOOK.outcomes(day) for day in range(280)]).drop_duplicates("application_id")
    made = pd.concat([applications_of(number) for number in range(26)])
    loans = made.dropna(subset=["application_id"]).drop_duplicates("application_id").merge(booked, on="application_id")
    dropped = ["application_id", "applicant_id", "applied_at", "outcome_at"]
    loans.drop(columns=dropped).head(2_500).to_csv(folder / "loans.csv", index=False)


def test_applications_without_times_are_one_period_without_a_schedule_and_train(tmp_path: Path) -> None:
    _untimed_loans(tmp_path)
    with opened(tmp_path, **UNTIMED) as bank:
        assert Names(bank.spec).partitions.get_partition_keys() == ["2024-01-01"]
        location = bank.defs()
        assert not location.schedules
        specs = location.resolve_all_asset_specs()
        assert {spec.freshness_policy for spec in specs} == {None}
        bank.run("ingest", "2024-01-01")
        bank.run("train", "2024-01-01", by=TRAINER)
        record = bank.history.records()[-1]
        assert record.verdict == "proposed", record.reason
        bank.history.approve(record.candidate, OFFICER, "the card is read")
        bank.run("daily", "2024-01-01")
        assert bank.log.head().number > 2_000
        assert bank.page("drift_report", "2024-01-01")["verdict"].value == "not_assessed"
        told: Any = bank.tick()
        assert told.skip_message.startswith("T0_nothing_asks: ")
