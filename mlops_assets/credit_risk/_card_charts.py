"""The pictures of a model card.

What belongs here: evidence turned into what a chart needs; None where there is nothing to draw. What does not: drawing
(`foundation/plots.py`).
"""

from mlops_assets.credit_risk._card_values import NAMES, Facts, assessed, interval
from mlops_assets.foundation import plots

_MOST_GROUPS = 14
_MOST_FEATURES = 12


def contestants(facts: Facts) -> bytes | None:
    """Draw the AUC of the candidate, the other contestant and the champion."""
    found = facts.evaluation.get("contestants") or {}
    candidate = facts.evaluation.get("candidate_kind") or facts.kind
    names = sorted(found, key=lambda name: name != candidate)
    rows = {
        f"{NAMES.get(name, name)}{' (this version)' if name == candidate else ''}": interval(found[name]["auc"])
        for name in names
        if assessed(found[name].get("auc"))
    }
    return plots.intervals(rows, title="Order of out-of-time loans", axis="AUC with 95 % interval") if rows else None


def calibration(facts: Facts) -> bytes | None:
    """Draw bad rates against PDs."""
    needed = ("mean_pd", "bad_rate", "bad_rate_low", "bad_rate_high")
    points = [
        (row["mean_pd"], row["bad_rate"], row["bad_rate_low"], row["bad_rate_high"])
        for row in facts.evaluation.get("calibration") or ()
        if all(row.get(name) is not None for name in needed)
    ]
    if not points:
        return None
    return plots.agreement(
        points, title="PDs and what became of the loans", axis="observed bad rate, 95 % interval", along="mean PD"
    )


def over_months(facts: Facts) -> bytes | None:
    """Draw the gini of each month."""
    by_month = (facts.evaluation.get("gini_stability") or {}).get("gini_by_month") or {}
    if not any(value is not None for value in by_month.values()):
        return None
    return plots.over_time(by_month, title="Gini by month of application (dashed: mean)", axis="gini")


def profit(facts: Facts) -> bytes | None:
    """Draw the profit an application by cut-off."""
    found = facts.evaluation.get("profit") or {}
    rows = [row for row in found.get("curve") or () if row.get("profit") is not None]
    if not rows:
        return None
    points = [(row["cut"], row["profit"], row["low"], row["high"]) for row in rows]
    marks = {
        "accepted below": facts.policy.accept_below,
        "rejected from": facts.policy.reject_from,
    }
    return plots.band(
        points,
        title="What a cut-off would have earned",
        axis="profit an application (share of the amount)",
        along="cut-off in PD",
        beside={"expected from the PDs": [(row["cut"], row["expected"]) for row in rows]},
        marks=marks,
    )


def approvals(facts: Facts) -> bytes | None:
    """Draw the approval ratio of each group that was assessed, the lowest first."""
    groups = [
        (f"{each['attribute']}: {each['group']}", interval(each["approval_ratio"]))
        for attribute in facts.bias.get("attributes") or ()
        for each in attribute.get("groups") or ()
        if assessed(each.get("approval_ratio")) and each["group"] != attribute.get("reference")
    ]
    if not groups:
        return None
    groups.sort(key=lambda row: row[1][0])
    bound = (facts.bias.get("limits") or {}).get("approval_ratio")
    return plots.intervals(
        dict(groups[:_MOST_GROUPS]),
        title=f"Approval ratio by group (dashed: {bound:.2f})" if bound else "Approval ratio by group",
        axis="approval rate over that of the reference group, 95 % interval",
        bound=bound,
    )


def importance(facts: Facts) -> bytes | None:
    """Draw what moves the scores."""
    rows = {
        str(row["label"]): float(row["moves"])
        for row in (facts.explanations.get("importance") or ())[:_MOST_FEATURES]
        if row.get("moves")
    }
    if not rows:
        return None
    unit = facts.explanations.get("unit") or "score"
    return plots.bars(rows, title="What moves the scores", axis=f"mean distance from the baseline, in {unit}")
