"""From feeds to accepted applications, outcomes and outlier flags: the assets of the data team.

What belongs here: keys, dependencies, owners, descriptions, metadata, and the checks that ride on them. What does not:
any computation worth a test of its own (ingestion.py, batch_rules.py, labels.py, outliers.py).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from mlops_assets.credit_risk import checks, incidents, pipeline, screening
from mlops_assets.credit_risk.contracts import applications_contract, outcomes_contract
from mlops_assets.credit_risk.ingestion import ingest_period
from mlops_assets.credit_risk.names import DATA_TEAM, Names
from mlops_assets.credit_risk.outcomes_feed import ingest_outcomes
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation import metadata as md
from mlops_assets.foundation.contracts import Contract
from mlops_assets.foundation.resources import Journals, ModelRegistry, ObjectStore, Warehouse
from mlops_assets.foundation.retries import IO_RETRY, mistakes_are_final

TABLES = {
    "applications": "Every delivery as it came, without protected attributes; nothing is ever deleted.",
    "accepted_applications": "The applications that meet the contract, typed.",
    "quarantined_applications": "Those that do not, with rule, value, bound and the raw row: a human decides on them.",
    "protected_attributes": "Attributes that must not decide, in a table that the bias report alone reads.",
}


def build_data_assets(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    """Return ingestion, outcomes and outlier flags."""
    return [*_ingestion(spec, names), *_outcomes(spec, names), *_outliers(spec, names)]


def _schema(contract: Contract) -> dict[str, Any]:
    return {"dagster/column_schema": md.column_schema([row._asdict() for row in contract.table_schema()])}


def _ingestion(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    schema = _schema(applications_contract(spec, checks.ANY_TIME))
    specs = [
        dg.AssetSpec(
            names.key(table),
            description=text,
            owners=DATA_TEAM,
            group_name=names.group("data"),
            kinds={"duckdb", "python"},
            deps=[] if table == "applications" else [names.key("applications")],
            metadata=schema if table == "accepted_applications" else {},
        )
        for table, text in TABLES.items()
    ]

    @dg.multi_asset(
        name=f"{spec.name}__ingestion",
        specs=specs,
        check_specs=checks.applications_specs(spec, names),
        retry_policy=IO_RETRY,
        **names.by_period,
    )
    def ingestion(
        context: dg.AssetExecutionContext, warehouse: Warehouse, store: ObjectStore, journals: Journals
    ) -> Iterator[Any]:
        periods = list(context.partition_keys)
        with mistakes_are_final():
            report = ingest_period(spec, periods, warehouse, run_id=context.run.run_id)
        operations = journals.open(spec.name, "operations")
        opened = incidents.record(operations, spec.name, report.batches, run_id=context.run.run_id)
        for table, shown in checks.ingestion_metadata(spec, report, opened).items():
            yield dg.MaterializeResult(asset_key=names.key(table), metadata=shown)
        yield from checks.applications_results(spec, names, periods, report, operations, warehouse, store)

    return [ingestion]


def _outcomes(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    @dg.asset(
        key=names.key("outcomes"),
        owners=DATA_TEAM,
        group_name=names.group("data"),
        kinds={"duckdb", "python"},
        retry_policy=IO_RETRY,
        deps=[names.key("accepted_applications")],
        metadata=_schema(outcomes_contract(spec, checks.ANY_TIME)),
        check_specs=checks.outcomes_specs(spec, names),
        **names.by_period,
    )
    def outcomes(context: dg.AssetExecutionContext, warehouse: Warehouse) -> Iterator[Any]:
        """What became of loans, as it becomes known; contradictions are in quarantine, on both sides."""
        with mistakes_are_final():
            report = ingest_outcomes(spec, list(context.partition_keys), warehouse, run_id=context.run.run_id)
        yield dg.MaterializeResult(metadata=checks.outcomes_metadata(report))
        yield from checks.outcomes_results(spec, names, report)

    return [outcomes]


def _outliers(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    @dg.asset(
        key=names.key("outlier_flags"),
        owners=DATA_TEAM,
        group_name=names.group("data"),
        kinds={"duckdb", "scikitlearn"},
        deps=[names.key("accepted_applications")],
        check_specs=checks.outlier_specs(spec, names),
        **names.by_period,
    )
    def outlier_flags(context: dg.AssetExecutionContext, warehouse: Warehouse, models: ModelRegistry) -> Iterator[Any]:
        """Applications unlike any that the champion was trained on, flagged for a human and never dropped."""
        registry = models.open()
        champion = pipeline.current_champion(spec, context.instance, registry)
        with mistakes_are_final():
            found = screening.flag_periods(spec, list(context.partition_keys), warehouse, registry, champion)
        yield dg.MaterializeResult(metadata=checks.outlier_metadata(found))
        yield from checks.outlier_results(spec, names, found)

    return [outlier_flags]
