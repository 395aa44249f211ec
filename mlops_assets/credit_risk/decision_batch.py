"""All applications of a period, decided once, with the champion that the run found at its start.

What belongs here: which applications still want a decision, in chunks of bounded memory, and what came out. What does
not: how one is decided (`deciding.py`) and kept (`decision_log.py`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from mlops_assets.credit_risk.deciding import Decided, Decider, Request
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.ingestion import ACROSS_ROWS
from mlops_assets.credit_risk.pipeline import decision_context
from mlops_assets.credit_risk.policy import RULE_NAMES
from mlops_assets.credit_risk.repeats import same_content
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import end_of
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ModelVersion
from mlops_assets.foundation.resources import Tables, Warehouse

CHUNK = 20_000


@dataclass
class BatchDecisions:
    """What a run decided, and what had been decided before."""

    batch_id: str | None
    applications: int = 0
    decided: int = 0
    known: int = 0
    missing: int = 0
    doubled: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    themes: Counter[str] = field(default_factory=Counter)
    without_reason: int = 0
    probability: float = 0.0
    scored: int = 0

    def add(self, decided: Decided) -> None:
        """Count decisions that were just made and recorded."""
        self.decided += len(decided)
        decisions = decided.decision
        self.decisions.update(decisions)
        self.rules.update(RULE_NAMES[rule] for rule in decided.rule.tolist())
        names, first = decided.reasons.themes, decided.reasons.order[:, 0].tolist()
        self.themes.update(names[at] for at in first if at >= 0)
        self.without_reason += sum(
            decision == "reject" and (at < 0 or first[at] < 0)
            for decision, at in zip(decisions, decided.scored.tolist(), strict=True)
        )
        self.probability += float(decided.scores.pd.sum())
        self.scored += len(decided.scores.pd)

    def add_known(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        """Count decisions that the log has: what stands, whatever would be decided today."""
        for body in bodies:
            result = body["result"]
            self.known += 1
            self.decisions[result["decision"]] += 1
            self.rules[result["rule"]] += 1
            if result["reasons"]:
                self.themes[result["reasons"][0]["theme"]] += 1
            self.without_reason += result["decision"] == "reject" and not result["reasons"]
            if result["pd"] is not None:
                self.probability += float.fromhex(result["pd"])
                self.scored += 1

    def merge(self, other: "BatchDecisions") -> None:
        """Count another period's batch too; the id is that of the latest."""
        self.batch_id = other.batch_id
        self.applications += other.applications
        self.decided += other.decided
        self.known += other.known
        self.missing += other.missing
        self.doubled += other.doubled
        self.without_reason += other.without_reason
        self.probability += other.probability
        self.scored += other.scored
        for mine, theirs in ((self.decisions, other.decisions), (self.rules, other.rules), (self.themes, other.themes)):
            mine.update(theirs)

    @property
    def mean_pd(self) -> float | None:
        """Mean default probability of the scored applications."""
        return self.probability / self.scored if self.scored else None


def current_batch(tables: Tables, spec: Spec, period: str) -> Mapping[str, Any] | None:
    """Return the batch that counts for a period, or None where none was accepted."""
    if not tables.exists(f"{spec.name}.current_batches"):
        return None
    found = tables.query(
        f"select batch_id, sha256, rows, received_at from {spec.name}.current_batches where period = cast(? as date)",
        [period],
    )
    return {str(name): value for name, value in found.iloc[0].items()} if len(found) else None


def decide_period(
    spec: Spec,
    period: str,
    warehouse: Warehouse,
    log: DecisionLog,
    decider: Decider,
    version: ModelVersion,
    *,
    run_id: str,
    now: datetime | None = None,
) -> BatchDecisions:
    """Decide every application of a period's current batch that has no decision yet, and append it to the log.

    A rerun decides nothing twice. A run that died goes on where it stopped: what it appended is there for good.

    Raises
    ------
    UserError
        No batch was accepted for the period.
    """
    with warehouse.session() as tables:
        batch = current_batch(tables, spec, period)
        refused = {} if batch is None else _refused_across(tables, spec, batch)
    if batch is None:
        raise UserError(
            f"no batch of applications was accepted for {period}",
            where=f"{spec.name}/decisions",
            remedy=f"materialize {spec.name}/applications of this period, and settle its incident if it has one.",
        )
    outcome = BatchDecisions(str(batch["batch_id"]))
    context = log.context(decision_context(spec, decider, version, run_id))
    received = pd.Timestamp(batch["received_at"]).tz_localize("UTC").isoformat()
    for part in _chunks_of(warehouse, spec, batch):
        places = list(zip(part["source"].tolist(), part["row"].tolist(), strict=True))
        request = Request(
            payloads=part["payload"].tolist(),
            until=end_of(spec, period),
            period=period,
            channel="batch",
            received_at=received,
            batch_id=outcome.batch_id,
            sources=[{"file": file, "row": row} for file, row in places],
            refused={at: refused[place] for at, place in enumerate(places) if place in refused},
        )
        outcome.applications += len(places)
        _decide_new(log, decider, request, context, outcome, now)
    return outcome


def _decide_new(
    log: DecisionLog, decider: Decider, request: Request, context: str, outcome: BatchDecisions, now: datetime | None
) -> None:
    """Decide on the applications that have no decision yet, and count what stands for each of the request."""
    names = request.decision_ids(decider.spec.name)
    stands = _decided_before(log, decider.spec, request)
    names = [stands.get(at, name) for at, name in enumerate(names)]
    known = log.recorded(names)
    first = {name: at for at, name in reversed(list(enumerate(names))) if name not in known}
    fresh = sorted(first.values())
    others = [name for at, name in enumerate(names) if first.get(name) != at]
    if fresh:
        decided = decider.decide(request.select(fresh))
        moment = (now or datetime.now(UTC)).isoformat()
        if log.append(decider.written(decided, context, moment), context) == len(fresh):
            outcome.add(decided)
        else:
            # Another run was faster with some of them: what it recorded stands.
            others = names
    outcome.add_known(log.get(name).body for name in others)
    _ask_the_log(log, decider.spec, request, names, outcome)


def _decided_before(log: DecisionLog, spec: Spec, request: Request) -> dict[int, str]:
    """Return the decisions that were made on the same content in another notation, by position.

    One that the service decided on comes back in a file, where 16000 is a text. What the ingestion refused for other
    rows is judged by them, not by what it says alone.
    """
    earlier = log.named(request.ids)
    asked = [
        (at, name)
        for at, application in enumerate(request.ids)
        if application in earlier and at not in request.refused
        for name in earlier[application]
    ]
    bodies = {name: log.get(name).body for name in {name for _, name in asked}}
    same = same_content(spec, [(request.rows[at], bodies[name]) for at, name in asked], request.until)
    stands: dict[int, str] = {}
    for (at, name), equal in zip(asked, same, strict=True):
        if equal:
            stands.setdefault(at, name)
    return stands


def _ask_the_log(log: DecisionLog, spec: Spec, request: Request, names: Sequence[str], outcome: BatchDecisions) -> None:
    """Count, in the log, the contents of a request without a decision and those with several."""
    recorded, decisions = log.recorded(names), log.named(request.ids)
    contents = {name: at for at, name in enumerate(names)}
    outcome.missing += sum(
        name not in recorded or name not in decisions.get(request.ids[at], ()) for name, at in contents.items()
    )
    asked = [
        (at, other)
        for name, at in contents.items()
        if at not in request.refused
        for other in decisions.get(request.ids[at], ())
        if other != name
    ]
    same = same_content(spec, [(request.rows[at], log.get(other).body) for at, other in asked], request.until)
    outcome.doubled += len({at for (at, _), equal in zip(asked, same, strict=True) if equal})


def _chunks_of(warehouse: Warehouse, spec: Spec, batch: Mapping[str, Any]) -> Iterator[pd.DataFrame]:
    """Yield a batch's raw rows in order; the warehouse is not held while they are worked on."""
    after, last = "", list[Any]()
    while True:
        part = warehouse.query(
            f"select source, row, payload from {spec.name}.raw_applications where batch_id = ? {after} "
            f"order by source, row limit {CHUNK}",
            [batch["batch_id"], *last],
        )
        if len(part):
            yield part
        if len(part) < CHUNK:
            return
        end = part.iloc[-1]
        after, last = "and (source, row) > (?, ?)", [str(end["source"]), int(end["row"])]


def _refused_across(tables: Tables, spec: Spec, batch: Mapping[str, Any]) -> dict[tuple[str, int], list[str]]:
    """Return the rules that only several rows together break, by file and row."""
    rules = ", ".join(f"'{rule}'" for rule in ACROSS_ROWS)
    found = tables.query(
        f"select source, row, rule from {spec.name}.quarantined_applications where batch_id = ? and rule in ({rules}) "
        "order by source, row, rule",
        [batch["batch_id"]],
    )
    refused: dict[tuple[str, int], list[str]] = {}
    for source, row, rule in found.itertuples(index=False):
        refused.setdefault((str(source), int(row)), []).append(str(rule))
    return refused
