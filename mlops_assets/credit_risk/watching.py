"""What is watched while a champion serves: its input, its decisions, and how it turns out.

What belongs here: reading the windows, references and outcomes that the statistics need, and keeping what they found by
period. What does not: the statistics (`monitoring.py`, `performance.py`, `vintages.py`), and what follows from them
(`retraining.py`).
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk import labels, models, monitoring, performance, vintages
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.models import PdModel
from mlops_assets.credit_risk.monitoring import Batch, DriftFinding, Mix
from mlops_assets.credit_risk.outliers import OutlierModel
from mlops_assets.credit_risk.policy import RULE_NAMES, RULES, DecisionPolicy
from mlops_assets.credit_risk.reasons import explain, thin_files
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
PARTS = ("train", "calibrate", "test")

_DECIDED_ROWS = 20_000


@dataclass(frozen=True)
class Watched:
    """The champion that is watched, loaded and checked, with what decides beside it; without a policy, the spec's."""

    version: ModelVersion
    model: PdModel
    outliers: OutlierModel
    policy: DecisionPolicy | None = None

    @classmethod
    def of(cls, registry: Registry, version: ModelVersion, policy: DecisionPolicy | None = None) -> "Watched":
        """Load a version."""
        folder = registry.fetch(version)
        return cls(version, models.load(folder), OutlierModel.load(folder), policy)

    @property
    def as_of(self) -> str:
        """The period at whose end its training data were cut."""
        return self.version.tags["period"]

    def decide(self, spec: Spec, features: pd.DataFrame) -> pd.DataFrame:
        """Return what rows of features come to as a decider makes it of them: pd, decision, theme of the first reason.

        Rows of a contract's accepted applications: nothing is quarantined here.
        """
        policy, schema = self.policy or DecisionPolicy.of(spec), self.model.schema
        scores = self.model.score(features)
        reasons = explain(scores, features, schema, most=policy.reasons)
        rules = policy.decide(
            scores.pd,
            thin=thin_files(features, schema, policy.insufficient),
            out_of_range=np.asarray(scores.out_of_range.any(axis=1)),
            outlier=self.outliers.score(features).flagged,
            has_reason=reasons.any,
            informed=reasons.informed,
        )
        decisions = [RULES[RULE_NAMES[rule]][0] for rule in rules.tolist()]
        themes = [reasons.themes[at] if at >= 0 else None for at in reasons.order[:, 0].tolist()]
        columns = {"decision": decisions, "theme": themes}
        return pd.DataFrame({"pd": scores.pd, **{name: pd.Series(v, dtype=object) for name, v in columns.items()}})


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
    scored = window[window["pd"].notna()]
    # The window is decided on with all rules, and so is the reference; what is quarantined is in neither.
    before = watched.decide(spec, watched.model.schema.matrix(reference.iloc[:: 1 + len(reference) // _DECIDED_ROWS]))
    return [
        monitoring.score_mix(before["pd"], scored["pd"].to_numpy(dtype=np.float64)),
        monitoring.decision_mix(before["decision"].tolist(), scored["decision"].tolist()),
        monitoring.reason_mix(before["theme"].dropna().tolist(), scored["theme"].dropna().tolist()),
    ]


def recent_decisions(spec: Spec, watched: Watched, log: DecisionLog, period: str) -> pd.DataFrame:
    """Return the champion's latest decisions up to a period, as many as a window has rows, the oldest period first.

    The log is read from its end, and no further than the window goes.
    """
    newest = log.journal.read("decision", index={"model_sha256": watched.version.sha256}, ascending=False)
    entries = islice((entry for entry in newest if entry.index["period"] <= period), spec.monitoring.window_rows)
    return log.frame(reversed(list(entries))).sort_values("period", kind="stable")


def estimated_of(spec: Spec, watched: Watched, log: DecisionLog, period: str) -> performance.Estimated:
    """Estimate from the probabilities alone how the latest decisions will turn out."""
    window = recent_decisions(spec, watched, log, period)
    pds = window["pd"].to_numpy(dtype=np.float64, na_value=np.nan) if len(window) else np.empty(0)
    return performance.estimated(pds, "applicants")


def realised_of(
    spec: Spec, watched: Watched, warehouse: Warehouse, log: DecisionLog, snapshots: SnapshotStore, period: str
) -> performance.Realised:
    """Measure the champion on its own decisions whose loans have matured, beside its equally truncated test loans.

    Decisions on loans that are in its training set, such as those of a history that was decided afterwards, do not
    count: it has seen how they turned out.
    """
    training_set = snapshots.load(watched.version.tags["training_set"])
    learned: set[str] = set()
    for part in PARTS:
        learned.update(training_set.read(part, ["application_id"])["application_id"])
    made = log.touched(model=watched.version.sha256)
    decisions = log.frame(entry for entry in made if entry.index["period"] <= period and entry.subject not in learned)
    with warehouse.session() as tables:
        known = labels.matured_labels(tables, spec, period).frame[["application_id", "bad"]]
    test = training_set.read("test")
    reference = watched.decide(spec, watched.model.schema.matrix(test))
    reference["bad"] = test["bad"].to_numpy(dtype=np.float64)
    return performance.realised(decisions, known, spec.monitoring, reference=reference)


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
