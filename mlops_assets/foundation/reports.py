"""Documents for people (model cards, drift reports) and the links by which a page reaches them.

What belongs here: where a document lies under the store, and its address. What does not: what is in it.
"""

import os
import re
from typing import Any

from mlops_assets.foundation import files
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
    """Show the documents below a store's root over HTTP, read-only, until it is interrupted."""
    import uvicorn

    uvicorn.run(reports_app(root), host=host, port=port, log_level="warning")


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
        path = str(request.path_params["path"])
        content = read(root, path)
        if content is None:
            return Response("there is no such report", status_code=404, media_type="text/plain", headers=headers)
        kind = {"html": "text/html", "json": "application/json", "md": "text/markdown"}.get(path.rpartition(".")[2])
        return Response(content, media_type=kind or "application/octet-stream", headers=headers)

    return Starlette(routes=[Route("/{path:path}", show, methods=["GET"])])


def link(path: str) -> str:
    """Return the address at which ``mlops-assets reports`` (or a server of your own) shows a document."""
    base = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    return f"{base.rstrip('/')}/{path}"
