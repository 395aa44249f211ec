"""What is watched while a champion serves: its input, its decisions, and how it turns out.

What belongs here: reading the windows, references and outcomes that the statistics need, and keeping what they found by
period. What does not: the statistics (`monitoring.py`, `performance.py`, `vintages.py`), and what follows from them
(`retraining.py`).
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk import labels, models, monitoring, performance, vintages
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.models import PdModel
from mlops_assets.credit_risk.monitoring import Batch, DriftFinding, Mix
from mlops_assets.credit_risk.policy import RULE_NAMES, RULES, DecisionPolicy
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.vintages import Vintages
from mlops_assets.credit_risk.windows import end_of
from mlops_assets.foundation import drift as distances
from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath
from mlops_assets.foundation.registry import ModelVersion, Registry
from mlops_assets.foundation.resources import Tables, Warehouse
from mlops_assets.foundation.snapshots import SnapshotStore

KINDS = ("drift", "mix", "estimated", "realised", "labels")


@dataclass(frozen=True)
class Watched:
    """The champion that is watched, with its model loaded and checked."""

    version: ModelVersion
    model: PdModel

    @classmethod
    def of(cls, registry: Registry, version: ModelVersion) -> "Watched":
        """Load a version."""
        return cls(version, models.load(registry.fetch(version)))

    @property
    def as_of(self) -> str:
        """The period at whose end its training data were cut."""
        return self.version.tags["period"]


@dataclass(frozen=True)
class Drift:
    """The latest windows of applications held against those before the champion's training, oldest first."""

    findings: tuple[DriftFinding, ...]
    confirmed: bool
    reference_rows: int
    report: distances.DriftReport | None

    @property
    def last(self) -> DriftFinding:
        """The finding on the latest window."""
        return self.findings[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return the windows as plain JSON values."""
        return {"findings": [finding.to_dict() for finding in self.findings], "confirmed": self.confirmed}


def keep(root: AnyPath, spec: Spec, kind: str, period: str, found: Mapping[str, Any]) -> str:
    """Keep what was found for a period and return its SHA-256; a rerun replaces it."""
    return files.write_atomic(_place(root, spec, kind, period), json.dumps(found, default=_plain).encode())


def kept(root: AnyPath, spec: Spec, kind: str, until: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """Return the latest record of a kind, up to a period, with its period; None where there is none.

    Raises
    ------
    UserError
        The record is damaged.
    """
    folder = _place(root, spec, kind, "x").parent
    names = [name for name in files.names_in(folder) if name.endswith(".json")]
    periods = [name.removesuffix(".json") for name in names if until is None or name.removesuffix(".json") <= until]
    if not periods:
        return None
    path = folder / f"{periods[-1]}.json"
    try:
        found: dict[str, Any] = json.loads(files.read_bytes(path))
    except ValueError as error:
        raise UserError("is damaged", where=str(path), remedy="materialize the period's asset again.") from error
    return periods[-1], found


def _place(root: AnyPath, spec: Spec, kind: str, period: str) -> AnyPath:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of record")
    return root / "monitoring" / spec.name / kind / f"{period}.json"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pd.DataFrame):
        return value.astype(object).where(value.notna(), None).to_dict("records")
    return str(value)


def drift_of(spec: Spec, watched: Watched, warehouse: Warehouse, period: str, touched: Collection[str] = ()) -> Drift:
    """Compare the latest windows of applications, up to a period, with those before the champion's training.

    Parameters
    ----------
    touched
        Batches that are or were under a data incident: their windows confirm nothing.

    Raises
    ------
    UserError
        There are no applications before the champion's training to compare with.
    """
    with warehouse.session() as tables:
        reference = labels.reference_rows(tables, spec, watched.as_of)
        batches = batches_since(tables, spec, watched.as_of, period)
    rules = spec.monitoring
    windows = monitoring.windows(batches, rules.window_rows, rules.confirm) or (
        monitoring.pooled(batches, rules.window_rows),
    )
    importance = watched.model.importance()
    schema = watched.model.schema
    findings = tuple(
        monitoring.drift_verdict(reference, window, schema, rules.bounds, importance) for window in windows
    )
    report = None
    if findings[-1].status != "not_assessed":
        before, now = monitoring.quantities(reference, schema), monitoring.quantities(windows[-1].frame, schema)
        kinds: dict[str, distances.ColumnKind] = {
            each.name: "num" if each.kind == "numeric" else "cat" for each in schema.features
        }
        report = distances.report(before, now, kinds, bounds=rules.bounds)
    confirmed = monitoring.persists(findings, rules.confirm, touched=touched)
    return Drift(findings, confirmed, len(reference), report)


def batches_since(tables: Tables, spec: Spec, after: str, until: str) -> list[Batch]:
    """Return the current batches of the periods after one and up to another."""
    if not tables.exists(f"{spec.name}.current_applications"):
        return []
    rows = tables.query(
        f"select * from {spec.name}.current_applications where period > cast(? as date) and period <= cast(? as date) "
        "order by period, row",
        [after, until],
    )
    rows["period"] = pd.to_datetime(rows["period"]).dt.strftime("%Y-%m-%d")
    return [
        Batch(str(period), str(batch), frame.reset_index(drop=True))
        for (period, batch), frame in rows.groupby(["period", "batch_id"], sort=True)
    ]


def mixes_of(spec: Spec, watched: Watched, warehouse: Warehouse, log: DecisionLog, period: str) -> list[Mix]:
    """Compare scores, decisions and first reasons of the latest decisions with those on the reference."""
    with warehouse.session() as tables:
        reference = labels.reference_rows(tables, spec, watched.as_of)
    window = recent_decisions(spec, watched, log, period)
    policy = DecisionPolicy.of(spec)
    features = watched.model.schema.matrix(reference)
    before = watched.model.predict(features)
    nothing = np.zeros(len(before), dtype=bool)
    rules = policy.decide(
        before, thin=nothing, out_of_range=nothing, outlier=nothing, has_reason=~nothing, informed=~nothing
    )
    decisions = [RULES[RULE_NAMES[rule]][0] for rule in rules.tolist()]
    scored = window[window["pd"].notna()]
    found = [
        monitoring.score_mix(before, scored["pd"].to_numpy(dtype=np.float64)),
        monitoring.decision_mix(decisions, scored["decision"].tolist()),
    ]
    themes = _first_themes(watched, features)
    found.append(monitoring.reason_mix(themes, scored["theme"].dropna().tolist()))
    return found


def _first_themes(watched: Watched, features: pd.DataFrame) -> list[str]:
    from mlops_assets.credit_risk.reasons import explain

    sample = features.iloc[:: max(1, len(features) // 5_000)]
    reasons = explain(watched.model.score(sample), sample, watched.model.schema, most=1)
    return [reasons.themes[at] for at in reasons.order[:, 0].tolist() if at >= 0]


def recent_decisions(spec: Spec, watched: Watched, log: DecisionLog, period: str) -> pd.DataFrame:
    """Return the champion's latest decisions up to a period, as many as a window has rows."""
    frame = log.frame(log.touched(model=watched.version.sha256))
    if frame.empty:
        return frame
    return frame[frame["period"] <= period].sort_values("period", kind="stable").tail(spec.monitoring.window_rows)


def estimated_of(spec: Spec, watched: Watched, log: DecisionLog, period: str) -> performance.Estimated:
    """Estimate from the probabilities alone how the latest decisions will turn out."""
    window = recent_decisions(spec, watched, log, period)
    pds = window["pd"].to_numpy(dtype=np.float64, na_value=np.nan) if len(window) else np.empty(0)
    return performance.estimated(pds, "applicants")


def realised_of(
    spec: Spec, watched: Watched, warehouse: Warehouse, log: DecisionLog, snapshots: SnapshotStore, period: str
) -> performance.Realised:
    """Measure the champion on its own decisions whose loans have matured, beside its equally truncated test loans."""
    decisions = log.frame(log.touched(model=watched.version.sha256))
    decisions = decisions[decisions["period"] <= period]
    with warehouse.session() as tables:
        known = labels.matured_labels(tables, spec, period).frame[["application_id", "bad"]]
    test = snapshots.load(watched.version.tags["training_set"]).read("test")
    pds = watched.model.predict(watched.model.schema.matrix(test))
    reference = pd.DataFrame({"pd": pds, "bad": test["bad"].to_numpy(dtype=np.float64)})
    return performance.realised(
        decisions, known, spec.monitoring, reference=reference, accept_below=DecisionPolicy.of(spec).accept_below
    )


def new_labels(spec: Spec, warehouse: Warehouse, since: str | None, period: str) -> dict[str, int]:
    """Count the matured loans of a period's end, and those that a training as of another period did not see."""
    with warehouse.session() as tables:
        now = labels.matured_labels(tables, spec, period).frame
        before = labels.matured_labels(tables, spec, since).frame if since else now.iloc[:0]
    new = now[~now["application_id"].isin(before["application_id"])]
    return {
        "matured": len(now), "matured_bads": int(now["bad"].sum()),
        "new": len(new), "new_bads": int(new["bad"].sum()),
    }  # fmt: skip


def vintages_of(spec: Spec, warehouse: Warehouse, watched: Watched | None, period: str) -> Vintages:
    """Follow applications by their month, with the champion's probabilities where there is a champion.

    Which applications became loans is not known before their outcome, so all accepted rows are followed: the curves
    of all vintages are diluted alike by those that never became one.
    """
    with warehouse.session() as tables:
        rows = tables.query(
            f"select * from {spec.name}.current_applications where period <= cast(? as date) order by period, row",
            [period],
        )
        outcomes = tables.query(f"select application_id, outcome, outcome_at from {spec.name}.outcomes")
    loans = rows[["application_id", "applied_at"]]
    if watched is not None and len(rows):
        loans = loans.assign(pd=watched.model.predict(watched.model.schema.matrix(rows)))
    return vintages.follow(loans, outcomes, spec.target, end_of(spec, period), timezone=spec.periods.timezone)
