"""What readers see of a batch: manifests that never change and one pointer that does.

What belongs here: the manifest, publishing it, reading what is published. What does not: computing it (batch.py).
A manifest names its files by their SHA-256, so whoever looked one up reads that result to the end, whatever is
published meanwhile.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote, unquote

import pyarrow as pa
from upath import UPath

from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath

Status = Literal["done", "fallback", "quarantined"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclass(frozen=True)
class ManifestShard:
    """A shard in a manifest: its status, its rows, and the file (None if quarantined) with its SHA-256 and bytes."""

    shard: int
    status: Status
    rows: int
    file: str | None
    sha256: str | None
    size: int


@dataclass(frozen=True)
class Manifest:
    """The immutable list of files that make up one result; `sha256` is that of the manifest file itself."""

    sha256: str
    name: str
    partition: str
    fingerprint: str
    run_id: str
    rows: int
    counts: Mapping[str, int]
    columns: Sequence[Sequence[str]]
    shards: tuple[ManifestShard, ...]

    @property
    def quarantined(self) -> tuple[int, ...]:
        """The shards without rows."""
        return tuple(entry.shard for entry in self.shards if entry.status == "quarantined")


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def partition_folder(root: str | AnyPath, name: str, partition: str) -> AnyPath:
    """Return the folder of one partition; the partition's name is percent-encoded."""
    if not _NAME.fullmatch(name) or ".." in name or partition in {"", ".", ".."}:
        raise UserError(
            f"{name!r} with partition {partition!r} cannot name a folder",
            where="batch job",
            remedy="use letters, digits, '.', '_', '-' and '/' in the name, and a partition that is not empty.",
        )
    return UPath(root) / name / quote(partition, safe="")


@dataclass(frozen=True)
class Publication:
    """One published result, as it was when it was looked up; later publications do not change it."""

    name: str
    partition: str
    manifest: Manifest
    published_at: str
    previous: str | None
    folder: AnyPath = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        """The number of rows of all shards."""
        return self.manifest.rows

    @property
    def run_id(self) -> str:
        """The run that opened the job."""
        return self.manifest.run_id

    def shard(self, k: int, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
        """Return the rows of shard `k`, checked against their SHA-256.

        Raises
        ------
        UserError
            There is no such shard, it is quarantined, or its file is missing or damaged.
        """
        return _read_shard(self.folder, self.manifest, k, columns, filters)

    def tables(self, columns: Sequence[str] | None = None, filters: Any = None) -> Iterator[pa.Table]:
        """Yield the rows shard by shard; quarantined shards have none and are named by `manifest.quarantined`."""
        for entry in self.manifest.shards:
            if entry.file is not None:
                yield self.shard(entry.shard, columns, filters)

    def batches(self, columns: Sequence[str] | None = None, filters: Any = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows in record batches; memory is bounded by a shard."""
        for table in self.tables(columns, filters):
            yield from table.to_batches()

    def read(self, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
        """Return all rows.

        Parameters
        ----------
        columns
            The columns to read; all without it.
        filters
            As for `pyarrow.parquet.read_table`: an expression or lists of (column, operator, value).
        """
        tables = list(self.tables(columns, filters))
        return pa.concat_tables(tables) if tables else pa.table({})


def read_shard(root: str | AnyPath, manifest: Manifest, k: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a shard of a manifest that need not be published; errors as for `Publication.shard`."""
    return _read_shard(partition_folder(root, manifest.name, manifest.partition), manifest, k, columns)


def _read_shard(
    folder: AnyPath, manifest: Manifest, k: int, columns: Sequence[str] | None = None, filters: Any = None
) -> pa.Table:
    import pyarrow.parquet as pq

    entry = manifest.shards[k] if 0 <= k < len(manifest.shards) else None
    if entry is None or entry.file is None or entry.sha256 is None:
        raise UserError(
            f"shard {k} has no rows" if entry else f"there is no shard {k} of {len(manifest.shards)}",
            where=f"{manifest.name} {manifest.partition}",
            remedy="run the job again: quarantined shards are tried again." if entry else None,
        )
    data = files.read_verified(folder / entry.file, entry.sha256)
    return pq.read_table(pa.BufferReader(data), columns=None if columns is None else list(columns), filters=filters)


def publish(
    root: str | AnyPath, name: str, partition: str, manifest: Manifest, *, allow_incomplete: bool = False
) -> Publication:
    """Make a result the one that readers of this partition see, by replacing one small file.

    Publishing an earlier manifest again is how to go back. The result that is published already is left as it is.

    Raises
    ------
    UserError
        The manifest is another job's, a file of it is missing or cut short, or it has quarantined shards and
        `allow_incomplete` is not set. What was published before stays.
    """
    folder = partition_folder(root, name, partition)
    if (manifest.name, manifest.partition) != (name, partition):
        raise UserError(
            f"the manifest is of {manifest.name} {manifest.partition}",
            where=f"publication of {name} {partition}",
            remedy="publish each manifest under its own name and partition.",
        )
    if manifest.quarantined and not allow_incomplete:
        raise UserError(
            f"{len(manifest.quarantined)} of {len(manifest.shards)} shards are quarantined",
            where=f"publication of {name} {partition}",
            remedy="mend the cause and run the job again, give it a fallback, or publish with allow_incomplete=True.",
        )
    homes = {entry.file.rpartition("/")[0] for entry in manifest.shards if entry.file is not None}
    sizes = {f"{home}/{name}": size for home in homes for name, size in files.sizes_in(folder / home).items()}
    for entry in manifest.shards:
        if entry.file is not None and sizes.get(entry.file) != entry.size:
            raise UserError(
                f"the file of shard {entry.shard} is missing or cut short",
                where=str(folder / entry.file),
                remedy="run the job again: it computes this shard anew.",
            )
    read_manifest(folder, manifest.sha256)
    current = published(root, name, partition)
    if current is not None and current.manifest.sha256 == manifest.sha256:
        return current
    new = Publication(name, partition, manifest, now(), current.manifest.sha256 if current else None, folder)
    pointer = {"manifest": manifest.sha256, "published_at": new.published_at, "previous": new.previous}
    files.write_atomic(folder / "published.json", files.canonical_json(pointer))
    return new


def published(root: str | AnyPath, name: str, partition: str) -> Publication | None:
    """Return what is published for a partition, or None.

    Raises
    ------
    UserError
        The pointer or its manifest is damaged.
    """
    folder = partition_folder(root, name, partition)
    path = folder / "published.json"
    try:
        pointer = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    manifest = read_manifest(folder, pointer["manifest"])
    return Publication(name, partition, manifest, pointer["published_at"], pointer["previous"], folder)


def publications(root: str | AnyPath, name: str) -> list[Publication]:
    """Return what is published of `name`, one for each partition, sorted by partition."""
    return list(newest_first(root, name))[::-1]


def newest_first(root: str | AnyPath, name: str, *, damaged: dict[str, str] | None = None) -> Iterator[Publication]:
    """Yield what is published of `name`, the last partition first; read one by one, as far as they are asked for.

    Parameters
    ----------
    damaged
        Takes the partitions that cannot be read, with the reason; without it the first one is a `UserError`.
    """
    partitions = sorted(map(unquote, files.names_in(UPath(root) / name)), reverse=True)
    for partition in partitions:
        try:
            found = published(root, name, partition)
        except UserError as error:
            if damaged is None:
                raise
            damaged[partition] = str(error)
            continue
        if found is not None:
            yield found


def _manifest_path(folder: AnyPath, sha256: str) -> AnyPath:
    return folder / "manifests" / f"{sha256}.json"


def read_manifest(folder: AnyPath, sha256: str) -> Manifest:
    """Return the manifest with this SHA-256 of a partition's folder; damaged bytes are a `UserError`."""
    content = json.loads(files.read_verified(_manifest_path(folder, sha256), sha256))
    shards = tuple(ManifestShard(**entry) for entry in content.pop("shards"))
    return Manifest(sha256=sha256, shards=shards, **content)


def write_manifest(folder: AnyPath, shards: Sequence[ManifestShard], **content: Any) -> Manifest:
    """Write the manifest of `shards` under the SHA-256 of its own bytes and return it."""
    states: tuple[Status, ...] = ("done", "fallback", "quarantined")
    counts = {state: sum(entry.status == state for entry in shards) for state in states}
    rows = sum(entry.rows for entry in shards)
    entries = [asdict(entry) for entry in shards]
    data = files.canonical_json({**content, "rows": rows, "counts": counts, "shards": entries})
    sha256 = files.sha256_hex(data)
    path = _manifest_path(folder, sha256)
    try:
        written = files.read_bytes(path) == data
    except FileNotFoundError:
        written = False
    if not written:
        files.write_atomic(path, data)
    return read_manifest(folder, sha256)


def read_json(path: AnyPath) -> dict[str, Any]:
    """Return a JSON file's object; damaged text is a `UserError`, a missing file a `FileNotFoundError`."""
    try:
        content: dict[str, Any] = json.loads(files.read_bytes(path))
    except ValueError as error:
        raise UserError(
            f"the file is damaged: {error}", where=str(path), remedy="delete it and run the job again."
        ) from error
    return content
