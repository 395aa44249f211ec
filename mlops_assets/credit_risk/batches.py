"""The tables of applications, and which batch counts for a period.

What belongs here: their columns, the current batch, its status and facts, and the profile of a period. What does not:
how batches come in (`ingestion.py`) and are judged (`batch_rules.py`).
"""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from mlops_assets.credit_risk.batch_facts import BatchFacts
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.resources import Tables, Warehouse

if TYPE_CHECKING:
    from mlops_assets.foundation.profiling import Profile

Status = Literal["accepted", "blocked"]

BATCHES: Mapping[str, str] = {
    "batch_id": "varchar", "period": "date", "sha256": "varchar", "rows": "bigint", "received_at": "timestamp",
    "source": "varchar", "run_id": "varchar", "status": "varchar",
}  # fmt: skip
FACTS: Mapping[str, str] = {
    "batch_id": "varchar", "period": "date", "facts": "varchar", "findings": "varchar", "contract": "varchar",
}  # fmt: skip
RAW: Mapping[str, str] = {"batch_id": "varchar", "row": "bigint", "source": "varchar", "payload": "varchar"}
QUARANTINED: Mapping[str, str] = {
    "batch_id": "varchar", "period": "date", "source": "varchar", "row": "bigint", "application_id": "varchar",
    "rule": "varchar", "column": "varchar", "value": "varchar", "bound": "varchar", "raw": "varchar",
}  # fmt: skip


def accepted_columns(spec: Spec) -> dict[str, str]:
    """Return the columns of the accepted applications."""
    own = {
        "batch_id": "varchar", "period": "date", "source": "varchar", "row": "bigint", "application_id": "varchar",
        "applicant_id": "varchar", "applied_at": "timestamp", "payload_sha256": "varchar",
    }  # fmt: skip
    numbers = {each.name: "double" for each in spec.numeric}
    return {**own, **numbers, **{each.name: "varchar" for each in spec.categorical}}


def protected_columns(spec: Spec) -> dict[str, str]:
    """Return the columns of the protected attributes."""
    kinds = {each.name: "double" if each.edges else "varchar" for each in spec.protected}
    return {"application_id": "varchar", **kinds}


def ensure_tables(tables: Tables, spec: Spec) -> None:
    """Create what is not there yet; a feature that is new to the spec becomes a column that earlier rows lack."""
    wanted = {
        "batches": BATCHES, "batch_facts": FACTS, "raw_applications": RAW, "quarantined_applications": QUARANTINED,
        "accepted_applications": accepted_columns(spec), "protected_attributes": protected_columns(spec),
    }  # fmt: skip
    for name, columns in wanted.items():
        table, quoted = f"{spec.name}.{name}", {f'"{column}"': kind for column, kind in columns.items()}
        tables.ensure(table, quoted)
        there = set(tables.query(f"select * from {table} limit 0").columns)
        for column, kind in columns.items():
            if column not in there:
                tables.execute(f'alter table {table} add column "{column}" {kind}')
    tables.execute(f"create or replace view {spec.name}.current_batches as {_current(spec)}")
    tables.execute(
        f"create or replace view {spec.name}.current_applications as select a.* from {spec.name}.accepted_applications "
        f"as a where a.batch_id in (select batch_id from {spec.name}.current_batches)"
    )


def _current(spec: Spec) -> str:
    return (
        f"select * from {spec.name}.batches where status = 'accepted' "
        "qualify row_number() over (partition by period order by received_at desc, batch_id desc) = 1"
    )


def contract_version(spec: Spec) -> str:
    """Return the hash of all settings that decide which rows and batches are accepted."""
    included = {"numeric", "categorical", "ratios", "checks", "data", "periods"}
    settings = json.loads(spec.model_dump_json(include=included))
    settings["data"] = {name: settings["data"][name] for name in ("timed", "numbered", "code_list_version")}
    settings["periods"] = {name: settings["periods"][name] for name in ("cadence", "timezone")}
    return sha256_hex(canonical_json(settings))[:16]


def facts_before(tables: Tables, spec: Spec, period: str, most: int) -> list[BatchFacts]:
    """Return the facts of the current batches before a period, oldest first."""
    found = tables.query(
        f"select facts from {spec.name}.batch_facts join {spec.name}.current_batches using (batch_id) "
        f"where current_batches.period < cast(? as date) order by current_batches.period desc limit {most}",
        [period],
    )
    return [BatchFacts.from_dict(json.loads(text)) for text in reversed(found["facts"].tolist())]


def set_batch_status(tables: Tables, spec: Spec, batch_id: str, status: Status) -> None:
    """Accept a blocked batch after somebody has looked at it, or withdraw an accepted one.

    Raises
    ------
    UserError
        There is no such batch.
    """
    table = f"{spec.name}.batches"
    if not tables.exists(table) or tables.query(f"select 1 from {table} where batch_id = ?", [batch_id]).empty:
        raise UserError(f"there is no batch {batch_id!r}", where=table, remedy="take an id that this table lists.")
    tables.execute(f"update {table} set status = ? where batch_id = ?", [status, batch_id])


def profile_of(spec: Spec, warehouse: Warehouse, period: str, columns: Iterable[str] | None = None) -> "Profile":
    """Return the profile of a period's accepted applications: the features by default."""
    from mlops_assets.foundation.profiling import profile

    names = ", ".join(f'"{name}"' for name in (columns or spec.features))
    sql = f"select {names} from {spec.name}.current_applications where period = cast('{period}' as date)"
    return profile(warehouse.stream(sql, rows=200_000))
