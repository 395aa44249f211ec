"""Asset keys, groups and partitions of one system.

What belongs here: how a system's pieces are called and which periods they come in. What does not: what they do.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from mlops_assets.foundation.specs import Periods


def partitions_of(periods: Periods, *, timed: bool) -> dg.TimeWindowPartitionsDefinition:
    """Return the days, the weeks from Monday, or the months of a spec; a single one where its rows carry no time."""
    first = periods.start.isoformat()
    end = periods.end.isoformat() if periods.end else None
    if not timed:
        # Rows without times are all of the first period: a later one would hold nothing, or everything again.
        end = periods.shift(first, 1)
    if periods.cadence == "daily":
        return dg.DailyPartitionsDefinition(first, end_date=end, timezone=periods.timezone)
    if periods.cadence == "weekly":
        # The day of the week is Dagster's Sunday unless it is said.
        return dg.WeeklyPartitionsDefinition(first, end_date=end, day_offset=1, timezone=periods.timezone)
    return dg.MonthlyPartitionsDefinition(first, end_date=end, timezone=periods.timezone)


class SystemNames:
    """Asset keys and groups of one system.

    Parameters
    ----------
    system
        The system's name, which is the prefix of its keys.
    partitions
        Its periods.
    history
        Periods that its models look back on.
    """

    def __init__(self, system: str, partitions: dg.TimeWindowPartitionsDefinition, history: int) -> None:
        self.system, self.partitions, self.history = system, partitions, history
        # A backfill makes one run a period, so that a period can fail and be tried again by itself.
        self.by_period: dict[str, Any] = {
            "partitions_def": partitions,
            "backfill_policy": dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
        }

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of an asset of this system."""
        return dg.AssetKey([self.system, asset])

    def group(self, team: str) -> str:
        """Return the group of a team's assets."""
        return f"{self.system}__{team}"

    def inputs(self, *assets: str) -> dict[str, dg.AssetIn]:
        """Return the inputs of an asset that takes these assets of this system by their names."""
        return {asset: dg.AssetIn(key=self.key(asset)) for asset in assets}

    def looking_back(self, asset: str) -> dg.AssetDep:
        """Depend on an asset's periods as far back as models look."""
        # Without the permission the first periods could not look back beyond the first one.
        mapping = dg.TimeWindowPartitionMapping(
            start_offset=1 - self.history, allow_nonexistent_upstream_partitions=True
        )
        return dg.AssetDep(self.key(asset), partition_mapping=mapping)


def defined_keys(
    assets: Sequence[dg.AssetsDefinition], checks: Sequence[dg.AssetChecksDefinition] = ()
) -> frozenset[str]:
    """Return every asset key and check id of these definitions, as the gates name them."""
    keys = {key.to_user_string() for item in assets for key in item.keys}
    specs = [spec for item in (*assets, *checks) for spec in item.check_specs]
    return frozenset(keys | {f"{spec.asset_key.to_user_string()}:{spec.name}" for spec in specs})
