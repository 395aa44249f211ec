"""The one way from raw applications to decisions, for a batch, a single application and a replay alike.

What belongs here: contract, features, score, outlier flag, policy and reasons, one after the other, and the record of
each decision. What does not: where applications come from (`ingestion.py`), where decisions are kept
(`decision_log.py`) and who asks.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from json.encoder import encode_basestring
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk._decision_texts import (
    feature_texts,
    json_of,
    outlier_texts,
    quoted,
    result_texts,
    source_text,
    template,
)
from mlops_assets.credit_risk.contracts import applications_contract
from mlops_assets.credit_risk.decision_log import Written
from mlops_assets.credit_risk.models import PdModel, Scores
from mlops_assets.credit_risk.outliers import OutlierFlags, OutlierModel
from mlops_assets.credit_risk.policy import RULE_NAMES, RULES, DecisionPolicy
from mlops_assets.credit_risk.reasons import Reasons, ReasonTable, explain, thin_files
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.contracts import Column, not_after
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import sha256_hex

_ANY_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_TOLD = 200
_NUMBERS = {int, float, type(None)}
_DECODER = json.JSONDecoder()
_UNSCORED: Mapping[str, Any] = {
    "pd": None, "margin": None, "points": None, "decision": RULES["quarantined"][0], "rule": "quarantined",
    "reasons": [],
}  # fmt: skip
_QUARANTINED = RULE_NAMES.index("quarantined")


def decision_id(system: str, application_id: str, payload_sha256: str) -> str:
    """Return the name of the decision on an application: the same content is decided once."""
    named = ",".join(map(encode_basestring, (system, application_id, payload_sha256)))
    return sha256_hex(f"[{named}]".encode())[:32]  # of the canonical JSON


@dataclass(frozen=True)
class Request:
    """Raw applications that want a decision.

    Parameters
    ----------
    payloads
        Canonical JSON of each raw application, without protected attributes.
    until
        No application may be later than this: the end of the batch's period, or the moment of an online request.
    period, batch_id, channel
        Where they came from.
    received_at
        ISO 8601, one for all.
    sources
        `file` and `row` of each, where they have one.
    refused
        Rules that the ingestion found broken across rows (such as one id with two contents), by position.
    """

    payloads: Sequence[str]
    until: datetime
    period: str
    channel: str
    received_at: str
    batch_id: str | None = None
    sources: Sequence[Mapping[str, Any] | None] | None = None
    refused: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The raw rows, every value as it came."""
        return [_row(text) for text in self.payloads]

    @cached_property
    def ids(self) -> Sequence[str]:
        """The applications' ids; one that has none is still somebody who gets an answer, and is named by its place."""
        return [_identity(row.get("application_id"), self, position) for position, row in enumerate(self.rows)]

    @cached_property
    def digests(self) -> Sequence[str]:
        """SHA-256 of each payload."""
        return [sha256_hex(text.encode()) for text in self.payloads]

    def decision_ids(self, system: str) -> list[str]:
        """Return the name of each decision."""
        return [decision_id(system, *named) for named in zip(self.ids, self.digests, strict=True)]

    def select(self, positions: Sequence[int]) -> "Request":
        """Return the request for some of its applications."""
        if list(positions) == list(range(len(self.payloads))):
            return self  # with all that was read of it already
        return replace(
            self,
            payloads=[self.payloads[at] for at in positions],
            sources=[self.sources[at] for at in positions] if self.sources else None,
            refused={new: self.refused[old] for new, old in enumerate(positions) if old in self.refused},
        )


@dataclass(frozen=True)
class Decided:
    """The decisions on the applications of a request, in its order; `scored` counts the scored ones, -1 elsewhere."""

    request: Request
    scored: NDArray[np.int64]
    rule: NDArray[np.int8]
    features: pd.DataFrame
    scores: Scores
    reasons: Reasons
    unusual: OutlierFlags
    broken: Mapping[int, Sequence[Mapping[str, Any]]]

    def __len__(self) -> int:
        return len(self.rule)

    @property
    def decision(self) -> list[str]:
        """accept, refer or reject, for each."""
        names = [RULES[name][0] for name in RULE_NAMES]
        return [names[rule] for rule in self.rule.tolist()]


class Decider:
    """A champion with everything that decides beside it: contract, policy, sentences and the outlier model.

    Parameters
    ----------
    spec
        The system; only what the contract needs is read from it.
    model, outliers
        Of one model version.
    policy, table
        How probabilities become decisions, and what is said of them.

    Raises
    ------
    UserError
        The model uses a feature that no reason may name.
    """

    def __init__(
        self,
        spec: Spec,
        model: PdModel,
        outliers: OutlierModel,
        policy: DecisionPolicy,
        table: ReasonTable,
    ) -> None:
        table.check(model.schema, spec.protected_names)
        # One id with two contents is a matter of the ingestion.
        self._contract = replace(applications_contract(spec, _ANY_TIME), unique=())
        self.spec, self.model, self.outliers, self.policy, self.table = spec, model, outliers, policy, table

    def decide(self, request: Request) -> Decided:
        """Decide on raw applications, each by what it says alone: it is decided alike in any company.

        Raises
        ------
        UserError
            A protected attribute is among the values, the model uses a feature that the spec does not have, or reasons
            do not add up.
        """
        self._refuse_protected(request.rows)
        contract = self._contract.with_rule(not_after("applied_at", request.until))
        frame = _raw(request.rows, contract.columns)
        split = contract.split(frame, where=request.batch_id or f"applications by {request.channel}")
        typed = split.accepted
        kept = ~typed.index.isin(list(request.refused))
        typed = typed[kept]
        features = self.model.schema.matrix(typed)
        scores = self._score(features)
        reasons = explain(scores, features, self.model.schema, most=self.policy.reasons)
        unusual = self.outliers.score(features)
        chosen = self.policy.decide(
            scores.pd,
            thin=thin_files(features, self.model.schema, self.policy.insufficient),
            out_of_range=np.asarray(scores.out_of_range.any(axis=1)),
            outlier=unusual.flagged,
            has_reason=reasons.any,
            informed=reasons.informed,
        )
        rule = np.full(len(frame), _QUARANTINED, dtype=np.int8)
        scored = np.full(len(frame), -1, dtype=np.int64)
        rows = typed.index.to_numpy()
        rule[rows], scored[rows] = chosen, np.arange(len(rows))
        broken = _broken(split.quarantined, request)
        return Decided(request, scored, rule, features, scores, reasons, unusual, broken)

    def records(self, decided: Decided) -> Iterator[dict[str, Any]]:
        """Yield the record of each decision, ready for the log; only `decided_at` is left to it."""
        for text, _ in self._texts(decided, {}):
            yield json.loads(text)

    def written(self, decided: Decided, context_sha256: str, decided_at: str) -> Iterator[Written]:
        """Yield each decision as the log writes it: the same record, with when it was made and in which context."""
        request = decided.request
        found_by = [
            {"period": request.period, "decision": RULES[name][0], "rule": name, "channel": request.channel}
            for name in RULE_NAMES
        ]
        if request.batch_id is not None:
            found_by = [{**each, "batch_id": request.batch_id} for each in found_by]
        more = {"context_sha256": context_sha256, "decided_at": decided_at}
        for at, (text, name) in enumerate(self._texts(decided, more)):
            yield Written(text, name, request.ids[at], context_sha256, found_by[decided.rule[at]])

    def _texts(self, decided: Decided, more: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Yield the canonical JSON of each record, and the decision's name."""
        request = decided.request
        common = {
            "batch_id": request.batch_id, "channel": request.channel, "period": request.period,
            "received_at": request.received_at, "until": request.until.isoformat(), **more,
        }  # fmt: skip
        own = ("application_id", "decision_id", "features", "flags", "payload", "payload_sha256", "result", "source")
        record = template({**dict.fromkeys(own), **{name: json_of(value) for name, value in common.items()}})
        flags = template(dict.fromkeys(("broken", "outlier", "refused")))
        rules = decided.rule[decided.scored >= 0].tolist()
        results = result_texts(decided.scores, rules, decided.reasons.texts(self.table))
        # One after the other: a million small objects at once would keep the garbage collector busier than the rest.
        scored = zip(feature_texts(decided.features), outlier_texts(decided.unusual), results, strict=True)
        unscored = ("{}", "null", json_of(_UNSCORED))
        names = request.decision_ids(self.spec.name)
        for at, (name, application, digest, text, place) in enumerate(
            zip(names, request.ids, request.digests, request.payloads, decided.scored.tolist(), strict=True)
        ):
            features, outlier, result = next(scored) if place >= 0 else unscored
            broken = json_of(list(decided.broken[at])) if at in decided.broken else "[]"
            refused = json_of(list(request.refused[at])) if at in request.refused else "[]"
            flagged = flags % (broken, outlier, refused)
            source = source_text(request.sources[at] if request.sources else None)
            told = (quoted(application), quoted(name), features, flagged, text, quoted(digest), result, source)
            yield record % told, name

    def _score(self, features: pd.DataFrame) -> Scores:
        try:
            return self.model.score(features)
        except ArithmeticError as error:
            raise UserError(
                f"the model contradicts itself: {error}",
                where=f"{self.spec.name} decisions",
                remedy="nothing was decided: reasons that do not add up are not true; use another model version.",
            ) from error

    def _refuse_protected(self, rows: Sequence[Mapping[str, Any]]) -> None:
        named: set[str] = set().union(*rows)
        there = [name for name in self.spec.protected_names if name in named]
        if there:
            raise UserError(
                f"protected attribute(s) {', '.join(map(repr, there))} are among the values to be decided on",
                where=f"{self.spec.name} decisions",
                remedy="leave them out: they are kept in a table of their own and never reach a decision.",
            )


def _identity(value: Any, request: Request, position: int) -> str:
    """Return an application's id, or where it stands if it has none."""
    if value is not None and value == value and str(value).strip():  # noqa: PLR0124 - nan differs from itself
        return str(value).strip()
    source = request.sources[position] if request.sources else None
    place = f"row {source['row']} of {source['file']}" if source else f"row {position}"
    return f"{place} in {request.batch_id or request.channel}"


def _row(text: str) -> Mapping[str, Any]:
    row, end = _DECODER.raw_decode(text)
    if not isinstance(row, dict) or end != len(text):
        raise ValueError(f"a payload is no JSON object: {text[:_TOLD]!r}")
    return row


def _raw(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> pd.DataFrame:
    """Return these columns of raw rows; what a row does not name is missing."""
    names = [column.name for column in columns]
    try:
        whole: Iterable[Sequence[Any]] = zip(*map(itemgetter(*names), rows), strict=True)
        found = dict(zip(names, whole, strict=True)) if rows else {}
    except KeyError:
        found = {name: [row.get(name) for row in rows] for name in names}
    return pd.DataFrame({column.name: _values(found.get(column.name, ()), column) for column in columns})


def _values(values: Sequence[Any], column: Column) -> "pd.Series[Any]":
    """Return a column; numbers as such, because to read them as text, one by one, takes a hundred times as long.

    They are the numbers that their texts would be read as.
    """
    if column.type == "number" and set(map(type, values)) <= _NUMBERS:
        try:
            # None becomes NaN, and minus nought, which texts do not have, nought.
            return pd.Series(np.array(values, dtype=np.float64) + 0.0)
        except OverflowError:  # a whole number beyond all others is told as it is written
            pass
    raw = np.empty(len(values), dtype=object)
    raw[:] = values
    return pd.Series(raw, dtype=object)


def _broken(quarantined: pd.DataFrame, request: Request) -> Mapping[int, Sequence[Mapping[str, Any]]]:
    """Return the rules that each row breaks, with the values as they came."""
    broken: dict[int, list[Mapping[str, Any]]] = {}
    names = ("row", "rule", "column", "bound")
    for row, rule, column, bound in zip(*(quarantined[name].tolist() for name in names), strict=True):
        if row not in request.refused:
            value = request.rows[row].get(column)
            told = None if value is None else str(value)[:_TOLD]
            broken.setdefault(row, []).append({"rule": rule, "column": column, "value": told, "bound": bound})
    return broken
