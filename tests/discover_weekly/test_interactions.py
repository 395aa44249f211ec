"""Interactions: what a frame becomes, and that splits neither lose nor leak a pair."""

import numpy as np
import pandas as pd
import pytest

from mlops_assets.discover_weekly.interactions import (
    Interactions,
    contains,
    from_frame,
    positions,
    split_stratified,
    split_time,
)
from mlops_assets.foundation.errors import UserError

PLAYS = pd.DataFrame(
    [
        ("bo", "t3", 2.0),
        ("al", "t1", 4.0),  # not in order of user or track
        ("bo", "t1", 0.0),  # heard, but only skipped
        ("al", "t2", 0.5),
    ],
    columns=["user_id", "track_id", "confidence"],
)


def pairs(interactions: Interactions) -> set[tuple[str, str, float]]:
    coo = interactions.matrix.tocoo()
    return {
        (str(interactions.user_ids[r]), str(interactions.track_ids[c]), float(v))
        for r, c, v in zip(coo.row, coo.col, coo.data, strict=True)
    }


def many(users: int = 40, tracks: int = 60, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    chosen = [
        (f"u{user:03d}", f"t{track:03d}", float(rng.integers(1, 9)))
        for user in range(users)
        for track in rng.choice(tracks, size=rng.integers(1, 25), replace=False)
    ]
    return from_frame(pd.DataFrame(chosen, columns=["user_id", "track_id", "confidence"]))


def test_ids_ascend_and_every_row_of_the_frame_is_in_the_matrix():
    made = from_frame(PLAYS)
    assert made.user_ids.tolist() == ["al", "bo"]
    assert made.track_ids.tolist() == ["t1", "t2", "t3"]
    assert pairs(made) == {("al", "t1", 4.0), ("al", "t2", 0.5), ("bo", "t1", 0.0), ("bo", "t3", 2.0)}
    assert made.matrix.dtype == np.float32
    assert made.matrix.has_sorted_indices


def test_a_track_that_was_only_skipped_is_known_but_not_liked():
    made = from_frame(PLAYS)
    assert made.support().tolist() == [1, 1, 1]
    assert made.positives().nnz == 3
    assert contains(made.matrix, np.array([1]), np.array([0])).all()


def test_weightings_count_positive_confidences_only():
    made = from_frame(PLAYS)
    assert made.weights("binary").toarray().tolist() == [[1, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(made.weights("log").toarray()[0, :2], np.log1p([4.0, 0.5]), rtol=1e-6)
    assert made.weights("linear").toarray()[0].tolist() == [4.0, 0.5, 0.0]
    with pytest.raises(UserError, match="unknown weighting 'square'"):
        made.weights("square")  # type: ignore[arg-type]


def test_the_catalogue_can_hold_tracks_and_users_without_plays():
    made = from_frame(PLAYS, track_ids=["t9", "t1", "t2", "t3"], user_ids=["cy", "bo", "al"])
    assert made.matrix.shape == (3, 4)
    assert made.support().tolist() == [1, 1, 1, 0]
    assert np.diff(made.matrix.indptr).tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="confidence"), "columns .'confidence'. are missing"),
        (lambda f: f.assign(confidence=[1.0, -1.0, 1.0, 1.0]), "user 'al' and track 't1'"),
        (lambda f: f.assign(confidence=[1.0, 1.0, np.nan, 1.0]), "user 'bo' and track 't1'"),
        (lambda f: f.assign(confidence=[1.0, np.inf, 1.0, 1.0]), "1 confidences are missing, infinite"),
        (lambda f: pd.concat([f, f.head(1)]), "user 'bo' and track 't3'"),
        (lambda f: f.assign(track_id=["t1", None, "t2", "t3"]), "1 rows have no track_id"),
    ],
)
def test_a_frame_that_cannot_be_right_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        from_frame(change(PLAYS))


def test_an_id_outside_the_given_catalogue_is_refused():
    with pytest.raises(UserError, match="'t3'"):
        from_frame(PLAYS, track_ids=["t1", "t2"])


def test_an_empty_frame_gives_an_empty_matrix():
    made = from_frame(PLAYS.head(0))
    assert made.matrix.shape == (0, 0)
    assert made.support().tolist() == []


def test_another_catalogue_keeps_every_pair():
    made = from_frame(PLAYS)
    moved = made.on_catalogue(np.array(["a0", "t1", "t2", "t3", "t4"]))
    assert pairs(moved) == pairs(made)
    assert moved.matrix.shape == (2, 5)
    with pytest.raises(UserError, match="the first is 't3'"):
        made.on_catalogue(np.array(["t1", "t2"]))
    with pytest.raises(UserError, match="ascending"):
        made.on_catalogue(np.array(["t2", "t1", "t3"]))


def test_positions_finds_ids_and_marks_what_is_not_there():
    assert positions(np.array(["b", "z", "a", "aa"]), np.array(["a", "b", "c"])).tolist() == [1, -1, 0, -1]
    assert positions(np.array(["b"]), np.array([], dtype=np.str_)).tolist() == [-1]


def test_a_stratified_split_deals_out_every_pair_once_by_each_users_share():
    whole = many()
    train, held_out, left_out = split_stratified(whole, share=0.2, seed=1)
    assert pairs(train) | pairs(held_out) == pairs(whole)
    assert not pairs(train) & pairs(held_out)
    assert left_out == {}
    n = np.diff(whole.matrix.indptr)
    assert np.array_equal(np.diff(train.matrix.indptr), np.maximum(np.round(0.8 * n), 1))


def test_at_least_one_track_stays_for_training_and_skipped_ones_always_do():
    made = from_frame(PLAYS)
    train, held_out, _ = split_stratified(made, share=0.99)
    assert np.diff(train.matrix.indptr).tolist() == [1, 2]
    assert (held_out.matrix.data > 0).all()


def test_users_below_the_minimum_keep_all_their_tracks():
    whole = many()
    _, held_out, _ = split_stratified(whole, share=0.5, min_items=10)
    few = np.diff(whole.matrix.indptr) < 10
    assert few.any()
    assert (np.diff(held_out.matrix.indptr)[few] == 0).all()
    assert (np.diff(held_out.matrix.indptr)[~few] > 0).all()


def test_a_split_is_the_same_for_the_same_seed_only():
    whole = many()
    first, again, other = (split_stratified(whole, seed=seed).held_out for seed in (3, 3, 4))
    assert pairs(first) == pairs(again)
    assert pairs(first) != pairs(other)


def test_the_stratified_order_is_that_of_the_published_protocol():
    """Sorted by user and a uniform draw a row, the legacy generator: written out the long way."""
    whole = many(users=6)
    coo = whole.matrix.tocoo()
    frame = pd.DataFrame({"user": coo.row, "track": coo.col, "draw": np.random.RandomState(42).rand(coo.nnz)})
    frame = frame.sort_values(["user", "draw"])
    count = frame.groupby("user")["user"].transform("count")
    expected = frame[frame.groupby("user").cumcount() + 1 > round(0.8 * count)]
    held = split_stratified(whole).held_out.matrix.tocoo()
    assert set(zip(held.row, held.col, strict=True)) == set(zip(expected["user"], expected["track"], strict=True))


def test_a_share_outside_zero_to_one_is_refused():
    with pytest.raises(UserError, match=r"share of 1\.0"):
        split_stratified(many(), share=1.0)


def test_a_time_split_holds_out_only_new_likes_of_known_users_and_counts_the_rest():
    later = pd.DataFrame(
        [
            ("al", "t1", 1.0),  # known already
            ("al", "t9", 3.0),  # new to the user, and to everybody
            ("al", "t3", 0.0),  # new, but skipped
            ("bo", "t1", 2.0),  # was heard before, though skipped
            ("cy", "t1", 1.0),  # unknown user
        ],
        columns=["user_id", "track_id", "confidence"],
    )
    train, held_out, left_out = split_time(PLAYS, later)
    assert pairs(held_out) == {("al", "t9", 3.0)}
    assert pairs(train) == pairs(from_frame(PLAYS))
    assert train.track_ids.tolist() == held_out.track_ids.tolist() == ["t1", "t2", "t3", "t9"]
    assert left_out == {
        "user unknown in the earlier period": 1,
        "not new to the user": 2,
        "new but not liked": 1,
    }
