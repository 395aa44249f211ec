"""The `mlops-assets` command: what it does, and how it says what a person can mend."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from mlops_assets import __version__
from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ChampionHistory
from mlops_assets.running import Follow, open_instance, run_job
from tests.commands import invoke, own_settings, told
from tests.conftest import SMALL, WEEKS, merged
from tests.contract.guarded import BIN, GuardedWorld, call, guarded_env, guarded_world

FIRST, LAST = GuardedWorld.weeks
PLAYLISTS = dg.AssetKey(["discover_weekly", "playlists"])


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own_settings(monkeypatch, tmp_path)


def write_spec(folder: Path, **over: Any) -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(merged(SMALL, over)), encoding="utf-8")
    return str(path)


@pytest.fixture
def home(world: GuardedWorld, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The finished world, for commands that only read."""
    monkeypatch.setenv("MLOPS_ASSETS_HOME", str(world.home))
    return Environment("embedded", world.home)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> GuardedWorld:
    made = guarded_world(tmp_path_factory)
    assert made.done.returncode == 0, made.done.stderr
    return made


@pytest.fixture
def parsed(world: GuardedWorld, tmp_path: Path) -> None:
    """The test's own home, with the dbt project parsed already."""
    world.lend_dbt(tmp_path / "home")


# --- usage ---------------------------------------------------------------------------------------------------------


COMMANDS = {
    "approve", "demo", "impact", "incidents", "playlist", "production-at", "proposals", "reject", "replay", "reports",
    "rescore", "rollback", "run", "serve", "status", "trace", "training",
}  # fmt: skip


def test_help_names_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert {line.split()[0] for line in result.output.partition("Commands:")[2].splitlines() if line} == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {command}")


def test_the_version_is_the_packages() -> None:
    assert __version__ in invoke("--version").output


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("playlist",),
        ("run",),
        ("run", "own.yaml", "--publish", "0"),
        ("run", "own.yaml", "--publish", "-1"),
        ("demo", "--users", "many"),
        ("rollback", "discover_weekly", "--to", "first", "--reason", "why"),
        ("rollback", "discover_weekly", "--to", "1"),
    ],
)
def test_wrong_usage_is_answered_with_usage(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert not Path("home").exists()


def test_the_installed_command_ends_with_the_status_of_its_errors(tmp_path: Path) -> None:
    env = guarded_env(tmp_path, MLOPS_ASSETS_HOME="home")
    done = call(str(BIN / "mlops-assets"), "playlist", "u0000001", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error discover_weekly: no playlists are published for any period.")
    assert "Traceback" not in done.stderr


# --- before anything ran -------------------------------------------------------------------------------------------


def test_status_of_an_empty_home_says_where_to_start() -> None:
    result = invoke("status")
    assert (result.exit_code, result.output.strip()) == (0, "nothing has run yet: try mlops-assets demo")


def test_status_of_a_system_that_never_ran_is_a_mistake() -> None:
    assert "no such system has run: films" in told(invoke("status", "--system", "films"))


def test_a_playlist_before_the_first_run_says_how_to_get_one() -> None:
    message = told(invoke("playlist", "u0000001"))
    assert "published periods: none; run `mlops-assets demo`" in message


def test_a_rollback_before_the_first_champion_is_refused() -> None:
    message = told(invoke("rollback", "discover_weekly", "--to", "1", "--reason", "why"))
    assert message == "discover_weekly/champion: there is no champion yet to roll back from."


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MLOPS_ASSETS_ENV", "prod", "unknown environment 'prod'. Remedy: set it to one of: embedded."),
        ("MLOPS_ASSETS_HOME", __file__, "is no folder"),
    ],
)
@pytest.mark.parametrize("command", [("status",), ("playlist", "u0000001"), ("demo",)])
def test_a_wrong_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv(name, value)
    message = told(invoke(*command))
    assert message.startswith(name)
    assert said in message


# --- specs that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("parsed")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: [\n", "cannot be read as YAML"),
        (b"name: \xff\n", "cannot be read as YAML"),
        (b"- 1\n", "holds no settings"),
        (b"nam: x\n", "1 setting(s) cannot be used: nam:"),
        (b"nam: x\nplaylist: {length: 0}\nperiods: {hour: 25}\n", "3 setting(s) cannot be used"),
        (b"periods: {timezone: Mars/Olympus}\n", "'Mars/Olympus' is no time zone"),
        (b"risk: {data: low, algorithm: high, output: low}\n", "gate 'calibration' is missing"),
    ],
)
def test_a_spec_that_cannot_be_used_is_one_message(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "own.yaml").write_bytes(content)
    assert said in told(invoke("run", "own.yaml"))


def test_a_missing_spec_is_named() -> None:
    message = told(invoke("run", "nowhere.yaml"))
    assert message == "nowhere.yaml: there is no such file. Remedy: give the path of a spec's YAML file."


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (("--to", "2031-01-06"), "no such periods: the first to 2031-01-06"),
        (("--from", "2024-01-02"), "no such periods: 2024-01-02 to the last"),
        (("--from", "2024-01-15", "--to", "2024-01-08"), "no such periods: 2024-01-15 to 2024-01-08"),
        (("--from", "soon"), "no such periods: soon to the last"),
    ],
)
def test_a_period_that_does_not_exist_is_answered_with_those_that_do(
    tmp_path: Path, span: tuple[str, ...], said: str
) -> None:
    message = told(invoke("run", write_spec(tmp_path, periods={"end": "2024-02-05"}), *span))
    assert said in message
    assert "complete periods are 2024-01-01 to 2024-01-29; a period is named by its first day" in message


def test_a_first_period_that_has_not_ended_is_explained(tmp_path: Path) -> None:
    message = told(invoke("run", write_spec(tmp_path, periods={"start": "2199-01-07"})))
    assert "2199-01-07 has not ended yet" in message


def test_the_demo_wants_enough_weeks_and_users() -> None:
    assert "3 weeks are too few" in told(invoke("demo", "--weeks", "3"))
    assert "Choose users between 200 and 1,000,000" in told(invoke("demo", "--users", "10"))
    assert not Path("home").exists()


# --- data that cannot be used --------------------------------------------------------------------------------------


LISTENS = "user,track,when\nu1,t1,2024-01-02T10:00:00Z\n"


def _with_source(tmp_path: Path, source: dict[str, Any]) -> str:
    settings = {**merged(SMALL, {"name": "films"}), "data": {"listens": source}}
    path = tmp_path / "films.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def _run_films(tmp_path: Path, content: bytes | None, **columns: str) -> str:
    if content is not None:
        (tmp_path / "listens.csv").write_bytes(content)
    named = {"user_id": "user", "track_id": "track", "listened_at": "when", **columns}
    spec = _with_source(tmp_path, {"kind": "files", "path": "listens.csv", "columns": named})
    return told(invoke("run", spec, "--to", "2024-01-01"))


@pytest.mark.usefixtures("parsed")
def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    message = _run_films(tmp_path, None)
    assert "no file matches this path" in message
    assert str(tmp_path / "listens.csv") in message
    assert "Run the same command again when the cause is mended" in message


@pytest.mark.usefixtures("parsed")
def test_a_missing_column_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    message = _run_films(tmp_path, LISTENS.replace("track", "trak").encode())
    assert "films__listens: " in message
    assert "'track'" in message
    assert "'trak'" in message


@pytest.mark.usefixtures("parsed")
def test_a_wrong_encoding_is_named_with_the_file(tmp_path: Path) -> None:
    message = _run_films(tmp_path, LISTENS.replace("u1", "Åsa").encode("latin-1"))
    assert str(tmp_path / "listens.csv") in message
    assert "encoding" in message


@pytest.mark.usefixtures("parsed")
def test_a_mistake_in_the_data_is_not_tried_again(tmp_path: Path) -> None:
    _run_films(tmp_path, None)
    with open_instance(Environment("embedded", tmp_path / "home")) as instance:
        (run,) = instance.get_run_records()
        kinds = [entry.dagster_event.event_type_value for entry in instance.all_logs(run.dagster_run.run_id)
                 if entry.dagster_event is not None]  # fmt: skip
    assert kinds.count("STEP_FAILURE") >= 1
    assert "STEP_UP_FOR_RETRY" not in kinds


@pytest.mark.usefixtures("parsed")
def test_a_system_whose_first_run_failed_has_a_status(tmp_path: Path) -> None:
    _run_films(tmp_path, None)
    result = invoke("status")
    assert result.exit_code == 0
    assert "films" in result.output
    assert "none yet" in result.output


# --- running jobs --------------------------------------------------------------------------------------------------


def _failing_job(error: Exception) -> dg.JobDefinition:
    partitions = dg.StaticPartitionsDefinition(["p"])

    @dg.asset(partitions_def=partitions)
    def one() -> None:
        raise error

    @dg.asset(partitions_def=partitions)
    def two() -> None:
        raise error

    job = dg.define_asset_job("job", [one, two])
    return dg.Definitions(assets=[one, two], jobs=[job]).resolve_job_def("job")


def _message_of_failure(tmp_path: Path, error: Exception) -> str:
    follow = Follow(lambda step, seconds: None, lambda text: None)
    with open_instance(Environment("embedded", tmp_path / "home")) as instance, pytest.raises(UserError) as caught:
        run_job(_failing_job(error), instance, follow, periods=["p"], name="films")
    return str(caught.value)


def test_a_mistake_is_told_once_for_all_steps_and_not_by_the_librarys_error_behind_it(tmp_path: Path) -> None:
    mistake = UserError("is empty", where="listens.csv", remedy="give rows.")
    mistake.__cause__ = ValueError("EOF at 0")
    message = _message_of_failure(tmp_path, mistake)
    assert "\n  one, two: listens.csv: is empty. Remedy: give rows.\n" in message
    assert "EOF at 0" not in message


def test_another_error_is_told_with_its_kind(tmp_path: Path) -> None:
    assert "one, two: ZeroDivisionError: nothing to divide" in _message_of_failure(
        tmp_path, ZeroDivisionError("nothing to divide")
    )


# --- a finished world ----------------------------------------------------------------------------------------------


def test_a_run_shows_what_it_did(world: GuardedWorld) -> None:
    shown = world.done.stdout
    assert "discover_weekly: 5 period(s), 2024-01-01 to 2024-01-29" in shown
    assert "history 2024-01-01 to 2024-01-15" in shown
    assert shown.count("done published_playlists") == 2
    assert "champion" in shown
    assert world.done.stderr == ""


def test_a_run_keeps_what_dbt_said_apart(world: GuardedWorld) -> None:
    logs = list((world.home / "dagster" / "console").glob("*.log"))
    assert len(logs) == 3
    assert "dbt" not in world.done.stdout


def test_status_shows_champion_verdict_and_publication(home: Environment) -> None:
    result = invoke("status")
    assert result.exit_code == 0
    assert "version 2 since " in result.output
    assert "promoted (candidate 2)" in result.output
    assert LAST in result.output
    assert result.output == invoke("status", "--system", "discover_weekly").output


def test_status_of_an_unknown_system_names_the_known_ones(home: Environment) -> None:
    assert "name one of discover_weekly" in told(invoke("status", "--system", "discover_weakly"))


def test_a_playlist_is_printed_in_order(home: Environment) -> None:
    result = invoke("playlist", "u0000001")
    assert result.exit_code == 0
    cells = [line.split("│")[1].strip() for line in result.output.splitlines() if line.startswith("│")]
    ranks = [int(cell) for cell in cells]
    assert ranks == list(range(1, 11))
    assert f"u0000001, discover_weekly after {LAST}" in result.output
    assert "version 2, run " in result.output


def test_last_weeks_playlist_is_still_there(home: Environment) -> None:
    result = invoke("playlist", "u0000001", "--week", FIRST)
    assert f"after {FIRST}" in result.output
    assert "version 1, run " in result.output


def test_an_unknown_user_is_named(home: Environment) -> None:
    message = told(invoke("playlist", "u9999999"))
    assert message.startswith(f"discover_weekly {LAST}: 'u9999999' has no playlist.")


@pytest.mark.parametrize("week", ["2020-01-06", WEEKS[0], "soon"])
def test_an_unpublished_week_is_answered_with_the_published_ones(home: Environment, week: str) -> None:
    message = told(invoke("playlist", "u0000001", "--week", week))
    assert f"no playlists are published for {week}" in message
    assert f"published periods: {FIRST}, {LAST}" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("discover_weekly", "--to", "99", "--reason", "why"), "has no version 99. Remedy: known versions: 1, 2."),
        (("discover_weekly", "--to", "2", "--reason", "why"), "version 2 is the champion already"),
        (("discover_weekly", "--to", "1", "--reason", " "), "the reason is empty"),
        (("discover_weekly", "--to", "1", "--reason", "why", "--by", " "), "the name of who decides is empty"),
        (("films", "--to", "1", "--reason", "why"), "films/champion: there is no champion yet"),
    ],
)
def test_a_rollback_that_cannot_be_is_refused_and_moves_nothing(
    home: Environment, arguments: tuple[str, ...], said: str
) -> None:
    assert said in told(invoke("rollback", *arguments))
    assert "version 2 since " in invoke("status").output


# --- what changes the world: in this order, on one copy of it ------------------------------------------------------


@pytest.fixture(scope="module")
def used(world: GuardedWorld) -> Iterator[GuardedWorld]:
    """The world after all that only reads it; its paths are in its databases, so a copy elsewhere would not do."""
    kept = world.folder.with_name("kept")
    shutil.copytree(world.home, kept)
    yield world
    shutil.rmtree(world.home)
    kept.rename(world.home)


@pytest.fixture
def used_home(used: GuardedWorld, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setenv("MLOPS_ASSETS_HOME", str(used.home))
    return Environment("embedded", used.home)


def _batches(home: Environment) -> list[dict[str, Any]]:
    with open_instance(home) as instance:
        records = instance.fetch_materializations(PLAYLISTS, limit=10).records
        return [{name: value.value for name, value in record.asset_materialization.metadata.items()}
                for record in records if record.asset_materialization]  # fmt: skip


def test_a_second_run_of_the_same_period_computes_no_shard_again(used: GuardedWorld, used_home: Environment) -> None:
    first = _batches(used_home)
    result = invoke("run", str(used.spec), "--from", LAST, "--to", LAST)
    assert result.exit_code == 0, result.output
    again = _batches(used_home)
    assert len(again) == len(first) + 1
    assert (again[0]["shards_resumed"], again[0]["shards_computed"]) == (3, 0)
    assert again[0]["manifest_sha256"] == first[0]["manifest_sha256"]


def test_a_second_run_of_the_same_period_keeps_the_verdict(used_home: Environment) -> None:
    with open_instance(used_home) as instance:
        models: Any = used_home.resources()["models"]
        history = ChampionHistory(instance, "discover_weekly", models.open(), "discover_weekly.blend_model")
        assert [(item.verdict, item.version) for item in history.records()] == [
            ("promoted", 1), ("promoted", 2), ("kept", 2),
        ]  # fmt: skip
        assert history.verify() == []


def test_a_rollback_makes_the_earlier_champion_serve_again(used_home: Environment) -> None:
    result = invoke("rollback", "discover_weekly", "--to", "1", "--reason", "lists were worse [really]", "--by", "anna")
    assert result.exit_code == 0, result.output
    assert "discover_weekly: version 2 -> 1; the next batch uses it." in result.output
    shown = invoke("status").output
    assert "version 1 since " in shown
    assert "lists were worse [really]" in shown


def test_a_failed_run_hides_neither_checks_nor_playlists(used: GuardedWorld, used_home: Environment) -> None:
    before = invoke("status").output
    spec = used.folder / "broken.yaml"
    broken = merged(SMALL, {})
    broken["data"] = {"listens": {"kind": "files", "path": "gone.csv", "columns": {"user_id": "user"}}}
    spec.write_text(yaml.safe_dump(broken), encoding="utf-8")
    told(invoke("run", str(spec), "--from", LAST, "--to", LAST))
    assert invoke("status").output == before
    assert invoke("playlist", "u0000001").exit_code == 0
