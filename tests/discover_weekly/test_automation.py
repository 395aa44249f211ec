"""When the system runs by itself: ticks of the schedule, the deadline, and what a team's change sets off."""

import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from mlops_assets.definitions import build_defs
from mlops_assets.discover_weekly import assets as assets_module
from mlops_assets.discover_weekly import automation
from mlops_assets.discover_weekly.names import Names, partitions_of
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation import provenance

STOCKHOLM = "Europe/Stockholm"
MODELS = {"collaborative_model", "content_model", "blend_model"}
WATCHED = {*MODELS, "evaluation", "champion"}
NOW = datetime(2024, 2, 1, 12, tzinfo=UTC)
LATEST = "2024-01-22"


def _schedule(place: Environment, spec: Spec) -> dg.ScheduleDefinition:
    location = build_defs(place, [spec])
    (name,) = [item.name for item in location.schedules or []]
    return location.resolve_schedule_def(name)


def _tick(schedule: dg.ScheduleDefinition, moment: datetime) -> list[str | None]:
    context = dg.build_schedule_context(scheduled_execution_time=moment)
    requests = schedule.evaluate_tick(context).run_requests or []
    return [request.partition_key for request in requests]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One environment for all definitions here: the dbt project is parsed once."""
    return Environment("embedded", tmp_path_factory.mktemp("automation") / "home")


@pytest.fixture(scope="module")
def utc_schedule(place: Environment, make_spec: Callable[..., Spec]) -> dg.ScheduleDefinition:
    return _schedule(place, make_spec())


@pytest.fixture(scope="module")
def stockholm_schedule(place: Environment, make_spec: Callable[..., Spec]) -> dg.ScheduleDefinition:
    return _schedule(place, make_spec(periods={"timezone": STOCKHOLM}))


@pytest.fixture(scope="module")
def monthly_schedule(place: Environment, make_spec: Callable[..., Spec]) -> dg.ScheduleDefinition:
    return _schedule(place, make_spec(periods={"cadence": "monthly", "start": "2024-02-01", "timezone": STOCKHOLM}))


def test_the_schedule_is_for_monday_at_six(utc_schedule: dg.ScheduleDefinition) -> None:
    assert (utc_schedule.cron_schedule, utc_schedule.execution_timezone) == ("0 6 * * 1", "UTC")


def test_the_schedule_runs_in_the_zone_of_the_listeners(stockholm_schedule: dg.ScheduleDefinition) -> None:
    assert (stockholm_schedule.cron_schedule, stockholm_schedule.execution_timezone) == ("0 6 * * 1", STOCKHOLM)


@pytest.mark.parametrize(
    ("moment", "week"),
    [
        ("2026-03-23 06:00", "2026-03-16"),
        ("2026-03-30 05:59", "2026-03-23"),
        ("2026-03-30 06:00", "2026-03-23"),  # the week that lost an hour in Stockholm
        ("2026-04-06 06:00", "2026-03-30"),
        ("2026-10-26 05:59", "2026-10-19"),
        ("2026-10-26 06:00", "2026-10-19"),  # the week that gained one
        ("2026-11-02 06:00", "2026-10-26"),
        ("2027-01-04 06:00", "2026-12-28"),
        ("2026-10-28 17:00", "2026-10-19"),  # a tick that comes days late still means the last whole week
    ],
)
@pytest.mark.parametrize("zone", ["UTC", STOCKHOLM])
def test_a_tick_asks_for_the_last_completed_week(
    utc_schedule: dg.ScheduleDefinition, stockholm_schedule: dg.ScheduleDefinition, zone: str, moment: str, week: str
) -> None:
    schedule = utc_schedule if zone == "UTC" else stockholm_schedule
    assert _tick(schedule, datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(zone))) == [week]


@pytest.mark.parametrize("sunday", ["2026-03-29", "2026-10-25"])
def test_a_week_with_a_clock_change_ends_at_local_midnight(
    stockholm_schedule: dg.ScheduleDefinition, sunday: str
) -> None:
    midnight = datetime.fromisoformat(sunday).replace(tzinfo=ZoneInfo(STOCKHOLM)) + timedelta(days=1)
    own = (datetime.fromisoformat(sunday) - timedelta(days=6)).date().isoformat()
    before = (datetime.fromisoformat(sunday) - timedelta(days=13)).date().isoformat()
    assert _tick(stockholm_schedule, (midnight.astimezone(UTC) - timedelta(seconds=1))) == [before]
    assert _tick(stockholm_schedule, midnight.astimezone(UTC)) == [own]


@pytest.mark.parametrize(
    ("moment", "month"),
    [
        ("2026-03-01 06:00", "2026-02-01"),
        ("2026-04-01 06:00", "2026-03-01"),
        ("2026-11-01 06:00", "2026-10-01"),
        ("2027-01-01 05:59", "2026-12-01"),
    ],
)
def test_a_monthly_tick_asks_for_the_last_completed_month(
    monthly_schedule: dg.ScheduleDefinition, moment: str, month: str
) -> None:
    assert monthly_schedule.cron_schedule == "0 6 1 * *"
    assert _tick(monthly_schedule, datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(STOCKHOLM))) == [month]


def test_a_tick_before_the_first_week_is_over_asks_for_nothing(utc_schedule: dg.ScheduleDefinition) -> None:
    assert _tick(utc_schedule, datetime(2024, 1, 4, 6, tzinfo=UTC)) == []


def test_nothing_starts_by_itself_before_somebody_switches_it_on(place: Environment, small_spec: Spec) -> None:
    location = build_defs(place, [small_spec])
    schedules = {
        item.name: location.resolve_schedule_def(item.name).default_status for item in location.schedules or []
    }
    sensors = {item.name: item.default_status for item in location.sensors or []}
    assert schedules == {"discover_weekly_every_monday": dg.DefaultScheduleStatus.STOPPED}
    assert sensors == {
        "discover_weekly_team_changes": dg.DefaultSensorStatus.STOPPED,
        "discover_weekly_deliver_anyway": dg.DefaultSensorStatus.STOPPED,
    }


@pytest.mark.parametrize(
    ("periods", "cron", "window"),
    [
        ({}, "0 12 * * 1", timedelta(hours=12)),
        ({"hour": 6, "late_after_hours": 1.5}, "30 7 * * 1", timedelta(hours=7, minutes=30)),
        ({"hour": 23, "late_after_hours": 6}, "0 5 * * 2", timedelta(hours=29)),
        ({"hour": 23, "late_after_hours": 120}, "0 23 * * 6", timedelta(hours=143)),
        ({"cadence": "monthly", "start": "2024-02-01", "hour": 20}, "0 2 2 * *", timedelta(hours=26)),
    ],
)
def test_playlists_are_late_some_hours_after_the_schedule(
    make_spec: Callable[..., Spec], periods: dict[str, Any], cron: str, window: timedelta
) -> None:
    policy: Any = automation.freshness_of(make_spec(periods={**periods, "timezone": STOCKHOLM}))
    assert (policy.deadline_cron, policy.lower_bound_delta, policy.timezone) == (cron, window, STOCKHOLM)


def test_the_deadline_is_on_what_readers_see(place: Environment, small_spec: Spec) -> None:
    with_policy = {
        spec.key.path[-1]
        for spec in build_defs(place, [small_spec]).resolve_all_asset_specs()
        if spec.freshness_policy is not None
    }
    assert with_policy == {"published_playlists"}


class World:
    """An instance on which every asset of the small system is materialized, and the conditions are evaluated."""

    def __init__(self, place: Environment, spec: Spec) -> None:
        self.place, self.spec = place, spec
        self.names, self.instance = Names(spec), dg.DagsterInstance.ephemeral()
        self.cursor: Any = None

    def make(self, *assets: str, partition: str | None = LATEST) -> None:
        for name in assets:
            event = dg.AssetMaterialization(self.names.key(name), partition=partition)
            self.instance.report_runless_asset_event(event)

    def make_everything(self) -> None:
        self.make("tracks", "users", "stg_tracks", "stg_users", "track_features", partition=None)
        for partition in partitions_of(self.spec).get_partition_keys(current_time=NOW):
            self.make("listens", "stg_listens", "interactions", "training_set", "batch_inputs", partition=partition)
            for name in ("collaborative_model", "content_model", "blend_model", "evaluation", "champion"):
                self.make(name, partition=partition)
            self.make("playlists", "published_playlists", partition=partition)

    def tick(self) -> set[tuple[str, str | None]]:
        location = build_defs(self.place, [self.spec])
        result = dg.evaluate_automation_conditions(
            location, self.instance, evaluation_time=NOW, cursor=self.cursor, asset_selection=dg.AssetSelection.all()
        )
        self.cursor = result.cursor
        return {
            (key.path[-1], partition)
            for key in (self.names.key(name) for name in _all_assets(location))
            for partition in result.get_requested_partitions(key)
        }


def _all_assets(location: dg.Definitions) -> list[str]:
    return sorted(spec.key.path[-1] for spec in location.resolve_all_asset_specs())


@pytest.fixture
def world(place: Environment, small_spec: Spec) -> Iterator[World]:
    made = World(place, small_spec)
    with made.instance:
        made.make_everything()
        assert made.tick() == set(), "the first look at a finished system asks for nothing"
        yield made


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Change the source of a logic module, as code versions see it."""
    package = Path(assets_module.__file__).parent
    # The folder that code versions are made from.
    folder = tmp_path / "discover_weekly"
    folder.mkdir()
    for path in package.glob("*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)

    def mark(module: str) -> None:
        with (folder / f"{module}.py").open("a", encoding="utf-8") as file:
            file.write("\n# another way to do it\n")

    return mark


def _latest(*assets: str) -> set[tuple[str, str | None]]:
    return {(asset, LATEST) for asset in assets}


def test_another_teams_change_asks_for_its_model_and_what_follows(world: World, change: Callable[[str], None]) -> None:
    change("content")
    assert world.tick() == _latest("content_model", "blend_model", "evaluation", "champion")


def test_a_change_is_asked_for_once(world: World, change: Callable[[str], None]) -> None:
    change("content")
    asked = world.tick()
    assert asked
    assert world.tick() == set(), "asked for, not made yet"
    world.make(*[asset for asset, _ in asked])
    assert world.tick() == set(), "made"
    assert world.tick() == set()


def test_a_second_change_is_asked_for_again(world: World, change: Callable[[str], None]) -> None:
    change("content")
    world.make(*[asset for asset, _ in world.tick()])
    world.tick()
    change("content")
    assert world.tick() == _latest("content_model", "blend_model", "evaluation", "champion")


@pytest.mark.parametrize(
    ("module", "asked"),
    [
        ("collaborative", WATCHED),
        ("blend", {"blend_model", "evaluation", "champion"}),
        ("evaluation", {"evaluation", "champion"}),
        ("playlists", set()),
    ],
)
def test_each_teams_change_reaches_what_is_built_on_it(
    world: World, change: Callable[[str], None], module: str, asked: set[str]
) -> None:
    change(module)
    assert world.tick() == _latest(*asked)


def test_a_whole_run_by_the_schedule_asks_for_nothing_more(world: World) -> None:
    world.make("tracks", "users", "stg_tracks", "stg_users", "track_features", partition=None)
    world.make("listens", "stg_listens", "interactions", "training_set", "batch_inputs")
    world.make("collaborative_model", "content_model", "blend_model", "evaluation", "champion")
    world.make("playlists", "published_playlists")
    assert world.tick() == set()


def test_nothing_is_asked_for_while_something_it_needs_was_never_made(
    place: Environment, small_spec: Spec, change: Callable[[str], None]
) -> None:
    world = World(place, small_spec)
    with world.instance:
        world.make("collaborative_model", "content_model", "blend_model")
        world.tick()
        change("content")
        assert world.tick() == set()


def test_a_look_in_the_middle_of_a_run_does_not_ask_for_what_the_run_will_make(small_spec: Spec) -> None:
    names = Names(small_spec)
    common: dict[str, Any] = {**names.by_period, "automation_condition": automation.on_team_change()}
    during: list[int] = []
    cursor: list[Any] = [None]

    def look() -> int:
        made = [first, second, third]
        result = dg.evaluate_automation_conditions(
            made, instance, dg.AssetSelection.assets(*made), evaluation_time=NOW, cursor=cursor[0]
        )
        cursor[0] = result.cursor
        return result.total_requested

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)

        @dg.asset(**common)
        def first() -> None: ...

        @dg.asset(deps=[first], **common)
        def second() -> None:
            during.append(look())

        @dg.asset(deps=[first, second], **common)
        def third() -> None:
            during.append(look())

    with dg.DagsterInstance.ephemeral() as instance:
        look()
        done = dg.materialize([first, second, third], instance=instance, partition_key=LATEST)
        assert done.success
        assert during == [0, 0]
        assert look() == 0
