"""Which version of a model serves, and since when: the champion's history, with approval and rollback.

What belongs here: the next record of a decision, and what must hold before it is written. What does not: reading the
history (`_champion_log.py`), what its records add up to (`_approval.py`), how a candidate is judged (`_verdict.py`),
and the versions themselves (`registry.py`).

The champion is not a field that is overwritten. Each decision is a materialization of ``<system>/champion`` in
Dagster's event log whose record carries the hash of the record before; the MLflow alias ``champion`` is only a copy
of the last one for consumers outside Dagster.
"""

import logging
from datetime import UTC, datetime, timedelta

from mlops_assets.foundation._approval import Ledger, Proposal, folded
from mlops_assets.foundation._champion_log import ChampionLog, moment_of
from mlops_assets.foundation._champion_record import ChampionRecord
from mlops_assets.foundation._model_store import ModelVersion, listed
from mlops_assets.foundation._verdict import APPROVAL, Verdict
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.lease import Lease

_log = logging.getLogger(__name__)
_PROPOSAL_IS_VALID = timedelta(days=14)


class ChampionHistory(ChampionLog):
    """Which version of a model served when, who decided it and why; and the next decision.

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

    def next_record(
        self,
        verdict: Verdict,
        candidate: ModelVersion,
        *,
        by: str,
        evidence_sha256: str | None = None,
        reason: str | None = None,
        valid_for: timedelta = _PROPOSAL_IS_VALID,
    ) -> ChampionRecord:
        """Return the record of a verdict; the champion asset materializes it with ``record.metadata()``.

        Parameters
        ----------
        verdict, candidate
            What was decided about which version. A proposal names as trainer the candidate's tag ``trained_by``,
            and as those who asked for the training the JSON list in its tag ``requested_by``.
        by
            Who decided: a person, or the run.
        evidence_sha256
            The evidence stored with the candidate that the verdict rests on; a promotion or proposal needs one.
        reason
            Instead of the verdict's own reasons.
        valid_for
            How long a proposal may be approved.

        Raises
        ------
        UserError
            For a promotion or proposal: no evidence, evidence that is not stored with the candidate, or broken files;
            for a promotion where an approval is required: always.
        """
        if candidate.model != self.model:
            raise UserError(f"{candidate} cannot become champion of {self.model}", where=self.system)
        if evidence_sha256 is not None:
            self.registry.evidence(candidate, evidence_sha256)
        outcome, reason = verdict.verdict, reason or verdict.reason
        if outcome in {"kept", "blocked"}:
            return self._record(self._ledger(), outcome, candidate.version, by, reason, evidence_sha256)
        if outcome == "promoted" and self.approval_required:
            raise UserError(
                f"{candidate} cannot be promoted without an approval",
                where=self._place(),
                remedy=f"name the gate {APPROVAL!r} among those required: the verdict is a proposal then.",
            )
        if evidence_sha256 is None:
            raise UserError(
                f"{candidate} cannot be {outcome} without evidence",
                where=self._place(),
                remedy="attach the evaluation with Registry.attach_evidence and pass its hash.",
            )
        self.registry.fetch(candidate)
        if outcome == "promoted":
            return self._record(self._ledger(), outcome, candidate.version, by, reason, evidence_sha256, to=candidate)
        if valid_for <= timedelta():
            raise UserError(f"a proposal cannot be valid for {valid_for}", remedy="give it some days.")
        return self._record(
            self._ledger(),
            outcome,
            candidate.version,
            by,
            reason,
            evidence_sha256,
            candidate_sha256=candidate.sha256,
            trained_by=candidate.tags.get("trained_by"),
            requested_by=candidate.tags.get("requested_by"),
            expires_at=datetime.now(UTC) + valid_for,
        )

    def approve(
        self,
        version: int,
        by: str,
        reason: str,
        evidence_sha256: str | None = None,
        now: datetime | None = None,
    ) -> ChampionRecord:
        """Make a proposed version the champion; nothing moves before its files and evidence are verified.

        Parameters
        ----------
        version
            The version, whose proposal must be open.
        by, reason
            Who approves, which must be somebody else than trained it or asked for that, and why.
        evidence_sha256
            The evidence that was looked at; refused unless it is the one that the proposal rests on.
        now
            The moment at which the proposal must still be valid, where that is later than the present.

        Raises
        ------
        UserError
            Why it may not be approved, and what to do; the champion is then the same as before.
        """
        self._check_stated(by, reason)
        with self._deciding(f"approval of version {version} by {by}"):
            ledger = self._ledger().trusted()
            put = self._proposed(ledger, version).record
            candidate = self.registry.get(self.model, version)
            record = self._record(
                ledger,
                "promoted",
                version,
                by,
                reason,
                evidence_sha256 or put.evidence_sha256,
                to=candidate,
                candidate_sha256=candidate.sha256,
                trained_by=put.trained_by,
                requested_by=put.requested_by,
                approves=put.record_sha256,
            )
            if objection := ledger.objection(record, max(moment_of(now), datetime.now(UTC))):
                raise UserError(
                    f"{candidate} cannot be approved: {objection.what}",
                    where=self._place(put.number),
                    remedy=objection.remedy,
                )
            self.registry.evidence(candidate, record.evidence_sha256 or "")
            self.registry.fetch(candidate)
            self._report(record, f"version {version} approved by {by}: {reason}")
            self._check_that_it_counts(record)
        self._mend_alias(version)
        return record

    def reject(self, version: int, by: str, reason: str) -> ChampionRecord:
        """Close the proposal of a version; the champion stays, and the content is not proposed again by itself.

        A broken candidate can be rejected, and so can a proposal that is out of date.

        Raises
        ------
        UserError
            An empty reason, or a version that is not proposed, is decided already, or serves.
        """
        self._check_stated(by, reason)
        with self._deciding(f"rejection of version {version} by {by}"):
            ledger = self._ledger().trusted()
            proposal = self._proposed(ledger, version)
            put = proposal.record
            if proposal.status in {"approved", "rejected", "rolled_back"}:
                raise UserError(
                    f"{self.model} version {version} cannot be rejected: {proposal.why}",
                    where=self._place(put.number),
                    remedy="nothing is to be done: it does not serve.",
                )
            record = self._record(
                ledger,
                "rejected",
                version,
                by,
                reason,
                put.evidence_sha256,
                candidate_sha256=put.candidate_sha256,
                trained_by=put.trained_by,
                requested_by=put.requested_by,
                rejects=put.record_sha256,
            )
            self._report(record, f"version {version} rejected by {by}: {reason}")
        return record

    def rollback(self, to: int, by: str, reason: str) -> ChampionRecord:
        """Make an earlier champion the champion again; nothing moves before its files are verified.

        Raises
        ------
        UserError
            An empty reason, no champion yet, a version that is unknown, was never promoted or serves already,
            or a broken file.
        """
        self._check_stated(by, reason)
        ledger = self._ledger()
        served = {record.to_version: record for record in ledger.moves if record.to_version is not None}
        if not served:
            raise UserError("there is no champion yet to roll back from", where=self._place())
        version = self.registry.get(self.model, to)
        if to not in served:
            raise UserError(
                f"{version} was never promoted",
                where=self._place(),
                remedy=f"roll back to one of {listed(sorted(served))}.",
            )
        # A damaged history says nothing; rolling back to the version that should serve repairs it.
        if ledger.sound and ledger.champion is not None and ledger.champion.version == to:
            raise UserError(f"{version} is the champion already", where=self._place())
        self.registry.fetch(self._same_content(served[to]))
        record = self._record(ledger, "rolled_back", to, by, reason, served[to].evidence_sha256, to=version)
        self._report(record, f"rolled back to version {to}: {reason}")
        self._mend_alias(to)
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

    def _mend_alias(self, number: int) -> None:
        try:
            self.sync_alias()
        except UserError as error:
            _log.warning("The champion is version %s; its MLflow alias will be repaired later. %s", number, error)

    def _record(
        self,
        ledger: Ledger,
        verdict: str,
        candidate: int,
        by: str,
        reason: str,
        evidence_sha256: str | None,
        *,
        to: ModelVersion | None = None,
        **of_approvals: str | datetime | None,
    ) -> ChampionRecord:
        self._check_stated(by, reason)
        # A rollback is the way out of a damaged history, so it does not insist on sound records before it.
        before = ledger.champion if verdict == "rolled_back" else ledger.trusted().champion
        serves = to or before
        return ChampionRecord.made(
            {
                "system": self.system,
                "model": self.model,
                "number": ledger.number + 1,
                "verdict": verdict,
                "version": serves and serves.version,
                "sha256": serves and serves.sha256,
                "candidate": candidate,
                "from": before.version if to and before else None,
                "to": to.version if to else None,
                "by": by,
                "reason": reason,
                "evidence_sha256": evidence_sha256,
                "previous_record_sha256": ledger.last.claimed_sha256 if ledger.last else None,
                "decided_at": datetime.now(UTC),
                **of_approvals,
            }
        )

    def _check_stated(self, by: str, reason: str) -> None:
        for name, value in (("reason", reason), ("name of who decides", by)):
            if not folded(value):
                raise UserError(f"the {name} is empty", where=self._place(), remedy="state it.")

    def _deciding(self, what: str) -> Lease:
        """Return the lease under which a proposal is decided on, so that of two people one comes first."""
        return Lease(self.registry.files.root / self.model / "approval", what)

    def _check_that_it_counts(self, record: ChampionRecord) -> None:
        """Look again after writing: a run or a rollback, which wait for nobody, may have been faster."""
        ledger = self._ledger()
        if all(move.record_sha256 != record.record_sha256 for move in ledger.moves):
            serving = ledger.champion and ledger.champion.version
            raise UserError(
                f"the approval of version {record.candidate} came too late and moves nothing: the history changed "
                "while it was written",
                where=self._place(record.number),
                remedy=f"version {serving} serves; look at the history, and decide again.",
            )

    def _proposed(self, ledger: Ledger, version: int) -> Proposal:
        if ledger.champion is not None and ledger.champion.version == version:
            since = f"since {ledger.champion.logged_at:%Y-%m-%d %H:%M} UTC, by {ledger.champion.by}"
            raise UserError(f"{self.model} version {version} serves already, {since}", where=self._place())
        proposals = ledger.proposals(datetime.now(UTC))
        found = next((item for item in reversed(proposals) if item.record.candidate == version), None)
        if found is None:
            waiting = [item.record.candidate for item in proposals if item.status == "open"]
            instead = f"; version {waiting[0]} is proposed now" if waiting else ""
            raise UserError(
                f"{self.model} version {version} was never proposed{instead}",
                where=self._place(),
                remedy=f"evaluate it and materialize {self._place()}: its gates must pass first.",
            )
        return found
