"""The logistic function gives the same bits everywhere, and the regression finds the optimum that is there."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.credit_risk.logistic import exp_minus, fit_logistic, logistic
from mlops_assets.foundation.errors import UserError

MARGINS = st.floats(-800, 800, allow_nan=False)


def exactly(margin: float) -> Decimal:
    with localcontext() as context:
        context.prec = 50
        return 1 / (1 + Decimal(-margin).exp())


@given(st.floats(-40, 40))
def test_it_is_the_logistic_function_to_14_digits(margin: float) -> None:
    true = exactly(margin)
    assert abs(Decimal(float(logistic(margin))) - true) / true < Decimal("1e-14")


@given(MARGINS, st.integers(0, 60))
def test_it_never_falls_as_the_margin_rises(margin: float, steps: int) -> None:
    # Neighbours are where a series that is off by one bit would show it.
    higher = margin
    for _ in range(steps):
        higher = float(np.nextafter(higher, np.inf))
    assert logistic(margin) <= logistic(higher)


def test_it_rises_through_a_million_neighbours() -> None:
    rng = np.random.default_rng(1)
    for start in (-700.0, -36.0, -3.3, -1e-3, -1e-300, 0.0, 0.693147, 11.0, 36.0):
        steps = rng.integers(1, 2_000, 100_000)
        bits = np.array([abs(start)]).view(np.int64)[0] + np.cumsum(steps)
        margins = np.copysign(bits.view(np.float64), start)
        probabilities = logistic(np.sort(margins))
        assert (np.diff(probabilities) >= 0).all()


@given(st.lists(MARGINS, min_size=1, max_size=40))
def test_a_batch_has_the_bits_of_its_rows(margins: list[float]) -> None:
    batch = logistic(np.array(margins))
    assert [value.hex() for value in batch.tolist()] == [float(logistic(margin)).hex() for margin in margins]


def test_the_bits_do_not_depend_on_layout_or_alignment() -> None:
    margins = np.random.default_rng(0).normal(0, 8, 1_001)
    whole = logistic(margins)
    strided = np.zeros(3_003)
    strided[::3] = margins
    assert whole.tobytes() == np.ascontiguousarray(logistic(strided[::3])).tobytes()
    assert whole[1:].tobytes() == logistic(margins[1:]).tobytes()
    assert whole[::-1].tobytes() == logistic(margins[::-1]).tobytes()


def test_known_bits_stay() -> None:
    found = [float(logistic(margin)).hex() for margin in (-700.0, -5.25, -1.0, 0.0, 1e-9, 0.1, 2.0, 30.0)]
    assert found == [
        "0x1.14f2b0fb9307fp-1010",
        "0x1.561b2d22850bfp-8",
        "0x1.136561454ba86p-2",
        "0x1.0000000000000p-1",
        "0x1.0000000225c10p-1",
        "0x1.0cca12729afb3p-1",
        "0x1.c2f7d5a8a79c9p-1",
        "0x1.ffffffffffcb6p-1",
    ]


@given(MARGINS)
def test_plain_python_gives_the_same_bits(margin: float) -> None:
    x = math.floor(min(abs(margin), 36.0 if margin >= 0 else 700.0) * 2.0**48) / 2.0**48
    power = math.floor(0.5 - x * float.fromhex("0x1.71547652b82fep+0"))
    rest = (-x - power * float.fromhex("0x1.62e42feep-1")) - power * float.fromhex("0x1.a39ef35793c76p-33")
    value = 1.0 / math.factorial(13)
    for n in range(12, -1, -1):
        value = value * rest + 1.0 / math.factorial(n)
    small = math.ldexp(value, power)
    assert float(logistic(margin)) == (1.0 if margin >= 0 else small) / (1.0 + small)


@given(st.floats(-30, 30))
def test_both_sides_make_one(margin: float) -> None:
    assert abs(Fraction(float(logistic(margin))) + Fraction(float(logistic(-margin))) - 1) < Fraction(1, 2**52)


@pytest.mark.parametrize("margin", [-np.inf, -1e308, -745.0, 37.0, 1e308, np.inf])
def test_it_never_reaches_zero_or_one(margin: float) -> None:
    assert 0.0 < logistic(margin) < 1.0


def test_shapes_are_kept_and_nothing_is_fine() -> None:
    assert logistic(np.zeros((2, 3))).shape == (2, 3)
    assert logistic([]).shape == (0,)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        logistic([0.0, np.nan])


@given(st.floats(0, 700))
def test_the_exponential_is_right(x: float) -> None:
    with localcontext() as context:
        context.prec = 50
        true = Decimal(-x).exp()
        assert abs(Decimal(float(exp_minus(x))) - true) / true < Decimal("1e-14")


# ---- the regression


def test_the_regression_agrees_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    x = rng.normal(size=(800, 4))
    y = (rng.random(800) < logistic(x @ [1.0, -2.0, 0.0, 0.5] - 0.7)).astype(float)
    ours = fit_logistic(x, y, np.full(4, 0.5))
    theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=1_000).fit(x, y)
    np.testing.assert_allclose(ours, [*theirs.coef_[0], theirs.intercept_[0]], atol=1e-6)


def test_a_regression_without_columns_is_the_log_odds() -> None:
    assert fit_logistic(np.zeros((10, 0)), np.repeat([0.0, 1.0], [8, 2]), np.zeros(0)) == pytest.approx([np.log(0.25)])


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(np.repeat([[0.0], [1.0]], 20, axis=0), id="separated"),
        pytest.param(np.zeros((40, 1)), id="a constant column beside the intercept"),
    ],
)
def test_a_regression_without_an_optimum_is_refused(x: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"does not converge.*tells the outcome on its own"):
        fit_logistic(x, np.repeat([0.0, 1.0], 20), np.zeros(1))


def test_a_penalty_makes_separated_outcomes_fine() -> None:
    x, y = np.repeat([[0.0], [1.0]], 20, axis=0), np.repeat([0.0, 1.0], 20)
    slope, intercept = fit_logistic(x, y, np.ones(1))
    assert slope > 1.0
    assert logistic(intercept + slope / 2) == pytest.approx(0.5, abs=0.05)
