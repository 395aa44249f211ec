"""How well scores put bads above goods: AUC, gini, Kolmogorov-Smirnov, and the difference of two models' AUC.

What belongs here: metrics of order, which any strictly rising change of the scores leaves alone. What does not: whether
probabilities are right (`_metrics_calibration.py`).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk._metrics_estimates import TERMS, Estimate, Terms, z_score
from mlops_assets.credit_risk._metrics_sampling import Floats, Labelled, Statistic, bootstrap, read_labelled
from mlops_assets.foundation.errors import UserError


@dataclass(frozen=True)
class AucDifference:
    """AUC of a model minus that of another on the same rows.

    Parameters
    ----------
    difference
        Above 0 where the first is better, with DeLong's interval.
    p_value
        Two-sided probability of a difference this large where there is none; None where it was not assessed.
    first, second
        The two models' AUC.
    """

    difference: Estimate
    p_value: float | None
    first: Estimate
    second: Estimate


def auc(y: ArrayLike, score: ArrayLike, *, terms: Terms = TERMS) -> Estimate:
    """Area under the ROC curve: the chance that a bad scores above a good, a tie counting half; 0..1.

    Parameters
    ----------
    y, score
        Shape (n,): 1 a bad, and any finite number that rises with the risk, such as the PD.

    Returns
    -------
    Estimate
        The interval is DeLong's (DeLong, DeLong and Clarke-Pearson 1988; computed by midranks as in Sun and Xu 2014)
        on the logit scale, so that it stays within 0..1. Where that variance is zero, as when every bad scores above
        every good, it is Newcombe's method 5 (2006), which does not claim certainty from a finite sample.
    """
    rows = read_labelled(y, score, probability=False)
    if lacking := terms.minimum.lacking_rank(rows.n, rows.bads, rows.goods):
        return Estimate.unknown(rows.n, lacking)
    areas, covariance = _delong(rows)
    return _auc_estimate(rows, float(areas[0]), float(covariance[0, 0]), terms.level)


def gini(y: ArrayLike, score: ArrayLike, *, terms: Terms = TERMS) -> Estimate:
    """Gini coefficient (accuracy ratio), 2 AUC - 1; -1..1, with the interval of `auc`."""
    area = auc(y, score, terms=terms)
    if not area.assessed:
        return area
    value, low, high = (2 * number - 1 for number in area.number())
    return Estimate(value, low, high, area.n, reason=area.reason)


def auc_difference(y: ArrayLike, first: ArrayLike, second: ArrayLike, *, terms: Terms = TERMS) -> AucDifference:
    """Compare two models' AUC on the same rows by DeLong's paired test (DeLong et al. 1988).

    Parameters
    ----------
    y, first, second
        Shape (n,) each, row by row the same applications.
    """
    rows = read_labelled(y, first, second, probability=False)
    if lacking := terms.minimum.lacking_rank(rows.n, rows.bads, rows.goods):
        unknown = Estimate.unknown(rows.n, lacking)
        return AucDifference(unknown, None, unknown, unknown)
    areas, covariance = _delong(rows)
    each = [_auc_estimate(rows, float(areas[k]), float(covariance[k, k]), terms.level) for k in range(2)]
    value = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    # What is left of equal placements after rounding is no variance.
    if variance > 1e-16:
        from scipy.special import ndtr

        error = float(np.sqrt(variance))
        half = z_score(terms.level) * error
        p_value = float(2 * ndtr(-abs(value) / error))
        return AucDifference(Estimate(value, value - half, value + half, rows.n), p_value, *each)
    if all(_is_order_of(rows.scores[0], rows.scores[1])):
        same = Estimate(0.0, 0.0, 0.0, rows.n, reason="both put the applications in the same order")
        return AucDifference(same, 1.0, *each)
    unknown = Estimate.unknown(rows.n, "neither AUC varies within this sample, so chance cannot be told from a gain")
    return AucDifference(unknown, None, *each)


def ks(
    y: ArrayLike,
    score: ArrayLike,
    terms: Terms = TERMS,
) -> Estimate:
    """Kolmogorov-Smirnov distance: largest gap of the two cumulative score distributions, bads and goods; 0..1.

    Parameters
    ----------
    y, score
        Shape (n,).

    Returns
    -------
    Estimate
        The interval is a bootstrap within bads and goods, with the bootstrap's own bias taken out: a maximum of noisy
        gaps is too large on average, and in resampled rows twice so.
    """
    rows = read_labelled(y, score, probability=False)
    if lacking := terms.minimum.lacking_rank(rows.n, rows.bads, rows.goods):
        return Estimate.unknown(rows.n, lacking)
    return bootstrap(
        ks_of(rows.y, rows.scores[0]), rows.n, strata=rows.strata, terms=terms, recentre=True, lowest=0.0, highest=1.0,
    )  # fmt: skip


def auc_value(y: ArrayLike, score: ArrayLike) -> float:
    """Return AUC without its interval, for numbers that are no claim about a population; shapes (n,).

    Raises
    ------
    UserError
        There is one class only.
    """
    rows = read_labelled(y, score, probability=False)
    if not rows.bads or not rows.goods:
        raise UserError(
            f"{rows.n:,} rows hold {rows.bads:,} bads and {rows.goods:,} goods: nothing can be ranked",
            where="outcomes",
            remedy="give it rows of both kinds.",
        )
    return auc_of(rows.y, rows.scores[0])(np.ones(rows.n))


def auc_of(y: Floats, score: Floats) -> Statistic:
    """Return AUC as a function of row weights (n,), for a bootstrap."""
    order, starts = _tied(score)
    bad = y[order]

    def statistic(weights: Floats) -> float:
        w = weights[order]
        bads = np.add.reduceat(w * bad, starts)
        goods = np.add.reduceat(w * (1 - bad), starts)
        below = np.cumsum(goods) - goods
        return float((bads * (below + goods / 2)).sum() / (bads.sum() * goods.sum()))

    return statistic


def gini_of(y: Floats, score: Floats) -> Statistic:
    """Return gini as a function of row weights (n,), for a bootstrap."""
    area = auc_of(y, score)
    return lambda weights: 2 * area(weights) - 1


def ks_of(y: Floats, score: Floats) -> Statistic:
    """Return the Kolmogorov-Smirnov distance as a function of row weights (n,), for a bootstrap."""
    order, starts = _tied(score)
    bad = y[order]

    def statistic(weights: Floats) -> float:
        w = weights[order]
        bads = np.cumsum(np.add.reduceat(w * bad, starts))
        goods = np.cumsum(np.add.reduceat(w * (1 - bad), starts))
        return float(np.abs(bads / bads[-1] - goods / goods[-1]).max())

    return statistic


def _tied(score: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ascending order of scores and where each run of equal ones starts in it."""
    order = np.argsort(score, kind="stable")
    return order, _starts(score[order])


def _starts(ordered: Floats) -> NDArray[np.int64]:
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _is_order_of(first: Floats, second: Floats) -> tuple[bool, bool]:
    """Whether each of two scores rises and ties exactly where the other does; ``first`` is ascending."""
    rises, follows = np.diff(first) > 0, np.diff(second)
    return bool((follows[rises] > 0).all()), bool((follows[~rises] == 0).all())


def _midranks(values: Floats) -> Floats:
    """Ranks from 1, tied values sharing the mean of theirs; shape of ``values``."""
    order, starts = _tied(values)
    sizes = np.diff(np.append(starts, len(values)))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(starts + (sizes + 1) / 2, sizes)
    return ranks


def _delong(rows: Labelled) -> tuple[Floats, Floats]:
    """Return AUC of each score, shape (k,), and their covariance, shape (k, k)."""
    bad = rows.y == 1
    bads, goods = rows.bads, rows.goods
    of_bads, of_goods = [], []
    for score in rows.scores:
        ranks = _midranks(score)
        # The share of goods below each bad, and of bads above each good.
        of_bads.append((ranks[bad] - _midranks(score[bad])) / goods)
        of_goods.append(1 - (ranks[~bad] - _midranks(score[~bad])) / bads)
    areas = np.array([placed.mean() for placed in of_bads])
    covariance = np.atleast_2d(np.cov(of_bads)) / bads + np.atleast_2d(np.cov(of_goods)) / goods
    return areas, covariance


def _auc_estimate(rows: Labelled, area: float, variance: float, level: float) -> Estimate:
    if variance <= 0 or area <= 0 or area >= 1:
        low, high = _newcombe(area, rows.bads, rows.goods, z_score(level))
    else:
        logit = np.log(area / (1 - area))
        half = z_score(level) * np.sqrt(variance) / (area * (1 - area))
        low, high = (float(1 / (1 + np.exp(-bound))) for bound in (logit - half, logit + half))
    estimate = Estimate(area, min(low, area), max(high, area), rows.n)
    if area == 1:
        return replace(estimate, reason="bads and goods do not overlap at all: look for leakage")
    return estimate


def _newcombe(area: float, bads: int, goods: int, z: float) -> tuple[float, float]:
    """Solve |area - theta| = z sqrt(V(theta)) on both sides, V being Hanley and McNeil's variance (Newcombe 2006)."""
    mean_size = (bads + goods) / 2 - 1

    def outside(theta: float) -> bool:
        shape = 1 + mean_size * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(area - theta) > z * float(np.sqrt(theta * (1 - theta) * shape / (bads * goods)))

    bounds = []
    for end in (0.0, 1.0):
        inner, outer = area, end
        # Sixty halvings leave less than the last bit of a double.
        for _ in range(60 if outside(end) else 0):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        bounds.append(inner if outside(end) else end)
    return bounds[0], bounds[1]
