"""Every decision with all it was made of, in a journal that nobody can change unseen.

What belongs here: what an entry of the journal `decisions` holds, by what it is found again, and decisions as a table
for monitoring. What does not: how one is decided (`deciding.py`), and what is done with those that were found
(`tracing.py`, `watching.py`).

Kinds of entries: a ``context`` (model, policy, reasons, code: what all decisions of a run share, once), a ``decision``
and a ``rescore`` (the same application decided again in another context, beside the decision that stands).
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

import pandas as pd

from mlops_assets.credit_risk._decision_columns import COLUMNS, DecisionColumns
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.journal import Draft, Entry, Head, Journal, Problem

__all__ = ["COLUMNS", "FIELDS", "DecisionLog", "Written"]

FIELDS = (
    "decision_id", "application_id", "period", "batch_id", "channel", "received_at", "decided_at", "payload",
    "payload_sha256", "source", "flags", "features", "result",
)  # fmt: skip
"""What a decision has to say; it may say more."""

_CONTEXT, _DECISION, _RESCORE = "context", "decision", "rescore"
_KNOWN_CONTEXTS = 1_000


class Written(NamedTuple):
    """A decision as it stands in the log: canonical JSON with every field of `FIELDS` and its context.

    Parameters
    ----------
    text
        The entry's content; whoever made it vouches that it is canonical and complete.
    decision_id, application_id, context_sha256
        What it says of these.
    found_by
        What it says of period, decision, rule and channel, and of batch_id where it has one.
    """

    text: str
    decision_id: str
    application_id: str
    context_sha256: str
    found_by: Mapping[str, str]


class DecisionLog:
    """The decisions of one system.

    Parameters
    ----------
    journal
        The system's journal `decisions`.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._contexts: dict[str, Mapping[str, Any]] = {}

    def context(self, context: Mapping[str, Any]) -> str:
        """Record what decisions share, once, and return its SHA-256.

        Parameters
        ----------
        context
            Everything needed to decide again; ``context["model"]`` with ``sha256`` and ``version``, and
            ``context["policy"]`` with ``version``, are what decisions are found by.

        Raises
        ------
        UserError
            It has no JSON form, or does not name model and policy.
        """
        self._keys(context, "to be recorded")
        try:
            sha256 = sha256_hex(canonical_json(context))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the context cannot be recorded: {error}",
                where=str(self.journal.path),
                remedy="give plain numbers, text, lists and mappings.",
            ) from error
        self.journal.append(_CONTEXT, context, sha256)
        return sha256

    def context_of(self, sha256: str) -> Mapping[str, Any]:
        """Return a recorded context.

        Raises
        ------
        UserError
            There is none with this hash.
        """
        known = self._contexts.get(sha256)  # threads share a log: what is there now may be cleared a moment later
        if known is not None:
            return known
        entry = self.journal.get(_CONTEXT, sha256)
        if entry is None:
            raise UserError(
                f"no context has the SHA-256 {sha256}",
                where=str(self.journal.path),
                remedy="record the context of a decision before the decision.",
            )
        if len(self._contexts) >= _KNOWN_CONTEXTS:
            self._contexts.clear()
        context: Mapping[str, Any] = entry.body
        self._contexts[sha256] = context
        return context

    def append(self, decisions: Iterable[Mapping[str, Any] | Written], context_sha256: str) -> int:
        """Append decisions that were made in a context; one whose ``decision_id`` is known is passed over.

        Memory holds 10,000 of them at most, whatever their number.

        Returns
        -------
        int
            How many were appended.

        Raises
        ------
        UserError
            A decision lacks a field, the context was not recorded, or as for `Journal.append_many`.
        """
        keys = self._keys(self.context_of(context_sha256), context_sha256)
        return self.journal.append_many(_decision_drafts(decisions, context_sha256, keys)).appended

    def rescore(self, results: Iterable[Mapping[str, Any]], context_sha256: str, reason: str) -> int:
        """Append what decisions would be in another context; the decisions themselves stand.

        Parameters
        ----------
        results
            Each with ``decision_id``, ``features`` and ``result``.
        reason
            Why they are decided again, such as a rollback.

        Returns
        -------
        int
            How many were appended; a decision is decided again once in one context.

        Raises
        ------
        UserError
            There is no such decision, the context was not recorded, or as for `append`.
        """
        keys = self._keys(self.context_of(context_sha256), context_sha256)
        return self.journal.append_many(self._rescore_drafts(results, context_sha256, keys, reason)).appended

    def get(self, decision_id: str) -> Entry:
        """Return a decision.

        Raises
        ------
        UserError
            There is none of this name.
        """
        entry = self.journal.get(_DECISION, decision_id)
        if entry is None:
            raise UserError(
                f"there is no decision {decision_id!r}",
                where=str(self.journal.path),
                remedy="look it up by the application's id, or in the answer that the applicant got.",
            )
        return entry

    def recorded(self, decision_ids: Iterable[str]) -> set[str]:
        """Return which of these decisions are in the log."""
        return self.journal.known(_DECISION, decision_ids)

    def named(self, application_ids: Iterable[str]) -> dict[str, list[str]]:
        """Return the names of the decisions on each of these applications that has any, the oldest first."""
        return self.journal.names(_DECISION, application_ids)

    def find(self, application_id: str) -> list[Entry]:
        """Return the decisions on an application, the oldest first."""
        return list(self.journal.read(_DECISION, subject=application_id))

    def rescored(self, decision_id: str) -> list[Entry]:
        """Return how a decision came out when it was made again, the oldest first."""
        subject = self.get(decision_id).subject
        found = self.journal.read(_RESCORE, subject=subject)
        return [entry for entry in found if entry.body["decision_id"] == decision_id]

    def between(self, start: datetime, end: datetime) -> Iterator[Entry]:
        """Stream the decisions that were recorded from `start` to before `end`; both with a time zone."""
        return self.journal.read(_DECISION, since=start, until=end)

    def of_period(self, period: str) -> Iterator[Entry]:
        """Stream the decisions of a period."""
        return self.journal.read(_DECISION, index={"period": period})

    def touched(
        self,
        *,
        model: str | None = None,
        batch: str | None = None,
        rule: str | None = None,
        policy: str | None = None,
        decision: str | None = None,
        channel: str | None = None,
    ) -> Iterator[Entry]:
        """Stream the decisions that a model (its SHA-256), a batch, a rule or a policy had a hand in.

        Several conditions have to hold together.
        """
        asked = {
            "model_sha256": model, "batch_id": batch, "rule": rule, "policy_version": policy, "decision": decision,
            "channel": channel,
        }  # fmt: skip
        index = {name: value for name, value in asked.items() if value is not None}
        if not index:
            raise ValueError("name what the decisions were touched by")
        return self.journal.read(_DECISION, index=index)

    def frame(self, entries: Iterable[Entry]) -> pd.DataFrame:
        """Return decisions, or rescored ones, as a table of `COLUMNS`, in their order.

        Probabilities and margins are floats, missing where nothing was scored.
        """
        columns = DecisionColumns()
        for entry in entries:
            self._add(columns, entry.body)
        return columns.frame()

    def comparison(self, rescores: Iterable[Entry]) -> pd.DataFrame:
        """Return rescored decisions beside the ones that stand: ``…_before``, ``…_after``, and whether they differ."""
        stands, again = DecisionColumns(), DecisionColumns()
        for entry in rescores:
            body = entry.body
            self._add(stands, self.get(body["decision_id"]).body)
            self._add(again, body)
        before, after = stands.frame(), again.frame()
        table = before[["decision_id", "application_id", "period", "batch_id"]].copy()
        for name in ("decision", "rule", "pd", "points", "theme", "model_version", "policy_version"):
            table[f"{name}_before"], table[f"{name}_after"] = before[name], after[name]
        table["changed"] = table["decision_before"] != table["decision_after"]
        return table

    def head(self) -> Head:
        """Return the witness of everything that is in the log now."""
        return self.journal.head()

    def verify(
        self, heads: Iterable[tuple[int, str]] = (), *, limit: int = 100, after_number: int = 0
    ) -> list[Problem]:
        """Return everything that is wrong with the log: its chain, and decisions that do not fit their context.

        Parameters
        ----------
        heads
            Numbers and SHA-256s that were noted elsewhere, such as in the metadata of runs.
        after_number
            Read only this entry, which `heads` has to witness, and those after it: see `Journal.verify`.
        """
        problems = self.journal.verify(heads, limit=limit, after_number=after_number)
        # What the chain vouches for was written by this module; one that does not hold is not worth reading on.
        return problems or list(islice(self._misfits(after_number), limit))

    def _add(self, columns: DecisionColumns, body: Mapping[str, Any]) -> None:
        columns.add(body, self.context_of(body["context_sha256"]))

    def _misfits(self, after_number: int) -> Iterator[Problem]:
        for kind in (_DECISION, _RESCORE):
            for entry in self.journal.read(kind, after_number=after_number):
                body = entry.body
                try:
                    keys = self._keys(self.context_of(body["context_sha256"]), body["context_sha256"])
                except UserError:
                    yield Problem(entry.number, f"refers to the context {body['context_sha256']}, which is not there")
                    continue
                if entry.index != _index_of(body, keys):
                    yield Problem(entry.number, "is listed under other values than it holds")

    def _rescore_drafts(
        self, results: Iterable[Mapping[str, Any]], context_sha256: str, keys: Mapping[str, str], reason: str
    ) -> Iterator[Draft]:
        for each in results:
            original = self.get(each["decision_id"])
            stands = original.body
            body = {
                "decision_id": each["decision_id"],
                "original_sha256": original.sha256,
                "application_id": stands["application_id"],
                "period": stands["period"],
                "batch_id": stands["batch_id"],
                "channel": stands["channel"],
                "decided_at": stands["decided_at"],
                "features": each["features"],
                "result": each["result"],
                "reason": reason,
                "context_sha256": context_sha256,
            }
            key = f"{each['decision_id']} {context_sha256}"
            yield Draft(_RESCORE, body, key, original.subject, _index_of(body, keys))

    def _keys(self, context: Mapping[str, Any], sha256: str) -> dict[str, str]:
        """Return what decisions of a context are found by."""
        try:
            model, policy = context["model"], context["policy"]
            _ = model["version"]  # tables show it
            return {"model_sha256": str(model["sha256"]), "policy_version": str(policy["version"])}
        except (KeyError, TypeError) as error:
            raise UserError(
                f"context {sha256} does not name its model and policy: {error} is missing",
                where=str(self.journal.path),
                remedy="give model.sha256, model.version and policy.version.",
            ) from error


def _decision_drafts(
    decisions: Iterable[Mapping[str, Any] | Written], context_sha256: str, keys: Mapping[str, str]
) -> Iterator[Draft]:
    # What decisions are found by is the same for thousands of them: it is put together once.
    known: dict[int, tuple[Mapping[str, str], Mapping[str, str]]] = {}
    for each in decisions:
        if not isinstance(each, Written):
            yield _decision_draft(each, context_sha256, keys)
            continue
        if each.context_sha256 != context_sha256:
            raise ValueError(f"decision {each.decision_id} was written for context {each.context_sha256}")
        if id(each.found_by) not in known:
            known[id(each.found_by)] = (each.found_by, {**keys, **each.found_by})
        _, index = known[id(each.found_by)]
        yield Draft(_DECISION, each.text, each.decision_id, each.application_id, index, canonical=True)


def _decision_draft(decision: Mapping[str, Any], context_sha256: str, keys: Mapping[str, str]) -> Draft:
    missing = [name for name in FIELDS if name not in decision]
    if missing:
        raise UserError(
            f"a decision lacks {', '.join(missing)}",
            where=f"decision {decision.get('decision_id')}",
            remedy=f"give every field: {', '.join(FIELDS)}.",
        )
    body = {**decision, "context_sha256": context_sha256}
    return Draft(_DECISION, body, decision["decision_id"], decision["application_id"], _index_of(body, keys))


def _index_of(body: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, str]:
    result = body["result"]
    index = {
        **keys,
        "period": body["period"],
        "decision": result["decision"],
        "rule": result["rule"],
        "channel": body["channel"],
    }
    if body["batch_id"] is not None:
        index["batch_id"] = body["batch_id"]
    return index
