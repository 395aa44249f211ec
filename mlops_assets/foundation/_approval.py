"""What a champion's records add up to: who serves, which proposal is open, and which records move nothing.

What belongs here: the rules by which a history is read record by record, with proposal, approval and rejection. What
does not: a single record (`_champion_record.py`), where records are kept and how they are written (`_champion.py`).

The rules are applied to what is already written as well as to what is about to be: a record counts because of what
stands before it in the log, not because of who put it there. That is what makes a hand-made promotion move nothing,
and what decides between two approvals that were written at the same moment.
"""

import unicodedata
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Self

from mlops_assets.foundation._champion_record import CLOCK_TOLERANCE, ChampionRecord, Entry, misfits_of
from mlops_assets.foundation.errors import UserError

Status = Literal[
    "open", "approved", "rejected", "superseded", "withdrawn", "rolled_back", "in_doubt", "stale", "expired"
]

_REMEDIES: dict[Status, str] = {
    "approved": "roll back to it if it shall serve again.",
    "rejected": "train another candidate, or have this one evaluated and proposed again.",
    "superseded": "decide on the newer proposal, or have this candidate proposed again.",
    "rolled_back": "roll back to it if it shall serve again, or have it evaluated and proposed again.",
    "in_doubt": "roll back to a version that you trust, then evaluate the candidate and propose it again.",
}
_AGAIN = "evaluate the candidate again, beside the version that serves now, and materialize the champion asset."


@dataclass(frozen=True)
class Proposal:
    """A candidate that was put forward, and what has become of it.

    Parameters
    ----------
    record
        The record that proposed it.
    status
        ``open``: it may be approved now. ``approved`` and ``rejected``: decided. ``superseded``: another proposal came
        after it. ``withdrawn``: the same candidate was kept out or blocked since. ``rolled_back``: somebody rolled
        back from its content since. ``in_doubt``: a record after it is damaged. ``stale``: another version serves
        than the one it was compared with. ``expired``: it was not decided in time.
    why
        One sentence on why it is not open; empty while it is.
    """

    record: ChampionRecord
    status: Status = "open"
    why: str = ""

    @property
    def remedy(self) -> str:
        """What to do about a proposal that is not open."""
        return _REMEDIES.get(self.status, _AGAIN)


@dataclass(frozen=True)
class Objection:
    """Why a record moves nothing, and what can be done about it; ``doubt`` where it may once have moved something."""

    what: str
    remedy: str = _AGAIN
    doubt: bool = False


def folded(name: str) -> str:
    """Return a person's name as it is compared: case, width, spaces and invisible characters make no difference."""
    visible = (sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    return " ".join("".join(visible).casefold().split())


def _stranger(record: ChampionRecord, put: ChampionRecord) -> Objection | None:
    """Object to an approval by who trained the candidate or asked for it, and where nobody knows who that was."""
    if not folded(put.trained_by or ""):
        return Objection(
            f"who trained version {put.candidate} is not known, so nobody can be told to be somebody else",
            "train it again with the tag trained_by, then evaluate and propose that.",
        )
    if folded(record.by) in {"", folded(put.trained_by or "")}:
        return Objection(
            f"{put.trained_by} trained version {put.candidate}, and whoever approves it must be somebody else",
            "ask a colleague to look at the evidence and to approve.",
        )
    try:
        requesters = {folded(name): name for name in put.requesters}
    except ValueError:
        return Objection(
            f"who asked for the training of version {put.candidate} cannot be read",
            "train it again, then evaluate and propose that.",
        )
    if folded(record.by) in requesters:
        return Objection(
            f"{requesters[folded(record.by)]} asked for the training of version {put.candidate}, and whoever approves "
            "it must be somebody else",
            "ask a colleague to look at the evidence and to approve.",
        )
    return None


def _other_content(record: ChampionRecord, put: ChampionRecord) -> Objection | None:
    """Object to an approval of anything but the candidate, the content and the evidence that were proposed."""
    if not record.candidate == record.version == record.to_version == put.candidate:
        return Objection(f"it approves version {put.candidate}, but moves to version {record.version}")
    if not put.candidate_sha256 == record.sha256 == record.candidate_sha256:
        return Objection(
            f"version {put.candidate} has SHA-256 {record.sha256}, but {put.candidate_sha256} was proposed",
            "restore the version from a backup, or evaluate it again and propose that.",
        )
    if record.evidence_sha256 != put.evidence_sha256:
        return Objection(
            f"the proposal rests on evidence {put.evidence_sha256}, not on {record.evidence_sha256}",
            "read that evidence and decide on it, or have the candidate evaluated and proposed again.",
        )
    return None


class Ledger:
    """The state of a history after the entries that it has read, oldest first.

    Parameters
    ----------
    system, model
        Whose history it is: an approval of another one's candidate counts nothing here.
    approval_required
        Whether a version serves only after somebody approved its proposal.
    """

    def __init__(self, system: str, model: str, *, approval_required: bool) -> None:
        self.system, self.model, self.approval_required = system, model, approval_required
        self.champion: ChampionRecord | None = None
        self.moves: list[ChampionRecord] = []
        self.last: Entry | None = None
        self.number = 0
        self.rejections = 0
        self.turned_down: dict[str, ChampionRecord] = {}
        self._proposals: dict[str, Proposal] = {}
        self._pending: Proposal | None = None
        self._doubt: tuple[Entry, str] | None = None
        self._certain = True

    @property
    def sound(self) -> bool:
        """Whether the champion is certain, as `trusted` insists."""
        return self._doubt is None

    def trusted(self) -> Self:
        """Return the ledger itself.

        Raises
        ------
        UserError
            A damaged record, or a move whose approval cannot be checked any more, stands after the last sound move.
        """
        if self._doubt is not None:
            entry, why = self._doubt
            raise UserError(
                f"{entry} cannot be trusted: {why}",
                where=f"{self.system}/champion",
                remedy="roll back to a version that you trust: that starts from a sound record again."
                if self.moves
                else "restore the event log from a backup: it names no sound version to roll back to.",
            )
        return self

    def proposals(self, at: datetime) -> list[Proposal]:
        """Return every proposal as it stands at a moment, oldest first."""
        return [self._seen(proposal, at) for proposal in self._proposals.values()]

    def read(self, entry: Entry) -> list[str]:
        """Take in the next entry and return what is wrong with it; an empty list if nothing is."""
        if entry.claimed_sha256 is None:
            return [entry.problem or ""]
        misfits = list(misfits_of(entry.record, self.last)) if entry.record is not None else []
        problems = [entry.problem, *misfits] if entry.problem else misfits
        if entry.problem or entry.record is None:
            self._cast_doubt(entry, entry.problem or "")
        else:
            # What a damaged record moved is not known, so the next move is not held against it.
            problems = [*problems, *self._take(entry, entry.record, certain=self._certain and not misfits)]
        if entry.record is not None:
            self.number = max(self.number, entry.record.number)
        self._certain, self.last = not entry.problem, entry
        return problems

    def objection(self, record: ChampionRecord, at: datetime) -> Objection | None:
        """Return why a record that would move the pointer moves nothing, or None if it does."""
        if record.approves is not None:
            return self._objection_to_approval(record, record.approves, at)
        if not self.approval_required:
            return None
        if record.verdict != "rolled_back":
            return Objection(f"it makes version {record.to_version} champion without an approval")
        served = {(move.version, move.sha256) for move in self.moves}
        if record.version != record.to_version or (record.version, record.sha256) not in served:
            return Objection(f"it rolls back to version {record.to_version}, whose approval is not in the history")
        if any(move.record_sha256 == record.record_sha256 for move in self.moves):
            return Objection("it is a copy of an earlier record")
        return None

    def _objection_to_approval(self, record: ChampionRecord, approved: str, at: datetime) -> Objection | None:
        proposal = self._proposals.get(approved)
        if proposal is None:
            what = f"the proposal {approved[:12]} that it approves is damaged or gone"
            return Objection(what, _REMEDIES["in_doubt"], doubt=True)
        proposal = self._seen(proposal, at)
        if proposal.status != "open":
            return Objection(proposal.why, proposal.remedy)
        served = self.champion and self.champion.version
        if (record.verdict, record.from_version) != ("promoted", served):
            return Objection(f"it does not promote from version {served}, which serves")
        return _stranger(record, proposal.record) or _other_content(record, proposal.record)

    def _take(self, entry: Entry, record: ChampionRecord, *, certain: bool) -> list[str]:
        if record.verdict == "proposed":
            return self._propose(record)
        if record.verdict == "rejected":
            return self._reject(record)
        if record.to_version is None:
            if self._pending is not None and self._pending.record.candidate == record.candidate:
                self._close("withdrawn", f"record {record.number} {record.verdict} it since: {record.reason}")
            return []
        return self._move(entry, record, certain=certain)

    def _move(self, entry: Entry, record: ChampionRecord, *, certain: bool) -> list[str]:
        # The writer looked at its own clock; the log may be a moment later, and on another machine.
        objection = self.objection(record, entry.logged_at - CLOCK_TOLERANCE)
        if objection is not None:
            if objection.doubt:
                self._cast_doubt(entry, objection.what)
            return [f"moves nothing: {objection.what}"]
        left = self.champion
        problems = []
        if certain and record.from_version != (left and left.version):
            problems.append(f"moves from {record.from_version}, but the champion was {left and left.version}")
        self.champion, self._doubt = record, None
        self.moves.append(record)
        if record.verdict == "rolled_back":
            self._leave(left, record)
        else:
            self.rejections = 0
        if record.approves is not None:
            self._close("approved", f"{record.by} approved it already, in record {record.number}")
        self.turned_down.pop(record.sha256 or "", None)
        return problems

    def _leave(self, left: ChampionRecord | None, record: ChampionRecord) -> None:
        if left is None or left.sha256 is None:
            return
        self.turned_down[left.sha256] = record
        if self._pending is not None and self._pending.record.candidate_sha256 == left.sha256:
            self._close("rolled_back", f"{record.by} rolled back from it since: {record.reason}")
        if left.approves is not None:
            approved = self._proposals[left.approves]
            why = f"{approved.why}, and {record.by} rolled back from it since: {record.reason}"
            self._proposals[left.approves] = replace(approved, status="rolled_back", why=why)

    def _propose(self, record: ChampionRecord) -> list[str]:
        if record.record_sha256 in self._proposals:
            return ["proposes nothing: it is a copy of an earlier record"]
        stated = (record.candidate_sha256, record.evidence_sha256, record.expires_at)
        if None in stated or (record.from_version, record.to_version) != (None, None):
            return ["proposes nothing: it lacks the candidate's content, its evidence or its end, or moves the pointer"]
        if (record.system, record.model) != (self.system, self.model):
            return [f"proposes nothing: it is about {record.model} of {record.system}"]
        version = f"version {record.candidate} was proposed after it, in record {record.number}"
        self._close("superseded", version)
        self._pending = self._proposals[record.record_sha256] = Proposal(record)
        if self._doubt is not None:
            self._close("in_doubt", f"it was proposed after {self._doubt[0]}, which cannot be trusted")
        return []

    def _reject(self, record: ChampionRecord) -> list[str]:
        proposal = self._proposals.get(record.rejects or "")
        if proposal is None or proposal.record.candidate != record.candidate or record.to_version is not None:
            return ["rejects nothing: the history holds no such proposal"]
        if proposal.status in {"approved", "rejected", "rolled_back"}:
            return [f"rejects nothing: {proposal.why}"]
        why = f"{record.by} rejected it: {record.reason}"
        if self._pending is not None and self._pending.record is proposal.record:
            self._pending = None
        self._proposals[proposal.record.record_sha256] = replace(proposal, status="rejected", why=why)
        self.turned_down[proposal.record.candidate_sha256 or ""] = record
        self.rejections += 1
        return []

    def _close(self, status: Status, why: str) -> None:
        if self._pending is not None:
            self._proposals[self._pending.record.record_sha256] = replace(self._pending, status=status, why=why)
            self._pending = None

    def _cast_doubt(self, entry: Entry, why: str) -> None:
        self._doubt = entry, why
        self._close("in_doubt", f"{entry} after it cannot be trusted: {why}")

    def _seen(self, proposal: Proposal, at: datetime) -> Proposal:
        """Return a proposal as it stands at a moment: stale and expired are not events, they come to pass."""
        put = proposal.record
        if proposal.status != "open":
            return proposal
        serves = (self.champion.version, self.champion.sha256) if self.champion is not None else (None, None)
        if serves != (put.version, put.sha256):
            then = f"beside version {put.version}" if put.version is not None else "while there was no champion"
            why = f"it was judged {then}, but version {serves[0]} serves now"
            return replace(proposal, status="stale", why=why)
        if put.expires_at is not None and at > put.expires_at:
            return replace(proposal, status="expired", why=f"its time ended at {put.expires_at:%Y-%m-%d %H:%M %Z}")
        return proposal
