"""What a model card is made from, and how its numbers are written.

What belongs here: the evidence as it was stored, read with care, and the one way to write an estimate, a share, a date.
What does not: what a section says (`_card_frame.py`, `_card_results.py`).

Evidence is plain JSON that may be of an older version of the code: whatever is not in it is None, and the section that
needs it says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlops_assets.credit_risk._card_page import DASH
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.reasons import ReasonTable
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.registry import ModelVersion

Raw = Mapping[str, Any]

NAMES: Mapping[str, str] = {
    "scorecard": "points scorecard",
    "gbm": "boosted trees, monotone",
    "champion": "champion that serves",
    "auc": "AUC",
    "gini": "Gini",
    "ks": "Kolmogorov-Smirnov distance",
    "brier": "Brier score",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "calibration_slope": "calibration slope",
    "calibration_in_the_large": "calibration in the large (log-odds)",
}
"""Names for people of the names in evidence."""


@dataclass(frozen=True)
class Facts:
    """Everything that a card may tell.

    Parameters
    ----------
    evaluation, bias, explanations
        The three parts of the evidence; empty where there is none.
    split
        What the training set's metadata say of how it was cut.
    """

    spec: Spec
    version: ModelVersion
    evaluation: Raw
    bias: Raw
    explanations: Raw
    split: Raw

    @classmethod
    def of(cls, spec: Spec, version: ModelVersion, evidence: Raw, split: Raw) -> "Facts":
        """Take the evidence apart."""
        report, explained = evidence.get("bias_report") or {}, evidence.get("explanations") or {}
        return cls(
            spec,
            version,
            evidence.get("evaluation") or {},
            report.get("bias") or {},
            explained.get("explanations") or {},
            {**(evidence.get("evaluation") or {}).get("split", {}), **split},
        )

    @property
    def kind(self) -> str:
        """Which kind of model the candidate is."""
        return str(self.version.params.get("kind") or self.evaluation.get("candidate_kind") or "")

    @cached_property
    def policy(self) -> DecisionPolicy:
        """The policy that the spec makes."""
        return DecisionPolicy.of(self.spec)

    @cached_property
    def schema(self) -> FeatureSchema:
        """The features."""
        return FeatureSchema.of(self.spec)

    @cached_property
    def reasons(self) -> ReasonTable:
        """The sentences."""
        return ReasonTable.of(self.spec)


def assessed(estimate: Raw | None) -> bool:
    """Whether stored evidence holds a number with its interval."""
    return bool(estimate) and estimate is not None and estimate.get("value") is not None


def spread(estimate: Raw | None, *, percent: bool = False) -> str:
    """Write an estimate with its interval, in one line, or say that it was not assessed."""
    if estimate is None or not assessed(estimate):
        return "not assessed"
    value, low, high = (share(estimate[name]) if percent else number(estimate[name]) for name in _BOUNDS)
    return f"{value} ({low} to {high})".replace(" ", _NO_BREAK)


_NO_BREAK = "\N{NO-BREAK SPACE}"
_BOUNDS = ("value", "low", "high")


def interval(estimate: Raw) -> tuple[float, float, float]:
    """Return value and bounds of an assessed estimate."""
    return float(estimate["value"]), float(estimate["low"]), float(estimate["high"])


def row_interval(row: Raw, name: str, *, percent: bool = False) -> str:
    """Write the number and bounds that a stored table has in three columns."""
    found = {"value": row.get(name), "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high")}
    return spread(found, percent=percent)


def number(value: float | None, digits: int = 4) -> str:
    """Write a number; a dash where there is none."""
    # Adding zero to what is left after rounding turns -0.0 into 0.0.
    return DASH if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def share(value: float | None, digits: int = 1) -> str:
    """Write a share of one in percent; a dash where there is none."""
    return DASH if value is None else f"{round(100 * value, digits) + 0.0:.{digits}f} %"


def count(value: Any) -> str:
    """Write how many; a dash where nobody knows."""
    return DASH if value is None else f"{int(value):,}"


def day(value: Any) -> str:
    """Write the day of an ISO time."""
    return str(value)[:10] if value else ""


def why(estimate: Raw | None, what: str) -> str:
    """Say what was not assessed, and the reason."""
    reason = (estimate or {}).get("reason") or "it is not in the evidence"
    return f"{what}: {reason}"


def unknown_of(rows: Mapping[str, Raw | None]) -> list[str]:
    """Name what was not assessed among estimates."""
    return [why(estimate, name) for name, estimate in rows.items() if not assessed(estimate)]


def named(names: Sequence[str], most: int = 8) -> str:
    """Write a few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
