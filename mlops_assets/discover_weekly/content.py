"""From tags, lyrics and artist to a place in the collaborative space: new tracks and new artists get one too.

What belongs here: text features, the map from them to item factors, and the artist's share. What does not: plays of
users (`collaborative.py`), and how much the result counts (`blend.py`).

Model: TF-IDF features x of tags and lyrics, a ridge regression B from them to the item factors v, weighted by how well
these are known, and for each artist the shrunk mean of what text does not explain about the artist's known tracks:
c = B'x + r_artist. All arrays are plain numbers and strings, so that a stored model outlives library versions.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.discover_weekly.collaborative import CollaborativeModel, Vectors, load_arrays, save_arrays
from mlops_assets.discover_weekly.interactions import Ids, positions
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath, read_bytes, write_atomic

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ARRAYS_FILE, PARAMS_FILE = "content.npz", "content.json"
_TAG, _WORD = r"\S+", r"(?u)\b\w\w+\b"
_FOLDS = 5
_ITERATIONS, _TOLERANCE, _ROUGH = 200, 1e-5, 1e-3
_PLACED_AT_ONCE = 50_000


@dataclass(frozen=True)
class ContentParams:
    """Hyper-parameters of the content model.

    Parameters
    ----------
    ridge
        Strengths to choose from, in units of the mean weight of a track; one value is taken as it is.
    min_df
        Tags and words in fewer tracks than this are not features.
    max_features
        Most frequent tags, and most frequent words, that become features.
    tags_weight, lyrics_weight
        Scale of each block of features: 0 leaves it out, a larger one is penalised less.
    half_support
        Listeners at which a track's factors get half of the full weight n / (n + half_support).
    artist_shrinkage
        Well-known tracks after which an artist's own share counts half.
    seed
        Seed of the folds that choose the ridge strength.
    """

    ridge: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    min_df: int = 2
    max_features: int = 50_000
    tags_weight: float = 1.0
    lyrics_weight: float = 0.7
    half_support: float = 10.0
    artist_shrinkage: float = 1.0
    seed: int = 7


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ascending terms of one block of features, and their inverse document frequencies, float64."""

    terms: Ids
    idf: NDArray[np.float64]


class Placed(NamedTuple):
    """Vectors of tracks, float32 (tracks, factors), and which of them are known: the others are zero."""

    vectors: Vectors
    known: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ContentModel:
    """The map from a track's description to the space of one collaborative model.

    Parameters
    ----------
    tags, lyrics
        Vocabularies of the two blocks.
    coefficients
        float32 (tags + lyrics + 1, factors); the last row belongs to a constant.
    artist_ids, artist_vectors
        Ascending ids, and float32 (artists, factors): what an artist's tracks have beyond their text.
    ridge
        The strength that was chosen.
    fitted_to
        Fingerprint of the collaborative model whose space this is.
    trials
        One row a strength tried: ridge, error (share of the factors' weighted variance left unexplained on tracks that
        the fit had not seen).
    """

    tags: Vocabulary
    lyrics: Vocabulary
    coefficients: Vectors
    artist_ids: Ids
    artist_vectors: Vectors
    ridge: float
    fitted_to: str
    params: ContentParams
    trials: pd.DataFrame = field(repr=False)

    def place(self, tracks: pd.DataFrame) -> Placed:
        """Place any tracks, played or not.

        Parameters
        ----------
        tracks
            track_id and, where there are any, tags, lyrics and artist_id.

        Returns
        -------
        Placed
            A track without a known tag or word and without a known artist is not known and has a zero vector.
        """
        _check_tracks(tracks)
        vectors = np.zeros((len(tracks), self.coefficients.shape[1]), dtype=np.float32)
        known = np.zeros(len(tracks), dtype=bool)
        for start in range(0, len(tracks), _PLACED_AT_ONCE):
            part = slice(start, start + _PLACED_AT_ONCE)
            rows = tracks.iloc[part]
            features = _features(rows, self.tags, self.lyrics, self.params)
            artist = positions(_artists(rows), self.artist_ids)
            placed = features @ self.coefficients.astype(np.float64)
            placed[artist >= 0] += self.artist_vectors[artist[artist >= 0]]
            known[part] = (np.diff(features.indptr) > 1) | (artist >= 0)
            vectors[part] = np.where(known[part, None], placed, 0)
        return Placed(vectors, known)

    def save(self, folder: AnyPath) -> list[str]:
        """Write the model's files, npz without pickle and JSON, and return their names."""
        save_arrays(
            folder / ARRAYS_FILE,
            tags=self.tags.terms, tags_idf=self.tags.idf, lyrics=self.lyrics.terms, lyrics_idf=self.lyrics.idf,
            coefficients=self.coefficients, artist_ids=self.artist_ids, artist_vectors=self.artist_vectors,
        )  # fmt: skip
        facts = {
            "params": asdict(self.params),
            "ridge": self.ridge,
            "fitted_to": self.fitted_to,
            "trials": self.trials.to_dict("list"),
        }
        write_atomic(folder / PARAMS_FILE, json.dumps(facts, indent=1, sort_keys=True).encode())
        return [ARRAYS_FILE, PARAMS_FILE]

    @classmethod
    def load(cls, folder: AnyPath) -> "ContentModel":
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        UserError
            A file is missing, or the files do not fit together.
        """
        names = ("tags", "tags_idf", "lyrics", "lyrics_idf", "coefficients", "artist_ids", "artist_vectors")
        arrays = load_arrays(folder / ARRAYS_FILE, names)
        facts = json.loads(read_bytes(folder / PARAMS_FILE))
        params = ContentParams(**(facts["params"] | {"ridge": tuple(facts["params"]["ridge"])}))
        if len(arrays["coefficients"]) != len(arrays["tags"]) + len(arrays["lyrics"]) + 1:
            raise UserError(
                "the vocabulary and the coefficients differ in length",
                where=str(folder),
                remedy="the files are of different models; load the version again from its registry.",
            )
        return cls(
            Vocabulary(arrays["tags"], arrays["tags_idf"]), Vocabulary(arrays["lyrics"], arrays["lyrics_idf"]),
            arrays["coefficients"], arrays["artist_ids"], arrays["artist_vectors"], facts["ridge"],
            facts["fitted_to"], params, pd.DataFrame(facts["trials"]),
        )  # fmt: skip


def fit(tracks: pd.DataFrame, collaborative: CollaborativeModel, params: ContentParams | None = None) -> ContentModel:
    """Learn where the collaborative model puts tracks with such tags, words and artists.

    The ridge strength is the one with the least error on tracks left out of the fit, in five folds; no plays are used
    beyond the factors and supports of the collaborative model. Deterministic.

    Parameters
    ----------
    tracks
        The catalogue: track_id and, where there are any, tags, lyrics (strings or missing) and artist_id.

    Raises
    ------
    UserError
        The column track_id is missing or not unique, or none of the catalogue's tracks is in the collaborative model.
    """
    params = params or ContentParams()
    _check_tracks(tracks)
    tags = _vocabulary(tracks, "tags", _TAG, params.tags_weight, params)
    lyrics = _vocabulary(tracks, "lyrics", _WORD, params.lyrics_weight, params)
    factors, support = collaborative.on_catalogue(tracks["track_id"].to_numpy(dtype=np.str_))
    trained = np.flatnonzero(support)
    if not len(trained):
        raise UserError(
            "no track of the catalogue is in the collaborative model",
            where="tracks.track_id",
            remedy="use the same ids in listens and tracks, and train the collaborative model on this catalogue.",
        )
    features = _features(tracks.iloc[trained], tags, lyrics, params)
    target = factors[trained].astype(np.float64)
    weight = support[trained] / (support[trained] + params.half_support)
    text = np.diff(features.indptr) > 1
    fitted = text if text.any() else np.ones(len(trained), dtype=bool)
    trials = _try_ridges(features[fitted], target[fitted], weight[fitted], params)
    ridge = float(trials["ridge"].iloc[int(trials["error"].argmin())]) if len(trials) > 1 else params.ridge[0]
    coefficients = _solve(features[fitted], target[fitted], weight[fitted], ridge)
    residual = target - features @ coefficients
    artist_ids, artist_vectors = _artist_shares(_artists(tracks.iloc[trained]), residual, weight, params)
    return ContentModel(
        tags, lyrics, coefficients.astype(np.float32), artist_ids, artist_vectors, ridge,
        collaborative.fingerprint, params, trials,
    )  # fmt: skip


def _check_tracks(tracks: pd.DataFrame) -> None:
    if "track_id" not in tracks.columns or not tracks["track_id"].is_unique or tracks["track_id"].isna().any():
        raise UserError(
            "the column track_id is missing, incomplete or has an id twice",
            where="tracks.track_id",
            remedy="give one row a track, each with its id.",
        )


def _texts(tracks: pd.DataFrame, column: str) -> "pd.Series[str]":
    if column not in tracks.columns:
        return pd.Series("", index=tracks.index)
    return tracks[column].fillna("").astype(str)


def _artists(tracks: pd.DataFrame) -> Ids:
    """Artist ids as strings; empty where missing, which no artist is called."""
    return _texts(tracks, "artist_id").to_numpy(dtype=np.str_)


def _vocabulary(tracks: pd.DataFrame, column: str, pattern: str, weight: float, params: ContentParams) -> Vocabulary:
    """Terms of a column with idf = ln((1 + documents) / (1 + documents with the term)) + 1."""
    from sklearn.feature_extraction.text import CountVectorizer

    nothing = Vocabulary(np.array([], dtype="<U1"), np.array([], dtype=np.float64))
    texts = _texts(tracks, column)
    texts = texts[texts.str.strip() != ""]
    if weight == 0 or texts.empty:
        return nothing
    counter = CountVectorizer(token_pattern=pattern, min_df=1, max_features=params.max_features)
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # scikit-learn's way to say that no text has a term
        return nothing
    documents = np.bincount(counts.indices, minlength=counts.shape[1])
    frequent = documents >= params.min_df
    idf = np.log((1 + len(texts)) / (1 + documents[frequent])) + 1
    return Vocabulary(counter.get_feature_names_out()[frequent].astype(np.str_), idf)


def _features(tracks: pd.DataFrame, tags: Vocabulary, lyrics: Vocabulary, params: ContentParams) -> "csr_matrix":
    """TF-IDF of both blocks (1 + ln(count), rows of length 1 times the block's weight) and a last column of ones."""
    from scipy.sparse import csr_matrix, hstack

    blocks = [
        _block(_texts(tracks, "tags"), tags, _TAG) * params.tags_weight,
        _block(_texts(tracks, "lyrics"), lyrics, _WORD) * params.lyrics_weight,
        csr_matrix(np.ones((len(tracks), 1))),
    ]
    return hstack(blocks, format="csr")


def _block(texts: "pd.Series[str]", vocabulary: Vocabulary, pattern: str) -> "csr_matrix":
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    if not len(vocabulary.terms):
        return csr_matrix((len(texts), 0))
    counter = CountVectorizer(token_pattern=pattern, vocabulary=vocabulary.terms.tolist(), dtype=np.float64)
    counts = counter.transform(texts).tocsr()
    counts.data = (1 + np.log(counts.data)) * vocabulary.idf[counts.indices]
    return normalize(counts, copy=False)


def _solve(
    features: "csr_matrix",
    target: NDArray[np.float64],
    weight: NDArray[np.float64],
    ridge: float,
    tolerance: float = _TOLERANCE,
) -> NDArray[np.float64]:
    """Weighted ridge regression by preconditioned conjugate gradients, all factors at once; shape (features, factors).

    Minimises sum(weight * |target - features @ B|^2) + ridge * mean(weight) * |B without its last row|^2. Needs the
    features only in products, so memory is that of the sparse matrix and a few times the result.
    """
    transposed = features.T.tocsr()
    penalty = np.full(features.shape[1], ridge * weight.mean())
    penalty[-1] = 1e-6 * weight.sum()  # the constant is the mean track: shrinking it would only bias

    def times(b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(transposed @ (weight[:, None] * (features @ b)) + penalty[:, None] * b)

    diagonal = np.asarray(transposed.power(2) @ weight) + penalty
    return _conjugate_gradients(times, transposed @ (weight[:, None] * target), diagonal, tolerance)


def _conjugate_gradients(
    times: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    right: NDArray[np.float64],
    diagonal: NDArray[np.float64],
    tolerance: float,
) -> NDArray[np.float64]:
    solution = np.zeros_like(right)
    rest = right.copy()
    preconditioned = rest / diagonal[:, None]
    direction = preconditioned.copy()
    size = (rest * preconditioned).sum(axis=0)
    enough = size * tolerance**2
    for _ in range(_ITERATIONS):
        if (size <= enough).all():
            break
        product = times(direction)
        curve = (direction * product).sum(axis=0)
        step = np.divide(size, curve, out=np.zeros_like(size), where=curve > 0)
        solution += step * direction
        rest -= step * product
        preconditioned = rest / diagonal[:, None]
        new_size = (rest * preconditioned).sum(axis=0)
        direction = preconditioned + np.divide(new_size, size, out=np.zeros_like(size), where=size > 0) * direction
        size = new_size
    return solution


def _try_ridges(
    features: "csr_matrix", target: NDArray[np.float64], weight: NDArray[np.float64], params: ContentParams
) -> pd.DataFrame:
    """Weighted error of each strength on tracks left out of the fit, as a share of the variance."""
    if len(params.ridge) == 1 or len(weight) < _FOLDS:
        return pd.DataFrame({"ridge": list(params.ridge[:1]), "error": [float("nan")]})
    fold = np.random.default_rng(params.seed).permutation(len(weight)) % _FOLDS
    mean = np.average(target, axis=0, weights=weight)
    variance = (weight[:, None] * (target - mean) ** 2).sum()
    rows: list[dict[str, Any]] = []
    for ridge in params.ridge:
        left = 0.0
        for number in range(_FOLDS):
            kept, out = fold != number, fold == number
            missed = target[out] - features[out] @ _solve(features[kept], target[kept], weight[kept], ridge, _ROUGH)
            left += float((weight[out, None] * missed**2).sum())
        rows.append({"ridge": float(ridge), "error": left / variance if variance > 0 else 0.0})
    return pd.DataFrame(rows)


def _artist_shares(
    artists: Ids, residual: NDArray[np.float64], weight: NDArray[np.float64], params: ContentParams
) -> tuple[Ids, Vectors]:
    """Weighted mean of what text leaves unexplained of each artist's tracks, shrunk towards nothing."""
    named = artists != ""
    ids, codes = np.unique(artists[named], return_inverse=True)
    total = np.zeros((len(ids), residual.shape[1]))
    np.add.at(total, codes, weight[named, None] * residual[named])
    mass = np.bincount(codes, weights=weight[named], minlength=len(ids))
    return ids, (total / (mass + params.artist_shrinkage)[:, None]).astype(np.float32)
