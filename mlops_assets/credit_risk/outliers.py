"""Applications unlike any in training: an isolation forest, stored and scored as arrays.

What belongs here: fitting the forest, scoring rows with it, and which feature sets a row apart. What does not: values
that are impossible (`contracts.py`) or beyond everything in training (`Scores.out_of_range`), and what happens to a
flagged row (`policy.py`).

F. T. Liu, K. M. Ting, Z.-H. Zhou, "Isolation Forest", 2008: what random cuts part from the rest after few steps is
unusual. scikit-learn grows the forest; its trees are then kept as plain arrays. Path lengths and bits are stored as
whole numbers, so their sums have no order, and the same row has the same bits in every batch.

A number that is missing or a special code counts as the median: data checks watch over those. A category counts
as the logarithm of its share in training, an unknown one as seen once.
"""

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.encoding import column_of, equals_any, places_of
from mlops_assets.credit_risk.logistic import DIGITS, exp_minus
from mlops_assets.credit_risk.schema import Feature, FeatureSchema
from mlops_assets.credit_risk.spec import Outliers as Settings
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import atomic_writer, canonical_json

if TYPE_CHECKING:
    from sklearn.ensemble import IsolationForest

Floats = NDArray[np.float64]

OUTLIERS_FILE = "outliers.npz"
_FORMAT = 1
_SAMPLE = 256
_DEPTH_UNIT, _BIT_UNIT = 2.0**32, 2.0**16
_LN2 = math.log(2.0)
_ROWS_AT_ONCE = 512  # what is looked up for them stays in the processor's cache
_LARGEST = float(np.finfo(np.float32).max)
_NODES = ("feature", "threshold", "left", "right", "depth", "told")


@dataclass(frozen=True)
class OutlierFlags:
    """What the forest says of n applications.

    Parameters
    ----------
    score
        (n,) 0 to 1; the higher, the more unusual. 0.5 is an ordinary row.
    flagged
        (n,) Whether the score lies beyond the bound.
    main_feature
        (n,) Name of the feature that sets a flagged row apart the most; None for the others.
    """

    score: Floats
    flagged: NDArray[np.bool_]
    main_feature: NDArray[np.object_]


@dataclass(frozen=True)
class _Column:
    """How a feature becomes a number: the stand-in for what is missing, and the numbers of categories."""

    name: str
    stand_in: float
    special: tuple[float, ...] = ()
    levels: Mapping[str, float] | None = None
    unknown: float = 0.0

    def numbers(self, values: "NDArray[Any]") -> Floats:
        if self.levels is None:
            number = np.array(values, dtype=np.float64)
            number[np.isnan(number) | equals_any(number, self.special)] = self.stand_in
            return np.clip(number, -_LARGEST, _LARGEST)
        at = places_of(values, {level: place for place, level in enumerate(self.levels)})
        # The places of unknown and missing values count from the end.
        return np.array([*self.levels.values(), self.unknown, self.stand_in])[at]


class OutlierModel:
    """An isolation forest over the features of a schema.

    Parameters
    ----------
    columns
        How features become numbers, in the order that the trees know them by.
    nodes
        Arrays (nodes,) of all trees one after the other: `feature` (-1 in a leaf), `threshold`, `left` and `right`
        (places in the same arrays), `depth` (the path length of a leaf in units of 2**-32) and `told` (how many bits
        the cut that leads here tells, in units of 2**-16).
    roots
        (trees,) Place of each tree's root.
    usual
        Mean path length in a sample of random numbers, which scores are measured by.
    bound
        Rows whose path lengths sum up to this many units or fewer are flagged.
    """

    def __init__(
        self,
        columns: tuple[_Column, ...],
        nodes: "Mapping[str, NDArray[Any]]",
        roots: "NDArray[np.int64]",
        usual: float,
        bound: int,
    ) -> None:
        self.columns, self.nodes, self.roots, self.usual, self.bound = columns, dict(nodes), roots, usual, bound

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that it looks at."""
        return tuple(column.name for column in self.columns)

    def score(self, features: pd.DataFrame) -> OutlierFlags:
        """Judge rows as `FeatureSchema.matrix` makes them; columns are found by name."""
        rows = self.numbers(features)
        length = self.lengths(rows)
        flagged = length <= self.bound
        main = np.full(len(rows), None, dtype=object)
        if flagged.any():
            main[flagged] = np.array(self.features, dtype=object)[self._apart(rows[flagged])]
        return OutlierFlags(self._scores(length), flagged, main)

    def numbers(self, features: pd.DataFrame) -> "NDArray[np.float32]":
        """Return what the trees see of rows, (n, features)."""
        # scikit-learn's trees compare float32 numbers with float64 thresholds.
        return np.column_stack(
            [column.numbers(column_of(features, column.name)).astype(np.float32) for column in self.columns]
        )

    def lengths(self, rows: "NDArray[np.float32]") -> "NDArray[np.int64]":
        """Return the sum of each row's path lengths over all trees, in units of 2**-32."""
        total = np.empty(len(rows), dtype=np.int64)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            leaf = self._leaves(rows[start : start + _ROWS_AT_ONCE])
            total[start : start + _ROWS_AT_ONCE] = self.nodes["depth"][leaf].sum(axis=1)
        return total

    @cached_property
    def _steps(self) -> "tuple[NDArray[np.int64], NDArray[np.int64], int]":
        """The feature of every node, its children side by side, and how many steps lead from a root to any leaf.

        A leaf is its own child on either side, so that whoever is there already stays.
        """
        children = np.column_stack([self.nodes["left"], self.nodes["right"]]).ravel()
        deepest, at = 0, self.roots
        while (at := at[self.nodes["feature"][at] >= 0]).size:
            at, deepest = np.concatenate([self.nodes["left"][at], self.nodes["right"][at]]), deepest + 1
        return np.maximum(self.nodes["feature"], 0).astype(np.int64), children, deepest

    def _leaves(self, rows: "NDArray[np.float32]") -> "NDArray[np.int64]":
        """Return the leaf that each row ends in, (rows, trees)."""
        feature, children, deepest = self._steps
        values = rows.astype(np.float64).ravel()
        first = (np.arange(len(rows)) * rows.shape[1])[:, None]
        at = np.broadcast_to(self.roots, (len(rows), len(self.roots)))
        for _ in range(deepest):
            right = values.take(first + feature.take(at)) > self.nodes["threshold"].take(at)
            at = children.take(2 * at + right)
        return at

    def _walk(self, rows: "NDArray[np.float32]") -> "list[NDArray[np.int64]]":
        """Return the nodes (rows, trees) after every step, from the roots to the leaves."""
        at = np.broadcast_to(self.roots, (len(rows), len(self.roots)))
        steps = [at]
        each = np.arange(len(rows))[:, None]
        while True:
            feature = self.nodes["feature"][at]
            inner = feature >= 0
            if not inner.any():
                return steps
            goes_left = rows[each, np.maximum(feature, 0)] <= self.nodes["threshold"][at]
            at = np.where(inner, np.where(goes_left, self.nodes["left"][at], self.nodes["right"][at]), at)
            steps.append(at)

    def _apart(self, rows: "NDArray[np.float32]") -> "NDArray[np.intp]":
        """Return the feature that sets each row apart the most; of equals, the first.

        A cut that leaves a row together with k of m training rows tells log2(m / k) bits about it. They are added up by
        feature, over all trees.
        """
        told = np.zeros((len(rows), len(self.columns)), dtype=np.int64)
        steps = self._walk(rows)
        each = np.broadcast_to(np.arange(len(rows))[:, None], steps[0].shape)
        for before, after in pairwise(steps):
            feature = self.nodes["feature"][before]
            moved = feature >= 0
            np.add.at(told, (each[moved], feature[moved]), self.nodes["told"][after[moved]])
        apart: NDArray[np.intp] = told.argmax(axis=1)
        return apart

    def _scores(self, length: "NDArray[np.int64]") -> Floats:
        return exp_minus(length / (_DEPTH_UNIT * len(self.roots) * self.usual) * _LN2)

    def save(self, folder: Path) -> None:
        """Write `outliers.npz`, without pickle; equal models give equal bytes."""
        about = {
            "format": _FORMAT,
            "usual": self.usual.hex(),
            "bound": self.bound,
            "columns": [{**asdict(column), "special": list(column.special)} for column in self.columns],
        }
        # Text arrays would be padded to the longest name; JSON keeps names and numbers together.
        text = np.frombuffer(canonical_json(about), dtype=np.uint8)
        with atomic_writer(folder / OUTLIERS_FILE) as handle:
            np.savez(handle, allow_pickle=False, about=text, roots=self.roots, **self.nodes)

    @classmethod
    def load(cls, folder: Path) -> "OutlierModel":
        """Read the model that `save` wrote.

        Raises
        ------
        UserError
            The file is missing, damaged, or of another format.
        """
        path = folder / OUTLIERS_FILE
        try:
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
                nodes = {name: stored[name] for name in _NODES}
                about, roots = json.loads(stored["about"].tobytes()), stored["roots"]
            if about["format"] != _FORMAT:
                raise _unreadable(path, f"format {about['format']!r} is unknown")
            columns = tuple(_Column(**{**each, "special": tuple(each["special"])}) for each in about["columns"])
            return cls(columns, nodes, roots, float.fromhex(about["usual"]), about["bound"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"is no outlier model that can be read: {why}",
        where=str(path),
        remedy="fetch the version again from the registry.",
    )


def fit(schema: FeatureSchema, settings: Settings, features: pd.DataFrame, *, seed: int = 7) -> OutlierModel:
    """Grow a forest on rows as `FeatureSchema.matrix` makes them; at most `settings.share` of them are flagged.

    Raises
    ------
    UserError
        There are fewer than two rows.
    """
    from sklearn.ensemble import IsolationForest

    if len(features) < 2:
        raise UserError(
            f"{len(features)} row(s) cannot tell what is unusual", where="training set", remedy="wait for more."
        )
    columns = tuple(_column(feature, column_of(features, feature.name)) for feature in schema.features)
    sample = min(_SAMPLE, len(features))
    forest = IsolationForest(n_estimators=settings.trees, max_samples=sample, random_state=seed, n_jobs=1)
    unbounded = OutlierModel(columns, {}, np.zeros(0, dtype=np.int64), _path_length(sample), 0)
    rows = unbounded.numbers(features)
    nodes, roots = _arrays(forest.fit(rows))
    model = OutlierModel(columns, nodes, roots, unbounded.usual, 0)
    lengths = np.sort(model.lengths(rows))
    bound = int(lengths[int(settings.share * len(lengths))]) - 1
    return OutlierModel(columns, nodes, roots, model.usual, bound)


def _column(feature: Feature, values: "NDArray[Any]") -> _Column:
    if feature.kind == "numeric":
        number = np.asarray(values, dtype=np.float64)
        plain = number[np.isfinite(number) & ~equals_any(number, feature.special)]
        return _Column(feature.name, float(np.median(plain)) if len(plain) else 0.0, tuple(sorted(feature.special)))
    codes, distinct = pd.factorize(np.asarray(values, dtype=object), use_na_sentinel=True)
    known = codes[codes >= 0]
    shares = np.bincount(known, minlength=len(distinct)) / max(len(known), 1)
    levels = {str(level): round(math.log(share), DIGITS) for level, share in zip(distinct, shares, strict=True)}
    unknown = round(-math.log(len(known) + 1.0), DIGITS)
    usual = float(np.median(np.array(list(levels.values()))[known])) if len(known) else 0.0
    return _Column(feature.name, usual, (), levels, unknown)


def _path_length(rows: int) -> float:
    """Return the mean path length of an unsuccessful search among so many rows (Liu et al., equation 1)."""
    if rows <= 2:
        return float(max(rows - 1, 0))
    return 2.0 * (math.log(rows - 1.0) + float(np.euler_gamma)) - 2.0 * (rows - 1.0) / rows


def _arrays(forest: "IsolationForest") -> "tuple[dict[str, NDArray[Any]], NDArray[np.int64]]":
    """Return the nodes of all trees in one set of arrays, and where each tree begins."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in _NODES}
    roots: list[int] = []
    start = 0
    for grown in forest.estimators_:
        tree = grown.tree_
        leaf = tree.children_left < 0
        here = np.arange(tree.node_count)
        rows = tree.n_node_samples
        steps, told = np.zeros(tree.node_count), np.zeros(tree.node_count)
        for node in here[~leaf]:  # parents come before their children
            children = [tree.children_left[node], tree.children_right[node]]
            steps[children] = steps[node] + 1.0
            told[children] = np.log2(rows[node] / rows[children])
        ends = np.array([_path_length(int(count)) for count in rows])
        parts["feature"].append(np.where(leaf, -1, tree.feature).astype(np.int32))
        parts["threshold"].append(np.where(leaf, 0.0, tree.threshold))
        parts["left"].append(np.where(leaf, here, tree.children_left) + start)
        parts["right"].append(np.where(leaf, here, tree.children_right) + start)
        parts["depth"].append(np.where(leaf, np.rint((steps + ends) * _DEPTH_UNIT), 0).astype(np.int64))
        parts["told"].append(np.rint(told * _BIT_UNIT).astype(np.int64))
        roots.append(start)
        start += tree.node_count
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, np.array(roots, dtype=np.int64)
