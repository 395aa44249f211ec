"""Specs from YAML files: what is refused, all of it at once, and the arithmetic of periods."""

from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.specs import (
    Block,
    Cadence,
    read_yaml,
    schema_name,
    shifted,
    starts_a_period,
    time_zone,
    validated,
)


class Inner(Block):
    share: float = Field(0.5, gt=0, lt=1)


class Small(Block):
    name: str = "small"
    count: int = Field(1, ge=1)
    inner: Inner = Field(default_factory=Inner)
    base: Path = Field(Path(), exclude=True)


def _written(folder: Path, content: str | bytes) -> Path:
    path = folder / "spec.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- Files ---


def test_a_file_yields_its_settings(tmp_path: Path) -> None:
    path = _written(tmp_path, "name: lender\nperiods: {start: 2024-01-01}\n")
    assert read_yaml(path) == {"name": "lender", "periods": {"start": date(2024, 1, 1)}}


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "---\n", "null\n"])
def test_an_empty_file_is_a_spec_of_defaults(tmp_path: Path, content: str) -> None:
    assert read_yaml(_written(tmp_path, content)) == {}


@pytest.mark.parametrize("content", ["[]\n", "false\n", "0\n", "''\n", "- name: a\n", "lender\n"])
def test_a_file_of_anything_but_settings_is_refused(tmp_path: Path, content: str) -> None:
    path = _written(tmp_path, content)
    with pytest.raises(UserError, match=r"spec\.yaml: holds no settings"):
        read_yaml(path)


@pytest.mark.parametrize(
    "content", ["a: [1, 2\n", "a: b: c\n", "\tname: x\n", b"name: \xff\xfe\n", "a: !!python/none x\n"]
)
def test_what_is_no_yaml_is_named_with_its_place(tmp_path: Path, content: str | bytes) -> None:
    path = _written(tmp_path, content)
    with pytest.raises(UserError, match=r"(?s)spec\.yaml: cannot be read as YAML.*Remedy: mend the line it names"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("gates: {proposal_days: 7}\ngates: {proposal_days: 90}\n", "'gates'.*line 2"),
        ("gates:\n  minimum_auc: 0.7\n  minimum_auc: 0.5\n", "'minimum_auc'.*line 3"),
        ("numeric:\n  - {name: income, theme: means, name: debts}\n", "'name'.*line 2"),
    ],
)
def test_a_setting_that_is_given_twice_is_refused_rather_than_the_last_one_taken(
    tmp_path: Path, content: str, where: str
) -> None:
    path = _written(tmp_path, content)
    with pytest.raises(UserError, match=rf"(?s)given twice: {where}"):
        read_yaml(path)


def test_settings_may_be_merged_and_overridden_as_yaml_does(tmp_path: Path) -> None:
    path = _written(tmp_path, "a: &a {low: 0, high: 1}\nb:\n  <<: *a\n  high: 2\n")
    assert read_yaml(path)["b"] == {"low": 0, "high": 2}


@pytest.mark.parametrize("name", ["absent.yaml", "folder"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rf"{name}: there is no such file"):
        read_yaml(tmp_path / name)


# --- Validation ---


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        validated(
            Small, {"count": 0, "inner": {"share": 2, "shear": 1}, "colour": "red"}, where="x.yaml", base=tmp_path
        )
    message = str(caught.value)
    assert message.startswith("x.yaml: 4 setting(s) cannot be used: ")
    assert all(f"{place}: " in message for place in ("count", "inner.share", "inner.shear", "colour"))


def test_a_spec_knows_its_folder_whatever_the_file_says(tmp_path: Path) -> None:
    assert validated(Small, {"base": "/elsewhere"}, where="x.yaml", base=tmp_path).base == tmp_path
    assert "base" not in Small(base=tmp_path).model_dump()


def test_a_spec_does_not_change_after_it_was_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Small().count = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["credit_risk", "a1", "x" * 41])
def test_names_of_schemas(name: str) -> None:
    assert schema_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "a", "A1", "1a", "_a", "a-b", "a b", "a.b", 'a"b', "a\n", "ä1", "x" * 42, "../up", "a;drop"]
)
def test_what_cannot_be_a_schema(name: str) -> None:
    with pytest.raises(ValueError, match="must be lower-case letters"):
        schema_name(name)


@pytest.mark.parametrize("name", ["order", "select", "default", "main", "temp", "system", "information_schema"])
def test_words_that_mean_something_to_the_warehouse_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name!r} is a word of SQL"):
        schema_name(name)


def test_no_word_that_the_warehouse_reserves_is_forgotten() -> None:
    import duckdb

    with duckdb.connect() as connection:
        rows = connection.execute("select keyword_name from duckdb_keywords() where keyword_category = 'reserved'")
        words = [word for (word,) in rows.fetchall()]
    assert len(words) > 50
    for word in words:
        with pytest.raises(ValueError, match="name"):
            schema_name(word)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Stockholm", "America/New_York"])
def test_time_zones(zone: str) -> None:
    assert time_zone(zone) == zone


@pytest.mark.parametrize("zone", ["", "Mars/Base", "Europe", "../etc/passwd", "/etc/localtime", "UTC\0"])
def test_what_is_no_time_zone(zone: str) -> None:
    with pytest.raises(ValueError, match="is no time zone; write one such as UTC"):
        time_zone(zone)


# --- Periods ---


@pytest.mark.parametrize(
    ("cadence", "start"), [("daily", "2024-02-29"), ("weekly", "2024-01-01"), ("monthly", "2024-02-01")]
)
def test_first_days(cadence: Cadence, start: str) -> None:
    starts_a_period(cadence, date.fromisoformat(start))


@pytest.mark.parametrize(
    ("cadence", "start", "why"),
    [("weekly", "2024-01-02", "is a Tuesday; weeks start on Monday"), ("monthly", "2024-02-02", "not the first of a")],
)
def test_what_starts_no_period(cadence: Cadence, start: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        starts_a_period(cadence, date.fromisoformat(start))


@pytest.mark.parametrize(
    ("cadence", "period", "by", "then"),
    [
        ("daily", "2024-02-28", 1, "2024-02-29"),
        ("daily", "2024-03-01", -1, "2024-02-29"),
        ("weekly", "2024-12-30", 1, "2025-01-06"),
        ("monthly", "2024-01-01", 1, "2024-02-01"),
        ("monthly", "2024-03-01", -13, "2023-02-01"),
        ("monthly", "2024-03-01", 0, "2024-03-01"),
    ],
)
def test_shifting(cadence: Cadence, period: str, by: int, then: str) -> None:
    assert shifted(cadence, period, by) == then


FIRST = {
    "daily": st.dates(date(1990, 1, 1), date(2050, 1, 1)),
    "weekly": st.dates(date(1990, 1, 1), date(2050, 1, 1)).map(lambda day: day - timedelta(days=day.weekday())),
    "monthly": st.dates(date(1990, 1, 1), date(2050, 1, 1)).map(lambda day: day.replace(day=1)),
}


@given(st.data(), st.sampled_from(["daily", "weekly", "monthly"]), st.integers(-500, 500), st.integers(-500, 500))
def test_shifts_add_up_and_stay_on_first_days(data: st.DataObject, cadence: Cadence, one: int, other: int) -> None:
    period = data.draw(FIRST[cadence]).isoformat()
    moved = shifted(cadence, period, one)
    starts_a_period(cadence, date.fromisoformat(moved))
    assert shifted(cadence, moved, other) == shifted(cadence, period, one + other)
    assert (moved > period) == (one > 0)
