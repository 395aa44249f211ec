"""What the pages of credit models, decisions and monitoring show.

What belongs here: results turned into Dagster's materialize results, without any row-level personal data. What does
not: how they came about, and what every system shows alike (foundation/results.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

from mlops_assets.credit_risk.decision_batch import BatchDecisions
from mlops_assets.credit_risk.judgement import Found
from mlops_assets.credit_risk.judging import gates_table
from mlops_assets.credit_risk.monitoring import Mix
from mlops_assets.credit_risk.performance import Estimated, Realised
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.vintages import Vintages
from mlops_assets.credit_risk.watching import Drift
from mlops_assets.foundation import metadata as md
from mlops_assets.foundation import plots, reports
from mlops_assets.foundation.files import AnyPath
from mlops_assets.foundation.io_managers import Judged
from mlops_assets.foundation.registry import ModelVersion, Registry


def judged(found: Found, **shown: Any) -> dg.MaterializeResult[Judged]:
    """Pass a version on with what a step found of it; the gates come first."""
    return dg.MaterializeResult(
        value=Judged(found.version, found.evidence_sha256),
        metadata={
            # Every one of them, however many: what is cut off a verdict looks as if nobody had asked.
            "gates": md.table(gates_table(found.gates), rows=len(found.gates)),
            "gates_failed": sum(gate.status == "failed" for gate in found.gates),
            "gates_not_assessed": sum(gate.status == "not_assessed" for gate in found.gates),
            "candidate": f"{found.version}",
            "evidence_sha256": found.evidence_sha256,
            **shown,
        },
    )


def model_metadata(version: ModelVersion, registry: Registry) -> dict[str, Any]:
    """Return what a model's page shows beside what every model shows: what moves its scores."""
    from mlops_assets.credit_risk import models

    importance = models.load(registry.fetch(version)).importance()
    table = pd.DataFrame([(name, value) for name, value in importance.items()], columns=["feature", "importance"])
    return {"importance": md.table(table), "kind": str(version.params.get("kind", ""))}


def evaluation_result(found: Found) -> dg.MaterializeResult[Judged]:
    """Show the contestants with their intervals, grades, profit and stability."""
    measured = found.detail
    rows = {
        name: each["auc"].number()
        for name, each in {"candidate": measured.quality, **measured.contestants}.items()
        if each["auc"].assessed
    }
    chart = plots.intervals(rows, title="AUC on out-of-time loans", axis="AUC, 95 % interval") if rows else None
    table = pd.DataFrame(
        [
            {"model": name, **{metric: estimate.value for metric, estimate in each.items()}}
            for name, each in measured.contestants.items()
        ]
    )
    numbers = {name: estimate.value for name, estimate in measured.quality.items()}
    numbers |= {f"{name}_auc": each["auc"].value for name, each in measured.contestants.items()}
    numbers |= {f"{part}_rows": count for part, count in measured.rows.items()}
    return judged(
        found,
        **({"picture": md.picture(chart, "AUC on out-of-time loans")} if chart else {}),
        choice=measured.choice.reason,
        contestants=md.table(table),
        grades=md.table(measured.grades.table()),
        gini_by_month=md.table(measured.stability.table()),
        **{f"segments_{name}": md.table(each) for name, each in measured.segments.items()},
        **md.numbers(numbers),
    )


def bias_result(found: Found) -> dg.MaterializeResult[Judged]:
    """Show the groups: approval, errors, calibration, proxies; counts and shares alone, nobody's row."""
    report = found.detail
    return judged(found, **{name: md.table(table) for name, table in report.tables().items()})


def explanations_result(found: Found) -> dg.MaterializeResult[Judged]:
    """Show what moves the scores and how the checks on reasons came out."""
    explained = found.detail
    return judged(found, **{name: md.table(table) for name, table in explained.tables().items()})


def card_result(found: Found, link: str | None) -> dg.MaterializeResult[Judged]:
    """Show the card, and where it is to be read."""
    written = found.detail
    shown: dict[str, Any] = {"card": md_of(written.summary), "card_sha256": written.sha256, "path": written.path}
    if link:
        shown["read"] = dg.MetadataValue.url(link)
    return judged(found, **shown)


def md_of(text: str) -> dg.MarkdownMetadataValue:
    """Show Markdown."""
    return dg.MetadataValue.md(text)


def counted(values: Mapping[str, int], what: str) -> dg.TableMetadataValue:
    """Show counts as a table, the most frequent first."""
    rows = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    total = sum(values.values()) or 1
    frame = pd.DataFrame([(name, count, count / total) for name, count in rows], columns=[what, "rows", "share"])
    return md.table(frame)


# --- Decisions and their watch ---


def decisions_metadata(
    made: BatchDecisions, champion: ModelVersion, policy: DecisionPolicy, witness: Mapping[str, Any]
) -> dict[str, Any]:
    """Show what was decided: counts and mixes; and the log's head, for which this event is a witness."""
    shares = {
        f"share_{name}": made.decisions[name] / (made.applications or 1) for name in ("accept", "refer", "reject")
    }
    return {
        "dagster/row_count": made.applications,
        "decided": made.decided,
        "decided_before": made.known,
        "decisions": counted(made.decisions, "decision"),
        "rules": counted(made.rules, "rule"),
        "first_reasons": counted(made.themes, "theme"),
        "model": str(champion),
        "model_sha256": champion.sha256,
        "policy_version": policy.version,
        "accept_below": round(policy.accept_below, 6),
        "reject_from": round(policy.reject_from, 6),
        **md.numbers({"mean_pd": made.mean_pd, **shares}),
        **witness,
    }


def drift_metadata(spec: Spec, found: Drift, period: str, root: AnyPath) -> dict[str, Any]:
    """Show the latest window; the report is kept as JSON, and rendered for people only where something has drifted."""
    last = found.last
    shown: dict[str, Any] = {
        "verdict": last.status,
        "confirmed": found.confirmed,
        "columns": md.table(last.table()),
        "window": f"{last.first} to {last.last}, {last.rows_window} rows",
        "reference_rows": found.reference_rows,
        "reference_sha256": last.reference_sha256 or "none",
        **md.numbers({"weighted_share": last.weighted_share, "drifted_features": len(last.drifted)}),
    }
    if found.report is not None:
        kept = f"{spec.name}/drift/{period}.json"
        reports.write(root, kept, found.report.json().encode())
        shown["report_json"] = dg.MetadataValue.url(reports.link(kept))
        if last.status == "drifted":
            page = f"{spec.name}/drift/{period}.html"
            reports.write(root, page, found.report.html().encode())
            shown["report"] = dg.MetadataValue.url(reports.link(page))
    return shown


def mix_metadata(found: Sequence[Mix]) -> dict[str, Any]:
    """Show how scores, decisions and first reasons are spread."""
    numbers = {f"{mix.subject.replace(' ', '_')}_psi": mix.index.value for mix in found}
    return {**{mix.subject: md.table(mix.table()) for mix in found}, **md.numbers(numbers)}


def estimated_metadata(found: Estimated) -> dict[str, Any]:
    """Show the estimate with what it cannot see."""
    estimates = {"auc": found.auc, "bad_rate": found.bad_rate, "brier": found.brier}
    rows = [(name, *each.number(), each.reason) for name, each in estimates.items()]
    return {
        "estimates": md.table(pd.DataFrame(rows, columns=["metric", "estimate", "low", "high", "remark"])),
        "blind_to": found.blind_to,
        "rows": found.rows,
        "unscored": found.unscored,
        **md.numbers({f"estimated_{name}": each.value for name, each in estimates.items()}),
    }


def realised_metadata(found: Realised, counts: Mapping[str, int]) -> dict[str, Any]:
    """Show how accepted loans turned out beside the equally truncated reference, and what there is to learn from."""
    shown: dict[str, Any] = {
        "verdict": found.status,
        "reasons": md_of("\n".join(f"- {reason}" for reason in found.reasons)),
        "metrics": md.table(found.table()),
        "waiting": found.waiting,
        "not_accepted_by_the_policy": found.others,
        **md.numbers({f"realised_{name}": each.value for name, each in found.metrics.items()}),
        **{f"labels_{name}": count for name, count in counts.items()},
    }
    if found.grades is not None:
        shown["grades"] = md.table(found.grades.table())
    return shown


def vintage_metadata(found: Vintages) -> dict[str, Any]:
    """Show default curves by vintage, and expected against realised."""
    return {
        "picture": md.picture(found.chart(), "Defaults by vintage"),
        "vintages": md.table(found.table()),
        "expected": md.table(found.expected_table()),
        "loans": found.loans,
        "silent": found.silent,
    }
