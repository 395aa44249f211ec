"""How a candidate is judged: what the gates found, and the verdict on it.

What belongs here: the rule that turns gate results into a verdict. What does not: which gates a system needs
(`risk.py`), how a gate is measured, and what a verdict moves (`_champion.py`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlops_assets.foundation._model_store import ModelVersion

Status = Literal["passed", "failed", "not_assessed"]

APPROVAL = "approval"
"""The gate that no evaluation can pass: a person does, afterwards (`ChampionHistory.approve`)."""


@dataclass(frozen=True)
class GateResult:
    """What one gate found: the value, the bound it was held against, and the interval of the value."""

    gate: str
    status: Status
    value: float | None = None
    bound: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return the result as plain values, for evidence and tables."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """``promoted``, ``proposed`` (somebody must approve), ``kept`` (the champion stays) or ``blocked``; the reasons."""

    verdict: Literal["promoted", "proposed", "kept", "blocked"]
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return "; ".join(self.reasons)


def decide(
    candidate: ModelVersion,
    champion: ModelVersion | None,
    gates: Sequence[GateResult],
    required: Sequence[str],
    better: GateResult | None = None,
    *,
    held_back: str | None = None,
) -> Verdict:
    """Judge a candidate on its gates; whatever comes out is a result, never an exception.

    Parameters
    ----------
    candidate, champion
        The version to judge, and the one that serves, if any.
    gates
        The results of the gates. Several results of one gate must all pass.
    required
        The names of the gates that must have passed. One that failed, was not assessed or is missing blocks.
        ``approval`` among them is not measured: it turns a promotion into a proposal.
    better
        The result of comparing the candidate with the champion. Failed means "not better", which keeps the champion
        and blocks nothing; it is not needed where there is no champion.
    held_back
        Why people do not want this content, from `ChampionHistory.held_back`: it keeps an otherwise good candidate
        from coming back by itself. Leave it out where somebody asks for the candidate again.

    Returns
    -------
    Verdict
        ``kept`` for the champion's own content, else ``blocked``, ``promoted`` (or ``proposed``) or ``kept``.
    """
    if champion is not None and champion.sha256 == candidate.sha256:
        return Verdict("kept", (f"{candidate} is the champion's own content (version {champion.version})",))
    comparison = better.gate if better is not None else None
    measured = [name for name in required if name not in {comparison, APPROVAL}]
    blocking = [reason for name in measured for reason in _unmet(name, gates)]
    if champion is not None and better is not None and comparison in required and better.status == "not_assessed":
        blocking.append(_told(better))
    if blocking:
        return Verdict("blocked", tuple(blocking))
    remarks = tuple(_told(gate) for gate in gates if gate.gate not in required and gate.status == "failed")
    if champion is not None and (better is None or better.status != "passed"):
        why = _told(better) if better is not None else "it was not compared with the champion"
        return Verdict("kept", (f"version {champion.version} stays: {why}", *remarks))
    if held_back:
        return Verdict("kept", (held_back, *remarks))
    good = "there was no champion, and every required gate passed"
    if champion is not None and better is not None:
        good = f"better than version {champion.version}: {_told(better)}"
    return Verdict("proposed" if APPROVAL in required else "promoted", (good, *remarks))


def _unmet(name: str, gates: Sequence[GateResult]) -> list[str]:
    results = [gate for gate in gates if gate.gate == name]
    if not results:
        return [f"required gate {name} is missing"]
    return [_told(gate) for gate in results if gate.status != "passed"]


def _told(gate: GateResult) -> str:
    numbers = [
        f"value {gate.value:.4g}" if gate.value is not None else "",
        f"bound {gate.bound:.4g}" if gate.bound is not None else "",
        f"interval {gate.interval[0]:.4g} to {gate.interval[1]:.4g}" if gate.interval is not None else "",
    ]
    detail = ", ".join(filter(None, [*numbers, gate.reason]))
    return f"{gate.gate} {gate.status.replace('_', ' ')}" + (f" ({detail})" if detail else "")
