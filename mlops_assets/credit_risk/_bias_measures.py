"""What is measured of one group of applications, and of groups beside each other.

What belongs here: approval, errors, calibration and order by group, with intervals and minimum sizes. What does not:
which groups there are (`_bias_groups.py`), and the verdict (`bias.py`).
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk._bias_groups import UNKNOWN, Groups
from mlops_assets.credit_risk._metrics_sampling import percentile_interval
from mlops_assets.credit_risk.metrics import TERMS, Estimate, Floats, Minimum, Terms, auc, mean_estimate, proportion

Bools = NDArray[np.bool_]

_TELLABLE = 10


@dataclass(frozen=True)
class Limits:
    """Sizes below which nothing is said, and the bounds that groups are held against.

    Parameters
    ----------
    minimum
        Rows that approval needs; for what needs outcomes, rows, bads and goods with an outcome.
    approval_ratio
        Least ratio of a group's approval rate to the reference's: the four-fifths rule (29 CFR 1607.4 D).
    approval_drop
        Most that a group's ratio may fall against the champion's, beyond chance.
    equalised_odds
        Largest difference of error rates between groups; None measures it without a bound.
    intersection_ratio
        Least approval ratio of a group of two attributes, beyond chance; None measures it without a bound. The best of
        many small groups is a harder reference than that of one attribute, which the four-fifths rule is about.
    proxy_auc
        Largest AUC by which one feature of the model alone may tell who is in a group.
    unknown_share
        With a larger share of unknown values, the attribute is not assessed.
    level, draws, seed
        Of the intervals.
    """

    minimum: Minimum = TERMS.minimum
    approval_ratio: float = 0.80
    approval_drop: float = 0.02
    equalised_odds: float | None = None
    intersection_ratio: float | None = None
    proxy_auc: float = 0.95
    unknown_share: float = 0.20
    level: float = 0.95
    draws: int = 1_000
    seed: int = 0

    @property
    def terms(self) -> Terms:
        """The terms of metrics by group."""
        return Terms(self.minimum, self.level, min(self.draws, 400), self.seed)


@dataclass(frozen=True)
class Decided:
    """Applications with what was decided and what became of them, all of shape (n,).

    Parameters
    ----------
    accepted, referred
        Whether accepted without a human, and whether a human decides; the others are rejected.
    champion
        Whether the champion accepts; None without one.
    pd
        Probability of default; NaN where there was none.
    y
        1 a bad, 0 a good, NaN without a matured outcome.
    """

    accepted: Bools
    referred: Bools
    champion: Bools | None
    pd: Floats
    y: Floats

    def __len__(self) -> int:
        return len(self.accepted)

    @property
    def labelled(self) -> Bools:
        """Rows with a probability and an outcome."""
        return np.isfinite(self.y) & np.isfinite(self.pd)


@dataclass(frozen=True)
class GroupResult:
    """One group of one attribute, or of two.

    Parameters
    ----------
    n, share, bads, goods
        Rows, their share of all, and how many are known to have turned out bad and good.
    approval_rate, referred
        Share accepted without a human, and share that went to one.
    approval_ratio
        Approval rate over that of the reference group; of a stated reference, over that of the most approved group.
    ratio_change
        That ratio minus the champion's, neither counted above 1; not assessed without a champion.
    goods_declined, bads_accepted
        Shares of goods not accepted and of bads accepted: false positive and false negative rate of "turns out bad".
    calibration_gap
        Bad rate minus mean PD: above 0 where the group is riskier than predicted.
    auc
        Order within the group.

    Of a group of fewer than ten nothing but its size is told: numbers of so few are about persons.
    """

    attribute: str
    group: str
    n: int
    share: float
    bads: int | None
    goods: int | None
    approval_rate: Estimate
    referred: float | None
    approval_ratio: Estimate
    ratio_change: Estimate
    goods_declined: Estimate
    bads_accepted: Estimate
    calibration_gap: Estimate
    auc: Estimate


@dataclass(frozen=True)
class OddsResult:
    """Largest differences of error rates between the groups that are large enough (fairlearn's MetricFrame).

    ``equalised_odds`` is the larger of the two differences; intervals are bootstraps with their own bias, noise that
    can only widen a largest difference, taken out.
    """

    goods_declined: Estimate
    bads_accepted: Estimate
    equalised_odds: Estimate
    groups: tuple[str, ...]


@dataclass(frozen=True)
class _Approval:
    """Bootstrap of one group's approval rates, candidate and champion on the same draws."""

    rate: float
    champion: float | None
    drawn: Floats
    drawn_champion: Floats


def measure_groups(
    attribute: str, rows: Decided, groups: Groups, *, reference: str | None, absent: Sequence[str], limits: Limits
) -> tuple[tuple[GroupResult, ...], str | None, str]:
    """Measure every group of an attribute.

    Parameters
    ----------
    groups
        Group of each row, shape (n,).
    reference
        Group to compare with; None takes the most approved of the known groups that are large enough.
    absent
        Groups that have to be assessed and have no rows.

    Returns
    -------
    tuple
        The groups, the reference that was used if any, and why there is none.
    """
    approvals, _, most, chosen, why = _approvals(attribute, rows, groups, reference, limits)
    results = []
    for name in approvals:
        inside = groups == name
        against = most if chosen is not None and name == chosen and reference is not None else chosen
        n = int(inside.sum())
        if n < _TELLABLE:
            results.append(_untold(attribute, name, n, len(rows), f"{n} applications are too few to tell of them"))
            continue
        known = rows.y[inside & np.isfinite(rows.y)]
        bads = int(known.sum())
        rate = proportion(int(rows.accepted[inside].sum()), n, least=limits.minimum.rows, level=limits.level)
        ratio, change = (
            _compared(name, against, approvals, n, limits)
            if rate.assessed and against is not None
            else [Estimate.unknown(n, why if rate.assessed else rate.reason)] * 2
        )
        results.append(
            GroupResult(
                attribute, name, n, n / len(rows), bads, len(known) - bads, rate, float(rows.referred[inside].mean()),
                ratio, change, *_outcomes_of(rows, inside, limits),
            )
        )  # fmt: skip
    empty = [_untold(attribute, name, 0, len(rows), "no application is of this group") for name in absent]
    return (*results, *empty), chosen, why


def measure_odds(rows: Decided, groups: Groups, limits: Limits) -> OddsResult:
    """Measure how far error rates differ between the known groups that are large enough; see `OddsResult`."""
    counts = {
        name: (groups == name) & rows.labelled for name in sorted({str(name) for name in groups}) if name != UNKNOWN
    }
    used = {name: inside for name, inside in counts.items() if _lacking(rows, inside, limits) is None}
    total = int(sum(inside.sum() for inside in used.values()))
    if len(used) < 2:
        reason = f"{len(used)} of {len(counts)} known groups are large enough; two are needed to compare"
        unknown = Estimate.unknown(total, reason)
        return OddsResult(unknown, unknown, unknown, tuple(used))
    from fairlearn.metrics import MetricFrame, false_negative_rate, false_positive_rate

    chosen = np.logical_or.reduce(list(used.values()))
    # Equal rows are one with a weight, as the frame would copy every row for every metric and group.
    parts = {"group": groups[chosen].astype(str), "y": rows.y[chosen] == 1, "declined": ~rows.accepted[chosen]}
    counted = pd.DataFrame(parts).value_counts(sort=False).reset_index(name="n")
    weights = {"sample_weight": counted["n"]}
    frame = MetricFrame(
        metrics={"goods_declined": false_positive_rate, "bads_accepted": false_negative_rate},
        y_true=counted["y"].astype(np.int64),
        y_pred=counted["declined"].astype(np.int64),
        sensitive_features=counted["group"],
        sample_params={"goods_declined": weights, "bads_accepted": weights},
    )
    values = frame.difference(method="between_groups")
    declined, accepted = float(values["goods_declined"]), float(values["bads_accepted"])
    drawn = {
        kind: np.array([_drawn_rate(name, rows, inside, kind, limits) for name, inside in used.items()])
        for kind in ("goods_declined", "bads_accepted")
    }
    spread = {kind: rates.max(axis=0) - rates.min(axis=0) for kind, rates in drawn.items()}
    spread["equalised_odds"] = np.maximum(spread["goods_declined"], spread["bads_accepted"])
    found = {"goods_declined": declined, "bads_accepted": accepted, "equalised_odds": max(declined, accepted)}
    each = {
        kind: Estimate(value, *_interval(value, spread[kind], limits, recentre=True), total)
        for kind, value in found.items()
    }
    return OddsResult(each["goods_declined"], each["bads_accepted"], each["equalised_odds"], tuple(used))


def lowest_ratio(
    attribute: str, rows: Decided, groups: Groups, *, reference: str | None, limits: Limits
) -> tuple[str, Estimate, Estimate]:
    """Return the group of the lowest approval ratio, that ratio, and how far it lies above the champion's lowest.

    Without a stated reference, each model's most approved group is its own. The draws of candidate and champion are the
    same, so that the interval of the change is a paired one.
    """
    approvals, large, _, chosen, why = _approvals(attribute, rows, groups, reference, limits)
    n = int(sum((groups == name).sum() for name in large))
    if chosen is None:
        return "", Estimate.unknown(n, why), Estimate.unknown(n, why)
    other = large.index(chosen) if reference is not None else None
    points = np.array([[approvals[name].rate] for name in large])
    drawn = np.array([approvals[name].drawn for name in large])
    value, of_draws = float(_lowest(points, other)[0]), _lowest(drawn, other)
    ratio = Estimate(value, *_interval(value, of_draws, limits), n)
    name = large[int(points[:, 0].argmin())]
    theirs = np.array([[approvals[each].champion or 0.0] for each in large])
    if rows.champion is None or theirs.max() == 0:
        return name, ratio, Estimate.unknown(n, "there is no champion to compare with, or it accepts nobody")
    change = value - float(_lowest(theirs, other)[0])
    moved = of_draws - _lowest(np.array([approvals[each].drawn_champion for each in large]), other)
    return name, ratio, Estimate(change, *_interval(change, moved, limits), n)


def _lowest(rates: Floats, reference: int | None) -> Floats:
    """Lowest of the rates, shape (groups, draws), over the reference's or the highest; shape (draws,)."""
    return _ratio(rates.min(axis=0), rates.max(axis=0) if reference is None else rates[reference])


def crossed(first: Groups, second: Groups) -> Groups:
    """Return the group of each row by two attributes; `UNKNOWN` where either is."""
    both = np.array([f"{one} & {two}" for one, two in zip(first, second, strict=True)], dtype=object)
    both[(first == UNKNOWN) | (second == UNKNOWN)] = UNKNOWN
    return both


def _lacking(rows: Decided, inside: Bools, limits: Limits) -> str | None:
    known = rows.y[inside & rows.labelled]
    bads = int(known.sum())
    lacking = limits.minimum.lacking_rank(len(known), bads, len(known) - bads)
    return f"with an outcome: {lacking}" if lacking else None


def _outcomes_of(rows: Decided, inside: Bools, limits: Limits) -> tuple[Estimate, Estimate, Estimate, Estimate]:
    """Return goods_declined, bads_accepted, calibration_gap and auc of one group."""
    known = inside & rows.labelled
    if lacking := _lacking(rows, inside, limits):
        unknown = Estimate.unknown(int(known.sum()), lacking)
        return unknown, unknown, unknown, unknown
    y, accepted = rows.y[known], rows.accepted[known]
    bads = int(y.sum())
    return (
        proportion(int((~accepted & (y == 0)).sum()), len(y) - bads, level=limits.level),
        proportion(int((accepted & (y == 1)).sum()), bads, level=limits.level),
        mean_estimate(y - rows.pd[known], limits.terms),
        auc(y, rows.pd[known], terms=limits.terms),
    )


def _approval(attribute: str, name: str, rows: Decided, inside: Bools, limits: Limits) -> _Approval:
    """Draw approval rates of one group: resampling its rows is drawing how many fall into each pair of decisions."""
    ours = rows.accepted[inside]
    theirs = ours if rows.champion is None else rows.champion[inside]
    n = int(inside.sum())
    cells = np.array(
        [(ours & theirs).sum(), (ours & ~theirs).sum(), (~ours & theirs).sum(), (~ours & ~theirs).sum()], dtype=np.int64
    )
    shares = cells / n
    if ours.all() or not ours.any():
        # All alike would be drawn alike for ever, and claim a certainty that no sample has.
        shares = (cells + 0.25) / (n + 1)
    drawn = _generator(attribute, name, limits).multinomial(n, shares, size=limits.draws) / n
    return _Approval(
        float(ours.mean()),
        None if rows.champion is None else float(theirs.mean()),
        drawn[:, 0] + drawn[:, 1],
        drawn[:, 0] + drawn[:, 2],
    )


def _approvals(
    attribute: str, rows: Decided, groups: Groups, reference: str | None, limits: Limits
) -> tuple[dict[str, _Approval], list[str], str | None, str | None, str]:
    """Return approvals by group, the large known groups, the most approved of these, the reference, and why none."""
    names = sorted({str(name) for name in groups}, key=lambda name: (name == UNKNOWN, name))
    approvals = {name: _approval(attribute, name, rows, groups == name, limits) for name in names}
    large = [name for name in names if name != UNKNOWN and (groups == name).sum() >= limits.minimum.rows]
    most = max(large, key=lambda name: (approvals[name].rate, name), default=None)
    return approvals, large, most, *_reference(reference, most, large, approvals)


def _reference(
    stated: str | None, most: str | None, large: Sequence[str], approvals: Mapping[str, _Approval]
) -> tuple[str | None, str]:
    if len(large) < 2:
        return None, f"{len(large)} known group(s) with enough rows: there is nothing to compare"
    if stated is not None and stated not in large:
        return None, f"the reference group {stated!r} is absent or too small"
    chosen = stated if stated is not None else most
    if chosen is None or approvals[chosen].rate == 0:
        return None, f"nobody in the reference group {chosen!r} was accepted: there is no ratio"
    return chosen, ""


def _compared(
    name: str, reference: str, approvals: Mapping[str, _Approval], n: int, limits: Limits
) -> tuple[Estimate, Estimate]:
    """Return the approval ratio of a group, and its change against the champion's."""
    own, other = approvals[name], approvals[reference]
    value = own.rate / other.rate
    drawn = np.ones(limits.draws) if name == reference else _ratio(own.drawn, other.drawn)
    ratio = Estimate(value, *_interval(value, drawn, limits), n)
    if own.champion is None or other.champion is None:
        return ratio, Estimate.unknown(n, "there is no champion to compare with")
    if other.champion == 0:
        return ratio, Estimate.unknown(n, f"the champion accepts nobody in {reference!r}")
    # Above 1 the group is ahead of the reference; to lose some of that is no harm to it.
    change = min(value, 1.0) - min(own.champion / other.champion, 1.0)
    theirs = np.ones(limits.draws) if name == reference else _ratio(own.drawn_champion, other.drawn_champion)
    moved = np.minimum(drawn, 1.0) - np.minimum(theirs, 1.0)
    return ratio, Estimate(change, *_interval(change, moved, limits), n)


def _ratio(own: Floats, other: Floats) -> Floats:
    # A draw in which the reference accepts nobody has no ratio; half an acceptance keeps it finite and large.
    least = 0.5 * other[other > 0].min(initial=1.0)
    return np.asarray(own / np.maximum(other, least), dtype=np.float64)


def _interval(value: float, drawn: Floats, limits: Limits, *, recentre: bool = False) -> tuple[float, float]:
    lowest, highest = (0.0, 1.0) if recentre else (-np.inf, np.inf)
    return percentile_interval(value, drawn, level=limits.level, recentre=recentre, lowest=lowest, highest=highest)


def _drawn_rate(name: str, rows: Decided, inside: Bools, kind: str, limits: Limits) -> Floats:
    """Draw an error rate of one group within its goods or bads: a bootstrap of a share is a binomial."""
    of_class = rows.y[inside] == (0 if kind == "goods_declined" else 1)
    accepted = rows.accepted[inside][of_class]
    wrong = int((~accepted).sum() if kind == "goods_declined" else accepted.sum())
    n = len(accepted)
    share = wrong / n if 0 < wrong < n else (wrong + 0.5) / (n + 1)
    return np.asarray(_generator(kind, name, limits).binomial(n, share, size=limits.draws) / n, dtype=np.float64)


def _generator(first: str, second: str, limits: Limits) -> np.random.Generator:
    """Return a generator of the group's own, so that no group's draws depend on which others there are."""
    return np.random.default_rng([limits.seed, zlib.crc32(f"{first}|{second}".encode())])


def _untold(attribute: str, name: str, n: int, rows: int, reason: str) -> GroupResult:
    unknown = Estimate.unknown(n, reason)
    share = n / rows if rows else 0.0
    return GroupResult(attribute, name, n, share, None, None, unknown, None, *[unknown] * 6)
