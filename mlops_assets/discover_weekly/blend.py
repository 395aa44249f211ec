"""The scorer behind the playlists: one vector a track from both models, and a brake on popularity.

What belongs here: how the parts are put together, and how the settings are chosen. What does not: training the parts,
and the rules that a playlist obeys (`playlists.py`).

With n the listeners of a track, v its collaborative and c its content vector:

    e = v + (content_weight + missing_weight * h / (n + h)) c,   h = half_support
    score(u, i) = u . e_i - popularity_penalty * sd_u * ln(1 + n_i)

ALS shrinks v towards zero where n is small, so c is added, not averaged in; the second term fills what a new track
lacks. u folds the user's whole history in against the vectors e, so tracks that were new at training time count too.
sd_u is the standard deviation of u's scores over the placed tracks, sqrt(u' Cov(e) u): the penalty then means the same
for everybody, whatever the length of the history. The score is an inner product plus a product of two scalars, which
is the form of the exact search in `topn.py`.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.discover_weekly.collaborative import CollaborativeModel, FoldIn, Vectors, single_threaded_blas
from mlops_assets.discover_weekly.content import ContentModel
from mlops_assets.discover_weekly.evaluation import Scorer, top_n
from mlops_assets.discover_weekly.interactions import Interactions, Split, weighted
from mlops_assets.discover_weekly.metrics import accuracy, bootstrap, coverage
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath, read_bytes, write_atomic

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PARAMS_FILE = "blend.json"


@dataclass(frozen=True)
class BlendParams:
    """Settings of the blend; see the module for the formula.

    Parameters
    ----------
    content_weight
        What the content vector of every track counts.
    missing_weight
        What it counts in addition for a track without listeners; half of it at ``half_support`` listeners.
    half_support
        Listeners, above 0.
    popularity_penalty
        Loss, in standard deviations of the user's scores, for e times the listeners.
    """

    content_weight: float = 1.0
    missing_weight: float = 1.0
    half_support: float = 4.0
    popularity_penalty: float = 0.0


COLLABORATIVE_ONLY = BlendParams(content_weight=0.0, missing_weight=0.0, popularity_penalty=0.0)


class BlendUsers(NamedTuple):
    """Users as the search takes them.

    ``vectors`` float32 (users, factors); ``bias_weight`` float32 (users,); ``usable`` tells who has a vector at all.
    """

    vectors: Vectors
    bias_weight: NDArray[np.float32]
    usable: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PlacedTracks:
    """A catalogue as the search takes it.

    Parameters
    ----------
    vectors
        float32 (tracks, factors), zero where not placed.
    bias
        float32 (tracks,): -ln(1 + listeners).
    placed
        Tracks that can be recommended: they have listeners or a known description.
    cold
        Tracks without listeners in the training data.
    covariance
        float64 (factors, factors), of the vectors of the placed tracks.
    fold
        Folds histories on this catalogue in.
    """

    vectors: Vectors
    bias: NDArray[np.float32]
    placed: NDArray[np.bool_]
    cold: NDArray[np.bool_]
    covariance: NDArray[np.float64] = field(repr=False)
    fold: FoldIn = field(repr=False)


@dataclass(frozen=True, eq=False)
class BlendModel:
    """Both parts and the settings of their blend.

    Parameters
    ----------
    parts
        What the parts are called elsewhere, such as ``{"collaborative": "v12", "content": "v7"}``; kept as given.

    Raises
    ------
    UserError
        The content model maps into the space of another collaborative model.
    """

    collaborative: CollaborativeModel
    content: ContentModel
    params: BlendParams
    parts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.content.fitted_to != self.collaborative.fingerprint:
            raise UserError(
                f"the content model was fitted to the collaborative model {self.content.fitted_to[:12]}, not to "
                f"{self.collaborative.fingerprint[:12]}: their vectors do not share a space",
                where="blend model",
                remedy="fit the content model again on this collaborative model.",
            )

    def place(self, tracks: pd.DataFrame) -> PlacedTracks:
        """Lay a catalogue out for the search, in the order of ``tracks`` (columns as for the content model)."""
        factors, support = self.collaborative.on_catalogue(tracks["track_id"].to_numpy(dtype=np.str_))
        content, known = self.content.place(tracks)
        return self._combined(factors, support, content, known)

    def item_vectors(self, tracks: pd.DataFrame) -> tuple[Vectors, NDArray[np.float32], NDArray[np.bool_]]:
        """Return vectors, bias and placed mask of a catalogue; see :class:`PlacedTracks`."""
        tracks_placed = self.place(tracks)
        return tracks_placed.vectors, tracks_placed.bias, tracks_placed.placed

    def user_vectors(self, history: "csr_matrix", tracks: PlacedTracks) -> BlendUsers:
        """Fold users in.

        Parameters
        ----------
        history
            CSR (users, tracks) of confidences on the placed catalogue; stored zeros do not count.
        """
        vectors, usable = tracks.fold(weighted(history, self.collaborative.params.weighting))
        # Not a matrix product: BLAS rounds a row differently depending on how many there are.
        spread = (np.einsum("uf,fg->ug", vectors, tracks.covariance) * vectors).sum(axis=1)
        weight = self.params.popularity_penalty * np.sqrt(np.maximum(spread, 0))
        return BlendUsers(vectors, weight.astype(np.float32), usable)

    def scorer(self, tracks: pd.DataFrame) -> Scorer:
        """Return the contestant for :func:`~mlops_assets.discover_weekly.evaluation.evaluate`.

        ``tracks`` describes the catalogue; a track of the histories that it lacks is placed by its listeners alone.
        """

        def recommend(histories: Interactions, n: int) -> NDArray[np.int32]:
            described = tracks.set_index("track_id").reindex(histories.track_ids)
            return self._ranked(self.place(described.rename_axis("track_id").reset_index()), histories, n)

        return recommend

    def save(self, folder: AnyPath) -> list[str]:
        """Write blend and parts into one folder, so that it serves by itself, and return the names of the files."""
        files = [*self.collaborative.save(folder), *self.content.save(folder), PARAMS_FILE]
        facts = {
            "params": asdict(self.params),
            "collaborative": self.collaborative.fingerprint,
            "parts": dict(self.parts),
        }
        write_atomic(folder / PARAMS_FILE, json.dumps(facts, indent=1, sort_keys=True).encode())
        return files

    @classmethod
    def load(cls, folder: AnyPath) -> "BlendModel":
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        UserError
            A file is missing, or the parts are not those that the blend was made of.
        """
        facts = json.loads(read_bytes(folder / PARAMS_FILE))
        model = cls(
            CollaborativeModel.load(folder), ContentModel.load(folder), BlendParams(**facts["params"]), facts["parts"]
        )
        if model.collaborative.fingerprint != facts["collaborative"]:
            raise UserError(
                f"the blend was made of the collaborative model {facts['collaborative'][:12]}, the folder holds "
                f"{model.collaborative.fingerprint[:12]}",
                where=str(folder),
                remedy="load the version again from its registry.",
            )
        return model

    def _combined(
        self, factors: Vectors, support: NDArray[np.int32], content: Vectors, known: NDArray[np.bool_]
    ) -> PlacedTracks:
        params, trained = self.params, self.collaborative.params
        missing = params.half_support / (support + params.half_support)
        share = np.where(known, params.content_weight + params.missing_weight * missing, 0.0).astype(np.float32)
        vectors = factors + share[:, None] * content
        placed = (support > 0) | (share > 0)
        among = vectors[placed].astype(np.float64)
        with single_threaded_blas():
            covariance = among.T @ among / max(len(among), 1)
        mean = among.sum(axis=0) / max(len(among), 1)
        return PlacedTracks(
            vectors=vectors,
            bias=-np.log1p(support).astype(np.float32),
            placed=placed,
            cold=support == 0,
            covariance=covariance - np.outer(mean, mean),
            # Not having played what did not exist yet says nothing, so only tracks with listeners count as absent.
            fold=FoldIn(vectors, trained.regularization, trained.alpha, absent=support > 0),
        )

    def _ranked(self, tracks: PlacedTracks, histories: Interactions, n: int) -> NDArray[np.int32]:
        users = self.user_vectors(histories.matrix, tracks)
        lists = top_n(
            tracks.vectors, users.vectors, n, histories.matrix,
            placed=tracks.placed, item_bias=tracks.bias, bias_weight=users.bias_weight,
        )  # fmt: skip
        lists[~users.usable] = -1
        return lists


@dataclass(frozen=True, eq=False)
class Choice:
    """Outcome of :func:`choose`.

    ``table`` has one row a setting: its fields, ndcg, low, high, coverage, and ``eligible`` (accurate enough); the
    first row is the collaborative model alone.
    """

    params: BlendParams
    table: pd.DataFrame = field(repr=False)


def grid(
    content_weight: Sequence[float] = (0.3, 0.6, 1.0),
    missing_weight: Sequence[float] = (0.0, 1.0),
    half_support: Sequence[float] = (1.0, 4.0),
    popularity_penalty: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
) -> list[BlendParams]:
    """Return all combinations, those that differ only in a ``half_support`` without effect once."""
    return [
        BlendParams(content, missing, half, penalty)
        for content, missing, half, penalty in itertools.product(
            content_weight, missing_weight, half_support, popularity_penalty
        )
        if missing > 0 or half == half_support[0]
    ]


def choose(
    collaborative: CollaborativeModel,
    content: ContentModel,
    validation: Split,
    tracks: pd.DataFrame,
    *,
    settings: Sequence[BlendParams] | None = None,
    margin: float = 0.01,
    k: int = 10,
    seed: int = 0,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
) -> Choice:
    """Choose the settings that show most of the catalogue without costing accuracy.

    Rule: of the settings whose nDCG@k is not below that of the collaborative model alone, and not below the best by
    more than ``margin`` (relative), the one with the highest catalogue coverage; the more accurate one on a tie.

    Parameters
    ----------
    collaborative, content
        Models fitted on ``validation.train`` only.
    validation
        A split of the training data: the test part must not be in it.
    tracks
        Description of the catalogue, as for the content model.
    margin
        Relative loss of nDCG against the best setting that is given for coverage.
    """
    users = np.flatnonzero(np.diff(validation.held_out.positives().indptr) > 0)
    if not len(users):
        raise UserError(
            "nothing is held out to choose the blend by", where="validation", remedy="hold back a larger share."
        )
    histories, relevant = validation.train.rows(users), validation.held_out.rows(users).positives()
    described = tracks.set_index("track_id").reindex(histories.track_ids).rename_axis("track_id").reset_index()
    factors, support = collaborative.on_catalogue(histories.track_ids)
    placed = content.place(described)
    tried = [COLLABORATIVE_ONLY, *(grid() if settings is None else settings)]
    rows: list[dict[str, Any]] = []
    for params in tried:
        model = BlendModel(collaborative, content, params)
        lists = model._ranked(model._combined(factors, support, *placed), histories, k)  # noqa: SLF001
        ndcg = bootstrap(accuracy(lists, relevant, k)["ndcg"], seed, n=200)
        row = {
            **asdict(params), "ndcg": ndcg.mean, "low": ndcg.low, "high": ndcg.high,
            "coverage": coverage(lists, validation.train.n_tracks),
        }  # fmt: skip
        rows.append(row)
        if progress is not None:
            progress(row)
    table = pd.DataFrame(rows)
    floor = max(table["ndcg"].iloc[0], table["ndcg"].max() * (1 - margin))
    table["eligible"] = table["ndcg"] >= floor
    order = table[table["eligible"]].sort_values(["coverage", "ndcg"], ascending=False, kind="stable")
    return Choice(tried[int(order.index[0])], table)
