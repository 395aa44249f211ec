"""Running a service: one process, its socket, its log, and an end that lets requests finish.

What belongs here: uvicorn and how it is set up. What does not: what is answered.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlops_assets.foundation._serving_callers import is_loopback
from mlops_assets.foundation._serving_settings import ServiceSettings
from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

_HEAD_BYTES = 32_768
_KEEP_ALIVE_SECONDS = 5
_START_SECONDS = 60.0


class JsonLines(logging.Formatter):
    """One line of JSON a record: time, level, message, the record's ``fields``, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def serve(app: "FastAPI", host: str | None = None, port: int | None = None) -> None:
    """Run a service in this process until it is told to stop, then let the requests under way finish.

    Parameters
    ----------
    app
        What `create_app` returned.
    host, port
        Instead of those of the app's settings.

    Raises
    ------
    UserError
        The address cannot be listened on, or is not this machine's own and the service has no tokens.
    """
    import click

    server, listening = _server(app, host, port)
    _log_to_stderr()
    callers = len(app.state.service.tokens)
    who = f"{callers} token(s) known" if callers else "no token needed, this machine only"
    click.echo(f"{app.title} answers at {address(listening)} ({who}); Ctrl+C stops it")
    with listening:
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            # uvicorn raises the signal again once every request is answered: the end that was asked for.
            return


@contextmanager
def in_background(app: "FastAPI", host: str | None = None, port: int = 0) -> Iterator[str]:
    """Run a service in a thread of this process, for notebooks, demonstrations and tests; yields its URL.

    Raises
    ------
    UserError
        As `serve`, or the service does not start.
    """
    server, listening = _server(app, host, port)

    def run() -> None:
        with suppress(SystemExit):  # uvicorn's way to say that the app does not start
            server.run(sockets=[listening])

    thread = threading.Thread(target=run, name="service", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise UserError("the service does not start", where=app.title, remedy="read its log for the reason.")
            time.sleep(0.01)
        yield address(listening)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def check_exposure(settings: ServiceSettings, host: str, tokens: int) -> None:
    """Refuse to answer others than this machine without tokens.

    Raises
    ------
    UserError
        The host is not loopback, or a proxy brings the requests of others, and there is no token.
    """
    if tokens == 0 and (settings.trusted_proxies or not is_loopback(host)):
        who = "behind a proxy" if settings.trusted_proxies else f"on {host}"
        raise UserError(
            f"the service would answer anybody {who}: no tokens are set",
            where=settings.token_variable,
            remedy="set the variable to name=token, or listen on 127.0.0.1.",
        )


def _server(app: "FastAPI", host: str | None, port: int | None) -> "tuple[uvicorn.Server, socket.socket]":
    import uvicorn

    settings: ServiceSettings = app.state.service.settings
    host = settings.host if host is None else host
    port = settings.port if port is None else port
    check_exposure(settings, host, len(app.state.service.tokens))
    config = uvicorn.Config(
        app,
        http=_impatient_protocol(settings.head_seconds),
        ws="none",
        lifespan="on",
        workers=1,
        log_config=None,
        access_log=False,  # its lines hold query strings
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    return uvicorn.Server(config), bound(host, port)


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises
    ------
    UserError
        The address cannot be listened on.
    """
    # Bound here and not by uvicorn, which ends the process where the port is taken.
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise _cannot_listen(host, port, error) from error
    return listening


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    return UserError(
        f"cannot listen: {error.strerror or error}",
        where=f"{host} port {port}",
        remedy="choose another port, or stop the program that holds this one.",
    )


def address(listening: socket.socket) -> str:
    """Return the URL of what answers at a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr() -> None:
    """Give the service's log a place, unless the program that runs it has one."""
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in {"mlops_assets.service": logging.INFO, "uvicorn": logging.WARNING}.items():
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(handler)
            logger.setLevel(level)


class _Impatient(asyncio.Protocol):
    """A limit on the time between connections, heads and rests of bodies, laid over uvicorn's HTTP protocol.

    uvicorn waits for ever for the end of a head, and for what follows an answer that was given before the end of the
    body. Both hold a connection, of which there is a limited number.
    """

    head_seconds: float
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._keep_time()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._keep_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_timer()
        super().connection_lost(exc)

    def _keep_time(self) -> None:
        if self._is_answering():
            self._drop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._out_of_time)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out_of_time(self) -> None:
        self._timer = None
        # A request that began meanwhile has timeouts of its own.
        if not self._is_answering():
            self.transport.close()


def _impatient_protocol(head_seconds: float) -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return type("ImpatientProtocol", (_Impatient, H11Protocol), {"head_seconds": head_seconds})
