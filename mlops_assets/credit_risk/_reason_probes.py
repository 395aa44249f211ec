"""Experiments with a model that show whether its reasons are true: directions, fidelity, stability, dependence.

What belongs here: changing values or the training sample and looking at what the model says then. What does not: what
is asked of a model and which bounds it is held against (`explanations.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk import reasons as told
from mlops_assets.credit_risk import training
from mlops_assets.credit_risk.encoding import equals_any, evenly
from mlops_assets.credit_risk.metrics import Estimate, Floats, mean_estimate, proportion
from mlops_assets.credit_risk.models import PdModel, Scores
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.reasons import Reasons
from mlops_assets.credit_risk.schema import Feature
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError

FITS: Mapping[str, Callable[[Spec, pd.DataFrame, pd.DataFrame], PdModel]] = {
    "scorecard": training.fit_scorecard,
    "gbm": training.fit_gbm,
}
"""How a model of each kind is trained."""

LEAST = 30
"""Applications below which a share is no estimate."""

_ROWS = 200
_GRID = 20
_DEPENDENCE_ROWS = 500
_POINTS = 5
_TELLABLE = 10
_LENDERS = 20
_ROUNDING = 1e-9
"""A mean of equal PDs may differ from them in the last bits."""


@dataclass(frozen=True)
class Direction:
    """What the PD does as one number rises and everything else stays as it is.

    Parameters
    ----------
    wanted
        1 where the spec says that the PD rises with the value, -1 where it falls, 0 where the spec says nothing.
    taken
        The direction that the model takes on the whole: 1, -1, or 0 where the PD does not move.
    comparisons
        Pairs of neighbouring values, row by row, that were compared.
    moved
        Pairs in which the PD differs.
    wrong
        Pairs in which it moves against the wanted direction; where none is wanted, against the one taken.
    worst
        The largest such move, in PD.
    """

    feature: str
    label: str
    wanted: int
    taken: int
    comparisons: int
    moved: int
    wrong: int
    worst: float

    @property
    def share(self) -> float | None:
        """Share of the moves that go the wrong way; None where nothing moves."""
        return self.wrong / self.moved if self.moved else None


@dataclass(frozen=True)
class Fidelity:
    """What the PD does when what the first reason names is put right: as approved applicants have it.

    Parameters
    ----------
    fell
        Share of the applications whose PD falls.
    median_fall
        Median of the fall, in PD.
    by_theme
        Theme to applications, share that falls and median fall; without the two where there are fewer than ten
        applications: numbers of so few are about persons.
    """

    fell: Estimate
    median_fall: Estimate
    by_theme: Mapping[str, tuple[int, float | None, float | None]]


@dataclass(frozen=True)
class Stability:
    """What changes when the same kind of model is trained on a resample of the training loans.

    Parameters
    ----------
    first
        Share of the applications whose first reason stays.
    overlap
        Mean share of reasons in common: those told by both over the larger number told by either.
    flipped
        Share of all decisions that change under the same policy.
    moved
        Median distance of the two PDs.
    by_resample
        The share of `first` for each resample.
    """

    first: Estimate
    overlap: Estimate
    flipped: Estimate
    moved: Estimate
    by_resample: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """The mean PD of all applications if they all had one value."""

    feature: str
    value: str
    mean_pd: float


def directions(model: PdModel, rows: pd.DataFrame, known: pd.DataFrame) -> tuple[Direction, ...]:
    """Raise every number over real values and see what the PD does.

    Parameters
    ----------
    rows
        Features of the applications, of which up to 200, spread evenly, are tried.
    known
        Features of the training loans: their quantiles are the values. Missing values and special codes have no
        order, and values that the model knows nothing of have no promise; neither is tried.
    """
    some = rows.iloc[_spread(len(rows), _ROWS)]
    return tuple(_direction(model, feature, some, known) for feature in model.schema.features if _is_number(feature))


def _direction(model: PdModel, feature: Feature, rows: pd.DataFrame, known: pd.DataFrame) -> Direction:
    grid = _grid(feature, known[feature.name].to_numpy(dtype=np.float64))
    if len(grid) and len(rows):
        place = model.schema.names.index(feature.name)
        beyond = model.score(_with(rows.iloc[[0] * len(grid)], feature.name, grid)).out_of_range[:, place]
        grid = grid[~beyond]
    if len(grid) < 2 or not len(rows):
        return Direction(feature.name, feature.label, feature.monotone, 0, 0, 0, 0, 0.0)
    raised = rows.iloc[np.repeat(np.arange(len(rows)), len(grid))]
    predicted = model.predict(_with(raised, feature.name, np.tile(grid, len(rows)))).reshape(len(rows), len(grid))
    steps = np.diff(predicted, axis=1)
    taken = int(np.sign(steps.sum()))
    against = -(feature.monotone or taken) * steps
    return Direction(
        feature.name, feature.label, feature.monotone, taken, steps.size, int((steps != 0).sum()),
        int((against > 0).sum()), max(0.0, float(against.max())),
    )  # fmt: skip


def dependence(model: PdModel, rows: pd.DataFrame, known: pd.DataFrame, names: Sequence[str]) -> tuple[Point, ...]:
    """Return the mean PD of up to 500 applications as features take five values that are usual in training.

    The values are the 5 %, 25 %, 50 %, 75 % and 95 % quantiles of a number, or the most frequent categories; what the
    applications have otherwise stays (J. Friedman, "Greedy function approximation", 2001, section 8.2).
    """
    some = rows.iloc[_spread(len(rows), _DEPENDENCE_ROWS)]
    found: list[Point] = []
    for feature in (each for each in model.schema.features if each.name in names):
        for value in _usual(feature, known[feature.name]) if len(some) else ():
            given = np.full(len(some), value, dtype=np.float64 if _is_number(feature) else object)
            shown = f"{value:.6g}" if _is_number(feature) else str(value)
            found.append(Point(feature.name, shown, float(model.predict(_with(some, feature.name, given)).mean())))
    return tuple(sorted(found, key=lambda point: list(names).index(point.feature)))


def fidelity(model: PdModel, rows: pd.DataFrame, scores: Scores, reasons: Reasons, approved: pd.DataFrame) -> Fidelity:
    """Give applications, in the features behind their first reason, what approved applicants have there.

    Up to 20 approved applicants, spread evenly, lend their values one after the other, those of one applicant together;
    the mean of the PDs is compared. Their median alone would not do: a number that is riskiest in the middle has its
    median there.

    Parameters
    ----------
    rows, scores, reasons
        Of the same applications; those without a reason are left out.
    approved
        Features of the approved, at least one.
    """
    behind = _behind_first(reasons)
    lenders = approved.iloc[_spread(len(approved), _LENDERS)]
    after = np.zeros(len(rows))
    for lender in range(len(lenders)):
        changed = rows.copy()
        for at, name in enumerate(model.schema.names):
            values = rows[name].to_numpy(copy=True)
            values[behind[:, at]] = lenders[name].iloc[lender]
            changed[name] = values
        after += model.predict(changed) / len(lenders)
    asked = reasons.any
    falls = (scores.pd - after)[asked]
    themes = reasons.order[asked, 0]
    by_theme = {name: _told(falls[themes == at]) for at, name in enumerate(reasons.themes) if (themes == at).any()}
    fell = int((falls > _ROUNDING).sum())
    return Fidelity(proportion(fell, len(falls), least=LEAST), median_estimate(falls), by_theme)


def stability(
    spec: Spec,
    model: PdModel,
    frames: Mapping[str, pd.DataFrame],
    asked: NDArray[np.bool_],
    policy: DecisionPolicy,
    *,
    resamples: int,
) -> Stability:
    """Train the same kind of model on bootstrap resamples of the training loans and compare reasons and decisions.

    Parameters
    ----------
    frames
        `train`, `calibrate` and `test`.
    asked
        Which of the test rows have their reasons compared.
    """
    train, matrix = frames["train"], model.schema.matrix(frames["test"])
    some = matrix[asked]
    predicted = model.predict(matrix)
    before = told.explain(model.score(some), some, model.schema, most=policy.reasons)
    same, shared, flipped, moved = [], [], [], []
    for number in range(resamples):
        drawn = np.random.default_rng([spec.training.seed, number]).integers(0, len(train), len(train))
        try:
            other = FITS[model.kind](spec, train.iloc[drawn].reset_index(drop=True), frames["calibrate"])
        except UserError as error:
            return _unstable(int(asked.sum()), f"training on a resample failed: {error.what}")
        after = told.explain(other.score(some), some, other.schema, most=policy.reasons)
        again = other.predict(matrix)
        same.append(_first_stays(before, after))
        shared.append(_overlap(before, after))
        flipped.append(_decided(policy, predicted) != _decided(policy, again))
        moved.append(np.abs(predicted - again))
    if asked.sum() < LEAST:
        return _unstable(int(asked.sum()), f"{int(asked.sum())} applications have reasons; needed are {LEAST}")
    first, overlap, flips = (mean_estimate(np.mean(each, axis=0)) for each in (same, shared, flipped))
    by_resample = tuple(float(each.mean()) for each in same)
    return Stability(first, overlap, flips, median_estimate(np.median(moved, axis=0)), by_resample)


def median_estimate(values: Floats) -> Estimate:
    """Return the median with the interval of its order statistics at a level of about 95 %, shape (n,)."""
    n = len(values)
    if n < LEAST:
        return Estimate.unknown(n, f"{n} applications; needed are {LEAST}")
    ordered = np.sort(values)
    half = 0.98 * np.sqrt(n)
    low, high = ordered[max(int(n / 2 - half), 0)], ordered[min(int(np.ceil(n / 2 + half)), n - 1)]
    return Estimate(float(np.median(ordered)), float(low), float(high), n)


def _told(falls: Floats) -> tuple[int, float | None, float | None]:
    if len(falls) < _TELLABLE:
        return len(falls), None, None
    return len(falls), float((falls > _ROUNDING).mean()), float(np.median(falls))


def _unstable(n: int, reason: str) -> Stability:
    unknown = Estimate.unknown(n, reason)
    return Stability(unknown, unknown, unknown, unknown, ())


def _behind_first(reasons: Reasons) -> NDArray[np.bool_]:
    """(n, f) Whether a feature stands behind the first reason: of its theme, and raising the risk."""
    of_theme = np.zeros((len(reasons.themes) + 1, len(reasons.names)), dtype=bool)
    for at, members in enumerate(reasons.members):
        of_theme[at, members] = True
    # The last row, which -1 picks, is that of no theme.
    return np.asarray(of_theme[reasons.order[:, 0]] & (reasons.contributions > 0))


def _first_stays(before: Reasons, after: Reasons) -> Floats:
    names = [np.array([*each.themes, ""], dtype=object)[each.order[:, 0]] for each in (before, after)]
    return np.asarray(names[0] == names[1], dtype=np.float64)


def _overlap(before: Reasons, after: Reasons) -> Floats:
    """(n,) Reasons told by both over the larger number told by either; 1 where neither tells any."""
    sets = []
    for each in (before, after):
        names = np.array([*each.themes, ""], dtype=object)[each.order]
        sets.append([set(row) - {""} for row in names.tolist()])
    return np.array([len(a & b) / max(len(a), len(b)) if a or b else 1.0 for a, b in zip(*sets, strict=True)])


def _decided(policy: DecisionPolicy, predicted: Floats) -> NDArray[np.int64]:
    return np.searchsorted([policy.accept_below, policy.reject_from], predicted, side="right")


def _is_number(feature: Feature) -> bool:
    return feature.kind == "numeric"


def _quantities(feature: Feature, values: Floats) -> Floats:
    quantities: Floats = values[np.isfinite(values) & ~equals_any(values, feature.special)]
    return quantities


def _grid(feature: Feature, values: Floats) -> Floats:
    plain = _quantities(feature, values)
    if not len(plain):
        return plain
    return np.unique(np.quantile(plain, np.linspace(0, 1, _GRID), method="inverted_cdf"))


def _usual(feature: Feature, values: "pd.Series[Any]") -> list[Any]:
    if _is_number(feature):
        plain = _quantities(feature, values.to_numpy(dtype=np.float64))
        at = (0.05, 0.25, 0.5, 0.75, 0.95)
        return np.unique(np.quantile(plain, at, method="inverted_cdf")).tolist() if len(plain) else []
    counts = values.value_counts()
    return sorted(counts.index, key=lambda level: (-counts[level], level))[:_POINTS]


def _with(rows: pd.DataFrame, name: str, values: "NDArray[Any]") -> pd.DataFrame:
    return rows.reset_index(drop=True).assign(**{name: values})


def _spread(n: int, most: int) -> NDArray[np.int64]:
    return evenly(np.arange(n, dtype=np.float64), most).astype(np.int64)
