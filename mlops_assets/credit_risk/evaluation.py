"""Two candidates on out-of-time loans: which of them is proposed, and everything that is known of it.

What belongs here: scoring the frames of a training set with both models and the champion, choosing, and measuring. What
does not: the metrics themselves (`metrics.py`), and the gates that they are held against (`judging.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk import metrics
from mlops_assets.credit_risk.binning import fit_bins
from mlops_assets.credit_risk.metrics import Estimate, Floats, Minimum, Terms
from mlops_assets.credit_risk.models import PdModel
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.schema import Feature
from mlops_assets.credit_risk.spec import Scorecard, Spec

_GRADES = 8
_FOLDS = 5
_FINE = Scorecard.model_validate({"max_bins": 20, "minimum_share": 0.01})
"""Finer bins than a scorecard's: what a feature gives away may sit in a few loans."""


@dataclass(frozen=True)
class Contestant:
    """A model and what it says of the frames it is judged on."""

    name: str
    model: PdModel
    train: Floats
    calibrate: Floats
    test: Floats
    live: Floats | None = None

    @classmethod
    def of(cls, name: str, model: PdModel, frames: Mapping[str, pd.DataFrame]) -> "Contestant":
        """Score the frames `train`, `calibrate`, `test` and, where there is one, `live`."""
        scored = {part: model.predict(model.schema.matrix(frame)) for part, frame in frames.items()}
        return cls(name, model, scored["train"], scored["calibrate"], scored["test"], scored.get("live"))


@dataclass(frozen=True)
class Choice:
    """Which candidate is proposed, and by how much the challenger wins or loses."""

    chosen: str
    difference: Estimate
    margin: float
    reason: str


@dataclass(frozen=True)
class Against:
    """The candidate held against the champion on the same loans; `brier` is its relative rise."""

    auc: Estimate
    brier: Estimate
    stability: Estimate
    champion_stability: Estimate
    swap: metrics.Swap
    segments: Mapping[str, Mapping[str, Estimate]]
    shadow: metrics.ScorePsi | None


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of a candidate out of time; `against` only where there is a champion."""

    candidate: str
    choice: Choice
    rows: Mapping[str, int]
    bads: Mapping[str, int]
    quality: Mapping[str, Estimate]
    contestants: Mapping[str, Mapping[str, Estimate]]
    grades: metrics.GradeReport
    stability: metrics.GiniStability
    profit: metrics.ProfitCurve
    calibration: pd.DataFrame
    calibration_noise: float
    segments: Mapping[str, pd.DataFrame]
    leakage: Mapping[str, float]
    overfit: float
    train_psi: metrics.ScorePsi
    against: Against | None
    remarks: Sequence[str] = field(default_factory=tuple)


def choose(spec: Spec, y: Floats, scorecard: Floats, gbm: Floats) -> Choice:
    """Propose the scorecard unless the challenger's AUC is higher by the spec's margin, beyond chance.

    Parameters
    ----------
    y, scorecard, gbm
        (n,) Outcomes (1 bad) of the out-of-time loans and the two models' probabilities.
    """
    found, margin = metrics.auc_difference(y, gbm, scorecard).difference, spec.gbm.margin
    if found.value is None or found.low is None:
        return Choice("scorecard", found, margin, f"the scorecard: the two cannot be compared ({found.reason})")
    won = found.value >= margin and found.low > 0
    told = f"AUC of the boosted model {found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}); margin {margin:g}"
    simple = "the scorecard: the complex model has to win by the margin, beyond chance"
    return Choice("gbm" if won else "scorecard", found, margin, f"{'the boosted model' if won else simple}; {told}")


def measure(
    spec: Spec,
    frames: Mapping[str, pd.DataFrame],
    scorecard: PdModel,
    gbm: PdModel,
    champion: PdModel | None,
    policy: DecisionPolicy,
) -> Measured:
    """Choose between the candidates and measure the chosen one on the loans of the frame `test`.

    Parameters
    ----------
    frames
        `train`, `calibrate` and `test` as `labels.training_tables` makes them, and `live`: recent applications,
        without outcomes, on which candidate and champion run side by side.
    champion
        The model that serves, or None.
    """
    test = frames["test"]
    y = test["bad"].to_numpy(dtype=np.float64)
    both = {name: Contestant.of(name, model, frames) for name, model in (("scorecard", scorecard), ("gbm", gbm))}
    choice = choose(spec, y, both["scorecard"].test, both["gbm"].test)
    candidate = both[choice.chosen]
    serving = None if champion is None else Contestant.of("champion", champion, frames)
    rows = {**both, **({"champion": serving} if serving else {})}
    return Measured(
        candidate=choice.chosen,
        choice=choice,
        rows={part: len(frame) for part, frame in frames.items()},
        bads={part: int(frame["bad"].sum()) for part, frame in frames.items() if "bad" in frame.columns},
        quality=_quality(y, candidate.test),
        contestants={name: _headline(y, each.test) for name, each in rows.items()},
        grades=metrics.grade_report(y, candidate.test, metrics.grade_edges(candidate.calibrate, _GRADES)),
        stability=_stability(test, y, candidate.test),
        profit=metrics.profit_curve(
            y, candidate.test, margin=spec.policy.margin, loss_given_default=spec.policy.loss_given_default
        ),
        calibration=metrics.calibration_table(y, candidate.test),
        calibration_noise=metrics.ece_noise(candidate.test),
        segments=_segments(spec, test, y, candidate.test),
        leakage=_leakage(candidate.model, frames["train"]),
        overfit=_overfit(frames["train"], candidate.train, y, candidate.test),
        train_psi=metrics.score_psi(candidate.train, candidate.test),
        against=None if serving is None else _against(spec, test, y, candidate, serving, policy),
    )


def _quality(y: Floats, predicted: Floats) -> dict[str, Estimate]:
    line = metrics.calibration_line(y, predicted)
    return {
        "auc": metrics.auc(y, predicted),
        "gini": metrics.gini(y, predicted),
        "ks": metrics.ks(y, predicted),
        "brier": metrics.brier(y, predicted),
        "log_loss": metrics.log_loss(y, predicted),
        "calibration_error": metrics.ece(y, predicted),
        "calibration_slope": line.slope,
        "calibration_in_the_large": line.in_the_large,
    }


def _headline(y: Floats, predicted: Floats) -> dict[str, Estimate]:
    return {
        "auc": metrics.auc(y, predicted),
        "ks": metrics.ks(y, predicted),
        "brier": metrics.brier(y, predicted),
        "calibration_error": metrics.ece(y, predicted),
    }


def months_of(frame: pd.DataFrame) -> "pd.Series[Any]":
    """Return the month of each application as text; one month where they carry no time."""
    if "applied_at" not in frame.columns or frame["applied_at"].isna().all():
        return pd.Series("untimed", index=frame.index)
    return pd.to_datetime(frame["applied_at"], utc=True).dt.strftime("%Y-%m")


def _stability(test: pd.DataFrame, y: Floats, predicted: Floats) -> metrics.GiniStability:
    return metrics.gini_stability(y, predicted, months_of(test).tolist(), weeks_per_period=365.25 / 12 / 7)


def _segments(spec: Spec, test: pd.DataFrame, y: Floats, predicted: Floats) -> dict[str, pd.DataFrame]:
    return {name: metrics.segment_table(y, predicted, test[name]) for name in spec.segments}


def _leakage(model: PdModel, train: pd.DataFrame) -> dict[str, float]:
    """AUC of each feature alone on the training loans: a feature that knows the outcome gives itself away.

    Each loan is scored by the bad rate that others, in its bin of the feature, have. Missing values, special codes and
    rare categories are bins of their own: that a column is filled may say as much as what it is filled with.
    """
    y = train["bad"].to_numpy(dtype=np.int64)
    matrix = model.schema.matrix(train)
    found: dict[str, float] = {}
    for feature in model.schema.features:
        # The direction that the spec promises must not hide a feature that knows the outcome the other way round.
        area = metrics.auc_value(y.astype(np.float64), _alone(replace(feature, monotone=0), matrix[feature.name], y))
        found[feature.name] = max(area, 1.0 - area)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _alone(feature: Feature, values: "pd.Series[Any]", bad: NDArray[np.int64]) -> Floats:
    """Return the bad rate of each loan's bin among the loans of the other folds."""
    known, fold = values.to_numpy(), np.arange(len(bad)) % _FOLDS
    score = np.full(len(bad), bad.mean())
    for each in range(_FOLDS):
        inside = fold == each
        learned = bad[~inside]
        if not 0 < learned.sum() < len(learned):
            continue
        bins = fit_bins(feature, known[~inside], learned, _FINE)
        of_others, of_these = bins.assign(known[~inside])[0], bins.assign(known[inside])[0]
        rows = np.bincount(of_others, minlength=len(bins.bins))
        bads = np.bincount(of_others, weights=learned, minlength=len(bins.bins))
        # One loan of the average rate in each bin: an empty bin says nothing.
        score[inside] = ((bads + learned.mean()) / (rows + 1.0))[of_these]
    return score


def _overfit(train: pd.DataFrame, fitted: Floats, y: Floats, predicted: Floats) -> float:
    return metrics.auc_value(train["bad"].to_numpy(dtype=np.float64), fitted) - metrics.auc_value(y, predicted)


def _against(
    spec: Spec, test: pd.DataFrame, y: Floats, candidate: Contestant, champion: Contestant, policy: DecisionPolicy
) -> Against:
    few = spec.gates.minimum_group_outcomes
    terms = Terms(Minimum(spec.gates.minimum_group, few, few))
    shadow = None
    if candidate.live is not None and champion.live is not None:
        shadow = metrics.score_psi(champion.live, candidate.live)
    months = months_of(test).tolist()
    return Against(
        auc=metrics.auc_difference(y, candidate.test, champion.test).difference,
        brier=metrics.paired_difference("brier", y, candidate.test, champion.test, relative=True),
        stability=metrics.gini_stability_difference(
            y, candidate.test, champion.test, months, weeks_per_period=365.25 / 12 / 7
        ),
        champion_stability=_stability(test, y, champion.test).score,
        swap=metrics.swap_set(candidate.test < policy.accept_below, champion.test < policy.accept_below, y),
        segments={
            name: _segment_differences(test[name], y, candidate.test, champion.test, terms) for name in spec.segments
        },
        shadow=shadow,
    )


def _segment_differences(
    values: "pd.Series[Any]", y: Floats, candidate: Floats, champion: Floats, terms: Terms
) -> dict[str, Estimate]:
    labels = metrics.segment_labels(values)
    return {
        str(label): metrics.auc_difference(y[rows], candidate[rows], champion[rows], terms=terms).difference
        for label in sorted(labels.dropna().unique(), key=str)
        if (rows := (labels == label).to_numpy()).any()
    }
