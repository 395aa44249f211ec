"""The files that a source block means: patterns, the environment's values in them, storage that says no.

What belongs here: paths, formats by suffix, and errors of storage. What does not: what is in the files
(`_file_tables.py`).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from mlops_assets.foundation._source_blocks import FilesSource, Format
from mlops_assets.foundation.errors import UserError

_SUFFIXES: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def expand(text: str, *, where: str) -> str:
    """Replace ``${VAR}`` and ``${VAR:-default}`` by the environment's values."""

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name) or default
        if found is None:
            raise UserError(
                f"environment variable {name} is not set",
                where=where,
                remedy=f"set it, or give a default: ${{{name}:-default}}.",
            )
        return found

    return _VARIABLE.sub(value, text)


def resolve(source: FilesSource, base: Path | UPath) -> list[UPath]:
    """Return the files of a source, sorted within each pattern.

    Raises
    ------
    UserError
        A pattern matches no file, or its storage cannot be reached.
    """
    options = {
        key: expand(value, where=f"storage_options.{key}") if isinstance(value, str) else value
        for key, value in source.storage_options.items()
    }
    files: list[UPath] = []
    for raw in [source.path] if isinstance(source.path, str) else source.path:
        pattern = expand(raw, where=f"path {raw}")
        root = UPath(pattern, **options) if "://" in pattern else UPath(base) / Path(pattern).expanduser()
        with storage_errors(str(root)):
            # A listing that the file system remembers does not show what has come since.
            root.fs.invalidate_cache()
            found = _matching(root)
        if not found:
            raise UserError(
                "no file matches this path",
                where=str(root),
                remedy="correct `path`; a relative path starts at the spec file's folder, and a folder needs a "
                "pattern such as folder/*.parquet.",
            )
        files += [path for path in found if path not in files]
    return files


def _matching(root: UPath) -> list[UPath]:
    try:
        # Not `is_file`: that calls an unreachable store, or a refused key, no file.
        if root.fs.info(root.path)["type"] == "file":
            return [root]
    except FileNotFoundError:
        pass
    if not any(mark in str(root) for mark in "*?["):
        return []
    parts = root.parts
    first = next(at for at, part in enumerate(parts) if any(mark in part for mark in "*?["))
    folder = root
    for _ in parts[first:]:
        folder = folder.parent
    pattern = "/".join(parts[first:])
    return sorted((path for path in folder.glob(pattern) if path.is_file()), key=str)


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn what storage says into a message that names the file and the remedy."""
    remedy = "check that the file is there and may be read."
    if "://" in where:
        remedy = (
            "check bucket and key, credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role), "
            "region and endpoint (`storage_options`)."
        )
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot be read: {error}", where=where, remedy=remedy) from error
    except Exception as error:
        # botocore's errors share no base class with OSError, and importing it costs a third of a second.
        if type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore"):
            raise UserError(f"cannot be read: {error}", where=where, remedy=remedy) from error
        raise


def format_of(path: UPath, source: FilesSource) -> Format:
    """Return the format of a file: what the block says, or else what its suffix does."""
    if source.format is not None:
        return source.format
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")
    if last in _SUFFIXES:
        return _SUFFIXES[last]
    if source.separator is not None:
        return "csv"
    raise UserError(
        f"the format of a {last or 'suffixless'} file is unknown",
        where=str(path),
        remedy="give `format: csv`, `tsv` or `parquet`, and `separator` where it is another one.",
    )
