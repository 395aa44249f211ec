"""Model versions, the verdict on them, and which one serves.

What belongs here: registration, evidence, gates and verdict, and the champion's history with rollback. What does
not: where files and runs lie (`_model_store.py`), which gates a system needs (`risk.py`), how a gate is measured.

The champion is not a field that is overwritten. Each decision is a materialization of ``<system>/champion`` in
Dagster's event log whose record carries the hash of the record before; the MLflow alias ``champion`` is only a copy
of the last one for consumers outside Dagster.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets.foundation import _model_store as store
from mlops_assets.foundation._model_store import ModelVersion
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath

if TYPE_CHECKING:
    import dagster as dg

__all__ = [
    "ChampionHistory",
    "ChampionRecord",
    "GateResult",
    "ModelVersion",
    "Registry",
    "Verdict",
    "decide",
]

Status = Literal["passed", "failed", "not_assessed"]

_log = logging.getLogger(__name__)
_PAGE = 500
_CLOCK_TOLERANCE = timedelta(hours=1)


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
        self.mlflow = store.Mlflow(tracking_uri)

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
                f"{_listed(self.files.numbers(model))}",
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
                remedy=f"known versions: {_listed(known)}." if known else "register a version of it first.",
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


@dataclass(frozen=True)
class GateResult:
    """What one gate found: the value, the bound it was held against, and the interval of the value."""

    gate: str
    status: Status
    value: float | None = None
    bound: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return the result as plain values, for evidence and tables."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """``promoted``, ``kept`` (the champion stays) or ``blocked``, with the reasons."""

    verdict: Literal["promoted", "kept", "blocked"]
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return "; ".join(self.reasons)


def decide(
    candidate: ModelVersion,
    champion: ModelVersion | None,
    gates: Sequence[GateResult],
    required: Sequence[str],
    better: GateResult | None = None,
) -> Verdict:
    """Judge a candidate on its gates; whatever comes out is a result, never an exception.

    Parameters
    ----------
    candidate, champion
        The version to judge, and the one that serves, if any.
    gates
        The results of the gates. Several results of one gate must all pass.
    required
        The names of the gates that must have passed. One that failed, was not assessed or is missing blocks.
    better
        The result of comparing the candidate with the champion. Failed means "not better", which keeps the champion
        and blocks nothing; it is not needed where there is no champion.

    Returns
    -------
    Verdict
        ``kept`` for the champion's own content, else ``blocked``, ``promoted`` or ``kept``, in this order.
    """
    if champion is not None and champion.sha256 == candidate.sha256:
        return Verdict("kept", (f"{candidate} is the champion's own content (version {champion.version})",))
    comparison = better.gate if better is not None else None
    blocking = [reason for name in required if name != comparison for reason in _unmet(name, gates)]
    if champion is not None and better is not None and comparison in required and better.status == "not_assessed":
        blocking.append(_told(better))
    if blocking:
        return Verdict("blocked", tuple(blocking))
    remarks = tuple(_told(gate) for gate in gates if gate.gate not in required and gate.status == "failed")
    if champion is None:
        return Verdict("promoted", ("there was no champion, and every required gate passed", *remarks))
    if better is None or better.status != "passed":
        why = _told(better) if better is not None else "it was not compared with the champion"
        return Verdict("kept", (f"version {champion.version} stays: {why}", *remarks))
    return Verdict("promoted", (f"better than version {champion.version}: {_told(better)}", *remarks))


def _unmet(name: str, gates: Sequence[GateResult]) -> list[str]:
    results = [gate for gate in gates if gate.gate == name]
    if not results:
        return [f"required gate {name} is missing"]
    return [_told(gate) for gate in results if gate.status != "passed"]


def _told(gate: GateResult) -> str:
    numbers = [
        f"value {gate.value:.4g}" if gate.value is not None else "",
        f"bound {gate.bound:.4g}" if gate.bound is not None else "",
        f"interval {gate.interval[0]:.4g} to {gate.interval[1]:.4g}" if gate.interval is not None else "",
    ]
    detail = ", ".join(filter(None, [*numbers, gate.reason]))
    return f"{gate.gate} {gate.status.replace('_', ' ')}" + (f" ({detail})" if detail else "")


@dataclass(frozen=True)
class ChampionRecord:
    """One decision about the champion, as it stands in the event log.

    Parameters
    ----------
    number
        Its place in the history, from 1.
    verdict
        ``promoted``, ``kept``, ``blocked`` or ``rolled_back``.
    version, sha256
        The champion after this record; None while there is none.
    candidate
        The version that was judged, or rolled back to.
    from_version, to_version
        Where the pointer moved from and to; both None where it did not move, and from None for the first champion.
    evidence_sha256
        The evidence it was judged on.
    previous_record_sha256, record_sha256
        The hash of the record before, and of this one's ``text``.
    text
        The record's canonical JSON: what was hashed.
    logged_at
        When the event log received it, which is when the pointer moved; None before that.
    """

    system: str
    model: str
    number: int
    verdict: str
    version: int | None
    sha256: str | None
    candidate: int
    from_version: int | None
    to_version: int | None
    by: str
    reason: str
    evidence_sha256: str | None
    previous_record_sha256: str | None
    decided_at: datetime
    text: str
    record_sha256: str
    logged_at: datetime | None = None

    @property
    def intact(self) -> bool:
        """Whether the text still has the hash under which it was recorded."""
        return hashlib.sha256(self.text.encode()).hexdigest() == self.record_sha256

    def metadata(self) -> "dict[str, dg.MetadataValue[Any]]":
        """Return the metadata under which the ``champion`` asset materializes this record."""
        import dagster as dg

        shown = {**_shown(self.text), "record_sha256": self.record_sha256, "record": self.text}
        plain: dict[type, Any] = {int: dg.MetadataValue.int, str: dg.MetadataValue.text}
        return {
            name: dg.MetadataValue.null() if value is None else plain[type(value)](value)
            for name, value in shown.items()
        }

    @classmethod
    def made(cls, body: Mapping[str, Any]) -> "ChampionRecord":
        """Return a new record of this content."""
        text = store.json_of(body, "champion record").decode()
        return cls.read(text, hashlib.sha256(text.encode()).hexdigest(), None)

    @classmethod
    def read(cls, text: str, record_sha256: str, logged_at: datetime | None) -> "ChampionRecord":
        """Return the record that ``text`` holds; ValueError, KeyError or TypeError if it holds none."""
        body = json.loads(text)
        body["decided_at"] = datetime.fromisoformat(body["decided_at"])
        body["from_version"], body["to_version"] = body.pop("from"), body.pop("to")
        return cls(**body, text=text, record_sha256=record_sha256, logged_at=logged_at)


def _shown(text: str) -> dict[str, Any]:
    """Return what the event shows of a record, one key a value."""
    shown: dict[str, Any] = json.loads(text)
    return shown


@dataclass(frozen=True)
class _Entry:
    """One materialization of the champion asset: a record, or what is wrong with it."""

    storage_id: int
    logged_at: datetime
    record: ChampionRecord | None
    problem: str | None
    claimed_sha256: str | None

    def __str__(self) -> str:
        number = f"record {self.record.number}" if self.record else "the record"
        return f"{number} of {self.logged_at:%Y-%m-%d %H:%M:%S} UTC (event {self.storage_id})"


class ChampionHistory:
    """Which version of a model served when, who decided it and why; read from Dagster's event log.

    Parameters
    ----------
    instance
        The Dagster instance whose event log holds the history.
    system
        The system; the asset is ``<system>/champion``.
    registry, model
        Where the versions are, and of which model.
    """

    def __init__(self, instance: "dg.DagsterInstance", system: str, registry: Registry, model: str) -> None:
        self.instance, self.system, self.registry, self.model = instance, system, registry, model

    def records(self) -> list[ChampionRecord]:
        """Return every readable record, oldest first; `verify` names the unreadable ones."""
        return [entry.record for entry in self._entries(ascending=True) if entry.record]

    def current(self) -> ChampionRecord | None:
        """Return the record that made the champion, or None while there is none.

        Raises
        ------
        UserError
            A record that may have moved the pointer since was changed after it was written.
        """
        return self._last_move(self._entries())

    def production_at(self, time: datetime) -> ChampionRecord | None:
        """Return the record that made the champion of a moment in the past, or None if there was none yet.

        Raises
        ------
        UserError
            ``time`` has no time zone, or the history was changed, as for `current`.
        """
        if time.tzinfo is None:
            raise UserError(f"{time} has no time zone", remedy="give one, such as 2026-11-23T06:00:00+00:00.")
        return self._last_move(entry for entry in self._entries() if entry.logged_at <= time)

    def champion(self) -> ModelVersion:
        """Return the version that serves, as a run resolves it once at its start.

        Raises
        ------
        UserError
            There is no champion yet, or its record and the registry disagree about its content.
        """
        record = self.current()
        if record is None or record.version is None:
            raise UserError(
                "there is no champion yet",
                where=f"{self.system}/champion",
                remedy=f"train and evaluate {self.model}, then materialize {self.system}/champion.",
            )
        return self._same_content(record)

    def verify(self) -> list[str]:
        """Return what is wrong with the history, each line naming the record; empty if nothing is."""
        problems: list[str] = []
        previous: _Entry | None = None
        champion: int | None = None
        certain = True
        for entry in self._entries(ascending=True):
            if entry.problem:
                problems.append(f"{entry}: {entry.problem}")
            if entry.claimed_sha256 is None:
                continue
            if entry.record is not None:
                misfits = [f"{entry}: {what}" for what in _misfits(entry.record, previous)]
                problems += misfits
                certain = certain and not entry.problem and not misfits
                if entry.record.to_version is not None:
                    if certain and entry.record.from_version != champion:
                        moved = f"moves from {entry.record.from_version}, but the champion was {champion}"
                        problems.append(f"{entry}: {moved}")
                    champion = entry.record.to_version
            # What a damaged record moved is not known, so the next move is not held against it.
            certain = not entry.problem
            previous = entry
        return problems

    def next_record(
        self,
        verdict: Verdict,
        candidate: ModelVersion,
        *,
        by: str,
        evidence_sha256: str | None = None,
        reason: str | None = None,
    ) -> ChampionRecord:
        """Return the record of a verdict; the champion asset materializes it with ``record.metadata()``.

        Parameters
        ----------
        verdict, candidate
            What was decided about which version.
        by
            Who decided: a person, or the run.
        evidence_sha256
            The evidence stored with the candidate that the verdict rests on; a promotion needs one.
        reason
            Instead of the verdict's own reasons.

        Raises
        ------
        UserError
            For a promotion: no evidence, evidence that is not stored with the candidate, or broken files.
        """
        if candidate.model != self.model:
            raise UserError(f"{candidate} cannot become champion of {self.model}", where=self.system)
        if evidence_sha256 is not None:
            self.registry.evidence(candidate, evidence_sha256)
        if verdict.verdict != "promoted":
            return self._record(verdict.verdict, candidate, by, reason or verdict.reason, evidence_sha256)
        if evidence_sha256 is None:
            raise UserError(
                f"{candidate} cannot be promoted without evidence",
                where=f"{self.system}/champion",
                remedy="attach the evaluation with Registry.attach_evidence and pass its hash.",
            )
        self.registry.fetch(candidate)
        return self._record("promoted", candidate, by, reason or verdict.reason, evidence_sha256, moves=True)

    def rollback(self, to: int, by: str, reason: str) -> ChampionRecord:
        """Make an earlier champion the champion again; nothing moves before its files are verified.

        Raises
        ------
        UserError
            An empty reason, no champion yet, a version that is unknown, was never promoted or serves already,
            or a broken file.
        """
        import dagster as dg

        sound = [entry.record for entry in self._entries(ascending=True) if entry.record and not entry.problem]
        served = {record.to_version: record for record in sound if record.to_version is not None}
        if not served:
            raise UserError("there is no champion yet to roll back from", where=f"{self.system}/champion")
        version = self.registry.get(self.model, to)
        if to not in served:
            raise UserError(
                f"{version} was never promoted",
                where=f"{self.system}/champion",
                remedy=f"roll back to one of {_listed(sorted(served))}.",
            )
        if self._serves(to):
            raise UserError(f"{version} is the champion already", where=f"{self.system}/champion")
        self.registry.fetch(self._same_content(served[to]))
        record = self._record("rolled_back", version, by, reason, served[to].evidence_sha256, moves=True)
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key=self._asset_key(),
                description=f"rolled back to version {to}: {reason}",
                metadata=record.metadata(),
                tags={"dagster/data_version": version.sha256},
            )
        )
        try:
            self.sync_alias()
        except UserError as error:
            _log.warning("The champion is version %s; its MLflow alias will be repaired later. %s", to, error)
        return record

    def sync_alias(self) -> bool:
        """Point MLflow's alias ``champion`` to the champion of the event log; True if it had to be moved.

        Raises
        ------
        UserError
            MLflow cannot be reached, or does not know the version. The champion itself is not affected.
        """
        record = self.current()
        number = record.version if record is not None else None
        if self.registry.mlflow.alias(self.model) == number:
            return False
        self.registry.mlflow.set_alias(self.model, number)
        return True

    def _record(
        self,
        verdict: str,
        candidate: ModelVersion,
        by: str,
        reason: str,
        evidence_sha256: str | None,
        *,
        moves: bool = False,
    ) -> ChampionRecord:
        for name, value in (("reason", reason), ("name of who decides", by)):
            if not value.strip():
                raise UserError(f"the {name} is empty", where=f"{self.system}/champion", remedy="state it.")
        entries = [entry for entry in self._entries() if entry.claimed_sha256]
        # A rollback is the way out of a damaged history, so it does not insist on sound records before it.
        before = self._last_move(iter(entries), skip_damaged=verdict == "rolled_back")
        return ChampionRecord.made(
            {
                "system": self.system,
                "model": self.model,
                "number": max((entry.record.number for entry in entries if entry.record), default=0) + 1,
                "verdict": verdict,
                "version": candidate.version if moves else before and before.version,
                "sha256": candidate.sha256 if moves else before and before.sha256,
                "candidate": candidate.version,
                "from": before.version if moves and before else None,
                "to": candidate.version if moves else None,
                "by": by,
                "reason": reason,
                "evidence_sha256": evidence_sha256,
                "previous_record_sha256": entries[0].claimed_sha256 if entries else None,
                "decided_at": datetime.now(UTC),
            }
        )

    def _serves(self, number: int) -> bool:
        try:
            current = self.current()
        except UserError:
            # A damaged history says nothing; rolling back to the version that should serve repairs it.
            return False
        return current is not None and current.version == number

    def _same_content(self, record: ChampionRecord) -> ModelVersion:
        assert record.version is not None
        version = self.registry.get(self.model, record.version)
        if version.sha256 != record.sha256:
            raise UserError(
                f"{version} has SHA-256 {version.sha256}, but {record.sha256} was promoted",
                where=f"{self.system}/champion, record {record.number}",
                remedy="restore the version from a backup, or roll back to another one.",
            )
        return version

    def _last_move(self, newest_first: Iterator[_Entry], *, skip_damaged: bool = False) -> ChampionRecord | None:
        for entry in newest_first:
            if entry.problem is None and entry.record and entry.record.to_version is not None:
                return entry.record
            if entry.problem and entry.claimed_sha256 and not skip_damaged:
                raise UserError(
                    f"{entry} cannot be trusted: {entry.problem}",
                    where=f"{self.system}/champion",
                    remedy="roll back to a version that you trust: that starts from a sound record again.",
                )
        return None

    def _asset_key(self) -> "dg.AssetKey":
        import dagster as dg

        return dg.AssetKey([self.system, "champion"])

    def _entries(self, *, ascending: bool = False) -> Iterator[_Entry]:
        cursor: str | None = None
        while True:
            page = self.instance.fetch_materializations(
                self._asset_key(), limit=_PAGE, cursor=cursor, ascending=ascending
            )
            for event in page.records:
                materialization = event.asset_materialization
                metadata = materialization.metadata if materialization else {}
                values = {name: value.value for name, value in metadata.items()}
                yield _entry(event.storage_id, datetime.fromtimestamp(event.timestamp, UTC), values)
            if not page.has_more:
                return
            cursor = page.cursor


def _misfits(record: ChampionRecord, previous: _Entry | None) -> Iterator[str]:
    """Yield where a record does not fit its place in the history."""
    if record.previous_record_sha256 != (previous.claimed_sha256 if previous else None):
        yield f"does not follow {previous or 'the beginning'}: a record was removed, added or changed"
    if record.logged_at and abs(record.decided_at - record.logged_at) > _CLOCK_TOLERANCE:
        yield f"says that it was decided at {record.decided_at}, far from when it was logged"


def _entry(storage_id: int, logged_at: datetime, metadata: Mapping[str, Any]) -> _Entry:
    text, claimed = metadata.get("record"), metadata.get("record_sha256")
    if not isinstance(text, str) or not isinstance(claimed, str):
        return _Entry(storage_id, logged_at, None, "a materialization that carries no record", None)
    try:
        record = ChampionRecord.read(text, claimed, logged_at)
    except (ValueError, KeyError, TypeError):
        return _Entry(storage_id, logged_at, None, "its record cannot be read", claimed)
    problem = None if record.intact else "its content was changed: it does not have its SHA-256 any more"
    differing = [name for name, value in _shown(text).items() if metadata.get(name) != value]
    if problem is None and differing:
        problem = f"it shows another {', '.join(differing)} than its record"
    return _Entry(storage_id, logged_at, record, problem, claimed)


def _content(version: ModelVersion) -> str:
    return store.sha256_of_json({"sha256": version.sha256, "parts": version.parts}, str(version))


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[-10:]))
    return f"…, {shown}" if len(numbers) > 10 else shown
