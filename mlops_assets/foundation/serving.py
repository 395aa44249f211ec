"""The app behind every answer that is given online: FastAPI, with what a service needs around its routes.

What belongs here: making the app (who may ask, limits, one shape of error, health, readiness, metrics, hot swap of
models) and running it. What does not: the routes of a system, which it adds with `Service.route`.

A request is read strictly or refused, and of what goes wrong inside nothing is told but an id. The parts are in modules
of their own: `_serving_guard.py` stands before the routes, `_serving_models.py` holds the models.
"""

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mlops_assets import __version__
from mlops_assets.foundation._serving_callers import LOCAL, TokenBuckets, Tokens
from mlops_assets.foundation._serving_errors import Detail, ErrorBody, Refused, of_http, of_validation, unavailable
from mlops_assets.foundation._serving_groups import Groups
from mlops_assets.foundation._serving_guard import Guard
from mlops_assets.foundation._serving_metrics import ServiceMetrics
from mlops_assets.foundation._serving_models import Held, HolderStatus, ModelHolder, ModelIdentity
from mlops_assets.foundation._serving_probes import Lookout, add_probes
from mlops_assets.foundation._serving_server import JsonLines, check_exposure, in_background, serve
from mlops_assets.foundation._serving_settings import ServiceSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = [
    "LOCAL",
    "Detail",
    "ErrorBody",
    "Groups",
    "Held",
    "HolderStatus",
    "JsonLines",
    "ModelHolder",
    "ModelIdentity",
    "Refused",
    "Service",
    "ServiceMetrics",
    "ServiceSettings",
    "TokenBuckets",
    "Tokens",
    "create_app",
    "in_background",
    "serve",
    "unavailable",
]

A = TypeVar("A")
R = TypeVar("R")

_REFUSALS = {
    400: "The body is no JSON, or JSON that can be read in two ways.",
    401: "There is no valid token.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not JSON in UTF-8.",
    421: "The request names a host that the service does not answer for.",
    422: "Fields are wrong: every one is listed with its remedy.",
    429: "More requests than this caller may make; Retry-After says how long to wait.",
    500: "The service failed; its log says why under the request's id.",
    503: "The service cannot answer at the moment; Retry-After says how long to wait.",
    504: "The answer took too long.",
}
_OF_BODIES = {400, 408, 413, 415}


class Service:
    """What a system adds its routes to.

    Parameters
    ----------
    app
        The app that they are routes of.
    settings, tokens, metrics
        The limits, who may ask, and where answers are counted.
    """

    def __init__(self, app: "FastAPI", settings: ServiceSettings, tokens: Tokens, metrics: ServiceMetrics) -> None:
        self.settings, self.tokens, self.metrics = settings, tokens, metrics
        self._app = app
        self._pool: ThreadPoolExecutor | None = None

    def route(
        self,
        method: str,
        path: str,
        endpoint: Callable[..., Any],
        *,
        summary: str,
        responses: Mapping[int, str] | None = None,
        status_code: int = 200,
        response_model: Any = None,
        tags: Sequence[str] = (),
    ) -> None:
        """Add a route; its errors and the token it needs are documented with it.

        Parameters
        ----------
        method, path
            Such as ``POST`` and ``/v1/credit/decisions``.
        endpoint
            A function as FastAPI takes it. One that is not ``async`` runs in one of the service's threads.
        summary
            One line for the API's documentation; the endpoint's docstring is the rest.
        responses
            More statuses that this route answers with, and what each means. Those of 400 and more are errors.
        status_code, response_model, tags
            As for FastAPI; the model of the answer is the endpoint's return annotation unless it is given.
        """
        self._app.add_api_route(
            path,
            endpoint if inspect.iscoroutinefunction(endpoint) else self._in_thread(endpoint),
            methods=[method],
            summary=summary,
            description=inspect.getdoc(endpoint),
            status_code=status_code,
            tags=list(tags),
            **({} if response_model is None else {"response_model": response_model}),
            **_documented(responses or {}, has_body=method != "GET"),
        )

    async def work(self, function: Callable[..., R], *arguments: Any) -> R:
        """Run a function in one of the service's threads.

        A request that is given up leaves the queue. What has begun is finished, and keeps its thread until then: a
        slow dependency never costs more than ``threads`` threads.
        """
        call = partial(contextvars.copy_context().run, function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def together(self, function: "Callable[[Sequence[A]], Sequence[R | Exception]]", *, most: int = 64) -> Groups[A, R]:
        """Return a way to work on requests in groups, in one of the service's threads; see `Groups`."""
        return Groups(self.work, function, most=most)

    def start(self) -> None:
        """Open the threads."""
        self._pool = ThreadPoolExecutor(self.settings.threads, thread_name_prefix="request")

    def stop(self) -> None:
        """Close the threads; what they have begun is waited for as long as a request may take."""
        if self._pool is not None:
            closing = threading.Thread(target=self._pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
            closing.start()
            closing.join(self.settings.request_seconds)

    def _in_thread(self, endpoint: Callable[..., Any]) -> Callable[..., Any]:
        async def call(**arguments: Any) -> Any:
            return await self.work(partial(endpoint, **arguments))

        # functools.wraps would lead FastAPI to the function inside, which it would run in threads without number.
        call.__name__, call.__doc__ = endpoint.__name__, endpoint.__doc__
        call.__signature__ = inspect.signature(endpoint, eval_str=True)  # type: ignore[attr-defined]
        return call


def create_app(
    title: str,
    register: Callable[[Service], None],
    settings: ServiceSettings | None = None,
    *,
    holders: Sequence[ModelHolder[Any]] = (),
    checks: Mapping[str, Callable[[], str | None]] | None = None,
    on_stop: Callable[[], None] | None = None,
    description: str = "",
    version: str = __version__,
) -> "FastAPI":
    """Return the ASGI app of a service.

    Parameters
    ----------
    title, description, version
        For the API's documentation.
    register
        Adds the system's routes to the `Service`.
    settings
        Where it may be reached, and its limits.
    holders
        The models that answer, polled while the app runs.
    checks
        Conditions of being ready by name: each returns None, or what is wrong.
    on_stop
        Called when no request is under way any more.

    Raises
    ------
    UserError
        The host is not this machine's own and no tokens are set, or a token cannot be used.
    """
    settings = settings or ServiceSettings()
    tokens = Tokens.from_environment(settings.token_variable, os.environ)
    check_exposure(settings, settings.host, len(tokens))
    by_name = {holder.name: holder for holder in holders}
    metrics = ServiceMetrics(by_name)

    def start() -> None:
        service.start()
        for holder in holders:
            holder.start()

    def stop() -> None:
        for holder in holders:
            holder.stop()
        service.stop()
        if on_stop is not None:
            on_stop()

    app = _fastapi(title, description, version, start, stop)
    service = app.state.service = Service(app, settings, tokens, metrics)
    add_probes(app, Lookout(by_name, checks or {}), metrics, _documented({}, has_body=False))
    register(service)
    app.add_middleware(Guard, settings=settings, tokens=tokens, metrics=metrics)
    return app


def _fastapi(
    title: str, description: str, version: str, start: Callable[[], None], stop: Callable[[], None]
) -> "FastAPI":
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    @asynccontextmanager
    async def lifespan(_: "FastAPI") -> AsyncIterator[None]:
        start()
        try:
            yield
        finally:
            await asyncio.to_thread(stop)

    # FastAPI's own errors are led to the guard, which is the one place that tells errors.
    async def invalid(_: object, error: Exception) -> NoReturn:
        assert isinstance(error, RequestValidationError)
        raise of_validation(error.errors()) from None

    async def refused(_: object, error: Exception) -> NoReturn:
        assert isinstance(error, HTTPException)
        raise of_http(error.status_code, error.headers) from None

    return FastAPI(
        title=title,
        description=description,
        version=version,
        lifespan=lifespan,
        # The pages that show the documentation load scripts from elsewhere; the document itself is served.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={RequestValidationError: invalid, HTTPException: refused},
        # FastAPI's export of traces and logs would hold what callers sent.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )


def _documented(own: Mapping[int, str], *, has_body: bool) -> dict[str, Any]:
    """Return what the API's documentation says of a route's token, errors and own statuses."""
    from fastapi import Security
    from fastapi.security import HTTPBearer

    common = {status: text for status, text in _REFUSALS.items() if has_body or status not in _OF_BODIES}
    responses = {
        status: {"description": text, **({"model": ErrorBody} if status >= 400 else {})}
        for status, text in {**common, **own}.items()
    }
    # The guard has compared the token already: this only writes it into the documentation.
    bearer = HTTPBearer(auto_error=False, scheme_name="token", description="A token of one of the service's callers.")
    return {"responses": dict(sorted(responses.items())), "dependencies": [Security(bearer)]}
