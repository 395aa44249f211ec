"""Runs jobs in this process, with progress for a person and errors without tracebacks for user mistakes.

What belongs here: launching, following and naming what failed. What does not: what the jobs do, and the command line.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
# The checkout's settings, or the copy of them inside an installed wheel.
_SETTINGS = (_PACKAGE.parent / "dagster.yaml", _PACKAGE / "_dagster.yaml")
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def prepare_home(environment: Environment) -> Path:
    """Create Dagster's home with this package's settings unless it has its own; return it."""
    home = Path(os.environ.get("DAGSTER_HOME") or environment.dagster_home).expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        shutil.copyfile(next(path for path in _SETTINGS if path.is_file()), settings)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


@contextmanager
def open_instance(environment: Environment) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance of an environment."""
    prepare_home(environment)
    with dg.DagsterInstance.get() as instance:
        yield instance


@dataclass
class Follow:
    """What a run has told so far.

    Parameters
    ----------
    on_step
        Called with a step's name when it starts and with its seconds when it ends.
    on_message
        Called with what steps log at level info.
    """

    on_step: Callable[[str, float | None], None]
    on_message: Callable[[str], None]
    failures: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    blocked: dict[str, list[str]] = field(default_factory=dict)

    def __call__(self, entry: Any) -> None:
        """Take in one event of the run."""
        event = entry.dagster_event
        if event is None:
            if entry.level == 20:  # logging.INFO: what an asset says to a person
                self.on_message(str(entry.user_message))
            return
        kind, data = event.event_type_value, event.event_specific_data
        if kind == "STEP_START":
            self.on_step(str(event.step_key), None)
        elif kind == "STEP_SUCCESS":
            self.on_step(str(event.step_key), data.duration_ms / 1000)
        elif kind == "STEP_FAILURE":
            # A step that its checks stopped says no more than their number.
            told = self.blocked.get(str(event.step_key))
            self.failures[str(event.step_key)] = (
                "\n    ".join(["its checks stop it", *told]) if told else _cause(data.error)
            )
        elif kind == "PIPELINE_FAILURE" and not self.failures and data.error is not None:
            # Something failed outside all steps, such as a resource that cannot be opened.
            self.failures["before any step"] = _cause(data.error)
        elif kind == "ASSET_CHECK_EVALUATION":
            name = f"{data.asset_key.to_user_string()}:{data.check_name}"
            self.checks[name] = data.passed
            if not data.passed:
                text = f"{name}: {data.description or 'did not pass'}"
                self.warnings.append(text)
                if data.blocking and data.severity == dg.AssetCheckSeverity.ERROR:
                    self.blocked.setdefault(str(event.step_key), []).append(text)

    def causes(self) -> dict[str, list[str]]:
        """Return each cause once, with the steps that failed from it."""
        told: dict[str, list[str]] = {}
        for step, cause in self.failures.items():
            told.setdefault(cause, []).append(step)
        return told


def _cause(error: Any) -> str:
    """Return the message that names culprit and remedy: a user's mistake, or else the innermost error."""
    if error is None:
        return "no message"
    chain = [error]
    while chain[-1].cause is not None:
        chain.append(chain[-1].cause)
    # A mistake may have a cause of its own, such as a library's error, that says less than it does.
    told = next((link for link in chain if link.cls_name == UserError.__name__), chain[-1])
    # It speaks for itself; of anything else the kind of error is worth knowing.
    text = " ".join(str(told.message).split()).removeprefix(f"{UserError.__module__}.UserError: ")
    # Dagster's word for checks that block says enough without its class.
    return text.removeprefix("dagster._core.errors.DagsterAssetCheckFailedError: ")


def run_job(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    follow: Follow,
    *,
    periods: Sequence[str],
    name: str,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Run a job for one period, or for a range of periods in one run; return the run's id.

    Parameters
    ----------
    tags
        Of the run, beside those of its periods.

    Raises
    ------
    UserError
        The run failed; the message names every failed step and its cause.
    """
    run_id = str(uuid.uuid4())
    instance.add_event_listener(run_id, follow)
    ranged = len(periods) > 1
    span = (
        {"dagster/asset_partition_range_start": periods[0], "dagster/asset_partition_range_end": periods[-1]}
        if ranged
        else {}
    )
    log = Path(instance.root_directory) / "console" / f"{run_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # dbt and others print as they go; it is kept, but not mixed with the progress.
    with log.open("w", encoding="utf-8") as handle, redirect_stdout(handle):
        result = job.execute_in_process(
            instance=instance, run_id=run_id, run_config=_QUIET, raise_on_error=False, tags={**(tags or {}), **span},
            partition_key=None if ranged else periods[0],
        )  # fmt: skip
    if not result.success:
        told = "".join(f"\n  {', '.join(steps)}: {cause}" for cause, steps in follow.causes().items())
        told = told or " see the run in the UI"
        again = (
            "Run the same command again when the cause is mended: finished shards and known models are not made again"
        )
        raise UserError(
            f"{name} failed:{told}\n{again}",
            where=f"run {run_id}",
        )
    return run_id
