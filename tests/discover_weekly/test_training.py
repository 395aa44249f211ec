"""What models learn from is cut as planned: nothing held out is learned from, and every user is dealt once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.discover_weekly.training import (
    SplitPlan,
    batch_tables,
    filled_periods,
    plan_split,
    shard_name,
    training_tables,
)
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore
from tests.conftest import WEEKS

MakeSpec = Callable[..., Spec]
INTERACTIONS = {
    "period": "date", "user_id": "varchar", "track_id": "varchar", "plays": "double", "skips": "double",
}  # fmt: skip
USERS = {"user_id": "varchar", "market": "varchar", "allow_explicit": "boolean", "joined": "date"}
TRACKS = {
    "track_id": "varchar", "artist_id": "varchar", "title": "varchar", "tags": "varchar", "lyrics": "varchar",
    "explicit": "boolean", "released": "date", "markets": "varchar",
}  # fmt: skip


def fill(warehouse: Warehouse, rows: pd.DataFrame, users: pd.DataFrame | None = None) -> None:
    """Write interactions, the users that they mention (or these), and the tracks that they mention."""
    frame = rows.assign(period=pd.to_datetime(rows["period"]))
    warehouse.replace("discover_weekly.interactions", INTERACTIONS, [frame])
    everybody = pd.DataFrame({"user_id": rows["user_id"].unique()}) if users is None else users
    warehouse.replace("discover_weekly.stg_users", USERS, [everybody])
    tracks = pd.DataFrame({"track_id": rows["track_id"].unique(), "explicit": False})
    warehouse.replace("discover_weekly.track_features", TRACKS, [tracks])


def rows_of(*rows: tuple[str, str, str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(INTERACTIONS))


def crowd(users: int = 60, tracks: int = 40, a_week: int = 8) -> pd.DataFrame:
    """Listening at random over five weeks, a tenth of it skips."""
    rng = np.random.default_rng(3)
    size = len(WEEKS) * users * a_week
    frame = pd.DataFrame(
        {
            "period": np.repeat(WEEKS, users * a_week),
            "user_id": [f"u{n:03d}" for n in np.tile(np.repeat(np.arange(users), a_week), len(WEEKS))],
            "track_id": [f"t{n:03d}" for n in rng.integers(0, tracks, size)],
            "plays": 1.0,
            "skips": 0.0,
        }
    )
    skipped = rng.random(size) < 0.1
    frame.loc[skipped, ["plays", "skips"]] = [0.0, 1.0]
    return frame.groupby(["period", "user_id", "track_id"], as_index=False).sum()


def cut(spec: Spec, warehouse: Warehouse, folder: Path, as_of: str = WEEKS[4]) -> tuple[SplitPlan, Snapshot]:
    with warehouse.session() as tables:
        plan = plan_split(spec, as_of, filled_periods(tables, spec, as_of))
        made = SnapshotStore(folder / "snapshots").save(
            "discover_weekly/training_set", training_tables(tables, spec, plan), plan.metadata()
        )
    return plan, made


def deal(spec: Spec, warehouse: Warehouse, folder: Path, as_of: str = WEEKS[4]) -> Snapshot:
    with warehouse.session() as tables:
        return SnapshotStore(folder / "snapshots").save(
            "discover_weekly/batch_inputs", batch_tables(tables, spec, as_of)
        )


def pairs(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(frame["user_id"], frame["track_id"], strict=True))


# ---- the plan


def test_three_filled_weeks_are_split_by_time(small_spec: Spec) -> None:
    plan = plan_split(small_spec, WEEKS[4], WEEKS[2:])
    assert (plan.kind, plan.inner_until, plan.train_until) == ("time", WEEKS[2], WEEKS[3])


@pytest.mark.parametrize(
    "filled",
    [
        pytest.param(WEEKS[3:], id="nothing before validation"),
        pytest.param((WEEKS[0], WEEKS[4]), id="validation week empty"),
        pytest.param(WEEKS[:4], id="test week empty"),
    ],
)
def test_too_few_weeks_are_split_by_user_or_refused_where_time_was_asked_for(
    make_spec: MakeSpec, filled: tuple[str, ...]
) -> None:
    plan = plan_split(make_spec(), WEEKS[4], filled)
    assert (plan.kind, plan.inner_until, plan.train_until) == ("stratified", WEEKS[4], WEEKS[4])
    with pytest.raises(UserError, match=rf"there are {len(filled)} period\(s\): .*lower evaluation.holdout_periods"):
        plan_split(make_spec(evaluation={"split": "time"}), WEEKS[4], filled)


def test_weeks_beyond_the_history_do_not_count(make_spec: MakeSpec) -> None:
    spec = make_spec(training={"history_periods": 2})
    assert plan_split(spec, WEEKS[4], WEEKS).kind == "stratified"
    assert plan_split(spec, WEEKS[4], WEEKS).earliest == WEEKS[3]


def test_a_split_by_user_can_be_asked_for(make_spec: MakeSpec) -> None:
    assert plan_split(make_spec(evaluation={"split": "stratified"}), WEEKS[4], WEEKS).kind == "stratified"


def test_longer_holdouts_move_both_cuts(make_spec: MakeSpec) -> None:
    plan = plan_split(make_spec(evaluation={"holdout_periods": 2}), WEEKS[4], WEEKS)
    assert (plan.kind, plan.inner_until, plan.train_until) == ("time", WEEKS[0], WEEKS[2])


def test_no_interactions_is_an_error_with_a_remedy(small_spec: Spec) -> None:
    with pytest.raises(UserError, match=f"no interactions up to {WEEKS[4]}.*materialize listens"):
        plan_split(small_spec, WEEKS[4], [])


def test_periods_after_the_asked_one_are_not_seen(small_spec: Spec, warehouse: Warehouse) -> None:
    fill(warehouse, crowd())
    with warehouse.session() as tables:
        assert filled_periods(tables, small_spec, WEEKS[2]) == list(WEEKS[:3])


# ---- the training set


@pytest.mark.parametrize("kind", ["time", "stratified"])
def test_nothing_that_is_held_out_is_learned_from(
    make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path, kind: str
) -> None:
    rows = crowd()
    fill(warehouse, rows)
    plan, made = cut(make_spec(evaluation={"split": kind}), warehouse, tmp_path)
    assert plan.kind == kind
    train, inner = pairs(made.read("train")), pairs(made.read("inner"))
    validation, test = pairs(made.read("validation")), pairs(made.read("test"))
    assert min(map(len, (train, inner, validation, test))) > 20
    assert not test & (train | inner)
    assert not validation & inner
    assert inner <= train
    for name in ("train", "inner", "validation", "test"):
        frame = made.read(name)
        assert not frame.duplicated(["user_id", "track_id"]).any()
        assert pairs(frame) <= pairs(rows)


def test_no_row_after_the_cut_is_learned_from(small_spec: Spec, warehouse: Warehouse, tmp_path: Path) -> None:
    rows = crowd()
    fill(warehouse, rows)
    plan, made = cut(small_spec, warehouse, tmp_path, as_of=WEEKS[3])
    until = {"train": plan.train_until, "inner": plan.inner_until}
    for name, last in until.items():
        assert pairs(made.read(name)) == pairs(rows[rows["period"] <= last])
    held = rows[(rows["period"] == WEEKS[3]) & (rows["plays"] > 0.5 * rows["skips"])]
    known = pairs(rows[rows["period"] < WEEKS[3]])
    assert pairs(made.read("test")) == pairs(held) - known


def test_what_is_held_out_is_liked_and_of_known_users(small_spec: Spec, warehouse: Warehouse, tmp_path: Path) -> None:
    fill(
        warehouse,
        rows_of(
            (WEEKS[0], "u1", "t1", 1, 0),
            (WEEKS[1], "u1", "t2", 1, 0),
            (WEEKS[2], "u1", "t3", 1, 0),
            (WEEKS[2], "u1", "t1", 5, 0),  # known already
            (WEEKS[2], "u1", "t4", 1, 2),  # skipped as much as it was played
            (WEEKS[2], "new", "t5", 9, 0),  # nobody the model knows
        ),
    )
    _, made = cut(small_spec, warehouse, tmp_path, as_of=WEEKS[2])
    assert pairs(made.read("test")) == {("u1", "t3")}
    assert pairs(made.read("validation")) == {("u1", "t2")}


def test_confidence_is_plays_less_skips_halved_with_age(
    make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path
) -> None:
    spec = make_spec(training={"half_life_periods": 2.0, "skip_weight": 0.5})
    fill(
        warehouse,
        rows_of(
            (WEEKS[0], "u1", "t1", 8, 0),  # two weeks before the cut: half
            (WEEKS[2], "u1", "t1", 3, 2),  # at the cut: 3 - 0.5 * 2
            (WEEKS[2], "u1", "t2", 1, 6),  # below zero counts as zero, but stays known
            (WEEKS[1], "u1", "t3", 1, 0),  # one week: 2 ** -0.5
            (WEEKS[3], "u1", "t4", 1, 0),
        ),
    )
    plan, made = cut(spec, warehouse, tmp_path, as_of=WEEKS[3])
    assert plan.train_until == WEEKS[2]
    found = made.read("train").set_index("track_id")["confidence"]
    assert found.to_dict() == pytest.approx({"t1": 6.0, "t2": 0.0, "t3": 2**-0.5})


def test_months_age_by_their_nominal_length(make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path) -> None:
    spec = make_spec(
        periods={"cadence": "monthly"}, training={"half_life_periods": 1.0}, evaluation={"split": "stratified"}
    )
    fill(warehouse, rows_of(("2024-01-01", "u1", "t1", 4, 0), ("2024-02-01", "u1", "t2", 4, 0)))
    _, made = cut(spec, warehouse, tmp_path, as_of="2024-02-01")
    found = made.read("train").set_index("track_id")["confidence"]
    assert found.to_dict() == pytest.approx({"t1": 4 * 0.5 ** (31 / 30.4375), "t2": 4.0})


def test_a_second_cut_is_the_same_snapshot(small_spec: Spec, warehouse: Warehouse, tmp_path: Path) -> None:
    fill(warehouse, crowd())
    first = cut(small_spec, warehouse, tmp_path / "a")[1].sha256, deal(small_spec, warehouse, tmp_path / "a").sha256
    again = cut(small_spec, warehouse, tmp_path / "b")[1].sha256, deal(small_spec, warehouse, tmp_path / "b").sha256
    assert first == again


def test_another_seed_of_the_sample_is_another_snapshot(
    make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path
) -> None:
    fill(warehouse, crowd())
    few = {"max_users": 20}
    one = cut(make_spec(training={**few, "seed": 1}), warehouse, tmp_path)[1]
    other = cut(make_spec(training={**few, "seed": 2}), warehouse, tmp_path)[1]
    assert one.sha256 != other.sha256
    assert one.read("train")["user_id"].nunique() == other.read("train")["user_id"].nunique() == 20


def test_sampled_users_are_there_with_all_their_rows(make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path) -> None:
    rows = crowd()
    fill(warehouse, rows)
    whole = cut(make_spec(), warehouse, tmp_path)[1].read("train")
    some = cut(make_spec(training={"max_users": 20}), warehouse, tmp_path)[1].read("train")
    expected = whole[whole["user_id"].isin(some["user_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected)


def test_only_some_users_are_judged_on(make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path) -> None:
    fill(warehouse, crowd(users=90))
    for kind in ("time", "stratified"):
        made = cut(make_spec(evaluation={"max_users": 50, "split": kind}), warehouse, tmp_path)[1]
        assert 0 < made.read("test")["user_id"].nunique() <= 50
        assert made.read("train")["user_id"].nunique() == 90


def test_a_stratified_split_leaves_everybody_something(
    make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path
) -> None:
    week = WEEKS[0]
    one = [(week, "one", "t0", 1.0, 0.0), (week, "skipper", "t0", 0.0, 1.0)]
    ten = [(week, "ten", f"t{n}", 1.0, 0.0) for n in range(10)]
    fill(warehouse, rows_of(*one, *ten))
    made = cut(make_spec(evaluation={"split": "stratified"}), warehouse, tmp_path, as_of=week)[1]
    train, test = made.read("train"), made.read("test")
    assert train.groupby("user_id").size().to_dict() == {"one": 1, "skipper": 1, "ten": 8}
    assert test.groupby("user_id").size().to_dict() == {"ten": 2}
    assert train.set_index("user_id").loc["skipper", "confidence"] == 0.0


# ---- what a batch starts from


def everybody(made: Snapshot, shards: int) -> Mapping[str, dict[str, Any]]:
    frames = [made.read(shard_name(shard)) for shard in range(shards)]
    return {str(row["user_id"]): dict(row) for frame in frames for row in frame.to_dict("records")}


def test_every_user_is_dealt_into_exactly_one_shard(make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path) -> None:
    spec = make_spec(playlist={"shards": 7})
    fill(warehouse, crowd())
    made = deal(spec, warehouse, tmp_path)
    frames = [made.read(shard_name(shard)) for shard in range(7)]
    dealt = pd.concat(frames)["user_id"]
    assert sorted(dealt) == sorted({f"u{n:03d}" for n in range(60)})
    assert sum(map(len, frames)) == 60
    assert min(map(len, frames)) > 0
    assert all(frame["user_id"].is_monotonic_increasing for frame in frames)


def test_a_shard_of_nobody_still_has_its_columns(make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path) -> None:
    spec = make_spec(playlist={"shards": 50})
    fill(warehouse, rows_of((WEEKS[0], "u1", "t1", 1, 0)))
    made = deal(spec, warehouse, tmp_path)
    frames = [made.read(shard_name(shard)) for shard in range(50)]
    assert sorted(map(len, frames)) == [0] * 49 + [1]
    assert {tuple(frame.columns) for frame in frames} == {
        ("user_id", "market", "allow_explicit", "tracks", "confidences", "last_period")
    }


def test_users_who_never_listened_are_there_and_later_ones_are_not(
    small_spec: Spec, warehouse: Warehouse, tmp_path: Path
) -> None:
    users = pd.DataFrame(
        {
            "user_id": ["heard", "silent", "sunday", "monday"],
            "market": [None, "SE", "NO", "DK"],
            "allow_explicit": [True, False, True, True],
            "joined": pd.to_datetime([None, "2023-01-01", "2024-02-04", "2024-02-05"]),
        }
    )
    fill(warehouse, rows_of((WEEKS[4], "heard", "t1", 1, 0)), users)
    made = deal(small_spec, warehouse, tmp_path)
    found = everybody(made, 3)
    assert sorted(found) == ["heard", "silent", "sunday"]
    assert (list(found["silent"]["tracks"]), found["silent"]["last_period"]) == ([], None)
    assert (found["heard"]["market"], found["silent"]["market"], found["silent"]["allow_explicit"]) == (
        None,
        "SE",
        False,
    )
    assert made.read("markets")["market"].tolist() == ["DK", "NO", "SE"]


def test_histories_hold_all_that_was_ever_heard_and_weigh_only_the_window(
    make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path
) -> None:
    spec = make_spec(training={"history_periods": 2, "half_life_periods": 1.0})
    fill(
        warehouse,
        rows_of(
            (WEEKS[0], "u1", "t1", 9, 0),  # before the window: known, weighs nothing
            (WEEKS[2], "u1", "t2", 2, 0),
            (WEEKS[3], "u1", "t3", 2, 2),
            (WEEKS[3], "u1", "t4", 0, 1),
            (WEEKS[4], "u1", "t5", 1, 0),  # after the period: not known yet
        ),
    )
    user = everybody(deal(spec, warehouse, tmp_path, as_of=WEEKS[3]), 3)["u1"]
    assert list(user["tracks"]) == ["t1", "t2", "t3", "t4"]
    assert list(user["confidences"]) == [0.0, 1.0, 1.0, 0.0]
    assert user["last_period"] == WEEKS[3]


def test_popularity_counts_plays_of_the_window_by_market(
    make_spec: MakeSpec, warehouse: Warehouse, tmp_path: Path
) -> None:
    spec = make_spec(training={"history_periods": 1})
    users = pd.DataFrame({"user_id": ["se1", "se2", "none"], "market": ["SE", "SE", None]})
    fill(
        warehouse,
        rows_of(
            (WEEKS[0], "se1", "t1", 50, 0),
            (WEEKS[1], "se1", "t1", 2, 0),
            (WEEKS[1], "se2", "t1", 3, 1),
            (WEEKS[1], "none", "t1", 1, 0),
            (WEEKS[1], "se1", "t2", 0, 4),
        ),
        users,
    )
    found = deal(spec, warehouse, tmp_path, as_of=WEEKS[1]).read("popularity")
    assert found.sort_values("plays")["plays"].tolist() == [1.0, 5.0]
    assert found.sort_values("plays")["market"].tolist() == [None, "SE"]
