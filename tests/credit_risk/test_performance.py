"""Performance without outcomes, and with them: what is estimated, what is measured, and what truncation alone does."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mlops_assets.credit_risk.metrics import Estimate, Minimum, Terms
from mlops_assets.credit_risk.performance import BLIND_TO, Realised, _difference, estimated, join, realised
from mlops_assets.credit_risk.spec import Monitoring
from mlops_assets.foundation.errors import UserError

FEW = Terms(draws=150)
MONITORING = Monitoring(realised_rows=400, realised_bads=30)
CUT = 0.2


def probabilities(rows: int, seed: int, spread: float = 1.2) -> Any:
    """Calibrated probabilities of applicants, a fifth of them bad."""
    return 1 / (1 + np.exp(1.6 - np.random.default_rng([1, seed]).normal(0, spread, rows)))


def outcomes(pds: Any, seed: int, *, kept: float = 1.0, worse: float = 0.0) -> Any:
    """Outcomes of these probabilities; ``kept`` of the log-odds' spread still means something, ``worse`` is added."""
    odds = np.log(pds / (1 - pds))
    true = 1 / (1 + np.exp(-(odds.mean() + kept * (odds - odds.mean()) + worse)))
    return (np.random.default_rng([2, seed]).random(len(pds)) < true).astype(float)


def loans(rows: int, seed: int, **concept: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decisions on applicants, and outcomes of all that were not rejected."""
    pds = probabilities(rows, seed)
    ids = [f"A{seed}-{row}" for row in range(rows)]
    decision = np.select([pds < CUT, pds < CUT + 0.05], ["accept", "refer"], "reject")
    decisions = pd.DataFrame({"application_id": ids, "pd": pds, "decision": decision})
    labels = pd.DataFrame({"application_id": ids, "bad": outcomes(pds, seed, **concept)})
    return decisions, labels[decision != "reject"].sample(frac=1, random_state=seed)


def loans_of_the_test(rows: int = 6_000, seed: int = 0) -> pd.DataFrame:
    pds = probabilities(rows, seed)
    return pd.DataFrame({"pd": pds, "bad": outcomes(pds, seed)})


def measure(decisions: pd.DataFrame, labels: pd.DataFrame, **given: Any) -> Realised:
    given = {"reference": loans_of_the_test(), "accept_below": CUT, "terms": FEW, **given}
    return realised(decisions, labels, MONITORING, **given)


# --- Estimated ---


def test_the_estimate_is_the_mean_over_all_outcomes_of_two_applications() -> None:
    pds = np.array([0.2, 0.6])
    terms = Terms(minimum=Minimum(rows=1, bads=0, goods=0), draws=50)
    # Only one bad and one good make a pair: rightly ordered with 0.6 * 0.8, wrongly with 0.2 * 0.4.
    many = np.tile(pds, 500)

    found = estimated(many, terms=terms)

    expected = np.mean([roc_auc_score(outcomes(many, seed), many) for seed in range(60)])
    assert found.auc.value == pytest.approx(expected, abs=0.005)
    assert found.bad_rate.value == pytest.approx(0.4)
    assert found.brier.value == pytest.approx(0.2)


@pytest.mark.parametrize("rows", [500, 4_000])
def test_what_is_realised_of_calibrated_probabilities_lies_in_the_interval(rows: int) -> None:
    inside = np.zeros(3)
    for seed in range(60):
        pds = probabilities(rows, seed)
        y = outcomes(pds, seed)
        found = estimated(pds, terms=FEW)
        truth = (roc_auc_score(y, pds), y.mean(), ((pds - y) ** 2).mean())
        for at, (estimate, value) in enumerate(zip((found.auc, found.bad_rate, found.brier), truth, strict=True)):
            _, low, high = estimate.number()
            inside[at] += low <= value <= high
    assert (inside >= 52).all()


def test_the_estimate_sees_who_applies_and_is_blind_to_what_features_mean() -> None:
    usual, uniform = probabilities(8_000, 1), probabilities(8_000, 2, spread=0.4)
    y = outcomes(usual, 1, kept=0.2)

    found = estimated(usual, terms=FEW)
    narrow = estimated(uniform, terms=FEW)

    assert found.auc.value is not None
    assert narrow.auc.value is not None
    assert narrow.auc.value < found.auc.value - 0.1
    assert found.auc.value - roc_auc_score(y, usual) > 0.15
    assert found.blind_to.startswith(BLIND_TO)
    assert "concept drift" in found.blind_to


def test_truncation_alone_lowers_the_estimate_as_it_lowers_what_is_realised() -> None:
    pds = probabilities(20_000, 3)
    y, accepted = outcomes(pds, 3), pds < CUT

    everybody, kept = estimated(pds, terms=FEW), estimated(pds[accepted], "accepted", terms=FEW)

    assert everybody.auc.value is not None
    assert kept.auc.value is not None
    assert everybody.auc.value - kept.auc.value > 0.1
    assert kept.auc.value == pytest.approx(roc_auc_score(y[accepted], pds[accepted]), abs=0.03)
    assert "accepted loans alone" in everybody.blind_to
    assert "accepted loans alone" not in kept.blind_to


@given(st.lists(st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.99, 1.0]), min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_estimates_lie_in_their_ranges_and_intervals(values: list[float]) -> None:
    found = estimated(values, terms=Terms(minimum=Minimum(rows=2, bads=0, goods=0), draws=20))

    for each in (found.auc, found.bad_rate, found.brier):
        if each.value is not None and each.low is not None and each.high is not None:
            assert 0 <= each.low <= each.value <= each.high <= 1
    assert found == estimated(values[::-1], terms=Terms(minimum=Minimum(rows=2, bads=0, goods=0), draws=20))


def test_equal_probabilities_order_nothing() -> None:
    assert estimated(np.full(1_000, 0.3), terms=FEW).auc.value == pytest.approx(0.5)


def test_applications_that_were_not_scored_are_counted_and_left_out() -> None:
    pds = probabilities(600, 1)

    found = estimated(np.concatenate([pds, [np.nan] * 7]), terms=FEW)

    assert (found.rows, found.unscored) == (600, 7)
    assert found.auc == estimated(pds, terms=FEW).auc


@pytest.mark.parametrize(
    ("pds", "reason"),
    [
        ([], "there are no rows"),
        ([np.nan, np.nan], "there are no rows"),
        ([0.2] * 99, "expected are 99 rows with 19 bads and 79 goods"),
        ([0.01] * 1_000, "expected are 1,000 rows with 10 bads"),
    ],
)
def test_too_little_is_not_assessed(pds: list[float], reason: str) -> None:
    found = estimated(pds)

    assert {each.status for each in (found.auc, found.bad_rate, found.brier)} == {"not_assessed"}
    assert reason in found.auc.reason


@pytest.mark.parametrize("wrong", [-0.1, 1.5, np.inf])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(UserError, match="is no probability"):
        estimated([*[0.2] * 300, wrong])


def test_an_estimate_is_plain_json() -> None:
    assert json.loads(json.dumps(estimated(probabilities(500, 1), terms=FEW).to_dict(), allow_nan=False))["rows"] == 500


# --- Realised ---


def test_a_champion_that_is_right_holds() -> None:
    found = measure(*loans(6_000, 5))

    assert found.status == "holds"
    assert found.reasons[0].startswith("AUC 0.6")
    assert "from the equally truncated reference" in found.reasons[0]
    assert found.fall is not None
    assert found.fall.low is not None
    assert found.fall.high is not None
    assert found.fall.low < 0 < found.fall.high


def test_accepted_loans_are_counted_by_what_is_known_of_them() -> None:
    decisions, labels = loans(4_000, 5)
    accepted = (decisions["decision"] == "accept").sum()
    referred = (decisions["decision"] == "refer").sum()
    matured = labels[labels["application_id"].isin(decisions["application_id"][:3_000])]

    found = measure(decisions, matured)

    early = decisions[:3_000]
    assert found.rows == (early["decision"] == "accept").sum()
    assert found.waiting == accepted - found.rows
    assert found.others == (early["decision"] == "refer").sum() < referred
    assert found.bads == found.facts["bads"]


def test_truncation_alone_is_no_decay() -> None:
    decisions, labels = loans(12_000, 6)
    strict = Monitoring(minimum_auc=0.75)

    with_reference = realised(
        decisions, labels, strict, reference=loans_of_the_test(20_000), accept_below=CUT, terms=FEW
    )
    without = realised(decisions, labels, strict, terms=FEW)

    assert with_reference.whole_reference is not None
    assert with_reference.reference is not None
    whole, cut = with_reference.whole_reference.value, with_reference.reference["auc"].value
    assert whole is not None
    assert cut is not None
    assert whole - cut > 0.1
    assert with_reference.status == "holds"
    # Held against a bound that is meant for all applicants, the same champion would seem to have decayed.
    assert without.status == "decayed"
    assert "lies below 0.75" in without.reasons[0]


def test_features_that_lost_their_meaning_are_decay() -> None:
    found = measure(*loans(12_000, 7, kept=0.1))

    assert found.status == "decayed"
    assert "lies below 0.6" in found.reasons[0]
    assert "from the equally truncated reference, a fall of 0.05 is allowed" in found.reasons[1]


def test_more_bad_loans_than_foreseen_are_decay_though_the_order_holds() -> None:
    found = measure(*loans(8_000, 8, worse=0.5))

    assert found.status == "decayed"
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("more bad loans than foreseen in ")
    assert "foreseen)" in found.reasons[0]


def test_fewer_bad_loans_than_foreseen_are_no_decay() -> None:
    assert measure(*loans(8_000, 8, worse=-0.5)).status == "holds"


def test_one_failed_grade_is_not_several() -> None:
    decisions, labels = loans(8_000, 9)
    joined = decisions.merge(labels, on="application_id")
    worst = joined[joined["pd"].between(0.18, CUT)]["application_id"]
    labels.loc[labels["application_id"].isin(worst), "bad"] = 1.0

    one = measure(decisions, labels, edges=[0.05, 0.1, 0.18])
    asked = realised(decisions, labels, Monitoring(failed_grades=1), edges=[0.05, 0.1, 0.18], terms=FEW)

    assert one.grades is not None
    assert one.grades.failed(together=True) == ("4",)
    assert not any("grades" in reason for reason in one.reasons)
    assert any("in 1 grades: 4 (100.0% bad" in reason for reason in asked.reasons)


def test_a_calibrated_champion_is_hardly_ever_called_decayed() -> None:
    called = [measure(*loans(3_000, 100 + seed), terms=Terms(draws=2)).status for seed in range(80)]

    assert called.count("decayed") <= 1


@pytest.mark.parametrize("rows", [0, 300])
def test_too_few_matured_loans_are_not_assessed(rows: int) -> None:
    decisions, labels = loans(4_000, 5)

    found = measure(decisions, labels.head(rows))

    assert found.status == "not_assessed"
    assert "have matured, 400 with 30 bad ones are needed" in found.reasons[0]
    assert found.table().empty


def test_too_few_bad_loans_are_not_assessed() -> None:
    decisions, labels = loans(4_000, 5)

    found = measure(decisions, labels.assign(bad=0.0))

    assert (found.status, found.bads) == ("not_assessed", 0)


def test_a_reference_that_is_too_small_to_compare_with_says_so() -> None:
    found = measure(*loans(6_000, 5), reference=loans_of_the_test(120))

    assert found.status == "holds"
    assert "not compared with tested loans (the two cannot be compared: " in found.reasons[0]


def test_the_policy_s_own_decisions_truncate_the_reference() -> None:
    reference = loans_of_the_test()
    reference["decision"] = np.where(reference["pd"] < 0.1, "accept", "refer")

    found = measure(*loans(6_000, 5), reference=reference, accept_below=None)

    assert found.reference is not None
    assert found.reference["bad_rate"].n == (reference["pd"] < 0.1).sum()


def test_a_reference_that_cannot_be_truncated_is_refused() -> None:
    with pytest.raises(UserError, match="neither the reference's decisions nor the policy's cut-off"):
        measure(*loans(3_000, 5), accept_below=None)


def test_rows_and_labels_in_another_order_are_the_same() -> None:
    decisions, labels = loans(3_000, 5)
    first = measure(decisions, labels, terms=Terms(draws=20))

    again = measure(decisions.sample(frac=1, random_state=1), labels[::-1], terms=Terms(draws=20))

    assert again == first


def test_other_outcomes_are_other_facts() -> None:
    decisions, labels = loans(3_000, 5)
    corrected = labels.copy()
    accepted = corrected["application_id"].isin(decisions.loc[decisions["decision"] == "accept", "application_id"])
    at = corrected.index[accepted][0]
    corrected.loc[at, "bad"] = 1 - corrected.loc[at, "bad"]

    one, two = (measure(decisions, each, terms=Terms(draws=5)).facts for each in (labels, corrected))

    assert one["outcomes"] != two["outcomes"]


def test_the_last_decision_on_an_application_counts() -> None:
    decisions = pd.DataFrame(
        {"application_id": ["a", "b", "a"], "pd": [0.1, 0.2, 0.3], "decision": ["accept", "accept", "reject"]}
    )

    joined = join(decisions, pd.DataFrame({"application_id": ["a"], "bad": [1]}))

    assert joined[["application_id", "pd", "decision"]].to_numpy().tolist() == [
        ["b", 0.2, "accept"],
        ["a", 0.3, "reject"],
    ]
    assert joined["bad"].isna().tolist() == [True, False]


def test_two_outcomes_of_one_loan_are_refused() -> None:
    decisions, _ = loans(10, 5)
    labels = pd.DataFrame({"application_id": ["A5-1", "A5-1"], "bad": [0, 1]})

    with pytest.raises(UserError, match="application 'A5-1' has more than one outcome"):
        join(decisions, labels)


@pytest.mark.parametrize(("frame", "column"), [("decisions", "pd"), ("decisions", "decision"), ("labels", "bad")])
def test_a_missing_column_is_named(frame: str, column: str) -> None:
    frames = dict(zip(("decisions", "labels"), loans(10, 5), strict=True))
    frames[frame] = frames[frame].drop(columns=column)

    with pytest.raises(UserError, match=f"{frame}: column '{column}' is missing"):
        join(**frames)


def test_the_interval_of_a_difference_is_that_of_normal_estimates_where_they_are_symmetric() -> None:
    found = _difference(Estimate(0.7, 0.67, 0.73, 100), Estimate(0.8, 0.76, 0.84, 200))

    assert found.number() == pytest.approx((-0.1, -0.15, -0.05))
    assert found.n == 300


def test_the_result_is_plain_json_and_shows_a_table() -> None:
    found = measure(*loans(6_000, 5))

    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["status"] == "holds"
    table = found.table()
    assert table["metric"].tolist() == ["auc", "gini", "ks", "brier", "ece", "bad_rate"]
    assert table["reference_equally_truncated"].notna().all()
