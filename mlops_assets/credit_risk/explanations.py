"""What moves a model's scores, and whether the reasons that it gives are true.

What belongs here: the questions that a candidate's reasons have to answer on out-of-time loans, what was found, and the
gates. What does not: how reasons are made (`reasons.py`), the experiments (`_reason_probes.py`), and protected
attributes: the flip test is part of the bias report (`bias.py`), their only reader.

A reason is true if the contributions behind it add up to the score, if they point the way that the spec promises, if
the score gets better once what the reason names is put right, and if it does not hang on which loans happened to be in
the training sample.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk import _reason_probes as probes
from mlops_assets.credit_risk import reasons as told
from mlops_assets.credit_risk._reason_probes import Direction, Fidelity, Point, Stability
from mlops_assets.credit_risk.judging import held, plain
from mlops_assets.credit_risk.metrics import Estimate, Floats, proportion
from mlops_assets.credit_risk.models import PdModel, Scores
from mlops_assets.credit_risk.policy import RULE_NAMES, DecisionPolicy
from mlops_assets.credit_risk.reasons import ADDITIVITY, Reasons, ReasonTable
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import GateResult

__all__ = [
    "FIDELITY",
    "UNEXPLAINED",
    "Additivity",
    "Direction",
    "Explained",
    "Fidelity",
    "Importance",
    "Point",
    "Stability",
    "Told",
    "explain_model",
    "gates",
]

GATE = "explanations"
FIDELITY = 0.95
"""Least share of applications whose PD falls once what their first reason names is put right."""
UNEXPLAINED = 0.01
"""Largest share of the applications above the cut for which no reason can be told; each of them goes to a human."""

_RISKIEST = 100
_MOST_ROWS = 2_000
_RESAMPLES = 3
_TABLE_ROWS = 20
_SHOWN_DEPENDENCE = 4


@dataclass(frozen=True)
class Additivity:
    """Whether contributions add up to scores.

    Parameters
    ----------
    rows, off
        Applications, and those off by more than `reasons.ADDITIVITY`.
    worst
        The largest residual, in the unit of the contributions; None where the model gave none.
    error
        What the model said instead of a score.
    """

    rows: int
    off: int
    worst: float | None
    error: str = ""


@dataclass(frozen=True)
class Importance:
    """How much one feature moves the scores of the out-of-time loans.

    Parameters
    ----------
    moves
        Mean distance from the baseline, in the unit of the contributions.
    share
        Of the sum over all features.
    raises
        Share of the applications whose risk it raises.
    trained
        The same mean over the training set, as the model itself reports it.
    """

    feature: str
    label: str
    theme: str
    direction: int
    moves: float
    share: float
    raises: float
    trained: float


@dataclass(frozen=True)
class Told:
    """Who can be told why.

    Parameters
    ----------
    asked
        Applications whose reasons were looked at: those that are not accepted, or the riskiest where these are few.
    above_cut, rejected
        Applications above the cut, and those of them that the policy rejects.
    unexplained
        Share of those above the cut for whom there is no reason; the policy refers them to a human.
    rejected_without
        Rejected applications without a reason.
    first, any
        Theme to the share of the asked whose first reason it is, and of whose reasons it is one.
    """

    asked: int
    above_cut: int
    rejected: int
    unexplained: Estimate
    rejected_without: int
    first: Mapping[str, float]
    any: Mapping[str, float]


@dataclass(frozen=True)
class Explained:
    """Everything that was found of a model's explanations; counts and means alone, nobody's row."""

    kind: str
    baseline: str
    unit: str
    rows: int
    additivity: Additivity
    table_version: str
    table_problem: str
    importance: tuple[Importance, ...]
    dependence: tuple[Point, ...]
    directions: tuple[Direction, ...]
    told: Told
    fidelity: Fidelity
    stability: Stability

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values, for evidence."""
        raw = asdict(self)
        for each, row in zip(self.directions, raw["directions"], strict=True):
            row["share"] = each.share
        raw["fidelity"]["by_theme"] = {name: list(row) for name, row in self.fidelity.by_theme.items()}
        raw["stability"]["by_resample"] = list(self.stability.by_resample)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in raw.items()}

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return tables for a page by name, at most 20 rows each."""
        found = {
            "importance": pd.DataFrame([asdict(each) for each in self.importance]),
            "reasons": _reasons_table(self),
            "reason_checks": _checks_table(self),
            "directions": pd.DataFrame([{**asdict(each), "share": each.share} for each in self.directions]),
            "dependence": self._shown_dependence(),
        }
        return {name: table.head(_TABLE_ROWS) for name, table in found.items() if len(table)}

    def _shown_dependence(self) -> pd.DataFrame:
        names = list(dict.fromkeys(point.feature for point in self.dependence))[:_SHOWN_DEPENDENCE]
        return pd.DataFrame([asdict(point) for point in self.dependence if point.feature in names])


def explain_model(
    spec: Spec,
    model: PdModel,
    table: ReasonTable,
    frames: Mapping[str, pd.DataFrame],
    policy: DecisionPolicy,
    *,
    resamples: int = _RESAMPLES,
) -> Explained:
    """Look at what moves a model's scores on the loans of the frame `test`, and put its reasons to the test.

    Parameters
    ----------
    table
        The sentences that were stored with the model.
    frames
        `train`, `calibrate` and `test`: features and bad (0 or 1).
    policy
        Its cut-offs say whose reasons matter.
    resamples
        How many times the same kind of model is trained on a resample of `train`.
    """
    matrix = model.schema.matrix(frames["test"])
    known = model.schema.matrix(frames["train"])
    additivity, scores = _score(model, matrix)
    importance = _importance(model, scores)
    most_important = [each.feature for each in importance[:6] if each.moves > 0]
    return Explained(
        kind=model.kind,
        baseline=model.baseline,
        unit="log-odds" if scores is None or scores.points is None else "points",
        rows=len(matrix),
        additivity=additivity,
        table_version=table.version,
        table_problem=_table_problem(spec, model, table),
        importance=importance,
        dependence=probes.dependence(model, matrix, known, most_important) if scores is not None else (),
        directions=probes.directions(model, matrix, known) if scores is not None else (),
        **_reasons(spec, model, frames, matrix, scores if not additivity.off else None, policy, resamples),
    )


def gates(spec: Spec, explained: Explained) -> list[GateResult]:
    """Return what the reasons are held against; every one has to pass."""
    found = [_additivity_gate(explained.additivity), _table_gate(explained)]
    promised = [each for each in explained.directions if each.wanted]
    if promised:
        wrong = [each for each in promised if each.wrong]
        named = "; ".join(f"{each.label} by up to {each.worst:.2g} in PD" for each in wrong)
        what = (
            f"moves of the PD against the direction of {len(promised)} features, "
            f"in {sum(each.comparisons for each in promised):,} comparisons"
        )
        found.append(
            plain(GATE, sum(each.wrong for each in wrong), 0, f"{what}: {named}" if wrong else what, above=False)
        )
    who = explained.told
    found += [
        plain(
            GATE, who.rejected_without, 0, f"rejections without a reason, of {who.rejected:,} rejections", above=False
        ),
        held(GATE, explained.fidelity.fell, FIDELITY,
             "PD falls once what the first reason names is put right", above=True),
        held(GATE, explained.stability.first, spec.gates.reason_stability,
             f"first reason stays after training on a resample{_beside(explained.stability)}", above=True),
    ]  # fmt: skip
    if who.above_cut:
        found.append(
            held(GATE, who.unexplained, UNEXPLAINED, "above the cut without a reason, so referred", above=False)
        )
    return found


def _additivity_gate(found: Additivity) -> GateResult:
    what = f"additivity: the largest part of a score that its contributions leave open, over {found.rows:,} rows"
    if found.error:
        return GateResult(GATE, "failed", None, ADDITIVITY, None, f"{what}: {found.error}")
    if found.worst is None:
        return GateResult(GATE, "not_assessed", None, ADDITIVITY, None, f"{what}: there are no rows")
    return plain(GATE, found.worst, ADDITIVITY, f"{what}; {found.off:,} are off", above=False)


def _table_gate(explained: Explained) -> GateResult:
    what = f"every feature has a sentence in the reason table {explained.table_version}, and none is protected"
    if explained.table_problem:
        return GateResult(GATE, "failed", reason=explained.table_problem)
    return GateResult(GATE, "passed", 0.0, 0.0, None, what)


def _beside(stability: Stability) -> str:
    if not stability.first.assessed:
        return ""
    return (
        f" ({stability.overlap.value:.0%} of the reasons in common, {stability.flipped.value:.1%} of the decisions "
        f"flip, half the PDs move by more than {stability.moved.value:.4f})"
    )


def _score(model: PdModel, matrix: pd.DataFrame) -> tuple[Additivity, Scores | None]:
    try:
        scores = model.score(matrix)
    except ArithmeticError as error:
        # A model that looks after its own contributions refuses to tell any: that is a finding, not a mistake here.
        return Additivity(len(matrix), len(matrix), None, str(error)), None
    residual = np.abs(scores.residual)
    off = int((~(residual <= ADDITIVITY)).sum())
    if not len(residual):
        return Additivity(0, 0, None), scores
    if not np.isfinite(residual).all():
        return Additivity(len(matrix), off, None, f"{int((~np.isfinite(residual)).sum())} are no numbers"), scores
    return Additivity(len(matrix), off, float(residual.max())), scores


def _table_problem(spec: Spec, model: PdModel, table: ReasonTable) -> str:
    try:
        table.check(model.schema, spec.protected_names)
    except UserError as error:
        return error.what
    return ""


def _importance(model: PdModel, scores: Scores | None) -> tuple[Importance, ...]:
    trained = model.importance()
    count = len(model.schema.features)
    moves, raises = np.zeros(count), np.zeros(count)
    if scores is not None and len(scores.pd):
        moves = np.abs(scores.contributions).mean(axis=0)
        raises = (scores.contributions > 0).mean(axis=0)
    total = float(moves.sum()) or 1.0
    found = [
        Importance(
            feature.name, feature.label, feature.theme, feature.monotone, float(moves[at]), float(moves[at]) / total,
            float(raises[at]), float(trained[feature.name]),
        )
        for at, feature in enumerate(model.schema.features)
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda each: (-each.moves, -each.trained, each.feature)))


def _reasons(
    spec: Spec,
    model: PdModel,
    frames: Mapping[str, pd.DataFrame],
    matrix: pd.DataFrame,
    scores: Scores | None,
    policy: DecisionPolicy,
    resamples: int,
) -> dict[str, Any]:
    """Return what was found of reasons, fidelity and stability; not assessed without contributions that add up."""
    if scores is None or not len(matrix):
        why = "there are no rows" if scores is not None else "the contributions do not add up: no reason can be told"
        unknown = Estimate.unknown(0, why)
        nobody = Told(0, 0, 0, unknown, 0, {}, {})
        return {
            "told": nobody,
            "fidelity": Fidelity(unknown, unknown, {}),
            "stability": Stability(unknown, unknown, unknown, unknown, ()),
        }
    reasons = told.explain(scores, matrix, model.schema, most=policy.reasons)
    asked = _asked(scores.pd, policy)
    approved = matrix[scores.pd < policy.accept_below]
    some = _at_most(asked & reasons.any, _MOST_ROWS)
    return {
        "told": _who(scores.pd, reasons, asked, policy),
        "fidelity": _fidelity(model, matrix, approved, some, policy),
        "stability": probes.stability(spec, model, frames, some, policy, resamples=resamples),
    }


def _fidelity(
    model: PdModel, matrix: pd.DataFrame, approved: pd.DataFrame, some: NDArray[np.bool_], policy: DecisionPolicy
) -> Fidelity:
    if not len(approved):
        unknown = Estimate.unknown(int(some.sum()), "nobody is approved: there is nothing to compare with")
        return Fidelity(unknown, unknown, {})
    rows = matrix[some]
    scores = model.score(rows)
    reasons = told.explain(scores, rows, model.schema, most=policy.reasons)
    return probes.fidelity(model, rows, scores, reasons, approved)


def _asked(predicted: Floats, policy: DecisionPolicy) -> NDArray[np.bool_]:
    """(n,) Who is not accepted; where these are few, who is riskiest."""
    declined = np.asarray(predicted >= policy.accept_below)
    if declined.sum() < _RISKIEST:
        declined = declined.copy()
        declined[np.argsort(-predicted, kind="stable")[:_RISKIEST]] = True
    return declined


def _at_most(mask: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Keep at most so many of the marked rows, spread evenly."""
    at = np.flatnonzero(mask)
    kept = np.zeros(len(mask), dtype=bool)
    if len(at):
        kept[at[np.unique(np.linspace(0, len(at) - 1, min(most, len(at))).astype(int))]] = True
    return kept


def _who(predicted: Floats, reasons: Reasons, asked: NDArray[np.bool_], policy: DecisionPolicy) -> Told:
    nothing = np.zeros(len(predicted), dtype=bool)
    rules = policy.decide(
        predicted, thin=nothing, out_of_range=nothing, outlier=nothing, has_reason=reasons.any,
        informed=reasons.informed,
    )  # fmt: skip
    rejected = rules == RULE_NAMES.index("above_cut")
    above = predicted >= policy.reject_from
    order, count = reasons.order[asked], max(int(asked.sum()), 1)
    first = {name: float((order[:, 0] == at).sum()) / count for at, name in enumerate(reasons.themes)}
    every = {name: float((order == at).any(axis=1).sum()) / count for at, name in enumerate(reasons.themes)}
    return Told(
        int(asked.sum()), int(above.sum()), int(rejected.sum()),
        proportion(int((above & ~reasons.any).sum()), int(above.sum()), least=probes.LEAST),
        int((rejected & ~reasons.any).sum()), first, every,
    )  # fmt: skip


def _reasons_table(explained: Explained) -> pd.DataFrame:
    by_theme = explained.fidelity.by_theme
    rows = []
    for name, first in sorted(explained.told.first.items(), key=lambda item: (-item[1], item[0])):
        count, fell, fall = by_theme.get(name, (0, None, None))
        rows.append(
            {"theme": name, "first_reason": first, "among_reasons": explained.told.any[name], "put_right": count}
            | {"pd_falls": fell, "median_fall": fall}
        )
    return pd.DataFrame(rows)


def _checks_table(explained: Explained) -> pd.DataFrame:
    estimates = {
        "PD falls once the first reason is put right": explained.fidelity.fell,
        "by (median, in PD)": explained.fidelity.median_fall,
        "first reason stays after a resample": explained.stability.first,
        "reasons in common after a resample": explained.stability.overlap,
        "decisions that flip after a resample": explained.stability.flipped,
        "PD moves after a resample (median)": explained.stability.moved,
        "above the cut without a reason": explained.told.unexplained,
    }
    rows = [
        {"check": name, **dict(zip(("value", "low", "high"), each.number(), strict=True))}
        | {"n": each.n, "status": each.status, "reason": each.reason}
        for name, each in estimates.items()
    ]
    return pd.DataFrame(rows)
