"""What operators and their machines ask a service: does it live, can it answer, what are its figures.

What belongs here: health, readiness and metrics, and their routes. What does not: what makes one system ready, which
the system hands over as checks.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from mlops_assets.foundation._serving_guard import METRICS
from mlops_assets.foundation._serving_metrics import ServiceMetrics
from mlops_assets.foundation._serving_models import HolderStatus, ModelHolder
from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger("mlops_assets.service")
_FRESH_SECONDS = 1.0
_TOLD = "only told locally and to callers with a token."


class Health(BaseModel):
    """That the process lives."""

    status: Literal["alive"] = "alive"


class CheckState(BaseModel):
    """One condition of being ready."""

    name: str
    ok: bool
    message: str | None = Field(None, description=f"What is wrong; {_TOLD}")


class ModelState(BaseModel):
    """A model that answers."""

    name: str
    version: str | None = Field(description="The version that answers; null while there is none.")
    sha256: str | None
    loaded_at: datetime | None
    checked_at: datetime | None = Field(description="When it was last asked which version is current.")
    swaps: int
    failures: int
    error: str | None = Field(None, description=f"Why the last attempt to load failed; {_TOLD}")


class Readiness(BaseModel):
    """Whether requests can be answered."""

    status: Literal["ready", "not_ready"]
    checks: list[CheckState]
    models: list[ModelState]


class Lookout:
    """Whether a service can answer: each of its holders has a model, and each of its checks has nothing to say.

    Looked at once a second at most, however many ask: checks touch disks and databases.
    """

    def __init__(self, holders: Mapping[str, ModelHolder[Any]], checks: Mapping[str, Callable[[], str | None]]) -> None:
        self._holders, self._checks = holders, dict(checks)
        self._last: tuple[float, Readiness] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def look(self) -> Readiness:
        """Return what was found, now or less than a second ago."""
        async with self._one_at_a_time:
            if self._last is None or time.monotonic() - self._last[0] > _FRESH_SECONDS:
                found = await asyncio.to_thread(self._look)
                self._last = (time.monotonic(), found)
            return self._last[1]

    def _look(self) -> Readiness:
        checks = [_asked(name, check) for name, check in self._checks.items()]
        models = [_state_of(name, holder.status()) for name, holder in self._holders.items()]
        for model in models:
            problem = None if model.version else (model.error or "none is loaded yet")
            checks.append(CheckState(name=f"{model.name} model", ok=problem is None, message=problem))
        ready = all(check.ok for check in checks)
        return Readiness(status="ready" if ready else "not_ready", checks=checks, models=models)


def add_probes(app: "FastAPI", lookout: Lookout, metrics: ServiceMetrics, documented: Mapping[str, Any]) -> None:
    """Add ``/health``, ``/ready`` and ``/metrics``; ``documented`` is what the last one says of tokens and errors."""
    from fastapi import Request, Response

    async def health() -> Health:
        """Answer as long as the process lives, whatever else is broken."""
        return Health()

    async def ready(request: Request, response: Response) -> Readiness:
        """Say whether a model is loaded and everything that an answer needs works."""
        found = await lookout.look()
        response.status_code = 200 if found.status == "ready" else 503
        return found if request.state.may_look else _without_messages(found)

    async def figures() -> Response:
        """Return requests, times, refusals and models in Prometheus' text format; open locally, else for a token."""
        content, kind = metrics.text()
        return Response(content, headers={"content-type": kind})

    tags: list[Any] = ["operations"]
    not_ready: dict[int | str, Any] = {
        503: {"model": Readiness, "description": "Something that an answer needs does not work."}
    }
    text: dict[int | str, Any] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    app.add_api_route("/health", health, tags=tags, summary="Does the process live?")
    app.add_api_route("/ready", ready, tags=tags, summary="Can requests be answered?", responses=not_ready)
    for path, probe in (("/health", health), ("/ready", ready)):
        app.add_api_route(path, probe, methods=["HEAD"], include_in_schema=False)
    responses = {**text, **documented["responses"]}
    shown = {**documented, "responses": responses, "response_class": Response}
    app.add_api_route(METRICS, figures, tags=tags, summary="What are the service's figures?", **shown)


def _asked(name: str, check: Callable[[], str | None]) -> CheckState:
    try:
        problem = check()
    except UserError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - a check that breaks is a condition that is not met
        _log.error("check %s failed", name, exc_info=error, extra={"fields": {"event": "check"}})
        problem = f"the check failed: {type(error).__name__}"
    return CheckState(name=name, ok=problem is None, message=problem)


def _state_of(name: str, status: HolderStatus) -> ModelState:
    identity = status.identity
    return ModelState(
        name=name,
        version=identity.version if identity else None,
        sha256=identity.sha256 if identity else None,
        loaded_at=status.loaded_at,
        checked_at=status.checked_at,
        swaps=status.swaps,
        failures=status.failures,
        error=status.error,
    )


def _without_messages(found: Readiness) -> Readiness:
    # Messages name files and versions, and these two paths are open to everybody.
    return Readiness(
        status=found.status,
        checks=[check.model_copy(update={"message": None}) for check in found.checks],
        models=[model.model_copy(update={"error": None}) for model in found.models],
    )
