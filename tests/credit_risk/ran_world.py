"""A small lender that really ran: history, training, approval by another person, decisions and their watch.

All of it went through the definitions and their jobs, once a session, on a feed of files whose protected attributes
have values like no other text. A test that changes anything works on a copy of its own (`ran_copy`).
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlops_assets.credit_risk import pipeline
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.sample_spec import SETTINGS
from mlops_assets.credit_risk.spec import Spec, parse_spec
from mlops_assets.definitions import build_defs
from mlops_assets.environment import Environment
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import ChampionHistory, ModelVersion, Registry
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.running import Follow, open_instance, run_job
from mlops_assets.samples.lending import LendingWorld
from tests.conftest import merged

NAME = "bank"
TRAINER, OFFICER = "grace", "ada"

BOOK = LendingWorld(
    seed=5, start=date(2024, 1, 1), days=420, applications_per_day=40, dirt=0.0005, maturity_days=90, disparity=0.2
)


def week(number: int) -> str:
    """The first day of a week, counted from 0."""
    return (BOOK.start + timedelta(weeks=number)).isoformat()


HISTORY, DECIDED, LAST = 40, 44, 58
WEEKS = tuple(week(number) for number in range(LAST))
TRAINED = WEEKS[HISTORY - 1]
# Decided and watched in two runs, the second of a range; the outcomes of these decisions matured by the last week.
FIRST_DECIDED, LAST_DECIDED = WEEKS[HISTORY], WEEKS[DECIDED - 1]
NEXT = WEEKS[DECIDED]

SEXES = {"female": "sexzulu-f", "male": "sexzulu-m"}
ORIGINS = {origin: f"originzulu-{origin.lower()}" for origin in "ABC"}
AGE_FRACTION = 0.73519

RAW: Mapping[str, Any] = merged(
    SETTINGS,
    {
        "name": NAME,
        "data": {
            "applications": {"kind": "files", "path": "feed/{period}.csv"},
            "outcomes": {"kind": "files", "path": "feed/outcomes-{period}.csv"},
        },
        "periods": {"cadence": "weekly", "start": WEEKS[0], "end": week(LAST)},
        "target": {"maturity_days": 90},
        "training": {"minimum_goods": 200, "minimum_bads": 50, "history_periods": 60},
        "gbm": {"trees": 60},
        "outliers": {"trees": 25},
        "monitoring": {"reference_periods": 26, "window_rows": 500, "realised_rows": 100, "realised_bads": 5},
        "retraining": {"new_outcomes": 100_000, "maximum_age_days": 36_500, "cool_down_days": 0, "budget": 9},
    },
)


def spec_at(home: Path, **over: Any) -> Spec:
    """The lender's spec, with settings laid over it."""
    return parse_spec(merged(RAW, over), where="test", base=home)


@cache
def applications_of(number: int) -> pd.DataFrame:
    """A week's feed, protected attributes renamed."""
    days = [BOOK.applications(day) for day in range(7 * number, 7 * number + 7)]
    frame = pd.concat(days, ignore_index=True)
    ages = [age + AGE_FRACTION if isinstance(age, int) else age for age in frame["age"]]
    return frame.assign(sex=frame["sex"].map(SEXES), origin=frame["origin"].map(ORIGINS), age=ages)


def outcomes_of(number: int) -> pd.DataFrame:
    """A week's outcomes."""
    return pd.concat([BOOK.outcomes(day) for day in range(7 * number, 7 * number + 7)], ignore_index=True)


@dataclass
class Bank:
    """The lender in a folder: its definitions, instance and resources, and what a person can do in it."""

    home: Path
    instance: dg.DagsterInstance
    spec: Spec
    told: list[Follow] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    @property
    def place(self) -> Environment:
        return Environment("embedded", self.home / "place")

    @property
    def resources(self) -> dict[str, Any]:
        return self.place.resources()

    @property
    def root(self) -> Any:
        """The root of the object store."""
        return self.resources["store"].path()

    @property
    def warehouse(self) -> Warehouse:
        warehouse: Warehouse = self.resources["warehouse"]
        return warehouse

    @property
    def registry(self) -> Registry:
        registry: Registry = self.resources["models"].open()
        return registry

    @property
    def history(self) -> ChampionHistory:
        return pipeline.history_of(self.spec, self.instance, self.registry)

    @property
    def champion(self) -> ModelVersion:
        return self.history.champion()

    @property
    def log(self) -> DecisionLog:
        return DecisionLog(self.journal("decisions"))

    @property
    def operations(self) -> Journal:
        return self.journal("operations")

    def journal(self, name: str) -> Journal:
        journal: Journal = self.resources["journals"].open(self.spec.name, name)
        return journal

    def with_spec(self, **over: Any) -> "Bank":
        """Return the same bank with settings laid over its spec."""
        return Bank(self.home, self.instance, spec_at(self.home, **over))

    def defs(self) -> dg.Definitions:
        return definitions_at(self.place, self.spec)

    # --- Feed ---

    def deliver(self, number: int, frame: pd.DataFrame | None = None) -> str:
        """Put a week's applications into the feed, by default those of the book; return its period."""
        rows = applications_of(number) if frame is None else frame
        rows.to_csv(self.home / "feed" / f"{WEEKS[number]}.csv", index=False)
        return WEEKS[number]

    # --- Runs ---

    def run(self, job: str, *periods: str, by: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """Run a job of the bank for these periods, launched by a person, and return the run's id."""
        follow = Follow(lambda step, seconds: None, lambda text: None)
        self.told.append(follow)
        person = {pipeline.PERSON_TAG: by} if by else {}
        job_def = self.defs().resolve_job_def(f"{self.spec.name}_{job}")
        self.runs.append(
            run_job(job_def, self.instance, follow, periods=periods, name=job, tags={**(tags or {}), **person})
        )
        return self.runs[-1]

    def materialize(self, *assets: str, period: str, by: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialize assets alone, as somebody who picks them in the UI."""
        job = self.defs().resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance, partition_key=period, raise_on_error=False,
            asset_selection=[self.key(asset) for asset in assets],
            tags={pipeline.PERSON_TAG: by} if by else {},
        )  # fmt: skip

    def launch(self, job: str, **config: Any) -> dg.ExecuteInProcessResult:
        """Run a launchpad job with its configuration."""
        job_def = self.defs().resolve_job_def(f"{self.spec.name}_{job}")
        (node,) = job_def.nodes
        run_config = {"ops": {node.name: {"config": config}}}
        return job_def.execute_in_process(instance=self.instance, run_config=run_config, raise_on_error=False)

    def tick(self) -> dg.SensorResult:
        """Evaluate the retraining sensor as the daemon does."""
        defs = self.defs()
        sensor = defs.resolve_sensor_def(f"{self.spec.name}_retrain")
        with dg.build_sensor_context(
            instance=self.instance, definitions=defs, resources=defs.resources, sensor_name=sensor.name
        ) as context:
            answer: Any = sensor.evaluate_tick(context)
        return answer

    # --- What runs left ---

    def key(self, asset: str) -> dg.AssetKey:
        return dg.AssetKey([self.spec.name, asset])

    def page(self, asset: str, period: str) -> dict[str, Any]:
        """What the latest materialization of an asset's period shows."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=self.key(asset), asset_partitions=[period]), limit=1
        ).records
        materialization = records[0].asset_materialization
        assert materialization is not None
        return dict(materialization.metadata)

    def checks(self, run_id: str) -> dict[str, Any]:
        """What the checks of a run found: name to evaluation."""
        events = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        found = [event.dagster_event.event_specific_data for event in events if event.dagster_event is not None]
        return {f"{data.asset_key.path[-1]}:{data.check_name}": data for data in found}  # type: ignore[union-attr]

    def evidence(self, asset: str, period: str) -> dict[str, Any]:
        """The evidence that a step of the judgement stored."""
        shown = self.page(asset, period)
        number = int(str(shown["candidate"].value).rsplit(" ", 1)[-1])
        return self.registry.evidence(self.registry.get(self.history.model, number), shown["evidence_sha256"].value)

    def serving(self) -> int | None:
        """Number of the version that serves."""
        record = self.history.current()
        return None if record is None else record.version


_DEFINITIONS: dict[tuple[Path, str], dg.Definitions] = {}


def definitions_at(place: Environment, spec: Spec) -> dg.Definitions:
    """The code location of one spec in a place; made once for each, as a test asks for it many times."""
    key = place.home, spec.model_dump_json()
    if key not in _DEFINITIONS:
        _DEFINITIONS[key] = build_defs(place, [spec])
    return _DEFINITIONS[key]


def failure(result: dg.ExecuteInProcessResult) -> str:
    """The messages with which a run failed, innermost last; it did fail."""
    assert not result.success
    chain: list[str] = []
    for event in result.all_events:
        error = event.event_specific_data.error if event.is_step_failure else None  # type: ignore[union-attr]
        while error is not None:
            chain.append(error.message)
            error = error.cause
    return " | ".join(chain)


@contextmanager
def opened(home: Path, **over: Any) -> Iterator[Bank]:
    """Open the bank in a folder, with settings laid over its spec."""
    spec, place = spec_at(home, **over), Environment("embedded", home / "place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(place.dagster_home))
        with open_instance(place) as instance:
            patch.undo()
            yield Bank(home, instance, spec)


def build(folder: Path) -> Path:
    """Bring the bank to where the tests begin; on the way, keep it as it was with its first proposal."""
    home = folder / "ran"
    (home / "feed").mkdir(parents=True)
    for number in range(LAST):
        applications_of(number).to_csv(home / "feed" / f"{WEEKS[number]}.csv", index=False)
        outcomes_of(number).to_csv(home / "feed" / f"outcomes-{WEEKS[number]}.csv", index=False)
    with opened(home) as bank:
        bank.run("ingest", *WEEKS[:HISTORY])
        bank.run("train", TRAINED, by=TRAINER)
    shutil.copytree(home, folder / "proposed")
    with opened(home) as bank:
        (put,) = bank.history.proposals()
        bank.history.approve(put.record.candidate, OFFICER, "all gates passed, the card is read")
        bank.run("daily", FIRST_DECIDED)
        bank.run("daily", *WEEKS[HISTORY + 1 : DECIDED])
    return folder


@cache
def _built(folder: Path) -> Path:
    return build(folder / "bank")


# Imported by the modules that use them, each of which would build a bank of its own were it not for the cache.
@pytest.fixture(scope="session")
def bank_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished bank, and of the bank as it was with its first proposal; nobody changes them."""
    return _built(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def ran(bank_folder: Path) -> Iterator[Bank]:
    """The finished bank, for reading alone."""
    with opened(bank_folder / "ran") as bank:
        yield bank


@pytest.fixture
def ran_copy(bank_folder: Path, tmp_path: Path) -> Iterator[Bank]:
    """A bank of a test's own, in the same state."""
    shutil.copytree(bank_folder / "ran", tmp_path / "bank")
    with opened(tmp_path / "bank") as bank:
        yield bank


@pytest.fixture
def proposed(bank_folder: Path, tmp_path: Path) -> Iterator[Bank]:
    """A bank of a test's own whose first candidate was proposed, and nothing serves yet."""
    shutil.copytree(bank_folder / "proposed", tmp_path / "bank")
    with opened(tmp_path / "bank") as bank:
        yield bank


__all__ = ["Bank", "bank_folder", "proposed", "ran", "ran_copy"]
