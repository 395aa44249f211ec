"""The feeds of the sample loan book: late in their outcomes, faulty as declared, and refused where they cannot be."""

import re
from dataclasses import replace
from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from mlops_assets.foundation.errors import UserError
from mlops_assets.samples import _lending_people
from mlops_assets.samples._lending_feed import DEFAULT, PAID
from mlops_assets.samples._lending_tables import BOUNDS, LEVELS, NUMERIC
from mlops_assets.samples.lending import (
    DIRT_KINDS,
    LendingWorld,
)
from tests.samples.lending_books import BUSY, CLEAN, FRAMES, WORLD, assert_in_bounds, days_of

DIRTY = LendingWorld(applications_per_day=2_000, dirt=0.01)
# A window of two months: whole lives of loans in few days.
SHORT = LendingWorld(maturity_days=60, dirt=0.0, label_conflicts=0.0)


# --- Outcomes ---


def test_every_loan_has_one_outcome_on_the_day_it_becomes_known_and_nobody_else_has() -> None:
    outcomes = days_of(SHORT, "outcomes", range(20 + SHORT.maturity_days)).set_index("application_id")
    truth = days_of(SHORT, "truth", range(20)).set_index("application_id")
    assert outcomes.index.is_unique
    loans = truth[truth["booked"]]
    found = outcomes.reindex(loans.index)
    assert found["outcome"].notna().all()
    assert not outcomes.index.isin(truth.index[~truth["booked"]]).any()
    assert found["outcome"].eq(DEFAULT).equals(loans["defaults"])
    known_after = found["day"] - loans["day"]
    assert known_after[loans["defaults"]].equals(loans.loc[loans["defaults"], "days_to_default"].rename(None))
    assert (known_after[~loans["defaults"]] == SHORT.maturity_days).all()


def test_outcomes_are_plain_rows_of_their_day() -> None:
    frame = CLEAN.outcomes(500)
    assert list(frame) == ["application_id", "outcome", "outcome_at"]
    assert set(frame.dtypes) == {np.dtype(object)}
    assert set(frame["outcome"]) == {DEFAULT, PAID}
    assert frame["outcome_at"].str.startswith("2025-01-13T").all()
    assert frame["outcome_at"].is_monotonic_increasing
    assert frame["application_id"].is_monotonic_increasing


def test_no_outcome_is_known_early_and_good_news_comes_last() -> None:
    assert len(WORLD.outcomes(0)) == 0
    assert list(WORLD.outcomes(0)) == ["application_id", "outcome", "outcome_at"]
    young = days_of(CLEAN, "outcomes", range(300))
    assert set(young["outcome"]) == {DEFAULT}
    grown = days_of(CLEAN, "outcomes", range(700, 730))
    assert grown["outcome"].eq(PAID).mean() > 0.8


def test_a_vintage_is_made_of_the_outcomes_of_its_days() -> None:
    outcomes = days_of(SHORT, "outcomes", range(150))
    made = outcomes["application_id"].str[1:7] == f"{SHORT.date_of(50):%y%m%d}"
    curve = outcomes[made & (outcomes["outcome"] == DEFAULT)].groupby("day").size().cumsum()
    truth = SHORT.truth(50).query("booked and defaults")
    assert curve.iloc[-1] == len(truth) > 0


def test_a_share_of_the_outcomes_is_contradicted_at_once() -> None:
    world = replace(BUSY, label_conflicts=0.05, maturity_days=60)
    frame = days_of(world, "outcomes", range(60, 66)).drop(columns="day")
    repeated = frame["application_id"].duplicated(keep=False)
    pairs = frame[repeated].groupby("application_id")["outcome"].agg(list)
    assert {frozenset(pair) for pair in pairs} == {frozenset({DEFAULT, PAID})}
    assert (pairs.str.len() == 2).all()
    assert len(pairs) / frame["application_id"].nunique() == pytest.approx(0.05, abs=0.01)
    # The first of a pair is the true one.
    calm = days_of(replace(world, label_conflicts=0.0), "outcomes", range(60, 66)).drop(columns="day")
    assert_frame_equal(frame[~frame["application_id"].duplicated()].reset_index(drop=True), calm)


# --- Faults of the feed ---


def counted(frame: pd.DataFrame, world: LendingWorld, day: int) -> dict[str, int]:
    """Count the dirt of a day from its rows alone."""
    numbers = frame[[*NUMERIC]]
    texts = numbers.map(lambda value: isinstance(value, str))
    exact = frame.astype(str).duplicated()
    return {
        "missing_id": int(frame["application_id"].isna().sum()),
        "not_a_number": int((numbers == "N/A").to_numpy().sum()),
        "decimal_comma": int((texts & (numbers != "N/A")).to_numpy().sum()),
        "negative_income": int(sum(isinstance(value, int) and value < 0 for value in frame["annual_income"])),
        "impossible_age": int((frame["age"] == 200).sum()),
        "unseen_category": int(sum((~frame[name].isin(levels)).sum() for name, levels in LEVELS.items())),
        "future": int((frame["applied_at"] >= f"{world.date_of(day + 1)}").sum()),
        "duplicate": int(exact.sum()),
        "id_conflict": int((frame["application_id"].dropna().duplicated() & ~exact).sum()),
        "unit_error": 0,
    }


@pytest.mark.parametrize(("world", "day"), [(DIRTY, 0), (DIRTY, 600), (WORLD, 3), (CLEAN, 3)])
def test_planted_dirt_is_in_the_rows(world: LendingWorld, day: int) -> None:
    assert world.planted(day) == counted(world.applications(day), world, day)


def test_each_kind_of_dirt_befalls_its_share() -> None:
    planted = pd.DataFrame([DIRTY.planted(day) for day in range(7)]).sum()
    rows = sum(len(DIRTY.truth(day)) for day in range(7))
    for kind in DIRT_KINDS:
        assert planted[kind] == pytest.approx(0.01 * rows, rel=0.3), kind


def test_dirt_leaves_the_other_rows_as_they_are() -> None:
    clean, dirty = BUSY.applications(0), DIRTY.applications(0)
    key = ["application_id", *NUMERIC, *LEVELS, "age", "applied_at"]
    same = clean[key].astype(str).merge(dirty[key].astype(str).drop_duplicates(), on=key)
    altered = sum(
        count for kind, count in DIRTY.planted(0).items() if kind not in {"duplicate", "id_conflict", "unit_error"}
    )
    assert len(same) == len(clean) - altered


def test_every_row_that_a_fault_befell_still_belongs_to_its_neighbours() -> None:
    frame = DIRTY.applications(0)
    ids = frame["application_id"]
    copies = ids.notna() & ids.duplicated()
    assert (ids[copies].to_numpy() == ids.shift()[copies].to_numpy()).all()
    conflicts = frame[copies]["loan_amount"].to_numpy() - frame.shift()[copies]["loan_amount"].to_numpy()
    assert {abs(int(change)) for change in conflicts} == {0, 100}
    commas = [value for value in frame["annual_income"] if isinstance(value, str) and value != "N/A"]
    assert commas
    assert all(re.fullmatch(r"\d{1,3}(\.\d{3})*,\d\d", value) for value in commas)
    ahead = frame.loc[frame["applied_at"] >= "2023-09-02", "applied_at"]
    assert ahead.str.startswith("2024-08-30T").all()


def test_faults_of_the_feed_change_neither_truth_nor_outcomes() -> None:
    faulty = replace(DIRTY, unit_error_days=tuple(BUSY.date_of(day) for day in range(90)), unit_error_share=1.0)
    assert_frame_equal(faulty.truth(5), BUSY.truth(5))
    assert_frame_equal(faulty.booked(5), BUSY.booked(5))
    assert_frame_equal(faulty.typed_applications(5), BUSY.typed_applications(5))
    short, spoiled = replace(BUSY, maturity_days=30), replace(faulty, maturity_days=30)
    assert_frame_equal(spoiled.outcomes(40), short.outcomes(40))


@pytest.mark.parametrize("column", ["annual_income", "loan_amount"])
@pytest.mark.parametrize(("factor", "share"), [(100, 0.05), (100, 1.0), (1_000, 0.2), (0.01, 1.0)])
def test_a_unit_error_befalls_its_share_and_leaves_the_range(column: str, factor: float, share: float) -> None:
    on = date(2023, 9, 4)
    world = replace(
        BUSY, unit_error_days=(on,), unit_error_share=share, unit_error_column=column, unit_error_factor=factor
    )
    day = world.day_of(on)
    right, wrong = BUSY.applications(day), world.applications(day)
    differs = right[column] != wrong[column]
    assert differs.sum() == world.planted(day)["unit_error"] == round(share * len(right))
    assert (wrong[column][differs].astype(float) / right[column][differs].astype(float)).to_numpy() == pytest.approx(
        factor
    )
    low, high = BOUNDS[column]
    assert not wrong[column][differs].between(low, high).any()
    assert_frame_equal(wrong.drop(columns=column), right.drop(columns=column))
    assert_frame_equal(world.applications(day + 1), BUSY.applications(day + 1))


def test_the_bounds_tell_every_possible_unit_error() -> None:
    for column in ("annual_income", "loan_amount"):
        low, high = BOUNDS[column]
        assert low * 100 > high
        assert high * 0.01 < low


def test_a_unit_error_befalls_at_least_one_row_or_none_if_switched_off() -> None:
    one = replace(WORLD, unit_error_days=(WORLD.date_of(2),), unit_error_share=0.001)
    assert one.planted(2)["unit_error"] == 1
    assert one.planted(3)["unit_error"] == 0
    assert replace(one, unit_error_share=0.0).planted(2)["unit_error"] == 0


def test_dirt_comes_on_top_of_a_unit_error() -> None:
    both = replace(DIRTY, unit_error_days=(DIRTY.date_of(0),), unit_error_share=1.0)
    incomes = both.applications(0)["annual_income"]
    numbers = [value for value in incomes if isinstance(value, int)]
    assert all(abs(value) >= 960_000 for value in numbers)
    assert any(value < 0 for value in numbers)
    assert "N/A" in set(incomes)


# --- Parameters ---


def test_parameters_can_be_plain_values_of_yaml() -> None:
    import yaml

    block = yaml.safe_load(
        """
        seed: 3
        start: 2024-01-01
        shock: "2025-01-01"
        unit_error_days: [2024-02-01, "2024-02-03", 31]
        dirt: 0
        applications_per_day: 55
        """
    )
    world = LendingWorld(**block)
    assert world == LendingWorld(
        seed=3,
        start=date(2024, 1, 1),
        shock=date(2025, 1, 1),
        unit_error_days=(date(2024, 2, 1), date(2024, 2, 3)),
        dirt=0.0,
        applications_per_day=55,
    )
    assert hash(world) == hash(LendingWorld(**block))
    assert LendingWorld(start="2024-01-01", shock=366) == LendingWorld(  # type: ignore[arg-type]
        start=datetime(2024, 1, 1),  # noqa: DTZ001
        shock="2025-01-01",  # type: ignore[arg-type]
    )
    assert LendingWorld(unit_error_days="2024-02-01").unit_error_days == (date(2024, 2, 1),)  # type: ignore[arg-type]


def test_the_default_horizon_is_more_than_36_months() -> None:
    assert WORLD.date_of(WORLD.days) > date(2026, 9, 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True"),
        ({"days": 0}, "days is 0"),
        ({"days": 10.5}, "days is 10.5.*whole number"),
        ({"start": "01.09.2023"}, "start is '01.09.2023'.*2023-09-01"),
        ({"start": 5}, "start is 5"),
        ({"start": date(1969, 12, 31)}, "1969-12-31.*1970"),
        ({"applications_per_day": 0.5}, "applications_per_day is 0.5.*between 1 and 50,000"),
        ({"applications_per_day": 50_001}, "applications_per_day"),
        ({"applications_per_day": "40"}, "applications_per_day is '40'"),
        ({"shock": "soon"}, "shock is 'soon'.*or a day's number"),
        ({"shock": -1}, "shock is -1"),
        ({"shock": True}, "shock is True"),
        ({"shock_strength": 3.1}, "shock_strength"),
        ({"unit_error_days": ("2023-02-30",)}, "unit_error_days is '2023-02-30'"),
        ({"unit_error_days": None}, "unit_error_days is None"),
        ({"unit_error_days": [1.5]}, "unit_error_days is 1.5"),
        ({"unit_error_share": 1.01}, "unit_error_share"),
        ({"unit_error_column": "age"}, "unit_error_column is 'age'.*annual_income or loan_amount"),
        ({"unit_error_factor": 0}, "unit_error_factor"),
        ({"unit_error_factor": 1}, "changes nothing"),
        ({"dirt": 0.021}, "dirt"),
        ({"dirt": float("nan")}, "dirt is nan"),
        ({"label_conflicts": -0.1}, "label_conflicts"),
        ({"maturity_days": 29}, "maturity_days"),
        ({"maturity_days": 1_096}, "maturity_days is 1096.*30 and 1,095"),
        ({"disparity": -0.1}, "disparity"),
    ],
)
def test_parameters_outside_the_bounds_are_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        LendingWorld(**wrong)  # type: ignore[arg-type]
    assert caught.value.where == "LendingWorld"
    assert caught.value.remedy


@pytest.mark.parametrize("day", [-1, 100_000])
def test_days_outside_the_world_are_refused_when_asked_for(day: int) -> None:
    asked = [getattr(WORLD, name) for name in (*FRAMES, "planted", "unemployment", "date_of")]
    for ask in (*asked, lambda at: WORLD.applications_frame(5, day=at), lambda at: WORLD.truth_frame(5, day=at)):
        with pytest.raises(UserError, match=f"day is {day}.*from 0, 2023-09-01"):
            ask(day)


def test_the_last_day_can_still_be_asked_for() -> None:
    last = (date(2200, 1, 1) - WORLD.start).days
    assert len(WORLD.applications(last)) > 0
    assert (WORLD.truth(last)["pd"] > 0).all()


def test_a_day_is_found_by_its_date() -> None:
    assert [WORLD.day_of(WORLD.date_of(day)) for day in (0, 1, 1_169)] == [0, 1, 1_169]
    assert WORLD.day_of("2023-09-03") == 2
    with pytest.raises(UserError, match=r"2023-08-31 lies before.*2023-09-01 or later"):
        WORLD.day_of(WORLD.start - timedelta(days=1))
    with pytest.raises(UserError, match="day is 'monday'"):
        WORLD.day_of("monday")


# --- Frames for benchmarks ---


def test_a_benchmark_frame_is_typed_clean_and_as_long_as_asked() -> None:
    frame = WORLD.applications_frame(120_000, day=10)
    assert len(frame) == 120_000
    assert list(frame) == list(WORLD.typed_applications(10))
    assert frame.dtypes.equals(WORLD.typed_applications(10).dtypes)
    assert frame["application_id"].is_unique
    assert frame["application_id"].iloc[[0, -1]].tolist() == ["F000000001", "F000120000"]
    assert_in_bounds(frame)
    assert not frame[[*NUMERIC]].duplicated().any()
    assert_frame_equal(WORLD.applications_frame(50_000, day=10), frame.head(50_000))


def test_the_truth_of_a_benchmark_frame_is_aligned_with_it() -> None:
    frame, truth = WORLD.applications_frame(60_000), WORLD.truth_frame(60_000)
    assert frame["application_id"].equals(truth["application_id"])
    late, none = frame["delinquencies_2y"] >= 2, frame["delinquencies_2y"] == 0
    assert truth["pd"][late].mean() > 2 * truth["pd"][none].mean()


@pytest.mark.parametrize("rows", [0, -5, 2.5, 100_000_001])
def test_a_benchmark_frame_has_a_sensible_size(rows: int) -> None:
    with pytest.raises(UserError, match="rows is"):
        WORLD.applications_frame(rows)


def test_the_busiest_world_still_has_ids() -> None:
    world = LendingWorld(applications_per_day=50_000, dirt=0.0)
    tuesday_in_january = world.day_of(date(2024, 1, 23))
    truth = world.truth(tuesday_in_january)
    assert 60_000 < len(truth) < 100_000
    assert truth["application_id"].is_unique
    people = pd.Series(_lending_people.persons_of(world, tuesday_in_january))
    assert people.duplicated().mean() < 0.001
