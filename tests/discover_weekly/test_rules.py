"""Every rule is broken on purpose, found, named by its culprit, and blamed on nothing else."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from mlops_assets.discover_weekly.rules import RULES, Findings, judge
from mlops_assets.discover_weekly.spec import PlaylistRules

RELEASED_BEFORE = "2024-02-05"
LIMITS = PlaylistRules(length=3, per_artist=1)
# Six plain tracks of six artists; the others are each forbidden to somebody, and the last has no artist.
TRACKS = pd.DataFrame(
    [
        *[(f"t{n}", f"a{n}", False, None, None) for n in range(1, 7)],
        ("explicit", "a7", True, None, None),
        ("swedish", "a8", False, None, "SE|NO"),
        ("unreleased", "a9", False, "2024-02-05", None),
        ("sunday", "a10", False, "2024-02-04", None),
        ("again1", "a1", False, None, None),
        ("nobody1", None, False, None, None),
        ("nobody2", None, False, None, None),
    ],
    columns=["track_id", "artist_id", "explicit", "released", "markets"],
)
USERS = pd.DataFrame(
    {
        "user_id": ["u1", "u2"],
        "market": [None, "SE"],
        "allow_explicit": [False, True],
        "tracks": [["t6"], []],
    }
)


def good_rows() -> pd.DataFrame:
    lists = {"u1": ["t1", "t2", "t3"], "u2": ["t4", "explicit", "swedish"]}
    rows = [(user, rank, track, "blend") for user, ids in lists.items() for rank, track in enumerate(ids, start=1)]
    return pd.DataFrame(rows, columns=["user_id", "rank", "track_id", "source"])


def judged(rows: pd.DataFrame, earlier: pd.DataFrame | None = None, **over: Any) -> Findings:
    before = pd.DataFrame({"user_id": ["u1", "u2"], "track_id": ["t5", "t1"]}) if earlier is None else earlier
    users, tracks = over.get("users", USERS), over.get("tracks", TRACKS)
    return judge(iter([(users, rows, before)]), tracks, LIMITS, released_before=RELEASED_BEFORE)


def swapped(rank: int, track: str, *, user: str = "u1") -> pd.DataFrame:
    rows = good_rows()
    rows.loc[(rows["user_id"] == user) & (rows["rank"] == rank), "track_id"] = track
    return rows


def without(user: str) -> pd.DataFrame:
    rows = good_rows()
    return rows[rows["user_id"] != user].reset_index(drop=True)


def with_source(user: str, source: str) -> pd.DataFrame:
    rows = good_rows()
    return rows.assign(source=rows["source"].where(rows["user_id"] != user, source))


def with_rows(*more: tuple[str, int, str, str]) -> pd.DataFrame:
    return pd.concat([good_rows(), pd.DataFrame(list(more), columns=good_rows().columns)], ignore_index=True)


def test_lists_that_keep_all_rules_break_none() -> None:
    findings = judged(good_rows())
    assert findings.broken == dict.fromkeys(RULES, 0)
    assert not any(findings.examples.values())
    assert (findings.users, findings.served, findings.rows, findings.sources) == (2, 2, 6, {"blend": 6})


@pytest.mark.parametrize(
    ("rule", "rows", "example"),
    [
        pytest.param("every_user_has_a_playlist", without("u2"), "u2 has none", id="nobody is left out"),
        pytest.param(
            "every_user_has_a_playlist",
            with_rows(*[("u9", n, f"t{n}", "blend") for n in (1, 2, 3)]),
            "u9 is not owed one",
            id="nobody is served who is not owed one",
        ),
        pytest.param("every_user_has_a_playlist", swapped(2, "t1"), "u1 has a row twice", id="no track twice"),
        pytest.param("no_track_the_user_knows", swapped(2, "t6"), "u1: t6", id="known"),
        pytest.param("no_repeats_of_last_weeks", swapped(2, "t5"), "u1: t5", id="repeated"),
        pytest.param("artist_cap", swapped(2, "again1"), "u1 has 2 of a1", id="one artist too often"),
        pytest.param("only_allowed_tracks", swapped(2, "no such"), "u1: no such", id="not in the catalogue"),
        pytest.param("only_allowed_tracks", swapped(2, "unreleased"), "u1: unreleased", id="not out yet"),
        pytest.param("only_allowed_tracks", swapped(2, "explicit"), "u1: explicit", id="explicit in spite of a filter"),
        pytest.param("only_allowed_tracks", swapped(2, "swedish"), "u1: swedish", id="not in this market"),
        pytest.param("list_length", good_rows().drop(index=2), "u1 has 2 tracks", id="too short"),
        pytest.param("list_length", with_rows(("u2", 4, "t3", "blend")), "u2 has 4 tracks", id="too long"),
        pytest.param(
            "list_length",
            good_rows().replace({"rank": {3: 4}}),
            "u1 has ranks that do not count from 1 on",
            id="a rank left out",
        ),
        pytest.param("every_list_is_new", with_source("u2", "last_week"), "u2 has last period's", id="issued again"),
    ],
)
def test_a_broken_rule_is_found_and_only_that_one(rule: str, rows: pd.DataFrame, example: str) -> None:
    findings = judged(rows)
    assert {name for name, count in findings.broken.items() if count} <= {rule} | (
        # Two equal tracks are also two of their artist.
        {"artist_cap"} if "row twice" in example else set()
    )
    assert findings.broken[rule] >= 1
    assert findings.examples[rule][0] == example


def test_the_same_rank_twice_is_found() -> None:
    rows = good_rows()
    rows.loc[1, "rank"] = 1
    findings = judged(rows)
    assert findings.examples["every_user_has_a_playlist"] == ["u1 has a row twice"]


def test_the_last_day_of_the_week_counts_as_released() -> None:
    assert not judged(swapped(2, "sunday")).broken["only_allowed_tracks"]


def test_tracks_without_an_artist_are_not_capped() -> None:
    rows = swapped(2, "nobody1")
    rows.loc[2, "track_id"] = "nobody2"
    assert judged(rows).broken == dict.fromkeys(RULES, 0)


def test_a_list_issued_again_may_repeat_and_be_known_but_nothing_else() -> None:
    rows = swapped(1, "t6").replace({"track_id": {"t2": "t5", "t3": "explicit"}})
    findings = judged(rows.assign(source="last_week"))
    assert findings.broken == {
        **dict.fromkeys(RULES, 0),
        "every_list_is_new": 2,
        "only_allowed_tracks": 1,
    }
    assert findings.examples["only_allowed_tracks"] == ["u1: explicit"]


def test_all_culprits_are_counted_and_five_are_named() -> None:
    users = pd.DataFrame(
        {"user_id": [f"u{n}" for n in range(8)], "market": None, "allow_explicit": True, "tracks": [[]] * 8}
    )
    findings = judged(good_rows().iloc[:0], users=users)
    assert findings.broken["every_user_has_a_playlist"] == 8
    assert findings.examples["every_user_has_a_playlist"] == [f"u{n} has none" for n in range(5)]


def test_counts_add_up_over_shards() -> None:
    def shards() -> Any:
        for user in ("u1", "u2"):
            rows = good_rows()
            yield (
                USERS[USERS["user_id"] == user],
                rows[rows["user_id"] == user],
                pd.DataFrame({"user_id": [], "track_id": []}, dtype=object),
            )

    findings = judge(shards(), TRACKS, LIMITS, released_before=RELEASED_BEFORE)
    assert (findings.users, findings.served, findings.rows) == (2, 2, 6)
    assert findings.coverage(len(TRACKS)) == pytest.approx(6 / 13)


def test_an_empty_catalogue_makes_every_row_wrong() -> None:
    findings = judged(good_rows(), tracks=TRACKS.iloc[:0])
    assert findings.broken["only_allowed_tracks"] == 6
    assert Findings().coverage(0) == 0.0


@pytest.mark.parametrize("make", [lambda: USERS.iloc[:0]])
def test_a_shard_of_nobody_breaks_nothing(make: Callable[[], pd.DataFrame]) -> None:
    assert judged(good_rows().iloc[:0], users=make()).broken == dict.fromkeys(RULES, 0)
