"""What loading the code location costs: CPU seconds and peak memory of `dagster definitions validate`.

What belongs here: three projects measured side by side in one run. They are this package; an empty ``Definitions()``,
which is Dagster's own share; and an empty project in the layout that Dagster scaffolds, whose ``load_from_defs_folder``
imports every installed integration. What does not: what a run costs.

    python -m benchmarks.loading [--repeats 5]

Every code server and every step process pays this bill. Rounds are interleaved, so that a busy moment of the machine
hits all three.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_SCAFFOLDED = """
from pathlib import Path

from dagster import definitions, load_from_defs_folder


@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""
_PYPROJECT = """
[project]
name = "scaffolded"
version = "0.1.0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "scaffolded"
"""


@dataclass(frozen=True)
class Contestant:
    """A project: its folder and what is said to Dagster to find it."""

    name: str
    folder: Path
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """CPU seconds (user and system, with children) and peak resident memory of the largest process in MB."""

    cpu: float
    wall: float
    memory: float


def contestants(folder: Path) -> list[Contestant]:
    """Write the two empty projects and return all three."""
    (folder / "empty").mkdir()
    (folder / "empty" / "definitions.py").write_text("import dagster as dg\n\ndefs = dg.Definitions()\n", "utf-8")
    package = folder / "scaffolded" / "scaffolded"
    (package / "defs").mkdir(parents=True)
    (package / "defs" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "definitions.py").write_text(_SCAFFOLDED, "utf-8")
    (folder / "scaffolded" / "pyproject.toml").write_text(_PYPROJECT, "utf-8")
    return [
        Contestant("empty Definitions()", folder / "empty", ("-f", "definitions.py")),
        Contestant("mlops_assets", ROOT, ("-w", "workspace.yaml")),
        Contestant("empty load_from_defs_folder", folder / "scaffolded", ("-m", "scaffolded.definitions")),
    ]


def measure(contestant: Contestant, home: Path) -> Cost:
    """Validate once in a process of its own, which reports what it and its children used."""
    command = [str(Path(sys.executable).with_name("dagster")), "definitions", "validate", *contestant.arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "MLOPS_ASSETS_"))}
    env |= {"DAGSTER_HOME": str(home / "dagster"), "MLOPS_ASSETS_HOME": str(home / "mlops_assets")}
    env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{contestant.folder}", "DAGSTER_DISABLE_TELEMETRY": "1"}
    module = [sys.executable, "-m", "benchmarks.loading", "--cwd", str(contestant.folder)]
    done = subprocess.run(
        [*module, "--measure", json.dumps(command)], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{contestant.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _measured(command: list[str], cwd: str) -> None:
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "wall": wall, "memory": used.ru_maxrss / 1024}))


def main() -> None:
    """Measure, and print medians and ratios to the empty project."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--cwd", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        _measured(json.loads(given.measure), given.cwd)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "dagster").mkdir()
        rivals = contestants(folder)
        costs: dict[str, list[Cost]] = {rival.name: [] for rival in rivals}
        # The first round fills caches (byte code, the parsed dbt project) and does not count.
        for number in range(given.repeats + 1):
            for rival in rivals:
                cost = measure(rival, folder)
                if number:
                    costs[rival.name].append(cost)
    _report(costs)


def _report(costs: dict[str, list[Cost]]) -> None:
    medians = {
        name: Cost(*(statistics.median(getattr(cost, part) for cost in own) for part in ("cpu", "wall", "memory")))
        for name, own in costs.items()
    }
    base = medians["empty Definitions()"]
    print(f"`dagster definitions validate`, medians of {len(next(iter(costs.values())))} (lowest to highest CPU)")
    print(f"{'':30} {'CPU s':>7} {'':>15} {'wall s':>7} {'MB':>6} {'CPU x':>6} {'MB x':>6}")
    for name, cost in medians.items():
        all_of_them = [one.cpu for one in costs[name]]
        spread = f"{min(all_of_them):.2f} to {max(all_of_them):.2f}"
        ratios = f"{cost.cpu / base.cpu:6.2f} {cost.memory / base.memory:6.2f}"
        print(f"{name:30} {cost.cpu:7.2f} {spread:>15} {cost.wall:7.2f} {cost.memory:6.0f} {ratios}")


if __name__ == "__main__":
    main()
