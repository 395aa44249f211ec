"""What all tests share: capped thread pools, no telemetry, a small spec, and one finished run of the small world."""

# ruff: noqa: E402 - what is set here must be set before the libraries are imported
import os

import mlops_assets

# Several test processes share a machine, and small matrices gain nothing from threads.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# The package turns telemetry off when it is imported; tests insist on it, whatever the shell says.
for _name, _value in mlops_assets.TELEMETRY_OFF.items():
    os.environ[_name] = _value

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets.definitions import build_defs
from mlops_assets.discover_weekly.spec import Spec, parse_spec
from mlops_assets.environment import Environment
from mlops_assets.foundation.resources import ObjectStore, Warehouse
from mlops_assets.running import Follow, open_instance, run_job

# Long ago, so that every week is complete whatever the clock of the machine says.
WEEKS = ("2024-01-01", "2024-01-08", "2024-01-15", "2024-01-22", "2024-01-29")
SMALL: Mapping[str, Any] = {
    "data": {"listens": {"kind": "sample", "users": 200, "tracks": 600}},
    "periods": {"start": WEEKS[0]},
    "collaborative": {"factors": 16, "iterations": 5, "sweep": {"trials": 0}},
    "playlist": {"shards": 3, "length": 10},
}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested settings over others; a source of another kind shares none of its settings."""
    if over.get("kind", base.get("kind")) != base.get("kind"):
        return dict(over)
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return result


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., Spec]:
    """Build the small spec, with settings laid over it: ``make_spec(playlist={"length": 3})``."""

    def build(base: Path = Path(), **over: Any) -> Spec:
        return parse_spec(merged(SMALL, over), where="test", base=base)

    return build


@pytest.fixture
def small_spec(make_spec: Callable[..., Spec]) -> Spec:
    """The spec of the small world."""
    return make_spec()


@pytest.fixture
def place(tmp_path: Path) -> Environment:
    """An environment of its own in a temporary folder."""
    return Environment("embedded", tmp_path / "home")


@pytest.fixture
def warehouse(place: Environment) -> Warehouse:
    """The empty warehouse of the temporary environment."""
    return Warehouse(database=str(place.warehouse_file))


@dataclass
class Finished:
    """A home in which the small world ran: three weeks of history, then two weeks with models and playlists.

    Others read it and never write to it. ``told`` holds what each of the three runs told its listener.
    """

    spec: Spec
    place: Environment
    instance: dg.DagsterInstance
    defs: dg.Definitions
    runs: list[str] = field(default_factory=list)
    told: list[Follow] = field(default_factory=list)
    steps: list[list[str]] = field(default_factory=list)
    weeks: tuple[str, str] = (WEEKS[3], WEEKS[4])

    @property
    def resources(self) -> dict[str, Any]:
        """The resources of the environment."""
        return self.place.resources()

    @property
    def store(self) -> ObjectStore:
        """The object store."""
        store: ObjectStore = self.resources["store"]
        return store

    def run(self, job: str, *periods: str) -> str:
        """Run a job for these periods and keep what it told."""
        steps: list[str] = []

        def on_step(step: str, seconds: float | None) -> None:
            if seconds is not None:
                steps.append(step)

        follow = Follow(on_step, lambda text: None)
        self.told.append(follow)
        self.steps.append(steps)
        job_def = self.defs.resolve_job_def(job)
        self.runs.append(run_job(job_def, self.instance, follow, periods=periods, name=job))
        return self.runs[-1]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, make_spec: Callable[..., Spec]) -> Iterator[Finished]:
    """Run the small world once for all tests."""
    place = Environment("embedded", tmp_path_factory.mktemp("finished") / "home")
    spec = make_spec()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(place.dagster_home))
        defs = build_defs(place, [spec])
        with open_instance(place) as instance:
            patch.undo()
            world = Finished(spec, place, instance, defs)
            world.run("discover_weekly_ingest", *WEEKS[:3])
            for week in world.weeks:
                world.run("discover_weekly_refresh", week)
            yield world
