"""Evaluation: baselines against their definition, a fair protocol, and evidence that can be stored."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from mlops_assets.discover_weekly import evaluation
from mlops_assets.discover_weekly.evaluation import Evaluation, ItemItem, Popular, evaluate, top_n
from mlops_assets.discover_weekly.interactions import Interactions, from_frame, split_stratified
from mlops_assets.foundation.errors import UserError


def world(users: int = 50, tracks: int = 30, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, tracks + 1)
    rows = [
        (f"u{user:02d}", f"t{track:02d}", float(rng.integers(1, 9)))
        for user in range(users)
        for track in rng.choice(tracks, 8, replace=False, p=popularity / popularity.sum())
    ]
    return from_frame(pd.DataFrame(rows, columns=["user_id", "track_id", "confidence"]))


@pytest.fixture(scope="module")
def split():
    return split_stratified(world())


def oracle(split):
    """Recommend exactly what was held out, then nothing."""
    held = split.held_out

    def recommend(histories: Interactions, n: int) -> np.ndarray:
        lists = np.full((histories.n_users, n), -1, dtype=np.int32)
        for row, user in enumerate(histories.user_ids):
            liked = held.matrix[np.flatnonzero(held.user_ids == user)[0]].indices[:n]
            lists[row, : len(liked)] = liked
        return lists

    return recommend


def test_popular_is_by_listeners_then_by_id_without_the_history(split):
    lists = Popular(split.train)(split.train, 4)
    support = split.train.support()
    for user in range(split.train.n_users):
        own = set(split.train.matrix[user].indices)
        order = [int(track) for track in np.lexsort((np.arange(len(support)), -support)) if track not in own]
        assert lists[user].tolist() == order[:4]


def test_item_item_is_weights_times_truncated_cosine(split, monkeypatch):
    monkeypatch.setattr(evaluation, "_TRACKS_AT_ONCE", 7)
    monkeypatch.setattr(evaluation, "_SCORES_AT_ONCE", 100)
    weights = np.log1p(split.train.matrix.toarray().astype(float))
    norms = np.linalg.norm(weights, axis=0)
    cosine = weights.T @ weights / np.where(norms > 0, np.outer(norms, norms), 1)
    kept = np.zeros_like(cosine)
    for track, row in enumerate(cosine):
        best = np.lexsort((np.arange(len(row)), -row))[:6]
        kept[track, best] = row[best]
    scores = weights @ kept
    scores[weights > 0] = 0
    lists = ItemItem(split.train, neighbours=6)(split.train, 5)
    for user, row in enumerate(scores):
        found = lists[user][lists[user] >= 0]
        np.testing.assert_allclose(row[found], np.sort(row[row > 0])[::-1][:5], atol=1e-9)


def test_item_item_lists_only_tracks_with_something_in_common():
    frame = pd.DataFrame(
        [("a", "t1", 1.0), ("a", "t2", 1.0), ("b", "t1", 1.0), ("c", "t3", 1.0)],
        columns=["user_id", "track_id", "confidence"],
    )
    made = from_frame(frame)
    assert ItemItem(made)(made, 2).tolist() == [[-1, -1], [1, -1], [-1, -1]]


def test_item_item_breaks_ties_by_track_id():
    scores = np.array([[1.0, 3, 1, 1, 0, 3], [0, 0, 0, 0, 0, 2]])
    assert evaluation._best_of(scores, 3).tolist() == [[1, 5, 0], [5, -1, -1]]
    assert evaluation._best_of(scores, 8)[0].tolist() == [1, 5, 0, 2, 3, -1, -1, -1]


def test_top_n_ranks_placed_tracks_by_product_and_bias():
    items = np.array([[1, 0], [0, 1], [1, 1], [9, 9]], dtype=np.float32)
    users = np.array([[1, 0], [0, 1]], dtype=np.float32)
    exclude = csr_matrix((np.ones(1), ([0], [0])), shape=(2, 4))
    placed = np.array([True, True, True, False])
    assert top_n(items, users, 3, exclude, placed=placed).tolist() == [[2, 1, -1], [1, 2, 0]]
    bias = np.array([0, 0, -1, 0], dtype=np.float32)
    weight = np.array([0, 1], dtype=np.float32)
    found = top_n(items, users, 3, exclude, placed=placed, item_bias=bias, bias_weight=weight)
    assert found.tolist() == [[2, 1, -1], [1, 0, 2]]


def test_an_oracle_is_perfect_and_better_than_both_baselines(split):
    result = evaluate(oracle(split), split.train, split.held_out, ks=(2, 5), resamples=200)
    for metric in ("ndcg", "map", "recall", "hit_rate"):
        assert result.value("candidate", metric, 5).mean == pytest.approx(1)
    assert result.verdict("popular", "ndcg", 5) == result.verdict("item_item", "ndcg", 5) == "better"
    assert result.protocol["contestants"] == ["candidate", "popular", "item_item"]


def test_a_candidate_that_is_the_champion_is_no_better(split):
    popular = Popular(split.train)
    result = evaluate(popular, split.train, split.held_out, baselines={}, champion=popular, ks=(5,), resamples=100)
    assert result.difference("champion", "ndcg", 5) == (0, 0, 0)
    assert result.verdict("champion", k=5) == "no difference"
    assert evaluate(
        popular, split.train, split.held_out, baselines={}, champion=oracle(split), ks=(5,), resamples=100
    ).verdict("champion", k=5) == "worse"  # fmt: skip


def test_only_users_with_held_out_tracks_are_judged(split):
    keep = np.zeros(split.train.n_users, dtype=bool)
    keep[::3] = True
    held = split.held_out.rows(np.arange(split.train.n_users))
    held.matrix.data[~np.repeat(keep, np.diff(held.matrix.indptr))] = 0
    seen = []

    def spy(histories: Interactions, n: int) -> np.ndarray:
        seen.append(histories.user_ids.tolist())
        return Popular(split.train)(histories, n)

    result = evaluate(spy, split.train, held, baselines={}, ks=(3,), resamples=10)
    assert result.protocol["users"] == keep.sum()
    assert seen == [split.train.user_ids[keep].tolist()]


def test_everything_beyond_accuracy_is_measured_where_it_can_be(split):
    tracks = pd.DataFrame(
        {
            "track_id": split.train.track_ids,
            "artist_id": [f"a{number % 5}" for number in range(split.train.n_tracks)],
            "tags": [f"genre{number % 3} mood{number % 4}" for number in range(split.train.n_tracks)],
        }
    )
    previous = csr_matrix(np.ones(split.train.matrix.shape, dtype=np.float32))
    result = evaluate(
        Popular(split.train), split.train, split.held_out,
        baselines={}, tracks=tracks, previous=previous, ks=(5,), resamples=10,
    )  # fmt: skip
    assert result.value("candidate", "repeats", 5).mean == 1
    assert result.value("candidate", "cold_share", 5).mean == 0
    assert 0 < result.value("candidate", "intra_list_diversity", 5).mean <= 1
    assert 1 < result.value("candidate", "artists_per_list", 5).mean <= 5
    assert 0 <= result.value("candidate", "artist_gini", 5).mean < 1
    assert result.value("candidate", "full_lists", 5).mean == 1
    plain = evaluate(Popular(split.train), split.train, split.held_out, baselines={}, ks=(5,), resamples=10)
    with pytest.raises(UserError, match="nothing was measured"):
        plain.value("candidate", "repeats", 5)


def test_evidence_survives_json(split):
    result = evaluate(Popular(split.train), split.train, split.held_out, ks=(3,), resamples=20)
    stored = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    back = Evaluation.from_dict(stored)
    pd.testing.assert_frame_equal(back.table, result.table)
    pd.testing.assert_frame_equal(back.differences, result.differences)
    assert back.protocol == result.protocol


def test_an_evaluation_without_other_contestants_can_be_stored_too(split):
    result = evaluate(Popular(split.train), split.train, split.held_out, baselines={}, ks=(3,), resamples=20)
    assert Evaluation.from_dict(json.loads(json.dumps(result.to_dict()))).differences.empty


def test_an_evaluation_repeats_itself(split):
    first, again = (evaluate(Popular(split.train), split.train, split.held_out, ks=(3,), resamples=20) for _ in "ab")
    assert first.to_dict() == again.to_dict()


def test_a_contestant_that_lists_what_the_user_has_is_caught(split):
    def cheat(histories: Interactions, n: int) -> np.ndarray:
        return np.tile(np.arange(n, dtype=np.int32), (histories.n_users, 1))

    with pytest.raises(UserError, match="in the user's history"):
        evaluate(cheat, split.train, split.held_out, baselines={}, ks=(5,))


def test_parts_that_do_not_fit_are_refused(split):
    with pytest.raises(UserError, match="different users or another catalogue"):
        evaluate(Popular(split.train), split.train, world(users=20))
    nothing = split.held_out.rows(np.arange(split.train.n_users))
    nothing.matrix.data[:] = 0
    with pytest.raises(UserError, match="no user has a held-out track"):
        evaluate(Popular(split.train), split.train, nothing)


@pytest.mark.parametrize("baseline", [Popular, ItemItem])
def test_a_baseline_of_another_catalogue_is_refused(split, baseline):
    wider = split.train.on_catalogue(np.append(split.train.track_ids, "z"))
    with pytest.raises(UserError, match="another catalogue"):
        baseline(split.train)(wider, 3)
