"""The assets of one playlist system: thin bodies around the functions of this folder.

What belongs here: keys, dependencies, owners, descriptions, metadata. What does not: any computation worth a test of
its own (ingestion.py, training.py, pipeline.py) and the assembly into definitions (defs.py).
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd

from mlops_assets.discover_weekly import checks, judging, pipeline, results
from mlops_assets.discover_weekly.automation import freshness_of, on_team_change
from mlops_assets.discover_weekly.contracts import TRACKS, USERS, listens_contract
from mlops_assets.discover_weekly.ingestion import ingest_listens, read_tracks, read_users
from mlops_assets.discover_weekly.names import Names
from mlops_assets.discover_weekly.playlist_batch import PlaylistBatch, publish_batch
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.discover_weekly.training import batch_tables, filled_periods, plan_split, training_tables
from mlops_assets.foundation import metadata as md
from mlops_assets.foundation import provenance
from mlops_assets.foundation import results as shared
from mlops_assets.foundation.io_managers import Judged
from mlops_assets.foundation.publication import Manifest
from mlops_assets.foundation.registry import ChampionHistory, ModelVersion
from mlops_assets.foundation.resources import ModelRegistry, ObjectStore, Warehouse
from mlops_assets.foundation.retries import IO_RETRY, mistakes_are_final
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore

DATA_TEAM, RECOMMENDATIONS, METADATA, PRODUCT = (
    ["team:data-platform"],
    ["team:recommendations"],
    ["team:metadata"],
    ["team:discover-weekly"],
)

# The rule against times in the future is described without a clock; it is judged with one.
_ANY_TIME = datetime(9999, 1, 1, tzinfo=UTC)


def code_version(*modules: str) -> str:
    """Return a hash of the logic modules that an asset's result depends on."""
    return provenance.code_version("discover_weekly", *modules)


def _tags(context: dg.AssetExecutionContext) -> dict[str, str]:
    code = context.assets_def.code_versions_by_key.get(context.asset_key) or "unknown"
    return pipeline.run_tags(context.partition_key, context.run.run_id, code)


def build_assets(spec: Spec) -> list[dg.AssetsDefinition]:
    """Return the system's assets, apart from those that dbt makes."""
    names = Names(spec)
    return [
        *_ingestion(spec, names),
        *_inputs(spec, names),
        *_models(spec, names),
        *_decision(spec, names),
        *_delivery(spec, names),
    ]


def _ingestion(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    common: dict[str, Any] = {"owners": DATA_TEAM, "group_name": names.group("ingestion"), "retry_policy": IO_RETRY}
    contract = listens_contract(now=_ANY_TIME, timed=spec.data.timed)

    @dg.asset(
        key=names.key("listens"),
        **names.by_period,
        check_specs=checks.listens_specs(spec, names.key("listens")),
        kinds={"duckdb", "python"},
        metadata={"dagster/column_schema": md.column_schema([row._asdict() for row in contract.table_schema()])},
        description=f"What users listened to, period by period, as accepted by the contract.\n\n{contract.describe()}",
        **common,
    )
    def listens(context: dg.AssetExecutionContext, warehouse: Warehouse, store: ObjectStore) -> Iterator[Any]:
        periods = list(context.partition_keys)
        with mistakes_are_final():
            report = ingest_listens(spec, periods, warehouse)
        for period in periods:
            counts = {"rows": report.accepted.get(period, 0), "quarantined": report.quarantined.get(period, 0)}
            context.add_asset_metadata(md.numbers(counts), partition_key=period)
        yield dg.MaterializeResult(metadata=checks.ingestion_metadata(report))
        yield from checks.listens_results(spec, periods, report, warehouse, store)

    without_source = [names.key("listens")] if spec.data.timed is False or spec.data.listens.kind != "sample" else []

    @dg.asset(
        key=names.key("tracks"),
        io_manager_key="tables",
        kinds={"duckdb", "python"},
        deps=without_source if spec.data.tracks is None else [],
        metadata={"dagster/column_schema": md.column_schema([row._asdict() for row in TRACKS.table_schema()])},
        **common,
    )
    def tracks(context: dg.AssetExecutionContext, warehouse: Warehouse) -> dg.MaterializeResult[pd.DataFrame]:
        """The catalogue: artist, tags, lyrics, explicit flag, release date and markets of every track."""
        with mistakes_are_final():
            frame, refused = read_tracks(spec, pipeline.period_of_run(spec, context.run.tags), warehouse)
        return dg.MaterializeResult(value=pipeline.as_table(frame), metadata=checks.dimension_metadata(frame, refused))

    @dg.asset(
        key=names.key("users"),
        io_manager_key="tables",
        kinds={"duckdb", "python"},
        deps=without_source if spec.data.users is None else [],
        metadata={"dagster/column_schema": md.column_schema([row._asdict() for row in USERS.table_schema()])},
        **common,
    )
    def users(context: dg.AssetExecutionContext, warehouse: Warehouse) -> dg.MaterializeResult[pd.DataFrame]:
        """Everybody who is owed a playlist, with market and explicit filter."""
        with mistakes_are_final():
            frame, refused = read_users(spec, pipeline.period_of_run(spec, context.run.tags), warehouse)
        return dg.MaterializeResult(value=pipeline.as_table(frame), metadata=checks.dimension_metadata(frame, refused))

    return [listens, tracks, users]


def _inputs(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    @dg.asset(
        key=names.key("training_set"),
        io_manager_key="snapshots",
        owners=RECOMMENDATIONS,
        group_name=names.group("recommendations"),
        kinds={"parquet", "duckdb"},
        deps=[names.looking_back("interactions")],
        code_version=code_version("training"),
        **names.by_period,
    )
    def training_set(
        context: dg.AssetExecutionContext, warehouse: Warehouse, store: ObjectStore
    ) -> dg.MaterializeResult[Snapshot]:
        """An immutable cut of the interactions: what models learn from, choose on and are judged by."""
        with warehouse.session() as tables:
            plan = plan_split(spec, context.partition_key, filled_periods(tables, spec, context.partition_key))
            cut = training_tables(tables, spec, plan)
            snapshot = SnapshotStore(store.path("snapshots")).save(f"{spec.name}/training_set", cut, plan.metadata())
        return shared.snapshot_result(snapshot, plan.metadata())

    @dg.asset(
        key=names.key("batch_inputs"),
        io_manager_key="snapshots",
        owners=PRODUCT,
        group_name=names.group("delivery"),
        kinds={"parquet", "duckdb"},
        code_version=code_version("training"),
        deps=[names.looking_back("interactions"), names.key("stg_users"), names.key("track_features")],
        **names.by_period,
    )
    def batch_inputs(
        context: dg.AssetExecutionContext, warehouse: Warehouse, store: ObjectStore
    ) -> dg.MaterializeResult[Snapshot]:
        """All that a batch starts from, frozen: users with their histories, dealt into shards; tracks; popularity."""
        with warehouse.session() as tables:
            dealt = batch_tables(tables, spec, context.partition_key)
            facts = {"as_of": context.partition_key, "shards": str(spec.playlist.shards)}
            snapshot = SnapshotStore(store.path("snapshots")).save(f"{spec.name}/batch_inputs", dealt, facts)
        return shared.snapshot_result(snapshot, facts)

    return [training_set, batch_inputs]


def _models(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    common: dict[str, Any] = {**names.by_period, "io_manager_key": "versions", "pool": "training"}

    @dg.asset(
        key=names.key("collaborative_model"),
        ins=names.inputs("training_set"),
        owners=RECOMMENDATIONS,
        group_name=names.group("recommendations"),
        kinds={"python", "mlflow"},
        code_version=code_version("collaborative", "interactions", "metrics", "sweep"),
        automation_condition=on_team_change(),
        **common,
    )
    def collaborative_model(
        context: dg.AssetExecutionContext, training_set: Snapshot, models: ModelRegistry
    ) -> dg.MaterializeResult[ModelVersion]:
        """Implicit ALS: users and tracks in one space, learned from who plays what."""
        trained = pipeline.train_collaborative(spec, training_set, models.open(), _tags(context), context.log.info)
        return shared.model_result(trained)

    @dg.asset(
        key=names.key("content_model"),
        ins=names.inputs("collaborative_model"),
        owners=METADATA,
        group_name=names.group("metadata"),
        kinds={"python", "scikitlearn", "mlflow"},
        code_version=code_version("content"),
        deps=[names.key("track_features")],
        automation_condition=on_team_change(),
        **common,
    )
    def content_model(
        context: dg.AssetExecutionContext,
        collaborative_model: ModelVersion,
        warehouse: Warehouse,
        models: ModelRegistry,
    ) -> dg.MaterializeResult[ModelVersion]:
        """Tags and lyrics to a place in the collaborative space: new tracks and new artists get one too."""
        trained = pipeline.train_content(
            spec,
            pipeline.track_features(spec, warehouse, context.partition_key),
            collaborative_model,
            models.open(),
            _tags(context),
        )
        return shared.model_result(trained)

    @dg.asset(
        key=names.key("blend_model"),
        ins=names.inputs("training_set", "collaborative_model", "content_model"),
        owners=PRODUCT,
        group_name=names.group("production"),
        kinds={"python", "mlflow"},
        code_version=code_version("blend"),
        deps=[names.key("track_features")],
        automation_condition=on_team_change(),
        **common,
    )
    def blend_model(
        context: dg.AssetExecutionContext,
        training_set: Snapshot,
        collaborative_model: ModelVersion,
        content_model: ModelVersion,
        warehouse: Warehouse,
        models: ModelRegistry,
    ) -> dg.MaterializeResult[ModelVersion]:
        """The final list's scorer; records the versions of the parts it was built from."""
        trained = pipeline.train_blend(
            spec,
            training_set,
            pipeline.track_features(spec, warehouse, context.partition_key),
            collaborative_model,
            content_model,
            models.open(),
            _tags(context),
        )
        return shared.model_result(trained)

    return [collaborative_model, content_model, blend_model]


def _decision(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    common: dict[str, Any] = {
        **names.by_period,
        "owners": PRODUCT,
        "group_name": names.group("production"),
        "automation_condition": on_team_change(),
    }

    @dg.asset(
        key=names.key("evaluation"),
        ins=names.inputs("training_set", "blend_model"),
        io_manager_key="versions",
        kinds={"python"},
        deps=[names.key("track_features")],
        code_version=code_version("evaluation", "judging", "metrics"),
        **common,
    )
    def evaluation(
        context: dg.AssetExecutionContext,
        training_set: Snapshot,
        blend_model: ModelVersion,
        warehouse: Warehouse,
        models: ModelRegistry,
    ) -> dg.MaterializeResult[Judged]:
        """The candidate on held-out listening, beside two baselines and the champion, on the same users."""
        registry = models.open()
        champion = pipeline.current_champion(spec, context.instance, registry)
        features = pipeline.track_features(spec, warehouse, context.partition_key)
        judgement = judging.judge(spec, training_set, features, blend_model, champion, registry)
        return results.evaluation_result(judgement)

    @dg.asset(key=names.key("champion"), ins=names.inputs("evaluation"), kinds={"mlflow"}, pool="champion", **common)
    def champion(
        context: dg.AssetExecutionContext, evaluation: Judged, models: ModelRegistry
    ) -> dg.MaterializeResult[None]:
        """Which version serves, since when and why: promoted, kept, or blocked by a gate, judged on stored evidence."""
        history = ChampionHistory(context.instance, spec.name, models.open(), pipeline.blend_name(spec))
        record, gates = judging.decide_champion(spec, history, evaluation, by=f"run {context.run.run_id}")
        return shared.champion_result(spec.risk, record, history, gates)

    return [evaluation, champion]


def _delivery(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    common: dict[str, Any] = {
        **names.by_period,
        "owners": PRODUCT,
        "group_name": names.group("delivery"),
        "kinds": {"parquet", "python"},
    }

    @dg.asset(
        key=names.key("playlists"),
        ins=names.inputs("batch_inputs"),
        io_manager_key="manifests",
        pool="playlists",
        deps=[names.key("champion")],
        check_specs=checks.playlist_specs(spec, names.key("playlists")),
        code_version=code_version("playlists", "topn", "_topn_kernel"),
        **common,
    )
    def playlists(
        context: dg.AssetExecutionContext,
        batch_inputs: Snapshot,
        store: ObjectStore,
        models: ModelRegistry,
    ) -> Iterator[Any]:
        """A playlist for every user, shard by shard; a run that died goes on where it stopped."""
        registry = models.open()
        champion = pipeline.champion_for(spec, context.instance, registry, store.path(), context.partition_key)
        batch = PlaylistBatch(spec, context.partition_key, batch_inputs, store.path(), registry, champion)
        manifest, outcome = batch.write(context.run.run_id, context.log.info)
        findings = batch.judge(manifest)
        shown = results.playlists_metadata(batch, manifest, outcome, findings)
        yield dg.MaterializeResult(value=manifest, metadata=shown)
        yield from checks.playlist_results(spec, findings, batch.catalogue_size)

    @dg.asset(
        key=names.key("published_playlists"),
        ins=names.inputs("playlists"),
        freshness_policy=freshness_of(spec),
        **common,
    )
    def published_playlists(playlists: Manifest, store: ObjectStore) -> dg.MaterializeResult[None]:
        """What readers see: one pointer, moved from the whole old period to the whole new one."""
        with mistakes_are_final():
            published = publish_batch(spec, store.path(), playlists)
        return results.publication_result(published)

    return [playlists, published_playlists]
