"""What the pages of snapshots, models and verdicts show, in every system alike.

What belongs here: results turned into Dagster's materialize results. What does not: how they came about, and what only
one system has.
"""

import math
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pandas as pd

from mlops_assets.foundation import metadata as md
from mlops_assets.foundation import plots
from mlops_assets.foundation.registry import ChampionHistory, ChampionRecord, ModelVersion
from mlops_assets.foundation.risk import RiskProfile, profile_table
from mlops_assets.foundation.snapshots import Snapshot


def snapshot_result(snapshot: Snapshot, facts: Mapping[str, Any]) -> dg.MaterializeResult[Snapshot]:
    """Show what a snapshot holds."""
    rows = {name: table.rows for name, table in snapshot.tables.items()}
    shown = md.numbers({f"{name}_rows": count for name, count in rows.items()}) if len(rows) <= 8 else {}
    return dg.MaterializeResult(
        value=snapshot,
        data_version=dg.DataVersion(snapshot.sha256),
        metadata={
            "rows": sum(rows.values()),
            "cut": md.table(pd.DataFrame(facts.items(), columns=["what", "value"])),
            **shown,
        },
    )


def model_result(version: ModelVersion) -> dg.MaterializeResult[ModelVersion]:
    """Show a model version: numbers that plot over periods, parameters, parts."""
    parts = pd.DataFrame(
        [
            {"part": name, "version": part["version"], "sha256": part["sha256"][:12]}
            for name, part in version.parts.items()
        ],
        columns=["part", "version", "sha256"],
    )
    shown: dict[str, Any] = {
        "version": version.version,
        "sha256": version.sha256,
        "params": md.table(pd.DataFrame(version.params.items(), columns=["param", "value"])),
        "files": md.table(
            pd.DataFrame([(name, sha[:12]) for name, sha in version.files.items()], columns=["file", "sha256"])
        ),
        **md.numbers(version.metrics),
    }
    if len(parts):
        shown["parts"] = md.table(parts)
    return dg.MaterializeResult(value=version, data_version=dg.DataVersion(version.sha256), metadata=shown)


def champion_result(
    risk: RiskProfile, record: ChampionRecord, history: ChampionHistory, gates: pd.DataFrame
) -> dg.MaterializeResult[None]:
    """Show a verdict as the next record of the champion's history."""
    past = [item for item in history.records() if item.version is not None]
    line = plots.sparkline([float(item.version or math.nan) for item in past] + [float(record.version or math.nan)])
    shown = record.metadata()
    first = ("verdict", "version", "reason", "candidate", "from", "to", "by")
    return dg.MaterializeResult(
        # A verdict that keeps the champion changes nothing for what is made with it.
        data_version=dg.DataVersion(record.sha256 or "no champion"),
        metadata={
            **{name: shown[name] for name in first},
            **shown,
            # Every one of them, however many: what is cut off a verdict looks as if nobody had asked.
            "gates": md.table(gates, rows=len(gates)),
            "risk_profile": md.table(pd.DataFrame(profile_table(risk))),
            "versions_over_time": md.picture(line, "champion's version over time"),
        },
    )
