"""Settings of a credit model that contradict themselves, among them a protected attribute under another name."""

import json
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from mlops_assets.credit_risk.sample_spec import SETTINGS, default_spec
from mlops_assets.credit_risk.spec import RESERVED, Spec, load_spec
from mlops_assets.foundation.errors import UserError


def files(**columns: str) -> dict[str, Any]:
    return {"kind": "files", "path": "loans.csv", "columns": columns}


def table(**columns: str) -> dict[str, Any]:
    return {"kind": "table", "table": "bank.loans", "columns": columns}


def spec(**data: Any) -> Spec:
    return Spec.model_validate({**SETTINGS, "data": data})


def test_an_ordinary_mapping_is_fine():
    found = spec(applications=files(annual_income="inc", sex="gender", application_id="id"), outcomes=files())
    assert found.data.applications.columns["sex"] == "gender"
    assert default_spec().protected_names == ("sex", "age", "origin")


@pytest.mark.parametrize("source", [files, table])
@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"purpose": "gender", "sex": "gender"}, "'purpose' reads 'gender', which holds the protected attribute 'sex'"),
        ({"employment_years": "age"}, "'employment_years' reads 'age', which holds the protected attribute 'age'"),
        ({"employment_years": "AGE"}, "'employment_years' reads 'AGE', which holds the protected attribute 'age'"),
        ({"employment_years": "age", "age": "years"}, "'employment_years' reads 'age'"),
        ({"origin": "region"}, "'region' reads 'region', which holds the protected attribute 'origin'"),
        ({"applicant_id": "sex"}, "'applicant_id' reads 'sex', which holds the protected attribute 'sex'"),
        ({"sex": "code", "origin": "code"}, "'sex' reads 'code', as 'origin' does: both are protected"),
    ],
)
def test_no_column_reads_what_a_protected_attribute_reads(source, columns, told):
    with pytest.raises(ValidationError, match=told):
        spec(applications=source(**columns))


def test_a_mapping_of_the_applications_to_a_column_of_the_protected_source_is_refused():
    with pytest.raises(ValidationError, match="'purpose' reads 'gender', which holds the protected attribute 'sex'"):
        spec(applications=files(purpose="gender"), protected=table(sex="gender"))


def test_a_feature_may_be_called_as_another_file_calls_a_protected_attribute():
    found = spec(applications=files(), protected=table(origin="region"))
    assert found.data.protected.columns == {"origin": "region"}
    with pytest.raises(ValidationError, match="'region' reads 'region'"):
        spec(applications=files(region="region"), protected=table(origin="region"))


def test_every_such_column_is_named_at_once():
    with pytest.raises(ValidationError) as refused:
        spec(applications=files(purpose="sex", region="origin"))
    assert "'purpose' reads 'sex'" in str(refused.value)
    assert "'region' reads 'origin'" in str(refused.value)


# --- Names ---


def named(kind: str, *names: str) -> Spec:
    """The sample's spec with further numbers, categories or protected attributes of these names."""
    more = [{"name": name, **({} if kind == "protected" else {"theme": "income"})} for name in names]
    return Spec.model_validate({**SETTINGS, kind: [*SETTINGS[kind], *more]})


@pytest.mark.parametrize("kind", ["numeric", "categorical", "protected"])
@pytest.mark.parametrize("name", sorted(RESERVED))
def test_no_feature_and_no_protected_attribute_is_called_like_a_column_of_the_system(kind, name):
    for spelled in (name, name.upper()):
        with pytest.raises(ValidationError, match=f"'{spelled}' is a column of the system's own"):
            named(kind, spelled)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("numeric", "annual_income"), ("numeric", "Annual_Income"), ("categorical", "LOAN_AMOUNT"), ("protected", "Sex")],
)
def test_a_name_is_given_once_whatever_its_case(kind, name):
    with pytest.raises(ValidationError, match=f"'{name.lower()}' is named twice"):
        named(kind, name)


def test_a_protected_attribute_is_no_feature():
    with pytest.raises(ValidationError, match="'age' is protected and cannot be a feature"):
        named("numeric", "age")


@pytest.mark.parametrize("name", ["", "  ", 'in"come', "in\ncome", "in\0come"])
def test_what_no_column_can_be_called_is_refused(name):
    with pytest.raises(ValidationError, match="is no name of a column"):
        named("numeric", name)


@pytest.mark.parametrize("name", ["in come", "a:b", "a{b}", "Einkommen_€", "owner", "digest"])
def test_other_names_are_up_to_the_user(name):
    assert name in named("numeric", name).features


# --- What fits together ---


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"numeric": [], "categorical": [], "ratios": [], "segments": [], "policy": {}}, "there is no feature"),
        ({"themes": {}}, "'annual_income': theme 'income' has no sentence under `themes:`"),
        ({"ratios": [{"numerator": "purpose", "denominator": "loan_amount"}]}, "ratio of 'purpose': it is no numeric"),
        ({"segments": ["sex"]}, "'sex' is no feature"),
        ({"policy": {"insufficient": ["nothing"]}}, "'nothing' is no feature"),
        ({"gates": {"waived_groups": {"income": "because"}}}, "'income' is no protected attribute"),
        ({"name": "Credit"}, "must be lower-case letters"),
        ({"name": "order"}, "is a word of SQL"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
        (
            {"risk": {"data": "huge", "algorithm": "high", "output": "high"}},
            "unknown risk level 'huge'|Input should be",
        ),
        ({"target": {"bad": ["default"], "good": ["default"]}}, "'default' is named more than once"),
        ({"target": {"bad": []}}, "at least 1 item"),
        ({"policy": {"accept_below": 0.1}}, "give both accept_below and reject_from, or neither"),
        ({"policy": {"accept_below": 0.2, "reject_from": 0.1}}, "accept_below 0.2 lies above reject_from 0.1"),
        ({"policy": {"reasons": 5}}, "less than or equal to 4"),
        ({"periods": {"cadence": "weekly", "start": "2024-01-02"}}, "weeks start on Monday"),
        ({"periods": {"start": "2024-01-02", "end": "2024-01-02"}}, "is not after periods.start"),
        ({"periods": {"timezone": "Mars"}}, "is no time zone"),
        ({"gates": {"proposal_days": 0}}, "greater than 0"),
        ({"training": {"calibrate_share": 0.5}}, "less than 0.5"),
    ],
)
def test_what_contradicts_itself_is_refused_with_its_place(settings, told):
    with pytest.raises((ValidationError, UserError), match=told):
        Spec.model_validate({**SETTINGS, **settings})


def test_every_problem_of_names_is_told_at_once():
    with pytest.raises(ValidationError) as refused:
        Spec.model_validate({**SETTINGS, "segments": ["sex"], "themes": {}, "policy": {"insufficient": ["nothing"]}})
    told = str(refused.value)
    assert all(
        part in told for part in ("'sex' is no feature", "'nothing' is no feature", "theme 'income'", "theme 'region'")
    )


def test_the_sample_is_as_strict_as_a_lender_has_to_be():
    found = default_spec()
    assert {found.risk.level(axis) for axis in ("data", "algorithm", "output")} == {"high"}
    assert not found.gates.waived_groups
    assert set(found.features).isdisjoint(found.protected_names)
    assert all(theme.sentence.endswith(".") for theme in found.themes.values())


def test_a_spec_survives_being_written_and_read():
    found = default_spec()
    assert Spec.model_validate(json.loads(found.model_dump_json())) == found
    assert "base" not in found.model_dump()


# --- Files ---


def test_a_file_is_read_with_its_folder(tmp_path):
    path = tmp_path / "lender.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps({**SETTINGS, "name": "lender"}))), encoding="utf-8")
    found = load_spec(path)
    assert (found.name, found.base, found.system) == ("lender", tmp_path, "credit_risk")


def test_a_files_mistakes_name_file_and_settings(tmp_path):
    path = tmp_path / "lender.yaml"
    path.write_text("name: lender\nperiods: {cadence: hourly}\ngates: {minimum_auc: 2}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lender\.yaml: \d+ setting\(s\) cannot be used: ") as refused:
        load_spec(path)
    assert "periods.cadence: " in str(refused.value)
    assert "gates.minimum_auc: " in str(refused.value)
