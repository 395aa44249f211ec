"""When the system runs by itself: real ticks of schedule and sensor, on records that real runs left."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import duckdb
import pytest

from mlops_assets.credit_risk import incidents, watching
from mlops_assets.credit_risk.decision_assets import freshness_of
from mlops_assets.credit_risk.monitoring import DriftFinding
from mlops_assets.credit_risk.retraining import RULES
from mlops_assets.definitions import build_defs
from mlops_assets.environment import Environment
from tests.credit_risk.ran_world import (
    LAST_DECIDED,
    NAME,
    TRAINED,
    Bank,
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

STOCKHOLM = "Europe/Stockholm"
STARTS = {"daily": "2024-01-01", "weekly": "2024-01-01", "monthly": "2024-01-01"}
MINIMUM = 100  # new outcomes that a training needs, by default

# --- Schedule ---


def _location(place: Environment, **over: Any) -> dg.Definitions:
    return build_defs(place, [spec_at(Path(), **over)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment("embedded", tmp_path_factory.mktemp("automation") / "home")


@pytest.fixture(scope="module")
def schedules(place: Environment) -> Callable[..., dg.ScheduleDefinition]:
    made: dict[tuple[str, str], dg.ScheduleDefinition] = {}

    def of(cadence: str, zone: str = "UTC") -> dg.ScheduleDefinition:
        if (cadence, zone) not in made:
            periods = {"cadence": cadence, "start": STARTS[cadence], "timezone": zone, "end": None}
            location = _location(place, periods=periods)
            (name,) = [item.name for item in location.schedules or []]
            made[cadence, zone] = location.resolve_schedule_def(name)
        return made[cadence, zone]

    return of


def _asked(schedule: dg.ScheduleDefinition, moment: datetime) -> list[str | None]:
    context = dg.build_schedule_context(scheduled_execution_time=moment)
    return [request.partition_key for request in schedule.evaluate_tick(context).run_requests or []]


@pytest.mark.parametrize(
    ("cadence", "name", "cron"),
    [
        ("daily", f"{NAME}_every_day", "0 5 * * *"),
        ("weekly", f"{NAME}_every_week", "0 5 * * 1"),
        ("monthly", f"{NAME}_every_month", "0 5 1 * *"),
    ],
)
def test_a_schedule_follows_the_cadence(schedules: Any, cadence: str, name: str, cron: str) -> None:
    schedule = schedules(cadence, STOCKHOLM)
    assert (schedule.name, schedule.cron_schedule, schedule.execution_timezone) == (name, cron, STOCKHOLM)
    assert schedule.job_name == f"{NAME}_daily"


@pytest.mark.parametrize("zone", ["UTC", STOCKHOLM])
@pytest.mark.parametrize(
    ("cadence", "moment", "period"),
    [
        ("daily", "2024-03-01 05:00", "2024-02-29"),
        ("daily", "2024-03-31 05:00", "2024-03-30"),
        ("daily", "2024-04-01 05:00", "2024-03-31"),  # the day that lost an hour in Stockholm
        ("daily", "2024-10-28 05:00", "2024-10-27"),  # and the one that gained one
        ("weekly", "2024-04-01 05:00", "2024-03-25"),
        ("weekly", "2024-10-28 05:00", "2024-10-21"),
        ("weekly", "2024-10-30 23:00", "2024-10-21"),
        ("monthly", "2024-03-01 05:00", "2024-02-01"),
        ("monthly", "2025-01-01 05:00", "2024-12-01"),
    ],
)
def test_a_tick_asks_for_the_last_complete_period(
    schedules: Any, zone: str, cadence: str, moment: str, period: str
) -> None:
    at = datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(zone))
    assert _asked(schedules(cadence, zone), at) == [period]


@pytest.mark.parametrize("cadence", ["daily", "weekly", "monthly"])
def test_before_the_first_period_is_over_nothing_is_asked_for(schedules: Any, cadence: str) -> None:
    assert _asked(schedules(cadence), datetime(2024, 1, 1, 5, tzinfo=UTC)) == []


def test_nothing_starts_by_itself_before_somebody_switches_it_on(place: Environment) -> None:
    location = _location(place)
    (schedule,) = [location.resolve_schedule_def(each.name) for each in location.schedules or []]
    (sensor,) = list(location.sensors or [])
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert (sensor.name, sensor.default_status) == (f"{NAME}_retrain", dg.DefaultSensorStatus.STOPPED)


@pytest.mark.parametrize(
    ("cadence", "settings", "window"),
    [
        ("daily", {}, timedelta(days=1, hours=11)),
        ("daily", {"hour": 0, "late_after_hours": 0.5}, timedelta(days=1, minutes=30)),
        ("weekly", {}, timedelta(days=7, hours=11)),
        ("monthly", {"hour": 23, "late_after_hours": 120}, timedelta(days=31, hours=143)),
    ],
)
def test_decisions_are_late_some_hours_after_the_schedule(
    cadence: str, settings: dict[str, Any], window: timedelta
) -> None:
    policy: Any = freshness_of(spec_at(Path(), periods={"cadence": cadence, **settings}))
    assert policy.fail_window.to_timedelta() == window


def test_only_decisions_have_a_deadline(place: Environment) -> None:
    specs = _location(place).resolve_all_asset_specs()
    assert {spec.key.path[-1] for spec in specs if spec.freshness_policy is not None} == {"decisions"}


# --- The sensor: what asks, what forbids ---


@pytest.fixture
def quiet(ran_copy: Bank) -> Bank:
    """A bank in which nothing asks, but a training would have enough to learn from."""
    _label(ran_copy, new=MINIMUM, new_bads=10)
    return ran_copy


def _since(bank: Bank) -> str:
    latest = bank.registry.latest(bank.history.model)
    assert latest is not None
    return latest.tags["period"]


def _label(bank: Bank, *, period: str = LAST_DECIDED, **counts: int) -> None:
    """Replace what was counted of new outcomes, as a later watch of the same period would."""
    found = watching.kept(bank.root, bank.spec, "labels", period)
    assert found is not None
    watching.keep(bank.root, bank.spec, "labels", period, {**found[1], **counts})


def _drifted(bank: Bank, *, batches: tuple[str, ...] = ("b1", "b2")) -> None:
    """Let the last windows have drifted, each with a batch of its own."""
    found = watching.kept(bank.root, bank.spec, "drift", LAST_DECIDED)
    assert found is not None
    last = DriftFinding.from_dict(found[1]["findings"][-1]).to_dict()
    findings = [
        {**last, "status": "drifted", "batches": [batch], "first": f"2024-10-{20 + at}", "last": f"2024-10-{20 + at}"}
        for at, batch in enumerate(batches)
    ]
    watching.keep(bank.root, bank.spec, "drift", LAST_DECIDED, {**found[1], "findings": findings, "confirmed": True})


def _decayed(bank: Bank) -> None:
    found = watching.kept(bank.root, bank.spec, "realised", LAST_DECIDED)
    assert found is not None
    told = {"status": "decayed", "reasons": ["AUC 0.55 (0.51 to 0.59) lies below 0.6"]}
    watching.keep(bank.root, bank.spec, "realised", LAST_DECIDED, {**found[1], **told})


def _request(bank: Bank) -> None:
    incidents.request_retrain(bank.operations, by="mary", reason="a new product")


TRIGGERS: dict[str, tuple[Callable[[Bank], None], dict[str, Any]]] = {
    "T1_drift": (_drifted, {}),
    "T2_decay": (_decayed, {}),
    "T3_new_outcomes": (lambda bank: _label(bank, new=500, new_bads=50), {"new_outcomes": 500, "new_bads": 50}),
    "T4_age": (lambda bank: None, {"maximum_age_days": 30}),
    "T5_request": (_request, {}),
}


def _launched(bank: Bank, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """Create the run that a tick asked for, as the daemon does, and leave it in a status."""
    job = bank.defs().resolve_job_def(f"{NAME}_train")
    tags = {**request.tags, "dagster/run_key": str(request.run_key), "dagster/partition": str(request.partition_key)}
    return bank.instance.create_run_for_job(job, status=status, tags=tags)


def _only(bank: Bank) -> dg.RunRequest:
    answer: Any = bank.tick()
    assert answer.skip_message is None, answer.skip_message
    (request,) = answer.run_requests or []
    return request


def _skipped(bank: Bank, rule: str) -> str:
    answer: Any = bank.tick()
    assert not answer.run_requests
    assert answer.skip_message.startswith(f"{rule}: {RULES[rule]} "), answer.skip_message
    assert answer.skip_message.count(rule) == 1
    return str(answer.skip_message)


def test_when_nothing_asks_the_sensor_says_what_it_looked_at(quiet: Bank) -> None:
    told = _skipped(quiet, "T0_nothing_asks")
    assert "Drift of the latest window: none" in told
    assert "100 new outcomes" in told


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_each_trigger_asks_for_one_training_of_the_watched_period(quiet: Bank, trigger: str) -> None:
    fire, settings = TRIGGERS[trigger]
    fire(quiet)
    request = _only(quiet.with_spec(retraining=settings))
    fingerprint = request.tags[incidents.FINGERPRINT_TAG]
    assert request.partition_key == LAST_DECIDED
    assert request.run_key == f"{trigger}:{fingerprint}:{LAST_DECIDED}"
    assert request.tags["mlops_assets/trigger"] == trigger
    assert request.tags["mlops_assets/person"] == f"sensor {NAME}_retrain"
    # Asked, and nothing done: it is up to the run to answer.
    assert incidents.asks(quiet.operations) == []


def _incident(bank: Bank, batch: str = "2024-10-28-x") -> incidents.Incident:
    return incidents.open_incident(
        bank.operations, system=NAME, period=LAST_DECIDED, batch_id=batch, rule="median_ratio", column="annual_income"
    )


def _freeze(bank: Bank) -> None:
    incidents.freeze(bank.operations, by="mary", reason="audit until July")


def _rejected(bank: Bank) -> None:
    """Propose the candidate that lost, and let somebody reject it."""
    from mlops_assets.foundation.registry import Verdict

    other = next(each for each in bank.registry.versions(bank.history.model) if each.version != bank.serving())
    digest = bank.registry.attach_evidence(other, {"gates": [], "note": "of a test"})
    verdict = Verdict("proposed", ("a test",))
    record = bank.history.next_record(verdict, other, by="run", evidence_sha256=digest)
    bank.instance.report_runless_asset_event(dg.AssetMaterialization(bank.key("champion"), metadata=record.metadata()))
    bank.history.reject(other.version, "mary", "no")


GUARDS: dict[str, tuple[Callable[[Bank], Any], dict[str, Any], str]] = {
    "G1_incident": (_incident, {}, "Open: "),
    "G3_freeze": (_freeze, {}, "audit until July"),
    "G5_cool_down": (lambda bank: None, {"cool_down_days": 7}, "Until "),
    "G6_nothing_new": (lambda bank: _label(bank, new=MINIMUM - 1), {}, "99 new outcomes, 100 are needed"),
    "G7_budget": (lambda bank: None, {"budget": 1}, "1 in 30 days, 1 are allowed"),
    "G8_back_off": (_rejected, {}, "1 so far, until "),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_each_guard_holds_whatever_asks_and_says_why(quiet: Bank, guard: str) -> None:
    hold, settings, detail = GUARDS[guard]
    _decayed(quiet)
    _request(quiet)
    assert _only(quiet).tags["mlops_assets/trigger"] == "T2_decay"
    hold(quiet)
    assert detail in _skipped(quiet.with_spec(retraining=settings), guard)


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
def test_a_training_in_flight_is_waited_for(quiet: Bank, status: str) -> None:
    _request(quiet)
    run = _launched(quiet, _only(quiet), dg.DagsterRunStatus[status])
    assert run.run_id in _skipped(quiet, "G4_in_flight")


def test_a_training_that_somebody_picked_by_hand_is_in_flight_too(quiet: Bank) -> None:
    _request(quiet)
    job = quiet.defs().resolve_implicit_global_asset_job_def()
    picked = job.get_subset(asset_selection={quiet.key("scorecard")})
    run = quiet.instance.create_run_for_job(
        picked, status=dg.DagsterRunStatus.STARTED, asset_selection=frozenset({quiet.key("scorecard")})
    )
    assert run.run_id in _skipped(quiet, "G4_in_flight")


def test_another_systems_training_holds_nobody_up(quiet: Bank) -> None:
    _request(quiet)
    other = _location(quiet.place, name="other")
    quiet.instance.create_run_for_job(other.resolve_job_def("other_train"), status=dg.DagsterRunStatus.STARTED)
    assert _only(quiet).tags["mlops_assets/trigger"] == "T5_request"


# --- Asked once, and never lost ---


def test_a_run_that_trains_answers_the_request_and_the_evidence_does_not_ask_again(quiet: Bank) -> None:
    _request(quiet)
    request = _only(quiet)
    job = quiet.defs().resolve_job_def(f"{NAME}_train")
    done = job.execute_in_process(
        instance=quiet.instance, partition_key=request.partition_key, tags=request.tags, raise_on_error=False,
        asset_selection=[quiet.key("training_set")],
    )  # fmt: skip
    assert done.success
    (ask,) = incidents.asks(quiet.operations)
    assert (ask.trigger, ask.fingerprint) == ("T5_request", request.tags[incidents.FINGERPRINT_TAG])
    assert "asked for by request" in ask.reason
    assert len(ask.requests) == 1
    assert incidents.open_requests(quiet.operations) == []
    _skipped(quiet, "T0_nothing_asks")


def test_the_same_evidence_asks_once_for_a_training_that_began(quiet: Bank) -> None:
    _decayed(quiet)
    first = _only(quiet)
    assert _only(quiet).run_key == first.run_key
    incidents.note_training(quiet.operations, first.tags, LAST_DECIDED)
    assert "realised performance has decayed" in _skipped(quiet, "G9_already_asked")


@pytest.mark.parametrize("status", ["CANCELED", "FAILURE"])
def test_a_run_that_never_came_to_train_loses_no_ask(quiet: Bank, status: str) -> None:
    """Such as one that was cancelled in the queue, or whose machine died before the first step."""
    _request(quiet)
    first = _only(quiet)
    _launched(quiet, first, dg.DagsterRunStatus[status])
    assert len(incidents.open_requests(quiet.operations)) == 1
    second = _only(quiet)
    assert second.tags[incidents.FINGERPRINT_TAG] == first.tags[incidents.FINGERPRINT_TAG]
    # Dagster launches a key once and for all: the second try needs one of its own.
    assert second.run_key == f"{first.run_key}:2"


def test_a_launch_that_fails_in_the_daemon_loses_no_ask(quiet: Bank) -> None:
    _decayed(quiet)
    first = _only(quiet)  # and nothing comes of it
    again = _only(quiet)
    assert (again.run_key, again.tags) == (first.run_key, first.tags)


def test_a_training_that_an_incident_stopped_is_asked_for_again_after_it(quiet: Bank) -> None:
    _request(quiet)
    request = _only(quiet)
    incident = _incident(quiet)
    job = quiet.defs().resolve_job_def(f"{NAME}_train")
    done = job.execute_in_process(
        instance=quiet.instance, partition_key=request.partition_key, tags=request.tags, raise_on_error=False
    )
    assert f"no training while a data incident is open: {incident.id}" in failure(done)
    _skipped(quiet, "G1_incident")
    incidents.acknowledge(quiet.operations, incident.id, by="mary", reason="it is a new product", outcome="waived")
    again = _only(quiet)
    assert again.tags["mlops_assets/trigger"] == "T5_request"
    assert again.run_key == f"{request.run_key}:2"


def test_a_run_that_a_person_launched_notes_no_ask(quiet: Bank) -> None:
    assert quiet.materialize("training_set", period=LAST_DECIDED, by="mary").success
    assert incidents.asks(quiet.operations) == []


# --- Drift that data caused ---


def test_drift_of_batches_under_an_incident_never_asks(quiet: Bank) -> None:
    _drifted(quiet)
    assert _only(quiet).tags["mlops_assets/trigger"] == "T1_drift"
    incident = _incident(quiet, "b2")
    _skipped(quiet, "G1_incident")
    incidents.acknowledge(quiet.operations, incident.id, by="mary", reason="the file was wrong", outcome="resolved")
    assert "without these batches no drift is confirmed" in _skipped(quiet, "G2_drift_of_an_incident").lower()


def test_drift_of_a_batch_that_was_right_all_the_same_asks(quiet: Bank) -> None:
    _drifted(quiet)
    incident = _incident(quiet, "b1")
    incidents.acknowledge(quiet.operations, incident.id, by="mary", reason="incomes rose", outcome="waived")
    assert _only(quiet).tags["mlops_assets/trigger"] == "T1_drift"


# --- What a tick touches ---


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the warehouse open for writing in another process, as a run does."""
    import subprocess
    import sys

    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        yield
        holder.communicate()


def test_a_tick_does_not_wait_for_the_warehouse(quiet: Bank) -> None:
    _request(quiet)
    with _locked(quiet.place.warehouse_file):
        with pytest.raises(duckdb.IOException, match="lock"):
            duckdb.connect(str(quiet.place.warehouse_file))
        assert _only(quiet).tags["mlops_assets/trigger"] == "T5_request"


def test_a_tick_needs_no_warehouse_at_all(quiet: Bank) -> None:
    quiet.place.warehouse_file.unlink()
    _skipped(quiet, "T0_nothing_asks")
    assert not quiet.place.warehouse_file.exists()


def test_before_anything_was_watched_a_tick_says_what_it_waits_for(proposed: Bank) -> None:
    told: Any = proposed.tick()
    assert told.skip_message.startswith("T0_nothing_asks: Nothing has been watched yet")
    assert f"run {NAME}_daily or {NAME}_watch" in told.skip_message
    _request(proposed)
    assert "1 request(s) to train wait for that" in str(getattr(proposed.tick(), "skip_message", ""))


def test_the_sensor_starts_nothing_but_trainings(ran: Bank) -> None:
    sensor = ran.defs().resolve_sensor_def(f"{NAME}_retrain")
    assert [target.job_name for target in sensor.targets] == [f"{NAME}_train"]


def test_a_candidate_that_the_sensor_asked_for_only_becomes_a_proposal(bank_folder: Path, tmp_path: Path) -> None:
    """The asked run, from its tags to its verdict, with nothing but its own assets."""
    shutil.copytree(bank_folder / "proposed", tmp_path / "bank")
    with opened(tmp_path / "bank") as bank:
        tags = incidents.ask_tags(trigger="T5_request", fingerprint="f", reason="asked for by request r")
        bank.run("train", TRAINED, by=f"sensor {NAME}_retrain", tags=tags)
        assert bank.serving() is None
        assert [record.verdict for record in bank.history.records()] == ["proposed", "proposed"]
