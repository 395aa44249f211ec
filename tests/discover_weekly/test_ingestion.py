"""Every row that is read is in the table or in quarantine, once, whatever the source and however often it is read."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlops_assets.discover_weekly import ingestion
from mlops_assets.discover_weekly.ingestion import ingest_listens, read_tracks, read_users, sample_world, window_of
from mlops_assets.discover_weekly.names import partitions_of
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.resources import Warehouse
from tests.conftest import WEEKS

# After the sample's weeks, and before the times that its dirt sets 364 days ahead.
NOW = datetime(2024, 6, 1, tzinfo=UTC)
HEADER = "user_id,track_id,listened_at,plays,skipped"

MakeSpec = Callable[..., Spec]


def listens_of(warehouse: Warehouse) -> pd.DataFrame:
    return warehouse.query("select * from discover_weekly.listens order by all")


def quarantine_of(warehouse: Warehouse, dataset: str = "listens") -> pd.DataFrame:
    return warehouse.query(
        "select * from discover_weekly.quarantined_rows where dataset = ? order by source, row, rule", [dataset]
    )


def write(folder: Path, *lines: str, name: str = "listens.csv", header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def dirty(make_spec: MakeSpec) -> Spec:
    return make_spec(data={"listens": {"dirt": 0.01}})


@pytest.fixture
def from_files(make_spec: MakeSpec, tmp_path: Path) -> Callable[..., Spec]:
    def build(**data: Any) -> Spec:
        listens = {"kind": "files", "path": str(tmp_path / "raw" / "*.csv")}
        periods = data.pop("periods", {})
        return make_spec(base=tmp_path, periods=periods, data={"listens": listens, **data})

    return build


def rows_read(spec: Spec, periods: Sequence[str], warehouse: Warehouse) -> int:
    return sum(len(frame) for frame, _, _ in ingestion.listen_chunks(spec, periods, warehouse))


def test_a_week_ingested_again_alone_or_in_a_range_gives_the_same_bytes(dirty: Spec, warehouse: Warehouse) -> None:
    for week in WEEKS[:3]:
        ingest_listens(dirty, [week], warehouse, now=NOW)
    listens, refused = listens_of(warehouse), quarantine_of(warehouse)
    ingest_listens(dirty, [WEEKS[1]], warehouse, now=NOW)
    pd.testing.assert_frame_equal(listens_of(warehouse), listens)
    pd.testing.assert_frame_equal(quarantine_of(warehouse), refused)
    ingest_listens(dirty, WEEKS[:3], warehouse, now=NOW)
    pd.testing.assert_frame_equal(listens_of(warehouse), listens)
    pd.testing.assert_frame_equal(quarantine_of(warehouse), refused)


def test_the_planted_dirt_is_found_exactly_and_kept_with_the_reason(dirty: Spec, warehouse: Warehouse) -> None:
    report = ingest_listens(dirty, [WEEKS[2]], warehouse, now=NOW)
    planted = sample_world(dirty.data.listens, dirty).planted(2)
    assert min(planted.values()) > 5
    assert report.rules == {
        "unique_event": planted["duplicate"],
        "plays_in_range": planted["negative_plays"],
        "missing": planted["missing_user"],
        "listened_at_not_after_now": planted["future"],
    }
    assert report.duplicates == planted["duplicate"]
    refused = quarantine_of(warehouse).set_index("rule")
    plays = refused.loc["plays_in_range"].iloc[0]
    assert (plays["column"], float(plays["value"]), plays["bound"]) == ("plays", -1.0, "0 to 1e+06")
    assert json.loads(plays["raw"])["plays"] == -1.0
    assert set(refused.loc["missing", "column"]) == {"user_id"}
    assert refused.loc["missing", "value"].isna().all()
    assert refused.loc["listened_at_not_after_now", "period"].isna().all()
    assert refused.loc["listened_at_not_after_now", "bound"].iloc[0] == "until 2024-06-01T00:00:00+00:00"
    copy = json.loads(refused.loc["unique_event", "raw"].iloc[0])
    kept = listens_of(warehouse)
    same = kept[(kept["user_id"] == copy["user_id"]) & (kept["track_id"] == copy["track_id"])]
    assert pd.Timestamp(copy["listened_at"]) in set(same["listened_at"])


def test_accepted_quarantined_and_other_weeks_rows_are_all_that_was_read(dirty: Spec, warehouse: Warehouse) -> None:
    report = ingest_listens(dirty, WEEKS[:2], warehouse, now=NOW)
    read = rows_read(dirty, WEEKS[:2], warehouse)
    assert report.outside == 0
    assert report.accepted_rows + report.quarantined_rows == read
    assert report.accepted_rows == len(listens_of(warehouse))
    assert report.quarantined_rows == len(quarantine_of(warehouse)[["source", "row"]].drop_duplicates())
    assert set(report.accepted) == set(WEEKS[:2])


def test_rows_of_files_are_told_apart_even_if_name_and_number_read_the_same(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    # "part1" row 12 and "part11" row 2 are different rows.
    good = [f"u{n},t1,2024-01-02T10:00:{n:02d}Z,1,0" for n in range(10)]
    write(tmp_path / "raw", *good, "u1,t2,2024-01-02T10:00:00Z,-1,0", name="part1")
    write(tmp_path / "raw", "u1,t3,2024-01-02T10:00:00Z,-1,0", name="part11")
    spec = from_files(listens={"kind": "files", "path": str(tmp_path / "raw" / "part*"), "format": "csv"})
    report = ingest_listens(spec, [WEEKS[0]], warehouse, now=NOW)
    assert quarantine_of(warehouse)["row"].tolist() == [12, 2]
    assert (report.accepted_rows, report.quarantined_rows) == (10, 2)


def test_a_row_that_breaks_two_rules_is_one_quarantined_row(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    write(tmp_path / "raw", ",t1,2024-01-02T10:00:00Z,-1,0", "u1,t1,2024-01-02T10:00:00Z,1,0")
    report = ingest_listens(from_files(), [WEEKS[0]], warehouse, now=NOW)
    assert report.quarantined_rows == 1
    assert report.rules == {"missing": 1, "plays_in_range": 1}
    assert report.worst_period[1] == 0.5


def test_duplicates_are_found_across_chunks_and_files_and_the_first_is_kept(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "raw", "u1,t1,2024-01-02T10:00:00Z,3,0", "u2,t1,2024-01-02T10:00:00Z,1,0", name="a.csv")
    write(tmp_path / "raw", "u3,t1,2024-01-02T10:00:00Z,1,0", "u1,t1,2024-01-02T10:00:00Z,9,0", name="b.csv")
    whole = ingestion.read
    monkeypatch.setattr(ingestion, "read", lambda *args, **named: whole(*args, chunk_rows=1, **named))
    report = ingest_listens(from_files(), [WEEKS[0]], warehouse, now=NOW)
    assert report.duplicates == 1
    assert listens_of(warehouse)["plays"].tolist() == [3.0, 1.0, 1.0]
    (refused,) = quarantine_of(warehouse).to_dict("records")
    assert Path(refused["source"]).name == "b.csv"
    assert (refused["row"], refused["rule"], refused["bound"]) == (
        3,
        "unique_event",
        "one event a user, track and time",
    )


def test_an_empty_week_empties_what_was_there_and_is_no_error(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    write(tmp_path / "raw", "u1,t1,2024-01-02T10:00:00Z,1,0", "u1,t1,2024-01-09T10:00:00Z,1,0")
    ingest_listens(from_files(), WEEKS[:2], warehouse, now=NOW)
    write(tmp_path / "raw", "u1,t1,2024-01-09T10:00:00Z,1,0")
    report = ingest_listens(from_files(), [WEEKS[0]], warehouse, now=NOW)
    assert report.accepted == {WEEKS[0]: 0}
    assert (report.outside, report.quarantined_rows, report.worst_period[1]) == (1, 0, 0.0)
    assert listens_of(warehouse)["period"].astype(str).tolist() == [WEEKS[1]]


def test_a_corrected_file_replaces_its_quarantine(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    write(tmp_path / "raw", "u1,t1,2024-01-02T10:00:00Z,-1,0", "u2,t1,yesterday,1,0", "u3,t1,2031-01-01T00:00:00Z,1,0")
    ingest_listens(from_files(), [WEEKS[0]], warehouse, now=NOW)
    assert quarantine_of(warehouse)["rule"].tolist() == ["plays_in_range", "not_a_time", "listened_at_not_after_now"]
    assert quarantine_of(warehouse)["period"].notna().tolist() == [True, False, False]
    write(tmp_path / "raw", *(f"u{n},t1,2024-01-02T10:00:00Z,1,0" for n in (1, 2, 3)))
    report = ingest_listens(from_files(), [WEEKS[0]], warehouse, now=NOW)
    assert report.accepted_rows == 3
    assert quarantine_of(warehouse).empty


def test_another_week_keeps_the_quarantine_of_this_one(dirty: Spec, warehouse: Warehouse) -> None:
    ingest_listens(dirty, [WEEKS[0]], warehouse, now=NOW)
    first = quarantine_of(warehouse)
    ingest_listens(dirty, [WEEKS[1]], warehouse, now=NOW)
    both = quarantine_of(warehouse)
    pd.testing.assert_frame_equal(both[both["source"].isin(first["source"])].reset_index(drop=True), first)


def test_weeks_begin_at_local_midnight_also_when_clocks_change(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    # Stockholm's clocks went forward on Sunday, 2024-03-31: that week is an hour short, at its end.
    write(
        tmp_path / "raw",
        "u1,sunday_before,2024-03-24T22:59:59Z,1,0",
        "u1,first_second,2024-03-24T23:00:00Z,1,0",
        "u1,last_second,2024-03-31T21:59:59Z,1,0",
        "u1,monday_after,2024-03-31T22:00:00Z,1,0",
    )
    spec = from_files(periods={"timezone": "Europe/Stockholm", "start": "2024-03-18"})
    start, end = window_of(spec, "2024-03-25", "2024-03-25")
    assert (end - start).total_seconds() == (7 * 24 - 1) * 3600
    report = ingest_listens(spec, ["2024-03-25"], warehouse, now=NOW)
    assert report.outside == 2
    assert listens_of(warehouse)["track_id"].tolist() == ["first_second", "last_second"]
    ingest_listens(spec, ["2024-03-18", "2024-03-25", "2024-04-01"], warehouse, now=NOW)
    found = listens_of(warehouse).set_index("track_id")["period"].astype(str).to_dict()
    assert found == {
        "sunday_before": "2024-03-18",
        "first_second": "2024-03-25",
        "last_second": "2024-03-25",
        "monday_after": "2024-04-01",
    }


def test_weeks_of_a_zone_lose_none_of_the_samples_rows(make_spec: MakeSpec, warehouse: Warehouse) -> None:
    spec = make_spec(periods={"timezone": "Europe/Stockholm"}, data={"listens": {"dirt": 0.0}})
    for week in WEEKS[:3]:
        ingest_listens(spec, [week], warehouse, now=NOW)
    world = sample_world(spec.data.listens, spec)
    everything = pd.concat([chunk for week in range(4) for chunk in world.listens(week)])
    _, end = window_of(spec, WEEKS[0], WEEKS[2])
    start, _ = window_of(spec, WEEKS[0], WEEKS[0])
    expected = everything[(everything["listened_at"] >= start) & (everything["listened_at"] < end)]
    assert len(listens_of(warehouse)) == len(expected)


def test_months_of_the_sample_are_cut_at_the_first(make_spec: MakeSpec, warehouse: Warehouse) -> None:
    spec = make_spec(periods={"cadence": "monthly", "start": "2024-01-01"}, data={"listens": {"dirt": 0.0}})
    report = ingest_listens(spec, ["2024-02-01"], warehouse, now=NOW)
    moments = listens_of(warehouse)["listened_at"]
    assert report.accepted_rows == len(moments) > 0
    assert (moments.min().date().isoformat(), moments.max().date().isoformat()) == ("2024-02-01", "2024-02-29")
    tracks, _ = read_tracks(spec, "2024-02-01", warehouse)
    assert len(tracks) == sample_world(spec.data.listens, spec).track_count(8)


def test_listens_without_times_are_one_period_and_one_row_a_user_and_track(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    write(tmp_path / "raw", "u1,t1,5", "u1,t2,7", "u1,t1,6", header="user_id,track_id,plays")
    spec = from_files(timed=False)
    report = ingest_listens(spec, [WEEKS[0]], warehouse, now=NOW)
    found = listens_of(warehouse)
    assert found["plays"].tolist() == [5.0, 7.0]
    assert found["listened_at"].isna().all()
    assert found["period"].astype(str).unique().tolist() == [WEEKS[0]]
    (refused,) = quarantine_of(warehouse).to_dict("records")
    assert (refused["column"], refused["value"], refused["bound"]) == ("track_id", "t1", "one row a user and track")
    assert (report.duplicates, report.quarantined[WEEKS[0]]) == (1, 1)
    assert partitions_of(spec).get_partition_keys() == [WEEKS[0]]


def test_listens_without_times_are_refused_for_a_later_period(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    write(tmp_path / "raw", "u1,t1,5", header="user_id,track_id,plays")
    spec = from_files(timed=False)
    with pytest.raises(UserError, match=f"all of the first period, not of {WEEKS[1]}.*materialize {WEEKS[0]}"):
        ingest_listens(spec, [WEEKS[1]], warehouse, now=NOW)


def test_a_crash_in_the_middle_leaves_the_old_rows(
    dirty: Spec, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest_listens(dirty, [WEEKS[0]], warehouse, now=NOW)
    listens, refused = listens_of(warehouse), quarantine_of(warehouse)

    def broken(*args: Any) -> Iterator[tuple[pd.DataFrame, int, str]]:
        for frame, first_row, where in real(*args):
            yield frame.iloc[: len(frame) // 2], first_row, where
            raise ConnectionResetError("the line went dead")

    real = ingestion.listen_chunks
    monkeypatch.setattr(ingestion, "listen_chunks", broken)
    with pytest.raises(ConnectionResetError):
        ingest_listens(dirty, [WEEKS[0]], warehouse, now=NOW)
    pd.testing.assert_frame_equal(listens_of(warehouse), listens)
    pd.testing.assert_frame_equal(quarantine_of(warehouse), refused)


def test_a_table_of_the_warehouse_itself_can_be_the_source(
    from_files: Callable[..., Spec], warehouse: Warehouse
) -> None:
    raw = pd.DataFrame(
        {
            "user_id": ["u1", "u2", "u3"],
            "track_id": ["t1", "t2", "t3"],
            "listened_at": pd.to_datetime(["2024-01-02", "2024-01-09", None]),
        }
    )
    columns = {"user_id": "varchar", "track_id": "varchar", "listened_at": "timestamp"}
    warehouse.replace("lake.events", columns, [raw])
    spec = from_files(listens={"kind": "table", "table": "lake.events"})
    report = ingest_listens(spec, [WEEKS[0]], warehouse, now=NOW)
    assert listens_of(warehouse)["user_id"].tolist() == ["u1"]
    assert report.rules == {"missing": 1}
    again = ingest_listens(spec, [WEEKS[0]], warehouse, now=NOW)
    assert again.accepted == report.accepted
    assert len(quarantine_of(warehouse)) == 1


def test_without_sources_tracks_and_users_are_those_that_listens_mention(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    write(tmp_path / "raw", "u2,t1,2024-01-02T10:00:00Z,1,0", "u1,t9,2024-01-03T10:00:00Z,1,0")
    spec = from_files()
    ingest_listens(spec, [WEEKS[0]], warehouse, now=NOW)
    tracks, _ = read_tracks(spec, WEEKS[0], warehouse)
    users, _ = read_users(spec, WEEKS[0], warehouse)
    assert tracks["track_id"].tolist() == ["t1", "t9"]
    assert users["user_id"].tolist() == ["u1", "u2"]
    assert users["allow_explicit"].tolist() == [True, True]


def test_tags_of_their_own_table_join_the_tracks_and_broken_ones_are_kept(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    write(tmp_path / "raw", "u1,7,2024-01-02T10:00:00Z,1,0")
    write(tmp_path, "7,rock", "8,", name="tracks.csv", header="track_id,tags")
    pd.DataFrame({"track_id": [7, 7, None], "tags": ["loud", "live", "lost"]}).astype({"track_id": "Int64"}).to_parquet(
        tmp_path / "tags.parquet"
    )
    spec = from_files(
        tracks={"kind": "files", "path": "tracks.csv"}, track_tags={"kind": "files", "path": "tags.parquet"}
    )
    tracks, refused = read_tracks(spec, WEEKS[0], warehouse)
    assert tracks.set_index("track_id")["tags"].to_dict() == {"7": "rock loud live", "8": None}
    assert len(refused) == 1
    assert quarantine_of(warehouse, "track_tags")["rule"].tolist() == ["missing"]
    read_tracks(spec, WEEKS[0], warehouse)
    assert len(quarantine_of(warehouse, "track_tags")) == 1


def test_an_empty_table_of_users_is_no_crash(
    from_files: Callable[..., Spec], tmp_path: Path, warehouse: Warehouse
) -> None:
    write(tmp_path / "raw", "u1,t1,2024-01-02T10:00:00Z,1,0")
    write(tmp_path, name="users.csv", header="user_id,market")
    (tmp_path / "users.csv").write_text("user_id,market\n", encoding="utf-8")
    users, refused = read_users(from_files(users={"kind": "files", "path": "users.csv"}), WEEKS[0], warehouse)
    assert users.empty
    assert refused.empty
