"""Model versions, the verdict on them, and which one serves.

What belongs here: registering, reading and comparing versions, and the public names of the rest. What does not:
where the files lie (`_model_store.py`) and the runs (`_mlflow.py`), how a candidate is judged (`_verdict.py`), the
champion's history with approval and rollback (`_champion.py`), which gates a system needs (`risk.py`), how a gate is
measured.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops_assets.foundation import _model_store as store
from mlops_assets.foundation._approval import Proposal
from mlops_assets.foundation._champion import ChampionHistory
from mlops_assets.foundation._champion_record import ChampionRecord
from mlops_assets.foundation._mlflow import Mlflow
from mlops_assets.foundation._model_store import ModelVersion
from mlops_assets.foundation._verdict import APPROVAL, GateResult, Verdict, decide
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath

__all__ = [
    "APPROVAL",
    "ChampionHistory",
    "ChampionRecord",
    "GateResult",
    "ModelVersion",
    "Proposal",
    "Registry",
    "Verdict",
    "decide",
]


class Registry:
    """Model versions, immutable, with their files, parameters, metrics, parts and evidence.

    Parameters
    ----------
    tracking_uri
        MLflow's tracking and registry: ``sqlite:///<path>`` or a server's address.
    root
        Folder or object-store prefix for the files.
    cache
        Local folder for files fetched from an object store; by default one under the temporary folder.
    """

    def __init__(self, tracking_uri: str, root: AnyPath, *, cache: Path | None = None) -> None:
        self.files = store.FileStore(root, cache)
        self.mlflow = Mlflow(tracking_uri)

    def register(
        self,
        model: str,
        folder: Path,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        parts: Mapping[str, Mapping[str, Any]],
        tags: Mapping[str, str],
    ) -> ModelVersion:
        """Register the files in ``folder`` as a new version, or return the version that holds the same content.

        The content is the files and the parts; what is registered again with other params, metrics or tags is the
        same version, and nothing of it is rewritten.

        Raises
        ------
        UserError
            Nothing to register, a format that runs code, a metric that is not finite, a part that is not
            registered, or a tracking database that belongs to another store.
        """
        store.check_model_name(model)
        for part, built_from in parts.items():
            if self.get(part, built_from["version"]).sha256 != built_from["sha256"]:
                raise UserError(
                    f"part {part} version {built_from['version']} has another SHA-256 than stated",
                    where=model,
                    remedy="take the part from the registry, with version.as_part().",
                )
        files = store.hash_folder(folder)
        candidate = ModelVersion(
            model=model,
            version=0,
            sha256=store.sha256_of_json(files, model),
            uri="",
            files=files,
            params=json.loads(store.json_of(params, f"params of {model}")),
            metrics=json.loads(store.json_of(metrics, f"metrics of {model}")),
            parts=json.loads(store.json_of(parts, f"parts of {model}")),
            tags={name: str(value) for name, value in tags.items()},
            created=datetime.now(UTC).isoformat(),
        )
        return self._store(candidate, folder)

    def _store(self, candidate: ModelVersion, folder: Path) -> ModelVersion:
        model, content = candidate.model, _content(candidate)
        known = self.mlflow.number_of(model, content)
        # A number without a record is left by a registration that died: it is finished here.
        number = known or self.mlflow.allot(candidate, content, self.files.root)
        existing = self.files.read(model, number)
        if existing is not None and _content(existing) != content:
            self.mlflow.discard(model, number)
            raise UserError(
                f"MLflow gives out number {number} for {model}, but the store already holds versions "
                f"{store.listed(self.files.numbers(model))}",
                where=f"{self.mlflow.uri} and {self.files.root}",
                remedy="use the tracking database that belongs to this store, or restore it from a backup.",
            )
        uri = str(self.files.folder(model, number) / "files")
        return existing or self.files.write(replace(candidate, version=number, uri=uri), folder)

    def get(self, model: str, version: int) -> ModelVersion:
        """Return one version; an unknown one is an error that lists the known ones."""
        found = self.files.read(model, version)
        if found is None:
            known = [number for number in self.files.numbers(model) if self.files.read(model, number)]
            raise UserError(
                f"{model} has no version {version}",
                where=str(self.files.root),
                remedy=f"known versions: {store.listed(known)}." if known else "register a version of it first.",
            )
        return found

    def versions(self, model: str) -> list[ModelVersion]:
        """Return all versions of a model, oldest first."""
        read = (self.files.read(model, number) for number in self.files.numbers(model))
        return [version for version in read if version is not None]

    def latest(self, model: str) -> ModelVersion | None:
        """Return the newest version of a model, or None if there is none."""
        read = (self.files.read(model, number) for number in reversed(self.files.numbers(model)))
        return next((version for version in read if version is not None), None)

    def fetch(self, version: ModelVersion, into: Path | None = None) -> Path:
        """Return a local folder with the files of a version, every one checked against its SHA-256.

        Without ``into`` a local store is read in place, a remote one through the cache: write nothing there.

        Raises
        ------
        UserError
            A file is missing or broken; names the file, the expected and the found hash.
        """
        return self.files.fetch(version, into)

    def attach_evidence(self, version: ModelVersion, evidence: Mapping[str, Any]) -> str:
        """Store what an evaluation found beside the version, for good, and return the SHA-256 that names it."""
        return self.files.write_evidence(version, evidence)

    def evidence(self, version: ModelVersion, sha256: str) -> dict[str, Any]:
        """Return evidence by its SHA-256, checked against it."""
        return self.files.read_evidence(version, sha256)

    def compare(self, a: ModelVersion, b: ModelVersion) -> list[dict[str, Any]]:
        """Return one row for every parameter, metric and part in which two versions differ."""
        rows = []
        for kind in ("params", "metrics", "parts"):
            one, other = getattr(a, kind), getattr(b, kind)
            rows += [
                {"kind": kind, "name": name, "a": one.get(name), "b": other.get(name)}
                for name in sorted({*one, *other})
                if one.get(name) != other.get(name)
            ]
        return rows


def _content(version: ModelVersion) -> str:
    return store.sha256_of_json({"sha256": version.sha256, "parts": version.parts}, str(version))
