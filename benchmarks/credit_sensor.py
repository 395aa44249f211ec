"""What the retraining sensor would have done month by month on Lending Club, and what it would have been worth.

What belongs here: the walk through the months with the package's own modules, and its summary beside a model that is
never trained again and one that is trained by the calendar. What does not: what asks for a training
(`credit_risk/retraining.py`), and one split of the same loans (`credit_quality.py`).

    python -m benchmarks.credit_sensor [--data ../shared/data] [--first 2009-12-01] [--last 2011-12-01] [--every 3]

What is real: ingestion, training sets as of a month, both kinds of model, the choice between them and the gates of
evaluation and comparison, decisions in a log, drift by windows, realised performance of the champion's own accepted
loans, and `retraining.decide`. What is assumed, and printed too:

* THE MONTHS ARE INFERRED from the order of the rows in the file, to about a month.
* The file does not say when an outcome was known. Here every outcome counts 12 months after its month
  (`target.maturity_days: 365`, where examples/lending_club.yaml has 0). It is the final outcome, and some loans turn
  bad after their first year, so what is learned from knows a little more than anybody could have known then.
* The first model serves from the first month at whose end a candidate passes all gates that need no champion. A later
  candidate that passes its gates is approved at once and serves from the next month. Bias report, reasons and model
  card are left out: the file has no protected attributes.
* AUC, calibration and bad rate of a month are hindsight: they are printed, and the sensor never sees them.

Three of the gates hold how much a candidate differs from the champion, whichever is better: flipped decisions, score
PSI on live applications, and a gain that is too good to be true. A second walk, with the same sensor and these three
bounds out of the way, shows what they cost where the applicants have changed. Everything is seeded, and nothing is
tuned by what comes out: all other bounds are the spec's defaults.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.credit_quality import EXAMPLES, WEEKS_A_MONTH, shown
from mlops_assets.credit_risk import (
    evaluation,
    judgement,
    judging,
    labels,
    metrics,
    monitoring,
    pipeline,
    training,
    watching,
)
from mlops_assets.credit_risk.decision_batch import decide_period
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.ingestion import ingest_period
from mlops_assets.credit_risk.outcomes_feed import ingest_outcomes
from mlops_assets.credit_risk.performance import Realised
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.retraining import Ask, Evidence, Skip, decide
from mlops_assets.credit_risk.spec import Spec, load_spec
from mlops_assets.credit_risk.watching import Drift, Watched
from mlops_assets.credit_risk.windows import end_of, iter_periods
from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import GateResult
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore

DELAY_DAYS = 365
ANY_DIFFERENCE = {"too_good": 1.0, "swap_share": 1.0, "shadow_psi": 1e6}
"""Bounds under which a candidate may differ from the champion as it likes, as long as it is not worse."""


@dataclass(frozen=True)
class Trained:
    """Both kinds of model as of a month, and the loans that they learned from."""

    training_set: Snapshot
    scorecard: Watched
    gbm: Watched


@dataclass(frozen=True)
class Candidate:
    """The model that was chosen of two, why, and the gates that it did not pass."""

    watched: Watched
    choice: str
    held: tuple[GateResult, ...]


class Lender:
    """A home in a temporary folder with all loans taken in; what is found out once is kept for the other walk."""

    def __init__(self, spec: Spec, home: Path) -> None:
        resources: Mapping[str, Any] = Environment("embedded", home).resources()
        self.spec, self.home = spec, home
        self.warehouse, self.registry = resources["warehouse"], resources["models"].open()
        self.snapshots = SnapshotStore(resources["store"].path("snapshots"))
        self._trained: dict[str, Trained] = {}
        self._drift: dict[tuple[str, str], Drift] = {}

    def take_in(self) -> None:
        """Take in all applications and outcomes of the file, and say what stood out."""
        end = self.spec.periods.end
        assert end is not None
        last = self.spec.periods.shift(end.isoformat(), -1)
        months = list(iter_periods(self.spec, self.spec.periods.start.isoformat(), last))
        taken = ingest_period(self.spec, months, self.warehouse, now=end_of(self.spec, last))
        known = ingest_outcomes(self.spec, months, self.warehouse, now=end_of(self.spec, last))
        outcomes, refused = (sum(each.values()) for each in (known.accepted_by_period, known.quarantined_by_period))
        print(
            f"{taken.accepted_rows:,} applications of {len(months)} months and {outcomes:,} outcomes are taken in, "
            f"{taken.quarantined_rows} and {refused} set apart"
        )
        for batch in taken.blocked:
            told = "; ".join(each.message for each in batch.blocked)
            print(f"  the batch of {batch.period[:7]} is blocked and counts nowhere: {told}")

    def trained(self, month: str) -> Trained:
        """Return both kinds of model as of the end of a month.

        Raises
        ------
        UserError
            Too little has matured.
        """
        if month not in self._trained:
            with self.warehouse.session() as tables:
                cut, facts = labels.training_tables(tables, self.spec, month)
            stored = self.snapshots.save(f"{self.spec.name}/training_set", cut, facts)
            tags = {"period": month, "trained_by": "benchmark", "run_id": month, "code_version": "benchmark"}
            versions = [
                train(self.spec, stored, self.registry, tags)
                for train in (training.train_scorecard, training.train_gbm)
            ]
            self._trained[month] = Trained(stored, *(Watched.of(self.registry, version) for version in versions))
        return self._trained[month]

    def candidate(self, spec: Spec, month: str, champion: Watched | None) -> Candidate:
        """Choose one of the models as of a month, and hold it against its gates and the champion; errors as above."""
        both = self.trained(month)
        frames = judgement.frames_of(both.training_set)
        frames["live"] = judgement.live_applications(spec, self.warehouse, month)
        serving = None if champion is None else champion.model
        policy = DecisionPolicy.of(spec)
        found = evaluation.measure(spec, frames, both.scorecard.model, both.gbm.model, serving, policy)
        gates = [*judging.quality_gates(spec, found), judging.watch_gate(spec, both.training_set)]
        gates += [] if found.against is None else judging.comparison_gates(spec, found.against)
        chosen = both.gbm if found.candidate == "gbm" else both.scorecard
        # A gate that the risk profile does not require is a remark, as in the verdict on a champion.
        required = {*judging.required_gates(spec, champion=champion is not None), "champion_comparison"}
        held = tuple(gate for gate in gates if gate.gate in required and gate.status != "passed")
        return Candidate(chosen, found.choice.reason, held)

    def first(self, month: str, last: str) -> tuple[str, Candidate]:
        """Return the first month, from this one on, at whose end a candidate passes its gates, and the candidate."""
        for each in iter_periods(self.spec, month, last):
            found = self.candidate(self.spec, each, None)
            if not found.held:
                return each, found
            print(f"as of {each[:7]} no model passes its gates: {'; '.join(told_gates(found.held))}")
        raise UserError(f"no candidate from {month} to {last} passes its gates", remedy="begin earlier.")

    def drift(self, champion: Watched, month: str) -> Drift:
        """Compare windows as `watching.drift_of` does, without the report for people, which takes most of its time."""
        known = (champion.version.sha256, month)
        if known not in self._drift:
            rules, schema = self.spec.monitoring, champion.model.schema
            with self.warehouse.session() as tables:
                reference = labels.reference_rows(tables, self.spec, champion.as_of)
                batches = watching.batches_since(tables, self.spec, champion.as_of, month)
            findings = tuple(
                monitoring.drift_verdict(reference, window, schema, rules.bounds, champion.model.importance())
                for window in monitoring.windows(batches, rules.window_rows, rules.confirm)
            )
            confirmed = monitoring.persists(findings, rules.confirm)
            self._drift[known] = Drift(findings, confirmed, len(reference), None)
        return self._drift[known]

    def loans(self, month: str) -> pd.DataFrame:
        """Return the month's loans with their outcomes, known long after."""
        with self.warehouse.session() as tables:
            rows: pd.DataFrame = tables.query(
                f"select a.*, o.outcome from {self.spec.name}.current_applications as a "
                f"join {self.spec.name}.outcomes as o using (application_id) where a.period = cast(? as date) "
                "order by a.row",
                [month],
            )
        return rows.assign(bad=rows["outcome"].isin(self.spec.target.bad).astype(np.int64))


@dataclass
class Sensor:
    """The sensor's memory, and the facts that it is shown at the end of a month."""

    lender: Lender
    spec: Spec
    log: DecisionLog
    champion: Watched
    learned: str
    attempts: list[datetime] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def watch(self, month: str) -> tuple[Drift, Realised, dict[str, int]]:
        """Decide the month's applications with the champion; return drift, realised performance and new labels."""
        at, spec, champion = self.lender, self.spec, self.champion
        decider = pipeline.load_decider(spec, at.registry, champion.version)
        now = end_of(spec, month)
        decide_period(spec, month, at.warehouse, self.log, decider, champion.version, run_id=month, now=now)
        drift = at.drift(champion, month)
        realised = watching.realised_of(spec, champion, at.warehouse, self.log, at.snapshots, month)
        return drift, realised, watching.new_labels(spec, at.warehouse, self.learned, month)

    def weigh(self, month: str, drift: Drift, realised: Realised, new: Mapping[str, int]) -> Ask | Skip:
        """Answer as the sensor would, a minute after the month."""
        found = Evidence(
            as_of=month,
            now=end_of(self.spec, month) + timedelta(minutes=1),
            champion=self.champion.version.sha256,
            trained_until=end_of(self.spec, self.champion.as_of),
            learned_until=end_of(self.spec, self.learned),
            windows=drift.findings,
            decay=realised.status,
            decay_facts=realised.facts,
            decay_reason="; ".join(realised.reasons),
            new_outcomes=new["new"],
            new_bads=new["new_bads"],
            attempts=self.attempts,
            asked=self.asked,
        )
        return decide(found, self.spec.retraining, self.spec.monitoring)

    def answer(self, month: str, ask: Ask) -> Candidate:
        """Train as the sensor asks, and let the candidate serve if every gate is passed."""
        self.attempts.append(end_of(self.spec, month) + timedelta(minutes=1))
        self.asked.append(ask.fingerprint)
        candidate = self.lender.candidate(self.spec, month, self.champion)
        self.learned = month
        if not candidate.held:
            self.champion = candidate.watched
        return candidate


# ---- the walk


@dataclass
class Walk:
    """Who served in which month, and what is counted on the way."""

    served: dict[str, Watched] = field(default_factory=dict)
    asks: Counter[str] = field(default_factory=Counter)
    skips: Counter[str] = field(default_factory=Counter)
    promotions: list[str] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    drifted: int = 0
    confirmed: int = 0
    decayed: int = 0

    def lines(self) -> Iterator[str]:
        """Yield what was counted."""
        seen = f"drift seen in {self.drifted}, confirmed in {self.confirmed}, decay in {self.decayed}"
        yield f"  {len(self.served)} months; {seen}"
        yield f"  asks by trigger: {counted(self.asks)}; skips by rule: {counted(self.skips)}"
        yield f"  promotions: {len(self.promotions)} ({', '.join(self.promotions) or 'none'})"
        yield f"  gates that kept candidates from serving: {counted(self.kept)}"


def counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"


def walk(lender: Lender, spec: Spec, first: Watched, months: Sequence[str]) -> Walk:
    """Go through the months with the sensor; the first model was trained as of the one before."""
    log = DecisionLog(Journal(Path(tempfile.mkdtemp(dir=lender.home)) / "decisions.db"))
    sensor, found = Sensor(lender, spec, log, first, spec.periods.shift(months[0], -1)), Walk()
    for month in months:
        champion = found.served[month] = sensor.champion
        drift, realised, new = sensor.watch(month)
        answer = sensor.weigh(month, drift, realised, new)
        found.drifted += drift.last.status == "drifted"
        found.confirmed += drift.confirmed
        found.decayed += realised.status == "decayed"
        print(f"{month[:7]} v{champion.version.version}: {hindsight(lender, champion, month)}")
        print(f"    {sensed(drift, realised, new)}")
        if isinstance(answer, Skip):
            found.skips[answer.rule] += 1
            print(f"    SKIP {answer.rule}")
            continue
        found.asks[answer.trigger] += 1
        candidate = sensor.answer(month, answer)
        also = f" (also {', '.join(answer.also)})" if answer.also else ""
        model = candidate.watched
        made = f"    ASK {answer.trigger}{also} -> v{model.version.version}, a {model.model.kind}"
        if candidate.held:
            found.kept.update({gate.gate for gate in candidate.held})
            print(f"{made}, kept from serving: {'; '.join(told_gates(candidate.held))}")
        else:
            found.promotions.append(month[:7])
            print(f"{made}, PROMOTED")
    return found


def told_gates(gates: tuple[GateResult, ...]) -> Iterator[str]:
    """Yield each gate's name, what it holds, value and bound."""
    for gate in gates:
        what = gate.reason.split(":")[0]
        numbers = "" if gate.value is None or gate.bound is None else f" {gate.value:.3g}, bound {gate.bound:.3g}"
        yield f"{gate.gate} ({what}{numbers})" if gate.status == "failed" else f"{gate.gate} {gate.status} ({what})"


def predict(watched: Watched, rows: pd.DataFrame) -> np.ndarray:
    return watched.model.predict(watched.model.schema.matrix(rows))


def hindsight(lender: Lender, champion: Watched, month: str) -> str:
    """Return how a month turned out, known long after, and the score PSI against the loans of calibration and test."""
    rows = lender.loans(month)
    bad, predicted = rows["bad"].to_numpy(), predict(champion, rows)
    stored = lender.snapshots.load(champion.version.tags["training_set"])
    before = np.concatenate([predict(champion, stored.read(part)) for part in ("calibrate", "test")])
    psi = metrics.score_psi(before, predicted)
    return (
        f"{len(rows):,} loans, {bad.mean():.1%} bad, mean PD {predicted.mean():.1%}, "
        f"AUC {shown(metrics.auc(bad, predicted), 3)}, ECE {shown(metrics.ece(bad, predicted), 3)}, "
        f"score PSI {psi.psi.value:.3f} (bound {psi.bound:.3f})"
    )


def sensed(drift: Drift, realised: Realised, new: Mapping[str, int]) -> str:
    """Return what the sensor is shown."""
    last = drift.last
    share = f" ({last.weighted_share:.0%} of importance: {', '.join(last.drifted)})" if last.drifted else ""
    confirmed = ", confirmed" if drift.confirmed else ""
    area = realised.metrics.get("auc")
    told = f" AUC {shown(area, 3)}" if area is not None and area.assessed else ""
    return (
        f"drift {last.status}{confirmed}{share}; realised {realised.status}, {realised.rows:,} loans{told}; "
        f"{new['new']:,} new outcomes"
    )


def by_calendar(lender: Lender, first: Watched, months: Sequence[str], every: int) -> dict[str, Watched]:
    """Return who would have served if a model were trained every few months and served whatever its gates say."""
    serving, served = first, {}
    for at, month in enumerate(months, start=1):
        served[month] = serving
        if at % every == 0:
            serving = lender.candidate(lender.spec, month, None).watched
    return served


# ---- the summary


def compared(lender: Lender, served: Mapping[str, Mapping[str, Watched]]) -> Iterator[str]:
    """Yield the side by side of those who served, all on the same loans; differences are from the first of them."""
    months = list(next(iter(served.values())))
    loans = {month: lender.loans(month) for month in months}
    bad = np.concatenate([loans[month]["bad"].to_numpy() for month in months])
    month_of = np.repeat(months, [len(loans[month]) for month in months])
    yield f"{len(bad):,} loans of {months[0][:7]} to {months[-1][:7]}, {bad.mean():.2%} bad, by who served each month:"
    never: np.ndarray | None = None
    for name, by_month in served.items():
        predicted = np.concatenate([predict(by_month[month], loans[month]) for month in months])
        never = predicted if never is None else never
        stable = metrics.gini_stability(bad, predicted, month_of, weeks_per_period=WEEKS_A_MONTH)
        yield f"{name}"
        yield f"  gini stability {shown(stable.score)}; AUC of all loans {shown(metrics.auc(bad, predicted))}"
        yield f"  mean gini of a month {shown(stable.mean_gini)}, its slope a week {shown(stable.slope, 5)}"
        yield f"  ECE {shown(metrics.ece(bad, predicted))}, mean PD {predicted.mean():.2%}"
        if not np.array_equal(predicted, never):
            found = metrics.gini_stability_difference(bad, predicted, never, month_of, weeks_per_period=WEEKS_A_MONTH)
            brier = metrics.paired_difference("brier", bad, predicted, never, relative=True)
            yield f"  minus the first: gini stability {shown(found)}, relative Brier score {shown(brier)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--first", default="2009-12-01", help="first month at whose end a model may be trained")
    parser.add_argument("--last", default="2011-12-01", help="last month of the walk")
    parser.add_argument("--every", type=int, default=3, help="months between trainings of the peer by calendar")
    arguments = parser.parse_args()
    began = time.perf_counter()
    os.environ["LENDING_CLUB"] = str(arguments.data / "lending_club")
    shipped = load_spec(EXAMPLES / "lending_club.yaml")
    spec = shipped.model_copy(update={"target": shipped.target.model_copy(update={"maturity_days": DELAY_DAYS})})
    print("Lending Club. The months are INFERRED from the order of the rows, to about a month.")
    print("Outcomes are ASSUMED to be known 12 months after their month; the file does not say when they were.")
    with tempfile.TemporaryDirectory(prefix="credit-sensor-") as folder:
        run(Lender(spec, Path(folder)), arguments.first, arguments.last, arguments.every)
    print(f"{time.perf_counter() - began:.0f} s, {time.process_time():.0f} s of processors")


def run(lender: Lender, start: str, last: str, every: int) -> None:
    """Take in the loans, go through the months in every way, and print the ways side by side."""
    lender.take_in()
    month, candidate = lender.first(start, last)
    first, spec = candidate.watched, lender.spec
    print(f"as of {month[:7]} v{first.version.version} passes its gates and serves: {candidate.choice}")
    months = list(iter_periods(spec, spec.periods.shift(month, 1), last))
    print("\nThe sensor, with the gates as they are")
    walks = {"as the sensor asks": walk(lender, spec, first, months)}
    print(f"\nThe same sensor, where a candidate may differ from the champion as it likes: {ANY_DIFFERENCE}")
    lenient = spec.model_copy(update={"gates": spec.gates.model_copy(update=ANY_DIFFERENCE)})
    walks["as the sensor asks, if it may differ"] = walk(lender, lenient, first, months)
    print("\nSummary")
    for name, found in walks.items():
        print("\n".join([name, *found.lines()]))
    served = {
        "never trained again": dict.fromkeys(months, first),
        **{name: found.served for name, found in walks.items()},
        f"every {every} months, whatever its gates say": by_calendar(lender, first, months, every),
    }
    print("\n".join(["", *compared(lender, served)]))


if __name__ == "__main__":
    main()
