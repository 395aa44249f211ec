"""Decisions and what is watched of them: the assets of the lending product.

What belongs here: keys, dependencies, owners, descriptions, metadata, and the checks that ride on them. What does not:
any computation worth a test of its own (decision_batch.py, watching.py, vintages.py).
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from mlops_assets.credit_risk import checks, incidents, pipeline, results, tracing, watching, witnesses
from mlops_assets.credit_risk.decision_batch import BatchDecisions, decide_period
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.names import PRODUCT, RISK_TEAM, Names
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation import provenance
from mlops_assets.foundation.resources import Journals, ModelRegistry, ObjectStore, Warehouse
from mlops_assets.foundation.retries import mistakes_are_final
from mlops_assets.foundation.snapshots import SnapshotStore


def build_decision_assets(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    """Return the decisions and everything that watches them."""
    return [*_decisions(spec, names), *_watch(spec, names)]


def freshness_of(spec: Spec) -> dg.FreshnessPolicy:
    """Return when a period's decisions count as late."""
    days = {"daily": 1, "weekly": 7, "monthly": 31}[spec.periods.cadence]
    return dg.FreshnessPolicy.time_window(
        fail_window=timedelta(days=days, hours=spec.periods.hour + spec.periods.late_after_hours)
    )


def _decisions(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    @dg.asset(
        key=names.key("decisions"),
        owners=PRODUCT,
        group_name=names.group("decisions"),
        kinds={"python", "sqlite"},
        pool="decisions",
        deps=[names.key("applications"), names.key("outlier_flags"), names.key("champion")],
        check_specs=checks.decision_specs(spec, names),
        code_version=provenance.code_version("credit_risk", "deciding", "policy", "reasons", "decision_batch"),
        freshness_policy=freshness_of(spec) if spec.data.timed else None,
        **names.by_period,
    )
    def decisions(
        context: dg.AssetExecutionContext, warehouse: Warehouse, models: ModelRegistry, journals: Journals
    ) -> Iterator[Any]:
        """Accept, refer or reject, with reasons, for every application; appended to a log that nobody can change."""
        registry, periods = models.open(), list(context.partition_keys)
        log = DecisionLog(journals.open(spec.name, "decisions"))
        with mistakes_are_final():
            incidents.refuse_if_open(journals.open(spec.name, "operations"), what="scoring", system=spec.name)
            vouched = witnesses.refuse_forged(log, context.instance, spec.name)
            history = pipeline.history_of(spec, context.instance, registry)
            champion = pipeline.serving(spec, context.instance, registry)
            policy = pipeline.approved_policy(spec, history, champion)
            decider = pipeline.load_decider(spec, registry, champion, policy.to_dict())
            if waiting := pipeline.waiting_policy(spec, policy):
                context.log.warning("%s", waiting)
            outcome = BatchDecisions(None)
            for period in periods:
                made = decide_period(spec, period, warehouse, log, decider, champion, run_id=context.run.run_id)
                context.add_asset_metadata(
                    {"decided": made.decided, "decided_before": made.known}, partition_key=period
                )
                outcome.merge(made)
        witness = witnesses.witness(log)
        shown = results.decisions_metadata(outcome, champion, decider.policy, witness)
        yield dg.MaterializeResult(metadata=shown)
        problems = log.verify(vouched.heads, after_number=vouched.agreed)
        sample = tracing.replay_sample(log, registry, periods, rows=200)
        yield checks.policy_result(spec, names, history, policy)
        yield from checks.decision_results(spec, names, outcome, problems, sample)

    return [decisions]


def _watched(spec: Spec, context: dg.AssetExecutionContext, models: ModelRegistry) -> watching.Watched:
    """Return the champion with the policy that was approved with it."""
    registry = models.open()
    history = pipeline.history_of(spec, context.instance, registry)
    champion = pipeline.serving(spec, context.instance, registry)
    return watching.Watched.of(registry, champion, pipeline.approved_policy(spec, history, champion))


def _watch(spec: Spec, names: Names) -> Sequence[dg.AssetsDefinition]:
    common: dict[str, Any] = {
        **names.by_period,
        "owners": RISK_TEAM,
        "group_name": names.group("monitoring"),
        "kinds": {"python"},
    }

    @dg.asset(
        key=names.key("drift_report"),
        deps=[names.looking_back("accepted_applications"), names.key("champion")],
        check_specs=checks.drift_specs(spec, names),
        **{**common, "kinds": {"python", "evidently"}},
    )
    def drift_report(
        context: dg.AssetExecutionContext, warehouse: Warehouse, models: ModelRegistry, store: ObjectStore,
        journals: Journals,
    ) -> Iterator[Any]:  # fmt: skip
        """Applications against those before the champion's training: features by distance and by index, with nulls."""
        period = list(context.partition_keys)[-1]
        with mistakes_are_final():
            watched = _watched(spec, context, models)
            touched = incidents.touched_batches(journals.open(spec.name, "operations"))
            found = watching.drift_of(spec, watched, warehouse, period, touched)
        watching.keep(store.path(), spec, "drift", period, {"model": watched.version.sha256, **found.to_dict()})
        yield dg.MaterializeResult(metadata=results.drift_metadata(spec, found, period, store.path()))
        yield from checks.drift_results(spec, names, found)

    @dg.asset(
        key=names.key("decision_mix"),
        deps=[names.looking_back("decisions")],
        check_specs=checks.mix_specs(spec, names),
        **common,
    )
    def decision_mix(
        context: dg.AssetExecutionContext, warehouse: Warehouse, models: ModelRegistry, store: ObjectStore,
        journals: Journals,
    ) -> Iterator[Any]:  # fmt: skip
        """Scores, decisions and first reasons of the latest decisions, against those of the champion's reference."""
        period = list(context.partition_keys)[-1]
        with mistakes_are_final():
            watched = _watched(spec, context, models)
            log = DecisionLog(journals.open(spec.name, "decisions"))
            found = watching.mixes_of(spec, watched, warehouse, log, period)
        watching.keep(store.path(), spec, "mix", period, {mix.subject: mix.to_dict() for mix in found})
        yield dg.MaterializeResult(metadata=results.mix_metadata(found))
        yield from checks.mix_results(spec, names, found)

    @dg.asset(key=names.key("estimated_performance"), deps=[names.looking_back("decisions")], **common)
    def estimated_performance(
        context: dg.AssetExecutionContext, models: ModelRegistry, store: ObjectStore, journals: Journals
    ) -> dg.MaterializeResult[None]:
        """What the latest decisions should turn out like if the probabilities are right; blind to concept drift."""
        period = list(context.partition_keys)[-1]
        watched = _watched(spec, context, models)
        log = DecisionLog(journals.open(spec.name, "decisions"))
        found = watching.estimated_of(spec, watched, log, period)
        watching.keep(store.path(), spec, "estimated", period, found.to_dict())
        return dg.MaterializeResult(metadata=results.estimated_metadata(found))

    @dg.asset(
        key=names.key("realised_performance"),
        deps=[names.looking_back("decisions"), names.looking_back("outcomes")],
        check_specs=checks.realised_specs(spec, names),
        **common,
    )
    def realised_performance(
        context: dg.AssetExecutionContext, warehouse: Warehouse, models: ModelRegistry, store: ObjectStore,
        journals: Journals,
    ) -> Iterator[Any]:  # fmt: skip
        """How the champion's accepted loans turned out, against test loans that the same policy would have accepted."""
        period = list(context.partition_keys)[-1]
        registry = models.open()
        with mistakes_are_final():
            watched = _watched(spec, context, models)
            log = DecisionLog(journals.open(spec.name, "decisions"))
            snapshots = SnapshotStore(store.path("snapshots"))
            found = watching.realised_of(spec, watched, warehouse, log, snapshots, period)
            since = pipeline.last_attempt(spec, registry)
            counts = watching.new_labels(spec, warehouse, since, period)
        watching.keep(store.path(), spec, "realised", period, {"model": watched.version.sha256, **found.to_dict()})
        watching.keep(store.path(), spec, "labels", period, {"since": since, **counts})
        yield dg.MaterializeResult(metadata=results.realised_metadata(found, counts))
        yield from checks.realised_results(spec, names, found)

    @dg.asset(key=names.key("vintage_curves"), deps=[names.looking_back("outcomes")], **common)
    def vintage_curves(
        context: dg.AssetExecutionContext, warehouse: Warehouse, models: ModelRegistry
    ) -> dg.MaterializeResult[None]:
        """Bad loans by month of application and months on book, each curve as far as all its loans have come."""
        period = list(context.partition_keys)[-1]
        champion = pipeline.current_champion(spec, context.instance, models.open())
        watched = None if champion is None else watching.Watched.of(models.open(), champion)
        found = watching.vintages_of(spec, warehouse, watched, period)
        return dg.MaterializeResult(metadata=results.vintage_metadata(found))

    return [drift_report, decision_mix, estimated_performance, realised_performance, vintage_curves]
