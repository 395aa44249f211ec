"""The steps between assets and models: what is trained for one period, and from what.

What belongs here: functions from snapshots and versions to versions. What does not: the verdict (judging.py), Dagster,
and the mathematics (collaborative.py, content.py, blend.py).
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from upath import UPath

from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ChampionHistory, ModelVersion, Registry
from mlops_assets.foundation.resources import Warehouse
from mlops_assets.foundation.snapshots import Snapshot

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.discover_weekly.blend import BlendModel
    from mlops_assets.discover_weekly.interactions import Split

Tell = Callable[[str], None]

_log = logging.getLogger(__name__)


def model_name(spec: Spec, model: str) -> str:
    """Return the name of one of the system's models in the registry."""
    return f"{spec.name}.{model}"


def blend_name(spec: Spec) -> str:
    """Return the registry name of the model that answers for production."""
    return model_name(spec, "blend_model")


def period_of_run(spec: Spec, tags: Mapping[str, str]) -> str:
    """Return the last period that a run is about; without one, the last complete period."""
    from mlops_assets.discover_weekly.names import partitions_of

    named = tags.get("dagster/partition") or tags.get("dagster/asset_partition_range_end")
    return named or partitions_of(spec).get_last_partition_key() or spec.periods.start.isoformat()


def as_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Give every text column a text type, so that a column that is all missing does not become a number."""
    texts = [name for name in frame.columns if frame[name].dtype == object]
    return frame.astype(dict.fromkeys(texts, "string"))


def track_features(spec: Spec, warehouse: Warehouse, period: str) -> pd.DataFrame:
    """Return what is known of every track that is out by the end of a period."""
    return warehouse.query(
        f"select * from {spec.name}.track_features where released is null or released < cast(? as date) "
        "order by track_id",
        [spec.periods.shift(period, 1)],
    )


def run_tags(period: str, run_id: str, code: str) -> dict[str, str]:
    """Return what every version records about its making."""
    return {"period": period, "run_id": run_id, "code_version": code}


def current_champion(spec: Spec, instance: "dg.DagsterInstance", registry: Registry) -> ModelVersion | None:
    """Return the version that serves now, from the event log; its copy in MLflow is mended when it disagrees."""
    history = ChampionHistory(instance, spec.name, registry, blend_name(spec))
    if history.current() is None:
        return None
    try:
        history.sync_alias()
    except UserError as error:
        _log.warning("The champion is read from the event log; its alias will be mended later. %s", error)
    return history.champion()


def champion_for(
    spec: Spec, instance: "dg.DagsterInstance", registry: Registry, root: UPath, period: str
) -> ModelVersion | None:
    """Return the version whose lists a period shall have.

    That is the champion of now; but a period that was published and has been followed by another one keeps the version
    that served when it was published, so that a rerun repeats history and does not rewrite it.
    """
    from mlops_assets.discover_weekly.playlist_batch import batch_name
    from mlops_assets.foundation.publication import newest_first, published

    done = published(root, batch_name(spec), period)
    damaged: dict[str, str] = {}
    newest = next(newest_first(root, batch_name(spec), damaged=damaged), None)
    if done is None or newest is None or newest.partition <= period:
        return current_champion(spec, instance, registry)
    history = ChampionHistory(instance, spec.name, registry, blend_name(spec))
    # Publication times are whole seconds, so the verdict of the same second lies behind them.
    record = history.production_at(datetime.fromisoformat(done.published_at) + timedelta(seconds=1))
    return registry.get(blend_name(spec), record.version) if record is not None and record.version else None


def read_split(training_set: Snapshot, learned: str, held_out: str, features: pd.DataFrame | None = None) -> "Split":
    """Return one part to learn from and one held back, on the same users and the same catalogue.

    The catalogue is what was played in either part and, where ``features`` are given, every track that they describe.
    """
    from mlops_assets.discover_weekly.interactions import Split, from_frame

    train, pairs = training_set.read(learned), training_set.read(held_out)
    described = [] if features is None else [features]
    catalogue = np.unique(
        np.concatenate([frame["track_id"].to_numpy(dtype=np.str_) for frame in (train, pairs, *described)])
    )
    known = from_frame(train, track_ids=catalogue)
    held = from_frame(pairs.assign(confidence=1.0), user_ids=known.user_ids, track_ids=catalogue)
    return Split(known, held, {})


def train_collaborative(
    spec: Spec, training_set: Snapshot, registry: Registry, tags: Mapping[str, str], tell: Tell = _log.info
) -> ModelVersion:
    """Search hyper-parameters on the validation part, then learn from all of the training part.

    A second model, learned without the validation part, is stored beside it: the blend is chosen on that one.
    """
    from mlops_assets.discover_weekly import collaborative
    from mlops_assets.discover_weekly.sweep import SearchSpace, sweep

    inner, given = read_split(training_set, "inner", "validation"), spec.collaborative
    best = collaborative.CollaborativeParams(
        given.factors, given.regularization, given.alpha, given.iterations, given.weighting, spec.training.seed
    )
    rows: list[dict[str, Any]] = []
    if given.sweep.trials:
        lengths = given.sweep.factors or (given.factors,)
        search = SearchSpace(given.sweep.regularization, given.sweep.alpha, lengths, (given.weighting,))

        def report(row: Mapping[str, Any]) -> None:
            tell(f"trial {row['trial'] + 1} of {given.sweep.trials}: nDCG {row['ndcg']:.4f}")

        found = sweep(
            inner.train,
            validation=inner.held_out,
            search=search,
            base=best,
            trials=given.sweep.trials,
            k=spec.evaluation.k,
            progress=report,
        )
        best = found.best
        rows = [{str(name): value for name, value in row.items()} for row in found.table.to_dict("records")]
    train = read_split(training_set, "train", "test").train
    with _folder() as folder:
        collaborative.fit(train, best).save(folder / "model")
        collaborative.fit(inner.train, best).save(folder / "inner")
        (folder / "sweep.json").write_text(json.dumps(rows, indent=1, default=float), encoding="utf-8")
        metrics = {"validation_ndcg": max(row["ndcg"] for row in rows)} if rows else {}
        size = {"users": float(train.n_users), "tracks": float((train.support() > 0).sum())}
        return registry.register(
            model_name(spec, "collaborative_model"),
            folder,
            params=asdict(best),
            metrics={**metrics, **size},
            parts={},
            tags=_facts(training_set, tags, "team:recommendations"),
        )


def train_content(
    spec: Spec, features: pd.DataFrame, trained: ModelVersion, registry: Registry, tags: Mapping[str, str]
) -> ModelVersion:
    """Fit tags and lyrics to the space of a collaborative model, and to its inner twin."""
    from mlops_assets.discover_weekly import content
    from mlops_assets.discover_weekly.collaborative import CollaborativeModel

    source = registry.fetch(trained)
    params = content.ContentParams(**spec.content.model_dump())
    with _folder() as folder:
        for part in ("model", "inner"):
            fitted = content.fit(features, CollaborativeModel.load(source / part), params)
            fitted.save(folder / part)
        placed = content.ContentModel.load(folder / "model").place(features)
        return registry.register(
            model_name(spec, "content_model"),
            folder,
            params={**{name: str(value) for name, value in asdict(params).items()}, "ridge": fitted.ridge},
            metrics={"share_of_tracks_placed": float(placed.known.mean())},
            parts={trained.model: trained.as_part()},
            tags={**trained.tags, **tags, "owner": "team:metadata"},
        )


def train_blend(
    spec: Spec,
    training_set: Snapshot,
    features: pd.DataFrame,
    collaborative: ModelVersion,
    content: ModelVersion,
    registry: Registry,
    tags: Mapping[str, str],
) -> ModelVersion:
    """Choose the blend's settings on the inner models and put the full ones together with them.

    Raises
    ------
    UserError
        The content model was fitted to another collaborative model.
    """
    from mlops_assets.discover_weekly.blend import BlendModel, choose
    from mlops_assets.discover_weekly.collaborative import CollaborativeModel
    from mlops_assets.discover_weekly.content import ContentModel

    taste, text = registry.fetch(collaborative), registry.fetch(content)
    chosen = choose(
        CollaborativeModel.load(taste / "inner"),
        ContentModel.load(text / "inner"),
        read_split(training_set, "inner", "validation", features),
        features,
        k=spec.evaluation.k,
    )
    parts = {version.model: version.sha256 for version in (collaborative, content)}
    model = BlendModel(
        CollaborativeModel.load(taste / "model"), ContentModel.load(text / "model"), chosen.params, parts
    )
    row = chosen.table.loc[chosen.table["eligible"]].sort_values("coverage").iloc[-1]
    with _folder() as folder:
        model.save(folder)
        return registry.register(
            blend_name(spec),
            folder,
            params=asdict(chosen.params),
            metrics={"validation_ndcg": float(row["ndcg"]), "validation_coverage": float(row["coverage"])},
            parts={version.model: version.as_part() for version in (collaborative, content)},
            tags=_facts(training_set, tags, "team:discover-weekly"),
        )


def load_blend(registry: Registry, version: ModelVersion) -> "BlendModel":
    """Return a blend, its files verified against the hashes of its version."""
    from mlops_assets.discover_weekly.blend import BlendModel

    return BlendModel.load(registry.fetch(version))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mlops_assets_model_") as name:
        folder = Path(name)
        for part in ("model", "inner"):
            (folder / part).mkdir()
        yield folder


def _facts(training_set: Snapshot, tags: Mapping[str, str], owner: str) -> dict[str, str]:
    return {
        **tags,
        "owner": owner,
        "training_set": training_set.sha256,
        "trained_until": str(training_set.metadata["train_until"]),
        "as_of": str(training_set.metadata["as_of"]),
    }
