"""When a training is asked for, and which rule says why not: the whole table, and what must hold for any evidence."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk.monitoring import ColumnFinding, DriftFinding
from mlops_assets.credit_risk.retraining import RULES, Ask, Evidence, Skip, decide, fingerprint, triggers
from mlops_assets.credit_risk.spec import Monitoring, Retraining
from mlops_assets.foundation.drift import DriftStatus
from mlops_assets.foundation.errors import UserError

NOW = datetime(2026, 6, 30, 6, tzinfo=UTC)
RULES_OF_SPEC, MONITORING = Retraining(), Monitoring()


def days(count: float) -> timedelta:
    return timedelta(days=count)


def window(day: int, status: DriftStatus = "drifted", *batches: str) -> DriftFinding:
    income = ColumnFinding("income", "drifted", 1.0, 0.4, 0.1, 0.2, 0.0, 0.0, 0.0, 0.3, 0.25, None, "")
    of = batches or (f"batch-{day}",)
    key = f"2026-06-{day:02d}"
    columns = (income,) if status == "drifted" else ()
    return DriftFinding(status, key, key, of, 8_000, 1_200, "ab" * 32, 1.0, columns, ())


QUIET = Evidence(
    as_of="2026-06-29",
    now=NOW,
    champion="c" * 64,
    trained_until=NOW - days(30),
    learned_until=NOW - days(30),
    windows=(window(27, "none"), window(28, "none")),
    decay="holds",
    new_outcomes=900,
    new_bads=100,
)

TRIGGERS: Mapping[str, dict[str, Any]] = {
    "T1_drift": {"windows": (window(27), window(28))},
    "T2_decay": {"decay": "decayed", "decay_facts": {"outcomes": "e" * 64}},
    "T3_new_outcomes": {"new_outcomes": 5_000, "new_bads": 300},
    "T4_age": {"trained_until": NOW - days(366)},
    "T5_request": {"request": "r-17"},
}
GUARDS: Mapping[str, dict[str, Any]] = {
    "G1_incident": {"incidents": ("i-3",)},
    "G3_freeze": {"frozen": "audit until July"},
    "G4_in_flight": {"in_flight": ("run-9",)},
    "G5_cool_down": {"attempts": (NOW - days(6.9),)},
    "G6_nothing_new": {"new_outcomes": 99, "new_bads": 10},
    "G7_budget": {"attempts": (NOW - days(8), NOW - days(29))},
    "G8_back_off": {"rejections": (NOW - days(60), NOW - days(13))},
}


def ask(evidence: Evidence) -> Ask | Skip:
    return decide(evidence, RULES_OF_SPEC, MONITORING)


def skipped(evidence: Evidence) -> Skip:
    found = ask(evidence)
    assert isinstance(found, Skip)
    return found


def asked(evidence: Evidence) -> Ask:
    found = ask(evidence)
    assert isinstance(found, Ask)
    return found


def laid(*over: Mapping[str, Any]) -> Evidence:
    """Lay settings over the quiet evidence; moments of several add up."""
    settings_: dict[str, Any] = {}
    for each in over:
        for name, value in each.items():
            both = name in settings_ and name in {"attempts", "rejections"}
            settings_[name] = (*settings_[name], *value) if both else value
    return replace(QUIET, **settings_)


def test_quiet_evidence_asks_for_nothing_and_says_what_was_looked_at() -> None:
    found = skipped(QUIET)

    assert (found.rule, found.alert) == ("T0_nothing_asks", False)
    assert found.text == (
        "T0_nothing_asks: Nothing asks for a training. Drift of the latest window: none (2 in a row are needed); "
        "realised performance: holds; 900 new outcomes."
    )


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_each_trigger_asks_by_itself(trigger: str) -> None:
    found = asked(laid(TRIGGERS[trigger]))

    assert (found.trigger, found.also) == (trigger, ())
    assert found.run_key == f"{trigger}:{found.fingerprint}:2026-06-29"
    assert found.reason


def expected(guards: set[str], fired: set[str]) -> str:
    """The order of the rules, written down once more."""
    if "G1_incident" in guards:
        return "G1_incident"
    # Too few outcomes to learn from are too few to ask, too.
    fired = fired - {"T3_new_outcomes"} if "G6_nothing_new" in guards else fired
    if not fired:
        return "T0_nothing_asks"
    for guard in ("G3_freeze", "G4_in_flight", "G5_cool_down", "G6_nothing_new", "G7_budget", "G8_back_off"):
        if guard in guards:
            return guard
    return min(fired)


def subsets(names: Mapping[str, Any]) -> Iterator[set[str]]:
    for chosen in product([False, True], repeat=len(names)):
        yield {name for name, there in zip(names, chosen, strict=True) if there}


def test_the_whole_table_of_triggers_and_guards() -> None:
    rows = 0
    for fired, guards in product(subsets(TRIGGERS), subsets(GUARDS)):
        # A guard's number of outcomes is laid over the trigger's.
        found = ask(laid(*[TRIGGERS[name] for name in fired], *[GUARDS[name] for name in sorted(guards)]))
        name = found.trigger if isinstance(found, Ask) else found.rule
        assert name == expected(guards, fired), (fired, guards)
        rows += 1
    assert rows == 2**5 * 2**7


@pytest.mark.parametrize("guard", GUARDS)
def test_every_skip_names_its_rule_and_what_it_rests_on(guard: str) -> None:
    found = skipped(laid(TRIGGERS["T2_decay"], GUARDS[guard]))

    assert found.rule == guard
    assert found.text.startswith(f"{guard}: {RULES[guard]} ")
    assert found.text.endswith(".")


@pytest.mark.parametrize(
    ("guard", "detail"),
    [
        ("G1_incident", "Open: i-3."),
        ("G3_freeze", "Audit until July (T2_decay"),
        ("G4_in_flight", "Run run-9 ("),
        ("G5_cool_down", "Until 2026-06-30 08:24 UTC ("),
        ("G6_nothing_new", "99 new outcomes, 100 are needed ("),
        ("G7_budget", "2 in 30 days, 2 are allowed ("),
        ("G8_back_off", "2 so far, until 2026-07-01 06:00 UTC ("),
    ],
)
def test_a_skip_says_in_detail_what_forbids(guard: str, detail: str) -> None:
    assert detail in skipped(laid(TRIGGERS["T2_decay"], GUARDS[guard])).text


def test_people_are_told_where_a_training_cannot_help() -> None:
    alerts = {guard: skipped(laid(TRIGGERS["T2_decay"], GUARDS[guard])).alert for guard in GUARDS}

    assert {guard for guard, alert in alerts.items() if alert} == {"G1_incident", "G6_nothing_new", "G7_budget"}


# --- Drift and data incidents ---


@pytest.mark.parametrize("trigger", [None, *TRIGGERS])
def test_an_open_incident_means_fix_the_data_whatever_asks(trigger: str | None) -> None:
    found = skipped(laid(TRIGGERS.get(trigger or "", {}), {"incidents": ("i-9", "i-3")}))

    assert found.text == "G1_incident: A data incident is open: fix the data, never retrain. Open: i-3, i-9."


def test_drift_of_batches_under_an_incident_never_retrains() -> None:
    found = skipped(laid(TRIGGERS["T1_drift"], {"touched": ("batch-28",)}))

    assert found.rule == "G2_drift_of_an_incident"


def test_drift_that_an_incident_explains_keeps_no_other_trigger_from_asking() -> None:
    found = asked(laid(TRIGGERS["T1_drift"], TRIGGERS["T2_decay"], {"touched": ("batch-28",)}))

    assert (found.trigger, found.also) == ("T2_decay", ())


def test_drift_before_and_after_an_incident_is_not_drift_in_a_row() -> None:
    history = (window(26), window(27), window(28))

    assert skipped(laid({"windows": history, "touched": ("batch-27",)})).rule == "G2_drift_of_an_incident"
    assert asked(laid({"windows": history, "touched": ("batch-26",)})).trigger == "T1_drift"


@pytest.mark.parametrize(
    ("windows", "confirmed"),
    [
        ((), False),
        ((window(28),), False),
        ((window(27), window(28, "none")), False),
        ((window(27), window(28, "not_assessed")), False),
        ((window(27, "drifted", "a", "b"), window(28, "drifted", "b", "c")), False),
        ((window(26, "none"), window(27), window(28)), True),
        ((window(28), window(26, "none"), window(27)), True),
    ],
)
def test_drift_asks_once_it_is_confirmed(windows: tuple[DriftFinding, ...], confirmed: bool) -> None:
    assert isinstance(ask(replace(QUIET, windows=windows)), Ask) is confirmed


def test_more_windows_can_be_asked_for() -> None:
    evidence = laid(TRIGGERS["T1_drift"])

    assert isinstance(decide(evidence, RULES_OF_SPEC, Monitoring(confirm=3)), Skip)


def test_the_reason_of_drift_names_the_features() -> None:
    assert asked(laid(TRIGGERS["T1_drift"])).reason == "income drifted in 2 windows in a row, the last up to 2026-06-28"


# --- Bounds ---


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"decay": "not_assessed"}, "T0_nothing_asks"),
        ({"new_outcomes": 4_999, "new_bads": 300}, "T0_nothing_asks"),
        ({"new_outcomes": 5_000, "new_bads": 299}, "T0_nothing_asks"),
        ({"trained_until": NOW - days(365)}, "T0_nothing_asks"),
        ({"trained_until": NOW - days(365.01)}, "T4_age"),
        ({"trained_until": NOW - days(900), "champion": None}, "T0_nothing_asks"),
        ({"request": "r", "new_outcomes": 100, "new_bads": 0}, "T5_request"),
        ({"request": "r", "attempts": (NOW - days(7),)}, "T5_request"),
        # A clock that goes ahead must not open the gate.
        ({"request": "r", "attempts": (NOW + days(1),)}, "G5_cool_down"),
        ({"request": "r", "attempts": (NOW - days(8), NOW - days(30))}, "T5_request"),
        ({"request": "r", "rejections": (NOW - days(7),)}, "T5_request"),
        ({"request": "r", "rejections": (NOW - days(6),)}, "G8_back_off"),
        ({"request": "r", "rejections": tuple(NOW - days(d) for d in (27, 90, 200))}, "G8_back_off"),
        ({"request": "r", "rejections": tuple(NOW - days(d) for d in (28, 90, 200))}, "T5_request"),
        ({"request": "r", "rejections": tuple(NOW - days(90) for _ in range(5_000))}, "G8_back_off"),
        ({"request": "r", "frozen": ""}, "G3_freeze"),
    ],
)
def test_bounds_hold_exactly(change: dict[str, Any], outcome: str) -> None:
    found = ask(replace(QUIET, **change))

    assert (found.trigger if isinstance(found, Ask) else found.rule) == outcome


def test_a_cool_down_of_nothing_is_none() -> None:
    evidence = replace(QUIET, request="r", attempts=(NOW,))

    assert isinstance(decide(evidence, Retraining(cool_down_days=0), MONITORING), Ask)


# --- Once, and the same for the same facts ---


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_same_evidence_asks_once(trigger: str) -> None:
    evidence = laid(TRIGGERS[trigger])
    first = asked(evidence)

    again = skipped(replace(evidence, as_of="2026-07-10", now=NOW + days(1), asked=(first.fingerprint,)))

    assert again.rule == "G9_already_asked"
    assert trigger in again.text


def test_another_trigger_asks_where_the_first_one_has() -> None:
    evidence = laid(TRIGGERS["T2_decay"], TRIGGERS["T5_request"])
    first = asked(evidence)

    second = asked(replace(evidence, asked=(first.fingerprint,)))

    assert (first.trigger, first.also) == ("T2_decay", ("T5_request",))
    assert (second.trigger, second.also) == ("T5_request", ("T2_decay",))


@pytest.mark.parametrize("trigger", ["T1_drift", "T2_decay", "T3_new_outcomes", "T4_age"])
def test_evidence_asks_again_once_a_training_has_learned_more(trigger: str) -> None:
    evidence = laid(TRIGGERS[trigger])
    learned = replace(evidence, learned_until=NOW, asked=(asked(evidence).fingerprint,))

    assert asked(learned).trigger == trigger


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_time_alone_changes_no_fingerprint(trigger: str) -> None:
    evidence = laid(TRIGGERS[trigger])
    later = replace(evidence, now=NOW + days(3), as_of="2026-07-02")

    assert asked(later).fingerprint == asked(evidence).fingerprint
    assert asked(later).run_key != asked(evidence).run_key


def test_a_moment_in_another_time_zone_is_the_same_fact() -> None:
    evidence = laid(TRIGGERS["T4_age"])
    zone = timezone(timedelta(hours=5))
    assert evidence.trained_until is not None
    assert evidence.learned_until is not None
    moved = replace(
        evidence,
        trained_until=evidence.trained_until.astimezone(zone),
        learned_until=evidence.learned_until.astimezone(zone),
    )

    assert asked(moved) == asked(evidence)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"now": datetime(2026, 6, 30)}, "has no time zone"),  # noqa: DTZ001 - the mistake
        ({"attempts": (datetime(2026, 6, 30),)}, "has no time zone"),  # noqa: DTZ001
        ({"new_outcomes": -1, "new_bads": 0}, "cannot be"),
        ({"new_outcomes": 5, "new_bads": 6}, "6 bad ones of 5 new outcomes cannot be"),
    ],
)
def test_facts_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(replace(QUIET, **change))


# --- For any evidence ---

moments = st.integers(-90 * 24, 24).map(lambda hours: NOW + timedelta(hours=hours))
findings = st.lists(
    st.builds(
        window,
        st.integers(1, 28),
        st.sampled_from(["drifted", "drifted", "none", "not_assessed"]),
    ),
    max_size=4,
    unique_by=lambda each: each.batches,
)
evidences = st.builds(
    lambda bads, more, **rest: Evidence(as_of="2026-06-29", now=NOW, new_bads=bads, new_outcomes=bads + more, **rest),
    bads=st.integers(0, 600),
    more=st.integers(0, 9_000),
    champion=st.sampled_from([None, "c" * 64]),
    trained_until=st.none() | st.integers(0, 600).map(lambda count: NOW - days(count)),
    learned_until=st.none() | moments,
    incidents=st.sets(st.sampled_from(["i-1", "i-2"]), max_size=2).map(tuple),
    touched=st.sets(st.integers(1, 28).map(lambda day: f"batch-{day}"), max_size=4).map(tuple),
    windows=findings.map(tuple),
    decay=st.sampled_from(["decayed", "holds", "not_assessed"]),
    decay_facts=st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), max_size=3), max_size=3),
    request=st.none() | st.sampled_from(["r-1", "r-2"]),
    frozen=st.none() | st.just("audit"),
    in_flight=st.sets(st.sampled_from(["run-1", "run-2"]), max_size=1).map(tuple),
    attempts=st.lists(moments, max_size=3).map(tuple),
    rejections=st.lists(moments, max_size=3).map(tuple),
)


@given(evidences)
@settings(max_examples=400, deadline=None)
def test_nothing_is_ever_asked_for_while_an_incident_is_open(evidence: Evidence) -> None:
    found = ask(evidence)

    if evidence.incidents:
        assert isinstance(found, Skip)
        assert found.rule == "G1_incident"
    if isinstance(found, Skip):
        assert found.rule in RULES
        assert found.text.startswith(found.rule)
    else:
        assert not evidence.frozen
        assert not evidence.in_flight
        assert evidence.new_outcomes >= RULES_OF_SPEC.minimum_new_outcomes


@given(evidences, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_the_order_of_facts_is_irrelevant(evidence: Evidence, random: Any) -> None:
    def shuffled(values: Any) -> Any:
        mixed = list(values)
        random.shuffle(mixed)
        return tuple(mixed)

    other = replace(
        evidence,
        decay_facts={name: shuffled(value) for name, value in shuffled(evidence.decay_facts.items())},
        **{
            name: shuffled(getattr(evidence, name))
            for name in ("incidents", "touched", "windows", "in_flight", "attempts", "rejections")
        },
    )

    found, again = ask(evidence), ask(other)

    if isinstance(found, Ask):
        assert isinstance(again, Ask)
        assert (again.run_key, again.trigger, again.also) == (found.run_key, found.trigger, found.also)
    else:
        assert again == found


@given(evidences)
@settings(max_examples=300, deadline=None)
def test_the_same_facts_have_the_same_key_and_other_facts_another(evidence: Evidence) -> None:
    assert ask(evidence) == ask(replace(evidence))
    for each in triggers(evidence, RULES_OF_SPEC, MONITORING):
        found = fingerprint(each.trigger, each.facts)
        assert found == fingerprint(each.trigger, dict(reversed(list(each.facts.items()))))
        assert found != fingerprint(each.trigger, {**each.facts, "another": 1})
        assert found != fingerprint("T6", each.facts)


@given(evidences)
@settings(max_examples=200, deadline=None)
def test_what_was_asked_is_never_asked_again(evidence: Evidence) -> None:
    seen: list[str] = []
    while isinstance(found := ask(replace(evidence, asked=tuple(seen))), Ask):
        assert found.fingerprint not in seen
        seen.append(found.fingerprint)
    assert len(seen) <= len(TRIGGERS)


@given(evidences)
@settings(max_examples=200, deadline=None)
def test_windows_of_batches_under_an_incident_never_ask(evidence: Evidence) -> None:
    everything = tuple(name for each in evidence.windows for name in each.batches)

    found = ask(replace(evidence, touched=everything))

    if isinstance(found, Ask):
        assert "T1_drift" not in (found.trigger, *found.also)
