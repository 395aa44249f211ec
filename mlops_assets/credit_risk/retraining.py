"""Whether to train a new model now, and if not, why not.

What belongs here: the facts that count, the guards that forbid and the triggers that ask, as one pure decision. What
does not: collecting the facts and starting runs (`automation.py`), and whether a new model serves: a training only
proposes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from mlops_assets.credit_risk.monitoring import DriftFinding, persists
from mlops_assets.credit_risk.spec import Monitoring, Retraining
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex

Trigger = Literal["T1_drift", "T2_decay", "T3_new_outcomes", "T4_age", "T5_request"]

RULES: Mapping[str, str] = {
    "G1_incident": "A data incident is open: fix the data, never retrain.",
    "G2_drift_of_an_incident": "The drift is that of batches under a data incident: fix the data, never retrain.",
    "G3_freeze": "Training is frozen.",
    "G4_in_flight": "A training is running.",
    "G5_cool_down": "The last attempt is too recent, whatever came of it.",
    "G6_nothing_new": "There are too few outcomes that the last training did not see: it would learn the same again.",
    "G7_budget": "The attempts that the budget allows have been made.",
    "G8_back_off": "Candidates have been rejected: the wait doubles with each.",
    "G9_already_asked": "This very evidence has asked for a training before.",
    "T0_nothing_asks": "Nothing asks for a training.",
}
"""Why a training is not asked for, in the order in which it is looked at (T0 comes after G2)."""


@dataclass(frozen=True)
class Evidence:
    """What is known when the question is asked. The order within any collection does not matter.

    Parameters
    ----------
    as_of
        Key of the period at whose end the facts hold; part of the run key.
    now
        The moment of asking, in UTC.
    champion
        SHA-256 of the model that serves, None while there is none.
    trained_until
        The last moment that the champion's training data know of.
    learned_until
        The last moment that the training data of the latest attempt know of, whatever came of it.
    incidents
        Data incidents that are open.
    touched
        Batches that are or were under a data incident, unless it was waived: their windows are no evidence of drift.
    windows
        Drift findings, in any order; of those that share a batch, the latest counts.
    decay
        "decayed", "holds" or "not_assessed", as `performance.realised` says.
    decay_facts
        What the realised performance rests on, such as the hash of the outcomes; part of the fingerprint.
    decay_reason
        In words.
    new_outcomes, new_bads
        Matured (or corrected) outcomes that the latest training did not see, and the bad ones among them.
    request
        Name of a person's request that has not been answered yet.
    frozen
        Why nothing may be trained now.
    in_flight
        Runs that train at this moment.
    attempts
        When trainings were started by themselves, whatever came of them.
    rejections
        When candidates were rejected since one was last promoted.
    asked
        Fingerprints that have led to a training.
    """

    as_of: str
    now: datetime
    champion: str | None = None
    trained_until: datetime | None = None
    learned_until: datetime | None = None
    incidents: Collection[str] = ()
    touched: Collection[str] = ()
    windows: Sequence[DriftFinding] = ()
    decay: Literal["decayed", "holds", "not_assessed"] = "not_assessed"
    decay_facts: Mapping[str, Any] = field(default_factory=dict)
    decay_reason: str = ""
    new_outcomes: int = 0
    new_bads: int = 0
    request: str | None = None
    frozen: str | None = None
    in_flight: Collection[str] = ()
    attempts: Collection[datetime] = ()
    rejections: Collection[datetime] = ()
    asked: Collection[str] = ()


@dataclass(frozen=True)
class Ask:
    """A training is asked for; what it yields is a proposal, and what serves does not change by itself.

    ``fingerprint`` names the evidence, so that the same evidence asks once; ``facts`` are what it is made of. ``also``
    names the triggers that fired beside the first one.
    """

    trigger: Trigger
    fingerprint: str
    run_key: str
    reason: str
    facts: Mapping[str, Any]
    also: tuple[Trigger, ...] = ()


@dataclass(frozen=True)
class Skip:
    """No training is asked for, by this rule of `RULES`; ``alert`` where a person should know of it."""

    rule: str
    text: str
    alert: bool = False


@dataclass(frozen=True)
class Fired:
    """A trigger that fired: why, and the facts that make this evidence what it is."""

    trigger: Trigger
    reason: str
    facts: Mapping[str, Any]


def decide(evidence: Evidence, rules: Retraining, monitoring: Monitoring) -> Ask | Skip:
    """Weigh the evidence: an open data incident first, then what asks, then what forbids.

    A person's request passes the same guards as everything else; whoever means to overrule them starts the training
    by hand.

    Raises
    ------
    UserError
        A moment has no time zone, or a count is negative.
    """
    _check(evidence)
    if evidence.incidents:
        names = ", ".join(sorted(evidence.incidents))
        return _skip("G1_incident", f"open: {names}", alert=True)
    fired = triggers(evidence, rules, monitoring)
    if not fired and _explained(evidence, monitoring):
        return _skip("G2_drift_of_an_incident", "without these batches no drift is confirmed")
    if not fired:
        return _skip("T0_nothing_asks", _state(evidence, monitoring))
    wanted = "; ".join(f"{each.trigger}: {each.reason}" for each in fired)
    if (held := next(_guards(evidence, rules), None)) is not None:
        rule, detail, alert = held
        return _skip(rule, f"{detail} ({wanted})", alert=alert)
    new = [each for each in fired if fingerprint(each.trigger, each.facts) not in evidence.asked]
    if not new:
        return _skip("G9_already_asked", wanted)
    first, found = new[0], fingerprint(new[0].trigger, new[0].facts)
    also = tuple(each.trigger for each in fired if each is not first)
    return Ask(first.trigger, found, f"{first.trigger}:{found}:{evidence.as_of}", first.reason, first.facts, also)


def fingerprint(trigger: str, facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a trigger's facts, sorted: equal facts give an equal fingerprint, in whatever order."""
    return sha256_hex(canonical_json({"trigger": trigger, "facts": _sorted(facts)}))


def triggers(evidence: Evidence, rules: Retraining, monitoring: Monitoring) -> list[Fired]:
    """Return what asks for a training, in the order of precedence.

    Facts never hold what changes by itself from day to day, such as an age: the same evidence is to ask once.
    """
    base = {"champion": evidence.champion, "learned_until": _moment(evidence.learned_until)}
    outcomes = {**base, "new_outcomes": evidence.new_outcomes, "new_bads": evidence.new_bads}
    fired: list[Fired] = []
    ordered = _by_time(evidence.windows)
    if persists(ordered, monitoring.confirm, touched=evidence.touched):
        last = ordered[-1]
        columns = ", ".join(last.drifted[:5]) or "the features"
        reason = f"{columns} drifted in {monitoring.confirm} windows in a row, the last up to {last.last}"
        fired.append(Fired("T1_drift", reason, {**base, "window": _window(last)}))
    if evidence.decay == "decayed":
        reason = f"realised performance has decayed: {evidence.decay_reason or 'see its report'}"
        fired.append(Fired("T2_decay", reason, {**base, "decay": dict(evidence.decay_facts)}))
    if evidence.new_outcomes >= rules.new_outcomes and evidence.new_bads >= rules.new_bads:
        reason = f"{evidence.new_outcomes:,} new outcomes have matured, {evidence.new_bads:,} of them bad"
        fired.append(Fired("T3_new_outcomes", reason, outcomes))
    age = None if evidence.trained_until is None else evidence.now - evidence.trained_until
    if evidence.champion is not None and age is not None and age > timedelta(days=rules.maximum_age_days):
        reason = f"the champion's training data are {age.days:,} days old, {rules.maximum_age_days:g} are allowed"
        fired.append(Fired("T4_age", reason, {**outcomes, "trained_until": _moment(evidence.trained_until)}))
    if evidence.request is not None:
        fired.append(Fired("T5_request", f"asked for by request {evidence.request}", {"request": evidence.request}))
    return fired


def _guards(evidence: Evidence, rules: Retraining) -> Iterator[tuple[str, str, bool]]:
    """Yield what forbids a training that is asked for, in order: the rule, in detail, and whether to alert."""
    if evidence.frozen is not None:
        yield "G3_freeze", evidence.frozen or "no reason was given", False
    if evidence.in_flight:
        yield "G4_in_flight", f"run {', '.join(sorted(evidence.in_flight))}", False
    if until := _cool_until(evidence, rules):
        yield "G5_cool_down", f"until {_minute(until)}", False
    if evidence.new_outcomes < rules.minimum_new_outcomes:
        few = f"{evidence.new_outcomes:,} new outcomes, {rules.minimum_new_outcomes:,} are needed"
        # For people: a model learns nothing from drift without outcomes, but a policy can be tightened.
        yield "G6_nothing_new", few, True
    start = evidence.now - timedelta(days=rules.budget_days)
    if (made := sum(each > start for each in evidence.attempts)) >= rules.budget:
        yield "G7_budget", f"{made} in {rules.budget_days:g} days, {rules.budget} are allowed", True
    if until := _back_off_until(evidence, rules):
        yield "G8_back_off", f"{len(evidence.rejections)} so far, until {_minute(until)}", False


def _cool_until(evidence: Evidence, rules: Retraining) -> datetime | None:
    if not evidence.attempts:
        return None
    until = max(evidence.attempts) + timedelta(days=rules.cool_down_days)
    return until if evidence.now < until else None


def _back_off_until(evidence: Evidence, rules: Retraining) -> datetime | None:
    if not evidence.rejections:
        return None
    # More than a hundred years would leave the calendar.
    days = min(rules.back_off_days * 2.0 ** min(len(evidence.rejections) - 1, 60), 36_500.0)
    until = max(evidence.rejections) + timedelta(days=days)
    return until if evidence.now < until else None


def _explained(evidence: Evidence, monitoring: Monitoring) -> bool:
    """Tell whether the drift would be confirmed if batches under an incident counted."""
    return persists(_by_time(evidence.windows), monitoring.confirm)


def _by_time(windows: Sequence[DriftFinding]) -> list[DriftFinding]:
    return sorted(windows, key=lambda each: (each.last or "", each.first or "", each.batches))


def _window(finding: DriftFinding) -> dict[str, Any]:
    return {
        "first": finding.first,
        "last": finding.last,
        "batches": sorted(finding.batches),
        "drifted": sorted(finding.drifted),
        "reference": finding.reference_sha256,
    }


def _state(evidence: Evidence, monitoring: Monitoring) -> str:
    ordered = _by_time(evidence.windows)
    latest = ordered[-1].status if ordered else "not_assessed"
    return (
        f"drift of the latest window: {latest} ({monitoring.confirm} in a row are needed); realised performance: "
        f"{evidence.decay}; {evidence.new_outcomes:,} new outcomes"
    )


def _skip(rule: str, detail: str, *, alert: bool = False) -> Skip:
    return Skip(rule, f"{rule}: {RULES[rule]} {detail[0].upper()}{detail[1:]}.", alert)


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat()


def _minute(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _sorted(value: Any) -> Any:
    """Return JSON values with every list in one order, so that none of them carries a meaning."""
    if isinstance(value, Mapping):
        return {str(key): _sorted(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return sorted((_sorted(each) for each in value), key=canonical_json)
    return value


def _check(evidence: Evidence) -> None:
    moments = [evidence.now, evidence.trained_until, evidence.learned_until, *evidence.attempts, *evidence.rejections]
    naive = [each for each in moments if each is not None and each.tzinfo is None]
    if naive:
        raise UserError(f"{naive[0]} has no time zone", where="retraining evidence", remedy="give moments in UTC.")
    if min(evidence.new_outcomes, evidence.new_bads) < 0 or evidence.new_bads > evidence.new_outcomes:
        raise UserError(
            f"{evidence.new_bads} bad ones of {evidence.new_outcomes} new outcomes cannot be",
            where="retraining evidence",
            remedy="count outcomes that the latest training did not see.",
        )
