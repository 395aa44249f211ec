"""The rules that compare a batch's profile with a reference's, column by column.

What belongs here: bounds, findings and one small function a rule. What does not: how profiles are made or
stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log, log10, sqrt
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["number", "boolean", "text", "datetime", "duration", "other", "empty"]
Status = Literal["passed", "failed", "not_assessed"]

_ORDER: dict[Status, int] = {"failed": 0, "not_assessed": 1, "passed": 2}
_TABLE_ROWS = 20
_DAY = 86_400.0
_BY_CHANCE = 1e-6
_BY_CHANCE_IN_TAIL = 1_000
_TAIL_SHARE = 0.05
_FEW_VALUES = 20
_QUANTILES_TO_SD = 3.29
_MEDIAN_TO_MEAN_ERROR = 1.2533


@dataclass(frozen=True)
class ColumnSummary:
    """What a profile knows about a column; datetimes and durations in seconds, NaN where not applicable."""

    column: str
    kind: Kind
    rows: int
    nulls: int
    kinds: Mapping[Kind, int]
    infinite: int
    distinct: float
    minimum: float
    maximum: float
    mean: float
    stddev: float
    q05: float
    q50: float
    q95: float
    top_share: float

    @property
    def values(self) -> int:
        """Number of cells that are not missing."""
        return self.rows - self.nulls

    @property
    def null_share(self) -> float:
        """Share of missing cells; NaN for a column without rows."""
        return self.nulls / self.rows if self.rows else float("nan")


class ProfileBounds(BaseModel):
    """How far a batch may be from its reference before a rule fails."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum_rows: int = Field(default=50, ge=1, description="Fewer rows or values on either side: not assessed.")
    rows_low: float = Field(default=0.5, ge=0, description="Least rows, as a multiple of the reference's rows a batch.")
    rows_high: float = Field(default=2.0, gt=0, description="Most rows, as a multiple of the reference's rows a batch.")
    null_increase: float = Field(
        default=0.02, ge=0, le=1, description="Increase of the share of missing cells, beyond noise."
    )
    range_margin: float = Field(
        default=0.5, ge=0, description="How far outside the reference's range values may lie, in widths of it."
    )
    datetime_margin_days: float = Field(
        default=1830.0, ge=0, description="The same for datetimes, in days: they move by nature; finds 1970."
    )
    distinct_factor: float = Field(
        default=2.0, gt=1, description="Growth or shrinkage of the number of distinct values."
    )
    foreign_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of values of another type, beyond that of the reference."
    )
    median_factor: float = Field(default=5.0, gt=1, description="Growth or shrinkage of the median: a change of unit.")
    noise: float = Field(default=4.0, ge=0, description="Standard errors put down to chance, where a rule knows them.")
    exempt: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Rule codes that a column is exempt from, such as a growing key."
    )


@dataclass(frozen=True)
class Finding:
    """The outcome of one rule on one column; ``column`` is None where a rule looks at the whole table."""

    code: str
    column: str | None
    rule: str
    value: float | None
    bound: float | None
    status: Status
    message: str


Outcome = tuple[float | None, float | None, bool, str]
Judge = Callable[[ColumnSummary, ColumnSummary, ProfileBounds], Outcome]


@dataclass(frozen=True)
class _Rule:
    code: str
    name: str
    kinds: frozenset[Kind]
    judge: Judge


def _show(number: float) -> str:
    return f"{number:.4g}"


def moment(seconds: float) -> str:
    """Show seconds since 1970 as a date and time in UTC."""
    return f"{np.datetime64(round(seconds), 's')}Z"


def _null_share(batch: ColumnSummary, reference: ColumnSummary, bounds: ProfileBounds) -> Outcome:
    likely = (reference.nulls + 1) / (reference.rows + 2)
    error = sqrt(likely * (1 - likely) * (1 / batch.rows + 1 / reference.rows))
    bound = min(reference.null_share + bounds.null_increase + bounds.noise * error, 1.0)
    shares = f"{batch.null_share:.1%} of the cells are missing, {reference.null_share:.1%} in the reference"
    return batch.null_share, bound, batch.null_share <= bound, f"{shares}; up to {bound:.1%} is accepted."


def _tail(extreme: float, usual: float, batch: ColumnSummary, reference: ColumnSummary) -> float:
    """Return how far from the median a value of a batch may lie by chance, on one side.

    ``extreme`` and ``usual`` are the distances of the reference's extreme and of its 5 % quantile on that side. A
    power law through both, whose exponent is that of Weissman's estimator (1978), is followed to the probability
    of one value in ``_BY_CHANCE_IN_TAIL`` batches: skewed columns reach far beyond their past by nature.
    """
    usual = usual or reference.stddev
    tail_rows = reference.values * _TAIL_SHARE
    if reference.distinct <= _FEW_VALUES or usual <= 0 or extreme <= usual or tail_rows <= 1:
        return extreme
    exponent = log(extreme / usual) / log(tail_rows)
    return float(extreme * max(batch.values / reference.values * _BY_CHANCE_IN_TAIL, 1.0) ** exponent)


def _accepted_range(batch: ColumnSummary, reference: ColumnSummary, bounds: ProfileBounds) -> tuple[float, float]:
    if reference.kind == "datetime":
        margin = bounds.datetime_margin_days * _DAY
        return reference.minimum - margin, reference.maximum + margin
    margin = bounds.range_margin * (reference.maximum - reference.minimum)
    middle = reference.q50
    below = _tail(middle - reference.minimum, middle - reference.q05, batch, reference)
    above = _tail(reference.maximum - middle, reference.q95 - middle, batch, reference)
    return min(reference.minimum - margin, middle - below), max(reference.maximum + margin, middle + above)


def _range(batch: ColumnSummary, reference: ColumnSummary, bounds: ProfileBounds) -> Outcome:
    low, high = _accepted_range(batch, reference, bounds)
    above = batch.maximum - high >= low - batch.minimum
    value, bound = (batch.maximum, high) if above else (batch.minimum, low)
    inside = low <= batch.minimum and batch.maximum <= high
    show = moment if reference.kind == "datetime" else _show
    return (
        value,
        bound,
        inside,
        (
            f"values go from {show(batch.minimum)} to {show(batch.maximum)}; {show(low)} to {show(high)} is accepted, "
            f"as the reference goes from {show(reference.minimum)} to {show(reference.maximum)}."
        ),
    )


def _distinct(batch: ColumnSummary, reference: ColumnSummary, bounds: ProfileBounds) -> Outcome:
    scale = batch.values / reference.values
    # Half a value of slack, because the estimate of exactly 8 values is 8.0000001.
    high = reference.distinct * max(1.0, scale) * bounds.distinct_factor + 0.5
    low = reference.distinct * min(1.0, scale) / bounds.distinct_factor - 0.5
    bound = high if batch.distinct > reference.distinct * min(1.0, scale) else low
    return (
        batch.distinct,
        bound,
        low <= batch.distinct <= high,
        (
            f"about {batch.distinct:,.0f} distinct values; {max(low, 0):,.0f} to {high:,.0f} is accepted, as the "
            f"reference has about {reference.distinct:,.0f}."
        ),
    )


def _foreign_share(column: ColumnSummary, kind: Kind) -> float:
    return 1.0 - column.kinds[kind] / column.values


def _type(batch: ColumnSummary, reference: ColumnSummary, bounds: ProfileBounds) -> Outcome:
    share = _foreign_share(batch, reference.kind)
    bound = _foreign_share(reference, reference.kind) + bounds.foreign_share
    found = ", ".join(f"{count:,} {kind}" for kind, count in batch.kinds.items() if count)
    return (
        share,
        bound,
        share <= bound,
        (
            f"{share:.2%} of the values are not of type {reference.kind} (found: {found}); up to {bound:.2%} is "
            f"accepted."
        ),
    )


def _median(batch: ColumnSummary, reference: ColumnSummary, bounds: ProfileBounds) -> Outcome:
    now, before = batch.q50, reference.q50
    spread = (reference.q95 - reference.q05) / _QUANTILES_TO_SD
    error = _MEDIAN_TO_MEAN_ERROR * spread * sqrt(1 / batch.values + 1 / reference.values)
    beyond_noise = abs(now - before) > bounds.noise * error
    ratio = now / before
    far = not 1 / bounds.median_factor < ratio < bounds.median_factor
    text = f"the median is {_show(now)}, {_show(before)} in the reference (ratio {_show(ratio)})"
    power = round(log10(ratio)) if ratio > 0 else 0
    if far and beyond_noise and power and abs(ratio / 10**power - 1) < 0.1:
        text += f": this looks like a change of unit by a factor of {_show(float(10**power))}"
    bound = bounds.median_factor if ratio >= 1 else 1 / bounds.median_factor
    return ratio, bound, not (far and beyond_noise), text + "."


def _usual_share(reference: ColumnSummary) -> float:
    """Return an upper bound of the share of the most frequent value, as far as the profile knows it."""
    if reference.kind == "boolean":
        return max(reference.mean, 1 - reference.mean)
    if reference.kind == "text":
        return max(reference.top_share, 0.5)
    return 0.95 if reference.q05 < reference.q95 else 1.0


def _constant(batch: ColumnSummary, reference: ColumnSummary, _bounds: ProfileBounds) -> Outcome:
    constant = batch.distinct < 1.5
    surprising = reference.distinct > 1.5 and _usual_share(reference) ** batch.values < _BY_CHANCE
    if not constant:
        text = "the column is not constant."
    elif surprising:
        text = f"all {batch.values:,} values are the same; the reference has {reference.distinct:,.0f}."
    else:
        text = "all values are the same, but one value rules the reference too."
    return batch.distinct, 1.0, not (constant and surprising), text


def _infinite(batch: ColumnSummary, reference: ColumnSummary, _bounds: ProfileBounds) -> Outcome:
    share, bound = batch.infinite / batch.values, reference.infinite / reference.values
    return share, bound, share <= bound, f"{batch.infinite:,} values are infinite."


_NUMERIC: frozenset[Kind] = frozenset({"number", "duration"})
_ORDERED: frozenset[Kind] = _NUMERIC | {"datetime"}
_KNOWN: frozenset[Kind] = _ORDERED | {"text", "boolean"}
_ALL: frozenset[Kind] = _KNOWN | {"other", "empty"}

_JUDGED_FROM_ONE_VALUE = frozenset({"PRF004", "PRF007", "PRF010"})
_RULES = (
    _Rule("PRF004", "null_share", _ALL, _null_share),
    _Rule("PRF005", "range", _ORDERED, _range),
    _Rule("PRF006", "distinct_values", _ORDERED | {"text"}, _distinct),
    _Rule("PRF007", "type", _KNOWN | {"other"}, _type),
    _Rule("PRF008", "median_ratio", _NUMERIC, _median),
    _Rule("PRF009", "constant", _KNOWN, _constant),
    _Rule("PRF010", "infinite", _NUMERIC, _infinite),
)


def _shortage(rule: _Rule, side: ColumnSummary, name: str, least: int) -> str | None:
    if side.rows == 0:
        return f"{name} is empty"
    if side.rows < least:
        return f"{name} has {side.rows} rows, {least} are needed"
    if rule.code == "PRF004":
        return None
    if side.values == 0:
        return f"all {side.rows:,} cells of {name} are missing"
    if rule.code not in _JUDGED_FROM_ONE_VALUE and side.values < least:
        return f"{name} has {side.values} values, {least} are needed"
    return None


def _obstacle(rule: _Rule, batch: ColumnSummary, reference: ColumnSummary, bounds: ProfileBounds) -> str | None:
    """Say why a rule cannot be judged, or return None where it can."""
    if rule.code in bounds.exempt.get(batch.column, ()):
        return f"the column is exempt from {rule.code} by configuration"
    if rule.code in ("PRF005", "PRF008") and batch.values:
        if not batch.kinds[reference.kind]:
            return f"no value is of the reference's type {reference.kind}"
        if not (isfinite(batch.q50) and isfinite(reference.q50)):
            return "one side has no finite value"
    if rule.code == "PRF008" and reference.q50 == 0:
        return "the reference's median is zero, so there is no ratio"
    return _shortage(rule, batch, "the batch", bounds.minimum_rows) or _shortage(
        rule, reference, "the reference", bounds.minimum_rows
    )


def _finding(rule: _Rule, batch: ColumnSummary, reference: ColumnSummary, bounds: ProfileBounds) -> Finding:
    name = batch.column
    if obstacle := _obstacle(rule, batch, reference, bounds):
        return Finding(
            rule.code, name, rule.name, None, None, "not_assessed", f"{name}: not assessed, because {obstacle}."
        )
    value, bound, passed, text = rule.judge(batch, reference, bounds)
    status: Status = "passed" if passed else "failed"
    return Finding(rule.code, name, rule.name, value, bound, status, f"{name}: {text}")


def _rows(rows: int, usual: float, bounds: ProfileBounds) -> Finding:
    if usual == 0:
        text = "not assessed, because the reference is empty."
        return Finding("PRF003", None, "row_count", float(rows), None, "not_assessed", f"rows: {text}")
    slack = bounds.noise * sqrt(1 / usual)
    low, high = max(bounds.rows_low - slack, 1 / usual), bounds.rows_high + slack
    ratio = rows / usual
    return Finding(
        "PRF003",
        None,
        "row_count",
        ratio,
        low if ratio < 1 else high,
        "passed" if low <= ratio <= high else "failed",
        f"rows: {rows:,}; {low * usual:,.0f} to {high * usual:,.0f} is accepted, as a batch of the reference has "
        f"{usual:,.0f}.",
    )


def judge(
    batch: Sequence[ColumnSummary],
    reference: Sequence[ColumnSummary],
    *,
    rows: int,
    usual_rows: float,
    bounds: ProfileBounds,
) -> list[Finding]:
    """Apply every rule to every column of ``reference``; ``usual_rows`` are the reference's rows a batch."""
    now = {column.column: column for column in batch}
    before = {column.column: column for column in reference}
    findings = [_rows(rows, usual_rows, bounds)]
    for name, expected in before.items():
        found = now.get(name)
        text = "the column is there." if found else f"the column is missing; it is of type {expected.kind}."
        status: Status = "passed" if found else "failed"
        findings.append(Finding("PRF001", name, "column_present", None, None, status, f"{name}: {text}"))
        if found:
            findings += [_finding(rule, found, expected, bounds) for rule in _RULES if expected.kind in rule.kinds]
    new = [name for name in now if name not in before]
    findings += [
        Finding("PRF002", name, "no_new_column", None, None, "failed", f"{name}: the reference has no such column.")
        for name in new
    ]
    if not new:
        findings.append(Finding("PRF002", None, "no_new_column", None, None, "passed", "There is no new column."))
    return findings


def rounded(value: float | None) -> float | None:
    """Round to four significant digits for display; None for what is no finite number."""
    return None if value is None or not isfinite(value) else float(_show(value))


def findings_table(findings: Sequence[Finding], limit: int = _TABLE_ROWS) -> pd.DataFrame:
    """Return findings for display, failed ones first, rounded; what does not fit is counted in the last row."""
    ordered = sorted(findings, key=lambda finding: _ORDER[finding.status])
    shown = ordered if len(ordered) <= limit else ordered[: limit - 1]
    rows: list[list[object]] = [
        [f.code, f.column, f.rule, f.status, rounded(f.value), rounded(f.bound), f.message] for f in shown
    ]
    if rest := ordered[len(shown) :]:
        counts = ", ".join(f"{count} {status}" for status in _ORDER if (count := sum(f.status == status for f in rest)))
        rows.append(["…", None, None, None, None, None, f"{len(rest)} more findings: {counts}."])
    names = ["code", "column", "rule", "status", "value", "bound", "message"]
    return pd.DataFrame(rows, columns=pd.Index(names), dtype=object)
