"""From a decision to all that is behind it, from a fault to all that it touched, and a log whose every wound shows."""

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import httpx
import pandas as pd
import pytest

from mlops_assets.credit_risk import incidents, tracing
from mlops_assets.credit_risk._trace_links import plain
from mlops_assets.credit_risk.api import PATH, service_of
from mlops_assets.credit_risk.settling import settle
from mlops_assets.credit_risk.tracing import Trace
from mlops_assets.credit_risk.witnesses import ENTRIES, HEAD, witnesses
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.serving import ServiceSettings, in_background
from tests.credit_risk.decided_world import (
    BOOSTED,
    EDGES,
    GBM,
    GOOD,
    NEW,
    PLAIN,
    RISKY,
    SCORECARD,
    World,
    applications_of,
    raised,
    request_of,
    texts,
)

LINKS = [
    "decision", "reasons", "application", "batch", "model", "training set", "approval", "checks", "policy", "code",
    "log",
]  # fmt: skip


def linked(trace: Trace, link: str) -> dict[str, Any]:
    return dict(trace.links[link])


def all_of(trace: Trace, link: str, name: str) -> list[Any]:
    return [value for each, value in trace.links[link] if each == name]


def edge(world: World, application: str) -> Trace:
    (trace,) = world.tracer().trace(application)
    return trace


class TestTrace:
    def test_every_link_of_a_batch_decision(self, lender):
        entry = lender.log().find("E001")[0]
        body, version, context = (
            entry.body,
            lender.version(SCORECARD),
            lender.log().context_of(entry.body["context_sha256"]),
        )
        (trace,) = lender.tracer().trace(body["decision_id"])
        assert list(trace.links) == LINKS
        assert trace.decision_id == body["decision_id"]
        decided = linked(trace, "decision")
        assert decided["what"] == "reject by rule above_cut"
        assert decided["points"] == body["result"]["points"]
        assert decided["default probability"].endswith(f"({body['result']['pd']})")
        reasons = linked(trace, "reasons")
        assert list(reasons) == [reason["theme"] for reason in body["result"]["reasons"]]
        assert all(reason["text"] in reasons[reason["theme"]] for reason in body["result"]["reasons"])
        application = linked(trace, "application")
        assert application["payload sha256"] == body["payload_sha256"]
        assert application["source"] == f"{lender.file(EDGES)}, row {body['source']['row']}"
        assert "annual_income 19000 (0x1." in application["features"]
        batch = linked(trace, "batch")
        assert (batch["id"], batch["status"], batch["run"]) == (body["batch_id"], "accepted", "run-ingest")
        model = linked(trace, "model")
        assert model["version"] == "lender.pd_model version 1 (scorecard)"
        assert (model["sha256"], model["trained by"], model["training run"]) == (version.sha256, "anna", "run-t")
        training = linked(trace, "training set")
        assert training["sha256"] == version.tags["training_set"]
        assert training["as_of"].startswith("2024-09-01")
        assert len(training["batches_sha256"]) == 64
        approval = linked(trace, "approval")
        assert (approval["verdict"], approval["by"], approval["reason"]) == ("promoted", "boris", "the card is read")
        assert linked(trace, "checks") == {"": "2 of 3 passed", "shadow": "not_assessed: no live data"}
        assert context["policy"]["version"] in linked(trace, "policy")[""]
        assert {"package_sha256", "environment_sha256", "lightgbm"} <= set(linked(trace, "code"))
        log = linked(trace, "log")
        assert (log["entry"], log["sha256"], log["previous"]) == (entry.number, entry.sha256, entry.previous_sha256)
        assert log["run"] == context["run_id"]

    def test_it_can_be_shown_as_rows_of_text(self, lender):
        rows = edge(lender, "E001").rows()
        assert all(isinstance(name, str) and isinstance(text, str) for name, text in rows)
        assert ("decision: what", "reject by rule above_cut") in rows
        assert len({name.split(":")[0] for name, _ in rows}) == len(LINKS)

    def test_a_quarantined_row_tells_every_rule_it_broke(self, lender):
        trace = edge(lender, "E011")  # a negative income
        broken = all_of(trace, "application", "broken rule")
        assert broken == [
            "annual_income_in_range: '-42000', 9600 to 600,000",
            "annual_income_over_loan_amount_in_range: '-42000', annual_income / loan_amount: 0.25 to 1000",
        ]
        assert trace.links["reasons"] == [("", "none")]

    def test_an_id_with_two_contents_shows_both_and_what_differs(self, lender):
        first, second = lender.tracer().trace("torn")
        assert all_of(first, "application", "refused by") == ["one_application_one_content"]
        assert all_of(second, "application", "changed since") == ["loan_amount: '9000' -> '9500'"]

    def test_an_outlier_tells_what_sets_it_apart(self, copied):
        found = [
            entry
            for entry in copied.log().journal.read("decision")
            if (entry.body["flags"]["outlier"] or {}).get("flagged")
        ]
        assert found
        (trace,) = copied.tracer().trace(found[0].body["decision_id"])
        assert (
            linked(trace, "application")["outlier"]
            == f"set apart by {found[0].body['flags']['outlier']['main_feature']}"
        )

    @pytest.mark.parametrize("by", ["application", "decision"])
    def test_a_corrected_delivery_names_what_changed(self, copied, by):
        frame = applications_of(NEW)
        copied.deliver(NEW, frame)
        copied.decide(NEW)
        name = frame["application_id"][3]
        corrected = frame.copy()
        corrected.loc[3, "loan_amount"] = 33_000.0
        corrected.loc[3, "purpose"] = "medical"
        copied.deliver(NEW, corrected)
        copied.decide(NEW, run_id="run-2")
        first, second = copied.log().find(name)
        traces = copied.tracer().trace(name if by == "application" else second.body["decision_id"])
        assert [trace.decision_id for trace in traces][-1] == second.body["decision_id"]
        application = traces[-1].links["application"]
        assert ("earlier decision", first.body["decision_id"]) in application
        changed = all_of(traces[-1], "application", "changed since")
        assert [each.split(":")[0] for each in changed] == ["loan_amount", "purpose"]
        assert changed[0].endswith("-> '33000.0'")
        assert all_of(copied.tracer().trace(first.body["decision_id"])[0], "application", "changed since") == []

    def test_an_application_that_is_called_like_a_decision_hides_nothing(self, copied):
        victim = copied.log().find("E001")[0].body["decision_id"]
        frame = pd.concat([applications_of(NEW), applications_of(NEW).head(1).assign(application_id=victim)])
        copied.deliver(NEW, frame)
        copied.decide(NEW)
        traces = copied.tracer().trace(victim)
        assert [linked(trace, "application")["id"] for trace in traces] == ["E001", victim]

    def test_a_batch_under_an_incident_tells_its_story(self, copied):
        frame = applications_of(NEW, 60)
        incomes = pd.to_numeric(frame["annual_income"], errors="coerce") / 100
        batch = copied.deliver(NEW, frame.assign(annual_income=incomes))
        operations = copied.journal("operations")
        for each in incidents.open_incidents(operations):
            settle(copied.spec, operations, copied.warehouse, each.id, by="mary", reason="so it is", outcome="waived")
        copied.decide(NEW)
        told = all_of(edge(copied, frame["application_id"][0]), "batch", "incident")
        assert len(told) == len([each for each in incidents.history(operations) if each.batch_id == batch]) > 0
        assert all(each.endswith("waived so it is") for each in told)

    def test_nothing_is_called_like_that(self, lender):
        with pytest.raises(UserError, match="there is no decision 'nobody'"):
            lender.tracer().trace("nobody")

    def test_texts_that_look_like_numbers_are_shown_as_they_are(self, copied):
        assert plain("0x1.8p+1") == "3 (0x1.8p+1)"
        assert plain((-0.1).hex()) == f"-0.1 ({(-0.1).hex()})"
        for text in ("0xzz", "0x", "-0x1", "0x1.gp+1", "capital", None):
            assert plain(text) == text
        decider, log = copied.decider(GBM), copied.log()
        row = {**GOOD, "application_id": "odd", "region": "0xzz", "purpose": "0x10"}
        made = [
            {**each, "decided_at": f"{EDGES}T10:00:00+00:00"}
            for each in decider.records(decider.decide(request_of(texts([row]))))
        ]
        log.append(made, next(iter(log.of_period(BOOSTED))).body["context_sha256"])
        features = linked(edge(copied, "odd"), "application")["features"]
        assert "region 0xzz" in features
        assert "purpose 0x10" in features


class TestBrokenLinks:
    """What is lost says so in its place, and the rest of the chain is there."""

    def others(self, trace: Trace, *links: str) -> None:
        for link in LINKS:
            if link not in links:
                assert trace.links[link]
        assert linked(trace, "decision")["what"]

    def test_the_version(self, copied):
        shutil.rmtree(copied.place.home / "store" / "models" / "lender.pd_model" / "v1")
        trace = edge(copied, "E001")
        assert "has no version 1" in linked(trace, "model")[""]
        self.others(trace)
        assert linked(trace, "approval")["by"] == "boris"

    def test_the_version_is_another_now(self, copied):
        record = copied.place.home / "store" / "models" / "lender.pd_model" / "v1" / "version.json"
        other = json.loads((record.parent.parent / "v2" / "version.json").read_bytes())
        then = copied.version(SCORECARD).sha256
        record.write_bytes(canonical_json({**other, "version": 1}))
        model = linked(edge(copied, "E001"), "model")
        assert (model["sha256"], model["sha256 in the registry now"]) == (then, other["sha256"])

    def test_the_evidence(self, copied):
        (evidence,) = (copied.place.home / "store" / "models" / "lender.pd_model" / "v1" / "evidence").iterdir()
        evidence.write_bytes(evidence.read_bytes().replace(b"not_assessed", b"passed"))
        trace = edge(copied, "E001")
        assert "is broken: expected SHA-256" in linked(trace, "checks")[""]
        self.others(trace)

    def test_the_training_set(self, copied):
        shutil.rmtree(copied.place.home / "store" / "snapshots")
        trace = edge(copied, "E001")
        training = trace.links["training set"]
        assert training[0] == ("sha256", copied.version(SCORECARD).tags["training_set"])
        assert len(training) == 2
        self.others(trace)

    def test_the_warehouse(self, copied):
        copied.place.warehouse_file.unlink()
        trace = edge(copied, "E001")
        assert trace.links["batch"][1] == ("", "it is not in the warehouse")
        self.others(trace)

    def test_the_champions_history(self, copied):
        copied.instance.wipe_assets([dg.AssetKey(["lender", "champion"])])
        trace = edge(copied, "E001")
        assert trace.links["approval"] == [("", "it never served")]
        assert trace.links["checks"] == [("", "no evidence is recorded")]
        self.others(trace)


class TestOverHttp:
    @pytest.fixture
    def served(self, copied: World) -> Iterator[httpx.Client]:
        app = service_of(copied.spec, copied.place, copied.instance, ServiceSettings(), poll_seconds=0.05)
        with in_background(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            deadline = time.monotonic() + 60
            while client.get("/ready").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield client

    def test_every_link_of_a_decision_over_http_and_its_replay(self, copied, served):
        features = {name: (RISKY | {}).get(name, GOOD[name]) for name in copied.spec.features}
        answer = served.post(PATH, json={"application_id": "web-1", "applicant_id": "W", "features": features})
        assert answer.status_code == 201
        (trace,) = copied.tracer().trace("web-1")
        assert list(trace.links) == LINKS
        assert trace.decision_id == answer.json()["decision_id"]
        assert trace.links["batch"] == [("", "none: it came by api")]
        assert linked(trace, "decision")["channel"] == "api"
        assert linked(trace, "model")["version"] == "lender.pd_model version 2 (gbm)"
        assert linked(trace, "log")["run"] == "service"
        application = linked(trace, "application")
        assert application["source"] is None
        assert application["request_id"] == answer.headers["x-request-id"]
        assert "caller" in application
        assert copied.tracer().replay("web-1").equal == 1
        (touched,) = copied.tracer().impact(model=GBM).frame.query("channel == 'api'").itertuples()
        assert touched.application_id == "web-1"


class TestImpact:
    @pytest.mark.parametrize(("number", "days"), [(SCORECARD, (PLAIN, EDGES)), (GBM, (BOOSTED,))])
    def test_of_a_model(self, lender, number, days):
        found = lender.tracer().impact(model=number)
        keys = [entry.key for day in days for entry in lender.log().of_period(day)]
        assert found.frame["decision_id"].tolist() == keys
        assert found.what == f"lender.pd_model version {number}"
        rows = dict(found.rows())
        assert rows["decisions"] == f"{len(keys)}"
        assert rows["periods"] == f"{days[0]} to {days[-1]}"
        counted = sum(int(part.rsplit(" ", 1)[1]) for part in rows["decision"].split(", "))
        assert counted == len(keys)

    def test_of_a_batch(self, lender):
        batch = next(iter(lender.log().of_period(EDGES))).body["batch_id"]
        assert set(lender.tracer().impact(batch=batch).frame["period"]) == {EDGES}
        assert lender.tracer().impact(batch="2024-01-01-000000000000").rows()[1] == ("decisions", "0")

    @pytest.mark.parametrize(
        ("rule", "applications"),
        [
            ("insufficient_file", None),
            ("annual_income_in_range", {"E011"}),
            ("one_application_one_content", {"torn"}),
            ("not_a_number", {"E014", "E015", "E016"}),
            ("no_such_rule", set()),
        ],
    )
    def test_of_a_rule(self, lender, rule, applications):
        found = lender.tracer().impact(rule=rule)
        touched = set(found.frame["application_id"])
        if applications is None:
            assert touched
            assert set(found.frame["rule"]) == {rule}
        else:
            assert {each for each in touched if not each.startswith("A")} == applications

    def test_of_a_version_that_never_was(self, lender):
        with pytest.raises(UserError, match="has no version 9"):
            lender.tracer().impact(model=9)


class TestRescore:
    @pytest.fixture
    def rolled_back(self, copied: World) -> World:
        copied.history.rollback(SCORECARD, by="mary", reason="complaints")
        return copied

    def test_old_and_new_stand_side_by_side(self, rolled_back):
        before = {entry.key: entry.text for entry in rolled_back.log().journal.read("decision")}
        found = rolled_back.tracer().rescore(model=GBM, by="mary", reason="the version was rolled back")
        days = list(rolled_back.log().of_period(BOOSTED))
        assert found.version == SCORECARD
        assert found.frame["decision_id"].tolist() == [entry.key for entry in days]
        assert set(found.frame["model_version_before"]) == {"2"}
        assert set(found.frame["model_version_after"]) == {"1"}
        for row, entry in zip(found.frame.itertuples(), days, strict=True):
            result = entry.body["result"]
            assert (row.decision_before, row.rule_before) == (result["decision"], result["rule"])
            assert pd.isna(row.pd_before) if result["pd"] is None else row.pd_before == float.fromhex(result["pd"])
        assert found.changed["decision_before"].ne(found.changed["decision_after"]).all()
        assert len(found.changed) < len(found.frame)
        rows = dict(found.rows())
        assert rows["re-scored"] == str(len(days))
        assert rows["changed"] == str(len(found.changed))
        # What was decided stands, byte for byte.
        assert {entry.key: entry.text for entry in rolled_back.log().journal.read("decision")} == before
        assert rolled_back.tracer().verify_log() == []

    def test_the_new_side_is_what_the_champion_decides(self, rolled_back):
        found = rolled_back.tracer().rescore(model=GBM, by="mary", reason="rolled back")
        decider = rolled_back.decider(SCORECARD)
        for entry in rolled_back.log().of_period(BOOSTED):
            body = entry.body
            refused = {0: body["flags"]["refused"]} if body["flags"]["refused"] else {}
            request = request_of(
                [canonical_json(body["payload"]).decode()], BOOSTED, batch_id=body["batch_id"], refused=refused
            )
            (record,) = decider.records(decider.decide(request))
            row = found.frame.set_index("decision_id").loc[entry.key]
            assert (row["decision_after"], row["rule_after"]) == (
                record["result"]["decision"],
                record["result"]["rule"],
            )
            (again,) = rolled_back.log().rescored(entry.key)
            assert again.body["result"] == record["result"]
            assert again.body["original_sha256"] == entry.sha256

    def test_once_more_appends_nothing_and_tells_the_same(self, rolled_back):
        first = rolled_back.tracer().rescore(model=GBM, by="mary", reason="rolled back")
        head = rolled_back.log().head()
        again = rolled_back.tracer().rescore(model=GBM, by="mary", reason="rolled back")
        assert rolled_back.log().head() == head
        pd.testing.assert_frame_equal(first.frame, again.frame)

    def test_it_shows_in_the_trace(self, rolled_back):
        rolled_back.tracer().rescore(model=GBM, by="mary", reason="rolled back")
        entry = next(iter(rolled_back.log().of_period(BOOSTED)))
        (trace,) = rolled_back.tracer().trace(entry.key)
        ((_, text),) = trace.links["re-scored"]
        assert text.endswith(": rolled back (mary)")

    def test_one_that_was_interrupted_is_finished(self, rolled_back, monkeypatch):
        monkeypatch.setattr(tracing, "_CHUNK", 7)
        real, calls = rolled_back.log().__class__.rescore, []

        def dies(self: Any, *given: Any) -> int:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return int(real(self, *given))

        monkeypatch.setattr(rolled_back.log().__class__, "rescore", dies)
        with pytest.raises(KeyboardInterrupt):
            rolled_back.tracer().rescore(model=GBM, by="mary", reason="rolled back")
        found = rolled_back.tracer().rescore(model=GBM, by="mary", reason="rolled back")
        assert len(found.frame) == len(list(rolled_back.log().of_period(BOOSTED)))
        assert found.frame["decision_id"].is_unique

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"model": SCORECARD}, "is the champion: it would decide the same again"),
            ({"model": 9}, "has no version 9"),
            ({"by": " "}, "the name is empty"),
            ({"reason": ""}, "the reason is empty"),
        ],
    )
    def test_what_is_refused(self, rolled_back, given, words):
        before = rolled_back.log().head()
        with pytest.raises(UserError, match=words):
            rolled_back.tracer().rescore(**{"model": GBM, "by": "mary", "reason": "because", **given})
        assert rolled_back.log().head() == before

    def test_a_version_that_decided_nothing(self, rolled_back):
        version = rolled_back.version(GBM)
        folder = rolled_back.registry.fetch(version, into=rolled_back.home / "other")
        (folder / "note.txt").write_text("another content")
        rolled_back.registry.register(
            "lender.pd_model", folder, params={}, metrics={}, parts={}, tags=dict(version.tags)
        )
        with pytest.raises(UserError, match="version 3 has decided nothing"):
            rolled_back.tracer().rescore(model=3, by="mary", reason="because")


class TestProductionAt:
    def test_who_served_when(self, copied):
        records = copied.history.records()
        moments = [record.logged_at for record in records if record.to_version is not None]
        first, second = moments
        at = copied.history.production_at
        assert at(first - timedelta(seconds=1)) is None
        assert at(first).version == at(second - timedelta(microseconds=1)).version == SCORECARD
        assert at(second).version == at(datetime.now(UTC)).version == GBM
        copied.history.rollback(SCORECARD, by="mary", reason="complaints")
        assert at(datetime.now(UTC)).version == SCORECARD
        assert at(second).version == GBM

    def test_every_decision_was_made_by_what_served_then(self, lender):
        for entry in lender.log().journal.read("decision"):
            served = lender.history.production_at(datetime.fromisoformat(entry.body["decided_at"]))
            context = lender.log().context_of(entry.body["context_sha256"])
            assert served.sha256 == context["model"]["sha256"]


class TestTheLogsWounds:
    def changed(self, world: World, sql: str, *parameters: Any) -> None:
        path = world.journal("decisions").path
        with closing(sqlite3.connect(path)) as connection, connection:
            for (name,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
                connection.execute(f'drop trigger "{name}"')
            connection.execute(sql, parameters)

    def entry(self, world: World) -> Any:
        return world.log().find("E001")[0]

    def test_a_sound_log_has_none_and_every_run_is_a_witness(self, lender):
        assert lender.tracer().verify_log() == []
        noted = list(witnesses(lender.instance, lender.spec.name))
        assert len(noted) == 3
        assert noted[0] == lender.log().head()
        event = lender.instance.get_latest_materialization_event(dg.AssetKey(["lender", "decisions"]))
        metadata = event.asset_materialization.metadata
        assert (metadata[ENTRIES].value, metadata[HEAD].value) == noted[0]

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text.replace('"decision":"reject"', '"decision":"accept"'),
            lambda text: text.replace('"annual_income":"19000"', '"annual_income":"91000"'),
            lambda text: text.replace('"reasons":[{', '"reasons":[ {'),
        ],
        ids=["a decision", "a payload", "a space"],
    )
    def test_an_entry_that_was_changed_by_hand_is_named(self, copied, change):
        entry = self.entry(copied)
        text = change(entry.text)
        assert text != entry.text
        self.changed(copied, "update entries set body = ? where number = ?", text, entry.number)
        problems = [str(problem) for problem in copied.tracer().verify_log()]
        assert f"entry {entry.number} was changed: its content does not have its SHA-256 any more" in problems
        # And the next run of the day appends nothing to it.
        head = copied.log().head()
        copied.deliver(NEW, applications_of(NEW))
        result = copied.materialize("decisions", NEW)
        assert "nothing is appended to a log that was changed" in raised(result)
        assert copied.log().head() == head

    def test_a_decision_that_is_listed_under_another_rule(self, copied):
        entry = self.entry(copied)
        self.changed(copied, "delete from entry_index where number = ?", entry.number)
        assert any(problem.number == entry.number for problem in copied.tracer().verify_log())

    def cut(self, world: World, number: int) -> None:
        """Cut the end off and make the journal itself believe that it ends there."""
        last = next(iter(world.log().journal.read(after_number=number - 1, limit=1)))
        self.changed(world, "delete from entries where number > ?", number)
        self.changed(world, "delete from entry_index where number > ?", number)
        self.changed(world, "update last_entry set number = ?, sha256 = ?", number, bytes.fromhex(last.sha256))

    def test_an_end_that_was_cut_off_is_found_by_the_witness(self, copied):
        head = copied.log().head()
        self.cut(copied, head.number - 5)
        # The journal alone cannot know, but for the guards that were taken away with the end.
        alone = {str(problem) for problem in copied.log().verify()}
        assert not any("missing" in problem for problem in alone)
        problems = {str(problem) for problem in copied.tracer().verify_log()}
        told = (
            f"entry {head.number} is missing: it was witnessed, and the journal now ends with entry {head.number - 5}"
        )
        assert told in problems

    def test_also_after_others_were_written_in_its_place(self, copied):
        head = copied.log().head()
        self.cut(copied, head.number - 5)
        copied.deliver(NEW, applications_of(NEW, 40))
        copied.decide(NEW)  # as the service would, which does not stop for its log
        result = copied.materialize("decisions", NEW)
        assert copied.log().head().number > head.number
        assert any(str(problem).startswith(f"entry {head.number} is not the one that was witnessed")
                   for problem in copied.tracer().verify_log())  # fmt: skip
        assert not result.success
        assert f"entry {head.number} is not the one that was witnessed" in raised(result)

    def test_a_chain_that_was_hashed_anew_is_found_by_the_witness(self, copied):
        """Whoever writes a whole new journal with one decision changed has to change Dagster's event log too."""
        journal = copied.journal("decisions")
        entries = list(journal.read())
        journal.close()
        path = journal.path
        for part in path.parent.glob("decisions.db*"):
            part.unlink()
        forged = copied.journal("decisions")
        for entry in entries:
            text = entry.text.replace('"decision":"reject"', '"decision":"accept"')
            index = {name: value.replace("reject", "accept") for name, value in entry.index.items()}
            forged.append(entry.kind, json.loads(text), entry.key, entry.subject, index)
        assert copied.log().verify() == []
        assert any("is not the one that was witnessed" in str(problem) for problem in copied.tracer().verify_log())

    def test_many_runs_are_all_asked(self, copied, monkeypatch):
        """Witnesses come in pages."""
        real: Callable[..., Any] = copied.instance.fetch_materializations

        def pages(key: Any, limit: int, cursor: str | None = None) -> Any:
            return real(key, limit=1, cursor=cursor)

        monkeypatch.setattr(copied.instance, "fetch_materializations", pages)
        assert list(witnesses(copied.instance, copied.spec.name)) == list(witnesses(copied.instance, copied.spec.name))
        assert len(list(witnesses(copied.instance, copied.spec.name))) == 3


class TestReplayOfATime:
    def test_a_range_is_made_again(self, lender):
        entries = list(lender.log().journal.read("decision"))
        tracer = lender.tracer()
        assert tracer.replay().equal == len(entries)
        last_run = next(iter(lender.log().of_period(BOOSTED))).at
        assert tracer.replay(since=last_run).compared == len(list(lender.log().of_period(BOOSTED)))
        assert tracer.replay(until=entries[0].at).compared == 0
        assert tracer.replay("E001").equal == 1
        assert tracer.replay("torn").equal == 2
        with pytest.raises(UserError, match="there is no decision"):
            tracer.replay("nobody")
