"""The warehouse: one transaction a session, one writer at a time, and a clear word when it is held by another."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import ObjectStore, Warehouse

_HOLD = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
connection.execute("create table if not exists held as select 1 as one")
print("held", flush=True)
sys.stdin.readline()
connection.close()
print("released", flush=True)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the warehouse until it reads a line."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path / "warehouse.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.terminate()


def _rows(warehouse: Warehouse, table: str) -> list[int]:
    return [int(value) for value in warehouse.query(f"select n from {table} order by n")["n"]]


def _release(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_second_process_waits_for_its_turn(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    warehouse = Warehouse(database=str(tmp_path / "warehouse.duckdb"), wait_seconds=60)
    started = time.monotonic()
    threading.Timer(0.5, _release, [holder]).start()
    assert list(warehouse.query("select one from held")["one"]) == [1]
    assert time.monotonic() - started >= 0.4


def test_a_warehouse_that_stays_held_is_named_with_the_remedy(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    warehouse = Warehouse(database=str(tmp_path / "warehouse.duckdb"), wait_seconds=0.3)
    with pytest.raises(UserError, match="cannot open the warehouse") as caught:
        warehouse.query("select 1")
    assert str(tmp_path / "warehouse.duckdb") in str(caught.value)
    assert "close the process that holds the file" in str(caught.value)


def test_a_file_that_is_no_warehouse_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "warehouse.duckdb").write_bytes(b"no database" * 1_000)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"warehouse\.duckdb: cannot open the warehouse"):
        Warehouse(database=str(tmp_path / "warehouse.duckdb")).query("select 1")
    assert time.monotonic() - started < 5


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open the warehouse"):
        Warehouse(database=str(tmp_path)).query("select 1")


def test_all_that_a_session_writes_is_there_after_it(warehouse: Warehouse) -> None:
    with warehouse.session() as tables:
        tables.ensure("a.t", {"n": "bigint"})
        tables.append("a.t", pd.DataFrame({"n": [1, 2]}))
    assert _rows(warehouse, "a.t") == [1, 2]


def test_nothing_that_a_failed_session_wrote_is_there(warehouse: Warehouse) -> None:
    with warehouse.session() as tables:
        tables.ensure("a.t", {"n": "bigint"})
        tables.append("a.t", pd.DataFrame({"n": [1]}))
    with pytest.raises(ZeroDivisionError), warehouse.session() as tables:
        tables.execute("delete from a.t")
        tables.ensure("a.other", {"n": "bigint"})
        raise ZeroDivisionError
    assert _rows(warehouse, "a.t") == [1]
    with warehouse.session() as tables:
        assert not tables.exists("a.other")


def test_a_replacement_that_fails_midway_leaves_the_old_rows(warehouse: Warehouse) -> None:
    def frames(*, broken: bool) -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"n": [3, 4]})
        if broken:
            raise OSError("the disk is gone")

    assert warehouse.replace("a.t", {"n": "bigint"}, frames(broken=False)) == 2
    with pytest.raises(OSError, match="the disk is gone"):
        warehouse.replace("a.t", {"n": "bigint"}, frames(broken=True))
    assert _rows(warehouse, "a.t") == [3, 4]


def test_columns_are_matched_by_name(warehouse: Warehouse) -> None:
    with warehouse.session() as tables:
        tables.ensure("a.t", {"n": "bigint", '"column"': "varchar"})
        tables.append("a.t", pd.DataFrame({"column": ["x"], "n": [1]}))
        assert tables.query("select * from a.t").to_dict("records") == [{"n": 1, "column": "x"}]


def test_an_empty_frame_changes_nothing(warehouse: Warehouse) -> None:
    with warehouse.session() as tables:
        tables.ensure("a.t", {"n": "bigint"})
        tables.append("a.t", pd.DataFrame())
        assert tables.query("select * from a.t").empty


def test_values_are_parameters_and_not_sql(warehouse: Warehouse) -> None:
    assert warehouse.query("select ? as text", ["'; drop table a.t; --"])["text"][0] == "'; drop table a.t; --"


def test_a_stream_has_every_row_once_in_pieces(warehouse: Warehouse) -> None:
    warehouse.replace("a.t", {"n": "bigint"}, [pd.DataFrame({"n": range(10_000)})])
    frames = list(warehouse.stream("select n from a.t order by n", rows=3_000))
    assert [len(frame) for frame in frames][:1] <= [3_000]
    assert max(len(frame) for frame in frames) <= 3_000
    assert pd.concat(frames)["n"].tolist() == list(range(10_000))


def test_a_reader_tells_its_columns_without_rows(warehouse: Warehouse) -> None:
    with warehouse.session() as tables:
        assert tables.reader("select 1 as a, 'x' as b where false").schema.names == ["a", "b"]


def test_a_memory_limit_reaches_the_engine(tmp_path: Path) -> None:
    warehouse = Warehouse(database=str(tmp_path / "w.duckdb"), memory_limit="512MB")
    limit = str(warehouse.query("select current_setting('memory_limit') as limit")["limit"][0])
    assert limit.startswith(("488", "512"))


def test_a_folder_of_the_warehouse_is_made_when_it_is_needed(tmp_path: Path) -> None:
    Warehouse(database=str(tmp_path / "new" / "w.duckdb")).query("select 1")
    assert (tmp_path / "new" / "w.duckdb").is_file()


def test_objects_lie_below_the_root(tmp_path: Path) -> None:
    store = ObjectStore(root=str(tmp_path))
    assert str(store.path("snapshots", "x")) == str(tmp_path / "snapshots" / "x")
    assert str(store.path()) == str(tmp_path)


def test_text_that_is_all_missing_stays_text(place: Environment) -> None:
    """The table keeps its type from week to week, and the next week's texts still fit in."""
    import dagster as dg

    from mlops_assets.discover_weekly.pipeline import as_table

    frames = [
        pd.DataFrame({"track_id": ["t1"], "title": [None], "explicit": [True]}),
        pd.DataFrame({"track_id": ["t1"], "title": ["Blue"], "explicit": [False]}),
    ]

    @dg.asset(key=["a", "tracks"], io_manager_key="tables")
    def tracks() -> pd.DataFrame:
        return as_table(frames[0])

    resources: dict[str, Any] = place.resources()
    place.home.mkdir()
    for _ in range(2):
        assert dg.materialize([tracks], resources={"tables": resources["tables"]}).success
        found = resources["warehouse"].query(
            "select column_name, data_type from information_schema.columns where table_schema = 'a' order by 1"
        )
        kinds = dict(found.itertuples(index=False))
        assert kinds == {"explicit": "BOOLEAN", "title": "VARCHAR", "track_id": "VARCHAR"}
        del frames[:-1]
    assert resources["warehouse"].query("select title from a.tracks")["title"].tolist() == ["Blue"]


def test_a_frame_that_does_not_fit_leaves_the_table_as_it_was(place: Environment) -> None:
    resources = place.resources()

    def write(frame: pd.DataFrame) -> bool:
        @dg.asset(key=["a", "people"], io_manager_key="tables")
        def people() -> pd.DataFrame:
            return frame

        return dg.materialize([people], resources={"tables": resources["tables"]}, raise_on_error=False).success

    good = pd.DataFrame({"user_id": ["u1", "u2", "u3"]})
    assert write(good)
    assert not write(good.assign(surprise=1))
    assert len(resources["warehouse"].query("select * from a.people")) == 3  # type: ignore[attr-defined]
    assert write(good.head(2))
    assert len(resources["warehouse"].query("select * from a.people")) == 2  # type: ignore[attr-defined]
