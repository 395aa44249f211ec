"""Default curves by vintage: counted by hand, cut where not all loans have been seen, and true to a known world."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk.spec import Target
from mlops_assets.credit_risk.vintages import Vintages, follow
from mlops_assets.foundation.errors import UserError
from mlops_assets.samples.lending import LendingWorld

TARGET = Target(maturity_days=180, indeterminate=("withdrawn",))
AS_OF = datetime(2026, 6, 30, 12, tzinfo=UTC)

# Each loan is there for one reason, which its name says.
LOANS = pd.DataFrame(
    [
        ("jan-default-in-first-month", "2026-01-05T10:00:00Z", 0.5),
        ("jan-default-in-third-month", "2026-01-20T10:00:00Z", 0.5),
        ("jan-still-performing", "2026-01-31T10:00:00Z", 0.1),
        ("jan-withdrawn", "2026-01-10T10:00:00Z", 0.1),
        ("jan-outcome-before-application", "2026-01-10T10:00:00Z", 0.1),
        ("jan-outcome-without-time", "2026-01-10T10:00:00Z", 0.1),
        ("may-default", "2026-05-02T10:00:00Z", 0.2),
        ("may-young", "2026-05-29T10:00:00Z", 0.2),
        ("june-not-a-month-old", "2026-06-01T10:00:00Z", 0.2),
        ("july-not-yet-there", "2026-07-01T10:00:00Z", 0.2),
    ],
    columns=["application_id", "applied_at", "pd"],
)
OUTCOMES = pd.DataFrame(
    [
        ("jan-default-in-first-month", "default", "2026-02-04T10:00:00Z"),
        ("jan-default-in-third-month", "default", "2026-03-20T11:00:00Z"),
        ("jan-still-performing", "default", "2026-07-02T10:00:00Z"),  # known after the moment of looking
        ("jan-withdrawn", "withdrawn", "2026-01-12T10:00:00Z"),
        ("jan-outcome-before-application", "paid", "2026-01-09T10:00:00Z"),
        ("jan-outcome-without-time", "default", None),
        ("may-default", "default", "2026-06-29T10:00:00Z"),
        ("somebody-else", "default", "2026-06-29T10:00:00Z"),
    ],
    columns=["application_id", "outcome", "outcome_at"],
)


def book(loans: pd.DataFrame = LOANS, outcomes: pd.DataFrame = OUTCOMES, **given: Any) -> Vintages:
    return follow(loans, outcomes, TARGET, AS_OF, **given)


def curve(found: Vintages, vintage: str) -> list[tuple[int, int]]:
    of = found.curves[found.curves["vintage"] == vintage]
    return list(zip(of["month"].tolist(), of["bads"].tolist(), strict=True))


def test_defaults_are_counted_by_whole_months_on_book() -> None:
    found = book()

    # The last loan of January has been on book for four whole months only, until 31 May.
    assert curve(found, "2026-01") == [(1, 1), (2, 1), (3, 2), (4, 2)]
    january = found.curves[found.curves["vintage"] == "2026-01"]
    assert january["loans"].tolist() == [3] * 4
    assert january["rate"].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert (january["low"] < january["rate"]).all()
    assert (january["rate"] < january["high"]).all()


def test_a_vintage_is_shown_only_to_the_months_that_all_of_its_loans_have() -> None:
    found = book()

    # The default of May lies in its second month, which the loan of the 29th has not had.
    assert curve(found, "2026-05") == [(1, 0)]
    assert curve(found, "2026-06") == []
    assert "2026-07" not in set(found.curves["vintage"])


def test_what_cannot_be_followed_is_left_out_and_counted() -> None:
    found = book()

    assert (found.loans, found.indeterminate, found.unplaced) == (6, 1, 2)


def test_of_several_outcomes_the_latest_that_was_known_counts() -> None:
    cured = ("jan-default-in-third-month", "paid", "2026-04-01T10:00:00Z")
    later = ("jan-default-in-first-month", "paid", "2026-07-01T10:00:00Z")
    outcomes = pd.concat([OUTCOMES, OUTCOMES[:2], pd.DataFrame([cured, later], columns=OUTCOMES.columns)])

    assert curve(book(outcomes=outcomes), "2026-01") == [(1, 1), (2, 1), (3, 1), (4, 1)]


def test_different_outcomes_at_once_are_left_out_and_counted() -> None:
    outcomes = pd.concat([OUTCOMES, OUTCOMES[1:2].assign(outcome="paid")])

    found = book(outcomes=outcomes)

    assert (found.loans, found.unplaced) == (5, 3)
    assert curve(found, "2026-01")[-1] == (4, 1)


def test_a_vintage_has_no_more_months_than_loans_need_to_mature() -> None:
    old = LOANS.assign(applied_at="2024-01-05T10:00:00Z")

    found = book(old, OUTCOMES[:0])

    assert found.curves["month"].tolist() == [1, 2, 3, 4, 5, 6]
    assert found.silent == len(LOANS)


def test_months_are_those_of_the_time_zone() -> None:
    loans = pd.DataFrame({"application_id": ["a"], "applied_at": ["2026-01-31T23:30:00Z"]})

    assert set(book(loans, OUTCOMES[:0]).curves["vintage"]) == {"2026-01"}
    assert set(book(loans, OUTCOMES[:0], timezone="Europe/Vienna").curves["vintage"]) == {"2026-02"}


def test_moments_with_and_without_a_zone_are_the_same() -> None:
    naive = LOANS.assign(applied_at=pd.to_datetime(LOANS["applied_at"]).dt.tz_localize(None))

    pd.testing.assert_frame_equal(book(naive).curves, book().curves)


def mature(bads: int, loans: int, pd_: float, vintage: str = "2025-10") -> tuple[pd.DataFrame, pd.DataFrame]:
    ids = [f"{vintage}-{at}" for at in range(loans)]
    made = pd.DataFrame({"application_id": ids, "applied_at": f"{vintage}-15T00:00:00Z", "pd": pd_})
    outcome = ["default"] * bads + ["paid"] * (loans - bads)
    at = pd.Timestamp(f"{vintage}-15", tz=UTC) + pd.Timedelta(days=170)
    return made, pd.DataFrame({"application_id": ids, "outcome": outcome, "outcome_at": at})


@pytest.mark.parametrize(
    ("bads", "loans", "verdict"),
    [(100, 1_000, "as foreseen"), (140, 1_000, "more"), (60, 1_000, "fewer"), (20, 29, "not_assessed")],
)
def test_as_many_bad_loans_as_foreseen_more_or_fewer(bads: int, loans: int, verdict: str) -> None:
    (row,) = book(*mature(bads, loans, 0.1)).expected.to_dict("records")

    assert (row["vintage"], row["verdict"]) == ("2025-10", verdict)
    assert row["expected"] == pytest.approx(0.1)
    if verdict != "not_assessed":
        assert row["realised"] == pytest.approx(bads / loans)


def test_silent_loans_are_counted_and_not_judged() -> None:
    loans, outcomes = mature(100, 1_000, 0.1)

    (row,) = book(loans, outcomes[:500]).expected.to_dict("records")

    assert (row["loans"], row["silent"], row["bads"]) == (500, 500, 100)
    assert row["verdict"] == "more"


def test_a_vintage_that_has_not_matured_is_not_judged() -> None:
    assert book(*mature(100, 1_000, 0.1, "2026-01")).expected.empty


def test_intervals_hold_for_all_vintages_together() -> None:
    alone = book(*mature(118, 1_000, 0.1, "2025-06")).expected
    pairs = [mature(118 if month == 6 else 100, 1_000, 0.1, f"2025-{month:02d}") for month in range(1, 13)]
    many = book(*[pd.concat(frames, ignore_index=True) for frames in zip(*pairs, strict=True)]).expected

    sixth = many[many["vintage"] == "2025-06"].iloc[0]
    assert sixth["low"] < alone["low"].iloc[0]
    assert sixth["high"] > alone["high"].iloc[0]


def test_loans_without_a_pd_have_curves_and_no_verdict() -> None:
    found = book(LOANS.drop(columns="pd"))

    assert found.expected.empty
    assert not found.curves.empty
    assert list(found.expected_table().columns) == list(book().expected.columns)


@pytest.mark.parametrize(
    ("loans", "outcomes", "message"),
    [
        (LOANS.drop(columns="applied_at"), OUTCOMES, "loans: column 'applied_at' is missing"),
        (LOANS, OUTCOMES.drop(columns="outcome_at"), "outcomes: column 'outcome_at' is missing"),
        (
            pd.concat([LOANS, LOANS[:1]]),
            OUTCOMES,
            "loans: loan 'jan-default-in-first-month' comes more than once",
        ),
        (LOANS, OUTCOMES.assign(outcome="eaten"), "unknown outcome 'eaten'"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(loans: pd.DataFrame, outcomes: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError, match=message):
        book(loans, outcomes)


def test_nothing_to_follow_is_an_empty_result_with_an_empty_picture() -> None:
    found = book(LOANS[:0], OUTCOMES[:0])

    assert (found.loans, len(found.curves), len(found.expected)) == (0, 0, 0)
    assert found.table().empty
    assert found.chart().startswith(b"\x89PNG")


@given(
    st.lists(st.tuples(st.integers(0, 700), st.one_of(st.none(), st.integers(0, 250))), min_size=1, max_size=60),
    st.integers(0, 700),
)
@settings(max_examples=50, deadline=None)
def test_curves_rise_and_nothing_later_changes_them(rows: list[tuple[int, int | None]], until: int) -> None:
    start = pd.Timestamp("2024-06-01", tz=UTC)
    loans = pd.DataFrame(
        {
            "application_id": [f"a{at}" for at in range(len(rows))],
            "applied_at": [start + pd.Timedelta(days=day) for day, _ in rows],
        }
    )
    outcomes = pd.DataFrame(
        [
            (f"a{at}", "default", start + pd.Timedelta(days=day + after))
            for at, (day, after) in enumerate(rows)
            if after is not None
        ],
        columns=["application_id", "outcome", "outcome_at"],
    )
    as_of = (start + pd.Timedelta(days=until)).to_pydatetime()

    then, later = follow(loans, outcomes, TARGET, as_of), follow(loans, outcomes, TARGET, AS_OF)

    for _, of in then.curves.groupby("vintage"):
        assert of["bads"].is_monotonic_increasing
        assert of["month"].tolist() == list(range(1, len(of) + 1))
        assert (of["bads"] <= of["loans"]).all()
    # A vintage that was complete when it was looked at is the same for ever; one that got more loans had no month.
    merged = then.curves.merge(later.curves, on=["vintage", "month"], suffixes=("", "_later"))
    complete = merged[merged["loans"] == merged["loans_later"]]
    assert len(merged) == len(then.curves)
    assert complete["bads"].tolist() == complete["bads_later"].tolist()


@pytest.fixture(scope="module")
def world_book() -> Vintages:
    """Sixteen months of the sample world's booked loans, looked at before the last ones have matured."""
    world = LendingWorld(days=500, applications_per_day=20)
    loans = []
    for day in range(500):
        booked, truth = world.booked(day), world.true_pd(day)
        loans.append(booked[["application_id"]].merge(truth, on="application_id").assign(applied_at=world.date_of(day)))
    outcomes = pd.concat([world.outcomes(day) for day in range(500)], ignore_index=True)
    as_of = datetime.combine(world.date_of(500), datetime.min.time(), tzinfo=UTC)
    return follow(pd.concat(loans, ignore_index=True), outcomes, Target(), as_of)


def test_loans_of_a_known_world_default_as_its_truth_foresees(world_book: Vintages) -> None:
    judged = world_book.expected

    assert len(judged) == 4  # of seventeen vintages, those of the first four months have matured
    assert judged["verdict"].tolist() == ["as foreseen"] * 4
    assert 0 < world_book.silent < 30  # those that mature in the hours after the moment of looking


def test_young_vintages_of_a_known_world_are_shorter(world_book: Vintages) -> None:
    months = world_book.curves.groupby("vintage")["month"].max()

    assert months.iloc[0] == 12
    assert months.is_monotonic_decreasing
    assert months.iloc[-1] == 1


def test_pages_are_small(world_book: Vintages) -> None:
    assert len(world_book.table()) <= 20
    assert "after_12_months" in world_book.table().columns
    assert len(world_book.expected_table(3)) == 3
    picture = world_book.chart()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) <= 30_000


def test_the_table_shows_nothing_where_a_vintage_has_not_been_seen(world_book: Vintages) -> None:
    youngest = world_book.table().iloc[0]

    assert np.isnan(youngest["after_3_months"])
