"""Readers of files and tables: nothing guessed, nothing lost, errors that name file and remedy."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, Field, ValidationError

from mlops_assets.foundation import _delimited_text, _warehouse_tables
from mlops_assets.foundation.contracts import UNREADABLE, Column, Contract, TimeFormat, ingest
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.sources import Chunk, FilesSource, SampleSource, Source, TableSource, read

NEEDED = ["user_id", "track_id", "plays"]
CSV = "userId,trackId,n\n007,12,3\n8,,1\n"
MAPPING = {"user_id": "userId", "track_id": "trackId", "plays": "n"}


def block(path: str | tuple[str, ...] = "*.csv", **settings: Any) -> FilesSource:
    return FilesSource.model_validate({"path": path, "columns": MAPPING} | settings)


def chunks_of(folder: Path, source: FilesSource | None = None, **options: Any) -> list[Chunk]:
    return list(read(source or block(), NEEDED, base=folder, **options))


def rows_of(folder: Path, source: FilesSource | None = None, **options: Any) -> list[list[Any]]:
    return [row for frame, _, _ in chunks_of(folder, source, **options) for row in frame.to_numpy().tolist()]


def write(folder: Path, text: str | bytes = CSV, name: str = "listens.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def error_of(folder: Path, source: FilesSource | None = None, needed: list[str] = NEEDED) -> str:
    with pytest.raises(UserError) as raised:
        list(read(source or block(), needed, base=folder))
    return str(raised.value)


# ---- delimited text


def test_text_stays_text_and_empty_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path)

    ((frame, first_row, where),) = chunks_of(tmp_path)

    assert frame.to_numpy().tolist() == [["007", "12", "3"], ["8", None, "1"]]
    assert list(frame.columns) == NEEDED
    assert (first_row, where) == (2, str(path))


@pytest.mark.parametrize(
    ("name", "pack"), [("a.csv.gz", gzip.compress), ("a.csv.bz2", bz2.compress), ("a.csv.xz", lzma.compress)]
)
def test_compression_is_told_by_the_suffix(tmp_path: Path, name: str, pack: Any) -> None:
    write(tmp_path, pack(CSV.encode()), name)
    assert rows_of(tmp_path, block(name))[0] == ["007", "12", "3"]


def test_zstandard_is_read_too(tmp_path: Path) -> None:
    with pa.CompressedOutputStream(str(tmp_path / "a.csv.zst"), "zstd") as out:
        out.write(CSV.encode())
    assert rows_of(tmp_path, block("a.csv.zst"))[0] == ["007", "12", "3"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16"])
def test_every_encoding_gives_the_same_text(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, "userId,trackId,n\nÅsa,Sigur Rós,1\n".encode(encoding))
    assert rows_of(tmp_path, block(encoding=encoding)) == [["Åsa", "Sigur Rós", "1"]]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    write(tmp_path, CSV.encode("utf-8-sig"))
    assert len(rows_of(tmp_path)) == 2


def test_a_multibyte_character_on_the_edge_of_a_block_is_read_whole(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_delimited_text, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(_delimited_text, "_HEAD_BYTES", 31)
    lines = [f"u{n},{'å' * (n % 9)}x,{n}" for n in range(300)]
    write(tmp_path, "userId,trackId,n\n" + "\n".join(lines))

    assert [",".join(row) for row in rows_of(tmp_path)] == lines


@pytest.mark.parametrize("separator", ["::", ";", "\t", "\\t", "|", "¦"])
def test_separators_of_any_length(tmp_path: Path, separator: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(_delimited_text, "_BLOCK_BYTES", 31)
    monkeypatch.setattr(_delimited_text, "_HEAD_BYTES", 31)
    write(
        tmp_path,
        "\n".join([f"u{n},t:{n},{n}".replace(",", separator.replace("\\t", "\t")) for n in range(50)]),
        "a.dat",
    )
    source = block("a.dat", separator=separator, header=False, names=["userId", "trackId", "n"])

    assert rows_of(tmp_path, source) == [[f"u{n}", f"t:{n}", str(n)] for n in range(50)]


def test_tab_separated_files_have_no_quotes_and_comma_separated_files_have(tmp_path: Path) -> None:
    write(tmp_path, 'userId\ttrackId\tn\n1\t"Weird Al" Yankovic\t5\'9"\n', "a.tsv")
    write(tmp_path, 'userId,trackId,n\n1,"a, ""b""\nc",2\n', "a.csv")

    assert rows_of(tmp_path, block("a.tsv")) == [["1", '"Weird Al" Yankovic', "5'9\""]]
    assert rows_of(tmp_path, block("a.csv")) == [["1", 'a, "b"\nc', "2"]]


def test_a_file_without_header_is_numbered_from_one(tmp_path: Path) -> None:
    write(tmp_path, "1,2,3\n")
    ((frame, first_row, _),) = chunks_of(tmp_path, block(header=False, names=["userId", "trackId", "n"]))
    assert (frame.to_numpy().tolist(), first_row) == ([["1", "2", "3"]], 1)


def test_only_the_columns_that_are_needed_are_read_and_one_may_serve_twice(tmp_path: Path) -> None:
    write(tmp_path, "id,name,url\n1,Air,x\n")
    source = FilesSource(path="*.csv", columns={"track_id": "id", "artist_id": "id"})

    ((frame, _, _),) = read(source, ["track_id", "artist_id", "name", "lyrics"], base=tmp_path)

    assert frame.to_dict("records") == [{"track_id": "1", "artist_id": "1", "name": "Air"}]


def test_chunks_are_bounded_and_numbered_on(tmp_path: Path) -> None:
    write(tmp_path, "userId,trackId,n\n" + "1,2,3\n" * 25)
    assert [(len(frame), first) for frame, first, _ in chunks_of(tmp_path, chunk_rows=10)] == [
        (10, 2),
        (10, 12),
        (5, 22),
    ]


def test_many_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "2026").mkdir()
    for name in ("2026/b.csv", "2026/a.csv", "c.csv"):
        write(tmp_path, name=name)
    found = chunks_of(tmp_path, block(("2026/*.csv", "**/*.csv")))
    assert [Path(where).name for _, _, where in found] == ["a.csv", "b.csv", "c.csv"]


@pytest.mark.parametrize("block_bytes", [24, 16 << 20])
def test_unreadable_lines_keep_their_place_and_their_text(tmp_path: Path, monkeypatch: Any, block_bytes: int) -> None:
    monkeypatch.setattr(_delimited_text, "_BLOCK_BYTES", block_bytes)
    write(tmp_path, "userId,trackId,n\n1,a,1\n2,b\n\n3,c,3\n4,d,4,5\n5,e,5\n6\n")
    contract = Contract("listens", (Column("user_id", "text"), Column("track_id", "text"), Column("plays", "number")))

    batches = list(ingest(read(block(), NEEDED, base=tmp_path), contract))

    accepted = pd.concat([batch.accepted for batch in batches])
    refused = pd.concat([batch.quarantined for batch in batches])
    assert accepted["user_id"].to_dict() == {2: "1", 4: "3", 6: "5"}
    assert refused[["row", "rule", "value"]].to_numpy().tolist() == [
        [3, "unreadable_line", "2,b"],
        [5, "unreadable_line", "4,d,4,5"],
        [7, "unreadable_line", "6"],
    ]


def test_an_unreadable_line_survives_a_filter(tmp_path: Path) -> None:
    write(tmp_path, "userId,trackId,n\n1,a,1\n2,b\n3,c,3\n")
    ((frame, _, _),) = chunks_of(tmp_path, block(where={"userId": 3}))
    assert (list(frame.index), frame[UNREADABLE].tolist()) == ([1, 2], ["2,b", None])


def test_a_file_of_nothing_but_unreadable_lines_is_given_up(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_delimited_text, "_PENDING_LINES", 5)
    write(tmp_path, "userId,trackId,n\n" + "1;2;3\n" * 10)
    assert "has over 5 lines" in error_of(tmp_path)


@pytest.mark.parametrize("tail", ["\n", ""])
@pytest.mark.parametrize("line", ['1,2,"open', '1,"open,2'])
def test_a_quote_that_is_never_closed_swallows_nothing_in_silence(tmp_path: Path, line: str, tail: str) -> None:
    write(tmp_path, f"userId,trackId,n\n1,2,3\n{line}\n3,4,5\n6,7,8{tail}")
    assert "a quotation mark is opened in record" in error_of(tmp_path)


def test_a_record_longer_than_a_block_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_delimited_text, "_BLOCK_BYTES", 100)
    write(tmp_path, "userId,trackId,n\n1,2,3\n1," + "x" * 1000 + ",3\n")
    assert "a record longer than" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("data", "fitting"),
    [("Rós".encode("latin-1"), "latin-1"), ("“x”".encode("cp1252"), "cp1252"), ("x".encode("utf-16"), "utf-16")],
)
def test_a_wrong_encoding_names_file_byte_line_and_one_that_fits(tmp_path: Path, data: bytes, fitting: str) -> None:
    text = data if fitting == "utf-16" else CSV.encode() + data
    path = write(tmp_path, text)
    message = error_of(tmp_path)

    at = 0 if fitting == "utf-16" else len(CSV) + next(n for n, byte in enumerate(data) if byte > 127)
    assert message.startswith(f"{path}: is not utf-8: byte {at} ")
    assert f"`encoding: {fitting}` fits" in message
    assert fitting == "utf-16" or "line 4)" in message


def test_utf_16_without_mark_is_recognised_by_its_zero_bytes(tmp_path: Path) -> None:
    write(tmp_path, CSV.encode("utf-16-le"))
    assert "holds a zero byte" in error_of(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_an_error(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    assert "is empty" in error_of(tmp_path)


def test_a_file_with_a_header_only_gives_one_empty_chunk(tmp_path: Path) -> None:
    write(tmp_path, "userId,trackId,n\n")
    ((frame, _, _),) = chunks_of(tmp_path)
    assert (len(frame), list(frame.columns)) == (0, NEEDED)


def test_a_broken_archive_names_the_file(tmp_path: Path) -> None:
    write(tmp_path, gzip.compress(CSV.encode() * 1000)[:-20], "a.csv.gz")
    assert "cannot be decompressed" in error_of(tmp_path, block("a.csv.gz"))


def test_a_path_that_matches_nothing_shows_what_was_looked_for(tmp_path: Path) -> None:
    assert error_of(tmp_path, block("no*.csv")).startswith(f"{tmp_path}/no*.csv: no file matches this path")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "part.csv").mkdir()
    assert "needs a pattern such as folder/*.parquet" in error_of(tmp_path, block("part.csv"))


def test_a_suffix_that_says_nothing_needs_a_format(tmp_path: Path) -> None:
    write(tmp_path, name="a.dat")
    assert "the format of a .dat file is unknown" in error_of(tmp_path, block("a.dat"))


def test_a_mapped_column_that_is_missing_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path)
    message = error_of(tmp_path, block(columns={"user_id": "userid"}))
    assert "column 'userid' (mapped to 'user_id') is missing; the columns there are 'userId', 'trackId', 'n'" in message
    assert "did you mean 'userId'" in message


def test_a_required_column_that_is_not_mapped_shows_the_columns_of_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    contract = Contract("listens", (Column("user_id", "text"),))
    with pytest.raises(UserError, match="the columns there are 'userId', 'trackId', 'n'; did you mean 'userId'"):
        list(ingest(read(FilesSource(path="*.csv"), contract.names, base=tmp_path), contract))


def test_a_mapping_of_an_unknown_column_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    assert "did you mean 'user_id'" in error_of(tmp_path, block(columns={"userid": "userId"}))


def test_column_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "userId,trackId,n,n\n1,2,3,4\n")
    assert "column names occur twice: 'n'" in error_of(tmp_path)


def test_variables_in_paths_come_from_the_environment(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path)
    monkeypatch.setenv("LISTENS_FOLDER", str(tmp_path))

    assert len(chunks_of(Path("/"), block("${LISTENS_FOLDER}/${LISTENS_NAME:-listens}.csv"))) == 1
    assert "environment variable LISTENS_NAME is not set" in error_of(tmp_path, block("${LISTENS_NAME}.csv"))


# ---- what a block can do with the values


def test_where_keeps_rows_by_the_columns_of_the_source_and_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, "userId,trackId,n,country\n1,a,1,SE\n2,b,2,NO\n3,c,3,DK\n4,d,4,NO\n")

    ((frame, first_row, _),) = chunks_of(tmp_path, block(where={"country": ["NO", "DK"], "n": [2, 4]}))

    assert (frame.index + first_row).tolist() == [3, 5]
    assert "'contry' is missing" in error_of(tmp_path, block(where={"contry": "NO"}))


def test_lookups_replace_codes_by_names_and_keep_unknown_codes(tmp_path: Path, caplog: Any) -> None:
    write(tmp_path)
    write(tmp_path, "id;name\n12;Sigur Rós\n".encode("latin-1"), "names.dat")
    lookup = {
        "column": "track_id",
        "path": "names.dat",
        "key": "id",
        "value": "name",
        "separator": ";",
        "encoding": "latin-1",
    }

    assert [row[1] for row in rows_of(tmp_path, block(lookups=[lookup]))] == ["Sigur Rós", None]
    assert [row[0] for row in rows_of(tmp_path, block(lookups=[lookup | {"column": "user_id"}]))] == ["007", "8"]
    assert "2 codes are not in names.dat, such as '007'" in caplog.text


def test_aggregate_joins_the_texts_of_a_key_most_frequent_first(tmp_path: Path) -> None:
    write(tmp_path, "id,tag\n1,post rock\n2,pop\n1,sad\n1,post rock\n,lost\n3,\n1\n1,air\n")
    source = FilesSource(
        path="*.csv", columns={"track_id": "id", "tags": "tag"}, aggregate={"by": "track_id", "join": "tags", "top": 2}
    )  # type: ignore[arg-type]

    (bad, first, _), (frame, _, _) = read(source, ["track_id", "tags", "title"], base=tmp_path, chunk_rows=100)

    assert frame.to_numpy().tolist() == [["1", "post_rock air"], ["2", "pop"], [None, "lost"], ["3", None]]
    assert ((bad.index + first).tolist(), bad[UNREADABLE].tolist()) == ([8], ["1"])


def test_aggregate_gives_the_same_whatever_the_chunk_size(tmp_path: Path) -> None:
    write(tmp_path, "userId,trackId,n\n" + "".join(f"{n % 7},t{n % 5},1\n" for n in range(200)))
    source = block(aggregate={"by": "user_id", "join": "track_id"})
    assert rows_of(tmp_path, source, chunk_rows=9) == rows_of(tmp_path, source)


def test_replace_changes_texts_in_order(tmp_path: Path) -> None:
    write(tmp_path, "userId,trackId,n\n1,A|B,1\n2,(none),1\n3,,1\n")
    source = block(replace={"track_id": {"(none)": "", "|": " "}})
    assert [row[1] for row in rows_of(tmp_path, source)] == ["A B", "", None]


def test_the_time_format_reaches_the_contract(tmp_path: Path) -> None:
    write(tmp_path, "at\n964982703\n2026-11-16\n")
    contract = Contract("events", (Column("at", "time"),), time_column="at")

    (batch,) = ingest(read(FilesSource(path="*.csv", time=TimeFormat(unit="s")), ["at"], base=tmp_path), contract)

    assert batch.accepted["at"].tolist() == [pd.Timestamp("2000-07-30T18:45:03Z")]
    assert batch.quarantined[["row", "rule", "bound"]].values.tolist() == [
        [3, "not_a_time", "a number of s since 1970"]
    ]


# ---- Parquet


def test_parquet_is_read_in_chunks_with_its_own_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "userId": pa.array([1, None, 3], pa.int64()),
            "trackId": pa.array(["a", "b", "c"]).dictionary_encode(),
            "n": pa.array([["post rock", "sad"], None, []], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)

    found = chunks_of(tmp_path, block("a.parquet"), chunk_rows=2)

    assert [(len(frame), first) for frame, first, _ in found] == [(2, 1), (1, 3)]
    contract = Contract("x", tuple(Column(name, "text", nullable=True) for name in NEEDED))
    accepted = pd.concat([batch.accepted for batch in ingest(found, contract)])
    assert accepted.to_numpy().tolist() == [["1", "a", "post_rock sad"], [None, "b", None], ["3", "c", None]]


def test_an_empty_parquet_file_gives_one_empty_chunk(tmp_path: Path) -> None:
    pq.write_table(
        pa.table(
            {"userId": pa.array([], pa.string()), "trackId": pa.array([], pa.string()), "n": pa.array([], pa.int64())}
        ),
        tmp_path / "a.parquet",
    )
    ((frame, _, _),) = chunks_of(tmp_path, block("a.parquet"))
    assert len(frame) == 0


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write(tmp_path, name="a.parquet")
    assert "is no readable Parquet file" in error_of(tmp_path, block("a.parquet"))


# ---- tables


class DuckWarehouse:
    """A warehouse on one DuckDB connection that remembers the statements."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.statements = connection, list[str]()

    def stream(self, sql: str, rows: int) -> Iterator[pd.DataFrame]:
        self.statements.append(sql)
        for batch in self.connection.sql(sql).to_arrow_reader(rows):
            yield batch.to_pandas()


@pytest.fixture
def warehouse() -> Iterator[DuckWarehouse]:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(
            'create table "my listens" (USER_ID int, "track ""id" text, "at" timestamp, note text, at_text text)'
        )
        connection.executemany(
            'insert into "my listens" values (?, ?, ?, ?, ?)',
            [
                (1, "a", "2026-11-17 08:00:00", "it's", "2026-11-17"),
                (2, "b", None, "x", None),
                (3, "c", "2026-10-01 08:00:00", "x", "garbage"),
            ],
        )
        yield DuckWarehouse(connection)


WINDOW = (datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC))


def table_block(**settings: Any) -> TableSource:
    return TableSource.model_validate(
        {"table": "my listens", "columns": {"track_id": 'track "id', "listened_at": "at"}} | settings
    )


def read_table(warehouse: DuckWarehouse, source: TableSource, **options: Any) -> pd.DataFrame:
    needed = ["user_id", "track_id", "listened_at", "plays"]
    found = list(read(source, needed, warehouse=warehouse, time_column="listened_at", **options))
    assert [where for _, _, where in found] == ["my listens"] * len(found)
    return pd.concat([frame for frame, _, _ in found])


def test_a_table_is_read_by_quoted_names_whatever_their_case(warehouse: DuckWarehouse) -> None:
    frame = read_table(warehouse, table_block())
    assert list(frame.columns) == ["user_id", "track_id", "listened_at"]
    assert frame["track_id"].tolist() == ["a", "b", "c"]


def test_a_window_asks_the_table_for_its_rows_and_those_without_time(warehouse: DuckWarehouse) -> None:
    assert read_table(warehouse, table_block(), window=WINDOW)["track_id"].tolist() == ["a", "b"]
    assert "cast('2026-11-15 00:00:00' as timestamp)" in warehouse.statements[-1]


def test_times_kept_as_text_are_not_compared_in_the_table(warehouse: DuckWarehouse) -> None:
    source = table_block(columns={"track_id": 'track "id', "listened_at": "at_text"})
    assert len(read_table(warehouse, source, window=WINDOW)) == 3


def test_a_filter_value_is_a_literal_not_a_piece_of_sql(warehouse: DuckWarehouse) -> None:
    assert read_table(warehouse, table_block(where={"note": "it's"}))["track_id"].tolist() == ["a"]
    assert read_table(warehouse, table_block(where={"user_id": [2, 3]}))["track_id"].tolist() == ["b", "c"]
    assert len(read_table(warehouse, table_block(where={"note": "' or 1=1 --"}))) == 0


def test_a_column_that_a_table_lacks_is_named(warehouse: DuckWarehouse) -> None:
    with pytest.raises(UserError, match="'usr' \\(mapped to 'user_id'\\) is missing; the columns there are 'USER_ID'"):
        read_table(warehouse, table_block(columns={"user_id": "usr"}))


def test_an_empty_table_gives_one_empty_chunk(warehouse: DuckWarehouse) -> None:
    warehouse.connection.execute('delete from "my listens"')
    assert len(read_table(warehouse, table_block(), window=WINDOW)) == 0


def test_a_table_name_is_split_at_dots_outside_quotes() -> None:
    assert _warehouse_tables._quoted_table('raw.my listens."a.b"') == 'raw."my listens"."a.b"'
    with pytest.raises(ValidationError):
        TableSource(table='x"; drop table y; --')


# ---- S3


@pytest.fixture(scope="module")
def listens_on_s3(s3_endpoint: str) -> dict[str, Any]:
    import boto3

    settings = {"endpoint_url": s3_endpoint, "key": "${S3_TEST_KEY:-test}", "secret": "test"}
    client = boto3.client(
        "s3", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket="listens")
    client.put_object(Bucket="listens", Key="2026/a.csv.gz", Body=gzip.compress(CSV.encode()))
    client.put_object(Bucket="listens", Key="2026/b.csv", Body=CSV.encode())
    return settings | {"client": client}


def s3_block(path: str, listens_on_s3: dict[str, Any]) -> FilesSource:
    options = {key: value for key, value in listens_on_s3.items() if key != "client"}
    return block(path, storage_options=options)


def test_files_on_s3_are_found_by_pattern_and_read(tmp_path: Path, listens_on_s3: dict[str, Any]) -> None:
    found = chunks_of(tmp_path, s3_block("s3://listens/2026/*", listens_on_s3))
    assert [where for _, _, where in found] == ["s3://listens/2026/a.csv.gz", "s3://listens/2026/b.csv"]
    assert found[0][0].equals(found[1][0])


def test_a_file_that_comes_later_is_found_too(tmp_path: Path, listens_on_s3: dict[str, Any]) -> None:
    source = s3_block("s3://listens/late/*.csv", listens_on_s3)
    listens_on_s3["client"].put_object(Bucket="listens", Key="late/a.csv", Body=CSV.encode())
    assert len(chunks_of(tmp_path, source)) == 1
    listens_on_s3["client"].put_object(Bucket="listens", Key="late/b.csv", Body=CSV.encode())
    assert len(chunks_of(tmp_path, source)) == 2


@pytest.mark.parametrize("path", ["s3://listens/none/*.csv", "s3://no-such-bucket/a.csv", "s3://no-such-bucket/*.csv"])
def test_what_is_not_on_s3_is_named(tmp_path: Path, listens_on_s3: dict[str, Any], path: str) -> None:
    assert error_of(tmp_path, s3_block(path, listens_on_s3)).startswith(path)


def test_an_endpoint_that_does_not_answer_is_named(tmp_path: Path) -> None:
    options = {
        "endpoint_url": "http://127.0.0.1:9",
        "key": "a",
        "secret": "b",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    message = error_of(tmp_path, block("s3://listens/a.csv", storage_options=options))
    assert "s3://listens/a.csv: cannot be read" in message
    assert "check bucket and key, credentials" in message


# ---- the blocks


class Holder(BaseModel):
    source: Source = Field(discriminator="kind")


def test_the_kind_tells_the_block_and_further_sample_settings_are_free() -> None:
    sample = Holder.model_validate({"source": {"kind": "sample", "users": 50}}).source
    assert isinstance(sample, SampleSource)
    assert sample.parameters == {"users": 50}
    assert isinstance(Holder.model_validate({"source": {"kind": "files", "path": ["a.csv"]}}).source, FilesSource)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "files", "path": "a.csv", "seperator": ";"},
        {"kind": "files", "path": "a.csv", "encoding": "utf-9"},
        {"kind": "files", "path": "a.csv", "header": False},
        {"kind": "files", "path": "a.csv", "names": ["a"]},
        {"kind": "table", "table": "a", "path": "b"},
        {"kind": "file", "path": "a.csv"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Holder.model_validate({"source": settings})


def test_every_setting_is_described_and_survives_json() -> None:
    for model in (FilesSource, TableSource):
        assert all(field.description for name, field in model.model_fields.items() if name != "kind")
    source = block(time={"unit": "ms"})
    assert FilesSource.model_validate(json.loads(source.model_dump_json())) == source


# ---- real files

DATA = Path(os.environ.get("MLOPS_ASSETS_TEST_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not here (MLOPS_ASSETS_TEST_DATA)")
def test_lastfm_tags_become_names_joined_for_each_artist() -> None:
    lookup = {
        "column": "tags",
        "path": "tags.dat",
        "format": "tsv",
        "encoding": "latin-1",
        "key": "tagID",
        "value": "tagValue",
    }
    source = FilesSource.model_validate(
        {
            "path": "user_taggedartists.dat",
            "format": "tsv",
            "columns": {"track_id": "artistID", "tags": "tagID"},
            "lookups": [lookup],
            "aggregate": {"by": "track_id", "join": "tags", "top": 3},
        }
    )

    ((frame, _, _),) = read(source, ["track_id", "tags"], base=DATA / "lastfm")

    assert len(frame) == 12_523
    assert frame.set_index("track_id")["tags"]["52"] == "trip-hop chillout downtempo"
    with pytest.raises(UserError, match=r"tags\.dat: is not utf-8: byte .* `encoding: latin-1` fits"):
        list(
            read(
                source.model_copy(update={"lookups": (source.lookups[0].model_copy(update={"encoding": "utf-8"}),)}),
                ["track_id", "tags"],
                base=DATA / "lastfm",
            )
        )
