"""Whether what comes in, and what is decided, still is what the champion was trained for.

What belongs here: windows of batches, the drift verdict on their features, its confirmation over windows, and the mix
of scores, decisions and reasons. What does not: how well the champion does (`performance.py`) and what follows from
drift (`retraining.py`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from mlops_assets.credit_risk._mixes import Mix, Rate, decision_mix, reason_mix, score_mix
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.foundation import drift
from mlops_assets.foundation._profile_rules import rounded
from mlops_assets.foundation.drift import ColumnDrift, ColumnKind, DriftBounds, DriftStatus
from mlops_assets.foundation.psi import ColumnPsi, PsiBounds, Reference

__all__ = [
    "Batch",
    "ColumnFinding",
    "DriftFinding",
    "Mix",
    "Rate",
    "Window",
    "decision_mix",
    "drift_verdict",
    "persists",
    "pooled",
    "quantities",
    "reason_mix",
    "score_mix",
    "windows",
]

ColumnStatus = Literal["drifted", "warn", "none", "not_assessed"]

_ORDER: Mapping[ColumnStatus, int] = {"drifted": 0, "warn": 1, "not_assessed": 2, "none": 3}
_TABLE_ROWS = 20


# --- Windows ---


@dataclass(frozen=True)
class Batch:
    """The accepted applications of one delivery: at least the schema's columns, special codes as they are."""

    period: str
    batch_id: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Window:
    """Successive batches taken together, so that there are enough rows to compare.

    Parameters
    ----------
    wanted
        Rows that the window should have; with fewer it is not assessed.
    """

    frame: pd.DataFrame
    batches: tuple[str, ...] = ()
    first: str | None = None
    last: str | None = None
    wanted: int = 0


def pooled(batches: Sequence[Batch], rows: int) -> Window:
    """Return the latest batch together with as many before it as it takes to have ``rows`` rows.

    Parameters
    ----------
    batches
        In any order; they are pooled by period.
    rows
        Rows that are wanted. Where all batches have fewer, the window says so by having fewer.
    """
    ordered = sorted(batches, key=lambda each: each.period)
    taken: list[Batch] = []
    while ordered and sum(len(each.frame) for each in taken) < rows:
        taken.insert(0, ordered.pop())
    filled = [each.frame for each in taken if len(each.frame)]
    frame = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
    first, last = (taken[0].period, taken[-1].period) if taken else (None, None)
    return Window(frame, tuple(each.batch_id for each in taken), first, last, rows)


def windows(batches: Sequence[Batch], rows: int, most: int) -> tuple[Window, ...]:
    """Cut history into windows that share no batch, oldest first; the last is that of `pooled`.

    Parameters
    ----------
    most
        Windows that are wanted. An older window that lacks rows is left out; the latest one never is.
    """
    left = sorted(batches, key=lambda each: each.period)
    found: list[Window] = []
    while left and len(found) < most:
        window = pooled(left, rows)
        if found and len(window.frame) < rows:
            break
        found.insert(0, window)
        left = left[: len(left) - len(window.batches)]
    return tuple(found)


# --- Features ---


@dataclass(frozen=True)
class ColumnFinding:
    """What was found in one feature.

    ``weight`` is its share of the model's importance. The distances are `foundation.drift`'s, of the values that are
    quantities; the index is `foundation.psi`'s, of all values with the missing ones and special codes in bins of their
    own. ``status`` is "drifted" where either calls it.
    """

    column: str
    status: ColumnStatus
    weight: float
    effect: float | None
    bound: float | None
    gap: float | None
    chance: float | None
    missing_reference: float | None
    missing_window: float | None
    psi: float | None
    psi_bound: float | None
    bin: str | None
    reason: str

    @property
    def severity(self) -> float:
        """How far beyond its bound it is, by the larger of the two measures, to rank features by."""
        found = [(self.effect, self.bound), (self.psi, self.psi_bound)]
        return max([0.0, *(value / bound for value, bound in found if value is not None and bound)])


@dataclass(frozen=True)
class DriftFinding:
    """The verdict on a window of applications.

    Parameters
    ----------
    weighted_share
        Share of the model's importance that lies in drifted features; the verdict rests on it. A feature that the
        model does not use has none: its drift is shown and changes no score.
    reference_sha256
        Names the reference that the window was compared with.
    """

    status: DriftStatus
    first: str | None
    last: str | None
    batches: tuple[str, ...]
    rows_reference: int
    rows_window: int
    reference_sha256: str | None
    weighted_share: float
    columns: tuple[ColumnFinding, ...]
    reasons: tuple[str, ...]

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the drifted features, those first that matter most to the model."""
        return tuple(each.column for each in self._ordered() if each.status == "drifted")

    def _ordered(self) -> list[ColumnFinding]:
        return sorted(self.columns, key=lambda each: (_ORDER[each.status], -each.weight * each.severity, each.column))

    def table(self, limit: int = _TABLE_ROWS) -> pd.DataFrame:
        """Return the features for a page, drifted and important ones first; at most ``limit`` rows."""
        names = ["column", "status", "weight", "effect", "bound", "gap", "chance", "missing_reference"]
        names += ["missing_window", "psi", "psi_bound", "reason"]
        ordered = self._ordered()
        shown = ordered if len(ordered) <= limit else ordered[: limit - 1]
        rows = [[_shown(getattr(each, name)) for name in names] for each in shown]
        if left := len(ordered) - len(shown):
            rows.append(["…", *[None] * (len(names) - 2), f"{left} more features"])
        return pd.DataFrame(rows, columns=pd.Index(names), dtype=object)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain JSON values."""
        return {
            **asdict(self), "batches": list(self.batches), "reasons": list(self.reasons),
            "columns": [asdict(each) for each in self.columns],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "DriftFinding":
        """Return the finding that `to_dict` described."""
        columns = tuple(ColumnFinding(**each) for each in raw["columns"])
        return cls(**{**raw, "batches": tuple(raw["batches"]), "reasons": tuple(raw["reasons"]), "columns": columns})


def drift_verdict(
    reference: pd.DataFrame,
    window: Window,
    schema: FeatureSchema,
    bounds: DriftBounds,
    importance: Mapping[str, float] | None = None,
    *,
    binned: Reference | None = None,
) -> DriftFinding:
    """Say whether a window of applications comes from another population than the reference.

    Every feature is compared twice: its quantities by distance, with special codes left out because they are none, and
    all of its values by the population stability index on fixed bins. Either has to be large enough to matter, and too
    large for chance at these sample sizes and this number of features.

    Parameters
    ----------
    reference
        Applications that the champion was trained on, with at least the schema's columns.
    importance
        How much each feature moves the champion's scores (`PdModel.importance`); features that are not in it do not
        move them. By default all weigh the same.
    binned
        The reference's bins, where they have been kept and checked; by default they are made of ``reference``.

    Raises
    ------
    UserError
        The reference has no rows or lacks a feature.
    """
    before = schema.matrix(reference)
    if binned is None:
        binned = Reference.of(before, schema.features)
    ends = (window.first, window.last, window.batches, len(reference), len(window.frame), binned.sha256)
    if len(window.frame) < max(window.wanted, bounds.minimum_rows):
        least = max(window.wanted, bounds.minimum_rows)
        reason = f"{len(window.batches)} batch(es) have {len(window.frame):,} rows, {least:,} are needed"
        return DriftFinding("not_assessed", *ends, 0.0, (), (reason,))
    kinds: dict[str, ColumnKind] = {each.name: "num" if each.kind == "numeric" else "cat" for each in schema.features}
    measured = drift.measure(quantities(before, schema), quantities(window.frame, schema), kinds, bounds=bounds)
    rules = PsiBounds(false_alarms=bounds.false_alarms, minimum_rows=bounds.minimum_rows)
    indices = {each.column: each for each in binned.compare(window.frame, bounds=rules)}
    weights = _weights(schema.names, importance)
    columns = tuple(_joined(each, indices[each.column], weights[each.column]) for each in measured.columns)
    share = sum(each.weight for each in columns if each.status == "drifted")
    status: DriftStatus = "none"
    if share > bounds.columns:
        status = "drifted"
    elif any(each.status == "not_assessed" for each in columns):
        status = "not_assessed"
    finding = DriftFinding(status, *ends, share, columns, ())
    return DriftFinding(status, *ends, share, columns, tuple(_told(finding)))


def quantities(frame: pd.DataFrame, schema: FeatureSchema) -> pd.DataFrame:
    """Return the features that are there, with special codes as missing: a code is no quantity."""
    columns = {}
    for feature in schema.features:
        if feature.name in frame.columns:
            values = frame[feature.name]
            columns[feature.name] = values.mask(values.isin(list(feature.special))) if feature.special else values
    return pd.DataFrame(columns, index=frame.index)


def _weights(names: Sequence[str], importance: Mapping[str, float] | None) -> dict[str, float]:
    found = {name: max(float((importance or {}).get(name, 0.0)), 0.0) for name in names}
    whole = sum(found.values())
    return {name: value / whole if whole else 1 / len(names) for name, value in found.items()}


def _joined(distance: ColumnDrift, binned: ColumnPsi, weight: float) -> ColumnFinding:
    reasons = [distance.reason] if distance.status == "drifted" else []
    reasons += [binned.reason] if binned.status in ("warn", "act") else []
    status: ColumnStatus = "none"
    if distance.status == "drifted" or binned.status == "act":
        status = "drifted"
    elif binned.status == "not_assessed":
        status, reasons = "not_assessed", [binned.reason]
    elif binned.status == "warn":
        status = "warn"
    if status == "none" and distance.status == "not_assessed":
        # Few quantities among many codes or missing cells: the bins have seen every row all the same.
        reasons = [f"judged by its bins alone: {distance.reason}"]
    return ColumnFinding(
        distance.column, status, weight, distance.effect, distance.bound, distance.gap, distance.chance,
        distance.missing_reference, distance.missing_current, binned.value, binned.act, binned.bin,
        "; ".join(reasons) or distance.reason,
    )  # fmt: skip


def _told(finding: DriftFinding) -> Iterator[str]:
    for each in finding._ordered():  # noqa: SLF001 - the same module
        if each.status != "none":
            unused = "; the model does not use it" if each.status == "drifted" and not each.weight else ""
            yield f"{each.column}: {each.reason}{unused}"


def persists(findings: Sequence[DriftFinding], confirm: int, *, touched: Collection[str] = ()) -> bool:
    """Tell whether drift is confirmed: the latest windows, none sharing a batch with another, have all drifted.

    Parameters
    ----------
    findings
        Oldest first. Of findings that share a batch, the later counts and the earlier does not: the same rows cannot
        confirm themselves.
    confirm
        Windows in a row that it takes.
    touched
        Batches under a data incident. A window with one of them confirms nothing, as if it had not been assessed.
    """
    apart: list[DriftStatus] = []
    seen: set[str] = set()
    for finding in reversed(findings):
        if seen.isdisjoint(finding.batches):
            apart.insert(0, finding.status if set(touched).isdisjoint(finding.batches) else "not_assessed")
            seen.update(finding.batches)
    return drift.persists(apart, confirm)


def _shown(value: Any) -> Any:
    return rounded(value) if isinstance(value, float) else value
