"""The evidence on a candidate, step by step: evaluation, bias report, explanations, model card.

What belongs here: reading what a step needs, calling one function, attaching what it found to the version. What does
not: the measuring (`evaluation.py`, `bias.py`, `explanations.py`, `card.py`) and the verdict (`judging.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk import (
    bias,
    card,
    evaluation,
    explanations,
    incidents,
    judging,
    metrics,
    models,
    pipeline,
    training,
)
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import GateResult, ModelVersion, Registry
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.foundation.snapshots import Snapshot

if TYPE_CHECKING:
    from mlops_assets.foundation.io_managers import Judged

PARTS = ("train", "calibrate", "test")


@dataclass(frozen=True)
class Found:
    """What one step found of a version, and the hash under which it is stored with it."""

    version: ModelVersion
    evidence_sha256: str
    gates: list[GateResult]
    detail: Any


def frames_of(training_set: Snapshot) -> dict[str, pd.DataFrame]:
    """Return the loans to learn from, to calibrate on and to be judged by."""
    return {part: training_set.read(part) for part in PARTS}


def live_applications(spec: Spec, warehouse: Warehouse, period: str) -> pd.DataFrame:
    """Return the latest accepted applications up to a period, on which candidate and champion run side by side."""
    with warehouse.session() as tables:
        if not tables.exists(f"{spec.name}.current_applications"):
            return pd.DataFrame()
        return tables.query(
            f"select * from {spec.name}.current_applications where period <= cast(? as date) "
            "order by applied_at desc, application_id limit ?",
            [period, spec.monitoring.window_rows],
        )


def evaluate(
    spec: Spec,
    training_set: Snapshot,
    scorecard: ModelVersion,
    gbm: ModelVersion,
    champion: ModelVersion | None,
    live: pd.DataFrame,
    registry: Registry,
) -> Found:
    """Measure both candidates, choose one, and store the evidence with it."""
    versions = {"scorecard": scorecard, "gbm": gbm}
    loaded = {name: models.load(registry.fetch(version)) for name, version in versions.items()}
    frames = frames_of(training_set)
    if len(live):
        frames["live"] = live
    serving = None if champion is None else models.load(registry.fetch(champion))
    measured = evaluation.measure(spec, frames, loaded["scorecard"], loaded["gbm"], serving, DecisionPolicy.of(spec))
    chosen = versions[measured.candidate]
    gates = judging.quality_gates(spec, measured)
    gates.append(judging.reproducible(spec, training_set, chosen))
    gates.append(judging.watch_gate(spec, training_set))
    if measured.against is not None:
        gates += judging.comparison_gates(spec, measured.against)
    evidence = {
        **judging.evidence_of(spec, measured, gates),
        "policy": pipeline.stated(DecisionPolicy.of(spec)),
        "reasons_version": pipeline.reason_table(registry.fetch(chosen)).version,
        "training_set": training_set.sha256,
        "split": dict(training_set.metadata),
        "candidate": {"model": chosen.model, **chosen.as_part()},
        "champion": None if champion is None else champion.as_part(),
    }
    return Found(chosen, registry.attach_evidence(chosen, evidence), gates, measured)


def report_bias(
    spec: Spec,
    training_set: Snapshot,
    judged: "Judged",
    champion: ModelVersion | None,
    warehouse: Warehouse,
    registry: Registry,
) -> Found:
    """Compare protected groups under the candidate's decisions on out-of-time loans, and store the report."""
    frames = frames_of(training_set)
    protected = protected_of(spec, warehouse, frames["test"]["application_id"])
    report = bias.report_of(
        spec,
        models.load(registry.fetch(judged.version)),
        frames,
        protected,
        DecisionPolicy.of(spec),
        None if champion is None else models.load(registry.fetch(champion)),
        refit=_refit(spec, judged.version.params["kind"], frames),
    )
    gates = bias.gates(spec, report)
    evidence = {
        "gates": [gate.as_row() for gate in gates],
        "policy": pipeline.stated(DecisionPolicy.of(spec)),
        "bias": report.to_dict(),
    }
    return Found(judged.version, registry.attach_evidence(judged.version, evidence), gates, report)


def _refit(spec: Spec, kind: str, frames: Mapping[str, pd.DataFrame]) -> Callable[[tuple[str, ...]], metrics.Floats]:
    """Return what trains a model of the candidate's kind on some of the features, and gives the test rows' PDs."""
    fits: Mapping[str, Callable[[Spec, pd.DataFrame, pd.DataFrame], models.PdModel]]
    fits = {"scorecard": training.fit_scorecard, "gbm": training.fit_gbm}

    def refit(names: tuple[str, ...]) -> metrics.Floats:
        numbers = tuple(each for each in spec.numeric if each.name in names)
        categories = tuple(each for each in spec.categorical if each.name in names)
        smaller = spec.model_copy(update={"numeric": numbers, "categorical": categories})
        model = fits[kind](smaller, frames["train"], frames["calibrate"])
        return model.predict(model.schema.matrix(frames["test"]))

    return refit


def protected_of(spec: Spec, warehouse: Warehouse, ids: "pd.Series[Any]") -> pd.DataFrame:
    """Return the protected attributes of these applications, in their order; missing where they are not known."""
    names = list(spec.protected_names)
    with warehouse.session() as tables:
        if not names or not tables.exists(f"{spec.name}.protected_attributes"):
            return pd.DataFrame(index=ids.index, columns=names, dtype=object)
        listed = ", ".join(f'"{name}"' for name in names)
        known = tables.query(f"select application_id, {listed} from {spec.name}.protected_attributes")
    return known.set_index("application_id").reindex(ids.to_numpy()).set_index(ids.index)


def explain_candidate(spec: Spec, training_set: Snapshot, judged: "Judged", registry: Registry) -> Found:
    """Check on out-of-time loans that the candidate's reasons are true, and store what moves its scores."""
    folder = registry.fetch(judged.version)
    found = explanations.explain_model(
        spec, models.load(folder), pipeline.reason_table(folder), frames_of(training_set), DecisionPolicy.of(spec)
    )
    gates = explanations.gates(spec, found)
    evidence = {
        "gates": [gate.as_row() for gate in gates],
        "policy": pipeline.stated(DecisionPolicy.of(spec)),
        "explanations": found.to_dict(),
    }
    return Found(judged.version, registry.attach_evidence(judged.version, evidence), gates, found)


def write_card(
    spec: Spec, training_set: Snapshot, parts: Mapping[str, "Judged"], registry: Registry, root: AnyPath
) -> Found:
    """Write the model card and put all evidence on the version under one hash.

    Who approves the version approves the policy with it: it is the one that every part was measured with.

    Raises
    ------
    UserError
        The parts are about different versions, or were measured with another policy than the spec's.
    """
    version = parts["evaluation"].version
    evidence = {name: registry.evidence(version, part.evidence_sha256) for name, part in parts.items()}
    policy = DecisionPolicy.of(spec)
    others = [name for name, part in evidence.items() if part.get("policy") != pipeline.stated(policy)]
    if others:
        raise UserError(
            f"{', '.join(others)} was made with another policy than the spec's, {policy.version}",
            where=f"{spec.name}/model_card",
            remedy="materialize them again, then the card: what is approved has to be what was measured.",
        )
    written = card.write(spec, version, evidence, dict(training_set.metadata), root)
    gates = [gate for each in evidence.values() for gate in judging.read_gates(each["gates"])]
    gates.append(card.gate(written))
    whole = {
        "gates": [gate.as_row() for gate in gates],
        "evidence": {name: part.evidence_sha256 for name, part in parts.items()},
        "policy": pipeline.stated(policy),
        "reasons_version": evidence["evaluation"]["reasons_version"],
        "candidate": evidence["evaluation"]["candidate"],
        "champion": evidence["evaluation"]["champion"],
        "training_set": training_set.sha256,
        "card": {"sha256": written.sha256, "path": written.path},
    }
    return Found(version, registry.attach_evidence(version, whole), gates, written)


def incident_gate(operations: Journal) -> GateResult:
    """Return whether a data incident is open now."""
    found = incidents.open_incidents(operations)
    if not found:
        return GateResult("incident", "passed", 0.0, 0.0, None, "no data incident is open")
    told = ", ".join(f"{incident.id} ({incident.rule}, {incident.period})" for incident in found[:5])
    return GateResult("incident", "failed", float(len(found)), 0.0, None, f"open data incidents: {told}")


def finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the numbers that are there and finite."""
    return {name: float(value) for name, value in values.items() if value is not None and np.isfinite(value)}
