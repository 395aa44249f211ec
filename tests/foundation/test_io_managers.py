"""Pointers: which version or batch a partition stands for, and a clear word when there is none yet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from mlops_assets.environment import Environment
from mlops_assets.foundation.batch import Ledger
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.io_managers import Judged
from mlops_assets.foundation.publication import Manifest
from mlops_assets.foundation.registry import ModelVersion, Registry

WEEKS = dg.StaticPartitionsDefinition(["2024-01-01", "2024-01-08"])
FIRST, SECOND = WEEKS.get_partition_keys()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One environment: the registry's tables are made once."""
    home = tmp_path_factory.mktemp("pointers") / "home"
    home.mkdir()
    return Environment("embedded", home)


@pytest.fixture(scope="module")
def registry(place: Environment) -> Registry:
    models: Any = place.resources()["models"]
    registry: Registry = models.open()
    return registry


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def register(registry: Registry, folder: Path, content: str) -> ModelVersion:
    (folder / content).mkdir()
    (folder / content / "weights.json").write_text(f'"{content}"', encoding="utf-8")
    return registry.register("some.model", folder / content, params={}, metrics={}, parts={}, tags={})


def manifest_of(place: Environment, partition: str, value: int) -> Manifest:
    store: Any = place.resources()["store"]
    schema = pa.schema([("n", pa.int64())])
    ledger = Ledger.open(store.path(), "some/lists", partition, {"value": str(value)}, 1, "run")
    ledger.run(lambda shard: pa.table({"n": [value]}, schema=schema), schema=schema)
    return ledger.manifest()


class Chain:
    """An asset that stores a value through an IO manager, and one that takes it."""

    def __init__(self, place: Environment, io_manager: str, kind: type) -> None:
        self.values: dict[str, Any] = {}
        self.taken: dict[str, Any] = {}
        self.resources = place.resources()

        def stored(context: dg.AssetExecutionContext) -> Any:
            return self.values[context.partition_key]

        def taking(context: dg.AssetExecutionContext, stored: Any) -> None:
            self.taken[context.partition_key] = stored

        stored.__annotations__["return"] = kind
        taking.__annotations__["stored"] = kind
        prefix = [f"chain_of_{kind.__name__.lower()}"]
        by_week: dict[str, Any] = {"partitions_def": WEEKS, "key_prefix": prefix}
        self.stored = dg.asset(io_manager_key=io_manager, **by_week)(stored)
        self.taking = dg.asset(ins={"stored": dg.AssetIn(key=[*prefix, "stored"])}, **by_week)(taking)

    def store(self, instance: dg.DagsterInstance, partition: str, value: Any) -> None:
        self.values[partition] = value
        assert self._make(instance, [self.stored], partition).success

    def take(self, instance: dg.DagsterInstance, partition: str) -> Any:
        assert self._make(instance, [self.taking, self.stored.to_source_assets()[0]], partition).success
        return self.taken[partition]

    def _make(self, instance: dg.DagsterInstance, assets: list[Any], partition: str) -> dg.ExecuteInProcessResult:
        needed = {name: self.resources[name] for name in ("versions", "manifests")}
        return dg.materialize(assets, instance=instance, partition_key=partition, resources=needed)


def test_each_partition_points_to_its_own_version(
    place: Environment, registry: Registry, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    chain = Chain(place, "versions", ModelVersion)
    first, second = register(registry, tmp_path, "one"), register(registry, tmp_path, "two")
    chain.store(instance, FIRST, first)
    chain.store(instance, SECOND, second)
    assert chain.take(instance, FIRST) == registry.get("some.model", first.version)
    assert chain.take(instance, SECOND).sha256 == second.sha256


def test_a_pointer_moves_when_its_partition_is_made_again(
    place: Environment, registry: Registry, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    chain = Chain(place, "versions", ModelVersion)
    first, second = register(registry, tmp_path, "three"), register(registry, tmp_path, "four")
    chain.store(instance, FIRST, first)
    chain.store(instance, FIRST, second)
    assert chain.take(instance, FIRST).version == second.version


def test_a_judged_version_keeps_its_evidence(
    place: Environment, registry: Registry, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    chain = Chain(place, "versions", Judged)
    version = register(registry, tmp_path, "five")
    digest = registry.attach_evidence(version, {"gates": []})
    chain.store(instance, FIRST, Judged(version, digest))
    taken = chain.take(instance, FIRST)
    assert (taken.version.sha256, taken.evidence_sha256) == (version.sha256, digest)


def test_each_partition_points_to_its_own_batch(place: Environment, instance: dg.DagsterInstance) -> None:
    chain = Chain(place, "manifests", Manifest)
    first, second = manifest_of(place, FIRST, 1), manifest_of(place, SECOND, 2)
    chain.store(instance, FIRST, first)
    chain.store(instance, SECOND, second)
    assert chain.take(instance, FIRST) == first
    assert chain.take(instance, SECOND) == second


def test_a_pointer_is_small_and_holds_no_copy(
    place: Environment, registry: Registry, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    chain = Chain(place, "versions", ModelVersion)
    chain.store(instance, SECOND, register(registry, tmp_path, "six"))
    (pointer,) = (place.home / "store" / "_pointers" / "chain_of_modelversion" / "stored").glob(
        f"partition-{SECOND}.json"
    )
    assert pointer.stat().st_size < 300
    assert "six" not in pointer.read_text(encoding="utf-8")


@pytest.mark.parametrize(("io_manager", "kind"), [("versions", ModelVersion), ("manifests", Manifest)])
def test_what_was_never_materialized_is_named_with_its_partition(
    tmp_path: Path, instance: dg.DagsterInstance, io_manager: str, kind: type
) -> None:
    chain = Chain(Environment("embedded", tmp_path), io_manager, kind)
    with pytest.raises(UserError) as caught:
        chain.take(instance, FIRST)
    where = f"chain_of_{kind.__name__.lower()}/stored, partition {FIRST}"
    assert str(caught.value) == f"{where}: has not been materialized. Remedy: materialize it first."
