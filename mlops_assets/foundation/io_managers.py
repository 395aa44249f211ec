"""How model versions and batch results travel from one asset to the next: as pointers, never as copies.

What belongs here: the pointer of an asset's partition. What does not: the files of a version (registry.py) or of a
batch (publication.py).
"""

import json
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import Field
from upath import UPath

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import write_atomic
from mlops_assets.foundation.publication import Manifest, partition_folder, read_manifest
from mlops_assets.foundation.registry import ModelVersion
from mlops_assets.foundation.resources import ModelRegistry


@dataclass(frozen=True)
class Judged:
    """A model version together with the evidence it is to be judged by."""

    version: ModelVersion
    evidence_sha256: str


class VersionIOManager(dg.ConfigurableIOManager):
    """Stores which version (and which evidence) a partition of a model asset stands for."""

    root: str = Field(description="Folder or URL of the pointers.")
    models: dg.ResourceDependency[ModelRegistry]

    def handle_output(self, context: dg.OutputContext, obj: ModelVersion | Judged) -> None:
        """Point the asset's partition to a version."""
        version = obj.version if isinstance(obj, Judged) else obj
        pointer: dict[str, Any] = {"model": version.model, "version": version.version, "sha256": version.sha256}
        if isinstance(obj, Judged):
            pointer["evidence_sha256"] = obj.evidence_sha256
        write_atomic(self._path(context), json.dumps(pointer, indent=1, sort_keys=True).encode())

    def load_input(self, context: dg.InputContext) -> ModelVersion | Judged:
        """Return what the partition points to; the version is read from the registry."""
        path = self._path(context)
        if not path.exists():
            raise _not_materialized(context)
        pointer = json.loads(path.read_bytes())
        version = self.models.open().get(pointer["model"], pointer["version"])
        evidence = pointer.get("evidence_sha256")
        return Judged(version, evidence) if evidence else version

    def _path(self, context: dg.OutputContext | dg.InputContext) -> UPath:
        return _pointer(self.root, context)


class ManifestIOManager(dg.ConfigurableIOManager):
    """Stores which manifest of a batch a partition of an asset stands for; the manifest itself never changes."""

    root: str = Field(description="Folder or URL of the pointers and of the batches.")

    def handle_output(self, context: dg.OutputContext, obj: Manifest) -> None:
        """Point the asset's partition to a manifest."""
        pointer = {"name": obj.name, "partition": obj.partition, "manifest_sha256": obj.sha256}
        write_atomic(self._path(context), json.dumps(pointer, indent=1, sort_keys=True).encode())

    def load_input(self, context: dg.InputContext) -> Manifest:
        """Return the manifest that the partition points to."""
        path = self._path(context)
        if not path.exists():
            raise _not_materialized(context)
        pointer = json.loads(path.read_bytes())
        folder = partition_folder(self.root, pointer["name"], pointer["partition"])
        return read_manifest(folder, pointer["manifest_sha256"])

    def _path(self, context: dg.OutputContext | dg.InputContext) -> UPath:
        return _pointer(self.root, context)


def _pointer(root: str, context: dg.OutputContext | dg.InputContext) -> UPath:
    partition = context.asset_partition_key if context.has_asset_partitions else "all"
    return UPath(root).joinpath("pointers", *context.asset_key.path, f"{partition}.json")


def _not_materialized(context: dg.InputContext) -> UserError:
    partition = f", partition {context.asset_partition_key}" if context.has_asset_partitions else ""
    return UserError(
        "has not been materialized",
        where=f"{context.asset_key.to_user_string()}{partition}",
        remedy="materialize it first.",
    )
