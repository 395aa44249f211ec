"""All applications of a period, decided once, with the champion that the run found at its start.

What belongs here: which applications still want a decision, in chunks of bounded memory, and what came out. What does
not: how one is decided (`deciding.py`) and kept (`decision_log.py`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from mlops_assets.credit_risk.deciding import Decided, Decider, Request
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.ingestion import ACROSS_ROWS
from mlops_assets.credit_risk.pipeline import decision_context
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
    decisions: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    themes: Counter[str] = field(default_factory=Counter)
    without_reason: int = 0
    probability: float = 0.0
    scored: int = 0

    def add(self, decided: Decided, rules: Sequence[str]) -> None:
        """Count a chunk."""
        self.decisions.update(decided.decision)
        self.rules.update(rules)
        first = decided.reasons.order[:, 0]
        names = decided.reasons.themes
        self.themes.update(names[at] for at in first.tolist() if at >= 0)
        self.probability += float(decided.scores.pd.sum())
        self.scored += len(decided.scores.pd)

    def merge(self, other: "BatchDecisions") -> None:
        """Count another period's batch too; the id is that of the latest."""
        self.batch_id = other.batch_id
        self.applications += other.applications
        self.decided += other.decided
        self.known += other.known
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
        rows = _rows_of(tables, spec, batch) if batch is not None else pd.DataFrame()
        refused = _refused_across(tables, spec, batch) if batch is not None else {}
    if batch is None:
        raise UserError(
            f"no batch of applications was accepted for {period}",
            where=f"{spec.name}/decisions",
            remedy=f"materialize {spec.name}/applications of this period, and settle its incident if it has one.",
        )
    outcome = BatchDecisions(str(batch["batch_id"]), applications=len(rows))
    context = log.context(decision_context(spec, decider, version, run_id))
    received = pd.Timestamp(batch["received_at"]).tz_localize("UTC").isoformat()
    for start in range(0, len(rows), CHUNK):
        part = rows.iloc[start : start + CHUNK]
        request = Request(
            payloads=part["payload"].tolist(),
            until=end_of(spec, period),
            period=period,
            channel="batch",
            received_at=received,
            batch_id=outcome.batch_id,
            sources=[
                {"file": file, "row": int(row)} for file, row in zip(part["source"], part["row"].tolist(), strict=True)
            ],
            refused={
                at: refused[place]
                for at, place in enumerate(zip(part["source"], part["row"].tolist(), strict=True))
                if place in refused
            },
        )
        decided = decider.decide(request)
        records = list(decider.records(decided))
        added = log.append(_stamped(records, now), context)
        outcome.decided += added
        outcome.known += len(records) - added
        outcome.without_reason += sum(
            record["result"]["decision"] == "reject" and not record["result"]["reasons"] for record in records
        )
        outcome.add(decided, [record["result"]["rule"] for record in records])
    return outcome


def _stamped(records: Sequence[dict[str, Any]], now: datetime | None) -> Iterator[dict[str, Any]]:
    moment = (now or datetime.now(UTC)).isoformat()
    for record in records:
        yield {**record, "decided_at": moment}


def _rows_of(tables: Tables, spec: Spec, batch: Mapping[str, Any]) -> pd.DataFrame:
    return tables.query(
        f"select row, source, payload from {spec.name}.raw_applications where batch_id = ? order by source, row",
        [batch["batch_id"]],
    )


def _refused_across(tables: Tables, spec: Spec, batch: Mapping[str, Any]) -> dict[tuple[str, int], list[str]]:
    """Return the rules across rows that rows of the batch broke, by source and row: a week has several files."""
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
