"""What becomes of the applications of a loan book: the true default probability, the bank's old policy, the outcome.

What belongs here: the truth that models are to find. What does not: how outcomes are delivered (`_lending_feed`).

With eta the log-odds of `log_odds`, the hazard of a loan on the t-th day after its application is
``log(1 + exp(eta)) * w(t) * exp(0.15 * (unemployment(t) - 5.2))``, where w sums to 1 over the maturity window. The
true default probability is therefore ``1 - (1 - sigmoid(eta)) ** A``, where A is about 1 in normal times and grows
when a shock falls into the window, also for loans that were made before it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mlops_assets.samples._lending_applications import Applications, applications_of
from mlops_assets.samples._lending_economy import NORMAL_UNEMPLOYMENT, stress_at, unemployment_at
from mlops_assets.samples._lending_tables import NEVER, NO_FILE, NOT_USABLE, Bools, Floats, Ints
from mlops_assets.samples._lending_world import World

# By the codes of `LEVELS`.
_PURPOSE = np.array([0.1, -0.2, -0.15, 0.0, 0.2, 0.45, 0.1])
_HOME = np.array([-0.15, -0.12, 0.12, 0.0])
_EMPLOYMENT = np.array([-0.1, 0.2, 0.15, -0.05, 0.55])
_REGION = np.array([0.0, 0.05, 0.08, -0.05, -0.05, 0.0, 0.0, -0.03])
_PURPOSE_IN_SHOCK = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 0.0])
_EMPLOYMENT_IN_SHOCK = np.array([0.0, 0.25, 0.35, 0.0, 0.0])
_RESIDUAL = 0.25  # part of `disparity` that is in group C's labels and in no feature
_BASE = -2.72
_CUT = -1.1


@dataclass(frozen=True)
class Fates:
    """What becomes of applications, one row each."""

    pd: Floats
    days_to_default: Ints  # from the application; 0 if never within the window
    legacy_score: Floats
    booked: Bools


@dataclass(frozen=True)
class Settled:
    """The loans of a day in the order in which their outcomes become known."""

    slot: Ints
    known_after: Ints  # days, rising
    defaulted: Bools


@lru_cache(maxsize=4)
def fates_of(world: World, day: int) -> Fates:
    """Return what becomes of the applications of a day."""
    return fates(world, day, applications_of(world, day))


@lru_cache(maxsize=1_200)
def settled_of(world: World, day: int) -> Settled:
    """Return the outcomes of a day's loans; small enough to keep every day of the longest window."""
    of_day = fates_of(world, day)
    slot = np.flatnonzero(of_day.booked)
    days = of_day.days_to_default[slot]
    known = np.where(days > 0, days, world.maturity_days)
    order = np.argsort(known, kind="stable")
    return Settled(slot[order].astype(np.int32), known[order].astype(np.int16), days[order] > 0)


def fates(world: World, day: int, applications: Applications) -> Fates:
    """Return what becomes of applications that are made on a day."""
    stress = float(stress_at(world, np.array([day]))[0])
    eta = log_odds(world, applications, stress)
    intensity = np.logaddexp(0.0, eta)
    exposure = _exposure(world, day)
    endured = -np.log1p(-applications.chance[:, 1]) / intensity
    after = np.searchsorted(exposure, endured, side="left") + 1
    score = legacy_score(applications)
    return Fates(
        pd=-np.expm1(-intensity * exposure[-1]),
        days_to_default=np.where(after <= world.maturity_days, after, 0),
        legacy_score=score,
        booked=score >= _CUT,
    )


def _exposure(world: World, day: int) -> Floats:
    """Return the cumulative hazard of a loan with unit intensity, by days since the application, from 1 on."""
    days = np.arange(1, world.maturity_days + 1)
    x = (days - 0.5) / world.maturity_days
    weight = x**1.3 * np.exp(-3 * x)
    strain = np.exp(0.15 * (unemployment_at(world, day + days) - NORMAL_UNEMPLOYMENT))
    return np.asarray(np.cumsum(weight / weight.sum() * strain))


def _ramp(values: Floats, low: float, high: float) -> Floats:
    return np.clip((values - low) / (high - low), 0, 1)


def log_odds(world: World, applications: Applications, stress: float) -> Floats:
    """Return the log-odds of default in normal times, in terms that are monotone as `FEATURES` documents.

    In a shock incomes protect less, and self-employment, fixed terms and small businesses are riskier: the relation
    changes, not only who applies.
    """
    x, codes = applications.numeric, applications.codes
    used, late = x["revolving_utilisation"], x["delinquencies_2y"]
    no_line = np.isnan(used)
    tight = np.where(no_line, 0.0, _ramp(np.where(no_line, 0.0, used), 0.35, 0.8))
    burden = np.log(x["loan_amount"] / x["annual_income"]) + 1.4
    income = np.log(x["annual_income"] / 36_000)
    eta = (
        _BASE
        - (0.5 - 0.12 * stress) * np.minimum(income, 0.7)
        + 0.2 * burden
        + 0.25 * (x["term_months"] - 36) / 24
        - 0.13 * np.log1p(np.minimum(x["employment_years"], 4))
        + np.where(no_line, 0.4, 0.55 * tight)
        + 0.35 * np.sqrt(np.minimum(late, 4))
        + 0.25 * np.minimum(x["inquiries_6m"], 2)
        + 0.35 * (x["inquiries_6m"] >= 3)
        + _recency(x["months_since_delinquency"])
        + 1.1 * _ramp(x["debt_to_income"], 0.4, 0.65)
        - 0.08 * np.log1p(np.minimum(x["credit_history_months"], 96) / 12)
        + np.minimum(0.016 * (x["open_accounts"] - 5) ** 2, 0.8)
        + _PURPOSE[codes["purpose"]]
        + _HOME[codes["home_ownership"]]
        + _EMPLOYMENT[codes["employment_type"]]
        + _REGION[codes["region"]]
        # No room left, and late already or asking for a lot: worse than the sum.
        + 1.5 * tight * (late > 0)
        + 1.8 * tight * np.clip(burden, 0, 1.5)
        + _RESIDUAL * world.disparity * (codes["origin"] == 2)
    )
    exposed = _EMPLOYMENT_IN_SHOCK[codes["employment_type"]] + _PURPOSE_IN_SHOCK[codes["purpose"]]
    return np.asarray(eta + stress * exposed)


def _recency(months: Floats) -> Floats:
    coded = np.select([months == NEVER, months == NOT_USABLE, months == NO_FILE], [0.0, 0.2, 0.4], 0.0)
    return coded + np.where(months >= 0, 0.8 * np.exp(-np.maximum(months, 0) / 24), 0.0)


def legacy_score(applications: Applications) -> Floats:
    """Return the score by which the bank used to decide: the usual suspects, rough weights, and an officer's mood."""
    x = applications.numeric
    mood = applications.chance[:, 0]
    return np.asarray(
        0.6 * np.log(x["annual_income"] / 36_000)
        - 0.45 * np.minimum(x["delinquencies_2y"], 3)
        - 0.12 * np.minimum(x["inquiries_6m"], 6)
        - 1.1 * x["debt_to_income"]
        + 0.1 * (np.log1p(x["credit_history_months"] / 12) - 2.2)
        + 0.1 * (np.log1p(x["employment_years"]) - 1.5)
        - 0.5 * (applications.codes["employment_type"] == 4)
        # The logistic distribution's quantile: most days are average, a few applications are decided by sympathy.
        + 0.4 * np.log((mood + 1e-9) / (1 - mood))
    )
