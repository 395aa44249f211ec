"""The sigmoid is Platt's, never turns around, and refuses a slice that contradicts the model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk.calibration import Calibration, fit_sigmoid
from mlops_assets.credit_risk.logistic import logistic
from mlops_assets.foundation.errors import UserError


def drawn(slope: float, intercept: float, rows: int = 4_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return margins, and outcomes of probability logistic(slope x margin + intercept)."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(-1.0, 1.5, rows)
    return margin, (rng.random(rows) < logistic(slope * margin + intercept)).astype(np.int64)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -1.0), (2.5, 0.7)])
def test_the_true_sigmoid_is_found(slope: float, intercept: float) -> None:
    found = fit_sigmoid(*drawn(slope, intercept, rows=40_000))
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=0.08)


def test_it_agrees_with_scikit_learn() -> None:
    from sklearn.calibration import _sigmoid_calibration

    margin, bad = drawn(0.7, -0.3)
    theirs = _sigmoid_calibration(margin, bad)
    found = fit_sigmoid(margin, bad)
    assert (found.slope, found.intercept) == pytest.approx((-theirs[0], -theirs[1]), abs=1e-4)


def test_the_mean_probability_is_the_bad_rate() -> None:
    margin, bad = drawn(3.0, 1.0)
    assert fit_sigmoid(margin, bad)(margin).mean() == pytest.approx(bad.mean(), abs=1e-3)


def test_a_slice_that_is_parted_without_error_stays_away_from_certainty() -> None:
    margin = np.arange(-10.0, 10.0)
    found = fit_sigmoid(margin, (margin >= 0).astype(np.int64))
    assert found(margin).min() > 0.01
    assert found(margin).max() < 0.99


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=50), st.floats(0.01, 10), st.floats(-5, 5))
def test_a_higher_margin_never_has_a_lower_probability(margins: list[float], slope: float, intercept: float) -> None:
    probabilities = Calibration(slope, intercept)(np.sort(margins))
    assert (np.diff(probabilities) >= 0).all()


def test_parameters_survive_to_the_bit() -> None:
    found = fit_sigmoid(*drawn(0.7, -0.3))
    assert Calibration.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("only", [0, 1])
def test_one_outcome_is_refused(only: int) -> None:
    with pytest.raises(UserError, match=r"holds one outcome only.*calibrate_share"):
        fit_sigmoid(np.arange(9.0), np.full(9, only))


def test_equal_scores_are_refused() -> None:
    with pytest.raises(UserError, match="scores all alike"):
        fit_sigmoid(np.zeros(10), np.repeat([0, 1], 5))


def test_a_slice_that_contradicts_the_model_is_refused() -> None:
    margin, bad = drawn(-1.0, 0.0)
    with pytest.raises(UserError, match=r"4000 loans.*are not worse there \(slope -"):
        fit_sigmoid(margin, bad)
