"""What the sensor knows: collected from records, journal, registry and event log, and of the champion alone."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from mlops_assets.credit_risk import evidence, incidents, watching
from mlops_assets.credit_risk.retraining import Evidence
from mlops_assets.credit_risk.windows import end_of
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import Verdict
from tests.credit_risk.ran_world import (
    FIRST_DECIDED,
    LAST_DECIDED,
    NAME,
    NEXT,
    OFFICER,
    TRAINED,
    Bank,
    bank_folder,
    proposed,
    ran,
    ran_copy,
)

__all__ = ["bank_folder", "proposed", "ran", "ran_copy"]

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


def collected(bank: Bank, period: str = LAST_DECIDED, **over: Any) -> Evidence:
    return evidence.collect(
        bank.spec, bank.instance, bank.registry, bank.root, bank.operations, period, job=f"{NAME}_train", **over
    )


def changed(bank: Bank, kind: str, **over: Any) -> None:
    found = watching.kept(bank.root, bank.spec, kind, LAST_DECIDED)
    assert found is not None
    watching.keep(bank.root, bank.spec, kind, found[0], {**found[1], **over})


def second_champion(bank: Bank) -> None:
    """Have the other candidate proposed and approved, so that another model serves."""
    other = next(each for each in bank.registry.versions(bank.history.model) if each.version != bank.serving())
    digest = bank.registry.attach_evidence(other, {"gates": []})
    record = bank.history.next_record(Verdict("proposed", ("sound",)), other, by="run", evidence_sha256=digest)
    bank.instance.report_runless_asset_event(dg.AssetMaterialization(bank.key("champion"), metadata=record.metadata()))
    bank.history.approve(other.version, OFFICER, "the card is read")


# --- As it is ---


def test_a_quiet_bank_is_collected_as_its_runs_left_it(ran: Bank) -> None:
    found = collected(ran)
    assert (found.as_of, found.champion) == (LAST_DECIDED, ran.champion.sha256)
    assert found.trained_until == found.learned_until == end_of(ran.spec, TRAINED)
    assert [each.status for each in found.windows] == ["none", "none"]
    assert (found.decay, found.decay_facts["loans"]) == ("not_assessed", 0)
    assert found.new_outcomes > found.new_bads > 0
    assert (found.incidents, found.touched, found.asked, found.in_flight) == ([], set(), [], [])
    assert (found.request, found.frozen, found.rejections) == (None, None, [])
    (attempt,) = found.attempts
    (run,) = ran.instance.get_run_records(dg.RunsFilter(job_name=f"{NAME}_train"))
    assert attempt.timestamp() == pytest.approx(run.create_timestamp.timestamp())
    assert attempt.tzinfo is not None
    assert found.now - datetime.now(UTC) < timedelta(minutes=1)


def test_the_latest_period_is_that_of_any_record(ran: Bank, proposed: Bank) -> None:
    assert evidence.latest_period(ran.spec, ran.root) == LAST_DECIDED
    assert evidence.latest_period(proposed.spec, proposed.root) is None
    watching.keep(proposed.root, proposed.spec, "estimated", NEXT, {})
    watching.keep(proposed.root, proposed.spec, "drift", FIRST_DECIDED, {})
    assert evidence.latest_period(proposed.spec, proposed.root) == NEXT


def test_records_of_after_the_period_are_not_looked_at(ran: Bank) -> None:
    found = collected(ran, FIRST_DECIDED)
    assert [each.status for each in found.windows] == ["not_assessed"]


def test_without_a_champion_nothing_has_drifted_and_nothing_has_decayed(proposed: Bank) -> None:
    found = collected(proposed)
    assert (found.champion, found.trained_until, found.windows, found.decay) == (None, None, [], "not_assessed")
    assert found.learned_until == end_of(proposed.spec, TRAINED)
    assert (found.new_outcomes, found.new_bads) == (0, 0)


# --- Of the champion that serves ---


def test_what_was_found_of_another_champion_is_no_evidence_against_this_one(ran_copy: Bank) -> None:
    """The old champion had decayed and its input drifted; the new one was approved a minute ago."""
    changed(ran_copy, "realised", status="decayed", reasons=["worse"])
    before = collected(ran_copy)
    assert (before.decay, before.decay_reason, len(before.windows)) == ("decayed", "worse", 2)
    second_champion(ran_copy)
    after = collected(ran_copy)
    assert after.champion != before.champion
    assert (after.decay, after.decay_facts, after.decay_reason, after.windows) == ("not_assessed", {}, "", [])
    # After the next watch there is evidence again, of the right model.
    ran_copy.run("watch", LAST_DECIDED)
    again = collected(ran_copy)
    assert len(again.windows) == 2
    record = watching.kept(ran_copy.root, ran_copy.spec, "realised", LAST_DECIDED)
    assert record is not None
    assert record[1]["model"] == after.champion
    assert "0 accepted loans" in record[1]["reasons"][0], "it has decided nothing yet"
    assert ran_copy.page("decision_mix", LAST_DECIDED)


def test_a_rollback_brings_its_own_evidence_only(ran_copy: Bank) -> None:
    first = ran_copy.serving()
    second_champion(ran_copy)
    assert first is not None
    changed(ran_copy, "realised", status="decayed", model=ran_copy.champion.sha256)
    assert collected(ran_copy).decay == "decayed"
    ran_copy.history.rollback(first, OFFICER, "complaints")
    assert collected(ran_copy).decay == "not_assessed"


def test_labels_that_were_counted_before_the_latest_training_are_none(ran_copy: Bank) -> None:
    """Otherwise what was just learned would ask for the next training until somebody counts again."""
    assert collected(ran_copy).new_outcomes > 0
    changed(ran_copy, "labels", since=FIRST_DECIDED)
    found = collected(ran_copy)
    assert (found.new_outcomes, found.new_bads) == (0, 0)


@pytest.mark.parametrize("kind", ["drift", "realised", "labels"])
def test_a_record_that_does_not_say_what_it_is_of_counts_as_none(ran_copy: Bank, kind: str) -> None:
    found = watching.kept(ran_copy.root, ran_copy.spec, kind, LAST_DECIDED)
    assert found is not None
    bare = {name: value for name, value in found[1].items() if name not in {"model", "since"}}
    watching.keep(
        ran_copy.root,
        ran_copy.spec,
        kind,
        LAST_DECIDED,
        {**bare, **({"status": "decayed"} if kind == "realised" else {})},
    )
    after = collected(ran_copy)
    assert {"drift": after.windows == [], "realised": after.decay == "not_assessed", "labels": after.new_outcomes == 0}[
        kind
    ]


# --- What people and runs did ---


def test_incidents_requests_freezes_and_asks_are_read_from_the_journal(ran_copy: Bank) -> None:
    journal = ran_copy.operations
    first = incidents.open_incident(journal, system=NAME, period=NEXT, batch_id="b-1", rule="row_count")
    waived = incidents.open_incident(journal, system=NAME, period=NEXT, batch_id="b-2", rule="row_count")
    incidents.acknowledge(journal, waived.id, by="mary", reason="a holiday")
    one = incidents.request_retrain(journal, by="mary", reason="a new product")
    incidents.request_retrain(journal, by="anna", reason="a second one")
    incidents.freeze(journal, by="mary", reason="audit")
    found = collected(ran_copy)
    assert (found.incidents, found.touched) == ([first.id], {"b-1"})
    assert found.request == one.id, "the oldest first"
    assert "audit" in str(found.frozen)
    incidents.note_training(journal, incidents.ask_tags(trigger="T5_request", fingerprint="f1", reason="r"), NEXT)
    after = collected(ran_copy)
    assert (after.asked, after.request) == (["f1"], None)


def test_rejections_count_since_the_last_promotion(ran_copy: Bank) -> None:
    other = next(
        each for each in ran_copy.registry.versions(ran_copy.history.model) if each.version != ran_copy.serving()
    )
    digest = ran_copy.registry.attach_evidence(other, {"gates": []})
    for _ in range(2):
        record = ran_copy.history.next_record(Verdict("proposed", ("x",)), other, by="run", evidence_sha256=digest)
        event = dg.AssetMaterialization(ran_copy.key("champion"), metadata=record.metadata())
        ran_copy.instance.report_runless_asset_event(event)
        ran_copy.history.reject(other.version, "mary", "no")
    found = collected(ran_copy)
    assert len(found.rejections) == ran_copy.history.rejections() == 2
    assert all(moment.tzinfo is not None for moment in found.rejections)
    second_champion(ran_copy)
    assert collected(ran_copy).rejections == []


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "CANCELED"])
def test_every_start_of_a_training_is_an_attempt_whatever_came_of_it(ran_copy: Bank, status: str) -> None:
    job = ran_copy.defs().resolve_job_def(f"{NAME}_train")
    ran_copy.instance.create_run_for_job(job, status=dg.DagsterRunStatus[status])
    found = collected(ran_copy)
    assert len(found.attempts) == 2
    assert found.in_flight == []


def test_a_damaged_record_stops_the_sensor_rather_than_being_taken_for_nothing(ran_copy: Bank) -> None:
    for path in (ran_copy.home / "place" / "store" / "monitoring" / NAME / "drift").glob("*.json"):
        path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        collected(ran_copy)


def test_a_damaged_history_stops_the_sensor(ran_copy: Bank) -> None:
    metadata = dict(ran_copy.history.records()[-1].metadata())
    text = json.loads(str(metadata["record"].value))
    metadata["record"] = dg.MetadataValue.text(json.dumps({**text, "reason": "another one"}))
    event = dg.AssetMaterialization(ran_copy.key("champion"), metadata=metadata)
    ran_copy.instance.report_runless_asset_event(event)
    with pytest.raises(UserError, match="cannot be trusted"):
        collected(ran_copy)
