"""Whatever was appended by a run, by the service or by re-scoring, its end cannot be cut off or hashed anew unseen."""

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import dagster as dg
import pytest

from mlops_assets.credit_risk.witnesses import Notary, note, refuse_forged, standing, witnesses
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.journal import Head, Journal
from tests.credit_risk.decided_world import BOOSTED, EDGES, NEW, SCORECARD, World, applications_of, raised


def tampered(world: World, *statements: str) -> None:
    """Change the file behind the journal's back, as somebody with the right to write it can."""
    path = world.log().journal.path
    with closing(sqlite3.connect(path)) as connection:
        guards = connection.execute("select name, sql from sqlite_master where type = 'trigger'").fetchall()
        for name, _ in guards:
            connection.execute(f"drop trigger {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in guards:
            connection.execute(sql)
        connection.commit()


def cut(world: World, after: int) -> None:
    """Cut the end off, with the journal's own record of it and its index."""
    with Journal(world.log().journal.path, read_only=True) as journal:
        last = journal.at(after)
    assert last is not None
    tampered(
        world,
        *[f"delete from {table} where number > {after}" for table in ("entries", "entry_index")],
        "delete from terms where id not in (select term from entry_index)",
        f"update last_entry set number = {after}, sha256 = x'{last.sha256}'",
    )


def hashed_anew(world: World, start: int) -> None:
    """Change when an entry was written, and hash it and all later ones again."""
    with Journal(world.log().journal.path, read_only=True) as journal:
        entries = list(journal.read(after_number=start - 1))
    statements, previous = [], entries[0].previous_sha256
    for entry in entries:
        document = {**entry.document(), "previous_sha256": previous}
        if entry.number == start:
            document["behind_us"] = 77
        own = hashlib.sha256(canonical_json(document)).hexdigest()
        statements.append(
            f"update entries set behind_us = {document['behind_us']}, previous_sha256 = x'{previous}', "
            f"sha256 = x'{own}' where number = {entry.number}"
        )
        previous = own
    tampered(world, *statements, f"update last_entry set sha256 = x'{previous}'")


def heads_of(world: World) -> list[Head]:
    return list(witnesses(world.instance, world.spec.name))


def told(problems: Sequence[Any]) -> str:
    return "; ".join(map(str, problems))


def appended(world: World, number: int) -> int:
    """Append further contexts, as a service does when it starts; return the last entry's number."""
    log = world.log()
    context = dict(log.journal.read("context", limit=1).__next__().body)
    for at in range(number):
        log.context({**context, "run_id": f"service {log.head().number} {at}"})
    return log.head().number


class TestRuns:
    def test_a_forged_log_gets_no_further_entry(self, copied):
        copied.deliver(NEW, applications_of(NEW, 10))
        (newest, *_) = heads_of(copied)
        cut(copied, newest.number - 3)
        result = copied.materialize("decisions", NEW)
        assert not result.success
        assert f"entry {newest.number} is missing: it was witnessed" in raised(result)
        assert copied.log().head().number == newest.number - 3
        assert heads_of(copied)[0] == newest

    def test_an_end_that_was_hashed_anew_stops_the_run_and_is_bounded_by_witnesses(self, copied):
        copied.deliver(NEW, applications_of(NEW, 10))
        newest, before, *_ = heads_of(copied)
        hashed_anew(copied, before.number + 2)
        result = copied.materialize("decisions", NEW)
        assert f"entry {newest.number} is not the one that was witnessed" in raised(result)
        bound = f"something between entry {before.number + 1} and this one was changed"
        assert bound in raised(result)
        (problem,) = copied.tracer().verify_log()
        assert problem.number == newest.number
        assert bound in problem.what

    def test_what_is_older_than_the_newest_witness_only_the_whole_verification_reads(self, copied):
        tampered(copied, "update entries set behind_us = 5 where number = 3")
        assert standing(copied.log(), copied.instance, copied.spec.name).problems == ()
        assert "entry 3 was changed" in told(copied.tracer().verify_log())

    def test_what_came_after_the_newest_witness_is_read(self, copied):
        last = appended(copied, 2)
        tampered(copied, f"update entries set behind_us = 5 where number = {last}")
        with pytest.raises(UserError, match=f"nothing is appended to a log that was changed: entry {last} was changed"):
            refuse_forged(copied.log(), copied.instance, copied.spec.name)

    def test_a_log_that_no_run_has_witnessed_is_read_in_full(self, copied):
        found = standing(copied.log(), copied.instance, "another")
        assert (found.heads, found.agreed, found.problems) == ((), 0, ())


class TestBetweenRuns:
    def test_rescores_are_witnessed(self, copied):
        copied.tracer().rescore(model=SCORECARD, by="carla", reason="rolled back")
        newest = heads_of(copied)[0]
        assert newest == copied.log().head()
        assert copied.tracer().verify_log() == []
        cut(copied, newest.number - 1)
        assert f"entry {newest.number} is missing: it was witnessed" in told(copied.tracer().verify_log())
        with pytest.raises(UserError, match="nothing is appended to a log that was changed"):
            copied.tracer().rescore(model=SCORECARD, by="carla", reason="rolled back once more")

    def test_a_head_is_noted_once(self, copied):
        appended(copied, 1)
        before = len(heads_of(copied))
        for _ in range(2):
            note(copied.log(), copied.instance, copied.spec.name)
        assert len(heads_of(copied)) == before + 1

    def test_a_cut_log_that_grew_again_gets_no_witness(self, copied):
        newest = heads_of(copied)[0]
        cut(copied, newest.number - 2)
        appended(copied, 5)
        with pytest.raises(UserError, match=f"entry {newest.number} is not the one that was witnessed"):
            note(copied.log(), copied.instance, copied.spec.name)
        assert heads_of(copied)[0] == newest

    def test_runs_and_observations_come_in_order_of_time(self, copied):
        noted = []
        for day in (EDGES, BOOSTED):
            noted.append(Head(appended(copied, 1), copied.log().head().sha256))
            note(copied.log(), copied.instance, copied.spec.name)
            noted.append(Head(appended(copied, 1), copied.log().head().sha256))
            assert copied.materialize("decisions", day).success
        numbers = [head.number for head in heads_of(copied)]
        assert numbers == sorted(numbers, reverse=True)
        assert noted[0] in heads_of(copied)
        assert noted[2] in heads_of(copied)


class TestNotary:
    @pytest.fixture
    def clock(self):
        return [0.0]

    @pytest.fixture
    def notary(self, copied, clock):
        return Notary(copied.log(), copied.instance, copied.spec.name, entries=3, seconds=60, clock=lambda: clock[0])

    def test_it_notes_many_new_entries_at_once_and_a_single_one_after_a_while(self, copied, notary, clock):
        appended(copied, 1)
        notary.look()
        assert heads_of(copied)[0] == copied.log().head(), "what another service left behind"
        appended(copied, 2)
        notary.look()
        assert heads_of(copied)[0] != copied.log().head()
        appended(copied, 1)
        notary.look()
        assert heads_of(copied)[0] == copied.log().head()
        clock[0] += 1_000
        notary.look()
        appended(copied, 1)
        clock[0] += 59
        notary.look()
        assert heads_of(copied)[0] != copied.log().head()
        clock[0] += 1
        notary.look()
        assert heads_of(copied)[0] == copied.log().head()

    def test_at_the_end_it_notes_what_is_left_and_nothing_where_nothing_is(self, copied, notary):
        notary.look()
        count = len(heads_of(copied))
        notary.close()
        assert len(heads_of(copied)) == count
        appended(copied, 1)
        notary.close()
        assert heads_of(copied)[0] == copied.log().head()

    def test_it_says_what_is_wrong_with_a_log_that_was_cut(self, copied, notary):
        notary.look()
        assert notary.problem is None
        cut(copied, heads_of(copied)[0].number - 1)
        notary.look()
        assert "is not the one that was witnessed" in notary.problem
        notary.close()
        assert len(heads_of(copied)) == 3

    def test_an_event_log_that_does_not_answer_stops_nobody(self, copied, clock):
        with dg.DagsterInstance.ephemeral() as instance:
            notary = Notary(copied.log(), instance, copied.spec.name, clock=lambda: clock[0])
        instance.dispose()
        instance.fetch_materializations = None
        notary.look()
        notary.close()
        assert "the decision log has no new witness" in notary.problem
