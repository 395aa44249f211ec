"""Where output risk is high, a version serves only after somebody other than its trainer approved its proposal."""

import json
import logging
import multiprocessing
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from mlops_assets.foundation._approval import Ledger, folded
from mlops_assets.foundation._champion_record import Entry
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.lease import Lease
from mlops_assets.foundation.registry import (
    APPROVAL,
    ChampionHistory,
    ChampionRecord,
    GateResult,
    ModelVersion,
    Registry,
    Verdict,
    decide,
)

SYSTEM, MODEL = "credit_risk", "credit_risk.pd_model"
KEY = dg.AssetKey([SYSTEM, "champion"])
PROPOSED = Verdict("proposed", ("better by AUC",))
PROMOTED = Verdict("promoted", ("better by AUC",))
KEPT = Verdict("kept", ("not better",))
BLOCKED = Verdict("blocked", ("bias_report failed",))
# Anna trains, Boris approves; nobody knows who trained version 4, and version 5's trainer is a blank.
TRAINERS = ["anna", "anna", "anna", None, " "]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry with five versions, made once: MLflow's tables are the slow part."""
    home = tmp_path_factory.mktemp("trained")
    registry = Registry(f"sqlite:///{home / 'mlflow.db'}", home / "models")
    for number, trainer in enumerate(TRAINERS, start=1):
        folder = home / "training" / str(number)
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(json.dumps({"points": number}))
        tags = {"trained_by": trainer} if trainer is not None else {}
        registry.register(MODEL, folder, params={"kind": "scorecard"}, metrics={"auc": 0.78}, parts={}, tags=tags)
    return registry


@pytest.fixture
def home(trained: Registry, tmp_path: Path) -> Path:
    shutil.copytree(trained.files.root, tmp_path / "models")
    return tmp_path


@pytest.fixture
def registry(trained: Registry, home: Path) -> Registry:
    """Files of its own; MLflow, which only holds the alias here, is shared by all tests."""
    registry = Registry(trained.mlflow.uri, UPath(home / "models"))
    registry.mlflow = trained.mlflow
    return registry


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def history(instance: dg.DagsterInstance, registry: Registry) -> ChampionHistory:
    """A history without a champion."""
    return ChampionHistory(instance, SYSTEM, registry, MODEL, approval_required=True)


@pytest.fixture
def serving(history: ChampionHistory) -> ChampionHistory:
    """A history in which version 1 serves, approved."""
    propose(history, 1)
    history.approve(1, by="boris", reason="the first scorecard")
    return history


@pytest.fixture
def waiting(serving: ChampionHistory) -> ChampionHistory:
    """A history in which version 1 serves and version 2 waits for approval."""
    propose(serving, 2)
    return serving


def evidence_of(history: ChampionHistory, number: int, auc: float = 0.78) -> str:
    return history.registry.attach_evidence(history.registry.get(MODEL, number), {"auc": auc, "version": number})


def proposal_of(history: ChampionHistory, number: int, auc: float = 0.78, **more: Any) -> ChampionRecord:
    candidate = history.registry.get(MODEL, number)
    evidence = evidence_of(history, number, auc)
    return history.next_record(PROPOSED, candidate, by="run 1", evidence_sha256=evidence, **more)


def report(history: ChampionHistory, record: ChampionRecord) -> ChampionRecord:
    """Put a record into the event log without the cost of a run."""
    history.instance.report_runless_asset_event(dg.AssetMaterialization(KEY, metadata=record.metadata()))
    return record


def propose(history: ChampionHistory, number: int, auc: float = 0.78, **more: Any) -> ChampionRecord:
    return report(history, proposal_of(history, number, auc, **more))


def propose_as_asked(history: ChampionHistory, requested_by: str) -> ChampionRecord:
    """Propose version 2 as one that was trained because somebody asked."""
    candidate = history.registry.get(MODEL, 2)
    asked = replace(candidate, tags={**candidate.tags, "requested_by": requested_by})
    return report(history, history.next_record(PROPOSED, asked, by="run 1", evidence_sha256=evidence_of(history, 2)))


def judge(history: ChampionHistory, verdict: Verdict, number: int) -> ChampionRecord:
    return report(history, history.next_record(verdict, history.registry.get(MODEL, number), by="run 1"))


def unguarded(history: ChampionHistory) -> ChampionHistory:
    """The same history for somebody who forgot that promotions have to be approved here."""
    return ChampionHistory(history.instance, SYSTEM, history.registry, MODEL)


def promotion_of(history: ChampionHistory, number: int) -> ChampionRecord:
    """A promotion as it is written where nobody has to approve: intact, and fitting into the chain."""
    version = history.registry.get(MODEL, number)
    evidence = evidence_of(history, number)
    return unguarded(history).next_record(PROMOTED, version, by="run 9", evidence_sha256=evidence)


def forged(record: ChampionRecord, **changes: Any) -> ChampionRecord:
    """Another record with a hash of its own that fits."""
    return ChampionRecord.made(json.loads(record.text) | changes)


def approval_of(history: ChampionHistory, number: int, **changes: Any) -> ChampionRecord:
    """An approval as `approve` would write it, forged where ``changes`` say so."""
    put = next(item.record for item in reversed(history.proposals()) if item.record.candidate == number)
    stated = {"by": "boris", "evidence_sha256": put.evidence_sha256, "candidate_sha256": put.candidate_sha256}
    stated |= {"trained_by": put.trained_by, "approves": put.record_sha256}
    return forged(promotion_of(history, number), **{**stated, **changes})


@contextmanager
def nothing_moves(history: ChampionHistory, match: str) -> Iterator[None]:
    """Expect a refusal that leaves every record, and so the champion, as it was."""
    before = [record.record_sha256 for record in history.records()]
    alias = history.registry.mlflow.alias(MODEL)
    with pytest.raises(UserError, match=match) as refused:
        yield
    assert [record.record_sha256 for record in history.records()] == before
    assert history.registry.mlflow.alias(MODEL) == alias
    assert refused.value.where is not None


class TestDecision:
    PASSED = GateResult("accuracy", "passed", value=0.78, bound=0.76)
    BETTER = GateResult("champion_comparison", "passed", value=0.01, bound=0.0)
    WORSE = GateResult("champion_comparison", "failed", value=-0.01, bound=0.0)
    REQUIRED = ("accuracy", "champion_comparison", APPROVAL)

    @staticmethod
    def version(number: int) -> ModelVersion:
        return ModelVersion(MODEL, number, f"sha{number}", "", {}, {}, {}, {}, {}, "")

    @pytest.mark.parametrize("champion", [None, 1])
    def test_what_would_be_promoted_is_proposed_where_approval_is_required(self, champion):
        before = self.version(champion) if champion else None
        verdict = decide(self.version(2), before, [self.PASSED], self.REQUIRED, self.BETTER)
        assert verdict.verdict == "proposed"
        promoted = decide(self.version(2), before, [self.PASSED], self.REQUIRED[:2], self.BETTER)
        assert (promoted.verdict, promoted.reasons) == ("promoted", verdict.reasons)

    def test_approval_lets_nothing_through_that_the_gates_stop(self):
        candidate, champion = self.version(2), self.version(1)
        assert decide(candidate, champion, [self.PASSED], self.REQUIRED, self.WORSE).verdict == "kept"
        assert decide(candidate, champion, [], self.REQUIRED, self.BETTER).verdict == "blocked"
        assert decide(champion, champion, [self.PASSED], self.REQUIRED, self.BETTER).verdict == "kept"

    @pytest.mark.parametrize("required", [REQUIRED, REQUIRED[:2]])
    def test_content_that_people_turned_down_is_kept_out_with_their_reason(self, required):
        held = {"held_back": "boris rejected version 2 (too few women approved)"}
        verdict = decide(self.version(2), self.version(1), [self.PASSED], required, self.BETTER, **held)
        assert (verdict.verdict, verdict.reason) == ("kept", held["held_back"])
        assert decide(self.version(2), None, [], required, **held).verdict == "blocked"


class TestProposal:
    def test_a_run_of_the_champion_asset_proposes_and_moves_nothing(self, serving, registry):
        record = proposal_of(serving, 2)

        @dg.asset(key=KEY)
        def champion() -> dg.MaterializeResult[None]:
            return dg.MaterializeResult(metadata=record.metadata())

        assert dg.materialize([champion], instance=serving.instance).success
        candidate = registry.get(MODEL, 2)
        put = serving.records()[-1]
        assert serving.champion().version == 1
        assert (put.verdict, put.candidate, put.candidate_sha256) == ("proposed", 2, candidate.sha256)
        assert (put.version, put.sha256) == (1, registry.get(MODEL, 1).sha256)
        assert (put.from_version, put.to_version) == (None, None)
        assert (put.trained_by, put.reason) == ("anna", "better by AUC")
        assert put.expires_at - put.decided_at == pytest.approx(timedelta(days=14), abs=timedelta(minutes=1))
        assert serving.open_proposal().record == put
        assert serving.verify() == []

    def test_it_shows_what_it_binds(self, history):
        shown = propose(history, 1).metadata()
        assert shown["trained_by"] == dg.MetadataValue.text("anna")
        assert shown["version"] == dg.MetadataValue.null()
        assert {"candidate_sha256", "evidence_sha256", "expires_at"} <= shown.keys()
        assert not {"approves", "rejects"} & shown.keys()

    def test_a_promotion_is_refused_where_approval_is_required(self, history, registry):
        evidence = evidence_of(history, 1)
        with nothing_moves(history, "cannot be promoted without an approval"):
            history.next_record(PROMOTED, registry.get(MODEL, 1), by="run 1", evidence_sha256=evidence)

    def test_it_needs_evidence_that_is_stored_with_the_candidate(self, history, registry):
        candidate = registry.get(MODEL, 1)
        with pytest.raises(UserError, match="cannot be proposed without evidence"):
            history.next_record(PROPOSED, candidate, by="run 1")
        with pytest.raises(UserError, match="there is no evidence"):
            history.next_record(PROPOSED, candidate, by="run 1", evidence_sha256=evidence_of(history, 2))

    def test_a_broken_candidate_is_not_proposed(self, history, home):
        (home / "models" / MODEL / "v1" / "files" / "model.json").write_text("{}")
        with pytest.raises(UserError, match="is broken"):
            propose(history, 1)

    @pytest.mark.parametrize("days", [0, -1])
    def test_a_proposal_that_ends_before_it_begins_is_refused(self, history, days):
        with pytest.raises(UserError, match="cannot be valid for"):
            propose(history, 1, valid_for=timedelta(days=days))

    def test_a_newer_proposal_supersedes_an_older_one(self, waiting):
        propose(waiting, 3)
        assert [item.status for item in waiting.proposals()] == ["approved", "superseded", "open"]
        assert waiting.open_proposal().record.candidate == 3
        assert waiting.open_proposal(2) is None
        assert waiting.open_proposal(3) == waiting.open_proposal()

    def test_the_same_candidate_proposed_again_is_open_once_with_the_newer_evidence(self, waiting):
        newer = propose(waiting, 2, auc=0.79)
        assert [item.status for item in waiting.proposals()[1:]] == ["superseded", "open"]
        assert waiting.approve(2, "boris", "good").evidence_sha256 == newer.evidence_sha256

    @pytest.mark.parametrize(("verdict", "status"), [(KEPT, "withdrawn"), (BLOCKED, "withdrawn")])
    def test_a_later_verdict_against_the_candidate_withdraws_its_proposal(self, waiting, verdict, status):
        judge(waiting, verdict, 3)
        assert waiting.open_proposal(2) is not None
        judge(waiting, verdict, 2)
        assert waiting.proposals()[-1].status == status
        assert verdict.reason in waiting.proposals()[-1].why

    def test_it_expires(self, waiting):
        end = waiting.open_proposal().record.expires_at
        assert waiting.open_proposal(now=end) is not None
        assert waiting.open_proposal(now=end + timedelta(seconds=1)) is None
        assert waiting.proposals(now=end + timedelta(seconds=1))[-1].status == "expired"
        with pytest.raises(UserError, match="has no time zone"):
            waiting.proposals(now=datetime(2026, 11, 23))  # noqa: DTZ001

    def test_it_is_stale_while_another_version_serves_than_it_was_judged_beside(self, waiting):
        waiting.approve(2, "boris", "good")
        propose(waiting, 3)
        waiting.rollback(1, "clara", "complaints")
        assert waiting.proposals()[-1].status == "stale"
        assert "beside version 2, but version 1 serves now" in waiting.proposals()[-1].why
        waiting.rollback(2, "clara", "the complaints were about something else")
        assert waiting.open_proposal(3) is not None


class TestApproval:
    def test_it_moves_the_pointer_with_who_why_and_what_it_rests_on(self, waiting, registry):
        put = waiting.open_proposal().record
        made = waiting.approve(2, by="boris", reason="calibrated, and fair by age")
        record = waiting.current()
        assert waiting.champion() == registry.get(MODEL, 2)
        assert (record.verdict, record.from_version, record.to_version) == ("promoted", 1, 2)
        assert (record.by, record.reason) == ("boris", "calibrated, and fair by age")
        assert (record.approves, record.evidence_sha256) == (put.record_sha256, put.evidence_sha256)
        assert (record.candidate_sha256, record.trained_by) == (put.candidate_sha256, "anna")
        assert record.previous_record_sha256 == put.record_sha256
        assert record.record_sha256 == made.record_sha256
        assert registry.mlflow.alias(MODEL) == 2
        assert waiting.open_proposal() is None
        assert waiting.verify() == []

    def test_its_event_tells_the_timeline_and_marks_what_depends_on_it(self, waiting, registry):
        waiting.approve(2, by="boris", reason="calibrated")
        event = waiting.instance.get_latest_materialization_event(KEY).asset_materialization
        assert event.description == "version 2 approved by boris: calibrated"
        assert event.tags == {"dagster/data_version": registry.get(MODEL, 2).sha256}

    def test_production_at_counts_from_the_approval_and_not_from_the_proposal(self, waiting):
        proposed = waiting.open_proposal().record.logged_at
        waiting.approve(2, by="boris", reason="calibrated")
        assert waiting.production_at(proposed).version == 1
        assert waiting.production_at(waiting.current().logged_at).version == 2

    @pytest.mark.parametrize("blank", ["", "  ", "\u200b"])
    def test_an_empty_name_or_reason_is_refused(self, waiting, blank):
        with nothing_moves(waiting, "the name of who decides is empty"):
            waiting.approve(2, by=blank, reason="good")
        with nothing_moves(waiting, "the reason is empty"):
            waiting.approve(2, by="boris", reason=blank)

    @pytest.mark.parametrize("by", ["anna", " Anna ", "ANNA", "\uff41\uff4e\uff4e\uff41", "an\u200bna"])
    def test_the_trainer_is_refused_however_the_name_is_written(self, waiting, by):
        with nothing_moves(waiting, "anna trained version 2, and whoever approves it must be somebody else"):
            waiting.approve(2, by=by, reason="good")

    @pytest.mark.parametrize("by", ["mary", " Mary ", "ZO\u00c9"])
    def test_whoever_asked_for_the_training_is_refused_and_a_third_person_is_not(self, serving, by):
        put = propose_as_asked(serving, '["mary", "zo\u00e9"]')
        assert put.requesters == ("mary", "zo\u00e9")
        with nothing_moves(
            serving, r"(mary|zo\u00e9) asked for the training of version 2.*somebody else.*ask a colleague"
        ):
            serving.approve(2, by=by, reason="good")
        moved = serving.approve(2, by="boris", reason="good")
        assert (moved.version, moved.requested_by, serving.verify()) == (2, put.requested_by, [])

    @pytest.mark.parametrize("stated", ["mary", '{"by": "mary"}', "[1]", '"mary"', "null"])
    def test_where_nobody_can_read_who_asked_for_the_training_nobody_approves(self, serving, stated):
        propose_as_asked(serving, stated)
        with nothing_moves(serving, "who asked for the training of version 2 cannot be read.*train it again"):
            serving.approve(2, by="boris", reason="good")

    def test_an_approval_by_who_asked_that_was_written_by_hand_moves_nothing(self, serving):
        put = propose_as_asked(serving, '["mary"]')
        assert put.requesters == ("mary",)
        report(serving, approval_of(serving, 2, by="mary"))
        assert serving.current().version == 1
        assert "mary asked for the training of version 2" in "; ".join(serving.verify())

    @pytest.mark.parametrize("number", [4, 5])
    def test_a_candidate_whose_trainer_is_not_known_is_refused(self, serving, number):
        propose(serving, number)
        with nothing_moves(serving, rf"who trained version {number} is not known.*tag trained_by"):
            serving.approve(number, by="boris", reason="good")

    def test_a_version_that_was_never_proposed_is_refused(self, waiting):
        with nothing_moves(waiting, "version 3 was never proposed; version 2 is proposed now.*Remedy: evaluate it"):
            waiting.approve(3, by="boris", reason="good")

    def test_an_expired_proposal_is_refused(self, waiting):
        end = waiting.open_proposal().record.expires_at
        with nothing_moves(waiting, rf"its time ended at {end:%Y-%m-%d %H:%M} UTC.*Remedy: evaluate"):
            waiting.approve(2, by="boris", reason="good", now=end + timedelta(seconds=1))
        with pytest.raises(UserError, match="has no time zone"):
            waiting.approve(2, by="boris", reason="good", now=datetime(2026, 11, 23))  # noqa: DTZ001

    def test_a_moment_in_the_past_does_not_revive_an_expired_proposal(self, serving):
        put = propose(serving, 2, valid_for=timedelta(microseconds=1))
        with nothing_moves(serving, "its time ended"):
            serving.approve(2, by="boris", reason="good", now=put.expires_at - timedelta(seconds=1))

    def test_a_superseded_proposal_is_refused(self, waiting):
        propose(waiting, 3)
        with nothing_moves(waiting, r"version 3 was proposed after it, in record 4.*Remedy: decide on the newer"):
            waiting.approve(2, by="boris", reason="good")

    def test_a_rejected_proposal_is_refused(self, waiting):
        waiting.reject(2, by="clara", reason="approves too few over 60")
        with nothing_moves(waiting, "clara rejected it: approves too few over 60"):
            waiting.approve(2, by="boris", reason="good")

    @pytest.mark.parametrize("verdict", [KEPT, BLOCKED])
    def test_a_withdrawn_proposal_is_refused(self, waiting, verdict):
        judge(waiting, verdict, 2)
        with nothing_moves(waiting, rf"record 4 {verdict.verdict} it since: {verdict.reason}"):
            waiting.approve(2, by="boris", reason="good")

    def test_approving_twice_says_that_it_serves_already(self, waiting):
        waiting.approve(2, by="boris", reason="good")
        with nothing_moves(waiting, r"version 2 serves already, since .* UTC, by boris"):
            waiting.approve(2, by="clara", reason="good")

    def test_a_version_that_was_approved_and_replaced_is_not_approved_again(self, waiting):
        waiting.approve(2, by="boris", reason="good")
        with nothing_moves(waiting, r"boris approved it already, in record 2.*Remedy: roll back to it"):
            waiting.approve(1, by="clara", reason="good")

    def test_a_version_that_was_rolled_back_from_is_not_approved_again(self, waiting):
        waiting.approve(2, by="boris", reason="good")
        waiting.rollback(1, by="clara", reason="complaints")
        with nothing_moves(waiting, r"boris approved it already.*clara rolled back from it since: complaints"):
            waiting.approve(2, by="boris", reason="good")

    def test_a_proposal_does_not_outlive_a_rollback_from_its_content(self, waiting):
        waiting.approve(2, by="boris", reason="good")
        waiting.rollback(1, by="clara", reason="complaints")
        propose(waiting, 2)
        waiting.rollback(2, by="clara", reason="a mistake")
        waiting.rollback(1, by="clara", reason="no mistake")
        assert waiting.proposals()[-1].status == "rolled_back"
        with nothing_moves(waiting, "clara rolled back from it since: no mistake"):
            waiting.approve(2, by="boris", reason="good")

    def test_a_champion_that_changed_since_is_refused(self, waiting):
        waiting.approve(2, by="boris", reason="good")
        propose(waiting, 3)
        waiting.rollback(1, by="clara", reason="complaints")
        with nothing_moves(waiting, r"judged beside version 2, but version 1 serves now.*Remedy: evaluate"):
            waiting.approve(3, by="boris", reason="good")

    def test_a_candidate_with_another_content_than_was_proposed_is_refused(self, waiting, home):
        # Version 3's record under version 2's number, its hashes fitting: a registry restored from the wrong backup.
        stored = home / "models" / MODEL
        record = json.loads((stored / "v3" / "version.json").read_text()) | {"version": 2}
        (stored / "v2" / "version.json").write_text(json.dumps(record))
        shutil.copy(stored / "v3" / "files" / "model.json", stored / "v2" / "files" / "model.json")
        with nothing_moves(waiting, r"version 2 has SHA-256 \w{64}, but \w{64} was proposed"):
            waiting.approve(2, by="boris", reason="good")

    @pytest.mark.parametrize("damage", ["changed", "missing"])
    def test_broken_files_are_refused(self, waiting, home, damage):
        stored = home / "models" / MODEL / "v2" / "files" / "model.json"
        stored.write_text("{}") if damage == "changed" else stored.unlink()
        with nothing_moves(waiting, r"model\.json: a file of .* version 2 is (broken|missing)"):
            waiting.approve(2, by="boris", reason="good")

    @pytest.mark.parametrize(("damage", "told"), [("changed", "is broken"), ("missing", "there is no evidence")])
    def test_broken_evidence_is_refused(self, waiting, home, damage, told):
        digest = waiting.open_proposal().record.evidence_sha256
        stored = home / "models" / MODEL / "v2" / "evidence" / f"{digest}.json"
        stored.write_text('{"auc":0.99}') if damage == "changed" else stored.unlink()
        with nothing_moves(waiting, told):
            waiting.approve(2, by="boris", reason="good")

    def test_other_evidence_than_was_proposed_is_refused(self, waiting):
        looked_at = waiting.open_proposal().record.evidence_sha256
        other = evidence_of(waiting, 2, auc=0.99)
        with nothing_moves(waiting, f"the proposal rests on evidence {looked_at}, not on {other}"):
            waiting.approve(2, by="boris", reason="good", evidence_sha256=other)
        assert waiting.approve(2, "boris", "good", looked_at).version == 2

    def test_an_mlflow_that_is_down_does_not_stop_it(self, waiting, home, caplog, monkeypatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        registry = Registry("http://127.0.0.1:9", home / "models")
        down = ChampionHistory(waiting.instance, SYSTEM, registry, MODEL, approval_required=True)
        with caplog.at_level(logging.WARNING):
            down.approve(2, by="boris", reason="good")
        assert "alias will be repaired later" in caplog.text
        assert waiting.champion().version == 2
        assert waiting.sync_alias()


class TestRejection:
    def test_it_closes_the_proposal_and_moves_nothing(self, waiting):
        put = waiting.open_proposal().record
        made = waiting.reject(2, by="clara", reason="approves too few over 60")
        assert (made.verdict, made.candidate, made.to_version, made.version) == ("rejected", 2, None, 1)
        assert (made.rejects, made.evidence_sha256) == (put.record_sha256, put.evidence_sha256)
        assert waiting.proposals()[-1].status == "rejected"
        assert waiting.champion().version == 1
        assert waiting.verify() == []

    def test_the_content_is_held_back_until_somebody_approves_it_after_all(self, waiting, registry):
        candidate = registry.get(MODEL, 2)
        assert waiting.held_back(candidate) is waiting.rejected_content(candidate) is None
        waiting.reject(2, by="clara", reason="approves too few over 60")
        assert waiting.rejected_content(candidate).by == "clara"
        assert "clara rejected version 2 (approves too few over 60)" in waiting.held_back(candidate)
        assert waiting.held_back(registry.get(MODEL, 3)) is None
        propose(waiting, 2)
        assert waiting.rejected_content(candidate) is not None
        waiting.approve(2, by="boris", reason="the regulator asked for it")
        assert waiting.held_back(candidate) is waiting.rejected_content(candidate) is None

    def test_content_that_was_rolled_back_from_is_held_back_but_was_not_rejected(self, waiting, registry):
        waiting.approve(2, by="boris", reason="good")
        waiting.rollback(1, by="clara", reason="complaints")
        candidate = registry.get(MODEL, 2)
        assert "clara rolled back from version 2 (complaints)" in waiting.held_back(candidate)
        assert waiting.rejected_content(candidate) is None
        waiting.rollback(2, by="clara", reason="a mistake")
        assert waiting.held_back(candidate) is None

    def test_rejections_are_counted_since_the_last_promotion(self, waiting):
        assert waiting.rejections() == 0
        waiting.reject(2, by="clara", reason="no")
        propose(waiting, 3)
        waiting.reject(3, by="clara", reason="no")
        assert waiting.rejections() == 2
        propose(waiting, 2)
        waiting.approve(2, by="boris", reason="good")
        assert waiting.rejections() == 0

    def test_a_broken_or_outdated_candidate_can_be_rejected_and_the_trainer_may_do_it(self, waiting, home):
        shutil.rmtree(home / "models" / MODEL / "v2")
        propose(waiting, 3)
        waiting.reject(2, by="anna", reason="trained on the wrong file")
        assert [item.status for item in waiting.proposals()[1:]] == ["rejected", "open"]

    @pytest.mark.parametrize(("by", "reason"), [("", "no"), ("clara", " ")])
    def test_an_empty_name_or_reason_is_refused(self, waiting, by, reason):
        with nothing_moves(waiting, "is empty"):
            waiting.reject(2, by=by, reason=reason)

    def test_what_is_not_waiting_for_a_decision_is_refused(self, waiting):
        with nothing_moves(waiting, "version 1 serves already"):
            waiting.reject(1, by="clara", reason="no")
        with nothing_moves(waiting, "version 3 was never proposed"):
            waiting.reject(3, by="clara", reason="no")
        waiting.reject(2, by="clara", reason="no")
        with nothing_moves(waiting, "clara rejected it: no"):
            waiting.reject(2, by="clara", reason="no")


class TestAtOnce:
    """Two decisions at the same moment: one of them counts."""

    def test_of_two_processes_one_approves(self, home, registry):
        (home / "dagster").mkdir()
        with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
            history = ChampionHistory(instance, SYSTEM, registry, MODEL, approval_required=True)
            propose(history, 1)
            context = multiprocessing.get_context("spawn")
            barrier, told = context.Barrier(2), context.Queue()
            people = [
                context.Process(target=_approve, args=(home, registry.mlflow.uri, by, barrier, told))
                for by in ("boris", "clara")
            ]
            for process in people:
                process.start()
            answers = sorted(told.get(timeout=300) for _ in people)
            for process in people:
                process.join()
            approved = [record for record in history.records() if record.verdict == "promoted"]
            assert len(approved) == 1
            assert history.current().record_sha256 == approved[0].record_sha256
            assert history.verify() == []
        assert [answer for answer in answers if answer.startswith("approved")] == [f"approved by {approved[0].by}"]
        assert [answer for answer in answers if "holds this job" in answer or "serves already" in answer]

    def test_while_one_decides_the_other_is_told_who(self, waiting, home):
        with (
            Lease(home / "models" / MODEL / "approval", "approval of version 2 by clara"),
            nothing_moves(waiting, "approval of version 2 by clara holds this job since"),
        ):
            waiting.approve(2, by="boris", reason="good")
        assert waiting.approve(2, by="boris", reason="good").version == 2

    def test_a_rollback_does_not_wait_for_a_decision(self, waiting, home):
        waiting.approve(2, by="boris", reason="good")
        with Lease(home / "models" / MODEL / "approval", "approval of version 3 by clara"):
            assert waiting.rollback(1, by="clara", reason="complaints").version == 1

    def test_of_two_approvals_in_the_log_the_first_counts(self, waiting):
        first, second = (approval_of(waiting, 2, by=by) for by in ("boris", "clara"))
        report(waiting, first)
        report(waiting, second)
        assert waiting.current().record_sha256 == first.record_sha256
        assert "moves nothing: boris approved it already" in waiting.verify()[-1]

    def test_an_approval_that_is_overtaken_says_so_and_moves_nothing(self, waiting):
        waiting.approve(2, by="boris", reason="good")
        propose(waiting, 3)

        class Overtaken(ChampionHistory):
            def _report(self, record: ChampionRecord, description: str) -> None:
                waiting.rollback(1, by="clara", reason="complaints")
                super()._report(record, description)

        late = Overtaken(waiting.instance, SYSTEM, waiting.registry, MODEL, approval_required=True)
        with pytest.raises(UserError, match=r"version 3 came too late and moves nothing.*version 1 serves"):
            late.approve(3, by="boris", reason="good")
        assert waiting.champion().version == 1
        assert any("judged beside version 2, but version 1 serves now" in problem for problem in waiting.verify())


def _approve(home: Path, uri: str, by: str, barrier: Barrier, told: "multiprocessing.Queue[str]") -> None:
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        registry = Registry(uri, UPath(home / "models"))
        history = ChampionHistory(instance, SYSTEM, registry, MODEL, approval_required=True)
        history.current()
        barrier.wait(timeout=300)
        try:
            told.put(f"approved by {history.approve(1, by=by, reason='good').by}")
        except UserError as error:
            told.put(str(error))


class TestForgery:
    """Records that nobody approved: intact, fitting into the chain, and without effect."""

    def test_a_promotion_by_a_run_that_knows_no_approval_moves_nothing(self, serving):
        record = promotion_of(serving, 2)

        @dg.asset(key=KEY)
        def champion() -> dg.MaterializeResult[None]:
            return dg.MaterializeResult(metadata=record.metadata())

        assert dg.materialize([champion], instance=serving.instance).success
        assert unguarded(serving).current().version == 2
        assert serving.champion().version == 1
        assert len(serving.verify()) == 1
        assert "moves nothing: it makes version 2 champion without an approval" in serving.verify()[0]
        assert serving.production_at(datetime.now(UTC)).version == 1

    def test_life_goes_on_after_it(self, serving):
        report(serving, promotion_of(serving, 2))
        propose(serving, 3)
        made = serving.approve(3, by="boris", reason="good")
        assert (made.from_version, made.to_version, serving.champion().version) == (1, 3, 3)
        assert len(serving.verify()) == 1

    def test_before_any_approval_it_leaves_no_champion(self, history):
        report(history, promotion_of(history, 1))
        assert history.current() is None
        with pytest.raises(UserError, match=r"there is no champion yet.*have it approved"):
            history.champion()

    def test_it_is_nothing_to_roll_back_to(self, waiting):
        report(waiting, promotion_of(waiting, 3))
        waiting.approve(2, by="boris", reason="good")
        with nothing_moves(waiting, r"version 3 was never promoted\. Remedy: roll back to one of 1, 2"):
            waiting.rollback(3, by="clara", reason="trying")

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            pytest.param({"by": "Anna"}, "anna trained version 2", id="by the trainer"),
            pytest.param({"by": " "}, "anna trained version 2", id="by nobody"),
            pytest.param({"by": "Anna", "trained_by": "someone"}, "anna trained version 2", id="another trainer"),
            pytest.param({"evidence_sha256": "0" * 64}, "the proposal rests on evidence", id="other evidence"),
            pytest.param({"evidence_sha256": None}, "the proposal rests on evidence", id="no evidence"),
            pytest.param({"candidate": 3}, "it approves version 2", id="other candidate"),
            pytest.param({"version": 3, "to": 3, "candidate": 3}, "it approves version 2", id="other version"),
            pytest.param({"version": 3}, "moves to version 3", id="other version shown"),
            pytest.param({"sha256": "0" * 64}, "was proposed", id="other content"),
            pytest.param({"candidate_sha256": "0" * 64}, "was proposed", id="other content bound"),
            pytest.param({"from": None}, "does not promote from version 1", id="from nowhere"),
            pytest.param({"verdict": "rolled_back"}, "does not promote", id="another verdict"),
        ],
    )
    def test_an_approval_of_something_else_moves_nothing(self, waiting, changes, why):
        report(waiting, approval_of(waiting, 2, **changes))
        assert waiting.champion().version == 1
        assert [why in problem for problem in waiting.verify()] == [True]

    def test_the_same_approval_without_a_change_would_have_counted(self, waiting):
        report(waiting, approval_of(waiting, 2))
        assert waiting.champion().version == 2
        assert waiting.verify() == []

    def test_it_moves_nothing_where_approvals_are_not_required_either(self, waiting):
        report(waiting, approval_of(waiting, 2, by="anna"))
        assert unguarded(waiting).champion().version == 1

    def test_an_approval_after_its_end_moves_nothing(self, serving):
        past = datetime.now(UTC) - timedelta(days=1)
        put = forged(proposal_of(serving, 2), expires_at=past)
        report(serving, put)
        report(serving, approval_of(serving, 2))
        assert serving.champion().version == 1
        assert "its time ended" in serving.verify()[-1]

    def test_a_copied_proposal_is_not_open_again(self, waiting):
        put = waiting.open_proposal().record
        waiting.reject(2, by="clara", reason="no")
        report(waiting, put)
        assert waiting.open_proposal() is None
        assert any("proposes nothing: it is a copy" in problem for problem in waiting.verify())
        report(waiting, approval_of(waiting, 2))
        assert waiting.champion().version == 1

    def test_a_copied_approval_or_rollback_moves_nothing(self, waiting):
        approval = waiting.approve(2, by="boris", reason="good")
        rollback = waiting.rollback(1, by="clara", reason="complaints")
        report(waiting, approval)
        assert waiting.champion().version == 1
        waiting.rollback(2, by="clara", reason="a mistake")
        report(waiting, rollback)
        assert waiting.champion().version == 2

    @pytest.mark.parametrize(
        "lacking",
        [{"expires_at": None}, {"candidate_sha256": None}, {"evidence_sha256": None}, {"to": 2}, {"system": "other"}],
        ids=lambda lacking: next(iter(lacking)),
    )
    def test_a_proposal_that_binds_nothing_cannot_be_approved(self, serving, lacking):
        report(serving, forged(proposal_of(serving, 2), **lacking))
        assert serving.proposals()[1:] == []
        assert "proposes nothing" in serving.verify()[-1]
        with nothing_moves(serving, "was never proposed"):
            serving.approve(2, by="boris", reason="good")

    @pytest.mark.parametrize("change", [{"rejects": None}, {"rejects": "0" * 64}, {"candidate": 3}, {"to": 2}])
    def test_a_rejection_of_something_else_closes_nothing(self, waiting, change):
        put = waiting.open_proposal().record
        stated = {"verdict": "rejected", "rejects": put.record_sha256, "expires_at": None}
        report(waiting, forged(proposal_of(waiting, 2), **{**stated, **change}))
        assert waiting.open_proposal(2) is not None
        assert "rejects nothing" in waiting.verify()[-1]

    def test_a_rejection_by_hand_of_what_was_approved_closes_nothing(self, waiting, registry):
        put = waiting.open_proposal().record
        late = forged(proposal_of(waiting, 2), verdict="rejected", rejects=put.record_sha256, expires_at=None)
        waiting.approve(2, by="boris", reason="good")
        report(waiting, late)
        assert waiting.proposals()[-1].status == "approved"
        assert waiting.held_back(registry.get(MODEL, 2)) is None
        assert waiting.rejections() == 0
        assert "rejects nothing: boris approved it already" in waiting.verify()[-1]

    def test_a_rollback_by_hand_to_what_was_never_approved_moves_nothing(self, waiting, registry):
        approved = waiting.approve(2, by="boris", reason="good")
        candidate = registry.get(MODEL, 3)
        aims = {"version": 3, "to": 3, "candidate": 3, "sha256": candidate.sha256}
        other = {"version": 1, "to": 3, "sha256": registry.get(MODEL, 1).sha256}
        for changes in (aims, aims | {"to": 1}, {"to": 1, "version": 1}, other):
            by_hand = {"verdict": "rolled_back", "approves": None, "from": 2}
            report(waiting, forged(approved, **{**by_hand, **changes}))
            assert waiting.champion().version == 2
            assert "whose approval is not in the history" in waiting.verify()[-1]

    def test_an_approval_of_a_proposal_that_is_gone_stops_reading_until_somebody_rolls_back(self, waiting):
        waiting.approve(2, by="boris", reason="good")
        propose(waiting, 3)
        report(waiting, approval_of(waiting, 3, approves="0" * 64))
        with pytest.raises(UserError, match=r"cannot be trusted: the proposal 000000000000 .* is damaged or gone"):
            waiting.current()
        for decide_on in (waiting.approve, waiting.reject):
            with pytest.raises(UserError, match="cannot be trusted"):
                decide_on(3, by="boris", reason="good")
        waiting.rollback(2, by="clara", reason="record 6 approves nothing")
        assert waiting.champion().version == 2
        with nothing_moves(waiting, "cannot be trusted.*Remedy: roll back to a version that you trust, then evaluate"):
            waiting.approve(3, by="boris", reason="good")
        propose(waiting, 3)
        assert waiting.approve(3, by="boris", reason="good").version == 3

    def test_a_proposal_that_was_made_in_the_meantime_is_not_open_after_the_rollback(self, waiting):
        late = proposal_of(waiting, 3)
        report(waiting, approval_of(waiting, 2, approves="0" * 64))
        with pytest.raises(UserError, match="cannot be trusted"):
            proposal_of(waiting, 3)
        report(waiting, late)
        assert waiting.proposals()[-1].status == "in_doubt"
        waiting.rollback(1, by="clara", reason="record 4 approves nothing")
        with nothing_moves(waiting, "it was proposed after record 4 .*, which cannot be trusted"):
            waiting.approve(3, by="boris", reason="good")

    def test_where_nothing_ever_served_the_remedy_is_a_backup(self, history):
        propose(history, 1)
        report(history, approval_of(history, 1, approves="0" * 64))
        with pytest.raises(UserError, match="restore the event log from a backup"):
            history.champion()


class TestDamage:
    """The event log in a real SQLite file, changed by hand behind Dagster's back."""

    @pytest.fixture
    def kept(self, home: Path, registry: Registry) -> Iterator[ChampionHistory]:
        (home / "dagster").mkdir()
        with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
            history = ChampionHistory(instance, SYSTEM, registry, MODEL, approval_required=True)
            for number in (1, 2):
                propose(history, number)
                history.approve(number, by="boris", reason="good")
            yield history

    @staticmethod
    def change(home: Path, record: ChampionRecord, statement: str, *values: object) -> None:
        """Change the event of one record, in every database that holds it."""
        changed = 0
        for database in (home / "dagster").rglob("*.db"):
            with sqlite3.connect(database) as connection:
                tables = connection.execute("select name from sqlite_master where name = 'event_logs'").fetchall()
                where = " where event like ?"
                found = (*values, rf"%\"number\":{record.number},%")
                changed += connection.execute(statement + where, found).rowcount if tables else 0
            connection.close()
        assert changed > 0

    def edit(self, home: Path, record: ChampionRecord, old: str, new: str) -> None:
        escaped = [json.dumps(value)[1:-1] for value in (old, new)]
        self.change(home, record, "update event_logs set event = replace(event, ?, ?)", *escaped)

    def test_a_proposal_edited_after_its_approval_stops_reading(self, kept, home):
        self.edit(home, kept.records()[2], '"trained_by":"anna"', '"trained_by":"dora"')
        problems = kept.verify()
        assert [problem[:9] for problem in problems] == ["record 3 ", "record 4 "]
        assert "its content was changed" in problems[0]
        assert "that it approves is damaged or gone" in problems[1]
        with pytest.raises(UserError, match=r"record 4 .* cannot be trusted"):
            kept.champion()

    def test_a_removed_proposal_stops_reading(self, kept, home):
        put = kept.records()[2]
        self.change(home, put, "delete from event_logs")
        with pytest.raises(
            UserError, match=f"the proposal {put.record_sha256[:12]} that it approves is damaged or gone"
        ):
            kept.current()
        assert ["does not follow record 2" in problem for problem in kept.verify()] == [True, False]

    def test_one_command_rolls_back_to_a_sound_approval(self, kept, home):
        self.edit(home, kept.records()[2], '"trained_by":"anna"', '"trained_by":"dora"')
        with nothing_moves(kept, "roll back to one of 1"):
            kept.rollback(2, by="clara", reason="its proposal was edited")
        kept.rollback(1, by="clara", reason="the proposal of version 2 was edited")
        assert kept.champion().version == 1
        propose(kept, 2)
        assert kept.approve(2, by="boris", reason="looked at it again").version == 2

    def test_an_edited_approval_stops_reading(self, kept, home):
        self.edit(home, kept.records()[3], '"by":"boris"', '"by":"emma"')
        with pytest.raises(UserError, match=r"record 4 .* cannot be trusted: its content was changed"):
            kept.current()
        kept.rollback(1, by="clara", reason="record 4 was edited")
        assert kept.champion().version == 1

    def test_a_record_damaged_after_a_proposal_closes_it(self, kept, home):
        propose(kept, 3)
        self.edit(home, judge(kept, KEPT, 1), "not better", "better")
        assert kept.proposals()[-1].status == "in_doubt"
        kept.rollback(1, by="clara", reason="record 6 was edited")
        kept.rollback(2, by="clara", reason="version 2 was good")
        with nothing_moves(kept, "record 6 .* after it cannot be trusted"):
            kept.approve(3, by="boris", reason="good")


class TestFormat:
    OLD = (
        '{"by":"run 1","candidate":1,"decided_at":"2026-11-16T06:00:00+00:00","evidence_sha256":"e","from":null,'
        '"model":"m","number":1,"previous_record_sha256":null,"reason":"first","sha256":"s","system":"x","to":1,'
        '"verdict":"promoted","version":1}'
    )

    def test_a_record_from_before_approvals_still_reads(self):
        record = ChampionRecord.read(self.OLD, "r", None)
        assert (record.to_version, record.approves, record.expires_at, record.trained_by) == (1, None, None, None)

    def test_other_records_are_written_as_they_were(self, serving):
        assert json.loads(judge(serving, KEPT, 2).text).keys() == json.loads(self.OLD).keys()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"expires_at": "2026-11-23T06:00:00"},
            {"expires_at": None},
            {"decided_at": "2026-11-16T06:00:00"},
            {"trained_by": 7},
            {"version": "1"},
            {"to": True},
            {"by": None},
            {"unknown": 1},
        ],
        ids=str,
    )
    def test_a_record_with_values_of_another_kind_cannot_be_read(self, history, wrong):
        body = json.loads(self.OLD) | wrong
        with pytest.raises((ValueError, TypeError, KeyError)):
            ChampionRecord.read(json.dumps(body), "r", None)
        metadata = {"record": dg.MetadataValue.text(json.dumps(body)), "record_sha256": dg.MetadataValue.text("r")}
        history.instance.report_runless_asset_event(dg.AssetMaterialization(KEY, metadata=metadata))
        assert ["its record cannot be read" in problem for problem in history.verify()] == [True]

    @pytest.mark.parametrize(("a", "b", "same"), [("Ünal", "ü\u0308nal", False), ("Ünal", "U\u0308NAL", True)])
    def test_names_are_compared_as_they_are_read(self, a, b, same):
        assert (folded(a) == folded(b)) is same


MOMENT = datetime(2026, 11, 23, tzinfo=UTC)
# What a forger would change, one value at a time.
FORGED: dict[str, list[Any]] = {
    "by": ["anna", "ANNA "],
    "trained_by": [None, "dora"],
    "evidence_sha256": [None, "f"],
    "candidate_sha256": [None, "s1", "s2"],
    "sha256": [None, "s1", "s2"],
    "version": [None, 1, 2],
    "candidate": [1, 2],
    "from": [None, 1, 2],
    "to": [None, 1, 2],
    "verdict": ["promoted", "rolled_back", "kept", "proposed"],
    "expires_at": [None, MOMENT - timedelta(days=2)],
    "approves": [None],
    "rejects": [None],
}


def _honest(draw: st.DrawFn, ledger: Ledger) -> dict[str, Any]:
    """Draw what somebody might write next: about a version, about an earlier proposal, or a rollback."""
    version, served = draw(st.sampled_from([1, 2, 3])), ledger.champion
    serving = (served.version, served.sha256) if served else (None, None)
    body: dict[str, Any] = {"by": "boris", "evidence_sha256": "e", "trained_by": "anna", "from": None, "to": None}
    body |= {"candidate": version, "candidate_sha256": f"s{version}", "version": serving[0], "sha256": serving[1]}
    body["verdict"] = draw(st.sampled_from(["proposed", "proposed", "promoted", "promoted", "rolled_back", "rejected"]))
    if body["verdict"] == "proposed":
        return body | {"expires_at": MOMENT + timedelta(days=14)}
    aims = [item.record for item in ledger.proposals(MOMENT)]
    if body["verdict"] == "rolled_back" or not aims:
        return body | {"version": version, "sha256": f"s{version}", "from": serving[0], "to": version}
    put = draw(st.sampled_from([*aims, aims[-1]]))
    body |= {"candidate": put.candidate, "candidate_sha256": put.candidate_sha256}
    if body["verdict"] == "rejected":
        return body | {"rejects": put.record_sha256}
    moved = {"version": put.candidate, "sha256": put.candidate_sha256, "from": serving[0], "to": put.candidate}
    return body | moved | {"approves": put.record_sha256}


@st.composite
def histories(draw: st.DrawFn) -> list[ChampionRecord]:
    """Draw a history in which one record in three is forged in one place, or copied."""
    ledger, records = Ledger("x", "m", approval_required=True), list[ChampionRecord]()
    for number in range(1, draw(st.integers(1, 14)) + 1):
        last = records[-1].record_sha256 if records else None
        body = {"system": "x", "model": "m", "number": number, "reason": "r", "previous_record_sha256": last}
        body |= {"decided_at": MOMENT, **_honest(draw, ledger)}
        if draw(st.sampled_from([False, False, True])):
            name = draw(st.sampled_from(sorted(FORGED)))
            body[name] = draw(st.sampled_from(FORGED[name]))
        record = (
            draw(st.sampled_from(records)) if records and draw(st.integers(0, 9)) == 0 else ChampionRecord.made(body)
        )
        records.append(record)
        ledger.read(Entry(number, MOMENT, record, None, record.record_sha256))
    return records


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_whatever_is_written_only_an_approved_version_serves_and_each_approval_counts_once(records):
    ledger = Ledger("x", "m", approval_required=True)
    served: set[tuple[int | None, str | None]] = set()
    used: set[str | None] = set()
    for number, move in enumerate(records):
        moved = len(ledger.moves)
        ledger.read(Entry(number, MOMENT, move, None, move.record_sha256))
        if len(ledger.moves) == moved:
            continue
        assert ledger.champion is move
        assert (move.version, move.candidate) == (move.to_version, move.to_version) or move.verdict == "rolled_back"
        if move.verdict == "rolled_back":
            assert (move.version, move.sha256) in served
            continue
        put = next(record for record in records[:number] if record.record_sha256 == move.approves)
        assert move.approves not in used
        assert (put.verdict, put.candidate, put.candidate_sha256) == ("proposed", move.version, move.sha256)
        assert (put.evidence_sha256, put.to_version) == (move.evidence_sha256, None)
        assert move.evidence_sha256 is not None
        assert folded(put.trained_by or "") not in {"", folded(move.by)}
        assert put.expires_at > MOMENT
        since = records[records.index(put) + 1 : number]
        assert not [item for item in since if item.rejects == move.approves and item.candidate == move.version]
        used.add(move.approves)
        served.add((move.version, move.sha256))
