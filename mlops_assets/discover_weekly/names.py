"""Asset keys, groups and partitions of one playlist system.

What belongs here: how the system's pieces are called. What does not: what they do.
"""

from typing import Any

import dagster as dg

from mlops_assets.discover_weekly.spec import Spec


def partitions_of(spec: Spec) -> dg.TimeWindowPartitionsDefinition:
    """Return the weeks from Monday, or the months, of a spec."""
    start = spec.periods.start.isoformat()
    end = spec.periods.end.isoformat() if spec.periods.end else None
    if not spec.data.timed:
        # Listens without times are all of the first period: a later one would hold nothing, or everything again.
        end = spec.periods.shift(start, 1)
    if spec.periods.cadence == "weekly":
        # The day of the week is Dagster's Sunday unless it is said.
        return dg.WeeklyPartitionsDefinition(start, end_date=end, day_offset=1, timezone=spec.periods.timezone)
    return dg.MonthlyPartitionsDefinition(start, end_date=end, timezone=spec.periods.timezone)


class Names:
    """Asset keys and groups of one system."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.partitions = partitions_of(spec)
        # A backfill makes one run a period, so that a period can fail and be tried again by itself.
        self.by_period: dict[str, Any] = {
            "partitions_def": self.partitions,
            "backfill_policy": dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
        }

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of an asset of this system."""
        return dg.AssetKey([self.spec.name, asset])

    def group(self, team: str) -> str:
        """Return the group of a team's assets."""
        return f"{self.spec.name}__{team}"

    def inputs(self, *assets: str) -> dict[str, dg.AssetIn]:
        """Return the inputs of an asset that takes these assets of this system by their names."""
        return {asset: dg.AssetIn(key=self.key(asset)) for asset in assets}

    def looking_back(self, asset: str) -> dg.AssetDep:
        """Depend on an asset's periods as far back as models look."""
        back = 1 - self.spec.training.history_periods
        # Without the permission the first periods could not look back beyond the first one.
        mapping = dg.TimeWindowPartitionMapping(start_offset=back, allow_nonexistent_upstream_partitions=True)
        return dg.AssetDep(self.key(asset), partition_mapping=mapping)
