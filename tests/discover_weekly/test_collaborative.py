"""The collaborative model: reproducible, exact when folding in, and honest about what it does not know."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from mlops_assets.discover_weekly.collaborative import (
    CollaborativeModel,
    CollaborativeParams,
    FoldIn,
    fit,
    fold_in,
)
from mlops_assets.discover_weekly.evaluation import ItemItem, Popular, evaluate
from mlops_assets.discover_weekly.interactions import Interactions, from_frame, split_stratified
from mlops_assets.foundation.errors import UserError

SMALL = CollaborativeParams(factors=8, regularization=2.0, alpha=5.0, iterations=5)
TWO_TASTES_SEED = 3


def two_tastes(users: int = 60, tracks: int = 40, plays: int = 12) -> Interactions:
    """Users with even numbers mostly play the first half of the tracks, the others the second."""
    rng = np.random.default_rng(TWO_TASTES_SEED)
    rows = []
    for user in range(users):
        own = np.where(np.arange(tracks) // (tracks // 2) == user % 2, 10.0, 1.0)
        for track in rng.choice(tracks, plays, replace=False, p=own / own.sum()):
            rows.append((f"u{user:03d}", f"t{track:03d}", float(rng.integers(1, 20))))
    return from_frame(pd.DataFrame(rows, columns=["user_id", "track_id", "confidence"]))


@pytest.fixture(scope="module")
def data() -> Interactions:
    return two_tastes()


@pytest.fixture(scope="module")
def model(data: Interactions) -> CollaborativeModel:
    return fit(data, SMALL)


def test_a_second_fit_is_bit_identical_and_another_seed_is_not(data, model):
    again = fit(data, SMALL)
    assert again.item_factors.tobytes() == model.item_factors.tobytes()
    assert again.fingerprint == model.fingerprint
    assert fit(data, replace(SMALL, seed=8)).fingerprint != model.fingerprint


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_number_of_threads_does_not_change_a_bit(model, threads):
    code = (
        "from tests.discover_weekly.test_collaborative import SMALL, two_tastes\n"
        "from mlops_assets.discover_weekly.collaborative import fit\n"
        "print(fit(two_tastes(), SMALL).fingerprint)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, check=True)
    assert done.stdout.decode().strip() == model.fingerprint


def test_tracks_nobody_likes_are_not_in_the_model():
    frame = pd.DataFrame(
        [("a", "t1", 1.0), ("b", "t1", 1.0), ("b", "t2", 0.0)], columns=["user_id", "track_id", "confidence"]
    )
    made = fit(from_frame(frame, track_ids=["t1", "t2", "t3"]), SMALL)
    assert made.track_ids.tolist() == ["t1"]
    assert made.support.tolist() == [2]


def test_nothing_to_learn_from_is_a_clear_error():
    frame = pd.DataFrame([("a", "t1", 0.0)], columns=["user_id", "track_id", "confidence"])
    with pytest.raises(UserError, match="no user likes any track"):
        fit(from_frame(frame), SMALL)


def test_fold_in_solves_the_equations_of_als(model, data):
    weights = data.weights("binary")
    y = model.item_factors.astype(np.float64)
    found = fold_in(model.item_factors, SMALL.regularization, SMALL.alpha, weights)
    for user in (0, 7, 31):
        confidence = np.ones(len(y))
        played = weights[user].indices
        confidence[played] = SMALL.alpha
        left = (y * confidence[:, None]).T @ y + SMALL.regularization * np.eye(SMALL.factors)
        expected = np.linalg.solve(left, (confidence[played, None] * y[played]).sum(axis=0))
        np.testing.assert_allclose(found.vectors[user], expected, rtol=1e-3, atol=1e-5)


def test_a_users_vector_does_not_depend_on_the_batch(model, data):
    fold = FoldIn(model.item_factors, SMALL.regularization, SMALL.alpha)
    weights = data.weights("log")
    whole = fold(weights).vectors
    order = np.random.default_rng(0).permutation(data.n_users)
    assert fold(weights[order]).vectors.tobytes() == whole[order].tobytes()
    assert fold(weights[5:6]).vectors.tobytes() == whole[5:6].tobytes()


def test_users_without_a_usable_track_get_a_zero_vector_and_are_reported(model):
    factors = np.vstack([model.item_factors, np.zeros((1, SMALL.factors), np.float32)])
    weights = csr_matrix((np.ones(2, np.float32), ([0, 2], [0, len(factors) - 1])), shape=(3, len(factors)))
    vectors, usable = fold_in(factors, 2.0, 5.0, weights)
    assert usable.tolist() == [True, False, False]
    assert not vectors[1:].any()


def test_fold_in_takes_read_only_factors_and_leaves_them_alone(model, data):
    locked = model.item_factors.copy()
    locked.setflags(write=False)
    found = fold_in(locked, SMALL.regularization, SMALL.alpha, data.weights("binary"))
    assert found.usable.all()


def test_tracks_that_do_not_count_as_absent_leave_vectors_as_they_were(model, data):
    """A thousand tracks that did not exist yet must not pull users towards zero."""
    weights = data.weights("binary")
    new = np.tile(model.item_factors.mean(axis=0), (1000, 1)).astype(np.float32)
    wide = csr_matrix(
        (weights.data, weights.indices, weights.indptr), shape=(data.n_users, len(model.item_factors) + 1000)
    )
    everything = np.vstack([model.item_factors, new])
    existed = np.arange(len(everything)) < len(model.item_factors)
    alone = fold_in(model.item_factors, 2.0, 5.0, weights).vectors
    assert FoldIn(everything, 2.0, 5.0, absent=existed)(wide).vectors.tobytes() == alone.tobytes()
    assert not np.allclose(fold_in(everything, 2.0, 5.0, wide).vectors, alone, rtol=1e-2)


def test_recommendations_follow_taste_and_leave_out_the_history(model, data):
    lists = model.recommend(data, 3)
    own_half = (lists // 20) == (np.arange(data.n_users) % 2)[:, None]
    assert own_half.mean() > 0.9
    assert not data.matrix[np.repeat(np.arange(data.n_users), 3), lists.ravel()].any()


def test_lists_end_with_minus_one_where_nothing_is_left(model, data):
    lists = model.recommend(data, 40)
    assert (np.sort((lists >= 0).sum(axis=1)) == np.sort(40 - np.diff(data.matrix.indptr))).all()


def test_users_without_a_history_get_no_list(model, data):
    empty = Interactions(csr_matrix((1, data.n_tracks), dtype=np.float32), np.array(["new"]), data.track_ids)
    assert (model.recommend(empty, 3) == -1).all()


def test_save_and_load_give_the_same_model_in_the_same_bytes(model, tmp_path):
    for name in ("a", "b"):
        assert model.save(tmp_path / name) == ["collaborative.npz", "collaborative.json"]
    assert (tmp_path / "a/collaborative.npz").read_bytes() == (tmp_path / "b/collaborative.npz").read_bytes()
    assert CollaborativeModel.load(tmp_path / "a").fingerprint == model.fingerprint


def test_a_damaged_or_pickled_file_is_refused(model, tmp_path):
    model.save(tmp_path)
    path = tmp_path / "collaborative.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot read the arrays"):
        CollaborativeModel.load(tmp_path)
    buffer = io.BytesIO()
    objects = np.array([{}], dtype=object)
    np.savez(buffer, track_ids=objects, item_factors=objects, support=objects)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="cannot read the arrays"):
        CollaborativeModel.load(tmp_path)


def test_files_of_two_models_are_refused(model, tmp_path):
    model.save(tmp_path)
    text = (tmp_path / "collaborative.json").read_text().replace('"factors": 8', '"factors": 9')
    (tmp_path / "collaborative.json").write_text(text)
    with pytest.raises(UserError, match="9 factors"):
        CollaborativeModel.load(tmp_path)


def test_quality_on_real_listening_with_fixed_hyper_parameters():
    """The figures of a tuned model on HetRec Last.fm: above popular and item-item by the interval."""
    root = Path(os.environ.get("MLOPS_ASSETS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = root / "lastfm" / "user_artists.dat"
    if not path.exists():
        pytest.skip("the Last.fm data are not here; set MLOPS_ASSETS_TEST_DATA to their folder")
    plays = pd.read_csv(path, sep="\t")
    split = split_stratified(
        from_frame(
            pd.DataFrame(
                {
                    "user_id": plays["userID"].map("{:06d}".format),
                    "track_id": plays["artistID"].map("{:06d}".format),
                    "confidence": plays["weight"],
                }
            )
        )
    )
    tuned = CollaborativeParams(factors=64, regularization=40.0, alpha=10.0)
    result = evaluate(
        fit(split.train, tuned).recommend, split.train, split.held_out,
        baselines={"popular": Popular(split.train), "item_item": ItemItem(split.train)}, ks=(10,), resamples=200,
    )  # fmt: skip
    assert (result.protocol["users"], result.protocol["held_out_tracks"]) == (1883, 18568)
    assert result.protocol["of_which_nobody_had_played"] == 2333
    assert result.value("candidate", "ndcg", 10).mean > 0.238
    assert result.value("item_item", "ndcg", 10).mean == pytest.approx(0.2171, abs=0.001)  # ties in another order
    assert result.value("popular", "ndcg", 10).mean == pytest.approx(0.0808, abs=0.0005)
    assert result.verdict("item_item") == result.verdict("popular") == "better"
