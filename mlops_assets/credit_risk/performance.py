"""How well the champion does: estimated at once from its own probabilities, and measured once loans have matured.

What belongs here: the confidence-based estimate with what it cannot see, and realised performance against a reference
that the same policy truncated. What does not: which outcomes have matured (`labels.py`), the metrics themselves
(`metrics.py`) and what follows from decay (`retraining.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mlops_assets.credit_risk import metrics
from mlops_assets.credit_risk.metrics import TERMS, Estimate, GradeReport, Terms
from mlops_assets.credit_risk.spec import Monitoring
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex

Population = Literal["applicants", "accepted"]
Status = Literal["decayed", "holds", "not_assessed"]

BLIND_TO = (
    "Estimated from the model's own probabilities, as if they were right: it sees a change of who applies, never a "
    "change of what their features mean (concept drift)."
)
ACCEPTED_ONLY = (
    "Outcomes will be known of accepted loans alone, whose AUC is lower than that of all applicants by the cut-off "
    "alone: compare the accepted with the accepted."
)
_SHOWN = ("auc", "gini", "ks", "brier", "ece", "bad_rate")
_CHUNK = 20_000_000  # random numbers in memory at a time
_RISE = 0.1  # a grade's bad rate above its PD, as a share of the PD, that matters whatever the number of loans

Floats = NDArray[np.float64]


# --- Without outcomes ---


@dataclass(frozen=True)
class Estimated:
    """What would be realised on these applications if the model's probabilities were right.

    Parameters
    ----------
    population
        Whom it is of.
    auc, bad_rate, brier
        Their expectation, with the interval that chance in the outcomes leaves. Nothing else is in the interval.
    unscored
        Applications without a probability, which were left out.
    blind_to
        What the estimate cannot see, to be shown beside it.
    """

    population: Population
    rows: int
    unscored: int
    auc: Estimate
    bad_rate: Estimate
    brier: Estimate
    blind_to: str

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as plain JSON values."""
        return asdict(self)


def estimated(pds: ArrayLike, population: Population = "applicants", *, terms: Terms = TERMS) -> Estimated:
    """Estimate performance from calibrated probabilities alone (confidence-based estimation).

    A bad of probability p and a good of 1 - p are expected of each application; from these follow the expected AUC
    (over all pairs of two different applications), bad rate and Brier score, mean p (1 - p). Outcomes are drawn from
    the probabilities to get the intervals.

    Parameters
    ----------
    pds
        (n,) Calibrated probabilities of default; NaN where an application was not scored.
    population
        Whom they are of.
    terms
        What is needed to be assessed, and draws and level of the intervals.

    Raises
    ------
    UserError
        A probability lies outside 0 to 1.
    """
    given = np.asarray(pds, dtype=np.float64)
    p = np.sort(given[~np.isnan(given)])
    if len(p) and not (p[0] >= 0 and p[-1] <= 1):
        worst = p[0] if p[0] < 0 else p[-1]
        raise UserError(f"{worst:g} is no probability", where="estimated performance", remedy="give calibrated PDs.")
    blind = f"{BLIND_TO} {ACCEPTED_ONLY}" if population == "applicants" else BLIND_TO
    lacking = terms.minimum.lacking_rank(len(p), int(p.sum()), int((1 - p).sum()))
    if lacking:
        unknown = Estimate.unknown(len(p), f"expected are {lacking}" if len(p) else lacking)
        return Estimated(population, len(p), len(given) - len(p), unknown, unknown, unknown, blind)
    found = (_expected_auc(p), float(p.mean()), float((p * (1 - p)).mean()))
    tail = (1 - terms.level) / 2
    bounds = np.quantile(_drawn(p, terms), (tail, 1 - tail), axis=0)
    auc, bad_rate, brier = (
        Estimate(value, min(float(low), value), max(float(high), value), len(p))
        for value, low, high in zip(found, *bounds, strict=True)
    )
    return Estimated(population, len(p), len(given) - len(p), auc, bad_rate, brier, blind)


def _midranks(ordered: Floats) -> Floats:
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.append(starts, len(ordered)))
    return np.repeat(starts + (sizes + 1) / 2, sizes)


def _expected_auc(p: Floats) -> float:
    """Return the expected number of rightly ordered pairs of a bad and a good over that of all pairs; p ascending."""
    starts = np.flatnonzero(np.concatenate([[True], p[1:] != p[:-1]]))
    bads, goods = np.add.reduceat(p, starts), np.add.reduceat(1 - p, starts)
    below = np.cumsum(goods) - goods
    with_itself = float((p * (1 - p)).sum())
    ordered = float(bads @ (below + goods / 2)) - with_itself / 2
    return ordered / (float(p.sum() * (1 - p).sum()) - with_itself)


def _drawn(p: Floats, terms: Terms) -> Floats:
    """Return AUC, bad rate and Brier score of outcomes drawn from the probabilities, shape (draws, 3)."""
    rng, n = np.random.default_rng(terms.seed), len(p)
    # All three are linear in the outcomes, once the number of bads is known.
    weights = np.column_stack([_midranks(p), np.ones(n), 1 - 2 * p])
    a_time = max(1, min(terms.draws, _CHUNK // n))
    sums = np.concatenate(
        [
            (rng.random((min(a_time, terms.draws - first), n)) < p).astype(np.float64) @ weights
            for first in range(0, terms.draws, a_time)
        ]
    )
    ranks, bads, errors = sums.T
    pairs = np.maximum(bads * (n - bads), 1)
    return np.column_stack([(ranks - bads * (bads + 1) / 2) / pairs, bads / n, ((p * p).sum() + errors) / n])


# --- With matured outcomes ---


@dataclass(frozen=True)
class Realised:
    """How accepted loans that have matured turned out, held against the reference.

    Parameters
    ----------
    rows, bads
        Accepted applications with a matured outcome, and the bad ones.
    waiting
        Accepted applications whose outcome is not known or has not matured.
    others
        Applications with a matured outcome that the policy did not accept by itself; they are left out, as they were
        chosen in another way.
    metrics
        auc, gini, ks, brier, ece, bad_rate and more, of `metrics.summary`.
    grades
        The Jeffreys test of each grade's PD; None where there are too few loans.
    reference, whole_reference
        The same metrics of the reference, truncated by the same policy, and its AUC without that.
    fall
        Realised AUC minus that of the truncated reference, with its interval; what truncation alone does is not in it.
    facts
        What the verdict rests on, for the evidence of a retraining.
    """

    status: Status
    reasons: tuple[str, ...]
    rows: int
    bads: int
    waiting: int
    others: int
    metrics: Mapping[str, Estimate]
    grades: GradeReport | None
    reference: Mapping[str, Estimate] | None
    whole_reference: Estimate | None
    fall: Estimate | None
    facts: Mapping[str, Any]

    def table(self) -> pd.DataFrame:
        """Return the metrics for a page: realised, with interval, beside the truncated reference."""
        rows = []
        for name in _SHOWN:
            if name in self.metrics:
                value, low, high = self.metrics[name].number()
                before = self.reference[name].number()[0] if self.reference is not None else float("nan")
                rows.append([name, value, low, high, before, self.metrics[name].reason])
        columns = ["metric", "realised", "low", "high", "reference_equally_truncated", "remark"]
        return pd.DataFrame(rows, columns=pd.Index(columns))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def join(decisions: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Return the decisions with the column ``bad`` of their matured outcomes, NaN where there is none.

    Parameters
    ----------
    decisions
        ``application_id``, ``pd``, ``decision``, oldest first; the last one of an application counts.
    labels
        ``application_id`` and ``bad`` (0 or 1), each application once.

    Raises
    ------
    UserError
        A column is missing, or an application has two outcomes.
    """
    for frame, name, columns in (
        (decisions, "decisions", ("application_id", "pd", "decision")),
        (labels, "labels", ("application_id", "bad")),
    ):
        if missing := [column for column in columns if column not in frame.columns]:
            raise UserError(f"column {missing[0]!r} is missing", where=name, remedy=f"give {', '.join(columns)}.")
    twice = labels["application_id"][labels["application_id"].duplicated()]
    if len(twice):
        raise UserError(
            f"application {twice.iloc[0]!r} has more than one outcome, as have {len(twice) - 1:,} more",
            where="labels",
            remedy="settle which outcome holds; contradictions are quarantined, never counted.",
        )
    last = decisions.drop_duplicates("application_id", keep="last")
    return last.merge(labels[["application_id", "bad"]], on="application_id", how="left")


def realised(
    decisions: pd.DataFrame,
    labels: pd.DataFrame,
    monitoring: Monitoring,
    *,
    reference: pd.DataFrame | None = None,
    accept_below: float | None = None,
    edges: Sequence[float] | None = None,
    terms: Terms = TERMS,
) -> Realised:
    """Measure the champion on accepted loans that have matured, and say whether it has decayed.

    Accepting only low probabilities lowers the AUC of what is accepted, whatever the model is worth. So the reference
    is cut in the same way before anything is compared. The model has decayed where its AUC lies below the least one, or
    by more than the allowed fall below the reference, both beyond chance; or where several grades have more bads than
    their PDs foresee, beyond chance for all grades together (Jeffreys and Holm) and by more than a tenth.

    Parameters
    ----------
    decisions, labels
        As for `join`; of one champion.
    reference
        ``pd`` and ``bad`` of loans that the champion was tested on, and ``decision`` where the policy has been asked;
        without it, those with a PD below ``accept_below`` count as accepted.
    edges
        Inner edges of the rating grades (PDs), those of the champion's evaluation.

    Raises
    ------
    UserError
        As for `join`; or the reference cannot be truncated.
    """
    joined = join(decisions, labels)
    known, accepted = joined["bad"].notna(), (joined["decision"] == "accept") & joined["pd"].notna()
    judged = joined[known & accepted]
    y, pds = judged["bad"].to_numpy(dtype=np.float64), judged["pd"].to_numpy(dtype=np.float64)
    bads = int(y.sum())
    counted = (len(judged), bads, int((accepted & ~known).sum()), int((known & ~accepted).sum()))
    before = None if reference is None else _truncated(reference, accept_below)
    facts = {"loans": len(judged), "bads": bads, "outcomes": _hash(judged)}
    if len(judged) < monitoring.realised_rows or bads < monitoring.realised_bads:
        needed = f"{monitoring.realised_rows:,} with {monitoring.realised_bads:,} bad ones are needed"
        reason = f"{len(judged):,} accepted loans with {bads:,} bad ones have matured, {needed}"
        return Realised("not_assessed", (reason,), *counted, {}, None, None, None, None, facts)
    found = metrics.summary(y, pds, terms=terms)
    grades = metrics.grade_report(y, pds, edges, level=terms.level)
    truncated = None if before is None else metrics.summary(before["bad"], before["pd"], terms=terms)
    whole = None if reference is None else metrics.auc(reference["bad"], reference["pd"], terms=terms)
    fall = None if truncated is None else _difference(found["auc"], truncated["auc"])
    reasons = [*_auc_reasons(found["auc"], fall, monitoring), *_grade_reasons(grades, monitoring)]
    status: Status = "decayed" if reasons else "holds"
    if not found["auc"].assessed:
        status, reasons = "not_assessed", [found["auc"].reason]
    elif not reasons:
        reasons = [_holding(found["auc"], fall)]
    return Realised(status, tuple(reasons), *counted, found, grades, truncated, whole, fall, facts)


def _truncated(reference: pd.DataFrame, accept_below: float | None) -> pd.DataFrame:
    if "decision" in reference.columns:
        return reference[reference["decision"] == "accept"]
    if accept_below is None:
        raise UserError(
            "neither the reference's decisions nor the policy's cut-off are known",
            where="realised performance",
            remedy="give the reference a column 'decision', or accept_below.",
        )
    return reference[reference["pd"] < accept_below]


def _difference(first: Estimate, second: Estimate) -> Estimate:
    """Return the difference of two independent estimates, its interval recovered from theirs (Zou and Donner 2008)."""
    n = first.n + second.n
    if not (first.assessed and second.assessed):
        lacking = second.reason if first.assessed else first.reason
        return Estimate.unknown(n, f"the two cannot be compared: {lacking}")
    (a, a_low, a_high), (b, b_low, b_high) = first.number(), second.number()
    low, high = np.hypot(a - a_low, b_high - b), np.hypot(a_high - a, b - b_low)
    return Estimate(a - b, float(a - b - low), float(a - b + high), n)


def _auc_reasons(found: Estimate, fall: Estimate | None, monitoring: Monitoring) -> list[str]:
    if found.value is None or found.high is None:
        return []
    reasons = []
    compared = fall is not None and fall.high is not None
    # Below the least AUC by truncation alone is no decay: where there is a reference, it has to be worse than that.
    if found.high < monitoring.minimum_auc and not (compared and fall.high >= 0):  # type: ignore[union-attr,operator]
        reasons.append(f"AUC {_shown(found)} lies below {monitoring.minimum_auc:g}")
    if fall is not None and fall.high is not None and fall.high < -monitoring.auc_fall:
        allowed = f"a fall of {monitoring.auc_fall:g} is allowed"
        reasons.append(f"AUC is {_shown(fall)} from the equally truncated reference, {allowed}")
    return reasons


def _grade_reasons(grades: GradeReport, monitoring: Monitoring) -> list[str]:
    beyond = set(grades.failed(together=True))
    failed = [
        each
        for each in grades.grades
        if each.name in beyond and each.bads > (1 + _RISE) * each.n * (each.mean_pd or 0.0)
    ]
    if len(failed) < monitoring.failed_grades:
        return []
    told = ", ".join(f"{each.name} ({each.bads / each.n:.1%} bad, {each.mean_pd:.1%} foreseen)" for each in failed[:5])
    return [f"more bad loans than foreseen in {len(failed)} grades: {told}"]


def _holding(found: Estimate, fall: Estimate | None) -> str:
    if fall is None or not fall.assessed:
        why = "no reference" if fall is None else fall.reason
        return f"AUC {_shown(found)}; not compared with tested loans ({why})"
    return f"AUC {_shown(found)}, {_shown(fall)} from the equally truncated reference"


def _shown(estimate: Estimate) -> str:
    value, low, high = estimate.number()
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _hash(judged: pd.DataFrame) -> str:
    pairs = zip(judged["application_id"].astype(str), judged["bad"].astype(int), strict=True)
    return sha256_hex(canonical_json(sorted([name, bad] for name, bad in pairs)))
