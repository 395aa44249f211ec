"""The exact top-N search against implicit's `recommend`: same run, same cores, same factors, same users.

What belongs here: three sets of factors, the paired timing and the table. What does not: the quality of the lists.

    python -m benchmarks.topn [--items 100000] [--factors 64] [--users 20000] [--n 30] [--repeats 5] [--threads CORES]

Sets: (a) factors trained by ALS on the sample world; (b) gaussian vectors of equal length, where no bound
excludes anything; (c) the factors of (a) with a popularity bias, two tracks an artist, 16 audiences and 180
exclusions a user, which implicit cannot express: its figure there is (a)'s task, and a sample of the lists is checked
by scoring everything. A pair is: implicit, then ours, on the same users one after the other; users beyond
--peer-users are given only to ours. Sparse matrices are sliced outside the clock for both.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from mlops_assets.discover_weekly.topn import TopN, TopNResult, _available_cores
from mlops_assets.samples.listening import ListeningWorld

CACHE = Path(__file__).parent / ".cache"
SHARD = 50_000
EXCLUSIONS = 180
AUDIENCES = 16
CHECKED = 200

Search = Callable[["Shard"], TopNResult]


@dataclass(frozen=True)
class Trained:
    """User and item factors, the plays they were trained on (users, items), and the artist of each item."""

    users: NDArray[np.float32]
    items: NDArray[np.float32]
    plays: csr_matrix
    artists: NDArray[np.int32]


@dataclass(frozen=True)
class Shard:
    """Some users of a set: their vectors, the tracks not to return, and their row numbers in the set."""

    vectors: NDArray[np.float32]
    exclude: csr_matrix
    rows: NDArray[np.int64]


def listening_world(users: int, items: int, weeks: int = 6) -> tuple[csr_matrix, NDArray[np.int32]]:
    """Plays of the sample world's first weeks, log(1 + plays) a user and track; and the artist of each track."""
    world = ListeningWorld(users=users, tracks=items, dirt=0.0)
    catalogue = world.track_catalogue(0).head(items)
    tracks = pd.Index(catalogue["track_id"])
    people = pd.Index(world.user_directory(0)["user_id"])
    rows, columns = [], []
    for week in range(weeks):
        for chunk in world.listens(week):
            user, track = people.get_indexer(chunk["user_id"]), tracks.get_indexer(chunk["track_id"])
            kept = (user >= 0) & (track >= 0) & ~chunk["skipped"].to_numpy(dtype=bool)
            rows.append(user[kept])
            columns.append(track[kept])
    pairs = np.concatenate(rows), np.concatenate(columns)
    matrix = csr_matrix((np.ones(len(pairs[0]), np.float32), pairs), shape=(len(people), items))
    matrix.sum_duplicates()
    matrix.data = np.log1p(matrix.data)
    return matrix, pd.factorize(catalogue["artist_id"])[0].astype(np.int32)


def trained_factors(items: int, factors: int, users: int = 60_000) -> Trained:
    """ALS factors of the sample world; the training (a minute at most) is cached beside this file."""
    plays, artists = listening_world(users, items)
    path = CACHE / f"sample-{users}-{items}-{factors}.npz"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        model = AlternatingLeastSquares(factors=factors, regularization=20.0, alpha=10.0, iterations=12, random_state=0)
        model.fit(plays, show_progress=False)
        np.savez(path, users=model.user_factors, items=model.item_factors)
    with np.load(path, allow_pickle=False) as stored:
        return Trained(stored["users"], stored["items"], plays, artists)


def equal_length_factors(trained: Trained) -> Trained:
    """Gaussian directions of length one, with the exclusions of the trained set."""
    rng = np.random.default_rng(1)

    def directions(like: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors = rng.standard_normal(like.shape, dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    return Trained(directions(trained.users), directions(trained.items), trained.plays, trained.artists)


def shards(trained: Trained, exclude: csr_matrix, users: int) -> Iterator[Shard]:
    """Stream any number of users: the trained ones again and again."""
    for first in range(0, users, SHARD):
        rows = np.arange(first, min(first + SHARD, users)) % len(trained.users)
        yield Shard(trained.users[rows], exclude[rows], rows)


def implicit_search(trained: Trained, n: int, threads: int, batch: int) -> Search:
    model = AlternatingLeastSquares(factors=trained.items.shape[1], num_threads=threads)
    model.user_factors, model.item_factors = trained.users, trained.items

    def search(shard: Shard) -> TopNResult:
        parts = [
            model.recommend(
                shard.rows[at : at + batch], shard.exclude[at : at + batch], N=n, filter_already_liked_items=True
            )
            for at in range(0, len(shard.rows), batch)
        ]
        return TopNResult(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    return search


def best_batch(trained: Trained, n: int, cores: int) -> int:
    """The batch size at which implicit is fastest here, with all cores."""
    shard = next(shards(trained, trained.plays, 4000))
    seconds = {
        batch: min(timed(implicit_search(trained, n, cores, batch), shard)[0] for _ in range(3))
        for batch in (1000, 2000, 4000)
    }
    return min(seconds, key=lambda batch: seconds[batch])


def peers(trained: Trained, n: int, cores: int, batch: int) -> list[Search]:
    """implicit with one thread and with all cores: on a busy machine either may win, so every pair takes the faster."""
    return [implicit_search(trained, n, threads, batch) for threads in sorted({1, cores})]


def our_search(catalogue: TopN, n: int, threads: int, rules: Callable[[Shard], dict[str, Any]]) -> Search:
    def search(shard: Shard) -> TopNResult:
        return catalogue.search(shard.vectors, n, exclude=shard.exclude, threads=threads, **rules(shard))

    return search


def timed(search: Search, shard: Shard) -> tuple[float, TopNResult]:
    start = time.perf_counter()
    result = search(shard)
    return time.perf_counter() - start, result


def peak_mb(*, reset: bool = False) -> float:
    """Peak resident memory since the last reset, in MB (Linux; nan elsewhere)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024


@dataclass
class Table:
    """Speeds of the paired repeats and what the lists have in common."""

    peer: list[float]
    ours: list[float]
    identical: float
    gap: float
    peer_mb: float
    our_mb: float

    def row(self, name: str) -> str:
        ratio = np.array(self.ours) / np.array(self.peer)
        return (
            f"{name:<28}{np.median(self.peer):>10,.0f}{np.median(self.ours):>10,.0f}   "
            f"{ratio.min():>6.2f}{np.median(ratio):>7.2f}{ratio.max():>7.2f}   "
            f"{self.identical:>9.2%}{self.gap:>10.1e}{self.peer_mb:>9.0f}{self.our_mb:>8.0f}"
        )


HEADER = (
    f"{'':<28}{'implicit':>10}{'ours':>10}   {'ratio':>6}{'':>14}   {'lists':>9}{'largest':>10}{'MB above start':>17}\n"
    f"{'factors':<28}{'users/s':>10}{'users/s':>10}   {'min':>6}{'median':>7}{'max':>7}   "
    f"{'identical':>9}{'gap':>10}{'implicit':>9}{'ours':>8}"
)


def compare(found: TopNResult, expected: TopNResult) -> tuple[float, float]:
    """Share of identical lists, and the largest score difference at any place of the others."""
    same = (found.items == expected.items).all(axis=1)
    gaps = np.abs(found.scores[~same] - expected.scores[~same])
    return float(same.mean()), float(gaps.max()) if gaps.size else 0.0


def measure(
    trained: Trained, peer: list[Search], ours: Search, exclude: csr_matrix, options: argparse.Namespace,
    reference: Callable[[Shard], TopNResult] | None = None,
) -> Table:  # fmt: skip
    table = Table([], [], 0.0, 0.0, 0.0, 0.0)
    for _ in range(options.repeats):
        shard = next(shards(trained, trained.plays, min(options.users, options.peer_users, SHARD)))
        before = peak_mb(reset=True)
        seconds, theirs = min((timed(search, shard) for search in peer), key=lambda timing: timing[0])
        table.peer.append(len(shard.rows) / seconds)
        table.peer_mb = max(table.peer_mb, peak_mb() - before)
        total, found = 0.0, None
        for each in shards(trained, exclude, options.users):
            before = peak_mb(reset=True)
            seconds, result = timed(ours, each)
            table.our_mb = max(table.our_mb, peak_mb() - before)
            total += seconds
            found = found or result
        table.ours.append(options.users / total)
        assert found is not None
        first = TopNResult(found.items[: len(shard.rows)], found.scores[: len(shard.rows)])
        if reference is not None:
            shard = next(shards(trained, exclude, min(options.users, CHECKED)))
            first, theirs = TopNResult(found.items[:CHECKED], found.scores[:CHECKED]), reference(shard)
        table.identical, table.gap = compare(first, theirs)
    return table


@dataclass(frozen=True)
class Rules:
    """What set (c) asks for besides the vectors."""

    bias: NDArray[np.float32]
    weights: NDArray[np.float32]
    audiences: NDArray[np.bool_]
    audience: NDArray[np.int32]
    exclude: csr_matrix

    def of(self, shard: Shard) -> dict[str, Any]:
        return {"bias_weight": self.weights[shard.rows], "audience": self.audience[shard.rows], "per_group": 2}


def playlist_rules(trained: Trained) -> Rules:
    """Popularity liked by some and disliked by others, 16 audiences, and plays plus the past lists as exclusions."""
    rng = np.random.default_rng(2)
    users, items = trained.plays.shape
    popularity = np.log1p(np.bincount(trained.plays.indices, minlength=items)).astype(np.float32)
    past = TopN(trained.items).search(trained.users, EXCLUSIONS, exclude=trained.plays).items
    left = np.maximum(EXCLUSIONS - np.diff(trained.plays.indptr), 0)
    taken = (np.arange(past.shape[1]) < left[:, None]) & (past >= 0)
    lists = csr_matrix((np.ones(taken.sum(), np.float32), (np.nonzero(taken)[0], past[taken])), shape=(users, items))
    exclude = csr_matrix(trained.plays + lists)
    exclude.sort_indices()
    return Rules(
        bias=popularity,
        weights=rng.uniform(-0.02, 0.02, users).astype(np.float32),
        audiences=rng.random((AUDIENCES, items)) < 0.85,
        audience=rng.integers(0, AUDIENCES, users).astype(np.int32),
        exclude=exclude,
    )


def scored_one_by_one(trained: Trained, rules: Rules, n: int, shard: Shard) -> TopNResult:
    """Score everything, sort everything, walk down."""
    found = np.full((len(shard.rows), n), -1, np.int32)
    values = np.full((len(shard.rows), n), np.nan, np.float32)
    vectors, bias = trained.items.astype(np.float64), rules.bias.astype(np.float64)
    for at, row in enumerate(shard.rows):
        scores = (vectors @ trained.users[row].astype(np.float64) + float(rules.weights[row]) * bias).astype(np.float32)
        allowed = rules.audiences[rules.audience[row]].copy()
        allowed[shard.exclude[at].indices] = False
        taken: dict[int, int] = {}
        length = 0
        for item in np.argsort(-scores, kind="stable"):
            artist = int(trained.artists[item])
            if not allowed[item] or taken.get(artist, 0) == 2:
                continue
            taken[artist] = taken.get(artist, 0) + 1
            found[at, length], values[at, length] = item, scores[item]
            length += 1
            if length == n:
                break
    return TopNResult(found, values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("items", 100_000), ("factors", 64), ("users", 20_000), ("n", 30), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peer-users", type=int, default=20_000, help="at most so many users are given to implicit")
    parser.add_argument("--threads", type=int, default=_available_cores())
    options = parser.parse_args()
    n, threads = options.n, options.threads

    def plain(_: Shard) -> dict[str, Any]:
        return {}

    # implicit asks for this: it runs its own threads, each of which calls BLAS. Only libraries already loaded are
    # limited, so implicit (which loads scipy's own OpenBLAS) is imported above.
    with threadpool_limits(1, "blas"):
        trained = trained_factors(options.items, options.factors)
        batch = best_batch(trained, n, threads)
        print(f"{options.items:,} items, {options.factors} factors, {options.users:,} users, n={n}, {threads} threads")
        print(f"implicit: batches of {batch:,}, the faster of 1 and {threads} threads, BLAS limited to one thread")
        print(HEADER)
        peer = peers(trained, n, threads, batch)
        ours = our_search(TopN(trained.items), n, threads, plain)
        print(measure(trained, peer, ours, trained.plays, options).row("(a) ALS"), flush=True)
        flat = equal_length_factors(trained)
        flat_peer = peers(flat, n, threads, batch)
        ours = our_search(TopN(flat.items), n, threads, plain)
        print(measure(flat, flat_peer, ours, flat.plays, options).row("(b) equal lengths"), flush=True)
        rules = playlist_rules(trained)
        catalogue = TopN(trained.items, item_bias=rules.bias, groups=trained.artists, audiences=rules.audiences)
        ours = our_search(catalogue, n, threads, rules.of)

        def reference(shard: Shard) -> TopNResult:
            return scored_one_by_one(trained, rules, n, shard)

        table = measure(trained, peer, ours, rules.exclude, options, reference)
        print(table.row("(c) ALS with all rules"))
    print(
        f"(c): implicit runs without the rules; {min(CHECKED, options.users)} lists compared with scoring everything."
    )


if __name__ == "__main__":
    main()
