"""The contracts of listens, tracks and users, on small frames and on the real files."""

import os
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlops_assets.discover_weekly.contracts import TRACK_TAGS, TRACKS, USERS, listens_contract
from mlops_assets.foundation.contracts import Contract, IngestBatch, ingest
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.sources import FilesSource, read

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LISTENS = listens_contract(now=NOW)
LISTEN = {"user_id": "u1", "track_id": "t1", "listened_at": "2026-11-16T08:00:00Z", "plays": "2", "skipped": "no"}
DATA = Path(os.environ.get("MLOPS_ASSETS_TEST_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data are not here (MLOPS_ASSETS_TEST_DATA)")


def rules(contract: Contract, *rows: dict[str, Any]) -> list[tuple[int, str]]:
    split = contract.split(pd.DataFrame(list(rows), dtype=object), where="test")
    return list(split.quarantined[["row", "rule"]].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"user_id": None}, "missing"),
        ({"track_id": " "}, "missing"),
        ({"track_id": "t\n1"}, "track_id_not_one_line"),
        ({"user_id": "u" * 201}, "user_id_not_one_line"),
        ({"plays": "-1"}, "plays_in_range"),
        ({"plays": "1000001"}, "plays_in_range"),
        ({"plays": "many"}, "not_a_number"),
        ({"skipped": "perhaps"}, "not_a_flag"),
        ({"listened_at": None}, "missing"),
        ({"listened_at": "2026-13-45"}, "not_a_time"),
        ({"listened_at": "1970-01-12"}, "listened_at_not_before"),
        ({"listened_at": "2026-11-23T12:00:01Z"}, "listened_at_not_after_now"),
    ],
)
def test_a_bad_listen_is_quarantined_by_its_rule(change: dict[str, Any], rule: str) -> None:
    assert rules(LISTENS, LISTEN, LISTEN | change) == [(1, rule)]


def test_the_bound_of_a_listen_from_the_future_is_now() -> None:
    frame = pd.DataFrame([LISTEN | {"listened_at": "2062-01-01"}])
    assert LISTENS.split(frame, where="test").quarantined["bound"].tolist() == ["until 2026-11-23T12:00:00+00:00"]


@pytest.mark.parametrize("plays", ["0", "1e6", "2.5", 3, None])
def test_plays_may_be_anything_from_none_to_a_million(plays: Any) -> None:
    assert rules(LISTENS, LISTEN | {"plays": plays}) == []


def test_plays_and_skips_have_defaults() -> None:
    frame = pd.DataFrame([LISTEN])[["user_id", "track_id", "listened_at"]]
    accepted = LISTENS.split(frame, where="test").accepted
    assert accepted[["plays", "skipped"]].values.tolist() == [[1.0, False]]


@pytest.mark.parametrize(("word", "flag"), [("0", False), ("1", True), ("TRUE", True), ("No", False), (1, True)])
def test_flags_are_written_in_many_ways(word: Any, flag: bool) -> None:
    accepted = LISTENS.split(pd.DataFrame([LISTEN | {"skipped": word}], dtype=object), where="test").accepted
    assert accepted["skipped"].tolist() == [flag]


def test_listens_without_times_are_welcome_where_the_source_has_none() -> None:
    untimed = listens_contract(now=NOW, timed=False)
    frame = pd.DataFrame([LISTEN]).drop(columns="listened_at")

    assert untimed.split(frame, where="test").accepted["listened_at"].isna().all()
    with pytest.raises(UserError, match="column 'listened_at' is missing"):
        LISTENS.split(frame, where="test")


def test_of_tracks_with_one_id_the_later_ones_are_quarantined() -> None:
    assert rules(TRACKS, {"track_id": "a"}, {"track_id": "b"}, {"track_id": "a"}) == [(2, "unique_track_id")]


def test_of_users_with_one_id_the_later_ones_are_quarantined() -> None:
    assert rules(USERS, {"user_id": "a"}, {"user_id": "a"}) == [(1, "unique_user_id")]


def test_a_track_without_artist_is_accepted_and_all_else_has_a_default() -> None:
    accepted = TRACKS.split(pd.DataFrame({"track_id": ["a"], "artist_id": [None]}), where="test").accepted
    row = accepted.iloc[0]
    assert row["artist_id"] is None
    assert row["markets"] is None
    assert not row["explicit"]


@pytest.mark.parametrize(
    ("released", "broken"),
    [
        ("1999", []),
        (date(2026, 11, 20), []),
        (None, []),
        ("1850-10-14", ["released_in_range"]),
        ("1066-10-14", ["not_a_date"]),
        ("soon", ["not_a_date"]),
    ],
)
def test_releases_are_dates_of_the_age_of_recording(released: Any, broken: list[str]) -> None:
    assert [rule for _, rule in rules(TRACKS, {"track_id": "a", "released": released})] == broken


def test_a_user_may_see_explicit_tracks_unless_told_otherwise() -> None:
    accepted = USERS.split(pd.DataFrame({"user_id": ["a", "b"], "allow_explicit": [None, "no"]}), where="test").accepted
    assert accepted["allow_explicit"].tolist() == [True, False]


def only(batches: Any) -> IngestBatch:
    (batch,) = batches
    assert isinstance(batch, IngestBatch)
    return batch


@real_data
def test_lastfm_plays_meet_the_contract() -> None:
    contract = listens_contract(now=NOW, timed=False)
    mapping = {"user_id": "userID", "track_id": "artistID", "plays": "weight"}
    source = FilesSource(path="lastfm/user_artists.dat", format="tsv", columns=mapping)

    batch = only(ingest(read(source, contract.names, base=DATA), contract))

    assert (len(batch.accepted), len(batch.quarantined)) == (92_834, 0)
    assert batch.accepted["plays"].max() == 352_698


@real_data
def test_lastfm_artists_meet_the_contract_with_their_quotation_marks() -> None:
    mapping = {"track_id": "id", "artist_id": "id", "title": "name"}
    source = FilesSource(path="lastfm/artists.dat", format="tsv", columns=mapping)

    batch = only(ingest(read(source, TRACKS.names, base=DATA), TRACKS))

    assert (len(batch.accepted), len(batch.quarantined)) == (17_632, 0)
    assert '"Weird Al" Yankovic' in set(batch.accepted["title"])


@real_data
def test_lastfm_tags_meet_the_contract() -> None:
    source = FilesSource.model_validate(
        {
            "path": "lastfm/user_taggedartists.dat",
            "format": "tsv",
            "columns": {"track_id": "artistID", "tags": "tagID"},
            "lookups": [
                {"column": "tags", "path": "lastfm/tags.dat", "format": "tsv", "encoding": "latin-1"}
                | {"key": "tagID", "value": "tagValue"}
            ],
            "aggregate": {"by": "track_id", "join": "tags"},
        }
    )
    batch = only(ingest(read(source, TRACK_TAGS.names, base=DATA), TRACK_TAGS))
    assert (len(batch.accepted), len(batch.quarantined)) == (12_523, 0)


@real_data
def test_movielens_ratings_are_cut_to_one_week() -> None:
    source = FilesSource.model_validate(
        {
            "path": "movielens_small/ratings.csv",
            "columns": {"user_id": "userId", "track_id": "movieId", "listened_at": "timestamp"},
            "time": {"unit": "s"},
        }
    )
    window = (datetime(2018, 1, 1, tzinfo=UTC), datetime(2018, 1, 8, tzinfo=UTC))

    batch = only(ingest(read(source, LISTENS.names, base=DATA), LISTENS, window))

    seconds = pd.read_csv(DATA / "movielens_small/ratings.csv")["timestamp"]
    inside = (seconds >= window[0].timestamp()) & (seconds < window[1].timestamp())
    assert (len(batch.accepted), batch.outside) == (inside.sum(), (~inside).sum())
    assert list(batch.accepted.index - 2) == list(seconds.index[inside])


@real_data
def test_movielens_genres_become_tags() -> None:
    source = FilesSource.model_validate(
        {
            "path": "movielens_small/movies.csv",
            "columns": {"track_id": "movieId", "tags": "genres"},
            "replace": {"tags": {"(no genres listed)": "", "|": " "}},
        }
    )
    batch = only(ingest(read(source, TRACKS.names, base=DATA), TRACKS))

    tags = batch.accepted.set_index("track_id")["tags"]
    assert len(tags) == 9_742
    assert tags["1"] == "Adventure Animation Children Comedy Fantasy"
    assert tags.isna().sum() == 34
