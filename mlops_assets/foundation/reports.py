"""Documents for people (model cards, drift reports) and the links by which a page reaches them.

What belongs here: where a document lies under the store, and its address. What does not: what is in it.
"""

import os
import re
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from mlops_assets.foundation import files
from mlops_assets.foundation._serving_callers import is_loopback
from mlops_assets.foundation._serving_server import address, bound
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath

FOLDER = "reports"
URL_VARIABLE = "MLOPS_ASSETS_REPORTS_URL"
DEFAULT_URL = "http://localhost:3070"
# No disk takes a name of more than 255 bytes, and writing needs some for a suffix.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def write(root: AnyPath, path: str, content: bytes) -> str:
    """Write a document below the store's root and return its SHA-256; the same path with other content is replaced.

    Parameters
    ----------
    path
        Relative to the folder of reports, such as ``credit_risk/cards/<sha256>.html``.

    Raises
    ------
    ValueError
        The path could leave the folder.
    """
    if not all(_PART.fullmatch(part) for part in path.split("/")):
        raise ValueError(f"{path!r} is no path of a report")
    return files.write_atomic(root / FOLDER / path, content)


def read(root: AnyPath, path: str) -> bytes | None:
    """Return a document, or None where there is none (or no path of one)."""
    if not all(_PART.fullmatch(part) for part in path.split("/")):
        return None
    try:
        return files.read_bytes(root / FOLDER / path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def serve_reports(root: AnyPath, *, host: str, port: int) -> None:
    """Show the documents below a store's root over HTTP, read-only, until the process is told to stop.

    Raises
    ------
    UserError
        The address cannot be listened on, or is not this machine's own: who asks is not known here.
    """
    import click
    import uvicorn

    if not is_loopback(host):
        raise UserError(
            f"the reports would be shown to anybody on {host}",
            where="reports",
            remedy="listen on 127.0.0.1, and put a server of your own that knows who asks before it.",
        )
    with bound(host, port) as listening:
        server = uvicorn.Server(uvicorn.Config(reports_app(root), log_level="warning", ws="none", server_header=False))
        click.echo(f"reports are shown at {address(listening)} (this machine only); Ctrl+C stops it")
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once every request is answered
            server.run(sockets=[listening])


def reports_app(root: AnyPath) -> Any:
    """Return the ASGI app that shows the documents below a store's root, and nothing else."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    # What a document holds of the data must not act, whatever it says: no scripts but its own, and no other address.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline' 'unsafe-eval'"
    headers = {"Content-Security-Policy": f"{policy}; font-src data:", "X-Content-Type-Options": "nosniff"}

    def show(request: Request) -> Response:
        if not _is_ours(request.headers.get("host", "")):
            return Response("this host is not known here", status_code=421, media_type="text/plain", headers=headers)
        path = str(request.path_params["path"])
        content = read(root, path)
        if content is None:
            return Response("there is no such report", status_code=404, media_type="text/plain", headers=headers)
        kind = {"html": "text/html", "json": "application/json", "md": "text/markdown"}.get(path.rpartition(".")[2])
        return Response(content, media_type=kind or "application/octet-stream", headers=headers)

    return Starlette(routes=[Route("/{path:path}", show, methods=["GET"])])


def _is_ours(host: str) -> bool:
    # A name that somebody made point to this machine would let a page of theirs read the reports.
    name = re.sub(r":\d+$", "", host).lower()
    return is_loopback(name) or name == (urlsplit(link("")).hostname or "")


def link(path: str) -> str:
    """Return the address at which ``mlops-assets reports`` (or a server of your own) shows a document."""
    base = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    return f"{base.rstrip('/')}/{path}"
