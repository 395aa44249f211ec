"""The definitions of a credit model: complete, described, owned, and as strict as its risk profile says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from mlops_assets.credit_risk import automation, defs
from mlops_assets.credit_risk.names import Names
from mlops_assets.credit_risk.reading import CHECKS
from mlops_assets.credit_risk.sample_spec import default_spec
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.definitions import build_defs, configured_specs
from mlops_assets.environment import Environment
from mlops_assets.foundation import provenance
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.risk import GATES, RiskProfile

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

TEAMS = {
    "team:data-platform": {
        "applications", "accepted_applications", "quarantined_applications", "protected_attributes", "outcomes",
        "outlier_flags", "training_set",
    },
    "team:credit-models": {"scorecard", "gbm", "weak_slices", "likely_label_errors", "slice_experiment"},
    "team:model-risk": {
        "evaluation", "bias_report", "explanations", "model_card", "champion", "drift_report", "decision_mix",
        "estimated_performance", "realised_performance", "vintage_curves",
    },
    "team:lending": {"decisions"},
}  # fmt: skip
ASSETS = {asset for assets in TEAMS.values() for asset in assets}
HIGH = {"data": "high", "algorithm": "high", "output": "high"}


def spec_of(**over: Any) -> Spec:
    """The sample's spec with top-level settings replaced."""
    return default_spec().model_copy(update=over)


def risk(**levels: Any) -> RiskProfile:
    return RiskProfile(**{**HIGH, **levels})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment("embedded", tmp_path_factory.mktemp("defs") / "home")


@pytest.fixture(scope="module")
def location(place: Environment) -> dg.Definitions:
    return build_defs(place, [spec_of()])


@pytest.fixture(scope="module")
def assets(location: dg.Definitions) -> Mapping[str, dg.AssetSpec]:
    return {spec.key.path[-1]: spec for spec in location.resolve_all_asset_specs()}


def checks_of(location: dg.Definitions) -> dict[str, dg.AssetCheckSpec]:
    graph = location.resolve_asset_graph()
    return {f"{key.asset_key.path[-1]}:{key.name}": graph.get_check_spec(key) for key in graph.asset_check_keys}


# --- Assets ---


def test_the_location_is_loadable_and_has_these_assets(
    location: dg.Definitions, assets: Mapping[str, dg.AssetSpec]
) -> None:
    dg.Definitions.validate_loadable(location)
    assert set(assets) == ASSETS
    assert {spec.key.path[0] for spec in assets.values()} == {"credit_risk"}


@pytest.mark.parametrize("asset", sorted(ASSETS))
def test_an_asset_is_described_owned_grouped_marked_and_by_day(assets: Mapping[str, dg.AssetSpec], asset: str) -> None:
    spec = assets[asset]
    (team,) = [name for name, owned in TEAMS.items() if asset in owned]
    assert len((spec.description or "").strip()) > 40
    assert list(spec.owners) == [team]
    assert (spec.group_name or "").startswith("credit_risk__")
    assert spec.kinds
    assert isinstance(spec.partitions_def, dg.DailyPartitionsDefinition)


def test_nobody_but_the_bias_report_depends_on_protected_attributes(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    protected = dg.AssetKey(["credit_risk", "protected_attributes"])
    assert {key.path[-1] for key in graph.get(protected).child_keys} == {"bias_report"}


def test_no_table_for_people_lists_protected_columns(assets: Mapping[str, dg.AssetSpec]) -> None:
    for spec in assets.values():
        schema = spec.metadata.get("dagster/column_schema")
        names = {column.name for column in schema.columns} if schema else set()
        assert not names & set(default_spec().protected_names), spec.key
        assert all(column.description for column in (schema.columns if schema else []))


def test_decisions_come_after_data_flags_and_champion(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    parents = {key.path[-1] for key in graph.get(dg.AssetKey(["credit_risk", "decisions"])).parent_keys}
    assert parents == {"applications", "outlier_flags", "champion"}


def test_pools_keep_trainings_verdicts_and_decisions_one_at_a_time(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    pools = {
        key.path[-1]: graph.get(key).assets_def.op.pool
        for key in graph.get_all_asset_keys()
        if graph.get(key).assets_def.op.pool
    }
    assert pools == {"scorecard": "training", "gbm": "training", "champion": "champion", "decisions": "decisions"}


def test_models_look_back_as_far_as_the_history(location: dg.Definitions) -> None:
    graph = location.resolve_asset_graph()
    for asset in ("accepted_applications", "outcomes"):
        mapping: Any = graph.get_partition_mapping(
            dg.AssetKey(["credit_risk", "training_set"]), dg.AssetKey(["credit_risk", asset])
        )
        assert mapping.start_offset == 1 - default_spec().training.history_periods
        assert mapping.allow_nonexistent_upstream_partitions


@pytest.mark.parametrize(
    ("module", "touched"),
    [
        ("scorecard", {"scorecard"}),
        ("gbm", {"gbm"}),
        ("outliers", {"scorecard", "gbm"}),
        ("labels", {"training_set"}),
        ("_metrics_ranking", {"evaluation"}),
        ("bias", {"bias_report"}),
        ("reasons", {"explanations", "decisions"}),
        ("_card_page", {"model_card"}),
        ("policy", {"decisions"}),
        ("monitoring", set()),
    ],
)
def test_a_change_of_source_is_a_new_version_of_what_it_makes(
    place: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, touched: set[str]
) -> None:
    def versions() -> dict[str, str | None]:
        return {
            spec.key.path[-1]: spec.code_version for spec in build_defs(place, [spec_of()]).resolve_all_asset_specs()
        }

    before = versions()
    package = Path(defs.__file__).parent
    copied = tmp_path / package.name
    copied.mkdir()
    for path in package.glob("*.py"):
        (copied / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    with (copied / f"{module}.py").open("a", encoding="utf-8") as file:
        file.write("\n# another way to do it\n")
    after = versions()
    assert {asset for asset in after if after[asset] != before[asset]} == touched


# --- Jobs ---


def test_the_jobs_are_these(location: dg.Definitions) -> None:
    assert {job.name for job in location.jobs or []} == {
        f"credit_risk_{name}"
        for name in (
            "ingest", "train", "daily", "watch", "review", "approve", "reject", "rollback", "acknowledge_incident",
            "freeze_training", "unfreeze_training", "request_training",
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    ("job", "made"),
    [
        ("ingest", set(automation.DATA)),
        ("train", set(automation.MODEL)),
        ("daily", {*automation.DATA, *automation.DECISIONS, *automation.WATCH}),
        ("watch", set(automation.WATCH)),
        ("review", set(automation.REVIEW)),
    ],
)
def test_a_job_makes_its_assets_and_no_others(location: dg.Definitions, job: str, made: set[str]) -> None:
    layer = location.resolve_job_def(f"credit_risk_{job}").asset_layer
    assert {key.path[-1] for key in layer.executable_asset_keys} == made


def test_every_asset_is_in_a_job_and_only_one_job_trains() -> None:
    jobs = [automation.DATA, automation.MODEL, automation.DECISIONS, automation.WATCH, automation.REVIEW]
    assert sorted(asset for job in jobs for asset in job) == sorted(ASSETS)


# --- Gates ---


def test_every_gate_of_the_highest_profile_is_provided_and_defined(location: dg.Definitions) -> None:
    provided = defs.provided_gates(spec_of())
    assert set(provided) == {gate.name for gate in GATES}
    keys = {key.to_user_string() for key in location.resolve_asset_graph().get_all_asset_keys()}
    found = keys | {f"credit_risk/{name}" for name in checks_of(location)}
    for gate, named in provided.items():
        assert named, gate
        assert set(named) <= found, gate


@pytest.mark.parametrize("gate", sorted(gate.name for gate in GATES))
def test_definitions_that_provide_one_gate_less_do_not_load(
    place: Environment, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    whole = defs.provided_gates
    monkeypatch.setattr(
        defs, "provided_gates", lambda spec: {name: keys for name, keys in whole(spec).items() if name != gate}
    )
    with pytest.raises(UserError, match=f"credit_risk: .*\n  - gate '{gate}' is missing"):
        build_defs(place, [spec_of()])


@pytest.mark.parametrize(
    ("asset", "gates"),
    [
        ("evaluation", {"accuracy", "interval_coverage", "calibration", "shadow"}),
        ("bias_report", {"bias_report"}),
        ("explanations", {"explanations"}),
        ("model_card", {"model_card"}),
        ("champion", {"champion_comparison", "approval"}),
        ("drift_report", {"drift"}),
        ("realised_performance", {"monitoring"}),
        ("outlier_flags", {"outliers"}),
        ("decisions", {"freshness", "completeness", "trace", "explanations"}),
    ],
)
def test_definitions_without_the_asset_of_a_gate_do_not_load(
    place: Environment, monkeypatch: pytest.MonkeyPatch, asset: str, gates: set[str]
) -> None:
    for builder in ("build_data_assets", "build_model_assets", "build_decision_assets"):
        made = getattr(defs, builder)
        monkeypatch.setattr(
            defs,
            builder,
            lambda spec, names, made=made: [
                item for item in made(spec, names) if asset not in {key.path[-1] for key in item.keys}
            ],
        )
    with pytest.raises(UserError, match="which the definitions do not contain") as caught:
        build_defs(place, [spec_of()])
    assert {
        gate.name for gate in GATES if f"gate '{gate.name}' names 'credit_risk/{asset}" in str(caught.value)
    } == gates


@pytest.mark.parametrize("level", ["low", "medium", "high"])
@pytest.mark.parametrize("axis", ["data", "algorithm", "output"])
def test_every_profile_loads(place: Environment, axis: str, level: str) -> None:
    dg.Definitions.validate_loadable(build_defs(place, [spec_of(risk=risk(**{axis: level}))]))


@pytest.mark.parametrize(("level", "blocking"), [("low", False), ("medium", False), ("high", True)])
def test_checks_block_at_high_risk_of_their_axis(place: Environment, level: str, *, blocking: bool) -> None:
    checks = checks_of(build_defs(place, [spec_of(risk=RiskProfile(data=level, algorithm="high", output="high"))]))
    of_data = ("applications:few_rows_in_quarantine", "applications:batches_are_sound",
               "applications:no_data_incident_is_open", "outcomes:outcomes_do_not_contradict")  # fmt: skip
    assert {checks[name].blocking for name in of_data} == {blocking}
    of_output = {name for name in checks if name.startswith("decisions:")} - {"decisions:the_policy_is_approved"}
    assert {checks[name].blocking for name in of_output} == {True}


def test_what_is_only_watched_never_blocks(location: dg.Definitions) -> None:
    blocking = {name for name, check in checks_of(location).items() if check.blocking}
    assert blocking == {
        "applications:few_rows_in_quarantine", "applications:batches_are_sound",
        "applications:no_data_incident_is_open", "outcomes:outcomes_do_not_contradict",
        "decisions:every_application_is_decided", "decisions:every_rejection_has_a_reason",
        "decisions:the_log_is_unbroken", "decisions:decisions_replay",
    }  # fmt: skip


def test_every_check_says_what_it_asserts_and_is_looked_up_by_the_status(location: dg.Definitions) -> None:
    checks = checks_of(location)
    assert all(len(check.description or "") > 25 for check in checks.values())
    assert set(checks) == {f"{asset}:{name}" for asset, names in CHECKS.items() for name in names}


# --- Periods ---


@pytest.mark.parametrize(
    ("cadence", "kind", "name"),
    [
        ("daily", dg.DailyPartitionsDefinition, "credit_risk_every_day"),
        ("weekly", dg.WeeklyPartitionsDefinition, "credit_risk_every_week"),
        ("monthly", dg.MonthlyPartitionsDefinition, "credit_risk_every_month"),
    ],
)
def test_all_assets_follow_the_cadence(place: Environment, cadence: str, kind: type, name: str) -> None:
    raw = {**default_spec().model_dump(), "periods": {"cadence": cadence, "start": "2024-01-01"}}
    location = build_defs(place, [Spec.model_validate(raw)])
    assert {type(spec.partitions_def) for spec in location.resolve_all_asset_specs()} == {kind}
    assert [schedule.name for schedule in location.schedules or []] == [name]


def test_applications_without_times_are_one_period_with_no_schedule_and_no_deadline(place: Environment) -> None:
    raw = default_spec().model_dump()
    raw["data"] = {"timed": False, "applications": {"kind": "files", "path": "loans.csv"}}
    spec = Spec.model_validate(raw)
    location = build_defs(place, [spec])
    dg.Definitions.validate_loadable(location)
    assert Names(spec).partitions.get_partition_keys() == [spec.periods.start.isoformat()]
    assert not location.schedules
    assert [sensor.name for sensor in location.sensors or []] == ["credit_risk_retrain"]
    assert {each.freshness_policy for each in location.resolve_all_asset_specs()} == {None}


# --- Several systems ---


def test_two_credit_models_share_no_name(place: Environment) -> None:
    location = build_defs(place, [spec_of(), spec_of(name="cards")])
    dg.Definitions.validate_loadable(location)
    keys = {key.to_user_string() for key in location.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {f"{system}/{asset}" for system in ("credit_risk", "cards") for asset in ASSETS}
    for own in (location.schedules, location.sensors, location.jobs):
        named = [item.name for item in own or []]
        halves = [{name for name in named if name.startswith(system)} for system in ("credit_risk", "cards")]
        assert len(halves[0]) == len(halves[1]) == len(named) / 2


def test_a_file_adds_a_credit_model_to_the_default_systems(tmp_path: Path) -> None:
    raw = default_spec().model_dump(mode="json")
    path = tmp_path / "cards.yaml"
    path.write_text(yaml.safe_dump({**raw, "name": "cards"}), encoding="utf-8")
    specs = configured_specs({"MLOPS_ASSETS_SPECS": str(path)})
    assert {spec.name: spec.system for spec in specs} == {
        "discover_weekly": "discover_weekly", "credit_risk": "credit_risk", "cards": "credit_risk",
    }  # fmt: skip
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert [spec.name for spec in configured_specs({"MLOPS_ASSETS_SPECS": str(path)})] == [
        "discover_weekly", "credit_risk",
    ]  # fmt: skip


@pytest.mark.parametrize("system", ["credit-risk", "food_delivery", 7, None])
def test_a_file_of_a_system_that_nobody_knows_is_refused(tmp_path: Path, system: Any) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"system": system, "name": "x"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.yaml: unknown system .*discover_weekly, credit_risk"):
        configured_specs({"MLOPS_ASSETS_SPECS": str(path)})
