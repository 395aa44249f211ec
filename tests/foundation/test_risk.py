"""The risk profile decides which gates a system has to provide."""

import itertools

import pytest

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.risk import AXES, GATES, LEVELS, RiskProfile, profile_table, require_gates

LOW = RiskProfile(data="low", algorithm="low", output="low")
MIXED = RiskProfile(data="high", algorithm="medium", output="medium")
HIGH = RiskProfile(data="high", algorithm="high", output="high")


def names(profile: RiskProfile) -> list[str]:
    return [gate.name for gate in profile.required_gates()]


def provided_for(profile: RiskProfile, system: str) -> dict[str, list[str]]:
    return {gate.name: [f"{system}/{gate.name}"] for gate in profile.required_gates()}


def defined_by(provided: dict[str, list[str]]) -> set[str]:
    return set(itertools.chain.from_iterable(provided.values()))


def test_a_low_risk_system_needs_five_gates():
    assert names(LOW) == ["contract", "profile", "accuracy", "champion_comparison", "completeness"]


def test_the_riskiest_system_needs_every_gate():
    assert set(names(HIGH)) == {gate.name for gate in GATES}


def test_each_axis_is_judged_by_its_own_level():
    assert {"outliers", "incident", "interval_coverage", "shadow"} <= set(names(MIXED))
    assert {"calibration", "bias_report", "approval", "trace"}.isdisjoint(names(MIXED))


@pytest.mark.parametrize("axis", AXES)
def test_a_higher_level_keeps_every_gate_of_the_lower_one_and_adds_some(axis):
    sets = [
        set(names(RiskProfile(**dict.fromkeys(AXES, "low") | {axis: level})))  # type: ignore[arg-type]
        for level in LEVELS
    ]
    assert sets[0] < sets[1] < sets[2]


def test_gate_names_are_unique_and_each_asks_one_question():
    assert len({gate.name for gate in GATES}) == len(GATES)
    assert all(gate.question.endswith("?") and gate.question.count("?") == 1 for gate in GATES)


def test_low_warns_medium_errors_high_errors_and_blocks():
    profile = RiskProfile(data="low", algorithm="medium", output="high")
    assert [profile.severity(axis) for axis in AXES] == ["WARN", "ERROR", "ERROR"]
    assert [profile.blocking(axis) for axis in AXES] == [False, False, True]


def test_an_unknown_level_is_refused_with_its_axis():
    with pytest.raises(UserError, match=r"axis algorithm: unknown risk level 'extreme'.*low, medium, high"):
        RiskProfile(data="low", algorithm="extreme", output="low")  # type: ignore[arg-type]


def test_definitions_that_provide_every_gate_are_accepted():
    provided = provided_for(HIGH, "credit_risk")
    require_gates(HIGH, "credit_risk", provided, defined_by(provided))


def test_gates_beyond_the_profile_are_welcome():
    provided = provided_for(HIGH, "discover_weekly")
    require_gates(LOW, "discover_weekly", provided, defined_by(provided))


@pytest.mark.parametrize("gate", HIGH.required_gates(), ids=lambda gate: gate.name)
def test_leaving_out_any_one_gate_is_refused_with_its_question(gate):
    provided = provided_for(HIGH, "credit_risk")
    defined = defined_by(provided)
    del provided[gate.name]
    with pytest.raises(UserError) as error:
        require_gates(HIGH, "credit_risk", provided, defined)
    assert str(error.value).startswith("credit_risk: ")
    assert f"gate '{gate.name}' is missing" in str(error.value)
    assert gate.question in str(error.value)


def test_every_problem_is_named_at_once():
    provided = {
        "contract": ["discover_weekly/listens:meets_contract"],
        "profile": [],
        "accurracy": ["discover_weekly/evaluation"],
        "champion_comparison": ["discover_weekly/champoin"],
    }
    assets = {"discover_weekly/evaluation", "discover_weekly/champion"}
    defined = assets | {"discover_weekly/listens:meets_contract"}
    with pytest.raises(UserError) as error:
        require_gates(LOW, "discover_weekly", provided, defined)
    message = str(error.value)
    for expected in (
        "gate 'profile' is missing",
        "gate 'accuracy' is missing",
        "gate 'completeness' is missing",
        "gate 'accurracy' is unknown; did you mean 'accuracy'?",
        "'discover_weekly/champoin', which the definitions do not contain",
        "did you mean 'discover_weekly/champion'?",
    ):
        assert expected in message
    assert "gate 'contract'" not in message


def test_one_key_given_as_a_plain_string_is_one_key():
    provided = {name: keys[0] for name, keys in provided_for(LOW, "discover_weekly").items()}
    require_gates(LOW, "discover_weekly", provided, set(provided.values()))


def test_the_table_has_one_row_an_axis():
    assert profile_table(MIXED)[2] == {
        "axis": "output",
        "level": "medium",
        "gates": "completeness, shadow",
        "a failed check": "ERROR",
    }
    assert profile_table(HIGH)[0]["a failed check"] == "ERROR, blocks"
    assert [row["axis"] for row in profile_table(LOW)] == list(AXES)
