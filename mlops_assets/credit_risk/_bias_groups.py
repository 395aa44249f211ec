"""Protected attributes and the groups that they make.

What belongs here: from a value to a group, with the unknown ones a group of their own, and joining attributes to
applications. What does not: anything that is measured of a group (`_bias_measures.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.spec import Protected
from mlops_assets.foundation.errors import UserError

UNKNOWN = "unknown"
KEY = "application_id"

Groups = NDArray[np.object_]


@dataclass(frozen=True)
class Attribute:
    """A protected attribute, and which of its groups the report has to assess.

    Parameters
    ----------
    name
        Column of the protected attributes.
    edges
        Cuts of a number: a group runs from one edge up to, but without, the next. Empty for a category.
    labels
        Names of the groups that the edges make, one more than there are edges; by default made from the edges.
    groups
        Groups that have to be assessed. By default those of the edges; of a category, the ones that are large enough.
    reference
        Group that others are compared with; by default the most approved.

    Raises
    ------
    UserError
        The edges do not rise, labels do not fit them, or the reference is none of the groups.
    """

    name: str
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    reference: str | None = None

    def __post_init__(self) -> None:
        problem = None
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            problem = f"edges must rise: {self.edges}"
        elif self.labels and len(self.labels) != len(self.edges) + 1:
            problem = f"{len(self.edges)} edges make {len(self.edges) + 1} groups, not the {len(self.labels)} labelled"
        elif self.reference is not None and self.required and self.reference not in self.required:
            problem = f"reference {self.reference!r} is none of the groups {', '.join(map(repr, self.required))}"
        if problem:
            raise UserError(problem, where=f"protected attribute {self.name!r}", remedy="correct the setting.")

    @classmethod
    def of(cls, setting: Protected) -> "Attribute":
        """Return the attribute of a spec's setting."""
        return cls(setting.name, edges=setting.edges, reference=setting.reference)

    @property
    def required(self) -> tuple[str, ...]:
        """Groups without which the attribute is not assessed; empty where the data decide."""
        if self.groups or not self.edges:
            return self.groups
        return self.labels or tuple(_label(self.edges, place) for place in range(len(self.edges) + 1))

    def assign(self, values: "pd.Series[Any]") -> Groups:
        """Return the group of each value, shape (n,); what is missing or cannot be read is `UNKNOWN`."""
        found = np.full(len(values), UNKNOWN, dtype=object)
        if self.edges:
            numbers = pd.to_numeric(values.astype(object), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            finite = np.isfinite(numbers)
            names = self.labels or tuple(_label(self.edges, place) for place in range(len(self.edges) + 1))
            places = np.searchsorted(np.asarray(self.edges), numbers[finite], side="right")
            found[finite] = np.array(names, dtype=object)[places]
            return found
        present = values.notna().to_numpy()
        found[present] = [_text(value) or UNKNOWN for value in values[present]]
        return found


def join(frame: pd.DataFrame, protected: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return the protected attributes of each row of ``frame``, in its order; missing where none are known.

    Parameters
    ----------
    frame
        With a column application_id, unless ``protected`` has the same index.
    protected
        With a column application_id, or row by row that of ``frame``; an attribute's column may be missing.

    Raises
    ------
    UserError
        An application has two rows of protected attributes.
    """
    wanted = [name for name in names if name in protected.columns]
    if KEY not in protected.columns:
        if not protected.index.equals(frame.index):
            raise UserError(
                "there is neither an application_id nor one row an application",
                where="protected attributes",
                remedy=f"give a column {KEY}.",
            )
        return protected.reindex(columns=list(names))
    if KEY not in frame.columns:
        raise UserError(
            f"column {KEY} is missing", where="the decisions to compare", remedy="give it, or one row an application."
        )
    keys = protected[KEY].astype(str)
    if (twice := keys.duplicated()).any():
        raise UserError(
            f"{int(twice.sum()):,} applications have more than one row, such as {keys[twice].iloc[0]!r}",
            where="protected attributes",
            remedy="keep one row an application.",
        )
    found = protected.assign(**{KEY: keys}).set_index(KEY)[wanted].reindex(frame[KEY].astype(str).to_numpy())
    return found.reindex(columns=list(names)).set_index(frame.index)


def _label(edges: tuple[float, ...], place: int) -> str:
    if place == 0:
        return f"below {edges[0]:g}"
    if place == len(edges):
        return f"{edges[-1]:g} and above"
    return f"{edges[place - 1]:g} to below {edges[place]:g}"


def _text(value: Any) -> str:
    # One missing cell turns whole numbers into floats: 1 and 1.0 are the same group.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
