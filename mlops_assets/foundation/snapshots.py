"""Immutable, content-addressed data sets.

What belongs here: saving tables under the hash of their content, finding and reading them again. What does not: how a
table is written (`_snapshot_tables.py`), what it means, model files (`registry.py`), and how a snapshot gets from one
asset to the next (`io_managers.py`).

A snapshot is the folder `<root>/<name>/<sha256[:2]>/<sha256>/` with one Parquet file a table and `manifest.json`,
which is written last: a folder without it is no snapshot.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from upath import UPath

from mlops_assets.foundation import files
from mlops_assets.foundation._snapshot_tables import Source, TableInfo, stage
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath

__all__ = ["Snapshot", "SnapshotStore", "Source", "TableInfo"]

_PART = re.compile(r"(?![0-9a-f]{2}$)[A-Za-z0-9][A-Za-z0-9._-]*")
_MIN_PREFIX = 8
_DAY = 86_400.0


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
            infos = {key: stage(staging, name, key, source) for key, source in tables.items()}
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

    def place_of(self, snapshot: Snapshot) -> str:
        """Return where a snapshot is: relative to the root, so that the store can be moved, or else its whole URI."""
        return snapshot.uri.removeprefix(f"{str(self._root).rstrip('/')}/")

    def at(self, place: str, name: str) -> Snapshot:
        """Return the snapshot that is at ``place``, as `place_of` tells it; errors as for `load`."""
        whole = "://" in place or Path(place).is_absolute()
        return _load(UPath(place) if whole else self._root / place, name)

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
