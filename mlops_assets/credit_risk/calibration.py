"""From a model's log-odds to calibrated default probabilities.

What belongs here: Platt's sigmoid, fitted on a slice that the model did not learn from. What does not: the arithmetic
of the logistic function (`logistic.py`), and whether a calibration is good enough (`evaluation.py`).

Two parameters: isotonic regression needs some ten thousand rows and leaves ties, and weights on classes would make
every probability wrong. J. Platt, "Probabilistic outputs for support vector machines", 1999; its targets keep the
probabilities of a small slice away from 0 and 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk.logistic import DIGITS, fit_logistic, logistic
from mlops_assets.foundation.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """PD = logistic(slope x margin + intercept)."""

    slope: float
    intercept: float

    def __call__(self, margin: ArrayLike) -> Floats:
        """Return the probabilities of log-odds; never falls as the margin rises."""
        return logistic(self.slope * np.asarray(margin, dtype=np.float64) + self.intercept)

    def to_dict(self) -> dict[str, str]:
        """Return the parameters to the last bit."""
        return {"slope": self.slope.hex(), "intercept": self.intercept.hex()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Calibration":
        """Return the calibration that `to_dict` described."""
        return cls(float.fromhex(raw["slope"]), float.fromhex(raw["intercept"]))


def fit_sigmoid(margin: Floats, bad: NDArray[np.int64]) -> Calibration:
    """Fit the sigmoid on log-odds (n,) and outcomes (n,), 1 for bad.

    Raises
    ------
    UserError
        There is one class only, the margins do not differ, or a higher margin goes with fewer bad loans.
    """
    bads = int(bad.sum())
    goods = len(bad) - bads
    where = f"the calibration slice of {len(bad)} loans, {bads} of them bad"
    if not bads or not goods:
        raise UserError(
            "it holds one outcome only", where=where, remedy="raise training.calibrate_share, or wait for outcomes."
        )
    if margin.min() == margin.max():
        raise UserError("the model scores all alike", where=where, remedy="look at the features and their quality.")
    target = np.where(bad == 1, (bads + 1.0) / (bads + 2.0), 1.0 / (goods + 2.0))
    slope, intercept = fit_logistic(margin[:, None], target, np.zeros(1))
    if round(float(slope), DIGITS) <= 0.0:
        raise UserError(
            f"loans that the model calls riskier are not worse there (slope {slope:.3f})",
            where=where,
            remedy="the slice differs from what was learned: look for a mistake in it, or for a change in between.",
        )
    return Calibration(round(float(slope), DIGITS), round(float(intercept), DIGITS))
