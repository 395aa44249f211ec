"""What applications, outcomes and protected attributes must look like.

What belongs here: columns and row rules, made from the spec. What does not: how a contract splits a frame
(foundation/contracts.py), what holds across rows (`ingestion.py`) and across batches (`batch_rules.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from mlops_assets.credit_risk.spec import Numeric, Ratio, Spec
from mlops_assets.foundation.contracts import Column, Contract, Rule, Split, not_after, on_text, one_line

TEXT_CHARACTERS = 200
"""Longest id, category or outcome: more is no code but a text, an attack or a quote that was never closed."""

_PLAIN = r"^[^\x00-\x1f\x7f=@][^\x00-\x1f\x7f]*$"
_MARKUP = r"<\s*[A-Za-z/!?]|javascript:"


@dataclass(frozen=True)
class ApplicationsContract(Contract):
    """A contract that knows texts of a source that stand for a value.

    Parameters
    ----------
    replacements
        By column: a whole text, white space around it aside, and what it stands for.
    """

    replacements: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def split(
        self, frame: pd.DataFrame, *, where: str, first_row: int = 0, seen: dict[str, set[Any]] | None = None
    ) -> Split:
        """Split a raw frame as `Contract.split` does, after the replacements."""
        return super().split(self._replaced(frame), where=where, first_row=first_row, seen=seen)

    def _replaced(self, frame: pd.DataFrame) -> pd.DataFrame:
        there = {name: texts for name, texts in self.replacements.items() if name in frame.columns}
        if not there or not frame.columns.is_unique:
            return frame
        copy = frame.copy(deep=False)
        for name, texts in there.items():
            if not pd.api.types.is_numeric_dtype(frame[name].dtype):
                values = [texts.get(each.strip(), each) if isinstance(each, str) else each for each in frame[name]]
                copy[name] = pd.Series(values, index=frame.index, dtype=object)
        return copy


def applications_contract(spec: Spec, until: datetime) -> Contract:
    """Return the contract of applications: one row an application, without its protected attributes.

    Parameters
    ----------
    until
        Latest time that an application can have; it shows in the bound of ``applied_at_not_after``.
    """
    timed = spec.data.timed
    columns = [
        Column("application_id", "text", "The application."),
        Column("applicant_id", "text", "Who applies; without it everybody is another.", required=False, nullable=True),
        Column("applied_at", "time", "When.", required=timed, nullable=not timed),
    ]
    rules = [*_plain_text("application_id"), *_plain_text("applicant_id"), not_after("applied_at", until)]
    for number in spec.numeric:
        columns.append(Column(number.name, "number", number.label, nullable=number.nullable))
        rules += _range(number)
    for category in spec.categorical:
        columns.append(Column(category.name, "text", category.label, nullable=category.nullable))
        rules += _plain_text(category.name)
    rules += [_ratio(spec, ratio) for ratio in spec.ratios]
    if spec.data.code_list_version is not None:
        columns.append(Column("code_list_version", "text", "Version of the code lists that the row was written with."))
        rules.append(_one_of("code_list_version", (spec.data.code_list_version,), "code_list_version_known"))
    return ApplicationsContract(
        name="applications",
        columns=tuple(columns),
        rules=tuple(rules),
        unique=("application_id",),
        time_column="applied_at",
        replacements={number.name: number.replace for number in spec.numeric if number.replace},
    )


def outcomes_contract(spec: Spec, until: datetime) -> Contract:
    """Return the contract of outcomes: what became of a loan, and when that was known."""
    target = spec.target
    return Contract(
        name="outcomes",
        columns=(
            Column("application_id", "text", "The application."),
            Column("outcome", "text", "What became of the loan."),
            Column("outcome_at", "time", "When that was known.", required=False, nullable=True),
        ),
        rules=(
            *_plain_text("application_id"),
            _one_of("outcome", (*target.bad, *target.good, *target.indeterminate), "outcome_known"),
            not_after("outcome_at", until),
        ),
        time_column="outcome_at",
    )


def protected_contract(spec: Spec) -> Contract:
    """Return the contract of protected attributes; a value may always be missing, and then its group is unknown."""
    columns = [
        Column(each.name, "number" if each.edges else "text", "Protected.", required=False, nullable=True)
        for each in spec.protected
    ]
    texts = [rule for each in spec.protected if not each.edges for rule in _plain_text(each.name)]
    return Contract(
        name="protected attributes",
        columns=(Column("application_id", "text", "The application."), *columns),
        rules=(*_plain_text("application_id"), *texts),
    )


def _plain_text(column: str) -> list[Rule]:
    """Require a short line without control characters, markup or the beginning of a spreadsheet's formula.

    A code is shown in reports, tables and log lines: what none of them should ever run is refused here.
    """

    def holds(text: Any) -> Any:
        return pc.and_not(pc.match_substring_regex(text, _PLAIN), pc.match_substring_regex(text, _MARKUP))

    bound = "plain text: no control characters, no markup, not starting with = or @"
    plain = Rule(f"{column}_not_plain", column, lambda values: on_text(values, holds), bound)
    return [one_line(column, TEXT_CHARACTERS), plain]


def _one_of(column: str, values: tuple[str, ...], name: str) -> Rule:
    return Rule(name, column, lambda found: found.isin(values), f"one of {', '.join(values)}")


def _range(number: Numeric) -> list[Rule]:
    low = -float("inf") if number.low is None else number.low
    high = float("inf") if number.high is None else number.high
    if number.low is None and number.high is None:
        return []
    codes = list(number.special)

    def holds(values: "pd.Series[Any]") -> "pd.Series[bool]":
        numbers = values.to_numpy()
        held = (numbers >= low) & (numbers <= high)
        for code in codes:
            held |= numbers == code
        return pd.Series(held, index=values.index)

    bound = "".join([_bounds(number.low, number.high), *(f", or {plain(c)} ({m})" for c, m in number.special.items())])
    return [Rule(f"{number.name}_in_range", number.name, holds, bound)]


def _ratio(spec: Spec, ratio: Ratio) -> Rule:
    low = -float("inf") if ratio.low is None else ratio.low
    high = float("inf") if ratio.high is None else ratio.high
    special = {number.name: list(number.special) for number in spec.numeric}

    def holds(rows: pd.DataFrame) -> "pd.Series[bool]":
        sides = [rows[name].to_numpy() for name in (ratio.numerator, ratio.denominator)]
        over, under = sides
        judged = ~np.isnan(over) & ~np.isnan(under) & (under != 0)
        for name, numbers in zip((ratio.numerator, ratio.denominator), sides, strict=True):
            for code in special[name]:
                judged &= numbers != code
        with np.errstate(all="ignore"):
            quotient = over / np.where(judged, under, 1.0)
        return pd.Series(~judged | ((quotient >= low) & (quotient <= high)), index=rows.index)

    name = f"{ratio.numerator}_over_{ratio.denominator}"
    bound = f"{ratio.numerator} / {ratio.denominator}: {_bounds(ratio.low, ratio.high)}"
    return Rule(f"{name}_in_range", ratio.numerator, holds, bound, whole_row=True)


def _bounds(low: float | None, high: float | None) -> str:
    if low is None:
        return "any" if high is None else f"at most {plain(high)}"
    return f"at least {plain(low)}" if high is None else f"{plain(low)} to {plain(high)}"


def plain(number: float) -> str:
    """Return a number for people: 600,000 and 0.35, never 6e+05."""
    if float(number).is_integer():
        return f"{number:,.0f}" if abs(number) >= 10_000 else f"{number:.0f}"
    return f"{number:.4g}" if abs(number) < 10_000 else f"{number:,.1f}"
