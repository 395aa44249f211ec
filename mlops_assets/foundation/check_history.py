"""What the checks of a system said last, read from Dagster's event log.

What belongs here: looking up results. What does not: making them (`checks.py`), and judging a model by them: a verdict
rests on stored evidence, as a new materialization resets what is displayed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg


def latest_checks(
    instance: "dg.DagsterInstance", system: str, named: Mapping[str, Sequence[str]]
) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Return how many checks passed last, which did not, and which could not be assessed.

    Parameters
    ----------
    named
        Asset of the system to the names of its checks.
    """
    import dagster as dg

    passed = 0
    problems: dict[bool, list[str]] = {True: [], False: []}
    for asset, checks in named.items():
        for check in checks:
            event = _last_evaluation(instance, dg.AssetCheckKey(dg.AssetKey([system, asset]), check))
            if event is None:
                continue
            evaluation = event.asset_check_evaluation_data
            if evaluation.passed:
                passed += 1
            else:
                status = evaluation.metadata.get("status")
                assessed = status is None or status.value != "not_assessed"
                problems[assessed].append(f"{asset}: {check}: {evaluation.description or ''}")
    return passed, tuple(problems[True]), tuple(problems[False])


def _last_evaluation(instance: "dg.DagsterInstance", key: "dg.AssetCheckKey") -> "dg.DagsterEvent | None":
    """Return the check's last result; a run that was to make the check and failed before it does not hide that."""
    import dagster as dg

    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=50):
        event = record.event.dagster_event if record.event is not None else None
        if event is not None and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            return event
    return None
