"""The sample world of listeners: reproducible, sized as promised, dirty as declared, and learnable."""

from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pandas.testing import assert_frame_equal

from mlops_assets.foundation.errors import UserError
from mlops_assets.samples import _listening_draws as draws
from mlops_assets.samples._listening_world import World
from mlops_assets.samples.listening import DIRT_KINDS, MARKETS, ListeningWorld

WORLD = ListeningWorld(users=600)
DIRTY = ListeningWorld(users=600, dirt=0.02)
CLEAN = ListeningWorld(users=600, dirt=0.0)
# More users than share one random stream (4,000), so that chunks cut through blocks and blocks through chunks.
WIDE = ListeningWorld(users=9_000)


def week_of_listens(world: ListeningWorld, week: int, chunk_users: int = 20_000) -> pd.DataFrame:
    return pd.concat(list(world.listens(week, chunk_users=chunk_users)), ignore_index=True)


# --- Determinism ---


@pytest.mark.parametrize("chunk_users", [1_700, 4_000, 5_001, 100_000])
def test_listens_do_not_depend_on_the_chunk_size(chunk_users: int) -> None:
    assert_frame_equal(week_of_listens(WIDE, 3, chunk_users), week_of_listens(WIDE, 3))


def test_a_chunk_covers_its_range_of_users_and_no_other() -> None:
    for number, chunk in enumerate(WIDE.listens(2, chunk_users=2_500)):
        users = chunk["user_id"].dropna()
        assert users.min() > f"u{number * 2_500:07d}"
        assert users.max() <= f"u{(number + 1) * 2_500:07d}"


def test_listens_do_not_depend_on_what_was_asked_before() -> None:
    forwards = {week: week_of_listens(WORLD, week) for week in (0, 5, 14)}
    again = ListeningWorld(users=600, weeks=99)  # another horizon is no cached twin, and must not matter either
    for week in (14, 0, 5):
        assert_frame_equal(week_of_listens(again, week), forwards[week])


def test_two_weeks_read_in_turns_do_not_disturb_each_other() -> None:
    turns = list(zip(WIDE.listens(1, chunk_users=3_000), WIDE.listens(2, chunk_users=3_000), strict=False))
    assert_frame_equal(pd.concat([first for first, _ in turns], ignore_index=True), week_of_listens(WIDE, 1))


def test_numpys_global_random_state_is_neither_used_nor_touched() -> None:
    np.random.seed(1)  # noqa: NPY002
    before = week_of_listens(ListeningWorld(users=250), 0)
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002
    assert_frame_equal(week_of_listens(ListeningWorld(users=250), 0), before)


def test_another_seed_is_another_world() -> None:
    other = ListeningWorld(users=600, seed=8)
    assert not WORLD.track_catalogue(0)["tags"].equals(other.track_catalogue(0)["tags"])
    assert not week_of_listens(WORLD, 0)["track_id"].equals(week_of_listens(other, 0)["track_id"])


def test_every_week_and_every_block_of_users_has_random_streams_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams: dict[str, set[tuple[int, ...]]] = {}

    def recorded(world: World, purpose: draws.Purpose, *key: int) -> np.random.Generator:
        streams.setdefault(purpose.name, set()).add(key)
        return original(world, purpose, *key)

    original = draws.stream
    monkeypatch.setattr(draws, "stream", recorded)
    for week in (0, 1):
        week_of_listens(WIDE, week)
    weeks_and_blocks = {(week, block) for week in (0, 1) for block in (0, 1, 2)}
    assert streams["ACTIVITY"] == streams["EVENTS"] == streams["DIRT"] == weeks_and_blocks
    assert streams["USERS"] == {(0,), (1,), (2,)}
    assert streams["FAVOURITES"] == {(epoch, block) for epoch in (0, 1) for block in (0, 1, 2)}


@pytest.mark.parametrize("earlier", [0, 1, 12])
def test_catalogue_and_directory_are_prefixes_of_later_ones(earlier: int) -> None:
    for frame in (WORLD.track_catalogue, WORLD.user_directory):
        shorter = frame(earlier)
        assert_frame_equal(frame(earlier + 14).head(len(shorter)), shorter)


def test_changing_a_returned_frame_does_not_change_the_world() -> None:
    spoiled = WORLD.track_catalogue(1)
    expected = spoiled.copy(deep=True)
    spoiled["explicit"].to_numpy()[:] = True
    spoiled["released"].to_numpy()[:] = None
    assert_frame_equal(WORLD.track_catalogue(1), expected)


# --- Frames and sizes ---


def test_frames_are_canonical() -> None:
    listens, tracks, users = week_of_listens(CLEAN, 0), CLEAN.track_catalogue(0), CLEAN.user_directory(0)
    assert {name: str(kind) for name, kind in listens.dtypes.items()} == {
        "user_id": "object",
        "track_id": "object",
        "listened_at": "datetime64[ns, UTC]",
        "plays": "float64",
        "skipped": "bool",
    }
    assert list(tracks) == [
        "track_id",
        "artist_id",
        "title",
        "tags",
        "lyrics",
        "explicit",
        "released",
        "markets",
    ]
    assert list(users) == ["user_id", "market", "allow_explicit", "joined"]
    assert type(tracks["released"][0]) is date
    assert type(users["joined"][0]) is date
    assert users["user_id"][0] == "u0000001"
    assert tracks["track_id"][0] == "t000001"
    assert tracks["artist_id"].str.fullmatch(r"a\d{5}").all()
    assert tracks["track_id"].is_monotonic_increasing
    assert users["user_id"].is_monotonic_increasing


def test_sizes_are_as_documented() -> None:
    world = ListeningWorld()
    assert len(world.user_directory(0)) == world.user_count(0) == 2_000
    assert len(world.track_catalogue(0)) == world.track_count(0) == 4_000 + 24
    assert ListeningWorld(users=1_000_000).back_catalogue_size == pytest.approx(100_000, rel=0.01)
    assert ListeningWorld(tracks=900).track_count(0) == 905
    assert 20 <= len(week_of_listens(world, 0)) / 2_000 <= 25


def test_every_week_brings_new_users_who_listen() -> None:
    for week in (1, 2, 20):
        new = WORLD.user_directory(week).iloc[WORLD.user_count(week - 1) :]
        assert len(new) == 9
        assert new["joined"].between(WORLD.monday(week), WORLD.monday(week + 1) - timedelta(days=1)).all()
    newcomers = set(WORLD.user_directory(20)["user_id"].iloc[600:])
    assert len(newcomers & set(week_of_listens(WORLD, 20)["user_id"])) > 120


def test_every_week_brings_new_tracks_of_known_and_of_new_artists() -> None:
    world = ListeningWorld()
    for week in (1, 2, 20):
        known, tracks = world.track_catalogue(week - 1), world.track_catalogue(week)
        new = tracks.iloc[len(known) :]
        is_known = new["artist_id"].isin(known["artist_id"])
        assert is_known.sum() >= 5
        assert (~is_known).sum() >= 4
        assert new["released"].between(world.monday(week), world.monday(week + 1) - timedelta(days=1)).all()


def test_catalogue_has_the_gaps_and_shares_it_promises() -> None:
    tracks = ListeningWorld(users=10_000).track_catalogue(0)
    assert tracks["tags"].isna().mean() == pytest.approx(0.08, abs=0.01)
    assert tracks["tags"].dropna().str.split().str.len().between(3, 8).all()
    assert not tracks["tags"].dropna().map(lambda tags: len(set(tags.split())) < len(tags.split())).any()
    assert 0.1 < tracks["lyrics"].isna().mean() < 0.4
    assert tracks["explicit"].mean() == pytest.approx(0.12, abs=0.02)
    assert tracks["markets"].isna().mean() == pytest.approx(0.88, abs=0.02)
    assert set("|".join(tracks["markets"].dropna()).split("|")) <= set(MARKETS)
    assert (tracks["released"] < date(2026, 8, 24)).sum() == ListeningWorld(users=10_000).back_catalogue_size


def test_directory_has_the_gaps_and_shares_it_promises() -> None:
    users = WIDE.user_directory(0)
    assert 0 < users["market"].isna().mean() < 0.03
    assert set(users["market"].dropna()) == set(MARKETS)
    assert users["market"].value_counts(normalize=True).iloc[[0, -1]].between(0.02, 0.35).all()
    assert users["allow_explicit"].mean() == pytest.approx(0.8, abs=0.02)
    assert (users["joined"] < WIDE.start).all()


# --- Listens ---


@pytest.mark.parametrize("week", [0, 13])
def test_a_week_is_monday_to_sunday_in_utc_and_whole_seconds(week: int) -> None:
    at = week_of_listens(CLEAN, week)["listened_at"]
    monday = pd.Timestamp(CLEAN.monday(week), tz="UTC")
    assert at.between(monday, monday + pd.Timedelta(days=7), inclusive="left").all()
    assert set(at.dt.dayofweek) == set(range(7))
    assert (at == at.dt.floor("s")).all()


def test_listening_has_a_daily_rhythm() -> None:
    hours = week_of_listens(CLEAN, 0)["listened_at"].dt.hour.value_counts(normalize=True)
    assert hours.max() > 2.5 * hours.min()


def test_rows_are_sorted_by_user_and_time_and_no_user_plays_two_tracks_at_once() -> None:
    listens = week_of_listens(CLEAN, 0)
    assert_frame_equal(listens, listens.sort_values(["user_id", "listened_at"], kind="stable"))
    assert not listens.duplicated(["user_id", "listened_at"]).any()


def test_nobody_listens_before_joining_or_to_what_is_not_out_allowed_and_licensed() -> None:
    for week in (0, 1, 14):
        tracks, users = CLEAN.track_catalogue(week), CLEAN.user_directory(week)
        rows = week_of_listens(CLEAN, week).merge(tracks, on="track_id").merge(users, on="user_id")
        assert len(rows) == len(week_of_listens(CLEAN, week))
        day = rows["listened_at"].dt.date
        assert (day >= rows["joined"]).all()
        assert (day >= rows["released"]).all()
        assert not (rows["explicit"] & ~rows["allow_explicit"]).any()
        limited = rows[rows["markets"].notna()]
        assert len(limited) > 0
        open_to = [
            market is not None and market in markets.split("|")
            for market, markets in zip(limited["market"], limited["markets"], strict=True)
        ]
        assert all(open_to)


def test_activity_is_heavy_tailed_and_some_never_listen() -> None:
    weekly = [week_of_listens(CLEAN, week)["user_id"].value_counts() for week in range(8)]
    assert weekly[0].max() > 8 * weekly[0].median()
    listeners = [set(counts.index) & set(CLEAN.user_directory(0)["user_id"]) for counts in weekly]
    assert 600 - len(set.union(*listeners)) > 2
    assert all(len(now - later) > 10 for now, later in pairwise(listeners))


def test_favourites_come_back_and_tracks_outside_the_taste_are_skipped_more() -> None:
    weeks = [week_of_listens(CLEAN, week) for week in range(4)]
    pairs = [set(zip(week["user_id"], week["track_id"], strict=True)) for week in weeks]
    known = set.union(*pairs[:3])
    assert 0.2 < len(pairs[3] & known) / len(pairs[3]) < 0.8
    repeated = np.array([pair in known for pair in zip(weeks[3]["user_id"], weeks[3]["track_id"], strict=True)])
    assert weeks[3]["skipped"][~repeated].mean() > 1.5 * weeks[3]["skipped"][repeated].mean()


def test_tastes_drift_slowly() -> None:
    def shared_with_week_0(week: int) -> float:
        later = week_of_listens(CLEAN, week)
        pairs = set(zip(later["user_id"], later["track_id"], strict=True))
        return len(pairs & start) / len(start)

    first = week_of_listens(CLEAN, 0)
    start = set(zip(first["user_id"], first["track_id"], strict=True))
    assert shared_with_week_0(1) > shared_with_week_0(8) > shared_with_week_0(40) > 0


def test_new_releases_are_played_more_than_later() -> None:
    new = CLEAN.track_catalogue(2)["track_id"].iloc[CLEAN.track_count(1) :]
    plays = [week_of_listens(CLEAN, week)["track_id"].isin(new).sum() for week in (3, 12)]
    assert plays[0] > 1.5 * plays[1]


def test_popularity_is_zipf_like() -> None:
    counts = week_of_listens(ListeningWorld(dirt=0.0), 0)["track_id"].value_counts()
    ranks = np.arange(1, 301)
    slope = np.polyfit(np.log(ranks), np.log(counts.to_numpy()[:300]), 1)[0]
    assert -1.2 < slope < -0.5


# --- Dirt ---


def counted(frame: pd.DataFrame, world: ListeningWorld, week: int) -> dict[str, int]:
    """Count the dirt of a week from its rows alone."""
    end = pd.Timestamp(world.monday(week + 1), tz="UTC")
    return {
        "duplicate": int(frame.duplicated().sum()),
        "negative_plays": int((frame["plays"] < 0).sum()),
        "unknown_track": int((~frame["track_id"].isin(world.track_catalogue(week)["track_id"])).sum()),
        "missing_user": int(frame["user_id"].isna().sum()),
        "future": int((frame["listened_at"] >= end).sum()),
    }


@pytest.mark.parametrize(("world", "week"), [(WORLD, 0), (DIRTY, 0), (DIRTY, 13), (WIDE, 1), (CLEAN, 0)], ids=str)
def test_planted_counts_are_exact(world: ListeningWorld, week: int) -> None:
    assert world.planted(week) == counted(week_of_listens(world, week), world, week)


def test_each_kind_of_dirt_befalls_its_share() -> None:
    rows = len(week_of_listens(CLEAN, 0))
    for kind in DIRT_KINDS:
        assert DIRTY.planted(0)[kind] == pytest.approx(0.02 * rows, rel=0.25)


def test_dirt_leaves_the_other_events_as_they_are() -> None:
    clean, dirty = week_of_listens(CLEAN, 0), week_of_listens(DIRTY, 0)
    assert len(dirty) == len(clean) + DIRTY.planted(0)["duplicate"]
    altered = sum(count for kind, count in DIRTY.planted(0).items() if kind != "duplicate")
    assert len(clean.merge(dirty.drop_duplicates(), on=list(clean))) == len(clean) - altered


def test_events_in_the_future_are_a_year_ahead() -> None:
    listens = week_of_listens(DIRTY, 0)
    ahead = listens["listened_at"] - pd.Timestamp(DIRTY.monday(0), tz="UTC")
    assert set(ahead[ahead >= pd.Timedelta(days=7)].dt.days // 7) == {52}


# --- Bounds ---


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"users": 199}, "users"),
        ({"users": 1_000_001}, "users"),
        ({"weeks": 0}, "weeks"),
        ({"seed": -1}, "seed"),
        ({"tracks": 499}, "tracks"),
        ({"tracks": 200_001}, "tracks"),
        ({"dirt": 0.11}, "dirt"),
        ({"dirt": float("nan")}, "dirt"),
        ({"start": date(2026, 8, 25)}, "take 2026-08-24"),
    ],
)
def test_parameters_outside_the_bounds_are_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ListeningWorld(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("week", [-1, 100_000])
def test_weeks_outside_the_world_are_refused_when_asked_for(week: int) -> None:
    for ask in (WORLD.track_catalogue, WORLD.user_directory, WORLD.listens, WORLD.planted, WORLD.monday):
        with pytest.raises(UserError, match="week"):
            ask(week)


def test_a_chunk_holds_at_least_one_user() -> None:
    with pytest.raises(UserError, match="chunk_users"):
        WORLD.listens(0, chunk_users=0)


def test_a_week_is_found_by_its_monday() -> None:
    assert [WORLD.week_of(WORLD.monday(week)) for week in (0, 1, 52)] == [0, 1, 52]
    for wrong in (date(2026, 8, 17), date(2026, 8, 30)):
        with pytest.raises(UserError, match="Monday"):
            WORLD.week_of(wrong)


def test_the_last_week_of_the_largest_world_still_has_ids() -> None:
    world = ListeningWorld(users=200, tracks=200_000)
    last = (990_000 - 1 - 200_000) // world.new_tracks_a_week - 1
    assert world.track_count(last) < 990_000
    with pytest.raises(UserError, match=f"beyond week {last}"):
        world.track_count(last + 1)


# --- Learnability ---


@pytest.fixture(scope="module")
def plays() -> tuple[NDArray[np.float64], NDArray[np.float64], pd.DataFrame]:
    """Users times tracks in weeks 0 to 11, the same for week 12, and the catalogue; 1 where played."""
    tracks, users = CLEAN.track_catalogue(12), CLEAN.user_directory(12)
    matrices = np.zeros((2, len(users), len(tracks)))
    for week in range(13):
        listens = week_of_listens(CLEAN, week)
        liked = listens[~listens["skipped"]]
        user, track = (
            pd.Index(frame[name]).get_indexer(liked[name]) for frame, name in ((users, "user_id"), (tracks, "track_id"))
        )
        matrices[week // 12, user, track] = 1.0
    return matrices[0], matrices[1] * (1 - matrices[0]), tracks


def ndcg_at_10(scores: NDArray[np.floating], train: NDArray[np.float64], test: NDArray[np.float64]) -> float:
    users = (test.sum(axis=1) > 0) & (train.sum(axis=1) > 0)
    top = np.argsort(-np.where(train > 0, -np.inf, scores), axis=1, kind="stable")[:, :10]
    discount = 1 / np.log2(np.arange(10) + 2)
    gain = np.take_along_axis(test, top, axis=1) @ discount
    ideal = np.cumsum(discount)[np.clip(test.sum(axis=1).astype(int), 1, 10) - 1]
    return float((gain / ideal)[users].mean())


def test_matrix_factorization_clearly_beats_popularity(
    plays: tuple[NDArray[np.float64], NDArray[np.float64], pd.DataFrame],
) -> None:
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    train, test, _ = plays
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=32, regularization=10.0, alpha=1.0, iterations=10, random_state=1, num_threads=1
        )
        model.fit(csr_matrix(train.astype(np.float32)), show_progress=False)
    als = ndcg_at_10(model.user_factors @ model.item_factors.T, train, test)
    popular = ndcg_at_10(np.tile(train.sum(axis=0), (len(train), 1)), train, test)
    assert 0.02 < popular < 0.1
    assert als > 1.6 * popular


def test_tags_tell_who_will_play_a_track_that_nobody_played_yet(
    plays: tuple[NDArray[np.float64], NDArray[np.float64], pd.DataFrame],
) -> None:
    train, test, tracks = plays
    tagged = tracks["tags"].notna().to_numpy()
    new = np.flatnonzero((train.sum(axis=0) == 0) & (test.sum(axis=0) > 0) & tagged)
    words = tracks["tags"].fillna("").str.get_dummies(sep=" ").to_numpy(dtype=float)
    words *= np.log(len(words) / words.sum(axis=0))  # a word that is everywhere says nothing
    words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-9)
    fit = (train @ words) / np.maximum(train.sum(axis=1, keepdims=True), 1) @ words[new].T
    players = test[:, new] > 0
    # The share of other users whose profile fits the track less than a player's does: 0.5 without information.
    ranks = fit.argsort(axis=0).argsort(axis=0) / len(fit)
    assert players.sum() > 50
    assert ranks[players].mean() > 0.58
