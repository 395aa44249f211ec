"""What is in the wheel, that it works away from the checkout, and that the lock is complete."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contract.guarded import BIN, ROOT, call, guarded_env

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return next(folder.glob("mlops_assets-*.whl"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own, far from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _elsewhere(installed: Path, folder: Path, *command: str, **env: str) -> "subprocess.CompletedProcess[str]":
    settings = guarded_env(folder, **env)
    # The unpacked wheel comes before the checkout, which is installed as editable.
    settings["PYTHONPATH"] = f"{installed}:{settings['PYTHONPATH']}"
    return call(str(BIN / "python"), *command, cwd=folder, env=settings)


def test_the_wheel_holds_every_module(names: set[str]) -> None:
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mlops_assets").rglob("*.py")}
    assert there - names == set()


def test_the_wheel_holds_the_dbt_project_and_none_of_its_leavings(names: set[str]) -> None:
    inside = {name.removeprefix("mlops_assets/_dbt/") for name in names if name.startswith("mlops_assets/_dbt/")}
    files = [path.relative_to(ROOT / "dbt") for path in (ROOT / "dbt").rglob("*") if path.is_file()]
    left_behind = {"target", "logs", "dbt_packages"}
    assert inside == {path.as_posix() for path in files if path.parts[0] not in left_behind}


def test_the_wheel_holds_dagsters_settings(names: set[str]) -> None:
    assert "mlops_assets/_dagster.yaml" in names


def test_the_wheel_puts_nothing_else_at_the_top(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mlops_assets"}


def test_the_wheel_names_the_command_and_the_version(wheel: Path, names: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "mlops-assets = mlops_assets.cli:main" in archive.read(entry).decode()
    assert re.search(r"mlops_assets-\d+\.\d+\.\d+-py3-none-any\.whl$", wheel.name)


def test_the_installed_command_shows_its_help(installed: Path, tmp_path: Path) -> None:
    done = _elsewhere(installed, tmp_path, "-m", "mlops_assets.cli", "--help")
    assert done.returncode == 0
    assert {"approve", "demo", "playlist", "rollback", "run", "serve", "status", "trace"} <= set(done.stdout.split())


def test_the_installed_package_finds_its_own_files(installed: Path, tmp_path: Path) -> None:
    code = (
        "import mlops_assets; from mlops_assets.foundation.dbt_project import project_dir;"
        "print(mlops_assets.__file__); print(project_dir())"
    )
    done = _elsewhere(installed, tmp_path, "-c", code)
    assert done.stdout.split() == [
        str(installed / "mlops_assets" / "__init__.py"),
        str(installed / "mlops_assets" / "_dbt"),
    ]


def test_the_installed_package_gives_a_new_home_dagsters_settings(installed: Path, tmp_path: Path) -> None:
    done = _elsewhere(installed, tmp_path, "-m", "mlops_assets.cli", "status", MLOPS_ASSETS_HOME="home")
    assert done.returncode == 0, done.stderr
    assert "nothing has run yet" in done.stdout
    assert (tmp_path / "home/dagster/dagster.yaml").read_bytes() == (ROOT / "dagster.yaml").read_bytes()


def test_the_installed_package_ingests_with_its_own_dbt_project(installed: Path, tmp_path: Path) -> None:
    code = (
        "from mlops_assets import environment; from mlops_assets.definitions import build_defs;"
        "from mlops_assets.discover_weekly.spec import parse_spec; from pathlib import Path;"
        "from mlops_assets.running import Follow, open_instance, run_job;"
        "spec = parse_spec({'data': {'listens': {'kind': 'sample', 'users': 200, 'tracks': 600}},"
        " 'periods': {'start': '2024-01-01'}}, where='test', base=Path());"
        "place = environment.current(); job = build_defs(place, [spec]).resolve_job_def('discover_weekly_ingest')\n"
        "with open_instance(place) as instance:\n"
        "    run_job(job, instance, Follow(print, print), periods=['2024-01-01'], name='test')\n"
        "print(place.resources()['warehouse'].query('select count(*) as n from discover_weekly.interactions').n[0])"
    )
    done = _elsewhere(installed, tmp_path, "-c", code, MLOPS_ASSETS_HOME="home")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 1_000
    assert not list((installed / "mlops_assets" / "_dbt").rglob("*.log"))


def test_the_installed_package_loads_every_system_and_takes_applications_in(installed: Path, tmp_path: Path) -> None:
    code = (
        "from mlops_assets import environment, systems; from mlops_assets.definitions import build_defs;"
        "from mlops_assets.running import Follow, open_instance, run_job;"
        "place = environment.current(); defs = build_defs(place);"
        "job = defs.resolve_job_def('credit_risk_ingest')\n"
        "with open_instance(place) as instance:\n"
        "    run_job(job, instance, Follow(print, print), periods=['2023-09-01'], name='test')\n"
        "print({key.path[0] for key in defs.resolve_all_asset_keys()} == set(systems.SYSTEMS))\n"
        "table = 'credit_risk.accepted_applications'\n"
        "print(place.resources()['warehouse'].query(f'select count(*) as n from {table}').n[0])"
    )
    done = _elsewhere(installed, tmp_path, "-c", code, MLOPS_ASSETS_HOME="home")
    assert done.returncode == 0, done.stderr
    *_, every, rows = done.stdout.split()
    assert every == "True"
    assert int(rows) > 10


def _locked() -> list[tuple[Requirement, list[str]]]:
    """Every entry of the lock with the hashes of its files."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    entries = [line.split("--hash=") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(Requirement(name), [one.strip() for one in hashes]) for name, *hashes in entries]


def test_every_line_of_the_lock_is_one_version_with_its_hashes() -> None:
    locked = _locked()
    assert len(locked) > 100
    assert [str(entry) for entry, _ in locked if not re.fullmatch(r"==[^,*]+", str(entry.specifier))] == []
    assert [str(entry) for entry, _ in locked if entry.url] == []
    assert [str(entry) for entry, hashes in locked if not hashes] == []
    assert [one for _, hashes in locked for one in hashes if not re.fullmatch(r"sha256:[0-9a-f]{64}", one)] == []


def test_the_lock_names_no_place_to_fetch_from() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert re.findall(r"\w+://\S*", text) == []
    assert [line for line in lines if line.startswith("-")] == []


def test_the_lock_serves_the_declared_dependencies() -> None:
    locked: dict[str, list[str]] = {}
    for entry, _ in _locked():
        locked.setdefault(canonicalize_name(entry.name), []).append(next(iter(entry.specifier)).version)
    project = PYPROJECT["project"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    unserved = [
        str(item)
        for item in wanted
        if not any(item.specifier.contains(version) for version in locked.get(canonicalize_name(item.name), []))
    ]
    assert unserved == []
    assert len(wanted) > 30
