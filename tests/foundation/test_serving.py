"""A service over real HTTP: who may ask, how much, how long, and how every error is told."""

import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, Field

from mlops_assets.foundation._serving_errors import of_user_error, of_validation, shown
from mlops_assets.foundation._serving_json import strict_json
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.serving import (
    Detail,
    Refused,
    Service,
    ServiceSettings,
    TokenBuckets,
    Tokens,
    create_app,
    in_background,
    serve,
    unavailable,
)

ALICE, BOB = "alice-token-0123456789abcdef", "bob-token-0123456789abcdefgh"
TOKENS = f"alice={ALICE},bob={BOB}"
SECRET = "income of somebody 4711"
ERROR_KEYS = {"code", "message", "request_id", "details"}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weight: int = Field(ge=1, le=10)


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: float = Field(ge=0, le=1000)
    name: str = Field("x", max_length=5, pattern="^[a-z]*$")
    parts: list[Part] = Field(default_factory=list)


class Doubled(BaseModel):
    amount: float


class Gate:
    """What a test uses to hold requests up: those that came in, and the signal that lets them go on."""

    def __init__(self) -> None:
        self.entered: list[float] = []
        self.come_in = threading.Semaphore(0)
        self.open = threading.Event()

    def pass_through(self, amount: float) -> float:
        self.entered.append(amount)
        self.come_in.release()
        assert self.open.wait(20)
        return amount

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.come_in.acquire(timeout=20)


def routes(gate: Gate | None = None) -> Callable[[Service], None]:
    from fastapi import Request

    def double(body: Thing) -> Doubled:
        """Double the amount."""
        return Doubled(amount=2 * body.amount)

    async def who(request: Request, limit: int = 1) -> dict[str, Any]:
        return {"caller": request.state.caller, "limit": limit, "client": request.client and request.client.host}

    def user_error() -> None:
        raise UserError("has no such column", where="applications, column income", remedy="add it")

    def own_fault() -> None:
        try:
            Path("/nowhere/secret/journal.db").read_bytes()
        except OSError as error:
            raise UserError("cannot be read", where="/nowhere/secret/journal.db") from error

    def conflict() -> None:
        raise Refused(409, "conflict", "Known with another content.", details=[Detail("id", "is taken", "use another")])

    def broken() -> None:
        raise ValueError(SECRET)

    def gated(body: Thing) -> Doubled:
        assert gate is not None
        return Doubled(amount=gate.pass_through(body.amount))

    def register(service: Service) -> None:
        service.route("POST", "/v1/double", double, summary="Double", responses={409: "It conflicts."}, tags=["things"])
        service.route("GET", "/v1/who", who, summary="Who asks?")
        for endpoint in (user_error, own_fault, conflict, broken):
            service.route("GET", f"/v1/{endpoint.__name__}", endpoint, summary="Fail")
        service.route("POST", "/v1/gated", gated, summary="Wait")

    return register


@contextmanager
def running(gate: Gate | None = None, **limits: Any) -> Iterator[httpx.Client]:
    checks = limits.pop("checks", None)
    app = create_app("things", routes(gate), ServiceSettings(**limits), checks=checks)
    with in_background(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A service without tokens on this machine, with small limits and no rate."""
    with running(rate_per_second=None, max_body_bytes=4096, max_depth=8) as client:
        yield client


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    """A service that knows two callers."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("MLOPS_ASSETS_SERVICE_TOKENS", TOKENS)
        client = stack.enter_context(running(rate_per_second=None))
        # Read when the app is made: other apps of this module have no tokens.
        patch.undo()
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == ERROR_KEYS
    assert response.headers["x-request-id"] == error["request_id"]
    return error


def address_of(client: httpx.Client) -> tuple[str, int]:
    return client.base_url.host, client.base_url.port or 0


def post(client: httpx.Client, body: bytes, path: str = "/v1/double", **headers: str) -> httpx.Response:
    kind = {"Content-Type": "application/json"}
    return client.post(path, content=body, headers=kind | {k.replace("_", "-"): v for k, v in headers.items()})


def metrics_of(client: httpx.Client, name: str) -> dict[tuple[str, ...], float]:
    """Return a metric's samples by the values of their labels, sorted by label."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == f"mlops_assets_{name}"
    }


def line_of(caplog: pytest.LogCaptureFixture, text: str) -> Any:
    """Return the record whose message holds a text; the client has its answer a moment before the log has its line."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for record in list(caplog.records):
            if text in record.getMessage():
                return record
        time.sleep(0.01)
    raise AssertionError(f"no line holds {text}")


def answer_to(address: tuple[str, int], *chunks: bytes, pause: float = 0.0) -> bytes:
    """Send these bytes over a connection of one's own and return everything that comes back until it is closed."""
    with socket.create_connection(address, timeout=20) as raw:
        for chunk in chunks:
            raw.sendall(chunk)
            time.sleep(pause)
        received = b""
        while data := raw.recv(65536):
            received += data
        return received


class TestAnswers:
    def test_a_route_answers_in_a_thread_of_the_service(self, client):
        response = client.post("/v1/double", json={"amount": 2.5})
        assert (response.status_code, response.json()) == (200, {"amount": 5.0})
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "server" not in response.headers

    def test_a_request_id_of_the_caller_is_used_and_a_strange_one_is_not(self, client):
        assert client.get("/v1/who", headers={"X-Request-Id": "trace-1.a_B"}).headers["x-request-id"] == "trace-1.a_B"
        for strange in ("with space", "x" * 65, "a;b"):
            assert re.fullmatch(
                "[0-9a-f]{32}", client.get("/v1/who", headers={"X-Request-Id": strange}).headers["x-request-id"]
            )

    def test_health_and_readiness_answer_get_and_head(self, client):
        assert client.get("/health").json() == {"status": "alive"}
        assert client.get("/ready").json() == {"status": "ready", "checks": [], "models": []}
        assert [client.head(path).status_code for path in ("/health", "/ready")] == [200, 200]

    def test_an_app_can_be_run_again(self):
        app = create_app("things", routes())
        for _ in range(2):
            with in_background(app) as url:
                assert httpx.post(f"{url}/v1/double", json={"amount": 1}, trust_env=False).json() == {"amount": 2.0}


class TestErrors:
    def test_an_unknown_path_and_method_are_told_in_the_same_shape(self, client):
        nowhere, method = client.get("/nowhere"), client.get("/v1/double")
        assert (nowhere.status_code, error_of(nowhere)["code"]) == (404, "not_found")
        assert (method.status_code, error_of(method)["code"]) == (405, "method_not_allowed")
        assert method.headers["allow"] == "POST"
        assert client.get("/v1/double/").status_code == 404, "no redirect"

    def test_every_wrong_field_is_listed_with_value_bound_and_remedy(self, client):
        body = {"amount": -3, "name": "longer than five", "parts": [{"weight": 99}, {}], "sex": SECRET}
        response = client.post("/v1/double", json=body)
        error = error_of(response)
        assert (response.status_code, error["code"]) == (422, "invalid_request")
        assert error["message"] == "5 fields are not as they have to be."
        assert error["details"] == [
            {
                "field": "amount",
                "problem": "is -3: should be greater than or equal to 0",
                "remedy": "send a value that is greater than or equal to 0.",
            },
            {
                "field": "name",
                "problem": "is 'longer than five': string should have at most 5 characters",
                "remedy": "shorten it to 5.",
            },
            {
                "field": "parts[0].weight",
                "problem": "is 99: should be less than or equal to 10",
                "remedy": "send a value that is less than or equal to 10.",
            },
            {"field": "parts[1].weight", "problem": "is missing", "remedy": "add it."},
            {"field": "sex", "problem": "is not a field of this request", "remedy": "leave it out."},
        ]
        assert SECRET not in response.text

    def test_a_wrong_value_of_the_query_is_named_and_cut_short(self, client):
        detail = error_of(client.get("/v1/who", params={"limit": "9" * 300 + "x"}))["details"][0]
        assert detail["field"] == "query.limit"
        assert detail["problem"].startswith("is '9999")
        assert len(detail["problem"]) < 200

    def test_an_empty_body_and_another_type_are_refused(self, client):
        assert error_of(post(client, b""))["details"] == [
            {"field": "body", "problem": "is missing", "remedy": "add it."}
        ]
        detail = error_of(post(client, b"[1]"))["details"][0]
        assert detail["field"] == "body"
        assert "dictionary" in detail["problem"]

    def test_no_more_than_a_hundred_details_are_sent(self, client):
        error = error_of(post(client, json.dumps({f"k{i}": 1 for i in range(300)}).encode()))
        assert len(error["details"]) == 100
        assert "The first 100 of 301 are listed." in error["message"]

    def test_a_users_mistake_keeps_its_place_and_remedy(self, client):
        response = client.get("/v1/user_error")
        detail = {"field": "applications, column income", "problem": "has no such column", "remedy": "add it"}
        assert (response.status_code, error_of(response)["details"]) == (422, [detail])

    def test_a_fault_of_storage_is_no_mistake_of_the_caller_and_names_no_path(self, client, caplog):
        response = client.get("/v1/own_fault")
        error = error_of(response)
        assert (response.status_code, error["code"], response.headers["retry-after"]) == (503, "unavailable", "5")
        assert "/nowhere" not in response.text
        assert any(error["request_id"] in r.message and "/nowhere" in r.message for r in caplog.records)

    def test_a_refusal_has_its_own_status_code_and_details(self, client):
        response = client.get("/v1/conflict")
        assert (response.status_code, error_of(response)["code"]) == (409, "conflict")
        assert error_of(response)["details"] == [{"field": "id", "problem": "is taken", "remedy": "use another"}]

    def test_an_unexpected_error_tells_an_id_and_logs_the_rest_under_it(self, client, caplog):
        response = client.get("/v1/broken")
        error = error_of(response)
        assert (response.status_code, error["code"]) == (500, "internal_error")
        assert SECRET not in response.text
        assert "ValueError" not in response.text
        record = next(r for r in caplog.records if r.message == f"request {error['request_id']} failed")
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == SECRET

    def test_causes_decide_whose_fault_an_error_is(self):
        import sqlite3

        def raised(cause: Exception | None) -> UserError:
            error = UserError("wrong", where="here", remedy="mend")
            error.__cause__ = cause
            return error

        class DuckError(Exception):
            __module__ = "_duckdb"

        for own in (OSError("disk"), sqlite3.OperationalError("locked"), DuckError()):
            assert of_user_error(raised(own)) is None
        for theirs in (None, ValueError("x"), KeyError("y")):
            refusal = of_user_error(raised(theirs))
            assert refusal is not None
            assert refusal.details == (Detail("here", "wrong", "mend"),)

    @given(value=st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.binary()))
    def test_a_shown_value_is_short_printable_and_on_one_line(self, value):
        text = shown(value)
        assert len(text) <= 60
        assert text.isprintable()

    @given(
        body=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
            max_leaves=12,
        )
    )
    def test_whatever_is_validated_gives_a_body_that_is_json(self, body):
        from pydantic import ValidationError

        try:
            Thing.model_validate(body)
        except ValidationError as error:
            told = of_validation(error.errors()).body("id")
            assert json.loads(json.dumps(told, allow_nan=False))["error"]["details"]


class TestJson:
    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (b'{"amount": NaN}', "NaN is no number"),
            (b'{"amount": -Infinity}', "-Infinity is no number"),
            (b'{"amount": 1e999}', "past the range of a double"),
            (b'{"amount": -1e999}', "past the range of a double"),
            (b'{"amount": 9223372036854775808}', "does not fit in 64 bits"),
            (b'{"amount": ' + b"9" * 3000 + b"}", "does not fit in 64 bits"),
            (b'{"amount": 0.' + b"1" * 100 + b"}", "too long"),
            (b'{"amount": 1, "amount": 2}', "the key 'amount' stands twice"),
            (b'{"amount": 1, "parts": [{"weight": 1, "weight": 1}]}', "the key 'weight' stands twice"),
            (b"[" * 9 + b"]" * 9, "deeper than 8 levels"),
            (b'{"a":' * 4000, "deeper than 8 levels"),
            (b'{"amount": 1', "at line 1, column"),
            (b"{'amount': 1}", "at line 1, column 2"),
            (b'{"amount": 1}\n{"amount": 2}', "extra data at line 2, column 1"),
            (b'{"name": "\xff"}', "not UTF-8 at byte 10"),
            (b'{"name": "\\ud800"}', "half of a surrogate pair"),
            (b'\xef\xbb\xbf{"amount": 1}', "unexpected utf-8 bom"),
            (b'{"name": "a\nb"}', "invalid control character"),
            ('{"amount": 1}'.encode("utf-16"), "not UTF-8"),
            (b"\x00", "at line 1"),
        ],
    )
    def test_json_that_is_none_or_means_two_things_is_refused(self, client, body, problem):
        response = post(client, body[:4000])
        error = error_of(response)
        assert (response.status_code, error["code"]) == (400, "invalid_json")
        assert problem in error["message"]

    def test_what_is_one_thing_is_taken(self, client):
        assert post(client, b' {"amount": 1e2, "name": "\\u0061"} ').json() == {"amount": 200.0}
        assert strict_json(b'"\\ud83d\\ude00"', max_depth=1) == "\N{GRINNING FACE}"
        assert strict_json(b"-9223372036854775808", max_depth=1) == -(2**63)
        assert strict_json(rb'["[[[[{{{{\"[["]', max_depth=1) == ['[[[[{{{{"[[']

    def test_strings_that_never_end_are_scanned_once(self):
        for body in (b'"' + b'\\"' * 2_000_000, b'"' + b"\\" * 2_000_001, b'"' * 2_000_001):
            with pytest.raises(Refused):
                strict_json(body, max_depth=4)

    @given(
        value=st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(codec="utf-8")),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
            max_leaves=10,
        ),
        escaped=st.booleans(),
    )
    def test_what_json_writes_is_read_back(self, value, escaped):
        data = json.dumps(value, ensure_ascii=escaped).encode()
        assert strict_json(data, max_depth=40) == value

    @given(data=st.binary(max_size=200) | st.text(alphabet='[]{}":,\\0e1nNaI \n', max_size=80).map(str.encode))
    @settings(max_examples=300)
    def test_any_bytes_are_a_value_or_a_refusal(self, data):
        try:
            value = strict_json(data, max_depth=8)
        except Refused as error:
            refusal = error
        else:
            assert json.dumps(value, allow_nan=False)
            return
        assert (refusal.status, refusal.code) == (400, "invalid_json")

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "application/problem+json"},
            {"Content-Type": "application/json; charset=latin-1"},
            {"Content-Type": "application/json; boundary=x"},
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        ],
    )
    def test_anything_but_json_in_utf8_is_refused(self, client, headers):
        response = client.post("/v1/double", content=b'{"amount": 1}', headers=headers)
        assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_media_type")

    @pytest.mark.parametrize("kind", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"'])
    def test_json_by_any_of_its_names_is_taken(self, client, kind):
        response = client.post("/v1/double", content=b'{"amount": 1}', headers={"Content-Type": kind})
        assert response.status_code == 200


class TestSize:
    def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_not(self, client):
        exact = b'{"amount": 1}'.ljust(4096)
        assert post(client, exact).status_code == 200
        response = post(client, exact + b" ")
        assert (response.status_code, error_of(response)["code"]) == (413, "too_large")
        assert "4,096 bytes" in response.text

    @pytest.mark.parametrize("megabytes", [1, 10])
    def test_a_large_body_is_answered_while_it_is_sent(self, client, megabytes):
        assert post(client, b" " * (megabytes << 20)).status_code == 413

    def test_a_large_body_in_chunks_without_a_length_is_refused_too(self, client):
        def chunks() -> Iterator[bytes]:
            for _ in range(160):
                yield b" " * 65536

        response = client.post("/v1/double", content=chunks(), headers={"Content-Type": "application/json"})
        assert "content-length" not in response.request.headers
        assert response.status_code == 413

    def test_a_client_that_writes_before_it_reads_gets_the_answer(self, client):
        with closing(http.client.HTTPConnection(*address_of(client), timeout=20)) as connection:
            connection.request("POST", "/v1/double", b" " * (10 << 20), {"Content-Type": "application/json"})
            assert connection.getresponse().status == 413

    def test_chunks_that_fit_are_taken(self, client):
        response = client.post(
            "/v1/double",
            content=(part.encode() for part in ('{"am', 'ount"', ": 4}")),
            headers={"Content-Type": "application/json"},
        )
        assert response.json() == {"amount": 8.0}

    def test_who_asks_before_sending_is_told_before_sending(self, client):
        head = b"POST /v1/double HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        more = b"Content-Length: 10000000\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        received = answer_to(address_of(client), head + more)
        assert received.startswith(b"HTTP/1.1 413 ")

    def test_what_follows_a_length_that_was_too_small_is_no_part_of_the_body(self, client):
        head = b"POST /v1/double HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        received = answer_to(address_of(client), head + b'Content-Length: 13\r\n\r\n{"amount": 1}, "sex": 1}\r\n\r\n')
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 400 " in received[10:]

    def test_a_head_without_end_is_refused(self, client):
        address = address_of(client)
        line = b"X-Filler: " + b"x" * 4000 + b"\r\n"
        received = answer_to(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + line * 10)
        assert received.startswith(b"HTTP/1.1 400 ")


class TestTime:
    """Limits are a fraction of a second here; what is asserted is what happens, never when."""

    def test_a_body_that_does_not_come_is_given_up(self):
        with running(body_seconds=0.2) as client:
            head = b"POST /v1/double HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            received = answer_to(address_of(client), head + b"Content-Length: 100\r\n\r\n{")
            assert received.startswith(b"HTTP/1.1 408 ")
            assert b"body_too_slow" in received
            received = answer_to(address_of(client), head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
            assert received.startswith(b"HTTP/1.1 408 ")

    def test_a_body_in_drops_is_given_up_however_many_come(self):
        with running(body_seconds=0.3) as client, socket.create_connection(address_of(client), timeout=20) as raw:
            raw.sendall(b"POST /v1/double HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            raw.sendall(b"Content-Length: 100000\r\n\r\n")
            raw.settimeout(0.02)
            received = b""
            for _ in range(1000):
                try:
                    raw.sendall(b" ")
                    data = raw.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    break
                received += data
                if not data:
                    break
            assert received.startswith(b"HTTP/1.1 408 ")

    def test_a_head_that_does_not_end_is_hung_up_on(self):
        with running(head_seconds=0.2) as client:
            address = address_of(client)
            assert answer_to(address) == b""
            assert answer_to(address, b"GET /health HT", b"TP/1.1\r\n", b"X: y", pause=0.05) == b""
            assert client.get("/health").status_code == 200

    def test_a_head_that_does_not_end_after_an_answer_is_hung_up_on(self):
        with running(head_seconds=0.2) as client:
            whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            received = answer_to(address_of(client), whole, whole, b"GET /he", pause=0.05)
            assert received.count(b"HTTP/1.1 200 ") == 2

    def test_a_body_that_goes_on_after_its_refusal_is_hung_up_on(self):
        with running(head_seconds=0.2) as client, socket.create_connection(address_of(client), timeout=20) as raw:
            raw.sendall(b"POST /v1/double HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")
            with pytest.raises(OSError):
                for _ in range(10_000):
                    raw.sendall(b" " * 1000)
                    time.sleep(0.01)

    def test_a_request_that_takes_long_is_given_up_and_one_in_the_queue_is_never_begun(self):
        gate = Gate()
        with running(gate, request_seconds=0.4, threads=1) as client:
            with ExitStack() as stack:
                stack.callback(gate.open.set)
                answers: list[httpx.Response] = []

                def ask(amount: float) -> None:
                    answers.append(client.post("/v1/gated", json={"amount": amount}))

                first = threading.Thread(target=ask, args=(1,))
                first.start()
                gate.wait_for(1)
                second = threading.Thread(target=ask, args=(2,))
                second.start()
                first.join()
                second.join()
            assert [(a.status_code, error_of(a)["code"]) for a in answers] == [(504, "timed_out")] * 2
            # The thread is free again, and what waited for it is not done behind anybody's back.
            assert client.post("/v1/gated", json={"amount": 3}).status_code == 200
            assert gate.entered == [1, 3]

    def test_more_requests_than_are_taken_are_told_to_come_again_while_probes_answer(self):
        gate = Gate()
        with running(gate, max_in_flight=2, threads=4) as client:
            with ExitStack() as stack:
                stack.callback(gate.open.set)
                answers: list[int] = []

                def ask() -> None:
                    answers.append(client.post("/v1/gated", json={"amount": 1}).status_code)

                threads = [threading.Thread(target=ask) for _ in range(2)]
                for thread in threads:
                    thread.start()
                gate.wait_for(2)
                response = client.post("/v1/double", json={"amount": 1})
                assert (response.status_code, error_of(response)["code"]) == (503, "busy")
                assert response.headers["retry-after"] == "1"
                assert client.get("/health").status_code == 200
                assert metrics_of(client, "http_in_flight") == {(): 3.0}, "two that wait, and the one that asks"
            for thread in threads:
                thread.join()
            assert answers == [200, 200]
            assert client.post("/v1/double", json={"amount": 1}).status_code == 200

    def test_a_service_that_stops_lets_requests_finish(self):
        gate = Gate()
        answers: list[int] = []

        def ask(url: str) -> None:
            answers.append(httpx.post(f"{url}/v1/gated", json={"amount": 1}, trust_env=False).status_code)

        with in_background(create_app("things", routes(gate))) as url:
            thread = threading.Thread(target=ask, args=(url,))
            thread.start()
            gate.wait_for(1)
            opener = threading.Timer(0.2, gate.open.set)
            opener.start()
            # Leaving the block stops the service while the request waits.
        assert gate.open.is_set()
        for waiting in (thread, opener):
            waiting.join()
        assert answers == [200]

    def test_what_is_to_be_closed_is_closed_after_the_last_request(self):
        events: list[str] = []

        def note() -> dict[str, str]:
            events.append("answered")
            return {}

        app = create_app(
            "things",
            lambda service: service.route("GET", "/v1/note", note, summary="Note"),
            on_stop=lambda: events.append("closed"),
        )
        with in_background(app) as url:
            assert httpx.get(f"{url}/v1/note", trust_env=False).json() == {}
        assert events == ["answered", "closed"]

    def test_a_client_that_leaves_is_counted_as_gone(self, client):
        def gone() -> float:
            return metrics_of(client, "http_refusals_total").get(("client_gone",), 0.0)

        before = gone()
        with socket.create_connection(address_of(client), timeout=20) as raw:
            raw.sendall(b"POST /v1/double HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            raw.sendall(b"Content-Length: 100\r\n\r\n{")
        deadline = time.monotonic() + 20
        while gone() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone() == before + 1


class TestTokens:
    def test_a_caller_is_known_by_the_name_of_its_token(self, guarded):
        for name, token in (("alice", ALICE), ("bob", BOB)):
            assert guarded.get("/v1/who", headers=bearer(token)).json()["caller"] == name
        assert guarded.get("/v1/who", headers={"Authorization": f"bearer  {ALICE}"}).json()["caller"] == "alice"

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            f"Bearer {ALICE}x",
            f"Bearer {ALICE[:-1]}",
            f"Bearer {ALICE.upper()}",
            f"Basic {ALICE}",
            ALICE,
            f"Bearer alice={ALICE}",
            f"Bearer {ALICE},{BOB}",
            "Bearer \xe4\xf6\xfc",
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/who", "/nowhere", "/openapi.json", "/metrics/", "/health/", "//health"])
    def test_nothing_but_the_probes_is_told_without_a_token(self, guarded, header, path):
        headers = {} if header is None else {"Authorization": header.encode("latin-1")}
        response = guarded.get(path, headers=headers)
        assert (response.status_code, error_of(response)["code"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == 'Bearer realm="mlops_assets"'

    def test_a_body_is_not_read_without_a_token(self, guarded):
        assert post(guarded, b"x" * (10 << 20)).status_code == 401
        assert post(guarded, b"{}").status_code == 401

    def test_health_readiness_and_local_metrics_are_open(self, guarded):
        assert [guarded.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]

    def test_behind_a_proxy_metrics_and_messages_need_a_token(self, monkeypatch):
        monkeypatch.setenv("MLOPS_ASSETS_SERVICE_TOKENS", TOKENS)
        checks = {"journal": lambda: "cannot write /srv/journal.db"}
        with running(trusted_proxies=("127.0.0.1",), checks=checks) as client:
            assert client.get("/metrics").status_code == 401
            assert client.get("/metrics", headers=bearer(BOB)).status_code == 200
            response = client.get("/ready")
            assert response.status_code == 503
            assert response.json()["checks"] == [{"name": "journal", "ok": False, "message": None}]
            assert "srv" in client.get("/ready", headers=bearer(BOB)).text
            told = client.get("/v1/who", headers=bearer(BOB) | {"X-Forwarded-For": "203.0.113.7"}).json()
            assert told["client"] == "203.0.113.7"

    def test_who_claims_to_be_forwarded_is_not_believed_without_a_proxy(self, guarded):
        told = guarded.get("/v1/who", headers=bearer(BOB) | {"X-Forwarded-For": "203.0.113.7"}).json()
        assert told["client"] == "127.0.0.1"

    @pytest.mark.parametrize("exposed", [{"host": "0.0.0.0"}, {"host": "::"}, {"trusted_proxies": ("10.0.0.1",)}])
    def test_nobody_else_is_answered_without_tokens(self, exposed, monkeypatch):
        monkeypatch.delenv("MLOPS_ASSETS_SERVICE_TOKENS", raising=False)
        with pytest.raises(UserError, match=r"would answer anybody .*Remedy: set the variable to name=token"):
            create_app("things", routes(), ServiceSettings(**exposed))

    def test_the_host_that_is_served_on_counts_too(self):
        with pytest.raises(UserError, match=r"would answer anybody on 0\.0\.0\.0"):
            serve(create_app("things", routes()), host="0.0.0.0")

    def test_a_connection_from_outside_is_refused_even_where_the_app_was_told_otherwise(self):
        # Another server may run the app on another address than its settings say.
        import asyncio

        app = create_app("things", routes())
        sent: list[Any] = []

        async def ask(server: Any) -> int:
            scope = {
                "type": "http", "method": "GET", "path": "/v1/who", "query_string": b"", "headers": [],
                "server": server, "client": ("203.0.113.7", 1), "http_version": "1.1", "scheme": "http",
            }  # fmt: skip

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            await app(scope, receive, send)
            return int(next(m["status"] for m in reversed(sent) if m["type"] == "http.response.start"))

        assert asyncio.run(ask(("192.0.2.1", 80))) == 401
        assert asyncio.run(ask(None)) == 401
        assert asyncio.run(ask(("127.0.0.1", 80))) == 421, "local, but the request names no host"

    def test_tokens_are_read_from_pairs_and_never_shown(self):
        read = Tokens.from_environment("T", {"T": f" alice={ALICE}\nbob={BOB},  bob={BOB}2\n"})
        assert len(read) == 3
        assert read.caller(f"Bearer {BOB}2") == "bob"
        assert ALICE not in repr(read)
        assert repr(read) == "Tokens of alice, bob"
        padded = "a" * 30 + "=="
        assert Tokens.from_environment("T", {"T": f"x={padded}"}).caller(f"Bearer {padded}") == "x"
        assert len(Tokens.from_environment("T", {})) == len(Tokens.from_environment("T", {"T": " ,, "})) == 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (ALICE, "entry 1 has no name"),
            (f"alice={ALICE},{BOB}", "entry 2 has no name"),
            (f"Alice={ALICE}", "lower-case letters"),
            (f"={ALICE}", "lower-case letters"),
            ("alice=short", "shorter than 24 characters"),
            ("alice=" + "ä" * 30, "not plain ASCII"),
            (f"alice={ALICE},bob={ALICE}", "alice and bob have the same token"),
        ],
    )
    def test_a_token_that_cannot_be_used_is_refused_without_being_repeated(self, text, message):
        with pytest.raises(UserError, match=f"TOKENS: .*{message}") as error:
            Tokens.from_environment("TOKENS", {"TOKENS": text})
        assert ALICE not in str(error.value)
        assert BOB not in str(error.value)


class TestHosts:
    def test_a_page_of_another_site_cannot_reach_a_local_service(self, client):
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""):
            response = client.get("/v1/who", headers={"Host": host})
            assert (response.status_code, error_of(response)["code"]) == (421, "wrong_host")
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8000", "127.1.2.3"):
            assert client.get("/v1/who", headers={"Host": host}).status_code == 200

    def test_hosts_can_be_named(self):
        with running(allowed_hosts=("credit.example",)) as client:
            assert client.get("/v1/who", headers={"Host": "credit.example:443"}).status_code == 200
            assert client.get("/v1/who", headers={"Host": "localhost"}).status_code == 200, "for probes of this machine"
            assert client.get("/v1/who", headers={"Host": "evil.example"}).status_code == 421

    def test_a_websocket_is_not_spoken(self, client):
        head = b"GET /v1/who HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        assert b"101 Switching" not in answer_to(address_of(client), head + key)


class TestRates:
    def test_a_caller_has_its_own_limit(self, monkeypatch):
        monkeypatch.setenv("MLOPS_ASSETS_SERVICE_TOKENS", TOKENS)
        with running(rate_per_second=0.01, burst=3) as client:
            statuses = [client.get("/v1/who", headers=bearer(ALICE)).status_code for _ in range(5)]
            assert statuses == [200, 200, 200, 429, 429]
            refused = client.get("/v1/who", headers=bearer(ALICE))
            assert error_of(refused)["code"] == "too_many_requests"
            assert 1 <= int(refused.headers["retry-after"]) <= 100
            assert client.get("/v1/who", headers=bearer(BOB)).status_code == 200
            assert [client.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]

    def test_guesses_are_limited_and_keep_no_caller_out(self, monkeypatch):
        monkeypatch.setenv("MLOPS_ASSETS_SERVICE_TOKENS", TOKENS)
        with running(rate_per_second=0.01, burst=2) as client:
            statuses = [client.get("/v1/who", headers=bearer("guess")).status_code for _ in range(4)]
            assert statuses == [401, 401, 429, 429]
            assert client.get("/v1/who", headers=bearer(ALICE)).status_code == 200

    def test_a_bucket_fills_at_its_rate(self):
        now = [0.0]
        buckets = TokenBuckets(2.0, 3, 10, clock=lambda: now[0])
        assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 1, 1]
        now[0] = 0.5
        assert [buckets.take("a") for _ in range(2)] == [0, 1]
        now[0] = 100.0
        assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1]

    def test_memory_is_bounded_and_the_many_share_one_bucket(self):
        now = [0.0]
        buckets = TokenBuckets(1.0, 2, 3, clock=lambda: now[0])
        assert [buckets.take(str(client)) for client in range(6)] == [0, 0, 0, 0, 0, 1]
        assert len(buckets) == 3
        now[0] = 2.0
        assert [buckets.take(f"late {client}") for client in range(3)] == [0, 0, 0], "full buckets made place"
        assert len(buckets) == 3

    @given(
        steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 4)), max_size=60),
        rate=st.floats(0.1, 10),
        burst=st.integers(1, 5),
    )
    def test_no_client_gets_more_than_its_burst_and_its_rate(self, steps, rate, burst):
        now, taken = 0.0, dict.fromkeys(map(str, range(5)), 0)
        buckets = TokenBuckets(rate, burst, 2, clock=lambda: now)
        for pause, client in steps:
            now += pause
            taken[str(client)] += buckets.take(str(client)) == 0
            assert len(buckets) <= 2
        for count in taken.values():
            # Twice: a client may have had a bucket of its own and a part of the shared one.
            assert count <= 2 * (burst + rate * now) + 1e-6


class TestReadiness:
    def test_what_is_not_met_is_named(self, caplog):
        def breaks() -> None:
            raise ValueError(SECRET)

        def user_error() -> None:
            raise UserError("is read-only", where="journal.db", remedy="make it writable")

        checks = {"fine": lambda: None, "disk": lambda: "is full", "journal": user_error, "queue": breaks}
        with running(checks=checks) as client:
            response = client.get("/ready")
            assert response.status_code == 503
            assert response.json()["checks"] == [
                {"name": "fine", "ok": True, "message": None},
                {"name": "disk", "ok": False, "message": "is full"},
                {"name": "journal", "ok": False, "message": "journal.db: is read-only. Remedy: make it writable"},
                {"name": "queue", "ok": False, "message": "the check failed: ValueError"},
            ]
            assert client.get("/health").status_code == 200

    def test_checks_are_made_once_however_many_ask(self):
        calls: list[int] = []
        with running(checks={"count": lambda: calls.append(1)}) as client:
            threads = [threading.Thread(target=client.get, args=("/ready",)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # Looked at again only after a second: a slow machine may have needed more than one.
            assert 1 <= len(calls) < 8


class TestMetrics:
    def test_requests_are_counted_by_route_and_status(self):
        with running() as client:
            client.post("/v1/double", json={"amount": 1})
            client.post("/v1/double", json={"amount": -1})
            for path in ("/nowhere/1", "/nowhere/2?token=x"):
                client.get(path)
            client.request("BREW", "/v1/double")
            client.request("FETCH", "/v1/double")
            found = metrics_of(client, "http_requests_total")
            assert found == {
                ("POST", "/v1/double", "200"): 1,
                ("POST", "/v1/double", "422"): 1,
                ("GET", "unmatched", "404"): 2,
                ("other", "/v1/double", "405"): 2,
            }
            assert metrics_of(client, "http_refusals_total") == {
                ("invalid_request",): 1,
                ("method_not_allowed",): 2,
                ("not_found",): 2,
            }
            assert metrics_of(client, "http_request_seconds_count")["POST", "/v1/double"] == 2

    def test_every_app_counts_for_itself(self):
        with running(rate_per_second=None) as one, running() as two:
            one.get("/v1/who")
            assert ("GET", "/v1/who", "200") in metrics_of(one, "http_requests_total")
            assert ("GET", "/v1/who", "200") not in metrics_of(two, "http_requests_total")

    def test_a_system_counts_what_it_likes(self):
        def register(service: Service) -> None:
            counter = service.metrics.counter("things", "Things by colour.", ["colour"])

            def make() -> dict[str, str]:
                counter.labels("red").inc()
                return {}

            service.route("POST", "/v1/make", make, summary="Make")

        with (
            in_background(create_app("things", register)) as url,
            httpx.Client(base_url=url, trust_env=False) as client,
        ):
            client.post("/v1/make")
            assert metrics_of(client, "things_total") == {("red",): 1.0}


class TestLog:
    def test_a_request_is_one_line_without_query_payload_or_token(self, guarded, caplog):
        with caplog.at_level(logging.INFO, logger="mlops_assets.service"):
            path = "/v1/double?card=4711-0815"
            response = guarded.post(path, json={"amount": 1, "name": "zzyzx"}, headers=bearer(ALICE))
            record = line_of(caplog, response.headers["x-request-id"])
        fields = record.fields
        assert fields["milliseconds"] > 0
        assert {name: fields[name] for name in ("event", "caller", "client", "method", "route", "status")} == {
            "event": "request", "caller": "alice", "client": "127.0.0.1", "method": "POST", "route": "/v1/double",
            "status": 200,
        }  # fmt: skip
        for secret in (ALICE, "4711-0815", "zzyzx"):
            assert secret not in caplog.text
            assert secret not in str(fields)

    def test_a_refused_payload_is_not_logged(self, client, caplog):
        with caplog.at_level(logging.DEBUG, logger="mlops_assets.service"):
            response = client.post("/v1/double", json={"amount": -1, "sex": SECRET})
            record = line_of(caplog, response.headers["x-request-id"])
        assert response.status_code == 422
        assert record.fields["code"] == "invalid_request"
        assert SECRET not in caplog.text
        assert "sex" not in str([r.__dict__ for r in caplog.records])

    def test_a_path_that_is_unknown_is_logged_on_one_line_and_cut(self, client, caplog):
        with caplog.at_level(logging.INFO, logger="mlops_assets.service"):
            client.get("/nowhere%0Aforged line" + "x" * 500)
            record = line_of(caplog, "unmatched")
        assert "forged" not in record.message
        assert len(record.fields["path"]) == 120


class TestDocumentation:
    def test_every_error_of_every_route_is_documented_in_its_shape(self, client):
        document = client.get("/openapi.json").json()
        assert document["components"]["securitySchemes"] == {
            "token": {"type": "http", "scheme": "bearer", "description": "A token of one of the service's callers."}
        }
        double = document["paths"]["/v1/double"]["post"]
        assert double["summary"] == "Double"
        assert double["description"] == "Double the amount."
        assert double["tags"] == ["things"]
        assert double["security"] == [{"token": []}]
        expected = {"200", "400", "401", "408", "409", "413", "415", "421", "422", "429", "500", "503", "504"}
        assert set(double["responses"]) == expected
        assert set(document["paths"]["/v1/who"]["get"]["responses"]) == expected - {"400", "408", "409", "413", "415"}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    if int(status) >= 400 and path != "/ready":
                        schema = response["content"]["application/json"]["schema"]
                        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
        assert "security" not in document["paths"]["/health"]["get"]
        assert "HTTPValidationError" not in document["components"]["schemas"]

    def test_no_page_that_loads_scripts_from_elsewhere_is_there(self, client):
        assert [client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


_SCRIPT = """
import sys
from fastapi import Request
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.serving import ServiceSettings, create_app, serve

def slow(seconds: float) -> dict[str, float]:
    import time
    print("begun", flush=True)
    time.sleep(seconds)
    return {"slept": seconds}

def broken() -> None:
    raise ValueError("broken on purpose")

def register(service):
    service.route("GET", "/v1/slow", slow, summary="Sleep")
    service.route("GET", "/v1/broken", broken, summary="Break")

app = create_app("sleeper", register, on_stop=lambda: print("closed", flush=True))
try:
    serve(app, port=int(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
"""


def _process(port: int, **env: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-c", _SCRIPT, str(port)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    )


class TestServe:
    @pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
    def test_a_process_says_where_it_answers_and_ends_when_its_requests_are_done(self, end):
        process = _process(0, MLOPS_ASSETS_SERVICE_TOKENS=TOKENS)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(
                r"sleeper answers at (http://127\.0\.0\.1:\d+) \(2 token\(s\) known\); Ctrl\+C stops it\n", line
            )
            assert found, line
            url, answers = found.group(1), []

            def ask() -> None:
                answers.append(
                    httpx.get(f"{url}/v1/slow?seconds=0.5", headers=bearer(BOB), trust_env=False, timeout=20)
                )

            assert httpx.get(f"{url}/v1/broken", headers=bearer(BOB), trust_env=False).status_code == 500
            thread = threading.Thread(target=ask)
            thread.start()
            assert process.stdout.readline() == "begun\n"
            process.send_signal(end)
            thread.join()
            assert answers[0].json() == {"slept": 0.5}
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
        assert out == "closed\n"
        assert process.returncode == (0 if end == signal.SIGINT else -signal.SIGTERM)
        logged = [json.loads(line) for line in err.splitlines()]
        assert [entry["status"] for entry in logged if entry.get("event") == "request"] == [500, 200]
        assert [entry["caller"] for entry in logged if entry.get("event") == "request"] == ["bob", "bob"]
        assert sum("broken on purpose" in entry.get("traceback", "") for entry in logged) == 1
        assert "seconds=0.5" not in err
        assert BOB not in err

    def test_a_port_that_is_taken_is_named(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UserError, match=f"127.0.0.1 port {port}: cannot listen: .*Remedy: choose another port"):
                serve(create_app("things", routes()), port=port)

    def test_an_address_of_another_machine_is_named(self, monkeypatch):
        monkeypatch.setenv("MLOPS_ASSETS_SERVICE_TOKENS", TOKENS)
        with pytest.raises(UserError, match=r"192\.0\.2\.1 port 0: cannot listen"):
            serve(create_app("things", routes()), host="192.0.2.1", port=0)

    def test_an_app_that_does_not_start_is_told(self, monkeypatch):
        app = create_app("things", routes())
        monkeypatch.setattr(app.state.service, "start", lambda: (_ for _ in ()).throw(RuntimeError("no threads")))
        logging.getLogger("uvicorn.error").propagate = False
        with pytest.raises(UserError, match="things: the service does not start"), in_background(app):
            pass


def test_unavailable_says_when_to_come_again():
    refusal = unavailable("open_incident", "Data are being mended.", retry_after=60)
    assert (refusal.status, refusal.headers) == (503, {"Retry-After": "60"})
