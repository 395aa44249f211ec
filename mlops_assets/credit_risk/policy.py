"""From a default probability to a decision: cut-offs, the band in which a human decides, and what always goes to one.

What belongs here: the policy as a versioned thing of its own, and its rules in their order. What does not: where the
probabilities come from (`models.py`) and how a decision is told (`reasons.py`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.files import canonical_json, sha256_hex

Decision = Literal["accept", "refer", "reject"]

RULES: Mapping[str, tuple[Decision, str]] = {
    "quarantined": ("refer", "The application breaks a rule of the data; a human reads it."),
    "insufficient_file": ("refer", "What the policy needs to know is missing; a human decides."),
    "out_of_range": ("refer", "A value lies beyond everything that the model was trained on; a human decides."),
    "outlier": ("refer", "The application is unlike those that the model was trained on; a human decides."),
    "no_reason": ("refer", "It would be rejected, but no specific reason can be told; a human decides."),
    "no_information": ("refer", "It would be rejected for nothing but missing information; a human decides."),
    "below_cut": ("accept", "The default probability lies below the cut-off."),
    "above_cut": ("reject", "The default probability lies above the cut-off."),
    "near_cut": ("refer", "The default probability lies within the band around the cut-off; a human decides."),
}
"""Every rule that can decide, in the order in which they are asked, with its decision."""

RULE_NAMES = tuple(RULES)


@dataclass(frozen=True)
class DecisionPolicy:
    """Cut-offs and rules; equal content has an equal `version`.

    Parameters
    ----------
    accept_below, reject_from
        Default probabilities below which is accepted and from which is rejected; between them a human decides.
    loss_given_default, margin
        The costs behind the cut-offs, as shares of the amount.
    refer_outliers, refer_out_of_range
        Whether such applications go to a human whatever their probability.
    insufficient
        When all of these features are missing or special, the file is too thin.
    reasons
        Most reasons that are told.
    refer_no_information
        Whether a human decides where nothing but missing information would reject; policies of before did not ask.
    """

    accept_below: float
    reject_from: float
    loss_given_default: float
    margin: float
    refer_outliers: bool
    refer_out_of_range: bool
    insufficient: tuple[str, ...]
    reasons: int
    refer_no_information: bool = False

    @classmethod
    def of(cls, spec: Spec) -> "DecisionPolicy":
        """Return the policy of a spec; cut-offs that it leaves open follow from its costs.

        A loan of default probability p earns (1 - p) margin - p loss_given_default of its amount, which is positive
        below margin / (margin + loss_given_default).
        """
        given = spec.policy
        accept, reject = given.accept_below, given.reject_from
        if accept is None or reject is None:
            cut = given.margin / (given.margin + given.loss_given_default)
            accept, reject = max(cut - given.band / 2, 0.0), min(cut + given.band / 2, 1.0)
        return cls(
            accept, reject, given.loss_given_default, given.margin, given.refer_outliers, given.refer_out_of_range,
            given.insufficient, given.reasons, given.refer_no_information,
        )  # fmt: skip

    @property
    def version(self) -> str:
        """The hash that names this policy."""
        return sha256_hex(canonical_json(self.to_dict()))[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as plain JSON values; without a rule that it does not have, as before there was one."""
        raw = {**asdict(self), "insufficient": list(self.insufficient)}
        return raw if self.refer_no_information else {k: v for k, v in raw.items() if k != "refer_no_information"}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "DecisionPolicy":
        """Return the policy that `to_dict` described."""
        return cls(**{**raw, "insufficient": tuple(raw["insufficient"])})

    def decide(
        self,
        probability: NDArray[np.float64],
        *,
        thin: NDArray[np.bool_],
        out_of_range: NDArray[np.bool_],
        outlier: NDArray[np.bool_],
        has_reason: NDArray[np.bool_],
        informed: NDArray[np.bool_],
    ) -> NDArray[np.int8]:
        """Return for each of n scored applications the position in `RULE_NAMES` of the rule that decides.

        Parameters
        ----------
        probability
            (n,) Default probabilities, 0 to 1.
        thin, out_of_range, outlier, has_reason, informed
            (n,) What is known of each application beside its probability; `informed` where more than missing
            information stands behind a reason.
        """
        above = probability >= self.reject_from
        asked = {
            "insufficient_file": thin,
            "out_of_range": out_of_range & self.refer_out_of_range,
            "outlier": outlier & self.refer_outliers,
            "no_reason": above & ~has_reason,
            "no_information": above & ~informed & self.refer_no_information,
            "below_cut": probability < self.accept_below,
            "above_cut": above,
        }
        chosen = np.full(len(probability), RULE_NAMES.index("near_cut"), dtype=np.int8)
        for name in reversed(asked):
            chosen[asked[name]] = RULE_NAMES.index(name)
        return chosen
