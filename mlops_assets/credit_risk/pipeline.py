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
from mlops_assets.foundation.registry import ChampionHistory, ChampionRecord, ModelVersion, Registry

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


def approved_policy(spec: Spec, history: ChampionHistory, version: ModelVersion | None = None) -> DecisionPolicy:
    """Return the policy that decides beside the champion: the one in the evidence by which it was approved.

    Where nobody approves, and where the evidence is from before it named a policy, that is the spec's.

    Parameters
    ----------
    version
        The champion as the caller has resolved it.

    Raises
    ------
    UserError
        Another version serves meanwhile, or the evidence holds a policy that this release cannot decide by.
    """
    record = history.current()
    if version is not None and (record is None or record.version != version.version):
        raise UserError(
            f"{version} does not serve any more",
            where=f"{spec.name}/champion",
            remedy="run again: another version was approved, or rolled back to, a moment ago.",
        )
    found = None if record is None else policy_by(history, record)
    return DecisionPolicy.of(spec) if found is None else found


def policy_by(history: ChampionHistory, record: ChampionRecord) -> DecisionPolicy | None:
    """Return the policy that a record approved with its version; None where it approved none.

    Raises
    ------
    UserError
        The evidence is damaged, or holds a policy that this release cannot decide by.
    """
    if not history.approval_required or record.version is None or record.evidence_sha256 is None:
        return None
    version = history.registry.get(history.model, record.version)
    found = history.registry.evidence(version, record.evidence_sha256).get("policy")
    if found is None:
        return None
    try:
        policy = DecisionPolicy.from_dict({name: value for name, value in found.items() if name != "version"})
        known = policy.version == found["version"]
    except (AttributeError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(
            "the approved policy is none that this release can decide by",
            where=f"evidence {record.evidence_sha256[:12]} of {version}",
            remedy="use the release that evaluated the version, or train and approve with this one.",
        )
    return policy


def stated(policy: DecisionPolicy) -> dict[str, Any]:
    """Return a policy with its version, as contexts of decisions and evidence hold it."""
    return {**policy.to_dict(), "version": policy.version}


def waiting_policy(spec: Spec, approved: DecisionPolicy) -> str | None:
    """Return, in words, that the spec's policy does not decide yet; None where it is the approved one."""
    wanted = DecisionPolicy.of(spec)
    if wanted.version == approved.version:
        return None
    then, now = approved.to_dict(), wanted.to_dict()
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    changed = ", ".join(f"{name} {then.get(name)} -> {now.get(name)}" for name in names)
    return (
        f"the spec's policy {wanted.version} ({changed}) waits for a training and its approval; "
        f"decisions go on by the approved policy {approved.version}"
    )


def load_decider(
    spec: Spec, registry: Registry, version: ModelVersion, policy: Mapping[str, Any] | None = None
) -> Decider:
    """Return a version with everything that decides beside it, every file checked against its hash.

    Parameters
    ----------
    policy
        The approved policy, or that of a past decision; by default the spec's.
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
        "policy": stated(decider.policy),
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
