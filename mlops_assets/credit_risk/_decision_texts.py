"""Decisions as canonical JSON, made column by column.

What belongs here: the texts of numbers, features, flags and results for many rows at once. What does not: what a
decision is (`deciding.py`), why (`reasons.py`), and where its text goes (`decision_log.py`).

To write a million decisions value by value takes longer than to make them. Every text here is what `canonical_json`
gives of the same values, and tests hold every kind of row against that.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.models import Scores
from mlops_assets.credit_risk.outliers import OutlierFlags
from mlops_assets.credit_risk.policy import RULE_NAMES, RULES
from mlops_assets.foundation.files import canonical_json


def json_of(value: Any) -> str:
    """Return the canonical JSON of a value."""
    return canonical_json(value).decode()


def quoted(text: str | None) -> str:
    """Return a text, or none, as JSON."""
    return "null" if text is None else encode_basestring(text)


def hexes(values: NDArray[np.float64]) -> list[str]:
    """Return the float hex of each number as JSON, null for those that are missing."""
    # Each one once, and told apart by their bits: nought and minus nought are equal, and have two texts.
    codes, bits = pd.factorize(np.ascontiguousarray(values).view(np.int64))
    distinct = bits.view(np.float64).tolist()
    texts = [f'"{value.hex()}"' if value == value else "null" for value in distinct]  # noqa: PLR0124 - nan is not
    return [texts[code] for code in codes.tolist()]


def words(values: Sequence[str | None]) -> list[str]:
    """Return each text as JSON, null for those that are missing."""
    known = {value: quoted(value) for value in set(values)}
    return [known[value] for value in values]


def template(fields: Mapping[str, str | None]) -> str:
    """Return a format for an object with these fields: their texts, and a place for each that has none yet.

    The places are in the order of the names.
    """
    parts = (
        f"{quoted(name)}:".replace("%", "%%") + ("%s" if text is None else text.replace("%", "%%"))
        for name, text in sorted(fields.items())
    )
    return f"{{{','.join(parts)}}}"


def source_text(source: Mapping[str, Any] | None) -> str:
    """Return where a row stood."""
    return "null" if source is None else f'{{"file":{quoted(source["file"])},"row":{source["row"]:d}}}'


def feature_texts(features: pd.DataFrame) -> Iterable[str]:
    """Return the features of each row: numbers as float hex, categories as text."""
    names = sorted(features.columns)
    columns = [
        hexes(features[name].to_numpy()) if features[name].dtype == np.float64 else words(features[name].tolist())
        for name in names
    ]
    form = template(dict.fromkeys(names))
    return (form % vector for vector in zip(*columns, strict=True)) if names else ["{}"] * len(features)


def outlier_texts(unusual: OutlierFlags) -> Iterator[str]:
    """Yield what the outlier model says of each row."""
    form = template(dict.fromkeys(("flagged", "main_feature", "score")))
    flagged = ["true" if each else "false" for each in unusual.flagged.tolist()]
    for vector in zip(flagged, words(unusual.main_feature.tolist()), hexes(unusual.score), strict=True):
        yield form % vector


def result_texts(scores: Scores, rules: Sequence[int], reasons: Iterable[str]) -> Iterator[str]:
    """Yield the result of each scored row.

    Parameters
    ----------
    rules
        Positions in `RULE_NAMES`.
    reasons
        Their texts.
    """
    places = dict.fromkeys(("margin", "pd", "points", "reasons"))
    forms = [template({**places, "decision": quoted(RULES[name][0]), "rule": quoted(name)}) for name in RULE_NAMES]
    points = ["null"] * len(rules) if scores.points is None else list(map(str, scores.points.tolist()))
    for rule, *vector in zip(rules, hexes(scores.margin), hexes(scores.pd), points, reasons, strict=True):
        yield forms[rule] % tuple(vector)
