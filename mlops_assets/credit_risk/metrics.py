"""How good a default probability is: order, calibration, stability, money, each with its interval or a reason.

What belongs here: the metrics' names for everybody else, and the summary of one model. What does not: the metrics
themselves (the private modules beside this one), which models are compared (`evaluation.py`), and protected groups
(`bias.py`).

Throughout, ``y`` is 1 for a bad (default) and 0 for a good, shape (n,), and ``predicted`` the PD, the probability of a
bad, float64, shape (n,). Every metric is an `Estimate`: a number with a 95 % interval, or ``not_assessed`` with the
reason; there is no number for what could not be measured. All are the same whatever the order of the rows, and drawn
from a seed.
"""

from collections.abc import Mapping

import pandas as pd
from numpy.typing import ArrayLike

from mlops_assets.credit_risk._metrics_business import ProfitCurve, profit_curve, segment_labels, segment_table
from mlops_assets.credit_risk._metrics_calibration import (
    CalibrationLine,
    brier,
    calibration_line,
    calibration_table,
    ece,
    ece_noise,
    log_loss,
)
from mlops_assets.credit_risk._metrics_estimates import (
    TERMS,
    Estimate,
    Judged,
    Minimum,
    Terms,
    at_least,
    at_most,
    proportion,
)
from mlops_assets.credit_risk._metrics_grades import (
    Grade,
    GradeReport,
    assign_grades,
    grade_edges,
    grade_report,
    jeffreys,
)
from mlops_assets.credit_risk._metrics_paired import Swap, paired_difference, swap_set
from mlops_assets.credit_risk._metrics_ranking import AucDifference, auc, auc_difference, auc_value, gini, ks
from mlops_assets.credit_risk._metrics_sampling import Floats, mean_estimate, read_labelled
from mlops_assets.credit_risk._metrics_stability import (
    PERIOD_TERMS,
    GiniStability,
    ScorePsi,
    gini_stability,
    gini_stability_difference,
    score_psi,
)

__all__ = [
    "PERIOD_TERMS",
    "TERMS",
    "AucDifference",
    "CalibrationLine",
    "Estimate",
    "Floats",
    "GiniStability",
    "Grade",
    "GradeReport",
    "Judged",
    "Minimum",
    "ProfitCurve",
    "ScorePsi",
    "Swap",
    "Terms",
    "assign_grades",
    "at_least",
    "at_most",
    "auc",
    "auc_difference",
    "auc_value",
    "brier",
    "calibration_line",
    "calibration_table",
    "ece",
    "ece_noise",
    "estimates_table",
    "gini",
    "gini_stability",
    "gini_stability_difference",
    "grade_edges",
    "grade_report",
    "jeffreys",
    "ks",
    "log_loss",
    "mean_estimate",
    "paired_difference",
    "profit_curve",
    "proportion",
    "score_psi",
    "segment_labels",
    "segment_table",
    "summary",
    "swap_set",
]


def summary(y: ArrayLike, predicted: ArrayLike, *, terms: Terms = TERMS) -> dict[str, Estimate]:
    """Measure one model on one sample.

    Parameters
    ----------
    y, predicted
        Shape (n,).

    Returns
    -------
    dict
        auc, gini, ks, brier, log_loss, ece, calibration_slope, calibration_intercept, calibration_in_the_large and
        bad_rate.
    """
    line = calibration_line(y, predicted, terms=terms)
    outcomes = read_labelled(y)
    return {
        "auc": auc(y, predicted, terms=terms),
        "gini": gini(y, predicted, terms=terms),
        "ks": ks(y, predicted, terms=terms),
        "brier": brier(y, predicted, terms=terms),
        "log_loss": log_loss(y, predicted, terms=terms),
        "ece": ece(y, predicted, terms=terms),
        "calibration_slope": line.slope,
        "calibration_intercept": line.intercept,
        "calibration_in_the_large": line.in_the_large,
        "bad_rate": proportion(outcomes.bads, outcomes.n, least=terms.minimum.rows, level=terms.level),
    }


def estimates_table(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """Return one row a metric for a page: metric, value, low, high, n, status, reason; NaN where not assessed."""
    rows = [
        {"metric": name, **dict(zip(("value", "low", "high"), estimate.number(), strict=True))}
        | {"n": estimate.n, "status": estimate.status, "reason": estimate.reason}
        for name, estimate in estimates.items()
    ]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "status", "reason"])
