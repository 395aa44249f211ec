"""From a training set to a proposal: the assets of the model teams and of model risk.

What belongs here: keys, dependencies, owners, descriptions, metadata. What does not: any computation worth a test of
its own (labels.py, training.py, evaluation.py, bias.py, explanations.py, card.py, judging.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from mlops_assets.credit_risk import incidents, judgement, judging, labels, pipeline, results, training
from mlops_assets.credit_risk.names import DATA_TEAM, MODEL_TEAM, RISK_TEAM, Names
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation import provenance, reports
from mlops_assets.foundation import results as shared
from mlops_assets.foundation.io_managers import Judged
from mlops_assets.foundation.registry import ModelVersion
from mlops_assets.foundation.resources import Journals, ModelRegistry, ObjectStore, Warehouse
from mlops_assets.foundation.retries import mistakes_are_final
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore


def _code(*modules: str) -> str:
    return provenance.code_version("credit_risk", *modules)


def _tags(context: dg.AssetExecutionContext) -> Mapping[str, str]:
    code = context.assets_def.code_versions_by_key.get(context.asset_key) or "unknown"
    asked = context.run.tags.get(pipeline.REQUESTED_TAG)
    return {
        "period": context.partition_key,
        "run_id": context.run.run_id,
        "code_version": code,
        "trained_by": pipeline.person_of(context.run.tags),
        **({"requested_by": asked} if asked else {}),
    }


def _shown(version: ModelVersion, models: ModelRegistry) -> dg.MaterializeResult[ModelVersion]:
    shown = shared.model_result(version)
    return shown._replace(metadata={**(shown.metadata or {}), **results.model_metadata(version, models.open())})


def build_model_assets(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    """Return the assets from the training set to the champion."""
    return [*_training(spec, names), *_judgement(spec, names)]


def _training(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    common: dict[str, Any] = {
        **names.by_period,
        "io_manager_key": "versions",
        "ins": names.inputs("training_set"),
        "owners": MODEL_TEAM,
        "group_name": names.group("models"),
        "pool": "training",
    }

    @dg.asset(
        key=names.key("training_set"),
        io_manager_key="snapshots",
        owners=DATA_TEAM,
        group_name=names.group("models"),
        kinds={"parquet", "duckdb"},
        deps=[names.looking_back("accepted_applications"), names.looking_back("outcomes")],
        code_version=_code("labels"),
        **names.by_period,
    )
    def training_set(
        context: dg.AssetExecutionContext, warehouse: Warehouse, store: ObjectStore, journals: Journals
    ) -> dg.MaterializeResult[Snapshot]:
        """The matured loans as of a period's end, cut by time: to learn from, to calibrate on, to be judged by."""
        with mistakes_are_final():
            operations = journals.open(spec.name, "operations")
            incidents.refuse_if_open(operations, what="training", system=spec.name)
            incidents.note_training(operations, context.run.tags, context.partition_key)
            with warehouse.session() as tables:
                cut, facts = labels.training_tables(tables, spec, context.partition_key)
                snapshot = SnapshotStore(store.path("snapshots")).save(f"{spec.name}/training_set", cut, facts)
        return shared.snapshot_result(snapshot, facts)

    @dg.asset(
        key=names.key("scorecard"),
        kinds={"python", "scikitlearn", "mlflow"},
        code_version=_code("binning", "encoding", "scorecard", "calibration", "logistic", "outliers", "training"),
        **common,
    )
    def scorecard(
        context: dg.AssetExecutionContext, training_set: Snapshot, models: ModelRegistry
    ) -> dg.MaterializeResult[ModelVersion]:
        """The weight-of-evidence scorecard: integer points a human can add up, and a table from points to PD."""
        with mistakes_are_final():
            trained = training.train_scorecard(spec, training_set, models.open(), _tags(context))
        return _shown(trained, models)

    @dg.asset(
        key=names.key("gbm"),
        kinds={"python", "mlflow"},
        code_version=_code("gbm", "directions", "encoding", "calibration", "logistic", "outliers", "training"),
        **common,
    )
    def gbm(
        context: dg.AssetExecutionContext, training_set: Snapshot, models: ModelRegistry
    ) -> dg.MaterializeResult[ModelVersion]:
        """The challenger: monotone gradient boosting, stored as text, explained exactly by its own trees."""
        with mistakes_are_final():
            trained = training.train_gbm(spec, training_set, models.open(), _tags(context))
        return _shown(trained, models)

    return [training_set, scorecard, gbm]


def _judgement(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    common: dict[str, Any] = {
        **names.by_period,
        "owners": RISK_TEAM,
        "group_name": names.group("model_risk"),
        "kinds": {"python"},
    }
    stored: dict[str, Any] = {**common, "io_manager_key": "versions"}

    @dg.asset(
        key=names.key("evaluation"),
        ins=names.inputs("training_set", "scorecard", "gbm"),
        code_version=_code("evaluation", "metrics", "judging", "judgement"),
        **stored,
    )
    def evaluation(
        context: dg.AssetExecutionContext,
        training_set: Snapshot,
        scorecard: ModelVersion,
        gbm: ModelVersion,
        warehouse: Warehouse,
        models: ModelRegistry,
    ) -> dg.MaterializeResult[Judged]:
        """Both candidates and the champion on out-of-time loans; the boosted model only where it wins by the margin."""
        registry = models.open()
        champion = pipeline.current_champion(spec, context.instance, registry)
        live = judgement.live_applications(spec, warehouse, context.partition_key)
        found = judgement.evaluate(spec, training_set, scorecard, gbm, champion, live, registry)
        return results.evaluation_result(found)

    @dg.asset(
        key=names.key("bias_report"),
        ins=names.inputs("training_set", "evaluation"),
        deps=[names.looking_back("protected_attributes")],
        code_version=_code("bias", "judgement"),
        **stored,
    )
    def bias_report(
        context: dg.AssetExecutionContext,
        training_set: Snapshot,
        evaluation: Judged,
        warehouse: Warehouse,
        models: ModelRegistry,
    ) -> dg.MaterializeResult[Judged]:
        """Approval ratios, error rates and calibration by protected group; the only reader of protected attributes."""
        registry = models.open()
        champion = pipeline.current_champion(spec, context.instance, registry)
        found = judgement.report_bias(spec, training_set, evaluation, champion, warehouse, registry)
        return results.bias_result(found)

    @dg.asset(
        key=names.key("explanations"),
        ins=names.inputs("training_set", "evaluation"),
        code_version=_code("explanations", "reasons", "judgement"),
        **stored,
    )
    def explanations(training_set: Snapshot, evaluation: Judged, models: ModelRegistry) -> dg.MaterializeResult[Judged]:
        """What moves the scores, and whether the reasons are true: they add up, point the right way and last."""
        found = judgement.explain_candidate(spec, training_set, evaluation, models.open())
        return results.explanations_result(found)

    @dg.asset(
        key=names.key("model_card"),
        ins=names.inputs("training_set", "evaluation", "bias_report", "explanations"),
        code_version=_code("card", "judgement"),
        **stored,
    )
    def model_card(
        training_set: Snapshot,
        evaluation: Judged,
        bias_report: Judged,
        explanations: Judged,
        models: ModelRegistry,
        store: ObjectStore,
    ) -> dg.MaterializeResult[Judged]:
        """The candidate on paper: purpose, data, results, limits, groups, reasons; and all evidence under one hash."""
        parts = {"evaluation": evaluation, "bias_report": bias_report, "explanations": explanations}
        found = judgement.write_card(spec, training_set, parts, models.open(), store.path())
        return results.card_result(found, reports.link(found.detail.path))

    @dg.asset(
        key=names.key("champion"),
        ins=names.inputs("model_card"),
        pool="champion",
        **{**common, "kinds": {"mlflow"}},
    )
    def champion(
        context: dg.AssetExecutionContext, model_card: Judged, models: ModelRegistry, journals: Journals
    ) -> dg.MaterializeResult[None]:
        """Which version serves and why. A candidate that passes every gate is proposed; only a person approves it."""
        history = pipeline.history_of(spec, context.instance, models.open())
        incident = judgement.incident_gate(journals.open(spec.name, "operations"))
        by = f"run {context.run.run_id}"
        record, gates = judging.decide_champion(
            spec, history, model_card.version, model_card.evidence_sha256, incident=incident, by=by
        )
        return shared.champion_result(spec.risk, record, history, judging.gates_table(gates))

    return [evaluation, bias_report, explanations, model_card, champion]
