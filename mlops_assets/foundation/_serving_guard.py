"""What stands before every route: who may ask, how much, how long, and how every error is told.

What belongs here: one ASGI middleware that admits a request, reads its body within limits, keeps time, turns whatever
goes wrong into one shape, counts and logs. What does not: routes, and what the body means.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from mlops_assets.foundation._serving_callers import LOCAL, TokenBuckets, Tokens, is_loopback, network_of
from mlops_assets.foundation._serving_errors import Refused, of_user_error, unavailable
from mlops_assets.foundation._serving_json import strict_json
from mlops_assets.foundation._serving_metrics import ServiceMetrics
from mlops_assets.foundation._serving_settings import ServiceSettings
from mlops_assets.foundation.errors import UserError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBES = frozenset({"/health", "/ready"})
METRICS = "/metrics"

_log = logging.getLogger("mlops_assets.service")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_GONE = 499
_PATH_CHARACTERS = 120
_WITH_BODY = {"POST", "PUT", "PATCH", "DELETE"}


class _ClientGoneError(Exception):
    """The client left before its request was whole."""


@dataclass
class _Visit:
    """One request on its way through: what the log and the metrics will say about it."""

    id: str
    method: str
    client: str
    local: bool
    started: float = field(default_factory=time.perf_counter)
    caller: str | None = None
    status: int = 0
    code: str = ""
    begun: bool = False


class Guard:
    """ASGI middleware around a service's routes.

    Parameters
    ----------
    app
        What is guarded.
    settings, tokens, metrics
        The limits, who may ask, and where answers are counted.
    """

    def __init__(self, app: App, settings: ServiceSettings, tokens: Tokens, metrics: ServiceMetrics) -> None:
        self._app, self._settings, self._tokens, self._metrics = app, settings, tokens, metrics
        self._in_flight = 0
        rate = settings.rate_per_second
        self._buckets = TokenBuckets(rate, settings.burst, settings.max_clients) if rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _visit_of(scope)
        scope.setdefault("state", {}).update(request_id=visit.id)
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._answer(visit, scope, receive, _marked(visit, send))
            finally:
                self._count(visit, scope)

    async def _answer(self, visit: _Visit, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._settings.request_seconds) as clock:
                await self._admitted(visit, scope, receive, send)
        except _ClientGoneError:
            visit.status, visit.code = _GONE, "client_gone"
            return
        except Exception as error:  # noqa: BLE001 - the outermost place: what is not told here, nobody tells
            late = isinstance(error, TimeoutError) and clock.expired()
            refusal = self._timed_out() if late else _refusal_of(error, visit)
        else:
            return
        visit.code = refusal.code
        if visit.begun:
            # Half an answer is out already; without its end, the server closes the connection.
            _log.error("request %s broke off: %s", visit.id, refusal, extra={"fields": {"request_id": visit.id}})
            return
        await _send_refusal(refusal, visit, send)

    async def _admitted(self, visit: _Visit, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        path = scope["path"]
        self._check_host(visit, headers)
        visit.caller = self._caller(visit, headers)
        may_look = visit.caller is not None or (visit.local and not self._settings.trusted_proxies)
        scope["state"].update(caller=visit.caller, may_look=may_look)
        if path in PROBES or (path == METRICS and may_look):
            await self._app(scope, receive, send)
            return
        self._check_caller(visit)
        if self._in_flight >= self._settings.max_in_flight:
            raise unavailable("busy", "The service has as many requests under way as it takes.", retry_after=1)
        self._in_flight += 1
        try:
            body = await self._body(visit, headers, receive)
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._in_flight -= 1

    def _check_host(self, visit: _Visit, headers: dict[str, str]) -> None:
        """Refuse another site's name: a page that a browser shows must not reach a service of its own machine."""
        host = re.sub(r":\d+$", "", headers.get("host", "")).lower()
        allowed = self._settings.allowed_hosts
        known = host in allowed if allowed else not visit.local or is_loopback(host)
        if not known and not (allowed and is_loopback(host) and visit.local):
            raise Refused(421, "wrong_host", "The service does not answer for the host that the request names.")

    def _caller(self, visit: _Visit, headers: dict[str, str]) -> str | None:
        if len(self._tokens):
            return self._tokens.caller(headers.get("authorization", ""))
        return LOCAL if visit.local else None

    def _check_caller(self, visit: _Visit) -> None:
        client = visit.caller or network_of(visit.client)
        wait = self._buckets.take(client) if self._buckets is not None else 0
        if wait:
            message = "More requests than this client may make; wait as long as Retry-After says."
            raise Refused(429, "too_many_requests", message, headers={"Retry-After": str(wait)})
        if visit.caller is None:
            message = "A valid token is needed: send the header Authorization: Bearer TOKEN."
            raise Refused(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="mlops_assets"'})

    async def _body(self, visit: _Visit, headers: dict[str, str], receive: Receive) -> bytes:
        limit = self._settings.max_body_bytes
        declared = headers.get("content-length")
        if "transfer-encoding" not in headers and declared in (None, "0"):
            return b""
        if declared is not None and int(declared) > limit:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                body = await _read(receive, limit)
        except TimeoutError:
            message = f"The body was not there within {self._settings.body_seconds:g} seconds."
            raise Refused(408, "body_too_slow", message, headers={"Connection": "close"}) from None
        if body is None:
            raise self._too_large()
        if body and visit.method in _WITH_BODY:
            _check_content_type(headers)
            strict_json(body, max_depth=self._settings.max_depth)
        return body

    def _too_large(self) -> Refused:
        limit = self._settings.max_body_bytes
        return Refused(413, "too_large", f"The body is larger than {limit:,} bytes, the most that is taken.")

    def _timed_out(self) -> Refused:
        seconds = self._settings.request_seconds
        message = f"There was no answer within {seconds:g} seconds; what was asked for may still be done."
        return Refused(504, "timed_out", message)

    def _count(self, visit: _Visit, scope: Scope) -> None:
        seconds = time.perf_counter() - visit.started
        route = getattr(scope.get("route"), "path", None)
        self._metrics.answered(visit.method, route or "unmatched", visit.status, seconds, visit.code)
        fields: dict[str, Any] = {
            "event": "request", "request_id": visit.id, "caller": visit.caller, "client": visit.client,
            "method": visit.method, "route": route, "status": visit.status, "milliseconds": round(seconds * 1000, 2),
        }  # fmt: skip
        if visit.code:
            fields["code"] = visit.code
        if route is None:
            fields["path"] = scope["path"][:_PATH_CHARACTERS]
        _log.info(
            "%s %s %s by %s in %.1f ms (%s)",
            visit.method, route or "unmatched", visit.status, visit.caller or "nobody", seconds * 1000, visit.id,
            extra={"fields": fields},
        )  # fmt: skip


def _visit_of(scope: Scope) -> _Visit:
    asked = _headers(scope).get("x-request-id", "")
    client, server = scope.get("client"), scope.get("server")
    return _Visit(
        id=asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex,
        method=scope["method"],
        client=client[0] if client else "unknown",
        # The address that the connection came in at, whatever the service was told to listen on.
        local=bool(server and is_loopback(server[0])),
    )


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _marked(visit: _Visit, send: Send) -> Send:
    """Return a ``send`` that notes the status and adds what every answer carries."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            visit.begun, visit.status = True, message["status"]
            names = {name.lower() for name, _ in message["headers"]}
            more = {b"x-request-id": visit.id.encode(), b"x-content-type-options": b"nosniff"}
            if b"cache-control" not in names:
                more[b"cache-control"] = b"no-store"
            message = {**message, "headers": [*message["headers"], *more.items()]}
        await send(message)

    return marked


async def _send_refusal(refusal: Refused, visit: _Visit, send: Send) -> None:
    body = json.dumps(refusal.body(visit.id), ensure_ascii=True).encode()
    own = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in own.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _refusal_of(error: Exception, visit: _Visit) -> Refused:
    if isinstance(error, Refused):
        return error
    fields = {"event": "fault", "request_id": visit.id}
    if isinstance(error, UserError):
        told = of_user_error(error)
        if told is not None:
            return told
        _log.error("request %s: %s", visit.id, error, exc_info=error, extra={"fields": fields})
        message = f"The service cannot do this at the moment; its log says why under {visit.id}."
        return unavailable("unavailable", message)
    _log.error("request %s failed", visit.id, exc_info=error, extra={"fields": fields})
    return Refused(500, "internal_error", f"The service failed; its log says why under {visit.id}.")


def _check_content_type(headers: dict[str, str]) -> None:
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    charset = re.fullmatch(r"\s*charset\s*=\s*\"?utf-?8\"?\s*", parameters)
    encoded = headers.get("content-encoding", "identity").strip().lower() != "identity"
    if kind.strip() != "application/json" or (parameters.strip() and not charset) or encoded:
        raise Refused(
            415, "unsupported_media_type", "Send JSON in UTF-8, uncompressed: Content-Type: application/json."
        )


async def _read(receive: Receive, limit: int) -> bytes | None:
    """Return a body, or None as soon as it is larger than ``limit``; no more than that is ever held."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            return None
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the body once, and then what the server says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
