"""From a training set to a registered model version.

What belongs here: what is refused, what is learned from which slice, and what a version's folder and record hold. What
does not: cutting the training set (`labels.py`), the mathematics (`scorecard.py`, `gbm.py`, `outliers.py`), and the
verdict on a version (`judging.py`).

The slices lie in time order: models learn from `train`, are calibrated on `calibrate`, and never see `test`. The hash
of a version covers what it decides by: the model, the outlier model and the reason texts.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk import gbm, metrics, outliers, scorecard
from mlops_assets.credit_risk.gbm import Gbm
from mlops_assets.credit_risk.models import PdModel, model_name
from mlops_assets.credit_risk.outliers import OutlierModel
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.reasons import ReasonTable
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.scorecard import Scorecard
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_of, write_atomic
from mlops_assets.foundation.registry import ModelVersion, Registry
from mlops_assets.foundation.snapshots import Snapshot

Slice = tuple[pd.DataFrame, NDArray[np.int64]]
"""Features as `FeatureSchema.matrix` makes them, and outcomes (n,), 1 for bad."""

REASONS_FILE, POLICY_FILE = "reasons.json", "policy.json"


def train_scorecard(spec: Spec, training_set: Snapshot, registry: Registry, tags: Mapping[str, str]) -> ModelVersion:
    """Learn a scorecard and register it.

    Parameters
    ----------
    training_set
        Tables `train` and `calibrate`: application_id, applied_at, the features, and bad (0 or 1); its metadata say
        as of which period it was cut (`as_of`).
    tags
        Who trained (`trained_by`, whom no approval may come from), run, code version and the like.

    Raises
    ------
    UserError
        There are too few good or bad loans, or nothing can be learned from them.
    """
    return _train(spec, training_set, registry, tags, fit_scorecard, dict(spec.scorecard.model_dump()))


def train_gbm(spec: Spec, training_set: Snapshot, registry: Registry, tags: Mapping[str, str]) -> ModelVersion:
    """Learn a gradient-boosted model and register it; parameters and errors as for `train_scorecard`."""
    return _train(spec, training_set, registry, tags, fit_gbm, dict(spec.gbm.model_dump()))


def fit_scorecard(spec: Spec, train: pd.DataFrame, calibrate: pd.DataFrame) -> Scorecard:
    """Learn a scorecard from frames with the features and bad (0 or 1); errors as for `train_scorecard`."""
    return scorecard.fit(FeatureSchema.of(spec), spec.scorecard, *_slices(spec, train, calibrate))


def fit_gbm(spec: Spec, train: pd.DataFrame, calibrate: pd.DataFrame) -> Gbm:
    """Learn a gradient-boosted model from frames with the features and bad; errors as for `train_scorecard`."""
    slices = _slices(spec, train, calibrate)
    return gbm.fit(FeatureSchema.of(spec), spec.gbm, *slices, seed=spec.training.seed)


def fit_outliers(spec: Spec, train: pd.DataFrame) -> OutlierModel:
    """Learn what is usual from a frame with the features."""
    schema = FeatureSchema.of(spec)
    return outliers.fit(schema, spec.outliers, schema.matrix(train), seed=spec.training.seed)


def _train(
    spec: Spec,
    training_set: Snapshot,
    registry: Registry,
    tags: Mapping[str, str],
    fit: Callable[[Spec, pd.DataFrame, pd.DataFrame], PdModel],
    settings: Mapping[str, Any],
) -> ModelVersion:
    if not tags.get("trained_by"):
        raise UserError(
            "nobody is named as the trainer",
            where="tags of the model version",
            remedy="give the tag trained_by: whoever approves the version must be somebody else.",
        )
    train, calibrate = training_set.read("train"), training_set.read("calibrate")
    as_of = str(training_set.metadata["as_of"])
    model = fit(spec, train, calibrate)
    params = {
        "kind": model.kind,
        "schema_version": model.schema.version,
        "seed": spec.training.seed,
        "rows": {"train": len(train), "calibrate": len(calibrate)},
        "settings": dict(settings),
        "outliers": spec.outliers.model_dump(),
    }
    measured = {f"{name}_auc": _auc(model, frame) for name, frame in (("train", train), ("calibrate", calibrate))}
    with tempfile.TemporaryDirectory(prefix="pd-model-") as made:
        folder = Path(made)
        _save(spec, model, train, folder)
        return registry.register(
            model_name(spec),
            folder,
            params=params,
            metrics=measured,
            parts={},
            tags={
                **tags,
                "training_set": training_set.sha256,
                "trained_until": _last_time(train, calibrate) or as_of,
                "as_of": as_of,
            },
        )


def _save(spec: Spec, model: PdModel, train: pd.DataFrame, folder: Path) -> None:
    """Write all that a version consists of: model, what is usual, sentences, and the policy it was judged under.

    A changed policy makes another version, which has to be judged and approved like any other.
    """
    model.save(folder)
    fit_outliers(spec, train).save(folder)
    table = ReasonTable.of(spec)
    write_atomic(folder / REASONS_FILE, canonical_json({"version": table.version, "themes": table.to_dict()}))
    policy = DecisionPolicy.of(spec)
    write_atomic(folder / POLICY_FILE, canonical_json({**policy.to_dict(), "version": policy.version}))


def retrained_files(spec: Spec, training_set: Snapshot, kind: str) -> dict[str, str]:
    """Train a kind of model once more, register nothing, and return its files with their SHA-256."""
    fits: Mapping[str, Callable[[Spec, pd.DataFrame, pd.DataFrame], PdModel]]
    fits = {"scorecard": fit_scorecard, "gbm": fit_gbm}
    train, calibrate = training_set.read("train"), training_set.read("calibrate")
    with tempfile.TemporaryDirectory(prefix="pd-model-") as made:
        folder = Path(made)
        _save(spec, fits[kind](spec, train, calibrate), train, folder)
        return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def _slices(spec: Spec, train: pd.DataFrame, calibrate: pd.DataFrame) -> tuple[Slice, Slice]:
    schema, needed = FeatureSchema.of(spec), spec.training
    found = []
    rest = 1.0 - needed.calibrate_share - needed.test_share
    for name, frame, share in (("train", train, rest), ("calibrate", calibrate, needed.calibrate_share)):
        bad = _outcomes(frame, name)
        for what, count, minimum in (
            ("good", int((bad == 0).sum()), needed.minimum_goods),
            ("bad", int(bad.sum()), needed.minimum_bads),
        ):
            # By chance a slice may have less than its part of the least numbers; with less than half it is another set.
            least = max(2, int(minimum * share / 2))
            if count < least:
                raise UserError(
                    f"there are {count} {what} loans, and {least} are needed",
                    where=f"slice {name!r} of the training set",
                    remedy=f"wait for more outcomes to mature, or lower training.minimum_{what}s.",
                )
        found.append((schema.matrix(frame), bad))
    return found[0], found[1]


def _last_time(*frames: pd.DataFrame) -> str | None:
    """Return when the last application was made, ISO 8601 in UTC; None where they carry no time."""
    last = pd.to_datetime(pd.concat([frame["applied_at"] for frame in frames]), utc=True).max()
    return None if pd.isna(last) else str(last.isoformat())


def _outcomes(frame: pd.DataFrame, name: str) -> NDArray[np.int64]:
    bad = frame["bad"].to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~np.isin(bad, (0.0, 1.0))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{int(wrong.sum())} loans are neither good (0) nor bad (1), such as {bad[at]:g} in row {at}",
            where=f"slice {name!r} of the training set, column 'bad'",
            remedy="make the training set again from matured labels.",
        )
    return bad.astype(np.int64)


def _auc(model: PdModel, frame: pd.DataFrame) -> float:
    # How far training is from chance and from the truth; whether there are enough rows to judge by is up to evaluation.
    few = metrics.Terms(metrics.Minimum(2, 2, 2))
    return metrics.auc(
        frame["bad"].to_numpy(dtype=np.int64), model.predict(model.schema.matrix(frame)), terms=few
    ).number()[0]
