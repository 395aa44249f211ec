"""The risk profile of a system, and the gates that it asks for.

What belongs here: three axes, three levels, the table of gates, and the test that a system's definitions
provide them. What does not: how a gate is measured (each has its own module) and the verdict on a model
version (`registry.py`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from mlops_assets.foundation.errors import UserError

Level = Literal["low", "medium", "high"]
Axis = Literal["data", "algorithm", "output"]
Severity = Literal["WARN", "ERROR"]

LEVELS: tuple[Level, ...] = get_args(Level)
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True)
class Gate:
    """One question that a system has to answer before its product may be used.

    Parameters
    ----------
    name
        The key under which a system provides the gate and a verdict reports it.
    axis
        The axis of the risk profile that asks for it.
    level
        The lowest level of that axis that asks for it; every higher level does as well.
    question
        What the gate answers, in one sentence.
    """

    name: str
    axis: Axis
    level: Level
    question: str


GATES: tuple[Gate, ...] = (
    Gate("contract", "data", "low", "Do all rows meet the contract, and are the others in quarantine?"),
    Gate("profile", "data", "low", "Do counts, missing values and ranges look like the reference profile?"),
    Gate("drift", "data", "medium", "Has an input moved, materially and persistently, since training?"),
    Gate("freshness", "data", "medium", "Are the data as recent as the product promises?"),
    Gate("outliers", "data", "high", "Are rows unlike anything in training found and kept from the model?"),
    Gate("incident", "data", "high", "Is there no open data incident that makes training or scoring unsafe?"),
    Gate("accuracy", "algorithm", "low", "Does the model beat the stated baselines on unseen data?"),
    Gate("champion_comparison", "algorithm", "low", "Is the candidate better than the champion, beyond chance?"),
    Gate("interval_coverage", "algorithm", "medium", "Do the stated intervals hold as often as they claim?"),
    Gate("monitoring", "algorithm", "medium", "Is accuracy in use measured against what really happened?"),
    Gate("calibration", "algorithm", "high", "Do predicted probabilities match the observed shares?"),
    Gate("bias_report", "algorithm", "high", "Are all protected groups treated within the stated bounds?"),
    Gate("explanations", "algorithm", "high", "Has every prediction exact reasons that add up to its score?"),
    Gate("model_card", "algorithm", "high", "Are the model's purpose, data, limits and results on paper?"),
    Gate("completeness", "output", "low", "Is every answer there, once, and within the product's rules?"),
    Gate("shadow", "output", "medium", "Did the candidate run beside the champion on live input first?"),
    Gate("approval", "output", "high", "Did somebody other than the trainer approve exactly this version?"),
    Gate("trace", "output", "high", "Can every answer be traced to model, data and code, and be replayed?"),
)


@dataclass(frozen=True)
class RiskProfile:
    """How much a system can go wrong: in its data, in its algorithm and in what its output does.

    Parameters
    ----------
    data, algorithm, output
        ``"low"``, ``"medium"`` or ``"high"``. Low asks for a subset of medium's gates, medium for a subset of
        high's.

    Raises
    ------
    UserError
        A level is none of the three.

    Examples
    --------
    >>> [gate.name for gate in RiskProfile(data="low", algorithm="low", output="low").required_gates()]
    ['contract', 'profile', 'accuracy', 'champion_comparison', 'completeness']
    """

    data: Level
    algorithm: Level
    output: Level

    def __post_init__(self) -> None:
        for axis in AXES:
            if self.level(axis) not in LEVELS:
                raise UserError(
                    f"unknown risk level {self.level(axis)!r}",
                    where=f"risk profile, axis {axis}",
                    remedy=f"use one of {', '.join(LEVELS)}.",
                )

    def level(self, axis: Axis) -> Level:
        """Return the level of one axis."""
        return {"data": self.data, "algorithm": self.algorithm, "output": self.output}[axis]

    def required_gates(self) -> tuple[Gate, ...]:
        """Return the gates that this profile asks for, axis by axis, the lowest level first."""
        return tuple(gate for gate in GATES if LEVELS.index(gate.level) <= LEVELS.index(self.level(gate.axis)))

    def severity(self, axis: Axis) -> Severity:
        """Return how loud a failed check on ``axis`` is: low risk warns, more is an error."""
        return "WARN" if self.level(axis) == "low" else "ERROR"

    def blocking(self, axis: Axis) -> bool:
        """Tell whether a failed check on ``axis`` stops what comes after it in the same run."""
        return self.level(axis) == "high"


def require_gates(
    profile: RiskProfile, system: str, provided: Mapping[str, Sequence[str]], defined: Collection[str]
) -> None:
    """Refuse a system whose definitions lack a gate that its risk profile asks for.

    Parameters
    ----------
    profile
        The system's risk profile.
    system
        The system's name, for the message.
    provided
        Gate name -> what realises it: asset keys (``"discover_weekly/champion"``) or check ids
        (``"discover_weekly/listens:listens_match_profile"``). Gates beyond the profile are welcome.
    defined
        Every asset key and check id that the definitions really contain.

    Raises
    ------
    UserError
        Lists, all at once, the missing gates with their questions, the gates with an unknown name, and the
        assets and checks that are named but not defined.
    """
    problems = [
        *_missing_gates(profile, provided),
        *_unknown_gates(provided),
        *_undefined_keys(provided, defined),
    ]
    if problems:
        raise UserError(
            "the definitions do not provide what the risk profile asks for:\n  - " + "\n  - ".join(problems),
            where=system,
            remedy="define the asset or check and name it under its gate, or lower the level and say why.",
        )


def profile_table(profile: RiskProfile) -> list[dict[str, str]]:
    """Return one row an axis for the UI: axis, level, gates, and what a failed check does."""
    return [
        {
            "axis": axis,
            "level": profile.level(axis),
            "gates": ", ".join(gate.name for gate in profile.required_gates() if gate.axis == axis),
            "a failed check": profile.severity(axis) + (", blocks" if profile.blocking(axis) else ""),
        }
        for axis in AXES
    ]


def _missing_gates(profile: RiskProfile, provided: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for gate in profile.required_gates():
        if not provided.get(gate.name):
            risk = f"{gate.axis} risk is {profile.level(gate.axis)}"
            yield f"gate {gate.name!r} is missing ({risk}): {gate.question}"


def _unknown_gates(provided: Mapping[str, Sequence[str]]) -> Iterator[str]:
    names = [gate.name for gate in GATES]
    for name in provided:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known gates: {', '.join(names)}"
            yield f"gate {name!r} is unknown; {hint}"


def _undefined_keys(provided: Mapping[str, Sequence[str]], defined: Collection[str]) -> Iterator[str]:
    for name, keys in provided.items():
        # A single string is a sequence too, of its letters: take it for the one key that it is.
        for key in (keys,) if isinstance(keys, str) else keys:
            if key not in defined:
                close = get_close_matches(key, list(defined), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                yield f"gate {name!r} names {key!r}, which the definitions do not contain{hint}"
