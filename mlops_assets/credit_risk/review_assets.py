"""Looking at the data instead of the model: where it is worst, which labels look wrong, what mending would do.

What belongs here: keys, dependencies, owners, descriptions, metadata. What does not: the searches (`data_centric.py`).
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from mlops_assets.credit_risk import data_centric, judgement, pipeline
from mlops_assets.credit_risk.models import load
from mlops_assets.credit_risk.names import MODEL_TEAM, Names
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation import metadata as md
from mlops_assets.foundation.resources import ModelRegistry
from mlops_assets.foundation.snapshots import Snapshot


def build_review_assets(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    """Return the data-centric assets; they run when they are asked for."""
    common: dict[str, Any] = {
        **names.by_period,
        "ins": names.inputs("training_set"),
        "owners": MODEL_TEAM,
        "group_name": names.group("review"),
        "kinds": {"python"},
    }

    @dg.asset(key=names.key("weak_slices"), deps=[names.key("champion")], **common)
    def weak_slices(
        context: dg.AssetExecutionContext, training_set: Snapshot, models: ModelRegistry
    ) -> dg.MaterializeResult[None]:
        """Where the champion is worst on out-of-time loans: single values and pairs of them, beyond chance."""
        registry = models.open()
        model = load(registry.fetch(pipeline.serving(spec, context.instance, registry)))
        found = data_centric.weak_slices(spec, judgement.frames_of(training_set), model)
        return dg.MaterializeResult(metadata={"slices": md.table(found.table()), **found.facts()})

    @dg.asset(key=names.key("likely_label_errors"), **common)
    def likely_label_errors(training_set: Snapshot) -> dg.MaterializeResult[None]:
        """Loans whose outcome contradicts what all others say of them: how many, and where they gather."""
        found = data_centric.likely_label_errors(spec, judgement.frames_of(training_set))
        return dg.MaterializeResult(metadata={"by_slice": md.table(found.table()), **found.facts()})

    @dg.asset(key=names.key("slice_experiment"), **common)
    def slice_experiment(training_set: Snapshot) -> dg.MaterializeResult[None]:
        """What mending or dropping loans does to a model that is else the same, on untouched out-of-time loans."""
        found = data_centric.slice_experiment(spec, judgement.frames_of(training_set))
        picture = md.picture(found.picture(), "Change in AUC by what is done to the training loans")
        return dg.MaterializeResult(metadata={"picture": picture, "effects": md.table(found.table()), **found.facts()})

    return [weak_slices, likely_label_errors, slice_experiment]
