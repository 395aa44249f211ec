"""What a user may write into a spec, and what is said about what he may not."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.discover_weekly.names import partitions_of
from mlops_assets.discover_weekly.spec import Periods, Spec, load_spec, parse_spec
from mlops_assets.foundation.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def _refused(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_spec(raw, where="own.yaml", base=Path())
    return str(caught.value)


def test_an_empty_file_is_the_default_system(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("", encoding="utf-8")
    spec = load_spec(tmp_path / "own.yaml")
    assert spec == Spec(base=tmp_path.resolve())


def test_relative_paths_start_at_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "own.yaml").write_text("name: films\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_spec(Path("deep/own.yaml")).base == (tmp_path / "deep").resolve()


@pytest.mark.parametrize("name", ["lastfm", "movielens"])
def test_the_examples_are_specs(name: str) -> None:
    assert load_spec(ROOT / "examples" / f"{name}.yaml").name == name


def test_every_wrong_setting_is_named_at_once() -> None:
    message = _refused(
        {
            "nam": "x",
            "playlist": {"length": 0, "lenght": 3},
            "risk": {"data": "huge", "algorithm": "low", "output": "low"},
        }
    )
    assert message.startswith("own.yaml: 4 setting(s) cannot be used")
    assert all(where in message for where in ("nam:", "playlist.length:", "playlist.lenght:", "risk.data:"))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"periods": {"start": "2026-08-25"}}, "2026-08-25 is a Tuesday; weeks start on Monday"),
        ({"periods": {"cadence": "monthly", "start": "2026-08-24"}}, "2026-08-24 is not the first of a month"),
        ({"periods": {"end": "2020-01-01"}}, "periods.end 2020-01-01 is not after periods.start"),
        ({"periods": {"timezone": "Mars/Olympus"}}, "'Mars/Olympus' is no time zone"),
        ({"periods": {"timezone": "../etc/passwd"}}, "is no time zone"),
        ({"periods": {"timezone": ""}}, "is no time zone"),
        ({"periods": {"hour": 24}}, "periods.hour"),
        ({"periods": {"late_after_hours": 121}}, "periods.late_after_hours"),
        ({"name": "Discover Weekly"}, "must be lower-case letters, digits and underscores"),
        ({"name": "x; drop table"}, "must be lower-case letters"),
        ({"data": {"listens": {"kind": "spotify"}}}, "'files', 'table', 'sample'"),
        ({"data": {"listens": {"kind": "sample", "userz": 300}}}, "unknown sample setting(s) userz; known: dirt, seed"),
        ({"data": {"listens": {"kind": "sample", "users": 10}}}, "Choose users between 200 and 1,000,000"),
        ({"data": {"listens": {"kind": "sample", "users": "many"}}}, "data"),
        ({"evaluation": {"must_beat": ["oracle"]}}, "evaluation.must_beat.0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_explained(raw: dict[str, Any], said: str) -> None:
    assert said in _refused(raw)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: [\n", "cannot be read as YAML"),
        (b"name: \xff\xfe\n", "cannot be read as YAML"),
        (b"- 1\n- 2\n", "holds no settings"),
        (b"just words\n", "holds no settings"),
    ],
)
def test_a_file_that_is_no_spec_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: there is no such file"):
        load_spec(tmp_path / "nowhere.yaml")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch owned']\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        load_spec(path)


@pytest.mark.parametrize(
    ("cadence", "start", "period", "by", "expected"),
    [
        ("weekly", "2026-08-24", "2026-08-24", 1, "2026-08-31"),
        ("weekly", "2026-08-24", "2026-12-28", 1, "2027-01-04"),
        ("weekly", "2026-08-24", "2026-08-31", -2, "2026-08-17"),
        ("monthly", "2026-08-01", "2026-12-01", 1, "2027-01-01"),
        ("monthly", "2026-08-01", "2026-03-01", -1, "2026-02-01"),
    ],
)
def test_a_period_is_shifted_in_its_own_rhythm(cadence: Any, start: str, period: str, by: int, expected: str) -> None:
    assert Periods(cadence=cadence, start=date.fromisoformat(start)).shift(period, by) == expected


def test_weeks_are_named_by_their_monday(small_spec: Spec) -> None:
    keys = partitions_of(small_spec).get_partition_keys()
    assert keys[:2] == ["2024-01-01", "2024-01-08"]
    assert {date.fromisoformat(key).weekday() for key in keys} == {0}


def test_periods_end_where_the_spec_says(make_spec: Callable[..., Spec]) -> None:
    spec = make_spec(periods={"end": "2024-01-22"})
    assert partitions_of(spec).get_partition_keys() == ["2024-01-01", "2024-01-08", "2024-01-15"]


def test_a_spec_does_not_change_after_it_was_read(small_spec: Spec) -> None:
    with pytest.raises(ValueError, match="frozen"):
        small_spec.playlist.length = 3  # type: ignore[misc]


def test_every_setting_without_a_telling_type_is_described() -> None:
    def described(model: Any) -> dict[str, str | None]:
        return {name: info.description for name, info in model.model_fields.items()}

    periods = described(Periods)
    assert all(periods.values()), periods
