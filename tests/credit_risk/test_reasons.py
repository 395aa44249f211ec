"""Reasons are few, true, told in plain sentences, and the same for one application as for many."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlops_assets.credit_risk import gbm, scorecard
from mlops_assets.credit_risk.models import PdModel, Scores
from mlops_assets.credit_risk.reasons import ADDITIVITY, Reasons, ReasonTable, explain, thin_files
from mlops_assets.credit_risk.schema import Feature, FeatureSchema
from mlops_assets.foundation.errors import UserError
from tests.credit_risk.small_loans import SCHEMA, slices, small_loans, small_spec

WIDE = FeatureSchema(
    tuple(
        Feature(f"f{number}", "numeric", theme, special={-9.0: "no file"})
        for number, theme in enumerate(["a", "b", "a", "c", "d", "e", "f", "b"])
    )
)
TABLE = ReasonTable(
    {theme: {"sentence": f"Sentence {theme}.", "when_missing": f"Nothing on {theme}."} for theme in "abcde"}
    | {"f": {"sentence": "Sentence f.", "when_missing": None}}
)
# Multiples of 1/8 add up without rounding, so that what is expected can be computed any way.
EIGHTHS = st.integers(-40, 40).map(lambda number: number / 8)
CONTRIBUTIONS = st.integers(1, 6).flatmap(
    lambda rows: arrays.arrays(np.float64, (rows, len(WIDE.names)), elements=EIGHTHS)
)
VALUES = st.sampled_from([1.0, np.nan, -9.0])


def scores_of(contributions: np.ndarray, residual: float = 0.0) -> Scores:
    n = len(contributions)
    nothing = np.zeros(contributions.shape, dtype=bool)
    return Scores(np.zeros(n), np.full(n, 0.5), None, contributions, np.full(n, residual), nothing)


def features_of(rows: int, value: float = 1.0) -> pd.DataFrame:
    return pd.DataFrame(np.full((rows, len(WIDE.names)), value), columns=list(WIDE.names))


def told(contributions: np.ndarray, features: pd.DataFrame | None = None, most: int = 4) -> list[list[dict[str, Any]]]:
    frame = features_of(len(contributions)) if features is None else features
    return list(explain(scores_of(contributions), frame, WIDE, most=most).told(TABLE))


def folded(row: np.ndarray) -> dict[str, float]:
    return {
        theme: sum(value for value, feature in zip(row, WIDE.features, strict=True) if feature.theme == theme)
        for theme in "abcdef"
    }


# ---- what is told


@given(CONTRIBUTIONS, st.integers(1, 4))
def test_reasons_are_the_themes_that_raised_the_risk_most(contributions: np.ndarray, most: int) -> None:
    for row, reasons in zip(contributions, told(contributions, most=most), strict=True):
        weights = [float.fromhex(reason["contribution"]) for reason in reasons]
        raised = sorted((value for value in folded(row).values() if value > 0), reverse=True)
        assert weights == raised[:most]
        for reason, weight in zip(reasons, weights, strict=True):
            assert folded(row)[reason["theme"]] == weight


@given(CONTRIBUTIONS)
def test_only_features_that_raised_the_risk_stand_behind_a_reason(contributions: np.ndarray) -> None:
    for row, reasons in zip(contributions, told(contributions), strict=True):
        value = dict(zip(WIDE.names, row.tolist(), strict=True))
        theme = {feature.name: feature.theme for feature in WIDE.features}
        for reason in reasons:
            behind = [value[name] for name in reason["features"]]
            assert behind
            assert min(behind) > 0
            assert behind == sorted(behind, reverse=True)
            assert {theme[name] for name in reason["features"]} == {reason["theme"]}


@given(CONTRIBUTIONS)
def test_no_theme_is_told_twice(contributions: np.ndarray) -> None:
    for reasons in told(contributions):
        themes = [reason["theme"] for reason in reasons]
        assert len(set(themes)) == len(themes) <= 4


def test_equal_weights_come_in_the_order_of_the_themes() -> None:
    reasons = told(np.full((1, len(WIDE.names)), 0.5))[0]
    # a and b have two features each.
    assert [reason["theme"] for reason in reasons] == ["a", "b", "c", "d"]


def test_a_theme_whose_features_cancel_out_is_no_reason() -> None:
    row = np.zeros((1, len(WIDE.names)))
    row[0, [0, 2]] = 1.0, -1.0
    assert told(row) == [[]]
    assert not explain(scores_of(row), features_of(1), WIDE).any[0]


def test_there_are_no_reasons_for_nobody() -> None:
    empty = np.zeros((0, len(WIDE.names)))
    reasons = explain(scores_of(empty), features_of(0), WIDE)
    assert list(reasons.told(TABLE)) == []
    assert reasons.any.shape == (0,)


# ---- missing information


@settings(max_examples=50)
@given(CONTRIBUTIONS, st.lists(VALUES, min_size=8, max_size=8))
def test_missing_information_is_told_as_such_only_where_nothing_else_raised_it(
    contributions: np.ndarray, values: list[float]
) -> None:
    frame = pd.DataFrame([values] * len(contributions), columns=list(WIDE.names))
    known = {name: value == 1.0 for name, value in zip(WIDE.names, values, strict=True)}
    for reasons in told(contributions, frame):
        for reason in reasons:
            theme = reason["theme"]
            informed = any(known[name] for name in reason["features"])
            sentence = f"Sentence {theme}." if informed or theme == "f" else f"Nothing on {theme}."
            assert reason["text"] == sentence


@pytest.mark.parametrize(
    ("values", "thin"),
    [
        pytest.param({"f0": np.nan, "f1": -9.0}, True, id="missing and special"),
        pytest.param({"f0": np.nan, "f1": 3.0}, False, id="one is known"),
    ],
)
def test_a_file_is_thin_when_all_that_is_needed_is_missing(values: dict[str, float], thin: bool) -> None:
    frame = features_of(1).assign(**values)
    assert thin_files(frame, WIDE, ["f0", "f1"]).tolist() == [thin]


def test_no_file_is_thin_where_nothing_is_needed() -> None:
    assert thin_files(features_of(2, np.nan), WIDE, []).tolist() == [False, False]


def test_a_theme_without_a_sentence_for_missing_information_never_states_a_fact_of_it() -> None:
    table, matrix = ReasonTable.of(small_spec()), SCHEMA.matrix(small_loans(1).assign(income=np.nan, region=None))
    row = np.zeros((1, len(SCHEMA.names)))
    row[0, [SCHEMA.names.index("income"), SCHEMA.names.index("region")]] = 0.25, 0.5
    one, both = row.copy(), row
    one[0, SCHEMA.names.index("region")] = -0.125
    texts = [next(explain(scores_of(each), matrix, SCHEMA).told(table))[0]["text"] for each in (one, both)]
    # What lowered the risk is not named, though nothing is known of it either.
    assert texts == ["We have no information on income.", "We have no information on region and income."]


def test_what_is_known_beside_what_is_missing_is_told_as_known() -> None:
    matrix = SCHEMA.matrix(small_loans(1).assign(income=np.nan, region="B"))
    row = np.full((1, len(SCHEMA.names)), 0.25)
    reasons = next(explain(scores_of(row), matrix, SCHEMA).told(ReasonTable.of(small_spec())))
    assert reasons[0]["text"] == "Income or place of residence"


@settings(max_examples=50)
@given(CONTRIBUTIONS, st.lists(VALUES, min_size=8, max_size=8), st.integers(1, 4))
def test_who_is_told_something_that_is_known_is_informed(
    contributions: np.ndarray, values: list[float], most: int
) -> None:
    frame = pd.DataFrame([values] * len(contributions), columns=list(WIDE.names))
    known = {name for name, value in zip(WIDE.names, values, strict=True) if value == 1.0}
    reasons = explain(scores_of(contributions), frame, WIDE, most=most)
    for row, informed in zip(reasons.told(TABLE), reasons.informed.tolist(), strict=True):
        assert informed == any(known & set(reason["features"]) for reason in row)


# ---- one application as in a batch


@settings(max_examples=50)
@given(CONTRIBUTIONS)
def test_an_application_alone_has_the_reasons_it_has_in_a_batch(contributions: np.ndarray) -> None:
    alone = [told(contributions[[row]])[0] for row in range(len(contributions))]
    assert alone == told(contributions)


@pytest.fixture(scope="module", params=["scorecard", "gbm"])
def model(request: pytest.FixtureRequest) -> PdModel:
    spec = small_spec()
    if request.param == "gbm":
        return gbm.fit(SCHEMA, spec.gbm, *slices(small_loans()))
    return scorecard.fit(SCHEMA, spec.scorecard, *slices(small_loans()))


def test_a_model_tells_one_applicant_what_it_tells_many_to_the_byte(model: PdModel) -> None:
    matrix = SCHEMA.matrix(small_loans(400, seed=9))
    table = ReasonTable.of(small_spec())
    many = list(reasons_of(model, matrix).told(table))
    for row in range(0, 400, 23):
        assert next(reasons_of(model, matrix.iloc[[row]]).told(table)) == many[row]
    assert any(len(reasons) > 1 for reasons in many)


def reasons_of(model: PdModel, matrix: pd.DataFrame) -> Reasons:
    return explain(model.score(matrix), matrix, SCHEMA)


# ---- refusals


@pytest.mark.parametrize("residual", [1.1 * ADDITIVITY, -1.1 * ADDITIVITY, np.inf, np.nan])
def test_contributions_that_do_not_add_up_are_refused(residual: float) -> None:
    contributions = np.full((3, len(WIDE.names)), 0.5)
    with pytest.raises(UserError, match="do not add up to their scores"):
        explain(scores_of(contributions, residual), features_of(3), WIDE)


def test_one_row_that_does_not_add_up_stops_all() -> None:
    scores = scores_of(np.full((3, len(WIDE.names)), 0.5))
    scores.residual[1] = 2e-6
    with pytest.raises(UserError, match=r"1 of 3 rows do not add up.*off by 2e-06.*nothing was decided"):
        explain(scores, features_of(3), WIDE)


def test_rounding_is_no_refusal() -> None:
    assert told(np.full((1, len(WIDE.names)), 0.5))
    explain(scores_of(np.full((1, len(WIDE.names)), 0.5), ADDITIVITY), features_of(1), WIDE)


def test_a_feature_without_a_sentence_is_refused_by_name() -> None:
    table = ReasonTable({theme: {"sentence": "Text."} for theme in "abcde"})
    with pytest.raises(UserError, match=r"no sentence can name the feature\(s\) 'f6'"):
        table.check(WIDE, [])


def test_a_protected_feature_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"uses the protected attribute\(s\) 'f3'.*must not decide"):
        TABLE.check(WIDE, ["sex", "f3"])


def test_what_is_mapped_and_unprotected_is_fine() -> None:
    TABLE.check(WIDE, ["sex", "age"])


# ---- the table


def test_equal_sentences_have_an_equal_version_in_any_order() -> None:
    turned = ReasonTable(dict(reversed(list(TABLE.themes.items()))))
    assert turned.version == TABLE.version
    assert len(TABLE.version) == 16


@given(
    st.sampled_from("abcdef"),
    st.sampled_from(["sentence", "when_missing"]),
    st.text(min_size=1, max_size=20),
)
def test_another_text_is_another_version(theme: str, which: str, text: str) -> None:
    changed = {name: dict(texts) for name, texts in TABLE.themes.items()}
    before = changed[theme][which]
    changed[theme][which] = text
    assert (ReasonTable(changed).version == TABLE.version) == (text == before)


def test_the_table_of_a_spec_is_read_back_from_its_plain_values() -> None:
    table = ReasonTable.of(small_spec())
    assert table.themes["means"] == {
        "sentence": "Income or place of residence",
        "when_missing": "We have no information on {missing}.",
    }
    assert ReasonTable(table.to_dict()).version == table.version
