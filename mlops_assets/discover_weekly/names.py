"""Asset keys, groups and partitions of one playlist system.

What belongs here: what a spec makes of them. What does not: what all systems share (foundation/names.py).
"""

import dagster as dg

from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation import names
from mlops_assets.foundation.names import SystemNames


def partitions_of(spec: Spec) -> dg.TimeWindowPartitionsDefinition:
    """Return the weeks from Monday, or the months, of a spec."""
    return names.partitions_of(spec.periods, timed=spec.data.timed)


class Names(SystemNames):
    """Asset keys and groups of one playlist system."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec.name, partitions_of(spec), spec.training.history_periods)
        self.spec = spec
