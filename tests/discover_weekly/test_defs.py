"""The definitions of one system: complete, described, owned, and as strict as its risk profile says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets.credit_risk.sample_spec import default_spec
from mlops_assets.definitions import build_defs, configured_specs
from mlops_assets.discover_weekly import assets as assets_module
from mlops_assets.discover_weekly import defs as defs_module
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation import provenance
from mlops_assets.foundation.checks import outcome
from mlops_assets.foundation.errors import UserError

TEAMS = {
    "data-platform": {"listens", "tracks", "users", "stg_listens", "stg_tracks", "stg_users", "interactions"},
    "metadata": {"track_features", "content_model"},
    "recommendations": {"training_set", "collaborative_model"},
    "discover-weekly": {
        "blend_model", "evaluation", "champion", "batch_inputs", "playlists", "published_playlists",
    },
}  # fmt: skip
ASSETS = {asset for assets in TEAMS.values() for asset in assets}
DBT = {"stg_listens", "stg_tracks", "stg_users", "interactions", "track_features"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One environment for all definitions here: the dbt project is parsed once."""
    return Environment("embedded", tmp_path_factory.mktemp("defs") / "home")


@pytest.fixture(scope="module")
def location(place: Environment, make_spec: Callable[..., Spec]) -> dg.Definitions:
    return build_defs(place, [make_spec()])


@pytest.fixture(scope="module")
def specs(location: dg.Definitions) -> Mapping[str, dg.AssetSpec]:
    return {spec.key.path[-1]: spec for spec in location.resolve_all_asset_specs()}


def _check_specs(location: dg.Definitions) -> dict[str, dg.AssetCheckSpec]:
    graph = location.resolve_asset_graph()
    return {f"{key.asset_key.path[-1]}:{key.name}": graph.get_check_spec(key) for key in graph.asset_check_keys}


def test_the_location_is_loadable(location: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(location)


def test_the_assets_are_these(specs: Mapping[str, dg.AssetSpec]) -> None:
    assert set(specs) == ASSETS
    assert {spec.key.path[0] for spec in specs.values()} == {"discover_weekly"}


def test_the_jobs_are_these(location: dg.Definitions) -> None:
    names = {job.name for job in location.jobs or []}
    assert names == {"discover_weekly_refresh", "discover_weekly_ingest", "discover_weekly_deliver"}


@pytest.mark.parametrize("asset", sorted(ASSETS))
def test_an_asset_is_described_owned_grouped_and_marked(specs: Mapping[str, dg.AssetSpec], asset: str) -> None:
    spec = specs[asset]
    (team,) = [name for name, assets in TEAMS.items() if asset in assets]
    assert len((spec.description or "").strip()) > 20
    assert list(spec.owners) == [f"team:{team}"]
    assert (spec.group_name or "").startswith("discover_weekly__")
    assert spec.kinds


@pytest.mark.parametrize("asset", ["listens", "tracks", "users"])
def test_columns_are_described_before_the_first_run(specs: Mapping[str, dg.AssetSpec], asset: str) -> None:
    schema = specs[asset].metadata["dagster/column_schema"]
    assert len(schema.columns) >= 4
    assert all(column.description for column in schema.columns)
    assert any(not column.constraints.nullable for column in schema.columns)


@pytest.mark.parametrize("asset", sorted(DBT))
def test_every_dbt_model_describes_itself(specs: Mapping[str, dg.AssetSpec], asset: str) -> None:
    assert specs[asset].metadata["dagster/column_schema"].columns
    assert "dbt" in specs[asset].kinds


def test_every_asset_but_the_whole_tables_is_by_week(specs: Mapping[str, dg.AssetSpec]) -> None:
    whole = {name for name, spec in specs.items() if spec.partitions_def is None}
    assert whole == {"tracks", "users", "stg_tracks", "stg_users", "track_features"}
    first = {spec.partitions_def.get_first_partition_key() for spec in specs.values() if spec.partitions_def}
    assert first == {"2024-01-01"}


def test_a_period_that_fails_in_a_backfill_fails_alone(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        if graph.get(key).partitions_def is not None:
            policy = graph.get(key).backfill_policy
            assert policy is not None
            assert policy.max_partitions_per_run == 1


def test_models_look_back_and_the_first_period_may(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    mapping: Any = graph.get_partition_mapping(
        dg.AssetKey(["discover_weekly", "training_set"]), dg.AssetKey(["discover_weekly", "interactions"])
    )
    assert (mapping.start_offset, mapping.allow_nonexistent_upstream_partitions) == (-25, True)


def test_trainings_and_batches_queue_for_their_pools(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    pools = {
        key.path[-1]: definition.op.pool
        for key in graph.get_all_asset_keys()
        if (definition := graph.get(key).assets_def).op.pool
    }
    assert pools == {
        "collaborative_model": "training",
        "content_model": "training",
        "blend_model": "training",
        "champion": "champion",
        "playlists": "playlists",
    }


def test_only_what_reads_from_elsewhere_is_tried_again(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    retried = {
        key.path[-1] for key in graph.get_all_asset_keys() if graph.get(key).assets_def.op.retry_policy is not None
    }
    assert retried == {"listens", "tracks", "users"}


# --- code versions -------------------------------------------------------------------------------------------------


def _versions(place: Environment, spec: Spec) -> dict[str, str | None]:
    specs = build_defs(place, [spec]).resolve_all_asset_specs()
    return {item.key.path[-1]: item.code_version for item in specs}


@pytest.mark.parametrize(
    ("module", "touched"),
    [
        ("collaborative", {"collaborative_model"}),
        ("content", {"content_model"}),
        ("blend", {"blend_model"}),
        ("evaluation", {"evaluation"}),
        ("playlists", {"playlists"}),
        ("_topn_kernel", {"playlists"}),
        ("training", {"training_set", "batch_inputs"}),
        ("metrics", {"collaborative_model", "evaluation"}),
    ],
)
def test_a_change_of_source_is_a_new_version_of_its_own_assets_only(
    place: Environment,
    small_spec: Spec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    touched: set[str],
) -> None:
    before = _versions(place, small_spec)
    package = Path(assets_module.__file__).parent
    copied = tmp_path / package.name
    copied.mkdir()
    for path in package.glob("*.py"):
        (copied / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    assert _versions(place, small_spec) == before
    with (copied / f"{module}.py").open("a", encoding="utf-8") as file:
        file.write("\n# another way to do it\n")
    after = _versions(place, small_spec)
    assert {asset for asset in after if after[asset] != before[asset]} == touched


def test_every_model_says_which_code_made_it(place: Environment, small_spec: Spec) -> None:
    versions = _versions(place, small_spec)
    models = ["training_set", "collaborative_model", "content_model", "blend_model", "evaluation", "playlists"]
    assert all(versions[asset] for asset in models)


# --- gates and severities ------------------------------------------------------------------------------------------


def test_a_riskier_system_does_not_load_and_says_what_is_missing(
    place: Environment, make_spec: Callable[..., Spec]
) -> None:
    spec = make_spec(risk={"data": "high", "algorithm": "high", "output": "high"})
    with pytest.raises(UserError) as caught:
        build_defs(place, [spec])
    message = str(caught.value)
    missing = {
        "outliers", "incident", "interval_coverage", "monitoring", "calibration", "bias_report", "explanations",
        "model_card", "shadow", "approval", "trace",
    }  # fmt: skip
    assert {name for name in missing if f"gate {name!r} is missing" in message} == missing
    assert "Do predicted probabilities match the observed shares?" in message
    assert all(f"gate {name!r}" not in message for name in ("contract", "profile", "drift", "freshness", "accuracy"))


def test_medium_data_risk_loads_because_drift_and_freshness_are_there(
    place: Environment, make_spec: Callable[..., Spec]
) -> None:
    spec = make_spec(risk={"data": "medium", "algorithm": "low", "output": "low"})
    dg.Definitions.validate_loadable(build_defs(place, [spec]))


@pytest.mark.parametrize(
    ("asset", "gate"),
    [("discover_weekly/champion", "champion_comparison"), ("discover_weekly/evaluation", "accuracy")],
)
def test_definitions_without_the_asset_of_a_gate_do_not_load(
    place: Environment, small_spec: Spec, monkeypatch: pytest.MonkeyPatch, asset: str, gate: str
) -> None:
    def without(spec: Spec) -> list[dg.AssetsDefinition]:
        return [
            item for item in assets_module.build_assets(spec) if asset not in {k.to_user_string() for k in item.keys}
        ]

    monkeypatch.setattr(defs_module, "build_assets", without)
    with pytest.raises(UserError, match=f"gate '{gate}' names '{asset}', which the definitions do not contain"):
        build_defs(place, [small_spec])


def test_definitions_without_the_checks_of_a_gate_do_not_load(
    place: Environment, small_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defs_module, "interactions_checks", lambda spec, names: [])
    with pytest.raises(
        UserError, match="gate 'profile' names 'discover_weekly/interactions:interactions_match_profile'"
    ):
        build_defs(place, [small_spec])


def test_every_gate_that_is_provided_is_realised(
    place: Environment, small_spec: Spec, location: dg.Definitions
) -> None:
    keys = {key.to_user_string() for key in location.resolve_asset_graph().get_all_asset_keys()}
    checks = {f"discover_weekly/{name}" for name in _check_specs(location)}
    for gate, named in defs_module.provided_gates(small_spec).items():
        assert named, gate
        assert set(named) <= keys | checks


@pytest.mark.parametrize(("level", "blocking"), [("low", False), ("medium", False)])
def test_data_checks_block_at_high_risk_only(
    place: Environment, make_spec: Callable[..., Spec], level: str, *, blocking: bool
) -> None:
    spec = make_spec(risk={"data": level, "algorithm": "low", "output": "low"})
    checks = _check_specs(build_defs(place, [spec]))
    assert {checks[name].blocking for name in checks if name.startswith("listens:")} == {blocking}


@pytest.mark.parametrize(("level", "severity"), [("low", "WARN"), ("medium", "ERROR"), ("high", "ERROR")])
def test_a_failed_check_is_as_loud_as_the_risk(make_spec: Callable[..., Spec], level: str, severity: str) -> None:
    spec = make_spec(risk={"data": level, "algorithm": "low", "output": "low"})
    result = outcome(spec.risk, "data", "some_check", dg.AssetKey("listens"), "failed", "It failed.", {})
    assert (result.passed, result.severity.value) == (False, severity)


@pytest.mark.parametrize("level", ["low", "medium", "high"])
def test_what_could_not_be_assessed_has_not_passed_and_is_no_error(make_spec: Callable[..., Spec], level: str) -> None:
    spec = make_spec(risk={"data": level, "algorithm": "low", "output": "low"})
    result = outcome(spec.risk, "data", "some_check", dg.AssetKey("listens"), "not_assessed", "too little data", {})
    assert (result.passed, result.severity.value) == (False, "WARN")
    assert result.description == "Not assessed: too little data"


def test_every_check_says_what_it_asserts(location: dg.Definitions) -> None:
    own = {name: spec for name, spec in _check_specs(location).items() if name.split(":")[0] not in DBT}
    assert len(own) >= 10
    assert all(len(spec.description or "") > 15 for spec in own.values())


def test_dbts_tests_are_checks_of_its_models(location: dg.Definitions) -> None:
    tested = {name.split(":")[0] for name in _check_specs(location)}
    assert tested >= DBT


# --- several systems -----------------------------------------------------------------------------------------------


def test_two_systems_live_in_one_location(place: Environment, make_spec: Callable[..., Spec]) -> None:
    location = build_defs(place, [make_spec(), make_spec(name="films")])
    dg.Definitions.validate_loadable(location)
    keys = {key.to_user_string() for key in location.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {f"{system}/{asset}" for system in ("discover_weekly", "films") for asset in ASSETS}
    for own in (location.schedules, location.sensors, location.jobs):
        named = [item.name for item in own or []]
        halves = [{name for name in named if name.startswith(system)} for system in ("discover_weekly", "films")]
        assert len(halves[0]) == len(halves[1]) == len(named) / 2


def test_a_file_adds_a_system_to_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "films.yaml").write_text("name: films\n", encoding="utf-8")
    specs = configured_specs({"MLOPS_ASSETS_SPECS": str(tmp_path / "films.yaml")})
    assert [spec.name for spec in specs] == ["discover_weekly", "credit_risk", "films"]


def test_a_file_of_the_default_name_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("playlist: {length: 7}\n", encoding="utf-8")
    other, spec = configured_specs({"MLOPS_ASSETS_SPECS": str(tmp_path / "own.yaml")})
    assert (spec.name, spec.playlist.length) == ("discover_weekly", 7)
    assert other == default_spec()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("name: films\n", encoding="utf-8")
    listed = f"{tmp_path / 'a.yaml'}:{tmp_path / 'b.yaml'}"
    with pytest.raises(UserError, match="MLOPS_ASSETS_SPECS: more than one spec is named films"):
        configured_specs({"MLOPS_ASSETS_SPECS": listed})


def test_without_a_setting_there_are_the_default_systems() -> None:
    assert configured_specs({}) == [Spec(), default_spec()]


def test_a_test_replaces_a_resource_without_patching(place: Environment, small_spec: Spec, tmp_path: Path) -> None:
    other = Environment("embedded", tmp_path).resources()["warehouse"]
    location = build_defs(place, [small_spec], {"warehouse": other})
    assert (location.resources or {})["warehouse"] is other


@pytest.mark.parametrize("text", ["0", "many", "-1", "1.5"])
def test_a_wrong_number_of_steps_is_a_clear_mistake(
    place: Environment, small_spec: Spec, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("MLOPS_ASSETS_MAX_CONCURRENT", text)
    with pytest.raises(UserError, match="MLOPS_ASSETS_MAX_CONCURRENT"):
        build_defs(place, [small_spec])
