"""The model of a service is exchanged while it answers: no request fails, and none sees two models."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.serving import (
    ModelHolder,
    ModelIdentity,
    Refused,
    Service,
    ServiceSettings,
    create_app,
    in_background,
)

PROMOTED = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass
class Shelf:
    """A place of models: which one is current, and how each is loaded."""

    current: int | None = 1
    loads: list[str] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    asks: int = 0
    fault: Exception | None = None
    hold: threading.Event | None = None

    def identify(self) -> ModelIdentity | None:
        self.asks += 1
        if self.fault is not None:
            raise self.fault
        return None if self.current is None else identity(self.current)

    def load(self, wanted: ModelIdentity) -> tuple[int, int]:
        """A model of two halves, which fit together only if both are of the same version."""
        self.loads.append(wanted.version)
        if self.hold is not None:
            assert self.hold.wait(20)
        if int(wanted.version) in self.broken:
            raise ValueError("the file is cut short")
        return int(wanted.version), -int(wanted.version)

    def holder(self, poll_seconds: float = 60.0) -> "ModelHolder[tuple[int, int]]":
        return ModelHolder("champion", self.identify, self.load, poll_seconds=poll_seconds)


def identity(version: int) -> ModelIdentity:
    return ModelIdentity(str(version), f"{version:064x}", PROMOTED)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.005)


class Answer(BaseModel):
    version: str
    first: int
    second: int
    again: str


@contextmanager
def running(holder: "ModelHolder[tuple[int, int]]") -> Iterator[str]:
    def answer() -> Answer:
        held = holder.get()
        first = held.model[0]
        time.sleep(0)  # lets other threads in, between one half and the other
        return Answer(version=held.identity.version, first=first, second=held.model[1], again=held.identity.version)

    def register(service: Service) -> None:
        service.route("GET", "/v1/answer", answer, summary="Answer")

    settings = ServiceSettings(rate_per_second=None)
    with in_background(create_app("models", register, settings, holders=[holder])) as url:
        yield url


def metrics_of(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return {
        sample.name.removeprefix("mlops_assets_"): {
            tuple(each.labels[label] for label in sorted(each.labels)): each.value for each in family.samples
        }
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("mlops_assets_model")
    }


class TestHolder:
    def test_a_model_is_loaded_once_and_again_only_when_another_is_current(self):
        shelf = Shelf()
        holder = shelf.holder()
        assert [holder.refresh() for _ in range(3)] == ["loaded", "unchanged", "unchanged"]
        assert shelf.loads == ["1"]
        shelf.current = 2
        assert holder.refresh() == "swapped"
        assert holder.get().model == (2, -2)
        assert holder.get().identity == identity(2)
        status = holder.status()
        assert (status.swaps, status.failures, status.error) == (1, 0, None)
        assert status.identity == identity(2)

    def test_without_a_model_a_request_is_told_to_come_again(self):
        shelf = Shelf(current=None)
        holder = shelf.holder()
        assert holder.refresh() == "absent"
        with pytest.raises(Refused, match="503 no_model: No champion model is loaded yet") as refusal:
            holder.get()
        assert refusal.value.headers == {"Retry-After": "5"}
        assert holder.status().error is None, "nothing failed"
        shelf.current = 1
        assert holder.refresh() == "loaded"

    def test_a_model_that_cannot_be_loaded_leaves_the_old_one(self, caplog):
        shelf = Shelf(broken={2})
        holder = shelf.holder()
        holder.refresh()
        old = holder.get()
        shelf.current = 2
        assert [holder.refresh() for _ in range(2)] == ["failed", "failed"]
        assert holder.get() is old
        status = holder.status()
        assert status.error == "cannot load version 2 (000000000000): ValueError: the file is cut short"
        assert (status.swaps, status.failures, status.identity) == (0, 2, identity(1))
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1, "the same fault again is no news"
        assert "version 1 (000000000000) keeps answering" in errors[0].message
        shelf.broken.clear()
        assert holder.refresh() == "swapped"
        assert holder.status().error is None

    def test_going_back_to_what_is_held_ends_the_fault(self):
        shelf = Shelf(broken={2})
        holder = shelf.holder()
        holder.refresh()
        shelf.current = 2
        holder.refresh()
        shelf.current = 1
        assert holder.refresh() == "unchanged"
        assert holder.status().error is None
        assert shelf.loads == ["1", "2"]

    def test_a_source_that_cannot_be_asked_leaves_the_old_one(self):
        shelf = Shelf()
        holder = shelf.holder()
        holder.refresh()
        shelf.fault = UserError("is locked", where="event log", remedy="wait")
        assert holder.refresh() == "failed"
        expected = "cannot ask which model is current: event log: is locked. Remedy: wait"
        assert holder.status().error == expected
        shelf.fault, shelf.current = None, None
        assert holder.refresh() == "failed"
        assert holder.status().error == "no model is named as current any more"
        assert holder.get().model == (1, -1)

    def test_a_first_model_that_cannot_be_loaded_is_told(self, caplog):
        holder = Shelf(broken={1}).holder()
        assert holder.refresh() == "failed"
        assert "there is none to answer with" in caplog.text
        with pytest.raises(Refused):
            holder.get()

    def test_many_who_refresh_at_once_load_once(self):
        shelf = Shelf(hold=threading.Event())
        holder = shelf.holder()
        outcomes: list[str] = []
        threads = [threading.Thread(target=lambda: outcomes.append(holder.refresh())) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: shelf.loads == ["1"])
        assert shelf.hold is not None
        shelf.hold.set()
        for thread in threads:
            thread.join()
        assert Counter(outcomes) == {"loaded": 1, "unchanged": 7}

    def test_the_old_model_answers_while_the_new_one_is_loaded(self):
        shelf = Shelf()
        holder = shelf.holder()
        holder.refresh()
        shelf.current, shelf.hold = 2, threading.Event()
        thread = threading.Thread(target=holder.refresh)
        thread.start()
        eventually(lambda: shelf.loads == ["1", "2"])
        assert holder.get().model == (1, -1)
        shelf.hold.set()
        thread.join()
        assert holder.get().model == (2, -2)

    def test_it_polls_by_itself_until_it_is_stopped(self):
        shelf = Shelf()
        holder = shelf.holder(poll_seconds=0.01)
        holder.start()
        holder.start()
        eventually(lambda: holder.status().identity == identity(1))
        shelf.current = 2
        eventually(lambda: holder.status().identity == identity(2))
        assert sum(thread.name == "poll-champion" for thread in threading.enumerate()) == 1
        holder.stop()
        asked = shelf.asks
        time.sleep(0.05)
        assert shelf.asks == asked
        holder.start()
        eventually(lambda: shelf.asks > asked)
        holder.stop()

    def test_when_a_model_became_current_does_not_make_it_another(self):
        first = ModelIdentity("1", "a" * 64, PROMOTED)
        assert first == ModelIdentity("1", "a" * 64, PROMOTED + timedelta(days=1))
        assert first != ModelIdentity("1", "b" * 64, PROMOTED)


class TestService:
    def test_nothing_is_ready_until_a_model_is_loaded(self):
        shelf = Shelf(hold=threading.Event())
        with running(shelf.holder()) as url:
            assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
            response = httpx.get(f"{url}/v1/answer", trust_env=False)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "no_model")
            ready = httpx.get(f"{url}/ready", trust_env=False)
            assert ready.status_code == 503
            assert ready.json()["checks"] == [{"name": "champion model", "ok": False, "message": "none is loaded yet"}]
            assert shelf.hold is not None
            shelf.hold.set()
            eventually(lambda: httpx.get(f"{url}/ready", trust_env=False).status_code == 200)
            assert httpx.get(f"{url}/v1/answer", trust_env=False).json()["version"] == "1"

    def test_a_failed_exchange_is_seen_in_readiness_and_metrics_and_stops_nothing(self):
        shelf = Shelf(broken={2})
        holder = shelf.holder()
        holder.refresh()
        shelf.current = 2
        holder.refresh()
        with running(holder) as url:
            ready = httpx.get(f"{url}/ready", trust_env=False)
            assert ready.status_code == 200, "the old model answers"
            (model,) = ready.json()["models"]
            assert (model["name"], model["version"], model["swaps"]) == ("champion", "1", 0)
            assert model["failures"] >= 2
            assert "the file is cut short" in model["error"]
            found = metrics_of(url)
            assert found["model_info"] == {("champion", f"{1:064x}", "1"): 1.0}
            assert found["model_load_failures_total"]["champion",] >= 2
            message = "cannot load version 2 (000000000000): ValueError: the file is cut short"
            assert found["model_load_error"] == {(message, "champion"): 1.0}
            shelf.broken.clear()
            assert holder.refresh() == "swapped"
            found = metrics_of(url)
            assert "model_load_error" not in found
            assert found["model_info"] == {("champion", f"{2:064x}", "2"): 1.0}, "no version of the past lingers"
            assert found["model_swaps_total"] == {("champion",): 1.0}
            assert found["model_age_seconds"]["champion",] > 0
            assert httpx.get(f"{url}/v1/answer", trust_env=False).json()["version"] == "2"

    def test_no_request_fails_and_none_sees_two_models_while_they_are_exchanged(self):
        shelf = Shelf()
        holder = shelf.holder(poll_seconds=0.001)
        holder.refresh()
        versions: Counter[str] = Counter()
        mixed: list[Answer] = []
        failed: list[int] = []
        done = threading.Event()

        def hammer(host: str, port: int) -> None:
            with closing(HTTPConnection(host, port, timeout=20)) as connection:
                while not done.is_set():
                    connection.request("GET", "/v1/answer")
                    response = connection.getresponse()
                    body = response.read()
                    if response.status != 200:
                        failed.append(response.status)
                        continue
                    answer = Answer.model_validate_json(body)
                    versions[answer.version] += 1
                    if not answer.version == str(answer.first) == str(-answer.second) == answer.again:
                        mixed.append(answer)

        with running(holder) as url:
            parsed = httpx.URL(url)
            threads = [threading.Thread(target=hammer, args=(parsed.host, parsed.port)) for _ in range(6)]
            for thread in threads:
                thread.start()
            for version in range(2, 42):
                seen = sum(versions.values())
                shelf.current = version
                eventually(lambda: holder.status().identity == identity(shelf.current or 0))
                eventually(lambda seen=seen: sum(versions.values()) > seen + 5)
            done.set()
            for thread in threads:
                thread.join()
        assert failed == []
        assert mixed == []
        assert len(versions) > 20, "the exchange was seen from outside"
        assert holder.status().swaps == 40
