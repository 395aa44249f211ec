"""What models learn from and what playlists start from, cut out of the warehouse as of one period.

What belongs here: the split into train, validation and test, and the SQL that computes confidences. What does not:
models, metrics and any file format; rows leave as Arrow batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Tables

# Called when its turn comes: a connection reads one query at a time.
Stream = Callable[[], pa.RecordBatchReader]

TEST_SHARE = 0.2
_SPLIT_SEED = 42


@dataclass(frozen=True)
class SplitPlan:
    """How the periods up to ``as_of`` are divided.

    ``time``: inner < validation < test, by period. ``stratified``: a fifth of every user's tracks is the test set,
    and a fifth of the rest the validation set.
    """

    kind: Literal["time", "stratified"]
    as_of: str
    earliest: str
    inner_until: str
    train_until: str

    def metadata(self) -> dict[str, str]:
        """Return the plan as plain values, part of the training set's identity."""
        return {key: str(value) for key, value in asdict(self).items()}


def plan_split(spec: Spec, as_of: str, filled: Sequence[str]) -> SplitPlan:
    """Choose the split for the period ``as_of``.

    Parameters
    ----------
    filled
        The periods up to ``as_of`` that hold interactions.

    Raises
    ------
    UserError
        There are no interactions, or the spec asks for a split by time and there are too few periods.
    """
    table = f"{spec.name}.interactions"
    if not filled:
        raise UserError(
            f"there are no interactions up to {as_of}", where=table, remedy="materialize listens for earlier periods."
        )
    hold = spec.evaluation.holdout_periods
    earliest = spec.periods.shift(as_of, 1 - spec.training.history_periods)
    train_until = spec.periods.shift(as_of, -hold)
    inner_until = spec.periods.shift(as_of, -2 * hold)
    usable = [period for period in filled if period >= earliest]
    enough = (
        any(period <= inner_until for period in usable)
        and any(inner_until < period <= train_until for period in usable)
        and any(period > train_until for period in usable)
    )
    wanted = spec.evaluation.split
    if wanted == "time" and not enough:
        raise UserError(
            f"a split by time needs interactions before {inner_until}, up to {train_until} and up to {as_of}; "
            f"there are {len(usable)} period(s): {', '.join(usable[-6:])}",
            where=table,
            remedy="materialize more periods, lower evaluation.holdout_periods, or set evaluation.split to auto.",
        )
    if wanted == "stratified" or not enough:
        return SplitPlan("stratified", as_of, earliest, as_of, as_of)
    return SplitPlan("time", as_of, earliest, inner_until, train_until)


def filled_periods(tables: Tables, spec: Spec, as_of: str) -> list[str]:
    """Return the periods up to ``as_of`` that hold interactions, in order."""
    frame = tables.query(
        f"select distinct cast(period as varchar) as period from {spec.name}.interactions "
        "where period <= cast(? as date) order by 1",
        [as_of],
    )
    return [str(value)[:10] for value in frame["period"]]


def training_tables(tables: Tables, spec: Spec, plan: SplitPlan) -> dict[str, Stream]:
    """Return the tables of a training set as streams of Arrow batches, read when they are called.

    ``train`` and ``inner`` have the columns user_id, track_id, confidence (float64; 0 for what was only skipped);
    ``test`` and ``validation`` user_id, track_id: pairs that are new to a user whom the model knows, and liked. All are
    ordered by user and track.
    """
    _sample_users(tables, spec, plan)
    if plan.kind == "time":
        _split_by_time(tables, spec, plan)
    else:
        _split_stratified(tables, spec, plan)
    pairs = "select user_id, track_id from {} order by user_id, track_id"
    rows = "select user_id, track_id, confidence from {} order by user_id, track_id"
    return {
        "train": _later(tables, rows.format("split_train")),
        "inner": _later(tables, rows.format("split_inner")),
        "validation": _later(tables, pairs.format("split_validation")),
        "test": _later(tables, pairs.format("split_test")),
    }


def _confidence(spec: Spec, until: str) -> str:
    half_life = spec.training.half_life_periods * spec.periods.days
    return (
        f"sum(greatest(plays - {spec.training.skip_weight!r} * skips, 0) * "
        f"power(0.5, date_diff('day', period, cast('{until}' as date)) / {half_life!r}))"
    )


def _sample_users(tables: Tables, spec: Spec, plan: SplitPlan) -> None:
    tables.execute(
        "create or replace temp table sampled as "
        f"select user_id from {spec.name}.interactions "
        f"where period >= cast('{plan.earliest}' as date) and period <= cast('{plan.as_of}' as date) "
        f"group by user_id order by md5(user_id || '{spec.training.seed}'), user_id limit {spec.training.max_users}"
    )


def _weighed(tables: Tables, spec: Spec, name: str, earliest: str, until: str) -> None:
    tables.execute(
        f"create or replace temp table {name} as "
        f"select user_id, track_id, {_confidence(spec, until)} as confidence "
        f"from {spec.name}.interactions inner join sampled using (user_id) "
        f"where period >= cast('{earliest}' as date) and period <= cast('{until}' as date) "
        "group by user_id, track_id"
    )


def _held_out(tables: Tables, spec: Spec, name: str, known: str, after: str, until: str) -> None:
    tables.execute(
        f"create or replace temp table {name} as "
        f"with candidates as (select user_id, track_id from {spec.name}.interactions "
        f"where period > cast('{after}' as date) and period <= cast('{until}' as date) group by user_id, track_id "
        f"having sum(plays) > {spec.training.skip_weight!r} * sum(skips)), "
        f"judged as (select distinct user_id from {known} "
        "inner join (select distinct user_id from candidates) using (user_id) "
        f"order by md5(user_id || '{spec.evaluation.seed}') limit {spec.evaluation.max_users}) "
        f"select user_id, track_id from candidates inner join judged using (user_id) "
        f"anti join {known} using (user_id, track_id)"
    )


def _split_by_time(tables: Tables, spec: Spec, plan: SplitPlan) -> None:
    _weighed(tables, spec, "split_train", plan.earliest, plan.train_until)
    _weighed(tables, spec, "split_inner", plan.earliest, plan.inner_until)
    _held_out(tables, spec, "split_validation", "split_inner", plan.inner_until, plan.train_until)
    _held_out(tables, spec, "split_test", "split_train", plan.train_until, plan.as_of)


def _split_stratified(tables: Tables, spec: Spec, plan: SplitPlan) -> None:
    """Hold a fifth of the judged users' tracks back; whom nobody judges is learned from whole."""
    _weighed(tables, spec, "split_all", plan.earliest, plan.as_of)
    tables.execute(
        "create or replace temp table judged as select user_id from split_all group by user_id "
        f"order by md5(user_id || '{spec.evaluation.seed}'), user_id limit {spec.evaluation.max_users}"
    )
    for whole, kept, held, salt in (
        ("split_all", "split_train", "split_test", _SPLIT_SEED),
        ("split_train", "split_inner", "split_validation", _SPLIT_SEED + 1),
    ):
        tables.execute(
            "create or replace temp table dealt as select user_id, track_id, confidence, "
            f"row_number() over (partition by user_id order by md5(user_id || '|' || track_id || '|{salt}')) "
            f"<= least(round(count(*) over (partition by user_id) * {TEST_SHARE}), "
            f"count(*) over (partition by user_id) - 1) as held from {whole} semi join judged using (user_id) "
            "where confidence > 0"
        )
        tables.execute(
            f"create or replace temp table {kept} as select user_id, track_id, confidence from {whole} "
            "anti join (select user_id, track_id from dealt where held) using (user_id, track_id)"
        )
        tables.execute(f"create or replace temp table {held} as select user_id, track_id from dealt where held")


def batch_tables(tables: Tables, spec: Spec, as_of: str) -> dict[str, Stream]:
    """Return all that a batch of playlists starts from, as of a period: one stream a shard, tracks and popularity.

    A shard's columns: user_id, market, allow_explicit, tracks (list of ids, sorted), confidences (list, 0 for tracks
    that were only skipped or lie outside the training window), last_period (missing for users who never listened).
    Whatever a user has ever played or skipped is in the list, since a playlist must not bring it back.
    ``tracks`` is the catalogue; ``popularity`` has the columns market, track_id, plays within the training window;
    ``markets`` are those that users live in, also where nobody has listened yet.
    """
    earliest = spec.periods.shift(as_of, 1 - spec.training.history_periods)
    _deal_histories(tables, spec, as_of, earliest)
    columns = "user_id, market, allow_explicit, tracks, confidences, cast(last_period as varchar) as last_period"
    shards = {
        shard_name(shard): _later(
            tables, f"select {columns} from histories where shard = {shard} order by user_id", rows=10_000
        )
        for shard in range(spec.playlist.shards)
    }
    window = f"period >= cast('{earliest}' as date) and period <= cast('{as_of}' as date)"
    return {
        "tracks": _later(
            tables,
            "select track_id, artist_id, title, tags, lyrics, explicit, cast(released as varchar) as released, markets "
            f"from {spec.name}.track_features order by track_id",
        ),
        "popularity": _later(
            tables,
            f"select market, track_id, sum(plays) as plays from {spec.name}.interactions "
            f"left join {spec.name}.stg_users using (user_id) where {window} and plays > 0 "
            "group by market, track_id order by market, track_id",
        ),
        "markets": _later(
            tables, f"select distinct market from {spec.name}.stg_users where market is not null order by market"
        ),
        **shards,
    }


def _deal_histories(tables: Tables, spec: Spec, as_of: str, earliest: str) -> None:
    half_life = spec.training.half_life_periods * spec.periods.days
    tables.execute(
        "create or replace temp table histories as with heard as ("
        "select user_id, track_id, max(period) as last_period, "
        f"sum(case when period < cast('{earliest}' as date) then 0 "
        f"else greatest(plays - {spec.training.skip_weight!r} * skips, 0) * "
        f"power(0.5, date_diff('day', period, cast('{as_of}' as date)) / {half_life!r}) end) as confidence "
        f"from {spec.name}.interactions where period <= cast('{as_of}' as date) group by user_id, track_id) "
        "select users.user_id, users.market, users.allow_explicit, "
        "coalesce(list(heard.track_id order by heard.track_id) filter (heard.track_id is not null), []) as tracks, "
        "coalesce(list(heard.confidence order by heard.track_id) "
        "filter (heard.track_id is not null), []) as confidences, "
        "max(heard.last_period) as last_period, "
        f"cast(md5_number_lower(users.user_id) % {spec.playlist.shards} as integer) as shard "
        f"from {spec.name}.stg_users as users left join heard using (user_id) "
        f"where users.joined is null or users.joined < cast('{spec.periods.shift(as_of, 1)}' as date) "
        "group by users.user_id, users.market, users.allow_explicit order by shard, users.user_id"
    )


def _later(tables: Tables, sql: str, *, rows: int = 100_000) -> Stream:
    return lambda: tables.reader(sql, rows=rows)


def shard_name(shard: int) -> str:
    """Return the name of a shard's table in a snapshot of batch inputs."""
    return f"shard_{shard:05d}"
