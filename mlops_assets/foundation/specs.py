"""From a YAML file to a validated spec, with every wrong setting named at once.

What belongs here: reading the file, validating it against a model, what all specs share. What does not: the settings of
any one system.
"""

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops_assets.foundation.errors import UserError

_NAME = re.compile(r"^[a-z][a-z0-9_]{1,40}$")

Cadence = Literal["daily", "weekly", "monthly"]


class Block(BaseModel):
    """Settings that belong together; an unknown one is an error, and none changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SpecModel = TypeVar("SpecModel", bound=Block)


def read_yaml(path: Path) -> dict[str, object]:
    """Return the settings of a YAML file.

    Raises
    ------
    UserError
        The file is missing, cannot be read, is not YAML, or holds no settings.
    """
    import yaml

    if not path.is_file():
        raise UserError("there is no such file", where=str(path), remedy="give the path of a spec's YAML file.")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), remedy="make it readable.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read as YAML: {error}", where=str(path), remedy="mend the line it names."
        ) from error
    if not isinstance(raw, dict):
        raise UserError("holds no settings", where=str(path), remedy="write `name:`, `data:`, … at the top level.")
    return raw


def validated(model: type[SpecModel], raw: Mapping[str, object], *, where: str, base: Path) -> SpecModel:
    """Build a spec from plain values; errors list every wrong setting at once."""
    try:
        return model.model_validate({**raw, "base": base})
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
        raise UserError(
            f"{error.error_count()} setting(s) cannot be used: {lines}",
            where=where,
            remedy="correct them; the README lists every setting.",
        ) from error


def schema_name(value: str) -> str:
    """Return a name that can be the prefix of asset keys and the schema of tables, or raise ValueError."""
    if not _NAME.match(value):
        msg = f"name {value!r} must be lower-case letters, digits and underscores, and start with a letter"
        raise ValueError(msg)
    return value


def time_zone(value: str) -> str:
    """Return the name of a time zone, or raise ValueError."""
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{value!r} is no time zone; write one such as UTC or Europe/Stockholm") from error
    return value


def starts_a_period(cadence: Cadence, start: date) -> None:
    """Raise ValueError where ``start`` is not the first day of a period."""
    if cadence == "weekly" and start.weekday() != 0:
        raise ValueError(f"periods.start {start} is a {start:%A}; weeks start on Monday")
    if cadence == "monthly" and start.day != 1:
        raise ValueError(f"periods.start {start} is not the first of a month")


def shifted(cadence: Cadence, period: str, by: int) -> str:
    """Return the key of the period that lies ``by`` periods after ``period``."""
    units = {"daily": "days", "weekly": "weeks", "monthly": "months"}
    return (pd.Timestamp(period) + pd.DateOffset(**{units[cadence]: by})).strftime("%Y-%m-%d")  # type: ignore[arg-type]
