"""What a loan book is made of: its features with their ranges and directions, and how frequent each category is.

What belongs here: fixed tables that readers of the feed may rely on. What does not: anything drawn at random.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Objects = NDArray[np.object_]

_NO_CODES: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True)
class LendingFeature:
    """One column of an application that a model may use.

    Parameters
    ----------
    name
        The column.
    kind
        ``numeric`` or ``categorical``.
    meaning
        What it says, with its unit.
    low, high
        Bounds of a numeric feature, both included; the world never leaves them, but for dirt and unit errors.
    integer
        Whether all its values are whole numbers.
    direction
        What a higher value does to the true default probability when all else stays as it is: +1 raises it (or
        leaves it as it is), -1 lowers it, 0 neither throughout. Special codes and missing values are not ordered.
    special
        Codes outside the bounds and what they mean.
    missing
        Whether values are missing in clean rows.
    levels
        The categories of a categorical feature.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    meaning: str
    low: float | None = None
    high: float | None = None
    integer: bool = False
    direction: Literal[-1, 0, 1] = 0
    special: Mapping[int, str] = field(default_factory=lambda: _NO_CODES)
    missing: bool = False
    levels: tuple[str, ...] = ()


NEVER, NOT_USABLE, NO_FILE = -7, -8, -9

_NUMERIC = (
    LendingFeature("annual_income", "numeric", "gross income, a year", 9_600, 600_000, integer=True, direction=-1),
    LendingFeature("loan_amount", "numeric", "amount applied for", 1_000, 50_000, integer=True, direction=1),
    LendingFeature("term_months", "numeric", "12, 24, 36, 48 or 60 months", 12, 60, integer=True, direction=1),
    LendingFeature("employment_years", "numeric", "years in the present job; 0 without one", 0, 50, direction=-1),
    LendingFeature(
        "revolving_utilisation",
        "numeric",
        "share of the credit lines in use; missing without a line",
        0,
        1.5,
        direction=1,
        missing=True,
    ),
    LendingFeature("open_accounts", "numeric", "open credit accounts; 0 without a bureau file", 0, 40, integer=True),
    LendingFeature("delinquencies_2y", "numeric", "late payments in two years", 0, 20, integer=True, direction=1),
    LendingFeature("inquiries_6m", "numeric", "credit inquiries in six months", 0, 20, integer=True, direction=1),
    LendingFeature(
        "months_since_delinquency",
        "numeric",
        "months since the last late payment",
        0,
        120,
        integer=True,
        direction=-1,
        special=MappingProxyType({NEVER: "never late", NOT_USABLE: "not usable", NO_FILE: "no bureau file"}),
    ),
    LendingFeature(
        "credit_history_months",
        "numeric",
        "age of the oldest account; 0 without a bureau file",
        0,
        720,
        integer=True,
        direction=-1,
    ),
    LendingFeature(
        "debt_to_income", "numeric", "all monthly payments, the new one included, over income", 0, 2, direction=1
    ),
)
_CATEGORICAL = (
    LendingFeature(
        "purpose",
        "categorical",
        "what the loan is for",
        levels=(
            "debt_consolidation", "car", "home_improvement", "education", "medical", "small_business", "other",
        ),
    ),
    LendingFeature(
        "home_ownership", "categorical", "how the applicant lives", levels=("own", "mortgage", "rent", "with_family")
    ),
    LendingFeature(
        "employment_type",
        "categorical",
        "kind of employment",
        levels=("permanent", "fixed_term", "self_employed", "retired", "unemployed"),
    ),
    LendingFeature(
        "region",
        "categorical",
        "where the applicant lives",
        levels=("north", "north_east", "east", "south_east", "south", "south_west", "west", "capital"),
    ),
)  # fmt: skip

FEATURES: tuple[LendingFeature, ...] = (*_NUMERIC, *_CATEGORICAL)
NUMERIC = tuple(feature.name for feature in _NUMERIC)
LEVELS: Mapping[str, tuple[str, ...]] = MappingProxyType({feature.name: feature.levels for feature in _CATEGORICAL})
INTEGERS = frozenset(feature.name for feature in FEATURES if feature.integer)
BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        feature.name: (feature.low, feature.high)
        for feature in FEATURES
        if feature.low is not None and feature.high is not None
    }
)

SEXES = ("female", "male")
ORIGINS = ("A", "B", "C")  # C is the group whose history differs; see `disparity`
PROTECTED: tuple[str, ...] = ("sex", "age", "origin")
AGE_BOUNDS = (18, 85)

ORIGIN_SHARES = np.array([0.62, 0.20, 0.18])
PURPOSE_SHARES = np.array([0.36, 0.17, 0.15, 0.08, 0.07, 0.06, 0.11])
REGION_SHARES = np.array([0.14, 0.08, 0.11, 0.09, 0.15, 0.08, 0.15, 0.20])
# How strongly group C is drawn to a region, a unit of `disparity`: where people live is a proxy of who they are.
REGION_PULL = np.array([-0.4, 1.2, 0.9, -0.2, -0.6, 0.2, -0.4, 0.3])
TERMS = np.array([12, 24, 36, 48, 60])
