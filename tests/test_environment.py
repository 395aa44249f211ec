"""Which resources stand behind which names, and that naming an environment touches nothing."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets import environment
from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError


def test_without_settings_everything_lives_in_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment.current({}) == Environment("embedded", tmp_path.resolve() / ".mlops_assets")


def test_the_home_is_absolute_whatever_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert environment.current({"MLOPS_ASSETS_HOME": "here"}).home == tmp_path.resolve() / "here"
    assert environment.current({"MLOPS_ASSETS_HOME": "~/there"}).home == tmp_path.resolve() / "me" / "there"


@pytest.mark.parametrize("name", ["prod", "", "Embedded"])
def test_an_unknown_environment_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=r"MLOPS_ASSETS_ENV: unknown environment .* set it to one of: embedded\."):
        environment.current({"MLOPS_ASSETS_ENV": name})


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder", encoding="utf-8")
    with pytest.raises(UserError, match=r"MLOPS_ASSETS_HOME: .* is no folder"):
        environment.current({"MLOPS_ASSETS_HOME": str(tmp_path / "home")})


def test_naming_an_environment_creates_nothing(tmp_path: Path) -> None:
    place = environment.current({"MLOPS_ASSETS_HOME": str(tmp_path / "home")})
    place.resources()
    assert not (tmp_path / "home").exists()


def test_every_resource_lives_below_the_home(tmp_path: Path) -> None:
    resources: dict[str, Any] = Environment("embedded", tmp_path).resources()
    names = {"warehouse", "store", "models", "snapshots", "versions", "manifests", "tables", "journals"}
    assert set(resources) == names
    places = [
        resources["warehouse"].database, resources["tables"].database, resources["store"].root,
        resources["models"].root, resources["models"].tracking_uri.removeprefix("sqlite:///"),
        resources["snapshots"].root, resources["versions"].root, resources["manifests"].root,
        resources["journals"].root,
    ]  # fmt: skip
    assert [str(place) for place in places if not Path(place).is_relative_to(tmp_path)] == []


def test_tables_of_assets_and_of_sql_are_in_one_file(tmp_path: Path) -> None:
    resources: dict[str, Any] = Environment("embedded", tmp_path).resources()
    assert resources["warehouse"].database == resources["tables"].database == str(tmp_path / "warehouse.duckdb")


def test_the_resources_fit_together(tmp_path: Path) -> None:
    dg.Definitions.validate_loadable(dg.Definitions(resources=Environment("embedded", tmp_path).resources()))
