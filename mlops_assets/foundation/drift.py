"""Drift between two samples of a table: distances, verdicts that know the sample size, reports for people.

What belongs here: comparing distributions, with distances from Evidently on data that has passed guards. What
does not: rules on single profiles (``profiling``), and what drift leads to (each system's automation).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from mlops_assets.foundation._drift_columns import (
    ColumnKind,
    Compared,
    Difference,
    Sample,
    chance_of_missing,
    compare_categories,
    compare_numbers,
    read_sample,
)
from mlops_assets.foundation._drift_report import DriftReport, evidently_snapshot
from mlops_assets.foundation._profile_rules import rounded
from mlops_assets.foundation.errors import UserError

__all__ = [
    "ColumnDrift",
    "ColumnKind",
    "DriftBounds",
    "DriftReport",
    "DriftResult",
    "DriftStatus",
    "measure",
    "persists",
    "report",
]

DriftStatus = Literal["none", "drifted", "not_assessed"]

_ORDER: dict[DriftStatus, int] = {"drifted": 0, "not_assessed": 1, "none": 2}
_TABLE_ROWS = 20


class DriftBounds(BaseModel):
    """When a difference counts as drift: large enough to matter, and too large for chance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distance_num: float = Field(
        default=0.1, gt=0, description="Least Wasserstein distance, in standard deviations of the reference."
    )
    gap: float = Field(
        default=0.1, gt=0, le=1, description="Or least gap of the cumulative distributions, for heavy tails."
    )
    distance_cat: float = Field(default=0.1, gt=0, description="Least Jensen-Shannon distance of categories.")
    missing: float = Field(default=0.05, gt=0, le=1, description="Least change of the share of missing cells.")
    false_alarms: float = Field(
        default=0.002, gt=0, lt=1, description="Share of clean batches that may be called drifted by chance."
    )
    columns: float = Field(
        default=0.0, ge=0, lt=1, description="A batch drifts when more than this share of its columns does."
    )
    minimum_rows: int = Field(default=50, ge=2, description="Fewer rows or values: not assessed.")
    maximum_rows: int = Field(default=50_000, ge=100, description="More rows: this many are drawn, by seed.")
    maximum_categories: int = Field(default=50, ge=2, description="Categories that are told apart.")
    seed: int = Field(default=0, description="Seed of the draw.")


_DEFAULT_BOUNDS = DriftBounds()


@dataclass(frozen=True)
class ColumnDrift:
    """What was found in one column.

    ``distance``, ``noise`` (what chance alone gives) and ``effect`` (the distance without the noise) are in the
    unit of ``method``, larger is further; ``effect`` is judged against ``bound``, ``gap`` against its own.
    ``chance`` is the smaller of the probabilities, under no drift, of the values and of the missing share,
    adjusted for the number of tests (Benjamini-Hochberg).
    """

    column: str
    kind: ColumnKind
    status: DriftStatus
    method: str | None
    distance: float | None
    noise: float | None
    effect: float | None
    bound: float | None
    gap: float | None
    chance: float | None
    missing_reference: float | None
    missing_current: float | None
    reason: str

    @property
    def severity(self) -> float:
        """The effect as a multiple of its bound, to rank columns by."""
        return (self.effect or 0.0) / self.bound if self.bound else 0.0


@dataclass(frozen=True)
class DriftResult:
    """The verdict on a batch, with every column's.

    ``status`` is ``none`` only if every column could be assessed. ``drifted_share`` is of the assessed columns.
    ``left_out`` names the columns that were not looked at because nobody asked for them, with the reason.
    """

    status: DriftStatus
    columns: tuple[ColumnDrift, ...]
    drifted_share: float
    worst: str | None
    reasons: tuple[str, ...]
    left_out: Mapping[str, str]
    rows_reference: int
    rows_current: int
    sampled_reference: int
    sampled_current: int

    def table(self, limit: int = _TABLE_ROWS) -> pd.DataFrame:
        """Return the columns for display, drifted ones first, rounded; at most ``limit`` rows."""
        ordered = sorted(self.columns, key=lambda each: (_ORDER[each.status], -each.severity))
        shown = ordered if len(ordered) <= limit else ordered[: limit - 1]
        names = ["column", "status", "method", "distance", "noise", "effect", "bound", "gap", "chance"]
        names += ["missing_reference", "missing_current", "reason"]
        rows = [[getattr(each, name) for name in names] for each in shown]
        rows = [[rounded(cell) if isinstance(cell, float) else cell for cell in row] for row in rows]
        if more := len(ordered) - len(shown):
            drifted = sum(each.status == "drifted" for each in ordered[len(shown) :])
            rows.append(["…", *[None] * (len(names) - 2), f"{more} more columns, {drifted} of them drifted"])
        return pd.DataFrame(rows, columns=pd.Index(names), dtype=object)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole result as plain JSON types."""
        return {**asdict(self), "left_out": dict(self.left_out)}


def _draw(frame: pd.DataFrame, bounds: DriftBounds) -> pd.DataFrame:
    if len(frame) <= bounds.maximum_rows:
        return frame
    rows = np.random.default_rng(bounds.seed).choice(len(frame), bounds.maximum_rows, replace=False)
    return frame.iloc[np.sort(rows)]


def _kind_of(series: "pd.Series[Any]") -> tuple[ColumnKind | None, str]:
    """Return the kind of a reference column, or None and why it is left out unless somebody asks for it."""
    api = pd.api.types
    if api.is_datetime64_any_dtype(series.dtype) or api.is_timedelta64_dtype(series.dtype):
        return None, "datetimes and durations are not compared; derive a number from them"
    if not series.notna().any():
        return None, "the reference has no values"
    content = api.infer_dtype(series, skipna=True)
    if content in ("integer", "floating", "mixed-integer-float", "decimal"):
        return "num", ""
    try:
        distinct = series.nunique()
    except TypeError:
        return None, "lists and other objects are not compared"
    if distinct > 20 and distinct > series.notna().sum() / 2:
        return None, "it looks like an identifier or free text: most values occur once"
    return "cat", ""


def _choose(
    reference: pd.DataFrame, columns: Mapping[str, ColumnKind] | None
) -> tuple[dict[str, ColumnKind], dict[str, str]]:
    if columns is not None:
        if wrong := {name: kind for name, kind in columns.items() if kind not in get_args(ColumnKind)}:
            name, kind = next(iter(wrong.items()))
            raise UserError(f"{kind!r} is no kind of column", where=f"column {name!r}", remedy="say 'num' or 'cat'.")
        return dict(columns), {}
    chosen: dict[str, ColumnKind] = {}
    left_out: dict[str, str] = {}
    for position, name in enumerate(reference.columns):
        inferred, reason = _kind_of(reference.iloc[:, position])
        if inferred is None:
            left_out[str(name)] = reason
        else:
            chosen[str(name)] = inferred
    return chosen, left_out


def _compare(
    reference: pd.DataFrame, current: pd.DataFrame, column: str, kind: ColumnKind, bounds: DriftBounds
) -> Compared:
    before, now = read_sample(reference, column, kind), read_sample(current, column, kind)
    chance = None
    outcome: Difference | str
    for side, name in ((now, "batch"), (before, "reference")):
        if side.problem:
            outcome = f"in the {name}, {side.problem}"
            break
        if side.rows < bounds.minimum_rows:
            outcome = f"the {name} has {side.rows} rows, {bounds.minimum_rows} are needed"
            break
    else:
        chance = chance_of_missing(before, now)
        fewest = min(len(before.values), len(now.values))
        if fewest < bounds.minimum_rows:
            outcome = f"one side has only {fewest} values, {bounds.minimum_rows} are needed"
        elif kind == "num":
            outcome = compare_numbers(before.values, now.values, bounds.maximum_categories)
        else:
            outcome = compare_categories(before.values, now.values, bounds.maximum_categories)
    return Compared(column, kind, before, now, outcome, chance)


def _adjusted(compared: Sequence[Compared]) -> tuple[list[float | None], list[float | None]]:
    """Adjust the probabilities of values and missing shares together, by Benjamini and Hochberg."""
    from scipy import stats

    raw = [each.outcome.p_value if isinstance(each.outcome, Difference) else None for each in compared]
    raw += [each.chance_missing for each in compared]
    known = [p for p in raw if p is not None]
    adjusted = iter(stats.false_discovery_control(known) if known else ())
    result = [None if p is None else float(next(adjusted)) for p in raw]
    return result[: len(compared)], result[len(compared) :]


def _share(side: Sample) -> float | None:
    return side.missing / side.rows if side.rows and side.problem is None else None


def _judge(compared: Compared, chance: float | None, chance_missing: float | None, bounds: DriftBounds) -> ColumnDrift:
    found = compared.outcome if isinstance(compared.outcome, Difference) else None
    before, now = _share(compared.reference), _share(compared.current)
    bound = None
    reasons: list[str] = []
    if found and chance is not None:
        bound = bounds.distance_num if found.method == "wasserstein" else bounds.distance_cat
        far = found.effect >= bound or (found.gap or 0.0) >= bounds.gap
        if far and chance <= bounds.false_alarms:
            reasons.append(
                f"{found.method} distance {found.effect:.3g} beyond noise (bound {bound:g}"
                + (f"; gap {found.gap:.3g}, bound {bounds.gap:g})" if found.gap is not None else ")")
            )
    change = 0.0 if before is None or now is None else abs(now - before)
    if change >= bounds.missing and chance_missing is not None and chance_missing <= bounds.false_alarms:
        reasons.append(f"missing cells went from {before:.1%} to {now:.1%}")
    status: DriftStatus = "drifted" if reasons else ("none" if found else "not_assessed")
    if isinstance(compared.outcome, str):
        reasons.append(f"its values are not assessed: {compared.outcome}")
    chances = [each for each in (chance, chance_missing) if each is not None]
    return ColumnDrift(
        column=compared.column,
        kind=compared.kind,
        status=status,
        method=found.method if found else None,
        distance=found.distance if found else None,
        noise=found.noise if found else None,
        effect=found.effect if found else None,
        bound=bound,
        gap=found.gap if found else None,
        chance=min(chances) if chances else None,
        missing_reference=before,
        missing_current=now,
        reason="; ".join(reasons) or "no difference beyond the bounds and chance",
    )


def _status(columns: Sequence[ColumnDrift], share: float, bounds: DriftBounds) -> DriftStatus:
    if any(each.status == "drifted" for each in columns) and share > bounds.columns:
        return "drifted"
    if not columns or any(each.status == "not_assessed" for each in columns):
        return "not_assessed"
    return "none"


def _assess(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    columns: Mapping[str, ColumnKind] | None,
    bounds: DriftBounds,
) -> tuple[DriftResult, list[Compared]]:
    before, now = _draw(reference, bounds), _draw(current, bounds)
    kinds, left_out = _choose(before, columns)
    compared = [_compare(before, now, name, kind, bounds) for name, kind in kinds.items()]
    judged = tuple(
        _judge(each, chance, chance_missing, bounds)
        for each, chance, chance_missing in zip(compared, *_adjusted(compared), strict=True)
    )
    assessed = [each for each in judged if each.status != "not_assessed"]
    drifted = sorted((each for each in judged if each.status == "drifted"), key=lambda each: -each.severity)
    share = len(drifted) / len(assessed) if assessed else 0.0
    reasons = [f"{each.column}: {each.reason}" for each in drifted]
    reasons += [f"{each.column}: {each.reason}" for each in judged if each.status == "not_assessed"]
    if not judged:
        reasons.append("there is no column to compare")
    for name, whole, part in (("reference", reference, before), ("batch", current, now)):
        if len(part) < len(whole):
            reasons.append(f"{len(part):,} of the {len(whole):,} rows of the {name} were drawn")
    result = DriftResult(
        status=_status(judged, share, bounds),
        columns=judged,
        drifted_share=share,
        worst=drifted[0].column if drifted else None,
        reasons=tuple(reasons),
        left_out=left_out,
        rows_reference=len(reference),
        rows_current=len(current),
        sampled_reference=len(before),
        sampled_current=len(now),
    )
    return result, compared


def measure(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    columns: Mapping[str, ColumnKind] | None = None,
    *,
    bounds: DriftBounds = _DEFAULT_BOUNDS,
) -> DriftResult:
    """Say whether a batch comes from another distribution than its reference, column by column.

    Numbers are compared by Evidently's Wasserstein distance in standard deviations of the reference, categories
    by its Jensen-Shannon distance; rare categories count as one. Missing (and infinite) cells are compared by
    their share. A column has drifted when the difference is both large enough to matter and, by a test adjusted
    for the number of columns, too large for chance. What cannot be compared is ``not_assessed`` with the reason.

    Parameters
    ----------
    reference, current
        The two samples. Where one has more than ``bounds.maximum_rows`` rows, that many are drawn by seed.
    columns
        The kind of each column to compare. By default all of the reference's but datetimes, identifiers and
        columns without values, which ``left_out`` lists.
    bounds
        When a difference counts as drift.

    Raises
    ------
    UserError
        A kind in ``columns`` is neither ``num`` nor ``cat``.
    """
    return _assess(reference, current, columns, bounds)[0]


def persists(history: Sequence[DriftStatus], k: int = 2) -> bool:
    """Tell whether drift is confirmed: the latest ``k`` batches have all drifted.

    A batch that could not be assessed confirms nothing: bad data must not pass for drift.

    Parameters
    ----------
    history
        The statuses of successive batches, oldest first.
    k
        How many in a row it takes.

    Raises
    ------
    UserError
        ``k`` is below one, or the history holds something that is no status.
    """
    if k < 1:
        raise UserError(f"k is {k}", where="persists", remedy="ask for at least one batch.")
    if wrong := [status for status in history if status not in get_args(DriftStatus)]:
        raise UserError(
            f"{wrong[0]!r} is no drift status", where="history", remedy=f"use {', '.join(get_args(DriftStatus))}."
        )
    return len(history) >= k and all(status == "drifted" for status in history[-k:])


def report(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    columns: Mapping[str, ColumnKind] | None = None,
    *,
    bounds: DriftBounds = _DEFAULT_BOUNDS,
) -> DriftReport:
    """Make Evidently's drift report for a person to read, headed by the verdict of ``measure``.

    It shows the columns that could be assessed, with the same methods and bounds. Evidently's own verdicts in it
    know neither sample size nor chance; the verdict at its head is the one that counts.

    Parameters
    ----------
    reference, current, columns, bounds
        As for ``measure``.
    """
    result, compared = _assess(reference, current, columns, bounds)
    shown = [each for each in compared if isinstance(each.outcome, Difference)]
    snapshot = evidently_snapshot(
        shown,
        distance_num=bounds.distance_num,
        distance_cat=bounds.distance_cat,
        most=bounds.maximum_categories,
    )
    return DriftReport(verdict=result.to_dict(), snapshot=snapshot)
