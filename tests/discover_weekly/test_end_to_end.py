"""Two weeks of the small world, from the sample's listens to published playlists, through the real jobs."""

from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlops_assets.discover_weekly.names import Names
from mlops_assets.discover_weekly.playlists import SOURCES
from mlops_assets.discover_weekly.reading import playlist_of, status_of
from mlops_assets.discover_weekly.rules import RULES
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.publication import Publication, published
from mlops_assets.foundation.registry import ChampionHistory
from tests.conftest import WEEKS, Finished

NAME = "discover_weekly/playlists"
DATA_CHECKS = {
    "listens": {"few_rows_in_quarantine", "listens_match_profile", "listens_have_not_drifted"},
    "interactions": {
        "interactions_match_profile", "interactions_have_not_drifted", "interactions_are_of_known_tracks",
    },
}  # fmt: skip


def publication(finished: Finished, week: str) -> Publication:
    found = published(finished.store.path(), NAME, week)
    assert found is not None
    return found


def rows_of(finished: Finished, week: str) -> pd.DataFrame:
    frame: pd.DataFrame = publication(finished, week).read().to_pandas()
    return frame


def metadata_of(finished: Finished, asset: str, week: str) -> dict[str, Any]:
    records = finished.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(["discover_weekly", asset]), asset_partitions=[week]), limit=1
    ).records
    materialization = records[0].asset_materialization
    assert materialization is not None
    return {name: value.value for name, value in materialization.metadata.items()}


def test_every_check_was_evaluated_in_both_weeks(finished: Finished) -> None:
    expected = {f"discover_weekly/{asset}:{name}" for asset, names in DATA_CHECKS.items() for name in names}
    expected |= {f"discover_weekly/playlists:{rule}" for rule in RULES}
    for told in finished.told[1:]:
        assert expected <= set(told.checks)
        assert not told.failures


def test_only_the_planted_unknown_tracks_are_warned_about(finished: Finished) -> None:
    for told in finished.told[1:]:
        failed = {name for name, passed in told.checks.items() if not passed}
        assert failed == {"discover_weekly/interactions:interactions_are_of_known_tracks"}


@pytest.mark.parametrize(
    ("asset", "numbers"),
    [
        ("listens", ["accepted_rows", "quarantined_rows", "duplicates", "rows_of_other_periods"]),
        ("training_set", ["rows", "train_rows", "inner_rows", "validation_rows", "test_rows"]),
        ("collaborative_model", ["version", "users", "tracks"]),
        ("content_model", ["version", "share_of_tracks_placed"]),
        ("blend_model", ["version", "validation_ndcg", "validation_coverage"]),
        ("evaluation", ["users", "ndcg_at_10", "popular_ndcg_at_10", "coverage_at_10"]),
        ("champion", ["version"]),
        (
            "playlists",
            ["dagster/row_count", "users", "shards_computed", "catalogue_coverage", "model_version", "rows_from_blend"],
        ),
        ("published_playlists", ["dagster/row_count"]),
    ],
)
def test_pages_carry_numbers(finished: Finished, asset: str, numbers: list[str]) -> None:
    for week in finished.weeks:
        shown = metadata_of(finished, asset, week)
        assert {name: type(shown.get(name)) for name in numbers if not isinstance(shown.get(name), int | float)} == {}


def test_every_user_of_the_week_has_a_full_list(finished: Finished) -> None:
    warehouse = finished.resources["warehouse"]
    for week in finished.weeks:
        end = finished.spec.periods.shift(week, 1)
        owed = warehouse.query(
            "select user_id from discover_weekly.stg_users where joined is null or joined < cast(? as date)", [end]
        )
        rows = rows_of(finished, week)
        assert set(rows["user_id"]) == set(owed["user_id"])
        assert set(rows.groupby("user_id").size()) == {finished.spec.playlist.length}


def test_all_rows_carry_where_they_come_from(finished: Finished) -> None:
    runs = dict(zip(finished.weeks, finished.runs[1:], strict=True))
    for week in finished.weeks:
        rows = rows_of(finished, week)
        assert set(rows["period"]) == {week}
        assert set(rows["run_id"]) == {runs[week]}
        assert sorted(rows["rank"].unique()) == list(range(1, 11))
        assert rows["track_id"].str.len().min() > 0
        assert set(rows["source"]) <= set(SOURCES)
        assert (rows["source"].eq("popular") == rows["score"].isna()).all()
        assert set(rows["model_version"]) == {metadata_of(finished, "champion", week)["version"]}


def test_the_second_week_repeats_nothing_of_the_first(finished: Finished) -> None:
    first, second = (rows_of(finished, week)[["user_id", "track_id"]] for week in finished.weeks)
    assert first.merge(second).empty


def test_lists_hold_nothing_their_user_has_ever_heard(finished: Finished) -> None:
    heard = finished.resources["warehouse"].query(
        "select distinct user_id, track_id, period from discover_weekly.interactions"
    )
    for week in finished.weeks:
        known = heard[heard["period"] <= pd.Timestamp(week)]
        assert rows_of(finished, week)[["user_id", "track_id"]].merge(known).empty


def test_lists_are_personal(finished: Finished) -> None:
    rows = rows_of(finished, finished.weeks[1])
    blended = rows[rows["source"].isin(["blend", "fold_in"])]
    assert blended["user_id"].nunique() > 0.8 * rows["user_id"].nunique()
    assert blended.groupby("user_id")["track_id"].agg(tuple).nunique() > 0.9 * blended["user_id"].nunique()


def test_the_champions_history_is_whole_and_rests_on_evidence(finished: Finished) -> None:
    registry = finished.resources["models"].open()
    history = ChampionHistory(finished.instance, "discover_weekly", registry, "discover_weekly.blend_model")
    records = history.records()
    assert [record.number for record in records] == [1, 2]
    assert records[0].verdict == "promoted"
    assert history.verify() == []
    for record in records:
        candidate = registry.get("discover_weekly.blend_model", record.candidate)
        assert record.evidence_sha256 is not None
        assert registry.evidence(candidate, record.evidence_sha256)["gates"]


def test_a_range_of_weeks_is_ingested_in_one_run(finished: Finished) -> None:
    counts = finished.resources["warehouse"].query(
        "select cast(period as varchar) as week, count(*) as n from discover_weekly.interactions group by 1 order by 1"
    )
    assert counts["week"].tolist() == list(WEEKS)
    assert counts["n"].min() > 500
    assert finished.steps[0].count("discover_weekly__listens") == 1


def test_a_playlist_is_read_with_titles(finished: Finished) -> None:
    found = playlist_of(finished.place, "discover_weekly", "u0000001")
    assert found.period == finished.weeks[1]
    assert found.rows["rank"].tolist() == list(range(1, 11))
    assert found.rows["title"].notna().all()
    assert playlist_of(finished.place, "discover_weekly", "u0000001", finished.weeks[0]).period == finished.weeks[0]
    with pytest.raises(UserError, match="'nobody' has no playlist"):
        playlist_of(finished.place, "discover_weekly", "nobody")
    with pytest.raises(UserError, match="published periods: 2024-01-22, 2024-01-29"):
        playlist_of(finished.place, "discover_weekly", "u0000001", WEEKS[0])


def test_the_state_of_the_system_is_told(finished: Finished) -> None:
    state = status_of(finished.place, finished.instance, "discover_weekly")
    assert state.champion.startswith("version ")
    assert state.published.startswith(finished.weeks[1])
    assert len(state.problems) == 1
    assert "interactions_are_of_known_tracks" in state.problems[0]


def test_the_jobs_steps_are_the_assets(finished: Finished) -> None:
    job = finished.defs.resolve_job_def("discover_weekly_refresh")
    keys = set(job.asset_layer.executable_asset_keys)
    names = Names(finished.spec)
    assert {names.key(asset) for asset in ("listens", "interactions", "champion", "published_playlists")} <= keys
    assert job.partitions_def == names.partitions
