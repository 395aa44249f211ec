"""What Dagster loads; the real thing is mlops_assets.definitions."""

from mlops_assets.definitions import defs as defs  # noqa: PLC0414 - a re-export
