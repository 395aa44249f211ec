"""Every error of a service in one shape, with a remedy for each wrong field.

What belongs here: the shape, and how validation errors and users' mistakes become it. What does not: sending it
(`_serving_guard.py`).
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, Field

from mlops_assets.foundation.errors import UserError

MAX_DETAILS = 100
_SHOWN = 60


@dataclass(frozen=True)
class Detail:
    """One thing that is wrong with a request: where, what, and what to do about it."""

    field: str
    problem: str
    remedy: str


class Refused(Exception):  # noqa: N818 - an answer that a service gives on purpose
    """An answer with an error status, given on purpose.

    Parameters
    ----------
    status
        The HTTP status.
    code
        A word that programs can tell the case by.
    message
        One sentence for a person. It is sent to the caller: no path, no secret, no value of somebody else.
    details
        What exactly is wrong; the first hundred are sent.
    headers
        More response headers, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Sequence[Detail] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.code, self.message = status, code, message
        self.details, self.headers = tuple(details), dict(headers or {})
        super().__init__(f"{status} {code}: {message}")

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the body that is sent."""
        message = self.message
        if len(self.details) > MAX_DETAILS:
            message = f"{message} The first {MAX_DETAILS} of {len(self.details)} are listed."
        details = [asdict(detail) for detail in self.details[:MAX_DETAILS]]
        return {"error": {"code": self.code, "message": message, "request_id": request_id, "details": details}}


class ErrorDetail(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="Where it is, such as features.income.")
    problem: str = Field(description="What is wrong, with the value that was sent and the bound that it breaks.")
    remedy: str = Field(description="What to do about it.")


class ErrorContent(BaseModel):
    """What went wrong."""

    code: str = Field(description="A word that programs can tell the case by.", examples=["invalid_request"])
    message: str = Field(description="One sentence for a person.")
    request_id: str = Field(description="The id under which this request stands in the service's log.")
    details: list[ErrorDetail] = Field(description="Everything that is wrong with the request, where that is known.")


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorContent


def unavailable(code: str, message: str, *, retry_after: int = 5) -> Refused:
    """Return the refusal of a request that can succeed later: status 503 with ``Retry-After`` in seconds."""
    return Refused(503, code, message, headers={"Retry-After": str(retry_after)})


def of_user_error(error: UserError) -> Refused | None:
    """Return the answer to a mistake of the caller; None if storage or another library of ours is behind it.

    A file that cannot be read or a locked database is nothing that the caller can mend, and its message names places
    that are no business of theirs.
    """
    if any(isinstance(cause, OSError | sqlite3.Error) or _is_database_error(cause) for cause in _causes(error)):
        return None
    detail = Detail(error.where or "", error.what, error.remedy or "")
    return Refused(422, "invalid_request", "The request cannot be used.", details=[detail])


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_database_error(error: BaseException) -> bool:
    # Named and not imported: the libraries are loaded only where they are used.
    return any(kind.__module__.strip("_").partition(".")[0] in {"duckdb", "sqlalchemy"} for kind in type(error).__mro__)


def of_validation(errors: Iterable[Mapping[str, Any]]) -> Refused:
    """Return the answer to pydantic's ``errors()``: every wrong field with what was sent, the bound and the remedy."""
    details = [_detail(error) for error in errors]
    count = f"{len(details)} fields are" if len(details) > 1 else "One field is"
    return Refused(422, "invalid_request", f"{count} not as they have to be.", details=details)


def of_http(status: int, headers: Mapping[str, str] | None) -> Refused:
    """Return the answer that stands for an error of the router's: an unknown path or method."""
    codes = {
        404: ("not_found", "There is nothing at this path."),
        405: ("method_not_allowed", "This path does not answer to this method."),
    }
    code, message = codes.get(status, ("refused", "The request was refused."))
    return Refused(status, code, message, headers=headers)


def shown(value: object, limit: int = _SHOWN) -> str:
    """Return a value as it may stand in a message: on one line, printable and short."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _detail(error: Mapping[str, Any]) -> Detail:
    kind, field = str(error["type"]), _place(error["loc"])
    if kind == "missing":
        return Detail(field, "is missing", "add it.")
    if kind == "extra_forbidden":
        # What nobody asked for is named and its value is not repeated: it may be what must not be sent at all.
        return Detail(field, "is not a field of this request", "leave it out.")
    text = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value = error.get("input")
    sent = ""
    if (isinstance(value, str | int | float) or value is None) and error["loc"] and error["loc"][0] != "header":
        sent = f"is {shown(value)}: "
    wish = text.removeprefix("Input should be ")
    if wish != text:
        return Detail(field, f"{sent}should be {wish}", f"send a value that is {wish}.")
    return Detail(field, f"{sent}{text[:1].lower()}{text[1:]}", _remedy(kind, error.get("ctx") or {}))


def _remedy(kind: str, bounds: Mapping[str, Any]) -> str:
    if kind in {"string_too_long", "too_long"}:
        return f"shorten it to {bounds['max_length']}."
    if kind in {"string_too_short", "too_short"}:
        return f"make it at least {bounds['min_length']} long."
    if kind == "string_pattern_mismatch":
        return f"write it so that it matches {bounds['pattern']}."
    return "send what is asked for."


def _place(location: Sequence[str | int]) -> str:
    """Return where a field is: its path in the body, or query.limit for what is elsewhere."""
    parts = list(location)
    if parts[:1] == ["body"] and len(parts) > 1:
        parts = parts[1:]
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part.isprintable() and len(part) <= _SHOWN else shown(part)
            text += f".{name}" if text else name
    return text
