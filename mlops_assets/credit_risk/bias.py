"""Whether protected groups are treated alike by the decisions: the bias report, its tables and its gates.

What belongs here: the report, the verdict on each attribute, and what a page shows of it. What does not: what is
measured of a group (`_bias_measures.py`), probes into a model (`_bias_probes.py`), and mending what is found: a group's
own cut-off would need the attribute at decision time, which is disparate treatment.

The verdict on an attribute. Its lowest approval ratio is held against the bound, and the point estimate has to meet it
(`metrics.at_least`): the ratio is what was done to these very applicants, and letting an interval that reaches the
bound pass would reward small samples. Where the interval lies on both sides of the bound, the remark says so, passed or
failed. Two comparisons go by their interval instead, as they are many and each is noisy: a fall of a group's ratio
against the champion's, and, where they have a bound at all, intersections of two attributes. What is too small, absent
or unknown is not assessed, and never passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk._bias_feed import RawFeed, some
from mlops_assets.credit_risk._bias_groups import UNKNOWN, Attribute, Groups, join
from mlops_assets.credit_risk._bias_measures import (
    Decided,
    GroupResult,
    Limits,
    OddsResult,
    crossed,
    measure_groups,
    measure_odds,
)
from mlops_assets.credit_risk._bias_probes import (
    FlipTest,
    ProxyStrength,
    flip_test,
    less_discriminatory,
    proxy_strength,
    single_proxies,
)
from mlops_assets.credit_risk._bias_report import AttributeResult, BiasReport, Status
from mlops_assets.credit_risk.metrics import Estimate, Floats, Minimum, at_least, at_most
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import GateResult

if TYPE_CHECKING:
    from mlops_assets.credit_risk.models import PdModel
    from mlops_assets.credit_risk.policy import DecisionPolicy

__all__ = [
    "UNKNOWN",
    "Attribute",
    "AttributeResult",
    "BiasReport",
    "FlipTest",
    "GroupResult",
    "Limits",
    "OddsResult",
    "ProxyStrength",
    "bias_report",
    "flip_test",
    "gates",
    "less_discriminatory",
    "proxy_strength",
    "report_of",
    "single_proxies",
]

DECISIONS = ("accept", "refer", "reject")
GATE = "bias_report"

_FLIPPED_ROWS = 200
_LEFT_OUT = 8


def bias_report(
    frame: pd.DataFrame,
    protected: pd.DataFrame,
    attributes: Sequence[Attribute],
    *,
    limits: Limits | None = None,
    features: pd.DataFrame | None = None,
    flips: FlipTest | None = None,
    alternatives: pd.DataFrame | None = None,
) -> BiasReport:
    """Compare protected groups under decisions.

    Parameters
    ----------
    frame
        One row an application: decision (accept, refer or reject), pd (NaN where it was not scored), y (1 a bad, 0 a
        good, missing where no outcome is known), optionally champion_decision, and application_id unless ``protected``
        has the same index.
    protected
        The attributes, by application_id or row by row.
    attributes
        Which of them to compare, and how.
    features
        What the model sees, row by row: how well it tells the groups is then measured.
    flips, alternatives
        What `flip_test` and `less_discriminatory` found, to be shown with the rest.

    Raises
    ------
    UserError
        A column is missing, a decision is none of the three, an outcome is neither 0 nor 1, or an application has two
        rows of protected attributes.
    """
    bounds = limits or Limits()
    rows = _decided(frame)
    known = join(frame, protected, [each.name for each in attributes])
    groups = {each.name: each.assign(known[each.name]) for each in attributes}
    results = tuple(_attribute(each, rows, groups[each.name], bounds) for each in attributes)
    cells: list[GroupResult] = []
    for first, second in combinations(groups, 2):
        both = crossed(groups[first], groups[second])
        name = f"{first} & {second}"
        measured, _, _ = measure_groups(name, rows, both, reference=None, absent=(), limits=bounds)
        cells += [each for each in measured if each.group != UNKNOWN]
    proxies: list[ProxyStrength] = []
    single: list[ProxyStrength] = []
    if features is not None:
        for name, of_rows in groups.items():
            proxies += proxy_strength(name, features, of_rows, bounds)
            single += single_proxies(name, features, of_rows, bounds)
    return BiasReport(len(rows), results, tuple(cells), tuple(proxies), flips, alternatives, bounds, tuple(single))


def report_of(
    spec: Spec,
    model: "PdModel",
    frames: Mapping[str, pd.DataFrame],
    protected: pd.DataFrame,
    policy: "DecisionPolicy",
    champion: "PdModel | None" = None,
    *,
    refit: Callable[[tuple[str, ...]], Floats] | None = None,
) -> BiasReport:
    """Compare protected groups under a candidate's cut-offs on the loans of the frame `test`.

    Parameters
    ----------
    frames
        `test`: features, application_id and bad (0 or 1).
    protected
        The attributes of the test rows, with their index or an application_id.
    policy
        Its cut-offs alone decide here: what sends an application to a human whatever its PD is no part of the model.
    champion
        The model that serves, or None.
    refit
        From names of features to the test rows' PDs by a model trained on these: searches for an alternative without
        one of the eight features that tell most of a group.
    """
    test, limits = frames["test"], limits_of(spec)
    predicted = model.predict(model.schema.matrix(test))
    decided = test[["application_id", "bad"]].rename(columns={"bad": "y"})
    decided = decided.assign(decision=_decide(policy, predicted), pd=predicted)
    if champion is not None:
        decided["champion_decision"] = _decide(policy, champion.predict(champion.schema.matrix(test)))
    attributes = [Attribute.of(each) for each in spec.protected]
    known = join(decided, protected, [each.name for each in attributes])
    groups = {each.name: each.assign(known[each.name]) for each in attributes}
    alternatives = None
    if refit is not None and attributes and len(test):
        alternatives = less_discriminatory(
            refit, model.schema.names, decided["y"], groups, float((decided["decision"] == "accept").mean()),
            left_out=_telling(model.schema.matrix(test), groups, limits), auc_margin=spec.gates.auc_loss,
            references={each.name: each.reference for each in attributes},
            limits=limits,
        )  # fmt: skip
    return bias_report(
        decided,
        protected,
        attributes,
        limits=limits,
        features=model.schema.matrix(test),
        flips=_flips(spec, model, test.reset_index(drop=True), known.reset_index(drop=True)) if attributes else None,
        alternatives=alternatives,
    )


def _telling(features: pd.DataFrame, groups: Mapping[str, Groups], limits: Limits) -> list[str]:
    """Return the features that tell most of a group when they are alone: to leave them out promises most."""
    strength = {
        str(name): max(
            (each.auc.value or 0.0 for attribute, of_rows in groups.items()
             for each in single_proxies(attribute, features[[name]], of_rows, limits)),
            default=0.0,
        )
        for name in features.columns
    }  # fmt: skip
    return sorted(strength, key=lambda name: -strength[name])[:_LEFT_OUT]


def limits_of(spec: Spec) -> Limits:
    """Return the sizes and bounds of a spec."""
    least = spec.gates.minimum_group_outcomes
    return Limits(
        Minimum(spec.gates.minimum_group, least, least),
        approval_ratio=spec.gates.approval_ratio,
        approval_drop=spec.gates.approval_drop,
        proxy_auc=spec.gates.proxy_auc,
        seed=spec.training.seed,
    )


def gates(spec: Spec, report: BiasReport) -> list[GateResult]:
    """Return the report as gates: of each attribute approval and strongest proxy, flips, intersections below a bound.

    An attribute that the spec waives passes with the waiver as its reason; the report itself does not change.
    """
    bound = report.limits.approval_ratio
    found = [_gate(each, bound, spec.gates.waived_groups.get(each.attribute)) for each in report.attributes]
    if not found:
        reason = "the spec names no protected attribute: nothing could be compared"
        return [GateResult(GATE, "not_assessed", reason=reason)]
    low, least = report.low_intersections(), report.limits.intersection_ratio
    if low and least is not None:
        first = min(low, key=lambda cell: cell.approval_ratio.number()[0])
        told = f"{len(low)} groups of two attributes lie below the bound beyond chance, the lowest {first.group!r}"
        ratio = first.approval_ratio
        found.append(GateResult(GATE, "failed", ratio.value, least, _bounds(ratio), told))
    if report.flips is not None:
        value = float(report.flips.differing) if report.flips.compared else None
        found.append(GateResult(GATE, report.flips.status, value, 0.0, None, f"flip test: {report.flips.reason}"))
    for each in report.attributes:
        strongest = report.strongest_proxy(each.attribute)
        if strongest is not None:
            found.append(_proxy_gate(strongest, report.limits.proxy_auc, spec.gates.waived_groups.get(each.attribute)))
    return found


def _gate(result: AttributeResult, bound: float, waiver: str | None) -> GateResult:
    reason = f"lowest approval ratio by {result.attribute}: {result.reason}"
    status = result.status
    if waiver is not None and status != "passed":
        reason, status = f"waived ({waiver}); without it {status.replace('_', ' ')}: {reason}", "passed"
    return GateResult(GATE, status, result.ratio.value, bound, _bounds(result.ratio), reason)


def _proxy_gate(strongest: ProxyStrength, bound: float, waiver: str | None) -> GateResult:
    """Hold the strongest single feature against the bound: one that gives a group away is the attribute itself."""
    judged, status = at_most(strongest.auc, bound), at_most(strongest.auc, bound).status
    feature = (
        f"the feature {strongest.features[0]!r} alone tells" if strongest.features else "no feature can be judged:"
    )
    reason = f"strongest proxy: {feature} {strongest.attribute} = {strongest.group}, AUC {judged.reason}"
    if waiver is not None and status != "passed":
        reason, status = f"waived ({waiver}); without it {status.replace('_', ' ')}: {reason}", "passed"
    return GateResult(GATE, status, strongest.auc.value, bound, _bounds(strongest.auc), reason)


def _bounds(estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def _decided(frame: pd.DataFrame) -> Decided:
    missing = [name for name in ("decision", "pd", "y") if name not in frame.columns]
    if missing:
        raise UserError(
            f"column(s) {', '.join(missing)} are missing", where="the decisions to compare", remedy="give them."
        )
    decisions = {"decision": frame["decision"]}
    if "champion_decision" in frame.columns:
        decisions["champion_decision"] = frame["champion_decision"]
    for name, values in decisions.items():
        if not (known := values.isin(DECISIONS)).all():
            raise UserError(
                f"{int((~known).sum()):,} decisions are none of {', '.join(DECISIONS)}, such as "
                f"{values[~known].iloc[0]!r}",
                where=f"column {name!r}",
                remedy="give every application one of the three; what is in quarantine is referred.",
            )
    y = frame["y"].to_numpy(dtype=np.float64, na_value=np.nan)
    if (wrong := np.isfinite(y) & (y != 0) & (y != 1)).any():
        raise UserError(
            f"{int(wrong.sum()):,} outcomes are neither 0 nor 1, such as {y[wrong][0]:g}",
            where="column 'y'",
            remedy="give 1 for a bad, 0 for a good, and nothing where the outcome is not known yet.",
        )
    champion = decisions.get("champion_decision")
    return Decided(
        (frame["decision"] == "accept").to_numpy(),
        (frame["decision"] == "refer").to_numpy(),
        None if champion is None else (champion == "accept").to_numpy(),
        frame["pd"].to_numpy(dtype=np.float64, na_value=np.nan),
        y,
    )


def _attribute(attribute: Attribute, rows: Decided, groups: Groups, limits: Limits) -> AttributeResult:
    absent = [name for name in attribute.required if not (groups == name).any()]
    measured, reference, why = measure_groups(
        attribute.name, rows, groups, reference=attribute.reference, absent=absent, limits=limits
    )
    odds = measure_odds(rows, groups, limits)
    known = [each for each in measured if each.group != UNKNOWN and each.approval_ratio.assessed]
    lowest = min(known, key=lambda each: each.approval_ratio.number()[0], default=None)
    unknown_share = float((groups == UNKNOWN).mean()) if len(groups) else 0.0
    drops = [(each.group, each.ratio_change.high) for each in known]
    fallen = tuple(name for name, high in drops if high is not None and high < -limits.approval_drop)
    ratio = lowest.approval_ratio if lowest is not None else Estimate.unknown(len(rows), why or "no group is known")
    status, reason = _verdict(attribute, measured, lowest, odds, fallen, unknown_share, len(rows), limits)
    return AttributeResult(
        attribute.name, status, reason, None if lowest is None else lowest.group, ratio, reference, unknown_share,
        measured, odds, fallen,
    )  # fmt: skip


def _verdict(
    attribute: Attribute,
    groups: Sequence[GroupResult],
    lowest: GroupResult | None,
    odds: OddsResult,
    fallen: tuple[str, ...],
    unknown_share: float,
    rows: int,
    limits: Limits,
) -> tuple[Status, str]:
    """Return the status of an attribute with its reasons: what failed first, then what was not assessed."""
    failed: list[str] = []
    unknown: list[str] = []
    told: list[str] = []
    if lowest is not None:
        judged = at_least(lowest.approval_ratio, limits.approval_ratio)
        (failed if judged.status == "failed" else told).append(f"{lowest.group}: {judged.reason}")
    else:
        reasons = [each.approval_ratio.reason for each in groups if each.group != UNKNOWN]
        unknown.append(reasons[0] if reasons else "there are no applications" if not rows else "every value is unknown")
    drop = f"its ratio fell against the champion's by more than {limits.approval_drop:g}, beyond chance"
    failed += [f"{name}: {drop}" for name in fallen]
    if limits.equalised_odds is not None:
        judged = at_most(odds.equalised_odds, limits.equalised_odds)
        into = {"failed": failed, "not_assessed": unknown, "passed": told}[judged.status]
        into.append(f"equalised odds difference: {judged.reason}")
    unknown += [
        f"{each.group}: {each.approval_ratio.reason}"
        for each in groups
        if each.group in attribute.required and not each.approval_ratio.assessed
    ]
    if rows and unknown_share > limits.unknown_share:
        unknown.append(f"the value is unknown for {unknown_share:.0%} of the applications")
    status: Status = "failed" if failed else "not_assessed" if unknown else "passed"
    return status, "; ".join(dict.fromkeys([*failed, *unknown, *told]))


def _decide(policy: "DecisionPolicy", predicted: Floats) -> "NDArray[np.str_]":
    return np.select([predicted < policy.accept_below, predicted >= policy.reject_from], ["accept", "reject"], "refer")


def _flips(spec: Spec, model: "PdModel", test: pd.DataFrame, known: pd.DataFrame) -> FlipTest:
    """Change every protected value among those that occur, in some of the rows as their source would hold them."""
    rows = np.unique(np.linspace(0, max(len(test) - 1, 0), _FLIPPED_ROWS).round().astype(int))[: len(test)]
    feed = RawFeed(spec, model)
    raw = feed.accepted(feed.write(test.iloc[rows], known.iloc[rows]))
    columns = {str(name): feed.column(str(name)) for name in known.columns}
    values = {column: some(known[name]) for name, column in columns.items()}
    found = flip_test(feed.score, raw, list(values), values)
    return replace(found, by_column={name: found.by_column.get(column, 0) for name, column in columns.items()})
