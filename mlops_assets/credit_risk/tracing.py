"""From a decision to everything behind it, and from a model, a batch or a rule to every decision it touched.

What belongs here: trace, impact and re-scoring after a rollback. What does not: making one decision again
(`replaying.py`), the log itself (`decision_log.py`), and who vouches for it (`witnesses.py`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import pandas as pd

from mlops_assets.credit_risk import incidents, pipeline, witnesses
from mlops_assets.credit_risk._trace_links import (
    Link,
    approval_link,
    decision_link,
    model_link,
    place_text,
    plain,
    reason_text,
    rules_of,
    unbroken,
)
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.models import model_name
from mlops_assets.credit_risk.replaying import Difference, Replayer, ReplaySummary
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath
from mlops_assets.foundation.journal import Entry, Journal, Problem
from mlops_assets.foundation.registry import ChampionHistory, ChampionRecord, ModelVersion, Registry
from mlops_assets.foundation.resources import Warehouse

__all__ = ["Difference", "Impact", "ReplaySummary", "Rescored", "Trace", "Tracer", "replay_sample"]

_CHUNK = 5_000
_SHOWN = 12


def replay_sample(log: DecisionLog, registry: Registry, periods: Sequence[str], *, rows: int) -> ReplaySummary:
    """Make the first decisions of the last of these periods again; a check must not take as long as the batch."""
    return Replayer(log, registry).replay(islice(log.of_period(periods[-1]), rows))


@dataclass(frozen=True)
class Trace:
    """A decision and the chain behind it, link by link."""

    decision_id: str
    links: Mapping[str, Sequence[tuple[str, Any]]]

    def rows(self) -> list[tuple[str, str]]:
        """Return the links as rows of name and text."""
        return [
            (f"{link}: {name}" if name else link, "" if value is None else str(value))
            for link, pairs in self.links.items()
            for name, value in pairs
        ]


@dataclass(frozen=True)
class Impact:
    """The decisions that something touched."""

    what: str
    frame: pd.DataFrame

    def rows(self) -> list[tuple[str, str]]:
        """Return counts by decision, rule, model and period."""
        if self.frame.empty:
            return [("touched by", self.what), ("decisions", "0")]
        periods = self.frame["period"]
        counted = {
            name: ", ".join(f"{value} {count:,}" for value, count in Counter(self.frame[name]).most_common(_SHOWN))
            for name in ("decision", "rule", "model_version", "channel")
        }
        return [
            ("touched by", self.what),
            ("decisions", f"{len(self.frame):,}"),
            ("periods", f"{periods.min()} to {periods.max()}"),
            *counted.items(),
        ]


@dataclass(frozen=True)
class Rescored:
    """Decisions of one version beside what another would decide."""

    version: int
    frame: pd.DataFrame

    @property
    def changed(self) -> pd.DataFrame:
        """Those that come out differently."""
        return self.frame[self.frame["changed"]]

    def rows(self) -> list[tuple[str, str]]:
        """Return how many change, and from what to what."""
        moves = Counter(zip(self.frame["decision_before"], self.frame["decision_after"], strict=True))
        told = ", ".join(f"{old} -> {new} {count:,}" for (old, new), count in moves.most_common(_SHOWN))
        shift = (self.frame["pd_after"] - self.frame["pd_before"]).mean() if len(self.frame) else float("nan")
        return [
            ("re-scored", f"{len(self.frame):,}"),
            ("changed", f"{len(self.changed):,}"),
            ("decisions", told),
            ("mean change of the default probability", f"{shift:+.4f}"),
        ]


class Tracer:
    """Follows decisions of one system.

    Parameters
    ----------
    spec, log, registry, history
        The system, its decisions, its model versions, and which of them served when.
    warehouse, root, operations
        Where batches are, the object store's root, and the journal of incidents.
    """

    def __init__(
        self, spec: Spec, log: DecisionLog, registry: Registry, history: ChampionHistory, warehouse: Warehouse,
        root: AnyPath, operations: Journal,
    ) -> None:  # fmt: skip
        self.spec, self.log, self.registry, self.history = spec, log, registry, history
        self.warehouse, self.root, self.operations = warehouse, root, operations

    # --- Back from a decision ---

    def trace(self, name: str) -> list[Trace]:
        """Return the chain behind a decision, or behind every decision on an application, oldest first.

        A link that is broken says so in its place and hides no other.

        Raises
        ------
        UserError
            Nothing is called like that.
        """
        return [self._trace(entry) for entry in self._entries(name)]

    def _entries(self, name: str) -> list[Entry]:
        """Return the decision of this name and those on the application of this name: an id may look like the other."""
        on_application = self.log.find(name)
        if on_application and not self.log.recorded([name]):
            return on_application
        return [self.log.get(name), *on_application]

    def _trace(self, entry: Entry) -> Trace:
        body = entry.body
        context = self.log.context_of(body["context_sha256"])
        links: dict[str, Sequence[tuple[str, Any]]] = {
            "decision": decision_link(body),
            "reasons": [(each["theme"], reason_text(each)) for each in body["result"]["reasons"]] or [("", "none")],
            "application": self._application_link(body, entry),
            "batch": unbroken(lambda: self._batch_link(body)),
            "model": unbroken(lambda: model_link(self._version(context), context)),
            "training set": unbroken(lambda: self._training_link(context)),
            "approval": unbroken(lambda: approval_link(self._approval(body, context))),
            "checks": unbroken(lambda: self._checks_link(body, context)),
            "policy": [("", ", ".join(f"{name} {value}" for name, value in context["policy"].items()))],
            "code": [(name, value) for name, value in context["made_by"].items()],
            "log": [
                ("entry", entry.number), ("sha256", entry.sha256), ("previous", entry.previous_sha256),
                ("context", body["context_sha256"]), ("run", context["run_id"]),
            ],
        }  # fmt: skip
        again = self.log.rescored(body["decision_id"])
        if again:
            links["re-scored"] = [
                (str(each.at), f"{each.body['result']['decision']}: {each.body['reason']}") for each in again
            ]
        return Trace(body["decision_id"], links)

    def _version(self, context: Mapping[str, Any]) -> ModelVersion:
        return self.registry.get(context["model"]["name"], context["model"]["version"])

    def _application_link(self, body: Mapping[str, Any], entry: Entry) -> Link:
        flags = body["flags"]
        link: Link = [
            ("id", body["application_id"]), ("payload sha256", body["payload_sha256"]),
            ("source", place_text(body["source"])), ("received", body["received_at"]), *body.get("asked", {}).items(),
            ("features", ", ".join(f"{name} {plain(value)}" for name, value in body["features"].items())),
        ]  # fmt: skip
        link += [("broken rule", f"{each['rule']}: {each['value']!r}, {each['bound']}") for each in flags["broken"]]
        link += [("refused by", rule) for rule in flags["refused"]]
        if flags["outlier"] is not None and flags["outlier"]["flagged"]:
            link.append(("outlier", f"set apart by {flags['outlier']['main_feature']}"))
        earlier = [each for each in self.log.find(body["application_id"]) if each.number < entry.number]
        if earlier:
            before = earlier[-1].body
            now, then = body["payload"], before["payload"]
            changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
            link.append(("earlier decision", before["decision_id"]))
            link += [("changed since", f"{name}: {then.get(name)!r} -> {now.get(name)!r}") for name in sorted(changed)]
        return link

    def _batch_link(self, body: Mapping[str, Any]) -> Link:
        if body["batch_id"] is None:
            return [("", f"none: it came by {body['channel']}")]
        with self.warehouse.session() as tables:
            table = f"{self.spec.name}.batches"
            sql = f"select sha256, rows, received_at, run_id, status from {table} where batch_id = ?"
            found = tables.query(sql, [body["batch_id"]]) if tables.exists(table) else pd.DataFrame()
        if found.empty:
            return [("id", body["batch_id"]), ("", "it is not in the warehouse")]
        row = found.iloc[0]
        told = [each for each in incidents.history(self.operations) if each.batch_id == body["batch_id"]]
        return [
            ("id", body["batch_id"]), ("sha256", row["sha256"]), ("rows", row["rows"]),
            ("received", row["received_at"]), ("run", row["run_id"]), ("status", row["status"]),
            *[("incident", f"{each.id} {each.rule}: {each.state} {each.reason or ''}") for each in told],
        ]  # fmt: skip

    def _training_link(self, context: Mapping[str, Any]) -> Link:
        from mlops_assets.foundation.snapshots import SnapshotStore

        sha256 = context["model"]["training_set"]
        facts = unbroken(lambda: list(SnapshotStore(self.root / "snapshots").load(sha256).metadata.items()))
        shown = ("", "as_of", "split", "good", "bad", "test_from", "batches", "batches_sha256")
        return [("sha256", sha256), *[(name, value) for name, value in facts if name in shown]]

    def _approval(self, body: Mapping[str, Any], context: Mapping[str, Any]) -> ChampionRecord | None:
        """Return the record by which the version served when it decided: an approval, or a rollback to it."""
        number = context["model"]["version"]
        record = self.history.production_at(datetime.fromisoformat(body["decided_at"]))
        if record is not None and record.version == number:
            return record
        moves = [each for each in self.history.records() if each.to_version == number]
        return moves[0] if moves else None

    def _checks_link(self, body: Mapping[str, Any], context: Mapping[str, Any]) -> Link:
        approved = self._approval(body, context)
        if approved is None or approved.evidence_sha256 is None:
            return [("", "no evidence is recorded")]
        gates = self.registry.evidence(self._version(context), approved.evidence_sha256)["gates"]
        passed = sum(gate["status"] == "passed" for gate in gates)
        others = [(gate["gate"], f"{gate['status']}: {gate['reason']}") for gate in gates if gate["status"] != "passed"]
        return [("", f"{passed} of {len(gates)} passed"), *others]

    # --- Again ---

    def replay(
        self, name: str | None = None, *, since: datetime | None = None, until: datetime | None = None
    ) -> ReplaySummary:
        """Make a decision, those on an application, or all of a time range again, and compare the bytes."""
        entries: Iterable[Entry]
        if name is not None:
            entries = self._entries(name)
        else:
            entries = self.log.journal.read("decision", since=since, until=until)
        return Replayer(self.log, self.registry).replay(entries)

    def verify_log(self) -> list[Problem]:
        """Return what is wrong with the whole log, held against every head that Dagster's event log is witness of."""
        return self.log.verify(witnesses.witnesses(self.history.instance, self.spec.name))

    # --- Forward to decisions ---

    def impact(self, *, model: int | None = None, batch: str | None = None, rule: str | None = None) -> Impact:
        """Return every decision that a model version, a batch or a rule touched.

        Raises
        ------
        UserError
            There is no such version.
        """
        if model is not None:
            version = self.registry.get(model_name(self.spec), model)
            return Impact(str(version), self.log.frame(self.log.touched(model=version.sha256)))
        if batch is not None:
            return Impact(f"batch {batch}", self.log.frame(self.log.touched(batch=batch)))
        decided_by = self.log.frame(self.log.touched(rule=rule))
        if len(decided_by):
            return Impact(f"rule {rule}", decided_by)
        # A rule that quarantined is not what decided: it is among the flags of those that were referred for it.
        quarantined = self.log.touched(rule="quarantined")
        touched = (entry for entry in quarantined if rule in rules_of(entry.body["flags"]))
        return Impact(f"rule {rule} (quarantine)", self.log.frame(touched))

    def rescore(self, *, model: int, by: str, reason: str) -> Rescored:
        """Decide again, with the champion of now, what a version decided; the decisions themselves stand.

        Raises
        ------
        UserError
            The version serves, decided nothing, name or reason is empty, or the log was changed.
        """
        for what, text in (("name", by), ("reason", reason)):
            if not text.strip():
                raise UserError(f"the {what} is empty", where=f"{self.spec.name} re-scoring", remedy="state it.")
        champion = self.history.champion()
        version = self.registry.get(model_name(self.spec), model)
        if version.sha256 == champion.sha256:
            raise UserError(
                f"{version} is the champion: it would decide the same again",
                where=f"{self.spec.name} re-scoring",
                remedy="roll back first, then re-score what the bad version decided.",
            )
        witnesses.refuse_forged(self.log, self.history.instance, self.spec.name)
        policy = pipeline.approved_policy(self.spec, self.history, champion)
        decider = pipeline.load_decider(self.spec, self.registry, champion, policy.to_dict())
        run = f"re-scoring by {by}"
        context = self.log.context(pipeline.decision_context(self.spec, decider, champion, run))
        replayer, stream = Replayer(self.log, self.registry), self.log.touched(model=version.sha256)
        ids: set[str] = set()
        while chunk := list(islice(stream, _CHUNK)):
            bodies = [entry.body for entry in chunk]
            again = [
                {**record, "decision_id": body["decision_id"]}
                for body, record in zip(bodies, replayer.decided_again(decider, bodies), strict=True)
            ]
            self.log.rescore(again, context, f"{reason} ({by})")
            ids.update(body["decision_id"] for body in bodies)
        witnesses.note(self.log, self.history.instance, self.spec.name)
        if not ids:
            raise UserError(
                f"{version} has decided nothing", where=f"{self.spec.name} decisions", remedy="name another version."
            )
        rescores = self.log.journal.read("rescore")
        mine = (entry for entry in rescores if entry.body["context_sha256"] == context)
        frame = self.log.comparison(entry for entry in mine if entry.body["decision_id"] in ids)
        return Rescored(champion.version, frame)
