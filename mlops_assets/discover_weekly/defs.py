"""One playlist system's definitions.

What belongs here: putting assets, checks, job, schedule and sensor together, and proving that the risk profile's gates
are among them. What does not: resources (definitions.py) and what any asset does.
"""

import warnings
from collections.abc import Mapping, Sequence

import dagster as dg

from mlops_assets.discover_weekly import automation
from mlops_assets.discover_weekly.assets import build_assets
from mlops_assets.discover_weekly.checks import interactions_checks
from mlops_assets.discover_weekly.dbt_assets import build_dbt_assets
from mlops_assets.discover_weekly.names import Names
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.environment import Environment
from mlops_assets.foundation.names import defined_keys
from mlops_assets.foundation.risk import require_gates


def build_defs(spec: Spec, environment: Environment) -> dg.Definitions:
    """Return the definitions of the system that a spec describes; resources are bound by the code location.

    Raises
    ------
    UserError
        The risk profile asks for a gate that these definitions do not provide.
    """
    # What is beta here (looking back beyond the first period, backfill policies) is pinned with Dagster's version.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _assembled(spec, environment)


def _assembled(spec: Spec, environment: Environment) -> dg.Definitions:
    names = Names(spec)
    assets = [*build_assets(spec), *build_dbt_assets(spec, names, environment)]
    checks = interactions_checks(spec, names)
    require_gates(spec.risk, spec.name, provided_gates(spec), defined_keys(assets, checks))
    everything = dg.AssetSelection.assets(*[key for item in assets for key in item.keys])
    job, deliver = automation.refresh_job(spec, everything), automation.deliver_job(spec, names)
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=[job, deliver, automation.ingest_job(spec, names)],
        # Listens without times are one period: there is no next one to ask for.
        schedules=[automation.schedule(spec, job)] if spec.data.timed else [],
        sensors=[automation.team_sensor(spec, names), automation.deliver_anyway(spec, job, deliver)],
    )


def provided_gates(spec: Spec) -> Mapping[str, Sequence[str]]:
    """Return which assets and checks realise which gate of the risk profile."""
    name = spec.name
    return {
        "contract": [f"{name}/listens:few_rows_in_quarantine"],
        "profile": [f"{name}/listens:listens_match_profile", f"{name}/interactions:interactions_match_profile"],
        "drift": [
            f"{name}/listens:listens_have_not_drifted",
            f"{name}/interactions:interactions_have_not_drifted",
        ],
        "freshness": [f"{name}/published_playlists"],
        "accuracy": [f"{name}/evaluation"],
        "champion_comparison": [f"{name}/champion"],
        "completeness": [f"{name}/playlists:every_user_has_a_playlist", f"{name}/playlists:list_length"],
    }
