"""Replays every credit decision of a home byte by byte: in this process, in a new one, and under other Pythons.

What belongs here: making recorded decisions again and counting whose bytes are the same. What does not: how a decision
is made again (`credit_risk/replaying.py`), and the command for one decision (`mlops-assets replay`).

    mlops-assets demo --system credit_risk
    python -m benchmarks.credit_replay [--home .mlops_assets] [--python OTHER ...] [--rows ROWS]

What is compared is all that a decision consists of: payload hash, features, flags, and the result with probability and
margin to the last bit, points, decision, rule and reasons. Those who serve are often scorecards, so every version of
the registry, boosted ones too, also decides the same applications in each process, and what came out is compared by
its SHA-256 with this process's. The home is only read. ``--python`` names an interpreter that can import this package's
dependencies, and may be given several times. For one with what the lock names:

    python3.12 -m venv other
    other/bin/python -m pip install --no-deps --require-hashes -r requirements.lock
    python -m benchmarks.credit_replay --python other/bin/python

The package itself comes from this checkout. New processes hash texts with another seed and have other numbers of
threads than this one, one of them does without this processor's vector units, and every one says which versions it
found. Exits with 1 where a byte differs, and where there was nothing to compare.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mlops_assets.credit_risk import pipeline
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.replaying import COMPARED, Replayer
from mlops_assets.environment import Environment, current
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.registry import Registry

ROOT = Path(__file__).parents[1]
LIBRARIES = ("numpy", "pandas", "lightgbm")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SHOWN, AT_ONCE = 5, 5_000


def systems_of(place: Environment) -> list[str]:
    """Return the systems of a home that have decided anything."""
    found = sorted(path.parent.name for path in (place.home / "journals").glob("*/decisions.db"))
    if not found:
        raise UserError(
            "no decision was made here",
            where=str(place.home),
            remedy="run mlops-assets demo --system credit_risk, or name another home with --home.",
        )
    return found


def replayed(place: Environment, rows: int | None) -> dict[str, Any]:
    """Make the decisions of a home again, and return counts, seconds, and the first that differ."""
    resources: Mapping[str, Any] = place.resources()
    registry = resources["models"].open()
    logs = {
        system: DecisionLog(resources["journals"].open(system, "decisions", read_only=True))
        for system in systems_of(place)
    }
    start, processor = time.perf_counter(), time.process_time()
    found = [Replayer(log, registry).replay(islice(log.journal.read("decision"), rows)) for log in logs.values()]
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {
        "compared": sum(each.compared for each in found),
        "equal": sum(each.equal for each in found),
        "seconds": seconds,
        "processor": processor,
        "by_version": {name: digest for log in logs.values() for name, digest in by_version(log, registry, rows)},
        "versions": {"Python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "differing": [
            {"decision": each.decision_id, "rows": each.rows()} for one in found for each in one.differing[:SHOWN]
        ],
    }


def by_version(log: DecisionLog, registry: Registry, rows: int | None) -> Iterator[tuple[str, str]]:
    """Yield every version of the model that decided, and the SHA-256 of what it makes of the recorded applications."""
    replayer = Replayer(log, registry)
    first = next(iter(log.journal.read("decision")))
    context = log.context_of(first.body["context_sha256"])
    spec = pipeline.spec_of(context["contract"])
    policy = {name: value for name, value in context["policy"].items() if name != "version"}
    for model in registry.versions(context["model"]["name"]):
        decider = pipeline.load_decider(spec, registry, model, policy)
        digest, stream = hashlib.sha256(), islice(log.journal.read("decision"), rows)
        while bodies := [entry.body for entry in islice(stream, AT_ONCE)]:
            for record in replayer.decided_again(decider, bodies):
                digest.update(canonical_json({name: record[name] for name in COMPARED}))
        yield f"{model} ({decider.model.kind})", digest.hexdigest()


def in_new_process(python: str, place: Environment, rows: int | None, **settings: str) -> dict[str, Any]:
    """Make the decisions again under an interpreter, with settings of its environment."""
    command = [python, "-m", "benchmarks.credit_replay", "--home", str(place.home), "--worker"]
    command += [] if rows is None else ["--rows", str(rows)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    try:
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"cannot be started: {error}", where=python, remedy="name an interpreter.") from error
    if ran.returncode:
        raise UserError(
            f"it failed: {ran.stderr.strip()[-2_000:]}",
            where=python,
            remedy="install the dependencies of requirements.lock into it.",
        )
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def runs(place: Environment, rows: int | None, pythons: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where the decisions were made again, and what came out."""
    yield "this process", replayed(place, rows)
    yield "a new process", in_new_process(sys.executable, place, rows, **environment_of(1))
    # As on an older processor: NumPy then takes other code, whose last bits may differ.
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(np.show_config("dicts")["SIMD Extensions"]["found"])}
    yield "one without vector units", in_new_process(sys.executable, place, rows, **environment_of(2), **plain)
    for at, python in enumerate(pythons, start=3):
        yield python, in_new_process(python, place, rows, **environment_of(at))


def environment_of(number: int) -> dict[str, str]:
    """Return another hash seed and another number of threads for each number."""
    return {"PYTHONHASHSEED": str(number), **dict.fromkeys(THREADS, str(number))}


def told(where: str, found: Mapping[str, Any], here: Mapping[str, str]) -> int:
    """Print one run, and return how much of it differs."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    print(
        f"{found['equal']:>7,} of {found['compared']:,} byte-equal, {found['seconds']:6.1f} s "
        f"({found['processor']:.1f} s of processors), in {where}: {versions}",
        flush=True,
    )
    for each in found["differing"]:
        for name, recorded, again in each["rows"]:
            print(f"        {each['decision']} {name}: {recorded} was recorded, {again} came out")
    other = [name for name, digest in found["by_version"].items() if digest != here.get(name)]
    names = f"OTHER BYTES by {', '.join(other)}" if other else f"same bytes by {', '.join(found['by_version'])}"
    print(f"        asked of every version, those that never served too: {names}", flush=True)
    return int(found["compared"] - found["equal"]) + len(other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--home", type=Path, help="by default MLOPS_ASSETS_HOME, or .mlops_assets")
    parser.add_argument("--python", action="append", default=[], help="a further interpreter; may be given again")
    parser.add_argument("--rows", type=int, help="only the first decisions of each system")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    place = Environment("embedded", arguments.home.expanduser().resolve()) if arguments.home else current()
    try:
        if arguments.worker:
            print(json.dumps(replayed(place, arguments.rows)))
            return
        print(f"Decisions of {', '.join(systems_of(place))} in {place.home}, on {platform.machine()}")
        differing, compared = 0, 0
        here: Mapping[str, str] = {}
        for where, found in runs(place, arguments.rows, arguments.python):
            here = here or found["by_version"]
            differing += told(where, found, here)
            compared += found["compared"]
    except UserError as error:
        sys.exit(str(error))
    sys.exit(1 if differing or not compared else 0)


if __name__ == "__main__":
    main()
