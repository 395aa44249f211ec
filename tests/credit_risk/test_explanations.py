"""Reasons are put to the test: true ones pass, and every way of not being true is found."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops_assets.credit_risk import _reason_probes as probes
from mlops_assets.credit_risk import training
from mlops_assets.credit_risk.explanations import Explained, explain_model, gates
from mlops_assets.credit_risk.gbm import Gbm
from mlops_assets.credit_risk.models import PdModel, Scores
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.reasons import ReasonTable
from mlops_assets.credit_risk.spec import Protected, Spec
from mlops_assets.foundation.registry import GateResult
from tests.credit_risk.small_loans import SCHEMA, small_loans, small_spec

SPEC = small_spec()
POLICY = DecisionPolicy(0.25, 0.35, 0.6, 0.14, True, True, (), 4)
TABLE = ReasonTable.of(SPEC)
FITS = {"scorecard": training.fit_scorecard, "gbm": training.fit_gbm}


def cut(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    a, b = int(len(frame) * 0.5), int(len(frame) * 0.7)
    parts = {"train": frame.iloc[:a], "calibrate": frame.iloc[a:b], "test": frame.iloc[b:]}
    return {name: part.reset_index(drop=True) for name, part in parts.items()}


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    return cut(small_loans(4_000))


@pytest.fixture(scope="module", params=["scorecard", "gbm"])
def model(request: pytest.FixtureRequest, frames: dict[str, pd.DataFrame]) -> PdModel:
    return FITS[request.param](SPEC, frames["train"], frames["calibrate"])


@pytest.fixture(scope="module")
def card(frames: dict[str, pd.DataFrame]) -> PdModel:
    return training.fit_scorecard(SPEC, frames["train"], frames["calibrate"])


@pytest.fixture(scope="module")
def explained(model: PdModel, frames: dict[str, pd.DataFrame]) -> Explained:
    return explain_model(SPEC, model, TABLE, frames, POLICY)


class Changed:
    """A model that says something else than the one it is made from."""

    def __init__(self, model: PdModel) -> None:
        self.model, self.kind, self.schema, self.baseline = model, model.kind, model.schema, model.baseline

    def score(self, features: pd.DataFrame) -> Scores:
        return self.model.score(features)

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        return self.score(features).pd

    def importance(self) -> Mapping[str, float]:
        return self.model.importance()

    def save(self, folder: Path) -> None:
        self.model.save(folder)


class BlamesTheWrongFeature(Changed):
    """What debts and region contribute is said of purpose, which does nothing."""

    def score(self, features: pd.DataFrame) -> Scores:
        scores = self.model.score(features)
        moved = scores.contributions.copy()
        purpose = self.schema.names.index("purpose")
        for name in ("debts", "region", "income"):
            at = self.schema.names.index(name)
            moved[:, purpose] += moved[:, at]
            moved[:, at] = 0.0
        return replace(scores, contributions=moved)


class Turns(Changed):
    """The PD falls with the income, but for a jump where it rises beyond 30,000."""

    def score(self, features: pd.DataFrame) -> Scores:
        scores = self.model.score(features)
        income = features["income"].to_numpy(dtype=float)
        return replace(scores, pd=np.clip(scores.pd + np.where(income > 30_000, 0.2, 0.0), 0, 1))


class DoesNotAddUp(Changed):
    def __init__(self, model: PdModel, residual: float) -> None:
        super().__init__(model)
        self.residual = residual

    def score(self, features: pd.DataFrame) -> Scores:
        scores = self.model.score(features)
        residual = scores.residual.copy()
        residual[: len(residual) // 10] = self.residual
        return replace(scores, residual=residual)


def one_gate(found: list[GateResult], words: str) -> GateResult:
    matching = [gate for gate in found if words in gate.reason]
    assert len(matching) == 1, [gate.reason for gate in found]
    return matching[0]


# ---- a model whose reasons are true


def test_true_reasons_pass_every_gate(explained: Explained) -> None:
    found = gates(SPEC, explained)
    assert {gate.gate for gate in found} == {"explanations"}
    assert [gate.reason for gate in found if gate.status != "passed"] == []
    assert len(found) == 7
    assert all(gate.value is not None and gate.bound is not None for gate in found)
    assert sum(gate.interval is not None for gate in found) == 3


def test_it_knows_what_moves_the_scores(explained: Explained) -> None:
    names = [each.feature for each in explained.importance]
    assert set(names[:3]) <= {"income", "debts", "region"}
    assert names[-1] == "purpose"
    assert sum(each.share for each in explained.importance) == pytest.approx(1)
    assert explained.unit == {"scorecard": "points", "gbm": "log-odds"}[explained.kind]


def test_the_first_reason_put_right_lowers_the_pd(explained: Explained) -> None:
    assert explained.fidelity.median_fall.value is not None
    assert explained.fidelity.median_fall.value > 0.05
    assert sum(count for count, _, _ in explained.fidelity.by_theme.values()) == explained.fidelity.fell.n


def test_directions_are_kept_and_a_free_feature_is_only_told(explained: Explained) -> None:
    found = {each.feature: each for each in explained.directions}
    assert (found["income"].wanted, found["income"].taken, found["income"].wrong) == (-1, -1, 0)
    assert (found["debts"].wanted, found["debts"].taken, found["debts"].wrong) == (1, 1, 0)
    assert found["income"].comparisons > 1_000
    # The amount is riskiest in the middle: whichever way it goes on the whole, part of the way is against it.
    assert found["amount"].wanted == 0
    assert found["amount"].share is not None
    assert 0.1 < found["amount"].share < 0.9


def test_dependence_shows_the_mean_pd_along_a_feature(explained: Explained) -> None:
    along = [point.mean_pd for point in explained.dependence if point.feature == "debts"]
    assert len(along) >= 3
    assert along == sorted(along)
    assert along[-1] - along[0] > 0.05


# ---- and every way of not being true


@pytest.mark.parametrize("residual", [2e-6, -0.5])
def test_contributions_that_do_not_add_up_are_found(
    card: PdModel, frames: dict[str, pd.DataFrame], residual: float
) -> None:
    found = explain_model(SPEC, DoesNotAddUp(card, residual), TABLE, frames, POLICY)
    results = gates(SPEC, found)
    gate = one_gate(results, "additivity")
    assert (gate.status, gate.value) == ("failed", abs(residual))
    assert "120 are off" in gate.reason
    # Of reasons that are not true nothing else is asked.
    unknown = [gate for gate in results if "the contributions do not add up" in gate.reason]
    assert [gate.status for gate in unknown] == ["not_assessed"] * 2
    assert found.told.asked == 0


def test_a_residual_that_is_no_number_is_found(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    found = explain_model(SPEC, DoesNotAddUp(card, float("nan")), TABLE, frames, POLICY)
    gate = one_gate(gates(SPEC, found), "additivity")
    assert gate.status == "failed"
    assert "120 are no numbers" in gate.reason


def test_a_model_that_refuses_to_explain_itself_fails_with_its_own_words(frames: dict[str, pd.DataFrame]) -> None:
    made = training.fit_gbm(SPEC, frames["train"], frames["calibrate"])
    broken = Gbm(SCHEMA, made.encoder, made.trees, made.base + 1e-3, made.calibration, made.importance())
    found = explain_model(SPEC, broken, TABLE, frames, POLICY)
    gate = one_gate(gates(SPEC, found), "additivity")
    assert gate.status == "failed"
    assert "the contributions miss the margin by -0.001 log-odds" in gate.reason
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_reason_that_blames_what_does_not_matter_is_found(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    found = explain_model(SPEC, BlamesTheWrongFeature(card), TABLE, frames, POLICY)
    gate = one_gate(gates(SPEC, found), "PD falls once")
    assert gate.status == "failed"
    assert gate.value is not None
    assert gate.value < 0.7
    assert gate.interval is not None


def test_a_move_against_the_direction_is_found_and_named(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    found = explain_model(SPEC, Turns(card), TABLE, frames, POLICY)
    gate = one_gate(gates(SPEC, found), "against the direction")
    assert gate.status == "failed"
    assert gate.value is not None
    assert gate.value > 0
    assert "income by up to 0.1" in gate.reason
    assert "debts" not in gate.reason


def test_reasons_that_hang_on_the_sample_are_found(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    strict = small_spec(gates={"reason_stability": 0.999})
    found = explain_model(strict, card, TABLE, frames, POLICY)
    gate = one_gate(gates(strict, found), "first reason stays")
    assert gate.status == "failed"
    assert gate.bound == 0.999
    assert "of the decisions flip" in gate.reason
    assert len(found.stability.by_resample) == 3
    assert found.stability.overlap.value is not None
    assert 0.5 < found.stability.overlap.value < 1


def test_a_resample_that_cannot_be_learned_from_is_not_assessed(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    greedy = small_spec(training={"minimum_goods": 50, "minimum_bads": 5_000})
    found = explain_model(greedy, card, TABLE, frames, POLICY)
    gate = one_gate(gates(greedy, found), "first reason stays")
    assert gate.status == "not_assessed"
    assert "training on a resample failed" in gate.reason


def test_features_without_a_sentence_are_found(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    table = ReasonTable({name: texts for name, texts in TABLE.themes.items() if name != "debts"})
    found = explain_model(SPEC, card, table, frames, POLICY)
    gate = one_gate(gates(SPEC, found), "no sentence can name")
    assert gate.status == "failed"
    assert "'debts'" in gate.reason


def test_a_protected_feature_is_found(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    # The spec itself would refuse it; a model of an older spec may have it.
    later = SPEC.model_copy(update={"protected": (Protected(name="region"),)})
    gate = one_gate(gates(later, explain_model(later, card, TABLE, frames, POLICY)), "protected attribute")
    assert gate.status == "failed"
    assert "'region'" in gate.reason


# ---- what cannot be known


def test_of_nobody_nothing_is_assessed_and_nothing_passes(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    found = explain_model(SPEC, card, TABLE, {**frames, "test": frames["test"].iloc[:0]}, POLICY)
    unknown = [gate for gate in gates(SPEC, found) if gate.status == "not_assessed"]
    assert len(unknown) == 3
    assert {"additivity" in gate.reason for gate in unknown} == {True, False}
    assert found.tables()["importance"]["moves"].tolist() == [0.0] * 5


def test_without_anybody_approved_there_is_nothing_to_compare_with(
    card: PdModel, frames: dict[str, pd.DataFrame]
) -> None:
    nobody = DecisionPolicy(0.0, 0.1, 0.6, 0.14, True, True, (), 4)
    found = explain_model(SPEC, card, TABLE, frames, nobody)
    gate = one_gate(gates(SPEC, found), "nobody is approved")
    assert gate.status == "not_assessed"


def test_where_few_are_declined_the_riskiest_are_asked(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    generous = DecisionPolicy(0.999, 0.9999, 0.6, 0.14, True, True, (), 4)
    found = explain_model(SPEC, card, TABLE, frames, generous)
    assert found.told.asked == 100
    assert (found.told.above_cut, found.told.rejected) == (0, 0)
    assert found.fidelity.fell.assessed
    assert not any("above the cut" in gate.reason for gate in gates(SPEC, found))


def test_a_handful_of_applications_is_too_few(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    found = explain_model(SPEC, card, TABLE, {**frames, "test": frames["test"].iloc[:20]}, POLICY)
    statuses = {gate.reason: gate.status for gate in gates(SPEC, found)}
    assert [status for reason, status in statuses.items() if "put right" in reason] == ["not_assessed"]
    assert [status for reason, status in statuses.items() if "first reason stays" in reason] == ["not_assessed"]


def test_a_spec_without_directions_promises_none(frames: dict[str, pd.DataFrame]) -> None:
    free = small_spec(
        numeric=[{"name": name, "theme": "means"} for name in ("income", "amount")]
        + [{"name": "debts", "theme": "debts", "special": {-9: "no file at the bureau"}}]
    )
    made = training.fit_scorecard(free, frames["train"], frames["calibrate"])
    found = explain_model(free, made, ReasonTable.of(free), frames, POLICY)
    assert not any("against the direction" in gate.reason for gate in gates(free, found))


# ---- as evidence and on a page


def test_evidence_is_plain_the_same_every_time_and_about_nobody(
    model: PdModel, explained: Explained, frames: dict[str, pd.DataFrame]
) -> None:
    told = json.dumps(explained.to_dict(), sort_keys=True, allow_nan=False)
    again = explain_model(SPEC, model, TABLE, frames, POLICY)
    assert json.dumps(again.to_dict(), sort_keys=True) == told
    assert not any(name in told for name in frames["test"]["application_id"].tolist()[:200])


def test_tables_are_short_and_about_nobody(explained: Explained, frames: dict[str, pd.DataFrame]) -> None:
    tables = explained.tables()
    assert set(tables) == {"importance", "reasons", "reason_checks", "directions", "dependence"}
    assert all(0 < len(table) <= 20 for table in tables.values())
    few = tables["reasons"].query("put_right < 10")
    assert few["pd_falls"].isna().all()
    assert tables["reasons"]["first_reason"].sum() == pytest.approx(1, abs=0.02)


# ---- the probes alone


def test_special_codes_have_no_order(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    # -9, no file at the bureau, is lower than every number of debts and riskier than all of them.
    matrix = SCHEMA.matrix(frames["test"])
    known = SCHEMA.matrix(frames["train"])
    best, coded = matrix.assign(debts=0.0), matrix.assign(debts=-9.0)
    assert (card.predict(coded) > card.predict(best)).all()
    debts = next(each for each in probes.directions(card, matrix, known) if each.feature == "debts")
    assert debts.wrong == 0
    assert debts.comparisons == 200 * (12 - 1)


def test_a_median_has_an_interval_that_holds_it() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        found = probes.median_estimate(rng.exponential(size=101))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= np.log(2) <= found.high
    assert held >= 180


def test_reasons_in_common_are_counted_over_the_larger_set(card: PdModel, frames: dict[str, pd.DataFrame]) -> None:
    found = explain_model(SPEC, card, TABLE, frames, POLICY, resamples=1)
    assert len(found.stability.by_resample) == 1
    assert found.stability.first.value == pytest.approx(found.stability.by_resample[0])


def test_the_spec_says_who_is_asked(frames: dict[str, pd.DataFrame], card: PdModel) -> None:
    spec: Spec = small_spec(policy={"accept_below": 0.4, "reject_from": 0.5})
    found = explain_model(spec, card, TABLE, frames, DecisionPolicy.of(spec))
    predicted = card.predict(SCHEMA.matrix(frames["test"]))
    assert found.told.asked == (predicted >= 0.4).sum()
    assert found.told.above_cut == (predicted >= 0.5).sum()
