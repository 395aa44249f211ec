"""Every application of a period gets exactly one decision, whatever dies, runs twice, comes again or is cut where."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlops_assets.credit_risk import decision_batch, incidents
from mlops_assets.credit_risk.deciding import decision_id
from mlops_assets.credit_risk.decision_batch import BatchDecisions, current_batch
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import sha256_hex
from mlops_assets.foundation.journal import Entry
from tests.credit_risk.decided_world import (
    AGE,
    BOOSTED,
    EDGES,
    GBM,
    GOOD,
    KINDS,
    NEW,
    ORIGIN,
    PLAIN,
    SCORECARD,
    SEX,
    World,
    applications_of,
    raised,
)

NOW = datetime(2024, 9, 5, 4, 0, tzinfo=UTC)
ROOT = Path(__file__).parents[2]
# What a process of its own does: it says when it is ready, and waits for a line.
ALONE = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from mlops_assets.credit_risk import decision_batch
from tests.credit_risk.decided_world import World, spec_at

home, day, number, chunk, run = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
decision_batch.CHUNK = chunk
lender = World(home, spec_at(home))
lender.decider(number)
print("ready", flush=True)
sys.stdin.readline()
made = lender.decide(day, number, run_id=run, now=datetime(2024, 9, 5, 4, 0, tzinfo=UTC))
print(made.applications, made.decided, made.known, flush=True)
"""


def started(world: World, number: int, chunk: int, run: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, str(world.home), NEW, str(number), str(chunk), run],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def decisions(world: World, day: str) -> list[Entry]:
    return list(world.log().of_period(day))


def content(entries: list[Entry]) -> list[tuple[Any, ...]]:
    """What entries say, without their places and times in the journal."""
    return [(entry.kind, entry.key, entry.subject, dict(entry.index), entry.text) for entry in entries]


def count_of(entries: list[Entry], name: str) -> Counter[str]:
    return Counter(entry.body["result"][name] for entry in entries)


class TestOneDecisionEach:
    def test_the_log_has_every_application_once_with_its_source(self, lender):
        entries = decisions(lender, EDGES)
        bodies = [entry.body for entry in entries]
        rows = lender.warehouse.query(
            "select source, row, payload from lender.raw_applications where batch_id = ?", [bodies[0]["batch_id"]]
        )
        # One row is an exact copy of another; nothing else is left out.
        assert len(rows) == len(KINDS) + 4
        assert len(bodies) == len(KINDS) + 3
        assert len({body["decision_id"] for body in bodies}) == len(bodies)
        at = {(source, row): json.loads(payload) for source, row, payload in rows.itertuples(index=False)}
        for body in bodies:
            assert at[body["source"]["file"], body["source"]["row"]] == body["payload"]
        assert {body["application_id"] for body in bodies} >= {"twice", "torn", "E000"}
        assert [entry.number for entry in entries] == sorted(entry.number for entry in entries)

    def test_an_id_with_two_contents_goes_to_a_human_in_both(self, lender):
        torn = lender.log().find("torn")
        assert [entry.body["result"]["rule"] for entry in torn] == ["quarantined"] * 2
        assert [entry.body["flags"]["refused"] for entry in torn] == [["one_application_one_content"]] * 2
        assert {entry.body["payload"]["loan_amount"] for entry in torn} == {"9000", "9500"}

    def test_what_was_decided_is_told_as_it_stands_in_the_log(self, copied):
        copied.deliver(NEW, applications_of(NEW))
        made = copied.decide(NEW)
        entries = decisions(copied, NEW)
        assert made.applications == made.decided + made.known
        assert made.decided == len(entries)
        assert made.decisions == count_of(entries, "decision")
        assert made.rules == count_of(entries, "rule")
        known = [float.fromhex(entry.body["result"]["pd"]) for entry in entries if entry.body["result"]["pd"]]
        assert made.mean_pd == pytest.approx(sum(known) / len(known))
        assert made.scored == len(known)

    def test_without_a_batch_nobody_can_be_decided_on(self, copied):
        with pytest.raises(UserError, match=f"no batch of applications was accepted for {NEW}.*settle its incident"):
            copied.decide(NEW)
        with copied.warehouse.session() as tables:
            assert current_batch(tables, copied.spec, NEW) is None

    def test_a_day_without_applications_has_no_decisions(self, copied):
        copied.deliver(NEW, applications_of(NEW).iloc[:0])
        made = copied.decide(NEW)
        assert (made.applications, made.decided, made.mean_pd) == (0, 0, None)

    def test_a_broken_row_of_one_file_says_nothing_of_the_same_row_of_another(self, copied):
        """The rows of a batch are numbered file by file."""
        same = {**GOOD, "applied_at": f"{NEW}T10:00:00Z"}
        first = [{**same, "application_id": "torn-2", "loan_amount": amount} for amount in (9_000, 9_100)]
        second = [{**same, "application_id": f"sound-{at}"} for at in range(3)]
        two_files(copied, first, second)
        copied.decide(NEW)
        rules = {entry.subject: entry.body["result"]["rule"] for entry in decisions(copied, NEW)}
        assert rules["torn-2"] == "quarantined"
        assert [rules[f"sound-{at}"] for at in range(3)] == ["below_cut"] * 3

    def test_rows_without_id_in_two_files_are_two_people(self, copied):
        nameless = {**GOOD, "applied_at": f"{NEW}T10:00:00Z", "application_id": None}
        two_files(copied, [nameless], [nameless])
        made = copied.decide(NEW)
        assert made.applications == made.decided
        referred = [entry for entry in decisions(copied, NEW) if entry.body["payload"]["application_id"] is None]
        assert len({entry.subject for entry in referred}) == 2
        assert all(entry.subject.startswith("row ") for entry in referred)


def two_files(world: World, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Deliver a day in two files, each with ordinary rows below these."""
    usual = applications_of(NEW, 40)
    for part, rows, rest in (("-a", first, usual[:20]), ("-b", second, usual[20:])):
        world.write(NEW, pd.concat([pd.DataFrame(rows, dtype=object), rest], ignore_index=True), part=part)
    assert world.ingest(NEW).batches[0].status == "accepted"


class TestAgain:
    def test_a_rerun_appends_nothing_and_tells_the_same(self, copied):
        before = copied.log().head()
        first = copied.decide(PLAIN)
        again = copied.decide(PLAIN, run_id="another run")
        contexts = copied.log().head().number - before.number
        assert contexts == 2  # one for each run; no decision
        assert (first.decided, again.decided) == (0, 0)
        assert first == again
        assert again.known == again.applications == len(decisions(copied, PLAIN))

    def test_another_champion_changes_no_decision_that_stands(self, copied):
        before = content(decisions(copied, PLAIN))
        made = copied.decide(PLAIN, GBM)
        entries = decisions(copied, PLAIN)
        assert content(entries) == before
        assert made.decided == 0
        assert made.decisions == count_of(entries, "decision")
        assert made.rules == count_of(entries, "rule")
        stands = [float.fromhex(entry.body["result"]["pd"]) for entry in entries if entry.body["result"]["pd"]]
        assert made.mean_pd == pytest.approx(sum(stands) / len(stands))

    @pytest.mark.parametrize("chunk", [1, 5, 28, 29, 30, 1_000])
    def test_chunk_borders_leave_no_trace(self, copy_of, lender, monkeypatch, chunk):
        """Copies and contradictions lie on both sides of a border; the log and the counts are the same."""
        monkeypatch.setattr(decision_batch, "CHUNK", chunk)
        with copy_of(f"chunk-{chunk}") as world:
            fresh = world.home / "fresh"
            world.journal("decisions").path.rename(fresh)
            for rest in world.journal("decisions").path.parent.glob("decisions.db-*"):
                rest.unlink()
            made = world.decide(EDGES, now=NOW, run_id="r")
            found = content(decisions(world, EDGES))
        expected = {entry.key: entry.body for entry in decisions(lender, EDGES)}
        assert len(found) == len(expected)
        for _, key, _, _, text in found:
            body = json.loads(text)
            for name in ("payload_sha256", "features", "flags", "result", "source", "until", "batch_id"):
                assert body[name] == expected[key][name]
        assert made.decided == len(KINDS) + 3
        assert made.known == 1
        assert made.decisions.total() == made.rules.total() == made.applications == len(KINDS) + 4
        assert made.decisions["accept"] == sum(body["result"]["decision"] == "accept" for body in expected.values()) + 1

    def test_a_corrected_delivery_gives_those_that_changed_a_second_decision(self, copied):
        frame = applications_of(NEW)
        copied.deliver(NEW, frame)
        copied.decide(NEW)
        corrected = frame.copy()
        corrected["loan_amount"] = corrected["loan_amount"].where(corrected.index != 3, 33_000.0)
        batch = copied.deliver(NEW, corrected)
        made = copied.decide(NEW, run_id="run-2")
        assert made.decided == 1
        assert made.known == made.applications - 1
        ours = copied.log().find(frame["application_id"][3])
        assert len(ours) == 2
        assert ours[1].body["batch_id"] == batch != ours[0].body["batch_id"]
        assert float(ours[1].body["payload"]["loan_amount"]) == 33_000
        assert copied.log().verify() == []

    def test_what_is_decided_in_a_row_of_periods_is_added_up(self, copied):
        total = BatchDecisions(None)
        parts = [copied.decide(PLAIN), copied.decide(BOOSTED)]
        for part in parts:
            total.merge(part)
        assert total.batch_id == parts[1].batch_id
        for name in ("applications", "decided", "known", "scored", "without_reason"):
            assert getattr(total, name) == sum(getattr(part, name) for part in parts)
        assert total.decisions == parts[0].decisions + parts[1].decisions
        assert total.mean_pd == pytest.approx(
            sum(part.probability for part in parts) / sum(part.scored for part in parts)
        )


class TestProcesses:
    def test_a_run_that_was_killed_goes_on_and_yields_the_same_log(self, copied, tmp_path):
        rows = applications_of(NEW, 160)
        copied.deliver(NEW, rows)
        shutil.copytree(copied.home, tmp_path / "undisturbed")
        undisturbed = World(tmp_path / "undisturbed", copied.spec)
        assert undisturbed.decide(NEW, GBM, run_id="r", now=NOW).decided == len(rows)
        expected = content(decisions(undisturbed, NEW))
        process = started(copied, GBM, chunk=4, run="r")
        before = copied.log().head().number
        go(process)
        while copied.log().head().number < before + 30:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        survived = decisions(copied, NEW)
        assert 29 <= len(survived) < len(rows)
        assert copied.log().verify() == []
        made = copied.decide(NEW, GBM, run_id="r", now=NOW)
        assert (made.decided, made.known) == (len(rows) - len(survived), len(survived))
        assert content(decisions(copied, NEW)) == expected
        assert copied.log().verify() == []

    def test_two_that_decide_at_once_give_each_application_one_decision(self, copied):
        rows = applications_of(NEW, 120)
        copied.deliver(NEW, rows)
        both = [started(copied, number, chunk=3, run=f"r{number}") for number in (SCORECARD, GBM)]
        go(*both)
        told = [process.communicate(timeout=300)[0].split() for process in both]
        assert [process.returncode for process in both] == [0, 0]
        decided = [int(each[1]) for each in told]
        assert [int(each[0]) for each in told] == [len(rows)] * 2
        assert sum(decided) == len(rows)
        entries = decisions(copied, NEW)
        assert len(entries) == len({entry.key for entry in entries}) == len(rows)
        kinds = Counter(copied.log().context_of(entry.body["context_sha256"])["model"]["kind"] for entry in entries)
        assert [kinds["scorecard"], kinds["gbm"]] == decided
        assert copied.log().verify() == []


class TestProtectedNeverLeaves:
    def test_no_byte_of_a_protected_attribute_is_in_any_journal_or_decision(self, lender):
        """The values of the edge day are like no others; the whole files are searched, free pages included."""
        known = lender.warehouse.query("select * from lender.protected_attributes where sex like ?", [f"{SEX}%"])
        assert len(known) > 20  # they did come in
        lender.journal("decisions").close()
        searched = 0
        for path in sorted((lender.place.home / "journals").rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                for value in (SEX, ORIGIN, str(AGE), AGE.hex(), "zzq"):
                    assert value.encode() not in data, (path, value)
                # Nor their names: no column of that name was ever written down.
                for name in lender.spec.protected_names:
                    assert f'"{name}"'.encode() not in data, (path, name)
                searched += len(data)
        assert searched > 50_000

    def test_nor_in_the_tables_of_applications_and_flags(self, lender):
        for table in ("raw_applications", "accepted_applications", "quarantined_applications"):
            texts = lender.warehouse.query(f"select * from lender.{table}").to_csv()
            assert "zzq" not in texts
            assert str(AGE) not in texts

    def test_a_payload_with_one_is_refused_before_anything_is_recorded(self, copied):
        batch = copied.deliver(NEW, applications_of(NEW))
        with copied.warehouse.session() as tables:
            tables.execute(
                "update lender.raw_applications set payload = replace(payload, '\"purpose\"', '\"sex\"') "
                "where batch_id = ? and row = 3", [batch],
            )  # fmt: skip
        before = copied.log().head().number
        with pytest.raises(UserError, match=r"protected attribute\(s\) 'sex'"):
            copied.decide(NEW)
        assert copied.log().head().number == before + 1  # the context
        assert decisions(copied, NEW) == []


class TestIncidents:
    @pytest.fixture
    def blocked(self, copied) -> Callable[..., Any]:
        """Bring a day whose incomes are in cents."""

        def bring() -> str:
            frame = applications_of(NEW, 60)
            incomes = pd.to_numeric(frame["annual_income"], errors="coerce") / 100
            return copied.deliver(NEW, frame.assign(annual_income=incomes))

        return bring

    def test_an_open_incident_stops_every_day_in_every_run(self, copied, blocked):
        blocked()
        (incident, *_) = incidents.open_incidents(copied.journal("operations"))
        before = copied.log().head()
        # Another day, another run, in which nothing is wrong.
        result = copied.materialize("decisions", BOOSTED)
        assert not result.success
        assert f"no scoring while a data incident is open: {incident.id}" in raised(result)
        assert copied.log().head() == before

    def test_the_corrected_delivery_lets_it_go_on(self, copied, blocked):
        blocked()
        copied.deliver(NEW, applications_of(NEW, 60))
        assert incidents.open_incidents(copied.journal("operations")) == []
        assert copied.materialize("decisions", NEW).success
        assert len(decisions(copied, NEW)) > 50

    def test_without_a_champion_nothing_is_decided(self, copied):
        copied.deliver(NEW, applications_of(NEW))
        copied.instance.wipe_assets([dg.AssetKey(["lender", "champion"])])
        result = copied.materialize("decisions", NEW)
        assert not result.success
        assert "there is no champion yet" in raised(result)


def test_a_decision_is_named_by_the_payload_that_the_table_holds(lender):
    rows = lender.warehouse.query("select payload from lender.raw_applications where batch_id like ?", [f"{PLAIN}%"])
    names = {
        decision_id("lender", json.loads(text)["application_id"], sha256_hex(text.encode())) for text in rows["payload"]
    }
    assert {entry.key for entry in decisions(lender, PLAIN)} == names
