"""The forest says what scikit-learn's says, in the same bits for every batch, and names what sets a row apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops_assets.credit_risk import outliers
from mlops_assets.credit_risk.outliers import OutlierModel
from mlops_assets.credit_risk.spec import Outliers
from mlops_assets.foundation.errors import UserError
from tests.credit_risk.small_loans import SCHEMA, small_loans

SETTINGS = Outliers(share=0.02, trees=40)


@pytest.fixture(scope="module")
def matrix() -> pd.DataFrame:
    return SCHEMA.matrix(small_loans())


@pytest.fixture(scope="module")
def model(matrix: pd.DataFrame) -> OutlierModel:
    return outliers.fit(SCHEMA, SETTINGS, matrix)


def one(**values: Any) -> pd.DataFrame:
    ordinary = {"income": 22_000.0, "debts": 5.0, "amount": 10_000.0, "region": "A", "purpose": "car"}
    return SCHEMA.matrix(pd.DataFrame([{**ordinary, **values}]))


def test_scores_are_those_of_scikit_learn(model: OutlierModel, matrix: pd.DataFrame) -> None:
    from sklearn.ensemble import IsolationForest

    numbers = model.numbers(matrix)
    theirs = IsolationForest(n_estimators=40, max_samples=256, random_state=7).fit(numbers)
    np.testing.assert_allclose(model.score(matrix).score, -theirs.score_samples(numbers), rtol=1e-9)
    # Also for rows that the forest has never seen.
    strange = numbers * np.float32(1.7) - np.float32(3.0)
    ours = model._scores(model.lengths(strange))
    np.testing.assert_allclose(ours, -theirs.score_samples(strange), rtol=1e-9)


def test_a_small_training_set_is_scored_alike_too(matrix: pd.DataFrame) -> None:
    from sklearn.ensemble import IsolationForest

    few = matrix.iloc[:30]
    model = outliers.fit(SCHEMA, SETTINGS, few)
    theirs = IsolationForest(n_estimators=40, max_samples=30, random_state=7).fit(model.numbers(few))
    np.testing.assert_allclose(model.score(few).score, -theirs.score_samples(model.numbers(few)), rtol=1e-9)


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_the_asked_share_of_the_training_set_is_flagged(matrix: pd.DataFrame, share: float) -> None:
    flagged = outliers.fit(SCHEMA, Outliers(share=share, trees=40), matrix).score(matrix).flagged
    assert 0.8 * share <= flagged.mean() <= share


def test_the_flagged_rows_have_the_highest_scores(model: OutlierModel, matrix: pd.DataFrame) -> None:
    found = model.score(matrix)
    assert found.score[found.flagged].min() >= found.score[~found.flagged].max()
    assert ((found.score > 0) & (found.score < 1)).all()


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        pytest.param({"income": 5e6}, "income", id="a number far out"),
        pytest.param({"income": 1e300}, "income", id="a number beyond float32"),
        pytest.param({"income": np.inf}, "income", id="infinite"),
        pytest.param({"region": "Mars"}, "region", id="unknown category"),
        pytest.param({"region": "Z"}, "region", id="rare category"),
    ],
)
def test_what_sets_a_row_apart_is_named(matrix: pd.DataFrame, values: dict[str, Any], feature: str) -> None:
    # One in fifty is of region Z, so that most trees have met it.
    some = matrix.assign(region=np.where(np.arange(len(matrix)) % 50 == 0, "Z", matrix["region"]))
    wide = outliers.fit(SCHEMA, Outliers(share=0.19, trees=100), some)
    found = wide.score(one(**values))
    assert found.score[0] > wide.score(one()).score[0]
    assert found.flagged.tolist() == [True]
    assert found.main_feature.tolist() == [feature]


def test_rows_that_are_not_flagged_have_no_main_feature(model: OutlierModel, matrix: pd.DataFrame) -> None:
    found = model.score(matrix)
    assert all((name is None) == (not flag) for name, flag in zip(found.main_feature, found.flagged, strict=True))
    assert set(found.main_feature[found.flagged]) <= set(SCHEMA.names)


def test_missing_numbers_and_special_codes_are_ordinary(model: OutlierModel) -> None:
    median = float(np.nanmedian(small_loans()["income"]))
    assert model.score(one(income=np.nan)).score == model.score(one(income=median)).score
    assert model.score(one(debts=-9.0)).score == model.score(one(debts=np.nan)).score


def test_columns_are_found_by_name(model: OutlierModel, matrix: pd.DataFrame) -> None:
    turned = matrix[list(matrix.columns[::-1])].assign(unrelated=1.0)
    assert model.score(turned).score.tobytes() == model.score(matrix).score.tobytes()
    with pytest.raises(UserError, match="feature 'debts' is missing"):
        model.score(matrix.drop(columns="debts"))


def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(
    model: OutlierModel, matrix: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.score(matrix)
    for at in [*range(0, len(matrix), 97), *np.flatnonzero(whole.flagged)[:5]]:
        alone = model.score(matrix.iloc[[at]])
        assert alone.score.tobytes() == whole.score[at : at + 1].tobytes()
        assert (alone.flagged[0], alone.main_feature[0]) == (whole.flagged[at], whole.main_feature[at])
    monkeypatch.setattr(outliers, "_ROWS_AT_ONCE", 7)
    assert model.score(matrix).score.tobytes() == whole.score.tobytes()


def test_no_rows_are_fine(model: OutlierModel, matrix: pd.DataFrame) -> None:
    found = model.score(matrix.iloc[:0])
    assert (found.score.shape, found.flagged.shape, found.main_feature.shape) == ((0,), (0,), (0,))


def test_fitted_and_saved_again_it_is_the_same_to_the_byte(
    model: OutlierModel, matrix: pd.DataFrame, tmp_path: Path
) -> None:
    texts = []
    for name, each in (("a", model), ("b", outliers.fit(SCHEMA, SETTINGS, matrix))):
        (tmp_path / name).mkdir()
        each.save(tmp_path / name)
        texts.append((tmp_path / name / "outliers.npz").read_bytes())
    assert texts[0] == texts[1]
    loaded = OutlierModel.load(tmp_path / "a")
    one, other = model.score(matrix), loaded.score(matrix)
    assert one.score.tobytes() == other.score.tobytes()
    assert one.main_feature.tolist() == other.main_feature.tolist()


def test_a_damaged_file_is_refused(model: OutlierModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no outlier model that can be read.*fetch the version again"):
        OutlierModel.load(tmp_path)
    model.save(tmp_path)
    path = tmp_path / "outliers.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="no outlier model that can be read"):
        OutlierModel.load(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "outliers.npz", **{name: np.array([{}]) for name in (*outliers._NODES, "about", "roots")})
    with pytest.raises(UserError, match="Object arrays cannot be loaded"):
        OutlierModel.load(tmp_path)


def test_one_row_cannot_tell_what_is_unusual(matrix: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="1 row"):
        outliers.fit(SCHEMA, SETTINGS, matrix.iloc[:1])
