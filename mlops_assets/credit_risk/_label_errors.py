"""Loans whose outcome contradicts what all other loans say of them: labels that may be wrong.

What belongs here: probabilities from models that did not see a loan, how suspicious its label is, and where suspicious
labels gather. What does not: what relabelling does (`_slice_experiment.py`).

The search is confident learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset
Labels", 2021): a loan counts as the other class where its probability of that class is at least what loans of that
class have on average, and the least probable labels are the most suspicious. In credit there is a catch that the method
does not know: most loans of a low PD that went bad are bad luck, not mistakes. How many such cases the PDs themselves
foresee is therefore told beside the number found. Mistakes that are spread evenly look like risk and are part of what
is foreseen; what can be told from luck is doubtful labels that gather: in a month, a region, a product. There the
labels are wrong, or the model is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk._weak_slices import parts_of
from mlops_assets.credit_risk.evaluation import months_of
from mlops_assets.credit_risk.metrics import Floats
from mlops_assets.credit_risk.models import PdModel
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.foundation import plots
from mlops_assets.foundation.errors import UserError

Fit = Callable[[pd.DataFrame, pd.DataFrame], PdModel]
"""From loans to learn from and loans to calibrate on (features and bad) to a model."""

MONTH = "month of application"

_ROWS = 20
_SHOWN = 12
_TELLABLE = 10


@dataclass(frozen=True)
class LabelErrors:
    """What a search for wrong labels found.

    Parameters
    ----------
    ids, scores
        Applications whose label is in doubt, the most suspicious first, and the probability that the models gave to the
        label that they have: the lower, the more suspicious. Of persons: never shown on a page.
    labels
        The label that each of them has, 1 for bad.
    loans, bads
        Loans that were searched.
    thresholds
        Mean probability of good among the good, and of bad among the bad.
    joint
        (2, 2) Confident counts: labelled good and bad (rows), taken for good and bad (columns).
    foreseen
        Doubtful labels that the probabilities foresee if all labels are right.
    at_most
        Most that are listed, as a share of the loans.
    by_slice
        One row a slice: slice, loans, doubtful, foreseen, ratio, p_value, q_value; slices of fewer than ten loans are
        left out.
    level
        Largest share of false ones among the slices called beyond luck.
    predicted
        Out-of-fold PD of each loan by application_id, for what is done next.
    """

    ids: tuple[str, ...]
    scores: Floats
    labels: NDArray[np.int64]
    loans: int
    bads: int
    thresholds: tuple[float, float]
    joint: NDArray[np.int64]
    foreseen: float
    at_most: float
    by_slice: pd.DataFrame
    level: float
    predicted: "pd.Series[float]" = field(repr=False)

    @property
    def doubtful(self) -> int:
        """Loans that count as the other class."""
        return int(self.joint[0, 1] + self.joint[1, 0])

    @property
    def gathered(self) -> pd.DataFrame:
        """The slices with more doubtful labels than luck explains."""
        return self.by_slice[self.by_slice["q_value"] <= self.level]

    def table(self) -> pd.DataFrame:
        """Return at most 20 slices for a page, those with the most surplus first; counts alone."""
        shown = self.by_slice.head(_ROWS).reset_index(drop=True)
        return shown.assign(beyond_luck=shown["q_value"] <= self.level)

    def picture(self) -> bytes:
        """Return doubtful labels by slice, with the number that is foreseen as a mark; a PNG of at most 30 kB."""
        shown = self.by_slice.head(_SHOWN)
        names = shown["slice"].tolist()
        return plots.bars(
            dict(zip(names, shown["doubtful"].astype(float), strict=True)),
            title="Where doubtful labels gather (mark: foreseen)",
            axis="loans",
            beside=dict(zip(names, shown["foreseen"], strict=True)),
        )

    def facts(self) -> dict[str, float | int | str]:
        """Return the numbers of the search, for a page."""
        return {
            "loans": self.loans,
            "doubtful": self.doubtful,
            "doubtful_foreseen": round(self.foreseen, 2),
            "doubtful_bads": int(self.joint[1, 0]),
            "doubtful_goods": int(self.joint[0, 1]),
            "listed": len(self.ids),
            "slices_beyond_luck": len(self.gathered),
        }


def likely_label_errors(
    train: pd.DataFrame,
    calibrate: pd.DataFrame,
    schema: FeatureSchema,
    fit: Fit,
    *,
    folds: int = 5,
    at_most: float = 0.01,
    level: float = 0.05,
    seed: int = 0,
) -> LabelErrors:
    """Search loans for labels that models which did not see them find improbable.

    Parameters
    ----------
    train, calibrate
        application_id, the features, bad, and where they are known applicant_id and applied_at.
    fit
        How a model is made of the loans of all other folds.
    folds
        Parts; all loans of a person are in one of them.
    at_most
        Largest share of the loans that is listed.

    Raises
    ------
    UserError
        There are too few loans for the folds.
    """
    pool = pd.concat([train, calibrate], ignore_index=True)
    bad = pool["bad"].to_numpy(dtype=np.int64)
    predicted = _out_of_fold(train, calibrate, schema, fit, folds, seed)
    given = np.where(bad == 1, predicted, 1 - predicted)
    good_at, bad_at = float(1 - predicted[bad == 0].mean()), float(predicted[bad == 1].mean())
    taken = _taken_for(predicted, good_at, bad_at)
    joint = np.array([[int(((bad == label) & (taken == other)).sum()) for other in (0, 1)] for label in (0, 1)])
    doubtful = (taken >= 0) & (taken != bad)
    most = int(at_most * len(pool))
    listed = np.flatnonzero(doubtful)
    listed = listed[np.argsort(given[listed], kind="stable")][:most]
    chance = np.where(taken == 0, predicted, np.where(taken == 1, 1 - predicted, 0.0))
    ids = pool["application_id"].astype(str)
    return LabelErrors(
        ids=tuple(ids.iloc[listed]),
        scores=given[listed],
        labels=bad[listed],
        loans=len(pool),
        bads=int(bad.sum()),
        thresholds=(good_at, bad_at),
        joint=joint,
        foreseen=float(chance.sum()),
        at_most=at_most,
        by_slice=_gathering(pool, schema, doubtful, chance),
        level=level,
        predicted=pd.Series(predicted, index=ids.to_numpy()),
    )


def _taken_for(predicted: Floats, good_at: float, bad_at: float) -> NDArray[np.int64]:
    """Return the class that each loan counts as by its probability alone; -1 where it reaches neither threshold."""
    is_good, is_bad = 1 - predicted >= good_at, predicted >= bad_at
    # Where a probability reaches both, the class that it exceeds by more counts.
    nearer = predicted - bad_at >= 1 - predicted - good_at
    return np.select([is_bad & (~is_good | nearer), is_good], [1, 0], -1)


def _out_of_fold(
    train: pd.DataFrame, calibrate: pd.DataFrame, schema: FeatureSchema, fit: Fit, folds: int, seed: int
) -> Floats:
    """Return PDs of train and calibrate, (n,), each from a model that saw no loan of its fold."""
    fold = _folds(pd.concat([train, calibrate], ignore_index=True), folds, seed)
    first, second = fold[: len(train)], fold[len(train) :]
    predicted = np.empty(len(fold))
    for number in range(folds):
        model = fit(train[first != number], calibrate[second != number])
        for part, of_part, start in ((train, first, 0), (calibrate, second, len(train))):
            held = np.flatnonzero(of_part == number)
            predicted[start + held] = model.predict(schema.matrix(part.iloc[held]))
    return predicted


def _folds(pool: pd.DataFrame, folds: int, seed: int) -> NDArray[np.int64]:
    """Return a fold for each row, (n,): people stay together, and bad loans are spread evenly."""
    person = pool["application_id"].astype(str)
    if "applicant_id" in pool.columns:
        person = pool["applicant_id"].astype(object).where(pool["applicant_id"].notna(), person).astype(str)
    people = pool.groupby(person.to_numpy())["bad"].max()
    if len(people) < folds:
        raise UserError(
            f"{len(people)} people cannot be cut into {folds} folds",
            where="the loans to be searched",
            remedy="wait for more outcomes to mature.",
        )
    rng = np.random.default_rng(seed)
    of_person: dict[str, int] = {}
    for label in (0, 1):
        names = people.index[people == label].to_numpy()[rng.permutation(int((people == label).sum()))]
        of_person |= {str(name): place % folds for place, name in enumerate(names.tolist())}
    return np.array([of_person[name] for name in person.tolist()], dtype=np.int64)


def _gathering(pool: pd.DataFrame, schema: FeatureSchema, doubtful: NDArray[np.bool_], chance: Floats) -> pd.DataFrame:
    """Count doubtful labels by slice and hold them against the foreseen number; the largest surplus first."""
    from scipy import stats
    from scipy.special import ndtr

    spread = chance * (1 - chance)
    rows = []
    for name, inside in _slices(pool, schema):
        if inside.sum() < _TELLABLE:
            continue
        seen, foreseen = int(doubtful[inside].sum()), float(chance[inside].sum())
        error = float(np.sqrt(spread[inside].sum()))
        # Half a case for the step from one whole number to the next.
        surplus = (seen - 0.5 - foreseen) / error if error > 0 else 0.0
        ratio = seen / foreseen if foreseen > 0 else float("nan")
        rows.append((name, int(inside.sum()), seen, foreseen, ratio, float(ndtr(-surplus))))
    table = pd.DataFrame(rows, columns=["slice", "loans", "doubtful", "foreseen", "ratio", "p_value"])
    table["q_value"] = stats.false_discovery_control(table["p_value"]) if len(table) else np.empty(0)
    return table.sort_values(["p_value", "slice"], ignore_index=True)


def _slices(pool: pd.DataFrame, schema: FeatureSchema) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    parts: Mapping[str, NDArray[np.object_]] = {
        feature.name: parts_of(pool[feature.name], feature) for feature in schema.features
    }
    if "applied_at" in pool.columns:
        parts = {MONTH: months_of(pool).to_numpy(dtype=object), **parts}
    for name, values in parts.items():
        for value in sorted({str(each) for each in values}):
            yield f"{name} = {value}", values == value
