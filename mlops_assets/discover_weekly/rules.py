"""Whether published playlists keep what was promised, judged on the rows themselves.

What belongs here: one function that counts broken rules over shards, with examples. What does not: how a list was
made; nothing here is shared with the code that makes lists, so that it cannot share its mistakes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mlops_assets.discover_weekly.spec import PlaylistRules

RULES: Mapping[str, str] = {
    "every_user_has_a_playlist": "Every user who is owed a playlist has one, and nobody has two.",
    "no_track_the_user_knows": "No list brings back a track that its user has played or skipped before.",
    "no_repeats_of_last_weeks": "No list repeats a track of its user's earlier lists.",
    "artist_cap": "No list has more tracks of one artist than allowed.",
    "only_allowed_tracks": (
        "Every track is in the catalogue, out, available in the user's market, and clean for those who filter."
    ),
    "catalogue_coverage": "All lists together show enough of the catalogue.",
    "list_length": "Every list has its full length, ranked from 1 on.",
    "every_list_is_new": "No list is last period's, issued again because its shard failed.",
}
_EXAMPLES = 5


@dataclass
class Findings:
    """Broken rules over all shards seen so far."""

    broken: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RULES, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {rule: [] for rule in RULES})
    users: int = 0
    served: int = 0
    rows: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    tracks: set[str] = field(default_factory=set)

    def add(self, rule: str, culprits: Sequence[str], count: int | None = None) -> None:
        """Count culprits under a rule and keep the first few."""
        self.broken[rule] += len(culprits) if count is None else count
        room = _EXAMPLES - len(self.examples[rule])
        self.examples[rule].extend(list(culprits)[: max(room, 0)])

    def coverage(self, catalogue_size: int) -> float:
        """Share of the catalogue that at least one list shows."""
        return len(self.tracks) / catalogue_size if catalogue_size else 0.0


def judge(
    shards: Iterator[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]],
    tracks: pd.DataFrame,
    rules: PlaylistRules,
    *,
    released_before: str,
) -> Findings:
    """Judge shard after shard.

    Parameters
    ----------
    shards
        Triples of frames: the users with their histories, their published rows (user_id, rank, track_id, source), and
        the rows of the earlier lists that must not be repeated (user_id, track_id).
    tracks
        Track features.

    Notes
    -----
    A list that was issued again because its shard failed breaks `every_list_is_new`. That it repeats, and may hold
    tracks that its user has played since, lies in its nature and is not counted again as broken; every other rule
    holds for it.
    """
    findings = Findings()
    features = tracks.set_index("track_id")
    released = pd.to_datetime(features["released"], errors="coerce")
    features = features.assign(out=released.isna() | (released < pd.Timestamp(released_before)))
    for users, rows, earlier in shards:
        _judge_shard(findings, users, rows, earlier, features, rules)
    return findings


def _judge_shard(
    findings: Findings,
    users: pd.DataFrame,
    rows: pd.DataFrame,
    earlier: pd.DataFrame,
    features: pd.DataFrame,
    rules: PlaylistRules,
) -> None:
    findings.users += len(users)
    findings.rows += len(rows)
    findings.tracks.update(rows["track_id"].unique())
    for source, count in rows["source"].value_counts().items():
        findings.sources[str(source)] = findings.sources.get(str(source), 0) + int(count)
    lengths = rows.groupby("user_id", sort=True).size()
    findings.served += len(lengths)
    missing = sorted(set(users["user_id"]) - set(lengths.index))
    strangers = sorted(set(lengths.index) - set(users["user_id"]))
    doubled = rows[rows.duplicated(["user_id", "rank"]) | rows.duplicated(["user_id", "track_id"])]
    findings.add("every_user_has_a_playlist", [f"{user} has none" for user in missing])
    findings.add("every_user_has_a_playlist", [f"{user} is not owed one" for user in strangers])
    findings.add(
        "every_user_has_a_playlist", [f"{user} has a row twice" for user in sorted(doubled["user_id"].unique())]
    )
    short = lengths[lengths != rules.length]
    findings.add("list_length", [f"{user} has {count} tracks" for user, count in short.items()])
    highest = rows.groupby("user_id", sort=True)["rank"].agg(["min", "max", "nunique"])
    gaps = highest[(highest["min"] != 1) | (highest["max"] != highest["nunique"])]
    findings.add("list_length", [f"{user} has ranks that do not count from 1 on" for user in gaps.index])
    again = rows["source"] == "last_week"
    old = sorted(rows.loc[again, "user_id"].unique())
    findings.add("every_list_is_new", [f"{user} has last period's" for user in old])
    fresh = rows[~again]
    known = users[["user_id", "tracks"]].explode("tracks").rename(columns={"tracks": "track_id"})
    findings.add("no_track_the_user_knows", _pairs(fresh, known))
    findings.add("no_repeats_of_last_weeks", _pairs(fresh, earlier))
    _judge_tracks(findings, users, rows, features, rules)


def _judge_tracks(
    findings: Findings, users: pd.DataFrame, rows: pd.DataFrame, features: pd.DataFrame, rules: PlaylistRules
) -> None:
    found = features.reindex(rows["track_id"])
    capped = pd.DataFrame({"user_id": rows["user_id"].to_numpy(), "artist_id": found["artist_id"].to_numpy()})
    crowds = capped.dropna().groupby(["user_id", "artist_id"], sort=True).size()
    crowds = crowds[crowds > rules.per_artist]
    findings.add(
        "artist_cap",
        [f"{key[0]} has {count} of {key[1]}" for key, count in zip(crowds.index.to_list(), crowds, strict=True)],
    )
    who = users.set_index("user_id").reindex(rows["user_id"])
    market = who["market"].fillna("").to_numpy(dtype=str)
    filtered = who["allow_explicit"].eq(other=False).to_numpy(dtype=bool)
    where = found["markets"].fillna("").to_numpy(dtype=str)
    shut = np.array(
        [bool(text) and home not in text.split("|") for text, home in zip(where, market, strict=True)], dtype=bool
    )
    # What is not in the catalogue is not out either.
    wrong = ~found["out"].eq(other=True).to_numpy(dtype=bool) | shut
    wrong |= filtered & found["explicit"].eq(other=True).to_numpy(dtype=bool)
    bad = rows[wrong]
    findings.add("only_allowed_tracks", (bad["user_id"] + ": " + bad["track_id"]).tolist())


def _pairs(rows: pd.DataFrame, forbidden: pd.DataFrame) -> list[str]:
    hit = rows.merge(forbidden[["user_id", "track_id"]].drop_duplicates(), on=["user_id", "track_id"])
    return (hit["user_id"] + ": " + hit["track_id"]).tolist()
