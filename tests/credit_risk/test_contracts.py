"""What an application must look like: whatever a row holds, it is accepted, or refused with rule, value and bound."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk.contracts import (
    ApplicationsContract,
    applications_contract,
    outcomes_contract,
    plain,
    protected_contract,
)
from mlops_assets.credit_risk.sample_spec import CATEGORICAL, NUMERIC, default_spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.samples.lending import AGE_BOUNDS, FEATURES, PROTECTED, LendingWorld
from tests.credit_risk.feeds import NOW, applications, feed_spec, with_cells

SPEC = feed_spec(Path())
CONTRACT = applications_contract(SPEC, NOW)
GOOD = applications("2024-03-04", 4).drop(columns=["sex", "age"])


def broken(frame: pd.DataFrame, contract: Any = CONTRACT) -> list[tuple[Any, ...]]:
    """Return (row, rule, column, value, bound) of every breach."""
    split = contract.split(frame, where="test.csv", first_row=2)
    assert len(split.accepted) + split.quarantined["row"].nunique() == len(frame)
    names = ["row", "rule", "column", "value", "bound"]
    return [tuple(row) for row in split.quarantined[names].itertuples(index=False)]


def test_a_row_in_order_is_typed_and_carries_no_more_than_the_contract() -> None:
    split = CONTRACT.split(GOOD.assign(extra="x"), where="test.csv")
    assert split.quarantined.empty
    assert list(split.accepted.columns) == [
        "application_id", "applicant_id", "applied_at", "income", "amount", "months_late", "purpose", "branch",
    ]  # fmt: skip
    assert split.accepted["income"].dtype == np.float64
    assert str(split.accepted["applied_at"].dtype) == "datetime64[ns, UTC]"


@pytest.mark.parametrize(
    ("column", "value", "rule", "bound"),
    [
        ("income", "1.234,56", "not_a_number", "a finite number such as 12.5"),
        ("income", "N/A", "not_a_number", "a finite number such as 12.5"),
        ("income", "inf", "not_a_number", "a finite number such as 12.5"),
        ("income", -5_000, "income_in_range", "1000 to 500,000"),
        ("income", 3_600_000, "income_in_range", "1000 to 500,000"),
        ("income", None, "missing", "a value"),
        ("months_late", -8, "months_late_in_range", "0 to 120, or -9 (no file)"),
        ("application_id", " ", "missing", "a value"),
        ("application_id", "x" * 201, "application_id_not_one_line", "one line of at most 200 characters"),
        ("application_id", "=1+2", "application_id_not_plain",
         "plain text: no control characters, no markup, not starting with = or @"),
        ("purpose", "car\nhome", "purpose_not_one_line", "one line of at most 200 characters"),
        ("purpose", "<script>alert(1)</script>", "purpose_not_plain",
         "plain text: no control characters, no markup, not starting with = or @"),
        ("branch", "a\x00b", "branch_not_plain",
         "plain text: no control characters, no markup, not starting with = or @"),
        ("applied_at", "04.03.2024", "not_a_time", "a time such as 2026-11-16T08:30:00Z"),
        ("applied_at", "2025-06-02T00:00:00Z", "applied_at_not_after", "until 2025-06-01T00:00:00+00:00"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_rule_value_and_bound(column: str, value: Any, rule: str, bound: str) -> None:
    found = broken(with_cells(GOOD, {(2, column): value}))
    shown = None if value is None else str(value)
    first = found[0]
    assert first[:3] == (4, rule, column)
    assert first[3] == shown
    assert first[4] == bound


def test_infinity_as_a_number_is_refused_as_well() -> None:
    frame = GOOD.assign(income=pd.Series([20_000.0, np.inf, 30_000.0, np.nan]))
    assert [(row, rule) for row, rule, *_ in broken(frame)] == [(3, "not_a_number"), (5, "missing")]


def test_special_codes_are_no_quantities_and_outside_every_range() -> None:
    split = CONTRACT.split(GOOD.assign(months_late=["-9", -9, "-9.0", 12]), where="test.csv")
    assert split.accepted["months_late"].tolist() == [-9.0, -9.0, -9.0, 12.0]


def test_texts_that_stand_for_a_value_are_replaced_whole_and_nothing_else_is() -> None:
    frame = GOOD.assign(months_late=["none", " none ", "none at all", 3])
    assert isinstance(CONTRACT, ApplicationsContract)
    split = CONTRACT.split(frame, where="test.csv")
    assert split.accepted["months_late"].tolist() == [-9.0, -9.0, 3.0]
    assert split.quarantined["value"].tolist() == ["none at all"]
    assert frame["months_late"].tolist() == ["none", " none ", "none at all", 3]


def test_an_unknown_category_is_no_breach_because_models_score_it_as_other() -> None:
    assert broken(with_cells(GOOD, {(0, "purpose"): "yacht", (1, "branch"): "< 1 year"})) == []


def test_a_ratio_finds_what_no_single_range_can_and_blames_the_numerator() -> None:
    ((row, rule, column, value, bound),) = broken(with_cells(GOOD, {(1, "income"): 1_500, (1, "amount"): 90_000}))
    assert (row, rule, column) == (3, "income_over_amount_in_range", "income")
    assert (value, bound) == ("1500", "income / amount: 0.05 to 1000")


@pytest.mark.parametrize("amount", [None, 0])
def test_a_ratio_says_nothing_about_a_row_that_lacks_a_side_or_would_divide_by_nothing(amount: Any) -> None:
    spec = feed_spec(Path(), numeric=[
        {"name": "income", "theme": "money", "special": {-1: "unknown"}}, {"name": "amount", "theme": "money"},
        {"name": "months_late", "theme": "history"},
    ])  # fmt: skip
    frame = with_cells(GOOD, {(0, "amount"): amount, (1, "income"): -1})
    assert broken(frame, applications_contract(spec, NOW)) == []


def test_an_open_range_says_which_side_is_open() -> None:
    spec = feed_spec(Path(), ratios=[], numeric=[
        {"name": "income", "theme": "money", "low": 0}, {"name": "amount", "theme": "money", "high": 1_000_000},
        {"name": "months_late", "theme": "history", "special": {-9: "no file", -8: "unusable"}, "low": 0.5, "high": 9},
    ])  # fmt: skip
    contract = applications_contract(spec, NOW)
    bounds = {rule.name: rule.bound for rule in contract.rules if rule.name.endswith("_in_range")}
    assert bounds == {
        "income_in_range": "at least 0",
        "amount_in_range": "at most 1,000,000",
        "months_late_in_range": "0.5 to 9, or -9 (no file), or -8 (unusable)",
    }


def test_another_version_of_the_code_lists_is_refused_and_told() -> None:
    contract = applications_contract(feed_spec(Path(), data={"code_list_version": "2024-1"}), NOW)
    found = broken(GOOD.assign(code_list_version=["2024-1", "2025-1", None, "2024-1"]), contract)
    assert [each[1:] for each in found] == [
        ("code_list_version_known", "code_list_version", "2025-1", "one of 2024-1"),
        ("missing", "code_list_version", None, "a value"),
    ]
    with pytest.raises(UserError, match="column 'code_list_version' is missing"):
        contract.split(GOOD, where="test.csv")


def test_an_id_may_occur_once_in_what_is_judged_together() -> None:
    frame = GOOD.assign(application_id=["a", "b", "a", "c"])
    assert broken(frame) == [(4, "unique_application_id", "application_id", "a", "one row for each application_id")]


def test_without_times_none_is_asked_for() -> None:
    contract = applications_contract(feed_spec(Path(), data={"timed": False}), NOW)
    assert broken(GOOD.drop(columns="applied_at"), contract) == []


def test_the_schema_names_features_by_their_labels_and_no_protected_attribute() -> None:
    contract = applications_contract(default_spec(), NOW)
    assert not set(contract.names) & set(PROTECTED)
    shown = {row.name: row.description for row in contract.table_schema()}
    assert shown["annual_income"] == "gross annual income"


def test_outcomes_are_known_words_that_were_known_before_now() -> None:
    frame = pd.DataFrame(
        {
            "application_id": ["a", "b", "c", None, "e"],
            "outcome": ["default", "Paid", None, "paid", "paid"],
            "outcome_at": ["2024-05-01", "2024-05-01", "2024-05-01", "2024-05-01", "2026-01-01"],
        }
    )
    found = broken(frame, outcomes_contract(SPEC, NOW))
    assert [(row, rule, value) for row, rule, _, value, _ in found] == [
        (3, "outcome_known", "Paid"),
        (4, "missing", None),
        (5, "missing", None),
        (6, "outcome_at_not_after", "2026-01-01"),
    ]
    assert found[0][4] == "one of default, paid"


def test_protected_attributes_need_an_id_and_nothing_else() -> None:
    contract = protected_contract(SPEC)
    assert contract.required == ("application_id",)
    split = contract.split(pd.DataFrame({"application_id": ["a"], "age": ["31"]}), where="protected.csv")
    assert split.accepted["age"].tolist() == [31.0]
    assert split.accepted["sex"].isna().all()


def test_the_sample_spec_says_of_its_world_what_the_world_says_of_itself() -> None:
    spec, known = default_spec(), {feature.name: feature for feature in FEATURES}
    assert spec.features == tuple(known)
    assert (len(NUMERIC), len(CATEGORICAL)) == (len(spec.numeric), len(spec.categorical))
    for number in spec.numeric:
        feature = known[number.name]
        assert (number.low, number.high) == (feature.low, feature.high)
        assert {"rises": 1, "falls": -1, "free": 0}[number.risk] == feature.direction
        assert number.special == {float(code): text for code, text in feature.special.items()}
    assert {each.name: each.levels for each in spec.categorical} == {
        name: feature.levels for name, feature in known.items() if feature.kind == "categorical"
    }
    assert spec.protected_names == PROTECTED
    age = next(each for each in spec.protected if each.name == "age")
    assert age.low is not None
    assert age.high is not None
    assert age.low <= AGE_BOUNDS[0] <= AGE_BOUNDS[1] <= age.high


def test_clean_rows_of_the_sample_world_meet_its_contract() -> None:
    spec = default_spec()
    world = LendingWorld(start=spec.periods.start, dirt=0.0, applications_per_day=300)
    contract = applications_contract(spec, datetime(2023, 9, 3, tzinfo=UTC))
    frame = pd.concat([world.applications(0), world.applications(1)]).drop(columns=list(PROTECTED))
    split = contract.split(frame.reset_index(drop=True), where="sample")
    assert split.quarantined.empty


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (600_000, "600,000"),
        (9_600, "9600"),
        (0.05, "0.05"),
        (-9.0, "-9"),
        (12_345.67, "12,345.7"),
        (1e9, "1,000,000,000"),
    ],
)
def test_numbers_are_told_without_exponents(number: float, text: str) -> None:
    assert plain(number) == text


# --- Whatever a row holds ---

_GARBAGE = st.one_of(
    st.none(),
    st.sampled_from(
        ["", " ", "N/A", "inf", "-inf", "nan", "1.234,56", "1e400", "<b>", "=cmd", "x" * 300, "a\nb", "\x00"]
    ),
    st.floats(),
    st.integers(-(10**12), 10**12),
    st.text(max_size=12),
    st.booleans(),
)
_COLUMNS = list(GOOD.columns)
_CELLS = st.dictionaries(st.tuples(st.integers(0, 5), st.sampled_from(_COLUMNS)), _GARBAGE, max_size=8)


@given(cells=_CELLS, order=st.permutations(range(6)))
@settings(max_examples=60, deadline=None)
def test_every_row_is_accepted_or_refused_and_its_neighbours_do_not_matter(
    cells: dict[tuple[int, str], Any], order: list[int]
) -> None:
    frame = with_cells(applications("2024-03-05", 6).drop(columns=["sex", "age"]), cells)
    contract = ApplicationsContract(CONTRACT.name, CONTRACT.columns, CONTRACT.rules, time_column="applied_at")
    split = contract.split(frame, where="test.csv")
    accepted, refused = set(split.accepted.index), set(split.quarantined["row"])
    assert accepted | refused == set(range(6))
    assert not accepted & refused
    assert split.quarantined[["rule", "bound", "raw"]].notna().all().all()
    assert all(json.loads(raw) for raw in split.quarantined["raw"])
    assert split.accepted["income"].between(1_000, 500_000).all()
    again = contract.split(frame.iloc[order].reset_index(drop=True), where="test.csv")
    assert {order[row] for row in again.accepted.index} == accepted
    key = ["rule", "column", "value", "bound"]
    moved = sorted(
        (order[row], *map(str, rest)) for row, *rest in again.quarantined[["row", *key]].itertuples(index=False)
    )
    there = sorted((row, *map(str, rest)) for row, *rest in split.quarantined[["row", *key]].itertuples(index=False))
    assert moved == there
