"""Which version of a model serves, and since when: the champion's history, with rollback.

What belongs here: writing the next record of a decision, and reading the history from Dagster's event log. What does
not: a single record (`_champion_record.py`), how a candidate is judged (`_verdict.py`), and the versions themselves
(`registry.py`).

The champion is not a field that is overwritten. Each decision is a materialization of ``<system>/champion`` in
Dagster's event log whose record carries the hash of the record before; the MLflow alias ``champion`` is only a copy
of the last one for consumers outside Dagster.
"""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlops_assets.foundation._champion_record import ChampionRecord, Entry, entry_of, misfits_of
from mlops_assets.foundation._model_store import ModelVersion, listed
from mlops_assets.foundation._verdict import Verdict
from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    import dagster as dg

    # The registry's module gives this one's public names, so at run time the import goes the other way.
    from mlops_assets.foundation.registry import Registry

_log = logging.getLogger(__name__)
_PAGE = 500


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

    def __init__(self, instance: "dg.DagsterInstance", system: str, registry: "Registry", model: str) -> None:
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
        previous: Entry | None = None
        champion: int | None = None
        certain = True
        for entry in self._entries(ascending=True):
            if entry.problem:
                problems.append(f"{entry}: {entry.problem}")
            if entry.claimed_sha256 is None:
                continue
            if entry.record is not None:
                misfits = [f"{entry}: {what}" for what in misfits_of(entry.record, previous)]
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
                remedy=f"roll back to one of {listed(sorted(served))}.",
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

    def _last_move(self, newest_first: Iterator[Entry], *, skip_damaged: bool = False) -> ChampionRecord | None:
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

    def _entries(self, *, ascending: bool = False) -> Iterator[Entry]:
        cursor: str | None = None
        while True:
            page = self.instance.fetch_materializations(
                self._asset_key(), limit=_PAGE, cursor=cursor, ascending=ascending
            )
            for event in page.records:
                materialization = event.asset_materialization
                metadata = materialization.metadata if materialization else {}
                values = {name: value.value for name, value in metadata.items()}
                yield entry_of(event.storage_id, datetime.fromtimestamp(event.timestamp, UTC), values)
            if not page.has_more:
                return
            cursor = page.cursor
