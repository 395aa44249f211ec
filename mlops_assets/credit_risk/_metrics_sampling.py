"""Outcomes and scores as every metric reads them, and the bootstrap that gives a metric its interval.

What belongs here: the reading of labels and scores, and the bootstrap by row weights. What does not: what an estimate
is (`_metrics_estimates.py`) and any particular metric.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk._metrics_estimates import TERMS, Estimate, Terms
from mlops_assets.foundation.errors import UserError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]


@dataclass(frozen=True)
class Labelled:
    """Outcomes and scores of the same rows, in an order that depends on their values alone.

    The order makes every metric and every bootstrap draw the same whatever order the rows came in.

    Parameters
    ----------
    y
        float64 (n,): 1.0 a bad (default), 0.0 a good.
    scores
        One float64 array (n,) a model; ascending in the first.
    """

    y: Floats
    scores: tuple[Floats, ...]

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.y)

    @property
    def bads(self) -> int:
        """Number of bads."""
        return int(self.y.sum())

    @property
    def goods(self) -> int:
        """Number of goods."""
        return self.n - self.bads

    @property
    def strata(self) -> NDArray[np.int64]:
        """The class of each row, for a bootstrap that keeps the number of bads and goods."""
        return self.y.astype(np.int64)


def read_labelled(y: ArrayLike, *scores: ArrayLike, probability: bool = True) -> Labelled:
    """Check outcomes and scores and put them into their own order.

    Parameters
    ----------
    y
        Shape (n,): 0 or 1 (or booleans), 1 a bad. Rows without an outcome are for the caller to leave out.
    scores
        Shape (n,) each.
    probability
        Whether scores must lie between 0 and 1.

    Raises
    ------
    ValueError
        The shapes differ: a programming error.
    UserError
        An outcome is neither 0 nor 1, or a score is missing, infinite or no probability.
    """
    labels, read = read_numbers(y, "y"), [read_numbers(score, "pd") for score in scores]
    if any(len(score) != len(labels) for score in read):
        raise ValueError(f"outcomes and scores need the same rows: {[len(labels), *map(len, read)]}")
    if len(wrong := labels[(labels != 0) & (labels != 1)]):
        raise UserError(
            f"{len(wrong):,} of {len(labels):,} outcomes are neither 0 nor 1, such as {wrong[0]:.6g}",
            where="outcomes",
            remedy="leave out applications without a matured outcome; 1 is a bad, 0 a good.",
        )
    for score in read:
        inside = np.isfinite(score) & ((score >= 0) & (score <= 1) if probability else True)
        if not inside.all():
            what = "probabilities of default between 0 and 1" if probability else "finite numbers"
            raise UserError(
                f"{int((~inside).sum()):,} of {len(score):,} scores are no {what}, such as {score[~inside][0]:.6g}",
                where="scores",
                remedy="score every row with a model, and leave out rows in quarantine.",
            )
    order = np.lexsort((labels, *reversed(read))) if len(labels) else np.empty(0, dtype=np.int64)
    return Labelled(labels[order], tuple(score[order] for score in read))


def read_numbers(values: ArrayLike, name: str) -> Floats:
    """Turn one column into float64, shape (n,); missing values of any kind become NaN.

    Raises
    ------
    ValueError
        It has more than one dimension, or holds something that is no number.
    """
    # pandas' nullable columns know how to turn NA into NaN; numpy alone does not.
    convert = getattr(values, "to_numpy", None)
    array = np.asarray(convert(dtype=np.float64, na_value=np.nan) if convert else values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} needs one dimension, not {array.ndim}")
    return array


def draw_weights(n: int, terms: Terms, strata: NDArray[np.integer] | None = None) -> Iterator[Floats]:
    """Yield how often each row is in each bootstrap sample; float64 (n,), summing to n.

    A statistic of weights needs no sorting or copying of rows a draw, which is what makes the bootstrap fast.

    Parameters
    ----------
    strata
        Whole numbers (n,): rows are drawn with replacement within each, so that every sample keeps their sizes.
    """
    rng = np.random.default_rng(terms.seed)
    if strata is None:
        for _ in range(terms.draws):
            yield np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        return
    order = np.argsort(strata, kind="stable")
    _, first, sizes = np.unique(strata[order], return_index=True, return_counts=True)
    start, size = np.repeat(first, sizes), np.repeat(sizes, sizes)
    weights = np.empty(n)
    for _ in range(terms.draws):
        picked = start + (rng.random(n) * size).astype(np.int64)
        weights[order] = np.bincount(picked, minlength=n)
        yield weights.copy()


def percentile_interval(
    value: float,
    draws: Floats,
    *,
    level: float = TERMS.level,
    recentre: bool = False,
    lowest: float = -np.inf,
    highest: float = np.inf,
) -> tuple[float, float]:
    """Return the bounds of a percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Parameters
    ----------
    draws
        The statistic of each bootstrap sample, shape (draws,).
    recentre
        Take the bootstrap's own bias (mean of the draws minus ``value``) out of both bounds. For statistics that
        noise can only raise, such as a maximum or a sum of absolute gaps: their draws carry the noise twice.
    lowest, highest
        The statistic's range; bounds outside of it are moved to its edge.
    """
    bias = float(draws.mean()) - value if recentre else 0.0
    tail = (1 - level) / 2
    low, high = np.quantile(draws, (tail, 1 - tail)) - bias
    # An interval that excludes its own estimate, be it by bias or by rounding, would only puzzle its readers.
    return min(max(float(low), lowest), value), max(min(float(high), highest), value)


def bootstrap(
    statistic: Statistic,
    n: int,
    *,
    strata: NDArray[np.integer] | None = None,
    terms: Terms = TERMS,
    recentre: bool = False,
    lowest: float = -np.inf,
    highest: float = np.inf,
    reason: str = "",
) -> Estimate:
    """Estimate a statistic of row weights with a seeded percentile bootstrap interval; see `percentile_interval`."""
    value = statistic(np.ones(n))
    sampled = np.array([statistic(weights) for weights in draw_weights(n, terms, strata)])
    low, high = percentile_interval(
        value, sampled, level=terms.level, recentre=recentre, lowest=lowest, highest=highest
    )
    return Estimate(value, low, high, n, reason=reason)


def mean_estimate(values: Floats, terms: Terms = TERMS) -> Estimate:
    """Mean of a value a row, shape (n,), n > 0, with a bootstrap interval."""
    ordered = np.sort(values)
    return bootstrap(lambda weights: weighted_mean(ordered, weights), len(ordered), terms=terms)


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Return the mean of values (n,) under weights (n,).

    Not by a matrix product: its last bits depend on the number of threads, and evidence is compared by its hash.
    """
    return float((weights * values).sum() / weights.sum())
