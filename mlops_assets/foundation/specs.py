"""From a YAML file to a validated spec, with every wrong setting named at once.

What belongs here: reading the file, validating it against a model, what all specs share. What does not: the settings of
any one system.
"""

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlops_assets.foundation.errors import UserError

_NAME = re.compile(r"[a-z][a-z0-9_]{1,40}")
# Schemas that warehouses have already, and the words that DuckDB reserves: as a schema's name each is another thing.
_WORDS = frozenset(
    """
    main temp system information_schema pg_catalog
    all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create default
    deferrable desc describe distinct do else end except false fetch for foreign from group having in initially
    intersect into lambda lateral leading limit not null offset on only or order pivot pivot_longer pivot_wider placing
    primary qualify references returning select show some summarize symmetric table then to trailing true union unique
    unpivot using variadic when where window with
    """.split()  # noqa: SIM905 - eighty lines of one word each say less
)

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
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())  # noqa: S506 - it is a safe loader
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), remedy="make it readable.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read as YAML: {error}", where=str(path), remedy="mend the line it names."
        ) from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError("holds no settings", where=str(path), remedy="write `name:`, `data:`, … at the top level.")
    return raw


def _loader() -> Any:
    """Return YAML's safe loader, made to refuse a setting that is given twice: it would take the last one silently."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                if str(key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"given twice: {key.value!r}", key.start_mark)
                seen.add(str(key.value))
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    return Loader


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
    if not _NAME.fullmatch(value):
        msg = f"name {value!r} must be lower-case letters, digits and underscores, and start with a letter"
        raise ValueError(msg)
    if value in _WORDS:
        raise ValueError(f"name {value!r} is a word of SQL; add one of your own, such as {value}_model")
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


class Periods(Block):
    """The rhythm of a system: how long a partition is, where the first one starts, and when the schedule runs."""

    cadence: Cadence = Field("daily", description="How long one partition is: a day, a week from Monday, or a month.")
    start: date = Field(description="First day of the first period: of a week a Monday, of a month the first.")
    end: date | None = Field(None, description="First day after the last period; open-ended when absent.")
    timezone: str = Field("UTC", description="Time zone of the period boundaries and of the schedule.")
    hour: int = Field(6, ge=0, le=23, description="Hour of the day at which the schedule runs.")
    late_after_hours: float = Field(
        6.0, gt=0, le=120, description="Hours after the schedule at which what is due counts as late."
    )

    @field_validator("timezone")
    @classmethod
    def _is_a_time_zone(cls, value: str) -> str:
        return time_zone(value)

    @model_validator(mode="after")
    def _starts_a_period(self) -> Self:
        starts_a_period(self.cadence, self.start)
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"periods.end {self.end} is not after periods.start {self.start}")
        return self

    def shift(self, period: str, by: int) -> str:
        """Return the key of the period that lies ``by`` periods after ``period``."""
        return shifted(self.cadence, period, by)
