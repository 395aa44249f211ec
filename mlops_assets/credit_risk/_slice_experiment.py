"""What mending or leaving out loans does to a model that is else the same.

What belongs here: changed training loans, models fitted on them with unchanged settings, and the difference they make
on loans that nothing was done to. What does not: finding the loans (`_label_errors.py`, `_weak_slices.py`).

Every change has a control: the same done to as many loans chosen at random, several times. Intervals of a difference
count which loans are tested, but a model that is fitted again differs a little whatever was changed; a change that is
no better than the best of its controls has not shown that these were the wrong loans.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk import metrics
from mlops_assets.credit_risk._label_errors import Fit
from mlops_assets.credit_risk.metrics import Estimate, Floats
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.foundation import plots
from mlops_assets.foundation.errors import UserError

Bools = NDArray[np.bool_]

_EPS = float(np.finfo(np.float64).eps)
METRICS = ("auc", "brier", "log_loss")
"""What is compared; of the first more is better, of the other two less."""


@dataclass(frozen=True)
class Change:
    """Something that is done to loans before a model is fitted.

    Parameters
    ----------
    name
        In words.
    ids
        Application ids of the loans that it is done to.
    relabel
        Whether their labels are turned round; else they are left out.
    """

    name: str
    ids: tuple[str, ...]
    relabel: bool


@dataclass(frozen=True)
class Effect:
    """What a change did on the untouched loans.

    Parameters
    ----------
    loans
        Loans that something was done to.
    differences
        Metric of the model after the change minus that of the model before, on the same loans, by name.
    controls
        The same differences for each control: plain numbers.
    reason
        Why there is none.
    """

    name: str
    loans: int
    differences: Mapping[str, Estimate]
    controls: Mapping[str, tuple[float, ...]]
    reason: str = ""

    def helps(self, metric: str) -> bool:
        """Whether the metric got better, beyond chance and by more than under any control."""
        found, sign = self.differences.get(metric), 1.0 if metric == "auc" else -1.0
        if found is None or found.value is None or found.low is None or found.high is None:
            return False
        beyond = found.low > 0 if metric == "auc" else found.high < 0
        return beyond and all(sign * found.value > sign * other for other in self.controls.get(metric, ()))


@dataclass(frozen=True)
class Experiment:
    """The effects of changes, each with its controls.

    Parameters
    ----------
    kind
        Of the model, whose settings are those of the spec throughout.
    tested
        Untouched loans.
    before
        Metrics of the model without any change.
    """

    kind: str
    tested: int
    before: Mapping[str, Estimate]
    effects: tuple[Effect, ...]

    def table(self) -> pd.DataFrame:
        """Return one row a change, at most 20: differences with intervals, and from lowest to highest control."""
        rows = []
        for effect in self.effects[:20]:
            row: dict[str, object] = {"change": effect.name, "loans": effect.loans}
            for metric in METRICS:
                found = effect.differences.get(metric) or Estimate.unknown(0, effect.reason or "not fitted")
                others = effect.controls.get(metric) or (float("nan"),)
                row |= dict(zip(_columns(metric), (*found.number(), min(others), max(others)), strict=True))
            better = ", ".join(metric for metric in METRICS if effect.helps(metric))
            rows.append({**row, "better": better, "reason": effect.reason})
        columns = ["change", "loans", *(name for metric in METRICS for name in _columns(metric)), "better", "reason"]
        return pd.DataFrame(rows, columns=columns)

    def picture(self) -> bytes:
        """Return the changes in AUC and those of their controls, with a line at no change; a PNG of at most 30 kB."""
        drawn: dict[str, tuple[float, float, float]] = {}
        for effect in self.effects:
            found, others = effect.differences.get("auc"), effect.controls.get("auc")
            if found is not None and found.assessed:
                drawn[effect.name] = found.number()
            if others:
                drawn[f"as many at random ({len(drawn) // 2 + 1})"] = (float(np.mean(others)), min(others), max(others))
        return plots.intervals(drawn, title="What a change does to AUC", axis="AUC after less before", bound=0.0)

    def facts(self) -> dict[str, float | int | str]:
        """Return the numbers of the experiment, for a page."""
        shown: dict[str, float | int | str] = {"model": self.kind, "tested": self.tested}
        shown |= {
            f"{name}_before": round(each.value, 6) for name, each in self.before.items() if each.value is not None
        }
        shown["changes"] = len(self.effects)
        shown["changes_that_help"] = sum(any(map(effect.helps, METRICS)) for effect in self.effects)
        return shown


def _columns(metric: str) -> list[str]:
    return [f"{metric}{end}" for end in ("", "_low", "_high", "_random_low", "_random_high")]


def compare(
    kind: str,
    frames: Mapping[str, pd.DataFrame],
    schema: FeatureSchema,
    fit: Fit,
    changes: Sequence[Change],
    *,
    controls: int = 5,
    seed: int = 0,
) -> Experiment:
    """Fit a model before and after each change and its controls, and compare them on the frame `test`.

    Parameters
    ----------
    frames
        `train` and `calibrate`, to which something is done, and `test`, to which nothing is.
    fit
        Fits the model, always with the same settings.
    controls
        How many times the same is done to loans chosen at random.
    """
    train, calibrate, test = frames["train"], frames["calibrate"], frames["test"]
    y, matrix = test["bad"].to_numpy(dtype=np.float64), schema.matrix(test)
    predicted = fit(train, calibrate).predict(matrix)
    before = {"auc": metrics.auc(y, predicted), "brier": metrics.brier(y, predicted)}
    before["log_loss"] = metrics.log_loss(y, predicted)

    def after(change: Change) -> Floats:
        return fit(_changed(train, change), _changed(calibrate, change)).predict(matrix)

    effects = []
    for number, change in enumerate(changes):
        try:
            found = _differences(y, after(change), predicted)
        except UserError as error:
            effects.append(Effect(change.name, len(change.ids), {}, {}, error.what))
            continue
        drawn = [_control(change, train, calibrate, [seed, number, draw]) for draw in range(controls)]
        by_draw = [_values(y, after(each), predicted) for each in drawn]
        others = {metric: tuple(each[metric] for each in by_draw) for metric in METRICS if by_draw}
        effects.append(Effect(change.name, len(change.ids), found, others))
    return Experiment(kind, len(test), before, tuple(effects))


def _differences(y: Floats, after: Floats, before: Floats) -> dict[str, Estimate]:
    return {
        "auc": metrics.auc_difference(y, after, before).difference,
        "brier": metrics.paired_difference("brier", y, after, before),
        "log_loss": metrics.paired_difference("log_loss", y, after, before),
    }


def _values(y: Floats, after: Floats, before: Floats) -> dict[str, float]:
    """Return the differences alone: of a control nothing is concluded by itself."""
    inside = [np.clip(each, _EPS, 1 - _EPS) for each in (after, before)]
    losses = [-np.where(y == 1, np.log(each), np.log1p(-each)).mean() for each in inside]
    return {
        "auc": metrics.auc_value(y, after) - metrics.auc_value(y, before),
        "brier": float(((after - y) ** 2).mean() - ((before - y) ** 2).mean()),
        "log_loss": float(losses[0] - losses[1]),
    }


def _changed(frame: pd.DataFrame, change: Change) -> pd.DataFrame:
    inside = frame["application_id"].astype(str).isin(change.ids).to_numpy()
    if not change.relabel:
        return frame[~inside]
    bad = frame["bad"].to_numpy(dtype=np.int64)
    return frame.assign(bad=np.where(inside, 1 - bad, bad))


def _control(change: Change, train: pd.DataFrame, calibrate: pd.DataFrame, seed: Sequence[int]) -> Change:
    """Return the same done to as many other loans, at random; of either label as many where labels are turned."""
    rng = np.random.default_rng(seed)
    pool = pd.concat([train[["application_id", "bad"]], calibrate[["application_id", "bad"]]], ignore_index=True)
    ids, bad = pool["application_id"].astype(str).to_numpy(), pool["bad"].to_numpy(dtype=np.int64)
    inside = np.isin(ids, change.ids)
    chosen: list[str] = []
    for rows, others in _strata(bad, inside, apart=change.relabel):
        chosen += ids[rng.choice(others, min(rows, len(others)), replace=False)].tolist()
    return Change("at random", tuple(chosen), change.relabel)


def _strata(bad: NDArray[np.int64], inside: Bools, *, apart: bool) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield how many loans to choose, and those to choose from: good and bad apart, or all."""
    for part in (bad == 0, bad == 1) if apart else (np.ones(len(bad), dtype=bool),):
        yield int((part & inside).sum()), np.flatnonzero(part & ~inside)
