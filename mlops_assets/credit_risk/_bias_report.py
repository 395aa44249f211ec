"""The bias report as a thing: its parts, its overall status, its tables and its plain values.

What belongs here: what a report holds and how it is shown, counts and shares alone. What does not: how it is made and
judged (`bias.py`), and what is measured (`_bias_measures.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlops_assets.credit_risk._bias_measures import GroupResult, Limits, OddsResult
from mlops_assets.credit_risk._bias_probes import FlipTest, ProxyStrength
from mlops_assets.credit_risk.metrics import Estimate, at_most

Status = Literal["passed", "failed", "not_assessed"]

_ROWS = 20
_WORST: Mapping[Status, int] = {"failed": 0, "not_assessed": 1, "passed": 2}


@dataclass(frozen=True)
class AttributeResult:
    """One protected attribute: the verdict, and what it rests on.

    Parameters
    ----------
    status, reason
        ``passed``, ``failed`` or ``not_assessed``, and why.
    lowest
        The group of the lowest approval ratio, None where there is none.
    ratio
        That ratio; its bound is `Limits.approval_ratio`.
    reference
        The group that others are compared with.
    unknown_share
        Share of applications whose value is missing or cannot be read.
    fallen
        Groups whose ratio fell against the champion's by more than the bound, beyond chance.
    """

    attribute: str
    status: Status
    reason: str
    lowest: str | None
    ratio: Estimate
    reference: str | None
    unknown_share: float
    groups: tuple[GroupResult, ...]
    odds: OddsResult
    fallen: tuple[str, ...]


@dataclass(frozen=True)
class BiasReport:
    """Protected groups under a model's decisions; counts and shares alone, nobody's row.

    Parameters
    ----------
    intersections
        Groups of two attributes at a time.
    alternatives
        What `less_discriminatory` found; None where it was not asked.
    single_proxies
        For each group the one feature that tells it best, with its AUC.
    """

    rows: int
    attributes: tuple[AttributeResult, ...]
    intersections: tuple[GroupResult, ...]
    proxies: tuple[ProxyStrength, ...]
    flips: FlipTest | None
    alternatives: pd.DataFrame | None
    limits: Limits
    single_proxies: tuple[ProxyStrength, ...] = ()

    @property
    def status(self) -> Status:
        """The worst of attributes, single proxies, flip test and, where they have a bound, intersections."""
        found: list[Status] = [each.status for each in self.attributes] or ["not_assessed"]
        found += ["failed"] if self.low_intersections() else []
        strongest = [self.strongest_proxy(each.attribute) for each in self.attributes]
        found += [at_most(each.auc, self.limits.proxy_auc).status for each in strongest if each is not None]
        found += [self.flips.status] if self.flips is not None else []
        return min(found, key=lambda status: _WORST[status])

    def low_intersections(self) -> tuple[GroupResult, ...]:
        """Return the intersections whose approval ratio lies below their bound beyond chance; none without a bound."""
        return _below(self.intersections, self.limits.intersection_ratio)

    def strongest_proxy(self, attribute: str) -> ProxyStrength | None:
        """Return the single feature that tells a group of the attribute best; None where none was looked for."""
        found = [each for each in self.single_proxies if each.attribute == attribute]
        return max(found, key=lambda each: each.auc.value or 0.0, default=None)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return tables for a page by name, at most 20 rows each."""
        groups = [group for each in self.attributes for group in each.groups]
        found = {
            "attributes": _attributes_table(self.attributes, self.limits),
            "groups": _approvals_table(groups, self.limits),
            "outcomes": _outcomes_table(groups),
            "intersections": _approvals_table(self.intersections, self.limits),
            "proxies": _proxies_table(self.proxies),
            "single_proxies": _proxies_table(self.single_proxies),
        }
        if self.flips is not None:
            row = {**asdict(self.flips), "by_column": str(dict(self.flips.by_column))}
            found["flip_test"] = pd.DataFrame([row])
        if self.alternatives is not None:
            found["alternatives"] = self.alternatives.head(_ROWS)
        return {name: table for name, table in found.items() if len(table)}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values, for evidence."""
        raw = {
            "rows": self.rows,
            "status": self.status,
            "attributes": [asdict(each) for each in self.attributes],
            "intersections": [asdict(each) for each in self.intersections],
            "proxies": [asdict(each) for each in self.proxies],
            "single_proxies": [asdict(each) for each in self.single_proxies],
            "flips": None if self.flips is None else asdict(self.flips),
            "alternatives": None if self.alternatives is None else self.alternatives.to_dict("records"),
            "limits": asdict(self.limits),
        }
        plain: dict[str, Any] = _plain(raw)
        return plain


def _attributes_table(attributes: Sequence[AttributeResult], limits: Limits) -> pd.DataFrame:
    rows = [
        {
            "attribute": each.attribute,
            "status": each.status,
            "lowest": each.lowest or "",
            **_shown("ratio", each.ratio),
            "bound": limits.approval_ratio,
            "reference": each.reference or "",
            "unknown_share": each.unknown_share,
            **_shown("equalised_odds", each.odds.equalised_odds),
            "reason": each.reason,
        }
        for each in attributes
    ]
    return pd.DataFrame(rows).head(_ROWS)


def _approvals_table(groups: Sequence[GroupResult], limits: Limits) -> pd.DataFrame:
    """Return the groups of lowest ratio first; those without one last."""
    ordered = sorted(groups, key=lambda each: (not each.approval_ratio.assessed, each.approval_ratio.value or 0.0))
    told = f"below {limits.approval_ratio:g} beyond chance"
    below = {id(each) for each in _below(groups, limits.approval_ratio)}
    rows = [
        {
            "attribute": each.attribute,
            "group": each.group,
            "n": each.n,
            "share": each.share,
            "approval_rate": each.approval_rate.number()[0],
            "referred": each.referred,
            **_shown("approval_ratio", each.approval_ratio),
            "ratio_change": each.ratio_change.number()[0],
            "status": each.approval_ratio.status,
            "reason": told if id(each) in below else each.approval_ratio.reason,
        }
        for each in ordered[:_ROWS]
    ]
    return pd.DataFrame(rows)


def _outcomes_table(groups: Sequence[GroupResult]) -> pd.DataFrame:
    rows = [
        {
            "attribute": each.attribute,
            "group": each.group,
            "bads": each.bads,
            "goods": each.goods,
            "goods_declined": each.goods_declined.number()[0],
            "bads_accepted": each.bads_accepted.number()[0],
            **_shown("calibration_gap", each.calibration_gap),
            **_shown("auc", each.auc),
            "status": each.auc.status,
            "reason": each.auc.reason,
        }
        for each in groups[:_ROWS]
    ]
    return pd.DataFrame(rows)


def _below(groups: Sequence[GroupResult], bound: float | None) -> tuple[GroupResult, ...]:
    if bound is None:
        return ()
    high = [(each, each.approval_ratio.high) for each in groups]
    return tuple(each for each, ends in high if ends is not None and ends < bound)


def _proxies_table(proxies: Sequence[ProxyStrength]) -> pd.DataFrame:
    ordered = sorted(proxies, key=lambda each: -(each.auc.value or 0.0))
    rows = [
        {"attribute": each.attribute, "group": each.group, **_shown("auc", each.auc)}
        | {"features": ", ".join(each.features), "status": each.auc.status, "reason": each.auc.reason}
        for each in ordered[:_ROWS]
    ]
    return pd.DataFrame(rows)


def _shown(name: str, estimate: Estimate) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate.number(), strict=True))


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: what is missing or not finite is None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
