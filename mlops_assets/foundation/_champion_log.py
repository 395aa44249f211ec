"""The champion's history as it stands in Dagster's event log: who serves, who served, what is proposed, what is wrong.

What belongs here: reading the log, and putting one record into it. What does not: a single record
(`_champion_record.py`), what the records add up to (`_approval.py`), and which record comes next (`_champion.py`).
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlops_assets.foundation._approval import Ledger, Proposal
from mlops_assets.foundation._champion_record import ChampionRecord, Entry, entry_of
from mlops_assets.foundation._model_store import ModelVersion
from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    import dagster as dg

    # The registry's module gives the history's public name, so at run time the import goes the other way.
    from mlops_assets.foundation.registry import Registry

_PAGE = 500


class ChampionLog:
    """Which version of a model served when, who decided it and why; read from Dagster's event log.

    Parameters
    ----------
    instance
        The Dagster instance whose event log holds the history.
    system
        The system; the asset is ``<system>/champion``.
    registry, model
        Where the versions are, and of which model.
    approval_required
        Whether a version becomes champion only by `approve`. A promotion without it then moves nothing, whoever wrote
        it: the version approved before goes on serving, and `verify` names the record.
    """

    def __init__(
        self,
        instance: "dg.DagsterInstance",
        system: str,
        registry: "Registry",
        model: str,
        *,
        approval_required: bool = False,
    ) -> None:
        self.instance, self.system, self.registry, self.model = instance, system, registry, model
        self.approval_required = approval_required

    def records(self) -> list[ChampionRecord]:
        """Return every readable record, oldest first; `verify` names the unreadable ones."""
        return [entry.record for entry in self._entries() if entry.record]

    def current(self) -> ChampionRecord | None:
        """Return the record that made the champion, or None while there is none.

        Raises
        ------
        UserError
            A record that may have moved the pointer since was changed after it was written, or what it approves is
            damaged or gone.
        """
        return self._ledger().trusted().champion

    def production_at(self, time: datetime) -> ChampionRecord | None:
        """Return the record that made the champion of a moment in the past, or None if there was none yet.

        Raises
        ------
        UserError
            ``time`` has no time zone, or the history was changed, as for `current`.
        """
        check_zone(time)
        return self._ledger(lambda entry: entry.logged_at <= time).trusted().champion

    def champion(self) -> ModelVersion:
        """Return the version that serves, as a run resolves it once at its start.

        Raises
        ------
        UserError
            There is no champion yet, or its record and the registry disagree about its content.
        """
        record = self.current()
        if record is None or record.version is None:
            approved = " and have it approved" if self.approval_required else ""
            raise UserError(
                "there is no champion yet",
                where=self._place(),
                remedy=f"train and evaluate {self.model}, then materialize {self._place()}{approved}.",
            )
        return self._same_content(record)

    def verify(self) -> list[str]:
        """Return what is wrong with the history, each line naming the record; empty if nothing is."""
        ledger = self._empty()
        return [f"{entry}: {problem}" for entry in self._entries() for problem in ledger.read(entry)]

    def proposals(self, now: datetime | None = None) -> list[Proposal]:
        """Return every proposal and what has become of it by ``now``, oldest first."""
        return self._ledger().proposals(moment_of(now))

    def open_proposal(self, version: int | None = None, now: datetime | None = None) -> Proposal | None:
        """Return the proposal that may be approved, or None; with ``version``, only if it proposes that one.

        There is at most one: a newer proposal supersedes every older one, of this candidate or another.
        """
        found = [proposal for proposal in self.proposals(now) if proposal.status == "open"]
        return next((proposal for proposal in found if version in {None, proposal.record.candidate}), None)

    def rejected_content(self, candidate: ModelVersion) -> ChampionRecord | None:
        """Return the rejection of this content that still holds, or None; approving or rolling back to it lifts it."""
        record = self._ledger().turned_down.get(candidate.sha256)
        return record if record is not None and record.verdict == "rejected" else None

    def held_back(self, candidate: ModelVersion) -> str | None:
        """Say why a candidate may not come back by itself: its content was rejected, or rolled back from; or None."""
        record = self._ledger().turned_down.get(candidate.sha256)
        if record is None:
            return None
        if record.verdict == "rejected":
            return f"{record.by} rejected version {record.candidate} ({record.reason}); it has the same content"
        left = f"version {record.from_version} ({record.reason})"
        return f"{record.by} rolled back from {left}; it has the same content"

    def rejections(self) -> int:
        """Return how many proposals were rejected since the last promotion, for whoever waits longer after each."""
        return self._ledger().rejections

    def _report(self, record: ChampionRecord, description: str) -> None:
        import dagster as dg

        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(
                asset_key=self._asset_key(),
                description=description,
                metadata=record.metadata(),
                tags={"dagster/data_version": record.sha256 or "no champion"},
            )
        )

    def _same_content(self, record: ChampionRecord) -> ModelVersion:
        assert record.version is not None
        version = self.registry.get(self.model, record.version)
        if version.sha256 != record.sha256:
            raise UserError(
                f"{version} has SHA-256 {version.sha256}, but {record.sha256} was promoted",
                where=self._place(record.number),
                remedy="restore the version from a backup, or roll back to another one.",
            )
        return version

    def _empty(self) -> Ledger:
        return Ledger(self.system, self.model, approval_required=self.approval_required)

    def _ledger(self, counts: Callable[[Entry], bool] | None = None) -> Ledger:
        ledger = self._empty()
        # All of it is read: whether a move counts depends on what stands before it.
        for entry in filter(counts, self._entries()) if counts else self._entries():
            ledger.read(entry)
        return ledger

    def _place(self, number: int | None = None) -> str:
        return f"{self.system}/champion" + (f", record {number}" if number is not None else "")

    def _asset_key(self) -> "dg.AssetKey":
        import dagster as dg

        return dg.AssetKey([self.system, "champion"])

    def _entries(self) -> Iterator[Entry]:
        """Yield the materializations of the champion asset, oldest first."""
        cursor: str | None = None
        while True:
            page = self.instance.fetch_materializations(self._asset_key(), limit=_PAGE, cursor=cursor, ascending=True)
            for event in page.records:
                materialization = event.asset_materialization
                metadata = materialization.metadata if materialization else {}
                values = {name: value.value for name, value in metadata.items()}
                yield entry_of(event.storage_id, datetime.fromtimestamp(event.timestamp, UTC), values)
            if not page.has_more:
                return
            cursor = page.cursor


def check_zone(time: datetime) -> None:
    """Refuse a time without a time zone."""
    if time.tzinfo is None:
        raise UserError(f"{time} has no time zone", remedy="give one, such as 2026-11-23T06:00:00+00:00.")


def moment_of(now: datetime | None) -> datetime:
    """Return the moment that is meant: the present by default."""
    if now is None:
        return datetime.now(UTC)
    check_zone(now)
    return now
