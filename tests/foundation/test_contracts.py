"""Contracts: what is accepted, what is quarantined, and that nothing is lost between the two."""

import gc
import itertools
import json
import subprocess
import sys
import weakref
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.foundation.contracts import (
    QUARANTINE_COLUMNS,
    UNREADABLE,
    Column,
    Contract,
    Rule,
    TimeFormat,
    between,
    coerce,
    ingest,
    matches,
    max_length,
    not_after,
    not_before,
    one_line,
    time_slice,
)
from mlops_assets.foundation.errors import UserError

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

CONTRACT = Contract(
    name="orders",
    columns=(
        Column("order_id", "text", "The order."),
        Column("amount", "number", "In euro."),
        Column("pieces", "integer", required=False, default=1),
        Column("paid", "flag", required=False, nullable=True),
        Column("ordered_at", "time"),
        Column("due", "date", required=False, nullable=True),
        Column("note", "text", required=False, nullable=True),
    ),
    rules=(
        one_line("order_id", 8),
        between("amount", 0, 1_000),
        not_after("ordered_at", NOW),
        not_before("ordered_at", datetime(2000, 1, 1, tzinfo=UTC)),
        max_length("note", 20),
        Rule(
            "due_after_order",
            "due",
            lambda rows: rows["due"].isna() | (rows["due"].dt.tz_localize("UTC") >= rows["ordered_at"].dt.normalize()),
            "not before the day of the order",
            whole_row=True,
        ),
    ),
    unique=("order_id",),
    time_column="ordered_at",
)

GOOD = {
    "order_id": "a1",
    "amount": "12.5",
    "pieces": "2",
    "paid": "yes",
    "ordered_at": "2026-11-16T08:00:00Z",
    "due": "2026-11-20",
    "note": "ring twice",
}


def frame_of(*changes: dict[str, Any]) -> pd.DataFrame:
    rows = [GOOD | {"order_id": f"a{n}"} | change for n, change in enumerate(changes)]
    return pd.DataFrame(rows, dtype=object)


def rules_of(frame: pd.DataFrame) -> list[tuple[int, str, str]]:
    found = CONTRACT.split(frame, where="orders.csv").quarantined
    return list(found[["row", "rule", "column"]].itertuples(index=False, name=None))


def test_clean_text_becomes_exactly_the_contracts_columns_and_dtypes() -> None:
    split = CONTRACT.split(frame_of({}, {}).assign(extra="kept out"), where="orders.csv")

    assert list(split.accepted.columns) == list(CONTRACT.names)
    assert split.accepted.dtypes.astype(str).to_dict() == {
        "order_id": "object",
        "amount": "float64",
        "pieces": "int64",
        "paid": "boolean",
        "ordered_at": "datetime64[ns, UTC]",
        "due": "datetime64[ns]",
        "note": "object",
    }
    assert len(split.quarantined) == 0
    assert tuple(split.quarantined.columns) == QUARANTINE_COLUMNS


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"amount": "abc"}, "not_a_number"),
        ({"amount": "1.234,56"}, "not_a_number"),
        ({"amount": "inf"}, "not_a_number"),
        ({"amount": "nan"}, "not_a_number"),
        ({"amount": "1e999"}, "not_a_number"),
        ({"amount": "0x10"}, "not_a_number"),
        ({"amount": ["1"]}, "not_a_number"),
        ({"amount": "-0.01"}, "amount_in_range"),
        ({"amount": None}, "missing"),
        ({"order_id": "  "}, "missing"),
        ({"order_id": "123456789"}, "order_id_not_one_line"),
        ({"order_id": "a\nb"}, "order_id_not_one_line"),
        ({"order_id": b"\xff"}, "not_text"),
        ({"order_id": "\ud800"}, "not_text"),
        ({"pieces": "1.5"}, "not_an_integer"),
        ({"pieces": "1e300"}, "not_an_integer"),
        ({"paid": "maybe"}, "not_a_flag"),
        ({"paid": "2"}, "not_a_flag"),
        ({"ordered_at": "2026-13-45"}, "not_a_time"),
        ({"ordered_at": "today"}, "not_a_time"),
        ({"ordered_at": "2026"}, "not_a_time"),
        ({"ordered_at": "9999-01-01"}, "not_a_time"),
        ({"ordered_at": 1_700_000_000}, "not_a_time"),
        ({"ordered_at": "2027-01-01", "due": None}, "ordered_at_not_after"),
        ({"ordered_at": "1970-01-01"}, "ordered_at_not_before"),
        ({"due": "someday"}, "not_a_date"),
        ({"due": "2026-11-01"}, "due_after_order"),
        ({"note": "x" * 21}, "note_too_long"),
    ],
)
def test_one_bad_value_sends_one_row_to_quarantine_with_its_rule(change: dict[str, Any], rule: str) -> None:
    assert rules_of(frame_of({}, change, {})) == [(1, rule, next(iter(change)))]


def test_a_row_that_breaks_several_rules_has_a_quarantine_row_for_each() -> None:
    split = CONTRACT.split(frame_of({"amount": "-5", "paid": "maybe"}, {}), where="orders.csv", first_row=10)

    assert sorted(split.quarantined["rule"]) == ["amount_in_range", "not_a_flag"]
    assert set(split.quarantined["row"]) == {10}
    assert list(split.accepted.index) == [11]


def test_quarantine_shows_value_bound_and_the_whole_raw_row() -> None:
    raw = frame_of({"amount": "2000", "note": None}).assign(extra=7)
    row = CONTRACT.split(raw, where="orders.csv").quarantined.iloc[0]

    assert (row["value"], row["bound"]) == ("2000", "0 to 1000")
    assert json.loads(row["raw"]) == GOOD | {"order_id": "a0", "amount": "2000", "note": None, "extra": 7}


def test_a_rule_over_several_columns_is_silent_where_one_of_them_cannot_be_read() -> None:
    assert rules_of(frame_of({"ordered_at": "garbage"})) == [(0, "not_a_time", "ordered_at")]


def test_half_of_a_surrogate_pair_is_stored_in_escaped_form() -> None:
    row = CONTRACT.split(frame_of({"note": "\ud800"}), where="orders.csv").quarantined.iloc[0]

    row["raw"].encode("utf-8")
    assert "d800" in row["raw"]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("text", " 007 ", "007"),
        ("text", 7, "7"),
        ("text", 7.0, "7"),
        ("text", Decimal(7), "7"),
        ("text", True, "True"),
        ("number", "+1.5e2", 150.0),
        ("number", Decimal("1.5"), 1.5),
        ("integer", "3.0", 3),
        ("flag", "TRUE", True),
        ("flag", "No", False),
        ("flag", 1, True),
        ("flag", 0.0, False),
        ("time", "2026-11-16 08:30", pd.Timestamp("2026-11-16 08:30", tz="UTC")),
        ("time", "2026-11-16T08:30:00+02:00", pd.Timestamp("2026-11-16 06:30", tz="UTC")),
        ("time", datetime(2026, 11, 16, tzinfo=UTC), pd.Timestamp("2026-11-16", tz="UTC")),
        ("time", pd.Timestamp("2026-11-16"), pd.Timestamp("2026-11-16", tz="UTC")),
        ("time", "20261116", pd.Timestamp("2026-11-16", tz="UTC")),
        ("date", "1999", pd.Timestamp("1999-01-01")),
        ("date", "1999-05", pd.Timestamp("1999-05-01")),
        ("date", date(1999, 5, 2), pd.Timestamp("1999-05-02")),
        ("date", "1999-05-02T23:00:00Z", pd.Timestamp("1999-05-02")),
    ],
)
def test_values_are_read_as_their_type(kind: Any, value: Any, expected: Any) -> None:
    # The second row keeps the values from being uniform, which would take the fast way.
    for values in ([value], [value, "?" if kind == "text" else "12.5x"]):
        typed, unusable = coerce(pd.Series(values, dtype=object), kind)
        assert typed[0] == expected
        assert not unusable[0]


@pytest.mark.parametrize(
    ("time", "value", "expected"),
    [
        (TimeFormat(unit="s"), "964982703", "2000-07-30T18:45:03Z"),
        (TimeFormat(unit="s"), "964982703.25", "2000-07-30T18:45:03.25Z"),
        (TimeFormat(unit="ms"), 1238536800000, "2009-03-31T22:00:00Z"),
        (TimeFormat(unit="%d/%m/%Y %H:%M"), "16/11/2026 08:30", "2026-11-16T08:30:00Z"),
        (TimeFormat(timezone="Europe/Stockholm"), "2026-11-16 08:30", "2026-11-16T07:30:00Z"),
        (TimeFormat(timezone="Europe/Stockholm"), "2026-11-16T08:30:00Z", "2026-11-16T08:30:00Z"),
        (TimeFormat(timezone="Europe/Stockholm"), "2026-10-25 02:30", "2026-10-25T00:30:00Z"),
        (TimeFormat(timezone="Europe/Stockholm"), "2026-03-29 02:30", "2026-03-29T01:00:00Z"),
    ],
)
def test_times_are_read_as_the_source_says(time: TimeFormat, value: Any, expected: str) -> None:
    for values in ([value], [value, "garbage"], [value, None, "2026-11-16T08:00:00+01:00"]):
        typed, _ = coerce(pd.Series(values, dtype=object), "time", time)
        assert typed[0] == pd.Timestamp(expected)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Stockholm"])
def test_a_time_is_the_same_whatever_time_stands_before_it(zone: str) -> None:
    texts = [
        "2024-09-02T10:00:00+02:00", "2024-09-02 10:00", "20240902T100000", "20240902T100000+0200", "2024-09-02T10-05",
        "2024-09-02", "2024-09-02T10:00:00Z", "2024-09-02 10:00:00.5", "soon",
    ]  # fmt: skip
    time = TimeFormat(timezone=zone)
    alone = {text: coerce(pd.Series([text], dtype=object), "time", time)[0][0] for text in texts}
    for pair in itertools.permutations(texts, 2):
        together = coerce(pd.Series(pair, dtype=object), "time", time)[0]
        for text, moment in zip(pair, together, strict=True):
            assert moment is alone[text] is pd.NaT or moment == alone[text], pair


def test_times_of_a_typed_column_keep_their_moment_in_every_unit_and_zone() -> None:
    moment = pd.Series(pd.to_datetime(["2026-11-16 08:30:00"]))
    for typed in (moment, moment.dt.as_unit("us"), moment.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")):
        assert coerce(typed, "time")[0][0] == pd.Timestamp("2026-11-16 08:30", tz="UTC")


def test_a_typed_time_beyond_nanoseconds_is_unusable_not_a_crash() -> None:
    far = pd.Series(np.array(["9999-12-31", "2026-11-16"], dtype="datetime64[us]"))
    typed, unusable = coerce(far, "time")

    assert list(unusable) == [True, False]
    assert typed[1] == pd.Timestamp("2026-11-16", tz="UTC")


@pytest.mark.parametrize("setting", [{"unit": "seconds"}, {"timezone": "Mars/Olympus"}, {"zone": "UTC"}])
def test_a_time_format_that_nobody_knows_is_refused(setting: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"seconds|Mars|zone"):
        TimeFormat(**setting)


def test_optional_columns_take_their_default_or_are_missing() -> None:
    accepted = CONTRACT.split(frame_of({}).drop(columns=["pieces", "note", "paid"]), where="orders.csv").accepted

    assert accepted["pieces"].tolist() == [1]
    assert accepted["note"].tolist() == [None]
    assert accepted["paid"].isna().all()


def test_a_missing_value_of_a_column_with_default_takes_the_default() -> None:
    assert CONTRACT.split(frame_of({"pieces": ""}), where="orders.csv").accepted["pieces"].tolist() == [1]


def test_a_missing_required_column_names_what_is_there_the_nearest_and_the_remedy() -> None:
    with pytest.raises(UserError) as raised:
        CONTRACT.split(frame_of({}).rename(columns={"order_id": "orderID"}), where="orders.csv")

    for part in (
        "orders.csv",
        "'order_id'",
        "'orderID', 'amount'",
        "did you mean 'orderID'",
        "columns: {order_id: orderID}",
    ):
        assert part in str(raised.value)


def test_duplicate_column_names_are_refused() -> None:
    frame = frame_of({})
    with pytest.raises(UserError, match="occur twice: 'amount'"):
        CONTRACT.split(pd.concat([frame, frame[["amount"]]], axis=1), where="orders.csv")


def test_an_empty_frame_gives_empty_typed_results() -> None:
    split = CONTRACT.split(frame_of({}).head(0), where="orders.csv")

    assert split.accepted.dtypes.equals(CONTRACT.split(frame_of({}), where="orders.csv").accepted.dtypes)
    assert split.quarantined["row"].dtype == "int64"


def test_of_equal_keys_the_first_row_that_is_good_otherwise_is_kept() -> None:
    frame = frame_of({"order_id": "k", "amount": "bad"}, {"order_id": "k"}, {"order_id": "k "})

    split = CONTRACT.split(frame, where="orders.csv")

    assert list(split.accepted.index) == [1]
    assert rules_of(frame) == [(0, "not_a_number", "amount"), (2, "unique_order_id", "order_id")]


def test_keys_are_unique_across_the_chunks_of_one_table() -> None:
    chunks = [(frame_of({}), 2, "orders.csv"), (frame_of({}), 3, "orders.csv")]
    batches = list(ingest(chunks, CONTRACT))

    assert [len(batch.accepted) for batch in batches] == [1, 0]
    assert batches[1].quarantined[["row", "rule"]].values.tolist() == [[3, "unique_order_id"]]


def test_an_unreadable_line_is_quarantined_with_its_text_and_nothing_else() -> None:
    frame = pd.concat([frame_of({}), pd.DataFrame({UNREADABLE: ["a,b,c,"]})], ignore_index=True)
    row = CONTRACT.split(frame, where="orders.csv").quarantined

    assert row[["row", "rule", "value"]].values.tolist() == [[1, "unreadable_line", "a,b,c,"]]
    assert json.loads(row["raw"][0]) == {"line": "a,b,c,"}


def test_row_numbers_follow_the_index_of_a_filtered_chunk() -> None:
    frame = frame_of({}, {}, {"amount": "bad"}, {})

    split = CONTRACT.split(frame[[False, True, True, True]], where="orders.csv", first_row=100)

    assert list(split.quarantined["row"]) == [102]
    assert list(split.accepted.index) == [101, 103]


def test_values_stay_in_their_rows_whatever_the_index() -> None:
    frame = frame_of({}, {"amount": " 7 "}, {"amount": "+8", "note": " x"}, {"amount": "bad"}, {"due": "2027"})

    accepted = CONTRACT.split(frame.iloc[[4, 2, 1, 3]], where="orders.csv").accepted

    assert accepted["order_id"].to_dict() == {4: "a4", 2: "a2", 1: "a1"}
    assert accepted["amount"].to_dict() == {4: 12.5, 2: 8.0, 1: 7.0}
    assert accepted["note"].to_dict() == {4: "ring twice", 2: "x", 1: "ring twice"}
    assert accepted["due"].dt.year.to_dict() == {4: 2027, 2: 2026, 1: 2026}


anything = st.one_of(
    st.none(),
    st.text(max_size=6),
    st.sampled_from(["12", "abc", "2026-11-16", "2026-13-45", "yes", "a1", "  ", "1e9", "-1", "inf"]),
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.binary(max_size=3),
    st.datetimes().map(lambda moment: moment.replace(microsecond=0)),
    st.dates(),
    st.decimals(allow_nan=False),
    st.just(Decimal("NaN")),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries(dict.fromkeys(CONTRACT.names, anything)), max_size=8),
    good=st.integers(0, 3),
    unit=st.sampled_from(["iso", "s", "ms", "%d/%m/%Y"]),
)
def test_nothing_is_ever_lost_whatever_the_cells_hold(rows: list[dict[str, Any]], good: int, unit: str) -> None:
    frame = pd.DataFrame([*rows, *[GOOD] * good], columns=list(CONTRACT.names), dtype=object)
    frame.attrs["time_format"] = {"unit": unit}

    split = CONTRACT.split(frame, where="fuzz", first_row=5)

    assert len(split.accepted) + split.quarantined["row"].nunique() == len(frame)
    assert set(split.accepted.index).isdisjoint(split.quarantined["row"])
    CONTRACT.schema().validate(split.accepted, lazy=True)


def test_a_window_leaves_other_rows_to_their_window_and_keeps_rows_that_no_window_owns() -> None:
    frame = frame_of(
        {},
        {"ordered_at": "2026-11-09T00:00:00Z", "amount": "bad", "due": None},
        {"ordered_at": "2026-11-16T00:00:00Z", "amount": "bad"},
        {"ordered_at": "garbage"},
        {"ordered_at": None},
        {"ordered_at": "2062-01-01", "due": None},
        {"ordered_at": "2026-11-22T23:59:59.999Z", "due": None},
        {"ordered_at": "2026-11-23T00:00:00Z", "due": None},
    )
    window = (datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC))

    (batch,) = ingest([(frame, 2, "orders.csv")], CONTRACT, window)

    assert list(batch.accepted.index) == [2, 8]
    assert batch.outside == 2
    assert batch.quarantined[["row", "rule"]].values.tolist() == [
        [4, "not_a_number"],
        [5, "not_a_time"],
        [6, "missing"],
        [7, "ordered_at_not_after"],
    ]
    assert batch.quarantined["time"].notna().tolist() == [True, False, False, False]
    assert set(batch.quarantined["source"]) == {"orders.csv"}
    assert len(batch.accepted) + batch.quarantined["row"].nunique() + batch.outside == len(frame)


def test_a_window_needs_a_time_column_even_where_the_contract_does_not() -> None:
    contract = Contract("events", (Column("at", "time", required=False, nullable=True),), time_column="at")
    window = (datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC))

    with pytest.raises(UserError, match="column 'at' is missing"):
        list(ingest([(pd.DataFrame({"x": ["1"]}), 0, "events.csv")], contract, window))


def test_time_slice_separates_inside_outside_and_untimed_rows() -> None:
    frame = frame_of({}, {"ordered_at": "2026-12-01"}, {"ordered_at": "never"})

    cut = time_slice(frame, datetime(2026, 11, 16), datetime(2026, 11, 23), column="ordered_at")  # noqa: DTZ001

    assert [list(part.index) for part in cut] == [[0], [1], [2]]


def test_matches_requires_the_pattern() -> None:
    contract = Contract(
        "users", (Column("market", "text", nullable=True),), (matches("market", "^[A-Z]{2}$", bound="two capitals"),)
    )

    split = contract.split(pd.DataFrame({"market": ["SE", None, "sweden"]}), where="users.csv")

    assert list(split.accepted["market"]) == ["SE", None]
    assert split.quarantined[["rule", "bound"]].values.tolist() == [["market_pattern", "two capitals"]]


def test_schema_rows_say_type_bounds_and_defaults() -> None:
    rows = {row.name: row for row in CONTRACT.table_schema()}

    assert rows["amount"].constraints == ("amount_in_range: 0 to 1000",)
    assert rows["pieces"].constraints == ("optional", "default 1")
    assert "unique" in rows["order_id"].constraints
    assert rows["note"].nullable
    assert "- **amount** (number): In euro. [amount_in_range: 0 to 1000]" in CONTRACT.describe()


def test_a_contract_with_a_rule_on_no_column_of_its_own_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="rules name other columns"):
        Contract("x", (Column("a", "text"),), (between("b", 0, 1),))


def test_a_chunk_is_forgotten_without_the_garbage_collector() -> None:
    frame = frame_of({}, {"amount": "bad"})
    gc.collect()
    gc.disable()
    try:
        kept = weakref.ref(CONTRACT.split(frame, where="orders.csv").accepted)
        assert kept() is None
    finally:
        gc.enable()


def test_importing_the_module_does_not_import_pandera() -> None:
    code = (
        "import sys, mlops_assets.foundation.contracts; sys.exit('pandera' in sys.modules or 'dagster' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
