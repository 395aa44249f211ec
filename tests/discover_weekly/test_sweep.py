"""The search for hyper-parameters: repeatable, within its bounds, judged by held-out plays only."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlops_assets.discover_weekly.collaborative import fit
from mlops_assets.discover_weekly.evaluation import evaluate
from mlops_assets.discover_weekly.interactions import Interactions, split_stratified
from mlops_assets.discover_weekly.sweep import SearchSpace, sweep
from mlops_assets.foundation.errors import UserError
from tests.discover_weekly.test_collaborative import SMALL, two_tastes

SPACE = SearchSpace(regularization=(0.5, 50.0), alpha=(1.0, 20.0), factors=(4, 8), weighting=("binary", "log"))
BASE = replace(SMALL, iterations=3)


@pytest.fixture(scope="module")
def data() -> Interactions:
    return two_tastes()


def test_a_sweep_returns_its_best_trial_and_repeats_itself(data):
    told = []
    first = sweep(data, search=SPACE, base=BASE, trials=8, k=5, progress=told.append)
    again = sweep(data, search=SPACE, base=BASE, trials=8, k=5)
    pd.testing.assert_frame_equal(first.table, again.table)
    row = first.table.loc[first.table["ndcg"].idxmax()]
    best = first.best
    assert (best.factors, best.regularization, best.alpha) == (row["factors"], row["regularization"], row["alpha"])
    assert best.iterations == BASE.iterations
    assert [row["trial"] for row in told] == list(range(8))
    assert set(first.table["weighting"]) == {"binary", "log"}


def test_a_sweep_stays_within_its_bounds_and_narrows(data):
    table = sweep(data, search=SPACE, base=BASE, trials=12, k=5).table
    assert table["regularization"].between(0.5, 50).all()
    assert table["alpha"].between(1, 20).all()
    ratio = np.log(table["regularization"] / table["alpha"])
    assert ratio[table["round"] == 3].std() < ratio[table["round"] == 1].std()


def test_a_sweep_judges_by_the_given_validation_only(data):
    split = split_stratified(data, seed=5)
    given = sweep(split.train, validation=split.held_out, search=SPACE, base=BASE, trials=1, k=5).table.iloc[0]
    params = replace(BASE, factors=4, regularization=given["regularization"], alpha=given["alpha"])
    result = evaluate(fit(split.train, params).recommend, split.train, split.held_out, baselines={}, ks=(5,))
    assert given["ndcg"] == pytest.approx(result.value("candidate", "ndcg", 5).mean)


@pytest.mark.parametrize(
    ("space", "trials", "message"),
    [
        (replace(SPACE, alpha=(0.0, 5.0)), 3, "not positive and ascending"),
        (replace(SPACE, regularization=(9.0, 5.0)), 3, "not positive and ascending"),
        (SPACE, 0, "nothing to try"),
        (replace(SPACE, factors=()), 3, "nothing to try"),
    ],
)
def test_a_search_that_cannot_work_is_refused(data, space, trials, message):
    with pytest.raises(UserError, match=message):
        sweep(data, search=space, trials=trials)


def test_a_sweep_without_held_out_plays_is_refused(data):
    nothing = data.rows(np.arange(data.n_users))
    nothing.matrix.data[:] = 0
    with pytest.raises(UserError, match="nothing is held out"):
        sweep(data, validation=nothing, trials=1)
