"""From a feed of outcomes to the table of outcomes: what became of loans, and when that was known.

What belongs here: reading, the contract, contradictions within a delivery, idempotent writes. What does not: which
outcomes count at a moment (`labels.py`) and what an outcome must look like (`contracts.py`).

An outcome belongs to the period in which it became known: the period of its file where a path names one, else that of
``outcome_at``. One without a time belongs to the period of its application. A later outcome of the same loan stands
beside the earlier one: what was known at a moment stays known. Both good and bad in one delivery is a contradiction:
neither counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk._frames import append_texts, together
from mlops_assets.credit_risk.applications import by_period, canonical_columns, numbered_ids, sample_days
from mlops_assets.credit_risk.batch_rules import exceeds
from mlops_assets.credit_risk.batches import ensure_tables
from mlops_assets.credit_risk.contracts import TEXT_CHARACTERS, outcomes_contract
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import period_of, utc_naive, window_of
from mlops_assets.foundation.contracts import SOURCE_COLUMNS, UNREADABLE, Contract, coerce, missing_column
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Tables, Warehouse
from mlops_assets.foundation.sources import SampleSource, read

OUTCOMES: Mapping[str, str] = {
    "application_id": "varchar", "outcome": "varchar", "outcome_at": "timestamp", "period": "date",
    "source": "varchar", "row": "bigint",
}  # fmt: skip
QUARANTINED_OUTCOMES: Mapping[str, str] = {
    "period": "date", "source": "varchar", "row": "bigint", "application_id": "varchar", "rule": "varchar",
    "column": "varchar", "value": "varchar", "bound": "varchar", "raw": "varchar",
}  # fmt: skip
NO_PERIOD = "no period"
CONTRADICTION, TOO_EARLY = "one_outcome", "outcome_not_before_application"

_COLUMNS = ("application_id", "outcome", "outcome_at")
_STAGED = ("period", "source", "row", *_COLUMNS)

_GROUP = 50_000
_LOST_ROWS = 5
"""Fewer missing outcomes are a correction, whatever their share."""
_RAW_CHARACTERS = 2_000


@dataclass(frozen=True)
class _Delivery:
    """Raw outcomes of one source, in a chunk; `owner` is the period that it was delivered for."""

    frame: pd.DataFrame
    source: str
    rows: NDArray[np.int64]
    owner: str | None


@dataclass
class OutcomesReport:
    """What an ingestion of outcomes did.

    Parameters
    ----------
    accepted_by_period, quarantined_by_period
        Rows that are in the table now, and distinct rows in quarantine; those of no period under `NO_PERIOD`.
    conflicts
        Loans that one delivery calls both good and bad; all their rows are in quarantine.
    too_early
        Outcomes from before their application, in quarantine.
    loans
        Loans that the deliveries tell something usable of, the conflicting ones included.
    unknown
        Loans whose application is in no accepted batch (yet); their outcomes count once it is there.
    updated
        Loans that had an outcome in an earlier period.
    waiting
        Applications whose outcome is not known yet, where it is a column of theirs.
    outside
        Rows of other periods.
    """

    accepted_by_period: dict[str, int] = field(default_factory=dict)
    quarantined_by_period: dict[str, int] = field(default_factory=dict)
    rules: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, object]] = field(default_factory=list)
    conflicts: int = 0
    too_early: int = 0
    loans: int = 0
    copies: int = 0
    unknown: int = 0
    updated: int = 0
    waiting: int = 0
    outside: int = 0

    @property
    def accepted(self) -> int:
        """Outcomes that are in the table now."""
        return sum(self.accepted_by_period.values())

    @property
    def quarantined(self) -> int:
        """Distinct rows in quarantine."""
        return sum(self.quarantined_by_period.values())

    @property
    def rows(self) -> int:
        """Rows of these periods."""
        return self.accepted + self.quarantined + self.copies

    @property
    def conflict_share(self) -> float:
        """Share of the loans whose outcomes contradict each other or their application."""
        return (self.conflicts + self.too_early) / self.loans if self.loans else 0.0

    def contradicts(self, bound: float) -> bool:
        """Tell whether that share lies above a bound by more than chance: of twenty loans, one may."""
        return exceeds(self.conflicts + self.too_early, self.loans, bound)


def ensure_outcome_tables(tables: Tables, spec: Spec) -> None:
    """Create the tables of outcomes, and of applications, unless they are there."""
    ensure_tables(tables, spec)
    tables.ensure(f"{spec.name}.outcomes", {f'"{name}"': kind for name, kind in OUTCOMES.items()})
    tables.ensure(
        f"{spec.name}.quarantined_outcomes", {f'"{name}"': kind for name, kind in QUARANTINED_OUTCOMES.items()}
    )


def ingest_outcomes(
    spec: Spec, periods: Sequence[str], warehouse: Warehouse, *, run_id: str = "", now: datetime | None = None
) -> OutcomesReport:
    """Take in the outcomes that became known in these periods, in the place of what these periods had before.

    Parameters
    ----------
    run_id
        Kept with the outcomes that this delivery replaces: they move to the table `replaced_outcomes`, and are never
        deleted.
    now
        An outcome after it is in quarantine; by default this moment.

    Raises
    ------
    UserError
        The source cannot be read, or lacks a required column; or the delivery lacks too many of the outcomes that a
        period had (`checks.outcomes_lost`): then nothing is changed.
    """
    received = now or datetime.now(UTC)
    contract = outcomes_contract(spec, received)
    report = OutcomesReport(dict.fromkeys(periods, 0), dict.fromkeys(periods, 0))
    with warehouse.session() as tables:
        ensure_outcome_tables(tables, spec)
        _create(tables, periods)
        staged = 0
        for group in _groups(_deliveries(spec, periods, warehouse, report)):
            staged += _stage(tables, spec, contract, group, periods, staged, report)
        _settle(tables, spec, report)
        _refuse_lost(tables, spec)
        _keep_replaced(tables, spec, run_id, received)
        _write(tables, spec, report)
    return report


# --- Reading ---


def _deliveries(
    spec: Spec, periods: Sequence[str], warehouse: Warehouse, report: OutcomesReport
) -> Iterator[_Delivery]:
    source = spec.data.applications if spec.data.outcomes is None else spec.data.outcomes
    if isinstance(source, SampleSource):
        # The same world, whatever else is said of it: other loans would have other outcomes.
        world = spec.data.applications if isinstance(spec.data.applications, SampleSource) else source
        days = sample_days(spec, world, periods, lambda world, day: world.outcomes(day), "outcomes")
        for frame, first_row, where, owner in days:
            yield _Delivery(frame, where, np.arange(first_row, first_row + len(frame)), owner)
        return
    inline = spec.data.outcomes is None
    needed = list(_COLUMNS)
    if inline:
        needed = [*canonical_columns(spec), "outcome", "outcome_at", *spec.protected_names]
    for block, owner in by_period(source, periods):
        only = owner if owner is not None or spec.data.timed else periods[0]
        window = window_of(spec, periods[0], periods[-1]) if only is None else None
        chunks = read(block, needed, window=window, time_column="outcome_at", warehouse=warehouse, base=spec.base)
        for raw, first_row, where in chunks:
            frame = _of_applications(spec, raw, first_row, where) if inline else raw
            for name in ("application_id", "outcome"):
                if name not in frame.columns:
                    raise missing_column(name, raw.attrs[SOURCE_COLUMNS], where=where)
            if inline:
                waiting = coerce(frame["outcome"], "text")[0].isna().to_numpy()
                report.waiting += int(waiting.sum())
                frame = frame[~waiting]
            rows = frame.index.to_numpy(dtype=np.int64) + first_row
            yield _Delivery(frame.reset_index(drop=True), where, rows, only)


def _of_applications(spec: Spec, raw: pd.DataFrame, first_row: int, where: str) -> pd.DataFrame:
    """Return the outcomes that are a column of the applications; a line nobody can cut is the applications' affair."""
    frame = raw
    if spec.data.numbered:
        frame = raw.assign(application_id=numbered_ids(spec, where, raw.index.to_numpy(dtype=np.int64) + first_row))
    kept = frame[[name for name in _COLUMNS if name in frame.columns]]
    if UNREADABLE in frame.columns:
        kept = kept[frame[UNREADABLE].isna()]
    kept.attrs = raw.attrs
    return kept


def _create(tables: Tables, periods: Sequence[str]) -> None:
    shapes: Mapping[str, Mapping[str, str]] = {
        "known_outcomes": {"nr": "bigint", **{name: OUTCOMES[name] for name in _STAGED}},
        "refused_outcomes": {"nr": "bigint", **QUARANTINED_OUTCOMES},
        "asked_outcomes": {"period": "date"},
    }
    for name, columns in shapes.items():
        body = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
        tables.execute(f"create or replace temp table {name} ({body})")
    tables.append("asked_outcomes", pd.DataFrame({"period": pd.to_datetime(list(periods))}))


def _groups(deliveries: Iterator[_Delivery]) -> Iterator[list[_Delivery]]:
    group: list[_Delivery] = []
    for delivery in deliveries:
        group.append(delivery)
        if sum(len(each.frame) for each in group) >= _GROUP:
            yield group
            group = []
    if group:
        yield group


def _stage(
    tables: Tables, spec: Spec, contract: Contract, group: Sequence[_Delivery], periods: Sequence[str], first: int,
    report: OutcomesReport,
) -> int:  # fmt: skip
    """Check some outcomes and put them into the temporary tables; returns how many rows there were."""
    frame = together([each.frame for each in group], [])
    sizes = [len(each.frame) for each in group]
    own = pd.DataFrame(
        {
            "nr": np.arange(first, first + len(frame)),
            "source": np.repeat([each.source for each in group], sizes),
            "row": np.concatenate([each.rows for each in group]),
            "owner": pd.to_datetime(np.repeat([each.owner for each in group], sizes)),
        }
    )
    own["period"] = own["owner"].where(own["owner"].notna(), _periods(spec, frame, contract))
    split = contract.split(frame, where="outcomes")
    start, end = (pd.Timestamp(periods[0]), pd.Timestamp(periods[-1]))
    outside = (own["period"].notna() & ((own["period"] < start) | (own["period"] > end))).to_numpy()
    report.outside += int(outside.sum())
    own = own.drop(columns="owner")
    accepted = split.accepted.assign(outcome_at=split.accepted["outcome_at"].dt.tz_localize(None))
    accepted = accepted.join(own)[~outside[split.accepted.index.to_numpy()]]
    append_texts(tables, "known_outcomes", accepted[["nr", *_STAGED]])
    wrong = split.quarantined
    at = wrong["row"].to_numpy()
    ids, _ = coerce(frame["application_id"], "text")
    shown = [value[:TEXT_CHARACTERS] if isinstance(value, str) else None for value in ids.iloc[at]]
    broken = own.iloc[at].reset_index(drop=True)
    broken = broken.assign(**{name: wrong[name].to_numpy() for name in ("rule", "column", "value", "bound", "raw")})
    broken["application_id"] = pd.Series(shown, dtype=object)
    broken["raw"] = [text[:_RAW_CHARACTERS] for text in broken["raw"]]
    append_texts(tables, "refused_outcomes", broken[~outside[at]])
    return len(frame)


def _periods(spec: Spec, frame: pd.DataFrame, contract: Contract) -> "pd.Series[Any]":
    if "outcome_at" not in frame.columns:
        return pd.Series(pd.NaT, index=frame.index, dtype="datetime64[ns]")
    moments, _ = coerce(frame["outcome_at"], "time", contract.time_of(frame))
    for rule in contract.rules:
        if rule.column == "outcome_at":
            moments = moments.where(rule.holds(moments).to_numpy(dtype=bool))
    return period_of(spec, moments)


# --- What rows say together ---


def _settle(tables: Tables, spec: Spec, report: OutcomesReport) -> None:
    applications = f"{spec.name}.current_applications"
    # An outcome without a time was known when its application was: its period is the application's.
    tables.execute(
        f"update known_outcomes as k set period = a.period from {applications} as a "
        "where k.period is null and k.application_id = a.application_id"
    )
    unknown = tables.query(
        "select count(distinct application_id) as n, count(*) filter (where period is null) as nowhere "
        f"from known_outcomes where application_id not in (select application_id from {applications})"
    ).iloc[0]
    report.unknown = int(unknown["n"])
    others = "period is null or period not in (select period from asked_outcomes)"
    gone = _number(tables, f"select count(*) as n from known_outcomes where {others}")
    report.outside += gone - int(unknown["nowhere"])
    tables.execute(f"delete from known_outcomes where {others}")
    _refuse(
        tables, TOO_EARLY, "outcome_at", "strftime(k.outcome_at, '%Y-%m-%dT%H:%M:%SZ')",
        "'from ' || strftime(a.applied_at, '%Y-%m-%dT%H:%M:%SZ') || ', when it was applied for'",
        f"join {applications} as a using (application_id) where k.outcome_at < a.applied_at",
    )  # fmt: skip
    good, bad = _listed(spec.target.good), _listed(spec.target.bad)
    _refuse(
        tables, CONTRADICTION, "outcome", "k.outcome", "'either good or bad for each application_id'",
        "join (select period, application_id from known_outcomes group by all "
        f"having bool_or(outcome in ({good})) and bool_or(outcome in ({bad}))) as c using (period, application_id)",
    )  # fmt: skip
    report.loans = _number(tables, "select count(distinct application_id) as n from known_outcomes")
    tables.execute("delete from known_outcomes where nr in (select nr from refused_outcomes)")


def _refuse(tables: Tables, rule: str, column: str, value: str, bound: str, chosen: str) -> None:
    names = '"nr", "period", "source", "row", "application_id", "rule", "column", "value", "bound", "raw"'
    tables.execute(
        f"insert into refused_outcomes ({names}) select k.nr, k.period, k.source, k.row, k.application_id, '{rule}', "
        f"'{column}', {value}, {bound}, to_json({{application_id: k.application_id, outcome: k.outcome, "
        f"outcome_at: k.outcome_at}}) from known_outcomes as k {chosen}"
    )


def _number(tables: Tables, sql: str) -> int:
    return int(tables.query(sql)["n"].iloc[0])


def _listed(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def _refuse_lost(tables: Tables, spec: Spec) -> None:
    """Refuse a delivery in which many of the outcomes are missing that its period had: a torn feed is no correction."""
    found = tables.query(
        "select cast(o.period as varchar) as period, count(*) as had, count(*) filter ("
        "o.application_id not in (select application_id from known_outcomes where application_id is not null) "
        "and o.application_id not in (select application_id from refused_outcomes where application_id is not null)"
        f") as lost from {spec.name}.outcomes as o where o.period in (select period from asked_outcomes) "
        "group by o.period order by o.period"
    )
    torn = found[(found["lost"] >= _LOST_ROWS) & (found["lost"] > spec.checks.outcomes_lost * found["had"])]
    if len(torn):
        first = torn.iloc[0]
        raise UserError(
            f"{int(first['lost'])} of the {int(first['had'])} outcomes of {str(first['period'])[:10]} are missing in "
            f"this delivery, and {len(torn) - 1} more period(s) lack as many; nothing was changed",
            where=f"{spec.name}/outcomes",
            remedy="deliver these periods whole, or raise checks.outcomes_lost for this run if they are right.",
        )


def _keep_replaced(tables: Tables, spec: Spec, run_id: str, moment: datetime) -> None:
    """Keep what this delivery changes or takes away: labels of an old training set are traced to these rows."""
    table, names = f"{spec.name}.replaced_outcomes", ", ".join(f'"{name}"' for name in OUTCOMES)
    kinds = {f'"{name}"': kind for name, kind in OUTCOMES.items()}
    tables.ensure(table, {**kinds, "replaced_at": "timestamp", "replaced_by": "varchar"})
    tables.execute(
        f"insert into {table} ({names}, replaced_at, replaced_by) select {names}, ?, ? from {spec.name}.outcomes as o "
        "where o.period in (select period from asked_outcomes) and not exists (select 1 from known_outcomes as k "
        "where k.period = o.period and k.application_id = o.application_id and k.outcome = o.outcome "
        "and k.outcome_at is not distinct from o.outcome_at)",
        [utc_naive(moment), run_id],
    )


def _write(tables: Tables, spec: Spec, report: OutcomesReport) -> None:
    table, quarantine = f"{spec.name}.outcomes", f"{spec.name}.quarantined_outcomes"
    asked = "period in (select period from asked_outcomes)"
    report.updated = _number(
        tables,
        f"select count(distinct k.application_id) as n from known_outcomes as k join {table} as o "
        "using (application_id) where o.period < k.period",
    )
    # The same outcome told twice is one.
    copy = "row_number() over (partition by period, application_id, outcome, outcome_at order by source, row)"
    report.copies = _number(tables, f"select count(*) as n from (select 1 from known_outcomes qualify {copy} > 1)")
    tables.execute(f"delete from {table} where {asked}")
    names = ", ".join(f'"{name}"' for name in OUTCOMES)
    tables.execute(
        f"insert into {table} ({names}) select {names} from known_outcomes qualify {copy} = 1 order by period, nr"
    )
    tables.execute(f"delete from {quarantine} where {asked} or period is null")
    names = ", ".join(f'"{name}"' for name in QUARANTINED_OUTCOMES)
    tables.execute(f"insert into {quarantine} ({names}) select {names} from refused_outcomes order by period, nr, rule")
    _count(tables, spec, report)


def _count(tables: Tables, spec: Spec, report: OutcomesReport) -> None:
    queries = {
        "accepted_by_period": f"select cast(period as varchar), count(*) from {spec.name}.outcomes "
        "where period in (select period from asked_outcomes) group by period",
        "quarantined_by_period": f"select coalesce(cast(period as varchar), '{NO_PERIOD}'), count(distinct nr) "
        "from refused_outcomes group by period",
        "rules": "select rule, count(distinct nr) from refused_outcomes group by rule order by 2 desc, 1",
    }
    for name, sql in queries.items():
        counts: dict[str, int] = getattr(report, name)
        counts.update({str(key): int(value) for key, value in tables.query(sql).itertuples(index=False)})
    loans = f"select count(distinct application_id) as n from refused_outcomes where rule = '{CONTRADICTION}'"
    report.conflicts = _number(tables, loans)
    report.too_early = report.rules.get(TOO_EARLY, 0)
    found = tables.query(
        'select source, row, rule, "column", value, bound from refused_outcomes order by rule, source, row limit 10'
    )
    rows = found.astype(object).to_dict("records")
    report.examples = [{str(name): None if pd.isna(each) else each for name, each in row.items()} for row in rows]
