"""What is wrong with a batch is told from chance and from real change, with column, value and bound."""

import math
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlops_assets.credit_risk.batch_facts import (
    POINTS,
    BatchFacts,
    Labels,
    Numbers,
    facts_of,
    pooled_labels,
    pooled_numbers,
)
from mlops_assets.credit_risk.batch_rules import (
    CHANCE,
    Finding,
    chance_of,
    exceeds,
    judge,
    same_delivery,
    superseded,
    without_time,
)
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.files import canonical_json
from tests.credit_risk.feeds import feed_spec

SPEC = feed_spec(Path())
MONDAY = date(2024, 3, 4)


def typed(rows: int, seed: int = 1, **columns: Any) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "income": np.exp(draws.normal(10.3, 0.5, rows)),
            "amount": np.exp(draws.normal(8.5, 0.5, rows)),
            "months_late": np.where(draws.random(rows) < 0.3, -9.0, draws.integers(0, 60, rows)).astype(float),
            "purpose": draws.choice(np.array(["car", "home", "other"], dtype=object), rows),
            "branch": draws.choice(np.array(["north", "south"], dtype=object), rows),
        }
    )
    return frame.assign(**columns)


def facts(day: date, rows: int = 100, *, spec: Spec = SPEC, seed: int = 1, **more: Any) -> BatchFacts:
    counts = {name: more.pop(name) for name in ("quarantined", "copies", "rules") if name in more}
    return facts_of(spec, day.isoformat(), typed(rows, seed, **more), **counts)


def days(count: int, rows: int = 100, *, weekend: int | None = None, **more: Any) -> list[BatchFacts]:
    """Return a batch a day before `MONDAY`, oldest first."""
    found = []
    for back in range(count, 0, -1):
        day = MONDAY - timedelta(days=back)
        usual = rows if weekend is None or day.weekday() < 5 else weekend
        found.append(facts(day, usual, seed=back, **more))
    return found


HISTORY = days(28)


def found(batch: BatchFacts, reference: Sequence[BatchFacts] = HISTORY, spec: Spec = SPEC) -> dict[str, Finding]:
    return {finding.rule: finding for finding in judge(spec, batch, reference)}


# --- Chance ---


@given(rows=st.integers(1, 400), count=st.integers(0, 400), bound=st.floats(0.001, 0.999))
@settings(max_examples=60, deadline=None)
def test_the_chance_of_a_share_is_the_binomial_tail(rows: int, count: int, bound: float) -> None:
    count = min(count, rows)
    assert math.isclose(
        chance_of(count, rows, bound), stats.binom.sf(count - 1, rows, bound), rel_tol=1e-6, abs_tol=1e-12
    )


def test_what_cannot_be_or_must_be_has_no_doubt() -> None:
    assert (chance_of(0, 10, 0.0), chance_of(1, 10, 0.0), chance_of(10, 10, 1.0)) == (1.0, 0.0, 1.0)
    assert not exceeds(0, 0, 0.05)
    assert not exceeds(10, 10, 1.0)


def test_a_share_at_the_bound_is_not_above_it_and_small_batches_need_more() -> None:
    assert not exceeds(50, 1_000, 0.05)
    assert exceeds(80, 1_000, 0.05)
    assert not exceeds(1, 5, 0.05)
    assert [next(count for count in range(rows + 1) if exceeds(count, rows, 0.05)) for rows in (5, 20, 100)] == [
        3,
        5,
        12,
    ]


# --- Facts ---


def test_facts_are_counts_and_points_of_what_was_accepted() -> None:
    batch = facts_of(SPEC, "2024-03-04", typed(41, income=np.arange(41.0)), quarantined=3, copies=2, rules={"x": 3})
    assert (batch.rows, batch.accepted) == (46, 41)
    assert batch.numbers["income"].points == tuple(np.arange(0.0, 41.0, 2.0))
    late = batch.numbers["months_late"]
    assert late.values + late.special == 41
    assert min(late.points) >= 0
    assert BatchFacts.from_dict(batch.to_dict()) == batch
    assert canonical_json(batch.to_dict())


def test_facts_of_nothing_have_no_points() -> None:
    batch = facts_of(SPEC, "2024-03-04", typed(0))
    assert (batch.rows, batch.numbers["income"], batch.labels["purpose"]) == (0, Numbers(0, 0, 0), Labels(0))


def test_missing_values_and_special_codes_are_no_values() -> None:
    frame = typed(3, income=[np.nan, 5.0, np.nan], months_late=[-9.0, np.nan, 4.0], purpose=[None, "car", "car"])
    batch = facts_of(SPEC, "2024-03-04", frame)
    assert batch.numbers["income"] == Numbers(1, 2, 0, (5.0,) * POINTS)
    assert batch.numbers["months_late"] == Numbers(1, 1, 1, (4.0,) * POINTS)
    assert batch.labels["purpose"] == Labels(1, {"car": 2})


def test_numbers_beyond_their_range_are_kept_apart_and_read_together() -> None:
    batch = facts_of(SPEC, "2024-03-04", typed(2, income=[1.0, 2.0]), quarantined=2, beyond={"income": [-5.0, 900.0]})
    assert batch.numbers["income"].values == 2
    assert batch.readable("income").values == 4
    assert (min(batch.readable("income").points), max(batch.readable("income").points)) == (-5.0, 900.0)
    assert batch.readable("amount") == batch.numbers["amount"]
    assert BatchFacts.from_dict(batch.to_dict()) == batch


def test_rare_categories_are_counted_together() -> None:
    batch = facts_of(SPEC, "2024-03-04", typed(120, branch=[f"b{number % 60:02d}" for number in range(120)]))
    assert (len(batch.labels["branch"].counts), batch.labels["branch"].rare, batch.labels["branch"].values) == (
        50,
        20,
        120,
    )


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_pooled_points_are_those_of_all_values_to_a_step(sizes: list[int], seed: int) -> None:
    draws = np.random.default_rng(seed)
    parts = [np.round(draws.lognormal(3, 0.8, size), 1) for size in sizes]
    frames = [typed(len(part), income=part) for part in parts]
    pooled = pooled_numbers(facts_of(SPEC, "2024-03-04", frame).numbers["income"] for frame in frames)
    every = np.sort(np.concatenate(parts))
    assert pooled.values == len(every)
    if len(every) < 50:
        return
    # The share of all values below a point is the point's own, but for a step of each distribution.
    for at in range(2, POINTS - 2):
        share = np.searchsorted(every, pooled.points[at], side="right") / len(every)
        assert abs(share - at / (POINTS - 1)) < 0.11


def test_pooled_labels_add_up() -> None:
    pooled = pooled_labels([Labels(1, {"a": 2, "b": 1}), Labels(0, {"a": 3}, rare=4)])
    assert (pooled.missing, pooled.counts, pooled.rare, pooled.values) == (1, {"a": 5, "b": 1}, 4, 10)


# --- Rules ---


def test_an_ordinary_batch_has_nothing_wrong_with_it_and_neither_has_the_first_one() -> None:
    assert found(facts(MONDAY, seed=99)) == {}
    assert found(facts(MONDAY), []) == {}


def test_no_rule_fires_by_chance_on_a_thousand_ordinary_batches_of_any_size() -> None:
    draws, fired = np.random.default_rng(3), []
    reference = days(28, 60)
    for seed in range(1_000):
        rows = int(draws.integers(40, 90))
        fired += judge(
            SPEC, facts(MONDAY, rows, seed=1_000 + seed, quarantined=int(draws.binomial(rows, 0.01))), reference
        )
    assert fired == []


def test_too_few_rows_are_an_incomplete_delivery() -> None:
    finding = found(facts(MONDAY, 12))["row_count"]
    assert (finding.severity, finding.value, finding.bound) == ("block", "12", "at least 20")
    assert finding.message == ("12 rows where 100 are usual for a Monday: the delivery is not complete; deliver all.")
    assert "row_count" not in found(facts(MONDAY, 25))


def test_too_many_rows_are_an_incident_as_well() -> None:
    finding = found(facts(MONDAY, 600))["row_count"]
    assert (finding.severity, finding.bound) == ("block", "at most 500")
    assert "check whether the delivery holds other periods" in finding.message


def test_what_is_usual_is_so_for_the_day_of_the_week() -> None:
    reference = days(28, 100, weekend=4)
    saturday, tuesday = MONDAY + timedelta(days=5), MONDAY + timedelta(days=1)
    assert found(facts(saturday, 5, seed=50), reference) == {}
    assert set(found(facts(tuesday, 5, seed=51), reference)) == {"row_count"}


def test_of_a_few_rows_a_fifth_is_a_matter_of_luck() -> None:
    assert found(facts(MONDAY, 1), days(28, 6)) == {}
    assert found(facts(MONDAY, 60), days(28, 6)) == {}
    assert set(found(facts(MONDAY, 120), days(28, 6))) == {"row_count"}


def test_weeks_are_compared_with_the_weeks_before() -> None:
    spec = feed_spec(Path(), periods={"cadence": "weekly", "start": "2024-03-04"})
    weeks = [facts(MONDAY - timedelta(days=7 * back), seed=back) for back in range(6, 0, -1)]
    finding = found(facts(MONDAY, 10), weeks, spec)["row_count"]
    assert "100 are usual for a period" in finding.message
    assert found(facts(MONDAY, 10), weeks[:2], spec) == {}


def test_growth_over_the_reference_is_no_incident() -> None:
    growing = [facts(MONDAY - timedelta(days=28 - at), 40 + 20 * at, seed=at) for at in range(28)]
    assert found(facts(MONDAY, 650), growing) == {}


def test_a_business_that_grows_fast_is_not_stopped_but_its_whole_history_in_one_file_is() -> None:
    counts = [1, 30, 33, 18, 47, 37, 85]  # the first months of a real lender; 171 came next
    growing = [facts(MONDAY - timedelta(days=7 - at), rows, seed=at) for at, rows in enumerate(counts)]
    assert found(facts(MONDAY, 171), growing) == {}
    assert found(facts(MONDAY, 300), growing)["row_count"].bound == "at most 255"


def test_one_empty_period_makes_no_habit() -> None:
    holiday = [*days(28)[:-7], facts(MONDAY - timedelta(days=7), 0), *days(28)[-6:]]
    assert "no_applications" in found(facts(MONDAY, 0), holiday)


def test_no_applications_are_told_where_some_are_usual() -> None:
    finding = found(facts(MONDAY, 0))["no_applications"]
    assert (finding.severity, finding.value) == ("warn", "0")
    assert finding.message.startswith("no applications on 2024-03-04; 100 are usual for a Monday.")
    assert found(facts(MONDAY + timedelta(days=5), 0), days(28, weekend=0)) == {}
    assert found(facts(MONDAY, 0), days(28, 2)) == {}
    assert "no earlier period tells" in found(facts(MONDAY, 0), [])["no_applications"].message


def test_many_quarantined_rows_block_and_a_few_of_few_do_not() -> None:
    many = facts(MONDAY, 90, quarantined=15, rules={"income_in_range": 9, "missing": 6, "not_a_time": 1})
    finding = found(many)["quarantine_share"]
    assert (finding.severity, finding.value, finding.bound) == ("block", "14.3 % (15 of 105)", "at most 5 %")
    assert finding.message.endswith("most often broken: income_in_range (9), missing (6), not_a_time (1).")
    assert found(facts(MONDAY, 91, quarantined=9, rules={"missing": 5, "x": 4}))["quarantine_share"].severity == "warn"
    assert found(facts(MONDAY, 15, quarantined=1, rules={"missing": 1}), days(28, 16)) == {}


def test_one_cause_behind_many_rows_is_an_incident_unless_the_feed_was_always_so() -> None:
    rules = {"not_a_number": 24, "missing": 2}
    batch = facts(MONDAY, 974, quarantined=26, rules=rules)
    finding = found(batch, days(28, 900))["systematic_cause"]
    assert finding.severity == "block"
    assert finding.value == "not_a_number: 24 of 26"
    assert "break one rule, not_a_number (2.4 % of all rows, 0 % before): one cause, not 24 slips" in finding.message
    always = days(28, 974, quarantined=26, rules=rules)
    assert found(batch, always)["systematic_cause"].severity == "warn"
    assert "systematic_cause" not in found(facts(MONDAY, 974, quarantined=26, rules={"a": 14, "b": 12}))
    assert "systematic_cause" not in found(facts(MONDAY, 974, quarantined=19, rules={"a": 19}))


def test_a_file_of_another_day_is_stale() -> None:
    batch = facts(MONDAY, 2, quarantined=18, rules={"of_this_period": 17, "applied_at_not_after": 1})
    finding = found(batch)["stale_delivery"]
    assert (finding.severity, finding.column, finding.value) == ("block", "applied_at", "90 % (18 of 20)")
    assert "of other periods than 2024-03-04" in finding.message
    assert "stale_delivery" not in found(facts(MONDAY, 10, quarantined=10, rules={"of_this_period": 10}))


def test_another_code_list_blocks_with_the_version_that_is_known() -> None:
    spec = feed_spec(Path(), data={"code_list_version": "2024-1"})
    batch = facts(MONDAY, 0, quarantined=100, rules={"code_list_version_known": 100})
    finding = found(batch, HISTORY, spec)["code_list_version"]
    assert (finding.severity, finding.bound) == ("block", "version 2024-1")
    assert "codes may have changed their meaning" in finding.message
    slip = facts(MONDAY, 99, quarantined=1, rules={"code_list_version_known": 1})
    assert found(slip, HISTORY, spec)["code_list_version"].severity == "warn"


def test_copies_warn_and_many_of_them_block() -> None:
    assert found(facts(MONDAY, 98, copies=2)) == {}
    assert found(facts(MONDAY, 94, copies=6))["copies"].severity == "warn"
    finding = found(facts(MONDAY, 80, copies=20))["copies"]
    assert (finding.severity, finding.value) == ("block", "20 % (20 of 100)")


def test_a_column_that_loses_its_values_blocks_with_its_name() -> None:
    gaps = np.exp(np.random.default_rng(1).normal(10.3, 0.5, 100))
    gaps[:30] = np.nan
    finding = found(facts(MONDAY, amount=gaps))["null_share"]
    assert (finding.column, finding.value, finding.bound) == ("amount", "30 % (30 of 100)", "at most 10 %")
    assert finding.message.startswith("amount is missing in 30 % (30 of 100) of the rows; 0 % are usual.")
    gaps[5:] = 1.0
    assert found(facts(MONDAY, amount=gaps)).get("null_share") is None
    assert found(facts(MONDAY, branch=None))["null_share"].column == "branch"


def test_a_column_that_always_has_gaps_may_have_them() -> None:
    half = [None, "north"] * 50
    reference = days(28, branch=half)
    assert found(facts(MONDAY, branch=half), reference) == {}
    assert found(facts(MONDAY, branch=[None] * 80 + ["north"] * 20), reference)["null_share"].bound == "at most 60 %"


def test_without_anything_before_only_an_empty_column_is_wrong() -> None:
    assert found(facts(MONDAY, branch=None), [])["null_share"].message.startswith(
        "branch is missing in 100 % (100 of 100)"
    )
    assert found(facts(MONDAY, branch=[None] * 99 + ["north"]), []) == {}
    assert found(facts(MONDAY, 5, branch=None), []) == {}


def test_a_feature_that_is_new_to_the_feed_is_no_surge_of_missing_values() -> None:
    wider = feed_spec(
        Path(), categorical=[*(each.model_dump() for each in SPEC.categorical), {"name": "new", "theme": "purpose"}]
    )
    batch = facts_of(wider, MONDAY.isoformat(), typed(100).assign(new=["a", None] * 50))
    assert found(batch, HISTORY, wider) == {}


@pytest.mark.parametrize(
    ("factor", "told"), [(100.0, "100"), (0.01, "0.01"), (10.0, "10"), (10_000.0, "10,000"), (1 / 12, "0.08333")]
)
def test_a_change_of_unit_is_found_by_its_factor(factor: float, told: str) -> None:
    batch = facts(MONDAY, 400, seed=77, amount=typed(400, 77)["amount"] * factor)
    finding = judge(SPEC, batch, days(28, 200))[0]
    assert (finding.rule, finding.column, finding.severity) == ("median_ratio", "amount", "block")
    assert f"a change of unit by {told} is suspected" in finding.message
    assert "no model is trained on this" in finding.message


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.4, 2.0, 3.0, 5.0])
def test_a_real_change_of_size_is_no_change_of_unit(factor: float) -> None:
    batch = facts(MONDAY, 400, seed=77, amount=typed(400, 77)["amount"] * factor)
    assert "median_ratio" not in found(batch, days(28, 200))


def test_a_change_of_unit_on_few_rows_of_a_batch_is_left_to_the_rules_on_rows() -> None:
    amount = typed(400, 77)["amount"].to_numpy(copy=True)
    amount[:20] *= 100
    assert found(facts(MONDAY, 400, seed=77, amount=amount), days(28, 200)) == {}


def test_small_batches_are_pooled_until_they_can_be_judged() -> None:
    reference = days(28, 10)
    shifted = [facts(MONDAY + timedelta(days=at), 10, seed=200 + at, amount=typed(10, 200 + at)["amount"] * 100)
               for at in range(3)]  # fmt: skip
    assert "median_ratio" not in found(shifted[0], reference)
    finding = found(shifted[2], [*reference, *shifted[:2]])["median_ratio"]
    assert finding.column == "amount"
    assert found(facts(MONDAY, 3, amount=typed(3)["amount"] * 100), days(2, 3)) == {}


def test_a_spread_too_wide_for_so_few_rows_is_not_judged() -> None:
    wild = np.exp(np.random.default_rng(5).normal(0, 6, 25))
    reference = [facts(MONDAY - timedelta(days=back), 25, amount=np.roll(wild, back)) for back in range(9, 0, -1)]
    assert found(facts(MONDAY, 25, amount=wild * 10), reference) == {}


def test_a_column_of_zeros_is_compared_where_it_has_values() -> None:
    late = np.repeat([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 3.0, 4.0], 20)
    reference = [facts(MONDAY - timedelta(days=back), 200, months_late=late) for back in range(9, 0, -1)]
    assert found(facts(MONDAY, 200, months_late=late), reference) == {}
    assert found(facts(MONDAY, 200, months_late=late * 10), reference)["median_ratio"].column == "months_late"
    nothing = [facts(MONDAY - timedelta(days=back), 200, months_late=np.zeros(200)) for back in range(9, 0, -1)]
    assert found(facts(MONDAY, 200, months_late=late * 10), nothing) == {}


def test_unknown_categories_warn_from_one_and_block_from_five_percent() -> None:
    few = [*["yacht"] * 30, *["car"] * 970]
    finding = found(facts(MONDAY, 1_000, purpose=few), days(28, 900))["unknown_category"]
    assert (finding.severity, finding.column, finding.bound) == ("warn", "purpose", "at most 1 %")
    assert "of no known category, such as 'yacht'; they are scored as 'other'" in finding.message
    many = [*["yacht"] * 20, *["Car"] * 80, *["car"] * 900]
    finding = found(facts(MONDAY, 1_000, purpose=many), days(28, 900))["unknown_category"]
    assert (finding.severity, finding.bound, finding.value) == ("block", "at most 5 %", "10 % (100 of 1000)")
    assert "such as 'Car', 'yacht'" in finding.message
    assert found(facts(MONDAY, purpose=["yacht", *["car"] * 99])) == {}


def test_without_a_list_the_known_categories_are_those_seen_before() -> None:
    assert found(facts(MONDAY, branch="east"))["unknown_category"].column == "branch"
    assert found(facts(MONDAY, branch="east"), days(1)) == {}
    assert found(facts(MONDAY, branch="east"), []) == {}


def test_blocking_findings_come_first() -> None:
    batch = facts(MONDAY, 94, copies=6, branch="east")
    assert [finding.severity for finding in judge(SPEC, batch, HISTORY)] == ["block", "warn"]


def test_findings_about_whole_deliveries_name_them() -> None:
    twice = same_delivery("2024-03-05", 30, "2024-03-04", "2024-03-04-abc")
    assert (twice.severity, twice.value) == ("block", "2024-03-04-abc")
    assert "withdraw the newer batch" in superseded("2024-03-04", "old", "new").message
    assert without_time(SPEC, 3, 100) == []
    (finding,) = without_time(SPEC, 30, 100)
    assert (finding.column, finding.severity) == ("applied_at", "block")
    assert CHANCE < 0.05
