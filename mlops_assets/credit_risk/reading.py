"""What operators look up about a credit model: its state in one table.

What belongs here: reading what is recorded. What does not: changing anything, and a single decision (`tracing.py`).
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlops_assets.credit_risk import incidents, pipeline, watching
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation.check_history import latest_checks
from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    import dagster as dg

CHECKS = {
    "applications": (
        "few_rows_in_quarantine", "batches_are_sound", "no_data_incident_is_open", "applications_match_profile",
    ),
    "outcomes": ("outcomes_do_not_contradict",),
    "outlier_flags": ("few_outliers",),
    "decisions": (
        "every_application_is_decided", "every_rejection_has_a_reason", "the_log_is_unbroken", "decisions_replay",
        "the_policy_is_approved",
    ),
    "drift_report": ("applications_have_not_drifted",),
    "decision_mix": ("scores_are_spread_as_before", "decisions_are_spread_as_before", "reasons_are_spread_as_before"),
    "realised_performance": ("the_champion_has_not_decayed",),
}  # fmt: skip


def status_rows(spec: Spec, environment: Environment, instance: "dg.DagsterInstance") -> list[tuple[str, str]]:
    """Return the state of a credit model as rows of name and value."""
    resources: Mapping[str, Any] = environment.resources()
    history = pipeline.history_of(spec, instance, resources["models"].open())
    operations = resources["journals"].open(spec.name, "operations")
    passed, problems, unassessed = latest_checks(instance, spec.name, CHECKS)
    found = incidents.open_incidents(operations)
    return [
        *_champion(history),
        ("open incidents", ", ".join(f"{each.id} ({each.rule} of {each.period})" for each in found) or "none"),
        ("training", f"frozen: {frozen}" if (frozen := incidents.frozen(operations)) else "not frozen"),
        ("quarantine", _counts(resources["warehouse"], spec)),
        ("decisions", _decisions(spec, resources)),
        ("drift", _drift(spec, resources["store"].path())),
        ("checks", f"{passed} passed, {len(problems)} not passed, {len(unassessed)} not assessed"),
        *[("not passed", text) for text in problems],
        *[("not assessed", text) for text in unassessed],
    ]


def _champion(history: Any) -> list[tuple[str, str]]:
    try:
        current = history.current()
    except UserError as error:
        return [("champion", str(error))]
    serving = "none yet"
    if current is not None:
        serving = f"version {current.version} since {current.logged_at:%Y-%m-%d %H:%M} UTC, by {current.by}"
        serving += f" ({current.reason})"
    records = history.records()
    verdict = f"{records[-1].verdict} (candidate {records[-1].candidate}): {records[-1].reason}" if records else "none"
    proposal = history.open_proposal()
    waiting = "none"
    if proposal is not None:
        record = proposal.record
        waiting = f"version {record.candidate}, trained by {record.trained_by}, expires {record.expires_at:%Y-%m-%d}"
    return [("champion", serving), ("last verdict", verdict), ("open proposal", waiting)]


def _counts(warehouse: Any, spec: Spec) -> str:
    table = f"{spec.name}.quarantined_applications"
    with warehouse.session() as tables:
        if not tables.exists(table):
            return "nothing yet"
        found = tables.query(f"select rule, count(*) as n from {table} group by 1 order by 2 desc, 1")
    told = ", ".join(f"{rule} {count:,}" for rule, count in zip(found["rule"], found["n"], strict=True))
    return f"{told} (table {table})" if told else "no rows"


def _decisions(spec: Spec, resources: Mapping[str, Any]) -> str:
    from mlops_assets.credit_risk.decision_log import DecisionLog

    log = DecisionLog(resources["journals"].open(spec.name, "decisions"))
    counted = Counter(str(entry.index["decision"]) for entry in log.journal.read("decision"))
    head = log.head()
    told = ", ".join(f"{name} {count:,}" for name, count in counted.most_common())
    return f"{told}; log of {head.number:,} entries, head {head.sha256[:12]}" if counted else "none yet"


def _drift(spec: Spec, root: Any) -> str:
    found = watching.kept(root, spec, "drift")
    if found is None:
        return "not watched yet"
    period, record = found
    last = record["findings"][-1]
    confirmed = "confirmed" if record["confirmed"] else "not confirmed"
    return f"{last['status']}, {confirmed}, as of {period}: {'; '.join(last['reasons'][:2])}"
