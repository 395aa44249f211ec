"""From a probability to a decision: cut-offs from costs, rules in their order, versions by content."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlops_assets.credit_risk.policy import RULE_NAMES, RULES, DecisionPolicy
from mlops_assets.credit_risk.spec import Policy
from mlops_assets.foundation.errors import UserError
from tests.credit_risk.small_loans import small_spec

POLICY = DecisionPolicy(0.2, 0.3, 0.6, 0.14, True, True, ("debts",), 4, True)
SHARES = st.floats(0.01, 1.0)
FLAGS = ("thin", "out_of_range", "outlier", "has_reason", "informed")


def rule_of(policy: DecisionPolicy, probability: float, **flags: bool) -> str:
    given = {"thin": False, "out_of_range": False, "outlier": False, "has_reason": True, "informed": True, **flags}
    arrays = {name: np.array([value]) for name, value in given.items()}
    return RULE_NAMES[policy.decide(np.array([probability]), **arrays)[0]]


def expected_rule(policy: DecisionPolicy, probability: float, flags: dict[str, bool]) -> str:
    """Say in plain words what the rules mean."""
    if flags["thin"]:
        return "insufficient_file"
    if flags["out_of_range"] and policy.refer_out_of_range:
        return "out_of_range"
    if flags["outlier"] and policy.refer_outliers:
        return "outlier"
    if probability >= policy.reject_from:
        if not flags["has_reason"]:
            return "no_reason"
        return "above_cut" if flags["informed"] or not policy.refer_no_information else "no_information"
    return "below_cut" if probability < policy.accept_below else "near_cut"


# ---- cut-offs


@given(margin=SHARES, loss=SHARES, band=st.floats(0, 0.5))
def test_cut_offs_lie_around_the_probability_at_which_a_loan_earns_nothing(
    margin: float, loss: float, band: float
) -> None:
    policy = DecisionPolicy.of(small_spec(policy={"margin": margin, "loss_given_default": loss, "band": band}))
    even = margin / (margin + loss)
    assert (1 - even) * margin - even * loss == pytest.approx(0)
    assert 0 <= policy.accept_below <= even <= policy.reject_from <= 1
    assert policy.reject_from - policy.accept_below <= band + 1e-12
    if band / 2 <= min(even, 1 - even):
        assert policy.reject_from - policy.accept_below == pytest.approx(band)


def test_cut_offs_that_are_given_stay_as_they_are() -> None:
    policy = DecisionPolicy.of(small_spec(policy={"accept_below": 0.11, "reject_from": 0.25, "margin": 0.9}))
    assert (policy.accept_below, policy.reject_from) == (0.11, 0.25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"accept_below": 0.3, "reject_from": 0.2}, "accept_below 0.3 lies above", id="crossed"),
        pytest.param({"accept_below": 0.3}, "give both accept_below and reject_from, or neither", id="one alone"),
        pytest.param({"reasons": 5}, "less than or equal to 4", id="too many reasons"),
    ],
)
def test_cut_offs_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_spec(policy=settings)


def test_the_policy_of_a_spec_has_its_rules() -> None:
    policy = DecisionPolicy.of(
        small_spec(
            policy={"refer_outliers": False, "refer_out_of_range": False, "insufficient": ["debts"], "reasons": 2}
        )
    )
    assert not policy.refer_outliers
    assert not policy.refer_out_of_range
    assert (policy.insufficient, policy.reasons) == (("debts",), 2)
    assert set(Policy.model_fields) - {"band"} == set(policy.to_dict())


# ---- decisions


@pytest.mark.parametrize(
    ("probability", "rule"),
    [
        pytest.param(0.0, "below_cut", id="certain to pay"),
        pytest.param(np.nextafter(0.2, 0), "below_cut", id="just below"),
        pytest.param(0.2, "near_cut", id="at the first cut"),
        pytest.param(np.nextafter(0.3, 0), "near_cut", id="just within"),
        pytest.param(0.3, "above_cut", id="at the second cut"),
        pytest.param(1.0, "above_cut", id="certain to default"),
    ],
)
def test_a_cut_off_belongs_to_what_lies_above_it(probability: float, rule: str) -> None:
    assert rule_of(POLICY, probability) == rule


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=5)))
@pytest.mark.parametrize("refers", list(itertools.product([False, True], repeat=3)))
def test_rules_are_asked_in_their_order(flags: tuple[bool, ...], refers: tuple[bool, ...]) -> None:
    policy = replace(POLICY, refer_outliers=refers[0], refer_out_of_range=refers[1], refer_no_information=refers[2])
    named = dict(zip(FLAGS, flags, strict=True))
    for probability in (0.1, 0.25, 0.4):
        rule = rule_of(policy, probability, **named)
        assert rule == expected_rule(policy, probability, named)


@given(st.lists(st.tuples(st.floats(0, 1), *[st.booleans()] * 5), max_size=30))
def test_an_application_alone_is_decided_as_in_a_batch(rows: list[tuple[float, bool, bool, bool, bool, bool]]) -> None:
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
    flags = {name: np.array(column, dtype=bool) for name, column in zip(FLAGS, columns[1:], strict=True)}
    chosen = POLICY.decide(np.array(columns[0], dtype=np.float64), **flags)
    alone = [rule_of(POLICY, row[0], **dict(zip(FLAGS, row[1:], strict=True))) for row in rows]
    assert [RULE_NAMES[rule] for rule in chosen] == alone


@given(
    one=st.floats(0, 1), other=st.floats(0, 1), flags=st.tuples(*[st.booleans()] * 3), cuts=st.tuples(SHARES, SHARES)
)
def test_a_higher_probability_never_gets_a_milder_decision(
    one: float, other: float, flags: tuple[bool, ...], cuts: tuple[float, float]
) -> None:
    policy = replace(POLICY, accept_below=min(cuts), reject_from=max(cuts))
    severity = ("accept", "refer", "reject")
    named = dict(zip(FLAGS, (*flags, True, True), strict=True))
    first, second = (
        severity.index(RULES[rule_of(policy, probability, **named)][0])
        for probability in (min(one, other), max(one, other))
    )
    assert first <= second


@given(st.floats(0, 1), st.tuples(*[st.booleans()] * 3))
def test_nobody_is_rejected_without_a_reason(probability: float, flags: tuple[bool, ...]) -> None:
    named = dict(zip(FLAGS, (*flags, False, True), strict=True))
    assert RULES[rule_of(POLICY, probability, **named)][0] != "reject"


@given(st.floats(0, 1), st.tuples(*[st.booleans()] * 4))
def test_nobody_is_rejected_for_nothing_but_missing_information(probability: float, flags: tuple[bool, ...]) -> None:
    named = dict(zip(FLAGS, (*flags, False), strict=True))
    assert RULES[rule_of(POLICY, probability, **named)][0] != "reject"


def test_what_no_rule_says_is_decided_by_a_human() -> None:
    # A probability that is no number lies neither below nor above a cut.
    assert RULES[rule_of(POLICY, np.nan)][0] == "refer"


def test_every_rule_has_a_decision_and_a_sentence() -> None:
    assert tuple(RULES) == RULE_NAMES
    assert {decision for decision, _ in RULES.values()} == {"accept", "refer", "reject"}
    assert [name for name, (decision, _) in RULES.items() if decision == "reject"] == ["above_cut"]
    assert all(meaning.endswith(".") for _, meaning in RULES.values())


# ---- versions


@given(st.data())
def test_other_content_is_another_version(data: st.DataObject) -> None:
    changes: dict[str, st.SearchStrategy[Any]] = {
        "accept_below": st.floats(0, 1), "reject_from": st.floats(0, 1), "loss_given_default": SHARES,
        "margin": SHARES, "refer_outliers": st.booleans(), "refer_out_of_range": st.booleans(),
        "insufficient": st.lists(st.sampled_from("abc"), unique=True).map(tuple), "reasons": st.integers(1, 4),
        "refer_no_information": st.booleans(),
    }  # fmt: skip
    name = data.draw(st.sampled_from(sorted(changes)))
    value = data.draw(changes[name])
    assume(value != getattr(POLICY, name))
    assert replace(POLICY, **{name: value}).version != POLICY.version


def test_equal_content_is_the_same_version_after_a_round_trip() -> None:
    again = DecisionPolicy.from_dict(POLICY.to_dict())
    assert again == POLICY
    assert again.version == POLICY.version
    assert len(POLICY.version) == 16


def test_a_policy_of_before_missing_information_was_a_rule_keeps_its_version_and_its_decisions() -> None:
    then = {name: value for name, value in POLICY.to_dict().items() if name != "refer_no_information"}
    old = DecisionPolicy.from_dict(then)
    assert old.to_dict() == then
    assert old.version != POLICY.version
    assert rule_of(old, 0.9, informed=False) == "above_cut"
    assert rule_of(POLICY, 0.9, informed=False) == "no_information"
