"""What checks said last, read from an event log in which real runs left it."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from mlops_assets.foundation.check_history import latest_checks
from mlops_assets.foundation.checks import outcome
from mlops_assets.foundation.risk import RiskProfile

KEY = dg.AssetKey(["lender", "rows"])
CHECKS = ("rows_are_there", "rows_are_known")
RISK = RiskProfile(data="high", algorithm="low", output="low")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def _run(instance: dg.DagsterInstance, *statuses: str, dies: bool = False) -> None:
    """Make the asset with its two checks; blocking, as at high risk."""

    @dg.asset(key=KEY, check_specs=[dg.AssetCheckSpec(name, asset=KEY) for name in CHECKS])
    def rows() -> Iterator[Any]:
        if dies:
            raise RuntimeError("the disk is full")
        yield dg.MaterializeResult()
        for name, status in zip(CHECKS, statuses, strict=True):
            yield outcome(RISK, "data", name, KEY, status, f"it was {status}", {})

    result = dg.materialize([rows], instance=instance, raise_on_error=False)
    assert result.success is not dies


def _latest(instance: dg.DagsterInstance, system: str = "lender") -> Any:
    return latest_checks(instance, system, {"rows": CHECKS})


def test_before_the_first_run_nothing_is_told(instance: dg.DagsterInstance) -> None:
    assert _latest(instance) == (0, (), ())


def test_passed_failed_and_not_assessed_are_three_things(instance: dg.DagsterInstance) -> None:
    _run(instance, "passed", "passed")
    assert _latest(instance) == (2, (), ())
    _run(instance, "failed", "not_assessed")
    passed, problems, unassessed = _latest(instance)
    assert passed == 0
    assert problems == ("rows: rows_are_there: it was failed",)
    assert unassessed == ("rows: rows_are_known: Not assessed: it was not_assessed",)


def test_the_latest_result_counts(instance: dg.DagsterInstance) -> None:
    _run(instance, "failed", "failed")
    _run(instance, "passed", "passed")
    assert _latest(instance) == (2, (), ())


def test_a_run_that_died_before_its_check_does_not_hide_what_was_found_last(instance: dg.DagsterInstance) -> None:
    _run(instance, "failed", "passed")
    _run(instance, dies=True)
    passed, problems, _ = _latest(instance)
    assert (passed, problems) == (1, ("rows: rows_are_there: it was failed",))


def test_another_systems_checks_are_its_own(instance: dg.DagsterInstance) -> None:
    _run(instance, "failed", "failed")
    assert _latest(instance, "other") == (0, (), ())


def test_a_check_that_states_no_status_is_judged_by_what_it_returned(instance: dg.DagsterInstance) -> None:
    @dg.asset(key=KEY)
    def rows() -> None: ...

    @dg.asset_check(asset=KEY, name="rows_are_there")
    def there() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False)

    dg.materialize([rows], instance=instance)
    dg.materialize(
        [rows, there], instance=instance, selection=dg.AssetSelection.checks_for_assets(rows), raise_on_error=False
    )
    assert _latest(instance) == (0, ("rows: rows_are_there: ",), ())
