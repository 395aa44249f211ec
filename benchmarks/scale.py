"""Playlists for a million users and 100,000 tracks on this machine, next to implicit on a slice of the same work.

What belongs here: the batch as production runs it (frozen inputs, fold-in, rules inside the search, shards through the
ledger, the rules judged on the written rows), its users a second and its peak memory. What does not: the search alone
(`topn.py`) and quality.

    python -m benchmarks.scale [--users 1000000] [--weeks 4] [--train-users 60000] [--shard-users 20000] [--slice 20000]
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from upath import UPath

from mlops_assets.discover_weekly import collaborative, content
from mlops_assets.discover_weekly.blend import BlendModel, BlendParams
from mlops_assets.discover_weekly.interactions import from_frame
from mlops_assets.discover_weekly.playlist_batch import PlaylistBatch
from mlops_assets.discover_weekly.spec import Spec, parse_spec
from mlops_assets.discover_weekly.training import shard_name
from mlops_assets.foundation.publication import publish
from mlops_assets.foundation.registry import ModelVersion, Registry
from mlops_assets.foundation.snapshots import Snapshot, SnapshotStore
from mlops_assets.samples.listening import ListeningWorld

HISTORY = pa.schema(
    [
        ("user_id", pa.string()), ("market", pa.string()), ("allow_explicit", pa.bool_()),
        ("tracks", pa.list_(pa.string())), ("confidences", pa.list_(pa.float64())), ("last_period", pa.string()),
    ]
)  # fmt: skip


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"  {what}: {time.perf_counter() - start:.1f} s, peak memory so far {peak_mb():,.0f} MB", flush=True)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def blocks(world: ListeningWorld, weeks: int, users: int) -> Iterator[pd.DataFrame]:
    """Yield plays a user and track over all weeks, block of users after block of users."""
    # Users who join later add blocks at the end, so the earlier weeks run out first.
    for parts in zip_longest(*[world.listens(week, chunk_users=users) for week in range(weeks)]):
        plays = pd.concat([part for part in parts if part is not None], ignore_index=True)
        plays = plays[plays["user_id"].notna() & (plays["plays"] > 0)]
        known = plays.groupby(["user_id", "track_id"], sort=True)["skipped"].agg(["size", "sum"]).reset_index()
        yield known.assign(confidence=(known["size"] - 1.5 * known["sum"]).clip(lower=0.0))


def trained(world: ListeningWorld, weeks: int, users: int, tracks: pd.DataFrame) -> BlendModel:
    plays = next(blocks(world, weeks, users))
    plays = plays[plays["track_id"].isin(tracks["track_id"])]
    taste = collaborative.fit(
        from_frame(plays[["user_id", "track_id", "confidence"]]),
        collaborative.CollaborativeParams(regularization=10.0, alpha=5.0),
    )
    return BlendModel(taste, content.fit(tracks, taste), BlendParams(popularity_penalty=0.25))


def register(model: BlendModel, registry: Registry, period: str) -> ModelVersion:
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        tags = {"trained_until": period, "as_of": period}
        return registry.register("scale.blend_model", Path(folder), params={}, metrics={}, parts={}, tags=tags)


def inputs(world: ListeningWorld, spec: Spec, weeks: int, users: int, period: str, store: SnapshotStore) -> Snapshot:
    tracks = world.track_catalogue(weeks - 1)
    tracks["released"] = pd.to_datetime(tracks["released"]).dt.strftime("%Y-%m-%d")
    directory = world.user_directory(weeks - 1)
    dealt = blocks(world, weeks, users)
    counts: list[pd.DataFrame] = []

    def shard(number: int) -> Callable[[], pa.Table]:
        def build() -> pa.Table:
            plays = next(dealt)
            own = directory.iloc[number * users : (number + 1) * users]
            lists = plays.groupby("user_id").agg(tracks=("track_id", list), confidences=("confidence", list))
            frame = own.join(lists, on="user_id")
            for name in ("tracks", "confidences"):
                frame[name] = [value if isinstance(value, list) else [] for value in frame[name]]
            frame["last_period"] = np.where(frame["tracks"].map(len) > 0, period, None)
            played = plays.merge(own[["user_id", "market"]], on="user_id")
            counts.append(played.groupby(["market", "track_id"])["size"].sum().rename("plays").reset_index())
            return pa.Table.from_pandas(frame[HISTORY.names], HISTORY, preserve_index=False)

        return build

    def popularity() -> pd.DataFrame:
        return pd.concat(counts).groupby(["market", "track_id"], as_index=False)["plays"].sum()

    markets = pd.DataFrame({"market": sorted(directory["market"].dropna().unique())})
    shards = {shard_name(number): shard(number) for number in range(spec.playlist.shards)}
    return store.save(
        "scale/batch_inputs", {**shards, "tracks": tracks, "markets": markets, "popularity": popularity}, {}
    )


def implicit_peer(batch: PlaylistBatch, users: int) -> float:
    """Return implicit's users a second for fold-in and top 30 without known tracks; it has no other rules."""
    from implicit.cpu.als import AlternatingLeastSquares

    frame = batch.inputs.read(shard_name(0)).head(users)
    recommender = batch._recommender(batch.model)
    nothing = pd.DataFrame({"user_id": [], "track_id": []}, dtype=object)
    history, exclude = recommender._history(frame), recommender._excluded(frame, nothing)
    peer = AlternatingLeastSquares(factors=64, regularization=10.0, alpha=5.0)
    peer.item_factors = np.array(recommender._items.vectors)
    start = time.perf_counter()
    for first in range(0, len(frame), 1_000):
        rows, seen = history[first : first + 1_000], exclude[first : first + 1_000]
        ids = np.arange(rows.shape[0])
        peer.user_factors = peer.recalculate_user(ids, rows)
        peer.recommend(ids, seen, N=30, filter_already_liked_items=True)
    return len(frame) / (time.perf_counter() - start)


def ours(batch: PlaylistBatch, users: int) -> float:
    """Return this package's users a second on the same users: fold-in, all rules, rows as a table."""
    frame = batch.inputs.read(shard_name(0)).head(users)
    recommender, empty = batch._recommender(batch.model), pd.DataFrame({"user_id": [], "track_id": []}, dtype=object)
    start = time.perf_counter()
    recommender.recommend(frame, empty, period=batch.period, model_version=1, run_id="slice")
    return len(frame) / (time.perf_counter() - start)


def print_nothing(_text: str) -> None:
    """Take what the batch tells after each shard."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--weeks", type=int, default=4)
    parser.add_argument("--train-users", type=int, default=40_000)
    parser.add_argument("--shard-users", type=int, default=20_000)
    parser.add_argument("--slice", type=int, default=20_000)
    given = parser.parse_args()
    world = ListeningWorld(users=given.users, tracks=100_000, dirt=0.0)
    shards = -(-world.user_count(given.weeks - 1) // given.shard_users)
    spec = parse_spec({"name": "scale", "playlist": {"shards": shards}}, where="benchmark", base=Path())
    period = world.monday(given.weeks - 1).isoformat()
    with tempfile.TemporaryDirectory() as folder:
        root = UPath(folder)
        registry = Registry(f"sqlite:///{folder}/mlflow.db", root / "models")
        with timed(f"training on {given.train_users:,} users"):
            model = trained(world, given.weeks, given.train_users, world.track_catalogue(given.weeks - 1))
            champion = register(model, registry, period)
        del model
        with timed(f"frozen inputs of {world.user_count(given.weeks - 1):,} users in {shards} shards"):
            frozen = inputs(world, spec, given.weeks, given.shard_users, period, SnapshotStore(root / "snapshots"))
        batch = PlaylistBatch(spec, period, frozen, root, registry, champion)
        ours(batch, 100)  # compiles the kernel
        mine, theirs = ours(batch, given.slice), implicit_peer(batch, given.slice)
        print(f"  slice of {given.slice:,} users x {batch.catalogue_size:,} tracks: "
            f"ours {mine:,.0f} users/s with all rules, "
              f"implicit {theirs:,.0f} users/s without; ratio {mine / theirs:.2f}")  # fmt: skip
        start = time.perf_counter()
        manifest, outcome = batch.write("benchmark", print_nothing)
        seconds = time.perf_counter() - start
        users = world.user_count(given.weeks - 1)
        print(f"  batch: {users:,} users, {manifest.rows:,} rows in {seconds:.0f} s = {users / seconds:,.0f} users/s, "
              f"peak memory {peak_mb():,.0f} MB; {len(outcome.fallback)} shards in fallback")  # fmt: skip
        with timed("publication"):
            publish(root, manifest.name, manifest.partition, manifest)
        with timed("rules judged on the written rows"):
            findings = batch.judge(manifest)
        print(f"  served {findings.served:,} of {findings.users:,} users; broken rules: {findings.broken}")


if __name__ == "__main__":
    main()
