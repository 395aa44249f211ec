"""The sample loan book: reproducible, true to its documentation, and learnable."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from datetime import date
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from mlops_assets.samples import _lending_applications, _lending_people, _lending_risk
from mlops_assets.samples import _lending_draws as draws
from mlops_assets.samples._lending_applications import Applications, applications_in_block
from mlops_assets.samples._lending_risk import fates, legacy_score, log_odds
from mlops_assets.samples._lending_tables import BOUNDS, INTEGERS, LEVELS, NUMERIC
from mlops_assets.samples._lending_world import World
from mlops_assets.samples.lending import (
    FEATURES,
    PROTECTED,
    LendingWorld,
)
from tests.samples.lending_books import (
    BUSY,
    CLEAN,
    FRAMES,
    ROWS,
    SHOCK,
    SHOCKED,
    WORLD,
    assert_in_bounds,
    crowd,
    days_of,
)


def forget() -> None:
    """Empty every cache: what follows is drawn anew."""
    for cached in (
        _lending_applications.applications_of,
        _lending_people.newcomers,
        _lending_risk.fates_of,
        _lending_risk.settled_of,
    ):
        cached.cache_clear()


# --- Determinism ---


@pytest.mark.parametrize("name", FRAMES)
def test_a_day_does_not_depend_on_what_was_asked_before(name: str) -> None:
    forwards = {day: getattr(WORLD, name)(day) for day in (0, 400, 1_169)}
    again = LendingWorld(days=99)  # another horizon is no cached twin, and must not matter either
    for day in (1_169, 0, 400):
        forget()
        assert_frame_equal(getattr(again, name)(day), forwards[day])


def test_another_process_makes_the_same_world() -> None:
    code = (
        "from mlops_assets.samples.lending import LendingWorld;"
        "import hashlib;"
        "w = LendingWorld(dirt=0.01, shock=350, unit_error_days=(400,));"
        "text = ''.join(f(400).to_json(double_precision=15) for f in (w.applications, w.outcomes, w.truth));"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    world = LendingWorld(dirt=0.01, shock=350, unit_error_days=(400,))  # type: ignore[arg-type]
    text = "".join(f(400).to_json(double_precision=15) for f in (world.applications, world.outcomes, world.truth))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "11"}
    )
    assert done.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_numpys_global_random_state_is_neither_used_nor_touched() -> None:
    np.random.seed(1)  # noqa: NPY002
    before = WORLD.applications(3)
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002
    forget()
    assert_frame_equal(WORLD.applications(3), before)


def test_another_seed_is_another_world() -> None:
    other = LendingWorld(seed=8)
    assert not WORLD.applications(0)["annual_income"].equals(other.applications(0)["annual_income"])
    assert WORLD.unemployment(0) != other.unemployment(0)


def test_every_day_has_random_streams_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: dict[str, set[tuple[int, ...]]] = {}

    def recorded(world: World, purpose: draws.Purpose, *key: int) -> np.random.Generator:
        streams.setdefault(purpose.name, set()).add(key)
        return original(world, purpose, *key)

    original = draws.stream
    monkeypatch.setattr(draws, "stream", recorded)
    forget()
    world = LendingWorld(unit_error_days=(0, 1))  # type: ignore[arg-type]
    for day in (0, 1):
        world.applications(day)
        world.outcomes(day + 500)
    for purpose in ("DIRT", "UNIT_ERROR"):
        assert streams[purpose] == {(0,), (1,)}
    assert streams["OUTCOMES"] == {(500,), (501,)}
    assert streams["APPLICATION"] == streams["RETURNING"] == {(0,), (1,), *((day,) for day in range(135, 501))}


def test_changing_a_returned_frame_does_not_change_the_world() -> None:
    for name in ("applications", "typed_applications", "truth", "booked"):
        spoiled = getattr(WORLD, name)(1)
        expected = spoiled.copy(deep=True)
        for column in spoiled:
            spoiled[column].to_numpy()[:] = 0
        assert_frame_equal(getattr(WORLD, name)(1), expected)


@settings(max_examples=25, deadline=None)
@given(
    world=st.builds(
        LendingWorld,
        seed=st.integers(0, 2**63 - 1),
        start=st.dates(date(1970, 1, 1), date(2190, 1, 1)),
        applications_per_day=st.floats(1, 300),
        shock=st.none() | st.integers(0, 60),
        shock_strength=st.floats(0, 3),
        disparity=st.floats(0, 3),
        maturity_days=st.integers(30, 90),
        unit_error_days=st.lists(st.integers(0, 60), max_size=40),
        dirt=st.floats(0, 0.02),
    ),
    day=st.integers(0, 60),
)
def test_any_world_keeps_its_promises_on_any_day(world: LendingWorld, day: int) -> None:
    typed, truth, feed = world.typed_applications(day), world.truth(day), world.applications(day)
    assert_in_bounds(typed)
    assert typed["application_id"].is_unique
    assert truth["application_id"].equals(typed["application_id"])
    assert truth["pd"].between(0, 1, inclusive="neither").all()
    assert truth["days_to_default"].between(0, world.maturity_days).all()
    planted = world.planted(day)
    assert len(feed) == len(typed) + planted["duplicate"] + planted["id_conflict"]
    outcomes = world.outcomes(day)
    made = [day_made(world, text) for text in outcomes["application_id"]]
    assert all(max(0, day - world.maturity_days) <= one < day for one in made)


def day_made(world: LendingWorld, application_id: str) -> int:
    # Two digits of the year are ambiguous only where the test draws starts of three centuries.
    text = application_id[1:7]
    years = (f"{century}{text[:2]}" for century in (19, 20, 21))
    dates = [date(int(year), int(text[2:4]), int(text[4:6])) for year in years if _exists(year, text)]
    near = [one for one in dates if 0 <= (one - world.start).days <= 200]
    return (near[0] - world.start).days


def _exists(year: str, text: str) -> bool:
    try:
        date(int(year), int(text[2:4]), int(text[4:6]))
    except ValueError:
        return False
    return True


# --- Applications ---


def test_the_feed_has_its_columns_in_their_order_and_plain_values() -> None:
    frame = CLEAN.applications(0)
    assert list(frame) == [
        "application_id",
        "applicant_id",
        "applied_at",
        *(feature.name for feature in FEATURES),
        *PROTECTED,
    ]
    assert set(frame.dtypes) == {np.dtype(object)}
    for name in (*LEVELS, "sex", "origin", "application_id", "applicant_id", "applied_at"):
        assert {type(value) for value in frame[name]} == {str}, name
    for name in (*NUMERIC, "age"):
        wanted = int if name in INTEGERS or name == "age" else float
        assert {type(value) for value in frame[name].dropna()} == {wanted}, name
    assert any(value is None for value in frame["revolving_utilisation"])
    assert frame["application_id"].iloc[0] == "A230901-00001"
    assert frame["applicant_id"].str.fullmatch(r"P\d{9}").all()


def test_a_clean_feed_says_what_the_typed_rows_say() -> None:
    raw, typed = CLEAN.applications(5), CLEAN.typed_applications(5)
    for name in typed:
        if name in NUMERIC:
            assert np.array_equal(raw[name].astype(float), typed[name], equal_nan=True)
        else:
            assert raw[name].tolist() == typed[name].tolist()


@pytest.mark.parametrize("day", [0, 400])
def test_applications_arrive_in_order_within_their_day_in_utc(day: int) -> None:
    frame = BUSY.applications(day)
    assert frame["applied_at"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").all()
    at = pd.to_datetime(frame["applied_at"], utc=True)
    assert at.is_monotonic_increasing
    assert (at.dt.date == BUSY.date_of(day)).all()
    assert at.dt.hour.between(9, 17).mean() == pytest.approx(0.64, abs=0.04)
    assert frame["application_id"].is_unique
    assert frame["application_id"].is_monotonic_increasing


@pytest.mark.parametrize("world", [BUSY, replace(SHOCKED, shock_strength=3.0, disparity=3.0)], ids=["calm", "extreme"])
def test_clean_rows_stay_in_the_bounds(world: LendingWorld) -> None:
    assert_in_bounds(crowd(world, 600))


def test_the_table_of_features_is_complete() -> None:
    assert len({feature.name for feature in FEATURES}) == len(FEATURES) == 15
    for feature in FEATURES:
        assert feature.meaning
        if feature.kind == "numeric":
            assert feature.low is not None
            assert feature.high is not None
            assert feature.low < feature.high
            assert not any(feature.low <= code <= feature.high for code in feature.special)
        else:
            assert len(feature.levels) >= 4
            assert feature.direction == 0


def test_every_level_and_special_code_occurs_in_its_share() -> None:
    frame = crowd(BUSY)
    for name, levels in LEVELS.items():
        assert frame[name].value_counts(normalize=True).reindex(levels).min() > 0.03, name
    codes = frame["months_since_delinquency"].value_counts(normalize=True)
    assert codes[-7] == pytest.approx(0.52, abs=0.03)
    assert codes[-8] == pytest.approx(0.028, abs=0.005)
    assert codes[-9] == pytest.approx(0.053, abs=0.01)
    assert frame["revolving_utilisation"].isna().mean() == pytest.approx(0.14, abs=0.03)
    assert frame["age"].min() < 22
    assert frame["age"].max() > 68


def test_special_codes_mean_what_they_say() -> None:
    frame = crowd(BUSY)
    months, late = frame["months_since_delinquency"], frame["delinquencies_2y"]
    assert (late[months == -7] == 0).all()
    assert (months[(late > 0) & (months != -8)].between(0, 23)).all()
    assert (months[(late == 0) & (months >= 0)] >= 24).all()
    unknown = frame[months == -9]
    assert (unknown[["open_accounts", "delinquencies_2y", "credit_history_months"]] == 0).all(axis=None)
    assert unknown["revolving_utilisation"].isna().all()


def test_some_applicants_come_back_as_who_they_are() -> None:
    frame = days_of(CLEAN, "applications", range(365, 665))
    visits = frame.groupby("applicant_id")
    again = visits.filter(lambda rows: len(rows) > 1).groupby("applicant_id")
    assert len(again) > 100
    assert (again[["sex", "origin"]].agg(set).map(len) == 1).all(axis=None)
    assert ((again["age"].last() - again["age"].first()).between(0, 2)).all()
    # Income is not a trait: it changes a little between two visits of the same person, far less than between persons.
    log_income = np.log(frame["annual_income"].astype(float))
    within = log_income.groupby(frame["applicant_id"]).std().median()
    assert 0 < within < 0.4 * log_income.std()


def test_a_share_of_the_applications_is_by_people_who_applied_before() -> None:
    world = LendingWorld(applications_per_day=300)
    shares = []
    for day in (0, 700):
        absent = day - _lending_people.first_day_of(_lending_people.persons_of(world, day))
        assert set(absent[(absent < 30) | (absent >= 720)]) == {0}
        shares.append(float((absent > 0).mean()))
    assert shares == pytest.approx([0.15, 0.15], abs=0.06)


def test_volume_has_a_weekly_and_a_yearly_rhythm_around_its_mean() -> None:
    sizes = pd.Series(
        [len(WORLD.typed_applications(day)) for day in range(730)],
        index=pd.date_range(WORLD.start, periods=730),
    )
    assert sizes.mean() == pytest.approx(40, rel=0.03)
    by_weekday = sizes.groupby(sizes.index.dayofweek).mean()
    assert by_weekday[6] < by_weekday[5] < by_weekday[:5].min()
    by_month = sizes.groupby(sizes.index.month).mean()
    assert by_month[[12, 1, 2]].mean() > 1.1 * by_month[[6, 7, 8]].mean()
    weeks = sizes.groupby([sizes.index.isocalendar().year, sizes.index.isocalendar().week]).sum()
    assert weeks.var() > 0.5 * weeks.mean()


def test_a_day_without_applications_is_an_empty_frame_of_the_same_columns() -> None:
    world = LendingWorld(applications_per_day=1, unit_error_days=tuple(range(60)))  # type: ignore[arg-type]
    empty = next(day for day in range(60) if not len(world.truth(day)))
    full = next(day for day in range(60) if len(world.truth(day)))
    for name in ("applications", "typed_applications", "booked", "true_pd", "truth"):
        nothing, something = getattr(world, name)(empty), getattr(world, name)(full)
        assert len(nothing) == 0
        assert nothing.dtypes.equals(something.dtypes), name
    assert set(world.planted(empty).values()) == {0}


# --- The truth ---


def with_feature(applications: Applications, name: str, values: object) -> Applications:
    return replace(applications, numeric={**applications.numeric, name: np.asarray(values, dtype=float)})


@pytest.mark.parametrize("stress", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("feature", [feature for feature in FEATURES if feature.direction], ids=lambda one: one.name)
def test_the_log_odds_are_monotone_in_the_documented_direction(feature: object, stress: float) -> None:
    name, direction = feature.name, feature.direction  # type: ignore[attr-defined]
    low, high = BOUNDS[name]
    rows = applications_in_block(BUSY, 0, 0, 500)
    grid = [
        log_odds(BUSY, with_feature(rows, name, np.full(500, value)), stress) * direction
        for value in np.linspace(low, high, 60)
    ]
    steps = np.diff(grid, axis=0)
    assert (steps >= -1e-12).all()
    assert (steps.sum(axis=0) > 0.01).all()


def test_the_number_of_open_accounts_has_its_best_value_in_the_middle() -> None:
    rows = applications_in_block(BUSY, 0, 0, 500)
    none, some, many = (log_odds(BUSY, with_feature(rows, "open_accounts", np.full(500, n)), 0.0) for n in (0, 5, 20))
    assert (none > some).all()
    assert (many > some).all()


def test_high_utilisation_and_late_payments_are_worse_together_than_apart() -> None:
    rows = applications_in_block(BUSY, 0, 0, 500)

    def at(used: float, late: int) -> float:
        changed = with_feature(rows, "revolving_utilisation", np.full(500, used))
        return float(log_odds(BUSY, with_feature(changed, "delinquencies_2y", np.full(500, late)), 0.0).mean())

    assert at(0.9, 2) - at(0.9, 0) > at(0.1, 2) - at(0.1, 0) + 0.5


@pytest.mark.parametrize("seed", [7, 8, 9])
@pytest.mark.parametrize("day", [0, 600])
def test_base_rates_are_as_documented(seed: int, day: int) -> None:
    truth = replace(WORLD, seed=seed).truth_frame(ROWS, day=day)
    assert truth["booked"].mean() == pytest.approx(0.71, abs=0.02)
    assert 0.12 < truth.loc[truth["booked"], "defaults"].mean() < 0.15
    assert truth.loc[~truth["booked"], "defaults"].mean() > 1.5 * truth.loc[truth["booked"], "defaults"].mean()


def test_defaults_happen_with_the_true_probability() -> None:
    truth = crowd(BUSY)
    for _, rows in truth.groupby(pd.qcut(truth["pd"], 10, labels=False)):
        error = np.sqrt((rows["pd"] * (1 - rows["pd"])).sum()) / len(rows)
        assert abs(rows["defaults"].mean() - rows["pd"].mean()) < 3.5 * error
    assert truth["defaults"].equals(truth["days_to_default"] > 0)


def test_defaults_take_time_and_peak_before_the_middle_of_the_window() -> None:
    days = crowd(BUSY).query("defaults")["days_to_default"]
    shares = np.histogram(days, bins=np.linspace(0.5, 365.5, 9))[0] / len(days)
    assert shares.argmax() in {2, 3}
    assert shares[0] < 0.5 * shares.max()
    assert shares[-1] < 0.7 * shares.max()
    assert days.max() == 365


def test_the_old_policy_chooses_by_risk_but_not_well() -> None:
    from sklearn.metrics import roc_auc_score

    rows = applications_in_block(BUSY, 0, 0, ROWS)
    of_rows = fates(BUSY, 0, rows)
    auc = roc_auc_score(of_rows.days_to_default > 0, -of_rows.legacy_score)
    assert 0.6 < auc < 0.72
    # Truncation is not total: everywhere along the true probability some are booked and some are not.
    booked = pd.Series(of_rows.booked).groupby(pd.qcut(of_rows.pd, 10, labels=False)).mean()
    assert booked.is_monotonic_decreasing
    assert 0.2 < booked.iloc[-1] < 0.6
    assert 0.8 < booked.iloc[0] < 1


def test_booked_and_true_pd_are_parts_of_the_truth() -> None:
    truth, booked = WORLD.truth(3), WORLD.booked(3)
    assert booked["application_id"].tolist() == truth.loc[truth["booked"], "application_id"].tolist()
    assert (np.diff([booked["legacy_score"].min(), booked["legacy_score"].max()]) > 0).all()
    assert_frame_equal(WORLD.true_pd(3), truth[["application_id", "pd"]])


# --- Groups ---


def test_protected_attributes_do_not_enter_the_old_policy() -> None:
    rows = applications_in_block(BUSY, 0, 0, 1_000)
    flipped = {**rows.codes, "sex": 1 - rows.codes["sex"], "origin": (rows.codes["origin"] + 1) % 3}
    assert np.array_equal(legacy_score(replace(rows, codes=flipped, age=rows.age + 10)), legacy_score(rows))


def test_the_residual_of_group_c_is_in_the_labels_and_in_no_feature() -> None:
    rows = applications_in_block(BUSY, 0, 0, 1_000)
    as_c, as_a = (replace(rows, codes={**rows.codes, "origin": np.full(1_000, code)}) for code in (2, 0))
    assert log_odds(BUSY, as_c, 0.0) - log_odds(BUSY, as_a, 0.0) == pytest.approx(0.25 * 0.6)


@pytest.mark.parametrize(("disparity", "low", "high"), [(0.0, 0.98, 1.02), (0.6, 0.85, 0.93), (1.5, 0.6, 0.8)])
def test_disparity_sets_how_often_group_c_is_approved(disparity: float, low: float, high: float) -> None:
    frame = crowd(replace(BUSY, disparity=disparity))
    approved = frame.groupby("origin")["booked"].mean()
    assert low < approved["C"] / approved["A"] < high
    assert approved["B"] / approved["A"] == pytest.approx(1, abs=0.02)


def test_group_c_has_less_of_a_start_and_proxies_tell_it_apart() -> None:
    frame = crowd(BUSY)
    median = frame.groupby("origin")[["annual_income", "employment_years", "credit_history_months"]].median()
    assert (median.loc["C"] < 0.9 * median.loc["A"]).all()
    assert (median.loc["B"] / median.loc["A"]).between(0.95, 1.05).all()
    north_east = (frame["region"] == "north_east").groupby(frame["origin"]).mean()
    assert north_east["C"] > 1.6 * north_east["A"]


def test_without_disparity_no_feature_tells_the_groups_apart() -> None:
    frame = crowd(replace(BUSY, disparity=0.0))
    c, a = frame[frame["origin"] == "C"], frame[frame["origin"] == "A"]
    for name in NUMERIC:
        spread = frame[name].std()
        assert abs(c[name].mean() - a[name].mean()) < 5 * spread * np.sqrt(1 / len(c) + 1 / len(a)), name
    for name in LEVELS:
        shares = pd.crosstab(frame["origin"], frame[name], normalize="index")
        assert (shares.loc["C"] - shares.loc["A"]).abs().max() < 0.025, name


# --- The economy ---


def test_unemployment_swings_slowly() -> None:
    rates = [WORLD.unemployment(day) for day in range(0, 1_500, 10)]
    assert 4.5 < min(rates) < max(rates) < 5.9
    assert max(rates) - min(rates) > 0.5
    assert max(abs(later - earlier) for earlier, later in pairwise(rates)) < 0.1


def test_before_a_shock_the_applications_are_those_of_the_calm_world() -> None:
    first = SHOCKED.day_of(SHOCK)
    assert_frame_equal(SHOCKED.applications(first - 1), BUSY.applications(first - 1))
    assert not SHOCKED.applications(first).equals(BUSY.applications(first))


def test_a_shock_is_there_in_two_weeks_and_for_good() -> None:
    first = SHOCKED.day_of(SHOCK)
    rise = [SHOCKED.unemployment(first + after) - BUSY.unemployment(first + after) for after in (-1, 0, 6, 13, 900)]
    assert rise == pytest.approx([0, 3 / 14, 3 / 2, 3, 3])


def test_a_shock_shifts_what_applicants_write_in_proportion_to_its_strength() -> None:
    calm = crowd(BUSY, 600)
    moved = []
    for strength in (0.5, 1.0, 2.0):
        shocked = crowd(replace(SHOCKED, shock_strength=strength), 600)
        income = np.log(shocked["annual_income"]).mean() - np.log(calm["annual_income"]).mean()
        moved.append(income)
        assert shocked["revolving_utilisation"].mean() > calm["revolving_utilisation"].mean() + 0.04
        assert shocked["inquiries_6m"].mean() > 1.2 * calm["inquiries_6m"].mean()
        assert shocked["debt_to_income"].mean() > calm["debt_to_income"].mean()
        for name in ("credit_history_months", "delinquencies_2y", "age", "sex", "origin", "region"):
            assert shocked[name].equals(calm[name]), name
    assert moved[2] < moved[1] < moved[0] < -0.05


def test_a_shock_makes_more_loans_default_and_fewer_applications_pass() -> None:
    calm, shocked = crowd(BUSY, 600), crowd(SHOCKED, 600)
    assert shocked["booked"].mean() < calm["booked"].mean() - 0.05
    assert shocked.query("booked")["defaults"].mean() > 1.6 * calm.query("booked")["defaults"].mean()


def test_a_shock_changes_what_predicts_a_default() -> None:
    rows = applications_in_block(BUSY, 600, 0, 5_000)
    change = log_odds(BUSY, rows, 1.0) - log_odds(BUSY, rows, 0.0)
    poor = rows.numeric["annual_income"] < 20_000
    rich = rows.numeric["annual_income"] > 50_000
    employed = rows.codes["employment_type"]
    assert change[rich].mean() > change[poor].mean() + 0.05
    assert change[employed == 2].mean() > change[employed == 0].mean() + 0.25
    assert np.std(change) > 0.05


def test_loans_made_before_a_shock_default_more_once_it_is_there_and_not_earlier() -> None:
    first = SHOCKED.day_of(SHOCK)
    before = first - 120
    assert_frame_equal(SHOCKED.applications(before), BUSY.applications(before))
    calm, shocked = BUSY.truth(before), SHOCKED.truth(before)
    assert (shocked["pd"] > calm["pd"]).all()
    early = calm["days_to_default"].between(1, 119)
    assert shocked.loc[early, "days_to_default"].equals(calm.loc[early, "days_to_default"])
    assert (shocked["defaults"] & ~calm["defaults"]).sum() > 10
    assert (shocked["defaults"] | ~calm["defaults"]).all()
    long_before = first - 366
    assert_frame_equal(SHOCKED.truth(long_before), BUSY.truth(long_before))


# --- Learnability ---


@pytest.fixture(scope="module")
def loans() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Booked loans to learn from and to judge on, from 120,000 applications."""
    columns = WORLD.applications_frame(120_000, day=500)
    truth = WORLD.truth_frame(120_000, day=500).drop(columns="application_id")
    booked = pd.concat([columns, truth], axis=1).query("booked").reset_index(drop=True)
    return booked.iloc[:30_000], booked.iloc[30_000:]


def auc_of_logistic_regression(train: pd.DataFrame, test: pd.DataFrame) -> float:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from threadpoolctl import threadpool_limits

    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    columns = make_column_transformer((numbers, list(NUMERIC)), (OneHotEncoder(), list(LEVELS)))
    with threadpool_limits(1):
        model = make_pipeline(columns, LogisticRegression(max_iter=500)).fit(train, train["defaults"])
        return float(roc_auc_score(test["defaults"], model.predict_proba(test)[:, 1]))


def auc_of_boosted_trees(train: pd.DataFrame, test: pd.DataFrame) -> float:
    from lightgbm import LGBMClassifier
    from sklearn.metrics import roc_auc_score

    names = [*NUMERIC, *LEVELS]
    seen, unseen = (
        frame[names].assign(**{name: pd.Categorical(frame[name], LEVELS[name]) for name in LEVELS})
        for frame in (train, test)
    )
    model = LGBMClassifier(
        n_estimators=200, learning_rate=0.05, num_leaves=12, min_child_samples=80, colsample_bytree=0.7, n_jobs=1,
        random_state=1, deterministic=True, force_row_wise=True, verbose=-1,
    )  # fmt: skip
    return float(roc_auc_score(test["defaults"], model.fit(seen, train["defaults"]).predict_proba(unseen)[:, 1]))


def test_models_rank_loans_as_well_as_on_real_books_and_trees_only_a_little_better(
    loans: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    from sklearn.metrics import roc_auc_score

    train, test = loans
    ceiling = float(roc_auc_score(test["defaults"], test["pd"]))
    logistic, trees = auc_of_logistic_regression(train, test), auc_of_boosted_trees(train, test)
    assert 0.72 < logistic < trees < ceiling < 0.80
    assert trees - logistic < 0.02
