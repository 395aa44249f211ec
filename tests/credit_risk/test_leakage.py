"""A feature that knows the outcome gives itself away however it does so, and so does a model that is too good."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops_assets.credit_risk import evaluation, judging, training
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import GateResult
from tests.credit_risk.small_loans import small_loans, small_spec

ROWS = 1_500
HONEST = 0.75


def measured_gates(spec: Spec, loans: pd.DataFrame) -> tuple[dict[str, float], list[GateResult]]:
    parts = {"train": loans.iloc[:900], "calibrate": loans.iloc[900:1_200], "test": loans.iloc[1_200:]}
    frames = {name: part.reset_index(drop=True) for name, part in parts.items()}
    models = [fit(spec, frames["train"], frames["calibrate"]) for fit in (training.fit_scorecard, training.fit_gbm)]
    found = evaluation.measure(spec, frames, models[0], models[1], None, DecisionPolicy.of(spec))
    return dict(found.leakage), judging.quality_gates(spec, found)


def one(gates: list[GateResult], words: str) -> GateResult:
    (found,) = [gate for gate in gates if words in gate.reason]
    return found


def leaking(loans: pd.DataFrame, how: str) -> dict[str, Any]:
    bad, rng = loans["bad"].to_numpy() == 1, np.random.default_rng(3)
    noise = np.round(rng.uniform(0, 20_000, len(loans)))
    if how == "filled only for bad loans":
        return {"amount": np.where(bad, noise, np.nan)}
    if how == "filled only for good loans":
        return {"amount": np.where(bad, np.nan, noise)}
    if how == "a special code for bad loans":
        return {"debts": np.where(bad, -9.0, rng.integers(0, 12, len(loans)))}
    if how == "against the promised direction":
        return {"income": np.where(bad, 90_000.0, 10_000.0) + noise}
    if how == "in the middle":
        return {"amount": np.where(bad, 10_000.0, np.where(rng.random(len(loans)) < 0.5, 1_000.0, 19_000.0))}
    return {"purpose": np.where(bad, None, "home")}


@pytest.mark.parametrize(
    "how",
    [
        "filled only for bad loans", "filled only for good loans", "a special code for bad loans",
        "against the promised direction", "in the middle", "a category only for good loans",
    ],
)  # fmt: skip
def test_a_feature_that_knows_the_outcome_is_found(how: str) -> None:
    loans = small_loans(ROWS)
    changed = leaking(loans, how)
    leakage, gates = measured_gates(small_spec(), loans.assign(**changed))
    (name,) = changed
    assert next(iter(leakage)) == name
    assert leakage[name] > 0.99
    gate = one(gates, "leakage: AUC of the feature")
    assert (gate.gate, gate.status) == ("accuracy", "failed")
    assert repr(name) in gate.reason


def test_honest_features_are_not_called_leaks() -> None:
    leakage, gates = measured_gates(small_spec(), small_loans(ROWS))
    assert set(leakage) == {"income", "debts", "amount", "region", "purpose"}
    assert max(leakage.values()) < HONEST
    # What says nothing must not seem to say something because it was looked at in sample.
    assert leakage["purpose"] < 0.56
    assert one(gates, "leakage: AUC of the feature").status == "passed"
    assert one(gates, "too good to be true").status == "passed"


def test_a_first_model_can_be_too_good_to_be_true() -> None:
    """Many weak leaks stay below the bound of a single feature; together they do not."""
    loans = small_loans(ROWS)
    rng = np.random.default_rng(4)
    known = {
        name: np.where(rng.random(ROWS) < 0.85, loans["bad"], 1 - loans["bad"]) for name in ("one", "two", "three")
    }
    loans = loans.assign(**{name: values.astype(float) for name, values in known.items()})
    numeric = [*small_spec().model_dump()["numeric"], *({"name": name, "theme": "terms"} for name in known)]
    _, gates = measured_gates(small_spec(numeric=numeric), loans)
    assert one(gates, "leakage: AUC of the feature").status == "passed"
    gate = one(gates, "too good to be true without an explanation")
    assert (gate.gate, gate.status, gate.bound) == ("accuracy", "failed", 0.93)


def test_the_ceiling_is_a_setting() -> None:
    _, gates = measured_gates(small_spec(gates={"maximum_auc": 0.62}), small_loans(ROWS))
    assert one(gates, "too good to be true").status == "failed"
    with pytest.raises(UserError, match=r"minimum_auc 0\.8 leaves nothing below maximum_auc 0\.7"):
        small_spec(gates={"minimum_auc": 0.8, "maximum_auc": 0.7})
