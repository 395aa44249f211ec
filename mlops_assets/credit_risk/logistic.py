"""The logistic function to the bit, and the regression that is built on it.

What belongs here: turning log-odds into probabilities so that every machine, batch size and thread count gives the same
bits, and Newton's method for logistic regression. What does not: what the columns mean (`scorecard.py`), and the choice
of calibration (`calibration.py`).

The exponential of a C library or of a SIMD unit may differ in its last bits from one machine to the next. Here it is
made of operations whose results IEEE 754 fixes (addition, multiplication, division, floor and scaling by powers of
two), each rounded on its own, so a decision can be computed again years later and compared byte by byte.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_assets.foundation.errors import UserError

Floats = NDArray[np.float64]

# ln 2 in two parts, the first with so few bits that its products with an exponent are exact (Cody and Waite, "Software
# Manual for the Elementary Functions", 1980; the split is that of fdlibm's e_exp.c).
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_PER_LN2 = float.fromhex("0x1.71547652b82fep+0")
# Taylor's series to 13 terms: what is left out is below 1e-17 for |r| <= ln(2)/2.
_TAYLOR = tuple(1.0 / math.factorial(n) for n in range(13, -1, -1))
# Margins are cut to a grid that is 16 times coarser than a double at 1. Neighbours on it differ by more than the last
# bits of the series can err, so the function never falls where its argument rises.
_GRID = 2.0**48
_LARGEST, _SMALLEST = 36.0, 700.0
"""Beyond these margins the probability stays at its last value below 1 and above 0."""

DIGITS = 9
"""Decimals of what training computes by logarithms and sums, whose last bits differ between machines: rounded, the same
rows give the same model on most of them."""

_ROUNDS = 100
_STEP = 1e-10


def exp_minus(x: ArrayLike) -> Floats:
    """Return exp(-x) for x from 0 to 700, the same bits everywhere; the relative error is below 1e-14."""
    cut = np.floor(np.asarray(x, dtype=np.float64) * _GRID) / _GRID
    power = np.floor(0.5 - cut * _PER_LN2)
    rest = (-cut - power * _LN2_HIGH) - power * _LN2_LOW
    value = np.full_like(rest, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        value = value * rest + coefficient
    return np.ldexp(value, power.astype(np.int32))


def logistic(margin: ArrayLike) -> Floats:
    """Return the probability 1 / (1 + exp(-margin)) of log-odds.

    Parameters
    ----------
    margin
        Log-odds of any shape; infinities are fine.

    Returns
    -------
    ndarray
        Probabilities of the same shape, above 0 and below 1. Never falls as the margin rises; within 1e-14 (relative)
        of the true value for margins from -700 on. An element's bits depend on that element alone.

    Raises
    ------
    ValueError
        A margin is not a number.
    """
    values = np.asarray(margin, dtype=np.float64)
    if np.isnan(values).any():
        msg = "a margin is not a number"
        raise ValueError(msg)
    rises = values >= 0
    small = exp_minus(np.minimum(np.abs(values), np.where(rises, _LARGEST, _SMALLEST)))
    probability: Floats = np.where(rises, 1.0, small) / (1.0 + small)
    return probability


def fit_logistic(x: Floats, target: Floats, penalty: Floats) -> Floats:
    """Return the coefficients of a penalised logistic regression, the intercept last.

    Newton's method with halved steps on the sum of cross-entropy and half the penalised squares; the optimum is unique.
    Sums are made by NumPy itself or on one BLAS thread: equal rows in equal order give equal coefficients.

    Parameters
    ----------
    x
        (n, p) Columns.
    target
        (n,) Probabilities from 0 to 1, or outcomes.
    penalty
        (p,) Weights of the squared coefficients; the intercept is free.

    Raises
    ------
    UserError
        There is no optimum, as where a column without a penalty separates the outcomes.
    """
    from threadpoolctl import threadpool_limits

    columns = np.column_stack([x, np.ones(len(x))])
    weights = np.append(penalty, 0.0)
    beta = np.zeros(columns.shape[1])
    with threadpool_limits(1, "blas"):
        loss = _loss(columns, target, weights, beta)
        for _ in range(_ROUNDS):
            fitted = logistic(columns @ beta)
            slope = columns.T @ (fitted - target) + weights * beta
            curve = (columns * (fitted * (1.0 - fitted))[:, None]).T @ columns + np.diag(weights)
            try:
                step = np.linalg.solve(curve, slope)
            except np.linalg.LinAlgError:
                break
            size = 1.0
            while size > _STEP and (new := _loss(columns, target, weights, beta - size * step)) > loss:
                size /= 2.0
            if size <= _STEP or np.abs(size * step).max() < _STEP:
                return beta
            beta, loss = beta - size * step, new
    raise UserError(
        "the logistic regression does not converge",
        where=f"{len(x)} rows and {x.shape[1]} columns",
        remedy="look for a column that tells the outcome on its own, and give more rows of both outcomes.",
    )


def _loss(columns: Floats, target: Floats, weights: Floats, beta: Floats) -> float:
    margin = columns @ beta
    # ln(1 + exp(m)) without overflow; only the search for the step's size looks at it.
    entropy = np.logaddexp(0.0, margin) - target * margin
    return float(entropy.sum() + 0.5 * (weights * beta * beta).sum())
