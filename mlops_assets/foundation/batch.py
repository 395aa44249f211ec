"""Sharded, resumable batch inference: a ledger of finished shards, and publication that is all or nothing.

What belongs here: jobs, the records of their shards, quarantine. What does not: what a shard computes, and how rows are
assigned to shards (a system decides both); the tries of one shard (`_shard_work.py`); the manifest and the published
pointer (`publication.py`, re-exported here).

On storage, under `<root>/<name>/<partition>/`::

    jobs/<id>/job.json                       who opened the job and what its result depends on
    jobs/<id>/shards/00042-<sha256>.parquet  rows; named by their bytes, so never overwritten by other rows
    jobs/<id>/records/00042.json             the shard's record, written after its rows
    manifests/<sha256>.json                  the list of files that make up one result
    published.json                           the one file that changes: which manifest readers see
"""

import json
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Self

import pyarrow as pa

from mlops_assets.foundation import files
from mlops_assets.foundation._shard_work import Columns, Compute, Fallback, ShardWork, spelled
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath
from mlops_assets.foundation.lease import Lease
from mlops_assets.foundation.publication import (
    Manifest,
    ManifestShard,
    Publication,
    Status,
    now,
    partition_folder,
    publications,
    publish,
    published,
    read_json,
    write_manifest,
)

__all__ = [
    "BatchResult",
    "Compute",
    "Fallback",
    "Job",
    "Ledger",
    "Manifest",
    "ManifestShard",
    "Progress",
    "Publication",
    "ShardRecord",
    "Status",
    "publications",
    "publish",
    "published",
]


_RECORD = re.compile(r"\d{5,}\.json")


@dataclass(frozen=True)
class Job:
    """What is computed: the same name, partition, fingerprint and number of shards are the same job.

    `fingerprint` is a SHA-256 over everything the result depends on; `run_id` is the run that opened the job, and
    belongs in the rows, so that a job resumed by another run still has one run id.
    """

    name: str
    partition: str
    fingerprint: str
    shards: int
    run_id: str
    opened_at: str
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardRecord:
    """What became of one shard; `file` is relative to the partition's folder, None for a quarantined shard."""

    shard: int
    status: Status
    rows: int
    file: str | None
    sha256: str | None
    size: int
    columns: Columns
    attempts: int
    seconds: float
    error: str | None
    detail: str | None
    run_id: str
    recorded_at: str


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a shard; `eta_seconds` extrapolates the mean of the shards of this run."""

    shard: int
    status: Status
    finished: int
    total: int
    fallback: int
    quarantined: int
    rows: int
    seconds: float
    eta_seconds: float


@dataclass(frozen=True)
class BatchResult:
    """The outcome of `Ledger.run` over all shards, whoever computed them.

    `computed` counts the shards that this run worked on, `resumed` those that were finished before it.
    """

    job: Job
    done: tuple[int, ...]
    fallback: tuple[ShardRecord, ...]
    quarantined: tuple[ShardRecord, ...]
    computed: int
    resumed: int
    rows: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every shard has rows, its own or its fallback's."""
        return not self.quarantined


class Ledger:
    """The ledger of one job; make it with `Ledger.open`."""

    def __init__(self, folder: AnyPath, job: Job, run_id: str, stale_after: float) -> None:
        self.job = job
        self._folder = folder
        self._id = _job_id(job.fingerprint, job.shards)
        self._home = folder / "jobs" / self._id
        self._run_id = run_id
        self._stale_after = stale_after

    @classmethod
    def open(
        cls,
        root: str | AnyPath,
        name: str,
        partition: str,
        fingerprint: Mapping[str, str] | str,
        shards: int,
        run_id: str,
        *,
        stale_after: float = 120.0,
    ) -> Self:
        """Create a job's ledger, or resume it: then `ledger.job.run_id` is the run that opened it first.

        Parameters
        ----------
        root
            Folder or bucket; pass a `UPath` for storage options.
        name, partition
            What is computed and for when, such as "playlists" and "2026-11-16".
        fingerprint
            Everything the result depends on (hashes of model, inputs, rules), or one hash of it.
        shards
            Number of shards; another number is another job.
        run_id
            The run that asks.
        stale_after
            Seconds of silence after which a run on another machine counts as dead.

        Raises
        ------
        UserError
            An argument is unusable, or the root cannot be written.
        """
        if shards < 1:
            raise UserError(f"{shards} shards", where=f"batch job {name}", remedy="use at least one shard.")
        folder = partition_folder(root, name, partition)
        inputs = {} if isinstance(fingerprint, str) else dict(fingerprint)
        whole = fingerprint if isinstance(fingerprint, str) else files.sha256_hex(files.canonical_json(inputs))
        job = Job(name, partition, whole, shards, run_id, now(), inputs)
        path = folder / "jobs" / _job_id(whole, shards) / "job.json"
        if not files.create(path, files.canonical_json(asdict(job))):
            job = Job(**read_json(path))
        return cls(folder, job, run_id, stale_after)

    def run(
        self,
        compute: Compute,
        fallback: Fallback | None = None,
        attempts: int = 3,
        progress: Callable[[Progress], None] | None = None,
        *,
        schema: pa.Schema | None = None,
        pause: float = 0.5,
    ) -> BatchResult:
        """Compute what is not finished: shards without a sound record, and those that ended in fallback or quarantine.

        Parameters
        ----------
        compute
            Gives a shard's rows. An `OSError` is tried again up to `attempts` times in all, anything else once more.
        fallback
            Gives the rows of a shard whose `compute` failed for good; without it the shard is quarantined.
        attempts
            Tries of a shard that meets I/O errors.
        progress
            Called after every shard of this run.
        schema
            The columns that every shard must have; rows are cast to it. Without it the first finished shard decides.
        pause
            Seconds before the second try after an I/O error; doubled each time.

        Raises
        ------
        UserError
            Raised by `compute`, or the disk is full, or the folder is read-only, or another run holds the job, or the
            shards' columns differ: the run stops, finished shards stay finished.
        """
        started = time.monotonic()
        with Lease(self._home, self._run_id, self._stale_after) as lease:
            self._sweep()
            records = self._sound_records()
            finished = {shard for shard, record in records.items() if record.status == "done"}
            todo = [shard for shard in range(self.job.shards) if shard not in finished]
            wanted: Columns | None = None if schema is None else files.columns_of(schema)
            for number, shard in enumerate(todo, start=1):
                lease.check()
                if wanted is None:
                    wanted = next((r.columns for r in records.values() if r.status == "done"), None)
                work = ShardWork(compute, fallback, attempts, schema, wanted, pause)
                records[shard] = self._shard(shard, work, records.get(shard))
                if progress is not None:
                    seconds = time.monotonic() - started
                    left = seconds / number * (len(todo) - number)
                    progress(self._progress(records, shard, len(finished) + number, seconds, left))
        ordered = [records[shard] for shard in sorted(records)]
        return BatchResult(
            self.job,
            tuple(r.shard for r in ordered if r.status == "done"),
            tuple(r for r in ordered if r.status == "fallback"),
            tuple(r for r in ordered if r.status == "quarantined"),
            len(todo),
            len(finished),
            sum(r.rows for r in ordered),
            time.monotonic() - started,
        )

    def _progress(
        self, records: Mapping[int, ShardRecord], shard: int, finished: int, seconds: float, left: float
    ) -> Progress:
        counts = Counter(r.status for r in records.values())
        rows = sum(r.rows for r in records.values())
        status, total = records[shard].status, self.job.shards
        return Progress(shard, status, finished, total, counts["fallback"], counts["quarantined"], rows, seconds, left)

    def records(self) -> dict[int, ShardRecord]:
        """Return the record of every shard that has one, by shard."""
        folder = self._home / "records"
        names = [name for name in files.names_in(folder) if _RECORD.fullmatch(name)]
        found = (_record(data) for data in files.read_many(folder, names).values())
        return {record.shard: record for record in found if record is not None}

    def manifest(self) -> Manifest:
        """Write and return the list of files of this job; the same result gives the same file.

        Raises
        ------
        UserError
            A shard has no record yet, or the shards' columns differ.
        """
        records = self.records()
        missing = [shard for shard in range(self.job.shards) if shard not in records]
        if missing:
            raise UserError(
                f"{len(missing)} of {self.job.shards} shards are not computed yet (first: {missing[0]})",
                where=str(self._home),
                remedy="run the job to its end first.",
            )
        ordered = [records[shard] for shard in range(self.job.shards)]
        columns = next((r.columns for r in ordered if r.file), [])
        for r in ordered:
            if r.file and r.columns != columns:
                raise self._other_columns(r.shard, r.columns, columns)
        return write_manifest(
            self._folder,
            [ManifestShard(r.shard, r.status, r.rows, r.file, r.sha256, r.size) for r in ordered],
            name=self.job.name,
            partition=self.job.partition,
            fingerprint=self.job.fingerprint,
            run_id=self.job.run_id,
            columns=columns,
        )

    def _sweep(self) -> None:
        # A killed run leaves its unfinished files behind; under the lease nobody else is writing here.
        for folder in (self._home / "shards", self._home / "records"):
            for name in files.names_in(folder):
                if name.startswith(".") and name.endswith(".tmp"):
                    (folder / name).unlink(missing_ok=True)

    def _sound_records(self) -> dict[int, ShardRecord]:
        def is_sound(record: ShardRecord) -> bool:
            if record.file is None or record.sha256 is None:
                return True
            try:
                files.verify(self._folder / record.file, record.sha256, again=True)
            except UserError:
                return False
            return True

        records = {s: r for s, r in self.records().items() if s < self.job.shards}
        with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter, and an object store likes company
            sound = list(pool.map(is_sound, records.values()))
        return {shard: r for (shard, r), ok in zip(records.items(), sound, strict=True) if ok}

    def _shard(self, shard: int, work: ShardWork, before: ShardRecord | None) -> ShardRecord:
        started = time.monotonic()
        table, error, tried = work.compute_shard(shard)
        if table is not None and work.wanted is not None and files.columns_of(table.schema) != work.wanted:
            raise self._other_columns(shard, files.columns_of(table.schema), work.wanted)
        status: Status = "done"
        text = detail = None
        if error is not None:
            text = _one_line(error)
            detail = "".join(traceback.format_exception(error))[-4000:]
            table, second = work.fall_back(shard, error)
            if second is not None:
                text += f"; then the fallback failed: {_one_line(second)}"
            status = "quarantined" if table is None else "fallback"
        if table is None and before is not None and before.status == "fallback":
            # Trying again must never leave users with less than they had.
            stored = _Stored(before.rows, before.file, before.sha256, before.size, before.columns)
            status = "fallback"
        else:
            stored = self._store(shard, table)
        record = ShardRecord(
            shard=shard,
            status=status,
            attempts=tried,
            seconds=round(time.monotonic() - started, 3),
            error=text,
            detail=detail,
            run_id=self._run_id,
            recorded_at=now(),
            **stored._asdict(),
        )
        files.write_atomic(self._home / "records" / f"{shard:05d}.json", files.canonical_json(asdict(record)))
        return record

    def _store(self, shard: int, table: pa.Table | None) -> "_Stored":
        if table is None:
            return _Stored(0, None, None, 0, [])
        data = files.parquet_bytes(table)
        sha256 = files.sha256_hex(data)
        file = f"jobs/{self._id}/shards/{shard:05d}-{sha256[:16]}.parquet"
        files.write_atomic(self._folder / file, data)
        return _Stored(table.num_rows, file, sha256, len(data), files.columns_of(table.schema))

    def _other_columns(self, shard: int, found: Columns, wanted: Columns) -> UserError:
        return UserError(
            f"shard {shard} has the columns {spelled(found)}, the others have {spelled(wanted)}",
            where=str(self._home),
            remedy="return the same columns and types from every shard, or pass `schema` to `run` to cast them.",
        )


class _Stored(NamedTuple):
    """Where a shard's rows are."""

    rows: int
    file: str | None
    sha256: str | None
    size: int
    columns: Columns


def _job_id(fingerprint: str, shards: int) -> str:
    return files.sha256_hex(files.canonical_json([fingerprint, shards]))[:20]


def _record(data: bytes) -> ShardRecord | None:
    try:
        return ShardRecord(**json.loads(data))
    except (ValueError, TypeError):  # damaged from outside: as good as none, the shard is computed again
        return None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
