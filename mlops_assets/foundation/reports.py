"""Documents for people (model cards, drift reports) and the links by which a page reaches them.

What belongs here: where a document lies under the store, and its address. What does not: what is in it.
"""

import os
import re

from mlops_assets.foundation import files
from mlops_assets.foundation.files import AnyPath

FOLDER = "reports"
URL_VARIABLE = "MLOPS_ASSETS_REPORTS_URL"
DEFAULT_URL = "http://localhost:3070"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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


def link(path: str) -> str:
    """Return the address at which ``mlops-assets reports`` (or a server of your own) shows a document."""
    base = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    return f"{base.rstrip('/')}/{path}"
