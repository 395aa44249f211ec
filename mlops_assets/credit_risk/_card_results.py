"""What a model card says of results: performance, calibration, stability, segments, groups, reasons, policy.

What belongs here: these sections, from stored evidence alone. What does not: measuring (`evaluation.py`, `bias.py`,
`explanations.py`), and markup (`_card_page.py`).
"""

from collections.abc import Sequence
from typing import Any

from mlops_assets.credit_risk import _card_charts as charts
from mlops_assets.credit_risk import _card_page as html
from mlops_assets.credit_risk._card_page import Html, Section
from mlops_assets.credit_risk._card_values import (
    NAMES,
    Facts,
    Raw,
    assessed,
    count,
    named,
    number,
    row_interval,
    share,
    spread,
    unknown_of,
    why,
)
from mlops_assets.credit_risk.policy import RULES

_MOST_ROWS = 20


def performance(facts: Facts) -> Section:
    """Tell how well the model tells good loans from bad ones, beside the other contestant and the champion."""
    found, rows = facts.evaluation.get("metrics") or {}, []
    contestants = facts.evaluation.get("contestants") or {}
    candidate = facts.evaluation.get("candidate_kind") or facts.kind
    for name in sorted(contestants, key=lambda each: each != candidate):
        each = contestants[name]
        rows.append(
            {"model": NAMES.get(name, name) + (" (this version)" if name == candidate else "")}
            | {metric: spread(each.get(metric)) for metric in ("auc", "ks", "brier", "calibration_error")}
        )
    columns = {"model": "model"} | {name: NAMES[name] for name in ("auc", "ks", "brier", "calibration_error")}
    chosen = (facts.evaluation.get("choice") or {}).get("reason")
    blocks = [
        html.paragraph(f"Of the two candidates this is {chosen}." if chosen else ""),
        html.table(columns, rows, "On the same out-of-time loans, with 95 % intervals"),
        html.pair(
            _figure(
                charts.contestants(facts), "AUC with intervals of this version, the other contestant and the champion"
            ),
            html.table(
                {"metric": "metric", "value": "this version"},
                [{"metric": NAMES.get(name, name), "value": spread(each)} for name, each in found.items()],
            ),
        ),
        *_against(facts),
        *_too_good(facts),
    ]
    missing = [] if assessed(found.get("auc")) else [why(found.get("auc"), "AUC out of time")]
    unknown = unknown_of({NAMES.get(name, name): each for name, each in found.items()})
    if not facts.evaluation.get("champion"):
        unknown.append("comparison with a champion: none serves")
    return Section("Performance", blocks, missing, unknown)


def _against(facts: Facts) -> list[Html]:
    against = facts.evaluation.get("against")
    if not against:
        return [html.paragraph("There was no champion to compare with.")]
    told = {
        "AUC gained": spread(against.get("auc")),
        "Relative rise of the Brier score": spread(against.get("brier")),
        "Gini stability gained": spread(against.get("stability")),
        "Decisions that flip": spread(against.get("flips"), percent=True),
        "Score PSI on live applications": spread(against.get("shadow")),
    }
    swaps = [
        {"who": str(row["applications"]).replace("_", " "), "n": row["n"], "rate": row_rate(row)}
        for row in against.get("swap") or ()
    ]
    return [
        html.heading("Against the champion"),
        html.facts(told),
        html.table({"who": "accepted", "n": "applications", "rate": "bad rate of those with an outcome"}, swaps),
    ]


def row_rate(row: Raw) -> str:
    """Write the bad rate of a set of applications."""
    return spread({"value": row.get("bad_rate"), "low": row.get("low"), "high": row.get("high")}, percent=True)


def _too_good(facts: Facts) -> list[Html]:
    leakage = facts.evaluation.get("leakage") or {}
    if not leakage:
        return []
    feature, area = max(leakage.items(), key=lambda item: item[1])
    overfit = facts.evaluation.get("overfit")
    return [
        html.paragraph(
            f"Looked for what would be too good to be true: the strongest single feature ({feature}) has an AUC of "
            f"{number(area, 3)} alone, and AUC on the training loans is {number(overfit)} above that out of time."
        )
    ]


def calibration(facts: Facts) -> Section:
    """Tell whether a PD means what it says."""
    grades = facts.evaluation.get("grades") or []
    error = (facts.evaluation.get("metrics") or {}).get("calibration_error")
    rows = [
        {
            "grade": row.get("grade"),
            "up_to": share(row.get("pd_up_to")),
            "n": row.get("n"),
            "bads": row.get("bads"),
            "pd": share(row.get("mean_pd"), 2),
            "rate": row_interval(row, "bad_rate", percent=True),
            "p": number(row.get("p_holm"), 3),
        }
        for row in grades[:_MOST_ROWS]
    ]
    columns = {
        "grade": "grade", "up_to": "PD up to", "n": "loans", "bads": "bad", "pd": "mean PD",
        "rate": "observed bad rate", "p": "p, Jeffreys (Holm)",
    }  # fmt: skip
    blocks = [
        html.pair(
            _figure(
                charts.calibration(facts),
                "Observed bad rate against mean PD in ten bins",
                "Bins of equal size. A dot on the dashed line is right; red where the interval misses it.",
            ),
            Html(
                html.facts({"Calibration error": spread(error), "Remark": (error or {}).get("reason")})
                + html.paragraph(
                    "The Jeffreys test asks for each grade whether so many bad loans are possible if the PD is right; "
                    "a small p says that the PD is too low. It is corrected for the number of grades."
                )
            ),
        ),
        html.table(columns, rows),
    ]
    tested = [row for row in grades if row.get("mean_pd") is not None and row.get("status") == "assessed"]
    missing = [] if assessed(error) or tested else [why(error, "calibration, in bins or by grade")]
    unknown = unknown_of({"calibration error": error}) if not missing else []
    unknown += [f"grade {row['grade']}: {row['reason']}" for row in grades if row.get("status") == "not_assessed"]
    return Section("Calibration", blocks, missing, unknown)


def stability(facts: Facts) -> Section:
    """Tell whether the model stays as good over the months it was judged on."""
    found, psi = facts.evaluation.get("gini_stability") or {}, facts.evaluation.get("train_psi")
    score = found.get("score")
    blocks = [
        html.pair(
            _figure(charts.over_months(facts), "Gini by month of application"),
            Html(
                html.facts(
                    {
                        "Gini stability": spread(score),
                        "Slope of the gini, a week": spread(found.get("slope_a_week")),
                        "Score PSI, training to test": spread(psi),
                    }
                )
                + html.paragraph(
                    "Gini stability is the mean of the monthly gini, less a penalty for a fall over time and for its "
                    "scatter."
                )
            ),
        )
    ]
    unknown = unknown_of({"gini stability over months": score, "score PSI, training to test": psi})
    unknown += [f"gini of {month}: {reason}" for month, reason in (found.get("left_out") or {}).items()]
    missing = [] if assessed(score) or assessed(psi) else ["stability: neither months nor scores could be compared"]
    return Section("Stability over time", blocks, missing, unknown)


def segments(facts: Facts) -> Section:
    """Tell how the model does on parts of the applications."""
    tables = facts.evaluation.get("segments") or {}
    blocks, unknown, some = [], [], False
    labels = {feature.name: feature.label for feature in facts.schema.features}
    for name, found in tables.items():
        rows = [
            {
                "segment": row.get("segment"),
                "n": row.get("n"),
                "bads": row.get("bads"),
                "rate": row_interval(row, "bad_rate", percent=True),
                "gap": row_interval(row, "calibration_gap", percent=True),
                "auc": row_interval(row, "auc"),
            }
            for row in found[:_MOST_ROWS]
        ]
        columns = {
            "segment": labels.get(name, name), "n": "loans", "bads": "bad", "rate": "bad rate",
            "gap": "bad rate less PD", "auc": "AUC",
        }  # fmt: skip
        blocks.append(html.table(columns, rows))
        some = some or any(row.get("status") == "assessed" for row in found)
        unknown += [f"{name} = {row.get('segment')}: {row['reason']}" for row in found if row.get("reason")]
    lacking = [name for name in facts.spec.segments if not tables.get(name)]
    missing = [f"the segment {name}" for name in lacking]
    if tables and not some and not missing:
        missing.append("segments: none is large enough to be assessed")
    if not facts.spec.segments:
        blocks.append(html.paragraph("The spec names no feature whose values are to be looked at one by one."))
        unknown.append("segments: the spec names none (`segments`)")
    return Section("Segments", blocks, missing, unknown)


def groups(facts: Facts) -> Section:
    """Tell whether protected groups are treated alike."""
    attributes: Sequence[Raw] = facts.bias.get("attributes") or ()
    waived = facts.spec.gates.waived_groups
    rows = [
        {
            "attribute": each["attribute"],
            "status": html.chip(str(each.get("status") or "not_assessed")),
            "lowest": each.get("lowest"),
            "ratio": spread(each.get("ratio")),
            "reference": each.get("reference"),
            "unknown": share(each.get("unknown_share")),
            "odds": spread((each.get("odds") or {}).get("equalised_odds")),
            "waiver": waived.get(each["attribute"], ""),
        }
        for each in attributes
    ]
    columns = {
        "attribute": "attribute", "status": "status", "lowest": "lowest", "ratio": "its approval ratio",
        "reference": "against", "unknown": "unknown", "odds": "equalised odds difference", "waiver": "waived because",
    }  # fmt: skip
    blocks = [
        html.paragraph(
            "Decisions of this version's cut-offs on out-of-time loans; the bound on the approval ratio is "
            f"{facts.spec.gates.approval_ratio:g}. No decision, reason or cut-off uses a protected attribute."
        ),
        _figure(charts.approvals(facts), "Approval ratio of each group with its interval, and the bound"),
        html.table(columns, rows),
        html.table(_GROUP_COLUMNS, [_group(each) for attribute in attributes for each in attribute.get("groups") or ()],
                   "By group"),
        *_probes(facts),
    ]  # fmt: skip
    missing = [] if attributes else ["protected groups: nothing was compared"]
    told = [each for each in attributes if each.get("status") != "not_assessed" or each["attribute"] in waived]
    missing += [why(each, each["attribute"]) for each in attributes if each not in told]
    unknown = [
        f"{each['attribute']} = {each['group']}: {each['approval_ratio'].get('reason')}"
        for attribute in attributes
        for each in attribute.get("groups") or ()
        if not assessed(each.get("approval_ratio"))
    ]
    unknown += [f"{each['attribute']} ({waived[each['attribute']]})" for each in attributes
                if each.get("status") == "not_assessed" and each["attribute"] in waived]  # fmt: skip
    cells = [each for each in facts.bias.get("intersections") or () if not assessed(each.get("approval_ratio"))]
    if cells:
        unknown.append(
            f"{len(cells)} intersections of two attributes are too small: "
            + named([f"{each['attribute']} = {each['group']}" for each in cells], 4)
        )
    return Section("Protected groups", blocks, missing, unknown)


_GROUP_COLUMNS = {
    "attribute": "attribute", "group": "group", "n": "rows", "rate": "accepted", "ratio": "approval ratio",
    "declined": "goods not accepted", "accepted": "bads accepted", "gap": "bad rate less PD", "auc": "AUC",
}  # fmt: skip


def _group(each: Raw) -> dict[str, Any]:
    return {
        "attribute": each.get("attribute"),
        "group": each.get("group"),
        "n": each.get("n"),
        "rate": share((each.get("approval_rate") or {}).get("value")),
        "ratio": spread(each.get("approval_ratio")),
        "declined": share((each.get("goods_declined") or {}).get("value")),
        "accepted": share((each.get("bads_accepted") or {}).get("value")),
        "gap": share((each.get("calibration_gap") or {}).get("value")),
        "auc": number((each.get("auc") or {}).get("value"), 3),
    }


def _probes(facts: Facts) -> list[Html]:
    flips, proxies = facts.bias.get("flips") or {}, facts.bias.get("proxies") or ()
    strongest = sorted(proxies, key=lambda each: -((each.get("auc") or {}).get("value") or 0.0))[:5]
    rows = [
        {
            "group": f"{each['attribute']} = {each['group']}",
            "auc": spread(each.get("auc")),
            "features": named(list(each.get("features") or ())),
        }
        for each in strongest
    ]
    return [
        html.facts({"Flip test": flips.get("reason") or "not assessed"}),
        html.table(
            {"group": "group", "auc": "AUC of telling it from the features", "features": "most of it by"},
            rows,
            "How well the features tell who is in a group (0.5: not at all)",
        ),
    ]


def reasons(facts: Facts) -> Section:
    """Tell whether the reasons are true, and what they are."""
    found = facts.explanations
    told, fidelity, stays = (found.get(name) or {} for name in ("told", "fidelity", "stability"))
    additivity = found.get("additivity") or {}
    checks = {
        "PD falls once what the first reason names is put right": spread(fidelity.get("fell"), percent=True),
        "by (median, in PD)": spread(fidelity.get("median_fall")),
        "First reason stays after training on a resample": spread(stays.get("first"), percent=True),
        "Reasons in common after a resample": spread(stays.get("overlap"), percent=True),
        "Decisions that flip after a resample": spread(stays.get("flipped"), percent=True),
        "Above the cut without a reason (referred)": spread(told.get("unexplained"), percent=True),
        "Rejected without a reason": count(told.get("rejected_without")),
        "Largest part of a score that contributions leave open": f"{additivity['worst']:.3g}"
        if additivity.get("worst") is not None
        else additivity.get("error") or "not assessed",
        "Contributions are held against": found.get("baseline"),
    }
    wrong = [row for row in found.get("directions") or () if row.get("wanted") and row.get("wrong")]
    promised = sum(1 for row in found.get("directions") or () if row.get("wanted"))
    checks["Moves against the direction of the spec"] = (
        named([f"{row['label']}: {row['wrong']}" for row in wrong]) if wrong else f"none, of {promised} features"
    )
    themes = [
        {
            "sentence": (facts.reasons.themes.get(name) or {}).get("sentence"),
            "first": share(first),
            "any": share((told.get("any") or {}).get(name)),
        }
        for name, first in sorted((told.get("first") or {}).items(), key=lambda item: (-item[1], item[0]))
    ]
    blocks = [
        _figure(charts.importance(facts), "How much each feature moves the scores"),
        html.table(
            {"check": "check", "value": "found"}, [{"check": name, "value": found} for name, found in checks.items()]
        ),
        html.heading("What is told"),
        html.table(
            {"sentence": "sentence", "first": "first reason", "any": "among the reasons"},
            themes,
            f"Of {count(told.get('asked'))} applications that are not accepted",
        ),
    ]
    unknown = unknown_of({"fidelity of reasons": fidelity.get("fell"), "stability of reasons": stays.get("first")})
    missing = [] if additivity.get("worst") is not None else ["whether reasons add up to the scores"]
    if not themes:
        missing.append("which reasons are told")
    return Section("Reasons", blocks, missing, unknown)


def policy(facts: Facts) -> Section:
    """Tell how a probability becomes a decision, and what it earns."""
    found, settled = facts.evaluation.get("profit") or {}, facts.policy
    best, worth = found.get("best_cut"), found.get("best_profit")
    rows = [
        {
            "cut": number(row.get("cut"), 3),
            "accepted": share(row.get("approval_rate")),
            "bad_rate": share(row.get("bad_rate")),
            "profit": spread(
                {"value": row.get("profit"), "low": row.get("low"), "high": row.get("high")}, percent=True
            ),
        }
        for row in _some(found.get("curve") or (), 11)
    ]
    rules = [{"rule": name, "decision": decision, "meaning": meaning} for name, (decision, meaning) in RULES.items()]
    blocks = [
        html.pair(
            _figure(
                charts.profit(facts),
                "Profit an application by cut-off, with its interval and the policy's cut-offs",
                "For loans of equal size; what a human decides in between is not counted.",
            ),
            html.facts(
                {
                    "Accepted below": f"PD {settled.accept_below:.4f}",
                    "Rejected from": f"PD {settled.reject_from:.4f}; between the two a human decides",
                    "Loss given default": share(settled.loss_given_default),
                    "Margin": share(settled.margin),
                    "Break-even": number(found.get("break_even")),
                    "Best cut in hindsight": spread(best),
                    "Its profit an application": spread(worth, percent=True),
                }
            ),
        ),
        html.table({"cut": "cut-off", "accepted": "accepted", "bad_rate": "their bad rate", "profit": "profit"}, rows),
        html.heading("Rules, in the order in which they are asked"),
        html.table({"rule": "rule", "decision": "decision", "meaning": "meaning"}, rules),
    ]
    missing = [] if assessed(best) else [why(best, "what a cut-off earns")]
    return Section("Policy and profit", blocks, missing)


def _some(rows: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many rows, spread evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(at * (len(rows) - 1) / (most - 1))] for at in range(most)]


def _figure(picture: bytes | None, words: str, caption: str = "") -> Html:
    return html.figure(picture, words, caption) if picture else Html("")
