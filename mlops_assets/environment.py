"""Which resource stands behind each name.

What belongs here: the embedded environment's folders and the resources built on them. What does not: anything an
asset does. Nothing is opened or created when this module is imported.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Journals, ModelRegistry, ObjectStore, Warehouse

ENVIRONMENTS = ("embedded",)


@dataclass(frozen=True)
class Environment:
    """The places that everything durable lives in.

    Parameters
    ----------
    name
        The column of the table "where things live" that is in force.
    home
        The folder that the embedded environment keeps its files in.
    """

    name: str
    home: Path

    @property
    def warehouse_file(self) -> Path:
        """The DuckDB file of all systems."""
        return self.home / "warehouse.duckdb"

    @property
    def dagster_home(self) -> Path:
        """The folder of Dagster's own storage."""
        return self.home / "dagster"

    def resources(self) -> dict[str, object]:
        """Return the resources by name, as `Definitions` takes them."""
        from mlops_assets.foundation.io_managers import ManifestIOManager, SnapshotIOManager, VersionIOManager
        from mlops_assets.foundation.table_io import table_io_manager

        store = self.home / "store"
        models = ModelRegistry(tracking_uri=f"sqlite:///{self.home / 'mlflow.db'}", root=str(store / "models"))
        return {
            "warehouse": Warehouse(database=str(self.warehouse_file)),
            "store": ObjectStore(root=str(store)),
            "models": models,
            "journals": Journals(root=str(self.home / "journals")),
            "snapshots": SnapshotIOManager(root=str(store / "snapshots")),
            "versions": VersionIOManager(root=str(store), models=models),
            "manifests": ManifestIOManager(root=str(store)),
            "tables": table_io_manager(str(self.warehouse_file)),
        }


def current(settings: Mapping[str, str] | None = None) -> Environment:
    """Return the environment that ``MLOPS_ASSETS_ENV`` and ``MLOPS_ASSETS_HOME`` name.

    Raises
    ------
    UserError
        The name is not one of the environments that this version knows, or the home is a file.
    """
    values = os.environ if settings is None else settings
    name = values.get("MLOPS_ASSETS_ENV", "embedded")
    if name not in ENVIRONMENTS:
        raise UserError(
            f"unknown environment {name!r}",
            where="MLOPS_ASSETS_ENV",
            remedy=f"set it to one of: {', '.join(ENVIRONMENTS)}.",
        )
    home = Path(values.get("MLOPS_ASSETS_HOME", ".mlops_assets")).expanduser().resolve()
    if home.exists() and not home.is_dir():
        raise UserError(f"{home} is no folder", where="MLOPS_ASSETS_HOME", remedy="name a folder; it may be a new one.")
    return Environment(name, home)
