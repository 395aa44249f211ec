"""Immutable, content-addressed data sets and the IO manager that passes them from asset to asset.

What belongs here: saving tables under the hash of their content, finding and reading them again. What does not: what
the tables mean, and model files (registry.py).

A snapshot is the folder `<root>/<name>/<sha256[:2]>/<sha256>/` with one Parquet file a table and `manifest.json`,
which is written last: a folder without it is no snapshot.
"""

import hashlib
import io
import json
import re
import shutil
import tempfile
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import quote

import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field
from upath import UPath

from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath

Source: TypeAlias = pa.Table | pd.DataFrame | Iterable[pa.RecordBatch]
"""What a table is made from; a stream of batches is read once and never held as a whole."""

_PART = re.compile(r"(?![0-9a-f]{2}$)[A-Za-z0-9][A-Za-z0-9._-]*")
_MIN_PREFIX = 8
_DAY = 86_400.0


@dataclass(frozen=True)
class TableInfo:
    """A table of a snapshot: its rows, its file's name, SHA-256 and bytes, and its columns as [name, Arrow type]."""

    rows: int
    sha256: str
    size: int
    file: str
    schema: list[list[str]]


@dataclass(frozen=True)
class Snapshot:
    """An immutable set of tables; equal content has an equal `sha256`.

    The hash covers the tables' bytes, columns and rows, and `metadata`; not the name, nor when it was made.
    """

    name: str
    sha256: str
    uri: str
    tables: Mapping[str, TableInfo]
    metadata: Mapping[str, Any]
    created_at: str = field(compare=False)
    folder: AnyPath = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        """The number of rows of all tables."""
        return sum(info.rows for info in self.tables.values())

    def read(self, table: str = "data", columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return a table as a frame with a fresh index.

        Raises
        ------
        UserError
            There is no such table or column, or its file is missing or damaged.
        """
        frame: pd.DataFrame = self.arrow(table, columns).to_pandas()
        return frame

    def arrow(self, table: str = "data", columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table as Arrow; errors as for `read`."""
        with self._open(table, columns) as file:
            return file.read(columns=None if columns is None else list(columns))

    def batches(
        self, table: str = "data", rows: int = 65_536, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield a table in batches of at most `rows` rows, in bounded memory; errors as for `read`."""
        with self._open(table, columns) as file:
            yield from file.iter_batches(batch_size=rows, columns=None if columns is None else list(columns))

    def verify(self) -> None:
        """Check the manifest and the bytes of every file again.

        Raises
        ------
        UserError
            Names the first file that is missing or damaged.
        """
        _load(self.folder, self.name)
        for info in self.tables.values():
            files.verify(self.folder / info.file, info.sha256, again=True)

    @contextmanager
    def _open(self, table: str, columns: Sequence[str] | None) -> Iterator[Any]:
        import pyarrow.parquet as pq

        if table not in self.tables:
            raise self._unknown("table", table, list(self.tables))
        info = self.tables[table]
        known = [name for name, _ in info.schema]
        for column in columns or []:
            if column not in known:
                raise self._unknown(f"column in table {table!r}:", column, known)
        path = self.folder / info.file
        files.verify(path, info.sha256)
        if files.is_local(path):
            with pq.ParquetFile(str(files.on_disk(path))) as file:
                yield file
            return
        with path.open("rb") as handle, pq.ParquetFile(handle) as file:
            yield file

    def _unknown(self, kind: str, name: str, known: list[str]) -> UserError:
        return UserError(
            f"there is no {kind} {name!r}",
            where=f"snapshot {self.name} {self.sha256[:12]}",
            remedy=f"use one of: {', '.join(known) or 'none'}.",
        )


class SnapshotStore:
    """Saves snapshots under `root` (a folder or, as a `UPath`, a bucket) and finds them again."""

    def __init__(self, root: str | AnyPath) -> None:
        self._root = UPath(root)

    def save(
        self,
        name: str,
        tables: Mapping[str, Source | Callable[[], Source]],
        metadata: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Save tables as one snapshot; content that is there already is returned as it is.

        Parameters
        ----------
        name
            What the snapshot is of, such as "discover_weekly/training_set".
        tables
            Tables, frames or streams of record batches by name, read one after the other in this order. A function
            is called when its turn comes. A stream that may be empty must tell its columns: a `RecordBatchReader`.
        metadata
            JSON values that are part of the content, such as the query and its bounds.

        Raises
        ------
        UserError
            A name or value cannot be stored without loss, or the store cannot be written. Nothing can then be loaded
            that could not be loaded before.
        """
        _check_names(name, tables)
        facts = _plain_json(name, metadata or {})
        with self._staging() as staging:
            infos = {key: _stage(staging, name, key, source) for key, source in tables.items()}
            content = {"tables": {key: asdict(info) for key, info in sorted(infos.items())}, "metadata": facts}
            sha256 = files.sha256_hex(files.canonical_json(content))
            folder = self._root / name / sha256[:2] / sha256
            there = files.sizes_in(folder)
            for info in infos.values():
                if there.get(info.file) != info.size:
                    files.place(staging / info.file, folder / info.file)
        if "manifest.json" not in there:
            created = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = {"name": name, "sha256": sha256, "created_at": created, "content": content}
            files.write_atomic(folder / "manifest.json", files.canonical_json(manifest))
        return _load(folder, name)

    def load(self, sha256: str) -> Snapshot:
        """Return the snapshot whose SHA-256 is, or begins with, `sha256` (at least 8 characters).

        Raises
        ------
        UserError
            There is none, there are several, or its manifest is damaged.
        """
        if len(sha256) < _MIN_PREFIX or re.fullmatch(r"[0-9a-f]+", sha256) is None:
            raise UserError(
                f"{sha256!r} is no SHA-256 or beginning of one",
                where=str(self._root),
                remedy=f"give at least {_MIN_PREFIX} characters of 0-9 and a-f.",
            )
        found: dict[str, tuple[str, AnyPath]] = {}
        for name, folder in self._names(""):
            for known in files.names_in(folder / sha256[:2]):
                if known.startswith(sha256) and files.size_of(folder / sha256[:2] / known / "manifest.json"):
                    found.setdefault(known, (name, folder / sha256[:2] / known))
        if len(found) != 1:
            several = f"{len(found)} snapshots begin with {sha256}: {', '.join(sorted(found))}"
            raise UserError(
                several if found else f"there is no snapshot {sha256}",
                where=str(self._root),
                remedy="give more characters." if found else "look at `list` for what there is.",
            )
        name, folder = next(iter(found.values()))
        return _load(folder, name)

    def list(self, name: str) -> "list[Snapshot]":
        """Return the snapshots of a name, oldest first."""
        home = self._root / name
        shelves = [home / part for part in files.names_in(home) if re.fullmatch(r"[0-9a-f]{2}", part)]
        folders = [shelf / sha256 for shelf in shelves for sha256 in files.names_in(shelf)]
        found = [_load(folder, name) for folder in folders if files.size_of(folder / "manifest.json")]
        return sorted(found, key=lambda snapshot: (snapshot.created_at, snapshot.sha256))

    def _names(self, under: str) -> Iterator[tuple[str, AnyPath]]:
        folder = self._root / under if under else self._root
        if under:
            yield under, folder
        for part in files.names_in(folder):
            if _PART.fullmatch(part):
                yield from self._names(f"{under}/{part}" if under else part)

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        # The folder's name is known only after the last byte, and a bucket cannot rename.
        if not files.is_local(self._root):
            with tempfile.TemporaryDirectory(prefix="snapshot-") as folder:
                yield Path(folder)
            return
        home = files.on_disk(self._root) / "_staging"
        try:
            home.mkdir(parents=True, exist_ok=True)
            _sweep(home)
            staging = Path(tempfile.mkdtemp(dir=home))
        except OSError as error:
            raise UserError(
                f"cannot write: {error.strerror or error}",
                where=str(self._root),
                remedy="free space or make the folder writable, then run again.",
            ) from error
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


class _SourceFailedError(Exception):
    """Carries an I/O error of a table's source past the writer, which would call it a full disk."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class _HashingSink(io.RawIOBase):
    """Passes bytes on and hashes them."""

    def __init__(self, sink: IO[bytes]) -> None:
        self.digest, self.size, self._sink = hashlib.sha256(), 0, sink

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        self._sink.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


def _stage(staging: Path, name: str, table: str, source: Source | Callable[[], Source]) -> TableInfo:
    where = f"snapshot {name}, table {table!r}"
    try:
        schema, batches = _opened(where, source() if callable(source) else source)
        with files.atomic_writer(staging / f"{table}.parquet") as handle:
            sink = _HashingSink(handle)
            rows = files.write_parquet(typing.cast("IO[bytes]", sink), schema, _checked(where, schema, batches))
    except _SourceFailedError as failed:
        raise failed.error from None
    columns = [[column.name, str(column.type)] for column in schema]
    return TableInfo(rows, sink.digest.hexdigest(), sink.size, f"{table}.parquet", columns)


def _opened(where: str, source: Any) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    if isinstance(source, pd.DataFrame):
        table = _from_pandas(where, source)
        return table.schema, table.to_batches()
    if isinstance(source, pa.Table):
        return source.schema.remove_metadata(), source.to_batches()
    if isinstance(source, pa.RecordBatchReader):
        return source.schema.remove_metadata(), source
    if not isinstance(source, Iterable) or isinstance(source, str | bytes | Mapping):
        raise UserError(
            f"cannot save a {type(source).__name__}",
            where=where,
            remedy="give a DataFrame, a pyarrow Table or RecordBatchReader, or an iterable of record batches.",
        )
    batches = iter(source)
    first = next(batches, None)
    if first is None:
        raise UserError(
            "the stream is empty, so its columns are unknown",
            where=where,
            remedy="give a pyarrow RecordBatchReader (or a function that returns one), which knows its columns.",
        )
    if not isinstance(first, pa.RecordBatch):
        raise UserError(f"the stream gives {type(first).__name__}", where=where, remedy="give pyarrow.RecordBatch.")

    def stream() -> Iterator[pa.RecordBatch]:
        yield first
        yield from batches

    return first.schema.remove_metadata(), stream()


def _checked(where: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        for number, batch in enumerate(batches):
            if not batch.schema.equals(schema, check_metadata=False):
                found = ", ".join(f"{column.name} {column.type}" for column in batch.schema)
                raise UserError(
                    f"batch {number} has other columns than the first: {found}",
                    where=where,
                    remedy="cast every batch to one schema.",
                )
            yield batch
    except OSError as error:
        raise _SourceFailedError(error) from error


def _from_pandas(where: str, frame: pd.DataFrame) -> pa.Table:
    index = frame.index
    if index.nlevels > 1 or index.name is not None or not pd.api.types.is_integer_dtype(index.dtype):
        raise UserError(
            f"the frame has the index {list(index.names)}, which is not stored",
            where=where,
            remedy="turn it into a column with reset_index(), or drop it with reset_index(drop=True).",
        )
    columns = list(frame.columns)
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) < len(columns):
        raise UserError(f"column names must be different texts, found {columns}", where=where, remedy="rename them.")
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise UserError(
            f"cannot store: {' '.join(str(part) for part in error.args)}",
            where=where,
            remedy="give each column values of one type, for example with astype.",
        ) from error
    # Arrow has no type for pandas' own dtypes (Int64, string): keep their names, but not pandas' version.
    own = {str(name) for name, dtype in frame.dtypes.items() if _needs_pandas(dtype)}
    if not own:
        return table.replace_schema_metadata(None)
    described = json.loads(table.schema.metadata[b"pandas"])["columns"]
    kept = {"index_columns": [], "column_indexes": [], "columns": [c for c in described if c["name"] in own]}
    return table.replace_schema_metadata({"pandas": files.canonical_json(kept)})


def _needs_pandas(dtype: Any) -> bool:
    natively = isinstance(dtype, pd.CategoricalDtype | pd.DatetimeTZDtype)
    return isinstance(dtype, pd.api.extensions.ExtensionDtype) and not natively


def _check_names(name: str, tables: Mapping[str, Any]) -> None:
    for text in [*name.split("/"), *tables]:
        if not _PART.fullmatch(text):
            raise UserError(
                f"{text!r} cannot name a snapshot or a table",
                where=f"snapshot {name}",
                remedy="use letters, digits, '.', '_' and '-', begin with a letter or digit; not two hex digits alone.",
            )
    if not tables:
        raise UserError("there are no tables", where=f"snapshot {name}", remedy="give at least one table.")


def _plain_json(name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in metadata.items():
        try:
            plain[key] = json.loads(files.canonical_json(value))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"metadata {key!r} is no JSON value: {error}",
                where=f"snapshot {name}",
                remedy="use texts, finite numbers, booleans, None, lists and dictionaries with text keys.",
            ) from error
    return plain


def _load(folder: AnyPath, name: str) -> Snapshot:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(files.read_bytes(path))
        content = manifest["content"]
        actual = files.sha256_hex(files.canonical_json(content))
    except FileNotFoundError as error:
        raise UserError("there is no snapshot here", where=str(folder), remedy="save it again.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if actual != folder.name:
        raise _damaged(path)
    tables = {key: TableInfo(**info) for key, info in content["tables"].items()}
    return Snapshot(name, actual, str(folder), tables, content["metadata"], manifest["created_at"], folder)


def _damaged(path: AnyPath) -> UserError:
    return UserError(
        "the manifest was changed or damaged",
        where=str(path),
        remedy="delete this file and save the same content again: that restores it.",
    )


def _sweep(home: Path) -> None:
    """Remove what killed processes left: a living one touches its files far more often than once a day."""
    for folder in home.iterdir():
        newest = max((entry.stat().st_mtime for entry in [folder, *folder.glob("*")]), default=0.0)
        if time.time() - newest > _DAY:
            shutil.rmtree(folder, ignore_errors=True)


class SnapshotIOManager(dg.ConfigurableIOManager):
    """Passes snapshots, frames and Arrow tables from asset to asset; earlier materializations are never overwritten.

    A small pointer for each asset and partition says which snapshot it is. An input annotated `Snapshot`,
    `pd.DataFrame` or `pa.Table` gets that; over several partitions, a dictionary by partition key.
    """

    root: str = Field(description="Folder or URL, such as s3://bucket/snapshots, that holds snapshots and pointers.")

    def handle_output(self, context: dg.OutputContext, obj: Snapshot | pd.DataFrame | pa.Table) -> None:
        """Save a frame or table as a snapshot with the one table `data`, and point the partition to the snapshot."""
        where = context.asset_key.to_user_string()
        partitions: list[str | None] = [None]
        if context.has_asset_partitions:
            partitions = list(context.asset_partition_keys)
        if len(partitions) != 1:
            raise UserError(
                f"one output for {len(partitions)} partitions",
                where=where,
                remedy="run one partition at a time (BackfillPolicy.multi_run).",
            )
        kind = "snapshot"
        if not isinstance(obj, Snapshot):
            if not isinstance(obj, pd.DataFrame | pa.Table):
                raise UserError(
                    f"cannot store a {type(obj).__name__}", where=where, remedy="return a Snapshot or a DataFrame."
                )
            kind = "frame" if isinstance(obj, pd.DataFrame) else "arrow"
            name = "/".join(re.sub(r"[^A-Za-z0-9._-]", "-", part) for part in context.asset_key.path)
            tables: dict[str, Source] = {"data": obj}
            obj = SnapshotStore(self.root).save(name, tables)
        # Relative, so that a store can be moved or mounted elsewhere.
        at = obj.uri.removeprefix(f"{str(UPath(self.root)).rstrip('/')}/")
        pointer = {"name": obj.name, "sha256": obj.sha256, "at": at, "kind": kind}
        files.write_atomic(self._pointer(context, partitions[0]), files.canonical_json(pointer))
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
        where = context.asset_key.to_user_string() + (f", partition {partition}" if partition else "")
        try:
            pointer = json.loads(files.read_bytes(self._pointer(context, partition)))
        except FileNotFoundError as error:
            raise UserError("has not been materialized", where=where, remedy="materialize it first.") from error
        root = UPath(self.root)
        at = pointer["at"]
        snapshot = _load(UPath(at) if "://" in at or Path(at).is_absolute() else root / at, pointer["name"])
        given = {"snapshot": Snapshot, "frame": pd.DataFrame, "arrow": pa.Table}[pointer["kind"]]
        kind = given if wanted is Any else wanted
        if kind is Snapshot:
            return snapshot
        if kind is not pd.DataFrame and kind is not pa.Table:
            raise UserError(
                f"cannot load a snapshot as {kind}", where=where, remedy="annotate the input Snapshot or pd.DataFrame."
            )
        table = next(iter(snapshot.tables)) if len(snapshot.tables) == 1 else "data"
        return snapshot.arrow(table) if kind is pa.Table else snapshot.read(table)

    def _pointer(self, context: dg.OutputContext | dg.InputContext, partition: str | None) -> UPath:
        parts = [quote(part, safe="") for part in context.asset_key.path]
        name = "asset" if partition is None else f"partition-{quote(partition, safe='')}"
        return UPath(self.root).joinpath("_pointers", *parts, f"{name}.json")


def _wanted(annotation: Any) -> tuple[Any, bool]:
    """Return the class that an input asks for (Any: whatever was given) and whether it takes a dictionary of them."""
    many = typing.get_origin(annotation) in (dict, Mapping)
    if many:
        annotation = typing.get_args(annotation)[-1]
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    if len(options) == 1:
        annotation = options[0]
    return annotation, many
