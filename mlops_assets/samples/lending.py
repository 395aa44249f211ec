"""A seeded loan book, day by day: the data of credit risk's embedded environment.

What belongs here: how the world works, the feeds `applications` and `outcomes` it yields, and the truth behind them.
What does not: reading real feeds, cleaning them, or any model.

The world. Some 40 people a day apply for a loan, most in January and on Tuesdays, 15 % of them for the second time or
more within two years. What they write follows from who they are (age, earning power, how close to the edge they live),
from chance and from the economy; `FEATURES` lists the columns with their bounds, codes and true directions. The bank
books seven in ten by an old score and an officer's mood; of those, 13 to 14 % default within the maturity window, at a
hazard that peaks before its middle. Only booked loans have outcomes, and those become known late: a default on its day,
a paid loan when it matures.

The true log-odds are a known function of the features (`samples/_lending_risk.py`): monotone where `FEATURES` says so,
mostly additive, with thresholds, and two interactions around a high utilisation that trees find and a scorecard does
not. Unemployment swings slowly. A shock adds three points to it within two weeks and for good: incomes fall,
utilisation, debts and inquiries rise, loans in the book default more, and what predicts a default changes a little.

Disparity. Group C of the protected attribute ``origin`` has, a unit of ``disparity``, 0.45 less log income (above a
floor), 60 % shorter employment, shorter credit histories, less permanent work and less property, and lives in other
regions, so proxies of it exist. On top of that its true log-odds of default are 0.25 higher than any feature explains.
The old policy does not look at protected attributes.

Dirt. Each of the kinds in `DIRT_KINDS` befalls a share ``dirt`` of the clean rows, never two the same one:

* ``missing_id``: ``application_id`` is None;
* ``not_a_number``: a numeric feature is the text "N/A";
* ``decimal_comma``: an amount of money is text such as "34.500,25";
* ``negative_income``: ``annual_income`` has the wrong sign;
* ``impossible_age``: ``age`` is 200;
* ``unseen_category``: a category that `FEATURES` does not have;
* ``future``: ``applied_at`` is 364 days ahead;
* ``duplicate``: the row is followed by an exact copy;
* ``id_conflict``: the row is followed by one of the same ``application_id`` that asks for another amount.

On a day in ``unit_error_days`` a column of money is in the wrong unit, before any dirt, in a share of the rows. A label
conflict is an outcome that is followed by the opposite one of the same loan. Faults are of the feeds alone: outcomes,
truth and bookings are of what people really wrote.

Random numbers come from streams named by (seed, purpose, day), persons' from a hash of (seed, trait, person), and from
nothing else: any day can be generated alone, and no frame depends on what was asked before.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from mlops_assets.samples._lending_applications import (
    BLOCK,
    Applications,
    applications_in_block,
    applications_of,
)
from mlops_assets.samples._lending_economy import unemployment_at
from mlops_assets.samples._lending_feed import (
    DIRT_KINDS,
    application_rows,
    dirt_of,
    ids_of,
    numbered,
    outcome_rows,
    typed_frame,
    unit_error_rows,
)
from mlops_assets.samples._lending_risk import Fates, fates, fates_of
from mlops_assets.samples._lending_tables import (
    AGE_BOUNDS,
    FEATURES,
    ORIGINS,
    PROTECTED,
    SEXES,
    LendingFeature,
    Objects,
)
from mlops_assets.samples._lending_world import World, require_day, require_rows

__all__ = ["AGE_BOUNDS", "DIRT_KINDS", "FEATURES", "ORIGINS", "PROTECTED", "SEXES", "LendingFeature", "LendingWorld"]


class LendingWorld(World):
    """A small bank's loan book, reproducible from its seed, for any number of days.

    Every parameter can be a plain YAML value: dates may be ISO text, tuples may be lists.

    Parameters
    ----------
    seed
        Names the world; not negative.
    start
        Day 0.
    days
        Planned horizon, for whoever loops over the world; any day from 0 on can be generated.
    applications_per_day
        On average (1 to 50,000).
    shock
        Date, or index of the day, from which the economy is in a shock; None for never.
    shock_strength
        How strong it is (0 to 3).
    unit_error_days
        Dates, or indices of days, whose applications have values in the wrong unit.
    unit_error_share
        Share of the rows of such a day that are wrong, at least one row; 1.0 is the whole file, 0 none.
    unit_error_column
        ``annual_income`` or ``loan_amount``.
    unit_error_factor
        What the values are multiplied by. 100 or more, and 0.01 or less, leave the range of either column always.
    dirt
        Share of the applications that each kind of dirt befalls (0 to 0.02); 0 switches dirt off.
    label_conflicts
        Share of the outcomes that are contradicted (0 to 0.1).
    maturity_days
        Days after which a loan that did not default is paid back (30 to 1,095).
    disparity
        How much less of a start group C has, see above (0 to 3).

    Raises
    ------
    UserError
        If a parameter is outside its bounds or a date is none.

    Notes
    -----
    ``applied_at`` and ``outcome_at`` are UTC, as in 2023-09-01T08:15:30Z. Loans of before day 0 have no outcomes.
    """

    def applications(self, day: int) -> pd.DataFrame:
        """Return the applications of a day as they are delivered, faults included, in the order of their arrival.

        Returns
        -------
        pandas.DataFrame
            ``application_id``, ``applicant_id``, ``applied_at``, the columns of `FEATURES`, those of `PROTECTED`. All
            are ``object``: text, Python numbers, None where missing.
        """
        require_day(self, day)
        return application_rows(self, day)

    def typed_applications(self, day: int) -> pd.DataFrame:
        """Return the applications of a day without any fault, numbers as float64 and categories as text.

        Returns
        -------
        pandas.DataFrame
            ``application_id``, the columns of `FEATURES`, those of `PROTECTED` (``age`` is int64).
        """
        require_day(self, day)
        clean = applications_of(self, day)
        return typed_frame(clean, ids_of(self, day, np.arange(len(clean))))

    def booked(self, day: int) -> pd.DataFrame:
        """Return which applications of a day the bank made loans of.

        Returns
        -------
        pandas.DataFrame
            ``application_id`` and ``legacy_score``, by which the bank decided.
        """
        require_day(self, day)
        of_day = fates_of(self, day)
        slots = np.flatnonzero(of_day.booked)
        return pd.DataFrame(
            {"application_id": ids_of(self, day, slots), "legacy_score": of_day.legacy_score[slots]},
        )

    def outcomes(self, day: int) -> pd.DataFrame:
        """Return the outcomes that become known on a day: of loans of the maturity window before it.

        Returns
        -------
        pandas.DataFrame
            ``application_id``, ``outcome`` ("default" or "paid") and ``outcome_at``, oldest loans first, all
            ``object``.
        """
        require_day(self, day)
        return outcome_rows(self, day)

    def true_pd(self, day: int) -> pd.DataFrame:
        """Return the true default probability of every application of a day.

        Returns
        -------
        pandas.DataFrame
            ``application_id`` and ``pd``, within the maturity window.
        """
        return self.truth(day)[["application_id", "pd"]]

    def truth(self, day: int) -> pd.DataFrame:
        """Return what becomes, or would have become, of every application of a day, also of those not booked.

        Returns
        -------
        pandas.DataFrame
            ``application_id``, ``pd``, ``defaults`` (bool), ``days_to_default`` (0 where it does not) and ``booked``.
        """
        require_day(self, day)
        of_day = fates_of(self, day)
        return _truth_frame(of_day, ids_of(self, day, np.arange(len(of_day.pd))))

    def unemployment(self, day: int) -> float:
        """Return the unemployment rate of a day, in percent."""
        require_day(self, day)
        return float(unemployment_at(self, np.array([day]))[0])

    def planted(self, day: int) -> dict[str, int]:
        """Count the faults in the applications of a day: rows by kind of dirt, and rows in the wrong unit."""
        require_day(self, day)
        kinds, _ = dirt_of(self, day)
        counts = np.bincount(kinds + 1, minlength=len(DIRT_KINDS) + 1)[1:]
        return {**dict(zip(DIRT_KINDS, counts.tolist(), strict=True)), "unit_error": len(unit_error_rows(self, day))}

    def applications_frame(self, rows: int, *, day: int = 0) -> pd.DataFrame:
        """Return a million or more applications, as of a day, at once: for benchmarks.

        They have nothing in common with those of `applications`, and the first rows do not depend on how many follow
        in steps of 50,000.

        Returns
        -------
        pandas.DataFrame
            As `typed_applications`.
        """
        frames = [typed_frame(block, ids) for block, ids in self._blocks(rows, day)]
        return pd.concat(frames, ignore_index=True)

    def truth_frame(self, rows: int, *, day: int = 0) -> pd.DataFrame:
        """Return the truth about the rows of `applications_frame`, as `truth` does."""
        frames = [_truth_frame(fates(self, day, block), ids) for block, ids in self._blocks(rows, day)]
        return pd.concat(frames, ignore_index=True)

    def _blocks(self, rows: int, day: int) -> Iterator[tuple[Applications, Objects]]:
        require_day(self, day)
        require_rows(rows)
        for first in range(0, rows, BLOCK):
            count = min(BLOCK, rows - first)
            yield applications_in_block(self, day, first // BLOCK, count), numbered("F", first + 1, count, 9)


def _truth_frame(of_rows: Fates, ids: Objects) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "application_id": ids,
            "pd": of_rows.pd,
            "defaults": of_rows.days_to_default > 0,
            "days_to_default": of_rows.days_to_default,
            "booked": of_rows.booked,
        }
    )
