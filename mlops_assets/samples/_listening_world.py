"""The parameters of a world of listeners: its sizes, its weeks and its ids.

What belongs here: what can be said of a world before anything is drawn. What does not: the draws, and the frames.
"""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from mlops_assets.foundation.errors import UserError
from mlops_assets.samples._listening_tables import Objects

FIRST_UNKNOWN_TRACK = 990_000
_MAX_USER = 9_999_999


@dataclass(frozen=True)
class World:
    """A world's parameters and what follows from them; `ListeningWorld` describes each."""

    users: int = 2_000
    weeks: int = 13
    seed: int = 7
    start: date = date(2026, 8, 24)
    tracks: int | None = None
    dirt: float = 0.001

    def __post_init__(self) -> None:
        require_between("users", self.users, 200, 1_000_000)
        require_between("weeks", self.weeks, 1, 5_000)
        require_between("seed", self.seed, 0, 2**63 - 1)
        require_between("tracks", self.back_catalogue_size, 500, 200_000)
        require_between("dirt", self.dirt, 0.0, 0.1)
        if self.start.weekday() != 0:
            raise UserError(
                f"{self.start} is a {self.start:%A}",
                where="ListeningWorld.start",
                remedy=f"Weeks start on Monday: take {self.start - timedelta(days=self.start.weekday())}.",
            )

    @property
    def back_catalogue_size(self) -> int:
        """Number of tracks released before week 0."""
        return round(4_000 * (self.users / 2_000) ** 0.518) if self.tracks is None else self.tracks

    @property
    def new_tracks_a_week(self) -> int:
        """Number of tracks that are released in every week."""
        return max(4, round(0.006 * self.back_catalogue_size))

    @property
    def new_artists_a_week(self) -> int:
        """Number of artists whose first track comes out in a given week."""
        return max(1, round(0.15 * self.new_tracks_a_week))

    @property
    def new_users_a_week(self) -> int:
        """Number of users who join in every week from week 1 on."""
        return round(0.015 * self.users)

    def user_count(self, until_week: int) -> int:
        """Return the number of users in the directory of ``until_week``."""
        require_week(self, until_week)
        return self.users + until_week * self.new_users_a_week

    def track_count(self, until_week: int) -> int:
        """Return the number of tracks in the catalogue of ``until_week``."""
        require_week(self, until_week)
        return self.back_catalogue_size + (until_week + 1) * self.new_tracks_a_week

    def monday(self, week: int) -> date:
        """Return the first day of ``week``."""
        require_week(self, week)
        return self.start + timedelta(weeks=week)

    def week_of(self, monday: date) -> int:
        """Return the index of the week that starts on ``monday``.

        Raises
        ------
        UserError
            If the day is not a Monday or lies before week 0.
        """
        week, day = divmod((monday - self.start).days, 7)
        if day or week < 0:
            raise UserError(
                f"{monday} ({monday:%A}) does not start a week of this world",
                where="ListeningWorld.week_of",
                remedy=f"Pass a Monday, {self.start} or later.",
            )
        return week


def require_week(world: World, week: int) -> None:
    """Raise a `UserError` for a week that the world does not have."""
    if week < 0:
        raise UserError(f"week is {week}", where="ListeningWorld", remedy="Weeks are counted from 0.")
    last = min(
        (FIRST_UNKNOWN_TRACK - 1 - world.back_catalogue_size) // world.new_tracks_a_week - 1,
        (_MAX_USER - world.users) // world.new_users_a_week,
        (date(2200, 1, 1) - world.start).days // 7,
    )
    if week > last:
        raise UserError(
            f"week {week} lies beyond week {last}, where the world runs out of ids or of dates",
            where="ListeningWorld",
            remedy="Ask for an earlier week or take a world of fewer users or tracks.",
        )


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise a `UserError` for a parameter outside its bounds."""
    if not low <= value <= high:
        raise UserError(
            f"{name} is {value}", where="ListeningWorld", remedy=f"Choose {name} between {low:,} and {high:,}."
        )


def numbered(prefix: str, first: int, stop: int, width: int) -> Objects:
    """Return ids such as u0000001, with the numbers from ``first`` to before ``stop``."""
    return np.array([f"{prefix}{number:0{width}d}" for number in range(first, stop)], dtype=object)
