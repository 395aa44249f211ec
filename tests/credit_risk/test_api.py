"""Decisions over real HTTP: the same as a batch's, made once, with every refusal told and no champion missed."""

import json
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mlops_assets.credit_risk import incidents, pipeline, training
from mlops_assets.credit_risk._api_applications import Application, application_model, read
from mlops_assets.credit_risk._api_decisions import Answer, Champion, Desk
from mlops_assets.credit_risk.api import PATH, champion_holder, create_api, service_of
from mlops_assets.credit_risk.deciding import Decider, Request
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.replaying import Replayer
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import ModelVersion, Registry, Verdict
from mlops_assets.foundation.serving import (
    ModelHolder,
    ModelIdentity,
    Refused,
    ServiceSettings,
    in_background,
)
from mlops_assets.foundation.snapshots import SnapshotStore
from tests.credit_risk.small_loans import RAW, small_loans, small_spec

SECRET = "zyzzyva-of-the-applicant"
NUMERIC = [
    {**RAW["numeric"][0], "label": "income a year", "replace": {"none": "0"}},
    RAW["numeric"][1],
    {**RAW["numeric"][2], "nullable": False, "high": 100_000},
]
SPEC = small_spec(
    numeric=NUMERIC,
    categorical=[{**RAW["categorical"][0], "levels": ["A", "B", "C"]}, RAW["categorical"][1]],
    protected=[{"name": "sex"}, {"name": "age", "edges": [26]}],
    ratios=[{"numerator": "amount", "denominator": "income", "high": 50}],
)
SETTINGS = ServiceSettings(rate_per_second=None)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)


def bodies(count: int, prefix: str) -> list[dict[str, Any]]:
    """Applications as callers send them, with the missing values of the small world."""
    loans = small_loans(count, seed=11)
    result = []
    for at, row in enumerate(loans[["income", "debts", "amount", "region", "purpose"]].to_dict("records")):
        features = {name: None if isinstance(v, float) and np.isnan(v) else v for name, v in row.items()}
        result.append({"application_id": f"{prefix}-{at}", "features": features})
    return result


def body(application: str, **features: Any) -> dict[str, Any]:
    known = {"income": 30_000, "debts": 2, "amount": 4_000, "region": "A", "purpose": "car"}
    return {"application_id": application, "features": {**known, **features}}


@dataclass
class World:
    """A registry with a scorecard (1) and a boosted model (2), a Dagster instance, and the journals of one system."""

    spec: Spec
    place: Environment
    registry: Registry
    versions: Mapping[int, ModelVersion]
    instance: dg.DagsterInstance

    def open_journal(self, name: str) -> Journal:
        resources: Mapping[str, Any] = self.place.resources()
        journal: Journal = resources["journals"].open(self.spec.name, name)
        return journal

    def propose(self, number: int) -> None:
        history = pipeline.history_of(self.spec, self.instance, self.registry)
        version = self.versions[number]
        evidence = self.registry.attach_evidence(version, {"auc": 0.7, "version": number})
        record = history.next_record(Verdict("proposed", ("better",)), version, by="run 1", evidence_sha256=evidence)
        key = dg.AssetKey([self.spec.name, "champion"])
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=record.metadata()))

    def approve(self, number: int) -> None:
        pipeline.history_of(self.spec, self.instance, self.registry).approve(number, by="boris", reason="sound")

    def move_to(self, number: int) -> None:
        """Make one of the two the champion; it serves already or served before."""
        history = pipeline.history_of(self.spec, self.instance, self.registry)
        current = history.current()
        if current is None or current.version != number:
            history.rollback(number, by="boris", reason="to compare")

    def decider(self, number: int) -> Decider:
        return pipeline.load_decider(self.spec, self.registry, self.versions[number])

    def log(self) -> DecisionLog:
        return DecisionLog(self.open_journal("decisions"))

    def app(self) -> Any:
        return service_of(self.spec, self.place, self.instance, SETTINGS, poll_seconds=0.05)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment("embedded", tmp_path_factory.mktemp("home"))


def registry_of(place: Environment) -> Registry:
    resources: Mapping[str, Any] = place.resources()
    registry: Registry = resources["models"].open()
    return registry


@pytest.fixture(scope="module")
def versions(place: Environment) -> Mapping[int, ModelVersion]:
    loans = small_loans()
    cut = {"train": loans.iloc[:1_200], "calibrate": loans.iloc[1_200:1_600], "test": loans.iloc[1_600:]}
    snapshot = SnapshotStore(place.home / "snapshots").save("small/training_set", cut, {"as_of": "2024-03-31"})
    registry = registry_of(place)
    tags = {"trained_by": "anna", "run_id": "run-1"}
    made = [train(SPEC, snapshot, registry, tags) for train in (training.train_scorecard, training.train_gbm)]
    return {version.version: version for version in made}


@contextmanager
def new_world(place: Environment, versions: Mapping[int, ModelVersion]) -> Iterator[World]:
    place.dagster_home.mkdir(parents=True)
    with dg.DagsterInstance.local_temp(str(place.dagster_home)) as instance:
        yield World(SPEC, place, registry_of(place), versions, instance)


@pytest.fixture(scope="module")
def world(place: Environment, versions: Mapping[int, ModelVersion]) -> Iterator[World]:
    """A world in which both models were approved, the scorecard first; the boosted one serves."""
    with new_world(place, versions) as made:
        for number in (1, 2):
            made.propose(number)
            made.approve(number)
        yield made


@pytest.fixture(scope="module")
def served(world: World) -> Iterator[httpx.Client]:
    with in_background(world.app()) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        eventually(lambda: client.get("/ready").status_code == 200)
        yield client


@pytest.fixture
def client(world: World, served: httpx.Client) -> httpx.Client:
    """The service with the scorecard as champion."""
    serve_version(world, served, 1)
    return served


def serve_version(world: World, client: httpx.Client, number: int) -> None:
    world.move_to(number)
    eventually(lambda: client.get("/ready").json()["models"][0]["version"] == str(number))


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    return error


def problems_of(response: httpx.Response) -> dict[str, str]:
    return {detail["field"]: detail["problem"] for detail in error_of(response)["details"]}


def records_of(log: DecisionLog, application: str) -> list[Mapping[str, Any]]:
    return [entry.body for entry in log.find(application)]


class TestDecision:
    def test_a_decision_tells_all_that_a_caller_needs_and_lies_in_the_log(self, world, client):
        response = client.post(PATH, json=body("new-1", debts=9, region="B", amount=10_000))
        told = response.json()
        assert response.status_code == 201
        assert response.headers["location"] == f"{PATH}/{told['decision_id']}"
        (record,) = records_of(world.log(), "new-1")
        assert record["channel"] == told["channel"] == "api"
        assert record["decision_id"] == told["decision_id"]
        assert datetime.fromisoformat(record["decided_at"]) == datetime.fromisoformat(told["decided_at"])
        assert record["result"]["pd"] == float(told["probability_of_default"]).hex()
        assert record["result"]["points"] == told["points"]
        assert told["decision"] == record["result"]["decision"]
        assert told["rule_text"].endswith(".")
        assert told["repeated"] is False
        assert record["asked"] == {"caller": "local", "request_id": response.headers["x-request-id"]}
        assert [reason["text"] for reason in told["reasons"]] == [r["text"] for r in record["result"]["reasons"]]
        assert told["reasons"][0]["theme"] in {"means", "debts", "terms"}
        version = world.versions[1]
        assert told["decided_by"] == {
            "model": "small.pd_model", "version": 1, "sha256": version.sha256, "kind": "scorecard",
            "policy": world.decider(1).policy.version, "reasons": world.decider(1).table.version,
            "features": world.decider(1).model.schema.version,
        }  # fmt: skip
        assert told["period"] == datetime.now(UTC).date().isoformat()
        assert world.log().verify() == []

    @pytest.mark.parametrize("number", [1, 2])
    def test_one_by_one_gives_the_bits_of_a_batch(self, world, served, number):
        serve_version(world, served, number)
        sent = bodies(40, f"batch-{number}")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda each: served.post(PATH, json=each).json(), sent))
        rows = [{"application_id": each["application_id"], **each["features"]} for each in sent]
        at = {"applicant_id": None, "applied_at": "2024-05-01T00:00:00Z"}
        request = Request(
            [canonical_json({**row, **at}).decode() for row in rows], datetime(2024, 5, 2, tzinfo=UTC), "2024-05-01",
            "batch", "2024-05-02T00:00:00+00:00",
        )  # fmt: skip
        decider = world.decider(number)
        batch = [record["result"] for record in decider.records(decider.decide(request))]
        assert [each["decision"] for each in answers] == [each["decision"] for each in batch]
        assert [each["rule"] for each in answers] == [each["rule"] for each in batch]
        assert [float(each["probability_of_default"]).hex() for each in answers] == [each["pd"] for each in batch]
        assert [each["points"] for each in answers] == [each["points"] for each in batch]
        assert [[r["text"] for r in each["reasons"]] for each in answers] == [
            [r["text"] for r in each["reasons"]] for each in batch
        ]
        assert {each["decision"] for each in answers} >= {"accept", "reject"}

    def test_what_was_recorded_is_enough_to_decide_again(self, world, client):
        for number in (1, 2):
            serve_version(world, client, number)
            for each in bodies(5, f"again-{number}"):
                client.post(PATH, json=each)
            timed = {**body(f"timed-{number}", income=None), "applied_at": "2024-06-01T10:00:00+02:00"}
            assert client.post(PATH, json=timed).status_code == 201
        log = world.log()
        replayed = Replayer(log, world.registry).replay(log.journal.read("decision"))
        assert replayed.compared >= 12
        assert replayed.differing == []

    def test_a_decision_can_be_asked_for_again_whatever_serves_now(self, world, client):
        told = client.post(PATH, json=body("kept-1")).json()
        serve_version(world, client, 2)
        response = client.get(f"{PATH}/{told['decision_id']}")
        assert response.status_code == 200
        assert response.json() == {**told, "repeated": True}

    @pytest.mark.parametrize("name", ["0" * 32, "x", "0" * 33, "A" * 32, "..%2f..%2fetc", "%00"])
    def test_a_decision_that_is_not_there_is_not_found(self, client, name):
        response = client.get(f"{PATH}/{name}")
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")

    def test_an_id_may_be_a_number_and_is_trimmed(self, world, client):
        assert client.post(PATH, json={**body("x"), "application_id": 4711}).json()["application_id"] == "4711"
        assert client.post(PATH, json={**body("x"), "application_id": " 4711 "}).json()["repeated"] is True


class TestRepeats:
    def test_the_same_content_gets_the_same_decision_in_any_notation(self, world, client):
        first = client.post(PATH, json=body("same-1", income=30_000, purpose=None))
        assert first.status_code == 201
        other_notations: Sequence[dict[str, Any]] = [
            body("same-1", income=30_000, purpose=None),
            body("same-1", income=30_000.0, purpose=None),
            body("same-1", income="30000.0", purpose=None),
            body("same-1", income=" 3e4 ", purpose=""),
            {**body("same-1", purpose=None), "applicant_id": None},
            {**body("same-1", purpose=None), "applied_at": records_of(world.log(), "same-1")[0]["received_at"]},
        ]
        missing = body("same-1")
        del missing["features"]["purpose"]
        for sent in (*other_notations, missing):
            response = client.post(PATH, json=sent)
            assert response.status_code == 200, response.text
            assert response.json() == {**first.json(), "repeated": True}
            assert response.headers["location"] == first.headers["location"]
        assert len(records_of(world.log(), "same-1")) == 1

    def test_times_that_are_named_are_content_too(self, world, client):
        first = client.post(PATH, json={**body("time-1"), "applied_at": "2024-06-01T10:00:00+02:00"})
        assert first.status_code == 201
        same = client.post(PATH, json={**body("time-1"), "applied_at": "2024-06-01T08:00:00Z"})
        assert (same.status_code, same.json()["decision_id"]) == (200, first.json()["decision_id"])
        for sent in (body("time-1"), {**body("time-1"), "applied_at": "2024-06-01T10:00:00Z"}):
            assert client.post(PATH, json=sent).status_code == 409

    @pytest.mark.parametrize(
        "change", [{"income": 30_001}, {"income": None}, {"purpose": None}, {"region": "B"}, {"debts": -9}]
    )
    def test_another_content_under_the_same_id_is_refused(self, world, client, change):
        first = client.post(PATH, json=body("other-1")).json()
        response = client.post(PATH, json=body("other-1", **change))
        error = error_of(response)
        assert (response.status_code, error["code"]) == (409, "another_content")
        assert first["decision_id"] in error["details"][0]["problem"]
        assert len(records_of(world.log(), "other-1")) == 1

    def test_a_value_instead_of_none_is_another_content(self, client):
        assert client.post(PATH, json=body("none-1", income=None)).status_code == 201
        assert client.post(PATH, json=body("none-1", income=1)).status_code == 409
        assert client.post(PATH, json=body("none-1", income="none")).status_code == 409, "a text that stands for 0"
        assert client.post(PATH, json=body("zero-1", income="none", amount=0)).status_code == 201
        assert client.post(PATH, json=body("zero-1", income=0, amount=0)).status_code == 200

    def test_the_decision_of_a_batch_is_repeated_too(self, world, client):
        row = {**body("")["features"], "application_id": "csv-1", "applicant_id": None, "applied_at": "2024-05-01"}
        log, decider = world.log(), world.decider(2)
        texts = {name: None if value is None else str(value) for name, value in row.items()}
        request = Request(
            [canonical_json(texts).decode()], datetime(2024, 5, 2, tzinfo=UTC), "2024-05-01", "batch", "2024-05-02",
            batch_id="2024-05-01-abc",
        )  # fmt: skip
        context = log.context(pipeline.decision_context(world.spec, decider, world.versions[2], "run 7"))
        made = [
            {**each, "decided_at": "2024-05-02T00:00:00+00:00"} for each in decider.records(decider.decide(request))
        ]
        log.append(made, context)
        response = client.post(PATH, json={**body("csv-1"), "applied_at": "2024-05-01T00:00:00Z"})
        assert response.status_code == 200
        assert (response.json()["channel"], response.json()["decided_by"]["kind"]) == ("batch", "gbm")
        assert client.post(PATH, json={**body("csv-1", debts=3), "applied_at": "2024-05-01"}).status_code == 409

    def test_one_application_sent_by_many_at_once_is_decided_once(self, world, client):
        with ThreadPoolExecutor(16) as pool:
            responses = list(pool.map(lambda _: client.post(PATH, json=body("race-1")), range(48)))
        assert Counter(response.status_code for response in responses) == {201: 1, 200: 47}
        assert len({response.json()["decision_id"] for response in responses}) == 1
        assert len(records_of(world.log(), "race-1")) == 1

    def test_two_contents_at_once_give_one_decision_and_one_refusal(self, world, client):
        def ask(debts: int) -> int:
            return client.post(PATH, json=body("race-2", debts=debts)).status_code

        with ThreadPoolExecutor(16) as pool:
            statuses = Counter(pool.map(ask, [1, 2] * 16))
        assert statuses == {201: 1, 200: 15, 409: 16}
        assert len(records_of(world.log(), "race-2")) == 1

    def test_many_at_once_share_transactions_and_get_their_own_decisions(self, world, client):
        head = world.log().head().number
        sent = bodies(64, "many")
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda each: client.post(PATH, json=each).json(), sent))
        assert [each["application_id"] for each in answers] == [each["application_id"] for each in sent]
        log = world.log()
        entries = list(log.journal.read("decision", after_number=head))
        assert {entry.subject for entry in entries} == {each["application_id"] for each in sent}
        assert len({entry.at for entry in entries}) < len(entries), "one transaction has one time"
        assert log.verify() == []


class TestRefusals:
    def test_everything_that_is_wrong_with_the_fields_is_named_at_once(self, client, caplog, world):
        sent = {
            **body("", incom=1, debts=True, amount=[1, 2], sex=SECRET, region={"a": SECRET}),
            "age": SECRET,
            "amount": 3,
            "comment": SECRET,
        }
        with caplog.at_level(logging.DEBUG):
            response = client.post(PATH, json=sent)
        assert response.status_code == 422
        assert problems_of(response) == {
            "application_id": "is missing",
            "age": "is a protected attribute, which must not reach a decision",
            "amount": "is a feature",
            "comment": "is not known here",
            "features.incom": "is not known here",
            "features.sex": "is a protected attribute, which must not reach a decision",
            "features.debts": "is true or false",
            "features.amount": "is a list",
            "features.region": "is an object",
        }
        remedies = {detail["field"]: detail["remedy"] for detail in error_of(response)["details"]}
        assert remedies["features.incom"] == "leave it out, or write 'income' if that is meant."
        assert remedies["amount"] == "put it into features."
        assert SECRET not in response.text
        assert SECRET not in caplog.text
        assert "sex" not in caplog.text

    def test_nothing_of_a_refused_application_is_recorded(self, world, client):
        before = world.log().head()
        for sent in (body("no-1", sex=SECRET), body("no-1", amount=-1), body("no-1", unknown=SECRET)):
            assert client.post(PATH, json=sent).status_code == 422
        assert world.log().head() == before
        assert not any(SECRET.encode() in path.read_bytes() for path in (world.place.home / "journals").rglob("*.db*"))
        assert client.post(PATH, json=body("no-1")).status_code == 201, "a mended one is decided on"

    def test_every_rule_that_is_broken_is_told_with_value_and_bound(self, client):
        response = client.post(PATH, json=body("rule-1", amount=100_001, debts=-3, region="<b>"))
        assert error_of(response)["code"] == "invalid_application"
        assert problems_of(response)["features.amount"] == "is '100001', which breaks the rule amount_in_range"
        bounds = {detail["field"]: detail["remedy"] for detail in error_of(response)["details"]}
        assert bounds["features.amount"] == "it has to be 0 to 100,000."
        assert bounds["features.debts"] == "it has to be at least 0, or -9 (no file at the bureau)."
        assert "plain text" in bounds["features.region"]
        ratio = client.post(PATH, json=body("rule-2", income=10, amount=10_000))
        assert "amount / income: at most 50" in error_of(ratio)["details"][0]["remedy"]

    @pytest.mark.parametrize(
        ("change", "field", "problem"),
        [
            ({"amount": None}, "features.amount", "is missing"),
            ({"amount": " "}, "features.amount", "is missing"),
            ({"amount": "1.234,56"}, "features.amount", "is '1.234,56', which breaks the rule not_a_number"),
            ({"income": "n/a"}, "features.income", "is 'n/a', which breaks the rule not_a_number"),
            ({"region": "x" * 201}, "features.region", None),
            ({"region": "=cmd()"}, "features.region", "is '=cmd()', which breaks the rule region_not_plain"),
        ],
    )
    def test_a_value_that_cannot_be_read_or_is_missing_is_told(self, client, change, field, problem):
        response = client.post(PATH, json=body("read-1", **change))
        assert response.status_code == 422
        found = problems_of(response)
        assert list(found) == [field]
        assert problem in (None, found[field])

    @pytest.mark.parametrize("when", ["2999-01-01T00:00:00Z", "yesterday", 5])
    def test_a_time_that_is_none_or_in_the_future_is_told(self, client, when):
        response = client.post(PATH, json={**body("when-1"), "applied_at": when})
        assert response.status_code == 422
        assert list(problems_of(response)) == ["applied_at"]

    @pytest.mark.parametrize(
        ("sent", "field"),
        [([], "body"), ({}, "application_id"), ({"application_id": "a"}, "features"), ("a", "body"), (None, "body")],
    )
    def test_a_body_that_is_no_application_is_told(self, client, sent, field):
        response = client.post(PATH, json=sent)
        assert response.status_code == 422
        assert field in problems_of(response)

    def test_features_that_are_no_object_are_told(self, client):
        for features in (None, [], "x", 3):
            response = client.post(PATH, json={"application_id": "a", "features": features})
            assert response.status_code == 422
            assert list(problems_of(response)) == ["features"]

    def test_json_that_means_two_things_is_refused_before_it_is_read(self, client):
        text = json.dumps(body("json-1"))
        for sent in (text.replace('"debts": 2', '"debts": NaN'), text.replace('"debts": 2', '"debts": 2, "debts": 3')):
            response = client.post(PATH, content=sent, headers={"Content-Type": "application/json"})
            assert (response.status_code, error_of(response)["code"]) == (400, "invalid_json")

    @given(
        sent=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.text()
                    | st.sampled_from(["application_id", "features", "income", "sex", "field_0", "applied_at"]),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=12,
        )
    )
    def test_any_body_is_an_application_or_refused(self, sent):
        from pydantic import ValidationError

        try:
            found = read(SPEC, MODEL.model_validate(sent))
        except (Refused, ValidationError):
            return
        assert found.application_id
        assert set(found.row) == {"application_id", "applicant_id", "applied_at", *SPEC.features}
        assert json.loads(found.payload("2024-01-01")) == {
            **found.row,
            "applied_at": found.row["applied_at"] or "2024-01-01",
        }

    def test_a_feature_may_have_any_name(self):
        names = ["copy", "model_config", "json", "field_0", "class", "features"]
        spec = small_spec(numeric=[{"name": name, "theme": "terms"} for name in names], categorical=[], segments=())
        model = application_model(spec)
        sent = {"application_id": "a", "features": {name: at for at, name in enumerate(names)}}
        found = read(spec, model.model_validate(sent))
        assert {name: found.row[name] for name in names} == sent["features"]
        shown = model.model_json_schema()["$defs"]["Features"]["properties"]
        assert list(shown) == names

    def test_the_version_of_the_code_lists_is_asked_for_where_the_spec_names_one(self):
        spec = small_spec(data={"applications": {"kind": "sample"}, "code_list_version": "7"})
        model = application_model(spec)
        assert "code_list_version" in model.model_json_schema()["required"]
        found = read(spec, model.model_validate({**body("a"), "code_list_version": "7"}))
        assert json.loads(found.payload())["code_list_version"] == "7"
        with pytest.raises(Refused):
            read(SPEC, MODEL.model_validate({**body("a"), "code_list_version": "7"}))


MODEL = application_model(SPEC)


class TestIncidents:
    def test_nothing_new_is_decided_while_an_incident_is_open(self, world, client):
        known = client.post(PATH, json=body("before-1")).json()
        operations = world.open_journal("operations")
        opened = incidents.open_incident(
            operations, system="small", period="2024-05-01", batch_id="b1", rule="unit_shift", column="income"
        )
        before = world.log().head()
        response = client.post(PATH, json=body("during-1"))
        error = error_of(response)
        assert (response.status_code, error["code"]) == (503, "data_incident")
        assert response.headers["retry-after"] == "300"
        assert opened.id in error["message"]
        assert "unit_shift" in error["message"]
        assert world.log().head() == before
        assert client.post(PATH, json=body("before-1")).json() == {**known, "repeated": True}
        assert client.get(f"{PATH}/{known['decision_id']}").status_code == 200
        assert client.post(PATH, json=body("during-1", amount=-1)).status_code == 503
        incidents.acknowledge(operations, opened.id, by="clara", reason="the feed was mended", outcome="resolved")
        assert client.post(PATH, json=body("during-1")).status_code == 201


class TestChampion:
    def test_a_service_waits_for_an_approved_champion_and_then_follows_it(self, place, versions, tmp_path):
        # The same versions in another place, where nothing was approved or decided yet.
        elsewhere = Environment("embedded", tmp_path / "home")
        shutil.copytree(place.home / "store", elsewhere.home / "store")
        shutil.copyfile(place.home / "mlflow.db", elsewhere.home / "mlflow.db")
        with (
            new_world(elsewhere, versions) as world,
            in_background(world.app()) as url,
            httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
        ):

            def ask(name: str) -> httpx.Response:
                return client.post(PATH, json=body(name))

            assert client.get("/health").status_code == 200
            response = ask("a")
            assert (response.status_code, error_of(response)["code"]) == (503, "no_model")
            assert int(response.headers["retry-after"]) > 0
            assert client.get("/ready").status_code == 503
            world.propose(1)
            time.sleep(0.3)
            assert ask("a").status_code == 503, "proposed is not approved"
            world.approve(1)
            eventually(lambda: client.get("/ready").status_code == 200)
            first = ask("a").json()
            assert first["decided_by"]["kind"] == "scorecard"
            world.propose(2)
            time.sleep(0.3)
            assert ask("b").json()["decided_by"]["version"] == 1
            world.approve(2)
            eventually(lambda: client.get("/ready").json()["models"][0]["version"] == "2")
            assert ask("c").json()["decided_by"]["kind"] == "gbm"
            assert ask("a").json() == {**first, "repeated": True}
            assert client.get("/ready").json()["models"][0]["swaps"] == 1
            log = world.log()
            assert Counter(entry.body["context_sha256"] for entry in log.journal.read("decision")).total() == 3
            assert {log.context_of(r["context_sha256"])["model"]["version"] for r in records_of(log, "c")} == {2}

    def test_while_champions_change_every_decision_is_wholly_of_one(self, world, served):
        serve_version(world, served, 1)
        sent = bodies(120, "swap")
        rows = [{"application_id": each["application_id"], **each["features"]} for each in sent]
        at = {"applicant_id": None, "applied_at": "2024-05-01T00:00:00Z"}
        request = Request(
            [canonical_json({**row, **at}).decode() for row in rows], datetime(2024, 5, 2, tzinfo=UTC), "2024-05-01",
            "batch", "2024-05-02T00:00:00+00:00",
        )  # fmt: skip
        expected = {}
        for number in (1, 2):
            decider = world.decider(number)
            expected[number] = [each["result"] for each in decider.records(decider.decide(request))]
        done = threading.Event()

        def swap() -> None:
            number = 1
            while not done.is_set():
                number = 3 - number
                world.move_to(number)
                done.wait(0.1)

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            with ThreadPoolExecutor(6) as pool:
                responses = list(pool.map(lambda each: served.post(PATH, json=each), sent))
        finally:
            done.set()
            swapper.join()
        assert {response.status_code for response in responses} == {201}
        versions = Counter()
        for position, response in enumerate(responses):
            told = response.json()
            number = told["decided_by"]["version"]
            versions[number] += 1
            result = expected[number][position]
            assert float(told["probability_of_default"]).hex() == result["pd"]
            assert (told["points"], told["decision"]) == (result["points"], result["decision"])
            assert told["decided_by"]["sha256"] == world.versions[number].sha256
        assert set(versions) == {1, 2}, "the exchange was seen from outside"
        assert world.log().verify() == []

    def test_a_broken_champion_does_not_serve_and_the_old_one_goes_on(self, world, tmp_path):
        log = DecisionLog(Journal(tmp_path / "decisions.db"))
        world.move_to(1)
        holder = champion_holder(world.spec, world.instance, world.registry, log)
        assert holder.refresh() == "loaded"
        world.move_to(2)
        stored = world.registry.fetch(world.versions[2]) / "model.json"
        content = stored.read_bytes()
        try:
            stored.write_bytes(content[:-1] + b" ")
            assert holder.refresh() == "failed"
        finally:
            stored.write_bytes(content)
        assert holder.get().model.version.version == 1
        assert "SHA-256" in (holder.status().error or "")
        assert holder.refresh() == "swapped"
        log.journal.close()


class TestFaults:
    @pytest.fixture
    def desk(self, world: World, tmp_path: Path) -> Iterator[Callable[..., tuple[Desk, DecisionLog]]]:
        opened: list[Journal] = []

        def make(decider: Decider | None = None, log: DecisionLog | None = None) -> tuple[Desk, DecisionLog]:
            log = log or DecisionLog(Journal(tmp_path / "decisions.db"))
            operations = Journal(tmp_path / "operations.db")
            opened.extend([log.journal, operations])
            decider = decider or world.decider(1)
            context = DecisionLog(Journal(tmp_path / "decisions.db")).context(
                pipeline.decision_context(world.spec, decider, world.versions[1], "service")
            )
            holder = ModelHolder(
                "champion", lambda: ModelIdentity("1", "a"), lambda _: Champion(world.versions[1], decider, context)
            )
            holder.refresh()
            return Desk(world.spec, holder, log, operations, pipeline.now), log

        yield make
        for journal in opened:
            journal.close()

    @staticmethod
    def application(name: str, **features: Any) -> Application:
        return read(SPEC, MODEL.model_validate(body(name, **features)))

    def test_a_log_that_cannot_be_written_decides_nothing_and_tells_no_path(self, desk, tmp_path, caplog):
        Journal(tmp_path / "decisions.db").append("note", {})
        made, _ = desk(log=DecisionLog(Journal(tmp_path / "decisions.db", read_only=True)))
        answers = made.decide([self.application("a"), self.application("b", amount=-1)])
        assert [(answer.status, answer.code) for answer in answers] == [(503, "undecided")] * 2
        assert str(tmp_path) not in str(answers[0].body("id"))
        assert str(tmp_path) in caplog.text

    def test_one_application_whose_reasons_do_not_add_up_keeps_no_other_from_its_decision(self, world, desk, caplog):
        sound = world.decider(1)

        class Odd:
            """The scorecard, except that it cannot explain an amount of 4,711."""

            kind, schema, baseline = sound.model.kind, sound.model.schema, sound.model.baseline

            def score(self, features: Any) -> Any:
                scores = sound.model.score(features)
                return replace(scores, residual=scores.residual + (features["amount"] == 4_711).to_numpy(dtype=float))

        odd: Any = Odd()
        made, log = desk(Decider(world.spec, odd, sound.outliers, sound.policy, sound.table))
        answers = made.decide([self.application(name, amount=n) for name, n in (("a", 1), ("b", 4_711), ("c", -1))])
        assert isinstance(answers[0], Answer)
        assert [answer.status for answer in answers[1:]] == [503, 422]
        assert "do not add up" in caplog.text
        assert [entry.subject for entry in log.journal.read("decision")] == ["a"]

    def test_what_another_process_recorded_a_moment_ago_stands(self, desk, monkeypatch):
        made, log = desk()
        first = made.decide([self.application("a")])[0]
        assert isinstance(first, Answer)
        monkeypatch.setattr(log, "find", lambda application: [])
        again = replace(
            self.application("a"), row={**self.application("a").row, "applied_at": first.record["received_at"]}
        )
        second = made.decide([again, self.application("b")])
        assert second[0].record["decision_id"] == first.record["decision_id"]
        assert (second[0].repeated, second[1].repeated) == (True, False)
        assert second[0].record["received_at"] == first.record["received_at"]

    def test_an_untimed_system_has_no_time_to_stand_in(self, world, tmp_path):
        spec = small_spec(data={"timed": False})
        decider = pipeline.load_decider(spec, world.registry, world.versions[1])
        log = DecisionLog(Journal(tmp_path / "decisions.db"))
        context = log.context(pipeline.decision_context(spec, decider, world.versions[1], "service"))
        holder = ModelHolder(
            "champion", lambda: ModelIdentity("1", "a"), lambda _: Champion(world.versions[1], decider, context)
        )
        holder.refresh()
        with Journal(tmp_path / "operations.db") as operations, log.journal:
            made = Desk(spec, holder, log, operations, pipeline.now)
            sent = read(spec, application_model(spec).model_validate(body("a")))
            first, second = made.decide([sent, sent])
            assert isinstance(first, Answer)
            assert first.record["payload"]["applied_at"] is None
            assert first.record["period"] == spec.periods.start.isoformat()
            assert isinstance(second, Answer)
            assert second.repeated

    def test_readiness_names_a_log_that_cannot_be_used(self, world, tmp_path):
        log = DecisionLog(Journal(tmp_path / "decisions.db"))
        operations = Journal(tmp_path / "operations.db")
        log.journal.append("note", {})
        holder: ModelHolder[Champion] = ModelHolder("champion", lambda: None, lambda _: pytest.fail("none to load"))
        with in_background(create_api(world.spec, holder, log, operations, SETTINGS)) as url:
            checks = {each["name"]: each for each in httpx.get(f"{url}/ready", trust_env=False).json()["checks"]}
            assert checks["decision log"]["ok"]
            assert not checks["champion model"]["ok"]
        for path in tmp_path.glob("decisions.db*"):
            path.write_bytes(b"no journal at all " * 400)
        with in_background(create_api(world.spec, holder, log, operations, SETTINGS)) as url:
            checks = {each["name"]: each for each in httpx.get(f"{url}/ready", trust_env=False).json()["checks"]}
            assert not checks["decision log"]["ok"]


class TestWatching:
    def test_decisions_are_counted_by_outcome_and_version(self, world, client):
        def counted() -> dict[tuple[str, str], float]:
            return {
                (sample.labels["decision"], sample.labels["model_version"]): sample.value
                for family in text_string_to_metric_families(client.get("/metrics").text)
                for sample in family.samples
                if sample.name == "mlops_assets_credit_decisions_total"
            }

        before = counted()
        told = [client.post(PATH, json=each).json()["decision"] for each in bodies(12, "count")]
        client.post(PATH, json=bodies(1, "count")[0])
        after = counted()
        grown = {key[0]: after[key] - before.get(key, 0) for key in after if key[1] == "1"}
        assert {name: count for name, count in grown.items() if count} == dict(Counter(told))
        assert 'mlops_assets_model_info{model="champion"' in client.get("/metrics").text

    def test_an_application_is_documented_with_ranges_codes_and_levels(self, client):
        document = client.get("/openapi.json").json()
        post = document["paths"][PATH]["post"]
        assert "decided once" in post["description"]
        assert {"200", "201", "401", "409", "422", "503"} <= set(post["responses"])
        assert post["requestBody"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/Application"
        }
        application = document["components"]["schemas"]["Application"]
        assert application["additionalProperties"] is False
        assert application["required"] == ["application_id", "features"]
        features = document["components"]["schemas"]["Features"]
        assert features["additionalProperties"] is False
        assert features["required"] == ["amount"]
        shown = features["properties"]
        assert set(shown) == set(SPEC.features)
        assert {"minimum": 0, "maximum": 100_000, "type": "number"}.items() <= shown["amount"].items()
        assert {"const": -9, "description": "no file at the bureau"} in shown["debts"]["anyOf"]
        assert {"const": "none", "description": "stands for 0"} in shown["income"]["anyOf"]
        assert shown["income"]["description"] == "income a year"
        assert shown["region"]["anyOf"][0]["examples"] == ["A", "B", "C"]
        assert "sex" not in json.dumps(document)
        get = document["paths"][PATH + "/{decision_id}"]["get"]
        assert {"200", "404", "401", "503"} <= set(get["responses"])

    def test_an_application_that_was_made_a_moment_ago_is_not_in_the_future(self, client):
        at = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        assert client.post(PATH, json={**body("moment-1"), "applied_at": at}).status_code == 201
