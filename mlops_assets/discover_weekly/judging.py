"""The verdict on a candidate: measured beside others, judged by gates on stored evidence, recorded.

What belongs here: evidence, gates and the champion's next record. What does not: training (pipeline.py), metrics and
contestants (evaluation.py), what a page shows (results.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlops_assets.discover_weekly.pipeline import load_blend, read_split
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation.registry import (
    ChampionHistory,
    ChampionRecord,
    GateResult,
    ModelVersion,
    Registry,
    Verdict,
    decide,
)
from mlops_assets.foundation.snapshots import Snapshot

if TYPE_CHECKING:
    from mlops_assets.discover_weekly.evaluation import Evaluation
    from mlops_assets.foundation.io_managers import Judged

# Similarities of all pairs of tracks grow with the square of the plays; a baseline needs no more users than these.
_ITEM_ITEM_USERS = 20_000


@dataclass(frozen=True)
class Measured:
    """A metric's mean over users with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Judgement:
    """A candidate on held-out listening: what the verdict rests on, and what the page shows of it."""

    version: ModelVersion
    evidence_sha256: str
    metric: str
    headline: Mapping[str, Measured]
    table: pd.DataFrame
    gates_table: pd.DataFrame
    users: int
    plotted: Mapping[str, float]


def judge(
    spec: Spec,
    training_set: Snapshot,
    features: pd.DataFrame,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    registry: Registry,
) -> Judgement:
    """Measure a candidate beside baselines and champion and store the evidence with its version."""
    from mlops_assets.discover_weekly.evaluation import ItemItem, Popular, evaluate

    split, rules = read_split(training_set, "train", "test", features), spec.evaluation
    few = split.train.rows(np.arange(min(split.train.n_users, _ITEM_ITEM_USERS)))
    compared = champion if champion is not None and champion.sha256 != candidate.sha256 else None
    blend = load_blend(registry, candidate)
    measured = evaluate(
        blend.scorer(features),
        split.train,
        split.held_out,
        baselines={
            "collaborative": blend.collaborative.recommend,
            "popular": Popular(split.train),
            "item_item": ItemItem(few),
        },
        champion=load_blend(registry, compared).scorer(features) if compared is not None else None,
        tracks=features,
        ks=sorted({rules.k, spec.playlist.length}),
        seed=rules.seed,
    )
    gates = [_accuracy_gate(spec, measured, baseline) for baseline in rules.must_beat]
    if compared is not None:
        gates.append(_comparison_gate(spec, measured, candidate, compared))
    evidence = {
        "gates": [gate.as_row() for gate in gates],
        "evaluation": measured.to_dict(),
        "split": dict(training_set.metadata),
        "training_set": training_set.sha256,
        "candidate": {"model": candidate.model, **candidate.as_part()},
        "champion": champion.as_part() if champion is not None else None,
    }
    digest = registry.attach_evidence(candidate, evidence)
    return _judgement(spec, candidate, digest, measured, gates)


def _judgement(
    spec: Spec, candidate: ModelVersion, digest: str, measured: "Evaluation", gates: list[GateResult]
) -> Judgement:
    k = spec.evaluation.k
    contestants = measured.protocol["contestants"]
    headline = {name: Measured(*measured.value(name, "ndcg", k)) for name in contestants}
    table = measured.table[measured.table["k"] == k].pivot_table(
        index="metric", columns="contestant", values="mean", sort=True
    )
    first = [name for name in ("ndcg", "hit_rate", "precision", "recall", "map", "coverage") if name in table.index]
    table = table.reindex([*first, *table.index.difference(first)])
    own = measured.table[(measured.table["contestant"] == "candidate") & measured.table["mean"].notna()]
    plotted = {
        f"{metric}_at_{length}": float(value)
        for metric, length, value in zip(own["metric"], own["k"], own["mean"].to_numpy(), strict=True)
    }
    plotted |= {f"{name}_ndcg_at_{k}": value.value for name, value in headline.items() if name != "candidate"}
    return Judgement(
        candidate,
        digest,
        f"nDCG@{k}",
        headline,
        table.reset_index(),
        gates_table(gates),
        int(measured.protocol["users"]),
        plotted,
    )


def _accuracy_gate(spec: Spec, measured: "Evaluation", baseline: str) -> GateResult:
    gain = measured.difference(baseline, "ndcg", spec.evaluation.k)
    return GateResult(
        "accuracy",
        "passed" if gain.low > 0 else "failed",
        gain.mean,
        0.0,
        (gain.low, gain.high),
        f"gain in nDCG@{spec.evaluation.k} over {baseline}; its interval must lie above 0",
    )


def _comparison_gate(spec: Spec, measured: "Evaluation", candidate: ModelVersion, champion: ModelVersion) -> GateResult:
    """Better than the champion by its interval; or, once the champion is old, not worse by more than the margin."""
    rules = spec.evaluation
    if champion.tags["trained_until"] > candidate.tags["trained_until"]:
        reason = f"version {champion.version} has learned from what the candidate is tested on: no fair comparison"
        return GateResult("champion_comparison", "not_assessed", reason=reason)
    gain = measured.difference("champion", "ndcg", rules.k)
    margin = -rules.margin * measured.value("champion", "ndcg", rules.k).mean
    old = spec.periods.shift(champion.tags["as_of"], rules.champion_max_age) <= candidate.tags["as_of"]
    bound = margin if old else 0.0
    return GateResult(
        "champion_comparison",
        "passed" if gain.low > bound else "failed",
        gain.mean,
        bound,
        (gain.low, gain.high),
        f"gain in nDCG@{rules.k} over version {champion.version}"
        + (f", which is {rules.champion_max_age} periods old: as good is enough" if old else ""),
    )


def decide_champion(
    spec: Spec, history: ChampionHistory, judged: "Judged", *, by: str
) -> tuple[ChampionRecord, pd.DataFrame]:
    """Judge a candidate on the evidence stored with it and return the next record of the champion's history."""
    registry = history.registry
    evidence = registry.evidence(judged.version, judged.evidence_sha256)
    gates = [_gate(row) for row in evidence["gates"]]
    comparison = next((gate for gate in gates if gate.gate == "champion_comparison"), None)
    current = history.champion() if history.current() is not None else None
    compared_with = evidence["champion"]["sha256"] if evidence["champion"] else None
    if current is not None and current.sha256 != compared_with:
        then = (
            f"{compared_with[:12]}, which does not serve now" if compared_with else "no champion, and there is one now"
        )
        reason = f"it was evaluated beside {then}: evaluate again"
        comparison = GateResult("champion_comparison", "not_assessed", reason=reason)
        gates = [*(gate for gate in gates if gate.gate != "champion_comparison"), comparison]
    asked = [gate.name for gate in spec.risk.required_gates() if gate.axis == "algorithm"]
    required = [name for name in asked if name != "champion_comparison" or current is not None]
    verdict = decide(judged.version, current, gates, required, comparison)
    if verdict.verdict == "promoted" and (told := _rolled_back(history, judged.version)):
        verdict = Verdict("kept", (told,))
    record = history.next_record(verdict, judged.version, by=by, evidence_sha256=judged.evidence_sha256)
    return record, gates_table(gates)


def _rolled_back(history: ChampionHistory, candidate: ModelVersion) -> str | None:
    """Say why a version may not come back by itself: somebody rolled back from its content, and nobody back to it."""
    told = None
    for record in history.records():
        if record.verdict != "rolled_back":
            continue
        left = history.registry.get(history.model, record.from_version) if record.from_version else None
        if left is not None and left.sha256 == candidate.sha256:
            told = f"{record.by} rolled back from version {left.version} ({record.reason}); only a rollback lifts that"
        if record.sha256 == candidate.sha256:
            told = None
    return told


def _gate(row: Mapping[str, Any]) -> GateResult:
    interval = row.get("interval")
    return GateResult(**{**row, "interval": tuple(interval) if interval else None})


def gates_table(gates: list[GateResult]) -> pd.DataFrame:
    """Return gates as rows for a page."""
    return pd.DataFrame(
        [
            {
                "gate": gate.gate,
                "status": gate.status,
                "value": gate.value,
                "bound": gate.bound,
                "interval": f"{gate.interval[0]:.4f} to {gate.interval[1]:.4f}" if gate.interval else "",
                "reason": gate.reason,
            }
            for gate in gates
        ]
    )
