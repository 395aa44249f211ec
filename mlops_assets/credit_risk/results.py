"""What the pages of credit models, decisions and monitoring show.

What belongs here: results turned into Dagster's materialize results, without any row-level personal data. What does
not: how they came about, and what every system shows alike (foundation/results.py).
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pandas as pd

from mlops_assets.credit_risk.judgement import Found
from mlops_assets.credit_risk.judging import gates_table
from mlops_assets.foundation import metadata as md
from mlops_assets.foundation import plots
from mlops_assets.foundation.io_managers import Judged
from mlops_assets.foundation.registry import ModelVersion, Registry


def judged(found: Found, **shown: Any) -> dg.MaterializeResult[Judged]:
    """Pass a version on with what a step found of it; the gates come first."""
    return dg.MaterializeResult(
        value=Judged(found.version, found.evidence_sha256),
        metadata={
            "gates": md.table(gates_table(found.gates)),
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
