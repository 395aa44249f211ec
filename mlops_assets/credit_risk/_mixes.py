"""How scores, decisions and first reasons are spread in a window, against a reference.

What belongs here: the index of each, and the acceptance rate with a bound that knows the sample sizes. What does not:
the features (`monitoring.py`, which is where callers import this from).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mlops_assets.foundation import psi
from mlops_assets.foundation._profile_rules import rounded
from mlops_assets.foundation.psi import ColumnPsi, PsiBounds, PsiStatus, Reference

_WORSE: Mapping[PsiStatus, int] = {"none": 0, "not_assessed": 1, "warn": 2, "act": 3}
_TABLE_ROWS = 20
_DEFAULT_PSI = PsiBounds()


@dataclass(frozen=True)
class Rate:
    """The share of accepted applications before and now, and how large a change chance and habit allow."""

    reference: float
    window: float
    warn: float
    act: float
    status: PsiStatus

    @property
    def change(self) -> float:
        """The share now minus the one before."""
        return self.window - self.reference


@dataclass(frozen=True)
class Mix:
    """How the scores, decisions or first reasons of a window are spread, against a reference.

    ``status`` is the worse of the index's and of the acceptance rate's, where there is one. ``shares`` holds label,
    share before and share now.
    """

    subject: str
    status: PsiStatus
    index: ColumnPsi
    rows_reference: int
    rows_window: int
    shares: tuple[tuple[str, float, float], ...]
    rate: Rate | None = None

    @property
    def reason(self) -> str:
        """What was found, in words."""
        told = [] if self.index.status == "none" and self.rate else [self.index.reason]
        if self.rate is not None and self.rate.status != "not_assessed":
            bound = self.rate.act if self.rate.status == "act" else self.rate.warn
            told.append(
                f"accepted went from {self.rate.reference:.1%} to {self.rate.window:.1%} "
                f"(a change of {bound:.1%} {'was' if self.rate.status != 'none' else 'is'} the bound)"
            )
        return "; ".join(told)

    def table(self, limit: int = _TABLE_ROWS) -> pd.DataFrame:
        """Return the shares for a page, largest change first; at most ``limit`` rows."""
        ordered = sorted(self.shares, key=lambda each: (-abs(each[2] - each[1]), each[0]))
        names = ["bin", "share_reference", "share_window"]
        return pd.DataFrame(
            [[name, rounded(before), rounded(now)] for name, before, now in ordered[:limit]], columns=pd.Index(names)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the mix as plain JSON values."""
        return {**asdict(self), "shares": [list(each) for each in self.shares], "reason": self.reason}


def score_mix(reference: ArrayLike, window: ArrayLike, *, bounds: PsiBounds = _DEFAULT_PSI) -> Mix:
    """Compare default probabilities with those of the reference, in its tenths.

    Parameters
    ----------
    reference, window
        (m,) and (n,) probabilities, NaN for what was not scored: of the training set, or of earlier decisions.

    Raises
    ------
    UserError
        The reference has no rows, or holds something that is no number.
    """
    sides = [pd.DataFrame({"pd": np.asarray(side, dtype=np.float64)}) for side in (reference, window)]
    return _mix("scores", sides[0], sides[1], psi.Column("pd"), bounds)


def decision_mix(reference: Sequence[str], window: Sequence[str], *, bounds: PsiBounds = _DEFAULT_PSI) -> Mix:
    """Compare decisions ("accept", "refer", "reject") with those of the reference, and the acceptance rate by itself.

    The acceptance rate warns from a change of 5 points and acts from 10, each no less than what chance exceeds once
    in a thousand times at these sample sizes.

    Raises
    ------
    UserError
        The reference has no rows.
    """
    sides = [pd.DataFrame({"decision": list(side)}, dtype=object) for side in (reference, window)]
    mix = _mix("decisions", sides[0], sides[1], psi.Column("decision", "categorical"), bounds)
    rate = _acceptance(reference, window, bounds)
    worst = max((mix.status, rate.status), key=lambda each: _WORSE[each])
    return Mix(mix.subject, worst, mix.index, mix.rows_reference, mix.rows_window, mix.shares, rate)


def reason_mix(
    reference: Sequence[str | None], window: Sequence[str | None], *, bounds: PsiBounds = _DEFAULT_PSI
) -> Mix:
    """Compare the first reason of each decision (None where there is none) with those of the reference.

    Raises
    ------
    UserError
        The reference has no rows.
    """
    sides = [pd.DataFrame({"reason": list(side)}, dtype=object) for side in (reference, window)]
    return _mix("reasons", sides[0], sides[1], psi.Column("reason", "categorical"), bounds)


def _mix(subject: str, reference: pd.DataFrame, window: pd.DataFrame, column: psi.Column, bounds: PsiBounds) -> Mix:
    binned = Reference.of(reference, [column])
    (index,), (bins,) = binned.compare(window, bounds=bounds), binned.columns
    counted = bins.count(window) if len(window) else "there are no rows"
    shares: tuple[tuple[str, float, float], ...] = ()
    if not isinstance(counted, str):
        both = zip(bins.labels, bins.counts, counted.tolist(), strict=True)
        shares = tuple((label, m / bins.rows, n / len(window)) for label, m, n in both if m or n)
    return Mix(subject, index.status, index, len(reference), len(window), shares)


def _acceptance(reference: Sequence[str], window: Sequence[str], bounds: PsiBounds) -> Rate:
    from scipy import stats

    m, n = len(reference), len(window)
    before, now = (sum(each == "accept" for each in side) for side in (reference, window))
    if min(m, n) < bounds.minimum_rows:
        return Rate(before / max(m, 1), now / max(n, 1), 0.05, 0.10, "not_assessed")
    together = (before + now) / (m + n)
    deviation = np.sqrt(together * (1 - together) * (1 / m + 1 / n))
    chance = float(stats.norm.isf(bounds.level / 2) * deviation)
    warn, act = max(0.05, chance), max(0.10, chance)
    change = abs(now / n - before / m)
    status: PsiStatus = "act" if change > act else "warn" if change > warn else "none"
    return Rate(before / m, now / n, warn, act, status)
