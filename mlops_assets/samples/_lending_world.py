"""The parameters of a loan book: its size, its days, what befalls it, and its ids.

What belongs here: what can be said of a world before anything is drawn. What does not: the draws, and the frames.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from mlops_assets.foundation.errors import UserError

SLOTS = 100_000  # ids that a day has for its applications, and for its new applicants
LONGEST_ABSENCE = 720  # days after which nobody comes back
_LAST_YEAR = 2200
UNIT_ERROR_COLUMNS = ("annual_income", "loan_amount")


@dataclass(frozen=True)
class World:
    """A world's parameters and what follows from them; `LendingWorld` describes each."""

    seed: int = 7
    start: date = date(2023, 9, 1)
    days: int = 1_170
    applications_per_day: float = 40
    shock: date | None = None
    shock_strength: float = 1.0
    unit_error_days: tuple[date, ...] = ()
    unit_error_share: float = 0.05
    unit_error_column: str = "annual_income"
    unit_error_factor: float = 100
    dirt: float = 0.001
    label_conflicts: float = 0.0005
    maturity_days: int = 365
    disparity: float = 0.6

    def __post_init__(self) -> None:
        for name, least, most in (("seed", 0, 2**63 - 1), ("days", 1, 36_500), ("maturity_days", 30, 1_095)):
            _require_whole(name, getattr(self, name), least, most)
        for name, low, high in (
            ("applications_per_day", 1, 50_000),
            ("shock_strength", 0, 3),
            ("unit_error_share", 0, 1),
            ("unit_error_factor", 0.001, 1_000),
            ("dirt", 0, 0.02),
            ("label_conflicts", 0, 0.1),
            ("disparity", 0, 3),
        ):
            _require_number(name, getattr(self, name), low, high)
        if self.unit_error_factor == 1:
            raise UserError(
                "unit_error_factor is 1, which changes nothing",
                where="LendingWorld",
                remedy="Choose 100 for pounds read as pence, or leave unit_error_days empty.",
            )
        if self.unit_error_column not in UNIT_ERROR_COLUMNS:
            raise UserError(
                f"unit_error_column is {self.unit_error_column!r}",
                where="LendingWorld",
                remedy=f"Choose {' or '.join(UNIT_ERROR_COLUMNS)}, which are amounts of money.",
            )
        start = _as_date("start", self.start, None)
        if not 1970 <= start.year < _LAST_YEAR:
            raise UserError(f"start is {start}", where="LendingWorld", remedy="Choose a day from 1970 to 2199.")
        object.__setattr__(self, "start", start)
        if self.shock is not None:
            object.__setattr__(self, "shock", _as_date("shock", self.shock, start))
        listed = self.unit_error_days if isinstance(self.unit_error_days, tuple | list) else (self.unit_error_days,)
        days = tuple(sorted({_as_date("unit_error_days", day, start) for day in listed}))
        object.__setattr__(self, "unit_error_days", days)

    def date_of(self, day: int) -> date:
        """Return the date of a day, counted from 0."""
        require_day(self, day)
        return self.start + timedelta(days=int(day))

    def day_of(self, when: "date | str") -> int:
        """Return the index of a date (or its ISO text).

        Raises
        ------
        UserError
            If the date lies before the start or is none.
        """
        at = _as_date("day", when, None)
        if at < self.start:
            raise UserError(
                f"{at} lies before the world's first day",
                where="LendingWorld.day_of",
                remedy=f"Pass {self.start} or later, or choose an earlier start.",
            )
        return (at - self.start).days


def require_day(world: World, day: int) -> None:
    """Raise a `UserError` for a day that the world does not have."""
    last = (date(_LAST_YEAR, 1, 1) - world.start).days
    if not 0 <= day <= last:
        raise UserError(
            f"day is {day}",
            where="LendingWorld",
            remedy=f"Days are counted from 0, {world.start}, to {last:,}; day_of() gives a date's.",
        )


def require_rows(rows: int) -> None:
    """Raise a `UserError` for a number of rows that nobody can mean."""
    _require_whole("rows", rows, 1, 100_000_000)


def _as_date(name: str, value: object, start: date | None) -> date:
    """Return a date from a date, its ISO text or, where ``start`` is given, a day's index."""
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    if start is not None and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 36_500:
        return start + timedelta(days=value)
    number = ", or a day's number from 0 on" if start is not None else ""
    raise UserError(f"{name} is {value!r}", where="LendingWorld", remedy=f"Write a date as 2023-09-01{number}.")


def _require_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(
            f"{name} is {value!r}",
            where="LendingWorld",
            remedy=f"Choose a whole number between {low:,} and {high:,}.",
        )


def _require_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(
            f"{name} is {value!r}", where="LendingWorld", remedy=f"Choose a number between {low:,} and {high:,}."
        )
