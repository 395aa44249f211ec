"""Where model versions lie: their files and records in a folder or an object store.

What belongs here: the immutable record of a version, its hashes, and the store behind `Registry`. What does not:
numbers and runs in MLflow (`_mlflow.py`), which version serves, and why (`_champion.py`).

The object store is the truth: ``<root>/<model>/v<number>/`` holds ``files/``, ``evidence/`` and ``version.json``.
The record is written last and only once: a version is there whole or not at all, and is read without MLflow.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import (
    AnyPath,
    atomic_writer,
    canonical_json,
    create,
    is_local,
    names_in,
    read_bytes,
    sha256_hex,
    sha256_of,
)

_CHUNK = 1 << 20
_EXECUTABLE = {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"}
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def json_of(value: object, where: str) -> bytes:
    """Return the canonical JSON of ``value``; NumPy scalars become plain numbers, dates ISO 8601 text.

    Raises
    ------
    UserError
        A number is not finite or a value has no JSON form; ``where`` names the place.
    """
    try:
        return canonical_json(_plain(value))
    except (TypeError, ValueError) as error:
        raise UserError(
            str(error),
            where=where,
            remedy="leave out what is not known, and give plain numbers, text and lists.",
        ) from error


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value.isoformat() if isinstance(value, date) else value


def sha256_of_json(value: object, where: str) -> str:
    """Return the SHA-256 of the canonical JSON of ``value`` in hex."""
    return sha256_hex(json_of(value, where))


@dataclass(frozen=True)
class ModelVersion:
    """One immutable version of a model.

    Parameters
    ----------
    model, version
        Its name (``"discover_weekly.blend_model"``) and its number, from 1.
    sha256
        SHA-256 over the names and hashes of its files.
    uri
        The folder of its files in the object store.
    files
        File name -> SHA-256 of its bytes.
    params, metrics
        What it was trained with and what training measured. Later evaluations are evidence.
    parts
        Model name -> ``{"version", "sha256"}`` of the versions that it was built from.
    tags
        Owner, snapshot hash, code version, week, run id and the like.
    created
        When it was registered, ISO 8601 in UTC.
    """

    model: str
    version: int
    sha256: str
    uri: str
    files: Mapping[str, str]
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    parts: Mapping[str, Mapping[str, Any]]
    tags: Mapping[str, str]
    created: str

    def __str__(self) -> str:
        return f"{self.model} version {self.version}"

    def as_part(self) -> dict[str, Any]:
        """Return what a model that is built from this one records about it."""
        return {"version": self.version, "sha256": self.sha256}


def listed(numbers: Sequence[int]) -> str:
    """Return version numbers for a message: the last ten, where there are more."""
    shown = ", ".join(map(str, numbers[-10:]))
    return f"…, {shown}" if len(numbers) > 10 else shown


def check_model_name(model: str) -> None:
    """Refuse a name that cannot be a folder and an MLflow model."""
    if not _MODEL_NAME.fullmatch(model):
        raise UserError(
            f"{model!r} cannot name a model",
            remedy="use small letters, digits, dots, dashes and underscores, such as 'my_system.my_model'.",
        )


def hash_folder(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under ``folder``, by its name relative to it.

    Raises
    ------
    UserError
        There is no file, or one in a format that runs code when it is loaded.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise UserError("there is no file to register", where=str(folder), remedy="save the model here first.")
    for path in paths:
        if path.suffix.lower() in _EXECUTABLE:
            raise UserError(
                f"{path.name} is in a format that runs code when it is loaded",
                where=str(folder),
                remedy="store models as data: npz, JSON, Parquet or the library's own text format.",
            )
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def _copy(source: AnyPath, target: AnyPath, expected: str, refusal: Callable[[str], UserError]) -> None:
    """Copy a file, or refuse and leave ``target`` alone where the bytes read are not the expected ones."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, atomic_writer(target) as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        if digest.hexdigest() != expected:
            raise refusal(digest.hexdigest())


class FileStore:
    """Model files, evidence and version records in a local folder or an object store."""

    def __init__(self, root: AnyPath, cache: Path | None = None) -> None:
        # One type for everything local, so that "file:///models" and "/models" behave alike.
        self.root: AnyPath = Path(UPath(root).path) if is_local(root) else root
        self.cache = cache or Path(tempfile.gettempdir()) / f"mlops-assets-models-{os.getuid()}"

    def folder(self, model: str, number: int) -> AnyPath:
        """Return the folder of one version, whether it is there or not."""
        return self.root / model / f"v{number}"

    def numbers(self, model: str) -> list[int]:
        """Return the numbers of the version folders of ``model``, ascending; some may be incomplete."""
        names = names_in(self.root / model)
        return sorted(int(name[1:]) for name in names if re.fullmatch(r"v\d+", name))

    def read(self, model: str, number: int) -> ModelVersion | None:
        """Return the record of a version, or None where there is none (yet).

        Raises
        ------
        UserError
            The record does not fit its own hashes, or is not a record.
        """
        path = self.folder(model, number) / "version.json"
        try:
            text = read_bytes(path)
        except FileNotFoundError:
            return None
        try:
            version = ModelVersion(**json.loads(text))
            whole = version.sha256 == sha256_of_json(version.files, str(path)) and version.version == number
        except (TypeError, ValueError) as error:
            raise _broken_record(path) from error
        if not whole:
            raise _broken_record(path)
        return version

    def write(self, version: ModelVersion, source: Path) -> ModelVersion:
        """Store the files of a version, then its record; return the record that is stored."""
        folder = self.folder(version.model, version.version)
        changed = UserError(
            "a file changed while it was being registered",
            where=str(source),
            remedy="register a folder that nobody writes to any more.",
        )
        for name, expected in version.files.items():
            _copy(source / name, folder / "files" / name, expected, lambda _: changed)
        create(folder / "version.json", json_of(asdict(version), str(version)))
        stored = self.read(version.model, version.version)
        assert stored is not None
        return stored

    def fetch(self, version: ModelVersion, into: Path | None) -> Path:
        """Return a local folder with the version's files, each checked against its SHA-256."""
        stored = self.folder(version.model, version.version) / "files"
        in_place = into is None and isinstance(stored, Path)
        target = stored if in_place else into or self.cache / version.sha256
        for name, expected in version.files.items():
            refusal = partial(_broken_file, version, stored / name, expected)
            found = sha256_of(target / name) if (target / name).is_file() else None
            if found == expected:
                continue
            if in_place:
                raise refusal(found)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                _copy(stored / name, target / name, expected, refusal)
            except FileNotFoundError:
                raise refusal(None) from None
        return Path(str(target))

    def write_evidence(self, version: ModelVersion, evidence: Mapping[str, Any]) -> str:
        """Store evidence under its own hash and return the hash."""
        data = json_of(evidence, f"evidence of {version}")
        digest = sha256_hex(data)
        create(self._evidence(version, digest), data)
        return digest

    def read_evidence(self, version: ModelVersion, digest: str) -> dict[str, Any]:
        """Return evidence by its hash, checked."""
        path = self._evidence(version, digest)
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            raise UserError(
                f"there is no evidence {digest!r} for {version}",
                where=str(path.parent),
                remedy="evaluate the version again, or give the hash that attach_evidence returned.",
            ) from None
        if (found := sha256_hex(data)) != digest:
            raise _broken_file(version, path, digest, found)
        evidence: dict[str, Any] = json.loads(data)
        return evidence

    def _evidence(self, version: ModelVersion, digest: str) -> AnyPath:
        return self.folder(version.model, version.version) / "evidence" / f"{digest}.json"


def _broken_record(path: AnyPath) -> UserError:
    return UserError(
        "the record of a model version does not fit its own hashes: it was changed after it was written",
        where=str(path),
        remedy="restore the file from a backup; until then use another version.",
    )


def _broken_file(version: ModelVersion, path: AnyPath, expected: str, found: str | None) -> UserError:
    return UserError(
        f"a file of {version} is {'broken' if found else 'missing'}: expected SHA-256 {expected}, found "
        f"{found or 'no file'}",
        where=str(path),
        remedy="roll back to another version, or restore the file from a backup.",
    )
