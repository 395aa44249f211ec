"""Check results that every system words alike.

What belongs here: severities that follow the risk profile, and "not assessed", which never counts as passed. What does
not: what is checked.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pandas as pd

from mlops_assets.foundation import metadata as md
from mlops_assets.foundation.profiling import Finding, Profile, findings_table
from mlops_assets.foundation.risk import Axis, RiskProfile


def outcome(
    risk: RiskProfile, axis: Axis, name: str, key: dg.AssetKey, status: str, description: str,
    metadata: Mapping[str, Any],
) -> dg.AssetCheckResult:  # fmt: skip
    """Return a check result; what could not be assessed has not passed, and says so."""
    severity = risk.severity(axis) if status == "failed" else "WARN"
    words = f"Not assessed: {description}" if status == "not_assessed" else description
    return dg.AssetCheckResult(
        passed=status == "passed",
        check_name=name,
        asset_key=key,
        severity=dg.AssetCheckSeverity(severity),
        description=words,
        metadata={"status": status, **metadata},
    )


def profile_outcome(
    risk: RiskProfile, name: str, key: dg.AssetKey, period: str, reference: str, findings: list[Finding],
    current: Profile,
) -> dg.AssetCheckResult:  # fmt: skip
    """Return the result of comparing a period's profile with those before it."""
    failed = [finding for finding in findings if finding.status == "failed"]
    assessed = [finding for finding in findings if finding.status != "not_assessed"]
    status = "failed" if failed else "passed" if assessed else "not_assessed"
    words = "; ".join(finding.message for finding in failed[:3]) or f"{len(assessed)} rules hold for {period}."
    shown = {
        "findings": md.table(findings_table(findings)),
        "profile": md.table(current.table()),
        "failed_rules": len(failed),
        "reference": reference,
    }
    return outcome(risk, "data", name, key, status, words, shown)


def shown_share(share: float, bound: float, rules: Mapping[str, int]) -> dict[str, Any]:
    """Return what a page shows of a share of quarantined rows."""
    table = pd.DataFrame({"rule": list(rules.keys()), "rows": list(rules.values())})
    return {"share": share, "bound": bound, "rules": md.table(table)}
