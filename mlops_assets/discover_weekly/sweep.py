"""The search for the collaborative model's hyper-parameters, on a split of the training data.

What belongs here: which settings are tried and which one wins. What does not: fitting (collaborative.py) and metrics.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.discover_weekly.collaborative import CollaborativeParams, fit
from mlops_assets.discover_weekly.interactions import Interactions, Split, Weighting, split_stratified
from mlops_assets.discover_weekly.metrics import accuracy, bootstrap, coverage
from mlops_assets.foundation.errors import UserError

_LAST_ROUND = 3
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class SearchSpace:
    """Where hyper-parameters are searched: ranges on a logarithmic scale, and lists to try in turn."""

    regularization: tuple[float, float] = (1.0, 100.0)
    alpha: tuple[float, float] = (1.0, 20.0)
    factors: tuple[int, ...] = (64, 128)
    weighting: tuple[Weighting, ...] = ("binary",)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Outcome of a search: the best hyper-parameters, and one row a trial.

    ``table`` has the columns trial, round, factors, regularization, alpha, weighting, ndcg, low, high, coverage.
    """

    best: CollaborativeParams
    table: pd.DataFrame = field(repr=False)


def sweep(
    interactions: Interactions,
    *,
    validation: Interactions | None = None,
    search: SearchSpace | None = None,
    base: CollaborativeParams | None = None,
    trials: int = 24,
    k: int = 10,
    seed: int = 0,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
) -> Sweep:
    """Search for the hyper-parameters with the best nDCG on held-out plays.

    Three rounds: half of the trials spread evenly over the whole space, a quarter along the valley of
    the best ratio of regularization to alpha, and a quarter, with the best factors and weighting, over a smaller piece
    of it. Accuracy depends far more on that ratio than on either number. Deterministic.

    Parameters
    ----------
    interactions
        Training data. It must not contain what the model will be tested on.
    validation
        Held-out plays of the same users on the same catalogue; a stratified fifth of ``interactions`` by default.
    base
        Values of what is not searched (iterations, seed).
    progress
        Called with each row of the table as it comes.

    Raises
    ------
    UserError
        There are no trials, a range is not positive and ascending, or nothing is held out.
    """
    search, base = search or SearchSpace(), base or CollaborativeParams()
    _check_search(search, trials)
    split = split_stratified(interactions, seed=seed) if validation is None else Split(interactions, validation, {})
    judge = _Judge(split, k, seed)
    rows: list[dict[str, Any]] = []
    best = base
    kinds = list(itertools.product(search.weighting, search.factors))
    for number, (count, along, across) in enumerate(_rounds(trials), start=1):
        pairs = _points(search, None if number == 1 else best, along, across, count, seed)
        if number == _LAST_ROUND:
            kinds = [(best.weighting, best.factors)]
        for place, (regularization, alpha) in enumerate(pairs):
            weighting, factors = kinds[place % len(kinds)]
            params = replace(base, factors=factors, weighting=weighting, regularization=regularization, alpha=alpha)
            row = {"trial": len(rows), "round": number, **_searched(params), **judge(params)}
            if not rows or row["ndcg"] > max(other["ndcg"] for other in rows):
                best = params
            rows.append(row)
            if progress is not None:
                progress(row)
    return Sweep(best, pd.DataFrame(rows))


class _Judge:
    """Fit on one part of a split and measure on the other."""

    def __init__(self, split: Split, k: int, seed: int) -> None:
        users = np.flatnonzero(np.diff(split.held_out.positives().indptr) > 0)
        if not len(users):
            raise UserError(
                "nothing is held out to judge the trials by",
                where="validation",
                remedy="hold back a larger share, or take users with more tracks.",
            )
        self.train, self.k, self.seed = split.train, k, seed
        self.histories, self.relevant = split.train.rows(users), split.held_out.rows(users).positives()

    def __call__(self, params: CollaborativeParams) -> dict[str, float]:
        lists = fit(self.train, params).recommend(self.histories, self.k)
        ndcg = bootstrap(accuracy(lists, self.relevant, self.k)["ndcg"], self.seed, n=200)
        return {
            "ndcg": ndcg.mean,
            "low": ndcg.low,
            "high": ndcg.high,
            "coverage": coverage(lists, self.train.n_tracks),
        }


def _rounds(trials: int) -> Iterator[tuple[int, float, float]]:
    """Trials of each round, and the share of the ranges that it spans along and across the valley."""
    first = (trials + 1) // 2
    second = (trials - first + 1) // 2
    for count, along, across in ((first, 1.0, 1.0), (second, 1.0, 0.4), (trials - first - second, 0.5, 0.2)):
        if count:
            yield count, along, across


def _points(
    search: SearchSpace, best: CollaborativeParams | None, along: float, across: float, count: int, seed: int
) -> list[tuple[float, float]]:
    """Spread pairs of regularization and alpha evenly over a piece of the space, to three digits."""
    place = np.arange(count)
    # Multiples of the golden ratio fill the unit square evenly for any count, small ones above all.
    spread = np.stack([(place * _GOLDEN + 0.5 + seed * _GOLDEN) % 1, (place + 0.5) / count], axis=1)
    low, high = np.log(search.alpha)
    least, most = np.log(search.regularization)
    if best is None:
        alpha = low + spread[:, 0] * (high - low)
        regularization = least + spread[:, 1] * (most - least)
    else:
        start = np.clip(np.log(best.alpha) - along * (high - low) / 2, low, high - along * (high - low))
        alpha = start + spread[:, 0] * along * (high - low)
        ratio = np.log(best.regularization / best.alpha) + (spread[:, 1] - 0.5) * across * (most - least)
        regularization = np.clip(alpha + ratio, least, most)
    return [(float(f"{r:.3g}"), float(f"{a:.3g}")) for r, a in np.exp(np.stack([regularization, alpha], axis=1))]


def _searched(params: CollaborativeParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in ("factors", "regularization", "alpha", "weighting")}


def _check_search(search: SearchSpace, trials: int) -> None:
    for name in ("regularization", "alpha"):
        low, high = getattr(search, name)
        if not 0 < low <= high:
            raise UserError(
                f"the range {low} to {high} is not positive and ascending",
                where=f"sweep.{name}",
                remedy="the search is on a logarithmic scale: give two positive numbers, the smaller first.",
            )
    if trials < 1 or not search.factors or not search.weighting:
        raise UserError(
            "there is nothing to try", where="sweep", remedy="give at least one trial, factors and weighting."
        )
