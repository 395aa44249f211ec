"""Which policy decides: the one that was approved with the champion, whatever the spec says since."""

import json
import logging
from typing import Any

import dagster as dg
import numpy as np
import pytest

from mlops_assets.credit_risk import judgement, pipeline, watching
from mlops_assets.credit_risk.api import champion_holder
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.watching import Watched
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.io_managers import Judged
from mlops_assets.foundation.registry import Verdict
from mlops_assets.foundation.snapshots import SnapshotStore
from tests.credit_risk.decided_world import SCORECARD, World, copied
from tests.credit_risk.ran_world import (
    LAST_DECIDED,
    NEXT,
    TRAINED,
    Bank,
    bank_folder,
    proposed,
    ran,
    ran_copy,
)

__all__ = ["bank_folder", "copied", "proposed", "ran", "ran_copy"]

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

LENIENT = {"accept_below": 0.9, "reject_from": 0.95}
CHECK = "decisions:the_policy_is_approved"


def decided(bank: Bank, period: str) -> set[str]:
    """Versions of the policies that a period was decided by."""
    return set(bank.log.frame(bank.log.of_period(period))["policy_version"])


# --- What is approved ---


def test_the_evidence_names_the_policy_that_was_measured(ran: Bank) -> None:
    policy = DecisionPolicy.of(ran.spec)
    for step in ("evaluation", "bias_report", "explanations", "model_card"):
        assert ran.evidence(step, TRAINED)["policy"] == {**policy.to_dict(), "version": policy.version}
    for step in ("evaluation", "model_card"):
        sentences = pipeline.reason_table(ran.registry.fetch(ran.champion))
        assert ran.evidence(step, TRAINED)["reasons_version"] == sentences.version


def test_the_approved_policy_stays_when_the_spec_changes(ran: Bank) -> None:
    changed = ran.with_spec(policy=LENIENT)
    approved = pipeline.approved_policy(changed.spec, changed.history, changed.champion)
    assert approved == DecisionPolicy.of(ran.spec)
    assert approved != DecisionPolicy.of(changed.spec)
    told = pipeline.waiting_policy(changed.spec, approved)
    assert told is not None
    assert "accept_below" in told
    assert "waits for a training and its approval" in told
    assert pipeline.waiting_policy(ran.spec, approved) is None


def test_a_card_is_not_written_on_what_another_policy_was_measured_with(ran: Bank) -> None:
    changed = ran.with_spec(policy=LENIENT)
    pages = {step: ran.page(step, TRAINED) for step in ("evaluation", "bias_report", "explanations")}
    parts = {step: Judged(ran.champion, page["evidence_sha256"].value) for step, page in pages.items()}
    training_set = SnapshotStore(ran.root / "snapshots").load(ran.champion.tags["training_set"])
    with pytest.raises(UserError, match="evaluation, bias_report, explanations was made with another policy"):
        judgement.write_card(changed.spec, training_set, parts, ran.registry, ran.root)


# --- What decides ---


def test_a_changed_spec_waits_and_says_so(ran_copy: Bank) -> None:
    approved = DecisionPolicy.of(ran_copy.spec).version
    changed = ran_copy.with_spec(policy=LENIENT)
    changed.run("ingest", NEXT)
    result = changed.materialize("decisions", period=NEXT)
    assert result.success
    assert decided(changed, NEXT) == {approved}
    found = {each.check_name: each for each in result.get_asset_check_evaluations()}["the_policy_is_approved"]
    assert not found.passed
    assert (found.severity, found.blocking) == (dg.AssetCheckSeverity.ERROR, False)
    assert "waits for a training and its approval" in (found.description or "")


def test_decisions_by_the_approved_policy_pass_the_check(ran: Bank) -> None:
    (run,) = ran.instance.get_runs(limit=1)
    found = ran.checks(run.run_id)[CHECK]
    assert found.passed
    assert found.metadata["decided_by"].value == DecisionPolicy.of(ran.spec).version


def test_the_service_decides_by_the_approved_policy(ran_copy: Bank, caplog: pytest.LogCaptureFixture) -> None:
    changed = ran_copy.with_spec(policy=LENIENT)
    holder = champion_holder(changed.spec, changed.instance, changed.registry, changed.log, poll_seconds=60)
    with caplog.at_level(logging.WARNING, "mlops_assets.service"):
        assert holder.refresh() == "loaded"
    assert holder.get().model.decider.policy == DecisionPolicy.of(ran_copy.spec)
    assert "waits for a training and its approval" in caplog.text


def test_nothing_is_approved_for_a_version_that_stopped_serving(copied: World) -> None:
    with pytest.raises(UserError, match="does not serve any more"):
        pipeline.approved_policy(copied.spec, copied.history, copied.version(SCORECARD))


def test_evidence_from_before_it_named_a_policy_leaves_the_spec_to_decide(copied: World) -> None:
    assert pipeline.approved_policy(copied.spec, copied.history) == DecisionPolicy.of(copied.spec)
    record = copied.history.current()
    assert record is not None
    assert pipeline.policy_by(copied.history, record) is None


@pytest.mark.parametrize(
    "damage", [{"version": "0" * 16}, {"accept_below": 0.5}, {"haggle": True}, {"insufficient": None}]
)
def test_a_policy_of_another_release_decides_nothing(copied: World, damage: dict[str, Any]) -> None:
    policy = DecisionPolicy.of(copied.spec)
    stated = {**policy.to_dict(), "version": policy.version, **damage}
    version = copied.version(SCORECARD)
    digest = copied.registry.attach_evidence(version, {"gates": [], "policy": stated})
    record = copied.history.next_record(Verdict("proposed", ("sound",)), version, by="run", evidence_sha256=digest)
    with pytest.raises(UserError, match="none that this release can decide by"):
        pipeline.policy_by(copied.history, record.__class__.made({**_body(record), "version": SCORECARD}))


def _body(record: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(record.text)
    return body


# --- What is watched ---


def test_the_reference_is_decided_as_decisions_are(ran: Bank) -> None:
    """The champion's decisions on a week, and what the watch makes of the same rows, are the same."""
    watched = Watched.of(ran.registry, ran.champion, DecisionPolicy.of(ran.spec))
    with ran.warehouse.session() as tables:
        (batch,) = watching.batches_since(tables, ran.spec, ran.spec.periods.shift(LAST_DECIDED, -1), LAST_DECIDED)
    frame = ran.log.frame(ran.log.of_period(LAST_DECIDED)).set_index("application_id")
    frame = frame.loc[batch.frame["application_id"]]
    found = watched.decide(ran.spec, watched.model.schema.matrix(batch.frame))
    assert found["decision"].tolist() == frame["decision"].tolist()
    assert np.array_equal(found["pd"].to_numpy(), frame["pd"].to_numpy())
    assert found["theme"].tolist() == frame["theme"].tolist()


def test_mixes_go_by_the_approved_policy(ran: Bank) -> None:
    changed = ran.with_spec(policy=LENIENT)
    approved = DecisionPolicy.of(ran.spec)
    args = changed.warehouse, changed.log, LAST_DECIDED
    one = watching.mixes_of(changed.spec, Watched.of(ran.registry, ran.champion, approved), *args)[1]
    other = watching.mixes_of(changed.spec, Watched.of(ran.registry, ran.champion), *args)[1]
    assert one.rate is not None
    assert other.rate is not None
    assert one.rate.status == "none"
    assert other.rate.status == "act"


def test_the_latest_decisions_are_read_from_the_end_of_the_log(ran: Bank) -> None:
    watched = Watched.of(ran.registry, ran.champion)
    whole = ran.log.frame(ran.log.touched(model=ran.champion.sha256))
    found = watching.recent_decisions(ran.spec, watched, ran.log, LAST_DECIDED)
    assert found["decision_id"].tolist() == whole["decision_id"].tail(ran.spec.monitoring.window_rows).tolist()
    earlier = ran.spec.periods.shift(LAST_DECIDED, -1)
    found = watching.recent_decisions(ran.spec, watched, ran.log, earlier)
    assert found["period"].max() == earlier
    assert len(found) == ran.spec.monitoring.window_rows


def test_loans_that_the_champion_learned_from_prove_nothing(ran_copy: Bank) -> None:
    """Whoever decides the history again meets loans whose outcomes were in the training set."""
    seen = ran_copy.spec.periods.shift(TRAINED, -30)
    assert ran_copy.materialize("decisions", period=seen).success
    log, snapshots = ran_copy.log, SnapshotStore(ran_copy.root / "snapshots")
    training_set = snapshots.load(ran_copy.champion.tags["training_set"])
    learned = {each for part in watching.PARTS for each in training_set.read(part)["application_id"]}
    made = log.frame(log.of_period(seen))
    accepted = made[made["decision"] == "accept"]
    assert accepted["application_id"].isin(learned).sum() > 5
    watched = Watched.of(ran_copy.registry, ran_copy.champion)
    found = watching.realised_of(ran_copy.spec, watched, ran_copy.warehouse, log, snapshots, LAST_DECIDED)
    assert found.rows <= (~accepted["application_id"].isin(learned)).sum()
