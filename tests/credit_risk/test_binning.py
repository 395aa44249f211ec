"""Bins follow the outcomes and the direction, and what training knows little of never scores better than it should."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk.binning import FeatureBins, fit_bins
from mlops_assets.credit_risk.schema import Feature
from mlops_assets.credit_risk.spec import Scorecard

SETTINGS = Scorecard()
LOANS = 1_000


def numeric(monotone: Any = 0, **more: Any) -> Feature:
    return Feature("x", "numeric", "theme", monotone=monotone, **more)


CATEGORY = Feature("c", "categorical", "theme")


def outcomes(*rates: tuple[int, float]) -> np.ndarray:
    """Return outcomes of groups, one after the other: so many loans, of which this share is bad, spread evenly."""
    return np.concatenate([np.diff(np.floor(np.arange(rows + 1) * rate + 0.5)) for rows, rate in rates]).astype(
        np.int64
    )


def kinds(bins: FeatureBins) -> list[str]:
    return [each.kind for each in bins.bins]


def found(bins: FeatureBins, *values: Any) -> list[str]:
    array = np.array(values, dtype=np.float64 if bins.kind == "numeric" else object)
    return [bins.bins[at].label for at in bins.assign(array)[0]]


def woe_of(bins: FeatureBins, *values: Any) -> list[float]:
    array = np.array(values, dtype=np.float64 if bins.kind == "numeric" else object)
    return bins.woe[bins.assign(array)[0]].tolist()


# ---- numbers


def test_a_step_in_the_bad_rate_is_found_where_it_is() -> None:
    x = np.arange(LOANS, dtype=float)
    bins = fit_bins(numeric(), x, outcomes((400, 0.1), (600, 0.5)), Scorecard(max_bins=2))
    assert bins.edges == (399.5,)
    assert (bins.low, bins.high) == (0.0, 999.0)
    assert kinds(bins) == ["interval", "interval", "missing", "out_of_range"]
    assert [(each.goods, each.bads) for each in bins.bins[:2]] == [(360, 40), (300, 300)]
    # ln(share of good / share of bad), counts raised by a half
    assert bins.bins[0].woe == pytest.approx(np.log((360.5 / 660) / (40.5 / 340)))
    assert found(bins, 399.0, 399.5, 400.0) == ["up to 399.5", "up to 399.5", "above 399.5"]


def test_bins_are_large_enough_and_few_enough() -> None:
    rng = np.random.default_rng(0)
    x, bad = rng.normal(size=LOANS), rng.integers(0, 2, LOANS)
    bins = fit_bins(numeric(), x, bad, Scorecard(max_bins=5, minimum_share=0.1))
    sizes = [each.goods + each.bads for each in bins.bins if each.kind == "interval"]
    assert len(sizes) == 5
    assert min(sizes) >= 100
    assert sum(sizes) == LOANS


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=40, max_size=200),
    monotone=st.sampled_from([-1, 1]),
)
def test_weight_of_evidence_follows_the_direction(data: list[tuple[int, bool]], monotone: int) -> None:
    x = np.array([value for value, _ in data], dtype=float)
    bad = np.array([bad for _, bad in data], dtype=np.int64)
    bad[:2] = [0, 1]
    bins = fit_bins(numeric(monotone), x, bad, Scorecard(minimum_share=0.02, max_bins=20))
    intervals = bins.woe[: len(bins.edges) + 1]
    assert (monotone * np.diff(intervals) <= 1e-12).all()
    assert sum(each.goods + each.bads for each in bins.bins) == len(x)
    assert (np.diff(bins.edges) > 0).all()


def test_a_direction_against_the_data_leaves_one_bin() -> None:
    x = np.arange(LOANS, dtype=float)
    bins = fit_bins(numeric(-1), x, outcomes((500, 0.1), (500, 0.5)), SETTINGS)
    assert bins.edges == ()
    assert bins.bins[0].label == "any value"
    assert bins.information_value == pytest.approx(0.0, abs=1e-6)


def test_a_free_feature_may_turn() -> None:
    x = np.arange(900, dtype=float)
    bins = fit_bins(numeric(), x, outcomes((300, 0.1), (300, 0.6), (300, 0.1)), Scorecard(max_bins=3))
    low, middle, high = bins.woe[:3]
    assert low > middle < high


def test_neighbouring_doubles_can_be_parted() -> None:
    low = 1.0
    high = float(np.nextafter(low, 2.0))
    x = np.repeat([low, high], 500)
    bins = fit_bins(numeric(), x, outcomes((500, 0.1), (500, 0.5)), SETTINGS)
    assert found(bins, low) != found(bins, high)


def test_huge_values_do_not_overflow() -> None:
    x = np.repeat([1.6e308, 1.7e308], 500)
    bins = fit_bins(numeric(), x, outcomes((500, 0.1), (500, 0.5)), SETTINGS)
    assert bins.edges == pytest.approx((1.65e308,))


# ---- missing, special, out of range


def test_a_missing_value_that_training_never_had_is_the_worst() -> None:
    x = np.arange(LOANS, dtype=float)
    bins = fit_bins(numeric(), x, outcomes((500, 0.1), (500, 0.5)), SETTINGS)
    intervals = bins.woe[: len(bins.edges) + 1]
    assert woe_of(bins, np.nan) == [intervals.min()]


def test_many_missing_values_speak_for_themselves_almost() -> None:
    x = np.where(np.arange(20_000) < 10_000, np.nan, np.arange(20_000, dtype=float))
    bad = outcomes((10_000, 0.05), (5_000, 0.2), (5_000, 0.4))
    bins = fit_bins(numeric(), x, bad, SETTINGS)
    own = np.log((9_500.5 / (20_000 - bad.sum())) / (500.5 / bad.sum()))
    missing = woe_of(bins, np.nan)[0]
    assert own - 0.1 < missing < own
    assert missing > bins.woe[: len(bins.edges) + 1].max()


def test_few_missing_values_that_look_good_are_not_believed() -> None:
    bad = outcomes((3, 0.0), (500, 0.1), (497, 0.5))
    x = np.where(np.arange(LOANS) < 3, np.nan, np.arange(LOANS, dtype=float))
    bins = fit_bins(numeric(), x, bad, SETTINGS)
    own = np.log((3.5 / (LOANS - bad.sum())) / (0.5 / bad.sum()))
    assert own > 1.0
    assert woe_of(bins, np.nan)[0] < 0.0


def test_missing_values_worse_than_every_bin_stay_so() -> None:
    bad = outcomes((200, 0.9), (400, 0.1), (400, 0.3))
    x = np.where(np.arange(LOANS) < 200, np.nan, np.arange(LOANS, dtype=float))
    bins = fit_bins(numeric(), x, bad, SETTINGS)
    assert woe_of(bins, np.nan)[0] < bins.woe[: len(bins.edges) + 1].min()


@pytest.mark.parametrize("value", [-0.1, 999.1, np.inf, -np.inf])
def test_a_value_beyond_training_is_the_worst_and_flagged(value: float) -> None:
    x = np.arange(LOANS, dtype=float)
    bins = fit_bins(numeric(), x, outcomes((500, 0.5), (500, 0.1)), SETTINGS)
    places, beyond = bins.assign(np.array([value, 0.0, 999.0, np.nan]))
    assert beyond.tolist() == [True, False, False, False]
    assert bins.bins[places[0]].kind == "out_of_range"
    assert bins.woe[places[0]] == bins.woe.min()


def test_a_special_code_has_its_own_bin_and_is_no_quantity() -> None:
    x = np.concatenate([np.full(100, -9.0), np.arange(900.0)])
    bad = outcomes((100, 0.6), (450, 0.1), (450, 0.3))
    bins = fit_bins(numeric(special={-9.0: "no file"}), x, bad, SETTINGS)
    assert bins.low == 0.0
    assert found(bins, -9.0) == ["no file"]
    assert bins.assign(np.array([-9.0, -8.0]))[1].tolist() == [False, True]
    own = np.log((40.5 / (LOANS - bad.sum())) / (60.5 / bad.sum()))
    assert woe_of(bins, -9.0)[0] == pytest.approx(own)


def test_tiny_special_codes_share_a_bin_and_unseen_ones_fall_into_it() -> None:
    x = np.concatenate([np.full(5, -9.0), np.full(4, -8.0), np.arange(991.0)])
    bad = outcomes((9, 0.0), (500, 0.1), (491, 0.5))
    codes = {-9.0: "no file", -8.0: "no account", -7.0: "condition not met"}
    bins = fit_bins(numeric(special=codes), x, bad, SETTINGS)
    assert found(bins, -9.0, -8.0, -7.0) == ["no file or no account or condition not met"] * 3
    own = np.log((9.5 / (LOANS - bad.sum())) / (0.5 / bad.sum()))
    assert bins.woe.min() <= woe_of(bins, -9.0)[0] < own - 1.0


def test_a_special_code_that_training_never_had_is_the_worst() -> None:
    x = np.arange(LOANS, dtype=float)
    bins = fit_bins(numeric(special={-9.0: "no file"}), x, outcomes((500, 0.1), (500, 0.5)), SETTINGS)
    assert woe_of(bins, -9.0) == [bins.woe.min()]


def test_a_feature_that_is_always_missing_has_no_information() -> None:
    bins = fit_bins(numeric(), np.full(LOANS, np.nan), outcomes((LOANS, 0.2)), SETTINGS)
    assert (bins.low, bins.high, bins.edges) == (None, None, ())
    assert bins.information_value == pytest.approx(0.0, abs=1e-3)
    places, beyond = bins.assign(np.array([5.0, np.nan]))
    assert [bins.bins[at].kind for at in places] == ["out_of_range", "missing"]
    assert beyond.tolist() == [True, False]


# ---- categories


def levels_of(*parts: tuple[str | None, int]) -> np.ndarray:
    return np.array([level for level, rows in parts for _ in range(rows)], dtype=object)


def test_frequent_categories_have_bins_and_rare_ones_share_one() -> None:
    c = levels_of(("a", 500), ("b", 450), ("y", 20), ("z", 30))
    bins = fit_bins(CATEGORY, c, outcomes((500, 0.1), (450, 0.4), (50, 0.1)), SETTINGS)
    assert kinds(bins) == ["level", "level", "missing", "other"]
    assert found(bins, "a", "b", "y", "z", "never seen") == ["a", "b", "other", "other", "other"]
    assert bins.assign(np.array(["z", "never seen", None], dtype=object))[1].tolist() == [False, True, False]


def test_rare_and_unknown_categories_are_never_better_than_the_average() -> None:
    c = levels_of(("a", 600), ("b", 370), ("z", 30))
    bins = fit_bins(CATEGORY, c, outcomes((600, 0.3), (370, 0.5), (30, 0.0)), SETTINGS)
    assert woe_of(bins, "z")[0] <= 0.0


def test_unknown_categories_are_the_worst_where_there_were_no_rare_ones() -> None:
    bins = fit_bins(CATEGORY, levels_of(("a", 500), ("b", 500)), outcomes((500, 0.1), (500, 0.4)), SETTINGS)
    assert woe_of(bins, "new") == woe_of(bins, "b") == woe_of(bins, None)


def test_too_many_categories_are_merged_by_their_bad_rate() -> None:
    c = levels_of(("a", 250), ("b", 250), ("c", 250), ("d", 250))
    bins = fit_bins(CATEGORY, c, outcomes((250, 0.1), (250, 0.5), (250, 0.12), (250, 0.48)), Scorecard(max_bins=2))
    assert [each.label for each in bins.bins[:2]] == ["a, c", "d, b"]
    assert found(bins, "c", "b") == ["a, c", "d, b"]


def test_only_rare_categories_say_nothing() -> None:
    c = np.array([f"id{number}" for number in range(LOANS)], dtype=object)
    bins = fit_bins(CATEGORY, c, outcomes((LOANS, 0.3)), SETTINGS)
    assert kinds(bins) == ["missing", "other"]
    assert abs(bins.information_value) < 1e-2


def test_a_category_may_be_called_missing() -> None:
    c = levels_of(("missing", 500), ("other", 300), (None, 200))
    bins = fit_bins(CATEGORY, c, outcomes((500, 0.1), (300, 0.4), (200, 0.7)), SETTINGS)
    places, beyond = bins.assign(np.array(["missing", "other", None], dtype=object))
    assert [bins.bins[at].kind for at in places] == ["level", "level", "missing"]
    assert not beyond.any()


# ---- one value, many values, and the file


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "z", "new", ""]), st.just(np.nan)), max_size=200))
def test_categories_are_found_alike_one_by_one_and_in_batches(values: list[Any]) -> None:
    c = levels_of(("a", 500), ("b", 450), ("z", 30), (None, 20))
    bins = fit_bins(CATEGORY, c, outcomes((500, 0.1), (450, 0.4), (50, 0.3)), SETTINGS)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    places, beyond = bins.assign(array)
    single = [bins.assign(array[at : at + 1]) for at in range(len(values))]
    assert places.tolist() == [int(place[0]) for place, _ in single]
    assert beyond.tolist() == [bool(flag[0]) for _, flag in single]


def test_bins_survive_json_to_the_bit() -> None:
    rng = np.random.default_rng(2)
    x = rng.lognormal(3, 2, LOANS)
    x[:60], x[60:120] = np.nan, -9.0
    bins = fit_bins(numeric(1, special={-9.0: "no file"}), x, rng.integers(0, 2, LOANS), SETTINGS)
    again = FeatureBins.from_dict(json.loads(json.dumps(bins.to_dict())))
    assert again == bins
    values = np.concatenate([x, rng.lognormal(3, 3, LOANS)])
    for one, other in zip(bins.assign(values), again.assign(values), strict=True):
        assert one.tolist() == other.tolist()


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"x": rng.normal(size=LOANS), "c": rng.choice(list("abcdefgh"), LOANS)})
    bad = rng.integers(0, 2, LOANS)
    order = rng.permutation(LOANS)
    for feature, name in ((numeric(), "x"), (CATEGORY, "c")):
        values = frame[name].to_numpy(dtype=object if name == "c" else float)
        assert fit_bins(feature, values, bad, SETTINGS) == fit_bins(feature, values[order], bad[order], SETTINGS)
