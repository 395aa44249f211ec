"""Which loans were good or bad as of a moment, and the training set that they make.

What belongs here: maturity, what was known when, what is left out and counted, training and reference tables. What does
not: reading outcomes (`outcomes_feed.py`), cutting slices (`slices.py`) and models.

Only loans whose application is `target.maturity_days` old count: one that is younger is neither good nor bad, whatever
is known of it already, because the bad ones show first. Bad are those that turned bad within these days, or else older
loans would be worse for having been seen for longer. Of several outcomes of the window the latest that was known
counts. Outcomes are known of accepted loans alone; how many applications have none is counted, and nothing is inferred
for them.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from mlops_assets.credit_risk import slices
from mlops_assets.credit_risk.batch_rules import KNOWN, exceeds
from mlops_assets.credit_risk.outcomes_feed import CONTRADICTION, TOO_EARLY, ensure_outcome_tables
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.credit_risk.windows import end_of, key_of, period_of, utc_naive
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.resources import Tables

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True)
class LabelCounts:
    """What became of the applications of the history, as of a moment.

    Parameters
    ----------
    applications
        All accepted ones in the history.
    not_matured
        Too young to be judged; `early_outcomes` of them have an outcome already.
    without_outcome
        Old enough, but nothing is known: rejected, or never reported. Models learn from the others alone.
    indeterminate
        Neither good nor bad by the target.
    contradictory, too_early
        Loans called both good and bad; outcomes from before their application. They count for neither.
    disputed
        Loans whose id came again with other content.
    unknown_ids
        Outcomes of applications that are in no accepted batch.
    good, bad
        Loans that are learned from: bad are those that turned bad within the window of `target.maturity_days`.
    after_window
        Good ones of which only a later outcome is known, bad ones of later among them: the window had passed well.
    """

    applications: int
    not_matured: int
    early_outcomes: int
    without_outcome: int
    indeterminate: int
    contradictory: int
    too_early: int
    disputed: int
    unknown_ids: int
    good: int
    bad: int
    after_window: int

    @property
    def conflicts(self) -> int:
        """Loans whose outcomes contradict each other or their application."""
        return self.contradictory + self.too_early

    @property
    def outcomes(self) -> int:
        """Loans of which anything is known."""
        return self.conflicts + self.good + self.bad + self.indeterminate + self.early_outcomes

    @property
    def conflict_share(self) -> float:
        """Share of the conflicts among the loans of which anything is known."""
        return self.conflicts / self.outcomes if self.outcomes else 0.0

    @property
    def accepted_share(self) -> float:
        """Share of the matured applications that have an outcome: how much of the through-the-door population shows."""
        matured = self.applications - self.not_matured
        return 1 - self.without_outcome / matured if matured else 0.0


@dataclass(frozen=True)
class Matured:
    """Matured loans and what else became of the applications.

    Parameters
    ----------
    frame
        batch_id, period, application_id, applicant_id, applied_at, outcome, outcome_at, bad (int8), and the features
        where they were asked for.
    """

    frame: pd.DataFrame
    counts: LabelCounts


def matured_labels(tables: Tables, spec: Spec, as_of: datetime | str, *, features: bool = False) -> Matured:
    """Return the loans that had matured at a moment, with what was known of them then.

    Parameters
    ----------
    as_of
        The moment, or the key of the period whose end it is.
    features
        Whether the rows carry their features.
    """
    ensure_outcome_tables(tables, spec)
    # What happens at the first moment after a period is the next one's.
    _judge(tables, spec, end_of(spec, as_of) - (_INSTANT if isinstance(as_of, str) else timedelta()))
    names = "".join(f', a."{name}"' for name in spec.features) if features else ""
    frame = tables.query(
        "select a.batch_id, a.period, a.application_id, a.applicant_id, a.applied_at, j.outcome, j.outcome_at, "
        f"cast(j.bad as tinyint) as bad{names} from judged as j "
        f"join {spec.name}.current_applications as a using (application_id) "
        "where j.state in ('good', 'bad') order by a.applied_at, a.application_id"
    )
    for name in spec.features if features else ():
        if frame[name].dtype == object:
            frame[name] = frame[name].where(frame[name].notna(), None)
    frame["applicant_id"] = frame["applicant_id"].astype(object).where(frame["applicant_id"].notna(), None)
    return Matured(frame.astype({"bad": "int8"}), _counts(tables, spec))


def _judge(tables: Tables, spec: Spec, moment: datetime) -> None:
    """Make the temporary table of the history's applications and their state at the moment."""
    last = _last_day(spec, moment)
    first = spec.periods.shift(key_of(last), 1 - spec.training.history_periods)
    parameters = [utc_naive(moment), key_of(last)]
    # Bad is what turned bad within the window. A later outcome, of either kind, tells that it had not by then.
    late = f"coalesce(o.outcome_at > a.applied_at + interval {spec.target.maturity_days} day, false)"
    if spec.target.maturity_days == 0:
        late = "false"
    tables.execute(
        "create or replace temp table known as select application_id, outcome, outcome_at, late, "
        "case when late and class = 1 then 0 else class end as class, contradictory "
        f"from (select o.*, {late} as late, {_class(spec)} as class, "
        f"min({_class(spec)}) over same <> max({_class(spec)}) over same as contradictory, "
        f"row_number() over (partition by o.application_id order by {late}, case when {late} then o.outcome_at end, "
        "o.outcome_at desc nulls last, o.period desc, o.outcome) as nr "
        f"from {spec.name}.outcomes as o left join {spec.name}.current_applications as a using (application_id) "
        "where (o.outcome_at is null or o.outcome_at <= ?) and o.period <= cast(? as date) "
        "window same as (partition by o.application_id, o.outcome_at)) where nr = 1",
        parameters,
    )
    matured = f"a.applied_at is null or a.applied_at + interval {spec.target.maturity_days} day <= ?"
    tables.execute(
        "create or replace temp table judged as select a.application_id, k.outcome, k.outcome_at, "
        "case when k.class = 1 then 1 when k.class = 0 then 0 end as bad, k.outcome is not null as has_outcome, "
        "k.late, case "
        f"when d.application_id is not null then 'disputed' when not ({matured}) then 'not_matured' "
        "when r.contradictory or k.contradictory then 'contradictory' "
        "when r.application_id is not null and k.outcome is null or k.outcome_at < a.applied_at then 'too_early' "
        "when k.outcome is null then 'without_outcome' when k.class = 1 then 'bad' when k.class = 0 then 'good' "
        f"else 'indeterminate' end as state from {spec.name}.current_applications as a "
        "left join known as k using (application_id) "
        f"left join (select application_id, bool_or(rule = '{CONTRADICTION}') as contradictory "
        f"from {spec.name}.quarantined_outcomes where rule in ('{CONTRADICTION}', '{TOO_EARLY}') "
        "and period <= cast(? as date) group by application_id) as r using (application_id) "
        f"left join (select distinct application_id from {spec.name}.quarantined_applications where rule = '{KNOWN}' "
        f"and batch_id in (select batch_id from {spec.name}.current_batches) and period <= cast(? as date)) as d "
        "using (application_id) where a.period >= cast(? as date) and a.period <= cast(? as date)",
        [parameters[0], key_of(last), key_of(last), first, key_of(last)],
    )


def _class(spec: Spec) -> str:
    """Return the expression that is 1 for bad, 0 for good, null for neither."""
    bad, good = (
        ", ".join("'" + value.replace("'", "''") + "'" for value in values)
        for values in (spec.target.bad, spec.target.good)
    )
    return f"case when outcome in ({bad}) then 1 when outcome in ({good}) then 0 end"


def _last_day(spec: Spec, moment: datetime) -> Any:
    """Return the first day of the period that a moment lies in."""
    return period_of(spec, pd.Series([pd.Timestamp(moment)]).dt.tz_convert("UTC")).iloc[0]


def _counts(tables: Tables, spec: Spec) -> LabelCounts:
    found = tables.query("select state, count(*) as n from judged group by state").set_index("state")["n"]
    states = {str(state): int(count) for state, count in found.items()}
    early = tables.query("select count(*) as n from judged where state = 'not_matured' and has_outcome")["n"].iloc[0]
    unknown = tables.query(
        f"select count(*) as n from known where application_id not in "
        f"(select application_id from {spec.name}.current_applications)"
    )["n"].iloc[0]
    late = tables.query("select count(*) as n from judged where state = 'good' and late")["n"].iloc[0]
    names = [
        "not_matured", "without_outcome", "indeterminate", "contradictory", "too_early", "disputed", "good", "bad"
    ]  # fmt: skip
    return LabelCounts(
        applications=sum(states.values()),
        after_window=int(late),
        early_outcomes=int(early),
        unknown_ids=int(unknown),
        **{name: states.get(name, 0) for name in names},
    )


def training_tables(
    tables: Tables, spec: Spec, as_of: datetime | str
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the training set as of a moment: the tables train, calibrate and test, and the facts about them.

    The tables have application_id, applicant_id, applied_at (UTC, naive), the features, bad (int8) and batch_id; no
    protected attribute is among them. What one table holds is of people, and has contents, that no other one has.

    Raises
    ------
    UserError
        Too few good or bad loans have matured, in all or in a slice, or too many outcomes contradict each other.
    """
    found = matured_labels(tables, spec, as_of, features=True)
    moment = end_of(spec, as_of)
    where = f"{spec.name}/training_set[{as_of if isinstance(as_of, str) else moment.isoformat()}]"
    _refuse_conflicts(spec, found.counts, where)
    _refuse_few(spec, found.counts, where)
    schema, frame = FeatureSchema.of(spec), found.frame
    timed = bool(spec.data.timed and frame["applied_at"].notna().all())
    by_time = spec.training.split == "time" or (spec.training.split == "auto" and timed)
    if by_time and not timed:
        raise UserError(
            "applications without times cannot be cut by time",
            where=where,
            remedy="set training.split to stratified or auto.",
        )
    if by_time:
        cut = slices.by_time(frame, schema, spec.training, where=where)
    else:
        cut = slices.stratified(frame, schema, spec.training)
    _refuse_thin_slices(spec, cut, where)
    names = ["application_id", "applicant_id", "applied_at", *schema.names, "bad", "batch_id"]
    kept = {name: part[names] for name, part in cut.slices.items()}
    facts = _facts(spec, found, cut, moment, split="time" if by_time else "stratified")
    return kept, {**facts, "last_outcome_at": _last_outcome(tables, spec, moment)}


def _last_outcome(tables: Tables, spec: Spec, moment: datetime) -> str | None:
    """Return when the latest outcome that was known at a moment became known."""
    # Outcomes that the feed gives no time came with the batch of their period.
    known = "coalesce(outcome_at, cast(period as timestamp))"
    found = tables.query(
        f"select max({known}) as last from {spec.name}.outcomes where {known} <= ?", [utc_naive(moment)]
    )["last"].iloc[0]
    return None if pd.isna(found) else pd.Timestamp(found).isoformat()


def _refuse_conflicts(spec: Spec, counts: LabelCounts, where: str) -> None:
    bound = spec.training.conflict_share
    if exceeds(counts.conflicts, counts.outcomes, bound):
        raise UserError(
            f"{100 * counts.conflict_share:.3g} % of the outcomes contradict each other ({counts.contradictory} loans) "
            f"or are from before their application ({counts.too_early}): more than chance makes of {100 * bound:g} %",
            where=where,
            remedy=f"look at {spec.name}.quarantined_outcomes, have the feed corrected and materialize "
            f"{spec.name}/outcomes again; or raise training.conflict_share.",
        )


def _refuse_few(spec: Spec, counts: LabelCounts, where: str) -> None:
    for kind, there, needed in (
        ("good", counts.good, spec.training.minimum_goods),
        ("bad", counts.bad, spec.training.minimum_bads),
    ):
        if there < needed:
            raise UserError(
                f"{there} {kind} loans have matured, {needed} are needed ({counts.not_matured} of "
                f"{counts.applications} applications are younger than {spec.target.maturity_days} days, "
                f"{counts.without_outcome} have no outcome)",
                where=where,
                remedy=f"train when more have matured, or lower training.minimum_{kind}s; what serves goes on serving.",
            )


def _refuse_thin_slices(spec: Spec, cut: slices.Cut, where: str) -> None:
    """Every slice needs loans of both kinds: half of its part of the least numbers."""
    settings = spec.training
    rest = 1 - settings.calibrate_share - settings.test_share
    shares = {"train": rest, "calibrate": settings.calibrate_share, "test": settings.test_share}
    for name, part in cut.slices.items():
        bads = int(part["bad"].sum())
        for kind, there, least in (
            ("good", len(part) - bads, settings.minimum_goods),
            ("bad", bads, settings.minimum_bads),
        ):
            needed = max(1, int(least * shares[name] / 2))
            if there < needed:
                raise UserError(
                    f"the slice {name!r} has {there} {kind} loans, {needed} are needed",
                    where=where,
                    remedy="train when more loans have matured, or change training.calibrate_share and test_share.",
                )


def _facts(spec: Spec, found: Matured, cut: slices.Cut, moment: datetime, *, split: str) -> dict[str, Any]:
    counts, frame = found.counts, found.frame
    facts: dict[str, Any] = {
        "as_of": moment.isoformat(),
        "split": split,
        **{f"{name}_from": text for name, text in cut.from_.items()},
        **{f"{name}_bads": int(part["bad"].sum()) for name, part in cut.slices.items()},
        **{name: getattr(counts, name) for name in counts.__dataclass_fields__},
        "accepted_share": round(counts.accepted_share, 6),
        "left_out_same_person": cut.same_person,
        "left_out_copies": cut.copies,
        "maturity_days": spec.target.maturity_days,
        "bad_outcomes": list(spec.target.bad),
        "good_outcomes": list(spec.target.good),
        "feature_version": FeatureSchema.of(spec).version,
        "code_list_version": spec.data.code_list_version,
        "batches": int(frame["batch_id"].nunique()),
        "batches_sha256": sha256_hex(canonical_json(sorted(frame["batch_id"].unique().tolist()))),
    }
    return facts


def reference_rows(tables: Tables, spec: Spec, as_of: datetime | str) -> pd.DataFrame:
    """Return the accepted applications that drift is measured from: the last reference periods up to a moment.

    Returns
    -------
    pd.DataFrame
        batch_id, period, application_id, applied_at and the features, in order of time and id.
    """
    ensure_outcome_tables(tables, spec)
    last = as_of if isinstance(as_of, str) else key_of(_last_day(spec, end_of(spec, as_of)))
    first = spec.periods.shift(last, 1 - spec.monitoring.reference_periods)
    names = ", ".join(f'"{name}"' for name in spec.features)
    frame = tables.query(
        f"select batch_id, period, application_id, applied_at, {names} from {spec.name}.current_applications "
        "where period between cast(? as date) and cast(? as date) order by applied_at, application_id",
        [first, last],
    )
    for name in spec.features:
        if frame[name].dtype == object:
            frame[name] = frame[name].where(frame[name].notna(), None)
    return frame
