"""Asset keys, groups and periods: the same for every system."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import pytest

from mlops_assets.foundation.names import SystemNames, defined_keys, partitions_of
from mlops_assets.foundation.specs import Cadence, Periods

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
NOW = datetime(2024, 3, 5, 12, tzinfo=UTC)


def periods(cadence: Cadence, start: date, end: str | None, timezone: str) -> dg.TimeWindowPartitionsDefinition:
    last = None if end is None else date.fromisoformat(end)
    return partitions_of(Periods(cadence=cadence, start=start, end=last, timezone=timezone), timed=True)


@pytest.mark.parametrize(
    ("cadence", "start", "first", "last", "many"),
    [
        ("daily", date(2024, 2, 27), "2024-02-27", "2024-03-04", 7),
        ("weekly", date(2024, 1, 1), "2024-01-01", "2024-02-26", 9),
        ("monthly", date(2023, 12, 1), "2023-12-01", "2024-02-01", 3),
    ],
)
def test_periods_are_days_weeks_from_monday_and_months(
    cadence: Cadence, start: date, first: str, last: str, many: int
) -> None:
    keys = periods(cadence, start, None, "UTC").get_partition_keys(current_time=NOW)
    assert (keys[0], keys[-1], len(keys)) == (first, last, many)


@pytest.mark.parametrize("cadence", ["daily", "weekly", "monthly"])
def test_periods_end_before_the_first_day_after_them(cadence: Cadence) -> None:
    ends = {"daily": "2024-01-03", "weekly": "2024-01-15", "monthly": "2024-03-01"}
    keys = periods(cadence, date(2024, 1, 1), ends[cadence], "UTC").get_partition_keys(current_time=NOW)
    assert (
        keys
        == {
            "daily": ["2024-01-01", "2024-01-02"],
            "weekly": ["2024-01-01", "2024-01-08"],
            "monthly": ["2024-01-01", "2024-02-01"],
        }[cadence]
    )


def test_a_day_is_over_when_it_is_over_where_the_system_lives() -> None:
    # Half past eleven in the evening in Stockholm, half past ten in UTC.
    moment = datetime(2024, 3, 5, 22, 30, tzinfo=UTC)
    keys = {
        zone: periods("daily", date(2024, 3, 1), None, zone).get_partition_keys(current_time=moment)[-1]
        for zone in ("UTC", "Asia/Tokyo")
    }
    assert keys == {"UTC": "2024-03-04", "Asia/Tokyo": "2024-03-05"}


def _names(history: int = 3) -> SystemNames:
    return SystemNames("lender", periods("daily", date(2024, 1, 1), None, "UTC"), history)


def test_keys_groups_and_inputs_carry_the_systems_name() -> None:
    names = _names()
    assert names.key("decisions") == dg.AssetKey(["lender", "decisions"])
    assert names.group("data") == "lender__data"
    (found,) = names.inputs("training_set").items()
    assert (found[0], found[1].key) == ("training_set", dg.AssetKey(["lender", "training_set"]))


def test_a_backfill_is_one_run_a_period() -> None:
    assert _names().by_period["backfill_policy"].max_partitions_per_run == 1


@pytest.mark.parametrize(
    ("history", "asked"),
    [
        (1, ["2024-01-05"]),
        (3, ["2024-01-03", "2024-01-04", "2024-01-05"]),
        (99, [f"2024-01-0{day}" for day in range(1, 6)]),
    ],
)
def test_looking_back_reaches_so_many_periods_and_no_further_than_the_first(history: int, asked: list[str]) -> None:
    names = _names(history)
    mapping: Any = names.looking_back("outcomes").partition_mapping
    found = mapping.get_upstream_mapped_partitions_result_for_partitions(
        downstream_partitions_subset=names.partitions.subset_with_partition_keys(["2024-01-05"]),
        downstream_partitions_def=names.partitions,
        upstream_partitions_def=names.partitions,
        current_time=NOW,
    )
    assert list(found.partitions_subset.get_partition_keys()) == asked
    assert names.looking_back("outcomes").asset_key == names.key("outcomes")


def test_what_is_defined_counts_assets_their_checks_and_checks_of_their_own() -> None:
    @dg.asset(key=["lender", "rows"], check_specs=[dg.AssetCheckSpec("rows_are_there", asset=["lender", "rows"])])
    def rows() -> Iterator[Any]:
        yield dg.MaterializeResult()

    @dg.asset_check(asset=["lender", "rows"], name="rows_are_few")
    def few() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    @dg.multi_asset(specs=[dg.AssetSpec(["lender", "a"]), dg.AssetSpec(["lender", "b"])])
    def both() -> Iterator[Any]:
        yield dg.MaterializeResult(asset_key=["lender", "a"])

    assert defined_keys([rows, both], [few]) == {
        "lender/rows", "lender/a", "lender/b", "lender/rows:rows_are_there", "lender/rows:rows_are_few",
    }  # fmt: skip
    assert defined_keys([]) == frozenset()
