"""The challenger keeps to its directions, finds columns by name, explains itself exactly, and learns the same twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk import gbm, models
from mlops_assets.credit_risk.encoding import MISSING, UNKNOWN, Encoder, fit_encoder, places_of
from mlops_assets.credit_risk.gbm import Gbm
from mlops_assets.credit_risk.logistic import logistic
from mlops_assets.foundation.errors import UserError
from tests.credit_risk.small_loans import SCHEMA, slices, small_loans, small_spec

SETTINGS = small_spec().gbm


@pytest.fixture(scope="module")
def loans() -> pd.DataFrame:
    return small_loans()


@pytest.fixture(scope="module")
def matrix(loans: pd.DataFrame) -> pd.DataFrame:
    return SCHEMA.matrix(loans)


@pytest.fixture(scope="module")
def model(loans: pd.DataFrame) -> Gbm:
    return gbm.fit(SCHEMA, SETTINGS, *slices(loans))


def one(**values: Any) -> pd.DataFrame:
    ordinary = {"income": 22_000.0, "debts": 5.0, "amount": 3_000.0, "region": "A", "purpose": "car"}
    return SCHEMA.matrix(pd.DataFrame([{**ordinary, **values}]))


def test_it_learns_what_is_there_to_learn(model: Gbm, loans: pd.DataFrame, matrix: pd.DataFrame) -> None:
    from sklearn.metrics import roc_auc_score

    later = slice(1_400, None)
    assert roc_auc_score(loans["bad"][later], model.predict(matrix)[later]) > 0.72
    assert list(model.importance())[-1] == "purpose"


@settings(max_examples=60, deadline=None)
@given(
    incomes=st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)),
    debts=st.tuples(st.floats(0, 50), st.floats(0, 50)),
    amount=st.floats(0, 30_000),
    region=st.sampled_from(["A", "B", "C", "Z", None]),
)
def test_it_keeps_to_the_directions(
    model: Gbm, incomes: tuple[float, float], debts: tuple[float, float], amount: float, region: str | None
) -> None:
    best = one(income=max(incomes), debts=min(debts), amount=amount, region=region)
    worst = one(income=min(incomes), debts=max(debts), amount=amount, region=region)
    assert model.predict(best)[0] <= model.predict(worst)[0]


def test_probabilities_are_the_calibrated_margin(model: Gbm, loans: pd.DataFrame, matrix: pd.DataFrame) -> None:
    scores = model.score(matrix)
    calibration = model.calibration
    assert scores.points is None
    assert scores.pd.tobytes() == logistic(calibration.slope * scores.margin + calibration.intercept).tobytes()
    _, (later, bad) = slices(loans)
    assert model.predict(later).mean() == pytest.approx(bad.mean(), abs=0.01)


def test_the_margin_is_that_of_the_trees(model: Gbm, matrix: pd.DataFrame) -> None:
    from lightgbm import Booster

    encoded, _ = model.encoder.transform(matrix)
    margin = Booster(model_str=model.trees).predict(encoded, raw_score=True)
    assert model.score(matrix).margin.tobytes() == np.asarray(margin).tobytes()


# ---- contributions


def test_contributions_and_base_make_up_the_margin(model: Gbm, matrix: pd.DataFrame) -> None:
    scores = model.score(matrix)
    assert scores.contributions.shape == (len(matrix), len(SCHEMA.names))
    np.testing.assert_allclose(model.base + scores.contributions.sum(axis=1), scores.margin, atol=1e-7)
    assert (scores.margin - (model.base + scores.contributions.sum(axis=1)) == scores.residual).all()


def test_the_columns_of_a_feature_are_added_up(model: Gbm) -> None:
    # A special code has a column of its own; what it adds belongs to the feature.
    assert [column.feature for column in model.encoder.columns].count("debts") == 2
    debts = SCHEMA.names.index("debts")
    assert model.score(one(debts=-9.0)).contributions[0, debts] > model.score(one(debts=0.0)).contributions[0, debts]


def test_contributions_that_do_not_add_up_are_not_told(model: Gbm, matrix: pd.DataFrame) -> None:
    other = Gbm(SCHEMA, model.encoder, model.trees, model.base + 1e-3, model.calibration, model.importance())
    with pytest.raises(ArithmeticError, match=r"row \d+: the contributions miss the margin by -0.001 log-odds"):
        other.score(matrix)


def test_importance_is_the_mean_contribution(model: Gbm, loans: pd.DataFrame) -> None:
    (train, _), _ = slices(loans)
    mean = np.abs(model.score(train).contributions).mean(axis=0)
    assert model.importance() == pytest.approx(dict(zip(SCHEMA.names, mean.tolist(), strict=True)))
    assert list(model.importance().values()) == sorted(model.importance().values(), reverse=True)


# ---- what training did not know


def test_a_field_left_empty_that_never_was_is_the_riskiest_value(model: Gbm, matrix: pd.DataFrame) -> None:
    # Riskiest for applicants on average: the trees may see one of them another way.
    some = matrix.iloc[:400]
    margins = [model.score(some.assign(amount=amount)).margin.mean() for amount in np.linspace(600, 19_000, 20)]
    empty = model.score(some.assign(amount=np.nan))
    assert max(margins) > np.median(margins) + 0.1
    assert empty.margin.mean() > max(margins) - 0.02
    assert not empty.out_of_range[:, SCHEMA.names.index("amount")].any()


def test_missing_values_that_training_had_are_learned(model: Gbm, matrix: pd.DataFrame) -> None:
    income = model.encoder.encodings[0]
    assert income.learned_missing
    assert np.isnan(model.encoder.transform(one(income=np.nan))[0][0, 0])


@pytest.mark.parametrize(
    ("values", "flagged"),
    [
        pytest.param({"income": 1e9}, ["income"], id="above everything"),
        pytest.param({"income": 1.0}, ["income"], id="below everything"),
        pytest.param({"debts": -8.0}, ["debts"], id="no special code"),
        pytest.param({"region": "Mars"}, ["region"], id="unknown category"),
        pytest.param({"region": "Z"}, [], id="rare category"),
        pytest.param({"region": None, "income": np.nan, "debts": -9.0}, [], id="missing and special"),
    ],
)
def test_what_training_never_had_is_flagged(model: Gbm, values: dict[str, Any], flagged: list[str]) -> None:
    scores = model.score(one(**values))
    assert [name for name, flag in zip(SCHEMA.names, scores.out_of_range[0], strict=True) if flag] == flagged


def test_rare_unknown_and_empty_categories_are_scored_as_the_riskiest(model: Gbm) -> None:
    # Z was too rare, and region was never missing.
    worst = max(model.predict(one(region=region))[0] for region in "ABC")
    for region in ("Z", "Mars", None):
        assert model.predict(one(region=region))[0] == worst


# ---- the encoding alone


def encoded(values: list[Any], bad: list[int], least: int) -> tuple[Encoder, np.ndarray]:
    spec = small_spec(numeric=[], categorical=[{"name": "c", "theme": "means"}])
    frame = pd.DataFrame({"c": np.array(values, dtype=object)})
    encoder = fit_encoder(models.FeatureSchema.of(spec), frame, np.array(bad), least)
    return encoder, encoder.transform(frame)[0][:, 0]


def test_categories_are_ranked_by_their_bad_rate() -> None:
    _, found = encoded(["good"] * 50 + ["bad"] * 50 + ["middle"] * 50, [0] * 50 + [1] * 50 + [0, 1] * 25, 10)
    assert found[[0, 50, 100]].tolist() == [0.0, 2.0, 1.0]


def test_rare_categories_that_are_many_together_share_a_code() -> None:
    encoder, found = encoded(["a"] * 50 + [f"r{n}" for n in range(20)], [0] * 50 + [1] * 20, 10)
    assert found.tolist() == [0.0] * 50 + [1.0] * 20
    matrix, beyond = encoder.transform(pd.DataFrame({"c": ["new", "r3"]}, dtype=object))
    assert matrix[:, 0].tolist() == [1.0, 1.0]
    assert beyond[:, 0].tolist() == [True, False]


@given(
    st.lists(st.one_of(st.sampled_from(["a", "b", "x", ""]), st.none(), st.just(np.nan), st.just(pd.NA)), max_size=150)
)
def test_places_are_found_alike_one_by_one_and_in_batches(values: list[Any]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    expected = [MISSING if pd.isna(v) else {"a": 0, "b": 1}.get(v, UNKNOWN) for v in values]
    assert places_of(array, {"a": 0, "b": 1}).tolist() == expected


def test_a_feature_without_any_number_is_harmless(loans: pd.DataFrame) -> None:
    empty = loans.assign(amount=np.nan)
    made = gbm.fit(SCHEMA, SETTINGS, *slices(empty))
    scores = made.score(one(amount=500.0))
    assert scores.out_of_range[0, SCHEMA.names.index("amount")]
    assert scores.contributions[0, SCHEMA.names.index("amount")] == 0.0


# ---- by name, one by one, again, and from the files


def test_columns_are_found_by_name(model: Gbm, matrix: pd.DataFrame) -> None:
    turned = matrix[list(matrix.columns[::-1])].assign(unrelated=1.0)
    assert model.predict(turned).tobytes() == model.predict(matrix).tobytes()
    with pytest.raises(UserError, match="feature 'debts' is missing"):
        model.predict(matrix.drop(columns="debts"))


def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(model: Gbm, matrix: pd.DataFrame) -> None:
    whole = model.score(matrix)
    for at in range(0, len(matrix), 97):
        alone = model.score(matrix.iloc[[at]])
        for name in ("margin", "pd", "contributions", "residual", "out_of_range"):
            assert getattr(alone, name).tobytes() == getattr(whole, name)[at : at + 1].tobytes()
    assert model.predict(matrix).tobytes() == whole.pd.tobytes()


def test_no_rows_are_fine(model: Gbm, matrix: pd.DataFrame) -> None:
    scores = model.score(matrix.iloc[:0])
    assert (scores.pd.shape, scores.contributions.shape) == ((0,), (0, len(SCHEMA.names)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_trained_again_it_is_the_same_to_the_byte(
    model: Gbm, loans: pd.DataFrame, tmp_path: Path, threads: int
) -> None:
    again = gbm.fit(SCHEMA, SETTINGS, *slices(loans), threads=threads)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    model.save(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in ("model.json", "gbm.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_is_another_model(model: Gbm, loans: pd.DataFrame) -> None:
    assert gbm.fit(SCHEMA, SETTINGS, *slices(loans), seed=8).trees != model.trees


def test_the_files_are_the_model(model: Gbm, matrix: pd.DataFrame, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    one, other = model.score(matrix), loaded.score(matrix)
    assert (loaded.kind, loaded.schema, loaded.importance()) == ("gbm", SCHEMA, model.importance())
    for name in ("margin", "pd", "contributions", "residual", "out_of_range"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def test_trees_of_another_model_are_refused(model: Gbm, loans: pd.DataFrame, tmp_path: Path) -> None:
    schema = SCHEMA.select(["income", "debts"])
    (train, bad), (later, later_bad) = slices(loans)
    other = gbm.fit(schema, SETTINGS, (schema.matrix(train), bad), (schema.matrix(later), later_bad))
    model.save(tmp_path)
    (tmp_path / "gbm.txt").write_text(other.trees)
    with pytest.raises(UserError, match=r"the trees split on c0_income, c1_debts.*but the model makes c0_income"):
        models.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        pytest.param("gbm.txt", "tree\nversion=v4\nnonsense", id="trees"),
        pytest.param("gbm.txt", "", id="no trees"),
        pytest.param("model.json", json.dumps({"kind": "gbm", "format": 9}), id="later format"),
        pytest.param("model.json", json.dumps({"kind": "gbm", "format": 1}), id="part missing"),
    ],
)
def test_damaged_files_are_refused(model: Gbm, tmp_path: Path, file: str, text: str) -> None:
    model.save(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=r"no gradient-boosted model that can be read.*fetch the version again"):
        models.load(tmp_path)


def test_too_few_rows_for_any_split_are_refused(loans: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="scores all alike"):
        gbm.fit(SCHEMA, SETTINGS, *slices(loans.iloc[:60]))
