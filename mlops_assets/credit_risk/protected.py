"""Protected attributes on their way into a table of their own.

What belongs here: reading their values, and keeping the latest of every application. What does not: everything else
about an application; nothing but the bias report reads this table.

A value that cannot be read, or is not possible, counts as unknown. It is shown nowhere: no message, log line or row in
quarantine ever holds a protected attribute.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk._frames import append_texts, ids_of, together
from mlops_assets.credit_risk.applications import by_period, protected_inline
from mlops_assets.credit_risk.batches import protected_columns
from mlops_assets.credit_risk.contracts import TEXT_CHARACTERS, protected_contract
from mlops_assets.credit_risk.spec import Protected, Spec
from mlops_assets.foundation.contracts import Mask, coerce
from mlops_assets.foundation.resources import Tables, Warehouse
from mlops_assets.foundation.sources import SampleSource, read


class ProtectedStage:
    """The protected attributes that an ingestion meets, in a temporary table until they are written.

    Attributes
    ----------
    unreadable
        Values that count as unknown because they cannot be read or are not possible, by attribute.
    """

    def __init__(self, tables: Tables, spec: Spec) -> None:
        self._tables, self._spec, self._rows = tables, spec, 0
        self._found: set[str] = set()
        self.unreadable: Counter[str] = Counter()
        body = ", ".join(f'"{name}" {kind}' for name, kind in protected_columns(spec).items())
        tables.execute(f"create or replace temp table protected_incoming (nr bigint, {body})")

    @property
    def missing(self) -> tuple[str, ...]:
        """The attributes that no source had as a column."""
        return tuple(name for name in self._spec.protected_names if self._rows and name not in self._found)

    def add(self, parts: Sequence[pd.DataFrame]) -> None:
        """Take raw rows in: ``application_id`` and the protected attributes that are there."""
        if not parts:
            return
        raw = together(parts, [])
        columns: dict[str, Any] = {"application_id": ids_of(raw)}
        for attribute in self._spec.protected:
            if attribute.name in raw.columns:
                self._found.add(attribute.name)
                columns[attribute.name], wrong = _values(raw[attribute.name], attribute)
                self.unreadable[attribute.name] += int(wrong.sum())
        self.unreadable += Counter()  # drops the zeros
        frame = pd.DataFrame(columns)
        frame["nr"] = np.arange(self._rows, self._rows + len(frame))
        self._rows += len(frame)
        append_texts(self._tables, "protected_incoming", frame[frame["application_id"].notna()])

    def read(self, periods: Sequence[str], warehouse: Warehouse) -> None:
        """Take in the rows of a source of their own, where there is one.

        Raises
        ------
        UserError
            It cannot be read, or has no column application_id.
        """
        source, spec = self._spec.data.protected, self._spec
        if source is None or isinstance(source, SampleSource) or protected_inline(spec):
            return
        contract = protected_contract(spec)
        for block, _ in by_period(source, periods):
            for frame, _, where in read(block, contract.names, warehouse=warehouse, base=spec.base):
                contract.check_columns(frame, where=where)
                self.add([frame])

    def write(self) -> None:
        """Keep the attributes of every application that has just come, in the place of what was known before."""
        names = ", ".join(f'"{name}"' for name in protected_columns(self._spec))
        table = f"{self._spec.name}.protected_attributes"
        come = "application_id in (select application_id from incoming)"
        self._tables.execute(
            f"delete from {table} where application_id in (select application_id from protected_incoming) and {come}"
        )
        self._tables.execute(
            f"insert into {table} ({names}) select {names} from protected_incoming where {come} "
            "qualify row_number() over (partition by application_id order by nr desc) = 1 order by application_id"
        )


def _values(raw: "pd.Series[Any]", attribute: Protected) -> "tuple[pd.Series[Any], Mask]":
    """Return typed values, missing where they are unknown, and which of them are there but of no use."""
    if attribute.edges:
        values, wrong = coerce(raw, "number")
        low = -np.inf if attribute.low is None else attribute.low
        high = np.inf if attribute.high is None else attribute.high
        impossible = (values < low) | (values > high)
        return values.where(~impossible), wrong | impossible.to_numpy(dtype=bool)
    values, wrong = coerce(raw, "text")
    long = values.map(lambda value: isinstance(value, str) and len(value) > TEXT_CHARACTERS).astype(bool)
    return values.where(~long, None), wrong | long.to_numpy(dtype=bool)
