"""What loading the code location costs, and that the plain command line finds it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.contract.guarded import BIN, ROOT, GuardedWorld, call, guarded_env, guarded_world

# Every step process would pay for these again; they are imported where they are used.
HEAVY = (
    "sklearn", "scipy", "implicit", "numba", "whylogs", "evidently", "shap", "lightgbm", "mlflow", "matplotlib",
    "pandera", "snowflake.connector", "boto3", "botocore", "dagster_aws", "dagster_snowflake", "s3fs", "threadpoolctl",
    "fairlearn", "fastapi", "starlette", "uvicorn", "prometheus_client",
)  # fmt: skip

_BUILD = """
import sys
from pathlib import Path
import mlops_assets.definitions as location
after_import = set(sys.modules)
from dagster import Definitions
Definitions.validate_loadable(location.build_defs())
print("import", *[name for name in sys.argv[1:] if name in after_import])
print("build", *[name for name in sys.argv[1:] if name in sys.modules])
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> GuardedWorld:
    return guarded_world(tmp_path_factory)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, world: GuardedWorld) -> dict[str, list[str]]:
    """Which of the watched modules are loaded after importing the code location, and after building it."""
    folder = tmp_path_factory.mktemp("loading")
    watched = [*HEAVY, "dagster_dbt", "dagster_duckdb", "duckdb", "dbt", "pandas"]
    env = guarded_env(folder, MLOPS_ASSETS_HOME=str(world.home))
    done = call(str(BIN / "python"), "-c", _BUILD, *watched, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    return {
        line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith(("import", "build"))
    }


def test_building_the_definitions_loads_no_heavy_library(loaded: dict[str, list[str]]) -> None:
    assert [name for name in loaded["build"] if name in HEAVY] == []


def test_importing_the_module_loads_no_integration(loaded: dict[str, list[str]]) -> None:
    assert [name for name in loaded["import"] if name != "pandas"] == []


def test_the_watch_would_see_a_library_that_is_loaded(loaded: dict[str, list[str]]) -> None:
    assert {"pandas", "dagster_dbt", "dagster_duckdb"} <= set(loaded["build"])


def _validate(folder: Path, *more: str, **env: str) -> "subprocess.CompletedProcess[str]":
    home = folder / "dagster"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    settings = guarded_env(folder, DAGSTER_HOME=str(home), **env)
    return call(str(BIN / "dagster"), "definitions", "validate", *more, cwd=ROOT, env=settings)


def test_dagster_validates_the_checkout_through_its_workspace(tmp_path: Path) -> None:
    done = _validate(tmp_path, MLOPS_ASSETS_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location mlops_assets" in done.stdout + done.stderr


def test_a_mistake_in_the_settings_is_named_where_dagster_shows_it(tmp_path: Path, world: GuardedWorld) -> None:
    world.lend_dbt(tmp_path / "home")
    spec = tmp_path / "risky.yaml"
    spec.write_text("risk: {data: low, algorithm: high, output: low}\n", encoding="utf-8")
    done = _validate(tmp_path, MLOPS_ASSETS_HOME=str(tmp_path / "home"), MLOPS_ASSETS_SPECS=str(spec))
    assert done.returncode != 0
    assert "gate 'calibration' is missing (algorithm risk is high)" in done.stdout + done.stderr


def test_pyproject_does_not_overrule_the_workspace() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "dagster" not in settings["tool"]


def test_dbt_is_the_library_and_not_the_projects_folder() -> None:
    assert (ROOT / "dbt" / "dbt_project.yml").is_file()
    assert list((ROOT / "dbt").rglob("__init__.py")) == []
    code = "import dbt.cli.main; print(dbt.cli.main.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "site-packages" in done.stdout, done.stderr


def test_the_checkouts_definitions_are_the_packages() -> None:
    code = "import definitions as d, mlops_assets.definitions as real; print(d.defs is real.defs, d.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", str(ROOT / "definitions.py")]
