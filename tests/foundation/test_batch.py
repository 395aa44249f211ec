"""A batch survives whatever stops it, and readers see the whole old result or the whole new one."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from upath import UPath

from mlops_assets.foundation import batch, files, lease
from mlops_assets.foundation.errors import UserError

PROJECT = Path(batch.__file__).parents[2]
WEEK = "2026-11-16"
INPUTS = {"model": "a" * 64, "histories": "b" * 64}


def rows_of(shard: int, run_id: str = "run-1") -> pa.Table:
    users = [f"u{shard:02d}{i:02d}" for i in range(10)]
    return pa.table({"user_id": users, "track_id": [f"t{i}" for i in range(10)], "run_id": [run_id] * 10})


class Model:
    """Counts how often each shard is computed and fails as told."""

    def __init__(
        self, ledger: batch.Ledger, failures: dict[int, Exception | type[BaseException]] | None = None
    ) -> None:
        self.calls: Counter[int] = Counter()
        self.failures = failures or {}
        self._ledger = ledger

    def __call__(self, shard: int) -> pa.Table:
        self.calls[shard] += 1
        if shard in self.failures:
            raise self.failures[shard]
        return rows_of(shard, self._ledger.job.run_id)


def open_ledger(root: Path | UPath, run_id: str = "run-1", shards: int = 4, **options: float) -> batch.Ledger:
    return batch.Ledger.open(root, "playlists", WEEK, INPUTS, shards, run_id, **options)


def last_week(shard: int, error: Exception) -> pa.Table:
    return rows_of(shard, "last-week")


# ---------------------------------------------------------------------------------------------------------- computing


def test_a_batch_is_computed_and_published(root: UPath) -> None:
    ledger = open_ledger(root)
    result = ledger.run(Model(ledger))
    publication = batch.publish(root, "playlists", WEEK, ledger.manifest())
    assert (result.complete, result.done, result.rows, result.computed) == (True, (0, 1, 2, 3), 40, 4)
    assert publication.read().equals(pa.concat_tables([rows_of(k) for k in range(4)]))
    assert batch.published(root, "playlists", WEEK) == publication
    assert publication.manifest.counts == {"done": 4, "fallback": 0, "quarantined": 0}


def test_a_resumed_job_computes_the_rest_and_keeps_the_run_that_opened_it(root: UPath) -> None:
    first = open_ledger(root)
    with pytest.raises(KeyboardInterrupt):
        first.run(Model(first, {2: KeyboardInterrupt}))
    second = open_ledger(root, run_id="run-2")
    model = Model(second)
    result = second.run(model)
    assert model.calls == {2: 1, 3: 1}
    assert (result.resumed, result.computed, result.job.run_id) == (2, 2, "run-1")
    manifest = second.manifest()
    published = batch.publish(root, "playlists", WEEK, manifest)
    assert published.read(["run_id"])["run_id"].unique().to_pylist() == ["run-1"]
    assert {s: r.run_id for s, r in second.records().items()} == {0: "run-1", 1: "run-1", 2: "run-2", 3: "run-2"}


def test_a_finished_job_computes_nothing_again(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.run(Model(ledger))
    again = Model(ledger)
    result = ledger.run(again)
    assert not again.calls
    assert (result.resumed, result.computed, result.rows) == (4, 0, 40)


@pytest.mark.parametrize("harm", ["delete", "change", "cut"])
def test_a_record_without_sound_rows_is_computed_again(tmp_path: Path, harm: str) -> None:
    ledger = open_ledger(tmp_path)
    ledger.run(Model(ledger))
    before = ledger.manifest()
    file = UPath(tmp_path) / "playlists" / WEEK / str(ledger.records()[1].file)
    data = file.read_bytes()
    if harm == "delete":
        file.unlink()
    else:
        file.write_bytes(data[:-9] if harm == "cut" else data[:-9] + b"X" + data[-8:])
    model = Model(ledger)
    ledger.run(model)
    assert model.calls == {1: 1}
    assert file.read_bytes() == data
    assert ledger.manifest() == before


@pytest.mark.parametrize("content", [None, b"{", b'{"shard": 1}'], ids=["deleted", "cut", "other keys"])
def test_rows_without_a_sound_record_are_computed_again(tmp_path: Path, content: bytes | None) -> None:
    ledger = open_ledger(tmp_path)
    ledger.run(Model(ledger))
    [record] = tmp_path.glob("playlists/*/jobs/*/records/00001.json")
    record.unlink() if content is None else record.write_bytes(content)
    model = Model(ledger)
    ledger.run(model)
    assert model.calls == {1: 1}


def test_another_fingerprint_or_number_of_shards_is_another_job(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.run(Model(ledger))
    other_rules = batch.Ledger.open(tmp_path, "playlists", WEEK, {**INPUTS, "model": "c" * 64}, 4, "run-2")
    more_shards = batch.Ledger.open(tmp_path, "playlists", WEEK, INPUTS, 5, "run-2")
    assert other_rules.records() == more_shards.records() == {}
    assert other_rules.job.run_id == more_shards.job.run_id == "run-2"


def test_progress_counts_up_to_the_whole_and_foretells_the_end(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    seen: list[batch.Progress] = []
    ledger.run(Model(ledger, {1: ValueError("bad")}), last_week, progress=seen.append)
    assert [(p.shard, p.status, p.finished, p.rows) for p in seen] == [
        (0, "done", 1, 10),
        (1, "fallback", 2, 20),
        (2, "done", 3, 30),
        (3, "done", 4, 40),
    ]
    assert seen[0].eta_seconds > 0 == seen[-1].eta_seconds


def test_memory_holds_one_shard_at_a_time(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, shards=12)
    before, peak = pa.total_allocated_bytes(), 0

    def compute(shard: int) -> pa.Table:
        nonlocal peak
        peak = max(peak, pa.total_allocated_bytes() - before)
        return pa.table({"x": np.arange(shard, shard + 200_000)})

    ledger.run(compute)
    assert peak < 200_000 * 8 * 2


# -------------------------------------------------------------------------------------------------------- bad shards


def test_an_io_error_is_tried_again_as_often_as_asked(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    model = Model(ledger, {1: ConnectionError("reset")})
    result = ledger.run(model, attempts=4, pause=0.0)
    assert model.calls[1] == 4
    assert [r.shard for r in result.quarantined] == [1]


def test_an_io_error_that_passes_is_forgotten(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    calls: Counter[int] = Counter()

    def compute(shard: int) -> pa.Table:
        calls[shard] += 1
        if shard == 1 and calls[1] < 3:
            raise TimeoutError("slow store")
        return rows_of(shard)

    assert ledger.run(compute, pause=0.0).complete
    assert ledger.records()[1].attempts == 3


def test_any_other_error_is_tried_once_more(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    model = Model(ledger, {1: ValueError("a poison row")})
    ledger.run(model, attempts=5)
    assert model.calls == {0: 1, 1: 2, 2: 1, 3: 1}


def test_a_poison_shard_gets_its_fallback_and_the_reason_is_kept(root: UPath) -> None:
    ledger = open_ledger(root)
    result = ledger.run(Model(ledger, {2: ValueError("a poison row")}), last_week)
    [bad] = result.fallback
    assert (bad.shard, bad.error, bad.rows, result.complete) == (2, "ValueError: a poison row", 10, True)
    assert "Traceback" in str(bad.detail)
    publication = batch.publish(root, "playlists", WEEK, ledger.manifest())
    assert publication.shard(2)["run_id"].unique().to_pylist() == ["last-week"]


def test_without_fallback_a_poison_shard_is_quarantined_and_the_others_go_on(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    result = ledger.run(Model(ledger, {0: ValueError("a poison row")}))
    assert [r.shard for r in result.quarantined] == [0]
    assert result.done == (1, 2, 3)
    with pytest.raises(UserError, match=r"1 of 4 shards are quarantined.*allow_incomplete"):
        batch.publish(tmp_path, "playlists", WEEK, ledger.manifest())
    publication = batch.publish(tmp_path, "playlists", WEEK, ledger.manifest(), allow_incomplete=True)
    assert publication.manifest.quarantined == (0,)
    assert publication.read().num_rows == 30
    with pytest.raises(UserError, match="shard 0 has no rows"):
        publication.shard(0)


def test_a_fallback_that_fails_too_is_a_quarantine_with_both_reasons(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)

    def nothing_kept(shard: int, error: Exception) -> pa.Table:
        raise KeyError("no last week")

    [bad] = ledger.run(Model(ledger, {0: ValueError("a poison row")}), nothing_kept).quarantined
    assert "a poison row" in str(bad.error)
    assert "no last week" in str(bad.error)


def test_bad_shards_are_tried_again_by_the_next_run_and_finished_ones_are_not(root: UPath) -> None:
    ledger = open_ledger(root)
    ledger.run(
        Model(ledger, {1: ValueError("bug"), 2: ValueError("bug")}), lambda k, e: last_week(k, e) if k == 1 else 1 / 0
    )
    assert {s: r.status for s, r in ledger.records().items()} == {0: "done", 1: "fallback", 2: "quarantined", 3: "done"}
    mended = Model(ledger)
    assert ledger.run(mended).done == (0, 1, 2, 3)
    assert mended.calls == {1: 1, 2: 1}


def test_trying_again_never_leaves_a_shard_with_less_than_it_had(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.run(Model(ledger, {1: ValueError("bug")}), last_week)
    kept = ledger.manifest()
    result = ledger.run(Model(ledger, {1: ValueError("still a bug")}))
    assert [r.shard for r in result.fallback] == [1]
    assert ledger.manifest() == kept


def test_a_published_result_can_be_read_while_its_bad_shards_are_mended(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.run(Model(ledger, {1: ValueError("bug")}), last_week)
    old = batch.publish(tmp_path, "playlists", WEEK, ledger.manifest())
    ledger.run(Model(ledger))
    new = batch.publish(tmp_path, "playlists", WEEK, ledger.manifest())
    assert old.shard(1)["run_id"][0].as_py() == "last-week"
    assert new.shard(1)["run_id"][0].as_py() == "run-1"
    assert new.previous == old.manifest.sha256


# ------------------------------------------------------------------------------------- mistakes that stop the whole run


def test_a_full_disk_stops_the_run_and_loses_nothing_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger(tmp_path)
    whole = files.write_atomic

    def write_atomic(path: Path | UPath, data: bytes) -> str:
        if "/shards/00002" in str(path):
            monkeypatch.setattr(os, "fsync", no_space)
        return whole(path, data)

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_atomic", write_atomic)
        with pytest.raises(UserError, match="cannot write: No space left"):
            ledger.run(Model(ledger), last_week)
    monkeypatch.undo()
    assert sorted(ledger.records()) == [0, 1]
    model = Model(ledger)
    assert ledger.run(model).complete
    assert model.calls == {2: 1, 3: 1}


def test_a_real_full_disk_stops_the_run_too(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        ledger = open_ledger(small, shards=8)

        def compute(shard: int) -> pa.Table:
            return pa.table({"noise": [os.urandom(40_000).hex()]})

        with pytest.raises(UserError, match="No space left"):
            ledger.run(compute, last_week)
        finished = set(ledger.records())
        assert finished
        assert all(ledger.records()[s].status == "done" for s in finished)
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        assert ledger.run(compute).resumed == len(finished)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_full_disk_met_by_the_model_is_not_taken_for_a_poison_shard(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(UserError, match=r"shard 1: cannot write.*No space"):
        ledger.run(Model(ledger, {1: OSError(errno.ENOSPC, "No space left on device")}), last_week)
    assert sorted(ledger.records()) == [0]


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    # As root a read-only folder can be written all the same, so the store's parent is a file.
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write: Not a directory"):
        open_ledger(tmp_path / "file" / "store")


def test_a_user_error_from_the_model_stops_the_run(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(UserError, match="no champion"):
        ledger.run(Model(ledger, {1: UserError("no champion")}), last_week)
    assert sorted(ledger.records()) == [0]


def test_rows_that_are_no_table_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows came as list.*pyarrow\.Table"):
        open_ledger(tmp_path).run(lambda shard: [shard], last_week)  # type: ignore[arg-type,return-value]


def test_shards_with_different_columns_stop_the_run_and_are_named(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(UserError, match="shard 1 has the columns x double, the others have x int64"):
        ledger.run(lambda shard: pa.table({"x": [1] if shard == 0 else [1.5]}))


def test_a_schema_casts_what_fits_and_refuses_what_does_not(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    tables = [
        pa.table({"y": ["a"], "x": [1.0]}),
        pa.table({"x": pa.nulls(0), "y": pa.nulls(0)}),
        pa.table({"x": ["no number"], "y": ["a"]}),
        pa.table({"x": [1]}),
    ]
    result = ledger.run(lambda shard: tables[shard], schema=pa.schema({"x": pa.int64(), "y": pa.string()}))
    assert result.done == (0, 1)
    assert [str(r.error).split(":")[0] for r in result.quarantined] == ["ArrowInvalid", "ValueError"]
    assert ledger.manifest().columns == [["x", "int64"], ["y", "string"]]


def test_a_fallback_with_other_columns_is_a_quarantine(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    result = ledger.run(Model(ledger, {2: ValueError("bug")}), lambda k, e: pa.table({"x": [1]}))
    [bad] = result.quarantined
    assert "columns x int64 instead of user_id string" in str(bad.error)


def test_a_manifest_of_an_unfinished_job_is_refused(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(UserError, match=r"4 of 4 shards are not computed yet \(first: 0\)"):
        ledger.manifest()


@pytest.mark.parametrize(
    ("name", "partition", "shards"), [("../x", WEEK, 1), ("x", "", 1), ("x", "..", 1), ("x", WEEK, 0)]
)
def test_names_that_leave_the_store_are_refused(tmp_path: Path, name: str, partition: str, shards: int) -> None:
    with pytest.raises(UserError, match="Remedy"):
        batch.Ledger.open(tmp_path, name, partition, "f", shards, "run-1")


# ------------------------------------------------------------------------------------------------------------- kill -9

CHILD = textwrap.dedent(
    """
    import itertools, os, signal, sys
    import pandas, pyarrow as pa, pyarrow.parquet  # once, for all children
    from mlops_assets.foundation import batch, files

    def run(root, run_id):
        ledger = batch.Ledger.open(root, "playlists", "2026-11-16", "f", 3, run_id)
        def compute(shard):
            ids = [f"u{shard}{i}" for i in range(50)]
            return pa.table({"user_id": ids, "run_id": [ledger.job.run_id] * 50})
        ledger.run(compute)
        batch.publish(root, "playlists", "2026-11-16", ledger.manifest())

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(function, count, after):
        # Ends the process at the count-th call: just before it, or just after it.
        calls = itertools.count(1)
        def wrapped(*args, **kwargs):
            due = next(calls) == count
            if due and not after:
                die()
            result = function(*args, **kwargs)
            if due:
                die()
            return result
        return wrapped

    def child(work):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status := os.waitpid(pid, 0)[1]) else os.WEXITSTATUS(status)

    # What a process wrote outlives its kill without being flushed to the disk: only a power cut needs that.
    os.fsync = lambda descriptor: None
    root, points = sys.argv[1], 0
    assert child(lambda: run(f"{root}/undisturbed", "run-1")) == 0
    for after in (False, True):
        for count in itertools.count(1):
            folder = f"{root}/killed-{after}-{count}"
            def killed(folder=folder, count=count, after=after):
                os.fsync = dying(os.fsync, count, after)
                run(folder, "run-1")
            end = child(killed)
            if end == 0:
                break
            assert end == signal.SIGKILL, end
            points += 1
            assert child(lambda: run(folder, "run-1" if count == 1 else "run-2")) == 0  # at 1 no job is open yet
    print(points)
    """
)


def spawn(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_at_every_point_a_batch_ends_byte_for_byte_as_undisturbed(tmp_path: Path) -> None:
    """Every file is flushed before it is renamed, and its folder after: those are the points that matter."""
    process = spawn(CHILD, str(tmp_path))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    points = int(out)
    # Job, lease, three times rows and record, lease, manifest and pointer are eleven files, each with its folder.
    assert points >= 2 * 2 * 11

    undisturbed = batch.published(tmp_path / "undisturbed", "playlists", WEEK)
    assert undisturbed is not None
    roots = list(tmp_path.glob("killed-*-*"))
    assert len(roots) >= points
    for root in roots:
        survived = batch.published(root, "playlists", WEEK)
        assert survived is not None
        assert survived.manifest == undisturbed.manifest
        for file in [str(entry.file) for entry in undisturbed.manifest.shards]:
            assert (survived.folder / file).read_bytes() == (undisturbed.folder / file).read_bytes()
        assert not [*root.glob("**/shards/.*.tmp"), *root.glob("**/records/.*.tmp")]


KILLED_IN_SHARD = textwrap.dedent(
    """
    import os, signal, sys
    from mlops_assets.foundation import batch, files
    from tests.foundation.test_batch import open_ledger, rows_of

    root, point = sys.argv[1:]
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    whole = files.write_atomic

    def compute(shard):
        if point == "computing" and shard == 2:
            die()
        return rows_of(shard, ledger.job.run_id)

    def write_atomic(path, data):
        path_text = str(path)
        if point == "before write" and "/shards/00002" in path_text:
            die()
        if point == "mid write" and "/shards/00002" in path_text:
            with files.atomic_writer(path) as handle:
                handle.write(data[: len(data) // 2])
                handle.flush()
                die()
        result = whole(path, data)
        if point == "before record" and "/shards/00002" in path_text:
            die()
        return result

    files.write_atomic = write_atomic
    ledger = open_ledger(root)
    ledger.run(compute)
    if point == "before manifest":
        die()
    manifest = ledger.manifest()
    if point == "before publication":
        die()
    """
)


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("computing", {2: 1, 3: 1}),
        ("before write", {2: 1, 3: 1}),
        ("mid write", {2: 1, 3: 1}),
        ("before record", {2: 1, 3: 1}),
        ("before manifest", {}),
        ("before publication", {}),
    ],
)
def test_after_a_kill_only_unfinished_shards_are_computed(tmp_path: Path, point: str, left: dict[int, int]) -> None:
    undisturbed = open_ledger(tmp_path / "undisturbed")
    undisturbed.run(Model(undisturbed))
    process = spawn(KILLED_IN_SHARD, str(tmp_path / "killed"), point)
    assert process.communicate()[1] == ""
    assert process.returncode == -signal.SIGKILL
    ledger = open_ledger(tmp_path / "killed", run_id="run-2")
    model = Model(ledger)
    ledger.run(model)
    assert model.calls == left
    assert ledger.manifest() == undisturbed.manifest()


# -------------------------------------------------------------------------------------------------------------- leases


def test_a_second_run_is_told_who_holds_the_job(root: UPath) -> None:
    ledger = open_ledger(root)
    refused: list[str] = []

    def compute(shard: int) -> pa.Table:
        if shard == 0:
            with pytest.raises(UserError) as error:
                open_ledger(root, run_id="run-2").run(rows_of)
            refused.append(str(error.value))
        return rows_of(shard)

    ledger.run(compute)
    assert len(refused) == 1
    assert "run run-1 holds this job since 20" in refused[0]
    assert f"process {os.getpid()} on " in refused[0]


def test_of_many_runs_at_once_one_gets_the_job(root: UPath) -> None:
    barrier, held, refused = threading.Barrier(6), [], []

    def contend(number: int) -> None:
        barrier.wait()
        try:
            with lease.Lease(root / "job", f"run-{number}"):
                held.append(number)
                barrier.wait()
        except UserError:
            refused.append(number)
            barrier.wait()

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)


def test_of_many_runs_one_takes_over_from_the_dead(root: UPath) -> None:
    files.write_atomic(root / "job" / "lease.7.json", holder(pid=NOBODY))
    test_of_many_runs_at_once_one_gets_the_job(root)


def holder(age: float = 0.0, **changes: object) -> bytes:
    """Return the lease that a live run on this machine would have left `age` seconds ago, with changes."""
    seen = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    pid = os.getppid()
    record = {
        "run_id": "run-0",
        "host": "here",
        "machine": lease._machine(),
        "pid": pid,
        "started": lease._start_of(pid),
    }
    return files.canonical_json(record | {"token": "t", "since": seen, "heartbeat": seen, "released": False} | changes)


OWN = {"pid": os.getpid(), "started": lease._start_of(os.getpid())}
NOBODY = 2**22 + 1  # above the highest process number of Linux


@pytest.mark.parametrize(
    ("left_behind", "free"),
    [
        pytest.param({}, False, id="a live process"),
        pytest.param({"released": True}, True, id="released"),
        pytest.param({"pid": NOBODY}, True, id="a dead process"),
        pytest.param({"started": "1"}, True, id="a process that got a dead one's number"),
        pytest.param(OWN, True, id="this process, but no lease of its own"),
        pytest.param({"age": 500}, True, id="a process that hangs"),
        pytest.param({"machine": "elsewhere", "pid": NOBODY}, False, id="another machine"),
        pytest.param({"machine": "elsewhere", "age": 60}, False, id="another machine, late"),
        pytest.param({"machine": "elsewhere", "age": 500}, True, id="another machine, silent"),
        pytest.param({"machine": "elsewhere", "age": -500}, True, id="another machine, clock gone wrong"),
    ],
)
def test_a_lease_is_taken_over_exactly_when_its_holder_is_gone(
    tmp_path: Path, left_behind: dict[str, object], free: bool
) -> None:
    (tmp_path / "lease.7.json").write_bytes(holder(**left_behind))
    if free:
        with lease.Lease(tmp_path, "run-1"):
            assert files.names_in(tmp_path) == ["lease.8.json"]
    else:
        with pytest.raises(UserError, match="run run-0 holds this job"), lease.Lease(tmp_path, "run-1"):
            pass


def test_a_damaged_lease_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "lease.7.json").write_bytes(b"damaged")
    with lease.Lease(tmp_path, "run-1"):
        assert files.names_in(tmp_path) == ["lease.8.json"]


def test_a_killed_holder_that_nobody_reaped_is_dead(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    started = lease._start_of(process.pid)
    process.kill()
    while lease._start_of(process.pid) != "dead":
        time.sleep(0.01)
    (tmp_path / "lease.1.json").write_bytes(holder(pid=process.pid, started=started))
    with lease.Lease(tmp_path, "run-1"):
        pass
    process.wait()


def test_a_lease_is_kept_alive_while_the_work_goes_on(root: UPath) -> None:
    with lease.Lease(root / "job", "run-1", stale_after=1.2) as held:
        first = json.loads(files.read_bytes(root / "job" / "lease.1.json"))["heartbeat"]
        time.sleep(1.8)
        held.check()
        assert json.loads(files.read_bytes(root / "job" / "lease.1.json"))["heartbeat"] > first
        with pytest.raises(UserError, match="holds this job"), lease.Lease(root / "job", "run-2", stale_after=1.2):
            pass


def test_whoever_slept_too_long_and_was_replaced_stops_before_the_next_shard(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, stale_after=0.6)

    def compute(shard: int) -> pa.Table:
        [home] = tmp_path.glob("playlists/*/jobs/*")
        (home / "lease.2.json").write_bytes(holder())
        time.sleep(0.4)
        return rows_of(shard)

    with pytest.raises(UserError, match="another run has taken over from run run-1"):
        ledger.run(compute)
    assert sorted(ledger.records()) == [0]


def test_a_lease_that_a_full_disk_cannot_mark_released_is_given_back_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, lease.Lease(tmp_path, "run-1"):
        patched.setattr(os, "fsync", no_space)
    with monkeypatch.context() as patched:
        held = lease.Lease(tmp_path, "run-2")
        held.__enter__()
        patched.setattr(os, "fsync", no_space)
        held.__exit__(None, None, None)
    assert files.names_in(tmp_path) == []


# --------------------------------------------------------------------------------------------------------- publication


def published_by(root: Path | UPath, run_id: str, week: str = WEEK) -> batch.Publication:
    ledger = batch.Ledger.open(root, "playlists", week, {"run": run_id}, 3, run_id)
    ledger.run(Model(ledger))
    return batch.publish(root, "playlists", week, ledger.manifest())


def test_nothing_is_published_before_it_is(root: UPath) -> None:
    ledger = open_ledger(root)
    ledger.run(Model(ledger))
    ledger.manifest()
    assert batch.published(root, "playlists", WEEK) is None
    assert batch.publications(root, "playlists") == []


def test_publications_are_listed_by_partition(root: UPath) -> None:
    for week in ("2026-11-16", "2026-11-09", "2026-11-16|SE"):
        published_by(root, f"run-{week}", week)
    assert [p.partition for p in batch.publications(root, "playlists")] == ["2026-11-09", "2026-11-16", "2026-11-16|SE"]
    assert batch.publications(root, "other") == []


def test_columns_filters_batches_and_single_shards(root: UPath) -> None:
    publication = published_by(root, "run-1")
    one = publication.read(["track_id"], filters=[("user_id", "==", "u0203")])
    assert one.to_pydict() == {"track_id": ["t3"]}
    assert pa.Table.from_batches(publication.batches(["user_id"])).equals(publication.read(["user_id"]))
    assert publication.shard(1).equals(rows_of(1))
    with pytest.raises(UserError, match="there is no shard 3 of 3"):
        publication.shard(3)


def test_publishing_the_same_again_changes_nothing_and_an_earlier_one_goes_back(tmp_path: Path) -> None:
    old, new = published_by(tmp_path, "run-1"), published_by(tmp_path, "run-2")
    pointer = tmp_path / "playlists" / WEEK / "published.json"
    before = pointer.stat().st_mtime_ns
    assert batch.publish(tmp_path, "playlists", WEEK, new.manifest) == new
    assert pointer.stat().st_mtime_ns == before
    batch.publish(tmp_path, "playlists", WEEK, old.manifest)
    back = batch.published(tmp_path, "playlists", WEEK)
    assert back is not None
    assert (back.run_id, back.previous) == ("run-1", new.manifest.sha256)


def test_a_manifest_is_only_published_in_its_own_place_and_with_all_its_files(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.run(Model(ledger))
    manifest = ledger.manifest()
    with pytest.raises(UserError, match="the manifest is of playlists 2026-11-16"):
        batch.publish(tmp_path, "playlists", "2026-11-23", manifest)
    (tmp_path / "playlists" / WEEK / str(manifest.shards[3].file)).unlink()
    with pytest.raises(UserError, match="the file of shard 3 is missing"):
        batch.publish(tmp_path, "playlists", WEEK, manifest)
    assert batch.published(tmp_path, "playlists", WEEK) is None


def test_readers_never_get_damaged_rows_or_a_damaged_manifest(root: UPath) -> None:
    publication = published_by(root, "run-1")
    file = publication.folder / str(publication.manifest.shards[1].file)
    data = files.read_bytes(file)
    files.write_atomic(file, data[:-9] + b"X" + data[-8:])
    with pytest.raises(UserError, match=r"00001-.*\.parquet: the bytes were changed or damaged"):
        publication.read()
    files.write_atomic(publication.folder / "manifests" / f"{publication.manifest.sha256}.json", b"{}")
    with pytest.raises(UserError, match="the bytes were changed or damaged"):
        batch.published(root, "playlists", WEEK)
    files.write_atomic(publication.folder / "published.json", b"{")
    with pytest.raises(UserError, match=r"published\.json: the file is damaged"):
        batch.published(root, "playlists", WEEK)


def read_in_a_loop(root: Path | UPath, stop: Callable[[], bool]) -> Counter[tuple[str, ...]]:
    seen: Counter[tuple[str, ...]] = Counter()
    while not stop():
        publication = batch.published(root, "playlists", WEEK)
        assert publication is not None
        seen[tuple(publication.read(["run_id"])["run_id"].unique().to_pylist())] += 1
    return seen


def test_readers_see_the_whole_old_result_or_the_whole_new_one(root: UPath) -> None:
    old, new = published_by(root, "run-1"), published_by(root, "run-2")
    done = threading.Event()
    seen: list[Counter[tuple[str, ...]]] = []
    readers = [threading.Thread(target=lambda: seen.append(read_in_a_loop(root, done.is_set))) for _ in range(2)]
    for reader in readers:
        reader.start()
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        for publication in (old, new):
            batch.publish(root, "playlists", WEEK, publication.manifest)
    done.set()
    for reader in readers:
        reader.join()
    assert len(seen) == 2
    assert set(seen[0] + seen[1]) == {("run-1",), ("run-2",)}


def test_another_process_never_sees_a_mix_either(tmp_path: Path) -> None:
    old, new = published_by(tmp_path, "run-1"), published_by(tmp_path, "run-2")
    script = (
        "import sys, time; from tests.foundation.test_batch import read_in_a_loop\n"
        "print('ready', flush=True); until = time.monotonic() + 1.5\n"
        "print(sorted(read_in_a_loop(sys.argv[1], lambda: time.monotonic() > until)))\n"
    )
    reader = spawn(script, str(tmp_path))
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    while reader.poll() is None:
        for publication in (old, new):
            batch.publish(tmp_path, "playlists", WEEK, publication.manifest)
    out, err = reader.communicate()
    assert out == "[('run-1',), ('run-2',)]\n", err
