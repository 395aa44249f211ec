"""Metrics against known values, their intervals, and what they refuse to put a number on."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, roc_curve

from mlops_assets.credit_risk import metrics
from mlops_assets.credit_risk.metrics import Estimate, Minimum, Terms
from mlops_assets.foundation.errors import UserError

ANY = Terms(minimum=Minimum(1, 1, 1))
QUICK = Terms(draws=100)


def book(n: int = 3000, seed: int = 0, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes with their exact default probabilities."""
    rng = np.random.default_rng(seed)
    predicted = 1 / (1 + np.exp(-(skill * rng.normal(size=n) - 1.5)))
    return (rng.random(n) < predicted).astype(float), predicted


def worse(predicted: np.ndarray, seed: int = 5) -> np.ndarray:
    """The same book as a weaker model sees it."""
    noise = np.random.default_rng(seed).normal(size=len(predicted)) * 0.8
    return 1 / (1 + np.exp(-(np.log(predicted / (1 - predicted)) + noise)))


@pytest.fixture(scope="module")
def loans() -> tuple[np.ndarray, np.ndarray]:
    return book()


labelled = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=6, max_size=60).filter(
    lambda rows: 2 <= sum(bad for bad, _ in rows) <= len(rows) - 2
)


def columns(rows: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([bad for bad, _ in rows], dtype=float), np.array([score / 10 for _, score in rows])


# Estimates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [(None, None, None, 3, "assessed"), (0.5, 0.6, 0.4, 3), (math.nan, 0.0, 1.0, 3), (0.5, 0.4, math.inf, 3),
     (0.5, 0.4, 0.6, 3, "not_assessed", "why"), (None, None, None, 3, "not_assessed", "")],
)  # fmt: skip
def test_no_estimate_is_half_a_number(numbers):
    with pytest.raises(ValueError):
        Estimate(*numbers)


def test_what_was_not_assessed_has_no_number_and_never_passes():
    unknown = Estimate.unknown(7, "there are 7 rows")
    assert not unknown.assessed
    assert unknown.as_row() == {
        "value": None, "low": None, "high": None, "n": 7, "status": "not_assessed", "reason": "there are 7 rows",
    }  # fmt: skip
    for judge in (metrics.at_least, metrics.at_most):
        assert judge(unknown, 0.8).status == "not_assessed"
        assert judge(unknown, 0.8).reason == "there are 7 rows"
    assert all(math.isnan(number) for number in unknown.number())


@pytest.mark.parametrize(
    ("value", "low", "high", "status", "doubtful"),
    [(0.9, 0.85, 0.95, "passed", False), (0.82, 0.7, 0.95, "passed", True), (0.79, 0.7, 0.9, "failed", True),
     (0.6, 0.5, 0.7, "failed", False), (0.8, 0.8, 0.8, "passed", False)],
)  # fmt: skip
def test_the_estimate_itself_has_to_meet_the_bound_and_doubt_is_said(value, low, high, status, doubtful):
    found = metrics.at_least(Estimate(value, low, high, 100), 0.8)
    assert found.status == status
    assert ("by chance" in found.reason) is doubtful
    mirrored = metrics.at_most(Estimate(-value, -high, -low, 100), -0.8)
    assert (mirrored.status, "by chance" in mirrored.reason) == (status, doubtful)


@pytest.mark.parametrize(("count", "n"), [(0, 40), (3, 40), (40, 40), (20, 41)])
def test_a_share_has_its_jeffreys_interval(count, n):
    found = metrics.proportion(count, n)
    posterior = stats.beta(count + 0.5, n - count + 0.5)
    assert found.value == count / n
    assert found.low == (0.0 if count == 0 else pytest.approx(posterior.ppf(0.025)))
    assert found.high == (1.0 if count == n else pytest.approx(posterior.ppf(0.975)))


def test_a_share_of_nothing_is_not_assessed():
    assert metrics.proportion(0, 0).reason == "there are no rows"
    assert metrics.proportion(1, 9, least=10).reason == "9 rows; needed are 10"


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "predicted", "message"),
    [([0, 1, 2], [0.1, 0.2, 0.3], "1 of 3 outcomes are neither 0 nor 1, such as 2"),
     ([0, 1, np.nan], [0.1, 0.2, 0.3], "1 of 3 outcomes are neither 0 nor 1, such as nan"),
     ([0, 1, 1], [0.1, np.nan, 0.3], "such as nan"),
     ([0, 1, 1], [0.1, 1.2, 0.3], "no probabilities of default between 0 and 1, such as 1.2"),
     ([0, 1, 1], [0.1, np.inf, 0.3], "such as inf")],
)  # fmt: skip
def test_what_is_no_outcome_or_no_probability_is_refused(y, predicted, message):
    for measure in (metrics.brier, metrics.ece, metrics.calibration_line, metrics.grade_report, metrics.summary):
        with pytest.raises(UserError, match=message):
            measure(y, predicted)


def test_different_rows_are_a_programming_error():
    with pytest.raises(ValueError, match="same rows"):
        metrics.auc([0, 1], [0.1])
    with pytest.raises(ValueError, match="same rows"):
        metrics.swap_set([True], [True, False])
    with pytest.raises(ValueError, match="as many periods"):
        metrics.gini_stability([0, 1], [0.1, 0.2], ["2026-01-01", None])


def test_nullable_and_boolean_columns_are_read():
    y, score = pd.Series([True, False] * 60), pd.Series([0.3, 0.2] * 60, dtype="Float64")
    assert metrics.brier(y, score).value == pytest.approx((0.49 + 0.04) / 2)
    with pytest.raises(UserError, match="such as nan"):
        metrics.brier(pd.Series([1, 0, None], dtype="Int64"), [0.1, 0.2, 0.3])


# Too little -----------------------------------------------------------------------------------------------------------


def refusals(y, predicted) -> dict[str, Estimate]:
    found = metrics.summary(y, predicted, terms=QUICK)
    difference = metrics.auc_difference(y, predicted, predicted)
    profit = metrics.profit_curve(y, predicted, margin=0.1, loss_given_default=0.5, terms=QUICK)
    return found | {
        "auc_difference": difference.difference,
        "first": difference.first,
        "paired": metrics.paired_difference("brier", y, predicted, predicted, terms=QUICK),
        "best_cut": profit.best_cut,
        "best_profit": profit.best_profit,
        "stability": metrics.gini_stability(y, predicted, ["2026-01-01"] * len(y), terms=QUICK).score,
    }


@pytest.mark.parametrize(
    ("y", "reason"),
    [([], "there are no rows"), ([0, 1] * 20, "40 rows"), ([0] * 500, "0 bads and 500 goods"),
     ([1] * 500, "500 bads and 0 goods"), ([1] * 19 + [0] * 300, "19 bads")],
)  # fmt: skip
def test_too_few_rows_and_a_single_class_are_never_a_number(y, reason):
    predicted = np.linspace(0.1, 0.6, len(y))
    found = refusals(np.array(y, dtype=float), predicted)
    if len(y) >= 100:
        assert found.pop("bad_rate").assessed  # a share needs no two classes
    for name, estimate in found.items():
        assert estimate.status == "not_assessed", name
        assert estimate.value is None, name
        assert reason in estimate.reason or "there are no rows" in estimate.reason or "periods" in estimate.reason, name
    assert metrics.auc_difference(y, predicted, predicted).p_value is None


def test_no_setting_makes_a_number_of_order_from_one_class():
    none_needed = Terms(minimum=Minimum(0, 0, 0))
    for measure in (metrics.auc, metrics.gini, metrics.ks):
        assert not measure([0, 0, 0], [0.1, 0.2, 0.3], terms=none_needed).assessed
        assert not measure([1, 0, 0], [0.1, 0.2, 0.3], terms=none_needed).assessed


# Order ----------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(labelled)
def test_auc_is_scikit_learns_with_ties(rows):
    y, score = columns(rows)
    found = metrics.auc(y, score, terms=ANY)
    assert found.value == pytest.approx(roc_auc_score(y, score))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low
    assert metrics.gini(y, score, terms=ANY).value == pytest.approx(2 * roc_auc_score(y, score) - 1)


@settings(deadline=None, max_examples=40)
@given(labelled, st.sampled_from([np.exp, np.arctan, lambda v: v**3, lambda v: 7 * v - 2]))
def test_metrics_of_order_do_not_change_under_a_rising_map(rows, rising):
    y, score = columns(rows)
    few = Terms(minimum=Minimum(1, 1, 1), draws=10)
    for measure in (metrics.auc, metrics.gini, metrics.ks):
        assert measure(y, rising(score), terms=few) == measure(y, score, terms=few)
    found = metrics.auc_difference(y, score, rising(score), terms=few)
    assert found.difference.number() == (0, 0, 0)
    assert found.p_value == 1


@settings(deadline=None, max_examples=40)
@given(labelled)
def test_turning_the_score_around_mirrors_auc_and_its_interval(rows):
    y, score = columns(rows)
    found, turned = metrics.auc(y, score, terms=ANY), metrics.auc(y, -score, terms=ANY)
    assert turned.number() == pytest.approx([1 - found.value, 1 - found.high, 1 - found.low])


@settings(deadline=None, max_examples=25)
@given(labelled, st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_the_rows(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    few = Terms(minimum=Minimum(1, 1, 1), draws=8)
    (y, score), (y2, score2) = columns(rows), columns(shuffled)
    assert metrics.summary(y, score, terms=few) == metrics.summary(y2, score2, terms=few)
    assert metrics.grade_report(y, score, minimum_rows=1) == metrics.grade_report(y2, score2, minimum_rows=1)
    costs = {"margin": 0.2, "loss_given_default": 0.6, "terms": few}
    ours, theirs = metrics.profit_curve(y, score, **costs), metrics.profit_curve(y2, score2, **costs)
    pd.testing.assert_frame_equal(ours.curve, theirs.curve)
    assert ours.best_profit == theirs.best_profit


def test_delongs_variance_against_its_definition(loans):
    y, score = (column[:400] for column in loans)
    score = np.round(score, 1)
    bads, goods = score[y == 1], score[y == 0]
    wins = (bads[:, None] > goods) + 0.5 * (bads[:, None] == goods)
    variance = wins.mean(axis=1).var(ddof=1) / len(bads) + wins.mean(axis=0).var(ddof=1) / len(goods)
    area = wins.mean()
    half = stats.norm.ppf(0.975) * math.sqrt(variance) / (area * (1 - area))
    logit = math.log(area / (1 - area))
    expected = [1 / (1 + math.exp(-bound)) for bound in (logit - half, logit + half)]
    found = metrics.auc(y, score)
    assert found.value == pytest.approx(area)
    assert [found.low, found.high] == pytest.approx(expected)


def test_delongs_interval_agrees_with_the_bootstrap(loans):
    y, score = loans
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(300):
        rows = np.concatenate([rng.choice(np.flatnonzero(y == k), int((y == k).sum())) for k in (0, 1)])
        drawn.append(roc_auc_score(y[rows], score[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = metrics.auc(y, score)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.004)


@pytest.mark.parametrize("skill", [0.6, 2.5])
def test_delongs_interval_holds_the_truth_as_often_as_it_says(skill):
    y, score = book(200_000, 1, skill)
    truth = roc_auc_score(y, score)
    held = []
    for k in range(300):
        rows = slice(k * 300, (k + 1) * 300)
        found = metrics.auc(y[rows], score[rows])
        held.append(found.low <= truth <= found.high)
    assert 0.91 <= np.mean(held) <= 0.985


def test_a_bare_auc_needs_both_classes(loans):
    assert metrics.auc_value(*loans) == pytest.approx(roc_auc_score(*loans))
    with pytest.raises(UserError, match="3 rows hold 0 bads and 3 goods"):
        metrics.auc_value([0, 0, 0], [1.0, 2.0, 3.0])


def test_perfect_separation_is_no_certainty():
    y = np.repeat([0.0, 1.0], 50)
    found = metrics.auc(y, y)
    assert found.value == found.high == 1
    assert 0.9 < found.low < 1
    assert "leakage" in found.reason
    assert metrics.auc(y, -y).number() == pytest.approx([0, 0, 1 - found.low])


def test_a_constant_score_orders_nothing_and_still_has_an_interval():
    found = metrics.auc(np.tile([0.0, 1.0], 100), np.full(200, 0.3))
    assert found.value == 0.5
    assert found.low < 0.45 < 0.55 < found.high


def test_the_paired_test_against_its_definition(loans):
    y, score = (column[:600] for column in loans)
    other = worse(score)
    placements = []
    for each in (score, other):
        wins = (each[y == 1][:, None] > each[y == 0]).astype(float)
        placements.append((wins.mean(axis=1), wins.mean(axis=0)))
    of_bads, of_goods = placements[0][0] - placements[1][0], placements[0][1] - placements[1][1]
    error = math.sqrt(of_bads.var(ddof=1) / len(of_bads) + of_goods.var(ddof=1) / len(of_goods))
    value = of_bads.mean()
    found = metrics.auc_difference(y, score, other)
    assert found.difference.number() == pytest.approx(
        [value, value - 1.95996 * error, value + 1.95996 * error], abs=1e-6
    )
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(value) / error))
    assert found.first.number() == pytest.approx(metrics.auc(y, score).number())
    assert found.second.number() == pytest.approx(metrics.auc(y, other).number())
    back = metrics.auc_difference(y, other, score)
    assert back.difference.value == pytest.approx(-value)
    assert back.p_value == pytest.approx(found.p_value)


def test_two_perfect_models_cannot_be_told_apart():
    y = np.repeat([0.0, 1.0], 60)
    one, other = y + np.linspace(0, 0.4, 120), y + np.linspace(0.4, 0, 120)
    found = metrics.auc_difference(y, one, other)
    assert not found.difference.assessed
    assert found.p_value is None
    assert found.first.value == found.second.value == 1


def test_ks_is_the_largest_gap_of_the_roc_curve(loans):
    y, score = loans
    false_alarms, hits, _ = roc_curve(y, score, drop_intermediate=False)
    found = metrics.ks(y, score)
    assert found.value == pytest.approx((hits - false_alarms).max())
    assert found.value == pytest.approx(stats.ks_2samp(score[y == 1], score[y == 0]).statistic)
    assert 0 < found.low < found.value < found.high < 1
    tied = np.round(score, 1)
    assert metrics.ks(y, tied).value == pytest.approx(stats.ks_2samp(tied[y == 1], tied[y == 0]).statistic)


# Calibration ----------------------------------------------------------------------------------------------------------


def test_brier_and_log_loss_are_scikit_learns_with_the_interval_of_a_mean(loans):
    y, predicted = loans
    losses = {
        "brier": ((predicted - y) ** 2, brier_score_loss(y, predicted)),
        "log_loss": (-np.log(np.where(y == 1, predicted, 1 - predicted)), log_loss(y, predicted)),
    }
    for name, (rows, expected) in losses.items():
        found = getattr(metrics, name)(y, predicted)
        half = 1.96 * rows.std() / math.sqrt(len(rows))
        assert found.value == pytest.approx(expected)
        assert [found.low, found.high] == pytest.approx([expected - half, expected + half], abs=half * 0.2)


def test_a_certain_and_wrong_pd_costs_much_but_not_infinitely_much():
    y = np.tile([0.0, 1.0], 60)
    found = metrics.log_loss(y, np.zeros(120))
    assert found.value == pytest.approx(log_loss(y, np.zeros(120), labels=[0, 1]))


def test_ece_by_hand():
    predicted = np.repeat([0.1, 0.2, 0.6], [100, 200, 100])
    y = np.concatenate([np.arange(100) < 20, np.arange(200) < 40, np.arange(100) < 50]).astype(float)
    found = metrics.ece(y, predicted, terms=QUICK)
    assert found.value == pytest.approx((100 * 0.1 + 0 + 100 * 0.1) / 400)
    noise = (math.sqrt(100 * 0.09) + math.sqrt(200 * 0.16) + math.sqrt(100 * 0.24)) * math.sqrt(2 / math.pi) / 400
    assert metrics.ece_noise(predicted) == pytest.approx(noise)
    assert found.reason == f"a perfect model would show {noise:.4f} at this size"
    table = metrics.calibration_table(y, predicted)
    assert table[["n", "bads"]].to_numpy().tolist() == [[100, 20], [200, 40], [100, 50]]
    assert table["mean_pd"].tolist() == pytest.approx([0.1, 0.2, 0.6])


def test_equal_pds_are_never_parted_by_a_bin():
    y, predicted = book(2000, 4)
    points = np.round(predicted * 8) / 8
    table = metrics.calibration_table(y, points)
    assert (table["low"].to_numpy()[1:] > table["high"].to_numpy()[:-1]).all()
    assert table["n"].sum() == 2000


def test_the_noise_of_a_perfect_model_is_what_it_shows():
    _, predicted = book(2000, 2)
    rng = np.random.default_rng(0)
    shown = [
        metrics.ece((rng.random(2000) < predicted).astype(float), predicted, terms=Terms(draws=2)).value
        for _ in range(200)
    ]
    assert np.mean(shown) == pytest.approx(metrics.ece_noise(predicted), rel=0.05)


def test_class_weights_wreck_calibration_and_a_metric_of_order_does_not_see_it(loans):
    y, predicted = loans
    odds = predicted / (1 - predicted) * 4
    weighted = odds / (1 + odds)
    assert metrics.auc(y, weighted).value == pytest.approx(metrics.auc(y, predicted).value)
    assert metrics.ece(y, weighted).low > 0.15
    assert metrics.grade_report(y, weighted).coverage.value == 0
    light = odds / 16 / (1 + odds / 16)
    assert len(metrics.grade_report(y, light).failed(together=True)) == 10
    line = metrics.calibration_line(y, weighted)
    assert line.slope.low < 1 < line.slope.high
    assert line.in_the_large.value == pytest.approx(-math.log(4), abs=0.15)


def test_the_calibration_line_is_an_unpenalised_logistic_regression(loans):
    y, predicted = loans
    sharp = 1 / (1 + np.exp(-2 * np.log(predicted / (1 - predicted))))
    logit = np.log(sharp / (1 - sharp))[:, None]
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logit, y)
    found = metrics.calibration_line(y, sharp)
    assert found.slope.value == pytest.approx(reference.coef_[0, 0], abs=1e-5)
    assert found.intercept.value == pytest.approx(reference.intercept_[0], abs=1e-5)
    assert found.slope.low < 0.5 < found.slope.high
    mean = reference.predict_proba(logit)[:, 1]
    design = np.column_stack([np.ones(len(y)), logit])
    errors = np.sqrt(np.diag(np.linalg.inv((design * (mean * (1 - mean))[:, None]).T @ design)))
    assert found.intercept.high - found.intercept.low == pytest.approx(2 * 1.95996 * errors[0], rel=1e-4)
    assert found.slope.high - found.slope.low == pytest.approx(2 * 1.95996 * errors[1], rel=1e-4)


def test_calibration_in_the_large_meets_the_bad_rate(loans):
    y, predicted = loans
    shift = metrics.calibration_line(y, predicted * 0.5).in_the_large.value
    logit = np.log(predicted * 0.5 / (1 - predicted * 0.5)) + shift
    assert (1 / (1 + np.exp(-logit))).mean() == pytest.approx(y.mean())


def test_a_line_that_does_not_exist_is_not_assessed():
    y = np.repeat([0.0, 1.0], 100)
    assert "no slope" in metrics.calibration_line(y, np.full(200, 0.4)).slope.reason
    assert metrics.calibration_line(y, np.full(200, 0.4)).in_the_large.value == pytest.approx(math.log(0.6 / 0.4))
    parted = metrics.calibration_line(y, np.linspace(0.1, 0.9, 200))
    assert "no optimum" in parted.slope.reason
    assert not parted.intercept.assessed
    assert not metrics.calibration_line(1 - y, y).slope.assessed


# Grades ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bads", "n", "mean_pd"), [(0, 50, 0.01), (0, 50, 0.1), (12, 400, 0.02), (400, 400, 0.9)])
def test_the_jeffreys_test_is_the_posterior_below_the_pd(bads, n, mean_pd):
    assert metrics.jeffreys(bads, n, mean_pd) == pytest.approx(stats.beta(bads + 0.5, n - bads + 0.5).cdf(mean_pd))


def test_a_pd_that_is_too_low_fails_its_grade_and_one_that_is_too_high_does_not():
    y = np.tile(np.arange(100) < 10, 10).astype(float)
    for predicted, failed in ((0.05, ("1",)), (0.1, ()), (0.3, ())):
        found = metrics.grade_report(y, np.full(1000, predicted))
        assert found.failed() == found.failed(together=True) == failed
        assert found.portfolio.p_value == found.grades[0].p_value
        assert found.grades[0].covered is (predicted == 0.1)
    assert metrics.grade_report(y, np.full(1000, 0.3)).coverage.value == 0


def test_grades_by_hand():
    predicted = np.repeat([0.02, 0.05, 0.2], [40, 60, 20])
    y = np.zeros(120)
    y[[0, 45, 50, 110]] = 1
    found = metrics.grade_report(y, predicted, edges=(0.02, 0.1))
    assert [(grade.name, grade.n, grade.bads) for grade in found.grades] == [("1", 40, 1), ("2", 60, 2), ("3", 20, 1)]
    small = found.grades[2]
    assert (small.bad_rate.status, small.p_value, small.covered) == ("not_assessed", None, None)
    assert small.bad_rate.reason == "20 rows; needed are 30"
    assert found.coverage.n == 2
    assert found.coverage.value == 1
    first = found.grades[0]
    assert first.p_value == pytest.approx(stats.beta(1.5, 39.5).cdf(0.02))
    assert first.p_holm == pytest.approx(2 * min(grade.p_value for grade in found.grades[:2]))
    assert found.portfolio.mean_pd == pytest.approx(predicted.mean())
    table = found.table()
    assert table["grade"].tolist() == ["1", "2", "3", "portfolio"]
    assert math.isnan(table["p_value"][2])
    assert math.isnan(table["bad_rate"][2])


def test_holm_never_lowers_a_p_value_and_keeps_their_order(loans):
    y, predicted = loans
    grades = metrics.grade_report(y, predicted * 0.9).grades
    raw = np.array([grade.p_value for grade in grades])
    corrected = np.array([grade.p_holm for grade in grades])
    assert (corrected >= raw).all()
    assert (np.diff(corrected[np.argsort(raw)]) >= 0).all()
    assert corrected.min() == pytest.approx(min(1, len(raw) * raw.min()))


def test_a_true_model_seldom_fails_all_grades_together_and_covers_as_promised():
    _, predicted = book(4000, 9)
    rng = np.random.default_rng(1)
    single, together, coverage = 0, 0, []
    for _ in range(200):
        found = metrics.grade_report((rng.random(4000) < predicted).astype(float), predicted)
        single += bool(found.failed())
        together += bool(found.failed(together=True))
        coverage.append(found.coverage.value)
    assert together / 200 < 0.1 < 0.25 < single / 200  # ten tests at 5 % alarm on a third of good models
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.02)


def test_grade_edges_are_fixed_quantiles_and_a_pd_on_an_edge_is_of_the_better_grade():
    predicted = np.arange(1, 101) / 200
    edges = metrics.grade_edges(predicted, 4)
    assert edges == pytest.approx((0.125, 0.25, 0.375))
    assert np.bincount(metrics.assign_grades(predicted, edges)).tolist() == [25, 25, 25, 25]
    assert metrics.assign_grades([0.125, 0.1251, 0.0, 1.0], edges).tolist() == [0, 1, 0, 3]
    assert metrics.grade_edges(np.full(10, 0.2), 4) == ()
    assert metrics.grade_edges([], 4) == ()
    with pytest.raises(ValueError, match="must rise"):
        metrics.assign_grades(predicted, (0.2, 0.1))


def test_no_rows_make_no_grades():
    found = metrics.grade_report([], [])
    assert found.coverage.reason == "no grade has 30 rows"
    assert found.portfolio.bad_rate.reason == "there are no rows"
    assert found.portfolio.mean_pd is None
    assert not found.failed()


# Stability ------------------------------------------------------------------------------------------------------------


def by_period(ginis: list[float], n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Periods whose gini is exactly as asked: that share of bads above all goods, the others tied with them."""
    y, score, period = [], [], []
    for k, gini in enumerate(ginis):
        high = round(gini * n)
        y += [1] * n + [0] * n
        score += [0.9] * high + [0.5] * (n - high) + [0.5] * n
        period += [f"2026-{k + 1:02d}-01"] * 2 * n
    return np.array(y, dtype=float), np.array(score), np.array(period)


@pytest.mark.parametrize("ginis", [[0.6, 0.5, 0.55, 0.4], [0.4, 0.5, 0.45, 0.6], [0.5, 0.5, 0.5, 0.5, 0.5]])
def test_gini_stability_by_hand(ginis):
    slope, level = np.polyfit(np.arange(len(ginis)), ginis, 1)
    spread = np.std(np.array(ginis) - slope * np.arange(len(ginis)) - level)
    expected = np.mean(ginis) + 88 * min(0, slope) - 0.5 * spread
    found = metrics.gini_stability(*by_period(ginis), terms=QUICK)
    assert found.score.value == pytest.approx(expected)
    assert list(found.gini.values()) == pytest.approx(ginis)
    parts = (found.mean_gini, found.slope, found.spread)
    assert [part.value for part in parts] == pytest.approx([np.mean(ginis), slope, spread], abs=1e-12)
    assert found.score.low <= found.score.value <= found.score.high


def test_a_slope_a_month_is_weighed_as_one_a_week():
    ginis = [0.6, 0.55, 0.5, 0.45]
    found = metrics.gini_stability(*by_period(ginis), weeks_per_period=4.35, terms=QUICK)
    assert found.slope.value == pytest.approx(-0.05 / 4.35)
    assert found.score.value == pytest.approx(0.525 - 88 * 0.05 / 4.35)


def test_periods_with_too_few_of_a_class_are_left_out_and_keep_their_place():
    y, score, period = by_period([0.6, 0.5, 0.5, 0.4, 0.3])
    one_class = (period == "2026-02-01") & (y == 1)
    found = metrics.gini_stability(y[~one_class], score[~one_class], period[~one_class], terms=QUICK)
    assert found.gini["2026-02-01"] is None
    assert "0 bads and 200 goods" in found.left_out["2026-02-01"]
    slope = np.polyfit([0, 2, 3, 4], [0.6, 0.5, 0.4, 0.3], 1)[0]
    assert found.slope.value == pytest.approx(slope)
    assert found.score.reason == "1 of 5 periods left out"
    table = found.table()
    assert table["period"].tolist() == [f"2026-{k:02d}-01" for k in range(1, 6)]
    assert math.isnan(table["gini"][1])


def test_too_few_periods_are_not_assessed():
    y, score, period = by_period([0.6, 0.5, 0.4])
    found = metrics.gini_stability(y, score, period)
    assert found.score.reason == "3 periods can be assessed, needed are 4"
    assert metrics.gini_stability_difference(y, score, score, period).reason == found.score.reason
    few = metrics.gini_stability(y[:3], score[:3], period[:3])
    assert "1 were left out, such as 2026-01-01 (3 rows with 3 bads" in few.score.reason


def test_numbered_weeks_are_in_the_order_of_numbers():
    y, score, period = by_period([0.6, 0.5, 0.4, 0.3])
    weeks = np.select([period == f"2026-{k:02d}-01" for k in (1, 2, 3)], [8, 9, 10], 11)
    assert list(metrics.gini_stability(y, score, weeks, terms=QUICK).gini) == ["8", "9", "10", "11"]


def test_gini_stability_does_not_depend_on_the_order_of_rows_and_pairs_models_on_the_same_draws():
    rng = np.random.default_rng(0)
    y, score = book(2400, 3)
    period, other = np.array(["a", "b", "c", "d"])[rng.integers(0, 4, 2400)], worse(score)
    order = rng.permutation(2400)
    found = metrics.gini_stability(y, score, period, terms=QUICK)
    assert found == metrics.gini_stability(y[order], score[order], period[order], terms=QUICK)
    difference = metrics.gini_stability_difference(y, score, other, period, terms=QUICK)
    expected = found.score.value - metrics.gini_stability(y, other, period, terms=QUICK).score.value
    assert difference.value == pytest.approx(expected)
    same = metrics.gini_stability_difference(y, score, score, period, terms=QUICK)
    assert same.number() == (0, 0, 0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 20), min_size=50, max_size=90), st.lists(st.integers(0, 30), min_size=50, max_size=90))
def test_psi_is_never_negative_and_its_bins_add_up(expected, actual):
    found = metrics.score_psi(np.array(expected) / 30, np.array(actual) / 30, terms=Terms(draws=10))
    assert found.psi.value >= 0
    assert 0 <= found.psi.low <= found.psi.value <= found.psi.high
    assert found.bins["psi"].sum() == pytest.approx(found.psi.value)
    assert found.bins["expected_share"].sum() == pytest.approx(1)
    assert found.bins["actual_share"].sum() == pytest.approx(1)


def test_psi_sees_a_shift_and_its_bound_knows_the_sample_size():
    _, before = book(4000, 1)
    _, now = book(4000, 2)
    same, moved = metrics.score_psi(before, now), metrics.score_psi(before, np.minimum(now * 1.8, 1))
    assert same.psi.value < same.bound == 0.1
    assert moved.psi.low > moved.bound
    few = metrics.score_psi(before[:100], now[:100])
    assert few.bound == pytest.approx(stats.chi2.isf(0.001, len(few.bins) - 1) * 0.02)
    assert few.noise == pytest.approx((len(few.bins) - 1) * 0.02)


def test_psi_alarms_on_few_small_samples_of_one_population():
    _, scores = book(60_000, 6)
    usual, aware = 0, 0
    for k in range(200):
        found = metrics.score_psi(scores[:10_000], scores[10_000 + k * 200 : 10_200 + k * 200], terms=Terms(draws=1))
        usual += found.psi.value > 0.1
        aware += found.psi.value > found.bound
    assert aware <= 2 <= usual


def test_psi_of_too_few_scores_is_not_assessed():
    found = metrics.score_psi(np.linspace(0, 1, 49), np.linspace(0, 1, 1000))
    assert found.psi.reason == "49 and 1,000 scores; needed are 50 on either side"
    assert (found.bound, found.noise) == (None, None)
    assert found.bins.empty


# Pairs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auc", "gini", "ks", "brier", "log_loss", "ece"])
def test_a_paired_difference_is_that_of_the_metrics_and_narrower_than_apart(loans, name):
    y, predicted = loans
    # A close rival: what is hard for one is hard for the other, which pairing makes use of.
    other = 0.9 * predicted + 0.1 * worse(predicted)
    one, two = (getattr(metrics, name)(y, each, terms=QUICK) for each in (predicted, other))
    found = metrics.paired_difference(name, y, predicted, other, terms=QUICK)
    assert found.value == pytest.approx(one.value - two.value)
    assert found.high - found.low < (one.high - one.low) + (two.high - two.low)
    relative = metrics.paired_difference(name, y, predicted, other, relative=True, terms=QUICK)
    assert relative.value == pytest.approx(one.value / two.value - 1)
    nothing = metrics.paired_difference(name, y, predicted, predicted, terms=QUICK)
    assert nothing.number() == (0, 0, 0)


def test_the_paired_bootstrap_of_auc_agrees_with_delong(loans):
    y, predicted = loans
    drawn = metrics.paired_difference("auc", y, predicted, worse(predicted))
    exact = metrics.auc_difference(y, predicted, worse(predicted)).difference
    assert drawn.number() == pytest.approx(exact.number(), abs=0.003)


def test_nothing_is_divided_by_a_metric_of_zero():
    y = np.tile([0.0, 1.0], 60)
    assert "nothing to divide by" in metrics.paired_difference("brier", y, np.full(120, 0.5), y, relative=True).reason


def test_a_swap_set_by_hand():
    ours = np.repeat([True, False, True, False], [100, 50, 40, 60])
    theirs = np.repeat([True, False, False, True], [100, 50, 40, 60])
    y = np.full(250, np.nan)
    y[:100] = np.arange(100) < 8
    y[150:190] = np.arange(40) < 4
    y[190:250] = np.arange(60) < 30
    found = metrics.swap_set(ours, theirs, y)
    assert found.counts == {"both_accept": 100, "both_not": 50, "swapped_in": 40, "swapped_out": 60}
    assert found.flips.value == 0.4
    assert {name: rate.value for name, rate in found.bad_rates.items()} == {
        "both_accept": 0.08, "both_not": None, "swapped_in": 0.1, "swapped_out": 0.5,
    }  # fmt: skip
    assert found.bad_rates["both_not"].reason == "there are no rows"
    assert found.gain.value == pytest.approx(0.4)
    assert 0.2 < found.gain.low < 0.4 < found.gain.high < 0.6
    assert found.table()["with_outcome"].tolist() == [100, 0, 40, 60]


def test_a_swap_of_too_few_has_no_gain():
    found = metrics.swap_set([True, False] * 40, [True, False] * 39 + [False, True], [0, 1] * 40)
    assert found.flips.value == pytest.approx(2 / 80)
    assert found.gain.reason == "swapped out: 1 rows; needed are 30"
    assert metrics.swap_set([True] * 3, [True] * 3).flips.number()[0] == 0
    assert metrics.swap_set([], []).flips.reason == "there are no rows"


# Money ----------------------------------------------------------------------------------------------------------------


def test_profit_by_hand_with_amounts():
    y, predicted = np.tile([0, 0, 0, 1, 1], 40).astype(float), np.tile([0.05, 0.1, 0.2, 0.2, 0.6], 40)
    amount = np.tile([100.0, 200, 300, 400, 500], 40)
    found = metrics.profit_curve(y, predicted, margin=0.1, loss_given_default=0.5, amount=amount)
    by_cut = dict(zip(found.curve["cut"], found.curve["profit"], strict=True))
    assert by_cut[0.05] == 0
    assert by_cut[0.1] == pytest.approx(10 / 5)
    assert by_cut[0.2] == pytest.approx(30 / 5)
    assert by_cut[0.6] == pytest.approx((60 - 200) / 5)
    assert found.curve["profit"].iloc[-1] == pytest.approx((60 - 200 - 250) / 5)
    assert found.curve["approval_rate"].iloc[-1] == 1
    assert found.break_even == pytest.approx(1 / 6)
    assert found.best_cut.value == pytest.approx(1 / 6)
    assert found.best_profit.value == pytest.approx(6)
    expected = dict(zip(found.curve["cut"], found.curve["expected"], strict=True))
    assert expected[0.1] == pytest.approx(100 * (0.95 * 0.1 - 0.05 * 0.5) / 5)


def test_the_best_cut_of_a_true_model_is_the_break_even():
    y, predicted = book(20_000, 8)
    found = metrics.profit_curve(y, predicted, margin=0.14, loss_given_default=0.6, terms=QUICK)
    assert found.best_cut.low <= found.break_even <= found.best_cut.high
    assert found.best_profit.low <= found.best_profit.value <= found.best_profit.high
    assert (found.curve["low"] <= found.curve["profit"]).all()
    assert (found.curve["profit"] <= found.curve["high"]).all()
    assert np.abs(found.curve["expected"] - found.curve["profit"]).max() < 0.01
    table = found.table()
    assert len(table) <= 20
    assert found.best_cut.value in table["cut"].tolist()
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["best_cut"]["value"] == found.best_cut.value
    assert stored["curve"][0]["bad_rate"] is None
    assert len(stored["curve"]) == len(found.curve)


def test_costs_that_are_none_are_a_programming_error(loans):
    with pytest.raises(ValueError, match="above 0"):
        metrics.profit_curve(*loans, margin=0, loss_given_default=0.5)
    with pytest.raises(ValueError, match="finite amounts"):
        metrics.profit_curve(*loans, margin=0.1, loss_given_default=0.5, amount=[1.0])


# Segments -------------------------------------------------------------------------------------------------------------


def test_a_segment_table_by_category(loans):
    y, predicted = loans
    home = np.array(["own", "rent", "other"], dtype=object)[np.minimum(np.arange(3000) % 40, 2)]
    home[home == "other"] = np.where(np.arange((home == "other").sum()) % 2, "rent", "own")
    home[:30], home[30:60] = "boat", None
    found = metrics.segment_table(y, predicted, home, champion=worse(predicted), terms=QUICK).set_index("segment")
    assert found.index.tolist() == ["boat", "own", "rent", "(missing)"]
    assert found["n"].sum() == 3000
    assert found["share"].sum() == pytest.approx(1)
    for name in ("boat", "(missing)"):
        assert found.loc[name, "status"] == "not_assessed"
        assert "30 rows" in found.loc[name, "reason"]
        assert found.loc[name, ["bad_rate", "auc", "calibration_gap", "auc_change"]].isna().all()
    inside = home == "own"
    assert found.loc["own", "auc"] == pytest.approx(roc_auc_score(y[inside], predicted[inside]))
    assert found.loc["own", "calibration_gap"] == pytest.approx((y - predicted)[inside].mean())
    change = metrics.auc_difference(y[inside], predicted[inside], worse(predicted)[inside]).difference
    assert found.loc["own", ["auc_change", "auc_change_low", "auc_change_high"]].tolist() == list(change.number())


def test_a_segment_table_by_quantiles_of_a_number(loans):
    y, predicted = loans
    income = np.random.default_rng(0).lognormal(10, 1, 3000)
    income[:200] = np.nan
    found = metrics.segment_table(y, predicted, income, quantiles=3, terms=QUICK)
    assert len(found) == 4
    assert found["segment"].iloc[-1] == "(missing)"
    assert found["n"].iloc[:3].sub(2800 / 3).abs().max() < 1


def test_few_distinct_numbers_stay_themselves_and_many_categories_are_pooled():
    assert sorted(set(metrics.segment_labels(pd.Series([36.0, 60.0, 36.0])))) == ["36", "60"]
    many = metrics.segment_labels(pd.Series([f"c{k:02d}" for k in range(40) for _ in range(40 - k)]))
    names = pd.Series(many).value_counts()
    assert len(names) == 19
    assert {"c00", "c17", "(other)"} <= set(names.index)
    assert "c18" not in names.index
    assert metrics.segment_labels(pd.Series([pd.NA, "x"], dtype="string")).tolist() == ["(missing)", "x"]
    assert metrics.segment_labels([]).tolist() == []


def test_a_segment_table_needs_a_value_a_row(loans):
    with pytest.raises(ValueError, match="as many values"):
        metrics.segment_table(*loans, ["a"])


# Pages ----------------------------------------------------------------------------------------------------------------


def test_the_summary_shows_every_metric_once(loans):
    found = metrics.summary(*loans, terms=QUICK)
    table = metrics.estimates_table(found | {"unknown": Estimate.unknown(0, "there are no rows")})
    assert table["metric"].tolist() == [*found, "unknown"]
    assert (table["status"] == "assessed").sum() == 10
    assert table.iloc[-1][["value", "low", "high"]].isna().all()
    assert table.iloc[-1]["reason"] == "there are no rows"
    assert metrics.estimates_table({}).columns.tolist() == table.columns.tolist()


def test_the_same_seed_gives_the_same_interval_and_another_a_near_one(loans):
    one, again = metrics.ks(*loans), metrics.ks(*loans)
    other = metrics.ks(*loans, terms=Terms(seed=1))
    assert one == again
    assert one != other
    assert one.number() == pytest.approx(other.number(), abs=0.01)


@pytest.mark.parametrize("level", [0.8, 0.99])
def test_a_higher_level_is_a_wider_interval(loans, level):
    for name in ("auc", "ks", "brier", "ece"):
        usual, asked = (getattr(metrics, name)(*loans, terms=terms) for terms in (Terms(), Terms(level=level)))
        assert (asked.high - asked.low > usual.high - usual.low) is (level > 0.95)
