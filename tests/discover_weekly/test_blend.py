"""The blend: its formula, its choice of settings, and that parts which do not belong together are refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from mlops_assets.discover_weekly import collaborative, content
from mlops_assets.discover_weekly.blend import COLLABORATIVE_ONLY, BlendModel, BlendParams, choose, grid
from mlops_assets.discover_weekly.collaborative import CollaborativeParams
from mlops_assets.discover_weekly.evaluation import evaluate
from mlops_assets.discover_weekly.interactions import Interactions, from_frame, split_stratified
from mlops_assets.foundation.errors import UserError

PARAMS = CollaborativeParams(factors=6, regularization=2.0, alpha=5.0, iterations=5)
BLEND = BlendParams(content_weight=0.5, missing_weight=1.0, half_support=4.0, popularity_penalty=0.3)
GENRES, TRACKS, NEW = 4, 80, 8


def listening(users: int = 120) -> tuple[Interactions, pd.DataFrame]:
    """Users of one genre each; the last tracks of the catalogue are new, and one of them has no tags."""
    rng = np.random.default_rng(1)
    popularity = 1 / (1 + np.arange(TRACKS) // GENRES)
    popularity[-NEW:] = 0
    rows = []
    for user in range(users):
        own = popularity * np.where(np.arange(TRACKS) % GENRES == user % GENRES, 8, 1)
        for track in rng.choice(TRACKS, 10, replace=False, p=own / own.sum()):
            rows.append((f"u{user:03d}", f"t{track:03d}", 1.0))
    ids = [f"t{track:03d}" for track in range(TRACKS)]
    tags = [f"genre{track % GENRES} x{track % 7}" for track in range(TRACKS)]
    tags[-1] = None  # type: ignore[call-overload]
    tracks = pd.DataFrame({"track_id": ids, "tags": tags})
    return from_frame(pd.DataFrame(rows, columns=["user_id", "track_id", "confidence"]), track_ids=ids), tracks


@pytest.fixture(scope="module")
def world():
    return listening()


@pytest.fixture(scope="module")
def parts(world):
    data, tracks = world
    taste = collaborative.fit(data, PARAMS)
    return taste, content.fit(tracks, taste)


@pytest.fixture(scope="module")
def model(parts) -> BlendModel:
    return BlendModel(*parts, BLEND, {"collaborative": "v3", "content": "v2"})


def test_vectors_and_bias_follow_the_formula(world, model):
    data, tracks = world
    placed = model.place(tracks)
    v, n = model.collaborative.on_catalogue(data.track_ids)
    c, known = model.content.place(tracks)
    share = np.where(known, 0.5 + 4.0 / (n + 4.0), 0)
    np.testing.assert_allclose(placed.vectors, v + share[:, None] * c, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(placed.bias, -np.log1p(n), rtol=1e-6)
    assert np.array_equal(placed.cold, n == 0)


def test_the_penalty_is_in_standard_deviations_of_the_users_scores(world, model):
    data, tracks = world
    placed = model.place(tracks)
    users = model.user_vectors(data.matrix, placed)
    spread = (users.vectors @ placed.vectors[placed.placed].T).std(axis=1)
    np.testing.assert_allclose(users.bias_weight, 0.3 * spread, rtol=1e-4)


def test_new_tracks_with_tags_are_placed_and_one_with_nothing_is_not(world, model):
    _, tracks = world
    vectors, _, placed = model.item_vectors(tracks)
    assert placed.tolist() == [True] * (TRACKS - 1) + [False]
    assert not vectors[-1].any()


def test_new_tracks_are_recommended_to_those_who_like_their_genre(world, model):
    data, tracks = world
    lists = model.scorer(tracks)(data, 5)
    users, places = np.nonzero(lists >= TRACKS - NEW)
    assert len(users) > 20
    own = lists[users, places] % GENRES == users % GENRES
    assert own.mean() > 0.6
    assert (lists != TRACKS - 1).all()


def test_a_history_of_new_tracks_only_counts(world, model):
    _, tracks = world
    placed = model.place(tracks)
    history = csr_matrix((np.ones(2, np.float32), ([0, 1], [TRACKS - 4, TRACKS - 1])), shape=(2, TRACKS))
    users = model.user_vectors(history, placed)
    assert users.usable.tolist() == [True, False]  # the second is of a track without a vector
    same_genre = placed.vectors[:-NEW] @ users.vectors[0]
    by_genre = [same_genre[np.arange(TRACKS - NEW) % GENRES == genre].mean() for genre in range(GENRES)]
    assert int(np.argmax(by_genre)) == (TRACKS - 4) % GENRES


def test_users_without_usable_history_get_no_list(world, model):
    data, tracks = world
    history = csr_matrix((np.zeros(1, np.float32), ([0], [0])), shape=(1, TRACKS))
    lists = model.scorer(tracks)(Interactions(history, np.array(["new"]), data.track_ids), 3)
    assert (lists == -1).all()


def test_a_users_scores_do_not_depend_on_the_batch(world, model):
    data, tracks = world
    placed = model.place(tracks)
    whole = model.user_vectors(data.matrix, placed)
    for rows in (np.arange(5, 6), np.arange(17), np.arange(data.n_users)[::-1]):
        part = model.user_vectors(data.matrix[rows], placed)
        assert part.vectors.tobytes() == whole.vectors[rows].tobytes()
        assert part.bias_weight.tobytes() == whole.bias_weight[rows].tobytes()


def test_without_content_and_penalty_it_is_the_collaborative_model(world, parts):
    data, tracks = world
    lists = BlendModel(*parts, COLLABORATIVE_ONLY).scorer(tracks)(data, 10)
    assert np.array_equal(lists, parts[0].recommend(data, 10))


def test_a_stronger_penalty_recommends_less_popular_tracks(world, parts):
    data, tracks = world
    popularity = []
    for penalty in (0.0, 0.5, 1.0):
        params = replace(BLEND, popularity_penalty=penalty)
        lists = BlendModel(*parts, params).scorer(tracks)(data, 10)
        popularity.append(data.support()[lists].mean())
    assert popularity[0] > popularity[1] > popularity[2]


def test_a_catalogue_without_a_description_is_placed_by_its_listeners(world, parts):
    data, tracks = world
    lists = BlendModel(*parts, BLEND).scorer(tracks.head(0))(data, 5)
    assert (data.support()[lists] > 0).all()


def test_parts_of_different_spaces_are_refused(world, parts):
    data, _ = world
    other = collaborative.fit(data, replace(PARAMS, seed=9))
    with pytest.raises(UserError, match="do not share a space"):
        BlendModel(other, parts[1], BLEND)


def test_a_stored_blend_serves_by_itself_and_gives_the_same_lists(world, model, tmp_path):
    data, tracks = world
    files = model.save(tmp_path)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    loaded = BlendModel.load(tmp_path)
    assert np.array_equal(loaded.scorer(tracks)(data, 10), model.scorer(tracks)(data, 10))
    assert loaded.parts == {"collaborative": "v3", "content": "v2"}
    assert loaded.params == BLEND


def test_a_folder_with_a_part_of_another_version_is_refused(world, model, tmp_path):
    data, tracks = world
    model.save(tmp_path)
    other = collaborative.fit(data, replace(PARAMS, seed=9))
    other.save(tmp_path)
    with pytest.raises(UserError, match="do not share a space"):
        BlendModel.load(tmp_path)
    content.fit(tracks, other).save(tmp_path)  # now the parts agree with each other, but not with the blend
    with pytest.raises(UserError, match="the blend was made of"):
        BlendModel.load(tmp_path)


def test_the_grid_has_no_two_settings_that_do_the_same():
    settings = grid()
    assert len(settings) == len(set(settings)) == 3 * (2 + 1) * 5
    assert all(one.half_support == 1.0 for one in settings if one.missing_weight == 0)


@pytest.fixture(scope="module")
def chosen(world):
    data, tracks = world
    split = split_stratified(data, seed=2)
    taste = collaborative.fit(split.train, PARAMS)
    text = content.fit(tracks, taste)
    return choose(taste, text, split, tracks, k=5), taste, text, split


def test_the_choice_is_the_widest_of_the_accurate_enough(chosen):
    choice, *_ = chosen
    table = choice.table
    floor = max(table["ndcg"].iloc[0], table["ndcg"].max() * 0.99)
    assert (table["eligible"] == (table["ndcg"] >= floor)).all()
    best = table[table["eligible"]]["coverage"].max()
    row = table[(table[["content_weight", "missing_weight", "half_support", "popularity_penalty"]]
                 == [*vars(choice.params).values()]).all(axis=1)].iloc[0]  # fmt: skip
    assert row["coverage"] == best
    assert row["eligible"]


def test_trials_measure_what_the_evaluation_measures(world, chosen):
    _, tracks = world
    choice, taste, text, split = chosen
    scorer = BlendModel(taste, text, choice.params).scorer(tracks)
    result = evaluate(
        scorer, split.train, split.held_out, baselines={}, champion=taste.recommend, ks=(5,), resamples=10
    )
    row = choice.table[choice.table["eligible"]].sort_values("coverage").iloc[-1]
    assert result.value("candidate", "coverage", 5).mean == pytest.approx(row["coverage"])
    assert result.value("champion", "ndcg", 5).mean == pytest.approx(choice.table["ndcg"].iloc[0])


def test_harmful_settings_lose_against_the_collaborative_model_alone(world, chosen):
    _, tracks = world
    _, taste, text, split = chosen
    told = []
    harmful = BlendParams(content_weight=-50.0, missing_weight=0.0)
    choice = choose(taste, text, split, tracks, settings=[harmful], k=5, progress=told.append)
    assert choice.params == COLLABORATIVE_ONLY
    assert len(told) == 2


def test_nothing_held_out_is_a_clear_error(world, chosen):
    _, tracks = world
    _, taste, text, split = chosen
    nothing = split.held_out.rows(np.arange(split.train.n_users))
    nothing.matrix.data[:] = 0
    with pytest.raises(UserError, match="nothing is held out"):
        choose(taste, text, split._replace(held_out=nothing), tracks)
