"""The content model: places new tracks near what they resemble, and says when it cannot."""

import numpy as np
import pandas as pd
import pytest

from mlops_assets.discover_weekly import content
from mlops_assets.discover_weekly.collaborative import CollaborativeModel, CollaborativeParams
from mlops_assets.discover_weekly.content import ContentModel, ContentParams, fit
from mlops_assets.foundation.errors import UserError

GENRES = {"rock": (1.0, 0.0, 0.2), "jazz": (0.0, 1.0, -0.3), "folk": (-0.5, 0.3, 1.0)}


def taste(tracks: int = 90, seed: int = 0) -> tuple[pd.DataFrame, CollaborativeModel]:
    """Tracks whose vectors are their genre's, the artist's own touch, and noise."""
    rng = np.random.default_rng(seed)
    genre = np.array(list(GENRES))[np.arange(tracks) % 3]
    artist = np.arange(tracks) // 6
    touch = rng.normal(0, 0.5, (artist.max() + 1, 3))
    vectors = np.array([GENRES[name] for name in genre]) + touch[artist] + rng.normal(0, 0.05, (tracks, 3))
    frame = pd.DataFrame(
        {
            "track_id": [f"t{number:03d}" for number in range(tracks)],
            "tags": [f"{name} loud{number % 5}" for number, name in enumerate(genre)],
            "lyrics": [f"song about {name} and more" if number % 2 else None for number, name in enumerate(genre)],
            "artist_id": [f"a{number:02d}" for number in artist],
        }
    )
    model = CollaborativeModel(
        frame["track_id"].to_numpy(dtype=np.str_), vectors.astype(np.float32),
        rng.integers(5, 200, tracks).astype(np.int32), CollaborativeParams(factors=3),
    )  # fmt: skip
    return frame, model


@pytest.fixture(scope="module")
def world():
    return taste()


@pytest.fixture(scope="module")
def model(world) -> ContentModel:
    return fit(*world)


def track(**fields: object) -> pd.DataFrame:
    return pd.DataFrame([{"track_id": "new", "tags": None, "lyrics": None, "artist_id": None, **fields}])


def cosine(a: np.ndarray, b: object) -> float:
    other = np.asarray(b, dtype=float)
    return float(a @ other / (np.linalg.norm(a) * np.linalg.norm(other)))


@pytest.mark.parametrize("genre", list(GENRES))
def test_a_new_track_lands_near_its_genre_by_tags_or_by_lyrics_alone(model, genre):
    for fields in ({"tags": genre}, {"lyrics": f"Song ABOUT {genre}"}):
        placed = model.place(track(**fields))
        nearest = max(GENRES, key=lambda name: cosine(placed.vectors[0], GENRES[name]))
        assert placed.known[0]
        assert nearest == genre


def test_a_new_track_of_a_known_artist_lands_near_the_artists_tracks(world, model):
    frame, taste_model = world
    own = taste_model.item_factors[(frame["artist_id"] == "a03").to_numpy()].mean(axis=0)
    by_artist = model.place(track(artist_id="a03"))
    without = model.place(track(tags="rock"))
    both = model.place(track(tags="rock", artist_id="a03"))
    assert by_artist.known[0]
    assert cosine(both.vectors[0] - without.vectors[0], own - taste_model.item_factors.mean(axis=0)) > 0.8


def test_the_artists_share_shrinks_with_few_tracks(world):
    frame, taste_model = world
    loose, firm = (
        fit(frame, taste_model, ContentParams(artist_shrinkage=shrinkage)).artist_vectors for shrinkage in (0.1, 50.0)
    )
    assert np.linalg.norm(firm) < 0.3 * np.linalg.norm(loose)


def test_a_track_without_any_known_text_or_artist_is_not_known(model):
    unknown = pd.concat(
        [track(), track(tags="polka"), track(lyrics="??"), track(artist_id="nobody"), track(tags="")]
    ).assign(track_id=list("abcde"))
    placed = model.place(unknown)
    assert not placed.known.any()
    assert not placed.vectors.any()


def test_placing_does_not_depend_on_the_other_tracks_or_their_order(world, model, monkeypatch):
    frame, _ = world
    whole = model.place(frame)
    order = np.random.default_rng(1).permutation(len(frame))
    assert model.place(frame.iloc[order]).vectors.tobytes() == whole.vectors[order].tobytes()
    monkeypatch.setattr(content, "_PLACED_AT_ONCE", 7)
    assert model.place(frame).vectors.tobytes() == whole.vectors.tobytes()


def test_the_solver_agrees_with_the_normal_equations(world):
    frame, taste_model = world
    params = ContentParams(ridge=(2.0,))
    tags = content._vocabulary(frame, "tags", r"\S+", 1.0, params)
    lyrics = content._vocabulary(frame, "lyrics", r"\w+", 1.0, params)
    x = content._features(frame, tags, lyrics, params)
    weight = taste_model.support / (taste_model.support + 10.0)
    penalty = np.full(x.shape[1], 2.0 * weight.mean())
    penalty[-1] = 1e-6 * weight.sum()
    dense = x.toarray()
    expected = np.linalg.solve(
        (dense * weight[:, None]).T @ dense + np.diag(penalty), dense.T @ (weight[:, None] * taste_model.item_factors)
    )
    found = content._solve(x, taste_model.item_factors.astype(float), weight, 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_tf_idf_agrees_with_scikit_learn(world):
    from sklearn.feature_extraction.text import TfidfVectorizer

    frame, _ = world
    params = ContentParams()
    vocabulary = content._vocabulary(frame, "tags", r"\S+", 1.0, params)
    theirs = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=r"\S+").fit_transform(frame["tags"])
    ours = content._block(frame["tags"], vocabulary, r"\S+")
    np.testing.assert_allclose(ours.toarray(), theirs.toarray(), atol=1e-12)


def test_the_ridge_strength_is_the_one_with_least_error_on_tracks_left_out(model):
    assert model.ridge == model.trials.loc[model.trials["error"].idxmin(), "ridge"]
    assert len(model.trials) == len(ContentParams().ridge)
    assert model.trials["error"].between(0, 1).all()


def test_tags_that_say_nothing_get_the_strongest_ridge(world):
    frame, taste_model = world
    shuffled = frame.assign(tags=np.random.default_rng(0).permutation(frame["tags"]), lyrics=None)
    assert fit(shuffled, taste_model).ridge == max(ContentParams().ridge)


def test_a_weight_of_zero_leaves_a_block_out(world):
    made = fit(*world, ContentParams(lyrics_weight=0.0))
    assert not len(made.lyrics.terms)
    assert not made.place(track(lyrics="song about rock")).known[0]


def test_rare_terms_are_not_features(world):
    frame, taste_model = world
    frame = frame.assign(tags=[f"{tags} only{number}" for number, tags in enumerate(frame["tags"])])
    assert not any(term.startswith("only") for term in fit(frame, taste_model).tags.terms)


def test_without_any_text_artists_still_count(world):
    frame, taste_model = world
    made = fit(frame[["track_id", "artist_id"]], taste_model)
    assert made.place(track(artist_id="a01")).known[0]
    assert not made.place(track(tags="rock")).known[0]


def test_without_text_and_artists_nothing_is_known(world):
    frame, taste_model = world
    assert not fit(frame[["track_id"]], taste_model).place(frame).known.any()


def test_text_without_a_single_term_is_no_text(world):
    frame, taste_model = world
    assert not len(fit(frame.assign(lyrics="?"), taste_model).lyrics.terms)


def test_a_fit_repeats_itself_and_survives_storage(world, model, tmp_path):
    again = fit(*world)
    assert again.coefficients.tobytes() == model.coefficients.tobytes()
    assert model.save(tmp_path / "a") == ["content.npz", "content.json"]
    again.save(tmp_path / "b")
    for name in ("content.npz", "content.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = ContentModel.load(tmp_path / "a")
    frame, taste_model = world
    assert loaded.place(frame).vectors.tobytes() == model.place(frame).vectors.tobytes()
    assert loaded.fitted_to == taste_model.fingerprint
    assert loaded.params == model.params


def test_a_single_strength_is_stored_without_an_error_figure(world, tmp_path):
    made = fit(*world, ContentParams(ridge=(5.0,)))
    made.save(tmp_path)
    loaded = ContentModel.load(tmp_path)
    assert loaded.ridge == 5.0
    assert loaded.trials["error"].isna().all()


def test_files_of_two_models_are_refused(world, model, tmp_path):
    other = fit(*world, ContentParams(lyrics_weight=0.0))
    arrays = {"tags": model.tags.terms, "tags_idf": model.tags.idf, "lyrics": model.lyrics.terms}
    model.save(tmp_path)
    content.save_arrays(
        tmp_path / "content.npz", **arrays, lyrics_idf=model.lyrics.idf, coefficients=other.coefficients,
        artist_ids=model.artist_ids, artist_vectors=model.artist_vectors,
    )  # fmt: skip
    with pytest.raises(UserError, match="differ in length"):
        ContentModel.load(tmp_path)


def test_a_catalogue_that_cannot_be_right_is_refused(world, model):
    frame, taste_model = world
    with pytest.raises(UserError, match="has an id twice"):
        model.place(pd.concat([frame, frame.head(1)]))
    with pytest.raises(UserError, match="no track of the catalogue is in the collaborative model"):
        fit(frame.assign(track_id=frame["track_id"] + "x"), taste_model)
