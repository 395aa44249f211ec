"""Files that are there whole or not at all, on a local disk or an object store.

What belongs here: atomic writes, hashes, and the one way in which rows become Parquet bytes (same rows, same
bytes). What does not: what the bytes mean.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
from upath import UPath

from mlops_assets.foundation.errors import UserError

AnyPath = Path | UPath

ROW_GROUP_ROWS = 131_072
"""Rows in a Parquet row group; part of what makes equal rows equal bytes, so it never changes."""

_CHUNK = 1 << 20
_verified: set[tuple[Any, ...]] = set()


def is_local(path: AnyPath) -> bool:
    """Tell whether ``path`` lies on this machine's file system."""
    return isinstance(path, Path) or getattr(path, "protocol", "") in ("", "file", "local")


def on_disk(path: AnyPath) -> Path:
    """Return a local path as a plain `Path`."""
    # str() of file:///x keeps the scheme and would name a folder "file:" in the working directory.
    return path if isinstance(path, Path) else Path(path.path)


def _in_store(path: AnyPath) -> UPath:
    return cast(UPath, path)


def _cannot_write(path: AnyPath, error: OSError) -> UserError:
    mend = "free space or make the folder writable"
    if not is_local(path):
        mend = "check the bucket, its permissions and the connection"
    return UserError(
        f"cannot write: {error.strerror or error}",
        where=str(path),
        remedy=f"{mend}, then run again; nothing that was there before is lost.",
    )


def _keep_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _settle(handle: IO[bytes]) -> None:
    handle.flush()
    os.fsync(handle.fileno())
    handle.close()  # an open file cannot be renamed on Windows


@contextmanager
def _staged(final: Path) -> Iterator[tuple[IO[bytes], Path]]:
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as handle:
            yield handle, temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_writer(path: AnyPath) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing so that readers see the old file or the whole new one, never a part.

    A local file is written beside its place, flushed to the disk and renamed. An object store makes an
    object visible when its upload is complete; an upload that failed, or whose body raised, is aborted.

    Raises
    ------
    UserError
        The folder cannot be written or the disk is full; the old file, if any, is untouched.
    """
    try:
        if not is_local(path):
            upload = path.open("wb")
            try:
                yield upload
                upload.close()
            except BaseException:
                _abort(upload)
                raise
            return
        final = on_disk(path)
        with _staged(final) as (handle, temporary):
            yield handle
            _settle(handle)
            temporary.replace(final)
            _keep_folder(final.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _abort(handle: Any) -> None:
    # Leaving the handle to its own close() would complete the upload and publish half a file.
    discard = getattr(handle, "discard", None)
    if discard is not None:
        with suppress(Exception):
            discard()
        with suppress(AttributeError):
            handle.closed = True


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: AnyPath, data: bytes) -> str:
    """Write ``data`` to ``path`` atomically and return its SHA-256 in hex."""
    with atomic_writer(path) as handle:
        handle.write(data)
    return sha256_hex(data)


def place(source: Path, target: AnyPath) -> None:
    """Put a finished local file at ``target``, atomically: moved on the same disk, else uploaded.

    Raises
    ------
    UserError
        The target cannot be written; what was there before stays.
    """
    try:
        if not is_local(target):
            with source.open("rb") as handle, atomic_writer(target) as upload:
                shutil.copyfileobj(handle, upload, _CHUNK)
            return
        final = on_disk(target)
        final.parent.mkdir(parents=True, exist_ok=True)
        source.replace(final)
        _keep_folder(final.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error


def create(path: AnyPath, data: bytes) -> bool:
    """Write ``data`` to ``path`` only if nothing is there; of several at once, one succeeds.

    Returns
    -------
    bool
        True if this call made the file, False if it was there already.

    Notes
    -----
    Locally a whole file is linked into place. On an object store it is a conditional put (If-None-Match); a store
    that does not know it gets a look before and a look after, which narrows the race without closing it.
    """
    try:
        if is_local(path):
            final = on_disk(path)
            with _staged(final) as (handle, temporary):
                handle.write(data)
                _settle(handle)
                os.link(temporary, final)
                _keep_folder(final.parent)
            return True
        far = _in_store(path)
        try:
            far.fs.pipe_file(far.path, data, mode="create")
        except (NotImplementedError, TypeError, ValueError):
            if size_of(far) is not None:
                return False
            far.fs.pipe_file(far.path, data)
        return read_bytes(path) == data
    except FileExistsError:
        return False
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_bytes(path: AnyPath) -> bytes:
    """Return a small file's bytes as they are now, past any listing cache.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    """
    if is_local(path):
        return on_disk(path).read_bytes()
    far = _in_store(path)
    data: bytes = far.fs.cat_file(far.path)
    return data


def read_many(folder: AnyPath, names: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of several small files of ``folder``; an object store is asked for all at once."""
    if is_local(folder):
        return {name: read_bytes(folder / name) for name in names}
    far = _in_store(folder)
    paths = {(far / name).path: name for name in names}
    found = far.fs.cat(list(paths)) if paths else {}
    return {paths[path]: data for path, data in found.items()}


def names_in(folder: AnyPath) -> list[str]:
    """Return the sorted names in ``folder`` as they are now; none if there is no such folder."""
    try:
        if is_local(folder):
            return sorted(entry.name for entry in on_disk(folder).iterdir())
        far = _in_store(folder)
        far.fs.invalidate_cache(far.path)
        listed = {str(path).rstrip("/") for path in far.fs.ls(far.path, detail=False)}
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(path.rsplit("/", 1)[-1] for path in listed if path != far.path.rstrip("/"))


def sizes_in(folder: AnyPath) -> dict[str, int]:
    """Return the size in bytes of every file in ``folder`` by name, in one look; none if there is no such folder."""
    try:
        if is_local(folder):
            return {entry.name: entry.stat().st_size for entry in on_disk(folder).iterdir()}
        far = _in_store(folder)
        far.fs.invalidate_cache(far.path)
        return {str(e["name"]).rsplit("/", 1)[-1]: int(e["size"] or 0) for e in far.fs.ls(far.path, detail=True)}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def size_of(path: AnyPath) -> int | None:
    """Return a file's size in bytes, or None if there is no such file."""
    try:
        if is_local(path):
            return on_disk(path).stat().st_size
        far = _in_store(path)
        far.fs.invalidate_cache(far.parent.path)
        return int(far.fs.info(far.path)["size"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def sha256_of(path: AnyPath) -> str:
    """Return the SHA-256 of a file's bytes in hex, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _damaged(path: AnyPath, actual: str | None = None, recorded: str = "") -> UserError:
    change = f"the bytes were changed or damaged: SHA-256 {actual}, recorded was {recorded}"
    return UserError(
        change if actual else "the file is missing",
        where=str(path),
        remedy="restore the file from a backup, or make it again by running the step that wrote it.",
    )


def verify(path: AnyPath, sha256: str, *, again: bool = False) -> None:
    """Check a file against its recorded SHA-256, once per process and file (a changed local file: again).

    Raises
    ------
    UserError
        The file is missing or its bytes are not those that were recorded.
    """
    key: tuple[Any, ...] = (str(path), sha256)
    try:
        if is_local(path):
            found = on_disk(path).stat()
            key += (found.st_ino, found.st_size, found.st_mtime_ns)
        if key in _verified and not again:
            return
        actual = sha256_of(path)
    except FileNotFoundError as error:
        raise _damaged(path) from error
    if actual != sha256:
        raise _damaged(path, actual, sha256)
    _verified.add(key)


def read_verified(path: AnyPath, sha256: str) -> bytes:
    """Return a file's bytes after checking exactly these bytes against their recorded SHA-256.

    Raises
    ------
    UserError
        As for `verify`.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise _damaged(path) from error
    actual = sha256_hex(data)
    if actual != sha256:
        raise _damaged(path, actual, sha256)
    return data


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of ``value``: sorted keys, no spaces, UTF-8; NaN and infinity are errors."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def columns_of(schema: pa.Schema) -> list[list[str]]:
    """Return a table's columns as [name, Arrow type], as manifests and records hold them."""
    return [[column.name, str(column.type)] for column in schema]


def write_parquet(sink: IO[bytes], schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write rows as Parquet so that equal rows give equal bytes, however they were cut into batches.

    Fixed settings and row groups; no clock, host or pandas version goes in. The bytes still name the pyarrow release
    that wrote them, so equal bytes are promised within one release only. Memory: one row group and one batch.

    Returns
    -------
    int
        The number of rows written.
    """
    import pyarrow.parquet as pq

    schema = pa.schema([field.remove_metadata() for field in schema], metadata=schema.metadata)
    rows = 0
    with pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        compression="zstd",
        compression_level=3,
        data_page_version="1.0",
        use_dictionary=True,
        write_statistics=True,
    ) as writer:
        for group in _row_groups(schema, batches):
            # Page boundaries follow the chunks of a column: one chunk, one layout.
            writer.write_table(group.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
            rows += group.num_rows
    return rows


def parquet_bytes(table: pa.Table) -> bytes:
    """Return ``table`` as Parquet bytes that depend on its rows and column types alone."""
    sink = io.BytesIO()
    write_parquet(sink, table.schema.remove_metadata(), table.to_batches())
    return sink.getvalue()


def _row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        pending.append(batch)
        held += batch.num_rows
        while held >= ROW_GROUP_ROWS:
            table = pa.Table.from_batches(pending, schema)
            yield table.slice(0, ROW_GROUP_ROWS)
            pending = table.slice(ROW_GROUP_ROWS).to_batches()
            held -= ROW_GROUP_ROWS
    if held:
        yield pa.Table.from_batches(pending, schema)


def is_full_or_read_only(error: BaseException) -> bool:
    """Tell whether an I/O error says that no write can succeed here until somebody makes room or access."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
