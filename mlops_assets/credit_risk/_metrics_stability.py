"""Whether a model stays as good over time, and whether its scores stay where they were.

What belongs here: the gini stability of the Home Credit contest, and the population stability index of scores. What
does not: metrics of one sample, and drift of features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk._metrics_estimates import TERMS, Estimate, Minimum, Terms
from mlops_assets.credit_risk._metrics_sampling import (
    Floats,
    draw_weights,
    percentile_interval,
    read_labelled,
    read_numbers,
)
from mlops_assets.foundation import psi

FALLING_WEIGHT = 88.0
SPREAD_WEIGHT = 0.5
PERIOD_TERMS = Terms(Minimum(50, 10, 10))
LEAST_PERIODS = 4


@dataclass(frozen=True)
class GiniStability:
    """Gini by period, and the one number that weighs its level, its fall and its spread.

    Parameters
    ----------
    score
        mean(gini) + 88 min(0, slope) - 0.5 std(residuals); the higher the better.
    mean_gini, slope, spread
        The three parts: mean of the periods' gini, its slope **a week**, and the standard deviation of the residuals.
    gini
        Gini by period, in order of time; None for one that was left out.
    left_out
        Periods with too few rows, bads or goods, and why.
    """

    score: Estimate
    mean_gini: Estimate
    slope: Estimate
    spread: Estimate
    gini: dict[str, float | None]
    left_out: dict[str, str]

    def table(self) -> pd.DataFrame:
        """Return at most 20 rows for a page: the last periods, those left out among them."""
        every = list(self.gini)[-20:]
        return pd.DataFrame(
            {
                "period": every,
                "gini": [float("nan") if (value := self.gini[name]) is None else value for name in every],
                "left_out": [self.left_out.get(name, "") for name in every],
            }
        )


@dataclass(frozen=True)
class ScorePsi:
    """Population stability index of scores, and what it is to be held against.

    Parameters
    ----------
    psi
        Sum over bins of (q - p) ln(q / p).
    bound
        The larger of the least PSI that matters and what chance alone exceeds once in a thousand times at these sizes.
    noise
        Expected PSI of two samples of one population at these sizes.
    bins
        One row a bin that is not empty: scores, expected_share, actual_share, part of the PSI.
    """

    psi: Estimate
    bound: float | None
    noise: float | None
    bins: pd.DataFrame


@dataclass(frozen=True)
class _Periods:
    """Rows in order of period and score, for gini by period as a function of row weights; ``given`` counts all."""

    given: int
    y: Floats
    strata: NDArray[np.int64]
    times: Floats
    names: tuple[str, ...]
    every: tuple[str, ...]
    left_out: dict[str, str]
    kernels: tuple["_PeriodGini", ...]


class _PeriodGini:
    """Gini of each period as a function of row weights: one pass over rows, whatever the number of periods."""

    def __init__(self, y: Floats, score: Floats, code: NDArray[np.int64]) -> None:
        self._order = np.lexsort((score, code))
        ordered, codes = score[self._order], code[self._order]
        self._bad = y[self._order]
        changes = (ordered[1:] != ordered[:-1]) | (codes[1:] != codes[:-1])
        self._ties = np.flatnonzero(np.concatenate([[True], changes]))
        period = codes[self._ties]
        self._first = np.flatnonzero(np.concatenate([[True], period[1:] != period[:-1]]))
        self._period = period

    def __call__(self, weights: Floats) -> Floats:
        w = weights[self._order]
        bads = np.add.reduceat(w * self._bad, self._ties)
        goods = np.add.reduceat(w * (1 - self._bad), self._ties)
        before = np.cumsum(goods) - goods
        below = before - before[self._first][self._period]
        concordant = np.add.reduceat(bads * (below + goods / 2), self._first)
        pairs = np.add.reduceat(bads, self._first) * np.add.reduceat(goods, self._first)
        return np.asarray(2 * concordant / pairs - 1, dtype=np.float64)


def gini_stability(
    y: ArrayLike,
    score: ArrayLike,
    period: Sequence[object] | ArrayLike,
    *,
    weeks_per_period: float = 1.0,
    terms: Terms = PERIOD_TERMS,
) -> GiniStability:
    """Weigh level, fall and spread of the gini over periods (Home Credit, Credit Risk Model Stability, Kaggle 2024).

    Parameters
    ----------
    y, score
        Shape (n,).
    period
        Shape (n,): the period of each row, of one kind that sorts by time, such as ``"2026-03-01"`` or a week number.
    weeks_per_period
        The contest's weight of 88 is for a slope a week; a month's slope is divided by 4.35, a day's by 1/7.
    terms
        Periods below its minimum are left out and named; they keep their place in time, so that a gap bends no slope.

    Returns
    -------
    GiniStability
        Not assessed below four periods. Intervals are a bootstrap within bads and goods of each period, its own bias
        taken out: resampled ginis vary more than those of the sample, which can only lower the score.
    """
    read = _read_periods(y, [score], period, terms.minimum)
    if len(read.names) < LEAST_PERIODS:
        unknown = Estimate.unknown(read.given, _too_few(read))
        return GiniStability(unknown, unknown, unknown, unknown, dict.fromkeys(read.every), read.left_out)
    kernel = read.kernels[0]
    ginis = kernel(np.ones(len(read.y)))
    times = read.times * weeks_per_period
    value = _stability(ginis[None, :], times)[0]
    sampled = np.array([kernel(weights) for weights in draw_weights(len(read.y), terms, read.strata)])
    drawn = _stability(sampled, times)
    reason = f"{len(read.left_out)} of {len(read.left_out) + len(read.names)} periods left out" if read.left_out else ""
    weighed, mean, slope, spread = (
        Estimate(
            float(value[k]),
            *percentile_interval(float(value[k]), drawn[:, k], level=terms.level, recentre=True, lowest=lowest),
            len(read.y),
            reason=reason,
        )
        for k, lowest in enumerate((-np.inf, -1.0, -np.inf, 0.0))
    )
    by_period = dict.fromkeys(read.every) | dict(zip(read.names, map(float, ginis), strict=True))
    return GiniStability(weighed, mean, slope, spread, by_period, read.left_out)


def gini_stability_difference(
    y: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    period: Sequence[object] | ArrayLike,
    *,
    weeks_per_period: float = 1.0,
    terms: Terms = PERIOD_TERMS,
) -> Estimate:
    """Gini stability of the first model minus that of the second, on the same rows in the same draws.

    Parameters are those of `gini_stability`; above 0 where the first is more stable.
    """
    read = _read_periods(y, [first, second], period, terms.minimum)
    if len(read.names) < LEAST_PERIODS:
        return Estimate.unknown(read.given, _too_few(read))
    times = read.times * weeks_per_period

    def difference(weights: Floats) -> float:
        both = _stability(np.array([kernel(weights) for kernel in read.kernels]), times)[:, 0]
        return float(both[0] - both[1])

    value = difference(np.ones(len(read.y)))
    sampled = np.array([difference(weights) for weights in draw_weights(len(read.y), terms, read.strata)])
    return Estimate(value, *percentile_interval(value, sampled, level=terms.level, recentre=True), len(read.y))


def score_psi(
    expected: ArrayLike,
    actual: ArrayLike,
    *,
    bounds: psi.PsiBounds | None = None,
    terms: Terms = TERMS,
) -> ScorePsi:
    """Compare two samples of scores by the population stability index of `foundation.psi`.

    Parameters
    ----------
    expected, actual
        Scores, shapes (n,) and (m,): of two periods, or of two models on the same applications. The bins are deciles of
        ``expected``.
    bounds
        Least PSI that matters and least rows; by default 0.10 and 50.

    Returns
    -------
    ScorePsi
        The interval is a bootstrap of both samples' bin counts, its own bias (noise twice) taken out.
    """
    bounds = bounds or psi.PsiBounds()
    before, now = (
        read_labelled(np.zeros(len(np.asarray(side))), side, probability=False) for side in (expected, actual)
    )
    rows = before.n + now.n
    if min(before.n, now.n) < bounds.minimum_rows:
        reason = f"{before.n:,} and {now.n:,} scores; needed are {bounds.minimum_rows:,} on either side"
        return ScorePsi(Estimate.unknown(rows, reason), None, None, pd.DataFrame())
    frames = [pd.DataFrame({"score": side.scores[0]}) for side in (before, now)]
    bins = psi.Reference.of(frames[0], [psi.Column("score")]).columns[0]
    counts = [np.asarray(bins.counts), np.asarray(bins.count(frames[1]))]
    found = psi.index(*counts)
    rng = np.random.default_rng(terms.seed)
    sampled = zip(*(rng.multinomial(side.sum(), side / side.sum(), size=terms.draws) for side in counts), strict=True)
    drawn = np.array([psi.index(*pair).value for pair in sampled])
    interval = percentile_interval(found.value, drawn, level=terms.level, recentre=True, lowest=0.0)
    table = pd.DataFrame(
        {
            "scores": bins.labels,
            "expected_share": counts[0] / before.n,
            "actual_share": counts[1] / now.n,
            "psi": found.parts,
        }
    )
    return ScorePsi(
        Estimate(found.value, *interval, rows),
        bounds.at_least(bounds.warn, found.bins, found.inverse_sizes),
        (found.bins - 1) * found.inverse_sizes,
        table[counts[0] + counts[1] > 0].reset_index(drop=True),
    )


def _stability(ginis: Floats, times: Floats) -> Floats:
    """Return score, mean, slope and spread of each row of ginis, shape (draws, periods) -> (draws, 4)."""
    centred = times - times.mean()
    slope = (ginis * centred).sum(axis=1) / (centred**2).sum()
    mean = ginis.mean(axis=1)
    spread = (ginis - mean[:, None] - slope[:, None] * centred).std(axis=1)
    score = mean + FALLING_WEIGHT * np.minimum(0, slope) - SPREAD_WEIGHT * spread
    return np.column_stack([score, mean, slope, spread])


def _read_periods(
    y: ArrayLike, scores: Sequence[ArrayLike], period: Sequence[object] | ArrayLike, minimum: Minimum
) -> _Periods:
    checked = read_labelled(y, *scores, probability=False)
    outcomes = read_numbers(y, "y")
    columns = [read_numbers(score, "score") for score in scores]
    place, labels = pd.factorize(np.asarray(period), sort=True)
    if len(place) != checked.n or (place < 0).any():
        raise ValueError(f"{checked.n} rows need as many periods, not {int((place >= 0).sum())}")
    names = [str(label) for label in labels]
    sizes = np.bincount(place, minlength=len(names))
    bads = np.bincount(place, weights=outcomes, minlength=len(names)).astype(np.int64)
    lacking = {
        name: reason
        for name, n, bad in zip(names, sizes, bads, strict=True)
        if (reason := minimum.lacking_rank(int(n), int(bad), int(n - bad)))
    }
    used = np.array([name not in lacking for name in names], dtype=bool)
    kept = used[place]
    # Rows in an order of their values, so that the bootstrap does not depend on the order they came in.
    order = np.lexsort((outcomes[kept], *[column[kept] for column in reversed(columns)], place[kept]))
    code = (np.cumsum(used) - 1)[place[kept]][order]
    rows = outcomes[kept][order]
    return _Periods(
        checked.n,
        rows,
        (2 * code + rows).astype(np.int64),
        np.flatnonzero(used).astype(np.float64),
        tuple(name for name in names if name not in lacking),
        tuple(names),
        lacking,
        tuple(_PeriodGini(rows, column[kept][order], code) for column in columns) if kept.any() else (),
    )


def _too_few(read: _Periods) -> str:
    some = next(iter(read.left_out.items()), None)
    why = f"; {len(read.left_out)} were left out, such as {some[0]} ({some[1]})" if some else ""
    return f"{len(read.names)} periods can be assessed, needed are {LEAST_PERIODS}{why}"
