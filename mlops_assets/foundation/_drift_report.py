"""Evidently's drift report: JSON to keep, HTML to look at.

What belongs here: making, keeping and rendering the report, so that no value of the data can act in the page.
What does not: the verdict, which ``drift`` reaches by its own rules.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mlops_assets.foundation._drift_columns import Compared, evidently_warnings, pool_rare
from mlops_assets.foundation.errors import UserError

_LABEL_LENGTH = 60
# Evidently puts labels and column names unescaped into a script element of its page.
_HARMLESS = str.maketrans({"<": "\u2039", ">": "\u203a", "&": "+", "\\": "/", "\u2028": " ", "\u2029": " "})
_STYLE = "font-family:sans-serif;max-width:70em;margin:1em auto;padding:0 1em"


def _plain(text: str) -> str:
    harmless = text.translate(_HARMLESS)
    return harmless if len(harmless) <= _LABEL_LENGTH else harmless[: _LABEL_LENGTH - 1] + "…"


def _frames(compared: Sequence[Compared], names: Sequence[str], most: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    before: dict[str, pd.Series[Any]] = {}
    now: dict[str, pd.Series[Any]] = {}
    for name, each in zip(names, compared, strict=True):
        sides = each.reference.values, each.current.values
        if each.kind == "cat":
            sides = pool_rare(sides[0], sides[1], most)
        for frame, side in zip((before, now), sides, strict=True):
            frame[name] = pd.Series(side if each.kind == "num" else [_plain(str(label)) for label in side])
    return pd.DataFrame(before), pd.DataFrame(now)


def evidently_snapshot(
    compared: Sequence[Compared], *, distance_num: float, distance_cat: float, most: int
) -> dict[str, Any] | None:
    """Run Evidently's drift preset on columns that passed the guards; None where there is no such column."""
    if not compared:
        return None
    with evidently_warnings():
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        names: list[str] = []
        for each in compared:
            name = _plain(each.column)
            names.append(name if name not in names else f"{name} ({len(names)})")
        definition = DataDefinition(
            numerical_columns=[n for n, each in zip(names, compared, strict=True) if each.kind == "num"],
            categorical_columns=[n for n, each in zip(names, compared, strict=True) if each.kind == "cat"],
        )
        before, now = (Dataset.from_pandas(frame, definition) for frame in _frames(compared, names, most))
        preset = DataDriftPreset(
            columns=names,
            num_method="wasserstein",
            num_threshold=distance_num,
            cat_method="jensenshannon",
            cat_threshold=distance_cat,
        )
        snapshot: dict[str, Any] = json.loads(Report([preset]).run(now, before).dumps())
    return snapshot


@dataclass(frozen=True)
class DriftReport:
    """A drift report: ``json`` is what to keep, ``html`` renders it on demand (about 4 MB).

    Parameters
    ----------
    verdict
        ``DriftResult.to_dict()``.
    snapshot
        Evidently's report as it dumps it, None where no column could be assessed.
    """

    verdict: Mapping[str, Any]
    snapshot: Mapping[str, Any] | None

    def json(self) -> str:
        """Return verdict and report as JSON, from which ``from_json`` makes the report again."""
        return json.dumps({"verdict": self.verdict, "evidently": self.snapshot}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, where: str = "drift report") -> "DriftReport":
        """Read what ``json`` wrote.

        Raises
        ------
        UserError
            The text is damaged or something else; ``where`` names the file.
        """
        try:
            content = json.loads(text)
            return cls(verdict=content["verdict"], snapshot=content["evidently"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "this is no drift report, or a damaged one",
                where=where,
                remedy="make the report of this batch again.",
            ) from error

    def _head(self) -> str:
        reasons = "".join(f"<li>{html.escape(str(reason))}</li>" for reason in self.verdict["reasons"])
        left_out = "".join(
            f"<li>{html.escape(str(name))}: left out, {html.escape(str(reason))}</li>"
            for name, reason in self.verdict["left_out"].items()
        )
        status = html.escape(str(self.verdict["status"]).replace("_", " "))
        rows = f"{self.verdict['rows_current']:,} rows against {self.verdict['rows_reference']:,}"
        return f'<div style="{_STYLE}"><h1>Drift: {status}</h1><p>{rows}</p><ul>{reasons}{left_out}</ul></div>'

    def html(self) -> str:
        """Render the report as one page that loads nothing from elsewhere."""
        if self.snapshot is None:
            return f"<!doctype html><html><head><meta charset='utf-8'></head><body>{self._head()}</body></html>"
        with evidently_warnings():
            from evidently.core.report import Snapshot

            page = Snapshot.loads(json.dumps(self.snapshot)).get_html_str(as_iframe=False)
        return re.sub(r"<body[^>]*>", lambda tag: tag.group() + self._head(), page, count=1)
