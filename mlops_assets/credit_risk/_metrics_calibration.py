"""Whether predicted probabilities of default are right: errors, calibration line, and bins of equal count.

What belongs here: metrics that look at the PD as a probability, over all rows. What does not: order
(`_metrics_ranking.py`), and the test of each rating grade (`_metrics_grades.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk._metrics_estimates import TERMS, Estimate, Terms, jeffreys_interval, z_score
from mlops_assets.credit_risk._metrics_sampling import (
    Floats,
    Labelled,
    Statistic,
    bootstrap,
    read_labelled,
    weighted_mean,
)

BINS = 10

# A PD of exactly 0 or 1 that is wrong would cost infinitely much; scikit-learn draws the same line.
_SMALLEST = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class CalibrationLine:
    """The logistic regression of outcomes on the logit of the PD (Cox 1958).

    Parameters
    ----------
    slope
        1 where PDs are neither too extreme (below 1) nor too timid (above 1).
    intercept
        Of the same regression, in log-odds; 0 when the slope is 1 and the level is right.
    in_the_large
        Log-odds to add to every PD to meet the observed bad rate, the slope held at 1; above 0 where PDs are too low.
    """

    slope: Estimate
    intercept: Estimate
    in_the_large: Estimate


def brier(
    y: ArrayLike,
    predicted: ArrayLike,
    terms: Terms = TERMS,
) -> Estimate:
    """Mean squared error of the PD (Brier 1950), 0..1, with a bootstrap interval; shapes (n,)."""
    return _over_rows(y, predicted, brier_of, terms)


def log_loss(
    y: ArrayLike,
    predicted: ArrayLike,
    terms: Terms = TERMS,
) -> Estimate:
    """Mean of -log(probability given to what happened), in nats, with a bootstrap interval; shapes (n,).

    PDs are kept 2.2e-16 away from 0 and 1.
    """
    return _over_rows(y, predicted, log_loss_of, terms)


def ece(
    y: ArrayLike,
    predicted: ArrayLike,
    *,
    bins: int = BINS,
    terms: Terms = TERMS,
) -> Estimate:
    """Mean gap of bad rate and mean PD over bins of equal count: the expected calibration error, 0..1.

    Bins are weighted by their rows. Equal PDs are never parted, so a scorecard with few distinct PDs has fewer bins
    (Naeini, Cooper and Hauskrecht 2015, with bins by quantile).

    Parameters
    ----------
    y, predicted
        Shape (n,).

    Returns
    -------
    Estimate
        The error is above 0 even for a perfect model, by sampling noise; the remark says by how much (`ece_noise`).
        The bins stay the same in all draws, and the bootstrap's own bias is taken out of the interval.
    """
    rows = read_labelled(y, predicted)
    if lacking := terms.minimum.lacking(rows.n, rows.bads, rows.goods):
        return Estimate.unknown(rows.n, lacking)
    noise = ece_noise(predicted, bins=bins)
    return bootstrap(
        ece_of(rows.y, rows.scores[0], bins), rows.n, terms=terms,
        recentre=True, lowest=0.0, highest=1.0, reason=f"a perfect model would show {noise:.4f} at this size",
    )  # fmt: skip


def ece_noise(predicted: ArrayLike, *, bins: int = BINS) -> float:
    """Return the calibration error that sampling noise alone gives a perfect model with these PDs, shape (n,).

    A bin's gap is then nearly normal around 0 with variance sum(p (1 - p)) / rows², and the mean of its absolute value
    is sqrt(2 / pi) standard deviations.
    """
    score = read_labelled(np.zeros(len(np.asarray(predicted))), predicted).scores[0]
    if not len(score):
        return 0.0
    code = _bin_codes(score, bins)
    variance = np.bincount(code, weights=score * (1 - score))
    return float(np.sqrt(2 / np.pi * variance).sum() / len(score))


def calibration_line(y: ArrayLike, predicted: ArrayLike, *, terms: Terms = TERMS) -> CalibrationLine:
    """Fit slope, intercept and calibration in the large, with Wald intervals from the Fisher information.

    Parameters
    ----------
    y, predicted
        Shape (n,). PDs are kept 2.2e-16 away from 0 and 1.
    """
    rows = read_labelled(y, predicted)
    if lacking := terms.minimum.lacking_rank(rows.n, rows.bads, rows.goods):
        return CalibrationLine(*[Estimate.unknown(rows.n, lacking)] * 3)
    score = _inside(rows.scores[0])
    logit = np.log(score) - np.log1p(-score)
    ones = np.ones((rows.n, 1))
    (large,) = _logistic(ones, rows.y, logit, terms.level)
    if np.ptp(logit) == 0:
        unknown = Estimate.unknown(rows.n, "all PDs are equal: there is no slope")
        return CalibrationLine(unknown, unknown, large)
    intercept, slope = _logistic(np.column_stack([ones, logit]), rows.y, np.zeros(rows.n), terms.level)
    return CalibrationLine(slope, intercept, large)


def calibration_table(
    y: ArrayLike, predicted: ArrayLike, *, bins: int = BINS, level: float = TERMS.level
) -> pd.DataFrame:
    """Return the bins of `ece`, one row each: low, high, n, bads, mean_pd, bad_rate with its Jeffreys interval.

    Empty without rows.
    """
    columns = ["low", "high", "n", "bads", "mean_pd", "bad_rate", "bad_rate_low", "bad_rate_high"]
    rows = read_labelled(y, predicted)
    if not rows.n:
        return pd.DataFrame(columns=columns)
    code = _bin_codes(rows.scores[0], bins)
    table = []
    for number in np.unique(code):
        inside = code == number
        score, n, bads = rows.scores[0][inside], int(inside.sum()), int(rows.y[inside].sum())
        interval = jeffreys_interval(bads, n, level)
        table.append((score.min(), score.max(), n, bads, score.mean(), bads / n, *interval))
    return pd.DataFrame(table, columns=columns)


def brier_of(y: Floats, score: Floats) -> Statistic:
    """Return the Brier score as a function of row weights (n,), for a bootstrap."""
    return _mean_of((score - y) ** 2)


def log_loss_of(y: Floats, score: Floats) -> Statistic:
    """Return the log loss as a function of row weights (n,), for a bootstrap."""
    return _mean_of(-np.log(_inside(np.where(y == 1, score, 1 - score))))


def ece_of(y: Floats, score: Floats, bins: int = BINS) -> Statistic:
    """Return the expected calibration error as a function of row weights (n,), for a bootstrap."""
    code, gap = _bin_codes(score, bins), y - score

    def statistic(weights: Floats) -> float:
        return float(np.abs(np.bincount(code, weights=weights * gap)).sum() / weights.sum())

    return statistic


def quantile_edges(values: Floats, bins: int) -> Floats:
    """Inner edges, ascending and distinct, of bins with about equal counts; a value belongs to the bin it ends.

    There are fewer where values repeat; none at all where they are all equal. Shape (at most bins - 1,).
    """
    shares = np.arange(1, bins) / bins
    edges = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    return np.asarray(edges[edges < values.max()], dtype=np.float64)


def _bin_codes(score: Floats, bins: int) -> NDArray[np.int64]:
    return np.searchsorted(quantile_edges(score, bins), score, side="left").astype(np.int64)


def _inside(score: Floats) -> Floats:
    return np.clip(score, _SMALLEST, 1 - _SMALLEST)


def _mean_of(losses: Floats) -> Statistic:
    return lambda weights: weighted_mean(losses, weights)


def _over_rows(
    y: ArrayLike,
    predicted: ArrayLike,
    kernel: Callable[[Floats, Floats], Statistic],
    terms: Terms,
) -> Estimate:
    rows: Labelled = read_labelled(y, predicted)
    if lacking := terms.minimum.lacking(rows.n, rows.bads, rows.goods):
        return Estimate.unknown(rows.n, lacking)
    statistic = kernel(rows.y, rows.scores[0])
    return bootstrap(statistic, rows.n, terms=terms, lowest=0.0)


def _logistic(design: Floats, y: Floats, offset: Floats, level: float) -> list[Estimate]:
    """Fit a logistic regression by Newton's method; one estimate a column of ``design``, shape (n, k)."""
    beta = np.zeros(design.shape[1])
    for _ in range(50):
        mean = 1 / (1 + np.exp(-np.clip((design * beta).sum(axis=1) + offset, -700, 700)))
        weighted = design * (mean * (1 - mean))[:, None]
        information = np.array([[(one * other).sum() for other in design.T] for one in weighted.T])
        try:
            step = np.linalg.solve(information, (design * (y - mean)[:, None]).sum(axis=0))
        except np.linalg.LinAlgError:
            break
        # Halving keeps a first step from far PDs within reach of the optimum.
        beta = beta + step / max(1.0, float(np.abs(step).max()) / 2)
        if np.abs(step).max() < 1e-10:
            half = z_score(level) * np.sqrt(np.diag(np.linalg.inv(information)))
            return [Estimate(float(b), float(b - h), float(b + h), len(y)) for b, h in zip(beta, half, strict=True)]
    reason = "the PDs part bads from goods completely, so that the regression has no optimum"
    return [Estimate.unknown(len(y), reason) for _ in beta]
