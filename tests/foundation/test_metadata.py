"""Values as the pages show them: rounded, cut, and never a number that cannot be drawn."""

import json
import math
from datetime import date

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from mlops_assets.foundation import metadata as md


def _records(frame: pd.DataFrame, **how: int) -> list[dict[str, object]]:
    return [dict(record.data) for record in md.table(frame, **how).records]


def test_a_table_is_cut_because_the_page_draws_every_row() -> None:
    assert len(_records(pd.DataFrame({"n": range(500)}))) == md.MAX_ROWS
    assert len(_records(pd.DataFrame({"n": range(500)}), rows=3)) == 3


def test_numbers_are_rounded_for_the_eye() -> None:
    assert _records(pd.DataFrame({"x": [0.1 + 0.2]})) == [{"x": 0.3}]
    assert _records(pd.DataFrame({"x": [1 / 3]}), digits=2) == [{"x": 0.33}]


def test_missing_values_of_every_kind_are_blank() -> None:
    frame = pd.DataFrame(
        {
            "a": [None, "x"],
            "b": [math.nan, 1.0],
            "c": [pd.NaT, pd.Timestamp("2026-01-01")],
            "d": pd.array([pd.NA, "y"], dtype="string"),
            "e": pd.array([pd.NA, 3], dtype="Int64"),
        }
    )
    first, second = _records(frame)
    assert first == dict.fromkeys("abcde")
    assert (second["a"], second["b"], second["d"], second["e"]) == ("x", 1.0, "y", 3)


def test_values_keep_their_kind() -> None:
    frame = pd.DataFrame({"flag": [True], "count": [np.int64(3)], "day": [date(2026, 1, 1)], "list": [[1, 2]]})
    assert _records(frame) == [{"flag": True, "count": 3, "day": "2026-01-01", "list": "[1, 2]"}]


def test_a_table_survives_dagsters_storage() -> None:
    value = md.table(pd.DataFrame({"x": [np.float32(0.5), math.inf], 7: ["a", None]}))
    stored = dg.deserialize_value(dg.serialize_value(value), dg.TableMetadataValue)
    assert stored == value
    assert [column.name for column in stored.schema.columns] == ["x", "7"]


def test_an_empty_frame_is_a_table_with_its_columns() -> None:
    value = md.table(pd.DataFrame({"x": [], "y": []}))
    assert list(value.records) == []
    assert [column.name for column in value.schema.columns] == ["x", "y"]


def test_one_number_a_key_of_its_own_kind() -> None:
    shown = md.numbers({"rows": 3, "users": np.int32(4), "share": 1 / 3})
    assert {name: value.value for name, value in shown.items()} == {"rows": 3, "users": 4, "share": 0.333333}
    assert isinstance(shown["rows"], dg.IntMetadataValue)
    assert isinstance(shown["share"], dg.FloatMetadataValue)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_cannot_be_plotted_is_left_out(value: float | None) -> None:
    assert md.numbers({"x": value}) == {}


def test_a_picture_is_markdown() -> None:
    assert md.picture("<svg/>", "line").value.startswith("![line](data:image/svg+xml;base64,")


def test_a_contracts_description_is_the_columns_tab() -> None:
    rows = [
        {"name": "user_id", "type": "string", "nullable": False, "description": "Who.", "constraints": ["not blank"]},
        {"name": "plays", "type": "float"},
    ]
    first, second = md.column_schema(rows).columns
    assert (first.name, first.type, first.description) == ("user_id", "string", "Who.")
    assert (first.constraints.nullable, first.constraints.other) == (False, ["not blank"])
    assert (second.constraints.nullable, second.description) == (True, None)


def test_metadata_of_an_asset_is_plain_data(tmp_path: object) -> None:
    values = {"table": md.table(pd.DataFrame({"x": [1]})), **md.numbers({"n": 1})}
    json.loads(dg.serialize_value(dg.AssetMaterialization("a", metadata=values)))
