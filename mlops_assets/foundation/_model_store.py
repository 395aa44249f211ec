"""Where model versions lie: their files in an object store, their numbers and runs in MLflow.

What belongs here: the immutable record of a version, its hashes, and the two stores behind `Registry`. What
does not: which version serves, and why (`registry.py`).

The object store is the truth: ``<root>/<model>/v<number>/`` holds ``files/``, ``evidence/`` and ``version.json``.
The record is written last and only once: a version is there whole or not at all, and is read without MLflow.
MLflow hands out the numbers and shows parameters and metrics.
"""

import hashlib
import json
import logging
import os
import random
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
    sha256_of,
)

T = TypeVar("T")

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
    return hashlib.sha256(json_of(value, where)).hexdigest()


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
        digest = hashlib.sha256(data).hexdigest()
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
        if (found := hashlib.sha256(data).hexdigest()) != digest:
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


class Mlflow:
    """What the registry asks of MLflow: version numbers, one run a version, and the alias ``champion``."""

    ALIAS = "champion"
    _RETRIES = 8

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri
        self._client: Any = None

    def number_of(self, model: str, content: str) -> int | None:
        """Return the lowest version number given to this content, or None."""
        query = f"name='{model}' and tags.content_sha256='{content}'"
        found = self._call(lambda client: client.search_model_versions(query))
        return min((int(version.version) for version in found), default=None)

    def allot(self, version: ModelVersion, content: str, root: AnyPath) -> int:
        """Open a run and a number; two callers at once with one content both get the lower number."""
        self._ensure_model(version.model, root)
        run_id, artifacts = self._call(lambda client: _open_run(client, version.model))
        self._call(lambda client: _describe_run(client, run_id, version))
        tags = {name: value[:5000] for name, value in version.tags.items()} | {"content_sha256": content}
        # A server refuses a local folder as the source unless it is the run's own; the tag names the real one.
        source = artifacts if is_local(root) else str(root / version.model)
        made = self._call(
            lambda client: client.create_model_version(version.model, source=source, run_id=run_id, tags=tags)
        )
        number, lowest = int(made.version), self.number_of(version.model, content)
        if lowest is not None and lowest < number:
            self.discard(version.model, number)
            return lowest
        files = str(root / version.model / f"v{number}" / "files")
        self._call(lambda client: client.set_model_version_tag(version.model, str(number), "files_uri", files))
        self._call(lambda client: client.set_tag(run_id, "mlflow.runName", f"{version.model} v{number}"))
        return number

    def discard(self, model: str, number: int) -> None:
        """Delete a number that no stored version uses, with its run; MLflow never gives it out again."""
        run_id = self._call(lambda client: client.get_model_version(model, str(number)).run_id)
        self._call(lambda client: client.delete_model_version(model, str(number)))
        self._call(lambda client: client.delete_run(run_id))

    def alias(self, model: str) -> int | None:
        """Return the version that the alias ``champion`` points to, or None."""

        def read(client: Any) -> int | None:
            found = client.search_registered_models(filter_string=f"name='{model}'")
            number = found[0].aliases.get(self.ALIAS) if found else None
            return int(number) if number is not None else None

        return self._call(read)

    def set_alias(self, model: str, number: int | None) -> None:
        """Point the alias ``champion`` to a version, or remove it."""
        if number is None:
            self._call(lambda client: client.delete_registered_model_alias(model, self.ALIAS))
        else:
            self._call(lambda client: client.set_registered_model_alias(model, self.ALIAS, str(number)))

    def _ensure_model(self, model: str, root: AnyPath) -> None:
        from mlflow.exceptions import MlflowException

        def create(client: Any) -> None:
            makers: list[Callable[[], object]] = [
                lambda: client.create_registered_model(model),
                lambda: client.create_experiment(model, artifact_location=str(root / model)),
            ]
            for make in makers:
                try:
                    make()
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise

        self._call(create)

    def _call(self, action: Callable[[Any], T]) -> T:
        """Run ``action`` with the client; wait and repeat while another process holds the SQLite database."""
        # An MLflow server that is down is reported in seconds; by default the client tries for four minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SADeprecationWarning, SQLAlchemyError

        attempt = 0
        while True:
            try:
                with warnings.catch_warnings():
                    # MLflow's own tables use a SQLAlchemy loader that 2.1 deprecates.
                    warnings.filterwarnings("ignore", message=".*noload.*", category=SADeprecationWarning)
                    return action(self._connected())
            except (MlflowException, SQLAlchemyError) as error:
                busy = "database is locked" in str(error) or "Giving up after" in str(error)
                if not busy or attempt == self._RETRIES:
                    raise UserError(
                        f"MLflow cannot answer: {str(error).splitlines()[0][:300]}",
                        where=self.uri,
                        remedy="check the tracking address, and that its server or database can be reached.",
                    ) from error
            attempt += 1
            time.sleep(random.uniform(0.5, 1.0) * 0.05 * 2**attempt)  # noqa: S311 (spreads the retries)

    def _connected(self) -> Any:
        if self._client is None:
            from mlflow.tracking import MlflowClient
            from mlflow.utils import file_utils

            for name in ("mlflow.store", "alembic"):
                if logging.getLogger(name).level == logging.NOTSET:
                    logging.getLogger(name).setLevel(logging.WARNING)
            if not self.uri.startswith("sqlite:///"):
                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            else:
                database = Path(self.uri.removeprefix("sqlite:///"))
                database.parent.mkdir(parents=True, exist_ok=True)
                # Two processes that create the tables at once would break each other's migrations.
                with file_utils.ExclusiveFileLock(f"{database}.lock"):
                    self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client


def _open_run(client: Any, model: str) -> tuple[str, str]:
    info = client.create_run(client.get_experiment_by_name(model).experiment_id).info
    return info.run_id, info.artifact_uri


def _describe_run(client: Any, run_id: str, version: ModelVersion) -> None:
    """Log what a version was trained with and finish its run; repeated, it logs the same again."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    params = [Param(name, str(value)[:6000]) for name, value in _mlflow_names(version.params)]
    metrics = [Metric(name, float(value), now, 0) for name, value in _mlflow_names(version.metrics)]
    tags = [RunTag(name, value[:5000]) for name, value in _mlflow_names(version.tags)]
    # MLflow takes at most 100 parameters and 100 tags in one call.
    for start in range(0, max(len(params), len(metrics), len(tags), 1), 100):
        part = slice(start, start + 100)
        client.log_batch(run_id, metrics=metrics[part], params=params[part], tags=tags[part])
    client.set_terminated(run_id)


def _mlflow_names(values: Mapping[str, T]) -> Iterator[tuple[str, T]]:
    """Yield the items under names that MLflow takes: ``ndcg@30`` as ``ndcg_at_30``; clashes get a number."""
    used: set[str] = set()
    for name, value in values.items():
        accepted = base = re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))[:240].strip("/. ") or "unnamed"
        count = 1
        while accepted in used:
            count += 1
            accepted = f"{base}_{count}"
        used.add(accepted)
        yield accepted, value
