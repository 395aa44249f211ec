"""The dbt project: found, parsed once for each state of its files, and clear when dbt cannot read it."""

import json
import shutil
from pathlib import Path

import pytest

from mlops_assets.foundation import dbt_project
from mlops_assets.foundation.dbt_project import dbt_executable, manifest, project_dir
from mlops_assets.foundation.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the project was parsed."""
    home = tmp_path_factory.mktemp("dbt") / "home"
    manifest(home)
    return home


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that a test may change."""
    shutil.copytree(ROOT / "dbt", tmp_path / "dbt")
    (tmp_path / "mlops_assets").mkdir()
    monkeypatch.setattr(dbt_project, "_PACKAGE", tmp_path / "mlops_assets")
    return tmp_path / "dbt"


def test_the_project_of_a_checkout_is_beside_the_package() -> None:
    assert project_dir() == ROOT / "dbt"


def test_the_project_of_a_wheel_is_inside_the_package(tmp_path: Path, project: Path) -> None:
    inside = tmp_path / "mlops_assets" / "_dbt"
    shutil.move(project, inside)
    assert project_dir() == inside


def test_a_folder_called_dbt_that_is_no_project_is_not_taken_for_one(tmp_path: Path, project: Path) -> None:
    (project / "dbt_project.yml").unlink()
    with pytest.raises(UserError, match="the dbt project is missing"):
        project_dir()


def test_the_manifest_holds_every_model(home: Path) -> None:
    parsed = json.loads(manifest(home).read_text(encoding="utf-8"))
    models = {node["name"] for node in parsed["nodes"].values() if node["resource_type"] == "model"}
    files = {path.stem for path in (ROOT / "dbt" / "models").rglob("*.sql")}
    assert models == files


def test_parsing_leaves_nothing_in_the_project(home: Path) -> None:
    assert not (ROOT / "dbt" / "target").exists()
    assert not (ROOT / "dbt" / "logs").exists()


def test_an_unchanged_project_is_not_parsed_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbt_project, "dbt_executable", lambda: pytest.fail("dbt was called"))
    assert manifest(home).is_file()


def test_a_changed_model_has_another_manifest(home: Path, project: Path) -> None:
    unchanged = dbt_project._fingerprint(ROOT / "dbt")
    assert dbt_project._fingerprint(project) == unchanged
    with (project / "models/discover_weekly/interactions.sql").open("a", encoding="utf-8") as file:
        file.write("-- another way\n")
    assert dbt_project._fingerprint(project) != unchanged


def test_what_dbt_leaves_behind_is_no_change(project: Path) -> None:
    before = dbt_project._fingerprint(project)
    for folder in ("target", "logs", "dbt_packages"):
        (project / folder).mkdir()
        (project / folder / "left.json").write_text("{}", encoding="utf-8")
    assert dbt_project._fingerprint(project) == before


def test_a_project_that_dbt_cannot_read_is_named_with_dbts_words(tmp_path: Path, project: Path) -> None:
    (project / "models/discover_weekly/interactions.sql").write_text("select * from {{ ref('nowhere') }}", "utf-8")
    with pytest.raises(UserError, match="dbt cannot parse the project") as caught:
        manifest(tmp_path / "home")
    assert "nowhere" in str(caught.value)
    assert not list((tmp_path / "home").rglob("manifest-*.json"))


def test_dbt_is_that_of_this_python() -> None:
    (command,) = dbt_executable()
    assert Path(command).is_file()


def test_a_python_without_dbt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="dbt is not installed"):
        dbt_executable()
