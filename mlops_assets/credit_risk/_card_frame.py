"""What a model card says around the results: purpose, people, data, features, limits, watch, versions.

What belongs here: these sections. What does not: what was measured (`_card_results.py`), and markup (`_card_page.py`).
"""

from collections.abc import Iterator, Mapping
from datetime import datetime

from mlops_assets.credit_risk import _card_page as html
from mlops_assets.credit_risk._card_page import Html, Section
from mlops_assets.credit_risk._card_values import NAMES, Facts, count, day, named, share
from mlops_assets.credit_risk.names import DATA_TEAM, MODEL_TEAM, RISK_TEAM
from mlops_assets.credit_risk.retraining import RULES

_SLICES: Mapping[str, str] = {
    "train": "to learn from",
    "calibrate": "to calibrate on",
    "test": "to be judged on",
}
_DIRECTIONS: Mapping[int, str] = {1: "rises", -1: "falls", 0: "is free"}


def purpose(facts: Facts) -> Section:
    """Tell what the model is for, and what it is not for."""
    spec, target = facts.spec, facts.spec.target
    risk = spec.risk
    blocks = [
        html.paragraph(spec.description),
        html.paragraph(
            f"The model estimates the probability that a loan applied for turns out as "
            f"{named(target.bad)} within {target.maturity_days} days. The policy turns the probability into accept, "
            "refer to a human, or reject, with at most "
            f"{facts.policy.reasons} specific reasons; the model decides nothing by itself."
        ),
        html.heading("For whom"),
        html.listed(
            [
                "Underwriters, who decide on every referred application and see the reasons.",
                "Model risk, who approve or refuse this version and read its watch.",
                "Applicants, who are told the reasons in the sentences that are part of the version.",
            ]
        ),
        html.heading("Not for"),
        html.listed(
            [
                "Applications of products, countries or channels that the training data below do not hold.",
                "Setting prices or limits, collecting debts, or anything else that was not measured here.",
                "Rejecting without a human where the data break a rule: such applications are referred.",
            ]
        ),
        html.facts({"Risk profile": f"data {risk.data}, algorithm {risk.algorithm}, output {risk.output}"}),
    ]
    missing = [] if spec.description.strip() else ["what the model is for (`description` of the spec)"]
    return Section("Purpose and users", blocks, missing)


def people(facts: Facts) -> Section:
    """Tell who answers for the model."""
    version, tags = facts.version, facts.version.tags
    blocks = [
        html.facts(
            {
                "Trained by": tags.get("trained_by"),
                "Registered": version.created[:19].replace("T", " "),
                "Run": tags.get("run_id"),
                "Code version": tags.get("code_version"),
                "Owner of the data": named(DATA_TEAM),
                "Owner of the model": named(MODEL_TEAM),
                "Judged by": named(RISK_TEAM),
            }
        ),
        html.paragraph("Whoever trained the version cannot approve it; approvals stand in the champion's history."),
    ]
    missing = [] if tags.get("trained_by") else ["who trained the version (tag trained_by)"]
    return Section("Owner and trainer", blocks, missing)


def data(facts: Facts) -> Section:
    """Tell what was learned from, and what was left out."""
    rows, bads = facts.evaluation.get("rows") or {}, facts.evaluation.get("bads") or {}
    split = facts.split
    begins = {
        "train": split.get("train_from"),
        "calibrate": split.get("calibrate_from"),
        "test": split.get("test_from"),
    }
    slices = [
        {
            "slice": name,
            "use": use,
            "from": day(begins[name]),
            "rows": rows.get(name),
            "bads": bads.get(name),
            "rate": share(bads[name] / rows[name]) if rows.get(name) and bads.get(name) is not None else None,
        }
        for name, use in _SLICES.items()
    ]
    timed = split.get("split") == "time"
    cut = "in order of time, one person in one slice" if timed else "at random within good and bad, by person"
    blocks = [
        html.facts(
            {
                "As of": day(split.get("as_of")),
                "Training and calibration end": day(facts.version.tags.get("trained_until")),
                "Cut": cut,
                "Bad is": named(split.get("bad_outcomes") or facts.spec.target.bad),
                "Good is": named(split.get("good_outcomes") or facts.spec.target.good),
                "A loan is judged": f"{facts.spec.target.maturity_days} days after its application",
                "Batches": count(split.get("batches")) if split.get("batches") is not None else None,
            }
        ),
        html.table(
            {"slice": "slice", "use": "use", "from": "from", "rows": "loans", "bads": "bad", "rate": "bad rate"}, slices
        ),
        *_left_out(facts),
    ]
    missing = [f"the number of loans {use}" for name, use in _SLICES.items() if not rows.get(name)]
    missing += [] if split.get("as_of") else ["as of when the training set was cut"]
    missing += [f"from when on loans are {name}" for name, at in _SPAN.items() if timed and not begins[at]]
    missing += [f"how many applications are {what}" for key, what in _COUNTED.items() if split.get(key) is None]
    return Section("Data", blocks, missing)


_SPAN: Mapping[str, str] = {"learned from": "train", "judged on": "test"}
_COUNTED: Mapping[str, str] = {
    "not_matured": "not matured",
    "indeterminate": "neither good nor bad",
    "without_outcome": "without a known outcome",
}


def _left_out(facts: Facts) -> Iterator[Html]:
    split = facts.split
    yield html.heading("Left out, and counted")
    told = {
        "not_matured": "too young to be judged: neither good nor bad, whatever is known of them already",
        "without_outcome": "old enough, but nothing is known: mostly rejected, so never lent to",
        "indeterminate": "outcome that is neither good nor bad",
        "contradictory": "called both good and bad",
        "too_early": "outcome from before the application",
        "disputed": "came again under the same id with other content",
        "left_out_same_person": "earlier applications of a person whose later one is in a later slice",
        "left_out_copies": "equal to an application of a later slice in every feature",
    }
    rows = [{"why": text, "applications": split[key]} for key, text in told.items() if split.get(key) is not None]
    yield html.table({"why": "applications", "applications": "number"}, rows)
    known = split.get("accepted_share")
    shown = f"{share(known)} of the matured applications have an outcome. " if known is not None else ""
    yield html.note(
        f"Accepted loans alone. {shown}What would have become of the others is unknown, and nothing is inferred for "
        "them. Every figure of this card is about applications like those that were accepted.",
        "not_assessed",
    )


def features(facts: Facts) -> Section:
    """Tell what the model sees, and what it is held to."""
    found = {row["feature"]: row for row in facts.explanations.get("importance") or ()}
    rows = [
        {
            "label": feature.label,
            "name": feature.name,
            "direction": _DIRECTIONS[feature.monotone],
            "theme": feature.theme,
            "share": share((found.get(feature.name) or {}).get("share")),
            "codes": "; ".join(f"{code:g}: {meaning}" for code, meaning in sorted(feature.special.items())),
        }
        for feature in sorted(facts.schema.features, key=lambda each: -(found.get(each.name) or {}).get("share", 0.0))
    ]
    protected = named([each.name for each in facts.spec.protected], 20)
    blocks = [
        html.table(
            {"label": "feature", "name": "column", "direction": "as it rises, the PD", "theme": "reason theme",
             "share": "share of the moves", "codes": "special codes"},
            rows,
        ),
        html.paragraph(
            f"No model sees the protected attributes ({protected}); they are kept in a table of their own, which the "
            "bias report alone reads." if protected else "The spec names no protected attribute."
        ),
    ]  # fmt: skip
    missing = [] if found else ["how much each feature moves the score"]
    return Section("Features", blocks, missing)


def limits(facts: Facts) -> Section:
    """Tell what a reader must not conclude."""
    target, split = facts.spec.target, facts.split
    learned, as_of = facts.version.tags.get("trained_until"), split.get("as_of")
    age = _days_between(learned, as_of)
    groups = facts.spec.gates
    items = [
        (
            "Outcomes are known of accepted loans alone. Reject inference is off: no outcome is invented for "
            "applications that were not lent to. Cut off by an accept policy, AUC is lower than it would be over all "
            "applicants."
        ),
        (
            f"An outcome is known {target.maturity_days} days after the application. Until then the watch estimates "
            "performance from the probabilities themselves (confidence-based). That estimate follows who applies and "
            "is blind to a change in how applications turn into defaults; only matured loans show it, that much later."
        ),
        (
            "Intervals are for 95 % and count the luck of the sample alone: not a change of the economy, of the "
            "product or of the people who apply."
        ),
        (
            "Reasons say what raised this model's estimate against its baseline. They do not say what would have "
            "happened to the loan had the applicant been different."
        ),
        (
            f"Comparisons by protected group need groups of {groups.minimum_group} applications with "
            f"{groups.minimum_group_outcomes} good and bad loans; smaller ones are named as not assessed, never as "
            "treated alike."
        ),
    ]
    if age:
        items.insert(
            2,
            f"The newest loan that was learned from is {age:,} days older than the training set ({day(learned)}): "
            "what has changed since is not in the model.",
        )
    return Section("Limits", [html.listed(items)])


def _days_between(first: str | None, last: str | None) -> int | None:
    if not first or not last:
        return None
    try:
        return (datetime.fromisoformat(str(last)[:10]) - datetime.fromisoformat(str(first)[:10])).days
    except ValueError:
        return None


def watch(facts: Facts) -> Section:
    """Tell what is watched in use, and what starts or forbids a training."""
    checks, seen, again = facts.spec.checks, facts.spec.monitoring, facts.spec.retraining
    blocks = [
        html.heading("Watched"),
        html.listed(
            [
                (
                    "Every batch: rows that break the contract are quarantined and referred, never rejected; above "
                    f"{share(checks.quarantine_share)} of them, or {share(checks.systematic_share, 0)} by one rule, "
                    "the batch is an incident and nothing is scored with it."
                ),
                (
                    f"Inputs, scores, decisions and reasons, by windows of {seen.window_rows:,} applications against "
                    f"{seen.reference_periods} periods before training; {seen.confirm} windows in a row confirm drift."
                ),
                "Performance estimated without outcomes, every period.",
                (
                    f"Performance on matured decisions, from {seen.realised_rows:,} with {seen.realised_bads} bad ones "
                    f"on. Decay is an AUC below {seen.minimum_auc:g}, a fall of {seen.auc_fall:g} against equally "
                    f"truncated test loans, or {seen.failed_grades} grades with more bad loans than foreseen."
                ),
            ]
        ),
        html.heading("A training is asked for by"),
        html.listed(
            [
                "drift that is confirmed and is not that of a data incident;",
                "realised decay;",
                f"{again.new_outcomes:,} new matured loans with {again.new_bads:,} bad ones;",
                f"training data older than {again.maximum_age_days:g} days;",
                "a person's request.",
            ]
        ),
        html.paragraph("It only makes a candidate; what serves changes by an approval alone. It is not made where:"),
        html.table(
            {"rule": "rule", "meaning": "meaning"},
            [{"rule": rule, "meaning": meaning} for rule, meaning in RULES.items() if rule.startswith("G")],
        ),
    ]
    return Section("Monitoring and retraining", blocks)


def versions(facts: Facts) -> Section:
    """Tell what exactly this card is about."""
    version, tags = facts.version, facts.version.tags
    training_set = facts.evaluation.get("training_set") or tags.get("training_set")
    champion = facts.evaluation.get("champion")
    files = [{"file": name, "sha256": digest} for name, digest in sorted(version.files.items())]
    settings = version.params.get("settings") or {}
    blocks = [
        html.facts(
            {
                "Model": f"{version.model}, version {version.version} ({NAMES.get(facts.kind, facts.kind)})",
                "SHA-256": version.sha256,
                "Training set SHA-256": training_set,
                "Batches SHA-256": facts.split.get("batches_sha256"),
                "Features": facts.schema.version,
                "Policy": facts.policy.version,
                "Reason sentences": facts.reasons.version,
                "Code lists": facts.spec.data.code_list_version,
                "Seed": version.params.get("seed"),
                "Settings": ", ".join(f"{name} {value}" for name, value in sorted(settings.items())),
                "Compared with": f"version {champion.get('version')}, {champion.get('sha256')}" if champion else None,
            }
        ),
        html.table({"file": "file of the version", "sha256": "SHA-256"}, files),
    ]
    missing = [] if version.sha256 else ["the hash of the version"]
    missing += [] if training_set else ["the hash of the training set"]
    stored = version.params.get("schema_version")
    if stored and stored != facts.schema.version:
        missing.append(f"features of this version ({stored}): the spec now has {facts.schema.version}")
    return Section("Versions and hashes", blocks, missing)
