"""What the registry keeps in MLflow: version numbers, one run a version, and the alias ``champion``.

What belongs here: every call of MLflow. What does not: the files and records of the versions (`_model_store.py`),
which are the truth; MLflow hands out the numbers and shows parameters and metrics.
"""

import logging
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mlops_assets.foundation._model_store import ModelVersion
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath, is_local

T = TypeVar("T")


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
