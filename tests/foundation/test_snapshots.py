"""Snapshots never change, equal content is one snapshot, and what is read back is what was saved."""

import datetime as dt
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from upath import UPath

from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.snapshots import SnapshotStore

PROJECT = Path(files.__file__).parents[2]

LISTENS = pd.DataFrame(
    {
        "user_id": ["u1", "u2", "u2"],
        "track_id": ["t1", "t1", None],  # a missing text
        "listened_at": pd.to_datetime(
            ["2026-11-16T10:00:00.123456789Z", None, "2026-11-17T00:00:00Z"], format="ISO8601"
        ),
        "plays": [1.0, np.nan, 0.5],
        "skipped": [False, True, False],
        "released": [dt.date(2020, 2, 29), None, dt.date(1999, 1, 1)],
    }
)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def batches_of(table: pa.Table, rows: int) -> Iterator[pa.RecordBatch]:
    yield from table.to_batches(max_chunksize=rows)


# ------------------------------------------------------------------------------------------------------ save and load


def test_what_is_saved_reads_back_as_it_was(root: UPath) -> None:
    saved = SnapshotStore(root).save(
        "listens", {"data": LISTENS, "more": pa.table({"x": [1, 2]})}, {"week": "2026-11-16"}
    )
    loaded = SnapshotStore(root).load(saved.sha256)
    assert loaded == saved
    pd.testing.assert_frame_equal(loaded.read(), LISTENS)
    assert loaded.arrow("more").equals(pa.table({"x": [1, 2]}))
    assert (loaded.rows, loaded.tables["data"].rows, loaded.metadata) == (5, 3, {"week": "2026-11-16"})
    assert loaded.tables["more"].schema == [["x", "int64"]]
    loaded.verify()


def test_pandas_own_types_survive_without_pandas_version(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "number": pd.array([2**60 + 1, None], dtype="Int64"),
            "text": pd.array(["a", None], dtype="string"),
            "yes": pd.array([True, None], dtype="boolean"),
            "market": pd.Categorical(["SE", None], categories=["NO", "SE"], ordered=True),
            "at": pd.to_datetime(["2026-11-16", None]).tz_localize("Europe/Stockholm"),
            "plain": [1, 2],
        }
    )
    snapshot = SnapshotStore(tmp_path).save("typed", {"data": frame})
    pd.testing.assert_frame_equal(snapshot.read(), frame)
    assert "pandas_version" not in str(snapshot.arrow().schema.metadata)


def test_columns_and_batches_are_read_in_parts(root: UPath) -> None:
    table = pa.table({"x": np.arange(1000), "y": np.arange(1000) % 7})
    snapshot = SnapshotStore(root).save("numbers", {"data": table})
    assert snapshot.read(columns=["y"]).columns.tolist() == ["y"]
    parts = list(snapshot.batches(rows=300, columns=["x"]))
    assert [part.num_rows for part in parts] == [300, 300, 300, 100]
    assert pa.Table.from_batches(parts).equals(table.select(["x"]))


@pytest.mark.parametrize(("table", "column"), [("no", "x"), ("data", "no")])
def test_an_unknown_table_or_column_is_named_with_what_there_is(tmp_path: Path, table: str, column: str) -> None:
    snapshot = SnapshotStore(tmp_path).save("numbers", {"data": pa.table({"x": [1]})})
    with pytest.raises(UserError, match=r"there is no .*'no'.*use one of: (data|x)"):
        snapshot.read(table, [column])


# -------------------------------------------------------------------------------------------------- content addressing


def test_equal_content_is_one_snapshot_and_nothing_is_written_again(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    first = store.save("listens", {"a": LISTENS, "b": pa.table({"x": [1]})}, {"k": 1, "l": [1, 2]})
    before = tree(tmp_path)
    second = store.save("listens", {"b": pa.table({"x": [1]}), "a": LISTENS.copy()}, {"l": (1, 2), "k": 1})
    assert second == first
    assert second.created_at == first.created_at
    assert tree(tmp_path) == before


def test_the_same_rows_are_the_same_snapshot_however_they_come(tmp_path: Path) -> None:
    store, frame = SnapshotStore(tmp_path), pd.DataFrame({"x": range(1000), "s": [f"s{i % 7}" for i in range(1000)]})
    table = pa.Table.from_pandas(frame)
    ways: list[Any] = [
        frame,
        frame.set_index(np.arange(1000) * 2),
        table,
        batches_of(table, 99),
        list(batches_of(table, 1000)),
        pa.RecordBatchReader.from_batches(table.schema, batches_of(table, 13)),
        lambda: batches_of(table, 500),
    ]
    assert len({store.save("same", {"data": way}).sha256 for way in ways}) == 1


@pytest.mark.parametrize(
    "other",
    [
        ({"data": LISTENS.assign(plays=2.0)}, {"week": 1}),
        ({"data": LISTENS.iloc[::-1].reset_index(drop=True)}, {"week": 1}),
        ({"data": LISTENS.astype({"plays": "float32"})}, {"week": 1}),
        ({"other": LISTENS}, {"week": 1}),
        ({"data": LISTENS}, {"week": 2}),
        ({"data": LISTENS}, {}),
    ],
    ids=["values", "order", "type", "table name", "metadata", "no metadata"],
)
def test_any_difference_is_another_snapshot(tmp_path: Path, other: tuple[dict[str, Any], dict[str, Any]]) -> None:
    store = SnapshotStore(tmp_path)
    assert store.save("x", {"data": LISTENS}, {"week": 1}).sha256 != store.save("x", *other).sha256


def test_snapshots_are_found_by_the_beginning_of_their_hash(root: UPath) -> None:
    store = SnapshotStore(root)
    saved = [store.save(name, {"data": pa.table({"x": [i]})}) for i, name in enumerate(["a", "a", "team/b"])]
    for snapshot in saved:
        assert store.load(snapshot.sha256[:8]) == snapshot
    assert {s.sha256 for s in store.list("a")} == {s.sha256 for s in saved[:2]}
    assert store.list("team/b") == saved[2:]
    assert store.list("team") == store.list("nobody") == []


def test_one_content_under_two_names_is_no_contradiction(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    one, two = (store.save(name, {"data": LISTENS}) for name in ("one", "two"))
    assert one.sha256 == two.sha256
    assert store.load(one.sha256).sha256 == one.sha256


def test_a_beginning_that_fits_two_snapshots_or_none_is_refused(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    sha256 = store.save("a", {"data": LISTENS}).sha256
    twin = tmp_path / "a" / sha256[:2] / (sha256[:10] + "0" * 54)
    twin.mkdir()
    (twin / "manifest.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=f"2 snapshots begin with {sha256[:8]}"):
        store.load(sha256[:8])
    with pytest.raises(UserError, match="there is no snapshot 00000000"):
        store.load("0" * 8)
    for bad in (sha256[:7], "no hash at all"):
        with pytest.raises(UserError, match="at least 8 characters"):
            store.load(bad)


def test_listed_snapshots_are_sorted_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SnapshotStore(tmp_path)
    saved = []
    for second in (3, 1, 2):

        class Clock(dt.datetime):
            @classmethod
            def now(cls, tz: dt.tzinfo | None = None, second: int = second) -> "Clock":
                return cls(2026, 11, 16, 6, 0, second, tzinfo=tz)

        monkeypatch.setattr("mlops_assets.foundation.snapshots.datetime", Clock)
        saved.append(store.save("a", {"data": pa.table({"x": [second]})}))
    assert store.list("a") == [saved[1], saved[2], saved[0]]


# ------------------------------------------------------------------------------------------------------------- streams


def test_a_stream_is_saved_in_bounded_memory(tmp_path: Path) -> None:
    rows, peak, before = 40_000, 0, pa.total_allocated_bytes()

    def stream() -> Iterator[pa.RecordBatch]:
        nonlocal peak
        for number in range(40):
            peak = max(peak, pa.total_allocated_bytes() - before)
            yield pa.record_batch(
                {"x": np.arange(number, number + rows), "y": np.random.default_rng(number).random(rows)}
            )

    snapshot = SnapshotStore(tmp_path).save("big", {"data": stream()})
    whole = 40 * rows * 16
    assert snapshot.tables["data"].rows == 40 * rows
    assert peak < whole / 2
    assert [b.num_rows for b in snapshot.batches(rows=1000)][:1] == [1000]


def test_tables_are_read_one_after_the_other_in_their_order(tmp_path: Path) -> None:
    order: list[str] = []

    def source(name: str) -> Any:
        def opened() -> pa.RecordBatchReader:
            order.append(name)
            return pa.RecordBatchReader.from_batches(pa.schema({"x": pa.int64()}), [])

        return opened

    snapshot = SnapshotStore(tmp_path).save("x", {"b": source("b"), "a": source("a")})
    assert order == ["b", "a"]
    assert snapshot.read("a").columns.tolist() == ["x"]
    assert snapshot.rows == 0


def test_an_io_error_of_the_source_is_not_called_a_full_disk(tmp_path: Path) -> None:
    def stream() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"x": [1]})
        raise ConnectionError("the warehouse went away")

    with pytest.raises(ConnectionError, match="the warehouse went away"):
        SnapshotStore(tmp_path).save("x", {"data": stream()})
    assert tree(tmp_path) == {}


# ------------------------------------------------------------------------------------------------- what cannot be saved


def bad_stream(second: Any) -> Iterator[Any]:
    yield pa.record_batch({"x": [1]})
    yield second


@pytest.mark.parametrize(
    ("tables", "metadata", "message"),
    [
        ({}, {}, "there are no tables"),
        ({"a/b": LISTENS}, {}, "'a/b' cannot name"),
        ({"..": LISTENS}, {}, "cannot name"),
        ({"data": LISTENS}, {"made": dt.date(2026, 11, 16)}, "metadata 'made' is no JSON value"),
        ({"data": LISTENS}, {"loss": float("nan")}, "metadata 'loss' is no JSON value"),
        ({"data": LISTENS.set_index("user_id")}, {}, r"index \['user_id'\], which is not stored.*reset_index"),
        ({"data": pd.DataFrame({"x": [1]}, index=["a"])}, {}, "which is not stored"),
        ({"data": pd.DataFrame([[1, 2]])}, {}, "column names must be different texts"),
        ({"data": pd.DataFrame([[1, 2]], columns=["x", "x"])}, {}, "column names must be different texts"),
        ({"data": pd.DataFrame({"x": [1, "a"]})}, {}, r"table 'data': cannot store.*column x"),
        ({"data": 3}, {}, "cannot save a int"),
        ({"data": iter([])}, {}, "the stream is empty, so its columns are unknown"),
        ({"data": iter([LISTENS])}, {}, "the stream gives DataFrame"),
        ({"data": bad_stream(pa.record_batch({"x": [1.5]}))}, {}, "batch 1 has other columns than the first: x double"),
    ],
)
def test_what_cannot_be_kept_without_loss_is_refused(
    tmp_path: Path, tables: dict[str, Any], metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SnapshotStore(tmp_path).save("x", tables, metadata)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["", "../x", "_pointers", "x/ab", "a b"])
def test_names_that_would_get_lost_in_the_store_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a snapshot"):
        SnapshotStore(tmp_path).save(name, {"data": LISTENS})


def test_a_store_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    # As root a read-only folder can be written all the same, so the store's parent is a file.
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write: Not a directory"):
        SnapshotStore(tmp_path / "file" / "store").save("x", {"data": LISTENS})


# --------------------------------------------------------------------------------------------------- damage and kill -9


def test_damaged_rows_are_noticed_before_they_are_used(root: UPath) -> None:
    snapshot = SnapshotStore(root).save("x", {"data": LISTENS})
    file = snapshot.folder / "data.parquet"
    data = files.read_bytes(file)
    files.write_atomic(file, data[:-9] + b"X" + data[-8:])
    for use in (snapshot.read, snapshot.arrow, snapshot.verify, lambda: list(snapshot.batches())):
        with pytest.raises(UserError, match=r"data\.parquet: the bytes were changed or damaged"):
            use()


def test_a_damaged_manifest_is_noticed_when_it_is_loaded(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    snapshot = store.save("x", {"data": LISTENS}, {"week": "2026-11-16"})
    path = Path(str(snapshot.folder)) / "manifest.json"
    whole = path.read_bytes()
    for damage in (whole.replace(b"2026-11-16", b"2026-11-23"), whole[:-5], b"[]"):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"manifest\.json: the manifest was changed or damaged"):
            store.load(snapshot.sha256)


def test_saving_again_brings_back_files_that_were_lost(root: UPath) -> None:
    store = SnapshotStore(root)
    snapshot = store.save("x", {"data": LISTENS})
    (snapshot.folder / "data.parquet").unlink()
    with pytest.raises(UserError, match=r"data\.parquet: the file is missing"):
        snapshot.read()
    store.save("x", {"data": LISTENS})
    snapshot.verify()


def test_killed_at_every_point_nothing_half_can_be_loaded_and_saving_again_works(tmp_path: Path) -> None:
    script = (
        "import itertools, os, signal, sys; import pandas, pyarrow as pa, pyarrow.parquet\n"
        "from mlops_assets.foundation.snapshots import SnapshotStore\n"
        "flush = os.fsync\n"
        "def dying(descriptor):\n"
        "    if next(calls) == at: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    flush(descriptor)\n"
        "for at in range(1, 99):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        calls, os.fsync = itertools.count(1), dying\n"
        "        tables = {'a': pa.table({'x': [1]}), 'b': pa.table({'x': [2]})}\n"
        "        SnapshotStore(f'{sys.argv[1]}/{at}').save('x', tables)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(pid, 0)[1] != signal.SIGKILL: break\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tables = {"a": pa.table({"x": [1]}), "b": pa.table({"x": [2]})}
    points = sorted(int(folder.name) for folder in tmp_path.iterdir())
    assert len(points) > 8  # two staged files, two files placed, the manifest; each with its folder
    for point in points:
        store = SnapshotStore(tmp_path / str(point))
        for whole in store.list("x"):
            whole.verify()
        store.save("x", tables).verify()
        assert len(store.list("x")) == 1


def test_leftovers_of_killed_processes_are_removed_after_a_day(tmp_path: Path) -> None:
    old, fresh = tmp_path / "_staging" / "old", tmp_path / "_staging" / "fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "data.parquet").write_bytes(b"half")
    for path in (old / "data.parquet", old):
        os.utime(path, (time.time() - 100_000,) * 2)
    SnapshotStore(tmp_path).save("x", {"data": LISTENS})
    assert files.names_in(tmp_path / "_staging") == ["fresh"]
