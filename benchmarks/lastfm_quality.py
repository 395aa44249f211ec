"""Quality of the recommendation models on two public data sets, each found by their own sweep, in one run.

What belongs here: the protocol on real data and its tables. What does not: speed of the search (`topn.py`).

    python -m benchmarks.lastfm_quality [--data ../shared/data] [--trials 24] [--only lastfm|cold|movielens]

* lastfm: HetRec 2011 Last.fm, artists as tracks. Each user's artists 80/20 at random (seed 42); hyper-parameters and
  blend are chosen on 80/20 of the training part. Tags are content, once without the assignments of held-out (user,
  artist) pairs and once with them, which shows what that leak is worth.
* cold: a fifth of the artists with at least 5 listeners and a tag is taken out of all histories and ranked by content
  alone, for users whose own tags were not used.
* movielens: MovieLens latest-small, split by time: ratings of 4 and more count as liked. Hyper-parameters and the
  blend are chosen on 2004 to 2006 by models of what came before. Then, for each year from 2007 to 2018, models learn
  from everything before it and are judged by what known users newly liked in that year; users of all years together
  give the figures, since few users of a year were known before it.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from mlops_assets.discover_weekly import blend, collaborative, content
from mlops_assets.discover_weekly.blend import BlendModel
from mlops_assets.discover_weekly.collaborative import CollaborativeParams
from mlops_assets.discover_weekly.evaluation import Evaluation, ItemItem, Popular, evaluate
from mlops_assets.discover_weekly.interactions import (
    Interactions,
    Split,
    contains,
    from_frame,
    positions,
    split_stratified,
    split_time,
)
from mlops_assets.discover_weekly.metrics import accuracy, bootstrap, paired_bootstrap
from mlops_assets.discover_weekly.sweep import SearchSpace, sweep

MOVIELENS_CHOICE, MOVIELENS_YEARS = (2004, 36), range(2007, 2019)


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"  [{what}: {time.perf_counter() - start:.1f} s]")


def lastfm(folder: Path) -> Interactions:
    plays = pd.read_csv(folder / "lastfm" / "user_artists.dat", sep="\t")
    return from_frame(
        pd.DataFrame(
            {
                "user_id": plays["userID"].map("{:06d}".format),
                "track_id": plays["artistID"].map("{:06d}".format),
                "confidence": plays["weight"].astype(float),
            }
        )
    )


def lastfm_tags(folder: Path, interactions: Interactions) -> pd.DataFrame:
    """One row an assignment: user_id, track_id, tag, and whether each is in the interactions."""
    names = pd.read_csv(folder / "lastfm" / "tags.dat", sep="\t", encoding="latin-1").set_index("tagID")["tagValue"]
    given = pd.read_csv(folder / "lastfm" / "user_taggedartists.dat", sep="\t")
    tags = pd.DataFrame(
        {
            "user_id": given["userID"].map("{:06d}".format),
            "track_id": given["artistID"].map("{:06d}".format),
            "tag": given["tagID"].map(names).str.strip().str.replace(r"\s+", "_", regex=True),
        }
    ).drop_duplicates()
    known = positions(tags["track_id"].to_numpy(dtype=np.str_), interactions.track_ids) >= 0
    return tags[known].reset_index(drop=True)


def described(tags: pd.DataFrame, track_ids: np.ndarray) -> pd.DataFrame:
    text = tags.groupby("track_id")["tag"].agg(" ".join)
    return pd.DataFrame({"track_id": track_ids, "tags": text.reindex(track_ids).to_numpy(dtype=object)})


def without(tags: pd.DataFrame, held_out: Interactions) -> pd.DataFrame:
    """Leave out the assignments of held-out (user, artist) pairs."""
    rows = positions(tags["user_id"].to_numpy(dtype=np.str_), held_out.user_ids)
    columns = positions(tags["track_id"].to_numpy(dtype=np.str_), held_out.track_ids)
    leak = (rows >= 0) & contains(held_out.matrix, np.maximum(rows, 0), columns)
    print(f"  tags: {len(tags)} assignments, {leak.mean():.1%} of held-out pairs left out")
    return tags[~leak]


def show(title: str, result: Evaluation) -> None:
    print(f"\n{title}: {result.protocol}")
    wanted = ["ndcg", "precision", "recall", "map", "hit_rate", "coverage", "novelty", "mean_popularity", "cold_share"]
    table = result.table[result.table["metric"].isin(wanted)]
    print(table.pivot_table(index=["k", "contestant"], columns="metric", values="mean", sort=False)[wanted].round(4))
    for against in result.differences["against"].unique():
        d = result.difference(against, "ndcg", 10)
        print(f"  candidate - {against}: nDCG@10 {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] {result.verdict(against)}")


def run(title: str, outer: Split, inner: Split, tracks: pd.DataFrame, trials: int) -> CollaborativeParams:
    with timed(f"sweep of {trials} trials"):
        found = sweep(inner.train, validation=inner.held_out, search=SearchSpace(), trials=trials)
    print(found.table.sort_values("ndcg", ascending=False).head(5).round(4).to_string(index=False))
    blended(title, outer, inner, tracks, found.best)
    return found.best


def blended(title: str, outer: Split, inner: Split, tracks: pd.DataFrame, params: CollaborativeParams) -> None:
    with timed("choice of the blend"):
        early = collaborative.fit(inner.train, params)
        choice = blend.choose(early, content.fit(tracks, early), inner, tracks)
    eligible = choice.table[choice.table["eligible"]]
    print(eligible.sort_values("coverage", ascending=False).head(4).round(4).to_string(index=False))
    with timed("fit of collaborative model"):
        model = collaborative.fit(outer.train, params)
    with timed("fit of content model"):
        described_by = content.fit(tracks, model)
    print(f"  chosen {params}\n  {choice.params}, ridge {described_by.ridge}\n{described_by.trials.round(4)}")
    with timed("evaluation"):
        result = evaluate(
            BlendModel(model, described_by, choice.params).scorer(tracks),
            outer.train,
            outer.held_out,
            champion=model.recommend,
            tracks=tracks,
        )
    show(title + " (candidate: blend, champion: collaborative alone)", result)
    ratio = result.value("candidate", "coverage", 10).mean / result.value("champion", "coverage", 10).mean
    print(f"  coverage@10 of the blend is {ratio:.2f} times that of the collaborative model")


def run_lastfm(folder: Path, trials: int) -> None:
    interactions = lastfm(folder)
    outer = split_stratified(interactions)
    inner = split_stratified(outer.train, seed=1)
    tags = lastfm_tags(folder, interactions)
    clean = described(without(tags, outer.held_out), interactions.track_ids)
    best = run("lastfm, tags without held-out pairs", outer, inner, clean, trials)
    blended("lastfm, all tags", outer, inner, described(tags, interactions.track_ids), best)


def run_cold(folder: Path, seed: int = 0) -> None:
    interactions = lastfm(folder)
    rng = np.random.default_rng(seed)
    tagging = rng.random(interactions.n_users) < 0.5
    tags = lastfm_tags(folder, interactions)
    rows = positions(tags["user_id"].to_numpy(dtype=np.str_), interactions.user_ids)
    tracks = described(tags[(rows < 0) | tagging[np.maximum(rows, 0)]], interactions.track_ids)
    eligible = np.flatnonzero(tracks["tags"].notna().to_numpy() & (interactions.support() >= 5))
    cold = np.sort(rng.choice(eligible, size=len(eligible) // 5, replace=False))
    is_cold = np.zeros(interactions.n_tracks, dtype=bool)
    is_cold[cold] = True
    train, held_out = interactions.matrix.copy(), interactions.matrix[:, cold]
    train.data[is_cold[train.indices]] = 0
    train.eliminate_zeros()
    users = np.flatnonzero(~tagging & (np.diff(held_out.indptr) > 0))
    known = Interactions(train, interactions.user_ids, interactions.track_ids)
    model = collaborative.fit(known, CollaborativeParams(factors=128, regularization=90, alpha=20))
    placed = content.fit(tracks, model).place(tracks)
    factors, _ = model.on_catalogue(interactions.track_ids)
    weights = known.rows(users).weights(model.params.weighting)
    vectors = collaborative.fold_in(factors, model.params.regularization, model.params.alpha, weights).vectors
    popularity = np.tile(interactions.support()[cold].astype(float), (len(users), 1))
    print(f"\ncold artists: {len(cold)} held out, {len(users)} users")
    for name, scores in (
        ("content", vectors @ placed.vectors[cold].T),
        ("oracle popularity", popularity),
        ("random", rng.random((len(users), len(cold)))),
    ):
        lists = np.argsort(-scores, axis=1, kind="stable")[:, :20].astype(np.int32)
        values = accuracy(lists, held_out[users], 20)
        print(f"  {name}: recall@20 {values['recall'].mean():.4f}, nDCG@20 {values['ndcg'].mean():.4f}")


def run_movielens(folder: Path, trials: int) -> None:
    ratings = pd.read_csv(folder / "movielens_small" / "ratings.csv")
    liked = pd.DataFrame(
        {
            "user_id": ratings["userId"].map("{:06d}".format),
            "track_id": ratings["movieId"].map("{:06d}".format),
            "confidence": np.where(ratings["rating"] >= 4, 1.0, 0.0),
            "at": pd.to_datetime(ratings["timestamp"], unit="s"),
        }
    )

    def by_time(year: int, months: int) -> Split:
        start = pd.Timestamp(year=year, month=1, day=1)
        until = start + pd.DateOffset(months=months)
        return split_time(liked[liked["at"] < start], liked[(liked["at"] >= start) & (liked["at"] < until)])

    movies = pd.read_csv(folder / "movielens_small" / "movies.csv")
    genres = movies["genres"].str.replace(" ", "_").str.replace("|", " ")
    tracks = pd.DataFrame({"track_id": movies["movieId"].map("{:06d}".format), "tags": genres})
    inner = by_time(*MOVIELENS_CHOICE)
    found = sweep(inner.train, validation=inner.held_out, trials=trials)
    early = collaborative.fit(inner.train, found.best)
    choice = blend.choose(early, content.fit(tracks, early), inner, tracks)
    print(f"\nmovielens: chosen {found.best}\n  {choice.params}")
    values: dict[str, list[np.ndarray]] = {name: [] for name in ("blend", "collaborative", "item_item", "popular")}
    for year in MOVIELENS_YEARS:
        split = by_time(year, 12)
        users = np.flatnonzero(np.diff(split.held_out.matrix.indptr))
        histories, relevant = split.train.rows(users), split.held_out.rows(users).matrix
        model = collaborative.fit(split.train, found.best)
        scorers = {
            "blend": BlendModel(model, content.fit(tracks, model), choice.params).scorer(tracks),
            "collaborative": model.recommend,
            "item_item": ItemItem(split.train),
            "popular": Popular(split.train),
        }
        for name, scorer in scorers.items():
            values[name].append(accuracy(scorer(histories, 10), relevant, 10)["ndcg"])
        print(f"  {year}: {len(users)} users, {relevant.nnz} held out, left out {split.left_out}")
    pooled = {name: np.concatenate(parts) for name, parts in values.items()}
    for name, ndcg in pooled.items():
        mean, low, high = bootstrap(ndcg)
        print(f"  {name}: nDCG@10 {mean:.4f} [{low:.4f}, {high:.4f}] over {len(ndcg)} users and years")
    for name, against in itertools.product(("blend", "collaborative"), ("item_item", "popular")):
        mean, low, high = paired_bootstrap(pooled[name], pooled[against])
        print(f"  {name} - {against}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--only", choices=["lastfm", "cold", "movielens"])
    arguments = parser.parse_args()
    pd.set_option("display.width", 200, "display.max_columns", 30)
    if arguments.only in (None, "lastfm"):
        run_lastfm(arguments.data, arguments.trials)
    if arguments.only in (None, "cold"):
        run_cold(arguments.data)
    if arguments.only in (None, "movielens"):
        run_movielens(arguments.data, arguments.trials)


if __name__ == "__main__":
    main()
