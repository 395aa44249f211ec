"""The population stability index: fixed bins, honest bounds, and a reference that is checked or refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from mlops_assets.foundation import psi
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.psi import Column, PsiBounds, Reference, index

ROWS = 10_000
COLUMNS = (
    Column("amount"),
    Column("months", special={-9.0: "no file", -8.0: "unusable"}),
    Column("region", "categorical"),
)
CENTURY = 100


def sample(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "amount": rng.lognormal(9, 0.6, rows).round(),
            "months": np.where(rng.random(rows) < 0.3, -9.0, rng.integers(0, 120, rows).astype(float)),
            "region": rng.choice(["north", "south", "east", None], rows, p=[0.5, 0.3, 0.15, 0.05]),
        }
    )


REFERENCE = Reference.of(sample(ROWS, 0), COLUMNS)


def of(current: pd.DataFrame, column: str, reference: Reference = REFERENCE) -> psi.ColumnPsi:
    (found,) = [each for each in reference.compare(current) if each.column == column]
    return found


def test_the_index_is_the_one_of_the_textbook_where_every_bin_is_full() -> None:
    before, now = np.array([4_000, 3_000, 3_000]), np.array([30_000, 40_000, 30_000])
    q, p = before / before.sum(), now / now.sum()

    found = index(before, now)

    assert found.value == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-3)
    assert found.bins == 3


def test_bins_that_are_empty_on_both_sides_do_not_count() -> None:
    assert index([10, 0, 90], [100, 0, 900]).bins == 2


def test_a_bin_that_is_rare_on_both_sides_gives_a_small_part() -> None:
    assert index([9_999, 1], [200, 0]).value < 0.001
    assert index([10_000, 0], [199, 1]).value < 0.1


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_the_index_is_finite_symmetric_and_never_negative(pairs: list[tuple[int, int]]) -> None:
    before, now = (np.array(side) for side in zip(*pairs, strict=True))
    before, now = before + (np.arange(len(before)) == 0), now + (np.arange(len(now)) == 0)

    found, back = index(before, now), index(now, before)

    assert np.isfinite(found.value)
    assert found.value >= -1e-12
    assert found.value == pytest.approx(back.value, abs=1e-12)
    assert index(before, before).value == pytest.approx(0, abs=1e-12)
    assert 0 <= found.chance <= 1


def test_without_drift_the_index_follows_its_chi_square() -> None:
    rng = np.random.default_rng(0)
    shares = np.full(10, 0.1)
    chances = [index(rng.multinomial(ROWS, shares), rng.multinomial(500, shares)).chance for _ in range(400)]

    assert np.mean(np.array(chances) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(chances) == pytest.approx(0.5, abs=0.05)


def test_numbers_have_bins_for_missing_codes_below_and_above() -> None:
    bins = Reference.of(
        pd.DataFrame({"x": [np.nan, -9.0, *range(10)]}), [Column("x", special={-9.0: "none", -8.0: "unusable"})]
    ).columns[0]

    counted = bins.count(pd.DataFrame({"x": [np.nan, np.inf, -9, -8, -1, 0, 9, 9.5, 1_000]}))

    assert bins.labels[:4] == ("(missing)", "code -9", "code -8", "(below)")
    assert bins.labels[-1] == "(above)"
    assert bins.counts[:4] == (1, 1, 0, 0)
    assert sum(bins.counts) == bins.rows == 12
    assert not isinstance(counted, str)
    assert dict(zip(bins.labels, counted.tolist(), strict=True)) == {
        **dict.fromkeys(bins.labels, 0),
        "(missing)": 2,  # an infinite number is no value
        "code -9": 1,
        "code -8": 1,
        "(below)": 1,
        "<= 0": 1,
        "<= 9": 1,
        "(above)": 2,
    }


def test_a_value_that_many_rows_share_is_a_bin_of_its_own() -> None:
    values = np.concatenate([np.zeros(700), np.linspace(1, 100, 300)])

    bins = Reference.of(pd.DataFrame({"x": values}), [Column("x")]).columns[0]

    assert bins.counts[bins.labels.index("<= 0")] == 700
    assert bins.counts[bins.labels.index("(below)")] == 0


def test_categories_that_are_rare_or_new_fall_into_one_bin() -> None:
    before = pd.DataFrame({"c": ["a"] * 900 + ["b"] * 99 + ["rare"]})
    bins = Reference.of(before, [Column("c", "categorical")]).columns[0]

    assert bins.labels == ("(missing)", "a", "b", "(other)")
    assert bins.counts == (0, 900, 99, 1)
    counted = bins.count(pd.DataFrame({"c": ["b", "new", None]}))
    assert not isinstance(counted, str)
    assert counted.tolist() == [1, 0, 1, 1]


def test_numbers_as_categories_are_the_same_with_and_without_missing_cells() -> None:
    bins = Reference.of(pd.DataFrame({"c": [1, 2] * 50}), [Column("c", "categorical")]).columns[0]

    counted = bins.count(pd.DataFrame({"c": [1.0, np.nan]}))

    assert not isinstance(counted, str)
    assert dict(zip(bins.labels, counted.tolist(), strict=True)) == {"(missing)": 1, "1": 1, "2": 0, "(other)": 0}


@pytest.mark.parametrize("rows", [200, 1_000, 5_000])
def test_clean_batches_are_no_drift(rows: int) -> None:
    found = [each for seed in range(20) for each in REFERENCE.compare(sample(rows, 1_000 + seed))]

    assert {each.status for each in found} == {"none"}


def test_the_bound_knows_the_sample_size() -> None:
    small, large = of(sample(100, 5), "amount"), of(sample(20_000, 5), "amount")

    assert small.bins == 10
    expected = stats.chi2.isf(0.001, 9) * (1 / 100 + 1 / ROWS)
    assert small.warn == small.act == pytest.approx(expected)
    assert (large.warn, large.act) == (0.10, 0.25)


@pytest.mark.parametrize(
    ("change", "column", "bin_", "status"),
    [
        (lambda d: d.assign(amount=d["amount"].where(d.index % 4 > 0)), "amount", "(missing)", "act"),
        (lambda d: d.assign(amount=np.nan), "amount", "(missing)", "act"),
        (lambda d: d.assign(amount=d["amount"] * CENTURY), "amount", "(above)", "act"),
        (lambda d: d.assign(amount=d["amount"] * np.exp(0.25 * 0.6)), "amount", None, "none"),
        (lambda d: d.assign(months=d["months"].where(d["months"] != -9, -8)), "months", "code -8", "act"),
        (lambda d: d.assign(months=d["months"].where(d["months"] != -9)), "months", "(missing)", "act"),
        (lambda d: d.assign(region=d["region"].where(d.index % 10 > 0, "mars")), "region", "(other)", "act"),
        (lambda d: d.assign(region=None), "region", "north", "act"),
        (lambda d: d.assign(region=d["region"].where(d.index % 6 > 0, "east")), "region", "east", "warn"),
    ],
)
def test_a_change_is_found_and_its_bin_is_named(change: object, column: str, bin_: str | None, status: str) -> None:
    current = change(sample(5_000, 3))  # type: ignore[operator]

    found = of(current, column)

    assert found.status == status
    if bin_ is not None:
        assert found.bin == bin_
        assert bin_ in found.reason
    assert [each.column for each in REFERENCE.compare(current) if each.status != "none"] == (
        [column] if status != "none" else []
    )


@pytest.mark.parametrize(
    ("current", "reason"),
    [
        (sample(49, 1), "the batch has 49 rows, 50 are needed"),
        (sample(0, 1), "the batch has 0 rows"),
        (sample(500, 1).drop(columns="amount"), "the column is missing"),
        (sample(500, 1).assign(amount="1.200,00"), "500 of 500 cells are text"),
    ],
)
def test_what_cannot_be_compared_is_not_assessed(current: pd.DataFrame, reason: str) -> None:
    found = of(current, "amount")

    assert found.status == "not_assessed"
    assert reason in found.reason
    assert found.value is None


def test_a_small_reference_assesses_nothing() -> None:
    found = of(sample(500, 1), "amount", Reference.of(sample(20, 0), COLUMNS))

    assert (found.status, found.reason) == ("not_assessed", "the reference has 20 rows, 50 are needed")


def test_a_column_that_was_all_missing_is_compared_by_its_missing_cells() -> None:
    reference = Reference.of(pd.DataFrame({"amount": [np.nan] * 500}), [Column("amount")])

    assert of(pd.DataFrame({"amount": [np.nan] * 400}), "amount", reference).status == "none"
    found = of(pd.DataFrame({"amount": [1.0] * 400}), "amount", reference)
    assert (found.status, found.bin) == ("act", "(above)")


def test_bounds_can_be_set() -> None:
    current = sample(5_000, 3)
    current["region"] = current["region"].where(current.index % 6 > 0, "east")

    (found,) = [each for each in REFERENCE.compare(current, bounds=PsiBounds(warn=0.3)) if each.column == "region"]

    assert found.status == "none"


@pytest.mark.parametrize(
    ("frame", "columns", "message"),
    [
        (sample(0, 0), COLUMNS, "there are no rows"),
        (sample(9, 0), (), "there are no columns"),
        (sample(9, 0), (Column("income"),), "column 'income' of the reference: the column is missing"),
        (sample(9, 0).assign(amount="x"), COLUMNS, "are text in a column of numbers"),
        (pd.concat([sample(9, 0)] * 2, axis=1), COLUMNS, "more than one column"),
    ],
)
def test_a_reference_of_nothing_is_refused(frame: pd.DataFrame, columns: tuple[Column, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Reference.of(frame, columns)


def test_a_reference_survives_the_disk_bit_for_bit(tmp_path: Path) -> None:
    digest = REFERENCE.save(tmp_path / "reference.json")

    loaded = Reference.load(tmp_path / "reference.json", sha256=digest)

    assert loaded == REFERENCE
    assert loaded.to_json() == REFERENCE.to_json()
    assert loaded.compare(sample(900, 1)) == REFERENCE.compare(sample(900, 1))


def test_equal_rows_in_another_order_give_the_same_hash() -> None:
    shuffled = sample(ROWS, 0).sample(frac=1, random_state=1)

    assert Reference.of(shuffled, COLUMNS).sha256 == REFERENCE.sha256
    assert Reference.of(sample(ROWS, 9), COLUMNS).sha256 != REFERENCE.sha256


def test_a_lost_reference_is_an_error_and_never_a_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lost.json: the reference is missing.*build the reference again"):
        Reference.load(tmp_path / "lost.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: b"null",
        lambda text: b"[]",
        lambda text: text[:-30],
        lambda text: b"\xff\xfe" + text,
        lambda text: text.replace(b'"north"', b'"nord"'),
        lambda text: text.replace(b"psi-reference/1", b"psi-reference/0"),
        lambda text: json.dumps({**json.loads(text), "sha256": "0" * 64}).encode(),
        lambda text: json.dumps({**json.loads(text), "columns": []}).encode(),
        lambda text: text.replace(b'"counts":[', b'"counts":[5,'),
    ],
)
def test_a_damaged_reference_is_an_error_and_never_a_pass(damage: object, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_bytes(damage(REFERENCE.to_json()))  # type: ignore[operator]

    with pytest.raises(UserError, match="build the reference again") as caught:
        Reference.load(path)

    assert caught.value.where == str(path)


def test_another_reference_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    other = Reference.of(sample(ROWS, 9), COLUMNS)
    other.save(tmp_path / "reference.json")

    with pytest.raises(UserError, match=f"recorded was {REFERENCE.sha256}"):
        Reference.load(tmp_path / "reference.json", sha256=REFERENCE.sha256)


@given(
    st.lists(
        st.one_of(st.none(), st.sampled_from([-9.0, 0.0]), st.floats(allow_nan=True, allow_infinity=True)),
        min_size=1,
        max_size=60,
    ),
    st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), max_size=30),
)
@settings(max_examples=150, deadline=None)
@example([float("inf")], [1.0])
def test_every_row_falls_into_exactly_one_bin(before: list[float | None], now: list[float | None]) -> None:
    reference = Reference.of(pd.DataFrame({"x": pd.Series(before, dtype=float)}), [Column("x", special={-9.0: "none"})])
    (bins,) = Reference.from_json(reference.to_json()).columns

    counted = bins.count(pd.DataFrame({"x": pd.Series(now, dtype=float)})) if now else np.zeros(1)

    assert bins.rows == len(before)
    assert min(bins.counts) >= 0
    assert not isinstance(counted, str)
    assert counted.sum() == len(now)
    assert counted.min() >= 0
