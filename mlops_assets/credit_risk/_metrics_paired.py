"""Two models on the same applications: differences of any metric, and the decisions that change hands.

What belongs here: paired comparisons. What does not: the metrics themselves, and AUC's own paired test
(`_metrics_ranking.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mlops_assets.credit_risk._metrics_calibration import brier_of, ece_of, log_loss_of
from mlops_assets.credit_risk._metrics_estimates import TERMS, Estimate, Terms, proportion
from mlops_assets.credit_risk._metrics_ranking import auc_of, gini_of, ks_of
from mlops_assets.credit_risk._metrics_sampling import Floats, Statistic, bootstrap, read_labelled, read_numbers

Metric = Literal["auc", "gini", "ks", "brier", "log_loss", "ece"]

KERNELS: Mapping[str, Callable[[Floats, Floats], Statistic]] = {
    "auc": auc_of,
    "gini": gini_of,
    "ks": ks_of,
    "brier": brier_of,
    "log_loss": log_loss_of,
    "ece": ece_of,
}


@dataclass(frozen=True)
class Swap:
    """Applications that two models treat alike or not.

    Parameters
    ----------
    counts
        both_accept, both_not, swapped_in (accepted by the candidate alone), swapped_out (by the champion alone).
    flips
        Share of all applications that are treated differently.
    bad_rates
        Observed bad rate of each of the four sets, of those with an outcome; ``n`` counts these.
    gain
        Bad rate of those swapped out minus that of those swapped in: above 0 where the swap is for the better.
    """

    counts: dict[str, int]
    flips: Estimate
    bad_rates: dict[str, Estimate]
    gain: Estimate

    def table(self) -> pd.DataFrame:
        """Return one row a set for a page."""
        rows = [
            {"applications": name, "n": count, "with_outcome": self.bad_rates[name].n}
            | dict(zip(("bad_rate", "low", "high"), self.bad_rates[name].number(), strict=True))
            | {"reason": self.bad_rates[name].reason}
            for name, count in self.counts.items()
        ]
        return pd.DataFrame(rows)


def paired_difference(
    metric: Metric,
    y: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    relative: bool = False,
    terms: Terms = TERMS,
) -> Estimate:
    """Estimate a metric of the first model minus that of the second, with a paired bootstrap interval.

    Both are measured on the same rows of every draw, so that what makes a draw easy or hard for both cancels out. Rows
    are drawn within bads and goods for metrics of order, and from all for errors of the PD.

    Parameters
    ----------
    y, first, second
        Shape (n,) each, row by row the same applications.
    relative
        Divide the difference by the second model's metric: 0.02 is 2 % more.
    """
    ranked = metric in {"auc", "gini", "ks"}
    rows = read_labelled(y, first, second, probability=not ranked)
    if lacking := terms.minimum.lacking_rank(rows.n, rows.bads, rows.goods):
        return Estimate.unknown(rows.n, lacking)
    one, other = (KERNELS[metric](rows.y, score) for score in rows.scores)
    if relative and other(np.ones(rows.n)) == 0:
        return Estimate.unknown(rows.n, f"the second model's {metric} is 0: there is nothing to divide by")

    def difference(weights: Floats) -> float:
        value, base = one(weights), other(weights)
        # A draw in which the base is 0 by chance stands for no change, not for an infinite one.
        return (value - base) / (base or 1.0) if relative else value - base

    strata = rows.strata if ranked else None
    return bootstrap(difference, rows.n, strata=strata, terms=terms)


def swap_set(
    accepted: ArrayLike,
    champion_accepted: ArrayLike,
    y: ArrayLike | None = None,
    *,
    level: float = TERMS.level,
    minimum_rows: int = 30,
) -> Swap:
    """Compare whom two models accept, and how those turned out (Siddiqi 2006, swap set analysis).

    Outcomes are known for those alone who got a loan: bad rates rest on them and say little about the others.

    Parameters
    ----------
    accepted, champion_accepted
        Booleans, shape (n,): accepted without a human, by the candidate and by the champion.
    y
        Shape (n,): 1 a bad, 0 a good, NaN where no outcome is known.
    minimum_rows
        Sets with fewer outcomes have no bad rate.
    """
    ours, theirs = (np.asarray(side, dtype=bool) for side in (accepted, champion_accepted))
    outcomes = np.full(len(ours), np.nan) if y is None else read_numbers(y, "y")
    if not len(ours) == len(theirs) == len(outcomes):
        raise ValueError(f"decisions need the same rows: {len(ours)}, {len(theirs)}, {len(outcomes)}")
    known = np.isfinite(outcomes)
    read_labelled(outcomes[known])
    sets = {
        "both_accept": ours & theirs,
        "both_not": ~ours & ~theirs,
        "swapped_in": ours & ~theirs,
        "swapped_out": ~ours & theirs,
    }
    rates = {
        name: proportion(
            int(outcomes[inside & known].sum()), int((inside & known).sum()), least=minimum_rows, level=level
        )
        for name, inside in sets.items()
    }
    counts = {name: int(inside.sum()) for name, inside in sets.items()}
    flips = proportion(counts["swapped_in"] + counts["swapped_out"], len(ours), level=level)
    return Swap(counts, flips, rates, _gain(rates["swapped_out"], rates["swapped_in"]))


def _gain(out: Estimate, into: Estimate) -> Estimate:
    """Difference of two independent shares; bounds by Newcombe's hybrid score method (1998) on Jeffreys intervals."""
    for name, rate in (("swapped out", out), ("swapped in", into)):
        if not rate.assessed:
            return Estimate.unknown(out.n + into.n, f"{name}: {rate.reason}")
    (a, a_low, a_high), (b, b_low, b_high) = out.number(), into.number()
    low = a - b - float(np.hypot(a - a_low, b_high - b))
    high = a - b + float(np.hypot(a_high - a, b - b_low))
    return Estimate(a - b, low, high, out.n + into.n)
