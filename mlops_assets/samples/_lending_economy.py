"""The economy around a loan book: unemployment, and a shock if there is one.

What belongs here: what is the same for all applicants of a day. What does not: what it does to each of them.
"""

import numpy as np

from mlops_assets.samples import _lending_draws as draws
from mlops_assets.samples._lending_tables import Floats, Ints
from mlops_assets.samples._lending_world import World

NORMAL_UNEMPLOYMENT = 5.2  # percent
RAMP_DAYS = 14  # in which a shock reaches its strength; it does not end


def stress_at(world: World, days: Ints) -> Floats:
    """Return how much of a shock is there: 0 before it, then rising to ``shock_strength``."""
    if world.shock is None:
        return np.zeros(len(days))
    since = days - (world.shock - world.start).days + 1
    return np.asarray(world.shock_strength * np.clip(since / RAMP_DAYS, 0, 1))


def unemployment_at(world: World, days: Ints) -> Floats:
    """Return the unemployment rate in percent: two slow cycles, and three points more in a shock of strength 1."""
    phase = draws.stream(world, draws.Purpose.MACRO).random(2)
    cycles = 0.45 * np.sin(2 * np.pi * (days / 1_461 + phase[0])) + 0.2 * np.sin(2 * np.pi * (days / 517 + phase[1]))
    return np.asarray(NORMAL_UNEMPLOYMENT + cycles + 3 * stress_at(world, days))
