"""Snapshots, frames and Arrow tables reach the next asset as they were made, partition by partition."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest
from upath import UPath

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.io_managers import SnapshotIOManager
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore

LISTENS = pd.DataFrame({"user_id": ["u1", "u2", "u2"], "track_id": ["t1", "t1", None], "plays": [1.0, 2.0, 0.5]})
WEEKS = dg.StaticPartitionsDefinition(["2026-11-09", "2026-11-16"])


def run(assets: list[Any], root: Path | str, partition: str | None = None) -> dg.ExecuteInProcessResult:
    return dg.materialize(assets, resources={"io_manager": SnapshotIOManager(root=str(root))}, partition_key=partition)


@dg.asset
def frame() -> pd.DataFrame:
    return LISTENS


def test_an_asset_passes_a_snapshot_or_a_frame_as_the_input_asks(tmp_path: Path) -> None:
    @dg.asset
    def cut() -> Snapshot:
        return SnapshotStore(tmp_path).save(
            "team/cut", {"train": pa.table({"x": [1, 2]}), "test": pa.table({"x": [3]})}
        )

    got: dict[str, Any] = {}

    @dg.asset
    def reader(cut: Snapshot, frame: pd.DataFrame) -> None:
        got.update(cut=cut, frame=frame)

    @dg.asset
    def other_reader(frame: Snapshot) -> None:
        got["frame as snapshot"] = frame

    @dg.asset
    def arrow_reader(frame: pa.Table) -> None:
        got["frame as arrow"] = frame

    @dg.asset
    def careless_reader(cut, frame) -> None:  # type: ignore[no-untyped-def]
        got["kinds"] = (type(cut), type(frame))

    run([cut, frame, reader, other_reader, arrow_reader, careless_reader], tmp_path)
    assert got["cut"].read("train")["x"].tolist() == [1, 2]
    pd.testing.assert_frame_equal(got["frame"], LISTENS)
    assert got["frame as snapshot"].tables["data"].rows == 3
    assert got["frame as arrow"].num_rows == 3
    assert got["kinds"] == (Snapshot, pd.DataFrame)


def test_a_materialization_tells_hash_rows_and_place(tmp_path: Path) -> None:
    [event] = run([frame], tmp_path).asset_materializations_for_node("frame")
    saved = SnapshotStore(tmp_path).list("frame")[0]
    found = {key: value.value for key, value in event.metadata.items()}
    assert found == {"sha256": saved.sha256, "rows": 3, "uri": saved.uri, "dagster/row_count": 3}


def test_partitions_keep_their_own_snapshots_and_come_together_as_a_dictionary(tmp_path: Path) -> None:
    @dg.asset(partitions_def=WEEKS)
    def weekly(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return pd.DataFrame({"week": [context.partition_key]})

    got: list[Any] = []

    @dg.asset(partitions_def=WEEKS)
    def follower(weekly: pd.DataFrame) -> None:
        got.append(weekly["week"].tolist())

    @dg.asset
    def all_weeks(weekly: dict[str, Snapshot]) -> None:
        got.append({key: snapshot.read()["week"].tolist() for key, snapshot in weekly.items()})

    for week in WEEKS.get_partition_keys():
        run([weekly, follower], tmp_path, week)
    job = dg.materialize(
        [weekly, all_weeks], selection=[all_weeks], resources={"io_manager": SnapshotIOManager(root=str(tmp_path))}
    )
    assert job.success
    assert got == [["2026-11-09"], ["2026-11-16"], {"2026-11-09": ["2026-11-09"], "2026-11-16": ["2026-11-16"]}]


def test_materializing_again_leaves_the_earlier_snapshot(tmp_path: Path) -> None:
    values = iter([1, 2])

    @dg.asset
    def number() -> pd.DataFrame:
        return pd.DataFrame({"x": [next(values)]})

    run([number], tmp_path)
    [first] = SnapshotStore(tmp_path).list("number")
    run([number], tmp_path)
    assert len(SnapshotStore(tmp_path).list("number")) == 2
    first.verify()


def test_a_store_can_be_moved(tmp_path: Path) -> None:
    got: list[int] = []

    @dg.asset
    def reader(frame: pd.DataFrame) -> None:
        got.append(len(frame))

    run([frame], tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    dg.materialize(
        [frame, reader], selection=[reader], resources={"io_manager": SnapshotIOManager(root=str(tmp_path / "there"))}
    )
    assert got == [3]


def test_an_input_that_was_never_materialized_is_named(tmp_path: Path) -> None:
    @dg.asset
    def reader(frame: pd.DataFrame) -> None: ...

    with pytest.raises(UserError, match=r"frame: has not been materialized\. Remedy: materialize it first"):
        dg.materialize(
            [frame, reader], selection=[reader], resources={"io_manager": SnapshotIOManager(root=str(tmp_path))}
        )


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`")
def test_one_output_for_several_partitions_is_refused(tmp_path: Path) -> None:
    @dg.asset(partitions_def=WEEKS, backfill_policy=dg.BackfillPolicy.single_run())
    def weekly() -> pd.DataFrame:
        return LISTENS

    span = {"dagster/asset_partition_range_start": "2026-11-09", "dagster/asset_partition_range_end": "2026-11-16"}
    with pytest.raises(UserError, match=r"weekly: one output for 2 partitions.*multi_run"):
        dg.materialize([weekly], tags=span, resources={"io_manager": SnapshotIOManager(root=str(tmp_path))})


def test_other_values_are_refused(tmp_path: Path) -> None:
    @dg.asset
    def text() -> str:
        return "no table"

    with pytest.raises(UserError, match=r"text: cannot store a str\. Remedy: return a Snapshot or a DataFrame"):
        run([text], tmp_path)


def test_the_io_manager_works_on_an_object_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    bucket = UPath(f"s3://bucket-{uuid4().hex}")
    bucket.fs.mkdir(bucket.path)
    got: list[int] = []

    @dg.asset
    def reader(frame: pd.DataFrame) -> None:
        got.append(len(frame))

    run([frame, reader], str(bucket))
    assert got == [3]


def test_pointers_keep_apart_whatever_the_partition_keys_hold(tmp_path: Path) -> None:
    keys = ["2026-11-16", "SE/..", "100 %"]
    markets = dg.StaticPartitionsDefinition(keys)
    got: list[str] = []

    @dg.asset(partitions_def=markets)
    def lists(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return pd.DataFrame({"market": [context.partition_key]})

    @dg.asset(partitions_def=markets)
    def reader(lists: pd.DataFrame) -> None:
        got.extend(lists["market"])

    for key in keys:
        run([lists, reader], tmp_path, key)
    assert got == keys
    assert {path.name for path in (tmp_path / "_pointers" / "lists").iterdir()} == {
        "partition-2026-11-16.json",
        "partition-SE%2F...json",
        "partition-100%20%25.json",
    }
