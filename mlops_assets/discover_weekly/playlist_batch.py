"""The weekly batch: playlists for all users, shard by shard, and the proof that they keep the rules.

What belongs here: what a batch reads, its identity, its fallback, and judging its rows. What does not: how a list is
made (playlists.py), how shards are kept (foundation/batch.py), Dagster.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from mlops_assets.discover_weekly import rules
from mlops_assets.discover_weekly.playlists import PLAYLIST_SCHEMA, Catalogue, Recommender, build_catalogue
from mlops_assets.discover_weekly.spec import Spec
from mlops_assets.discover_weekly.training import shard_name
from mlops_assets.foundation.batch import BatchResult, Ledger, Progress
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.publication import (
    Manifest,
    Publication,
    newest_first,
    publish,
    published,
    read_shard,
)
from mlops_assets.foundation.registry import ModelVersion, Registry
from mlops_assets.foundation.snapshots import Snapshot

if TYPE_CHECKING:
    from mlops_assets.discover_weekly.blend import BlendModel


def batch_name(spec: Spec) -> str:
    """Return the name under which a system's playlists are written and published."""
    return f"{spec.name}/playlists"


class PlaylistBatch:
    """One period's batch. Its inputs are frozen and the champion is given, so a second run makes the same rows.

    Parameters
    ----------
    inputs
        The snapshot of batch inputs.
    root
        The object store's root.
    champion
        The version that serves, resolved once by the caller; None makes everybody's list from popular tracks.
    """

    def __init__(
        self, spec: Spec, period: str, inputs: Snapshot, root: UPath, registry: Registry, champion: ModelVersion | None
    ) -> None:
        self.spec, self.period, self.inputs, self.root = spec, period, inputs, root
        self.registry, self.champion = registry, champion
        # Earlier lists that cannot be read, with the reason.
        self.damaged: dict[str, str] = {}
        back = spec.playlist.no_repeat_periods
        # Also where repeats are allowed: a shard that fails gets last period's lists.
        names = [spec.periods.shift(period, -step) for step in range(max(back, 1), 0, -1)]
        found = [self._published(name) for name in names]
        there = [publication for publication in found if publication is not None]
        self.earlier = there if back else []
        self.previous = there[-1] if there else None

    def _published(self, period: str) -> Publication | None:
        try:
            return published(self.root, batch_name(self.spec), period)
        except UserError as error:
            self.damaged[period] = str(error)
            return None

    @property
    def model_version(self) -> int:
        """The champion's version, 0 when there is none."""
        return self.champion.version if self.champion else 0

    @property
    def catalogue_size(self) -> int:
        """Number of tracks that could be recommended."""
        return len(self.catalogue.track_ids)

    @property
    def released_before(self) -> str:
        """First day after the period in which the playlists are heard: what is out by then may be in them."""
        return self.spec.periods.shift(self.period, 1)

    @cached_property
    def tracks(self) -> pd.DataFrame:
        """The frozen catalogue with its features."""
        return self.inputs.read("tracks")

    @cached_property
    def catalogue(self) -> Catalogue:
        """The tracks that are out, and who may hear them."""
        markets = self.inputs.read("markets")["market"].tolist()
        plays = self.inputs.read("popularity")
        return build_catalogue(self.tracks, markets, plays, released_before=self.released_before)

    @cached_property
    def model(self) -> "BlendModel | None":
        """The champion's scorer, its files verified."""
        from mlops_assets.discover_weekly.pipeline import load_blend

        return load_blend(self.registry, self.champion) if self.champion else None

    def fingerprint(self) -> dict[str, str]:
        """Return everything the rows depend on."""
        return {
            "champion": self.champion.sha256 if self.champion else "none",
            "inputs": self.inputs.sha256,
            "rules": self.spec.playlist.model_dump_json(),
            "code": _code_sha256(),
            **{f"not repeated {item.partition}": item.manifest.sha256 for item in self.earlier},
            **({f"fallback {self.previous.partition}": self.previous.manifest.sha256} if self.previous else {}),
        }

    def write(self, run_id: str, tell: Callable[[str], None]) -> tuple[Manifest, BatchResult]:
        """Write every shard that is not finished yet and return the manifest of all.

        A shard that fails for good gets last period's lists; nothing is published here.

        Raises
        ------
        UserError
            Another run writes this period, the disk is full, or the champion's files are damaged.
        """
        ledger = Ledger.open(
            self.root, batch_name(self.spec), self.period, self.fingerprint(), self.spec.playlist.shards, run_id
        )
        recommender = self._recommender(self.model)

        def compute(shard: int) -> pa.Table:
            users = self.inputs.read(shard_name(shard))
            recent = self.recent(shard, users)
            made = recommender.recommend(
                users, recent, period=self.period, model_version=self.model_version, run_id=ledger.job.run_id
            )
            return made.table

        def fall_back(shard: int, error: Exception) -> pa.Table:
            tell(f"shard {shard} failed and gets last period's lists: {error}")
            users = self.inputs.read(shard_name(shard))
            made = self._recommender(None).reissue(
                users,
                self.last_lists(shard, users),
                self.recent(shard, users),
                period=self.period,
                run_id=ledger.job.run_id,
            )
            return made.table

        def report(progress: Progress) -> None:
            tell(
                f"shard {progress.finished} of {progress.total}: {progress.rows:,} rows, "
                f"{math.ceil(progress.eta_seconds)} s to go"
            )

        outcome = ledger.run(compute, fall_back, progress=report, schema=PLAYLIST_SCHEMA)
        return ledger.manifest(), outcome

    def _recommender(self, model: "BlendModel | None") -> Recommender:
        until = self.champion.tags["trained_until"] if self.champion else self.period
        return Recommender(self.catalogue, self.tracks, model, self.spec.playlist, trained_until=until)

    def recent(self, shard: int, users: pd.DataFrame) -> pd.DataFrame:
        """Return user_id and track_id of the lists that must not be repeated."""
        frames = [self._lists_of(item, shard, users, ["user_id", "track_id"]) for item in self.earlier]
        return pd.concat([pd.DataFrame({"user_id": [], "track_id": []}, dtype=object), *frames], ignore_index=True)

    def last_lists(self, shard: int, users: pd.DataFrame) -> pd.DataFrame:
        """Return the lists of the latest earlier period, for users of this shard."""
        columns = ["user_id", "rank", "track_id", "model_version"]
        if self.previous is None:
            return pd.DataFrame(columns=columns)
        return self._lists_of(self.previous, shard, users, columns)

    def _lists_of(self, item: Publication, shard: int, users: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
        """Return earlier lists; damaged ones are told and left out, since a new list matters more than a repeat."""
        try:
            return self._read_lists(item, shard, users, columns)
        except UserError as error:
            self.damaged[f"{item.partition}, shard {shard}"] = str(error)
            return pd.DataFrame(columns=columns, dtype=object)

    def _read_lists(self, item: Publication, shard: int, users: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
        # Users are dealt by a hash: a shard keeps its users from period to period unless the number of shards changed.
        same_deal = len(item.manifest.shards) == self.spec.playlist.shards
        if same_deal and item.manifest.shards[shard].file is None:
            return pd.DataFrame(columns=columns)
        if same_deal:
            frame: pd.DataFrame = item.shard(shard, columns).to_pandas()
            return frame
        # Dealt anew: the users of this shard are in all of them, and only their rows are kept in memory.
        wanted = pc.field("user_id").isin(pa.array(users["user_id"], pa.string()))
        parts: list[pd.DataFrame] = [table.to_pandas() for table in item.tables(columns, wanted)]
        return pd.concat([pd.DataFrame(columns=columns), *parts], ignore_index=True)

    def judge(self, manifest: Manifest) -> rules.Findings:
        """Judge the written rows against the rules, reading them back from their files."""
        findings = rules.judge(
            self._shards_to_judge(manifest), self.tracks, self.spec.playlist, released_before=self.released_before
        )
        told = [f"the lists of {what} cannot be read" for what in sorted(self.damaged)]
        findings.add("no_repeats_of_last_weeks", told)
        return findings

    def _shards_to_judge(self, manifest: Manifest) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
        for entry in manifest.shards:
            users = self.inputs.read(shard_name(entry.shard))
            yield users, self._rows(manifest, entry.shard), self.recent(entry.shard, users)

    def _rows(self, manifest: Manifest, shard: int) -> pd.DataFrame:
        columns = ["user_id", "rank", "track_id", "source", "score"]
        if manifest.shards[shard].file is None:
            return pd.DataFrame(columns=columns)
        frame: pd.DataFrame = read_shard(self.root, manifest, shard, columns).to_pandas()
        return frame

    def example(self, manifest: Manifest) -> pd.DataFrame:
        """Return one user's playlist with titles and artists, for a person to look at."""
        for entry in manifest.shards:
            rows = self._rows(manifest, entry.shard)
            if len(rows):
                mixed = rows.loc[rows["source"].isin(["blend", "fold_in"]), "user_id"]
                user = mixed.iloc[0] if len(mixed) else rows["user_id"].iloc[0]
                shown = rows[rows["user_id"] == user].sort_values("rank")
                named = self.tracks[["track_id", "title", "artist_id"]]
                merged: pd.DataFrame = shown.merge(named, on="track_id", how="left")
                return merged.reindex(columns=["rank", "title", "artist_id", "track_id", "source", "score", "user_id"])
        return pd.DataFrame()

    def coverage_history(self, findings: rules.Findings) -> list[float]:
        """Return the catalogue coverage of the earlier lists and of this one."""
        size = max(self.catalogue_size, 1)
        return [*(_distinct_tracks(item) / size for item in self.earlier), findings.coverage(size)]


def publish_batch(spec: Spec, root: UPath, manifest: Manifest) -> Publication:
    """Make a batch what readers see, unless most users would lose their list by it.

    Raises
    ------
    UserError
        The batch is empty, or has far fewer rows than the publication before: the users or the tracks it was made from
        are not complete. What was published before stays.
    """
    damaged: dict[str, str] = {}
    earlier = (
        item for item in newest_first(root, manifest.name, damaged=damaged) if item.partition < manifest.partition
    )
    before = next(earlier, None)
    least = math.ceil(before.rows * spec.checks.minimum_users) if before is not None else 1
    if manifest.rows < max(least, 1):
        told = f"{before.rows:,} of {before.partition}" if before is not None else "any"
        raise UserError(
            f"the batch of {manifest.partition} has {manifest.rows:,} rows, too few after {told}; it is not published",
            where=f"{spec.name}/published_playlists",
            remedy="mend the feed of users or tracks and run again, or lower checks.minimum_users if it is meant so.",
        )
    return publish(root, manifest.name, manifest.partition, manifest, allow_incomplete=True)


def _code_sha256() -> str:
    """Return a hash of what makes the rows: mended code must not go on with the shards of the code before."""
    folder = Path(__file__).parent
    modules = ("playlists", "topn", "_topn_kernel", "blend", "collaborative", "content")
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in modules)).hexdigest()


def _distinct_tracks(item: Publication) -> float:
    """Return how many tracks a publication shows; nan where its files are damaged, which leaves a gap in the line."""
    seen: set[Any] = set()
    try:
        for table in item.tables(["track_id"]):
            seen.update(table.column("track_id").unique().to_pylist())
    except UserError:
        return math.nan
    return float(len(seen))
