"""Nothing phones home: a whole pipeline in a process whose every outside connection is refused and recorded."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.contract.guarded import BIN, ROOT, GuardedWorld, call, guarded_env, guarded_world
from tests.contract.lender import FIRST, Lender, lender

SWITCHES = {
    "DO_NOT_TRACK": "true",
    "WHYLOGS_NO_ANALYTICS": "1",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    "EVIDENTLY_DISABLE_TELEMETRY": "1",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> GuardedWorld:
    return guarded_world(tmp_path_factory)


def _python(folder: Path, code: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return call(str(BIN / "python"), "-c", code, cwd=folder, env=guarded_env(folder, **more))


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('203.0.113.1', 443), 1)",
        "import socket; socket.getaddrinfo('telemetry.example', 443)",
        "import urllib.request; urllib.request.urlopen('http://telemetry.example')",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('203.0.113.1', 53))",
    ],
)
def test_the_guard_itself_stops_and_records_what_goes_outside(tmp_path: Path, code: str) -> None:
    done = _python(tmp_path, code)
    assert done.returncode != 0
    assert "attempt socket." in (tmp_path / "guard.log").read_text()


def test_the_guard_lets_this_machine_talk_to_itself(tmp_path: Path) -> None:
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname(), 5)"
    assert _python(tmp_path, code).returncode == 0
    assert "attempt" not in (tmp_path / "guard.log").read_text()


def test_a_whole_pipeline_needs_no_connection(world: GuardedWorld) -> None:
    assert world.done.returncode == 0, world.done.stdout + world.done.stderr


def test_a_whole_pipeline_tries_no_connection(world: GuardedWorld) -> None:
    assert [line for line in world.log if line.startswith("attempt")] == []


def test_the_guard_was_in_dbt_as_well(world: GuardedWorld) -> None:
    processes = [line for line in world.log if line.startswith("process")]
    assert any(re.search(r"/dbt\b", line) for line in processes)


@pytest.fixture(scope="module")
def credit(tmp_path_factory: pytest.TempPathFactory) -> Lender:
    return lender(tmp_path_factory)


def test_a_credit_model_from_its_data_to_a_served_decision_needs_no_connection(credit: Lender) -> None:
    assert credit.done.returncode == 0, credit.done.stdout + credit.done.stderr
    assert credit.answer["decided_by"]["version"] == FIRST


def test_a_credit_model_from_its_data_to_a_served_decision_tries_no_connection(credit: Lender) -> None:
    assert [line for line in credit.log if line.startswith("attempt")] == []


def test_the_guard_was_in_the_service_as_well(credit: Lender) -> None:
    assert any(line.endswith("mlops-assets serve") for line in credit.log if line.startswith("process"))


def test_loading_the_code_location_tries_no_connection(tmp_path: Path, world: GuardedWorld) -> None:
    env = guarded_env(tmp_path, MLOPS_ASSETS_HOME=str(world.home), DAGSTER_HOME=str(tmp_path))
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    done = call(str(BIN / "dagster"), "definitions", "validate", cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    assert "attempt" not in (tmp_path / "guard.log").read_text()


def test_an_import_switches_every_dependencys_telemetry_off(tmp_path: Path) -> None:
    code = "import mlops_assets, os, json, sys; print(json.dumps({n: os.environ.get(n) for n in sys.argv[1:]}))"
    env = {name: value for name, value in guarded_env(tmp_path).items() if name not in SWITCHES}
    done = call(str(BIN / "python"), "-c", code, *SWITCHES, cwd=tmp_path, env=env)
    assert {name: f'"{name}": "{value}"' in done.stdout for name, value in SWITCHES.items()} == dict.fromkeys(
        SWITCHES, True
    )


def test_a_switch_that_the_user_set_stays(tmp_path: Path) -> None:
    code = "import mlops_assets, os; print(os.environ['DO_NOT_TRACK'])"
    assert _python(tmp_path, code, DO_NOT_TRACK="false").stdout.strip() == "false"


def test_dagsters_own_telemetry_is_off_in_a_new_home(world: GuardedWorld) -> None:
    settings = (world.home / "dagster" / "dagster.yaml").read_text(encoding="utf-8")
    assert re.search(r"telemetry:\s+enabled: false", settings)
