"""Temporary tables in which the rows of an ingestion are checked before they are written.

What belongs here: the statements that stage rows, set duplicates apart, and move what is left to its tables. What does
not: the order of it all and what makes a batch (`ingestion.py`).

Every staged row has a number of its own, `nr`. `incoming` holds all rows, `typed` those that are in order so far,
`refused` a row for every broken rule. A row without a period is owned by none: its time cannot be read or lies in the
future, and the source holds more than one period.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk._frames import append_texts, ids_of, together
from mlops_assets.credit_risk.applications import Delivery, payloads
from mlops_assets.credit_risk.batch_facts import BatchFacts, facts_of
from mlops_assets.credit_risk.batch_rules import CONFLICT, KNOWN, OTHER_PERIOD
from mlops_assets.credit_risk.batches import QUARANTINED, accepted_columns
from mlops_assets.credit_risk.protected import ProtectedStage
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import period_of, window_of
from mlops_assets.foundation.contracts import UNREADABLE, Contract, coerce, utc
from mlops_assets.foundation.files import sha256_hex
from mlops_assets.foundation.resources import Tables

_GROUP = 50_000
"""Rows that are checked together: a contract costs as much for one row as for thousands."""
_NOTHING = sha256_hex(b"")


@dataclass
class Staged:
    """What staging saw beside the rows."""

    nr: int = 0
    outside: int = 0
    unowned: int = 0
    unknown_columns: set[str] = field(default_factory=set)


def stage(
    tables: Tables,
    spec: Spec,
    periods: Sequence[str],
    chunks: Iterable[Delivery],
    contract: Contract,
    protected: ProtectedStage,
) -> Staged:
    """Check all rows of these periods and put them into the temporary tables."""
    _create(tables, spec, periods)
    staged = Staged()
    for group in _groups(chunks):
        for delivery in group:
            staged.unknown_columns.update(delivery.unknown_columns)
        protected.add([each.protected for each in group if each.protected is not None])
        _stage_rows(tables, spec, periods, group, contract, staged)
    return staged


def _create(tables: Tables, spec: Spec, periods: Sequence[str]) -> None:
    features = {each.name: "double" for each in spec.numeric} | {each.name: "varchar" for each in spec.categorical}
    row = {"nr": "bigint", "period": "date", "source": "varchar", "row": "bigint", "application_id": "varchar"}
    shapes: Mapping[str, Mapping[str, str]] = {
        "incoming": {**row, "payload": "varchar", "digest": "varchar"},
        "typed": {"nr": "bigint", "period": "date", "applicant_id": "varchar", "applied_at": "timestamp", **features},
        "refused": {**row, "rule": "varchar", "column": "varchar", "value": "varchar", "bound": "varchar"},
        "asked": {"period": "date"},
    }
    for name, columns in shapes.items():
        body = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
        tables.execute(f"create or replace temp table {name} ({body})")
    tables.append("asked", pd.DataFrame({"period": pd.to_datetime(list(periods))}))


def _groups(chunks: Iterable[Delivery]) -> Iterator[list[Delivery]]:
    group: list[Delivery] = []
    for chunk in chunks:
        group.append(chunk)
        if sum(len(each.frame) for each in group) >= _GROUP:
            yield group
            group = []
    if group:
        yield group


def _stage_rows(
    tables: Tables, spec: Spec, periods: Sequence[str], group: Sequence[Delivery], contract: Contract, staged: Staged
) -> None:
    texts = [text for each in group for text in payloads(each.frame)]
    frame = together([each.frame for each in group], [each.name for each in spec.numeric])
    own = pd.DataFrame(
        {
            "source": np.repeat([each.source for each in group], [len(each.frame) for each in group]),
            "row": np.concatenate([each.rows for each in group]),
            "owner": pd.to_datetime(np.repeat([each.owner for each in group], [len(each.frame) for each in group])),
            "payload": pd.Series(texts, dtype=object),
        }
    )
    own["application_id"] = ids_of(frame)
    moments, inside = _periods(spec, periods, frame, own, contract)
    staged.outside += int((~inside).sum())
    frame, own = frame[inside].reset_index(drop=True), own[inside].reset_index(drop=True)
    moments = moments[inside].reset_index(drop=True)
    own["nr"] = np.arange(staged.nr, staged.nr + len(own), dtype=np.int64)
    own["digest"] = [sha256_hex(text.encode()) for text in own["payload"]]
    staged.nr += len(own)
    staged.unowned += int(own["period"].isna().sum())
    split = contract.split(frame, where="applications")
    accepted = split.accepted.drop(columns="application_id")
    accepted = accepted.drop(columns="code_list_version", errors="ignore")
    accepted["applied_at"] = accepted["applied_at"].dt.tz_localize(None)
    wrong = split.quarantined.drop(columns="raw")
    misplaced = _misplaced(spec, own, moments, accepted.index)
    accepted = accepted.drop(index=misplaced["row"].unique().tolist())
    columns = ["nr", "period", "source", "row", "application_id"]
    append_texts(tables, "incoming", own[[*columns, "payload", "digest"]])
    append_texts(tables, "typed", accepted.assign(nr=own["nr"], period=own["period"]))
    for broken in (wrong, misplaced):
        named = own[columns].iloc[broken["row"].to_numpy()].reset_index(drop=True)
        append_texts(
            tables, "refused", named.assign(**{n: broken[n].to_numpy() for n in ("rule", "column", "value", "bound")})
        )


def _periods(
    spec: Spec, periods: Sequence[str], frame: pd.DataFrame, own: pd.DataFrame, contract: Contract
) -> tuple["pd.Series[Any]", "pd.Series[bool]"]:
    """Set the period that owns each row, and return when each happened and which rows are of these periods."""
    if not spec.data.timed:
        own["period"] = own["owner"]
        nothing = pd.Series(pd.NaT, index=frame.index, dtype=pd.DatetimeTZDtype("ns", "UTC"))
        return nothing, pd.Series(data=True, index=frame.index)
    moments, _ = coerce(frame["applied_at"], "time", contract.time_of(frame))
    if UNREADABLE in frame.columns:
        moments = moments.where(frame[UNREADABLE].isna().to_numpy())
    usable = moments
    for rule in contract.rules:
        if rule.column == "applied_at" and not rule.whole_row:
            usable = usable.where(rule.holds(usable).to_numpy(dtype=bool))
    cut = period_of(spec, usable)
    own["period"] = own["owner"].where(own["owner"].notna(), cut)
    elsewhere = own["owner"].isna() & cut.notna() & ~cut.isin(pd.to_datetime(list(periods)))
    return moments, ~elsewhere


def _misplaced(spec: Spec, own: pd.DataFrame, moments: "pd.Series[Any]", accepted: "pd.Index[Any]") -> pd.DataFrame:
    """Return the breaches of rows in a delivery for one period that are of another one."""
    empty = pd.DataFrame({name: pd.Series(dtype=object) for name in ("rule", "column", "value", "bound")})
    empty.insert(0, "row", pd.Series(dtype=np.int64))
    if not spec.data.timed or own["owner"].isna().all():
        return empty
    wrong = own["owner"].notna() & moments.notna() & (period_of(spec, moments) != own["owner"])
    parts = [empty]
    for owner, rows in own[wrong].loc[lambda each: each.index.isin(accepted)].groupby("owner"):
        key = pd.Timestamp(str(owner)).strftime("%Y-%m-%d")
        start, end = window_of(spec, key, key)
        when = moments[rows.index]
        # What lies after the period is refused by the contract too, once the period's end is its bound.
        rule = np.where(when > utc(end), "applied_at_not_after", OTHER_PERIOD)
        bound = np.where(when >= utc(end), f"until {utc(end).isoformat()}", f"from {utc(start).isoformat()}")
        shown = [moment.isoformat() for moment in when]
        parts.append(
            pd.DataFrame({"row": rows.index, "rule": rule, "column": "applied_at", "value": shown, "bound": bound})
        )
    return parts[0] if len(parts) == 1 else pd.concat(parts[1:], ignore_index=True)


def set_duplicates_apart(tables: Tables, spec: Spec) -> None:
    """Drop exact copies but the first, and refuse all rows of an id with several contents.

    An id that another period has accepted before counts as well: the same content is a copy, another one is refused.
    """
    tables.execute(
        "create or replace temp table numbered as select nr, period, application_id, digest, "
        "row_number() over (partition by period, application_id, digest order by source, row) as copy, "
        "min(digest) over (partition by period, application_id) <> max(digest) over "
        "(partition by period, application_id) as contradicted "
        "from incoming where application_id is not null and period is not null"
    )
    # What is in the tables comes before what arrives; of what arrives, the earliest period comes first.
    tables.execute(
        "create or replace temp table holders as select application_id, "
        "first(period order by later, period) as period, first(digest order by later, period) as digest from ("
        "select application_id, period, payload_sha256 as digest, 0 as later "
        f"from {spec.name}.current_applications where period not in (select period from asked) "
        "union all select application_id, period, digest, 1 from numbered where copy = 1 and not contradicted"
        ") group by application_id"
    )
    tables.execute(
        "create or replace temp table doubles as select n.nr, "
        "n.copy > 1 or (not n.contradicted and h.period <> n.period and h.digest = n.digest "
        "and n.nr not in (select nr from refused)) as copied, "
        "n.contradicted, h.period <> n.period and h.digest <> n.digest as taken, h.period as holder "
        "from numbered as n left join holders as h using (application_id)"
    )
    for rule, chosen, bound in (
        (CONFLICT, "d.contradicted", "'one content for each application_id'"),
        (KNOWN, "not d.contradicted and d.taken and not d.copied",
         "'an application_id that ' || d.holder || ' has not accepted with other content'"),
    ):  # fmt: skip
        tables.execute(
            f"insert into refused select i.nr, i.period, i.source, i.row, i.application_id, '{rule}', "
            f"'application_id', i.application_id, {bound} "
            f"from incoming as i join doubles as d using (nr) where {chosen}"
        )
    tables.execute(
        "create or replace temp table copies as select i.nr, i.period from incoming as i join doubles as d using (nr) "
        "where d.copied and not d.contradicted"
    )
    tables.execute("delete from refused where nr in (select nr from copies)")
    tables.execute("delete from typed where nr in (select nr from refused) or nr in (select nr from copies)")


@dataclass(frozen=True)
class Arrivals:
    """What has arrived for each period: fingerprint, sources and facts."""

    sha256: Mapping[str, str]
    source: Mapping[str, str]
    facts: Mapping[str, BatchFacts]

    @classmethod
    def of(cls, tables: Tables, spec: Spec, periods: Sequence[str]) -> "Arrivals":
        """Return the arrivals of these periods; the fingerprint is the SHA-256 of the sorted payloads' lines."""
        found = tables.query(
            "select cast(period as varchar) as period, count(*) as rows, "
            "sha256(string_agg(payload, chr(10) order by payload)) as sha256, "
            "min(source) || case when min(source) <> max(source) then ' … ' || max(source) else '' end as source "
            "from incoming where period is not null group by period"
        ).set_index("period")
        rules = _counts(tables, "refused", "rule, count(distinct nr)", "rule")
        wrong = _counts(tables, "refused", "'all', count(distinct nr)", None)
        copies = _counts(tables, "copies", "'all', count(*)", None)
        frames, beyond = dict(_typed_by_period(tables, spec)), _beyond(tables, spec)
        nothing = pd.DataFrame({name: pd.Series(dtype=object) for name in spec.features})
        facts = {
            period: facts_of(
                spec,
                period,
                frames.get(period, nothing),
                rows=int(found["rows"].get(period, 0)),
                quarantined=wrong.get(period, {}).get("all", 0),
                copies=copies.get(period, {}).get("all", 0),
                rules=rules.get(period, {}),
                beyond=beyond.get(period),
            )
            for period in periods
        }
        return cls(
            {period: str(found["sha256"].get(period, _NOTHING)) for period in periods},
            {period: str(found["source"].get(period, "no rows")) for period in periods},
            facts,
        )


def _counts(tables: Tables, table: str, what: str, by: str | None) -> dict[str, dict[str, int]]:
    found = tables.query(
        f"select cast(period as varchar), {what} from {table} where period is not null group by period"
        f"{f', {by}' if by else ''} order by all"
    )
    counts: dict[str, dict[str, int]] = {}
    for period, name, count in found.itertuples(index=False):
        counts.setdefault(str(period), {})[str(name)] = int(count)
    return counts


def _beyond(tables: Tables, spec: Spec) -> dict[str, dict[str, list[float]]]:
    """Return the numbers outside their column's range, by period and column."""
    rules = ", ".join(f"'{each.name}_in_range'" for each in spec.numeric)
    found = tables.query(
        'select cast(period as varchar) as period, "column" as name, try_cast(value as double) as value from refused '
        f"where period is not null and rule in ({rules or 'null'}) order by nr"
    )
    values: dict[str, dict[str, list[float]]] = {}
    for period, name, value in found.dropna().itertuples(index=False):
        values.setdefault(str(period), {}).setdefault(str(name), []).append(float(value))
    return values


def _typed_by_period(tables: Tables, spec: Spec) -> Iterator[tuple[str, pd.DataFrame]]:
    names = ", ".join(f'"{name}"' for name in spec.features)
    parts: list[pd.DataFrame] = []
    for batch in tables.reader(f"select cast(period as varchar) as period, {names} from typed order by period, nr"):
        frame = batch.to_pandas()
        for period, part in frame.groupby("period", sort=True):
            if parts and parts[0]["period"].iloc[0] != period:
                yield parts[0]["period"].iloc[0], pd.concat(parts)
                parts = []
            parts.append(part)
    if parts:
        yield parts[0]["period"].iloc[0], pd.concat(parts)


def write_batches(tables: Tables, spec: Spec, batches: pd.DataFrame) -> None:
    """Write new batches with their rows; one that was judged by other rules before is judged anew in its place."""
    tables.connection.register("arriving", batches)
    try:
        tables.execute("create or replace temp table fresh as select * from arriving")
    finally:
        tables.connection.unregister("arriving")
    there = f"select batch_id from {spec.name}.batches"
    tables.execute(
        f"insert into {spec.name}.raw_applications (batch_id, row, source, payload) "
        "select f.batch_id, i.row, i.source, i.payload from incoming as i join fresh as f using (period) "
        f"where f.batch_id not in ({there}) order by f.period, i.source, i.row"
    )
    for table in ("accepted_applications", "quarantined_applications", "batch_facts"):
        tables.execute(f"delete from {spec.name}.{table} where batch_id in (select batch_id from fresh)")
    own = [name for name in accepted_columns(spec) if name not in ("batch_id", "payload_sha256", "source", "row")]
    chosen = ", ".join(f'i."{name}"' if name == "application_id" else f't."{name}"' for name in own)
    names = ", ".join(f'"{name}"' for name in own)
    tables.execute(
        f"insert into {spec.name}.accepted_applications (batch_id, source, row, payload_sha256, {names}) "
        f"select f.batch_id, i.source, i.row, i.digest, {chosen} from typed as t join incoming as i using (nr) "
        "join fresh as f on f.period = t.period order by f.period, i.source, i.row"
    )
    _write_refused(tables, spec, "join fresh as f on f.period = r.period", "f.batch_id")
    tables.execute(
        f"insert into {spec.name}.batch_facts (batch_id, period, facts, findings, contract) "
        "select batch_id, period, facts, findings, contract from fresh order by period"
    )
    tables.execute(
        f"update {spec.name}.batches as b set status = f.status from fresh as f where b.batch_id = f.batch_id"
    )
    listed = "batch_id, period, sha256, rows, received_at, source, run_id, status"
    tables.execute(
        f"insert into {spec.name}.batches ({listed}) select {listed} from fresh "
        f"where batch_id not in ({there}) order by period"
    )


def _write_refused(tables: Tables, spec: Spec, join: str, batch: str) -> None:
    names = ", ".join(f'"{name}"' for name in QUARANTINED)
    tables.execute(
        f"insert into {spec.name}.quarantined_applications ({names}) "
        f'select {batch}, r.period, r.source, r.row, r.application_id, r.rule, r."column", r.value, r.bound, i.payload '
        f"from refused as r join incoming as i using (nr) {join} order by r.period, r.source, r.row, r.rule"
    )


def write_unowned(tables: Tables, spec: Spec) -> None:
    """Keep the rows that no period owns in the place of those that the last reading met: every reading meets all."""
    tables.execute(f"delete from {spec.name}.quarantined_applications where batch_id is null")
    _write_refused(tables, spec, "where r.period is null", "null")


def examples(tables: Tables) -> list[dict[str, object]]:
    """Return some of the rows that were refused just now, for people to look at."""
    found = tables.query(
        'select source, row, rule, "column", value, bound from refused order by rule, source, row limit 10'
    )
    rows = found.astype(object).to_dict("records")
    return [{str(name): None if pd.isna(value) else value for name, value in row.items()} for row in rows]
