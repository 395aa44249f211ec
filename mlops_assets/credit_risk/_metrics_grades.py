"""Rating grades, and the Jeffreys test of the PD in each of them and in the portfolio.

What belongs here: grades by PD, their test, and how many grades' intervals hold their PD. What does not: errors over
all rows (`_metrics_calibration.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk._metrics_calibration import quantile_edges
from mlops_assets.credit_risk._metrics_estimates import TERMS, Estimate, proportion
from mlops_assets.credit_risk._metrics_sampling import read_labelled, read_numbers

GRADES = 10
GRADE_ROWS = 30


@dataclass(frozen=True)
class Grade:
    """One rating grade, or the portfolio, under the Jeffreys test.

    Parameters
    ----------
    name
        ``"1"`` is the best grade.
    low, high
        PDs above ``low`` up to and including ``high`` are of this grade.
    n, bads, mean_pd
        Rows, bads, and the mean PD, which is what is tested.
    bad_rate
        Observed share of bads with its Jeffreys interval.
    p_value
        Posterior probability that the true PD is no higher than ``mean_pd``: small where the PD is too low.
    p_holm
        The same, corrected for the number of grades tested at once (Holm 1979); equal to it for the portfolio.
    """

    name: str
    low: float
    high: float
    n: int
    bads: int
    mean_pd: float | None
    bad_rate: Estimate
    p_value: float | None = None
    p_holm: float | None = None

    @property
    def covered(self) -> bool | None:
        """Whether the interval of the bad rate holds the mean PD; None where it was not assessed."""
        if self.mean_pd is None or self.bad_rate.low is None or self.bad_rate.high is None:
            return None
        return self.bad_rate.low <= self.mean_pd <= self.bad_rate.high


@dataclass(frozen=True)
class GradeReport:
    """The Jeffreys test by grade and for the portfolio.

    Parameters
    ----------
    coverage
        Share of the assessed grades whose interval holds their mean PD, to be compared with the interval's level; its
        ``n`` counts grades.
    """

    grades: tuple[Grade, ...]
    portfolio: Grade
    coverage: Estimate
    level: float

    def failed(self, alpha: float = 0.05, *, together: bool = False) -> tuple[str, ...]:
        """Name the grades whose PD is too low at this level; ``together`` corrects for testing many grades."""
        values = [(grade.name, grade.p_holm if together else grade.p_value) for grade in self.grades]
        return tuple(name for name, value in values if value is not None and value < alpha)

    def table(self) -> pd.DataFrame:
        """Return at most 20 rows for a page: the grades, the last row the portfolio."""
        shown = (*self.grades[:19], self.portfolio)
        return pd.DataFrame(
            {
                "grade": [grade.name for grade in shown],
                "pd_above": [grade.low for grade in shown],
                "pd_up_to": [grade.high for grade in shown],
                "n": [grade.n for grade in shown],
                "bads": [grade.bads for grade in shown],
                "mean_pd": [_shown(grade.mean_pd) for grade in shown],
                "bad_rate": [grade.bad_rate.number()[0] for grade in shown],
                "bad_rate_low": [grade.bad_rate.number()[1] for grade in shown],
                "bad_rate_high": [grade.bad_rate.number()[2] for grade in shown],
                "p_value": [_shown(grade.p_value) for grade in shown],
                "p_holm": [_shown(grade.p_holm) for grade in shown],
                "status": [grade.bad_rate.status for grade in shown],
                "reason": [grade.bad_rate.reason for grade in shown],
            }
        )


def grade_edges(predicted: ArrayLike, grades: int = GRADES) -> tuple[float, ...]:
    """Return inner edges of grades with about equal counts; fewer where PDs repeat. Fix them to compare over time.

    Parameters
    ----------
    predicted
        PDs, shape (n,).
    """
    values = read_labelled(np.zeros(len(np.asarray(predicted))), predicted).scores[0]
    return tuple(float(edge) for edge in quantile_edges(values, grades)) if len(values) else ()


def assign_grades(predicted: ArrayLike, edges: Sequence[float]) -> NDArray[np.int64]:
    """Return each PD's grade from 0, the best, to len(edges); a PD on an edge is of the grade below. Shape (n,)."""
    inner = np.asarray(edges, dtype=np.float64)
    if (np.diff(inner) <= 0).any():
        raise ValueError(f"grade edges must rise: {tuple(edges)}")
    return np.searchsorted(inner, read_numbers(predicted, "predicted"), side="left").astype(np.int64)


def jeffreys(bads: int, n: int, mean_pd: float) -> float:
    """Return the p-value of the Jeffreys test: the probability that the true PD is no higher than ``mean_pd``.

    With the prior Beta(1/2, 1/2), the posterior after ``bads`` of ``n`` is Beta(bads + 1/2, n - bads + 1/2), and the
    p-value its distribution function at the PD (ECB 2019, Instructions for reporting the validation results of internal
    models, section 2.5). It needs no large sample, and no bad at all.
    """
    from scipy.special import betainc

    return float(betainc(bads + 0.5, n - bads + 0.5, mean_pd))


def grade_report(
    y: ArrayLike,
    predicted: ArrayLike,
    edges: Sequence[float] | None = None,
    *,
    grades: int = GRADES,
    minimum_rows: int = GRADE_ROWS,
    level: float = TERMS.level,
) -> GradeReport:
    """Test the PD of every grade and of the portfolio.

    Parameters
    ----------
    y, predicted
        Shape (n,).
    edges
        Inner edges of the grades, PDs; by default ``grades`` quantiles of these very PDs.
    minimum_rows
        Smaller grades are not assessed. Grades without any bad are: the test is made for them.
    """
    rows = read_labelled(y, predicted)
    inner = grade_edges(rows.scores[0], grades) if edges is None else tuple(map(float, edges))
    code = assign_grades(rows.scores[0], inner)
    bounds = (0.0, *inner, 1.0)
    found = [
        _grade(
            str(number + 1),
            (bounds[number], bounds[number + 1]),
            rows.y[code == number],
            rows.scores[0][code == number],
            minimum_rows,
            level,
        )
        for number in range(len(inner) + 1)
    ]
    tested = _holm(found)
    assessed = [grade for grade in tested if grade.bad_rate.assessed]
    covered = sum(grade.covered is True for grade in assessed)
    return GradeReport(
        tested,
        _grade("portfolio", (0.0, 1.0), rows.y, rows.scores[0], minimum_rows, level),
        proportion(covered, len(assessed), level=level)
        if assessed
        else Estimate.unknown(0, f"no grade has {minimum_rows:,} rows"),
        level,
    )


def _grade(
    name: str,
    bounds: tuple[float, float],
    y: NDArray[np.float64],
    predicted: NDArray[np.float64],
    minimum_rows: int,
    level: float,
) -> Grade:
    n, bads = len(y), int(y.sum())
    rate = proportion(bads, n, least=minimum_rows, level=level)
    if not rate.assessed:
        return Grade(name, *bounds, n, bads, float(predicted.mean()) if n else None, rate)
    mean_pd = float(predicted.mean())
    p_value = jeffreys(bads, n, mean_pd)
    return Grade(name, *bounds, n, bads, mean_pd, rate, p_value, p_value)


def _holm(grades: Sequence[Grade]) -> tuple[Grade, ...]:
    tested = sorted((grade for grade in grades if grade.p_value is not None), key=lambda grade: grade.p_value or 0.0)
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, grade in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * (grade.p_value or 0.0)))
        corrected[grade.name] = highest
    return tuple(replace(grade, p_holm=corrected.get(grade.name)) for grade in grades)


def _shown(value: float | None) -> float:
    return float("nan") if value is None else value
