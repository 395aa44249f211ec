"""Profiles: what they count, that they merge and survive storage, and what the rules find or refuse to judge."""

import datetime as dt
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from upath import UPath

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.profiling import (
    Finding,
    Profile,
    ProfileBounds,
    ProfileStore,
    check,
    findings_table,
    profile,
)

ROWS = 2_000


def batch(seed: int = 0, rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "amount": rng.lognormal(5, 1, rows),
            "age": rng.integers(18, 90, rows),
            "score": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(0, 1, rows)),
            "grade": rng.choice(list("abc"), rows, p=[0.6, 0.3, 0.1]),
            "active": rng.random(rows) < 0.7,
            "seen_at": pd.Timestamp("2026-11-16") + pd.to_timedelta(rng.integers(0, 7 * 86_400, rows), unit="s"),
            "id": [f"row {seed}-{i}" for i in range(rows)],
        }
    )


@pytest.fixture(scope="module")
def reference() -> Profile:
    return profile(batch(0)).merge(profile(batch(1)))


def failed(findings: list[Finding]) -> set[tuple[str, str | None]]:
    return {(finding.code, finding.column) for finding in findings if finding.status == "failed"}


def outcome(findings: list[Finding], code: str, column: str | None) -> Finding:
    (found,) = [finding for finding in findings if (finding.code, finding.column) == (code, column)]
    return found


def test_summary_counts_and_ranges_are_exact() -> None:
    data = batch()
    summary = profile(data).summary().set_index("column")

    assert list(summary.index) == list(data.columns)
    assert set(summary["rows"]) == {ROWS}
    assert summary.loc["score", "null_share"] == data["score"].isna().mean()
    for column in ("amount", "age", "score"):
        assert summary.loc[column, "minimum"] == data[column].min()
        assert summary.loc[column, "maximum"] == data[column].max()
        assert summary.loc[column, "mean"] == pytest.approx(data[column].mean(), rel=1e-9)
        assert summary.loc[column, "stddev"] == pytest.approx(data[column].std(), rel=1e-9)
    assert summary.loc["amount", "q50"] == pytest.approx(data["amount"].median(), rel=0.02)
    assert summary.loc["grade", "distinct"] == pytest.approx(3, abs=0.01)
    assert summary.loc["id", "distinct"] == pytest.approx(ROWS, rel=0.05)
    assert summary["kind"].to_dict() == {
        "amount": "number",
        "age": "number",
        "score": "number",
        "grade": "text",
        "active": "boolean",
        "seen_at": "datetime",
        "id": "text",
    }


@pytest.mark.parametrize(
    ("values", "kind", "nulls"),
    [
        (pd.Series(["a", None], dtype="string"), "text", 1),
        (pd.Series(["a", None], dtype="string[pyarrow]"), "text", 1),
        (pd.Series(["a", None], dtype="category"), "text", 1),
        (pd.Series([1, None], dtype="Int64"), "number", 1),
        (pd.Series([1, None], dtype="Int64").astype("category"), "number", 1),
        (pd.Series([True, None], dtype="boolean"), "boolean", 1),
        (pd.Series([True, None], dtype=object), "boolean", 1),
        (pd.Series([Decimal("1.5"), None], dtype=object), "number", 1),
        (pd.Series([Decimal("1.5")] * 2, dtype=pd.ArrowDtype(pa.decimal128(10, 2))), "number", 0),
        (pd.Series([2**64 - 1, 0], dtype="uint64"), "number", 0),
        (pd.Series([1e308, -1e308]), "number", 0),
        (pd.Series(pd.to_datetime(["2026-11-16", None])), "datetime", 1),
        (pd.Series(pd.to_datetime(["2026-11-16", None], utc=True)), "datetime", 1),
        (pd.Series(pd.to_datetime(["2026-11-16", None])).astype("datetime64[s]"), "datetime", 1),
        (pd.Series([dt.date(9999, 12, 31), None], dtype=object), "datetime", 1),
        (pd.Series([dt.date(2026, 11, 16)] * 2, dtype=pd.ArrowDtype(pa.date32())), "datetime", 0),
        (pd.Series(pd.to_timedelta([1, None], unit="h")), "duration", 1),
        (pd.Series(pd.period_range("2026-01", periods=2, freq="M")), "text", 0),
        (pd.Series([[1], {}], dtype=object), "other", 0),
        (pd.Series([1j, 2j]), "other", 0),
        (pd.Series([None, None], dtype=object), "empty", 2),
        (pd.Series([0.0, 1.0]).astype("Sparse[float]"), "number", 0),
    ],
)
def test_every_dtype_is_profiled(values: "pd.Series[Any]", kind: str, nulls: int) -> None:
    column = profile(values.to_frame("x")).column("x")

    assert (column.kind, column.nulls, column.rows) == (kind, nulls, 2)


def test_datetimes_are_seconds_whatever_their_unit_and_zone() -> None:
    moment = pd.Timestamp("2026-11-16T12:00:00Z")
    zoned = pd.Series([moment]).dt.tz_convert("Europe/Stockholm")
    data = pd.DataFrame(
        {"ns": [moment], "s": zoned.dt.as_unit("s"), "py": pd.Series([moment.to_pydatetime()], dtype=object)}
    )

    assert set(profile(data).summary()["maximum"]) == {moment.timestamp()}


def test_a_batch_in_pieces_has_the_profile_of_the_whole() -> None:
    data = batch()

    pieces = profile(data.iloc[start : start + 300] for start in range(0, ROWS, 300))

    exact = ["column", "kind", "rows", "null_share", "minimum", "maximum"]
    pd.testing.assert_frame_equal(pieces.summary()[exact], profile(data).summary()[exact])
    assert pieces.batches == 1


def test_merging_is_exact_and_changes_neither_side() -> None:
    first, second = profile(batch(0)), profile(batch(1))
    before = first.summary()

    merged = first.merge(second)

    both = pd.concat([batch(0), batch(1)])
    whole = profile(both).summary()
    exact = ["column", "kind", "rows", "null_share", "minimum", "maximum"]
    pd.testing.assert_frame_equal(merged.summary()[exact], whole[exact])
    assert merged.summary()["mean"].to_numpy() == pytest.approx(whole["mean"].to_numpy(), rel=1e-9, nan_ok=True)
    assert merged.batches == 2
    assert first.merge(second, same_batch=True).batches == 1
    pd.testing.assert_frame_equal(first.summary(), before)


def test_two_columns_of_one_name_are_refused() -> None:
    data = pd.DataFrame([[1, 2]], columns=["amount", "amount"])

    with pytest.raises(UserError, match=r"'amount'.*Remedy: rename"):
        profile(data)


def test_a_profile_holds_no_text_of_the_data() -> None:
    data = pd.DataFrame({"name": ["Ada Lovelace"] * 100})

    assert b"Lovelace" not in profile(data).to_bytes()


def test_an_empty_frame_has_a_profile_with_its_columns() -> None:
    empty = profile(batch().head(0))

    assert empty.rows == 0
    assert len(empty.table()) == batch().shape[1]


def test_the_table_is_rounded_and_short() -> None:
    table = profile(pd.DataFrame(np.random.default_rng(0).normal(size=(10, 30)))).table()

    assert len(table) == 20
    assert table.loc[19, "column"] == "… and 11 more"
    assert all(len(str(abs(value)).replace(".", "").lstrip("0")) <= 4 for value in table["mean"][:19])


def test_a_stored_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    store = ProfileStore(UPath(tmp_path))
    original = profile(batch())

    path = store.save("system/table", "2026-11-16|SE", original)

    assert path.exists()
    assert store.partitions("system/table") == ["2026-11-16|SE"]
    loaded = store.load("system/table", "2026-11-16|SE")
    pd.testing.assert_frame_equal(loaded.summary(), original.summary())


def test_the_reference_merges_partitions_and_counts_them(tmp_path: Path) -> None:
    store = ProfileStore(UPath(tmp_path))
    for seed, week in enumerate(["2026-11-02", "2026-11-09", "2026-11-16"]):
        store.save("listens", week, profile(batch(seed)))

    merged = store.reference("listens", ["2026-11-02", "2026-11-09"])

    assert (merged.rows, merged.batches) == (2 * ROWS, 2)
    assert store.partitions("listens") == ["2026-11-02", "2026-11-09", "2026-11-16"]


def test_profiles_live_on_an_object_store_too() -> None:
    store = ProfileStore(UPath("memory://profiles-test"))

    store.save("a/b", "p", profile(batch()))

    assert store.partitions("a/b") == ["p"]
    assert store.load("a/b", "p").rows == ROWS


@pytest.mark.parametrize("damage", ["garbage", "truncated", "altered", "empty"])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path, damage: str) -> None:
    store = ProfileStore(UPath(tmp_path))
    path = Path(str(store.save("listens", "2026-11-16", profile(batch()))))
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "garbage": b"not a profile",
            "truncated": data[:middle],
            "altered": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "empty": b"",
        }[damage]
    )

    with pytest.raises(UserError, match=r"damaged.*Remedy: delete the file") as caught:
        store.load("listens", "2026-11-16")
    assert caught.value.where == str(path)


def test_a_missing_partition_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'2026-11-16'.*Remedy: materialize"):
        ProfileStore(UPath(tmp_path)).reference("listens", ["2026-11-16"])


def test_a_reference_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to compare with"):
        ProfileStore(UPath(tmp_path)).reference("listens", [])


@pytest.mark.parametrize("dataset", ["..", "a//b", "", "a/../b"])
def test_a_data_set_cannot_leave_the_store(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match="does not name a data set"):
        ProfileStore(UPath(tmp_path)).save(dataset, "p", profile(batch(rows=1)))


def test_a_partition_cannot_leave_the_store(tmp_path: Path) -> None:
    path = ProfileStore(UPath(tmp_path)).save("a", "../../b", profile(batch(rows=1)))

    assert Path(str(path)).parent == tmp_path / "a"


@pytest.mark.parametrize("seed", range(5, 15))
def test_a_clean_batch_passes_every_rule(reference: Profile, seed: int) -> None:
    findings = check(profile(batch(seed)), reference)

    assert {finding.status for finding in findings} == {"passed"}
    assert {finding.code for finding in findings} == {f"PRF{number:03d}" for number in range(1, 11)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.drop(columns="age"), {("PRF001", "age")}),
        (lambda d: d.assign(extra=1), {("PRF002", "extra")}),
        (lambda d: d.head(300), {("PRF003", None)}),
        (lambda _: batch(7, 5 * ROWS), {("PRF003", None)}),
        (lambda d: d.assign(grade=d["grade"].where(d.index % 10 > 0)), {("PRF004", "grade")}),
        (lambda d: d.assign(grade=None), {("PRF004", "grade")}),
        (lambda d: d.assign(age=d["age"].where(d.index > 0, 200)), {("PRF005", "age")}),
        (lambda d: d.assign(seen_at=d["seen_at"].where(d.index > 0, pd.Timestamp(0))), {("PRF005", "seen_at")}),
        (lambda d: d.assign(id="row " + (d.index // 3).astype(str)), {("PRF006", "id")}),
        (lambda d: d.assign(grade=d["id"]), {("PRF006", "grade")}),
        (lambda d: d.assign(score=d["score"].astype(object).where(d.index > 0, "N/A")), {("PRF007", "score")}),
        (lambda d: d.assign(active=d["active"].map({True: "yes", False: "no"})), {("PRF007", "active")}),
        (lambda d: d.assign(amount=d["amount"] * 10), {("PRF008", "amount")}),
        (lambda d: d.assign(active=True), {("PRF009", "active")}),
        (lambda d: d.assign(grade="a"), {("PRF009", "grade")}),
        (lambda d: d.assign(score=d["score"].where(d.index > 0, np.inf)), {("PRF010", "score")}),
    ],
)
def test_a_fault_is_found_and_nothing_else(
    reference: Profile, change: Any, expected: set[tuple[str, str | None]]
) -> None:
    assert failed(check(profile(change(batch(7))), reference)) == expected


def test_a_change_of_unit_is_named_in_the_message(reference: Profile) -> None:
    data = batch(7)

    found = check(profile(data.assign(amount=data["amount"] * 100)), reference)

    assert "change of unit by a factor of 100" in outcome(found, "PRF008", "amount").message
    assert ("PRF005", "amount") in failed(found)


def test_a_few_values_in_another_unit_are_found(reference: Profile) -> None:
    data = batch(7)

    few = data.assign(age=data["age"].where(data.index % 100 > 0, data["age"] * 100))

    assert ("PRF005", "age") in failed(check(profile(few), reference))


def test_an_empty_batch_fails_the_row_count_and_judges_no_column(reference: Profile) -> None:
    findings = check(profile(batch(7).head(0)), reference)

    assert failed(findings) == {("PRF003", None)}
    judged = [f for f in findings if f.status == "passed" and f.code not in ("PRF001", "PRF002")]
    assert judged == []
    assert "the batch is empty" in outcome(findings, "PRF005", "amount").message


@pytest.mark.parametrize("rows", [1, 49])
def test_too_few_rows_are_not_assessed(reference: Profile, rows: int) -> None:
    findings = check(profile(batch(7).head(rows)), reference)

    statuses = {f.status for f in findings if f.code not in ("PRF001", "PRF002", "PRF003")}
    assert statuses == {"not_assessed"}


def test_a_column_without_values_is_not_assessed_beyond_its_nulls(reference: Profile) -> None:
    findings = check(profile(batch(7).assign(amount=np.nan)), reference)

    assert outcome(findings, "PRF004", "amount").status == "failed"
    for code in ("PRF005", "PRF006", "PRF007", "PRF008", "PRF009"):
        assert outcome(findings, code, "amount").status == "not_assessed"


def test_an_empty_reference_passes_nothing() -> None:
    findings = check(profile(batch(7)), profile(batch(0).head(0)))

    assert outcome(findings, "PRF003", None).status == "not_assessed"
    assert outcome(findings, "PRF004", "amount").status == "not_assessed"


def test_a_rare_category_that_is_absent_does_not_make_a_column_constant() -> None:
    rng = np.random.default_rng(0)
    usual = pd.DataFrame({"market": np.where(rng.random(20_000) < 0.0005, "NO", "SE")})
    now = pd.DataFrame({"market": ["SE"] * 500})

    found = outcome(check(profile(now), profile(usual)), "PRF009", "market")

    assert found.status == "passed"
    assert "one value rules the reference too" in found.message


def test_the_ratio_of_a_median_of_zero_is_not_assessed() -> None:
    rng = np.random.default_rng(0)
    dry, wet = (pd.DataFrame({"rain": rng.exponential(5, ROWS) * (rng.random(ROWS) < share)}) for share in (0.03, 0.2))

    found = outcome(check(profile(wet), profile(dry)), "PRF008", "rain")

    assert found.status == "not_assessed"
    assert "median is zero" in found.message


def test_a_column_of_infinite_values_passes_nothing_it_should_not(reference: Profile) -> None:
    findings = check(profile(batch(7).assign(amount=np.inf)), reference)

    assert outcome(findings, "PRF010", "amount").status == "failed"
    for code in ("PRF005", "PRF008"):
        assert "no finite value" in outcome(findings, code, "amount").message


def test_an_exempt_column_says_so(reference: Profile) -> None:
    data = batch(7).assign(age=5_000)

    findings = check(profile(data), reference, ProfileBounds(exempt={"age": ("PRF005", "PRF008", "PRF009")}))

    assert failed(findings) == {("PRF006", "age")}
    assert "exempt from PRF005" in outcome(findings, "PRF005", "age").message


def test_the_table_of_findings_starts_with_failures_and_counts_the_rest(reference: Profile) -> None:
    findings = check(profile(batch(7).drop(columns="age")), reference)

    table = findings_table(findings)

    assert len(table) == 20
    assert table.loc[0, "code"] == "PRF001"
    assert f"{len(findings) - 19} more findings" in str(table.loc[19, "message"])


def test_importing_the_module_imports_no_heavy_library() -> None:
    program = (
        "import sys; import mlops_assets.foundation.profiling, mlops_assets.foundation.drift;"
        "assert not {'whylogs', 'evidently', 'scipy', 'dagster'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_profiles_drift_and_reports_open_no_connection() -> None:
    program = """
import socket, sys

def refuse(*args, **kwargs):
    print("connection:", args, file=sys.stderr)
    raise SystemExit(3)

for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse

import numpy as np, pandas as pd
from mlops_assets.foundation.drift import measure, report
from mlops_assets.foundation.profiling import Profile, check, profile

data = pd.DataFrame({"x": np.arange(200.0), "c": ["a", "b"] * 100})
logged = Profile.from_bytes(profile(data).to_bytes())
check(logged, logged)
assert measure(data, data).status == "none"
assert "<html" in report(data, data).html()
import threading
assert threading.active_count() == 1, threading.enumerate()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
