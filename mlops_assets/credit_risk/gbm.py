"""The challenger: gradient-boosted trees that keep to the directions of the spec.

What belongs here: fitting LightGBM, scoring and explaining with it, and its files. What does not: how values become
columns (`encoding.py`), and whether it may replace the scorecard (`judging.py`).

LightGBM matches columns by position and says nothing when they are reordered; here every column is made by name, and a
booster whose columns are not those of `model.json` is refused. That the trees keep to the directions is proved after
every training (`directions.py`). Contributions are exact Shapley values of the trees
(LightGBM's `pred_contrib`; S. Lundberg et al., "From local explanations to global understanding", 2020): what they
leave unexplained is checked on every row.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.calibration import Calibration, fit_sigmoid
from mlops_assets.credit_risk.directions import breaches
from mlops_assets.credit_risk.encoding import Column, Encoder, evenly, fit_encoder
from mlops_assets.credit_risk.logistic import DIGITS
from mlops_assets.credit_risk.models import MODEL_FILE, Scores
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Gbm as Settings
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, write_atomic

if TYPE_CHECKING:
    from lightgbm import Booster

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TREES_FILE = "gbm.txt"
_FORMAT = 1
_THREADS = 2
_SAMPLE = 4_096
_UNEXPLAINED = 1e-6
# Shapley values are products, whose last bits a compiler may round another way; on this grid (1e-9) nobody sees them.
_GRID = 2.0**30
# What was asked of the training, such as its threads, stands in the text and would make equal trees unequal files.
_PARAMETERS = re.compile(r"\nparameters:.*?end of parameters\n", re.DOTALL)


class Gbm:
    """Monotone gradient-boosted trees; a `PdModel`.

    Parameters
    ----------
    schema
        The features, in order.
    encoder
        How they become the columns of the trees.
    trees
        LightGBM's text format.
    base
        Log-odds of an average applicant of the training set: what contributions are held against.
    calibration
        From log-odds to probabilities.
    moved
        Mean distance from the base, in log-odds, that each feature makes over the training set.
    """

    kind: str = "gbm"
    baseline: str = "the mean log-odds of the training set"

    def __init__(
        self,
        schema: FeatureSchema,
        encoder: Encoder,
        trees: str,
        base: float,
        calibration: Calibration,
        moved: Mapping[str, float],
    ) -> None:
        self.schema, self.encoder, self.trees, self.base = schema, encoder, trees, base
        self.calibration, self._moved = calibration, dict(moved)
        self._booster = _booster(trees, encoder.columns)
        self._owner = np.array([schema.names.index(column.feature) for column in encoder.columns])

    def score(self, features: pd.DataFrame) -> Scores:
        """Score rows as `FeatureSchema.matrix` makes them; columns are found by name.

        Raises
        ------
        ArithmeticError
            The contributions of a row do not add up to its margin: none of them may be told as a reason.
        """
        matrix, beyond = self.encoder.transform(features)
        margin = _margin(self._booster, matrix)
        contributions = _contributions(self._booster, matrix, self._owner, len(self.schema.features))
        residual = margin - (self.base + contributions.sum(axis=1))
        if len(residual) and not np.abs(residual).max() < _UNEXPLAINED:
            worst = int(np.argmax(np.abs(residual)))
            msg = f"row {worst}: the contributions miss the margin by {residual[worst]:.3g} log-odds"
            raise ArithmeticError(msg)
        return Scores(margin, self.calibration(margin), None, contributions, residual, beyond)

    def predict(self, features: pd.DataFrame) -> Floats:
        """Return the default probabilities alone, (n,)."""
        return self.calibration(_margin(self._booster, self.encoder.transform(features)[0]))

    def importance(self) -> Mapping[str, float]:
        """Return the mean distance in log-odds from the baseline over the training set, largest first."""
        return dict(sorted(self._moved.items(), key=lambda item: (-item[1], item[0])))

    def save(self, folder: Path) -> None:
        """Write `gbm.txt` and `model.json`; equal models give equal bytes."""
        content = {
            "kind": self.kind,
            "format": _FORMAT,
            "schema": self.schema.to_list(),
            "encoder": self.encoder.to_dict(),
            "base": self.base.hex(),
            "calibration": self.calibration.to_dict(),
            "importance": self._moved,
        }
        write_atomic(folder / TREES_FILE, self.trees.encode())
        write_atomic(folder / MODEL_FILE, canonical_json(content))

    @classmethod
    def load(cls, folder: Path) -> "Gbm":
        """Read the model that `save` wrote.

        Raises
        ------
        UserError
            A file is missing or damaged, or the two files are not of one model.
        """
        from lightgbm.basic import LightGBMError

        path = folder / MODEL_FILE
        try:
            raw = json.loads(path.read_bytes())
            if raw["format"] != _FORMAT:
                raise _unreadable(path, f"format {raw['format']!r} is unknown")
            return cls(
                FeatureSchema.from_list(raw["schema"]),
                Encoder.from_dict(raw["encoder"]),
                (folder / TREES_FILE).read_text(encoding="utf-8"),
                float.fromhex(raw["base"]),
                Calibration.from_dict(raw["calibration"]),
                raw["importance"],
            )
        except (OSError, ValueError, KeyError, TypeError, LightGBMError) as error:
            raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"is no gradient-boosted model that can be read: {why}",
        where=str(path),
        remedy="fetch the version again from the registry.",
    )


def _booster(trees: str, columns: Sequence[Column]) -> "Booster":
    from lightgbm import Booster

    booster = Booster(model_str=trees)
    if booster.feature_name() != [column.name for column in columns]:
        raise UserError(
            f"the trees split on {', '.join(booster.feature_name())}, but the model makes "
            f"{', '.join(column.name for column in columns)}",
            where=TREES_FILE,
            remedy="the files are of different models; fetch the version again from the registry.",
        )
    return booster


def _margin(booster: "Booster", matrix: Floats) -> Floats:
    if not len(matrix):
        return np.zeros(0)
    margin: Floats = np.asarray(booster.predict(matrix, raw_score=True, num_threads=_threads(matrix)))
    return margin


def _threads(matrix: Floats) -> int:
    # To wake a pool costs more than to score a handful of rows; the bits are the same.
    return 1 if len(matrix) < 256 else _THREADS


def _contributions(booster: "Booster", matrix: Floats, owner: NDArray[np.intp], features: int) -> Floats:
    """Return how much each feature raised the log-odds, (n, features): columns of one feature are added up."""
    summed = np.zeros((len(matrix), features))
    if len(matrix):
        of_columns = np.asarray(booster.predict(matrix, pred_contrib=True, num_threads=_threads(matrix)))
        for column, feature in enumerate(owner):
            summed[:, feature] += of_columns[:, column]
    return np.rint(summed * _GRID) / _GRID


def fit(
    schema: FeatureSchema,
    settings: Settings,
    train: tuple[pd.DataFrame, Integers],
    calibrate: tuple[pd.DataFrame, Integers],
    *,
    seed: int = 7,
    threads: int = _THREADS,
) -> Gbm:
    """Learn a monotone model; the same rows and seed give the same bits, whatever the number of threads.

    Parameters
    ----------
    train, calibrate
        Features as `FeatureSchema.matrix` makes them, and outcomes (n,), 1 for bad; both outcomes occur.

    Raises
    ------
    UserError
        No split was worth making, or the calibration slice contradicts the model.
    ArithmeticError
        The trees do not keep to the directions.
    """
    frame, bad = train
    encoder = fit_encoder(schema, frame, bad, settings.minimum_leaf)
    matrix = encoder.transform(frame)[0]
    booster = _train(encoder.columns, settings, matrix, bad, seed, threads)
    trees = _PARAMETERS.sub("\n", booster.model_to_string())
    _prove_directions(trees, encoder.columns)
    encoder = encoder.with_worst(matrix, lambda rows: _margin(booster, rows))
    owner = np.array([schema.names.index(column.feature) for column in encoder.columns])
    some = evenly(encoder.transform(frame)[0], _SAMPLE)
    moved = np.round(np.abs(_contributions(booster, some, owner, len(schema.features))).mean(axis=0), DIGITS)
    base = round(float(np.asarray(booster.predict(matrix[:1], pred_contrib=True))[0, -1]), DIGITS)
    calibration = fit_sigmoid(_margin(booster, encoder.transform(calibrate[0])[0]), calibrate[1])
    return Gbm(schema, encoder, trees, base, calibration, dict(zip(schema.names, moved.tolist(), strict=True)))


def _prove_directions(trees: str, columns: Sequence[Column]) -> None:
    found = breaches(trees, [column.monotone for column in columns])
    if found:
        worst = max(found, key=lambda breach: breach.excess)
        msg = (
            f"{len(found)} split(s) run against the direction of their feature, the worst on "
            f"{columns[worst.column].feature!r} by {worst.excess:.3g} log-odds (tree {worst.tree})"
        )
        raise ArithmeticError(msg)


def _train(
    columns: Sequence[Column], settings: Settings, matrix: Floats, bad: Integers, seed: int, threads: int
) -> "Booster":
    import lightgbm

    parameters: dict[str, Any] = {
        "objective": "binary",
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.minimum_leaf,
        "bagging_fraction": settings.subsample,
        "bagging_freq": 1,
        "feature_fraction": settings.columns,
        "lambda_l2": settings.l2,
        "monotone_constraints": [column.monotone for column in columns],
        # The other methods gain about 0.001 of AUC and break the promise: in the sample world 31 of 28,400 pairs of
        # neighbouring values moved the PD the wrong way under "advanced" (so say LightGBM issues 5358 and 6155), and
        # 6 of 1.2 million under "intermediate". directions.py proves every training.
        "monotone_constraints_method": "basic",
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "feature_pre_filter": False,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(
        matrix,
        bad,
        feature_name=[column.name for column in columns],
        categorical_feature=[],
        params={"verbosity": -1, "feature_pre_filter": False, "num_threads": threads},
    )
    return lightgbm.train(parameters, data, num_boost_round=settings.trees)
