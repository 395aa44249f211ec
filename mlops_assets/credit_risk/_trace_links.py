"""The links of a decision's chain as names and values for people.

What belongs here: what is told of each link. What does not: finding it (`tracing.py`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ChampionRecord, ModelVersion

Link = list[tuple[str, Any]]

_HEX = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-][0-9]+")


def unbroken(link: Callable[[], Link]) -> Link:
    """Return a link, or what is wrong with it: just when things go wrong the others are wanted."""
    try:
        return link()
    except UserError as error:
        return [("", str(error))]


def decision_link(body: Mapping[str, Any]) -> Link:
    """Return what was decided and on what probability."""
    result = body["result"]
    return [
        ("what", f"{result['decision']} by rule {result['rule']}"), ("period", body["period"]),
        ("channel", body["channel"]), ("decided", body["decided_at"]),
        ("default probability", plain(result["pd"])), ("margin", plain(result["margin"])),
        ("points", result["points"]),
    ]  # fmt: skip


def model_link(version: ModelVersion, context: Mapping[str, Any]) -> Link:
    """Return what decided, who trained it and when."""
    then = context["model"]["sha256"]
    return [
        ("version", f"{version} ({context['model']['kind']})"), ("sha256", then),
        *([("sha256 in the registry now", version.sha256)] if version.sha256 != then else []),
        ("trained by", version.tags.get("trained_by")), ("registered", version.created),
        ("training run", version.tags.get("run_id")), ("code version", version.tags.get("code_version")),
        ("baseline of reasons", context["baseline"]),
    ]  # fmt: skip


def approval_link(record: ChampionRecord | None) -> Link:
    """Return by which record the version served."""
    if record is None:
        return [("", "it never served")]
    return [
        ("verdict", record.verdict), ("by", record.by), ("at", record.logged_at), ("reason", record.reason),
        ("evidence", record.evidence_sha256), ("record", record.record_sha256),
    ]  # fmt: skip


def rules_of(flags: Mapping[str, Any]) -> set[str]:
    """Return the rules of the data that an application breaks."""
    return {each["rule"] for each in flags["broken"]} | set(flags["refused"])


def reason_text(reason: Mapping[str, Any]) -> str:
    """Return a reason with the features behind it and their weight."""
    weight = float.fromhex(reason["contribution"])
    return f"{reason['text']} [{', '.join(reason['features'])}: {weight:+.4g}]"


def place_text(source: Mapping[str, Any] | None) -> str | None:
    """Return where a row stood."""
    return None if source is None else f"{source['file']}, row {source['row']}"


def plain(value: Any) -> Any:
    """Return a number that was recorded as float hex in its usual form, with the hex beside it."""
    if isinstance(value, str) and _HEX.fullmatch(value):
        return f"{float.fromhex(value):.6g} ({value})"
    return value
