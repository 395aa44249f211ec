"""One credit model's definitions.

What belongs here: putting assets, checks, jobs, schedule and sensor together, and proving that the risk profile's gates
are among them. What does not: resources (definitions.py) and what any asset does.
"""

import warnings
from collections.abc import Mapping, Sequence

import dagster as dg

from mlops_assets.credit_risk import automation
from mlops_assets.credit_risk.data_assets import build_data_assets
from mlops_assets.credit_risk.decision_assets import build_decision_assets
from mlops_assets.credit_risk.governance import governance_jobs
from mlops_assets.credit_risk.model_assets import build_model_assets
from mlops_assets.credit_risk.names import Names
from mlops_assets.credit_risk.review_assets import build_review_assets
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation.names import defined_keys
from mlops_assets.foundation.risk import require_gates


def build_defs(spec: Spec, environment: Environment) -> dg.Definitions:  # noqa: ARG001 - every system takes one
    """Return the definitions of the credit model that a spec describes; resources are bound by the code location.

    Raises
    ------
    UserError
        The risk profile asks for a gate that these definitions do not provide.
    """
    # What is beta here (looking back beyond the first period, backfill policies) is pinned with Dagster's version.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _assembled(spec)


def _assembled(spec: Spec) -> dg.Definitions:
    names = Names(spec)
    assets = [
        *build_data_assets(spec, names),
        *build_model_assets(spec, names),
        *build_decision_assets(spec, names),
        *build_review_assets(spec, names),
    ]
    require_gates(spec.risk, spec.name, provided_gates(spec), defined_keys(assets))
    jobs = {job.name: job for job in automation.jobs_of(spec, names)}
    return dg.Definitions(
        assets=assets,
        jobs=[*jobs.values(), *governance_jobs(spec)],
        # Applications without times are one period: there is no next one to ask for.
        schedules=[automation.schedule(spec, jobs[f"{spec.name}_daily"])] if spec.data.timed else [],
        sensors=[automation.retraining_sensor(spec, jobs[f"{spec.name}_train"])],
    )


def provided_gates(spec: Spec) -> Mapping[str, Sequence[str]]:
    """Return which assets and checks realise which gate of the risk profile."""
    name = spec.name
    return {
        "contract": [f"{name}/applications:few_rows_in_quarantine"],
        "profile": [f"{name}/applications:applications_match_profile", f"{name}/applications:batches_are_sound"],
        "drift": [f"{name}/drift_report:applications_have_not_drifted"],
        "freshness": [f"{name}/decisions"],
        "outliers": [f"{name}/outlier_flags:few_outliers"],
        "incident": [f"{name}/applications:no_data_incident_is_open"],
        "accuracy": [f"{name}/evaluation"],
        "champion_comparison": [f"{name}/champion"],
        "interval_coverage": [f"{name}/evaluation"],
        "monitoring": [f"{name}/realised_performance:the_champion_has_not_decayed"],
        "calibration": [f"{name}/evaluation"],
        "bias_report": [f"{name}/bias_report"],
        "explanations": [f"{name}/explanations", f"{name}/decisions:every_rejection_has_a_reason"],
        "model_card": [f"{name}/model_card"],
        "completeness": [f"{name}/decisions:every_application_is_decided"],
        "shadow": [f"{name}/evaluation"],
        "approval": [f"{name}/champion"],
        "trace": [f"{name}/decisions:the_log_is_unbroken", f"{name}/decisions:decisions_replay"],
    }
