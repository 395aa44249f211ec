"""How the feeds of a loan book spell its rows, and what goes wrong on the way: dirt, unit errors, label conflicts.

What belongs here: rows as text and numbers, and their faults. What does not: what is true (`_lending_risk`).
"""

from datetime import date

import numpy as np
import pandas as pd

from mlops_assets.samples import _lending_draws as draws
from mlops_assets.samples._lending_applications import Applications, applications_of
from mlops_assets.samples._lending_risk import settled_of
from mlops_assets.samples._lending_tables import (
    INTEGERS,
    LEVELS,
    NUMERIC,
    ORIGINS,
    PROTECTED,
    SEXES,
    Bools,
    Floats,
    Ints,
    Objects,
)
from mlops_assets.samples._lending_world import World

# Names are what a row is changed into; the last two kinds add a row, the others change one.
DIRT_KINDS = (
    "missing_id", "not_a_number", "decimal_comma", "negative_income", "impossible_age", "unseen_category", "future",
    "duplicate", "id_conflict",
)  # fmt: skip
ID, APPLICANT, AT = "application_id", "applicant_id", "applied_at"
DEFAULT, PAID = "default", "paid"
_UNSEEN = {"purpose": "crypto", "home_ownership": "houseboat", "employment_type": "gig_work", "region": "overseas"}
_FUTURE_DAYS = 364
_CATEGORIES = {**LEVELS, "sex": SEXES, "origin": ORIGINS}


def ids_of(world: World, day: int, slots: Ints) -> Objects:
    """Return ids such as A230901-00001: the date, and the place in the day from 1 on."""
    prefix = f"A{world.date_of(day):%y%m%d}-"
    return np.array([f"{prefix}{slot:05d}" for slot in (slots + 1).tolist()], dtype=object)


def numbered(prefix: str, first: int, count: int, width: int) -> Objects:
    """Return ids such as F000000001, with ``count`` numbers from ``first`` on."""
    return np.array([f"{prefix}{number:0{width}d}" for number in range(first, first + count)], dtype=object)


def typed_frame(applications: Applications, ids: Objects) -> pd.DataFrame:
    """Return rows as a reader without mistakes would have them: numbers as float64, categories as text."""
    columns: dict[str, object] = {ID: ids}
    columns.update({name: applications.numeric[name] for name in NUMERIC})
    for name, levels in _CATEGORIES.items():
        columns[name] = np.array(levels, dtype=object)[applications.codes[name]]
    columns["age"] = applications.age
    order = [ID, *NUMERIC, *LEVELS, *PROTECTED]
    return pd.DataFrame({name: columns[name] for name in order})


def application_rows(world: World, day: int) -> pd.DataFrame:
    """Return the applications of a day as the feed has them."""
    clean = applications_of(world, day)
    typed = typed_frame(clean, ids_of(world, day, np.arange(len(clean))))
    columns: dict[str, Objects] = {}
    for name in typed:
        values = typed[name].to_numpy()
        if name in NUMERIC:
            values = _plain_numbers(values, whole=name in INTEGERS)
        columns[str(name)] = values.astype(object)
    columns[APPLICANT] = np.array([f"P{number:09d}" for number in clean.person.tolist()], dtype=object)
    columns[AT] = _times(world.date_of(day), clean.second)
    order = [ID, APPLICANT, AT, *(str(name) for name in typed if name != ID)]
    frame = pd.DataFrame({name: columns[name] for name in order}, dtype=object)
    _befall_units(world, day, frame)
    return _soiled(world, day, frame)


def _plain_numbers(values: Floats, *, whole: bool) -> Objects:
    """Return Python numbers, None where there is none."""
    absent = np.isnan(values)
    filled = np.where(absent, 0, values)
    plain = (filled.astype(np.int64) if whole else filled).astype(object)
    plain[absent] = None
    return plain


def _times(day: date, seconds: Ints) -> Objects:
    at = np.datetime64(day, "s") + seconds
    return np.array([f"{text}Z" for text in np.datetime_as_string(at, unit="s").tolist()], dtype=object)


# --- Unit errors ---


def unit_error_rows(world: World, day: int) -> Ints:
    """Return the rows of the clean day whose value has the wrong unit: the set share of them, but at least one."""
    rows = len(applications_of(world, day))
    if world.unit_error_share <= 0 or not rows or world.date_of(day) not in world.unit_error_days:
        return np.zeros(0, dtype=np.int64)
    hit = max(1, round(world.unit_error_share * rows))
    order = draws.stream(world, draws.Purpose.UNIT_ERROR, day).permutation(rows)
    return np.sort(order[:hit]).astype(np.int64)


def _befall_units(world: World, day: int, frame: pd.DataFrame) -> None:
    rows = unit_error_rows(world, day)
    if not len(rows):
        return
    values = frame[world.unit_error_column].to_numpy(copy=True)
    factor = world.unit_error_factor
    values[rows] = [int(value * factor) if float(factor).is_integer() else value * factor for value in values[rows]]
    frame[world.unit_error_column] = values


# --- Dirt ---


def dirt_of(world: World, day: int) -> tuple[Ints, Ints]:
    """Return each clean row's kind of dirt (index into `DIRT_KINDS`, -1 if none) and a number for what it chooses."""
    rng = draws.stream(world, draws.Purpose.DIRT, day)
    rows = len(applications_of(world, day))
    draw, choice = rng.random(rows), rng.integers(0, 2**31, rows)
    kinds = np.full(rows, -1, dtype=np.int64)
    dirty = np.flatnonzero(draw < len(DIRT_KINDS) * world.dirt)
    if len(dirty):
        kinds[dirty] = np.minimum(draw[dirty] / world.dirt, len(DIRT_KINDS) - 1).astype(np.int64)
    return kinds, choice


def _soiled(world: World, day: int, frame: pd.DataFrame) -> pd.DataFrame:
    kinds, choice = dirt_of(world, day)
    dirty = np.flatnonzero(kinds >= 0)
    if not len(dirty):
        return frame
    columns = [str(name) for name in frame]
    rows = frame.to_numpy(dtype=object).tolist()
    soiled: list[list[object]] = []
    for row, kind, chosen in zip(rows, kinds.tolist(), choice.tolist(), strict=True):
        if kind < 0:
            soiled.append(row)
        else:
            soiled.extend(_soil(DIRT_KINDS[kind], dict(zip(columns, row, strict=True)), chosen))
    return pd.DataFrame(soiled, columns=columns, dtype=object)


def _soil(kind: str, row: dict[str, object], chosen: int) -> list[list[object]]:
    """Return what becomes of a row: itself, changed, or itself and one more."""
    income, amount = _as_int(row["annual_income"]), _as_int(row["loan_amount"])
    changed: dict[str, object] = dict(row)
    if kind == "missing_id":
        changed[ID] = None
    elif kind == "not_a_number":
        changed[NUMERIC[chosen % len(NUMERIC)]] = "N/A"
    elif kind == "decimal_comma":
        name, value = [("annual_income", income), ("loan_amount", amount)][chosen % 2]
        changed[name] = f"{value:,}".replace(",", ".") + f",{chosen // 2 % 100:02d}"
    elif kind == "negative_income":
        changed["annual_income"] = -income
    elif kind == "impossible_age":
        changed["age"] = 200
    elif kind == "unseen_category":
        column, unseen = list(_UNSEEN.items())[chosen % len(_UNSEEN)]
        changed[column] = unseen
    elif kind == "future":
        at = np.datetime64(str(row[AT]).removesuffix("Z"), "s") + np.timedelta64(_FUTURE_DAYS, "D")
        changed[AT] = f"{at}Z"
    elif kind == "id_conflict":
        changed["loan_amount"] = amount + 100 if amount < 50_000 else amount - 100
    kept = [list(row.values())] if kind in {"duplicate", "id_conflict"} else []
    return [*kept, list(changed.values())]


def _as_int(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


# --- Outcomes ---


def outcome_rows(world: World, day: int) -> pd.DataFrame:
    """Return the outcomes that become known on a day, oldest loans first."""
    ids: list[Objects] = [np.zeros(0, dtype=object)]
    defaulted: list[Bools] = [np.zeros(0, dtype=np.bool_)]
    for made in range(max(0, day - world.maturity_days), day):
        settled = settled_of(world, made)
        low, high = np.searchsorted(settled.known_after, (day - made, day - made + 1))
        if low < high:
            order = np.argsort(settled.slot[low:high])
            ids.append(ids_of(world, made, settled.slot[low:high][order].astype(np.int64)))
            defaulted.append(settled.defaulted[low:high][order])
    found, bad = np.concatenate(ids), np.concatenate(defaulted)
    rng = draws.stream(world, draws.Purpose.OUTCOMES, day)
    second = np.sort(rng.integers(0, 86_400, len(found)))
    contradicted = rng.random(len(found)) < world.label_conflicts
    place = np.repeat(np.arange(len(found)), 1 + contradicted)
    again = np.diff(place, prepend=-1) == 0
    outcome = np.where(bad[place] ^ again, DEFAULT, PAID).astype(object)
    return pd.DataFrame(
        {
            ID: found[place],
            "outcome": outcome,
            "outcome_at": _times(world.date_of(day), second[place]),
        },
        dtype=object,
    )
