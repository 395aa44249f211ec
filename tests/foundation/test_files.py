"""Files are there whole or not at all, on a disk and on an object store."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from upath import UPath

from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError


@pytest.fixture(params=["path", "file-url", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | UPath:
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return tmp_path / "new" if request.param == "path" else UPath(f"file://{tmp_path}/new")


def test_a_written_file_reads_back_with_its_hash(folder: Path | UPath) -> None:
    sha256 = files.write_atomic(folder / "a.bin", b"rows")
    assert files.read_bytes(folder / "a.bin") == b"rows"
    assert sha256 == files.sha256_of(folder / "a.bin") == files.sha256_hex(b"rows")
    assert files.names_in(folder) == ["a.bin"]
    assert files.sizes_in(folder) == {"a.bin": 4}
    assert files.size_of(folder / "a.bin") == 4


def test_a_file_url_is_written_where_it_says(tmp_path: Path) -> None:
    files.write_atomic(UPath(f"file://{tmp_path}/here/a.bin"), b"rows")
    assert (tmp_path / "here" / "a.bin").read_bytes() == b"rows"


@pytest.mark.parametrize("size", [10, 60 << 20], ids=["one request", "many parts"])
def test_a_writer_whose_body_fails_leaves_the_old_file(folder: Path | UPath, size: int) -> None:
    files.write_atomic(folder / "a.bin", b"old")
    with pytest.raises(RuntimeError, match="half way"), files.atomic_writer(folder / "a.bin") as handle:
        handle.write(b"n" * size)
        raise RuntimeError("half way")
    assert files.read_bytes(folder / "a.bin") == b"old"
    assert files.names_in(folder) == ["a.bin"]


def test_an_upload_that_failed_leaves_no_parts_to_pay_for(bucket: UPath) -> None:
    with pytest.raises(KeyboardInterrupt), files.atomic_writer(bucket / "a.bin") as handle:
        handle.write(b"n" * (60 << 20))
        raise KeyboardInterrupt
    assert not bucket.fs.call_s3("list_multipart_uploads", Bucket=bucket.path.strip("/")).get("Uploads")


def test_a_missing_bucket_is_a_user_error_that_names_it(s3_endpoint: str) -> None:
    nowhere = UPath("s3://no-such-bucket/a.bin", endpoint_url=s3_endpoint, key="key", secret="secret")
    with pytest.raises(UserError, match=r"s3://no-such-bucket/a\.bin: cannot write.*bucket"):
        files.write_atomic(nowhere, b"rows")


def test_create_makes_a_file_once(folder: Path | UPath) -> None:
    assert files.create(folder / "a.json", b"first")
    assert not files.create(folder / "a.json", b"second")
    assert files.read_bytes(folder / "a.json") == b"first"
    assert files.names_in(folder) == ["a.json"]


def test_create_looks_before_and_after_on_a_store_without_conditional_puts(
    bucket: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bucket.fs.pipe_file

    def pipe_file(path: str, value: bytes, mode: str = "overwrite") -> object:
        if mode == "create":
            raise NotImplementedError("If-None-Match")
        return whole(path, value)

    monkeypatch.setattr(bucket.fs, "pipe_file", pipe_file)
    assert files.create(bucket / "a.json", b"first")
    assert not files.create(bucket / "a.json", b"second")
    assert files.read_bytes(bucket / "a.json") == b"first"


def test_reading_is_never_served_from_a_listing_cache(bucket: UPath, s3_endpoint: str) -> None:
    files.write_atomic(bucket / "a.json", b"1")
    assert files.names_in(bucket) == ["a.json"]
    # Another process has another file system object: here one that shares no cache with the first.
    other = UPath(str(bucket), endpoint_url=s3_endpoint, key="key", secret="secret", skip_instance_cache=True)
    files.write_atomic(other / "a.json", b"longer than before")
    files.write_atomic(other / "b.json", b"2")
    assert files.read_bytes(bucket / "a.json") == b"longer than before"
    assert files.size_of(bucket / "a.json") == 18
    assert files.names_in(bucket) == ["a.json", "b.json"]


def test_several_files_are_read_at_once(folder: Path | UPath) -> None:
    for name in ("a", "b"):
        files.write_atomic(folder / name, name.encode())
    assert files.read_many(folder, ["a", "b"]) == {"a": b"a", "b": b"b"}
    assert files.read_many(folder, ["a"]) == {"a": b"a"}
    assert files.read_many(folder, []) == {}


def test_a_folder_that_is_not_there_is_empty(folder: Path | UPath) -> None:
    assert files.names_in(folder / "no") == []
    assert files.sizes_in(folder / "no") == {}
    assert files.size_of(folder / "no") is None


def test_a_full_disk_is_a_user_error_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomic(tmp_path / "a.bin", b"old")

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"a\.bin: cannot write: No space left.*free space"):
        files.write_atomic(tmp_path / "a.bin", b"new")
    assert files.names_in(tmp_path) == ["a.bin"]
    assert files.read_bytes(tmp_path / "a.bin") == b"old"


def test_a_write_that_the_kernel_cuts_short_is_a_user_error(tmp_path: Path) -> None:
    # A limit on file sizes fails in the middle of a real write, and needs no rights to set up.
    script = (
        "import resource, sys; from pathlib import Path; from mlops_assets.foundation import files\n"
        "from mlops_assets.foundation.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write_atomic(Path(sys.argv[1]), bytes(5000))\n"
        "except UserError as error: print(error)\n"
    )
    root = Path(files.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.bin")],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write: File too large" in done.stdout
    assert files.names_in(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    # As root a read-only folder can be written all the same, so the parent is a file.
    (tmp_path / "file").write_bytes(b"")
    for write in (files.write_atomic, files.create):
        with pytest.raises(UserError, match="cannot write: Not a directory"):
            write(tmp_path / "file" / "below" / "a.bin", b"rows")


def test_placing_moves_a_finished_file(folder: Path | UPath, tmp_path: Path) -> None:
    source = tmp_path / "ready.bin"
    source.write_bytes(b"rows")
    files.place(source, folder / "a.bin")
    assert files.read_bytes(folder / "a.bin") == b"rows"


def test_verify_names_a_changed_and_a_missing_file(folder: Path | UPath) -> None:
    sha256 = files.write_atomic(folder / "a.bin", b"rows")
    files.verify(folder / "a.bin", sha256)
    files.write_atomic(folder / "a.bin", b"Rows")
    with pytest.raises(UserError, match=r"a\.bin: the bytes were changed or damaged"):
        files.verify(folder / "a.bin", sha256, again=True)
    with pytest.raises(UserError, match=r"a\.bin: the bytes were changed or damaged"):
        files.read_verified(folder / "a.bin", sha256)
    for read in (files.verify, files.read_verified):
        with pytest.raises(UserError, match=r"b\.bin: the file is missing"):
            read(folder / "b.bin", sha256)


def test_a_local_change_is_noticed_without_asking_for_a_new_look(tmp_path: Path) -> None:
    sha256 = files.write_atomic(tmp_path / "a.bin", b"rows")
    files.verify(tmp_path / "a.bin", sha256)
    (tmp_path / "a.bin").write_bytes(b"rows and more")
    with pytest.raises(UserError, match="changed"):
        files.verify(tmp_path / "a.bin", sha256)


def test_equal_rows_are_equal_parquet_bytes_however_they_were_cut() -> None:
    rows = files.ROW_GROUP_ROWS * 2 + 17
    table = pa.table(
        {"id": [f"u{i % 999}" for i in range(rows)], "x": range(rows), "b": [i % 3 == 0 for i in range(rows)]}
    )
    pieces = [table.slice(start, 10_007) for start in range(0, rows, 10_007)]
    chopped = pa.concat_tables([pa.Table.from_batches(piece.to_batches()) for piece in pieces])
    assert chopped.column("x").num_chunks > 20
    assert files.parquet_bytes(table) == files.parquet_bytes(chopped)


def test_pandas_metadata_does_not_reach_parquet_bytes() -> None:
    import pandas as pd

    frame = pd.DataFrame({"x": [1, 2]})
    assert files.parquet_bytes(pa.Table.from_pandas(frame)) == files.parquet_bytes(pa.table({"x": [1, 2]}))
    assert b"pandas" not in files.parquet_bytes(pa.Table.from_pandas(frame))


def test_canonical_json_has_one_text_and_no_nan() -> None:
    assert files.canonical_json({"b": 1, "a": "å"}) == '{"a":"å","b":1}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        files.canonical_json({"a": float("nan")})
