"""A small lender that the command line ran, in processes that may talk to nobody: from CSV files to served decisions.

Its home holds a champion that another person approved, two weeks that it decided, one decision that came over HTTP, and
a second candidate whose proposal is open. Whoever changes anything works on a copy (`Lender.copied`).
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from mlops_assets.credit_risk.sample_spec import SETTINGS
from mlops_assets.samples.lending import LendingWorld
from tests.conftest import merged
from tests.contract.guarded import BIN, call, guarded_env

NAME = "lender"
FIRST, SECOND = 2, 4
"""The versions that were chosen: the scorecards of two trainings, each registered after its challenger."""
OFFICER = "boris [risk]"

BOOK = LendingWorld(seed=11, start=date(2024, 1, 1), days=266, applications_per_day=20, dirt=0.001, maturity_days=90)


def week(number: int) -> str:
    """The first day of a week of the feed, counted from 0."""
    return (BOOK.start + timedelta(weeks=number)).isoformat()


TRAINED, DECIDED, NEXT = week(34), (week(35), week(36)), week(37)

# The world is small: what is large by chance alone does not keep a candidate out here.
WIDE = {
    "overfit_gap": 0.3, "calibration_error": 0.2, "auc_loss": 0.3, "brier_rise": 1.0, "swap_share": 0.9,
    "segment_loss": 0.5, "approval_drop": 0.5, "shadow_psi": 5.0, "stability_loss": 1.0, "too_good": 0.5,
    "reason_stability": 0.1, "waived_groups": dict.fromkeys(("sex", "age", "origin"), "the sample is small"),
}  # fmt: skip

SPEC: Mapping[str, Any] = merged(
    SETTINGS,
    {
        "system": "credit_risk",
        "name": NAME,
        "data": {
            "applications": {"kind": "files", "path": "feed/{period}.csv"},
            "outcomes": {"kind": "files", "path": "feed/outcomes.csv"},
        },
        "periods": {"start": BOOK.start, "cadence": "weekly", "end": week(38)},
        "target": {"maturity_days": 90},
        "training": {"minimum_goods": 100, "minimum_bads": 30},
        "gbm": {"trees": 20},
        "outliers": {"trees": 25, "share": 0.01},
        "monitoring": {"window_rows": 100},
        "gates": WIDE,
    },
)

APPLICATION: Mapping[str, Any] = {
    "application_id": "over-http",
    "applicant_id": "P-http",
    "features": {
        "annual_income": 42_000, "loan_amount": 9_000, "term_months": 36, "employment_years": 6.5,
        "revolving_utilisation": 0.31, "open_accounts": 6, "delinquencies_2y": 0, "inquiries_6m": 1,
        "months_since_delinquency": -7, "credit_history_months": 140, "debt_to_income": 0.22, "purpose": "car",
        "home_ownership": "rent", "employment_type": "permanent", "region": "south",
    },
}  # fmt: skip
"""An application in order, as it is sent to the service."""

_COMMANDS = """
import json, sys
from mlops_assets.cli import main
for command in json.loads(sys.argv[1]):
    print("$", *command, flush=True)
    if main(command, standalone_mode=False):
        sys.exit(1)
"""


@dataclass(frozen=True)
class Lender:
    """A lender's folder: its spec, its feed and its home."""

    folder: Path
    done: "subprocess.CompletedProcess[str]"
    answer: Mapping[str, Any]

    @property
    def spec(self) -> Path:
        """The spec's file."""
        return self.folder / "lender.yaml"

    @property
    def home(self) -> Path:
        """What MLOPS_ASSETS_HOME is."""
        return self.folder / "home"

    @property
    def log(self) -> list[str]:
        """What the guard wrote while the world was made."""
        return (self.folder / "guard.log").read_text(encoding="utf-8").splitlines()

    @property
    def env(self) -> dict[str, str]:
        """The environment of guarded processes that work on it."""
        return guarded_env(self.folder, MLOPS_ASSETS_HOME=str(self.home), MLOPS_ASSETS_SPECS=str(self.spec))

    def copied(self, folder: Path) -> "Lender":
        """Copy it; versions are still read where they were written, and new ones are written to the copy."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    def deliver(self, number: int, **columns: Any) -> None:
        """Write the applications of a week to the feed, with whole columns made otherwise."""
        days = [BOOK.applications(day) for day in range(7 * number, 7 * number + 7)]
        frame = pd.concat(days, ignore_index=True)
        frame = frame.assign(**{name: frame[name].map(change) for name, change in columns.items()})
        frame.to_csv(self.folder / "feed" / f"{week(number)}.csv", index=False)

    def serving(self) -> Any:
        """Serve its decisions in a process of their own: yields the process and the service's URL."""
        return serving("serve", NAME, "--port", "0", cwd=self.folder, env=self.env)


@contextmanager
def serving(
    *command: str, cwd: Path, env: Mapping[str, str], stop: signal.Signals = signal.SIGTERM
) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """Run a command that serves until it is told to stop; yields the process and the URL that it says."""
    with subprocess.Popen(
        [str(BIN / "mlops-assets"), *command], cwd=cwd, env={**env, "PYTHONUNBUFFERED": "1"}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert " at http://" in said, said + process.communicate()[1]
            yield process, said.split(" at ")[1].split()[0]
        finally:
            if process.poll() is None:
                process.send_signal(stop)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def ask(url: str, body: Mapping[str, Any] | None = None, attempts: int = 1) -> tuple[int, str, Mapping[str, str]]:
    """Ask a service and return status, text and headers; more attempts wait for one that is not ready yet."""
    data = None if body is None else json.dumps(dict(body)).encode()
    for left in reversed(range(attempts)):
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                found = error.code, error.read().decode(), dict(error.headers)
        except urllib.error.URLError:
            if not left:
                raise
            time.sleep(0.2)
            continue
        if found[0] != 503 or not left:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{attempts} attempts")


def lender(tmp_path_factory: pytest.TempPathFactory) -> Lender:
    """Return the lender, which is made once for all tests of a session."""
    return _made(tmp_path_factory.getbasetemp())


@functools.cache
def _made(base: Path) -> Lender:
    folder = base / "guarded_lender"
    (folder / "feed").mkdir(parents=True)
    made = Lender(folder, subprocess.CompletedProcess([], 1, "", "not run yet"), {})
    for number in range(38):
        made.deliver(number)
    pd.concat([BOOK.outcomes(day) for day in range(266)]).to_csv(folder / "feed/outcomes.csv", index=False)
    made.spec.write_text(yaml.safe_dump(json.loads(json.dumps(SPEC, default=str))), encoding="utf-8")
    spec, approved = made.spec.name, f"the card of {FIRST} is read"
    done = _commands(
        made,
        ["run", spec, "--to", TRAINED],
        ["approve", NAME, "--version", str(FIRST), "--by", OFFICER, "--reason", approved],
        ["run", spec, "--from", DECIDED[0], "--to", DECIDED[1], "--publish", "2"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with made.serving() as (_, url):
        status, text, _ = ask(f"{url}/v1/credit/decisions", APPLICATION, attempts=100)
    assert status == 201, text
    return replace(made, done=done, answer=json.loads(text))


def _commands(made: Lender, *commands: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    # One process for all of them: each would pay for its imports again.
    env = {**made.env, "COLUMNS": "160", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return call(str(BIN / "python"), "-c", _COMMANDS, json.dumps(commands), cwd=made.folder, env=env)
