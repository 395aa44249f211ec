"""Why an application got its default probability, in plain sentences that are true.

What belongs here: contributions folded into themes, the order of reasons, the versioned table of sentences, and the
guards that fail closed. What does not: how a model explains itself (`models.py`).

A reason is a theme that raised the risk against the model's stated baseline. At most four are told (12 CFR 1002.9 and
comment 9(b)(2)-1: specific principal reasons, and more than four are not likely to help). A feature without a sentence,
a protected attribute or contributions that do not add up to the score stop the run: no decision is better than one
whose reason is wrong.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk._decision_texts import hexes, json_of
from mlops_assets.credit_risk.models import Scores
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex

ADDITIVITY = 1e-6
"""Largest difference between a score and the sum of its contributions, in the unit of the contributions."""


MISSING = "{missing}"
"""Stands in a sentence for the labels of the features of which nothing is known."""

_NOTHING_KNOWN = f"We have no information on {MISSING}."


@dataclass(frozen=True)
class ReasonTable:
    """Sentences by theme; equal sentences have an equal `version`."""

    themes: Mapping[str, Mapping[str, str | None]]

    @classmethod
    def of(cls, spec: Spec) -> "ReasonTable":
        """Return the table of a spec; a theme that says nothing of missing information gets a sentence that does."""
        return cls(
            {
                name: {"sentence": theme.sentence, "when_missing": theme.when_missing or _NOTHING_KNOWN}
                for name, theme in spec.themes.items()
            }
        )

    @cached_property
    def version(self) -> str:
        """The hash that names this table."""
        return sha256_hex(canonical_json(self.to_dict()))[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON values."""
        return {name: dict(texts) for name, texts in self.themes.items()}

    def sentence(self, theme: str, *, missing: bool) -> str:
        """Return what is said of a theme; tables of before say the same of missing information as of any other."""
        texts = self.themes[theme]
        return str((texts.get("when_missing") if missing else None) or texts["sentence"])

    def check(self, schema: FeatureSchema, protected: Sequence[str]) -> None:
        """Raise `UserError` for a feature that no reason may name: without a sentence, or protected."""
        unmapped = [feature.name for feature in schema.features if feature.theme not in self.themes]
        if unmapped:
            raise UserError(
                f"no sentence can name the feature(s) {', '.join(map(repr, unmapped))}",
                where="reason table",
                remedy="give their themes a sentence under `themes:`.",
            )
        forbidden = [name for name in schema.names if name in protected]
        if forbidden:
            raise UserError(
                f"the model uses the protected attribute(s) {', '.join(map(repr, forbidden))}",
                where="reason table",
                remedy="train without them: a protected attribute must not decide.",
            )


@dataclass(frozen=True)
class Reasons:
    """The reasons of n applications.

    Parameters
    ----------
    themes
        The themes, in the order that `order` counts.
    order
        (n, most) Position of each reason's theme, the weightiest first; -1 where there is no further reason.
    weight
        (n, most) What the theme raised the risk by, in the unit of the contributions; 0 where there is none.
    missing
        (n, most) Whether everything that raised it is missing information.
    contributions
        (n, f) The contributions by feature.
    names, labels
        Of the f features.
    """

    themes: tuple[str, ...]
    order: NDArray[np.int16]
    weight: NDArray[np.float64]
    missing: NDArray[np.bool_]
    contributions: NDArray[np.float64]
    members: tuple[NDArray[np.intp], ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def informed(self) -> NDArray[np.bool_]:
        """(n,) Whether there is a reason behind which stands more than missing information."""
        return np.asarray(((self.order >= 0) & ~self.missing).any(axis=1))

    @property
    def any(self) -> NDArray[np.bool_]:
        """(n,) Whether there is a reason at all."""
        return np.asarray(self.order[:, 0] >= 0)

    def told(self, table: ReasonTable) -> Iterator[list[dict[str, Any]]]:
        """Yield each application's reasons: theme, sentence, the features behind it, and the weight as float hex."""
        for text in self.texts(table):
            yield json.loads(text)

    def texts(self, table: ReasonTable) -> Iterator[str]:
        """Yield each application's reasons as canonical JSON; see `told`."""
        raised = [_raised(self.contributions, index) for index in self.members]
        # Column by column, and no object a row: that is what would take the time of a million rows.
        columns = zip(self.order.T.tolist(), self.weight.T, self.missing.T.tolist(), strict=True)
        places = zip(*(zip(at, hexes(amount), gone, strict=True) for at, amount, gone in columns), strict=True)
        known: dict[tuple[int, bool, tuple[int, ...]], str] = {}
        for row, reasons in enumerate(places):
            told = []
            for at, amount, gone in reasons:
                if at < 0:
                    break
                key = (at, gone, raised[at][row])
                if key not in known:
                    # What follows the first name in the order of canonical JSON, which is the contribution.
                    known[key] = json_of(self._words(table, *key)).removeprefix("{")
                told.append(f'{{"contribution":{amount},{known[key]}')
            yield f"[{','.join(told)}]"

    def _words(self, table: ReasonTable, at: int, gone: bool, raised: tuple[int, ...]) -> dict[str, Any]:
        """Return what is said of a reason; what nothing is known of is named where the sentence has a place for it."""
        sentence = table.sentence(self.themes[at], missing=gone)
        if MISSING in sentence:
            named = [self.labels[index] or self.names[index] for index in raised]
            sentence = sentence.replace(MISSING, " and ".join(filter(None, [", ".join(named[:-1]), named[-1]])))
        return {"theme": self.themes[at], "text": sentence, "features": [self.names[index] for index in raised]}


def _raised(contributions: NDArray[np.float64], members: NDArray[np.intp]) -> Sequence[tuple[int, ...]]:
    """Return for each row which of these features raised the risk, the weightiest first."""
    if len(members) == 1:
        return [(int(members[0]),)] * len(contributions)  # where the theme is a reason, this is behind it
    weights = contributions[:, members]
    order = np.argsort(-weights, axis=1, kind="stable")
    many = (np.take_along_axis(weights, order, axis=1) > 0).sum(axis=1).tolist()
    ranked = zip(*members[order].T.tolist(), strict=True)
    return [each[:count] for each, count in zip(ranked, many, strict=True)]


def explain(scores: Scores, features: pd.DataFrame, schema: FeatureSchema, *, most: int = 4) -> Reasons:
    """Fold contributions into themes and keep the few that raised the risk most.

    Parameters
    ----------
    scores, features
        Of the same n rows.
    most
        How many reasons at most.

    Raises
    ------
    UserError
        The contributions of a row do not add up to its score.
    """
    off = np.abs(scores.residual) > ADDITIVITY
    if off.any() or not np.isfinite(scores.residual).all():
        worst = float(np.nanmax(np.abs(scores.residual))) if np.isfinite(scores.residual).any() else float("nan")
        raise UserError(
            f"the contributions of {int(off.sum())} of {len(off)} rows do not add up to their scores: off by {worst:g}",
            where="reasons",
            remedy="nothing was decided: reasons that do not add up are not true; use another model version.",
        )
    themes = tuple(dict.fromkeys(feature.theme for feature in schema.features))
    members = tuple(
        np.array([at for at, feature in enumerate(schema.features) if feature.theme == theme]) for theme in themes
    )
    gone = _without_information(features, schema)
    raised = np.maximum(scores.contributions, 0.0)
    folded = np.column_stack([_total(scores.contributions, index) for index in members])
    informed = np.column_stack([_total(raised * ~gone, index) for index in members])
    kept = min(most, len(themes))
    # Stable, so that equal weights come in the order of the themes, on every machine.
    order = np.argsort(-folded, axis=1, kind="stable")[:, :kept].astype(np.int16)
    weight = np.take_along_axis(folded, order, axis=1)
    missing = np.take_along_axis(informed, order, axis=1) <= 0
    labels = tuple(feature.label for feature in schema.features)
    nothing = weight <= 0
    order[nothing], weight[nothing], missing[nothing] = -1, 0.0, False
    return Reasons(themes, order, weight, missing, scores.contributions, members, schema.names, labels)


def _total(values: NDArray[np.float64], columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """Add columns one after the other: numpy's own sum may take another order for one row than for many."""
    total = np.zeros(len(values))
    for column in columns:
        total = total + values[:, column]
    return total


def _without_information(features: pd.DataFrame, schema: FeatureSchema) -> NDArray[np.bool_]:
    """(n, f) Whether a value is missing or a special code."""
    columns = []
    for feature in schema.features:
        values = features[feature.name].to_numpy()
        gone = np.asarray(pd.isna(values))
        for code in feature.special:
            gone |= values == code
        columns.append(gone)
    return np.column_stack(columns)


def thin_files(features: pd.DataFrame, schema: FeatureSchema, needed: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) Whether all of the needed features are missing or special; never where none is needed."""
    if not needed:
        return np.zeros(len(features), dtype=bool)
    chosen = FeatureSchema(tuple(schema.features[schema.names.index(name)] for name in needed))
    return np.asarray(_without_information(features, chosen).all(axis=1))
