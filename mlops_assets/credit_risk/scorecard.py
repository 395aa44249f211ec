"""The scorecard: integer points for every bin of every feature, and a table from points to default probabilities.

What belongs here: fitting the points, scoring with them, and the JSON file that is the model. What does not: how a
feature is cut (`binning.py`), and what becomes of a probability (`policy.py`).

A score is a sum of integers and a probability is looked up in the file, so any machine and any batch size gives the
same answer, for ever. Points follow the industry's scale (N. Siddiqi, "Credit Risk Scorecards", 2006): `base_points` at
`base_odds` of good to bad, and `points_to_double` more double the odds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.binning import FeatureBins, fit_bins
from mlops_assets.credit_risk.calibration import Calibration, fit_sigmoid
from mlops_assets.credit_risk.encoding import column_of
from mlops_assets.credit_risk.logistic import DIGITS, fit_logistic
from mlops_assets.credit_risk.models import MODEL_FILE, Scores
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Scorecard as Settings
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, write_atomic

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FORMAT = 1


@dataclass(frozen=True)
class Card:
    """One feature of a scorecard: its bins, their points, and what an average applicant gets."""

    bins: FeatureBins
    coefficient: float
    points: tuple[int, ...]
    baseline: int
    importance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the feature as plain JSON values."""
        return {
            "bins": self.bins.to_dict(),
            "coefficient": self.coefficient,
            "points": list(self.points),
            "baseline": self.baseline,
            "importance": self.importance,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Card":
        """Return the feature that `to_dict` described."""
        return cls(**{**raw, "bins": FeatureBins.from_dict(raw["bins"]), "points": tuple(raw["points"])})


class Scorecard:
    """Integer points by feature; a `PdModel`.

    Parameters
    ----------
    schema
        All features that it was offered; those without a card leave the score alone.
    cards
        The features that it uses.
    base
        Points of everybody.
    lowest
        Least possible points: the first row of the table.
    table
        (k, 2) Log-odds before calibration and default probability at `lowest`, `lowest` + 1, …
    calibration, left_out
        How the table was made, and why features without a card have none; for people, scoring reads neither.
    """

    kind: str = "scorecard"
    baseline: str = "the average applicant of the training set, feature by feature"

    def __init__(
        self,
        schema: FeatureSchema,
        cards: Sequence[Card],
        base: int,
        lowest: int,
        table: Floats,
        calibration: Calibration,
        left_out: Mapping[str, str],
    ) -> None:
        self.schema, self.cards, self.base, self.lowest, self.table = schema, tuple(cards), base, lowest, table
        self.calibration, self.left_out = calibration, dict(left_out)
        self._points = [np.array(card.points, dtype=np.int64) for card in self.cards]
        self._columns = [schema.names.index(card.bins.name) for card in self.cards]
        self._margin, self._pd = np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])

    def score(self, features: pd.DataFrame) -> Scores:
        """Score rows as `FeatureSchema.matrix` makes them; columns are found by name."""
        shape = (len(features), len(self.schema.features))
        points = np.full(len(features), self.base, dtype=np.int64)
        lost = np.zeros(shape)
        beyond = np.zeros(shape, dtype=bool)
        for card, of_bin, column in zip(self.cards, self._points, self._columns, strict=True):
            found, beyond[:, column] = card.bins.assign(column_of(features, card.bins.name))
            got = of_bin[found]
            points += got
            lost[:, column] = card.baseline - got
        average = self.base + sum(card.baseline for card in self.cards)
        at = points - self.lowest
        residual = points - (average - lost.sum(axis=1))
        return Scores(self._margin[at], self._pd[at], points, lost, residual, beyond)

    def predict(self, features: pd.DataFrame) -> Floats:
        """Return the default probabilities alone, (n,)."""
        points = np.full(len(features), self.base - self.lowest, dtype=np.int64)
        for card, of_bin in zip(self.cards, self._points, strict=True):
            points += of_bin[card.bins.assign(column_of(features, card.bins.name))[0]]
        probabilities: Floats = self._pd[points]
        return probabilities

    def importance(self) -> Mapping[str, float]:
        """Return the mean distance in points from the baseline over the training set, largest first."""
        of_cards = {card.bins.name: card.importance for card in self.cards}
        every = {name: of_cards.get(name, 0.0) for name in self.schema.names}
        return dict(sorted(every.items(), key=lambda item: (-item[1], item[0])))

    def save(self, folder: Path) -> None:
        """Write `model.json`; equal scorecards give equal bytes."""
        content = {
            "kind": self.kind,
            "format": _FORMAT,
            "schema": self.schema.to_list(),
            "base": self.base,
            "features": [card.to_dict() for card in self.cards],
            "lowest": self.lowest,
            "table": [[margin.hex(), pd.hex()] for margin, pd in self.table.tolist()],
            "calibration": self.calibration.to_dict(),
            "left_out": self.left_out,
        }
        write_atomic(folder / MODEL_FILE, canonical_json(content))

    @classmethod
    def load(cls, folder: Path) -> "Scorecard":
        """Read the scorecard that `save` wrote.

        Raises
        ------
        UserError
            The file is missing or does not describe a scorecard.
        """
        path = folder / MODEL_FILE
        try:
            raw = json.loads(path.read_bytes())
            table = np.array([[float.fromhex(margin), float.fromhex(pd)] for margin, pd in raw["table"]])
            cards = [Card.from_dict(each) for each in raw["features"]]
            schema = FeatureSchema.from_list(raw["schema"])
            calibration = Calibration.from_dict(raw["calibration"])
            model = cls(schema, cards, raw["base"], raw["lowest"], table, calibration, raw["left_out"])
            whole = raw["format"] == _FORMAT and _range(cards, model.base) == (
                model.lowest,
                model.lowest + len(table) - 1,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, str(error)) from error
        if not whole:
            raise _unreadable(path, "its points and its table do not fit together, or it is of another format")
        return model


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"is no scorecard that can be read: {why}", where=str(path), remedy="fetch the version again from the registry."
    )


def _range(cards: Sequence[Card], base: int) -> tuple[int, int]:
    return base + sum(min(card.points) for card in cards), base + sum(max(card.points) for card in cards)


def fit(
    schema: FeatureSchema,
    settings: Settings,
    train: tuple[pd.DataFrame, Integers],
    calibrate: tuple[pd.DataFrame, Integers],
) -> Scorecard:
    """Learn a scorecard.

    Parameters
    ----------
    train, calibrate
        Features as `FeatureSchema.matrix` makes them, and outcomes (n,), 1 for bad; both outcomes occur.

    Raises
    ------
    UserError
        No feature tells anything, or the calibration slice contradicts the model.
    """
    frame, bad = train
    left_out: dict[str, str] = {}
    bins: list[FeatureBins] = []
    for feature in schema.features:
        made = fit_bins(feature, column_of(frame, feature.name), bad, settings)
        if made.information_value < max(settings.minimum_iv, 1e-12):
            left_out[feature.name] = f"information value {made.information_value:.4f} is too low"
        else:
            bins.append(made)
    places = [each.assign(column_of(frame, each.name))[0] for each in bins]
    woe = np.column_stack([each.woe[at] for each, at in zip(bins, places, strict=True)] or [np.zeros((len(bad), 0))])
    kept, coefficients, intercept = _right_signs(woe, bad, settings, [each.name for each in bins], left_out)
    scale = settings.points_to_double / math.log(2.0)
    cards = [
        _card(bins[at], places[at], coefficient, scale) for at, coefficient in zip(kept, coefficients, strict=True)
    ]
    base = round(settings.base_points + scale * (intercept - math.log(settings.base_odds)))
    lowest, highest = _range(cards, base)
    points = np.arange(lowest, highest + 1)
    margins = np.round(-((points - settings.base_points) / scale + math.log(settings.base_odds)), DIGITS)
    uncalibrated = Scorecard(
        schema, cards, base, lowest, np.column_stack([margins, margins]), Calibration(1.0, 0.0), left_out
    )
    calibration = fit_sigmoid(uncalibrated.score(calibrate[0]).margin, calibrate[1])
    table = np.column_stack([margins, calibration(margins)])
    return Scorecard(schema, cards, base, lowest, table, calibration, left_out)


def _right_signs(
    woe: Floats, bad: Integers, settings: Settings, names: Sequence[str], left_out: dict[str, str]
) -> tuple[list[int], Floats, float]:
    """Fit the odds of good on weights of evidence; leave out, one by one, what more evidence would make riskier."""
    kept = list(range(woe.shape[1]))
    while kept:
        penalty = np.full(len(kept), 1.0 / settings.regularization)
        fitted = fit_logistic(woe[:, kept], (1 - bad).astype(np.float64), penalty)
        coefficients = np.round(fitted[:-1], DIGITS)
        wrong = int(np.argmin(coefficients))
        if coefficients[wrong] > 0.0:
            return kept, coefficients, float(fitted[-1])
        left_out[names[kept[wrong]]] = "beside the other features it would count the wrong way round"
        del kept[wrong]
    raise UserError(
        "no feature tells good loans from bad ones",
        where=f"the training slice of {len(bad)} loans",
        remedy="lower scorecard.minimum_iv, or look at the features and the outcomes.",
    )


def _card(bins: FeatureBins, places: NDArray[np.intp], coefficient: float, scale: float) -> Card:
    points = tuple(round(scale * coefficient * woe) for woe in bins.woe.tolist())
    got = np.array(points, dtype=np.int64)[places]
    baseline = round(float(got.mean()))
    return Card(bins, float(coefficient), points, baseline, round(float(np.abs(got - baseline).mean()), DIGITS))
