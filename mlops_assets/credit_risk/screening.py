"""Outlier flags of the applications of a period, in their table.

What belongs here: which rows are judged by which model, and where the flags go. What does not: the forest itself
(`outliers.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mlops_assets.credit_risk.outliers import OutlierModel
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.registry import ModelVersion, Registry
from mlops_assets.foundation.resources import Warehouse

FLAGS: Mapping[str, str] = {
    "batch_id": "varchar", "period": "date", "application_id": "varchar", "score": "double", "flagged": "boolean",
    "main_feature": "varchar", "model_version": "bigint",
}  # fmt: skip


@dataclass
class Screened:
    """How many applications were judged, how many are unlike the others, and what sets these apart."""

    rows: int = 0
    flagged: int = 0
    features: Counter[str] = field(default_factory=Counter)
    model: str | None = None

    @property
    def share(self) -> float:
        """Share of the judged applications that are flagged."""
        return self.flagged / self.rows if self.rows else 0.0


def flag_periods(
    spec: Spec, periods: Sequence[str], warehouse: Warehouse, registry: Registry, champion: ModelVersion | None
) -> Screened:
    """Judge the accepted applications of these periods by the champion's outlier model; without one, none is judged."""
    if champion is None:
        return Screened()
    model, schema = OutlierModel.load(registry.fetch(champion)), FeatureSchema.of(spec)
    table, found = f"{spec.name}.outlier_flags", Screened(model=str(champion))
    with warehouse.session() as tables:
        tables.ensure(table, FLAGS)
        for period in periods:
            rows = tables.query(
                f"select * from {spec.name}.current_applications where period = cast(? as date) order by row", [period]
            )
            tables.execute(f"delete from {table} where period = cast(? as date)", [period])
            if rows.empty:
                continue
            flags = model.score(schema.matrix(rows))
            judged = pd.DataFrame(
                {
                    "batch_id": rows["batch_id"],
                    "period": rows["period"],
                    "application_id": rows["application_id"],
                    "score": flags.score,
                    "flagged": flags.flagged,
                    "main_feature": flags.main_feature,
                    "model_version": champion.version,
                }
            )
            tables.append(table, judged[list(FLAGS)])
            found.rows += len(rows)
            found.flagged += int(flags.flagged.sum())
            found.features.update(str(name) for name in flags.main_feature[flags.flagged])
    return found
