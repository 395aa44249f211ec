"""The steps between assets and models: which version serves, and all that decides beside it.

What belongs here: functions from versions and snapshots to what assets and the service work with. What does not: any
statistics, and Dagster beyond the event log that holds the champion's history.
"""

import getpass
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.credit_risk import models
from mlops_assets.credit_risk.deciding import Decider
from mlops_assets.credit_risk.models import model_name
from mlops_assets.credit_risk.outliers import OutlierModel
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.reasons import ReasonTable
from mlops_assets.credit_risk.spec import Spec, parse_spec
from mlops_assets.credit_risk.training import REASONS_FILE
from mlops_assets.foundation import provenance
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ChampionHistory, ModelVersion, Registry

if TYPE_CHECKING:
    import dagster as dg

PERSON_TAG = "mlops_assets/person"
REQUESTED_TAG = "mlops_assets/requested_by"


def history_of(spec: Spec, instance: "dg.DagsterInstance", registry: Registry) -> ChampionHistory:
    """Return the champion's history of a system."""
    required = "approval" in {gate.name for gate in spec.risk.required_gates()}
    return ChampionHistory(instance, spec.name, registry, model_name(spec), approval_required=required)


def current_champion(spec: Spec, instance: "dg.DagsterInstance", registry: Registry) -> ModelVersion | None:
    """Return the version that serves now, or None while there is none."""
    history = history_of(spec, instance, registry)
    return history.champion() if history.current() is not None else None


def serving(spec: Spec, instance: "dg.DagsterInstance", registry: Registry) -> ModelVersion:
    """Return the version that serves now.

    Raises
    ------
    UserError
        There is none yet; says how one comes to be.
    """
    champion = current_champion(spec, instance, registry)
    if champion is None:
        raise UserError(
            "there is no champion yet",
            where=f"{spec.name}/champion",
            remedy=f"run {spec.name}_train, then approve its proposal: mlops-assets approve {spec.name} --version V …",
        )
    return champion


def last_attempt(spec: Spec, registry: Registry) -> str | None:
    """Return the period as of which a model was last trained, whatever came of it; None before the first."""
    latest = registry.latest(model_name(spec))
    return None if latest is None else latest.tags["period"]


def load_decider(
    spec: Spec, registry: Registry, version: ModelVersion, policy: Mapping[str, Any] | None = None
) -> Decider:
    """Return a version with everything that decides beside it, every file checked against its hash.

    Parameters
    ----------
    policy
        The policy of a past decision; by default the spec's.
    """
    folder = registry.fetch(version)
    return Decider(
        spec,
        models.load(folder),
        OutlierModel.load(folder),
        DecisionPolicy.of(spec) if policy is None else DecisionPolicy.from_dict(policy),
        reason_table(folder),
    )


def reason_table(folder: Path) -> ReasonTable:
    """Return the sentences that were stored with a version."""
    path = folder / REASONS_FILE
    try:
        return ReasonTable(json.loads(path.read_text(encoding="utf-8"))["themes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("holds no table of reasons", where=str(path), remedy="fetch the version again.") from error


def decision_context(spec: Spec, decider: Decider, version: ModelVersion, run_id: str) -> dict[str, Any]:
    """Return what all decisions of one run share: enough to make each of them again."""
    return {
        "system": spec.name,
        "model": {
            "name": version.model,
            "version": version.version,
            "sha256": version.sha256,
            "kind": decider.model.kind,
            "files": dict(version.files),
            "training_set": version.tags.get("training_set"),
        },
        "feature_version": decider.model.schema.version,
        "baseline": decider.model.baseline,
        "policy": {**decider.policy.to_dict(), "version": decider.policy.version},
        "reasons_version": decider.table.version,
        "contract": contract_settings(spec),
        "run_id": run_id,
        "made_by": provenance.facts("numpy", "pandas", "lightgbm"),
    }


def contract_settings(spec: Spec) -> dict[str, Any]:
    """Return the settings that decide which rows are quarantined, without the protected attributes' names."""
    included: Any = {
        "name": True,
        "data": {"timed", "numbered", "code_list_version"},
        "numeric": True,
        "categorical": True,
        "ratios": True,
        "themes": True,
    }
    settings: dict[str, Any] = json.loads(spec.model_dump_json(include=included))
    return settings


def spec_of(settings: Mapping[str, Any]) -> Spec:
    """Return a spec with the contract that `contract_settings` described, to decide again as it was decided then."""
    return parse_spec(settings, where="the decision's context", base=Path())


def person_of(tags: Mapping[str, str]) -> str:
    """Return who launched a run: the person named in its tags, the automation, or else this process's user."""
    if tags.get(PERSON_TAG):
        return tags[PERSON_TAG]
    for kind in ("sensor", "schedule"):
        if tags.get(f"dagster/{kind}_name"):
            return f"{kind} {tags[f'dagster/{kind}_name']}"
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def now() -> datetime:
    """Return this moment in UTC."""
    return datetime.now(UTC)
