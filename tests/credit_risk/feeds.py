"""A small feed of applications and outcomes in files, for tests: every row is in order unless a test spoils it."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk.spec import Spec, parse_spec
from mlops_assets.foundation.resources import Warehouse
from tests.conftest import merged

MakeFeed = Callable[..., Spec]

# Mondays to Thursdays of March 2024; long past, so that nothing is in the future by accident.
DAYS = ("2024-03-04", "2024-03-05", "2024-03-06", "2024-03-07")
NOW = datetime(2025, 6, 1, tzinfo=UTC)

FEED: Mapping[str, Any] = {
    "name": "loans",
    "periods": {"start": "2024-03-01"},
    "numeric": [
        {"name": "income", "theme": "money", "low": 1_000, "high": 500_000, "risk": "falls", "nullable": False},
        {"name": "amount", "theme": "money", "low": 100, "high": 100_000, "risk": "rises"},
        {"name": "months_late", "theme": "history", "low": 0, "high": 120, "special": {-9: "no file"},
         "replace": {"none": "-9"}},
    ],
    "categorical": [
        {"name": "purpose", "theme": "purpose", "levels": ["car", "home", "other"]},
        {"name": "branch", "theme": "purpose"},
    ],
    "ratios": [{"numerator": "income", "denominator": "amount", "low": 0.05, "high": 1_000}],
    "protected": [{"name": "sex"}, {"name": "age", "edges": [25, 60], "low": 16, "high": 120}],
    "themes": {
        "money": {"sentence": "Your income is low for the amount."},
        "history": {"sentence": "Payments were late before."},
        "purpose": {"sentence": "The purpose or the branch of the loan."},
    },
    "training": {"minimum_goods": 4, "minimum_bads": 2, "history_periods": 400},
    "target": {"maturity_days": 30},
}  # fmt: skip


def feed_spec(folder: Path, **over: Any) -> Spec:
    """The feed's spec, a file a day in ``folder``; ``timed`` whole feeds come from `whole`."""
    data = {"applications": {"kind": "files", "path": str(folder / "{period}.csv")}}
    return parse_spec(merged(merged(FEED, {"data": data}), over), where="test", base=folder)


def applications(day: str, rows: int = 60, *, first: int = 1, **columns: Any) -> pd.DataFrame:
    """Return raw applications of a day as a file holds them; ``columns`` overwrite whole columns or give values."""
    draws = np.random.default_rng(_seed(day, first))
    frame = pd.DataFrame(
        {
            "application_id": [f"{day}-{number:04d}" for number in range(first, first + rows)],
            "applicant_id": [f"P{day[-2:]}{number:05d}" for number in range(first, first + rows)],
            "applied_at": [f"{day}T{8 + number % 12:02d}:{number % 60:02d}:00Z" for number in range(rows)],
            "income": np.round(np.exp(draws.normal(10.3, 0.4, rows)), 2),
            "amount": np.round(np.exp(draws.normal(8.5, 0.4, rows)), 2),
            "months_late": np.where(draws.random(rows) < 0.2, -9, draws.integers(0, 60, rows)),
            "purpose": draws.choice(["car", "home", "other"], rows),
            "branch": draws.choice(["north", "south"], rows),
            "sex": draws.choice(["female", "male"], rows),
            "age": draws.integers(18, 80, rows),
        }
    ).astype(object)
    for name, values in columns.items():
        frame[name] = values
    return frame


def _seed(day: str, first: int) -> int:
    return int(day.replace("-", "")) * 100_003 + first


def write(folder: Path, day: str, frame: pd.DataFrame, *lines: str) -> Path:
    """Write a day's file, and further raw lines below it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{day}.csv"
    path.write_text(frame.to_csv(index=False) + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def with_cells(frame: pd.DataFrame, cells: Mapping[tuple[int, str], Any]) -> pd.DataFrame:
    """Return the frame with single values replaced, by position and column."""
    spoilt = frame.copy()
    for (position, column), value in cells.items():
        spoilt.iloc[position, spoilt.columns.get_loc(column)] = value
    return spoilt


def table(warehouse: Warehouse, spec: Spec, name: str) -> pd.DataFrame:
    """Return a whole table, sorted."""
    return warehouse.query(f"select * from {spec.name}.{name} order by all")


def quarantine(warehouse: Warehouse, spec: Spec) -> pd.DataFrame:
    """Return the quarantine, one row a broken rule."""
    return table(warehouse, spec, "quarantined_applications")


def rules_of(warehouse: Warehouse, spec: Spec) -> dict[str, list[tuple[Any, ...]]]:
    """Return (row, column, value, bound) of every broken rule."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for row in quarantine(warehouse, spec).itertuples():
        found.setdefault(str(row.rule), []).append((row.row, row.column, row.value, row.bound))
    return found


def history(spec: Spec, folder: Path, days: Sequence[str], rows: int = 60) -> None:
    """Write ordinary files for these days."""
    for day in days:
        write(folder, day, applications(day, rows))
