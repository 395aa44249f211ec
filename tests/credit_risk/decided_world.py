"""A small lender with all it takes: eight months of history, two approved models, and days that were decided for real.

Built once a session; a test that changes anything works on a copy of its own (`copied`).
"""

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mlops_assets.credit_risk import incidents, labels, pipeline, training
from mlops_assets.credit_risk.data_assets import build_data_assets
from mlops_assets.credit_risk.deciding import Decider, Request
from mlops_assets.credit_risk.decision_assets import build_decision_assets
from mlops_assets.credit_risk.decision_batch import decide_period
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.ingestion import IngestReport, ingest_period
from mlops_assets.credit_risk.models import model_name
from mlops_assets.credit_risk.names import Names
from mlops_assets.credit_risk.outcomes_feed import ingest_outcomes
from mlops_assets.credit_risk.sample_spec import SETTINGS
from mlops_assets.credit_risk.spec import Spec, parse_spec
from mlops_assets.credit_risk.tracing import Tracer
from mlops_assets.credit_risk.windows import end_of
from mlops_assets.environment import Environment
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import ChampionHistory, GateResult, ModelVersion, Registry, Verdict
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.foundation.snapshots import SnapshotStore
from mlops_assets.samples.lending import LendingWorld
from tests.conftest import merged

SCORECARD, GBM = 1, 2
"""The two versions; anna trained both, boris approved one after the other."""

BOOK = LendingWorld(seed=11, start=date(2024, 1, 1), days=260, applications_per_day=20, dirt=0.001, maturity_days=90)
HISTORY_DAYS = 244
TRAINED = "2024-08-31"
# Decided by the scorecard, the second one with every kind of row; then one by the boosted model.
PLAIN, EDGES, BOOSTED = "2024-09-01", "2024-09-02", "2024-09-03"
# In no table yet: for tests that bring and decide a day themselves.
NEW = "2024-09-04"

RAW: Mapping[str, Any] = merged(
    SETTINGS,
    {
        "name": "lender",
        "data": {
            "applications": {"kind": "files", "path": "feed/{period}*.csv"},
            "outcomes": {"kind": "files", "path": "feed/outcomes.csv"},
        },
        "periods": {"start": "2024-01-01"},
        "target": {"maturity_days": 90},
        "training": {"minimum_goods": 100, "minimum_bads": 30},
        "gbm": {"trees": 40},
        "outliers": {"trees": 25, "share": 0.01},
        # Lower than any honest pair of the sample world, and within the ranges of both.
        "ratios": [{"numerator": "annual_income", "denominator": "loan_amount", "low": 0.25, "high": 1_000}],
        # The days here are small, big and full of errors: what makes a batch an incident has tests of its own.
        "checks": {"quarantine_share": 0.9, "systematic_rows": 500, "maximum_rows": 20},
    },
)

GOOD: Mapping[str, Any] = {
    "application_id": "A", "applicant_id": "P", "applied_at": f"{EDGES}T10:00:00Z", "annual_income": 42_000,
    "loan_amount": 9_000, "term_months": 36, "employment_years": 6.5, "revolving_utilisation": 0.31, "open_accounts": 6,
    "delinquencies_2y": 0, "inquiries_6m": 1, "months_since_delinquency": -7, "credit_history_months": 140,
    "debt_to_income": 0.22, "purpose": "car", "home_ownership": "rent", "employment_type": "permanent",
    "region": "south",
}  # fmt: skip
"""An application in order."""

RISKY: Mapping[str, Any] = {
    "annual_income": 19_000, "loan_amount": 20_000, "term_months": 60, "employment_years": 0.5,
    "revolving_utilisation": 0.93, "delinquencies_2y": 1, "inquiries_6m": 4, "months_since_delinquency": 3,
    "credit_history_months": 30, "debt_to_income": 0.5,
}  # fmt: skip

KINDS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "in order": ({}, ""),
    "risky": (RISKY, ""),
    "numbers as text": ({"annual_income": "42000", "debt_to_income": " 0.22 ", "loan_amount": "9e3"}, ""),
    "no bureau file": ({"months_since_delinquency": -9}, ""),
    "not usable": ({"months_since_delinquency": -8}, ""),
    "missing numbers": ({"employment_years": None, "credit_history_months": None}, ""),
    "missing categories": ({"region": None, "purpose": ""}, ""),
    "nobody is named": ({"applicant_id": None}, ""),
    "thin file": ({"months_since_delinquency": -9, "revolving_utilisation": None}, "insufficient_file"),
    "beyond training": ({"annual_income": 599_000}, "out_of_range"),
    "unknown category": ({"purpose": "yacht"}, "out_of_range"),
    "too little": ({"annual_income": -42_000}, "quarantined"),
    "too much": ({"loan_amount": 9_000_000}, "quarantined"),
    "wrong unit": ({"annual_income": 9_700, "loan_amount": 49_000}, "quarantined"),
    "not a number": ({"debt_to_income": "N/A"}, "quarantined"),
    "decimal comma": ({"annual_income": "42.000,50"}, "quarantined"),
    "not finite": ({"revolving_utilisation": "inf"}, "quarantined"),
    "required value missing": ({"loan_amount": None}, "quarantined"),
    "markup": ({"region": "<b>south</b>"}, "quarantined"),
    "formula": ({"purpose": "=1+1"}, "quarantined"),
    "long text": ({"home_ownership": "x" * 3_000}, "quarantined"),
    "in the future": ({"applied_at": "2031-01-01T00:00:00Z"}, "quarantined"),
    "no time": ({"applied_at": "soon"}, "quarantined"),
    "without id": ({"application_id": None}, "quarantined"),
    "blank id": ({"application_id": "  "}, "quarantined"),
    "other letters": ({"application_id": "Å-ß-中", "region": "süd"}, "out_of_range"),
}
"""Kinds of rows: what differs from `GOOD`, and the rule that decides, where it does not depend on the model."""


def spec_at(home: Path, **over: Any) -> Spec:
    """The lender's spec, with settings laid over it."""
    return parse_spec(merged(RAW, over), where="test", base=home)


def edge_rows() -> list[dict[str, Any]]:
    """One raw row of every kind, each with an id of its own."""
    rows = []
    for number, changes in enumerate(each for each, _ in KINDS.values()):
        rows.append({**GOOD, "application_id": f"E{number:03d}", "applicant_id": f"PE{number:03d}", **changes})
    return rows


def texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as an ingestion keeps them."""
    return [canonical_json(dict(row)).decode() for row in rows]


def request_of(payload_texts: Sequence[str], day: str = EDGES, **over: Any) -> Request:
    """A batch's request for these payloads."""
    values: dict[str, Any] = {
        "until": end_of(spec_at(Path()), day), "period": day, "channel": "batch",
        "received_at": f"{day}T23:00:00+00:00", "batch_id": f"{day}-000000000000",
    }  # fmt: skip
    return Request(payloads=payload_texts, **{**values, **over})


def records_of(decider: Decider, request: Request) -> list[dict[str, Any]]:
    """The records of the decisions on a request."""
    return list(decider.records(decider.decide(request)))


def applications_of(day: str, rows: int | None = None) -> pd.DataFrame:
    """A day of the sample world; with ``rows``, as many of them, from that many days, all made on this one."""
    at = BOOK.day_of(day)
    if rows is None:
        return BOOK.applications(at)
    parts = []
    while sum(map(len, parts)) < rows:
        part = BOOK.applications(1_000 + 100 * (at % 30) + len(parts))  # the ids of no other day
        parts.append(part.assign(applied_at=[f"{day}T{hour % 24:02d}:30:00Z" for hour in range(len(part))]))
    return pd.concat(parts).head(rows).reset_index(drop=True)


@dataclass
class World:
    """A lender in a folder: its spec, tables, journals, versions and Dagster instance."""

    home: Path
    spec: Spec
    instance: Any = None

    @property
    def place(self) -> Environment:
        return Environment("embedded", self.home / "place")

    @property
    def resources(self) -> Mapping[str, Any]:
        return self.place.resources()

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

    def journal(self, name: str) -> Journal:
        journal: Journal = self.resources["journals"].open(self.spec.name, name)
        return journal

    def log(self) -> DecisionLog:
        return DecisionLog(self.journal("decisions"))

    def version(self, number: int) -> ModelVersion:
        return self.registry.get(model_name(self.spec), number)

    def decider(self, number: int) -> Decider:
        return pipeline.load_decider(self.spec, self.registry, self.version(number))

    def tracer(self) -> Tracer:
        store = self.resources["store"].path()
        return Tracer(
            self.spec, self.log(), self.registry, self.history, self.warehouse, store, self.journal("operations")
        )

    def file(self, day: str, part: str = "") -> Path:
        return self.home / "feed" / f"{day}{part}.csv"

    def write(self, day: str, frame: pd.DataFrame, part: str = "") -> None:
        frame.to_csv(self.file(day, part), index=False)

    def ingest(self, *days: str) -> IngestReport:
        return ingest_period(self.spec, days, self.warehouse, run_id="run-ingest")

    def deliver(self, day: str, frame: pd.DataFrame) -> str:
        """Take in a day's applications and return the batch's id."""
        self.write(day, frame)
        report = self.ingest(day)
        incidents.record(self.journal("operations"), self.spec.name, report.batches, run_id="run-ingest")
        return report.batches[-1].batch_id

    def decide(self, day: str, number: int = SCORECARD, *, run_id: str = "run-d", now: datetime | None = None) -> Any:
        """Decide a day with one of the versions, as the asset does."""
        decider, version = self.decider(number), self.version(number)
        return decide_period(self.spec, day, self.warehouse, self.log(), decider, version, run_id=run_id, now=now)

    def materialize(self, asset: str, day: str) -> dg.ExecuteInProcessResult:
        """Materialize one asset for a day, as a run of its own."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            names = Names(self.spec)
            assets = [*build_data_assets(self.spec, names), *build_decision_assets(self.spec, names)]
            return dg.materialize(
                assets, selection=[dg.AssetKey([self.spec.name, asset])], instance=self.instance,
                resources=dict(self.resources), partition_key=day, raise_on_error=False,
            )  # fmt: skip

    def propose(self, number: int) -> None:
        version = self.version(number)
        gates = [
            GateResult("accuracy", "passed", 0.75, 0.6, None, "AUC out of time"), GateResult("bias_report", "passed"),
            GateResult("shadow", "not_assessed", reason="no live data"),
        ]  # fmt: skip
        evidence = {"gates": [gate.as_row() for gate in gates], "version": number}
        digest = self.registry.attach_evidence(version, evidence)
        record = self.history.next_record(Verdict("proposed", ("sound",)), version, by="run-t", evidence_sha256=digest)
        key = dg.AssetKey([self.spec.name, "champion"])
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=record.metadata()))

    def approve(self, number: int, by: str = "boris") -> None:
        self.history.approve(number, by=by, reason="the card is read")


@contextmanager
def opened(home: Path, **over: Any) -> Iterator[World]:
    """Open the lender in a folder, with settings laid over its spec."""
    storage = home / "place" / "dagster"
    storage.mkdir(parents=True, exist_ok=True)
    with dg.DagsterInstance.local_temp(str(storage)) as instance:
        yield World(home, spec_at(home, **over), instance)


def build(home: Path) -> Path:
    """Bring the lender to where the tests begin."""
    (home / "feed").mkdir(parents=True)
    with opened(home) as world:
        _learn(world)
        world.propose(SCORECARD)
        world.approve(SCORECARD)
        world.deliver(PLAIN, applications_of(PLAIN, 50))
        edges = pd.DataFrame([{**row, **_protected(at)} for at, row in enumerate(edge_rows())], dtype=object)
        world.deliver(EDGES, pd.concat([_twice_and_contradicted(), edges], ignore_index=True))
        for day in (PLAIN, EDGES):
            assert world.materialize("decisions", day).success
        world.propose(GBM)
        world.approve(GBM)
        world.deliver(BOOSTED, applications_of(BOOSTED, 50))
        assert world.materialize("decisions", BOOSTED).success
    return home


def _learn(world: World) -> None:
    """Take in the history and train both models on it."""
    days = [(BOOK.start + timedelta(days=day)).isoformat() for day in range(HISTORY_DAYS)]
    feed = world.home / "feed"
    whole = pd.concat([BOOK.applications(day) for day in range(HISTORY_DAYS)])
    whole.to_csv(feed / "history.csv", index=False)
    pd.concat([BOOK.outcomes(day) for day in range(HISTORY_DAYS)]).to_csv(feed / "outcomes.csv", index=False)
    as_history = spec_at(world.home, data={"applications": {"path": "feed/history.csv"}})
    ingest_period(as_history, days, world.warehouse, run_id="run-ingest")
    ingest_outcomes(as_history, days, world.warehouse)
    with world.warehouse.session() as tables:
        cut, facts = labels.training_tables(tables, world.spec, TRAINED)
    snapshots = SnapshotStore(world.resources["store"].path("snapshots"))
    snapshot = snapshots.save(f"{world.spec.name}/training_set", cut, facts)
    tags = {"period": TRAINED, "trained_by": "anna", "run_id": "run-t", "code_version": "c1"}
    for train in (training.train_scorecard, training.train_gbm):
        train(world.spec, snapshot, world.registry, tags)


SEX, ORIGIN, AGE = "female-zzq", "origin-zzq", 33.687
"""Protected values like no other text and number, so that they can be looked for byte by byte."""


def _protected(number: int) -> dict[str, Any]:
    return {"sex": f"{SEX}{number}", "age": AGE, "origin": f"{ORIGIN}{number}"}


def _twice_and_contradicted() -> pd.DataFrame:
    """A row and its exact copy, and an id with two contents."""
    twice = {**GOOD, "application_id": "twice", "applicant_id": "P-twice"}
    torn = {**GOOD, "application_id": "torn", "applicant_id": "P-torn"}
    rows = [twice, torn, twice, {**torn, "loan_amount": 9_500}]
    return pd.DataFrame([{**row, **_protected(100 + at)} for at, row in enumerate(rows)], dtype=object)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished lender; nobody changes it."""
    return build(tmp_path_factory.mktemp("decided") / "lender")


@pytest.fixture(scope="session")
def lender(built: Path) -> Iterator[World]:
    """The finished lender, for reading alone."""
    with opened(built) as world:
        yield world


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Iterator[World]:
    """A lender of a test's own, in the same state."""
    shutil.copytree(built, tmp_path / "lender")
    with opened(tmp_path / "lender") as world:
        yield world


@pytest.fixture
def copy_of(built: Path, tmp_path: Path) -> Callable[..., Any]:
    """Open further lenders of a test's own: ``with copy_of("name", policy={...}) as world``."""

    def make(name: str, **over: Any) -> Any:
        shutil.copytree(built, tmp_path / name)
        return opened(tmp_path / name, **over)

    return make


def raised(result: dg.ExecuteInProcessResult) -> str:
    """The message with which a run failed."""
    failures = [event.event_specific_data.error for event in result.all_events if event.is_step_failure]
    chain = []
    while failures:
        error = failures.pop()
        if error is not None:
            chain.append(error.message)
            failures.append(error.cause)
    return " | ".join(chain)
