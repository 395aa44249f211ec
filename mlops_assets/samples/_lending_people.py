"""Who applies on a day of a loan book, new or once more, and what of them never changes.

What belongs here: seasons, persons and their traits. What does not: what they write into an application.
"""

from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

import numpy as np

from mlops_assets.samples import _lending_draws as draws
from mlops_assets.samples._lending_tables import ORIGIN_SHARES, Floats, Ints
from mlops_assets.samples._lending_world import LONGEST_ABSENCE, SLOTS, World

RETURNING = 0.15  # share of the applications by somebody who applied before
_SHORTEST_ABSENCE = 30
_TRAITS = 13
_WEEKDAYS = np.array([1.18, 1.2, 1.16, 1.12, 1.06, 0.78, 0.5])


@dataclass(frozen=True)
class People:
    """Applicants of a day, one row each. What starts with ``z`` is standard normal, with ``u`` uniform."""

    number: Ints
    sex: Ints
    origin: Ints
    age: Floats  # in years, on the day of the application
    z_earning: Floats
    strain: Floats  # how close to the edge somebody lives; what the bureau sees of it are its traces
    z_tenure: Floats
    u_employment: Floats
    u_home: Floats
    u_region: Floats
    u_file: Floats
    u_history: Floats
    u_lines: Floats


def season(world: World, day: int) -> float:
    """Return a day's share of an average day's applications: few at weekends, most in January."""
    at = world.start + timedelta(days=int(day))
    yearly = 1 + 0.14 * np.cos(2 * np.pi * (at.timetuple().tm_yday - 20) / 365.25)
    return float(_WEEKDAYS[at.weekday()] * yearly)


@lru_cache(maxsize=4_096)
def newcomers(world: World, day: int) -> int:
    """Return how many apply on a day who never did before; also for days before the first."""
    rng = draws.stream(world, draws.Purpose.NEW_COUNT, day + LONGEST_ABSENCE)
    return int(rng.poisson((1 - RETURNING) * world.applications_per_day * season(world, day)))


def persons_of(world: World, day: int) -> Ints:
    """Return the numbers of those who apply on a day, in the order of their applications."""
    rng = draws.stream(world, draws.Purpose.RETURNING, day)
    new = numbers(day, newcomers(world, day))
    back = rng.poisson(RETURNING * world.applications_per_day * season(world, day))
    draw = rng.random((back, 2))
    since = day - (_SHORTEST_ABSENCE + (draw[:, 0] * (LONGEST_ABSENCE - _SHORTEST_ABSENCE)).astype(np.int64))
    days, at = np.unique(since, return_inverse=True)
    known = np.array([newcomers(world, int(one)) for one in days], dtype=np.int64)[at]
    # Of a day on which nobody was new nobody can come back; in a world of few applications there are such days.
    once = known > 0
    again = numbers(0, 1)[0] + since * SLOTS + (draw[:, 1] * known).astype(np.int64)
    return np.asarray(rng.permutation(np.concatenate([new, again[once]])))


def numbers(day: int, count: int) -> Ints:
    """Return the numbers of the persons who apply for the first time on a day."""
    return (day + LONGEST_ABSENCE) * SLOTS + np.arange(count, dtype=np.int64)


def first_day_of(person: Ints) -> Ints:
    """Return the days on which persons applied first; a few of them lie before day 0."""
    return person // SLOTS - LONGEST_ABSENCE


def people_of(world: World, person: Ints, known_days: Ints) -> People:
    """Return what is known of persons who applied first ``known_days`` ago."""
    draw = draws.traits_of(world, person, _TRAITS)
    z_earning, z_other = draws.normals(draw[:, 0], draw[:, 1])
    z_tenure, _ = draws.normals(draw[:, 2], draw[:, 3])
    first_age = 20 + 51 * draw[:, 4] ** 1.2
    age = first_age + known_days / 365.25
    # Debts are heaviest in the middle of life.
    season_of_life = 0.4 * np.exp(-(((age - 42) / 14) ** 2)) - 0.2
    return People(
        number=person,
        sex=(draw[:, 5] < 0.54).astype(np.int64),
        origin=draws.pick(ORIGIN_SHARES, draw[:, 6]),
        age=age,
        z_earning=z_earning,
        strain=season_of_life - 0.25 * z_earning + np.sqrt(1 - 0.25**2) * z_other,
        z_tenure=z_tenure,
        u_employment=draw[:, 7],
        u_home=draw[:, 8],
        u_region=draw[:, 9],
        u_file=draw[:, 10],
        u_history=draw[:, 11],
        u_lines=draw[:, 12],
    )
