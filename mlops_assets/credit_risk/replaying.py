"""Decisions made again from their records, compared byte by byte.

What belongs here: putting back what decided then (contract, model, policy, sentences), deciding, comparing. What does
not: which decisions are asked for (`tracing.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, islice
from typing import Any

from mlops_assets.credit_risk import pipeline
from mlops_assets.credit_risk.deciding import Decider, Request
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.journal import Entry
from mlops_assets.foundation.registry import ModelVersion, Registry

COMPARED = ("payload_sha256", "features", "flags", "result")
"""What of a decision is made again; ids and times are taken as they were."""

DETAILED = 1_000
"""Where everything differs, this many decisions say why; the others are counted."""

_ROWS = 5_000


@dataclass(frozen=True)
class Difference:
    """A decision that came out differently, or could not be made again: what was recorded, and what came out."""

    decision_id: str
    recorded: Mapping[str, Any]
    replayed: Mapping[str, Any] | None
    problem: str = ""

    def rows(self) -> list[tuple[str, str, str]]:
        """Return what differs: name, recorded, replayed."""
        if self.replayed is None:
            return [("all of it", "", self.problem)]
        rows = []
        for name in COMPARED:
            one, other = self.recorded[name], self.replayed[name]
            if isinstance(one, Mapping) and isinstance(other, Mapping):
                keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
                rows += [(f"{name}.{key}", str(one.get(key)), str(other.get(key))) for key in keys]
            elif one != other:
                rows.append((name, str(one), str(other)))
        return rows


@dataclass
class ReplaySummary:
    """How many decisions were made again, and which of them differ; the first `DETAILED` are kept in full."""

    compared: int = 0
    different: int = 0
    differing: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> int:
        """Decisions whose bytes are the same."""
        return self.compared - self.different

    def differ(self, difference: Difference) -> None:
        """Note a decision that came out differently."""
        self.different += 1
        if len(self.differing) < DETAILED:
            self.differing.append(difference)


class Replayer:
    """Makes decisions again with exactly what decided then.

    Parameters
    ----------
    log, registry
        Where the decisions and the model versions are.
    """

    def __init__(self, log: DecisionLog, registry: Registry) -> None:
        self.log, self.registry = log, registry
        self._deciders: dict[str, Decider] = {}

    def replay(self, entries: Iterable[Entry]) -> ReplaySummary:
        """Make decisions again, in bounded memory, and compare them with their records."""
        found = ReplaySummary()
        stream = iter(entries)
        while chunk := list(islice(stream, _ROWS)):
            for context, group in _by_context(chunk):
                bodies = [entry.body for entry in group]
                found.compared += len(bodies)
                try:
                    decider = self.decider(context)
                except UserError as error:
                    for body in bodies:
                        found.differ(Difference(body["decision_id"], {}, None, str(error)))
                else:
                    self._compare(decider, bodies, found)
        return found

    def _compare(self, decider: Decider, bodies: list[Mapping[str, Any]], found: ReplaySummary) -> None:
        try:
            replayed = list(self.decided_again(decider, bodies))
        except UserError as error:
            if len(bodies) > 1:  # one that cannot be made again keeps no other from it
                for body in bodies:
                    self._compare(decider, [body], found)
            else:
                found.differ(Difference(bodies[0]["decision_id"], {}, None, str(error)))
            return
        for body, again in zip(bodies, replayed, strict=True):
            one, other = ({name: each[name] for name in COMPARED} for each in (body, again))
            if canonical_json(one) != canonical_json(other):
                found.differ(Difference(body["decision_id"], one, other))

    def decider(self, context_sha256: str) -> Decider:
        """Return what decided in a context, every file checked against its hash.

        Raises
        ------
        UserError
            The context, a model file, the version's content or its table of reasons is not what it was then.
        """
        if context_sha256 not in self._deciders:
            context = self.log.context_of(context_sha256)
            if sha256_hex(canonical_json(context)) != context_sha256:
                raise UserError(
                    "it no longer is what decisions were made with: it does not have its SHA-256",
                    where=f"context {context_sha256[:12]}",
                    remedy="verify the log, and restore it from a backup.",
                )
            version = self._version(context)
            policy = {name: value for name, value in context["policy"].items() if name != "version"}
            decider = pipeline.load_decider(pipeline.spec_of(context["contract"]), self.registry, version, policy)
            for name, now in (
                ("policy", decider.policy.version), ("reasons", decider.table.version),
                ("features", decider.model.schema.version),
            ):  # fmt: skip
                then = context["policy"]["version"] if name == "policy" else context[_VERSIONS[name]]
                if now != then:
                    raise UserError(
                        f"the {name} are version {now}, and decided was with {then}",
                        where=f"context {context_sha256[:12]}",
                        remedy="decide with the release of this package that is named in the context.",
                    )
            self._deciders[context_sha256] = decider
        return self._deciders[context_sha256]

    def _version(self, context: Mapping[str, Any]) -> ModelVersion:
        model = context["model"]
        version = self.registry.get(model["name"], model["version"])
        if version.sha256 != model["sha256"]:
            raise UserError(
                f"{version} has SHA-256 {version.sha256}, and decided was with {model['sha256']}",
                where=str(version.uri),
                remedy="restore the version from a backup.",
            )
        return version

    def decided_again(self, decider: Decider, bodies: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the records of these decisions, all of one context, as they come out now; in their order."""
        for _, group in groupby(bodies, key=lambda body: (body["until"], body["period"], body["batch_id"])):
            part = list(group)
            first = part[0]
            request = Request(
                payloads=[canonical_json(body["payload"]).decode() for body in part],
                until=datetime.fromisoformat(first["until"]),
                period=first["period"],
                channel=first["channel"],
                received_at=first["received_at"],
                batch_id=first["batch_id"],
                sources=[body["source"] for body in part],
                refused={at: body["flags"]["refused"] for at, body in enumerate(part) if body["flags"]["refused"]},
            )
            yield from decider.records(decider.decide(request))


_VERSIONS = {"reasons": "reasons_version", "features": "feature_version"}


def _by_context(entries: list[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    ordered = sorted(entries, key=lambda entry: entry.body["context_sha256"])
    for context, group in groupby(ordered, key=lambda entry: str(entry.body["context_sha256"])):
        yield context, list(group)
