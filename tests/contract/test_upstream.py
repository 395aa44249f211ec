"""Facts about our dependencies that code here rests on: when one changes, the reason for that code is gone or new."""

import importlib.metadata
import warnings
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from packaging.version import Version

from tests.contract.guarded import BIN, call, guarded_env


def test_dbt_asks_the_package_index_when_it_is_asked_for_its_version(tmp_path: Path) -> None:
    """Why dbt_assets.py answers dagster-dbt's question itself."""
    done = call(str(BIN / "dbt"), "--version", cwd=tmp_path, env=guarded_env(tmp_path))
    assert importlib.metadata.version("dbt-core") in done.stdout
    assert "attempt socket.getaddrinfo" in (tmp_path / "guard.log").read_text(encoding="utf-8")


def test_dagster_dbt_learns_the_version_through_one_property() -> None:
    from dagster_dbt import DbtCliResource

    assert "_cli_version" in vars(DbtCliResource)
    assert Version(importlib.metadata.version("dbt-core")) < Version("1.12"), "dbt-core 1.12 downloads a binary"


def test_weeks_start_on_sunday_unless_told_otherwise() -> None:
    def first(**day: int) -> str:
        return dg.WeeklyPartitionsDefinition("2024-01-01", **day).get_partition_keys()[0]

    assert (first(), first(day_offset=1)) == ("2024-01-07", "2024-01-01")


def _gated(*, blocking: bool, severity: dg.AssetCheckSeverity) -> tuple[Any, Any]:
    @dg.asset(check_specs=[dg.AssetCheckSpec("sound", asset="model", blocking=blocking)])
    def model() -> Any:
        yield dg.MaterializeResult()
        yield dg.AssetCheckResult(passed=False, check_name="sound", severity=severity)

    @dg.asset(deps=[model])
    def lists() -> None: ...

    return model, lists


@pytest.mark.parametrize(
    ("blocking", "severity", "goes_on"),
    [(True, "ERROR", False), (True, "WARN", True), (False, "ERROR", True)],
)
def test_only_a_blocking_error_stops_a_run(*, blocking: bool, severity: str, goes_on: bool) -> None:
    """Why severities and blocking both follow the risk profile."""
    assets = _gated(blocking=blocking, severity=dg.AssetCheckSeverity(severity))
    done = dg.materialize(list(assets), raise_on_error=False)
    assert done.success == goes_on
    assert bool(done.asset_materializations_for_node("lists")) == goes_on


def test_a_blocking_check_does_not_hold_in_the_next_run() -> None:
    """Why a gate is judged on evidence that is stored with the version."""
    model, lists = _gated(blocking=True, severity=dg.AssetCheckSeverity.ERROR)
    with dg.DagsterInstance.ephemeral() as instance:
        assert not dg.materialize([model, lists], instance=instance, raise_on_error=False).success
        assert dg.materialize([lists, model], selection=[lists], instance=instance).success


def test_a_run_that_fails_before_a_check_hides_its_last_result() -> None:
    """Why `status` looks for the last result and not for the latest record."""
    fail = [False]

    @dg.asset(check_specs=[dg.AssetCheckSpec("sound", asset="model")])
    def model() -> Any:
        if fail[0]:
            raise OSError("the disk is gone")
        yield dg.MaterializeResult()
        yield dg.AssetCheckResult(passed=True, check_name="sound")

    key = dg.AssetCheckKey(dg.AssetKey("model"), "sound")
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([model], instance=instance)
        fail[0] = True
        dg.materialize([model], instance=instance, raise_on_error=False)
        latest = instance.get_latest_asset_check_evaluation_record(key)
        assert latest is not None
        assert latest.event is None or latest.event.dagster_event is None or (
            latest.event.dagster_event.event_type != dg.DagsterEventType.ASSET_CHECK_EVALUATION
        )  # fmt: skip
        history = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
        assert len(history) == 2


def test_a_failure_without_retries_is_not_retried_and_any_other_error_is() -> None:
    def attempts(error: Exception) -> int:
        seen: list[int] = []

        @dg.asset(retry_policy=dg.RetryPolicy(max_retries=2))
        def model() -> None:
            seen.append(1)
            raise error

        dg.materialize([model], raise_on_error=False)
        return len(seen)

    assert attempts(dg.Failure("wrong data", allow_retries=False)) == 1
    assert attempts(ValueError("wrong data")) == 3


def test_a_text_column_without_texts_becomes_a_number_in_duckdb_unless_it_has_a_text_type() -> None:
    """Why tables are written with pandas' string type."""
    import duckdb

    def kind(frame: pd.DataFrame) -> str:
        connection = duckdb.connect()
        connection.register("frame", frame)
        found = connection.execute("select typeof(title) from frame").fetchone()
        connection.close()
        assert found is not None
        return str(found[0])

    frame = pd.DataFrame({"title": pd.Series([None, None], dtype=object)})
    assert kind(frame) != "VARCHAR"
    assert kind(frame.astype("string")) == "VARCHAR"


def test_duckdb_lets_one_process_write(tmp_path: Path) -> None:
    """Why a session waits for its turn."""
    import duckdb

    path = str(tmp_path / "w.duckdb")
    code = f"import duckdb; duckdb.connect({path!r})"
    connection = duckdb.connect(path)
    done = call(str(BIN / "python"), "-c", code, cwd=tmp_path, env=guarded_env(tmp_path))
    connection.close()
    assert done.returncode != 0
    assert "Could not set lock" in done.stderr


def test_evidently_needs_a_pandas_below_3() -> None:
    assert Version(pd.__version__) < Version("3")


def test_the_command_that_validates_definitions_is_still_there() -> None:
    from dagster._cli import create_dagster_cli

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group: Any = create_dagster_cli()
        assert "validate" in group.commands["definitions"].commands
