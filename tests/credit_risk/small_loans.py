"""A small world whose truth is known: what the models' own tests learn from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec, parse_spec

# income: higher is safer; debts: higher is riskier, -9 means that there is no file at the bureau (riskier still);
# amount: riskiest in the middle; region: B is bad, Z is too rare to learn from; purpose says nothing.
RAW: Mapping[str, Any] = {
    "name": "small",
    "numeric": [
        {"name": "income", "theme": "means", "low": 0, "risk": "falls"},
        {"name": "debts", "theme": "debts", "low": 0, "special": {-9: "no file at the bureau"}, "risk": "rises"},
        {"name": "amount", "theme": "terms", "low": 0},
    ],
    "categorical": [
        {"name": "region", "theme": "means"},
        {"name": "purpose", "theme": "terms"},
    ],
    "themes": {
        "means": {"sentence": "Income or place of residence"},
        "debts": {"sentence": "Existing debts"},
        "terms": {"sentence": "Terms of the credit applied for"},
    },
    "gbm": {"trees": 30, "learning_rate": 0.1, "leaves": 8},
    "outliers": {"trees": 20, "share": 0.02},
    "training": {"minimum_goods": 50, "minimum_bads": 20},
}


def small_spec(**changes: Any) -> Spec:
    """Return the spec with whole blocks changed."""
    return parse_spec({**RAW, **changes}, where="test", base=Path())


SCHEMA = FeatureSchema.of(small_spec())


def small_loans(rows: int = 2_000, seed: int = 5) -> pd.DataFrame:
    """Return loans with features, bad, ids and times; income has some missing values, amount has none."""
    rng = np.random.default_rng(seed)
    income = np.round(rng.lognormal(10.0, 0.5, rows))
    debts = rng.integers(0, 12, rows).astype(float)
    debts[rng.random(rows) < 0.06] = -9.0
    amount = np.round(rng.uniform(500, 20_000, rows))
    region = rng.choice(np.array(["A", "B", "C"], dtype=object), rows, p=[0.5, 0.3, 0.2])
    region[:4] = "Z"
    purpose = rng.choice(np.array(["car", "home", None], dtype=object), rows, p=[0.5, 0.3, 0.2])
    margin = -2.6 - 1.6 * (np.log(income) - 10.0) + 0.2 * np.where(debts < 0, 14.0, debts)
    margin += 0.8 * (region == "B") + 0.6 * (np.abs(amount - 10_000) < 4_000)
    bad = (rng.random(rows) < 1.0 / (1.0 + np.exp(-margin))).astype(np.int64)
    income[rng.random(rows) < 0.08] = np.nan
    return pd.DataFrame(
        {
            "application_id": [f"a{number:05d}" for number in range(rows)],
            "applied_at": pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC"),
            "income": income,
            "debts": debts,
            "amount": amount,
            "region": region,
            "purpose": purpose,
            "bad": bad,
        }
    )


def slices(frame: pd.DataFrame, share: float = 0.7) -> tuple[tuple[pd.DataFrame, Any], tuple[pd.DataFrame, Any]]:
    """Return matrix and outcomes of the first part, and of the rest."""
    cut = int(len(frame) * share)
    parts = [(SCHEMA.matrix(part), part["bad"].to_numpy()) for part in (frame.iloc[:cut], frame.iloc[cut:])]
    return parts[0], parts[1]
