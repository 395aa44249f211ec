"""What every model of default probabilities can do, and loading one from its files.

What belongs here: the interface, the scores, and the choice of the class that reads a folder. What does not: how either
model works (`scorecard.py`, `gbm.py`), and the versions (`foundation/registry.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError

MODEL_FILE = "model.json"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What a model says of n applications with f features.

    Parameters
    ----------
    margin
        (n,) Log-odds of bad before calibration; higher is riskier.
    pd
        (n,) Calibrated probability of default, 0 to 1.
    points
        (n,) int64 scorecard points, higher is safer; None for a model without points.
    contributions
        (n, f) How much each feature raised the risk against the baseline: points lost for a scorecard, log-odds for
        a gradient-boosted model.
    residual
        (n,) What the contributions and the baseline leave unexplained of the points or the margin.
    out_of_range
        (n, f) Whether a value lies beyond everything in training (numbers) or is unknown to the model (categories).
    """

    margin: Floats
    pd: Floats
    points: NDArray[np.int64] | None
    contributions: Floats
    residual: Floats
    out_of_range: NDArray[np.bool_]


class PdModel(Protocol):
    """A model of default probabilities whose every answer can be explained and computed again."""

    kind: str
    schema: FeatureSchema
    baseline: str
    """What contributions are held against, in words."""

    def score(self, features: pd.DataFrame) -> Scores:
        """Score rows as `FeatureSchema.matrix` makes them."""

    def predict(self, features: pd.DataFrame) -> Floats:
        """Return the probabilities alone, (n,), bit for bit those of `score`."""

    def importance(self) -> Mapping[str, float]:
        """Return how much each feature moves the scores of the training set, largest first."""

    def save(self, folder: Path) -> None:
        """Write the model as data; equal models give equal bytes."""


def model_name(spec: Spec) -> str:
    """Return the registry name of a system's models, of both kinds."""
    return f"{spec.name}.pd_model"


def load(folder: Path) -> PdModel:
    """Return the model that a folder holds.

    Raises
    ------
    UserError
        There is no model, or one of an unknown kind.
    """
    from mlops_assets.credit_risk.gbm import Gbm
    from mlops_assets.credit_risk.scorecard import Scorecard

    kinds: Mapping[str, Any] = {"scorecard": Scorecard, "gbm": Gbm}
    path = folder / MODEL_FILE
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("holds no model", where=str(path), remedy="fetch the version again.") from error
    if kind not in kinds:
        raise UserError(f"unknown kind of model {kind!r}", where=str(path), remedy=f"known kinds: {', '.join(kinds)}.")
    model: PdModel = kinds[kind].load(folder)
    return model
