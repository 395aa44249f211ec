"""From a source's rows to the tables of one system, period by period.

What belongs here: cutting to periods, contracts applied, quarantine kept, idempotent writes. What does not: reading
files (foundation/sources.py) and what a row must look like (contracts.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd

from mlops_assets.discover_weekly.contracts import TRACK_TAGS, TRACKS, USERS, listens_contract
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation.contracts import Contract, IngestBatch, ingest
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Tables, Warehouse
from mlops_assets.foundation.sources import SampleSource, Source, read

if TYPE_CHECKING:
    from mlops_assets.samples.listening import ListeningWorld

Chunks = Iterator[tuple[pd.DataFrame, int, str]]

LISTEN_COLUMNS: Mapping[str, str] = {
    "user_id": "varchar", "track_id": "varchar", "listened_at": "timestamp", "plays": "double", "skipped": "boolean",
    "period": "date",
}  # fmt: skip
QUARANTINE_COLUMNS: Mapping[str, str] = {
    "dataset": "varchar", "period": "date", "source": "varchar", "row": "bigint", "rule": "varchar",
    "column": "varchar", "value": "varchar", "bound": "varchar", "raw": "varchar",
}  # fmt: skip


NO_PERIOD = "no period"


@dataclass
class IngestReport:
    """What an ingestion did, by period where a period is known."""

    accepted: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    outside: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, object]] = field(default_factory=list)

    @property
    def accepted_rows(self) -> int:
        """Rows that are in the table now."""
        return sum(self.accepted.values())

    @property
    def quarantined_rows(self) -> int:
        """Distinct rows in quarantine."""
        return sum(self.quarantined.values())

    @property
    def worst_period(self) -> tuple[str, float]:
        """The period with the largest share of quarantined rows, and that share; no period hides in a range.

        Rows without a usable time are of no period: a file shows all of them again with every period, so they are
        counted by `timeless_rows` and would only drown the share.
        """
        shares = {
            period: self.quarantined.get(period, 0) / (rows + self.quarantined.get(period, 0))
            for period, rows in self.accepted.items()
            if rows + self.quarantined.get(period, 0)
        }
        worst = max(shares, key=lambda period: shares[period], default="no period")
        return worst, shares.get(worst, 0.0)

    @property
    def timeless_rows(self) -> int:
        """Quarantined rows that no period owns."""
        return self.quarantined.get(NO_PERIOD, 0)


def window_of(spec: Spec, first: str, last: str) -> tuple[datetime, datetime]:
    """Return the start of the first period and the end of the last one, in UTC."""
    start, end = (
        # Where clocks change at midnight, a day may have no midnight, or two.
        pd.Timestamp(day).tz_localize(spec.periods.timezone, ambiguous=True, nonexistent="shift_forward")
        for day in (first, spec.periods.shift(last, 1))
    )
    return start.tz_convert("UTC").to_pydatetime(), end.tz_convert("UTC").to_pydatetime()


def period_of(spec: Spec, moments: "pd.Series[pd.Timestamp]") -> "pd.Series[pd.Timestamp]":
    """Return the first day of the period that each moment (UTC) lies in; missing stays missing."""
    local = moments.dt.tz_convert(spec.periods.timezone).dt.tz_localize(None).dt.normalize()
    if spec.periods.cadence == "weekly":
        return local - pd.to_timedelta(local.dt.weekday, unit="D")
    return local - pd.to_timedelta(local.dt.day - 1, unit="D")


def listen_chunks(spec: Spec, periods: Sequence[str], warehouse: Warehouse) -> Chunks:
    """Yield the raw listens of these periods (a files source yields its other rows too: they are counted)."""
    source = spec.data.listens
    if isinstance(source, SampleSource):
        yield from _sample_listens(source, spec, periods)
        return
    window = window_of(spec, periods[0], periods[-1]) if spec.data.timed else None
    yield from read(
        source, _names_of_listens(), window=window, time_column="listened_at", warehouse=warehouse, base=spec.base
    )


def _names_of_listens() -> list[str]:
    return [name for name in LISTEN_COLUMNS if name != "period"]


def sample_world(source: Source, spec: Spec) -> "ListeningWorld":
    """Return the seeded world that a sample source describes."""
    from mlops_assets.samples.listening import ListeningWorld

    if not isinstance(source, SampleSource):
        raise UserError(f"{source.kind} is no sample source", where=spec.name, remedy="use kind: sample.")

    return ListeningWorld(start=spec.periods.start, **source.parameters)


def _sample_weeks(world: "ListeningWorld", spec: Spec, periods: Sequence[str]) -> range:
    """Return the world's weeks that these periods touch: its weeks are of UTC, a period may be of another zone."""
    start, end = window_of(spec, periods[0], periods[-1])
    zero = datetime.combine(world.start, datetime.min.time(), UTC)
    return range(max((start - zero) // timedelta(weeks=1), 0), -((zero - end) // timedelta(weeks=1)))


def _sample_listens(source: SampleSource, spec: Spec, periods: Sequence[str]) -> Chunks:
    world = sample_world(source, spec)
    for week in _sample_weeks(world, spec, periods):
        row = 0
        for chunk in world.listens(week):
            yield chunk, row, _sample_name(world, week)
            row += len(chunk)


def _sample_name(world: "ListeningWorld", week: int) -> str:
    return f"sample listens of {world.monday(week)}"


def ingest_listens(
    spec: Spec, periods: Sequence[str], warehouse: Warehouse, *, now: datetime | None = None
) -> IngestReport:
    """Write the listens of these periods; the same periods written twice give the same rows.

    All is one transaction: a run that dies leaves the old rows in place.

    Parameters
    ----------
    now
        A listen after it is in quarantine; by default this moment.

    Raises
    ------
    UserError
        The source cannot be read, or lacks a required column; or listens without times are asked for a period that
        is not the first.
    """
    _refuse_other_periods(spec, periods)
    contract = listens_contract(now=now or datetime.now(UTC), timed=spec.data.timed)
    window = window_of(spec, periods[0], periods[-1]) if spec.data.timed else None
    report = IngestReport(accepted=dict.fromkeys(periods, 0), quarantined=dict.fromkeys(periods, 0))
    table, quarantine = f"{spec.name}.listens", f"{spec.name}.quarantined_rows"
    with warehouse.session() as tables:
        tables.ensure(table, LISTEN_COLUMNS)
        tables.ensure(quarantine, {f'"{name}"': kind for name, kind in QUARANTINE_COLUMNS.items()})
        tables.execute(
            "create or replace temp table incoming as "
            f"select *, 0::bigint as row, ''::varchar as source from {table} limit 0"
        )
        tables.execute(f"create or replace temp table refused as select * from {quarantine} limit 0")
        for batch in ingest(listen_chunks(spec, periods, warehouse), contract, window):
            report.outside += batch.outside
            _stage(tables, spec, batch, periods)
        _set_duplicates_apart(tables, spec)
        _replace(tables, spec, periods)
        _count(tables, report)
    return report


def _refuse_other_periods(spec: Spec, periods: Sequence[str]) -> None:
    first = spec.periods.start.isoformat()
    if not spec.data.timed and list(periods) != [first]:
        # The same rows in two periods would count twice.
        raise UserError(
            f"listens without times are all of the first period, not of {', '.join(periods)}",
            where=f"{spec.name}.listens",
            remedy=f"materialize {first}, or set data.timed to true if listens carry their time.",
        )


def _stage(tables: Tables, spec: Spec, batch: IngestBatch, periods: Sequence[str]) -> None:
    accepted = batch.accepted
    if spec.data.timed:
        period = period_of(spec, accepted["listened_at"])
        stamped = accepted.assign(listened_at=accepted["listened_at"].dt.tz_localize(None), period=period)
    else:
        stamped = accepted.assign(
            listened_at=pd.to_datetime(pd.Series(pd.NaT, accepted.index)), period=pd.Timestamp(periods[0])
        )
    tables.append("incoming", stamped[list(LISTEN_COLUMNS)].assign(row=accepted.index, source=batch.source))
    refused = batch.quarantined
    if len(refused):
        times = pd.to_datetime(refused["time"], utc=True)
        owner = period_of(spec, times) if spec.data.timed else pd.Timestamp(periods[0])
        tables.append("refused", refused.assign(dataset="listens", period=owner)[list(QUARANTINE_COLUMNS)])


def _set_duplicates_apart(tables: Tables, spec: Spec) -> None:
    """Move second and later copies of an event into quarantine; without times a (user, track) pair is one row."""
    key = "user_id, track_id, listened_at" if spec.data.timed else "user_id, track_id"
    last = key.rpartition(", ")[2]
    bound = "one event a user, track and time" if spec.data.timed else "one row a user and track"
    tables.execute(
        "create or replace temp table numbered as select *, "
        f"row_number() over (partition by {key} order by source, row) as copy from incoming"
    )
    tables.execute(
        f"insert into refused select 'listens', period, source, row, 'unique_event', '{last}', "
        f"cast({last} as varchar), '{bound}', "
        "to_json({user_id: user_id, track_id: track_id, listened_at: listened_at, plays: plays, skipped: skipped}) "
        "from numbered where copy > 1"
    )


def _replace(tables: Tables, spec: Spec, periods: Sequence[str]) -> None:
    table, quarantine = f"{spec.name}.listens", f"{spec.name}.quarantined_rows"
    inside = f"period >= cast('{periods[0]}' as date) and period <= cast('{periods[-1]}' as date)"
    names = ", ".join(LISTEN_COLUMNS)
    tables.execute(f"delete from {table} where {inside}")
    tables.execute(f"insert into {table} ({names}) select {names} from numbered where copy = 1 order by {names}")
    # Rows that no period owns are met again by every reading: of the whole source, or of the same week of a sample.
    again, sources = "true", []
    if isinstance(spec.data.listens, SampleSource):
        world = sample_world(spec.data.listens, spec)
        again = "list_contains(?, source)"
        sources = [_sample_name(world, week) for week in _sample_weeks(world, spec, periods)]
    tables.execute(
        f"delete from {quarantine} where dataset = 'listens' and (({inside}) or (period is null and {again}))",
        [sources] if sources else [],
    )
    tables.execute(f"insert into {quarantine} select * from refused order by source, row, rule")


def _count(tables: Tables, report: IngestReport) -> None:
    for period, rows in tables.query(
        "select cast(period as varchar) as p, count(*) as n from numbered where copy = 1 group by 1"
    ).itertuples(index=False):
        report.accepted[str(period)[:10]] = int(rows)
    for period, rows in tables.query(
        f"select coalesce(cast(period as varchar), '{NO_PERIOD}') as p, count(distinct (source, row)) as n "
        "from refused group by 1"
    ).itertuples(index=False):
        report.quarantined[str(period)[:10]] = int(rows)
    rules = tables.query("select rule, count(*) as n from refused group by 1 order by 2 desc, 1")
    report.rules = {str(rule): int(rows) for rule, rows in rules.itertuples(index=False)}
    report.duplicates = report.rules.get("unique_event", 0)
    examples = tables.query(
        'select source, row, rule, "column", value, bound from refused order by rule, source, row limit 10'
    )
    report.examples = [{str(name): value for name, value in row.items()} for row in examples.to_dict("records")]


def dimension(
    spec: Spec, source: Source | None, contract: Contract, name: str, period: str, warehouse: Warehouse
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the tracks or the users as they are at a period: accepted rows, quarantined rows.

    Without a source they are what the listens mention; a sample source is the sample world's own table.
    """
    if source is None and not isinstance(spec.data.listens, SampleSource):
        key = contract.names[0]
        frame = warehouse.query(f"select distinct {key} from {spec.name}.listens order by 1")
        chunks: Iterable[tuple[pd.DataFrame, int, str]] = [(frame, 0, f"{spec.name}.listens")]
    elif source is None or isinstance(source, SampleSource):
        world = sample_world(source if source is not None else spec.data.listens, spec)
        week = _sample_weeks(world, spec, [period])[-1]
        frame = world.track_catalogue(week) if name == "tracks" else world.user_directory(week)
        chunks = [(frame, 0, f"sample {name}")]
    else:
        chunks = read(source, list(contract.names), warehouse=warehouse, base=spec.base)
    accepted, refused = _judged(spec, chunks, contract, name, warehouse)
    return accepted.sort_values(contract.names[0], ignore_index=True), refused


def _judged(
    spec: Spec, chunks: Iterable[tuple[pd.DataFrame, int, str]], contract: Contract, dataset: str, warehouse: Warehouse
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Apply a contract to a whole table and keep what it refuses in the place of what it refused before."""
    parts = list(ingest(chunks, contract))
    accepted = pd.concat([part.accepted for part in parts], ignore_index=True)
    refused = pd.concat([part.quarantined for part in parts], ignore_index=True)
    _keep_quarantine(spec, dataset, refused, warehouse)
    return accepted, refused


def _keep_quarantine(spec: Spec, dataset: str, refused: pd.DataFrame, warehouse: Warehouse) -> None:
    quarantine = f"{spec.name}.quarantined_rows"
    rows = refused.assign(dataset=dataset, period=pd.to_datetime(pd.Series(pd.NaT, refused.index)))
    with warehouse.session() as tables:
        tables.ensure(quarantine, {f'"{name}"': kind for name, kind in QUARANTINE_COLUMNS.items()})
        tables.execute(f"delete from {quarantine} where dataset = ?", [dataset])
        tables.append(quarantine, rows[list(QUARANTINE_COLUMNS)])


def read_tracks(spec: Spec, period: str, warehouse: Warehouse) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the catalogue with the tags of their own table merged in, and the quarantined rows."""
    tracks, refused = dimension(spec, spec.data.tracks, TRACKS, "tracks", period, warehouse)
    if spec.data.track_tags is not None:
        if isinstance(spec.data.track_tags, SampleSource):
            raise UserError("tags of the sample world are in its tracks", where=spec.name, remedy="drop track_tags.")
        chunks = read(spec.data.track_tags, list(TRACK_TAGS.names), warehouse=warehouse, base=spec.base)
        tags, wrong = _judged(spec, chunks, TRACK_TAGS, "track_tags", warehouse)
        refused = pd.concat([refused, wrong], ignore_index=True)
        joined = tags.dropna(subset=["tags"]).groupby("track_id")["tags"].agg(" ".join)
        own = tracks["tags"].fillna("")
        merged = (own + " " + tracks["track_id"].map(joined).fillna("")).str.strip()
        tracks["tags"] = merged.where(merged != "", None)
    return tracks, refused


def read_users(spec: Spec, period: str, warehouse: Warehouse) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return everybody who is owed a playlist, and the quarantined rows."""
    return dimension(spec, spec.data.users, USERS, "users", period, warehouse)


def iter_periods(spec: Spec, first: str, last: str) -> Iterator[str]:
    """Yield the period keys from ``first`` to ``last``, both included."""
    period = first
    while period <= last:
        yield period
        period = spec.periods.shift(period, 1)
