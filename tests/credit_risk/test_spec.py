"""Settings of a credit model that contradict themselves: a protected attribute under another name."""

from typing import Any

import pytest
from pydantic import ValidationError

from mlops_assets.credit_risk.sample_spec import SETTINGS, default_spec
from mlops_assets.credit_risk.spec import Spec


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
