"""What a person decides about a data incident is what becomes of its batch, at once and for good."""

import subprocess
import sys
from collections.abc import Sequence

import pandas as pd
import pytest

from mlops_assets.credit_risk import incidents
from mlops_assets.credit_risk.settling import settle
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Warehouse
from tests.credit_risk.decided_world import BOOSTED, NEW, World, applications_of

HOLDS = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
connection.execute("begin")
print("held", flush=True)
sys.stdin.readline()
"""


def cents(rows: int = 60) -> pd.DataFrame:
    """A day whose incomes are in cents: two incidents."""
    frame = applications_of(NEW, rows)
    return frame.assign(annual_income=pd.to_numeric(frame["annual_income"], errors="coerce") / 100)


def open_ids(world: World) -> list[str]:
    return [each.id for each in incidents.open_incidents(world.journal("operations"))]


def settled(world: World, incident: str, outcome: str, by: str = "mary", reason: str = "I called them") -> str:
    return settle(
        world.spec, world.journal("operations"), world.warehouse, incident, by=by, reason=reason, outcome=outcome
    )


def status_of(world: World, batch: str) -> str:
    found = world.warehouse.query("select status from lender.batches where batch_id = ?", [batch])
    return str(found["status"].item())


@pytest.fixture
def blocked(copied: World) -> str:
    return copied.deliver(NEW, cents())


class TestWaived:
    def test_the_batch_counts_once_every_incident_is_waived(self, copied, blocked):
        first, second = open_ids(copied)
        assert settled(copied, first, "waived") == f"{first} is waived by mary; the batch still waits for {second}."
        assert status_of(copied, blocked) == "blocked"
        told = settled(copied, second, "waived", by="ada")
        assert told == f"{second} is waived by ada: batch {blocked} counts as it is."
        assert status_of(copied, blocked) == "accepted"
        assert open_ids(copied) == []
        made = copied.decide(NEW)
        assert made.batch_id == blocked
        assert made.decisions["refer"] == made.applications == 60

    def test_who_and_why_is_kept(self, copied, blocked):
        for incident in open_ids(copied):
            settled(copied, incident, "waived", reason="it is the first day of a new product")
        for each in incidents.history(copied.journal("operations")):
            assert (each.state, each.by, each.reason) == ("waived", "mary", "it is the first day of a new product")
        assert incidents.touched_batches(copied.journal("operations")) == set()

    def test_other_days_wait_until_then(self, copied, blocked):
        assert not copied.materialize("decisions", BOOSTED).success
        for incident in open_ids(copied):
            settled(copied, incident, "waived")
        assert copied.materialize("decisions", BOOSTED).success

    def test_the_same_delivery_again_opens_nothing(self, copied, blocked):
        for incident in open_ids(copied):
            settled(copied, incident, "waived")
        assert copied.deliver(NEW, cents()) == blocked
        assert open_ids(copied) == []
        assert status_of(copied, blocked) == "accepted"


class TestResolved:
    def test_the_batch_stays_blocked_until_another_replaces_it(self, copied, blocked):
        for incident in open_ids(copied):
            told = settled(copied, incident, "resolved")
            assert (
                told == f"{incident} is resolved by mary: its batch stays blocked until another delivery replaces it."
            )
        assert status_of(copied, blocked) == "blocked"
        with pytest.raises(UserError, match="no batch of applications was accepted"):
            copied.decide(NEW)
        sound = copied.deliver(NEW, applications_of(NEW, 60))
        assert status_of(copied, sound) == "accepted"
        made = copied.decide(NEW)
        assert made.batch_id == sound
        assert made.decisions["refer"] < made.applications
        assert incidents.touched_batches(copied.journal("operations")) == {blocked}

    @pytest.mark.parametrize("order", [("waived", "resolved"), ("resolved", "waived")])
    def test_one_that_is_resolved_outweighs_one_that_is_waived(self, copied, blocked, order: Sequence[str]):
        told = [settled(copied, incident, outcome) for incident, outcome in zip(open_ids(copied), order, strict=True)]
        assert status_of(copied, blocked) == "blocked"
        assert "stays blocked" in told[-1]

    def test_a_sound_delivery_resolves_without_a_person(self, copied, blocked):
        sound = copied.deliver(NEW, applications_of(NEW, 60))
        assert open_ids(copied) == []
        found = incidents.history(copied.journal("operations"))
        assert {each.state for each in found} == {"resolved"}
        assert all(sound in (each.reason or "") for each in found)


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"incident": "no-such"}, "there is no such incident"),
            ({"outcome": "forgotten"}, "'forgotten' is no outcome"),
            ({"by": ""}, "name"),
            ({"by": " \t"}, "name"),
            ({"reason": " "}, "reason"),
        ],
    )
    @pytest.mark.parametrize("outcome", ["waived", "resolved"])
    def test_nothing_changes(self, copied, blocked, given, words, outcome):
        before = copied.journal("operations").head()
        with pytest.raises(UserError, match=words):
            settled(copied, **{"incident": open_ids(copied)[0], "outcome": outcome, **given})
        assert copied.journal("operations").head() == before
        assert status_of(copied, blocked) == "blocked"

    def test_an_incident_is_settled_once(self, copied, blocked):
        incident = open_ids(copied)[0]
        settled(copied, incident, "resolved")
        with pytest.raises(UserError, match="it was resolved by mary"):
            settled(copied, incident, "waived")
        assert status_of(copied, blocked) == "blocked"

    def test_while_the_warehouse_is_held_the_incident_stays_open(self, copied, blocked):
        """Closed without its batch being let through, nobody could let it through any more."""
        first, last = open_ids(copied)
        settled(copied, first, "waived")
        impatient = Warehouse(database=str(copied.place.warehouse_file), wait_seconds=0.2)
        with subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(copied.place.warehouse_file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as holder:  # fmt: skip
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match="cannot open the warehouse"):
                settle(
                    copied.spec, copied.journal("operations"), impatient, last, by="mary", reason="so it is",
                    outcome="waived",
                )  # fmt: skip
            holder.communicate("\n")
        assert open_ids(copied) == [last]
        settled(copied, last, "waived")
        assert status_of(copied, blocked) == "accepted"


def test_an_incident_without_a_batch_blocks_none(copied):
    operations = copied.journal("operations")
    for rule, outcome in (("a", "waived"), ("b", "resolved")):
        found = incidents.open_incident(
            operations, system="lender", period=NEW, batch_id=None, rule=rule, column=None, value=None, bound=None,
            details="the feed is late", run_id=None,
        )  # fmt: skip
        assert settled(copied, found.id, outcome) == f"{found.id} is {outcome} by mary."
    assert open_ids(copied) == []
