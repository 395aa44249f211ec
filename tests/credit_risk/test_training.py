"""A training gives a version that decides alone, the same twice to the byte, or says what is missing."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops_assets.credit_risk import gbm, models, training
from mlops_assets.credit_risk.contracts import applications_contract
from mlops_assets.credit_risk.outliers import OutlierModel
from mlops_assets.credit_risk.reasons import ReasonTable
from mlops_assets.credit_risk.spec import load_spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ModelVersion, Registry
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore
from mlops_assets.foundation.sources import read
from tests.credit_risk.small_loans import SCHEMA, small_loans, small_spec

SPEC = small_spec()
TAGS = {"trained_by": "anna", "run_id": "run-1"}
KINDS = {"scorecard": training.train_scorecard, "gbm": training.train_gbm}
REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("MLOPS_ASSETS_TEST_DATA", REPO / "../shared/data"))
GERMAN = DATA / "german_credit" / "german.data"


def cut(loans: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"train": loans.iloc[:1_200], "calibrate": loans.iloc[1_200:1_600], "test": loans.iloc[1_600:]}


def saved(folder: Path, tables: Mapping[str, pd.DataFrame]) -> Snapshot:
    return SnapshotStore(folder / "snapshots").save("small/training_set", tables, {"as_of": "2024-03-31"})


def registry_in(folder: Path) -> Registry:
    return Registry(f"sqlite:///{folder}/mlflow.db", folder / "models")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def training_set(home: Path) -> Snapshot:
    return saved(home, cut(small_loans()))


@pytest.fixture(scope="module")
def registry(home: Path) -> Registry:
    return registry_in(home)


@pytest.fixture(scope="module")
def versions(training_set: Snapshot, registry: Registry) -> dict[str, ModelVersion]:
    return {kind: train(SPEC, training_set, registry, TAGS) for kind, train in KINDS.items()}


# ---- what a version is


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_says_what_it_is_and_where_it_comes_from(
    versions: dict[str, ModelVersion], training_set: Snapshot, kind: str
) -> None:
    version = versions[kind]
    assert version.model == "small.pd_model"
    assert version.params["kind"] == kind
    assert version.params["schema_version"] == SCHEMA.version
    assert version.params["rows"] == {"train": 1_200, "calibrate": 400}
    assert version.params["settings"] == json.loads(getattr(SPEC, kind).model_dump_json())
    assert version.tags == {
        **TAGS,
        "training_set": training_set.sha256,
        "trained_until": "2024-03-07T15:00:00+00:00",
        "as_of": "2024-03-31",
    }
    assert 0.6 < version.metrics["calibrate_auc"] < 0.9
    assert version.metrics["train_auc"] > 0.7


def test_both_kinds_are_numbered_together(versions: dict[str, ModelVersion]) -> None:
    assert [version.version for version in versions.values()] == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_decides_without_the_spec(versions: dict[str, ModelVersion], registry: Registry, kind: str) -> None:
    folder = registry.fetch(versions[kind])
    model, unusual = models.load(folder), OutlierModel.load(folder)
    matrix = model.schema.matrix(small_loans().iloc[1_600:])
    assert (model.kind, model.schema) == (kind, SCHEMA)
    assert model.predict(matrix).mean() == pytest.approx(small_loans()["bad"].iloc[1_600:].mean(), abs=0.05)
    assert unusual.features == SCHEMA.names
    assert len(unusual.score(matrix).score) == 400
    reasons = json.loads((folder / training.REASONS_FILE).read_text())
    assert reasons == {"version": ReasonTable.of(SPEC).version, "themes": ReasonTable.of(SPEC).to_dict()}


def test_the_test_slice_is_not_learned_from(versions: dict[str, ModelVersion], tmp_path: Path) -> None:
    tables = cut(small_loans())
    tables["test"] = tables["test"].assign(bad=1, income=1.0)
    other = saved(tmp_path, tables)
    for kind, train in KINDS.items():
        assert train(SPEC, other, registry_in(tmp_path), TAGS).sha256 == versions[kind].sha256


def test_ids_and_times_are_not_learned_from(versions: dict[str, ModelVersion], tmp_path: Path) -> None:
    loans = small_loans().assign(application_id=lambda frame: "x" + frame["application_id"][::-1].to_numpy())
    other = saved(tmp_path, cut(loans.assign(applied_at=pd.Timestamp("2020-01-01", tz="UTC"), protected="f")))
    version = training.train_scorecard(SPEC, other, registry_in(tmp_path), TAGS)
    assert version.sha256 == versions["scorecard"].sha256
    assert version.tags["trained_until"] == "2020-01-01T00:00:00+00:00"


def test_loans_without_a_time_were_trained_until_the_training_set_was_cut(tmp_path: Path) -> None:
    untimed = saved(tmp_path, cut(small_loans().assign(applied_at=pd.NaT)))
    version = training.train_scorecard(SPEC, untimed, registry_in(tmp_path), TAGS)
    assert version.tags["trained_until"] == "2024-03-31"


# ---- the same again


@pytest.mark.parametrize("kind", KINDS)
def test_trained_again_it_is_the_same_version(
    versions: dict[str, ModelVersion], training_set: Snapshot, registry: Registry, kind: str
) -> None:
    assert KINDS[kind](SPEC, training_set, registry, {"trained_by": "ben"}) == versions[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_can_be_made_again_without_a_new_version(
    versions: dict[str, ModelVersion], training_set: Snapshot, kind: str
) -> None:
    assert training.retrained_files(SPEC, training_set, kind) == versions[kind].files


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(
    versions: dict[str, ModelVersion], training_set: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:  # fmt: skip
    from threadpoolctl import threadpool_limits

    monkeypatch.setitem(gbm.fit.__kwdefaults__, "threads", threads)
    with threadpool_limits(threads):
        found = [train(SPEC, training_set, registry_in(tmp_path), TAGS).sha256 for train in KINDS.values()]
    assert found == [version.sha256 for version in versions.values()]


AGAIN = """
import sys
from pathlib import Path
from tests.credit_risk.test_training import KINDS, SPEC, TAGS, cut, registry_in, saved
from tests.credit_risk.small_loans import small_loans

home = Path(sys.argv[1])
made = saved(home, cut(small_loans()))
for train in KINDS.values():
    print("sha256", train(SPEC, made, registry_in(home), TAGS).sha256)
"""


@pytest.mark.parametrize("seed", ["1", "977"])
def test_another_process_with_other_hashes_makes_the_same(
    versions: dict[str, ModelVersion], tmp_path: Path, seed: str
) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed[0], "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, str(tmp_path)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("sha256 ")]
    assert found == [version.sha256 for version in versions.values()]


def test_other_reason_texts_are_another_version(versions: dict[str, ModelVersion], tmp_path: Path) -> None:
    themes = {name: theme.model_dump() for name, theme in SPEC.themes.items()}
    themes["means"]["sentence"] = "Your means are small"
    other = training.train_scorecard(
        small_spec(themes=themes), saved(tmp_path, cut(small_loans())), registry_in(tmp_path), TAGS
    )
    assert other.sha256 != versions["scorecard"].sha256
    assert other.files["model.json"] == versions["scorecard"].files["model.json"]


# ---- what is refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(0, r"there are 0 bad loans, and 6 are needed", id="no bad loan"),
        pytest.param(1, r"there are 0 good loans, and 15 are needed", id="no good loan"),
    ],
)
def test_one_outcome_is_refused(tmp_path: Path, registry: Registry, kind: str, bad: int, message: str) -> None:
    one = saved(tmp_path, cut(small_loans().assign(bad=bad)))
    before = len(registry.versions("small.pd_model"))
    with pytest.raises(UserError, match=f"slice 'train' of the training set: {message}.*lower training.minimum_"):
        KINDS[kind](SPEC, one, registry, TAGS)
    assert len(registry.versions("small.pd_model")) == before


def with_bads(frame: pd.DataFrame, bads: int) -> pd.DataFrame:
    return frame.assign(bad=(np.arange(len(frame)) % (len(frame) // bads) == 0).astype(int))


def test_too_few_bad_loans_are_refused_by_slice() -> None:
    tables = cut(small_loans())
    few, enough = with_bads(tables["calibrate"], 1), tables["train"]
    with pytest.raises(UserError, match=r"slice 'calibrate'.*there are 1 bad loans, and 2 are needed"):
        training.fit_scorecard(SPEC, enough, few)
    with pytest.raises(UserError, match=r"slice 'train'.*there are 4 bad loans, and 6 are needed.*minimum_bads"):
        training.fit_gbm(SPEC, with_bads(enough, 4), tables["calibrate"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [pytest.param(None, "nan", id="unknown"), pytest.param(2, "2", id="neither"), pytest.param(0.5, "0.5", id="half")],
)
def test_an_outcome_that_is_neither_good_nor_bad_is_refused(value: Any, shown: str) -> None:
    tables = cut(small_loans())
    odd = tables["train"].astype({"bad": float})
    odd.iloc[[7, 9], odd.columns.get_loc("bad")] = value
    with pytest.raises(UserError, match=rf"column 'bad': 2 loans are neither .*such as {shown} in row 7.*again from"):
        training.fit_scorecard(SPEC, odd, tables["calibrate"])


@pytest.mark.parametrize("tags", [{}, {"trained_by": ""}])
def test_nobody_as_the_trainer_is_refused(training_set: Snapshot, registry: Registry, tags: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"nobody is named as the trainer.*approves the version must be somebody else"):
        training.train_scorecard(SPEC, training_set, registry, tags)


def test_a_missing_feature_is_named() -> None:
    tables = cut(small_loans())
    with pytest.raises(UserError, match="'debts' are missing"):
        training.fit_gbm(SPEC, tables["train"].drop(columns="debts"), tables["calibrate"])


# ---- the examples


@pytest.mark.parametrize("name", ["german_credit", "lending_club"])
def test_the_examples_are_specs_that_models_can_be_learned_from(name: str) -> None:
    spec = load_spec(REPO / "examples" / f"{name}.yaml")
    assert spec.name == name
    assert {feature.theme for feature in spec.declared} == set(spec.themes)
    assert any(feature.risk != "free" for feature in spec.numeric)


@pytest.mark.skipif(not GERMAN.is_file(), reason="the German credit data are not here (MLOPS_ASSETS_TEST_DATA)")
def test_german_credit_is_learned_without_protected_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.metrics import roc_auc_score

    monkeypatch.setenv("GERMAN_CREDIT", str(GERMAN.parent))
    spec = load_spec(REPO / "examples" / "german_credit.yaml")
    assert set(spec.protected_names) == {"age", "personal_status", "foreign_worker"}
    ((raw, _, where),) = read(spec.data.applications, [*spec.features, "outcome"], base=spec.base)
    raw["application_id"] = [str(row) for row in range(len(raw))]
    split = applications_contract(spec, datetime(2030, 1, 1, tzinfo=UTC)).split(raw, where=where)
    loans = split.accepted.assign(bad=(raw["outcome"] == "2").astype(int))
    assert (len(loans), len(split.quarantined), loans["bad"].sum()) == (1_000, 0, 300)
    for fit in (training.fit_scorecard, training.fit_gbm):
        model = fit(spec, loans.iloc[:500], loans.iloc[500:700])
        test = loans.iloc[700:]
        # The published range for this data set is 0.77 to 0.80; one split of 300 loans is good to about 0.03.
        assert 0.72 < roc_auc_score(test["bad"], model.predict(model.schema.matrix(test))) < 0.86
