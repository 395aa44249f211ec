"""Probes into a model: whether it can see a protected attribute, and whether less of it would treat groups more alike.

What belongs here: the flip test, the strength of proxies, and the search for a less discriminatory alternative. What
does not: the comparison of groups under decisions (`_bias_measures.py`).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk._bias_groups import UNKNOWN, Groups
from mlops_assets.credit_risk._bias_measures import Decided, Limits, lowest_ratio
from mlops_assets.credit_risk.metrics import Estimate, Floats, Terms, auc, auc_difference, auc_value
from mlops_assets.foundation.errors import UserError

ScoreFunction = Callable[[pd.DataFrame], "NDArray[Any] | Sequence[bytes]"]
Refit = Callable[[tuple[str, ...]], Floats]

_MOST_COMBINATIONS = 256
_PROXY_ROWS = 10_000
_FOLDS = 3
_TREES = 40
_PROXY_BINS = 50


@dataclass(frozen=True)
class FlipTest:
    """What came of changing protected values and nothing else.

    Parameters
    ----------
    compared
        Scores of rows with at least one changed value that were compared with the row's own, byte by byte.
    differing
        Those that are not equal.
    combinations
        Combinations of values that were tried.
    by_column
        Differing scores where that column alone was changed.
    status
        ``passed`` only if every compared score is equal and there was one.
    """

    compared: int
    differing: int
    combinations: int
    by_column: Mapping[str, int]
    status: Literal["passed", "failed", "not_assessed"]
    reason: str


@dataclass(frozen=True)
class ProxyStrength:
    """How well the model's features tell who is in a protected group: 0.5 not at all, 1 completely.

    ``features`` are the three that tell most, by their share of the gain.
    """

    attribute: str
    group: str
    auc: Estimate
    features: tuple[str, ...]


def flip_test(
    score: ScoreFunction,
    frame: pd.DataFrame,
    columns: Sequence[str],
    values: Mapping[str, Sequence[Any]],
    *,
    seed: int = 0,
) -> FlipTest:
    """Change every protected value of every row and demand exactly the same scores (counterfactual flip).

    Every value is tried in each column alone and in all combinations of columns, missing (None) among them; of more
    than 256 combinations, so many are drawn.

    Parameters
    ----------
    score
        From raw rows to one score a row: an array of numbers or bytes with a row first axis, or one bytes object a row.
    frame
        Raw rows, shape (n, anything).
    columns
        Protected columns; one that ``frame`` lacks is added.
    values
        Values to try by column.
    """
    base = frame.reset_index(drop=True).assign(**{name: None for name in columns if name not in frame.columns})
    before = row_bytes(score(base.copy()))
    if len(before) != len(base):
        raise ValueError(f"{len(base)} rows need as many scores, not {len(before)}")
    tried = list(_combinations(columns, values, seed))
    if not len(base) or not tried:
        what = "rows" if tried else "values to try"
        return FlipTest(0, 0, len(tried), {}, "not_assessed", f"there are no {what}")
    if row_bytes(score(base.copy())) != before:
        reason = "the scores of the same rows differ from one call to the next: nothing can be concluded"
        return FlipTest(0, 0, len(tried), {}, "not_assessed", reason)
    compared, differing, alone = 0, 0, dict.fromkeys(columns, 0)
    for changes in tried:
        changed, touched = base.copy(), np.zeros(len(base), dtype=bool)
        for name, value in changes.items():
            touched |= ~_equal(base[name], value)
            # A number that is missing stays a number, so that a model that does read the column can.
            is_number = pd.api.types.is_numeric_dtype(base[name])
            changed[name] = pd.Series([np.nan if value is None and is_number else value] * len(base))
        if not touched.any():
            continue
        after = row_bytes(score(changed))
        wrong = np.array([a != b for a, b in zip(before, after, strict=True)])
        # A row keeps its value and is scored otherwise where the model looks at the others of the batch.
        compared, differing = compared + int((touched | wrong).sum()), differing + int(wrong.sum())
        if len(changes) == 1:
            alone[next(iter(changes))] += int(wrong.sum())
    if not compared:
        return FlipTest(0, 0, len(tried), alone, "not_assessed", "no value differs from what the rows have")
    told = f"{differing:,} of {compared:,} scores differ after a change of protected values alone"
    return FlipTest(compared, differing, len(tried), alone, "failed" if differing else "passed", told)


def row_bytes(scores: "NDArray[Any] | Sequence[bytes]") -> list[bytes]:
    """Return the bytes of each row's score, to be compared exactly.

    Raises
    ------
    TypeError
        The scores are objects, whose bytes are addresses.
    """
    if not isinstance(scores, np.ndarray):
        if not all(isinstance(each, bytes) for each in scores):
            raise TypeError("scores need to be an array of numbers, or one bytes object a row")
        return list(scores)
    if scores.dtype.hasobject:
        raise TypeError("scores need to be numbers or bytes: an array of objects holds addresses")
    rows = np.ascontiguousarray(scores).reshape(len(scores), -1) if len(scores) else scores
    return [row.tobytes() for row in rows]


def proxy_strength(attribute: str, features: pd.DataFrame, groups: Groups, limits: Limits) -> tuple[ProxyStrength, ...]:
    """Measure how well the features tell membership of each known group from all others.

    A small LightGBM is trained on two thirds and scores the third it has not seen, three times; AUC is over all.

    Parameters
    ----------
    features
        What the model sees, shape (n, f): numbers, or categories as text.
    groups
        Group of each row, shape (n,); rows of an unknown group are left out. Beyond 10,000 rows, so many are drawn.
    """
    known = np.flatnonzero(groups != UNKNOWN)
    if len(known) > _PROXY_ROWS:
        known = np.sort(np.random.default_rng(limits.seed).choice(known, _PROXY_ROWS, replace=False))
    matrix, categorical = _encoded(features.iloc[known])
    named = groups[known]
    names = sorted({str(name) for name in named})
    found: list[ProxyStrength] = []
    for name in names:
        member = (named == name).astype(np.float64)
        if len(names) == 2 and found:
            # Who is not in the one group is in the other: the same question.
            found.append(ProxyStrength(attribute, name, found[0].auc, found[0].features))
            continue
        found.append(_proxy(attribute, name, list(features.columns), matrix, categorical, member, limits))
    return tuple(found)


def single_proxies(attribute: str, features: pd.DataFrame, groups: Groups, limits: Limits) -> tuple[ProxyStrength, ...]:
    """Measure how well the strongest single feature tells membership of each known group from all others.

    Each feature is cut into at most 50 bins of equal numbers (a category is a bin, and so is missing); a row's score is
    the share of members in its bin among the two thirds of the rows that it is not one of. So a feature is found
    whichever way it runs, such as an age of which the middle is a group, and chance alone tells nothing.

    Parameters are those of `proxy_strength`; where a group cannot be measured, ``features`` is empty.
    """
    known = np.flatnonzero(groups != UNKNOWN)
    if len(known) > _PROXY_ROWS:
        known = np.sort(np.random.default_rng(limits.seed).choice(known, _PROXY_ROWS, replace=False))
    named, names = groups[known], [str(name) for name in features.columns]
    binned = [_bins(features.iloc[known][name]) for name in features.columns]
    found: list[ProxyStrength] = []
    for group in sorted({str(name) for name in named}):
        member = (named == group).astype(np.float64)
        members = int(member.sum())
        lacking = limits.minimum.lacking_rank(len(member), members, len(member) - members)
        if lacking or not binned:
            said = (lacking or "there are no features").replace("bads", "members").replace("goods", "others")
            found.append(ProxyStrength(attribute, group, Estimate.unknown(len(member), said), ()))
            continue
        fold = _folds(member, limits.seed)
        told = [_shares(bins, member, fold) for bins in binned]
        areas = [auc_value(member, each) for each in told]
        best = int(np.argmax(areas))
        estimate = auc(member, told[best], terms=Terms(limits.minimum, limits.level))
        found.append(ProxyStrength(attribute, group, estimate, (names[best],)))
    return tuple(found)


def _bins(values: "pd.Series[Any]") -> NDArray[np.int64]:
    """Return a bin number for each value, shape (n,)."""
    if not pd.api.types.is_numeric_dtype(values):
        return np.asarray(pd.factorize(values.astype(object), sort=False)[0], dtype=np.int64) + 1
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    there = np.unique(numbers[~np.isnan(numbers)])
    if len(there) > _PROXY_BINS:
        there = np.unique(np.nanquantile(numbers, np.linspace(0, 1, _PROXY_BINS + 1)[:-1], method="lower"))
    return np.where(np.isnan(numbers), 0, np.searchsorted(there, numbers, side="right")).astype(np.int64)


def _shares(bins: NDArray[np.int64], member: Floats, fold: NDArray[np.int64]) -> Floats:
    """Return the share of members in each row's bin among the rows of the other folds; shape (n,)."""
    told, size = np.empty(len(member)), int(bins.max()) + 1
    for held_out in range(_FOLDS):
        learn, tell = fold != held_out, fold == held_out
        counts = np.bincount(bins[learn], minlength=size)
        # A bin of few rows says little: it is drawn towards the share of all by one row's weight.
        shares = (np.bincount(bins[learn], member[learn], size) + member[learn].mean()) / (counts + 1)
        told[tell] = shares[bins[tell]]
    return told


def less_discriminatory(
    refit: Refit,
    features: Sequence[str],
    y: ArrayLike,
    groups: Mapping[str, Groups],
    approval_rate: float,
    *,
    left_out: Sequence[str] | None = None,
    auc_margin: float = 0.005,
    references: Mapping[str, str | None] | None = None,
    limits: Limits | None = None,
) -> pd.DataFrame:
    """Search for a less discriminatory alternative: leave out each feature in turn and look at accuracy and approval.

    All alternatives accept the same share of applications, so that a model cannot look fairer by accepting more.

    Parameters
    ----------
    refit
        From names of features to the PDs, shape (n,), that a model trained on these gives the test rows.
    features
        All names.
    y
        Outcomes of the test rows, shape (n,): 1 a bad, 0 a good.
    groups
        Group of each test row by attribute, shape (n,) each.
    approval_rate
        Share that is accepted, 0..1: those of lowest PD.
    left_out
        Features to leave out, one at a time; by default each.
    auc_margin
        AUC that an alternative may lose, beyond chance.
    references
        Stated reference group by attribute.

    Returns
    -------
    DataFrame
        One row a feature left out, the first row the model with all: left_out, auc, auc_change with _low and _high; for
        each attribute its lowest ratio, which group's it is and its change with _low and _high; better, reason. Better
        is what raises one attribute's lowest ratio and lowers none, both beyond chance, and loses no more AUC than the
        margin. Better ones first, then by the gain of the attribute whose ratio is lowest.
    """
    everything = tuple(features)
    whole = refit(everything)
    search = _Search(
        np.asarray(y, dtype=np.float64), whole, groups, approval_rate, references or {}, limits or Limits()
    )
    rows = [search.row("", whole)]
    for name in everything if left_out is None else left_out:
        try:
            rows.append(search.row(name, refit(tuple(each for each in everything if each != name))))
        except UserError as error:
            rows.append({"left_out": name, "reason": str(error)})
    table = pd.DataFrame(rows)
    table["better"] = _is_better(table, list(groups), auc_margin)
    worst = min(groups, key=lambda name: table[f"{name}_ratio"].fillna(np.inf).iloc[0])
    gain = table[f"{worst}_change"].fillna(-np.inf).to_numpy(dtype=np.float64)
    order = np.lexsort((-gain, ~table["better"], (table["left_out"] != "").to_numpy()))
    return table.iloc[order].reset_index(drop=True)


def _is_better(table: pd.DataFrame, attributes: Sequence[str], auc_margin: float) -> NDArray[np.bool_]:
    low = table[[f"{name}_change_low" for name in attributes]].to_numpy(dtype=np.float64)
    high = table[[f"{name}_change_high" for name in attributes]].to_numpy(dtype=np.float64)
    as_accurate = table["auc_change_low"].to_numpy(dtype=np.float64) >= -auc_margin
    # What was not assessed is NaN, which no comparison holds for.
    return np.asarray(as_accurate & (low > 0).any(axis=1) & (high >= 0).all(axis=1))


@dataclass(frozen=True)
class _Search:
    """The model with all features, and how an alternative is held against it."""

    y: Floats
    whole: Floats
    groups: Mapping[str, Groups]
    approval_rate: float
    references: Mapping[str, str | None]
    limits: Limits

    def row(self, name: str, predicted: Floats) -> dict[str, Any]:
        """Measure the model without one feature."""
        compared = auc_difference(self.y, predicted, self.whole, terms=self.limits.terms)
        row: dict[str, Any] = {"left_out": name, "auc": compared.first.number()[0]}
        row |= _spread("auc_change", compared.difference)
        nobody = np.zeros(len(self.y), dtype=bool)
        rows = Decided(self._accept(predicted), nobody, self._accept(self.whole), predicted, self.y)
        reason = compared.difference.reason if not compared.difference.assessed else ""
        for attribute, groups in self.groups.items():
            group, ratio, change = lowest_ratio(
                attribute, rows, groups, reference=self.references.get(attribute), limits=self.limits
            )
            row |= {f"{attribute}_lowest": group, f"{attribute}_ratio": ratio.number()[0]}
            row |= _spread(f"{attribute}_change", change)
            reason = reason or change.reason
        return row | {"reason": reason}

    def _accept(self, predicted: Floats) -> NDArray[np.bool_]:
        """Accept the share of lowest PDs; equal PDs are treated alike, so that it may be a little more."""
        return np.asarray(predicted <= np.quantile(predicted, self.approval_rate, method="inverted_cdf"))


def _spread(name: str, estimate: Estimate) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate.number(), strict=True))


def _combinations(columns: Sequence[str], values: Mapping[str, Sequence[Any]], seed: int) -> list[dict[str, Any]]:
    """Return each value of each column alone, then combinations of all columns."""
    options = {name: [*dict.fromkeys([*values.get(name, ()), None])] for name in columns if values.get(name)}
    alone = [{name: value} for name, choices in options.items() for value in choices]
    if len(options) < 2:
        return alone
    sizes = [len(choices) for choices in options.values()]
    total = int(np.prod(sizes, dtype=object))
    if total <= _MOST_COMBINATIONS:
        together = list(itertools.product(*options.values()))
    else:
        rng = np.random.default_rng(seed)
        picks = np.column_stack([rng.integers(0, size, _MOST_COMBINATIONS) for size in sizes])
        together = [tuple(c[k] for c, k in zip(options.values(), row, strict=True)) for row in picks.tolist()]
    return alone + [dict(zip(options, each, strict=True)) for each in together]


def _equal(column: "pd.Series[Any]", value: Any) -> NDArray[np.bool_]:
    if value is None:
        return column.isna().to_numpy()
    return np.array([not pd.isna(each) and each == value for each in column], dtype=bool)


def _encoded(features: pd.DataFrame) -> tuple[Floats, list[int]]:
    """Return the features as numbers, codes for categories, and which columns hold codes."""
    columns, categorical = [], []
    for place, name in enumerate(features.columns):
        if pd.api.types.is_numeric_dtype(features[name]):
            columns.append(features[name].to_numpy(dtype=np.float64, na_value=np.nan))
            continue
        codes, _ = pd.factorize(features[name].astype(object), sort=False)
        columns.append(np.where(codes < 0, np.nan, codes).astype(np.float64))
        categorical.append(place)
    return np.column_stack(columns) if columns else np.empty((len(features), 0)), categorical


def _proxy(
    attribute: str,
    name: str,
    columns: Sequence[Any],
    matrix: Floats,
    categorical: list[int],
    member: Floats,
    limits: Limits,
) -> ProxyStrength:
    members = int(member.sum())
    lacking = limits.minimum.lacking_rank(len(member), members, len(member) - members)
    if lacking or not matrix.shape[1]:
        said = (lacking or "there are no features").replace("bads", "members").replace("goods", "others")
        return ProxyStrength(attribute, name, Estimate.unknown(len(member), said), ())
    import lightgbm

    # So few rows gain nothing from threads, and lose much where others compute beside them.
    settings = {
        "objective": "binary", "num_leaves": 15, "learning_rate": 0.1, "min_data_in_leaf": 20, "min_data_per_group": 20,
        "verbosity": -1, "seed": limits.seed, "deterministic": True, "force_row_wise": True, "num_threads": 1,
    }  # fmt: skip
    fold, told, gain = _folds(member, limits.seed), np.empty(len(member)), np.zeros(matrix.shape[1])
    for held_out in range(_FOLDS):
        learn, tell = fold != held_out, fold == held_out
        data = lightgbm.Dataset(matrix[learn], member[learn], categorical_feature=categorical, free_raw_data=True)
        booster = lightgbm.train(settings, data, num_boost_round=_TREES)
        told[tell] = booster.predict(matrix[tell], num_threads=1)
        gain += booster.feature_importance("gain")
    strongest = np.argsort(-gain, kind="stable")[:3]
    features = tuple(str(columns[k]) for k in strongest if gain[k] > 0)
    found = auc(member, told, terms=Terms(limits.minimum, limits.level))
    return ProxyStrength(attribute, name, found, features)


def _folds(member: Floats, seed: int) -> NDArray[np.int64]:
    """Return a fold for each row, members and others spread evenly over them; shape (n,)."""
    rng, fold = np.random.default_rng(seed), np.empty(len(member), dtype=np.int64)
    for kind in (0.0, 1.0):
        rows = np.flatnonzero(member == kind)
        fold[rng.permutation(rows)] = np.arange(len(rows)) % _FOLDS
    return fold
