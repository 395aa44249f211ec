"""The gates of a candidate: every value with its bound and interval, and the verdict on stored evidence.

What belongs here: what is held against which bound, evidence as plain values, and the champion's next record. What does
not: measuring (`evaluation.py`, `bias.py`, `explanations.py`), and moving the pointer, which only an approval does
(`foundation/_approval.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from mlops_assets.credit_risk import metrics
from mlops_assets.credit_risk.metrics import Estimate
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ChampionHistory, ChampionRecord, GateResult, ModelVersion, decide
from mlops_assets.foundation.snapshots import Snapshot

if TYPE_CHECKING:
    from mlops_assets.credit_risk.evaluation import Against, Measured

Status = Literal["passed", "failed", "not_assessed"]

STABILITY = "stability"
"""Gate of the gini's stability where it cannot be told: required nowhere, so that it is a remark."""

_WITHOUT_CHAMPION = ("champion_comparison", "shadow")
_OUTCOMES_STOP_AFTER_DAYS = 45.0


def held(gate: str, estimate: Estimate, bound: float, what: str, *, above: bool) -> GateResult:
    """Hold an estimate against a bound; what was not assessed has not passed."""
    judged = metrics.at_least(estimate, bound) if above else metrics.at_most(estimate, bound)
    interval = None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
    return GateResult(gate, judged.status, estimate.value, bound, interval, f"{what}: {judged.reason}")


def plain(gate: str, value: float, bound: float, what: str, *, above: bool) -> GateResult:
    """Hold a number that has no sampling error against a bound."""
    status: Status = "passed" if (value >= bound if above else value <= bound) else "failed"
    return GateResult(gate, status, value, bound, None, what)


def quality_gates(spec: Spec, measured: "Measured") -> list[GateResult]:
    """Return the gates that a candidate must pass by itself: accuracy, calibration and intervals."""
    bounds = spec.gates
    worst, leak = next(iter(measured.leakage.items()), ("none", 0.5))
    gates = [
        held("accuracy", measured.quality["auc"], bounds.minimum_auc, "AUC out of time", above=True),
        held("accuracy", measured.quality["auc"], bounds.maximum_auc,
             "AUC out of time, beyond the bound too good to be true without an explanation", above=False),
        held("accuracy", measured.quality["ks"], bounds.minimum_ks, "KS out of time", above=True),
        plain("accuracy", leak, bounds.leakage_auc, f"leakage: AUC of the feature {worst!r} alone", above=False),
        plain("accuracy", measured.overfit, bounds.overfit_gap, "AUC on training loans above that out of time",
              above=False),
    ]  # fmt: skip
    gates += list(_calibration_gates(spec, measured))
    gates.append(_coverage_gate(spec, measured.grades))
    return gates


def _coverage_gate(spec: Spec, grades: metrics.GradeReport) -> GateResult:
    """Hold the share of grades whose interval holds their PD against the fewest that chance allows.

    Intervals of level 0.95 hold 95 % of the true rates; of a handful of grades some may miss by chance. Fewer than the
    binomial distribution allows at the grades' level of the test are too few.
    """
    from scipy.stats import binom

    counted = [grade.covered for grade in grades.grades if grade.covered is not None]
    if not counted:
        return GateResult("interval_coverage", "not_assessed", reason="no grade has enough loans")
    held_by, fewest = sum(counted), int(binom.ppf(spec.gates.grade_level, len(counted), grades.level))
    estimate = grades.coverage
    interval = None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
    told = f"{held_by} of {len(counted)} grades have their PD within its interval; chance allows {fewest} or more"
    status: Status = "passed" if held_by >= fewest else "failed"
    share, bound = held_by / len(counted), fewest / len(counted)
    return GateResult("interval_coverage", status, share, bound, interval, told)


def _calibration_gates(spec: Spec, measured: "Measured") -> Iterator[GateResult]:
    """Yield the calibration error beyond what chance gives it, and the Jeffreys tests."""
    bounds, error = spec.gates, measured.quality["calibration_error"]
    what = "calibration error in ten bins"
    yield held("calibration", error, bounds.calibration_error + measured.calibration_noise, what, above=False)
    grades = measured.grades
    failed = grades.failed(bounds.grade_level, together=True)
    assessed = [grade.p_holm for grade in grades.grades if grade.p_holm is not None]
    if not assessed:
        yield GateResult("calibration", "not_assessed", reason="Jeffreys test: no grade has enough loans")
    else:
        told = f"in grade(s) {', '.join(failed)} the PD is too low" if failed else "no grade's PD is too low"
        status: Status = "failed" if failed else "passed"
        yield GateResult(
            "calibration", status, min(assessed), bounds.grade_level, None,
            f"Jeffreys test by grade, corrected for {len(assessed)} grades: {told}",
        )  # fmt: skip
    portfolio = grades.portfolio.p_value
    if portfolio is None:
        yield GateResult("calibration", "not_assessed", reason="Jeffreys test of the portfolio: too few loans")
    else:
        yield plain("calibration", portfolio, bounds.grade_level, "Jeffreys test of the portfolio", above=True)


def comparison_gates(spec: Spec, against: "Against") -> list[GateResult]:
    """Return the gates of the candidate beside the champion, all on the same loans."""
    bounds, gate = spec.gates, "champion_comparison"
    gates = [
        held(gate, against.auc, -bounds.auc_loss, "AUC gained over the champion", above=True),
        held(gate, against.brier, bounds.brier_rise, "relative rise of the Brier score", above=False),
        held(
            "accuracy", against.auc, bounds.too_good, "AUC gained over the champion, too good to be true", above=False
        ),
    ]
    gates.append(_stability_gate(spec, against.stability))
    gates += [_segment_gate(spec, feature, each) for feature, each in against.segments.items()]
    gates.append(_swap_gate(spec, against))
    if against.shadow is None:
        gates.append(GateResult("shadow", "not_assessed", reason="there are no live applications to score beside"))
    else:
        psi, bound = against.shadow.psi, max(bounds.shadow_psi, against.shadow.bound or 0.0)
        gates.append(held("shadow", psi, bound, "score PSI beside the champion on live applications", above=False))
    return gates


def _beyond_chance(gate: str, estimate: Estimate, bound: float, what: str) -> GateResult:
    """Hold a gain that is very noisy against a lower bound: only a loss whose whole interval lies below it fails."""
    value, low, high = estimate.number()
    failed = high < bound
    told = f"{what}: {value:.4g} ({low:.4g} to {high:.4g})"
    told += f", below {bound:.4g} beyond chance" if failed else f", not below {bound:.4g} beyond chance"
    return GateResult(gate, "failed" if failed else "passed", value, bound, (low, high), told)


def _stability_gate(spec: Spec, gained: Estimate) -> GateResult:
    """Hold the gini's stability against the champion's, which a short or untimed test does not tell.

    It blocks nothing then: the result is one of a gate that no risk level requires, and stands there as a remark.
    """
    bound, what = -spec.gates.stability_loss, "gini stability gained over the champion"
    if gained.assessed:
        return _beyond_chance("champion_comparison", gained, bound, what)
    return GateResult(STABILITY, "not_assessed", None, bound, None, f"{what}: {gained.reason}")


def _segment_gate(spec: Spec, feature: str, gained: Mapping[str, Estimate]) -> GateResult:
    """Hold the segment of a feature that comes nearest to a loss beyond chance against the bound.

    A segment too small to be measured says nothing about the others: it is named, and blocks only with all of them.
    """
    gate, bound = "champion_comparison", -spec.gates.segment_loss
    assessed = {label: each for label, each in gained.items() if each.assessed}
    small = [f"{label} ({each.reason})" for label, each in gained.items() if not each.assessed]
    left = f"; not assessed: {', '.join(small)}" if small else ""
    if not assessed:
        return GateResult(
            gate, "not_assessed", None, bound, None, f"AUC gained by {feature}: no segment is assessed{left}"
        )
    # By the upper end: a segment that failed stands before one that only looks worse, being small.
    worst = min(assessed, key=lambda label: assessed[label].number()[2])
    lost = [label for label in assessed if label != worst and assessed[label].number()[2] < bound]
    also = f"; likewise {', '.join(lost)}" if lost else ""
    result = _beyond_chance(gate, assessed[worst], bound, f"AUC gained among {feature} = {worst}")
    return replace(result, reason=f"{result.reason}{also}{left}")


def _swap_gate(spec: Spec, against: "Against") -> GateResult:
    """Few decisions flip, or those that do flip for the better."""
    flips, gain, bound = against.swap.flips, against.swap.gain, spec.gates.swap_share
    result = held("champion_comparison", flips, bound, "decisions that flip against the champion", above=False)
    if result.status == "failed" and gain.low is not None and gain.low > 0:
        told = f"those swapped out default {gain.value:.1%} more often than those swapped in ({gain.low:.1%} at least)"
        return GateResult(result.gate, "passed", result.value, bound, result.interval, f"{result.reason}, but {told}")
    return result


def reproducible(spec: Spec, training_set: Snapshot, version: ModelVersion) -> GateResult:
    """Train the candidate once more and compare the files, byte for byte."""
    from mlops_assets.credit_risk.training import retrained_files

    again, kept = retrained_files(spec, training_set, version.params["kind"]), dict(version.files)
    differing = sorted(name for name in {*again, *kept} if again.get(name) != kept.get(name))
    told = f"trained twice, other bytes in {', '.join(differing)}" if differing else "trained twice, the same bytes"
    return GateResult("accuracy", "failed" if differing else "passed", float(len(differing)), 0.0, None, told)


def watch_gate(spec: Spec, training_set: Snapshot) -> GateResult:
    """Tell whether outcomes still come in: without them nobody could see how good the model is in use."""
    last, as_of = training_set.metadata.get("last_outcome_at"), training_set.metadata["as_of"]
    if not spec.data.timed:
        return GateResult("monitoring", "passed", reason="untimed data: there is nothing to watch over time")
    if last is None:
        return GateResult("monitoring", "not_assessed", reason="no outcome has ever come in")
    days = (pd.to_datetime(str(as_of), utc=True) - pd.to_datetime(str(last), utc=True)).total_seconds() / 86_400
    bound = _OUTCOMES_STOP_AFTER_DAYS
    return plain("monitoring", max(days, 0.0), bound, f"days since the last outcome came in, at {as_of}", above=False)


def evidence_of(spec: Spec, measured: "Measured", gates: Sequence[GateResult]) -> dict[str, Any]:
    """Return what was measured as plain JSON values."""
    against = measured.against
    return {
        "gates": [gate.as_row() for gate in gates],
        "candidate_kind": measured.candidate,
        "choice": {"reason": measured.choice.reason, "difference": measured.choice.difference.as_row()},
        "rows": dict(measured.rows),
        "bads": dict(measured.bads),
        "metrics": {name: estimate.as_row() for name, estimate in measured.quality.items()},
        "contestants": {
            name: {metric: estimate.as_row() for metric, estimate in each.items()}
            for name, each in measured.contestants.items()
        },
        "grades": _records(measured.grades.table()),
        "gini_stability": {
            "score": measured.stability.score.as_row(),
            "slope_a_week": measured.stability.slope.as_row(),
            "gini_by_month": measured.stability.gini,
            "left_out": measured.stability.left_out,
        },
        "profit": measured.profit.to_dict(),
        "calibration": _records(measured.calibration),
        "segments": {name: _records(table) for name, table in measured.segments.items()},
        "leakage": dict(list(measured.leakage.items())[:20]),
        "overfit": measured.overfit,
        "train_psi": measured.train_psi.psi.as_row(),
        "against": None if against is None else _against(against),
        "bounds": spec.gates.model_dump(mode="json", exclude={"waived_groups"}),
    }


def _against(against: "Against") -> dict[str, Any]:
    return {
        "auc": against.auc.as_row(),
        "brier": against.brier.as_row(),
        "stability": against.stability.as_row(),
        "swap": _records(against.swap.table()),
        "flips": against.swap.flips.as_row(),
        "segments": {
            feature: {label: estimate.as_row() for label, estimate in each.items()}
            for feature, each in against.segments.items()
        },
        "shadow": None if against.shadow is None else against.shadow.psi.as_row(),
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows with None for what is missing or infinite: JSON has no words for these."""
    clean = frame.astype(object).where(frame.notna(), None)
    return [
        {str(name): None if isinstance(value, float) and abs(value) == float("inf") else value
         for name, value in row.items()}
        for row in clean.to_dict("records")
    ]  # fmt: skip


def read_gates(rows: Sequence[Mapping[str, Any]]) -> list[GateResult]:
    """Return the gates that evidence holds."""
    return [GateResult(**{**row, "interval": tuple(row["interval"]) if row.get("interval") else None}) for row in rows]


def gates_table(gates: Sequence[GateResult]) -> pd.DataFrame:
    """Return gates as rows for a page, those that did not pass first."""
    order = {"failed": 0, "not_assessed": 1, "passed": 2}
    rows = [
        {
            "gate": gate.gate,
            "status": gate.status,
            "value": gate.value,
            "bound": gate.bound,
            "interval": f"{gate.interval[0]:.4f} to {gate.interval[1]:.4f}" if gate.interval else "",
            "reason": gate.reason,
        }
        for gate in sorted(gates, key=lambda gate: order[gate.status])
    ]
    return pd.DataFrame(rows, columns=["gate", "status", "value", "bound", "interval", "reason"])


def required_gates(spec: Spec, *, champion: bool) -> list[str]:
    """Return the gates that the verdict on a version needs: those of the model, and of running beside the champion."""
    asked = [gate.name for gate in spec.risk.required_gates() if gate.axis == "algorithm"]
    asked += [gate.name for gate in spec.risk.required_gates() if gate.name in {"shadow", "incident", "approval"}]
    return [name for name in asked if champion or name not in _WITHOUT_CHAMPION]


def decide_champion(
    spec: Spec,
    history: ChampionHistory,
    version: ModelVersion,
    evidence_sha256: str,
    *,
    incident: GateResult,
    by: str,
) -> tuple[ChampionRecord, list[GateResult]]:
    """Judge a candidate on the evidence stored with it; where the profile asks for approval it is proposed at most.

    Parameters
    ----------
    incident
        Whether a data incident is open at this moment, which no stored evidence can know.
    by
        The run that decides.

    Raises
    ------
    UserError
        There is no such evidence with the version, or it is about another one.
    """
    evidence = history.registry.evidence(version, evidence_sha256)
    if evidence["candidate"]["sha256"] != version.sha256:
        raise UserError(
            f"the evidence {evidence_sha256[:12]} is about {evidence['candidate']['sha256'][:12]}, not about {version}",
            where=f"{spec.name}/champion",
            remedy=f"materialize {spec.name}/evaluation and what follows from it again.",
        )
    gates = [*read_gates(evidence["gates"]), incident]
    current = history.champion() if history.current() is not None else None
    compared_with = evidence["champion"]["sha256"] if evidence["champion"] else None
    comparison = _whole(gates, current is not None)
    if current is not None and current.sha256 not in {compared_with, version.sha256}:
        then = f"{compared_with[:12]}, which does not serve now" if compared_with else "no champion, and there is one"
        reason = f"it was evaluated beside {then}: evaluate again"
        comparison = GateResult("champion_comparison", "not_assessed", reason=reason)
    gates = [gate for gate in gates if gate.gate != "champion_comparison"]
    gates += [comparison] if comparison is not None else []
    required = required_gates(spec, champion=current is not None)
    verdict = decide(version, current, gates, required, comparison, held_back=history.held_back(version))
    valid_for = timedelta(days=spec.gates.proposal_days)
    record = history.next_record(verdict, version, by=by, evidence_sha256=evidence_sha256, valid_for=valid_for)
    return record, gates


def _whole(gates: Sequence[GateResult], champion: bool) -> GateResult | None:
    """Return all comparisons with the champion as one: passed only where every one is."""
    parts = [gate for gate in gates if gate.gate == "champion_comparison"]
    if not champion or not parts:
        return None
    worst = min(parts, key=lambda gate: ("failed", "not_assessed", "passed").index(gate.status))
    if worst.status == "passed":
        first = parts[0]
        return GateResult(first.gate, "passed", first.value, first.bound, first.interval, first.reason)
    told = "; ".join(gate.reason for gate in parts if gate.status == worst.status)
    return GateResult(worst.gate, worst.status, worst.value, worst.bound, worst.interval, told)
