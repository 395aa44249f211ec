"""An application that was decided on is known again in a file, where its numbers are texts."""

import pandas as pd
import pytest

from mlops_assets.credit_risk import pipeline
from mlops_assets.credit_risk.repeats import same_content
from mlops_assets.credit_risk.windows import end_of
from tests.credit_risk.decided_world import (
    GOOD,
    NEW,
    SCORECARD,
    World,
    applications_of,
    records_of,
    request_of,
    texts,
)  # fmt: skip

ROW = {**GOOD, "application_id": "again", "applied_at": f"{NEW}T10:00:00Z"}


def decided_online(world: World) -> str:
    """Decide on the application as the service does; return the decision's name."""
    decider, log = world.decider(SCORECARD), world.log()
    context = log.context(pipeline.decision_context(world.spec, decider, world.version(SCORECARD), "service"))
    request = request_of(texts([ROW]), NEW, channel="api", batch_id=None)
    log.append([{**each, "decided_at": f"{NEW}T10:00:01+00:00"} for each in records_of(decider, request)], context)
    return log.find("again")[0].body["decision_id"]


ORDINARY = 40


def delivered(world: World, *rows: dict[str, object]) -> None:
    """Take in a day of ordinary size with these rows in it."""
    frame = pd.concat([applications_of(NEW, ORDINARY), pd.DataFrame(rows, dtype=object)], ignore_index=True)
    world.deliver(NEW, frame)


def test_what_the_service_decided_is_known_to_the_batch(copied: World) -> None:
    name = decided_online(copied)
    other = {**ROW, "application_id": "other", "applicant_id": "P-other"}
    delivered(copied, ROW, other)
    made = copied.decide(NEW)
    assert (made.applications, made.decided) == (ORDINARY + 2, ORDINARY + 1)
    assert (made.known, made.missing, made.doubled) == (1, 0, 0)
    assert [entry.body["decision_id"] for entry in copied.log().find("again")] == [name]


def test_a_corrected_delivery_is_decided_anew_beside_the_first(copied: World) -> None:
    name = decided_online(copied)
    delivered(copied, {**ROW, "loan_amount": 9_500})
    made = copied.decide(NEW)
    assert (made.decided, made.known, made.missing, made.doubled) == (ORDINARY + 1, 0, 0, 0)
    first, second = copied.log().find("again")
    assert first.body["decision_id"] == name
    assert second.body["payload"]["loan_amount"] == "9500"


def test_a_second_decision_on_the_same_content_is_counted(copied: World) -> None:
    decided_online(copied)
    delivered(copied, ROW)
    log, first = copied.log(), copied.log().find("again")[0].body
    payload = {key: None if value is None else str(value) for key, value in first["payload"].items()}
    log.append([{**first, "decision_id": "0" * 32, "payload": payload}], first["context_sha256"])
    made = copied.decide(NEW)
    assert (made.known, made.missing, made.doubled) == (1, 0, 1)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True), ({"loan_amount": "9e3"}, True), ({"debt_to_income": " 0.22 "}, True),
        ({"loan_amount": 9_001}, False), ({"loan_amount": None}, False), ({"purpose": "home"}, False),
        ({"loan_amount": "many"}, False),
    ],
)  # fmt: skip
def test_content_is_compared_by_what_it_means(lender: World, change: dict[str, object], same: bool) -> None:
    record = {"application_id": "again", "payload": ROW, "received_at": f"{NEW}T10:00:00+00:00"}
    pairs = [({**ROW, **change}, record), (ROW, record)]
    assert same_content(lender.spec, pairs, end_of(lender.spec, NEW)) == [same, True]
