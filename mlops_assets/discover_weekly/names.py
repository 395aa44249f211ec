"""Asset keys, groups and partitions of one playlist system.

What belongs here: what a spec makes of them. What does not: what all systems share (foundation/names.py).
"""

import dagster as dg

from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation.names import SystemNames, periods


def partitions_of(spec: Spec) -> dg.TimeWindowPartitionsDefinition:
    """Return the weeks from Monday, or the months, of a spec."""
    start = spec.periods.start.isoformat()
    end = spec.periods.end.isoformat() if spec.periods.end else None
    if not spec.data.timed:
        # Listens without times are all of the first period: a later one would hold nothing, or everything again.
        end = spec.periods.shift(start, 1)
    return periods(spec.periods.cadence, spec.periods.start, end, spec.periods.timezone)


class Names(SystemNames):
    """Asset keys and groups of one playlist system."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec.name, partitions_of(spec), spec.training.history_periods)
        self.spec = spec
