"""Model versions are immutable, a verdict rests on stored evidence, and the champion has a history."""

import hashlib
import json
import logging
import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from upath import UPath

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import (
    ChampionHistory,
    ChampionRecord,
    GateResult,
    ModelVersion,
    Registry,
    Verdict,
    decide,
)

SYSTEM, MODEL = "discover_weekly", "discover_weekly.blend_model"
PROMOTED = Verdict("promoted", ("better by nDCG",))
KEPT = Verdict("kept", ("not better",))
BLOCKED = Verdict("blocked", ("required gate accuracy is missing",))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: that is the slow part of a new registry."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Registry(f"sqlite:///{path}", path.parent).mlflow.alias("nothing")
    return path


@pytest.fixture
def tracking_uri(tmp_path: Path, empty_database: Path) -> str:
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    return f"sqlite:///{database}"


@pytest.fixture
def registry(tmp_path: Path, tracking_uri: str) -> Registry:
    return Registry(tracking_uri, UPath(tmp_path / "models"))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def history(instance: dg.DagsterInstance, registry: Registry) -> ChampionHistory:
    return ChampionHistory(instance, SYSTEM, registry, MODEL)


def save(folder: Path, content: str) -> Path:
    (folder / "factors").mkdir(parents=True, exist_ok=True)
    (folder / "weights.json").write_text(json.dumps({"content": content}))
    np.savez(folder / "factors" / "users.npz", factors=np.arange(6.0).reshape(3, 2))
    return folder


def register(registry: Registry, tmp_path: Path, content: str, model: str = MODEL, **other: Any) -> ModelVersion:
    arguments: dict[str, Any] = {
        "params": {"factors": 64, "alpha": np.float64(0.5)},
        "metrics": {"ndcg@30": 0.25},
        "parts": {},
        "tags": {"owner": "team:discover-weekly", "week": "2026-11-16"},
    } | other
    return registry.register(model, save(tmp_path / f"trained-{content}", content), **arguments)


def materialize(history: ChampionHistory, record: ChampionRecord) -> ChampionRecord:
    """Do what the champion asset does in a run."""

    @dg.asset(key=[SYSTEM, "champion"])
    def champion() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata=record.metadata())

    assert dg.materialize([champion], instance=history.instance).success
    return record


def report(history: ChampionHistory, record: ChampionRecord) -> ChampionRecord:
    """Put a record into the event log without the cost of a run."""
    key = dg.AssetKey([SYSTEM, "champion"])
    history.instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=record.metadata()))
    return record


def promote(history: ChampionHistory, version: ModelVersion) -> ChampionRecord:
    evidence = history.registry.attach_evidence(version, {"ndcg@30": 0.25, "version": version.version})
    return report(history, history.next_record(PROMOTED, version, by="run 1", evidence_sha256=evidence))


class TestVersions:
    def test_a_registered_version_reads_back_as_it_was_registered(self, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        assert registry.get(MODEL, 1) == version == registry.latest(MODEL)
        assert set(version.files) == {"weights.json", "factors/users.npz"}
        assert version.params == {"factors": 64, "alpha": 0.5}
        assert version.metrics == {"ndcg@30": 0.25}
        assert version.tags["week"] == "2026-11-16"
        assert datetime.fromisoformat(version.created).tzinfo is not None

    def test_its_sha256_covers_names_and_bytes(self, registry, tmp_path):
        folder = save(tmp_path / "one", "a")
        other = save(tmp_path / "two", "a")
        (other / "weights.json").rename(other / "renamed.json")
        nothing: dict[str, Any] = {"params": {}, "metrics": {}, "parts": {}, "tags": {}}
        first = registry.register("m", folder, **nothing)
        second = registry.register("m", other, **nothing)
        assert first.sha256 != second.sha256
        assert sorted(first.files.values()) == sorted(second.files.values())

    def test_identical_content_again_is_the_same_version_and_rewrites_nothing(self, registry, tmp_path):
        first = register(registry, tmp_path, "a")
        stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")}
        again = register(registry, tmp_path, "a", metrics={"ndcg@30": 0.9}, tags={})
        assert again == first
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*")} == stored
        assert len(registry.versions(MODEL)) == 1

    def test_the_same_files_built_from_other_parts_are_another_version(self, registry, tmp_path):
        parts = [register(registry, tmp_path, name, model="content").as_part() for name in ("x", "y")]
        versions = [register(registry, tmp_path, "a", parts={"content": part}) for part in parts]
        assert [version.version for version in versions] == [1, 2]
        assert versions[0].sha256 == versions[1].sha256
        assert versions[1].parts == {"content": {"version": 2, "sha256": parts[1]["sha256"]}}

    def test_a_part_that_is_not_what_was_registered_is_refused(self, registry, tmp_path):
        part = register(registry, tmp_path, "x", model="content").as_part() | {"sha256": "0" * 64}
        with pytest.raises(UserError, match="part content version 1 has another SHA-256"):
            register(registry, tmp_path, "a", parts={"content": part})

    def test_versions_are_listed_in_order_beyond_nine(self, registry, tmp_path):
        for number in range(11):
            register(registry, tmp_path, str(number))
        assert [version.version for version in registry.versions(MODEL)] == list(range(1, 12))
        assert registry.latest(MODEL).version == 11

    def test_an_unknown_version_lists_the_known_ones(self, registry, tmp_path):
        register(registry, tmp_path, "a")
        with pytest.raises(UserError, match=r"has no version 7\. Remedy: known versions: 1\."):
            registry.get(MODEL, 7)
        assert registry.latest("never_registered") is None

    def test_an_empty_folder_is_refused(self, registry, tmp_path):
        with pytest.raises(UserError, match="no file to register"):
            registry.register(MODEL, tmp_path / "nowhere", params={}, metrics={}, parts={}, tags={})

    def test_a_pickle_is_refused(self, registry, tmp_path):
        (save(tmp_path / "trained", "a") / "model.pkl").write_bytes(b"")
        with pytest.raises(UserError, match=r"model\.pkl is in a format that runs code"):
            registry.register(MODEL, tmp_path / "trained", params={}, metrics={}, parts={}, tags={})

    def test_a_metric_that_is_not_finite_is_refused(self, registry, tmp_path):
        with pytest.raises(UserError, match=f"metrics of {MODEL}"):
            register(registry, tmp_path, "a", metrics={"ndcg": float("nan")})

    @pytest.mark.parametrize("name", ["a/b", "", "../up", "Model"])
    def test_a_name_that_is_no_folder_name_is_refused(self, registry, tmp_path, name):
        with pytest.raises(UserError, match="cannot name a model"):
            register(registry, tmp_path, "a", model=name)

    def test_compare_lists_what_differs(self, registry, tmp_path):
        a = register(registry, tmp_path, "a", params={"factors": 64, "alpha": 1})
        b = register(registry, tmp_path, "b", params={"factors": 128, "alpha": 1}, metrics={"ndcg@30": 0.3})
        assert registry.compare(a, b) == [
            {"kind": "params", "name": "factors", "a": 64, "b": 128},
            {"kind": "metrics", "name": "ndcg@30", "a": 0.25, "b": 0.3},
        ]


class TestFiles:
    def test_fetch_returns_the_files_and_into_copies_them(self, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        copied = registry.fetch(version, tmp_path / "copy")
        assert json.loads((copied / "weights.json").read_text()) == {"content": "a"}
        assert np.load(registry.fetch(version) / "factors" / "users.npz")["factors"].shape == (3, 2)

    @pytest.mark.parametrize("into", [None, "copy"])
    def test_a_broken_file_is_refused_with_both_hashes(self, registry, tmp_path, into):
        version = register(registry, tmp_path, "a")
        stored = tmp_path / "models" / MODEL / "v1" / "files" / "weights.json"
        stored.write_bytes(b"{}")
        with pytest.raises(UserError) as error:
            registry.fetch(version, tmp_path / into if into else None)
        message = str(error.value)
        assert str(stored) in message
        assert version.files["weights.json"] in message
        assert hashlib.sha256(b"{}").hexdigest() in message
        assert "roll back" in message
        assert not (tmp_path / "copy" / "weights.json").exists()

    def test_a_missing_file_is_refused(self, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        (tmp_path / "models" / MODEL / "v1" / "files" / "weights.json").unlink()
        for into in (None, tmp_path / "copy"):
            with pytest.raises(UserError, match=r"missing: .* found no file"):
                registry.fetch(version, into)

    def test_a_record_that_was_edited_is_refused(self, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        record = tmp_path / "models" / MODEL / "v1" / "version.json"
        record.write_text(record.read_text().replace(version.files["weights.json"], "0" * 64))
        with pytest.raises(UserError, match="does not fit its own hashes"):
            registry.get(MODEL, 1)

    def test_a_remote_store_is_fetched_through_the_cache_and_a_broken_copy_is_replaced(self, tracking_uri, tmp_path):
        root = UPath(f"memory://{tmp_path.name}")
        registry = Registry(tracking_uri, root, cache=tmp_path / "cache")
        version = register(registry, tmp_path, "a")
        local = registry.fetch(version)
        assert local.is_relative_to(tmp_path / "cache")
        (local / "weights.json").write_text("broken")
        assert json.loads((registry.fetch(version) / "weights.json").read_text()) == {"content": "a"}

    def test_a_broken_remote_file_is_refused_and_not_cached(self, tracking_uri, tmp_path):
        root = UPath(f"memory://{tmp_path.name}")
        registry = Registry(tracking_uri, root, cache=tmp_path / "cache")
        version = register(registry, tmp_path, "a")
        (root / MODEL / "v1" / "files" / "weights.json").write_bytes(b"{}")
        with pytest.raises(UserError, match="is broken"):
            registry.fetch(version)
        assert not list((tmp_path / "cache").rglob("weights.json"))


class TestEvidence:
    def test_evidence_reads_back_by_its_hash_and_one_version_has_several(self, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        weeks = {week: registry.attach_evidence(version, {"week": week}) for week in ("2026-11-09", "2026-11-16")}
        assert len(set(weeks.values())) == 2
        assert [registry.evidence(version, digest) for digest in weeks.values()] == [{"week": week} for week in weeks]

    def test_the_hash_does_not_depend_on_the_order_of_the_keys(self, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        first = registry.attach_evidence(version, {"a": 1, "b": np.float64(0.5)})
        assert first == registry.attach_evidence(version, {"b": 0.5, "a": 1})

    def test_changed_or_missing_evidence_is_refused(self, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        digest = registry.attach_evidence(version, {"ndcg": 0.25})
        (tmp_path / "models" / MODEL / "v1" / "evidence" / f"{digest}.json").write_text('{"ndcg":0.99}')
        with pytest.raises(UserError, match="is broken"):
            registry.evidence(version, digest)
        with pytest.raises(UserError, match="there is no evidence"):
            registry.evidence(version, "0" * 64)


class TestMlflow:
    def test_a_run_shows_params_metrics_and_tags(self, registry, tracking_uri, tmp_path):
        from mlflow.tracking import MlflowClient

        register(registry, tmp_path, "a", params={f"p{i}": i for i in range(150)}, metrics={"ndcg@30": 0.25})
        client = MlflowClient(tracking_uri, tracking_uri)
        version = client.get_model_version(MODEL, "1")
        run = client.get_run(version.run_id)
        assert run.info.status == "FINISHED"
        assert version.tags["files_uri"] == str(tmp_path / "models" / MODEL / "v1" / "files")
        assert run.data.metrics == {"ndcg_at_30": 0.25}
        assert len(run.data.params) == 150
        assert run.data.tags["owner"] == "team:discover-weekly"

    def test_a_registration_that_died_after_it_got_its_number_is_finished_by_the_next(self, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        (tmp_path / "models" / MODEL / "v1" / "version.json").unlink()
        assert registry.versions(MODEL) == []
        assert register(registry, tmp_path, "a").version == version.version

    def test_another_tracking_database_never_overwrites_a_version(self, registry, tmp_path, empty_database):
        register(registry, tmp_path, "a")
        (tmp_path / "other.db").write_bytes(empty_database.read_bytes())
        other = Registry(f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "models")
        with pytest.raises(UserError, match="already holds versions 1"):
            register(other, tmp_path, "b")
        assert registry.get(MODEL, 1).files == register(registry, tmp_path, "a").files

    def test_registration_waits_for_a_locked_database(self, registry, tmp_path, monkeypatch):
        register(registry, tmp_path, "a")
        monkeypatch.setattr(type(registry.mlflow), "_RETRIES", 3)
        from sqlalchemy.exc import OperationalError

        calls = []

        def locked_twice(client: Any) -> str:
            calls.append(client)
            if len(calls) < 3:
                raise OperationalError("insert", {}, sqlite3.OperationalError("database is locked"))
            return "done"

        assert registry.mlflow._call(locked_twice) == "done"
        calls.clear()
        monkeypatch.setattr(type(registry.mlflow), "_RETRIES", 1)
        with pytest.raises(UserError, match="database is locked"):
            registry.mlflow._call(locked_twice)

    def test_processes_that_register_at_once_never_share_a_number(self, tmp_path):
        # A new database: the processes also race to create its tables.
        uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            own, others = pool.starmap(_register_several, [(uri, tmp_path, name) for name in ("one", "two")])
        assert own["shared"] == others["shared"]
        assert len({*own.values(), *others.values()}) == 7
        registry = Registry(uri, tmp_path / "models")
        assert {version.version for version in registry.versions(MODEL)} == {*own.values(), *others.values()}
        for version in registry.versions(MODEL):
            registry.fetch(version)


def _register_several(uri: str, tmp_path: Path, process: str) -> dict[str, int]:
    registry = Registry(uri, tmp_path / "models")
    contents = ["shared", *(f"{process}{number}" for number in range(3))]
    return {content: register(registry, tmp_path / process, content).version for content in contents}


class TestDecision:
    PASSED = GateResult("accuracy", "passed", value=0.25, bound=0.2, interval=(0.23, 0.27))
    FAILED = GateResult("accuracy", "failed", value=0.15, bound=0.2)
    BETTER = GateResult("champion_comparison", "passed", value=0.01, bound=0.0, interval=(0.004, 0.016))
    WORSE = GateResult("champion_comparison", "failed", value=-0.01, bound=0.0)
    REQUIRED = ("accuracy", "champion_comparison")

    @pytest.fixture
    def pair(self) -> tuple[ModelVersion, ModelVersion]:
        return self.version(2), self.version(1)

    @staticmethod
    def version(number: int) -> ModelVersion:
        return ModelVersion(MODEL, number, f"sha{number}", "", {}, {}, {}, {}, {}, "")

    def test_the_first_candidate_that_passes_is_promoted(self, pair):
        assert decide(pair[0], None, [self.PASSED], ["accuracy"]).verdict == "promoted"
        assert (
            decide(
                pair[0], None, [self.PASSED], self.REQUIRED, GateResult("champion_comparison", "not_assessed")
            ).verdict
            == "promoted"
        )

    def test_a_better_candidate_is_promoted_and_the_reason_has_the_numbers(self, pair):
        verdict = decide(*pair, [self.PASSED], self.REQUIRED, self.BETTER)
        assert verdict.verdict == "promoted"
        assert "value 0.01, bound 0, interval 0.004 to 0.016" in verdict.reason

    def test_a_candidate_that_is_not_better_is_kept_out_without_being_blocked(self, pair):
        assert decide(*pair, [self.PASSED], self.REQUIRED, self.WORSE).verdict == "kept"
        assert "not compared" in decide(*pair, [self.PASSED], ["accuracy"]).reason

    @pytest.mark.parametrize(
        ("gates", "why"),
        [
            ([FAILED], "accuracy failed (value 0.15, bound 0.2)"),
            ([GateResult("accuracy", "not_assessed", reason="no labels yet")], "accuracy not assessed (no labels yet)"),
            ([], "required gate accuracy is missing"),
            ([PASSED, FAILED], "accuracy failed"),
        ],
        ids=["failed", "not assessed", "missing", "one of two failed"],
    )
    def test_a_required_gate_that_has_not_passed_blocks_even_a_better_candidate(self, pair, gates, why):
        for champion in (None, pair[1]):
            verdict = decide(pair[0], champion, gates, self.REQUIRED, self.BETTER)
            assert verdict.verdict == "blocked"
            assert why in verdict.reason

    def test_a_required_comparison_that_was_not_assessed_blocks_where_there_is_a_champion(self, pair):
        comparison = GateResult("champion_comparison", "not_assessed", reason="too few users")
        assert decide(*pair, [self.PASSED], self.REQUIRED, comparison).verdict == "blocked"
        assert decide(*pair, [self.PASSED], self.REQUIRED).verdict == "blocked"

    def test_a_failed_gate_that_is_not_required_is_only_remarked(self, pair):
        drift = GateResult("drift", "failed", reason="plays moved")
        verdict = decide(*pair, [self.PASSED, drift], self.REQUIRED, self.BETTER)
        assert verdict.verdict == "promoted"
        assert "drift failed (plays moved)" in verdict.reason

    def test_the_champions_own_content_is_kept(self, pair):
        assert decide(pair[0], pair[0], [self.FAILED], self.REQUIRED, self.BETTER).verdict == "kept"


class TestHistory:
    def test_there_is_no_champion_before_the_first_promotion(self, history):
        assert history.records() == []
        assert history.current() is None
        assert history.verify() == []
        with pytest.raises(UserError, match="there is no champion yet"):
            history.champion()

    def test_a_run_of_the_champion_asset_makes_the_champion(self, history, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        digest = registry.attach_evidence(version, {"ndcg": 0.25})
        made = materialize(history, history.next_record(PROMOTED, version, by="run 1", evidence_sha256=digest))
        current = history.current()
        assert history.champion() == version
        assert (current.from_version, current.to_version, current.by) == (None, 1, "run 1")
        assert (current.evidence_sha256, current.record_sha256) == (digest, made.record_sha256)
        assert current.reason == "better by nDCG"

    def test_the_champion_survives_candidates_that_were_kept_out_or_blocked(self, history, registry, tmp_path):
        champion = register(registry, tmp_path, "a")
        promote(history, champion)
        for verdict, content in ((KEPT, "b"), (BLOCKED, "c")):
            candidate = register(registry, tmp_path, content)
            record = report(history, history.next_record(verdict, candidate, by="run 2"))
            assert (record.version, record.candidate, record.to_version) == (1, candidate.version, None)
        assert history.champion() == champion
        assert [record.verdict for record in history.records()] == ["promoted", "kept", "blocked"]

    def test_a_blocked_first_candidate_leaves_no_champion(self, history, registry, tmp_path):
        report(history, history.next_record(BLOCKED, register(registry, tmp_path, "a"), by="run 1"))
        assert history.current() is None
        with pytest.raises(UserError, match="there is no champion yet to roll back from"):
            history.rollback(1, by="anna", reason="wanted")

    def test_production_at_tells_who_served_when(self, history, registry, tmp_path):
        before = datetime.now(UTC)
        first, second = (register(registry, tmp_path, content) for content in "ab")
        promote(history, first)
        time.sleep(0.01)
        between = datetime.now(UTC)
        time.sleep(0.01)
        promote(history, second)
        history.rollback(1, by="anna", reason="bad playlists in SE")
        moves = [record.logged_at for record in history.records()]
        assert history.production_at(before) is None
        assert history.production_at(between).version == 1
        assert history.production_at(moves[1]).version == 2
        assert history.production_at(moves[2] - timedelta(microseconds=1)).version == 2
        assert history.production_at(moves[2]).version == 1

    def test_a_moment_without_a_time_zone_is_refused(self, history):
        with pytest.raises(UserError, match="has no time zone"):
            history.production_at(datetime(2026, 11, 23))  # noqa: DTZ001

    def test_records_form_a_chain(self, history, registry, tmp_path):
        for content in "ab":
            promote(history, register(registry, tmp_path, content))
        history.rollback(1, by="anna", reason="bad playlists in SE")
        records = history.records()
        assert [record.number for record in records] == [1, 2, 3]
        assert [record.previous_record_sha256 for record in records] == [
            None,
            records[0].record_sha256,
            records[1].record_sha256,
        ]
        assert history.verify() == []

    def test_a_history_longer_than_a_page_is_read_whole(self, history, registry, tmp_path):
        promote(history, register(registry, tmp_path, "a"))
        candidate = register(registry, tmp_path, "b")
        record = history.next_record(KEPT, candidate, by="run 2")
        for _ in range(600):
            report(history, record)
        assert len(history.records()) == 601
        assert history.current().version == 1

    def test_a_promotion_needs_evidence_that_is_stored_with_the_candidate(self, history, registry, tmp_path):
        first, second = (register(registry, tmp_path, content) for content in "ab")
        with pytest.raises(UserError, match="cannot be promoted without evidence"):
            history.next_record(PROMOTED, first, by="run 1")
        with pytest.raises(UserError, match="there is no evidence"):
            history.next_record(
                PROMOTED, first, by="run 1", evidence_sha256=registry.attach_evidence(second, {"ndcg": 1})
            )

    def test_a_broken_candidate_is_not_promoted(self, history, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        (registry.fetch(version) / "weights.json").write_text("broken")
        with pytest.raises(UserError, match="is broken"):
            promote(history, version)
        assert history.current() is None

    def test_a_version_of_another_model_cannot_become_champion(self, history, registry, tmp_path):
        other = register(registry, tmp_path, "a", model="other")
        with pytest.raises(UserError, match="other version 1 cannot become champion"):
            history.next_record(KEPT, other, by="run 1")

    def test_a_champion_whose_record_was_replaced_in_the_store_is_refused(self, history, registry, tmp_path):
        promote(history, register(registry, tmp_path, "a"))
        other = Registry(f"sqlite:///{tmp_path / 'forged.db'}", tmp_path / "forged")
        register(other, tmp_path, "b")
        forged = (tmp_path / "forged" / MODEL / "v1" / "version.json").read_bytes()
        (tmp_path / "models" / MODEL / "v1" / "version.json").write_bytes(forged)
        with pytest.raises(UserError, match="was promoted"):
            history.champion()

    def test_metadata_has_one_value_a_key(self, history, registry, tmp_path):
        version = register(registry, tmp_path, "a")
        metadata = promote(history, version).metadata()
        assert metadata["version"] == dg.MetadataValue.int(1)
        assert metadata["from"] == dg.MetadataValue.null()
        assert metadata["sha256"] == dg.MetadataValue.text(version.sha256)
        wanted = "verdict candidate to by reason evidence_sha256 previous_record_sha256 record_sha256 record"
        assert set(wanted.split()) <= set(metadata)


class TestRollback:
    @pytest.fixture
    def moved(self, history: ChampionHistory, registry: Registry, tmp_path: Path) -> ChampionHistory:
        for content in "ab":
            promote(history, register(registry, tmp_path, content))
        return history

    def test_it_moves_the_pointer_back_with_who_and_why(self, moved):
        record = moved.rollback(1, by="anna", reason="bad playlists in SE")
        assert moved.current().record_sha256 == record.record_sha256
        assert (record.from_version, record.to_version, record.by) == (2, 1, "anna")
        assert record.evidence_sha256 == moved.records()[0].evidence_sha256
        assert moved.champion().version == 1

    def test_a_candidate_after_a_rollback_is_judged_against_the_version_rolled_back_to(self, moved, tmp_path):
        moved.rollback(1, by="anna", reason="bad playlists in SE")
        record = promote(moved, register(moved.registry, tmp_path, "c"))
        assert (record.from_version, record.to_version) == (1, 3)
        assert moved.verify() == []

    def test_a_broken_file_is_refused_and_leaves_the_pointer_where_it_was(self, moved, tmp_path):
        (tmp_path / "models" / MODEL / "v1" / "files" / "weights.json").write_text("broken")
        before = moved.records()
        with pytest.raises(UserError, match=r"weights\.json: a file of .* version 1 is broken"):
            moved.rollback(1, by="anna", reason="bad playlists in SE")
        assert moved.records() == before
        assert moved.champion().version == 2

    @pytest.mark.parametrize("reason", ["", "  "])
    def test_an_empty_reason_is_refused(self, moved, reason):
        with pytest.raises(UserError, match="the reason is empty"):
            moved.rollback(1, by="anna", reason=reason)
        assert moved.current().version == 2

    def test_a_version_that_never_served_is_refused(self, moved, tmp_path):
        candidate = register(moved.registry, tmp_path, "c")
        report(moved, moved.next_record(BLOCKED, candidate, by="run 3"))
        with pytest.raises(UserError, match=r"version 3 was never promoted\. Remedy: roll back to one of 1, 2\."):
            moved.rollback(3, by="anna", reason="trying")

    def test_an_unknown_version_lists_the_known_ones(self, moved):
        with pytest.raises(UserError, match=r"has no version 9.*known versions: 1, 2"):
            moved.rollback(9, by="anna", reason="trying")

    def test_the_version_that_serves_is_refused(self, moved):
        with pytest.raises(UserError, match="is the champion already"):
            moved.rollback(2, by="anna", reason="trying")


class TestAlias:
    def test_it_follows_the_event_log_and_is_repaired(self, history, registry, tmp_path):
        for content in "ab":
            promote(history, register(registry, tmp_path, content))
        assert history.sync_alias()
        assert registry.mlflow.alias(MODEL) == 2
        assert not history.sync_alias()
        registry.mlflow.set_alias(MODEL, 1)
        assert history.sync_alias()
        assert registry.mlflow.alias(MODEL) == 2

    def test_an_alias_without_a_champion_is_removed(self, history, registry, tmp_path):
        register(registry, tmp_path, "a")
        registry.mlflow.set_alias(MODEL, 1)
        assert history.sync_alias()
        assert registry.mlflow.alias(MODEL) is None

    def test_rollback_moves_it(self, history, registry, tmp_path):
        for content in "ab":
            promote(history, register(registry, tmp_path, content))
        history.rollback(1, by="anna", reason="bad playlists in SE")
        assert registry.mlflow.alias(MODEL) == 1

    def test_an_mlflow_that_is_down_breaks_neither_reading_nor_rollback(
        self, history, registry, tmp_path, caplog, monkeypatch
    ):
        for content in "ab":
            promote(history, register(registry, tmp_path, content))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        down = ChampionHistory(history.instance, SYSTEM, Registry("http://127.0.0.1:9", tmp_path / "models"), MODEL)
        assert down.champion().version == 2
        with caplog.at_level(logging.WARNING):
            down.rollback(1, by="anna", reason="bad playlists in SE")
        assert "alias will be repaired later" in caplog.text
        assert down.champion().version == 1
        with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9: MLflow cannot answer"):
            down.sync_alias()


class TestTampering:
    """The event log in a real SQLite file, changed by hand behind Dagster's back."""

    @pytest.fixture
    def kept(self, tmp_path: Path, registry: Registry) -> Iterator[ChampionHistory]:
        (tmp_path / "dagster").mkdir()
        with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
            history = ChampionHistory(instance, SYSTEM, registry, MODEL)
            for content in "abc":
                promote(history, register(registry, tmp_path, content))
            yield history

    @staticmethod
    def change(tmp_path: Path, statement: str, *values: object) -> None:
        changed = 0
        for database in (tmp_path / "dagster").rglob("*.db"):
            with sqlite3.connect(database) as connection:
                tables = connection.execute("select name from sqlite_master where name = 'event_logs'").fetchall()
                changed += connection.execute(statement, values).rowcount if tables else 0
            connection.close()
        assert changed > 0

    def test_the_history_survives_the_process(self, kept, tmp_path, registry):
        expected = kept.records()
        kept.instance.dispose()
        with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as again:
            assert ChampionHistory(again, SYSTEM, registry, MODEL).records() == expected

    def test_an_edited_record_is_named_and_not_trusted(self, kept, tmp_path):
        edit = "update event_logs set event = replace(event, ?, ?)"
        self.change(tmp_path, edit, r"\"by\":\"run 1\",\"candidate\":3", r"\"by\":\"nobody\",\"candidate\":3")
        problems = kept.verify()
        assert len(problems) == 1
        assert problems[0].startswith("record 3 of ")
        assert "its content was changed" in problems[0]
        with pytest.raises(UserError, match=r"record 3 .* cannot be trusted"):
            kept.current()

    def test_rolling_back_starts_from_a_sound_record_again(self, kept, tmp_path):
        self.test_an_edited_record_is_named_and_not_trusted(kept, tmp_path)
        kept.rollback(2, by="anna", reason="record 3 was edited")
        assert kept.champion().version == 2
        assert len(kept.verify()) == 1

    def test_an_edited_record_with_a_fitting_hash_breaks_the_chain(self, kept, tmp_path):
        old = kept.records()[1]
        text = old.text.replace("better by nDCG", "better by luck")
        edit = "update event_logs set event = replace(replace(replace(event, ?, ?), ?, ?), ?, ?)"
        escaped = [json.dumps(value)[1:-1] for value in (old.text, text)]
        digest = hashlib.sha256(text.encode()).hexdigest()
        where = f" where event like '%record_sha256%' and event like '%{old.record_sha256}%' and id = 2"
        self.change(
            tmp_path,
            edit + where,
            *escaped,
            old.record_sha256,
            digest,
            '"better by nDCG"',
            '"better by luck"',
        )
        problems = kept.verify()
        assert len(problems) == 1
        assert problems[0].startswith("record 3 of ")
        assert "does not follow record 2" in problems[0]

    def test_a_removed_record_is_noticed(self, kept, tmp_path):
        self.change(tmp_path, "delete from event_logs where event like '%candidate\\\":2%' escape '!'")
        problems = kept.verify()
        assert len(problems) == 1
        assert "record 3" in problems[0]
        assert "does not follow record 1" in problems[0]

    def test_a_value_shown_beside_its_record_cannot_say_something_else(self, kept, tmp_path):
        edit = 'update event_logs set event = replace(event, \'"text": "run 1"\', \'"text": "someone"\')'
        self.change(tmp_path, edit)
        assert ["shows another by than its record" in problem for problem in kept.verify()] == [True] * 3

    def test_a_materialization_by_hand_is_named_and_moves_nothing(self, kept):
        key = dg.AssetKey([SYSTEM, "champion"])
        kept.instance.report_runless_asset_event(dg.AssetMaterialization(key))
        assert kept.current().version == 3
        assert len(kept.verify()) == 1
        assert "carries no record" in kept.verify()[0]
