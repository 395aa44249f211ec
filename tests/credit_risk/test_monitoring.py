"""Drift of applications and of decisions: what is found, what chance explains, and what confirms it."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import credit_drift
from mlops_assets.credit_risk.monitoring import (
    Batch,
    DriftFinding,
    Mix,
    Window,
    decision_mix,
    drift_verdict,
    persists,
    pooled,
    quantities,
    reason_mix,
    score_mix,
    windows,
)
from mlops_assets.credit_risk.schema import Feature, FeatureSchema
from mlops_assets.foundation.drift import DriftBounds, DriftStatus
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.psi import Reference
from mlops_assets.samples.lending import LendingWorld

SCHEMA = FeatureSchema(
    (
        Feature("income", "numeric", "capacity"),
        Feature("months", "numeric", "history", special={-9.0: "no file", -8.0: "unusable"}),
        Feature("inquiries", "numeric", "appetite"),
        Feature("region", "categorical", "place"),
    )
)
BOUNDS = DriftBounds()
NO_FILE = 0.2


def applications(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng([4, seed])
    return pd.DataFrame(
        {
            "application_id": [f"A{seed}-{row}" for row in range(rows)],
            "income": rng.lognormal(10, 0.5, rows).round(),
            "months": np.where(rng.random(rows) < NO_FILE, -9.0, rng.integers(0, 120, rows).astype(float)),
            "inquiries": rng.poisson(1, rows).astype(float),
            "region": rng.choice(["north", "south", None], rows, p=[0.6, 0.35, 0.05]),
        }
    )


REFERENCE = applications(5_000, 0)


def verdict(frame: pd.DataFrame, **given: Any) -> DriftFinding:
    return drift_verdict(REFERENCE, Window(frame, ("b1",), "2026-01-01", "2026-01-01"), SCHEMA, BOUNDS, **given)


def batches(*sizes: int) -> list[Batch]:
    return [
        Batch(f"2026-01-{day:02d}", f"batch-{day}", applications(rows, day)) for day, rows in enumerate(sizes, start=1)
    ]


# --- Windows ---


def test_a_large_batch_is_its_own_window() -> None:
    window = pooled(batches(500, 1_200), 1_000)

    assert (window.batches, window.first, window.last) == (("batch-2",), "2026-01-02", "2026-01-02")
    assert len(window.frame) == 1_200


def test_tiny_batches_are_pooled_with_the_ones_before() -> None:
    window = pooled(batches(700, 300, 10, 390, 400), 1_000)

    assert window.batches == ("batch-2", "batch-3", "batch-4", "batch-5")
    assert (window.first, window.last, len(window.frame)) == ("2026-01-02", "2026-01-05", 1_100)
    assert window.frame["application_id"].tolist()[0] == "A2-0"
    assert window.frame["application_id"].tolist()[-1] == "A5-399"


def test_batches_are_pooled_by_period_in_whatever_order_they_come() -> None:
    given_ = batches(300, 300, 300)

    assert pooled(given_[::-1], 500).batches == pooled(given_, 500).batches == ("batch-2", "batch-3")


def test_an_empty_latest_batch_is_pooled_like_any_other() -> None:
    window = pooled(batches(600, 0), 500)

    assert window.batches == ("batch-1", "batch-2")
    assert len(window.frame) == 600


@pytest.mark.parametrize("history", [[], batches(0), batches(400, 300)])
def test_what_stays_too_small_is_not_assessed(history: list[Batch]) -> None:
    window = pooled(history, 1_000)
    rows = sum(len(each.frame) for each in history)

    finding = drift_verdict(REFERENCE, window, SCHEMA, BOUNDS)

    assert finding.status == "not_assessed"
    assert finding.reasons == (f"{len(history)} batch(es) have {rows} rows, 1,000 are needed",)
    assert finding.table().empty


def test_windows_share_no_batch_and_old_rests_are_left_out() -> None:
    found = windows(batches(100, 600, 600, 700, 300, 200), 1_000, most=5)

    assert [each.batches for each in found] == [("batch-2", "batch-3"), ("batch-4", "batch-5", "batch-6")]
    assert found[-1].batches == pooled(batches(100, 600, 600, 700, 300, 200), 1_000).batches


def test_no_more_windows_are_cut_than_are_wanted() -> None:
    assert [each.batches for each in windows(batches(*[500] * 6), 500, most=2)] == [("batch-5",), ("batch-6",)]
    assert windows([], 500, most=2) == ()


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_windows_are_disjoint_and_full_whatever_the_batches(sizes: list[int], rows: int) -> None:
    empty = pd.DataFrame({"income": np.zeros(30)})
    given_ = [Batch(f"{day:04d}", f"b{day}", empty.head(size)) for day, size in enumerate(sizes)]

    found = windows(given_, rows, most=4)

    used = [name for each in found for name in each.batches]
    assert len(used) == len(set(used))
    assert used == [each.batch_id for each in given_][len(given_) - len(used) :]
    assert all(len(each.frame) >= rows for each in found[:-1])
    assert len(found) <= 4
    if sizes:
        assert len(found[-1].frame) >= min(rows, sum(sizes))


# --- Features ---


def test_the_same_population_has_not_drifted() -> None:
    finding = verdict(applications(1_500, 1))

    assert (finding.status, finding.drifted, finding.weighted_share, finding.reasons) == ("none", (), 0.0, ())
    assert {each.status for each in finding.columns} == {"none"}
    assert sum(each.weight for each in finding.columns) == pytest.approx(1)
    assert finding.reference_sha256 == Reference.of(SCHEMA.matrix(REFERENCE), SCHEMA.features).sha256


@pytest.mark.parametrize("rows", [200, 1_000, 5_000])
def test_clean_windows_of_any_size_raise_no_alarm(rows: int) -> None:
    assert [verdict(applications(rows, 50 + seed)).status for seed in range(3)] == ["none"] * 3


@pytest.mark.parametrize(
    ("change", "drifted", "told"),
    [
        (lambda d: d.assign(income=d["income"] * 1.15), "income", "wasserstein"),
        (lambda d: d.assign(income=d["income"] * 100), "income", "(above)"),
        (lambda d: d.assign(income=d["income"].where(d.index % 5 > 0)), "income", "missing"),
        (lambda d: d.assign(income=np.nan), "income", "(missing)"),
        # A code that became missing, or another code, changes no quantity at all.
        (lambda d: d.assign(months=d["months"].where(d["months"] != -9, -8.0)), "months", "code -8"),
        (lambda d: d.assign(months=d["months"].where(d["months"] != -9)), "months", "(missing)"),
        (lambda d: d.assign(region=d["region"].where(d.index % 8 > 0, "west")), "region", "(other)"),
        (lambda d: d.assign(region=d["region"].where(d["region"] != "south", "north")), "region", "south"),
    ],
)
def test_a_change_is_found_in_its_feature_and_told(change: Any, drifted: str, told: str) -> None:
    finding = verdict(change(applications(2_000, 2)))

    assert finding.status == "drifted"
    assert finding.drifted == (drifted,)
    assert finding.weighted_share == 0.25
    assert finding.reasons[0].startswith(f"{drifted}: ")
    assert told in finding.reasons[0]


def test_special_codes_do_not_count_as_quantities() -> None:
    far = FeatureSchema((Feature("months", "numeric", "history", special={-99_999.0: "no file"}),))
    before, now = (
        applications(4_000, seed).assign(months=lambda d: d["months"].replace(-9.0, -99_999.0)) for seed in (1, 2)
    )
    # Two points fewer without a file would move a mean of such numbers far.
    now.loc[now["months"].eq(-99_999).cumsum().le(80) & now["months"].eq(-99_999), "months"] = 50.0

    finding = drift_verdict(before, Window(now), far, BOUNDS)

    assert finding.status == "none"
    assert finding.columns[0].missing_window == pytest.approx((now["months"] == -99_999).mean())
    assert quantities(now, far)["months"].min() >= 0


def test_a_feature_counts_by_how_much_the_model_uses_it() -> None:
    moved = applications(2_000, 2).assign(income=lambda d: d["income"] * 2, region="north")

    finding = verdict(moved, importance={"income": 3.0, "months": 1.0, "region": 6.0})

    assert finding.drifted == ("region", "income")
    assert finding.weighted_share == pytest.approx(0.9)
    assert {each.column: each.weight for each in finding.columns} == pytest.approx(
        {"income": 0.3, "months": 0.1, "inquiries": 0.0, "region": 0.6}
    )


def test_drift_of_what_the_model_does_not_use_is_told_and_is_no_drift_of_the_window() -> None:
    finding = verdict(applications(2_000, 2).assign(income=lambda d: d["income"] * 2), importance={"months": 1.0})

    assert (finding.status, finding.weighted_share) == ("none", 0.0)
    assert finding.drifted == ("income",)
    assert finding.reasons[0].endswith("; the model does not use it")


def test_an_importance_of_nothing_weighs_all_features_alike() -> None:
    finding = verdict(applications(1_500, 1), importance={"months": 0.0})

    assert {each.weight for each in finding.columns} == {0.25}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.drop(columns="income"), "the column is missing"),
        (lambda d: d.assign(income="12.000,00"), "are text in a column of numbers"),
    ],
)
def test_a_feature_that_cannot_be_compared_leaves_the_window_not_assessed(change: Any, reason: str) -> None:
    finding = verdict(change(applications(1_500, 1)))

    assert finding.status == "not_assessed"
    assert reason in finding.reasons[0]


def test_a_feature_with_few_quantities_is_judged_by_its_bins() -> None:
    before, now = (
        applications(rows, seed).assign(months=lambda d: d["months"].where(d.index % 100 == 0, -9.0))
        for rows, seed in ((8_000, 1), (1_500, 2))
    )

    finding = drift_verdict(before, Window(now), SCHEMA, BOUNDS)

    (found,) = [each for each in finding.columns if each.column == "months"]
    assert (finding.status, found.status) == ("none", "none")
    assert found.reason.startswith("judged by its bins alone: its values are not assessed")


def test_kept_bins_give_the_same_verdict() -> None:
    kept = Reference.from_json(Reference.of(SCHEMA.matrix(REFERENCE), SCHEMA.features).to_json())

    assert verdict(applications(1_500, 1), binned=kept) == verdict(applications(1_500, 1))


def test_a_reference_without_a_feature_is_an_error() -> None:
    with pytest.raises(UserError, match="'income' are missing"):
        drift_verdict(REFERENCE.drop(columns="income"), Window(applications(1_500, 1)), SCHEMA, BOUNDS)


def test_a_finding_is_plain_json_and_comes_back_equal() -> None:
    finding = verdict(applications(2_000, 2).assign(income=np.nan))

    assert DriftFinding.from_dict(json.loads(json.dumps(finding.to_dict(), allow_nan=False))) == finding


def test_the_table_shows_at_most_twenty_rows_with_the_worst_first() -> None:
    wide = FeatureSchema(tuple(Feature(f"x{at}", "numeric", "t") for at in range(30)))
    rng = np.random.default_rng(0)
    before, now = (pd.DataFrame(rng.normal(0, 1, (1_000, 30)), columns=list(wide.names)) for _ in range(2))

    table = drift_verdict(before, Window(now.assign(x17=now["x17"] + 1)), wide, BOUNDS).table()

    assert len(table) == 20
    assert table.iloc[0][["column", "status"]].tolist() == ["x17", "drifted"]
    assert table.iloc[-1]["reason"] == "11 more features"


# --- The sample loan book ---


@pytest.fixture(scope="module")
def pools() -> credit_drift.Pools:
    return credit_drift.Pools.of(LendingWorld(), rows=12_000)


@pytest.mark.parametrize("rows", [200, 1_000])
def test_clean_batches_of_the_loan_book_raise_no_alarm(pools: credit_drift.Pools, rows: int) -> None:
    assert [found.status for found, _, _ in credit_drift.single(pools, rows, 2)] == ["none"] * 2


@pytest.mark.parametrize("change", ["+0.25 sd in one column", "10 % of cells lost", "x100 on 5 % of rows"])
def test_changes_of_the_loan_book_are_found(pools: credit_drift.Pools, change: str) -> None:
    found = list(credit_drift.single(pools, 2_000, 2, credit_drift.CHANGES[change]))

    assert [(each.status, len(each.drifted)) for each, _, _ in found] == [("drifted", 1)] * 2


def test_a_unit_error_in_few_rows_is_found_where_the_textbook_index_sees_none(pools: credit_drift.Pools) -> None:
    ((finding, index, _),) = credit_drift.single(pools, 2_000, 1, credit_drift.CHANGES["x100 on 5 % of rows"])

    assert finding.drifted == ("annual_income",)
    assert index < 0.1


# --- Confirmation ---


def finding(status: DriftStatus, *of: str) -> DriftFinding:
    return DriftFinding(status, None, None, of, 0, 0, None, 0.0, (), ())


@pytest.mark.parametrize(
    ("history", "touched", "confirmed"),
    [
        ([], (), False),
        ([("drifted", "a")], (), False),
        ([("drifted", "a"), ("drifted", "b")], (), True),
        ([("none", "z"), ("drifted", "a"), ("drifted", "b")], (), True),
        ([("drifted", "a"), ("none", "b")], (), False),
        ([("drifted", "a"), ("not_assessed", "b"), ("drifted", "c")], (), False),
        # Windows that share a batch are one.
        ([("drifted", "a", "b"), ("drifted", "b", "c")], (), False),
        ([("drifted", "a"), ("drifted", "a", "b"), ("drifted", "b", "c")], (), True),
        # What a data incident touched confirms nothing.
        ([("drifted", "a"), ("drifted", "b")], ("a",), False),
        ([("drifted", "a"), ("drifted", "b", "c")], ("c",), False),
        ([("drifted", "a"), ("drifted", "b"), ("drifted", "c")], ("a",), True),
        ([("drifted", "a"), ("drifted", "b"), ("drifted", "c")], ("b",), False),
    ],
)
def test_drift_is_confirmed_by_windows_of_their_own(
    history: list[tuple[Any, ...]], touched: tuple[str, ...], confirmed: bool
) -> None:
    assert persists([finding(*each) for each in history], 2, touched=touched) is confirmed


def test_one_window_confirms_where_one_is_asked_for() -> None:
    assert persists([finding("drifted", "a")], 1)
    with pytest.raises(UserError, match="k is 0"):
        persists([], 0)


# --- Mixes ---


def probabilities(rows: int, seed: int, shift: float = 0.0) -> Any:
    return 1 / (1 + np.exp(2 - shift - np.random.default_rng([9, seed]).normal(0, 1, rows)))


@pytest.mark.parametrize(
    ("shift", "status"), [(0.0, "none"), (0.25, "none"), (0.4, "warn"), (0.8, "act"), (-0.8, "act")]
)
def test_scores_are_compared_by_tenths(shift: float, status: str) -> None:
    mix = score_mix(probabilities(10_000, 0), probabilities(3_000, 1, shift))

    assert mix.status == status
    assert (mix.rows_reference, mix.rows_window, mix.rate) == (10_000, 3_000, None)
    assert len(mix.table()) <= 20


def test_applications_that_were_not_scored_are_a_part_of_the_mix() -> None:
    now = probabilities(2_000, 1)
    now[::4] = np.nan

    mix = score_mix(probabilities(10_000, 0), now)

    assert (mix.status, mix.index.bin) == ("act", "(missing)")
    assert mix.table().iloc[0].tolist() == ["(missing)", 0.0, 0.25]


def decisions(accept: int, refer: int, reject: int) -> list[str]:
    return ["accept"] * accept + ["refer"] * refer + ["reject"] * reject


@pytest.mark.parametrize(
    ("now", "status"),
    [
        (decisions(500, 200, 300), "none"),
        (decisions(540, 180, 280), "none"),
        (decisions(580, 150, 270), "warn"),
        (decisions(620, 180, 200), "act"),
        (decisions(380, 220, 400), "act"),
        (decisions(8, 1, 1), "not_assessed"),
        # Eight points of a hundred are what chance gives.
        (decisions(58, 17, 25), "none"),
    ],
)
def test_the_acceptance_rate_is_held_against_chance_and_habit(now: list[str], status: str) -> None:
    mix = decision_mix(decisions(5_000, 2_000, 3_000), now)

    assert mix.status == status
    assert mix.rate is not None
    assert mix.rate.change == pytest.approx(now.count("accept") / len(now) - 0.5)


def test_the_reason_of_a_decision_mix_names_both_rates() -> None:
    mix = decision_mix(decisions(5_000, 2_000, 3_000), decisions(620, 180, 200))

    assert mix.reason == "accepted went from 50.0% to 62.0% (a change of 10.0% was the bound)"


def test_more_referrals_at_an_equal_acceptance_rate_are_found_by_the_index() -> None:
    mix = decision_mix(decisions(5_000, 500, 4_500), decisions(500, 250, 250))

    assert mix.rate is not None
    assert (mix.status, mix.rate.status) == ("act", "none")
    assert "bin refer went from 5.0% to 25.0%" in mix.reason


def test_first_reasons_are_compared_with_none_as_one_of_them() -> None:
    before = [None] * 500 + ["history"] * 300 + ["capacity"] * 200

    same = reason_mix(before * 4, before)
    moved = reason_mix(before * 4, [None] * 500 + ["history"] * 100 + ["appetite"] * 400)

    assert same.status == "none"
    assert (moved.status, moved.index.bin) == ("act", "(other)")
    assert {name: now for name, _, now in moved.shares}["(other)"] == pytest.approx(0.4)


@pytest.mark.parametrize("mix", [decision_mix(decisions(50, 50, 50), []), reason_mix(["a"] * 90, [])])
def test_a_window_without_decisions_is_not_assessed(mix: Mix) -> None:
    assert mix.status == "not_assessed"
    assert mix.table().empty
    json.dumps(mix.to_dict(), allow_nan=False)


def test_a_mix_against_nothing_is_an_error_and_never_a_pass() -> None:
    with pytest.raises(UserError, match="the reference: there are no rows"):
        decision_mix([], decisions(50, 50, 50))
    with pytest.raises(UserError, match="the reference: there are no rows"):
        score_mix([], [0.5])
