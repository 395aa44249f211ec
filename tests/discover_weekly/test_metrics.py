"""Metrics: numbers worked out by hand, and agreement with other packages where definitions agree."""

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array

from mlops_assets.discover_weekly import metrics

# User 0 likes 1, 3 and 4; user 1 likes 0; user 2 has nothing held out.
RELEVANT = csr_matrix(np.array([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=np.float32))
LISTS = np.array([[3, 0, 1], [2, 5, -1], [0, 1, 2]], dtype=np.int32)


def test_accuracy_by_hand():
    found = metrics.accuracy(LISTS, RELEVANT, 3)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert found["precision"][:2].tolist() == [2 / 3, 0]
    assert found["recall"][:2].tolist() == [2 / 3, 0]
    assert found["ndcg"][0] == pytest.approx((1 + 1 / 2) / ideal)
    assert found["map"][0] == pytest.approx((1 + 2 / 3) / 3)
    assert found["hit_rate"][:2].tolist() == [1, 0]


def test_the_ideal_of_a_user_with_fewer_relevant_tracks_than_places():
    one = np.array([[2, 0, 1]], dtype=np.int32)
    found = metrics.accuracy(one, RELEVANT[1:2], 3)
    assert found["ndcg"][0] == pytest.approx(1 / math.log2(3))
    assert found["map"][0] == pytest.approx(1 / 2)
    assert found["recall"][0] == 1
    assert found["precision"][0] == pytest.approx(1 / 3)


def test_map_divides_by_the_places_when_there_are_more_relevant_tracks():
    assert metrics.accuracy(np.array([[3, 0]], dtype=np.int32), RELEVANT[:1], 2)["map"][0] == pytest.approx(1 / 2)


def test_a_user_without_relevant_tracks_is_not_assessed():
    assert all(math.isnan(values[2]) for values in metrics.accuracy(LISTS, RELEVANT, 3).values())


def test_a_short_list_misses_the_places_it_does_not_fill():
    short = metrics.accuracy(np.array([[3]], dtype=np.int32), RELEVANT[:1], 10)
    assert short["precision"][0] == pytest.approx(0.1)
    assert short["recall"][0] == pytest.approx(1 / 3)


def test_a_stored_zero_is_not_relevant():
    zero = csr_matrix((np.array([0.0, 1.0], dtype=np.float32), ([0, 0], [0, 1])), shape=(1, 3))
    found = metrics.accuracy(np.array([[0, 1]], dtype=np.int32), zero, 2)
    assert found["recall"][0] == 1
    assert found["precision"][0] == 0.5


def random_lists(seed: int = 0, users: int = 60, tracks: int = 80, k: int = 10) -> tuple[np.ndarray, csr_matrix]:
    rng = np.random.default_rng(seed)
    lists = np.array([rng.choice(tracks, k, replace=False) for _ in range(users)], dtype=np.int32)
    relevant = csr_matrix(random_array((users, tracks), density=0.1, rng=rng) > 0, dtype=np.float32)
    return lists, relevant


def test_agreement_with_implicit_on_ndcg_map_and_its_pooled_precision():
    from implicit.evaluation import ranking_metrics_at_k

    class Fixed:
        """Recommends the given lists, in the shape that implicit asks for."""

        def recommend(self, ids, *_args, **_kwargs):
            return lists[ids], np.zeros((len(ids), lists.shape[1]))

    lists, relevant = random_lists()
    theirs = ranking_metrics_at_k(Fixed(), csr_matrix(relevant.shape), relevant, K=10, show_progress=False)
    judged = np.diff(relevant.indptr) > 0
    ours = {name: values[judged] for name, values in metrics.accuracy(lists, relevant, 10).items()}
    assert theirs["ndcg"] == pytest.approx(ours["ndcg"].mean())
    assert theirs["map"] == pytest.approx(ours["map"].mean())
    pooled = (ours["precision"] * 10).sum() / np.minimum(10, np.diff(relevant.indptr)).sum()
    assert theirs["precision"] == pytest.approx(pooled)


def test_agreement_with_scikit_learn_on_ndcg():
    from sklearn.metrics import ndcg_score

    lists, relevant = random_lists(1)
    scores = np.zeros(relevant.shape)
    np.put_along_axis(scores, lists, np.arange(10, 0, -1.0)[None, :], axis=1)
    ours = metrics.accuracy(lists, relevant, 10)["ndcg"]
    for user in np.flatnonzero(np.diff(relevant.indptr)):
        assert ours[user] == pytest.approx(
            ndcg_score(relevant[[user]].toarray(), scores[[user]], k=10, ignore_ties=True)
        )


def test_coverage_and_exposure_count_each_track_once_a_list():
    assert metrics.exposure(LISTS, 6).tolist() == [2, 2, 2, 1, 0, 1]
    assert metrics.coverage(LISTS, 6) == pytest.approx(5 / 6)
    assert math.isnan(metrics.coverage(LISTS[:0], 0))


@pytest.mark.parametrize(("counts", "expected"), [([3, 3, 3], 0), ([0, 0, 6], 2 / 3), ([1, 3], 0.25)])
def test_gini(counts, expected):
    assert metrics.gini(np.array(counts)) == pytest.approx(expected)


def test_gini_of_nothing_is_not_assessed():
    assert math.isnan(metrics.gini(np.zeros(3, dtype=int)))
    assert math.isnan(metrics.gini(np.array([], dtype=int)))


def test_novelty_is_self_information_in_bits():
    support = np.array([8, 4, 1, 0, 2, 2])
    lists = np.array([[0, 1], [2, -1], [3, -1], [-1, -1]], dtype=np.int32)
    found = metrics.novelty(lists, support, 8)
    assert found[:3].tolist() == [0.5, 3.0, 3.0]  # unplayed counts as one listener
    assert math.isnan(found[3])
    assert metrics.mean_popularity(lists, support)[:3].tolist() == [6, 1, 0]
    assert metrics.cold_share(lists, support)[:3].tolist() == [0, 0, 1]


def test_diversity_by_hand_for_dense_and_sparse_vectors():
    vectors = np.array([[1, 0], [0, 2], [3, 0], [0, 0], [1, 1], [0, 0]], dtype=float)
    lists = np.array([[0, 1, -1], [0, 2, 3], [0, 1, 4], [0, 3, 5]], dtype=np.int32)
    half = 1 / math.sqrt(2)
    expected = [1, 0, 1 - (0 + half + half) / 3]
    for given in (vectors, csr_matrix(vectors)):
        found = metrics.intra_list_diversity(lists, given)
        np.testing.assert_allclose(found[:3], expected, atol=1e-12)
        assert math.isnan(found[3])  # a single track with a vector has no pair


def test_artists():
    artists = np.array([0, 0, 1, 2, -1, 2])
    lists = np.array([[0, 1, 2], [3, 4, -1]], dtype=np.int32)
    assert metrics.artists_per_list(lists, artists).tolist() == [2, 1]
    assert metrics.artist_exposure(lists, artists).tolist() == [2, 1, 1]


def test_repeats_are_shares_of_the_list():
    previous = csr_matrix(np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]))
    assert metrics.repeats(LISTS, previous).tolist() == [2 / 3, 1 / 2, 0]


def test_the_bootstrap_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(2, 1, 2000)
    mean, low, high = metrics.bootstrap(values, seed=1)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(2000), rel=0.1)
    assert metrics.bootstrap(values, seed=1) == (mean, low, high)


def test_the_bootstrap_leaves_out_who_was_not_assessed():
    assert metrics.bootstrap(np.array([1.0, np.nan, 1.0])) == (1, 1, 1)
    assert all(math.isnan(value) for value in metrics.bootstrap(np.array([np.nan])))


def test_pairing_sees_a_difference_that_single_intervals_hide():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 500)
    better = base + 0.05 + rng.normal(0, 0.05, 500)
    assert metrics.bootstrap(better).low < metrics.bootstrap(base).high
    assert metrics.paired_bootstrap(better, base).low > 0
    with pytest.raises(ValueError, match="same users"):
        metrics.paired_bootstrap(base, base[1:])
