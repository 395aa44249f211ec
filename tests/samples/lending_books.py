"""Loan books that the tests share, and what they ask of them."""

from dataclasses import replace
from datetime import date
from functools import cache

import numpy as np
import pandas as pd

from mlops_assets.samples.lending import AGE_BOUNDS, FEATURES, ORIGINS, SEXES, LendingWorld

WORLD = LendingWorld()
CLEAN = LendingWorld(dirt=0.0, label_conflicts=0.0)
BUSY = LendingWorld(applications_per_day=2_000, dirt=0.0)
SHOCK = date(2025, 1, 13)
SHOCKED = replace(BUSY, shock=SHOCK)
ROWS = 50_000
FRAMES = ("applications", "typed_applications", "booked", "outcomes", "true_pd", "truth")


def days_of(world: LendingWorld, name: str, days: range) -> pd.DataFrame:
    return pd.concat([getattr(world, name)(day).assign(day=day) for day in days], ignore_index=True)


@cache
def crowd(world: LendingWorld, day: int = 0) -> pd.DataFrame:
    """Return many applications as of a day, with what becomes of them."""
    truth = world.truth_frame(ROWS, day=day).drop(columns="application_id")
    return pd.concat([world.applications_frame(ROWS, day=day), truth], axis=1)


def assert_in_bounds(typed: pd.DataFrame) -> None:
    for feature in FEATURES:
        values = typed[feature.name]
        if feature.kind == "categorical":
            assert values.isin(feature.levels).all()
            continue
        assert feature.low is not None
        assert feature.high is not None
        assert values.dtype == np.float64
        assert feature.missing or values.notna().all(), feature.name
        known = values[values.notna() & ~values.isin(list(feature.special))]
        assert known.between(feature.low, feature.high).all(), feature.name
        assert not feature.integer or (known == known.round()).all(), feature.name
    assert typed["term_months"].isin([12, 24, 36, 48, 60]).all()
    assert typed["age"].between(*AGE_BOUNDS).all()
    assert typed["sex"].isin(SEXES).all()
    assert typed["origin"].isin(ORIGINS).all()
