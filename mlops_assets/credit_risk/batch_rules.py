"""What is wrong with a batch of applications as a whole, told from real change by size and by sampling noise.

What belongs here: rules on the facts of a batch and of those before it, as pure functions. What does not: rules on a
row (`contracts.py`), the facts (`batch_facts.py`), distributions (foundation/drift.py), what becomes of a finding.

A share breaks a bound only if it lies above it and a batch of this size would show so many rows by chance, were the
bound its true share, with a probability of less than `CHANCE` (exact binomial test). A small batch therefore
passes or warns where a large one blocks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from statistics import median
from typing import Literal

from mlops_assets.credit_risk.batch_facts import POINTS, BatchFacts, Labels, Numbers, pooled_labels, pooled_numbers
from mlops_assets.credit_risk.contracts import plain
from mlops_assets.credit_risk.spec import Spec

CHANCE, WARN_CHANCE = 0.01, 0.1
UNIT_SHIFTS = (*(10.0**k for k in range(-6, 7) if k), 12.0, 1 / 12)
"""Factors between units that are confused: powers of ten (cents, percent, thousands), a year's and a month's amount."""
UNIT_TOLERANCE = 0.1
COPIES_WARN = 0.01
OTHER_PERIOD = "of_this_period"
CONFLICT, KNOWN = "one_application_one_content", "known_application_id"
CODE_LIST = "code_list_version_known"

_WORST_TOLERANCE = 0.25  # of a decimal logarithm: a wider one would call a fourfold median a tenfold one
_STANDARD_ERRORS = 3.0
_COMPARABLE = 8
_LEAST_COMPARABLE = 3
_GROWTH = 3  # times the largest comparable batch
_SYSTEMATIC_FLOOR = 0.005
_LEAST_KNOWN = 200
_MOSTLY = 0.8

Severity = Literal["warn", "block"]


@dataclass(frozen=True)
class Finding:
    """What a rule found in a batch; a blocking one is a data incident."""

    rule: str
    column: str | None
    value: str
    bound: str
    severity: Severity
    message: str


def judge(
    spec: Spec, batch: BatchFacts, reference: Sequence[BatchFacts], *, replaced: BatchFacts | None = None
) -> list[Finding]:
    """Return what is wrong with a batch, the blocking findings first.

    Parameters
    ----------
    reference
        Accepted batches before it, oldest first, one a period.
    replaced
        The batch of the same period that this one would take the place of.
    """
    if not batch.rows:
        return [*_empty(spec, batch, reference), *_shrunken(spec, batch, replaced)]
    # What names a cause comes before what only counts its effects.
    rules: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _shrunken(spec, batch, replaced),
        lambda: _other_period(batch),
        lambda: _code_list(spec, batch),
        lambda: _units(spec, batch, reference),
        lambda: _missing(spec, batch, reference),
        lambda: _unknown(spec, batch, reference),
        lambda: _rows(spec, batch, reference),
        lambda: _quarantine(spec, batch),
        lambda: _systematic(spec, batch, reference),
        lambda: _copies(spec, batch),
    )
    found = list(chain.from_iterable(rule() for rule in rules))
    return sorted(found, key=lambda finding: finding.severity != "block")


def same_delivery(period: str, rows: int, other_period: str, other_batch: str) -> Finding:
    """Return the finding of a delivery that has been accepted as another period's before."""
    return Finding(
        "same_delivery", None, other_batch, "content that no other period has had", "block",
        f"the {rows} rows of {period} are, byte for byte, those of {other_period} (batch {other_batch}): the same file "
        "was delivered twice. Deliver the file of this period.",
    )  # fmt: skip


def superseded(period: str, batch: str, by: str) -> Finding:
    """Return the finding of a delivery that another one has replaced already."""
    return Finding(
        "superseded_delivery", None, batch, f"not older than {by}", "block",
        f"the delivery of {period} equals batch {batch}, which batch {by} has replaced: an old file was delivered "
        "again. Deliver the present one, or withdraw the newer batch if the old one is right.",
    )  # fmt: skip


def without_time(spec: Spec, count: int, rows: int) -> list[Finding]:
    """Return the finding of a source of several periods in which many rows cannot be given to any."""
    bound = spec.checks.quarantine_share
    if not exceeds(count, rows, bound):
        return []
    return [
        Finding(
            "rows_without_time", "applied_at", _share(count, rows), f"at most {_percent(bound)}", "block",
            f"{_share(count, rows)} of the source's rows have no readable time, or one in the future: no period "
            "owns them. Correct the `time` format of the source, or the rows.",
        )
    ]  # fmt: skip


def chance_of(count: int, rows: int, share: float) -> float:
    """Return the probability of ``count`` or more of ``rows`` rows where each is one with probability ``share``."""
    if count <= 0:
        return 1.0
    if share <= 0:
        return 0.0
    if share >= 1:
        return 1.0
    from scipy.special import betainc

    return float(betainc(count, rows - count + 1, share))


def exceeds(count: int, rows: int, bound: float, chance: float = CHANCE) -> bool:
    """Tell whether a share lies above a bound by more than chance."""
    return rows > 0 and count / rows > bound and chance_of(count, rows, bound) < chance


def _share(count: int, rows: int) -> str:
    return f"{100 * count / rows:.3g} % ({count} of {rows})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


# --- How many rows ---


def _usual(spec: Spec, batch: BatchFacts, reference: Sequence[BatchFacts]) -> tuple[list[int], str]:
    """Return the row counts to compare with, and what they are of: the same weekday where days are periods."""
    every = [facts.rows for facts in reference][-_COMPARABLE:]
    if spec.periods.cadence == "daily":
        day = date.fromisoformat(batch.period)
        same = [facts.rows for facts in reference if date.fromisoformat(facts.period).weekday() == day.weekday()]
        if len(same) >= _LEAST_COMPARABLE:
            return same[-_COMPARABLE:], f"a {day:%A}"
    return (every if len(every) >= _LEAST_COMPARABLE else []), "a period"


def _empty(spec: Spec, batch: BatchFacts, reference: Sequence[BatchFacts]) -> Iterator[Finding]:
    counts, what = _usual(spec, batch, reference)
    if counts and math.exp(-median(counts)) > CHANCE:
        return
    usual = f"{median(counts):.0f} are usual for {what}" if counts else "no earlier period tells what is usual"
    yield Finding(
        "no_applications", None, "0", "at least 1", "warn",
        f"no applications on {batch.period}; {usual}. Check the delivery if this is no holiday.",
    )  # fmt: skip


def _rows(spec: Spec, batch: BatchFacts, reference: Sequence[BatchFacts]) -> Iterator[Finding]:
    counts, what = _usual(spec, batch, reference)
    if not counts:
        return
    usual, small = median(counts), spec.checks.minimum_batch
    low, high = spec.checks.minimum_rows * usual, spec.checks.maximum_rows * max(usual, small)
    # Business that grows fast leaves its median behind, but not its last batches.
    high = max(high, _GROWTH * max(counts))
    # Of few rows, a fifth is a matter of luck.
    if usual >= small and batch.rows < low:
        yield Finding(
            "row_count", None, str(batch.rows), f"at least {low:.0f}", "block",
            f"{batch.rows} rows where {usual:.0f} are usual for {what}: the delivery is not complete; deliver all.",
        )  # fmt: skip
    if batch.rows > high:
        yield Finding(
            "row_count", None, str(batch.rows), f"at most {high:.0f}", "block",
            f"{batch.rows} rows where {usual:.0f} are usual for {what}: check whether the delivery holds other "
            "periods or everything several times.",
        )  # fmt: skip


def _shrunken(spec: Spec, batch: BatchFacts, replaced: BatchFacts | None) -> Iterator[Finding]:
    if replaced is None or batch.rows >= spec.checks.minimum_rows * replaced.rows:
        return
    low = math.ceil(spec.checks.minimum_rows * replaced.rows)
    yield Finding(
        "rows_lost", None, str(batch.rows), f"at least {low}", "block",
        f"{batch.rows} rows would replace the {replaced.rows} that {batch.period} has: the earlier batch stays until "
        "somebody confirms this one.",
    )  # fmt: skip


# --- How many rows are in order ---


def _quarantine(spec: Spec, batch: BatchFacts) -> Iterator[Finding]:
    bound = spec.checks.quarantine_share
    if not exceeds(batch.quarantined, batch.rows, bound, WARN_CHANCE):
        return
    worst = ", ".join(f"{rule} ({count})" for rule, count in _most(batch.rules))
    yield Finding(
        "quarantine_share", None, _share(batch.quarantined, batch.rows), f"at most {_percent(bound)}",
        "block" if exceeds(batch.quarantined, batch.rows, bound) else "warn",
        f"{_share(batch.quarantined, batch.rows)} of the rows are in quarantine; most often broken: {worst}.",
    )  # fmt: skip


def _most(rules: Mapping[str, int], most: int = 3) -> list[tuple[str, int]]:
    return sorted(rules.items(), key=lambda item: (-item[1], item[0]))[:most]


def _systematic(spec: Spec, batch: BatchFacts, reference: Sequence[BatchFacts]) -> Iterator[Finding]:
    checks = spec.checks
    if batch.quarantined < checks.systematic_rows:
        return
    rule, count = _most(batch.rules, 1)[0]
    if count / batch.quarantined <= checks.systematic_share:
        return
    before = sum(facts.rows for facts in reference)
    usual = sum(facts.rules.get(rule, 0) for facts in reference) / before if before else 0.0
    # A flaw that the feed has always had, at its usual rate, is no incident of today.
    new = exceeds(count, batch.rows, max(usual, _SYSTEMATIC_FLOOR))
    yield Finding(
        "systematic_cause", None, f"{rule}: {count} of {batch.quarantined}",
        f"at most {_percent(checks.systematic_share)} from {checks.systematic_rows} rows on",
        "block" if new else "warn",
        f"{count} of {batch.quarantined} quarantined rows break one rule, {rule} ({_percent(count / batch.rows)} of "
        f"all rows, {_percent(usual)} before): one cause, not {count} slips. Look at the rows in quarantine.",
    )  # fmt: skip


def _other_period(batch: BatchFacts) -> Iterator[Finding]:
    # Rows of a later period are refused as future ones; both together are what the file is not about.
    count = batch.rules.get(OTHER_PERIOD, 0) + batch.rules.get("applied_at_not_after", 0)
    if count < _MOSTLY * batch.rows:
        return
    yield Finding(
        "stale_delivery", "applied_at", _share(count, batch.rows), f"rows of {batch.period}", "block",
        f"{_share(count, batch.rows)} of the rows are of other periods than {batch.period}: an old or a wrong file was "
        "delivered. Deliver the file of this period.",
    )  # fmt: skip


def _code_list(spec: Spec, batch: BatchFacts) -> Iterator[Finding]:
    count, expected = batch.rules.get(CODE_LIST, 0), spec.data.code_list_version
    if not count or expected is None:
        return
    yield Finding(
        "code_list_version", "code_list_version", _share(count, batch.rows), f"version {expected}",
        "block" if exceeds(count, batch.rows, spec.checks.unknown_block) else "warn",
        f"{_share(count, batch.rows)} of the rows state another version of the code lists than {expected}: codes may "
        "have changed their meaning. Review the new lists, then set data.code_list_version and train again.",
    )  # fmt: skip


def _copies(spec: Spec, batch: BatchFacts) -> Iterator[Finding]:
    if not exceeds(batch.copies, batch.rows, COPIES_WARN):
        return
    bound = spec.checks.quarantine_share
    yield Finding(
        "copies", "application_id", _share(batch.copies, batch.rows), f"at most {_percent(bound)}",
        "block" if exceeds(batch.copies, batch.rows, bound) else "warn",
        f"{_share(batch.copies, batch.rows)} of the rows repeat another application word for word; one is kept.",
    )  # fmt: skip


# --- What the columns hold ---


def _missing(spec: Spec, batch: BatchFacts, reference: Sequence[BatchFacts]) -> Iterator[Finding]:
    for name in spec.features:
        now = _column(batch, name).missing
        known = [facts for facts in reference if name in facts.numbers or name in facts.labels]
        before = sum(facts.accepted for facts in known)
        if before:
            usual = sum(_column(facts, name).missing for facts in known) / before
            bound, said = usual + spec.checks.null_share, f"{_percent(usual)} are usual"
            broken = exceeds(now, batch.accepted, bound)
        else:
            # With nothing to compare, only a column that holds nothing at all is known to be wrong.
            bound, said = 1.0, "that is the whole column"
            broken = now == batch.accepted >= spec.checks.minimum_batch
        if broken:
            yield Finding(
                "null_share", name, _share(now, batch.accepted), f"at most {_percent(bound)}", "block",
                f"{name} is missing in {_share(now, batch.accepted)} of the rows; {said}. Deliver the column again "
                "with its values.",
            )  # fmt: skip


def _column(facts: BatchFacts, name: str) -> Numbers | Labels:
    return facts.numbers[name] if name in facts.numbers else facts.labels[name]


def _units(spec: Spec, batch: BatchFacts, reference: Sequence[BatchFacts]) -> Iterator[Finding]:
    """Find a column whose median has moved by a factor between units, which no distance between bins shows.

    Batches that are too small are pooled with those just before them, and the tolerance is three standard errors of
    the median's logarithm, which for a spread s is 1.2533 s / sqrt(n), but at least 10 %.
    """
    for number in spec.numeric:
        earlier = [facts.readable(number.name) for facts in reference if number.name in facts.numbers]
        recent = [batch.readable(number.name)]
        while earlier and sum(part.values for part in recent) < spec.checks.minimum_batch:
            recent.append(earlier.pop())
        now, usual = pooled_numbers(recent), pooled_numbers(earlier)
        at = _comparable_point(usual)
        if now.values < spec.checks.minimum_batch or usual.values < spec.checks.minimum_batch or at is None:
            continue
        ratio = now.points[at] / usual.points[at]
        tolerance = max(math.log10(1 + UNIT_TOLERANCE), _STANDARD_ERRORS * _log_error(now, usual))
        if ratio <= 0 or tolerance > _WORST_TOLERANCE:
            continue
        shift = min(UNIT_SHIFTS, key=lambda factor: abs(math.log10(ratio / factor)))
        if abs(math.log10(ratio / shift)) <= tolerance < abs(math.log10(ratio)):
            yield Finding(
                "median_ratio", number.name, f"{ratio:.4g}", "no factor between units, such as 10, 12 or 100", "block",
                f"{number.name}: the median is {plain(now.points[at])} where {plain(usual.points[at])} is usual, "
                f"{plain(ratio)} times as much: a change of unit by {plain(shift)} is suspected. Ask the sender for "
                "currency and unit; no model is trained on this.",
            )  # fmt: skip


def _comparable_point(usual: Numbers) -> int | None:
    """Return the first of median, upper quartile and 90 % point that is not zero: a ratio needs one."""
    if not usual.points:
        return None
    return next((at for at in (POINTS // 2, 15, 18) if usual.points[at] != 0), None)


def _log_error(now: Numbers, usual: Numbers) -> float:
    low, high = usual.points[5], usual.points[15]
    if low * high <= 0:
        low, high = min(abs(usual.points[10]), abs(usual.points[18])), max(abs(usual.points[10]), abs(usual.points[18]))
        low = low or high / 10
    spread = abs(math.log10(high / low)) / 1.349 if low and high else 1.0
    return 1.2533 * spread * math.sqrt(1 / now.values + 1 / usual.values)


def _unknown(spec: Spec, batch: BatchFacts, reference: Sequence[BatchFacts]) -> Iterator[Finding]:
    checks = spec.checks
    for category in spec.categorical:
        now = batch.labels[category.name]
        levels = set(category.levels)
        if not levels:
            before = pooled_labels(facts.labels[category.name] for facts in reference if category.name in facts.labels)
            if before.values < _LEAST_KNOWN:
                continue
            levels = set(before.counts)
        unknown = {value: count for value, count in now.counts.items() if value not in levels}
        count = sum(unknown.values()) + (now.rare if category.levels else 0)
        if not exceeds(count, now.values, checks.unknown_warn):
            continue
        block = exceeds(count, now.values, checks.unknown_block)
        examples = ", ".join(repr(value[:40]) for value, _ in _most(unknown))
        yield Finding(
            "unknown_category", category.name, _share(count, now.values),
            f"at most {_percent(checks.unknown_block if block else checks.unknown_warn)}", "block" if block else "warn",
            f"{category.name}: {_share(count, now.values)} of the values are of no known category, such as {examples}; "
            "they are scored as 'other'. Check whether the code list has changed.",
        )  # fmt: skip
