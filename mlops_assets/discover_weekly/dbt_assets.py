"""The dbt models of a playlist system as assets, and dbt's tests as their checks.

What belongs here: keys, owners, partitions and the command line of each share. What does not: SQL (the `dbt` folder).
"""

import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import dagster as dg
from packaging.version import Version

from mlops_assets.discover_weekly.checks import periods_of_run
from mlops_assets.discover_weekly.names import Names
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation.dbt_project import dbt_executable, manifest, project_dir

BY_PERIOD, WHOLE = "stg_listens interactions", "stg_tracks stg_users track_features"


def build_dbt_assets(spec: Spec, names: Names, environment: Environment) -> list[dg.AssetsDefinition]:
    """Return the models that are built by period, and those that are built whole."""
    # Loads dbt's shared classes: 1 CPU second, paid where definitions are built and not on a plain import.
    from dagster_dbt import DagsterDbtTranslator, DbtCliResource, dbt_assets

    class Translator(DagsterDbtTranslator):
        def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
            return names.key(str(dbt_resource_props["name"]))

        def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:
            return names.group("ingestion" if dbt_resource_props["name"].startswith("stg_") else "features")

        def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> list[str]:
            return ["team:metadata"] if dbt_resource_props["name"] == "track_features" else ["team:data-platform"]

    class InstalledDbt(DbtCliResource):
        """Asks the installed package for dbt's version: `dbt --version` asks the package index three times."""

        @property
        def _cli_version(self) -> Version:
            return Version(metadata.version("dbt-core"))

    parsed = manifest(environment.home)
    resource = InstalledDbt(
        project_dir=str(project_dir()),
        profiles_dir=str(project_dir()),
        dbt_executable=dbt_executable()[0],
        global_config_flags=["--no-use-colors"],
    )
    target = environment.home / "dbt" / "target"

    def build(context: dg.AssetExecutionContext, variables: Mapping[str, str]) -> Iterator[Any]:
        settings = {"system_schema": spec.name, "warehouse_file": str(environment.warehouse_file), **variables}
        target.mkdir(parents=True, exist_ok=True)
        invocation = resource.cli(
            ["build", "--vars", json.dumps(settings), "--log-path", str(target)],
            context=context,
            target_path=target / context.run.run_id,
        )
        yield from invocation.stream()

    share = {"manifest": parsed, "dagster_dbt_translator": Translator()}

    @dbt_assets(
        name=f"{spec.name}__by_period",
        select=BY_PERIOD,
        **names.by_period,
        **share,
    )
    def by_period(context: dg.AssetExecutionContext) -> Iterator[Any]:
        periods = periods_of_run(spec, context.run.tags)
        yield from build(context, {"first_period": periods[0], "last_period": periods[-1]})

    @dbt_assets(name=f"{spec.name}__whole", select=WHOLE, **share)
    def whole(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from build(context, {})

    return [by_period, whole]
