"""Weak slices, wrong labels and what mending does, in worlds where it is known what is wrong."""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk import _label_errors as labels
from mlops_assets.credit_risk import _weak_slices as weak
from mlops_assets.credit_risk import data_centric, training
from mlops_assets.credit_risk.data_centric import Change
from mlops_assets.credit_risk.metrics import Minimum
from mlops_assets.credit_risk.sample_spec import default_spec
from mlops_assets.credit_risk.schema import Feature, FeatureSchema
from mlops_assets.foundation.errors import UserError
from mlops_assets.samples.lending import LendingWorld

SPEC = default_spec()
SCHEMA = FeatureSchema.of(SPEC)
FEW = FeatureSchema(tuple(each for each in SCHEMA.features if each.name in {"region", "purpose", "annual_income"}))
BROKEN = "2024-05"


def book(rows: int = 12_000) -> pd.DataFrame:
    """Return loans of the sample world with their true PD, made over a year."""
    world = LendingWorld(seed=11)
    frame = world.applications_frame(rows)
    truth = world.truth_frame(rows)
    times = pd.date_range("2024-01-01", "2024-12-31", periods=rows)
    people = [f"P{number // 2}" for number in range(rows)]
    return frame[["application_id", *SCHEMA.names]].assign(
        applicant_id=people, applied_at=times, bad=truth["defaults"].astype(np.int8), true_pd=truth["pd"]
    )


@pytest.fixture(scope="module")
def loans() -> pd.DataFrame:
    return book()


@pytest.fixture(scope="module")
def frames(loans: pd.DataFrame) -> dict[str, pd.DataFrame]:
    bounds = {"train": (0, 6_000), "calibrate": (6_000, 8_000), "test": (8_000, 12_000)}
    return {name: loans.iloc[a:b].reset_index(drop=True) for name, (a, b) in bounds.items()}


def flipped(frame: pd.DataFrame, inside: np.ndarray) -> pd.DataFrame:
    return frame.assign(bad=np.where(inside, 1 - frame["bad"], frame["bad"]).astype(np.int8))


# ---- weak slices


def searched(loans: pd.DataFrame, predicted: np.ndarray, **given: Any) -> data_centric.WeakSlices:
    return weak.weak_slices(loans, loans["bad"], predicted, FEW, **given)


def test_where_every_pd_is_right_nothing_is_found(loans: pd.DataFrame) -> None:
    found = weak.weak_slices(loans, loans["bad"], loans["true_pd"], SCHEMA)
    assert found.found == ()
    assert found.tested > 1_500
    assert found.tried > found.tested
    assert not found.table()["beyond_chance"].any()


def test_chance_alone_seldom_finds_anything(loans: pd.DataFrame) -> None:
    rng = np.random.default_rng(2)
    predicted = loans["true_pd"].to_numpy()
    hits = sum(
        bool(weak.weak_slices(loans, rng.random(len(loans)) < predicted, predicted, FEW).found) for _ in range(12)
    )
    # Five in a hundred are expected; four of twelve or more would be one time in five hundred.
    assert hits <= 3


def test_a_level_that_is_off_everywhere_is_in_no_slice(loans: pd.DataFrame) -> None:
    odds = loans["true_pd"] / (1 - loans["true_pd"]) * 1.3
    found = searched(loans, (odds / (1 + odds)).to_numpy(), pairs=False)
    assert all(each.weak_in != "order" for each in found.found)
    assert len(found.found) <= 1


def test_a_value_whose_pds_are_too_low_is_found_first(loans: pd.DataFrame) -> None:
    inside = (loans["region"] == "east").to_numpy()
    predicted = np.where(inside, loans["true_pd"] * 0.5, loans["true_pd"])
    first = searched(loans, predicted).slices[0]
    assert first.conditions == {"region": "east"}
    assert first.weak_in in {"calibration", "log loss"}
    assert first.gap.low is not None
    assert first.gap.low > 0.02
    assert abs(first.gap_rest) < 0.02
    assert (first.rows == np.flatnonzero(inside)).all()
    assert first.share == inside.mean()


def test_a_pair_is_found_where_neither_value_alone_is_weak(loans: pd.DataFrame) -> None:
    inside = ((loans["region"] == "east") & (loans["purpose"] == "car")).to_numpy()
    predicted = np.where(inside, loans["true_pd"] * 0.25, loans["true_pd"])
    first = searched(loans, predicted).slices[0]
    assert first.conditions == {"purpose": "car", "region": "east"}
    assert first.name == "purpose = car & region = east"


def test_an_order_that_is_lost_is_found_as_such(loans: pd.DataFrame) -> None:
    inside = (loans["purpose"] == "car").to_numpy()
    predicted = loans["true_pd"].to_numpy().copy()
    predicted[inside] = np.random.default_rng(4).permutation(predicted[inside])
    first = searched(loans, predicted).slices[0]
    assert first.conditions["purpose"] == "car"
    assert first.weak_in in {"order", "log loss"}
    assert first.auc.high is not None
    assert first.auc.high < first.auc_foreseen
    assert first.auc_rest > 0.7


def test_a_slice_of_people_who_are_alike_is_not_weak_for_that(loans: pd.DataFrame) -> None:
    # All of one PD: nothing can be put in order there, and nothing is expected to be.
    inside = (loans["purpose"] == "car").to_numpy()
    predicted = np.where(inside, 0.12, loans["true_pd"])
    y = np.where(inside, np.random.default_rng(5).random(len(loans)) < 0.12, loans["bad"])
    found = weak.weak_slices(loans, y, predicted, FEW, pairs=False)
    car = [each for each in found.slices if each.conditions == {"purpose": "car"}]
    assert all(each.q_value > 0.05 for each in car)


def test_small_slices_are_not_tested_and_none_is_larger_than_half(loans: pd.DataFrame) -> None:
    found = searched(loans, loans["true_pd"].to_numpy(), minimum=Minimum(2_000, 100, 100))
    assert all(2_000 <= len(each.rows) <= len(loans) / 2 for each in found.slices)
    assert all(each.bads >= 100 for each in found.slices)
    nothing = searched(loans, loans["true_pd"].to_numpy(), minimum=Minimum(11_000, 10, 10))
    assert (nothing.tested, nothing.slices) == (0, ())
    assert list(nothing.table().columns) == list(found.table().columns)


def test_no_slice_is_listed_twice_by_other_names(loans: pd.DataFrame) -> None:
    twin = loans.assign(again=loans["region"])
    schema = FeatureSchema((*FEW.features, Feature("again", "categorical", "t", "region, again")))
    predicted = np.where(loans["region"] == "east", loans["true_pd"] * 0.5, loans["true_pd"])
    found = weak.weak_slices(twin, loans["bad"], predicted, schema)
    named = [each for each in found.slices if "east" in each.conditions.values() and len(each.conditions) == 1]
    assert len(named) == 1


def test_the_page_of_a_search_is_short_and_about_nobody(loans: pd.DataFrame) -> None:
    predicted = np.where(loans["region"] == "east", loans["true_pd"] * 0.5, loans["true_pd"])
    found = weak.weak_slices(loans, loans["bad"], predicted, SCHEMA)
    table = found.table()
    assert 0 < len(table) <= 20
    assert table["p_value"].is_monotonic_increasing
    assert table["n"].min() >= 100
    assert found.picture().startswith(b"\x89PNG")
    assert len(found.picture()) <= 30_000
    facts = found.facts()
    assert facts["slices_found"] == len(found.found)
    assert all(isinstance(value, int | float | str) for value in facts.values())


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        pytest.param([-9.0, np.nan, 1.0, 2.0], ["no file", "(missing)", "1", "2"], id="codes, gaps and few numbers"),
        pytest.param([-9.0, -9.0], ["no file"] * 2, id="codes alone"),
    ],
)
def test_codes_and_gaps_are_parts_of_their_own(values: list[float], parts: list[str]) -> None:
    feature = Feature("x", "numeric", "t", special={-9.0: "no file"})
    assert weak.parts_of(pd.Series(values), feature).tolist() == parts


def test_many_numbers_are_cut_into_ranges_without_codes() -> None:
    feature = Feature("x", "numeric", "t", special={-9.0: "no file"})
    values = np.concatenate([np.full(50, -9.0), np.arange(100.0)])
    parts = weak.parts_of(pd.Series(values), feature)
    assert sorted(set(parts)) == ["0 to 24", "24 to 49", "49 to 74", "74 to 99", "no file"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]), min_size=2, max_size=12))
def test_the_foreseen_auc_is_the_mean_over_all_outcomes_of_pairs(predicted: list[float]) -> None:
    p = np.array(predicted)
    ordered = pairs = 0.0
    for i, j in product(range(len(p)), repeat=2):
        if i != j:
            weight = p[i] * (1 - p[j])
            pairs += weight
            ordered += weight * (1.0 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0.0)
    assert weak.foreseen_auc(p) == pytest.approx(ordered / pairs)


# ---- likely label errors


def test_flips_that_were_planted_are_found_far_above_chance(frames: dict[str, pd.DataFrame]) -> None:
    rng = np.random.default_rng(6)
    inside = {name: rng.random(len(frames[name])) < 0.03 for name in ("train", "calibrate")}
    spoiled = {name: flipped(frames[name], mask) for name, mask in inside.items()}
    planted = set().union(*(frames[name].loc[mask, "application_id"] for name, mask in inside.items()))
    found = data_centric.likely_label_errors(SPEC, {**frames, **spoiled})
    hits = np.isin(found.ids, list(planted))
    base = len(planted) / found.loans
    assert len(found.ids) == 80
    assert hits.mean() > 8 * base
    assert (np.diff(found.scores) >= 0).all()
    # It is the improbable label that is in doubt.
    given = pd.concat(list(spoiled.values())).set_index("application_id")["bad"].astype(int)
    probability = np.where(found.labels == 1, found.predicted[list(found.ids)], 1 - found.predicted[list(found.ids)])
    assert (given[list(found.ids)].to_numpy() == found.labels).all()
    assert probability.tolist() == found.scores.tolist()


def test_a_month_of_wrong_labels_is_where_doubt_gathers(frames: dict[str, pd.DataFrame]) -> None:
    train = frames["train"]
    month = (train["applied_at"].dt.strftime("%Y-%m") == BROKEN).to_numpy()
    inside = month & (np.random.default_rng(7).random(len(train)) < 0.2)
    found = data_centric.likely_label_errors(SPEC, {**frames, "train": flipped(train, inside)})
    first = found.table().iloc[0]
    assert first["slice"] == f"{labels.MONTH} = {BROKEN}"
    assert first["beyond_luck"]
    assert first["ratio"] > 1.4
    assert first["doubtful"] > first["foreseen"] + 30


def test_luck_is_told_from_mistakes(frames: dict[str, pd.DataFrame]) -> None:
    found = data_centric.likely_label_errors(SPEC, frames)
    # All labels are right; still hundreds of loans count as the other class, as many as their PDs foresee.
    assert found.doubtful > 200
    assert found.doubtful == pytest.approx(found.foreseen, rel=0.1)
    assert (
        found.facts()["doubtful"] == found.doubtful == found.facts()["doubtful_bads"] + found.facts()["doubtful_goods"]
    )
    assert f"{labels.MONTH} = {BROKEN}" not in found.gathered["slice"].tolist()


def test_the_page_of_doubtful_labels_names_nobody(frames: dict[str, pd.DataFrame]) -> None:
    found = data_centric.likely_label_errors(SPEC, frames)
    table = found.table()
    assert 0 < len(table) <= 20
    assert table["loans"].min() >= 10
    told = table.to_csv() + str(found.facts())
    assert not any(name in told for name in found.ids)
    assert found.picture().startswith(b"\x89PNG")
    assert len(found.picture()) <= 30_000


def test_the_same_loans_give_the_same_answer(frames: dict[str, pd.DataFrame]) -> None:
    one, other = (data_centric.likely_label_errors(SPEC, frames) for _ in range(2))
    assert one.ids == other.ids
    assert one.table().equals(other.table())


def test_no_model_sees_a_person_that_it_judges(frames: dict[str, pd.DataFrame]) -> None:
    seen: list[tuple[set[str], pd.DataFrame]] = []

    class Watching:
        def __init__(self, train: pd.DataFrame, calibrate: pd.DataFrame) -> None:
            self.known = {*train["applicant_id"], *calibrate["applicant_id"]}

        def predict(self, features: pd.DataFrame) -> np.ndarray:
            seen.append((self.known, features))
            return np.full(len(features), 0.2)

    first, second = frames["train"], frames["calibrate"]
    labels.likely_label_errors(first, second, SCHEMA, Watching)  # type: ignore[arg-type]
    people = {"train": first["applicant_id"], "calibrate": second["applicant_id"]}
    assert len(seen) == 10
    judged = 0
    for at, (known, features) in enumerate(seen):
        mine = people["train" if at % 2 == 0 else "calibrate"].loc[features.index]
        assert known.isdisjoint(mine)
        judged += len(features)
    assert judged == len(first) + len(second)


def test_fewer_people_than_folds_are_an_error(frames: dict[str, pd.DataFrame]) -> None:
    few = frames["train"].iloc[:4]
    with pytest.raises(UserError, match="2 people cannot be cut into 5 folds"):
        labels.likely_label_errors(few, few.iloc[:0], SCHEMA, partial(training.fit_scorecard, SPEC))


@pytest.mark.parametrize(
    ("predicted", "good_at", "bad_at", "taken"),
    [
        pytest.param(0.05, 0.9, 0.3, 0, id="surely good"),
        pytest.param(0.4, 0.9, 0.3, 1, id="surely bad"),
        pytest.param(0.2, 0.9, 0.3, -1, id="neither"),
        pytest.param(0.46, 0.5, 0.4, 1, id="both, and bad by more"),
        pytest.param(0.42, 0.5, 0.4, 0, id="both, and good by more"),
    ],
)
def test_a_loan_counts_as_the_class_whose_average_it_reaches(
    predicted: float, good_at: float, bad_at: float, taken: int
) -> None:
    assert labels._taken_for(np.array([predicted]), good_at, bad_at).tolist() == [taken]


# ---- experiments


@pytest.fixture(scope="module")
def spoiled(frames: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], Change]:
    """Training loans of which every tenth label is wrong, and the change that would mend them all."""
    rng = np.random.default_rng(8)
    inside = {name: rng.random(len(frames[name])) < 0.1 for name in ("train", "calibrate")}
    wrong = {name: flipped(frames[name], mask) for name, mask in inside.items()}
    ids = [each for name, mask in inside.items() for each in frames[name].loc[mask, "application_id"]]
    return {**frames, **wrong}, Change("mend what is wrong", tuple(ids), relabel=True)


def test_mending_wrong_labels_helps_and_random_turning_does_not(
    spoiled: tuple[dict[str, pd.DataFrame], Change],
) -> None:
    wrong, mend = spoiled
    found = data_centric.slice_experiment(SPEC, wrong, changes=[mend])
    effect = found.effects[0]
    assert effect.helps("brier")
    assert effect.helps("log_loss")
    assert len(effect.controls["auc"]) == 5
    assert effect.differences["brier"].value is not None
    assert effect.differences["brier"].value < min(effect.controls["brier"])
    assert found.table()["better"].str.contains("brier").all()
    assert found.facts()["changes_that_help"] == 1


def test_leaving_out_risky_loans_does_not_help(frames: dict[str, pd.DataFrame]) -> None:
    learned = pd.concat([frames["train"], frames["calibrate"]])
    bads = tuple(learned.loc[learned["bad"] == 1, "application_id"].iloc[::2])
    found = data_centric.slice_experiment(SPEC, frames, changes=[Change("half of the bad", bads, relabel=False)])
    effect = found.effects[0]
    assert effect.loans == len(bads)
    assert not any(effect.helps(metric) for metric in ("auc", "brier", "log_loss"))
    assert effect.differences["brier"].low is not None
    assert effect.differences["brier"].low > 0


def test_doing_nothing_changes_nothing(frames: dict[str, pd.DataFrame]) -> None:
    found = data_centric.slice_experiment(SPEC, frames, changes=[Change("nothing", (), relabel=True)])
    effect = found.effects[0]
    assert {each.value for each in effect.differences.values()} == {0.0}
    assert set(effect.controls["auc"]) == {0.0}
    assert not effect.helps("auc")


def test_a_change_that_leaves_nothing_to_learn_from_says_so(frames: dict[str, pd.DataFrame]) -> None:
    bads = tuple(frames["train"].loc[frames["train"]["bad"] == 1, "application_id"])
    found = data_centric.slice_experiment(SPEC, frames, changes=[Change("no bad loans", bads, relabel=False)])
    row = found.table().iloc[0]
    assert "bad loans" in row["reason"]
    assert np.isnan(row["auc"])
    assert row["better"] == ""


def test_what_is_tried_is_found_without_the_loans_that_judge_it(frames: dict[str, pd.DataFrame]) -> None:
    learned = {name: frames[name] for name in ("train", "calibrate")}
    errors = data_centric.likely_label_errors(SPEC, learned)
    changes = data_centric._suggested(SPEC, learned, errors)
    assert [change.relabel for change in changes] == [True, False, False, False, False]
    known = {*frames["train"]["application_id"], *frames["calibrate"]["application_id"]}
    assert all(known.issuperset(change.ids) and change.ids for change in changes)


def test_the_page_of_an_experiment(frames: dict[str, pd.DataFrame]) -> None:
    before = frames["test"].copy()
    found = data_centric.slice_experiment(SPEC, frames)
    pd.testing.assert_frame_equal(frames["test"], before)
    table = found.table()
    assert len(table) == 5
    assert table["change"].str.startswith("relabel").sum() == 1
    assert (table["auc_low"] <= table["auc_high"]).all()
    assert (table["auc_random_low"] <= table["auc_random_high"]).all()
    assert found.picture().startswith(b"\x89PNG")
    assert len(found.picture()) <= 30_000
    assert found.facts()["tested"] == len(before)
    told = table.to_csv() + str(found.facts())
    assert not any(name in told for name in before["application_id"].iloc[:100])


# ---- as assets ask for it


def test_the_three_questions_take_a_spec_frames_and_a_model(frames: dict[str, pd.DataFrame]) -> None:
    model = training.fit_scorecard(SPEC, frames["train"], frames["calibrate"])
    found = data_centric.weak_slices(SPEC, frames, model)
    assert found.rows == len(frames["test"])
    assert found.whole.value is not None
    assert found.slices
