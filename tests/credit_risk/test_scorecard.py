"""A scorecard is integers and a table: exact, explainable, the same in one file and in every batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk import models, scorecard
from mlops_assets.credit_risk.scorecard import Scorecard
from mlops_assets.foundation.errors import UserError
from tests.credit_risk.small_loans import SCHEMA, slices, small_loans, small_spec

SETTINGS = small_spec().scorecard


@pytest.fixture(scope="module")
def loans() -> pd.DataFrame:
    return small_loans()


@pytest.fixture(scope="module")
def matrix(loans: pd.DataFrame) -> pd.DataFrame:
    return SCHEMA.matrix(loans)


@pytest.fixture(scope="module")
def card(loans: pd.DataFrame) -> Scorecard:
    return scorecard.fit(SCHEMA, SETTINGS, *slices(loans))


def one(**values: Any) -> pd.DataFrame:
    ordinary = {"income": 22_000.0, "debts": 5.0, "amount": 3_000.0, "region": "A", "purpose": "car"}
    return SCHEMA.matrix(pd.DataFrame([{**ordinary, **values}]))


# ---- what it is made of


def test_points_are_the_sum_of_whole_numbers(card: Scorecard, matrix: pd.DataFrame) -> None:
    scores = card.score(matrix)
    by_hand = np.full(len(matrix), card.base)
    for part in card.cards:
        by_hand += np.array(part.points)[part.bins.assign(matrix[part.bins.name].to_numpy())[0]]
    assert scores.points is not None
    assert scores.points.dtype == np.int64
    assert scores.points.tolist() == by_hand.tolist()


def test_it_learns_what_is_there_to_learn(card: Scorecard, loans: pd.DataFrame, matrix: pd.DataFrame) -> None:
    from sklearn.metrics import roc_auc_score

    later = slice(1_400, None)
    assert roc_auc_score(loans["bad"][later], card.predict(matrix)[later]) > 0.7
    assert {"income", "debts", "region"} <= {part.bins.name for part in card.cards}
    assert list(card.left_out) == ["purpose"]
    assert "information value" in card.left_out["purpose"]


def test_points_double_the_odds_as_the_spec_says(loans: pd.DataFrame) -> None:
    given = SETTINGS.model_copy(update={"points_to_double": 40.0, "base_points": 1_000, "base_odds": 20.0})
    made = scorecard.fit(SCHEMA, given, *slices(loans))
    odds = np.exp(-made.table[:, 0])
    points = np.arange(made.lowest, made.lowest + len(made.table))
    np.testing.assert_allclose(odds, 20.0 * 2.0 ** ((points - 1_000) / 40.0), rtol=1e-9)


def test_more_points_never_mean_a_higher_probability(card: Scorecard) -> None:
    assert (np.diff(card.table[:, 1]) <= 0).all()
    assert (np.diff(card.table[:, 0]) < 0).all()
    assert ((card.table[:, 1] > 0) & (card.table[:, 1] < 1)).all()


def test_every_combination_of_bins_has_a_row_in_the_table(card: Scorecard) -> None:
    assert card.lowest == card.base + sum(min(part.points) for part in card.cards)
    assert card.lowest + len(card.table) - 1 == card.base + sum(max(part.points) for part in card.cards)


def test_more_evidence_of_good_gives_more_points(card: Scorecard) -> None:
    for part in card.cards:
        assert part.coefficient > 0
        order = np.argsort(part.bins.woe)
        assert (np.diff(np.array(part.points)[order]) >= 0).all()


def test_probabilities_are_calibrated_on_the_later_slice(card: Scorecard, loans: pd.DataFrame) -> None:
    _, (later, bad) = slices(loans)
    assert card.predict(later).mean() == pytest.approx(bad.mean(), abs=0.01)


# ---- directions and what is unknown


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 200_000), st.floats(0, 200_000))
def test_a_higher_income_never_raises_the_probability(card: Scorecard, a: float, b: float) -> None:
    low, high = sorted((a, b))
    within = next(part.bins for part in card.cards if part.bins.name == "income")
    assert within.low is not None
    assert within.high is not None
    if low >= within.low and high <= within.high:
        assert card.predict(one(income=high))[0] <= card.predict(one(income=low))[0]


def test_a_field_left_empty_that_never_was_gains_nothing(card: Scorecard) -> None:
    amounts = np.linspace(600, 19_000, 60)
    worst = max(card.predict(one(amount=amount))[0] for amount in amounts)
    assert card.predict(one(amount=np.nan))[0] == worst


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        pytest.param({"income": 1e9}, "income", id="above everything"),
        pytest.param({"debts": 99.0}, "debts", id="above everything, of few values"),
        pytest.param({"amount": 1.0}, "amount", id="below everything"),
        pytest.param({"region": "Mars"}, "region", id="unknown category"),
    ],
)
def test_what_training_never_had_is_flagged_and_not_rewarded(
    card: Scorecard, values: dict[str, Any], feature: str
) -> None:
    scores = card.score(one(**values))
    flagged = [name for name, flag in zip(SCHEMA.names, scores.out_of_range[0], strict=True) if flag]
    assert flagged == [feature]
    part = next(part for part in card.cards if part.bins.name == feature)
    assert scores.contributions[0, SCHEMA.names.index(feature)] >= part.baseline - np.quantile(part.points, 0.5)


def test_a_special_code_is_not_out_of_range(card: Scorecard) -> None:
    scores = card.score(one(debts=-9.0))
    assert not scores.out_of_range.any()
    assert scores.pd[0] > card.predict(one(debts=0.0))[0]


def test_a_feature_that_would_count_the_wrong_way_round_is_left_out() -> None:
    # `copy` repeats `income` with noise of its own sign: beside income, it would be rewarded for what it should not be.
    rng = np.random.default_rng(1)
    rows = 3_000
    truth = rng.normal(size=rows)
    bad = (rng.random(rows) < 1 / (1 + np.exp(-(truth - 1)))).astype(np.int64)
    noise = rng.normal(size=rows)
    frame = pd.DataFrame({"a": truth + noise, "b": noise + 0.15 * truth})
    raw = [{"name": name, "theme": "means", "risk": "rises"} for name in ("a", "b")]
    spec = small_spec(numeric=raw, categorical=[])
    schema = models.FeatureSchema.of(spec)
    made = scorecard.fit(schema, spec.scorecard, (frame, bad), (frame, bad))
    assert [part.bins.name for part in made.cards] == ["a"]
    assert "wrong way round" in made.left_out["b"]


# ---- contributions


def test_contributions_and_baseline_make_up_the_points_exactly(card: Scorecard, matrix: pd.DataFrame) -> None:
    scores = card.score(matrix)
    average = card.base + sum(part.baseline for part in card.cards)
    assert scores.points is not None
    assert (scores.residual == 0.0).all()
    assert (average - scores.contributions.sum(axis=1) == scores.points).all()
    assert (scores.contributions == np.rint(scores.contributions)).all()


def test_the_baseline_is_the_average_applicant(card: Scorecard, loans: pd.DataFrame) -> None:
    (train, _), _ = slices(loans)
    mean = card.score(train).contributions.mean(axis=0)
    assert (np.abs(mean) <= 0.5).all()


def test_features_without_a_card_contribute_nothing(card: Scorecard, matrix: pd.DataFrame) -> None:
    column = SCHEMA.names.index("purpose")
    changed = matrix.assign(purpose="never seen")
    assert (card.score(changed).contributions[:, column] == 0.0).all()
    assert card.predict(changed).tobytes() == card.predict(matrix).tobytes()


def test_importance_is_of_every_feature_and_sorted(card: Scorecard) -> None:
    found = card.importance()
    assert sorted(found) == sorted(SCHEMA.names)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found["purpose"] == 0.0


# ---- by name, one by one, and from the file


def test_columns_are_found_by_name(card: Scorecard, matrix: pd.DataFrame) -> None:
    turned = matrix[list(matrix.columns[::-1])].assign(unrelated=1.0)
    assert card.predict(turned).tobytes() == card.predict(matrix).tobytes()


def test_a_missing_column_is_named(card: Scorecard, matrix: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="feature 'debts' is missing; the columns there are 'income', 'amount'"):
        card.score(matrix.drop(columns="debts"))


def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(card: Scorecard, matrix: pd.DataFrame) -> None:
    whole = card.score(matrix)
    for at in range(0, len(matrix), 97):
        alone = card.score(matrix.iloc[[at]])
        assert alone.pd[0].hex() == whole.pd[at].hex()
        assert alone.margin[0].hex() == whole.margin[at].hex()
        assert alone.contributions[0].tobytes() == whole.contributions[at].tobytes()
    assert card.predict(matrix).tobytes() == whole.pd.tobytes()


def test_no_rows_are_fine(card: Scorecard, matrix: pd.DataFrame) -> None:
    scores = card.score(matrix.iloc[:0])
    assert (scores.pd.shape, scores.contributions.shape) == ((0,), (0, len(SCHEMA.names)))


def test_the_file_is_the_model(card: Scorecard, matrix: pd.DataFrame, tmp_path: Path) -> None:
    card.save(tmp_path)
    loaded = models.load(tmp_path)
    one, other = card.score(matrix), loaded.score(matrix)
    assert loaded.kind == "scorecard"
    assert loaded.schema == SCHEMA
    assert loaded.importance() == card.importance()
    for name in ("margin", "pd", "points", "contributions", "residual", "out_of_range"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def test_saving_again_gives_the_same_bytes(card: Scorecard, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    card.save(tmp_path / "a")
    Scorecard.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a" / "model.json").read_bytes() == (tmp_path / "b" / "model.json").read_bytes()


def test_probabilities_are_read_from_the_file_and_not_computed(card: Scorecard, tmp_path: Path) -> None:
    card.save(tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    content["table"] = [[margin, (0.5).hex()] for margin, _ in content["table"]]
    (tmp_path / "model.json").write_text(json.dumps(content))
    assert Scorecard.load(tmp_path).predict(one()).tolist() == [0.5]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(lambda content: content.pop("table"), "'table'", id="part missing"),
        pytest.param(lambda content: content["table"].pop(), "do not fit together", id="table cut off"),
        pytest.param(lambda content: content.update(base=0), "do not fit together", id="base changed"),
        pytest.param(lambda content: content.update(format=9), "of another format", id="later format"),
    ],
)
def test_a_damaged_file_is_refused(card: Scorecard, tmp_path: Path, damage: Any, why: str) -> None:
    card.save(tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    damage(content)
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"no scorecard that can be read.*{why}.*fetch the version again"):
        models.load(tmp_path)


def test_nothing_to_learn_is_refused(loans: pd.DataFrame) -> None:
    (matrix, bad), later = slices(loans)
    shuffled = np.random.default_rng(0).permutation(bad)
    with pytest.raises(UserError, match=r"no feature tells good loans from bad ones.*minimum_iv"):
        scorecard.fit(SCHEMA, SETTINGS.model_copy(update={"minimum_iv": 0.2}), (matrix, shuffled), later)
