"""From a raw feed row with its protected attributes to a score, the way that applications go.

What belongs here: writing applications as their source would hold them, protected columns among them, and taking them
through mapping, separation, payload, contract and features to the model. What does not: changing protected values and
comparing what comes of it (`_bias_probes.py`), and the steps themselves (`applications.py`, `contracts.py`).

A change of a protected value alone must leave payload and score as they were, byte for byte. It does not where the
separation leaves a protected column in, or a feature reads the column that holds it.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_assets.credit_risk._bias_probes import row_bytes
from mlops_assets.credit_risk.applications import canonical_columns, payloads, separated
from mlops_assets.credit_risk.contracts import applications_contract
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.sources import SampleSource

if TYPE_CHECKING:
    from mlops_assets.credit_risk.models import PdModel


class RawFeed:
    """Applications as they stand in their source, and the way from there to a model's scores.

    Parameters
    ----------
    spec, model
        The system, and the model that scores.
    """

    def __init__(self, spec: Spec, model: "PdModel") -> None:
        self.spec, self.model = spec, model
        sources = (spec.data.protected, spec.data.applications)
        self._names: dict[str, str] = {}
        for source in sources:
            if source is not None and not isinstance(source, SampleSource):
                self._names |= source.columns
        self._own = ["application_id", *(name for name in canonical_columns(spec) if name != "application_id")]

    def write(self, typed: pd.DataFrame, protected: pd.DataFrame) -> pd.DataFrame:
        """Return raw rows under the source's names; a protected value stands where a feature would read it, too."""
        there = [name for name in self._own if name in typed.columns]
        raw = {self._names.get(name, name): typed[name].astype(object).to_numpy() for name in there}
        raw |= {self.column(str(name)): protected[name].to_numpy() for name in protected.columns}
        return pd.DataFrame(raw)

    def column(self, attribute: str) -> str:
        """Return the source column of a protected attribute."""
        return self._names.get(attribute, attribute)

    def score(self, raw: pd.DataFrame) -> list[bytes]:
        """Return what is kept of each row and its score, in bytes: no score where the contract refuses the row."""
        texts = self._payloads(raw)
        typed = self._typed(texts)
        features = self.model.schema.matrix(typed)
        scores = row_bytes(self.model.predict(features)) if len(features) else []
        by_row = dict(zip(typed.index.tolist(), scores, strict=True))
        return [text.encode() + b"\n" + by_row.get(row, b"") for row, text in enumerate(texts)]

    def accepted(self, raw: pd.DataFrame) -> pd.DataFrame:
        """Return the raw rows that the contract accepts: a row without a score cannot change it."""
        return raw.iloc[self._typed(self._payloads(raw)).index.to_numpy()].reset_index(drop=True)

    def _payloads(self, raw: pd.DataFrame) -> list[str]:
        named = {name: self._names.get(name, name) for name in (*self._own, *self.spec.protected_names)}
        frame = pd.DataFrame({name: raw[column] for name, column in named.items() if column in raw.columns})
        frame, _ = separated(self.spec, frame.reset_index(drop=True))
        return payloads(frame)

    def _typed(self, texts: list[str]) -> pd.DataFrame:
        rows: list[Mapping[str, Any]] = [json.loads(text) for text in texts]
        # When it is decided makes no difference to a score: it must not be before the applications.
        contract = replace(applications_contract(self.spec, datetime(2200, 1, 1, tzinfo=UTC)), unique=())
        frame = pd.DataFrame({name: [row.get(name) for row in rows] for name in contract.names}, dtype=object)
        return contract.split(frame, where="flip test").accepted


def some(column: "pd.Series[Any]") -> list[Any]:
    """At most five values of a column: its smallest, its largest and some between."""
    distinct = sorted(column.dropna().unique().tolist(), key=lambda value: (str(type(value)), value))
    if not distinct:
        return []
    return [distinct[place] for place in np.unique(np.linspace(0, len(distinct) - 1, 5).round().astype(int)).tolist()]
