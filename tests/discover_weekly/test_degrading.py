"""Low risk degrades: whatever fails before the batch, everybody has a playlist on Monday."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from upath import UPath

from mlops_assets.definitions import build_defs
from mlops_assets.discover_weekly import judging, pipeline
from mlops_assets.discover_weekly.playlist_batch import PlaylistBatch, batch_name, publish_batch
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.publication import Publication, published
from mlops_assets.foundation.registry import ChampionHistory, ChampionRecord
from mlops_assets.running import Follow, open_instance, run_job
from tests.conftest import WEEKS, Finished
from tests.discover_weekly.test_playlist_batch import inputs_of


def follow() -> Follow:
    return Follow(lambda step, seconds: None, lambda text: None)


def test_after_a_failed_training_playlists_come_from_last_weeks_champion(
    place: Environment, make_spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, before, week = make_spec(), WEEKS[3], WEEKS[4]
    monkeypatch.setenv("DAGSTER_HOME", str(place.dagster_home))
    defs = build_defs(place, [spec])
    jobs = {name: defs.resolve_job_def(f"discover_weekly_{name}") for name in ("ingest", "refresh", "deliver")}

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the training machine is gone")

    with open_instance(place) as instance:
        run_job(jobs["ingest"], instance, follow(), periods=WEEKS[:3], name="ingest")
        run_job(jobs["refresh"], instance, follow(), periods=[before], name="refresh")
        monkeypatch.setattr(pipeline, "train_collaborative", broken)
        with pytest.raises(UserError, match="the training machine is gone"):
            run_job(jobs["refresh"], instance, follow(), periods=[week], name="refresh")
        root = UPath(place.home / "store")
        assert published(root, batch_name(spec), week) is None

        request = _ask_sensor(defs, instance, jobs["refresh"])
        assert request.partition_key == week
        run_job(jobs["deliver"], instance, follow(), periods=[str(request.partition_key)], name="deliver")

        made = published(root, batch_name(spec), week)
        assert made is not None
        rows = made.read().to_pandas()
        champion = pipeline.current_champion(spec, instance, place.resources()["models"].open())  # type: ignore[attr-defined]
    assert champion is not None
    assert set(rows.loc[rows["source"] != "popular", "model_version"]) == {champion.version}
    assert rows.groupby("user_id").size().eq(spec.playlist.length).all()


def _ask_sensor(defs: dg.Definitions, instance: dg.DagsterInstance, job: dg.JobDefinition) -> dg.RunRequest:
    """Hand the newest failed run to the sensor, as the daemon does."""
    run = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=1)[0]
    (event,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    sensor: Any = defs.resolve_sensor_def("discover_weekly_deliver_anyway")
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor.name, dagster_event=event.get_dagster_event(), dagster_instance=instance, dagster_run=run
    ).for_run_failure()
    answer = sensor(context)
    assert isinstance(answer, dg.RunRequest)
    assert job.name == run.job_name
    return answer


def test_damaged_earlier_lists_are_told_and_do_not_stop_the_week(finished: Finished, tmp_path: Path) -> None:
    earlier, week = finished.weeks
    name = batch_name(finished.spec)
    root = UPath(tmp_path / "store")
    source = Path(str(finished.store.path(name, earlier)))
    for path in source.rglob("*"):
        if path.is_file():
            target = Path(str(root / name / earlier)) / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    there = published(root, name, earlier)
    assert there is not None
    broken = Path(str(root / name / earlier)) / str(there.manifest.shards[1].file)
    broken.write_bytes(b"not a table")

    registry = finished.resources["models"].open()
    champion = pipeline.current_champion(finished.spec, finished.instance, registry)
    batch = PlaylistBatch(finished.spec, week, inputs_of(finished, week), root, registry, champion)
    manifest, outcome = batch.write("run-1", lambda text: None)
    findings = batch.judge(manifest)
    assert not outcome.fallback
    assert findings.served == findings.users
    assert findings.broken["no_repeats_of_last_weeks"] == 1
    assert f"{earlier}, shard 1" in findings.examples["no_repeats_of_last_weeks"][0]
    rows: pd.DataFrame = Publication(name, week, manifest, "", None, root / name / week).read().to_pandas()
    assert rows["user_id"].nunique() == findings.users


def test_a_batch_that_would_take_most_lists_away_is_not_published(finished: Finished, tmp_path: Path) -> None:
    earlier, week = finished.weeks
    name, root = batch_name(finished.spec), UPath(tmp_path / "store")
    shutil.copytree(Path(str(finished.store.path(name))), Path(str(root / name)))
    before = published(root, name, earlier)
    made = published(root, name, week)
    assert before is not None
    assert made is not None
    few = replace(made.manifest, rows=before.rows // 2 - 1)
    with pytest.raises(UserError, match=r"too few after .* of 2024-01-22; it is not published"):
        publish_batch(finished.spec, root, few)
    assert published(root, name, week) == made
    assert publish_batch(finished.spec, root, made.manifest) == made


def test_what_was_rolled_back_from_does_not_come_back_by_itself(finished: Finished, tmp_path: Path) -> None:
    registry = finished.resources["models"].open()
    history = ChampionHistory(finished.instance, finished.spec.name, registry, pipeline.blend_name(finished.spec))
    bad, good = registry.versions(history.model)[1::-1]

    class Told:
        model, registry = history.model, history.registry

        def __init__(self, *records: ChampionRecord) -> None:
            self._records = records

        def records(self) -> list[ChampionRecord]:
            return list(self._records)

    one = history.records()[0]
    away = replace(one, verdict="rolled_back", from_version=bad.version, sha256=good.sha256, by="ann", reason="skips")
    back = replace(one, verdict="rolled_back", from_version=good.version, sha256=bad.sha256)
    told = judging._rolled_back(Told(away), bad)  # type: ignore[arg-type]
    assert told is not None
    assert "ann rolled back" in told
    assert judging._rolled_back(Told(away), good) is None  # type: ignore[arg-type]
    assert judging._rolled_back(Told(away, back), bad) is None  # type: ignore[arg-type]


def test_a_rerun_of_an_older_week_keeps_the_version_that_served_then(finished: Finished) -> None:
    earlier, week = finished.weeks
    registry, root = finished.resources["models"].open(), finished.store.path()
    then = pipeline.champion_for(finished.spec, finished.instance, registry, root, earlier)
    now = pipeline.champion_for(finished.spec, finished.instance, registry, root, week)
    made = published(root, batch_name(finished.spec), earlier)
    assert made is not None
    rows = made.read(["model_version", "source"]).to_pandas()
    assert then is not None
    assert set(rows.loc[rows["source"] != "popular", "model_version"]) == {then.version}
    assert now == pipeline.current_champion(finished.spec, finished.instance, registry)
