"""What applicants of a loan book write into their applications: the features in numbers.

What belongs here: how features follow from a person, the day and chance. What does not: what they mean for the risk
(`_lending_risk`), and how the feed spells them (`_lending_feed`).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mlops_assets.samples import _lending_draws as draws
from mlops_assets.samples._lending_economy import stress_at
from mlops_assets.samples._lending_people import People, first_day_of, people_of, persons_of
from mlops_assets.samples._lending_tables import (
    BOUNDS,
    NEVER,
    NO_FILE,
    NOT_USABLE,
    PURPOSE_SHARES,
    REGION_PULL,
    REGION_SHARES,
    TERMS,
    Bools,
    Floats,
    Ints,
)
from mlops_assets.samples._lending_world import World

BLOCK = 50_000  # rows of a benchmark frame that share a random stream
_CROWD = 10**15  # first number of the persons of benchmark frames, who never apply on a day
_SELF_EMPLOYED, _UNEMPLOYED = 2, 4
# Log of the amount that a purpose asks for, around 9,000.
_PURPOSE_SIZE = np.array([0.15, 0.25, 0.2, -0.2, -0.35, 0.5, -0.3])


@dataclass(frozen=True)
class Applications:
    """Applications in numbers, one row each; categories are codes, missing values NaN."""

    person: Ints
    numeric: dict[str, Floats]
    codes: dict[str, Ints]  # of the categorical features, and of sex and origin
    age: Ints
    chance: Floats  # two uniform numbers a row that decide what becomes of it: bank and borrower
    second: Ints  # of the day, rising

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.person)


@lru_cache(maxsize=4)
def applications_of(world: World, day: int) -> Applications:
    """Return the applications of a day, in the order in which they arrive."""
    rng = draws.stream(world, draws.Purpose.APPLICATION, day)
    person = persons_of(world, day)
    return _written(world, people_of(world, person, day - first_day_of(person)), day, rng)


def applications_in_block(world: World, day: int, block: int, rows: int) -> Applications:
    """Return applications of a day that is as busy as wanted, by persons who apply for the first time."""
    rng = draws.stream(world, draws.Purpose.FRAME, day, block)
    person = _CROWD + block * BLOCK + np.arange(rows, dtype=np.int64)
    return _written(world, people_of(world, person, np.zeros(rows, dtype=np.int64)), day, rng)


def _written(world: World, people: People, day: int, rng: np.random.Generator) -> Applications:
    rows = len(people.number)
    draw, noise = rng.random((rows, 12)), rng.standard_normal((rows, 6))
    stress = float(stress_at(world, np.array([day]))[0])
    numeric, codes = _work(world, people, stress, noise)
    _bureau(world, people, stress, draw, noise, numeric)
    _loan(people, stress, draw, noise, numeric, codes)
    codes["sex"], codes["origin"] = people.sex, people.origin
    return Applications(
        person=people.number,
        numeric=numeric,
        codes=codes,
        age=people.age.astype(np.int64),
        chance=draw[:, :2],
        second=np.sort((_hour_of(draw[:, 2]) * 3600).astype(np.int64)),
    )


def _hour_of(uniform: Floats) -> Floats:
    """Return hours of the day: two in three applications between 9 and 18."""
    bounds, shares = np.array([0, 7, 9, 18, 22, 24]), np.cumsum([0.0, 0.04, 0.08, 0.64, 0.2, 0.04])
    return np.asarray(np.interp(uniform, shares, bounds))


def _bounded(name: str, values: Floats) -> Floats:
    low, high = BOUNDS[name]
    return np.clip(values, low, high)


def _work(world: World, people: People, stress: float, noise: Floats) -> tuple[dict[str, Floats], dict[str, Ints]]:
    """Return income, employment, home and region. Group C has less of a start: see `disparity`."""
    apart = world.disparity * (people.origin == 2)
    young, old = people.age < 26, people.age >= 66
    shares = np.column_stack(
        [
            np.where(old, 0.06, np.where(young, 0.58, 0.7)) * np.exp(-0.3 * apart),
            np.where(old, 0.02, np.where(young, 0.28, 0.12)) * np.exp(0.3 * apart),
            np.where(old, 0.05, np.where(young, 0.05, 0.12)),
            np.where(old, 0.86, 0.0),
            np.where(old, 0.01, np.where(young, 0.075, 0.06)) * (1 + 0.5 * stress) * np.exp(0.3 * apart),
        ]
    )
    employment = draws.pick(shares, people.u_employment)
    penalty = np.array([0.0, -0.18, 0.05, -0.3, -0.65])[employment]
    log_income = (
        np.log(27_500)
        + 0.52 * people.z_earning
        - 0.00028 * (people.age - 47) ** 2
        + 0.1 * people.sex
        + penalty
        - 0.45 * apart
        - 0.3 * stress
        + np.where(employment == _SELF_EMPLOYED, 0.3, 0.08) * noise[:, 0]
    )
    income = np.rint(_bounded("annual_income", 9_600 + np.exp(log_income)))
    tenure = (people.age - 17) * 0.75 / (1 + np.exp(1.2 - 1.3 * people.z_tenure)) * np.exp(-0.9 * apart)
    years = np.where(employment == _UNEMPLOYED, 0.0, _bounded("employment_years", np.round(tenure, 1)))
    settled = np.clip((people.age - 22) / 40, 0, 1)
    homes = np.column_stack([0.1 + 0.3 * settled, 0.16 + 0.28 * settled, 0.52 - 0.26 * settled, 0.22 - 0.18 * settled])
    regions = REGION_SHARES * np.exp(np.outer(apart, REGION_PULL))
    codes = {
        "home_ownership": draws.pick(homes * np.exp(np.outer(apart, [-0.5, -0.2, 0.4, 0.2])), people.u_home),
        "employment_type": employment,
        "region": draws.pick(regions, people.u_region),
    }
    return {"annual_income": income, "employment_years": years}, codes


def _bureau(
    world: World, people: People, stress: float, draw: Floats, noise: Floats, numeric: dict[str, Floats]
) -> None:
    """Add what the credit bureau knows: nothing of about 5 %, who have no file."""
    apart = world.disparity * (people.origin == 2)
    no_file = people.u_file < np.where(people.age < 25, 0.1, 0.04) * (1 + apart)
    months = 12 * (people.age - 18) * (0.12 + 0.78 * people.u_history) * np.exp(-0.25 * apart)
    months = np.where(no_file, 0.0, np.rint(_bounded("credit_history_months", months)))
    accounts = np.where(no_file, 0, draws.counts(2.5 + months / 60 + 0.4 * stress, draw[:, 3], 40))
    late = np.where(no_file, 0, draws.counts(np.exp(-1.75 + 0.75 * people.strain), draw[:, 4], 20))
    asked = draws.counts(np.exp(-0.35 + 0.4 * people.strain + 0.45 * stress), draw[:, 5], 20)
    tense = -0.75 + 0.95 * people.strain + 0.55 * noise[:, 1] + 0.65 * stress
    share = np.round(1.08 / (1 + np.exp(-tense)) + np.where(draw[:, 6] < 0.02, 0.3, 0.0), 3)
    without_line = no_file | (accounts == 0) | (people.u_lines < 0.06)
    numeric["revolving_utilisation"] = np.where(without_line, np.nan, _bounded("revolving_utilisation", share))
    numeric["open_accounts"] = accounts.astype(np.float64)
    numeric["delinquencies_2y"] = late.astype(np.float64)
    numeric["inquiries_6m"] = asked.astype(np.float64)
    numeric["months_since_delinquency"] = _months_since(people, no_file, late, draw[:, 7:9])
    numeric["credit_history_months"] = months


def _months_since(people: People, no_file: Bools, late: Ints, draw: Floats) -> Floats:
    recent = (24 * draw[:, 0] ** (0.5 * (1 + late))).astype(np.int64)
    earlier = 24 + (97 * draw[:, 0]).astype(np.int64)
    ever = draw[:, 1] < 0.2 + 0.2 / (1 + np.exp(-people.strain))
    months = np.where(late > 0, recent, np.where(ever, earlier, NEVER))
    months = np.where(draw[:, 1] > 0.97, NOT_USABLE, months)
    return np.where(no_file, NO_FILE, months).astype(np.float64)


def _loan(
    people: People,
    stress: float,
    draw: Floats,
    noise: Floats,
    numeric: dict[str, Floats],
    codes: dict[str, Ints],
) -> None:
    """Add what is applied for, and the debts it comes on top of."""
    income = numeric["annual_income"]
    purpose = draws.pick(PURPOSE_SHARES, draw[:, 9])
    log_amount = np.log(8_300) + _PURPOSE_SIZE[purpose] + 0.45 * np.log(income / 36_000) + 0.55 * noise[:, 2]
    amount = 100 * np.rint(_bounded("loan_amount", np.exp(log_amount)) / 100)
    longer = np.clip(0.5 + 0.5 * np.log(amount / 9_000), 0.05, 0.95)[:, None]
    chances = np.array([0.2, 0.24, 0.3, 0.14, 0.12]) * longer ** np.arange(5) * (1 - longer) ** np.arange(4, -1, -1)
    term = TERMS[draws.pick(chances, draw[:, 10])]
    instalment = amount / term * 1.15
    debts = np.exp(-1.75 + 0.5 * noise[:, 3] + 0.3 * people.strain + 0.12 * stress)
    numeric["loan_amount"] = amount
    numeric["term_months"] = term.astype(np.float64)
    numeric["debt_to_income"] = np.round(_bounded("debt_to_income", debts + instalment * 12 / income), 3)
    codes["purpose"] = purpose
