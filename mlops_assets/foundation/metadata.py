"""Values as Dagster's pages show them best.

What belongs here: rounding, cutting and wrapping of numbers, frames and pictures. What does not: what they mean.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

from mlops_assets.foundation import plots

MAX_ROWS = 20


def table(frame: pd.DataFrame, *, rows: int = MAX_ROWS, digits: int = 4) -> dg.TableMetadataValue:
    """Show a frame's first rows as a table: rounded, and cut because the page draws every row it gets."""
    names = [str(name) for name in frame.columns]
    kinds = ["float" if pd.api.types.is_numeric_dtype(frame[name]) else "string" for name in frame.columns]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in zip(names, kinds, strict=True)])
    records = [
        dg.TableRecord({name: _cell(value, digits) for name, value in zip(names, row, strict=True)})
        for row in frame.head(rows).itertuples(index=False)
    ]
    return dg.MetadataValue.table(records, schema)


def _cell(value: Any, digits: int) -> str | int | float | bool | None:
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return round(float(value), digits)
    return str(value)


def numbers(values: Mapping[str, float | int | None]) -> dict[str, dg.MetadataValue[Any]]:
    """One number a key, so that each is plotted over time; missing and infinite ones are left out."""
    shown: dict[str, dg.MetadataValue[Any]] = {}
    for name, value in values.items():
        if value is None or not math.isfinite(value):
            continue
        is_count = isinstance(value, int | np.integer)
        shown[name] = dg.MetadataValue.int(int(value)) if is_count else dg.MetadataValue.float(round(float(value), 6))
    return shown


def picture(image: bytes | str, alt: str) -> dg.MarkdownMetadataValue:
    """Show an SVG or PNG."""
    return dg.MetadataValue.md(plots.as_markdown(image, alt))


def column_schema(rows: Sequence[Mapping[str, Any]]) -> dg.TableSchema:
    """Turn a contract's plain description into the schema of the Columns tab.

    Parameters
    ----------
    rows
        One mapping a column: name, type, nullable, description, constraints.
    """
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=str(row["name"]),
                type=str(row["type"]),
                description=str(row.get("description") or "") or None,
                constraints=dg.TableColumnConstraints(
                    nullable=bool(row.get("nullable", True)), other=[str(item) for item in row.get("constraints", [])]
                ),
            )
            for row in rows
        ]
    )
