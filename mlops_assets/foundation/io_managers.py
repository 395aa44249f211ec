"""How snapshots, model versions and batch results travel from one asset to the next: as pointers, never as copies.

What belongs here: the pointer of an asset's partition. What does not: what it points to, which is a snapshot
(`snapshots.py`), the files of a version (`registry.py`) or of a batch (`publication.py`).

A pointer is the file `<root>/_pointers/<asset key>/partition-<key>.json`, or `asset.json` without partitions.
"""

import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field
from upath import UPath

from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.publication import Manifest, partition_folder, read_manifest
from mlops_assets.foundation.registry import ModelVersion
from mlops_assets.foundation.resources import ModelRegistry
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore, Source


class SnapshotIOManager(dg.ConfigurableIOManager):
    """Passes snapshots, frames and Arrow tables from asset to asset; earlier materializations are never overwritten.

    A small pointer for each asset and partition says which snapshot it is. An input annotated `Snapshot`,
    `pd.DataFrame` or `pa.Table` gets that; over several partitions, a dictionary by partition key.
    """

    root: str = Field(description="Folder or URL, such as s3://bucket/snapshots, that holds snapshots and pointers.")

    def handle_output(self, context: dg.OutputContext, obj: Snapshot | pd.DataFrame | pa.Table) -> None:
        """Save a frame or table as a snapshot with the one table `data`, and point the partition to the snapshot."""
        where = context.asset_key.to_user_string()
        partition = _one_partition(context)
        store, kind = SnapshotStore(self.root), "snapshot"
        if not isinstance(obj, Snapshot):
            if not isinstance(obj, pd.DataFrame | pa.Table):
                raise UserError(
                    f"cannot store a {type(obj).__name__}", where=where, remedy="return a Snapshot or a DataFrame."
                )
            kind = "frame" if isinstance(obj, pd.DataFrame) else "arrow"
            name = "/".join(re.sub(r"[^A-Za-z0-9._-]", "-", part) for part in context.asset_key.path)
            tables: dict[str, Source] = {"data": obj}
            obj = store.save(name, tables)
        pointer = {"name": obj.name, "sha256": obj.sha256, "at": store.place_of(obj), "kind": kind}
        _point(self.root, context, partition, pointer)
        context.add_output_metadata(
            {"sha256": obj.sha256, "rows": obj.rows, "uri": obj.uri, "dagster/row_count": obj.rows}
        )

    def load_input(self, context: dg.InputContext) -> Any:
        """Return what the upstream asset's partition (or partitions, as a dictionary) points to."""
        wanted, many = _wanted(context.dagster_type.typing_type)
        if not context.has_asset_partitions:
            return self._one(context, None, wanted)
        keys = list(context.asset_partition_keys)
        if len(keys) == 1 and not many:
            return self._one(context, keys[0], wanted)
        if not keys and not many:
            return None
        return {key: self._one(context, key, wanted) for key in keys}

    def _one(self, context: dg.InputContext, partition: str | None, wanted: Any) -> Any:
        pointer = _pointed(self.root, context, partition)
        snapshot = SnapshotStore(self.root).at(pointer["at"], pointer["name"])
        given = {"snapshot": Snapshot, "frame": pd.DataFrame, "arrow": pa.Table}[pointer["kind"]]
        kind = given if wanted is Any else wanted
        if kind is Snapshot:
            return snapshot
        if kind is not pd.DataFrame and kind is not pa.Table:
            raise UserError(
                f"cannot load a snapshot as {kind}",
                where=_place(context, partition),
                remedy="annotate the input Snapshot or pd.DataFrame.",
            )
        table = next(iter(snapshot.tables)) if len(snapshot.tables) == 1 else "data"
        return snapshot.arrow(table) if kind is pa.Table else snapshot.read(table)


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
        _point(self.root, context, _one_partition(context), pointer)

    def load_input(self, context: dg.InputContext) -> ModelVersion | Judged:
        """Return what the partition points to; the version is read from the registry."""
        pointer = _pointed(self.root, context, _one_partition(context))
        version = self.models.open().get(pointer["model"], pointer["version"])
        evidence = pointer.get("evidence_sha256")
        return Judged(version, evidence) if evidence else version


class ManifestIOManager(dg.ConfigurableIOManager):
    """Stores which manifest of a batch a partition of an asset stands for; the manifest itself never changes."""

    root: str = Field(description="Folder or URL of the pointers and of the batches.")

    def handle_output(self, context: dg.OutputContext, obj: Manifest) -> None:
        """Point the asset's partition to a manifest."""
        pointer = {"name": obj.name, "partition": obj.partition, "manifest_sha256": obj.sha256}
        _point(self.root, context, _one_partition(context), pointer)

    def load_input(self, context: dg.InputContext) -> Manifest:
        """Return the manifest that the partition points to."""
        pointer = _pointed(self.root, context, _one_partition(context))
        folder = partition_folder(self.root, pointer["name"], pointer["partition"])
        return read_manifest(folder, pointer["manifest_sha256"])


def _point(root: str, context: dg.OutputContext, partition: str | None, pointer: Mapping[str, Any]) -> None:
    files.write_atomic(_pointer(root, context, partition), files.canonical_json(pointer))


def _pointed(root: str, context: dg.InputContext, partition: str | None) -> dict[str, Any]:
    try:
        pointer: dict[str, Any] = json.loads(files.read_bytes(_pointer(root, context, partition)))
    except FileNotFoundError as error:
        where = _place(context, partition)
        raise UserError("has not been materialized", where=where, remedy="materialize it first.") from error
    return pointer


def _pointer(root: str, context: dg.OutputContext | dg.InputContext, partition: str | None) -> UPath:
    parts = [quote(part, safe="") for part in context.asset_key.path]
    name = "asset" if partition is None else f"partition-{quote(partition, safe='')}"
    return UPath(root).joinpath("_pointers", *parts, f"{name}.json")


def _one_partition(context: dg.OutputContext | dg.InputContext) -> str | None:
    """Return the partition that one pointer is for, None for an asset without partitions."""
    if not context.has_asset_partitions:
        return None
    keys = list(context.asset_partition_keys)
    if len(keys) != 1:
        way = "output" if isinstance(context, dg.OutputContext) else "input"
        raise UserError(
            f"one {way} for {len(keys)} partitions",
            where=context.asset_key.to_user_string(),
            remedy="run one partition at a time (BackfillPolicy.multi_run).",
        )
    return keys[0]


def _place(context: dg.InputContext, partition: str | None) -> str:
    return context.asset_key.to_user_string() + (f", partition {partition}" if partition else "")


def _wanted(annotation: Any) -> tuple[Any, bool]:
    """Return the class that an input asks for (Any: whatever was given) and whether it takes a dictionary of them."""
    many = typing.get_origin(annotation) in (dict, Mapping)
    if many:
        annotation = typing.get_args(annotation)[-1]
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    if len(options) == 1:
        annotation = options[0]
    return annotation, many
