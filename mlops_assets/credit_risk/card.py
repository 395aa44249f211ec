"""The model card: a candidate on paper, for those who have to answer for it.

What belongs here: which sections there are, when a card is complete, where it lies, and its summary. What does not:
what a section says (`_card_frame.py`, `_card_results.py`), its markup (`_card_page.py`) and its pictures
(`_card_charts.py`). The order follows Mitchell et al. ("Model Cards for Model Reporting", 2019), with what a bank's
model risk asks for beyond that.

A card is made from stored evidence alone: equal evidence gives the same bytes, and no card of an earlier evidence is
overwritten, as its name holds its hash.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlops_assets.credit_risk import _card_frame as frame
from mlops_assets.credit_risk import _card_page as html
from mlops_assets.credit_risk import _card_results as results
from mlops_assets.credit_risk._card_page import Html, Section
from mlops_assets.credit_risk._card_values import NAMES, Facts, Raw, assessed, count, day, number, share
from mlops_assets.credit_risk.judging import read_gates
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation import reports
from mlops_assets.foundation.files import AnyPath, sha256_hex
from mlops_assets.foundation.registry import GateResult, ModelVersion

GATE = "model_card"

SECTIONS: Sequence[Callable[[Facts], Section]] = (
    frame.purpose,
    frame.people,
    frame.data,
    frame.features,
    results.performance,
    results.calibration,
    results.stability,
    results.segments,
    results.groups,
    results.reasons,
    results.policy,
    frame.limits,
    frame.watch,
    frame.versions,
)
"""Every section but the last, in order; all of them are required."""

_STATUSES = ("failed", "not_assessed", "passed")


@dataclass(frozen=True)
class Written:
    """A card that was written.

    Parameters
    ----------
    path
        Below the folder of reports.
    sha256
        Of the document.
    summary
        The card in a few lines of Markdown.
    missing
        What a section has to hold and does not, each with the section's title.
    unknown
        What the card names as not assessed.
    """

    path: str
    sha256: str
    summary: str
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


def write(spec: Spec, version: ModelVersion, evidence: Raw, split_metadata: Raw, root: AnyPath) -> Written:
    """Write the card of a version below the store's root.

    Parameters
    ----------
    evidence
        `evaluation`, `bias_report` and `explanations` as they were stored with the version.
    split_metadata
        What the training set's metadata say of how it was cut.
    """
    facts = Facts.of(spec, version, evidence, split_metadata)
    sections = [make(facts) for make in SECTIONS]
    unknown = [f"{section.title}: {each}" for section in sections for each in section.unknown]
    missing = [f"{section.title}: {each}" for section in sections for each in section.missing]
    gates = [gate for part in evidence.values() for gate in read_gates(part.get("gates") or ())]
    unknown += [f"Gate {each.gate}: {each.reason}" for each in gates if each.status == "not_assessed"]
    sections.append(_not_assessed(unknown))
    opening = [_first_look(gates), html.tiles(_figures(facts)), _gates_table(gates)]
    document = html.page(
        f"Model card: {version.model}, version {version.version}",
        [
            (
                f"{NAMES.get(facts.kind, facts.kind)} of the system {spec.name}, trained as of "
                f"{day(facts.split.get('as_of'))} by {version.tags.get('trained_by') or 'nobody named'}"
            ),
            f"SHA-256 {version.sha256}",
        ],
        opening,
        sections,
        "Made from the evidence that is stored with the version. Nothing on this card approves the version: an "
        "approval names this version and its evidence in the champion's history.",
    )
    digest = sha256_hex(document)
    path = f"{spec.name}/cards/v{version.version}-{digest[:12]}.html"
    reports.write(root, path, document)
    return Written(path, digest, _summary(facts, gates, missing, unknown), tuple(missing), tuple(unknown))


def gate(written: Written) -> GateResult:
    """Return whether every required section of a card is there and holds what it has to."""
    told = "; ".join(written.missing)
    reason = f"missing on the card: {told}" if told else f"all {len(SECTIONS)} sections are complete"
    return GateResult(
        GATE, "failed" if written.missing else "passed", float(len(written.missing)), 0.0, None,
        f"{reason}; {len(written.unknown)} things are named as not assessed",
    )  # fmt: skip


def _not_assessed(unknown: Sequence[str]) -> Section:
    opening = (
        "Not assessed is not passed: of the following nothing is known, and nothing may be concluded."
        if unknown
        else "Everything that the sections ask for was assessed."
    )
    return Section("What is not assessed", [html.paragraph(opening), html.listed(unknown)])


def _first_look(gates: Sequence[GateResult]) -> Html:
    """Say before everything else whether something stands against the version."""
    against = [each for each in gates if each.status != "passed"]
    if not gates:
        return html.note("No gate has been asked: nothing is known of this version.", "failed")
    if not against:
        words = f"Every one of {len(gates)} gate results passed. Approval is still a person's decision."
        return html.note(words)
    failed = any(each.status == "failed" for each in against)
    names = ", ".join(dict.fromkeys(each.gate for each in against))
    return html.note(
        f"{len(against)} of {len(gates)} gate results did not pass: {names}.", "failed" if failed else "not_assessed"
    )


def _figures(facts: Facts) -> dict[str, tuple[str, str]]:
    """Return the numbers that are asked for first."""
    metrics, told = facts.evaluation.get("metrics") or {}, facts.explanations
    found: dict[str, tuple[str, str]] = {
        "AUC out of time": _tile(metrics.get("auc"), 3),
        "KS distance": _tile(metrics.get("ks"), 3),
        "Calibration error": _tile(metrics.get("calibration_error"), 4),
    }
    lowest = min(
        (each for each in facts.bias.get("attributes") or () if assessed(each.get("ratio"))),
        key=lambda each: each["ratio"]["value"],
        default=None,
    )
    figure, remark = _tile(lowest["ratio"] if lowest else None, 3)
    named = f"{lowest['attribute']} = {lowest['lowest']}; {remark}" if lowest else remark
    found["Lowest approval ratio"] = (figure, named)
    found["First reason stays"] = _tile((told.get("stability") or {}).get("first"), 3)
    rows = facts.evaluation.get("rows") or {}
    bads = (facts.evaluation.get("bads") or {}).get("test")
    found["Judged on"] = (f"{count(rows.get('test'))} loans", f"{count(bads)} of them bad")
    return found


def _tile(estimate: Raw | None, digits: int) -> tuple[str, str]:
    if estimate is None or not assessed(estimate):
        return "not assessed", str((estimate or {}).get("reason") or "")
    bounds = f"{number(estimate['low'], digits)} to {number(estimate['high'], digits)}"
    return number(estimate["value"], digits), bounds


def _gates_table(gates: Sequence[GateResult]) -> Html:
    """Return the results of all gates, those that did not pass first."""
    rows = [
        {
            "gate": each.gate.replace("_", " "),
            "status": html.chip(each.status),
            "value": each.value,
            "bound": each.bound,
            "reason": each.reason,
        }
        for each in sorted(gates, key=lambda each: _STATUSES.index(each.status))
    ]
    columns = {"gate": "gate", "status": "status", "value": "value", "bound": "bound", "reason": "what was found"}
    return html.table(columns, rows, "Gates")


def _summary(facts: Facts, gates: Sequence[GateResult], missing: Sequence[str], unknown: Sequence[str]) -> str:
    counts = {status: sum(each.status == status for each in gates) for status in _STATUSES}
    lines = [
        (
            f"**{_plain(facts.version.model)} version {facts.version.version}** "
            f"({_plain(NAMES.get(facts.kind, facts.kind))}), `{facts.version.sha256[:12]}`"
        ),
        "",
        f"Gates: {counts['passed']} passed, {counts['failed']} failed, {counts['not_assessed']} not assessed.",
        "",
        *(
            f"* {_plain(name)}: {_plain(figure)} ({_plain(remark)})"
            for name, (figure, remark) in _figures(facts).items()
        ),
        f"* Accepted below a PD of {share(facts.policy.accept_below)}, rejected from {share(facts.policy.reject_from)}",
        "",
        *(f"* **Missing:** {_plain(each)}" for each in missing),
        f"{len(unknown)} things are named as not assessed." if unknown else "Nothing is left not assessed.",
    ]
    return "\n".join(lines)


def _plain(words: str) -> str:
    """Escape what Markdown or HTML would take for more than text."""
    return "".join(f"\\{letter}" if letter in _SPECIAL else letter for letter in words.replace("\n", " "))


_SPECIAL = frozenset("\\`*_{}[]<>#|&")
