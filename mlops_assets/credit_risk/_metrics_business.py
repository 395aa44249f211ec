"""What a model is worth in money, and how it does on parts of the applications.

What belongs here: profit by cut-off, and segments. What does not: metrics themselves, and protected groups (`bias.py`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk._metrics_calibration import quantile_edges
from mlops_assets.credit_risk._metrics_estimates import TERMS, Estimate, Terms, proportion
from mlops_assets.credit_risk._metrics_ranking import auc, auc_difference
from mlops_assets.credit_risk._metrics_sampling import (
    Floats,
    draw_weights,
    mean_estimate,
    percentile_interval,
    read_labelled,
    read_numbers,
)

_STEPS = 40
_MOST_SEGMENTS = 20
MISSING, OTHER = "(missing)", "(other)"


@dataclass(frozen=True)
class ProfitCurve:
    """Profit an application by cut-off.

    Parameters
    ----------
    curve
        One row a cut: cut, approval_rate, bad_rate (of those accepted, NaN if none), profit with low and high (from
        outcomes), expected (from the PDs).
    best_cut
        The cut of most profit among those tried, with the interval of the best cut over bootstrap samples.
    best_profit
        Its profit an application, in the unit of the amounts; too good by the choice of the best, which the interval
        has taken out.
    break_even
        margin / (margin + loss_given_default): the best cut if the PDs were exactly right.
    """

    curve: pd.DataFrame
    best_cut: Estimate
    best_profit: Estimate
    break_even: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for evidence; None for a bad rate of nobody."""
        rows = self.curve.astype(object).where(self.curve.notna(), None).to_dict("records")
        return {
            "best_cut": self.best_cut.as_row(),
            "best_profit": self.best_profit.as_row(),
            "break_even": self.break_even,
            "curve": [{str(name): value for name, value in row.items()} for row in rows],
        }

    def table(self) -> pd.DataFrame:
        """Return at most 20 rows for a page, the best cut among them."""
        if not self.best_cut.assessed:
            return self.curve
        best = int(np.flatnonzero(self.curve["cut"].to_numpy() == self.best_cut.value)[0])
        step = max(1, -(-len(self.curve) // 19))
        return self.curve.iloc[sorted({*range(0, len(self.curve), step), best})].reset_index(drop=True)


def profit_curve(
    y: ArrayLike,
    predicted: ArrayLike,
    *,
    margin: float,
    loss_given_default: float,
    amount: ArrayLike | None = None,
    terms: Terms = TERMS,
) -> ProfitCurve:
    """Measure what accepting every application with a PD below a cut would have earned, an application.

    An accepted good earns ``margin`` of its amount, an accepted bad loses ``loss_given_default`` of it, and one that is
    not accepted earns nothing (Verbraken et al. 2014, expected maximum profit, with fixed costs).

    Parameters
    ----------
    y, predicted
        Shape (n,). Outcomes are known for those alone who got a loan, so the curve is about people like them.
    margin, loss_given_default
        Shares of the amount, 0..1.
    amount
        Shape (n,), in any currency; 1 each by default.
    """
    rows = read_labelled(y, predicted)
    if not (margin > 0 and 0 < loss_given_default <= 1):
        raise ValueError(f"margin {margin} and loss given default {loss_given_default} must lie above 0")
    even = margin / (margin + loss_given_default)
    if lacking := terms.minimum.lacking(rows.n, rows.bads, rows.goods):
        unknown = Estimate.unknown(rows.n, lacking)
        return ProfitCurve(pd.DataFrame(), unknown, unknown, even)
    bad, score, money = _with_amounts(y, predicted, amount)
    earned = money * np.where(bad == 1, -loss_given_default, margin)
    expected = money * (margin - score * (margin + loss_given_default))
    cuts = np.unique(
        [*np.quantile(score, np.arange(_STEPS) / _STEPS, method="inverted_cdf"), np.nextafter(score[-1], 2), even]
    )
    accepted = np.searchsorted(score, cuts, side="left")

    def by_cut(values: Floats) -> Floats:
        return np.concatenate([[0.0], np.cumsum(values)])[accepted]

    profit = by_cut(earned) / rows.n
    sampled = np.array([by_cut(weights * earned) for weights in draw_weights(rows.n, terms)]) / rows.n
    tail = (1 - terms.level) / 2
    low, high = np.quantile(sampled, (tail, 1 - tail), axis=0)
    with np.errstate(invalid="ignore"):
        bad_rate = np.where(accepted > 0, by_cut(bad) / np.maximum(accepted, 1), np.nan)
    curve = pd.DataFrame(
        {
            "cut": cuts,
            "approval_rate": accepted / rows.n,
            "bad_rate": bad_rate,
            "profit": profit,
            "low": low,
            "high": high,
            "expected": by_cut(expected) / rows.n,
        }
    )
    best = int(profit.argmax())
    places = cuts[sampled.argmax(axis=1)]
    cut_low, cut_high = np.quantile(places, (tail, 1 - tail), method="inverted_cdf")
    best_cut = float(cuts[best])
    top = percentile_interval(float(profit[best]), sampled.max(axis=1), level=terms.level, recentre=True)
    return ProfitCurve(
        curve,
        Estimate(best_cut, min(float(cut_low), best_cut), max(float(cut_high), best_cut), rows.n),
        Estimate(float(profit[best]), *top, rows.n),
        even,
    )


def segment_table(
    y: ArrayLike,
    predicted: ArrayLike,
    values: ArrayLike,
    *,
    champion: ArrayLike | None = None,
    quantiles: int = 4,
    terms: Terms = TERMS,
) -> pd.DataFrame:
    """Measure a model on each value of a category, or on each quantile of a number.

    Parameters
    ----------
    y, predicted
        Shape (n,).
    values
        Shape (n,): numbers are cut into ``quantiles`` (few distinct ones stay themselves); missing ones are a segment.
        Beyond 20 segments the rarest are one.
    champion
        PDs of another model, shape (n,), to compare with.

    Returns
    -------
    DataFrame
        At most 20 rows: segment, n, bads, goods, share; bad_rate, calibration_gap (bad rate minus mean PD) and auc,
        each with _low and _high; with a champion auc_change likewise; status and reason. Where a segment is too small
        for a metric, NaN stands in the numbers, ``not_assessed`` in the status and the reason beside it.
    """
    outcomes, score = read_numbers(y, "y"), read_numbers(predicted, "predicted")
    read_labelled(outcomes, score)
    names = _segment_names(values, quantiles)
    if len(names) != len(outcomes):
        raise ValueError(f"{len(outcomes)} rows need as many values, not {len(names)}")
    other = None if champion is None else read_numbers(champion, "champion")
    found = []
    for name in _in_order(names):
        inside = names == name
        found.append(
            _segment(name, outcomes[inside], score[inside], None if other is None else other[inside],
                     terms)
            | {"share": float(inside.mean())}
        )  # fmt: skip
    return pd.DataFrame(found)


def segment_labels(values: ArrayLike, quantiles: int = 4) -> "pd.Series[Any]":
    """Name the segment of each row, with the index of ``values``; see `segment_table`."""
    names = _segment_names(values, quantiles)
    return pd.Series(names, index=values.index if isinstance(values, pd.Series) else None, dtype=object)


def _segment_names(values: ArrayLike, quantiles: int) -> NDArray[np.object_]:
    column = pd.Series(np.asarray(values, dtype=object) if not isinstance(values, pd.Series) else values.to_numpy())
    missing = column.isna().to_numpy()
    number = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    names = np.full(len(column), MISSING, dtype=object)
    is_number = bool(len(column)) and all(isinstance(value, int | float | np.number) for value in column[~missing])
    distinct = np.unique(number[~missing])
    if is_number and len(distinct) > max(quantiles, _MOST_SEGMENTS // 2):
        edges = quantile_edges(number[~missing], quantiles)
        bounds = [distinct[0], *edges, distinct[-1]]
        labels = [f"{k + 1}: {bounds[k]:.6g} to {bounds[k + 1]:.6g}" for k in range(len(edges) + 1)]
        names[~missing] = np.array(labels, dtype=object)[np.searchsorted(edges, number[~missing], side="left")]
        return names
    names[~missing] = [f"{value:g}" if is_number else str(value) for value in column[~missing]]
    kinds, counts = np.unique(names.astype(str), return_counts=True)
    if len(kinds) > _MOST_SEGMENTS:
        rare = kinds[np.argsort(-counts, kind="stable")[_MOST_SEGMENTS - 2 :]]
        names[np.isin(names.astype(str), rare[rare != MISSING])] = OTHER
    return names


def _with_amounts(y: ArrayLike, predicted: ArrayLike, amount: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """Return outcomes, PDs and amounts in ascending order of the PD, ties by their values."""
    bad, score = read_numbers(y, "y"), read_numbers(predicted, "predicted")
    money = np.ones(len(bad)) if amount is None else read_numbers(amount, "amount")
    if len(money) != len(bad) or not np.isfinite(money).all():
        raise ValueError(f"{len(bad)} rows need as many finite amounts")
    order = np.lexsort((money, bad, score))
    return bad[order], score[order], money[order]


def _in_order(names: NDArray[np.object_]) -> list[str]:
    last = {OTHER: 1, MISSING: 2}
    return sorted({str(name) for name in names}, key=lambda name: (last.get(name, 0), name))


def _segment(
    name: str,
    y: Floats,
    score: Floats,
    champion: Floats | None,
    terms: Terms,
) -> dict[str, object]:
    n, bads = len(y), int(y.sum())
    metrics = {
        "bad_rate": proportion(bads, n, least=terms.minimum.rows, level=terms.level),
        "calibration_gap": mean_estimate(y - score, terms=terms)
        if terms.minimum.lacking(n, bads, n - bads) is None
        else Estimate.unknown(n, str(terms.minimum.lacking(n, bads, n - bads))),
        "auc": auc(y, score, terms=terms),
    }
    if champion is not None:
        metrics["auc_change"] = auc_difference(y, score, champion, terms=terms).difference
    row: dict[str, object] = {"segment": name, "n": n, "bads": bads, "goods": n - bads}
    for metric, estimate in metrics.items():
        names = (metric, f"{metric}_low", f"{metric}_high")
        row |= dict(zip(names, estimate.number(), strict=True))
    reasons = [estimate.reason for estimate in metrics.values() if not estimate.assessed]
    return row | {"status": "not_assessed" if reasons else "assessed", "reason": reasons[0] if reasons else ""}
