"""How loans of one month turn out over their months on book, and whether as many default as was foreseen.

What belongs here: default curves by vintage that stop where not all loans have been seen, and expected against realised
default rates. What does not: which outcomes are taken for true (`labels.py`) and the champion's verdict
(`performance.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.metrics import proportion
from mlops_assets.credit_risk.spec import Target
from mlops_assets.foundation import plots
from mlops_assets.foundation._profile_rules import rounded
from mlops_assets.foundation.errors import UserError

LEAST_LOANS = 30
"""Vintages with fewer loans are neither drawn nor judged."""

_DAYS_A_MONTH = 365.25 / 12
_TABLE_ROWS = 20
_CURVE_COLUMNS = ["vintage", "month", "loans", "bads", "rate", "low", "high"]
_EXPECTED_COLUMNS = ["vintage", "loans", "silent", "bads", "expected", "realised", "low", "high", "verdict"]


@dataclass(frozen=True)
class Vintages:
    """Default curves, and expected against realised default rates, as they were known at a moment.

    Parameters
    ----------
    curves
        vintage ("2026-01"), month (on book, from 1), loans, bads, rate with its Jeffreys interval low to high: the
        share of the vintage's loans that had defaulted by the end of that month. A vintage ends with the last month
        that all of its loans have been on book.
    expected
        One row a vintage whose loans have all matured: loans with a known outcome, silent ones without, bads, mean PD
        expected, default rate realised with an interval that holds for all vintages together (Bonferroni), and the
        verdict "as foreseen", "more", "fewer" or "not_assessed". Empty where the loans carry no PD.
    loans
        Loans that were followed.
    indeterminate, unplaced
        Loans that were left out: of an outcome that is neither good nor bad; of one that has no time or one before the
        application, or of different ones at once.
    silent
        Loans that have matured and of which nothing has been heard. In the curves they count as not defaulted.
    """

    as_of: datetime
    curves: pd.DataFrame
    expected: pd.DataFrame
    loans: int
    indeterminate: int
    unplaced: int
    silent: int

    def table(self, limit: int = _TABLE_ROWS) -> pd.DataFrame:
        """Return the latest vintages for a page: one a row, loans, and default rates after every third month."""
        wide = self.curves.pivot_table(index=["vintage", "loans"], columns="month", values="rate")
        months = [int(month) for month in wide.columns]
        chosen = [month for month in months if month % 3 == 0 or month == max(months)]
        wide = wide[chosen].set_axis([f"after_{month}_months" for month in chosen], axis=1)
        return wide.reset_index().sort_values("vintage", ascending=False).head(limit).map(_shown)

    def expected_table(self, limit: int = _TABLE_ROWS) -> pd.DataFrame:
        """Return expected against realised default rates for a page, the latest vintages first."""
        return self.expected.sort_values("vintage", ascending=False).head(limit).map(_shown)

    def chart(self) -> bytes:
        """Draw the curves of vintages with enough loans, the latest one strongest; a PNG of at most 30 kB."""
        enough = self.curves[self.curves["loans"] >= LEAST_LOANS]
        series: Mapping[str, list[tuple[float, float]]] = {
            str(vintage): [
                (0.0, 0.0), *zip(of["month"].astype(float).tolist(), of["rate"].tolist(), strict=True)
            ]
            for vintage, of in enough.groupby("vintage", sort=True)
        }  # fmt: skip
        return plots.lines(
            series, title="Defaults by vintage", axis="loans that defaulted", along="months on book", percent=True
        )


def follow(
    loans: pd.DataFrame, outcomes: pd.DataFrame, target: Target, as_of: datetime, *, timezone: str = "UTC"
) -> Vintages:
    """Follow loans by the month of their application.

    Parameters
    ----------
    loans
        ``application_id``, ``applied_at`` and, where it is known, ``pd``: every loan, whether or not it has an outcome.
        Handing over only those with an outcome would show young vintages as if all of their loans defaulted. Where it
        is not known which accepted applications became loans, those applications.
    outcomes
        ``application_id``, ``outcome``, ``outcome_at``; of several of one application the latest counts. What was known
        after ``as_of`` is not looked at, and neither are outcomes of other applications.
    target
        Which outcomes are bad, good or neither, and when loans mature.
    as_of
        The moment of looking; loans of later are left out.
    timezone
        In which the month of an application is told.

    Raises
    ------
    UserError
        A column is missing, a loan comes twice, or an outcome is unknown to ``target``.
    """
    _check(loans, outcomes, target)
    at = _utc(pd.Series([as_of]))[0]
    found = _joined(loans, outcomes, target, at, timezone)
    neither = found["outcome"].isin(target.indeterminate)
    unplaced = ~neither & found["outcome"].notna() & (~(found["after"] >= 0) | found["contradictory"])
    kept = found[~neither & ~unplaced]
    silent = kept["matured"] & kept["outcome"].isna()
    return Vintages(
        as_of,
        _curves(kept, target),
        _expected(kept) if "pd" in kept.columns else pd.DataFrame(columns=pd.Index(_EXPECTED_COLUMNS)),
        len(kept),
        int(neither.sum()),
        int(unplaced.sum()),
        int(silent.sum()),
    )


def _check(loans: pd.DataFrame, outcomes: pd.DataFrame, target: Target) -> None:
    needed = (
        (loans, "loans", ("application_id", "applied_at")),
        (outcomes, "outcomes", ("application_id", "outcome", "outcome_at")),
    )
    for frame, name, columns in needed:
        if missing := [column for column in columns if column not in frame.columns]:
            raise UserError(f"column {missing[0]!r} is missing", where=name, remedy=f"give {', '.join(columns)}.")
    twice = loans["application_id"][loans["application_id"].duplicated()]
    if len(twice):
        raise UserError(
            f"loan {twice.iloc[0]!r} comes more than once, as do {len(twice) - 1:,} more",
            where="loans",
            remedy="give each loan once, by the application that holds.",
        )
    known = {*target.bad, *target.good, *target.indeterminate}
    strange = outcomes["outcome"][~outcomes["outcome"].isin(known)]
    if len(strange):
        raise UserError(f"unknown outcome {strange.iloc[0]!r}", where="outcomes", remedy="name it under `target:`.")


def _joined(
    loans: pd.DataFrame, outcomes: pd.DataFrame, target: Target, at: np.datetime64, timezone: str
) -> pd.DataFrame:
    """Return a row a loan: vintage, whole months seen, whether matured, outcome, and the months that it came after."""
    applied = _utc(loans["applied_at"])
    known = _latest(outcomes, at)
    local = pd.Series(applied).dt.tz_localize(UTC).dt.tz_convert(timezone)
    columns: dict[str, Any] = {
        "application_id": loans["application_id"].to_numpy(),
        "applied": applied,
        "vintage": local.dt.strftime("%Y-%m").to_numpy(),
        "seen": _months(applied, np.full(len(applied), at)),
        "matured": applied + np.timedelta64(target.maturity_days, "D") <= at,
    }
    if "pd" in loans.columns:
        columns["pd"] = loans["pd"].to_numpy(dtype=np.float64, na_value=np.nan)
    joined = pd.DataFrame(columns)[applied <= at].merge(known, on="application_id", how="left")
    ends = joined["outcome_at"].to_numpy(dtype="datetime64[us]")
    joined["after"] = np.where(
        np.isnat(ends) | (ends < joined["applied"].to_numpy()), np.nan, _months(joined["applied"].to_numpy(), ends)
    )
    joined["contradictory"] = joined["contradictory"].eq(True)  # noqa: FBT003
    joined["bad"] = joined["outcome"].isin(target.bad)
    return joined


def _latest(outcomes: pd.DataFrame, at: np.datetime64) -> pd.DataFrame:
    """Return a row an application: the latest outcome known at a moment, and whether it came with a different one."""
    found = outcomes[["application_id", "outcome"]].assign(outcome_at=_utc(outcomes["outcome_at"]))
    found = found[~(found["outcome_at"] > at)].drop_duplicates()
    latest = found.sort_values(["outcome_at", "outcome"], kind="stable", na_position="first")
    twice = latest.duplicated(["application_id", "outcome_at"], keep=False)
    return latest.assign(contradictory=twice).drop_duplicates("application_id", keep="last")


def _utc(moments: "pd.Series[Any]") -> NDArray[np.datetime64]:
    return pd.to_datetime(moments, utc=True).dt.tz_localize(None).to_numpy(dtype="datetime64[us]")


def _months(start: NDArray[np.datetime64], end: NDArray[np.datetime64]) -> NDArray[np.float64]:
    """Return the whole calendar months between moments: from the 31st, one ends when the month after next begins."""
    first, last = start.astype("datetime64[M]"), end.astype("datetime64[M]")
    between = (last - first).astype(np.float64)
    return np.asarray(between - ((end - last) < (start - first)), dtype=np.float64)


def _curves(kept: pd.DataFrame, target: Target) -> pd.DataFrame:
    horizon = max(1, round(target.maturity_days / _DAYS_A_MONTH))
    rows = []
    for vintage, of in kept.groupby("vintage", sort=True):
        ends = of.loc[of["bad"], "after"].to_numpy()
        for month in range(1, int(min(of["seen"].min(), horizon)) + 1):
            bads = int((ends < month).sum())
            rows.append((vintage, month, len(of), bads, *proportion(bads, len(of)).number()))
    return pd.DataFrame(rows, columns=pd.Index(_CURVE_COLUMNS))


def _expected(kept: pd.DataFrame) -> pd.DataFrame:
    groups = [(vintage, of) for vintage, of in kept.groupby("vintage", sort=True) if of["matured"].all()]
    rows = []
    for vintage, of in groups:
        known = of[of["outcome"].notna() & of["pd"].notna()]
        bads, expected = int(known["bad"].sum()), float(known["pd"].mean()) if len(known) else float("nan")
        rate = proportion(bads, len(known), least=LEAST_LOANS, level=1 - 0.05 / len(groups))
        value, low, high = rate.number()
        verdict = "not_assessed"
        if rate.assessed:
            verdict = "more" if expected < low else "fewer" if expected > high else "as foreseen"
        rows.append((vintage, len(known), int(of["outcome"].isna().sum()), bads, expected, value, low, high, verdict))
    return pd.DataFrame(rows, columns=pd.Index(_EXPECTED_COLUMNS))


def _shown(value: Any) -> Any:
    return rounded(value) if isinstance(value, float) else value
