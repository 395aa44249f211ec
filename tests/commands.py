"""The command line in this process, and what holds for every mistake that it tells."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlops_assets.cli import main


def invoke(*arguments: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, list(arguments))


def told(result: Result) -> str:
    """Return a mistake's message, after the rules that hold for all of them."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error ")
    assert result.stderr.count("Error ") == 1
    return result.stderr.removeprefix("Error ").strip()


def shown(result: Result) -> str:
    """Return what a command printed that did what it was asked for."""
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def cells(text: str) -> list[list[str]]:
    """Return the rows of a printed table, as texts."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]


def own_settings(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Give a test its own home and its own Dagster home; what a command sets is taken back."""
    for name in list(os.environ):
        if name.startswith("MLOPS_ASSETS_") and name != "MLOPS_ASSETS_TEST_DATA":
            patch.delenv(name)
    patch.setenv("DAGSTER_HOME", "")
    patch.setenv("MLOPS_ASSETS_HOME", str(folder / "home"))
    patch.setenv("COLUMNS", "200")
    patch.chdir(folder)
