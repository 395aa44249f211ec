"""A week's batch survives poison, kill -9 and a full disk, and readers see one whole week or the other."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from upath import UPath

import mlops_assets
from mlops_assets.discover_weekly import checks, pipeline
from mlops_assets.discover_weekly.playlist_batch import PlaylistBatch
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.discover_weekly.training import shard_name
from mlops_assets.foundation import files
from mlops_assets.foundation.batch import BatchResult
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.publication import Manifest, Publication, publish, published
from mlops_assets.foundation.registry import ModelVersion
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore
from tests.conftest import SMALL, WEEKS, Finished

LAST, THIS = WEEKS[3], WEEKS[4]
NAME, RUN = "discover_weekly/playlists", "run-1"


def champion_of(finished: Finished) -> ModelVersion:
    found = pipeline.current_champion(finished.spec, finished.instance, finished.resources["models"].open())
    assert found is not None
    return found


def inputs_of(finished: Finished, week: str) -> Snapshot:
    everything = SnapshotStore(finished.store.path("snapshots")).list("discover_weekly/batch_inputs")
    (found,) = [snapshot for snapshot in everything if snapshot.metadata["as_of"] == week]
    return found


@pytest.fixture(scope="module")
def last_week(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which last week is published and this week is not."""
    root = tmp_path_factory.mktemp("last_week")
    folder = Path(str(finished.store.path(NAME, LAST)))
    shutil.copytree(folder, root / NAME / LAST)
    return root


@pytest.fixture
def root(last_week: Path, tmp_path: Path) -> UPath:
    return UPath(shutil.copytree(last_week, tmp_path / "store"))


@pytest.fixture
def make(finished: Finished, root: UPath) -> Callable[..., PlaylistBatch]:
    """Build this week's batch on the finished run's frozen inputs, in a store of its own."""
    champion, inputs = champion_of(finished), inputs_of(finished, THIS)

    def build(**over: Any) -> PlaylistBatch:
        given: dict[str, Any] = {"spec": finished.spec, "inputs": inputs, "champion": champion, "root": root, **over}
        registry = finished.resources["models"].open()
        return PlaylistBatch(given["spec"], THIS, given["inputs"], given["root"], registry, given["champion"])

    return build


def quiet(_: str) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def undisturbed(finished: Finished, last_week: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of a run that nothing happened to."""
    root = UPath(shutil.copytree(last_week, tmp_path_factory.mktemp("undisturbed") / "store"))
    registry = finished.resources["models"].open()
    batch = PlaylistBatch(finished.spec, THIS, inputs_of(finished, THIS), root, registry, champion_of(finished))
    return batch.write(RUN, quiet)[0]


def rows_of(root: UPath, manifest: Manifest) -> pd.DataFrame:
    frame: pd.DataFrame = Publication(NAME, THIS, manifest, "", None, root / NAME / THIS).read().to_pandas()
    return frame


def failed_checks(spec: Spec, batch: PlaylistBatch, manifest: Manifest) -> dict[str, str]:
    results = checks.playlist_results(spec, batch.judge(manifest), batch.catalogue_size)
    return {result.check_name or "": result.description or "" for result in results if not result.passed}


def test_a_batch_without_trouble_keeps_all_rules(make: Callable[..., PlaylistBatch], finished: Finished) -> None:
    batch = make()
    manifest, outcome = batch.write(RUN, quiet)
    assert outcome.complete
    assert (outcome.computed, outcome.resumed, manifest.counts["done"]) == (3, 0, 3)
    assert failed_checks(finished.spec, batch, manifest) == {}


def test_the_same_inputs_give_the_same_manifest(
    make: Callable[..., PlaylistBatch], undisturbed: Manifest, root: UPath
) -> None:
    manifest, _ = make().write(RUN, quiet)
    assert manifest == undisturbed
    # Everything that the rows say of themselves is of the run that opened the batch.
    again, outcome = make().write("run-2", quiet)
    assert again == manifest
    assert (outcome.computed, outcome.resumed) == (0, 3)
    assert set(rows_of(root, manifest)["run_id"]) == {RUN}


# ---- poison


def poisoned(finished: Finished, folder: Path, shard: int) -> Snapshot:
    """Copy this week's inputs with one user whose history is broken: fewer confidences than tracks."""
    inputs = inputs_of(finished, THIS)
    tables: dict[str, Any] = {name: inputs.arrow(name) for name in inputs.tables}
    frame = inputs.read(shard_name(shard))
    victim = int(frame["tracks"].map(len).to_numpy().argmax())
    frame["confidences"] = [values[:-1] if at == victim else values for at, values in enumerate(frame["confidences"])]
    tables[shard_name(shard)] = tables[shard_name(shard)].from_pandas(
        frame, schema=tables[shard_name(shard)].schema, preserve_index=False
    )
    return SnapshotStore(folder / "poison").save("discover_weekly/batch_inputs", tables, inputs.metadata)


def test_a_poison_shard_gets_last_weeks_lists_and_a_warning_and_the_others_are_fine(
    make: Callable[..., PlaylistBatch], finished: Finished, tmp_path: Path, root: UPath, undisturbed: Manifest
) -> None:
    batch, told = make(inputs=poisoned(finished, tmp_path, 1)), []
    manifest, outcome = batch.write(RUN, told.append)
    assert [record.shard for record in outcome.fallback] == [1]
    assert outcome.complete
    assert any("shard 1 failed and gets last period's lists" in text for text in told)
    rows = rows_of(root, manifest)
    users = inputs_of(finished, THIS).read(shard_name(1))
    mine = rows[rows["user_id"].isin(users["user_id"])].reset_index(drop=True)
    before = published(root, NAME, LAST)
    assert before is not None
    old = before.shard(1).to_pandas()
    kept = mine[mine["source"] == "last_week"]
    assert kept["user_id"].nunique() == old["user_id"].nunique() > 20
    columns = ["user_id", "rank", "track_id", "model_version"]
    both = kept.merge(old, on=["user_id", "track_id"], suffixes=("", "_then"))
    assert len(both) == len(kept) == len(old)
    assert (both["model_version"] == both["model_version_then"]).all()
    pd.testing.assert_frame_equal(kept[columns].reset_index(drop=True), old[columns], check_dtype=False)
    # Who joined since then has no earlier list.
    assert set(mine.loc[mine["source"] != "last_week", "source"]) <= {"popular"}
    assert set(mine["user_id"]) == set(users["user_id"])
    failed = failed_checks(finished.spec, batch, manifest)
    assert set(failed) == {"every_list_is_new"}
    assert f"Broken {old['user_id'].nunique()} times" in failed["every_list_is_new"]
    untouched = [entry.sha256 for entry in undisturbed.shards if entry.shard != 1]
    assert [entry.sha256 for entry in manifest.shards if entry.shard != 1] == untouched


def test_a_poison_shard_is_tried_again_by_the_next_run(
    make: Callable[..., PlaylistBatch], root: UPath, undisturbed: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_assets.discover_weekly.playlists import Recommender

    victims = set(make().inputs.read(shard_name(2))["user_id"])
    whole = Recommender.recommend

    def poison(self: Recommender, users: pd.DataFrame, recent: pd.DataFrame, **named: Any) -> Any:
        if set(users["user_id"]) & victims:
            raise ValueError("poison")
        return whole(self, users, recent, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Recommender, "recommend", poison)
        manifest, outcome = make().write(RUN, quiet)
        assert [(record.shard, record.error) for record in outcome.fallback] == [(2, "ValueError: poison")]
        publish(root, NAME, THIS, manifest)
    mended, outcome = make().write("run-2", quiet)
    assert (outcome.computed, outcome.resumed, len(outcome.fallback)) == (1, 2, 0)
    assert mended == undisturbed


def test_without_an_earlier_week_a_poison_shard_gets_what_is_popular(
    make: Callable[..., PlaylistBatch], finished: Finished, tmp_path: Path
) -> None:
    empty = UPath(tmp_path / "empty")
    batch = make(inputs=poisoned(finished, tmp_path, 0), root=empty)
    manifest, outcome = batch.write(RUN, quiet)
    assert len(outcome.fallback) == 1
    users = batch.inputs.read(shard_name(0))
    rows = rows_of(empty, manifest)
    assert set(rows.loc[rows["user_id"].isin(users["user_id"]), "source"]) == {"popular"}
    assert failed_checks(finished.spec, batch, manifest) == {}


def test_where_repeats_are_allowed_a_poison_shard_gets_last_weeks_lists_as_well(
    make: Callable[..., PlaylistBatch], finished: Finished, tmp_path: Path, make_spec: Callable[..., Spec]
) -> None:
    spec = make_spec(playlist={"no_repeat_periods": 0})
    batch = make(spec=spec, inputs=poisoned(finished, tmp_path, 0))
    manifest, _ = batch.write(RUN, quiet)
    assert batch.judge(manifest).sources["last_week"] > 100
    assert set(failed_checks(spec, batch, manifest)) == {"every_list_is_new"}


def test_another_number_of_shards_still_finds_everybodys_last_list(
    make: Callable[..., PlaylistBatch], finished: Finished, make_spec: Callable[..., Spec]
) -> None:
    users = inputs_of(finished, THIS).read(shard_name(1))
    same = make().recent(1, users)
    other = make(spec=make_spec(playlist={"shards": 5})).recent(1, users)
    order = ["user_id", "track_id"]
    assert len(same) > 100
    pd.testing.assert_frame_equal(
        other.sort_values(order, ignore_index=True), same.sort_values(order, ignore_index=True)
    )


# ---- death and resumption


CHILD = """
import json, os, signal, sys
from upath import UPath
from mlops_assets.discover_weekly.playlist_batch import PlaylistBatch
from mlops_assets.discover_weekly.spec import parse_spec
from mlops_assets.environment import Environment
from mlops_assets.foundation import files
from mlops_assets.foundation.snapshots import SnapshotStore
from pathlib import Path

given = json.loads(sys.argv[1])
resources = Environment("embedded", Path(given["home"])).resources()
whole = files.write_atomic

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def write_atomic(path, data):
    if given["at"] not in str(path):
        return whole(path, data)
    if given["moment"] == "before":
        die()
    if given["moment"] == "during":
        with files.atomic_writer(path) as handle:
            handle.write(data[: len(data) // 2])
            handle.flush()
            die()
    whole(path, data)
    die()

files.write_atomic = write_atomic
spec = parse_spec(given["spec"], where="test", base=Path())
inputs = SnapshotStore(resources["store"].path("snapshots")).load(given["inputs"])
registry = resources["models"].open()
champion = registry.get("discover_weekly.blend_model", given["champion"])
batch = PlaylistBatch(spec, given["week"], inputs, UPath(given["root"]), registry, champion)
batch.write(given["run_id"], print)
"""


def killed(finished: Finished, root: UPath, at: str, moment: str) -> None:
    """Write this week's batch in a process that kills itself when it writes the file ``at``."""
    given = {
        "home": str(finished.place.home),
        "spec": dict(SMALL),
        "inputs": inputs_of(finished, THIS).sha256,
        "champion": champion_of(finished).version,
        "week": THIS,
        "root": str(root),
        "run_id": RUN,
        "at": at,
        "moment": moment,
    }
    project = Path(mlops_assets.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(given)], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("at", "moment", "finished_shards"),
    [
        pytest.param("shards/00000-", "during", 0, id="in the middle of the first shard"),
        pytest.param("records/00001", "before", 1, id="rows written, record not"),
        pytest.param("records/00001", "after", 2, id="between two shards"),
        pytest.param("manifests/", "before", 3, id="all shards, no manifest"),
    ],
)
def test_a_killed_run_goes_on_where_it_died_and_ends_the_same(
    finished: Finished,
    make: Callable[..., PlaylistBatch],
    root: UPath,
    undisturbed: Manifest,
    at: str,
    moment: str,
    finished_shards: int,
) -> None:
    killed(finished, root, at, moment)
    before = published(root, NAME, LAST)
    assert published(root, NAME, THIS) is None
    manifest, outcome = make().write(RUN, quiet)
    assert (outcome.resumed, outcome.computed) == (finished_shards, 3 - finished_shards)
    assert manifest == undisturbed
    assert published(root, NAME, LAST) == before
    assert list(Path(str(root)).rglob("*.tmp")) == []


def test_a_changed_champion_is_another_job(
    make: Callable[..., PlaylistBatch], root: UPath, undisturbed: Manifest
) -> None:
    first, _ = make().write(RUN, quiet)
    publish(root, NAME, THIS, first)
    other, outcome = make(champion=None).write("run-2", quiet)
    assert (outcome.computed, outcome.resumed) == (3, 0)
    assert other.fingerprint != first.fingerprint
    rows = rows_of(root, other)
    assert set(rows["model_version"]) == {0}
    assert set(rows["run_id"]) == {"run-2"}
    there = published(root, NAME, THIS)
    assert there is not None
    assert there.manifest == first == undisturbed


@pytest.mark.parametrize(
    "over", [{"playlist": {"length": 9}}, {"playlist": {"per_artist": 1}}, {"playlist": {"shards": 4}}]
)
def test_changed_rules_are_another_job(
    make: Callable[..., PlaylistBatch], make_spec: Callable[..., Spec], over: dict[str, Any]
) -> None:
    assert make(spec=make_spec(**over)).fingerprint() != make().fingerprint()


def test_what_another_week_published_is_part_of_the_job(make: Callable[..., PlaylistBatch], root: UPath) -> None:
    before = make().fingerprint()
    shutil.rmtree(root / NAME / LAST)
    assert make().fingerprint() != before


# ---- publication


def test_readers_see_one_result_or_the_other_and_never_a_mix(make: Callable[..., PlaylistBatch], root: UPath) -> None:
    one, _ = make().write(RUN, quiet)
    other, _ = make(champion=None).write("run-2", quiet)
    publish(root, NAME, THIS, one)
    stop, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            found = published(root, NAME, THIS)
            if found is None:
                wrong.append("nothing")
                return
            table = found.read(["run_id", "user_id"])
            runs = set(table.column("run_id").to_pylist())
            seen.update(runs)
            if runs != {found.manifest.run_id} or table.num_rows != found.manifest.rows:
                wrong.append(f"{runs} in {found.manifest.run_id}")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(40):
        publish(root, NAME, THIS, other)
        publish(root, NAME, THIS, one)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert seen == {RUN, "run-2"}


def test_two_runs_of_one_week_at_once_end_with_one_result(
    make: Callable[..., PlaylistBatch], root: UPath, undisturbed: Manifest
) -> None:
    """The second run is told who holds the job, or finds it done; there is one manifest either way."""
    start, made, errors = threading.Barrier(2), [], []

    def run(name: str) -> None:
        batch = make()
        _ = batch.catalogue, batch.model
        start.wait()
        try:
            manifest, _ = batch.write(name, quiet)
            made.append(publish(root, NAME, THIS, manifest).manifest)
        except UserError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("run-1", "run-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made
    assert len(made) + len(errors) == 2
    assert len({manifest.sha256 for manifest in made}) == 1
    assert all("holds this job since" in text and "Remedy: wait for it" in text for text in errors)
    there = published(root, NAME, THIS)
    assert there is not None
    assert there.manifest.rows == undisturbed.rows


# ---- a disk that does not take it


def no_write(number: int) -> Callable[[int], None]:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")]
)
def test_a_disk_that_takes_no_more_stops_the_run_and_the_next_one_goes_on(
    make: Callable[..., PlaylistBatch],
    root: UPath,
    undisturbed: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    words: str,
) -> None:
    before = published(root, NAME, LAST)
    whole = files.write_atomic

    def write_atomic(path: Any, data: bytes) -> str:
        if "shards/00001-" in str(path):
            monkeypatch.setattr(os, "fsync", no_write(number))
        return whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", write_atomic)
        with pytest.raises(UserError, match=rf"shards/00001-.*cannot write: {words}.*Remedy: free space or make"):
            make().write(RUN, quiet)
    monkeypatch.undo()
    assert published(root, NAME, LAST) == before
    assert published(root, NAME, THIS) is None
    manifest, outcome = make().write(RUN, quiet)
    assert (outcome.resumed, outcome.computed) == (1, 2)
    assert manifest == undisturbed


def test_a_folder_that_cannot_be_written_is_named(make: Callable[..., PlaylistBatch], tmp_path: Path) -> None:
    # As root a read-only folder can be written all the same, so the store's parent is a file.
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write: Not a directory"):
        make(root=UPath(tmp_path / "file" / "store")).write(RUN, quiet)


def test_a_damaged_shard_is_computed_again(
    make: Callable[..., PlaylistBatch], root: UPath, undisturbed: Manifest
) -> None:
    manifest, _ = make().write(RUN, quiet)
    path = Path(str(root / NAME / THIS / (manifest.shards[1].file or "")))
    path.write_bytes(path.read_bytes()[:-10] + b"0123456789")
    again, outcome = make().write(RUN, quiet)
    assert (outcome.resumed, outcome.computed) == (2, 1)
    assert again == undisturbed


def test_damaged_champion_files_stop_the_batch_and_leave_last_week_alone(
    finished: Finished, root: UPath, tmp_path: Path
) -> None:
    """Wrong lists are worse than none: nothing falls back when the model itself is broken."""
    from mlops_assets.foundation.registry import Registry

    models = tmp_path / "models"
    shutil.copytree(str(finished.store.path("models")), models)
    registry = Registry(finished.resources["models"].tracking_uri, UPath(models))
    champion = registry.get("discover_weekly.blend_model", champion_of(finished).version)
    victim = next(models.rglob(f"discover_weekly.blend_model/*{champion.version}/files/collaborative.npz"))
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    before = published(root, NAME, LAST)
    batch = PlaylistBatch(finished.spec, THIS, inputs_of(finished, THIS), root, registry, champion)
    with pytest.raises(UserError, match=r"collaborative\.npz.*Remedy"):
        batch.write(RUN, quiet)
    assert published(root, NAME, LAST) == before
    assert published(root, NAME, THIS) is None


def test_the_result_tells_what_became_of_every_shard(make: Callable[..., PlaylistBatch]) -> None:
    told: list[str] = []
    outcome: BatchResult = make().write(RUN, told.append)[1]
    assert outcome.done == (0, 1, 2)
    assert [text.split(":")[0] for text in told] == ["shard 1 of 3", "shard 2 of 3", "shard 3 of 3"]
