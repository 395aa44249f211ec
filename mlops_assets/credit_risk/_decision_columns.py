"""Decisions as the columns of a table.

What belongs here: which columns there are and how a decision fills them. What does not: which entries are asked for
(`decision_log.py`).
"""

from collections.abc import Mapping
from sys import intern
from typing import Any

import pandas as pd

COLUMNS = (
    "decision_id", "application_id", "period", "batch_id", "channel", "decided_at", "pd", "margin", "points",
    "decision", "rule", "theme", "model_version", "model_sha256", "policy_version", "context_sha256",
)  # fmt: skip
"""``theme`` is that of the first reason."""

_NUMBERS = {"pd": "float64", "margin": "float64", "points": "Int64"}


class DecisionColumns:
    """The columns of a table that grows by a decision at a time; as text, repeated values are kept once."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def add(self, body: Mapping[str, Any], context: Mapping[str, Any]) -> None:
        """Add what an entry says of a decision, or of a rescored one, with its context."""
        result, model = body["result"], context["model"]
        reasons = result["reasons"]
        values = (
            body["decision_id"],
            body["application_id"],
            _once(body["period"]),
            _once(body["batch_id"]),
            _once(body["channel"]),
            _once(body["decided_at"]),
            _number(result["pd"]),
            _number(result["margin"]),
            result["points"],
            _once(result["decision"]),
            _once(result["rule"]),
            _once(reasons[0]["theme"]) if reasons else None,
            _once(str(model["version"])),
            _once(model["sha256"]),
            _once(str(context["policy"]["version"])),
            _once(body["context_sha256"]),
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def frame(self) -> pd.DataFrame:
        """Return the table."""
        return pd.DataFrame(
            {name: pd.Series(values, dtype=_NUMBERS.get(name, "object")) for name, values in self._columns.items()}
        )


def _once(value: str | None) -> str | None:
    return None if value is None else intern(value)


def _number(text: str | None) -> float:
    return float("nan") if text is None else float.fromhex(text)
