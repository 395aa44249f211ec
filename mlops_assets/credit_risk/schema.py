"""What a model sees of an application: the features by name, and the frame they make.

What belongs here: the features with their kinds, bounds, codes and directions, and the one way from typed rows to a
model's columns. What does not: reading raw values (`contracts.py`) and any model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex

_SIGNS: Mapping[str, Literal[-1, 0, 1]] = {"rises": 1, "falls": -1, "free": 0}


@dataclass(frozen=True)
class Feature:
    """One column that models see.

    Parameters
    ----------
    monotone
        1 where a higher value means a higher default probability, -1 a lower one, 0 where it is free.
    low, high
        The possible range; special codes lie outside its meaning.
    special
        Codes that are no quantity, with their meaning.
    levels
        Known values of a category; empty where training decides.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    theme: str
    label: str = ""
    monotone: Literal[-1, 0, 1] = 0
    low: float | None = None
    high: float | None = None
    special: Mapping[float, str] = field(default_factory=dict)
    levels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the feature as plain JSON values."""
        return {**asdict(self), "special": [[code, text] for code, text in sorted(self.special.items())],
                "levels": list(self.levels)}  # fmt: skip

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Feature":
        """Return the feature that `to_dict` described."""
        special = {float(code): str(text) for code, text in raw["special"]}
        return cls(**{**raw, "special": special, "levels": tuple(raw["levels"])})


@dataclass(frozen=True)
class FeatureSchema:
    """The features in the order that models keep; equal features have an equal `version`."""

    features: tuple[Feature, ...]

    @classmethod
    def of(cls, spec: Spec) -> "FeatureSchema":
        """Return the schema of a spec."""
        numbers = [
            Feature(
                each.name, "numeric", each.theme, each.label or each.name.replace("_", " "), _SIGNS[each.risk],
                each.low, each.high, dict(each.special),
            )
            for each in spec.numeric
        ]  # fmt: skip
        categories = [
            Feature(each.name, "categorical", each.theme, each.label or each.name.replace("_", " "), levels=each.levels)
            for each in spec.categorical
        ]
        return cls((*numbers, *categories))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def version(self) -> str:
        """The hash that names this schema."""
        return sha256_hex(canonical_json(self.to_list()))[:16]

    def select(self, names: Sequence[str]) -> "FeatureSchema":
        """Return the schema of some of the features, in this one's order."""
        return FeatureSchema(tuple(feature for feature in self.features if feature.name in names))

    def to_list(self) -> list[dict[str, Any]]:
        """Return the features as plain JSON values."""
        return [feature.to_dict() for feature in self.features]

    @classmethod
    def from_list(cls, raw: Sequence[Mapping[str, Any]]) -> "FeatureSchema":
        """Return the schema that `to_list` described."""
        return cls(tuple(Feature.from_dict(each) for each in raw))

    def matrix(self, typed: pd.DataFrame) -> pd.DataFrame:
        """Return a model's columns, chosen by name and never by position.

        Parameters
        ----------
        typed
            Rows that met the contract; further columns and any order are fine.

        Returns
        -------
        pd.DataFrame
            Exactly the schema's columns in its order, the index kept: float64 for numbers (NaN where missing,
            special codes as they are), object of str or None for categories.

        Raises
        ------
        UserError
            A column is missing.
        """
        missing = [name for name in self.names if name not in typed.columns]
        if missing:
            raise UserError(
                f"feature(s) {', '.join(map(repr, missing))} are missing; the columns there are "
                f"{', '.join(map(repr, typed.columns))}",
                where="the rows to be scored",
                remedy="give every feature that the model was trained on, by its name.",
            )
        columns: dict[str, Any] = {}
        for feature in self.features:
            values = typed[feature.name]
            if feature.kind == "numeric":
                columns[feature.name] = values.to_numpy(dtype=np.float64, na_value=np.nan)
            else:
                texts = values.to_numpy(dtype=object, copy=True)
                texts[pd.isna(texts)] = None
                columns[feature.name] = texts
        return pd.DataFrame(columns, index=typed.index, columns=list(self.names))
