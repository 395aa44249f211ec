"""From a source's rows to the tables of applications, batch by batch.

What belongs here: one transaction that stages, checks, sets duplicates apart, judges and writes the batches of some
periods. What does not: reading (`applications.py`), rules on rows (`contracts.py`) and on batches (`batch_rules.py`),
and the tables' columns (`batches.py`).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from mlops_assets.credit_risk import _staging as staging
from mlops_assets.credit_risk import batch_rules as rules
from mlops_assets.credit_risk.applications import deliveries
from mlops_assets.credit_risk.batch_facts import BatchFacts
from mlops_assets.credit_risk.batch_rules import Finding
from mlops_assets.credit_risk.batches import Status, contract_version, ensure_tables, facts_before
from mlops_assets.credit_risk.contracts import applications_contract
from mlops_assets.credit_risk.protected import ProtectedStage
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import utc_naive
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.resources import Tables, Warehouse

ACROSS_ROWS = (rules.CONFLICT, rules.KNOWN, rules.OTHER_PERIOD)
"""Rules that are judged across rows; the contract of a single row cannot find them again."""


@dataclass(frozen=True)
class BatchReport:
    """What became of the batch of one period.

    Parameters
    ----------
    rows, accepted, quarantined, copies
        Rows of the delivery, and what they are: in order, in quarantine, or only repeating another one.
    unchanged
        Whether this delivery had come before, so that nothing was written.
    """

    batch_id: str
    period: str
    status: Status
    rows: int
    accepted: int
    quarantined: int
    copies: int
    unchanged: bool
    findings: tuple[Finding, ...] = ()

    @property
    def blocked(self) -> tuple[Finding, ...]:
        """The findings that make a data incident."""
        return tuple(finding for finding in self.findings if finding.severity == "block")


@dataclass
class IngestReport:
    """What an ingestion did.

    Parameters
    ----------
    outside
        Rows of the source that belong to other periods.
    timeless_rows
        Quarantined rows that no period owns, because their time cannot be read or lies in the future.
    protected_unreadable
        Values of protected attributes that cannot be read and count as unknown, by attribute.
    """

    batches: list[BatchReport] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, object]] = field(default_factory=list)
    outside: int = 0
    timeless_rows: int = 0
    unknown_columns: tuple[str, ...] = ()
    protected_missing: tuple[str, ...] = ()
    protected_unreadable: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the deliveries."""
        return sum(batch.rows for batch in self.batches)

    @property
    def accepted_rows(self) -> int:
        """Rows that met the contract."""
        return sum(batch.accepted for batch in self.batches)

    @property
    def quarantined_rows(self) -> int:
        """Distinct rows in quarantine."""
        return sum(batch.quarantined for batch in self.batches)

    @property
    def copies(self) -> int:
        """Rows that only repeat another one."""
        return sum(batch.copies for batch in self.batches)

    @property
    def blocked(self) -> list[BatchReport]:
        """The batches that are data incidents."""
        return [batch for batch in self.batches if batch.status == "blocked" or batch.blocked]

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        """All findings with their periods."""
        return [(batch.period, finding) for batch in self.batches for finding in batch.findings]


def ingest_period(
    spec: Spec, periods: Sequence[str], warehouse: Warehouse, *, run_id: str = "", now: datetime | None = None
) -> IngestReport:
    """Take in the applications of these periods; the same delivery taken in twice changes nothing.

    All is one transaction: a run that dies leaves what was there before. A delivery with other content becomes a new
    batch beside the old one and, if nothing is wrong with it, the current one.

    Parameters
    ----------
    periods
        Keys, ascending.
    now
        When the deliveries are received; an application after it is in quarantine. By default this moment.

    Raises
    ------
    UserError
        The source cannot be read or lacks a required column; or applications without times are asked for a period
        that is not the first.
    """
    _refuse_other_periods(spec, periods)
    received = now or datetime.now(UTC)
    contract = replace(applications_contract(spec, received), unique=())
    with warehouse.session() as tables:
        ensure_tables(tables, spec)
        protected = ProtectedStage(tables, spec)
        chunks = deliveries(spec, periods, warehouse, contract)
        staged = staging.stage(tables, spec, periods, chunks, contract, protected)
        staging.set_duplicates_apart(tables, spec)
        incoming = _judged(tables, spec, periods, staging.Arrivals.of(tables, spec, periods), staged)
        _write(tables, spec, [each for each in incoming if not each.unchanged], run_id, utc_naive(received))
        protected.read(periods, warehouse)
        protected.write()
        staging.write_unowned(tables, spec)
        return _report(tables, incoming, staged, protected)


def _refuse_other_periods(spec: Spec, periods: Sequence[str]) -> None:
    first = spec.periods.start.isoformat()
    if not spec.data.timed and list(periods) != [first]:
        # The same rows in two periods would count twice.
        raise UserError(
            f"applications without times are all of the first period, not of {', '.join(periods)}",
            where=f"{spec.name}.accepted_applications",
            remedy=f"materialize {first}, or set data.timed to true if applications carry their time.",
        )


@dataclass(frozen=True)
class _Incoming:
    """A batch that has come: its facts, what was found, and whether it was there already."""

    batch_id: str
    sha256: str
    source: str
    status: Status
    unchanged: bool
    facts: BatchFacts
    findings: tuple[Finding, ...]


def _judged(
    tables: Tables, spec: Spec, periods: Sequence[str], arrivals: staging.Arrivals, staged: staging.Staged
) -> list[_Incoming]:
    """Judge the batches one after the other, each against the accepted ones before it."""
    known = _Known(tables, spec, periods)
    most = spec.checks.reference_periods
    reference = facts_before(tables, spec, periods[0], most)
    incoming: list[_Incoming] = []
    for period in periods:
        digest, source = arrivals.sha256[period], arrivals.source[period]
        batch_id = f"{period}-{digest[:12]}"
        before = known.batch(batch_id)
        if before is not None and not known.is_outdated(batch_id):
            each = _again(known, before, period, digest, source)
        else:
            facts = arrivals.facts[period]
            replaced = known.current_facts(period, batch_id)
            findings = rules.judge(spec, facts, reference, replaced=replaced)
            twin = known.elsewhere(digest, period)
            if twin is not None and facts.rows:
                findings = [rules.same_delivery(period, facts.rows, *twin), *findings]
            if period == periods[-1]:
                findings = [*rules.without_time(spec, staged.unowned, staged.nr + staged.outside), *findings]
            status: Status = "blocked" if any(found.severity == "block" for found in findings) else "accepted"
            each = _Incoming(batch_id, digest, source, status, unchanged=False, facts=facts, findings=tuple(findings))
        incoming.append(each)
        known.add(digest, period, batch_id)
        if each.status == "accepted":
            reference = [*reference, each.facts][-most:]
    return incoming


def _again(known: "_Known", before: Mapping[str, Any], period: str, digest: str, source: str) -> _Incoming:
    """Return a batch that has come before, as it was judged then; an outdated one is found to be so."""
    findings = tuple(Finding(**each) for each in json.loads(before["findings"]))
    current = known.current_id(period)
    if before["status"] == "accepted" and current not in (None, before["batch_id"]):
        findings = (rules.superseded(period, str(before["batch_id"]), str(current)), *findings)
    if before["status"] == "accepted":
        # Somebody has looked at what was found then, and let it pass.
        findings = tuple(
            found if found.rule == "superseded_delivery" else replace(found, severity="warn") for found in findings
        )
    facts = BatchFacts.from_dict(json.loads(before["facts"]))
    return _Incoming(
        str(before["batch_id"]), digest, source, before["status"], unchanged=True, facts=facts, findings=findings
    )


class _Known:
    """The batches that were there before, for questions by id, period and content."""

    def __init__(self, tables: Tables, spec: Spec, periods: Sequence[str]) -> None:
        every = tables.query(
            f"select b.batch_id, cast(b.period as varchar) as period, sha256, rows, status, facts, findings, contract "
            f"from {spec.name}.batches as b join {spec.name}.batch_facts using (batch_id) "
            "where b.period between cast(? as date) and cast(? as date)",
            [periods[0], periods[-1]],
        )
        self._batches: dict[str, Mapping[str, Any]] = {
            str(row["batch_id"]): {str(name): value for name, value in row.items()} for row in every.to_dict("records")
        }
        current = tables.query(f"select batch_id, cast(period as varchar) as period from {spec.name}.current_batches")
        self._current = dict(zip(current["period"], current["batch_id"], strict=True))
        contents = tables.query(
            f"select sha256, cast(period as varchar) as period, batch_id from {spec.name}.batches "
            "where status = 'accepted' and rows > 0 order by received_at desc"
        )
        self._contents: dict[str, tuple[str, str]] = {
            str(digest): (str(period), str(batch)) for digest, period, batch in contents.itertuples(index=False)
        }
        self._contract = contract_version(spec)

    def batch(self, batch_id: str) -> Mapping[str, Any] | None:
        return self._batches.get(batch_id)

    def is_outdated(self, batch_id: str) -> bool:
        """Tell whether a batch was judged by other rules than today's."""
        return bool(self._batches[batch_id]["contract"] != self._contract)

    def current_id(self, period: str) -> str | None:
        return self._current.get(period)

    def current_facts(self, period: str, batch_id: str) -> BatchFacts | None:
        current = self._current.get(period)
        if current is None or current == batch_id:
            return None
        return BatchFacts.from_dict(json.loads(self._batches[current]["facts"]))

    def elsewhere(self, digest: str, period: str) -> tuple[str, str] | None:
        found = self._contents.get(digest)
        return found if found is not None and found[0] != period else None

    def add(self, digest: str, period: str, batch_id: str) -> None:
        self._contents.setdefault(digest, (period, batch_id))


def _write(tables: Tables, spec: Spec, batches: Sequence[_Incoming], run_id: str, received: datetime) -> None:
    if not batches:
        return
    version = contract_version(spec)
    frame = pd.DataFrame(
        {
            "batch_id": [each.batch_id for each in batches],
            "period": pd.to_datetime([each.facts.period for each in batches]),
            "sha256": [each.sha256 for each in batches],
            "rows": [each.facts.rows for each in batches],
            "received_at": pd.to_datetime([received] * len(batches)),
            "source": [each.source for each in batches],
            "run_id": run_id,
            "status": [each.status for each in batches],
            "facts": [canonical_json(each.facts.to_dict()).decode() for each in batches],
            "findings": [canonical_json([asdict(found) for found in each.findings]).decode() for each in batches],
            "contract": version,
        }
    )
    staging.write_batches(tables, spec, frame)


def _report(
    tables: Tables, incoming: Sequence[_Incoming], staged: staging.Staged, protected: ProtectedStage
) -> IngestReport:
    report = IngestReport(
        outside=staged.outside,
        unknown_columns=tuple(sorted(staged.unknown_columns)),
        protected_missing=protected.missing,
        protected_unreadable=dict(protected.unreadable),
    )
    broken: Counter[str] = Counter()
    for each in incoming:
        facts = each.facts
        report.batches.append(
            BatchReport(
                each.batch_id, facts.period, each.status, facts.rows, facts.accepted, facts.quarantined, facts.copies,
                each.unchanged, each.findings,
            )
        )  # fmt: skip
        broken.update(facts.rules)
    report.rules = dict(sorted(broken.items(), key=lambda item: (-item[1], item[0])))
    report.timeless_rows, report.examples = staged.unowned, staging.examples(tables)
    return report


def quarantined_rows(tables: Tables, spec: Spec, batch_id: str, *, most: int = 20) -> list[dict[str, object]]:
    """Return rows of a batch in quarantine with the rule, the value and the bound, for people to look at."""
    found = tables.query(
        f'select source, row, application_id, rule, "column", value, bound from {spec.name}.quarantined_applications '
        f"where batch_id = ? order by rule, source, row limit {most}",
        [batch_id],
    )
    return list(_records(found))


def _records(frame: pd.DataFrame) -> Iterator[dict[str, object]]:
    for row in frame.astype(object).to_dict("records"):
        yield {str(name): None if pd.isna(value) else value for name, value in row.items()}
