"""Three machine-learning products on Dagster: one foundation, and as many gates as the risk asks for.

What belongs here: the version, and the switches that keep every dependency from phoning home. They are set
before any dependency is imported, and a value that the user has set already wins.
"""

import os

__version__ = "0.1.0"

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "WHYLOGS_NO_ANALYTICS": "1",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    "EVIDENTLY_DISABLE_TELEMETRY": "1",
}
for _name, _value in TELEMETRY_OFF.items():
    os.environ.setdefault(_name, _value)
