"""Looking at the data instead of the model: where it is worst, which labels look wrong, what mending would do.

What belongs here: the three questions as they are asked of a training set. What does not: how they are answered
(`_weak_slices.py`, `_label_errors.py`, `_slice_experiment.py`).

Nothing here changes a training set or a model: each answer says where to look, and a person looks.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from mlops_assets.credit_risk import _label_errors, _slice_experiment, _weak_slices
from mlops_assets.credit_risk._label_errors import Fit, LabelErrors
from mlops_assets.credit_risk._reason_probes import FITS
from mlops_assets.credit_risk._slice_experiment import Change, Effect, Experiment
from mlops_assets.credit_risk._weak_slices import WeakSlice, WeakSlices
from mlops_assets.credit_risk.metrics import Minimum
from mlops_assets.credit_risk.models import PdModel
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec

__all__ = [
    "Change",
    "Effect",
    "Experiment",
    "LabelErrors",
    "WeakSlice",
    "WeakSlices",
    "likely_label_errors",
    "slice_experiment",
    "weak_slices",
]

_SLICES = 3


def weak_slices(spec: Spec, frames: Mapping[str, pd.DataFrame], model: PdModel) -> WeakSlices:
    """Search the loans of the frame `test` for slices on which a model is worse than on the rest, beyond chance."""
    test = frames["test"]
    return _weak_slices.weak_slices(
        test, test["bad"], model.predict(model.schema.matrix(test)), model.schema, minimum=_minimum(spec)
    )


def likely_label_errors(
    spec: Spec, frames: Mapping[str, pd.DataFrame], kind: str = "scorecard", *, folds: int = 5
) -> LabelErrors:
    """Search the loans of the frames `train` and `calibrate` for labels that look wrong.

    Parameters
    ----------
    kind
        Of the models that judge labels: ``"scorecard"`` or ``"gbm"``.
    """
    return _label_errors.likely_label_errors(
        frames["train"], frames["calibrate"], FeatureSchema.of(spec), _fit(spec, kind), folds=folds,
        seed=spec.training.seed,
    )  # fmt: skip


def slice_experiment(
    spec: Spec, frames: Mapping[str, pd.DataFrame], kind: str = "scorecard", changes: Sequence[Change] | None = None
) -> Experiment:
    """Fit a model with fixed settings before and after changes to `train` and `calibrate`, and compare on `test`.

    Parameters
    ----------
    changes
        What to try. By default: relabel the most suspicious labels, leave them out, and leave out each of the three
        weakest slices, all found without a look at `test`.
    """
    schema = FeatureSchema.of(spec)
    if changes is None:
        changes = _suggested(spec, frames, likely_label_errors(spec, frames, kind))
    return _slice_experiment.compare(kind, frames, schema, _fit(spec, kind), changes, seed=spec.training.seed)


def _suggested(spec: Spec, frames: Mapping[str, pd.DataFrame], errors: LabelErrors) -> list[Change]:
    pool = pd.concat([frames["train"], frames["calibrate"]], ignore_index=True)
    ids = pool["application_id"].astype(str).to_numpy()
    # Probabilities of models that did not see the loans: the slices are those on which such a model is weak.
    predicted = errors.predicted.loc[ids.tolist()].to_numpy()
    weak = _weak_slices.weak_slices(pool, pool["bad"], predicted, FeatureSchema.of(spec), minimum=_minimum(spec))
    changes = [
        Change(f"relabel {len(errors.ids):,} doubtful labels", errors.ids, relabel=True),
        Change(f"leave out {len(errors.ids):,} doubtful labels", errors.ids, relabel=False),
    ]
    changes = changes if errors.ids else []
    return changes + [
        Change(f"leave out {each.name}", tuple(ids[each.rows].tolist()), relabel=False)
        for each in weak.slices[:_SLICES]
    ]


def _fit(spec: Spec, kind: str) -> Fit:
    return partial(FITS[kind], spec)


def _minimum(spec: Spec) -> Minimum:
    few = spec.gates.minimum_group_outcomes
    return Minimum(spec.gates.minimum_group, few, few)
